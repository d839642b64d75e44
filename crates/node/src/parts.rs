//! Parts of a group's state on their way to another replica (`docs/paxos.md` 11.11).
//!
//! ```text
//! records = record*
//! record  = length of key u32, length of value u32, key, value
//! ```
//! Numbers are big-endian; keys are without their group and generation, and grow.

use bytes::{Buf, BufMut, Bytes};
use minicbor::{Decode, Encode};
use xxhash_rust::xxh3::Xxh3;

/// How many records, and a digest of them that does not depend on how they are divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Total {
    /// Records.
    #[n(0)]
    pub(crate) records: u64,
    /// Bytes of their keys and values.
    #[n(1)]
    pub(crate) bytes: u64,
    /// The upper and the lower half of the wrapping sum of their hashes.
    #[n(2)]
    digest: (u64, u64),
}

impl Total {
    /// Of these records.
    pub(crate) fn of<'a>(records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Total {
        let mut total = Total::default();
        for (key, value) in records {
            let mut hash = Xxh3::new();
            hash.update(&(key.len() as u64).to_be_bytes());
            hash.update(key);
            hash.update(value);
            total.add(Total {
                records: 1,
                bytes: (key.len() + value.len()) as u64,
                digest: split(hash.digest128()),
            });
        }
        total
    }

    /// Adds others.
    pub(crate) fn add(&mut self, more: Total) {
        self.records = self.records.wrapping_add(more.records);
        self.bytes = self.bytes.wrapping_add(more.bytes);
        self.digest = split(join(self.digest).wrapping_add(join(more.digest)));
    }
}

fn split(digest: u128) -> (u64, u64) {
    ((digest >> 64) as u64, digest as u64)
}

fn join((upper, lower): (u64, u64)) -> u128 {
    u128::from(upper) << 64 | u128::from(lower)
}

/// The bytes of records.
pub(crate) fn encode(records: &[(Bytes, Bytes)]) -> Bytes {
    let bytes = records.iter().map(|(key, value)| 8 + key.len() + value.len()).sum();
    let mut out = Vec::with_capacity(bytes);
    for (key, value) in records {
        out.put_u32(key.len() as u32);
        out.put_u32(value.len() as u32);
        out.put_slice(key);
        out.put_slice(value);
    }
    Bytes::from(out)
}

/// The records of bytes that came from another node; none where they are not such.
pub(crate) fn decode(mut bytes: Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    let mut records: Vec<(Bytes, Bytes)> = Vec::new();
    while !bytes.is_empty() {
        if bytes.len() < 8 {
            return None;
        }
        let (key, value) = (bytes.get_u32() as usize, bytes.get_u32() as usize);
        if bytes.len() < key.saturating_add(value) {
            return None;
        }
        let record = (bytes.split_to(key), bytes.split_to(value));
        if records.last().is_some_and(|(last, _)| *last >= record.0) {
            return None;
        }
        records.push(record);
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn records(count: u8) -> Vec<(Bytes, Bytes)> {
        (0..count).map(|n| (Bytes::from(vec![n]), Bytes::from(vec![n; n as usize]))).collect()
    }

    fn total(records: &[(Bytes, Bytes)]) -> Total {
        Total::of(records.iter().map(|(key, value)| (&key[..], &value[..])))
    }

    #[test]
    fn records_come_back_as_they_were() {
        let sent = records(20);
        assert_eq!(decode(encode(&sent)).unwrap(), sent);
    }

    #[test]
    fn bytes_that_are_no_records_are_refused() {
        let good = encode(&records(5));
        for cut in 1..good.len() {
            let found = decode(good.slice(..cut));
            assert!(found.is_none_or(|found| found.len() < 5), "cut at {cut}");
        }
        let mut twice = good.to_vec();
        twice.extend_from_slice(&good);
        assert_eq!(decode(Bytes::from(twice)), None, "keys must grow");
        assert_eq!(decode(Bytes::from_static(&[255; 40])), None);
    }

    #[test]
    fn i28_a_total_does_not_depend_on_the_division_and_notices_every_change() {
        let all = records(20);
        let (first, rest) = all.split_at(7);
        let mut sum = total(rest);
        sum.add(total(first));
        assert_eq!(sum, total(&all));
        for place in 0..all.len() {
            let mut other = all.clone();
            other[place].1 = Bytes::from_static(b"another");
            assert_ne!(total(&other), total(&all));
            other.remove(place);
            assert_ne!(total(&other), total(&all));
        }
        let shifted = [(Bytes::from_static(b"ab"), Bytes::from_static(b"c"))];
        let moved = [(Bytes::from_static(b"a"), Bytes::from_static(b"bc"))];
        assert_ne!(total(&shifted), total(&moved));
    }
}
