//! The log keeps values while they may be needed from memory, and counts what the disk must keep.

use base::{ReplicaId, WallMillis};
use bytes::Bytes;

use super::*;
use crate::message::Command;

fn ballot(round: u32) -> Ballot {
    Ballot { epoch: 1, round, replica: ReplicaId(1) }
}

fn value(byte: u8, length: usize) -> Value {
    let payload = Bytes::from(vec![byte; length]);
    Value::Command(Command { time: WallMillis(0), trace: None, payload })
}

#[test]
fn undurable_values_stay_in_memory() {
    let mut log = Log::new(Slot::ZERO);
    for slot in 1..=4 {
        log.set(Slot(slot), ballot(1), (slot as u32 - 1) % 2, value(slot as u8, 100));
    }
    log.place(Slot(1), ballot(1), 2, Lsn(1));
    log.place(Slot(3), ballot(1), 2, Lsn(2));
    log.evict(0, Lsn(1), Slot(u64::MAX));
    assert_eq!(log.value(Slot(2)), None);
    assert_eq!(log.value(Slot(3)), Some(&value(3, 100)));
    log.evict(0, Lsn(2), Slot(3));
    assert_eq!(log.value(Slot(3)), None);
    assert_eq!(log.value(Slot(4)), Some(&value(4, 100)));
}

#[test]
fn a_dropped_value_can_be_written_again_under_a_higher_ballot() {
    let mut log = Log::new(Slot::ZERO);
    for slot in 1..=3 {
        log.set(Slot(slot), ballot(1), slot as u32 - 1, value(1, 100));
    }
    log.place(Slot(1), ballot(1), 3, Lsn(1));
    log.evict(0, Lsn(1), Slot(3));
    assert_eq!(log.tail_bytes(), 0);
    log.set(Slot(1), ballot(2), 0, value(2, 10));
    assert_eq!(log.value(Slot(1)), Some(&value(2, 10)));
    assert_eq!(log.value(Slot(2)), None);
    assert_eq!(log.ballot(Slot(2)), ballot(1));
    assert_eq!(log.tail_bytes(), value(2, 10).weight());
}

#[test]
fn the_oldest_record_with_a_live_entry_is_kept() {
    let mut log = Log::new(Slot::ZERO);
    log.set(Slot(2), ballot(1), 0, value(1, 1));
    log.place(Slot(2), ballot(1), 1, Lsn(3));
    log.set(Slot(1), ballot(1), 0, value(1, 1));
    log.place(Slot(1), ballot(1), 1, Lsn(5));
    assert_eq!(log.keep_from(), Some(Lsn(3)));
    log.set(Slot(2), ballot(2), 0, value(1, 1));
    assert_eq!(log.keep_from(), Some(Lsn(5)));
    log.place(Slot(2), ballot(2), 1, Lsn(6));
    log.truncate(Slot(1));
    assert_eq!(log.keep_from(), Some(Lsn(6)));
    log.truncate(Slot(2));
    assert_eq!((log.keep_from(), log.last()), (None, Slot(2)));
}

#[test]
fn what_is_carried_forward_needs_its_former_record_until_the_new_one_is_durable() {
    let mut log = Log::new(Slot::ZERO);
    for slot in 1..=4 {
        log.set(Slot(slot), ballot(1), 0, value(slot as u8, 100));
        log.place(Slot(slot), ballot(1), 1, Lsn(slot));
    }
    let stranded = |log: &Log, bytes_max| -> Vec<u64> {
        let (stranded, _) = log.stranded(Slot(1), Lsn(4), bytes_max);
        stranded.into_iter().map(|slot| slot.0).collect()
    };
    // Neither what is decided, nor what lies far enough ahead.
    assert_eq!((stranded(&log, 1_000), stranded(&log, 1)), (vec![2, 3], vec![2]));
    log.carry(Slot(2), 0);
    log.carry(Slot(3), 1);
    assert_eq!(stranded(&log, 1_000), Vec::<u64>::new(), "they are under way");
    log.place(Slot(2), ballot(1), 2, Lsn(9));
    // Meanwhile one of them is accepted anew.
    log.set(Slot(3), ballot(2), 0, value(7, 10));
    log.place(Slot(3), ballot(2), 1, Lsn(10));
    log.truncate(Slot(1));
    log.persisted(Lsn(8));
    assert_eq!(log.keep_from(), Some(Lsn(2)));
    log.persisted(Lsn(9));
    assert_eq!(log.keep_from(), Some(Lsn(4)));
    let found = |slot| log.entry(Slot(slot)).map(|entry| (entry.lsn, entry.index, entry.ballot));
    assert_eq!(found(2), Some((Lsn(9), 0, ballot(1))));
    assert_eq!(found(3), Some((Lsn(10), 0, ballot(2))));
    log.truncate(Slot(4));
    assert_eq!(log.keep_from(), None);
}

#[test]
fn f11_what_is_carried_and_mended_in_one_output_lies_where_its_own_record_is() {
    let mut log = Log::new(Slot::ZERO);
    for (slot, lsn) in [(5, 1), (6, 2), (7, 2)] {
        log.set(Slot(slot), ballot(1), u32::from(slot == 7), value(slot as u8, 100));
        log.place(Slot(slot), ballot(1), 1, Lsn(lsn));
    }
    log.set(Slot(7), ballot(2), 1, value(7, 100));
    log.place(Slot(6), ballot(2), 2, Lsn(2));
    // One record has all three again; then two of them are found damaged, and written anew.
    for (slot, index) in [(5, 0), (6, 1)] {
        log.carry(Slot(slot), index);
    }
    assert_eq!(log.damage(Lsn(2), Lsn(2)), vec![Slot(6), Slot(7)]);
    log.set(Slot(6), ballot(1), 0, value(6, 100));
    log.place(Slot(5), ballot(1), 2, Lsn(8));
    log.place(Slot(6), ballot(1), 1, Lsn(9));
    let found = |log: &Log, slot| log.entry(Slot(slot)).map(|entry| (entry.lsn, entry.index));
    assert_eq!(found(&log, 6), Some((Lsn(9), 0)));
    log.persisted(Lsn(9));
    assert_eq!((found(&log, 5), found(&log, 6)), (Some((Lsn(8), 0)), Some((Lsn(9), 0))));
}

#[test]
fn f11_a_damaged_record_is_mended_by_what_was_carried_forward() {
    let mut log = Log::new(Slot::ZERO);
    log.set(Slot(1), ballot(1), 0, value(1, 100));
    log.place(Slot(1), ballot(1), 1, Lsn(1));
    log.carry(Slot(1), 0);
    log.place(Slot(1), ballot(1), 1, Lsn(5));
    assert_eq!(log.damage(Lsn(1), Lsn(1)), vec![Slot(1)]);
    log.persisted(Lsn(5));
    assert!(log.faulty().is_empty() && log.is_durable(Slot(1), Lsn(5)));
    assert_eq!((log.keep_from(), log.mended()), (Some(Lsn(5)), 1));
}

#[test]
fn runs_tell_ballots_and_gaps() {
    let mut log = Log::new(Slot(10));
    for (slot, round) in [(11, 1), (12, 1), (13, 2), (15, 2)] {
        log.set(Slot(slot), ballot(round), 0, Value::Noop);
    }
    let run = |first, last, round| Run {
        first: Slot(first),
        last: Slot(last),
        ballot: ballot(round),
        faulty: false,
    };
    assert_eq!(log.runs(Slot::ZERO), vec![run(11, 12, 1), run(13, 13, 2), run(15, 15, 2)]);
    assert_eq!(log.runs(Slot(11)), vec![run(12, 12, 1), run(13, 13, 2), run(15, 15, 2)]);
}
