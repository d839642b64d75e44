//! One peer: its instances, what it knows of the others' `done`, and what it forgets.

use std::collections::BTreeMap;

use base::{GroupId, Lsn, Micros, Now, Random, ReplicaId, Slot};
use bytes::Bytes;
use paxos::{Command, Members, Message, Options, Paxos, Value};

/// What a peer can say of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is agreed on, and this is the value.
    Decided(Bytes),
    /// As far as this peer knows it is not.
    Pending,
    /// Every peer was done with it.
    Forgotten,
}

/// What one peer sends to another.
#[derive(Debug)]
pub struct Envelope {
    /// The instance.
    pub seq: u64,
    /// The highest number that the sender is done with: it rides on everything.
    pub done: Option<u64>,
    /// The message.
    pub content: Content,
}

/// The message in an envelope.
#[derive(Debug)]
pub enum Content {
    /// One of the instance's group.
    Paxos(Message),
    /// An answer: the sender has forgotten the instance, and its `done` tells why.
    Forgotten,
}

impl Content {
    /// Whether this asks for something, and is not the answer to what was asked.
    pub fn is_call(&self) -> bool {
        match self {
            Content::Paxos(
                Message::Prepare(_)
                | Message::Accept(_)
                | Message::Chosen(_)
                | Message::Fetch(_)
                | Message::CatchUpRequest(_)
                | Message::Confirm(_)
                | Message::TransferGo(_)
                | Message::Release(_),
            ) => true,
            Content::Paxos(
                Message::Promise(_)
                | Message::Reject(_)
                | Message::Accepted(_)
                | Message::Values(_)
                | Message::CatchUp(_)
                | Message::ConfirmAck(_)
                | Message::EpochInfo(_),
            )
            | Content::Forgotten => false,
        }
    }
}

/// A peer.
///
/// - It holds no instance below [`Peer::min`].
#[derive(Debug)]
pub struct Peer {
    me: ReplicaId,
    members: Members,
    random: Random,
    instances: BTreeMap<u64, Instance>,
    /// The highest number that each peer is done with, as far as it is known here.
    done: BTreeMap<ReplicaId, u64>,
    /// The highest number seen.
    max: Option<u64>,
    /// What is to be sent.
    outbox: Vec<(ReplicaId, Envelope)>,
    /// Instances that were decided since somebody asked.
    decisions: Vec<u64>,
}

impl Peer {
    /// A peer that knows nothing yet.
    pub fn new(me: ReplicaId, members: Members, random: Random) -> Peer {
        Peer {
            me,
            members,
            random,
            instances: BTreeMap::new(),
            done: BTreeMap::new(),
            max: None,
            outbox: Vec::new(),
            decisions: Vec::new(),
        }
    }

    // ------------------------------------------------------------------ the lab interface

    /// Begins agreement on an instance, with this value if no other is found. Returns at once; this
    /// peer goes on by itself until it knows the decision. What is decided, forgotten, or under way
    /// here already stays as it is.
    pub fn start(&mut self, now: Now, seq: u64, value: Bytes) {
        self.max = self.max.max(Some(seq));
        if seq < self.min() {
            return;
        }
        self.with(now, seq, |instance| instance.start(now, value));
    }

    /// What this peer knows of an instance; it asks nobody.
    pub fn status(&self, seq: u64) -> Status {
        if seq < self.min() {
            return Status::Forgotten;
        }
        let decided = self.instances.get(&seq).and_then(|instance| instance.decided.as_ref());
        decided.map_or(Status::Pending, |(value, _)| Status::Decided(value.clone()))
    }

    /// This peer needs no instance up to this one any more.
    pub fn done(&mut self, seq: u64) {
        self.learn_done(self.me, Some(seq));
    }

    /// The highest instance that this peer has heard of; none at first.
    pub fn max(&self) -> Option<u64> {
        self.max
    }

    /// The lowest instance that is not forgotten: behind what every peer is done with. A peer that
    /// was never done, or is not heard of, holds it back.
    pub fn min(&self) -> u64 {
        let done = self.members.replicas().map(|peer| self.done.get(&peer).map_or(0, |at| at + 1));
        done.min().unwrap_or_default()
    }

    // ------------------------------------------------------------------ what drives it

    /// An envelope arrived.
    pub fn handle(&mut self, now: Now, from: ReplicaId, envelope: Envelope) {
        let Envelope { seq, done, content } = envelope;
        self.max = self.max.max(Some(seq));
        self.learn_done(from, done);
        if seq < self.min() {
            if content.is_call() {
                self.send(from, seq, Content::Forgotten);
            }
            return;
        }
        if let Content::Paxos(message) = content {
            self.with(now, seq, |instance| instance.paxos.handle(now, from, message));
        }
    }

    /// Time passed.
    pub fn tick(&mut self, now: Now) {
        let driven = self.instances.iter().filter(|(_, instance)| instance.is_driven());
        let driven: Vec<u64> = driven.map(|(seq, _)| *seq).collect();
        for seq in driven {
            self.with(now, seq, |instance| instance.tick(now));
        }
    }

    /// Takes what is to be sent.
    pub fn take_envelopes(&mut self) -> Vec<(ReplicaId, Envelope)> {
        std::mem::take(&mut self.outbox)
    }

    /// Takes the instances that this peer learned to be decided since the last call.
    pub fn take_decisions(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.decisions)
    }

    /// Whether this peer accepted the value in an instance, or has forgotten the instance.
    pub fn has_accepted(&self, seq: u64, value: &Bytes) -> bool {
        let accepted = |instance: &Instance| match instance.paxos.value(SLOT) {
            Some(Value::Command(command)) => command.payload == *value,
            Some(Value::Noop | Value::Stop(_) | Value::Done(_)) | None => false,
        };
        seq < self.min() || self.instances.get(&seq).is_some_and(accepted)
    }

    /// How many instances are held.
    pub fn instances(&self) -> usize {
        self.instances.len()
    }

    /// Gives an instance an input, and takes what comes out of it.
    fn with(&mut self, now: Now, seq: u64, input: impl FnOnce(&mut Instance)) {
        let (me, members, random) = (self.me, &self.members, &mut self.random);
        let fresh = || Instance::new(seq, me, members, random.next_u64());
        let instance = self.instances.entry(seq).or_insert_with(fresh);
        let before = instance.decided.is_some();
        input(instance);
        let messages = instance.take_messages(now);
        if instance.decided.is_some() && !before {
            self.decisions.push(seq);
        }
        for (to, message) in messages {
            self.send(to, seq, Content::Paxos(message));
        }
    }

    fn send(&mut self, to: ReplicaId, seq: u64, content: Content) {
        let done = self.done.get(&self.me).copied();
        self.outbox.push((to, Envelope { seq, done, content }));
    }

    fn learn_done(&mut self, peer: ReplicaId, done: Option<u64>) {
        let Some(done) = done else { return };
        let known = self.done.entry(peer).or_insert(done);
        *known = done.max(*known);
        self.instances = self.instances.split_off(&self.min());
    }
}

/// An instance on one peer: a replica of a group whose log has one slot.
#[derive(Debug)]
struct Instance {
    paxos: Paxos,
    /// The value that this peer was started with, until it knows the decision.
    proposal: Option<Bytes>,
    /// What was decided, and when this peer learned it.
    decided: Option<(Bytes, Micros)>,
    /// Everybody counts as connected.
    linked: bool,
    /// The position of the last record.
    last: Lsn,
}

/// The only slot.
const SLOT: Slot = Slot(1);

/// A leader that knows the decision tells those who have not answered yet for so long.
const TELL_FOR: Micros = Micros::from_millis(100);

/// Nobody measures here how long a message takes; the shortest patience is longer.
const ROUND_TRIP: Micros = Micros::from_millis(1);

impl Instance {
    fn new(seq: u64, me: ReplicaId, members: &Members, seed: u64) -> Instance {
        let options = Options::new(GroupId(seq), me, seed);
        let paxos = Paxos::create(options, members.clone());
        Instance { paxos, proposal: None, decided: None, linked: false, last: Lsn::ZERO }
    }

    /// Everybody counts as connected from now on, or nobody. There are no heartbeats that would tell;
    /// and a replica that is connected to nobody does not campaign, and leads no more.
    fn link(&mut self, now: Now, linked: bool) {
        if std::mem::replace(&mut self.linked, linked) == linked {
            return;
        }
        let me = self.paxos.replica();
        let others: Vec<ReplicaId> = self.paxos.members().replicas().collect();
        for other in others.into_iter().filter(|other| *other != me) {
            self.paxos.connected(now, other, linked, ROUND_TRIP);
        }
    }

    /// The first one to start campaigns without asking. Whoever hears one that leads lets it lead;
    /// the ticks see to it if that fails.
    fn start(&mut self, now: Now, value: Bytes) {
        if self.decided.is_some() || self.proposal.is_some() {
            return;
        }
        self.proposal = Some(value);
        self.link(now, true);
        self.paxos.tick(now);
        if self.paxos.leader().is_none() {
            self.paxos.campaign(now);
        }
    }

    /// Whether time has to pass here: it was started and the decision is not known, or it is led.
    /// Nothing else is done in the background.
    fn is_driven(&self) -> bool {
        match &self.decided {
            None => self.proposal.is_some(),
            Some(_) => self.paxos.is_leading(),
        }
    }

    /// A leader stays one in production, and refuses whoever asks whether he might lead. Here it has
    /// nothing more to do, and steps down.
    fn tick(&mut self, now: Now) {
        if self.decided.as_ref().is_some_and(|(_, at)| now.mono.since(*at) >= TELL_FOR) {
            self.link(now, false);
        }
        self.paxos.tick(now);
    }

    /// Takes all that comes out. Peers have no disks and are never started again: what was written
    /// is durable at once, and dropped.
    fn take_messages(&mut self, now: Now) -> Vec<(ReplicaId, Message)> {
        let mut messages = Vec::new();
        loop {
            self.propose(now);
            let output = self.paxos.take_output(Lsn(self.last.0 + 1));
            if output.is_empty() {
                return messages;
            }
            assert!(output.loads.is_empty(), "the value stays in memory");
            // Nobody grants time to a leader here, so that there is nothing to release.
            let sent = output.messages.into_iter();
            messages.extend(sent.filter(|(_, message)| !matches!(message, Message::Release(_))));
            for chosen in output.chosen {
                self.decide(now, chosen.slot, chosen.value);
            }
            if !output.records.is_empty() {
                self.last = Lsn(self.last.0 + output.records.len() as u64);
                self.paxos.persisted(now, self.last);
            }
        }
    }

    /// Puts the own value into the slot, if phase 1 found none.
    fn propose(&mut self, now: Now) {
        if !self.paxos.is_leading() || self.paxos.last_slot() >= SLOT {
            return;
        }
        if let Some(payload) = self.proposal.clone() {
            let command = Command { time: now.wall, trace: None, payload };
            let slot = self.paxos.propose(now, command);
            assert_eq!(slot, Ok(SLOT), "an empty log takes a command into its first slot");
        }
    }

    fn decide(&mut self, now: Now, slot: Slot, value: Value) {
        assert_eq!(slot, SLOT, "an instance has one slot");
        let payload = match value {
            Value::Command(command) => command.payload,
            Value::Noop | Value::Stop(_) | Value::Done(_) => {
                panic!("nobody proposes {value:?} in an instance")
            }
        };
        self.decided = Some((payload, now.mono));
        self.proposal = None;
        if !self.paxos.is_leading() {
            self.link(now, false);
        }
    }
}
