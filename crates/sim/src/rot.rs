//! Damage to the log of a node: bits that flip, and pages that are lost.

use base::{GroupId, Lsn, Random};
use bytes::Bytes;
use storage::{MemoryDisk, Recovered, RecoveredRecord, Wal, WalOptions, WalRead};

/// Size of a page.
const PAGE: u64 = 4 << 10;
/// Bytes of a record's row without its identity.
const ROW_BYTES: u64 = 32;

/// A record of a log, and where it lies.
#[derive(Clone, Debug)]
pub struct LogRecord {
    /// Its number.
    pub lsn: Lsn,
    /// Its group.
    pub group: GroupId,
    /// What names it within the group.
    pub identity: Bytes,
    /// Its content.
    pub payload: Bytes,
    /// Where it lies.
    pub read: WalRead,
}

/// The records of a log that can be read, and to which damage would be noticed: what nothing on
/// the disk knows to be durable yet is left out, as its rot cannot be told from a write that was
/// cut off (`docs/paxos.md` 11.3).
pub fn records(disk: &MemoryDisk, options: WalOptions) -> Vec<LogRecord> {
    let mut found: Vec<RecoveredRecord> = Vec::new();
    let mut copy = disk.durable();
    let recovered = Wal::recover(&mut copy, options, &mut |record| match record {
        Recovered::Record(record) => found.push(record),
        Recovered::Damaged { .. } | Recovered::Lost { .. } => {}
    });
    let Ok(wal) = recovered else { return Vec::new() };
    let vouched = wal.report().vouched;
    let noticed = found.into_iter().filter(|record| record.lsn <= vouched);
    noticed
        .filter_map(|record| {
            Some(LogRecord {
                lsn: record.lsn,
                group: record.group,
                identity: Bytes::copy_from_slice(&record.identity),
                payload: record.payload,
                read: wal.read(record.lsn)?,
            })
        })
        .collect()
}

/// Damages some record; says what was done.
pub fn damage_log(
    disk: &mut MemoryDisk,
    options: WalOptions,
    page: bool,
    random: &mut Random,
) -> String {
    let records = records(disk, options);
    let Some(record) = random.pick(&records) else { return "nothing to damage".to_owned() };
    damage_record(disk, record, page, random);
    let what = if page { "a page" } else { "some bits" };
    let WalRead { file, offset, lsn, .. } = &record.read;
    format!("{what} of {file} at byte {offset}, {lsn} of {}", record.group)
}

/// Flips a few bits of a record, or takes the page in which it begins.
fn damage_record(disk: &mut MemoryDisk, record: &LogRecord, page: bool, random: &mut Random) {
    let read = &record.read;
    // What is known to hold it reaches into the next block, which may be the one to be spared.
    let len = ROW_BYTES + record.identity.len() as u64 + record.payload.len() as u64;
    if page {
        disk.spoil(&read.file, read.offset / PAGE * PAGE, PAGE as usize, random);
        return;
    }
    for _ in 0..random.between(1, 3) {
        let at = read.offset + random.below(len);
        disk.flip(&read.file, at, 1 << random.below(8));
    }
}
