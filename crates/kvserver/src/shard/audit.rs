//! Comparing what a shard says of itself with its records. For tests and simulation.

use std::collections::BTreeMap;

use bytes::Bytes;
use replica_group::GroupStore;
use replica_group::state_machine::EngineError;
use router::ShardState;

use crate::keys::{self, Kind};
use crate::record::{Record, session_contribution, stored_version};
use crate::shard::{PAGE, Shard, join};

/// What the records of a copy amount to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    digest: u128,
    keys: u64,
    bytes: u64,
    session_records: u64,
    tombstones: u64,
}

impl Shard {
    /// Reads every record, one by one.
    pub(crate) fn audit(&self, store: &GroupStore<'_>) -> Result<Result<(), String>, EngineError> {
        if let Some(wrong) = self.audit_copies(store)? {
            return Ok(Err(wrong));
        }
        if !self.has_copy() {
            return Ok(Ok(()));
        }
        let mut found = Sum::default();
        for (key, stored) in self.all(store, Kind::Data)? {
            let record = Record::decode(&stored)?;
            if Record::new(record.version, record.value.clone()) != record {
                return Ok(Err(format!("{}: a value does not match its hash", self.id)));
            }
            found.digest = found.digest.wrapping_add(record.contribution(&key));
            found.keys += 1;
            found.bytes += (key.len() + record.value.len()) as u64;
        }
        let mut records: BTreeMap<Bytes, Bytes> =
            self.all(store, Kind::Session)?.into_iter().collect();
        let mut settled = self.meta.clone();
        let mut unsettled = self.sessions.unsettled();
        for change in &unsettled {
            records.extend(change.after.clone().map(|after| (change.key.clone().into(), after)));
        }
        settled.take_changes(&mut unsettled)?;
        found.session_records = records.len() as u64;
        for (key, stored) in records {
            found.digest = found.digest.wrapping_add(session_contribution(&key, &stored)?);
        }
        found.tombstones = self.all(store, Kind::Tombstone)?.len() as u64;
        let session_records = match &self.meta.incoming {
            Some(incoming) => incoming.session_records,
            None => self.sessions.counters().rows + self.horizon_records(),
        };
        let said = Sum {
            digest: join(settled.digest),
            keys: self.meta.keys,
            bytes: self.meta.bytes,
            session_records,
            tombstones: self.meta.tombstones,
        };
        if found != said {
            let id = self.id;
            return Ok(Err(format!("{id}: the records give {found:?}, the shard says {said:?}")));
        }
        self.audit_changed(store)
    }

    /// No record may be of a copy that is neither here nor listed as garbage; none that was
    /// deleted may be there.
    fn audit_copies(&self, store: &GroupStore<'_>) -> Result<Option<String>, EngineError> {
        let (mut from, _) = keys::copy_range(self.id, keys::NO_COPY);
        let (_, to) = keys::copy_range(self.id, base::CopyId(u64::MAX));
        let mut found: BTreeMap<base::CopyId, u64> = BTreeMap::new();
        loop {
            let page = store.scan(&from, &to, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            from = last.to_vec();
            from.push(0);
            for (key, _) in page {
                let Some((_, copy)) = keys::parse(&key) else { continue };
                *found.entry(copy).or_default() += 1;
                let garbage = self.meta.garbage.iter().find(|garbage| garbage.copy == copy);
                let deleted = |from: &Bytes| key[keys::COPY_PREFIX_BYTES..] < from[..];
                if self.is_dead(copy) && garbage.is_some_and(|garbage| deleted(&garbage.from)) {
                    return Ok(Some(format!("{}: {key:02x?} should be deleted", self.id)));
                }
            }
        }
        found.remove(&keys::NO_COPY);
        if self.has_copy() {
            found.remove(&self.meta.copy);
        }
        for garbage in self.meta.garbage.iter().filter(|garbage| self.is_dead(garbage.copy)) {
            let records = found.remove(&garbage.copy).unwrap_or_default();
            if records != garbage.records {
                let (id, copy, said) = (self.id, garbage.copy, garbage.records);
                return Ok(Some(format!("{id}: {said} records of {copy} left, not {records}")));
            }
        }
        Ok(found.first_key_value().map(|(copy, _)| {
            format!("{}: there are records of {copy}, of which nothing is known", self.id)
        }))
    }

    /// Each record above `x0` must be in the index of what changed, and nothing else.
    fn audit_changed(&self, store: &GroupStore<'_>) -> Result<Result<(), String>, EngineError> {
        match self.meta.state {
            ShardState::Out { .. } | ShardState::Frozen { .. } => {}
            ShardState::Owned
            | ShardState::Moved { .. }
            | ShardState::In { .. }
            | ShardState::Refused { .. } => return Ok(Ok(())),
        }
        let Some(x0) = self.meta.x0 else {
            return Ok(Err(format!("{}: a hand-off without a beginning", self.id)));
        };
        let (_, changed) = self.delta(store, x0, usize::MAX)?;
        for kind in [Kind::Data, Kind::Session] {
            for (key, stored) in self.all(store, kind)? {
                let is_new = stored_version(kind, &stored)? > x0;
                let is_listed = changed.iter().any(|of| of.kind == kind && of.key == key);
                if is_new && !is_listed {
                    return Ok(Err(format!("{}: {key:02x?} changed unseen", self.id)));
                }
            }
        }
        Ok(Ok(()))
    }
}
