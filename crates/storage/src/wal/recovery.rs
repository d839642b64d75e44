//! Reading the log at the start: what of it stands, what was never promised, and what is damaged.
//!
//! Segments form a chain: the header of each names the last block of the one before. Reading goes
//! along the chain, from the oldest segment that is needed, through blocks that are intact and
//! have consecutive numbers, as far as that goes. Behind the end, everything that can still be
//! made out, headers and heads and feet of blocks, is asked what it knew to be durable when it was
//! made. If any of it knew a block that was not read, something durable is damaged: as much as
//! possible is made out of that (`salvage.rs`), and reading goes on behind it. Where not even its
//! extent can be known, because files are missing, the log does not open. Otherwise nothing behind
//! the end was ever vouched for: it is dropped, by a new segment whose header goes on from the last
//! block that was read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use base::mutant::{self, Mutant};
use base::{GroupId, Lsn};
use bytes::Bytes;

use super::block::{Block, HEAD_BYTES, Head, Row};
use super::format::{PAGE, Position, Salt};
use super::header::{Header, HeaderError, VERSION};
use super::salvage::Holes;
use super::scrub::Scrub;
use super::segment::Segment;
use super::stock::{Needed, SPARE_MAX};
use super::survey::{Mark, Window, read, survey};
use super::{
    Recovered, RecoveredRecord, RecoveryReport, State, Wal, WalError, WalOptions, WalTicket,
};
use crate::Disk;

const PREFIX: &str = "wal-";

/// The name of a file of the log.
pub(crate) fn file_name(number: u64) -> String {
    format!("{PREFIX}{number:06}")
}

fn file_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix(PREFIX)?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

impl Wal {
    /// Opens the log of a disk, or makes it. Hands each record to `each`, in order; where the
    /// result is an error, what was handed over is void. When it returns, everything handed over
    /// is durable, whatever state the process or the machine was left in before, and whatever is
    /// not is gone for good.
    pub fn recover(
        disk: &mut dyn Disk,
        options: WalOptions,
        each: &mut dyn FnMut(Recovered),
    ) -> Result<Wal, WalError> {
        if let Err(what) = options.validate() {
            panic!("the options of the write-ahead log were not validated: {what}");
        }
        let files = find_files(disk, &options)?;
        let mut recovery = Recovery {
            options,
            files,
            marks: Vec::new(),
            segments: VecDeque::new(),
            end: Position::default(),
            oldest_durable: 0,
            states: BTreeMap::new(),
            last: BTreeMap::new(),
            vouched: None,
            holes: Holes::default(),
            report: RecoveryReport::default(),
        };
        let chain = recovery.find_chain(disk)?;
        recovery.read_chain(disk, &chain, each)?;
        recovery.open(disk)
    }
}

/// A file of the log.
pub(super) struct Found {
    pub(super) name: String,
    number: u64,
    len: u64,
    pub(super) header: Option<Header>,
}

pub(super) struct Recovery {
    pub(super) options: WalOptions,
    pub(super) files: Vec<Found>,
    /// What was found of blocks of the newest segment, and of any later one; behind damage, of all
    /// segments that follow.
    pub(super) marks: Vec<Mark>,
    pub(super) segments: VecDeque<Segment>,
    /// The last block that was read.
    pub(super) end: Position,
    /// Segments below this number are not needed, a block that was read says.
    pub(super) oldest_durable: u64,
    pub(super) states: BTreeMap<GroupId, State>,
    pub(super) last: BTreeMap<GroupId, Lsn>,
    /// The last block that anything behind the first damage knew to be durable.
    pub(super) vouched: Option<Position>,
    pub(super) holes: Holes,
    pub(super) report: RecoveryReport,
}

fn find_files(disk: &mut dyn Disk, options: &WalOptions) -> Result<Vec<Found>, WalError> {
    let names = disk
        .list()
        .map_err(|source| WalError::Io { doing: "listing the files".to_owned(), source })?;
    let mut files: Vec<Found> = Vec::new();
    for name in names {
        let Some(number) = file_number(&name) else { continue };
        let len = disk
            .len(&name)
            .map_err(|source| WalError::Io { doing: format!("looking at {name}"), source })?;
        let header = match Header::decode(&read(disk, &name, 0, PAGE)?) {
            Ok(header) => Some(header),
            Err(HeaderError::Unreadable) => None,
            Err(HeaderError::Version(found)) => {
                return Err(WalError::Version { file: name, found, expected: VERSION });
            }
        };
        if let Some(header) = &header {
            if header.disk_id != options.disk_id {
                let (found, expected) = (header.disk_id, options.disk_id);
                return Err(WalError::OtherDisk { file: name, found, expected });
            }
            let twin = files.iter().find(|file| {
                file.header.as_ref().is_some_and(|twin| twin.segment == header.segment)
            });
            if let Some(twin) = twin {
                let what = format!(
                    "it claims to be segment {}, and so does {}",
                    header.segment, twin.name
                );
                return Err(WalError::Corrupt {
                    file: name,
                    offset: 0,
                    lsn: header.end.lsn.next(),
                    what,
                });
            }
        }
        files.push(Found { name, number, len, header });
    }
    files.sort_by_key(|file| file.number);
    Ok(files)
}

impl Recovery {
    pub(super) fn headers(&self) -> impl Iterator<Item = (&Found, &Header)> {
        self.files.iter().filter_map(|file| file.header.as_ref().map(|header| (file, header)))
    }

    pub(super) fn file_of(&self, segment: u64) -> Option<(&Found, &Header)> {
        self.headers().find(|(_, header)| header.segment == segment)
    }

    pub(super) fn segment_max(&self) -> u64 {
        self.headers().map(|(_, header)| header.segment).max().unwrap_or(0)
    }

    /// The segments to be read, in order. What a block claims not to be needed counts even if the
    /// block itself did not become durable: the claim was true when it was made, and files are
    /// used again only after such claims. So those have to be known before a header is missed.
    fn find_chain(&mut self, disk: &mut dyn Disk) -> Result<Vec<u64>, WalError> {
        let mut surveyed = BTreeSet::new();
        loop {
            let newest = self.segment_max();
            let headers = self.headers().map(|(_, header)| header.oldest);
            let marks = self.marks.iter().map(|mark| mark.head.oldest);
            let oldest = headers.chain(marks).max().unwrap_or(0);
            let chain = self.chain(newest, oldest);
            let outside = self.files.iter().find(|file| {
                let segment = file.header.as_ref().map_or(0, |header| header.segment);
                let inside = segment != newest && chain.contains(&segment);
                !inside && !surveyed.contains(&file.number)
            });
            let Some(file) = outside else {
                if self.restore_header(&chain) {
                    continue;
                }
                return Ok(chain);
            };
            surveyed.insert(file.number);
            // What a file without a header was is known only by its blocks, however old.
            let segment_min = if file.header.is_some() { newest.max(1) } else { 1 };
            let name = file.name.clone();
            let marks = survey(disk, self.options.disk_id, &name, PAGE as u64, segment_min)?;
            self.marks.extend(marks);
        }
    }

    /// The newest unbroken chain of headers, from the oldest segment that is needed. Where one is
    /// missing, all behind it is left out, to be judged like everything else that was not read.
    pub(super) fn chain(&self, newest: u64, oldest: u64) -> Vec<u64> {
        let mut chain = Vec::new();
        let mut at = newest;
        let mut cut = oldest.min(newest);
        while at > 0 && at >= cut {
            match self.file_of(at) {
                Some((_, header)) => {
                    chain.push(at);
                    at = header.continues;
                }
                None => {
                    chain.clear();
                    let lower = self.headers().map(|(_, header)| header.segment);
                    at = lower.filter(|segment| *segment < at).max().unwrap_or(0);
                    cut = oldest.min(at);
                }
            }
        }
        chain.reverse();
        chain
    }

    fn read_chain(
        &mut self,
        disk: &mut dyn Disk,
        chain: &[u64],
        each: &mut dyn FnMut(Recovered),
    ) -> Result<(), WalError> {
        let first = chain.first().and_then(|segment| self.file_of(*segment));
        if let Some((_, header)) = first {
            self.end = header.end;
        }
        for (i, segment) in chain.iter().enumerate() {
            let Some((file, header)) = self.file_of(*segment) else { continue };
            let (file, len, header) = (file.name.clone(), file.len, header.clone());
            let next = chain.get(i + 1).and_then(|next| self.file_of(*next));
            let end = next.map(|(_, header)| header.end);
            self.oldest_durable = self.oldest_durable.max(header.oldest);
            self.report.vouched = self.report.vouched.max(header.synced.lsn);
            self.segments.push_back(Segment::new(&header, file, len));
            self.read_segment(disk, &chain[i..], end, each)?;
            if end.is_some_and(|end| end != self.end) {
                break;
            }
        }
        self.judge(disk, chain)
    }

    /// Reads the blocks of the last segment, through the one where the next segment goes on.
    fn read_segment(
        &mut self,
        disk: &mut dyn Disk,
        chain: &[u64],
        end: Option<Position>,
        each: &mut dyn FnMut(Recovered),
    ) -> Result<(), WalError> {
        let mut window = Window::default();
        while end.is_none_or(|end| self.end.block < end.block) {
            match self.next_block(disk, &mut window)? {
                Some(block) => self.take_block(block, each),
                None if self.is_vouched_for(disk, chain)? => {
                    if !self.salvage(disk, end, each)? {
                        break;
                    }
                }
                None => break,
            }
        }
        Ok(())
    }

    /// The next block of the last segment, if it is intact.
    fn next_block(
        &self,
        disk: &mut dyn Disk,
        window: &mut Window,
    ) -> Result<Option<Block>, WalError> {
        let Some(segment) = self.segments.back() else { return Ok(None) };
        let salt = Salt::new(self.options.disk_id, segment.number);
        let at = segment.used;
        let bytes = window.read(disk, &segment.file, at, HEAD_BYTES)?;
        let Some(head) = Head::decode(&bytes, |_| salt) else { return Ok(None) };
        let follows = head.segment == segment.number
            && head.block == self.end.block + 1
            && head.first_lsn == self.end.lsn.next();
        if !follows || head.len() as u64 > segment.len.saturating_sub(at) {
            return Ok(None);
        }
        let bytes = window.read(disk, &segment.file, at, head.len())?;
        Ok(Block::decode(head, &bytes, salt))
    }

    fn take_block(&mut self, block: Block, each: &mut dyn FnMut(Recovered)) {
        let Some(segment) = self.segments.back_mut() else { return };
        segment.add_read(&block);
        self.end = Position { block: block.head.block, lsn: block.head.last_lsn() };
        self.oldest_durable = self.oldest_durable.max(block.head.oldest);
        self.report.bytes += block.head.len() as u64;
        self.report.vouched = self.report.vouched.max(block.head.synced.lsn);
        for (i, (_, row, payload)) in block.records.into_iter().enumerate() {
            let lsn = Lsn(block.head.first_lsn.0 + i as u64);
            self.take_record(lsn, row, Some(payload), each);
        }
    }

    pub(super) fn take_record(
        &mut self,
        lsn: Lsn,
        row: Row,
        payload: Option<Bytes>,
        each: &mut dyn FnMut(Recovered),
    ) {
        self.holes.meet(lsn, row.group, row.previous);
        self.last.insert(row.group, lsn);
        let Row { group, identity, state, .. } = row;
        let Some(payload) = payload else {
            return each(Recovered::Damaged { lsn, group, identity, state });
        };
        if state {
            // What it knows to be gone is not known here: it covers nothing.
            self.states.insert(group, State { lsn, covers: Lsn::ZERO });
        }
        self.report.records += 1;
        each(Recovered::Record(RecoveredRecord { lsn, group, identity, state, payload }));
    }

    /// Decides about everything behind the last block that was read.
    fn judge(&mut self, disk: &mut dyn Disk, chain: &[u64]) -> Result<(), WalError> {
        let newest = self.segment_max();
        let (segment, offset, file) = match self.segments.back() {
            Some(segment) => (segment.number, segment.used, segment.file.clone()),
            None => (0, 0, String::new()),
        };
        if segment > 0 && segment < newest {
            let rest = survey(disk, self.options.disk_id, &file, offset, segment)?;
            self.marks.extend(rest.into_iter().filter(|mark| mark.head.segment == segment));
        }
        let later = self.marks.iter().filter(|mark| {
            mark.head.segment > segment
                || (mark.head.segment == segment && mark.file == file && mark.offset >= offset)
        });
        let marks = later.map(|mark| (&mark.file, mark.offset, &mark.head));
        let marks = marks.map(|(file, offset, head)| (file, offset, head.segment, head.synced));
        let headers = self.headers().filter(|(_, header)| header.segment > segment);
        let headers = headers.map(|(file, header)| (&file.name, 0, header.segment, header.synced));
        let behind: Vec<_> = headers.chain(marks).collect();
        let witness = behind.iter().find(|(.., synced)| synced.block > self.end.block);
        let witness = witness.filter(|_| !mutant::is(Mutant::DamageTakenForTail));
        if let Some((by, at, witness, synced)) = witness {
            let is_listed = chain.iter().any(|number| *number > segment) || *witness == segment;
            let missing = if is_listed {
                "the block there cannot be read".to_owned()
            } else {
                self.missing_header()
            };
            let what = format!(
                "{missing}, but {by} at byte {at} shows that the log was durable through record {}",
                synced.lsn.0
            );
            let file = if segment == 0 { (*by).clone() } else { file };
            return Err(WalError::Corrupt { file, offset, lsn: self.end.lsn.next(), what });
        }
        if !behind.is_empty() {
            let lsn = self.end.lsn.next();
            self.report.dropped = Some(format!(
                "what was written behind byte {offset} of {file}, from record {} on, had not \
                 become durable when the node stopped",
                lsn.0
            ));
        }
        self.report.segments = self.segments.len();
        self.report.doubted = self.holes.doubted(self.last.keys().copied());
        self.report.lost = self.holes.is_any();
        Ok(())
    }

    fn missing_header(&self) -> String {
        let unreadable = self.files.iter().filter(|file| file.header.is_none());
        let names: Vec<&str> = unreadable.map(|file| file.name.as_str()).collect();
        let place = match names.len() {
            0 => "its file is missing".to_owned(),
            _ => format!("it may be that of {}", names.join(" or ")),
        };
        format!("the header of the segment behind this place cannot be read ({place})")
    }

    /// Makes durable what was read, and begins a new segment behind it.
    fn open(mut self, disk: &mut dyn Disk) -> Result<Wal, WalError> {
        for segment in &self.segments {
            disk.sync(&segment.file).map_err(|source| WalError::Io {
                doing: format!("syncing {}", segment.file),
                source,
            })?;
        }
        let number =
            self.marks.iter().map(|mark| mark.head.segment).fold(self.segment_max(), u64::max) + 1;
        let oldest = self.segments.front().map_or(number, |segment| segment.number);
        let continues = self.segments.back().map_or(0, |segment| segment.number);
        let disk_id = self.options.disk_id;
        let (end, synced) = (self.end, self.end);
        let header = Header { disk_id, segment: number, oldest, continues, end, synced };
        let mut free = self.free_files(continues);
        let mut file_next = self.files.last().map_or(1, |file| file.number + 1);
        let usable = free.iter().position(|(_, usable)| *usable);
        let file = match usable {
            Some(i) => free.remove(i).0,
            None => {
                file_next += 1;
                file_name(file_next - 1)
            }
        };
        let len = self.options.segment_bytes;
        write_header(disk, &file, usable.is_none().then_some(len), &header)
            .map_err(|source| WalError::Io { doing: format!("beginning {file}"), source })?;
        self.segments.push_back(Segment::new(&header, file, len));
        let (spare, surplus) = self.sort_out(free);
        Ok(self.into_wal(number + 1, file_next, spare, surplus))
    }

    /// The files in which nothing is needed, each with whether it may be used again before the new
    /// header is durable: a durable claim, or none, must stand behind that.
    fn free_files(&self, last: u64) -> Vec<(String, bool)> {
        let needed = |file: &Found| self.segments.iter().any(|segment| segment.file == file.name);
        let free = self.files.iter().filter(|file| !needed(file));
        free.map(|file| {
            let segment = file.header.as_ref().map(|header| header.segment);
            let useless = segment.is_none_or(|s| s < self.oldest_durable || s > last);
            (file.name.clone(), useless && file.len == self.options.segment_bytes)
        })
        .collect()
    }

    /// Divides free files into those to be used again and those to be removed.
    fn sort_out(&self, free: Vec<(String, bool)>) -> (VecDeque<String>, Vec<String>) {
        let mut spare = VecDeque::new();
        let mut surplus = Vec::new();
        for (file, _) in free {
            let found = self.files.iter().find(|found| found.name == file);
            let fits = found.is_some_and(|found| found.len == self.options.segment_bytes);
            if fits && spare.len() < SPARE_MAX {
                spare.push_back(file);
            } else {
                surplus.push(file);
            }
        }
        (spare, surplus)
    }

    fn into_wal(
        self,
        segment_next: u64,
        file_next: u64,
        spare: VecDeque<String>,
        surplus: Vec<String>,
    ) -> Wal {
        Wal {
            options: self.options,
            report: self.report,
            segments: self.segments,
            leaving: VecDeque::new(),
            spare,
            surplus,
            needed: Needed::default(),
            background: VecDeque::new(),
            failed: None,
            lacking: false,
            no_room: false,
            retry: None,
            pending: VecDeque::new(),
            flights: VecDeque::new(),
            lsn_next: self.end.lsn.next(),
            written: self.end,
            synced: self.end,
            written_record_block: self.end.block,
            // The new header vouches for it.
            covered_block: self.end.block,
            segment_next,
            file_next,
            ticket_last: WalTicket(0),
            background_last: WalTicket(0),
            keep: BTreeMap::new(),
            said: BTreeMap::new(),
            deferred: VecDeque::new(),
            states: self.states,
            last: self.last,
            pin: None,
            wanted: BTreeSet::new(),
            block_bytes: 4 * PAGE,
            blocks_written: 0,
            bytes_written: 0,
            flights_done: 0,
            scrub: Scrub::default(),
        }
    }
}

fn write_header(
    disk: &mut dyn Disk,
    file: &str,
    create: Option<u64>,
    header: &Header,
) -> io::Result<()> {
    if let Some(len) = create {
        disk.create(file, len)?;
    }
    disk.write(file, 0, &Bytes::from(header.encode()))?;
    disk.sync(file)
}
