//! Reading the log again while nobody asks for it, to find damage before it is needed.

use std::collections::BTreeSet;
use std::io;

use base::{DiskId, Lsn};

use super::Wal;
use super::block::{Block, HEAD_BYTES, Head};
use super::format::{PAGE, Salt};
use crate::Disk;

/// A part of a file of the log that is to be read and checked, by [`check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalCheck {
    file: String,
    disk_id: DiskId,
    segment: u64,
    /// The place to begin at, where a block begins.
    from: u64,
    /// Where the last block to be checked ends.
    end: u64,
    /// About how much is to be read, in bytes.
    bytes: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalChecked {
    /// Where the next block begins.
    next: u64,
    /// What is damaged: from, to.
    damaged: Vec<(u64, u64)>,
}

/// How far checking has come.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// The segment, and where in it.
    at: (u64, u64),
    /// Places already told of: the segment, and where in it.
    told: BTreeSet<(u64, u64)>,
}

/// Reads a part of the log and checks every block in it.
pub fn check(disk: &mut dyn Disk, check: &WalCheck) -> io::Result<WalChecked> {
    let salt = Salt::new(check.disk_id, check.segment);
    let mut checked = WalChecked { next: check.from, damaged: Vec::new() };
    let stop = check.end.min(check.from.saturating_add(check.bytes.max(1)));
    while checked.next < stop {
        let at = checked.next;
        let found = head(disk, check, salt, at)?;
        let block = match found {
            Some(head) => {
                let bytes = disk.read(&check.file, at, head.len())?;
                let len = head.len() as u64;
                Block::decode(head, &bytes, salt).map(|_| len)
            }
            None => None,
        };
        if let Some(len) = block {
            checked.next = at + len;
            continue;
        }
        let mut next = at + PAGE as u64;
        while next < check.end && head(disk, check, salt, next)?.is_none() {
            next += PAGE as u64;
        }
        checked.next = next.min(check.end);
        checked.damaged.push((at, checked.next));
    }
    Ok(checked)
}

/// The head of a block of the segment at this place.
fn head(disk: &mut dyn Disk, check: &WalCheck, salt: Salt, at: u64) -> io::Result<Option<Head>> {
    let bytes = disk.read(&check.file, at, HEAD_BYTES)?;
    let head = Head::decode(&bytes, |_| salt);
    Ok(head.filter(|head| head.segment == check.segment && at + head.len() as u64 <= check.end))
}

impl Wal {
    /// The next part of the log to be checked, of about so many bytes. One after the other all
    /// durable blocks come round, and then the oldest again.
    pub fn next_check(&mut self, bytes: u64) -> Option<WalCheck> {
        let quiet = self.is_quiet();
        let newest = self.segments.back()?.number;
        let (segment, from) = self.scrub.at;
        let ready = self.segments.iter().filter(|s| s.number < newest || quiet);
        let ready: Vec<(u64, u64)> = ready.map(|s| (s.number, s.used)).collect();
        let first = PAGE as u64;
        let present = ready.iter().find(|(number, used)| *number == segment && from < *used);
        let (number, end, from) = match present {
            Some((number, end)) => (*number, *end, from.max(first)),
            None => {
                let mut rest = ready.iter().filter(|(_, used)| *used > first);
                let later = rest.clone().find(|(number, _)| *number > segment);
                let (number, end) = later.or_else(|| rest.next())?;
                (*number, *end, first)
            }
        };
        self.scrub.at = (number, from);
        let file = self.segments.iter().find(|s| s.number == number)?.file.clone();
        let disk_id = self.options.disk_id;
        Some(WalCheck { file, disk_id, segment: number, from, end, bytes })
    }

    /// Whether what a check reads is a part of the log still; its file may be gone or used again
    /// where it is not.
    pub fn is_present(&self, check: &WalCheck) -> bool {
        self.segments.iter().any(|segment| segment.number == check.segment)
    }

    /// Takes what a check found: returns how many bytes were read, and the records that are newly
    /// found damaged, the first and the last of each place.
    pub fn checked(&mut self, check: &WalCheck, checked: &WalChecked) -> (u64, Vec<(Lsn, Lsn)>) {
        self.scrub.at = (check.segment, checked.next);
        let oldest = self.oldest();
        self.scrub.told.retain(|(segment, _)| *segment >= oldest);
        let bytes = checked.next.saturating_sub(check.from);
        // It may have been let go of, and its file used again, while it was read.
        let Some(segment) = self.segments.iter().find(|s| s.number == check.segment) else {
            return (bytes, Vec::new());
        };
        let mut damaged = Vec::new();
        for (from, to) in &checked.damaged {
            if self.scrub.told.insert((check.segment, *from))
                && let Some(records) = segment.records_within(*from, *to)
            {
                damaged.push(records);
            }
        }
        (bytes, damaged)
    }
}
