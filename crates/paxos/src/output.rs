//! What a replica hands to its caller, and the answers to calls.

use base::{Lsn, ReplicaId, Slot};

use crate::ballot::Ballot;
use crate::confirm::ReadTicket;
use crate::message::{Message, Value};
use crate::record::Record;

/// All that came out of the inputs since the last output.
#[derive(Debug, Default)]
pub struct Output {
    /// To be appended to the write-ahead log, in this order, at consecutive positions from the
    /// `next_lsn` that was given. `Paxos::persisted` tells when they are on the disk.
    pub records: Vec<Record>,
    /// May be sent at once, whatever becomes of the records.
    pub messages: Vec<(ReplicaId, Message)>,
    /// What is now chosen, in the order of slots: every slot once, none left out.
    pub chosen: Vec<Chosen>,
    /// Values to be read back from the write-ahead log; each is answered by `Paxos::loaded`.
    pub loads: Vec<Load>,
    /// Reads that may be answered from a state that has executed the slot.
    pub confirmed: Vec<Confirmed>,
    /// Reads that nobody confirms: this replica leads no more.
    pub refused: Vec<ReadTicket>,
    /// The other replicas that this one knows of have changed (`Paxos::peers`): it is to be told
    /// anew which of them are connected.
    pub peers_changed: bool,
}

impl Output {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.messages.is_empty()
            && self.chosen.is_empty()
            && self.loads.is_empty()
            && self.confirmed.is_empty()
            && self.refused.is_empty()
            && !self.peers_changed
    }
}

/// A slot whose value is settled for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The slot.
    pub slot: Slot,
    /// The ballot under which this replica holds the value: the one that chose it or a later one,
    /// so it may differ from replica to replica.
    pub ballot: Ballot,
    /// The value.
    pub value: Value,
}

/// A value wanted from the write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The slot, which the answer repeats.
    pub slot: Slot,
    /// The ballot, which the answer repeats.
    pub ballot: Ballot,
    /// The position of the `Entries` record.
    pub lsn: Lsn,
    /// The index of the value in it; see `Record::decode_value`.
    pub index: u32,
}

/// A confirmed read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The read.
    pub ticket: ReadTicket,
    /// The read may be answered once this slot has been executed.
    pub slot: Slot,
}

/// Why a call was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This replica does not lead.
    NotLeader {
        /// The replica that it believes to lead.
        leader: Option<ReplicaId>,
    },
    /// Too much is under way; try again later.
    Busy,
}

/// Why the members are not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeRefusal {
    /// This replica does not lead.
    NotLeader {
        /// The replica that it believes to lead.
        leader: Option<ReplicaId>,
    },
    /// Another change, or a transfer of the leadership, is under way; or too much else is.
    Busy,
    /// These make no group, or the first leader is none of them.
    NoMembers,
    /// These are the voters already.
    Same,
    /// Too many of the new voters are not connected, or lack too much of the log.
    NotReady {
        /// Who.
        lacking: Vec<ReplicaId>,
    },
}

impl From<Refusal> for ChangeRefusal {
    fn from(refusal: Refusal) -> ChangeRefusal {
        match refusal {
            Refusal::NotLeader { leader } => ChangeRefusal::NotLeader { leader },
            Refusal::Busy => ChangeRefusal::Busy,
        }
    }
}

/// What is known of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotStatus {
    /// Nothing was accepted here.
    Empty,
    /// A value was accepted under this ballot.
    Accepted(Ballot),
    /// The value is settled; it is held under this ballot.
    Chosen(Ballot),
    /// Settled, and forgotten here.
    Cleared,
}

/// Counters since the start of this replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Probes sent out.
    pub campaigns: u64,
    /// Leaderships won.
    pub elections_won: u64,
    /// Leaderships given up because another replica seemed to do better.
    pub made_way: u64,
    /// Leaderships passed on.
    pub transfers: u64,
    /// Commands proposed.
    pub proposed: u64,
    /// Slots learned to be chosen.
    pub chosen: u64,
    /// Times that a follower's stream was sent again.
    pub resends: u64,
    /// Messages refused.
    pub rejects: u64,
    /// Requests for chosen slots made.
    pub catch_ups_asked: u64,
    /// Requests for chosen slots answered.
    pub catch_ups_served: u64,
    /// Values asked back from the write-ahead log.
    pub loads: u64,
    /// Rounds of questions for reads.
    pub confirm_rounds: u64,
    /// Epochs begun.
    pub epochs: u64,
}
