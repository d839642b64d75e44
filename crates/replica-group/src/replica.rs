//! One replica: the Paxos core, the state machine that its log drives, and those who wait for
//! either.

use std::collections::{BTreeMap, BTreeSet};

use base::mutant::{self, Mutant};
use base::{Generation, GroupId, Lsn, Micros, Now, ReplicaId, Slot};
use paxos::{
    Ballot, ChangeRefusal, Command, HeartbeatRow, Lease, Load, Member, Message, Paxos, ReadTicket,
    Record, Refusal, Standing, Value,
};
use storage::Overlay;

use crate::retention::{Ages, Keep};
use crate::state_machine::{ApplyError, Entry, GroupStore, StateMachine};

/// Names whoever waits for a proposal or a read. Chosen by the caller, unique while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter(pub u64);

/// A replica of one group.
///
/// - `persisted <= applied <= paxos.chosen_upto()`, save after a restart, when the store may be
///   ahead of what the log knows as chosen; such slots are skipped, never applied again.
/// - Every waiter is named in exactly one output: answered, readable or dropped.
pub struct Replica<S: StateMachine> {
    group: GroupId,
    paxos: Paxos,
    machine: S,
    applied: Slot,
    /// What the store has on disk.
    persisted: Slot,
    /// What the flush under way will have persisted.
    flushing: Option<Slot>,
    /// Why the state is not to be trusted; then nothing is executed and nothing answered.
    fenced: Option<String>,
    /// The last slot after which the state's digest was taken.
    digested: Slot,
    /// Which of the group's states in the store this is.
    generation: Generation,
    /// Since when all replicas have what they have.
    ages: Ages,
    /// A copy of the state that is under way stands here: the slots behind it are wanted.
    pinned: Option<Slot>,
    /// The state was exchanged: nobody who waits is to be answered from the new one.
    exchanged: bool,
    /// Own proposals that are not applied yet.
    proposals: BTreeMap<Slot, (Waiter, Command)>,
    /// Reads that arrived since the last output; they share one confirmation.
    reads_arrived: Vec<Waiter>,
    /// Reads that may be served under a lease, if there is one.
    reads_leased: Vec<Waiter>,
    /// Reads whose leader is being confirmed.
    reads_confirming: BTreeMap<ReadTicket, Vec<Waiter>>,
    /// Confirmed reads that wait until the slot is applied.
    reads_confirmed: BTreeMap<Slot, Vec<Waiter>>,
}

/// What a replica wants done.
pub struct ReplicaOutput<R> {
    /// For the write-ahead log, in this order.
    pub records: Vec<Record>,
    /// For the other replicas; each may leave at once.
    pub messages: Vec<(ReplicaId, Message)>,
    /// Payloads to be read from the log; answered by [`Replica::loaded`].
    pub loads: Vec<Load>,
    /// Own proposals that were executed.
    pub replies: Vec<(Waiter, R)>,
    /// Reads that may now be answered from the applied state.
    pub readable: Vec<Waiter>,
    /// Reads that may be answered from the applied state if the boot clock, read after that, is
    /// not beyond this time; and who waits for them.
    pub leased: Option<(Micros, Vec<Waiter>)>,
    /// Proposals and reads that lost their leader. A proposal may still be executed; it is safe
    /// to propose it again under the same session.
    pub dropped: Vec<Waiter>,
    /// How many commands were applied.
    pub applied: u64,
    /// The other replicas that this one knows of have changed.
    pub peers_changed: bool,
    /// The newest slot after which the state was to be digested, and its digest.
    pub digest: Option<(Slot, u128)>,
}

impl<R> Default for ReplicaOutput<R> {
    fn default() -> Self {
        ReplicaOutput {
            records: Vec::new(),
            messages: Vec::new(),
            loads: Vec::new(),
            replies: Vec::new(),
            readable: Vec::new(),
            leased: None,
            dropped: Vec::new(),
            applied: 0,
            peers_changed: false,
            digest: None,
        }
    }
}

/// Every replica digests its state after each slot whose number is a multiple of this.
const DIGEST_SLOTS: u64 = 1_024;

impl<S: StateMachine> Replica<S> {
    /// A replica whose store holds the effects of all slots through `applied`, in this generation of
    /// the group's state.
    pub fn new(
        group: GroupId,
        paxos: Paxos,
        machine: S,
        applied: Slot,
        generation: Generation,
    ) -> Replica<S> {
        Replica {
            group,
            paxos,
            machine,
            applied,
            persisted: applied,
            flushing: None,
            fenced: None,
            digested: Slot::ZERO,
            generation,
            ages: Ages::default(),
            pinned: None,
            exchanged: false,
            proposals: BTreeMap::new(),
            reads_arrived: Vec::new(),
            reads_leased: Vec::new(),
            reads_confirming: BTreeMap::new(),
            reads_confirmed: BTreeMap::new(),
        }
    }

    /// A message of another replica arrived.
    pub fn handle(&mut self, now: Now, from: ReplicaId, message: Message) {
        self.paxos.handle(now, from, message);
    }

    /// Some time passed.
    pub fn tick(&mut self, now: Now) {
        self.paxos.tick(now);
    }

    /// Whether heartbeats with that replica's node go both ways, and how long they take.
    pub fn connected(&mut self, now: Now, replica: ReplicaId, connected: bool, rtt: Micros) {
        self.paxos.connected(now, replica, connected, rtt);
    }

    /// What that replica says of itself in its node's heartbeat.
    pub fn heard(&mut self, now: Now, replica: ReplicaId, row: HeartbeatRow) {
        self.paxos.heard(now, replica, row);
    }

    /// A heartbeat of that replica's node is being answered: the ballot for which this replica
    /// grants it time, if it does (docs/paxos.md 11.7).
    pub fn support(&mut self, now: Now, replica: ReplicaId) -> Option<Ballot> {
        self.paxos.support(now, replica)
    }

    /// That replica grants time to the leader of this ballot, from `sent` on by the clock here.
    pub fn supported(&mut self, now: Now, replica: ReplicaId, ballot: Ballot, sent: Micros) {
        self.paxos.supported(now, replica, ballot, sent);
    }

    /// That replica's node was started again.
    pub fn restarted(&mut self, now: Now, replica: ReplicaId) {
        self.paxos.restarted(now, replica);
    }

    /// Whether this node is in no state to lead.
    pub fn set_unwell(&mut self, now: Now, unwell: bool) {
        self.paxos.set_unwell(now, unwell);
    }

    /// This replica does not campaign any more.
    pub fn abstain(&mut self) {
        self.paxos.abstain();
    }

    /// Begins to pass the leadership on; false where that is not possible now.
    pub fn transfer(&mut self, now: Now, to: ReplicaId) -> bool {
        self.paxos.transfer(now, to)
    }

    /// Names the replicas that are to learn.
    pub fn set_learners(&mut self, now: Now, learners: Vec<Member>) {
        self.paxos.set_learners(now, learners);
    }

    /// Proposes other voters, the first of them to lead among them.
    pub fn change(
        &mut self,
        now: Now,
        voters: Vec<Member>,
        first_leader: ReplicaId,
    ) -> Result<Slot, ChangeRefusal> {
        self.paxos.change(now, voters, first_leader)
    }

    /// A payload that [`ReplicaOutput::loads`] asked for.
    pub fn loaded(&mut self, now: Now, load: &Load, value: Option<Value>) {
        self.paxos.loaded(now, load.slot, load.ballot, value);
    }

    /// Records of the write-ahead log turned out to be damaged: those from `first` to `last`.
    pub fn damaged(&mut self, now: Now, first: Lsn, last: Lsn) {
        self.paxos.damaged(now, first, last);
    }

    /// The replica may have forgotten what it promised; see [`Paxos::quarantine`].
    pub fn quarantine(&mut self) {
        self.paxos.quarantine();
    }

    /// Damage to these records is mended; see [`Paxos::mended`].
    pub fn mended(&mut self, first: Lsn, last: Lsn) {
        self.paxos.mended(first, last);
    }

    /// The state cannot be read from the store any more, or is not what it should be. The replica
    /// votes on, gives up leading, executes nothing and answers nobody, until its state is copied
    /// from another replica; it need not keep any of its log for itself. Nothing must be flushed
    /// until the record of it, in the next output, is durable: a command may be half executed.
    pub fn fence(&mut self, why: String) {
        if self.fenced.is_none() {
            self.fenced = Some(why);
            self.paxos.lose_store();
        }
    }

    /// Why the state is not to be trusted, if it is not.
    pub fn fenced(&self) -> Option<&str> {
        self.fenced.as_deref()
    }

    /// The write-ahead log is durable through this position.
    pub fn wal_synced(&mut self, now: Now, through: Lsn) {
        self.paxos.persisted(now, through);
    }

    /// Proposes a command for the waiter. Where it is refused, nothing was done.
    pub fn propose(&mut self, now: Now, waiter: Waiter, command: Command) -> Result<(), Refusal> {
        let slot = self.paxos.propose(now, command.clone())?;
        let before = self.proposals.insert(slot, (waiter, command));
        assert!(before.is_none(), "{}: two proposals of one leadership for {slot}", self.group);
        Ok(())
    }

    /// Registers a linearizable read: it is named as readable once a quorum has confirmed, after
    /// now, that this replica leads, and all that was chosen before is applied; or, if it may be
    /// `leased` and there is a lease, without asking anybody.
    pub fn read(&mut self, waiter: Waiter, leased: bool) -> Result<(), Refusal> {
        if !self.paxos.is_leading() {
            return Err(Refusal::NotLeader { leader: self.paxos.leader() });
        }
        if leased {
            self.reads_leased.push(waiter);
        } else {
            self.reads_arrived.push(waiter);
        }
        Ok(())
    }

    /// Takes what is to be done, after applying what was chosen. `next_lsn` is the position that
    /// the first of the records will get; the caller appends all of them before anything else.
    pub fn take_output(
        &mut self,
        now: Now,
        overlay: &mut Overlay,
        next_lsn: Lsn,
    ) -> Result<ReplicaOutput<S::Reply>, ApplyError> {
        let mut output = ReplicaOutput::default();
        if self.lease(now).is_none() {
            self.reads_arrived.append(&mut self.reads_leased);
        }
        self.confirm_arrived(now, &mut output);
        let from_paxos = self.paxos.take_output(next_lsn);
        output.records = from_paxos.records;
        output.messages = from_paxos.messages;
        output.loads = from_paxos.loads;
        output.peers_changed = from_paxos.peers_changed;
        for chosen in from_paxos.chosen {
            if self.fenced.is_some() {
                break;
            }
            match self.apply(overlay, chosen.slot, chosen.value, &mut output) {
                Ok(()) => {}
                Err(ApplyError::Engine(error)) => self.fence(error.0),
                Err(error @ ApplyError::Unknown(_)) => return Err(error),
            }
        }
        if self.fenced.is_some() || std::mem::take(&mut self.exchanged) {
            self.drop_waiters(&mut output);
        }
        for confirmed in from_paxos.confirmed {
            if let Some(waiters) = self.reads_confirming.remove(&confirmed.ticket) {
                self.reads_confirmed.entry(confirmed.slot).or_default().extend(waiters);
            }
        }
        for ticket in from_paxos.refused {
            if let Some(waiters) = self.reads_confirming.remove(&ticket) {
                output.dropped.extend(waiters);
            }
        }
        while let Some(entry) = self.reads_confirmed.first_entry() {
            if *entry.key() > self.applied {
                break;
            }
            output.readable.extend(entry.remove());
        }
        // What is being applied was chosen; a read must not miss what others may have seen of it.
        if let Some(lease) = self.lease(now)
            && lease.slot <= self.applied
            && !self.reads_leased.is_empty()
        {
            output.leased = Some((lease.until, std::mem::take(&mut self.reads_leased)));
        }
        if !self.paxos.is_leading() {
            // The new leader decides about these slots; whoever waits asks there.
            let lost = std::mem::take(&mut self.proposals);
            output.dropped.extend(lost.into_values().map(|(waiter, _)| waiter));
        }
        Ok(output)
    }

    /// The lease, if it has not run out.
    fn lease(&self, now: Now) -> Option<Lease> {
        self.paxos.lease().filter(|lease| now.mono <= lease.until)
    }

    /// Nobody is answered from a state that is not to be trusted. Proposals may still be executed,
    /// by others.
    fn drop_waiters(&mut self, output: &mut ReplicaOutput<S::Reply>) {
        let proposals = std::mem::take(&mut self.proposals).into_values().map(|(waiter, _)| waiter);
        let confirming = std::mem::take(&mut self.reads_confirming).into_values().flatten();
        let confirmed = std::mem::take(&mut self.reads_confirmed).into_values().flatten();
        output.dropped.extend(proposals.chain(confirming).chain(confirmed));
        output.dropped.append(&mut self.reads_arrived);
        output.dropped.append(&mut self.reads_leased);
    }

    fn confirm_arrived(&mut self, now: Now, output: &mut ReplicaOutput<S::Reply>) {
        if self.reads_arrived.is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut self.reads_arrived);
        match self.paxos.confirm(now) {
            Ok(ticket) => {
                let before = self.reads_confirming.insert(ticket, waiters);
                assert!(before.is_none(), "{}: a read ticket was given twice", self.group);
            }
            Err(Refusal::NotLeader { .. } | Refusal::Busy) => output.dropped.extend(waiters),
        }
    }

    fn apply(
        &mut self,
        overlay: &mut Overlay,
        slot: Slot,
        value: Value,
        output: &mut ReplicaOutput<S::Reply>,
    ) -> Result<(), ApplyError> {
        assert!(
            slot == self.applied.next(),
            "{}: {slot} is to be applied after {}",
            self.group,
            self.applied
        );
        let waiting = self.proposals.remove(&slot);
        match value {
            // What it says of epochs is no matter of the state.
            Value::Noop | Value::Stop(_) | Value::Done(_) => {
                if let Some((waiter, _)) = waiting {
                    output.dropped.push(waiter);
                }
            }
            Value::Command(command) => {
                let entry = Entry { slot, time: command.time, payload: command.payload.clone() };
                let mut store = GroupStore::of(overlay, self.group, self.generation);
                let reply = self.machine.apply(&mut store, &entry)?;
                match waiting {
                    Some((waiter, proposed)) if proposed == command => {
                        output.replies.push((waiter, reply));
                    }
                    Some((waiter, _)) => output.dropped.push(waiter),
                    None => {}
                }
                output.applied += 1;
            }
        }
        self.applied = slot;
        if slot.0.is_multiple_of(DIGEST_SLOTS) {
            output.digest = self.digest_now()?;
        }
        Ok(())
    }

    /// The digest of the state as it now is, with the slot; none where it was taken already, or
    /// means nothing.
    pub fn digest_now(&mut self) -> Result<Option<(Slot, u128)>, ApplyError> {
        if self.fenced.is_some() || self.digested == self.applied {
            return Ok(None);
        }
        self.digested = self.applied;
        Ok(Some((self.applied, self.machine.digest()?)))
    }

    /// Writes what is only in memory into the store, and names the slot whose effects a flush
    /// taken now will have.
    pub fn settle(&mut self, overlay: &mut Overlay) -> Result<Slot, ApplyError> {
        assert!(self.flushing.is_none(), "{}: two flushes at a time", self.group);
        let applied = self.settle_last(overlay)?;
        self.flushing = Some(applied).filter(|_| self.fenced.is_none());
        Ok(applied)
    }

    /// As [`Replica::settle`], for a replica that is about to go: no flush of it follows.
    pub fn settle_last(&mut self, overlay: &mut Overlay) -> Result<Slot, ApplyError> {
        if self.fenced.is_none() {
            self.machine.settle(&mut GroupStore::of(overlay, self.group, self.generation))?;
        }
        Ok(self.applied)
    }

    /// The flush that [`Replica::settle`] was called for does not take place.
    pub fn unsettle(&mut self) {
        self.flushing = None;
    }

    /// The flush that was begun by [`Replica::settle`] is durable.
    pub fn flushed(&mut self) {
        if let Some(slot) = self.flushing.take() {
            self.persisted = slot;
            self.paxos.stored(slot);
        }
    }

    /// Forgets what the store has on disk and need not be kept for others; returns the lowest
    /// position in the write-ahead log that is still needed.
    pub fn truncate(&mut self, now: Now, keep: &Keep) -> Option<Lsn> {
        let paxos = &self.paxos;
        if paxos.is_installing() {
            return paxos.keep_from();
        }
        // A copy of another's state will hold more than this log does.
        let held = match self.fenced {
            Some(_) => paxos.have_upto(),
            None if mutant::is(Mutant::LogForgottenEarly) => self.applied.min(paxos.have_upto()),
            None => self.persisted.min(paxos.have_upto()),
        };
        let all = held.min(paxos.truncatable());
        let aged = self.ages.aged(now.mono, all, keep.tail_age);
        let long = all.min(paxos.log_keeping(keep.tail_bytes, keep.slots_max));
        let cap = paxos.log_keeping(keep.bytes_max, keep.slots_max);
        let mut upto = aged.max(long).max(cap).max(paxos.log_below(keep.below));
        if let Some(pinned) = self.pinned.filter(|pinned| *pinned < upto) {
            let cap = paxos.log_keeping(2 * keep.bytes_max, 2 * keep.slots_max);
            upto = upto.min(pinned.max(cap).max(paxos.log_below(keep.below_pinned)));
        }
        let upto = upto.min(held);
        if upto >= paxos.first_slot() {
            self.paxos.truncate(upto);
        }
        self.paxos.keep_from()
    }

    /// See [`Paxos::carry_forward`].
    pub fn carry_forward(&mut self, below: Lsn, bytes_max: usize) -> usize {
        self.paxos.carry_forward(below, bytes_max)
    }

    /// A copy of the state is under way, here or from here, that stands at this slot: what lies
    /// behind it is kept, within bounds.
    pub fn pin(&mut self, slot: Option<Slot>) {
        self.pinned = slot;
    }

    /// Nothing more is executed: the state is about to be exchanged.
    pub fn hold(&mut self) {
        self.paxos.hold();
    }

    /// The state is not exchanged after all.
    pub fn unhold(&mut self) {
        self.paxos.unhold();
    }

    /// The state is a copy of another replica's after `slot`, from now on, and the store durably
    /// holds it. The replica was held.
    pub fn exchange(
        &mut self,
        machine: S,
        slot: Slot,
        generation: Generation,
        standing: Option<Standing>,
    ) {
        assert!(self.flushing.is_none(), "{}: the state is exchanged in a flush", self.group);
        self.machine = machine;
        (self.applied, self.persisted) = (slot, slot);
        self.generation = generation;
        self.digested = Slot::ZERO;
        self.fenced = None;
        self.exchanged = true;
        self.paxos.install(slot, standing);
    }

    /// The store durably holds more than the log knows to be chosen, and the others have forgotten
    /// what lies between: goes on behind what the store holds. Whether that was so.
    pub fn skip(&mut self) -> bool {
        let skips = self.fenced.is_none()
            && self.flushing.is_none()
            && self.paxos.skippable() == Some(self.persisted)
            && self.persisted == self.applied;
        if skips {
            self.paxos.hold();
            self.paxos.install(self.persisted, None);
        }
        skips
    }

    /// Which of the group's states in the store is this replica's.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The state was exchanged for one that turned out to be of no use.
    pub fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
    }

    /// Puts a restatement of the replica's durable state into the next output.
    pub fn restate(&mut self) {
        self.paxos.restate();
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The Paxos core, to look at.
    pub fn paxos(&self) -> &Paxos {
        &self.paxos
    }

    /// The state machine, to read from.
    pub fn machine(&self) -> &S {
        &self.machine
    }

    /// The state machine, for what its leader proposes by itself.
    pub fn machine_mut(&mut self) -> &mut S {
        &mut self.machine
    }

    /// The highest slot applied.
    pub fn applied(&self) -> Slot {
        self.applied
    }

    /// The highest slot whose effects the store has on disk.
    pub fn persisted(&self) -> Slot {
        self.persisted
    }

    /// Everyone who waits, for checks.
    pub fn waiting(&self) -> BTreeSet<Waiter> {
        let reads = self.reads_confirming.values().chain(self.reads_confirmed.values()).flatten();
        let proposals = self.proposals.values().map(|(waiter, _)| waiter);
        let arrived = self.reads_arrived.iter().chain(&self.reads_leased);
        reads.chain(arrived).chain(proposals).copied().collect()
    }
}
