//! The world: virtual time, nodes with their disks and clocks, clients, and the network between
//! them. One seed decides everything.
//!
//! Nothing happens between two events. The caller takes one [`Happening`] after another from
//! [`World::step`] and may do anything to the world in between: crash, cut, call.

mod events;
mod node;
mod queue;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use base::{
    Address, BootId, ClientId, ClusterId, DiskId, Generation, GroupId, Micros, NodeId, Random,
};
use replica_group::state_machine::{owner, prefix};
use replica_group::turn::Input;
use router::client::ClientOptions;
use router::{Body, Consistency};
use storage::{DiskFault, Engine, MemoryDisk, MemoryEngine, ScanLimit, WalOptions};

use crate::client::{Answered, SimClient};
use crate::clock::Clock;
use crate::disk::{Crash, DiskOptions, NodeDisk};
use crate::guest::{Guest, Settings, Start};
use crate::network::{Network, NetworkOptions};
use crate::points::{CrashPoint, PointHits, Points};
use crate::trace::Trace;

pub(crate) use self::node::SimNode;
use self::queue::{Event, Scheduled};

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// How many nodes.
    pub nodes: usize,
    /// The first so many are the masters.
    pub masters: usize,
    /// Settings of every node.
    pub settings: Settings,
    /// The network.
    pub network: NetworkOptions,
    /// The disks.
    pub disk: DiskOptions,
    /// How often a node is told that time passes.
    pub tick: Micros,
    /// Most that a boot clock runs too fast or too slowly, in parts per million.
    pub drift_max: u64,
    /// Most that a wall clock is wrong, in milliseconds.
    pub wall_offset_max: u64,
    /// Of 100,000 turns so many are interrupted by a pause.
    pub paused: u64,
    /// The longest of these pauses.
    pub pause_max: Micros,
    /// How long a client waits for an answer before it asks again.
    pub attempt_timeout: Micros,
    /// How many of the newest lines of the nodes' logs are kept.
    pub log_lines: usize,
}

/// What a step brought about.
#[derive(Debug)]
pub enum Happening {
    /// Something inside.
    Nothing,
    /// A node was told that time passes, and its turn is over.
    Ticked(usize),
    /// A client's call ended.
    Answered(usize, Box<Answered>),
    /// An alarm that the caller had set.
    Alarm(u64),
    /// A node's process ended by itself, and why.
    Fatal(usize, String),
    /// A node has stopped in good order, as it was asked to; its process is to be ended.
    Stopped(usize),
    /// A node is at the point at which it was to end: it must be crashed now. What it would have
    /// done next is not done.
    Reached(usize),
}

/// What a node's disks held at some time.
#[derive(Debug)]
pub struct Image {
    disk_id: DiskId,
    disk: MemoryDisk,
    engine: MemoryEngine,
    /// How often the node had been started on them.
    starts: u64,
    named: Option<ClusterId>,
}

impl Image {
    /// Which disk it is of.
    pub fn disk_id(&self) -> DiskId {
        self.disk_id
    }

    /// How often the node had been started on it.
    pub fn starts(&self) -> u64 {
        self.starts
    }
}

/// The world.
pub struct World<G> {
    options: WorldOptions,
    time: Micros,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    pub(crate) nodes: Vec<SimNode<G>>,
    peers: BTreeMap<Address, usize>,
    doors: BTreeMap<Address, usize>,
    clients: Vec<SimClient>,
    /// The network; the caller cuts and mends it.
    pub network: Network,
    random: Random,
    trace: Trace,
    happened: VecDeque<Happening>,
    log: VecDeque<String>,
    /// What nodes logged as errors of hand-offs and nobody asked for yet.
    errors: Vec<String>,
    points: Points,
}

impl<G: Guest> World<G> {
    /// A world in which no node has been started yet.
    pub fn new(seed: u64, options: WorldOptions) -> World<G> {
        let mut random = Random::new(seed);
        let network = Network::new(random.fork(), options.network.clone());
        let nodes: Vec<SimNode<G>> = (0..options.nodes)
            .map(|index| SimNode {
                peer: Address::new(&format!("peer{index}")),
                grpc: Address::new(&format!("grpc{index}")),
                disk_id: DiskId(random.next_u128()),
                disk: NodeDisk::new(random.fork(), options.disk.clone()),
                clock: Clock::new(&mut random, options.drift_max, options.wall_offset_max),
                starts: 0,
                disk_starts: 0,
                named: None,
                guest: None,
                inbox: VecDeque::new(),
                turn_due: false,
                output_due: false,
                stale: None,
                busy_until: Micros(0),
                requests: BTreeMap::new(),
                token_last: 0,
            })
            .collect();
        let index = |address: fn(&SimNode<G>) -> &Address| {
            nodes.iter().enumerate().map(|(index, node)| (address(node).clone(), index)).collect()
        };
        let peers = index(|node| &node.peer);
        let doors = index(|node| &node.grpc);
        World {
            options,
            time: Micros(0),
            queue: BinaryHeap::new(),
            scheduled: 0,
            nodes,
            peers,
            doors,
            clients: Vec::new(),
            network,
            random,
            trace: Trace::default(),
            happened: VecDeque::new(),
            log: VecDeque::new(),
            errors: Vec::new(),
            points: Points::default(),
        }
    }

    /// Virtual time.
    pub fn time(&self) -> Micros {
        self.time
    }

    /// How many events are still to come.
    pub fn under_way(&self) -> usize {
        self.queue.len()
    }

    /// What a node's boot clock shows.
    pub fn boot_clock(&self, node: usize) -> Micros {
        self.nodes[node].clock.now(self.time).mono
    }

    /// The trace so far.
    pub fn trace(&self) -> Trace {
        self.trace
    }

    /// How many nodes there are, up or down.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The addresses at which other nodes reach the masters.
    pub fn master_addresses(&self) -> Vec<Address> {
        self.nodes[..self.options.masters].iter().map(|node| node.peer.clone()).collect()
    }

    /// The machine on a node; none while it is down.
    pub fn guest(&self, node: usize) -> Option<&G> {
        self.nodes[node].guest.as_ref()
    }

    /// The same, to be asked for what needs more than a look.
    pub(crate) fn guest_mut(&mut self, node: usize) -> Option<&mut G> {
        self.nodes[node].guest.as_mut()
    }

    /// Whether a node is up.
    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].guest.is_some()
    }

    /// The settings of nodes that are started from now on.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.options.settings
    }

    /// Sets an alarm; the number comes back in [`Happening::Alarm`].
    pub fn alarm(&mut self, after: Micros, number: u64) {
        self.schedule(after, Event::Alarm { number });
    }

    /// Starts a node's process.
    pub fn start(&mut self, node: usize) {
        let masters = self.master_addresses();
        let settings = self.options.settings.clone();
        let (boot, seed) = (BootId(self.random.next_u128()), self.random.next_u64());
        let time = self.time;
        let tick = Micros(self.random.below(self.options.tick.0));
        let number = if node < self.options.masters { node as u64 + 1 } else { 0 };
        let sim = &mut self.nodes[node];
        assert!(sim.guest.is_none(), "node {node} is started while it runs");
        sim.starts += 1;
        sim.disk_starts += 1;
        let start = Start {
            disk: sim.disk_id,
            boot,
            starts: sim.disk_starts,
            node: NodeId(number),
            cluster: sim.named,
            peer: sim.peer.clone(),
            grpc: sim.grpc.clone(),
            masters,
            seed,
            settings,
        };
        let starts = sim.starts;
        let engine = sim.disk.engine.clone();
        match G::open(&start, &mut sim.disk.disk, engine, sim.clock.now(time)) {
            Ok(guest) => {
                sim.guest = Some(guest);
                self.trace.event(&[1, time.0, node as u64, starts]);
                self.say(node, "started");
                self.schedule(tick, Event::Tick { node, starts });
            }
            Err(error) => {
                self.happened.push_back(Happening::Fatal(node, format!("cannot start: {error}")));
            }
        }
    }

    /// Ends a node's process, or its machine.
    pub fn crash(&mut self, node: usize, crash: Crash) {
        let sim = &mut self.nodes[node];
        if sim.guest.take().is_none() {
            return;
        }
        sim.disk.crash(crash);
        sim.inbox.clear();
        sim.turn_due = false;
        sim.output_due = false;
        sim.stale = None;
        sim.busy_until = Micros(0);
        let requests = std::mem::take(&mut sim.requests);
        self.trace.event(&[2, self.time.0, node as u64]);
        self.say(node, "crashed");
        for (_, (client, number)) in requests {
            self.break_off(client, number, true);
        }
    }

    /// Has a node end when it next comes to this point ([`Happening::Reached`]); a point that was
    /// armed before is not any more.
    pub fn arm(&mut self, node: usize, point: CrashPoint) {
        self.points.arm(node, point);
    }

    /// No node ends at a point any more.
    pub fn disarm(&mut self) {
        self.points.disarm();
    }

    /// How often nodes ended at points, by name.
    pub fn point_hits(&self) -> &PointHits {
        self.points.hits()
    }

    /// Whether a node, being at this point, is to end; then that is made known.
    fn reaches(&mut self, node: usize, point: CrashPoint) -> bool {
        let reached = self.points.is_reached(node, point);
        if reached {
            let place = point.name();
            self.say(node, &format!("is to end here: {place}"));
            self.happened.push_back(Happening::Reached(node));
        }
        reached
    }

    /// Asks a node to stop in good order; its process ends when it has.
    pub fn stop(&mut self, node: usize) {
        self.say(node, "is to stop");
        self.deliver(node, Input::Stop);
    }

    /// Stops a node from doing anything for a while; what arrives meanwhile waits.
    pub fn pause(&mut self, node: usize, span: Micros) {
        let until = self.time + span;
        let sim = &mut self.nodes[node];
        sim.busy_until = sim.busy_until.max(until);
    }

    /// Moves a node's wall clock to so many milliseconds ahead of the right time.
    pub fn set_wall_offset(&mut self, node: usize, millis: i64) {
        self.nodes[node].clock.set_wall_offset(millis);
    }

    /// The log's disk of a node, to plant faults in it.
    pub fn disk(&mut self, node: usize) -> &mut MemoryDisk {
        &mut self.nodes[node].disk.disk
    }

    /// Whether a node's disk fails to read.
    pub fn is_unreadable(&self, node: usize) -> bool {
        matches!(self.nodes[node].disk.disk.fault(), Some(DiskFault::Read(_)))
    }

    /// Bytes of the records in a node's store, keys included, that belong to groups of a range.
    pub fn stored(&self, node: usize, groups: Range<GroupId>) -> u64 {
        let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
        let to = prefix(GroupId(0), Generation(u32::MAX));
        match self.nodes[node].disk.engine.scan(&[], &to, all) {
            Ok(found) => {
                let of = found.iter().filter(|(key, _)| groups.contains(&owner(key).0));
                of.map(|(key, value)| (key.len() + value.len()) as u64).sum()
            }
            Err(error) => panic!("the store of node {node}: {error}"),
        }
    }

    /// The layout of a node's log.
    pub fn wal_options(&self, node: usize) -> WalOptions {
        WalOptions {
            segment_bytes: self.options.settings.segment_bytes,
            bytes_max: self.options.settings.wal_bytes_max,
            ..WalOptions::new(self.nodes[node].disk_id)
        }
    }

    /// A copy of what a node's disks durably hold.
    pub fn image(&self, node: usize) -> Image {
        let SimNode { disk_id, disk, disk_starts, named, .. } = &self.nodes[node];
        let (disk, engine) = (disk.disk.durable(), disk.engine.copy());
        Image { disk_id: *disk_id, disk, engine, starts: *disk_starts, named: *named }
    }

    /// Puts back what a node's disks once held; the node is down.
    pub fn restore(&mut self, node: usize, image: Image) {
        assert!(!self.is_up(node), "the disks of node {node} are exchanged while it runs");
        let sim = &mut self.nodes[node];
        (sim.disk_id, sim.disk_starts) = (image.disk_id, image.starts);
        sim.named = image.named;
        sim.disk.disk = image.disk;
        sim.disk.engine = Arc::new(image.engine);
        self.trace.event(&[10, self.time.0, node as u64]);
        self.say(node, "has an old copy of its disks");
    }

    /// How often a node was started on the disks that it has, as these say.
    pub fn disk_starts(&self, node: usize) -> u64 {
        self.nodes[node].disk_starts
    }

    /// A node gets an empty disk in place of the one that it had; it is down.
    pub fn wipe(&mut self, node: usize) {
        assert!(!self.is_up(node), "the disks of node {node} are exchanged while it runs");
        let sim = &mut self.nodes[node];
        sim.disk_id = DiskId(self.random.next_u128());
        sim.disk = NodeDisk::new(self.random.fork(), self.options.disk.clone());
        sim.disk_starts = 0;
        sim.named = None;
        self.trace.event(&[9, self.time.0, node as u64]);
        self.say(node, "has lost its disk");
    }

    /// The disk of a node.
    pub fn disk_id(&self, node: usize) -> DiskId {
        self.nodes[node].disk_id
    }

    /// Makes some record of a node's store unreadable; says which.
    pub fn damage_store(&mut self, node: usize) -> String {
        let engine = &self.nodes[node].disk.engine;
        let place = self.random.below(engine.records().max(1) as u64);
        match engine.damage(place as usize) {
            Some(key) => format!("the store loses the record of key {key:02x?}"),
            None => "the store is empty".to_owned(),
        }
    }

    /// The store of a node.
    pub fn store(&self, node: usize) -> &MemoryEngine {
        &self.nodes[node].disk.engine
    }

    /// Makes every record of a node's store unreadable.
    pub fn spoil_store(&mut self, node: usize) {
        let engine = &self.nodes[node].disk.engine;
        (0..engine.records()).for_each(|place| drop(engine.damage(place)));
    }

    /// Other speeds for a node's disk.
    pub fn set_disk(&mut self, node: usize, options: DiskOptions) {
        self.nodes[node].disk.set_options(options);
    }

    /// A new client that knows these nodes, or, with `pinned`, talks to the first of them only.
    pub fn add_client(&mut self, endpoints: Vec<usize>, pinned: bool, timeout: Micros) -> usize {
        let id = ClientId(self.random.next_u128());
        let seed = self.random.next_u64();
        let clock =
            Clock::new(&mut self.random, self.options.drift_max, self.options.wall_offset_max);
        let attempt_timeout = self.options.attempt_timeout;
        let options = ClientOptions { timeout, attempt_timeout, ..ClientOptions::default() };
        self.clients.push(SimClient::new(id, seed, clock, endpoints, pinned, options));
        self.clients.len() - 1
    }

    /// A client calls. The end of the call comes as [`Happening::Answered`] with the number that
    /// is returned.
    pub fn call(&mut self, client: usize, body: Body, timeout: Option<Micros>) -> u64 {
        self.call_with(client, body, timeout, Consistency::Linearizable)
    }

    /// As [`World::call`], and says what a read may see.
    pub fn call_with(
        &mut self,
        client: usize,
        body: Body,
        timeout: Option<Micros>,
        reads: Consistency,
    ) -> u64 {
        let time = self.time;
        let call = self.clients[client].begin(time, body, timeout, reads);
        self.after_client(client);
        call
    }

    /// How many calls of a client are open.
    pub fn open_calls(&self, client: usize) -> usize {
        self.clients[client].open()
    }

    /// A client forgets its open calls: nothing more is heard of them.
    pub fn abandon(&mut self, client: usize) {
        let time = self.time;
        self.clients[client].abandon(time);
    }

    /// The next event. None when nothing can happen any more.
    pub fn step(&mut self) -> Option<Happening> {
        if let Some(happening) = self.happened.pop_front() {
            return Some(happening);
        }
        let Reverse(scheduled) = self.queue.pop()?;
        self.time = scheduled.at;
        let ticked = self.execute(scheduled.event);
        match self.happened.pop_front() {
            Some(happening) => {
                if let Some(node) = ticked {
                    self.happened.push_back(Happening::Ticked(node));
                }
                Some(happening)
            }
            None => Some(ticked.map_or(Happening::Nothing, Happening::Ticked)),
        }
    }

    fn say(&mut self, node: usize, text: &str) {
        self.note(&format!("node {node}: {text}"));
    }

    /// Adds a line to the log, with the time.
    pub fn note(&mut self, text: &str) {
        if self.log.len() >= self.options.log_lines {
            self.log.pop_front();
        }
        if self.options.log_lines > 0 {
            self.log.push_back(format!("{:>10.6} {text}", self.time.0 as f64 / 1e6));
        }
    }

    /// What nodes have logged as errors of hand-offs since this was last asked.
    pub fn take_errors(&mut self) -> Vec<String> {
        std::mem::take(&mut self.errors)
    }

    /// The newest lines of the log.
    pub fn log(&self) -> impl Iterator<Item = &String> {
        self.log.iter()
    }
}
