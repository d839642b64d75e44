//! The plan (configurations) and what is (routes).

use std::collections::{BTreeMap, BTreeSet};

use base::{Address, ClusterId, ConfigNumber, CopyId, DiskId, GroupId, NodeId, ReplicaId};
use base::{ShardEpoch, ShardId};
use minicbor::{Decode, Encode};

/// The plan: which group is to serve which shard. Only Join, Leave and Move make the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Configuration {
    /// Counted from 1; 0 is the empty configuration of a new cluster.
    #[n(0)]
    pub number: ConfigNumber,
    /// The groups, with the nodes they live on.
    #[n(1)]
    pub groups: BTreeMap<GroupId, Vec<NodeId>>,
    /// The group of each shard, by shard number; group 0 stands for none.
    #[n(2)]
    pub shards: Vec<GroupId>,
}

/// Who owns a shard now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Owner {
    /// The group.
    #[n(0)]
    pub group: GroupId,
    /// How often the shard has changed hands.
    #[n(1)]
    pub epoch: ShardEpoch,
    /// The migration that brought it there.
    #[n(2)]
    pub copy: CopyId,
}

/// A node as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeInfo {
    /// Its number.
    #[n(0)]
    pub node: NodeId,
    /// Its disk.
    #[n(1)]
    pub disk: DiskId,
    /// Where other nodes reach it.
    #[n(2)]
    pub peer: Address,
    /// Its gRPC door. Empty for a master that has not registered since it created the cluster.
    #[n(3)]
    pub grpc: Address,
}

impl NodeInfo {
    /// Whether it is known where clients reach it.
    pub fn has_registered(&self) -> bool {
        !self.grpc.as_str().is_empty()
    }
}

/// A replica group as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GroupInfo {
    /// Its replicas, in the order of their numbers.
    #[n(0)]
    pub members: Vec<(ReplicaId, NodeId, DiskId)>,
}

/// A change of a group's members under way (`docs/paxos.md` 11.8).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemberChange {
    /// The number of the epoch of the members that it changes.
    #[n(0)]
    pub epoch: u32,
    /// Replicas that learn, and are to become members.
    #[n(1)]
    pub joins: Vec<(ReplicaId, NodeId, DiskId)>,
    /// Members that are to go.
    #[n(2)]
    pub leaves: Vec<ReplicaId>,
}

/// A hand-off under way: shards that change hands together.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Handoff {
    /// Names it, and the copies that it makes.
    #[n(0)]
    pub mig: CopyId,
    /// The group that has the shards until it ends.
    #[n(1)]
    pub from: GroupId,
    /// The group that is to have them.
    #[n(2)]
    pub to: GroupId,
    /// The shards, in order.
    #[n(3)]
    pub shards: Vec<ShardId>,
    /// Whether the newest configuration contradicts it, so that it is being given up. It may be
    /// too late for that.
    #[n(4)]
    pub cancel: bool,
}

/// What clients and nodes route by: the owners as they are now. A newer one has a higher version;
/// a single answer of a group that names a higher shard epoch beats it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Routes {
    /// The cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// Grows with every change of anything below.
    #[n(1)]
    pub version: u64,
    /// The number of the newest configuration.
    #[n(2)]
    pub configuration: ConfigNumber,
    /// The owner of each shard, by shard number; none before its first assignment.
    #[n(3)]
    pub owners: Vec<Option<Owner>>,
    /// The groups, group 0 included.
    #[n(4)]
    pub groups: BTreeMap<GroupId, GroupInfo>,
    /// The nodes.
    #[n(5)]
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    /// The hand-offs under way, in the order of their names.
    #[cbor(n(6), default)]
    pub handoffs: Vec<Handoff>,
    /// The number of the next hand-off: one with a lower number that is not listed above is over.
    #[cbor(n(7), default)]
    pub handoff_next: CopyId,
    /// Shards that stay where they are until an operator moves them by name, each with the
    /// hand-off in which its copy was not what it must be.
    #[cbor(n(8), default)]
    pub barred: BTreeMap<ShardId, CopyId>,
    /// The epoch of each group's members; 1 for a group that is not listed.
    #[cbor(n(9), default)]
    pub epochs: BTreeMap<GroupId, u32>,
    /// The changes of members under way, at most one of a group.
    #[cbor(n(10), default)]
    pub changes: BTreeMap<GroupId, MemberChange>,
    /// The number of the next replica of any group: one with a lower number that is neither a
    /// member nor to become one is no more.
    #[cbor(n(11), default)]
    pub replica_next: ReplicaId,
    /// Nodes that are to hold no replicas.
    #[cbor(n(12), default)]
    pub drained: BTreeSet<NodeId>,
}

impl Routes {
    /// The number of shards of the cluster.
    pub fn shards(&self) -> u16 {
        u16::try_from(self.owners.len()).unwrap_or(u16::MAX)
    }

    /// The number of the epoch of a group's members.
    pub fn epoch(&self, group: GroupId) -> u32 {
        self.epochs.get(&group).copied().unwrap_or(1)
    }

    /// The owner of a shard, where it has one.
    pub fn owner(&self, shard: ShardId) -> Option<Owner> {
        self.owners.get(usize::from(shard.0)).copied().flatten()
    }
}
