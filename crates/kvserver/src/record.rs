//! How a key's record is stored, and what it adds to its shard's digest.
//!
//! ```text
//! format u8, version u64, length u32, value hash u64, expire_at u64 (0: never), value
//! ```

use base::Version;
use bytes::Bytes;
use replica_group::sessions;
use replica_group::state_machine::EngineError;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::keys::Kind;

/// The record of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The shard's count of changes at the last change of this record.
    pub version: Version,
    /// A hash of the value, so that a digest needs no values.
    pub value_hash: u64,
    /// The value.
    pub value: Bytes,
}

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 29;

impl Record {
    /// The record of a value that is written now.
    pub fn new(version: Version, value: Bytes) -> Record {
        Record { version, value_hash: xxh3_64(&value), value }
    }

    /// The record as it is stored.
    pub fn encode(&self) -> Bytes {
        let Ok(length) = u32::try_from(self.value.len()) else {
            unreachable!("a value of {} bytes was let in", self.value.len());
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + self.value.len());
        out.push(FORMAT);
        out.extend_from_slice(&self.version.0.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.value_hash.to_be_bytes());
        out.extend_from_slice(&0_u64.to_be_bytes());
        out.extend_from_slice(&self.value);
        Bytes::from(out)
    }

    /// The record that is stored as `bytes`; the value shares them.
    pub fn decode(bytes: &Bytes) -> Result<Record, EngineError> {
        let damaged = || EngineError("a record of a key is damaged".to_string());
        let (header, value) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(damaged)?;
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| header[at + i]));
        let length = u32::from_be_bytes(std::array::from_fn(|i| header[9 + i]));
        if header[0] != FORMAT || length as usize != value.len() {
            return Err(damaged());
        }
        Ok(Record {
            version: Version(number(1)),
            value_hash: number(13),
            value: bytes.slice(HEADER_BYTES..),
        })
    }

    /// What the record adds to its shard's digest.
    pub fn contribution(&self, key: &[u8]) -> u128 {
        contribution(Kind::Data, key, self.version, self.value_hash)
    }
}

/// The version of a record as it is stored.
pub fn stored_version(kind: Kind, stored: &Bytes) -> Result<Version, EngineError> {
    match kind {
        Kind::Data => Ok(Record::decode(stored)?.version),
        Kind::Session => sessions::record_version(stored),
        Kind::Tombstone => match stored.split_first_chunk::<TOMBSTONE_BYTES>() {
            Some(([FORMAT, version @ ..], [])) => Ok(Version(u64::from_be_bytes(*version))),
            Some(_) | None => Err(EngineError("a tombstone is damaged".to_string())),
        },
        Kind::Meta => unreachable!("the shard's own record has no version"),
    }
}

/// A tombstone as it is stored: a format and a version.
pub fn tombstone(version: Version) -> Bytes {
    let mut out = vec![FORMAT];
    out.extend_from_slice(&version.0.to_be_bytes());
    Bytes::from(out)
}

const TOMBSTONE_BYTES: usize = 9;

/// What a record of a session table adds to its shard's digest.
pub fn session_contribution(key: &[u8], record: &[u8]) -> Result<u128, EngineError> {
    let version = sessions::record_version(record)?;
    let hash = xxh3_64(sessions::record_content(record));
    Ok(contribution(Kind::Session, key, version, hash))
}

fn contribution(kind: Kind, key: &[u8], version: Version, value_hash: u64) -> u128 {
    let mut fixed = [0; 17];
    fixed[0] = kind as u8;
    fixed[1..9].copy_from_slice(&version.0.to_be_bytes());
    fixed[9..].copy_from_slice(&value_hash.to_be_bytes());
    // Short keys, nearly all, are hashed in one piece: setting up a stream costs more than that.
    let mut buffer = [0; 128];
    let length = fixed.len() + key.len();
    if let Some(buffer) = buffer.get_mut(..length) {
        buffer[..fixed.len()].copy_from_slice(&fixed);
        buffer[fixed.len()..].copy_from_slice(key);
        return xxhash_rust::xxh3::xxh3_128(buffer);
    }
    let mut hasher = Xxh3::new();
    hasher.update(&fixed);
    hasher.update(key);
    hasher.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_and_damage_is_an_error() {
        let record = Record::new(Version(7), Bytes::from_static(b"value"));
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Ok(record));
        for cut in 0..bytes.len() {
            assert!(Record::decode(&bytes.slice(..cut)).is_err());
        }
        let mut other = bytes.to_vec();
        other[0] = 2;
        assert!(Record::decode(&Bytes::from(other)).is_err());
    }

    #[test]
    fn every_part_of_a_record_shows_in_its_contribution() {
        let record = Record::new(Version(7), Bytes::from_static(b"value"));
        let of = record.contribution(b"key");
        assert_ne!(of, record.contribution(b"kez"));
        assert_ne!(of, Record::new(Version(8), record.value.clone()).contribution(b"key"));
        assert_ne!(of, Record::new(Version(7), Bytes::from_static(b"valuf")).contribution(b"key"));
        assert_ne!(of, contribution(Kind::Session, b"key", record.version, record.value_hash));
        // Short and long keys are hashed alike.
        for length in [110, 111, 112, 500] {
            let key = vec![b'k'; length];
            let mut whole = vec![Kind::Data as u8];
            whole.extend_from_slice(&7_u64.to_be_bytes());
            whole.extend_from_slice(&record.value_hash.to_be_bytes());
            whole.extend_from_slice(&key);
            assert_eq!(record.contribution(&key), xxhash_rust::xxh3::xxh3_128(&whole));
        }
    }
}
