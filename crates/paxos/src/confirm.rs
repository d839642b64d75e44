//! Reads by ReadIndex (docs/paxos.md 11.7): a leader may answer from its state once a quorum has
//! said, after the read arrived, that it promised nothing higher.

use std::collections::BTreeSet;

use base::mutant::{self, Mutant};
use base::{Micros, Now, ReplicaId, Slot};

use crate::ballot::Ballot;
use crate::message::{Confirm, ConfirmAck, Message, Why};
use crate::output::{Confirmed, Refusal};
use crate::paxos::Paxos;
use crate::proposer::Role;

/// Names one call of `Paxos::confirm`; unique within one start of the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadTicket(pub u64);

/// The tickets of the present leadership.
///
/// - A ticket is in exactly one of `fresh` and `asked` until it is confirmed or refused.
/// - Every ticket in `asked` came before the question of its round was sent.
#[derive(Debug, Default)]
pub(crate) struct Confirms {
    /// Tickets given out.
    given: u64,
    /// Wait for the next round, with what was chosen when they came.
    fresh: Vec<(ReadTicket, Slot)>,
    /// Wait for the answers of the round under way.
    asked: Vec<(ReadTicket, Slot)>,
    /// The number of the newest round.
    round: u64,
    /// Who answered it, this replica included.
    answers: BTreeSet<ReplicaId>,
    /// When the question was last sent.
    sent_at: Micros,
}

impl Confirms {
    /// Ends the leadership: all tickets that wait.
    pub(crate) fn refuse(&mut self) -> Vec<ReadTicket> {
        let waiting = self.asked.drain(..).chain(self.fresh.drain(..));
        waiting.map(|(ticket, _)| ticket).collect()
    }

    /// How many tickets wait.
    pub(crate) fn count(&self) -> usize {
        self.asked.len() + self.fresh.len()
    }
}

impl Paxos {
    pub(crate) fn take_ticket(&mut self) -> Result<ReadTicket, Refusal> {
        let Role::Leading(leading) = &self.role else {
            return Err(Refusal::NotLeader { leader: self.leader() });
        };
        if self.confirms.count() >= self.options.tickets_max {
            return Err(Refusal::Busy);
        }
        self.confirms.given += 1;
        let ticket = ReadTicket(self.confirms.given);
        // Everything acknowledged before this read is chosen at or below one of the two.
        let slot = self.learner.chosen_upto.max(leading.barrier);
        self.confirms.fresh.push((ticket, slot));
        Ok(ticket)
    }

    /// Starts a round for the tickets that wait for one, unless one is under way: those that come
    /// meanwhile share the next.
    pub(crate) fn ask_confirm(&mut self) {
        let Role::Leading(leading) = &self.role else { return };
        let barrier_chosen = self.learner.chosen_upto >= leading.barrier;
        if !self.confirms.asked.is_empty() || self.confirms.fresh.is_empty() || !barrier_chosen {
            return;
        }
        self.confirms.asked = std::mem::take(&mut self.confirms.fresh);
        self.confirms.round += 1;
        self.confirms.answers = BTreeSet::from([self.options.replica]);
        self.stats.confirm_rounds += 1;
        self.send_confirm();
        self.finish_confirm();
    }

    fn send_confirm(&mut self) {
        let Role::Leading(leading) = &self.role else { return };
        self.confirms.sent_at = self.now;
        let confirm = Confirm { ballot: leading.ballot, round: self.confirms.round };
        for replica in self.members.replicas().filter(|id| leading.followers.contains_key(id)) {
            if !self.confirms.answers.contains(&replica) {
                self.gate.send(replica, Message::Confirm(confirm));
            }
        }
    }

    /// Sends the question of the round under way again when its answers are late.
    pub(crate) fn repeat_confirm(&mut self, now: Now) {
        let late = now.mono.since(self.confirms.sent_at) >= self.election.patience();
        if !self.confirms.asked.is_empty() && late {
            self.send_confirm();
        }
    }

    fn finish_confirm(&mut self) {
        let unasked = mutant::is(Mutant::ReadUnconfirmed);
        if self.members.is_quorum(&self.confirms.answers) || unasked {
            for (ticket, slot) in self.confirms.asked.drain(..) {
                self.output.confirmed.push(Confirmed { ticket, slot });
            }
        }
    }

    pub(crate) fn on_confirm(&mut self, now: Now, from: ReplicaId, confirm: Confirm) {
        let ballot = confirm.ballot;
        if ballot.replica != from || !self.is_voter() {
            return;
        }
        if ballot < self.acceptor.promised {
            return self.reject(from, ballot, Why::Ballot);
        }
        // The answer vouches for no record: a higher promise that a crash takes back was never
        // told to anybody.
        self.election.heard_message(ballot, now.mono);
        let ack = ConfirmAck { ballot, round: confirm.round };
        self.gate.send(from, Message::ConfirmAck(ack));
    }

    pub(crate) fn on_confirm_ack(&mut self, from: ReplicaId, ack: ConfirmAck) {
        let Role::Leading(leading) = &self.role else { return };
        let current: (Ballot, u64) = (leading.ballot, self.confirms.round);
        if (ack.ballot, ack.round) != current || self.confirms.asked.is_empty() {
            return;
        }
        self.confirms.answers.insert(from);
        self.finish_confirm();
    }
}
