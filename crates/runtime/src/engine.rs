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
//! - **A tree that a damaged block keeps from being compacted is renewed**: what lives is copied into
//!   another beside it, which then takes its place.

mod damage;
mod homes;
mod store;
mod writeback;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use storage::{Batch, Engine, EngineError, Renewal, Renewed, ScanLimit, View};

use self::store::{Caches, Store};

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
    path: PathBuf,
    caches: Caches,
    /// What is read. Held only to take or put the pointer.
    store: Mutex<Arc<Store>>,
    /// Held by whoever writes: a flush, or a step of a renewal.
    writer: Mutex<Writer>,
}

struct Writer {
    /// The highest number that a store had.
    number: u64,
    renewal: Option<Successor>,
}

/// The store that shall take the place of the present one. Each flush goes to both, so it lacks only
/// what was flushed before it was begun and is not copied yet.
#[derive(Clone)]
struct Successor {
    store: Arc<Store>,
    number: u64,
    /// It may be marked as complete, although that failed.
    marked: bool,
}

impl LsmEngine {
    /// Opens the store in the directory `path`, or makes it.
    pub fn open(path: &Path, options: EngineOptions) -> Result<LsmEngine, EngineError> {
        let number = match homes::find(path) {
            Ok(Some(number)) => number,
            Ok(None) => return Err(damaged(path, "opened", "it was renewed, and is lost since")),
            Err(error) => return Err(failure(path, "opened", &error.into())),
        };
        let caches = Caches::new(options);
        let store = Store::open(&homes::home(path, number), &caches)?;
        // What is left of others.
        let highest = homes::remove_others(path, number);
        Ok(LsmEngine {
            path: path.to_path_buf(),
            caches,
            store: Mutex::new(Arc::new(store)),
            writer: Mutex::new(Writer { number: highest, renewal: None }),
        })
    }

    /// Bytes of the tables on disk.
    pub fn disk_bytes(&self) -> u64 {
        let renewal = self.renewal().map_or(0, |renewal| renewal.store.disk_bytes());
        self.store().disk_bytes() + renewal
    }

    fn store(&self) -> Arc<Store> {
        lock(&self.store).clone()
    }

    fn renewal(&self) -> Option<Successor> {
        lock(&self.writer).renewal.clone()
    }

    fn begin(&self) -> Result<Renewed, EngineError> {
        let mut writer = lock(&self.writer);
        writer.give_up(&self.path)?;
        // A number is not given twice: who still holds what was given up removes it in the end.
        let number = writer.number + 1;
        let home = homes::home(&self.path, number);
        homes::make(&self.path, number).map_err(|error| failure(&home, "made", &error.into()))?;
        let store = Arc::new(Store::open(&home, &self.caches)?);
        writer.number = number;
        writer.renewal = Some(Successor { store, number, marked: false });
        Ok(Renewed::Begun)
    }

    fn copy(&self, from: &[u8], to: &[u8], bytes: usize) -> Result<Renewed, EngineError> {
        if let Some(renewal) = self.renewal() {
            renewal.store.wait_for_room(false)?;
        }
        // No flush comes between reading and writing, so that none is hidden by what is older.
        let writer = lock(&self.writer);
        let renewal = writer.renewal.as_ref().ok_or_else(given_up)?;
        let (bytes, next) = renewal.store.copy(&self.store(), (from, to), bytes)?;
        Ok(Renewed::Copied { bytes, next })
    }

    fn end(&self) -> Result<Renewed, EngineError> {
        let mut writer = lock(&self.writer);
        let renewal = writer.renewal.as_mut().ok_or_else(given_up)?;
        if let Some(error) = renewal.store.failed() {
            return Err(error);
        }
        renewal.marked = true;
        homes::complete(&self.path, renewal.number)
            .map_err(|error| failure(renewal.store.path(), "made", &error.into()))?;
        let store = renewal.store.clone();
        writer.renewal = None;
        let bytes = store.disk_bytes();
        let before = std::mem::replace(&mut *lock(&self.store), store);
        drop(writer);
        before.retire();
        Ok(Renewed::Ended { bytes })
    }
}

impl Writer {
    fn give_up(&mut self, path: &Path) -> Result<(), EngineError> {
        if let Some(renewal) = &self.renewal {
            if renewal.marked {
                // A start would take it for the store. As long as that is so, each flush goes to it.
                homes::unmark(path, renewal.number)
                    .map_err(|error| failure(renewal.store.path(), "removed", &error.into()))?;
            }
            renewal.store.retire();
        }
        self.renewal = None;
        Ok(())
    }
}

impl Engine for LsmEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.store().get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.store().scan(from, to, limit)
    }

    fn write(&self, batch: &Batch) -> Result<(), EngineError> {
        let renewal = self.renewal();
        let renewed = renewal.is_some();
        let followed = renewal.map_or(Ok(()), |renewal| renewal.store.wait_for_room(false));
        self.store().wait_for_room(renewed)?;
        let mut writer = lock(&self.writer);
        self.store().write(batch)?;
        let renewal = writer.renewal.as_ref();
        let follow = || renewal.map_or(Ok(()), |renewal| renewal.store.write(batch));
        if followed.and_then(|()| follow()).is_err() {
            // It lacks the batch. Whoever renews learns it with the next step.
            writer.give_up(&self.path)?;
        }
        Ok(())
    }

    fn view(&self) -> View {
        self.store().view()
    }

    fn stuck(&self) -> Option<EngineError> {
        self.store().failed().filter(EngineError::is_damage)
    }

    fn renew(&self, step: &Renewal) -> Result<Renewed, EngineError> {
        match step {
            Renewal::Begin => self.begin(),
            Renewal::Copy { from, to, bytes } => self.copy(from, to, *bytes),
            Renewal::End => self.end(),
            Renewal::GiveUp => {
                lock(&self.writer).give_up(&self.path)?;
                Ok(Renewed::GivenUp)
            }
        }
    }
}

fn given_up() -> EngineError {
    EngineError("the renewal of the store was given up, as it could not be written".to_owned())
}

fn failure(path: &Path, what: &str, error: &lsm_tree::Error) -> EngineError {
    let lsm_tree::Error::Io(error) = error else {
        return damaged(path, what, &error.to_string());
    };
    if is_full(error) {
        return EngineError::full(&format!(
            "store {} cannot be {what} ({error}); free some space, nothing that was acknowledged \
             is lost",
            path.display()
        ));
    }
    // An error that the system did not report comes of what was read: a file that ends where a
    // damaged length says that there is more, for one. So does a place that no file can have.
    if error.raw_os_error().is_none() || error.kind() == io::ErrorKind::InvalidInput {
        return damaged(path, what, &error.to_string());
    }
    let path = path.display();
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
