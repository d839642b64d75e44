//! What the write-ahead log asks of a disk.

use std::io;

use bytes::Bytes;

/// A directory of flat files. The runtime gives real ones, the simulator a model that loses what
/// was not synced. Calls block; whoever must not wait hands them to a thread of its own.
pub trait Disk: Send {
    /// The names of all files, in order.
    fn list(&mut self) -> io::Result<Vec<String>>;

    /// The length of a file in bytes.
    fn len(&mut self, file: &str) -> io::Result<u64>;

    /// Reads `len` bytes at `offset`; fewer where the file ends before.
    fn read(&mut self, file: &str, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Makes a file of `len` bytes, every block of it written with zeros, and syncs it and the
    /// directory: overwriting such blocks needs no change of the file's metadata, which halves the
    /// cost of a later sync. An existing file of that name is replaced.
    fn create(&mut self, file: &str, len: u64) -> io::Result<()>;

    /// Writes at `offset`; durable only after the next [`Disk::sync`] of the file.
    fn write(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes all earlier writes to the file durable. After an error nothing is known about them,
    /// and the caller must stop.
    fn sync(&mut self, file: &str) -> io::Result<()>;

    /// Removes a file, durably.
    fn remove(&mut self, file: &str) -> io::Result<()>;
}
