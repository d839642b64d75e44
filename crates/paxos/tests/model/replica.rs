//! One replica and its disk: a real `Paxos` value, and what can happen to it.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use base::{DiskId, GroupId, Lsn, Micros, NodeId, Now, ReplicaId, Slot, WallMillis};
use bytes::Bytes;
use paxos::{
    Ballot, Command, HeartbeatRow, Member, Members, Message, Options, Output, Paxos, Record,
    Recovery, Standing, Value,
};

use crate::bugs::Bug;
use crate::words;

/// So many replicas there are.
pub const COUNT: usize = 3;

/// What can happen to a replica.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message arrives.
    Deliver(ReplicaId, Message),
    /// It runs out of patience and campaigns.
    Campaign,
    /// A client brings a command.
    Propose,
    /// The group is to go on with the second and third replica alone.
    Change,
    /// A quarter of a second passes here: whatever waits for a time-out has had it.
    Tick,
    /// The oldest record that is not on the disk yet is now.
    Sync,
    /// It stops, loses what is not on the disk, and starts again. Its store, which is apart from
    /// the log, has executed everything that was handed out, or nothing.
    Crash { stored: bool },
}

/// How much of each bounded choice was made here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub campaigns: u8,
    pub commands: u8,
    pub changes: u8,
    pub ticks: u8,
    pub crashes: u8,
}

/// What happened, as nobody in the group can know it: it outlives crashes and disks.
#[derive(Debug, Default)]
struct Past {
    /// The highest ballot that others were promised.
    promised: Ballot,
    /// Every vote that was ever on the disk.
    voted: BTreeSet<(Slot, Ballot, String)>,
    /// What was proposed in a slot under a ballot.
    proposed: BTreeMap<(Slot, Ballot), String>,
    /// The ballots under which it led, each with the number of the start.
    led: BTreeMap<Ballot, u8>,
    /// The first slot that the leader of a ballot proposes.
    bases: BTreeMap<Ballot, Slot>,
    /// What was handed out as chosen.
    learned: BTreeMap<Slot, Value>,
    /// The slot through which the store durably has it.
    stored: Slot,
}

/// What the explorer must know of a replica to judge a state and to go on from it.
#[derive(Clone, Debug)]
pub struct Facts {
    pub spent: Spent,
    /// The ballot promised in memory.
    pub ballot: Ballot,
    /// Some record is not on the disk.
    pub unsynced: bool,
    pub votes: Vec<(Slot, Ballot, String)>,
    pub learned: Vec<(Slot, String)>,
    /// While it leads: its log, which begins at `log_first`.
    pub leads: Option<BTreeMap<Slot, String>>,
    pub log_first: Slot,
    /// The first slot of its epoch.
    pub epoch_first: Slot,
}

pub struct Replica {
    me: ReplicaId,
    paxos: Paxos,
    records: Vec<(Lsn, Record)>,
    synced: Lsn,
    clock: Micros,
    spent: Spent,
    past: Past,
    setting: Setting,
}

/// What a replica finds in the world.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// So many commands wait here until it leads.
    pub waiting: u8,
    /// Hints of what is chosen are written at once.
    pub hints: bool,
    /// What is wrong with the world.
    pub bug: Option<Bug>,
    /// Each step is judged by itself.
    pub judged: bool,
}

/// What a step brought, or what is wrong with it.
pub type Stepped = Result<Vec<(ReplicaId, Message)>, String>;

fn member(number: u64) -> Member {
    Member { replica: ReplicaId(number), node: NodeId(number), disk: DiskId(number.into()) }
}

/// The voters of an epoch: all three, and after the change that may come the last two.
pub fn voters(epoch: u32) -> Vec<Member> {
    let first = if epoch == 1 { 1 } else { 2 };
    (first..=COUNT as u64).map(member).collect()
}

/// At this time no hint of what is chosen is due yet, and at the later one it is.
const START: Micros = Micros::from_millis(100);
const START_HINTS: Micros = Micros::from_millis(1_000);
/// The clock of a replica that starts again leaps over all that an earlier start may have granted.
const LEAP: Micros = Micros::from_millis(250);
const TICK: Micros = Micros::from_millis(250);

impl Replica {
    /// A replica of a new group, whose first record is on its disk.
    pub fn create(me: ReplicaId, setting: Setting) -> Replica {
        let mut replica = Replica {
            me,
            paxos: fresh(me),
            records: Vec::new(),
            synced: Lsn::ZERO,
            clock: if setting.hints { START_HINTS } else { START },
            spent: Spent::default(),
            past: Past::default(),
            setting,
        };
        replica.begin();
        replica
    }

    fn now(&self) -> Now {
        Now { mono: self.clock, wall: WallMillis(1) }
    }

    /// What a start does before anything else can happen.
    fn begin(&mut self) {
        let mut sent = self.drain();
        self.synced = self.written();
        let synced = self.synced;
        self.paxos.persisted(self.now(), synced);
        self.paxos.tick(self.now());
        self.clock = self.clock + LEAP;
        for other in (1..=COUNT as u64).map(ReplicaId).filter(|other| *other != self.me) {
            // Each is told that all others hear some leader: then it campaigns when the explorer
            // says so, and at no other time.
            let happy = Ballot { epoch: u32::MAX, round: 0, replica: ReplicaId(u64::MAX) };
            let row = HeartbeatRow { leader: Some(happy), ..HeartbeatRow::default() };
            self.paxos.heard(self.now(), other, row);
            self.paxos.connected(self.now(), other, true, Micros(500));
        }
        sent.extend(self.drain());
        assert!(sent.is_empty(), "a start says nothing by itself");
    }

    fn written(&self) -> Lsn {
        self.records.last().map_or(Lsn::ZERO, |(lsn, _)| *lsn)
    }

    /// Lets something happen. A panic of the core is a finding like any other.
    pub fn step(&mut self, event: &Event) -> Stepped {
        match catch_unwind(AssertUnwindSafe(|| self.act(event))) {
            Ok(stepped) => stepped,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Err(format!("{} stops itself: {}", self.me, text.unwrap_or_default()))
            }
        }
    }

    fn act(&mut self, event: &Event) -> Stepped {
        match event {
            Event::Deliver(from, message) => self.deliver(*from, message),
            Event::Campaign => {
                let before = self.paxos.ballot();
                self.paxos.campaign(self.now());
                self.spent.campaigns += u8::from(self.paxos.ballot() > before);
            }
            Event::Propose => self.propose(),
            Event::Change => {
                let changed = self.paxos.change(self.now(), voters(2), ReplicaId(2));
                self.spent.changes += u8::from(changed.is_ok());
            }
            Event::Tick => {
                self.spent.ticks += 1;
                self.clock = self.clock + TICK;
                self.paxos.tick(self.now());
            }
            Event::Sync => self.sync(),
            Event::Crash { stored } => self.crash(*stored)?,
        }
        while self.setting.waiting > 0 && self.paxos.is_leading() {
            self.setting.waiting -= 1;
            self.propose();
        }
        let sent = self.drain();
        self.note_votes();
        for (to, message) in &sent {
            self.note_sent(*to, message)?;
        }
        self.judge()?;
        Ok(sent)
    }

    fn deliver(&mut self, from: ReplicaId, message: &Message) {
        if let Message::Accept(accept) = message {
            self.past.bases.insert(accept.ballot, accept.base);
        }
        let now = self.now();
        let mut message = message.clone();
        if self.setting.bug == Some(Bug::OldReplyAsNew) && self.paxos.ballot().replica == self.me {
            let ballot = self.paxos.ballot();
            match &mut message {
                Message::Promise(promise) if promise.ballot.replica == self.me => {
                    promise.ballot = ballot;
                }
                Message::Accepted(accepted) if accepted.ballot.replica == self.me => {
                    accepted.ballot = ballot;
                }
                _ => {}
            }
        }
        if self.setting.bug == Some(Bug::VoteOfTwo) && matches!(message, Message::Accepted(_)) {
            let third = |id: &ReplicaId| *id != from && *id != self.me;
            let third = (1..=COUNT as u64).map(ReplicaId).find(third);
            if let Some(third) = third {
                self.paxos.handle(now, third, message.clone());
            }
        }
        self.paxos.handle(now, from, message);
    }

    fn propose(&mut self) {
        let number = self.spent.commands + 1;
        let payload = Bytes::from(format!("{}#{number}", self.me));
        let command = Command { time: WallMillis(1), trace: None, payload };
        self.spent.commands += u8::from(self.paxos.propose(self.now(), command).is_ok());
    }

    fn sync(&mut self) {
        let next = self.records.iter().map(|(lsn, _)| *lsn).find(|lsn| *lsn > self.synced);
        self.synced = next.unwrap_or(self.synced);
        let synced = self.synced;
        self.paxos.persisted(self.now(), synced);
    }

    fn crash(&mut self, stored: bool) -> Result<(), String> {
        self.spent.crashes += 1;
        let synced = self.synced;
        self.records.retain(|(lsn, _)| *lsn <= synced);
        let lost = self.records.iter().rposition(|(_, record)| match self.setting.bug {
            Some(Bug::LosesPromise) => matches!(record, Record::Promise { .. }),
            Some(Bug::LosesVote) => matches!(record, Record::Entries { .. }),
            Some(Bug::LosesEpoch) => matches!(record, Record::Epoch { .. }),
            Some(_) | None => false,
        });
        if let Some(lost) = lost {
            self.records.remove(lost);
        }
        self.clock = self.clock + LEAP;
        if self.setting.bug == Some(Bug::EmptyDisk) {
            self.records.clear();
            self.synced = Lsn::ZERO;
            self.past.stored = Slot::ZERO;
            self.paxos = fresh(self.me);
        } else {
            if stored {
                let all = self.past.learned.keys().next_back().copied();
                self.past.stored = all.unwrap_or_default();
            }
            self.paxos = self.recover().map_err(|what| format!("{}: {what}", self.me))?;
        }
        self.begin();
        Ok(())
    }

    /// The replica that the records and the store make.
    fn recover(&self) -> Result<Paxos, String> {
        let mut recovery = Recovery::new(options(self.me));
        for (lsn, record) in &self.records {
            recovery.push(*lsn, record.clone()).map_err(|error| error.to_string())?;
        }
        let executed = self.past.stored;
        if executed > Slot::ZERO {
            let mut standing = Standing { members: members(), done: 1 };
            for (_, value) in self.past.learned.range(..=executed) {
                if let Value::Stop(members) = value {
                    standing.members = members.clone();
                } else if let Value::Done(epoch) = value {
                    standing.done = *epoch;
                }
            }
            recovery.stands(executed, standing);
        }
        recovery.finish(executed).map_err(|error| error.to_string())
    }

    /// Takes all that came out.
    fn drain(&mut self) -> Vec<(ReplicaId, Message)> {
        let mut sent = Vec::new();
        loop {
            let first = Lsn(self.written().0 + 1);
            let output: Output = self.paxos.take_output(first);
            let done = output.records.is_empty();
            self.records.extend((first.0..).map(Lsn).zip(output.records));
            for chosen in output.chosen {
                let (slot, value) = (chosen.slot, chosen.value);
                let known = self.past.learned.entry(slot).or_insert_with(|| value.clone());
                assert_eq!(*known, value, "I8: another value of {slot} than before was learned");
            }
            assert!(output.loads.is_empty(), "every value is in memory");
            sent.extend(output.messages.into_iter().map(|(to, message)| (to, self.bend(message))));
            // A disk that says too early that it is done.
            if done || self.setting.bug != Some(Bug::EarlySync) {
                return sent;
            }
            let written = self.written();
            self.paxos.persisted(self.now(), written);
        }
    }

    fn bend(&self, mut message: Message) -> Message {
        if let (Some(Bug::DeniesVotes), Message::Promise(promise)) =
            (self.setting.bug, &mut message)
        {
            promise.runs.clear();
            promise.values.clear();
        }
        message
    }

    fn durable(&self) -> impl Iterator<Item = &Record> + '_ {
        let durable = self.records.iter().filter(|(lsn, _)| *lsn <= self.synced);
        durable.map(|(_, record)| record)
    }

    fn note_votes(&mut self) {
        let mut votes = Vec::new();
        for record in self.durable() {
            if let Record::Entries { first, ballot, values } = record {
                let slots = (first.0..).map(Slot);
                votes.extend(slots.zip(values).map(|(s, value)| (s, *ballot, words::value(value))));
            }
        }
        self.past.voted.extend(votes);
    }

    /// The highest promise that is on the disk.
    fn promised(&self) -> Ballot {
        let ballots = self.durable().map(|record| match record {
            Record::Promise { ballot } | Record::Entries { ballot, .. } => *ballot,
            Record::Epoch { members } => members.first_ballot(),
            _ => Ballot::ZERO,
        });
        ballots.max().unwrap_or_default()
    }

    /// Whether a slot was accepted on the disk, and under which ballot last.
    fn accepted(&self, slot: Slot) -> Option<Ballot> {
        let held = self.durable().filter_map(|record| match record {
            Record::Entries { first, ballot, values } => {
                let last = first.0 + values.len() as u64;
                (first.0..last).contains(&slot.0).then_some(*ballot)
            }
            _ => None,
        });
        held.last()
    }

    /// What a message says must be on the disk of who says it (I3), and under a ballot a slot has
    /// one value (I4).
    fn note_sent(&mut self, to: ReplicaId, message: &Message) -> Result<(), String> {
        let (me, durable) = (self.me, self.promised());
        let mut wrong = None;
        match message {
            Message::Prepare(prepare) if !prepare.probe => {
                let bad = durable < prepare.ballot;
                wrong = bad.then(|| format!("I3: {me} campaigns under {}", prepare.ballot));
            }
            Message::Promise(promise) if !promise.probe => {
                self.past.promised = self.past.promised.max(promise.ballot);
                let slots = promise.runs.iter().flat_map(|run| {
                    (run.first.0..=run.last.0).map(move |slot| (Slot(slot), run.ballot))
                });
                let held = |slot, ballot| self.accepted(slot).is_some_and(|held| held >= ballot);
                let bad = slots.into_iter().find(|(slot, ballot)| !held(*slot, *ballot));
                wrong = bad.map(|(slot, _)| format!("I3: {me} reports {slot} to {to}"));
                if durable < promise.ballot {
                    wrong = Some(format!("I3: {me} promises {} to {to}", promise.ballot));
                }
            }
            Message::Accepted(vote) => {
                self.past.promised = self.past.promised.max(vote.ballot);
                let base = self.past.bases.get(&vote.ballot).copied().unwrap_or(Slot(1));
                let behind = vote.sack.iter().flat_map(|range| range.first.0..=range.last.0);
                let votes = (base.0..=vote.acc_upto.0).chain(behind).map(Slot);
                let bad = |slot: &Slot| {
                    self.accepted(*slot).is_none_or(|held| held < vote.ballot)
                        && *slot > vote.have_upto
                };
                let has = (1..=vote.have_upto.0).map(Slot);
                let stored = self.past.stored;
                let mut has = has.filter(|slot| *slot > stored && self.accepted(*slot).is_none());
                let bad = votes.into_iter().find(bad).or_else(|| has.next());
                wrong = bad.map(|slot| format!("I3: {me} votes for {slot} under {}", vote.ballot));
            }
            Message::Accept(accept) => {
                let slots = (accept.first.0..).map(Slot);
                for (slot, value) in slots.zip(&accept.values) {
                    let value = words::value(value);
                    let key = (slot, accept.ballot);
                    let known = self.past.proposed.entry(key).or_insert_with(|| value.clone());
                    if *known != value {
                        let ballot = accept.ballot;
                        let both = format!("{known} and {value}");
                        wrong = Some(format!("I4: {both} proposed in {slot} under {ballot}"));
                    }
                }
            }
            _ => {}
        }
        match wrong {
            Some(what) if self.setting.judged => {
                Err(format!("{what}, which is not so on its disk"))
            }
            _ => Ok(()),
        }
    }

    /// What must hold of this replica alone.
    fn judge(&mut self) -> Result<(), String> {
        let ballot = self.paxos.ballot();
        if self.paxos.is_leading() {
            let start = *self.past.led.entry(ballot).or_insert(self.spent.crashes);
            if start != self.spent.crashes && self.setting.judged {
                return Err(format!("I4: {} leads again under {ballot}", self.me));
            }
        }
        if !self.setting.judged {
            return Ok(());
        }
        paxos::invariants::check_log(&self.paxos);
        let promised = self.past.promised;
        if self.promised() < promised {
            return Err(format!("I2: {} promised {promised} and has forgotten it", self.me));
        }
        Ok(())
    }

    pub fn facts(&self) -> Facts {
        let paxos = &self.paxos;
        let slots = paxos.first_slot().0..=paxos.last_slot().0;
        let held =
            slots.map(Slot).filter_map(|slot| Some((slot, words::value(paxos.value(slot)?))));
        let learned = self.past.learned.iter();
        Facts {
            spent: self.spent,
            ballot: paxos.ballot(),
            unsynced: self.written() > self.synced,
            votes: self.past.voted.iter().cloned().collect(),
            learned: learned.map(|(slot, value)| (*slot, words::value(value))).collect(),
            leads: paxos.is_leading().then(|| held.collect()),
            log_first: paxos.first_slot(),
            epoch_first: paxos.members().first_slot(),
        }
    }

    /// All that what happens next can depend on. Of the core only the counters, on which nothing
    /// depends, and the random numbers to come are left out.
    pub fn picture(&self) -> String {
        let core = format!("{:?}", self.paxos);
        let (before, rest) = core.split_once("stats: Stats {").expect("a replica has counters");
        let (_, after) = rest.split_once('}').expect("counters end");
        format!(
            "{before}{after} {:?} {:?} {:?} {:?} {:?}",
            self.records, self.synced, self.clock, self.spent, self.past
        )
    }

    /// What is on the disk.
    pub fn disk(&self) -> String {
        let records: Vec<String> = self.durable().map(words::record).collect();
        records.join(", ")
    }
}

fn options(me: ReplicaId) -> Options {
    Options::new(GroupId(1), me, me.0)
}

fn fresh(me: ReplicaId) -> Paxos {
    Paxos::create(options(me), members())
}

/// The members of the first epoch.
fn members() -> Members {
    Members::new(voters(1)).expect("three voters")
}
