//! The keys of a data group's records within the group's part of the store.
//!
//! ```text
//! shard u16, copy u64, kind u8, key     a record of a shard
//! shard u16, 0 u64, kind u8             the shard's own record
//! 65535 u16, kind u8                    a record of the group itself
//! ```
//!
//! Numbers are big-endian, so that a shard, a copy and a kind are each one range. The copy tells
//! the records that a migration brought from those of an earlier stay of the same shard. No copy
//! has the number 0: a shard's own record is its first, and outlives every copy.

use base::{CopyId, ShardId};

/// What a record of a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A key and its value.
    Data = 1,
    /// A session row, or with an empty key the horizon.
    Session = 2,
    /// The shard's own record; its key is empty.
    Meta = 3,
    // 4 is reserved for the index of what expires.
    /// That a record is removed, kept while a hand-off may have to tell; its key is the record's
    /// kind and key.
    Tombstone = 5,
}

/// No shard has this number.
const GROUP: u16 = u16::MAX;
const _: () = assert!(base::limits::SHARDS_MAX < GROUP);

/// The length of what stands before a record's own key.
pub const PREFIX_BYTES: usize = 11;

/// The length of what all records of a copy begin with.
pub const COPY_PREFIX_BYTES: usize = 10;

/// Migrations count from 1.
pub const NO_COPY: CopyId = CopyId(0);

/// What all records of a kind of one copy of a shard begin with.
pub fn prefix(shard: ShardId, copy: CopyId, kind: Kind) -> Vec<u8> {
    record(shard, copy, kind, &[])
}

/// The key of a record of a shard.
pub fn record(shard: ShardId, copy: CopyId, kind: Kind, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(PREFIX_BYTES + key.len());
    full.extend_from_slice(&shard.0.to_be_bytes());
    full.extend_from_slice(&copy.0.to_be_bytes());
    full.push(kind as u8);
    full.extend_from_slice(key);
    full
}

/// The end of the range that [`prefix`] begins.
pub fn prefix_end(shard: ShardId, copy: CopyId, kind: Kind) -> Vec<u8> {
    let mut end = prefix(shard, copy, kind);
    // Kinds are small numbers, so the next one is the next prefix.
    end[PREFIX_BYTES - 1] += 1;
    end
}

/// The key of a shard's own record.
pub fn shard_meta(shard: ShardId) -> Vec<u8> {
    record(shard, NO_COPY, Kind::Meta, &[])
}

/// The key of the tombstone of a record.
pub fn tombstone(shard: ShardId, copy: CopyId, of: Kind, key: &[u8]) -> Vec<u8> {
    let mut full = prefix(shard, copy, Kind::Tombstone);
    full.push(of as u8);
    full.extend_from_slice(key);
    full
}

/// All records of a copy: from here, to before there.
pub fn copy_range(shard: ShardId, copy: CopyId) -> (Vec<u8>, Vec<u8>) {
    let mut from = prefix(shard, copy, Kind::Data);
    from.truncate(COPY_PREFIX_BYTES);
    let mut to = from.clone();
    // Kinds are below this.
    to.push(u8::MAX);
    (from, to)
}

/// The key of the group's own record.
pub fn group_meta() -> Vec<u8> {
    let mut key = GROUP.to_be_bytes().to_vec();
    key.push(Kind::Meta as u8);
    key
}

/// Where the records of this shard, and of all after it, begin; and where those of shards end.
pub fn shards_from(shard: u16) -> (Vec<u8>, Vec<u8>) {
    (shard.to_be_bytes().to_vec(), GROUP.to_be_bytes().to_vec())
}

/// The shard and the copy that a record's key names.
pub fn parse(key: &[u8]) -> Option<(ShardId, CopyId)> {
    let shard = key.get(..2)?.try_into().ok()?;
    let copy = key.get(2..10)?.try_into().ok()?;
    Some((ShardId(u16::from_be_bytes(shard)), CopyId(u64::from_be_bytes(copy))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_each_copy_is_a_range_of_its_own() {
        let (shard, copy) = (ShardId(3), CopyId(255));
        let key = record(shard, copy, Kind::Data, &[0xff; 9]);
        assert!(prefix(shard, copy, Kind::Data) <= key);
        assert!(key < prefix_end(shard, copy, Kind::Data));
        assert_eq!(prefix_end(shard, copy, Kind::Data), prefix(shard, copy, Kind::Session));
        assert!(key < record(shard, CopyId(256), Kind::Data, &[]));
        assert!(key < record(ShardId(4), CopyId(0), Kind::Data, &[]));
        assert!(record(ShardId(16_383), CopyId(u64::MAX), Kind::Meta, b"x") < group_meta());
        assert_eq!(parse(&key), Some((shard, copy)));
        assert!(shard_meta(shard) < record(shard, CopyId(1), Kind::Data, &[]));
        let tombstone = tombstone(shard, copy, Kind::Data, &[0xff; 9]);
        let (from, to) = copy_range(shard, copy);
        assert!(from <= key && tombstone < to);
        assert!(to < record(shard, CopyId(256), Kind::Data, &[]));
        assert_eq!(parse(b"short"), None);
    }
}
