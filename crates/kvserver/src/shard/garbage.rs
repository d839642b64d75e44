//! What is of no use any more: copies of a shard that was handed over or refused, and tombstones
//! that no hand-off needs. It is deleted by commands, a slice at a time, so that replicas stay
//! equal and no turn takes long.

use base::CopyId;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use replica_group::GroupStore;
use replica_group::sessions::Sessions;
use replica_group::state_machine::{EngineError, ScanLimit};
use router::ShardState;

use crate::command::Command;
use crate::keys::{self, Kind};
use crate::shard::Shard;

/// Records of no use: all of a copy that is not served or growing, else its tombstones.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub(crate) struct Garbage {
    /// The copy.
    #[n(0)]
    pub(crate) copy: CopyId,
    /// What lies before is deleted; a key without the copy's prefix.
    #[cbor(n(1), with = "base::codec::payload")]
    pub(crate) from: Bytes,
    /// What is left to delete, in records.
    #[n(2)]
    pub(crate) records: u64,
}

/// Most that one command deletes.
const SLICE: ScanLimit = ScanLimit { records: 256, bytes: 256 << 10 };

impl Shard {
    /// Nobody serves the copy any more.
    pub(super) fn bury_copy(&mut self, session_records: u64) {
        let records = self.meta.keys + session_records + self.meta.tombstones;
        self.bury(records);
        self.meta.tombstones = 0;
    }

    /// No hand-off needs the tombstones any more.
    pub(super) fn bury_tombstones(&mut self) {
        self.bury(self.meta.tombstones);
    }

    fn bury(&mut self, records: u64) {
        let copy = self.meta.copy;
        self.meta.garbage.retain(|garbage| garbage.copy != copy);
        if records > 0 {
            self.meta.garbage.push(Garbage { copy, from: Bytes::new(), records });
        }
        self.dirty = true;
    }

    /// What is kept in memory of a copy that is gone.
    pub(super) fn forget_content(&mut self) {
        self.meta.keys = 0;
        self.meta.bytes = 0;
        self.meta.digest = (0, 0);
        self.meta.tombstones = 0;
        self.sessions = Sessions::new(Vec::new(), Default::default());
        self.dirty = true;
    }

    /// Whether the copy with the shard's present number is served or grows.
    pub(super) fn has_copy(&self) -> bool {
        match self.meta.state {
            ShardState::Owned
            | ShardState::Out { .. }
            | ShardState::Frozen { .. }
            | ShardState::In { .. } => true,
            ShardState::Moved { .. } | ShardState::Refused { .. } => false,
        }
    }

    pub(super) fn is_dead(&self, copy: CopyId) -> bool {
        copy != self.meta.copy || !self.has_copy()
    }

    /// What is to be deleted next.
    pub(crate) fn garbage(&self) -> Option<Command> {
        let may_go =
            |garbage: &&Garbage| self.is_dead(garbage.copy) || self.meta.state == ShardState::Owned;
        let garbage = self.meta.garbage.iter().find(may_go)?;
        let from = garbage.from.clone();
        Some(Command::GcSlice { shard: self.id, copy: garbage.copy, from })
    }

    /// Deletes the next slice, where it begins as the command says.
    pub(crate) fn collect(
        &mut self,
        store: &mut GroupStore<'_>,
        copy: CopyId,
        from: &Bytes,
    ) -> Result<(), EngineError> {
        let next = |garbage: &Garbage| garbage.copy == copy && garbage.from == *from;
        let Some(at) = self.meta.garbage.iter().position(next) else { return Ok(()) };
        let is_dead = self.is_dead(copy);
        if !is_dead && self.meta.state != ShardState::Owned {
            return Ok(());
        }
        let (start, end) = keys::copy_range(self.id, copy);
        let start = if is_dead { start } else { keys::prefix(self.id, copy, Kind::Tombstone) };
        let mut begin = start[..keys::COPY_PREFIX_BYTES].to_vec();
        begin.extend_from_slice(from);
        let page = store.scan(&begin.max(start), &end, SLICE)?;
        for (key, _) in &page {
            store.delete(key);
        }
        let deleted = page.len() as u64;
        self.dirty = true;
        if !is_dead {
            self.meta.tombstones = self.meta.tombstones.saturating_sub(deleted);
        }
        let mut rest = page.last().map_or_else(Vec::new, |(key, _)| key.to_vec());
        rest.push(0);
        let is_last = page.is_empty()
            || store.scan(&rest, &end, ScanLimit { records: 1, bytes: 0 })?.is_empty();
        if is_last {
            self.meta.garbage.remove(at);
        } else if let Some(garbage) = self.meta.garbage.get_mut(at) {
            garbage.from = Bytes::copy_from_slice(&rest[keys::COPY_PREFIX_BYTES..]);
            garbage.records = garbage.records.saturating_sub(deleted);
        }
        Ok(())
    }

    /// Copies of no use, and records of no use, that are not yet deleted.
    pub(super) fn dead(&self) -> (u32, u64) {
        let garbage = &self.meta.garbage;
        let copies = garbage.iter().filter(|garbage| self.is_dead(garbage.copy)).count();
        let records = garbage.iter().map(|garbage| garbage.records).sum();
        (u32::try_from(copies).unwrap_or(u32::MAX), records)
    }
}
