//! What is cut off is dropped, what is damaged is known by name as far as its names can be read,
//! and only what nothing vouches for may be lost unnoticed.
#![allow(clippy::unwrap_used)]

mod common;

use base::{DiskId, Lsn, Random};
use common::{append, last_write, options, recover, recover_all, run, settle};
use storage::{
    Disk, MemoryDisk, Recovered, RecoveredRecord, Wal, WalCommand, WalError, WalOptions, execute,
};

const PAGE: u64 = 4096;

/// A block on the disk, and the last record in it.
#[derive(Clone, Debug)]
struct Written {
    file: String,
    offset: u64,
    len: usize,
    last: Lsn,
}

/// A log of several blocks and segments, of several records each, and where its blocks are. No
/// block behind the last one vouches for it.
fn log(options: &WalOptions) -> (MemoryDisk, Vec<Written>) {
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, options).unwrap();
    let mut blocks = Vec::new();
    for i in 0..12u64 {
        for j in 0..=i % 3 {
            append(&mut wal, j, (i * 400 + j * 77) as usize, false);
        }
        blocks.push(write(&mut wal, &mut disk));
    }
    (disk, blocks)
}

fn write(wal: &mut Wal, disk: &mut MemoryDisk) -> Written {
    let commands = wal.seal();
    let (file, offset, len) = last_write(&commands);
    run(wal, disk, commands);
    assert!(wal.is_quiet());
    Written { file, offset, len, last: wal.synced() }
}

/// The bytes of a block that mean something: all but the zeros before the copy.
fn meaningful(disk: &mut MemoryDisk, block: &Written) -> Vec<u64> {
    let bytes = disk.read(&block.file, block.offset, block.len).unwrap();
    let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (payloads_end, copy_len) = (field(72), field(76));
    let copy_start = block.len - 16 - copy_len;
    let all = (0..payloads_end).chain(copy_start..block.len);
    all.map(|at| block.offset + at as u64).collect()
}

fn snapshot(disk: &mut MemoryDisk) -> Vec<(String, Vec<u8>)> {
    let names = disk.list().unwrap();
    let read = |name: String| {
        let len = disk.len(&name).unwrap() as usize;
        let bytes = disk.read(&name, 0, len).unwrap().to_vec();
        (name, bytes)
    };
    names.into_iter().map(read).collect()
}

/// The log does not open, says where, and has changed nothing.
fn assert_corrupt(mut disk: MemoryDisk, options: &WalOptions, context: &str) -> WalError {
    let before = snapshot(&mut disk);
    let error = match recover(&mut disk, options) {
        Err(error) => error,
        Ok((wal, _)) => panic!("{context}: opened, next record is {}", wal.next_lsn()),
    };
    assert!(matches!(error, WalError::Corrupt { .. }), "{context}: {error}");
    assert!(snapshot(&mut disk) == before, "{context}: something was changed");
    error
}

/// The log opens with the records through `last`, and goes on from there for good.
fn assert_opens(mut disk: MemoryDisk, options: &WalOptions, last: Lsn, context: &str) {
    for _ in 0..2 {
        let (wal, records) = recover(&mut disk, options).unwrap();
        assert_eq!(wal.synced(), last, "{context}");
        assert_eq!(records.len() as u64, last.0, "{context}");
    }
    let (mut wal, _) = recover(&mut disk, options).unwrap();
    append(&mut wal, 1, 5_000, false);
    settle(&mut wal, &mut disk);
    let (wal, records) = recover(&mut disk, options).unwrap();
    assert_eq!(wal.synced(), last.next(), "{context}");
    assert_eq!(records.last().unwrap().payload[..], common::content(last.next(), 5_000)[..]);
}

#[test]
fn f12_the_last_block_cut_at_any_sector_is_dropped_and_no_other() {
    let options = options(16);
    let (disk, blocks) = log(&options);
    let [.., before, last] = &blocks[..] else { panic!("blocks") };
    for cut in (0..last.len).step_by(512) {
        let mut disk = disk.clone();
        let rest = vec![0; last.len - cut];
        disk.write(&last.file, last.offset + cut as u64, &rest).unwrap();
        disk.sync(&last.file).unwrap();
        assert_opens(disk, &options, before.last, &format!("cut at {cut}"));
    }
    assert_opens(disk, &options, last.last, "not cut");
}

#[test]
fn f12_the_last_record_cut_at_any_byte_is_dropped_and_no_other() {
    let options = options(16);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    append(&mut wal, 1, 300, false);
    let before = write(&mut wal, &mut disk);
    append(&mut wal, 1, 300, false);
    let last = write(&mut wal, &mut disk);
    for at in meaningful(&mut disk, &last) {
        let mut disk = disk.clone();
        let rest = vec![0; last.len - (at - last.offset) as usize];
        disk.write(&last.file, at, &rest).unwrap();
        disk.sync(&last.file).unwrap();
        let (wal, records) = recover(&mut disk, &options).unwrap();
        // Where the cut is behind the last byte that is not zero, nothing is missing.
        let whole = wal.synced() == last.last;
        assert!(whole || wal.synced() == before.last, "cut at {at}");
        assert_eq!(records.len() as u64, wal.synced().0);
        assert!(wal.report().damage.is_empty(), "cut at {at}");
    }
}

#[test]
fn f12_the_last_block_cut_over_the_leftovers_of_a_recycled_segment_is_dropped() {
    let options = options(4);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    for _ in 0..60 {
        let lsn = append(&mut wal, 1, 3_000, false);
        settle(&mut wal, &mut disk);
        wal.keep_from(base::GroupId(1), Some(lsn));
        for group in wal.wants_state() {
            append(&mut wal, group.0, 100, true);
        }
        settle(&mut wal, &mut disk);
    }
    assert!(disk.bytes() <= 6 * 4 * PAGE, "segments are used again: {}", disk.bytes());
    let synced = wal.synced();
    append(&mut wal, 1, 3_000, false);
    let leftovers = disk.clone();
    let block = write(&mut wal, &mut disk);
    for cut in (0..block.len).step_by(512) {
        let mut cut_disk = disk.clone();
        let mut old = leftovers.clone();
        let from = block.offset + cut as u64;
        let rest = old.read(&block.file, from, block.len - cut).unwrap();
        cut_disk.write(&block.file, from, &rest).unwrap();
        cut_disk.sync(&block.file).unwrap();
        let (wal, _) = recover(&mut cut_disk, &options).unwrap();
        assert_eq!(wal.synced(), synced, "cut at {cut}");
    }
}

/// The damaged log opens: each record is what it was, or known to be damaged, or one of those that
/// are lost; and each group that had one of the latter is doubted. Returns how many are damaged and
/// how many lost. What is appended then does not hide what was found.
fn assert_salvaged(
    mut disk: MemoryDisk,
    options: &WalOptions,
    whole: &[RecoveredRecord],
    context: &str,
) -> (u64, u64) {
    let mut counts = (0, 0);
    for round in 0..2 {
        let (mut wal, found) =
            recover_all(&mut disk, options).unwrap_or_else(|error| panic!("{context}: {error}"));
        counts = judge_salvaged(&wal, &found, whole, context);
        if round == 0 {
            let lsn = append(&mut wal, 77, 5_000, false);
            settle(&mut wal, &mut disk);
            assert_eq!(wal.synced(), lsn);
            assert_eq!(lsn.0, whole.len() as u64 + 1, "{context}");
        }
    }
    counts
}

fn judge_salvaged(
    wal: &Wal,
    found: &[Recovered],
    whole: &[RecoveredRecord],
    context: &str,
) -> (u64, u64) {
    let (mut damaged, mut lost) = (0, 0);
    let mut next = Lsn(1);
    for found in found {
        match found {
            Recovered::Record(record) => {
                assert_eq!(record.lsn, next, "{context}");
                if let Some(old) = whole.get(next.0 as usize - 1) {
                    assert!(record == old, "{context}: {next} is not what it was");
                }
                next = next.next();
            }
            Recovered::Damaged { lsn, group, identity, state } => {
                let old = &whole[lsn.0 as usize - 1];
                assert_eq!(*lsn, next, "{context}");
                let same = (*group, *identity, *state) == (old.group, old.identity, old.state);
                assert!(same, "{context}: {next} is another's");
                damaged += 1;
                next = next.next();
            }
            Recovered::Lost { first, last } => {
                assert_eq!(*first, next, "{context}");
                for old in &whole[first.0 as usize - 1..last.0 as usize] {
                    let later = whole[last.0 as usize..].iter().any(|r| r.group == old.group);
                    let before = whole[..first.0 as usize - 1].iter().any(|r| r.group == old.group);
                    let known = later || before;
                    let doubted = wal.report().doubted.contains(&old.group);
                    assert!(doubted || !known, "{context}: {} is not doubted", old.group);
                }
                assert!(wal.report().lost, "{context}");
                lost += last.0 + 1 - first.0;
                next = last.next();
            }
        }
    }
    assert!(next > Lsn(whole.len() as u64), "{context}: ends before {next}");
    let is_damaged = damaged + lost > 0;
    assert!(!is_damaged || !wal.report().damage.is_empty(), "{context}: nothing is said");
    (damaged, lost)
}

fn whole(disk: &MemoryDisk, options: &WalOptions) -> Vec<RecoveredRecord> {
    recover(&mut disk.clone(), options).unwrap().1
}

#[test]
fn f11_a_flipped_bit_costs_one_payload_at_most_and_never_a_name() {
    let options = options(16);
    let (mut disk, blocks) = log(&options);
    let records = whole(&disk, &options);
    let (last, old) = blocks.split_last().unwrap();
    let mut payloads = 0;
    for block in old {
        for at in meaningful(&mut disk, block).into_iter().step_by(7) {
            let mut disk = disk.clone();
            disk.flip(&block.file, at, 1 << (at % 8));
            let context = format!("byte {at} of {}", block.file);
            let (damaged, lost) = assert_salvaged(disk, &options, &records, &context);
            assert!(damaged <= 1 && lost == 0, "{context}: {damaged} and {lost}");
            payloads += damaged;
        }
    }
    assert!(payloads > 100, "{payloads}");
    let before = &old[old.len() - 1];
    for at in meaningful(&mut disk, last).into_iter().step_by(3) {
        let mut disk = disk.clone();
        disk.flip(&last.file, at, 1 << (at % 8));
        assert_opens(disk, &options, before.last, &format!("byte {at} of the last block"));
    }
}

#[test]
fn f11_a_lost_page_loses_its_records_and_no_others_and_names_who_may_have_had_some() {
    let options = options(16);
    let (disk, blocks) = log(&options);
    let records = whole(&disk, &options);
    let (last, old) = blocks.split_last().unwrap();
    let mut lost_once = false;
    for block in old {
        for page in 0..block.len as u64 / PAGE {
            let mut disk = disk.clone();
            disk.write(&block.file, block.offset + page * PAGE, &[0xa5; 4096]).unwrap();
            disk.sync(&block.file).unwrap();
            let context = format!("page {page} at {} of {}", block.offset, block.file);
            let (damaged, lost) = assert_salvaged(disk, &options, &records, &context);
            let first = old.iter().map(|b| b.last.0).filter(|l| *l < block.last.0).max();
            assert!(damaged + lost <= block.last.0 - first.unwrap_or(0), "{context}");
            lost_once |= lost > 0;
        }
    }
    assert!(lost_once && last.last.0 as usize == records.len());
}

#[test]
fn f11_groups_without_a_record_in_the_lost_block_are_proven_so_by_their_next_one() {
    let options = options(16);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    let mut blocks = Vec::new();
    for groups in [&[1, 2, 3][..], &[1], &[1, 2]] {
        for group in groups {
            append(&mut wal, *group, 100, false);
        }
        blocks.push(write(&mut wal, &mut disk));
    }
    let cover = wal.idle();
    run(&mut wal, &mut disk, cover);
    disk.write(&blocks[1].file, blocks[1].offset, &[0; 4096]).unwrap();
    let (wal, _) = recover(&mut disk, &options).unwrap();
    let doubted: Vec<u64> = wal.report().doubted.iter().map(|group| group.0).collect();
    assert_eq!(doubted, [1, 3], "group 1 had one, of group 3 nothing follows");
}

#[test]
fn f11_zeros_between_payloads_and_copy_may_rot_without_harm() {
    let options = options(16);
    let (mut disk, blocks) = log(&options);
    for block in &blocks {
        let means = meaningful(&mut disk, block);
        let padding =
            (block.offset..block.offset + block.len as u64).filter(|at| !means.contains(at));
        for at in padding.step_by(211) {
            let mut disk = disk.clone();
            disk.flip(&block.file, at, 0x10);
            let (wal, _) = recover(&mut disk, &options).unwrap();
            assert_eq!(wal.synced(), blocks[blocks.len() - 1].last);
        }
    }
}

#[test]
fn f11_a_cover_block_makes_damage_to_the_last_block_known() {
    let options = options(16);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    append(&mut wal, 1, 500, false);
    let block = write(&mut wal, &mut disk);
    let cover = wal.idle();
    assert_eq!(cover.len(), 1);
    run(&mut wal, &mut disk, cover);
    assert!(wal.idle().is_empty(), "once is enough");
    let records = whole(&disk, &options);
    for at in meaningful(&mut disk, &block) {
        let mut disk = disk.clone();
        disk.flip(&block.file, at, 1);
        let (damaged, lost) = assert_salvaged(disk, &options, &records, &format!("byte {at}"));
        assert!(damaged <= 1 && lost == 0);
    }
    let at = block.offset + block.len as u64;
    for byte in 0..PAGE {
        let mut disk = disk.clone();
        disk.flip(&block.file, at + byte, 1);
        let (wal, _) = recover(&mut disk, &options).unwrap();
        assert_eq!(wal.synced(), Lsn(1), "the cover itself may be damaged");
    }
}

#[test]
fn f11_damage_to_an_old_cover_block_does_not_lose_the_block_behind_it() {
    let options = options(16);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    append(&mut wal, 1, 500, false);
    settle(&mut wal, &mut disk);
    let cover = wal.idle();
    let (file, offset, _) = last_write(&cover);
    run(&mut wal, &mut disk, cover);
    append(&mut wal, 1, 500, false);
    settle(&mut wal, &mut disk);
    let cover = wal.idle();
    run(&mut wal, &mut disk, cover);
    let records = whole(&disk, &options);
    assert_eq!(records.len(), 2);
    disk.write(&file, offset, &[0; 4096]).unwrap();
    assert_eq!(assert_salvaged(disk, &options, &records, "cover"), (0, 0));
}

#[test]
fn f12_damage_that_no_later_block_knew_to_be_durable_drops_everything_from_there() {
    let options = options(16);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    append(&mut wal, 1, 500, false);
    settle(&mut wal, &mut disk);
    append(&mut wal, 1, 500, false);
    let first = wal.seal();
    append(&mut wal, 1, 500, false);
    let second = wal.seal();
    assert!(!first.is_empty() && !second.is_empty(), "two blocks may be in flight");
    execute(&mut disk, &second).unwrap();
    let (mut wal, records) = recover(&mut disk, &options).unwrap();
    assert_eq!(records.len(), 1);
    assert!(wal.report().dropped.is_some());
    // What was dropped stays so, though its block is intact, and its numbers are used again.
    append(&mut wal, 2, 900, false);
    append(&mut wal, 2, 900, false);
    settle(&mut wal, &mut disk);
    execute(&mut disk, &first).unwrap();
    let (wal, records) = recover(&mut disk, &options).unwrap();
    assert_eq!(wal.report().dropped, None);
    let groups: Vec<u64> = records.iter().map(|record| record.group.0).collect();
    assert_eq!(groups, [1, 2, 2]);
}

#[test]
fn f11_a_segment_header_has_a_second_copy_and_is_made_anew_when_both_are_lost() {
    let options = options(4);
    let (mut disk, blocks) = log(&options);
    let mut files: Vec<String> = blocks.iter().map(|block| block.file.clone()).collect();
    files.dedup();
    assert!(files.len() > 4);
    let last = blocks[blocks.len() - 1].last;
    let records = whole(&disk, &options);
    for file in &files {
        for at in 0..88 {
            let mut disk = disk.clone();
            disk.flip(file, at, 0x40);
            let (wal, _) = recover(&mut disk, &options).unwrap();
            assert_eq!(wal.synced(), last, "one copy of {file} is damaged at {at}");
        }
        disk.flip(file, 40, 1);
        disk.flip(file, 2048 + 40, 1);
        // The last segment's only block has nothing behind it: a loss that nobody can see.
        if file != &files[files.len() - 1] {
            assert_eq!(assert_salvaged(disk.clone(), &options, &records, file), (0, 0));
        }
        disk.flip(file, 40, 1);
        disk.flip(file, 2048 + 40, 1);
    }
}

#[test]
fn f11_a_missing_file_in_the_middle_stops_the_node() {
    let options = options(4);
    let (disk, blocks) = log(&options);
    for block in &blocks[..blocks.len() - 2] {
        let mut disk = disk.clone();
        disk.remove(&block.file).unwrap();
        assert_corrupt(disk, &options, &block.file);
    }
}

#[test]
fn f11_the_lost_header_of_the_newest_segment_is_known_by_its_blocks() {
    let options = options(16);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    append(&mut wal, 1, 10, false);
    let first = write(&mut wal, &mut disk);
    append(&mut wal, 1, 10, false);
    write(&mut wal, &mut disk);
    let cover = wal.idle();
    run(&mut wal, &mut disk, cover);
    let records = whole(&disk, &options);
    disk.write(&first.file, 0, &[0; 4096]).unwrap();
    disk.sync(&first.file).unwrap();
    assert_eq!(assert_salvaged(disk, &options, &records, "header"), (0, 0));
}

/// Carries out what `wanted` picks of some commands, as a disk does that loses the rest.
fn arrive(disk: &mut MemoryDisk, commands: &[WalCommand], wanted: impl Fn(&WalCommand) -> bool) {
    let picked: Vec<_> = commands.iter().filter(|c| !c.is_background() && wanted(c)).collect();
    for command in picked {
        execute(disk, std::slice::from_ref(command)).unwrap();
    }
}

/// The first segment is full, nothing in it is needed, and two flights are on their way that go on
/// behind it: the second knows that the first segment is not needed.
fn behind_a_needless_segment(
    options: &WalOptions,
    last_len: usize,
) -> (MemoryDisk, [Vec<WalCommand>; 2]) {
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, options).unwrap();
    for _ in 0..3 {
        append(&mut wal, 1, 3_000, false);
        settle(&mut wal, &mut disk);
    }
    wal.forget(base::GroupId(1));
    append(&mut wal, 2, 3_000, false);
    let first = wal.seal();
    append(&mut wal, 2, last_len, false);
    let second = wal.seal();
    assert_eq!(wal.stats().in_flight, 2);
    (disk, [first, second])
}

#[test]
fn f12_a_new_segment_of_which_only_blocks_arrived_is_dropped() {
    let options = options(4);
    let (mut disk, flights) = behind_a_needless_segment(&options, 100);
    let header = |command: &WalCommand| matches!(command, WalCommand::Write { offset: 0, .. });
    arrive(&mut disk, &flights.concat(), |command| !header(command));
    assert_opens(disk, &options, Lsn(3), "blocks without header");
}

#[test]
fn f12_a_new_segment_behind_one_that_never_arrived_is_dropped() {
    let options = options(4);
    let (mut disk, [_, second]) = behind_a_needless_segment(&options, 12_000);
    arrive(&mut disk, &second, |_| true);
    for _ in 0..3 {
        let (wal, _) = recover(&mut disk, &options).unwrap();
        assert_eq!(wal.synced(), Lsn(3));
    }
}

#[test]
fn f12_power_lost_while_a_recycled_header_is_written_loses_nothing() {
    let options = options(4);
    let mut disk = MemoryDisk::new();
    let (mut wal, _) = recover(&mut disk, &options).unwrap();
    let mut random = Random::new(7);
    let mut recycled = 0;
    for i in 0..80 {
        let lsn = append(&mut wal, 1, 3_000, false);
        let synced = wal.synced();
        let commands = wal.seal();
        if commands.iter().any(|c| matches!(c, WalCommand::Write { offset: 0, .. })) {
            recycled += 1;
            for _ in 0..8 {
                let mut disk = disk.clone();
                for command in commands.iter().filter(|c| !c.is_background()) {
                    if let WalCommand::Write { file, offset, bytes, .. } = command {
                        disk.write(file, *offset, bytes).unwrap();
                    }
                }
                disk.crash(&mut random, true);
                let (wal, _) = recover(&mut disk, &options).unwrap();
                assert!(wal.synced() >= synced, "round {i}");
            }
        }
        run(&mut wal, &mut disk, commands);
        settle(&mut wal, &mut disk);
        wal.keep_from(base::GroupId(1), Some(lsn));
        for group in wal.wants_state() {
            append(&mut wal, group.0, 100, true);
        }
        settle(&mut wal, &mut disk);
    }
    assert!(recycled > 20);
}

#[test]
fn another_version_or_disk_is_refused_by_name() {
    let options = options(16);
    let (disk, blocks) = log(&options);
    let file = &blocks[0].file;
    let other = WalOptions { disk_id: DiskId(9), ..options.clone() };
    let error = recover(&mut disk.clone(), &other).unwrap_err();
    assert!(matches!(&error, WalError::OtherDisk { found, .. } if *found == common::DISK));
    let mut disk = disk;
    for copy in [0, 2048] {
        let mut bytes = disk.read(file, copy, 512).unwrap().to_vec();
        bytes[12..16].copy_from_slice(&7u32.to_le_bytes());
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        disk.write(file, copy, &bytes).unwrap();
    }
    let error = recover(&mut disk, &options).unwrap_err();
    assert!(error.to_string().contains("version 7"), "{error}");
}

#[test]
fn f11_random_bytes_anywhere_never_break_the_reader() {
    let options = options(4);
    let (disk, blocks) = log(&options);
    let whole = whole(&disk, &options);
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let mut disk = disk.clone();
        for _ in 0..random.between(1, 4) {
            let file = &random.pick(&blocks).unwrap().file;
            let offset = random.below(4 * PAGE);
            let junk: Vec<u8> = (0..random.below(3_000)).map(|_| random.next_u64() as u8).collect();
            disk.write(file, offset, &junk).unwrap();
        }
        if let Ok((wal, found)) = recover_all(&mut disk, &options) {
            let records = whole.get(..wal.synced().0 as usize).unwrap();
            judge_salvaged(&wal, &found, records, &format!("seed {seed}"));
        }
    }
}
