//! What the world can do to the log.

use std::{fmt, io};

use base::{DiskId, Lsn};

/// Why the log could not be opened. In every case nothing was written and nothing removed, save
/// where an [`WalError::Io`] came while the new segment was being made.
#[derive(Debug)]
pub enum WalError {
    /// The disk failed, or is full.
    Io {
        /// What was being done.
        doing: String,
        /// What the disk said.
        source: io::Error,
    },
    /// Something that had been made durable cannot be read.
    Corrupt {
        /// The file in which the log breaks off.
        file: String,
        /// Where, in bytes.
        offset: u64,
        /// The first record that is missing.
        lsn: Lsn,
        /// What is wrong there, for a person.
        what: String,
    },
    /// Another version of the program wrote the log.
    Version {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// The one that this program knows.
        expected: u32,
    },
    /// The log belongs to another disk.
    OtherDisk {
        /// The file.
        file: String,
        /// The disk that it names.
        found: DiskId,
        /// The disk that it was found on.
        expected: DiskId,
    },
}

impl fmt::Display for WalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalError::Io { doing, source } => {
                write!(f, "the write-ahead log: {doing}: {source}")
            }
            WalError::Corrupt { file, offset, lsn, what } => write!(
                f,
                "the write-ahead log is damaged: {file} at byte {offset}, record {}: {what}. \
                 Nothing was changed. The other replicas are not affected: unless these very \
                 files can be read elsewhere, replace this node by one with an empty directory",
                lsn.0
            ),
            WalError::Version { file, found, expected } => write!(
                f,
                "the write-ahead log: {file} has format version {found}, this program knows \
                 {expected}: start the version that wrote it"
            ),
            WalError::OtherDisk { file, found, expected } => write!(
                f,
                "the write-ahead log: {file} belongs to disk {found}, but this is disk {expected}: \
                 files of two data directories were mixed"
            ),
        }
    }
}

impl std::error::Error for WalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            WalError::Io { source, .. } => Some(source),
            WalError::Corrupt { .. } | WalError::Version { .. } | WalError::OtherDisk { .. } => {
                None
            }
        }
    }
}

/// Why a record cannot be had from the bytes that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The log has let go of the record; the file may be in use again.
    Gone,
    /// The record is still needed, and damaged.
    Damaged,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReadError::Gone => "the write-ahead log has let go of this record",
            ReadError::Damaged => "a record of the write-ahead log is damaged",
        })
    }
}

impl std::error::Error for ReadError {}
