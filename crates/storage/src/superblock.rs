//! The superblock: which disk this is, whose, and how often it was started.

use std::{fmt, io};

use base::{ClusterId, DiskId, NodeId};

use crate::Disk;
use crate::wal::format::Fields;

const FILE: &str = "superblock";
const MAGIC: &[u8; 8] = b"DecrSup\0";
/// The version of all that lies in the data directory, the log and the store included.
const VERSION: u32 = 2;
/// Each copy has a page of its own, so that a write that is cut off hurts only one.
const COPY_BYTES: usize = 4 << 10;
const COPIES: usize = 4;

/// What a node must know of its data directory before anything else. It lies in the file
/// `superblock`, in four copies of one page each:
///
/// ```text
///   0  magic     8        16  sequence   8        56  starts       8
///   8  crc       4        24  disk id   16        64  cluster id  16
///  12  version   4        40  node id    8        80  zeros to 4096
///                         48  zero       8
/// ```
///
/// The highest sequence number counts. An update leaves one copy of the last state alone until
/// the new one is durable in the others, so that one of the two survives whatever happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The disk, drawn at random when it was formatted.
    pub disk_id: DiskId,
    /// The node whose data this is; 0 before it has a number.
    pub node_id: NodeId,
    /// The cluster that the node belongs to; 0 before it belongs to one.
    pub cluster_id: ClusterId,
    /// How often a node was started on it. A disk that shows fewer starts than its peers
    /// remember is an old copy.
    pub starts: u64,
    /// How often it was written.
    sequence: u64,
}

/// Why there is no superblock to go by.
#[derive(Debug)]
pub enum SuperblockError {
    /// The disk failed, or is full.
    Io(io::Error),
    /// Another version of the program wrote it.
    Version(u32),
    /// The file is something else, or none of its copies can be read.
    Damaged,
}

impl Superblock {
    /// The superblock of a disk; none where the disk was never formatted, or that was cut off.
    pub fn read(disk: &mut dyn Disk) -> Result<Option<Superblock>, SuperblockError> {
        if !disk.list()?.iter().any(|file| file == FILE) {
            return Ok(None);
        }
        let (copies, blank) = Superblock::copies(disk)?;
        let newest = copies.into_iter().flatten().max_by_key(|copy| copy.sequence);
        // Formatting writes the first copy before any other, so a lone torn one is its beginning.
        if newest.is_none() && !blank[1..].iter().all(|blank| *blank) {
            return Err(SuperblockError::Damaged);
        }
        Ok(newest)
    }

    /// Makes the superblock of an empty disk.
    pub fn format(disk: &mut dyn Disk, disk_id: DiskId) -> Result<Superblock, SuperblockError> {
        let superblock = Superblock {
            disk_id,
            node_id: NodeId(0),
            cluster_id: ClusterId(0),
            starts: 0,
            sequence: 1,
        };
        disk.create(FILE, (COPIES * COPY_BYTES) as u64)?;
        superblock.write(disk, &[0])?;
        superblock.write(disk, &[1, 2, 3])?;
        Ok(superblock)
    }

    /// Replaces what [`Superblock::read`] gives by this. A crash meanwhile leaves one or the other.
    pub fn update(&mut self, disk: &mut dyn Disk) -> Result<(), SuperblockError> {
        let (copies, _) = Superblock::copies(disk)?;
        let newest = copies.iter().flatten().map(|copy| copy.sequence).max().unwrap_or(0);
        self.sequence = newest.max(self.sequence) + 1;
        let is_newest =
            |copy: &Option<Superblock>| copy.as_ref().is_some_and(|c| c.sequence == newest);
        let kept = copies.iter().rposition(is_newest).unwrap_or(COPIES - 1);
        let others: Vec<usize> = (0..COPIES).filter(|copy| *copy != kept).collect();
        self.write(disk, &others)?;
        self.write(disk, &[kept])
    }

    fn write(&self, disk: &mut dyn Disk, copies: &[usize]) -> Result<(), SuperblockError> {
        let bytes = self.encode();
        for copy in copies {
            disk.write(FILE, (copy * COPY_BYTES) as u64, &bytes)?;
        }
        Ok(disk.sync(FILE)?)
    }

    /// Each copy that can be read, and for each whether it is blank.
    fn copies(
        disk: &mut dyn Disk,
    ) -> Result<([Option<Superblock>; COPIES], [bool; COPIES]), SuperblockError> {
        let mut copies = [const { None }; COPIES];
        let mut blank = [false; COPIES];
        for i in 0..COPIES {
            let bytes = disk.read(FILE, (i * COPY_BYTES) as u64, COPY_BYTES)?;
            blank[i] = bytes.iter().all(|byte| *byte == 0);
            copies[i] = match Superblock::decode(&bytes) {
                Some(Ok(copy)) => Some(copy),
                Some(Err(version)) => return Err(SuperblockError::Version(version)),
                None => None,
            };
        }
        Ok((copies, blank))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(COPY_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.disk_id.0.to_le_bytes());
        bytes.extend_from_slice(&self.node_id.0.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&self.starts.to_le_bytes());
        bytes.extend_from_slice(&self.cluster_id.0.to_le_bytes());
        bytes.resize(COPY_BYTES, 0);
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Result<Superblock, u32>> {
        let mut fields = Fields(bytes);
        if &fields.bytes::<8>()? != MAGIC
            || bytes.len() != COPY_BYTES
            || fields.u32()? != crc32fast::hash(bytes.get(12..)?)
        {
            return None;
        }
        let version = fields.u32()?;
        if version != VERSION {
            return Some(Err(version));
        }
        let sequence = fields.u64()?;
        let disk_id = DiskId(fields.u128()?);
        let node_id = NodeId(fields.u64()?);
        let _zero = fields.u64()?;
        let starts = fields.u64()?;
        let cluster_id = ClusterId(fields.u128()?);
        Some(Ok(Superblock { disk_id, node_id, cluster_id, starts, sequence }))
    }
}

impl From<io::Error> for SuperblockError {
    fn from(error: io::Error) -> SuperblockError {
        SuperblockError::Io(error)
    }
}

impl fmt::Display for SuperblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SuperblockError::Io(error) => write!(f, "the superblock: {error}"),
            SuperblockError::Version(found) => write!(
                f,
                "the superblock has format version {found}, this program knows {VERSION}: start \
                 the version that wrote it"
            ),
            SuperblockError::Damaged => f.write_str(
                "the superblock is damaged in all its copies, or another program's: give the node \
                 an empty data directory",
            ),
        }
    }
}

impl std::error::Error for SuperblockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SuperblockError::Io(error) => Some(error),
            SuperblockError::Version(_) | SuperblockError::Damaged => None,
        }
    }
}
