//! Histories known to be good and bad, and a twin that tries every order.

mod anomalies;

use base::Random;
use bytes::Bytes;

use super::*;
use crate::history::{Answer, Ending, Expected, Operation};

fn judge(text: &str) -> Result<(), Violation> {
    check(&History::from_text(text).unwrap())
}

fn good(text: &str) {
    if let Err(violation) = judge(text) {
        panic!("{violation}");
    }
}

fn bad(text: &str) {
    match judge(text) {
        Err(Violation::NotLinearizable { .. }) => {}
        other => panic!("{other:?} of\n{text}"),
    }
}

#[test]
fn calls_one_after_the_other_are_those_of_a_register() {
    let text = "\
        1 1 =k get -> 2 none v0
        1 3 =k put =a -> 4 done v5
        1 5 =k append =bc -> 6 appended 3 v7
        1 7 =k get -> 8 =abc v7
        1 9 =k cas v7 =y -> 10 swapped v8
        1 11 =k cas =x =z -> 12 different v8
        1 13 =k delete -> 14 deleted
        1 15 =k delete -> 16 absent
        1 17 =k cas v0 =z -> 18 swapped v12";
    good(text);
    for (right, wrong) in [
        ("none v0", "=a"),
        ("none v0", "none v1"),
        ("done v5", "done v8"),
        ("appended 3", "appended 2"),
        ("=abc v7", "=ab v7"),
        ("=abc v7", "=abc v6"),
        ("swapped v8", "different v8"),
        ("different v8", "swapped v9"),
        ("14 deleted", "14 absent"),
        ("16 absent", "16 deleted"),
        ("swapped v12", "swapped v3"),
    ] {
        bad(&text.replacen(right, wrong, 1));
    }
}

#[test]
fn puthash_chains_are_computed() {
    let text = "\
        1 1 =k puthash =x -> 2 none
        1 3 =k get -> 4 =4245442695
        1 5 =k put =x -> 6 done
        1 7 =k puthash =b -> 8 =x
        1 9 =k get -> 10 =1063475327
        1 11 =k delete -> 12 deleted
        1 13 =k puthash =0 -> 14 none
        1 15 =k puthash =1 -> 16 =890022063
        1 17 =k puthash =2 -> 18 =78513644
        1 19 =k get -> 20 =3250269825";
    good(text);
    // Executed twice, the second time unseen.
    bad(&text.replace("=78513644", "=890022063"));
}

#[test]
fn concurrent_calls_may_come_in_either_order() {
    good("1 1 =k put =a -> 9 done\n2 2 =k put =b -> 8 done\n3 10 =k get -> 11 =a");
    good("1 1 =k put =a -> 9 done\n2 2 =k put =b -> 8 done\n3 10 =k get -> 11 =b");
    // Two readers must not see them in different orders.
    let two = "1 1 =k put =a -> 99 done\n2 2 =k put =b -> 98 done\n\
               3 10 =k get -> 11 =a\n3 12 =k get -> 13 =b\n3 14 =k get -> 15 =a";
    bad(two);
    good(&two.replace("15 =a", "15 =b"));
}

#[test]
fn a_stale_read_and_a_lost_write_are_found() {
    bad("1 1 =k put =a -> 2 done\n1 3 =k put =b -> 4 done\n2 5 =k get -> 6 =a");
    bad("1 1 =k put =a -> 2 done\n2 5 =k get -> 6 none");
    // A read sees the new value, a later one the old value.
    bad("1 1 =k put =a -> 2 done\n1 3 =k put =b -> 20 done\n\
         2 5 =k get -> 6 =b\n2 7 =k get -> 8 =a");
}

#[test]
fn an_unknown_outcome_may_be_late_or_never_but_not_twice() {
    let late = "1 1 =k append =a; -> ?\n2 5 =k get -> 6 none\n2 7 =k get -> 8 =a;";
    good(late);
    good("1 1 =k append =a; -> ?\n2 5 =k get -> 6 none");
    bad("1 1 =k append =a; -> ?\n2 5 =k get -> 6 =a;a;");
    bad("1 1 =k append =a; -> ?\n2 5 =k get -> 6 =a;\n2 7 =k get -> 8 none");
    // Not before it was asked for, and not when it was refused.
    bad("2 5 =k get -> 6 =a;\n1 7 =k append =a; -> ?");
    bad(&late.replace("?", "refused"));
}

#[test]
fn versions_order_the_writes() {
    let text = "1 1 =k put =a -> 9 done v7\n2 2 =k put =b -> 8 done v5\n3 10 =k get -> 11 =a v7";
    good(text);
    bad(&text.replace("=a v7", "=b v5"));
    bad(&text.replace("=a v7", "=a v8"));
    // A write of unknown version is pinned down by a read.
    let unknown = "1 1 =k put =a -> ?\n2 2 =k get -> 3 =a v4\n2 4 =k cas v4 =c -> 5 swapped v6";
    good(unknown);
    bad(&unknown.replace("cas v4", "cas v5"));
}

#[test]
fn the_report_shows_where_it_fails() {
    let Err(Violation::NotLinearizable { key, report }) =
        judge("1 1 =k put =a -> 2 done\n1 3 =k put =b -> 4 done\n2 5 =k get -> 6 =a")
    else {
        panic!("not found");
    };
    assert_eq!(key, Bytes::from_static(b"k"));
    assert!(report.contains("placed 2 of 3"), "{report}");
    assert!(report.contains("none of these can come next:\n    2 5 =k get -> 6 =a"), "{report}");
}

/// A register that executes calls for real, some of whose clients never hear of it.
struct Register {
    value: Option<Vec<u8>>,
    version: u64,
    changes: u64,
}

impl Register {
    fn execute(&mut self, operation: &Operation) -> (Answer, Option<u64>) {
        let value = self.value.clone();
        let answer = match operation {
            Operation::Get | Operation::Look(_) => Answer::Value(value.map(Bytes::from)),
            Operation::Put(new) => {
                self.set(new.to_vec());
                Answer::Done
            }
            Operation::PutHash(new) => {
                let mut hash = 0x811c_9dc5_u32;
                for byte in value.iter().flatten().chain(new) {
                    hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
                }
                self.set(hash.to_string().into_bytes());
                Answer::Value(value.map(Bytes::from))
            }
            Operation::Delete => {
                self.value = None;
                self.version = 0;
                return (Answer::Deleted(value.is_some()), None);
            }
            Operation::Append(more) => {
                let mut whole = value.unwrap_or_default();
                whole.extend_from_slice(more);
                let len = whole.len() as u64;
                self.set(whole);
                Answer::Appended(len)
            }
            Operation::CompareAndSwap { expected, value: new } => {
                let same = match expected {
                    Expected::Value(expected) => value.as_deref() == Some(expected.as_ref()),
                    Expected::Version(expected) => *expected == self.version,
                };
                if same {
                    self.set(new.to_vec());
                }
                Answer::Swapped(same)
            }
        };
        (answer, Some(self.version))
    }

    fn set(&mut self, value: Vec<u8>) {
        self.changes += 1;
        self.version = self.changes;
        self.value = Some(value);
    }
}

fn random_operation(random: &mut Random, values: u64) -> Operation {
    let value = Bytes::from(random.below(values).to_string());
    match random.below(7) {
        0 | 1 => Operation::Get,
        2 => Operation::Put(value),
        3 => Operation::PutHash(value),
        4 => Operation::Delete,
        5 => Operation::Append(value),
        _ => {
            let expected = if random.chance(1, 2) {
                Expected::Value(Bytes::from(random.below(values).to_string()))
            } else {
                Expected::Version(random.below(6))
            };
            Operation::CompareAndSwap { expected, value }
        }
    }
}

/// A history that is linearizable by its making: each call is executed at one instant.
/// Of a hundred calls `unknown` stay without an answer, and `versions` are told a version.
fn real_history(
    random: &mut Random,
    [clients, calls, values]: [u64; 3],
    [unknown, versions]: [u64; 2],
) -> Vec<Call> {
    let mut register = Register { value: None, version: 0, changes: 0 };
    let mut clock = vec![0_u64; clients as usize];
    let mut plan: Vec<(u64, u64, u64, u64, Operation)> = Vec::new();
    for _ in 0..calls {
        let client = random.below(clients);
        let start = clock[client as usize] + random.between(1, 10);
        let at = start + random.between(1, 30);
        let end = at + random.between(1, 30);
        clock[client as usize] = end;
        plan.push((at, client, start, end, random_operation(random, values)));
    }
    plan.sort_by_key(|(at, ..)| *at);
    let mut done = Vec::new();
    for (_, client, start, end, operation) in plan {
        let fate = random.below(100);
        let ending = if fate < unknown {
            Ending::Unknown
        } else if fate > 95 {
            Ending::Refused
        } else {
            let (answer, version) = register.execute(&operation);
            let version = version.filter(|_| random.chance(versions, 100));
            Ending::Answered { at: end, answer, version }
        };
        if fate < unknown && random.chance(1, 2) {
            register.execute(&operation);
        }
        done.push(Call { client, start, key: Bytes::from_static(b"k"), operation, ending });
    }
    done.sort_by_key(|call| call.start);
    done
}

#[test]
fn real_histories_pass_in_bounded_steps() {
    for seed in 0..24 {
        let mut random = Random::new(seed);
        let values = random.between(2, 1_000);
        let calls = if random.chance(1, 2) {
            let clients = random.between(1, 12);
            real_history(&mut random, [clients, 2_000, values], [2, 100])
        } else {
            let clients = random.between(1, 8);
            real_history(&mut random, [clients, 2_000, values], [1, 0])
        };
        if let Err(violation) = check_key(&Bytes::new(), &calls, 400_000) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn a_single_wrong_answer_in_a_long_history_is_found() {
    let mut found = 0;
    for seed in 0..24 {
        let mut random = Random::new(seed);
        let mut calls = real_history(&mut random, [4, 1_000, 1_000_000], [5, 50]);
        let index = random.below(calls.len() as u64) as usize;
        if let Ending::Answered { answer: Answer::Value(value), .. } = &mut calls[index].ending {
            *value = Some(Bytes::from_static(b"never written"));
            assert!(check_key(&Bytes::new(), &calls, 400_000).is_err(), "seed {seed}");
            found += 1;
        }
    }
    assert!(found > 4);
}

/// Tries every order of every subset that has all answered calls.
fn by_brute_force(calls: &[Call], placed: &mut Vec<usize>, state: &State) -> bool {
    let steps: Vec<Step> =
        calls.iter().enumerate().filter_map(|(index, call)| Step::new(index, call, 0)).collect();
    brute(&steps, placed, *state)
}

fn brute(steps: &[Step], placed: &mut Vec<usize>, state: State) -> bool {
    let left: Vec<usize> = (0..steps.len()).filter(|index| !placed.contains(index)).collect();
    if left.iter().all(|index| steps[*index].end.is_none()) {
        return true;
    }
    for index in &left {
        let step = &steps[*index];
        let after_another = left
            .iter()
            .any(|other| other != index && steps[*other].end.is_some_and(|end| end < step.start));
        if after_another {
            continue;
        }
        if let Some(found) = step.apply(state) {
            placed.push(*index);
            if brute(steps, placed, found) {
                return true;
            }
            placed.pop();
        }
    }
    false
}

#[test]
fn the_search_agrees_with_brute_force() {
    let mut counts = [0_u32; 2];
    for seed in 0..4_000 {
        let mut random = Random::new(seed);
        let mut calls = real_history(&mut random, [4, 6, 3], [10, 50]);
        // Spoil some answers with those of other calls.
        for _ in 0..random.below(3) {
            let from = random.below(calls.len() as u64) as usize;
            let to = random.below(calls.len() as u64) as usize;
            if let (Ending::Answered { answer, version, .. }, Ending::Answered { at, .. }) =
                (calls[from].ending.clone(), calls[to].ending.clone())
            {
                calls[to].ending = Ending::Answered { at, answer, version };
            }
        }
        let expected = by_brute_force(&calls, &mut Vec::new(), &State::ABSENT);
        let actual = check_key(&Bytes::new(), &calls, 1_000_000);
        counts[usize::from(expected)] += 1;
        let text: String = calls.iter().map(|call| format!("{call}\n")).collect();
        assert_eq!(actual.is_ok(), expected, "seed {seed}: {actual:?}\n{text}");
    }
    assert!(counts[0] > 400 && counts[1] > 400, "{counts:?}");
}

#[test]
fn a_session_never_goes_back() {
    let writes = "1 1 =k put =a -> 2 done\n1 3 =k put =b -> 4 done\n1 20 =k put =c -> 21 done\n";
    let with = |calls: &str| format!("{writes}{calls}");
    // Another client's session may see anything that ever was, in order.
    good(&with("2 30 =k look -> 31 none\n2 32 =k look -> 33 =a\n2 34 =k look -> 35 =c"));
    good(&with("2 30 =k look -> 31 =b\n2 32 =k look -> 33 =b"));
    bad(&with("2 30 =k look -> 31 =b\n2 32 =k look -> 33 =a"));
    bad(&with("2 30 =k look -> 31 =b\n2 32 =k look -> 33 none"));
    // What is read from elsewhere counts too, and nobody reads what was never there.
    bad(&with("2 30 =k get -> 31 =c\n2 32 =k look -> 33 =b"));
    bad(&with("2 30 =k look -> 31 =d"));
    // Nor what is written later.
    bad(&with("2 10 =k look -> 11 =c"));
    // Its own writes are seen, also those that others wrote over.
    bad(&with("1 30 =k look -> 31 =b"));
    good(&with("1 30 =k look -> 31 =c"));
    let two = "1 1 =k put =a -> 9 done\n2 1 =k put =b -> 5 done\n";
    good(&format!("{two}1 10 =k look -> 11 =a\n3 20 =k get -> 21 =b"));
    bad(&format!("{two}1 10 =k look -> 11 none\n3 20 =k get -> 21 =b"));
    // A write of which the client never heard binds nobody.
    good("1 1 =k put =a -> 2 done\n1 3 =k put =b -> ?\n1 5 =k look -> 6 =b\n2 7 =k get -> 8 =b");
    good("1 1 =k put =a -> 2 done\n1 3 =k put =b -> ?\n1 5 =k look -> 6 =a\n2 7 =k get -> 8 =b");
}

#[test]
fn a_bounded_read_is_never_older_than_its_bound() {
    let writes = "1 1 =k put =a -> 2 done\n1 10 =k put =b -> 12 done\n";
    let with = |calls: &str| format!("{writes}{calls}");
    good(&with("2 30 =k look 20 -> 31 =a"));
    good(&with("2 30 =k look 18 -> 31 =a"));
    bad(&with("2 30 =k look 17 -> 31 =a"));
    good(&with("2 30 =k look 17 -> 31 =b"));
    bad(&with("2 30 =k look 100 -> 31 =c"));
    bad(&with("2 30 =k look 0 -> 31 =a"));
    // It is no session: it may go back within its bound, and others then may not.
    good(&with("2 20 =k get -> 21 =b\n2 30 =k look 20 -> 31 =a"));
}
