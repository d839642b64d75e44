//! The state machine of a data group.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::limits::SESSION_IDLE_MILLIS;
use base::mutant::{self, Mutant};
use base::{ClientId, CopyId, GroupId, ShardEpoch, ShardId, Version, WallMillis};
use bytes::Bytes;
use replica_group::sessions::{Identity, SessionChange, Verdict};
use replica_group::state_machine::{EngineError, ScanLimit};
use replica_group::{ApplyError, Entry, GroupStore, StateMachine};
use router::{Answer, ErrorReply, KvOp, Reply, ReplyHeader, Session, ShardStatus};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::command::Command;
use crate::execute::{Outcome, execute};
use crate::keys;
use crate::shard::Shard;

/// The highest feature level that this version of the program knows, and the level of a new group.
pub const FEATURE_LEVEL: u32 = 1;

/// A data group's state: what of it is kept in memory.
#[derive(Debug)]
pub struct KvServer {
    pub(crate) group: GroupId,
    /// The commands of this level and below may stand in the group's log.
    feature_level: u32,
    pub(crate) shards: BTreeMap<ShardId, Shard>,
    /// Whether the store has the group's own record as it is.
    settled: bool,
    /// The session rows that are newer than the store's, the longest so first. A row may stand
    /// here that was settled meanwhile.
    pub(crate) unsettled: VecDeque<(ShardId, ClientId)>,
    /// Reused from command to command.
    pub(crate) changes: Vec<SessionChange>,
    /// What a person must look into, until it is fetched.
    pub(crate) alarms: Vec<String>,
    /// The shards that the group has begun to serve, until they are fetched.
    pub(crate) gained: Vec<(ShardId, ShardEpoch)>,
    /// The hand-offs under way from this group, in order; every turn asks for them.
    pub(crate) outgoing: Vec<(CopyId, GroupId)>,
    /// The hand-offs of which copies grow here.
    pub(crate) incoming: Vec<CopyId>,
    /// The shards with something to delete.
    pub(crate) littered: BTreeSet<ShardId>,
}

impl KvServer {
    /// The state as the store has it; a new group's where the store has nothing.
    pub fn open(group: GroupId, store: &GroupStore<'_>) -> Result<KvServer, EngineError> {
        let stored = store.get(&keys::group_meta())?;
        let feature_level = match &stored {
            None => FEATURE_LEVEL,
            Some(bytes) => decode_group(group, bytes)?,
        };
        let mut shards = BTreeMap::new();
        let mut next = 0;
        loop {
            // One look per shard: its own record is its first.
            let (from, to) = keys::shards_from(next);
            let found = store.scan(&from, &to, ScanLimit { records: 1, bytes: 0 })?;
            let Some((key, _)) = found.first() else { break };
            let stray = || EngineError(format!("{group} has a record of no shard: {key:02x?}"));
            let (id, _) = keys::parse(key).ok_or_else(stray)?;
            let shard = Shard::open(id, store)?.ok_or_else(stray)?;
            shards.insert(id, shard);
            next = id.0 + 1;
        }
        let settled = stored.is_some();
        let mut server = KvServer {
            group,
            feature_level,
            shards,
            settled,
            unsettled: VecDeque::new(),
            changes: Vec::new(),
            alarms: Vec::new(),
            gained: Vec::new(),
            outgoing: Vec::new(),
            incoming: Vec::new(),
            littered: BTreeSet::new(),
        };
        let served = server.shards.keys().filter_map(|id| Some((*id, server.epoch(*id)?)));
        server.gained = served.collect();
        server.note_states();
        Ok(server)
    }

    /// Answers a read. The caller has made sure that everything is applied that was chosen before
    /// the read came.
    pub fn read(
        &self,
        store: &GroupStore<'_>,
        shard: ShardId,
        op: &KvOp,
    ) -> Result<Reply, EngineError> {
        assert!(!op.is_write(), "a write must go through the log");
        let judged = |shard: &&Shard| shard.is_served() || mutant::is(Mutant::ForeignShardRead);
        let Some(owned) = self.shards.get(&shard).filter(judged) else {
            return Ok(self.not_owned(shard));
        };
        let record = owned.get(store, op.key())?;
        let version = record.as_ref().map_or(Version(0), |record| record.version);
        let value = record.map(|record| record.value);
        Ok(Reply { header: owned.header(self.group, version), body: Ok(Answer::Value(value)) })
    }

    /// Whether the group serves a shard; what a leader asks before it takes a request.
    pub fn owns(&self, shard: ShardId) -> bool {
        self.shards.get(&shard).is_some_and(Shard::is_served)
    }

    /// The epoch of a shard that the group serves.
    pub fn epoch(&self, shard: ShardId) -> Option<ShardEpoch> {
        let shard = self.shards.get(&shard).filter(|shard| shard.is_served())?;
        Some(shard.meta().epoch)
    }

    /// Whether a Create of this copy and these shards is applied.
    pub fn created(&self, copy: CopyId, shards: &[ShardId]) -> bool {
        let seen = |id| self.shards.get(id).map(|shard: &Shard| shard.meta().migration_seen);
        shards.iter().all(|id| seen(id).is_some_and(|seen| seen >= copy))
    }

    /// The shards, in order.
    pub fn shards(&self, leading: bool) -> Vec<ShardStatus> {
        self.shards.values().map(|shard| shard.status(self.group, leading)).collect()
    }

    /// What the leader should propose to forget idle sessions, if there is something to forget;
    /// one shard at a time.
    pub fn expired_sessions(&self, now: WallMillis) -> Option<Command> {
        let before = WallMillis(now.0.saturating_sub(SESSION_IDLE_MILLIS));
        let may_expire = |shard: &Shard| shard.is_served() && shard.sessions().may_expire(before);
        let mut idle = self.shards.iter().filter(|(_, shard)| may_expire(shard));
        idle.next().map(|(shard, _)| Command::ExpireSessions { shard: *shard, before })
    }

    /// A digest of the whole state. Equal logs give equal digests, on every replica, whatever is
    /// settled and what is not. It costs a look at every shard.
    pub fn digest(&self) -> Result<u128, EngineError> {
        let seed = u64::from(self.feature_level);
        let mut digest = 0_u128;
        for (id, shard) in &self.shards {
            let record = shard.settled_record()?;
            let of_shard = xxh3_128_with_seed(&record, seed ^ u64::from(id.0) << 32);
            digest = digest.wrapping_add(of_shard);
        }
        Ok(digest)
    }

    /// Reads every record and compares: what is wrong, if something is. For tests and simulation.
    pub fn audit(&self, store: &GroupStore<'_>) -> Result<Result<(), String>, EngineError> {
        for shard in self.shards.values() {
            if let Err(wrong) = shard.audit(store)? {
                return Ok(Err(wrong));
            }
        }
        Ok(Ok(()))
    }

    fn apply_client(
        &mut self,
        store: &mut GroupStore<'_>,
        time: WallMillis,
        session: Session,
        id: ShardId,
        op: KvOp,
    ) -> Result<Reply, EngineError> {
        let group = self.group;
        let judged =
            |shard: &&mut Shard| shard.is_served() || mutant::is(Mutant::OwnershipUnjudged);
        let Some(shard) = self.shards.get_mut(&id).filter(judged) else {
            return Ok(self.not_owned(id));
        };
        let log_time = shard.advance(time);
        let refused = |shard: &Shard, error| {
            Ok(Reply { header: shard.header(group, Version(0)), body: Err(error) })
        };
        let identity = identity(session);
        match shard.sessions_mut().check(store, &identity, log_time)? {
            Verdict::New => {}
            Verdict::Repeat(_) if mutant::is(Mutant::SessionUnchecked) => {}
            Verdict::Repeat(reply) => {
                let outcome: Outcome = base::codec::decode(&reply)
                    .map_err(|error| EngineError(format!("a kept reply is damaged: {error}")))?;
                let header = shard.header(group, outcome.version);
                return Ok(Reply { header, body: outcome.body });
            }
            Verdict::Stale => return refused(shard, ErrorReply::Stale),
            Verdict::Expired { horizon } => {
                return refused(shard, ErrorReply::SessionExpired { horizon });
            }
            Verdict::TooFar { log_time } => {
                return refused(shard, ErrorReply::StampTooFar { log_time });
            }
            Verdict::Full => {
                return refused(shard, ErrorReply::ResourceExhausted(FULL_SESSION.to_string()));
            }
        }
        let outcome = execute(shard, store, op)?;
        let reply = base::codec::encode(&outcome);
        let unsettled = shard.record_reply(store, &identity, reply, &mut self.changes)?;
        shard.count_change();
        let header = shard.header(group, outcome.version);
        if unsettled {
            self.unsettled.push_back((id, identity.client));
            self.settle_surplus(store)?;
        }
        Ok(Reply { header, body: outcome.body })
    }

    /// Keeps within bounds what [`KvServer::settle`] has to write at once.
    fn settle_surplus(&mut self, store: &mut GroupStore<'_>) -> Result<(), EngineError> {
        while self.unsettled.len() > UNSETTLED_ROWS_MAX
            && let Some((id, client)) = self.unsettled.pop_front()
        {
            if let Some(shard) = self.shards.get_mut(&id) {
                shard.settle_row(store, client, &mut self.changes)?;
            }
        }
        Ok(())
    }

    /// Makes all of the shards or none. A copy that was seen before is there already.
    fn apply_create(
        &mut self,
        time: WallMillis,
        copy: CopyId,
        new: &[(ShardId, ShardEpoch)],
    ) -> Reply {
        let known = |id| self.shards.get(id).map(|shard: &Shard| shard.meta().migration_seen);
        let owned = new.iter().find(|(id, _)| known(id).is_some_and(|seen| seen < copy));
        if let Some((id, _)) = owned {
            let text = format!("group {} serves shard {} already", self.group.0, id.0);
            return self.reply(Err(ErrorReply::Refused(text)));
        }
        for (id, epoch) in new {
            let shard = self.shards.entry(*id).or_insert_with(|| Shard::create(*id, *epoch, copy));
            shard.advance(time);
        }
        self.reply(Ok(Answer::Done))
    }

    fn apply_expire(
        &mut self,
        store: &mut GroupStore<'_>,
        time: WallMillis,
        id: ShardId,
        before: WallMillis,
    ) -> Result<Reply, EngineError> {
        let Some(shard) = self.shards.get_mut(&id).filter(|shard| shard.is_served()) else {
            return Ok(self.not_owned(id));
        };
        shard.advance(time);
        if shard.expire_sessions(store, before, &mut self.changes)? {
            shard.count_change();
        }
        Ok(Reply { header: shard.header(self.group, Version(0)), body: Ok(Answer::Done) })
    }

    fn reply(&self, body: Result<Answer, ErrorReply>) -> Reply {
        let header = ReplyHeader { group: Some(self.group), ..ReplyHeader::default() };
        Reply { header, body }
    }

    /// Why a shard is not served here, with whatever is known of who does.
    pub fn not_owned(&self, shard: ShardId) -> Reply {
        let header =
            ReplyHeader { group: Some(self.group), shard: Some(shard), ..ReplyHeader::default() };
        match self.shards.get(&shard) {
            Some(known) => {
                let shard_epoch = Some(known.meta().epoch);
                let header = ReplyHeader { shard_epoch, ..header };
                Reply { header, body: Err(known.refusal(self.group)) }
            }
            None => {
                let text = format!("group {} does not serve shard {}", self.group.0, shard.0);
                Reply { header, body: Err(ErrorReply::NotReady(text)) }
            }
        }
    }
}

impl StateMachine for KvServer {
    type Reply = Reply;

    fn apply(&mut self, store: &mut GroupStore<'_>, entry: &Entry) -> Result<Reply, ApplyError> {
        let unknown =
            |what| ApplyError::Unknown(format!("{} slot {}: {what}", self.group, entry.slot));
        let command = Command::decode(&entry.payload).map_err(|error| unknown(error.0))?;
        let level = command.feature_level();
        if level > self.feature_level {
            return Err(unknown(format!("it needs feature level {level}")));
        }
        match command {
            Command::Client { session, shard, op } => {
                Ok(self.apply_client(store, entry.time, session, shard, op)?)
            }
            Command::Create { copy, shards } => Ok(self.apply_create(entry.time, copy, &shards)),
            Command::ExpireSessions { shard, before } => {
                Ok(self.apply_expire(store, entry.time, shard, before)?)
            }
            Command::GcSlice { shard, copy, from } => {
                if let Some(known) = self.shards.get_mut(&shard) {
                    known.collect(store, copy, &from)?;
                    if known.garbage().is_none() {
                        self.littered.remove(&shard);
                    }
                }
                Ok(self.reply(Ok(Answer::Done)))
            }
            Command::InBegin { .. }
            | Command::OutBegin { .. }
            | Command::InChunk { .. }
            | Command::InDelta { .. }
            | Command::Freeze { .. }
            | Command::Activate { .. }
            | Command::OutDone { .. }
            | Command::OutAbort { .. }
            | Command::Refuse { .. }
            | Command::Unfreeze { .. } => {
                let body = self.apply_handoff(store, entry.time, command)?;
                Ok(self.reply(body.map(Answer::Handoff)))
            }
        }
    }

    fn settle(&mut self, store: &mut GroupStore<'_>) -> Result<(), EngineError> {
        if !self.settled {
            self.settled = true;
            store.put(&keys::group_meta(), encode_group(self.feature_level));
        }
        self.unsettled.clear();
        for shard in self.shards.values_mut() {
            shard.settle(store, &mut self.changes)?;
        }
        Ok(())
    }

    fn digest(&self) -> Result<u128, EngineError> {
        KvServer::digest(self)
    }
}

/// Most session rows that wait for the settling: the turn stands still while it writes them.
pub(crate) const UNSETTLED_ROWS_MAX: usize = 1_024;

const FULL_SESSION: &str = "this client has too many requests open on the shard: wait for some";

/// The group's own record: a format, and its feature level.
const GROUP_FORMAT: u8 = 1;

fn encode_group(feature_level: u32) -> Bytes {
    let mut out = vec![GROUP_FORMAT];
    out.extend_from_slice(&feature_level.to_be_bytes());
    Bytes::from(out)
}

fn decode_group(group: GroupId, bytes: &[u8]) -> Result<u32, EngineError> {
    let level = match bytes {
        [GROUP_FORMAT, level @ ..] => level.try_into().ok().map(u32::from_be_bytes),
        _ => None,
    };
    let level =
        level.ok_or_else(|| EngineError(format!("the record of {group} itself is damaged")))?;
    if level > FEATURE_LEVEL {
        return Err(EngineError(format!(
            "{group} was written at feature level {level}, and this version of the program knows \
             {FEATURE_LEVEL}: start a newer version"
        )));
    }
    Ok(level)
}

fn identity(session: Session) -> Identity {
    Identity {
        client: session.client,
        number: session.number,
        first_incomplete: session.first_incomplete,
        stamp: session.stamp,
    }
}
