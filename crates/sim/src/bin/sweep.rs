//! Runs many seeds: `sweep --seeds A..B [--jobs N]`, or one with everything there is to see of it:
//! `sweep --seed N`. Exits with 1 if a seed failed.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use node::Node;
use sim::ownership::{DESTINATION, MASTER, SOURCE, STEPS};
use sim::reconfiguration::OperatorCounts;
use sim::swarm::{self, Copies, Crashes, FailedRun, Report, SwarmOptions};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--seed", seed] => match seed.parse() {
            Ok(seed) => show(seed),
            Err(_) => usage(),
        },
        ["--seeds", seeds] => match range(seeds) {
            Some(seeds) => sweep(seeds, 2),
            None => usage(),
        },
        ["--seeds", seeds, "--jobs", jobs] => match (range(seeds), jobs.parse()) {
            (Some(seeds), Ok(jobs)) => sweep(seeds, jobs),
            _ => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: sweep --seeds A..B [--jobs N] | sweep --seed N");
    ExitCode::from(2)
}

fn range(text: &str) -> Option<Range<u64>> {
    let (first, end) = text.split_once("..")?;
    Some(first.parse().ok()?..end.parse().ok()?)
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

fn sweep(seeds: Range<u64>, jobs: usize) -> ExitCode {
    let started = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let total: Mutex<(Total, Steps, Vec<u64>)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let result = run(seed, SwarmOptions::draw(seed));
                    let Ok(mut total) = total.lock() else { break };
                    match result {
                        Ok(report) => {
                            total.0.add(&report);
                            total.1.add(&report);
                        }
                        Err(run) => {
                            let what =
                                run.map_or("panicked".to_owned(), |run| run.failed.to_string());
                            println!("seed {seed}: {what}");
                            total.2.push(seed);
                        }
                    }
                }
            });
        }
    });
    let Ok((total, steps, mut failed)) = total.into_inner() else { return ExitCode::from(1) };
    let seconds = started.elapsed().as_secs_f64();
    println!("{total:?} in {seconds:.1} s");
    steps.show();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    failed.sort_unstable();
    println!("failed: {failed:?}; to see one: sweep --seed {}", failed[0]);
    ExitCode::from(1)
}

/// What the runs that passed had together.
#[derive(Debug, Default)]
struct Total {
    runs: u64,
    virtual_seconds: u64,
    events: u64,
    answered: u64,
    unknown: u64,
    chosen: u64,
    leaders: usize,
    handoffs: u64,
    done: u64,
    aborted: u64,
    unfrozen: u64,
    refused: u64,
    cancelled: u64,
    operator: OperatorCounts,
}

/// What they had together at each step of hand-offs.
#[derive(Default)]
struct Steps {
    faults: BTreeMap<&'static str, u64>,
    seen: BTreeMap<&'static str, u64>,
    crashes: Crashes,
    copies: Copies,
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.virtual_seconds += report.time.0 / 1_000_000;
        self.events += report.events;
        self.answered += report.answered;
        self.unknown += report.unknown;
        self.chosen += report.chosen;
        self.leaders += report.leaders;
        self.handoffs += report.handoffs.planned;
        self.done += report.handoffs.done;
        self.aborted += report.handoffs.aborted;
        self.unfrozen += report.handoffs.unfrozen;
        self.refused += report.handoffs.refused;
        self.cancelled += report.handoffs.cancelled;
        self.operator.add(&report.operator);
    }
}

impl Steps {
    fn add(&mut self, report: &Report) {
        for (class, count) in &report.faults {
            *self.faults.entry(*class).or_default() += count;
        }
        for (step, count) in &report.steps {
            *self.seen.entry(*step).or_default() += count;
        }
        for (what, count) in &report.crashes {
            *self.crashes.entry(*what).or_default() += count;
        }
        for (step, (seen, ended)) in &report.copies {
            let count = self.copies.entry(*step).or_default();
            *count = (count.0 + seen, count.1 + ended);
        }
    }

    /// How many hand-offs were seen at each step, and how often a leader that takes part in one
    /// ended there, by party.
    fn show(&self) {
        println!("faults: {:?}", self.faults);
        println!("copies of states, by step: (seen, met by a crash): {:?}", self.copies);
        let [source, destination, master] = [SOURCE, DESTINATION, MASTER];
        println!("step         seen; ended: {source:>11} {destination:>11} {master:>11}");
        for step in STEPS {
            let seen = self.seen.get(step).copied().unwrap_or_default();
            let ended = |party| self.crashes.get(&(step, party)).copied().unwrap_or_default();
            println!(
                "{step:8} {seen:>8}         {:>11} {:>11} {:>11}",
                ended(SOURCE),
                ended(DESTINATION),
                ended(MASTER)
            );
        }
    }
}
