//! What the clients of a run do: one call after another on a few keys, each recorded in the
//! history, some with a predicted answer.

use std::collections::BTreeMap;

use base::{Micros, Random, Version};
use bytes::Bytes;
use router::{Answer, Body, CallError, Consistency, HashKind, KvOp, Reply};

use crate::cluster::is_refusal;
use crate::history::{self, CallNumber, Ending, Expected, History, Operation, Sees};

/// What a workload is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadOptions {
    /// Clients that do anything on keys that they share.
    pub mixed: usize,
    /// Clients that append elements to one key that they share.
    pub appending: usize,
    /// Clients that chain hashes on a key of their own, each answer predicted.
    pub chaining: usize,
    /// Clients that append elements to a key of their own, each answer predicted.
    pub owning: usize,
    /// Keys that mixed clients share.
    pub keys: usize,
    /// The longest pause between two calls.
    pub think_max: Micros,
    /// Of a hundred reads so many need not see the newest value.
    pub relaxed: u64,
    /// The longest value in bytes, beyond what makes it different from others.
    pub value_bytes_max: u64,
}

impl WorkloadOptions {
    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.mixed + self.appending + self.chaining + self.owning
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Mixed,
    Appending,
    Chaining,
    Owning,
}

#[derive(Debug)]
struct Worker {
    role: Role,
    /// Values written so far; makes each different.
    written: u64,
    /// The call under way.
    open: Option<(CallNumber, Operation, Bytes)>,
    /// Chaining, owning: the value that the key has, if known.
    value: Option<Option<Bytes>>,
}

/// The clients' work.
#[derive(Debug)]
pub struct Workload {
    options: WorkloadOptions,
    random: Random,
    workers: Vec<Worker>,
    history: History,
    /// The newest version that a client saw of each key.
    versions: BTreeMap<Bytes, u64>,
    answered: u64,
    unknown: u64,
    last_error: Option<CallError>,
}

impl Workload {
    /// Work for as many clients as the options have.
    pub fn new(random: Random, options: WorkloadOptions) -> Workload {
        let roles = std::iter::repeat_n(Role::Mixed, options.mixed)
            .chain(std::iter::repeat_n(Role::Appending, options.appending))
            .chain(std::iter::repeat_n(Role::Chaining, options.chaining))
            .chain(std::iter::repeat_n(Role::Owning, options.owning));
        let worker = |role| Worker { role, written: 0, open: None, value: Some(None) };
        let workers = roles.map(worker).collect();
        Workload {
            options,
            random,
            workers,
            history: History::new(),
            versions: BTreeMap::new(),
            answered: 0,
            unknown: 0,
            last_error: None,
        }
    }

    /// What was recorded so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Calls answered, and calls with an unknown outcome.
    pub fn counts(&self) -> (u64, u64) {
        (self.answered, self.unknown)
    }

    /// Reads that were answered and need not have seen the newest value.
    pub fn looks(&self) -> u64 {
        let looks = self.history.calls().iter().filter(|call| {
            matches!(call.operation, Operation::Look(_))
                && matches!(call.ending, Ending::Answered { .. })
        });
        looks.count() as u64
    }

    /// The newest error that a call ended with.
    pub fn last_error(&self) -> Option<&CallError> {
        self.last_error.as_ref()
    }

    /// Whether a worker waits for an answer.
    pub fn is_open(&self, worker: usize) -> bool {
        self.workers[worker].open.is_some()
    }

    /// How long a worker waits before its next call.
    pub fn think(&mut self) -> Micros {
        Micros(self.random.below(self.options.think_max.0 + 1))
    }

    /// The next call of a worker, and what it may see if it is a read.
    pub fn begin(&mut self, worker: usize, time: Micros) -> (Body, Consistency) {
        let (key, operation) = match self.workers[worker].role {
            Role::Mixed => self.mixed(worker),
            Role::Appending => self.appending(worker),
            Role::Chaining => self.chaining(worker),
            Role::Owning => self.owning(worker),
        };
        let number = self.history.begin(worker as u64, time.0, key.clone(), operation.clone());
        let call = (body(&key, &operation), sees(&operation));
        self.workers[worker].open = Some((number, operation, key));
        call
    }

    /// A read that may see an older value now and then; of a key of the worker's own, only such that
    /// has all that the worker wrote.
    fn read(&mut self, own: bool) -> Operation {
        if !self.random.chance(self.options.relaxed, 100) {
            return Operation::Get;
        }
        if own || self.random.chance(1, 2) {
            return Operation::Look(Sees::Session);
        }
        let spans = [0, 50, 300, 1_000, 5_000];
        let millis = self.random.pick(&spans).copied().unwrap_or_default();
        Operation::Look(Sees::Bounded(millis * 1_000))
    }

    /// A read of a key by a worker, as its next call.
    pub fn begin_read(&mut self, worker: usize, time: Micros, key: &Bytes) -> Body {
        let number = self.history.begin(worker as u64, time.0, key.clone(), Operation::Get);
        self.workers[worker].open = Some((number, Operation::Get, key.clone()));
        body(key, &Operation::Get)
    }

    /// The keys that were worked on.
    pub fn keys(&self) -> Vec<Bytes> {
        self.history.by_key().into_keys().collect()
    }

    fn mixed(&mut self, worker: usize) -> (Bytes, Operation) {
        let index = self.random.below(self.options.keys as u64);
        // Every third key shares a hash tag, and so a slot and a shard.
        let key = if index.is_multiple_of(3) {
            Bytes::from(format!("{{tag}}{index}"))
        } else {
            Bytes::from(format!("key{index}"))
        };
        let value = self.value(worker);
        let operation = match self.random.below(10) {
            0..=2 => self.read(false),
            3 | 4 => Operation::Put(value),
            5 => Operation::PutHash(value),
            6 => Operation::Delete,
            7 => Operation::Append(value),
            8 => {
                let version = self.versions.get(&key).copied().unwrap_or(0);
                Operation::CompareAndSwap { expected: Expected::Version(version), value }
            }
            _ => {
                // A value that this or another worker may have written last.
                let other = self.random.below(self.workers.len() as u64) as usize;
                let written = self.workers[other].written;
                let expected = Bytes::from(format!("{other}.{written};"));
                Operation::CompareAndSwap { expected: Expected::Value(expected), value }
            }
        };
        (key, operation)
    }

    fn appending(&mut self, worker: usize) -> (Bytes, Operation) {
        let key = Bytes::from_static(b"list");
        if self.random.chance(1, 4) {
            return (key, self.read(false));
        }
        self.workers[worker].written += 1;
        let element = format!("{worker}.{};", self.workers[worker].written);
        (key, Operation::Append(Bytes::from(element)))
    }

    fn chaining(&mut self, worker: usize) -> (Bytes, Operation) {
        let key = chain_key(worker);
        if self.random.chance(1, 4) {
            return (key, self.read(true));
        }
        (key, Operation::PutHash(self.value(worker)))
    }

    fn owning(&mut self, worker: usize) -> (Bytes, Operation) {
        self.workers[worker].written += 1;
        let element = format!("{worker}.{};", self.workers[worker].written);
        (own_key(worker), Operation::Append(Bytes::from(element)))
    }

    /// A value that nobody else writes.
    fn value(&mut self, worker: usize) -> Bytes {
        self.workers[worker].written += 1;
        let mut value = format!("{worker}.{};", self.workers[worker].written).into_bytes();
        if self.options.value_bytes_max > 0 && self.random.chance(1, 4) {
            let more = self.random.below(self.options.value_bytes_max) as usize;
            value.resize(value.len() + more, b'.');
        }
        Bytes::from(value)
    }

    /// A worker's call ended. An error is an answer that contradicts a prediction.
    pub fn end(
        &mut self,
        worker: usize,
        time: Micros,
        result: Result<Reply, CallError>,
    ) -> Result<(), String> {
        let Some((number, operation, key)) = self.workers[worker].open.take() else {
            return Err(format!("client {worker} is answered a call that it did not make"));
        };
        let reply = match result {
            Ok(reply) => reply,
            Err(error) => {
                self.on_error(worker, number, &operation, &error);
                self.last_error = Some(error);
                return Ok(());
            }
        };
        let version = reply.header.version.0;
        let Ok(Some(answer)) = reply.body.as_ref().map(answer_of) else {
            return Err(format!("{operation:?} is answered {reply:?}"));
        };
        self.answered += 1;
        // A removed record has no version of its own.
        let deleted = matches!(answer, history::Answer::Deleted(_));
        let version = (!deleted).then_some(version);
        self.versions.insert(key.clone(), version.unwrap_or(0));
        self.history.answered(number, time.0, answer.clone(), version);
        if key == chain_key(worker) {
            self.check_chain(worker, &operation, &answer)
        } else if key == own_key(worker) {
            self.check_own(worker, &operation, &answer)
        } else {
            Ok(())
        }
    }

    fn on_error(
        &mut self,
        worker: usize,
        number: CallNumber,
        operation: &Operation,
        error: &CallError,
    ) {
        if is_refusal(error) {
            self.history.refused(number);
        } else {
            self.unknown += 1;
            if !matches!(operation, Operation::Get | Operation::Look(_)) {
                self.workers[worker].value = None;
            }
        }
    }

    fn check_own(
        &mut self,
        worker: usize,
        operation: &Operation,
        answer: &history::Answer,
    ) -> Result<(), String> {
        let Some(value) = &self.workers[worker].value else { return Ok(()) };
        let expected = match operation {
            Operation::Append(element) => {
                let value = [value.as_deref().unwrap_or_default(), element].concat();
                let expected = history::Answer::Appended(value.len() as u64);
                self.workers[worker].value = Some(Some(Bytes::from(value)));
                expected
            }
            Operation::Get | Operation::Look(Sees::Session) => {
                history::Answer::Value(value.clone())
            }
            Operation::Look(Sees::Bounded(_))
            | Operation::Put(_)
            | Operation::PutHash(_)
            | Operation::Delete
            | Operation::CompareAndSwap { .. } => return Ok(()),
        };
        if *answer != expected {
            return Err(format!(
                "client {worker} is told {answer:?} of its own key, and it must be {expected:?}"
            ));
        }
        Ok(())
    }

    fn check_chain(
        &mut self,
        worker: usize,
        operation: &Operation,
        answer: &history::Answer,
    ) -> Result<(), String> {
        let history::Answer::Value(told) = answer else {
            return Err(format!("{operation:?} is answered {answer:?}"));
        };
        if let Some(value) = &self.workers[worker].value
            && value != told
        {
            return Err(format!(
                "client {worker} is told {told:?} on its chain, and it must be {value:?}"
            ));
        }
        // A write with an unknown outcome may still come behind a read. Behind the client's next
        // write it cannot: that one has told the session that the number is done with.
        if let Operation::PutHash(added) = operation {
            let value = Bytes::from(fnv(told.as_ref(), added).to_string());
            self.workers[worker].value = Some(Some(value));
        }
        Ok(())
    }

    /// How many calls of the history have no known outcome.
    pub fn open_ends(&self) -> usize {
        self.history.calls().iter().filter(|call| call.ending == Ending::Unknown).count()
    }
}

/// The key on which a worker chains hashes, and nobody else writes.
fn chain_key(worker: usize) -> Bytes {
    Bytes::from(format!("chain{worker}"))
}

/// The key to which a worker appends, and nobody else.
fn own_key(worker: usize) -> Bytes {
    Bytes::from(format!("own{worker}"))
}

/// FNV-1a of 32 bits over a value and what is put behind it.
pub fn fnv(before: Option<&Bytes>, added: &[u8]) -> u32 {
    let bytes = before.into_iter().flatten().chain(added);
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The request of an operation.
pub fn body(key: &Bytes, operation: &Operation) -> Body {
    let key = key.clone();
    Body::Kv(match operation.clone() {
        Operation::Get | Operation::Look(_) => KvOp::Get { key },
        Operation::Put(value) => KvOp::Put { key, value },
        Operation::PutHash(value) => KvOp::PutHash { key, value, hash: HashKind::Fnv1a32 },
        Operation::Delete => KvOp::Delete { key },
        Operation::Append(value) => KvOp::Append { key, value },
        Operation::CompareAndSwap { expected, value } => {
            let expected = match expected {
                Expected::Value(value) => router::Expected::Value(value),
                Expected::Version(version) => router::Expected::Version(Version(version)),
            };
            KvOp::CompareAndSwap { key, expected, value }
        }
    })
}

/// What an operation may see. The history counts in microseconds.
pub fn sees(operation: &Operation) -> Consistency {
    match operation {
        Operation::Look(Sees::Session) => Consistency::Sequential(None),
        Operation::Look(Sees::Bounded(span)) => Consistency::Bounded(span / 1_000),
        Operation::Get
        | Operation::Put(_)
        | Operation::PutHash(_)
        | Operation::Delete
        | Operation::Append(_)
        | Operation::CompareAndSwap { .. } => Consistency::Linearizable,
    }
}

/// The history's word for an answer; none for one that no operation on a key has.
pub fn answer_of(answer: &Answer) -> Option<history::Answer> {
    match answer {
        Answer::Value(value) => Some(history::Answer::Value(value.clone())),
        Answer::Done => Some(history::Answer::Done),
        Answer::Deleted(there) => Some(history::Answer::Deleted(*there)),
        Answer::Appended(len) => Some(history::Answer::Appended(*len)),
        Answer::Swapped(done) => Some(history::Answer::Swapped(*done)),
        Answer::Master(_) | Answer::Cluster(_) | Answer::Handoff(_) => None,
    }
}
