//! Which group is to serve which shard: even, with the fewest moves, and always the same.

use std::collections::{BTreeMap, BTreeSet};

use base::GroupId;

/// Divides the shards among the groups, starting from the present division (group 0 stands for
/// none).
///
/// The result is a pure function of the arguments: the numbers of shards of any two groups differ
/// by at most one, and no other division of which this holds moves fewer shards. Shards that are
/// free go in order to the groups in order, so that a first division is one range for each group.
/// Without groups every shard is free.
pub fn rebalance(shards: &[GroupId], groups: &BTreeSet<GroupId>) -> Vec<GroupId> {
    if groups.is_empty() {
        return vec![GroupId::MASTER; shards.len()];
    }
    let mut room = targets(shards, groups);
    let mut divided: Vec<Option<GroupId>> = Vec::with_capacity(shards.len());
    for group in shards {
        let room = room.get_mut(group).filter(|room| **room > 0);
        divided.push(room.map(|room| {
            *room -= 1;
            *group
        }));
    }
    let free = room.into_iter().flat_map(|(group, room)| std::iter::repeat_n(group, room));
    let mut free = free.fuse();
    let divided = divided.into_iter().map(|kept| kept.or_else(|| free.next()));
    divided.map(|group| group.unwrap_or(GroupId::MASTER)).collect()
}

/// How many shards each group is to have. Where the division leaves a remainder, those that have
/// the most shards get one more: what they keep is not moved.
fn targets(shards: &[GroupId], groups: &BTreeSet<GroupId>) -> BTreeMap<GroupId, usize> {
    let mut counts: BTreeMap<GroupId, usize> = groups.iter().map(|group| (*group, 0)).collect();
    for group in shards {
        if let Some(count) = counts.get_mut(group) {
            *count += 1;
        }
    }
    let mut order: Vec<(GroupId, usize)> = counts.into_iter().collect();
    order.sort_by_key(|(group, count)| (std::cmp::Reverse(*count), *group));
    let (even, remainder) = (shards.len() / groups.len(), shards.len() % groups.len());
    let target = |index| even + usize::from(index < remainder);
    order.into_iter().enumerate().map(|(index, (group, _))| (group, target(index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn groups(numbers: &[u64]) -> BTreeSet<GroupId> {
        numbers.iter().copied().map(GroupId).collect()
    }

    fn shards(numbers: &[u64]) -> Vec<GroupId> {
        numbers.iter().copied().map(GroupId).collect()
    }

    #[test]
    fn a_first_division_is_a_range_for_each_group() {
        let divided = rebalance(&shards(&[0; 8]), &groups(&[1, 2, 3]));
        assert_eq!(divided, shards(&[1, 1, 1, 2, 2, 2, 3, 3]));
    }

    #[test]
    fn a_new_group_gets_its_share_and_nothing_else_moves() {
        let divided = rebalance(&shards(&[1, 1, 1, 2, 2, 2]), &groups(&[1, 2, 3]));
        assert_eq!(divided, shards(&[1, 1, 3, 2, 2, 3]));
    }

    #[test]
    fn without_groups_every_shard_is_free() {
        assert_eq!(rebalance(&shards(&[1, 1, 2]), &groups(&[])), shards(&[0, 0, 0]));
    }

    #[test]
    fn more_groups_than_shards_leaves_some_without() {
        let divided = rebalance(&shards(&[0, 0]), &groups(&[5, 7, 9]));
        assert_eq!(divided, shards(&[5, 7]));
    }

    /// The fewest moves of any even division, by trying which groups get one shard more.
    fn fewest_moves(present: &[GroupId], groups: &BTreeSet<GroupId>) -> usize {
        let (even, remainder) = (present.len() / groups.len(), present.len() % groups.len());
        let counts: Vec<usize> =
            groups.iter().map(|g| present.iter().filter(|p| *p == g).count()).collect();
        let choices = (0..1_u32 << groups.len()).filter(|c| c.count_ones() as usize == remainder);
        let kept = choices.map(|choice| {
            let target = |index: usize| even + (choice >> index & 1) as usize;
            counts.iter().enumerate().map(|(i, count)| target(i).min(*count)).sum::<usize>()
        });
        present.len() - kept.max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn divisions_are_even_with_the_fewest_moves(
            present in proptest::collection::vec(0..7_u64, 0..60),
            members in proptest::collection::btree_set(1..9_u64, 1..7),
        ) {
            let present = shards(&present);
            let members: BTreeSet<GroupId> = members.into_iter().map(GroupId).collect();
            let divided = rebalance(&present, &members);
            prop_assert_eq!(&rebalance(&present, &members), &divided, "always the same");
            prop_assert_eq!(divided.len(), present.len());
            prop_assert!(divided.iter().all(|group| members.contains(group)));
            let counts = members.iter().map(|g| divided.iter().filter(|d| *d == g).count());
            let (min, max) = (counts.clone().min().unwrap(), counts.max().unwrap());
            prop_assert!(max - min <= 1, "{min}..{max}");
            let moves = present.iter().zip(&divided).filter(|(a, b)| a != b).count();
            prop_assert_eq!(moves, fewest_moves(&present, &members));
            // What is even already stays as it is.
            prop_assert_eq!(rebalance(&divided, &members), divided);
        }
    }
}
