//! How the leader of a group hands shards over to another group (`docs/sharding.md` 11.14): it
//! scans them in chunks while it serves, sends what changed since, stops serving when little is
//! left, and lets the other group begin. Every step is an entry of one of the two logs, so that
//! whoever leads next sees in its own state what is to be done, and asks the other group for the
//! rest: nothing in here is needed for safety, and all of it may be forgotten at any time.

use std::collections::{BTreeMap, BTreeSet};

use base::mutant::{self, Mutant};
use base::{Address, CopyId, GroupId, Micros, NodeId, ShardEpoch, ShardId, Version};
use bytes::Bytes;
use kvserver::Command;
use replica_group::GroupStore;
use replica_group::state_machine::EngineError;
use replica_group::turn::{Lane, Level};
use router::{Answer, ErrorReply, HandoffPhase, HandoffState, Reply};

use crate::frame::{NodeMessage, Sender};
use crate::hosted::Hosted;
use crate::node::Node;
use crate::requests::{Origin, Work};

/// What the leaders here remember of the hand-offs they drive.
#[derive(Debug, Default)]
pub(crate) struct Handoffs {
    outgoing: BTreeMap<(GroupId, CopyId), Outgoing>,
    /// Groups whose hand-offs may have a next step.
    due: BTreeSet<GroupId>,
    /// About how long a command takes at each group that is a destination.
    commit: BTreeMap<GroupId, Micros>,
    /// When each group led from here last proposed to delete something.
    garbage_at: BTreeMap<GroupId, Micros>,
    /// The last time that an errand was marked with.
    marked: Micros,
}

/// One hand-off, as the leader of its source drives it.
#[derive(Debug, Default)]
struct Outgoing {
    /// What the destination said last.
    there: Option<HandoffState>,
    /// When the question was asked that it answered last: its leader led then.
    there_at: Micros,
    /// The question that is open, by the time it is marked with.
    asked: Option<Micros>,
    /// The chunks and deltas under way, one of a shard, by the time they are marked with.
    parts: BTreeMap<ShardId, Micros>,
    /// Since when the shards are frozen.
    frozen: Option<Micros>,
    /// How often the destination did not begin in time.
    impatient: u32,
    /// How many parts may be under way, and from when on the next.
    window: usize,
    next_part_at: Micros,
    /// Since when only the freeze is missing.
    ready: Option<Micros>,
    /// When a command was last proposed to the own log.
    proposed: Option<Micros>,
}

/// An answer that takes longer is not waited for.
const ANSWER_TIMEOUT: Micros = Micros::from_millis(300);
/// Nor one to a chunk or delta, which has more to write.
const PART_TIMEOUT: Micros = Micros::from_secs(1);
/// A destination whose leader is not known to have led within this time, or that of two of its
/// commands, gets no freeze.
const CONFIRMED_WITHIN: Micros = Micros::from_millis(200);
/// A freeze waits this long at most for as little to be left as is wished.
const READY_FOR: Micros = Micros::from_secs(1);
/// And this long until what is left goes with one command: clients that write more than can be sent
/// are stopped in the end.
const CATCH_UP_FOR: Micros = Micros::from_secs(30);
/// Chunks and deltas of one hand-off under way at a time, at most.
const PARTS_MAX: usize = 4;
/// A part that takes longer than this has queued behind what clients write, and they behind it:
/// then there is one at a time, and a pause after it that is so many times as long.
const PART_SLOW: Micros = Micros::from_millis(10);
const PART_PAUSE: u64 = 3;
/// How long a destination may take to begin, at least; and how many times as long as its commands
/// take.
const PATIENCE: Micros = Micros::from_millis(250);
const PATIENCE_COMMITS: u64 = 20;
/// The longest that this becomes, by doubling after each failure too.
const PATIENCE_MAX: Micros = Micros::from_secs(8);
/// Pause between two slices of what is deleted.
const GARBAGE_PAUSE: Micros = Micros::from_millis(20);
/// A command in the own log may take so long before it is proposed again.
const OWN_PATIENCE: Micros = Micros::from_millis(500);
/// How long an errand's command may take in the other group's log.
const ERRAND_TIMEOUT: Micros = Micros::from_secs(2);

/// What is to be done next for a hand-off.
enum Step {
    /// Nothing before something happens or time passes.
    Wait,
    /// A command for the own log.
    Own(Command),
    /// A question or a command for the other group, marked with this time.
    Ask(Micros, Option<Command>),
}

impl Node {
    /// Something was applied to a group's state.
    pub(crate) fn handoffs_due(&mut self, group: GroupId) {
        let Some(Hosted::Data(replica)) = self.groups.get_mut(&group) else { return };
        // The routes say so only when the shard master has heard of it, and clients come before.
        for (shard, epoch) in replica.machine_mut().take_gained() {
            self.learn_moved(shard, epoch, group);
        }
        if let Some(Hosted::Data(replica)) = self.groups.get(&group)
            && (!replica.machine().outgoing().is_empty() || self.requests.has_parked(group))
        {
            self.handoffs.due.insert(group);
        }
    }

    /// Takes the next steps of hand-offs where something happened.
    /// False where there were none.
    pub(crate) fn drive_due_handoffs(&mut self) -> bool {
        let due = std::mem::take(&mut self.handoffs.due);
        for group in &due {
            self.drive_handoffs(*group);
            self.wake_parked(*group);
        }
        !due.is_empty()
    }

    /// Takes the next steps of all hand-offs from groups that are led from here.
    pub(crate) fn tick_handoffs(&mut self) {
        let led = self.groups.iter().filter(|(_, hosted)| match hosted {
            Hosted::Data(replica) => {
                replica.paxos().is_leading() && !replica.machine().outgoing().is_empty()
            }
            Hosted::Master(_) => false,
        });
        let led: BTreeSet<GroupId> = led.map(|(group, _)| *group).collect();
        self.handoffs.outgoing.retain(|(group, _), _| led.contains(group));
        for group in led {
            self.drive_handoffs(group);
        }
    }

    fn drive_handoffs(&mut self, group: GroupId) {
        let Some(Hosted::Data(replica)) = self.groups.get(&group) else { return };
        if !replica.paxos().is_leading() {
            return;
        }
        let outgoing = replica.machine().outgoing().to_vec();
        let open: BTreeSet<CopyId> = outgoing.iter().map(|(mig, _)| *mig).collect();
        self.handoffs.outgoing.retain(|(of, mig), _| *of != group || open.contains(mig));
        for (mig, dst) in outgoing {
            // Each step is under way before the next one is asked for.
            loop {
                match self.next_step(group, mig, dst) {
                    Ok(Step::Wait) => break,
                    Ok(Step::Own(command)) => self.propose_own(group, &command),
                    Ok(Step::Ask(mark, command)) => {
                        self.ask_group(group, dst, mig, mark, command.as_ref());
                    }
                    Err(error) => return self.on_store_error(group, &error),
                }
            }
        }
    }

    fn propose_own(&mut self, group: GroupId, command: &Command) {
        let deadline = self.now.mono + ERRAND_TIMEOUT;
        self.start(Origin::Own, Work::Command(group, command.encode()), deadline, 0);
    }

    fn next_step(
        &mut self,
        group: GroupId,
        mig: CopyId,
        dst: GroupId,
    ) -> Result<Step, EngineError> {
        let now = self.now.mono;
        let Some(Hosted::Data(replica)) = self.groups.get(&group) else { return Ok(Step::Wait) };
        let here = replica.machine().handoff(mig);
        let fresh = || Outgoing { window: 1, ..Outgoing::default() };
        let outgoing = self.handoffs.outgoing.entry((group, mig)).or_insert_with(fresh);
        if outgoing.is_unanswered(now) {
            outgoing.asked = None;
            outgoing.parts.clear();
            outgoing.there = None;
            // Who answered last may lead no more, and says nothing then.
            self.requests.forget_leader(dst);
        }
        let own_open = outgoing.proposed.is_some_and(|at| now.since(at) < OWN_PATIENCE);
        match here.phase {
            HandoffPhase::Out if outgoing.asked.is_some() || own_open => Ok(Step::Wait),
            HandoffPhase::Out => match outgoing.there.as_ref().map(|there| there.phase) {
                None => Ok(self.ask(group, mig, None)),
                Some(HandoffPhase::In) => self.copy_step(group, mig, dst, &here),
                Some(HandoffPhase::Refused) => match replica.machine().abort(mig) {
                    Some(command) => {
                        outgoing.proposed = Some(now);
                        Ok(Step::Own(command))
                    }
                    None => Ok(Step::Wait),
                },
                // Another hand-off took its place there: it is to say so for good.
                Some(HandoffPhase::Unknown) => {
                    let refuse = replica.machine().refuse(mig);
                    Ok(self.ask(group, mig, refuse))
                }
                Some(
                    HandoffPhase::Out
                    | HandoffPhase::Frozen
                    | HandoffPhase::Active
                    | HandoffPhase::Moved
                    | HandoffPhase::Owned,
                ) => {
                    outgoing.there = None;
                    Ok(Step::Wait)
                }
            },
            HandoffPhase::Frozen => self.frozen_step(group, mig, dst, own_open),
            HandoffPhase::Unknown
            | HandoffPhase::In
            | HandoffPhase::Active
            | HandoffPhase::Moved
            | HandoffPhase::Owned
            | HandoffPhase::Refused => Ok(Step::Wait),
        }
    }

    /// A question, or a command that is alone on its way.
    fn ask(&mut self, group: GroupId, mig: CopyId, command: Option<Command>) -> Step {
        let mark = self.handoffs.mark(self.now.mono);
        if let Some(outgoing) = self.handoffs.outgoing.get_mut(&(group, mig)) {
            outgoing.asked = Some(mark);
        }
        Step::Ask(mark, command)
    }

    /// A chunk or a delta, beside those of other shards. Where there is none after all, what is
    /// known of the destination is out of date.
    fn send_part(
        &mut self,
        group: GroupId,
        mig: CopyId,
        shard: ShardId,
        command: Option<Command>,
    ) -> Step {
        if command.is_none() {
            return self.ask(group, mig, None);
        }
        let mark = self.handoffs.mark(self.now.mono);
        if let Some(outgoing) = self.handoffs.outgoing.get_mut(&(group, mig)) {
            outgoing.parts.insert(shard, mark);
        }
        Step::Ask(mark, command)
    }

    /// The next chunk, else the next delta, else the freeze.
    fn copy_step(
        &mut self,
        group: GroupId,
        mig: CopyId,
        dst: GroupId,
        here: &HandoffState,
    ) -> Result<Step, EngineError> {
        let now = self.now.mono;
        let commit = self.handoffs.commit.get(&dst).copied().unwrap_or_default();
        let Some(outgoing) = self.handoffs.outgoing.get(&(group, mig)) else {
            return Ok(Step::Wait);
        };
        let Some(there) = outgoing.there.clone() else { return Ok(Step::Wait) };
        let may_scan = outgoing.parts.len() < outgoing.window && now >= outgoing.next_part_at;
        let is_free = |shard: &ShardId| !outgoing.parts.contains_key(shard);
        let mut unscanned = there.shards.iter().filter(|shard| !shard.scan_done).peekable();
        if unscanned.peek().is_some() {
            let Some(next) = unscanned.find(|next| may_scan && is_free(&next.shard)) else {
                return Ok(Step::Wait);
            };
            let (shard, start) = (next.shard, next.cursor.clone().unwrap_or_default());
            let command = self.chunk(group, mig, shard, start)?;
            return Ok(self.send_part(group, mig, shard, command));
        }
        let mut left = Vec::new();
        for source in &here.shards {
            let copied = there.shards.iter().find(|shard| shard.shard == source.shard);
            let from = copied.and_then(|shard| shard.delta_upto).unwrap_or(source.x0);
            if from < source.changes {
                left.push((source.shard, from));
            }
        }
        // What changed meanwhile has to be sent faster than more of it comes.
        let may_send = outgoing.parts.len() < PARTS_MAX;
        let next = left.iter().copied().find(|(shard, _)| may_send && is_free(shard));
        let within = CONFIRMED_WITHIN.max(Micros(2 * commit.0));
        let confirmed = now.since(outgoing.there_at) < within;
        let Some(Hosted::Data(replica)) = self.groups.get(&group) else { return Ok(Step::Wait) };
        let bytes: usize =
            left.iter().map(|(shard, from)| replica.machine().lag_bytes(*shard, *from)).sum();
        let Some(outgoing) = self.handoffs.outgoing.get_mut(&(group, mig)) else {
            return Ok(Step::Wait);
        };
        let ready = *outgoing.ready.get_or_insert(now);
        let waited = now.since(ready);
        let small = bytes <= self.options.handoff_left_bytes
            || bytes <= kvserver::FINAL_BYTES_MAX && waited >= READY_FOR
            || waited >= CATCH_UP_FOR;
        match next {
            Some((shard, from)) if !small => {
                let command = self.delta(group, mig, shard, from)?;
                Ok(self.send_part(group, mig, shard, command))
            }
            // What is under way would come between the freeze and the end of it.
            Some(_) | None if !outgoing.parts.is_empty() => Ok(Step::Wait),
            None if !small => Ok(Step::Wait),
            Some(_) | None if small && confirmed => {
                outgoing.proposed = Some(now);
                Ok(Step::Own(Command::Freeze { mig }))
            }
            Some(_) | None => Ok(self.ask(group, mig, None)),
        }
    }

    fn chunk(
        &mut self,
        group: GroupId,
        mig: CopyId,
        shard: ShardId,
        start: Bytes,
    ) -> Result<Option<Command>, EngineError> {
        let Some(Hosted::Data(replica)) = self.groups.get(&group) else { return Ok(None) };
        let store = GroupStore::of(&mut self.overlay, group, replica.generation());
        replica.machine().chunk(&store, mig, shard, start, self.options.handoff_part_bytes)
    }

    fn delta(
        &mut self,
        group: GroupId,
        mig: CopyId,
        shard: ShardId,
        from: Version,
    ) -> Result<Option<Command>, EngineError> {
        let Some(Hosted::Data(replica)) = self.groups.get(&group) else { return Ok(None) };
        let store = GroupStore::of(&mut self.overlay, group, replica.generation());
        replica.machine().delta(&store, mig, shard, from, self.options.handoff_part_bytes)
    }

    fn refuse(&self, group: GroupId, mig: CopyId) -> Option<Command> {
        match self.groups.get(&group) {
            Some(Hosted::Data(replica)) => replica.machine().refuse(mig),
            Some(Hosted::Master(_)) | None => None,
        }
    }

    /// Nobody serves the shards: the destination is to begin, or to refuse for ever.
    fn frozen_step(
        &mut self,
        group: GroupId,
        mig: CopyId,
        dst: GroupId,
        own_open: bool,
    ) -> Result<Step, EngineError> {
        let now = self.now.mono;
        let commit = self.handoffs.commit.get(&dst).copied().unwrap_or_default();
        let Some(outgoing) = self.handoffs.outgoing.get_mut(&(group, mig)) else {
            return Ok(Step::Wait);
        };
        let first = outgoing.frozen.is_none();
        let frozen = *outgoing.frozen.get_or_insert(now);
        if first {
            // What was under way before counts no more.
            outgoing.asked = None;
            outgoing.parts.clear();
            outgoing.proposed = None;
        } else if outgoing.asked.is_some() || own_open {
            return Ok(Step::Wait);
        }
        let phase = outgoing.there.as_ref().map(|there| there.phase);
        let step = match phase {
            Some(HandoffPhase::Active) => Step::Own(Command::OutDone { mig }),
            Some(HandoffPhase::In)
                if mutant::is(Mutant::UnfreezeUnasked)
                    && now.since(frozen) >= patience(commit, outgoing.impatient) =>
            {
                Step::Own(Command::Unfreeze { mig })
            }
            Some(HandoffPhase::In) if mutant::is(Mutant::GiftUnasked) => {
                Step::Own(Command::OutDone { mig })
            }
            Some(HandoffPhase::Refused) => Step::Own(Command::Unfreeze { mig }),
            Some(
                HandoffPhase::Unknown
                | HandoffPhase::In
                | HandoffPhase::Out
                | HandoffPhase::Frozen
                | HandoffPhase::Moved
                | HandoffPhase::Owned,
            ) => {
                if now.since(frozen) >= patience(commit, outgoing.impatient) {
                    outgoing.impatient += 1;
                    outgoing.frozen = Some(now);
                    let refuse = self.refuse(group, mig);
                    return Ok(self.ask(group, mig, refuse));
                }
                let activate = self.activate(group, mig)?;
                return Ok(self.ask(group, mig, activate));
            }
            None => return Ok(self.ask(group, mig, None)),
        };
        outgoing.proposed = Some(now);
        Ok(step)
    }

    fn activate(&mut self, group: GroupId, mig: CopyId) -> Result<Option<Command>, EngineError> {
        let there = self.handoffs.outgoing.get(&(group, mig)).and_then(|o| o.there.clone());
        let Some(Hosted::Data(replica)) = self.groups.get(&group) else { return Ok(None) };
        let store = GroupStore::of(&mut self.overlay, group, replica.generation());
        replica.machine().activate(&store, mig, there.as_ref())
    }

    /// Asks another group what it has of a hand-off, or to do something for it first. The answer
    /// is marked as the question.
    pub(crate) fn ask_group(
        &mut self,
        from: GroupId,
        to: GroupId,
        mig: CopyId,
        mark: Micros,
        command: Option<&Command>,
    ) {
        let leader = self.leader_hint(to);
        let nodes: Vec<NodeId> = match (leader, self.record.routes.groups.get(&to)) {
            (Some(leader), _) => vec![leader],
            (None, Some(info)) => info.members.iter().map(|(_, node, _)| *node).collect(),
            (None, None) => return,
        };
        // Only who leads answers; a large command is not sent to everybody to find out.
        let command = command.filter(|_| leader.is_some()).map(Command::encode);
        let lane = match &command {
            Some(command) if command.len() > SMALL_BYTES => Lane::Bulk,
            Some(_) | None => Lane::Protocol,
        };
        for node in nodes {
            let message = NodeMessage::Errand {
                reply_to: self.options.peer.clone(),
                from,
                group: to,
                mig,
                sent: mark,
                command: command.clone(),
            };
            if node == self.record.node {
                let sender = self.sender();
                self.on_message(&sender, true, true, message);
            } else {
                self.send(node, lane, &message);
            }
        }
    }

    /// Another group's leader, or the shard master's, asks.
    pub(crate) fn on_errand(
        &mut self,
        reply_to: Address,
        from: GroupId,
        group: GroupId,
        mig: CopyId,
        sent: Micros,
        command: Option<Bytes>,
    ) {
        let leading = self.groups.get(&group).is_some_and(|h| h.paxos().is_leading());
        if !leading || group == GroupId::MASTER {
            return;
        }
        let work = match command {
            None => Work::Inspect(group, mig),
            Some(payload) => match Command::decode(&payload) {
                Ok(command) if command.handoff() == Some(mig) => Work::Command(group, payload),
                Ok(_) | Err(_) => return,
            },
        };
        let origin = Origin::Errand { reply_to, from, group, mig, sent };
        self.start(origin, work, self.now.mono + ERRAND_TIMEOUT, 0);
    }

    /// An errand of another group's leader is done here.
    pub(crate) fn on_errand_done(
        &mut self,
        reply_to: &Address,
        from: GroupId,
        group: GroupId,
        mig: CopyId,
        sent: Micros,
        reply: Reply,
    ) {
        let state = match reply.body {
            Ok(Answer::Handoff(state)) => state,
            Ok(_)
            | Err(
                ErrorReply::Invalid(_)
                | ErrorReply::NotLeader
                | ErrorReply::Moved { .. }
                | ErrorReply::NotReady(_)
                | ErrorReply::ResourceExhausted(_)
                | ErrorReply::SessionExpired { .. }
                | ErrorReply::StampTooFar { .. }
                | ErrorReply::Stale
                | ErrorReply::OutcomeUnknown(_)
                | ErrorReply::WrongCluster { .. }
                | ErrorReply::Refused(_)
                | ErrorReply::Unavailable(_)
                | ErrorReply::Unsupported(_),
            ) => return,
        };
        let message = NodeMessage::ErrandReply { from, group, mig, sent, state };
        if *reply_to == self.options.peer {
            let sender = self.sender();
            self.on_message(&sender, true, true, message);
        } else {
            self.send_to(reply_to, Lane::Protocol, &message);
        }
    }

    /// Another group's leader says what it has of a hand-off.
    pub(crate) fn on_errand_reply(
        &mut self,
        sender: &Sender,
        from: GroupId,
        group: GroupId,
        mig: CopyId,
        sent: Micros,
        state: HandoffState,
    ) {
        self.requests.note_leader(group, sender.node);
        if from == GroupId::MASTER {
            return self.on_migration_state(group, mig, sent, state);
        }
        let Some(outgoing) = self.handoffs.outgoing.get_mut(&(from, mig)) else { return };
        let was_part = match outgoing.take_answer(sent) {
            Answered::Nothing => return,
            Answered::Question => false,
            Answered::Part => true,
        };
        let took = self.now.mono.since(sent);
        if was_part {
            outgoing.pace(self.now.mono, took);
            let commit = self.handoffs.commit.entry(group).or_insert(took);
            *commit = Micros((3 * commit.0 + took.0) / 4);
        }
        let phase = state.phase;
        outgoing.there_at = outgoing.there_at.max(sent);
        outgoing.there = Some(match outgoing.there.take() {
            Some(before) => newer(before, state),
            None => state,
        });
        let frozen = outgoing.frozen.is_some();
        match phase {
            HandoffPhase::Refused if frozen => {
                let text =
                    format!("group {} refused hand-off {} and takes no more of it", group.0, mig.0);
                self.complain(Level::Warn, text);
            }
            HandoffPhase::Active if frozen => self.on_activated(from, group, mig),
            HandoffPhase::Active
            | HandoffPhase::Refused
            | HandoffPhase::Unknown
            | HandoffPhase::In
            | HandoffPhase::Out
            | HandoffPhase::Frozen
            | HandoffPhase::Moved
            | HandoffPhase::Owned => {}
        }
        self.handoffs.due.insert(from);
    }

    /// The destination serves the shards: who waits for them need not wait until the own log says
    /// so too.
    fn on_activated(&mut self, from: GroupId, to: GroupId, mig: CopyId) {
        let Some(Hosted::Data(replica)) = self.groups.get(&from) else { return };
        let here = replica.machine().handoff(mig);
        if here.phase != HandoffPhase::Frozen {
            // The own log says so already, and its epochs are those of the destination.
            return;
        }
        for shard in here.shards {
            self.learn_moved(shard.shard, ShardEpoch(shard.epoch.0 + 1), to);
        }
    }

    /// What must never be, and a person must look into.
    pub(crate) fn tell_alarms(&mut self) {
        let mut alarms = Vec::new();
        for (group, hosted) in &mut self.groups {
            if let Hosted::Data(replica) = hosted {
                let told = replica.machine_mut().take_alarms();
                alarms.extend(told.into_iter().map(|what| format!("group {}: {what}", group.0)));
            }
        }
        for alarm in alarms {
            self.event(Level::Error, alarm);
        }
    }

    /// Leaders delete what is of no use any more, a slice at a time. Of no use is a half-grown copy
    /// too whose hand-off was given up without this group: the routes no longer list it.
    pub(crate) fn tick_garbage(&mut self) {
        let routes = &self.record.routes;
        let is_over = |mig: &&CopyId| {
            **mig < routes.handoff_next && routes.handoffs.iter().all(|h| h.mig != **mig)
        };
        let now = self.now.mono;
        let mut commands = Vec::new();
        for (group, hosted) in &self.groups {
            let Hosted::Data(replica) = hosted else { continue };
            if !replica.paxos().is_leading() || self.requests.has_own(*group) {
                continue;
            }
            let last = self.handoffs.garbage_at.get(group);
            if last.is_some_and(|at| now.since(*at) < GARBAGE_PAUSE) {
                continue;
            }
            let left = replica.machine().incoming().iter().find(is_over);
            let refuse = left.and_then(|mig| replica.machine().refuse_incoming(*mig));
            if let Some(command) = refuse.or_else(|| replica.machine().garbage()) {
                commands.push((*group, command));
            }
        }
        for (group, command) in commands {
            self.handoffs.garbage_at.insert(group, now);
            self.propose_own(group, &command);
        }
    }
}

impl Handoffs {
    /// A time to mark an errand with: the present one, or later by so little that it does not
    /// matter, as no two errands have the same mark.
    fn mark(&mut self, now: Micros) -> Micros {
        self.marked = now.max(self.marked + Micros(1));
        self.marked
    }
}

impl Outgoing {
    fn is_unanswered(&self, now: Micros) -> bool {
        self.asked.is_some_and(|at| now.since(at) >= ANSWER_TIMEOUT)
            || self.parts.values().any(|at| now.since(*at) >= PART_TIMEOUT)
    }

    /// What an answer was waited for; it is no more.
    fn take_answer(&mut self, mark: Micros) -> Answered {
        if self.asked == Some(mark) {
            self.asked = None;
            return Answered::Question;
        }
        let parts = self.parts.len();
        self.parts.retain(|_, of| *of != mark);
        if self.parts.len() < parts { Answered::Part } else { Answered::Nothing }
    }

    /// A part took so long: as long as they are quick more of them travel, and when one is slow
    /// the copying leaves most of the time to others.
    fn pace(&mut self, now: Micros, took: Micros) {
        if took > PART_SLOW {
            self.window = 1;
            self.next_part_at = now + Micros(PART_PAUSE * took.0);
        } else {
            self.window = (self.window + 1).min(PARTS_MAX);
        }
    }
}

/// What an answer was to.
enum Answered {
    Nothing,
    Question,
    Part,
}

/// How long a destination whose commands take so long may take to begin.
fn patience(commit: Micros, impatient: u32) -> Micros {
    let first = Micros(commit.0 * PATIENCE_COMMITS).max(PATIENCE);
    Micros(first.0 << impatient.min(8)).min(PATIENCE_MAX)
}

/// What is known of the destination by two answers, which may have overtaken each other.
fn newer(before: HandoffState, mut after: HandoffState) -> HandoffState {
    match (before.phase, after.phase) {
        (HandoffPhase::Active | HandoffPhase::Refused, HandoffPhase::In) => return before,
        (HandoffPhase::In, HandoffPhase::In) => {}
        _ => return after,
    }
    for shard in &mut after.shards {
        let Some(known) = before.shards.iter().find(|known| known.shard == shard.shard) else {
            continue;
        };
        if (known.scan_done, &known.cursor) > (shard.scan_done, &shard.cursor) {
            (shard.scan_done, shard.cursor) = (known.scan_done, known.cursor.clone());
        }
        shard.delta_upto = shard.delta_upto.max(known.delta_upto);
    }
    after
}

/// A command that is larger travels with the bulk.
const SMALL_BYTES: usize = 16 << 10;
