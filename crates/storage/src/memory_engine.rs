//! An engine in memory, for the simulator and for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::{Batch, Engine, EngineError, ScanLimit, Version, View};

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
    writes: u64,
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
    /// cannot be read, until it is written anew.
    pub fn damage(&self, place: usize) -> Option<Bytes> {
        let mut inner = self.lock();
        let key = inner.records.keys().take(place + 1).last().cloned()?;
        inner.damaged.insert(key.clone());
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
            match value {
                Some(value) => inner.records.insert(key.clone(), value.clone()),
                None => inner.records.remove(key),
            };
        }
        Ok(())
    }

    fn view(&self) -> View {
        let inner = self.lock();
        View(Arc::new(Copy { inner: Inner { writes: 0, failure: None, ..inner.clone() } }))
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
