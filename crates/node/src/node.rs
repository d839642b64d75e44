//! The node itself: its parts, what all of them use to speak, and the turn.

use std::collections::{BTreeMap, BTreeSet};

use base::{ClusterId, GroupId, Lsn, Micros, NodeId, Now, Random};
use paxos::Load;
use replica_group::turn::{Event, Input, Lane, Level, Machine, Output, Token};
use router::{ErrorReply, Reply, ReplyHeader, Request};
use storage::{Overlay, Wal};

use crate::assignments::Assignments;
use crate::bootstrap::Bootstrap;
use crate::damage::Damage;
use crate::digests::Digests;
use crate::frame::{NodeMessage, Sender};
use crate::generations::{Generations, Litter};
use crate::handoff::Handoffs;
use crate::hosted::Hosted;
use crate::identity::{self, NodeRecord};
use crate::installs::Installs;
use crate::leadership::Leadership;
use crate::migrations::Migrations;
use crate::options::Options;
use crate::outbox::Outbox;
use crate::peers::{Peer, Rows, Shared};
use crate::renewal::Renewing;
use crate::replicas::Replicas;
use crate::requests::Requests;
use crate::snapshots::Snapshots;
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
    pub(crate) renewing: Renewing,
    /// What waits until the log is durable through a position.
    pub(crate) deferred: Vec<(Lsn, Deferred)>,
    pub(crate) loads: BTreeMap<Lsn, Vec<(GroupId, Load)>>,
    pub(crate) outbox: Outbox,
    pub(crate) output: Output<Reply>,
    pub(crate) stopping: bool,
    pub(crate) stopped: bool,
    pub(crate) wal_full_said: bool,
    /// What was found damaged since the start.
    pub(crate) damage: Damage,
    pub(crate) digests: Digests,
    pub(crate) prepare_again_at: Option<Micros>,
    pub(crate) wal_busy_at: Micros,
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
    pub(crate) complained: BTreeSet<String>,
    pub(crate) complained_since: Micros,
}

/// What is done once a record is durable.
#[derive(Debug)]
pub(crate) enum Deferred {
    /// A message leaves.
    Send(base::Address, Box<NodeMessage>),
    /// The node belongs to its cluster for ever.
    Belongs,
}

impl Node {
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

    /// Sends the answer to a read under a lease; where this time has passed, the other message.
    pub(crate) fn send_read(
        &mut self,
        to: &base::Address,
        message: &NodeMessage,
        leased: (Micros, &NodeMessage),
    ) {
        let sender = self.sender();
        self.outbox.push_read(&sender, to, message, leased, &mut self.output.frames);
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

    pub(crate) fn carry_out_deferred(&mut self, deferred: Deferred) {
        match deferred {
            Deferred::Send(to, message) => self.send_to(&to, Lane::Protocol, &message),
            Deferred::Belongs => self.cluster_durable = self.record.cluster,
        }
    }

    /// Writes the node's own record as it now is.
    pub(crate) fn save_record(&mut self) {
        let record = &self.record;
        self.wal.append(GroupId::NODE, identity::IDENTITY, true, &mut |out| record.encode(out));
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

    /// The token under which a door waits, answered with this reply.
    pub(crate) fn answer(&mut self, token: Token, reply: Reply) {
        self.answer_before(token, reply, None);
    }

    /// As [`Node::answer`], but not after this time.
    pub(crate) fn answer_before(&mut self, token: Token, reply: Reply, not_after: Option<Micros>) {
        self.output.replies.push(replica_group::turn::Reply { token, reply, not_after });
    }

    pub(crate) fn fail(&mut self, why: String) {
        if self.output.fatal.is_none() {
            self.output.fatal = Some(why);
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
            Input::StoreStuck(why) => self.on_store_stuck(why),
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

/// The log counts as idle after so long without a block.
const WAL_IDLE: Micros = Micros::from_millis(100);
/// Most different complaints that are logged in this time, each once.
const COMPLAINTS_MAX: usize = 256;
/// What is answered while the node stops.
pub(crate) const STOPPING: &str = "this node is stopping: ask another one";
