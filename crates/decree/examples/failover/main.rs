//! What clients notice when nodes of a real cluster die, stop, stall or are stopped.
//!
//! `cargo run --release -p decree --example failover -- kills [--etcd etcd]` (with `cargo build
//! --release` before it), and further subcommands; `--help` says what each does and needs. Three
//! nodes, on which the shard master and one group have their replicas. Exits with 1 where a figure
//! is not what it must be, or a call failed or was wrong.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use base::GroupId;
use clap::{Args, Parser, Subcommand};
use client::Client;

use support::cluster::Cluster;
use support::replicas::until_whole;
use support::survey::{controller, settle};
use support::writers::{Endpoints, Writers};

mod etcd;
mod follower;
mod kills;
mod pause;
mod stall;
mod stops;
#[path = "../support/mod.rs"]
mod support;

const NODES: u16 = 3;
const SHARDS: u16 = 64;
/// The group with the data.
const GROUP: GroupId = GroupId(1);
const GROUPS: [GroupId; 2] = [GroupId::MASTER, GROUP];
/// A replica that is so many slots behind while others write is with them.
const NEAR: u64 = 500;
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);

/// The command line.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Ports are counted from here
    #[arg(long, default_value_t = 21_000, global = true)]
    base_port: u16,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kill the node that leads the group by SIGKILL, again and again, while eight clients write:
    /// for how long is nobody's write acknowledged?
    Kills(Kills),
    /// Let the leader stand still by SIGSTOP while clients predict replies, count up keys and read
    /// them in all three ways, also at the stopped node itself when it awakes
    Pause(Pause),
    /// Stall the disk of the leader, and let it go on; needs `strace`, and the right to trace, which
    /// root has: it holds the node's threads in their calls that write, read and sync
    Stall(Stall),
    /// Measure puts with all nodes, with one follower stopped, and with one killed
    Follower(Follower),
    /// Stop each node in turn in good order while eight clients write, and start it again
    Stops(Stops),
}

/// The options of `kills`.
#[derive(Args, Debug)]
struct Kills {
    /// How often
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Do the same with three members of this etcd in between
    #[arg(long, value_name = "PATH")]
    etcd: Option<PathBuf>,
}

/// The options of `pause`.
#[derive(Args, Debug)]
struct Pause {
    /// For how long the leader stands still
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How often
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// The options of `stall`.
#[derive(Args, Debug)]
struct Stall {
    /// For how long the disk stalls
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// How often
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// The options of `follower`.
#[derive(Args, Debug)]
struct Follower {
    /// For how long each is measured
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How many clients put, each as soon as it was answered
    #[arg(long, default_value_t = 64)]
    clients: u64,
    /// How often all three are measured in turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// The options of `stops`.
#[derive(Args, Debug)]
struct Stops {
    /// How often each node is stopped
    #[arg(long, default_value_t = 2)]
    rounds: usize,
}

/// A cluster at rest, and who looks after it.
struct Subject {
    cluster: Cluster,
    control: Client,
}

impl Subject {
    /// Starts a cluster of three nodes with one group.
    async fn start(base: u16) -> Subject {
        let mut cluster = Cluster::new("failover", base, NODES, NODES);
        cluster.create(SHARDS, &[]);
        cluster.run(&["join", "1", "1", "2", "3"]);
        let control = controller(cluster.endpoints());
        settle(&control, SETTLE_TIME_MAX).await.expect("a new cluster is at rest");
        let subject = Subject { cluster, control };
        subject.until_whole().await.expect("a new cluster is whole");
        subject
    }

    /// Waits until all replicas are up and close behind the first: how long that took.
    async fn until_whole(&self) -> Result<Duration, String> {
        let wanted = (&GROUPS[..], usize::from(NODES), NEAR);
        let endpoints = self.cluster.endpoints();
        let whole = until_whole(&self.control, &endpoints, wanted, SETTLE_TIME_MAX).await;
        whole.map(|(took, _)| took)
    }

    /// Clients that write.
    fn writers(&self, clients: u64) -> Writers {
        let endpoints = self.cluster.endpoints();
        Writers::start((0..clients).map(|_| Endpoints(endpoints.clone())).collect())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    executor.expect("an executor").block_on(async {
        let mut subject = Subject::start(arguments.base_port).await;
        let failures = match arguments.command {
            Command::Kills(options) => {
                kills::run(&mut subject, &options, arguments.base_port).await
            }
            Command::Pause(options) => pause::run(&mut subject, &options).await,
            Command::Stall(options) => stall::run(&mut subject, &options).await,
            Command::Follower(options) => follower::run(&mut subject, &options).await,
            Command::Stops(options) => stops::run(&mut subject, options.rounds).await,
        };
        for failure in &failures {
            println!("FAILED: {failure}");
        }
        if failures.is_empty() {
            subject.cluster.remove();
            return ExitCode::SUCCESS;
        }
        println!("the data and logs stay in {}", subject.cluster.directory().display());
        ExitCode::from(1)
    })
}

async fn pause(span: Duration) {
    tokio::time::sleep(span).await;
}

/// A span in milliseconds, for a table.
fn ms(span: Duration) -> String {
    format!("{:.0} ms", span.as_secs_f64() * 1_000.0)
}

/// The median and the greatest of some spans.
fn p50_and_max(spans: &[Duration]) -> (Duration, Duration) {
    let mut sorted = spans.to_vec();
    sorted.sort();
    let p50 = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default();
    (p50, sorted.last().copied().unwrap_or_default())
}
