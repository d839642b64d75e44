//! A model of a disk with its page cache, for the simulator and for tests.

use std::collections::BTreeMap;
use std::io;

use base::Random;
use bytes::Bytes;

use crate::Disk;

/// Size of a page of the cache.
const PAGE: usize = 4 << 10;
/// Size of what a disk writes as one, as long as nothing is torn.
const SECTOR: usize = 512;

/// Files in memory, each with what the disk has and what only the page cache has.
///
/// Reads see the cache. [`MemoryDisk::crash`] is the loss of power: of every sector that was
/// written but not synced, the disk then has the old content or the new, or, where asked for, the
/// beginning of the new and the end of the old, each sector by itself. A process that is killed
/// loses nothing of what it wrote: that is the same disk, used on.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    files: BTreeMap<String, File>,
    fault: Option<DiskFault>,
    bytes_max: Option<u64>,
    stats: DiskStats,
}

/// What the disk does wrong, once its countdown is over; each call that could fail counts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Writes fail after so many more of them, and leave a part of their bytes behind.
    Write(u64),
    /// Syncs fail after so many more of them; what was not synced is then lost or not, as in a
    /// crash.
    Sync(u64),
    /// Reads fail after so many more of them.
    Read(u64),
    /// Creations of files fail after so many more of them.
    Create(u64),
}

/// What was asked of the disk so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Calls of [`Disk::write`].
    pub writes: u64,
    /// Bytes of these.
    pub bytes_written: u64,
    /// Calls of [`Disk::sync`].
    pub syncs: u64,
    /// Calls of [`Disk::create`].
    pub creates: u64,
}

/// The calls that can fail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Write,
    Sync,
    Read,
    Create,
}

#[derive(Clone, Debug, Default)]
struct File {
    durable: Vec<u8>,
    /// Pages by their number that were written since the last sync, whole.
    cached: BTreeMap<usize, Vec<u8>>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// The power fails. With `tear`, sectors may be torn within.
    pub fn crash(&mut self, random: &mut Random, tear: bool) {
        for file in self.files.values_mut() {
            file.crash(random, tear);
        }
    }

    /// From now on the disk has this fault; none mends it.
    pub fn set_fault(&mut self, fault: Option<DiskFault>) {
        self.fault = fault;
    }

    /// The fault that it has.
    pub fn fault(&self) -> Option<DiskFault> {
        self.fault
    }

    /// The disk's size: creating and growing files beyond it fails. None means unlimited.
    pub fn set_bytes_max(&mut self, bytes_max: Option<u64>) {
        self.bytes_max = bytes_max;
    }

    /// Whether nothing can grow any more.
    pub fn is_full(&self) -> bool {
        self.bytes_max.is_some_and(|max| self.bytes() >= max)
    }

    /// Inverts bits of a byte, in the cache and on the disk; beyond the file's end nothing.
    pub fn flip(&mut self, file: &str, offset: u64, mask: u8) {
        let Some(file) = self.files.get_mut(file) else { return };
        let offset = offset as usize;
        if let Some(byte) = file.durable.get_mut(offset) {
            *byte ^= mask;
        }
        if let Some(page) = file.cached.get_mut(&(offset / PAGE)) {
            page[offset % PAGE] ^= mask;
        }
    }

    /// Overwrites part of a file with something else, in the cache and on the disk.
    pub fn spoil(&mut self, file: &str, offset: u64, len: usize, random: &mut Random) {
        for at in offset..offset + len as u64 {
            self.flip(file, at, random.next_u64() as u8 | 1);
        }
    }

    /// The disk as it is when nothing of what was not synced survives.
    #[must_use]
    pub fn durable(&self) -> MemoryDisk {
        let mut durable = self.clone();
        durable.files.values_mut().for_each(|file| file.cached.clear());
        durable
    }

    /// Whether anything is written but not synced.
    pub fn is_dirty(&self) -> bool {
        self.files.values().any(|file| !file.cached.is_empty())
    }

    /// The size of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.durable.len() as u64).sum()
    }

    /// What was asked of the disk so far.
    pub fn stats(&self) -> DiskStats {
        self.stats
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        self.files
            .get_mut(name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no file {name}")))
    }

    /// Counts a call of this kind down; true where it fails.
    fn fails(&mut self, call: Call) -> bool {
        let Some(fault) = &mut self.fault else { return false };
        let (left, kind) = match fault {
            DiskFault::Write(left) => (left, Call::Write),
            DiskFault::Sync(left) => (left, Call::Sync),
            DiskFault::Read(left) => (left, Call::Read),
            DiskFault::Create(left) => (left, Call::Create),
        };
        if kind != call {
            return false;
        }
        let fails = *left == 0;
        *left = left.saturating_sub(1);
        fails
    }
}

/// The error of a device that failed.
fn broken(what: &str, file: &str) -> io::Error {
    io::Error::other(format!("input/output error when {what} {file}"))
}

impl File {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > self.durable.len() {
            self.durable.resize(end, 0);
        }
        let mut at = offset;
        while at < end {
            let page = at / PAGE;
            let stop = ((page + 1) * PAGE).min(end);
            let durable = &self.durable;
            let cached = self.cached.entry(page).or_insert_with(|| {
                let mut copy = durable[page * PAGE..durable.len().min((page + 1) * PAGE)].to_vec();
                copy.resize(PAGE, 0);
                copy
            });
            cached[at - page * PAGE..stop - page * PAGE]
                .copy_from_slice(&bytes[at - offset..stop - offset]);
            at = stop;
        }
    }

    fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let start = offset.min(self.durable.len());
        let end = offset.saturating_add(len).min(self.durable.len());
        let mut bytes = self.durable[start..end].to_vec();
        if bytes.is_empty() {
            return bytes;
        }
        for (page, cached) in self.cached.range(start / PAGE..=(end - 1) / PAGE) {
            let from = (page * PAGE).max(start);
            let to = ((page + 1) * PAGE).min(end);
            bytes[from - start..to - start]
                .copy_from_slice(&cached[from - page * PAGE..to - page * PAGE]);
        }
        bytes
    }

    fn sync(&mut self) {
        for (page, cached) in std::mem::take(&mut self.cached) {
            self.settle(page * PAGE, &cached);
        }
    }

    fn crash(&mut self, random: &mut Random, tear: bool) {
        for (page, cached) in std::mem::take(&mut self.cached) {
            for (i, sector) in cached.chunks(SECTOR).enumerate() {
                let kept = match random.below(if tear { 5 } else { 4 }) {
                    0 | 1 => 0,
                    2 | 3 => sector.len(),
                    _ => random.below(SECTOR as u64) as usize,
                };
                self.settle(page * PAGE + i * SECTOR, &sector[..kept]);
            }
        }
    }

    fn settle(&mut self, offset: usize, bytes: &[u8]) {
        let start = offset.min(self.durable.len());
        let end = (offset + bytes.len()).min(self.durable.len());
        self.durable[start..end].copy_from_slice(&bytes[..end - start]);
    }
}

impl Disk for MemoryDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn len(&mut self, file: &str) -> io::Result<u64> {
        Ok(self.file(file)?.durable.len() as u64)
    }

    fn read(&mut self, file: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        if self.fails(Call::Read) {
            return Err(broken("reading", file));
        }
        Ok(Bytes::from(self.file(file)?.read(offset as usize, len)))
    }

    fn create(&mut self, file: &str, len: u64) -> io::Result<()> {
        self.stats.creates += 1;
        if self.fails(Call::Create) {
            return Err(broken("creating", file));
        }
        self.files.remove(file);
        let free = self.bytes_max.map_or(u64::MAX, |max| max.saturating_sub(self.bytes()));
        // A disk that fills up meanwhile leaves the part of the file that found room.
        let durable = vec![0; len.min(free) as usize];
        self.files.insert(file.to_owned(), File { durable, cached: BTreeMap::new() });
        if len > free {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"));
        }
        Ok(())
    }

    fn write(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.stats.writes += 1;
        self.stats.bytes_written += bytes.len() as u64;
        if self.fails(Call::Write) {
            let part = &bytes[..bytes.len() / 2];
            self.file(file)?.write(offset as usize, part);
            return Err(broken("writing", file));
        }
        let free = self.bytes_max.map_or(u64::MAX, |max| max.saturating_sub(self.bytes()));
        let found = self.file(file)?;
        let end = offset.saturating_add(bytes.len() as u64);
        if end.saturating_sub(found.durable.len() as u64) > free {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"));
        }
        found.write(offset as usize, bytes);
        Ok(())
    }

    fn sync(&mut self, file: &str) -> io::Result<()> {
        self.stats.syncs += 1;
        if self.fails(Call::Sync) {
            return Err(broken("syncing", file));
        }
        self.file(file)?.sync();
        Ok(())
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        self.file(file)?;
        self.files.remove(file);
        Ok(())
    }
}
