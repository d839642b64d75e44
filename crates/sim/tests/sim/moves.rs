//! The scenarios of shards that move, under their ids.

use std::collections::BTreeMap;

use router::HashKind;
use router::{Answer, KvOp};
use sim::scenario::{Via, append, get};
use sim::workload::fnv;

use crate::book::{Book, SHARDS, begin, nodes};

#[test]
fn s1_basic_join_and_leave() {
    let mut s = begin("s1", 1);
    s.put(Via::Any, "a", "x");
    s.put_hash(Via::Any, "a", "b", Some("x"));
    let mut book = Book::write(&mut s);
    for group in [2, 3] {
        s.join(group, &nodes(group));
        s.wait(1_000);
        book.check_and_overwrite(&mut s);
    }
    s.settles(1_000);
    for group in [1, 2] {
        s.leave(&[group]);
        s.wait(1_000);
        book.check_and_overwrite(&mut s);
    }
    s.settles(1_000);
    assert_eq!(s.owned(), BTreeMap::from([(3, 10)]));
}

#[test]
fn s2_shards_really_move() {
    let mut s = begin("s2", 1);
    let book = Book::write(&mut s);
    s.join(2, &nodes(2));
    s.settles(5_000);
    book.check(&mut s);
    nodes(1).into_iter().for_each(|node| s.kill(node));
    let mut begun = Vec::new();
    for (key, value) in &book.0 {
        let client = s.client(vec![0, 1, 2]);
        begun.push((s.begin_as(client, get(key)), value.clone()));
    }
    s.wait(10_000);
    let ended = begun.into_iter().filter_map(|(call, value)| Some((s.ended(call)?, value)));
    let ended: Vec<(Answer, String)> = ended.collect();
    assert_eq!(ended.len(), 5);
    for (answer, value) in ended {
        assert_eq!(answer, Answer::Value(Some(value.into())));
    }
}

#[test]
fn s3_reconfiguration_with_dead_replicas() {
    let mut s = begin("s3", 1);
    let mut book = Book::write(&mut s);
    for group in 1..=3 {
        let victim = s.random().below(3) as usize;
        s.kill(nodes(group)[victim]);
    }
    book.check_and_overwrite(&mut s);
    for group in [2, 3] {
        s.join(group, &nodes(group));
        s.wait(1_000);
        book.check_and_overwrite(&mut s);
    }
    for group in [1, 2] {
        s.leave(&[group]);
        s.wait(2_000);
        nodes(group).into_iter().for_each(|node| s.kill(node));
        book.check_and_overwrite(&mut s);
    }
}

/// Eleven clients chain hashes, each answer predicted, while shards move at random.
fn concurrent_moves(name: &str, unreliable: bool) {
    let mut s = begin(name, 3);
    if unreliable {
        s.unreliable();
    }
    let clients: Vec<usize> = (0..11).map(|_| s.client((0..12).collect())).collect();
    let mut values: Vec<Option<bytes::Bytes>> = vec![None; clients.len()];
    for round in 0..30 {
        let added = bytes::Bytes::from(format!("{round}"));
        let mut begun = Vec::new();
        for (index, client) in clients.iter().enumerate() {
            let key = bytes::Bytes::from(format!("{index}"));
            let op = KvOp::PutHash { key, value: added.clone(), hash: HashKind::Fnv1a32 };
            begun.push(s.begin_as(*client, op));
        }
        let (shard, group) = (s.random().below(10) as u16, s.random().between(1, 3));
        s.try_move(shard, group);
        for (call, value) in begun.into_iter().zip(&mut values) {
            let answer = s.finishes(call, 20_000);
            assert_eq!(answer, Answer::Value(value.clone()), "round {round}");
            *value = Some(bytes::Bytes::from(fnv(value.as_ref(), &added).to_string()));
        }
    }
    s.settles(10_000);
    for (index, value) in values.into_iter().enumerate() {
        assert_eq!(s.value(Via::Any, &format!("{index}")), value.unwrap_or_default());
    }
}

#[test]
fn s4_concurrent_puts_and_moves() {
    concurrent_moves("s4", false);
}

#[test]
fn s5_concurrent_puts_and_moves_unreliable() {
    concurrent_moves("s5", true);
}

#[test]
fn two_groups_swap_shards_in_one_step() {
    let mut s = begin("swap", 2);
    let book = Book::write(&mut s);
    let before = s.routes();
    let of = |group: u64| -> Vec<u16> {
        let owned = (0..SHARDS).filter(|shard| {
            before.owner(base::ShardId(*shard)).is_some_and(|owner| owner.group.0 == group)
        });
        owned.collect()
    };
    let (one, two) = (of(1), of(2));
    s.move_shards(&[(&one, 2), (&two, 1)]);
    s.settles(5_000);
    book.check(&mut s);
    let after = s.routes();
    for shard in (0..SHARDS).map(base::ShardId) {
        let (was, is) = (before.owner(shard).unwrap(), after.owner(shard).unwrap());
        assert_eq!((is.group.0, is.epoch.0), (3 - was.group.0, was.epoch.0 + 1));
    }
}

#[test]
fn f22_a_duplicate_retried_at_the_new_owner_gets_the_first_answer() {
    let mut s = begin("duplicate", 1);
    s.put(Via::Any, "k", "0");
    let client = s.client(vec![0]);
    // Requests reach the cluster, and no answer comes back.
    s.mute(0, client, true);
    let call = s.begin_as(client, append("k", "x"));
    s.does_not_finish(call, 1_000);
    s.reads(Via::Any, "k", "0x");
    s.join(2, &nodes(2));
    s.settles(5_000);
    s.leave(&[1]);
    s.settles(5_000);
    s.append(Via::Any, "k", "y");
    s.mute(0, client, false);
    let answer = s.finishes(call, 20_000);
    assert_eq!(answer, Answer::Appended(2));
    s.reads(Via::Any, "k", "0xy");
}

#[test]
fn g5_a_group_several_configurations_behind() {
    let mut s = begin("g5", 2);
    let mut book = Book::write(&mut s);
    (1..=3).for_each(|group| s.kill(nodes(group)[0]));
    s.join(3, &nodes(3));
    s.leave(&[2]);
    s.leave(&[1]);
    book.check(&mut s);
    book.append(&mut s);
    s.join(2, &nodes(2));
    book.check(&mut s);
    book.append(&mut s);
    (1..=3).for_each(|group| s.restart(nodes(group)[0]));
    book.check(&mut s);
    book.append(&mut s);
    s.wait(2_000);
    (1..=3).for_each(|group| s.kill(nodes(group)[1]));
    s.join(1, &nodes(1));
    s.leave(&[3]);
    book.check(&mut s);
    book.append(&mut s);
    (1..=3).for_each(|group| s.restart(nodes(group)[1]));
    s.settles(10_000);
    book.check(&mut s);
}

#[test]
fn g3_join_then_leave_and_leave_and_join_again() {
    let mut s = begin("g3", 1);
    let mut book = Book::write(&mut s);
    s.join(2, &nodes(2));
    book.check(&mut s);
    book.append(&mut s);
    s.leave(&[1]);
    book.check(&mut s);
    book.append(&mut s);
    s.settles(5_000);
    nodes(1).into_iter().for_each(|node| s.kill(node));
    book.check(&mut s);
    nodes(1).into_iter().for_each(|node| s.restart(node));
    s.join(1, &nodes(1));
    s.settles(5_000);
    assert_eq!(s.owned(), BTreeMap::from([(1, 5), (2, 5)]));
    book.check_and_overwrite(&mut s);
    book.check(&mut s);
}

#[test]
fn all_groups_leave_and_one_joins() {
    let mut s = begin("all-leave", 2);
    let mut book = Book::write(&mut s);
    s.leave(&[1, 2]);
    s.wait(1_000);
    // Whoever has the shards keeps and serves them.
    book.check_and_overwrite(&mut s);
    s.join(3, &nodes(3));
    s.settles(5_000);
    assert_eq!(s.owned(), BTreeMap::from([(3, 10)]));
    book.check_and_overwrite(&mut s);
}

#[test]
fn g1_a_group_that_is_down_stops_its_own_shards_only() {
    let mut s = begin("g1", 2);
    let book = Book::write(&mut s);
    nodes(2).into_iter().for_each(|node| s.kill(node));
    let mut begun = Vec::new();
    for (key, _) in &book.0 {
        let client = s.client(vec![0, 1, 2]);
        begun.push(s.begin_as(client, get(key)));
    }
    s.wait(2_000);
    assert_eq!(begun.iter().filter(|call| s.ended(**call).is_some()).count(), 5);
    nodes(2).into_iter().for_each(|node| s.restart(node));
    s.wait(2_000);
    book.check(&mut s);
}

#[test]
fn g13_shards_that_stay_are_served_while_others_cannot_come() {
    let mut s = begin("g13", 2);
    let book = Book::write(&mut s);
    let before = s.routes();
    nodes(1).into_iter().for_each(|node| s.kill(node));
    s.leave(&[1]);
    s.wait(1_000);
    for (shard, (key, value)) in (0..SHARDS).map(base::ShardId).zip(&book.0) {
        if before.owner(shard).is_some_and(|owner| owner.group.0 == 2) {
            s.reads(Via::Any, key, value);
            s.put(Via::Any, key, value);
        }
    }
    nodes(1).into_iter().for_each(|node| s.restart(node));
    s.settles(10_000);
    book.check(&mut s);
}

#[test]
fn g14_shards_that_can_come_do_while_others_cannot() {
    let mut s = begin("g14", 3);
    let book = Book::write(&mut s);
    let before = s.routes();
    nodes(1).into_iter().for_each(|node| s.kill(node));
    s.leave(&[1, 3]);
    s.wait(2_500);
    for (shard, (key, value)) in (0..SHARDS).map(base::ShardId).zip(&book.0) {
        if before.owner(shard).is_some_and(|owner| owner.group.0 == 3) {
            s.reads(Via::Any, key, value);
            assert_eq!(s.routes().owner(shard).unwrap().group.0, 2);
        }
    }
    nodes(1).into_iter().for_each(|node| s.restart(node));
    s.settles(10_000);
    book.check(&mut s);
}

#[test]
fn n7_shards_that_stay_make_progress_during_endless_joins_and_leaves() {
    let mut s = begin("n7", 2);
    let book = Book::write(&mut s);
    let mut moving = vec![false; usize::from(SHARDS)];
    for round in 0..6 {
        if round % 2 == 0 {
            let plan = s.join(3, &nodes(3));
            moving = plan.shards.iter().map(|group| group.0 == 3).collect();
        } else {
            s.leave(&[3]);
        }
        for _ in 0..3 {
            for ((key, value), moves) in book.0.iter().zip(&moving) {
                let call = s.begin(Via::Any, get(key));
                // Of those that stay a hundred reads and more end in four seconds.
                let answer = s.finishes(call, if *moves { 1_000 } else { 40 });
                assert_eq!(answer, Answer::Value(Some(value.clone().into())));
            }
        }
        s.wait(300);
    }
}

#[test]
fn n9_a_join_ends_when_the_group_that_is_down_comes_back() {
    let mut s = begin("n9", 2);
    let mut book = Book::write(&mut s);
    nodes(2).into_iter().for_each(|node| s.kill(node));
    s.leave(&[2]);
    s.wait(2_000);
    assert_eq!(s.owned(), BTreeMap::from([(1, 5), (2, 5)]));
    nodes(2).into_iter().for_each(|node| s.restart(node));
    s.wait(2_000);
    assert_eq!(s.owned(), BTreeMap::from([(1, 10)]));
    book.check_and_overwrite(&mut s);
    s.settles(5_000);
}
