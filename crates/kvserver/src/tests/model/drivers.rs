//! What the shard master and the leaders of sources may do, by what they heard: the rules of
//! `docs/sharding.md` 11.14 without clocks. Whatever depends on patience may happen at any time.

use router::{HandoffPhase, HandoffState};

use super::{Bounds, Bug};
use crate::tests::*;

type Heard<'a> = [(GroupId, &'a HandoffState)];

/// The number of a planned hand-off.
pub(super) fn mig(planned: usize) -> CopyId {
    CopyId(20 + planned as u64)
}

/// The shard master's state. All shards go together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Master {
    pub(super) owner: GroupId,
    pub(super) epoch: ShardEpoch,
    /// Hand-offs planned so far.
    planned: usize,
    plans: usize,
    /// Where to, and whether it is to be given up.
    under_way: Option<(GroupId, bool)>,
    may_give_up: u8,
}

impl Master {
    pub(super) fn new(bounds: &Bounds) -> Master {
        Master {
            owner: GroupId(1),
            epoch: ShardEpoch(1),
            planned: 0,
            plans: bounds.plan.len(),
            under_way: None,
            may_give_up: bounds.give_up,
        }
    }

    /// Whether it has nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_none() && self.planned == self.plans
    }

    fn mig(&self) -> CopyId {
        mig(self.planned - 1)
    }

    /// The hand-offs that are over.
    pub(super) fn over(&self) -> Vec<CopyId> {
        let over = self.planned - usize::from(self.under_way.is_some());
        (0..over).map(mig).collect()
    }

    /// A configuration gives the shards to the next group of the plan.
    pub(super) fn plan(&mut self, bounds: &Bounds) -> bool {
        if self.under_way.is_some() || self.planned == self.plans {
            return false;
        }
        let to = bounds.plan[self.planned];
        self.planned += 1;
        self.under_way = (to != self.owner).then_some((to, false));
        true
    }

    /// A configuration contradicts what is under way.
    pub(super) fn give_up(&mut self) -> bool {
        match &mut self.under_way {
            Some((_, given_up @ false)) if self.may_give_up > 0 => {
                *given_up = true;
                self.may_give_up -= 1;
                true
            }
            Some(_) | None => false,
        }
    }

    fn phases(&self, heard: &Heard<'_>, group: GroupId) -> Vec<HandoffPhase> {
        let of = |(of, state): &&(GroupId, &HandoffState)| *of == group && state.mig == self.mig();
        heard.iter().filter(of).map(|(_, state)| state.phase).collect()
    }

    /// Step 9.
    pub(super) fn done(&mut self, heard: &Heard<'_>, bug: Option<Bug>) -> bool {
        let Some((to, _)) = self.under_way else { return false };
        let there = self.phases(heard, to);
        let here = self.phases(heard, self.owner);
        let believed = bug == Some(Bug::DoneUnasked) && here.contains(&HandoffPhase::Frozen);
        if !there.contains(&HandoffPhase::Active) && !believed {
            return false;
        }
        self.owner = to;
        self.epoch = ShardEpoch(self.epoch.0 + 1);
        self.under_way = None;
        true
    }

    /// The source keeps the shards; a destination that does not answer is not waited for.
    pub(super) fn cancelled(&mut self, heard: &Heard<'_>, bug: Option<Bug>) -> bool {
        if self.under_way.is_none() {
            return false;
        }
        let here = self.phases(heard, self.owner);
        let believed = bug == Some(Bug::CancelledUnasked) && here.contains(&HandoffPhase::Unknown);
        if !here.contains(&HandoffPhase::Owned) && !believed {
            return false;
        }
        self.under_way = None;
        true
    }

    /// What its leader tells the groups: steps 2 and 3, and A.
    pub(super) fn says(&self, heard: &Heard<'_>, bounds: &Bounds) -> Vec<(GroupId, Command)> {
        let Some((to, given_up)) = self.under_way else { return Vec::new() };
        let (mig, from) = (self.mig(), self.owner);
        let shards = || bounds.shards_of(self.epoch);
        let (here, there) = (self.phases(heard, from), self.phases(heard, to));
        let mut said = Vec::new();
        for here in &here {
            for there in &there {
                use HandoffPhase::{In, Out, Owned, Refused, Unknown};
                let command = match (here, there) {
                    (Unknown, Refused) => (from, Command::OutAbort { mig, shards: shards() }),
                    (Unknown | Out, _) if given_up => {
                        (from, Command::OutAbort { mig, shards: shards() })
                    }
                    (Owned, _) => (to, Command::Refuse { mig, src: from, shards: shards() }),
                    (Unknown, Unknown) => {
                        (to, Command::InBegin { mig, src: from, shards: shards() })
                    }
                    (Unknown, In) => (from, Command::OutBegin { mig, dst: to, shards: shards() }),
                    _ => continue,
                };
                said.push(command);
            }
        }
        said
    }
}

/// What the leader of the source says: steps 4 to 8, A and B.
pub(super) fn by_source(
    replica: &mut Replica,
    (mig, from, to): (CopyId, GroupId, GroupId),
    there: &HandoffState,
    part_bytes: usize,
    bug: Option<Bug>,
) -> Vec<(GroupId, Command)> {
    let (server, store) = replica.parts();
    let here = server.handoff(mig);
    let mut said = Vec::new();
    let is_frozen = here.phase == HandoffPhase::Frozen;
    match there.phase {
        HandoffPhase::Active if is_frozen => said.push((from, Command::OutDone { mig })),
        HandoffPhase::Refused if is_frozen => said.push((from, Command::Unfreeze { mig })),
        HandoffPhase::Refused => said.extend(server.abort(mig).map(|abort| (from, abort))),
        HandoffPhase::Unknown => said.extend(server.refuse(mig).map(|refuse| (to, refuse))),
        HandoffPhase::In if is_frozen => {
            // Its patience may end at any time.
            said.extend(server.refuse(mig).map(|refuse| (to, refuse)));
            let activate = server.activate(&store, mig, Some(there)).unwrap();
            said.extend(activate.map(|activate| (to, activate)));
            if bug == Some(Bug::UnfreezeUnasked) {
                said.push((from, Command::Unfreeze { mig }));
            }
            if bug == Some(Bug::GiftUnasked) {
                said.push((from, Command::OutDone { mig }));
            }
        }
        HandoffPhase::In => {
            for shard in &there.shards {
                if let Some(cursor) = shard.cursor.clone() {
                    let chunk = server.chunk(&store, mig, shard.shard, cursor, part_bytes).unwrap();
                    said.extend(chunk.map(|chunk| (to, chunk)));
                }
                let upto = shard.delta_upto.unwrap_or_default();
                let delta = server.delta(&store, mig, shard.shard, upto, part_bytes).unwrap();
                said.extend(delta.map(|delta| (to, without_removals(delta, bug))));
            }
            if there.shards.iter().all(|shard| shard.scan_done) {
                said.push((from, Command::Freeze { mig }));
            }
        }
        HandoffPhase::Out
        | HandoffPhase::Frozen
        | HandoffPhase::Active
        | HandoffPhase::Moved
        | HandoffPhase::Owned => {}
    }
    said
}

fn without_removals(mut delta: Command, bug: Option<Bug>) -> Command {
    if let Command::InDelta { records, .. } = &mut delta
        && bug == Some(Bug::RemovalsLeftOut)
    {
        records.retain(|record| matches!(record.content, crate::Content::Present(_)));
    }
    delta
}
