//! Takes one guard of the protocol away after the other, and counts how many seeds it takes until
//! the simulator notices: `mutants [--starts N] [--most N] [--jobs N] [NAME...]`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sim::mutants::{self, AREAS, Hunt};

fn main() -> ExitCode {
    let Some(wanted) = Wanted::parse(std::env::args().skip(1)) else {
        eprintln!("usage: mutants [--starts N] [--most N] [--jobs N] [NAME...]");
        return ExitCode::from(2);
    };
    // What a planted fault breaks is said below.
    std::panic::set_hook(Box::new(|_| {}));
    let all = AREAS.iter().flat_map(|(_, hunts)| hunts.iter());
    let hunts: Vec<&Hunt> = all.filter(|hunt| wanted.has(hunt)).collect();
    println!(
        "| mutant | guard | runs | seeds, median | most | killed by |\n|---|---|---|---|---|---|"
    );
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..wanted.jobs {
            scope.spawn(|| {
                while let Some(hunt) = hunts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (line, survived) = chase(hunt, &wanted);
                    let Ok(mut survivors) = survivors.lock() else { break };
                    *survivors += usize::from(survived);
                    println!("{line}");
                }
            });
        }
    });
    ExitCode::from(u8::from(survivors.into_inner().is_ok_and(|survivors| survivors > 0)))
}

/// What is asked for.
struct Wanted {
    names: Vec<String>,
    starts: u64,
    most: u64,
    jobs: usize,
}

impl Wanted {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Wanted> {
        let mut wanted = Wanted { names: Vec::new(), starts: 5, most: 200, jobs: 2 };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--starts" => wanted.starts = words.next()?.parse().ok()?,
                "--most" => wanted.most = words.next()?.parse().ok()?,
                "--jobs" => wanted.jobs = words.next()?.parse().ok()?,
                _ if word.starts_with('-') => return None,
                _ => wanted.names.push(word),
            }
        }
        Some(wanted)
    }

    fn has(&self, hunt: &Hunt) -> bool {
        self.names.is_empty() || self.names.contains(&format!("{:?}", hunt.mutant))
    }
}

/// Looks for a seed that kills the mutant, from several starts.
fn chase(hunt: &Hunt, wanted: &Wanted) -> (String, bool) {
    let mut needed: Vec<u64> = Vec::new();
    let mut checks: Vec<(String, u64)> = Vec::new();
    let mut survived = false;
    for start in 0..wanted.starts {
        let first = 1_000_000 * (start + 1);
        let mut killed = false;
        for (count, seed) in (first..first + wanted.most).enumerate() {
            let Err(failure) = mutants::run(Some(hunt.mutant), hunt.terrain, seed) else {
                continue;
            };
            // A seed that fails by itself shows nothing.
            if let Err(itself) = mutants::run(None, hunt.terrain, seed) {
                println!("seed {seed} of {:?} fails without a mutant: {itself}", hunt.terrain);
                continue;
            }
            let check = format!("{} (seed {seed})", mutants::check_of(&failure));
            checks.push((check, seed));
            needed.push(count as u64 + 1);
            killed = true;
            break;
        }
        survived |= !killed;
    }
    needed.sort_unstable();
    let starts = format!("{} of {}", needed.len(), wanted.starts);
    let (median, most) = match (needed.get(needed.len() / 2), needed.last()) {
        (Some(median), Some(most)) => (median.to_string(), most.to_string()),
        (_, _) => ("-".to_owned(), format!("> {}", wanted.most)),
    };
    let by: Vec<String> = checks.into_iter().map(|(check, _)| check).collect();
    let line = format!(
        "| `{:?}` | {} | {:?}, {starts} | {median} | {most} | {} |",
        hunt.mutant,
        hunt.section,
        hunt.terrain,
        by.join(", ")
    );
    (line, survived)
}
