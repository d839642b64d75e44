//! Values that are no longer in memory: asked for by `Output.loads`, and handed to whoever wants
//! them when they come. It also answers those replicas that ask for values.

use std::collections::BTreeMap;

use base::limits::{ACCEPT_SLOTS_MAX, CATCH_UP_BYTES_MAX};
use base::mutant::{self, Mutant};
use base::{Micros, Now, ReplicaId, Slot};

use crate::ballot::Ballot;
use crate::message::{
    CatchUp, CatchUpRequest, FETCH_ITEMS_MAX, Fetch, Item, ItemName, Message, Value, Values,
};
use crate::output::Load;
use crate::paxos::Paxos;
use crate::proposer::Role;

/// What a value is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// To hand it out as chosen.
    Emit,
    /// To propose it again, as a candidate.
    Recover,
    /// To record it once more.
    Carry,
    /// To answer this replica's `CatchUpRequest`.
    CatchUp(ReplicaId),
    /// To answer this replica's `Fetch`.
    Fetch(ReplicaId),
}

/// Loads under way.
///
/// - Every wanted value was asked for once and is not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Loader {
    waiting: BTreeMap<(Slot, Ballot), Vec<Purpose>>,
    counts: BTreeMap<Purpose, usize>,
    jobs: BTreeMap<Purpose, Job>,
    paused_until: Micros,
}

/// An answer in the making.
#[derive(Debug)]
struct Job {
    /// The candidate's ballot, for `Fetch`.
    ballot: Ballot,
    items: Vec<(ItemName, Option<Value>)>,
    missing: usize,
}

/// A value that could not be read is asked for again after this time.
const RETRY_AFTER: Micros = Micros::from_millis(100);

impl Loader {
    /// Whether a value is under way for this purpose.
    pub(crate) fn is_waiting(&self, purpose: Purpose) -> bool {
        self.counts.contains_key(&purpose)
    }
}

impl Paxos {
    /// Whether loads should not be asked for because one failed just now.
    pub(crate) fn loads_pause(&self) -> bool {
        self.now < self.loader.paused_until
    }

    /// Asks for the value of a slot that is not in memory.
    pub(crate) fn load(&mut self, slot: Slot, purpose: Purpose) {
        let Some(entry) = self.log.entry(slot).filter(|entry| !entry.faulty) else { return };
        let purposes = self.loader.waiting.entry((slot, entry.ballot)).or_default();
        if purposes.contains(&purpose) {
            return;
        }
        if purposes.is_empty() {
            let (ballot, lsn, index) = (entry.ballot, entry.lsn, entry.index);
            self.output.loads.push(Load { slot, ballot, lsn, index });
            self.stats.loads += 1;
        }
        purposes.push(purpose);
        *self.loader.counts.entry(purpose).or_insert(0) += 1;
    }

    pub(crate) fn on_loaded(
        &mut self,
        now: Now,
        slot: Slot,
        ballot: Ballot,
        value: Option<&Value>,
    ) {
        if value.is_none() {
            self.loader.paused_until = now.mono + RETRY_AFTER;
        }
        for purpose in self.loader.waiting.remove(&(slot, ballot)).unwrap_or_default() {
            if let Some(count) = self.loader.counts.get_mut(&purpose) {
                *count -= 1;
                if *count == 0 {
                    self.loader.counts.remove(&purpose);
                }
            }
            match (purpose, value) {
                (Purpose::Emit, Some(value)) => {
                    if slot > self.learner.emitted_upto {
                        self.learner.read_back.insert(slot, value.clone());
                    }
                }
                (Purpose::Recover, Some(value)) => {
                    if let Role::Preparing(preparing) = &mut self.role {
                        preparing.values.insert((slot, ballot), value.clone());
                    }
                }
                (Purpose::Carry, Some(value)) => self.carry(slot, ballot, value.clone()),
                (Purpose::Emit | Purpose::Recover | Purpose::Carry, None) => {}
                (Purpose::CatchUp(_) | Purpose::Fetch(_), _) => {
                    self.fill(purpose, slot, ballot, value);
                }
            }
        }
    }

    fn fill(&mut self, purpose: Purpose, slot: Slot, ballot: Ballot, value: Option<&Value>) {
        let Some(job) = self.loader.jobs.get_mut(&purpose) else { return };
        for (name, place) in &mut job.items {
            if name.slot == slot && name.ballot == ballot && place.is_none() {
                *place = value.cloned();
                job.missing -= 1;
            }
        }
        self.finish_job(purpose);
    }

    fn finish_job(&mut self, purpose: Purpose) {
        if self.loader.jobs.get(&purpose).is_none_or(|job| job.missing > 0) {
            return;
        }
        let Some(job) = self.loader.jobs.remove(&purpose) else { return };
        let values = job.items.into_iter().map(|(name, value)| {
            value.map(|value| Item { slot: name.slot, ballot: name.ballot, value })
        });
        match purpose {
            Purpose::CatchUp(to) => {
                // What could not be read ends the answer: chosen slots leave no gap.
                let items = values.map_while(|item| item).collect();
                let chosen_upto = self.learner.chosen_upto;
                let truncated_upto = self.log.truncated_upto();
                let (all_upto, epoch) = (self.all_upto(), self.epoch());
                let catch_up = CatchUp { chosen_upto, truncated_upto, items, all_upto, epoch };
                self.stats.catch_ups_served += 1;
                self.gate.send(to, Message::CatchUp(catch_up));
            }
            Purpose::Fetch(to) => {
                let items = values.flatten().collect();
                self.gate.send(to, Message::Values(Values { ballot: job.ballot, items }));
            }
            Purpose::Emit | Purpose::Recover | Purpose::Carry => {}
        }
    }

    fn start_job(&mut self, purpose: Purpose, ballot: Ballot, names: Vec<ItemName>) {
        let mut missing = Vec::new();
        let mut items = Vec::with_capacity(names.len());
        for name in names {
            let value = self.log.value(name.slot).cloned();
            if value.is_none() {
                missing.push(name.slot);
            }
            items.push((name, value));
        }
        let job = Job { ballot, items, missing: missing.len() };
        self.loader.jobs.insert(purpose, job);
        for slot in missing {
            self.load(slot, purpose);
        }
        self.finish_job(purpose);
    }

    pub(crate) fn on_catch_up_request(&mut self, from: ReplicaId, request: CatchUpRequest) {
        let purpose = Purpose::CatchUp(from);
        if self.loader.jobs.contains_key(&purpose) || self.loads_pause() {
            return;
        }
        let first = request.chosen_upto.max(self.log.truncated_upto()).0.saturating_add(1);
        let bytes_max = (request.bytes_max as usize).min(CATCH_UP_BYTES_MAX);
        let mut names: Vec<ItemName> = Vec::new();
        let mut bytes = 0;
        let unchosen = mutant::is(Mutant::CatchUpUnchosen);
        let last = if unchosen { self.log.last() } else { self.learner.chosen_upto };
        for slot in (first..=last.0).map(Slot).take(4 * ACCEPT_SLOTS_MAX) {
            let Some(entry) = self.log.entry(slot) else { break };
            bytes += entry.weight as usize;
            if self.log.is_unreadable(slot) || bytes > bytes_max && !names.is_empty() {
                break;
            }
            names.push(ItemName { slot, ballot: entry.ballot });
        }
        self.start_job(purpose, Ballot::ZERO, names);
    }

    pub(crate) fn on_fetch(&mut self, from: ReplicaId, fetch: Fetch) {
        let purpose = Purpose::Fetch(from);
        if self.loader.jobs.contains_key(&purpose) || self.loads_pause() {
            return;
        }
        let mut names: Vec<ItemName> = Vec::new();
        let mut bytes = 0;
        for name in fetch.items.into_iter().take(FETCH_ITEMS_MAX) {
            let Some(entry) = self.log.entry(name.slot) else { continue };
            let unreadable = self.log.is_unreadable(name.slot);
            if unreadable
                || entry.ballot != name.ballot
                || names.last().is_some_and(|last| *last >= name)
            {
                continue;
            }
            bytes += entry.weight as usize;
            if bytes > CATCH_UP_BYTES_MAX && !names.is_empty() {
                break;
            }
            names.push(name);
        }
        self.start_job(purpose, fetch.ballot, names);
    }
}
