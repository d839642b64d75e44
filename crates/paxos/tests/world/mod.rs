//! A group of replicas with disks that lose what was not synced and a network that does whatever a
//! test asks for. Every step is checked: agreement, durability of what is chosen, durability of what
//! messages vouch for, one value per slot and ballot, and reads that see all that was chosen before.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

mod disk;

use std::collections::{BTreeMap, BTreeSet};

use base::limits::GRANT_SPAN;
use base::{DiskId, GroupId, Lsn, Micros, NodeId, Now, Random, ReplicaId, Slot, WallMillis};
use bytes::Bytes;
use paxos::message::{Accepted, Promise};
use paxos::{
    Ballot, Chosen, Command, HeartbeatRow, Load, Member, Members, Message, Options, Output, Paxos,
    ReadTicket, Record, Recovery, Standing, Value,
};

pub use self::disk::Disk;

pub struct Replica {
    /// None while the replica is down.
    pub paxos: Option<Paxos>,
    pub disk: Disk,
    /// The last slot executed in memory.
    pub applied: Slot,
    /// The last slot executed in the store that survives a crash.
    pub stored: Slot,
    /// Everything handed out since the first start.
    pub chosen: Vec<Chosen>,
    pub loads: Vec<Load>,
    pub confirmed: Vec<(ReadTicket, Slot)>,
    pub refused: Vec<ReadTicket>,
    /// What had been chosen anywhere when each read came.
    reads: BTreeMap<ReadTicket, Slot>,
    starts: u64,
    /// Records whose payload cannot be read any more.
    pub damaged: BTreeSet<Lsn>,
    /// The next start finds that records are lost.
    pub lost: bool,
    /// The store has a copy of another's state at this slot, since the log was durable
    /// through this record.
    pub installed: Option<(Slot, Lsn)>,
    /// How many copies were taken.
    pub copies: u64,
}

/// A voter's answer to a heartbeat of its leader.
#[derive(Clone, Copy)]
struct Answer {
    from: ReplicaId,
    to: ReplicaId,
    /// The start of the leader that it answers.
    starts: u64,
    ballot: Ballot,
    /// When the heartbeat was sent.
    sent: Micros,
}

/// Limits small enough that every one of them is met.
#[derive(Clone, Copy)]
pub struct Limits {
    pub tail_bytes: usize,
    pub window_slots: u64,
    pub window_bytes: usize,
}

pub struct World {
    pub now: Now,
    /// Outputs are taken now and then only, and heartbeats come out of order.
    pub lazy: bool,
    /// Whoever needs a copy of another's state gets it while all runs well.
    pub copies: bool,
    /// All rows that were sent while lazy.
    rows: BTreeMap<ReplicaId, Vec<HeartbeatRow>>,
    /// Answers to heartbeats under way.
    answers: Vec<Answer>,
    /// To whom each voter granted time last, and until when.
    granted: BTreeMap<ReplicaId, (Ballot, Micros)>,
    /// The members of the first epoch.
    pub members: Members,
    /// Everybody who is or may become a member.
    pub everybody: Vec<Member>,
    pub replicas: BTreeMap<ReplicaId, Replica>,
    /// Messages under way: from, to, bytes.
    pub net: Vec<(ReplicaId, ReplicaId, Bytes)>,
    /// Ordered pairs between which nothing arrives.
    pub cut: BTreeSet<(ReplicaId, ReplicaId)>,
    /// What is known to be chosen, by the first replica that said so.
    pub truth: BTreeMap<Slot, Value>,
    pub random: Random,
    pub limits: Limits,
    proposals: BTreeMap<(Slot, Ballot), Value>,
    /// The stop-sign that was proposed under a ballot.
    stops: BTreeMap<Ballot, Slot>,
    commands: u64,
}

pub fn id(number: u64) -> ReplicaId {
    ReplicaId(number)
}

pub fn member(n: u64) -> Member {
    Member { replica: id(n), node: NodeId(n), disk: DiskId(n.into()) }
}

impl World {
    pub fn new(seed: u64, count: u64, limits: Limits) -> World {
        World::with_learners(seed, count, 0, limits)
    }

    /// A group of so many voters, and so many replicas that learn.
    pub fn with_learners(seed: u64, count: u64, learners: u64, limits: Limits) -> World {
        let members = Members::new((1..=count).map(member).collect()).unwrap();
        let everybody: Vec<Member> = (1..=count + learners).map(member).collect();
        let now = Now { mono: Micros::from_millis(1_000), wall: WallMillis(1) };
        let mut world = World {
            now,
            lazy: false,
            copies: true,
            rows: BTreeMap::new(),
            answers: Vec::new(),
            granted: BTreeMap::new(),
            members,
            everybody,
            replicas: BTreeMap::new(),
            net: Vec::new(),
            cut: BTreeSet::new(),
            truth: BTreeMap::new(),
            random: Random::new(seed),
            limits,
            proposals: BTreeMap::new(),
            stops: BTreeMap::new(),
            commands: 0,
        };
        for replica in 1..=count + learners {
            let mut paxos = Paxos::create(world.options(id(replica), 0), world.members.clone());
            paxos.set_learners(now, world.everybody.clone());
            let fresh = Replica {
                paxos: Some(paxos),
                disk: Disk::default(),
                applied: Slot::ZERO,
                stored: Slot::ZERO,
                chosen: Vec::new(),
                loads: Vec::new(),
                confirmed: Vec::new(),
                refused: Vec::new(),
                reads: BTreeMap::new(),
                starts: 1,
                damaged: BTreeSet::new(),
                lost: false,
                installed: None,
                copies: 0,
            };
            world.replicas.insert(id(replica), fresh);
            // A node makes a group durable before it does anything in it.
            world.drain(id(replica));
            world.sync_all(id(replica));
        }
        world.connect();
        world
    }

    fn options(&self, replica: ReplicaId, start: u64) -> Options {
        Options {
            tail_bytes_max: self.limits.tail_bytes,
            window_slots: self.limits.window_slots,
            window_bytes: self.limits.window_bytes,
            ..Options::new(GroupId(1), replica, replica.0 * 1_000 + start)
        }
    }

    pub fn ids(&self) -> Vec<ReplicaId> {
        self.replicas.keys().copied().collect()
    }

    pub fn paxos(&self, replica: ReplicaId) -> &Paxos {
        self.replicas[&replica].paxos.as_ref().expect("the replica is up")
    }

    pub fn is_up(&self, replica: ReplicaId) -> bool {
        self.replicas[&replica].paxos.is_some()
    }

    /// Gives the replica an input and takes what comes out; nothing happens while it is down.
    pub fn with<T>(
        &mut self,
        replica: ReplicaId,
        f: impl FnOnce(&mut Paxos, Now) -> T,
    ) -> Option<T> {
        let now = self.now;
        let paxos = self.replicas.get_mut(&replica).unwrap().paxos.as_mut()?;
        let result = f(paxos, now);
        // A node hands in several inputs before it takes an output.
        if !(self.lazy && self.random.chance(1, 2)) {
            self.drain(replica);
        }
        self.check_leases();
        Some(result)
    }

    /// Takes the output, writes its records, and checks what it says.
    pub fn drain(&mut self, replica: ReplicaId) {
        let gap = self.random.below(2);
        let Some(at) = self.replicas.get_mut(&replica) else { return };
        let Some(paxos) = at.paxos.as_mut() else { return };
        let first = Lsn(at.disk.last.0 + 1 + gap);
        let output: Output = paxos.take_output(first);
        for (lsn, record) in (first.0..).map(Lsn).zip(&output.records) {
            let mut payload = Vec::new();
            record.encode_payload(&mut payload);
            let identity = record.identity().as_bytes().to_vec();
            at.disk.records.push((lsn, identity, Bytes::from(payload)));
            at.disk.last = lsn;
        }
        for chosen in output.chosen {
            assert_eq!(chosen.slot, at.applied.next(), "{replica} hands out in order");
            at.applied = chosen.slot;
            at.chosen.push(chosen);
        }
        at.loads.extend(output.loads);
        for confirmed in output.confirmed {
            let seen = at.reads.remove(&confirmed.ticket).expect("confirmed once");
            assert!(confirmed.slot >= seen, "a read at {} misses {seen}", confirmed.slot);
            at.confirmed.push((confirmed.ticket, confirmed.slot));
        }
        at.refused.extend(&output.refused);
        for (to, message) in output.messages {
            self.check_message(replica, &message);
            self.net.push((replica, to, base::codec::encode(&message)));
        }
        self.check_chosen(replica);
    }

    /// Who decides a slot, all slots before it being known.
    pub fn members_at(&self, slot: Slot) -> Members {
        let before = self.truth.range(..slot).rev();
        let stop = before.filter_map(|(_, value)| match value {
            Value::Stop(members) => Some(members.clone()),
            Value::Noop | Value::Command(_) | Value::Done(_) => None,
        });
        stop.into_iter().next().unwrap_or_else(|| self.members.clone())
    }

    /// What the store says of epochs after a slot.
    pub fn standing_at(&self, slot: Slot) -> Standing {
        let members = self.members_at(slot.next());
        let values = self.truth.range(..=slot).map(|(_, value)| value);
        let done = values.filter_map(|value| match value {
            Value::Done(epoch) => Some(*epoch),
            Value::Noop | Value::Command(_) | Value::Stop(_) => None,
        });
        Standing { members, done: done.max().unwrap_or(1) }
    }

    fn check_chosen(&mut self, replica: ReplicaId) {
        let at = &self.replicas[&replica];
        let unseen =
            at.chosen.iter().rev().take_while(|chosen| !self.truth.contains_key(&chosen.slot));
        let unseen: Vec<Chosen> = unseen.cloned().collect();
        // In the order of slots: what stands before a slot says who decides it.
        for chosen in unseen.into_iter().rev() {
            let members = self.members_at(chosen.slot);
            assert_eq!(chosen.ballot.epoch, members.epoch(), "I9: the epoch of {}", chosen.slot);
            let voters = members.replicas().map(|voter| &self.replicas[&voter]);
            let holders = voters.filter(|other| {
                let truncated = chosen.slot <= other.disk.truncated();
                let held = other.disk.entries().get(&chosen.slot).map(|held| held.1.clone());
                truncated || held.as_ref() == Some(&chosen.value)
            });
            let count = holders.count();
            assert!(count >= members.q2(), "{} chosen on {count} disks", chosen.slot);
            self.truth.insert(chosen.slot, chosen.value);
        }
        if let Some(last) = at.chosen.last() {
            assert_eq!(self.truth.get(&last.slot), Some(&last.value), "agreement");
        }
    }

    /// What a message says must be on its sender's disk (I3), and a ballot has one value per slot
    /// (I4).
    fn check_message(&mut self, from: ReplicaId, message: &Message) {
        let disk = &self.replicas[&from].disk;
        match message {
            Message::Prepare(prepare) if !prepare.probe => {
                assert!(disk.promised() >= prepare.ballot, "Prepare of an undurable ballot");
            }
            Message::Promise(Promise { ballot, probe: false, runs, .. }) => {
                self.check_granted(from, *ballot);
                let disk = &self.replicas[&from].disk;
                assert!(disk.promised() >= *ballot, "an undurable promise");
                let entries = disk.entries();
                for run in runs {
                    for slot in (run.first.0..=run.last.0).map(Slot) {
                        let held = entries.get(&slot).map(|held| held.0).unwrap_or_default();
                        assert!(held >= run.ballot, "reports an undurable value");
                    }
                }
            }
            Message::Accepted(Accepted { ballot, acc_upto, sack, have_upto, .. }) => {
                assert!(disk.promised() >= *ballot, "a vote without a durable promise");
                let (entries, truncated) = (disk.entries(), disk.truncated());
                let ranges = sack.iter().map(|range| range.first.0..=range.last.0);
                let prefix = 1..=acc_upto.0.min(self.paxos(from).last_slot().0);
                let base_gap = self.paxos(from).chosen_upto().0..=acc_upto.0;
                for slot in ranges.chain([prefix, 1..=have_upto.0]).flatten().map(Slot) {
                    // Below the leader's base nothing is voted for.
                    let below_base = !base_gap.contains(&slot.0) || slot > *have_upto;
                    let held = slot <= truncated || entries.contains_key(&slot);
                    assert!(held || below_base && slot > *have_upto, "{slot} is not on the disk");
                }
            }
            Message::Accept(accept) => {
                assert_eq!(accept.ballot.replica, from, "proposes under another's ballot");
                for (slot, value) in (accept.first.0..).map(Slot).zip(&accept.values) {
                    if let Value::Stop(_) = value {
                        self.stops.insert(accept.ballot, slot);
                    }
                    let stop = self.stops.get(&accept.ballot);
                    assert!(stop.is_none_or(|stop| slot <= *stop), "I9: {slot} behind {stop:?}");
                    let key = (slot, accept.ballot);
                    let known = self.proposals.entry(key).or_insert_with(|| value.clone());
                    assert_eq!(known, value, "two values in {slot} under {}", accept.ballot);
                }
            }
            Message::Prepare(_)
            | Message::Promise(_)
            | Message::Reject(_)
            | Message::Chosen(_)
            | Message::Fetch(_)
            | Message::Values(_)
            | Message::CatchUpRequest(_)
            | Message::CatchUp(_)
            | Message::Confirm(_)
            | Message::ConfirmAck(_)
            | Message::TransferGo(_)
            | Message::EpochInfo(_)
            | Message::Release(_) => {}
        }
    }

    /// A voter promises something to somebody: not while it granted time to another that leads
    /// (I13).
    fn check_granted(&self, voter: ReplicaId, ballot: Ballot) {
        let Some((granted, until)) = self.granted.get(&voter) else { return };
        if ballot.replica == granted.replica || self.now.mono > *until {
            return;
        }
        let holder = self.replicas[&granted.replica].paxos.as_ref();
        let leads = holder.is_some_and(|paxos| paxos.is_leading() && paxos.ballot() == *granted);
        assert!(!leads, "I13: {voter} promises {ballot} in spite of its grant to {granted}");
    }

    /// A leader of a later ballot proves that what was granted before is over.
    fn note_later(&mut self, voter: ReplicaId, message: &Message) {
        let Some((granted, _)) = self.granted.get(&voter) else { return };
        let later = match message {
            Message::Accept(accept) => accept.ballot > *granted,
            Message::CatchUp(catch_up) => catch_up.items.iter().any(|item| item.ballot > *granted),
            Message::Prepare(_)
            | Message::Promise(_)
            | Message::Reject(_)
            | Message::Accepted(_)
            | Message::Chosen(_)
            | Message::Fetch(_)
            | Message::Values(_)
            | Message::CatchUpRequest(_)
            | Message::Confirm(_)
            | Message::ConfirmAck(_)
            | Message::TransferGo(_)
            | Message::EpochInfo(_)
            | Message::Release(_) => false,
        };
        if later {
            self.granted.remove(&voter);
        }
    }

    // ------------------------------------------------------------------ faults and steps

    /// Makes everything up to this position durable, and says so.
    pub fn sync(&mut self, replica: ReplicaId, upto: Lsn) {
        let at = self.replicas.get_mut(&replica).unwrap();
        if at.paxos.is_none() {
            return;
        }
        at.disk.synced = at.disk.synced.max(upto.min(at.disk.last));
        let synced = at.disk.synced;
        self.with(replica, |paxos, now| paxos.persisted(now, synced));
    }

    pub fn sync_all(&mut self, replica: ReplicaId) {
        let last = self.replicas[&replica].disk.last;
        self.sync(replica, last);
    }

    /// Stops a replica; a random part of what was not synced is lost.
    pub fn crash(&mut self, replica: ReplicaId) {
        let keep = {
            let disk = &self.replicas[&replica].disk;
            disk.synced.0 + self.random.below(disk.last.0 - disk.synced.0 + 1)
        };
        let at = self.replicas.get_mut(&replica).unwrap();
        if at.paxos.take().is_none() {
            return;
        }
        at.disk.records.retain(|(lsn, _, _)| lsn.0 <= keep);
        at.disk.last = Lsn(keep);
        at.disk.synced = Lsn(keep);
        at.loads.clear();
        at.reads.clear();
        for other in self.ids() {
            self.link(replica, other, false);
        }
    }

    pub fn restart(&mut self, replica: ReplicaId) {
        if self.is_up(replica) {
            return;
        }
        let start = self.replicas[&replica].starts;
        let mut recovery = Recovery::new(self.options(replica, start));
        let at = self.replicas.get_mut(&replica).unwrap();
        for (lsn, identity, payload) in &at.disk.records {
            if at.damaged.contains(lsn) {
                recovery.push_damaged(*lsn, identity).unwrap();
            } else {
                recovery.push(*lsn, Record::decode(identity, payload).unwrap()).unwrap();
            }
        }
        if std::mem::take(&mut at.lost) {
            recovery.push_lost();
        }
        if let Some((slot, lsn)) = at.installed {
            recovery.installed(slot, lsn);
        }
        // A store that is lost executes nothing before it is replaced.
        let executed = match recovery.is_store_lost() {
            true => at.stored.max(recovery.truncated_upto()),
            false => at.stored,
        };
        recovery.stands(executed, self.standing_at(executed));
        let mut paxos = recovery.finish(executed).unwrap();
        paxos.set_learners(self.now, self.everybody.clone());
        let at = self.replicas.get_mut(&replica).unwrap();
        at.starts += 1;
        at.applied = at.stored;
        at.paxos = Some(paxos);
        self.drain(replica);
        for other in self.ids() {
            if other != replica && !(self.lazy && self.random.chance(1, 2)) {
                self.with(other, |paxos, now| paxos.restarted(now, replica));
            }
        }
        self.connect();
    }

    fn link(&mut self, a: ReplicaId, b: ReplicaId, connected: bool) {
        let trip = Micros(500);
        if a != b {
            self.with(a, |paxos, now| paxos.connected(now, b, connected, trip));
            self.with(b, |paxos, now| paxos.connected(now, a, connected, trip));
        }
    }

    /// Tells all replicas who is connected to whom: both up, and neither direction cut.
    pub fn connect(&mut self) {
        for a in self.ids() {
            for b in self.ids() {
                let open = !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a));
                let connected = open && self.is_up(a) && self.is_up(b);
                if a < b {
                    self.link(a, b, connected);
                }
            }
        }
    }

    /// Cuts a replica off from all others.
    pub fn isolate(&mut self, replica: ReplicaId) {
        for other in self.ids() {
            self.cut.insert((replica, other));
            self.cut.insert((other, replica));
        }
        self.connect();
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.connect();
    }

    /// Brings one message to its receiver.
    pub fn deliver(&mut self, from: ReplicaId, to: ReplicaId, bytes: &Bytes) {
        if !self.cut.contains(&(from, to)) {
            let message: Message = base::codec::decode(bytes).expect("what was encoded decodes");
            self.note_later(to, &message);
            self.with(to, |paxos, now| paxos.handle(now, from, message));
        }
    }

    /// A heartbeat brings the sender's row, or where all is lazy an older one.
    pub fn heartbeat(&mut self, from: ReplicaId, to: ReplicaId) {
        if self.is_up(from) && from != to && !self.cut.contains(&(from, to)) {
            let mut row = self.paxos(from).heartbeat_row();
            if self.lazy {
                self.rows.entry(from).or_default().push(row);
                row = *self.random.pick(&self.rows[&from]).unwrap();
            }
            self.with(to, |paxos, now| paxos.heard(now, from, row));
            self.grant(from, to);
        }
    }

    /// A voter answers a heartbeat.
    fn grant(&mut self, leader: ReplicaId, voter: ReplicaId) {
        let granted = self.with(voter, |paxos, now| paxos.support(now, leader)).flatten();
        let Some(ballot) = granted else { return };
        let (starts, sent) = (self.replicas[&leader].starts, self.now.mono);
        self.granted.insert(voter, (ballot, sent + GRANT_SPAN));
        self.answers.push(Answer { from: voter, to: leader, starts, ballot, sent });
        if !self.lazy {
            for answer in std::mem::take(&mut self.answers) {
                self.deliver_answer(answer);
            }
        }
    }

    /// Brings some answer to its leader, perhaps not for the last time.
    pub fn deliver_some_answer(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let at = self.random.below(self.answers.len() as u64) as usize;
        let answer = match self.random.chance(1, 4) {
            true => self.answers[at],
            false => self.answers.swap_remove(at),
        };
        self.deliver_answer(answer);
    }

    fn deliver_answer(&mut self, answer: Answer) {
        let Answer { from, to, starts, ballot, sent } = answer;
        if self.replicas[&to].starts == starts && !self.cut.contains(&(from, to)) {
            self.with(to, |paxos, now| paxos.supported(now, from, ballot, sent));
        }
    }

    /// While a lease holds, nobody leads under a later ballot (I14).
    fn check_leases(&self) {
        let up = || self.replicas.iter().filter_map(|(id, at)| Some((id, at.paxos.as_ref()?)));
        for (holder, paxos) in up() {
            let held = paxos.lease().is_some_and(|lease| lease.until >= self.now.mono);
            for (other, later) in up().filter(|(other, _)| held && *other != holder) {
                let superseded = later.is_leading() && later.ballot() > paxos.ballot();
                assert!(!superseded, "I14: {other} leads in spite of the lease of {holder}");
            }
            if held {
                let lease = paxos.lease().unwrap();
                let seen = self.truth.keys().next_back().copied().unwrap_or_default();
                assert!(lease.slot >= seen, "I15: a lease read at {} misses {seen}", lease.slot);
            }
        }
    }

    /// Answers a load from the disk.
    pub fn answer_load(&mut self, replica: ReplicaId) {
        let at = self.replicas.get_mut(&replica).unwrap();
        let Some(load) = at.loads.pop() else { return };
        if at.damaged.contains(&load.lsn) {
            return self
                .with(replica, |paxos, now| {
                    paxos.damaged(now, load.lsn, load.lsn);
                    paxos.loaded(now, load.slot, load.ballot, None);
                })
                .unwrap_or_default();
        }
        let found = at.disk.records.iter().find(|(lsn, _, _)| *lsn == load.lsn);
        let value = found.map(|(_, _, payload)| Record::decode_value(payload, load.index).unwrap());
        self.with(replica, |paxos, now| paxos.loaded(now, load.slot, load.ballot, value));
    }

    /// Damages some record of accepted values, of slots that are damaged on no other replica. A
    /// replica that is up may be told of it, or find out later.
    pub fn damage_some(&mut self, replica: ReplicaId) {
        let count = self.replicas.len() as u64;
        // Where the voters change, one of a group of one may be the only one to have a value.
        if count < 3 || self.everybody.len() > self.members.voters().len() {
            return;
        }
        let disk = &self.replicas[&replica].disk;
        let entries = disk.decode().filter_map(|(lsn, record)| match record {
            Record::Entries { first, values, .. } => {
                let last = first.0 + values.len() as u64 - 1;
                let own = |slot: u64| slot / 8 % count == replica.0 - 1;
                (own(first.0) && own(last) && lsn <= disk.synced).then_some(lsn)
            }
            Record::GroupCreate { .. }
            | Record::Promise { .. }
            | Record::GroupState { .. }
            | Record::Quarantine
            | Record::Mended { .. }
            | Record::StoreLost
            | Record::Epoch { .. }
            | Record::GroupDestroy
            | Record::Snapshot { .. }
            | Record::ChosenHint { .. } => None,
        });
        let entries: Vec<Lsn> = entries.collect();
        let Some(lsn) = self.random.pick(&entries).copied() else { return };
        self.damage(replica, lsn);
    }

    /// Damages a record.
    pub fn damage(&mut self, replica: ReplicaId, lsn: Lsn) {
        self.replicas.get_mut(&replica).unwrap().damaged.insert(lsn);
        if self.random.chance(1, 2) {
            self.with(replica, |paxos, now| paxos.damaged(now, lsn, lsn));
        }
    }

    /// Whether this replica lacks something that damage took and all others have forgotten: only a
    /// copy of their state could help.
    pub fn is_beyond_repair(&self, replica: ReplicaId) -> bool {
        let at = &self.replicas[&replica];
        let next = at.applied.next();
        let forgotten = self
            .ids()
            .into_iter()
            .filter(|other| *other != replica)
            .all(|other| self.is_up(other) && self.paxos(other).first_slot() > next);
        !at.damaged.is_empty() && forgotten
    }

    /// Forgets some of what is executed durably, whoever lacks it.
    pub fn forget_some(&mut self, replica: ReplicaId) {
        // Who has no store keeps what is in no other's: the only other log that had it may be
        // damaged there.
        let others = self.replicas.iter().filter(|(id, _)| **id != replica);
        let elsewhere = others.map(|(_, at)| at.stored).max().unwrap_or_default();
        let Some(at) = self.replicas.get_mut(&replica) else { return };
        let Some(paxos) = at.paxos.as_mut() else { return };
        if paxos.is_installing() {
            return;
        }
        let stored = if paxos.is_store_lost() { elsewhere } else { at.stored };
        let (first, last) = (paxos.first_slot(), stored.min(paxos.have_upto()));
        if last >= first {
            let upto = Slot(self.random.between(first.0, last.0));
            at.paxos.as_mut().unwrap().truncate(upto);
            self.drain(replica);
        }
    }

    /// Takes a copy of another's state if one is needed, or goes on behind what is executed already;
    /// it may crash in the middle.
    pub fn copy_state(&mut self, replica: ReplicaId) {
        let Some(paxos) = self.replicas[&replica].paxos.as_ref() else { return };
        if let Some(slot) = paxos.skippable() {
            assert_eq!(slot, self.replicas[&replica].stored, "the store is ahead");
            self.with(replica, |paxos, _| {
                paxos.hold();
                paxos.install(slot, None);
            });
            return;
        }
        let Some(least) = paxos.needs_copy() else { return };
        let stored = |id: &ReplicaId| {
            self.is_up(*id) && !self.paxos(*id).is_store_lost() && self.replicas[id].stored >= least
        };
        let mut sources = paxos.copy_sources(least);
        sources.retain(stored);
        let Some(source) = self.random.pick(&sources).copied() else { return };
        let slot = self.replicas[&source].stored;
        let crash = self.lazy && self.random.chance(1, 3);
        let at = self.replicas.get_mut(&replica).unwrap();
        at.paxos.as_mut().unwrap().hold();
        // One flush: the state, its slot, and where the log is.
        (at.applied, at.stored) = (slot, slot);
        at.installed = Some((slot, at.disk.synced));
        at.copies += 1;
        if crash {
            return self.crash(replica);
        }
        let standing = Some(self.standing_at(slot));
        self.with(replica, |paxos, _| paxos.install(slot, standing));
    }

    /// The store turns out to be lost.
    pub fn lose_store(&mut self, replica: ReplicaId) {
        let sound = |id: &ReplicaId| self.is_up(*id) && !self.paxos(*id).is_store_lost();
        let others = self.ids().into_iter().filter(|id| *id != replica).filter(sound).count();
        // Where the voters change, one of a group of one may be the only one to have a state.
        let changing = self.everybody.len() > self.members.voters().len();
        if others + 1 < self.replicas.len() || others < 2 || !sound(&replica) || changing {
            return;
        }
        // What its log has forgotten is in its store, and must be in another's: the only other log
        // that had it may be damaged there.
        let forgotten = self.paxos(replica).first_slot().prev();
        let elsewhere = |(id, at): (&ReplicaId, &Replica)| *id != replica && at.stored >= forgotten;
        if !self.replicas.iter().any(elsewhere) {
            return;
        }
        if !self.paxos(replica).is_installing() {
            self.with(replica, |paxos, _| paxos.lose_store());
        }
    }

    /// Executes durably up to somewhere, and forgets what may be; the log is not told.
    pub fn store_and_forget(&mut self, replica: ReplicaId) {
        let Some(at) = self.replicas.get_mut(&replica) else { return };
        let Some(paxos) = at.paxos.as_mut() else { return };
        let more = at.applied.0 - at.stored.0;
        at.stored = Slot(at.stored.0 + self.random.below(more + 1));
        if paxos.is_installing() {
            return;
        }
        paxos.stored(at.stored);
        let upto = paxos.truncatable().min(at.stored);
        paxos.truncate(upto);
    }

    /// Executes durably up to somewhere, forgets what may be, and recycles the log.
    pub fn store_and_truncate(&mut self, replica: ReplicaId) {
        self.store_and_forget(replica);
        let at = self.replicas.get_mut(&replica).and_then(|at| at.paxos.as_mut());
        let Some(paxos) = at.filter(|paxos| !paxos.is_installing()) else { return };
        paxos.restate();
        self.drain(replica);
        self.sync_all(replica);
        let keep_from = self.paxos(replica).keep_from();
        // What is needed rests on all that was accepted by now: it counts once that is durable.
        self.drain(replica);
        let at = self.replicas.get_mut(&replica).unwrap();
        at.disk.synced = at.disk.last;
        let states =
            at.disk.decode().filter(|(_, record)| matches!(record, Record::GroupState { .. }));
        let stated = states.map(|(lsn, _)| lsn).last().unwrap();
        let limit = stated.min(keep_from.unwrap_or(stated));
        at.disk.records.retain(|(lsn, _, _)| *lsn >= limit);
    }

    /// A command of about so many bytes.
    pub fn command(&mut self, bytes: usize) -> Command {
        self.commands += 1;
        let mut payload = self.commands.to_be_bytes().to_vec();
        payload.resize(payload.len().max(bytes), 7);
        Command { time: WallMillis(self.commands), trace: None, payload: Bytes::from(payload) }
    }

    pub fn propose(&mut self, replica: ReplicaId, bytes: usize) -> Option<Slot> {
        let command = self.command(bytes);
        self.with(replica, |paxos, now| paxos.propose(now, command))?.ok()
    }

    pub fn confirm(&mut self, replica: ReplicaId) -> Option<ReadTicket> {
        let seen = self.truth.keys().next_back().copied().unwrap_or_default();
        let now = self.now;
        let at = self.replicas.get_mut(&replica).unwrap();
        let ticket = at.paxos.as_mut()?.confirm(now).ok()?;
        at.reads.insert(ticket, seen);
        self.drain(replica);
        Some(ticket)
    }

    pub fn advance(&mut self, micros: u64) {
        self.now.mono = self.now.mono + Micros(micros);
        self.now.wall = WallMillis(self.now.mono.0 / 1_000);
    }

    /// Lets a well-behaved network and quick disks run: a millisecond per step.
    pub fn run(&mut self, millis: u64) {
        for step in 0..millis {
            self.advance(1_000);
            for (from, to, bytes) in std::mem::take(&mut self.net) {
                self.deliver(from, to, &bytes);
            }
            for replica in self.ids() {
                self.sync_all(replica);
                while self.is_up(replica) && !self.replicas[&replica].loads.is_empty() {
                    self.answer_load(replica);
                }
                if step % 5 == 0 {
                    self.with(replica, |paxos, now| paxos.tick(now));
                }
                if step % 40 == 0 {
                    let at = self.replicas.get_mut(&replica).unwrap();
                    let sound = |paxos: &Paxos| !paxos.is_store_lost() && !paxos.is_installing();
                    if at.paxos.as_ref().is_some_and(sound) {
                        at.stored = at.applied;
                    }
                    if self.copies {
                        self.copy_state(replica);
                    }
                }
                if step % 25 == 0 {
                    for other in self.ids() {
                        self.heartbeat(replica, other);
                    }
                }
            }
        }
    }

    /// The replica that leads, if exactly one does.
    pub fn leader(&self) -> Option<ReplicaId> {
        let up = self.replicas.iter().filter_map(|(id, at)| Some((id, at.paxos.as_ref()?)));
        let leading: Vec<ReplicaId> =
            up.filter(|(_, paxos)| paxos.is_leading()).map(|(id, _)| *id).collect();
        match leading.as_slice() {
            [leader] => Some(*leader),
            _ => None,
        }
    }

    pub fn check_logs(&self) {
        for at in self.replicas.values() {
            if let Some(paxos) = &at.paxos {
                paxos::invariants::check_log(paxos);
            }
        }
    }
}

pub const SMALL: Limits = Limits { tail_bytes: 300, window_slots: 16, window_bytes: 400 };
pub const USUAL: Limits =
    Limits { tail_bytes: 1 << 20, window_slots: 4_096, window_bytes: 1 << 20 };
