//! Hand-offs that end where they began: aborted, refused, or never begun.

use super::*;
use crate::Content;

#[test]
fn a_copy_that_differs_is_refused_with_its_whole_set_and_the_source_goes_on() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.begin();
    let chunk = pair.chunk_of(SHARD, Bytes::new(), 1 << 20);
    let Command::InChunk { mig, shard, start, mut records, next } = chunk else { panic!() };
    let Content::Present(stored) = &records[0].content else { panic!() };
    let other = crate::record::Record::decode(stored).unwrap();
    let other = crate::record::Record::new(other.version, bytes("y"));
    records[0].content = Content::Present(other.encode());
    pair.there(&Command::InChunk { mig, shard, start, records, next });
    pair.scan();
    pair.here(&Command::Freeze { mig: MIG });
    let activation = pair.activation();
    let refused = pair.there(&activation);
    assert_eq!((refused.phase, refused.unequal), (HandoffPhase::Refused, vec![SHARD]));
    let alarms = pair.destination.server.take_alarms();
    assert!(alarms.len() == 1 && alarms[0].contains("shard5"), "{alarms:?}");
    assert!(!pair.destination.server.owns(OTHER) && !pair.destination.server.owns(SHARD));
    assert_eq!(pair.here(&Command::Unfreeze { mig: MIG }).phase, HandoffPhase::Owned);
    assert_eq!(pair.source.value("a"), Some(bytes("x")));
    assert_eq!(pair.there(&activation).phase, HandoffPhase::Refused);
    pair.collect_garbage();
    assert_eq!(Pair::records(&mut pair.destination), Vec::<Bytes>::new());
    pair.assert_sound();
}

#[test]
fn damaged_records_are_refused_and_end_no_replica() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.begin();
    let chunk = pair.chunk_of(SHARD, Bytes::new(), 1 << 20);
    let Command::InChunk { mig, shard, start, records, next } = chunk else { panic!() };
    for at in 0..records.len() {
        for damage in [&b""[..], b"\x07damaged", &[1; 40], &[0; 17]] {
            let mut records = records.clone();
            records[at].content = Content::Present(Bytes::from_static(damage));
            let (start, next) = (start.clone(), next.clone());
            let chunk = Command::InChunk { mig, shard, start, records: records.clone(), next };
            assert!(refusal(pair.destination.apply(&chunk)).contains("damaged"));
            let (x0, from, to) = (Version(1), Version(1), Version(1));
            let delta = Command::InDelta { mig, shard, x0, from, to, records };
            assert!(refusal(pair.destination.apply(&delta)).contains("damaged"));
        }
    }
    assert_eq!(pair.destination.server.handoff(MIG).shards[1].cursor, Some(Bytes::new()));
    pair.finish();
    pair.assert_sound();
}

#[test]
fn an_abort_before_the_freeze_leaves_the_shard_where_it_is() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.begin();
    pair.write(KvOp::Delete { key: bytes("a") });
    pair.write(put("b", "y"));
    pair.scan();
    let abort = pair.source.server.abort(MIG).unwrap();
    let refuse = pair.source.server.refuse(MIG).unwrap();
    assert_eq!(pair.here(&abort).phase, HandoffPhase::Owned);
    assert_eq!(pair.there(&refuse).phase, HandoffPhase::Refused);
    assert_eq!(pair.here(&Command::Freeze { mig: MIG }).phase, HandoffPhase::Owned);
    let again = Command::OutBegin { mig: MIG, dst: D, shards: shards() };
    assert_eq!(pair.here(&again).phase, HandoffPhase::Owned);
    let older = Command::OutBegin { mig: CopyId(MIG.0 - 1), dst: D, shards: shards() };
    assert!(refusal(pair.source.apply(&older)).contains("no shard 4"));
    let again = Command::InBegin { mig: MIG, src: S, shards: shards() };
    assert_eq!(pair.there(&again).phase, HandoffPhase::Refused);
    assert_eq!(state_of(&pair.source, SHARD), ShardState::Owned);
    assert_eq!(pair.source.server.epoch(SHARD), Some(E));
    pair.collect_garbage();
    let is_tombstone = |key: &Bytes| key[10] == keys::Kind::Tombstone as u8;
    assert!(!Pair::records(&mut pair.source).iter().any(is_tombstone));
    assert_eq!(Pair::records(&mut pair.destination), Vec::<Bytes>::new());
    pair.assert_sound();
    // The shards can move by a later hand-off.
    let later = CopyId(MIG.0 + 1);
    let begun = pair.there(&Command::InBegin { mig: later, src: S, shards: shards() });
    assert_eq!(begun.phase, HandoffPhase::In);
    let begun = pair.here(&Command::OutBegin { mig: later, dst: D, shards: shards() });
    assert_eq!(begun.phase, HandoffPhase::Out);
}

#[test]
fn a_frozen_shard_returns_only_when_the_destination_has_refused() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.begin();
    pair.scan();
    pair.here(&Command::Freeze { mig: MIG });
    let abort = pair.source.server.abort(MIG).unwrap();
    let refuse = pair.source.server.refuse(MIG).unwrap();
    assert_eq!(pair.here(&abort).phase, HandoffPhase::Frozen);
    let activation = pair.activation();
    assert_eq!(pair.there(&refuse).phase, HandoffPhase::Refused);
    assert_eq!(pair.there(&activation).phase, HandoffPhase::Refused);
    assert_eq!(pair.here(&Command::Unfreeze { mig: MIG }).phase, HandoffPhase::Owned);
    assert_eq!(pair.here(&Command::OutDone { mig: MIG }).phase, HandoffPhase::Owned);
    assert_eq!(pair.source.value("a"), Some(bytes("x")));
    // The destination knows who serves what it refused.
    let asked = pair.destination.get("a").body;
    assert_eq!(asked, Err(ErrorReply::Moved { epoch: E, group: S }));
    pair.assert_sound();
}

#[test]
fn a_destination_that_has_begun_refuses_no_more_even_when_the_shard_went_on() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.begin();
    pair.scan();
    pair.here(&Command::Freeze { mig: MIG });
    let refuse = pair.source.server.refuse(MIG).unwrap();
    let activation = pair.activation();
    assert_eq!(pair.there(&activation).phase, HandoffPhase::Active);
    assert_eq!(pair.there(&refuse).phase, HandoffPhase::Active);
    // The shards go on to a third group before the source hears of anything.
    let next = CopyId(MIG.0 + 1);
    let newer: Vec<_> = shards().into_iter().map(|(shard, _)| (shard, ShardEpoch(2))).collect();
    pair.there(&Command::OutBegin { mig: next, dst: GroupId(3), shards: newer });
    pair.there(&Command::Freeze { mig: next });
    assert_eq!(pair.there(&refuse).phase, HandoffPhase::Active);
    pair.there(&Command::OutDone { mig: next });
    assert_eq!(pair.there(&refuse).phase, HandoffPhase::Active);
    assert_eq!(pair.destination.server.handoff(next).phase, HandoffPhase::Moved);
    assert_eq!(pair.here(&Command::OutDone { mig: MIG }).phase, HandoffPhase::Moved);
    assert_eq!(
        pair.destination.get("a").body,
        Err(ErrorReply::Moved { epoch: ShardEpoch(3), group: GroupId(3) })
    );
}

#[test]
fn what_was_refused_before_it_began_never_begins() {
    let mut pair = Pair::new();
    let refuse = Command::Refuse { mig: MIG, src: S, shards: shards() };
    assert_eq!(pair.there(&refuse).phase, HandoffPhase::Refused);
    let begin = Command::InBegin { mig: MIG, src: S, shards: shards() };
    assert_eq!(pair.there(&begin).phase, HandoffPhase::Refused);
    let older = Command::InBegin { mig: CopyId(MIG.0 - 1), src: S, shards: shards() };
    assert_eq!(pair.there(&older).phase, HandoffPhase::Refused);
    let abort = Command::OutAbort { mig: MIG, shards: shards() };
    assert_eq!(pair.here(&abort).phase, HandoffPhase::Owned);
    let begin = Command::OutBegin { mig: MIG, dst: D, shards: shards() };
    assert_eq!(pair.here(&begin).phase, HandoffPhase::Owned);
    assert!(pair.source.server.owns(SHARD));
    pair.assert_sound();
}

#[test]
fn a_set_begins_whole_or_not_at_all() {
    let mut pair = Pair::new();
    let wrong = vec![(OTHER, E), (SHARD, ShardEpoch(2))];
    let refused = pair.source.apply(&Command::OutBegin { mig: MIG, dst: D, shards: wrong });
    assert!(refusal(refused).contains("no shard 5 of epoch 2"));
    let strange = vec![(OTHER, E), (ShardId(9), E)];
    let refused = pair.source.apply(&Command::OutBegin { mig: MIG, dst: D, shards: strange });
    assert!(refusal(refused).contains("no shard 9"));
    assert_eq!(state_of(&pair.source, OTHER), ShardState::Owned);
    // The destination serves one of the set.
    pair.destination.apply(&Command::Create { copy: CopyId(8), shards: vec![(SHARD, E)] });
    let begin = Command::InBegin { mig: MIG, src: S, shards: shards() };
    assert!(refusal(pair.destination.apply(&begin)).contains("serves shard 5"));
    assert_eq!(pair.destination.server.shards(true).len(), 1);
    let refuse = Command::Refuse { mig: MIG, src: S, shards: shards() };
    assert!(refusal(pair.destination.apply(&refuse)).contains("has shard 5 itself"));
    assert!(pair.destination.server.owns(SHARD));
}

#[test]
fn a_copy_that_a_given_up_hand_off_left_makes_room_for_the_next() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.begin();
    pair.scan();
    // The source gave up, and could not tell the destination.
    let abort = pair.source.server.abort(MIG).unwrap();
    assert_eq!(pair.here(&abort).phase, HandoffPhase::Owned);
    assert_eq!(pair.destination.server.incoming(), [MIG]);
    pair.write(KvOp::Delete { key: bytes("a") });
    let later = CopyId(MIG.0 + 1);
    let one = vec![(SHARD, E)];
    let begun = pair.there(&Command::InBegin { mig: later, src: S, shards: one.clone() });
    assert_eq!((begun.phase, begun.shards.len()), (HandoffPhase::In, 1));
    assert_eq!(pair.destination.server.incoming(), [MIG, later]);
    // What comes of the old one has no effect on it.
    let refuse = Command::Refuse { mig: MIG, src: S, shards: shards() };
    assert_eq!(pair.there(&refuse).phase, HandoffPhase::Refused);
    assert_eq!(state_of(&pair.destination, SHARD), ShardState::In { mig: later, src: S });
    assert_eq!(state_of(&pair.destination, OTHER), ShardState::Refused { mig: MIG });
    // The old copy is garbage, and nothing of it is in the new one.
    assert!(pair.collect_garbage() > 0);
    pair.assert_sound();
    let records = Pair::records(&mut pair.destination);
    assert_eq!(records, Vec::<Bytes>::new(), "nothing has been copied yet");
}

#[test]
fn a_destination_refuses_by_itself_what_nobody_will_bring_to_an_end() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.begin();
    pair.scan();
    let refuse = pair.destination.server.refuse_incoming(MIG).unwrap();
    assert_eq!(pair.there(&refuse).phase, HandoffPhase::Refused);
    assert_eq!(pair.destination.server.incoming(), []);
    assert_eq!(pair.destination.server.refuse_incoming(MIG), None);
    assert!(pair.collect_garbage() > 0);
    assert_eq!(Pair::records(&mut pair.destination), Vec::<Bytes>::new());
}

#[test]
fn tombstones_stay_while_a_hand_off_may_need_them() {
    let mut pair = Pair::new();
    pair.write(put("a", "x"));
    pair.write(put("b", "x"));
    pair.begin();
    pair.write(KvOp::Delete { key: bytes("a") });
    let abort = pair.source.server.abort(MIG).unwrap();
    pair.here(&abort);
    let late = pair.source.server.garbage().unwrap();
    let later = CopyId(MIG.0 + 1);
    pair.here(&Command::OutBegin { mig: later, dst: D, shards: shards() });
    pair.write(KvOp::Delete { key: bytes("b") });
    assert_eq!(pair.source.server.garbage(), None);
    let tombstones = |pair: &mut Pair| {
        let keys = Pair::records(&mut pair.source);
        keys.iter().filter(|key| key[10] == keys::Kind::Tombstone as u8).count()
    };
    assert_eq!(tombstones(&mut pair), 2);
    pair.source.apply(&late);
    assert_eq!(tombstones(&mut pair), 2);
    let abort = pair.source.server.abort(later).unwrap();
    pair.here(&abort);
    pair.collect_garbage();
    assert_eq!(tombstones(&mut pair), 0);
    assert_eq!(pair.source.server.shards(true)[1].dead_records, 0);
    pair.assert_sound();
}
