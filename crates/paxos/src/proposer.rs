//! The proposer: from the first probe to the recovered log (docs/paxos.md 11.6).

use std::collections::{BTreeMap, BTreeSet};

use base::mutant::{self, Mutant};
use base::{Micros, Now, ReplicaId, Slot};

use crate::acceptor::{AHEAD_SLOTS_MAX, Stream};
use crate::ballot::Ballot;
use crate::leader::{Leading, Progress};
use crate::loader::Purpose;
use crate::log::Mark;
use crate::message::{
    FETCH_ITEMS_MAX, Fetch, ItemName, Message, Prepare, Promise, Run, Value, Values,
};
use crate::paxos::Paxos;
use crate::record::Record;

/// What this replica does as a proposer.
#[derive(Debug)]
pub(crate) enum Role {
    /// Nothing.
    Following,
    /// Asks whether a campaign would succeed.
    Probing(Probing),
    /// Phase 1.
    Preparing(Box<Preparing>),
    /// Phase 1 holds: this replica proposes.
    Leading(Box<Leading>),
}

/// A probe under way.
#[derive(Debug)]
pub(crate) struct Probing {
    /// The ballot asked about. The campaign itself takes a new one.
    pub(crate) ballot: Ballot,
    /// When it began.
    pub(crate) since: Micros,
    /// Who would promise.
    yes: BTreeSet<ReplicaId>,
}

impl Probing {
    pub(crate) fn new(ballot: Ballot, since: Micros, me: ReplicaId) -> Probing {
        Probing { ballot, since, yes: BTreeSet::from([me]) }
    }
}

/// A campaign under way.
///
/// - `ballot` is the promise of this replica's own acceptor.
#[derive(Debug)]
pub(crate) struct Preparing {
    /// The ballot of the campaign, made in this process.
    pub(crate) ballot: Ballot,
    /// The ballot of the leader that passed its leadership on, if one did.
    released: Option<Ballot>,
    /// When it began.
    pub(crate) since: Micros,
    /// The first slot that the others were asked about.
    base: Slot,
    /// When something was last asked again.
    asked_at: Micros,
    /// The promises of others.
    promises: BTreeMap<ReplicaId, Reported>,
    /// Accepted values as others sent them, or as the disk gave them back.
    pub(crate) values: BTreeMap<(Slot, Ballot), Value>,
}

/// What one promise said.
#[derive(Debug)]
struct Reported {
    truncated_upto: Slot,
    all_upto: Slot,
    runs: Vec<Run>,
}

impl Reported {
    /// Whether the value accepted there in this slot under this ballot can be had.
    fn holds(&self, slot: Slot, ballot: Ballot) -> bool {
        self.runs.iter().any(|run| {
            (run.first..=run.last).contains(&slot) && run.ballot == ballot && !run.faulty
        })
    }
}

/// The ballot that runs report for a slot, `Ballot::ZERO` where they report nothing.
fn reported_ballot(runs: &[Run], slot: Slot) -> Ballot {
    let within = |run: &&Run| (run.first..=run.last).contains(&slot);
    runs.iter().find(within).map_or(Ballot::ZERO, |run| run.ballot)
}

/// The outcome of phase 1: what to propose in each slot from the base on.
struct Plan {
    /// The first slot to propose.
    base: Slot,
    /// The highest ballot reported per slot, `Ballot::ZERO` for a hole.
    best: Vec<Ballot>,
    /// Whose promises count.
    voters: BTreeSet<ReplicaId>,
}

/// Phase 1 recovers at most so many slots; somebody who lags by more catches up first.
const RECOVER_SLOTS_MAX: u64 = 2 * AHEAD_SLOTS_MAX;

impl Paxos {
    /// Ends whatever this replica does as a proposer.
    pub(crate) fn step_down(&mut self) {
        if let Role::Leading(leading) = &self.role {
            let ballot = leading.ballot;
            let refused = self.confirms.refuse();
            self.output.refused.extend(refused);
            self.role = Role::Following;
            self.release(ballot);
        }
        self.role = Role::Following;
        self.election.leader = None;
    }

    /// Goes on to phase 1 once a quorum would promise.
    pub(crate) fn count_probe(&mut self, now: Now) {
        if let Role::Probing(probing) = &self.role
            && probing.yes.len() >= self.members.q1()
        {
            self.prepare(now, None);
        }
    }

    /// Begins phase 1, unless this replica has granted time to another leader than the one that
    /// released it.
    pub(crate) fn prepare(&mut self, now: Now, released: Option<Ballot>) {
        if self.bound(now, self.options.replica, released).is_some() {
            self.role = Role::Following;
            return;
        }
        let Some(ballot) = self.next_ballot() else { return };
        self.promise(ballot);
        self.append(Record::Promise { ballot });
        let base = self.recovery_base();
        self.role = Role::Preparing(Box::new(Preparing {
            ballot,
            released,
            base,
            since: now.mono,
            asked_at: now.mono,
            promises: BTreeMap::new(),
            values: BTreeMap::new(),
        }));
        self.send_prepare();
        self.evaluate(now);
    }

    /// Asks those who have not promised yet. The question leaves when the own promise is durable,
    /// which makes the ballot single-use: no later start of this replica can take it again.
    fn send_prepare(&mut self) {
        let Role::Preparing(preparing) = &self.role else { return };
        let chosen_upto = preparing.base.prev();
        let runs = self.log.runs(chosen_upto);
        let (ballot, released) = (preparing.ballot, preparing.released);
        let prepare = Prepare { ballot, probe: false, chosen_upto, runs, released };
        for replica in self.members.replicas() {
            if replica != self.options.replica && !preparing.promises.contains_key(&replica) {
                let message = Message::Prepare(prepare.clone());
                self.gate.send_after(self.acceptor.promised_at, replica, message);
            }
        }
    }

    pub(crate) fn on_promise(&mut self, now: Now, from: ReplicaId, promise: Promise) {
        match &mut self.role {
            Role::Probing(probing) if promise.probe && probing.ballot == promise.ballot => {
                probing.yes.insert(from);
                self.count_probe(now);
            }
            Role::Preparing(preparing) if !promise.probe && preparing.ballot == promise.ballot => {
                // A promise once given stays what it was: what comes twice says nothing new.
                let reported = Reported {
                    truncated_upto: promise.truncated_upto,
                    all_upto: promise.all_upto,
                    runs: promise.runs,
                };
                preparing.promises.entry(from).or_insert(reported);
                for item in promise.values {
                    preparing.values.insert((item.slot, item.ballot), item.value);
                }
                self.evaluate(now);
            }
            Role::Following | Role::Probing(_) | Role::Preparing(_) | Role::Leading(_) => {}
        }
    }

    pub(crate) fn on_values(&mut self, now: Now, values: Values) {
        let Role::Preparing(preparing) = &mut self.role else { return };
        if preparing.ballot != values.ballot {
            return;
        }
        let mut news = false;
        for item in values.items {
            news |= preparing.values.insert((item.slot, item.ballot), item.value).is_none();
        }
        if news {
            preparing.asked_at = Micros::default();
            self.evaluate(now);
        }
    }

    /// Asks again for what is late.
    pub(crate) fn repeat_prepare(&mut self, now: Now) {
        let patience = self.election.patience();
        let Role::Preparing(preparing) = &mut self.role else { return };
        if now.mono.since(preparing.asked_at) < patience {
            return;
        }
        // A question that still waits for the disk will leave when it is durable.
        if self.acceptor.is_durable() {
            self.send_prepare();
            self.evaluate(now);
        }
        if let Role::Preparing(preparing) = &mut self.role {
            preparing.asked_at = now.mono;
        }
    }

    /// Leads if a quorum has promised and every value to be proposed again is at hand; otherwise
    /// asks for the values that are not.
    pub(crate) fn evaluate(&mut self, now: Now) {
        let Role::Preparing(preparing) = &self.role else { return };
        // Alone, nothing leaves this replica, and every vote lies behind the promise in the same
        // log: the promise need not be waited for.
        if !self.acceptor.is_durable() && self.members.voters().len() > 1 {
            return;
        }
        let missing = usize::from(mutant::is(Mutant::PromiseMissing));
        if preparing.promises.len() + 1 + missing < self.members.q1() {
            return;
        }
        let truncated = preparing.promises.values().map(|reported| reported.truncated_upto).max();
        let truncated = truncated.unwrap_or_default();
        let all = preparing.promises.values().map(|reported| reported.all_upto).max();
        self.learn_truncated(now, all.unwrap_or_default());
        self.learn_forgotten(truncated);
        if truncated > self.learner.chosen_upto || self.is_unfit_to_lead() {
            // Others forgot what this replica lacks: it cannot lead until it has caught up with
            // whoever holds it, or has a copy of the state.
            return self.give_up(now);
        }
        let Some(plan) = self.plan() else { return self.give_up(now) };
        let base = plan.base;
        let mut missing: Vec<ItemName> = Vec::new();
        let mut values = Vec::with_capacity(plan.best.len());
        for (slot, ballot) in (base.0..).map(Slot).zip(plan.best.iter().copied()) {
            match self.recovered_value(slot, ballot) {
                Some(value) => {
                    let ends = Mark::of(&value).is_some_and(|mark| mark.ends(slot, self.epoch()));
                    values.push(value);
                    if ends {
                        // Whatever was accepted behind a stop-sign was never decided (I9).
                        self.log.drop_above(slot);
                        break;
                    }
                }
                None => missing.push(ItemName { slot, ballot }),
            }
        }
        if missing.is_empty() {
            self.lead(now, base, values);
        } else {
            self.find_values(now, &plan.voters, &missing);
        }
    }

    fn recovered_value(&self, slot: Slot, ballot: Ballot) -> Option<Value> {
        if ballot == Ballot::ZERO {
            return Some(Value::Noop);
        }
        let Role::Preparing(preparing) = &self.role else { return None };
        let own = (self.log.ballot(slot) == ballot).then(|| self.log.value(slot)).flatten();
        own.or_else(|| preparing.values.get(&(slot, ballot))).cloned()
    }

    /// Chooses whose promises count, and per slot the value to propose: the one accepted under the
    /// highest ballot that any of them reported. None where they report more than can be recovered.
    fn plan(&self) -> Option<Plan> {
        let Role::Preparing(preparing) = &self.role else { return None };
        let me = self.options.replica;
        let all = preparing.promises.keys().copied();
        let mut voters: BTreeSet<ReplicaId> = all.chain([me]).collect();
        // Any quorum of promises will do. Those who may no longer answer are left out if the others
        // suffice, so that nobody waits for values that only a dead replica has.
        let reachable = |id: &ReplicaId| *id == me || self.election.is_connected(*id);
        let alive: BTreeSet<ReplicaId> = voters.iter().copied().filter(reachable).collect();
        if alive.len() >= self.members.q1() {
            voters = alive;
        }
        let forgotten = preparing.promises.values().map(|reported| reported.truncated_upto).max();
        let asked = preparing.base.max(forgotten.unwrap_or_default().next());
        let base = asked.max(self.recovery_base()).min(self.learner.chosen_upto.next());
        let own = self.log.runs(base.prev());
        let mut all = preparing.promises.values().flat_map(|r| &r.runs).chain(&own);
        if all.any(|run| run.faulty) {
            return self.readable_plan(preparing, base, &own, voters);
        }
        self.plan_of(preparing, base, &own, voters)
    }

    /// The plan by the promises of these voters.
    fn plan_of(
        &self,
        preparing: &Preparing,
        base: Slot,
        own: &[Run],
        voters: BTreeSet<ReplicaId>,
    ) -> Option<Plan> {
        let reported = preparing.promises.iter().filter(|(id, _)| voters.contains(id));
        let counted = if voters.contains(&self.options.replica) { own } else { &[] };
        let runs = reported.flat_map(|(_, reported)| &reported.runs).chain(counted);
        // Whoever counts: the leader's own log ends where its proposals do.
        let own_slots = self.log.last().0.saturating_sub(base.prev().0);
        if own_slots >= RECOVER_SLOTS_MAX {
            return None;
        }
        let mut best: Vec<Ballot> = vec![Ballot::ZERO; own_slots as usize];
        for run in runs {
            if run.last.0 >= base.0 + RECOVER_SLOTS_MAX || run.ballot >= preparing.ballot {
                return None;
            }
            for slot in run.first.max(base).0..=run.last.0 {
                let at = (slot - base.0) as usize;
                if best.len() <= at {
                    best.resize(at + 1, Ballot::ZERO);
                }
                best[at] = match best[at] {
                    Ballot::ZERO => run.ballot,
                    known if mutant::is(Mutant::LowestBallotWins) => known.min(run.ballot),
                    known => known.max(run.ballot),
                };
            }
        }
        Some(Plan { base, best, voters })
    }

    /// The plan where damage makes it a question which values can be read. Each slot is decided by
    /// itself, and any quorum of promises will do for it: those who report what nobody can read are
    /// left out as long as a quorum remains. Where none does, the value has to be waited for.
    fn readable_plan(
        &self,
        preparing: &Preparing,
        base: Slot,
        own: &[Run],
        voters: BTreeSet<ReplicaId>,
    ) -> Option<Plan> {
        let mut everybody: BTreeSet<ReplicaId> = preparing.promises.keys().copied().collect();
        everybody.insert(self.options.replica);
        let mut plan = self.plan_of(preparing, base, own, everybody)?;
        plan.voters = voters;
        let reports = preparing.promises.values().map(|reported| reported.runs.as_slice());
        let reports: Vec<&[Run]> = reports.chain([own]).collect();
        for (slot, best) in (base.0..).map(Slot).zip(&mut plan.best) {
            if self.is_readable(preparing, slot, *best) {
                continue;
            }
            let mut ballots: Vec<Ballot> =
                reports.iter().map(|runs| reported_ballot(runs, slot)).collect();
            ballots.sort_unstable();
            // With those above left out, the rest must still be a quorum.
            let lowest = self.members.q1() - 1;
            let rest = ballots.get(lowest..).unwrap_or_default().iter().rev();
            let readable = rest.copied().find(|b| self.is_readable(preparing, slot, *b));
            *best = readable.unwrap_or(*best);
        }
        Some(plan)
    }

    /// Where phase 1 begins: behind the chosen prefix, or where that cannot be read here. Of the
    /// latter slots others may not know that they are chosen, and would not learn it from a leader
    /// that does not propose them again.
    fn recovery_base(&self) -> Slot {
        let next = self.learner.chosen_upto.next();
        let unreadable = self.log.faulty().iter().find(|slot| self.log.is_unreadable(**slot));
        match unreadable.copied() {
            Some(slot) if self.log.last().0.saturating_sub(slot.0) < RECOVER_SLOTS_MAX / 2 => {
                next.min(slot)
            }
            Some(_) | None => next,
        }
    }

    fn is_readable(&self, preparing: &Preparing, slot: Slot, ballot: Ballot) -> bool {
        ballot == Ballot::ZERO
            || self.log.ballot(slot) == ballot && !self.log.is_unreadable(slot)
            || preparing.values.contains_key(&(slot, ballot))
            || preparing.promises.iter().any(|(id, reported)| {
                self.election.is_connected(*id) && reported.holds(slot, ballot)
            })
    }

    /// Loads the values that this replica has on its disk, and asks others for the rest.
    fn find_values(&mut self, now: Now, voters: &BTreeSet<ReplicaId>, missing: &[ItemName]) {
        let patience = self.election.patience();
        let paused = self.loads_pause();
        let Role::Preparing(preparing) = &mut self.role else { return };
        let ask = now.mono.since(preparing.asked_at) >= patience || preparing.values.is_empty();
        let ballot = preparing.ballot;
        let mut loads = Vec::new();
        let mut fetches: BTreeMap<ReplicaId, Vec<ItemName>> = BTreeMap::new();
        for name in missing {
            if self.log.ballot(name.slot) == name.ballot && !self.log.is_unreadable(name.slot) {
                loads.push(name.slot);
                continue;
            }
            let holders = preparing.promises.iter().filter(|(id, reported)| {
                let answers = voters.contains(id) || self.election.is_connected(**id);
                answers && reported.holds(name.slot, name.ballot)
            });
            let holder = holders.map(|(id, _)| *id).min_by_key(|id| !voters.contains(id));
            if let Some(items) = holder.map(|id| fetches.entry(id).or_default())
                && items.len() < FETCH_ITEMS_MAX
            {
                items.push(*name);
            }
        }
        if ask {
            preparing.asked_at = now.mono;
            for (replica, items) in fetches {
                self.gate.send(replica, Message::Fetch(Fetch { ballot, items }));
            }
        }
        for slot in loads {
            if !paused {
                self.load(slot, Purpose::Recover);
            }
        }
    }

    /// Phase 1 holds: proposes the recovered values again and leads.
    pub(crate) fn lead(&mut self, now: Now, base: Slot, values: Vec<Value>) {
        let ballot = self.acceptor.promised;
        assert!(ballot.replica == self.options.replica, "leading under {ballot} of another");
        let barrier = Slot(base.prev().0 + values.len() as u64);
        let me = self.options.replica;
        let others = self.members.replicas().filter(|replica| *replica != me);
        let followers = others.map(|id| (id, Progress::new(base, now.mono))).collect();
        let learners: Vec<ReplicaId> = self.learners().collect();
        let epoch = self.epoch();
        let stops = values.last().and_then(Mark::of).is_some_and(|mark| mark.ends(barrier, epoch));
        let mut leading = Leading {
            ballot,
            base,
            barrier,
            last: barrier,
            followers,
            unchosen_bytes: 0,
            lonely_since: None,
            moved_at: now.mono,
            transfer: None,
            truncate_upto: self.learner.truncate_upto,
            stop: stops.then_some(barrier),
            lease_void: stops,
            done_proposed: false,
        };
        leading.set_learners(&learners, now.mono);
        let chosen = (self.learner.chosen_upto.next().0 - base.0) as usize;
        leading.unchosen_bytes = values.iter().skip(chosen).map(Value::weight).sum();
        self.role = Role::Leading(Box::new(leading));
        self.election.won(ballot);
        self.acceptor.stream =
            Some(Stream { ballot, acc_upto: base.prev(), top: barrier, owed: false, due: false });
        for (slot, value) in (base.0..).map(Slot).zip(values) {
            self.write_entry(slot, ballot, value);
        }
        self.stats.elections_won += 1;
        self.count_votes(now);
    }
}
