//! `decree bench`: a closed loop of clients, each of which sends its next operation when the last
//! was answered, or an open loop, in which operations start at fixed times.
//!
//! All clients run in one task of one thread, so that the measuring costs little of the machine
//! that is measured.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use base::Random;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde_json::json;

use crate::arguments::parse_duration;
use crate::ask::{Asker, failure_of};
use crate::failure::Failure;
use crate::output::{print_json, print_text};

mod open_loop;

/// The options of `decree bench`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArguments {
    /// What each client does; mix reads as often as it writes
    #[arg(long, value_enum, default_value_t = Operation::Put)]
    op: Operation,
    /// How many clients ask at a time, each as soon as it was answered
    #[arg(
        long,
        default_value_t = 64,
        conflicts_with = "rate",
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    clients: u32,
    /// Start N operations a second in all, evenly, whether earlier ones were answered or not; the
    /// latency of each counts from when it was to start
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// With --rate: while so many have no answer, those whose time comes are not sent, and counted
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4_096,
        requires = "rate",
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    outstanding: u32,
    /// Bytes of each value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = parse_value_size)]
    value_size: usize,
    /// How many keys the operations are spread over, evenly and at random
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    seconds: Duration,
    /// Measure so many operations in place of a time
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    ops: Option<u64>,
    /// How long to run before measuring
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_warmup)]
    warmup: Duration,
    /// One gRPC call for each operation in place of one stream for all
    #[arg(long)]
    unary: bool,
    /// Print one line of comma-separated figures under a header
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Draw keys and operations from this seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Operation {
    Put,
    Get,
    Mix,
}

/// Where operations are sent: over the client's streams, or one call each.
enum Door {
    Streams(client::Client),
    Unary(Vec<client::Unary>),
}

/// How one operation ended.
enum Outcome {
    Done,
    Unknown,
    Failed(String),
}

/// What all clients count together.
struct Tally {
    latency_us: Histogram<u64>,
    failed: u64,
    unknown: u64,
    /// Operations of the open loop whose time came while too many others had no answer.
    not_sent: u64,
    first_failure: Option<String>,
}

/// Runs the benchmark and prints its figures.
pub(crate) async fn run(asker: &Asker, arguments: BenchArguments) -> Result<(), Failure> {
    let door = connect(asker, &arguments).await?;
    let value = Bytes::from(vec![b'v'; arguments.value_size]);
    if arguments.op != Operation::Put {
        load(&asker.client, &arguments, &value).await?;
    }
    let tally = RefCell::new(Tally::new());
    let begin = Instant::now() + arguments.warmup;
    let plan = Plan {
        door: &door,
        arguments: &arguments,
        value,
        begin,
        end: begin + arguments.ops.map_or(arguments.seconds, |_| ENDLESS),
        tally: &tally,
        started: RefCell::new(0),
    };
    let elapsed = match arguments.rate {
        Some(rate) => plan.open_loop(rate).await,
        None => {
            let clients = (0..arguments.clients).map(|number| plan.client(number));
            futures::future::join_all(clients).await;
            begin.elapsed()
        }
    };
    drop(plan);
    let tally = tally.into_inner();
    tally.print(asker, &arguments, elapsed)
}

/// One run, shared by its clients.
struct Plan<'a> {
    door: &'a Door,
    arguments: &'a BenchArguments,
    value: Bytes,
    begin: Instant,
    end: Instant,
    tally: &'a RefCell<Tally>,
    /// Measured operations that were begun.
    started: RefCell<u64>,
}

impl Plan<'_> {
    async fn client(&self, number: u32) {
        let seed = self.arguments.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number));
        let mut random = Random::new(seed);
        loop {
            let sent = Instant::now();
            if sent >= self.end {
                return;
            }
            let measured = sent >= self.begin;
            if measured && !self.may_start() {
                return;
            }
            let (key, value) = self.draw(&mut random);
            let outcome = self.door.ask(number, key, value).await;
            if measured {
                self.tally.borrow_mut().count(outcome, sent.elapsed());
            }
        }
    }

    /// Counts a measured operation; false where there shall be no more.
    fn may_start(&self) -> bool {
        let mut started = self.started.borrow_mut();
        if self.arguments.ops == Some(*started) {
            return false;
        }
        *started += 1;
        true
    }

    /// The key of the next operation, and the value where it is a write.
    fn draw(&self, random: &mut Random) -> (Bytes, Option<Bytes>) {
        let key = key(random.below(self.arguments.keys));
        let write = match self.arguments.op {
            Operation::Put => true,
            Operation::Get => false,
            Operation::Mix => random.below(2) == 0,
        };
        (key, write.then(|| self.value.clone()))
    }
}

impl Door {
    async fn ask(&self, number: u32, key: Bytes, value: Option<Bytes>) -> Outcome {
        match (self, value) {
            (Door::Streams(client), Some(value)) => Outcome::of(client.put(key, value).await),
            (Door::Streams(client), None) => Outcome::of(client.get(key).await),
            (Door::Unary(clients), value) => {
                let client = &clients[number as usize % clients.len()];
                match value {
                    Some(value) => Outcome::of(client.put(key, value).await),
                    None => Outcome::of(client.get(key).await),
                }
            }
        }
    }
}

impl Outcome {
    fn of<T>(asked: Result<T, client::Error>) -> Outcome {
        match asked {
            Ok(_) => Outcome::Done,
            Err(client::Error::OutcomeUnknown(_)) => Outcome::Unknown,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }
}

impl Tally {
    fn new() -> Tally {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        Tally {
            latency_us: latency_us.expect("the bounds are constant and valid"),
            failed: 0,
            unknown: 0,
            not_sent: 0,
            first_failure: None,
        }
    }

    fn count(&mut self, outcome: Outcome, latency: Duration) {
        match outcome {
            Outcome::Done => {
                let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
                self.latency_us.saturating_record(us);
            }
            Outcome::Unknown => self.unknown += 1,
            Outcome::Failed(why) => {
                self.failed += 1;
                self.first_failure.get_or_insert(why);
            }
        }
    }

    fn print(
        self,
        asker: &Asker,
        arguments: &BenchArguments,
        elapsed: Duration,
    ) -> Result<(), Failure> {
        let ops = self.latency_us.len();
        let seconds = elapsed.as_secs_f64();
        let rate = ops as f64 / seconds;
        let quantile = |q: f64| self.latency_us.value_at_quantile(q);
        let [p50, p99, p999] = [quantile(0.5), quantile(0.99), quantile(0.999)];
        let op = match arguments.op {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::Mix => "mix",
        };
        let door = if arguments.unary { "unary" } else { "stream" };
        let BenchArguments { value_size, keys, rate: offered, .. } = arguments;
        // What keeps an open loop from starting more has no number of clients.
        let clients = offered.map_or(arguments.clients, |_| arguments.outstanding);
        let not_sent = self.not_sent;
        let max = self.latency_us.max();
        if asker.json {
            print_json(&json!({
                "op": op, "door": door, "clients": clients, "value_bytes": value_size,
                "keys": keys, "seconds": seconds, "ops": ops, "failed": self.failed,
                "outcome_unknown": self.unknown, "ops_per_s": rate, "p50_us": p50, "p99_us": p99,
                "p999_us": p999, "max_us": max, "rate": offered, "not_sent": not_sent
            }))?;
        } else if arguments.csv {
            print_text(&format!(
                "{CSV_HEADER}\n{op},{door},{clients},{value_size},{keys},{seconds:.3},{ops},{},{},\
                 {rate:.1},{p50},{p99},{p999},{max},{},{not_sent}",
                self.failed,
                self.unknown,
                offered.map(|offered| offered.to_string()).unwrap_or_default()
            ))?;
        } else {
            let load = match offered {
                Some(offered) => format!("{offered} operations/s"),
                None => format!("{clients} clients"),
            };
            print_text(&format!(
                "{op}: {load} by {door}, values of {value_size} bytes over {keys} keys\n\
                 {ops} operations in {seconds:.2} s: {rate:.0}/s\n\
                 latency p50 {} ms, p99 {} ms, p99.9 {} ms, longest {} ms\n\
                 {} failed, {} with unknown outcome",
                millis(p50),
                millis(p99),
                millis(p999),
                millis(max),
                self.failed,
                self.unknown
            ))?;
            if not_sent > 0 {
                print_text(&format!(
                    "{not_sent} were not sent in their time, because {clients} others had no answer \
                     yet:\nthis is more than the cluster does, and they are in no latency"
                ))?;
            }
        }
        match self.first_failure {
            Some(why) => Err(Failure::error(
                "bench",
                format!("{} operations failed; the first: {why}", self.failed),
            )),
            None => Ok(()),
        }
    }
}

async fn connect(asker: &Asker, arguments: &BenchArguments) -> Result<Door, Failure> {
    // Whether anybody is there is told before the clock starts.
    asker.client.query(None).await.map_err(failure_of)?;
    if !arguments.unary {
        return Ok(Door::Streams(asker.client.clone()));
    }
    let options = asker.options();
    let mut clients = Vec::with_capacity(asker.endpoints.len());
    for endpoint in &asker.endpoints {
        clients.push(client::Unary::connect(endpoint, options.clone()).await.map_err(failure_of)?);
    }
    Ok(Door::Unary(clients))
}

/// Gives every key a value, so that reads find one.
async fn load(
    client: &client::Client,
    arguments: &BenchArguments,
    value: &Bytes,
) -> Result<(), Failure> {
    let next = RefCell::new(0..arguments.keys);
    let loaders = (0..LOADERS).map(async |_| {
        loop {
            let Some(number) = next.borrow_mut().next() else { return Ok(()) };
            client.put(key(number), value.clone()).await.map_err(failure_of)?;
        }
    });
    futures::future::try_join_all(loaders).await.map(|_| ())
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("bench-{number:08}"))
}

fn millis(us: u64) -> String {
    format!("{:.2}", us as f64 / 1_000.0)
}

fn parse_value_size(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(bytes) if bytes <= base::limits::VALUE_BYTES_MAX => Ok(bytes),
        _ => Err(format!("choose between 0 and {} bytes", base::limits::VALUE_BYTES_MAX)),
    }
}

/// A span that may be zero.
fn parse_warmup(text: &str) -> Result<Duration, String> {
    if text.trim_end_matches(['m', 's', 'h']) == "0" {
        return Ok(Duration::ZERO);
    }
    parse_duration(text)
}

const LATENCY_US_MAX: u64 = 600_000_000;
const ENDLESS: Duration = Duration::from_secs(365 * 86_400);
const LOADERS: u32 = 128;
const CSV_HEADER: &str = "op,door,clients,value_bytes,keys,seconds,ops,failed,outcome_unknown,\
                          ops_per_s,p50_us,p99_us,p999_us,max_us,rate,not_sent";

const EXAMPLES: &str = "\
Examples:
  decree bench                                      64 clients put for 10 seconds
  decree bench --op get --clients 256
  decree bench --op mix --value-size 4096 --seconds 30s --json
  decree bench --rate 5000 --op mix                 latency at a load that does not wait for answers
  decree bench --unary --csv >> figures.csv         by single calls, as generated clients do";
