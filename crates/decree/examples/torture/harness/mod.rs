//! Torture of a real cluster, and its judgement: rounds of faults under load, after each of which
//! all must be well again by itself.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::Random;
use client::Client;
use router::Routes;
use serde_json::{Value, json};

use changes::Operator;
use classes::{Class, OfDisk, OfRoom};
use clients::{Clients, Crew};
use faults::Faults;
use notes::{Counts, Notes};
use sampling::Sample;
use support::survey::{Survey, controller, settle};
use world::World;

mod changes;
mod classes;
mod clients;
pub(crate) mod disks;
mod faults;
mod judge;
mod link_faults;
mod links;
mod notes;
mod patients;
mod sabotage;
mod sampling;
#[path = "../../support/mod.rs"]
pub(crate) mod support;
mod world;

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Decides which faults come when, and what clients and operator do.
    pub(crate) seed: u64,
    /// How many nodes there are, at least five.
    pub(crate) nodes: u64,
    /// Ports are counted from here.
    pub(crate) base_port: u16,
    /// No further round begins after so long.
    pub(crate) time: Duration,
    /// How long faults come in a round; where every class is to come, until it has.
    pub(crate) storm: Duration,
    /// Whether a round is over when each class of faults came once.
    pub(crate) every_class: bool,
    /// Between two faults up to so long passes.
    pub(crate) pause: Duration,
    /// How many faults are under way at a time at most.
    pub(crate) at_a_time: usize,
    /// How many times shorter than usual they are.
    pub(crate) haste: u32,
    /// Clients on shared keys, with chains, with large values.
    pub(crate) clients: (u64, u64, u64),
    /// Up to so long a client waits after an answer.
    pub(crate) client_pause: Duration,
    /// After all faults all must be well within this time.
    pub(crate) patience: Duration,
    /// Whether acknowledged writes are taken back and others executed once more, which must be
    /// found.
    pub(crate) sabotage: bool,
    /// Whether everything that happens is told.
    pub(crate) verbose: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What must not be; empty if all is well.
    pub(crate) failures: Vec<String>,
    /// How often each class of faults came.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Classes that this machine does not let us try, and why.
    pub(crate) absent: BTreeMap<&'static str, String>,
    /// How many classes there are.
    pub(crate) classes: usize,
    /// Calls that were answered, in all.
    pub(crate) acknowledged: u64,
    /// Where data and logs stay, if anything failed.
    pub(crate) kept: Option<PathBuf>,
}

const SHARDS: u16 = 32;
const TICK: Duration = Duration::from_millis(10);
const SAMPLE_PAUSE: Duration = Duration::from_millis(250);
const PROGRESS: Duration = Duration::from_secs(10);
/// A new cluster must be well within this time.
const START_TIME_MAX: Duration = Duration::from_secs(120);
/// For how long clients go on then, and none of their calls may fail.
const CALM: Duration = Duration::from_secs(1);
/// Longer than any call may take.
const REST_TIME_MAX: Duration = Duration::from_secs(90);
/// A replica that is so many slots behind while others write is with them.
const NEAR: u64 = 2_000;
/// And when nobody does.
const QUIET_NEAR: u64 = 16;

/// All that takes part.
struct Torture {
    options: Options,
    world: World,
    control: Client,
    faults: Faults,
    operator: Rc<Operator>,
    notes: Arc<Notes>,
    samples: Rc<Samples>,
    random: Random,
    began: Instant,
    outcome: Outcome,
}

/// What was seen of the cluster, by a task that looks all the time.
#[derive(Default)]
struct Samples {
    newest: RefCell<Option<Sample>>,
    /// Group, round and node of leaders that were seen.
    leaders: RefCell<BTreeSet<(u64, u32, u64)>>,
    /// Whether the person at the terminal wants the round to be the last one.
    interrupted: Cell<bool>,
}

/// Tortures a cluster. The executor is this thread's.
pub(crate) fn run(options: &Options) -> Outcome {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let local = tokio::task::LocalSet::new();
    local.block_on(&executor.expect("an executor"), async {
        let mut torture = Torture::start(options).await;
        let endpoints = torture.world.endpoints();
        let both = [endpoints.0.clone(), endpoints.1.clone()].concat();
        let crew = Crew {
            shared: options.clients.0,
            chains: options.clients.1,
            large: options.clients.2,
            endpoints: vec![endpoints.0, endpoints.1, both],
            pause: options.client_pause,
            seed: options.seed,
        };
        let clients = Clients::start(&crew, &torture.notes);
        let mut round = 0;
        while torture.outcome.failures.is_empty() && torture.began.elapsed() < torture.options.time
        {
            round += 1;
            torture.round(round).await;
        }
        torture.notes.stop();
        if !clients.join() {
            torture.outcome.failures.push("a client panicked".to_owned());
        }
        torture.end()
    })
}

impl Torture {
    async fn start(options: &Options) -> Torture {
        // Two that run at the same time have their own directories, as they have their own ports.
        let name = format!("torture-{}", options.base_port);
        let world = World::start(&name, options.base_port, options.nodes, SHARDS, options.seed);
        let control = controller(world.cluster.endpoints());
        let begun = Instant::now();
        let known = async || control.newest_routes().await.map_or(0, |routes| routes.nodes.len());
        while known().await < options.nodes as usize {
            assert!(begun.elapsed() < START_TIME_MAX, "the nodes do not register themselves");
            tokio::time::sleep(TICK).await;
        }
        let groups = ["join", "1", "1", "2", "3", "+", "2", "3", "4", "5", "+", "3", "5", "1", "4"];
        world.cluster.run(&groups);
        settle(&control, START_TIME_MAX).await.expect("a new cluster is at rest");
        let mut random = Random::new(options.seed);
        let faults = Faults::new(random.next_u64(), options.haste);
        let pause = 3_000 / u64::from(options.haste);
        let operator = Operator::new(control.clone(), options.nodes, pause, random.next_u64());
        tokio::task::spawn_local(operator.clone().run());
        let samples = Rc::new(Samples::default());
        tokio::task::spawn_local(look(control.clone(), world.cluster.endpoints(), samples.clone()));
        let of_task = samples.clone();
        tokio::task::spawn_local(async move {
            of_task.interrupted.set(tokio::signal::ctrl_c().await.is_ok());
        });
        let mut outcome = Outcome { classes: Class::ALL.len(), ..Outcome::default() };
        if let Some(why) = &world.no_small {
            outcome.absent.insert(Class::Room(OfRoom::Full).name(), why.clone());
        }
        if !faults.can_hold() {
            let why = "strace is missing, or may not trace";
            for of in [OfRoom::Slow, OfRoom::Stalled] {
                outcome.absent.insert(Class::Room(of).name(), why.to_owned());
            }
        }
        let (notes, began) = (Arc::new(Notes::new()), Instant::now());
        Torture {
            options: options.clone(),
            world,
            control,
            faults,
            operator,
            notes,
            samples,
            random,
            began,
            outcome,
        }
    }

    /// One round: faults under load, their end, and what must hold then.
    async fn round(&mut self, round: u64) {
        let before = Survey::take(&self.control).await.ok().map(|survey| survey.routes);
        let (classes, changes) =
            (self.faults.counts.clone(), self.operator.counts.borrow().clone());
        self.samples.leaders.borrow_mut().clear();
        self.notes.begin(round);
        self.operator.work(true);
        let mut failures = self.storm().await;
        self.operator.work(false);
        self.faults.end_all(&mut self.world);
        self.tell();
        let begun = Instant::now();
        let mut judged = (0, 0);
        match self.until_well(NEAR).await {
            Err(why) => failures.push(why),
            Ok(()) => {
                let well = begun.elapsed();
                match self.calm().await {
                    Ok(compared) => judged = (compared, self.notes.history(|h| h.calls().len())),
                    Err(why) => failures.extend(why),
                }
                println!("  well again after {:.1} s", well.as_secs_f64());
            }
        }
        let leaders = self.samples.leaders.borrow().len();
        failures.extend(self.rest().await.err());
        let (history, counts) = self.notes.take();
        let begun = Instant::now();
        failures.extend(judge::judge(&history));
        let took = begun.elapsed();
        failures.extend(self.notes.take_wrong());
        failures.extend(self.world.take_misdeeds());
        failures.append(&mut self.faults.failures);
        let after = self.control.newest_routes().await.ok();
        let moved = before.zip(after).map(|(before, after)| {
            let handoffs = after.handoff_next.0.saturating_sub(before.handoff_next.0);
            let replicas = newest_replica(&after).saturating_sub(newest_replica(&before));
            json!({ "handoffs": handoffs, "replicas_made": replicas })
        });
        let line = json!({
            "round": round,
            "seed": self.options.seed,
            "calls": calls(&counts),
            "faults": difference(&self.faults.counts, &classes),
            "changes": difference(&self.operator.counts.borrow(), &changes),
            "moved": moved,
            "leaders_seen": leaders,
            "judged": { "calls": judged.1, "replica_answers": judged.0,
                "seconds": took.as_secs_f64() },
            "violations": failures.len(),
        });
        println!("{line}");
        if !failures.is_empty() {
            let path = self.world.cluster.directory().join(format!("history-{round}"));
            if std::fs::write(&path, history.to_text()).is_err() {
                println!("the history is not kept");
            }
        }
        self.outcome.acknowledged += counts.acknowledged;
        self.outcome.failures.extend(failures);
    }

    /// Faults come until the time is over, or each class came.
    async fn storm(&mut self) -> Vec<String> {
        let begun = Instant::now();
        let mut due: Vec<Class> = Class::ALL.iter().map(|(class, _)| *class).collect();
        due.retain(|class| !self.outcome.absent.contains_key(class.name()));
        self.random.shuffle(&mut due);
        let (mut next, mut progress) = (begun, begun + PROGRESS);
        loop {
            self.faults.go_on(&mut self.world);
            if let Some(sample) = self.samples.newest.borrow_mut().take() {
                self.faults.patients.look(sample, &self.world);
            }
            self.tell();
            let now = Instant::now();
            if now >= progress {
                progress = now + PROGRESS;
                self.progress();
            }
            if self.samples.interrupted.get() {
                self.options.time = Duration::ZERO;
                return Vec::new();
            }
            if self.options.every_class && due.is_empty() && self.faults.under_way().is_empty() {
                return Vec::new();
            }
            // Something keeps a fault from coming.
            if self.options.every_class && begun.elapsed() > 2 * self.options.patience {
                let due: Vec<&str> = due.iter().map(|class| class.name()).collect();
                return vec![format!("there was no time for {due:?}")];
            }
            if !self.options.every_class && begun.elapsed() > self.options.storm {
                return Vec::new();
            }
            if now >= next && self.faults.under_way().len() < self.options.at_a_time {
                let millis = self.options.pause.as_millis() as u64;
                next = now + Duration::from_millis(self.random.between(millis / 10, millis));
                self.begin(&mut due).await;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Begins some fault; where each class is to come, one that is due, if that can be now.
    async fn begin(&mut self, due: &mut Vec<Class>) {
        if !self.options.every_class {
            let class = self.faults.draw();
            if self.faults.begin(class, &mut self.world).await && self.options.verbose {
                println!("{:8.2} {}", self.began.elapsed().as_secs_f64(), class.name());
            }
            return;
        }
        // One disk at a time can take all this in this order, whole or not.
        let of_disk = [OfDisk::OldCopy, OfDisk::RotLog, OfDisk::RotStore, OfDisk::Wipe];
        let first = of_disk.map(Class::Disk).into_iter().find(|class| due.contains(class));
        let may = |class: &Class| !matches!(class, Class::Disk(_)) || Some(*class) == first;
        for at in 0..due.len() {
            let class = due[at];
            if may(&class) && self.faults.begin(class, &mut self.world).await {
                due.remove(at);
                return;
            }
        }
    }

    /// Waits until every group is whole and every shard served where the plan wants it.
    async fn until_well(&mut self, near: u64) -> Result<(), String> {
        let begun = Instant::now();
        let mut progress = begun + PROGRESS;
        self.operator.rested().await;
        loop {
            let sample = Sample::take(&self.control, &self.world.cluster.endpoints()).await;
            let left = match self.faults.patients.lack(&sample) {
                Some(left) => Some(left),
                None => sample.lack(self.options.nodes, near),
            };
            self.faults.patients.look(sample, &self.world);
            self.world.look(&BTreeSet::new());
            let left = match left {
                Some(left) => left,
                None => match Survey::take(&self.control).await {
                    Ok(survey) => match survey.unrest() {
                        Some(left) => left,
                        None => return Ok(()),
                    },
                    Err(error) => error.to_string(),
                },
            };
            if Instant::now() >= progress {
                progress += PROGRESS;
                println!("{:6.0} s: not well yet: {left}", self.began.elapsed().as_secs_f64());
            }
            if begun.elapsed() >= self.options.patience {
                let patience = self.options.patience.as_secs();
                return Err(format!("not well after {patience} s: {left}"));
            }
            tokio::time::sleep(SAMPLE_PAUSE).await;
        }
    }

    /// Lets clients go on for a while in which no call may fail, and then looks at what all
    /// replicas have. How many of their answers were compared.
    async fn calm(&mut self) -> Result<u64, Vec<String>> {
        let control = &self.control;
        let remembered = match self.options.sabotage {
            true => Some(sabotage::remember(control, &self.notes).await),
            false => None,
        };
        self.notes.calm(true);
        tokio::time::sleep(CALM).await;
        let rested = self.rest().await;
        self.notes.calm(false);
        rested.map_err(|why| vec![why])?;
        if let Some(remembered) = remembered {
            println!("  {}", sabotage::strike(control, &self.notes, remembered).await);
        }
        self.until_well(QUIET_NEAR).await.map_err(|why| vec![why])?;
        let sample = Sample::take(&self.control, &self.world.cluster.endpoints()).await;
        let nodes = self.world.all().into_iter();
        let endpoints = nodes.map(|node| (node, self.world.cluster.endpoint(node))).collect();
        let compared = judge::compare(&self.control, &self.notes, &sample, &endpoints).await?;
        let skip = self.random.below(1_000) as usize;
        let wrong = judge::check_chains(&self.control, &self.notes, skip).await;
        if wrong.is_empty() { Ok(compared) } else { Err(wrong) }
    }

    /// Lets clients begin no more calls, and waits until all have ended.
    async fn rest(&self) -> Result<(), String> {
        self.notes.rest();
        let begun = Instant::now();
        while self.notes.opened() > 0 {
            if begun.elapsed() > REST_TIME_MAX {
                return Err(format!("{} calls do not end", self.notes.opened()));
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// Tells what was done to disks.
    fn tell(&mut self) {
        for line in self.faults.patients.done.drain(..) {
            if self.options.verbose {
                println!("{:8.2} {line}", self.began.elapsed().as_secs_f64());
            }
        }
    }

    fn progress(&self) {
        let counts = self.notes.counts();
        let passed = self.world.passed();
        let now: Vec<&str> = self.faults.under_way().iter().map(|class| class.name()).collect();
        println!(
            "{:6.0} s: {} calls acknowledged, {} unknown, {} refused; {} frames, {} mangled, {} of \
             {} connections broken; now {now:?}",
            self.began.elapsed().as_secs_f64(),
            counts.acknowledged,
            counts.unknown,
            counts.refused,
            passed.frames,
            passed.mangled,
            passed.broken,
            passed.connections,
        );
    }

    fn end(mut self) -> Outcome {
        self.outcome.faults = self.faults.counts.clone();
        let failed = !self.outcome.failures.is_empty();
        let directory = self.world.cluster.directory().to_path_buf();
        self.outcome.kept = failed.then_some(directory);
        self.world.end(failed);
        self.outcome
    }
}

/// Looks at the cluster, for ever.
async fn look(control: Client, endpoints: Vec<String>, samples: Rc<Samples>) {
    loop {
        let sample = Sample::take(&control, &endpoints).await;
        for (node, replica) in sample.replicas().filter(|(_, replica)| replica.leading) {
            samples.leaders.borrow_mut().insert((replica.group.0, replica.round, node));
        }
        *samples.newest.borrow_mut() = Some(sample);
        tokio::time::sleep(SAMPLE_PAUSE).await;
    }
}

/// The highest number of a replica: they are given in order, and never again.
fn newest_replica(routes: &Routes) -> u64 {
    let members = routes.groups.values().flat_map(|info| &info.members);
    members.map(|(replica, ..)| replica.0).max().unwrap_or_default()
}

fn calls(counts: &Counts) -> Value {
    json!({
        "acknowledged": counts.acknowledged,
        "unknown": counts.unknown,
        "refused": counts.refused,
        "longest_seconds": counts.longest.as_secs_f64(),
        "longest_without_a_write_seconds": counts.gap.as_secs_f64(),
    })
}

fn difference(
    after: &BTreeMap<&'static str, u64>,
    before: &BTreeMap<&'static str, u64>,
) -> BTreeMap<&'static str, u64> {
    let since = |(name, count): (&&'static str, &u64)| {
        let new = count - before.get(name).copied().unwrap_or_default();
        (new > 0).then_some((*name, new))
    };
    after.iter().filter_map(since).collect()
}
