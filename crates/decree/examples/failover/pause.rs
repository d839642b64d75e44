//! The leader stands still by SIGSTOP and goes on, and nobody reads what is older than it may be.
//!
//! Writers count up keys of their own. Whatever was acknowledged before a read began is the least
//! that it must show: at once, or by the age that a bounded read allows for; a sequential read shows
//! at least what its token says. The reads at the stopped node itself go over connections that it
//! had before, and wait there when it awakes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use api::v1::kv_client::KvClient;
use api::v1::pipeline_request::Request as ProtoRequest;
use base::Micros;
use bytes::Bytes;
use client::convert::{reply_from_proto, request_to_proto};
use client::{Client, Options};
use router::{Answer, Body, Consistency, Header, KvOp, Request, Seen};
use tonic::transport::{Channel, Endpoint};

use crate::support::predicted::Load;
use crate::support::replicas::{Replicas, steady_leader};
use crate::{GROUP, Pause, SETTLE_TIME_MAX, Subject, ms, pause};

const PREDICTORS: u64 = 4;
/// Keys that are counted up, each by a writer of its own.
const COUNTERS: usize = 8;
/// Readers of each of the three levels, through the client.
const READERS: usize = 2;
/// The age that bounded reads allow for.
const BOUND: Duration = Duration::from_millis(300);
/// Connections to the node that will stand still.
const DIRECT_CONNECTIONS: usize = 4;
/// Reads that wait at it when it awakes, of each key and level.
const DIRECT_READS: usize = 5;
/// How long before it awakes they are sent.
const DIRECT_BEFORE: Duration = Duration::from_millis(300);
const CALL_TIME_MAX: Duration = Duration::from_secs(30);
const BETWEEN_READS: Duration = Duration::from_millis(2);

/// A key that is counted up.
#[derive(Default)]
struct Counter {
    /// When which number was acknowledged, and what its writer had then seen.
    acknowledged: Vec<(Instant, u64, Option<Seen>)>,
}

impl Counter {
    /// The highest number acknowledged until then.
    fn at(&self, time: Instant) -> u64 {
        let until = self.acknowledged.partition_point(|(at, ..)| *at <= time);
        until.checked_sub(1).map_or(0, |last| self.acknowledged[last].1)
    }
}

/// What all clients share.
#[derive(Default)]
struct Notes {
    counters: RefCell<Vec<Counter>>,
    stop: Cell<bool>,
    /// Checked reads by level, through clients and at the stopped node.
    checked: Cell<[u64; 3]>,
    direct: Cell<[u64; 3]>,
    /// Reads at the stopped node that were refused, which is no wrong answer.
    refused: Cell<u64>,
    wrong: RefCell<Vec<String>>,
}

const LEVELS: [&str; 3] = ["linearizable", "sequential", "bounded"];

impl Notes {
    fn count(&self, cell: &Cell<[u64; 3]>, level: usize) {
        let mut counts = cell.get();
        counts[level] += 1;
        cell.set(counts);
    }

    fn judge(&self, key: usize, level: usize, shown: u64, least: u64, whom: &str) {
        if shown < least {
            let text = format!("a {} read {whom} of counter {key}: {shown}, not {least}", {
                LEVELS[level]
            });
            self.wrong.borrow_mut().push(text);
        }
    }
}

fn key(number: usize) -> Bytes {
    Bytes::from(format!("counter-{number}"))
}

fn number(value: Option<&Bytes>) -> u64 {
    let text = value.map(|value| String::from_utf8_lossy(value).into_owned());
    text.map_or(0, |text| text.parse().expect("a counter holds a number"))
}

/// Stops and continues the leader once.
pub(crate) async fn run(subject: &mut Subject, options: &Pause) -> Vec<String> {
    let notes = Rc::new(Notes::default());
    notes.counters.borrow_mut().resize_with(COUNTERS, Counter::default);
    let endpoints = subject.cluster.endpoints();
    let client = || {
        let options = Options { timeout: CALL_TIME_MAX, ..Options::default() };
        Client::connect(endpoints.clone(), options).expect("the endpoints are valid")
    };
    let writers = (0..COUNTERS).map(|key| count_up(client(), key, notes.clone()));
    let readers = (0..3 * READERS).map(|reader| read(client(), reader % 3, notes.clone()));
    let clients = futures::future::join(
        futures::future::join_all(writers),
        futures::future::join_all(readers),
    );
    let story = async {
        let failures = tell(subject, options, &notes).await;
        notes.stop.set(true);
        failures
    };
    let (mut failures, _) = futures::future::join(story, clients).await;
    let wrong = notes.wrong.borrow();
    println!("{:<16}{:>16}{:>20}", "READS", "BY CLIENTS", "AT THE STOPPED NODE");
    for (level, name) in LEVELS.iter().enumerate() {
        println!("{name:<16}{:>16}{:>20}", notes.checked.get()[level], notes.direct.get()[level]);
    }
    println!(
        "{} wrong or failed; {} refused by the stopped node",
        wrong.len(),
        notes.refused.get()
    );
    failures.extend(wrong.iter().take(10).cloned());
    if notes.direct.get().iter().sum::<u64>() == 0 {
        failures.push("the stopped node answered no read".to_owned());
    }
    failures
}

async fn tell(subject: &mut Subject, options: &Pause, notes: &Notes) -> Vec<String> {
    let mut failures = Vec::new();
    let endpoints = subject.cluster.endpoints();
    let predicted = Load::start("predicted", endpoints.clone(), PREDICTORS);
    pause(Duration::from_secs(2)).await;
    for round in 1..=options.rounds {
        let steady = steady_leader(&subject.control, &endpoints, GROUP, SETTLE_TIME_MAX).await;
        let leader = match steady {
            Ok(leader) => leader,
            Err(why) => return vec![why],
        };
        let direct = connections(&subject.cluster.endpoint(leader)).await;
        predicted.take_longest();
        let stopped = Instant::now();
        subject.cluster.signal(leader, "STOP");
        pause(Duration::from_secs(options.seconds).saturating_sub(DIRECT_BEFORE)).await;
        let next = Replicas::take_but(&subject.control, &endpoints, leader).await.leader(GROUP);
        let awakes = Cell::new(None);
        let awaken = async {
            pause(DIRECT_BEFORE).await;
            awakes.set(Some(Instant::now()));
            subject.cluster.signal(leader, "CONT");
        };
        let reads = read_directly(&direct, &awakes, notes);
        futures::future::join(awaken, reads).await;
        let back = subject.until_whole().await;
        let gap = gap_since(notes, stopped);
        println!(
            "round {round}: node {leader} stopped for {} s, node {} led; write gap {}, longest call {}, {}",
            options.seconds,
            next.unwrap_or_default(),
            ms(gap),
            ms(predicted.take_longest()),
            match &back {
                Ok(back) => format!("back after {}", ms(*back)),
                Err(why) => why.clone(),
            }
        );
        failures.extend(back.err());
        if next.is_none() || next == Some(leader) {
            failures.push("nobody else led while it stood still".to_owned());
        }
        pause(Duration::from_secs(2)).await;
    }
    let (calls, wrong) = predicted.stop();
    println!("{calls} predicted calls, {} wrong or failed", wrong.len());
    failures.extend(wrong);
    failures
}

fn gap_since(notes: &Notes, from: Instant) -> Duration {
    let counters = notes.counters.borrow();
    let all = counters.iter().flat_map(|counter| counter.acknowledged.iter().map(|a| a.0));
    let mut times: Vec<Instant> = all.filter(|at| *at >= from).collect();
    times.push(from);
    times.sort();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

async fn count_up(client: Client, at: usize, notes: Rc<Notes>) {
    for count in 1_u64.. {
        if notes.stop.get() {
            return;
        }
        match client.put(key(at), count.to_string()).await {
            Ok(done) => {
                let seen = done.header.seen().map(|(_, seen)| seen);
                let note = (Instant::now(), count, seen);
                notes.counters.borrow_mut()[at].acknowledged.push(note);
            }
            Err(error) => notes.wrong.borrow_mut().push(format!("a write failed: {error}")),
        }
        pause(BETWEEN_READS).await;
    }
}

/// Reads all counters in turn.
async fn read(client: Client, level: usize, notes: Rc<Notes>) {
    let client = client.with_reads(match level {
        0 => Consistency::Linearizable,
        1 => Consistency::Sequential(None),
        _ => Consistency::Bounded(BOUND.as_millis() as u64),
    });
    let mut seen = [0; COUNTERS];
    for at in (0..COUNTERS).cycle() {
        if notes.stop.get() {
            return;
        }
        let begun = Instant::now();
        let least = match level {
            0 => notes.counters.borrow()[at].at(begun),
            1 => seen[at],
            _ => begun.checked_sub(BOUND).map_or(0, |then| notes.counters.borrow()[at].at(then)),
        };
        match client.get(key(at)).await {
            Ok(done) => {
                let shown = number(done.value.as_ref());
                notes.judge(at, level, shown, least, "by a client");
                notes.count(&notes.checked, level);
                seen[at] = shown;
            }
            Err(error) => notes.wrong.borrow_mut().push(format!("a read failed: {error}")),
        }
        pause(BETWEEN_READS).await;
    }
}

/// Plain connections to a node, which is up, and which they outlive while it stands still.
async fn connections(endpoint: &str) -> Vec<Channel> {
    let mut connections = Vec::new();
    for _ in 0..DIRECT_CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
        connections.push(endpoint.tcp_nodelay(true).connect().await.expect("the node is up"));
    }
    connections
}

/// Sends reads of every key and level to the node that stands still, and judges what it answers
/// when it awakes.
async fn read_directly(connections: &[Channel], awakes: &Cell<Option<Instant>>, notes: &Notes) {
    let reads = (0..DIRECT_READS * COUNTERS * 3).map(|number| {
        let (at, level) = (number / 3 % COUNTERS, number % 3);
        let channel = connections[number % connections.len()].clone();
        async move {
            let begun = Instant::now();
            let (known, token) = {
                let counters = notes.counters.borrow();
                let last = counters[at].acknowledged.last().map(|(_, count, seen)| (*count, *seen));
                last.unwrap_or_default()
            };
            let consistency = match level {
                0 => Consistency::Linearizable,
                1 => Consistency::Sequential(token),
                _ => Consistency::Bounded(BOUND.as_millis() as u64),
            };
            match read_once(channel, at, consistency).await {
                Ok(shown) => {
                    // It answered after it awoke, and what it shows may be older than that by the
                    // bound only.
                    let least = match level {
                        0 | 1 => known,
                        _ => {
                            let left = awakes.get().unwrap_or(begun).checked_sub(BOUND);
                            left.map_or(0, |then| notes.counters.borrow()[at].at(then))
                        }
                    };
                    notes.judge(at, level, shown, least, "at the stopped node");
                    notes.count(&notes.direct, level);
                }
                Err(_) => notes.refused.set(notes.refused.get() + 1),
            }
        }
    });
    futures::future::join_all(reads).await;
}

async fn read_once(channel: Channel, at: usize, reads: Consistency) -> Result<u64, String> {
    let timeout = Micros(10_000_000);
    let header = Header { timeout, consistency: reads, ..Header::default() };
    let request = Request { header, body: Body::Kv(KvOp::Get { key: key(at) }) };
    let request = request_to_proto(request).map_err(|error| error.to_string())?;
    let ProtoRequest::Get(request) = request else { return Err("no read".to_owned()) };
    let reply = KvClient::new(channel).get(request).await.map_err(|status| status.to_string())?;
    let reply = api::v1::pipeline_reply::Reply::Get(reply.into_inner());
    let reply = reply_from_proto(Some(reply)).map_err(|malformed| malformed.to_string())?;
    match reply.body {
        Ok(Answer::Value(value)) => Ok(number(value.as_ref())),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}
