//! Reads that are answered by a replica that need not lead (`docs/paxos.md` 11.7): linearizable
//! ones after the leader has said how far the log was chosen, others from what is there.

use std::collections::{BTreeMap, BTreeSet};

use base::mutant::{self, Mutant};
use base::{Address, GroupId, Micros, Slot};
use kvserver::KvServer;
use replica_group::turn::Lane;
use replica_group::{GroupStore, Replica, Waiter};
use router::{Body, Consistency, ErrorReply, ReplyHeader, Request, Seen};

use crate::frame::NodeMessage;
use crate::hosted::Hosted;
use crate::node::Node;
use crate::requests::{Origin, Stage, Work};

/// What the replicas here know of how far their groups' logs were chosen, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    groups: BTreeMap<GroupId, Index>,
}

/// One group's.
#[derive(Debug, Default)]
struct Index {
    /// Reads that arrived in this turn: one question is asked for all of them.
    arrived: Vec<u64>,
    /// A question is to be asked although no read waits for it.
    refresh: bool,
    /// Questions under way, by their numbers: when they were asked, and for which reads.
    asked: BTreeMap<u64, (Micros, Vec<u64>)>,
    /// Reads that wait until a slot is applied here.
    waiting: BTreeSet<(Slot, u64)>,
    /// The newest answer.
    mark: Option<Mark>,
}

/// Everything that was answered before `at`, by the clock here, is in the state after `slot`.
#[derive(Clone, Copy, Debug)]
struct Mark {
    slot: Slot,
    at: Micros,
}

/// What a replica can do for a read at once.
enum Now {
    /// Answer it, until this time if there is one.
    Answer(Option<Micros>),
    /// Answer it when a slot is applied.
    Wait(Slot),
    /// Answer it when the leader has said how far the log is chosen.
    Ask,
    /// Nothing: its leader is to answer.
    Nothing,
}

/// A read waits so long for a slot to be applied here; then the leader is asked to answer it.
const APPLY_FOR: Micros = Micros::from_millis(50);
/// Most questions of one group that are under way.
const ASKED_MAX: usize = 256;

impl Indexes {
    /// A read waits for this slot no more.
    pub(super) fn forget_waiting(&mut self, group: GroupId, slot: Slot, id: u64) {
        if let Some(index) = self.groups.get_mut(&group) {
            index.waiting.remove(&(slot, id));
        }
    }
}

impl Node {
    /// Lets the replica here answer a read, or wait until it can. False where the leader is to
    /// answer it.
    pub(super) fn read_at_replica(&mut self, id: u64, group: GroupId) -> bool {
        let deed = match (self.requests.open.get(&id), self.groups.get(&group)) {
            (Some(pending), Some(Hosted::Data(replica))) => match &pending.work {
                Work::Request(_, request) if is_get(request) && replica.fenced().is_none() => {
                    let is_door = matches!(pending.origin, Origin::Door(_));
                    self.what_now(request, replica, group, is_door, pending.tried_here)
                }
                Work::Request(..) | Work::Command(..) | Work::Inspect(..) | Work::Index(_) => {
                    Now::Nothing
                }
            },
            (_, Some(Hosted::Master(_) | Hosted::Data(_)) | None) => Now::Nothing,
        };
        if !matches!(deed, Now::Nothing)
            && let Some(pending) = self.requests.open.get_mut(&id)
        {
            pending.tried_here = true;
        }
        match deed {
            Now::Answer(until) => self.read_here(id, group, until),
            Now::Wait(slot) => self.wait_for(id, group, slot),
            Now::Ask => {
                let index = self.requests.indexes.groups.entry(group).or_default();
                index.arrived.push(id);
                let wake = self.now.mono + self.options.forward_timeout;
                self.set_stage(id, Stage::Asking(group), wake);
            }
            Now::Nothing => return false,
        }
        true
    }

    fn what_now(
        &self,
        request: &Request,
        replica: &Replica<KvServer>,
        group: GroupId,
        is_door: bool,
        tried: bool,
    ) -> Now {
        let leads = replica.paxos().is_leading();
        let ask = if tried || leads || replica.paxos().leader().is_none() {
            Now::Nothing
        } else {
            Now::Ask
        };
        match request.header.consistency {
            Consistency::Linearizable if is_door => ask,
            Consistency::Linearizable => Now::Nothing,
            Consistency::Sequential(after) => {
                let shard = router::shard_of(key_of(request), self.record.routes.shards());
                let Some(epoch) = replica.machine().epoch(shard) else { return Now::Nothing };
                let here = Seen { epoch, slot: replica.applied() };
                match after {
                    None => Now::Answer(None),
                    Some(_) if mutant::is(Mutant::SequentialReadBehind) => Now::Answer(None),
                    Some(seen) if seen <= here => Now::Answer(None),
                    Some(seen) if seen.epoch == epoch && !tried && !leads => Now::Wait(seen.slot),
                    Some(_) => Now::Nothing,
                }
            }
            Consistency::Bounded(_) if leads => Now::Nothing,
            Consistency::Bounded(millis) => {
                let index = self.requests.indexes.groups.get(&group);
                let mark = index.and_then(|index| index.mark);
                match mark.filter(|mark| mark.slot <= replica.applied()) {
                    Some(mark) if self.now.mono <= mark.until(millis) => {
                        Now::Answer(Some(mark.until(millis)))
                    }
                    Some(_) | None => ask,
                }
            }
        }
    }

    /// A mark that is past the half of what a read allows for is made anew before it is of no use.
    fn refresh_mark(&mut self, group: GroupId, millis: u64) {
        let now = self.now.mono;
        let Some(index) = self.requests.indexes.groups.get_mut(&group) else { return };
        let newest = index.asked.values().map(|(at, _)| *at).chain(index.mark.map(|mark| mark.at));
        let newest = newest.max().unwrap_or_default();
        index.refresh |= now.since(newest).0 > millis.saturating_mul(1_000) / 2;
    }

    fn wait_for(&mut self, id: u64, group: GroupId, slot: Slot) {
        let wake = self.now.mono + APPLY_FOR;
        self.set_stage(id, Stage::Applying(group, slot), wake);
        let index = self.requests.indexes.groups.entry(group).or_default();
        index.waiting.insert((slot, id));
    }

    /// Asks the leaders for what arrived in this turn. A question that is asked now is answered with
    /// all that was chosen before.
    pub(crate) fn ask_indexes(&mut self) {
        let groups = self.requests.indexes.groups.iter();
        let wanted = groups.filter(|(_, index)| index.refresh || !index.arrived.is_empty());
        let wanted: Vec<GroupId> = wanted.map(|(group, _)| *group).collect();
        let now = self.now.mono;
        for group in wanted {
            let own = self.record.node;
            let leader = self.leader_hint(group).filter(|leader| *leader != own);
            let Some(index) = self.requests.indexes.groups.get_mut(&group) else { continue };
            index.refresh = false;
            let arrived = std::mem::take(&mut index.arrived);
            let patience = self.options.forward_timeout;
            index.asked.retain(|_, (at, _)| now.since(*at) < patience);
            let (Some(leader), true) = (leader, index.asked.len() < ASKED_MAX) else {
                for id in arrived {
                    self.retry_later(id, ErrorReply::NotLeader);
                }
                continue;
            };
            let number = self.requests.next;
            self.requests.next += 1;
            index.asked.insert(number, (now, arrived));
            let reply_to = self.options.peer.clone();
            self.send(leader, Lane::Protocol, &NodeMessage::ReadIndex { reply_to, group, number });
        }
    }

    /// Another node asks how far the log of a group is chosen that is led from here.
    pub(crate) fn on_read_index(&mut self, reply_to: Address, group: GroupId, number: u64) {
        let deadline = self.now.mono + self.options.forward_timeout;
        self.start(Origin::Index { reply_to, group, number }, Work::Index(group), deadline, 0);
    }

    /// The state here has everything that was chosen when the question came; under a lease, if this
    /// leaves before the lease ends.
    pub(super) fn answer_index(&mut self, waiter: Waiter, slot: Slot, until: Option<Micros>) {
        let Some(pending) = self.forget(waiter.0) else { return };
        let Origin::Index { reply_to, group, number } = pending.origin else { return };
        let message = NodeMessage::ReadIndexed { group, number, slot: Some(slot) };
        match until {
            Some(until) => {
                let late = NodeMessage::ReadIndexed { group, number, slot: None };
                self.send_read(&reply_to, &message, (until, &late));
            }
            None => self.send_to(&reply_to, Lane::Protocol, &message),
        }
    }

    pub(crate) fn on_read_indexed(&mut self, group: GroupId, number: u64, slot: Option<Slot>) {
        let Some(index) = self.requests.indexes.groups.get_mut(&group) else { return };
        let Some((at, reads)) = index.asked.remove(&number) else { return };
        if let Some(slot) = slot
            && index.mark.is_none_or(|mark| mark.at < at)
        {
            index.mark = Some(Mark { slot, at });
        }
        let applied = self.groups.get(&group).map(Hosted::applied).unwrap_or_default();
        for id in reads {
            if !self.requests.open.get(&id).is_some_and(|p| p.stage == Stage::Asking(group)) {
                continue;
            }
            match slot {
                Some(_) if mutant::is(Mutant::FollowerReadUnapplied) => {
                    self.read_here(id, group, None);
                }
                Some(slot) if slot <= applied => self.read_here(id, group, None),
                Some(slot) => self.wait_for(id, group, slot),
                None => self.retry_later(id, ErrorReply::NotLeader),
            }
        }
    }

    /// Answers the reads that waited for what is applied now.
    pub(crate) fn wake_applied(&mut self, group: GroupId) {
        let applied = self.groups.get(&group).map(Hosted::applied).unwrap_or_default();
        while let Some(index) = self.requests.indexes.groups.get_mut(&group)
            && let Some((slot, id)) = index.waiting.first().copied()
            && slot <= applied
        {
            index.waiting.remove(&(slot, id));
            self.read_here(id, group, None);
        }
    }

    /// Answers a read from the state of the replica here, by `until` at the latest.
    fn read_here(&mut self, id: u64, group: GroupId, until: Option<Micros>) {
        let Some(pending) = self.requests.open.get(&id) else { return };
        let Work::Request(_, request) = &pending.work else { return };
        let (Body::Kv(op), Some(Hosted::Data(replica))) = (&request.body, self.groups.get(&group))
        else {
            return self.retry_at_once(id, ErrorReply::NotLeader);
        };
        if replica.fenced().is_some() {
            return self.retry_at_once(id, ErrorReply::NotLeader);
        }
        let consistency = request.header.consistency;
        let shard = router::shard_of(op.key(), self.record.routes.shards());
        let read = replica.machine().read(
            &GroupStore::of(&mut self.overlay, group, replica.generation()),
            shard,
            op,
        );
        let (slot, leader) = (replica.applied(), self.leader_hint(group));
        match read {
            Ok(reply) if reply.body.is_ok() => {
                let header = ReplyHeader { leader, slot, ..reply.header };
                if let Consistency::Bounded(millis) = consistency {
                    self.refresh_mark(group, millis);
                }
                self.finish_read(id, header, reply.body, until);
            }
            // Who serves the shard is asked of the group's leader.
            Ok(_) => self.retry_at_once(id, ErrorReply::NotLeader),
            Err(error) => {
                self.on_store_error(group, &error);
                self.retry_at_once(id, ErrorReply::NotLeader);
            }
        }
    }
}

impl Mark {
    /// Until when a read may be answered by it that allows for so many milliseconds. A clock that
    /// is slow may not make them longer.
    fn until(&self, millis: u64) -> Micros {
        if mutant::is(Mutant::BoundIgnored) {
            return Micros(u64::MAX);
        }
        let bound = millis.saturating_mul(1_000);
        Micros(self.at.0.saturating_add(bound - bound / 1_000))
    }
}

/// Whether it is a read of a key.
fn is_get(request: &Request) -> bool {
    matches!(&request.body, Body::Kv(op) if !op.is_write())
}

fn key_of(request: &Request) -> &[u8] {
    match &request.body {
        Body::Kv(op) => op.key(),
        Body::Master(_) | Body::Cluster(_) => &[],
    }
}
