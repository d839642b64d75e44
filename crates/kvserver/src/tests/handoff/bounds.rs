//! How much goes into one command.

use base::limits::COMMAND_BYTES_MAX;

use super::*;
use crate::FinalPart;

#[test]
fn a_dead_copy_goes_in_bounded_slices_that_may_be_proposed_twice() {
    let mut pair = Pair::new();
    for i in 0..600 {
        let op = KvOp::Put { key: format!("key {i}").into(), value: bytes("value") };
        pair.write(op);
    }
    // The horizon and a tombstone die with the copy.
    let before = WallMillis(pair.source.time + 1);
    pair.source.apply(&Command::ExpireSessions { shard: SHARD, before });
    pair.begin();
    pair.write(KvOp::Delete { key: bytes("key 7") });
    pair.finish();
    let status = |pair: &Pair| pair.source.server.shards(true)[1].clone();
    let dead = status(&pair);
    // 599 keys, a tombstone, a session and the horizon.
    assert_eq!((dead.keys, dead.dead_copies, dead.dead_records), (0, 1, 602));
    let first = pair.source.server.garbage().unwrap();
    pair.source.apply(&first);
    assert_eq!(status(&pair).dead_records, 602 - 256);
    pair.source.apply(&first);
    assert_eq!(status(&pair).dead_records, 602 - 256);
    let elsewhere = Command::GcSlice { shard: SHARD, copy: MIG, from: Bytes::new() };
    pair.source.apply(&elsewhere);
    pair.destination.apply(&elsewhere);
    pair.assert_sound();
    pair.collect_garbage();
    let done = status(&pair);
    assert_eq!((done.dead_copies, done.dead_records), (0, 0));
    assert_eq!(Pair::records(&mut pair.source), Vec::<Bytes>::new());
    let status = &pair.destination.server.shards(true)[1];
    assert_eq!((status.keys, status.dead_copies, status.dead_records), (599, 0, 0));
    pair.assert_sound();
}

#[test]
fn what_one_command_changes_fits_into_one_command() {
    let mut pair = Pair::new();
    let large = |byte| Bytes::from(vec![byte; VALUE_BYTES_MAX]);
    pair.write(KvOp::Put { key: bytes("a"), value: large(1) });
    pair.write(KvOp::Put { key: bytes("b"), value: large(2).slice(1..) });
    pair.begin();
    // Two answers of almost 8 MiB stay open, and a third change is of a large value.
    let identity = session(9, 1, 1, pair.source.time);
    let small = KvOp::PutHash { key: bytes("b"), value: bytes("x"), hash: HashKind::Fnv1a32 };
    pair.source.apply(&client(SHARD, identity, small));
    pair.write(KvOp::Put { key: bytes("a"), value: large(3) });
    let identity = session(9, 2, 1, pair.source.time);
    let op = KvOp::PutHash { key: bytes("a"), value: bytes("x"), hash: HashKind::Fnv1a32 };
    pair.source.apply(&client(SHARD, identity, op));
    pair.scan();
    loop {
        let there = pair.destination.server.handoff(MIG).shards[1].clone();
        let from = there.delta_upto.unwrap_or_default();
        if from == pair.source.server.handoff(MIG).shards[1].changes {
            break;
        }
        let delta = pair.delta_of(SHARD, from, 1);
        assert!(delta.encode().len() <= COMMAND_BYTES_MAX);
        pair.there(&delta);
    }
    // Too much for one command that serves is sent before.
    pair.here(&Command::Freeze { mig: MIG });
    pair.finish();
}

#[test]
fn a_large_rest_is_sent_before_the_end() {
    let mut pair = Pair::new();
    pair.begin();
    for i in 0..6 {
        let value = Bytes::from(vec![i; 400 << 10]);
        pair.write(KvOp::Put { key: format!("key {i}").into(), value });
    }
    pair.scan();
    pair.here(&Command::Freeze { mig: MIG });
    let mut deltas = 0;
    let last = loop {
        let command = pair.activation();
        assert!(command.encode().len() < 2 << 20);
        if matches!(command, Command::Activate { .. }) {
            break command;
        }
        pair.there(&command);
        deltas += 1;
    };
    assert!(deltas >= 2, "{deltas}");
    assert_eq!(pair.there(&last).phase, HandoffPhase::Active);
    pair.assert_sound();
}

#[test]
fn one_slice_for_each_shard_of_a_large_set_fits() {
    let part = |shard| FinalPart {
        shard: ShardId(shard),
        x0: Version(1),
        from: Version(2),
        to: Version(2),
        records: Vec::new(),
        keys: 1,
        bytes: 1,
        digest: 1,
        log_time: WallMillis(1),
        sessions: replica_group::sessions::SessionCounters::default(),
    };
    let command = Command::Activate { mig: MIG, shards: (0..64).map(part).collect() };
    assert!(command.encode().len() < 64 << 10);
}
