//! An engine in memory, for the simulator and for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::{Batch, Engine, EngineError, Renewal, Renewed, ScanLimit, Version, View};

/// An ordered map in memory. What was written survives the crash of a simulated process, because
/// the simulator keeps the engine: that is what [`Engine::write`] promises when it returns.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    inner: Mutex<Inner>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    records: BTreeMap<Bytes, Bytes>,
    failure: Option<EngineError>,
    /// Records that cannot be read.
    damaged: BTreeSet<Bytes>,
    /// Something was damaged since the last renewal.
    stuck: bool,
    /// What was written anew, and since.
    renewal: Option<BTreeMap<Bytes, Bytes>>,
    writes: u64,
    renewals: u64,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> MemoryEngine {
        MemoryEngine::default()
    }

    /// Another engine with the same records.
    #[must_use]
    pub fn copy(&self) -> MemoryEngine {
        let records = self.lock().records.clone();
        MemoryEngine { inner: Mutex::new(Inner { records, ..Inner::default() }) }
    }

    /// From now on every call fails with this text; none makes it work again.
    pub fn fail(&self, failure: Option<&str>) {
        self.lock().failure = failure.map(|text| EngineError(text.to_owned()));
    }

    /// Changes records as nothing but a bug can: without a trace.
    pub fn alter(&self, change: impl Fn(&[u8], &Bytes) -> Option<Bytes>) -> usize {
        let mut inner = self.lock();
        let altered = inner.records.iter().filter_map(|(k, v)| Some((k.clone(), change(k, v)?)));
        let altered: Vec<(Bytes, Bytes)> = altered.collect();
        let count = altered.len();
        inner.records.extend(altered);
        count
    }

    /// Damages the record at this place in the order of keys, or the one before: from now on it
    /// cannot be read, until it is written anew; and the engine is stuck until it is renewed.
    pub fn damage(&self, place: usize) -> Option<Bytes> {
        let mut inner = self.lock();
        let key = inner.records.keys().take(place + 1).last().cloned()?;
        inner.damaged.insert(key.clone());
        inner.stuck = true;
        Some(key)
    }

    /// The place in the order of keys of the first one that ends like this.
    pub fn place(&self, end: &[u8]) -> Option<usize> {
        self.lock().records.keys().position(|key| key.ends_with(end))
    }

    /// How many records it holds.
    pub fn records(&self) -> usize {
        self.lock().records.len()
    }

    /// How many batches were written to it.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// How often it was renewed.
    pub fn renewals(&self) -> u64 {
        self.lock().renewals
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic runs under the lock, so its content is whole in any case.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn working(&self) -> Result<MutexGuard<'_, Inner>, EngineError> {
        let inner = self.lock();
        match &inner.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(inner),
        }
    }
}

/// The smallest key behind this one.
fn behind(key: &[u8]) -> Bytes {
    let mut behind = key.to_vec();
    behind.push(0);
    Bytes::from(behind)
}

fn unreadable() -> EngineError {
    EngineError("a record has a wrong checksum".to_owned())
}

impl Inner {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if self.damaged.contains(key) {
            return Err(unreadable());
        }
        Ok(self.records.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut found: Vec<(Bytes, Bytes)> = Vec::new();
        let mut bytes = 0usize;
        if from >= to {
            return Ok(found);
        }
        let range = (Bound::Included(from), Bound::Excluded(to));
        for (key, value) in self.records.range::<[u8], _>(range) {
            bytes = bytes.saturating_add(key.len() + value.len());
            let full = found.len() >= limit.records || bytes > limit.bytes;
            if full && !found.is_empty() {
                break;
            }
            if self.damaged.contains(key) {
                return Err(unreadable());
            }
            found.push((key.clone(), value.clone()));
        }
        Ok(found)
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.working()?.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.working()?.scan(from, to, limit)
    }

    fn write(&self, batch: &Batch) -> Result<(), EngineError> {
        let mut inner = self.working()?;
        inner.writes += 1;
        for (key, value) in &batch.changes {
            inner.damaged.remove(key);
            let Inner { records, renewal, .. } = &mut *inner;
            for records in [Some(records), renewal.as_mut()].into_iter().flatten() {
                match value {
                    Some(value) => records.insert(key.clone(), value.clone()),
                    None => records.remove(key),
                };
            }
        }
        Ok(())
    }

    fn view(&self) -> View {
        let inner = self.lock();
        View(Arc::new(Copy { inner: Inner { renewal: None, failure: None, ..inner.clone() } }))
    }

    fn stuck(&self) -> Option<EngineError> {
        self.lock().stuck.then(|| EngineError::damage("the store cannot be compacted"))
    }

    fn renew(&self, step: &Renewal) -> Result<Renewed, EngineError> {
        let mut inner = self.working()?;
        let given_up = || EngineError("the renewal was given up".to_owned());
        match step {
            Renewal::Begin => {
                inner.renewal = Some(BTreeMap::new());
                Ok(Renewed::Begun)
            }
            Renewal::Copy { from, to, bytes } => {
                let limit = ScanLimit { records: usize::MAX, bytes: *bytes };
                let found = inner.scan(from, to, limit)?;
                let copied = found.iter().map(|(key, value)| (key.len() + value.len()) as u64);
                let (bytes, next) = (copied.sum(), found.last().map(|(key, _)| behind(key)));
                inner.renewal.as_mut().ok_or_else(given_up)?.extend(found);
                Ok(Renewed::Copied { bytes, next })
            }
            Renewal::End => {
                inner.records = inner.renewal.take().ok_or_else(given_up)?;
                inner.damaged.clear();
                inner.stuck = false;
                inner.renewals += 1;
                let bytes = |(key, value): (&Bytes, &Bytes)| (key.len() + value.len()) as u64;
                Ok(Renewed::Ended { bytes: inner.records.iter().map(bytes).sum() })
            }
            Renewal::GiveUp => {
                inner.renewal = None;
                Ok(Renewed::GivenUp)
            }
        }
    }
}

/// The records as they were at some time.
struct Copy {
    inner: Inner,
}

impl Version for Copy {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.inner.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.inner.scan(from, to, limit)
    }
}
