//! How the leader of a group hands shards over to another group (`docs/sharding.md` 11.14): it
//! scans them in chunks while it serves, sends what changed since, stops serving when little is
//! left, and lets the other group begin. Every step is an entry of one of the two logs, so that
//! whoever leads next sees in its own state what is to be done, and asks the other group for the
//! rest: nothing in here is needed for safety, and all of it may be forgotten at any time.

use std::collections::{BTreeMap, BTreeSet};

use base::{Address, CopyId, GroupId, Micros, NodeId, ShardId, Version};
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
    /// The node that last answered for a group.
    leaders: BTreeMap<GroupId, NodeId>,
}

/// One hand-off, as the leader of its source drives it.
#[derive(Debug, Default)]
struct Outgoing {
    /// What the destination said last.
    there: Option<HandoffState>,
    /// When the question was asked that it answered: its leader led then.
    there_at: Micros,
    /// The question that is open.
    asked: Option<Micros>,
    /// Since when the shards are frozen.
    frozen: Option<Micros>,
    /// How long the destination may take to begin before it is asked to refuse.
    patience: Micros,
    /// Since when only the freeze is missing.
    ready: Option<Micros>,
    /// When a command was last proposed to the own log.
    proposed: Option<Micros>,
}

/// An answer that takes longer is not waited for.
const ANSWER_TIMEOUT: Micros = Micros::from_millis(300);
/// A destination whose leader is not known to have led within this time gets no freeze.
const CONFIRMED_WITHIN: Micros = Micros::from_millis(200);
/// A freeze waits this long at most for less to be left.
const READY_FOR: Micros = Micros::from_secs(1);
/// How long a destination may take to begin, at first.
const PATIENCE: Micros = Micros::from_millis(250);
/// The longest that becomes by doubling.
const PATIENCE_MAX: Micros = Micros::from_secs(4);
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
    /// A question or a command for the other group.
    Ask(Option<Command>),
}

impl Node {
    /// Something was applied to a group's state.
    pub(crate) fn handoffs_due(&mut self, group: GroupId) {
        if let Some(Hosted::Data(replica)) = self.groups.get(&group)
            && !replica.machine().outgoing().is_empty()
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
            match self.next_step(group, mig, dst) {
                Ok(Step::Wait) => {}
                Ok(Step::Own(command)) => self.propose_own(group, &command),
                Ok(Step::Ask(command)) => self.ask_group(group, dst, mig, command.as_ref()),
                Err(error) => return self.fail(format!("group {}: {error}", group.0)),
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
        let fresh = || Outgoing { patience: PATIENCE, ..Outgoing::default() };
        let outgoing = self.handoffs.outgoing.entry((group, mig)).or_insert_with(fresh);
        if outgoing.asked.is_some_and(|at| now.since(at) >= ANSWER_TIMEOUT) {
            outgoing.asked = None;
            outgoing.there = None;
            // Who answered last may lead no more, and says nothing then.
            self.handoffs.leaders.remove(&dst);
        }
        let own_open = outgoing.proposed.is_some_and(|at| now.since(at) < OWN_PATIENCE);
        let step = match here.phase {
            HandoffPhase::Out => {
                if outgoing.asked.is_some() || own_open {
                    return Ok(Step::Wait);
                }
                let Some(there) = &outgoing.there else { return Ok(self.ask(group, mig, None)) };
                match there.phase {
                    HandoffPhase::Refused => match replica.machine().abort(mig) {
                        Some(command) => Step::Own(command),
                        None => Step::Wait,
                    },
                    HandoffPhase::In => return self.copy_step(group, mig, &here),
                    // Another hand-off took its place there: it is to say so for good.
                    HandoffPhase::Unknown => {
                        let refuse = replica.machine().refuse(mig);
                        return Ok(self.ask(group, mig, refuse));
                    }
                    HandoffPhase::Out
                    | HandoffPhase::Frozen
                    | HandoffPhase::Active
                    | HandoffPhase::Moved
                    | HandoffPhase::Owned => {
                        outgoing.there = None;
                        Step::Wait
                    }
                }
            }
            HandoffPhase::Frozen => return self.frozen_step(group, mig, own_open),
            HandoffPhase::Unknown
            | HandoffPhase::In
            | HandoffPhase::Active
            | HandoffPhase::Moved
            | HandoffPhase::Owned
            | HandoffPhase::Refused => Step::Wait,
        };
        if let Step::Own(_) = step {
            outgoing.proposed = Some(now);
        }
        Ok(step)
    }

    fn ask(&mut self, group: GroupId, mig: CopyId, command: Option<Command>) -> Step {
        if let Some(outgoing) = self.handoffs.outgoing.get_mut(&(group, mig)) {
            outgoing.asked = Some(self.now.mono);
        }
        Step::Ask(command)
    }

    /// The next chunk, else the next delta, else the freeze.
    fn copy_step(
        &mut self,
        group: GroupId,
        mig: CopyId,
        here: &HandoffState,
    ) -> Result<Step, EngineError> {
        let now = self.now.mono;
        let Some(outgoing) = self.handoffs.outgoing.get(&(group, mig)) else {
            return Ok(Step::Wait);
        };
        let Some(there) = outgoing.there.clone() else { return Ok(Step::Wait) };
        let confirmed = now.since(outgoing.there_at) < CONFIRMED_WITHIN;
        if let Some(shard) = there.shards.iter().find(|shard| !shard.scan_done) {
            let start = shard.cursor.clone().unwrap_or_default();
            let command = self.chunk(group, mig, shard.shard, start)?;
            return Ok(self.ask(group, mig, command));
        }
        let mut left = Vec::new();
        for source in &here.shards {
            let copied = there.shards.iter().find(|shard| shard.shard == source.shard);
            let from = copied.and_then(|shard| shard.delta_upto).unwrap_or(source.x0);
            if from < source.changes {
                left.push((source.shard, from));
            }
        }
        let Some(Hosted::Data(replica)) = self.groups.get(&group) else { return Ok(Step::Wait) };
        let bytes: usize =
            left.iter().map(|(shard, from)| replica.machine().lag_bytes(*shard, *from)).sum();
        let Some(outgoing) = self.handoffs.outgoing.get_mut(&(group, mig)) else {
            return Ok(Step::Wait);
        };
        let ready = *outgoing.ready.get_or_insert(now);
        let small = bytes <= self.options.handoff_left_bytes || now.since(ready) >= READY_FOR;
        if small && confirmed {
            outgoing.proposed = Some(now);
            return Ok(Step::Own(Command::Freeze { mig }));
        }
        if !small && let Some((shard, from)) = left.first().copied() {
            let command = self.delta(group, mig, shard, from)?;
            return Ok(self.ask(group, mig, command));
        }
        Ok(self.ask(group, mig, None))
    }

    fn chunk(
        &mut self,
        group: GroupId,
        mig: CopyId,
        shard: ShardId,
        start: Bytes,
    ) -> Result<Option<Command>, EngineError> {
        let Some(Hosted::Data(replica)) = self.groups.get(&group) else { return Ok(None) };
        let store = GroupStore::new(&mut self.overlay, group);
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
        let store = GroupStore::new(&mut self.overlay, group);
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
        own_open: bool,
    ) -> Result<Step, EngineError> {
        let now = self.now.mono;
        let Some(outgoing) = self.handoffs.outgoing.get_mut(&(group, mig)) else {
            return Ok(Step::Wait);
        };
        let first = outgoing.frozen.is_none();
        let frozen = *outgoing.frozen.get_or_insert(now);
        if first {
            // What was under way before counts no more.
            outgoing.asked = None;
            outgoing.proposed = None;
        } else if outgoing.asked.is_some() || own_open {
            return Ok(Step::Wait);
        }
        let phase = outgoing.there.as_ref().map(|there| there.phase);
        let step = match phase {
            Some(HandoffPhase::Active) => Step::Own(Command::OutDone { mig }),
            Some(HandoffPhase::Refused) => Step::Own(Command::Unfreeze { mig }),
            Some(
                HandoffPhase::Unknown
                | HandoffPhase::In
                | HandoffPhase::Out
                | HandoffPhase::Frozen
                | HandoffPhase::Moved
                | HandoffPhase::Owned,
            ) => {
                if now.since(frozen) >= outgoing.patience {
                    outgoing.patience = Micros(outgoing.patience.0 * 2).min(PATIENCE_MAX);
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
        let store = GroupStore::new(&mut self.overlay, group);
        replica.machine().activate(&store, mig, there.as_ref())
    }

    /// Asks another group what it has of a hand-off, or to do something for it first.
    pub(crate) fn ask_group(
        &mut self,
        from: GroupId,
        to: GroupId,
        mig: CopyId,
        command: Option<&Command>,
    ) {
        let leader = match self.groups.get(&to) {
            Some(hosted) => hosted.leader_node(),
            None => self.handoffs.leaders.get(&to).copied(),
        };
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
                sent: self.now.mono,
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
        self.handoffs.leaders.insert(group, sender.node);
        if from == GroupId::MASTER {
            return self.on_migration_state(group, mig, sent, state);
        }
        let Some(outgoing) = self.handoffs.outgoing.get_mut(&(from, mig)) else { return };
        if outgoing.asked != Some(sent) {
            return;
        }
        outgoing.asked = None;
        outgoing.there_at = sent;
        if state.phase == HandoffPhase::Refused && outgoing.frozen.is_some() {
            let text =
                format!("group {} refused hand-off {} and takes no more of it", group.0, mig.0);
            self.complain(Level::Warn, text);
        }
        if let Some(outgoing) = self.handoffs.outgoing.get_mut(&(from, mig)) {
            outgoing.there = Some(state);
        }
        self.handoffs.due.insert(from);
    }

    /// A group gave no answer: who leads it is asked of all its replicas again.
    pub(crate) fn forget_group_leader(&mut self, group: GroupId) {
        self.handoffs.leaders.remove(&group);
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

    /// Leaders delete what is of no use any more, a slice at a time.
    pub(crate) fn tick_garbage(&mut self) {
        let mut slices = Vec::new();
        for (group, hosted) in &self.groups {
            if let Hosted::Data(replica) = hosted
                && replica.paxos().is_leading()
                && !self.requests.has_own(*group)
                && let Some(command) = replica.machine().garbage()
            {
                slices.push((*group, command));
            }
        }
        for (group, command) in slices {
            self.propose_own(group, &command);
        }
    }
}

/// A command that is larger travels with the bulk.
const SMALL_BYTES: usize = 16 << 10;
