//! What each operation does to its shard.

use base::Version;
use base::limits::VALUE_BYTES_MAX;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use replica_group::GroupStore;
use replica_group::state_machine::EngineError;
use router::{Answer, ErrorReply, Expected, HashKind, KvOp, validate};
use sha2::{Digest, Sha256};

use crate::record::Record;
use crate::shard::Shard;

/// What an executed operation is answered: this is what its session keeps.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub(crate) struct Outcome {
    /// The version of the record that is now there; 0 where there is none.
    #[n(0)]
    pub(crate) version: Version,
    /// The answer. An operation that fails was executed too, and fails again the same way.
    #[n(1)]
    pub(crate) body: Result<Answer, ErrorReply>,
}

/// Executes a write on a shard that is owned.
pub(crate) fn execute(
    shard: &mut Shard,
    store: &mut GroupStore<'_>,
    op: KvOp,
) -> Result<Outcome, EngineError> {
    if let Err(error) = validate(&op) {
        return Ok(Outcome { version: Version(0), body: Err(error) });
    }
    let before = shard.get(store, op.key())?;
    let present = before.as_ref().map_or(Version(0), |record| record.version);
    let written = shard.version_next();
    let before = before.as_ref();
    let done = |version, answer| Ok(Outcome { version, body: Ok(answer) });
    match op {
        KvOp::Get { .. } => unreachable!("a read was decoded as a command"),
        KvOp::Put { key, value } => {
            shard.put(store, &key, before, value);
            done(written, Answer::Done)
        }
        KvOp::PutHash { key, value, hash } => {
            let previous = before.map(|record| record.value.clone());
            let hashed = put_hash(previous.as_deref().unwrap_or_default(), &value, hash);
            shard.put(store, &key, before, Bytes::from(hashed));
            done(written, Answer::Value(previous))
        }
        KvOp::Delete { key } => {
            if let Some(before) = before {
                shard.delete(store, &key, before)?;
            }
            done(Version(0), Answer::Deleted(before.is_some()))
        }
        KvOp::Append { key, value } => {
            let previous = before.map_or(&[][..], |record| &record.value);
            let length = previous.len() + value.len();
            if length > VALUE_BYTES_MAX {
                let error = ErrorReply::Invalid(format!(
                    "the value would have {length} bytes, and the limit is {VALUE_BYTES_MAX}: \
                     go on with another key"
                ));
                return Ok(Outcome { version: present, body: Err(error) });
            }
            let joined = Bytes::from([previous, &value].concat());
            shard.put(store, &key, before, joined);
            done(written, Answer::Appended(length as u64))
        }
        KvOp::CompareAndSwap { key, expected, value } => {
            if !is_expected(before, &expected) {
                return done(present, Answer::Swapped(false));
            }
            shard.put(store, &key, before, value);
            done(written, Answer::Swapped(true))
        }
    }
}

fn is_expected(record: Option<&Record>, expected: &Expected) -> bool {
    match expected {
        Expected::Value(value) => record.is_some_and(|record| record.value == value),
        Expected::Version(version) => {
            *version == record.map_or(Version(0), |record| record.version)
        }
    }
}

/// The value that a PutHash stores: the hash over the previous value and the given one.
fn put_hash(previous: &[u8], value: &[u8], hash: HashKind) -> String {
    match hash {
        HashKind::Fnv1a32 => fnv1a32([previous, value]).to_string(),
        HashKind::Sha256 => {
            let hash = Sha256::new().chain_update(previous).chain_update(value).finalize();
            hash.iter().map(|byte| format!("{byte:02x}")).collect()
        }
    }
}

fn fnv1a32(parts: [&[u8]; 2]) -> u32 {
    parts
        .into_iter()
        .flatten()
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_those_of_the_published_vectors() {
        assert_eq!(put_hash(b"", b"x", HashKind::Fnv1a32), "4245442695");
        assert_eq!(put_hash(b"x", b"b", HashKind::Fnv1a32), "1063475327");
        let mut chain = String::new();
        for (value, stored) in [("0", "890022063"), ("1", "78513644"), ("2", "3250269825")] {
            chain = put_hash(chain.as_bytes(), value.as_bytes(), HashKind::Fnv1a32);
            assert_eq!(chain, stored);
        }
        assert_eq!(
            put_hash(b"a", b"bc", HashKind::Sha256),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
