//! What comes of attempts: answers, refusals, silence; and how each request ends.

use base::mutant::{self, Mutant};
use base::{GroupId, Micros, NodeId, ShardId};
use replica_group::Waiter;
use replica_group::turn::{Lane, Token};
use router::{Answer, Body, ErrorReply, MasterAnswer, Reply, ReplyHeader};

use crate::frame::NodeMessage;
use crate::hosted::Hosted;
use crate::node::{Node, STOPPING};
use crate::requests::{
    ATTEMPT_BITS, ATTEMPT_MASK, Origin, Pending, Stage, Work, is_registration, registration,
};

impl Node {
    /// The group that is led from here does not serve the shard of a request.
    pub(super) fn on_refused_here(
        &mut self,
        id: u64,
        group: GroupId,
        shard: ShardId,
        reply: Reply,
    ) {
        let Some(pending) = self.requests.open.get(&id) else { return };
        let is_door = matches!(pending.origin, Origin::Door(_));
        match reply.body {
            Err(error @ ErrorReply::NotReady(_)) if self.is_frozen(group, shard) => {
                self.park(id, group, shard, error);
            }
            Err(error @ ErrorReply::Moved { epoch, group }) => {
                let learned = self.learn_moved(shard, epoch, group);
                match (is_door, learned) {
                    (true, true) => self.retry_at_once(id, error),
                    (true, false) => self.retry_later(id, error),
                    (false, _) => self.finish(id, reply.header, Err(error)),
                }
            }
            Err(error) if is_door => self.retry_later(id, error),
            body => self.finish(id, reply.header, body),
        }
    }

    pub(crate) fn on_forward_reply(&mut self, id_sent: u64, reply: Reply) {
        if is_registration(id_sent) {
            if id_sent == registration(self.options.boot, self.options.starts) {
                self.on_registered(&reply);
            }
            return;
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
                    Some(leader) if leader != from => {
                        self.requests.note_leader(group, leader);
                        self.retry_at_once(id, ErrorReply::NotLeader);
                    }
                    Some(_) | None => {
                        self.requests.forget_leader(group);
                        self.retry_later(id, ErrorReply::NotLeader);
                    }
                }
            }
            Err(ErrorReply::Moved { epoch, group: owner }) => {
                pending.unsettled = pending.unsettled.saturating_sub(1);
                let shard = self.shard_of_request(id);
                let moved = ErrorReply::Moved { epoch, group: owner };
                if shard.is_some_and(|shard| self.learn_moved(shard, epoch, owner)) {
                    self.retry_at_once(id, moved);
                } else {
                    // It knows less than this node, and so perhaps nothing of the group.
                    self.requests.forget_leader(group);
                    self.retry_later(id, moved);
                }
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
    pub(super) fn finish_unexecuted(&mut self, id: u64, header: ReplyHeader, error: ErrorReply) {
        let Some(pending) = self.requests.open.get(&id) else { return };
        let unsettled = pending.unsettled > 0;
        let passing =
            matches!(error, ErrorReply::ResourceExhausted(_) | ErrorReply::Unavailable(_));
        if unsettled && passing {
            self.retry_later(id, error);
        } else if unsettled && is_of_session(&error) {
            // Who asked would take it for surely not executed, and ask under another stamp.
            let text = "the session was forgotten between two attempts".to_owned();
            self.finish(id, header, Err(ErrorReply::OutcomeUnknown(text)));
        } else {
            self.finish(id, header, Err(error));
        }
    }

    /// A command that was proposed here is applied.
    pub(crate) fn on_executed(&mut self, waiter: Waiter, reply: Reply) {
        let Some(pending) = self.requests.open.get_mut(&waiter.0) else { return };
        // A frozen or moved shard leaves no trace of a request that the log has after that.
        if let Err(error @ (ErrorReply::NotReady(_) | ErrorReply::Moved { .. })) = &reply.body {
            pending.unsettled = pending.unsettled.saturating_sub(1);
            let (is_door, group) =
                (matches!(pending.origin, Origin::Door(_)), pending.work.group());
            match self.shard_of_request(waiter.0) {
                Some(shard) if is_door || self.is_frozen(group, shard) => {
                    return self.on_refused_here(waiter.0, group, shard, reply);
                }
                None if is_door => {
                    let error = error.clone();
                    return self.retry_later(waiter.0, error);
                }
                Some(_) | None => {}
            }
        }
        let header = self.header_here(waiter.0, reply.header);
        match reply.body {
            // This attempt was not executed; an earlier one, elsewhere, may have been.
            Err(error) if leaves_no_trace(&error) => {
                if let Some(pending) = self.requests.open.get_mut(&waiter.0) {
                    pending.unsettled = pending.unsettled.saturating_sub(1);
                }
                self.finish_unexecuted(waiter.0, header, error);
            }
            body => self.finish(waiter.0, header, body),
        }
    }

    /// The header of an answer of a replica here that leads.
    fn header_here(&self, id: u64, header: ReplyHeader) -> ReplyHeader {
        let group = self.requests.open.get(&id).map(|pending| pending.work.group());
        let hosted = group.filter(|_| header.shard.is_some()).and_then(|g| self.groups.get(&g));
        let slot = hosted.map(Hosted::applied).unwrap_or_default();
        ReplyHeader { leader: Some(self.record.node), slot, ..header }
    }

    /// A read was executed under a lease that ends then.
    fn on_read(&mut self, waiter: Waiter, reply: Reply, until: Micros) {
        if reply.body.is_err() {
            // What a group refuses it would refuse again, and where it sends others to is asked.
            return self.on_executed(waiter, reply);
        }
        let header = self.header_here(waiter.0, reply.header);
        self.finish_read(waiter.0, header, reply.body, Some(until));
    }

    /// A read is answered, until this time where there is one.
    pub(super) fn finish_read(
        &mut self,
        id: u64,
        header: ReplyHeader,
        body: Result<Answer, ErrorReply>,
        until: Option<Micros>,
    ) {
        let Some(pending) = self.requests.open.get(&id) else { return };
        if let (Origin::Door(token), true) = (&pending.origin, until.is_some()) {
            self.requests.answered.insert(*token, pending.clone());
        }
        if let Some(pending) = self.forget(id) {
            self.finish_before(pending.origin, header, body, until);
        }
    }

    /// A read may be answered from the applied state; under a lease, not after it has run out.
    pub(crate) fn on_readable(&mut self, group: GroupId, waiter: Waiter, until: Option<Micros>) {
        let Some(pending) = self.requests.open.get(&waiter.0) else { return };
        let Some(hosted) = self.groups.get(&group) else { return };
        if hosted.fenced().is_some() {
            // The state was found damaged after the read was let through.
            return self.on_dropped(waiter);
        }
        let request = match (&pending.work, hosted) {
            (Work::Request(_, request), _) => request,
            (Work::Index(_), _) => {
                let applied = hosted.applied();
                return self.answer_index(waiter, applied, until);
            }
            (Work::Inspect(_, mig), Hosted::Data(replica)) => {
                let state = replica.machine().handoff(*mig);
                let header = ReplyHeader { group: Some(group), ..ReplyHeader::default() };
                return self.finish(waiter.0, header, Ok(Answer::Handoff(state)));
            }
            (Work::Inspect(..) | Work::Command(..), _) => return,
        };
        let shards = self.record.routes.shards();
        let store = hosted.store(&mut self.overlay);
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
            (Err(error), _) => {
                self.on_store_error(group, &error);
                self.on_dropped(waiter);
            }
        }
    }

    /// A proposal or a read lost its leader.
    pub(crate) fn on_dropped(&mut self, waiter: Waiter) {
        let Some(pending) = self.requests.open.get(&waiter.0) else { return };
        match pending.origin {
            Origin::Door(_) | Origin::Register { .. } | Origin::Tell => {
                self.retry_later(waiter.0, ErrorReply::NotLeader);
            }
            Origin::Peer { .. }
            | Origin::Create { .. }
            | Origin::Errand { .. }
            | Origin::Index { .. }
            | Origin::Own => {
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
        let Some(pending) = self.requests.answered_last.remove(&token) else {
            let error = ErrorReply::Unavailable("the answer came too late".to_owned());
            return self.answer(token, Reply { header: ReplyHeader::default(), body: Err(error) });
        };
        self.start_as(pending.origin, pending.work, pending.deadline, pending.bytes, false);
    }

    /// As [`Node::on_late`], where nothing is begun any more.
    pub(crate) fn on_late_at_the_end(&mut self, token: Token) {
        self.requests.answered_last.remove(&token);
        let error = ErrorReply::Unavailable(STOPPING.to_owned());
        self.answer(token, Reply { header: ReplyHeader::default(), body: Err(error) });
    }

    /// A node went away: what was forwarded to it is tried elsewhere.
    pub(crate) fn wake_forwarded_to(&mut self, node: NodeId) {
        let there = |pending: &Pending| match pending.stage {
            Stage::Forwarded(to) => to == node,
            Stage::Asking(group) => self.leader_hint(group).is_none_or(|leader| leader == node),
            Stage::Waiting | Stage::Local | Stage::Parked(..) | Stage::Applying(..) => false,
        };
        let ids: Vec<u64> =
            self.requests.open.iter().filter(|(_, p)| there(p)).map(|(id, _)| *id).collect();
        for id in ids {
            self.forward_unanswered(id, node);
        }
    }

    /// A node has not answered what was forwarded to it.
    pub(super) fn forward_unanswered(&mut self, id: u64, node: NodeId) {
        self.requests.leaders.retain(|_, leader| *leader != node);
        self.retry_later(id, ErrorReply::NotLeader);
    }

    pub(super) fn give_up(&mut self, id: u64) {
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
        let error = if pending.unsettled > 0 && !mutant::is(Mutant::OutcomeDenied) {
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

    pub(super) fn finish(
        &mut self,
        id: u64,
        header: ReplyHeader,
        body: Result<Answer, ErrorReply>,
    ) {
        if let Some(pending) = self.forget(id) {
            self.finish_with(pending.origin, header, body);
        }
    }

    /// A request is on its way no more.
    pub(super) fn forget(&mut self, id: u64) -> Option<Pending> {
        let pending = self.requests.open.remove(&id)?;
        self.requests.wakes.remove(&(pending.wake, id));
        match pending.stage {
            Stage::Parked(group, shard) => {
                self.requests.parked.remove(&(group, shard, id));
            }
            Stage::Applying(group, slot) => self.requests.indexes.forget_waiting(group, slot, id),
            Stage::Waiting | Stage::Local | Stage::Forwarded(_) | Stage::Asking(_) => {}
        }
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

    pub(super) fn finish_with(
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
            Origin::Peer { address, id, .. } => {
                let message = NodeMessage::ForwardReply { id, reply };
                match not_after {
                    Some(not_after) => {
                        let why = "the lease ended before the answer could leave".to_owned();
                        let header = ReplyHeader::default();
                        let reply = Reply { header, body: Err(ErrorReply::NotReady(why)) };
                        let late = NodeMessage::ForwardReply { id, reply };
                        self.send_read(&address, &message, (not_after, &late));
                    }
                    None => self.send_to(&address, Lane::Protocol, &message),
                }
            }
            Origin::Register { starts } => {
                if starts == self.options.starts {
                    self.on_registered(&reply);
                }
            }
            Origin::Create { reply_to, copy } => self.on_shards_command(&reply_to, copy, &reply),
            Origin::Errand { reply_to, from, group, mig, sent } => {
                self.on_errand_done(&reply_to, from, group, mig, sent, reply);
            }
            Origin::Index { reply_to, group, number } => {
                // Who asks is told only that another one is to be asked.
                let message = NodeMessage::ReadIndexed { group, number, slot: None };
                self.send_to(&reply_to, Lane::Protocol, &message);
            }
            Origin::Tell => {
                if let Ok(Answer::Master(MasterAnswer::Routes(routes))) = &reply.body {
                    self.take_fresh(routes);
                }
            }
            Origin::Own => {}
        }
    }
}

/// Whether a request that was executed with this error can be executed later all the same, where
/// an earlier attempt comes yet.
fn leaves_no_trace(error: &ErrorReply) -> bool {
    is_of_session(error) || matches!(error, ErrorReply::ResourceExhausted(_))
}

/// Whether a session did not let a request be executed under its stamp.
fn is_of_session(error: &ErrorReply) -> bool {
    matches!(error, ErrorReply::SessionExpired { .. } | ErrorReply::StampTooFar { .. })
}
