//! Requests and replies, as the doors take them, nodes forward them and state machines answer them.

use base::{Address, DiskId, ReplicaId, codec};
use base::{
    ClientId, ClusterId, ConfigNumber, GroupId, Micros, NodeId, RequestNumber, ShardEpoch, ShardId,
    Slot, TraceId, Version, WallMillis,
};
use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::configuration::{Configuration, NodeInfo, Routes};
use crate::handoff::HandoffState;
use crate::status::{NodeStatus, ShardStatus};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub struct Request {
    /// Who asks, and how.
    #[n(0)]
    pub header: Header,
    /// What is asked.
    #[n(1)]
    pub body: Body,
}

/// What every request says besides its operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Header {
    /// The cluster that is meant; a node of another one refuses.
    #[n(0)]
    pub cluster: Option<ClusterId>,
    /// The identity under which the request executes at most once. Without one the first node
    /// makes one up, so that its own retries are safe.
    #[n(1)]
    pub session: Option<Session>,
    /// The shard epoch by which the sender routed.
    #[n(2)]
    pub route_epoch: Option<ShardEpoch>,
    /// How long the sender goes on waiting; zero means the node's default.
    #[n(3)]
    pub timeout: Micros,
    /// What a read may see.
    #[n(4)]
    pub consistency: Consistency,
    /// Carried along, for whoever follows the request.
    #[n(5)]
    pub trace: Option<TraceId>,
}

/// The identity of a request (`docs/paxos.md` 11.12): kept over all retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Session {
    /// The client.
    #[n(0)]
    pub client: ClientId,
    /// Its number for this request, counted over all shards.
    #[n(1)]
    pub number: RequestNumber,
    /// The lowest number that the client has still open on this request's shard, or `number`.
    #[n(2)]
    pub first_incomplete: RequestNumber,
    /// The client's time when it sent the request first: the maximum of its wall clock and every
    /// stamp it has seen, plus one.
    #[n(3)]
    pub stamp: WallMillis,
}

/// What a read may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Consistency {
    /// Everything that was answered before the read was sent.
    #[default]
    #[n(0)]
    Linearizable,
    /// What this client has seen of the key's shard, or newer: its own writes, and never less than
    /// it read before. Any replica answers that has as much.
    #[n(1)]
    Sequential(#[n(0)] Option<Seen>),
    /// What was the newest at some time that is not longer ago than so many milliseconds when the
    /// answer leaves.
    #[n(2)]
    Bounded(#[n(0)] u64),
}

/// What a client has seen of a shard: the state of the group that had the shard in this epoch after
/// this slot. Later states are higher ones (`docs/paxos.md` 11.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Seen {
    /// How often the shard had changed hands.
    #[n(0)]
    pub epoch: ShardEpoch,
    /// The slot of the group's log.
    #[n(1)]
    pub slot: Slot,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub enum Body {
    /// An operation on one key.
    #[n(0)]
    Kv(#[n(0)] KvOp),
    /// An operation of the shard master.
    #[n(1)]
    Master(#[n(0)] MasterOp),
    /// About the cluster or the node that is asked.
    #[n(2)]
    Cluster(#[n(0)] ClusterOp),
}

/// An operation on one key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub enum KvOp {
    /// The value of a key.
    #[n(0)]
    Get {
        /// The key.
        #[cbor(n(0), with = "codec::payload")]
        key: Bytes,
    },
    /// Sets the value of a key.
    #[n(1)]
    Put {
        /// The key.
        #[cbor(n(0), with = "codec::payload")]
        key: Bytes,
        /// The new value.
        #[cbor(n(1), with = "codec::payload")]
        value: Bytes,
    },
    /// Sets the value to the hash over the previous value (empty if absent) and `value`, and
    /// answers the previous value.
    #[n(2)]
    PutHash {
        /// The key.
        #[cbor(n(0), with = "codec::payload")]
        key: Bytes,
        /// What is hashed behind the previous value.
        #[cbor(n(1), with = "codec::payload")]
        value: Bytes,
        /// Which hash.
        #[n(2)]
        hash: HashKind,
    },
    /// Removes a key.
    #[n(3)]
    Delete {
        /// The key.
        #[cbor(n(0), with = "codec::payload")]
        key: Bytes,
    },
    /// Appends to the value (empty if absent).
    #[n(4)]
    Append {
        /// The key.
        #[cbor(n(0), with = "codec::payload")]
        key: Bytes,
        /// What is appended.
        #[cbor(n(1), with = "codec::payload")]
        value: Bytes,
    },
    /// Sets the value if the record is as expected.
    #[n(5)]
    CompareAndSwap {
        /// The key.
        #[cbor(n(0), with = "codec::payload")]
        key: Bytes,
        /// What must be there.
        #[n(1)]
        expected: Expected,
        /// The new value.
        #[cbor(n(2), with = "codec::payload")]
        value: Bytes,
    },
}

/// The hash of a PutHash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum HashKind {
    /// FNV-1a, 32 bit; stored as decimal text.
    #[default]
    #[n(0)]
    Fnv1a32,
    /// SHA-256; stored as lower-case hexadecimal text. It makes a chain tamper-evident.
    #[n(1)]
    Sha256,
}

/// What a CompareAndSwap expects.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub enum Expected {
    /// This value; an absent key has none, and equals no value.
    #[n(0)]
    Value(#[cbor(n(0), with = "codec::payload")] Bytes),
    /// This version; an absent key has version 0.
    #[n(1)]
    Version(#[n(0)] Version),
}

/// An operation of the shard master.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MasterOp {
    /// Adds groups to the plan, all in one step.
    #[n(0)]
    Join {
        /// The new groups.
        #[n(0)]
        groups: Vec<NewGroup>,
    },
    /// Takes groups out of the plan, all in one step. They hand their shards to those that stay.
    #[n(1)]
    Leave {
        /// The groups.
        #[n(0)]
        groups: Vec<GroupId>,
    },
    /// Gives shards to groups, all in one step, and moves nothing else.
    #[n(2)]
    Move {
        /// What goes where. No shard is named twice.
        #[n(0)]
        moves: Vec<ShardMove>,
    },
    /// The configuration with this number, or the newest.
    #[n(3)]
    Query {
        /// None, or a number beyond the newest, asks for the newest.
        #[n(0)]
        number: Option<ConfigNumber>,
    },
    /// A node makes itself known, or its new addresses.
    #[n(4)]
    Register {
        /// The node; number 0 asks for one.
        #[n(0)]
        node: NodeInfo,
        /// The count of starts on its disk; 0 where it is not told. Where a disk takes the place of
        /// a lost one, its starts come after those of that.
        #[cbor(n(1), default)]
        starts: u64,
        /// The disk in whose place this one comes, as the shard master named it.
        #[cbor(n(2), default)]
        replaces: Option<DiskId>,
    },
    /// The routes as the shard master has them.
    #[n(5)]
    Routes,
    /// Every replica on one node is to be replaced by one on another.
    #[n(6)]
    ReplaceNode {
        /// The node that is to hold no replicas.
        #[n(0)]
        old: NodeId,
        /// The node that is to hold them.
        #[n(1)]
        new: NodeId,
    },
    /// Every replica on a node is to be replaced by one on some other node.
    #[n(7)]
    DrainNode {
        /// The node that is to hold no replicas.
        #[n(0)]
        node: NodeId,
    },
    /// The leader of a group says who its members are, since which epoch.
    #[n(8)]
    MembersAre {
        /// The group.
        #[n(0)]
        group: GroupId,
        /// The number of their epoch.
        #[n(1)]
        epoch: u32,
        /// The members.
        #[n(2)]
        members: Vec<(ReplicaId, NodeId, DiskId)>,
    },
    /// A replica may have forgotten what it promised: it will never vote again.
    #[n(9)]
    ReplicaLost {
        /// The group.
        #[n(0)]
        group: GroupId,
        /// The replica.
        #[n(1)]
        replica: ReplicaId,
    },
}

/// A group that joins.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NewGroup {
    /// Its number, not 0.
    #[n(0)]
    pub group: GroupId,
    /// The nodes that shall have a replica each.
    #[n(1)]
    pub nodes: Vec<NodeId>,
}

/// Shards that are to go to one group.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShardMove {
    /// The shards, at least one.
    #[n(0)]
    pub shards: Vec<ShardId>,
    /// The group, a member of the newest configuration.
    #[n(1)]
    pub group: GroupId,
}

/// About the cluster or the node that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ClusterOp {
    /// Creates the cluster, once. Equal requests are one, and complete each other.
    #[n(0)]
    Init {
        /// Where the masters are reached by other nodes.
        #[n(0)]
        masters: Vec<Address>,
        /// The number of shards, fixed for ever.
        #[n(1)]
        shards: u16,
    },
    /// The state of the node that is asked; needs no other node.
    #[n(1)]
    Status,
    /// The routes as the node that is asked has them; needs no other node.
    #[n(2)]
    Routes,
    /// The shards of the groups that have a replica on the node that is asked.
    #[n(3)]
    Shards,
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub struct Reply {
    /// Who answers.
    #[n(0)]
    pub header: ReplyHeader,
    /// The answer. An error of the operation is an answer too, cached and repeated like any other.
    #[n(1)]
    pub body: Result<Answer, ErrorReply>,
}

/// What every reply says besides its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ReplyHeader {
    /// The cluster.
    #[n(0)]
    pub cluster: Option<ClusterId>,
    /// The group that answered.
    #[n(1)]
    pub group: Option<GroupId>,
    /// The shard of the key.
    #[n(2)]
    pub shard: Option<ShardId>,
    /// The shard's epoch at the group that answered.
    #[n(3)]
    pub shard_epoch: Option<ShardEpoch>,
    /// The version of the record that was read or written; 0 where there is none.
    #[n(4)]
    pub version: Version,
    /// The shard's log time: the client's next stamp lies above it.
    #[n(5)]
    pub stamp: WallMillis,
    /// The node that leads the group, as far as known.
    #[n(6)]
    pub leader: Option<NodeId>,
    /// The newest configuration that the answering node knows of.
    #[n(7)]
    pub configuration: ConfigNumber,
    /// With an answer about a key: the slot of the group's log after which the answer is true. It is
    /// what `Seen` says, together with the shard's epoch; 0 where it is not known.
    #[cbor(n(8), default)]
    pub slot: Slot,
}

impl ReplyHeader {
    /// What the client has seen with this answer.
    pub fn seen(&self) -> Option<(ShardId, Seen)> {
        let (shard, epoch) = (self.shard?, self.shard_epoch?);
        (self.slot > Slot::ZERO).then_some((shard, Seen { epoch, slot: self.slot }))
    }
}

/// The answer to what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub enum Answer {
    /// Get: the value, or none. PutHash: the previous value, or none.
    #[n(0)]
    Value(#[cbor(n(0), with = "codec::payload_option")] Option<Bytes>),
    /// Put: done.
    #[n(1)]
    Done,
    /// Delete: whether there was something to remove.
    #[n(2)]
    Deleted(#[n(0)] bool),
    /// Append: the length of the new value in bytes.
    #[n(3)]
    Appended(#[n(0)] u64),
    /// CompareAndSwap: whether it was done. The header has the version that is now there.
    #[n(4)]
    Swapped(#[n(0)] bool),
    /// Of the shard master.
    #[n(5)]
    Master(#[n(0)] MasterAnswer),
    /// About the cluster or a node.
    #[n(6)]
    Cluster(#[n(0)] ClusterAnswer),
    /// To a command of a hand-off: how far it is, after the command.
    #[n(7)]
    Handoff(#[n(0)] HandoffState),
}

/// An answer of the shard master.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MasterAnswer {
    /// Join, Leave, Move: the configuration that it made. Query: the one asked for.
    #[n(0)]
    Configuration(#[n(0)] Configuration),
    /// Register: the node's number.
    #[n(1)]
    Registered(#[n(0)] NodeId),
    /// Routes.
    #[n(2)]
    Routes(#[n(0)] Box<Routes>),
    /// Register: nothing is done, as the node has another disk by what is known, or this one has
    /// counted more starts. The one that asked may have been lost meanwhile, and ask late; if it is
    /// there, it counts its starts on from here, and registers again in the place of the known one.
    #[n(3)]
    Replaces {
        /// The disk that asked.
        #[n(0)]
        disk: DiskId,
        /// The disk that is known.
        #[n(1)]
        known: DiskId,
        /// No disk of the node was started so often.
        #[n(2)]
        starts: u64,
    },
}

/// An answer about the cluster or a node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ClusterAnswer {
    /// Init: the cluster exists.
    #[n(0)]
    Created(#[n(0)] ClusterId),
    /// Status.
    #[n(1)]
    Status(#[n(0)] Box<NodeStatus>),
    /// Routes.
    #[n(2)]
    Routes(#[n(0)] Box<Routes>),
    /// Shards.
    #[n(3)]
    Shards(#[n(0)] Vec<ShardStatus>),
}

/// Why a request was not done, or is not known to be.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ErrorReply {
    /// The request makes no sense, or is over a limit; the sentence says what to do.
    #[n(0)]
    Invalid(#[n(0)] String),
    /// Asked of a replica that does not lead; not executed. The leader is in the header if known.
    #[n(1)]
    NotLeader,
    /// The shard is not here; not executed. The owner, if known.
    #[n(2)]
    Moved {
        /// The shard's epoch at the owner.
        #[n(0)]
        epoch: ShardEpoch,
        /// The owner.
        #[n(1)]
        group: GroupId,
    },
    /// The node or the shard cannot answer yet; not executed; try again. The sentence says what
    /// is missing.
    #[n(3)]
    NotReady(#[n(0)] String),
    /// A bound is reached (queue, log, disk); not executed; the sentence says which.
    #[n(4)]
    ResourceExhausted(#[n(0)] String),
    /// The session is not known any more. Never executed as new: a request that was sent before
    /// may have been executed.
    #[n(5)]
    SessionExpired {
        /// Stamps above this one count as new.
        #[n(0)]
        horizon: WallMillis,
    },
    /// The request's stamp lies too far above the shard's log time; not executed, not recorded.
    #[n(6)]
    StampTooFar {
        /// The shard's log time.
        #[n(0)]
        log_time: WallMillis,
    },
    /// The client has said that it is done with this number; the answer is not kept.
    #[n(7)]
    Stale,
    /// The request may or may not have been executed, or still be.
    #[n(8)]
    OutcomeUnknown(#[n(0)] String),
    /// Meant for another cluster.
    #[n(9)]
    WrongCluster {
        /// The cluster that was asked.
        #[n(0)]
        cluster: ClusterId,
    },
    /// The operation contradicts the present state, for instance a second `init`; the sentence
    /// says how.
    #[n(10)]
    Refused(#[n(0)] String),
    /// Nobody who could answer was reached in time; a read, or a write that was never proposed.
    #[n(11)]
    Unavailable(#[n(0)] String),
    /// Not built in this version.
    #[n(12)]
    Unsupported(#[n(0)] String),
}
