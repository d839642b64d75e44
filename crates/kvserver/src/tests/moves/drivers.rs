//! Those who drive the hand-offs: the shard master's leader, the leaders of the sources, and the
//! network between them, which loses, doubles and reorders.

use super::*;

impl World {
    pub(super) fn send(&mut self, group: GroupId, command: Command) {
        self.wire.push((group, command));
        if self.wire.len() > 60 {
            let lost = self.pick(self.wire.len());
            self.wire.swap_remove(lost);
        }
    }

    /// What a driver knows of a hand-off at a group: the present, or something older.
    fn news(&mut self, group: GroupId, mig: CopyId) -> HandoffState {
        let old = |(of, state): &&(GroupId, HandoffState)| *of == group && state.mig == mig;
        let old: Vec<HandoffState> =
            self.heard.iter().filter(old).map(|(_, state)| state.clone()).collect();
        if !old.is_empty() && self.random.chance(1, 3) {
            let at = self.pick(old.len());
            return old[at].clone();
        }
        self.group(group).server.handoff(mig)
    }

    pub(super) fn plan_step(&mut self) {
        let busy: BTreeSet<ShardId> =
            self.migrations.values().flat_map(|m| m.shards.iter().map(|(id, _)| *id)).collect();
        let from = GroupId(self.random.between(1, GROUPS));
        let to = GroupId(self.random.between(1, GROUPS));
        let mut shards: Vec<_> = self
            .owners
            .iter()
            .filter(|(id, (owner, _))| *owner == from && !busy.contains(id))
            .map(|(id, (_, epoch))| (*id, *epoch))
            .collect();
        shards.truncate(1 + self.pick(3));
        if from == to || shards.is_empty() {
            return;
        }
        let mig = CopyId(self.mig_next);
        self.mig_next += 1;
        self.migrations.insert(mig, Migration { from, to, shards, cancel: false });
    }

    pub(super) fn master_step(&mut self) {
        let migs: Vec<CopyId> = self.migrations.keys().copied().collect();
        if migs.is_empty() {
            return;
        }
        let mig = migs[self.pick(migs.len())];
        if self.random.chance(1, 60) {
            self.migrations.get_mut(&mig).unwrap().cancel = true;
        }
        let Migration { from, to, shards, cancel } = self.migrations[&mig].clone();
        let (here, there) = (self.news(from, mig), self.news(to, mig));
        if there.phase == HandoffPhase::Active {
            for (shard, epoch) in shards {
                self.owners.insert(shard, (to, ShardEpoch(epoch.0 + 1)));
            }
            self.migrations.remove(&mig);
        } else if here.phase == HandoffPhase::Owned && there.phase == HandoffPhase::Refused {
            self.migrations.remove(&mig);
        } else if cancel {
            self.send(from, Command::OutAbort { mig, shards: shards.clone() });
            if here.phase == HandoffPhase::Owned || self.random.chance(1, 10) {
                self.send(to, Command::Refuse { mig, src: from, shards });
            }
        } else if there.phase == HandoffPhase::Unknown {
            self.send(to, Command::InBegin { mig, src: from, shards });
        } else if here.phase == HandoffPhase::Unknown && there.phase == HandoffPhase::In {
            self.send(from, Command::OutBegin { mig, dst: to, shards });
        } else if there.phase == HandoffPhase::Refused {
            self.send(from, Command::OutAbort { mig, shards });
        }
    }

    pub(super) fn source_step(&mut self) {
        let from = GroupId(self.random.between(1, GROUPS));
        let outgoing = self.group(from).server.outgoing().to_vec();
        if outgoing.is_empty() {
            return;
        }
        let (mig, to) = outgoing[self.pick(outgoing.len())];
        let there = self.news(to, mig);
        if let Some((group, command)) = self.source_command(from, to, mig, &there) {
            self.send(group, command);
        }
    }

    /// What the leader of the source does next, by what it knows.
    fn source_command(
        &mut self,
        from: GroupId,
        to: GroupId,
        mig: CopyId,
        there: &HandoffState,
    ) -> Option<(GroupId, Command)> {
        let here = self.group(from).server.handoff(mig);
        let is_frozen = here.phase == HandoffPhase::Frozen;
        match there.phase {
            HandoffPhase::Active if is_frozen => return Some((from, Command::OutDone { mig })),
            HandoffPhase::Refused if is_frozen => return Some((from, Command::Unfreeze { mig })),
            HandoffPhase::Refused => {
                return Some((from, self.group(from).server.abort(mig)?));
            }
            HandoffPhase::In => {}
            HandoffPhase::Unknown
            | HandoffPhase::Out
            | HandoffPhase::Frozen
            | HandoffPhase::Active
            | HandoffPhase::Moved
            | HandoffPhase::Owned => return Some((to, self.group(from).server.refuse(mig)?)),
        }
        if is_frozen && self.random.chance(1, 12) {
            return Some((to, self.group(from).server.refuse(mig)?));
        }
        let at = self.pick(there.shards.len());
        let shard = there.shards[at].clone();
        let bytes = self.random.between(1, 600) as usize;
        let is_done = there.shards.iter().all(|shard| shard.scan_done);
        let choice = self.random.below(if is_done { 4 } else { 40 });
        let upto = shard.delta_upto.map_or(0, |upto| upto.0 + self.random.below(3));
        let (server, store) = self.group(from).parts();
        let command = match choice {
            0 | 1 if is_frozen => server.activate(&store, mig, Some(there)).unwrap(),
            0 => Some(Command::Freeze { mig }),
            1..=8 => server.delta(&store, mig, shard.shard, Version(upto), bytes).unwrap(),
            _ => {
                let cursor = shard.cursor.unwrap_or_default();
                server.chunk(&store, mig, shard.shard, cursor, bytes).unwrap()
            }
        };
        let command = command?;
        let group = if matches!(command, Command::Freeze { .. }) { from } else { to };
        Some((group, command))
    }

    pub(super) fn deliver_step(&mut self) {
        if self.wire.is_empty() {
            return;
        }
        let at = self.pick(self.wire.len());
        let (group, command) = self.wire[at].clone();
        if self.random.chance(3, 4) {
            self.wire.swap_remove(at);
        }
        self.apply(group, &command);
    }

    /// Drivers that know the present and lose nothing bring everything to its end.
    pub(super) fn quiesce(&mut self) {
        self.wire.clear();
        for _ in 0..10_000 {
            self.heard.clear();
            let mut outgoing = Vec::new();
            for group in &self.groups {
                let of = |(mig, to): &(CopyId, GroupId)| (group.group, *to, *mig);
                outgoing.extend(group.server.outgoing().iter().map(of));
            }
            if outgoing.is_empty() && self.migrations.is_empty() {
                break;
            }
            self.master_step();
            for (from, to, mig) in outgoing {
                let there = self.group(to).server.handoff(mig);
                if let Some((group, command)) = self.source_command(from, to, mig, &there) {
                    let reply = self.apply(group, &command);
                    if let Ok(Answer::Handoff(there)) = reply.body
                        && let Some((group, command)) =
                            self.source_command(from, to, mig, &there).filter(|_| group == to)
                    {
                        self.apply(group, &command);
                    }
                }
            }
            for (group, command) in std::mem::take(&mut self.wire) {
                self.apply(group, &command);
            }
        }
        for group in (1..=GROUPS).map(GroupId) {
            while let Some(command) = self.group(group).server.garbage() {
                self.apply(group, &command);
            }
        }
    }
}
