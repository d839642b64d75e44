//! The node itself: its parts, how an input reaches them, and the turn that collects what they
//! want done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{ClusterId, Generation, GroupId, Lsn, Micros, NodeId, Now, Random, Slot};
use bytes::Bytes;
use kvserver::KvServer;
use paxos::{Load, Message, Record};
use replica_group::turn::{Event, Input, Lane, Level, Machine, Output, Token};
use replica_group::{ApplyError, GroupStore, Replica, ReplicaOutput};
use router::{ErrorReply, Reply, ReplyHeader, Request};
use shardmaster::ShardMaster;
use storage::{Disk, Engine, Overlay, Recovered, Wal};

use crate::assignments::Assignments;
use crate::bootstrap::Bootstrap;
use crate::damage::Damage;
use crate::digests::Digests;
use crate::frame::{self, NodeMessage, Sender};
use crate::generations::{Generations, Litter};
use crate::handoff::Handoffs;
use crate::hosted::{Hosted, is_master};
use crate::identity::{self, NodeRecord};
use crate::installs::{Installs, SnapshotPart};
use crate::leadership::Leadership;
use crate::migrations::Migrations;
use crate::options::Options;
use crate::outbox::Outbox;
use crate::peers::{Peer, Rows, Shared};
use crate::replicas::Replicas;
use crate::requests::Requests;
use crate::snapshots::{Snapshots, Wish};
use crate::store::StoreFlush;
use crate::viewing::Viewing;

/// A whole node as one deterministic state machine.
pub struct Node {
    pub(crate) options: Options,
    pub(crate) random: Random,
    pub(crate) now: Now,
    pub(crate) started: Micros,
    pub(crate) record: NodeRecord,
    pub(crate) wal: Wal,
    pub(crate) overlay: Overlay,
    pub(crate) groups: BTreeMap<GroupId, Hosted>,
    /// Groups that may want something done.
    pub(crate) dirty: BTreeSet<GroupId>,
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    pub(crate) rows: Rows,
    pub(crate) shared: Shared,
    pub(crate) heartbeat_at: Micros,
    pub(crate) introduce_at: Micros,
    pub(crate) requests: Requests,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) assignments: Assignments,
    pub(crate) migrations: Migrations,
    pub(crate) handoffs: Handoffs,
    pub(crate) leadership: Leadership,
    pub(crate) replicas: Replicas,
    pub(crate) flush: StoreFlush,
    pub(crate) generations: BTreeMap<GroupId, Generations>,
    pub(crate) litter: Litter,
    pub(crate) snapshots: Snapshots,
    pub(crate) installs: Installs,
    pub(crate) viewing: Viewing,
    /// What waits until the log is durable through a position.
    pub(crate) deferred: Vec<(Lsn, Deferred)>,
    pub(crate) loads: BTreeMap<Lsn, Vec<(GroupId, Load)>>,
    pub(crate) outbox: Outbox,
    pub(crate) output: Output<Reply>,
    stopping: bool,
    stopped: bool,
    wal_full_said: bool,
    /// What was found damaged since the start.
    pub(crate) damage: Damage,
    pub(crate) digests: Digests,
    prepare_again_at: Option<Micros>,
    wal_busy_at: Micros,
    /// The record by which the newest replica here was created, or found without its store. Before
    /// it is durable, nothing is flushed.
    pub(crate) created_at: Lsn,
    /// How far the log was durable at the start.
    pub(crate) opened: Lsn,
    /// Nodes that have seen no more of this node's disk than it shows.
    pub(crate) vouched_by: BTreeSet<NodeId>,
    /// The cluster, once it is durable that this node belongs to it.
    pub(crate) cluster_durable: Option<ClusterId>,
    /// Complaints already logged, so that each is said once in a while.
    complained: BTreeSet<String>,
    complained_since: Micros,
}

/// What is done once a record is durable.
#[derive(Debug)]
pub(crate) enum Deferred {
    /// A message leaves.
    Send(base::Address, Box<NodeMessage>),
    /// The node belongs to its cluster for ever.
    Belongs,
}

/// Why a node could not be opened. The sentence is for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError(pub String);

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OpenError {}

impl Node {
    /// Recovers a node from its disk and its store.
    pub fn open(
        options: Options,
        disk: &mut dyn Disk,
        engine: Arc<dyn Engine>,
        now: Now,
    ) -> Result<Node, OpenError> {
        let seed = Random::new(options.seed).next_u64();
        let tail_bytes_max = options.tail_bytes_max;
        let mut recovering = Recovering { seed, tail_bytes_max, ..Recovering::default() };
        let wal = Wal::recover(disk, options.wal.clone(), &mut |record| recovering.take(record))
            .map_err(|error| OpenError(error.to_string()))?;
        if let Some(error) = recovering.error {
            return Err(OpenError(error));
        }
        let mut overlay = Overlay::new(engine);
        crate::store::check_meta(&mut overlay, options.disk)?;
        let mut record = recovering.record.unwrap_or_default();
        let lost = recovering.lost;
        let known = |(first, last): &(Lsn, Lsn)| {
            record.mended.iter().any(|(from, to)| from <= first && last <= to)
        };
        let forgot = !lost.iter().all(known);
        if forgot {
            record.vetted.clear();
        }
        record.forgot |= forgot || recovering.forgot;
        if record.node != NodeId(0) && options.node != NodeId(0) && record.node != options.node {
            return Err(OpenError(format!(
                "this data directory belongs to node {}, not to node {}: start it as node {0}, or \
                 give node {1} a data directory of its own",
                record.node.0, options.node.0
            )));
        }
        let mut node = Node {
            random: Random::new(options.seed),
            now,
            started: now.mono,
            cluster_durable: record.cluster,
            record,
            wal,
            overlay,
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            peers: BTreeMap::new(),
            rows: Rows::default(),
            shared: Shared::default(),
            heartbeat_at: now.mono,
            introduce_at: now.mono + HEARD_SOON,
            requests: Requests::default(),
            bootstrap: Bootstrap::default(),
            assignments: Assignments::default(),
            migrations: Migrations::default(),
            handoffs: Handoffs::default(),
            leadership: Leadership::default(),
            replicas: Replicas::default(),
            flush: StoreFlush::new(now.mono),
            generations: BTreeMap::new(),
            litter: Litter::default(),
            snapshots: Snapshots::default(),
            installs: Installs::default(),
            viewing: Viewing::default(),
            deferred: Vec::new(),
            loads: BTreeMap::new(),
            outbox: Outbox::default(),
            output: Output::default(),
            stopping: false,
            stopped: false,
            wal_full_said: false,
            damage: Damage::default(),
            digests: Digests::default(),
            prepare_again_at: None,
            wal_busy_at: now.mono,
            created_at: Lsn::ZERO,
            opened: Lsn::ZERO,
            vouched_by: BTreeSet::new(),
            complained: BTreeSet::new(),
            complained_since: now.mono,
            options,
        };
        if node.record.node == NodeId(0) {
            node.record.node = node.options.node;
        }
        node.options.starts = node.options.starts.saturating_add(node.record.starts_more);
        node.opened = node.wal.synced();
        let minted_by = node.random.next_u128();
        node.requests.begin(node.options.starts, base::ClientId(minted_by));
        // The node's own record is always restated as a whole: no other of its records is needed.
        node.wal.keep_from(GroupId::NODE, None);
        if node.record.forgot || node.wal.report().doubted.contains(&GroupId::NODE) {
            node.save_record();
        }
        node.say_damage();
        for (group, mut recovery) in recovering.groups {
            let mended = lost.iter().all(|(first, last)| recovery.is_mended(*first, *last));
            if node.wal.report().doubted.contains(&group) && !mended {
                recovery.push_lost();
            }
            node.open_group(group, recovery)?;
        }
        node.learn_peers();
        node.take_master_routes();
        Ok(node)
    }

    fn open_group(
        &mut self,
        group: GroupId,
        mut recovery: paxos::Recovery,
    ) -> Result<(), OpenError> {
        if recovery.is_destroyed() {
            self.wal.forget(group);
            return Ok(());
        }
        if !recovery.is_created() {
            self.forget_group(group);
            return Ok(());
        }
        let mut nowhere = None;
        match Generations::read(&self.overlay, group) {
            Ok(known) => {
                if known.slot > Slot::ZERO {
                    recovery.installed(known.slot, known.lsn);
                }
                self.litter_at_start(group, &known);
                self.generations.insert(group, known);
            }
            Err(error) => {
                let known = Generations::unknown(self.random.next_u64());
                self.generations.insert(group, known);
                nowhere = Some(error.0);
            }
        }
        let (applied, lost) = self.executed(group, &recovery);
        let lost = lost.or(nowhere);
        let standing = self.overlay.get(&crate::store::standing_key(group)).unwrap_or_default();
        if let Ok(Some(standing)) = crate::store::decode_standing(group, standing.as_ref())
            && lost.is_none()
        {
            recovery.stands(applied, standing);
        }
        let paxos = recovery.finish(applied).map_err(|error| {
            OpenError(format!("group {} cannot be recovered from the log: {error}", group.0))
        })?;
        let quarantined = paxos.is_quarantined();
        if paxos.faulty_slots() > 0 {
            self.damage.mending.insert(group, Vec::new());
        }
        let hosted = match lost {
            Some(why) => {
                let generation = self.generation(group);
                self.host_fenced(group, paxos, applied, generation, why)?
            }
            None => self.host(group, paxos, applied)?,
        };
        if quarantined {
            self.say_quarantined(group);
        }
        self.groups.insert(group, hosted);
        self.dirty.insert(group);
        Ok(())
    }

    pub(crate) fn host(
        &mut self,
        group: GroupId,
        paxos: paxos::Paxos,
        applied: Slot,
    ) -> Result<Hosted, OpenError> {
        let generation = self.generation(group);
        let store = GroupStore::of(&mut self.overlay, group, generation);
        if is_master(group) {
            match ShardMaster::open(&store) {
                Ok(machine) => {
                    let replica = Replica::new(group, paxos, machine, applied, generation);
                    Ok(Hosted::Master(Box::new(replica)))
                }
                Err(error) => self.host_fenced(group, paxos, applied, generation, error.0),
            }
        } else {
            match KvServer::open(group, &store) {
                Ok(machine) => {
                    let replica = Replica::new(group, paxos, machine, applied, generation);
                    Ok(Hosted::Data(Box::new(replica)))
                }
                Err(error) => self.host_fenced(group, paxos, applied, generation, error.0),
            }
        }
    }

    /// Which of its states in the store is a group's.
    fn generation(&self, group: GroupId) -> Generation {
        self.generations.get(&group).copied().unwrap_or_default().current
    }

    /// Who sends this node's frames.
    pub(crate) fn sender(&self) -> Sender {
        Sender {
            cluster: identity::cluster_prefix(self.record.cluster),
            node: self.record.node,
            starts: self.options.starts,
            boot: self.options.boot,
        }
    }

    /// Sends to an address.
    pub(crate) fn send_to(&mut self, to: &base::Address, lane: Lane, message: &NodeMessage) {
        let sender = self.sender();
        self.outbox.push(&sender, to, lane, message, &mut self.output.frames);
    }

    /// Sends the answer to a read under a lease, which is lost where this time has passed.
    pub(crate) fn send_read(
        &mut self,
        to: &base::Address,
        not_after: Micros,
        message: &NodeMessage,
    ) {
        let sender = self.sender();
        self.outbox.push_read(&sender, to, not_after, message, &mut self.output.frames);
    }

    /// Sends to a node, where its address is known.
    pub(crate) fn send(&mut self, to: NodeId, lane: Lane, message: &NodeMessage) {
        if let Some(address) = self.address_of(to) {
            self.send_to(&address, lane, message);
        }
    }

    /// Sends once everything appended so far is durable.
    pub(crate) fn send_when_durable(&mut self, to: base::Address, message: NodeMessage) {
        self.when_durable(Deferred::Send(to, Box::new(message)));
    }

    fn when_durable(&mut self, deferred: Deferred) {
        let last = Lsn(self.wal.next_lsn().0 - 1);
        if last <= self.wal.synced() {
            self.carry_out_deferred(deferred);
        } else {
            self.deferred.push((last, deferred));
        }
    }

    fn carry_out_deferred(&mut self, deferred: Deferred) {
        match deferred {
            Deferred::Send(to, message) => self.send_to(&to, Lane::Protocol, &message),
            Deferred::Belongs => self.cluster_durable = self.record.cluster,
        }
    }

    /// Writes the node's own record as it now is.
    pub(crate) fn save_record(&mut self) {
        let record = &self.record;
        self.wal.append(GroupId::NODE, record.identity(), true, &mut |out| record.encode(out));
        if self.cluster_durable != self.record.cluster {
            self.when_durable(Deferred::Belongs);
        }
    }

    pub(crate) fn event(&mut self, level: Level, text: String) {
        self.output.events.push(Event { level, text });
    }

    /// Logs something that may recur, the first time in a while.
    pub(crate) fn complain(&mut self, level: Level, text: String) {
        if self.complained.len() < COMPLAINTS_MAX && self.complained.insert(text.clone()) {
            self.event(level, text);
        }
    }

    pub(crate) fn fail(&mut self, why: String) {
        if self.output.fatal.is_none() {
            self.output.fatal = Some(why);
        }
    }

    fn on_frame(&mut self, mut frame: Bytes) {
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
            NodeMessage::Forward { id, reply_to, request, number } => {
                self.on_forward(sender, id, reply_to, request, number);
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

    fn on_synced(&mut self) {
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

    fn on_tick(&mut self) {
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
    fn on_preparation_failed(&mut self, ticket: storage::WalTicket, why: &str) {
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

    /// Lets every replica that may want something say so, until none does.
    fn collect(&mut self) {
        self.collect_dirty();
        // What was applied may have made the next step of a hand-off possible.
        while self.output.fatal.is_none() && self.drive_due_handoffs() {
            self.collect_dirty();
        }
    }

    fn collect_dirty(&mut self) {
        while let Some(group) = self.dirty.pop_first() {
            let Some(hosted) = self.groups.get_mut(&group) else { continue };
            let next = self.wal.next_lsn();
            match hosted.take_output(self.now, &mut self.overlay, next) {
                Ok(output) => self.carry_out(group, output),
                Err(error) => return self.fail_apply(group, &error),
            }
            if self.output.fatal.is_some() {
                return;
            }
        }
    }

    /// Lets the replicas say now what they want recorded, so that what is sent afterwards can wait
    /// for it to be durable.
    pub(crate) fn collect_now(&mut self) {
        self.collect();
    }

    pub(crate) fn fail_apply(&mut self, group: GroupId, error: &ApplyError) {
        match error {
            ApplyError::Engine(error) => self.on_store_error(group, error),
            ApplyError::Unknown(_) => self.fail(format!("group {}: {error}", group.0)),
        }
    }

    fn carry_out(&mut self, group: GroupId, output: ReplicaOutput<Reply>) {
        for record in &output.records {
            let state = matches!(record, Record::GroupState { .. } | Record::GroupCreate { .. });
            let lsn = self.wal.append(group, record.identity().as_bytes(), state, &mut |out| {
                record.encode_payload(out);
            });
            if matches!(record, Record::GroupCreate { .. } | Record::StoreLost) {
                self.created_at = lsn;
            }
        }
        self.note_fence(group);
        if let Some((slot, digest)) = output.digest {
            self.share_digest(group, slot, digest);
        }
        if output.applied > 0 {
            self.flush.written(self.now.mono);
            self.handoffs_due(group);
        }
        let (replica, row) = match self.groups.get(&group) {
            Some(hosted) => (hosted.paxos().replica(), hosted.paxos().heartbeat_row()),
            None => return,
        };
        self.rows.set(group, row);
        if output.peers_changed {
            self.rows.touch(group);
            self.learn_peers();
            self.tell_all_connected(group);
        }
        for (to, message) in output.messages {
            let known = self.groups.get(&group).and_then(|hosted| hosted.node_of(to));
            let stranger = || self.replicas.strangers.get(&(group, to)).copied();
            let Some(node) = known.or_else(stranger) else { continue };
            let lane = if is_bulk(&message) { Lane::Bulk } else { Lane::Protocol };
            self.send(node, lane, &NodeMessage::Paxos { group, from: replica, to, message });
        }
        for load in output.loads {
            let lsn = load.lsn;
            let waiting = self.loads.entry(lsn).or_default();
            waiting.push((group, load));
            if waiting.len() == 1 {
                match self.wal.read(lsn) {
                    Some(read) => self.output.wal_reads.push(read),
                    None => {
                        let now = self.now;
                        let waiting = self.loads.remove(&lsn).unwrap_or_default();
                        // What was forgotten since it was asked for need not be there.
                        let wanted = |(group, load): &(GroupId, Load)| {
                            let hosted = self.groups.get(group);
                            hosted.is_some_and(|h| h.paxos().first_slot() <= load.slot)
                        };
                        if waiting.iter().any(wanted) {
                            self.on_damaged_records(lsn, lsn, "it is not in the log");
                        }
                        for (group, load) in waiting {
                            if let Some(hosted) = self.groups.get_mut(&group) {
                                hosted.loaded(now, &load, None);
                            }
                        }
                    }
                }
            }
        }
        for (waiter, reply) in output.replies {
            self.on_executed(waiter, reply);
        }
        for waiter in output.readable {
            self.on_readable(group, waiter, None);
        }
        let (until, leased) = output.leased.unwrap_or_default();
        for waiter in leased {
            self.on_readable(group, waiter, Some(until));
        }
        for waiter in output.dropped {
            self.on_dropped(waiter);
        }
        self.wake_applied(group);
        if is_master(group) && output.applied > 0 {
            self.take_master_routes();
        }
    }

    /// From here on nothing new is taken: what others send would keep the log and the store busy
    /// for ever.
    pub(crate) fn begin_stop(&mut self) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        self.stop_inits();
        self.stop_requests();
    }

    fn take_stop(&mut self) {
        if !self.stopping || self.stopped || !self.deferred.is_empty() {
            return;
        }
        if self.flush.is_idle() && self.overlay.bytes() > 0 {
            self.begin_flush();
            return;
        }
        if self.overlay.bytes() == 0 && self.flush.is_idle() && self.wal.is_quiet() {
            self.stopped = true;
            self.output.stopped = true;
        }
    }
}

impl Machine<Request, Reply> for Node {
    fn handle(&mut self, now: Now, input: Input<Request>) {
        if self.output.fatal.is_some() || self.stopped {
            return;
        }
        self.now = now;
        match input {
            Input::Request { token, .. } if self.stopping => {
                let error = ErrorReply::Unavailable(STOPPING.to_owned());
                self.answer(token, Reply { header: ReplyHeader::default(), body: Err(error) });
            }
            Input::Frame(_) | Input::Tick if self.stopping => {}
            Input::Request { token, request } => self.on_request(token, request),
            Input::Frame(frame) => self.on_frame(frame),
            Input::WalDone(ticket) => {
                self.wal.done(ticket);
                self.on_synced();
            }
            Input::WalPrepared(ticket) => self.wal.prepared(ticket),
            Input::WalPreparationFailed(ticket, why) => self.on_preparation_failed(ticket, &why),
            Input::Checked { check, result } => self.on_checked(&check, result),
            Input::NoRoom { place, why } => self.on_no_room(place, why),
            Input::WalRead { read, bytes } => self.on_wal_read(&read, bytes),
            Input::Flushed(id) => self.on_flushed(id),
            Input::Late(token) if self.stopping => self.on_late_at_the_end(token),
            Input::Late(token) => self.on_late(token),
            Input::Tick => self.on_tick(),
            Input::Stop => self.begin_leaving(),
        }
    }

    fn take_output(&mut self) -> Output<Reply> {
        self.collect();
        if self.output.fatal.is_none() {
            self.take_stop();
            self.output.wal = self.wal.seal();
            if !self.output.wal.is_empty() {
                self.wal_busy_at = self.now.mono;
            }
            if self.stopping || self.now.mono.since(self.wal_busy_at) >= WAL_IDLE {
                let cover = self.wal.idle();
                self.output.wal.extend(cover);
            }
            self.ask_indexes();
            self.outbox.take(&mut self.output.frames);
        }
        self.requests.turn();
        std::mem::take(&mut self.output)
    }
}

/// Whether a message is large and not urgent.
fn is_bulk(message: &Message) -> bool {
    matches!(message, Message::CatchUp(_))
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

/// What a scan of the log has found so far.
#[derive(Default)]
struct Recovering {
    seed: u64,
    record: Option<NodeRecord>,
    groups: BTreeMap<GroupId, paxos::Recovery>,
    tail_bytes_max: usize,
    /// Records of which nothing can be read.
    lost: Vec<(Lsn, Lsn)>,
    /// A record of the node that is damaged said that it forgot something.
    forgot: bool,
    error: Option<String>,
}

impl Recovering {
    fn take(&mut self, found: Recovered) {
        if self.error.is_some() {
            return;
        }
        let found = match found {
            Recovered::Record(found) => found,
            // The node's record before it holds all that matters; the routes in it are asked anew.
            Recovered::Damaged { group: GroupId::NODE, identity, .. } => {
                self.forgot |= &identity[..] == identity::IDENTITY_FORGOT;
                return;
            }
            Recovered::Lost { first, last } => return self.lost.push((first, last)),
            Recovered::Damaged { lsn, group, identity, state: _ } => {
                let pushed = self.recovery(group).push_damaged(lsn, &identity);
                if let Err(error) = pushed {
                    self.error = Some(format!("{lsn} of the write-ahead log: {error}"));
                }
                return;
            }
        };
        let result = if found.group == GroupId::NODE {
            NodeRecord::decode(&found.identity, &found.payload).map(|r| self.record = Some(r))
        } else {
            let recovery = self.recovery(found.group);
            Record::decode(&found.identity, &found.payload)
                .map_err(|error| error.to_string())
                .and_then(|record| {
                    recovery.push(found.lsn, record).map_err(|error| error.to_string())
                })
        };
        if let Err(what) = result {
            self.error = Some(format!(
                "{} of the write-ahead log cannot be understood by this version: {what}",
                found.lsn
            ));
        }
    }
}

impl Recovering {
    fn recovery(&mut self, group: GroupId) -> &mut paxos::Recovery {
        let seed = self.seed ^ group.0;
        let tail = self.tail_bytes_max;
        let fresh = || paxos::Recovery::of_group(group, seed).with_tail_bytes_max(tail);
        self.groups.entry(group).or_insert_with(fresh)
    }
}

/// After the log could not be given another segment, the next try comes so much later.
const PREPARE_AGAIN: Micros = Micros::from_secs(1);
/// Within this time after a start the peers are heard, where they are where they were.
const HEARD_SOON: Micros = Micros::from_millis(500);
/// The log counts as idle after so long without a block.
const WAL_IDLE: Micros = Micros::from_millis(100);
/// Most different complaints that are logged in this time, each once.
const COMPLAINTS_MAX: usize = 256;
/// After this time complaints are logged again.
const COMPLAIN_AGAIN: Micros = Micros::from_secs(600);
/// What is answered while the node stops.
pub(crate) const STOPPING: &str = "this node is stopping: ask another one";

impl Node {
    /// The token under which a door waits, answered with this reply.
    pub(crate) fn answer(&mut self, token: Token, reply: Reply) {
        self.answer_before(token, reply, None);
    }

    /// As [`Node::answer`], but not after this time.
    pub(crate) fn answer_before(&mut self, token: Token, reply: Reply, not_after: Option<Micros>) {
        self.output.replies.push(replica_group::turn::Reply { token, reply, not_after });
    }
}
