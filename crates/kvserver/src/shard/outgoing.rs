//! A shard on its way out: what changed since the copying began, and what is told the destination.
//!
//! The scan and the deltas need no snapshot. The scan reads each record at some time after the
//! copying began; whatever changes after that beginning has a version above `x0`, and is read again
//! for a delta. The destination keeps the highest version of each record, so the order in which it
//! gets them does not matter.

use std::collections::BTreeMap;

use base::mutant::{self, Mutant};
use base::{CopyId, GroupId, ShardEpoch, Version};
use bytes::Bytes;
use replica_group::GroupStore;
use replica_group::sessions::SessionChange;
use replica_group::state_machine::{EngineError, ScanLimit};
use router::ShardState;

use crate::command::{Content, FinalPart, MovedRecord};
use crate::keys::{self, Kind};
use crate::record::{self, stored_version};
use crate::shard::{PAGE, Shard, join};

/// Some records of a scan, and where it goes on; none at the end.
type Chunk = (Vec<MovedRecord>, Option<Bytes>);

/// Which records changed since the copying began, and when each did last.
#[derive(Clone, Debug, Default)]
pub(super) struct Changed {
    latest: BTreeMap<(Kind, Bytes), Version>,
    /// The same in the order of the versions, with about the bytes of each record.
    order: BTreeMap<(Version, Kind, Bytes), usize>,
}

impl Changed {
    /// A record has this version now, or a tombstone of it has.
    pub(super) fn note(&mut self, kind: Kind, key: Bytes, version: Version, size: usize) {
        let place = self.latest.entry((kind, key.clone())).or_default();
        if *place > version {
            return;
        }
        let before = std::mem::replace(place, version);
        let key = (before, kind, key);
        self.order.remove(&key);
        self.order.insert((version, key.1, key.2), size);
    }

    fn after(&self, from: Version) -> impl Iterator<Item = (&(Version, Kind, Bytes), &usize)> {
        self.order.range((Version(from.0.saturating_add(1)), Kind::Data, Bytes::new())..)
    }
}

impl Shard {
    /// The copying begins: from now on every change is kept for the deltas.
    pub(crate) fn begin_out(
        &mut self,
        store: &mut GroupStore<'_>,
        mig: CopyId,
        dst: GroupId,
        changes: &mut Vec<SessionChange>,
    ) -> Result<(), EngineError> {
        // The scan reads the store, and must find there what is older than the first delta.
        self.settle_sessions(store, changes)?;
        self.meta.state = ShardState::Out { mig, dst };
        self.meta.migration_seen = mig;
        self.meta.x0 = Some(self.meta.changes);
        self.changed = Some(Changed::default());
        self.dirty = true;
        Ok(())
    }

    /// The shard is not served from here on, and changes no more.
    pub(crate) fn freeze(
        &mut self,
        store: &mut GroupStore<'_>,
        mig: CopyId,
        dst: GroupId,
        changes: &mut Vec<SessionChange>,
    ) -> Result<(), EngineError> {
        self.settle_sessions(store, changes)?;
        self.meta.state = ShardState::Frozen { mig, dst };
        self.dirty = true;
        Ok(())
    }

    /// The hand-off is aborted or refused: the shard is served as before.
    pub(crate) fn keep(&mut self) {
        self.meta.state = ShardState::Owned;
        self.meta.x0 = None;
        self.changed = None;
        self.bury_tombstones();
        self.dirty = true;
    }

    /// The hand-off will never begin here.
    pub(crate) fn never_out(&mut self, mig: CopyId) {
        self.meta.migration_seen = mig;
        self.dirty = true;
    }

    /// The destination serves: what is here is of no use any more.
    pub(crate) fn give_away(&mut self, dst: GroupId) {
        let epoch = ShardEpoch(self.meta.epoch.0 + 1);
        self.bury_copy(self.sessions.counters().rows + self.horizon_records());
        self.meta.state = ShardState::Moved { epoch, dst };
        self.meta.epoch = epoch;
        self.meta.x0 = None;
        self.changed = None;
        self.forget_content();
    }

    /// Finds again, after a restart, what changed since the copying began.
    pub(super) fn find_changed(&mut self, store: &GroupStore<'_>) -> Result<(), EngineError> {
        let Some(x0) = self.meta.x0 else { return Ok(()) };
        let mut changed = Changed::default();
        for kind in [Kind::Data, Kind::Session, Kind::Tombstone] {
            self.for_each(store, kind, |key, stored| {
                let version = stored_version(kind, &stored)?;
                if version <= x0 {
                    return Ok(());
                }
                // The key outlives the page that it was read with.
                let own = |key: &[u8]| Bytes::copy_from_slice(key);
                match (kind, key.split_first()) {
                    (Kind::Tombstone, Some((of, key))) => {
                        let of = if *of == Kind::Data as u8 { Kind::Data } else { Kind::Session };
                        changed.note(of, own(key), version, key.len());
                    }
                    (Kind::Data | Kind::Session | Kind::Tombstone | Kind::Meta, _) => {
                        changed.note(kind, own(&key), version, key.len() + stored.len());
                    }
                }
                Ok(())
            })?;
        }
        self.changed = Some(changed);
        Ok(())
    }

    /// A record was removed by the present command.
    pub(super) fn note_removed(
        &mut self,
        store: &mut GroupStore<'_>,
        kind: Kind,
        key: &[u8],
    ) -> Result<(), EngineError> {
        let version = self.version_next();
        let Some(changed) = &mut self.changed else { return Ok(()) };
        changed.note(kind, Bytes::copy_from_slice(key), version, key.len());
        let tombstone = keys::tombstone(self.id, self.meta.copy, kind, key);
        if self.meta.tombstones == 0 || store.get(&tombstone)?.is_none() {
            self.meta.tombstones += 1;
        }
        store.put(&tombstone, record::tombstone(version));
        Ok(())
    }

    /// The records of the copy from `start` on, and where the scan goes on. None where `start` is
    /// no place in it.
    pub(crate) fn chunk(
        &self,
        store: &GroupStore<'_>,
        start: &[u8],
        bytes_max: usize,
    ) -> Result<Option<Chunk>, EngineError> {
        let (mut kind, mut key) = match start.split_first() {
            None => (Kind::Data, Vec::new()),
            Some((kind, key)) if *kind == Kind::Data as u8 => (Kind::Data, key.to_vec()),
            Some((kind, key)) if *kind == Kind::Session as u8 => (Kind::Session, key.to_vec()),
            Some(_) => return Ok(None),
        };
        let (mut records, mut size) = (Vec::new(), 0);
        while records.is_empty() || size < bytes_max {
            let from = keys::record(self.id, self.meta.copy, kind, &key);
            let to = keys::prefix_end(self.id, self.meta.copy, kind);
            let limit = ScanLimit { bytes: (bytes_max - size.min(bytes_max)).max(1), ..PAGE };
            let page = store.scan(&from, &to, limit)?;
            let Some((last, _)) = page.last() else {
                match kind {
                    Kind::Data if mutant::is(Mutant::SessionsStay) => {
                        return Ok(Some((records, None)));
                    }
                    Kind::Data => (kind, key) = (Kind::Session, Vec::new()),
                    Kind::Session | Kind::Meta | Kind::Tombstone => {
                        return Ok(Some((records, None)));
                    }
                }
                continue;
            };
            key = last[keys::PREFIX_BYTES..].to_vec();
            key.push(0);
            for (key, stored) in page {
                let key = key.slice(keys::PREFIX_BYTES..);
                let record = MovedRecord { kind, key, content: Content::Present(stored) };
                size += record.size();
                records.push(record);
            }
        }
        key.insert(0, kind as u8);
        Ok(Some((records, Some(Bytes::from(key)))))
    }

    /// Every record that changed after the count `from`, and the count through which these are
    /// all of them: the present one, or where they become too many an earlier one. What one
    /// command changed is never parted.
    pub(crate) fn delta(
        &self,
        store: &GroupStore<'_>,
        from: Version,
        bytes_max: usize,
    ) -> Result<(Version, Vec<MovedRecord>), EngineError> {
        let Some(changed) = &self.changed else { return Ok((from, Vec::new())) };
        let (mut records, mut size): (Vec<MovedRecord>, usize) = (Vec::new(), 0);
        // The newest count of which every record is taken, and how many records those are.
        let (mut to, mut complete) = (from, 0);
        let mut present = from;
        for ((version, kind, key), _) in changed.after(from) {
            if *version != present {
                (to, complete, present) = (present, records.len(), *version);
            }
            let content = self.content(store, *kind, key, *version)?;
            let record = MovedRecord { kind: *kind, key: key.clone(), content };
            size += record.size();
            if size > bytes_max && complete > 0 {
                records.truncate(complete);
                return Ok((to, records));
            }
            records.push(record);
        }
        Ok((self.meta.changes, records))
    }

    /// About the bytes of what changed after the count `from`.
    pub(crate) fn lag_bytes(&self, from: Version) -> usize {
        let changed = self.changed.iter().flat_map(|changed| changed.after(from));
        changed.map(|((_, _, key), size)| key.len() + size).sum()
    }

    /// What the destination needs to begin, where it has everything through the count `from`.
    pub(crate) fn final_part(
        &self,
        store: &GroupStore<'_>,
        from: Version,
        bytes_max: usize,
    ) -> Result<FinalPart, EngineError> {
        let (to, records) = self.delta(store, from, bytes_max)?;
        Ok(FinalPart {
            shard: self.id,
            x0: self.meta.x0.unwrap_or_default(),
            from,
            to,
            records,
            keys: self.meta.keys,
            bytes: self.meta.bytes,
            digest: join(self.meta.digest),
            log_time: self.meta.log_time,
            sessions: self.sessions.counters(),
        })
    }

    /// What a record has that changed last at this version.
    fn content(
        &self,
        store: &GroupStore<'_>,
        kind: Kind,
        key: &[u8],
        version: Version,
    ) -> Result<Content, EngineError> {
        let stored = match kind {
            Kind::Data => store.get(&self.data_key(key))?,
            Kind::Session => self.sessions.record_at(store, key)?,
            Kind::Meta | Kind::Tombstone => unreachable!("a record that does not travel"),
        };
        if let Some(stored) = stored
            && stored_version(kind, &stored)? == version
        {
            return Ok(Content::Present(stored));
        }
        Ok(Content::Removed(version))
    }
}
