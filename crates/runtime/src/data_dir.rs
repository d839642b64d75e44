//! The data directory of a node: who uses it, and where in it what lies.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use crate::disk::FileDisk;

/// The file whose lock says that the directory is in use; it holds the process id.
pub(crate) const LOCK_FILE: &str = "lock";
const ENGINE_DIR: &str = "engine";

/// A data directory that this process has for itself until all clones and all disks from it are
/// gone.
///
/// ```text
/// lock        locked while a process uses the directory; holds its process id
/// engine/     the store
/// *           files of the write-ahead log and the superblock
/// ```
#[derive(Clone, Debug)]
pub struct DataDir {
    path: Arc<Path>,
    lock: Arc<File>,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "data directory {} is in use by another process{}: stop that process, or choose another \
         directory", path.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, as it wrote itself down.
        pid: Option<u32>,
    },
    /// The file system refuses.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

impl DataDir {
    /// Makes the directory where it is missing (readable for its owner only) and locks it.
    pub fn open(path: &Path) -> Result<DataDir, DataDirError> {
        let failed = |what, path: &Path| {
            let path = path.to_path_buf();
            move |source| DataDirError::Io { what, path, source }
        };
        if !path.is_dir() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(failed("create data directory", path))?;
            sync_parent(path).map_err(failed("sync the parent of", path))?;
        }
        let path = path.canonicalize().map_err(failed("find data directory", path))?;
        let lock_path = path.join(LOCK_FILE);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DataDirError::InUse { path, pid: read_pid(&mut lock) });
            }
            Err(error) => return Err(failed("lock", &lock_path)(error.into())),
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed("write", &lock_path))?;
        Ok(DataDir { path: Arc::from(path), lock: Arc::new(lock) })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the store lies.
    pub fn engine_path(&self) -> PathBuf {
        self.path.join(ENGINE_DIR)
    }

    /// The directory's files as a disk for the write-ahead log and the superblock. To be called
    /// once, at the start: it removes what a crash left half made. Other threads get clones.
    pub fn disk(&self) -> Result<FileDisk, DataDirError> {
        FileDisk::open(&self.path, Some(self.lock.clone())).map_err(|source| DataDirError::Io {
            what: "read data directory",
            path: self.path.to_path_buf(),
            source,
        })
    }
}

fn read_pid(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Makes the directory's own name durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        Some(_) | None => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_use_is_refused_and_names_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er");
        let held = DataDir::open(&path).unwrap();
        let error = DataDir::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(error.contains("in use by another process"), "{error}");

        let disk = held.disk().unwrap();
        drop(held);
        assert!(DataDir::open(&path).is_err(), "a disk holds the lock too");
        drop(disk);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"x").unwrap();
        let error = DataDir::open(&file.join("below")).unwrap_err().to_string();
        assert!(error.contains("cannot create data directory"), "{error}");
        assert!(error.contains("file/below"), "{error}");
    }
}
