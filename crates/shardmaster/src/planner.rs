//! What is to be done, so that what is becomes what is planned. A pure comparison, made whenever
//! either changes.

use std::collections::{BTreeMap, BTreeSet};

use base::{CopyId, GroupId, ShardEpoch, ShardId};
use minicbor::{Decode, Encode};
use router::{Configuration, Owner};

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

/// The epoch of a shard under its first owner.
pub const FIRST_EPOCH: ShardEpoch = ShardEpoch(1);

impl Creation {
    /// The shards with their epochs, as the group's command has them.
    pub fn epochs(&self) -> Vec<(ShardId, ShardEpoch)> {
        self.shards.iter().map(|shard| (*shard, FIRST_EPOCH)).collect()
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
