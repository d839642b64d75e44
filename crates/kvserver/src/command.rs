//! The commands of a data group's log.
//!
//! A command is decoded strictly: a kind that is not known, a byte too few and a byte too many are
//! errors, and stop the replica, because a replica that skipped what it does not know would differ
//! from one that knows it. A new kind is proposed only after the group's feature level was raised.
//! Kinds are never reused. All numbers are big-endian:
//!
//! ```text
//! 1 Client          client u128, number u64, first_incomplete u64, stamp u64, shard u16, operation
//! 2 Create          copy u64, count u16, then each: shard u16, epoch u64
//! 3 ExpireSessions  shard u16, before u64
//!
//! operation         kind u8, key, then:
//!   1 Put             value
//!   2 PutHash         hash u8 (0 FNV-1a 32, 1 SHA-256), value
//!   3 Delete
//!   4 Append          value
//!   5 CompareAndSwap  0 u8, expected value, value | 1 u8, expected version u64, value
//! key, value        length u32, bytes
//! ```

use base::codec::DecodeError;
use base::{ClientId, CopyId, RequestNumber, ShardEpoch, ShardId, Version, WallMillis};
use bytes::Bytes;
use router::{Expected, HashKind, KvOp, Session};

/// A command of a data group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A write of a client.
    Client {
        /// Under this identity it executes at most once.
        session: Session,
        /// The shard of its key.
        shard: ShardId,
        /// The operation; never a read.
        op: KvOp,
    },
    /// The group becomes the first owner of these shards, which are empty. The shard master asks
    /// for it, as often as it takes.
    Create {
        /// Names the copies that this makes.
        copy: CopyId,
        /// The shards, with their first epochs.
        shards: Vec<(ShardId, ShardEpoch)>,
    },
    /// Forgets the sessions of a shard that were idle for long.
    ExpireSessions {
        /// The shard.
        shard: ShardId,
        /// Rows whose last request is older, by log time.
        before: WallMillis,
    },
}

const CLIENT: u8 = 1;
const CREATE: u8 = 2;
const EXPIRE_SESSIONS: u8 = 3;

const PUT: u8 = 1;
const PUT_HASH: u8 = 2;
const DELETE: u8 = 3;
const APPEND: u8 = 4;
const COMPARE_AND_SWAP: u8 = 5;

const EXPECT_VALUE: u8 = 0;
const EXPECT_VERSION: u8 = 1;

impl Command {
    /// The command as it is logged.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_bytes());
        match self {
            Command::Client { session, shard, op } => {
                out.push(CLIENT);
                out.extend_from_slice(&session.client.0.to_be_bytes());
                for n in [session.number.0, session.first_incomplete.0, session.stamp.0] {
                    out.extend_from_slice(&n.to_be_bytes());
                }
                out.extend_from_slice(&shard.0.to_be_bytes());
                encode_operation(op, &mut out);
            }
            Command::Create { copy, shards } => {
                out.push(CREATE);
                out.extend_from_slice(&copy.0.to_be_bytes());
                let count = u16::try_from(shards.len()).unwrap_or(u16::MAX);
                assert_eq!(usize::from(count), shards.len(), "too many shards in one command");
                out.extend_from_slice(&count.to_be_bytes());
                for (shard, epoch) in shards {
                    out.extend_from_slice(&shard.0.to_be_bytes());
                    out.extend_from_slice(&epoch.0.to_be_bytes());
                }
            }
            Command::ExpireSessions { shard, before } => {
                out.push(EXPIRE_SESSIONS);
                out.extend_from_slice(&shard.0.to_be_bytes());
                out.extend_from_slice(&before.0.to_be_bytes());
            }
        }
        Bytes::from(out)
    }

    /// The command that was logged as `bytes`. Keys and values share the buffer.
    pub fn decode(bytes: &Bytes) -> Result<Command, DecodeError> {
        let mut reader = Reader { bytes, at: 0 };
        let command = match reader.u8()? {
            CLIENT => Command::Client {
                session: Session {
                    client: ClientId(reader.u128()?),
                    number: RequestNumber(reader.u64()?),
                    first_incomplete: RequestNumber(reader.u64()?),
                    stamp: WallMillis(reader.u64()?),
                },
                shard: ShardId(reader.u16()?),
                op: decode_operation(&mut reader)?,
            },
            CREATE => {
                let copy = CopyId(reader.u64()?);
                let count = reader.u16()?;
                let mut shards = Vec::new();
                for _ in 0..count {
                    shards.push((ShardId(reader.u16()?), ShardEpoch(reader.u64()?)));
                }
                Command::Create { copy, shards }
            }
            EXPIRE_SESSIONS => Command::ExpireSessions {
                shard: ShardId(reader.u16()?),
                before: WallMillis(reader.u64()?),
            },
            kind => return Err(DecodeError(format!("command kind {kind}"))),
        };
        reader.end()?;
        Ok(command)
    }

    /// The feature level from which on a group's log may hold this command.
    pub fn feature_level(&self) -> u32 {
        match self {
            Command::Client { .. } | Command::Create { .. } | Command::ExpireSessions { .. } => 1,
        }
    }

    fn encoded_bytes(&self) -> usize {
        match self {
            Command::Client { op, .. } => {
                let expected = match op {
                    KvOp::CompareAndSwap { expected: Expected::Value(value), .. } => value.len(),
                    KvOp::CompareAndSwap { expected: Expected::Version(_), .. }
                    | KvOp::Get { .. }
                    | KvOp::Put { .. }
                    | KvOp::PutHash { .. }
                    | KvOp::Delete { .. }
                    | KvOp::Append { .. } => 0,
                };
                80 + op.key().len() + op.value().map_or(0, Bytes::len) + expected
            }
            Command::Create { shards, .. } => 16 + shards.len() * 10,
            Command::ExpireSessions { .. } => 16,
        }
    }
}

fn encode_operation(op: &KvOp, out: &mut Vec<u8>) {
    match op {
        KvOp::Get { .. } => unreachable!("a read is not logged"),
        KvOp::Put { key, value } => {
            out.push(PUT);
            encode_payload(key, out);
            encode_payload(value, out);
        }
        KvOp::PutHash { key, value, hash } => {
            out.push(PUT_HASH);
            encode_payload(key, out);
            out.push(match hash {
                HashKind::Fnv1a32 => 0,
                HashKind::Sha256 => 1,
            });
            encode_payload(value, out);
        }
        KvOp::Delete { key } => {
            out.push(DELETE);
            encode_payload(key, out);
        }
        KvOp::Append { key, value } => {
            out.push(APPEND);
            encode_payload(key, out);
            encode_payload(value, out);
        }
        KvOp::CompareAndSwap { key, expected, value } => {
            out.push(COMPARE_AND_SWAP);
            encode_payload(key, out);
            match expected {
                Expected::Value(expected) => {
                    out.push(EXPECT_VALUE);
                    encode_payload(expected, out);
                }
                Expected::Version(version) => {
                    out.push(EXPECT_VERSION);
                    out.extend_from_slice(&version.0.to_be_bytes());
                }
            }
            encode_payload(value, out);
        }
    }
}

fn encode_payload(payload: &Bytes, out: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    assert_eq!(length as usize, payload.len(), "a payload over every limit was let in");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
}

fn decode_operation(reader: &mut Reader<'_>) -> Result<KvOp, DecodeError> {
    let kind = reader.u8()?;
    let key = reader.payload()?;
    Ok(match kind {
        PUT => KvOp::Put { key, value: reader.payload()? },
        PUT_HASH => {
            let hash = match reader.u8()? {
                0 => HashKind::Fnv1a32,
                1 => HashKind::Sha256,
                hash => return Err(DecodeError(format!("hash kind {hash}"))),
            };
            KvOp::PutHash { key, value: reader.payload()?, hash }
        }
        DELETE => KvOp::Delete { key },
        APPEND => KvOp::Append { key, value: reader.payload()? },
        COMPARE_AND_SWAP => {
            let expected = match reader.u8()? {
                EXPECT_VALUE => Expected::Value(reader.payload()?),
                EXPECT_VERSION => Expected::Version(Version(reader.u64()?)),
                kind => return Err(DecodeError(format!("expectation kind {kind}"))),
            };
            KvOp::CompareAndSwap { key, expected, value: reader.payload()? }
        }
        kind => return Err(DecodeError(format!("operation kind {kind}"))),
    })
}

/// Reads a command from front to back.
#[derive(Debug)]
struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let part = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let part = part.ok_or_else(too_short)?;
        self.at += N;
        Ok(*part)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.take()?))
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn u128(&mut self) -> Result<u128, DecodeError> {
        Ok(u128::from_be_bytes(self.take()?))
    }

    fn payload(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.u32()? as usize;
        if length > self.bytes.len() - self.at {
            return Err(too_short());
        }
        let payload = self.bytes.slice(self.at..self.at + length);
        self.at += length;
        Ok(payload)
    }

    fn end(&self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(DecodeError(format!("{left} bytes follow the command"))),
        }
    }
}

fn too_short() -> DecodeError {
    DecodeError("the command ends too early".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Vec<Command> {
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        let cas = |expected| KvOp::CompareAndSwap {
            key: Bytes::from_static(b"k"),
            expected,
            value: Bytes::from_static(b"new"),
        };
        let ops = vec![
            KvOp::Put { key: key.clone(), value: value.clone() },
            KvOp::PutHash { key: key.clone(), value: value.clone(), hash: HashKind::Fnv1a32 },
            KvOp::PutHash { key: key.clone(), value: value.clone(), hash: HashKind::Sha256 },
            KvOp::Delete { key: key.clone() },
            KvOp::Append { key, value: Bytes::new() },
            cas(Expected::Value(value)),
            cas(Expected::Version(Version(7))),
        ];
        let session = Session {
            client: ClientId(u128::MAX - 1),
            number: RequestNumber(9),
            first_incomplete: RequestNumber(8),
            stamp: WallMillis(1_000),
        };
        let shard = ShardId(3);
        let mut commands: Vec<Command> =
            ops.into_iter().map(|op| Command::Client { session, shard, op }).collect();
        let shards = vec![(ShardId(0), ShardEpoch(1)), (ShardId(16_383), ShardEpoch(2))];
        commands.push(Command::Create { copy: CopyId(5), shards });
        commands.push(Command::Create { copy: CopyId(6), shards: Vec::new() });
        commands.push(Command::ExpireSessions { shard, before: WallMillis(77) });
        commands
    }

    #[test]
    fn every_command_comes_back_as_it_was() {
        for command in commands() {
            let bytes = command.encode();
            assert!(bytes.len() <= command.encoded_bytes(), "{command:?}");
            assert_eq!(Command::decode(&bytes), Ok(command));
        }
    }

    #[test]
    fn a_byte_too_few_or_too_many_is_an_error() {
        for command in commands() {
            let bytes = command.encode();
            for cut in 0..bytes.len() {
                assert!(Command::decode(&bytes.slice(..cut)).is_err(), "{command:?} cut at {cut}");
            }
            let mut longer = bytes.to_vec();
            longer.push(0);
            assert!(Command::decode(&Bytes::from(longer)).is_err(), "{command:?}");
        }
    }

    #[test]
    fn unknown_kinds_are_errors() {
        for kind in [0, 4, 255] {
            assert!(Command::decode(&Bytes::from(vec![kind; 64])).is_err());
        }
        let mut bytes = commands()[0].encode().to_vec();
        bytes[43] = 6;
        assert_eq!(
            Command::decode(&Bytes::from(bytes)),
            Err(DecodeError("operation kind 6".to_string()))
        );
    }

    #[test]
    fn a_value_shares_the_buffer_of_its_command() {
        let bytes = commands()[0].encode();
        let Ok(Command::Client { op, .. }) = Command::decode(&bytes) else { panic!() };
        let value = op.value().unwrap();
        assert!(bytes.as_ptr_range().contains(&value.as_ptr()));
    }
}
