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
mod ending;
mod faults;
mod members;
mod operations;
mod options;
mod wounds;

use std::collections::BTreeMap;

use base::{DiskId, Micros, Random};

use crate::cluster::{Cluster, Failed, IDLE_ALARM};
use crate::disk::{Crash, DiskOptions};
use crate::guest::Guest;
use crate::history::History;
use crate::linearizability;
use crate::network::{NetworkOptions, Place};
use crate::ownership::HandoffCounts;
use crate::points::PointHits;
use crate::reconfiguration::{Operator, OperatorCounts};
use crate::workload::Workload;
use crate::world::{Happening, Image};

use self::alarm::Alarm;
pub use self::copies::Copies;
use self::copies::Watched;
use self::members::Steward;
pub use self::options::{Fault, Faults, Rot, SwarmOptions};
use self::wounds::Patient;

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
    /// Faults that happened, by class.
    pub faults: BTreeMap<&'static str, u64>,
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
    /// How often nodes ended at each crash point.
    pub points: PointHits,
    /// How long it took from the end of all faults until everybody was served, the plan was reality
    /// and the replicas agreed.
    pub convergence: Micros,
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
    faults: BTreeMap<&'static str, u64>,
    /// The operator, and the world's number of its client.
    operator: Option<(Operator, usize)>,
    /// The operator of the nodes.
    steward: Option<Steward>,
    /// A node of which a disk lost something, if there is one.
    patient: Option<Patient>,
    /// An old copy of some node's disk.
    image: Option<(usize, Image)>,
    /// The disk that was one last.
    restored: Option<DiskId>,
    crashes: Crashes,
    copying: Watched,
    /// While it lasts, workers go on with another call and faults happen.
    working: bool,
}

/// After the faults, each client's next call must be answered within this time, and the replicas
/// must agree within it.
const LIVENESS: Micros = Micros::from_secs(12);
/// And the plan must be reality within this time.
const SETTLED: Micros = Micros::from_secs(60);

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
            faults: BTreeMap::new(),
            operator: None,
            steward: None,
            patient: None,
            image: None,
            restored: None,
            crashes: Crashes::new(),
            copying: Watched::default(),
            working: false,
            options,
        }
    }

    fn execute(&mut self) -> Result<Report, Failed> {
        let admin = self.cluster.bootstrap(self.options.shards, &self.options.groups.clone())?;
        self.employ_operator(admin)?;
        self.employ_steward(admin)?;
        self.begin_faults();
        self.begin_work();
        let end = self.cluster.world.time() + self.options.span;
        while self.cluster.world.time() < end {
            self.step()?;
        }
        self.end_faults();
        let healed = self.cluster.world.time();
        self.finish_calls()?;
        self.cluster.settle(SETTLED)?;
        self.cluster.converge(LIVENESS)?;
        let convergence = self.cluster.world.time() - healed;
        self.cluster.audit()?;
        self.read_all()?;
        let history = self.workload.history();
        history.check_elements().map_err(|what| self.cluster.failed(&what))?;
        linearizability::check(history)
            .map_err(|violation| self.cluster.failed(&violation.to_string()))?;
        let (answered, unknown) = self.workload.counts();
        let looks = self.workload.looks();
        self.count_renewals();
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
            faults: self.faults.clone(),
            handoffs: self.cluster.ownership.counts(),
            steps: self.cluster.ownership.steps(),
            operator: self.operator.as_ref().map(|o| o.0.counts().clone()).unwrap_or_default(),
            crashes: self.crashes.clone(),
            copies: self.copying.seen.clone(),
            points: self.cluster.world.point_hits().clone(),
            convergence,
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
                if self.steward.as_ref().is_some_and(|steward| steward.client == client) {
                    return self.on_members(answered.result);
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
            Happening::Reached(node) => self.on_point(node),
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

    fn on_alarm(&mut self, alarm: Alarm) -> Result<(), Failed> {
        if !self.working {
            return Ok(());
        }
        let nodes = self.cluster.world.nodes();
        let node = self.random.below(nodes as u64) as usize;
        match alarm {
            Alarm::Work(worker) => self.work(worker),
            Alarm::Operate => self.operate(),
            Alarm::Restart(node) => {
                if !self.cluster.world.is_up(node) {
                    self.cluster.world.start(node);
                }
            }
            Alarm::Partition => self.on_partition(),
            Alarm::Heal => self.on_heal(),
            Alarm::Clog => self.clog(),
            Alarm::Clogged(node) => self.cluster.world.network.isolate(Place::Node(node), true),
            Alarm::Freed(node) => self.cluster.world.network.isolate(Place::Node(node), false),
            Alarm::Crash => self.crash(node)?,
            Alarm::Stop => self.stop(node),
            Alarm::Pause => self.on_pause(node),
            Alarm::Churn => self.churn(),
            Alarm::SlowDisk => self.slow_disk(node),
            Alarm::QuickDisk(node) => {
                self.cluster.world.set_disk(node, self.options.world.disk.clone());
            }
            Alarm::ClockJump => self.clock_jump(node),
            Alarm::ClockBack(node) => self.cluster.world.set_wall_offset(node, 0),
            Alarm::DiskError => self.fail_disk(node),
            Alarm::DiskFull => self.fill_disk(node),
            Alarm::DiskRoom(node) => self.cluster.world.disk(node).set_bytes_max(None),
            Alarm::Rot => self.rot()?,
            Alarm::Wipe => self.wipe()?,
            Alarm::TakeImage => self.take_image(),
            Alarm::OldCopy => self.put_image()?,
            Alarm::Tend => self.tend(),
            Alarm::Members => self.change_members(),
            Alarm::Point => self.arm(node),
        }
        Ok(())
    }

    fn work(&mut self, worker: usize) {
        let (body, reads) = self.workload.begin(worker, self.cluster.world.time());
        self.cluster.world.call_with(self.clients[worker], body, None, reads);
    }
}
