//! The acceptor: promises and votes (docs/paxos.md 11.5).

use base::limits::{ACCEPT_BYTES_MAX, ACCEPT_SLOTS_MAX, WINDOW_SLOTS_MAX};
use base::mutant::{self, Mutant};
use base::{Lsn, Now, ReplicaId, Slot};

use crate::ballot::Ballot;
use crate::gate::PENDING;
use crate::lease::Grant;
use crate::message::{
    Accept, Accepted, Chosen, Item, Message, Prepare, Promise, Reject, Run, SACK_RANGES_MAX,
    SlotRange, Why,
};
use crate::paxos::Paxos;
use crate::record::Record;

/// An acceptor takes values up to so many slots above its own chosen prefix. A leader's window
/// counts from the leader's prefix, which is ahead of this one; what lies beyond waits until this
/// replica has caught up, so that no message can make the log jump.
pub(crate) const AHEAD_SLOTS_MAX: u64 = 4 * WINDOW_SLOTS_MAX;

/// What a replica promised, and its votes for the present leader.
#[derive(Debug, Default)]
pub(crate) struct Acceptor {
    /// The highest ballot promised, promises implied by accepted entries included.
    pub(crate) promised: Ballot,
    /// The record that makes the promise durable.
    pub(crate) promised_at: Lsn,
    /// The highest promise that is durable.
    pub(crate) promised_durable: Ballot,
    /// The votes for the leader of the promised ballot, once that leader has shown its base.
    pub(crate) stream: Option<Stream>,
}

/// The votes of this replica for one leader.
///
/// - The leader's ballot is the promised one.
/// - `acc_upto` covers only durable slots, and never goes back.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The leader's ballot.
    pub(crate) ballot: Ballot,
    /// The slots from `base` to here are accepted under the ballot, or known to be chosen, and
    /// durable.
    pub(crate) acc_upto: Slot,
    /// The highest slot accepted under the ballot, durable or not.
    pub(crate) top: Slot,
    /// The leader has not been told of everything that it sent.
    pub(crate) owed: bool,
    /// An answer is due in the next output.
    pub(crate) due: bool,
}

impl Acceptor {
    /// Raises the promise; the record that carries it is in the making.
    pub(crate) fn promise(&mut self, ballot: Ballot) {
        assert!(ballot > self.promised, "{ballot} after the promise of {}", self.promised);
        self.promised = ballot;
        self.promised_at = PENDING;
        self.stream = None;
    }

    /// Records up to `durable` are on the disk.
    pub(crate) fn persisted(&mut self, durable: Lsn) {
        if self.promised_at <= durable {
            self.promised_durable = self.promised;
        }
    }

    /// Whether the promise is on the disk.
    pub(crate) fn is_durable(&self) -> bool {
        self.promised_durable == self.promised
    }
}

impl Paxos {
    /// Raises the promise. What was granted was granted to the leader of the old one.
    pub(crate) fn promise(&mut self, ballot: Ballot) {
        self.acceptor.promise(ballot);
        self.grant = Grant::default();
    }

    pub(crate) fn on_prepare(&mut self, now: Now, from: ReplicaId, prepare: &Prepare) {
        let ballot = prepare.ballot;
        if ballot.replica != from {
            return;
        }
        if !self.is_voter() {
            return self.reject(from, ballot, Why::NotVoter);
        }
        if ballot < self.acceptor.promised {
            return self.reject(from, ballot, Why::Ballot);
        }
        if prepare.probe {
            if self.refuses_probe(now, from) {
                return self.reject(from, ballot, Why::Leader);
            }
            if let Some(wait) = self.bound_towards(now, prepare) {
                return self.reject(from, ballot, Why::Grant(wait));
            }
            let promise = self.promise_message(prepare);
            return self.gate.send(from, Message::Promise(promise));
        }
        if ballot > self.acceptor.promised {
            if let Some(wait) = self.bound_towards(now, prepare) {
                return self.reject(from, ballot, Why::Grant(wait));
            }
            self.step_down();
            self.promise(ballot);
            self.append(Record::Promise { ballot });
        }
        self.election.promised_to_other(now.mono);
        let promise = self.promise_message(prepare);
        let unsynced = mutant::is(Mutant::PromiseUnsynced);
        let after = if unsynced { Lsn::ZERO } else { self.newest_record() };
        self.gate.send_after(after, from, Message::Promise(promise));
    }

    /// The answer to a `Prepare`, as of now.
    fn promise_message(&self, prepare: &Prepare) -> Promise {
        let runs = match prepare.probe || mutant::is(Mutant::PromiseDenies) {
            true => Vec::new(),
            false => self.log.runs(prepare.chosen_upto),
        };
        let mut values = Vec::new();
        let mut bytes = 0;
        for item in runs.iter().flat_map(|run| self.values_of(run)) {
            if holds(&prepare.runs, item.slot, item.ballot) {
                continue;
            }
            bytes += item.value.weight();
            if bytes > ACCEPT_BYTES_MAX && !values.is_empty() {
                break;
            }
            values.push(item);
        }
        Promise {
            ballot: prepare.ballot,
            probe: prepare.probe,
            chosen_upto: self.learner.chosen_upto,
            truncated_upto: self.log.truncated_upto(),
            runs,
            values,
            all_upto: self.all_upto(),
        }
    }

    fn values_of(&self, run: &Run) -> impl Iterator<Item = Item> + '_ {
        let ballot = run.ballot;
        (run.first.0..=run.last.0).map(Slot).filter_map(move |slot| {
            self.log.value(slot).map(|value| Item { slot, ballot, value: value.clone() })
        })
    }

    pub(crate) fn on_accept(&mut self, now: Now, from: ReplicaId, accept: Accept) {
        let ballot = accept.ballot;
        let count = accept.values.len();
        let placed = is_slot(accept.first) && is_slot(accept.base);
        if ballot.replica != from {
            return;
        }
        if count > ACCEPT_SLOTS_MAX || !placed {
            return;
        }
        if ballot < self.acceptor.promised && !mutant::is(Mutant::OldBallotAccepted) {
            return self.reject(from, ballot, Why::Ballot);
        }
        self.election.heard_message(ballot, now.mono);
        let promises = ballot > self.acceptor.promised;
        if promises {
            // A leader has the promises of a quorum, which came when every lease before was over.
            self.step_down();
            self.promise(ballot);
        }
        let base = accept.base;
        self.acceptor.stream.get_or_insert(Stream {
            ballot,
            acc_upto: base.prev(),
            top: base.prev(),
            owed: false,
            due: false,
        });
        let (chosen_upto, truncate_upto) = (accept.chosen_upto, accept.truncate_upto);
        let wrote = self.accept_values(accept);
        if promises && !wrote {
            self.append(Record::Promise { ballot });
        }
        self.learn(now, ballot, base, chosen_upto);
        self.learn_truncated(now, truncate_upto);
        self.advance_votes();
        if let Some(stream) = &mut self.acceptor.stream {
            stream.owed |= wrote;
            stream.due |= !wrote;
        }
    }

    /// Accepts what is new among the values; tells whether anything was.
    fn accept_values(&mut self, accept: Accept) -> bool {
        let ballot = accept.ballot;
        let highest = Slot(self.learner.chosen_upto.0 + AHEAD_SLOTS_MAX);
        let mut wrote = false;
        for (slot, value) in (accept.first.0..).map(Slot).zip(accept.values) {
            let held = slot <= self.learner.chosen_upto || self.log.ballot(slot) == ballot;
            let known = held && !self.log.is_unreadable(slot);
            // The next slot of the prefix is always taken: it is what makes room.
            let room = slot == self.learner.chosen_upto.next() || self.has_room();
            if known || slot > highest || !room {
                continue;
            }
            self.write_entry(slot, ballot, value);
            if let Some(stream) = &mut self.acceptor.stream {
                stream.top = stream.top.max(slot);
            }
            wrote = true;
        }
        wrote
    }

    /// Whether the values that wait for the disk leave room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.log.tail_bytes() <= 2 * self.options.tail_bytes_max
    }

    pub(crate) fn on_chosen(&mut self, now: Now, from: ReplicaId, chosen: Chosen) {
        let ballot = chosen.ballot;
        if ballot.replica != from || !is_slot(chosen.base) {
            return;
        }
        if ballot < self.acceptor.promised {
            return self.reject(from, ballot, Why::Ballot);
        }
        self.election.heard_message(ballot, now.mono);
        self.learn(now, ballot, chosen.base, chosen.chosen_upto);
        self.learn_truncated(now, chosen.truncate_upto);
        self.advance_votes();
        if let Some(stream) = &mut self.acceptor.stream
            && stream.ballot == ballot
        {
            stream.due = true;
        }
    }

    /// Moves the votes on over what has become durable, and what is known to be chosen and is.
    pub(crate) fn advance_votes(&mut self) {
        let durable = self.gate.durable();
        let Some(stream) = &mut self.acceptor.stream else { return };
        let before = stream.acc_upto;
        stream.acc_upto = stream.acc_upto.max(self.learner.have_upto);
        loop {
            let slot = stream.acc_upto.next();
            let Some(entry) = self.log.entry(slot) else { break };
            let waits = entry.lsn > durable && !mutant::is(Mutant::VoteUnsynced);
            if entry.ballot != stream.ballot || waits || entry.faulty {
                break;
            }
            stream.acc_upto = slot;
        }
        stream.top = stream.top.max(stream.acc_upto);
        if stream.owed {
            // Behind a gap the ranges may have grown even where the prefix has not.
            let next = stream.acc_upto.next();
            let gap = self.log.ballot(next) != stream.ballot;
            stream.due |= stream.acc_upto > before || gap;
            // What closes a gap is written after what lies behind it.
            let written = self.log.is_durable(stream.top, durable) && gap;
            stream.owed = stream.top > stream.acc_upto && !written;
        }
    }

    /// Puts the answer that is due to the leader into the output: what is durable by now.
    pub(crate) fn answer_leader(&mut self) {
        let durable = self.gate.durable();
        let Some(stream) = &mut self.acceptor.stream else { return };
        if !std::mem::take(&mut stream.due) || stream.ballot.replica == self.options.replica {
            return;
        }
        let mut sack: Vec<SlotRange> = Vec::new();
        if self.log.ballot(stream.acc_upto.next()) != stream.ballot {
            for slot in (stream.acc_upto.0 + 2..=stream.top.0).map(Slot) {
                let voted = self.log.ballot(slot) == stream.ballot;
                if !voted || !self.log.is_durable(slot, durable) {
                    continue;
                }
                if let Some(range) = sack.last_mut()
                    && range.last.next() == slot
                {
                    range.last = slot;
                } else if sack.len() < SACK_RANGES_MAX {
                    sack.push(SlotRange { first: slot, last: slot });
                } else {
                    break;
                }
            }
        }
        let mut acc_upto = stream.acc_upto;
        if self.quarantined {
            // What is known to be chosen needs no vote, and no other is given.
            sack.clear();
            acc_upto = self.learner.have_upto;
        }
        let accepted = Accepted {
            ballot: stream.ballot,
            acc_upto,
            sack,
            have_upto: self.learner.have_upto,
            truncate_upto: self.learner.truncate_upto,
        };
        let (after, leader) = (self.acceptor.promised_at, stream.ballot.replica);
        self.gate.send_after(after, leader, Message::Accepted(accepted));
    }

    /// Refuses a message, resting on the promise.
    pub(crate) fn reject(&mut self, to: ReplicaId, ballot: Ballot, why: Why) {
        self.stats.rejects += 1;
        let reject = Reject { ballot, promised: self.acceptor.promised, why };
        self.gate.send_after(self.acceptor.promised_at, to, Message::Reject(reject));
    }
}

/// Whether this is a slot that a log could ever reach; arithmetic on such slots does not overflow.
fn is_slot(slot: Slot) -> bool {
    (1..1 << 62).contains(&slot.0)
}

/// Whether the runs, which are sorted, have this slot under this ballot.
fn holds(runs: &[Run], slot: Slot, ballot: Ballot) -> bool {
    let at = runs.partition_point(|run| run.last < slot);
    runs.get(at).is_some_and(|run| run.first <= slot && run.ballot == ballot && !run.faulty)
}
