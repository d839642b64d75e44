//! A replica that this node hosts: of the shard master, or of a data group.

use std::collections::BTreeSet;

use base::{DiskId, Generation, GroupId, Lsn, Micros, NodeId, Now, ReplicaId, Slot};
use kvserver::KvServer;
use paxos::{
    Ballot, ChangeRefusal, Command, HeartbeatRow, Load, Member, Message, Paxos, Refusal, Standing,
    Value,
};
use replica_group::{ApplyError, GroupStore, Keep, Replica, ReplicaOutput, Waiter};
use router::Reply;
use shardmaster::ShardMaster;
use storage::{EngineError, Overlay};

/// A hosted replica. Both kinds are the same but for their state machine.
pub(crate) enum Hosted {
    /// Of group 0.
    Master(Box<Replica<ShardMaster>>),
    /// Of a data group.
    Data(Box<Replica<KvServer>>),
}

macro_rules! each {
    ($hosted:expr, $replica:ident => $body:expr) => {
        match $hosted {
            Hosted::Master($replica) => $body,
            Hosted::Data($replica) => $body,
        }
    };
}

impl Hosted {
    pub(crate) fn paxos(&self) -> &Paxos {
        each!(self, replica => replica.paxos())
    }

    pub(crate) fn handle(&mut self, now: Now, from: ReplicaId, message: Message) {
        each!(self, replica => replica.handle(now, from, message));
    }

    pub(crate) fn tick(&mut self, now: Now) {
        each!(self, replica => replica.tick(now));
    }

    pub(crate) fn connected(&mut self, now: Now, from: ReplicaId, connected: bool, rtt: Micros) {
        each!(self, replica => replica.connected(now, from, connected, rtt));
    }

    pub(crate) fn heard(&mut self, now: Now, from: ReplicaId, row: HeartbeatRow) {
        each!(self, replica => replica.heard(now, from, row));
    }

    pub(crate) fn support(&mut self, now: Now, replica: ReplicaId) -> Option<Ballot> {
        each!(self, hosted => hosted.support(now, replica))
    }

    pub(crate) fn supported(&mut self, now: Now, replica: ReplicaId, ballot: Ballot, sent: Micros) {
        each!(self, hosted => hosted.supported(now, replica, ballot, sent));
    }

    pub(crate) fn restarted(&mut self, now: Now, replica: ReplicaId) {
        each!(self, hosted => hosted.restarted(now, replica));
    }

    pub(crate) fn set_unwell(&mut self, now: Now, unwell: bool) {
        each!(self, replica => replica.set_unwell(now, unwell));
    }

    pub(crate) fn abstain(&mut self) {
        each!(self, replica => replica.abstain());
    }

    pub(crate) fn transfer(&mut self, now: Now, to: ReplicaId) -> bool {
        each!(self, replica => replica.transfer(now, to))
    }

    pub(crate) fn set_learners(&mut self, now: Now, learners: Vec<Member>) {
        each!(self, replica => replica.set_learners(now, learners));
    }

    pub(crate) fn change(
        &mut self,
        now: Now,
        voters: Vec<Member>,
        first_leader: ReplicaId,
    ) -> Result<Slot, ChangeRefusal> {
        each!(self, replica => replica.change(now, voters, first_leader))
    }

    pub(crate) fn waiting(&self) -> BTreeSet<Waiter> {
        each!(self, replica => replica.waiting())
    }

    pub(crate) fn loaded(&mut self, now: Now, load: &Load, value: Option<Value>) {
        each!(self, replica => replica.loaded(now, load, value));
    }

    pub(crate) fn damaged(&mut self, now: Now, first: Lsn, last: Lsn) {
        each!(self, replica => replica.damaged(now, first, last));
    }

    pub(crate) fn mended(&mut self, first: Lsn, last: Lsn) {
        each!(self, replica => replica.mended(first, last));
    }

    pub(crate) fn digest_now(&mut self) -> Result<Option<(Slot, u128)>, ApplyError> {
        each!(self, replica => replica.digest_now())
    }

    pub(crate) fn quarantine(&mut self) {
        each!(self, replica => replica.quarantine());
    }

    pub(crate) fn fence(&mut self, why: String) {
        each!(self, replica => replica.fence(why));
    }

    pub(crate) fn fenced(&self) -> Option<&str> {
        each!(self, replica => replica.fenced())
    }

    pub(crate) fn unsettle(&mut self) {
        each!(self, replica => replica.unsettle());
    }

    pub(crate) fn wal_synced(&mut self, now: Now, through: Lsn) {
        each!(self, replica => replica.wal_synced(now, through));
    }

    pub(crate) fn propose(
        &mut self,
        now: Now,
        waiter: Waiter,
        command: Command,
    ) -> Result<(), Refusal> {
        each!(self, replica => replica.propose(now, waiter, command))
    }

    pub(crate) fn read(&mut self, waiter: Waiter, leased: bool) -> Result<(), Refusal> {
        each!(self, replica => replica.read(waiter, leased))
    }

    pub(crate) fn take_output(
        &mut self,
        now: Now,
        overlay: &mut Overlay,
        next_lsn: Lsn,
    ) -> Result<ReplicaOutput<Reply>, ApplyError> {
        each!(self, replica => replica.take_output(now, overlay, next_lsn))
    }

    pub(crate) fn settle(&mut self, overlay: &mut Overlay) -> Result<Slot, ApplyError> {
        each!(self, replica => replica.settle(overlay))
    }

    pub(crate) fn settle_last(&mut self, overlay: &mut Overlay) -> Result<Slot, ApplyError> {
        each!(self, replica => replica.settle_last(overlay))
    }

    pub(crate) fn flushed(&mut self) {
        each!(self, replica => replica.flushed());
    }

    /// Whether slots were applied that no flush has counted.
    pub(crate) fn is_behind(&self) -> bool {
        each!(self, replica => replica.applied() > replica.persisted())
    }

    pub(crate) fn truncate(&mut self, now: Now, keep: &Keep) -> Option<Lsn> {
        each!(self, replica => replica.truncate(now, keep))
    }

    pub(crate) fn pin(&mut self, slot: Option<Slot>) {
        each!(self, replica => replica.pin(slot));
    }

    pub(crate) fn hold(&mut self) {
        each!(self, replica => replica.hold());
    }

    pub(crate) fn skip(&mut self) -> bool {
        each!(self, replica => replica.skip())
    }

    /// Exchanges the state for the one of this generation, which stands at `slot`.
    pub(crate) fn exchange(
        &mut self,
        overlay: &mut Overlay,
        slot: Slot,
        generation: Generation,
        standing: Option<Standing>,
    ) -> Result<(), EngineError> {
        let store = GroupStore::of(overlay, self.paxos().group(), generation);
        let opened = match self {
            Hosted::Master(replica) => ShardMaster::open(&store)
                .map(|machine| replica.exchange(machine, slot, generation, standing)),
            Hosted::Data(replica) => KvServer::open(replica.group(), &store)
                .map(|machine| replica.exchange(machine, slot, generation, standing)),
        };
        if opened.is_err() {
            each!(self, replica => {
                replica.set_generation(generation);
                replica.unhold();
            });
        }
        opened
    }

    pub(crate) fn generation(&self) -> Generation {
        each!(self, replica => replica.generation())
    }

    /// This replica's part of the store.
    pub(crate) fn store<'a>(&self, overlay: &'a mut Overlay) -> GroupStore<'a> {
        each!(self, replica => GroupStore::of(overlay, replica.group(), replica.generation()))
    }

    pub(crate) fn carry_forward(&mut self, below: Lsn, bytes_max: usize) -> usize {
        each!(self, replica => replica.carry_forward(below, bytes_max))
    }

    pub(crate) fn restate(&mut self) {
        each!(self, replica => replica.restate());
    }

    pub(crate) fn applied(&self) -> Slot {
        each!(self, replica => replica.applied())
    }

    pub(crate) fn persisted(&self) -> Slot {
        each!(self, replica => replica.persisted())
    }

    /// The node of a replica of this group.
    pub(crate) fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        let paxos = self.paxos();
        let voter = paxos.members().member(replica).map(|member| member.node);
        let peer = || paxos.peers().into_iter().find(|peer| peer.replica == replica);
        voter.or_else(|| peer().map(|peer| peer.node))
    }

    /// The replica of this group on a node with this disk. One that was on a disk that the node had
    /// before is not on it. Where a group left a node and came back, who was away meanwhile knows
    /// the former replica there as well: the newest is the one that is there.
    pub(crate) fn replica_on(&self, node: NodeId, disk: Option<DiskId>) -> Option<ReplicaId> {
        let is_there = |m: &&Member| m.node == node && Some(m.disk) == disk;
        self.paxos().peers().iter().filter(is_there).map(|member| member.replica).max()
    }

    /// The node of the replica that leads, as far as known here.
    pub(crate) fn leader_node(&self) -> Option<NodeId> {
        self.paxos().leader().and_then(|replica| self.node_of(replica))
    }
}

/// Which state machine a group runs.
pub(crate) fn is_master(group: GroupId) -> bool {
    group == GroupId::MASTER
}
