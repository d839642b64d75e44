//! The threads that wait for disks, so that the turn never does.
//!
//! | thread | does | one at a time because |
//! |---|---|---|
//! | `wal` | writes and syncs the log's blocks | they are in order; all that queued share a sync |
//! | `wal-segments` | prepares and removes files of the log | takes long, delays no block |
//! | `wal-reads` | reads old records back | must not wait behind a segment being written |
//! | `flush` | writes batches to the engine | the engine has one writer |
//! | `scrub` | reads both to look for damage, renews the store | has time |
//!
//! Each takes jobs from a queue and reports to the turn. The queues have no bound of their own:
//! the machine asks for a bounded number of things at a time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as jobs;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replica_group::turn::{Check, Checked, Place, check};
use storage::{Disk, Engine, EngineError, Flush, FlushId, WalCommand, WalRead, WalTicket};
use tokio::sync::mpsc;

use crate::background::give_way;
use crate::disk::FileDisk;
use crate::engine::is_full;
use crate::event_loop::RunError;
use crate::stats::Stats;

/// Work that found no room on the disk is tried again after this time.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// A thread's report to the turn.
#[derive(Debug)]
pub(crate) enum Done {
    Wal(WalTicket),
    Prepared(WalTicket),
    /// Some command of the background through this ticket failed.
    PreparationFailed(WalTicket, String),
    Read {
        read: WalRead,
        bytes: Result<Bytes, String>,
    },
    Flushed(FlushId),
    /// Damage keeps the store from being kept in order.
    StoreStuck(String),
    /// The disk has no room for this work, and why, or has some again.
    NoRoom(Place, Option<String>),
    /// A part of the disk was read to look for damage.
    Checked(Check, Result<Checked, String>),
    /// The process must end.
    Failed(RunError),
}

/// The threads and their queues.
pub(crate) struct Workers {
    wal: jobs::Sender<Vec<WalCommand>>,
    segments: jobs::Sender<Vec<WalCommand>>,
    reads: jobs::Sender<WalRead>,
    flushes: jobs::Sender<Flush>,
    checks: jobs::Sender<Check>,
    threads: Vec<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
}

type Reports = mpsc::UnboundedSender<Done>;

impl Workers {
    pub(crate) fn start(
        disk: FileDisk,
        engine: Arc<dyn Engine>,
        stats: Arc<Stats>,
    ) -> io::Result<(Workers, mpsc::UnboundedReceiver<Done>)> {
        let (reports, receiver) = mpsc::unbounded_channel();
        let mut threads = Vec::new();
        let stopping = Arc::new(AtomicBool::new(false));
        let wal = {
            let (mut disk, stats, stopping) = (disk.clone(), stats.clone(), stopping.clone());
            spawn("wal", &reports, &mut threads, move |jobs, reports| {
                write_log(&mut disk, jobs, reports, &stats, &stopping)
            })?
        };
        let segments = {
            let mut disk = disk.clone();
            spawn("wal-segments", &reports, &mut threads, move |jobs, reports| {
                prepare_segments(&mut disk, jobs, reports)
            })?
        };
        let checks = {
            let (mut disk, engine) = (disk.clone(), engine.clone());
            spawn("scrub", &reports, &mut threads, move |jobs: &jobs::Receiver<Check>, reports| {
                while let Ok(part) = jobs.recv() {
                    let result = check(&mut disk, &*engine, &part);
                    let _ = reports.send(Done::Checked(part, result));
                }
                Ok(())
            })?
        };
        let reads = {
            let (mut disk, stats) = (disk, stats.clone());
            spawn("wal-reads", &reports, &mut threads, move |jobs, reports| {
                read_records(&mut disk, jobs, reports, &stats)
            })?
        };
        let flushes = {
            let stopping = stopping.clone();
            spawn("flush", &reports, &mut threads, move |jobs, reports| {
                flush(&*engine, jobs, reports, &stats, &stopping)
            })?
        };
        Ok((Workers { wal, segments, reads, flushes, checks, threads, stopping }, receiver))
    }

    // A queue is closed only after its thread reported a failure or a panic, which the turn meets
    // next; so what cannot be handed over needs no report of its own.

    /// Hands over commands of both orders, each to its own thread.
    pub(crate) fn write(&self, commands: Vec<WalCommand>) {
        let (background, foreground): (Vec<_>, Vec<_>) =
            commands.into_iter().partition(WalCommand::is_background);
        if !foreground.is_empty() {
            let _ = self.wal.send(foreground);
        }
        if !background.is_empty() {
            let _ = self.segments.send(background);
        }
    }

    pub(crate) fn read(&self, read: WalRead) {
        let _ = self.reads.send(read);
    }

    pub(crate) fn flush(&self, flush: Flush) {
        let _ = self.flushes.send(flush);
    }

    pub(crate) fn check(&self, check: Check) {
        let _ = self.checks.send(check);
    }

    /// From now on work that waits for room on the disk fails instead.
    pub(crate) fn stop_waiting(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Lets each thread finish what it has and waits for it.
    pub(crate) fn join(self) {
        let Workers { wal, segments, reads, flushes, checks, threads, stopping: _ } = self;
        drop((wal, segments, reads, flushes, checks));
        for thread in threads {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn spawn<J: Send + 'static>(
    name: &'static str,
    reports: &Reports,
    threads: &mut Vec<JoinHandle<()>>,
    work: impl FnOnce(&jobs::Receiver<J>, &Reports) -> Result<(), RunError> + Send + 'static,
) -> io::Result<jobs::Sender<J>> {
    let (sender, receiver) = jobs::channel();
    let reports = reports.clone();
    threads.push(thread::Builder::new().name(name.to_string()).spawn(move || {
        let watch = PanicWatch { name, reports: reports.clone() };
        if let Err(error) = work(&receiver, &reports) {
            let _ = reports.send(Done::Failed(error));
        }
        drop(watch);
    })?);
    Ok(sender)
}

/// Tells the turn of a panic, which would else only look like a slow disk.
struct PanicWatch {
    name: &'static str,
    reports: Reports,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.reports.send(Done::Failed(RunError::Panicked { thread: self.name }));
        }
    }
}

/// Tries something again until the disk has room for it.
fn with_room<T, E>(
    place: Place,
    reports: &Reports,
    stopping: &AtomicBool,
    mut attempt: impl FnMut() -> Result<T, E>,
    no_room: impl Fn(&E) -> Option<String>,
) -> Result<T, E> {
    let mut said = false;
    loop {
        let result = attempt();
        let why = result.as_ref().err().and_then(&no_room);
        match why {
            Some(why) if !stopping.load(Ordering::Relaxed) => {
                if !said {
                    let _ = reports.send(Done::NoRoom(place, Some(why)));
                    said = true;
                }
                thread::sleep(TRY_AGAIN);
            }
            Some(_) | None => {
                if said && result.is_ok() {
                    let _ = reports.send(Done::NoRoom(place, None));
                }
                return result;
            }
        }
    }
}

fn write_log(
    disk: &mut FileDisk,
    jobs: &jobs::Receiver<Vec<WalCommand>>,
    reports: &Reports,
    stats: &Stats,
    stopping: &AtomicBool,
) -> Result<(), RunError> {
    while let Ok(mut commands) = jobs.recv() {
        // What queued while the last sync ran shares the next.
        commands.extend(jobs.try_iter().flatten());
        let start = Instant::now();
        let no_room = |error: &io::Error| is_full(error).then(|| error.to_string());
        let attempt = || storage::execute(disk, &commands);
        let ticket = with_room(Place::Log, reports, stopping, attempt, no_room);
        let ticket = ticket.map_err(RunError::wal)?;
        let (syncs, bytes) = disk.written();
        stats.wal_batches.add(1);
        stats.wal_syncs.set(syncs);
        stats.wal_bytes.set(bytes);
        stats.wal_batch_micros_max.raise(start.elapsed().as_micros() as u64);
        if let Some(ticket) = ticket {
            let _ = reports.send(Done::Wal(ticket));
        }
    }
    Ok(())
}

fn prepare_segments(
    disk: &mut FileDisk,
    jobs: &jobs::Receiver<Vec<WalCommand>>,
    reports: &Reports,
) -> Result<(), RunError> {
    // It gives way to nobody: the log stands still when it goes on faster than this.
    while let Ok(commands) = jobs.recv() {
        let Some(last) = commands.last().map(WalCommand::ticket) else { continue };
        let _ = reports.send(match storage::execute(disk, &commands) {
            Ok(_) => Done::Prepared(last),
            // Nothing that was acknowledged rests on a file that is only being made.
            Err(error) => Done::PreparationFailed(last, error.to_string()),
        });
    }
    Ok(())
}

fn read_records(
    disk: &mut FileDisk,
    jobs: &jobs::Receiver<WalRead>,
    reports: &Reports,
    stats: &Stats,
) -> Result<(), RunError> {
    while let Ok(read) = jobs.recv() {
        let bytes = disk.read(&read.file, read.offset, read.len).map_err(|error| error.to_string());
        stats.wal_reads.add(1);
        let _ = reports.send(Done::Read { read, bytes });
    }
    Ok(())
}

fn flush(
    engine: &dyn Engine,
    jobs: &jobs::Receiver<Flush>,
    reports: &Reports,
    stats: &Stats,
    stopping: &AtomicBool,
) -> Result<(), RunError> {
    give_way();
    let mut stuck = None;
    while let Ok(Flush { id, batch }) = jobs.recv() {
        let no_room = |error: &EngineError| error.may_end().then(|| error.to_string());
        let attempt = || {
            let written = engine.write(&batch);
            let before = std::mem::replace(&mut stuck, engine.stuck());
            if let Some(error) = stuck.as_ref().filter(|_| stuck != before) {
                let _ = reports.send(Done::StoreStuck(error.to_string()));
            }
            written
        };
        let written = with_room(Place::Store, reports, stopping, attempt, no_room);
        written.map_err(RunError::Engine)?;
        let bytes = batch.changes.iter().map(|(key, value)| {
            key.len() as u64 + value.as_ref().map_or(0, |value| value.len() as u64)
        });
        stats.flushes.add(1);
        stats.flush_bytes.add(bytes.sum());
        let _ = reports.send(Done::Flushed(id));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use storage::{Batch, ScanLimit};

    use super::*;
    use crate::data_dir::DataDir;

    struct Broken;

    impl Engine for Broken {
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
            Ok(None)
        }

        fn scan(
            &self,
            _: &[u8],
            _: &[u8],
            _: ScanLimit,
        ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
            Ok(Vec::new())
        }

        fn write(&self, _: &Batch) -> Result<(), EngineError> {
            panic!("this panic belongs to a test")
        }

        fn view(&self) -> storage::View {
            storage::MemoryEngine::new().view()
        }

        fn stuck(&self) -> Option<EngineError> {
            None
        }

        fn renew(&self, _: &storage::Renewal) -> Result<storage::Renewed, EngineError> {
            Ok(storage::Renewed::Begun)
        }
    }

    #[test]
    fn a_thread_that_panics_is_reported_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DataDir::open(dir.path()).unwrap().disk().unwrap();
        let (workers, mut done) = Workers::start(disk, Arc::new(Broken), Arc::default()).unwrap();
        workers.flush(Flush { id: FlushId(1), batch: Arc::default() });
        let report = done.blocking_recv().unwrap();
        assert!(matches!(report, Done::Failed(RunError::Panicked { thread: "flush" })));
        workers.join();
    }
}
