//! The steps of a hand-off, one by one, between the logs of two groups.

mod bounds;
mod refusals;

use replica_group::state_machine::ScanLimit;
use router::{HandoffPhase, HandoffState, ShardState};

use super::*;
use crate::keys;

const S: GroupId = GroupId(1);
const D: GroupId = GroupId(2);
const MIG: CopyId = CopyId(20);
const E: ShardEpoch = ShardEpoch(1);
const OTHER: ShardId = ShardId(4);

/// The two groups of a hand-off, each one replica.
struct Pair {
    source: Replica,
    destination: Replica,
}

impl Pair {
    /// The source owns the shards 4 and 5.
    fn new() -> Pair {
        let mut pair = Pair { source: Replica::of(S), destination: Replica::of(D) };
        pair.source.apply(&Command::Create { copy: CopyId(7), shards: shards() });
        pair
    }

    fn write(&mut self, op: KvOp) -> Reply {
        self.source.write(op)
    }

    fn begin(&mut self) {
        let begun = self.there(&Command::InBegin { mig: MIG, src: S, shards: shards() });
        assert_eq!(begun.phase, HandoffPhase::In);
        let begun = self.here(&Command::OutBegin { mig: MIG, dst: D, shards: shards() });
        assert_eq!(begun.phase, HandoffPhase::Out);
    }

    /// Applies a command of the hand-off at the source.
    fn here(&mut self, command: &Command) -> HandoffState {
        state(self.source.apply(command))
    }

    /// Applies a command of the hand-off at the destination.
    fn there(&mut self, command: &Command) -> HandoffState {
        state(self.destination.apply(command))
    }

    fn chunk_of(&mut self, shard: ShardId, start: Bytes, bytes: usize) -> Command {
        let (server, store) = self.source.parts();
        server.chunk(&store, MIG, shard, start, bytes).unwrap().unwrap()
    }

    fn delta_of(&mut self, shard: ShardId, from: Version, bytes: usize) -> Command {
        let (server, store) = self.source.parts();
        server.delta(&store, MIG, shard, from, bytes).unwrap().unwrap()
    }

    /// Sends every chunk that is missing.
    fn scan(&mut self) {
        loop {
            let there = self.destination.server.handoff(MIG);
            let Some(next) = there.shards.iter().find(|shard| !shard.scan_done) else { return };
            let chunk = self.chunk_of(next.shard, next.cursor.clone().unwrap(), 64);
            self.there(&chunk);
        }
    }

    fn activation(&mut self) -> Command {
        let there = self.destination.server.handoff(MIG);
        let (server, store) = self.source.parts();
        server.activate(&store, MIG, Some(&there)).unwrap().unwrap()
    }

    /// Brings the hand-off to its end.
    fn finish(&mut self) {
        self.scan();
        assert_eq!(self.here(&Command::Freeze { mig: MIG }).phase, HandoffPhase::Frozen);
        let activation = self.activation();
        assert_eq!(self.there(&activation).phase, HandoffPhase::Active);
        assert_eq!(self.here(&Command::OutDone { mig: MIG }).phase, HandoffPhase::Moved);
    }

    fn collect_garbage(&mut self) -> usize {
        let mut slices = 0;
        for replica in [&mut self.source, &mut self.destination] {
            while let Some(command) = replica.server.garbage() {
                replica.apply(&command);
                replica.assert_sound();
                slices += 1;
            }
        }
        slices
    }

    fn assert_sound(&mut self) {
        self.source.assert_sound();
        self.destination.assert_sound();
    }

    /// The keys of every record of a shard.
    fn records(replica: &mut Replica) -> Vec<Bytes> {
        let (_, store) = replica.parts();
        let (from, to) = keys::shards_from(0);
        let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
        let found = store.scan(&from, &to, all).unwrap();
        found.into_iter().map(|(key, _)| key).collect()
    }
}

fn shards() -> Vec<(ShardId, ShardEpoch)> {
    vec![(OTHER, E), (SHARD, E)]
}

fn state(reply: Reply) -> HandoffState {
    match reply.body {
        Ok(Answer::Handoff(state)) => state,
        other => panic!("{other:?}"),
    }
}

fn refusal(reply: Reply) -> String {
    match reply.body {
        Err(ErrorReply::Refused(text) | ErrorReply::Invalid(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn state_of(replica: &Replica, shard: ShardId) -> ShardState {
    let statuses = replica.server.shards(true);
    statuses.into_iter().find(|status| status.shard == shard).unwrap().state
}

#[test]
fn what_a_group_has_gained_is_told_once_and_again_after_a_restart() {
    let next = ShardEpoch(E.0 + 1);
    let mut pair = Pair::new();
    pair.begin();
    pair.scan();
    assert_eq!(pair.destination.server.take_gained(), [], "it only grows there");
    pair.finish();
    assert_eq!(pair.destination.server.take_gained(), [(OTHER, next), (SHARD, next)]);
    assert_eq!(pair.destination.server.take_gained(), []);
    pair.destination.restart(0);
    assert_eq!(pair.destination.server.take_gained(), [(OTHER, next), (SHARD, next)]);
    pair.destination.settle_and_flush();
    let end = pair.destination.log.len();
    pair.destination.restart(end);
    assert_eq!(pair.destination.server.take_gained(), [(OTHER, next), (SHARD, next)]);
}

#[test]
fn a_shard_moves_with_its_keys_versions_and_sessions() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.write(put("gone", "x"));
    let identity = session(9, 1, 1, pair.source.time);
    let first = pair.source.apply(&client(SHARD, identity, put_hash("a", "b")));
    pair.begin();
    pair.write(KvOp::Delete { key: bytes("gone") });
    let version = pair.write(put("late", "y")).header.version;
    let log_time = pair.source.get("a").header.stamp;
    pair.finish();
    assert_eq!(pair.destination.get("a").header.stamp, log_time);

    pair.destination.time = pair.source.time;
    assert_eq!(pair.destination.value("a"), Some(bytes("1063475327")));
    assert_eq!(pair.destination.value("gone"), None);
    assert_eq!(pair.destination.get("late").header.version, version);
    // A repetition of what the source did is answered as there, from now on by the destination.
    let again = pair.destination.apply(&client(SHARD, identity, put_hash("a", "b")));
    assert_eq!((again.body, again.header.version), (first.body, first.header.version));
    assert_eq!(again.header.shard_epoch, Some(ShardEpoch(2)));
    pair.destination.number = pair.source.number;
    assert!(pair.destination.write(put("late", "z")).header.version > version);
    assert_eq!(
        pair.source.get("a").body,
        Err(ErrorReply::Moved { epoch: ShardEpoch(2), group: D })
    );
    pair.assert_sound();
}

#[test]
fn a_delta_that_overtakes_its_chunk_wins() {
    let mut pair = Pair::new();
    for key in ["a", "b", "c"] {
        pair.write(put(key, "old"));
    }
    pair.begin();
    let chunk = pair.chunk_of(SHARD, Bytes::new(), 1 << 20);
    pair.write(append("a", "+"));
    pair.write(KvOp::Delete { key: bytes("b") });
    pair.write(put("d", "new"));
    pair.write(KvOp::Delete { key: bytes("d") });
    let x0 = pair.source.server.handoff(MIG).shards[1].x0;
    let delta = pair.delta_of(SHARD, x0, 1 << 20);
    pair.there(&delta);
    pair.destination.assert_sound();
    pair.there(&chunk);
    pair.destination.assert_sound();
    pair.finish();
    assert_eq!(pair.destination.value("a"), Some(bytes("old+")));
    assert_eq!(pair.destination.value("b"), None);
    assert_eq!(pair.destination.value("c"), Some(bytes("old")));
    assert_eq!(pair.destination.value("d"), None);
    pair.collect_garbage();
    pair.assert_sound();
}

#[test]
fn a_delta_with_a_gap_before_it_has_no_effect() {
    let mut pair = Pair::new();
    pair.write(put("a", "1"));
    pair.begin();
    pair.write(put("a", "2"));
    pair.write(put("b", "2"));
    pair.write(put("c", "2"));
    let upto = |state: &HandoffState| state.shards[1].delta_upto;
    // The first must begin where the copying began.
    let late = pair.delta_of(SHARD, Version(2), 1 << 20);
    assert_eq!(upto(&pair.there(&late)), None);
    // A small bound parts the changes between two commands, never within one.
    let first = pair.delta_of(SHARD, Version(1), 1);
    let Command::InDelta { from, to, records, .. } = &first else { panic!("{first:?}") };
    assert_eq!((*from, *to), (Version(1), Version(2)));
    assert!(!records.is_empty());
    assert_eq!(upto(&pair.there(&first)), Some(Version(2)));
    let third = pair.delta_of(SHARD, Version(3), 1 << 20);
    assert_eq!(upto(&pair.there(&third)), Some(Version(2)));
    // From the beginning again is no gap, and the same again is nothing.
    let all = pair.delta_of(SHARD, Version(0), 1 << 20);
    assert_eq!(upto(&pair.there(&all)), Some(Version(4)));
    assert_eq!(upto(&pair.there(&first)), Some(Version(4)));
    pair.finish();
    pair.assert_sound();
}

#[test]
fn a_chunk_from_another_place_has_no_effect() {
    let mut pair = Pair::new();
    for key in ["a", "b", "c", "d"] {
        pair.write(put(key, "value"));
    }
    pair.begin();
    let first = pair.chunk_of(SHARD, Bytes::new(), 40);
    let Command::InChunk { next: Some(next), .. } = &first else { panic!("{first:?}") };
    let second = pair.chunk_of(SHARD, next.clone(), 40);
    let cursor = |state: &HandoffState| state.shards[1].cursor.clone();
    assert_eq!(cursor(&pair.there(&second)), Some(Bytes::new()));
    assert_eq!(cursor(&pair.there(&first)), Some(next.clone()));
    let after = cursor(&pair.there(&second));
    assert!(after.as_ref() > Some(next));
    assert_eq!(cursor(&pair.there(&first)), after);
    // What is no place of a scan gives no chunk.
    let (server, store) = pair.source.parts();
    for start in [&b"\x00"[..], b"\x03", b"\xff\xff"] {
        let start = Bytes::from_static(start);
        assert_eq!(server.chunk(&store, MIG, SHARD, start, 40).unwrap(), None);
    }
    pair.finish();
}

#[test]
fn a_frozen_shard_answers_nobody_and_records_nothing() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.begin();
    pair.scan();
    pair.here(&Command::Freeze { mig: MIG });
    let before = pair.source.server.digest().unwrap();
    let identity = session(9, 1, 1, pair.source.time);
    let refused = pair.source.apply(&client(SHARD, identity, put("a", "y")));
    assert_eq!(refused.body, Err(ErrorReply::NotReady("shard 5 is being handed over".to_string())));
    assert!(matches!(pair.source.get("a").body, Err(ErrorReply::NotReady(_))));
    let before_expiry = WallMillis(pair.source.time + 10);
    pair.source.apply(&Command::ExpireSessions { shard: SHARD, before: before_expiry });
    assert_eq!(pair.source.server.digest().unwrap(), before);
    let much_later = WallMillis(pair.source.time + 10 * SESSION_IDLE_MILLIS);
    assert_eq!(pair.source.server.expired_sessions(much_later), None);
    // The same identity executes at the destination.
    let activation = pair.activation();
    pair.there(&activation);
    pair.destination.time = pair.source.time;
    let done = pair.destination.apply(&client(SHARD, identity, put("a", "y")));
    assert_eq!(done.body, Ok(Answer::Done));
}

#[test]
fn the_destination_begins_only_when_nothing_is_missing() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.begin();
    for key in ["b", "c", "d"] {
        pair.write(put(key, "x"));
    }
    pair.here(&Command::Freeze { mig: MIG });
    let activation = pair.activation();
    // The scan is missing.
    assert_eq!(pair.there(&activation).phase, HandoffPhase::In);
    pair.scan();
    // A delta is missing, the first or a later one.
    let Command::Activate { mut shards, .. } = activation.clone() else { panic!() };
    for (from, delta) in [(Version(2), true), (Version(3), false)] {
        shards[1].from = from;
        shards[1].records.clear();
        let gap = Command::Activate { mig: MIG, shards: shards.clone() };
        assert_eq!(pair.there(&gap).phase, HandoffPhase::In);
        if delta {
            let first = pair.delta_of(SHARD, Version(1), 1);
            assert_eq!(pair.there(&first).shards[1].delta_upto, Some(Version(2)));
        }
    }
    // A shard is missing.
    shards.pop();
    let part = pair.destination.apply(&Command::Activate { mig: MIG, shards });
    assert!(refusal(part).contains("not its shards"));
    assert!(!pair.destination.server.owns(OTHER));
    assert_eq!(pair.there(&activation).phase, HandoffPhase::Active);
    assert_eq!(pair.there(&activation).phase, HandoffPhase::Active);
    pair.assert_sound();
}

#[test]
fn a_shard_comes_back_to_a_group_that_had_it() {
    let mut pair = Pair::new();
    pair.write(put("a", "first"));
    pair.begin();
    pair.finish();
    // The old copy is still there, unless it is collected, and must not mix with the new one.
    let back = CopyId(MIG.0 + 1);
    let newer: Vec<_> = shards().into_iter().map(|(shard, _)| (shard, ShardEpoch(2))).collect();
    let stale = pair.source.apply(&Command::InBegin { mig: back, src: D, shards: shards() });
    assert!(refusal(stale).contains("newer epoch"));
    pair.destination.time = pair.source.time;
    pair.destination.number = pair.source.number;
    pair.destination.write(KvOp::Delete { key: bytes("a") });
    pair.destination.write(put("b", "second"));
    pair.here(&Command::InBegin { mig: back, src: D, shards: newer.clone() });
    pair.there(&Command::OutBegin { mig: back, dst: S, shards: newer });
    for shard in [OTHER, SHARD] {
        let (server, store) = pair.destination.parts();
        let chunk = server.chunk(&store, back, shard, Bytes::new(), 1 << 20).unwrap().unwrap();
        pair.here(&chunk);
    }
    pair.there(&Command::Freeze { mig: back });
    let known = pair.source.server.handoff(back);
    let (server, store) = pair.destination.parts();
    let activation = server.activate(&store, back, Some(&known)).unwrap().unwrap();
    assert_eq!(pair.here(&activation).phase, HandoffPhase::Active);
    assert_eq!(pair.here(&Command::OutDone { mig: MIG }).phase, HandoffPhase::Unknown);
    pair.there(&Command::OutDone { mig: back });
    assert_eq!(pair.source.value("a"), None);
    assert_eq!(pair.source.value("b"), Some(bytes("second")));
    assert_eq!(pair.source.server.epoch(SHARD), Some(ShardEpoch(3)));
    pair.assert_sound();
    pair.collect_garbage();
    pair.assert_sound();
    assert_eq!(pair.source.value("b"), Some(bytes("second")));
    let status = &pair.source.server.shards(true)[1];
    assert_eq!((status.keys, status.dead_copies, status.dead_records), (1, 0, 0));
}

/// Ends a replica, with or without a flush before, and starts it again.
fn crash(replica: &mut Replica, flushed: &mut usize, random: &mut Random) {
    if random.chance(1, 2) {
        replica.settle_and_flush();
        *flushed = replica.log.len();
    }
    let before = replica.server.digest().unwrap();
    replica.restart(*flushed);
    assert_eq!(replica.server.digest().unwrap(), before);
    replica.assert_sound();
}

#[test]
fn every_step_survives_a_crash_of_either_side() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let mut pair = Pair::new();
        let mut flushed = (0, 0);
        let mut crash_both = |pair: &mut Pair| {
            crash(&mut pair.source, &mut flushed.0, &mut random);
            crash(&mut pair.destination, &mut flushed.1, &mut random);
        };
        pair.write(put("a", "x"));
        pair.write(put("b", "x"));
        pair.there(&Command::InBegin { mig: MIG, src: S, shards: shards() });
        crash_both(&mut pair);
        pair.here(&Command::OutBegin { mig: MIG, dst: D, shards: shards() });
        crash_both(&mut pair);
        pair.write(KvOp::Delete { key: bytes("a") });
        pair.write(put("c", "y"));
        crash_both(&mut pair);
        for shard in [OTHER, SHARD] {
            let chunk = pair.chunk_of(shard, Bytes::new(), 1 << 20);
            pair.there(&chunk);
            crash_both(&mut pair);
        }
        let delta = pair.delta_of(SHARD, Version(2), 1 << 20);
        pair.there(&delta);
        crash_both(&mut pair);
        pair.write(put("d", "y"));
        pair.here(&Command::Freeze { mig: MIG });
        crash_both(&mut pair);
        let activation = pair.activation();
        assert_eq!(pair.there(&activation).phase, HandoffPhase::Active, "seed {seed}");
        crash_both(&mut pair);
        pair.here(&Command::OutDone { mig: MIG });
        crash_both(&mut pair);
        pair.collect_garbage();
        crash_both(&mut pair);
        assert_eq!(Pair::records(&mut pair.source), vec![meta(OTHER), meta(SHARD)]);
        assert_eq!(pair.destination.value("a"), None, "seed {seed}");
        assert_eq!(pair.destination.value("d"), Some(bytes("y")), "seed {seed}");
    }
}

fn meta(shard: ShardId) -> Bytes {
    keys::shard_meta(shard).into()
}
