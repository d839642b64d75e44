//! A disk image: the superblock, and a write-ahead log that is opened, written on, and opened again.

use base::{DiskId, GroupId, Lsn};
use bytes::Bytes;
use crc32fast::Hasher;
use storage::{
    Disk, MemoryDisk, Recovered, Superblock, Wal, WalCommand, WalOptions, check, execute,
};

use super::Target;
use crate::items;
use crate::mutate::Layout;

pub(super) const TARGET: Target = Target {
    name: "disk",
    layout: Layout::Items,
    run,
    memory: 8 << 20,
    memory_per_byte: 1_024,
    rounds: 8_000,
};

/// Content of the superblock's file: the offset u32, and bytes.
pub(crate) const SUPERBLOCK: u8 = 0;
/// Content of a file of the log: the number of the file, the offset u32, and bytes.
pub(crate) const LOG: u8 = 1;
/// Checksums are made right wherever something looks as if it had one: what is in the log is then
/// read, whatever it says. The byte says in which files.
pub(crate) const RESEAL: u8 = 2;

const FILES: usize = 5;
const PAGE: usize = 4 << 10;
/// Every file has this length.
pub(crate) const FILE_BYTES: usize = 64 << 10;
pub(crate) const DISK: DiskId = DiskId(100);

pub(crate) fn options() -> WalOptions {
    WalOptions { segment_bytes: 16 << 10, bytes_max: 64 * (16 << 10), ..WalOptions::new(DISK) }
}

/// The name of a file of the log.
pub(crate) fn file(number: usize) -> String {
    format!("wal-{:06}", number % FILES + 1)
}

fn run(input: &[u8]) {
    let mut superblock = vec![0; 4 * PAGE];
    let mut sealed = false;
    let mut files: Vec<Vec<u8>> = vec![Vec::new(); FILES];
    for item in items::split(input).into_iter().take(200) {
        let bytes = item.bytes;
        match item.kind % 4 {
            SUPERBLOCK => {
                if let Some((offset, rest)) = bytes.split_first_chunk::<4>() {
                    put(&mut superblock, *offset, rest);
                }
            }
            LOG => {
                if let Some(([number, offset @ ..], rest)) = bytes.split_first_chunk::<5>() {
                    let file = &mut files[usize::from(*number) % FILES];
                    file.resize(FILE_BYTES.min(16 << 10), 0);
                    put(file, *offset, rest);
                }
            }
            RESEAL => {
                sealed = true;
                let which = bytes.first().copied().unwrap_or(255);
                let named = files.iter_mut().enumerate().filter(|(n, _)| which >> n & 1 == 1);
                named.for_each(|(_, file)| reseal(file));
                seal_superblock(&mut superblock);
            }
            // The lowest bit of a byte of a file of the log is inverted.
            _ => {
                if let Some(([number, offset @ ..], _)) = bytes.split_first_chunk::<5>() {
                    let at = u32::from_be_bytes(*offset) as usize;
                    if let Some(byte) = files[usize::from(*number) % FILES].get_mut(at) {
                        *byte ^= 1;
                    }
                }
            }
        }
    }
    let mut disk = MemoryDisk::new();
    fill(&mut disk, "superblock", &superblock);
    for (number, content) in files.iter().enumerate().filter(|(_, file)| !file.is_empty()) {
        fill(&mut disk, &file(number), content);
    }
    read_superblock(&mut disk);
    read_log(&mut disk, sealed);
}

fn put(file: &mut [u8], offset: [u8; 4], bytes: &[u8]) {
    let at = u32::from_be_bytes(offset) as usize % file.len().max(1);
    let len = bytes.len().min(file.len() - at);
    file[at..at + len].copy_from_slice(&bytes[..len]);
}

fn fill(disk: &mut MemoryDisk, name: &str, content: &[u8]) {
    let made = disk.create(name, content.len() as u64);
    made.and_then(|()| disk.write(name, 0, content))
        .and_then(|()| disk.sync(name))
        .expect("a disk in memory takes all");
}

fn read_superblock(disk: &mut MemoryDisk) {
    let Ok(Some(mut found)) = Superblock::read(disk) else { return };
    found.starts = found.starts.wrapping_add(1);
    found.update(disk).expect("a superblock that was read is written");
    let again = Superblock::read(disk).expect("and read again");
    assert_eq!(again, Some(found), "the newest copy counts");
}

/// Opens the log; where that goes, appends to it and opens it again: everything that was read is
/// read again, and what was appended.
fn read_log(disk: &mut MemoryDisk, sealed: bool) {
    let mut before = Vec::new();
    let Ok(mut wal) = Wal::recover(disk, options(), &mut |found| before.push(found)) else {
        return;
    };
    let mut last = Lsn::ZERO;
    for round in 0..3_u8 {
        last = wal.append(GroupId(7), &[round; 9], false, &mut |out| out.extend([round; 300]));
        settle(&mut wal, disk);
    }
    assert_eq!(wal.synced(), last, "what was appended is durable");
    if let Some(read) = wal.read(last) {
        let bytes = disk.read(&read.file, read.offset, read.len).expect("a read");
        let (group, _, payload) = wal.parse(last, &bytes).expect("the last record is there");
        assert_eq!((group, &payload[..]), (GroupId(7), &[2; 300][..]));
    }
    for _ in 0..64 {
        let Some(part) = wal.next_check(16 << 10) else { break };
        check(disk, &part).expect("a disk in memory is read");
    }
    let mut after = Vec::new();
    let again = Wal::recover(disk, options(), &mut |found| after.push(found));
    // With right checksums the parts of a log may contradict each other in any way.
    if sealed {
        return;
    }
    again.expect("a log that was opened and written is opened again");
    let kept = |found: &&Recovered| matches!(found, Recovered::Record(_));
    let mut again = after.iter().filter(kept);
    for found in before.iter().filter(kept) {
        assert!(again.any(|other| other == found), "a record that was read is lost");
    }
    assert_eq!(again.count(), 3, "what was appended is there, and nothing else");
}

fn settle(wal: &mut Wal, disk: &mut MemoryDisk) {
    loop {
        let commands = wal.seal();
        if commands.is_empty() {
            return;
        }
        let (background, foreground): (Vec<_>, Vec<_>) =
            commands.into_iter().partition(WalCommand::is_background);
        if let Some(ticket) = execute(disk, &foreground).expect("a disk in memory") {
            wal.done(ticket);
        }
        if let Some(ticket) = execute(disk, &background).expect("a disk in memory") {
            wal.prepared(ticket);
        }
    }
}

fn seal_superblock(bytes: &mut [u8]) {
    for copy in bytes.chunks_exact_mut(PAGE) {
        let crc = crc32fast::hash(&copy[12..]);
        copy[8..12].copy_from_slice(&crc.to_le_bytes());
    }
}

fn number(bytes: &[u8], at: usize) -> usize {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    field.map_or(0, u32::from_le_bytes) as usize
}

/// Makes the checksums of a file's headers and blocks right.
fn reseal(file: &mut [u8]) {
    let len = file.len();
    for copy in [0, 2048] {
        if let Some(header) = file.get_mut(copy..copy + 512) {
            let crc = crc32fast::hash(&header[12..]);
            header[8..12].copy_from_slice(&crc.to_le_bytes());
        }
    }
    for at in (PAGE..len).step_by(PAGE) {
        if file[at..].starts_with(b"DecrBlk\0") {
            let pages = number(file, at + 68).clamp(1, (len - at) / PAGE);
            block(&mut file[at..at + pages * PAGE]);
        }
    }
}

/// A block's rows, payloads, head, copy and foot.
fn block(bytes: &mut [u8]) {
    let mut salt = Hasher::new();
    salt.update(&DISK.0.to_le_bytes());
    salt.update(&bytes[16..24]);
    let salt = salt.finalize();
    let crc_of = |parts: &[&[u8]]| {
        let mut hasher = Hasher::new_with_initial(salt);
        parts.iter().for_each(|part| hasher.update(part));
        hasher.finalize().to_le_bytes()
    };
    let crc = crc_of(&[&bytes[12..80]]);
    bytes[8..12].copy_from_slice(&crc);
    let first = bytes.get(56..64).and_then(|field| field.try_into().ok());
    let first = first.map_or(0, u64::from_le_bytes);
    let records = number(bytes, 64).min(64) as u64;
    let mut rows: Vec<u8> = bytes[..80].to_vec();
    let mut at = 80;
    for record in 0..records {
        let Some(row) = bytes.get(at..at + 32) else { break };
        let (row_end, payload_len) = (at + 32 + usize::from(row[29]), number(row, 4));
        let end = row_end.saturating_add(payload_len);
        if end > bytes.len() {
            break;
        }
        let payload_crc = crc32fast::hash(&bytes[row_end..end]).to_le_bytes();
        bytes[at + 8..at + 12].copy_from_slice(&payload_crc);
        let lsn = first.wrapping_add(record).to_le_bytes();
        let crc = crc_of(&[&lsn, &bytes[at + 4..row_end]]);
        bytes[at..at + 4].copy_from_slice(&crc);
        rows.extend_from_slice(&bytes[at..row_end]);
        at = end;
    }
    let Some(copy_at) = bytes.len().checked_sub(16 + rows.len()).filter(|copy| *copy >= at) else {
        return;
    };
    let foot_at = bytes.len() - 16;
    bytes[copy_at..foot_at].copy_from_slice(&rows);
    let crc = crc_of(&[&rows]);
    bytes[foot_at..foot_at + 4].copy_from_slice(&(rows.len() as u32).to_le_bytes());
    bytes[foot_at + 4..foot_at + 8].copy_from_slice(&crc);
    bytes[foot_at + 8..].copy_from_slice(b"DecrEnd\0");
}

/// For the corpus: the content of a disk, without what is zero.
pub(crate) fn dump(disk: &mut MemoryDisk, name: &str) -> Vec<(u32, Vec<u8>)> {
    let len = disk.len(name).unwrap_or_default();
    let bytes: Bytes = disk.read(name, 0, len as usize).expect("a disk in memory");
    let mut found = Vec::new();
    for (page, content) in bytes.chunks(512).enumerate() {
        let Some(end) = content.iter().rposition(|byte| *byte != 0) else { continue };
        let start = content.iter().position(|byte| *byte != 0).unwrap_or_default();
        found.push(((page * 512 + start) as u32, content[start..=end].to_vec()));
    }
    found
}
