//! The invariants of shards that move (`docs/paxos.md` 12, I19 to I24), checked on what the
//! replicas show while a run goes on; and how often hand-offs went which way.

use std::collections::{BTreeMap, BTreeSet};

use base::{CopyId, GroupId, ReplicaId, ShardEpoch, ShardId, Version};
use router::{
    HandoffPhase, HandoffShard, HandoffState, Reply, ReplyHeader, ShardState, ShardStatus,
};

use crate::guest::{Guest, PlanView, ShardsView};
use crate::world::World;

/// What was seen of the shards so far, and may not be contradicted.
#[derive(Debug, Default)]
pub struct Ownership {
    /// Who served a shard in an epoch.
    served: BTreeMap<(ShardId, ShardEpoch), Served>,
    /// By node and group: what is there.
    seen: BTreeMap<(usize, GroupId), Seen>,
    /// Of each group the newest state that any replica showed.
    newest: BTreeMap<GroupId, ShardsView>,
    /// The newest state of the shard master that any replica showed.
    plan: Option<PlanView>,
    /// The hand-offs that the shard master planned.
    watched: BTreeMap<CopyId, Watched>,
}

/// What a node showed of a group.
#[derive(Debug, Default)]
struct Seen {
    /// What it showed last, and at which start.
    last: Option<(u64, ShardsView)>,
    /// Of each shard the replica, the node's start, and the epoch that it showed last.
    epochs: BTreeMap<ShardId, (ReplicaId, u64, ShardEpoch)>,
}

#[derive(Debug)]
struct Served {
    group: GroupId,
    /// The lowest and the highest count of changes that were seen.
    first: Version,
    last: Version,
}

#[derive(Debug)]
struct Watched {
    from: GroupId,
    to: GroupId,
    cancelled: bool,
    /// What was seen of it, by the word for it.
    phases: BTreeSet<&'static str>,
    /// The newest of these.
    last: &'static str,
}

impl Watched {
    /// A step was seen; whether it was not before.
    fn note(&mut self, phase: &'static str) -> bool {
        let is_new = self.phases.insert(phase);
        if is_new {
            self.last = phase;
        }
        is_new
    }
}

impl Seen {
    /// A replica never has an older epoch of a shard than it had since its node was started.
    fn check_epoch(
        &mut self,
        node: usize,
        (replica, starts): (ReplicaId, u64),
        shard: &ShardStatus,
    ) -> Result<(), String> {
        let seen = (replica, starts, shard.epoch);
        let before = self.epochs.insert(shard.shard, seen);
        match before {
            Some((known, start, epoch))
                if (known, start) == (replica, starts) && epoch > shard.epoch =>
            {
                Err(format!("I19: node {node} has epoch {epoch:?} of a shard, and later {shard:?}"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// A step of a hand-off that was not seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// The group that gives.
    pub from: GroupId,
    /// The group that takes.
    pub to: GroupId,
    /// What it has come to.
    pub phase: &'static str,
}

/// How often hand-offs went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandoffCounts {
    /// Planned.
    pub planned: u64,
    /// The destination serves.
    pub done: u64,
    /// The source had begun, and kept its shards.
    pub aborted: u64,
    /// The source had frozen its shards, and kept them.
    pub unfrozen: u64,
    /// The destination refused.
    pub refused: u64,
    /// Contradicted by a later plan.
    pub cancelled: u64,
}

impl HandoffCounts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &HandoffCounts) {
        self.planned += other.planned;
        self.done += other.done;
        self.aborted += other.aborted;
        self.unfrozen += other.unfrozen;
        self.refused += other.refused;
        self.cancelled += other.cancelled;
    }
}

/// So many of the newest hand-offs are watched: an older one is over.
const WATCHED_MAX: usize = 48;

impl Ownership {
    /// Looks at a node that is up, at its start of this number. Tells what hand-offs have come to.
    pub fn observe<G: Guest>(
        &mut self,
        node: usize,
        starts: u64,
        guest: &G,
    ) -> Result<Vec<Stepped>, String> {
        let mut stepped = self.observe_plan(guest)?;
        let views = guest.shards();
        // A state that was lost begins anew with a copy, which may be older than what was lost.
        let is_here = |group: &GroupId| views.iter().any(|view| view.group == *group);
        self.seen.retain(|(at, group), _| *at != node || is_here(group));
        for view in views {
            let seen = self.seen.entry((node, view.group)).or_default();
            // What was looked at contradicts nothing that came since: that was held against it.
            if matches!(&seen.last, Some((start, last)) if *start == starts && *last == view) {
                continue;
            }
            for shard in &view.shards {
                seen.check_epoch(node, (view.replica, starts), shard)?;
            }
            seen.last = Some((starts, view.clone()));
            for shard in &view.shards {
                self.check_served(node, view.group, shard)?;
            }
            let known = self.newest.get(&view.group);
            if known.is_none_or(|known| known.applied < view.applied) {
                self.newest.insert(view.group, view);
            }
        }
        self.observe_handoffs(guest, &mut stepped)?;
        Ok(stepped)
    }

    fn observe_plan<G: Guest>(&mut self, guest: &G) -> Result<Vec<Stepped>, String> {
        let mut stepped = Vec::new();
        let Some(view) = guest.plan() else { return Ok(stepped) };
        if self.plan.as_ref().is_some_and(|known| known.applied >= view.applied) {
            return Ok(stepped);
        }
        for migration in &view.migrations {
            let watched = self.watched.entry(migration.mig).or_insert_with(|| Watched {
                from: migration.from,
                to: migration.to,
                cancelled: false,
                phases: BTreeSet::new(),
                last: PLANNED,
            });
            watched.cancelled |= migration.cancel;
            if watched.note(PLANNED) {
                stepped.push(Stepped { from: watched.from, to: watched.to, phase: PLANNED });
            }
        }
        let open: BTreeSet<CopyId> = view.migrations.iter().map(|m| m.mig).collect();
        for (mig, watched) in self.watched.iter_mut().rev().take(WATCHED_MAX) {
            if !open.contains(mig) && watched.note(ENDED) {
                stepped.push(Stepped { from: watched.from, to: watched.to, phase: ENDED });
            }
        }
        if let Some(known) = &self.plan {
            for (shard, (old, new)) in known.owners.iter().zip(&view.owners).enumerate() {
                if old.map(|owner| owner.epoch) > new.map(|owner| owner.epoch) {
                    return Err(format!(
                        "I23: the shard master's owner of shard {shard} goes from {old:?} to \
                         {new:?}"
                    ));
                }
            }
        }
        self.plan = Some(view);
        Ok(stepped)
    }

    /// A node has other disks than it had before: what it shows need not go on from what it showed.
    pub(crate) fn exchanged(&mut self, node: usize) {
        self.seen.retain(|(known, _), _| *known != node);
    }

    /// One group serves a shard in an epoch, and its changes count on from epoch to epoch.
    fn check_served(
        &mut self,
        node: usize,
        group: GroupId,
        shard: &ShardStatus,
    ) -> Result<(), String> {
        if !serves(&shard.state) {
            return Ok(());
        }
        let (id, epoch, version) = (shard.shard, shard.epoch, shard.version);
        let new = || Served { group, first: version, last: version };
        let served = self.served.entry((id, epoch)).or_insert_with(new);
        if served.group != group {
            return Err(format!(
                "I19: node {node} serves a shard that {} served in this epoch: {shard:?}",
                served.group
            ));
        }
        served.first = served.first.min(version);
        served.last = served.last.max(version);
        self.check_counts(id, epoch)
    }

    /// The counts of changes of one epoch lie between those of the epochs before and after.
    fn check_counts(&self, id: ShardId, epoch: ShardEpoch) -> Result<(), String> {
        let served = &self.served[&(id, epoch)];
        let (first, last) = (served.first, served.last);
        let before = self.served.range((id, ShardEpoch(0))..(id, epoch)).next_back();
        let after = ShardEpoch(epoch.0 + 1);
        let after = self.served.range((id, after)..=(id, ShardEpoch(u64::MAX))).next();
        if before.is_some_and(|(_, before)| before.last > first)
            || after.is_some_and(|(_, after)| after.first < last)
        {
            return Err(format!(
                "I22: the count of changes of {id} goes back in {epoch:?}: {served:?}, {before:?} \
                 before, {after:?} after"
            ));
        }
        Ok(())
    }

    /// What a client was answered was executed by the group that owns the shard in the epoch that
    /// the answer names, and before the next owner began.
    pub fn check_reply(&mut self, reply: &Reply) -> Result<(), String> {
        let ReplyHeader {
            group: Some(group), shard: Some(shard), shard_epoch: Some(epoch), ..
        } = reply.header
        else {
            return Ok(());
        };
        if reply.body.is_err() {
            return Ok(());
        }
        let version = reply.header.version;
        // The record may be older than the epoch, so it says nothing of where the epoch began.
        let new = || Served { group, first: Version(u64::MAX), last: version };
        let served = self.served.entry((shard, epoch)).or_insert_with(new);
        if served.group != group {
            return Err(format!(
                "I19: a client is answered by a group, and {} served the shard in this epoch: \
                 {reply:?}",
                served.group
            ));
        }
        served.last = served.last.max(version);
        self.check_counts(shard, epoch)
    }

    fn observe_handoffs<G: Guest>(
        &mut self,
        guest: &G,
        stepped: &mut Vec<Stepped>,
    ) -> Result<(), String> {
        for (mig, watched) in self.watched.iter_mut().rev().take(WATCHED_MAX) {
            let (from, to) = (watched.from, watched.to);
            for state in [guest.handoff(from, *mig), guest.handoff(to, *mig)].iter().flatten() {
                for phase in words(state).into_iter().flatten() {
                    if watched.note(phase) {
                        stepped.push(Stepped { from, to, phase });
                    }
                }
            }
            let has = |phase| watched.phases.contains(phase);
            if (has(ACTIVE) || has(MOVED)) && (has(REFUSED) || has(KEPT)) {
                return Err(format!("I20: hand-off {} came to both ends: {watched:?}", mig.0));
            }
        }
        Ok(())
    }

    /// By the newest states that were seen, no two groups serve a shard (I19), and no source has
    /// let go of a hand-off, either way, before its destination did (I20). All nodes were looked
    /// at just now, and each that ended just before it did.
    pub fn check_single(&self) -> Result<(), String> {
        let mut served: BTreeMap<ShardId, GroupId> = BTreeMap::new();
        for view in self.newest.values() {
            for shard in view.shards.iter().filter(|shard| serves(&shard.state)) {
                if let Some(other) = served.insert(shard.shard, view.group) {
                    return Err(format!("I19: {other} serves a shard, and so does {shard:?}"));
                }
            }
        }
        for (mig, watched) in self.watched.iter().rev().take(WATCHED_MAX) {
            let has = |phase| watched.phases.contains(phase);
            let what = match (has(MOVED), has(KEPT) && has(FROZEN)) {
                (true, _) => "gave its shards away",
                (false, true) => "took its frozen shards back",
                (false, false) => continue,
            };
            let grows = |shard: &&ShardStatus| matches!(shard.state, ShardState::In { mig: of, .. } if of == *mig);
            let there = self.newest.get(&watched.to);
            if let Some(shard) = there.and_then(|view| view.shards.iter().find(grows)) {
                return Err(format!(
                    "I20: the source of hand-off {} {what}, and its destination has {shard:?}",
                    mig.0
                ));
            }
        }
        Ok(())
    }

    /// In which hand-offs that are not over a group takes part: as which of the parties, and at
    /// which step they are.
    pub fn parts(&self, group: GroupId) -> Vec<(&'static str, &'static str)> {
        let open = self.watched.values().rev().take(WATCHED_MAX);
        let open = open.filter(|watched| !watched.phases.contains(ENDED));
        let party = |watched: &Watched| match group {
            GroupId::MASTER => Some((MASTER, watched.last)),
            group if group == watched.from => Some((SOURCE, watched.last)),
            group if group == watched.to => Some((DESTINATION, watched.last)),
            _ => None,
        };
        open.filter_map(party).collect()
    }

    /// Whether all that was planned is done and nothing is left of it (I23, I24); the sentence
    /// says what is missing. All nodes are up.
    pub fn check_settled<'a, G: Guest + 'a>(
        &self,
        guests: impl Iterator<Item = Option<&'a G>>,
    ) -> Result<(), String> {
        // Guests without a shard master have nothing to settle.
        let Some(plan) = &self.plan else { return Ok(()) };
        if let Some(migration) = plan.migrations.first() {
            let (from, to) = (self.newest.get(&migration.from), self.newest.get(&migration.to));
            let shard = migration.shards.first().map(|(shard, _)| *shard);
            let of = |view: Option<&ShardsView>| {
                view.and_then(|v| v.shards.iter().find(|s| Some(s.shard) == shard)).cloned()
            };
            return Err(format!(
                "{migration:?} is still under way: {:?} at its source, {:?} at its destination",
                of(from),
                of(to)
            ));
        }
        for (shard, (planned, owner)) in plan.plan.shards.iter().zip(&plan.owners).enumerate() {
            let is_planned = plan.plan.groups.contains_key(planned);
            if is_planned && owner.is_none_or(|owner| owner.group != *planned) {
                return Err(format!("shard {shard} is planned at {planned}, and is at {owner:?}"));
            }
        }
        for (node, guest) in guests.enumerate() {
            let Some(guest) = guest else { return Err(format!("node {node} is down")) };
            // What damage keeps from learning on does not come to rest.
            let hurt: Vec<GroupId> =
                guest.views(false).iter().filter(|v| v.hurt).map(|v| v.group).collect();
            for view in guest.shards().into_iter().filter(|view| !hurt.contains(&view.group)) {
                self.check_rest(plan, node, &view)?;
            }
        }
        for (shard, owner) in plan.owners.iter().enumerate() {
            let Some(owner) = owner else { continue };
            let has = |s: &ShardStatus| usize::from(s.shard.0) == shard && serves(&s.state);
            let group = self.newest.get(&owner.group);
            if !group.is_some_and(|group| group.shards.iter().any(has)) {
                return Err(format!("I24: nobody serves shard {shard}, {owner:?} should"));
            }
        }
        Ok(())
    }

    /// At rest a replica serves what it owns, and has nothing else.
    fn check_rest(&self, plan: &PlanView, node: usize, view: &ShardsView) -> Result<(), String> {
        for shard in &view.shards {
            let at = usize::from(shard.shard.0);
            let owner = plan.owners.get(at).copied().flatten();
            let is_owner = owner.is_some_and(|owner| owner.group == view.group);
            let is_right = match shard.state {
                ShardState::Owned => {
                    is_owner && owner.is_some_and(|owner| owner.epoch == shard.epoch)
                }
                ShardState::Moved { .. } | ShardState::Refused { .. } => !is_owner,
                ShardState::Out { .. } | ShardState::Frozen { .. } | ShardState::In { .. } => false,
            };
            if !is_right || shard.dead_copies > 0 || shard.dead_records > 0 {
                return Err(format!("node {node} has {shard:?}, and its owner is {owner:?}"));
            }
        }
        Ok(())
    }

    /// The newest state of the shard master that was seen.
    pub fn plan(&self) -> Option<&PlanView> {
        self.plan.as_ref()
    }

    /// How often hand-offs went which way.
    pub fn counts(&self) -> HandoffCounts {
        let mut counts = HandoffCounts::default();
        for watched in self.watched.values() {
            let has = |phase| watched.phases.contains(phase);
            counts.planned += 1;
            counts.done += u64::from(has(ACTIVE));
            counts.aborted += u64::from(has(KEPT) && has(OUT));
            counts.unfrozen += u64::from(has(KEPT) && has(FROZEN));
            counts.refused += u64::from(has(REFUSED));
            counts.cancelled += u64::from(watched.cancelled);
        }
        counts
    }
}

impl Ownership {
    /// How many hand-offs were seen at each step.
    pub fn steps(&self) -> BTreeMap<&'static str, u64> {
        let mut steps = BTreeMap::new();
        for phase in self.watched.values().flat_map(|watched| &watched.phases) {
            *steps.entry(*phase).or_default() += 1;
        }
        steps
    }
}

/// The node that leads a group, if one of those that are up does.
pub fn leader<G: Guest>(world: &World<G>, group: GroupId) -> Option<usize> {
    let leads = |node: &usize| {
        let views = world.guest(*node).map(|guest| guest.views(false)).unwrap_or_default();
        views.iter().any(|view| view.group == group && view.leading.is_some())
    };
    (0..world.nodes()).find(leads)
}

fn serves(state: &ShardState) -> bool {
    match state {
        ShardState::Owned | ShardState::Out { .. } => true,
        ShardState::Frozen { .. }
        | ShardState::Moved { .. }
        | ShardState::In { .. }
        | ShardState::Refused { .. } => false,
    }
}

/// The one that gives.
pub const SOURCE: &str = "source";
/// The one that takes.
pub const DESTINATION: &str = "destination";
/// The shard master.
pub const MASTER: &str = "master";

const PLANNED: &str = "planned";
const IN: &str = "in";
const OUT: &str = "out";
const CHUNK: &str = "chunk";
const DELTA: &str = "delta";
const FROZEN: &str = "frozen";
const ACTIVE: &str = "active";
const MOVED: &str = "moved";
const KEPT: &str = "kept";
const REFUSED: &str = "refused";
const ENDED: &str = "ended";

/// The words for the steps of hand-offs, in the order in which they are usually taken; the last
/// but one are those of a hand-off that is given up.
pub const STEPS: [&str; 11] =
    [PLANNED, IN, OUT, CHUNK, DELTA, FROZEN, ACTIVE, MOVED, KEPT, REFUSED, ENDED];

/// What a group's state shows of a hand-off.
fn words(state: &HandoffState) -> [Option<&'static str>; 3] {
    let phase = match state.phase {
        HandoffPhase::Unknown => None,
        HandoffPhase::In => Some(IN),
        HandoffPhase::Out => Some(OUT),
        HandoffPhase::Frozen => Some(FROZEN),
        HandoffPhase::Active => Some(ACTIVE),
        HandoffPhase::Moved => Some(MOVED),
        HandoffPhase::Owned => Some(KEPT),
        HandoffPhase::Refused => Some(REFUSED),
    };
    let grows = state.phase == HandoffPhase::In;
    let is_begun = |shard: &HandoffShard| {
        shard.scan_done || shard.cursor.as_ref().is_some_and(|cursor| !cursor.is_empty())
    };
    let chunk = grows && state.shards.iter().any(is_begun);
    let delta = grows && state.shards.iter().any(|shard| shard.delta_upto.is_some());
    [phase, chunk.then_some(CHUNK), delta.then_some(DELTA)]
}
