//! Sends tables to the disk while they are being written.
//!
//! The tree syncs a table once, when it is complete. Tens of megabytes then go to the device at
//! once, and a sync of the log that comes just after waits behind all of them. So a thread of its
//! own syncs what has grown, a little at a time, as long as a flush or a compaction runs. Nothing
//! rests on these syncs: the tree's own decide what is durable, and meet an error that these met.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lsm_tree::{AbstractTree, AnyTree, TableId};

/// The directory of the tables in that of the tree.
const TABLES: &str = "tables";
/// How often the growing tables are looked at.
const TICK: Duration = Duration::from_millis(5);
/// Growth that is worth a sync.
const STEP_BYTES: u64 = 1 << 20;
/// A table that has not grown for so many ticks is taken for complete.
const STILL_TICKS: u32 = 100;

/// The thread and what wakes it.
pub(super) struct Writeback {
    work: Arc<Work>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Flushes and compactions that run.
    running: u32,
    stopping: bool,
}

/// Tables are being written as long as this lives.
pub(super) struct Writing<'a>(&'a Work);

/// A table that may be growing.
struct Growing {
    id: TableId,
    /// `None` until its file is there.
    file: Option<File>,
    synced: u64,
    still: u32,
}

impl Writeback {
    pub(super) fn start(path: &Path, tree: AnyTree) -> io::Result<Writeback> {
        let work = Arc::new(Work::default());
        let thread = thread::Builder::new().name("writeback".to_string()).spawn({
            let (work, tables) = (work.clone(), path.join(TABLES));
            move || follow(&work, &tables, &tree)
        })?;
        Ok(Writeback { work, thread: Some(thread) })
    }

    /// To be held while tables are written.
    pub(super) fn writing(&self) -> Writing<'_> {
        self.work.lock().running += 1;
        self.work.changed.notify_all();
        Writing(&self.work)
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        self.work.lock().stopping = true;
        self.work.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // Without this thread the disk is less even, and nothing else.
            let _ = thread.join();
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

impl Work {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a tick during which tables are written. Returns whether there will be one.
    fn next_tick(&self, growing: &mut VecDeque<Growing>) -> bool {
        let mut state = self.lock();
        while state.running == 0 && !state.stopping {
            // All are complete, and an open file would keep the room of one that is removed.
            growing.clear();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let stopping = state.stopping;
        drop(state);
        if !stopping {
            thread::sleep(TICK);
        }
        !stopping
    }
}

fn follow(work: &Work, tables: &Path, tree: &AnyTree) {
    let mut next = tree.next_table_id();
    let mut growing: VecDeque<Growing> = VecDeque::new();
    while work.next_tick(&mut growing) {
        look(tables, tree, &mut next, &mut growing);
    }
}

/// Takes in the tables that were begun since the last look, which saw those below `next`, and goes
/// on with those that may be growing.
fn look(tables: &Path, tree: &AnyTree, next: &mut TableId, growing: &mut VecDeque<Growing>) {
    let end = tree.next_table_id();
    growing.extend((*next..end).map(|id| Growing { id, file: None, synced: 0, still: 0 }));
    *next = end.max(*next);
    growing.retain_mut(|table| table.advance(tables));
}

impl Growing {
    /// Syncs what was added, if it is enough. Returns whether the table may still grow.
    fn advance(&mut self, tables: &Path) -> bool {
        self.still += 1;
        if self.file.is_none() {
            self.file = File::open(tables.join(self.id.to_string())).ok();
        }
        if let Some(file) = &self.file {
            let Ok(metadata) = file.metadata() else { return false };
            if metadata.nlink() == 0 {
                return false;
            }
            if metadata.len() >= self.synced + STEP_BYTES {
                // The tree's own descriptor meets the same error at its own sync.
                let _ = file.sync_data();
                self.synced = metadata.len();
                self.still = 0;
            }
        }
        self.still < STILL_TICKS
    }
}

#[cfg(test)]
mod tests {
    use lsm_tree::{Config, SequenceNumberCounter};

    use super::*;

    #[test]
    fn a_look_follows_the_tables_that_were_begun_and_begins_none() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = SequenceNumberCounter::default();
        let tree = Config::new(dir.path(), numbers.clone(), numbers).open().unwrap();
        let tables = dir.path().join(TABLES);
        let (mut next, mut growing) = (tree.next_table_id(), VecDeque::new());
        for _ in 0..3 {
            look(&tables, &tree, &mut next, &mut growing);
            assert_eq!((growing.len(), next), (0, tree.next_table_id()));
        }
        tree.insert(b"key", b"value", 1);
        tree.flush_active_memtable(0).unwrap();
        look(&tables, &tree, &mut next, &mut growing);
        assert_eq!((growing.len(), next), (1, tree.next_table_id()));
        assert!(growing[0].file.is_some());
        look(&tables, &tree, &mut next, &mut growing);
        assert_eq!(growing.len(), 1, "the same one");
    }

    #[test]
    fn a_table_is_followed_until_it_is_removed_or_grows_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let grow = |bytes: u64| {
            let file = File::options().create(true).append(true).open(dir.path().join("7"));
            file.unwrap().set_len(bytes).unwrap();
        };
        let mut table = Growing { id: 7, file: None, synced: 0, still: 0 };
        assert!(table.advance(dir.path()), "its file may yet be made");
        grow(STEP_BYTES - 1);
        assert!(table.advance(dir.path()));
        assert_eq!(table.synced, 0, "too little for a sync");
        grow(STEP_BYTES + 5);
        assert!(table.advance(dir.path()));
        assert_eq!((table.synced, table.still), (STEP_BYTES + 5, 0));
        let ticks = (1..STILL_TICKS).take_while(|_| table.advance(dir.path())).count();
        assert_eq!(ticks + 1, STILL_TICKS as usize, "complete, as it seems");
        table.still = 0;
        std::fs::remove_file(dir.path().join("7")).unwrap();
        assert!(!table.advance(dir.path()), "nobody needs the rest of it");
    }
}
