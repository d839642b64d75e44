//! The commands of a hand-off, as they are logged, and the records that travel in them.

use base::codec::DecodeError;
use base::{CopyId, GroupId, ShardId, Version, WallMillis};
use bytes::Bytes;
use replica_group::sessions::SessionCounters;

use crate::command::reader::Reader;
use crate::command::{Command, encode_payload, encode_shards};
use crate::keys::Kind;

/// A record of a shard on its way to another group: a key's, or one of the session table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedRecord {
    /// What it is: [`Kind::Data`] or [`Kind::Session`].
    pub kind: Kind,
    /// Its key within the shard.
    pub key: Bytes,
    /// What it has.
    pub content: Content,
}

/// What a record on its way has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// This, as the source stores it.
    Present(Bytes),
    /// It was removed by the change of this count.
    Removed(Version),
}

/// The rest of a shard, and what its copy must amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalPart {
    /// The shard.
    pub shard: ShardId,
    /// The source's count of changes with which the copying began.
    pub x0: Version,
    /// The count of changes after which this begins.
    pub from: Version,
    /// The source's count of changes, which is final.
    pub to: Version,
    /// Every record whose version lies in between, and every removal.
    pub records: Vec<MovedRecord>,
    /// Keys of the shard.
    pub keys: u64,
    /// Bytes of its keys and values.
    pub bytes: u64,
    /// Its digest.
    pub digest: u128,
    /// Its log time.
    pub log_time: WallMillis,
    /// What its session table knows of itself.
    pub sessions: SessionCounters,
}

const IN_BEGIN: u8 = 4;
const OUT_BEGIN: u8 = 5;
const IN_CHUNK: u8 = 6;
const IN_DELTA: u8 = 7;
const FREEZE: u8 = 8;
const ACTIVATE: u8 = 9;
const OUT_DONE: u8 = 10;
const GC_SLICE: u8 = 11;
const OUT_ABORT: u8 = 12;
const REFUSE: u8 = 13;
const UNFREEZE: u8 = 14;

const REMOVED: u8 = 0;
const PRESENT: u8 = 1;

impl MovedRecord {
    /// About the bytes that it takes in a command.
    pub(crate) fn size(&self) -> usize {
        let content = match &self.content {
            Content::Present(record) => record.len(),
            Content::Removed(_) => 4,
        };
        10 + self.key.len() + content
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        encode_payload(&self.key, out);
        match &self.content {
            Content::Removed(version) => {
                out.push(REMOVED);
                put_u64(version.0, out);
            }
            Content::Present(record) => {
                out.push(PRESENT);
                encode_payload(record, out);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<MovedRecord, DecodeError> {
        let kind = match reader.u8()? {
            kind if kind == Kind::Data as u8 => Kind::Data,
            kind if kind == Kind::Session as u8 => Kind::Session,
            kind => return Err(DecodeError(format!("record kind {kind}"))),
        };
        let key = reader.payload()?;
        let content = if reader.flag()? {
            Content::Present(reader.payload()?)
        } else {
            Content::Removed(Version(reader.count()?))
        };
        Ok(MovedRecord { kind, key, content })
    }
}

impl FinalPart {
    fn size(&self) -> usize {
        128 + self.records.iter().map(MovedRecord::size).sum::<usize>()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_u16(self.shard.0, out);
        for version in [self.x0, self.from, self.to] {
            put_u64(version.0, out);
        }
        encode_records(&self.records, out);
        put_u64(self.keys, out);
        put_u64(self.bytes, out);
        out.extend_from_slice(&self.digest.to_be_bytes());
        put_u64(self.log_time.0, out);
        let SessionCounters { rows, bytes, oldest, horizon } = self.sessions;
        for number in [rows, bytes, oldest.0, horizon.0] {
            put_u64(number, out);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<FinalPart, DecodeError> {
        Ok(FinalPart {
            shard: reader.shard()?,
            x0: Version(reader.count()?),
            from: Version(reader.count()?),
            to: Version(reader.count()?),
            records: decode_records(reader)?,
            keys: reader.count()?,
            bytes: reader.count()?,
            digest: reader.u128()?,
            log_time: WallMillis(reader.u64()?),
            sessions: SessionCounters {
                rows: reader.count()?,
                bytes: reader.count()?,
                oldest: WallMillis(reader.u64()?),
                horizon: WallMillis(reader.u64()?),
            },
        })
    }
}

impl Command {
    pub(super) fn encode_handoff(&self, out: &mut Vec<u8>) {
        let begin = |kind: u8, number: u64, out: &mut Vec<u8>| {
            out.push(kind);
            put_u64(number, out);
        };
        match self {
            Command::Client { .. } | Command::Create { .. } | Command::ExpireSessions { .. } => {
                unreachable!("not a command of a hand-off")
            }
            Command::InBegin { mig, src: group, shards } => {
                begin(IN_BEGIN, mig.0, out);
                put_u64(group.0, out);
                encode_shards(shards, out);
            }
            Command::OutBegin { mig, dst: group, shards } => {
                begin(OUT_BEGIN, mig.0, out);
                put_u64(group.0, out);
                encode_shards(shards, out);
            }
            Command::InChunk { mig, shard, start, records, next } => {
                begin(IN_CHUNK, mig.0, out);
                put_u16(shard.0, out);
                encode_payload(start, out);
                encode_records(records, out);
                out.push(u8::from(next.is_some()));
                if let Some(next) = next {
                    encode_payload(next, out);
                }
            }
            Command::InDelta { mig, shard, x0, from, to, records } => {
                begin(IN_DELTA, mig.0, out);
                put_u16(shard.0, out);
                for version in [x0, from, to] {
                    put_u64(version.0, out);
                }
                encode_records(records, out);
            }
            Command::Freeze { mig } => begin(FREEZE, mig.0, out),
            Command::Activate { mig, shards } => {
                begin(ACTIVATE, mig.0, out);
                put_u16(count(shards.len()), out);
                shards.iter().for_each(|part| part.encode(out));
            }
            Command::OutDone { mig } => begin(OUT_DONE, mig.0, out),
            Command::GcSlice { shard, copy, from } => {
                out.push(GC_SLICE);
                put_u16(shard.0, out);
                put_u64(copy.0, out);
                encode_payload(from, out);
            }
            Command::OutAbort { mig, shards } => {
                begin(OUT_ABORT, mig.0, out);
                encode_shards(shards, out);
            }
            Command::Refuse { mig, src, shards } => {
                begin(REFUSE, mig.0, out);
                put_u64(src.0, out);
                encode_shards(shards, out);
            }
            Command::Unfreeze { mig } => begin(UNFREEZE, mig.0, out),
        }
    }

    pub(super) fn decode_handoff(
        kind: u8,
        reader: &mut Reader<'_>,
    ) -> Result<Command, DecodeError> {
        if kind == GC_SLICE {
            return Ok(Command::GcSlice {
                shard: reader.shard()?,
                copy: CopyId(reader.u64()?),
                from: reader.payload()?,
            });
        }
        if !(IN_BEGIN..=UNFREEZE).contains(&kind) {
            return Err(DecodeError(format!("command kind {kind}")));
        }
        let mig = CopyId(reader.u64()?);
        Ok(match kind {
            IN_BEGIN => {
                Command::InBegin { mig, src: GroupId(reader.u64()?), shards: reader.shards()? }
            }
            OUT_BEGIN => {
                Command::OutBegin { mig, dst: GroupId(reader.u64()?), shards: reader.shards()? }
            }
            IN_CHUNK => Command::InChunk {
                mig,
                shard: reader.shard()?,
                start: reader.payload()?,
                records: decode_records(reader)?,
                next: if reader.flag()? { Some(reader.payload()?) } else { None },
            },
            IN_DELTA => Command::InDelta {
                mig,
                shard: reader.shard()?,
                x0: Version(reader.count()?),
                from: Version(reader.count()?),
                to: Version(reader.count()?),
                records: decode_records(reader)?,
            },
            FREEZE => Command::Freeze { mig },
            ACTIVATE => {
                let mut shards = Vec::new();
                for _ in 0..reader.u16()? {
                    shards.push(FinalPart::decode(reader)?);
                }
                Command::Activate { mig, shards }
            }
            OUT_DONE => Command::OutDone { mig },
            OUT_ABORT => Command::OutAbort { mig, shards: reader.shards()? },
            REFUSE => {
                Command::Refuse { mig, src: GroupId(reader.u64()?), shards: reader.shards()? }
            }
            UNFREEZE => Command::Unfreeze { mig },
            kind => return Err(DecodeError(format!("command kind {kind}"))),
        })
    }

    pub(super) fn handoff_bytes(&self) -> usize {
        let size = |records: &[MovedRecord]| records.iter().map(MovedRecord::size).sum::<usize>();
        match self {
            Command::Client { .. } | Command::Create { .. } | Command::ExpireSessions { .. } => {
                unreachable!("not a command of a hand-off")
            }
            Command::InBegin { shards, .. }
            | Command::OutBegin { shards, .. }
            | Command::OutAbort { shards, .. }
            | Command::Refuse { shards, .. } => 20 + shards.len() * 10,
            Command::InChunk { start, records, next, .. } => {
                32 + start.len() + size(records) + next.as_ref().map_or(0, Bytes::len)
            }
            Command::InDelta { records, .. } => 48 + size(records),
            Command::Activate { shards, .. } => {
                16 + shards.iter().map(FinalPart::size).sum::<usize>()
            }
            Command::Freeze { .. } | Command::OutDone { .. } | Command::Unfreeze { .. } => 16,
            Command::GcSlice { from, .. } => 16 + from.len(),
        }
    }
}

fn encode_records(records: &[MovedRecord], out: &mut Vec<u8>) {
    let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
    assert_eq!(count as usize, records.len(), "too many records in one command");
    out.extend_from_slice(&count.to_be_bytes());
    records.iter().for_each(|record| record.encode(out));
}

fn decode_records(reader: &mut Reader<'_>) -> Result<Vec<MovedRecord>, DecodeError> {
    let count = reader.u32()?;
    let mut records = Vec::new();
    for _ in 0..count {
        records.push(MovedRecord::decode(reader)?);
    }
    Ok(records)
}

fn count(shards: usize) -> u16 {
    let count = u16::try_from(shards).unwrap_or(u16::MAX);
    assert_eq!(usize::from(count), shards, "too many shards in one command");
    count
}

fn put_u16(number: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_u64(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&number.to_be_bytes());
}
