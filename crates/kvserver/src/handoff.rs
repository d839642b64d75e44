//! The hand-off of sets of shards (`docs/sharding.md` 11.14), in the log of the source and in that
//! of the destination. A command applies to all shards of its set or to none, and is answered with
//! how far the hand-off is afterwards, so that repeating it is always safe and always tells.

use base::mutant::{self, Mutant};
use base::{CopyId, GroupId, ShardEpoch, ShardId, Version, WallMillis};
use bytes::Bytes;
use replica_group::GroupStore;
use replica_group::state_machine::EngineError;
use router::{ErrorReply, HandoffPhase, HandoffShard, HandoffState, ShardState};

use crate::command::{Command, FinalPart};
use crate::shard::{Meta, Shard, is_sound};
use crate::state_machine::KvServer;

type Outcome = Result<HandoffState, ErrorReply>;
type Shards = [(ShardId, ShardEpoch)];

/// A hand-off begins to serve with no more than about so many bytes left to take in: they go with
/// one command, while nobody serves the shards.
pub const FINAL_BYTES_MAX: usize = 1 << 20;

/// What a leader asks to drive hand-offs. None of it is needed for safety: whatever is proposed by
/// it is judged again when it is applied.
impl KvServer {
    /// How far a hand-off is here.
    pub fn handoff(&self, mig: CopyId) -> HandoffState {
        let of = |shard: &&Shard| phase(shard, mig) != HandoffPhase::Unknown;
        let shards: Vec<&Shard> = self.shards.values().filter(of).collect();
        let phase = shards.first().map_or(HandoffPhase::Unknown, |shard| phase(shard, mig));
        let shards = shards.into_iter().map(handoff_shard).collect();
        HandoffState { mig, phase, shards, unequal: self.unequal(mig) }
    }

    fn unequal(&self, mig: CopyId) -> Vec<ShardId> {
        let of = |shard: &&Shard| shard.meta().unequal == Some(mig);
        self.shards.values().filter(of).map(Shard::id).collect()
    }

    /// The hand-offs of which copies grow here, in order.
    pub fn incoming(&self) -> &[CopyId] {
        &self.incoming
    }

    /// At the destination: the [`Command::Refuse`] for its own log, for a hand-off that the other
    /// side gave up. None where no copy of it grows.
    pub fn refuse_incoming(&self, mig: CopyId) -> Option<Command> {
        let mut source = None;
        let mut shards = Vec::new();
        for shard in self.shards.values() {
            if let ShardState::In { mig: of, src } = shard.meta().state
                && of == mig
            {
                source = Some(src);
                shards.push((shard.id(), shard.meta().epoch));
            }
        }
        source.map(|src| Command::Refuse { mig, src, shards })
    }

    /// The hand-offs that this group is to drive, in order, with their destinations.
    pub fn outgoing(&self) -> &[(CopyId, GroupId)] {
        &self.outgoing
    }

    /// Whether nobody is known to serve a shard: this group has stopped to, and does not know yet
    /// whether the other one begins.
    pub fn is_frozen(&self, shard: ShardId) -> bool {
        let frozen = |shard: &Shard| matches!(shard.meta().state, ShardState::Frozen { .. });
        self.shards.get(&shard).is_some_and(frozen)
    }

    /// At the source: an [`Command::InChunk`] for the destination, whose scan goes on at `start`;
    /// about `bytes_max` bytes. None where the shard is not on its way, or there is no such place.
    pub fn chunk(
        &self,
        store: &GroupStore<'_>,
        mig: CopyId,
        shard: ShardId,
        start: Bytes,
        bytes_max: usize,
    ) -> Result<Option<Command>, EngineError> {
        let Some(source) = self.source(mig, shard) else { return Ok(None) };
        let chunk = source.chunk(store, &start, bytes_max)?;
        Ok(chunk.map(|(records, next)| Command::InChunk { mig, shard, start, records, next }))
    }

    /// At the source: an [`Command::InDelta`] for the destination, which has everything through
    /// the count `from`; about `bytes_max` bytes, or what one command changed. None where the
    /// shard is not on its way, or has not come as far as `from`.
    pub fn delta(
        &self,
        store: &GroupStore<'_>,
        mig: CopyId,
        shard: ShardId,
        from: Version,
        bytes_max: usize,
    ) -> Result<Option<Command>, EngineError> {
        let Some(source) = self.source(mig, shard) else { return Ok(None) };
        let x0 = source.meta().x0.unwrap_or_default();
        let from = from.max(x0);
        if from > source.meta().changes {
            return Ok(None);
        }
        let (to, records) = source.delta(store, from, bytes_max)?;
        Ok(Some(Command::InDelta { mig, shard, x0, from, to, records }))
    }

    /// At the source, which has frozen the shards: the [`Command::Activate`] for the destination,
    /// of which `there` is known; or, where too much is left for that, an [`Command::InDelta`].
    /// None where the shards are not frozen, or the destination does not wait for them.
    pub fn activate(
        &self,
        store: &GroupStore<'_>,
        mig: CopyId,
        there: Option<&HandoffState>,
    ) -> Result<Option<Command>, EngineError> {
        let Some(there) = there.filter(|there| there.phase == HandoffPhase::In) else {
            return Ok(None);
        };
        let (mut shards, mut left) = (Vec::new(), FINAL_BYTES_MAX);
        for source in self.shards.values().filter(|s| phase(s, mig) == HandoffPhase::Frozen) {
            let x0 = source.meta().x0.unwrap_or_default();
            let copy = there.shards.iter().find(|copy| copy.shard == source.id());
            let from = copy.and_then(|copy| copy.delta_upto).map_or(x0, |upto| upto.max(x0));
            if from > source.meta().changes {
                return Ok(None);
            }
            let part = source.final_part(store, from, left)?;
            let bytes = source.lag_bytes(from);
            if part.to < source.meta().changes || bytes > left {
                return self.delta(store, mig, source.id(), from, FINAL_BYTES_MAX);
            }
            left -= bytes;
            shards.push(part);
        }
        Ok((!shards.is_empty()).then_some(Command::Activate { mig, shards }))
    }

    /// At the source: the [`Command::Refuse`] for the destination. None where the shards are not
    /// on their way.
    pub fn refuse(&self, mig: CopyId) -> Option<Command> {
        let shards = self.on_their_way(mig);
        (!shards.is_empty()).then_some(Command::Refuse { mig, src: self.group, shards })
    }

    /// At the source: the [`Command::OutAbort`] for its own log. None where the shards are not on
    /// their way.
    pub fn abort(&self, mig: CopyId) -> Option<Command> {
        let shards = self.on_their_way(mig);
        (!shards.is_empty()).then_some(Command::OutAbort { mig, shards })
    }

    /// At the source: about the bytes of what changed in a shard after the count `from`, as far
    /// as that is known; 0 where it is not on its way.
    pub fn lag_bytes(&self, shard: ShardId, from: Version) -> usize {
        self.shards.get(&shard).map_or(0, |shard| shard.lag_bytes(from))
    }

    /// What the leader should propose to delete what is of no use any more, if there is something;
    /// one slice at a time.
    pub fn garbage(&self) -> Option<Command> {
        self.littered.iter().find_map(|id| self.shards.get(id)?.garbage())
    }

    /// What a person must look into and was not told before, on this replica since its start.
    pub fn take_alarms(&mut self) -> Vec<String> {
        std::mem::take(&mut self.alarms)
    }

    /// The shards that the group has begun to serve, with their epochs, that were not told before;
    /// on a replica that starts, all that it finds served. Whoever was served them before knows it
    /// later, the shard master too.
    pub fn take_gained(&mut self) -> Vec<(ShardId, ShardEpoch)> {
        std::mem::take(&mut self.gained)
    }

    /// Finds again what follows from the states of the shards.
    pub(crate) fn note_states(&mut self) {
        self.outgoing = self.shards.values().filter_map(Shard::outgoing).collect();
        self.outgoing.sort_unstable();
        self.outgoing.dedup();
        self.incoming = self.shards.values().filter_map(Shard::incoming).collect();
        self.incoming.sort_unstable();
        self.incoming.dedup();
        let littered = self.shards.iter().filter(|(_, shard)| shard.garbage().is_some());
        self.littered = littered.map(|(id, _)| *id).collect();
    }

    fn on_their_way(&self, mig: CopyId) -> Vec<(ShardId, ShardEpoch)> {
        let of = |shard: &&Shard| shard.outgoing().is_some_and(|(of, _)| of == mig);
        self.shards.values().filter(of).map(|shard| (shard.id(), shard.meta().epoch)).collect()
    }

    fn source(&self, mig: CopyId, shard: ShardId) -> Option<&Shard> {
        let shard = self.shards.get(&shard)?;
        shard.outgoing().is_some_and(|(of, _)| of == mig).then_some(shard)
    }
}

impl KvServer {
    pub(crate) fn apply_handoff(
        &mut self,
        store: &mut GroupStore<'_>,
        time: WallMillis,
        command: Command,
    ) -> Result<Outcome, EngineError> {
        match command {
            Command::InChunk { .. } | Command::InDelta { .. } => self.apply_records(store, command),
            Command::Client { .. }
            | Command::Create { .. }
            | Command::ExpireSessions { .. }
            | Command::GcSlice { .. }
            | Command::InBegin { .. }
            | Command::OutBegin { .. }
            | Command::Freeze { .. }
            | Command::Activate { .. }
            | Command::OutDone { .. }
            | Command::OutAbort { .. }
            | Command::Refuse { .. }
            | Command::Unfreeze { .. } => {
                let outcome = self.apply_step(store, time, command)?;
                self.note_states();
                Ok(outcome)
            }
        }
    }

    fn apply_step(
        &mut self,
        store: &mut GroupStore<'_>,
        time: WallMillis,
        command: Command,
    ) -> Result<Outcome, EngineError> {
        match command {
            Command::Client { .. }
            | Command::Create { .. }
            | Command::ExpireSessions { .. }
            | Command::InChunk { .. }
            | Command::InDelta { .. }
            | Command::GcSlice { .. } => unreachable!("not a step of a hand-off"),
            Command::InBegin { mig, src, shards } => Ok(self.in_begin(mig, src, &shards)),
            Command::OutBegin { mig, dst, shards } => self.out_begin(store, mig, dst, &shards),
            Command::Freeze { mig } => {
                for shard in self.shards.values_mut() {
                    if let ShardState::Out { mig: of, dst } = shard.meta().state
                        && of == mig
                    {
                        shard.freeze(store, mig, dst, &mut self.changes)?;
                    }
                }
                Ok(Ok(self.handoff(mig)))
            }
            Command::Activate { mig, shards } => self.apply_activate(store, time, mig, shards),
            Command::OutDone { mig } => {
                self.each_frozen(mig, |shard, dst| shard.give_away(dst));
                Ok(Ok(self.handoff(mig)))
            }
            Command::OutAbort { mig, shards } => Ok(Ok(self.out_abort(mig, &shards))),
            Command::Refuse { mig, src, shards } => Ok(self.apply_refuse(mig, src, &shards)),
            Command::Unfreeze { mig } => {
                self.each_frozen(mig, |shard, _| shard.keep());
                Ok(Ok(self.handoff(mig)))
            }
        }
    }

    fn apply_records(
        &mut self,
        store: &mut GroupStore<'_>,
        command: Command,
    ) -> Result<Outcome, EngineError> {
        let (Command::InChunk { mig, shard, records, .. }
        | Command::InDelta { mig, shard, records, .. }) = &command
        else {
            unreachable!("not a command with records")
        };
        let mig = *mig;
        if let Some(unsound) = records.iter().find(|record| !is_sound(record)) {
            return Ok(Err(damaged(mig, *shard, &unsound.key)));
        }
        let Some(copy) = self.growing(mig, *shard) else { return Ok(Ok(self.handoff(mig))) };
        if let Command::InChunk { start, records, next, .. } = command {
            copy.take_chunk(store, &start, records, next)?;
        } else if let Command::InDelta { x0, from, to, records, .. } = command {
            copy.take_delta(store, x0, from, to, records)?;
        }
        Ok(Ok(self.handoff(mig)))
    }

    /// Copies begin to grow. A hand-off that was seen before is answered with what came of it.
    fn in_begin(&mut self, mig: CopyId, src: GroupId, shards: &Shards) -> Outcome {
        if let Some(outcome) = self.outcome_here(mig, shards) {
            return Ok(outcome);
        }
        for (id, epoch) in shards {
            let Some(known) = self.shards.get(id) else { continue };
            let has = match known.meta().state {
                ShardState::Owned | ShardState::Out { .. } => "serves",
                ShardState::Frozen { .. } => "is handing over",
                // Two hand-offs of a shard are never under way at a time: a lower one was given up
                // at the source, which told this group or could not.
                ShardState::In { .. } | ShardState::Moved { .. } | ShardState::Refused { .. } => {
                    if known.meta().epoch <= *epoch {
                        continue;
                    }
                    "knows a newer epoch of"
                }
            };
            let text = format!("group {} {has} shard {}", self.group.0, id.0);
            return Err(ErrorReply::Refused(text));
        }
        for (id, epoch) in shards {
            let shard = self.shards.entry(*id).or_insert_with(|| Shard::stranger(*id));
            shard.begin_in(mig, src, *epoch);
        }
        Ok(self.handoff(mig))
    }

    /// The copying begins. A hand-off that was seen before is answered with what came of it.
    fn out_begin(
        &mut self,
        store: &mut GroupStore<'_>,
        mig: CopyId,
        dst: GroupId,
        shards: &Shards,
    ) -> Result<Outcome, EngineError> {
        let present = self.handoff(mig);
        if present.phase != HandoffPhase::Unknown {
            return Ok(Ok(present));
        }
        for (id, epoch) in shards {
            let is_ready = self.shards.get(id).is_some_and(|shard| {
                let meta = shard.meta();
                meta.state == ShardState::Owned && meta.epoch == *epoch && meta.migration_seen < mig
            });
            if !is_ready {
                let (group, id, epoch) = (self.group.0, id.0, epoch.0);
                let text = format!("group {group} has no shard {id} of epoch {epoch} to hand over");
                return Ok(Err(ErrorReply::Refused(text)));
            }
        }
        for (id, _) in shards {
            if let Some(shard) = self.shards.get_mut(id) {
                shard.begin_out(store, mig, dst, &mut self.changes)?;
            }
        }
        Ok(Ok(self.handoff(mig)))
    }

    /// The copies are complete, and served from here on; or one of them is not what it must be,
    /// and all are refused. Where something is missing, nothing happens.
    fn apply_activate(
        &mut self,
        store: &mut GroupStore<'_>,
        time: WallMillis,
        mig: CopyId,
        mut parts: Vec<FinalPart>,
    ) -> Result<Outcome, EngineError> {
        let present = self.handoff(mig);
        if present.phase != HandoffPhase::In {
            return Ok(Ok(present));
        }
        parts.sort_by_key(|part| part.shard);
        if !parts.iter().map(|part| part.shard).eq(present.shards.iter().map(|s| s.shard)) {
            let text = format!("hand-off {}: these are not its shards", mig.0);
            return Ok(Err(ErrorReply::Invalid(text)));
        }
        for part in &parts {
            if let Some(unsound) = part.records.iter().find(|record| !is_sound(record)) {
                return Ok(Err(damaged(mig, part.shard, &unsound.key)));
            }
            if self.growing(mig, part.shard).is_none_or(|shard| !shard.awaits(part)) {
                return Ok(Ok(present));
            }
        }
        let mut wrong = Vec::new();
        for part in &mut parts {
            if let Some(shard) = self.growing(mig, part.shard)
                && let Err(why) = shard.take_final(store, part)?
            {
                shard.note_unequal(mig);
                wrong.push(format!("hand-off {}: {why}", mig.0));
            }
        }
        for part in &parts {
            let Some(shard) = self.growing(mig, part.shard) else { continue };
            if wrong.is_empty() {
                shard.activate(part, time);
            } else if let ShardState::In { src, .. } = shard.meta().state {
                let epoch = shard.meta().epoch;
                shard.refuse(mig, src, epoch);
            }
        }
        let served = parts.iter().filter_map(|part| Some((part.shard, self.epoch(part.shard)?)));
        let served: Vec<_> = served.collect();
        self.gained.extend(served);
        self.alarms.extend(wrong);
        Ok(Ok(self.handoff(mig)))
    }

    /// The source keeps its shards, where it has not frozen them. Those of which the hand-off has
    /// not begun never follow it.
    fn out_abort(&mut self, mig: CopyId, shards: &Shards) -> HandoffState {
        for (id, shard) in &mut self.shards {
            let meta = shard.meta();
            match meta.state {
                ShardState::Out { mig: of, .. } if of == mig => shard.keep(),
                ShardState::Frozen { mig: of, .. }
                    if of == mig && mutant::is(Mutant::FrozenTakenBack) =>
                {
                    shard.keep();
                }
                ShardState::Owned
                    if meta.migration_seen < mig && shards.contains(&(*id, meta.epoch)) =>
                {
                    shard.never_out(mig);
                }
                ShardState::Owned
                | ShardState::Out { .. }
                | ShardState::Frozen { .. }
                | ShardState::Moved { .. }
                | ShardState::In { .. }
                | ShardState::Refused { .. } => {}
            }
        }
        self.handoff(mig)
    }

    /// The destination never takes the shards by this hand-off, unless it did.
    fn apply_refuse(&mut self, mig: CopyId, src: GroupId, shards: &Shards) -> Outcome {
        for (id, epoch) in shards {
            let known = self.shards.get(id).map(Shard::meta);
            if known.is_some_and(|meta| meta.epoch > *epoch) {
                // The shard has left the source's epoch, and while the source waits for an answer
                // nothing but this hand-off can have done that.
                return Ok(self.answer(mig, HandoffPhase::Active, shards));
            }
            // One that is frozen waits for its own hand-off to end.
            let is_busy = |meta: &Meta| match meta.state {
                ShardState::Owned | ShardState::Out { .. } | ShardState::Frozen { .. } => true,
                ShardState::Moved { .. } | ShardState::In { .. } | ShardState::Refused { .. } => {
                    false
                }
            };
            if known.is_some_and(|meta| meta.migration_seen < mig && is_busy(meta)) {
                let text = format!("group {} has shard {} itself", self.group.0, id.0);
                return Err(ErrorReply::Refused(text));
            }
        }
        for (id, epoch) in shards {
            let shard = self.shards.entry(*id).or_insert_with(|| Shard::stranger(*id));
            let is_in =
                |mig| matches!(shard.meta().state, ShardState::In { mig: of, .. } if of == mig);
            if shard.meta().migration_seen < mig || is_in(mig) {
                shard.refuse(mig, src, *epoch);
            }
        }
        Ok(self.answer(mig, HandoffPhase::Refused, shards))
    }

    /// What came of a hand-off to this group that a shard of it has seen before.
    fn outcome_here(&self, mig: CopyId, shards: &Shards) -> Option<HandoffState> {
        let present = self.handoff(mig);
        if present.phase != HandoffPhase::Unknown {
            return Some(present);
        }
        let known = |id| self.shards.get(id).map(Shard::meta);
        let is_over =
            shards.iter().any(|(id, _)| known(id).is_some_and(|meta| meta.migration_seen > mig));
        let has_served =
            shards.iter().any(|(id, epoch)| known(id).is_some_and(|meta| meta.epoch > *epoch));
        match (is_over, has_served) {
            (false, _) => None,
            (true, true) => Some(self.answer(mig, HandoffPhase::Active, shards)),
            (true, false) => Some(self.answer(mig, HandoffPhase::Refused, shards)),
        }
    }

    fn answer(&self, mig: CopyId, phase: HandoffPhase, shards: &Shards) -> HandoffState {
        let known = shards.iter().filter_map(|(id, _)| self.shards.get(id));
        let shards = known.map(handoff_shard).collect();
        HandoffState { mig, phase, shards, unequal: self.unequal(mig) }
    }

    fn growing(&mut self, mig: CopyId, id: ShardId) -> Option<&mut Shard> {
        let shard = self.shards.get_mut(&id)?;
        matches!(shard.meta().state, ShardState::In { mig: of, .. } if of == mig).then_some(shard)
    }

    fn each_frozen(&mut self, mig: CopyId, mut change: impl FnMut(&mut Shard, GroupId)) {
        for shard in self.shards.values_mut() {
            if let ShardState::Frozen { mig: of, dst } = shard.meta().state
                && of == mig
            {
                change(shard, dst);
            }
        }
    }
}

/// How far a hand-off is with one shard.
fn phase(shard: &Shard, mig: CopyId) -> HandoffPhase {
    let meta = shard.meta();
    let (is_newest, is_copy) = (meta.migration_seen == mig, meta.copy == mig);
    match meta.state {
        ShardState::In { .. } if is_newest => HandoffPhase::In,
        ShardState::Refused { .. } if is_newest => HandoffPhase::Refused,
        ShardState::In { .. } | ShardState::Refused { .. } => HandoffPhase::Unknown,
        ShardState::Owned
        | ShardState::Out { .. }
        | ShardState::Frozen { .. }
        | ShardState::Moved { .. }
            if is_copy =>
        {
            HandoffPhase::Active
        }
        ShardState::Owned if is_newest => HandoffPhase::Owned,
        ShardState::Out { .. } if is_newest => HandoffPhase::Out,
        ShardState::Frozen { .. } if is_newest => HandoffPhase::Frozen,
        ShardState::Moved { .. } if is_newest => HandoffPhase::Moved,
        ShardState::Owned
        | ShardState::Out { .. }
        | ShardState::Frozen { .. }
        | ShardState::Moved { .. } => HandoffPhase::Unknown,
    }
}

fn handoff_shard(shard: &Shard) -> HandoffShard {
    let meta = shard.meta();
    let incoming = meta.incoming.as_ref();
    HandoffShard {
        shard: shard.id(),
        epoch: meta.epoch,
        cursor: incoming.and_then(|incoming| incoming.cursor.clone()),
        scan_done: incoming.is_some_and(|incoming| incoming.cursor.is_none()),
        delta_upto: incoming.and_then(|incoming| incoming.delta_upto),
        x0: meta.x0.unwrap_or_default(),
        changes: meta.changes,
    }
}

fn damaged(mig: CopyId, shard: ShardId, key: &[u8]) -> ErrorReply {
    ErrorReply::Invalid(format!(
        "hand-off {}: the record of key {key:02x?} of shard {} is damaged",
        mig.0, shard.0
    ))
}
