//! A block: the records that one turn or a few of them made, written in one piece.
//!
//! ```text
//!   head | row payload | row payload | ... | zeros | copy of the head and of all rows | foot
//! ```
//!
//! It begins and ends with a page. A row is a record's identity; it stands before the payload, so
//! that a record can be read by itself, and again at the end, apart from all payloads: both the
//! head and the foot can be found without the other. Each part has a checksum of its own.

use std::collections::BTreeMap;

use base::limits::WAL_IDENTITY_BYTES_MAX;
use base::mutant::{self, Mutant};
use base::{GroupId, Lsn};
use bytes::Bytes;

use super::Identity;
use super::format::{Fields, PAGE, Position, Salt, whole_pages};

const HEAD_MAGIC: &[u8; 8] = b"DecrBlk\0";
const FOOT_MAGIC: &[u8; 8] = b"DecrEnd\0";
/// Bytes of a block's head.
pub(crate) const HEAD_BYTES: usize = 80;
/// Bytes of a row without the identity.
const ROW_BYTES: usize = 32;
/// Bytes of a block's foot.
pub(crate) const FOOT_BYTES: usize = 16;
/// The copy of the head and the rows is shorter than this: rows are a part of what a block may
/// hold before its last record.
const COPY_BYTES_MAX: usize = 2 << 20;

/// What a block says of itself.
///
/// ```text
///   0  magic        8       48  oldest             8
///   8  crc          4       56  first lsn          8
///  12  zero         4       64  records            4
///  16  segment      8       68  pages              4
///  24  block        8       72  end of payloads    4
///  32  synced: block, lsn   76  length of the copy 4
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The segment that it was written for.
    pub(crate) segment: u64,
    /// Number of the block, from 1, over all segments.
    pub(crate) block: u64,
    /// What was durable when the block was made.
    pub(crate) synced: Position,
    /// Segments below this number were not needed any more when the block was made.
    pub(crate) oldest: u64,
    /// Number of the first record, or of the next one where there are none.
    pub(crate) first_lsn: Lsn,
    /// How many records.
    pub(crate) records: u32,
    /// Length of the block in pages.
    pub(crate) pages: u32,
    /// Where the last payload ends.
    pub(crate) payloads_end: u32,
    /// Length of the copy of the head and the rows.
    pub(crate) copy_len: u32,
}

impl Head {
    fn encode(&self, salt: Salt) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(HEAD_MAGIC);
        let longs = [
            self.segment,
            self.block,
            self.synced.block,
            self.synced.lsn.0,
            self.oldest,
            self.first_lsn.0,
        ];
        for (i, field) in longs.into_iter().enumerate() {
            bytes[16 + i * 8..24 + i * 8].copy_from_slice(&field.to_le_bytes());
        }
        let shorts = [self.records, self.pages, self.payloads_end, self.copy_len];
        for (i, field) in shorts.into_iter().enumerate() {
            bytes[64 + i * 4..68 + i * 4].copy_from_slice(&field.to_le_bytes());
        }
        let crc = salt.crc(&[&bytes[12..]]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The head that these bytes begin with, whatever its segment; the salt follows from that.
    pub(crate) fn decode(bytes: &[u8], salt: impl Fn(u64) -> Salt) -> Option<Head> {
        let bytes = bytes.get(..HEAD_BYTES)?;
        let mut fields = Fields(bytes);
        if &fields.bytes::<8>()? != HEAD_MAGIC {
            return None;
        }
        let crc = fields.u32()?;
        let _zero = fields.u32()?;
        let segment = fields.count()?;
        if salt(segment).crc(&[&bytes[12..]]) != crc {
            return None;
        }
        Some(Head {
            segment,
            block: fields.count()?,
            synced: fields.position()?,
            oldest: fields.count()?,
            first_lsn: Lsn(fields.count()?),
            records: fields.u32()?,
            pages: fields.u32()?,
            payloads_end: fields.u32()?,
            copy_len: fields.u32()?,
        })
    }

    /// The last record in this block or before it.
    pub(crate) fn last_lsn(&self) -> Lsn {
        Lsn(self.first_lsn.0.saturating_add(u64::from(self.records)).saturating_sub(1))
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.pages as usize * PAGE
    }
}

/// Where a foot says that its block's copy begins, counted back from the foot's end. `page` is the
/// last page of something.
pub(crate) fn copy_before(page: &[u8]) -> Option<usize> {
    let foot = page.len().checked_sub(FOOT_BYTES)?;
    let mut fields = Fields(page.get(foot..)?);
    let copy_len = fields.u32()? as usize;
    let _crc = fields.u32()?;
    let is_foot = &fields.bytes::<8>()? == FOOT_MAGIC && copy_len <= COPY_BYTES_MAX;
    is_foot.then_some(copy_len + FOOT_BYTES)
}

/// The head in the copy of a block. `end` is what [`copy_before`] found.
pub(crate) fn head_of_copy(end: &[u8], salt: impl Fn(u64) -> Salt) -> Option<Head> {
    let copy = end.get(..end.len().checked_sub(FOOT_BYTES)?)?;
    let head = Head::decode(copy, &salt)?;
    foot_is_valid(end, salt(head.segment)).then_some(head)
}

fn foot_is_valid(end: &[u8], salt: Salt) -> bool {
    let Some((copy, foot)) = end.split_last_chunk::<FOOT_BYTES>() else { return false };
    let mut fields = Fields(foot);
    fields.u32() == u32::try_from(copy.len()).ok()
        && fields.u32() == Some(salt.crc(&[copy]))
        && fields.bytes::<8>().as_ref() == Some(FOOT_MAGIC)
}

/// A record's identity and what is known of its payload.
///
/// ```text
///   0  crc, over the lsn and the rest   4       20  group's record before this one   8
///   4  length of the payload            4       28  flags: 1 = state                 1
///   8  crc of the payload               4       29  length of the identity           1
///  12  group                            8       30  zero 2, then the identity
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) group: GroupId,
    pub(crate) previous: Lsn,
    pub(crate) state: bool,
    pub(crate) identity: Identity,
    pub(crate) payload_len: u32,
    pub(crate) payload_crc: u32,
}

impl Row {
    /// Length of the row in bytes.
    pub(crate) fn len(&self) -> usize {
        ROW_BYTES + self.identity.len()
    }

    /// Appends the row; the checksum stays open until the segment is known.
    fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.payload_len.to_le_bytes());
        bytes.extend_from_slice(&self.payload_crc.to_le_bytes());
        bytes.extend_from_slice(&self.group.0.to_le_bytes());
        bytes.extend_from_slice(&self.previous.0.to_le_bytes());
        bytes.push(u8::from(self.state));
        bytes.push(self.identity.len() as u8);
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.identity);
    }

    fn crc(row: &[u8], lsn: Lsn, salt: Salt) -> u32 {
        salt.crc(&[&lsn.0.to_le_bytes(), &row[4..]])
    }

    /// The row that these bytes begin with, if it is that of this record.
    pub(crate) fn decode(bytes: &[u8], lsn: Lsn, salt: Salt) -> Option<Row> {
        let mut fields = Fields(bytes);
        let crc = fields.u32()?;
        let payload_len = fields.u32()?;
        let payload_crc = fields.u32()?;
        let group = GroupId(fields.u64()?);
        let previous = Lsn(fields.u64()?);
        let flags = fields.u8()?;
        let identity_len = usize::from(fields.u8()?);
        let _zero = fields.u16()?;
        let identity = Identity::new(fields.slice(identity_len)?)?;
        let row = bytes.get(..ROW_BYTES + identity_len)?;
        (Row::crc(row, lsn, salt) == crc).then_some(Row {
            group,
            previous,
            state: flags & 1 != 0,
            identity,
            payload_len,
            payload_crc,
        })
    }
}

/// A row and its payload; none where either is damaged.
pub(crate) fn record(bytes: &Bytes, lsn: Lsn, salt: Salt) -> Option<(Row, Bytes)> {
    let row = Row::decode(bytes, lsn, salt)?;
    let start = row.len();
    let end = start.checked_add(row.payload_len as usize)?;
    let payload = bytes.get(start..end)?;
    let matches = crc32fast::hash(payload) == row.payload_crc;
    (matches || mutant::is(Mutant::ChecksumUnchecked)).then(|| (row, bytes.slice(start..end)))
}

/// A block whose every part was found intact.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) head: Head,
    /// The records, each with where its row begins in the block.
    pub(crate) records: Vec<(usize, Row, Bytes)>,
}

impl Block {
    /// Checks all of a block, which `head` was found at the beginning of.
    pub(crate) fn decode(head: Head, bytes: &Bytes, salt: Salt) -> Option<Block> {
        let copy_len = head.copy_len as usize;
        let copy_start = bytes.len().checked_sub(FOOT_BYTES)?.checked_sub(copy_len)?;
        let payloads_end = head.payloads_end as usize;
        if bytes.len() != head.len() || payloads_end < HEAD_BYTES || payloads_end > copy_start {
            return None;
        }
        let end = bytes.get(copy_start..)?;
        if !foot_is_valid(end, salt) || end.get(..HEAD_BYTES)? != bytes.get(..HEAD_BYTES)? {
            return None;
        }
        let mut copies = end.get(HEAD_BYTES..copy_len)?;
        let mut records = Vec::new();
        let mut at = HEAD_BYTES;
        for i in 0..u64::from(head.records) {
            let (row, payload) =
                record(&bytes.slice(at..payloads_end), Lsn(head.first_lsn.0 + i), salt)?;
            let (copy, rest) = copies.split_at_checked(row.len())?;
            if bytes.get(at..at + row.len())? != copy {
                return None;
            }
            copies = rest;
            let next = at + row.len() + payload.len();
            records.push((at, row, payload));
            at = next;
        }
        (at == payloads_end && copies.is_empty()).then_some(Block { head, records })
    }
}

/// What is left of one record of a damaged block.
#[derive(Debug)]
pub(crate) struct Remains {
    /// Where its row begins in the block, as far as that is known.
    pub(crate) at: usize,
    pub(crate) row: Row,
    /// None where it is damaged.
    pub(crate) payload: Option<Bytes>,
}

/// What can be made out of the records of a block whose head is `head`, in their order. A row that
/// cannot be read in either place hides where the next ones begin, so the list may be shorter than
/// the head says: of the rest nothing is known.
pub(crate) fn salvage(head: &Head, bytes: &Bytes, salt: Salt) -> Vec<Remains> {
    let copy_end = bytes.len().saturating_sub(FOOT_BYTES);
    let payloads_end = (head.payloads_end as usize).min(bytes.len());
    let mut at = HEAD_BYTES;
    let mut copy = copy_end.saturating_sub(head.copy_len as usize) + HEAD_BYTES;
    let mut remains = Vec::new();
    for i in 0..u64::from(head.records) {
        let lsn = Lsn(head.first_lsn.0 + i);
        let row_at = |from: usize, to: usize| Row::decode(bytes.get(from..to)?, lsn, salt);
        let row = row_at(at, payloads_end).or_else(|| row_at(copy, copy_end));
        let Some(row) = row else { break };
        let start = at + row.len();
        let end = start + row.payload_len as usize;
        let intact = |payload: &&[u8]| crc32fast::hash(payload) == row.payload_crc;
        let found = bytes.get(start..end.min(payloads_end)).filter(intact);
        let payload = found.map(|payload| bytes.slice_ref(payload));
        copy += row.len();
        remains.push(Remains { at, row, payload });
        at = end;
    }
    remains
}

/// A block in the making. Payloads are written right where they stay.
#[derive(Debug)]
pub(crate) struct OpenBlock {
    bytes: Vec<u8>,
    /// Where the rows begin.
    rows: Vec<usize>,
    /// Bytes of all rows.
    rows_len: usize,
    first_lsn: Lsn,
    /// The groups of its records, each with its last one that does not restate its state; zero
    /// where all do.
    pub(crate) groups: BTreeMap<GroupId, Lsn>,
}

impl OpenBlock {
    /// An empty block that goes on with this record. `capacity` is what it may grow to without
    /// being moved.
    pub(crate) fn new(first_lsn: Lsn, capacity: usize) -> OpenBlock {
        let mut bytes = Vec::with_capacity(capacity.max(PAGE));
        bytes.resize(HEAD_BYTES, 0);
        OpenBlock { bytes, rows: Vec::new(), rows_len: 0, first_lsn, groups: BTreeMap::new() }
    }

    /// Adds a record.
    pub(crate) fn append(
        &mut self,
        group: GroupId,
        previous: Lsn,
        identity: &[u8],
        state: bool,
        payload: &mut dyn FnMut(&mut Vec<u8>),
    ) {
        let Some(identity) = Identity::new(identity) else {
            panic!("an identity of {} bytes, not {WAL_IDENTITY_BYTES_MAX}", identity.len());
        };
        let lsn = Lsn(self.first_lsn.0 + self.rows.len() as u64);
        let mut row = Row { group, previous, state, identity, payload_len: 0, payload_crc: 0 };
        let at = self.bytes.len();
        row.encode_into(&mut self.bytes);
        let start = self.bytes.len();
        payload(&mut self.bytes);
        assert!(self.bytes.len() >= start, "a payload removed what stood before it");
        let payload_len = self.bytes.len() - start;
        assert!(payload_len < 1 << 30, "a payload of {payload_len} bytes");
        row.payload_len = payload_len as u32;
        row.payload_crc = crc32fast::hash(&self.bytes[start..]);
        self.bytes[at + 4..at + 8].copy_from_slice(&row.payload_len.to_le_bytes());
        self.bytes[at + 8..at + 12].copy_from_slice(&row.payload_crc.to_le_bytes());
        self.rows.push(at);
        self.rows_len += row.len();
        let last = self.groups.entry(group).or_default();
        if !state {
            *last = lsn;
        }
    }

    /// How many records.
    pub(crate) fn records(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Where the rows begin, in bytes from the block's beginning.
    pub(crate) fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// The length that it will have when sealed.
    pub(crate) fn len(&self) -> usize {
        whole_pages(self.bytes.len() + HEAD_BYTES + self.rows_len + FOOT_BYTES)
    }

    /// The finished block, for this segment.
    pub(crate) fn seal(
        self,
        salt: Salt,
        segment: u64,
        block: u64,
        synced: Position,
        oldest: u64,
    ) -> Bytes {
        let len = self.len();
        let mut bytes = self.bytes;
        let payloads_end = bytes.len();
        let copy_len = HEAD_BYTES + self.rows_len;
        assert!(copy_len <= COPY_BYTES_MAX, "{} rows in a block", self.rows.len());
        let head = Head {
            segment,
            block,
            synced,
            oldest,
            first_lsn: self.first_lsn,
            records: self.rows.len() as u32,
            pages: (len / PAGE) as u32,
            payloads_end: payloads_end as u32,
            copy_len: copy_len as u32,
        };
        bytes[..HEAD_BYTES].copy_from_slice(&head.encode(salt));
        bytes.resize(len - FOOT_BYTES - copy_len, 0);
        bytes.extend_from_within(..HEAD_BYTES);
        for (i, &at) in self.rows.iter().enumerate() {
            let end = at + ROW_BYTES + usize::from(bytes[at + 29]);
            let crc = Row::crc(&bytes[at..end], Lsn(self.first_lsn.0 + i as u64), salt);
            bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            bytes.extend_from_within(at..end);
        }
        let crc = salt.crc(&[&bytes[len - FOOT_BYTES - copy_len..]]);
        bytes.extend_from_slice(&(copy_len as u32).to_le_bytes());
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(FOOT_MAGIC);
        assert!(bytes.len() == len, "a block of {} bytes, not {len}", bytes.len());
        Bytes::from(bytes)
    }
}
