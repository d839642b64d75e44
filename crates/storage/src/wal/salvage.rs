//! What had been durable and is damaged: how much of it can still be known (docs/paxos.md 11.3).
//!
//! A damaged block whose head can be read, at its beginning or at its end, says which records it
//! has, and most often each record's row can be read in one of its two places: then only payloads
//! are missing, and it is known whose and which. Where neither helps, some records are lost. How
//! many is known from what follows, and whose they may have been from the chain of each group's
//! records: a group whose next record goes on from one before the loss had none there.

use std::collections::BTreeSet;

use base::mutant::{self, Mutant};
use base::{GroupId, Lsn};

use super::block;
use super::format::{PAGE, Position, Salt};
use super::header::Header;
use super::recovery::Recovery;
use super::survey::{Mark, read, survey};
use super::{Recovered, WalError};
use crate::Disk;

/// Records of which nothing is known take at least so many bytes each.
const RECORD_BYTES_MIN: u64 = 32;

/// The records that were lost, and which groups had none among them.
#[derive(Debug, Default)]
pub(super) struct Holes {
    /// The first and the last record of each.
    holes: Vec<(Lsn, Lsn)>,
    /// Groups whose chain goes into a hole.
    touched: BTreeSet<GroupId>,
    /// Groups whose chain passes over a hole, by the hole's place in the list.
    passed: BTreeSet<(usize, GroupId)>,
}

impl Holes {
    /// A record behind the holes found so far, and the record of its group before it.
    pub(super) fn meet(&mut self, lsn: Lsn, group: GroupId, previous: Lsn) {
        for (i, (first, last)) in self.holes.iter().enumerate() {
            if previous < *first && lsn > *last {
                self.passed.insert((i, group));
            } else if previous <= *last {
                self.touched.insert(group);
            }
        }
    }

    /// Those of the groups that may have had a record in a hole.
    pub(super) fn doubted(&self, groups: impl Iterator<Item = GroupId>) -> BTreeSet<GroupId> {
        let untouched = |group: &GroupId| {
            let passed = (0..self.holes.len()).all(|i| self.passed.contains(&(i, *group)));
            passed && !self.touched.contains(group)
        };
        groups.filter(|group| !untouched(group)).collect()
    }

    pub(super) fn is_any(&self) -> bool {
        !self.holes.is_empty()
    }
}

impl Recovery {
    /// Whether something behind the place where reading stopped knew the next block to be durable.
    /// `chain` is the present segment and those that follow it.
    pub(super) fn is_vouched_for(
        &mut self,
        disk: &mut dyn Disk,
        chain: &[u64],
    ) -> Result<bool, WalError> {
        if mutant::is(Mutant::DamageTakenForTail) {
            return Ok(false);
        }
        if let Some(vouched) = self.vouched {
            return Ok(self.end.block < vouched.block);
        }
        let newest = self.segment_max();
        let offset = self.segments.back().map_or(PAGE as u64, |segment| segment.used);
        for (i, number) in chain.iter().enumerate().filter(|(_, number)| **number != newest) {
            let Some((file, _)) = self.file_of(*number) else { continue };
            let name = file.name.clone();
            let from = if i == 0 { offset } else { PAGE as u64 };
            let marks = survey(disk, self.options.disk_id, &name, from, *number)?;
            self.marks.extend(marks.into_iter().filter(|mark| mark.head.segment == *number));
        }
        let headers = self.headers().map(|(_, header)| header.synced);
        let marks = self.marks.iter().map(|mark| mark.head.synced);
        let vouched = headers.chain(marks).max_by_key(|position| position.block);
        let vouched = vouched.unwrap_or_default();
        self.vouched = Some(vouched);
        Ok(self.end.block < vouched.block)
    }

    /// Goes on behind the damaged place at which the present segment's reading stopped; false where
    /// what follows does not fit to what came before.
    pub(super) fn salvage(
        &mut self,
        disk: &mut dyn Disk,
        end: Option<Position>,
        each: &mut dyn FnMut(Recovered),
    ) -> Result<bool, WalError> {
        let Some(segment) = self.segments.back() else { return Ok(false) };
        let (at, len) = (segment.used, segment.len);
        let follows = |mark: &&Mark| {
            let before_end = end
                .is_none_or(|end| mark.head.block <= end.block && mark.head.last_lsn() <= end.lsn);
            mark.file == segment.file
                && mark.head.segment == segment.number
                && mark.offset >= at
                && mark.offset.saturating_add(mark.head.len() as u64) <= len
                && mark.head.block > self.end.block
                && mark.head.first_lsn > self.end.lsn
                && before_end
        };
        let next = self.marks.iter().filter(follows).min_by_key(|mark| mark.offset).cloned();
        match next {
            Some(mark) if mark.offset == at => self.salvage_block(disk, &mark, each),
            Some(mark) => {
                let before =
                    Position { block: mark.head.block - 1, lsn: Lsn(mark.head.first_lsn.0 - 1) };
                Ok(before.block > self.end.block && self.lose(before, mark.offset, each))
            }
            None => Ok(end.is_some_and(|end| self.lose(end, len, each))),
        }
    }

    /// Takes what is left of a block whose head, at least, was found.
    fn salvage_block(
        &mut self,
        disk: &mut dyn Disk,
        mark: &Mark,
        each: &mut dyn FnMut(Recovered),
    ) -> Result<bool, WalError> {
        let head = &mark.head;
        if head.block != self.end.block + 1 || head.first_lsn != self.end.lsn.next() {
            return Ok(false);
        }
        let bytes = read(disk, &mark.file, mark.offset, head.len())?;
        let salt = Salt::new(self.options.disk_id, head.segment);
        if u64::from(head.records) > bytes.len() as u64 / RECORD_BYTES_MIN {
            return Ok(false);
        }
        let remains = block::salvage(head, &bytes, salt);
        if let Some(segment) = self.segments.back_mut() {
            segment.add_salvaged(head, &remains);
        }
        self.end = Position { block: head.block, lsn: head.last_lsn() };
        self.oldest_durable = self.oldest_durable.max(head.oldest);
        self.report.bytes += bytes.len() as u64;
        let unreadable = remains.iter().filter(|record| record.payload.is_none()).count();
        let known = remains.len() as u64;
        let lost = u64::from(head.records) - known;
        self.report.damage.push(format!(
            "the block at byte {} of {}, records {} to {}, is damaged: {unreadable} of them cannot \
             be read, {lost} not even by name",
            mark.offset,
            mark.file,
            head.first_lsn.0,
            head.last_lsn().0
        ));
        for (i, record) in remains.into_iter().enumerate() {
            let lsn = Lsn(head.first_lsn.0 + i as u64);
            self.take_record(lsn, record.row, record.payload, each);
        }
        if lost > 0 {
            self.add_hole(Lsn(head.first_lsn.0 + known), head.last_lsn(), each);
        }
        Ok(true)
    }

    /// Gives up everything from the end of what was read through `end`, which lies before `used`.
    fn lose(&mut self, end: Position, used: u64, each: &mut dyn FnMut(Recovered)) -> bool {
        let Some(segment) = self.segments.back_mut() else { return false };
        let records = end.lsn.0.saturating_sub(self.end.lsn.0);
        let bytes = used.saturating_sub(segment.used);
        if end.lsn < self.end.lsn || records > bytes / RECORD_BYTES_MIN {
            return false;
        }
        self.report.damage.push(format!(
            "bytes {} to {used} of {} are damaged: records {} to {} are lost",
            segment.used,
            segment.file,
            self.end.lsn.0 + 1,
            end.lsn.0
        ));
        segment.add_lost(end, used);
        let first = self.end.lsn.next();
        self.end = end;
        if records > 0 {
            self.add_hole(first, end.lsn, each);
        }
        true
    }

    fn add_hole(&mut self, first: Lsn, last: Lsn, each: &mut dyn FnMut(Recovered)) {
        self.holes.holes.push((first, last));
        each(Recovered::Lost { first, last });
    }

    /// Makes the header of a segment anew from its blocks, where its own cannot be read and it is
    /// known that the segment was in use: something durable is in it. True where that was done.
    pub(super) fn restore_header(&mut self, chain: &[u64]) -> bool {
        let headers = self.headers().map(|(_, header)| header.synced.block);
        let marks = self.marks.iter().map(|mark| mark.head.synced.block);
        let vouched = headers.chain(marks).max().unwrap_or(0);
        let oldest = chain.first().copied().unwrap_or(0);
        let blank: Vec<&str> =
            self.files.iter().filter(|f| f.header.is_none()).map(|f| f.name.as_str()).collect();
        let first_block = |mark: &&Mark| {
            mark.offset == PAGE as u64
                && blank.contains(&mark.file.as_str())
                && mark.head.block <= vouched
                && self.file_of(mark.head.segment).is_none()
                && self.is_missed(mark.head.segment, oldest)
        };
        let Some(mark) = self.marks.iter().find(first_block).cloned() else { return false };
        let end = Position { block: mark.head.block - 1, lsn: Lsn(mark.head.first_lsn.0 - 1) };
        let earlier = self.headers().filter(|(_, header)| {
            header.segment < mark.head.segment && header.end.block <= end.block
        });
        let continues = earlier.map(|(_, header)| header.segment).max().unwrap_or(0);
        let header = Header {
            disk_id: self.options.disk_id,
            segment: mark.head.segment,
            oldest: mark.head.oldest,
            continues,
            end,
            synced: Position::default(),
        };
        let line = format!("the header of {} cannot be read: it is made anew", mark.file);
        self.report.damage.push(line);
        if let Some(file) = self.files.iter_mut().find(|file| file.name == mark.file) {
            file.header = Some(header);
        }
        true
    }

    /// Whether a segment of this number would be read if it had a header.
    fn is_missed(&self, segment: u64, oldest: u64) -> bool {
        let named = self.headers().any(|(_, header)| header.continues == segment);
        let needed = self.headers().map(|(_, header)| header.oldest).max().unwrap_or(0);
        segment >= needed && (named || segment > self.segment_max() || segment < oldest)
    }
}
