//! The log in good days and on a disk that fails: what goes to the disk when, what can be read,
//! and how room is made.
#![allow(clippy::unwrap_used)]

mod common;

use base::{GroupId, Lsn};
use bytes::Bytes;
use common::{append, content, identity, options, recover, run, settle};
use storage::{
    Disk, DiskFault, MemoryDisk, ReadError, Wal, WalCommand, WalError, WalOptions, execute,
};

fn new(options: &WalOptions) -> (MemoryDisk, Wal) {
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, options).unwrap();
    settle(&mut wal, &mut disk);
    (disk, wal)
}

fn read(
    wal: &Wal,
    disk: &mut MemoryDisk,
    lsn: Lsn,
) -> Result<(GroupId, Vec<u8>, Bytes), ReadError> {
    let read = wal.read(lsn).ok_or(ReadError::Gone)?;
    let bytes = disk.read(&read.file, read.offset, read.len).unwrap();
    wal.parse(lsn, &bytes).map(|(group, identity, payload)| (group, identity.to_vec(), payload))
}

#[test]
fn blocks_wait_while_enough_are_in_flight_and_one_sync_serves_all() {
    let options = options(16);
    let (mut disk, mut wal) = new(&options);
    let mut all = Vec::new();
    for round in 0..5 {
        append(&mut wal, round, 100, false);
        append(&mut wal, round, 100, false);
        all.extend(wal.seal());
    }
    assert_eq!(all.len(), 2, "two blocks, then the rest waits");
    assert_eq!(wal.stats().in_flight, 2);
    let syncs = disk.stats().syncs;
    let ticket = execute(&mut disk, &all).unwrap().unwrap();
    assert_eq!(disk.stats().syncs, syncs + 1);
    assert_eq!(wal.done(ticket), Lsn(4));
    let rest = wal.seal();
    assert_eq!(rest.len(), 1, "all that waited goes as one block");
    let ticket = execute(&mut disk, &rest).unwrap().unwrap();
    assert_eq!(wal.done(ticket), Lsn(10));
    assert!(wal.is_quiet() && wal.seal().is_empty());
}

#[test]
fn a_ticket_at_a_time_counts_what_is_through() {
    let options = options(16);
    let (mut disk, mut wal) = new(&options);
    append(&mut wal, 1, 10, false);
    let first = execute(&mut disk, &wal.seal()).unwrap().unwrap();
    append(&mut wal, 1, 10, false);
    let second = execute(&mut disk, &wal.seal()).unwrap().unwrap();
    assert_eq!(wal.synced(), Lsn(0));
    assert_eq!(wal.done(first), Lsn(1));
    assert_eq!(wal.done(second), Lsn(2));
}

#[test]
fn old_records_are_read_back_one_by_one_before_and_after_a_start() {
    let options = options(8);
    let (mut disk, mut wal) = new(&options);
    let lens: Vec<usize> = (0..60).map(|i| (i * i * 7) % 5_000).collect();
    for (i, len) in lens.iter().enumerate() {
        append(&mut wal, i as u64 % 3, *len, i % 7 == 0);
        assert_eq!(wal.read(wal.next_lsn()), None);
        if i % 4 == 3 {
            assert_eq!(wal.read(Lsn(i as u64 + 1)), None, "not durable yet");
            settle(&mut wal, &mut disk);
        }
    }
    for start in [false, true] {
        if start {
            wal = recover(&mut disk, &options).unwrap().0;
        }
        for (i, len) in lens.iter().enumerate() {
            let lsn = Lsn(i as u64 + 1);
            let (group, id, payload) = read(&wal, &mut disk, lsn).unwrap();
            assert_eq!(group, GroupId(i as u64 % 3));
            assert_eq!(id, identity(lsn));
            assert!(payload[..] == content(lsn, *len)[..]);
        }
    }
    assert_eq!(wal.read(Lsn(0)), None);
}

#[test]
fn f11_a_damaged_record_is_told_from_one_that_is_gone() {
    let options = options(8);
    let (mut disk, mut wal) = new(&options);
    append(&mut wal, 1, 700, false);
    settle(&mut wal, &mut disk);
    let place = wal.read(Lsn(1)).unwrap();
    let bytes = disk.read(&place.file, place.offset, place.len).unwrap();
    let record_len = 32 + identity(Lsn(1)).len() + 700;
    for at in 0..record_len {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 4;
        assert_eq!(wal.parse(Lsn(1), &Bytes::from(bytes)).unwrap_err(), ReadError::Damaged);
    }
    for len in 0..record_len {
        assert_eq!(wal.parse(Lsn(1), &bytes.slice(..len)).unwrap_err(), ReadError::Damaged);
    }
    assert_eq!(wal.parse(Lsn(2), &bytes).unwrap_err(), ReadError::Gone);
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_own() {
    let options = options(4);
    let (mut disk, mut wal) = new(&options);
    append(&mut wal, 1, 100, false);
    append(&mut wal, 1, 1 << 20, false);
    append(&mut wal, 1, 200, false);
    settle(&mut wal, &mut disk);
    let (wal, records) = recover(&mut disk, &options).unwrap();
    assert_eq!(records[1].payload[..], content(Lsn(2), 1 << 20)[..]);
    assert_eq!(read(&wal, &mut disk, Lsn(2)).unwrap().2.len(), 1 << 20);
    assert_eq!(records.len(), 3);
}

#[test]
fn the_oldest_segment_waits_for_what_is_kept_and_for_durable_states() {
    let options = options(4);
    let (mut disk, mut wal) = new(&options);
    append(&mut wal, 1, 10, false);
    append(&mut wal, 2, 10, true);
    for _ in 0..6 {
        append(&mut wal, 3, 3_000, false);
        settle(&mut wal, &mut disk);
    }
    assert!(wal.stats().segments > 2);
    assert_eq!(wal.wants_state(), [], "nobody said what is needed, so all of it is");
    wal.keep_from(GroupId(1), None);
    wal.keep_from(GroupId(2), None);
    wal.keep_from(GroupId(3), Some(wal.synced()));
    assert_eq!(wal.wants_state(), [1, 2, 3].map(GroupId), "a state in the same segment is no help");
    append(&mut wal, 1, 20, true);
    append(&mut wal, 3, 20, true);
    assert_eq!(wal.wants_state(), [GroupId(2)]);
    settle(&mut wal, &mut disk);
    assert!(wal.read(Lsn(1)).is_some(), "one state is missing");
    append(&mut wal, 2, 20, true);
    let ticket = execute(&mut disk, &wal.seal()).unwrap().unwrap();
    assert!(wal.read(Lsn(1)).is_some(), "it is not durable");
    wal.done(ticket);
    assert!(wal.read(Lsn(1)).is_none());
}

/// A log whose oldest segment has a record of group 1, and nothing else that anybody needs.
fn held_up_by_group_1() -> Wal {
    let options = options(4);
    let (mut disk, mut wal) = new(&options);
    append(&mut wal, 1, 10, false);
    for _ in 0..4 {
        let lsn = append(&mut wal, 2, 3_000, true);
        settle(&mut wal, &mut disk);
        wal.keep_from(GroupId(2), Some(lsn));
    }
    wal
}

#[test]
fn a_forgotten_group_holds_up_nothing() {
    let mut wal = held_up_by_group_1();
    let segments = wal.stats().segments;
    assert_eq!(wal.groups(), [GroupId(1), GroupId(2)]);
    wal.forget(GroupId(1));
    assert!(wal.stats().segments < segments);
    assert_eq!(wal.groups(), [GroupId(2)]);
}

/// Its file may be gone when it is the turn of a check that was asked for before: that is no damage.
#[test]
fn a_check_of_a_segment_that_was_let_go_of_is_known_as_such() {
    let mut wal = held_up_by_group_1();
    let check = wal.next_check(1 << 20).unwrap();
    assert!(wal.is_present(&check));
    wal.forget(GroupId(1));
    assert!(!wal.is_present(&check));
    let next = wal.next_check(1 << 20).unwrap();
    assert!(wal.is_present(&next));
}

#[test]
fn what_a_group_needs_counts_once_the_records_it_may_rest_on_are_durable() {
    let options = options(4);
    let (mut disk, mut wal) = new(&options);
    for _ in 0..5 {
        append(&mut wal, 1, 3_000, false);
        settle(&mut wal, &mut disk);
    }
    append(&mut wal, 1, 30, true);
    settle(&mut wal, &mut disk);
    append(&mut wal, 1, 30, false);
    wal.keep_from(GroupId(1), None);
    append(&mut wal, 1, 30, false);
    append(&mut wal, 1, 30, true);
    let flight = wal.seal();
    assert!(wal.read(Lsn(1)).is_some());
    let ticket = execute(&mut disk, &flight).unwrap().unwrap();
    wal.done(ticket);
    assert!(wal.read(Lsn(1)).is_none(), "the state appended afterwards counts at once");
}

#[test]
fn a_record_appended_after_nothing_was_needed_is_needed() {
    let options = options(4);
    let (mut disk, mut wal) = new(&options);
    append(&mut wal, 1, 30, false);
    wal.keep_from(GroupId(1), None);
    let kept = append(&mut wal, 1, 30, false);
    for _ in 0..20 {
        for group in [1, 2] {
            append(&mut wal, group, 3_000, true);
        }
        settle(&mut wal, &mut disk);
        wal.keep_from(GroupId(2), None);
    }
    assert!(wal.read(kept).is_some());
}

#[test]
fn a_state_that_did_not_know_that_records_were_needless_is_restated() {
    let options = options(4);
    let (mut disk, mut wal) = new(&options);
    append(&mut wal, 1, 3_000, false);
    for _ in 0..6 {
        append(&mut wal, 1, 3_000, true);
        settle(&mut wal, &mut disk);
    }
    assert_eq!(wal.wants_state(), []);
    wal.keep_from(GroupId(1), Some(Lsn(2)));
    assert_eq!(wal.wants_state(), [GroupId(1)]);
    append(&mut wal, 1, 30, true);
    settle(&mut wal, &mut disk);
    assert!(wal.read(Lsn(1)).is_none());
}

#[test]
fn a_full_log_says_so_and_has_room_for_states() {
    let mut options = options(4);
    options.bytes_max = 8 * options.segment_bytes;
    let (mut disk, mut wal) = new(&options);
    while !wal.is_full() {
        append(&mut wal, 1, 3_000, false);
        settle(&mut wal, &mut disk);
    }
    assert!(wal.stats().bytes_live > options.bytes_max / 2);
    wal.keep_from(GroupId(1), None);
    let mut rounds = 0;
    while wal.is_full() {
        rounds += 1;
        append(&mut wal, 1, 50, true);
        settle(&mut wal, &mut disk);
    }
    assert!(rounds < 4);
    assert!(wal.stats().bytes_live <= options.bytes_max);
    // What it needed just now it may need again; later it is given back.
    let creates = disk.stats().creates;
    let goes_on = |wal: &mut Wal, disk: &mut MemoryDisk| {
        let lsn = append(wal, 1, 3_000, true);
        settle(wal, disk);
        wal.keep_from(GroupId(1), Some(lsn));
    };
    for _ in 0..8 {
        goes_on(&mut wal, &mut disk);
    }
    assert!(disk.bytes() >= 6 * options.segment_bytes, "{}", disk.bytes());
    assert_eq!(disk.stats().creates, creates);
    for _ in 0..60 {
        goes_on(&mut wal, &mut disk);
    }
    assert!(disk.bytes() <= 4 * options.segment_bytes, "{}", disk.bytes());
}

#[test]
fn segments_are_made_ahead_and_used_again() {
    let options = options(4);
    let (mut disk, mut wal) = new(&options);
    let mut late = 0;
    for _ in 0..200 {
        let lsn = append(&mut wal, 1, 3_000, true);
        let commands = wal.seal();
        let inline = |c: &WalCommand| matches!(c, WalCommand::Create { background: false, .. });
        late += commands.iter().filter(|c| inline(c)).count();
        run(&mut wal, &mut disk, commands);
        wal.keep_from(GroupId(1), Some(lsn));
    }
    assert_eq!(late, 0, "a prepared segment was always at hand");
    assert!(disk.stats().creates <= 6, "{} files were made", disk.stats().creates);
}

#[test]
fn a_segment_that_is_not_ready_in_time_is_made_in_line() {
    let options = options(4);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    let mut background = Vec::new();
    for _ in 0..10 {
        append(&mut wal, 1, 3_000, false);
        let (later, now): (Vec<_>, Vec<_>) =
            wal.seal().into_iter().partition(WalCommand::is_background);
        background.extend(later);
        let ticket = execute(&mut disk, &now).unwrap().unwrap();
        wal.done(ticket);
    }
    assert_eq!(background.len(), 1);
    let made = disk.bytes();
    assert!(made < 10 * options.segment_bytes, "what records wait for is short: {made} bytes");
    let ticket = execute(&mut disk, &background).unwrap().unwrap();
    wal.prepared(ticket);
    settle(&mut wal, &mut disk);
    assert_eq!(recover(&mut disk, &options).unwrap().1.len(), 10);
}

#[test]
fn f15_a_write_or_sync_that_fails_is_an_error_and_vouches_for_nothing() {
    for fault in [DiskFault::Write(0), DiskFault::Sync(0)] {
        let options = options(8);
        let (mut disk, mut wal) = new(&options);
        append(&mut wal, 1, 6_000, false);
        settle(&mut wal, &mut disk);
        append(&mut wal, 1, 6_000, false);
        disk.set_fault(Some(fault));
        assert!(execute(&mut disk, &wal.seal()).is_err());
        assert_eq!(wal.synced(), Lsn(1));
        disk.set_fault(None);
        disk.crash(&mut base::Random::new(3), true);
        assert!(recover(&mut disk, &options).unwrap().0.synced() >= Lsn(1));
    }
}

#[test]
fn f15_a_start_on_a_failing_disk_is_an_error_at_each_call_and_harms_nothing() {
    let options = options(4);
    let (mut disk, mut wal) = new(&options);
    for _ in 0..5 {
        append(&mut wal, 1, 3_000, false);
        settle(&mut wal, &mut disk);
    }
    let kinds = [DiskFault::Write, DiskFault::Sync, DiskFault::Read, DiskFault::Create];
    for kind in kinds {
        for after in 0.. {
            let mut disk = disk.clone();
            disk.set_fault(Some(kind(after)));
            let result = recover(&mut disk, &options);
            disk.set_fault(None);
            let (wal, records) = recover(&mut disk, &options).unwrap();
            assert_eq!((wal.synced(), records.len()), (Lsn(5), 5));
            match result {
                Err(WalError::Io { .. }) => {}
                Err(error) => panic!("{error}"),
                Ok(_) => break,
            }
        }
    }
}

#[test]
fn f15_a_full_disk_makes_the_log_full_until_there_is_space_again() {
    let options = options(8);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    disk.set_bytes_max(Some(disk.bytes() + 5_000));
    append(&mut wal, 1, 100, false);
    let (background, now): (Vec<_>, Vec<_>) =
        wal.seal().into_iter().partition(WalCommand::is_background);
    let ticket = execute(&mut disk, &now).unwrap().unwrap();
    wal.done(ticket);
    assert!(execute(&mut disk, &background).is_err());
    wal.preparation_failed(background[0].ticket());
    assert!(wal.is_full());
    append(&mut wal, 1, 100, true);
    settle(&mut wal, &mut disk);
    assert_eq!(wal.synced(), Lsn(2), "the present segment still takes what cannot be refused");
    assert_eq!(
        recover(&mut disk.clone(), &options).err().map(|e| e.to_string().contains("space")),
        Some(true)
    );
    disk.set_bytes_max(None);
    assert!(wal.is_full());
    wal.retry_preparation();
    assert!(wal.is_full(), "a try makes no room");
    settle(&mut wal, &mut disk);
    assert!(!wal.is_full());
    assert_eq!(recover(&mut disk, &options).unwrap().1.len(), 2);
}

#[test]
fn a_killed_process_loses_no_block_that_was_written() {
    let options = options(8);
    let (mut disk, mut wal) = new(&options);
    append(&mut wal, 1, 100, false);
    for command in wal.seal() {
        if let WalCommand::Write { file, offset, bytes, .. } = command {
            disk.write(&file, offset, &bytes).unwrap();
        }
    }
    let (_, records) = recover(&mut disk, &options).unwrap();
    assert_eq!(records.len(), 1);
    disk.crash(&mut base::Random::new(1), true);
    let (_, records) = recover(&mut disk, &options).unwrap();
    assert_eq!(records.len(), 1, "the start made it durable before it was handed over");
}

#[test]
fn the_segment_size_may_change_from_start_to_start() {
    let mut disk = MemoryDisk::new();
    for (i, pages) in [4, 16, 8, 4, 64].into_iter().enumerate() {
        let options = options(pages);
        let (mut wal, records) = recover(&mut disk, &options).unwrap();
        assert_eq!(records.len(), i * 10);
        for _ in 0..10 {
            append(&mut wal, 1, 3_000, false);
            settle(&mut wal, &mut disk);
        }
    }
}

#[test]
fn options_are_checked_with_a_line_for_a_person() {
    let good = options(4);
    assert_eq!(good.validate(), Ok(()));
    assert_eq!(WalOptions::new(common::DISK).validate(), Ok(()));
    let odd = WalOptions { segment_bytes: 20_000, ..good.clone() };
    assert!(odd.validate().unwrap_err().contains("multiple of 4096"));
    let small = WalOptions { bytes_max: 4096, ..good.clone() };
    assert!(small.validate().is_err());
    assert!(WalOptions { in_flight_max: 0, ..good }.validate().is_err());
}

/// Each start after a crash leaves a segment with little in it. What is to be let go so that the log
/// takes half of its room is reckoned as the room is: else a full log would stay full.
#[test]
fn segments_that_starts_left_nearly_empty_count_whole() {
    let options = options(16);
    let (mut disk, mut wal) = new(&options);
    let mut firsts = Vec::new();
    for _ in 0..8 {
        firsts.push(append(&mut wal, 1, 10, false));
        settle(&mut wal, &mut disk);
        wal = recover(&mut disk, &options).unwrap().0;
    }
    let within = wal.within(4 * options.segment_bytes);
    assert!(within > firsts[3], "{within} of {firsts:?}");
    assert!(wal.within(100 * options.segment_bytes) <= firsts[0]);
}
