//! What the clients write down, and what they are told to do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use client::{Client, Error};
use sim::history::History;

/// A call that has no answer by then will have none, on a machine that has other things to do.
const CALM_TIME_MAX: Duration = Duration::from_secs(60);
/// How many wrong answers are written down.
const WRONG_MAX: usize = 20;

/// What all clients share with who looks after them.
#[derive(Debug)]
pub(crate) struct Notes {
    began: Instant,
    /// Clients end.
    stop: AtomicBool,
    /// Clients make no call until told otherwise.
    rest: AtomicBool,
    /// From here on no call may fail.
    calm: AtomicBool,
    /// The number of the round, which is a part of the names of keys.
    round: AtomicU64,
    /// Calls under way.
    open: AtomicU64,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    history: History,
    wrong: Vec<String>,
    counts: Counts,
    last_write: Option<Instant>,
    /// What each of them held when it was written last.
    predicted: BTreeMap<String, Vec<u8>>,
}

/// How calls ended in a round.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// They were answered.
    pub(crate) acknowledged: u64,
    /// Whether they were executed is not known.
    pub(crate) unknown: u64,
    /// They were certainly not executed.
    pub(crate) refused: u64,
    /// The longest time in which no write was acknowledged.
    pub(crate) gap: Duration,
    /// The longest of the calls that were answered.
    pub(crate) longest: Duration,
}

/// A call under way.
pub(crate) struct Open<'a> {
    notes: &'a Notes,
    begun: Instant,
    calm: bool,
}

impl Notes {
    pub(crate) fn new() -> Notes {
        Notes {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            rest: AtomicBool::new(true),
            calm: AtomicBool::new(false),
            round: AtomicU64::new(0),
            open: AtomicU64::new(0),
            noted: Mutex::default(),
        }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the beginning, the unit of histories.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A round begins: clients work.
    pub(crate) fn begin(&self, round: u64) {
        self.noted().last_write = Some(Instant::now());
        self.round.store(round, Ordering::SeqCst);
        self.rest.store(false, Ordering::SeqCst);
    }

    /// From here on no call that begins may fail.
    pub(crate) fn calm(&self, is_calm: bool) {
        self.calm.store(is_calm, Ordering::SeqCst);
    }

    /// Clients begin no more calls.
    pub(crate) fn rest(&self) {
        self.rest.store(true, Ordering::SeqCst);
    }

    /// Clients end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    pub(crate) fn round(&self) -> u64 {
        self.round.load(Ordering::SeqCst)
    }

    /// A call begins, if one may. It is counted before that is looked at, so that nothing begins
    /// unseen when the clients are to rest.
    pub(crate) fn open(&self) -> Option<Open<'_>> {
        self.open.fetch_add(1, Ordering::SeqCst);
        let calm = self.calm.load(Ordering::SeqCst);
        let open = Open { notes: self, begun: Instant::now(), calm };
        (!self.rest.load(Ordering::SeqCst)).then_some(open)
    }

    /// Calls under way.
    pub(crate) fn opened(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }

    /// Changes the history.
    pub(crate) fn history<T>(&self, change: impl FnOnce(&mut History) -> T) -> T {
        change(&mut self.noted().history)
    }

    /// An answer was not as it must be.
    pub(crate) fn wrong(&self, text: String) {
        let mut noted = self.noted();
        if noted.wrong.len() < WRONG_MAX {
            noted.wrong.push(text);
        }
    }

    /// What was wrong so far.
    pub(crate) fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut self.noted().wrong)
    }

    /// How calls ended so far in this round.
    pub(crate) fn counts(&self) -> Counts {
        let noted = self.noted();
        let gap = noted.last_write.map(|last| last.elapsed()).unwrap_or_default();
        Counts { gap: noted.counts.gap.max(gap), ..noted.counts }
    }

    /// The history and the counts of the round that is over.
    pub(crate) fn take(&self) -> (History, Counts) {
        let counts = self.counts();
        let mut noted = self.noted();
        noted.counts = Counts::default();
        (std::mem::take(&mut noted.history), counts)
    }

    /// A client knows what a key of its own holds; none: it does not any more.
    pub(crate) fn holds(&self, key: &str, value: Option<&[u8]>) {
        let mut noted = self.noted();
        match value {
            Some(value) => noted.predicted.insert(key.to_owned(), value.to_vec()),
            None => noted.predicted.remove(key),
        };
    }

    /// What clients know of keys of their own.
    pub(crate) fn predicted(&self) -> BTreeMap<String, Vec<u8>> {
        self.noted().predicted.clone()
    }
}

impl Open<'_> {
    /// The client for the call: where no call may fail, it has the time that it needs.
    pub(crate) fn client(&self, client: &Client) -> Client {
        if self.calm { client.with_timeout(CALM_TIME_MAX) } else { client.clone() }
    }

    /// The call ended: counts it. What fails while no call may is wrong.
    pub(crate) fn ended<T>(self, ended: &Result<T, Error>, is_write: bool, what: &str) {
        let mut noted = self.notes.noted();
        match ended {
            Ok(_) => {
                noted.counts.acknowledged += 1;
                noted.counts.longest = noted.counts.longest.max(self.begun.elapsed());
                if is_write && let Some(last) = noted.last_write.replace(Instant::now()) {
                    noted.counts.gap = noted.counts.gap.max(last.elapsed());
                }
            }
            Err(Error::OutcomeUnknown(_)) => noted.counts.unknown += 1,
            Err(
                Error::Unavailable(_)
                | Error::Refused(_)
                | Error::NobodyReachable(_)
                | Error::Invalid(_),
            ) => noted.counts.refused += 1,
        }
        drop(noted);
        if let (true, Err(error)) = (self.calm, ended) {
            self.notes.wrong(format!("{what} failed although nothing did any more: {error}"));
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.notes.open.fetch_sub(1, Ordering::SeqCst);
    }
}
