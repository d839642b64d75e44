//! What a client decides: where a request goes, when it is sent again, under which identity, and
//! what its caller is told in the end. It neither sends nor waits; its driver does.
//!
//! A request is sent until an answer settles it or its deadline passes. All attempts carry one
//! identity (`docs/sharding.md` 11.12), so that at most one of them executes. The client keeps
//! count of the attempts that may have been executed: those that were sent and not answered with
//! an error that says "not executed". While there is one, a write that cannot be finished ends as
//! [`CallError::OutcomeUnknown`], never as failed.

mod call;
mod interface;
mod numbers;
mod routing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::{ClientId, Micros, Now, Random, RequestNumber, ShardId, WallMillis};
use smallvec::SmallVec;

use crate::client::call::{Call, CallState, place};
pub use crate::client::interface::{
    CallError, CallId, ClientOptions, ClientOutput, Failure, Send, Target,
};
use crate::client::numbers::{Numbers, Place};
use crate::client::routing::Routing;
use crate::configuration::Routes;
use crate::operation::validate;
use crate::request::{
    Body, Consistency, ErrorReply, Header, Reply, ReplyHeader, Request, Seen, Session,
};
use crate::slot::shard_of;

/// The deciding part of a client.
///
/// Invariants:
/// - a number is open in `numbers` exactly while its call is in `calls`;
/// - each call in `calls` has exactly one entry in `timers`;
/// - a write ends as failed only when `unsettled` is empty.
#[derive(Debug)]
pub struct Client {
    id: ClientId,
    options: ClientOptions,
    random: Random,
    routing: Routing,
    numbers: Numbers,
    calls: BTreeMap<CallId, Call>,
    timers: BTreeSet<(Micros, CallId)>,
    /// Writes that have no number yet because their place's table is full, in order.
    waiting: BTreeMap<Place, VecDeque<CallId>>,
    call_last: u64,
    /// What answers have shown of each shard.
    seen: BTreeMap<ShardId, Seen>,
    /// The highest log time seen in an answer.
    stamp_seen: WallMillis,
    /// Before this, no more routes are asked for.
    routes_pause_until: Micros,
    output: ClientOutput,
}

/// Hints followed at once before a pause is made: two groups that point at each other must not
/// make a client spin.
const HOPS_MAX: u32 = 3;
/// How long the client leaves its driver alone after it asked for routes.
const ROUTES_PAUSE: Micros = Micros::from_millis(100);

impl Client {
    /// A client. The id must never have been used before.
    pub fn new(id: ClientId, seed: u64, options: ClientOptions) -> Client {
        Client {
            id,
            options,
            random: Random::new(seed),
            routing: Routing::new(),
            numbers: Numbers::new(),
            calls: BTreeMap::new(),
            timers: BTreeSet::new(),
            waiting: BTreeMap::new(),
            call_last: 0,
            seen: BTreeMap::new(),
            stamp_seen: WallMillis(0),
            routes_pause_until: Micros(0),
            output: ClientOutput::default(),
        }
    }

    /// Starts a linearizable call. An operation over a limit, or one call too many, is refused at
    /// once.
    pub fn begin(
        &mut self,
        now: Now,
        body: Body,
        timeout: Option<Micros>,
    ) -> Result<CallId, CallError> {
        self.begin_with(now, body, timeout, Consistency::Linearizable)
    }

    /// Starts a call that says what it may see, if it is a read. What a sequential one must see is
    /// what this client has seen, and what its caller names.
    pub fn begin_with(
        &mut self,
        now: Now,
        body: Body,
        timeout: Option<Micros>,
        consistency: Consistency,
    ) -> Result<CallId, CallError> {
        if let Body::Kv(op) = &body {
            validate(op).map_err(CallError::Refused)?;
        }
        if self.calls.len() >= self.options.calls_max {
            return Err(CallError::Refused(ErrorReply::ResourceExhausted(format!(
                "this client has {} calls open, its limit: wait for some of them",
                self.calls.len()
            ))));
        }
        self.call_last += 1;
        let id = CallId(self.call_last);
        let shard = self.shard(&body);
        let place = place(&body, shard);
        let deadline = now.mono + timeout.unwrap_or(self.options.timeout);
        self.timers.insert((deadline, id));
        self.calls.insert(
            id,
            Call {
                body,
                deadline,
                consistency,
                shard,
                place,
                queued: false,
                session: None,
                attempt: 0,
                unsettled: SmallVec::new(),
                state: CallState::Room,
                tried: None,
                hops: 0,
                pauses: 0,
                trouble: None,
                timer: deadline,
            },
        );
        self.send(now, id);
        Ok(id)
    }

    /// Takes the routes as some node has them; older ones than those known are dropped.
    pub fn routes(&mut self, now: Now, routes: Routes) {
        let placed = self.routing.shards().is_some();
        self.routing.take_routes(routes);
        if !placed && self.routing.shards().is_some() {
            self.place_calls(now);
        }
    }

    /// The routes by which the client goes.
    pub fn known_routes(&self) -> &Routes {
        self.routing.routes()
    }

    /// Takes the answer to an attempt.
    pub fn reply(&mut self, now: Now, id: CallId, attempt: u32, reply: Reply) {
        self.learn(now, &reply.header);
        let Some(call) = self.calls.get_mut(&id) else { return };
        match reply.body {
            Ok(_) => {
                if let Some((shard, seen)) = reply.header.seen() {
                    let newest = self.seen.entry(shard).or_default();
                    *newest = seen.max(*newest);
                }
                self.finish(now, id, Ok(reply));
            }
            Err(error) => {
                let newest = call.attempt == attempt;
                if !matches!(error, ErrorReply::OutcomeUnknown(_)) {
                    call.unsettled.retain(|unsettled| *unsettled != attempt);
                }
                self.on_error(now, id, newest, &reply.header, error);
            }
        }
    }

    /// An attempt will not be answered.
    pub fn failed(&mut self, now: Now, id: CallId, attempt: u32, failure: Failure) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        match failure {
            Failure::NotSent => call.unsettled.retain(|unsettled| *unsettled != attempt),
            Failure::Lost => {}
        }
        if call.attempt != attempt {
            return;
        }
        if let Some(node) = call.tried {
            self.routing.forget_leader(node);
        }
        let text = match failure {
            Failure::NotSent => "a node could not be reached",
            Failure::Lost => "a connection was lost before the answer came",
        };
        self.want_routes(now);
        self.pause(now, id, text.to_string());
    }

    /// Some time has passed.
    pub fn tick(&mut self, now: Now) {
        while let Some((at, id)) = self.timers.first().copied() {
            if at > now.mono {
                return;
            }
            self.on_timer(now, id);
        }
    }

    /// When [`Client::tick`] is to be called at the latest.
    pub fn next_wake(&self) -> Option<Micros> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What is to be done since the last call.
    pub fn take_output(&mut self) -> ClientOutput {
        std::mem::take(&mut self.output)
    }

    /// How many calls are open.
    pub fn open(&self) -> usize {
        self.calls.len()
    }

    /// Gives a call up; nothing more is heard of it. It may have been executed.
    pub fn abandon(&mut self, now: Now, id: CallId) {
        if self.calls.contains_key(&id) {
            self.remove(now, id);
        }
    }

    fn on_error(
        &mut self,
        now: Now,
        id: CallId,
        newest: bool,
        header: &ReplyHeader,
        error: ErrorReply,
    ) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        match error {
            ErrorReply::Invalid(_) | ErrorReply::Refused(_) | ErrorReply::Unsupported(_) => {
                self.finish(now, id, Err(CallError::Refused(error)));
            }
            ErrorReply::Stale => {
                let text = "the answer is not kept any more".to_string();
                self.finish(now, id, Err(CallError::OutcomeUnknown(text)));
            }
            // An older attempt that was not executed says nothing about the newest one.
            _ if !newest => {}
            ErrorReply::ResourceExhausted(_) | ErrorReply::WrongCluster { .. } => {
                if call.unsettled.is_empty() || !call.body.is_write() {
                    self.finish(now, id, Err(CallError::Refused(error)));
                } else {
                    self.pause(now, id, error.to_string());
                }
            }
            ErrorReply::NotLeader => {
                let tried = call.tried;
                let hint = header.leader.filter(|leader| Some(*leader) != tried);
                let owner = call.shard.and_then(|shard| self.routing.owner(shard));
                if let Some(tried) = tried {
                    self.routing.forget_leader(tried);
                }
                if let (Some(hint), Some((_, group))) = (hint, owner) {
                    self.routing.take_leader(group, hint);
                }
                self.retry(now, id, hint.is_some(), error.to_string());
            }
            ErrorReply::Moved { epoch, group } => {
                let shard = call.shard;
                let news = shard.is_some_and(|shard| self.routing.take_moved(shard, epoch, group));
                self.want_routes(now);
                self.retry(now, id, news, error.to_string());
            }
            ErrorReply::NotReady(_)
            | ErrorReply::Unavailable(_)
            | ErrorReply::OutcomeUnknown(_) => {
                self.want_routes(now);
                self.pause(now, id, error.to_string());
            }
            ErrorReply::SessionExpired { horizon } => self.on_expired(now, id, horizon),
            // An earlier attempt may still be executed. Under a lower stamp the session could be
            // forgotten up to that stamp only, and the earlier attempt then be taken for new. The
            // stamp stays, and somebody else may lead soon. Later calls begin with a better one: what
            // of this call comes after them is executed once at most all the same.
            ErrorReply::StampTooFar { log_time } if !call.unsettled.is_empty() => {
                self.stamp_seen = log_time;
                self.pause(now, id, error.to_string());
            }
            ErrorReply::StampTooFar { log_time } => {
                // Not executed; the number stays, so that at most one of its stamps executes.
                self.stamp_seen = log_time;
                if let Some(session) = &mut call.session {
                    session.stamp = WallMillis(log_time.0.saturating_add(1));
                }
                self.retry(now, id, true, error.to_string());
            }
        }
    }

    /// The session does not know the client. What surely was not executed is new, and gets a stamp
    /// that says so; of anything else nobody knows.
    fn on_expired(&mut self, now: Now, id: CallId, horizon: WallMillis) {
        let stamp = self.stamp(now).max(WallMillis(horizon.0.saturating_add(1)));
        let Some(call) = self.calls.get_mut(&id) else { return };
        if !call.unsettled.is_empty() {
            let text = "the session was forgotten between two attempts".to_string();
            self.finish(now, id, Err(CallError::OutcomeUnknown(text)));
            return;
        }
        if let Some(session) = &mut call.session {
            session.stamp = stamp;
        }
        self.retry(now, id, true, "the session was forgotten".to_string());
    }

    fn on_timer(&mut self, now: Now, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else {
            unreachable!("a timer of a call that has ended: {id:?}");
        };
        if call.deadline <= now.mono {
            let error = call.error_at_deadline();
            self.finish(now, id, Err(error));
            return;
        }
        match call.state {
            CallState::Room => self.set_timer(id),
            CallState::Pause { .. } => self.send(now, id),
            CallState::Answer { .. } => {
                call.trouble = Some("a node did not answer in time".to_string());
                let tried = call.tried;
                if let Some(node) = tried {
                    self.routing.forget_leader(node);
                }
                self.want_routes(now);
                self.send(now, id);
            }
        }
    }

    /// Sends the next attempt of a call, or lets it wait for room in its session table.
    fn send(&mut self, now: Now, id: CallId) {
        if !self.identify(now, id) {
            return;
        }
        let Some(call) = self.calls.get_mut(&id) else { return };
        if call.deadline <= now.mono {
            // The timer ends it; a request without time left must not leave.
            call.state = CallState::Pause { until: call.deadline };
            self.set_timer(id);
            return;
        }
        call.attempt += 1;
        call.unsettled.push(call.attempt);
        // A request is known by its key until the owners are, and any node can forward it.
        let consistency = match call.consistency {
            Consistency::Sequential(_) | Consistency::Bounded(_) if call.body.is_write() => {
                Consistency::Linearizable
            }
            Consistency::Sequential(after) => match call.shard {
                Some(shard) => Consistency::Sequential(after.max(self.seen.get(&shard).copied())),
                // What was seen of its shard is not known yet.
                None => Consistency::Linearizable,
            },
            other @ (Consistency::Linearizable | Consistency::Bounded(_)) => other,
        };
        let anyone = consistency != Consistency::Linearizable;
        let to = self.routing.target(call.shard, call.tried, anyone, &mut self.random);
        call.tried = match to {
            Target::Node(node) => Some(node),
            Target::Any => None,
        };
        call.state = CallState::Answer { resend: now.mono + self.options.attempt_timeout };
        let attempt_max = Micros(2 * self.options.attempt_timeout.0);
        let routes = self.routing.routes();
        let header = Header {
            cluster: Some(routes.cluster).filter(|_| routes.version > 0),
            session: call.session,
            route_epoch: call.shard.and_then(|s| self.routing.owner(s)).map(|(epoch, _)| epoch),
            // Nobody waits for an attempt that was given up: nodes are not to work on it either.
            timeout: (call.deadline - now.mono).min(attempt_max),
            consistency,
            trace: None,
        };
        let request = Request { header, body: call.body.clone() };
        self.output.sends.push(Send { call: id, attempt: call.attempt, to, request });
        self.set_timer(id);
        if self.routing.shards().is_none() {
            self.want_routes(now);
        }
    }

    /// Gives a write its identity before its first attempt. False when it must wait.
    fn identify(&mut self, now: Now, id: CallId) -> bool {
        let stamp = self.stamp(now);
        let Some(call) = self.calls.get_mut(&id) else { return false };
        let Some(place) = call.place.filter(|_| call.session.is_none()) else { return true };
        let first = self.waiting.get(&place).and_then(|queue| queue.front().copied());
        let in_turn = first.is_none_or(|first| first == id);
        let opened = if in_turn { self.numbers.open(place) } else { None };
        let Some((number, first_incomplete)) = opened else {
            call.state = CallState::Room;
            if !call.queued {
                call.queued = true;
                self.waiting.entry(place).or_default().push_back(id);
            }
            return false;
        };
        call.session = Some(Session { client: self.id, number, first_incomplete, stamp });
        self.clear_queue(place);
        true
    }

    /// Drops from the front of a queue what does not wait any more, and tells who is first.
    fn clear_queue(&mut self, place: Place) -> Option<CallId> {
        let queue = self.waiting.get_mut(&place)?;
        while let Some(id) = queue.front() {
            if self.calls.get(id).is_some_and(|call| call.session.is_none()) {
                return Some(*id);
            }
            queue.pop_front();
        }
        self.waiting.remove(&place);
        None
    }

    fn retry(&mut self, now: Now, id: CallId, at_once: bool, trouble: String) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        if at_once && call.hops < HOPS_MAX {
            call.hops += 1;
            call.trouble = Some(trouble);
            self.send(now, id);
        } else {
            self.pause(now, id, trouble);
        }
    }

    fn pause(&mut self, now: Now, id: CallId, trouble: String) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let (min, max) = (self.options.pause_min.0, self.options.pause_max.0);
        let pause = min.saturating_mul(1 << call.pauses.min(20)).min(max).max(1);
        // Jitter keeps the clients of a group that failed from coming back all at once.
        let pause = self.random.between(pause.div_ceil(2), pause);
        call.pauses = call.pauses.saturating_add(1);
        call.hops = 0;
        call.trouble = Some(trouble);
        call.state = CallState::Pause { until: now.mono + Micros(pause) };
        self.set_timer(id);
    }

    fn finish(&mut self, now: Now, id: CallId, result: Result<Reply, CallError>) {
        self.output.finished.push((id, result));
        self.remove(now, id);
    }

    /// Forgets a call, and lets those go on that waited for its place in the session table.
    fn remove(&mut self, now: Now, id: CallId) {
        let Some(call) = self.calls.remove(&id) else { return };
        self.timers.remove(&(call.timer, id));
        let Some(place) = call.place else { return };
        if let Some(session) = call.session {
            self.numbers.close(place, session.number);
        }
        while let Some(next) = self.clear_queue(place) {
            self.send(now, next);
            if self.calls.get(&next).is_some_and(|call| call.session.is_none()) {
                return;
            }
        }
    }

    fn set_timer(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let timer = match call.state {
            CallState::Room => call.deadline,
            CallState::Answer { resend: at } | CallState::Pause { until: at } => {
                at.min(call.deadline)
            }
        };
        self.timers.remove(&(call.timer, id));
        self.timers.insert((timer, id));
        call.timer = timer;
    }

    /// Remembers what an answer says besides its body.
    fn learn(&mut self, now: Now, header: &ReplyHeader) {
        self.stamp_seen = self.stamp_seen.max(header.stamp);
        if let (Some(group), Some(leader)) = (header.group, header.leader) {
            self.routing.take_leader(group, leader);
        }
        if header.configuration > self.routing.routes().configuration {
            self.want_routes(now);
        }
    }

    fn want_routes(&mut self, now: Now) {
        if now.mono >= self.routes_pause_until {
            self.routes_pause_until = now.mono + ROUTES_PAUSE;
            self.output.wants_routes = true;
        }
    }

    /// The number of shards has become known: each call gets its shard.
    fn place_calls(&mut self, now: Now) {
        let mut placed: Vec<(RequestNumber, ShardId)> = Vec::new();
        let waiting = self.waiting.remove(&Place::Unplaced).unwrap_or_default();
        let shards = self.routing.shards().unwrap_or(1);
        for call in self.calls.values_mut() {
            let Body::Kv(op) = &call.body else { continue };
            let shard = shard_of(op.key(), shards);
            call.shard = Some(shard);
            if call.place.is_some() {
                call.place = Some(Place::Shard(shard));
                placed.extend(call.session.map(|session| (session.number, shard)));
            }
        }
        placed.sort();
        for (number, shard) in placed {
            self.numbers.place(number, shard);
        }
        for id in waiting {
            if let Some(call) = self.calls.get_mut(&id) {
                call.queued = false;
                self.send(now, id);
            }
        }
    }

    fn stamp(&self, now: Now) -> WallMillis {
        WallMillis(now.wall.0.max(self.stamp_seen.0).saturating_add(1))
    }

    fn shard(&self, body: &Body) -> Option<ShardId> {
        match body {
            Body::Kv(op) => self.routing.shards().map(|shards| shard_of(op.key(), shards)),
            Body::Master(_) | Body::Cluster(_) => None,
        }
    }
}
