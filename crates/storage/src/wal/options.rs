//! What the log is told, and what it tells.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

use base::limits::{WAL_BYTES_MAX_DEFAULT, WAL_IDENTITY_BYTES_MAX, WAL_SEGMENT_BYTES_DEFAULT};
use base::{DiskId, GroupId, Lsn};
use bytes::Bytes;

use super::format::PAGE;

/// How a log is laid out and paced. The sizes may differ from start to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalOptions {
    /// The disk that the log belongs to.
    pub disk_id: DiskId,
    /// Size of a segment in bytes: whole pages of 4 KiB, at least 4 of them, at most 1 GiB. A
    /// block that does not fit gets a segment of its own.
    pub segment_bytes: u64,
    /// Size of the log in bytes at which new writes are refused; at least 4 segments. Two of them
    /// are held back for what cannot be refused.
    pub bytes_max: u64,
    /// Most flights to the disk at a time, each of one block in most cases. With 2, the disk has
    /// the next one at hand when it is done with the first.
    pub in_flight_max: usize,
}

impl WalOptions {
    /// The usual layout.
    pub fn new(disk_id: DiskId) -> WalOptions {
        WalOptions {
            disk_id,
            segment_bytes: WAL_SEGMENT_BYTES_DEFAULT,
            bytes_max: WAL_BYTES_MAX_DEFAULT,
            in_flight_max: 2,
        }
    }

    /// What is wrong with them.
    pub fn validate(&self) -> Result<(), String> {
        let page = PAGE as u64;
        if !self.segment_bytes.is_multiple_of(page)
            || !(4 * page..=1 << 30).contains(&self.segment_bytes)
        {
            return Err(format!(
                "a segment of {} bytes: give a multiple of 4096 from 16384 to 1073741824",
                self.segment_bytes
            ));
        }
        if self.bytes_max < 4 * self.segment_bytes {
            return Err(format!(
                "a write-ahead log of {} bytes: it needs 4 segments of {}",
                self.bytes_max, self.segment_bytes
            ));
        }
        if self.in_flight_max == 0 {
            return Err("no block may be in flight: give at least 1".to_owned());
        }
        Ok(())
    }

    /// A block that has grown to this size takes no further record.
    pub(crate) fn block_bytes_max(&self) -> usize {
        (self.segment_bytes / 4).clamp(PAGE as u64, 1 << 20) as usize
    }
}

/// What names a record within its group; opaque to the log, which stores it twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    len: u8,
    bytes: [u8; WAL_IDENTITY_BYTES_MAX],
}

impl Identity {
    /// The identity with these bytes; none where they are too many.
    pub fn new(identity: &[u8]) -> Option<Identity> {
        let mut bytes = [0; WAL_IDENTITY_BYTES_MAX];
        bytes.get_mut(..identity.len())?.copy_from_slice(identity);
        Some(Identity { len: identity.len() as u8, bytes })
    }
}

impl Deref for Identity {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A record as it is found at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredRecord {
    /// Its number.
    pub lsn: Lsn,
    /// Its group.
    pub group: GroupId,
    /// What names it within the group.
    pub identity: Identity,
    /// Whether it restates the group's state.
    pub state: bool,
    /// Its content. It shares a buffer of about a mebibyte with its neighbours: what is kept for
    /// long should be copied, unless the neighbours are kept too.
    pub payload: Bytes,
}

/// What a start finds at one place of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// A record.
    Record(RecoveredRecord),
    /// A record whose payload cannot be read; its identity can.
    Damaged {
        /// Its number.
        lsn: Lsn,
        /// Its group.
        group: GroupId,
        /// What names it within the group.
        identity: Identity,
        /// Whether it restates the group's state.
        state: bool,
    },
    /// Records of which nothing can be read.
    Lost {
        /// The first of them.
        first: Lsn,
        /// The last of them.
        last: Lsn,
    },
}

/// What was found at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segments that were read.
    pub segments: usize,
    /// Records in them.
    pub records: u64,
    /// Bytes of the blocks in them.
    pub bytes: u64,
    /// Whether something written but never vouched for was dropped: where it began, for a person.
    pub dropped: Option<String>,
    /// The last record that something on the disk knew to be durable: damage to it or to an earlier
    /// one is noticed.
    pub vouched: Lsn,
    /// What had been durable and cannot be read, for a person, one line for each place.
    pub damage: Vec<String>,
    /// Groups that may have had records among those that were lost: their chain of records breaks
    /// there, or nothing that follows proves that it does not.
    pub doubted: BTreeSet<GroupId>,
    /// Whether records were lost of which not even the group is known. A group that had all its
    /// records there is not among those doubted.
    pub lost: bool,
}

/// Figures of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Segments that are needed, the one being written included.
    pub segments: usize,
    /// Files ready to become segments.
    pub segments_spare: usize,
    /// Bytes of the segments that are needed; of the one being written only the used ones.
    pub bytes_live: u64,
    /// Bytes that are appended but not sent to the disk.
    pub bytes_pending: u64,
    /// Flights to the disk under way.
    pub in_flight: usize,
    /// Blocks sent to the disk since the start.
    pub blocks_written: u64,
    /// Bytes of these.
    pub bytes_written: u64,
    /// Flights that became durable since the start. The disk may have synced several at once.
    pub flights_done: u64,
}
