//! One shard of the group: its own record, its keys and its sessions.

mod audit;
mod garbage;
mod incoming;
mod outgoing;

use base::mutant::{self, Mutant};
use base::{ClientId, CopyId, GroupId, ShardEpoch, ShardId, Version, WallMillis};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use replica_group::GroupStore;
use replica_group::sessions::{self, Identity, SessionChange, SessionCounters, Sessions};
use replica_group::state_machine::{EngineError, ScanLimit};
use router::{ErrorReply, ReplyHeader, ShardState, ShardStatus};

use crate::keys::{self, Kind};
use crate::record::{Record, session_contribution};
use crate::shard::garbage::Garbage;
pub(crate) use crate::shard::incoming::{Incoming, is_sound};
use crate::shard::outgoing::Changed;

/// A shard in memory: what it knows of itself; its records are in the store.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    id: ShardId,
    meta: Meta,
    sessions: Sessions,
    /// While the shard is on its way out: what changed since.
    changed: Option<Changed>,
    /// Whether the store's copy of `meta` is older.
    dirty: bool,
}

/// The shard's own record. All of it follows from the log, so that replicas can be compared by it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub(crate) struct Meta {
    /// How often the shard has changed hands, as far as known here.
    #[n(0)]
    pub(crate) epoch: ShardEpoch,
    /// The copy that is served or grows, or was served last.
    #[n(1)]
    pub(crate) copy: CopyId,
    /// What the group has of it.
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
    /// On its way out: the count of changes with which the copying began.
    #[n(10)]
    pub(crate) x0: Option<Version>,
    /// On its way in: how far the copy has grown.
    #[n(11)]
    pub(crate) incoming: Option<Incoming>,
    /// Where another group serves it: which, with the shard's epoch there.
    #[n(12)]
    pub(crate) owner: Option<(ShardEpoch, GroupId)>,
    /// Tombstones in the copy.
    #[n(13)]
    pub(crate) tombstones: u64,
    /// What is of no use any more and not yet deleted.
    #[n(14)]
    pub(crate) garbage: Vec<Garbage>,
    /// The newest hand-off that brought something else than the source has.
    #[cbor(n(15), default)]
    pub(crate) unequal: Option<CopyId>,
}

/// The records are read in pages of this size by whoever reads all of them.
const PAGE: ScanLimit = ScanLimit { records: 1_024, bytes: 4 << 20 };

impl Shard {
    /// A new, empty shard that the group owns.
    pub(crate) fn create(id: ShardId, epoch: ShardEpoch, copy: CopyId) -> Shard {
        Shard::new(id, epoch, copy, ShardState::Owned)
    }

    /// A shard that the group has never had to do with.
    pub(crate) fn stranger(id: ShardId) -> Shard {
        let mig = keys::NO_COPY;
        Shard::new(id, ShardEpoch(0), mig, ShardState::Refused { mig })
    }

    fn new(id: ShardId, epoch: ShardEpoch, copy: CopyId, state: ShardState) -> Shard {
        let meta = Meta {
            epoch,
            copy,
            state,
            changes: Version(0),
            log_time: WallMillis(0),
            keys: 0,
            bytes: 0,
            digest: (0, 0),
            migration_seen: copy,
            sessions: SessionCounters::default(),
            x0: None,
            incoming: None,
            owner: None,
            tombstones: 0,
            garbage: Vec::new(),
            unequal: None,
        };
        Shard { dirty: true, ..Shard::with_meta(id, meta) }
    }

    fn with_meta(id: ShardId, meta: Meta) -> Shard {
        let prefix = keys::prefix(id, meta.copy, Kind::Session);
        let sessions = Sessions::new(prefix, meta.sessions);
        Shard { id, meta, sessions, changed: None, dirty: false }
    }

    /// The shard as the store has it, if it knows of it.
    pub(crate) fn open(id: ShardId, store: &GroupStore<'_>) -> Result<Option<Shard>, EngineError> {
        let Some(bytes) = store.get(&keys::shard_meta(id))? else { return Ok(None) };
        let damaged = |what: String| EngineError(format!("the record of {id} is damaged: {what}"));
        if bytes.first() != Some(&META_FORMAT) {
            return Err(damaged("its format is unknown".to_string()));
        }
        let meta: Meta = base::codec::decode(&bytes.slice(1..)).map_err(|e| damaged(e.0))?;
        let mut shard = Shard::with_meta(id, meta);
        shard.find_changed(store)?;
        Ok(Some(shard))
    }

    /// Writes what changed and is only in memory: sessions, and the shard's own record.
    pub(crate) fn settle(
        &mut self,
        store: &mut GroupStore<'_>,
        changes: &mut Vec<SessionChange>,
    ) -> Result<(), EngineError> {
        if self.dirty {
            if !mutant::is(Mutant::SessionsUnsettled) {
                self.settle_sessions(store, changes)?;
            }
            self.dirty = false;
            store.put(&keys::shard_meta(self.id), self.settled_record()?);
        }
        Ok(())
    }

    fn settle_sessions(
        &mut self,
        store: &mut GroupStore<'_>,
        changes: &mut Vec<SessionChange>,
    ) -> Result<(), EngineError> {
        self.sessions.settle(store, changes);
        self.meta.take_changes(changes)
    }

    /// The shard's own record as settling would write it now.
    pub(crate) fn settled_record(&self) -> Result<Bytes, EngineError> {
        let mut meta = self.meta.clone();
        meta.take_changes(&mut self.sessions.unsettled())?;
        meta.sessions = self.sessions.counters();
        let mut out = vec![META_FORMAT];
        base::codec::encode_into(&meta, &mut out);
        Ok(Bytes::from(out))
    }

    pub(crate) fn id(&self) -> ShardId {
        self.id
    }

    /// The hand-off by which a copy of the shard grows.
    pub(crate) fn incoming(&self) -> Option<CopyId> {
        match self.meta.state {
            ShardState::In { mig, .. } => Some(mig),
            ShardState::Owned
            | ShardState::Out { .. }
            | ShardState::Frozen { .. }
            | ShardState::Moved { .. }
            | ShardState::Refused { .. } => None,
        }
    }

    /// The hand-off that the shard is on its way out by, and its destination.
    pub(crate) fn outgoing(&self) -> Option<(CopyId, GroupId)> {
        match self.meta.state {
            ShardState::Out { mig, dst } | ShardState::Frozen { mig, dst } => Some((mig, dst)),
            ShardState::Owned
            | ShardState::Moved { .. }
            | ShardState::In { .. }
            | ShardState::Refused { .. } => None,
        }
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

    /// Whether the group serves the shard.
    pub(crate) fn is_served(&self) -> bool {
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
        if let Some(before) = before {
            self.meta.uncount(key, before);
        }
        let record = Record::new(self.version_next(), value);
        self.meta.count(key, &record);
        if let Some(changed) = &mut self.changed
            && !mutant::is(Mutant::DeltaLost)
        {
            let key = Bytes::copy_from_slice(key);
            changed.note(Kind::Data, key, record.version, record.value.len());
        }
        store.put(&self.data_key(key), record.encode());
        self.dirty = true;
    }

    /// Removes a key, whose record was `before`.
    pub(crate) fn delete(
        &mut self,
        store: &mut GroupStore<'_>,
        key: &[u8],
        before: &Record,
    ) -> Result<(), EngineError> {
        self.meta.uncount(key, before);
        store.delete(&self.data_key(key));
        self.dirty = true;
        self.note_removed(store, Kind::Data, key)
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
        if let Some(changed) = &mut self.changed {
            let key = Bytes::copy_from_slice(&sessions::row_key(identity.client));
            changed.note(Kind::Session, key, version, self.sessions.row_bytes(identity.client));
        }
        self.take_evictions(store, changes)?;
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
        self.meta.take_changes(changes)
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
        self.take_evictions(store, changes)?;
        Ok(changed)
    }

    /// Takes session changes in which rows may have been removed and the horizon raised.
    fn take_evictions(
        &mut self,
        store: &mut GroupStore<'_>,
        changes: &mut Vec<SessionChange>,
    ) -> Result<(), EngineError> {
        for change in changes.iter() {
            let version = self.version_next();
            match (&change.after, &mut self.changed) {
                (None, _) => self.note_removed(store, Kind::Session, &change.key)?,
                (Some(after), Some(changed)) if change.key.is_empty() => {
                    changed.note(Kind::Session, Bytes::new(), version, after.len());
                }
                // A row was noted when it changed.
                (Some(_), _) => {}
            }
        }
        self.meta.take_changes(changes)
    }

    /// Why the group does not serve the shard.
    pub(crate) fn refusal(&self, group: GroupId) -> ErrorReply {
        let id = self.id.0;
        let elsewhere = match self.meta.state {
            ShardState::Owned | ShardState::Out { .. } => None,
            ShardState::Frozen { .. } => {
                return ErrorReply::NotReady(format!("shard {id} is being handed over"));
            }
            ShardState::Moved { epoch, dst } => Some((epoch, dst)),
            ShardState::In { .. } | ShardState::Refused { .. } => self.meta.owner,
        };
        match elsewhere {
            Some((epoch, group)) => ErrorReply::Moved { epoch, group },
            None => ErrorReply::NotReady(format!("group {} does not serve shard {id}", group.0)),
        }
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
        let (dead_copies, dead_records) = self.dead();
        ShardStatus {
            shard: self.id,
            group,
            leading,
            state: self.meta.state,
            epoch: self.meta.epoch,
            keys: self.meta.keys,
            bytes: self.meta.bytes,
            version: self.meta.changes,
            dead_copies,
            dead_records,
        }
    }

    /// Records of the session table beside its rows.
    fn horizon_records(&self) -> u64 {
        u64::from(self.sessions.counters().horizon > WallMillis(0))
    }

    /// All records of a kind, their keys without the prefix.
    fn all(&self, store: &GroupStore<'_>, kind: Kind) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut all = Vec::new();
        self.for_each(store, kind, |key, stored| {
            all.push((key, stored));
            Ok(())
        })?;
        Ok(all)
    }

    /// Looks at all records of a kind, in order, their keys without the prefix.
    fn for_each(
        &self,
        store: &GroupStore<'_>,
        kind: Kind,
        mut look: impl FnMut(Bytes, Bytes) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut from = keys::prefix(self.id, self.meta.copy, kind);
        let to = keys::prefix_end(self.id, self.meta.copy, kind);
        loop {
            let page = store.scan(&from, &to, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = last.to_vec();
            from.push(0);
            for (key, stored) in page {
                look(key.slice(keys::PREFIX_BYTES..), stored)?;
            }
        }
    }

    fn data_key(&self, key: &[u8]) -> Vec<u8> {
        keys::record(self.id, self.meta.copy, Kind::Data, key)
    }
}

impl Meta {
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

    fn count(&mut self, key: &[u8], record: &Record) {
        self.keys += 1;
        self.bytes += (key.len() + record.value.len()) as u64;
        self.add_to_digest(record.contribution(key));
    }

    fn uncount(&mut self, key: &[u8], record: &Record) {
        self.keys -= 1;
        self.bytes -= (key.len() + record.value.len()) as u64;
        self.take_from_digest(record.contribution(key));
    }

    fn add_to_digest(&mut self, contribution: u128) {
        self.digest = split(join(self.digest).wrapping_add(contribution));
    }

    fn take_from_digest(&mut self, contribution: u128) {
        self.digest = split(join(self.digest).wrapping_sub(contribution));
    }
}

/// The first format kept the record beside those of its copy.
const META_FORMAT: u8 = 2;

fn split(digest: u128) -> (u64, u64) {
    ((digest >> 64) as u64, digest as u64)
}

fn join(digest: (u64, u64)) -> u128 {
    u128::from(digest.0) << 64 | u128::from(digest.1)
}
