//! Moves 64 shards of a real cluster from one group to another under load, and tells what its
//! clients noticed of it.
//!
//! `cargo run --release -p decree --example handoff -- [--mib 256] [--rate N] [--timeline]` (with
//! `cargo build --release` before it). Three nodes with two groups of 64 shards each. The shards of
//! group 1 are filled; what the cluster can do is measured with clients that wait for their answers;
//! then operations start at half that rate, whether earlier ones were answered or not, over all keys
//! evenly. Some of them go to one key of each shard that moves, in turn, so that the whole load sees
//! every fraction of a millisecond in which those shards do not answer. All latencies count from
//! when an operation was to start. What the copying costs all shards of these three nodes, which share
//! one machine, shows at those that stay. Exits with 1 if an operation failed or a key that moved was
//! unavailable for longer than 200 ms.

use std::cell::RefCell;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base::{GroupId, Random, ShardId};
use bytes::Bytes;
use clap::Parser;
use client::{Client, Options};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use router::ShardMove;

use support::cluster::Cluster;
use support::survey::{controller, settle};

mod support;

const SHARDS: u16 = 128;
const MOVED: u16 = 64;
const VALUE_BYTES: usize = 4 << 10;
/// Keys of each shard that does not move.
const OTHER_KEYS: u64 = 64;
const CAPACITY_CLIENTS: u64 = 64;
const LOADERS: u64 = 64;
/// Connections of the load.
const CLIENTS: usize = 8;
/// So many operations a second go to the probed keys, if that is not more than half of them.
const PROBES_PER_S: u64 = 1_280;
/// Operations without an answer; more are not started, which is told.
const OPEN_MAX: usize = 8_000;
/// The end of a move, by when the owners are recorded, in which the last set's freeze lies.
const LAST_MICROS: u64 = 300_000;
const MUST: Duration = Duration::from_millis(200);
const SETTLE_TIME_MAX: Duration = Duration::from_secs(60);

/// The options.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// How much the 64 shards hold, in values of 4 KiB
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Operations a second in place of half of what was measured
    #[arg(long)]
    rate: Option<u64>,
    /// Seconds of load before and after the move
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Move nothing, and measure as long as a move took
    #[arg(long)]
    still: Option<u64>,
    /// Print what happened in each tenth of a second of the move
    #[arg(long)]
    timeline: bool,
    /// Ports are counted from here
    #[arg(long, default_value_t = 18_000)]
    base_port: u16,
    /// Further options of `decree serve`, in one word: "--log debug"
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    serve: String,
}

/// One operation of the load, in microseconds since the load began.
struct Sample {
    /// When it was to start.
    due: u64,
    latency: u64,
    shard: u16,
    failed: bool,
}

/// What the load left behind.
struct Recording {
    samples: Vec<Sample>,
    /// When operations were to start that were not, because too many had no answer.
    not_started: Vec<u64>,
    first_failure: Option<String>,
}

/// The keys of each shard.
struct Keys {
    tags: Vec<String>,
    moved_keys: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut cluster = Cluster::new("handoff", arguments.base_port, 3, 3);
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let good = executor.expect("an executor").block_on(run(&mut cluster, &arguments));
    if good {
        cluster.remove();
        return ExitCode::SUCCESS;
    }
    println!("the data and logs stay in {}", cluster.directory().display());
    ExitCode::from(1)
}

async fn run(cluster: &mut Cluster, arguments: &Arguments) -> bool {
    cluster.create(SHARDS, &arguments.serve.split_whitespace().collect::<Vec<&str>>());
    cluster.run(&["join", "1", "1", "2", "3", "+", "2", "1", "2", "3"]);
    let keys = Arc::new(Keys::new(arguments.mib));
    let control = controller(cluster.endpoints());
    settle(&control, SETTLE_TIME_MAX).await.expect("a new cluster is at rest");
    let begun = Instant::now();
    fill(cluster, &keys).await;
    println!(
        "filled {} shards with {} MiB, and {} others with {} MiB, in {:.1} s",
        MOVED,
        arguments.mib,
        SHARDS - MOVED,
        (u64::from(SHARDS - MOVED) * OTHER_KEYS * VALUE_BYTES as u64) >> 20,
        begun.elapsed().as_secs_f64()
    );
    pause(Duration::from_secs(3)).await;
    let rate = match arguments.rate {
        Some(rate) => rate,
        None => capacity(cluster, &keys).await / 2,
    };
    println!("load: {rate} operations/s, half of them puts of {VALUE_BYTES} bytes");
    pause(Duration::from_secs(2)).await;

    let load = OpenLoop::start(cluster.endpoints(), keys, rate);
    let span = Duration::from_secs(arguments.seconds);
    pause(span).await;
    let before: f64 = (1..=3).map(|node| cluster.processor_seconds(node)).sum();
    let start = load.micros();
    let (moved, settled) = match arguments.still {
        None => move_all(&control, &load).await,
        Some(seconds) => {
            pause(Duration::from_secs(seconds)).await;
            (load.micros(), load.micros())
        }
    };
    let after: f64 = (1..=3).map(|node| cluster.processor_seconds(node)).sum();
    println!(
        "the move: {:.2} s, and {:.2} s more until the old copies were deleted; the nodes used \
         {:.1} s of processor time",
        seconds(moved - start),
        seconds(settled - moved),
        after - before
    );
    pause(span).await;
    let end = load.micros();
    let recording = load.stop();
    let phases = [
        ("before", 1_000_000, start),
        ("move", start, moved),
        ("deletion", moved, settled),
        ("after", settled, end),
    ];
    report(&recording, &phases, arguments.timeline)
}

/// Moves the shards of group 1; when the last had changed hands, and when nothing dead was left.
async fn move_all(control: &Client, load: &OpenLoop) -> (u64, u64) {
    let shards = (0..MOVED).map(ShardId).collect();
    let to = ShardMove { shards, group: GroupId(2) };
    control.move_shards(vec![to]).await.expect("the plan changes");
    let begun = Instant::now();
    let arrived = async || {
        let routes = control.newest_routes().await.ok()?;
        let owners = (0..MOVED).filter_map(|shard| routes.owner(ShardId(shard)));
        let arrived = owners.filter(|owner| owner.group == GroupId(2)).count();
        (arrived == usize::from(MOVED)).then_some(())
    };
    while arrived().await.is_none() && begun.elapsed() < SETTLE_TIME_MAX {
        pause(Duration::from_millis(20)).await;
    }
    let moved = load.micros();
    match settle(control, SETTLE_TIME_MAX).await {
        Ok(survey) => println!("shards served by each group: {:?}", survey.served()),
        Err(left) => println!("THE MOVE DOES NOT END: {left}"),
    }
    (moved, load.micros())
}

async fn pause(span: Duration) {
    tokio::time::sleep(span).await;
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1_000_000.0
}

impl Keys {
    fn new(mib: u64) -> Keys {
        // A tag for each shard, so that keys can be made for it.
        let mut tags: Vec<Option<String>> = vec![None; usize::from(SHARDS)];
        let mut number = 0;
        while tags.iter().any(Option::is_none) {
            let tag = format!("{{{number}}}");
            let shard = router::shard_of(tag.as_bytes(), SHARDS);
            tags[usize::from(shard.0)].get_or_insert(tag);
            number += 1;
        }
        let tags = tags.into_iter().flatten().collect();
        let moved_keys = (mib << 20) / VALUE_BYTES as u64 / u64::from(MOVED);
        Keys { tags, moved_keys }
    }

    fn count(&self, shard: u16) -> u64 {
        if shard < MOVED { self.moved_keys } else { OTHER_KEYS }
    }

    fn key(&self, shard: u16, number: u64) -> Bytes {
        Bytes::from(format!("{}{number}", self.tags[usize::from(shard)]))
    }

    /// Any key of any shard, and whether it is written.
    fn draw(&self, random: &mut Random) -> (u16, Bytes, bool) {
        let shard = random.below(SHARDS.into()) as u16;
        let key = self.key(shard, random.below(self.count(shard)));
        (shard, key, random.chance(1, 2))
    }
}

fn connect(endpoints: Vec<String>) -> Client {
    let options = Options { timeout: Duration::from_secs(20), ..Options::default() };
    Client::connect(endpoints, options).expect("the endpoints are valid")
}

/// A value that does not compress.
fn value(random: &mut Random) -> Bytes {
    (0..VALUE_BYTES / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect()
}

async fn fill(cluster: &Cluster, keys: &Keys) {
    let all = (0..SHARDS).flat_map(|shard| (0..keys.count(shard)).map(move |key| (shard, key)));
    let next = RefCell::new(all);
    let loaders = (0..LOADERS).map(|number| {
        let client = connect(cluster.endpoints());
        let next = &next;
        async move {
            let mut random = Random::new(number);
            loop {
                let Some((shard, key)) = next.borrow_mut().next() else { return };
                let value = value(&mut random);
                client.put(keys.key(shard, key), value).await.expect("a put while nothing moves");
            }
        }
    });
    futures::future::join_all(loaders).await;
}

/// Operations a second of clients that wait for each answer.
async fn capacity(cluster: &Cluster, keys: &Keys) -> u64 {
    let clients: Vec<Client> = (0..CLIENTS).map(|_| connect(cluster.endpoints())).collect();
    let (warm, end) = (Duration::from_secs(1), Duration::from_secs(6));
    let begun = Instant::now();
    let callers = (0..CAPACITY_CLIENTS).map(|number| {
        let client = &clients[number as usize % CLIENTS];
        async move {
            let (mut random, mut count) = (Random::new(number), 0_u64);
            let value = value(&mut random);
            while begun.elapsed() < end {
                let (_, key, written) = keys.draw(&mut random);
                ask(client, key, written.then(|| value.clone())).await.expect("an answer");
                count += u64::from(begun.elapsed() >= warm);
            }
            count
        }
    });
    let count: u64 = futures::future::join_all(callers).await.into_iter().sum();
    let rate = count * 1_000 / u64::try_from((end - warm).as_millis()).unwrap_or(u64::MAX);
    println!("capacity: {rate} operations/s of {CAPACITY_CLIENTS} clients");
    rate
}

async fn ask(client: &Client, key: Bytes, value: Option<Bytes>) -> Result<(), client::Error> {
    match value {
        Some(value) => client.put(key, value).await.map(|_| ()),
        None => client.get(key).await.map(|_| ()),
    }
}

/// Operations that start at fixed times, in a thread of their own.
struct OpenLoop {
    begun: Instant,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Recording>,
}

impl OpenLoop {
    fn start(endpoints: Vec<String>, keys: Arc<Keys>, rate: u64) -> OpenLoop {
        let (begun, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
            executor.expect("an executor").block_on(drive(begun, &told, endpoints, &keys, rate))
        });
        OpenLoop { begun, stop, thread }
    }

    /// Time since it began, in microseconds.
    fn micros(&self) -> u64 {
        micros_since(self.begun)
    }

    fn stop(self) -> Recording {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load ends")
    }
}

fn micros_since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
}

async fn drive(
    begun: Instant,
    stop: &Arc<AtomicBool>,
    endpoints: Vec<String>,
    keys: &Keys,
    rate: u64,
) -> Recording {
    let clients: Vec<Client> = (0..CLIENTS).map(|_| connect(endpoints.clone())).collect();
    let mut random = Random::new(7);
    let value = value(&mut random);
    let mut recording =
        Recording { samples: Vec::new(), not_started: Vec::new(), first_failure: None };
    let ticks = Arc::new(tokio::sync::Notify::new());
    let ticker = tick(ticks.clone(), stop.clone());
    let mut open = FuturesUnordered::new();
    let probes = PROBES_PER_S.min(rate / 2);
    let (mut number, mut probed) = (0_u64, 0_u64);
    loop {
        let now = micros_since(begun);
        while number * 1_000_000 / rate <= now && !stop.load(Ordering::Relaxed) {
            let due = number * 1_000_000 / rate;
            number += 1;
            let (shard, key, written) = if number * probes / rate > probed {
                probed += 1;
                let shard = (probed % u64::from(MOVED)) as u16;
                (shard, keys.key(shard, 0), probed / u64::from(MOVED) % 2 == 0)
            } else {
                keys.draw(&mut random)
            };
            if open.len() >= OPEN_MAX {
                recording.not_started.push(due);
                continue;
            }
            let client = &clients[number as usize % CLIENTS];
            let value = written.then(|| value.clone());
            open.push(async move {
                let answer = ask(client, key, value).await;
                let latency = micros_since(begun).saturating_sub(due);
                (Sample { due, latency, shard, failed: answer.is_err() }, answer.err())
            });
        }
        if open.is_empty() && stop.load(Ordering::Relaxed) {
            break;
        }
        tokio::select! {
            Some((sample, error)) = open.next() => {
                recording.samples.push(sample);
                if let Some(error) = error {
                    recording.first_failure.get_or_insert(error.to_string());
                }
            }
            () = ticks.notified() => {}
        }
    }
    ticker.join().expect("the ticker ends");
    recording
}

/// Wakes the load five times a millisecond: the executor's own timers are coarser.
fn tick(ticks: Arc<tokio::sync::Notify>, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(200));
            ticks.notify_one();
        }
    })
}

/// Prints the figures; whether they are as they must be.
fn report(recording: &Recording, phases: &[(&str, u64, u64)], timeline: bool) -> bool {
    print_table(recording, phases);
    println!("(gap: the longest time between two answers of one shard; median and longest of all)");
    let (_, start, moved) = phases[1];
    let longest = print_longest(recording, start, moved);
    if timeline {
        print_timeline(recording, start, phases[2].2 + 500_000);
    }
    let failed = recording.samples.iter().filter(|sample| sample.failed).count();
    if let Some(failure) = &recording.first_failure {
        println!("{failed} operations failed; the first: {failure}");
    }
    if !recording.not_started.is_empty() {
        let count = recording.not_started.len();
        println!("{count} operations were not started: {OPEN_MAX} had no answer yet");
    }
    let fast = u128::from(longest) <= MUST.as_micros();
    if !fast {
        println!("MISSED: a key was unavailable for longer than {} ms", MUST.as_millis());
    }
    failed == 0 && recording.not_started.is_empty() && fast
}

/// What each phase was for the shards that move and for the others.
fn print_table(recording: &Recording, phases: &[(&str, u64, u64)]) {
    println!(
        "{:<10}{:<16}{:>9}{:>9}{:>9}{:>9}{:>9}{:>11}{:>11}{:>8}",
        "PHASE",
        "SHARDS",
        "OPS/S",
        "P50 MS",
        "P99 MS",
        "P99.9",
        "MAX MS",
        "GAP P50",
        "GAP MAX",
        "FAILED"
    );
    for (name, from, to) in phases.iter().filter(|(_, from, to)| from < to) {
        for (shards, moved) in [("that move", true), ("that stay", false)] {
            let mut of = Vec::new();
            let mut failed = 0;
            for sample in &recording.samples {
                let within = (*from..*to).contains(&sample.due);
                if within && (sample.shard < MOVED) == moved {
                    failed += u64::from(sample.failed);
                    if !sample.failed {
                        of.push(sample.latency);
                    }
                }
            }
            of.sort_unstable();
            let at = |q: f64| of.get((of.len() as f64 * q) as usize).or(of.last()).copied();
            let millis = |q: f64| at(q).unwrap_or_default() as f64 / 1_000.0;
            let gaps = gaps(recording, moved, *from, *to);
            let gap = |at: usize| gaps.get(at).copied().unwrap_or_default() as f64 / 1_000.0;
            println!(
                "{:<10}{:<16}{:>9.0}{:>9.2}{:>9.2}{:>9.2}{:>9.2}{:>11.1}{:>11.1}{:>8}",
                name,
                shards,
                of.len() as f64 / seconds(to - from),
                millis(0.5),
                millis(0.99),
                millis(0.999),
                millis(1.0),
                gap(gaps.len() / 2),
                gap(gaps.len().saturating_sub(1)),
                failed
            );
        }
    }
}

/// The slowest operations on shards that moved; how long the slowest of all took.
fn print_longest(recording: &Recording, start: u64, moved: u64) -> u64 {
    let of_move = |sample: &&Sample| (start..moved).contains(&sample.due) && sample.shard < MOVED;
    let mut slowest: Vec<&Sample> = recording.samples.iter().filter(of_move).collect();
    slowest.sort_by_key(|sample| std::cmp::Reverse(sample.latency));
    let longest = slowest.first().map_or(0, |sample| sample.latency);
    println!("longest unavailability of a key that moved: {:.1} ms", longest as f64 / 1_000.0);
    for sample in slowest.iter().take(5) {
        println!(
            "  shard {}: asked {:.3} s after the move began, answered {:.1} ms later",
            sample.shard,
            seconds(sample.due - start),
            sample.latency as f64 / 1_000.0
        );
    }
    let last = |moves: bool| {
        let (from, to) = (moved.saturating_sub(LAST_MICROS), moved);
        let of = |sample: &&Sample| {
            (from..to).contains(&(sample.due + sample.latency)) && (sample.shard < MOVED) == moves
        };
        let longest = recording.samples.iter().filter(of).map(|sample| sample.latency).max();
        longest.unwrap_or_default() as f64 / 1_000.0
    };
    println!(
        "answered in the last {} ms, in which the last shards change hands: {:.1} ms at most, and \
         {:.1} ms at the shards that stay",
        LAST_MICROS / 1_000,
        last(true),
        last(false)
    );
    longest
}

/// The longest time between two answers of each shard, sorted.
fn gaps(recording: &Recording, moved: bool, from: u64, to: u64) -> Vec<u64> {
    let mut answers: Vec<Vec<u64>> = vec![vec![from, to]; usize::from(SHARDS)];
    for sample in recording.samples.iter().filter(|sample| !sample.failed) {
        let answered = sample.due + sample.latency;
        if (from..to).contains(&answered) {
            answers[usize::from(sample.shard)].push(answered);
        }
    }
    let of = answers.iter_mut().enumerate().filter(|(shard, _)| (*shard < MOVED.into()) == moved);
    let mut longest: Vec<u64> = of
        .map(|(_, answers)| {
            answers.sort_unstable();
            answers.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
        })
        .collect();
    longest.sort_unstable();
    longest
}

/// What was asked in each tenth of a second, and how long the slowest took.
fn print_timeline(recording: &Recording, start: u64, end: u64) {
    println!("{:>8}{:>12}{:>12}{:>12}{:>12}", "SECOND", "MOVE OPS", "MAX MS", "STAY OPS", "MAX MS");
    let mut from = start.saturating_sub(500_000);
    while from < end {
        let mut of = [(0_u64, 0_u64); 2];
        for sample in &recording.samples {
            if (from..from + 100_000).contains(&sample.due) {
                let (count, longest) = &mut of[usize::from(sample.shard >= MOVED)];
                *count += 1;
                *longest = sample.latency.max(*longest);
            }
        }
        let at = (from as f64 - start as f64) / 1_000_000.0;
        let [(moves, longest), (stays, longest_staying)] = of;
        let (longest, longest_staying) = (longest as f64 / 1e3, longest_staying as f64 / 1e3);
        println!("{at:>8.1}{moves:>12}{longest:>12.1}{stays:>12}{longest_staying:>12.1}");
        from += 100_000;
    }
}
