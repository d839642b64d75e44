//! Tortures a cluster of real processes, and judges what its clients saw.
//!
//! `cargo run --release -p decree --example torture -- --minutes 5` (with `cargo build --release`
//! before it). Five nodes, three of them masters, three groups of three replicas; every connection
//! between nodes goes through a proxy of this process. In rounds, faults come, several at a time:
//! nodes are killed, stopped and started, links are cut, slow and bad, disks are lost, damaged,
//! full and slow (`harness/classes.rs` has them all), while an operator changes the plan and clients
//! work. After each round all faults end, the cluster must be well again by itself, and what the
//! clients saw is judged. Exits with 1 if anything is not as it must be, with the seed, and data,
//! logs and history kept.
//!
//! A seed decides which faults come and in which order; what they meet is the machine's affair, so
//! that a run cannot be repeated exactly.
//!
//! Full disks need the right to mount, slow and stalled ones `strace` and the right to trace, which
//! root has; without these the classes are left out, and that is said.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

mod harness;

/// The options.
#[derive(Clone, Debug, Parser)]
#[command(about = "Torture a cluster of real processes, and judge what its clients saw")]
struct Arguments {
    /// No further round begins after so many minutes
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Decides which faults come, and what clients and operator do
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many nodes there are
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(5..=9))]
    nodes: u64,
    /// Seconds of faults in a round
    #[arg(long, default_value_t = 60)]
    storm: u64,
    /// Each round ends when every class of faults came once
    #[arg(long)]
    every_class: bool,
    /// How many faults are under way at a time at most
    #[arg(long, default_value_t = 3)]
    at_a_time: usize,
    /// Clients on keys of all, as many with keys of their own
    #[arg(long, default_value_t = 8)]
    clients: u64,
    /// After all faults of a round the cluster must be well within so many seconds
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// Ports are counted from here, on addresses 127.x.y.z
    #[arg(long, default_value_t = 24_000)]
    base_port: u16,
    /// Take acknowledged writes back after the first round, and execute others once more: a run
    /// that ends with 0 has not noticed
    #[arg(long)]
    sabotage: bool,
    /// Tell each fault when it begins
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = harness::Options {
        seed: arguments.seed,
        nodes: arguments.nodes,
        base_port: arguments.base_port,
        time: Duration::from_secs_f64(arguments.minutes * 60.0),
        storm: Duration::from_secs(arguments.storm),
        every_class: arguments.every_class,
        pause: Duration::from_secs(3),
        at_a_time: arguments.at_a_time,
        haste: 1,
        clients: (arguments.clients, arguments.clients, 2),
        client_pause: Duration::from_millis(8),
        patience: Duration::from_secs(arguments.patience),
        sabotage: arguments.sabotage,
        verbose: arguments.verbose,
    };
    let outcome = harness::run(&options);
    for (class, why) in &outcome.absent {
        println!("left out: {class} ({why})");
    }
    println!("{} of {} classes of faults came:", outcome.faults.len(), outcome.classes);
    for (class, times) in &outcome.faults {
        println!("{times:>7} {class}");
    }
    if outcome.failures.is_empty() {
        println!("{} calls acknowledged, nothing wrong", outcome.acknowledged);
        return ExitCode::SUCCESS;
    }
    for failure in &outcome.failures {
        println!("FAILED (seed {}): {failure}", arguments.seed);
    }
    if let Some(kept) = &outcome.kept {
        println!("data, logs and history stay in {}", kept.display());
    }
    ExitCode::from(1)
}
