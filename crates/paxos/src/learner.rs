//! The learner: what is chosen, in order, and catching up with those who know more
//! (docs/paxos.md 11.5 step 5, 11.11).

use std::collections::BTreeMap;

use base::limits::CATCH_UP_BYTES_MAX;
use base::mutant::{self, Mutant};
use base::{Micros, Now, Slot};

use crate::ballot::Ballot;
use crate::loader::Purpose;
use crate::message::{CatchUp, CatchUpRequest, Message, Value};
use crate::output;
use crate::paxos::Paxos;
use crate::proposer::Role;
use crate::record::Record;

/// What a replica knows to be chosen.
///
/// - `have_upto <= chosen_upto`, and neither goes back (I8).
/// - Every slot of the chosen prefix that is not forgotten holds the chosen value, under a ballot
///   not below the one that chose it.
#[derive(Debug, Default)]
pub(crate) struct Learner {
    /// The prefix known to be chosen, and held.
    pub(crate) chosen_upto: Slot,
    /// The part of it that is durable here.
    pub(crate) have_upto: Slot,
    /// The part of it that was handed out, or that the store had at the start.
    pub(crate) emitted_upto: Slot,
    /// What the store durably has. A slot of it that is damaged in the log is not lacked.
    stored_upto: Slot,
    /// Every voter has this prefix, as far as the leader announced it or others said.
    pub(crate) truncate_upto: Slot,
    /// Values read back for handing out.
    pub(crate) read_back: BTreeMap<Slot, Value>,
    /// The newest announcement of a leader: its ballot, its base and its chosen prefix.
    announced: Option<(Ballot, Slot, Slot)>,
    /// Somebody knows this prefix to be chosen.
    target: Slot,
    /// When the prefix last grew, or was last not behind.
    progress_at: Micros,
    /// The request for chosen slots that is under way: when it was sent.
    asked_at: Option<Micros>,
    /// The chosen prefix of the last hint on the disk.
    hinted_upto: Slot,
    /// Bytes chosen since then.
    hint_bytes: usize,
    /// When that hint was written.
    hinted_at: Micros,
}

/// A hint of the chosen prefix is written at most this often in quiet times.
const HINT_INTERVAL: Micros = Micros::from_secs(1);
/// Under load a hint goes along with other records after so many bytes, or slots.
const HINT_BYTES: usize = 4 << 20;
const HINT_SLOTS: u64 = 4_096;
/// Values are read back for handing out in batches of at most so many slots.
const READ_BACK_SLOTS: u64 = 256;
/// An unanswered request for chosen slots is sent again after this time.
const CATCH_UP_TIMEOUT: Micros = Micros::from_millis(200);

impl Learner {
    /// The learner of a replica that starts with these facts.
    pub(crate) fn new(chosen_upto: Slot, have_upto: Slot, applied: Slot) -> Learner {
        Learner {
            chosen_upto,
            have_upto,
            emitted_upto: applied,
            stored_upto: applied,
            truncate_upto: Slot::ZERO,
            target: chosen_upto,
            hinted_upto: chosen_upto,
            ..Learner::default()
        }
    }
}

impl Learner {
    /// The epoch is over: its leaders announce nothing any more.
    pub(crate) fn forget_announced(&mut self) {
        self.announced = None;
    }

    /// Whether no request is under way; one is from now on.
    pub(crate) fn may_ask(&mut self, now: Micros) -> bool {
        let may = self.asked_at.is_none_or(|at| now.since(at) >= CATCH_UP_TIMEOUT);
        if may {
            self.asked_at = Some(now);
        }
        may
    }
}

impl Paxos {
    /// Takes a leader's announcement of what is chosen. A slot from the leader's base on is chosen
    /// with the value held here only if that was accepted under the leader's ballot.
    pub(crate) fn learn(&mut self, now: Now, ballot: Ballot, base: Slot, chosen_upto: Slot) {
        let newest = match self.learner.announced {
            Some((known, _, upto)) => (ballot, chosen_upto) > (known, upto),
            None => true,
        };
        if newest {
            self.learner.announced = Some((ballot, base, chosen_upto));
        }
        self.learner.target = self.learner.target.max(chosen_upto);
        let Some((ballot, base, upto)) = self.learner.announced else { return };
        let mut chosen = self.learner.chosen_upto;
        let believed = |held: Ballot| {
            held == ballot || held > Ballot::ZERO && mutant::is(Mutant::AnnouncementBelieved)
        };
        while chosen < upto && chosen.next() >= base && believed(self.log.ballot(chosen.next())) {
            chosen = chosen.next();
        }
        self.set_chosen(now, chosen);
    }

    /// What was announced before may say more since this replica holds more.
    pub(crate) fn learn_more(&mut self, now: Now) {
        if let Some((ballot, base, upto)) = self.learner.announced {
            self.learn(now, ballot, base, upto);
        }
    }

    /// The state is a copy of another's after this slot, and the log begins behind it.
    pub(crate) fn installed(&mut self, now: Now, slot: Slot) {
        let learner = &mut self.learner;
        learner.chosen_upto = learner.chosen_upto.max(slot);
        learner.have_upto = learner.have_upto.max(slot);
        learner.emitted_upto = learner.emitted_upto.max(slot);
        learner.target = learner.target.max(slot);
        learner.read_back = learner.read_back.split_off(&slot.next());
        learner.progress_at = now.mono;
        learner.asked_at = None;
    }

    /// Every voter had the slots up to here durable and knew them to be chosen. What is held here is
    /// then chosen, even where a restart forgot that it is: only the chosen value can have replaced it
    /// since.
    pub(crate) fn learn_truncated(&mut self, now: Now, upto: Slot) {
        self.learner.truncate_upto = self.learner.truncate_upto.max(upto);
        // Only who votes is among those who had it: others may hold what was never chosen. And what
        // replaced a value may be what a quarantined replica lost.
        if !self.is_voter() || self.quarantined {
            return;
        }
        let mut chosen = self.learner.chosen_upto;
        while chosen < upto && self.log.entry(chosen.next()).is_some() {
            chosen = chosen.next();
        }
        self.set_chosen(now, chosen);
    }

    /// The prefix up to here is chosen, and held. It ends at a stop-sign: what is held behind one
    /// was accepted in an epoch that is over.
    pub(crate) fn set_chosen(&mut self, now: Now, upto: Slot) {
        let before = self.learner.chosen_upto;
        let upto = self.stop_within(upto).unwrap_or(upto);
        if upto <= before {
            return;
        }
        for slot in (before.0 + 1..=upto.0).map(Slot) {
            let weight = self.log.entry(slot).map_or(0, |entry| entry.weight as usize);
            self.learner.hint_bytes += weight;
            if let Role::Leading(leading) = &mut self.role {
                leading.unchosen_bytes = leading.unchosen_bytes.saturating_sub(weight);
            }
        }
        if let Role::Leading(leading) = &mut self.role {
            leading.moved_at = now.mono;
        }
        self.stats.chosen += upto.0 - before.0;
        self.learner.chosen_upto = upto;
        self.learner.target = self.learner.target.max(upto);
        self.learner.progress_at = now.mono;
        self.advance_have();
        self.pass_marks(now);
    }

    /// The store durably has the effects of all slots up to this one.
    pub fn stored(&mut self, upto: Slot) {
        self.learner.stored_upto = self.learner.stored_upto.max(upto);
        self.advance_have();
    }

    /// Moves `have_upto` on over what has become durable.
    pub(crate) fn advance_have(&mut self) {
        let durable = self.gate.durable();
        while self.learner.have_upto < self.learner.chosen_upto {
            let next = self.learner.have_upto.next();
            let stored = next <= self.learner.stored_upto && self.log.is_unreadable(next);
            if !stored && !self.log.is_durable(next, durable) {
                break;
            }
            self.learner.have_upto = next;
        }
    }

    /// Hands out what is chosen and was not handed out before; asks for values that are no longer
    /// in memory.
    pub(crate) fn emit_chosen(&mut self) {
        // A lost state executes nothing, nor one that is about to be replaced.
        if self.store_lost || self.is_installing() {
            return;
        }
        while self.learner.emitted_upto < self.learner.chosen_upto {
            let slot = self.learner.emitted_upto.next();
            let value = match self.log.value(slot) {
                Some(value) => value.clone(),
                None => match self.learner.read_back.remove(&slot) {
                    Some(value) => value,
                    None => return self.read_back(slot),
                },
            };
            let ballot = self.log.ballot(slot);
            self.output.chosen.push(output::Chosen { slot, ballot, value });
            self.learner.emitted_upto = slot;
        }
    }

    fn read_back(&mut self, first: Slot) {
        if self.loader.is_waiting(Purpose::Emit) || self.loads_pause() {
            return;
        }
        let last = self.learner.chosen_upto.0.min(first.0 + READ_BACK_SLOTS - 1);
        let mut bytes = 0;
        for slot in (first.0..=last).map(Slot) {
            if self.log.value(slot).is_some() || self.learner.read_back.contains_key(&slot) {
                continue;
            }
            bytes += self.log.entry(slot).map_or(0, |entry| entry.weight as usize);
            // What is damaged comes from others (`repair.rs`).
            if self.log.is_unreadable(slot) || bytes > CATCH_UP_BYTES_MAX && slot > first {
                break;
            }
            self.load(slot, Purpose::Emit);
        }
    }

    /// Adds a hint of the chosen prefix to the output's records when one is due.
    pub(crate) fn hint_chosen(&mut self, records: usize) {
        let learner = &mut self.learner;
        let moved = learner.chosen_upto.0 - learner.hinted_upto.0;
        let quiet = self.now.since(learner.hinted_at) >= HINT_INTERVAL;
        let loaded = learner.hint_bytes >= HINT_BYTES || moved >= HINT_SLOTS;
        if moved == 0 || !(quiet || loaded && records > 0) {
            return;
        }
        learner.hinted_upto = learner.chosen_upto;
        learner.hint_bytes = 0;
        learner.hinted_at = self.now;
        let upto = learner.chosen_upto;
        self.append(Record::ChosenHint { upto });
    }

    /// Asks somebody for chosen slots if this replica lags and what is under way will not mend it,
    /// or if it is known that there are more.
    pub(crate) fn catch_up(&mut self, now: Now, more: bool) {
        if matches!(self.role, Role::Preparing(_) | Role::Leading(_)) {
            self.learner.asked_at = None;
            self.learner.progress_at = now.mono;
            return;
        }
        let chosen_upto = self.learner.chosen_upto;
        let target = self.learner.target.max(self.election.have_upto_max());
        if target <= chosen_upto {
            self.learner.asked_at = None;
            self.learner.progress_at = now.mono;
            return;
        }
        if let Some(at) = self.learner.asked_at {
            if now.mono.since(at) < CATCH_UP_TIMEOUT {
                return;
            }
            self.learner.asked_at = None;
        }
        // Slots below a leader's base are never proposed by it again.
        let announced = self.learner.announced;
        let below_base = announced.is_some_and(|(_, base, _)| base > chosen_upto.next());
        let stalled = now.mono.since(self.learner.progress_at) >= self.election.patience();
        if !(more || below_base || stalled) || !self.has_room() {
            return;
        }
        let Some(source) = self.election.catch_up_source(chosen_upto) else { return };
        self.learner.asked_at = Some(now.mono);
        self.stats.catch_ups_asked += 1;
        let request = CatchUpRequest { chosen_upto, bytes_max: CATCH_UP_BYTES_MAX as u32 };
        self.gate.send(source, Message::CatchUpRequest(request));
    }

    pub(crate) fn on_catch_up(&mut self, now: Now, catch_up: CatchUp) {
        self.learn_forgotten(catch_up.truncated_upto);
        self.repair(now, &catch_up.items);
        if matches!(self.role, Role::Preparing(_) | Role::Leading(_)) {
            return;
        }
        if catch_up.epoch == self.epoch() {
            self.learn_truncated(now, catch_up.all_upto);
        }
        let before = self.learner.chosen_upto;
        for item in catch_up.items {
            let next = self.learner.chosen_upto.next();
            if item.slot < next {
                continue;
            }
            if item.slot > next || item.ballot == Ballot::ZERO {
                break;
            }
            // An entry under the label's ballot or a higher one has the chosen value already.
            if self.log.ballot(next) < item.ballot {
                if item.ballot > self.acceptor.promised {
                    self.step_down();
                    self.promise(item.ballot);
                }
                self.write_entry(next, item.ballot, item.value);
            }
            self.set_chosen(now, next);
        }
        self.learner.target = self.learner.target.max(catch_up.chosen_upto);
        if self.learner.chosen_upto > before {
            // There may be more, and what arrived ahead of the gap may now be chosen too.
            self.learner.asked_at = None;
            self.learn_more(now);
            if self.learner.chosen_upto < catch_up.chosen_upto {
                self.catch_up(now, true);
            }
        }
        self.advance_votes();
    }
}
