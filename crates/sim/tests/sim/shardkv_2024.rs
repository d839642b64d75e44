//! The scenarios G of shards that move which `moves` does not tell: rejection, several changes at
//! once, crashes of all groups, what is left on disk.

use router::Answer;
use sim::scenario::{Scenario, Via, get};
use sim::workload::WorkloadOptions;

use crate::book::{Book, appenders, begin, begin_flushing, mixed, nodes};

/// The nodes of all three groups.
fn all_nodes() -> Vec<usize> {
    (1..=3).flat_map(nodes).collect()
}

#[test]
fn g2_a_group_refuses_what_it_does_not_own() {
    // Clients are sure that group 1 owns all: each talks to one of its nodes and follows nobody's
    // word, and that node can forward to no other group.
    let mut s = begin("g2", 2);
    let book = Book::write(&mut s);
    let others: Vec<usize> = (0..12).filter(|node| !nodes(1).contains(node)).collect();
    s.partition(&[&nodes(1), &others]);
    s.wait(500);
    let mut begun = Vec::new();
    for (index, (key, value)) in book.0.iter().enumerate() {
        begun.push((s.begin(nodes(1)[index % 3], get(key)), value));
    }
    s.wait(2_000);
    let mut answered = 0;
    for (call, value) in &begun {
        if let Some(answer) = s.ended(*call) {
            assert_eq!(answer, Answer::Value(Some((*value).clone().into())));
            answered += 1;
        }
    }
    assert_eq!(answered, 5);
    s.heal();
    book.check(&mut s);
}

#[test]
fn g4_join_and_leave_with_everything_in_the_store() {
    // What is bounded here: the slots that a replica keeps once all have them in their stores, and
    // the records.
    let mut s = begin_flushing("g4", 1);
    let mut book = Book::write_many(&mut s, 30, 20);
    s.join(2, &nodes(2));
    s.join(3, &nodes(3));
    s.leave(&[1]);
    book.check_and_append(&mut s);
    s.leave(&[2]);
    s.join(1, &nodes(1));
    book.check_and_append(&mut s);
    s.wait(1_000);
    book.check(&mut s);
    s.wait(1_000);
    check_sizes(&mut s, 30 * 3 * 60);
    s.kill_all(&all_nodes());
    s.restart_nodes(&all_nodes());
    book.check_and_append(&mut s);
    book.check(&mut s);
    s.settles(10_000);
}

/// When all is quiet the logs are short, and the stores of all data nodes together hold no more
/// than these bytes and what each replica, shard and client costs.
fn check_sizes(s: &mut Scenario, bytes: u64) {
    s.settles(10_000);
    s.wait(4_000);
    let stored: u64 = (3..12).map(|node| s.stored_bytes(node)).sum();
    assert!(stored <= bytes + 9 * 3_000, "{stored} bytes are stored");
    assert!(s.log_slots() <= 64, "{} slots are kept", s.log_slots());
}

#[test]
fn g6_concurrent_appends_while_groups_join_leave_and_crash() {
    let mut s = begin_flushing("g6", 1);
    s.employ(appenders(10, 10));
    s.wait(150);
    s.join(2, &nodes(2));
    s.wait(500);
    s.join(3, &nodes(3));
    s.wait(500);
    s.leave(&[1]);
    for group in 1..=3 {
        s.kill_all(&nodes(group));
        s.wait(100);
    }
    s.leave(&[3]);
    s.restart_nodes(&all_nodes());
    s.wait(100);
    s.join(1, &nodes(1));
    s.leave(&[2]);
    s.wait(500);
    s.join(2, &nodes(2));
    s.wait(1_000);
    assert!(s.answered() > 1_000, "{}", s.answered());
    s.dismiss(5_000);
    let bytes = value_bytes(&s);
    check_sizes(&mut s, 3 * bytes);
}

/// No more than this is in the values of the clients at work.
fn value_bytes(s: &Scenario) -> u64 {
    s.answered() * 8 + 10 * 100
}

#[test]
fn g7_concurrent_appends_while_groups_come_and_go_at_leisure() {
    let mut s = begin("g7", 1);
    s.employ(appenders(10, 50));
    s.join(2, &nodes(2));
    s.join(3, &nodes(3));
    s.leave(&[1]);
    s.leave(&[3]);
    s.wait(3_000);
    s.join(1, &nodes(1));
    s.join(3, &nodes(3));
    s.leave(&[2]);
    s.wait(3_000);
    s.join(2, &nodes(2));
    s.leave(&[1]);
    s.leave(&[3]);
    s.wait(3_000);
    s.kill_all(&nodes(2));
    s.kill_all(&nodes(3));
    s.wait(1_000);
    s.restart_nodes(&nodes(2));
    s.restart_nodes(&nodes(3));
    s.wait(2_000);
    s.dismiss(5_000);
    s.settles(5_000);
}

#[test]
fn g8_concurrent_appends_without_pause_while_all_groups_crash() {
    let mut s = begin_flushing("g8", 1);
    s.employ(appenders(10, 1));
    let end = s.millis() + 12_000;
    while s.millis() < end {
        s.join(3, &nodes(3));
        s.join(2, &nodes(2));
        let pause = s.random().below(900);
        s.wait(pause);
        s.kill_all(&all_nodes());
        s.restart_nodes(&all_nodes());
        let pause = s.random().below(900);
        s.wait(pause);
        s.leave(&[2]);
        s.leave(&[3]);
        let pause = s.random().below(900);
        s.wait(pause);
    }
    s.wait(2_000);
    assert!(s.answered() > 1_000, "{}", s.answered());
    s.dismiss(5_000);
    s.settles(10_000);
}

#[test]
fn g9_unreliable_joins_and_leaves() {
    let mut s = begin("g9", 1);
    s.unreliable();
    let mut book = Book::write(&mut s);
    s.join(2, &nodes(2));
    s.join(3, &nodes(3));
    s.leave(&[1]);
    for _ in 0..20 {
        book.check_and_append(&mut s);
    }
    s.join(1, &nodes(1));
    s.leave(&[2]);
    for _ in 0..20 {
        book.check(&mut s);
    }
    s.settles(10_000);
}

/// Groups come and go over a bad network while clients work; what these were told is right.
fn unreliable(name: &str, work: WorkloadOptions) {
    let mut s = begin(name, 1);
    s.unreliable();
    s.employ(work);
    s.wait(150);
    s.join(2, &nodes(2));
    s.wait(500);
    s.join(3, &nodes(3));
    s.wait(500);
    s.leave(&[1]);
    s.wait(500);
    s.leave(&[2]);
    s.wait(500);
    s.join_all(&[(2, &nodes(2)), (1, &nodes(1))]);
    s.wait(2_000);
    s.reliable();
    assert!(s.answered() > 50, "{}", s.answered());
    s.dismiss(10_000);
    s.settles(10_000);
}

#[test]
fn g10_unreliable_concurrent_appends() {
    unreliable("g10", appenders(10, 5));
}

#[test]
fn g11_unreliable_concurrent_operations_are_linearizable() {
    unreliable("g11", mixed(10, 5));
}

#[test]
fn g12_what_was_handed_over_is_deleted() {
    let mut s = begin_flushing("g12", 1);
    let book = Book::write_many(&mut s, 30, 1_000);
    for _ in 0..2 {
        s.join(2, &nodes(2));
        s.leave(&[1]);
        s.join(3, &nodes(3));
        s.wait(3_000);
        s.leave(&[2]);
        s.join(1, &nodes(1));
        s.leave(&[3]);
        s.wait(3_000);
    }
    s.join(2, &nodes(2));
    s.join(3, &nodes(3));
    (0..3).for_each(|_| s.wait(1_000));
    let stored: u64 = (3..12).map(|node| s.stored_bytes(node)).sum();
    assert!((90_000..=117_000).contains(&stored), "{stored} bytes are stored");
    s.settles(1);
    book.check(&mut s);
    s.put(Via::Any, "k0", "");
}
