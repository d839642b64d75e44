//! One shard of the group: its own record, its keys and its sessions.

use std::collections::BTreeMap;

use base::{ClientId, CopyId, GroupId, ShardEpoch, ShardId, Version, WallMillis};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use replica_group::GroupStore;
use replica_group::sessions::{Identity, SessionChange, SessionCounters, Sessions};
use replica_group::state_machine::{EngineError, ScanLimit};
use router::{ReplyHeader, ShardState, ShardStatus};

use crate::keys::{self, Kind};
use crate::record::{Record, session_contribution};

/// A shard in memory: what it knows of itself; its records are in the store.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    id: ShardId,
    meta: Meta,
    sessions: Sessions,
    /// Whether the store's copy of `meta` is older.
    dirty: bool,
}

/// The shard's own record. All of it follows from the log, so that replicas can be compared by it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Meta {
    /// How often the shard has changed hands.
    #[n(0)]
    pub(crate) epoch: ShardEpoch,
    /// The copy that is served.
    #[n(1)]
    pub(crate) copy: CopyId,
    /// Whether the group serves it.
    #[n(2)]
    pub(crate) state: ShardState,
    /// The applied commands that changed any of its records.
    #[n(3)]
    pub(crate) changes: Version,
    /// The highest time of its commands.
    #[n(4)]
    pub(crate) log_time: WallMillis,
    /// Its keys.
    #[n(5)]
    pub(crate) keys: u64,
    /// The bytes of its keys and values.
    #[n(6)]
    pub(crate) bytes: u64,
    /// The upper and the lower half of its digest: the wrapping sum of the contributions of all
    /// keys and session records.
    #[n(7)]
    pub(crate) digest: (u64, u64),
    /// The highest migration seen: a command of a lower one comes too late.
    #[n(8)]
    pub(crate) migration_seen: CopyId,
    /// What its session table knows of itself.
    #[n(9)]
    pub(crate) sessions: SessionCounters,
}

/// The records are read in pages of this size by whoever reads all of them.
const PAGE: ScanLimit = ScanLimit { records: 1_024, bytes: 4 << 20 };

impl Shard {
    /// A new, empty shard that the group owns.
    pub(crate) fn create(id: ShardId, epoch: ShardEpoch, copy: CopyId) -> Shard {
        let meta = Meta {
            epoch,
            copy,
            state: ShardState::Owned,
            changes: Version(0),
            log_time: WallMillis(0),
            keys: 0,
            bytes: 0,
            digest: (0, 0),
            migration_seen: copy,
            sessions: SessionCounters::default(),
        };
        Shard { dirty: true, ..Shard::with_meta(id, meta) }
    }

    fn with_meta(id: ShardId, meta: Meta) -> Shard {
        let prefix = keys::prefix(id, meta.copy, Kind::Session);
        let sessions = Sessions::new(prefix, meta.sessions);
        Shard { id, meta, sessions, dirty: false }
    }

    /// The shard as the store has it, if it has this copy.
    pub(crate) fn open(
        id: ShardId,
        copy: CopyId,
        store: &GroupStore<'_>,
    ) -> Result<Option<Shard>, EngineError> {
        let Some(bytes) = store.get(&keys::record(id, copy, Kind::Meta, &[]))? else {
            return Ok(None);
        };
        let damaged = |what: String| EngineError(format!("the record of {id} is damaged: {what}"));
        if bytes.first() != Some(&META_FORMAT) {
            return Err(damaged("its format is unknown".to_string()));
        }
        let meta: Meta = base::codec::decode(&bytes.slice(1..)).map_err(|e| damaged(e.0))?;
        Ok(Some(Shard::with_meta(id, meta)))
    }

    /// Writes what changed and is only in memory: sessions, and the shard's own record.
    pub(crate) fn settle(
        &mut self,
        store: &mut GroupStore<'_>,
        changes: &mut Vec<SessionChange>,
    ) -> Result<(), EngineError> {
        if self.dirty {
            self.dirty = false;
            self.sessions.settle(store, changes);
            self.take_changes(changes)?;
            let key = keys::record(self.id, self.meta.copy, Kind::Meta, &[]);
            store.put(&key, self.meta_record());
        }
        Ok(())
    }

    /// The shard's own record as it is stored once everything is settled.
    fn meta_record(&self) -> Bytes {
        let mut out = vec![META_FORMAT];
        let meta = Meta { sessions: self.sessions.counters(), ..self.meta };
        base::codec::encode_into(&meta, &mut out);
        Bytes::from(out)
    }

    /// The shard's own record as settling would write it now.
    pub(crate) fn settled_record(&self) -> Result<Bytes, EngineError> {
        let mut shard = self.clone();
        shard.take_changes(&mut self.sessions.unsettled())?;
        Ok(shard.meta_record())
    }

    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub(crate) fn sessions_mut(&mut self) -> &mut Sessions {
        &mut self.sessions
    }

    pub(crate) fn is_owned(&self) -> bool {
        match self.meta.state {
            ShardState::Owned | ShardState::Out { .. } => true,
            ShardState::Frozen { .. }
            | ShardState::Moved { .. }
            | ShardState::In { .. }
            | ShardState::Refused { .. } => false,
        }
    }

    /// A command of this time is applied; answers the shard's log time.
    pub(crate) fn advance(&mut self, time: WallMillis) -> WallMillis {
        if time > self.meta.log_time {
            self.meta.log_time = time;
            self.dirty = true;
        }
        self.meta.log_time
    }

    /// The version of what the present command changes.
    pub(crate) fn version_next(&self) -> Version {
        Version(self.meta.changes.0 + 1)
    }

    /// The present command changed records.
    pub(crate) fn count_change(&mut self) {
        self.meta.changes = self.version_next();
        self.dirty = true;
    }

    /// The record of a key.
    pub(crate) fn get(
        &self,
        store: &GroupStore<'_>,
        key: &[u8],
    ) -> Result<Option<Record>, EngineError> {
        let stored = store.get(&self.data_key(key))?;
        stored.as_ref().map(Record::decode).transpose()
    }

    /// Sets the value of a key, whose record was `before`, with the present command's version.
    pub(crate) fn put(
        &mut self,
        store: &mut GroupStore<'_>,
        key: &[u8],
        before: Option<&Record>,
        value: Bytes,
    ) {
        self.uncount(key, before);
        let record = Record::new(self.version_next(), value);
        self.meta.keys += 1;
        self.meta.bytes += (key.len() + record.value.len()) as u64;
        self.add_to_digest(record.contribution(key));
        store.put(&self.data_key(key), record.encode());
        self.dirty = true;
    }

    /// Removes a key, whose record was `before`.
    pub(crate) fn delete(&mut self, store: &mut GroupStore<'_>, key: &[u8], before: &Record) {
        self.uncount(key, Some(before));
        store.delete(&self.data_key(key));
        self.dirty = true;
    }

    /// Remembers the reply to a request with the present command's version. Whether that left one
    /// more row to be settled.
    pub(crate) fn record_reply(
        &mut self,
        store: &mut GroupStore<'_>,
        identity: &Identity,
        reply: Bytes,
        changes: &mut Vec<SessionChange>,
    ) -> Result<bool, EngineError> {
        let (time, version) = (self.meta.log_time, self.version_next());
        let unsettled = self.sessions.record(store, identity, reply, time, version, changes)?;
        self.take_changes(changes)?;
        Ok(unsettled)
    }

    /// Settles the row of one client.
    pub(crate) fn settle_row(
        &mut self,
        store: &mut GroupStore<'_>,
        client: ClientId,
        changes: &mut Vec<SessionChange>,
    ) -> Result<(), EngineError> {
        self.sessions.settle_row(store, client, changes);
        self.take_changes(changes)
    }

    /// Forgets idle sessions. Whether there were any.
    pub(crate) fn expire_sessions(
        &mut self,
        store: &mut GroupStore<'_>,
        before: WallMillis,
        changes: &mut Vec<SessionChange>,
    ) -> Result<bool, EngineError> {
        let changed = self.sessions.expire(store, before, self.version_next(), changes)?;
        self.dirty = true;
        self.take_changes(changes)?;
        Ok(changed)
    }

    /// What a reply of this shard says besides its answer.
    pub(crate) fn header(&self, group: GroupId, version: Version) -> ReplyHeader {
        ReplyHeader {
            group: Some(group),
            shard: Some(self.id),
            shard_epoch: Some(self.meta.epoch),
            version,
            stamp: self.meta.log_time,
            ..ReplyHeader::default()
        }
    }

    pub(crate) fn status(&self, group: GroupId, leading: bool) -> ShardStatus {
        ShardStatus {
            shard: self.id,
            group,
            leading,
            state: self.meta.state,
            epoch: self.meta.epoch,
            keys: self.meta.keys,
            bytes: self.meta.bytes,
            version: self.meta.changes,
            dead_copies: 0,
            dead_records: 0,
        }
    }

    /// Compares what the shard says of itself with its records, read one by one.
    pub(crate) fn audit(&self, store: &GroupStore<'_>) -> Result<Result<(), String>, EngineError> {
        let (mut digest, mut keys, mut bytes) = (0_u128, 0_u64, 0_u64);
        for (key, stored) in self.all(store, Kind::Data)? {
            let record = Record::decode(&stored)?;
            if Record::new(record.version, record.value.clone()) != record {
                return Ok(Err(format!("{}: a value does not match its hash", self.id)));
            }
            digest = digest.wrapping_add(record.contribution(&key));
            keys += 1;
            bytes += (key.len() + record.value.len()) as u64;
        }
        let mut records: BTreeMap<Bytes, Bytes> =
            self.all(store, Kind::Session)?.into_iter().collect();
        let mut settled = self.clone();
        let mut unsettled = self.sessions.unsettled();
        for change in &unsettled {
            records.extend(change.after.clone().map(|after| (change.key.clone().into(), after)));
        }
        settled.take_changes(&mut unsettled)?;
        let rows = records.keys().filter(|key| !key.is_empty()).count() as u64;
        for (key, stored) in records {
            digest = digest.wrapping_add(session_contribution(&key, &stored)?);
        }
        let found = (split(digest), keys, bytes, rows);
        let said = (settled.meta.digest, self.meta.keys, self.meta.bytes);
        let said = (said.0, said.1, said.2, self.sessions.counters().rows);
        if found == said {
            return Ok(Ok(()));
        }
        Ok(Err(format!(
            "{}: the records give (digest, keys, bytes, sessions) {found:?}, the shard says {said:?}",
            self.id
        )))
    }

    /// All records of a kind, their keys without the prefix.
    fn all(&self, store: &GroupStore<'_>, kind: Kind) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut from = keys::prefix(self.id, self.meta.copy, kind);
        let to = keys::prefix_end(self.id, self.meta.copy, kind);
        let mut all = Vec::new();
        loop {
            let page = store.scan(&from, &to, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(all) };
            from = last.to_vec();
            from.push(0);
            all.extend(page.into_iter().map(|(key, v)| (key.slice(keys::PREFIX_BYTES..), v)));
        }
    }

    /// Takes the effect of session changes into the digest.
    fn take_changes(&mut self, changes: &mut Vec<SessionChange>) -> Result<(), EngineError> {
        for change in changes.drain(..) {
            if let Some(before) = &change.before {
                self.take_from_digest(session_contribution(&change.key, before)?);
            }
            if let Some(after) = &change.after {
                self.add_to_digest(session_contribution(&change.key, after)?);
            }
        }
        Ok(())
    }

    fn uncount(&mut self, key: &[u8], before: Option<&Record>) {
        if let Some(before) = before {
            self.meta.keys -= 1;
            self.meta.bytes -= (key.len() + before.value.len()) as u64;
            self.take_from_digest(before.contribution(key));
        }
    }

    fn add_to_digest(&mut self, contribution: u128) {
        self.meta.digest = split(join(self.meta.digest).wrapping_add(contribution));
    }

    fn take_from_digest(&mut self, contribution: u128) {
        self.meta.digest = split(join(self.meta.digest).wrapping_sub(contribution));
    }

    fn data_key(&self, key: &[u8]) -> Vec<u8> {
        keys::record(self.id, self.meta.copy, Kind::Data, key)
    }
}

const META_FORMAT: u8 = 1;

fn split(digest: u128) -> (u64, u64) {
    ((digest >> 64) as u64, digest as u64)
}

fn join(digest: (u64, u64)) -> u128 {
    u128::from(digest.0) << 64 | u128::from(digest.1)
}
