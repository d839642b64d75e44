//! The first page of a segment's file.

use base::DiskId;

use super::format::{Fields, PAGE, Position};

/// The version of the whole format: header, blocks and records.
pub(crate) const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"DecrWAL\0";
/// Bytes of one copy of the header, its unused rest included, which every version shares.
const COPY_BYTES: usize = 512;
/// The second copy lies in a part of the page that a disk writes and loses by itself.
const COPY_OFFSETS: [usize; 2] = [0, 2048];

/// What a segment says of itself, and of what lies before it.
///
/// ```text
///   0  magic      8        48  continues: segment   8
///   8  crc        4        56  continues: block     8
///  12  version    4        64  continues: lsn       8
///  16  disk id   16        72  synced: block        8
///  32  segment    8        80  synced: lsn          8
///  40  oldest     8        88  zeros to 512
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The disk that the log belongs to.
    pub(crate) disk_id: DiskId,
    /// Which use of a file this is, over all files, from 1.
    pub(crate) segment: u64,
    /// Segments below this number are not needed any more.
    pub(crate) oldest: u64,
    /// The segment before this one, 0 for the first. What lies between the two was dropped.
    pub(crate) continues: u64,
    /// The last block of the segment before this one; this one goes on with the next numbers.
    pub(crate) end: Position,
    /// What was durable before this header was made.
    pub(crate) synced: Position,
}

/// Why a page is not a header that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// It is blank, torn or damaged, or never was one.
    Unreadable,
    /// Another version of this program wrote it.
    Version(u32),
}

impl Header {
    /// The page.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(COPY_BYTES);
        copy.extend_from_slice(MAGIC);
        copy.extend_from_slice(&[0; 4]);
        copy.extend_from_slice(&VERSION.to_le_bytes());
        copy.extend_from_slice(&self.disk_id.0.to_le_bytes());
        for field in [
            self.segment,
            self.oldest,
            self.continues,
            self.end.block,
            self.end.lsn.0,
            self.synced.block,
            self.synced.lsn.0,
        ] {
            copy.extend_from_slice(&field.to_le_bytes());
        }
        copy.resize(COPY_BYTES, 0);
        let crc = crc32fast::hash(&copy[12..]);
        copy[8..12].copy_from_slice(&crc.to_le_bytes());
        let mut page = vec![0; PAGE];
        for offset in COPY_OFFSETS {
            page[offset..offset + COPY_BYTES].copy_from_slice(&copy);
        }
        page
    }

    /// The header in this page, by either of its copies.
    pub(crate) fn decode(page: &[u8]) -> Result<Header, HeaderError> {
        let mut result = Err(HeaderError::Unreadable);
        for offset in COPY_OFFSETS {
            let copy = page.get(offset..offset + COPY_BYTES).unwrap_or_default();
            match Header::decode_copy(copy) {
                Some(Ok(header)) => return Ok(header),
                Some(Err(version)) => result = Err(HeaderError::Version(version)),
                None => {}
            }
        }
        result
    }

    fn decode_copy(copy: &[u8]) -> Option<Result<Header, u32>> {
        let mut fields = Fields(copy);
        if &fields.bytes::<8>()? != MAGIC || fields.u32()? != crc32fast::hash(copy.get(12..)?) {
            return None;
        }
        let version = fields.u32()?;
        if version != VERSION {
            return Some(Err(version));
        }
        let header = Header {
            disk_id: DiskId(fields.u128()?),
            segment: fields.count()?,
            oldest: fields.count()?,
            continues: fields.count()?,
            end: fields.position()?,
            synced: fields.position()?,
        };
        (header.continues < header.segment).then_some(Ok(header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Lsn;
    use base::limits::COUNT_MAX;

    #[test]
    fn numbers_that_cannot_be_counted_on_from_are_damage() {
        let position = |n| Position { block: n, lsn: Lsn(n) };
        let header = |segment, end| Header {
            disk_id: DiskId(1),
            segment,
            oldest: 1,
            continues: 1,
            end: position(end),
            synced: position(1),
        };
        let good = header(COUNT_MAX, COUNT_MAX);
        assert_eq!(Header::decode(&good.encode()), Ok(good));
        for far in [header(u64::MAX, 1), header(2, u64::MAX), header(2, COUNT_MAX + 1)] {
            assert_eq!(Header::decode(&far.encode()), Err(HeaderError::Unreadable));
        }
    }
}
