//! Kills the nodes of a real cluster under load, again and again, and judges what its clients saw.
//!
//! `cargo run --release -p decree --example torture -- [ROUNDS] [BASE_PORT]` (with `cargo build
//! --release` before it). Each round kills one node by SIGKILL, every third one all of them, and
//! starts them again. Meanwhile clients put, get, hash, append, swap and delete on a few keys and
//! write down every call; others keep hash chains on keys of their own, whose replies they predict.
//! In between, shards move: a third group joins, shards are moved and swapped, the group leaves,
//! each while nodes die. At the end the linearizability checker of the simulator judges the history. Exits with 1 if
//! anything acknowledged was lost or executed twice.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use base::Random;
use bytes::Bytes;
use client::{Client, Error, Options};
use router::{Consistency, HashKind};
use sim::history::{Answer, CallNumber, History, Operation, Sees};

/// Clients on shared keys, and how many keys they share.
const SHARED_CLIENTS: u64 = 8;
const SHARED_KEYS: u64 = 40;
/// Clients with hash chains, and how many keys each has.
const CHAIN_CLIENTS: u64 = 8;
const CHAIN_KEYS: u64 = 100;
const NODES: u16 = 3;

struct Cluster {
    binary: PathBuf,
    directory: PathBuf,
    base: u16,
    nodes: Vec<Option<Child>>,
}

impl Cluster {
    fn masters(&self) -> String {
        let at = |n: u16| format!("127.0.0.1:{}", self.base + 300 + n);
        (1..=NODES).map(at).collect::<Vec<_>>().join(",")
    }

    fn endpoints(&self) -> Vec<String> {
        (1..=NODES).map(|n| format!("127.0.0.1:{}", self.base + 100 + n)).collect()
    }

    fn start(&mut self, index: usize) {
        let node = (index + 1).to_string();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join(format!("node{node}.log")))
            .expect("a log file");
        let child = Command::new(&self.binary)
            .args(["serve", "--node", &node, "--masters", &self.masters()])
            .args(["--base-port", &self.base.to_string(), "--data-dir"])
            .arg(self.directory.join(format!("node{node}")))
            .args(["--wal-segment-bytes", "4MiB"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("a node starts");
        self.nodes[index] = Some(child);
    }

    fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.nodes[index].take() {
            child.kill().expect("a node is killed");
            child.wait().expect("a node is gone");
        }
    }

    /// Changes the plan, and does not wait for it. A command that changes nothing is refused, which
    /// is no failure.
    fn reconfigure(&self, round: u64) -> Child {
        let low = (round * 37) % 1_000;
        let lines = match round % 4 {
            1 => "join 3 1 2 3".to_owned(),
            2 => format!("move {low}-{} 1", low + 19),
            3 => format!("move {low} 2; decree move {} 1", low + 20),
            _ => "leave 3".to_owned(),
        };
        let script = format!("decree {lines}").replace("decree", "\"$DECREE\"");
        Command::new("sh")
            .args(["-c", &script])
            .env("DECREE", &self.binary)
            .env("DECREE_ENDPOINTS", self.endpoints().join(","))
            .stdout(Stdio::null())
            .spawn()
            .expect("the command runs")
    }

    fn run(&self, arguments: &[&str]) {
        let status = Command::new(&self.binary)
            .args(["--endpoints", &self.endpoints().join(",")])
            .args(arguments)
            .stdout(Stdio::null())
            .status()
            .expect("the command runs");
        assert!(status.success(), "decree {arguments:?}: {status}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for index in 0..self.nodes.len() {
            if let Some(mut child) = self.nodes[index].take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// What all clients write down.
struct Notes {
    began: Instant,
    history: RefCell<History>,
    stop: Cell<bool>,
    acknowledged: Cell<u64>,
    unknown: Cell<u64>,
    longest: Cell<Duration>,
    wrong: RefCell<Vec<String>>,
}

impl Notes {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn took(&self, start: Instant) {
        self.longest.set(self.longest.get().max(start.elapsed()));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| match arguments.get(at) {
        Some(text) => text.parse().expect("a number"),
        None => default,
    };
    let rounds = number(0, 10);
    let base = number(1, 17_000) as u16;
    let binary = std::env::current_exe().expect("a path");
    let binary = binary.parent().and_then(Path::parent).expect("a target").join("decree");
    assert!(binary.exists(), "{} is missing: build the program first", binary.display());
    let directory = std::env::temp_dir().join(format!("decree-torture-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
    let nodes = (0..NODES).map(|_| None).collect();
    let mut cluster = Cluster { binary, directory: directory.clone(), base, nodes };
    let local = tokio::task::LocalSet::new();
    let good = local.block_on(&runtime, torture(&mut cluster, rounds));
    drop(cluster);
    if good {
        std::fs::remove_dir_all(&directory).expect("the directory goes");
        return ExitCode::SUCCESS;
    }
    println!("the data and logs stay in {}", directory.display());
    ExitCode::from(1)
}

async fn torture(cluster: &mut Cluster, rounds: u64) -> bool {
    for index in 0..usize::from(NODES) {
        cluster.start(index);
    }
    cluster.run(&["init", "--masters", &cluster.masters()]);
    cluster.run(&["join", "1", "1", "2", "3", "+", "2", "1", "2", "3"]);
    let notes = Rc::new(Notes {
        began: Instant::now(),
        history: RefCell::default(),
        stop: Cell::new(false),
        acknowledged: Cell::new(0),
        unknown: Cell::new(0),
        longest: Cell::new(Duration::ZERO),
        wrong: RefCell::default(),
    });
    let mut tasks = Vec::new();
    let options = || Options { timeout: Duration::from_secs(20), ..Options::default() };
    for number in 0..SHARED_CLIENTS {
        let client = Client::connect(cluster.endpoints(), options()).expect("a client");
        tasks.push(tokio::task::spawn_local(share(client, number, notes.clone())));
    }
    for number in 0..CHAIN_CLIENTS {
        let client = Client::connect(cluster.endpoints(), options()).expect("a client");
        tasks.push(tokio::task::spawn_local(chain(client, number, notes.clone())));
    }
    let mut random = Random::new(cluster.base.into());
    let pause = |millis| tokio::time::sleep(Duration::from_millis(millis));
    for round in 1..=rounds {
        pause(1_000 + random.below(500)).await;
        let all = round % 3 == 0;
        let victims: Vec<usize> = match all {
            true => (0..usize::from(NODES)).collect(),
            false => vec![random.below(NODES.into()) as usize],
        };
        let mut change = cluster.reconfigure(round);
        pause(random.below(300)).await;
        notes.longest.set(Duration::ZERO);
        let before = notes.acknowledged.get();
        for index in &victims {
            cluster.kill(*index);
        }
        pause(if all { 200 } else { 1_500 }).await;
        let during = notes.acknowledged.get() - before;
        for index in &victims {
            cluster.start(*index);
        }
        pause(2_500).await;
        while change.try_wait().expect("the command is ours").is_none() {
            pause(50).await;
        }
        println!(
            "round {round}: killed {}, {during} calls acknowledged while down, longest call {} ms",
            if all { "all".to_owned() } else { format!("node {}", victims[0] + 1) },
            notes.longest.get().as_millis()
        );
    }
    notes.stop.set(true);
    for task in tasks {
        task.await.expect("a client ends");
    }
    judge(&notes)
}

fn judge(notes: &Notes) -> bool {
    let history = notes.history.borrow();
    println!(
        "{} calls acknowledged, {} with unknown outcome; judging {} calls on shared keys",
        notes.acknowledged.get(),
        notes.unknown.get(),
        history.calls().len()
    );
    for wrong in notes.wrong.borrow().iter().take(5) {
        println!("a prediction failed: {wrong}");
    }
    let verdict = sim::linearizability::check(&history);
    match &verdict {
        Ok(()) => println!("linearizable"),
        Err(violation) => println!("{violation}"),
    }
    verdict.is_ok() && notes.wrong.borrow().is_empty()
}

/// Works on keys that other clients work on too.
async fn share(client: Client, number: u64, notes: Rc<Notes>) {
    let mut random = Random::new(1_000 + number);
    let mut written = 0_u64;
    while !notes.stop.get() {
        let key = Bytes::from(format!("shared-{}", random.below(SHARED_KEYS)));
        written += 1;
        let value = Bytes::from(format!("{number}.{written};"));
        let operation = match random.below(10) {
            0 | 1 => Operation::Get,
            2 => Operation::Look(Sees::Session),
            3 => Operation::Look(Sees::Bounded(BOUND.as_nanos() as u64)),
            4 | 5 => Operation::Put(value),
            6 => Operation::PutHash(value),
            7 => Operation::Append(value),
            8 => Operation::Delete,
            _ => Operation::CompareAndSwap {
                expected: sim::history::Expected::Version(random.below(3)),
                value,
            },
        };
        let start = Instant::now();
        let (at, asked) = (notes.now(), operation.clone());
        let call = notes.history.borrow_mut().begin(number, at, key.clone(), asked);
        let answer = ask(&client, key, operation).await;
        note(&notes, call, answer);
        notes.took(start);
        tokio::time::sleep(Duration::from_millis(random.below(8))).await;
    }
}

/// Writes down how a call ended.
fn note(notes: &Notes, call: CallNumber, answer: Result<(Answer, u64), Error>) {
    let mut history = notes.history.borrow_mut();
    match answer {
        Ok((answer, version)) => {
            history.answered(call, notes.now(), answer, Some(version));
            notes.acknowledged.set(notes.acknowledged.get() + 1);
        }
        Err(Error::OutcomeUnknown(_)) => notes.unknown.set(notes.unknown.get() + 1),
        Err(
            Error::Unavailable(_)
            | Error::Refused(_)
            | Error::NobodyReachable(_)
            | Error::Invalid(_),
        ) => history.refused(call),
    }
}

/// How old the answer to a read may be that asks for no more.
const BOUND: Duration = Duration::from_millis(300);

async fn ask(client: &Client, key: Bytes, operation: Operation) -> Result<(Answer, u64), Error> {
    Ok(match operation {
        Operation::Get => {
            let done = client.get(key).await?;
            (Answer::Value(done.value), done.header.version.0)
        }
        Operation::Look(sees) => {
            let reads = match sees {
                Sees::Session => Consistency::Sequential(None),
                Sees::Bounded(_) => Consistency::Bounded(BOUND.as_millis() as u64),
            };
            let done = client.with_reads(reads).get(key).await?;
            (Answer::Value(done.value), done.header.version.0)
        }
        Operation::Put(value) => {
            let done = client.put(key, value).await?;
            (Answer::Done, done.header.version.0)
        }
        Operation::PutHash(value) => {
            let done = client.put_hash(key, value, HashKind::Fnv1a32).await?;
            (Answer::Value(done.value), done.header.version.0)
        }
        Operation::Append(value) => {
            let done = client.append(key, value).await?;
            (Answer::Appended(done.value), done.header.version.0)
        }
        Operation::Delete => {
            let done = client.delete(key).await?;
            (Answer::Deleted(done.value), done.header.version.0)
        }
        Operation::CompareAndSwap { expected, value } => {
            let expected = match expected {
                sim::history::Expected::Value(value) => router::Expected::Value(value),
                sim::history::Expected::Version(version) => {
                    router::Expected::Version(base::Version(version))
                }
            };
            let done = client.compare_and_swap(key, expected, value).await?;
            (Answer::Swapped(done.value), done.header.version.0)
        }
    })
}

/// Keeps hash chains on keys of its own. Whoever knows the chain knows every reply: a write that
/// was lost, or executed twice, shows at the next one.
async fn chain(client: Client, number: u64, notes: Rc<Notes>) {
    let mut random = Random::new(2_000 + number);
    // What each key holds; none after a call whose outcome is unknown, until it is read again.
    let mut known: Vec<Option<Bytes>> = vec![Some(Bytes::new()); CHAIN_KEYS as usize];
    let mut step = 0_u64;
    while !notes.stop.get() {
        let slot = random.below(CHAIN_KEYS) as usize;
        let key = Bytes::from(format!("chain-{number}-{slot}"));
        let start = Instant::now();
        let Some(held) = known[slot].clone() else {
            if let Ok(read) = client.get(key).await {
                known[slot] = Some(read.value.unwrap_or_default());
            }
            continue;
        };
        step += 1;
        let hashed = Bytes::from(step.to_string());
        match client.put_hash(key.clone(), hashed.clone(), HashKind::Fnv1a32).await {
            Ok(done) => {
                let previous = done.value.unwrap_or_default();
                if previous != held {
                    let text = format!("{key:?} held {previous:?} in place of {held:?}");
                    notes.wrong.borrow_mut().push(text);
                }
                notes.acknowledged.set(notes.acknowledged.get() + 1);
                known[slot] = Some(next_of(&previous, &hashed));
            }
            Err(Error::OutcomeUnknown(_)) => {
                notes.unknown.set(notes.unknown.get() + 1);
                known[slot] = None;
            }
            Err(
                Error::Unavailable(_)
                | Error::Refused(_)
                | Error::NobodyReachable(_)
                | Error::Invalid(_),
            ) => {}
        }
        notes.took(start);
        tokio::time::sleep(Duration::from_millis(random.below(5))).await;
    }
}

/// The decimal FNV-1a of both.
fn next_of(previous: &[u8], hashed: &[u8]) -> Bytes {
    let each = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = previous.iter().chain(hashed).fold(0x811c_9dc5, each);
    Bytes::from(hash.to_string())
}
