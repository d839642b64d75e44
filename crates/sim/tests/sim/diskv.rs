//! The scenarios D1 to D5: those of shards that move, with processes that are killed and started
//! again on what their disks have.

use std::collections::BTreeMap;

use bytes::Bytes;
use router::{Answer, HashKind, KvOp};
use sim::scenario::{Scenario, Via};
use sim::workload::fnv;

use crate::book::{Book, SHARDS, begin, nodes};

/// Every process is killed and started again, all at one instant.
fn restart_everything(s: &mut Scenario) {
    let all: Vec<usize> = (0..12).collect();
    s.kill_all(&all);
    s.restart_nodes(&all);
}

#[test]
fn d1_basic_join_and_leave() {
    let mut s = begin("d1", 1);
    s.put(Via::Any, "a", "x");
    s.put_hash(Via::Any, "a", "b", Some("x"));
    let mut book = Book::write(&mut s);
    for group in [2, 3] {
        s.join(group, &nodes(group));
        restart_everything(&mut s);
        s.wait(1_000);
        book.check_and_overwrite(&mut s);
    }
    s.settles(2_000);
    for group in [1, 2] {
        s.leave(&[group]);
        restart_everything(&mut s);
        s.wait(1_000);
        book.check_and_overwrite(&mut s);
    }
    s.settles(2_000);
    assert_eq!(s.owned(), BTreeMap::from([(3, 10)]));
    let hash = fnv(Some(&Bytes::from_static(b"x")), b"b").to_string();
    s.reads(Via::Any, "a", &hash);
    s.power_off();
    s.restart_all();
    book.check(&mut s);
    s.reads(Via::Any, "a", &hash);
}

#[test]
fn d2_shards_really_move() {
    let mut s = begin("d2", 1);
    let book = Book::write(&mut s);
    s.join(2, &nodes(2));
    s.wait(50);
    restart_everything(&mut s);
    s.settles(5_000);
    book.check(&mut s);
    restart_everything(&mut s);
    s.wait(2_000);
    s.isolate(&nodes(1));
    assert_eq!(book.found(&mut s, 10_000), 5);
    s.heal();
    book.check(&mut s);
}

#[test]
fn d3_reconfiguration_with_dead_replicas() {
    let mut s = begin("d3", 1);
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
        s.kill_all(&nodes(group));
        book.check_and_overwrite(&mut s);
    }
    // All of them come back with old disks, and know no better than the others.
    s.restart_all();
    s.settles(10_000);
    s.converges();
    book.check_and_overwrite(&mut s);
    restart_everything(&mut s);
    book.check(&mut s);
}

/// Eleven clients chain hashes, each answer predicted, while shards move at random and in every
/// round one process is killed, and started again a little later.
fn concurrent_moves_and_crashes(name: &str, unreliable: bool) {
    let mut s = begin(name, 3);
    if unreliable {
        s.unreliable();
    }
    let clients: Vec<usize> = (0..11).map(|_| s.client((0..12).collect())).collect();
    let mut values: Vec<Option<Bytes>> = vec![None; clients.len()];
    for round in 0..20 {
        let added = Bytes::from(format!("{round}"));
        let mut begun = Vec::new();
        for (index, client) in clients.iter().enumerate() {
            let key = Bytes::from(format!("{index}"));
            let op = KvOp::PutHash { key, value: added.clone(), hash: HashKind::Fnv1a32 };
            begun.push(s.begin_as(*client, op));
        }
        let (shard, group) = (s.random().below(SHARDS.into()) as u16, s.random().between(1, 3));
        s.try_move(shard, group);
        let (victim, before) = (s.random().below(12) as usize, s.random().below(30));
        s.wait(before);
        s.kill(victim);
        let away = s.random().below(500);
        s.wait(away);
        s.restart(victim);
        for (call, value) in begun.into_iter().zip(&mut values) {
            let answer = s.finishes(call, 20_000);
            assert_eq!(answer, Answer::Value(value.clone()), "round {round}");
            *value = Some(Bytes::from(fnv(value.as_ref(), &added).to_string()));
        }
    }
    s.settles(10_000);
    restart_everything(&mut s);
    for (index, value) in values.into_iter().enumerate() {
        assert_eq!(s.value(Via::Any, &format!("{index}")), value.unwrap_or_default());
    }
}

#[test]
fn d4_concurrent_puts_and_moves() {
    concurrent_moves_and_crashes("d4", false);
}

#[test]
fn d5_concurrent_puts_and_moves_unreliable() {
    concurrent_moves_and_crashes("d5", true);
}
