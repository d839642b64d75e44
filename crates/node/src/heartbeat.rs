//! Heartbeats between node pairs: they carry who lives, what its replicas stand at, and how new
//! its routes are (`docs/paxos.md` 11.4, 11.6).

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use base::{Address, BootId, ClusterId, DiskId, GroupId, Micros, NodeId, limits};
use paxos::HeartbeatRow;
use replica_group::turn::{Lane, Level};

use crate::frame::{GrantRow, Heartbeat, HeartbeatAck, Hello, NodeMessage, Row, Sender, VERSION};
use crate::node::Node;
use crate::peers::{CLOCK_APART_MILLIS_MAX, Peer, clock_median};

/// Pause between two introductions to the masters.
const INTRODUCE_AGAIN: Micros = Micros::from_millis(200);

impl Node {
    /// Where a node is reached: what it said itself, else what the registry says.
    pub(crate) fn address_of(&self, node: NodeId) -> Option<Address> {
        if let Some(peer) = self.peers.get(&node) {
            return Some(peer.address.clone());
        }
        if let Some(info) = self.record.routes.nodes.get(&node) {
            return Some(info.peer.clone());
        }
        let grant = self.record.grant.as_ref()?;
        grant.masters.iter().find(|m| m.node == node).map(|m| m.peer.clone())
    }

    /// Makes a peer of every node that shares a group with this one, or is to share one. The latter
    /// may be all that know what this node's disk once held, where it is an old copy without groups.
    pub(crate) fn learn_peers(&mut self) {
        self.shared.clear();
        for group in self.record.routes.groups.keys() {
            if self.wanted_here(*group).is_none() || self.hosts(*group) {
                continue;
            }
            let members = self.record.routes.groups.get(group).into_iter();
            for (_, node, _) in members.flat_map(|info| &info.members) {
                if *node != self.record.node {
                    self.shared.entry(*node).or_default();
                }
            }
        }
        for (group, hosted) in &self.groups {
            for member in hosted.paxos().peers() {
                if member.node != self.record.node {
                    self.shared.entry(member.node).or_default().insert(*group);
                }
            }
        }
        let nodes: Vec<NodeId> = self.shared.keys().copied().collect();
        for node in nodes {
            if self.peers.contains_key(&node) {
                continue;
            }
            if let Some(address) = self.address_of(node) {
                self.peers.insert(node, Peer::new(address));
            }
        }
    }

    /// The registry has a new address for a node that has not said otherwise itself.
    pub(crate) fn readdress_peers(&mut self) {
        for (node, info) in &self.record.routes.nodes {
            if let Some(peer) = self.peers.get_mut(node)
                && !peer.connected
                && !peer.introduced
            {
                peer.address = info.peer.clone();
            }
        }
    }

    /// Whether the sender is the present start of a node that has introduced itself.
    pub(crate) fn is_present_boot(&self, sender: &Sender) -> bool {
        self.peers
            .get(&sender.node)
            .is_some_and(|peer| peer.introduced && peer.boot == Some((sender.starts, sender.boot)))
    }

    pub(crate) fn tick_heartbeats(&mut self) {
        if self.now.mono < self.heartbeat_at {
            return;
        }
        // A late tick is not made up for: the peers count heartbeats, not time.
        self.heartbeat_at = self.now.mono + limits::HEARTBEAT_INTERVAL;
        let Some(cluster) = self.record.cluster else { return };
        let nodes: Vec<NodeId> = self.shared.keys().copied().collect();
        for node in nodes {
            self.update_connected(node);
            let hello = self.hello(cluster);
            let no_groups = BTreeSet::new();
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            peer.sent += 1;
            let groups = self.shared.get(&node).unwrap_or(&no_groups);
            let rows = self.rows.since(peer.rows_confirmed, groups);
            let rows = rows.filter_map(|(group, row)| {
                let replica = self.groups.get(&group)?.paxos().replica();
                Some(Row { group, replica, row })
            });
            let heartbeat = Heartbeat {
                number: peer.sent,
                sent: self.now.mono,
                wall: self.now.wall,
                hello: (!peer.greeted).then_some(hello),
                rows_version: self.rows.version(),
                rows: rows.collect(),
                routes_version: self.record.routes.version,
                synced: self.wal.synced(),
                grants_known: peer.boot.map(|(_, boot)| (boot, peer.grants.0)),
            };
            let address = peer.address.clone();
            self.send_to(&address, Lane::Protocol, &NodeMessage::Heartbeat(heartbeat));
        }
        self.introduce();
        self.check_clock();
    }

    /// Where a peer has not been heard since this start, neither may know where the other is now:
    /// both may have been started under new addresses. The masters' addresses that the operator
    /// gave are the newest there are; whoever is there learns from a hello where this node is.
    fn introduce(&mut self) {
        let unheard =
            self.shared.keys().any(|node| self.peers.get(node).is_none_or(|p| !p.introduced));
        if !unheard || self.now.mono < self.introduce_at {
            return;
        }
        self.introduce_at = self.now.mono + INTRODUCE_AGAIN;
        let Some(cluster) = self.record.cluster else { return };
        // Number 0 comes before all heartbeats: an answer to it says nothing.
        let heartbeat = Heartbeat {
            number: 0,
            sent: self.now.mono,
            wall: self.now.wall,
            hello: Some(self.hello(cluster)),
            rows_version: 0,
            rows: Vec::new(),
            routes_version: self.record.routes.version,
            synced: self.wal.synced(),
            grants_known: None,
        };
        let message = NodeMessage::Heartbeat(heartbeat);
        for address in self.options.masters.clone() {
            if address != self.options.peer {
                self.send_to(&address, Lane::Protocol, &message);
            }
        }
    }

    fn hello(&self, cluster: ClusterId) -> Hello {
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            cluster,
            disk: self.options.disk,
            peer: self.options.peer.clone(),
            grpc: self.options.grpc.clone(),
            opened: self.opened,
            copies: self.record.copies,
        }
    }

    fn check_clock(&mut self) {
        let connected = self.peers.values().filter(|peer| peer.connected);
        let mut ahead: Vec<i64> = connected.map(|peer| peer.wall_ahead).collect();
        let median = clock_median(&mut ahead);
        self.leadership.clock_apart = median.abs() > CLOCK_APART_MILLIS_MAX;
        if median.abs() > CLOCK_APART_MILLIS_MAX {
            let text = format!(
                "the wall clock of node {} is more than {} s {} the other nodes': set it right; \
                 until then other nodes are left to lead",
                self.record.node.0,
                CLOCK_APART_MILLIS_MAX / 1_000,
                if median > 0 { "behind" } else { "ahead of" }
            );
            self.complain(Level::Error, text);
        }
    }

    /// Takes note of whether heartbeats with this node go both ways.
    pub(crate) fn update_connected(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let connected = peer.is_answering();
        let changed = connected != peer.connected;
        peer.connected = connected;
        if changed {
            peer.connected_since = self.now.mono;
            let text = format!(
                "node {} {}",
                node.0,
                if connected { "is connected" } else { "does not answer" }
            );
            self.event(if connected { Level::Info } else { Level::Warn }, text);
        }
        let round_trip = self.peers.get(&node).map_or(Micros(0), |peer| peer.round_trip);
        if changed {
            self.tell_connected(node, connected, round_trip);
            if !connected {
                self.wake_forwarded_to(node);
            }
        }
    }

    /// The disk that a node has, by its own word.
    pub(crate) fn disk_of(&self, node: NodeId) -> Option<DiskId> {
        self.peers.get(&node)?.disk
    }

    fn tell_connected(&mut self, node: NodeId, connected: bool, round_trip: Micros) {
        let now = self.now;
        let disk = self.disk_of(node);
        let groups = self.shared.get(&node).cloned().unwrap_or_default();
        for group in groups {
            let Some(hosted) = self.groups.get_mut(&group) else { continue };
            if let Some(replica) = hosted.replica_on(node, disk) {
                hosted.connected(now, replica, connected, round_trip);
                self.dirty.insert(group);
            }
        }
    }

    /// Takes note of a new start of a node; false where the frame is of an old one.
    fn meet(&mut self, sender: &Sender, hello: Option<&Hello>) -> bool {
        let known = self.record.routes.nodes.get(&sender.node).map(|info| info.disk);
        let peer = match self.peers.entry(sender.node) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match hello {
                Some(hello) => entry.insert(Peer::new(hello.peer.clone())),
                None => return false,
            },
        };
        let present = peer.boot;
        let is_new = present.is_none_or(|(starts, _)| sender.starts > starts);
        if !is_new && present != Some((sender.starts, sender.boot)) {
            return false;
        }
        if let Some(hello) = hello {
            if known.is_some_and(|disk| disk != hello.disk) {
                let text = format!(
                    "a node with disk {} says it is node {}, which has another disk: it is \
                     refused",
                    hello.disk, sender.node.0
                );
                self.complain(Level::Error, text);
                return false;
            }
        } else if is_new || !peer.introduced {
            // It will say who it is until it is answered.
            return true;
        }
        if is_new {
            self.restarted(sender);
        }
        if let (Some(hello), Some(peer)) = (hello, self.peers.get_mut(&sender.node)) {
            peer.introduced = true;
            peer.disk = Some(hello.disk);
            peer.address = hello.peer.clone();
            peer.grpc = Some(hello.grpc.clone());
        }
        true
    }

    /// Forgets what was known of a node's earlier start.
    fn restarted(&mut self, sender: &Sender) {
        let mut was_connected = false;
        let mut earlier = None;
        if let Some(peer) = self.peers.get_mut(&sender.node) {
            was_connected = peer.connected;
            earlier = peer.boot;
            peer.granted = (0, Vec::new());
            peer.grants = (0, Vec::new());
            peer.boot = Some((sender.starts, sender.boot));
            peer.introduced = false;
            peer.greeted = false;
            peer.rows_confirmed = 0;
            peer.rows.clear();
            // Numbers of heartbeats go on: one of those to its earlier start may come yet, and must
            // not be taken for newer than all that follow.
            peer.heard = 0;
            peer.answered = 0;
            peer.connected = false;
        }
        if was_connected {
            self.tell_connected(sender.node, false, Micros(0));
            self.wake_forwarded_to(sender.node);
        }
        // Of a node that was not met before nobody knows whether it led when this one stopped.
        self.tell_restarted(sender.node, earlier.is_some());
    }

    /// A node was started anew, `again` if it was met before.
    fn tell_restarted(&mut self, node: NodeId, again: bool) {
        let now = self.now;
        let disk = self.disk_of(node);
        for group in self.shared.get(&node).into_iter().flatten() {
            let Some(hosted) = self.groups.get_mut(group) else { continue };
            let Some(replica) = hosted.replica_on(node, disk) else { continue };
            if again {
                hosted.restarted(now, replica);
            }
            // What its replicas said is said anew, by those that are still there.
            hosted.heard(now, replica, HeartbeatRow::default());
            self.dirty.insert(*group);
        }
    }

    /// Grants time to every leader on that node that its replica here follows; what is granted, as
    /// an answer to the heartbeat that is handled now says it.
    fn grant(
        &mut self,
        node: NodeId,
        known: Option<(BootId, u64)>,
    ) -> (u64, Option<Vec<GrantRow>>) {
        let now = self.now;
        let disk = self.disk_of(node);
        let mut rows = Vec::new();
        for group in self.shared.get(&node).into_iter().flatten() {
            let Some(hosted) = self.groups.get_mut(group) else { continue };
            if let Some(replica) = hosted.replica_on(node, disk)
                && let Some(ballot) = hosted.support(now, replica)
            {
                rows.push(GrantRow { group: *group, ballot });
            }
        }
        let Some(peer) = self.peers.get_mut(&node) else { return (0, None) };
        if peer.granted.1 != rows {
            peer.granted = (peer.granted.0 + 1, rows);
        }
        let number = peer.granted.0;
        let told = known == Some((self.options.boot, number));
        (number, (!told).then(|| peer.granted.1.clone()))
    }

    /// The replicas of that node grant time to ours, from when this heartbeat was sent.
    fn take_grants(&mut self, node: NodeId, ack: &HeartbeatAck) {
        let now = self.now;
        let disk = self.disk_of(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        // An answer about grants that were changed since, or are not known yet, counts for nothing.
        if !peer.take_grants(ack.grants_number, ack.grants.clone()) {
            return;
        }
        for row in &peer.grants.1 {
            let Some(hosted) = self.groups.get_mut(&row.group) else { continue };
            if let Some(replica) = hosted.replica_on(node, disk) {
                hosted.supported(now, replica, row.ballot, ack.sent);
            }
        }
    }

    pub(crate) fn on_heartbeat(&mut self, sender: &Sender, heartbeat: Heartbeat) {
        if self.record.cluster.is_none() || sender.cluster == 0 || sender.node == NodeId(0) {
            return;
        }
        if let Some(hello) = &heartbeat.hello
            && (Some(hello.cluster) != self.record.cluster || hello.version_min > VERSION)
        {
            return;
        }
        if let Some(hello) = &heartbeat.hello
            && self.is_old_copy(sender, hello)
        {
            let (number, sent) = (heartbeat.number, heartbeat.sent);
            let ack = HeartbeatAck {
                number,
                sent,
                boot: sender.boot,
                starts: sender.starts,
                rows_version: 0,
                grants_number: 0,
                grants: None,
                stale: true,
                seen: self.seen_of(hello.disk),
            };
            let address = hello.peer.clone();
            return self.send_to(&address, Lane::Protocol, &NodeMessage::HeartbeatAck(ack));
        }
        if !self.meet(sender, heartbeat.hello.as_ref()) || !self.is_present_boot(sender) {
            return;
        }
        self.remember(sender, heartbeat.hello.as_ref(), heartbeat.synced);
        let (now, wall) = (self.now, self.now.wall);
        let Some(peer) = self.peers.get_mut(&sender.node) else { return };
        // One that was overtaken has nothing to say that the newer one did not: its rows are old,
        // and would stay, as the newer ones may be confirmed already.
        let overtaken = heartbeat.number < peer.heard;
        peer.heard = peer.heard.max(heartbeat.number);
        let mut rows_version = heartbeat.rows_version;
        let rows = if overtaken { Vec::new() } else { heartbeat.rows };
        if overtaken {
            rows_version = 0;
        }
        for row in rows {
            let hosted = self.groups.get_mut(&row.group);
            let Some(hosted) = hosted.filter(|h| h.node_of(row.replica) == Some(sender.node))
            else {
                // A replica that is created here later needs this row: it is not confirmed.
                rows_version = 0;
                continue;
            };
            hosted.heard(now, row.replica, row.row);
            self.dirty.insert(row.group);
            if let Some(peer) = self.peers.get_mut(&sender.node) {
                peer.rows.insert(row.group, (row.replica, row.row));
            }
        }
        let (grants_number, grants) = self.grant(sender.node, heartbeat.grants_known);
        let Some(peer) = self.peers.get_mut(&sender.node) else { return };
        peer.clock(heartbeat.wall, wall);
        let ack = HeartbeatAck {
            number: heartbeat.number,
            sent: heartbeat.sent,
            boot: sender.boot,
            starts: sender.starts,
            rows_version,
            grants_number,
            grants,
            stale: false,
            seen: (0, 0),
        };
        let address = peer.address.clone();
        self.send_to(&address, Lane::Protocol, &NodeMessage::HeartbeatAck(ack));
        if heartbeat.routes_version > self.record.routes.version {
            self.ask_routes(&address);
        }
    }

    pub(crate) fn on_heartbeat_ack(&mut self, sender: &Sender, ack: &HeartbeatAck) {
        if (ack.starts, ack.boot) != (self.options.starts, self.options.boot) {
            return;
        }
        if ack.stale {
            return self.on_old_copy(sender.node, ack.seen);
        }
        if !self.is_present_boot(sender) {
            return;
        }
        self.vouched_by.insert(sender.node);
        let now = self.now.mono;
        let Some(peer) = self.peers.get_mut(&sender.node) else { return };
        if ack.number > peer.sent || ack.number <= peer.answered {
            return;
        }
        peer.answered = ack.number;
        peer.greeted = true;
        peer.rows_confirmed = peer.rows_confirmed.max(ack.rows_version);
        peer.measured(now.since(ack.sent));
        self.update_connected(sender.node);
        self.take_grants(sender.node, ack);
    }

    pub(crate) fn ask_routes(&mut self, address: &Address) {
        let message = NodeMessage::RoutesRequest {
            reply_to: self.options.peer.clone(),
            version: self.record.routes.version,
        };
        self.send_to(address, Lane::Protocol, &message);
    }

    /// Whether this node has a replica of the group.
    pub(crate) fn hosts(&self, group: GroupId) -> bool {
        self.groups.contains_key(&group)
    }
}
