//! What the shard master's leader drives: the cluster's first command, the replicas of new groups,
//! and the creation of shards that nobody owned before (`docs/sharding.md` 11.13). It is driven by
//! the difference between what the state says and what is, over and over, so that it does not
//! matter who led before or what was lost. Also how routes reach the nodes.

use std::collections::{BTreeMap, BTreeSet};

use base::{
    Address, ClusterId, CopyId, GroupId, Micros, NodeId, ReplicaId, ShardEpoch, ShardId, limits,
};
use paxos::Members;
use replica_group::turn::{Lane, Level};
use router::{Reply, Routes};

use crate::frame::NodeMessage;
use crate::hosted::Hosted;
use crate::node::Node;
use crate::requests::{Origin, Work};

/// What the leader of group 0 remembers of its errands; nothing of it is needed for safety.
#[derive(Debug, Default)]
pub(crate) struct Assignments {
    again: Micros,
    groups_again: Micros,
    /// Replicas known to exist.
    created: BTreeSet<(GroupId, ReplicaId)>,
    /// The version of the routes that was last sent to all nodes.
    pushed: u64,
    /// Shard creations whose completion has been proposed, with the time of the proposal.
    reported: BTreeMap<CopyId, Micros>,
}

/// Pause between two rounds of errands.
const ERRANDS: Micros = Micros::from_millis(50);
/// Pause between two looks for replicas that are missing: a majority of them was enough for the
/// group to begin, and a node may have been away then.
const GROUPS: Micros = Micros::from_millis(500);
/// How long a node's own command may take before it is proposed again.
const OWN_TIMEOUT: Micros = Micros::from_secs(2);

impl Node {
    pub(crate) fn tick_assignments(&mut self) {
        let now = self.now.mono;
        if now < self.assignments.again {
            return;
        }
        self.assignments.again = now + ERRANDS;
        self.evict_sessions();
        let Some(Hosted::Master(master)) = self.groups.get(&GroupId::MASTER) else { return };
        if !master.paxos().is_leading() {
            self.assignments.created.clear();
            self.assignments.reported.clear();
            self.assignments.pushed = 0;
            return;
        }
        if master.machine().cluster().is_none() {
            return self.found();
        }
        let pending = master.machine().pending().to_vec();
        for creation in pending {
            self.create_group(creation.group);
            self.create_shards(creation.copy, creation.group, &creation.epochs());
        }
        if now >= self.assignments.groups_again {
            self.assignments.groups_again = now + GROUPS;
            let groups: Vec<GroupId> = self.record.routes.groups.keys().copied().collect();
            for group in groups {
                self.create_group(group);
            }
        }
        self.push_routes();
    }

    /// Proposes the first command of a new cluster.
    fn found(&mut self) {
        let Some(grant) = self.record.grant.clone() else { return };
        if self.requests.has(&Origin::Own) {
            return;
        }
        let masters = grant.masters.iter();
        let command = shardmaster::Command::Found {
            cluster: grant.cluster,
            shards: grant.shards,
            masters: masters
                .map(|m| shardmaster::Master {
                    node: m.node,
                    replica: m.replica,
                    disk: m.disk,
                    peer: m.peer.clone(),
                })
                .collect(),
        };
        let deadline = self.now.mono + OWN_TIMEOUT;
        self.start(Origin::Own, Work::Command(GroupId::MASTER, command.encode()), deadline, 0);
    }

    fn create_group(&mut self, group: GroupId) {
        let routes = &self.record.routes;
        let Some(info) = routes.groups.get(&group).cloned() else { return };
        let Some(cluster) = self.record.cluster else { return };
        let Some(members) = self.routed_members(group) else { return };
        for (replica, node, _) in &info.members {
            if self.assignments.created.contains(&(group, *replica)) {
                continue;
            }
            let message = NodeMessage::CreateReplica {
                reply_to: self.options.peer.clone(),
                cluster,
                group,
                members: members.clone(),
            };
            self.send_or_take(*node, message);
        }
    }

    fn create_shards(&mut self, copy: CopyId, group: GroupId, shards: &[(ShardId, ShardEpoch)]) {
        let since = self.assignments.reported.get(&copy);
        if since.is_some_and(|at| self.now.mono.since(*at) < OWN_TIMEOUT) {
            return;
        }
        let Some(info) = self.record.routes.groups.get(&group).cloned() else { return };
        for (_, node, _) in info.members {
            let message = NodeMessage::CreateShards {
                reply_to: self.options.peer.clone(),
                group,
                copy,
                shards: shards.to_vec(),
            };
            self.send_or_take(node, message);
        }
    }

    /// Sends to a node; what is for this node itself is taken at once.
    fn send_or_take(&mut self, to: NodeId, message: NodeMessage) {
        if to != self.record.node {
            return self.send(to, Lane::Protocol, &message);
        }
        match message {
            NodeMessage::CreateReplica { reply_to, cluster, group, members } => {
                self.on_create_replica(reply_to, cluster, group, members);
            }
            NodeMessage::CreateShards { reply_to, group, copy, shards } => {
                self.on_create_shards(reply_to, group, copy, shards);
            }
            other @ (NodeMessage::Paxos { .. }
            | NodeMessage::Heartbeat(_)
            | NodeMessage::HeartbeatAck(_)
            | NodeMessage::Forward { .. }
            | NodeMessage::ForwardReply { .. }
            | NodeMessage::ReadIndex { .. }
            | NodeMessage::ReadIndexed { .. }
            | NodeMessage::Identify { .. }
            | NodeMessage::Identity { .. }
            | NodeMessage::Grant { .. }
            | NodeMessage::Granted { .. }
            | NodeMessage::ReplicaCreated { .. }
            | NodeMessage::ShardsCreated { .. }
            | NodeMessage::RoutesRequest { .. }
            | NodeMessage::Routes(_)
            | NodeMessage::Errand { .. }
            | NodeMessage::ErrandReply { .. }
            | NodeMessage::SnapshotRequest { .. }
            | NodeMessage::SnapshotPart { .. }
            | NodeMessage::SnapshotRefused { .. }
            | NodeMessage::ReplicaGone { .. }
            | NodeMessage::Digest { .. }) => {
                unreachable!("only errands of the shard master go this way, not {other:?}")
            }
        }
    }

    pub(crate) fn on_create_replica(
        &mut self,
        reply_to: Address,
        cluster: ClusterId,
        group: GroupId,
        members: Members,
    ) {
        if self.record.cluster != Some(cluster) || group == GroupId::NODE {
            return;
        }
        let own = members.voters().iter().find(|member| member.node == self.record.node).copied();
        let Some(own) = own else { return };
        if own.disk != self.options.disk {
            let text = format!(
                "a replica of group {} is meant for disk {}, this node has disk {}: refused",
                group.0, own.disk, self.options.disk
            );
            return self.complain(Level::Error, text);
        }
        if !self.hosts(group) {
            if self.is_forgotten(group, own.replica) {
                return;
            }
            if members.epoch() > 1 {
                self.make_late(group, own.replica, &members);
            } else {
                self.create_replica(group, own.replica, members);
            }
            self.collect_now();
        }
        let present = self.groups.get(&group).map(|hosted| hosted.paxos().replica());
        if present == Some(own.replica) {
            let message = NodeMessage::ReplicaCreated { group, replica: own.replica };
            self.send_when_durable(reply_to, message);
        }
    }

    pub(crate) fn on_replica_created(&mut self, group: GroupId, replica: ReplicaId) {
        self.assignments.created.insert((group, replica));
    }

    pub(crate) fn on_create_shards(
        &mut self,
        reply_to: Address,
        group: GroupId,
        copy: CopyId,
        shards: Vec<(ShardId, ShardEpoch)>,
    ) {
        let leading = self.groups.get(&group).is_some_and(|h| h.paxos().is_leading());
        let origin = Origin::Create { reply_to, copy };
        // What cannot be logged, or could not be executed, must not come to the log.
        let exist = shards.len() <= usize::from(limits::SHARDS_MAX)
            && shards
                .iter()
                .all(|(shard, epoch)| shard.0 < limits::SHARDS_MAX && epoch.0 <= limits::COUNT_MAX);
        if !leading || !exist || group == GroupId::MASTER || self.requests.has(&origin) {
            return;
        }
        let command = kvserver::Command::Create { copy, shards };
        let deadline = self.now.mono + OWN_TIMEOUT;
        self.start(origin, Work::Command(group, command.encode()), deadline, 0);
    }

    /// The log of a group led from here has created shards, or failed to.
    pub(crate) fn on_shards_command(&mut self, reply_to: &Address, copy: CopyId, reply: &Reply) {
        if reply.body.is_err() {
            return;
        }
        let Some(group) = reply.header.group else { return };
        if *reply_to == self.options.peer {
            return self.on_shards_created(group, copy);
        }
        let message = NodeMessage::ShardsCreated { group, copy };
        self.send_to(reply_to, Lane::Protocol, &message);
    }

    /// A group has created its shards: the shard master takes note in its log.
    pub(crate) fn on_shards_created(&mut self, _group: GroupId, copy: CopyId) {
        let now = self.now.mono;
        let Some(Hosted::Master(master)) = self.groups.get(&GroupId::MASTER) else { return };
        let pending = master.machine().pending().iter().any(|creation| creation.copy == copy);
        let reported = self.assignments.reported.get(&copy);
        if !master.paxos().is_leading()
            || !pending
            || reported.is_some_and(|at| now.since(*at) < OWN_TIMEOUT)
        {
            return;
        }
        self.assignments.reported.insert(copy, now);
        let command = shardmaster::Command::ShardsCreated { copy };
        let work = Work::Command(GroupId::MASTER, command.encode());
        self.start(Origin::Own, work, now + OWN_TIMEOUT, 0);
    }

    /// The leader of a group evicts the sessions that are over a bound.
    fn evict_sessions(&mut self) {
        let wall = self.now.wall;
        let mut commands = Vec::new();
        for (group, hosted) in &mut self.groups {
            if let Hosted::Data(replica) = hosted
                && replica.paxos().is_leading()
                && let Some(command) = replica.machine_mut().expired_sessions(wall)
            {
                commands.push((*group, command.encode()));
            }
        }
        for (group, payload) in commands {
            let deadline = self.now.mono + OWN_TIMEOUT;
            self.start(Origin::Own, Work::Command(group, payload), deadline, 0);
        }
    }

    /// Routes of a replica of the shard master on this node are the newest there are.
    pub(crate) fn take_master_routes(&mut self) {
        let Some(Hosted::Master(master)) = self.groups.get(&GroupId::MASTER) else { return };
        let routes = master.machine().routes();
        if routes.version > self.record.routes.version {
            let routes = routes.clone();
            self.on_routes(routes);
        }
    }

    pub(crate) fn on_routes(&mut self, routes: Routes) {
        let shards = routes.shards();
        let known = self.record.routes.shards();
        if routes.version <= self.record.routes.version
            || self.record.cluster != Some(routes.cluster)
            || !(1..=limits::SHARDS_MAX).contains(&shards)
            || known != 0 && known != shards
        {
            return;
        }
        self.record.routes = routes;
        self.save_record();
        self.learn_peers();
        self.readdress_peers();
        self.forget_moved();
    }

    pub(crate) fn on_routes_request(&mut self, reply_to: &Address, version: u64) {
        if self.record.routes.version > version {
            let message = NodeMessage::Routes(self.record.routes.clone());
            self.send_to(reply_to, Lane::Protocol, &message);
        }
    }

    fn push_routes(&mut self) {
        let version = self.record.routes.version;
        if version == self.assignments.pushed {
            return;
        }
        self.assignments.pushed = version;
        let message = NodeMessage::Routes(self.record.routes.clone());
        let nodes: Vec<NodeId> = self.record.routes.nodes.keys().copied().collect();
        for node in nodes {
            if node != self.record.node {
                self.send(node, Lane::Protocol, &message);
            }
        }
    }
}
