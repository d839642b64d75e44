//! Groups join and leave and shards move in a real cluster, while clients predict every reply.
//!
//! `cargo run --release -p decree --example predictions -- [--cycles 1]` (with `cargo build
//! --release` before it). Six nodes: the masters and group 1 on the first three, group 2 on the
//! others, group 3 across. A cycle is: group 3 joins, 20 shards move, two shards are swapped between
//! two groups, group 3 leaves; first undisturbed, then with the node that leads a group that gives
//! shards killed by SIGKILL in the middle, then with the one of a group that gets them. Meanwhile 8
//! clients put, append and hash on 100 keys each and know what every reply must be. After each step
//! the program looks whether every shard is served where the plan wants it, no hand-off is open and
//! no dead copy is left; after join and leave, also whether the groups have equally many. Exits with
//! 1 if anything was not so, or if any call failed.

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base::{GroupId, NodeId, Random};
use bytes::Bytes;
use clap::Parser;
use client::Client;
use router::ShardState;

use support::cluster::Cluster;
use support::predicted::Load;
use support::survey::{Survey, controller, settle};

mod support;

const NODES: u16 = 6;
const SHARDS: u16 = 128;
const CLIENTS: u64 = 8;
/// What all shards hold beside the keys of the clients, so that a hand-off takes its time.
const BALLAST_BYTES: u64 = 64 << 20;
const BALLAST_VALUE_BYTES: usize = 8 << 10;
const BALLAST_LOADERS: u64 = 32;
const SETTLE_TIME_MAX: Duration = Duration::from_secs(120);
/// How long a hand-off is waited for that a node is to be killed in.
const BEGIN_TIME_MAX: Duration = Duration::from_secs(20);

/// The options.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// How often everything is done
    #[arg(long, default_value_t = 1)]
    cycles: u64,
    /// Decides when nodes are killed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ports are counted from here
    #[arg(long, default_value_t = 19_000)]
    base_port: u16,
}

/// Whose leader is killed in the middle of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Nobody,
    Source,
    Destination,
}

/// One change of the plan.
struct Change {
    name: &'static str,
    command: Vec<String>,
    /// Whether the plan is then a division of all shards, and not what moves made of it.
    divides: bool,
}

/// What was found over all steps.
#[derive(Default)]
struct Findings {
    failures: Vec<String>,
    kills: u64,
    /// Kills after which shards were still to be moved.
    kills_in_the_middle: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut cluster = Cluster::new("predictions", arguments.base_port, NODES, 3);
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let findings = executor.expect("an executor").block_on(run(&mut cluster, &arguments));
    println!(
        "{} nodes killed, {} of them with shards left to move",
        findings.kills, findings.kills_in_the_middle
    );
    if findings.failures.is_empty() {
        println!("every prediction held");
        cluster.remove();
        return ExitCode::SUCCESS;
    }
    for failure in &findings.failures {
        println!("FAILED: {failure}");
    }
    println!("the data and logs stay in {}", cluster.directory().display());
    ExitCode::from(1)
}

async fn run(cluster: &mut Cluster, arguments: &Arguments) -> Findings {
    cluster.create(SHARDS, &["--wal-segment-bytes", "16MiB"]);
    let control = controller(cluster.endpoints());
    until_registered(&control).await;
    cluster.run(&["join", "1", "1", "2", "3", "+", "2", "4", "5", "6"]);
    settle(&control, SETTLE_TIME_MAX).await.expect("a new cluster is at rest");
    fill(&control).await;
    let load = Load::start("predicted", cluster.endpoints(), CLIENTS);
    let mut random = Random::new(arguments.seed);
    let mut findings = Findings::default();
    println!(
        "{:<7}{:<28}{:<34}{:>9}{:>9}{:>14}",
        "CYCLE", "STEP", "KILLED", "SETTLED", "CALLS/S", "LONGEST CALL"
    );
    'all: for cycle in 1..=arguments.cycles {
        for victim in [Victim::Nobody, Victim::Source, Victim::Destination] {
            for number in 0..4 {
                let survey = Survey::take(&control).await.expect("a cluster at rest answers");
                let change = change(number, &survey, &mut random);
                let mut step = Step { cluster, control: &control, load: &load, cycle };
                let failed = step.run(&change, victim, &mut random, &mut findings).await;
                findings.failures.extend(failed.err());
                if !findings.failures.is_empty() {
                    break 'all;
                }
            }
        }
    }
    let (calls, wrong) = load.stop();
    println!("{calls} calls of {CLIENTS} clients");
    findings.failures.extend(wrong);
    findings
}

async fn until_registered(control: &Client) {
    loop {
        let routes = control.newest_routes().await.expect("routes");
        if routes.nodes.len() == usize::from(NODES) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn fill(control: &Client) {
    let next = RefCell::new(0..BALLAST_BYTES / BALLAST_VALUE_BYTES as u64);
    let loaders = (0..BALLAST_LOADERS).map(async |_| {
        loop {
            let Some(number) = next.borrow_mut().next() else { return };
            let value = Bytes::from(vec![number as u8; BALLAST_VALUE_BYTES]);
            control.put(format!("ballast-{number}"), value).await.expect("a put at rest");
        }
    });
    futures::future::join_all(loaders).await;
}

/// The changes in their order: join, move, swap, leave.
fn change(number: u64, survey: &Survey, random: &mut Random) -> Change {
    let words = |text: String| text.split(' ').map(str::to_owned).collect();
    let mut of = |group: u64| {
        let planned = survey.plan.shards.iter().enumerate();
        let mut shards: Vec<usize> =
            planned.filter(|(_, one)| **one == GroupId(group)).map(|(shard, _)| shard).collect();
        random.shuffle(&mut shards);
        shards
    };
    match number {
        0 => Change { name: "join 3", command: words("join 3 2 4 6".into()), divides: true },
        1 => {
            let shards: Vec<String> = of(1).iter().take(20).map(ToString::to_string).collect();
            let command = words(format!("move {} 2", shards.join(" ")));
            Change { name: "move 20 shards", command, divides: false }
        }
        2 => {
            let (one, two) = (of(2)[0], of(3)[0]);
            let command = words(format!("move {one} 3 + {two} 2"));
            Change { name: "swap two shards", command, divides: false }
        }
        _ => Change { name: "leave 3", command: words("leave 3".into()), divides: true },
    }
}

/// One change of the plan, from its command until all is at rest.
struct Step<'a> {
    cluster: &'a mut Cluster,
    control: &'a Client,
    load: &'a Load,
    cycle: u64,
}

impl Step<'_> {
    async fn run(
        &mut self,
        change: &Change,
        victim: Victim,
        random: &mut Random,
        findings: &mut Findings,
    ) -> Result<(), String> {
        let (begun, calls) = (Instant::now(), self.load.calls());
        self.load.take_longest();
        let arguments: Vec<&str> = change.command.iter().map(String::as_str).collect();
        self.cluster.run(&arguments);
        let mut killed = String::from("-");
        let mut dead = None;
        if victim != Victim::Nobody {
            let (group, node) = self.begun_handoff(victim).await?;
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
            self.cluster.kill(node.0);
            let left = self.left_to_move().await?;
            findings.kills += 1;
            findings.kills_in_the_middle += u64::from(left > 0);
            killed = format!("node {} of group {}, {left} to move", node.0, group.0);
            dead = Some(node);
        }
        let settled = settle(self.control, SETTLE_TIME_MAX).await;
        let what = || format!("{} (cycle {}, killed: {killed})", change.name, self.cycle);
        let survey = settled.map_err(|left| format!("{}: {left}", what()))?;
        let took = begun.elapsed();
        let rate = (self.load.calls() - calls) as f64 / took.as_secs_f64();
        println!(
            "{:<7}{:<28}{:<34}{:>7.2} s{:>9.0}{:>11} ms",
            self.cycle,
            change.name,
            killed,
            took.as_secs_f64(),
            rate,
            self.load.take_longest().as_millis()
        );
        if change.divides && !survey.is_balanced() {
            return Err(format!("{}: not balanced: {:?}", what(), survey.served()));
        }
        if let Some(wrong) = self.load.wrong().first() {
            return Err(format!("{}: {wrong}", what()));
        }
        if let Some(node) = dead {
            self.cluster.start(node.0);
            self.until_caught_up(node).await.map_err(|left| format!("{}: {left}", what()))?;
        }
        Ok(())
    }

    /// Waits until shards are on their way; the group whose leader is to be killed, and that leader.
    async fn begun_handoff(&self, victim: Victim) -> Result<(GroupId, NodeId), String> {
        let begun = Instant::now();
        while begun.elapsed() < BEGIN_TIME_MAX {
            let Ok(survey) = Survey::take(self.control).await else { continue };
            for shard in &survey.shards {
                let (source, destination) = match shard.state {
                    ShardState::Out { dst, .. } | ShardState::Frozen { dst, .. } => {
                        (shard.group, dst)
                    }
                    ShardState::In { src, .. } => (src, shard.group),
                    ShardState::Owned | ShardState::Moved { .. } | ShardState::Refused { .. } => {
                        continue;
                    }
                };
                let group = if victim == Victim::Source { source } else { destination };
                if let Some(leader) = survey.leaders.get(&group) {
                    return Ok((group, *leader));
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Err("no hand-off was seen under way".to_owned())
    }

    async fn left_to_move(&self) -> Result<usize, String> {
        let plan = self.control.query(None).await.map_err(|error| error.to_string())?.value;
        let routes = self.control.newest_routes().await.map_err(|error| error.to_string())?;
        Ok(support::survey::to_move(&plan, &routes))
    }

    /// Waits until a node that was started again has what its groups have.
    async fn until_caught_up(&self, node: NodeId) -> Result<(), String> {
        let (begun, endpoint) = (Instant::now(), self.cluster.endpoint(node.0));
        while begun.elapsed() < SETTLE_TIME_MAX {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let Ok(status) = self.control.status(&endpoint).await else { continue };
            let near = |group: &router::GroupStatus| {
                group.leader.is_some() && group.applied.0 + 1_000 >= group.chosen_upto.0
            };
            if !status.groups.is_empty() && status.groups.iter().all(near) {
                return Ok(());
            }
        }
        Err(format!("node {} does not catch up", node.0))
    }
}
