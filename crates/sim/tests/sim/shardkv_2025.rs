//! The scenarios N: groups that come and go one after the other, and the shard master's leader
//! lost or overtaken in the middle. (N7 and N9 are among the `moves`.)

use std::collections::BTreeMap;

use base::GroupId;
use router::MasterOp;
use sim::scenario::Scenario;
use sim::workload::WorkloadOptions;

use crate::book::{Book, begin_wide, mixed, nodes};

const SHARDS: u16 = 12;
const KEYS: usize = 60;

/// Twelve shards at group 1, and nodes for so many groups.
fn begin(name: &str, room: u64) -> Scenario {
    begin_wide(name, SHARDS, room, 1)
}

/// While a group cannot be reached, fewer than all keys are found; then it can be again.
fn without(s: &mut Scenario, book: &Book, group: u64) {
    s.isolate(&nodes(group));
    let missing = book.owned_by(s, &[group]);
    assert!(missing > 0);
    assert_eq!(book.found(s, 2_000), KEYS - missing);
    s.heal();
}

#[test]
fn n1_one_group_and_the_loss_of_its_leader() {
    let mut s = begin("n1", 1);
    let plan = s.plan();
    assert_eq!((plan.number.0, plan.shards), (1, vec![GroupId(1); usize::from(SHARDS)]));
    let book = Book::write_many(&mut s, KEYS, 10);
    let leader = s.leader(1);
    s.kill(leader);
    book.check(&mut s);
    assert_ne!(s.leader(1), leader);
    let master = s.leader(0);
    s.kill(master);
    assert_eq!(s.plan().number.0, 1);
    book.check(&mut s);
}

#[test]
fn n2_join_leave_and_join_again() {
    let mut s = begin("n2", 2);
    let mut book = Book::write_many(&mut s, KEYS, 10);
    assert_eq!(s.join(2, &nodes(2)).number.0, 2);
    s.settles(5_000);
    without(&mut s, &book, 1);
    without(&mut s, &book, 2);
    book.check_and_append(&mut s);
    assert_eq!(s.leave(&[1]).number.0, 3);
    s.settles(5_000);
    s.kill_all(&nodes(1));
    assert_eq!(book.found(&mut s, 2_000), KEYS);
    book.check_and_append(&mut s);
    s.restart_nodes(&nodes(1));
    assert_eq!(s.join(1, &nodes(1)).number.0, 4);
    s.settles(5_000);
    assert_eq!(s.owned(), BTreeMap::from([(1, 6), (2, 6)]));
    book.check_and_append(&mut s);
    without(&mut s, &book, 1);
}

#[test]
fn n3_what_a_join_took_away_is_deleted() {
    // Sizes are those of all records in the stores of one node of each group.
    let mut s = begin("n3", 2);
    let book = Book::write_many(&mut s, KEYS, 1_000);
    s.wait(2_000);
    let before = s.stored_bytes(nodes(1)[0]);
    assert!(before >= 60_000, "{before}");
    s.join(2, &nodes(2));
    s.settles(5_000);
    s.wait(2_000);
    for index in 0..3 {
        let sizes = [1, 2].map(|group| s.stored_bytes(nodes(group)[index]));
        assert!(sizes.iter().sum::<u64>() <= before + 10_000, "{before}, then {sizes:?}");
        assert!(sizes.iter().all(|size| *size >= 20_000), "{sizes:?}");
    }
    book.check(&mut s);
}

fn many_joins_and_leaves(name: &str, unreliable: bool) {
    let mut s = begin(name, 9);
    if unreliable {
        s.unreliable();
    }
    let book = Book::write_many(&mut s, KEYS, 10);
    for group in 2..=9 {
        s.join(group, &nodes(group));
        s.wait(200);
    }
    s.settles(20_000);
    assert_eq!(s.owned().len(), 9);
    if !unreliable {
        without(&mut s, &book, 1);
    }
    book.check(&mut s);
    for group in 2..=9 {
        s.leave(&[group]);
        s.wait(200);
    }
    s.settles(20_000);
    assert_eq!(s.owned(), BTreeMap::from([(1, 12)]));
    book.check(&mut s);
}

#[test]
fn n4_many_joins_and_leaves() {
    many_joins_and_leaves("n4", false);
}

#[test]
fn n4_many_joins_and_leaves_unreliable() {
    many_joins_and_leaves("n4-unreliable", true);
}

#[test]
fn n5_all_groups_crash_and_come_back() {
    let mut s = begin("n5", 4);
    let mut book = Book::write_many(&mut s, KEYS, 10);
    for group in 2..=4 {
        s.join(group, &nodes(group));
        s.wait(200);
    }
    book.check_and_append(&mut s);
    let all: Vec<usize> = (1..=4).flat_map(nodes).collect();
    s.kill_all(&all);
    assert_eq!(book.found(&mut s, 2_000), 0);
    s.restart_nodes(&all);
    book.check_and_append(&mut s);
    s.power_off();
    s.restart_all();
    book.check_and_append(&mut s);
    s.settles(10_000);
}

#[test]
fn n6_groups_that_live_serve_while_others_are_down() {
    let mut s = begin("n6", 4);
    let book = Book::write_many(&mut s, KEYS, 10);
    for group in 2..=4 {
        s.join(group, &nodes(group));
        s.wait(200);
    }
    s.settles(10_000);
    s.kill_all(&nodes(2));
    s.kill_all(&nodes(3));
    let live = book.owned_by(&mut s, &[1, 4]);
    assert!(live > 0 && live < KEYS);
    assert_eq!(book.found(&mut s, 2_000), live);
    s.restart_all();
    book.check(&mut s);
}

/// For twenty seconds groups join and leave one after the other while clients work.
fn concurrent_clerks(name: &str, clerks: usize, unreliable: bool) {
    let mut s = begin(name, 9);
    if unreliable {
        s.unreliable();
    }
    s.employ(WorkloadOptions { keys: 24, ..mixed(clerks, 40) });
    let end = s.millis() + 20_000;
    'work: loop {
        for group in 2..=17_u64 {
            if s.millis() >= end {
                break 'work;
            }
            if group <= 9 {
                s.join(group, &nodes(group));
            } else {
                s.leave(&[group - 8]);
            }
            s.wait(200);
        }
    }
    s.reliable();
    let least = if unreliable { 10 } else { 300 };
    assert!(s.answered() > least * clerks as u64, "{}", s.answered());
    s.dismiss(10_000);
    s.settles(20_000);
}

#[test]
fn n8_one_clerk() {
    concurrent_clerks("n8-one", 1, false);
}

#[test]
fn n8_one_clerk_unreliable() {
    concurrent_clerks("n8-one-unreliable", 1, true);
}

#[test]
fn n8_ten_clerks() {
    concurrent_clerks("n8-ten", 10, false);
}

#[test]
fn n8_ten_clerks_unreliable() {
    concurrent_clerks("n8-ten-unreliable", 10, true);
}

#[test]
fn n10_a_new_leader_of_the_masters_completes_what_the_old_one_began() {
    let mut s = begin("n10", 2);
    let mut book = Book::write_many(&mut s, KEYS, 10);
    for round in 0..5 {
        // The group that is down makes the change hang.
        s.kill_all(&nodes(2));
        let number =
            if round % 2 == 0 { s.join(2, &nodes(2)).number } else { s.leave(&[2]).number };
        s.wait(500);
        let owned = if round % 2 == 0 { (1, 12) } else { (2, 6) };
        assert_eq!(s.owned().get(&owned.0), Some(&owned.1), "it does not hang");
        let old = s.leader(0);
        s.isolate(&[old]);
        s.wait(1_000);
        s.restart_nodes(&nodes(2));
        s.wait(2_000);
        let expected = if round % 2 == 0 {
            BTreeMap::from([(1, 6), (2, 6)])
        } else {
            BTreeMap::from([(1, 12)])
        };
        assert_eq!(s.owned(), expected, "round {round}");
        assert_eq!(s.plan().number, number);
        book.check_and_append(&mut s);
        s.heal();
        s.settles(5_000);
        assert_ne!(s.leader(0), old);
    }
}

/// Four operators at once, each with a group of its own that joins and leaves for two seconds.
fn concurrent_controllers(name: &str, unreliable: bool) {
    let mut s = begin(name, 5);
    let book = Book::write_many(&mut s, KEYS, 10);
    struct Operator {
        group: u64,
        join: MasterOp,
        client: usize,
        open: Option<u64>,
        changes: u64,
    }
    let mut operators: Vec<Operator> = Vec::new();
    for group in 2..=5 {
        let (join, client) = (s.joining(&[(group, &nodes(group))]), s.client(vec![0, 1, 2]));
        operators.push(Operator { group, join, client, open: None, changes: 0 });
    }
    if unreliable {
        s.unreliable();
    }
    let end = s.millis() + 2_000;
    loop {
        for operator in &mut operators {
            if let Some(call) = operator.open {
                let Some(result) = s.changed(operator.client, call) else { continue };
                assert!(result.is_ok_and(|reply| reply.body.is_ok()));
                operator.changes += 1;
                operator.open = None;
            }
            if s.millis() < end {
                let op = if operator.changes % 2 == 0 {
                    operator.join.clone()
                } else {
                    MasterOp::Leave { groups: vec![GroupId(operator.group)] }
                };
                operator.open = Some(s.begin_change(operator.client, op));
            }
        }
        if s.millis() >= end && operators.iter().all(|operator| operator.open.is_none()) {
            break;
        }
        s.wait(1);
    }
    let changes: u64 = operators.iter().map(|operator| operator.changes).sum();
    assert!(changes >= if unreliable { 4 } else { 80 }, "{changes}");
    book.check(&mut s);
    s.reliable();
    s.settles(20_000);
    assert_eq!(s.plan().number.0, 1 + changes);
    book.check(&mut s);
}

#[test]
fn n11_concurrent_operators() {
    concurrent_controllers("n11", false);
}

#[test]
fn n11_concurrent_operators_unreliable() {
    concurrent_controllers("n11-unreliable", true);
}

/// What the old leader of the masters meets while it is stuck.
#[derive(Clone, Copy)]
enum Fate {
    CutOff,
    Paused,
    Killed,
}

/// A leader of the masters in the middle of a change is overtaken by another, which completes that
/// and makes more; when the old one comes back it changes nothing.
fn superseded(name: &str, fate: Fate) {
    let mut s = begin(name, 3);
    let mut book = Book::write_many(&mut s, KEYS, 10);
    s.join(2, &nodes(2));
    s.settles(5_000);
    s.kill_all(&nodes(2));
    s.leave(&[2]);
    s.wait(700);
    let old = s.leader(0);
    match fate {
        Fate::CutOff => s.isolate(&[old]),
        Fate::Paused => s.pause(old, 8_000),
        Fate::Killed => s.kill(old),
    }
    s.wait(1_500);
    s.restart_nodes(&nodes(2));
    s.wait(1_500);
    assert_eq!(s.owned(), BTreeMap::from([(1, 12)]));
    s.join(3, &nodes(3));
    s.wait(1_500);
    let owners = s.owners();
    let number = s.plan().number;
    book.check_and_append(&mut s);
    match fate {
        Fate::CutOff => s.heal(),
        Fate::Paused => s.wait(2_500),
        Fate::Killed => s.restart(old),
    }
    s.wait(2_000);
    assert_eq!((s.owners(), s.plan().number), (owners, number));
    assert_eq!(s.owned(), BTreeMap::from([(1, 6), (3, 6)]));
    book.check_and_append(&mut s);
    s.settles(1_000);
    book.check(&mut s);
}

#[test]
fn n12_a_superseded_leader_of_the_masters_was_cut_off() {
    superseded("n12-cut-off", Fate::CutOff);
}

#[test]
fn n12_a_superseded_leader_of_the_masters_was_paused() {
    superseded("n12-paused", Fate::Paused);
}

#[test]
fn n12_a_superseded_leader_of_the_masters_was_killed() {
    superseded("n12-killed", Fate::Killed);
}

/// For a minute five clients work and groups come and go, while the leader of the masters is cut
/// off again and again, so many times.
fn partitioned_controllers(name: &str, partitions: u64) {
    let mut s = begin(name, 4);
    s.employ(WorkloadOptions { keys: 24, ..mixed(5, 60) });
    let operator = s.client(vec![0, 1, 2]);
    let span = 60_000 / partitions;
    let mut joined = [false; 3];
    for _ in 0..partitions {
        let mut open: Option<u64> = None;
        let (begin, old) = (s.millis(), s.leader(0));
        s.isolate(&[old]);
        while s.millis() < begin + span {
            if s.millis() > begin + span / 2 {
                s.heal();
            }
            open = still_open(&mut s, operator, open);
            if open.is_none() {
                let which = s.random().below(3) as usize;
                let group = which as u64 + 2;
                let op = if joined[which] {
                    MasterOp::Leave { groups: vec![GroupId(group)] }
                } else {
                    s.joining(&[(group, &nodes(group))])
                };
                joined[which] = !joined[which];
                open = Some(s.begin_change(operator, op));
            }
            let pause = s.random().below(400);
            s.wait(pause);
        }
        s.heal();
        while open.is_some() {
            s.wait(10);
            open = still_open(&mut s, operator, open);
        }
    }
    assert!(s.answered() > 5_000, "{}", s.answered());
    s.dismiss(10_000);
    s.settles(20_000);
}

/// The request, if it is still open; if not, it must have ended well.
fn still_open(s: &mut Scenario, operator: usize, open: Option<u64>) -> Option<u64> {
    match s.changed(operator, open?) {
        None => open,
        Some(Ok(reply)) if reply.body.is_ok() => None,
        Some(other) => panic!("{other:?}"),
    }
}

#[test]
fn n12_linearizable_under_five_partitions_of_the_masters() {
    partitioned_controllers("n12-five", 5);
}

#[test]
fn n12_linearizable_under_three_partitions_of_the_masters() {
    partitioned_controllers("n12-three", 3);
}
