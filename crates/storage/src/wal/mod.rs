//! The write-ahead log: what is appended, when it goes to the disk, and when its files are free
//! again.

mod block;
mod command;
mod error;
pub(crate) mod format;
mod header;
mod options;
mod recovery;
mod release;
mod salvage;
mod scrub;
mod segment;
mod stock;
mod survey;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::limits::WAL_IDENTITY_BYTES_MAX;
use base::mutant::{self, Mutant};
use base::{GroupId, Lsn};
use bytes::Bytes;

use self::block::OpenBlock;
use self::format::{PAGE, Position, Salt};
use self::header::Header;
use self::release::{Need, State};
use self::scrub::Scrub;
use self::segment::Segment;
use self::stock::Needed;
pub use command::{WalCommand, WalRead, WalTicket, execute};
pub use error::{ReadError, WalError};
pub use options::{Identity, Recovered, RecoveredRecord, RecoveryReport, WalOptions, WalStats};
pub use scrub::{WalCheck, WalChecked, check};

/// The write-ahead log of a node, over all its groups.
///
/// Records are appended to a block in memory; [`Wal::seal`] sends blocks to the disk, by commands
/// that the driver carries out; [`Wal::done`] learns that they are durable. Nothing here waits.
///
/// Invariants:
/// - Records have consecutive numbers, and so have blocks.
/// - `synced` <= `written` <= what is appended; each only grows.
/// - A segment leaves the front only when no group needs a record of it, and its file is used
///   again only after a durable block said that it left.
#[derive(Debug)]
pub struct Wal {
    options: WalOptions,
    report: RecoveryReport,
    /// All segments that are needed, oldest first; the last is being written.
    segments: VecDeque<Segment>,
    /// Files of segments that are not needed any more: segment, file, length. They are free once
    /// a durable block says so.
    leaving: VecDeque<(u64, String, u64)>,
    /// Files ready for use.
    spare: VecDeque<String>,
    /// Files to be removed.
    surplus: Vec<String>,
    /// How many segments there were lately: so many files are kept.
    needed: Needed,
    /// Background commands under way; with the file, where that is being created.
    background: VecDeque<(WalTicket, Option<String>)>,
    /// A file that could not be created. While there is one, no other is tried.
    failed: Option<String>,
    /// A file could not be created, and none was since.
    lacking: bool,
    /// What was handed out waits for room on the disk.
    no_room: bool,
    /// A file that could not be created, and is to be tried once more.
    retry: Option<String>,
    /// Blocks not yet sent to the disk, and never empty ones.
    pending: VecDeque<OpenBlock>,
    /// What was sent to the disk and is not known to be durable, oldest first.
    flights: VecDeque<Flight>,
    /// Number of the next record.
    lsn_next: Lsn,
    /// The last block sent to the disk.
    written: Position,
    /// The last block known to be durable.
    synced: Position,
    /// The last block with a record in it that was sent to the disk.
    written_record_block: u64,
    /// The last block that a later one on the disk is known to vouch for.
    covered_block: u64,
    segment_next: u64,
    file_next: u64,
    ticket_last: WalTicket,
    background_last: WalTicket,
    /// The lowest record that a group needs, its state apart, in so far as this rests on what is
    /// durable; groups that have not said so need all.
    keep: BTreeMap<GroupId, Lsn>,
    /// The same, as said last. States appended since know of it.
    said: BTreeMap<GroupId, Lsn>,
    /// What groups said while records were not durable, on which it may rest: what was appended
    /// last at that time, and what was said.
    deferred: VecDeque<(Lsn, Need)>,
    /// The last record that restates a group's state.
    states: BTreeMap<GroupId, State>,
    /// The last record of a group.
    last: BTreeMap<GroupId, Lsn>,
    /// A group that needs a record of the oldest segment: found once, asked first.
    pin: Option<GroupId>,
    /// Groups that are to restate their state.
    wanted: BTreeSet<GroupId>,
    /// Length of the last block, a guess at that of the next.
    block_bytes: usize,
    blocks_written: u64,
    bytes_written: u64,
    flights_done: u64,
    scrub: Scrub,
}

/// Blocks that become durable together.
#[derive(Debug)]
struct Flight {
    ticket: WalTicket,
    written: Position,
    /// The segments below this number are not needed, these blocks say.
    oldest: u64,
}

impl Wal {
    /// Number of the next record.
    pub fn next_lsn(&self) -> Lsn {
        self.lsn_next
    }

    /// The last record that is durable; zero where none is.
    pub fn synced(&self) -> Lsn {
        self.synced.lsn
    }

    /// Whether everything appended is durable.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty() && self.flights.is_empty()
    }

    /// What was found at the start.
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// Appends a record of at most [`WAL_IDENTITY_BYTES_MAX`] bytes of identity; `payload` adds its
    /// bytes to the end of what it is given and touches nothing else. `state` marks a record that
    /// restates all that the group must not forget, so that no earlier record is needed for that.
    pub fn append(
        &mut self,
        group: GroupId,
        identity: &[u8],
        state: bool,
        payload: &mut dyn FnMut(&mut Vec<u8>),
    ) -> Lsn {
        assert!(identity.len() <= WAL_IDENTITY_BYTES_MAX, "an identity of {}", identity.len());
        let lsn = self.lsn_next;
        let block_max = self.options.block_bytes_max();
        if self.pending.back().is_none_or(|block| block.len() >= block_max) {
            self.pending.push_back(OpenBlock::new(lsn, self.block_bytes));
        }
        let previous = self.last.insert(group, lsn).unwrap_or_default();
        if let Some(block) = self.pending.back_mut() {
            block.append(group, previous, identity, state, payload);
        }
        if state {
            let covers = self.said.get(&group).copied().unwrap_or_default();
            self.states.insert(group, State { lsn, covers });
            self.wanted.remove(&group);
        }
        self.lsn_next = lsn.next();
        lsn
    }

    /// What is to be done to the disk now: called at the end of each turn, and after
    /// [`Wal::done`]. Sends what is pending, unless so many blocks are under way that waiting
    /// for one of them makes fewer and larger ones.
    pub fn seal(&mut self) -> Vec<WalCommand> {
        let mut commands = Vec::new();
        self.tend_files(&mut commands);
        if !self.pending.is_empty() && self.flights.len() < self.options.in_flight_max {
            self.advance();
            let ticket = self.ticket();
            while let Some(block) = self.pending.pop_front() {
                self.place(block, ticket, &mut commands);
            }
            self.launch(ticket);
        }
        commands
    }

    /// The log has fallen idle, or the node is about to stop: where the last block with records
    /// is durable and nothing says so behind it, an empty block does. Otherwise damage to it could
    /// not be told from a write that was cut off. Nobody needs to wait for it, but its ticket is
    /// reported like any other. Empty while anything is under way.
    pub fn idle(&mut self) -> Vec<WalCommand> {
        let mut commands = Vec::new();
        if self.is_quiet() && self.covered_block < self.written_record_block {
            self.advance();
            let ticket = self.ticket();
            self.place(OpenBlock::new(self.lsn_next, PAGE), ticket, &mut commands);
            self.launch(ticket);
        }
        commands
    }

    /// All commands of the foreground through this ticket are durable. Returns [`Wal::synced`].
    pub fn done(&mut self, ticket: WalTicket) -> Lsn {
        assert!(
            ticket <= self.ticket_last,
            "{ticket:?} is done, the last was {:?}",
            self.ticket_last
        );
        while let Some(flight) = self.flights.pop_front_if(|flight| flight.ticket <= ticket) {
            self.synced = flight.written;
            self.flights_done += 1;
            let early = mutant::is(Mutant::SegmentReusedEarly);
            let is_free =
                |(segment, ..): &mut (u64, String, u64)| *segment < flight.oldest || early;
            while let Some((_, file, len)) = self.leaving.pop_front_if(is_free) {
                self.free(file, len);
            }
        }
        let synced = self.synced.lsn;
        while let Some((_, need)) = self.deferred.pop_front_if(|(lsn, _)| *lsn <= synced) {
            self.count_need(need);
        }
        self.advance();
        synced
    }

    /// All commands of the background through this ticket were carried out.
    pub fn prepared(&mut self, ticket: WalTicket) {
        self.assert_background(ticket);
        while let Some((_, file)) = self.background.pop_front_if(|(t, _)| *t <= ticket) {
            self.lacking &= file.is_none();
            self.spare.extend(file);
        }
    }

    /// Of the commands of the background through this ticket, some failed: most likely the disk
    /// is full. The log is full until a try after [`Wal::retry_preparation`] succeeds; what is
    /// pending still fits into the present segment, in most cases.
    pub fn preparation_failed(&mut self, ticket: WalTicket) {
        self.assert_background(ticket);
        while let Some((_, file)) = self.background.pop_front_if(|(t, _)| *t <= ticket) {
            self.lacking |= file.is_some();
            self.failed = self.failed.take().or(file);
        }
    }

    /// Lets the next [`Wal::seal`] try again what [`Wal::preparation_failed`] was about; to be
    /// called from time to time while that is so.
    pub fn retry_preparation(&mut self) {
        self.retry = self.failed.take().or(self.retry.take());
    }

    /// Where an old record lies. None for a record that is not durable yet, which the caller has
    /// in memory, and for one that the log has let go of.
    pub fn read(&self, lsn: Lsn) -> Option<WalRead> {
        if lsn > self.synced.lsn {
            return None;
        }
        let segment = self.segment_of(lsn)?;
        let (offset, len) = segment.record(lsn)?;
        Some(WalRead { file: segment.file.clone(), offset, len, lsn })
    }

    /// The record in the bytes that a [`Wal::read`] of it led to. The payload shares them.
    pub fn parse(&self, lsn: Lsn, bytes: &Bytes) -> Result<(GroupId, Identity, Bytes), ReadError> {
        let segment = self.segment_of(lsn).ok_or(ReadError::Gone)?;
        let salt = Salt::new(self.options.disk_id, segment.number);
        let (row, payload) = block::record(bytes, lsn, salt).ok_or(ReadError::Damaged)?;
        Ok((row.group, row.identity, payload))
    }

    /// Whether the log has so little room left that new requests of clients are to be refused. The
    /// room left, two segments, is for promises and states, and for what is under way.
    pub fn is_full(&self) -> bool {
        self.is_out_of_disk() || !self.has_room_for(2 * self.options.segment_bytes)
    }

    /// Whether even what others have proposed is to be refused: the room left, one segment, is for
    /// promises and states. The segment before it is for values that were accepted already and
    /// come once more, from a new leader: without them nothing would be chosen that frees the log.
    pub fn is_overfull(&self) -> bool {
        self.is_out_of_disk() || !self.has_room_for(self.options.segment_bytes)
    }

    fn has_room_for(&self, bytes: u64) -> bool {
        self.bytes_live() + self.bytes_pending() + bytes <= self.options.bytes_max
    }

    /// Whether the disk had no room for another segment: what does not fit into the present one
    /// waits until there is some.
    pub fn is_out_of_disk(&self) -> bool {
        self.no_room || self.lacking && self.spare.is_empty()
    }

    /// The disk has no room for what was handed out, here or in the store, or has some again.
    pub fn set_no_room(&mut self, no_room: bool) {
        self.no_room = no_room;
    }

    /// Figures.
    pub fn stats(&self) -> WalStats {
        WalStats {
            segments: self.segments.len(),
            segments_spare: self.spare.len(),
            bytes_live: self.bytes_live(),
            bytes_pending: self.bytes_pending(),
            in_flight: self.flights.len(),
            blocks_written: self.blocks_written,
            bytes_written: self.bytes_written,
            flights_done: self.flights_done,
        }
    }

    fn bytes_live(&self) -> u64 {
        let full = self.segments.iter().rev().skip(1).map(|segment| segment.len).sum::<u64>();
        full + self.segments.back().map_or(0, |segment| segment.used)
    }

    fn bytes_pending(&self) -> u64 {
        self.pending.iter().map(|block| block.len() as u64).sum()
    }

    fn segment_of(&self, lsn: Lsn) -> Option<&Segment> {
        let behind = self.segments.partition_point(|segment| segment.first_lsn <= lsn);
        let segment = self.segments.get(behind.checked_sub(1)?)?;
        (lsn < segment.next_lsn()).then_some(segment)
    }

    fn ticket(&mut self) -> WalTicket {
        self.ticket_last.0 += 1;
        self.ticket_last
    }

    fn background_ticket(&mut self) -> WalTicket {
        self.background_last.0 += 1;
        self.background_last
    }

    fn assert_background(&self, ticket: WalTicket) {
        let last = self.background_last;
        assert!(ticket <= last, "{ticket:?} of the background is done, the last was {last:?}");
    }

    fn current(&mut self) -> &mut Segment {
        match self.segments.back_mut() {
            Some(segment) => segment,
            None => unreachable!("recovery opens a segment, and the last one is never let go"),
        }
    }

    /// Writes a block behind the last one.
    fn place(&mut self, block: OpenBlock, ticket: WalTicket, commands: &mut Vec<WalCommand>) {
        let len = block.len() as u64;
        let current = self.current();
        if current.len - current.used < len {
            self.open_segment(len, ticket, commands);
        }
        let (synced, oldest) = (self.synced, self.oldest());
        let number = self.written.block + 1;
        let disk_id = self.options.disk_id;
        let records = block.records();
        let segment = self.current();
        let offset = segment.used;
        segment.add(&block, number);
        let salt = Salt::new(disk_id, segment.number);
        let file = segment.file.clone();
        let bytes = block.seal(salt, segment.number, number, synced, oldest);
        self.written = Position { block: number, lsn: Lsn(self.written.lsn.0 + records) };
        if records > 0 {
            self.written_record_block = number;
            self.block_bytes = bytes.len();
        }
        self.covered_block = synced.block;
        self.blocks_written += 1;
        self.bytes_written += len;
        commands.push(WalCommand::Write { ticket, file, offset, bytes });
    }

    fn launch(&mut self, ticket: WalTicket) {
        let oldest = self.oldest();
        self.flights.push_back(Flight { ticket, written: self.written, oldest });
    }

    /// Goes on in a new segment with room for a block of `len` bytes.
    fn open_segment(&mut self, len: u64, ticket: WalTicket, commands: &mut Vec<WalCommand>) {
        let needed = PAGE as u64 + len;
        let usual = self.options.segment_bytes;
        let spare = if needed > usual { None } else { self.spare.pop_front() };
        let (file, len) = spare.map_or_else(
            || {
                let (file, len) = (self.new_file(), needed.max(self.stopgap_bytes()));
                let made = file.clone();
                commands.push(WalCommand::Create { ticket, file: made, len, background: false });
                (file, len)
            },
            |file| (file, usual),
        );
        let continues = self.current().number;
        let header = Header {
            disk_id: self.options.disk_id,
            segment: self.segment_next,
            oldest: self.oldest(),
            continues,
            end: self.written,
            synced: self.synced,
        };
        self.segment_next += 1;
        let segment = Segment::new(&header, file.clone(), len);
        self.segments.push_back(segment);
        self.needed.note(self.segments.len());
        let bytes = Bytes::from(header.encode());
        commands.push(WalCommand::Write { ticket, file, offset: 0, bytes });
    }

    fn new_file(&mut self) -> String {
        let file = recovery::file_name(self.file_next);
        self.file_next += 1;
        file
    }

    /// The lowest segment that is needed.
    fn oldest(&self) -> u64 {
        self.segments.front().map_or(0, |segment| segment.number)
    }
}
