//! What becomes of data when disks of a real cluster are lost, machines are replaced, and bits rot.
//!
//! `cargo run --release -p decree --example loss -- wipes` (with `cargo build --release` before it),
//! and further subcommands; `--help` says what each does. Exits with 1 if a write that was
//! acknowledged is not there, a call failed or was wrong, or the cluster is not whole again by
//! itself.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use base::GroupId;
use clap::{Args, Parser, Subcommand};
use client::Client;

use contents::Contents;
use support::cluster::Cluster;
use support::replicas::{Replicas, until_whole};
use support::survey::{controller, settle};

mod contents;
mod flips;
mod machines;
mod rot;
#[path = "../support/mod.rs"]
mod support;
mod wipes;

const SHARDS: u16 = 64;
/// Nodes with a replica of the shard master.
const MASTERS: u16 = 3;
/// The group with the data.
const GROUP: GroupId = GroupId(1);
/// A replica that is so many slots behind while others write is with them.
const NEAR: u64 = 500;
const SETTLE_TIME_MAX: Duration = Duration::from_secs(120);
/// Clients that predict every reply.
const PREDICTORS: u64 = 6;

/// The command line.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Ports are counted from here
    #[arg(long, default_value_t = 22_000, global = true)]
    base_port: u16,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kill each of three nodes in turn under load, remove its data, and start it blank
    Wipes(Wipes),
    /// Replace a dead node by another, one that is up by another, and drain one, under load
    Machines(Machines),
    /// Kill nodes under load, flip bits in their logs and stores, and start them again: of one node
    /// of three, of two of five, and of a different part on each of three
    Flips(Flips),
}

/// The options of `wipes`.
#[derive(Args, Debug)]
struct Wipes {
    /// How much the group holds
    #[arg(long, default_value_t = 64)]
    mebibytes: u64,
    /// How often each node is wiped
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

/// The options of `machines`.
#[derive(Args, Debug)]
struct Machines {
    /// How much the group holds
    #[arg(long, default_value_t = 64)]
    mebibytes: u64,
}

/// The options of `flips`.
#[derive(Args, Debug)]
struct Flips {
    /// How many seeds of each kind
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this kind of rot
    #[arg(long)]
    kind: Option<rot::Kind>,
}

/// A cluster, and who looks after it.
struct Subject {
    cluster: Cluster,
    control: Client,
    nodes: u16,
    replicas: usize,
}

impl Subject {
    /// Starts a cluster of so many nodes, with a group on the first of them.
    async fn start(
        name: &str,
        base: u16,
        (nodes, replicas): (u16, u16),
        options: &[&str],
    ) -> Subject {
        let mut cluster = Cluster::new(name, base, nodes, MASTERS);
        cluster.create(SHARDS, options);
        let control = controller(cluster.endpoints());
        let begun = Instant::now();
        let known = async || control.newest_routes().await.map_or(0, |routes| routes.nodes.len());
        while known().await < usize::from(nodes) {
            assert!(begun.elapsed() < SETTLE_TIME_MAX, "the nodes do not register themselves");
            pause(Duration::from_millis(50)).await;
        }
        let numbers: Vec<String> = (1..=replicas).map(|node| node.to_string()).collect();
        let mut join = vec!["join", "1"];
        join.extend(numbers.iter().map(String::as_str));
        cluster.run(&join);
        settle(&control, SETTLE_TIME_MAX).await.expect("a new cluster is at rest");
        let subject = Subject { cluster, control, nodes, replicas: usize::from(replicas) };
        subject.until_whole().await.expect("a new cluster is whole");
        subject
    }

    /// Waits until all replicas are up, sound and close behind the first, and no members change: how
    /// long that took.
    async fn until_whole(&self) -> Result<Duration, String> {
        let (begun, endpoints) = (Instant::now(), self.cluster.endpoints());
        loop {
            let master = (&[GroupId::MASTER][..], usize::from(MASTERS), NEAR);
            until_whole(&self.control, &endpoints, master, SETTLE_TIME_MAX).await?;
            let data = (&[GROUP][..], self.replicas, NEAR);
            until_whole(&self.control, &endpoints, data, SETTLE_TIME_MAX).await?;
            let routes = self.control.newest_routes().await;
            let left = match routes {
                Ok(routes) if routes.changes.is_empty() => return Ok(begun.elapsed()),
                Ok(routes) => format!("members change: {:?}", routes.changes),
                Err(error) => error.to_string(),
            };
            if begun.elapsed() >= SETTLE_TIME_MAX {
                return Err(format!("not whole after {} s: {left}", SETTLE_TIME_MAX.as_secs()));
            }
            pause(Duration::from_millis(50)).await;
        }
    }

    async fn replicas(&self) -> Replicas {
        Replicas::take(&self.control, &self.cluster.endpoints()).await
    }

    /// Reads every key, and says what is not as it must be.
    async fn check(&self, contents: &Contents) -> Vec<String> {
        contents.check(&self.cluster.endpoints()).await
    }

    /// Panics of any node are failures whatever else holds.
    fn panics(&self) -> Vec<String> {
        let lines = (1..=u64::from(self.nodes)).flat_map(|node| {
            let log = self.cluster.log(node);
            let lines = log.lines().filter(|line| line.contains("panicked")).map(str::to_owned);
            lines.map(|line| format!("node {node}: {line}")).collect::<Vec<_>>()
        });
        lines.collect()
    }

    /// Removes everything if nothing failed.
    fn end(self, failures: &[String]) {
        if failures.is_empty() {
            self.cluster.remove();
        } else {
            println!("the data and logs stay in {}", self.cluster.directory().display());
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let base = arguments.base_port;
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let failures = executor.expect("an executor").block_on(async {
        match arguments.command {
            Command::Wipes(options) => wipes::run(base, &options).await,
            Command::Machines(options) => machines::run(base, &options).await,
            Command::Flips(options) => flips::run(base, &options).await,
        }
    });
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    if failures.is_empty() {
        println!("nothing was lost");
        return ExitCode::SUCCESS;
    }
    ExitCode::from(1)
}

async fn pause(span: Duration) {
    tokio::time::sleep(span).await;
}

/// A span in seconds, for a table.
fn seconds(span: Duration) -> String {
    format!("{:.2} s", span.as_secs_f64())
}
