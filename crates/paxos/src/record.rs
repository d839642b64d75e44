//! What a replica writes to the write-ahead log, as data and as bytes (docs/paxos.md 11.2).
//!
//! A record has an *identity* of fixed layout, which the log keeps apart from the payload and
//! twice, so that damage to a payload never hides that something was promised or accepted:
//!
//! ```text
//! kind u8 | count u32 | slot u64 | ballot: epoch u32, round u32, replica u64      (big-endian)
//! ```
//!
//! The payload of `Entries` is one item per value: `length u32`, then as many bytes: `tag u8`, and
//! for a command `time u64`, the trace (16 bytes, tag 2 only) and the command's own bytes; for a
//! stop-sign its members, for the end of a change the epoch, `u32`.

use base::codec::DecodeError;
use base::limits::ACCEPT_SLOTS_MAX;
use base::{Lsn, ReplicaId, Slot, TraceId, WallMillis};
use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::ballot::Ballot;
use crate::members::Members;
use crate::message::{Command, Value};

/// One record of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The replica's first record.
    GroupCreate {
        /// The replica that this is.
        replica: ReplicaId,
        /// The voters.
        members: Members,
    },
    /// Nothing under a lower ballot will be accepted.
    Promise {
        /// The ballot.
        ballot: Ballot,
    },
    /// Values accepted in consecutive slots under one ballot; it implies the promise.
    Entries {
        /// The slot of the first value.
        first: Slot,
        /// The ballot.
        ballot: Ballot,
        /// At least one value.
        values: Vec<Value>,
    },
    /// The replica knows the slot before the first of these members to be chosen, and that they are
    /// the members from there on. It implies the promise of their first ballot.
    Epoch {
        /// The members.
        members: Members,
    },
    /// The replica is no more, and nothing of it is needed: its id is never used again.
    GroupDestroy,
    /// All that must outlive the records before it, the entries excepted, stated again before the
    /// segment that holds them is used anew.
    GroupState {
        /// The replica that this is.
        replica: ReplicaId,
        /// The voters.
        members: Members,
        /// The highest promise, those implied by entries included.
        promised: Ballot,
        /// The prefix known to be chosen.
        chosen_upto: Slot,
        /// Slots up to here are forgotten.
        truncated_upto: Slot,
        /// The newest epoch whose predecessor is no longer needed.
        done: u32,
        /// The replica may have forgotten what it promised or accepted: it never votes again.
        quarantined: bool,
        /// The store does not hold what the replica executed.
        store_lost: bool,
        /// Every voter had the slots up to here.
        all_upto: Slot,
    },
    /// Records of the replica are lost, of which nothing is known: it never votes again.
    Quarantine,
    /// The store does not hold what the replica executed: it votes on, and executes nothing until
    /// its state was copied from another.
    StoreLost,
    /// Damage to the records from `first` to `last` of the write-ahead log is mended: all that this
    /// replica had there and must not forget stands in later records.
    Mended {
        /// The first record.
        first: Lsn,
        /// The last record.
        last: Lsn,
    },
    /// The store has a copy of another replica's state, after this slot: the slots up to there are
    /// forgotten, and the store is not lost any more (docs/paxos.md 11.11).
    Snapshot {
        /// The slot.
        slot: Slot,
    },
    /// The prefix known to be chosen. Nobody waits for it: it only spares phase 1 some work after
    /// a restart.
    ChosenHint {
        /// The end of the prefix.
        upto: Slot,
    },
}

/// A record without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outline {
    /// `GroupCreate`.
    Create,
    /// `GroupState`, or `Epoch`.
    State {
        /// The highest promise.
        promised: Ballot,
        /// The prefix known to be chosen.
        chosen_upto: Slot,
    },
    /// `Entries`.
    Entries {
        /// The slot of the first value.
        first: Slot,
        /// How many values.
        count: u32,
        /// The ballot.
        ballot: Ballot,
    },
    /// A record of a kind that has no payload.
    Whole(Record),
}

/// The fixed-size part of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity([u8; Identity::BYTES]);

impl Identity {
    /// Bytes of an identity.
    pub const BYTES: usize = 29;

    fn new(kind: u8, count: u32, slot: Slot, ballot: Ballot) -> Identity {
        let mut bytes = [0; Identity::BYTES];
        bytes[0] = kind;
        bytes[1..5].copy_from_slice(&count.to_be_bytes());
        bytes[5..13].copy_from_slice(&slot.0.to_be_bytes());
        bytes[13..].copy_from_slice(&ballot.to_bytes());
        Identity(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn parts(bytes: &[u8]) -> Result<(u8, u32, Slot, Ballot), DecodeError> {
        let short = || error("a record's identity has the wrong length");
        let bytes: [u8; Identity::BYTES] = bytes.try_into().map_err(|_| short())?;
        let (kind, rest) = bytes.split_first().ok_or_else(short)?;
        let (count, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let (slot, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        let ballot = rest.first_chunk::<{ Ballot::BYTES }>().ok_or_else(short)?;
        let slot = Slot(u64::from_be_bytes(*slot));
        Ok((*kind, u32::from_be_bytes(*count), slot, Ballot::from_bytes(*ballot)))
    }
}

impl AsRef<[u8]> for Identity {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Identity::parts(&self.0) {
            Ok((kind, count, slot, ballot)) => write!(f, "{kind}:{slot}+{count}@{ballot}"),
            Err(_) => f.write_str("Identity"),
        }
    }
}

// Kinds of records. A number is never reused. 6 and 9 are reserved: restamp, truncate.
const KIND_GROUP_CREATE: u8 = 1;
const KIND_PROMISE: u8 = 2;
const KIND_ENTRIES: u8 = 3;
const KIND_GROUP_STATE: u8 = 4;
const KIND_CHOSEN_HINT: u8 = 5;
const KIND_EPOCH: u8 = 7;
const KIND_GROUP_DESTROY: u8 = 11;
const KIND_SNAPSHOT: u8 = 8;
const KIND_QUARANTINE: u8 = 10;
const KIND_STORE_LOST: u8 = 12;
const KIND_MENDED: u8 = 13;

// Tags of values in `Entries`. A number is never reused.
const TAG_NOOP: u8 = 0;
const TAG_COMMAND: u8 = 1;
const TAG_COMMAND_TRACED: u8 = 2;
const TAG_STOP: u8 = 3;
const TAG_DONE: u8 = 4;

const LENGTH_BYTES: usize = 4;

#[derive(Encode, Decode)]
struct CreatePayload {
    #[n(0)]
    replica: ReplicaId,
    #[n(1)]
    members: Members,
}

#[derive(Encode, Decode)]
struct StatePayload {
    #[n(0)]
    replica: ReplicaId,
    #[n(1)]
    members: Members,
    #[n(2)]
    truncated_upto: Slot,
    #[cbor(n(3), default)]
    quarantined: bool,
    #[cbor(n(4), default)]
    done: u32,
    #[cbor(n(6), default)]
    store_lost: bool,
    #[cbor(n(7), default)]
    all_upto: Slot,
}

#[derive(Encode, Decode)]
struct EpochPayload {
    #[n(0)]
    members: Members,
}

impl Record {
    /// The fixed-size part.
    pub fn identity(&self) -> Identity {
        match self {
            Record::GroupCreate { .. } => {
                Identity::new(KIND_GROUP_CREATE, 0, Slot::ZERO, Ballot::ZERO)
            }
            Record::Promise { ballot } => Identity::new(KIND_PROMISE, 0, Slot::ZERO, *ballot),
            Record::Entries { first, ballot, values } => {
                Identity::new(KIND_ENTRIES, values.len() as u32, *first, *ballot)
            }
            Record::GroupState { promised, chosen_upto, .. } => {
                Identity::new(KIND_GROUP_STATE, 0, *chosen_upto, *promised)
            }
            Record::ChosenHint { upto } => Identity::new(KIND_CHOSEN_HINT, 0, *upto, Ballot::ZERO),
            Record::Epoch { members } => {
                Identity::new(KIND_EPOCH, 0, members.first_slot(), members.first_ballot())
            }
            Record::GroupDestroy => Identity::new(KIND_GROUP_DESTROY, 0, Slot::ZERO, Ballot::ZERO),
            Record::Quarantine => Identity::new(KIND_QUARANTINE, 0, Slot::ZERO, Ballot::ZERO),
            Record::Mended { first, last } => {
                let count = u32::try_from(last.0 - first.0).unwrap_or(u32::MAX);
                Identity::new(KIND_MENDED, count, Slot(first.0), Ballot::ZERO)
            }
            Record::StoreLost => Identity::new(KIND_STORE_LOST, 0, Slot::ZERO, Ballot::ZERO),
            Record::Snapshot { slot } => Identity::new(KIND_SNAPSHOT, 0, *slot, Ballot::ZERO),
        }
    }

    /// Appends the payload.
    pub fn encode_payload(&self, out: &mut Vec<u8>) {
        match self {
            Record::GroupCreate { replica, members } => {
                let payload = CreatePayload { replica: *replica, members: members.clone() };
                base::codec::encode_into(&payload, out);
            }
            Record::Promise { .. }
            | Record::ChosenHint { .. }
            | Record::GroupDestroy
            | Record::Quarantine
            | Record::Mended { .. }
            | Record::Snapshot { .. }
            | Record::StoreLost => {}
            Record::Epoch { members } => {
                let payload = EpochPayload { members: members.clone() };
                base::codec::encode_into(&payload, out);
            }
            Record::Entries { values, .. } => {
                for value in values {
                    encode_value(value, out);
                }
            }
            Record::GroupState {
                replica,
                members,
                truncated_upto,
                done,
                quarantined,
                store_lost,
                all_upto,
                promised: _,
                chosen_upto: _,
            } => {
                let payload = StatePayload {
                    replica: *replica,
                    members: members.clone(),
                    truncated_upto: *truncated_upto,
                    done: *done,
                    quarantined: *quarantined,
                    store_lost: *store_lost,
                    all_upto: *all_upto,
                };
                base::codec::encode_into(&payload, out);
            }
        }
    }

    /// The record of an identity and a payload. Commands share the payload's buffer.
    pub fn decode(identity: &[u8], payload: &Bytes) -> Result<Record, DecodeError> {
        let (kind, count, slot, ballot) = Identity::parts(identity)?;
        let record = match kind {
            KIND_GROUP_CREATE => {
                let create: CreatePayload = base::codec::decode(payload)?;
                Record::GroupCreate { replica: create.replica, members: create.members }
            }
            KIND_PROMISE => Record::Promise { ballot },
            KIND_ENTRIES => {
                let values = decode_values(count, payload)?;
                if slot == Slot::ZERO || slot.0.checked_add(u64::from(count)).is_none() {
                    return Err(error("entries outside of the log"));
                }
                Record::Entries { first: slot, ballot, values }
            }
            KIND_GROUP_STATE => {
                let state: StatePayload = base::codec::decode(payload)?;
                Record::GroupState {
                    replica: state.replica,
                    members: state.members,
                    promised: ballot,
                    chosen_upto: slot,
                    truncated_upto: state.truncated_upto,
                    done: state.done,
                    quarantined: state.quarantined,
                    store_lost: state.store_lost,
                    all_upto: state.all_upto,
                }
            }
            KIND_CHOSEN_HINT => Record::ChosenHint { upto: slot },
            KIND_EPOCH => {
                let epoch: EpochPayload = base::codec::decode(payload)?;
                Record::Epoch { members: epoch.members }
            }
            KIND_GROUP_DESTROY => Record::GroupDestroy,
            KIND_QUARANTINE => Record::Quarantine,
            KIND_STORE_LOST => Record::StoreLost,
            KIND_SNAPSHOT => Record::Snapshot { slot },
            KIND_MENDED => {
                let last = slot.0.checked_add(u64::from(count));
                let last = last.ok_or_else(|| error("records beyond the log"))?;
                Record::Mended { first: Lsn(slot.0), last: Lsn(last) }
            }
            unknown => return Err(DecodeError(format!("unknown kind of record {unknown}"))),
        };
        let bare = match record {
            Record::Promise { .. }
            | Record::ChosenHint { .. }
            | Record::GroupDestroy
            | Record::Quarantine
            | Record::Mended { .. }
            | Record::Snapshot { .. }
            | Record::StoreLost => true,
            Record::GroupCreate { .. }
            | Record::Epoch { .. }
            | Record::Entries { .. }
            | Record::GroupState { .. } => false,
        };
        if bare && !payload.is_empty() {
            return Err(error("bytes follow the record"));
        }
        // What the fields say must be all that the identity says: two identities never stand for
        // one record.
        if record.identity().as_bytes() != identity {
            return Err(error("the identity has fields that its kind does not use"));
        }
        Ok(record)
    }

    /// What an identity says of a record whose payload is damaged.
    pub fn outline(identity: &[u8]) -> Result<Outline, DecodeError> {
        let (kind, count, slot, ballot) = Identity::parts(identity)?;
        match kind {
            KIND_GROUP_CREATE => Ok(Outline::Create),
            KIND_GROUP_STATE => Ok(Outline::State { promised: ballot, chosen_upto: slot }),
            KIND_ENTRIES => {
                let fits = (1..=ACCEPT_SLOTS_MAX as u32).contains(&count);
                if !fits || slot == Slot::ZERO || slot.0.checked_add(u64::from(count)).is_none() {
                    return Err(error("entries outside of the log"));
                }
                Ok(Outline::Entries { first: slot, count, ballot })
            }
            // Who votes is not known, as where a state is damaged.
            KIND_EPOCH => Ok(Outline::State { promised: ballot, chosen_upto: slot.prev() }),
            _ => Record::decode(identity, &Bytes::new()).map(Outline::Whole),
        }
    }

    /// The value with this index in the payload of an `Entries` record, sharing its buffer.
    pub fn decode_value(payload: &Bytes, index: u32) -> Result<Value, DecodeError> {
        let mut rest = payload.clone();
        for _ in 0..index {
            next_item(&mut rest)?;
        }
        decode_item(&next_item(&mut rest)?)
    }
}

fn encode_tagged(tag: u8, content: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(1 + content.len()).expect("a list of members is short");
    out.extend_from_slice(&length.to_be_bytes());
    out.push(tag);
    out.extend_from_slice(content);
}

fn encode_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Stop(members) => {
            encode_tagged(TAG_STOP, &base::codec::encode_vec(members), out);
        }
        Value::Done(epoch) => encode_tagged(TAG_DONE, &epoch.to_be_bytes(), out),
        Value::Noop => {
            out.extend_from_slice(&1u32.to_be_bytes());
            out.push(TAG_NOOP);
        }
        Value::Command(command) => {
            let trace_bytes = if command.trace.is_some() { 16 } else { 0 };
            let length = 1 + 8 + trace_bytes + command.payload.len();
            let length = u32::try_from(length).expect("a command is bounded far below 4 GiB");
            out.reserve(LENGTH_BYTES + length as usize);
            out.extend_from_slice(&length.to_be_bytes());
            out.push(if command.trace.is_some() { TAG_COMMAND_TRACED } else { TAG_COMMAND });
            out.extend_from_slice(&command.time.0.to_be_bytes());
            if let Some(trace) = command.trace {
                out.extend_from_slice(&trace.0.to_be_bytes());
            }
            out.extend_from_slice(&command.payload);
        }
    }
}

fn decode_values(count: u32, payload: &Bytes) -> Result<Vec<Value>, DecodeError> {
    let mut rest = payload.clone();
    // Each value takes at least its length and its tag, which bounds the allocation.
    let mut values = Vec::with_capacity((count as usize).min(payload.len() / (LENGTH_BYTES + 1)));
    for _ in 0..count {
        values.push(decode_item(&next_item(&mut rest)?)?);
    }
    if !rest.is_empty() || values.is_empty() {
        return Err(error("entries and their count differ"));
    }
    Ok(values)
}

fn next_item(rest: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = rest.first_chunk::<LENGTH_BYTES>().ok_or_else(|| error("entries end early"))?;
    let length = u32::from_be_bytes(*length) as usize;
    if rest.len() - LENGTH_BYTES < length {
        return Err(error("an entry ends early"));
    }
    let item = rest.slice(LENGTH_BYTES..LENGTH_BYTES + length);
    *rest = rest.slice(LENGTH_BYTES + length..);
    Ok(item)
}

fn decode_item(item: &Bytes) -> Result<Value, DecodeError> {
    let short = || error("an entry ends early");
    let (tag, rest) = item.split_first().ok_or_else(short)?;
    match *tag {
        TAG_NOOP if rest.is_empty() => Ok(Value::Noop),
        TAG_STOP => Ok(Value::Stop(base::codec::decode(&item.slice_ref(rest))?)),
        TAG_DONE => {
            let epoch = rest.try_into().map_err(|_| error("an epoch of the wrong length"))?;
            Ok(Value::Done(u32::from_be_bytes(epoch)))
        }
        TAG_COMMAND => {
            let (time, payload) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            let time = WallMillis(u64::from_be_bytes(*time));
            Ok(Value::Command(Command { time, trace: None, payload: item.slice_ref(payload) }))
        }
        TAG_COMMAND_TRACED => {
            let (time, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
            let (trace, payload) = rest.split_first_chunk::<16>().ok_or_else(short)?;
            let time = WallMillis(u64::from_be_bytes(*time));
            let trace = Some(TraceId(u128::from_be_bytes(*trace)));
            Ok(Value::Command(Command { time, trace, payload: item.slice_ref(payload) }))
        }
        _ => Err(error("an entry of unknown form")),
    }
}

fn error(what: &str) -> DecodeError {
    DecodeError(what.to_owned())
}

#[cfg(test)]
#[path = "record/tests.rs"]
mod tests;
