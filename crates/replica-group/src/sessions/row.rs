//! The row of one client: its answers, and its form in the store.

use std::ops::Range;

use base::{ClientId, RequestNumber, Version, WallMillis};
use bytes::Bytes;

use crate::sessions::{Identity, SessionChange};
use crate::state_machine::{EngineError, GroupStore};

/// What eviction needs to know of a row.
#[derive(Debug)]
pub(super) struct RowSummary {
    pub(super) client: ClientId,
    pub(super) last_time: WallMillis,
    pub(super) max_stamp: WallMillis,
    pub(super) bytes: u64,
    pub(super) stored: Bytes,
}

impl RowSummary {
    pub(super) fn read(key: &[u8], stored: Bytes) -> Result<RowSummary, EngineError> {
        let client = key.try_into().map_err(|_| damaged())?;
        let client = ClientId(u128::from_be_bytes(client));
        let row = Row::read(stored.clone())?;
        Ok(RowSummary {
            client,
            last_time: row.last_time,
            max_stamp: row.max_stamp,
            bytes: row.bytes,
            stored,
        })
    }
}

/// A client's row.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) version: Version,
    pub(super) first_incomplete: RequestNumber,
    pub(super) max_stamp: WallMillis,
    pub(super) last_time: WallMillis,
    /// The answers that are still open, by number.
    pub(super) answers: Vec<(RequestNumber, Bytes)>,
    /// The bytes of these answers.
    pub(super) bytes: u64,
    /// The row as the store has it; none before it was first written.
    pub(super) stored: Option<Bytes>,
    /// Whether the row is newer than `stored`.
    pub(super) dirty: bool,
    /// Whether it was used since the last settling.
    pub(super) used: bool,
}

impl Row {
    pub(super) fn read(stored: Bytes) -> Result<Row, EngineError> {
        let number = |at: usize| -> Result<u64, EngineError> {
            let bytes = stored.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_be_bytes).ok_or_else(damaged)
        };
        if stored.first() != Some(&FORMAT) {
            return Err(damaged());
        }
        let version = record_version(&stored)?;
        let first_incomplete = RequestNumber(number(9)?);
        let (max_stamp, last_time) = (WallMillis(number(17)?), WallMillis(number(25)?));
        let (mut answers, mut bytes) = (Vec::new(), 0);
        let mut at = ROW_HEADER_BYTES;
        while at < stored.len() {
            let length = stored.get(at + 8..at + ANSWER_HEADER_BYTES);
            let length = length.and_then(|bytes| bytes.try_into().ok()).ok_or_else(damaged)?;
            let from = at + ANSWER_HEADER_BYTES;
            let to = from + u32::from_be_bytes(length) as usize;
            if to > stored.len() {
                return Err(damaged());
            }
            answers.push((RequestNumber(number(at)?), stored.slice(from..to)));
            bytes += (to - from) as u64;
            at = to;
        }
        Ok(Row {
            version,
            first_incomplete,
            max_stamp,
            last_time,
            answers,
            bytes,
            stored: Some(stored),
            dirty: false,
            used: false,
        })
    }

    /// How many answers would be open, with how many bytes, if the client closed what is below
    /// `first`.
    pub(super) fn open_from(&self, first: RequestNumber) -> (usize, u64) {
        let closed = self.answers.partition_point(|(number, _)| *number < first);
        let closed_bytes: u64 = self.answers[..closed].iter().map(|(_, r)| r.len() as u64).sum();
        (self.answers.len() - closed, self.bytes - closed_bytes)
    }

    /// Takes the answer to a request, and drops those that the client has closed.
    pub(super) fn record(
        &mut self,
        of: &Identity,
        reply: Bytes,
        log_time: WallMillis,
        version: Version,
    ) {
        let first = self.first_incomplete.max(of.first_incomplete.min(of.number));
        self.first_incomplete = first;
        self.max_stamp = self.max_stamp.max(of.stamp);
        self.last_time = self.last_time.max(log_time);
        self.version = version;
        let closed = self.answers.partition_point(|(number, _)| *number < first);
        for (_, reply) in self.answers.drain(..closed) {
            self.bytes -= reply.len() as u64;
        }
        self.bytes += reply.len() as u64;
        let at = self.answers.partition_point(|(number, _)| *number < of.number);
        self.answers.insert(at, (of.number, reply));
        self.dirty = true;
        self.used = true;
    }

    pub(super) fn settle(
        &mut self,
        prefix: &[u8],
        client: ClientId,
        store: &mut GroupStore<'_>,
        changes: &mut Vec<SessionChange>,
    ) {
        if let Some(change) = self.unsettled(client) {
            let mut key = Vec::with_capacity(prefix.len() + CLIENT_BYTES);
            key.extend_from_slice(prefix);
            key.extend_from_slice(&change.key);
            self.stored.clone_from(&change.after);
            self.dirty = false;
            store.put(&key, self.stored.clone().unwrap_or_default());
            changes.push(change);
        }
    }

    pub(super) fn unsettled(&self, client: ClientId) -> Option<SessionChange> {
        self.dirty.then(|| SessionChange {
            key: row_key(client).to_vec(),
            before: self.stored.clone(),
            after: Some(self.encode()),
        })
    }

    pub(super) fn encoded_bytes(&self) -> usize {
        ROW_HEADER_BYTES + self.bytes as usize + self.answers.len() * ANSWER_HEADER_BYTES
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_bytes());
        out.push(FORMAT);
        let stamps = (self.max_stamp.0, self.last_time.0);
        for number in [self.version.0, self.first_incomplete.0, stamps.0, stamps.1] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for (number, reply) in &self.answers {
            let Ok(length) = u32::try_from(reply.len()) else {
                unreachable!("a reply of {} bytes", reply.len());
            };
            out.extend_from_slice(&number.0.to_be_bytes());
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(reply);
        }
        Bytes::from(out)
    }
}

/// The version of a record of a table.
pub fn record_version(record: &[u8]) -> Result<Version, EngineError> {
    let version = record.get(VERSION_AT).and_then(|bytes| bytes.try_into().ok());
    version.map(|bytes| Version(u64::from_be_bytes(bytes))).ok_or_else(damaged)
}

/// What of a record of a table its digest covers besides key and version.
pub fn record_content(record: &[u8]) -> &[u8] {
    record.get(VERSION_AT.end..).unwrap_or(&[])
}

/// Whether these bytes can be a record of a table, under this key behind its prefix.
pub fn is_record(key: &[u8], record: &Bytes) -> bool {
    match key.len() {
        0 => record.first() == Some(&FORMAT) && record.len() == HORIZON_BYTES,
        CLIENT_BYTES => Row::read(record.clone()).is_ok(),
        _ => false,
    }
}

pub(super) const CLIENT_BYTES: usize = 16;

/// The key of a client's row behind the table's prefix.
pub fn row_key(client: ClientId) -> [u8; CLIENT_BYTES] {
    client.0.to_be_bytes()
}

fn damaged() -> EngineError {
    EngineError("a session record is damaged".to_string())
}

pub(super) const FORMAT: u8 = 1;
/// Where the version stands in a record of the table, and what comes before its content.
const VERSION_AT: Range<usize> = 1..9;
pub(super) const ROW_HEADER_BYTES: usize = 33;
const ANSWER_HEADER_BYTES: usize = 12;
/// The length of the record of the horizon.
const HORIZON_BYTES: usize = 17;
