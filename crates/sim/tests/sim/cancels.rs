//! Hand-offs that are given up while the group that was to take the shards is gone.

use std::collections::BTreeMap;

use crate::book::{Book, begin, nodes};

#[test]
fn a_hand_off_to_a_group_that_never_answers_can_be_given_up() {
    let mut s = begin("cancel, never begun", 1);
    let mut book = Book::write(&mut s);
    s.kill_all(&nodes(2));
    s.join(2, &nodes(2));
    s.wait(2_000);
    assert_eq!(s.routes().handoffs.len(), 1, "it waits for group 2");
    book.check_and_overwrite(&mut s);
    s.leave(&[2]);
    s.wait(3_000);
    assert_eq!(s.routes().handoffs, []);
    // The shards go where they are wanted now, without the group that is gone.
    s.join(3, &nodes(3));
    s.wait(3_000);
    assert_eq!(s.owned(), BTreeMap::from([(1, 5), (3, 5)]));
    book.check_and_overwrite(&mut s);
    s.restart_nodes(&nodes(2));
    s.settles(10_000);
    book.check(&mut s);
}

#[test]
fn what_a_lost_group_has_of_a_hand_off_that_was_given_up_is_deleted_when_it_is_back() {
    let mut given_up = 0;
    for millis in [10, 20, 30, 40, 60, 90] {
        let mut s = begin(&format!("cancel after {millis} ms"), 1);
        let mut book = Book::write(&mut s);
        s.join(2, &nodes(2));
        s.wait(millis);
        s.kill_all(&nodes(2));
        s.leave(&[2]);
        s.wait(4_000);
        if s.routes().handoffs.is_empty() && s.owned() == BTreeMap::from([(1, 10)]) {
            given_up += 1;
            book.check_and_overwrite(&mut s);
        }
        s.restart_nodes(&nodes(2));
        // Nothing is under way then, and no copy is left anywhere but at the owners.
        s.settles(20_000);
        assert_eq!(s.owned(), BTreeMap::from([(1, 10)]));
        book.check(&mut s);
        // The group can have them after all.
        s.join(2, &nodes(2));
        s.settles(10_000);
        assert_eq!(s.owned(), BTreeMap::from([(1, 5), (2, 5)]));
        book.check(&mut s);
    }
    assert!(given_up > 0, "the group was never lost in time");
}
