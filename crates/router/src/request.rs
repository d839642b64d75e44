//! Requests and replies, as the doors take them, nodes forward them and state machines answer them.

use base::{Address, codec};
use base::{
    BootId, ClientId, ClusterId, ConfigNumber, CopyId, DiskId, GroupId, Micros, NodeId, ReplicaId,
    RequestNumber, ShardEpoch, ShardId, Slot, TraceId, Version, WallMillis,
};
use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::configuration::{Configuration, NodeInfo, Routes};

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
    /// This client's own order. Refused as not built.
    #[n(1)]
    Sequential,
    /// What is at most so many milliseconds old. Refused as not built.
    #[n(2)]
    Bounded(#[n(0)] u64),
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
    },
    /// The routes as the shard master has them.
    #[n(5)]
    Routes,
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
    Routes(#[n(0)] Routes),
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
    Routes(#[n(0)] Routes),
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

/// The state of one node, as it sees itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeStatus {
    /// Its number; 0 while it has none.
    #[n(0)]
    pub node: NodeId,
    /// Its disk.
    #[n(1)]
    pub disk: DiskId,
    /// This start of its process.
    #[n(2)]
    pub boot: BootId,
    /// Its cluster, when it belongs to one.
    #[n(3)]
    pub cluster: Option<ClusterId>,
    /// Where other nodes reach it.
    #[n(4)]
    pub peer: Address,
    /// Its gRPC door.
    #[n(5)]
    pub grpc: Address,
    /// Why it cannot serve yet, when it cannot.
    #[n(6)]
    pub not_ready: Option<String>,
    /// The version of its routes.
    #[n(7)]
    pub routes_version: u64,
    /// The newest configuration it knows of.
    #[n(8)]
    pub configuration: ConfigNumber,
    /// Its replicas.
    #[n(9)]
    pub groups: Vec<GroupStatus>,
    /// The other nodes, as seen from here.
    #[n(10)]
    pub peers: Vec<PeerStatus>,
    /// Bytes of write-ahead log that cannot be reclaimed yet.
    #[n(11)]
    pub wal_live_bytes: u64,
    /// Syncs of the write-ahead log since the start.
    #[n(12)]
    pub wal_syncs: u64,
    /// True while a full log or disk makes the node refuse writes.
    #[n(13)]
    pub wal_full: bool,
    /// Bytes in the overlay, not yet in the engine.
    #[n(14)]
    pub overlay_bytes: u64,
    /// Client requests being worked on.
    #[n(15)]
    pub open_requests: u64,
    /// Time since the start.
    #[n(16)]
    pub uptime: Micros,
    /// The version of the program.
    #[n(17)]
    pub program: String,
}

/// The state of one replica, as its node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GroupStatus {
    /// The group.
    #[n(0)]
    pub group: GroupId,
    /// The replica.
    #[n(1)]
    pub replica: ReplicaId,
    /// The nodes of the group.
    #[n(2)]
    pub nodes: Vec<NodeId>,
    /// The node that leads, as far as known.
    #[n(3)]
    pub leader: Option<NodeId>,
    /// Whether this replica leads.
    #[n(4)]
    pub leading: bool,
    /// The round of the ballot it follows.
    #[n(5)]
    pub round: u32,
    /// Highest slot of the contiguous prefix that it knows to be chosen.
    #[n(6)]
    pub chosen_upto: Slot,
    /// Highest slot applied to its state.
    #[n(7)]
    pub applied: Slot,
    /// Highest slot whose effects its store has on disk.
    #[n(8)]
    pub persisted: Slot,
    /// Highest slot removed from its log.
    #[n(9)]
    pub truncated_upto: Slot,
}

/// Another node, as seen from one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PeerStatus {
    /// The other node.
    #[n(0)]
    pub node: NodeId,
    /// Whether heartbeats go both ways.
    #[n(1)]
    pub connected: bool,
    /// The round trip of the newest answered heartbeat.
    #[n(2)]
    pub round_trip: Micros,
}

/// What a group has of a shard (`docs/sharding.md` 11.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ShardState {
    /// It serves it.
    #[n(0)]
    Owned,
    /// It serves it, and a copy of it grows at another group.
    #[n(1)]
    Out {
        /// The hand-off.
        #[n(0)]
        mig: CopyId,
        /// The group that gets it.
        #[n(1)]
        dst: GroupId,
    },
    /// It has stopped to serve it, so that the other group can begin.
    #[n(2)]
    Frozen {
        /// The hand-off.
        #[n(0)]
        mig: CopyId,
        /// The group that gets it.
        #[n(1)]
        dst: GroupId,
    },
    /// It has given it away.
    #[n(3)]
    Moved {
        /// The shard's epoch at the group that got it.
        #[n(0)]
        epoch: ShardEpoch,
        /// The group that got it.
        #[n(1)]
        dst: GroupId,
    },
    /// A copy of it grows here.
    #[n(4)]
    In {
        /// The hand-off.
        #[n(0)]
        mig: CopyId,
        /// The group that serves it.
        #[n(1)]
        src: GroupId,
    },
    /// It will never take it by this hand-off.
    #[n(5)]
    Refused {
        /// The hand-off.
        #[n(0)]
        mig: CopyId,
    },
}

/// How far a hand-off is in the log of one of its two groups (`docs/sharding.md` 11.14).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub struct HandoffState {
    /// The hand-off.
    #[n(0)]
    pub mig: CopyId,
    /// How far all of its shards are.
    #[n(1)]
    pub phase: HandoffPhase,
    /// Its shards, in order; empty where the group knows nothing of the hand-off.
    #[n(2)]
    pub shards: Vec<HandoffShard>,
}

/// How far a hand-off is in the log of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HandoffPhase {
    /// The group has nothing of it: not begun here, or long over.
    #[n(0)]
    Unknown,
    /// At the destination: the copies grow.
    #[n(1)]
    In,
    /// At the source, which serves meanwhile.
    #[n(2)]
    Out,
    /// At the source, which has stopped to serve.
    #[n(3)]
    Frozen,
    /// At the destination, which serves the shards, or has served them.
    #[n(4)]
    Active,
    /// At the source, which has given the shards away.
    #[n(5)]
    Moved,
    /// At the source, which keeps the shards: the hand-off was aborted.
    #[n(6)]
    Owned,
    /// At the destination, which will never take the shards by this hand-off.
    #[n(7)]
    Refused,
}

/// One shard of a hand-off, as one of the two groups has it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub struct HandoffShard {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// Its epoch as this group knows it: the source's while it has the shard or the copy grows,
    /// one more once the shard was handed over.
    #[n(1)]
    pub epoch: ShardEpoch,
    /// At the destination: where the next chunk begins, opaque; empty at the beginning, none where
    /// no chunk is missing.
    #[cbor(n(2), with = "codec::payload_option")]
    pub cursor: Option<Bytes>,
    /// At the destination: whether every chunk has come.
    #[n(3)]
    pub scan_done: bool,
    /// At the destination: the count of changes through which the deltas have come; none before
    /// the first.
    #[n(4)]
    pub delta_upto: Option<Version>,
    /// At the source: the count of changes with which the copying began, and the first delta
    /// begins.
    #[n(5)]
    pub x0: Version,
    /// The count of changes now; at the source the end of the newest possible delta.
    #[n(6)]
    pub changes: Version,
}

/// A shard, as one replica of its group has it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShardStatus {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// The group.
    #[n(1)]
    pub group: GroupId,
    /// Whether the replica that answered leads the group.
    #[n(2)]
    pub leading: bool,
    /// What the group has of the shard.
    #[n(3)]
    pub state: ShardState,
    /// How often the shard has changed hands.
    #[n(4)]
    pub epoch: ShardEpoch,
    /// Its keys.
    #[n(5)]
    pub keys: u64,
    /// Bytes of its keys and values.
    #[n(6)]
    pub bytes: u64,
    /// Its count of changes.
    #[n(7)]
    pub version: Version,
    /// Copies of the shard that are of no use any more and not yet deleted.
    #[n(8)]
    pub dead_copies: u32,
    /// Records that are of no use any more and not yet deleted.
    #[n(9)]
    pub dead_records: u64,
}
