//! The replicas of this node as the shard master wants them: those that are to be made learn, the
//! leaders here change the members of their groups, and what is no member any more is deleted
//! (`docs/paxos.md` 11.8, 11.9). Everything follows from the newest routes, again and again, so that
//! nothing needs to be remembered.

use std::collections::{BTreeMap, BTreeSet};

use base::{DiskId, Generation, GroupId, Lsn, Micros, NodeId, ReplicaId, Slot};
use bytes::Bytes;
use paxos::{ChangeRefusal, HeartbeatRow, Member, Members, Record};
use replica_group::turn::Level;
use router::{Body, MasterOp, Request};
use storage::ScanLimit;

use crate::generations::{self, Generations};
use crate::node::Node;
use crate::requests::{Origin, Work, own_header};

/// What this node remembers of its replicas; nothing of it is needed for safety.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    look_at: Micros,
    /// When the shard master is told of a group's members again.
    tell_at: BTreeMap<GroupId, Micros>,
    /// Senders of messages that are no members as far as known here: they are answered.
    pub(crate) strangers: BTreeMap<(GroupId, ReplicaId), NodeId>,
    /// Stores of deleted replicas in which nothing is left, and whether a flush that says so is
    /// under way.
    wiped: BTreeMap<GroupId, bool>,
    /// The newest record that says that a replica is no more.
    destroyed_at: Lsn,
    /// Changes of which was said that they wait.
    said: BTreeSet<(GroupId, u32)>,
}

/// Pause between two looks at what is to be done.
const LOOK: Micros = Micros::from_millis(50);
/// The shard master is told again after this time.
const TELL_AGAIN: Micros = Micros::from_millis(1_000);
/// So many records of a deleted replica are deleted at once.
const WIPE_RECORDS: usize = 512;
/// And about so many bytes.
const WIPE_BYTES: usize = 1 << 20;
/// Behind all generations.
const GENERATION_END: Generation = Generation(u32::MAX);
/// Most senders that are no members and are remembered.
const STRANGERS_MAX: usize = 256;
const PATIENCE: Micros = Micros::from_secs(2);

fn member(&(replica, node, disk): &(ReplicaId, NodeId, DiskId)) -> Member {
    Member { replica, node, disk }
}

impl Node {
    pub(crate) fn tick_replicas(&mut self) {
        let now = self.now.mono;
        if now < self.replicas.look_at || self.record.routes.version == 0 {
            return;
        }
        self.replicas.look_at = now + LOOK;
        self.wipe_stores();
        self.name_learners();
        self.make_learners();
        self.delete_former();
        self.change_members();
        self.tell_members();
    }

    /// The members of a group as the routes have them.
    pub(crate) fn routed_members(&self, group: GroupId) -> Option<Members> {
        let info = self.record.routes.groups.get(&group)?;
        let voters: Vec<Member> = info.members.iter().map(member).collect();
        match self.record.routes.epoch(group) {
            1 => Members::new(voters),
            epoch => Members::known(epoch, voters),
        }
    }

    /// Every replica knows who learns, and one that is behind who has come meanwhile.
    fn name_learners(&mut self) {
        let now = self.now;
        for (group, hosted) in &mut self.groups {
            let change = self.record.routes.changes.get(group);
            let joins = change.map(|change| change.joins.as_slice()).unwrap_or_default();
            let mut learners: Vec<Member> = joins.iter().map(member).collect();
            // Who was away for long may know none of those who vote by now: they have what it lacks.
            if self.record.routes.epoch(*group) > hosted.paxos().members().epoch()
                && let Some(info) = self.record.routes.groups.get(group)
            {
                learners.extend(info.members.iter().map(member));
            }
            hosted.set_learners(now, learners);
            self.dirty.insert(*group);
        }
    }

    /// Makes the replicas that are to learn here.
    fn make_learners(&mut self) {
        let (node, disk) = (self.record.node, self.options.disk);
        let joins = self.record.routes.changes.iter().flat_map(|(group, change)| {
            change.joins.iter().map(|(replica, node, disk)| (*group, *replica, *node, *disk))
        });
        let own = joins.filter(|join| (join.2, join.3) == (node, disk) && !self.hosts(join.0));
        let own: Vec<(GroupId, ReplicaId)> = own.map(|join| (join.0, join.1)).collect();
        for (group, replica) in own {
            if let Some(members) = self.routed_members(group)
                && self.may_make(group, replica)
            {
                self.create_replica(group, replica, members);
            }
        }
    }

    /// A member that was never made, of a group whose members have changed since it was founded: it
    /// votes when it has learned that it is one.
    pub(crate) fn make_late(&mut self, group: GroupId, replica: ReplicaId, members: &Members) {
        let voters = members.voters().iter().copied();
        let others: Vec<Member> = voters.filter(|voter| voter.replica != replica).collect();
        if let Some(others) = Members::known(members.epoch() - 1, others)
            && self.may_make(group, replica)
        {
            self.create_replica(group, replica, others);
        }
    }

    /// Whether this replica may be made here: it never was before, and nothing is left of another
    /// replica of the group.
    pub(crate) fn may_make(&mut self, group: GroupId, replica: ReplicaId) -> bool {
        if self.is_forgotten(group, replica) || self.record.wiping.contains(&group) {
            return false;
        }
        let executed = crate::store::applied(&self.overlay, group) != Ok(Slot::ZERO);
        let known = Generations::read(&self.overlay, group).ok().filter(|_| !executed);
        let clean = known.is_some_and(|known| {
            let (from, to) = generations::range(group, known.current);
            let found = self.overlay.scan(&from, &to, ScanLimit { records: 1, bytes: WIPE_BYTES });
            found.is_ok_and(|records| records.is_empty())
        });
        match known.filter(|_| clean) {
            Some(known) => drop(self.generations.insert(group, known)),
            None => {
                self.record.wiping.insert(group);
                self.save_record();
            }
        }
        clean
    }

    // ------------------------------------------------------------------ changes

    /// The leaders here propose the members that the shard master wants.
    fn change_members(&mut self) {
        let now = self.now;
        let mut said = Vec::new();
        for (group, hosted) in &mut self.groups {
            let Some(change) = self.record.routes.changes.get(group) else { continue };
            let paxos = hosted.paxos();
            let epoch = paxos.members().epoch();
            if !paxos.is_leading() || change.epoch != epoch || paxos.done() < epoch {
                continue;
            }
            // A replica that learns too slowly, or not at all, is of no use as a member.
            let ready = change.joins.iter().all(|(replica, ..)| paxos.is_near(*replica));
            let voters = paxos.members().voters().iter().copied();
            let staying = voters.filter(|voter| !change.leaves.contains(&voter.replica));
            let staying: Vec<Member> = staying.collect();
            let joins: Vec<Member> = change.joins.iter().map(member).collect();
            // Where nobody stays, one of those who come is the first to lead.
            let first = match staying.is_empty() {
                true => joins.first().map(|member| member.replica),
                false => first_leader(paxos, &staying),
            };
            let voters: Vec<Member> = staying.into_iter().chain(joins).collect();
            let Some(first) = first.filter(|_| ready) else { continue };
            let result = hosted.change(now, voters, first);
            self.dirty.insert(*group);
            match result {
                Ok(slot) => {
                    let joins = numbers(change.joins.iter().map(|(replica, ..)| *replica));
                    let leaves = numbers(change.leaves.iter().copied());
                    said.push(format!(
                        "group {}: from {} on its members change: in come the replicas [{joins}], \
                         out go [{leaves}]",
                        group.0,
                        slot.next()
                    ));
                }
                Err(ChangeRefusal::NotReady { lacking })
                    if self.replicas.said.insert((*group, epoch)) =>
                {
                    said.push(format!(
                        "group {}: a change of its members waits: the replicas [{}] lack too much, \
                         or do not answer",
                        group.0,
                        numbers(lacking.into_iter())
                    ));
                }
                Err(
                    ChangeRefusal::NotReady { .. }
                    | ChangeRefusal::NotLeader { .. }
                    | ChangeRefusal::Busy
                    | ChangeRefusal::NoMembers
                    | ChangeRefusal::Same,
                ) => {}
            }
        }
        for text in said {
            self.event(Level::Info, text);
        }
    }

    /// The shard master is told who the members of a group are, and which replica is of no use.
    fn tell_members(&mut self) {
        let mut tell = self.news_of_members();
        self.news_of_the_lost(&mut tell);
        for (group, op) in tell {
            self.replicas.tell_at.insert(group, self.now.mono + TELL_AGAIN);
            self.tell_master(op);
        }
    }

    fn news_of_members(&self) -> Vec<(GroupId, MasterOp)> {
        let now = self.now.mono;
        let mut tell = Vec::new();
        for (group, hosted) in &self.groups {
            if self.replicas.tell_at.get(group).is_some_and(|at| now < *at) {
                continue;
            }
            let paxos = hosted.paxos();
            let members = paxos.members();
            let known = self.record.routes.epoch(*group);
            let settled = paxos.is_leading() && paxos.done() >= members.epoch();
            if settled && members.epoch() > known {
                let voters = members.voters().iter().map(|m| (m.replica, m.node, m.disk));
                let (group, epoch) = (*group, members.epoch());
                tell.push((
                    group,
                    MasterOp::MembersAre { group, epoch, members: voters.collect() },
                ));
            }
            let change = self.record.routes.changes.get(group);
            let going = change.is_some_and(|change| change.leaves.contains(&paxos.replica()));
            if paxos.is_quarantined() && !going && self.wanted_here(*group) == Some(paxos.replica())
            {
                let replica = paxos.replica();
                tell.push((*group, MasterOp::ReplicaLost { group: *group, replica }));
            }
        }
        tell
    }

    fn news_of_the_lost(&mut self, tell: &mut Vec<(GroupId, MasterOp)>) {
        let now = self.now.mono;
        tell.extend(self.lost_here());
        // Where this node forgot which replicas it had, it asks which there may have been.
        let asked = self.replicas.tell_at.get(&GroupId::NODE).is_some_and(|at| now < *at);
        if self.record.forgot && self.record.fresh_from.is_none() && !asked {
            tell.push((GroupId::NODE, MasterOp::Routes));
        }
    }

    /// What was here and is no more, and is believed to be here.
    fn lost_here(&mut self) -> Vec<(GroupId, MasterOp)> {
        let routes = &self.record.routes;
        let groups: BTreeSet<GroupId> =
            routes.groups.keys().chain(routes.changes.keys()).copied().collect();
        let mut lost = Vec::new();
        for group in groups {
            let waits = self.replicas.tell_at.get(&group).is_some_and(|at| self.now.mono < *at);
            let Some(replica) = self.wanted_here(group) else { continue };
            if waits || self.hosts(group) {
                continue;
            }
            if self.is_forgotten(group, replica) && self.is_retired(group, replica) {
                lost.push((group, MasterOp::ReplicaLost { group, replica }));
            }
        }
        lost
    }

    /// The replica of a group that is to be on this node's disk, as the routes say.
    pub(crate) fn wanted_here(&self, group: GroupId) -> Option<ReplicaId> {
        let here = (self.record.node, self.options.disk);
        let routes = &self.record.routes;
        let members = routes.groups.get(&group).map(|info| info.members.as_slice());
        let joins = routes.changes.get(&group).map(|change| change.joins.as_slice());
        let mut all = [joins, members].into_iter().flatten().flatten();
        all.find(|(_, node, disk)| (*node, *disk) == here).map(|(replica, ..)| *replica)
    }

    /// Asks the shard master something, if it can be reached; nothing waits for the answer.
    pub(crate) fn tell_master(&mut self, op: MasterOp) {
        let request = Request { header: own_header(), body: Body::Master(op) };
        let work = Work::Request(GroupId::MASTER, Box::new(request));
        self.start(Origin::Tell, work, self.now.mono + PATIENCE, 0);
    }

    // ------------------------------------------------------------------ what is no more

    /// Deletes the replicas that are members no more, and will never be again. That the shard master
    /// knows them as such means that enough of the new members have all that they had.
    fn delete_former(&mut self) {
        let routes = &self.record.routes;
        let former = self.groups.iter().filter_map(|(group, hosted)| {
            let replica = hosted.paxos().replica();
            let info = routes.groups.get(group)?;
            let member = info.members.iter().any(|member| member.0 == replica);
            let change = routes.changes.get(group);
            let joins = change.is_some_and(|change| change.joins.iter().any(|j| j.0 == replica));
            (replica < routes.replica_next && !member && !joins).then_some((*group, replica))
        });
        let former: Vec<(GroupId, ReplicaId)> = former.collect();
        for (group, replica) in former {
            self.delete_replica(group, replica);
        }
    }

    /// Another node's replica is no more: it has nothing to give.
    pub(crate) fn on_replica_gone(&mut self, node: NodeId, group: GroupId, replica: ReplicaId) {
        let now = self.now;
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        if hosted.node_of(replica) == Some(node) {
            hosted.heard(now, replica, HeartbeatRow::default());
            self.dirty.insert(group);
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.rows.retain(|of, (from, _)| *of != group || *from != replica);
            }
        }
    }

    fn delete_replica(&mut self, group: GroupId, replica: ReplicaId) {
        let text =
            format!("replica {} of group {} is no member any more: deleted", replica.0, group.0);
        self.event(Level::Info, text);
        let last = self.record.retired.entry(group).or_default();
        *last = replica.max(*last);
        self.record.wiping.insert(group);
        self.save_record();
        let record = Record::GroupDestroy;
        self.replicas.destroyed_at =
            self.wal.append(group, record.identity().as_bytes(), false, &mut |out| {
                record.encode_payload(out);
            });
        self.wal.forget(group);
        self.settle_last(group);
        self.forget_install(group);
        let waiting = self.groups.get(&group).map(|hosted| hosted.waiting()).unwrap_or_default();
        self.groups.remove(&group);
        self.dirty.remove(&group);
        self.forget_group_facts(group);
        for waiter in waiting {
            self.on_dropped(waiter);
        }
        self.learn_peers();
    }

    /// The first keys that the store has of a group; none if it cannot be read.
    fn store_keys(&self, group: GroupId) -> Option<Vec<Bytes>> {
        let limit = ScanLimit { records: WIPE_RECORDS, bytes: WIPE_BYTES };
        generations::keys_of(&self.overlay, group, (Generation(0), GENERATION_END), limit).ok()
    }

    /// Deletes what the store has of replicas that are no more, in small parts.
    fn wipe_stores(&mut self) {
        // A start that finds the replica still there must find its state whole.
        if self.wal.synced() < self.replicas.destroyed_at {
            return;
        }
        for group in self.record.wiping.clone() {
            if self.hosts(group) || self.replicas.wiped.contains_key(&group) {
                continue;
            }
            let found = self.store_keys(group);
            // What cannot be read stays where it is, and is not looked for again.
            let unreadable = found.is_none();
            let mut keys = found.unwrap_or_default();
            if keys.is_empty() {
                keys.push(crate::store::applied_key(group));
                keys.push(crate::store::standing_key(group));
                keys.push(Generations::default().record(group).0);
                self.replicas.wiped.insert(group, false);
            }
            for key in keys {
                self.overlay.delete(key);
            }
            if unreadable {
                let elsewhere = Generations::unknown(self.random.next_u64());
                let (key, record) = elsewhere.record(group);
                self.overlay.put(key, record);
            }
            self.flush.written(self.now.mono);
        }
    }

    /// A flush begins: what was deleted so far goes with it.
    pub(crate) fn wipes_flushing(&mut self) {
        self.replicas.wiped.values_mut().for_each(|flushing| *flushing = true);
    }

    /// A flush is durable.
    pub(crate) fn wipes_flushed(&mut self) {
        let wiped = &mut self.replicas.wiped;
        let done: Vec<GroupId> =
            wiped.iter().filter(|(_, f)| **f).map(|(group, _)| *group).collect();
        for group in &done {
            wiped.remove(group);
            self.record.wiping.remove(group);
        }
        if !done.is_empty() {
            self.save_record();
        }
    }

    /// Remembers where a replica is that is no member as far as known here, to answer it.
    pub(crate) fn note_stranger(&mut self, group: GroupId, replica: ReplicaId, node: NodeId) {
        let strangers = &mut self.replicas.strangers;
        if strangers.len() >= STRANGERS_MAX && !strangers.contains_key(&(group, replica)) {
            strangers.clear();
        }
        strangers.insert((group, replica), node);
    }
}

/// Who is to lead first among those who stay: this replica, or else one that could take over.
fn first_leader(paxos: &paxos::Paxos, staying: &[Member]) -> Option<ReplicaId> {
    let stays = |replica: ReplicaId| staying.iter().any(|member| member.replica == replica);
    if stays(paxos.replica()) {
        return Some(paxos.replica());
    }
    paxos.transfer_targets().into_iter().find(|target| stays(*target))
}

fn numbers(replicas: impl Iterator<Item = ReplicaId>) -> String {
    replicas.map(|replica| replica.0.to_string()).collect::<Vec<_>>().join(", ")
}
