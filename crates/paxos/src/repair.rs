//! Damage to this replica's own log (docs/paxos.md 11.3).
//!
//! An entry whose record cannot be read is *faulty*. That a value was accepted is still known, and
//! reported, so that nobody concludes that it was not (I27); it is not counted as a vote again, nor
//! as held. Once the slot is known to be chosen, its value is asked from others; a leader's proposal
//! for the slot mends it too.
//!
//! A replica is *quarantined* where even that is not known: then it may have promised or accepted
//! anything. It takes no part in votes, but learns what is chosen, and serves what it holds.

use base::limits::CATCH_UP_BYTES_MAX;
use base::mutant::{self, Mutant};
use base::{Lsn, Micros, Now, Slot};

use crate::ballot::Ballot;
use crate::message::{CatchUpRequest, Item, Message};
use crate::paxos::Paxos;
use crate::proposer::Role;
use crate::record::Record;

/// An unanswered question for damaged slots is asked again after this time.
const ASK_AGAIN: Micros = Micros::from_millis(200);

/// After so many questions in vain a leader leads no more, so that the slot is recovered.
const LEAD_ANEW: u32 = 4;

/// The mending of damaged slots.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    asked_at: Option<Micros>,
    /// How often in a row nobody had what was asked for.
    in_vain: u32,
    /// Somebody has forgotten the slots up to here.
    forgotten_upto: Slot,
    /// Records whose damage is mended, to be said in the next output.
    pub(crate) mended: Vec<(Lsn, Lsn)>,
}

/// Whether the answer to a message would vouch for what this replica promised or accepted.
pub(crate) fn vouches(message: &Message) -> bool {
    match message {
        Message::Prepare(_) | Message::Confirm(_) | Message::TransferGo(_) => true,
        Message::Promise(_)
        | Message::Reject(_)
        | Message::Accept(_)
        | Message::Accepted(_)
        | Message::Chosen(_)
        | Message::Fetch(_)
        | Message::Values(_)
        | Message::CatchUpRequest(_)
        | Message::CatchUp(_)
        | Message::ConfirmAck(_)
        | Message::EpochInfo(_)
        | Message::Release(_) => false,
    }
}

impl Paxos {
    /// The records from `first` to `last` of the write-ahead log turned out to be damaged. Values
    /// of this replica that are in memory are written anew, the others are asked from its peers.
    pub fn damaged(&mut self, now: Now, first: Lsn, last: Lsn) {
        self.at(now);
        for slot in self.log.damage(first, last) {
            if let Some(value) = self.log.value(slot).cloned() {
                let ballot = self.log.ballot(slot);
                self.write_entry(slot, ballot, value);
            }
        }
        self.repairs.asked_at = None;
        self.evaluate(now);
    }

    /// No slot is damaged any more, and everything else is restated in the next output: what the
    /// records from `first` to `last` of the write-ahead log said is no longer needed.
    pub fn mended(&mut self, first: Lsn, last: Lsn) {
        if self.log.faulty().is_empty() {
            self.repairs.mended.push((first, last));
            self.restate();
        }
    }

    /// This replica may have forgotten what it promised or accepted: it never votes again.
    pub fn quarantine(&mut self) {
        if !self.quarantined && !mutant::is(Mutant::QuarantineSkipped) {
            self.step_down();
            self.quarantined = true;
            self.append(Record::Quarantine);
        }
    }

    /// The store does not hold what this replica executed: it votes on, and does not lead until its
    /// state was copied from another.
    pub fn lose_store(&mut self) {
        if !self.store_lost {
            self.step_down();
            self.store_lost = true;
            self.append(Record::StoreLost);
        }
    }

    /// Whether the store does not hold what this replica executed.
    pub fn is_store_lost(&self) -> bool {
        self.store_lost
    }

    /// Whether this replica must not lead: it could not promise, or not execute.
    pub(crate) fn is_unfit_to_lead(&self) -> bool {
        self.quarantined || self.store_lost || self.is_installing() || self.is_beyond_repair()
    }

    /// Whether this replica never votes again.
    pub fn is_quarantined(&self) -> bool {
        self.quarantined
    }

    /// How many slots of the log cannot be read here.
    pub fn faulty_slots(&self) -> u64 {
        self.log.faulty().len() as u64
    }

    /// How many slots were mended since the start.
    pub fn repaired_slots(&self) -> u64 {
        self.log.mended()
    }

    /// Whether this replica lacks what it has to execute next, and somebody has forgotten it. Mostly
    /// only a copy of the state helps; until it has either it must not lead.
    pub fn is_beyond_repair(&self) -> bool {
        let next = self.learner.emitted_upto.next();
        next <= self.repairs.forgotten_upto && self.log.is_unreadable(next)
    }

    /// Somebody has forgotten the slots up to here.
    pub(crate) fn learn_forgotten(&mut self, upto: Slot) {
        self.repairs.forgotten_upto = self.repairs.forgotten_upto.max(upto);
        if self.is_beyond_repair() && matches!(self.role, Role::Preparing(_) | Role::Leading(_)) {
            self.step_down();
        }
    }

    /// The slots that every voter had and knew to be chosen, as far as known here. A quarantined
    /// replica does not know.
    pub(crate) fn all_upto(&self) -> Slot {
        if self.quarantined { Slot::ZERO } else { self.learner.truncate_upto }
    }

    /// Asks somebody for the first chosen slots that are damaged here.
    pub(crate) fn tend_repairs(&mut self, now: Now) {
        let Some(first) = self.log.faulty().first().copied() else { return };
        let early = self.repairs.asked_at.is_some_and(|at| now.mono.since(at) < ASK_AGAIN);
        if early || first > self.learner.chosen_upto {
            return;
        }
        self.repairs.in_vain += 1;
        self.repairs.asked_at = Some(now.mono);
        if self.repairs.in_vain.is_multiple_of(LEAD_ANEW) && self.is_lacked(first) {
            // Whoever has the slot does not know that it is chosen: phase 1 tells.
            return self.step_down();
        }
        let Some(source) = self.election.catch_up_source(first.prev()) else { return };
        let chosen_upto = first.prev();
        let request = CatchUpRequest { chosen_upto, bytes_max: CATCH_UP_BYTES_MAX as u32 };
        self.gate.send(source, Message::CatchUpRequest(request));
    }

    /// Whether this replica leads, and a follower lacks the slot.
    fn is_lacked(&self, slot: Slot) -> bool {
        let Role::Leading(leading) = &self.role else { return false };
        let mut connected =
            leading.followers.keys().filter(|replica| self.election.is_connected(**replica));
        connected.any(|replica| self.election.have_upto(*replica) < slot)
    }

    /// Takes chosen values for damaged slots. The value here is the chosen one too, under whatever
    /// ballot, so the higher of both ballots goes with it.
    pub(crate) fn repair(&mut self, now: Now, items: &[Item]) {
        let before = self.log.mended();
        for item in items {
            let chosen = item.slot <= self.learner.chosen_upto && item.ballot != Ballot::ZERO;
            if !chosen || !self.log.faulty().contains(&item.slot) {
                continue;
            }
            let ballot = item.ballot.max(self.log.ballot(item.slot));
            if ballot > self.acceptor.promised {
                self.step_down();
                self.acceptor.promise(ballot);
            }
            self.write_entry(item.slot, ballot, item.value.clone());
        }
        if self.log.mended() > before {
            // It may be known only now that an epoch is over.
            self.pass_marks(now);
            self.repairs.asked_at = None;
            self.repairs.in_vain = 0;
            self.tend_repairs(now);
        }
    }
}
