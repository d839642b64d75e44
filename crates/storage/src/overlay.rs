//! The write-back overlay: what was applied since the last flush, in memory, over the engine.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Batch, Engine, EngineError, ScanLimit, View};

/// What an entry costs in memory beyond its key and value, roughly, in bytes.
const ENTRY_BYTES: usize = 96;

/// Names a flush. The numbers grow by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlushId(pub u64);

/// A batch on its way to the engine. Whoever wrote it there with [`Engine::write`] reports it by
/// [`Overlay::flushed`]. To free a large batch takes milliseconds: a driver that keeps its share
/// until the next flush has them spent on the thread that flushes, and not within a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Names it.
    pub id: FlushId,
    /// The changes.
    pub batch: Arc<Batch>,
}

/// An ordered map: an engine, and over it the changes that it does not have yet.
///
/// Changes go into the *active* part. [`Overlay::freeze`] turns that into the *frozen* part, which
/// no longer changes while it is written to the engine, and of which there is at most one. Reads
/// see active over frozen over engine. All of it but the engine is lost in a crash; the write-ahead
/// log has it.
pub struct Overlay {
    engine: Arc<dyn Engine>,
    active: BTreeMap<Bytes, Option<Bytes>>,
    active_bytes: usize,
    frozen: Option<Flush>,
    frozen_bytes: usize,
    flush_next: u64,
}

impl Overlay {
    /// An overlay without changes.
    pub fn new(engine: Arc<dyn Engine>) -> Overlay {
        Overlay {
            engine,
            active: BTreeMap::new(),
            active_bytes: 0,
            frozen: None,
            frozen_bytes: 0,
            flush_next: 1,
        }
    }

    /// Sets the value of a key. A key or value that shares a larger buffer keeps all of it in
    /// memory until it is flushed.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.change(key, Some(value));
    }

    /// Removes a key, whether or not it is there.
    pub fn delete(&mut self, key: Bytes) {
        self.change(key, None);
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if let Some(change) = self.active.get(key) {
            return Ok(change.clone());
        }
        let frozen = self.frozen_changes();
        if let Ok(i) = frozen.binary_search_by(|(k, _)| k.as_ref().cmp(key)) {
            return Ok(frozen[i].1.clone());
        }
        self.engine.get(key)
    }

    /// The records with `from <= key < to`, in order, until `limit` is reached.
    pub fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let mut changes = Changes::new(self, from, to);
        let mut stored = Stored::new(&*self.engine, from, to, limit);
        let mut records = Vec::new();
        let mut bytes = 0usize;
        loop {
            stored.fill()?;
            let record = match (changes.key(), stored.key()) {
                (None, None) => break,
                (Some(key), Some(stored_key)) if key > stored_key => stored.take(),
                (None, Some(_)) => stored.take(),
                (Some(key), stored_key) => {
                    if stored_key == Some(key) {
                        stored.take();
                    }
                    changes.take()
                }
            };
            let Some((key, value)) = record else { continue };
            let size = key.len() + value.len();
            let full = records.len() >= limit.records || bytes.saturating_add(size) > limit.bytes;
            if full && !records.is_empty() {
                break;
            }
            bytes = bytes.saturating_add(size);
            records.push((key, value));
        }
        Ok(records)
    }

    /// What the engine holds now, without the changes.
    pub fn view(&self) -> View {
        self.engine.view()
    }

    /// About how much memory the changes take that no flush has begun with, in bytes.
    pub fn bytes(&self) -> usize {
        self.active_bytes
    }

    /// About how much memory the flush under way takes, in bytes; 0 where there is none.
    pub fn frozen_bytes(&self) -> usize {
        self.frozen_bytes
    }

    /// Begins a flush of all changes, `extra` among them as if put last: what must become durable
    /// together with the changes, such as the slots through which they were applied. Returns none
    /// and changes nothing where a flush is under way already, or where there is nothing to flush.
    pub fn freeze(&mut self, extra: Vec<(Bytes, Option<Bytes>)>) -> Option<Flush> {
        if self.frozen.is_some() {
            return None;
        }
        for (key, value) in extra {
            self.change(key, value);
        }
        if self.active.is_empty() {
            return None;
        }
        let changes = std::mem::take(&mut self.active).into_iter().collect();
        self.frozen_bytes = std::mem::take(&mut self.active_bytes);
        let id = FlushId(self.flush_next);
        self.flush_next += 1;
        let flush = Flush { id, batch: Arc::new(Batch { changes }) };
        self.frozen = Some(flush.clone());
        Some(flush)
    }

    /// The flush is durable in the engine.
    pub fn flushed(&mut self, id: FlushId) {
        let frozen = self.frozen.take().map(|flush| flush.id);
        assert!(frozen == Some(id), "{id:?} was reported, under way was {frozen:?}");
        self.frozen_bytes = 0;
    }

    /// Whether a flush is under way.
    pub fn is_flushing(&self) -> bool {
        self.frozen.is_some()
    }

    fn change(&mut self, key: Bytes, value: Option<Bytes>) {
        let key_bytes = key.len();
        let value_bytes = value.as_ref().map_or(0, Bytes::len);
        match self.active.entry(key) {
            btree_map::Entry::Vacant(entry) => {
                entry.insert(value);
                self.active_bytes += key_bytes + value_bytes + ENTRY_BYTES;
            }
            btree_map::Entry::Occupied(mut entry) => {
                let old = entry.insert(value);
                self.active_bytes += value_bytes;
                self.active_bytes -= old.map_or(0, |old| old.len());
            }
        }
    }

    fn frozen_changes(&self) -> &[(Bytes, Option<Bytes>)] {
        self.frozen.as_ref().map_or(&[], |flush| &flush.batch.changes)
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("active", &self.active.len())
            .field("active_bytes", &self.active_bytes)
            .field("frozen", &self.frozen.as_ref().map(|flush| flush.id))
            .finish_non_exhaustive()
    }
}

/// The changes of a range, active over frozen.
struct Changes<'a> {
    active: std::iter::Peekable<btree_map::Range<'a, Bytes, Option<Bytes>>>,
    frozen: &'a [(Bytes, Option<Bytes>)],
}

impl<'a> Changes<'a> {
    fn new(overlay: &'a Overlay, from: &[u8], to: &[u8]) -> Changes<'a> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        let frozen = overlay.frozen_changes();
        let start = frozen.partition_point(|(key, _)| key.as_ref() < from);
        let end = frozen.partition_point(|(key, _)| key.as_ref() < to);
        Changes {
            active: overlay.active.range::<[u8], _>(range).peekable(),
            frozen: &frozen[start..end],
        }
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        let active = self.active.peek().map(|&(key, _)| key.as_ref());
        let frozen = self.frozen.first().map(|(key, _)| key.as_ref());
        match (active, frozen) {
            (Some(active), Some(frozen)) => Some(active.min(frozen)),
            (active, frozen) => active.or(frozen),
        }
    }

    /// The next change's record; none where it is a removal.
    fn take(&mut self) -> Option<(Bytes, Bytes)> {
        let key = self.key()?;
        let frozen = match self.frozen.split_first() {
            Some((change, rest)) if change.0.as_ref() == key => {
                self.frozen = rest;
                Some((&change.0, &change.1))
            }
            Some(_) | None => None,
        };
        let active = self.active.next_if(|(active, _)| active.as_ref() == key);
        let (key, value) = active.or(frozen)?;
        value.clone().map(|value| (key.clone(), value))
    }
}

/// The engine's records of a range, read a page at a time: how many of them the changes hide is
/// not known before.
struct Stored<'a> {
    engine: &'a dyn Engine,
    from: Vec<u8>,
    to: &'a [u8],
    limit: ScanLimit,
    page: std::vec::IntoIter<(Bytes, Bytes)>,
    ended: bool,
}

impl<'a> Stored<'a> {
    fn new(engine: &'a dyn Engine, from: &[u8], to: &'a [u8], limit: ScanLimit) -> Stored<'a> {
        let limit = ScanLimit { records: limit.records.max(1), bytes: limit.bytes };
        Stored {
            engine,
            from: from.to_vec(),
            to,
            limit,
            page: Vec::new().into_iter(),
            ended: false,
        }
    }

    fn fill(&mut self) -> Result<(), EngineError> {
        if self.ended || !self.page.as_slice().is_empty() {
            return Ok(());
        }
        let page = self.engine.scan(&self.from, self.to, self.limit)?;
        match page.last() {
            Some((key, _)) => {
                self.from.clear();
                self.from.extend_from_slice(key);
                // The smallest key behind this one.
                self.from.push(0);
            }
            None => self.ended = true,
        }
        self.page = page.into_iter();
        Ok(())
    }

    fn key(&self) -> Option<&[u8]> {
        self.page.as_slice().first().map(|(key, _)| key.as_ref())
    }

    fn take(&mut self) -> Option<(Bytes, Bytes)> {
        self.page.next()
    }
}
