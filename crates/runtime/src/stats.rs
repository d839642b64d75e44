//! What the runtime counts, shared with whoever shows it.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one running node since its start. Cheap to bump from any thread.
#[derive(Debug, Default)]
pub struct Stats {
    pub(crate) turns: Counter,
    pub(crate) inputs: Counter,
    pub(crate) inputs_in_turn_max: Counter,
    pub(crate) turn_micros_max: Counter,
    pub(crate) requests: Counter,
    pub(crate) replies: Counter,
    pub(crate) replies_late: Counter,
    pub(crate) wal_batches: Counter,
    pub(crate) wal_syncs: Counter,
    pub(crate) wal_bytes: Counter,
    pub(crate) wal_batch_micros_max: Counter,
    pub(crate) wal_reads: Counter,
    pub(crate) flushes: Counter,
    pub(crate) flush_bytes: Counter,
    pub(crate) frames_sent: Counter,
    pub(crate) frame_bytes_sent: Counter,
    pub(crate) frames_dropped: Counter,
    pub(crate) frames_received: Counter,
    pub(crate) frame_bytes_received: Counter,
    pub(crate) peer_connections: Counter,
    pub(crate) peer_dials_failed: Counter,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Turns taken.
    pub turns: u64,
    /// Inputs handled; divided by `turns` it tells how much a turn shares.
    pub inputs: u64,
    /// Most inputs of one turn.
    pub inputs_in_turn_max: u64,
    /// Longest turn in microseconds, dispatch included.
    pub turn_micros_max: u64,
    /// Requests taken from doors.
    pub requests: u64,
    /// Replies given to doors.
    pub replies: u64,
    /// Replies withheld because their time had passed.
    pub replies_late: u64,
    /// Batches that the log's thread carried out.
    pub wal_batches: u64,
    /// Syncs of the log's files.
    pub wal_syncs: u64,
    /// Bytes written to the log's files.
    pub wal_bytes: u64,
    /// Longest batch of the log's thread in microseconds.
    pub wal_batch_micros_max: u64,
    /// Old records read back.
    pub wal_reads: u64,
    /// Flushes to the engine.
    pub flushes: u64,
    /// Bytes of keys and values flushed.
    pub flush_bytes: u64,
    /// Frames given to connections.
    pub frames_sent: u64,
    /// Their bytes.
    pub frame_bytes_sent: u64,
    /// Frames dropped because a queue was full or a peer unreachable.
    pub frames_dropped: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Their bytes.
    pub frame_bytes_received: u64,
    /// Connections made to peers.
    pub peer_connections: u64,
    /// Attempts to connect that failed.
    pub peer_dials_failed: u64,
    /// Files and sockets that the process has open.
    pub open_files: u64,
    /// Resident memory of the process in bytes.
    pub resident_bytes: u64,
}

impl Stats {
    /// The counters now. Looks into `/proc` for the process's files and memory, so it is not for
    /// every turn.
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            turns: self.turns.value(),
            inputs: self.inputs.value(),
            inputs_in_turn_max: self.inputs_in_turn_max.value(),
            turn_micros_max: self.turn_micros_max.value(),
            requests: self.requests.value(),
            replies: self.replies.value(),
            replies_late: self.replies_late.value(),
            wal_batches: self.wal_batches.value(),
            wal_syncs: self.wal_syncs.value(),
            wal_bytes: self.wal_bytes.value(),
            wal_batch_micros_max: self.wal_batch_micros_max.value(),
            wal_reads: self.wal_reads.value(),
            flushes: self.flushes.value(),
            flush_bytes: self.flush_bytes.value(),
            frames_sent: self.frames_sent.value(),
            frame_bytes_sent: self.frame_bytes_sent.value(),
            frames_dropped: self.frames_dropped.value(),
            frames_received: self.frames_received.value(),
            frame_bytes_received: self.frame_bytes_received.value(),
            peer_connections: self.peer_connections.value(),
            peer_dials_failed: self.peer_dials_failed.value(),
            open_files: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
            resident_bytes: resident_bytes().unwrap_or(0),
        }
    }
}

fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// One number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn raise(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
