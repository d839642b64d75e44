//! Clients that write small values one after the other and note when each was acknowledged, so that
//! the time can be told in which nobody's write was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client::{Client, Options};

/// Between the acknowledgement of a write and the next one of the same client: the figures are about
/// absence, and a saturated machine would add its own.
const PAUSE: Duration = Duration::from_millis(2);
/// Keys of each client.
const KEYS: u64 = 50;
/// How long a client tries to have one write done before it counts as failed.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// How many failures are written down.
const FAILURES_MAX: usize = 10;

/// Something that can be written to.
pub(crate) trait Store: Send + 'static {
    /// Writes until that is acknowledged, or so long that the client gives up.
    fn put(&mut self, key: String, value: String) -> impl Future<Output = Result<(), String>>;
}

/// A cluster of ours, through the client as it is.
pub(crate) struct Ours(Client);

/// The nodes of a cluster of ours.
pub(crate) struct Endpoints(pub(crate) Vec<String>);

/// What a client is made of, in the thread in which it is to work.
pub(crate) trait Connect: Send + 'static {
    /// The client.
    type Store: Store;
    /// Makes it.
    fn connect(self) -> Self::Store;
}

impl Connect for Endpoints {
    type Store = Ours;

    fn connect(self) -> Ours {
        let options = Options { timeout: WRITE_TIME_MAX, ..Options::default() };
        Ours(Client::connect(self.0, options).expect("the endpoints are valid"))
    }
}

impl Store for Ours {
    async fn put(&mut self, key: String, value: String) -> Result<(), String> {
        self.0.put(key, value).await.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// The clients at work, in a thread of their own.
pub(crate) struct Writers {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    /// When each write was acknowledged, in this order, and how long its client had waited.
    acknowledged: Vec<(Instant, Duration)>,
    failures: Vec<String>,
}

impl Writers {
    /// Starts the clients.
    pub(crate) fn start<C: Connect>(clients: Vec<C>) -> Writers {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let work = async {
                let each =
                    |(number, client): (usize, C)| write(client.connect(), number, &of_thread);
                futures::future::join_all(clients.into_iter().enumerate().map(each)).await;
            };
            executor.expect("an executor").block_on(work);
        });
        Writers { shared, thread }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.shared.noted.lock().expect("nobody panicked")
    }

    /// The number of acknowledged writes so far.
    pub(crate) fn count(&self) -> usize {
        self.noted().acknowledged.len()
    }

    /// Waits until further writes are acknowledged, but not longer than so; whether they were.
    pub(crate) async fn go_on(&self, writes: usize, longest: Duration) -> bool {
        let (begun, count) = (Instant::now(), self.count());
        while begun.elapsed() < longest {
            if self.count() >= count + writes {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    /// The longest time in which no write was acknowledged, of those that touch the span from here
    /// until now.
    pub(crate) fn gap_since(&self, from: Instant) -> Duration {
        let noted = self.noted();
        let first = noted.acknowledged.partition_point(|(at, _)| *at < from);
        let first = first.saturating_sub(1);
        let mut times: Vec<Instant> = noted.acknowledged[first..].iter().map(|a| a.0).collect();
        times.push(Instant::now());
        let gaps = times.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0]));
        gaps.max().unwrap_or_default()
    }

    /// The longest that one client had to wait for one write that ended from here on.
    pub(crate) fn longest_since(&self, from: Instant) -> Duration {
        let noted = self.noted();
        let ended = noted.acknowledged.iter().rev().take_while(|(ended, _)| *ended >= from);
        ended.map(|(_, took)| *took).max().unwrap_or_default()
    }

    /// Ends the clients: how many writes were acknowledged, and what failed.
    pub(crate) fn stop(self) -> (usize, Vec<String>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Writers { shared, thread } = self;
        thread.join().expect("the clients end");
        let noted = shared.noted.lock().expect("nobody panicked");
        (noted.acknowledged.len(), noted.failures.clone())
    }
}

async fn write(mut store: impl Store, number: usize, shared: &Shared) {
    for step in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("writer-{number}-{}", step % KEYS);
        let begun = Instant::now();
        let written = store.put(key, format!("value-{step}-of-a-writer")).await;
        let now = Instant::now();
        {
            let mut noted = shared.noted.lock().expect("nobody panicked");
            match written {
                Ok(()) => noted.acknowledged.push((now, now - begun)),
                Err(text) if noted.failures.len() < FAILURES_MAX => {
                    noted.failures.push(format!("writer {number}: {text}"));
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
