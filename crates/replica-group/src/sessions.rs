//! Sessions: a request executes at most once, however often it is sent (`docs/sharding.md` 11.12).
//!
//! A table remembers for each client which of its requests were executed, and what they were
//! answered. It is a part of a state machine: what it knows it knows from the log alone, so that
//! every replica answers a repeated request with the same bytes.
//!
//! A table is a range of records under a prefix that its owner chooses:
//!
//! ```text
//! prefix            format u8, version u64, horizon u64
//! prefix client     format u8, version u64, first_incomplete u64, max_stamp u64, last_time u64,
//!                   then for each answer, by number: number u64, length u32, reply
//! ```
//!
//! All numbers are big-endian. The version is the owner's count of changes at the record's last
//! change, as for every record.
//!
//! Memory is bounded by forgetting, and forgetting is safe by the horizon. A row that is removed
//! raises the horizon to its highest stamp; a request that no row knows and whose stamp is not
//! above the horizon may be a repetition of something forgotten, and is never executed. No clock is
//! trusted for this: a wrong stamp makes a request be refused, not executed twice.
//!
//! Rows that are in use are kept in memory and written when the state machine settles: a busy
//! client then costs one write of its row for each flush, not for each request. What is written
//! when changes nothing of what the table answers.

mod row;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use base::limits::{SESSION_BYTES_MAX, SESSION_OPEN_MAX, SESSION_ROWS_MAX, STAMP_AHEAD_MILLIS_MAX};
use base::mutant::{self, Mutant};
use base::{ClientId, RequestNumber, Version, WallMillis};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use storage::{EngineError, ScanLimit};

use crate::sessions::row::{CLIENT_BYTES, FORMAT, Row, RowSummary};
pub use crate::sessions::row::{is_record, record_content, record_version, row_key};
use crate::state_machine::GroupStore;

/// The session table of one shard, or of the shard master.
///
/// Invariants:
/// - the store has every row but those that are dirty here, and none that is not in the table;
/// - `counters` count the rows as they are, dirty ones included.
#[derive(Clone, Debug)]
pub struct Sessions {
    prefix: Vec<u8>,
    counters: SessionCounters,
    /// The rows that were used since the last settling or in the time before it.
    rows: BTreeMap<ClientId, Row>,
}

/// What a table knows of itself without reading its rows. Its owner stores it when it settles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct SessionCounters {
    /// Rows.
    #[n(0)]
    pub rows: u64,
    /// Bytes of cached replies.
    #[n(1)]
    pub bytes: u64,
    /// No row has a `last_time` below this.
    #[n(2)]
    pub oldest: WallMillis,
    /// The highest stamp that was forgotten.
    #[n(3)]
    pub horizon: WallMillis,
}

/// Who asks: the same for all attempts of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The client.
    pub client: ClientId,
    /// Its number for the request.
    pub number: RequestNumber,
    /// The client asks for no answer below this number any more.
    pub first_incomplete: RequestNumber,
    /// The client's time when it sent the request first.
    pub stamp: WallMillis,
}

/// What is to be done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was never executed: execute it, and record the reply.
    New,
    /// It was executed, and this was the reply.
    Repeat(Bytes),
    /// The client has closed it.
    Stale,
    /// It may have been executed and forgotten.
    Expired {
        /// Stamps above this one count as new.
        horizon: WallMillis,
    },
    /// Its stamp is too far ahead to be remembered: forgetting it would raise the horizon above
    /// everybody else's stamps.
    TooFar {
        /// The time that it was compared with.
        log_time: WallMillis,
    },
    /// The client has so many answers open, in number or in bytes, that no more are kept.
    Full,
}

/// A record of the table that changed, for its owner's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionChange {
    /// The key behind the table's prefix.
    pub key: Vec<u8>,
    /// The record before.
    pub before: Option<Bytes>,
    /// The record now.
    pub after: Option<Bytes>,
}

/// Rows are read for eviction in pages of this size.
const PAGE: ScanLimit = ScanLimit { records: 256, bytes: 1 << 20 };
/// A full table is emptied by this part of its bound at once, because finding the oldest rows
/// costs a reading of all.
const EVICTED_PART: u64 = 16;
/// Beyond this many bytes of open answers a client gets no more of them.
const CLIENT_BYTES_MAX: usize = SESSION_BYTES_MAX / 2;
/// A row with more bytes of answers is written at once and not kept in memory.
const KEPT_BYTES_MAX: u64 = 16 << 10;

impl Sessions {
    /// The table under this prefix, with the counters that were stored with it.
    pub fn new(prefix: Vec<u8>, counters: SessionCounters) -> Sessions {
        Sessions { prefix, counters, rows: BTreeMap::new() }
    }

    /// What the owner stores beside the records.
    pub fn counters(&self) -> SessionCounters {
        self.counters
    }

    /// What is to be done with a request that the log orders now. `log_time` includes the time of
    /// its own command.
    pub fn check(
        &mut self,
        store: &GroupStore<'_>,
        identity: &Identity,
        log_time: WallMillis,
    ) -> Result<Verdict, EngineError> {
        let first_asked = identity.first_incomplete.min(identity.number);
        let mut is_full = false;
        if let Some(row) = self.load(store, identity.client)? {
            if identity.number < row.first_incomplete {
                return Ok(Verdict::Stale);
            }
            if let Ok(index) = row.answers.binary_search_by_key(&identity.number, |(n, _)| *n) {
                return Ok(Verdict::Repeat(row.answers[index].1.clone()));
            }
            let (open, bytes) = row.open_from(first_asked);
            is_full = open >= SESSION_OPEN_MAX || bytes >= CLIENT_BYTES_MAX as u64;
        }
        if identity.stamp <= self.counters.horizon {
            return Ok(Verdict::Expired { horizon: self.counters.horizon });
        }
        if identity.stamp.0 > log_time.0.saturating_add(STAMP_AHEAD_MILLIS_MAX) {
            return Ok(Verdict::TooFar { log_time });
        }
        Ok(if is_full { Verdict::Full } else { Verdict::New })
    }

    /// Remembers that a request was executed, in the same step in which [`Sessions::check`] found
    /// that it was new. Where that makes the table too large, the rows that were idle longest are
    /// forgotten. Whether the client's row was settled before and is not now: an owner of many
    /// tables counts these, to keep what a settling has to write within bounds.
    pub fn record(
        &mut self,
        store: &mut GroupStore<'_>,
        identity: &Identity,
        reply: Bytes,
        log_time: WallMillis,
        version: Version,
        changes: &mut Vec<SessionChange>,
    ) -> Result<bool, EngineError> {
        let counters = &mut self.counters;
        let row = self.rows.entry(identity.client).or_insert_with(|| {
            // It was looked for when the request was checked: the client is new.
            let empty = counters.rows == 0;
            counters.oldest = if empty { log_time } else { counters.oldest.min(log_time) };
            counters.rows += 1;
            Row::default()
        });
        let (bytes_before, was_dirty) = (row.bytes, row.dirty);
        row.record(identity, reply, log_time, version);
        counters.bytes = counters.bytes + row.bytes - bytes_before;
        let is_large = row.bytes > KEPT_BYTES_MAX;
        let is_over =
            counters.rows > SESSION_ROWS_MAX as u64 || counters.bytes > SESSION_BYTES_MAX as u64;
        if is_large || is_over {
            self.settle(store, changes);
        }
        if is_over {
            self.evict_oldest(store, identity.client, version, changes)?;
        }
        Ok(!was_dirty && !is_large && !is_over)
    }

    /// Writes the rows that changed. Called when the owner settles.
    pub fn settle(&mut self, store: &mut GroupStore<'_>, changes: &mut Vec<SessionChange>) {
        let prefix = &self.prefix;
        self.rows.retain(|client, row| {
            row.settle(prefix, *client, store, changes);
            std::mem::take(&mut row.used) && row.bytes <= KEPT_BYTES_MAX
        });
    }

    /// Writes the row of one client, if it changed.
    pub fn settle_row(
        &mut self,
        store: &mut GroupStore<'_>,
        client: ClientId,
        changes: &mut Vec<SessionChange>,
    ) {
        if let Some(row) = self.rows.get_mut(&client) {
            row.settle(&self.prefix, client, store, changes);
        }
    }

    /// What settling would change now.
    pub fn unsettled(&self) -> Vec<SessionChange> {
        self.rows.iter().filter_map(|(client, row)| row.unsettled(*client)).collect()
    }

    /// The record behind the prefix with this key, as settling would leave it.
    pub fn record_at(
        &self,
        store: &GroupStore<'_>,
        key: &[u8],
    ) -> Result<Option<Bytes>, EngineError> {
        let client = key.try_into().ok().map(|key| ClientId(u128::from_be_bytes(key)));
        match client.and_then(|client| self.rows.get(&client)) {
            Some(row) if row.dirty => Ok(Some(row.encode())),
            Some(_) | None => store.get(&self.key(key)),
        }
    }

    /// The bytes of a client's row as settling would leave it; 0 where it is not in memory.
    pub fn row_bytes(&self, client: ClientId) -> usize {
        self.rows.get(&client).map_or(0, Row::encoded_bytes)
    }

    /// Forgets all rows whose last request is older than `before`. Whether there were any.
    pub fn expire(
        &mut self,
        store: &mut GroupStore<'_>,
        before: WallMillis,
        version: Version,
        changes: &mut Vec<SessionChange>,
    ) -> Result<bool, EngineError> {
        self.settle(store, changes);
        let rows = self.stored_rows(store)?;
        let kept = &self.rows;
        let spared =
            |row: &RowSummary| mutant::is(Mutant::ExpiryByMemory) && kept.contains_key(&row.client);
        let evicted: Vec<RowSummary> =
            rows.into_iter().filter(|row| row.last_time < before && !spared(row)).collect();
        let found = !evicted.is_empty();
        self.evict(store, evicted, version, changes)?;
        self.counters.oldest = self.counters.oldest.max(before);
        Ok(found)
    }

    /// Whether some row may be older than `before`, so that [`Sessions::expire`] is worth a
    /// command.
    pub fn may_expire(&self, before: WallMillis) -> bool {
        self.counters.rows > 0 && self.counters.oldest < before
    }

    /// The row of a client, if it has one, from now on in memory.
    fn load(
        &mut self,
        store: &GroupStore<'_>,
        client: ClientId,
    ) -> Result<Option<&Row>, EngineError> {
        let key = row_key(client);
        let row = match self.rows.entry(client) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(place) => {
                let mut full = self.prefix.clone();
                full.extend_from_slice(&key);
                let Some(stored) = store.get(&full)? else { return Ok(None) };
                place.insert(Row::read(stored)?)
            }
        };
        row.used = true;
        Ok(Some(row))
    }

    /// Makes room below the bounds, sparing the client whose request is being recorded.
    fn evict_oldest(
        &mut self,
        store: &mut GroupStore<'_>,
        spared: ClientId,
        version: Version,
        changes: &mut Vec<SessionChange>,
    ) -> Result<(), EngineError> {
        let part = |bound: usize| bound as u64 - bound as u64 / EVICTED_PART;
        let (rows_max, bytes_max) = (part(SESSION_ROWS_MAX), part(SESSION_BYTES_MAX));
        let (mut rows, mut bytes) = (self.counters.rows, self.counters.bytes);
        let mut found = self.stored_rows(store)?;
        found.sort_by_key(|row| (row.last_time, row.client));
        let mut evicted = Vec::new();
        for row in found {
            if rows <= rows_max && bytes <= bytes_max {
                break;
            }
            if row.client != spared {
                rows -= 1;
                bytes -= row.bytes;
                evicted.push(row);
            }
        }
        self.evict(store, evicted, version, changes)
    }

    fn evict(
        &mut self,
        store: &mut GroupStore<'_>,
        evicted: Vec<RowSummary>,
        version: Version,
        changes: &mut Vec<SessionChange>,
    ) -> Result<(), EngineError> {
        let mut horizon = self.counters.horizon;
        for row in evicted {
            let key = row_key(row.client).to_vec();
            self.rows.remove(&row.client);
            store.delete(&self.key(&key));
            changes.push(SessionChange { key, before: Some(row.stored), after: None });
            horizon = horizon.max(row.max_stamp);
            self.counters.rows -= 1;
            self.counters.bytes -= row.bytes;
        }
        if horizon > self.counters.horizon && !mutant::is(Mutant::HorizonStays) {
            self.counters.horizon = horizon;
            let before = store.get(&self.prefix)?;
            let mut after = vec![FORMAT];
            after.extend_from_slice(&version.0.to_be_bytes());
            after.extend_from_slice(&horizon.0.to_be_bytes());
            let after = Bytes::from(after);
            store.put(&self.prefix, after.clone());
            changes.push(SessionChange { key: Vec::new(), before, after: Some(after) });
        }
        Ok(())
    }

    /// All rows; called when the store has them all.
    fn stored_rows(&self, store: &GroupStore<'_>) -> Result<Vec<RowSummary>, EngineError> {
        let mut rows = Vec::new();
        // The horizon's key is the prefix alone, the one before every row's.
        let mut from = self.key(&row_key(ClientId(0)));
        let to = self.key(&[u8::MAX; CLIENT_BYTES + 1]);
        loop {
            let page = store.scan(&from, &to, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(rows) };
            from.clear();
            from.extend_from_slice(last);
            from.push(0);
            for (key, stored) in page {
                rows.push(RowSummary::read(&key[self.prefix.len()..], stored)?);
            }
        }
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::with_capacity(self.prefix.len() + key.len());
        full.extend_from_slice(&self.prefix);
        full.extend_from_slice(key);
        full
    }
}
