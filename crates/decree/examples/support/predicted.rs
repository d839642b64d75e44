//! Clients that know what every reply must be: each has keys of its own, and nobody else writes
//! them. A write that was lost, executed twice or answered for another shows at the next call.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base::Random;
use bytes::Bytes;
use client::{Client, Error, Options};
use router::HashKind;

/// Keys of each client.
pub(crate) const KEYS: usize = 100;
/// No call may take so long, whatever happens to the cluster.
const CALL_TIME_MAX: Duration = Duration::from_secs(60);
/// A value that was appended to until it is this long is put anew.
const VALUE_BYTES_MAX: usize = 512;
/// How many wrong replies are written down.
const WRONG_MAX: usize = 10;

/// Clients at work in a thread of their own.
pub(crate) struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    calls: AtomicU64,
    longest_us: AtomicU64,
    wrong: Mutex<VecDeque<String>>,
}

impl Load {
    /// Starts so many clients. `name` keeps their keys apart from those of another load.
    pub(crate) fn start(name: &str, endpoints: Vec<String>, clients: u64) -> Load {
        let shared = Arc::new(Shared::default());
        let (of_thread, name) = (shared.clone(), name.to_owned());
        let thread = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let all = async {
                let all = (0..clients).map(|number| {
                    let options = Options { timeout: CALL_TIME_MAX, ..Options::default() };
                    let client = Client::connect(endpoints.clone(), options);
                    let client = client.expect("the endpoints are valid");
                    Predictor::new(client, &name, number).work(&of_thread)
                });
                futures::future::join_all(all).await;
            };
            executor.expect("an executor").block_on(all);
        });
        Load { shared, thread }
    }

    /// Calls answered so far.
    pub(crate) fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// The longest of the calls that ended since this was asked last.
    pub(crate) fn take_longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.swap(0, Ordering::Relaxed))
    }

    /// What was not as predicted so far.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.shared.wrong.lock().expect("nobody panicked").iter().cloned().collect()
    }

    /// Lets every client read all its keys once more, and ends. The calls that were answered, and
    /// what was not as predicted.
    pub(crate) fn stop(self) -> (u64, Vec<String>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the clients end");
        let wrong = self.shared.wrong.lock().expect("nobody panicked").iter().cloned().collect();
        (self.shared.calls.load(Ordering::Relaxed), wrong)
    }
}

/// One client, and what it knows of its keys.
struct Predictor {
    client: Client,
    number: u64,
    keys: Vec<(Bytes, Vec<u8>)>,
    random: Random,
    step: u64,
}

impl Predictor {
    fn new(client: Client, name: &str, number: u64) -> Predictor {
        let key = |key: usize| Bytes::from(format!("{name}-{number}-{key}"));
        let keys = (0..KEYS).map(|each| (key(each), Vec::new())).collect();
        Predictor { client, number, keys, random: Random::new(number), step: 0 }
    }

    async fn work(mut self, shared: &Shared) {
        while !shared.stop.load(Ordering::Relaxed) {
            let at = self.random.below(KEYS as u64) as usize;
            let begun = Instant::now();
            let seen = self.step(at).await;
            let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            shared.longest_us.fetch_max(took, Ordering::Relaxed);
            shared.calls.fetch_add(1, Ordering::Relaxed);
            if !self.judge(seen, shared) {
                return;
            }
        }
        for at in 0..KEYS {
            let (key, known) = self.keys[at].clone();
            let seen = self.read(key, &known).await;
            if !self.judge(seen, shared) {
                return;
            }
        }
    }

    /// Whether the client may go on: after an error it does not know what its keys hold.
    fn judge(&self, seen: Result<Option<String>, Error>, shared: &Shared) -> bool {
        let (text, goes_on) = match seen {
            Ok(None) => return true,
            Ok(Some(text)) => (text, true),
            Err(error) => (format!("a call failed: {error}"), false),
        };
        let mut wrong = shared.wrong.lock().expect("nobody panicked");
        if wrong.len() < WRONG_MAX {
            wrong.push_back(format!("client {}: {text}", self.number));
        }
        goes_on
    }

    /// One call; a line if its reply was not as predicted.
    async fn step(&mut self, at: usize) -> Result<Option<String>, Error> {
        self.step += 1;
        let sent = format!("{}.{};", self.number, self.step).into_bytes();
        let (key, mut known) = self.keys[at].clone();
        let kind = if known.len() > VALUE_BYTES_MAX { 0 } else { self.random.below(8) };
        let wrong = match kind {
            0 | 1 => {
                self.client.put(key, sent.clone()).await?;
                known = sent;
                None
            }
            2..=4 => {
                known.extend(&sent);
                let length = self.client.append(key.clone(), sent).await?.value;
                let differs = length != known.len() as u64;
                differs.then(|| format!("{key:?} has {length} bytes, not {}", known.len()))
            }
            5 | 6 => {
                let asked = self.client.put_hash(key.clone(), sent.clone(), HashKind::Fnv1a32);
                let previous = asked.await?.value.unwrap_or_default();
                let wrong = differs(&key, &previous, &known);
                known.extend(&sent);
                known = fnv1a(&known).to_string().into_bytes();
                wrong
            }
            _ => self.read(key, &known).await?,
        };
        self.keys[at].1 = known;
        Ok(wrong)
    }

    async fn read(&self, key: Bytes, known: &[u8]) -> Result<Option<String>, Error> {
        let held = self.client.get(key.clone()).await?.value.unwrap_or_default();
        Ok(differs(&key, &held, known))
    }
}

fn differs(key: &Bytes, held: &Bytes, known: &[u8]) -> Option<String> {
    let known = Bytes::copy_from_slice(known);
    (*held != known).then(|| format!("{key:?} held {held:?}, not {known:?}"))
}

/// The 32-bit FNV-1a hash.
pub(crate) fn fnv1a(bytes: &[u8]) -> u32 {
    let each = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, each)
}
