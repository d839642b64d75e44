//! Which shard a key belongs to: the hash slots of Redis Cluster, cut into equal ranges.

use std::ops::RangeInclusive;

use base::ShardId;
use base::limits::HASH_SLOTS;

/// The hash slot of a key: the checksum of its tag, modulo the number of slots.
pub fn hash_slot(key: &[u8]) -> u16 {
    crc16(hash_tag(key)) % HASH_SLOTS
}

/// The part of a key that is hashed: what stands between the first `{` and the next `}` if that is
/// not empty, else the whole key. Keys with equal tags share a shard.
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
    let inside = &key[open + 1..];
    match inside.iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(close) => &inside[..close],
    }
}

/// The shard of a key in a cluster of so many shards (at least 1).
pub fn shard_of(key: &[u8], shards: u16) -> ShardId {
    shard_of_slot(hash_slot(key), shards)
}

/// The shard of a hash slot in a cluster of so many shards (at least 1).
pub fn shard_of_slot(slot: u16, shards: u16) -> ShardId {
    assert!(shards > 0, "a cluster has at least one shard");
    let shard = u32::from(slot) * u32::from(shards) / u32::from(HASH_SLOTS);
    ShardId(shard as u16)
}

/// The hash slots of a shard in a cluster of so many shards; none where the cluster has no such
/// shard.
pub fn slots_of(shard: ShardId, shards: u16) -> Option<RangeInclusive<u16>> {
    if shard.0 >= shards || shards > HASH_SLOTS {
        return None;
    }
    let first = |number: u32| (number * u32::from(HASH_SLOTS)).div_ceil(u32::from(shards));
    let (from, to) = (first(u32::from(shard.0)), first(u32::from(shard.0) + 1));
    Some(from as u16..=(to - 1) as u16)
}

/// CRC-16 in its XMODEM form: polynomial 0x1021, start 0, nothing reflected.
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let index = (crc >> 8) ^ u16::from(*byte);
        (crc << 8) ^ TABLE[usize::from(index)]
    })
}

/// What each byte does to the checksum.
const TABLE: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_the_one_of_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(hash_slot(b"foo"), 12_182);
        assert_eq!(hash_slot(b"bar"), 5_061);
        assert_eq!(hash_slot(b""), 0);
    }

    #[test]
    fn only_the_first_tag_counts_and_an_empty_one_does_not() {
        assert_eq!(hash_slot(b"{user1000}.following"), hash_slot(b"{user1000}.followers"));
        assert_eq!(hash_slot(b"{user1000}.following"), hash_slot(b"user1000"));
        assert_eq!(hash_tag(b"foo{}{bar}"), b"foo{}{bar}");
        assert_eq!(hash_tag(b"foo{{bar}}zap"), b"{bar");
        assert_eq!(hash_tag(b"foo{bar}{zap}"), b"bar");
        assert_eq!(hash_tag(b"foo{bar"), b"foo{bar");
        assert_eq!(hash_tag(b"}foo{bar}"), b"bar");
        assert_eq!(hash_tag(b"{"), b"{");
    }

    #[test]
    fn there_are_no_slots_for_a_shard_that_does_not_exist() {
        assert_eq!(slots_of(ShardId(2), 2), None);
        assert_eq!(slots_of(ShardId(0), 0), None);
        assert_eq!(slots_of(ShardId(0), 1), Some(0..=16_383));
    }

    proptest! {
        #[test]
        fn the_ranges_of_all_shards_cover_each_slot_once(shards in 1..=HASH_SLOTS) {
            let mut next = 0;
            for shard in 0..shards {
                let range = slots_of(ShardId(shard), shards).unwrap();
                prop_assert_eq!(*range.start(), next);
                prop_assert!(range.start() <= range.end());
                prop_assert_eq!(shard_of_slot(*range.start(), shards), ShardId(shard));
                prop_assert_eq!(shard_of_slot(*range.end(), shards), ShardId(shard));
                next = *range.end() + 1;
            }
            prop_assert_eq!(next, HASH_SLOTS);
        }
    }
}
