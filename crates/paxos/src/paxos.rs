//! One replica of one group: the roles put together, its inputs and its output.

use base::limits::{TAIL_BYTES_MAX, WINDOW_BYTES_MAX, WINDOW_SLOTS_MAX};
use base::{GroupId, Lsn, Micros, Now, ReplicaId, Slot};

use crate::acceptor::Acceptor;
use crate::ballot::{Ballot, EPOCH_FIRST};
use crate::confirm::{Confirms, ReadTicket};
use crate::election::Election;
use crate::epoch::Epochs;
use crate::gate::{Gate, PENDING};
use crate::install::Installing;
use crate::invariants::Watch;
use crate::learner::Learner;
use crate::lease::Grant;
use crate::loader::{Loader, Purpose};
use crate::log::Log;
use crate::members::Members;
use crate::message::{Command, HeartbeatRow, Message, Value};
use crate::output::{Output, Refusal, SlotStatus, Stats};
use crate::proposer::Role;
use crate::record::Record;
use crate::repair::{Repairs, vouches};

/// A replica of a group: a pure state machine. Inputs change it, [`Paxos::take_output`] takes what
/// came out. No order of calls is asked for, except that an output is taken before the positions
/// of its records are said to be persisted.
///
/// - While this replica campaigns or leads, the ballot is its own promise.
/// - A message that vouches for a record leaves only when the record is durable (`gate.rs`).
#[derive(Debug)]
pub struct Paxos {
    pub(crate) options: Options,
    pub(crate) members: Members,
    pub(crate) epochs: Epochs,
    pub(crate) log: Log,
    pub(crate) acceptor: Acceptor,
    pub(crate) grant: Grant,
    pub(crate) learner: Learner,
    pub(crate) role: Role,
    pub(crate) election: Election,
    pub(crate) confirms: Confirms,
    pub(crate) loader: Loader,
    pub(crate) gate: Gate,
    pub(crate) stats: Stats,
    /// What the next output will hold.
    pub(crate) output: Output,
    /// The boot clock at the last input.
    pub(crate) now: Micros,
    /// A `GroupState` is due in the next output.
    restate: bool,
    /// This replica may have forgotten what it promised or accepted: it never votes again.
    pub(crate) quarantined: bool,
    /// The store does not hold what this replica executed: it votes, and does not lead.
    pub(crate) store_lost: bool,
    pub(crate) repairs: Repairs,
    /// The copy of another replica's state that takes the place of this one's.
    pub(crate) installing: Installing,
    watch: Watch,
}

/// The settings of a replica. The limits are local: replicas of a group may differ in them.
#[derive(Clone, Debug)]
pub struct Options {
    /// The group.
    pub group: GroupId,
    /// This replica.
    pub replica: ReplicaId,
    /// Seeds the jitter of elections; it should differ from start to start.
    pub seed: u64,
    /// Bytes of values kept in memory once they are on the disk.
    pub tail_bytes_max: usize,
    /// Slots that a leader proposes beyond the chosen prefix; at most `WINDOW_SLOTS_MAX`.
    pub window_slots: u64,
    /// Bytes in flight to one follower; one larger value travels alone.
    pub window_bytes: usize,
    /// Bytes that a leader proposes beyond the chosen prefix; one larger value goes alone.
    pub unchosen_bytes_max: usize,
    /// Reads that may wait for their confirmation.
    pub tickets_max: usize,
}

impl Options {
    /// The usual limits.
    pub fn new(group: GroupId, replica: ReplicaId, seed: u64) -> Options {
        Options {
            group,
            replica,
            seed,
            tail_bytes_max: TAIL_BYTES_MAX,
            window_slots: WINDOW_SLOTS_MAX,
            window_bytes: WINDOW_BYTES_MAX,
            unchosen_bytes_max: TAIL_BYTES_MAX,
            tickets_max: base::limits::NODE_REQUESTS_MAX,
        }
    }
}

impl Paxos {
    /// A new replica: of a new group, or one that is to learn from these members and does not vote
    /// among them. Its first output carries `Record::GroupCreate`.
    pub fn create(options: Options, members: Members) -> Paxos {
        let replica = options.replica;
        let record = Record::GroupCreate { replica, members: members.clone() };
        let log = Log::new(Slot::ZERO);
        let learner = Learner::default();
        let mut paxos =
            Paxos::assemble(options, members, log, Acceptor::default(), learner, Lsn::ZERO);
        paxos.append(record);
        paxos.lead_alone();
        paxos
    }

    /// Puts the parts together.
    pub(crate) fn assemble(
        options: Options,
        members: Members,
        log: Log,
        acceptor: Acceptor,
        learner: Learner,
        durable: Lsn,
    ) -> Paxos {
        assert!(options.window_slots <= WINDOW_SLOTS_MAX, "a window above its limit");
        let me = options.replica;
        let others = members.replicas().filter(|replica| *replica != me);
        let election = Election::new(options.seed, members.epoch(), others);
        // A new group has nothing before it; of any other the log tells.
        let done = if members.epoch() == EPOCH_FIRST { EPOCH_FIRST } else { 0 };
        Paxos {
            options,
            members,
            epochs: Epochs::new(done),
            log,
            acceptor,
            grant: Grant::default(),
            learner,
            role: Role::Following,
            election,
            confirms: Confirms::default(),
            loader: Loader::default(),
            gate: Gate::new(durable),
            stats: Stats::default(),
            output: Output::default(),
            now: Micros::default(),
            restate: false,
            quarantined: false,
            store_lost: false,
            repairs: Repairs::default(),
            installing: Installing::No,
            watch: Watch::default(),
        }
    }

    /// A group of one asks nobody.
    pub(crate) fn lead_alone(&mut self) {
        if self.members.voters().len() == 1 && self.is_voter() {
            self.step_down();
            self.prepare(Now::default(), None);
            self.settle(Now::default());
        }
    }

    /// Campaigns at once, whoever leads, unless this replica has granted time to another: for
    /// tests and for teaching. Safety does not rest on who campaigns when.
    pub fn campaign(&mut self, now: Now) {
        self.at(now);
        let bound = self.bound(now, self.options.replica, None).is_some();
        if self.is_unfit_to_lead() || bound || !self.is_voter() {
            return;
        }
        self.step_down();
        self.prepare(now, None);
        self.settle(now);
    }

    // ------------------------------------------------------------------ inputs

    /// A message arrived. Messages that are late, doubled, or not from a voter do no harm.
    pub fn handle(&mut self, now: Now, from: ReplicaId, message: Message) {
        self.at(now);
        let ballot = message.ballot();
        if from == self.options.replica {
        } else if ballot.is_some_and(|ballot| ballot.epoch != self.epoch()) {
            self.on_other_epoch(now, from, &message);
        } else if ballot.is_some() && !self.members.contains(from) {
            self.on_stranger(from, &message);
        } else {
            self.take(now, from, message);
        }
        self.settle(now);
    }

    fn take(&mut self, now: Now, from: ReplicaId, message: Message) {
        if self.quarantined && vouches(&message) {
            return;
        }
        match message {
            Message::Prepare(prepare) => {
                self.election.saw(prepare.ballot);
                self.on_prepare(now, from, &prepare);
            }
            Message::Promise(promise) => self.on_promise(now, from, promise),
            Message::Reject(reject) => self.on_reject(now, reject),
            Message::Accept(accept) => self.on_accept(now, from, accept),
            Message::Accepted(accepted) => self.on_accepted(now, from, accepted),
            Message::Chosen(chosen) => self.on_chosen(now, from, chosen),
            Message::Fetch(fetch) => self.on_fetch(from, fetch),
            Message::Values(values) => self.on_values(now, values),
            Message::CatchUpRequest(request) => self.on_catch_up_request(from, request),
            Message::CatchUp(catch_up) => self.on_catch_up(now, catch_up),
            Message::Confirm(confirm) => self.on_confirm(now, from, confirm),
            Message::ConfirmAck(ack) => self.on_confirm_ack(from, ack),
            Message::TransferGo(go) => self.on_transfer_go(now, from, go),
            Message::Release(release) => self.on_release(from, release),
            Message::EpochInfo(info) => self.on_epoch_info(now, from, info),
        }
    }

    /// Time passed; to be called about every 5 to 10 ms.
    pub fn tick(&mut self, now: Now) {
        self.at(now);
        self.settle(now);
        self.repeat_prepare(now);
        self.tend_followers(now);
        self.repeat_confirm(now);
        self.catch_up(now, false);
        self.tend_repairs(now);
        self.check();
    }

    /// Whether that replica's node and this one hear each other, and their round trip.
    pub fn connected(&mut self, now: Now, replica: ReplicaId, connected: bool, trip: Micros) {
        self.at(now);
        self.on_connected(replica, connected, trip);
        self.settle(now);
    }

    /// That replica's row in its node's heartbeat.
    pub fn heard(&mut self, now: Now, from: ReplicaId, row: HeartbeatRow) {
        self.at(now);
        self.on_heard(from, row);
        self.settle(now);
    }

    /// Proposes a command: in this slot it will be chosen, unless another leader takes over. What
    /// is chosen there tells.
    pub fn propose(&mut self, now: Now, command: Command) -> Result<Slot, Refusal> {
        self.at(now);
        let slot = self.propose_command(command);
        self.check();
        slot
    }

    /// A read waits: asks a quorum whether this replica still leads.
    pub fn confirm(&mut self, now: Now) -> Result<ReadTicket, Refusal> {
        self.at(now);
        self.take_ticket()
    }

    /// The answer to one of `Output.loads`: the value, or none if it could not be read.
    pub fn loaded(&mut self, now: Now, slot: Slot, ballot: Ballot, value: Option<Value>) {
        self.at(now);
        self.on_loaded(now, slot, ballot, value.as_ref());
        self.evaluate(now);
        self.check();
    }

    /// All records of the write-ahead log up to `through` are on the disk.
    pub fn persisted(&mut self, now: Now, through: Lsn) {
        self.at(now);
        self.gate.persisted(through);
        self.log.persisted(self.gate.durable());
        let promising = !self.acceptor.is_durable();
        self.acceptor.persisted(self.gate.durable());
        if promising && self.acceptor.is_durable() && self.ballot().replica != self.replica() {
            self.election.promised_to_other(now.mono);
        }
        self.finish_install(now);
        self.advance_have();
        self.advance_votes();
        self.evaluate(now);
        self.open_epoch(now);
        self.count_votes(now);
        self.tend_transfer(now);
        self.tend_epoch();
        self.evict();
        self.check();
    }

    /// This replica's disk does not keep up, or does again. While another could lead, one with such
    /// a disk does not.
    pub fn set_unwell(&mut self, now: Now, unwell: bool) {
        self.at(now);
        if self.election.set_unwell(unwell, now.mono) {
            self.settle(now);
        }
    }

    /// From now on this replica does not campaign: its node stops. It goes on leading until its
    /// leadership is passed on.
    pub fn abstain(&mut self) {
        self.election.abstain();
    }

    /// Forgets the slots up to here, which are durable here. The caller has executed them durably,
    /// save where its store is lost: then a copy of another's state will have to stand behind them.
    /// Whoever lacks them, beyond [`Paxos::truncatable`], will need such a copy too.
    pub fn truncate(&mut self, upto: Slot) {
        assert!(upto <= self.learner.have_upto, "{upto} is not held");
        if self.store_lost {
            self.learner.emitted_upto = self.learner.emitted_upto.max(upto);
        }
        assert!(upto <= self.learner.emitted_upto, "{upto} was not handed out");
        if upto > self.log.truncated_upto() {
            self.log.truncate(upto);
        }
        self.check();
    }

    /// Writes once more what this replica accepted and does not know to be decided, where that lies
    /// below this position of the write-ahead log: a group that decides nothing, for want of a
    /// majority or of this replica's membership, would else keep the log from being freed. No more
    /// than about so many bytes at once; returns how many.
    pub fn carry_forward(&mut self, below: Lsn, bytes_max: usize) -> usize {
        let is_stranded = self.log.keep_from().is_some_and(|first| first < below);
        if !is_stranded || self.loader.is_waiting(Purpose::Carry) || self.loads_pause() {
            return 0;
        }
        let (stranded, bytes) = self.log.stranded(self.learner.have_upto, below, bytes_max);
        for slot in stranded {
            match self.log.value(slot).cloned() {
                Some(value) => self.carry(slot, self.log.ballot(slot), value),
                None => self.load(slot, Purpose::Carry),
            }
        }
        self.check();
        bytes
    }

    /// Records this slot once more, if it still holds what was accepted in it under this ballot.
    pub(crate) fn carry(&mut self, slot: Slot, ballot: Ballot, value: Value) {
        let holds = self.log.entry(slot).is_some_and(|e| e.ballot == ballot && !e.faulty);
        if slot > self.learner.have_upto && holds && !self.is_installing() {
            let index = self.write_value(slot, ballot, value);
            self.log.carry(slot, index);
        }
    }

    /// Puts a `Record::GroupState` into the next output.
    pub fn restate(&mut self) {
        self.restate = true;
    }

    // ------------------------------------------------------------------ output

    /// Takes what came out since the last call. The first of its records will have the position
    /// `next_lsn`, which lies above all positions given or persisted before.
    pub fn take_output(&mut self, next_lsn: Lsn) -> Output {
        self.ask_confirm();
        self.stream();
        self.answer_leader();
        self.emit_chosen();
        self.hint_chosen(self.output.records.len());
        if std::mem::take(&mut self.restate) {
            self.append(Record::GroupState {
                replica: self.options.replica,
                members: self.members.clone(),
                promised: self.acceptor.promised,
                chosen_upto: self.learner.chosen_upto,
                truncated_upto: self.log.truncated_upto(),
                done: self.epochs.done,
                quarantined: self.quarantined,
                store_lost: self.store_lost,
                all_upto: self.all_upto(),
            });
            for (first, last) in std::mem::take(&mut self.repairs.mended) {
                self.append(Record::Mended { first, last });
            }
        }
        self.output.peers_changed |= std::mem::take(&mut self.epochs.peers_changed);
        let mut output = std::mem::take(&mut self.output);
        self.place(&output.records, next_lsn);
        output.messages = self.gate.take();
        self.evict();
        self.check();
        output
    }

    fn place(&mut self, records: &[Record], next_lsn: Lsn) {
        let Some(more) = records.len().checked_sub(1) else { return };
        assert!(next_lsn > self.gate.durable(), "{next_lsn} is on the disk already");
        let last = Lsn(next_lsn.0 + more as u64);
        for (lsn, record) in (next_lsn.0..).map(Lsn).zip(records) {
            if let Record::Entries { first, ballot, values } = record {
                self.log.place(*first, *ballot, values.len(), lsn);
            }
        }
        // The promise may lie in an earlier record than the last; waiting for all of one output
        // costs nothing, as it is written at once.
        if self.acceptor.promised_at == PENDING {
            self.acceptor.promised_at = last;
        }
        self.place_install(last);
        self.gate.place(last);
    }

    /// Adds a record to the next output.
    pub(crate) fn append(&mut self, record: Record) {
        self.output.records.push(record);
    }

    /// The position of the newest record, placed or not.
    pub(crate) fn newest_record(&self) -> Lsn {
        match self.output.records.is_empty() {
            true => self.gate.placed(),
            false => PENDING,
        }
    }

    /// Accepts a value in a slot: in the log, and in the records of the next output.
    pub(crate) fn write_entry(&mut self, slot: Slot, ballot: Ballot, value: Value) {
        assert!(ballot <= self.acceptor.promised, "{ballot} was not promised");
        let index = self.write_value(slot, ballot, value.clone());
        self.log.set(slot, ballot, index, value);
    }

    /// Adds an accepted value to the records of the next output; returns its index in its record.
    /// Consecutive slots under one ballot share a record.
    fn write_value(&mut self, slot: Slot, ballot: Ballot, value: Value) -> u32 {
        match self.output.records.last_mut() {
            Some(Record::Entries { first, ballot: of, values })
                if *of == ballot
                    && first.0 + values.len() as u64 == slot.0
                    && values.len() < base::limits::ACCEPT_SLOTS_MAX =>
            {
                values.push(value);
                values.len() as u32 - 1
            }
            Some(_) | None => {
                self.append(Record::Entries { first: slot, ballot, values: vec![value] });
                0
            }
        }
    }

    fn evict(&mut self) {
        // A leader may have to send again what is not chosen.
        let limit = match &self.role {
            Role::Leading(_) => self.learner.chosen_upto,
            Role::Following | Role::Probing(_) | Role::Preparing(_) => Slot(u64::MAX),
        };
        self.log.evict(self.options.tail_bytes_max, self.gate.durable(), limit);
    }

    pub(crate) fn settle(&mut self, now: Now) {
        self.tend_transfer(now);
        self.elect(now);
        self.tend_epoch();
        self.check();
    }

    fn check(&mut self) {
        if cfg!(debug_assertions) {
            let mut watch = std::mem::take(&mut self.watch);
            watch.step(self);
            self.watch = watch;
        }
    }

    // ------------------------------------------------------------------ queries

    /// What the other replicas should know of this one; to be sent whenever it changed.
    pub fn heartbeat_row(&self) -> HeartbeatRow {
        HeartbeatRow {
            ballot: self.acceptor.promised_durable,
            leader: self.election.leader,
            have_upto: self.learner.have_upto,
            able: self.is_able(),
            truncated_upto: self.serves_behind(),
        }
    }

    /// Slots up to here may be forgotten as far as the other replicas are concerned.
    pub fn truncatable(&self) -> Slot {
        self.learner.truncate_upto.min(self.learner.have_upto)
    }

    /// The lowest position of a record that holds an entry that is not forgotten.
    pub fn keep_from(&self) -> Option<Lsn> {
        self.log.keep_from()
    }

    /// This replica.
    pub fn replica(&self) -> ReplicaId {
        self.options.replica
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.options.group
    }

    /// The voters.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The highest ballot promised.
    pub fn ballot(&self) -> Ballot {
        self.acceptor.promised
    }

    /// The replica believed to lead.
    pub fn leader(&self) -> Option<ReplicaId> {
        self.election.leader.map(|ballot| ballot.replica)
    }

    /// Whether this replica leads, as far as it knows. Others may believe the same of themselves.
    pub fn is_leading(&self) -> bool {
        matches!(self.role, Role::Leading(_))
    }

    /// The prefix known to be chosen.
    pub fn chosen_upto(&self) -> Slot {
        self.learner.chosen_upto
    }

    /// The part of it that is durable here.
    pub fn have_upto(&self) -> Slot {
        self.learner.have_upto
    }

    /// The last slot handed out as chosen, or executed before the start.
    pub fn emitted_upto(&self) -> Slot {
        self.learner.emitted_upto
    }

    /// The first slot that is not forgotten.
    pub fn first_slot(&self) -> Slot {
        self.log.truncated_upto().next()
    }

    /// The last slot that holds anything; below the first where nothing does.
    pub fn last_slot(&self) -> Slot {
        self.log.last()
    }

    /// What is known of a slot.
    pub fn status(&self, slot: Slot) -> SlotStatus {
        let ballot = self.log.ballot(slot);
        if slot <= self.log.truncated_upto() {
            SlotStatus::Cleared
        } else if slot <= self.learner.chosen_upto {
            SlotStatus::Chosen(ballot)
        } else if ballot == Ballot::ZERO {
            SlotStatus::Empty
        } else {
            SlotStatus::Accepted(ballot)
        }
    }

    /// The value of a slot, as far as it is in memory.
    pub fn value(&self, slot: Slot) -> Option<&Value> {
        self.log.value(slot)
    }

    /// Bytes of values in memory.
    pub fn tail_bytes(&self) -> usize {
        self.log.tail_bytes()
    }

    /// How many messages wait for the disk.
    pub fn held_count(&self) -> usize {
        self.gate.held_count()
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}
