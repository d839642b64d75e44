//! Runs many seeds, or one with everything there is to see of it: see `USAGE`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base::Micros;
use node::Node;
use sim::ownership::{DESTINATION, MASTER, SOURCE, STEPS};
use sim::points::{CrashPoint, PointHits};
use sim::reconfiguration::OperatorCounts;
use sim::swarm::{self, Copies, Crashes, FailedRun, Report, SwarmOptions};

const USAGE: &str = "\
Runs clusters in the simulator, one for each seed, and checks everything.

Usage:
  sweep --minutes N [--seed S] [--jobs N]   seeds from S on (default: by the clock) for N minutes
  sweep --seeds A..B [--jobs N]             the seeds from A up to before B
  sweep --seed S                            one seed, with its options, logs and history

  --jobs N   runs at a time (default: one for each core)

Prints each seed that fails, where the run stands once a minute, and at the end what the runs met
all together: faults by class, crash points, copies and hand-offs by step, elections, and the
slowest convergence after all faults. Exits with 1 if a seed failed: see it again with --seed, and
add it to crates/sim/seeds.txt once it is mended.";

/// What to do.
enum Wish {
    Help,
    Show(u64),
    Sweep { first: u64, last: Last, jobs: usize },
}

/// When a sweep ends.
#[derive(Clone, Copy)]
enum Last {
    Before(u64),
    After(Duration),
}

fn main() -> ExitCode {
    match wish(&std::env::args().skip(1).collect::<Vec<String>>()) {
        Ok(Wish::Help) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Wish::Show(seed)) => show(seed),
        Ok(Wish::Sweep { first, last, jobs }) => sweep(first, last, jobs),
        Err(why) => {
            eprintln!("{why}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn wish(arguments: &[String]) -> Result<Wish, String> {
    let mut values: BTreeMap<&str, &str> = BTreeMap::new();
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-h" | "--help" => return Ok(Wish::Help),
            "--minutes" | "--seed" | "--seeds" | "--jobs" => {
                let value = words.next().ok_or(format!("{word} needs a value"))?;
                if values.insert(word, value).is_some() {
                    return Err(format!("{word} is given twice"));
                }
            }
            other => return Err(format!("{other} is not known")),
        }
    }
    let number = |name: &str| match values.get(name) {
        Some(text) => text.parse().map(Some).map_err(|_| format!("{name} {text} is no number")),
        None => Ok(None),
    };
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = number("--jobs")?.map_or_else(cores, |jobs: u64| jobs.max(1) as usize);
    let seed = number("--seed")?;
    match (number("--minutes")?, values.get("--seeds"), seed) {
        (Some(minutes), None, seed) => {
            let first = seed.unwrap_or_else(by_the_clock);
            let last = Last::After(Duration::from_secs(minutes * 60));
            Ok(Wish::Sweep { first, last, jobs })
        }
        (None, Some(range), None) => {
            let bounds = range.split_once("..").and_then(|(first, end)| {
                Some((first.parse().ok()?, end.parse().ok()?)).filter(|(first, end)| first < end)
            });
            let (first, end) = bounds.ok_or(format!("--seeds {range} is not like 0..1000"))?;
            Ok(Wish::Sweep { first, last: Last::Before(end), jobs })
        }
        (None, None, Some(seed)) => Ok(Wish::Show(seed)),
        (None, None, None) => Err("say which seeds, or for how long".to_owned()),
        (..) => Err("--minutes, --seeds and --seed do not go together like that".to_owned()),
    }
}

/// Other seeds each time; they are printed.
fn by_the_clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs() * 1_000
}

/// Runs one seed and prints its options, the nodes' logs and, if it failed, the history.
fn show(seed: u64) -> ExitCode {
    let mut options = SwarmOptions::draw(seed);
    println!("{options:#?}");
    options.world.log_lines = 100_000;
    match run(seed, options) {
        Ok(report) => {
            println!("{report:#?}");
            ExitCode::SUCCESS
        }
        Err(Some(run)) => {
            println!("{}", run.history.to_text());
            for line in run.log.iter().chain(&run.replicas) {
                println!("{line}");
            }
            println!("seed {seed}: {}", run.failed);
            ExitCode::from(1)
        }
        Err(None) => ExitCode::from(1),
    }
}

/// A panic, which says on its own what is wrong, is a failure without more.
fn run(seed: u64, options: SwarmOptions) -> Result<Report, Option<Box<FailedRun>>> {
    match std::panic::catch_unwind(|| swarm::run_with::<Node>(seed, options)) {
        Ok(result) => result.map_err(Some),
        Err(_) => Err(None),
    }
}

/// Where a run stands is said this often.
const PROGRESS: Duration = Duration::from_secs(60);

fn sweep(first: u64, last: Last, jobs: usize) -> ExitCode {
    let started = Instant::now();
    let next = AtomicU64::new(first);
    let total: Mutex<Total> = Mutex::default();
    let is_over = |seed| match last {
        Last::Before(end) => seed >= end,
        Last::After(span) => started.elapsed() >= span,
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if is_over(seed) {
                        break;
                    }
                    let result = run(seed, SwarmOptions::draw(seed));
                    let mut total = lock(&total);
                    total.add(seed, result);
                    if total.said.is_none_or(|at| at.elapsed() >= PROGRESS) {
                        if total.said.is_some() {
                            let (runs, failed) = (total.runs, total.failed.len());
                            let minutes = started.elapsed().as_secs() / 60;
                            eprintln!("{minutes} min: {runs} runs passed, {failed} failed");
                        }
                        total.said = Some(Instant::now());
                    }
                }
            });
        }
    });
    lock(&total).show(first, started.elapsed())
}

/// A thread that panicked elsewhere than in a run leaves sums that are right all the same.
fn lock(total: &Mutex<Total>) -> MutexGuard<'_, Total> {
    total.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the runs that passed had together, and which did not.
#[derive(Default)]
struct Total {
    said: Option<Instant>,
    failed: Vec<u64>,
    runs: u64,
    time: Micros,
    events: u64,
    answered: u64,
    unknown: u64,
    chosen: u64,
    leaders: usize,
    handoffs: sim::ownership::HandoffCounts,
    operator: OperatorCounts,
    faults: BTreeMap<&'static str, u64>,
    points: PointHits,
    seen: BTreeMap<&'static str, u64>,
    crashes: Crashes,
    copies: Copies,
    /// The longest time to converge, and whose.
    slowest: (Micros, u64),
}

impl Total {
    fn add(&mut self, seed: u64, result: Result<Report, Option<Box<FailedRun>>>) {
        let report = match result {
            Ok(report) => report,
            Err(run) => {
                let what = run.map_or("panicked".to_owned(), |run| run.failed.to_string());
                println!("seed {seed}: {what}");
                return self.failed.push(seed);
            }
        };
        self.runs += 1;
        self.time = self.time + report.time;
        self.events += report.events;
        self.answered += report.answered;
        self.unknown += report.unknown;
        self.chosen += report.chosen;
        self.leaders += report.leaders;
        self.handoffs.add(&report.handoffs);
        self.operator.add(&report.operator);
        sum(&mut self.faults, &report.faults);
        sum(&mut self.points, &report.points);
        sum(&mut self.seen, &report.steps);
        sum(&mut self.crashes, &report.crashes);
        for (step, (seen, ended)) in &report.copies {
            let count = self.copies.entry(*step).or_default();
            *count = (count.0 + seen, count.1 + ended);
        }
        self.slowest = self.slowest.max((report.convergence, seed));
    }

    fn show(&self, first: u64, took: Duration) -> ExitCode {
        let seconds = took.as_secs_f64();
        let hours = self.time.0 as f64 / 3.6e9;
        println!(
            "{} runs from seed {first} on in {seconds:.0} s: {:.2} per second; {hours:.1} simulated \
             hours, {:.0} times as fast as time",
            self.runs,
            self.runs as f64 / seconds,
            hours * 3_600.0 / seconds,
        );
        println!(
            "{} calls answered, {} with an unknown outcome; {} slots chosen, {} leaders elected, {} \
             events",
            self.answered, self.unknown, self.chosen, self.leaders, self.events
        );
        println!("hand-offs: {:?}", self.handoffs);
        println!("operator: {:?}", self.operator);
        let (slowest, seed) = self.slowest;
        println!("slowest convergence: {:.2} s (seed {seed})", slowest.0 as f64 / 1e6);
        println!("faults:");
        self.faults.iter().for_each(|(class, count)| println!("  {class:28} {count:>9}"));
        println!("nodes that ended at a crash point:");
        for point in CrashPoint::ALL {
            let hits = self.points.get(point.name()).copied().unwrap_or_default();
            println!("  {:28} {hits:>9}", point.name());
        }
        println!("copies of states: {:>22} {:>9}", "seen", "met by a crash");
        for (step, (seen, ended)) in &self.copies {
            println!("  {step:28} {seen:>9} {ended:>9}");
        }
        self.show_handoffs();
        if self.failed.is_empty() {
            return ExitCode::SUCCESS;
        }
        let mut failed = self.failed.clone();
        failed.sort_unstable();
        println!("{} failed: {failed:?}; to see one: sweep --seed {}", failed.len(), failed[0]);
        ExitCode::from(1)
    }

    /// How many hand-offs were seen at each step, and how often a leader that takes part in one
    /// ended there, by party.
    fn show_handoffs(&self) {
        println!("hand-offs by step: {:>21} crashes of {SOURCE}, {DESTINATION}, {MASTER}", "seen");
        for step in STEPS {
            let seen = self.seen.get(step).copied().unwrap_or_default();
            let ended = |party| self.crashes.get(&(step, party)).copied().unwrap_or_default();
            let [source, destination, master] = [SOURCE, DESTINATION, MASTER].map(ended);
            println!("  {step:28} {seen:>9} {source:>9} {destination:>9} {master:>9}");
        }
    }
}

fn sum<K: Ord + Copy>(all: &mut BTreeMap<K, u64>, more: &BTreeMap<K, u64>) {
    for (key, count) in more {
        *all.entry(*key).or_default() += count;
    }
}
