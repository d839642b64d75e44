//! The commands of a data group's log.
//!
//! A command is decoded strictly: a kind that is not known, a byte too few and a byte too many are
//! errors, and stop the replica, because a replica that skipped what it does not know would differ
//! from one that knows it. A new kind is proposed only after the group's feature level was raised.
//! Kinds are never reused. All numbers are big-endian:
//!
//! ```text
//! 1 Client          client u128, number u64, first_incomplete u64, stamp u64, shard u16, operation
//! 2 Create          copy u64, shards
//! 3 ExpireSessions  shard u16, before u64
//! 4 InBegin         mig u64, src u64, shards
//! 5 OutBegin        mig u64, dst u64, shards
//! 6 InChunk         mig u64, shard u16, start, records, 0 u8 | 1 u8, next
//! 7 InDelta         mig u64, shard u16, x0 u64, from u64, to u64, records
//! 8 Freeze          mig u64
//! 9 Activate        mig u64, count u16, then each: shard u16, x0 u64, from u64, to u64, records,
//!                   keys u64, bytes u64, digest u128, log time u64, sessions: rows u64, bytes u64,
//!                   oldest u64, horizon u64
//! 10 OutDone        mig u64
//! 11 GcSlice        shard u16, copy u64, from
//! 12 OutAbort       mig u64, shards
//! 13 Refuse         mig u64, src u64, shards
//! 14 Unfreeze       mig u64
//!
//! shards            count u16, then each: shard u16, epoch u64
//! records           count u32, then each: kind u8 (1 key, 2 session), key,
//!                   0 u8, version u64 (removed) | 1 u8, record
//! operation         kind u8, key, then:
//!   1 Put             value
//!   2 PutHash         hash u8 (0 FNV-1a 32, 1 SHA-256), value
//!   3 Delete
//!   4 Append          value
//!   5 CompareAndSwap  0 u8, expected value, value | 1 u8, expected version u64, value
//! key, value, start, next, from, record
//!                   length u32, bytes
//! ```

mod handoff;
mod reader;

use base::codec::DecodeError;
use base::{ClientId, CopyId, GroupId, RequestNumber, ShardEpoch, ShardId, Version, WallMillis};
use bytes::Bytes;
use router::{Expected, HashKind, KvOp, Session};

pub use crate::command::handoff::{Content, FinalPart, MovedRecord};
use crate::command::reader::Reader;

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
    /// At the destination: copies of these shards begin to grow.
    InBegin {
        /// The hand-off, which names the copies too.
        mig: CopyId,
        /// The group that serves the shards.
        src: GroupId,
        /// The shards, with their epochs there.
        shards: Vec<(ShardId, ShardEpoch)>,
    },
    /// At the source, when the destination has begun: from here on every change is kept for the
    /// deltas.
    OutBegin {
        /// The hand-off.
        mig: CopyId,
        /// The group that gets the shards.
        dst: GroupId,
        /// The shards, with their epochs.
        shards: Vec<(ShardId, ShardEpoch)>,
    },
    /// At the destination: records of the source's scan.
    InChunk {
        /// The hand-off.
        mig: CopyId,
        /// The shard.
        shard: ShardId,
        /// Where the scan went on; empty at the beginning.
        start: Bytes,
        /// What it found.
        records: Vec<MovedRecord>,
        /// Where it goes on; none at the end.
        next: Option<Bytes>,
    },
    /// At the destination: what changed at the source, as it is now.
    InDelta {
        /// The hand-off.
        mig: CopyId,
        /// The shard.
        shard: ShardId,
        /// The source's count of changes with which the copying began.
        x0: Version,
        /// The count of changes after which this begins.
        from: Version,
        /// The count of changes through which this goes.
        to: Version,
        /// Every record whose version lies in between, and every removal.
        records: Vec<MovedRecord>,
    },
    /// At the source: it stops to serve.
    Freeze {
        /// The hand-off.
        mig: CopyId,
    },
    /// At the destination: the rest, and what the copies must amount to. It serves from here on,
    /// or refuses for ever.
    Activate {
        /// The hand-off.
        mig: CopyId,
        /// All of its shards.
        shards: Vec<FinalPart>,
    },
    /// At the source, when the destination serves.
    OutDone {
        /// The hand-off.
        mig: CopyId,
    },
    /// Deletes a bounded part of what is of no use any more.
    GcSlice {
        /// The shard.
        shard: ShardId,
        /// The copy.
        copy: CopyId,
        /// How far it is deleted already; any other place has no effect.
        from: Bytes,
    },
    /// At the source: it keeps the shards, where it has not stopped to serve them.
    OutAbort {
        /// The hand-off.
        mig: CopyId,
        /// The shards, with their epochs: one that has not begun never will.
        shards: Vec<(ShardId, ShardEpoch)>,
    },
    /// At the destination: it takes the shards never, where it does not serve them already.
    Refuse {
        /// The hand-off.
        mig: CopyId,
        /// The group that serves the shards, or has stopped to.
        src: GroupId,
        /// The shards, with their epochs there.
        shards: Vec<(ShardId, ShardEpoch)>,
    },
    /// At the source, when the destination has refused: it serves again.
    Unfreeze {
        /// The hand-off.
        mig: CopyId,
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
                encode_shards(shards, &mut out);
            }
            Command::ExpireSessions { shard, before } => {
                out.push(EXPIRE_SESSIONS);
                out.extend_from_slice(&shard.0.to_be_bytes());
                out.extend_from_slice(&before.0.to_be_bytes());
            }
            Command::InBegin { .. }
            | Command::OutBegin { .. }
            | Command::InChunk { .. }
            | Command::InDelta { .. }
            | Command::Freeze { .. }
            | Command::Activate { .. }
            | Command::OutDone { .. }
            | Command::GcSlice { .. }
            | Command::OutAbort { .. }
            | Command::Refuse { .. }
            | Command::Unfreeze { .. } => self.encode_handoff(&mut out),
        }
        Bytes::from(out)
    }

    /// The command that was logged as `bytes`. Keys and values share the buffer.
    pub fn decode(bytes: &Bytes) -> Result<Command, DecodeError> {
        let mut reader = Reader::new(bytes);
        let command = match reader.u8()? {
            CLIENT => Command::Client {
                session: Session {
                    client: ClientId(reader.u128()?),
                    number: RequestNumber(reader.u64()?),
                    first_incomplete: RequestNumber(reader.u64()?),
                    stamp: WallMillis(reader.u64()?),
                },
                shard: reader.shard()?,
                op: decode_operation(&mut reader)?,
            },
            CREATE => Command::Create { copy: CopyId(reader.u64()?), shards: reader.shards()? },
            EXPIRE_SESSIONS => Command::ExpireSessions {
                shard: reader.shard()?,
                before: WallMillis(reader.u64()?),
            },
            kind => Command::decode_handoff(kind, &mut reader)?,
        };
        reader.end()?;
        Ok(command)
    }

    /// The feature level from which on a group's log may hold this command.
    pub fn feature_level(&self) -> u32 {
        match self {
            Command::Client { .. }
            | Command::Create { .. }
            | Command::ExpireSessions { .. }
            | Command::InBegin { .. }
            | Command::OutBegin { .. }
            | Command::InChunk { .. }
            | Command::InDelta { .. }
            | Command::Freeze { .. }
            | Command::Activate { .. }
            | Command::OutDone { .. }
            | Command::GcSlice { .. }
            | Command::OutAbort { .. }
            | Command::Refuse { .. }
            | Command::Unfreeze { .. } => 1,
        }
    }

    /// The hand-off that the command is a step of, which other groups may ask for.
    pub fn handoff(&self) -> Option<CopyId> {
        match self {
            Command::Client { .. }
            | Command::Create { .. }
            | Command::ExpireSessions { .. }
            | Command::GcSlice { .. } => None,
            Command::InBegin { mig, .. }
            | Command::OutBegin { mig, .. }
            | Command::InChunk { mig, .. }
            | Command::InDelta { mig, .. }
            | Command::Freeze { mig }
            | Command::Activate { mig, .. }
            | Command::OutDone { mig }
            | Command::OutAbort { mig, .. }
            | Command::Refuse { mig, .. }
            | Command::Unfreeze { mig } => Some(*mig),
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
            Command::InBegin { .. }
            | Command::OutBegin { .. }
            | Command::InChunk { .. }
            | Command::InDelta { .. }
            | Command::Freeze { .. }
            | Command::Activate { .. }
            | Command::OutDone { .. }
            | Command::GcSlice { .. }
            | Command::OutAbort { .. }
            | Command::Refuse { .. }
            | Command::Unfreeze { .. } => self.handoff_bytes(),
        }
    }
}

fn encode_shards(shards: &[(ShardId, ShardEpoch)], out: &mut Vec<u8>) {
    let count = u16::try_from(shards.len()).unwrap_or(u16::MAX);
    assert_eq!(usize::from(count), shards.len(), "too many shards in one command");
    out.extend_from_slice(&count.to_be_bytes());
    for (shard, epoch) in shards {
        out.extend_from_slice(&shard.0.to_be_bytes());
        out.extend_from_slice(&epoch.0.to_be_bytes());
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

#[cfg(test)]
mod tests;
