//! What blocks and segment headers share: pages, little-endian fields, salted checksums.

use base::limits::COUNT_MAX;
use base::{DiskId, Lsn};
use crc32fast::Hasher;

/// Everything is written in whole pages, at offsets that are multiples of a page.
pub(crate) const PAGE: usize = 4 << 10;

/// The length in bytes, rounded up to whole pages.
pub(crate) fn whole_pages(len: usize) -> usize {
    len.div_ceil(PAGE) * PAGE
}

/// A place in the sequence of blocks: the block, and the last record up to and including it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Number of the block, from 1.
    pub(crate) block: u64,
    /// The last record in it or before it.
    pub(crate) lsn: Lsn,
}

/// Where the checksums of a segment begin: they depend on the disk and on the use of the file, so
/// that nothing that was left in the file by an earlier use, or came from another disk, is valid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Salt(u32);

impl Salt {
    /// The salt of a segment.
    pub(crate) fn new(disk: DiskId, segment: u64) -> Salt {
        let mut hasher = Hasher::new();
        hasher.update(&disk.0.to_le_bytes());
        hasher.update(&segment.to_le_bytes());
        Salt(hasher.finalize())
    }

    /// The checksum of these parts, one after the other.
    pub(crate) fn crc(self, parts: &[&[u8]]) -> u32 {
        let mut hasher = Hasher::new_with_initial(self.0);
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// Reads fields one after the other; none where the bytes end.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A number that is counted on from; none where nothing was ever counted so far.
    pub(crate) fn count(&mut self) -> Option<u64> {
        self.u64().filter(|count| *count <= COUNT_MAX)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.bytes().map(u128::from_le_bytes)
    }

    pub(crate) fn position(&mut self) -> Option<Position> {
        Some(Position { block: self.count()?, lsn: Lsn(self.count()?) })
    }

    pub(crate) fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }
}
