//! What a replica does that is behind what the others keep of the log, or whose store is lost: its
//! caller puts a copy of another replica's state in place (docs/paxos.md 11.11), and the log goes
//! on behind it.

use base::{Lsn, Now, ReplicaId, Slot};

use crate::epoch::Standing;
use crate::gate::PENDING;
use crate::paxos::Paxos;
use crate::proposer::Role;
use crate::record::Record;

/// How far the copy of another replica's state is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Installing {
    /// There is none.
    #[default]
    No,
    /// It is about to become the state: nothing is handed out.
    Held,
    /// It is the state; the record that says so is under way.
    Recorded {
        /// The slot that it stands at.
        slot: Slot,
        /// The record.
        at: Lsn,
    },
}

impl Paxos {
    /// The lowest slot at which a copy of another replica's state is of use, if this replica needs
    /// one: its store is lost, or the others have forgotten what it needs next.
    pub fn needs_copy(&self) -> Option<Slot> {
        let emitted_upto = self.learner.emitted_upto;
        if self.installing != Installing::No {
            return None;
        }
        if self.store_lost {
            return Some(emitted_upto.max(self.log.truncated_upto()));
        }
        if matches!(self.role, Role::Preparing(_) | Role::Leading(_)) {
            return None;
        }
        if self.skippable().is_some() {
            return None;
        }
        let next = self.lacking();
        self.election.is_forgotten(next).then(|| next.max(emitted_upto.next()))
    }

    /// The slot that this replica needs next: its value, or that it is chosen.
    fn lacking(&self) -> Slot {
        let (execute, chosen_upto) = (self.learner.emitted_upto.next(), self.learner.chosen_upto);
        let unreadable = execute <= chosen_upto && self.log.is_unreadable(execute);
        if unreadable { execute } else { chosen_upto.next() }
    }

    /// Whether a copy that was needed, of use from `least` on, is needed no more. Where no connected
    /// replica has what is lacking, and while this one is a candidate, nothing says so, and what
    /// came of the copy is worth keeping.
    pub fn needs_no_copy(&self, least: Slot) -> bool {
        if self.needs_copy().is_some() {
            return false;
        }
        let lacking = self.lacking();
        let has = lacking.max(self.learner.emitted_upto.next()) > least;
        let leads = matches!(self.role, Role::Leading(_));
        let other_way = self.installing != Installing::No || self.skippable().is_some();
        let candidate = matches!(self.role, Role::Preparing(_));
        has || leads || other_way || !candidate && !self.election.is_had_by_none(lacking)
    }

    /// The slot up to which the store has executed the log, where that is more than the log knows to
    /// be chosen, and the others have forgotten what lies between. The log may then go on from there.
    pub fn skippable(&self) -> Option<Slot> {
        let (emitted_upto, chosen_upto) = (self.learner.emitted_upto, self.learner.chosen_upto);
        let follows = !matches!(self.role, Role::Preparing(_) | Role::Leading(_));
        let idle = self.installing == Installing::No && follows && !self.store_lost;
        let skips = idle && emitted_upto > chosen_upto;
        (skips && self.election.is_forgotten(chosen_upto.next())).then_some(emitted_upto)
    }

    /// Whoever lacks slots up to here cannot have all of them from this replica: they are forgotten,
    /// or executed and damaged.
    pub(crate) fn serves_behind(&self) -> Slot {
        let executed = self.log.faulty().range(..=self.learner.emitted_upto);
        let damaged = executed.rev().copied().find(|slot| self.log.is_unreadable(*slot));
        self.log.truncated_upto().max(damaged.unwrap_or_default())
    }

    /// The replicas whose state is known to stand at this slot or behind, those that do not lead
    /// first. They may refuse.
    pub fn copy_sources(&self, least: Slot) -> Vec<ReplicaId> {
        let leader = self.leader();
        let mut sources = self.election.holders(least);
        sources.sort_by_key(|replica| (leader == Some(*replica), *replica));
        sources
    }

    /// What a replica durably has of the chosen prefix, as far as it is known here.
    pub fn have_of(&self, replica: ReplicaId) -> Slot {
        self.election.have_upto(replica)
    }

    /// From now on nothing is handed out as chosen: the state is about to be replaced.
    pub fn hold(&mut self) {
        if self.installing == Installing::No {
            self.step_down();
            self.installing = Installing::Held;
        }
    }

    /// The state is not replaced after all.
    pub fn unhold(&mut self) {
        if self.installing == Installing::Held {
            self.installing = Installing::No;
        }
    }

    /// Whether the state is being replaced.
    pub fn is_installing(&self) -> bool {
        self.installing != Installing::No
    }

    /// The store durably has the effects of all slots up to this one, and of none behind it. The
    /// replica was held. When the record of it is durable, the log goes on from here. What the copy
    /// says of epochs the store has too.
    pub fn install(&mut self, slot: Slot, standing: Option<Standing>) {
        assert!(self.installing == Installing::Held, "the state is replaced while it is in use");
        assert!(slot >= self.learner.emitted_upto, "{slot} was executed before");
        self.store_lost = false;
        self.epochs.copied = standing;
        self.append(Record::Snapshot { slot });
        self.installing = Installing::Recorded { slot, at: PENDING };
    }

    /// An output took the records, the last of them to this position.
    pub(crate) fn place_install(&mut self, last: Lsn) {
        if let Installing::Recorded { at, .. } = &mut self.installing
            && *at == PENDING
        {
            *at = last;
        }
    }

    /// Goes on behind the copy once its record is durable.
    pub(crate) fn finish_install(&mut self, now: Now) {
        let Installing::Recorded { slot, at } = self.installing else { return };
        if at > self.gate.durable() {
            return;
        }
        self.step_down();
        self.installing = Installing::No;
        self.log.forget(slot);
        self.installed(now, slot);
        if let Some(standing) = self.epochs.copied.take() {
            self.adopt(now, standing);
        }
        self.advance_have();
        self.learn_more(now);
        self.advance_votes();
    }

    /// The last slot such that those behind it weigh no more than so many bytes, and are not more.
    pub fn log_keeping(&self, bytes: usize, slots: u64) -> Slot {
        self.log.keeping(bytes, slots)
    }

    /// The weight of all slots that are not forgotten.
    pub fn log_bytes(&self) -> usize {
        self.log.bytes()
    }

    /// The last slot whose record lies below this position of the write-ahead log.
    pub fn log_below(&self, lsn: Lsn) -> Slot {
        self.log.below(lsn)
    }
}
