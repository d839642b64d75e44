//! How an input reaches the parts of a node: frames from others, time, and what the log says.

use std::collections::BTreeSet;

use base::{GroupId, Micros, NodeId};
use bytes::Bytes;
use paxos::Message;
use replica_group::turn::{Lane, Level};

use crate::frame::{self, NodeMessage, Sender};
use crate::hosted::Hosted;
use crate::identity;
use crate::installs::SnapshotPart;
use crate::node::Node;
use crate::requests::Origin;
use crate::snapshots::Wish;

impl Node {
    pub(crate) fn on_frame(&mut self, mut frame: Bytes) {
        let sender = match frame::open(&mut frame) {
            Ok(sender) => sender,
            Err(what) => return self.complain(Level::Warn, what),
        };
        let own = identity::cluster_prefix(self.record.cluster);
        if sender.cluster != 0 && own != 0 && sender.cluster != own {
            return self.complain(
                Level::Error,
                format!(
                    "node {} belongs to another cluster ({:016x}...; this one is {own:016x}...): \
                     its frames are refused; check --masters and the data directory of both",
                    sender.node.0, sender.cluster
                ),
            );
        }
        // Nodes that share no group do not introduce themselves to each other, so errands of the
        // shard master ask for no more than this; they are harmless when they come late or twice.
        let related = sender.cluster != 0 && own != 0;
        let introduced = related && self.is_present_boot(&sender);
        while let Some(message) = frame::next(&mut frame) {
            match message {
                Ok(message) => self.on_message(&sender, related, introduced, message),
                Err(what) => {
                    return self.complain(Level::Warn, format!("node {}: {what}", sender.node.0));
                }
            }
        }
    }

    pub(crate) fn on_message(
        &mut self,
        sender: &Sender,
        related: bool,
        introduced: bool,
        message: NodeMessage,
    ) {
        match message {
            NodeMessage::Heartbeat(heartbeat) => self.on_heartbeat(sender, heartbeat),
            NodeMessage::HeartbeatAck(ack) => self.on_heartbeat_ack(sender, &ack),
            NodeMessage::Paxos { group, from, to, message } => {
                if introduced {
                    self.on_paxos(sender.node, group, from, to, message);
                }
            }
            NodeMessage::Forward { id, reply_to, request, number, group } => {
                let origin = Origin::Peer { address: reply_to, id, group };
                self.on_forward(sender, origin, request, number);
            }
            NodeMessage::ForwardReply { id, reply } => self.on_forward_reply(id, reply),
            NodeMessage::ReadIndex { reply_to, group, number } => {
                if introduced {
                    self.on_read_index(reply_to, group, number);
                }
            }
            NodeMessage::ReadIndexed { group, number, slot } => {
                if introduced {
                    self.on_read_indexed(group, number, slot);
                }
            }
            NodeMessage::Identify { reply_to, asked } => self.on_identify(&reply_to, asked),
            NodeMessage::Identity { node, disk, peer, cluster, asked } => {
                self.on_identity(node, disk, peer, cluster, &asked);
            }
            NodeMessage::Grant { reply_to, grant } => self.on_grant(reply_to, grant),
            NodeMessage::Granted { disk, asked, cluster } => {
                self.on_granted(disk, asked, cluster);
            }
            NodeMessage::CreateReplica { reply_to, cluster, group, members } => {
                self.on_create_replica(reply_to, cluster, group, members);
            }
            NodeMessage::ReplicaCreated { group, replica } => {
                self.on_replica_created(group, replica);
            }
            NodeMessage::CreateShards { reply_to, group, copy, shards } => {
                if related {
                    self.on_create_shards(reply_to, group, copy, shards);
                }
            }
            NodeMessage::ShardsCreated { group, copy } => {
                if related {
                    self.on_shards_created(group, copy);
                }
            }
            NodeMessage::Digest { group, from, slot, digest } => {
                if introduced {
                    self.on_digest(sender.node, group, from, slot, digest);
                }
            }
            NodeMessage::SnapshotRequest {
                group,
                from,
                to,
                copy,
                least,
                after,
                have,
                hold,
                done,
            } => {
                if introduced && self.is_replica(group, to) {
                    let wish = Wish { from, copy, least, after, have, hold, done };
                    self.on_snapshot_request(sender.node, group, wish);
                }
            }
            NodeMessage::SnapshotPart {
                group,
                from,
                to,
                copy,
                slot,
                after,
                upto,
                same,
                records,
                total,
                end,
                standing,
            } => {
                if introduced && self.is_replica(group, to) {
                    let part = SnapshotPart {
                        group,
                        from,
                        copy,
                        slot,
                        after,
                        upto,
                        same,
                        records,
                        total,
                        end,
                        standing,
                    };
                    self.on_snapshot_part(sender.node, part);
                }
            }
            NodeMessage::SnapshotRefused { group, from, to, copy } => {
                if introduced && self.is_replica(group, to) {
                    self.on_snapshot_refused(sender.node, group, from, copy);
                }
            }
            NodeMessage::ReplicaGone { group, replica } => {
                if introduced {
                    self.on_replica_gone(sender.node, group, replica);
                }
            }
            NodeMessage::RoutesRequest { reply_to, version } => {
                self.on_routes_request(&reply_to, version);
            }
            NodeMessage::Routes(routes) => self.on_routes(routes),
            NodeMessage::Errand { reply_to, from, group, mig, sent, command } => {
                self.on_errand(reply_to, from, group, mig, sent, command);
            }
            NodeMessage::ErrandReply { from, group, mig, sent, state } => {
                self.on_errand_reply(sender, from, group, mig, sent, state);
            }
        }
    }

    fn is_replica(&self, group: GroupId, replica: base::ReplicaId) -> bool {
        self.groups.get(&group).is_some_and(|hosted| hosted.paxos().replica() == replica)
    }

    fn on_paxos(
        &mut self,
        sender: NodeId,
        group: GroupId,
        from: base::ReplicaId,
        to: base::ReplicaId,
        mut message: Message,
    ) {
        let now = self.now;
        let refused = match &mut message {
            Message::Accept(accept) => {
                // There is no room for the values, and the leader sends them again. What else the
                // message says is what leads to room.
                if self.wal.is_overfull() {
                    accept.values.clear();
                }
                false
            }
            // What is chosen is taken into a full log, as long as the disk has room: the log is
            // freed only by what this replica learns, and the others keep no more than their own
            // logs hold.
            Message::CatchUp(_) => self.wal.is_out_of_disk(),
            Message::Prepare(_)
            | Message::Promise(_)
            | Message::Reject(_)
            | Message::Accepted(_)
            | Message::Chosen(_)
            | Message::Fetch(_)
            | Message::Values(_)
            | Message::CatchUpRequest(_)
            | Message::Confirm(_)
            | Message::ConfirmAck(_)
            | Message::TransferGo(_)
            | Message::EpochInfo(_)
            | Message::Release(_) => false,
        };
        let Some(hosted) = self.groups.get(&group).filter(|h| h.paxos().replica() == to) else {
            if self.is_retired(group, to) {
                let message = NodeMessage::ReplicaGone { group, replica: to };
                self.send(sender, Lane::Protocol, &message);
            }
            return;
        };
        let at = hosted.node_of(from);
        if refused || at.is_some_and(|node| node != sender) {
            return;
        }
        if at.is_none() {
            self.note_stranger(group, from, sender);
        }
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        // Before its first vote since the start, a node makes sure that its disk is not an old copy.
        if is_ballot_matter(&message) && !is_vouched(hosted, &self.vouched_by) {
            return;
        }
        hosted.handle(now, from, message);
        self.dirty.insert(group);
    }

    pub(crate) fn on_synced(&mut self) {
        let through = self.wal.synced();
        let now = self.now;
        for (group, hosted) in &mut self.groups {
            hosted.wal_synced(now, through);
            self.dirty.insert(*group);
        }
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.deferred).into_iter().partition(|(lsn, _)| *lsn <= through);
        self.deferred = later;
        for (_, deferred) in due {
            self.carry_out_deferred(deferred);
        }
    }

    pub(crate) fn on_tick(&mut self) {
        let now = self.now;
        self.tick_heartbeats();
        self.tick_leadership();
        if self.stopping {
            return;
        }
        for (group, hosted) in &mut self.groups {
            hosted.tick(now);
            self.dirty.insert(*group);
        }
        self.tick_bootstrap();
        self.tick_assignments();
        self.tick_replicas();
        self.drive_migrations();
        self.tick_handoffs();
        self.tell_alarms();
        self.tick_garbage();
        self.tick_requests();
        self.tick_installs();
        self.tick_snapshots();
        self.tick_litter();
        self.tick_store();
        self.tick_damage();
        self.tick_renewal();
        self.tick_scrub();
        self.tick_digests();
        for group in self.wal.wants_state() {
            if group == GroupId::NODE {
                self.save_record();
            } else if let Some(hosted) = self.groups.get_mut(&group) {
                hosted.restate();
                self.dirty.insert(group);
            }
        }
        if self.prepare_again_at.is_some_and(|at| self.now.mono >= at) {
            self.prepare_again_at = None;
            self.wal.retry_preparation();
        }
        self.say_whether_full();
        if now.mono.since(self.complained_since) >= COMPLAIN_AGAIN {
            self.complained_since = now.mono;
            self.complained.clear();
        }
    }

    /// No further segment could be made: the disk is full, most likely. The log refuses writes when
    /// it has used up what it has, and tries again now and then.
    pub(crate) fn on_preparation_failed(&mut self, ticket: storage::WalTicket, why: &str) {
        self.wal.preparation_failed(ticket);
        self.prepare_again_at = Some(self.now.mono + PREPARE_AGAIN);
        self.complain(
            Level::Error,
            format!(
                "no further segment of the write-ahead log can be made ({why}): free some space \
                 in the data directory's file system, it is tried again by itself"
            ),
        );
    }

    fn say_whether_full(&mut self) {
        let full = self.wal.is_full();
        if full && !self.wal_full_said {
            self.event(Level::Error, self.wal_full_text());
        } else if !full && self.wal_full_said {
            self.event(Level::Info, "the write-ahead log has room again".to_owned());
        }
        self.wal_full_said = full;
    }

    pub(crate) fn wal_full_text(&self) -> String {
        format!(
            "the write-ahead log of node {} is full: writes are refused, reads go on; it is freed \
             when what is in it is in the store on disk (see `decree status`) and the disk has \
             room; --wal-bytes-max lets it grow further",
            self.record.node.0
        )
    }
}

/// Whether enough nodes have said that they saw no more of this node's disk than it shows.
fn is_vouched(hosted: &Hosted, by: &BTreeSet<NodeId>) -> bool {
    let members = hosted.paxos().members();
    let vouched = members.voters().iter().filter(|member| by.contains(&member.node)).count();
    vouched + 1 >= members.q1()
}

/// Whether the answer to a message is a promise, a vote or a confirmation.
fn is_ballot_matter(message: &Message) -> bool {
    match message {
        Message::Prepare(_) | Message::Accept(_) | Message::Confirm(_) | Message::TransferGo(_) => {
            true
        }
        Message::Promise(_)
        | Message::Reject(_)
        | Message::Accepted(_)
        | Message::Chosen(_)
        | Message::Fetch(_)
        | Message::Values(_)
        | Message::CatchUpRequest(_)
        | Message::EpochInfo(_)
        | Message::CatchUp(_)
        | Message::ConfirmAck(_)
        | Message::Release(_) => false,
    }
}

/// After the log could not be given another segment, the next try comes so much later.
const PREPARE_AGAIN: Micros = Micros::from_secs(1);
/// After this time complaints are logged again.
const COMPLAIN_AGAIN: Micros = Micros::from_secs(600);
