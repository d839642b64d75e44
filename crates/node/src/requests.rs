//! Requests on their way: from a door or another node, to the replica that leads, and back. A
//! request keeps its identity over all attempts, so that trying again is always safe.

use std::collections::{BTreeMap, BTreeSet};

use base::{
    Address, ClientId, CopyId, GroupId, Micros, NodeId, RequestNumber, ShardEpoch, ShardId, limits,
};
use paxos::{Command, Refusal};
use replica_group::turn::{Lane, Token};
use replica_group::{GroupStore, Waiter};
use router::{
    Answer, Body, Consistency, ErrorReply, Expected, Header, KvOp, MasterAnswer, MasterOp, Reply,
    ReplyHeader, Request, Session,
};

use crate::frame::{NodeMessage, Sender};
use crate::hosted::Hosted;
use crate::node::{Node, STOPPING};
use crate::peers::Seen;

/// Who is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A door of this node.
    Door(Token),
    /// Another node that does not lead the group.
    Peer { address: Address, id: u64 },
    /// The node itself wants to be known under its present addresses.
    Register,
    /// The shard master's leader asked for these shards to be created.
    Create { reply_to: Address, copy: CopyId },
    /// The leader of another group, or of the shard master, asked about a hand-off.
    Errand { reply_to: Address, from: GroupId, group: GroupId, mig: CopyId, sent: Micros },
    /// The node itself, as a leader; nobody waits for the answer.
    Own,
}

/// Where a request stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// To be tried (again) at its time.
    Waiting,
    /// With the group's replica here.
    Local,
    /// With another node.
    Forwarded(NodeId),
}

#[derive(Clone, Debug)]
struct Pending {
    origin: Origin,
    work: Work,
    deadline: Micros,
    stage: Stage,
    wake: Micros,
    /// How many attempts may have been executed: sent, and not answered with an error that says
    /// otherwise.
    unsettled: u32,
    attempt: u32,
    /// Why it is not done yet.
    last: Option<ErrorReply>,
    bytes: usize,
    /// A read that may be served under a lease.
    leased: bool,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// A client's request to this group.
    Request(GroupId, Box<Request>),
    /// A command that a leader proposes by itself.
    Command(GroupId, bytes::Bytes),
    /// What the group's newest state says of a hand-off.
    Inspect(GroupId, CopyId),
}

impl Work {
    fn group(&self) -> GroupId {
        match self {
            Work::Request(group, _) | Work::Command(group, _) | Work::Inspect(group, _) => *group,
        }
    }

    fn is_read(&self) -> bool {
        match self {
            Work::Request(_, request) => !request.body.is_write(),
            Work::Command(..) => false,
            Work::Inspect(..) => true,
        }
    }
}

/// All requests on their way.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    next: u64,
    /// Counts what was forwarded.
    forwarded: u64,
    open: BTreeMap<u64, Pending>,
    wakes: BTreeSet<(Micros, u64)>,
    bytes: usize,
    /// Under which this node sends requests that came without a session.
    minted_by: ClientId,
    minted: RequestNumber,
    minted_open: BTreeMap<Option<ShardId>, BTreeSet<RequestNumber>>,
    /// What other nodes have forwarded here.
    seen: BTreeMap<NodeId, Seen>,
    /// The node that was last known to lead a group.
    leaders: BTreeMap<GroupId, NodeId>,
    /// What groups said of shards that they gave away, where that is newer than the routes.
    moved: BTreeMap<ShardId, (ShardEpoch, GroupId)>,
    /// The leaders' own commands under way, by group.
    own: BTreeMap<GroupId, usize>,
    /// Reads that the last output answered under a lease: what is late comes back.
    leased: BTreeMap<Token, Pending>,
}

impl Requests {
    /// The numbers of requests and the identity of those without a session are those of this
    /// start of the process: an answer to a request of an earlier start must not be taken for one
    /// of this.
    pub(crate) fn begin(&mut self, starts: u64, client: ClientId) {
        // Of a million starts the first is long forgotten.
        self.next = (starts & STARTS_MASK) << REQUESTS_BITS;
        self.minted_by = client;
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Whatever the last output answered was in time, or came back.
    pub(crate) fn forget_leased(&mut self) {
        self.leased.clear();
    }

    /// Whether the leader of this group has a command of its own under way.
    pub(crate) fn has_own(&self, group: GroupId) -> bool {
        self.own.contains_key(&group)
    }

    /// Whether the node itself has a request of this kind under way.
    pub(crate) fn has(&self, origin: &Origin) -> bool {
        self.open.values().any(|pending| pending.origin == *origin)
    }
}

/// A start of a process numbers its requests with so many bits.
const REQUESTS_BITS: u32 = 36;
/// On its way a request's number is followed by the lowest bits of the attempt's.
const ATTEMPT_BITS: u32 = 8;

/// What is left of the 64 bits for the start.
const STARTS_MASK: u64 = (1 << (64 - REQUESTS_BITS - ATTEMPT_BITS)) - 1;

/// The bits of the attempt.
const ATTEMPT_MASK: u64 = (1 << ATTEMPT_BITS) - 1;

/// Pause before another attempt.
const RETRY_PAUSE: Micros = Micros::from_millis(10);

impl Node {
    /// A door received a request.
    pub(crate) fn on_request(&mut self, token: Token, request: Request) {
        if let Body::Cluster(op) = &request.body {
            let op = op.clone();
            return self.on_cluster_op(token, &request.header, op);
        }
        self.open_request(Origin::Door(token), request);
    }

    /// Another node forwards a request.
    pub(crate) fn on_forward(
        &mut self,
        sender: &Sender,
        id: u64,
        from: Address,
        request: Request,
        number: u64,
    ) {
        let registers = matches!(request.body, Body::Master(MasterOp::Register { .. }));
        // The sender need not share a group with this node, and then never introduced itself.
        let related = sender.cluster != 0 && self.record.cluster.is_some();
        if !registers && !related {
            return;
        }
        // A copy of an attempt that was answered as not executed must not be executed later.
        if !registers
            && !self.requests.seen.entry(sender.node).or_default().is_first(sender, number)
        {
            return;
        }
        if let Body::Cluster(_) = request.body {
            return;
        }
        self.open_request(Origin::Peer { address: from, id }, request);
    }

    fn open_request(&mut self, origin: Origin, request: Request) {
        match self.admit(&request) {
            Ok(group) => {
                let bytes = request_bytes(&request.body);
                let timeout = match request.header.timeout {
                    Micros(0) => self.options.request_timeout,
                    some => some,
                };
                let deadline = self.now.mono + timeout;
                self.start(origin, Work::Request(group, Box::new(request)), deadline, bytes);
            }
            Err(error) => self.finish_with(origin, ReplyHeader::default(), Err(error)),
        }
    }

    /// Checks what can be checked before any other node is asked; names the group.
    fn admit(&self, request: &Request) -> Result<GroupId, ErrorReply> {
        if let (Some(asked), Some(own)) = (request.header.cluster, self.record.cluster)
            && asked != own
        {
            return Err(ErrorReply::WrongCluster { cluster: own });
        }
        if self.requests.len() >= limits::NODE_REQUESTS_MAX
            || self.requests.bytes >= limits::NODE_REQUEST_BYTES_MAX
        {
            return Err(ErrorReply::ResourceExhausted(format!(
                "node {} has {} requests open: slow down and try again",
                self.record.node.0,
                self.requests.len()
            )));
        }
        if request.header.consistency != Consistency::Linearizable {
            return Err(ErrorReply::Unsupported(
                "this version reads linearizably only: leave the consistency out".to_owned(),
            ));
        }
        if let Some(why) = self.not_ready() {
            return Err(ErrorReply::NotReady(why));
        }
        let op = match &request.body {
            Body::Kv(op) => op,
            Body::Master(op) => return admit_master(op),
            Body::Cluster(_) => return Ok(GroupId::MASTER),
        };
        router::validate(op)?;
        let shard = router::shard_of(op.key(), self.record.routes.shards());
        match self.owner_of(shard) {
            Some(group) => Ok(group),
            None => Err(ErrorReply::NotReady(format!(
                "shard {} has no owner yet: it gets one a moment after the first `decree join`",
                shard.0
            ))),
        }
    }

    /// The group that owns a shard, by the routes or by what a former owner said.
    fn owner_of(&self, shard: ShardId) -> Option<GroupId> {
        let owner = self.record.routes.owner(shard)?;
        match self.requests.moved.get(&shard) {
            Some((epoch, group)) if *epoch > owner.epoch => Some(*group),
            Some(_) | None => Some(owner.group),
        }
    }

    /// A group says that it gave a shard away.
    fn learn_moved(&mut self, body: &Body, epoch: ShardEpoch, group: GroupId) {
        let Some(shard) = self.shard_of_body(body) else { return };
        let known = self.requests.moved.entry(shard).or_insert((epoch, group));
        if epoch > known.0 {
            *known = (epoch, group);
        }
    }

    /// Newer routes make most of what groups said needless.
    pub(crate) fn forget_moved(&mut self) {
        let routes = &self.record.routes;
        self.requests.moved.retain(|shard, (epoch, _)| {
            routes.owner(*shard).is_none_or(|owner| owner.epoch < *epoch)
        });
    }

    /// Begins to work on something.
    pub(crate) fn start(&mut self, origin: Origin, work: Work, deadline: Micros, bytes: usize) {
        let from_client = matches!(origin, Origin::Door(_) | Origin::Peer { .. });
        let leased = from_client && matches!(work, Work::Request(..));
        self.start_as(origin, work, deadline, bytes, leased);
    }

    fn start_as(
        &mut self,
        origin: Origin,
        work: Work,
        deadline: Micros,
        bytes: usize,
        leased: bool,
    ) {
        let id = self.requests.next;
        self.requests.next += 1;
        self.requests.bytes += bytes;
        let mut work = work;
        if let Work::Request(_, request) = &mut work
            && request.header.session.is_none()
            && request.body.is_write()
        {
            match self.mint(&request.body) {
                Some(session) => request.header.session = Some(session),
                None => {
                    let error = ErrorReply::ResourceExhausted(format!(
                        "node {} has {} requests without a session open on one shard: slow down",
                        self.record.node.0,
                        limits::SESSION_OPEN_MAX
                    ));
                    self.requests.bytes -= bytes;
                    return self.finish_with(origin, ReplyHeader::default(), Err(error));
                }
            }
        }
        let pending = Pending {
            origin,
            work,
            deadline,
            stage: Stage::Waiting,
            wake: deadline,
            unsettled: 0,
            attempt: 0,
            last: None,
            bytes,
            leased,
        };
        if pending.origin == Origin::Own {
            *self.requests.own.entry(pending.work.group()).or_default() += 1;
        }
        self.requests.wakes.insert((deadline, id));
        self.requests.open.insert(id, pending);
        self.attempt(id);
    }

    fn mint(&mut self, body: &Body) -> Option<Session> {
        let shard = self.shard_of_body(body);
        let open = self.requests.minted_open.entry(shard).or_default();
        if open.len() >= limits::SESSION_OPEN_MAX {
            return None;
        }
        self.requests.minted = self.requests.minted.next();
        let number = self.requests.minted;
        open.insert(number);
        let first_incomplete = *open.first().unwrap_or(&number);
        let client = self.requests.minted_by;
        Some(Session { client, number, first_incomplete, stamp: self.now.wall })
    }

    fn shard_of_body(&self, body: &Body) -> Option<ShardId> {
        match body {
            Body::Kv(op) => Some(router::shard_of(op.key(), self.record.routes.shards())),
            Body::Master(_) | Body::Cluster(_) => None,
        }
    }

    fn set_stage(&mut self, id: u64, stage: Stage, wake: Micros) {
        let Some(pending) = self.requests.open.get_mut(&id) else { return };
        self.requests.wakes.remove(&(pending.wake, id));
        pending.stage = stage;
        pending.wake = wake.min(pending.deadline);
        self.requests.wakes.insert((pending.wake, id));
    }

    fn retry_later(&mut self, id: u64, why: ErrorReply) {
        if let Some(pending) = self.requests.open.get_mut(&id) {
            pending.last = Some(why);
            pending.attempt += 1;
        }
        // The pause varies, so that those who wait for the same event do not come all at once.
        let pause = RETRY_PAUSE + Micros(self.random.below(RETRY_PAUSE.0));
        let wake = self.now.mono + pause;
        self.set_stage(id, Stage::Waiting, wake);
    }

    /// Tries a request: here where the group is led from here, else at the node that leads it.
    fn attempt(&mut self, id: u64) {
        let Some(pending) = self.requests.open.get(&id) else { return };
        let shard = match &pending.work {
            Work::Request(_, request) => self.shard_of_body(&request.body),
            Work::Command(..) | Work::Inspect(..) => None,
        };
        // The shard may have moved since the last attempt.
        let group =
            shard.and_then(|shard| self.owner_of(shard)).unwrap_or_else(|| pending.work.group());
        if let Some(pending) = self.requests.open.get_mut(&id)
            && let Work::Request(of, _) = &mut pending.work
        {
            *of = group;
        }
        if let Some(shard) = shard
            && let Some(refusal) = self.refused_here(group, shard)
        {
            return self.on_refused_here(id, refusal);
        }
        let refused = match self.groups.get(&group) {
            Some(hosted) if hosted.paxos().is_leading() => match self.attempt_here(id, group) {
                Ok(()) => return,
                Err(refusal) => Some(refusal),
            },
            Some(_) | None => None,
        };
        match refused {
            Some(Attempted::Later(why)) => return self.retry_later(id, why),
            Some(Attempted::Never(error)) => {
                return self.finish_unexecuted(id, ReplyHeader::default(), error);
            }
            None => {}
        }
        let Some(pending) = self.requests.open.get(&id) else { return };
        match (&pending.origin, &pending.work) {
            (Origin::Door(_) | Origin::Register, Work::Request(..)) => self.forward(id, group),
            (
                Origin::Peer { .. } | Origin::Create { .. } | Origin::Errand { .. } | Origin::Own,
                _,
            )
            | (_, Work::Command(..) | Work::Inspect(..)) => {
                let leader = self.leader_hint(group);
                let header = ReplyHeader { leader, ..ReplyHeader::default() };
                self.finish(id, header, Err(ErrorReply::NotLeader));
            }
        }
    }

    /// Why a group that is led from here does not serve a shard, where it does not: then nothing
    /// needs to go through its log.
    fn refused_here(&self, group: GroupId, shard: ShardId) -> Option<Reply> {
        match self.groups.get(&group) {
            Some(Hosted::Data(replica)) if replica.paxos().is_leading() => {
                (!replica.machine().owns(shard)).then(|| replica.machine().not_owned(shard))
            }
            Some(_) | None => None,
        }
    }

    fn on_refused_here(&mut self, id: u64, reply: Reply) {
        let Some(pending) = self.requests.open.get(&id) else { return };
        if let (Work::Request(_, request), Err(ErrorReply::Moved { epoch, group })) =
            (&pending.work, &reply.body)
        {
            let (body, epoch, group) = (request.body.clone(), *epoch, *group);
            self.learn_moved(&body, epoch, group);
        }
        let Some(pending) = self.requests.open.get(&id) else { return };
        match (&pending.origin, reply.body) {
            (Origin::Door(_), Err(error)) => self.retry_later(id, error),
            (_, body) => self.finish(id, reply.header, body),
        }
    }

    fn attempt_here(&mut self, id: u64, group: GroupId) -> Result<(), Attempted> {
        let full = self.wal.is_full();
        let now = self.now;
        let Some(pending) = self.requests.open.get_mut(&id) else { return Ok(()) };
        let Some(hosted) = self.groups.get_mut(&group) else { return Ok(()) };
        let result = if pending.work.is_read() {
            hosted.read(Waiter(id), pending.leased)
        } else if full {
            let text = self.wal_full_text();
            return Err(Attempted::Never(ErrorReply::ResourceExhausted(text)));
        } else {
            let (payload, trace) = match &pending.work {
                Work::Command(_, payload) => (payload.clone(), None),
                Work::Inspect(..) => unreachable!("an inspection is a read"),
                Work::Request(_, request) => {
                    (encode_command(request, &self.record.routes)?, request.header.trace)
                }
            };
            let proposed =
                hosted.propose(now, Waiter(id), Command { time: now.wall, trace, payload });
            pending.unsettled += u32::from(proposed.is_ok());
            proposed
        };
        self.dirty.insert(group);
        match result {
            Ok(()) => {
                let deadline = pending.deadline;
                self.set_stage(id, Stage::Local, deadline);
                Ok(())
            }
            Err(Refusal::NotLeader { .. }) => Err(Attempted::Later(ErrorReply::NotLeader)),
            Err(Refusal::Busy) => Err(Attempted::Later(ErrorReply::ResourceExhausted(format!(
                "group {} has as many writes under way as it may: slow down and try again",
                group.0
            )))),
        }
    }

    /// The node that leads a group, as far as known.
    pub(crate) fn leader_hint(&self, group: GroupId) -> Option<NodeId> {
        match self.groups.get(&group) {
            Some(hosted) => hosted.leader_node(),
            None => self.requests.leaders.get(&group).copied(),
        }
    }

    fn forward(&mut self, id: u64, group: GroupId) {
        let own = self.record.node;
        let leader = self.leader_hint(group).filter(|leader| *leader != own);
        let Some(pending) = self.requests.open.get_mut(&id) else { return };
        let attempt = pending.attempt as usize;
        let target = match leader {
            Some(leader) => Some(leader),
            // A replica here knows as much as any other: an election is under way.
            None if self.groups.contains_key(&group) => None,
            None => {
                let members = self.record.routes.groups.get(&group);
                let nodes: Vec<NodeId> = match members {
                    Some(info) => info.members.iter().map(|(_, node, _)| *node).collect(),
                    None => self.master_nodes(),
                };
                (!nodes.is_empty()).then(|| nodes[attempt % nodes.len()]).filter(|n| *n != own)
            }
        };
        let Some(target) = target else {
            return self.retry_later(id, ErrorReply::NotLeader);
        };
        let Some(pending) = self.requests.open.get_mut(&id) else { return };
        let Work::Request(_, request) = &pending.work else { return };
        let mut request = (**request).clone();
        request.header.timeout = pending.deadline.since(self.now.mono);
        pending.unsettled += u32::from(request.body.is_write());
        let id_sent = id << ATTEMPT_BITS | u64::from(pending.attempt) & ATTEMPT_MASK;
        let reply_to = self.options.peer.clone();
        self.requests.forwarded += 1;
        let number = self.requests.forwarded;
        let message = NodeMessage::Forward { id: id_sent, reply_to, request, number };
        self.send(target, Lane::Protocol, &message);
        let wake = self.now.mono + self.options.forward_timeout;
        self.set_stage(id, Stage::Forwarded(target), wake);
    }

    /// The nodes of the shard master.
    pub(crate) fn master_nodes(&self) -> Vec<NodeId> {
        if let Some(info) = self.record.routes.groups.get(&GroupId::MASTER) {
            return info.members.iter().map(|(_, node, _)| *node).collect();
        }
        match &self.record.grant {
            Some(grant) => grant.masters.iter().map(|master| master.node).collect(),
            None => Vec::new(),
        }
    }

    pub(crate) fn on_forward_reply(&mut self, id_sent: u64, reply: Reply) {
        if self.bootstrap.is_registration(id_sent) {
            return self.on_registered(&reply);
        }
        let id = id_sent >> ATTEMPT_BITS;
        let Some(pending) = self.requests.open.get_mut(&id) else { return };
        let present = u64::from(pending.attempt) & ATTEMPT_MASK == id_sent & ATTEMPT_MASK;
        let Stage::Forwarded(from) = pending.stage else {
            // A late answer is an answer, a late error says nothing of what came after it.
            if reply.body.is_ok() {
                self.finish(id, reply.header, reply.body);
            }
            return;
        };
        if !present && reply.body.is_err() {
            return;
        }
        let group = pending.work.group();
        match reply.body {
            Err(ErrorReply::NotLeader) => {
                pending.unsettled = pending.unsettled.saturating_sub(1);
                match reply.header.leader {
                    Some(leader) if leader != from => self.requests.leaders.insert(group, leader),
                    Some(_) | None => self.requests.leaders.remove(&group),
                };
                self.retry_later(id, ErrorReply::NotLeader);
            }
            Err(ErrorReply::Moved { epoch, group }) => {
                pending.unsettled = pending.unsettled.saturating_sub(1);
                if let Work::Request(_, request) = &pending.work {
                    let body = request.body.clone();
                    self.learn_moved(&body, epoch, group);
                }
                self.retry_later(id, ErrorReply::Moved { epoch, group });
            }
            Err(error @ ErrorReply::NotReady(_)) => {
                pending.unsettled = pending.unsettled.saturating_sub(1);
                self.retry_later(id, error);
            }
            Err(error @ ErrorReply::OutcomeUnknown(_)) => self.retry_later(id, error),
            Err(
                error @ (ErrorReply::Invalid(_)
                | ErrorReply::ResourceExhausted(_)
                | ErrorReply::SessionExpired { .. }
                | ErrorReply::StampTooFar { .. }
                | ErrorReply::Stale
                | ErrorReply::WrongCluster { .. }
                | ErrorReply::Refused(_)
                | ErrorReply::Unavailable(_)
                | ErrorReply::Unsupported(_)),
            ) => {
                pending.unsettled = pending.unsettled.saturating_sub(1);
                self.requests.leaders.insert(group, reply.header.leader.unwrap_or(from));
                self.finish_unexecuted(id, reply.header, error);
            }
            Ok(_) => {
                self.requests.leaders.insert(group, reply.header.leader.unwrap_or(from));
                self.finish(id, reply.header, reply.body);
            }
        }
    }

    /// The newest attempt was answered with an error. That is the end of the request only if no
    /// earlier attempt can have been executed; else what has room for another attempt gets one, and
    /// of the rest nobody knows.
    fn finish_unexecuted(&mut self, id: u64, header: ReplyHeader, error: ErrorReply) {
        let Some(pending) = self.requests.open.get(&id) else { return };
        let unsettled = pending.unsettled > 0;
        let passing =
            matches!(error, ErrorReply::ResourceExhausted(_) | ErrorReply::Unavailable(_));
        if unsettled && passing {
            self.retry_later(id, error);
        } else if unsettled && matches!(error, ErrorReply::SessionExpired { .. }) {
            let text = "the session was forgotten between two attempts".to_owned();
            self.finish(id, header, Err(ErrorReply::OutcomeUnknown(text)));
        } else {
            self.finish(id, header, Err(error));
        }
    }

    /// A command that was proposed here is applied.
    pub(crate) fn on_executed(&mut self, waiter: Waiter, reply: Reply) {
        let Some(pending) = self.requests.open.get_mut(&waiter.0) else { return };
        let retry = matches!(reply.body, Err(ErrorReply::NotReady(_) | ErrorReply::Moved { .. }));
        if retry && matches!(pending.origin, Origin::Door(_)) {
            pending.unsettled = pending.unsettled.saturating_sub(1);
            if let (Work::Request(_, request), Err(ErrorReply::Moved { epoch, group })) =
                (&pending.work, &reply.body)
            {
                let (body, epoch, group) = (request.body.clone(), *epoch, *group);
                self.learn_moved(&body, epoch, group);
            }
            if let Err(error) = reply.body {
                self.retry_later(waiter.0, error);
            }
            return;
        }
        let header = ReplyHeader { leader: Some(self.record.node), ..reply.header };
        self.finish(waiter.0, header, reply.body);
    }

    /// A read was executed under a lease that ends then.
    fn on_read(&mut self, waiter: Waiter, reply: Reply, until: Micros) {
        let Some(pending) = self.requests.open.get(&waiter.0) else { return };
        if reply.body.is_err() {
            // What a group refuses it would refuse again, and where it sends others to is asked.
            return self.on_executed(waiter, reply);
        }
        let header = ReplyHeader { leader: Some(self.record.node), ..reply.header };
        if let Origin::Door(token) = pending.origin {
            self.requests.leased.insert(token, pending.clone());
        }
        if let Some(pending) = self.forget(waiter.0) {
            self.finish_before(pending.origin, header, reply.body, Some(until));
        }
    }

    /// A read may be answered from the applied state; under a lease, not after it has run out.
    pub(crate) fn on_readable(&mut self, group: GroupId, waiter: Waiter, until: Option<Micros>) {
        let Some(pending) = self.requests.open.get(&waiter.0) else { return };
        let Some(hosted) = self.groups.get(&group) else { return };
        let request = match (&pending.work, hosted) {
            (Work::Request(_, request), _) => request,
            (Work::Inspect(_, mig), Hosted::Data(replica)) => {
                let state = replica.machine().handoff(*mig);
                let header = ReplyHeader { group: Some(group), ..ReplyHeader::default() };
                return self.finish(waiter.0, header, Ok(Answer::Handoff(state)));
            }
            (Work::Inspect(..) | Work::Command(..), _) => return,
        };
        let shards = self.record.routes.shards();
        let store = GroupStore::new(&mut self.overlay, group);
        let reply = match (hosted, &request.body) {
            (Hosted::Data(replica), Body::Kv(op)) => {
                replica.machine().read(&store, router::shard_of(op.key(), shards), op)
            }
            (Hosted::Master(replica), Body::Master(op)) => replica.machine().read(&store, op),
            (Hosted::Data(_) | Hosted::Master(_), _) => {
                let error = ErrorReply::Invalid("this group does not answer this".to_owned());
                Ok(Reply { header: ReplyHeader::default(), body: Err(error) })
            }
        };
        match (reply, until) {
            (Ok(reply), Some(until)) => self.on_read(waiter, reply, until),
            (Ok(reply), None) => self.on_executed(waiter, reply),
            (Err(error), _) => self.fail(format!("the store failed: {error}")),
        }
    }

    /// A proposal or a read lost its leader.
    pub(crate) fn on_dropped(&mut self, waiter: Waiter) {
        let Some(pending) = self.requests.open.get(&waiter.0) else { return };
        match pending.origin {
            Origin::Door(_) | Origin::Register => {
                self.retry_later(waiter.0, ErrorReply::NotLeader);
            }
            Origin::Peer { .. } | Origin::Create { .. } | Origin::Errand { .. } | Origin::Own => {
                let leader = self.leader_hint(pending.work.group());
                let header = ReplyHeader { leader, ..ReplyHeader::default() };
                // What was proposed may be chosen yet.
                let error = if pending.unsettled > 0 {
                    ErrorReply::OutcomeUnknown("the group's leader changed".to_owned())
                } else {
                    ErrorReply::NotLeader
                };
                self.finish(waiter.0, header, Err(error));
            }
        }
    }

    /// The lease had run out when the answer was to be given: others are asked before the next.
    pub(crate) fn on_late(&mut self, token: Token) {
        let Some(pending) = self.requests.leased.remove(&token) else {
            let error = ErrorReply::Unavailable("the answer came too late".to_owned());
            return self.answer(token, Reply { header: ReplyHeader::default(), body: Err(error) });
        };
        self.start_as(pending.origin, pending.work, pending.deadline, pending.bytes, false);
    }

    /// A node went away: what was forwarded to it is tried elsewhere.
    pub(crate) fn wake_forwarded_to(&mut self, node: NodeId) {
        let there = |pending: &Pending| pending.stage == Stage::Forwarded(node);
        let ids: Vec<u64> =
            self.requests.open.iter().filter(|(_, p)| there(p)).map(|(id, _)| *id).collect();
        for id in ids {
            self.forward_unanswered(id, node);
        }
    }

    pub(crate) fn tick_requests(&mut self) {
        let now = self.now.mono;
        while let Some((wake, id)) = self.requests.wakes.first().copied() {
            if wake > now {
                break;
            }
            let Some(pending) = self.requests.open.get(&id) else {
                self.requests.wakes.remove(&(wake, id));
                continue;
            };
            if pending.deadline <= now {
                self.give_up(id);
                continue;
            }
            match pending.stage {
                Stage::Waiting => {
                    // Whatever comes of it, it shall not be tried twice in this loop.
                    self.set_stage(id, Stage::Waiting, now + RETRY_PAUSE);
                    self.attempt(id);
                }
                Stage::Forwarded(node) => self.forward_unanswered(id, node),
                Stage::Local => {
                    let deadline = pending.deadline;
                    self.set_stage(id, Stage::Local, deadline);
                }
            }
        }
    }

    /// A node has not answered what was forwarded to it.
    fn forward_unanswered(&mut self, id: u64, node: NodeId) {
        self.requests.leaders.retain(|_, leader| *leader != node);
        self.retry_later(id, ErrorReply::NotLeader);
    }

    fn give_up(&mut self, id: u64) {
        let Some(pending) = self.requests.open.get(&id) else { return };
        let group = pending.work.group();
        let why = match &pending.last {
            Some(ErrorReply::NotReady(text) | ErrorReply::ResourceExhausted(text)) => text.clone(),
            Some(_) | None => format!(
                "group {} did not answer in time: see `decree status` for whether a majority of \
                 its nodes is up",
                group.0
            ),
        };
        let error = if pending.unsettled > 0 {
            ErrorReply::OutcomeUnknown(why)
        } else {
            ErrorReply::Unavailable(why)
        };
        self.finish(id, ReplyHeader::default(), Err(error));
    }

    /// The node stops: whoever waits is told, and asks elsewhere.
    pub(crate) fn stop_requests(&mut self) {
        let ids: Vec<u64> = self.requests.open.keys().copied().collect();
        for id in ids {
            let Some(pending) = self.requests.open.get(&id) else { continue };
            let text = STOPPING.to_owned();
            let error = match (&pending.origin, pending.unsettled) {
                (Origin::Peer { .. }, 0) => ErrorReply::NotLeader,
                (_, 0) => ErrorReply::Unavailable(text),
                (_, _) => ErrorReply::OutcomeUnknown(text),
            };
            self.finish(id, ReplyHeader::default(), Err(error));
        }
    }

    fn finish(&mut self, id: u64, header: ReplyHeader, body: Result<Answer, ErrorReply>) {
        if let Some(pending) = self.forget(id) {
            self.finish_with(pending.origin, header, body);
        }
    }

    /// A request is on its way no more.
    fn forget(&mut self, id: u64) -> Option<Pending> {
        let pending = self.requests.open.remove(&id)?;
        self.requests.wakes.remove(&(pending.wake, id));
        self.requests.bytes -= pending.bytes;
        if pending.origin == Origin::Own {
            let group = pending.work.group();
            let own = self.requests.own.entry(group).or_default();
            *own = own.saturating_sub(1);
            if *own == 0 {
                self.requests.own.remove(&group);
            }
        }
        if let Work::Request(_, request) = &pending.work
            && let Some(session) = request.header.session
            && session.client == self.requests.minted_by
        {
            let key = self.shard_of_body(&request.body);
            if let Some(open) = self.requests.minted_open.get_mut(&key) {
                open.remove(&session.number);
                if open.is_empty() {
                    self.requests.minted_open.remove(&key);
                }
            }
        }
        Some(pending)
    }

    fn finish_with(
        &mut self,
        origin: Origin,
        header: ReplyHeader,
        body: Result<Answer, ErrorReply>,
    ) {
        self.finish_before(origin, header, body, None);
    }

    fn finish_before(
        &mut self,
        origin: Origin,
        header: ReplyHeader,
        body: Result<Answer, ErrorReply>,
        not_after: Option<Micros>,
    ) {
        let routes = &self.record.routes;
        let header = ReplyHeader {
            cluster: self.record.cluster,
            configuration: header.configuration.max(routes.configuration),
            ..header
        };
        let reply = Reply { header, body };
        match origin {
            Origin::Door(token) => self.answer_before(token, reply, not_after),
            Origin::Peer { address, id } => {
                let message = NodeMessage::ForwardReply { id, reply };
                match not_after {
                    Some(not_after) => self.send_read(&address, not_after, &message),
                    None => self.send_to(&address, Lane::Protocol, &message),
                }
            }
            Origin::Register => self.on_registered(&reply),
            Origin::Create { reply_to, copy } => self.on_shards_command(&reply_to, copy, &reply),
            Origin::Errand { reply_to, from, group, mig, sent } => {
                self.on_errand_done(&reply_to, from, group, mig, sent, reply);
            }
            Origin::Own => {}
        }
    }
}

/// What came of an attempt here that was not begun.
enum Attempted {
    /// It may be tried again.
    Later(ErrorReply),
    /// It will not be done.
    Never(ErrorReply),
}

/// The command of a client's write.
fn encode_command(request: &Request, routes: &router::Routes) -> Result<bytes::Bytes, Attempted> {
    let Some(session) = request.header.session else {
        unreachable!("a write gets its session when it is opened");
    };
    match &request.body {
        Body::Kv(op) => {
            let shard = router::shard_of(op.key(), routes.shards());
            let op = op.clone();
            Ok(kvserver::Command::Client { session, shard, op }.encode())
        }
        Body::Master(op) => Ok(shardmaster::Command::Client { session, op: op.clone() }.encode()),
        Body::Cluster(_) => Err(Attempted::Never(ErrorReply::Invalid(
            "a question about the cluster is no command".to_owned(),
        ))),
    }
}

/// A request to the shard master has no limits of its own; one that is far larger than any that
/// makes sense would not fit into a frame between nodes, nor into the log.
fn admit_master(op: &MasterOp) -> Result<GroupId, ErrorReply> {
    const BYTES_MAX: usize = 1 << 20;
    let bytes = base::codec::encode_vec(op).len();
    if bytes > BYTES_MAX {
        return Err(ErrorReply::Invalid(format!(
            "a request of {bytes} bytes to the shard master, and the limit is {BYTES_MAX}: divide \
             it into several"
        )));
    }
    Ok(GroupId::MASTER)
}

/// The bytes that a request is counted with.
fn request_bytes(body: &Body) -> usize {
    const OVERHEAD: usize = 256;
    match body {
        Body::Kv(op) => {
            let compared = match op {
                KvOp::CompareAndSwap { expected: Expected::Value(value), .. } => value.len(),
                KvOp::CompareAndSwap { .. }
                | KvOp::Get { .. }
                | KvOp::Put { .. }
                | KvOp::PutHash { .. }
                | KvOp::Delete { .. }
                | KvOp::Append { .. } => 0,
            };
            OVERHEAD + op.key().len() + op.value().map_or(0, bytes::Bytes::len) + compared
        }
        Body::Master(_) | Body::Cluster(_) => OVERHEAD,
    }
}

/// The header of a request that the node makes itself.
pub(crate) fn own_header() -> Header {
    Header::default()
}

/// The number that a registration was answered.
pub(crate) fn registered(reply: &Reply) -> Option<NodeId> {
    match &reply.body {
        Ok(Answer::Master(MasterAnswer::Registered(node))) => Some(*node),
        Ok(_) | Err(_) => None,
    }
}
