//! The replicas of a group tell each other digests of their states after the same slots, and one
//! whose state is not that of a majority trusts it no more (`docs/paxos.md` 11.3).

use std::collections::BTreeMap;

use base::{GroupId, Micros, NodeId, ReplicaId, Slot};
use replica_group::turn::{Lane, Level};
use storage::EngineError;

use crate::frame::NodeMessage;
use crate::node::Node;

/// What is known of the states of all replicas.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    /// By group and slot: what each replica said, the one here among them.
    said: BTreeMap<GroupId, BTreeMap<Slot, BTreeMap<ReplicaId, u128>>>,
    /// By group: the slot last seen applied, and when it was first.
    idle: BTreeMap<GroupId, (Slot, Micros)>,
    look_at: Micros,
}

/// So many of a group's newest slots are kept.
const SLOTS_MAX: usize = 8;
/// A replica that has applied nothing for so long digests its state.
const IDLE: Micros = Micros::from_secs(1);
/// How often idle replicas are looked for.
const LOOK: Micros = Micros::from_millis(250);

impl Node {
    /// A replica that rests has the same state as the others that rest there.
    pub(crate) fn tick_digests(&mut self) {
        let now = self.now.mono;
        if now < self.digests.look_at {
            return;
        }
        self.digests.look_at = now + LOOK;
        let mut found = Vec::new();
        let mut failed = Vec::new();
        for (group, hosted) in &mut self.groups {
            let applied = hosted.applied();
            let (slot, since) = self.digests.idle.entry(*group).or_insert((applied, now));
            if *slot != applied {
                (*slot, *since) = (applied, now);
            }
            if now.since(*since) < IDLE || applied == Slot::ZERO {
                continue;
            }
            match hosted.digest_now() {
                Ok(digest) => found.extend(digest.map(|(slot, digest)| (*group, slot, digest))),
                Err(error) => failed.push((*group, error)),
            }
        }
        for (group, error) in failed {
            self.fail_apply(group, &error);
        }
        for (group, slot, digest) in found {
            self.share_digest(group, slot, digest);
        }
    }

    /// The replica of a group here is no more.
    pub(crate) fn forget_group_facts(&mut self, group: GroupId) {
        self.digests.said.remove(&group);
        self.digests.idle.remove(&group);
        self.damage.mending.remove(&group);
        self.rows.remove(group);
    }

    /// Tells the group's other replicas the digest of the state here.
    pub(crate) fn share_digest(&mut self, group: GroupId, slot: Slot, digest: u128) {
        let Some(hosted) = self.groups.get(&group) else { return };
        let from = hosted.paxos().replica();
        let voters = hosted.paxos().members().voters().iter();
        let others: Vec<NodeId> =
            voters.filter(|member| member.replica != from).map(|member| member.node).collect();
        let halves = ((digest >> 64) as u64, digest as u64);
        for node in others {
            let message = NodeMessage::Digest { group, from, slot, digest: halves };
            self.send(node, Lane::Bulk, &message);
        }
        self.take_digest(group, from, slot, digest);
    }

    pub(crate) fn on_digest(
        &mut self,
        sender: NodeId,
        group: GroupId,
        from: ReplicaId,
        slot: Slot,
        (upper, lower): (u64, u64),
    ) {
        let known = self.groups.get(&group).and_then(|hosted| hosted.node_of(from));
        if known == Some(sender) {
            let digest = u128::from(upper) << 64 | u128::from(lower);
            self.take_digest(group, from, slot, digest);
        }
    }

    fn take_digest(&mut self, group: GroupId, from: ReplicaId, slot: Slot, digest: u128) {
        let Some(hosted) = self.groups.get(&group) else { return };
        let (own, quorum) = (hosted.paxos().replica(), hosted.paxos().members().q1());
        let slots = self.digests.said.entry(group).or_default();
        slots.entry(slot).or_default().insert(from, digest);
        while slots.len() > SLOTS_MAX {
            slots.pop_first();
        }
        let Some(said) = slots.get(&slot) else { return };
        let Some(mine) = said.get(&own).copied() else { return };
        let differ: Vec<ReplicaId> =
            said.iter().filter(|(_, theirs)| **theirs != mine).map(|(id, _)| *id).collect();
        if differ.is_empty() {
            return;
        }
        let outvoted = said.values().any(|theirs| {
            *theirs != mine && said.values().filter(|other| *other == theirs).count() >= quorum
        });
        let names: Vec<String> = differ.iter().map(|id| id.0.to_string()).collect();
        let text = format!(
            "group {}: after {slot} the state of replica {} here differs from that of {}: this is a \
             bug, or damage that no checksum shows",
            group.0,
            own.0,
            names.join(" and ")
        );
        self.complain(Level::Error, text);
        if outvoted {
            let why = format!("after {slot} a majority of the group had another state");
            self.on_store_error(group, &EngineError(why));
        }
    }
}
