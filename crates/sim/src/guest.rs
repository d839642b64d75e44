//! What runs on a simulated node.

use std::sync::Arc;

use base::{
    Address, BootId, ClusterId, CopyId, DiskId, GroupId, Micros, NodeId, Now, ReplicaId, Slot,
};
use replica_group::turn::Machine;
use router::{Configuration, HandoffState, MemberChange, Owner, Reply, Request, ShardStatus};
use shardmaster::Migration;
use storage::{Disk, Engine};

/// A machine that the world can start, watch and drive. [`node::Node`] is the one that matters; the
/// checkers are tried on smaller ones with planted faults.
pub trait Guest: Machine<Request, Reply> + Sized {
    /// Starts a process on what an earlier one left.
    fn open(
        start: &Start,
        disk: &mut dyn Disk,
        engine: Arc<dyn Engine>,
        now: Now,
    ) -> Result<Self, String>;

    /// Its replicas as they are. Digests cost something, and are given only if asked for.
    fn views(&self, digests: bool) -> Vec<View>;

    /// A hash of what is chosen in a slot, where the replica still has it.
    fn chosen(&self, group: GroupId, slot: Slot) -> Option<u128>;

    /// The groups that it leads, as it believes: the ballot, and when its lease ends by its boot
    /// clock, if it has one.
    fn leases(&self) -> Vec<(GroupId, BallotView, Option<Micros>)> {
        Vec::new()
    }

    /// What its replicas have of the shards, by group; none where there are no shards.
    fn shards(&self) -> Vec<ShardsView> {
        Vec::new()
    }

    /// How far a hand-off is in the state of its replica of a group; none where there is nothing
    /// to say.
    fn handoff(&self, _group: GroupId, _mig: CopyId) -> Option<HandoffState> {
        None
    }

    /// The groups of which it takes copies of other replicas' states, and how far each is.
    fn copying(&self) -> Vec<(GroupId, &'static str)> {
        Vec::new()
    }

    /// Reads every record and compares with what its replicas say of them: what is wrong.
    fn audit(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// The cluster that it durably belongs to.
    fn cluster(&self) -> Option<ClusterId> {
        None
    }

    /// How many commands its replicas have executed since the start, all together.
    fn executed(&self) -> u64 {
        0
    }

    /// The count of starts on its disk, as it says itself.
    fn starts(&self) -> u64 {
        0
    }

    /// The highest count of starts that another node's disk has shown it.
    fn starts_seen(&self, _disk: DiskId) -> u64 {
        0
    }

    /// What its replica of the shard master has, if there is one.
    fn plan(&self) -> Option<PlanView> {
        None
    }
}

/// What a replica has of the shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardsView {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// The prefix that its state machine has executed.
    pub applied: Slot,
    /// Every shard of which it has anything.
    pub shards: Vec<ShardStatus>,
}

/// A replica, and where it lives.
pub type Place = (ReplicaId, NodeId, DiskId);

/// What a replica of the shard master has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanView {
    /// The prefix that it has executed.
    pub applied: Slot,
    /// The plan.
    pub plan: Configuration,
    /// What is, by shard number.
    pub owners: Vec<Option<Owner>>,
    /// The members of every group that ever joined, as their leaders reported them last.
    pub members: Vec<(GroupId, Vec<Place>)>,
    /// The changes of members under way.
    pub changes: Vec<(GroupId, MemberChange)>,
    /// The hand-offs under way.
    pub migrations: Vec<Migration>,
}

/// How a node's process is started.
#[derive(Clone, Debug)]
pub struct Start {
    /// The disk.
    pub disk: DiskId,
    /// This start.
    pub boot: BootId,
    /// Which start on this disk, from 1.
    pub starts: u64,
    /// Its number, which masters are given; other nodes ask the cluster for one.
    pub node: NodeId,
    /// The cluster that its superblock names, once an earlier start belonged to one.
    pub cluster: Option<ClusterId>,
    /// Where other nodes reach it.
    pub peer: Address,
    /// Where clients reach it.
    pub grpc: Address,
    /// The masters' addresses for nodes.
    pub masters: Vec<Address>,
    /// Seed of its randomness.
    pub seed: u64,
    /// What all nodes of a run have in common.
    pub settings: Settings,
}

/// Settings of all nodes of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a segment of the write-ahead log.
    pub segment_bytes: u64,
    /// Bytes at which the write-ahead log is full.
    pub wal_bytes_max: u64,
    /// Bytes of a group's newest values that are kept in memory.
    pub tail_bytes_max: usize,
    /// Bytes at which the overlay is flushed.
    pub overlay_bytes_max: usize,
    /// Idle time after which it is flushed.
    pub overlay_idle: Micros,
    /// Age at which it is flushed in any case.
    pub overlay_age_max: Micros,
    /// Bytes of its log that a group keeps for those who lack them.
    pub log_bytes_max: usize,
    /// Bytes of its log that a group keeps though all replicas have them.
    pub log_tail_bytes: usize,
    /// For how long.
    pub log_tail_age: Micros,
    /// Bytes of a part of a copy of a group's state, about.
    pub snapshot_part_bytes: usize,
    /// Bytes of such parts that are read in a second for other nodes; none are with 0.
    pub snapshot_bytes_per_second: u64,
    /// Bytes of a chunk or delta of a hand-off, about.
    pub handoff_part_bytes: usize,
    /// Bytes that a hand-off leaves to be sent when it freezes its shards.
    pub handoff_left_bytes: usize,
}

/// A promise or a leadership, comparable: epoch, round, replica.
pub type BallotView = (u32, u32, u64);

/// One replica, as the invariants see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// The highest ballot it promised.
    pub promised: BallotView,
    /// The part of that which a crash cannot take back.
    pub promised_durable: BallotView,
    /// The ballot under which it leads, if it does.
    pub leading: Option<BallotView>,
    /// The contiguous prefix that it knows to be chosen.
    pub chosen_upto: Slot,
    /// The prefix that is chosen and durable in its own log.
    pub have_upto: Slot,
    /// The prefix that its state machine has executed.
    pub applied: Slot,
    /// The epoch that it is in.
    pub epoch: u32,
    /// Who votes in it.
    pub voters: Vec<ReplicaId>,
    /// The last slot of its log that holds anything.
    pub last: Slot,
    /// The prefix that its log has dropped.
    pub truncated_upto: Slot,
    /// Damage took something from it that it has not got back: what it knew before does not bind it,
    /// nor is it expected to come to the same state as the others.
    pub hurt: bool,
    /// It never votes again.
    pub quarantined: bool,
    /// Digest of its state at `applied`, sessions included.
    pub digest: Option<u128>,
}
