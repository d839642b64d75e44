//! What a cluster must hold: keys with numbered values, of which each was acknowledged or not.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use base::Random;
use client::{Client, Options};

/// Clients at a time that write or read all keys.
const PARALLEL: u64 = 16;
/// How many wrong values are told.
const WRONG_MAX: usize = 5;

/// The keys and what is known of their values.
pub(crate) struct Contents {
    keys: u64,
    value_bytes: usize,
    known: RefCell<Vec<Known>>,
    sequence: Cell<u64>,
}

/// The value of one key.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The number that was acknowledged last; 0 where none was.
    acknowledged: u64,
    /// Numbers sent since, of which it is not known whether they are written.
    open: Vec<u64>,
}

/// What stands at the beginning of every value, for those who look for values on disks.
pub(crate) const MARK: &[u8] = b"value of key ";

impl Contents {
    /// No key is written yet.
    pub(crate) fn new(keys: u64, value_bytes: usize) -> Contents {
        let known = RefCell::new(vec![Known::default(); keys as usize]);
        Contents { keys, value_bytes, known, sequence: Cell::new(0) }
    }

    /// How many keys there are.
    pub(crate) fn keys(&self) -> u64 {
        self.keys
    }

    /// The number of the newest value.
    pub(crate) fn newest(&self) -> u64 {
        self.sequence.get()
    }

    /// Writes every key once.
    pub(crate) async fn fill(&self, endpoints: &[String]) -> Result<(), String> {
        let each = (0..PARALLEL).map(|worker| async move {
            let client = client(endpoints, Duration::from_secs(60));
            for key in (worker..self.keys).step_by(PARALLEL as usize) {
                self.write(&client, key).await?;
            }
            Ok(())
        });
        futures::future::join_all(each).await.into_iter().collect()
    }

    /// Overwrites keys at random until it is told to stop; each client has keys of its own. How many
    /// writes were acknowledged.
    pub(crate) async fn overwrite(
        &self,
        endpoints: &[String],
        seed: u64,
        stop: &Cell<bool>,
    ) -> u64 {
        let each = (0..PARALLEL).map(|worker| async move {
            // The nodes may be killed for good: then nobody answers any more.
            let client = client(endpoints, Duration::from_secs(3));
            let mut random = Random::new(seed * PARALLEL + worker);
            let mut written = 0;
            while !stop.get() {
                let key = worker + random.below(self.keys / PARALLEL) * PARALLEL;
                written += u64::from(self.write(&client, key).await.is_ok());
            }
            written
        });
        futures::future::join_all(each).await.into_iter().sum()
    }

    async fn write(&self, client: &Client, key: u64) -> Result<(), String> {
        let number = self.sequence.get() + 1;
        self.sequence.set(number);
        self.known.borrow_mut()[key as usize].open.push(number);
        let written = client.put(name(key), self.value(key, number)).await;
        written.map_err(|error| error.to_string())?;
        // What was sent before and had no answer can come later still.
        let known = &mut self.known.borrow_mut()[key as usize];
        known.open.retain(|open| *open != number);
        known.acknowledged = number;
        Ok(())
    }

    fn value(&self, key: u64, number: u64) -> String {
        let start = format!("{}{key:08} number {number:08} ", String::from_utf8_lossy(MARK));
        let filler = "-".repeat(self.value_bytes.saturating_sub(start.len()));
        start + &filler
    }

    /// Reads every key: what is not as it must be.
    pub(crate) async fn check(&self, endpoints: &[String]) -> Vec<String> {
        let each = (0..PARALLEL).map(|worker| async move {
            let client = client(endpoints, Duration::from_secs(20));
            let mut wrong = Vec::new();
            for key in (worker..self.keys).step_by(PARALLEL as usize) {
                match client.get(name(key)).await {
                    Ok(done) => wrong.extend(self.judge(key, done.value.as_deref())),
                    Err(error) => wrong.push(format!("key {key}: {error}")),
                }
                if !wrong.is_empty() {
                    break;
                }
            }
            wrong
        });
        let mut wrong: Vec<String> =
            futures::future::join_all(each).await.into_iter().flatten().collect();
        wrong.truncate(WRONG_MAX);
        wrong
    }

    fn judge(&self, key: u64, held: Option<&[u8]>) -> Option<String> {
        let known = &self.known.borrow()[key as usize];
        let allowed = std::iter::once(known.acknowledged).chain(known.open.iter().copied());
        let is = |number: u64| match number {
            0 => held.is_none(),
            _ => held == Some(self.value(key, number).as_bytes()),
        };
        let held_text = String::from_utf8_lossy(held.unwrap_or(b"nothing"));
        let shown: String = held_text.chars().take(50).collect();
        (!allowed.clone().any(is)).then(|| format!("key {key} holds {shown:?}, not {known:?}"))
    }
}

fn name(key: u64) -> String {
    format!("contents-{key:08}")
}

fn client(endpoints: &[String], timeout: Duration) -> Client {
    let options = Options { timeout, ..Options::default() };
    Client::connect(endpoints.to_vec(), options).expect("the endpoints are valid")
}
