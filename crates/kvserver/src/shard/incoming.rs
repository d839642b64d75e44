//! A shard on its way in: a copy that grows until it equals the source's.

use base::{CopyId, GroupId, ShardEpoch, Version, WallMillis};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use replica_group::GroupStore;
use replica_group::sessions::{self, Sessions};
use replica_group::state_machine::EngineError;
use router::ShardState;

use crate::command::{Content, FinalPart, MovedRecord};
use crate::keys::{self, Kind};
use crate::record::{self, Record, session_contribution, stored_version};
use crate::shard::{Shard, join};

/// How far the copy has grown.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "base::codec::Source")]
pub(crate) struct Incoming {
    /// Where the next chunk begins; none when the last has come.
    #[cbor(n(0), with = "base::codec::payload_option")]
    pub(crate) cursor: Option<Bytes>,
    /// The count of changes through which the deltas have come; none before the first.
    #[n(1)]
    pub(crate) delta_upto: Option<Version>,
    /// Records of the session table.
    #[n(2)]
    pub(crate) session_records: u64,
}

impl Shard {
    /// A copy begins to grow. One that an older hand-off left half-grown is of no use.
    pub(crate) fn begin_in(&mut self, mig: CopyId, src: GroupId, epoch: ShardEpoch) {
        if let Some(incoming) = self.meta.incoming.take() {
            self.bury_copy(incoming.session_records);
        }
        self.forget_content();
        self.meta.state = ShardState::In { mig, src };
        self.meta.migration_seen = mig;
        self.meta.copy = mig;
        self.meta.epoch = epoch;
        self.meta.owner = Some((epoch, src));
        self.meta.incoming =
            Some(Incoming { cursor: Some(Bytes::new()), delta_upto: None, session_records: 0 });
    }

    /// The copy will never be served. What has grown is of no use.
    pub(crate) fn refuse(&mut self, mig: CopyId, src: GroupId, epoch: ShardEpoch) {
        if let Some(incoming) = self.meta.incoming.take() {
            self.bury_copy(incoming.session_records);
        }
        self.forget_content();
        self.meta.state = ShardState::Refused { mig };
        self.meta.migration_seen = mig;
        self.meta.copy = keys::NO_COPY;
        self.meta.epoch = epoch;
        self.meta.owner = Some((epoch, src));
    }

    /// The copy was complete, and not what it must be.
    pub(crate) fn note_unequal(&mut self, mig: CopyId) {
        self.meta.unequal = Some(mig);
    }

    /// Takes the records of a scan, where it goes on here.
    pub(crate) fn take_chunk(
        &mut self,
        store: &mut GroupStore<'_>,
        start: &Bytes,
        records: Vec<MovedRecord>,
        next: Option<Bytes>,
    ) -> Result<(), EngineError> {
        match &mut self.meta.incoming {
            Some(incoming) if incoming.cursor.as_ref() == Some(start) => {
                // The cursor outlives the command that it came in.
                incoming.cursor = next.map(|next| Bytes::copy_from_slice(&next));
            }
            Some(_) | None => return Ok(()),
        }
        self.merge_all(store, records)
    }

    /// Takes what changed, where nothing before it is missing.
    pub(crate) fn take_delta(
        &mut self,
        store: &mut GroupStore<'_>,
        x0: Version,
        from: Version,
        to: Version,
        records: Vec<MovedRecord>,
    ) -> Result<(), EngineError> {
        let Some(incoming) = &mut self.meta.incoming else { return Ok(()) };
        let begins = match incoming.delta_upto {
            None => from == x0 && to >= from,
            Some(upto) => from <= upto && to > upto,
        };
        if !begins {
            return Ok(());
        }
        incoming.delta_upto = Some(to);
        self.merge_all(store, records)
    }

    /// Whether nothing is missing but the last part.
    pub(crate) fn awaits(&self, part: &FinalPart) -> bool {
        self.meta.incoming.as_ref().is_some_and(|incoming| {
            let begins = match incoming.delta_upto {
                None => part.from == part.x0,
                Some(upto) => part.from <= upto,
            };
            incoming.cursor.is_none() && begins
        })
    }

    /// Takes the last part. Why the copy is not what it must be, where it is not.
    pub(crate) fn take_final(
        &mut self,
        store: &mut GroupStore<'_>,
        part: &mut FinalPart,
    ) -> Result<Result<(), String>, EngineError> {
        self.merge_all(store, std::mem::take(&mut part.records))?;
        let Some(incoming) = &self.meta.incoming else {
            return Ok(Err("no copy grows".to_string()));
        };
        let horizon = u64::from(part.sessions.horizon > WallMillis(0));
        let must = (part.digest, part.keys, part.bytes, part.sessions.rows + horizon);
        let (keys, bytes) = (self.meta.keys, self.meta.bytes);
        let is = (join(self.meta.digest), keys, bytes, incoming.session_records);
        let upto = incoming.delta_upto.unwrap_or(part.to);
        Ok(if must != is {
            Err(format!(
                "{}: digest, keys, bytes and session records are {is:x?}, and must be {must:x?}",
                self.id
            ))
        } else if upto > part.to {
            Err(format!("{}: the changes go to {upto}, and should end at {}", self.id, part.to))
        } else {
            Ok(())
        })
    }

    /// The copy is served from here on.
    pub(crate) fn activate(&mut self, part: &FinalPart, time: WallMillis) {
        self.meta.state = ShardState::Owned;
        self.meta.epoch = ShardEpoch(self.meta.epoch.0 + 1);
        self.meta.changes = part.to;
        self.meta.log_time = self.meta.log_time.max(part.log_time).max(time);
        self.meta.owner = None;
        self.meta.incoming = None;
        let prefix = keys::prefix(self.id, self.meta.copy, Kind::Session);
        self.sessions = Sessions::new(prefix, part.sessions);
        self.bury_tombstones();
        self.dirty = true;
    }

    fn merge_all(
        &mut self,
        store: &mut GroupStore<'_>,
        records: Vec<MovedRecord>,
    ) -> Result<(), EngineError> {
        self.dirty = true;
        records.into_iter().try_for_each(|record| self.merge(store, record))
    }

    /// Takes a record, or its removal, where it is newer than what is here.
    fn merge(&mut self, store: &mut GroupStore<'_>, moved: MovedRecord) -> Result<(), EngineError> {
        let MovedRecord { kind, key, content } = moved;
        let version = match &content {
            Content::Present(stored) => stored_version(kind, stored)?,
            Content::Removed(version) => *version,
        };
        let full = keys::record(self.id, self.meta.copy, kind, &key);
        let before = store.get(&full)?;
        let tombstone = keys::tombstone(self.id, self.meta.copy, kind, &key);
        let buried = if self.meta.tombstones > 0 { store.get(&tombstone)? } else { None };
        for (kind, stored) in [(kind, &before), (Kind::Tombstone, &buried)] {
            if let Some(stored) = stored
                && stored_version(kind, stored)? >= version
            {
                return Ok(());
            }
        }
        if let Some(before) = &before {
            self.count_out(kind, &key, before)?;
        }
        match content {
            Content::Present(stored) => {
                self.count_in(kind, &key, &stored)?;
                store.put(&full, stored);
                if buried.is_some() {
                    store.delete(&tombstone);
                    self.meta.tombstones -= 1;
                }
            }
            Content::Removed(version) => {
                if before.is_some() {
                    store.delete(&full);
                }
                store.put(&tombstone, record::tombstone(version));
                self.meta.tombstones += u64::from(buried.is_none());
            }
        }
        Ok(())
    }

    fn count_in(&mut self, kind: Kind, key: &[u8], stored: &Bytes) -> Result<(), EngineError> {
        match kind {
            Kind::Data => {
                let record = Record::decode(stored)?;
                self.meta.count(key, &record);
            }
            Kind::Session => {
                self.meta.add_to_digest(session_contribution(key, stored)?);
                self.count_session_records(|records| records + 1);
            }
            Kind::Meta | Kind::Tombstone => unreachable!("a record that does not travel"),
        }
        Ok(())
    }

    fn count_out(&mut self, kind: Kind, key: &[u8], stored: &Bytes) -> Result<(), EngineError> {
        match kind {
            Kind::Data => {
                let record = Record::decode(stored)?;
                self.meta.uncount(key, &record);
            }
            Kind::Session => {
                self.meta.take_from_digest(session_contribution(key, stored)?);
                self.count_session_records(|records| records - 1);
            }
            Kind::Meta | Kind::Tombstone => unreachable!("a record that does not travel"),
        }
        Ok(())
    }

    fn count_session_records(&mut self, change: impl Fn(u64) -> u64) {
        if let Some(incoming) = &mut self.meta.incoming {
            incoming.session_records = change(incoming.session_records);
        }
    }
}

/// Whether a record that came from another group can be one: its bytes were never checked before.
pub(crate) fn is_sound(moved: &MovedRecord) -> bool {
    match (moved.kind, &moved.content) {
        (Kind::Data | Kind::Session, Content::Removed(_)) => true,
        (Kind::Data, Content::Present(stored)) => Record::decode(stored)
            .is_ok_and(|record| Record::new(record.version, record.value.clone()) == record),
        (Kind::Session, Content::Present(stored)) => sessions::is_record(&moved.key, stored),
        (Kind::Meta | Kind::Tombstone, _) => false,
    }
}
