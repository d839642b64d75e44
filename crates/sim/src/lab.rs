//! Paxos as it is taught: peers that agree on numbered instances.
//!
//! A course on Paxos has its students build a library of five calls: `start(seq, value)` begins
//! agreement on the instance `seq` and returns at once, `status(seq)` tells what this peer knows of
//! it, `done(seq)` says that this peer needs nothing up to `seq` any more, `max()` is the highest
//! instance heard of, and below `min()` everything is forgotten. [`Peer`] has these calls and stands
//! on the protocol of production, so that what is taught and what runs can be compared, and the
//! tests of such courses can be put to the latter (`tests/lab`, `tests/lab_heap.rs`).
//!
//! # The mapping
//!
//! *Each instance is a replica group of its own, whose log has one slot.* A peer keeps one
//! [`paxos::Paxos`] per instance: a promise, an accepted value and a ballot space for each, as in
//! the single-decree protocol. The other mapping, all instances as slots of one log, is what
//! production does; but a leader fills slots in order, so nobody could start instance 7 before 6,
//! nor propose in one that somebody else leads.
//!
//! | in a course | here |
//! |---|---|
//! | `start(seq, v)` | `campaign`, and `propose(v)` in slot 1 if phase 1 found no value there |
//! | prepare and its answer | `Prepare`; `Promise` or `Reject` |
//! | accept and its answer | `Accept`; `Accepted` or `Reject` |
//! | decided | `Chosen` |
//! | `Decided(v)` | slot 1 was handed out as chosen |
//! | proposal number | `Ballot {epoch, round, replica}`, the epoch always 1 |
//! | forgetting | the instance's `Paxos` is dropped |
//!
//! # What is different from a course
//!
//! - *Any peer may start an instance, and leads it for itself.* The first to start campaigns at
//!   once, without the probe that a replica in production sends before. Whoever starts an instance
//!   that another leads does not pass its value on: it waits, and while it does not learn the decision
//!   it campaigns like any replica that hears no leader, 100 ms after the leader's last message. Its
//!   phase 1 finds the value that may have been chosen. A value that loses is given up.
//! - *Leadership ends.* A leader that knows the decision tells it for 100 ms to those who voted, and
//!   sends the value again to those who have not; then it steps down. Whoever missed that and wants
//!   to know the decision starts the instance: his phase 1 finds the value, and his phase 2 decides
//!   it once more.
//! - *Nothing happens in the background*: no heartbeats, no leases, no catch-up. Only what was
//!   started here and is not decided is driven on: as its `Paxos` sees it, a peer is connected to
//!   the others from its start to the decision.
//! - *A peer that has forgotten an instance says so* when somebody asks about it, with its own
//!   `done`, so that the one who asks forgets too. All other envelopes carry `done` as well.
//! - *There are no disks.* Records are durable at once and dropped; a peer is never started again.
//!
//! # The network
//!
//! [`Lab`] is the peers, virtual time and a network that one seed determines. A message travels by
//! itself: there are no connections that outlast a partition. Calls are those messages that ask for
//! something ([`Content::is_call`]); [`Lab::calls`] counts those that a peer took in. While the lab
//! is unreliable, a tenth of the calls and a fifth of the answers are lost, and beyond what courses
//! ask for messages are held up, so that they overtake each other, and some arrive twice.
//!
//! Whenever a peer learns a decision the lab checks that all others who know one know the same, that
//! somebody had started the instance with that value, and that a majority has accepted it.

mod peer;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use base::{DiskId, Micros, NodeId, Now, Random, ReplicaId, WallMillis};
use bytes::Bytes;
use paxos::{Member, Members};

pub use self::peer::{Content, Envelope, Peer, Status};
use crate::network::{Network, NetworkOptions, Place};

/// Peers, numbered from 0, and the network between them.
#[derive(Debug)]
pub struct Lab {
    time: Micros,
    network: Network,
    random: Random,
    members: Members,
    /// Which replica each peer is. Between ballots of one round the replica decides: a seed later
    /// every peer is the next one.
    replicas: Vec<ReplicaId>,
    /// None where the peer is not created yet.
    peers: Vec<Option<Peer>>,
    deaf: BTreeSet<usize>,
    unreliable: bool,
    /// What is to happen, by time and the order in which it was planned.
    events: BTreeMap<(Micros, u64), Event>,
    planned: u64,
    calls: u64,
    /// Digests of the values with which each instance was started.
    offered: BTreeMap<u64, BTreeSet<u64>>,
}

#[derive(Debug)]
enum Event {
    Tick(usize),
    Arrival(Packet),
}

/// An envelope on its way, as bytes: peers share no memory.
#[derive(Clone, Debug)]
struct Packet {
    from: usize,
    to: usize,
    seq: u64,
    done: Option<u64>,
    /// None says that the sender has forgotten the instance.
    message: Option<Bytes>,
}

/// How often a peer is told that time passes.
const TICK: Micros = Micros::from_millis(5);
/// How often somebody who waits looks.
const LOOK: Micros = Micros::from_millis(10);
/// For how long courses wait for a decision.
const DECIDED_WITHIN: Micros = Micros::from_millis(30_700);

impl Lab {
    /// So many peers, all of them created.
    pub fn new(seed: u64, count: usize) -> Lab {
        let mut lab = Lab::without_peers(seed, count);
        for peer in 0..count {
            lab.create(peer);
        }
        lab
    }

    /// A group of so many, none of which is there yet.
    pub fn without_peers(seed: u64, count: usize) -> Lab {
        let mut random = Random::new(seed);
        let all = count as u64;
        let replicas: Vec<ReplicaId> =
            (0..all).map(|peer| ReplicaId((peer + seed % all) % all + 1)).collect();
        let member = |replica: &ReplicaId| Member {
            replica: *replica,
            node: NodeId(replica.0),
            disk: DiskId(replica.0.into()),
        };
        let members = Members::new(replicas.iter().map(member).collect());
        Lab {
            time: Micros::from_secs(1),
            network: Network::new(random.fork(), NetworkOptions::calm()),
            random,
            members: members.expect("a group of a size that is allowed"),
            replicas,
            peers: (0..count).map(|_| None).collect(),
            deaf: BTreeSet::new(),
            unreliable: false,
            events: BTreeMap::new(),
            planned: 0,
            calls: 0,
            offered: BTreeMap::new(),
        }
    }

    /// Creates a peer.
    pub fn create(&mut self, peer: usize) {
        let fresh = Peer::new(self.replicas[peer], self.members.clone(), self.random.fork());
        assert!(self.peers[peer].replace(fresh).is_none(), "peer {peer} is there already");
        self.plan(self.time + TICK, Event::Tick(peer));
    }

    // ------------------------------------------------------------------ the lab interface

    /// A peer that was created.
    pub fn peer(&self, peer: usize) -> &Peer {
        self.peers[peer].as_ref().expect("the peer was created")
    }

    /// [`Peer::start`] at a peer.
    pub fn start(&mut self, peer: usize, seq: u64, value: impl Into<Bytes>) {
        let value = value.into();
        self.offered.entry(seq).or_default().insert(digest(&value));
        self.with(peer, |peer, now| peer.start(now, seq, value));
    }

    /// [`Peer::done`] at a peer.
    pub fn done(&mut self, peer: usize, seq: u64) {
        self.with(peer, |peer, _| peer.done(seq));
    }

    /// [`Peer::status`] at a peer.
    pub fn status(&self, peer: usize, seq: u64) -> Status {
        self.peer(peer).status(seq)
    }

    /// [`Peer::max`] at a peer.
    pub fn max(&self, peer: usize) -> Option<u64> {
        self.peer(peer).max()
    }

    /// [`Peer::min`] at a peer.
    pub fn min(&self, peer: usize) -> u64 {
        self.peer(peer).min()
    }

    // ------------------------------------------------------------------ faults

    /// From now on calls and answers are lost, held up and doubled, or no more.
    pub fn set_unreliable(&mut self, unreliable: bool) {
        self.unreliable = unreliable;
        self.network.set_options(match unreliable {
            true => NetworkOptions {
                delay_max: Micros::from_millis(5),
                doubled: 500,
                held: 500,
                held_max: Micros::from_millis(100),
                ..NetworkOptions::calm()
            },
            false => NetworkOptions::calm(),
        });
    }

    /// A deaf peer hears nothing but answers: to its own `Prepare` and `Accept`, as it learns of
    /// nothing else to ask about.
    pub fn set_deaf(&mut self, peer: usize, deaf: bool) {
        match deaf {
            true => self.deaf.insert(peer),
            false => self.deaf.remove(&peer),
        };
    }

    /// From now on nothing that is sent arrives in another block. A peer in no block is alone.
    pub fn partition(&mut self, blocks: &[&[usize]]) {
        let blocks: Vec<Vec<usize>> = blocks.iter().map(|block| block.to_vec()).collect();
        self.network.partition(self.peers.len(), &blocks);
    }

    /// Mends all that was parted.
    pub fn heal(&mut self) {
        self.network.heal();
    }

    // ------------------------------------------------------------------ time

    /// The virtual time.
    pub fn time(&self) -> Micros {
        self.time
    }

    /// Randomness for what is done to the lab.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Lets so much time pass.
    pub fn run(&mut self, span: Micros) {
        let until = self.time + span;
        while let Some(event) = self.events.first_entry().filter(|event| event.key().0 <= until) {
            self.time = event.key().0;
            match event.remove() {
                Event::Tick(peer) => {
                    self.with(peer, |peer, now| peer.tick(now));
                    self.plan(self.time + TICK, Event::Tick(peer));
                }
                Event::Arrival(packet) => self.arrive(packet),
            }
        }
        self.time = until;
    }

    /// Lets time pass until at least so many peers know the decision of an instance.
    ///
    /// # Panics
    ///
    /// If that takes longer than courses wait.
    pub fn wait(&mut self, seq: u64, count: usize) {
        let late = self.time + DECIDED_WITHIN;
        while self.deciders(seq) < count {
            assert!(self.time < late, "{} of {count} decide {seq}", self.deciders(seq));
            self.run(LOOK);
        }
    }

    /// How many peers know the decision of an instance.
    pub fn deciders(&self, seq: u64) -> usize {
        self.decisions(seq).count()
    }

    /// The value of an instance at those peers that know it.
    pub fn decisions(&self, seq: u64) -> impl Iterator<Item = Bytes> + '_ {
        self.peers.iter().flatten().filter_map(move |peer| match peer.status(seq) {
            Status::Decided(value) => Some(value),
            Status::Pending | Status::Forgotten => None,
        })
    }

    /// How many calls peers have taken in.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    // ------------------------------------------------------------------ the network

    fn plan(&mut self, at: Micros, event: Event) {
        self.planned += 1;
        self.events.insert((at, self.planned), event);
    }

    /// Gives a peer an input; sends what comes out of it, and checks what it decided.
    fn with(&mut self, peer: usize, input: impl FnOnce(&mut Peer, Now)) {
        let now = Now { mono: self.time, wall: WallMillis(self.time.0 / 1_000) };
        let at = self.peers[peer].as_mut().expect("the peer was created");
        input(at, now);
        let (envelopes, decisions) = (at.take_envelopes(), at.take_decisions());
        for (to, envelope) in envelopes {
            let to = self.replicas.iter().position(|replica| *replica == to);
            self.send(peer, to.expect("one of the peers"), envelope);
        }
        for seq in decisions {
            self.judge(peer, seq);
        }
    }

    fn send(&mut self, from: usize, to: usize, envelope: Envelope) {
        let lost = if envelope.content.is_call() { 1 } else { 2 };
        if self.unreliable && self.random.chance(lost, 10) {
            return;
        }
        let message = match &envelope.content {
            Content::Paxos(message) => {
                // No larger than its content, as what is decoded keeps it in memory.
                Some(base::codec::encode_vec(message).into_boxed_slice().into())
            }
            Content::Forgotten => None,
        };
        let packet = Packet { from, to, seq: envelope.seq, done: envelope.done, message };
        for delay in self.network.send(Place::Node(from), Place::Node(to)) {
            self.plan(self.time + delay, Event::Arrival(packet.clone()));
        }
    }

    fn arrive(&mut self, packet: Packet) {
        let Packet { from, to, seq, done, message } = packet;
        let content = match message {
            Some(bytes) => {
                Content::Paxos(base::codec::decode(&bytes).expect("what was encoded decodes"))
            }
            None => Content::Forgotten,
        };
        let hears = !self.deaf.contains(&to) || !content.is_call();
        if self.peers[to].is_none() || !hears {
            return;
        }
        self.calls += u64::from(content.is_call());
        let (from, envelope) = (self.replicas[from], Envelope { seq, done, content });
        self.with(to, |peer, now| peer.handle(now, from, envelope));
    }

    fn judge(&self, peer: usize, seq: u64) {
        let Status::Decided(value) = self.status(peer, seq) else { return };
        let offered = self.offered.get(&seq).is_some_and(|all| all.contains(&digest(&value)));
        assert!(offered, "peer {peer} decides {seq} with a value that nobody offered");
        assert!(self.decisions(seq).all(|other| other == value), "peers disagree on {seq}");
        let accepted = |peer: &&Peer| peer.has_accepted(seq, &value);
        let count = self.peers.iter().flatten().filter(accepted).count();
        assert!(count > self.peers.len() / 2, "{count} accepted what is decided in {seq}");
    }
}

fn digest(value: &Bytes) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
