//! The virtual disk of one node: a write-ahead log's disk and an engine whose work is done late,
//! in order, and out of step with other nodes; and what a crash leaves of it.
//!
//! As in the runtime, one batch of log commands is carried out at a time, and what is submitted
//! meanwhile makes the next one. A batch takes effect when it is done. A crash before that leaves
//! any part of it: commands that were carried out, the last perhaps half, none of them synced.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use base::{Micros, Random};
use bytes::Bytes;
use replica_group::turn::{Check, Checked, Place, check};
use storage::{
    Disk, Engine, Flush, MemoryDisk, MemoryEngine, Renewal, WalCommand, WalRead, execute,
};

use crate::points::CrashPoint;

/// How long the disk takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// The shortest sync.
    pub sync_min: Micros,
    /// The longest ordinary sync.
    pub sync_max: Micros,
    /// Of 10,000 syncs so many stall.
    pub stalled: u64,
    /// The longest stalled sync.
    pub stall_max: Micros,
    /// The longest flush of the store.
    pub flush_max: Micros,
    /// Whether a crash may tear sectors.
    pub tear: bool,
}

impl DiskOptions {
    /// A good disk.
    pub fn calm() -> DiskOptions {
        DiskOptions {
            sync_min: Micros(200),
            sync_max: Micros(1_000),
            stalled: 0,
            stall_max: Micros(0),
            flush_max: Micros(20_000),
            tear: false,
        }
    }
}

/// Work that found no room on the disk is tried again after this time.
const TRY_AGAIN: Micros = Micros::from_millis(100);

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: what it wrote, the disk still has, synced or not.
    Kill,
    /// The machine loses power: what was not synced is lost, kept or torn.
    Power,
}

/// The queues of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Log commands of the foreground.
    Foreground,
    /// Log commands of the background.
    Background,
    /// Reads of old log records.
    Read,
    /// Flushes into the engine.
    Flush,
    /// Looking for damage.
    Check,
}

/// What was done.
#[derive(Debug)]
pub enum Done {
    /// The foreground's commands, through the ticket of the last.
    Wal(storage::WalTicket),
    /// The background's commands, through the ticket of the last.
    Prepared(storage::WalTicket),
    /// There was no room for the foreground's commands, or for a flush; it is tried again.
    NoRoom(Place, String),
    /// The background's commands could not all be carried out: why.
    NotPrepared(storage::WalTicket, String),
    /// A read.
    Read(WalRead, Result<Bytes, String>),
    /// A look for damage.
    Checked(Check, Result<Checked, String>),
    /// A flush.
    Flushed(storage::FlushId),
    /// A flush, which found that the store wants to be renewed, and why.
    FlushedStuck(storage::FlushId, String),
}

/// The disk and the engine of one node, and the work under way.
#[derive(Debug)]
pub struct NodeDisk {
    /// The log's disk.
    pub disk: MemoryDisk,
    /// The store's engine.
    pub engine: Arc<MemoryEngine>,
    options: DiskOptions,
    random: Random,
    foreground: Lane,
    background: Lane,
    reads: VecDeque<WalRead>,
    flush: Option<Flush>,
    checks: VecDeque<Check>,
    /// What waits for room.
    no_room: BTreeSet<Place>,
    /// What got some, and nobody asked yet.
    room: BTreeSet<Place>,
}

#[derive(Debug, Default)]
struct Lane {
    /// What is being carried out.
    busy: Vec<WalCommand>,
    waiting: Vec<WalCommand>,
}

impl NodeDisk {
    /// A blank one.
    pub fn new(random: Random, options: DiskOptions) -> NodeDisk {
        NodeDisk {
            disk: MemoryDisk::new(),
            engine: Arc::new(MemoryEngine::new()),
            options,
            random,
            foreground: Lane::default(),
            background: Lane::default(),
            reads: VecDeque::new(),
            flush: None,
            checks: VecDeque::new(),
            no_room: BTreeSet::new(),
            room: BTreeSet::new(),
        }
    }

    /// Other speeds from now on.
    pub fn set_options(&mut self, options: DiskOptions) {
        self.options = options;
    }

    /// Takes log commands; `start` is called with each lane that begins to work, and how long it
    /// will take.
    pub fn submit(&mut self, commands: Vec<WalCommand>, start: &mut dyn FnMut(Work, Micros)) {
        for command in commands {
            let lane =
                if command.is_background() { &mut self.background } else { &mut self.foreground };
            lane.waiting.push(command);
        }
        for work in [Work::Foreground, Work::Background] {
            self.next_batch(work, start);
        }
    }

    fn next_batch(&mut self, work: Work, start: &mut dyn FnMut(Work, Micros)) {
        let lane = match work {
            Work::Foreground => &mut self.foreground,
            Work::Background => &mut self.background,
            Work::Read | Work::Flush | Work::Check => return,
        };
        if lane.busy.is_empty() && !lane.waiting.is_empty() {
            std::mem::swap(&mut lane.busy, &mut lane.waiting);
            let span = self.sync_span();
            start(work, span);
        }
    }

    fn sync_span(&mut self) -> Micros {
        let DiskOptions { sync_min, sync_max, stalled, stall_max, .. } = self.options;
        if self.random.chance(stalled, 10_000) {
            return Micros(self.random.between(sync_min.0, stall_max.0.max(sync_min.0)));
        }
        Micros(self.random.between(sync_min.0, sync_max.0))
    }

    /// Takes a read of the log.
    pub fn read(&mut self, read: WalRead, start: &mut dyn FnMut(Work, Micros)) {
        self.reads.push_back(read);
        start(Work::Read, Micros(self.random.between(50, 2_000)));
    }

    /// Takes a flush.
    pub fn flush(&mut self, flush: Flush, start: &mut dyn FnMut(Work, Micros)) {
        assert!(self.flush.is_none(), "a flush is handed out before the last one is done");
        self.flush = Some(flush);
        start(Work::Flush, Micros(self.random.between(100, self.options.flush_max.0.max(100))));
    }

    /// Takes a part to be looked at for damage.
    pub fn check(&mut self, check: Check, start: &mut dyn FnMut(Work, Micros)) {
        self.checks.push_back(check);
        start(Work::Check, Micros(self.random.between(100, 20_000)));
    }

    /// Time is up for work of this kind. An error is the disk's; the process must end.
    pub fn done(
        &mut self,
        work: Work,
        start: &mut dyn FnMut(Work, Micros),
    ) -> Result<Option<Done>, String> {
        let done = match work {
            Work::Foreground => {
                let batch = std::mem::take(&mut self.foreground.busy);
                match execute(&mut self.disk, &batch) {
                    Ok(ticket) => {
                        self.found_room(Place::Log);
                        ticket.map(Done::Wal)
                    }
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        self.foreground.busy = batch;
                        self.no_room.insert(Place::Log);
                        start(work, TRY_AGAIN);
                        return Ok(Some(Done::NoRoom(Place::Log, error.to_string())));
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
            Work::Background => {
                let batch = std::mem::take(&mut self.background.busy);
                match execute(&mut self.disk, &batch) {
                    Ok(ticket) => ticket.map(Done::Prepared),
                    // Nothing lives in the background's files: not the end of the process.
                    Err(error) => {
                        batch.last().map(|last| Done::NotPrepared(last.ticket(), error.to_string()))
                    }
                }
            }
            Work::Check => self.checks.pop_front().map(|part| {
                let result = check(&mut self.disk, &*self.engine, &part);
                Done::Checked(part, result)
            }),
            Work::Read => self.reads.pop_front().map(|read| {
                let bytes = self
                    .disk
                    .read(&read.file, read.offset, read.len)
                    .map_err(|error| error.to_string());
                Done::Read(read, bytes)
            }),
            // The store shares the disk with the log, and a flush takes room whatever is in it.
            Work::Flush if self.flush.is_some() && self.disk.is_full() => {
                self.no_room.insert(Place::Store);
                start(work, TRY_AGAIN);
                return Ok(Some(Done::NoRoom(Place::Store, "no space left on device".to_owned())));
            }
            Work::Flush => match self.flush.take() {
                Some(flush) => {
                    self.found_room(Place::Store);
                    self.engine.write(&flush.batch).map_err(|error| error.to_string())?;
                    Some(match self.engine.stuck() {
                        Some(error) => Done::FlushedStuck(flush.id, error.to_string()),
                        None => Done::Flushed(flush.id),
                    })
                }
                None => None,
            },
        };
        self.next_batch(work, start);
        Ok(done)
    }

    /// Whether this work, whose time is up, passes a point of the disk: then it is done up to there,
    /// and the rest never is.
    pub(crate) fn stops_at(&mut self, work: Work, point: CrashPoint) -> bool {
        match work {
            Work::Foreground | Work::Background => self.stops_log_at(work, point),
            Work::Flush => {
                let Some(flush) = self.flush.take_if(|_| is_flush(point)) else { return false };
                if point == CrashPoint::AfterFlush {
                    let _ = self.engine.write(&flush.batch);
                }
                true
            }
            Work::Check => {
                let meant = matches!(point, CrashPoint::BeforeRenew | CrashPoint::AfterRenew);
                if !meant || !matches!(self.checks.front(), Some(Check::Renew(_))) {
                    return false;
                }
                let part = self.checks.pop_front().filter(|_| point == CrashPoint::AfterRenew);
                if let Some(part) = part {
                    let _ = check(&mut self.disk, &*self.engine, &part);
                }
                true
            }
            Work::Read => false,
        }
    }

    fn stops_log_at(&mut self, work: Work, point: CrashPoint) -> bool {
        let lane =
            if work == Work::Background { &mut self.background } else { &mut self.foreground };
        let meant = |command: &WalCommand| match command {
            WalCommand::Create { .. } => {
                matches!(point, CrashPoint::BeforeCreate | CrashPoint::AfterCreate)
            }
            WalCommand::Write { .. } => matches!(
                point,
                CrashPoint::BeforeWrite
                    | CrashPoint::AfterWrite
                    | CrashPoint::BeforeSync
                    | CrashPoint::AfterSync
            ),
            WalCommand::Remove { .. } => {
                matches!(point, CrashPoint::BeforeRemove | CrashPoint::AfterRemove)
            }
        };
        let places: Vec<usize> = (0..lane.busy.len()).filter(|at| meant(&lane.busy[*at])).collect();
        let Some(place) = self.random.pick(&places).copied() else { return false };
        let batch = std::mem::take(lane).busy;
        // Whatever fails on the way, the process ends here.
        let _ = match point {
            CrashPoint::AfterSync => execute(&mut self.disk, &batch),
            CrashPoint::BeforeSync => execute(&mut Unsynced(&mut self.disk), &batch),
            CrashPoint::AfterWrite | CrashPoint::AfterCreate | CrashPoint::AfterRemove => {
                execute(&mut Unsynced(&mut self.disk), &batch[..=place])
            }
            CrashPoint::BeforeWrite | CrashPoint::BeforeCreate | CrashPoint::BeforeRemove => {
                execute(&mut Unsynced(&mut self.disk), &batch[..place])
            }
            CrashPoint::BeforeInput
            | CrashPoint::AfterApply
            | CrashPoint::BeforeSend
            | CrashPoint::BetweenSends
            | CrashPoint::AfterSend
            | CrashPoint::BeforeAnswer
            | CrashPoint::AfterAnswer
            | CrashPoint::BeforeFlush
            | CrashPoint::AfterFlush
            | CrashPoint::BeforeRenew
            | CrashPoint::AfterRenew => unreachable!("{point:?} is no point of the log's disk"),
        };
        true
    }

    fn found_room(&mut self, place: Place) {
        if self.no_room.remove(&place) {
            self.room.insert(place);
        }
    }

    /// For what there is room again that had to wait, since this was last asked.
    pub fn take_room(&mut self) -> BTreeSet<Place> {
        std::mem::take(&mut self.room)
    }

    /// The process or the machine ends; all work under way is dropped, any part of it done.
    pub fn crash(&mut self, crash: Crash) {
        for lane in [&mut self.foreground, &mut self.background] {
            let batch = std::mem::take(lane).busy;
            let through = self.random.below(batch.len() as u64 + 1) as usize;
            // The last possibility is that all was done, and only the word of it was lost.
            let whole = self.random.chance(1, 4);
            if whole {
                let _ = execute(&mut self.disk, &batch);
            } else {
                let _ = execute(&mut Unsynced(&mut self.disk), &batch[..through]);
            }
        }
        self.reads.clear();
        if let Some(part @ Check::Renew(_)) = self.checks.front()
            && self.random.chance(1, 2)
        {
            let _ = check(&mut self.disk, &*self.engine, part);
        }
        self.checks.clear();
        self.no_room.clear();
        self.room.clear();
        if let Some(flush) = self.flush.take()
            && self.random.chance(1, 2)
        {
            let _ = self.engine.write(&flush.batch);
        }
        // What was written anew counts only once it is complete.
        let _ = self.engine.renew(&Renewal::GiveUp);
        match crash {
            Crash::Kill => {}
            Crash::Power => self.disk.crash(&mut self.random, self.options.tear),
        }
    }
}

fn is_flush(point: CrashPoint) -> bool {
    matches!(point, CrashPoint::BeforeFlush | CrashPoint::AfterFlush)
}

/// A disk whose syncs have no effect.
struct Unsynced<'a>(&'a mut MemoryDisk);

impl Disk for Unsynced<'_> {
    fn list(&mut self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn len(&mut self, file: &str) -> io::Result<u64> {
        self.0.len(file)
    }

    fn read(&mut self, file: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        self.0.read(file, offset, len)
    }

    fn create(&mut self, file: &str, len: u64) -> io::Result<()> {
        self.0.create(file, len)
    }

    fn write(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(file, offset, bytes)
    }

    fn sync(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        self.0.remove(file)
    }
}

#[cfg(test)]
mod tests {
    use storage::WalTicket;

    use super::*;

    fn block(ticket: u64) -> WalCommand {
        WalCommand::Write {
            ticket: WalTicket(ticket),
            file: "wal".to_owned(),
            offset: (ticket - 1) * 4096,
            bytes: Bytes::from(vec![ticket as u8; 4096]),
        }
    }

    fn content(disk: &mut NodeDisk, ticket: u64) -> Bytes {
        disk.disk.read("wal", (ticket - 1) * 4096, 4096).unwrap()
    }

    #[test]
    fn what_waits_during_a_sync_makes_the_next_batch() {
        let mut disk = NodeDisk::new(Random::new(1), DiskOptions::calm());
        disk.disk.create("wal", 16 * 4096).unwrap();
        let mut started = Vec::new();
        let mut start = |work, _| started.push(work);
        disk.submit(vec![block(1)], &mut start);
        disk.submit(vec![block(2)], &mut start);
        disk.submit(vec![block(3)], &mut start);
        let done = disk.done(Work::Foreground, &mut start).unwrap();
        assert!(matches!(done, Some(Done::Wal(WalTicket(1)))), "{done:?}");
        let done = disk.done(Work::Foreground, &mut start).unwrap();
        assert!(matches!(done, Some(Done::Wal(WalTicket(3)))), "{done:?}");
        assert_eq!(started, [Work::Foreground; 2]);
        assert!(!disk.disk.is_dirty());
    }

    #[test]
    fn a_loss_of_power_keeps_what_was_synced_and_any_part_of_the_rest() {
        let mut seen = [0; 3];
        for seed in 0..200 {
            let mut disk = NodeDisk::new(Random::new(seed), DiskOptions::calm());
            disk.disk.create("wal", 16 * 4096).unwrap();
            disk.submit(vec![block(1)], &mut |_, _| {});
            disk.done(Work::Foreground, &mut |_, _| {}).unwrap();
            disk.submit(vec![block(2)], &mut |_, _| {});
            disk.crash(Crash::Power);
            assert_eq!(content(&mut disk, 1), [1; 4096][..]);
            let second = content(&mut disk, 2);
            let kept = second.iter().filter(|byte| **byte == 2).count();
            seen[match kept {
                0 => 0,
                4096 => 1,
                _ => 2,
            }] += 1;
            assert!(!disk.disk.is_dirty());
        }
        assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
    }
}
