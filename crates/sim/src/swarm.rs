//! One seed, one run: what the cluster is made of, what its clients do and which faults it meets
//! are all drawn from the seed.
//!
//! A run has three parts. The cluster is made, by the requests that a user sends. Then, for at
//! least twenty seconds of virtual time, clients work while faults happen; the invariants are
//! checked all along. Then all faults end, everything that is down is started, and within a
//! bounded time each client's next call must be answered and all replicas must agree; at last
//! every key is read once more and the whole history is judged.

mod alarm;
mod copies;
mod operations;
mod options;

use std::collections::BTreeMap;

use base::{Micros, Random};
use bytes::Bytes;
use storage::DiskFault;

use crate::cluster::{Cluster, Failed, IDLE_ALARM};
use crate::disk::{Crash, DiskOptions};
use crate::guest::Guest;
use crate::history::History;
use crate::linearizability;
use crate::network::{NetworkOptions, Place};
use crate::ownership::HandoffCounts;
use crate::reconfiguration::{Operator, OperatorCounts};
use crate::rot;
use crate::workload::Workload;
use crate::world::Happening;

use self::alarm::Alarm;
pub use self::copies::Copies;
use self::copies::Watched;
pub use self::options::{Fault, Faults, Rot, SwarmOptions};

/// What a run that passed was like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The hash of its trace.
    pub trace: u64,
    /// Its events.
    pub events: u64,
    /// Its virtual time.
    pub time: Micros,
    /// Calls that were answered.
    pub answered: u64,
    /// Calls with an unknown outcome.
    pub unknown: u64,
    /// Reads that were answered and need not have seen the newest value.
    pub looks: u64,
    /// Slots that were chosen, over all groups.
    pub chosen: u64,
    /// Leaders, over all groups.
    pub leaders: usize,
    /// How often a replica was seen that held a lease.
    pub leases: u64,
    /// Faults that happened.
    pub faults: u64,
    /// What became of hand-offs.
    pub handoffs: HandoffCounts,
    /// How many hand-offs were seen at each step.
    pub steps: BTreeMap<&'static str, u64>,
    /// What the operator did.
    pub operator: OperatorCounts,
    /// Leaders that were ended while they took part in a hand-off, by the last step that was seen
    /// of it, and by party.
    pub crashes: Crashes,
    /// Copies of states that replicas took, by the steps that were seen of them.
    pub copies: Copies,
}

/// How often whom a crash met in the middle of a hand-off, by step and party.
pub type Crashes = BTreeMap<(&'static str, &'static str), u64>;

/// A failed run, with what there is to look into.
#[derive(Debug)]
pub struct FailedRun {
    /// What went wrong.
    pub failed: Failed,
    /// The last lines of the nodes' logs.
    pub log: Vec<String>,
    /// What the replicas looked like at the end, a line each.
    pub replicas: Vec<String>,
    /// The history so far.
    pub history: History,
}

/// Runs a seed.
pub fn run<G: Guest>(seed: u64) -> Result<Report, Box<FailedRun>> {
    run_with::<G>(seed, SwarmOptions::draw(seed))
}

/// Runs a seed with these options.
pub fn run_with<G: Guest>(seed: u64, options: SwarmOptions) -> Result<Report, Box<FailedRun>> {
    let mut run = Run::<G>::new(seed, options);
    match run.execute() {
        Ok(report) => Ok(report),
        Err(failed) => Err(Box::new(FailedRun {
            failed,
            log: run.cluster.world.log().cloned().collect(),
            replicas: replicas(&run.cluster),
            history: run.workload.history().clone(),
        })),
    }
}

fn replicas<G: Guest>(cluster: &Cluster<G>) -> Vec<String> {
    let mut lines = Vec::new();
    for node in 0..cluster.world.nodes() {
        match cluster.world.guest(node) {
            Some(guest) => {
                let views = guest.views(true);
                lines.extend(views.iter().map(|view| format!("node {node}: {view:?}")));
            }
            None => lines.push(format!("node {node}: down")),
        }
    }
    lines
}

struct Run<G> {
    options: SwarmOptions,
    cluster: Cluster<G>,
    workload: Workload,
    random: Random,
    /// The world's number of each worker's client.
    clients: Vec<usize>,
    faults: u64,
    /// The operator, and the world's number of its client.
    operator: Option<(Operator, usize)>,
    crashes: Crashes,
    copying: Watched,
    /// While it lasts, workers go on with another call and faults happen.
    working: bool,
}

/// After the faults, each client's next call must be answered within this time, and the replicas
/// must agree within it.
const LIVENESS: Micros = Micros::from_secs(12);
/// And the plan must be reality within this time.
const SETTLED: Micros = Micros::from_secs(30);

impl<G: Guest> Run<G> {
    fn new(seed: u64, options: SwarmOptions) -> Run<G> {
        let mut random = Random::new(seed ^ 0x5157_4d00);
        // The cluster is made without faults.
        let mut world = options.world.clone();
        world.network = NetworkOptions::calm();
        world.disk = DiskOptions::calm();
        let workload = Workload::new(random.fork(), options.workload.clone());
        Run {
            cluster: Cluster::new(random.next_u64(), world),
            workload,
            random,
            clients: Vec::new(),
            faults: 0,
            operator: None,
            crashes: Crashes::new(),
            copying: Watched::default(),
            working: false,
            options,
        }
    }

    fn execute(&mut self) -> Result<Report, Failed> {
        let admin = self.cluster.bootstrap(self.options.shards, &self.options.groups.clone())?;
        self.employ_operator(admin)?;
        self.begin_faults();
        self.begin_work();
        let end = self.cluster.world.time() + self.options.span;
        while self.cluster.world.time() < end {
            self.step()?;
        }
        self.end_faults();
        self.finish_calls()?;
        self.cluster.settle(SETTLED)?;
        self.cluster.converge(LIVENESS)?;
        self.cluster.audit()?;
        self.read_all()?;
        let history = self.workload.history();
        history.check_elements().map_err(|what| self.cluster.failed(&what))?;
        linearizability::check(history)
            .map_err(|violation| self.cluster.failed(&violation.to_string()))?;
        let (answered, unknown) = self.workload.counts();
        let looks = self.workload.looks();
        let trace = self.cluster.world.trace();
        Ok(Report {
            trace: trace.hash(),
            events: trace.events(),
            time: self.cluster.world.time(),
            answered,
            unknown,
            looks,
            chosen: self.cluster.checker.chosen(),
            leaders: self.cluster.checker.leaders(),
            leases: self.cluster.leases.held(),
            faults: self.faults,
            handoffs: self.cluster.ownership.counts(),
            steps: self.cluster.ownership.steps(),
            operator: self.operator.as_ref().map(|o| o.0.counts().clone()).unwrap_or_default(),
            crashes: self.crashes.clone(),
            copies: self.copying.seen.clone(),
        })
    }

    fn step(&mut self) -> Result<(), Failed> {
        match self.cluster.step()? {
            Happening::Alarm(IDLE_ALARM) => Ok(()),
            Happening::Alarm(number) => match Alarm::of(number) {
                Some(alarm) => self.on_alarm(alarm),
                None => Ok(()),
            },
            Happening::Answered(client, answered) => {
                if self.operator.as_ref().is_some_and(|(_, known)| *known == client) {
                    return self.on_operated(answered.result);
                }
                let Some(worker) = self.clients.iter().position(|known| *known == client) else {
                    return Ok(());
                };
                let time = self.cluster.world.time();
                let ended = self.workload.end(worker, time, answered.result);
                ended.map_err(|what| self.cluster.failed(&what))?;
                if self.working {
                    let think = self.workload.think();
                    self.alarm(think, Alarm::Work(worker));
                }
                Ok(())
            }
            Happening::Fatal(node, _) => {
                self.cluster.world.crash(node, Crash::Power);
                self.cluster.world.disk(node).set_fault(None);
                if !self.working {
                    // It gave up at the last moment; from now on it may not.
                    self.cluster.may_give_up.remove(&node);
                    self.cluster.world.start(node);
                    return Ok(());
                }
                // On a full disk it may not even start: time must pass.
                let span = self.span(self.options.faults.disk_error);
                self.alarm(span + Micros::from_millis(100), Alarm::Restart(node));
                Ok(())
            }
            Happening::Ticked(node) => {
                self.watch_copies(node)?;
                self.ambush()
            }
            Happening::Stopped(_) | Happening::Nothing => Ok(()),
        }
    }

    fn alarm(&mut self, after: Micros, alarm: Alarm) {
        self.cluster.world.alarm(after, alarm.number());
    }

    fn begin_work(&mut self) {
        self.working = true;
        let nodes = self.cluster.world.nodes();
        for worker in 0..self.options.workload.clients() {
            let mut endpoints: Vec<usize> = (0..nodes).collect();
            self.random.shuffle(&mut endpoints);
            let (pinned, timeout) = (self.options.pinned, self.options.timeout);
            let client = self.cluster.world.add_client(endpoints, pinned, timeout);
            self.clients.push(client);
            self.alarm(Micros(0), Alarm::Work(worker));
        }
    }

    fn begin_faults(&mut self) {
        self.cluster.world.network.set_options(self.options.world.network.clone());
        for node in 0..self.cluster.world.nodes() {
            self.cluster.world.set_disk(node, self.options.world.disk.clone());
        }
        let faults = self.options.faults.clone();
        self.next(faults.partition, Alarm::Partition);
        self.next(faults.crash, Alarm::Crash);
        self.next(faults.pause, Alarm::Pause);
        self.next(faults.slow_disk, Alarm::SlowDisk);
        self.next(faults.clock_jump, Alarm::ClockJump);
        self.next(faults.disk_error, Alarm::DiskError);
        self.next(faults.disk_full, Alarm::DiskFull);
        self.next(faults.stop, Alarm::Stop);
        self.next_rot();
    }

    fn next_rot(&mut self) {
        if let Some(rot) = self.options.faults.rot {
            self.cluster.checker.hurt = Some(rot.node);
            let after = Micros(self.random.below(rot.every_max.0));
            self.alarm(after, Alarm::Rot);
        }
    }

    /// Sets the alarm for the next fault of a kind.
    fn next(&mut self, fault: Option<Fault>, alarm: Alarm) {
        if let Some(fault) = fault {
            let after = Micros(self.random.below(fault.every_max.0));
            self.alarm(after, alarm);
        }
    }

    fn span(&mut self, fault: Option<Fault>) -> Micros {
        Micros(self.random.below(fault.map_or(1, |fault| fault.span_max.0)))
    }

    fn on_alarm(&mut self, alarm: Alarm) -> Result<(), Failed> {
        let faults = self.options.faults.clone();
        if !self.working {
            return Ok(());
        }
        let nodes = self.cluster.world.nodes();
        let node = self.random.below(nodes as u64) as usize;
        match alarm {
            Alarm::Work(worker) => self.work(worker),
            Alarm::Operate => self.operate(),
            Alarm::Partition => {
                self.faults += 1;
                self.partition();
                let span = self.span(faults.partition);
                self.alarm(span, Alarm::Heal);
            }
            Alarm::Heal => {
                self.cluster.world.note("the network is whole");
                self.cluster.world.network.heal();
                self.next(faults.partition, Alarm::Partition);
            }
            Alarm::Crash => {
                self.faults += 1;
                self.crash(node)?;
                self.next(faults.crash, Alarm::Crash);
            }
            Alarm::Stop => {
                self.faults += 1;
                self.cluster.world.stop(node);
                let span = Micros::from_millis(1_700) + self.span(faults.stop);
                self.alarm(span, Alarm::Restart(node));
                self.next(faults.stop, Alarm::Stop);
            }
            Alarm::Restart(node) => {
                if !self.cluster.world.is_up(node) {
                    self.cluster.world.start(node);
                }
            }
            Alarm::Pause => {
                self.faults += 1;
                let span = self.span(faults.pause);
                self.cluster.world.note(&format!("node {node} pauses for {span:?}"));
                self.cluster.world.pause(node, span);
                self.next(faults.pause, Alarm::Pause);
            }
            Alarm::SlowDisk => {
                self.faults += 1;
                let slow = DiskOptions {
                    sync_min: Micros::from_millis(5),
                    sync_max: Micros::from_millis(self.random.between(10, 500)),
                    ..self.options.world.disk.clone()
                };
                self.cluster.world.set_disk(node, slow);
                let span = self.span(faults.slow_disk);
                self.alarm(span, Alarm::QuickDisk(node));
                self.next(faults.slow_disk, Alarm::SlowDisk);
            }
            Alarm::QuickDisk(node) => {
                self.cluster.world.set_disk(node, self.options.world.disk.clone());
            }
            Alarm::ClockJump => {
                self.faults += 1;
                let hour = 3_600_000;
                let millis = self.random.below(2 * hour) as i64 - hour as i64;
                self.cluster.world.note(&format!("the clock of node {node} jumps to {millis} ms"));
                self.cluster.world.set_wall_offset(node, millis);
                let span = self.span(faults.clock_jump);
                self.alarm(span, Alarm::ClockBack(node));
                self.next(faults.clock_jump, Alarm::ClockJump);
            }
            Alarm::ClockBack(node) => self.cluster.world.set_wall_offset(node, 0),
            Alarm::DiskError => self.fail_disk(node),
            Alarm::DiskFull => self.fill_disk(node),
            Alarm::Rot => self.rot()?,
            Alarm::DiskRoom(node) => self.cluster.world.disk(node).set_bytes_max(None),
        }
        Ok(())
    }

    fn fail_disk(&mut self, node: usize) {
        self.faults += 1;
        let after = self.random.below(20);
        let fault = match self.random.below(3) {
            0 => DiskFault::Read(after / 4),
            1 => DiskFault::Write(after),
            _ => DiskFault::Sync(after),
        };
        self.cluster.world.note(&format!("the disk of node {node} fails: {fault:?}"));
        self.cluster.may_give_up.insert(node);
        self.cluster.world.disk(node).set_fault(Some(fault));
        self.next(self.options.faults.disk_error, Alarm::DiskError);
    }

    fn rot(&mut self) -> Result<(), Failed> {
        let Some(rot) = self.options.faults.rot else { return Ok(()) };
        self.faults += 1;
        let what = if self.random.chance(rot.store, 100) {
            self.cluster.world.damage_store(rot.node)
        } else {
            let page = self.random.chance(rot.pages, 100);
            let wal = self.cluster.world.wal_options(rot.node);
            rot::damage_log(self.cluster.world.disk(rot.node), wal, page, &mut self.random)
        };
        self.cluster.world.note(&format!("the disk of node {}: {what}", rot.node));
        if self.random.chance(rot.crash, 100) {
            self.crash_one(rot.node)?;
        }
        self.next_rot();
        Ok(())
    }

    fn fill_disk(&mut self, node: usize) {
        self.faults += 1;
        let disk = self.cluster.world.disk(node);
        disk.set_bytes_max(Some(disk.bytes()));
        self.cluster.may_not_start.insert(node);
        self.cluster.world.note(&format!("the disk of node {node} is full"));
        let span = self.span(self.options.faults.disk_full);
        self.alarm(span, Alarm::DiskRoom(node));
        self.next(self.options.faults.disk_full, Alarm::DiskFull);
    }

    fn work(&mut self, worker: usize) {
        let (body, reads) = self.workload.begin(worker, self.cluster.world.time());
        self.cluster.world.call_with(self.clients[worker], body, None, reads);
    }

    fn partition(&mut self) {
        let nodes = self.cluster.world.nodes();
        let mut places: Vec<usize> = (0..nodes).collect();
        self.random.shuffle(&mut places);
        let network = &mut self.cluster.world.network;
        let what = match self.random.below(5) {
            0 => {
                let at = self.random.between(1, nodes as u64 - 1) as usize;
                let blocks = vec![places[..at].to_vec(), places[at..].to_vec()];
                network.partition(nodes, &blocks);
                format!("partition {blocks:?}")
            }
            1 => {
                // One node is heard by nobody, or hears nobody.
                let (lone, deaf) = (places[0], self.random.chance(1, 2));
                for other in &places[1..] {
                    let (from, to) = if deaf { (*other, lone) } else { (lone, *other) };
                    network.cut(Place::Node(from), Place::Node(to));
                }
                format!("node {lone} is {}", if deaf { "deaf" } else { "mute" })
            }
            2 => {
                // Only one node is connected with all others.
                network.partition(nodes, &[]);
                for other in &places[1..] {
                    network.mend(Place::Node(places[0]), Place::Node(*other));
                    network.mend(Place::Node(*other), Place::Node(places[0]));
                }
                format!("only node {} reaches all", places[0])
            }
            3 => {
                // A chain of nodes, each connected with its neighbours.
                network.partition(nodes, &[]);
                for pair in places.windows(2) {
                    network.mend(Place::Node(pair[0]), Place::Node(pair[1]));
                    network.mend(Place::Node(pair[1]), Place::Node(pair[0]));
                }
                format!("a chain {places:?}")
            }
            _ => {
                let lone = places[0];
                for client in &self.clients {
                    network.cut(Place::Client(*client), Place::Node(lone));
                }
                network.cut(Place::Node(lone), Place::Node(places[1]));
                format!("no client reaches node {lone}, nor does node {} hear it", places[1])
            }
        };
        self.cluster.world.note(&what);
    }

    fn crash(&mut self, node: usize) -> Result<(), Failed> {
        let crash = if self.options.faults.power { Crash::Power } else { Crash::Kill };
        let all = self.random.chance(self.options.faults.crash_all, 100);
        let nodes: Vec<usize> =
            if all { (0..self.cluster.world.nodes()).collect() } else { vec![node] };
        for node in nodes {
            self.end_process(node, crash)?;
        }
        Ok(())
    }

    fn crash_one(&mut self, node: usize) -> Result<(), Failed> {
        let crash = if self.options.faults.power { Crash::Power } else { Crash::Kill };
        self.end_process(node, crash)
    }

    fn end_process(&mut self, node: usize, crash: Crash) -> Result<(), Failed> {
        if self.cluster.world.is_up(node) {
            self.cluster.observe(node)?;
            self.count_crash(node);
            self.cluster.world.crash(node, crash);
            let span = self.span(self.options.faults.crash);
            self.alarm(span, Alarm::Restart(node));
        }
        Ok(())
    }

    fn end_faults(&mut self) {
        self.working = false;
        self.cluster.stops_no_more = true;
        let world = &mut self.cluster.world;
        world.note("all faults end");
        world.network.heal();
        world.network.set_options(NetworkOptions::calm());
        for node in 0..world.nodes() {
            world.set_disk(node, DiskOptions::calm());
            world.set_wall_offset(node, 0);
            world.disk(node).set_fault(None);
            world.disk(node).set_bytes_max(None);
            if !world.is_up(node) {
                world.start(node);
            }
        }
    }

    /// Lets every open call end, then has every client's next call answered in time.
    fn finish_calls(&mut self) -> Result<(), Failed> {
        let workers = 0..self.clients.len();
        let end = self.cluster.world.time() + self.options.timeout + Micros::from_secs(2);
        let operating = |run: &Run<G>| run.operator.as_ref().is_some_and(|(o, _)| o.is_open());
        while operating(self) || workers.clone().any(|worker| self.workload.is_open(worker)) {
            if self.cluster.world.time() > end {
                return Err(self.cluster.failed("a call does not end, long after its deadline"));
            }
            self.step()?;
        }
        // A full log may go on refusing until it is freed, but not for long.
        let end = self.cluster.world.time() + LIVENESS;
        for worker in workers {
            let answered = self.workload.counts().0;
            while self.workload.counts().0 == answered {
                if self.cluster.world.time() > end {
                    let last = self.workload.last_error();
                    let what = format!("a call is not answered, all faults being over: {last:?}");
                    return Err(self.cluster.failed(&what));
                }
                if !self.workload.is_open(worker) {
                    self.pause(Micros::from_millis(20))?;
                    self.work(worker);
                }
                self.step()?;
            }
        }
        Ok(())
    }

    fn pause(&mut self, span: Micros) -> Result<(), Failed> {
        let end = self.cluster.world.time() + span;
        self.cluster.world.alarm(span, IDLE_ALARM);
        while self.cluster.world.time() < end {
            self.step()?;
        }
        Ok(())
    }

    fn read_all(&mut self) -> Result<(), Failed> {
        for key in self.workload.keys() {
            self.read(&key)?;
        }
        Ok(())
    }

    fn read(&mut self, key: &Bytes) -> Result<(), Failed> {
        let time = self.cluster.world.time();
        let (answered, _) = self.workload.counts();
        let body = self.workload.begin_read(0, time, key);
        self.cluster.world.call(self.clients[0], body, Some(LIVENESS));
        while self.workload.is_open(0) {
            self.step()?;
        }
        if self.workload.counts().0 == answered {
            let last = self.workload.last_error();
            let what = format!("a read fails, all faults being over: {last:?}");
            return Err(self.cluster.failed(&what));
        }
        Ok(())
    }
}
