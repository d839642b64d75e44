//! What replicas of a group say to each other (docs/paxos.md 11.4). Numbers of fields and variants
//! are the wire format and are never reused; fields that a receiver does not know are skipped.

use base::{Micros, Slot, TraceId, WallMillis};
use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::ballot::Ballot;
use crate::members::Members;

/// What a client's request, or the group itself, asks of the replicated state machine.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub struct Command {
    /// The proposing leader's wall time.
    #[n(0)]
    pub time: WallMillis,
    /// The trace of the request that brought it.
    #[n(1)]
    pub trace: Option<TraceId>,
    /// The command as the state machine reads it; the core never looks inside.
    #[cbor(n(2), with = "base::codec::payload")]
    pub payload: Bytes,
}

/// What a slot can hold.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub enum Value {
    /// Nothing to execute: a hole that a new leader closed.
    #[n(0)]
    Noop,
    /// A command.
    #[n(1)]
    Command(#[n(0)] Command),
    /// The last value of an epoch: the members of the next one (docs/paxos.md 11.8).
    #[n(2)]
    Stop(#[n(0)] Members),
    /// A majority of the members of this epoch has all that was chosen before it: whoever voted
    /// before may go.
    #[n(3)]
    Done(#[n(0)] u32),
}

impl Value {
    /// Bytes that this value counts for in every budget: its payload and an allowance for the rest.
    pub fn weight(&self) -> usize {
        match self {
            Value::Noop | Value::Done(_) => VALUE_OVERHEAD,
            Value::Stop(members) => VALUE_OVERHEAD + MEMBER_BYTES * members.voters().len(),
            Value::Command(command) => VALUE_OVERHEAD + command.payload.len(),
        }
    }
}

/// The allowance in [`Value::weight`] for what surrounds a payload.
pub(crate) const VALUE_OVERHEAD: usize = 32;

/// Bytes that one member of a stop-sign counts for.
const MEMBER_BYTES: usize = 40;

/// A stretch of slots that one replica accepted under one ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Run {
    /// The first slot.
    #[n(0)]
    pub first: Slot,
    /// The last slot, not below the first.
    #[n(1)]
    pub last: Slot,
    /// The ballot of all of them.
    #[n(2)]
    pub ballot: Ballot,
    /// The values cannot be read where they were accepted: the acceptance counts all the same, and
    /// the values must come from others.
    #[cbor(n(3), default)]
    pub faulty: bool,
}

/// A slot's accepted value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub struct Item {
    /// The slot.
    #[n(0)]
    pub slot: Slot,
    /// The ballot under which the sender accepted the value, or learned that it was chosen.
    #[n(1)]
    pub ballot: Ballot,
    /// The value.
    #[n(2)]
    pub value: Value,
}

/// Names a slot's accepted value without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct ItemName {
    /// The slot.
    #[n(0)]
    pub slot: Slot,
    /// The ballot.
    #[n(1)]
    pub ballot: Ballot,
}

/// Slots from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SlotRange {
    /// The first slot.
    #[n(0)]
    pub first: Slot,
    /// The last slot.
    #[n(1)]
    pub last: Slot,
}

/// Phase 1: asks for a promise to take nothing under a lower ballot.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Prepare {
    /// The ballot.
    #[n(0)]
    pub ballot: Ballot,
    /// Only asks what the answer would be; nothing changes at the receiver.
    #[n(1)]
    pub probe: bool,
    /// The candidate knows this prefix to be chosen; the answer tells of the slots above it.
    #[n(2)]
    pub chosen_upto: Slot,
    /// What the candidate itself accepted above that, so that the answer leaves those values out.
    #[n(3)]
    pub runs: Vec<Run>,
    /// The ballot of a leader that passed its leadership on to the candidate: what was granted to
    /// that leader binds nobody any more.
    #[n(4)]
    pub released: Option<Ballot>,
}

/// Phase 1: the promise, and what the sender accepted so far.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub struct Promise {
    /// The ballot promised.
    #[n(0)]
    pub ballot: Ballot,
    /// Answers a probe: says what the sender would do, and binds it to nothing.
    #[n(1)]
    pub probe: bool,
    /// The prefix that the sender knows to be chosen.
    #[n(2)]
    pub chosen_upto: Slot,
    /// The sender no longer holds slots up to here.
    #[n(3)]
    pub truncated_upto: Slot,
    /// What the sender accepted above the candidate's chosen prefix.
    #[n(4)]
    pub runs: Vec<Run>,
    /// Values among them that the candidate does not have; not all, where that would be too much.
    #[n(5)]
    pub values: Vec<Item>,
    /// Every voter had the slots up to here on its disk and knew them to be chosen.
    #[cbor(n(6), default)]
    pub all_upto: Slot,
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Why {
    /// A higher ballot was promised.
    #[n(0)]
    Ballot,
    /// A probe came while the sender hears a leader, or gave a promise just now.
    #[n(1)]
    Leader,
    /// The sender has granted time to another leader and keeps that for so long.
    #[n(2)]
    Grant(#[n(0)] Micros),
    /// The sender does not vote.
    #[n(4)]
    NotVoter,
    // 3 was reserved for another epoch, which is said by `EpochInfo`.
}

/// The refusal of a message with a ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Reject {
    /// The ballot of the refused message.
    #[n(0)]
    pub ballot: Ballot,
    /// The highest ballot that the sender promised.
    #[n(1)]
    pub promised: Ballot,
    /// The reason.
    #[n(2)]
    pub why: Why,
}

/// Phase 2: asks for votes on a run of slots. Without values it makes the leader known and carries
/// what is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub struct Accept {
    /// The leader's ballot.
    #[n(0)]
    pub ballot: Ballot,
    /// The first slot that was not known as chosen when the leader took over. It proposes from
    /// here on, and slots below need no vote.
    #[n(1)]
    pub base: Slot,
    /// The slot of the first value.
    #[n(2)]
    pub first: Slot,
    /// The values of consecutive slots; at most `ACCEPT_SLOTS_MAX`.
    #[n(3)]
    pub values: Vec<Value>,
    /// The leader knows this prefix to be chosen.
    #[n(4)]
    pub chosen_upto: Slot,
    /// Every voter has this prefix on its disk and knows it to be chosen.
    #[n(5)]
    pub truncate_upto: Slot,
}

/// Phase 2: the votes of one replica, all of them durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Accepted {
    /// The ballot voted for.
    #[n(0)]
    pub ballot: Ballot,
    /// All slots from the leader's base up to here.
    #[n(1)]
    pub acc_upto: Slot,
    /// Further slots behind a gap; at most [`SACK_RANGES_MAX`] ranges.
    #[n(2)]
    pub sack: Vec<SlotRange>,
    /// The sender knows this prefix to be chosen and has it on its disk.
    #[n(3)]
    pub have_upto: Slot,
    /// What the sender knows that all voters have, as it was told by [`Accept`] or [`Chosen`]. It
    /// is told again until it says so: a log would else keep for ever what nobody needs.
    #[n(4)]
    pub truncate_upto: Slot,
}

/// Most ranges in one [`Accepted`].
pub const SACK_RANGES_MAX: usize = 4;

/// What is chosen, sent when no [`Accept`] is due that would carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Chosen {
    /// The leader's ballot.
    #[n(0)]
    pub ballot: Ballot,
    /// As in [`Accept`].
    #[n(1)]
    pub base: Slot,
    /// As in [`Accept`].
    #[n(2)]
    pub chosen_upto: Slot,
    /// As in [`Accept`].
    #[n(3)]
    pub truncate_upto: Slot,
}

/// A candidate asks for values that a promise named.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Fetch {
    /// The candidate's ballot, which the answer repeats.
    #[n(0)]
    pub ballot: Ballot,
    /// At most [`FETCH_ITEMS_MAX`].
    #[n(1)]
    pub items: Vec<ItemName>,
}

/// Most items in one [`Fetch`].
pub const FETCH_ITEMS_MAX: usize = 1_024;

/// The answer to [`Fetch`]: what the sender has of it, and what fits.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub struct Values {
    /// The candidate's ballot.
    #[n(0)]
    pub ballot: Ballot,
    /// The values.
    #[n(1)]
    pub items: Vec<Item>,
}

/// A replica that lags asks for chosen slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CatchUpRequest {
    /// The sender has this prefix.
    #[n(0)]
    pub chosen_upto: Slot,
    /// How many bytes of values it takes at once; one larger value is sent alone.
    #[n(1)]
    pub bytes_max: u32,
}

/// Chosen slots, in order and without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub struct CatchUp {
    /// The prefix that the sender knows to be chosen.
    #[n(0)]
    pub chosen_upto: Slot,
    /// The sender no longer holds slots up to here.
    #[n(1)]
    pub truncated_upto: Slot,
    /// The slots. Each ballot is at least the one under which its value was chosen.
    #[n(2)]
    pub items: Vec<Item>,
    /// Every voter had the slots up to here on its disk and knew them to be chosen.
    #[cbor(n(3), default)]
    pub all_upto: Slot,
    /// The sender's epoch, whose voters these are.
    #[cbor(n(4), default)]
    pub epoch: u32,
}

/// The leader asks whether it still leads, for the reads that wait (docs/paxos.md 11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Confirm {
    /// The leader's ballot.
    #[n(0)]
    pub ballot: Ballot,
    /// The number of the question under this ballot.
    #[n(1)]
    pub round: u64,
}

/// Nothing above the ballot was promised when the question arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfirmAck {
    /// As asked.
    #[n(0)]
    pub ballot: Ballot,
    /// As asked.
    #[n(1)]
    pub round: u64,
}

/// A leader leads no more and asks the receiver to take over, which has everything that was
/// proposed (docs/paxos.md 11.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TransferGo {
    /// The ballot under which the sender led. Nobody will lead under it again.
    #[n(0)]
    pub ballot: Ballot,
}

/// A leader leads no more: what was granted to it binds nobody any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Release {
    /// The ballot under which the sender led. Nobody will lead under it again.
    #[n(0)]
    pub ballot: Ballot,
}

/// An answer to what speaks of an epoch that is over: who the members are now.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EpochInfo {
    /// The sender's members.
    #[n(0)]
    pub members: Members,
}

/// A message between two replicas of one group.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub enum Message {
    /// See [`Prepare`].
    #[n(0)]
    Prepare(#[n(0)] Prepare),
    /// See [`Promise`].
    #[n(1)]
    Promise(#[n(0)] Promise),
    /// See [`Reject`].
    #[n(2)]
    Reject(#[n(0)] Reject),
    /// See [`Accept`].
    #[n(3)]
    Accept(#[n(0)] Accept),
    /// See [`Accepted`].
    #[n(4)]
    Accepted(#[n(0)] Accepted),
    /// See [`Chosen`].
    #[n(5)]
    Chosen(#[n(0)] Chosen),
    /// See [`Fetch`].
    #[n(6)]
    Fetch(#[n(0)] Fetch),
    /// See [`Values`].
    #[n(7)]
    Values(#[n(0)] Values),
    /// See [`CatchUpRequest`].
    #[n(8)]
    CatchUpRequest(#[n(0)] CatchUpRequest),
    /// See [`CatchUp`].
    #[n(9)]
    CatchUp(#[n(0)] CatchUp),
    /// See [`Confirm`].
    #[n(10)]
    Confirm(#[n(0)] Confirm),
    /// See [`ConfirmAck`].
    #[n(11)]
    ConfirmAck(#[n(0)] ConfirmAck),
    /// See [`TransferGo`].
    #[n(16)]
    TransferGo(#[n(0)] TransferGo),
    /// See [`Release`].
    #[n(17)]
    Release(#[n(0)] Release),
    /// See [`EpochInfo`].
    #[n(18)]
    EpochInfo(#[n(0)] EpochInfo),
    // 12 to 15 and 19 are reserved: adoption of runs, snapshots.
}

impl Message {
    /// The ballot of a message that is of use only within the epoch of that ballot.
    pub fn ballot(&self) -> Option<Ballot> {
        match self {
            Message::Prepare(Prepare { ballot, .. })
            | Message::Promise(Promise { ballot, .. })
            | Message::Reject(Reject { ballot, .. })
            | Message::Accept(Accept { ballot, .. })
            | Message::Accepted(Accepted { ballot, .. })
            | Message::Chosen(Chosen { ballot, .. })
            | Message::Fetch(Fetch { ballot, .. })
            | Message::Values(Values { ballot, .. })
            | Message::Confirm(Confirm { ballot, .. })
            | Message::ConfirmAck(ConfirmAck { ballot, .. })
            | Message::TransferGo(TransferGo { ballot })
            | Message::Release(Release { ballot }) => Some(*ballot),
            Message::CatchUpRequest(_) | Message::CatchUp(_) | Message::EpochInfo(_) => None,
        }
    }
}

/// A replica's part of its node's heartbeat: what the other replicas of the group need to know
/// about it (docs/paxos.md 11.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct HeartbeatRow {
    /// The highest ballot that it promised and has on its disk.
    #[n(0)]
    pub ballot: Ballot,
    /// The leader's ballot that it follows, or its own while it leads.
    #[n(1)]
    pub leader: Option<Ballot>,
    /// It knows this prefix to be chosen and has it on its disk.
    #[n(2)]
    pub have_upto: Slot,
    /// It could lead: it is connected to a quorum, its disk keeps up, and it means to stay.
    #[cbor(n(3), default)]
    pub able: bool,
    /// It cannot give all slots up to here to who lacks them: it has forgotten them, or they are
    /// damaged.
    #[cbor(n(5), default)]
    pub truncated_upto: Slot,
}
