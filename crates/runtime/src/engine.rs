//! The store on disk: the [`Engine`] trait over an LSM tree.
//!
//! docs/engine.md tells why this tree, and what is relied upon. In short:
//!
//! - **A flush is one ingestion**: its sorted batch is written straight into table files, which are
//!   synced and then become part of the tree by one switch of the tree's version file. Before the
//!   switch nothing of it exists, after it everything does. No memtable is ever used.
//! - **Reads see the newest version only.** After each change the tables of the new version are
//!   put behind one shared pointer, and reads go through it: the tree's own lock is held while the
//!   version file is synced, and the turn's thread must not wait for that.
//! - **Sequence numbers are the tree's own affair**: one counter, nothing is read in the past, so
//!   whatever is older than the newest may be collected.
//! - **Compaction has a thread of its own**, woken by each flush. A flush that would leave too many
//!   runs to look through waits for it.

mod damage;
mod writeback;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use lsm_tree::compaction::Leveled;
use lsm_tree::table::filter::standard_bloom::Builder as Bloom;
use lsm_tree::{
    AbstractTree, AnyIngestion, AnyTree, Cache, Config, DescriptorTable, InternalValue, SeqNo,
    SequenceNumberCounter, Slice, Tree,
};
use storage::{Batch, Engine, EngineError, ScanLimit, Version, View};

use self::writeback::Writeback;
use crate::background::give_way;

/// A flush waits when so many runs lie in the first level: each costs every read a look.
const RUNS_MAX: usize = 20;
/// Where the tree can be compacted no more because it is damaged, it takes so many runs before
/// flushes end the node: slower by and by, but until then there is time to replace it.
const RUNS_DAMAGED_MAX: usize = 400;
/// A compaction that found no room on the disk is tried again after this time.
const COMPACT_AGAIN: Duration = Duration::from_secs(1);
/// Above every number that is ever drawn: the newest.
const NEWEST: SeqNo = SeqNo::MAX >> 1;
/// A value that is shorter than this is copied out of its block, which it would else keep alive.
const SHARED_BYTES_MIN: usize = 2 << 10;

/// What a store is opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Bytes of blocks kept in memory.
    pub cache_bytes: u64,
    /// Table files kept open.
    pub open_files: usize,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions { cache_bytes: 512 << 20, open_files: 256 }
    }
}

/// The store on disk. Reads from any thread; writes from one.
pub struct LsmEngine {
    shared: Arc<Shared>,
    compactor: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    tree: AnyTree,
    sequence: SequenceNumberCounter,
    writeback: Writeback,
    /// What reads go through. Held only to take or put the pointer.
    snapshot: Mutex<Arc<Snapshot>>,
    /// Held while a snapshot is made and put, so that an older one never replaces a newer.
    publishing: Mutex<()>,
    compaction: Mutex<Compaction>,
    changed: Condvar,
}

#[derive(Default)]
struct Compaction {
    wanted: bool,
    stopping: bool,
    /// It ended, and why.
    failed: Option<EngineError>,
    /// It waits for room on the disk.
    full: Option<EngineError>,
}

type Get = dyn Fn(&[u8]) -> lsm_tree::Result<Option<InternalValue>> + Send + Sync;
type Records = Box<dyn Iterator<Item = lsm_tree::Result<(Slice, Slice)>>>;
type Range = dyn Fn(&[u8], &[u8]) -> Records + Send + Sync;

/// The tables of one version of the tree. Their files stay until the last holder is gone.
struct Snapshot {
    get: Box<Get>,
    range: Box<Range>,
}

impl LsmEngine {
    /// Opens the store in the directory `path`, or makes it.
    pub fn open(path: &Path, options: EngineOptions) -> Result<LsmEngine, EngineError> {
        match damage::find(path) {
            Ok(None) => {}
            Ok(Some(text)) => return Err(damaged(path, "opened", &text)),
            Err(error) => return Err(failure(path, "opened", &error.into())),
        }
        let sequence = SequenceNumberCounter::default();
        let visible = SequenceNumberCounter::default();
        let tree = Config::new(path, sequence.clone(), visible.clone())
            .use_cache(Arc::new(Cache::with_capacity_bytes(options.cache_bytes)))
            .use_descriptor_table(Some(Arc::new(DescriptorTable::new(options.open_files.max(16)))))
            .open()
            .map_err(|error| failure(path, "opened", &error))?;
        let next = tree.get_highest_seqno().map_or(0, |highest| highest + 1);
        sequence.fetch_max(next);
        visible.fetch_max(next);
        let snapshot = snapshot(&tree);
        let writeback = Writeback::start(path, tree.clone()).map_err(no_thread)?;
        let shared = Arc::new(Shared {
            path: path.to_path_buf(),
            tree,
            sequence,
            writeback,
            snapshot: Mutex::new(Arc::new(snapshot)),
            publishing: Mutex::new(()),
            compaction: Mutex::new(Compaction { wanted: true, ..Compaction::default() }),
            changed: Condvar::new(),
        });
        let compactor = thread::Builder::new()
            .name("compaction".to_string())
            .spawn({
                let shared = shared.clone();
                move || shared.compact_until_stopped()
            })
            .map_err(no_thread)?;
        Ok(LsmEngine { shared, compactor: Some(compactor) })
    }

    /// Bytes of the tables on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.tree.disk_space()
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        lock(&self.shared.snapshot).clone()
    }
}

impl Drop for LsmEngine {
    fn drop(&mut self) {
        lock(&self.shared.compaction).stopping = true;
        self.shared.changed.notify_all();
        if let Some(compactor) = self.compactor.take() {
            // A compactor that panicked has nothing to say that matters when all is over.
            let _ = compactor.join();
        }
    }
}

impl Engine for LsmEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.shared.get(&self.snapshot(), key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.shared.scan(&self.snapshot(), from, to, limit)
    }

    fn write(&self, batch: &Batch) -> Result<(), EngineError> {
        self.shared.wait_for_room()?;
        if batch.changes.is_empty() {
            return Ok(());
        }
        let writing = self.shared.writeback.writing();
        ingest(&self.shared.tree, batch)
            .map_err(|error| failure(&self.shared.path, "written", &error))?;
        drop(writing);
        self.shared.publish();
        lock(&self.shared.compaction).wanted = true;
        self.shared.changed.notify_all();
        Ok(())
    }

    fn view(&self) -> View {
        View(Arc::new(Kept { shared: self.shared.clone(), snapshot: self.snapshot() }))
    }
}

/// A version of the tree that somebody keeps.
struct Kept {
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
}

impl Version for Kept {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.shared.get(&self.snapshot, key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.shared.scan(&self.snapshot, from, to, limit)
    }
}

impl Shared {
    fn get(&self, snapshot: &Snapshot, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if key.is_empty() {
            return Ok(None);
        }
        let found = (snapshot.get)(key).map_err(|error| self.unreadable(&error))?;
        Ok(found.map(|record| detached(record.value)))
    }

    fn scan(
        &self,
        snapshot: &Snapshot,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut found = Vec::new();
        let mut bytes = 0_usize;
        if from >= to {
            return Ok(found);
        }
        for record in (snapshot.range)(from, to) {
            let (key, value) = record.map_err(|error| self.unreadable(&error))?;
            bytes = bytes.saturating_add(key.len() + value.len());
            if !found.is_empty() && (found.len() >= limit.records || bytes > limit.bytes) {
                break;
            }
            found.push((detached(key), detached(value)));
        }
        Ok(found)
    }

    fn unreadable(&self, error: &lsm_tree::Error) -> EngineError {
        failure(&self.path, "read", error)
    }

    /// Lets reads see the tree as it is now.
    fn publish(&self) {
        let publishing = lock(&self.publishing);
        let newest = Arc::new(snapshot(&self.tree));
        let older = std::mem::replace(&mut *lock(&self.snapshot), newest);
        drop(publishing);
        // The last holder of a table that was compacted away removes its file, which takes a
        // while and so is done with no lock held.
        drop(older);
    }

    fn wait_for_room(&self) -> Result<(), EngineError> {
        let mut compaction = lock(&self.compaction);
        loop {
            let runs = self.tree.l0_run_count();
            if runs < RUNS_MAX || compaction.failed.is_some() && runs < RUNS_DAMAGED_MAX {
                return Ok(());
            }
            if let Some(error) = compaction.failed.as_ref().or(compaction.full.as_ref()) {
                return Err(error.clone());
            }
            compaction = wait(&self.changed, compaction);
        }
    }

    fn compact_until_stopped(&self) {
        give_way();
        let ended = Ended(self);
        let strategy: Arc<Leveled> = Arc::new(Leveled::default());
        loop {
            let mut compaction = lock(&self.compaction);
            while !compaction.wanted && !compaction.stopping {
                compaction = wait(&self.changed, compaction);
            }
            if compaction.stopping {
                break;
            }
            compaction.wanted = false;
            drop(compaction);
            let Err(error) = self.compact_all(&strategy) else {
                lock(&self.compaction).full = None;
                continue;
            };
            let error = failure(&self.path, "compacted", &error);
            let mut compaction = lock(&self.compaction);
            if error.is_full() {
                compaction.full = Some(error);
                compaction.wanted = true;
                self.changed.notify_all();
                let waited = self.changed.wait_timeout(compaction, COMPACT_AGAIN);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            // What cannot be read stays where it is: reads tell, one by one, what it is.
            compaction.failed = Some(error);
            break;
        }
        drop(ended);
    }

    /// Until the strategy finds nothing more to do.
    fn compact_all(&self, strategy: &Arc<Leveled>) -> lsm_tree::Result<()> {
        loop {
            let before = self.tree.current_version().id();
            let writing = self.writeback.writing();
            self.tree.compact(strategy.clone(), self.sequence.get())?;
            drop(writing);
            if self.tree.current_version().id() == before {
                return Ok(());
            }
            self.publish();
            self.changed.notify_all();
            let compaction = lock(&self.compaction);
            if compaction.stopping {
                return Ok(());
            }
        }
    }
}

/// Wakes a waiting flush when the compaction thread ends, and tells it if it ended by a panic.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let text = format!("the compaction of store {} panicked", self.0.path.display());
            lock(&self.0.compaction).failed = Some(EngineError(text));
        }
        self.0.changed.notify_all();
    }
}

fn ingest(tree: &AnyTree, batch: &Batch) -> lsm_tree::Result<()> {
    let mut ingestion: AnyIngestion<'_> = tree.ingestion()?;
    for (key, value) in &batch.changes {
        match value {
            Some(value) => ingestion.write(key.clone(), value.clone())?,
            None => ingestion.write_tombstone(key.clone())?,
        }
    }
    ingestion.finish()
}

/// Collects the tables of the newest version. The types of the tree that hold them have no public
/// name, so they live on in two closures.
fn snapshot(tree: &AnyTree) -> Snapshot {
    let (version, pinned) = loop {
        let version = tree.current_version();
        let pinned = tree.get_version_history_lock().latest_version();
        if tree.current_version().id() == version.id() {
            break (version, pinned);
        }
    };
    let get = move |key: &[u8]| {
        let hash = Bloom::get_hash(key);
        // Newest run first: the first record found is the newest.
        let runs = version.iter_levels().flat_map(|level| level.iter());
        for table in runs.filter_map(|run| run.get_for_key(key)) {
            if let Some(record) = table.get(key, NEWEST, hash)? {
                return Ok(if record.is_tombstone() { None } else { Some(record) });
            }
        }
        Ok(None)
    };
    let range = move |from: &[u8], to: &[u8]| -> Records {
        let range = from..to;
        let records = Tree::create_internal_range(pinned.clone(), &range, NEWEST, None);
        Box::new(records.map(|record| record.map(|record| (record.key.user_key, record.value))))
    };
    Snapshot { get: Box::new(get), range: Box::new(range) }
}

/// A small value shares its block with others, and would keep all of it in memory.
fn detached(slice: Slice) -> Bytes {
    let bytes = Bytes::from(slice);
    if bytes.len() < SHARED_BYTES_MIN { Bytes::copy_from_slice(&bytes) } else { bytes }
}

fn no_thread(error: io::Error) -> EngineError {
    EngineError(format!("cannot start a thread: {error}"))
}

fn failure(path: &Path, what: &str, error: &lsm_tree::Error) -> EngineError {
    let lsm_tree::Error::Io(error) = error else {
        return damaged(path, what, &error.to_string());
    };
    let path = path.display();
    if is_full(error) {
        return EngineError::full(&format!(
            "store {path} cannot be {what} ({error}); free some space, nothing that was \
             acknowledged is lost"
        ));
    }
    EngineError(format!("store {path} cannot be {what}: {error}"))
}

fn damaged(path: &Path, what: &str, text: &str) -> EngineError {
    EngineError::damage(&format!("store {} cannot be {what}: {text}", path.display()))
}

/// Whether the disk, or the quota on it, has no room left.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What the mutexes here guard is valid at every instant, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}
