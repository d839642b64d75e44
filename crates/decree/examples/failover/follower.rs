//! What the cluster does with one follower stopped, and with one dead.

use std::time::Duration;

use serde_json::Value;

use crate::support::replicas::steady_leader;
use crate::{Follower, GROUP, SETTLE_TIME_MAX, Subject, pause};

/// The part of the undisturbed throughput that must be left.
const PART_MIN: f64 = 0.9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Stopped,
    Killed,
}

/// Measures all three in turn, so many times.
pub(crate) async fn run(subject: &mut Subject, options: &Follower) -> Vec<String> {
    let mut failures = Vec::new();
    let mut rates: [Vec<f64>; 3] = Default::default();
    println!("{:<7}{:>16}{:>16}{:>16}", "ROUND", "ALL", "ONE STOPPED", "ONE KILLED");
    for round in 1..=options.rounds {
        let mut line = format!("{round:<7}");
        for (at, state) in [State::Running, State::Stopped, State::Killed].into_iter().enumerate() {
            match measure(subject, options, state).await {
                Ok(rate) => {
                    rates[at].push(rate);
                    line += &format!("{rate:>14.0}/s");
                }
                Err(why) => failures.push(format!("round {round}, {state:?}: {why}")),
            }
        }
        println!("{line}");
    }
    let [all, stopped, killed] = rates.map(median);
    println!("{:<7}{all:>14.0}/s{stopped:>14.0}/s{killed:>14.0}/s", "median");
    println!("of all: stopped {:.2}, killed {:.2}", stopped / all, killed / all);
    for (name, rate) in [("stopped", stopped), ("killed", killed)] {
        if rate < PART_MIN * all {
            failures.push(format!("with one follower {name}: {:.2} of all", rate / all));
        }
    }
    failures
}

async fn measure(subject: &mut Subject, options: &Follower, state: State) -> Result<f64, String> {
    let endpoints = subject.cluster.endpoints();
    let leader = steady_leader(&subject.control, &endpoints, GROUP, SETTLE_TIME_MAX).await?;
    let follower = leader % 3 + 1;
    match state {
        State::Running => {}
        State::Stopped => subject.cluster.signal(follower, "STOP"),
        State::Killed => subject.cluster.kill(follower),
    }
    // The masters' leader may have been the one, and another must be found.
    pause(Duration::from_secs(1)).await;
    let rate = bench(subject, options);
    match state {
        State::Running => {}
        State::Stopped => subject.cluster.signal(follower, "CONT"),
        State::Killed => subject.cluster.start(follower),
    }
    subject.until_whole().await?;
    rate
}

fn bench(subject: &Subject, options: &Follower) -> Result<f64, String> {
    let (clients, span) = (options.clients.to_string(), format!("{}s", options.seconds));
    let mut command = subject.cluster.command(&["--json", "bench", "--op", "put"]);
    let output = command.args(["--clients", &clients, "--seconds", &span]).output();
    let output = output.map_err(|error| error.to_string())?;
    let shown: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let shown = shown.ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    match (shown["failed"].as_u64(), shown["outcome_unknown"].as_u64(), shown["ops_per_s"].as_f64())
    {
        (Some(0), Some(0), Some(rate)) => Ok(rate),
        _ => Err(format!("the load says {shown}")),
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}
