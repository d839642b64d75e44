//! Requests on their way: from a door or another node, to the replica that leads, and back. A
//! request keeps its identity over all attempts, so that trying again is always safe.

mod admission;
mod follower;
mod outcomes;

use std::collections::{BTreeMap, BTreeSet};

use base::{
    Address, BootId, ClientId, CopyId, GroupId, Micros, NodeId, RequestNumber, ShardEpoch, ShardId,
    Slot, limits,
};
use paxos::{Command, Refusal};
use replica_group::Waiter;
use replica_group::turn::{Lane, Token};
use router::{
    Answer, Body, ErrorReply, Header, MasterAnswer, MasterOp, Reply, ReplyHeader, Request, Session,
};

use crate::frame::{NodeMessage, Sender};
use crate::hosted::Hosted;
use crate::node::Node;
use crate::peers::Seen;
use crate::requests::admission::request_bytes;
use crate::requests::follower::Indexes;

/// Who is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A door of this node.
    Door(Token),
    /// Another node, which takes this group for the one to answer, and does not lead it.
    Peer { address: Address, id: u64, group: GroupId },
    /// The node itself wants to be known under its present addresses, and says how often its disk was
    /// started.
    Register { starts: u64 },
    /// The node itself has something to tell the shard master, or to ask it; nothing waits for the
    /// answer.
    Tell,
    /// The shard master's leader asked for these shards to be created.
    Create { reply_to: Address, copy: CopyId },
    /// The leader of another group, or of the shard master, asked about a hand-off.
    Errand { reply_to: Address, from: GroupId, group: GroupId, mig: CopyId, sent: Micros },
    /// The node of a replica that does not lead asks for reads of its own.
    Index { reply_to: Address, group: GroupId, number: u64 },
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
    /// Until the group, led from here, knows whether it or another group serves the shard.
    Parked(GroupId, ShardId),
    /// Until the leader has said how far the group's log is chosen.
    Asking(GroupId),
    /// Until the replica here has applied the slot.
    Applying(GroupId, Slot),
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
    /// Attempts since the last pause.
    swift: u32,
    /// Why it is not done yet.
    last: Option<ErrorReply>,
    bytes: usize,
    /// A read that may be served under a lease.
    leased: bool,
    /// A read that the replica here was to answer although it does not lead, and did not yet.
    tried_here: bool,
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
    /// How far the group's log is chosen.
    Index(GroupId),
}

impl Work {
    fn group(&self) -> GroupId {
        match self {
            Work::Request(group, _)
            | Work::Command(group, _)
            | Work::Inspect(group, _)
            | Work::Index(group) => *group,
        }
    }

    fn is_read(&self) -> bool {
        match self {
            Work::Request(_, request) => !request.body.is_write(),
            Work::Command(..) => false,
            Work::Inspect(..) | Work::Index(_) => true,
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
    /// Those whose stage is parked.
    parked: BTreeSet<(GroupId, ShardId, u64)>,
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
    /// Reads that were answered for a time only, in this turn and in the last output: what is late
    /// comes back.
    answered: BTreeMap<Token, Pending>,
    answered_last: BTreeMap<Token, Pending>,
    /// What is known of how far logs are chosen that are not led from here.
    indexes: Indexes,
}

impl Requests {
    /// The numbers of requests and the identity of those without a session are those of this
    /// start of the process: an answer to a request of an earlier start must not be taken for one
    /// of this. The counts of starts do not tell them apart, where a disk is a copy or was lost.
    pub(crate) fn begin(&mut self, client: ClientId) {
        // The highest number of a start is left to registrations.
        self.next = (client.0 as u64 % STARTS_MASK) << REQUESTS_BITS;
        self.minted_by = client;
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// The turn's output is taken: whatever the one before answered was in time, or came back.
    pub(crate) fn turn(&mut self) {
        self.answered_last = std::mem::take(&mut self.answered);
    }

    /// Whether the leader of this group has a command of its own under way.
    pub(crate) fn has_own(&self, group: GroupId) -> bool {
        self.own.contains_key(&group)
    }

    /// Whether requests wait for what becomes of a shard of this group.
    pub(crate) fn has_parked(&self, group: GroupId) -> bool {
        self.parked.range((group, ShardId(0), 0)..).next().is_some_and(|(of, ..)| *of == group)
    }

    /// A node answered for a group as only its leader does.
    pub(crate) fn note_leader(&mut self, group: GroupId, node: NodeId) {
        self.leaders.insert(group, node);
    }

    /// Who leads a group is asked of all its replicas again.
    pub(crate) fn forget_leader(&mut self, group: GroupId) {
        self.leaders.remove(&group);
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

/// Registrations of a node that has no number go under ids that begin with this, as those of no
/// other request do.
const REGISTRATION: u64 = STARTS_MASK << (REQUESTS_BITS + ATTEMPT_BITS);

/// The bits of the attempt.
const ATTEMPT_MASK: u64 = (1 << ATTEMPT_BITS) - 1;

/// Pause before another attempt.
const RETRY_PAUSE: Micros = Micros::from_millis(10);
/// So many requests are tried again within that time; where there are more, each waits longer.
const ATTEMPTS_PER_PAUSE: u64 = 256;
/// So many attempts may follow each other without a pause, each because of something learned.
const SWIFT_MAX: u32 = 3;
/// A parked request looks after its shard by itself that often, should nothing wake it.
const PARKED_AGAIN: Micros = Micros::from_millis(50);

/// The id of the registrations of a start under a count of starts. What was answered to an earlier
/// start says nothing to this one, which may have lost what that one knew; and what was answered
/// before the node counted on would have it count on once more.
pub(crate) fn registration(boot: BootId, starts: u64) -> u64 {
    REGISTRATION
        | xxhash_rust::xxh3::xxh3_64_with_seed(&boot.0.to_le_bytes(), starts) & !REGISTRATION
}

pub(crate) fn is_registration(id: u64) -> bool {
    id & REGISTRATION == REGISTRATION
}

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
        origin: Origin,
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
        self.open_request(origin, request);
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

    /// Begins to work on something.
    pub(crate) fn start(&mut self, origin: Origin, work: Work, deadline: Micros, bytes: usize) {
        let from_client = matches!(origin, Origin::Door(_) | Origin::Peer { .. });
        let leased =
            from_client && matches!(work, Work::Request(..)) || matches!(work, Work::Index(_));
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
            swift: 0,
            last: None,
            bytes,
            leased,
            tried_here: false,
        };
        if pending.origin == Origin::Own {
            *self.requests.own.entry(pending.work.group()).or_default() += 1;
        }
        self.requests.wakes.insert((deadline, id));
        let former = self.requests.open.insert(id, pending);
        assert!(former.is_none(), "two requests have the number {id}");
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

    fn set_stage(&mut self, id: u64, stage: Stage, wake: Micros) {
        let Some(pending) = self.requests.open.get_mut(&id) else { return };
        self.requests.wakes.remove(&(pending.wake, id));
        match pending.stage {
            Stage::Parked(group, shard) => {
                self.requests.parked.remove(&(group, shard, id));
            }
            Stage::Applying(group, slot) => self.requests.indexes.forget_waiting(group, slot, id),
            Stage::Waiting | Stage::Local | Stage::Forwarded(_) | Stage::Asking(_) => {}
        }
        if let Stage::Parked(group, shard) = stage {
            self.requests.parked.insert((group, shard, id));
        }
        pending.stage = stage;
        pending.wake = wake.min(pending.deadline);
        self.requests.wakes.insert((pending.wake, id));
    }

    fn retry_later(&mut self, id: u64, why: ErrorReply) {
        if let Some(pending) = self.requests.open.get_mut(&id) {
            pending.last = Some(why);
            pending.attempt += 1;
            pending.swift = 0;
        }
        // The pause varies, so that those who wait for the same event do not come all at once.
        let pause = self.longer_when_full(RETRY_PAUSE);
        let wake = self.now.mono + pause + Micros(self.random.below(pause.0));
        self.set_stage(id, Stage::Waiting, wake);
    }

    /// A pause that grows with the requests here, so that all of them together make no more
    /// attempts. A node full of requests that wait for a leader would else be so busy with asking
    /// for it that none is elected.
    fn longer_when_full(&self, pause: Micros) -> Micros {
        Micros(pause.0 * (1 + self.requests.len() as u64 / ATTEMPTS_PER_PAUSE))
    }

    /// Something was learned that the last attempt did not know. Two nodes that know better than
    /// each other must not keep a request between them for ever.
    fn retry_at_once(&mut self, id: u64, why: ErrorReply) {
        let Some(pending) = self.requests.open.get_mut(&id) else { return };
        if pending.swift >= SWIFT_MAX {
            return self.retry_later(id, why);
        }
        pending.last = Some(why);
        pending.attempt += 1;
        pending.swift += 1;
        let wake = self.now.mono + RETRY_PAUSE;
        self.set_stage(id, Stage::Waiting, wake);
        self.attempt(id);
    }

    /// Keeps a request until a shard, which its group serves no more and may serve again, is
    /// there or elsewhere.
    fn park(&mut self, id: u64, group: GroupId, shard: ShardId, why: ErrorReply) {
        if let Some(pending) = self.requests.open.get_mut(&id) {
            pending.last = Some(why);
            pending.swift = 0;
        }
        let wake = self.now.mono + self.longer_when_full(PARKED_AGAIN);
        self.set_stage(id, Stage::Parked(group, shard), wake);
    }

    /// Tries again what waits for shards of which the group knows more now.
    pub(crate) fn wake_parked(&mut self, group: GroupId) {
        let of_group = self.requests.parked.range((group, ShardId(0), 0)..);
        let of_group = of_group.take_while(|(of, ..)| *of == group);
        let waits =
            |shard: ShardId| self.is_frozen(group, shard) && !self.is_elsewhere(group, shard);
        let ids: Vec<u64> =
            of_group.filter(|(_, shard, _)| !waits(*shard)).map(|(_, _, id)| *id).collect();
        for id in ids {
            let wake = self.now.mono + RETRY_PAUSE;
            self.set_stage(id, Stage::Waiting, wake);
            self.attempt(id);
        }
    }

    /// Whether a group here is between serving a shard and knowing who serves it.
    fn is_frozen(&self, group: GroupId, shard: ShardId) -> bool {
        match self.groups.get(&group) {
            Some(Hosted::Data(replica)) => {
                replica.paxos().is_leading() && replica.machine().is_frozen(shard)
            }
            Some(Hosted::Master(_)) | None => false,
        }
    }

    fn is_elsewhere(&self, group: GroupId, shard: ShardId) -> bool {
        self.owner_of(shard).is_some_and(|(_, owner)| owner != group)
    }

    /// Tries a request: here where the group is led from here, else at the node that leads it.
    fn attempt(&mut self, id: u64) {
        let Some(pending) = self.requests.open.get(&id) else { return };
        let shard = self.shard_of_request(id);
        // The shard may have moved since the last attempt.
        let owner = shard.and_then(|shard| self.owner_of(shard));
        let group = owner.map_or(pending.work.group(), |(_, group)| group);
        if let Some(pending) = self.requests.open.get_mut(&id)
            && let Work::Request(of, _) = &mut pending.work
        {
            *of = group;
        }
        if let Some(shard) = shard
            && let Some(refusal) = self.refused_here(group, shard)
        {
            return self.on_refused_here(id, group, shard, refusal);
        }
        if self.read_at_replica(id, group) {
            return;
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
            (Origin::Door(_) | Origin::Register { .. } | Origin::Tell, Work::Request(..)) => {
                self.forward(id, group);
            }
            // A node without a cluster knows the masters that it was told of, and no others.
            (Origin::Peer { id: of, .. }, Work::Request(..)) if is_registration(*of) => {
                self.forward(id, group);
            }
            // The node that sent it here takes another group for the owner: it learns of this one,
            // unless it knows of a later one.
            (Origin::Peer { group: asked, .. }, _)
                if let Some((epoch, group)) = owner
                    && group != *asked =>
            {
                let moved = ErrorReply::Moved { epoch, group };
                self.finish(id, ReplyHeader::default(), Err(moved));
            }
            (
                Origin::Peer { .. }
                | Origin::Create { .. }
                | Origin::Errand { .. }
                | Origin::Index { .. }
                | Origin::Own,
                _,
            )
            | (_, Work::Command(..) | Work::Inspect(..) | Work::Index(_)) => {
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
                Work::Inspect(..) | Work::Index(_) => unreachable!("an inspection is a read"),
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
        let message = NodeMessage::Forward { id: id_sent, reply_to, request, number, group };
        self.send(target, Lane::Protocol, &message);
        let wake = self.now.mono + self.options.forward_timeout;
        self.set_stage(id, Stage::Forwarded(target), wake);
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
                Stage::Waiting | Stage::Parked(..) | Stage::Asking(_) | Stage::Applying(..) => {
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
