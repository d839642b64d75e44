//! The state machine of group 0.

use std::collections::BTreeMap;

use base::limits::{GROUP_REPLICAS_MAX, SESSION_IDLE_MILLIS, SHARDS_MAX};
use base::mutant::{self, Mutant};
use base::{Address, ClusterId, CopyId, GroupId, NodeId, ReplicaId, ShardEpoch, ShardId};
use base::{Version, WallMillis};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use replica_group::sessions::{Identity, Sessions, Verdict};
use replica_group::state_machine::EngineError;
use replica_group::{ApplyError, Entry, GroupStore, StateMachine};
use router::{
    Answer, Configuration, ErrorReply, GroupInfo, MasterAnswer, MasterOp, NodeInfo, Owner, Reply,
    ReplyHeader, Routes, Session,
};

use crate::command::{Command, Master};
use crate::plan;
use crate::planner::{Creation, FIRST_EPOCH, Migration};
use crate::registry;
use crate::replicas;
use crate::state::{self, State};

/// The highest feature level that this version of the program knows, and that of a new cluster.
pub const FEATURE_LEVEL: u32 = 1;

/// The shard master's state.
#[derive(Debug)]
pub struct ShardMaster {
    state: State,
    sessions: Sessions,
    /// Whether the store's records are older than `state`.
    dirty: bool,
}

/// What an executed operation is answered: this is what its session keeps.
type Outcome = Result<MasterAnswer, ErrorReply>;

/// An outcome as it is kept.
#[derive(Debug, Encode, Decode)]
struct Kept {
    #[n(0)]
    outcome: Outcome,
}

impl ShardMaster {
    /// The state as the store has it; that of a cluster not yet founded where it has none.
    pub fn open(store: &GroupStore<'_>) -> Result<ShardMaster, EngineError> {
        let state = State::read(store)?.unwrap_or_else(|| State::new(FEATURE_LEVEL));
        let level = state.meta.feature_level;
        if level > FEATURE_LEVEL {
            return Err(EngineError(format!(
                "the shard master was written at feature level {level}, and this version of the \
                 program knows {FEATURE_LEVEL}: start a newer version"
            )));
        }
        let sessions = Sessions::new(state::SESSIONS.to_vec(), state.meta.sessions);
        Ok(ShardMaster { state, sessions, dirty: false })
    }

    /// Answers a read. The caller has made sure that everything is applied that was chosen before
    /// the read came.
    pub fn read(&self, store: &GroupStore<'_>, op: &MasterOp) -> Result<Reply, EngineError> {
        if self.cluster().is_none() {
            return Ok(self.reply(Err(not_founded())));
        }
        let newest = &self.state.configuration;
        let answer = match op {
            MasterOp::Query { number: Some(number) } if *number < newest.number => {
                let found = state::read_configuration(store, *number)?;
                let missing = || EngineError(format!("configuration {} is missing", number.0));
                MasterAnswer::Configuration(found.ok_or_else(missing)?)
            }
            MasterOp::Query { .. } => MasterAnswer::Configuration(newest.clone()),
            MasterOp::Routes => MasterAnswer::Routes(Box::new(self.state.routes.clone())),
            MasterOp::Join { .. }
            | MasterOp::Leave { .. }
            | MasterOp::Move { .. }
            | MasterOp::Register { .. }
            | MasterOp::ReplaceNode { .. }
            | MasterOp::DrainNode { .. }
            | MasterOp::MembersAre { .. }
            | MasterOp::ReplicaLost { .. } => {
                unreachable!("a write must go through the log")
            }
        };
        Ok(self.reply(Ok(answer)))
    }

    /// The cluster, once it is founded.
    pub fn cluster(&self) -> Option<ClusterId> {
        Some(self.state.routes.cluster).filter(|_| self.state.routes.version > 0)
    }

    /// The routes. Their version grows with every change; it is 0 before the cluster is founded.
    /// The groups in them, with their members, are those that nodes are to run.
    pub fn routes(&self) -> &Routes {
        &self.state.routes
    }

    /// The newest configuration.
    pub fn configuration(&self) -> &Configuration {
        &self.state.configuration
    }

    /// What the leader is to tell groups to make, again and again until it is reported by
    /// [`Command::ShardsCreated`].
    pub fn pending(&self) -> &[Creation] {
        &self.state.pending
    }

    /// What the leader is to see through, in the order in which it was planned, until it is
    /// reported by [`Command::MigrationDone`] or [`Command::MigrationCancelled`].
    pub fn migrations(&self) -> &BTreeMap<CopyId, Migration> {
        &self.state.migrations
    }

    /// The replicas that a node is to run.
    pub fn replicas_of(&self, node: NodeId) -> Vec<(GroupId, ReplicaId)> {
        let groups = self.state.routes.groups.iter();
        let members = groups.flat_map(|(group, info)| {
            info.members.iter().map(|(replica, node, _)| (*group, *replica, *node))
        });
        let here = members.filter(|(_, _, member)| *member == node);
        here.map(|(group, replica, _)| (group, replica)).collect()
    }

    /// What the leader should propose to forget idle sessions, if there is something to forget.
    pub fn expired_sessions(&self, now: WallMillis) -> Option<Command> {
        let before = WallMillis(now.0.saturating_sub(SESSION_IDLE_MILLIS));
        self.sessions.may_expire(before).then_some(Command::ExpireSessions { before })
    }

    /// The whole state as bytes: equal logs give equal bytes, on every replica.
    pub fn state_bytes(&self) -> Bytes {
        self.state.bytes()
    }

    fn apply_found(&mut self, cluster: ClusterId, shards: u16, masters: &[Master]) -> Outcome {
        if let Some(present) = self.cluster() {
            if present == cluster {
                return Ok(MasterAnswer::Configuration(self.state.configuration.clone()));
            }
            return Err(ErrorReply::Refused(format!("this is cluster {present} already")));
        }
        if shards == 0 || shards > SHARDS_MAX {
            return Err(ErrorReply::Invalid(format!(
                "a cluster has 1 to {SHARDS_MAX} shards, not {shards}"
            )));
        }
        if masters.is_empty() || masters.len() > GROUP_REPLICAS_MAX {
            return Err(ErrorReply::Invalid(format!(
                "a cluster has 1 to {GROUP_REPLICAS_MAX} masters, not {}",
                masters.len()
            )));
        }
        registry::validate_masters(masters)?;
        let state = &mut self.state;
        let mut members = Vec::new();
        for master in masters {
            members.push((master.replica, master.node, master.disk));
            state.meta.node_next = state.meta.node_next.max(NodeId(master.node.0 + 1));
            let replica_next = ReplicaId(master.replica.0 + 1);
            state.meta.replica_next = state.meta.replica_next.max(replica_next);
            let info = NodeInfo {
                node: master.node,
                disk: master.disk,
                peer: master.peer.clone(),
                // The masters register like every node, and then this is known.
                grpc: Address::new(""),
            };
            state.routes.nodes.insert(master.node, info);
        }
        members.sort();
        let nodes = members.iter().map(|member| member.1).collect();
        state.placements.nodes.insert(GroupId::MASTER, nodes);
        state.routes.replica_next = state.meta.replica_next;
        state.routes.cluster = cluster;
        state.routes.owners = vec![None; usize::from(shards)];
        state.routes.groups.insert(GroupId::MASTER, GroupInfo { members });
        state.configuration.shards = vec![GroupId::MASTER; usize::from(shards)];
        state.change_routes();
        Ok(MasterAnswer::Configuration(state.configuration.clone()))
    }

    /// A group has made its shards, and owns them from now on. Told twice, it is true once.
    fn apply_created(&mut self, copy: CopyId) -> Outcome {
        let state = &mut self.state;
        if let Some(at) = state.pending.iter().position(|creation| creation.copy == copy) {
            let creation = state.pending.remove(at);
            for shard in creation.shards {
                if let Some(owner) = state.routes.owners.get_mut(usize::from(shard.0)) {
                    *owner = Some(Owner { group: creation.group, epoch: FIRST_EPOCH, copy });
                }
            }
            state.plan();
        }
        Ok(MasterAnswer::Configuration(state.configuration.clone()))
    }

    /// Shards have changed hands. Told twice, it is true once.
    fn apply_done(&mut self, mig: CopyId) -> Outcome {
        let state = &mut self.state;
        if let Some(migration) = state.migrations.remove(&mig) {
            for (shard, epoch) in migration.shards {
                let owner = state.routes.owners.get_mut(usize::from(shard.0));
                let Some(owner) = owner.and_then(Option::as_mut) else {
                    unreachable!("{mig} moved {shard}, which had no owner");
                };
                let before = (owner.group, owner.epoch);
                let expected = (migration.from, epoch);
                assert!(before == expected, "{shard} left {mig}: {before:?}, not {expected:?}");
                let epoch = ShardEpoch(epoch.0 + 1);
                *owner = Owner { group: migration.to, epoch, copy: mig };
            }
            state.plan();
        }
        Ok(MasterAnswer::Configuration(state.configuration.clone()))
    }

    /// Shards have stayed where they were. What the plan still wants of them starts anew, but for
    /// those that arrived unequal.
    fn apply_cancelled(&mut self, mig: CopyId, unequal: &[ShardId]) -> Outcome {
        let state = &mut self.state;
        if let Some(migration) = state.migrations.remove(&mig) {
            for (shard, _) in migration.shards {
                if unequal.contains(&shard) {
                    state.routes.barred.insert(shard, mig);
                }
            }
            state.plan();
        }
        Ok(MasterAnswer::Configuration(state.configuration.clone()))
    }

    fn apply_client(
        &mut self,
        store: &mut GroupStore<'_>,
        session: Session,
        op: &MasterOp,
    ) -> Result<Outcome, EngineError> {
        if self.cluster().is_none() {
            return Ok(Err(not_founded()));
        }
        let identity = Identity {
            client: session.client,
            number: session.number,
            first_incomplete: session.first_incomplete,
            stamp: session.stamp,
        };
        match self.sessions.check(store, &identity, self.state.meta.log_time)? {
            Verdict::New => {}
            Verdict::Repeat(_) if mutant::is(Mutant::MasterSessionUnchecked) => {}
            Verdict::Repeat(reply) => {
                let kept: Kept = base::codec::decode(&reply)
                    .map_err(|error| EngineError(format!("a kept reply is damaged: {error}")))?;
                return Ok(kept.outcome);
            }
            Verdict::Stale => return Ok(Err(ErrorReply::Stale)),
            Verdict::Expired { horizon } => {
                return Ok(Err(ErrorReply::SessionExpired { horizon }));
            }
            Verdict::TooFar { log_time } => {
                return Ok(Err(ErrorReply::StampTooFar { log_time }));
            }
            Verdict::Full => {
                let text = "this client has too many requests open: wait for some".to_string();
                return Ok(Err(ErrorReply::ResourceExhausted(text)));
            }
        }
        let outcome = match op {
            MasterOp::Join { groups } => plan::join(&mut self.state, groups),
            MasterOp::Leave { groups } => plan::leave(&mut self.state, groups),
            MasterOp::Move { moves } => plan::move_shards(&mut self.state, moves),
            MasterOp::Register { node, starts, replaces } => {
                registry::register(&mut self.state, node, *starts, *replaces)
            }
            MasterOp::ReplaceNode { old, new } => replicas::replace(&mut self.state, *old, *new),
            MasterOp::DrainNode { node } => replicas::drain(&mut self.state, *node),
            MasterOp::MembersAre { group, epoch, members } => {
                replicas::members_are(&mut self.state, *group, *epoch, members)
            }
            MasterOp::ReplicaLost { group, replica } => {
                replicas::replica_lost(&mut self.state, *group, *replica)
            }
            MasterOp::Query { .. } | MasterOp::Routes => {
                Err(ErrorReply::Invalid("a read is not a command".to_string()))
            }
        };
        let kept = Kept { outcome };
        self.record(store, &identity, base::codec::encode(&kept))?;
        Ok(kept.outcome)
    }

    fn record(
        &mut self,
        store: &mut GroupStore<'_>,
        identity: &Identity,
        reply: Bytes,
    ) -> Result<(), EngineError> {
        let meta = &mut self.state.meta;
        meta.changes = Version(meta.changes.0 + 1);
        let mut changes = Vec::new();
        let (time, version) = (meta.log_time, meta.changes);
        self.sessions.record(store, identity, reply, time, version, &mut changes)?;
        Ok(())
    }

    fn apply_expire(
        &mut self,
        store: &mut GroupStore<'_>,
        before: WallMillis,
    ) -> Result<Outcome, EngineError> {
        let mut changes = Vec::new();
        let version = Version(self.state.meta.changes.0 + 1);
        if self.sessions.expire(store, before, version, &mut changes)? {
            self.state.meta.changes = version;
        }
        Ok(Ok(MasterAnswer::Configuration(self.state.configuration.clone())))
    }

    fn reply(&self, outcome: Outcome) -> Reply {
        let header = ReplyHeader {
            cluster: self.cluster(),
            group: Some(GroupId::MASTER),
            stamp: self.state.meta.log_time,
            configuration: self.state.routes.configuration,
            ..ReplyHeader::default()
        };
        Reply { header, body: outcome.map(Answer::Master) }
    }
}

impl StateMachine for ShardMaster {
    type Reply = Reply;

    fn apply(&mut self, store: &mut GroupStore<'_>, entry: &Entry) -> Result<Reply, ApplyError> {
        let unknown = |what| ApplyError::Unknown(format!("g0 slot {}: {what}", entry.slot));
        let command = Command::decode(&entry.payload).map_err(|error| unknown(error.0))?;
        let level = command.feature_level();
        if level > self.state.meta.feature_level {
            return Err(unknown(format!("it needs feature level {level}")));
        }
        self.dirty = true;
        self.state.meta.log_time = self.state.meta.log_time.max(entry.time);
        let before = (self.state.routes.version, self.state.configuration.number);
        let outcome = match command {
            Command::Found { cluster, shards, masters } => {
                self.apply_found(cluster, shards, &masters)
            }
            Command::Client { session, op } => self.apply_client(store, session, &op)?,
            Command::ShardsCreated { copy } => self.apply_created(copy),
            Command::ExpireSessions { before } => self.apply_expire(store, before)?,
            Command::MigrationDone { mig } => self.apply_done(mig),
            Command::MigrationCancelled { mig, unequal } => self.apply_cancelled(mig, &unequal),
        };
        let founded = before.0 == 0 && self.state.routes.version > 0;
        if founded || self.state.configuration.number > before.1 {
            state::write_configuration(store, &self.state.configuration);
        }
        self.state.meta.sessions = self.sessions.counters();
        Ok(self.reply(outcome))
    }

    fn settle(&mut self, store: &mut GroupStore<'_>) -> Result<(), EngineError> {
        if self.dirty {
            self.dirty = false;
            self.sessions.settle(store, &mut Vec::new());
            self.state.write(store);
        }
        Ok(())
    }

    fn digest(&self) -> Result<u128, EngineError> {
        Ok(xxhash_rust::xxh3::xxh3_128(&self.state_bytes()))
    }
}

fn not_founded() -> ErrorReply {
    ErrorReply::NotReady("the cluster is being founded".to_string())
}
