//! Stops the nodes of the shard master for a minute and shows that nobody who reads or writes
//! notices.
//!
//! `cargo run --release -p decree --example masters -- [--stopped 60]` (with `cargo build --release`
//! before it). Six nodes: three that hold the shard master and nothing else, three with two groups.
//! Eight clients predict every reply, before, while the masters are stopped by SIGSTOP, and after;
//! further clients come anew while they are stopped. Then the masters go on, a third group joins, and
//! all must come to rest. Exits with 1 if a call failed or was wrong, if the throughput while they
//! were stopped was below nine tenths of the lower one of before and after (a machine that others
//! use too may change its pace meanwhile), or if the join does not come to its end.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use client::{Client, Options};

use support::cluster::Cluster;
use support::predicted::Load;
use support::survey::{controller, settle};

mod support;

const CLIENTS: u64 = 8;
const SHARDS: u16 = 128;
/// Between two clients that come anew.
const NEWCOMER_PAUSE: Duration = Duration::from_millis(500);
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);

/// The options.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// Seconds for which the masters are stopped
    #[arg(long, default_value_t = 60)]
    stopped: u64,
    /// Seconds of load before and after
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Ports are counted from here
    #[arg(long, default_value_t = 20_000)]
    base_port: u16,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut cluster = Cluster::new("masters", arguments.base_port, 6, 3);
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let failures = executor.expect("an executor").block_on(run(&mut cluster, &arguments));
    if failures.is_empty() {
        println!("nobody noticed");
        cluster.remove();
        return ExitCode::SUCCESS;
    }
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    println!("the data and logs stay in {}", cluster.directory().display());
    ExitCode::from(1)
}

async fn run(cluster: &mut Cluster, arguments: &Arguments) -> Vec<String> {
    let mut failures = Vec::new();
    cluster.create(SHARDS, &[]);
    let control = controller(cluster.endpoints());
    while control.newest_routes().await.expect("routes").nodes.len() < 6 {
        pause(Duration::from_millis(50)).await;
    }
    cluster.run(&["join", "1", "4", "5", "6", "+", "2", "4", "5", "6"]);
    settle(&control, SETTLE_TIME_MAX).await.expect("a new cluster is at rest");
    // The clients know masters too: who is given such an address must not wait for it.
    let load = Load::start("steady", cluster.endpoints(), CLIENTS);
    let span = Duration::from_secs(arguments.seconds);
    pause(Duration::from_secs(2)).await;

    println!("{:<18}{:>9}{:>10}{:>16}", "MASTERS", "SECONDS", "CALLS/S", "LONGEST CALL");
    let (before, ()) = measure("running", &load, pause(span)).await;
    (1..=3).for_each(|node| cluster.signal(node, "STOP"));
    let stopped = Duration::from_secs(arguments.stopped);
    let (during, failed) = measure("stopped", &load, newcomers(cluster, stopped)).await;
    failures.extend(failed);
    (1..=3).for_each(|node| cluster.signal(node, "CONT"));
    let (after, ()) = measure("running again", &load, pause(span)).await;
    println!("throughput while they were stopped: {:.2} of that before", during / before);
    println!("throughput afterwards: {:.2} of that before", after / before);
    if during < 0.9 * before.min(after) {
        failures.push("calls were slower while the masters were stopped".to_owned());
    }

    let begun = Instant::now();
    cluster.run(&["join", "3", "4", "5", "6"]);
    match settle(&control, SETTLE_TIME_MAX).await {
        Ok(survey) => {
            let (took, served) = (begun.elapsed(), survey.served());
            println!("a join then took {:.2} s; shards served: {served:?}", took.as_secs_f64());
            if !survey.is_balanced() {
                failures.push("the join did not divide the shards evenly".to_owned());
            }
        }
        Err(left) => failures.push(format!("the join: {left}")),
    }
    let (calls, wrong) = load.stop();
    println!("{calls} calls of {CLIENTS} clients, {} wrong or failed", wrong.len());
    failures.extend(wrong);
    failures
}

/// Calls a second while something else goes on.
async fn measure<T>(masters: &str, load: &Load, meanwhile: impl Future<Output = T>) -> (f64, T) {
    load.take_longest();
    let (begun, calls) = (Instant::now(), load.calls());
    let result = meanwhile.await;
    let (seconds, calls) = (begun.elapsed().as_secs_f64(), load.calls() - calls);
    let (rate, longest) = (calls as f64 / seconds, load.take_longest());
    println!("{masters:<18}{seconds:>9.1}{rate:>10.0}{:>13} ms", longest.as_millis());
    (rate, result)
}

/// Clients that come anew, each for one call: in turn with the addresses of the nodes that answer,
/// and with those of all. What failed.
async fn newcomers(cluster: &Cluster, span: Duration) -> Vec<String> {
    let begun = Instant::now();
    let (mut failures, mut longest) = (Vec::new(), [Duration::ZERO; 2]);
    let all = cluster.endpoints();
    for number in 0_usize.. {
        if begun.elapsed() >= span {
            break;
        }
        let endpoints = if number.is_multiple_of(2) { all[3..].to_vec() } else { all.clone() };
        let client = Client::connect(endpoints, Options::default()).expect("valid endpoints");
        let start = Instant::now();
        if let Err(error) = client.put(format!("newcomer-{number}"), "here").await {
            failures.push(format!("newcomer {number}: {error}"));
        }
        longest[number % 2] = longest[number % 2].max(start.elapsed());
        pause(NEWCOMER_PAUSE).await;
    }
    let [of_data, of_all] = longest.map(|longest| longest.as_millis());
    println!("  newcomers, first call: {of_data} ms at most; where they know masters {of_all} ms");
    failures
}

async fn pause(span: Duration) {
    tokio::time::sleep(span).await;
}
