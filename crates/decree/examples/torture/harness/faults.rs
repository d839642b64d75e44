//! Faults: which there are, and how each begins, goes on and ends.
//!
//! A fault is what happens at once and a list of steps, each at its time; the last ends it. Several
//! are under way at a time. A node to whose process or disk one of them does something is left
//! alone by the others, links are everybody's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use base::Random;

use super::classes::{Class, OfProcess, OfRoom};
use super::link_faults::{Plan, Turn};
use super::patients::Patients;
use super::support::held::Held;
use super::world::World;

/// One of the things that a fault consists of.
#[derive(Clone, Debug)]
enum Step {
    Kill(u64),
    Start(u64),
    Signal(u64, &'static str),
    Link(Turn),
    LetGo,
    Free(u64),
}

/// Longer than any fault.
const STALL: Duration = Duration::from_secs(600);

/// A fault under way.
struct Active {
    class: Class,
    number: u64,
    /// Whose process or disk it is about.
    nodes: BTreeSet<u64>,
    steps: VecDeque<(Instant, Step)>,
    held: Option<Held>,
    /// Whose disk is full.
    full: Option<u64>,
}

/// The faults under way and their source.
pub(crate) struct Faults {
    active: Vec<Active>,
    random: Random,
    count: u64,
    /// Whether this machine can hold the threads of a process.
    can_hold: bool,
    /// Spans are divided by this.
    haste: u32,
    /// How often each class has happened.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// What must not have happened.
    pub(crate) failures: Vec<String>,
    pub(crate) patients: Patients,
}

impl Faults {
    pub(crate) fn new(seed: u64, haste: u32) -> Faults {
        let mut random = Random::new(seed);
        Faults {
            active: Vec::new(),
            patients: Patients::new(random.fork()),
            random,
            count: 0,
            can_hold: Held::is_possible(),
            haste,
            counts: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    /// Whether this machine can hold the threads of a process.
    pub(crate) fn can_hold(&self) -> bool {
        self.can_hold
    }

    /// The classes under way.
    pub(crate) fn under_way(&self) -> Vec<Class> {
        self.active.iter().map(|active| active.class).collect()
    }

    /// A random class, as often as it is meant to be; a disk that rots is lost in the end.
    pub(crate) fn draw(&mut self) -> Class {
        let all: u64 = Class::ALL.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.below(all);
        for (class, weight) in Class::ALL {
            if at < weight {
                return match class {
                    Class::Disk(of) => Class::Disk(self.patients.due(of)),
                    Class::Process(_) | Class::Link(_) | Class::Room(_) => class,
                };
            }
            at -= weight;
        }
        unreachable!("the weights were summed up")
    }

    /// A span up to so many milliseconds, but at least a tenth of that.
    fn span(&mut self, millis: u64) -> Duration {
        Duration::from_millis(self.random.between(millis / 10, millis)) / self.haste
    }

    /// Nodes that nothing is done to, and which are up, in random order.
    fn free(&mut self, world: &World) -> Vec<u64> {
        let taken: BTreeSet<u64> =
            self.active.iter().flat_map(|active| active.nodes.iter().copied()).collect();
        let nodes = world.all().into_iter();
        let mut free: Vec<u64> =
            nodes.filter(|node| !taken.contains(node) && world.is_up(*node)).collect();
        self.random.shuffle(&mut free);
        free
    }

    /// Begins a fault of a class, if that can be now; whether it did.
    pub(crate) async fn begin(&mut self, class: Class, world: &mut World) -> bool {
        let begun = match class {
            Class::Process(OfProcess::Stop) => self.stop(world).await,
            Class::Process(of) => self.hurt_process(of, world),
            Class::Link(of) => {
                let (nodes, haste) = (world.all(), self.haste);
                let turns = Plan { nodes: &nodes, random: &mut self.random, haste }.turns(of);
                let steps = turns.into_iter().map(|(after, turn)| (after, Step::Link(turn)));
                Some(self.active(class, &[], steps.collect()))
            }
            Class::Disk(of) => {
                let free = self.free(world);
                self.patients.hurt(of, &free, world).map(|node| {
                    let steps = vec![(self.span(2_000), Step::Start(node))];
                    self.active(class, &[node], steps)
                })
            }
            Class::Room(of) => self.take_room(of, world),
        };
        let Some(active) = begun else { return false };
        *self.counts.entry(class.name()).or_default() += 1;
        self.active.push(active);
        true
    }

    fn active(&mut self, class: Class, nodes: &[u64], steps: Vec<(Duration, Step)>) -> Active {
        self.count += 1;
        let now = Instant::now();
        let steps = steps.into_iter().map(|(after, step)| (now + after, step)).collect();
        let nodes = nodes.iter().copied().collect();
        Active { class, number: self.count, nodes, steps, held: None, full: None }
    }

    async fn stop(&mut self, world: &mut World) -> Option<Active> {
        let node = *self.free(world).first()?;
        if let Err(why) = world.stop_node(node).await {
            self.failures.push(why);
        }
        let steps = vec![(self.span(3_000), Step::Start(node))];
        Some(self.active(Class::Process(OfProcess::Stop), &[node], steps))
    }

    fn hurt_process(&mut self, of: OfProcess, world: &mut World) -> Option<Active> {
        let mut nodes = self.free(world);
        match of {
            OfProcess::KillOne | OfProcess::Restarts | OfProcess::Stop => nodes.truncate(1),
            OfProcess::KillSome | OfProcess::Pause => {
                nodes.truncate(self.random.between(1, 3) as usize);
            }
            OfProcess::KillAll => {
                self.end_holds(world);
                nodes = world.all().into_iter().filter(|node| world.is_up(*node)).collect();
            }
        }
        let mut steps = Vec::new();
        for node in &nodes {
            match of {
                OfProcess::Pause => {
                    world.cluster.signal(*node, "STOP");
                    steps.push((self.span(10_000), Step::Signal(*node, "CONT")));
                }
                OfProcess::Restarts => {
                    let mut at = Duration::ZERO;
                    for _ in 0..self.random.between(3, 6) {
                        steps.push((at, Step::Kill(*node)));
                        at += self.span(400);
                        steps.push((at, Step::Start(*node)));
                        at += self.span(2_000);
                    }
                }
                OfProcess::KillAll => {
                    world.cluster.kill(*node);
                    steps.push((self.span(1_500), Step::Start(*node)));
                }
                OfProcess::KillOne | OfProcess::KillSome | OfProcess::Stop => {
                    world.cluster.kill(*node);
                    steps.push((self.span(8_000), Step::Start(*node)));
                }
            }
        }
        steps.sort_by_key(|(after, _)| *after);
        (!nodes.is_empty()).then(|| self.active(Class::Process(of), &nodes, steps))
    }

    /// Lets go on whoever is held in some way: all are to be killed.
    fn end_holds(&mut self, world: &mut World) {
        for mut active in std::mem::take(&mut self.active) {
            if active.nodes.is_empty() {
                self.active.push(active);
            } else {
                self.end(&mut active, world);
            }
        }
    }

    fn take_room(&mut self, of: OfRoom, world: &World) -> Option<Active> {
        let free = self.free(world);
        let span = self.span(8_000);
        let delay = match of {
            OfRoom::Full => {
                let node = *free.iter().find(|node| world.small(**node).is_some())?;
                world.small(node)?.fill();
                let mut active =
                    self.active(Class::Room(of), &[node], vec![(span, Step::Free(node))]);
                active.full = Some(node);
                return Some(active);
            }
            OfRoom::Slow => Duration::from_millis(self.random.between(2, 60)),
            OfRoom::Stalled => STALL,
        };
        let node = *free.first()?;
        let held = match self.can_hold {
            true => Held::hold(world.cluster.process(node), delay).ok()?,
            false => return None,
        };
        let mut active = self.active(Class::Room(of), &[node], vec![(span, Step::LetGo)]);
        active.held = Some(held);
        Some(active)
    }

    /// Takes the steps whose time has come.
    pub(crate) fn go_on(&mut self, world: &mut World) {
        let now = Instant::now();
        for mut active in std::mem::take(&mut self.active) {
            while active.steps.front().is_some_and(|(at, _)| *at <= now) {
                if let Some((_, step)) = active.steps.pop_front() {
                    self.take(&mut active, step, world);
                }
            }
            if !active.steps.is_empty() {
                self.active.push(active);
            }
        }
        let full: BTreeSet<u64> = self.active.iter().filter_map(|active| active.full).collect();
        world.look(&full);
    }

    fn take(&mut self, active: &mut Active, step: Step, world: &mut World) {
        match step {
            Step::Kill(node) => world.cluster.kill(node),
            Step::Start(node) => world.start_node(node),
            Step::Signal(node, name) if world.is_up(node) => world.cluster.signal(node, name),
            Step::Signal(..) => {}
            Step::Link(Turn::Rule(rules)) => world.rule(active.number, rules),
            Step::Link(Turn::Reset(pairs)) => pairs.iter().for_each(|pair| world.reset(*pair)),
            Step::LetGo => {
                if let Some(held) = active.held.take()
                    && let Err(why) = held.let_go()
                {
                    self.failures.push(why);
                }
            }
            Step::Free(node) => {
                if let Some(disk) = world.small(node) {
                    disk.free();
                }
                active.full = None;
                // It may have ended meanwhile, as one does that is started or stopped on a full
                // disk.
                world.look(&BTreeSet::from([node]));
                world.start_node(node);
            }
        }
    }

    /// Ends a fault before its time: what it holds goes on, and what it killed is started.
    fn end(&mut self, active: &mut Active, world: &mut World) {
        while let Some((_, step)) = active.steps.pop_front() {
            match step {
                Step::Kill(_) => {}
                Step::Link(_) => world.rule(active.number, Vec::new()),
                Step::Start(_) | Step::Signal(..) | Step::LetGo | Step::Free(_) => {
                    self.take(active, step, world);
                }
            }
        }
    }

    /// Ends all faults at once, and starts all nodes.
    pub(crate) fn end_all(&mut self, world: &mut World) {
        for mut active in std::mem::take(&mut self.active) {
            self.end(&mut active, world);
        }
        world.look(&BTreeSet::new());
        world.all().into_iter().for_each(|node| world.start_node(node));
    }
}
