//! The state of nodes, replicas and shards, as nodes tell it to whoever looks after them.

use base::{
    Address, BootId, ClusterId, ConfigNumber, CopyId, DiskId, GroupId, Micros, NodeId, ReplicaId,
    ShardEpoch, ShardId, Slot, Version,
};
use minicbor::{Decode, Encode};

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
    /// Bytes of the log and the store that were read to look for damage, since the start.
    #[n(18)]
    pub scrubbed_bytes: u64,
    /// Places of the disk found damaged since the start.
    #[n(19)]
    pub damage_found: u64,
    /// Slots of the log that were damaged and are mended, since the start.
    #[n(20)]
    pub repaired_slots: u64,
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
    /// What is wrong with it, where something is: damage, for a person.
    #[n(10)]
    pub trouble: Option<String>,
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
