//! One tree, its compaction, and what reads see of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;
use lsm_tree::compaction::Leveled;
use lsm_tree::table::filter::standard_bloom::Builder as Bloom;
use lsm_tree::{
    AbstractTree, AnyIngestion, AnyTree, Cache, Config, DescriptorTable, InternalValue, SeqNo,
    SequenceNumberCounter, Slice, Table, Tree,
};
use storage::{Batch, EngineError, ScanLimit, Version, View};

use super::writeback::Writeback;
use super::{EngineOptions, damage, damaged, failure, homes, lock, wait};
use crate::background::give_way;

/// A flush waits when so many runs lie in the first level: each costs every read a look.
const RUNS_MAX: usize = 20;
/// Where the tree can be compacted no more it takes so many runs, slower by and by. The tree's version
/// file counts the runs of a level in one byte, so there must never be 256.
const RUNS_STUCK_MAX: usize = 200;
/// And so many while it is renewed.
const RUNS_RENEWED_MAX: usize = 250;
/// A compaction that found no room on the disk is tried again after this time.
const COMPACT_AGAIN: Duration = Duration::from_secs(1);
/// Above every number that is ever drawn: the newest.
const NEWEST: SeqNo = SeqNo::MAX >> 1;
/// A value that is shorter than this is copied out of its block, which it would else keep alive.
const SHARED_BYTES_MIN: usize = 2 << 10;

/// What all trees of an engine share.
#[derive(Clone)]
pub(super) struct Caches {
    blocks: Arc<Cache>,
    files: Arc<DescriptorTable>,
}

impl Caches {
    pub(super) fn new(options: EngineOptions) -> Caches {
        Caches {
            blocks: Arc::new(Cache::with_capacity_bytes(options.cache_bytes)),
            files: Arc::new(DescriptorTable::new(options.open_files.max(16))),
        }
    }
}

/// A tree in a directory of its own, and the threads that keep it in order.
pub(super) struct Store {
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
    /// Held while a batch or a copy is written to tables that no version has yet.
    ingesting: Mutex<()>,
    /// The numbers of the tables that a published version has or had.
    registered: Mutex<BTreeSet<u64>>,
    compaction: Mutex<Compaction>,
    changed: Condvar,
    /// Nobody needs its files when the last who reads it is done.
    retired: AtomicBool,
}

#[derive(Default)]
struct Compaction {
    wanted: bool,
    stopping: bool,
    /// Tables may lie there that were begun and not finished, for want of room.
    leftovers: bool,
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

impl Store {
    /// Opens the tree in the directory `path`, or makes it.
    pub(super) fn open(path: &Path, caches: &Caches) -> Result<Store, EngineError> {
        match damage::find(path) {
            Ok(None) => {}
            Ok(Some(text)) => return Err(damaged(path, "opened", &text)),
            Err(error) => return Err(failure(path, "opened", &error.into())),
        }
        let sequence = SequenceNumberCounter::default();
        let visible = SequenceNumberCounter::default();
        let tree = Config::new(path, sequence.clone(), visible.clone())
            .use_cache(caches.blocks.clone())
            .use_descriptor_table(Some(caches.files.clone()))
            .open()
            .map_err(|error| failure(path, "opened", &error))?;
        let next = tree.get_highest_seqno().map_or(0, |highest| highest + 1);
        sequence.fetch_max(next);
        visible.fetch_max(next);
        let (snapshot, registered) = snapshot(&tree);
        let writeback = Writeback::start(path, tree.clone()).map_err(no_thread)?;
        let shared = Arc::new(Shared {
            path: path.to_path_buf(),
            tree,
            sequence,
            writeback,
            snapshot: Mutex::new(Arc::new(snapshot)),
            publishing: Mutex::new(()),
            ingesting: Mutex::new(()),
            registered: Mutex::new(registered),
            compaction: Mutex::new(Compaction { wanted: true, ..Compaction::default() }),
            changed: Condvar::new(),
            retired: AtomicBool::new(false),
        });
        let compactor = thread::Builder::new()
            .name("compaction".to_string())
            .spawn({
                let shared = shared.clone();
                move || shared.compact_until_stopped()
            })
            .map_err(no_thread)?;
        Ok(Store { shared, compactor: Some(compactor) })
    }

    /// Bytes of the tables on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.shared.tree.disk_space()
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Why it is compacted no more, where that is so.
    pub(super) fn failed(&self) -> Option<EngineError> {
        lock(&self.shared.compaction).failed.clone()
    }

    /// Lets its files go with the last who reads them.
    pub(super) fn retire(&self) {
        self.shared.retired.store(true, Ordering::Release);
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.shared.get(&self.snapshot(), key)
    }

    pub(super) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.shared.scan(&self.snapshot(), from, to, limit)
    }

    pub(super) fn view(&self) -> View {
        View(Arc::new(Kept { shared: self.shared.clone(), snapshot: self.snapshot() }))
    }

    /// Until a write would not leave too many runs to look through.
    pub(super) fn wait_for_room(&self, renewed: bool) -> Result<(), EngineError> {
        self.shared.wait_for_room(if renewed { RUNS_RENEWED_MAX } else { RUNS_STUCK_MAX })
    }

    /// Writes a batch; one at a time.
    pub(super) fn write(&self, batch: &Batch) -> Result<(), EngineError> {
        if batch.changes.is_empty() {
            return Ok(());
        }
        let shared = &self.shared;
        let _ingesting = lock(&shared.ingesting);
        let writing = shared.writeback.writing();
        ingest(&shared.tree, batch).map_err(|error| shared.unwritable(&error))?;
        drop(writing);
        shared.written();
        Ok(())
    }

    /// Writes about so many bytes of the newest records of another store, from one key on, before
    /// another. Returns how many bytes, and where to go on if there may be more.
    pub(super) fn copy(
        &self,
        other: &Store,
        (from, to): (&[u8], &[u8]),
        bytes: usize,
    ) -> Result<(u64, Option<Bytes>), EngineError> {
        let (shared, snapshot) = (&self.shared, other.snapshot());
        let mut copied = 0_usize;
        let mut next = None;
        let _ingesting = lock(&shared.ingesting);
        let writing = shared.writeback.writing();
        let mut ingestion = None;
        if from < to {
            for record in (snapshot.range)(from, to) {
                let (key, value) = record.map_err(|error| other.shared.unreadable(&error))?;
                if copied >= bytes.max(1) {
                    next = Some(detached(key));
                    break;
                }
                copied += key.len() + value.len();
                let ingestion = match &mut ingestion {
                    Some(ingestion) => ingestion,
                    none => none.insert(
                        shared.tree.ingestion().map_err(|error| shared.unwritable(&error))?,
                    ),
                };
                ingestion.write(key, value).map_err(|error| shared.unwritable(&error))?;
            }
        }
        if let Some(ingestion) = ingestion {
            ingestion.finish().map_err(|error| shared.unwritable(&error))?;
            drop(writing);
            shared.written();
        }
        Ok((copied as u64, next))
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        lock(&self.shared.snapshot).clone()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        lock(&self.shared.compaction).stopping = true;
        self.shared.changed.notify_all();
        if let Some(compactor) = self.compactor.take() {
            // A compactor that panicked has nothing to say that matters when all is over.
            let _ = compactor.join();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if *self.retired.get_mut() {
            // What is left is removed at the next start.
            let _ = homes::remove(&self.path);
        }
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

    fn unwritable(&self, error: &lsm_tree::Error) -> EngineError {
        let mut compaction = lock(&self.compaction);
        compaction.leftovers = true;
        compaction.wanted = true;
        self.changed.notify_all();
        failure(&self.path, "written", error)
    }

    /// Removes the tables that were begun and not finished, which the tree does only when it is
    /// opened: on a full disk they would take the room that is needed to make room. Only the
    /// compaction may call this, as nothing else writes then.
    fn remove_leftovers(&self) -> io::Result<()> {
        let _ingesting = lock(&self.ingesting);
        let mut registered = lock(&self.registered);
        registered.extend(self.tree.current_version().iter_tables().map(Table::id));
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(self.path.join(damage::TABLES))? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if registered.contains(&number) {
                there.insert(number);
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        *registered = there;
        Ok(())
    }

    /// Removes the tables that only older versions have, unless somebody reads them. The tree itself
    /// keeps the version before the newest, hence what was compacted last, until it compacts
    /// something else, and versions that are due to flushes as long as no compaction succeeds.
    fn let_go(&self) -> lsm_tree::Result<()> {
        // Every version so far has a lower number, so that all but the newest go.
        let number = self.sequence.get();
        self.tree.get_version_history_lock().maintenance(&self.path, number)
    }

    /// Something was: reads see it, and there may be something to compact.
    fn written(&self) {
        self.publish();
        lock(&self.compaction).wanted = true;
        self.changed.notify_all();
    }

    /// Lets reads see the tree as it is now.
    fn publish(&self) {
        let publishing = lock(&self.publishing);
        let (newest, tables) = snapshot(&self.tree);
        lock(&self.registered).extend(tables);
        let older = std::mem::replace(&mut *lock(&self.snapshot), Arc::new(newest));
        drop(publishing);
        // The last holder of a table that was compacted away removes its file, which takes a
        // while and so is done with no lock held that reads wait for.
        drop(older);
    }

    fn wait_for_room(&self, stuck_max: usize) -> Result<(), EngineError> {
        let mut compaction = lock(&self.compaction);
        loop {
            let runs = self.tree.l0_run_count();
            if runs < RUNS_MAX || compaction.failed.is_some() && runs < stuck_max {
                return Ok(());
            }
            match (&compaction.failed, &compaction.full) {
                (Some(error), _) if error.is_damage() => return Err(EngineError::later(&error.0)),
                (Some(error), _) | (None, Some(error)) => return Err(error.clone()),
                (None, None) => {}
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
            let leftovers = std::mem::take(&mut compaction.leftovers);
            drop(compaction);
            if leftovers && let Err(error) = self.remove_leftovers() {
                let path = self.path.display();
                tracing::warn!(
                    "unfinished tables of store {path} stay until it is opened: {error}"
                );
            }
            let Err(error) = self.compact_all(&strategy) else {
                lock(&self.compaction).full = None;
                continue;
            };
            let error = failure(&self.path, "compacted", &error);
            let mut compaction = lock(&self.compaction);
            if error.is_full() {
                compaction.full = Some(error);
                compaction.leftovers = true;
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
            let compacted = self.tree.compact(strategy.clone(), self.sequence.get());
            drop(writing);
            // Also where there was no room: what is let go makes some.
            self.let_go()?;
            compacted?;
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

/// Collects the tables of the newest version, and their numbers. The types of the tree that hold them have no public
/// name, so they live on in two closures.
fn snapshot(tree: &AnyTree) -> (Snapshot, BTreeSet<u64>) {
    let (version, pinned) = loop {
        let version = tree.current_version();
        let pinned = tree.get_version_history_lock().latest_version();
        if tree.current_version().id() == version.id() {
            break (version, pinned);
        }
    };
    let numbers = version.iter_tables().map(Table::id).collect();
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
    (Snapshot { get: Box::new(get), range: Box::new(range) }, numbers)
}

/// A small value shares its block with others, and would keep all of it in memory.
fn detached(slice: Slice) -> Bytes {
    let bytes = Bytes::from(slice);
    if bytes.len() < SHARED_BYTES_MIN { Bytes::copy_from_slice(&bytes) } else { bytes }
}

fn no_thread(error: io::Error) -> EngineError {
    EngineError(format!("cannot start a thread: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Instant;

    use super::*;

    fn batch(round: u32) -> Batch {
        let value = Bytes::from(format!("{round}-").repeat(2_000));
        let key = |n: u32| Bytes::from(format!("key {n:03}"));
        Batch { changes: (0..40).map(|n| (key(n), Some(value.clone()))).collect() }
    }

    fn holds(found: &[(Bytes, Bytes)], round: u32) {
        let expected = batch(round).changes.into_iter();
        let expected: Vec<_> = expected.map(|(key, value)| (key, value.unwrap())).collect();
        assert_eq!(found.len(), expected.len());
        assert!(found == expected, "not what round {round} wrote");
    }

    #[test]
    fn tables_that_were_compacted_leave_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let caches = Caches::new(EngineOptions { cache_bytes: 1 << 20, open_files: 16 });
        let store = Store::open(dir.path(), &caches).unwrap();
        let newest = |store: &Store| -> BTreeSet<u64> {
            store.shared.tree.current_version().iter_tables().map(Table::id).collect()
        };
        let there = || -> BTreeSet<u64> {
            let tables = fs::read_dir(dir.path().join(damage::TABLES)).unwrap();
            let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
            tables.map(|entry| name(entry).to_str().unwrap().parse().unwrap()).collect()
        };
        let (mut written, mut compacted) = (BTreeSet::new(), false);
        for round in 0..20 {
            store.write(&batch(round)).unwrap();
            written.extend(newest(&store));
        }
        let since = Instant::now();
        while !compacted || there() != newest(&store) {
            compacted |= !written.is_subset(&newest(&store));
            assert!(since.elapsed() < Duration::from_secs(20), "{:?}", (there(), newest(&store)));
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn f15_tables_that_were_begun_without_room_are_removed_and_no_others() {
        let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
        let dir = tempfile::tempdir().unwrap();
        let caches = Caches::new(EngineOptions { cache_bytes: 1 << 20, open_files: 16 });
        let store = Store::open(dir.path(), &caches).unwrap();
        store.write(&batch(0)).unwrap();
        let old = store.view();
        for round in 1..30 {
            store.write(&batch(round)).unwrap();
            let begun = dir.path().join(damage::TABLES).join(format!("{}", 1_000_000 + round));
            fs::write(&begun, b"begun").unwrap();
            let full = lsm_tree::Error::Io(io::ErrorKind::StorageFull.into());
            assert!(store.shared.unwritable(&full).is_full());
            let since = Instant::now();
            while begun.exists() {
                assert!(since.elapsed() < Duration::from_secs(20), "it stays");
                thread::sleep(Duration::from_millis(1));
            }
            holds(&old.0.scan(b"k", b"l", all).unwrap(), 0);
            holds(&store.scan(b"k", b"l", all).unwrap(), round);
        }
        assert_eq!(store.failed().map(|error| error.to_string()), None);
        drop((old, store));
        let store = Store::open(dir.path(), &caches).unwrap();
        holds(&store.scan(b"k", b"l", all).unwrap(), 29);
    }
}
