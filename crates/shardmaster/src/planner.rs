//! What is to be done, so that what is becomes what is planned. A pure comparison, made whenever
//! either changes.

use std::collections::{BTreeMap, BTreeSet};

use base::{CopyId, GroupId, ShardEpoch, ShardId};
use minicbor::{Decode, Encode};
use router::{Configuration, Handoff, Owner};

/// Shards that a group is to make, empty, as their first owner.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Creation {
    /// Names the copies.
    #[n(0)]
    pub copy: CopyId,
    /// The group.
    #[n(1)]
    pub group: GroupId,
    /// The shards, in order.
    #[n(2)]
    pub shards: Vec<ShardId>,
}

/// Shards that one group is to hand to another, together.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Migration {
    /// Names it, and the copies that it makes.
    #[n(0)]
    pub mig: CopyId,
    /// The group that owns the shards.
    #[n(1)]
    pub from: GroupId,
    /// The group that is to own them.
    #[n(2)]
    pub to: GroupId,
    /// The shards, in order, with their epochs at the group that owns them.
    #[n(3)]
    pub shards: Vec<(ShardId, ShardEpoch)>,
    /// Whether it is to be given up, if that is still possible. Once set it stays: the groups may
    /// have begun to.
    #[n(4)]
    pub cancel: bool,
}

/// Most shards of one migration: they change hands in one freeze, and give up together. What is
/// written to any of them while the others are copied travels too, so sets are small.
pub const MIGRATION_SHARDS_MAX: usize = 8;

/// The epoch of a shard under its first owner.
pub const FIRST_EPOCH: ShardEpoch = ShardEpoch(1);

impl Creation {
    /// The shards with their epochs, as the group's command has them.
    pub fn epochs(&self) -> Vec<(ShardId, ShardEpoch)> {
        self.shards.iter().map(|shard| (*shard, FIRST_EPOCH)).collect()
    }
}

impl Migration {
    /// As the routes list it.
    pub fn handoff(&self) -> Handoff {
        Handoff {
            mig: self.mig,
            from: self.from,
            to: self.to,
            shards: self.shards.iter().map(|(shard, _)| *shard).collect(),
            cancel: self.cancel,
        }
    }
}

/// The creations that are to be started: for each group of the plan, one of all its shards that
/// nobody owns and nobody is about to make. `copy_next` names the first, and those after it follow.
pub fn creations(
    plan: &Configuration,
    owners: &[Option<Owner>],
    pending: &[Creation],
    copy_next: CopyId,
) -> Vec<Creation> {
    let under_way: BTreeSet<ShardId> =
        pending.iter().flat_map(|creation| creation.shards.iter().copied()).collect();
    let mut missing: BTreeMap<GroupId, Vec<ShardId>> = BTreeMap::new();
    for ((shard, group), owner) in (0..=u16::MAX).map(ShardId).zip(&plan.shards).zip(owners) {
        let is_missing = owner.is_none() && !under_way.contains(&shard);
        if is_missing && plan.groups.contains_key(group) {
            missing.entry(*group).or_default().push(shard);
        }
    }
    let copies = (copy_next.0..).map(CopyId);
    let missing = missing.into_iter().zip(copies);
    missing.map(|((group, shards), copy)| Creation { copy, group, shards }).collect()
}

/// The migrations that are to be started: for each pair of groups sets of the shards that one of
/// them owns, the plan gives to the other, no migration moves, and nothing bars. `mig_next` names
/// the first, and those after it follow. Where the plan names nobody, whoever owns a shard keeps
/// it.
pub fn migrations(
    plan: &Configuration,
    owners: &[Option<Owner>],
    under_way: &BTreeMap<CopyId, Migration>,
    barred: &BTreeMap<ShardId, CopyId>,
    mig_next: CopyId,
) -> Vec<Migration> {
    let moving: BTreeSet<ShardId> =
        under_way.values().flat_map(|m| m.shards.iter().map(|(shard, _)| *shard)).collect();
    let mut sets: BTreeMap<(GroupId, GroupId), Vec<(ShardId, ShardEpoch)>> = BTreeMap::new();
    for ((shard, to), owner) in (0..=u16::MAX).map(ShardId).zip(&plan.shards).zip(owners) {
        let Some(owner) = owner.filter(|owner| owner.group != *to) else { continue };
        let may_move = !moving.contains(&shard) && !barred.contains_key(&shard);
        if plan.groups.contains_key(to) && may_move {
            sets.entry((owner.group, *to)).or_default().push((shard, owner.epoch));
        }
    }
    let mut migrations = Vec::new();
    for ((from, to), shards) in sets {
        for shards in shards.chunks(MIGRATION_SHARDS_MAX) {
            let mig = CopyId(mig_next.0 + migrations.len() as u64);
            migrations.push(Migration { mig, from, to, shards: shards.to_vec(), cancel: false });
        }
    }
    migrations
}

/// Whether the plan gives a shard of the migration to another group than the one it goes to.
pub fn is_contradicted(migration: &Migration, plan: &Configuration) -> bool {
    migration.shards.iter().any(|(shard, _)| {
        let planned = plan.shards.get(usize::from(shard.0));
        planned.is_some_and(|group| *group != migration.to && plan.groups.contains_key(group))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ConfigNumber;

    fn plan(shards: &[u64], groups: &[u64]) -> Configuration {
        Configuration {
            number: ConfigNumber(1),
            groups: groups.iter().map(|group| (GroupId(*group), Vec::new())).collect(),
            shards: shards.iter().copied().map(GroupId).collect(),
        }
    }

    #[test]
    fn each_group_makes_what_nobody_owns_or_makes() {
        let owner = Owner { group: GroupId(1), epoch: FIRST_EPOCH, copy: CopyId(1) };
        let pending =
            vec![Creation { copy: CopyId(2), group: GroupId(2), shards: vec![ShardId(3)] }];
        let owners = [Some(owner), None, None, None, None];
        let started = creations(&plan(&[1, 1, 2, 2, 0], &[1, 2]), &owners, &pending, CopyId(3));
        let expected = vec![
            Creation { copy: CopyId(3), group: GroupId(1), shards: vec![ShardId(1)] },
            Creation { copy: CopyId(4), group: GroupId(2), shards: vec![ShardId(2)] },
        ];
        assert_eq!(started, expected);
    }

    #[test]
    fn nothing_is_started_where_all_is_as_planned() {
        let owner = Owner { group: GroupId(1), epoch: FIRST_EPOCH, copy: CopyId(1) };
        let owners = [Some(owner), Some(owner)];
        assert_eq!(creations(&plan(&[1, 1], &[1]), &owners, &[], CopyId(2)), Vec::new());
    }
}
