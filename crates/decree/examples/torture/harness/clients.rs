//! Clients of three kinds, in a thread of their own: those that work on keys of all, and write
//! down every call for the checker; those that keep chains of hashes on keys of their own, and know
//! every reply; and those whose values are large.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use base::Random;
use bytes::Bytes;
use client::{Client, Error, Options};
use router::{Consistency, HashKind};
use sim::history::{Answer, Expected, Operation, Sees};

use super::notes::Notes;
use super::support::predicted::fnv1a;

/// How many keys clients share in a round; of one in four the values are only appended to.
pub(crate) const SHARED_KEYS: u64 = 48;
const ONLY_APPENDS_ONE_OF: u64 = 4;
/// Chains of each client that has some.
const CHAINS: u64 = 40;
/// Clients give up after so long, in turn: some soon, so that the outcome of writes is unknown.
const TIMEOUTS: [Duration; 4] = [
    Duration::from_secs(20),
    Duration::from_millis(700),
    Duration::from_secs(20),
    Duration::from_secs(4),
];
/// How old the answer to a read may be that asks for no more.
const BOUND: Duration = Duration::from_millis(300);
const RESTING: Duration = Duration::from_millis(5);
const LARGE_BYTES_MIN: u64 = 100_000;
const LARGE_BYTES_MAX: u64 = 1_500_000;
const LARGE_PAUSE: Duration = Duration::from_millis(700);

/// How many clients there are, and how they find the nodes.
#[derive(Clone, Debug)]
pub(crate) struct Crew {
    /// Clients on keys of all.
    pub(crate) shared: u64,
    /// Clients with chains.
    pub(crate) chains: u64,
    /// Clients with large values.
    pub(crate) large: u64,
    /// Where clients look for nodes, in turn.
    pub(crate) endpoints: Vec<Vec<String>>,
    /// Up to so long a client waits after an answer.
    pub(crate) pause: Duration,
    /// Decides what they do.
    pub(crate) seed: u64,
}

/// Clients at work.
pub(crate) struct Clients(JoinHandle<()>);

impl Clients {
    /// Starts them; they rest until told otherwise.
    pub(crate) fn start(crew: &Crew, notes: &Arc<Notes>) -> Clients {
        let (crew, notes) = (crew.clone(), notes.clone());
        let thread = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
            executor.expect("an executor").block_on(work(crew, notes));
        });
        Clients(thread)
    }

    /// Waits for their end, which somebody told them to make; whether none of them panicked.
    pub(crate) fn join(self) -> bool {
        self.0.join().is_ok()
    }
}

async fn work(crew: Crew, notes: Arc<Notes>) {
    let mut random = Random::new(crew.seed);
    let mut one = |number: u64| {
        let endpoints = crew.endpoints[number as usize % crew.endpoints.len()].clone();
        let timeout = TIMEOUTS[number as usize % TIMEOUTS.len()];
        let options = Options { timeout, ..Options::default() };
        let client = Client::connect(endpoints, options).expect("the endpoints are valid");
        let pause = crew.pause;
        One { client, number, notes: notes.clone(), random: random.fork(), pause }
    };
    let shared = futures::future::join_all((0..crew.shared).map(|n| one(n).share()));
    let chains = futures::future::join_all((0..crew.chains).map(|n| one(100 + n).chain()));
    let large = futures::future::join_all((0..crew.large).map(|n| one(200 + n).carry()));
    futures::join!(shared, chains, large);
}

/// One client.
struct One {
    client: Client,
    number: u64,
    notes: Arc<Notes>,
    random: Random,
    pause: Duration,
}

impl One {
    async fn rest(&mut self) {
        let micros = u64::try_from(self.pause.as_micros()).unwrap_or(u64::MAX);
        tokio::time::sleep(Duration::from_micros(self.random.below(micros.max(1)))).await;
    }

    /// Works on keys that other clients work on too.
    async fn share(mut self) {
        let notes = self.notes.clone();
        let mut written = 0_u64;
        // What it read last, for what compares with that.
        let mut seen: BTreeMap<Bytes, Seen> = BTreeMap::new();
        while !notes.is_stopped() {
            let Some(open) = notes.open() else {
                tokio::time::sleep(RESTING).await;
                continue;
            };
            written += 1;
            let at = self.random.below(SHARED_KEYS);
            let key = shared_key(notes.round(), at);
            let value = Bytes::from(format!("{}.{written};", self.number));
            let operation =
                self.draw(at.is_multiple_of(ONLY_APPENDS_ONE_OF), value, seen.get(&key));
            let is_write = !matches!(operation, Operation::Get | Operation::Look(_));
            let begin = notes.now();
            let asked = (key.clone(), operation.clone());
            let call = notes.history(|history| history.begin(self.number, begin, asked.0, asked.1));
            let answer = ask(&open.client(&self.client), key.clone(), operation).await;
            match &answer {
                Ok((answer, version)) => {
                    if let (Answer::Value(value), false) = (answer, is_write) {
                        seen.retain(|key, _| is_of_round(key, notes.round()));
                        seen.insert(key, (value.clone(), *version));
                    }
                    let (now, answer) = (notes.now(), answer.clone());
                    notes.history(|history| history.answered(call, now, answer, Some(*version)));
                }
                Err(Error::OutcomeUnknown(_)) => {}
                Err(
                    Error::Unavailable(_)
                    | Error::Refused(_)
                    | Error::NobodyReachable(_)
                    | Error::Invalid(_),
                ) => notes.history(|history| history.refused(call)),
            }
            open.ended(&answer, is_write, "a call on a shared key");
            self.rest().await;
        }
    }

    fn draw(&mut self, only_appends: bool, value: Bytes, seen: Option<&Seen>) -> Operation {
        let kind = self.random.below(11);
        match kind {
            0 | 1 => Operation::Get,
            2 => Operation::Look(Sees::Session),
            3 => Operation::Look(Sees::Bounded(BOUND.as_nanos() as u64)),
            _ if only_appends => Operation::Append(value),
            4 | 5 => Operation::Put(value),
            6 => Operation::PutHash(value),
            7 => Operation::Append(value),
            8 => Operation::Delete,
            9 => {
                let held = seen.and_then(|(held, _)| held.clone()).unwrap_or_default();
                Operation::CompareAndSwap { expected: Expected::Value(held), value }
            }
            _ => {
                let version = seen.map_or(0, |(_, version)| *version);
                Operation::CompareAndSwap { expected: Expected::Version(version), value }
            }
        }
    }

    /// Keeps chains of hashes. Whoever knows the chain knows every reply: a write that was lost,
    /// or executed twice, shows at the next one. A chain is given up after a call whose outcome is
    /// unknown, as that may come to pass at any later time.
    async fn chain(mut self) {
        let notes = self.notes.clone();
        let mut lives = vec![0_u64; CHAINS as usize];
        let mut known: Vec<Vec<u8>> = vec![Vec::new(); CHAINS as usize];
        let mut step = 0_u64;
        while !notes.is_stopped() {
            let Some(open) = notes.open() else {
                tokio::time::sleep(RESTING).await;
                continue;
            };
            let at = self.random.below(CHAINS) as usize;
            let key = format!("chain-{}-{at}-{}", self.number, lives[at]);
            step += 1;
            let hashed = step.to_string();
            let client = open.client(&self.client);
            let done = client.put_hash(key.clone(), hashed.clone(), HashKind::Fnv1a32).await;
            open.ended(&done, true, "a call on a chain");
            match done {
                Ok(done) => {
                    let previous = done.value.unwrap_or_default();
                    if previous != known[at] {
                        let held = Bytes::from(known[at].clone());
                        notes.wrong(format!("{key} held {previous:?} in place of {held:?}"));
                    }
                    let next = fnv1a(&[&previous[..], hashed.as_bytes()].concat());
                    known[at] = next.to_string().into_bytes();
                    notes.holds(&key, Some(&known[at]));
                }
                Err(Error::OutcomeUnknown(_)) => {
                    notes.holds(&key, None);
                    lives[at] += 1;
                    known[at] = Vec::new();
                }
                Err(
                    Error::Unavailable(_)
                    | Error::Refused(_)
                    | Error::NobodyReachable(_)
                    | Error::Invalid(_),
                ) => {}
            }
            self.rest().await;
        }
    }

    /// Puts large values, and reads them: what was put last, or any of which nobody knows whether
    /// and when it is put.
    async fn carry(mut self) {
        let notes = self.notes.clone();
        let mut unknown: BTreeMap<String, Vec<Bytes>> = BTreeMap::new();
        let (mut present, mut outdated) = (BTreeSet::<String>::new(), BTreeSet::new());
        let mut round = notes.round();
        for step in 0_u64.. {
            if notes.is_stopped() {
                return;
            }
            let Some(open) = notes.open() else {
                tokio::time::sleep(RESTING).await;
                continue;
            };
            let now = notes.round();
            if now != round {
                outdated.append(&mut present);
                round = now;
            }
            // What all rounds of an hour put would not fit on a small disk.
            if let Some(key) = outdated.pop_first() {
                let deleted = open.client(&self.client).delete(key.clone()).await;
                open.ended(&deleted, true, "a delete of a large value");
                if deleted.is_err() {
                    outdated.insert(key);
                    tokio::time::sleep(LARGE_PAUSE).await;
                }
                continue;
            }
            let key = format!("large-{}-{round}-{}", self.number, step % 3);
            present.insert(key.clone());
            let length = self.random.between(LARGE_BYTES_MIN, LARGE_BYTES_MAX) as usize;
            let value = Bytes::from(vec![self.random.next_u64() as u8; length]);
            let put = open.client(&self.client).put(key.clone(), value.clone()).await;
            open.ended(&put, true, "a put of a large value");
            if matches!(put, Err(Error::OutcomeUnknown(_))) {
                let of_round = format!("-{round}-");
                unknown.retain(|key, _| key.contains(&of_round));
                unknown.entry(key.clone()).or_default().push(value.clone());
            }
            if put.is_ok()
                && let Some(open) = notes.open()
            {
                let read = open.client(&self.client).get(key.clone()).await;
                open.ended(&read, false, "a get of a large value");
                if let Ok(done) = read {
                    let open = unknown.get(&key).map(Vec::as_slice).unwrap_or_default();
                    let held = done.value.unwrap_or_default();
                    if held != value && !open.contains(&held) {
                        let text = format!("{key} has {} bytes, not the {length}", held.len());
                        notes.wrong(format!("{text} that were put, or others"));
                    }
                }
            }
            tokio::time::sleep(LARGE_PAUSE).await;
        }
    }
}

/// A value and its version.
type Seen = (Option<Bytes>, u64);

fn is_of_round(key: &Bytes, round: u64) -> bool {
    key.starts_with(format!("shared-{round}-").as_bytes())
}

/// The name of a key that clients share.
pub(crate) fn shared_key(round: u64, at: u64) -> Bytes {
    Bytes::from(format!("shared-{round}-{at}"))
}

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
                Expected::Value(value) => router::Expected::Value(value),
                Expected::Version(version) => router::Expected::Version(base::Version(version)),
            };
            let done = client.compare_and_swap(key, expected, value).await?;
            (Answer::Swapped(done.value), done.header.version.0)
        }
    })
}
