//! A segment in memory: which file it is in, and where its records lie.

use std::collections::BTreeMap;

use base::{GroupId, Lsn};

use super::block::{Block, Head, OpenBlock, Remains};
use super::format::{PAGE, Position};
use super::header::Header;

/// Stands for the place of a record of which nothing could be made out.
const LOST: u32 = u32::MAX;

/// One use of a file of the log.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Which use, over all files, from 1.
    pub(crate) number: u64,
    pub(crate) file: String,
    /// Length of the file.
    pub(crate) len: u64,
    /// Where the next block goes.
    pub(crate) used: u64,
    /// Number of its first record, if it has one.
    pub(crate) first_lsn: Lsn,
    /// Its last block, or the one before the segment where it has none.
    pub(crate) last_block: u64,
    /// Where its records lie in the file: four bytes for each are all the memory that an old
    /// record takes.
    offsets: Vec<u32>,
    /// The groups of its records, each with its last one that does not restate its state; zero
    /// where all do.
    pub(crate) groups: BTreeMap<GroupId, Lsn>,
}

impl Segment {
    /// A segment without blocks.
    pub(crate) fn new(header: &Header, file: String, len: u64) -> Segment {
        Segment {
            number: header.segment,
            file,
            len,
            used: PAGE as u64,
            first_lsn: header.end.lsn.next(),
            last_block: header.end.block,
            offsets: Vec::new(),
            groups: BTreeMap::new(),
        }
    }

    /// Adds a block that is about to be written.
    pub(crate) fn add(&mut self, block: &OpenBlock, number: u64) {
        let at = self.used;
        self.offsets.extend(block.rows().iter().map(|row| (at + *row as u64) as u32));
        for (group, last) in &block.groups {
            self.count(*group, *last);
        }
        self.used += block.len() as u64;
        self.last_block = number;
        assert!(self.used <= self.len, "{} of {} bytes of a segment", self.used, self.len);
    }

    /// Adds a block that was read.
    pub(crate) fn add_read(&mut self, block: &Block) {
        let at = self.used;
        for (i, (offset, row, _)) in block.records.iter().enumerate() {
            self.offsets.push((at + *offset as u64) as u32);
            let lsn = Lsn(block.head.first_lsn.0 + i as u64);
            self.count(row.group, if row.state { Lsn::ZERO } else { lsn });
        }
        self.used += block.head.len() as u64;
        self.last_block = block.head.block;
    }

    /// Adds what is left of a block that was found damaged.
    pub(crate) fn add_salvaged(&mut self, head: &Head, remains: &[Remains]) {
        let start = self.used;
        for (i, record) in remains.iter().enumerate() {
            self.offsets.push((start + record.at as u64) as u32);
            let lsn = Lsn(head.first_lsn.0 + i as u64);
            let state = record.row.state && record.payload.is_some();
            self.count(record.row.group, if state { Lsn::ZERO } else { lsn });
        }
        self.offsets.resize((head.last_lsn().0 + 1 - self.first_lsn.0) as usize, LOST);
        self.used += head.len() as u64;
        self.last_block = head.block;
    }

    /// Adds records of which nothing could be made out: those through `end`, which lie before
    /// `used`.
    pub(crate) fn add_lost(&mut self, end: Position, used: u64) {
        self.offsets.resize((end.lsn.0 + 1 - self.first_lsn.0) as usize, LOST);
        self.used = used;
        self.last_block = end.block;
    }

    fn count(&mut self, group: GroupId, lsn: Lsn) {
        let last = self.groups.entry(group).or_default();
        *last = lsn.max(*last);
    }

    /// Number of the first record behind it.
    pub(crate) fn next_lsn(&self) -> Lsn {
        Lsn(self.first_lsn.0 + self.offsets.len() as u64)
    }

    /// Number of its last record, or of the one before it where it has none.
    pub(crate) fn last_lsn(&self) -> Lsn {
        Lsn(self.next_lsn().0 - 1)
    }

    /// The first and the last record whose rows begin in this part of the file.
    pub(crate) fn records_within(&self, from: u64, to: u64) -> Option<(Lsn, Lsn)> {
        let within = |offset: &u32| *offset != LOST && (from..to).contains(&u64::from(*offset));
        let first = self.offsets.iter().position(within)?;
        let last = self.offsets.iter().rposition(within)?;
        Some((Lsn(self.first_lsn.0 + first as u64), Lsn(self.first_lsn.0 + last as u64)))
    }

    /// Where a record begins, and how many bytes hold it with certainty.
    pub(crate) fn record(&self, lsn: Lsn) -> Option<(u64, usize)> {
        let i = lsn.0.checked_sub(self.first_lsn.0)? as usize;
        let offset = *self.offsets.get(i)?;
        let next = self.offsets.get(i + 1).copied().filter(|next| *next != LOST);
        let end = next.map_or(self.used, u64::from);
        (offset != LOST).then(|| (u64::from(offset), (end - u64::from(offset)) as usize))
    }
}
