//! The disk of the write-ahead log over real files.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use storage::Disk;

use crate::data_dir::LOCK_FILE;

/// A file under construction; it gets its name when all its zeros are on disk.
const UNFINISHED: &str = ".unfinished";
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// The flat files of one directory. Clones share the open files, so that threads may each have
/// their own: positioned reads and writes need no common cursor.
#[derive(Clone, Debug)]
pub struct FileDisk {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Files opened so far. The log keeps few, so none is ever closed before it is removed.
    open: Mutex<BTreeMap<String, Arc<File>>>,
    syncs: AtomicU64,
    bytes: AtomicU64,
    /// Keeps the data directory locked.
    _lock: Option<Arc<File>>,
}

impl FileDisk {
    /// The files of `path`, an existing directory. What a crash left half made is removed.
    pub(crate) fn open(path: &Path, lock: Option<Arc<File>>) -> io::Result<FileDisk> {
        let disk = FileDisk {
            shared: Arc::new(Shared {
                path: path.to_path_buf(),
                open: Mutex::new(BTreeMap::new()),
                syncs: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                _lock: lock,
            }),
        };
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(disk)
    }

    /// How many syncs and how many bytes were written since the start, zeros of new files apart.
    pub fn written(&self) -> (u64, u64) {
        (self.shared.syncs.load(Ordering::Relaxed), self.shared.bytes.load(Ordering::Relaxed))
    }

    fn path(&self, file: &str) -> PathBuf {
        assert!(!file.contains('/') && !file.is_empty(), "{file:?} is no flat file name");
        self.shared.path.join(file)
    }

    fn file(&self, file: &str) -> io::Result<Arc<File>> {
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = open.get(file) {
            return Ok(found.clone());
        }
        let found = Arc::new(OpenOptions::new().read(true).write(true).open(self.path(file))?);
        open.insert(file.to_string(), found.clone());
        Ok(found)
    }

    /// Makes created, renamed and removed names durable.
    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.shared.path)?.sync_all()
    }

    fn named<T>(&self, what: &str, file: &str, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let path = self.shared.path.join(file);
            io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
        })
    }

    fn create_file(&self, file: &str, len: u64) -> io::Result<()> {
        let unfinished = self.path(&format!("{file}{UNFINISHED}"));
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        let filled = fill(&made, len).and_then(|()| made.sync_all());
        if filled.is_err() {
            // A disk that is full shall not stay so for the half of a file nobody needs.
            let _ = fs::remove_file(&unfinished);
        }
        filled?;
        fs::rename(&unfinished, self.path(file))?;
        self.sync_names()?;
        let mut open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(file.to_string(), Arc::new(made));
        Ok(())
    }
}

/// Really writes each block: what was only reserved would change its metadata at the first write,
/// and a sync would cost twice as much.
fn fill(file: &File, len: u64) -> io::Result<()> {
    let mut offset = 0;
    while offset < len {
        let part = usize::try_from(len - offset).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_all_at(&ZEROS[..part], offset)?;
        offset += part as u64;
    }
    Ok(())
}

fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    // The length is cut to what the file holds before memory is taken for it.
    let rest = file.metadata()?.len().saturating_sub(offset);
    let len = usize::try_from(rest).unwrap_or(usize::MAX).min(len);
    let mut bytes = BytesMut::zeroed(len);
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes.freeze())
}

impl Disk for FileDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.shared.path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if entry.file_type()?.is_file() && name != LOCK_FILE && !name.ends_with(UNFINISHED) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn len(&mut self, file: &str) -> io::Result<u64> {
        let len = self.file(file).and_then(|file| Ok(file.metadata()?.len()));
        self.named("open", file, len)
    }

    fn read(&mut self, file: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        let bytes = self.file(file).and_then(|file| read_at(&file, offset, len));
        self.named("read", file, bytes)
    }

    fn create(&mut self, file: &str, len: u64) -> io::Result<()> {
        let created = self.create_file(file, len);
        self.named("create", file, created)
    }

    fn write(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let written = self.file(file).and_then(|file| file.write_all_at(bytes, offset));
        if written.is_err() {
            // Whatever happened to the file, the next attempt looks at what is there then.
            self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).remove(file);
        }
        self.named("write", file, written)
    }

    fn sync(&mut self, file: &str) -> io::Result<()> {
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        let synced = self.file(file).and_then(|file| file.sync_data());
        self.named("sync", file, synced)
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).remove(file);
        let removed = fs::remove_file(self.path(file)).and_then(|()| self.sync_names());
        self.named("remove", file, removed)
    }
}
