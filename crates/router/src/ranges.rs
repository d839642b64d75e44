//! Configurations as people read them: ranges of shards and their groups.

use std::ops::RangeInclusive;

use base::{GroupId, ShardId};

use crate::configuration::Configuration;

impl Configuration {
    /// The shards in ranges of neighbours with the same group, in order; group 0 stands for none.
    pub fn ranges(&self) -> Vec<(RangeInclusive<u16>, GroupId)> {
        let mut ranges: Vec<(RangeInclusive<u16>, GroupId)> = Vec::new();
        for (shard, group) in (0..=u16::MAX).zip(&self.shards) {
            match ranges.last_mut() {
                Some((range, last)) if last == group => *range = *range.start()..=shard,
                _ => ranges.push((shard..=shard, *group)),
            }
        }
        ranges
    }

    /// The shards that the configuration gives to a group.
    pub fn shards_of(&self, group: GroupId) -> Vec<ShardId> {
        let of_group = (0..=u16::MAX).zip(&self.shards).filter(|(_, owner)| **owner == group);
        of_group.map(|(shard, _)| ShardId(shard)).collect()
    }
}

/// One line of a configuration: `0-511 -> 1`, `7 -> 2`, or `0-1023 -> none`.
pub fn range_line(range: &RangeInclusive<u16>, group: GroupId) -> String {
    let shards = if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    };
    if group == GroupId::MASTER {
        format!("{shards} -> none")
    } else {
        format!("{shards} -> {}", group.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(groups: &[u64]) -> Vec<String> {
        let shards = groups.iter().map(|group| GroupId(*group)).collect();
        let configuration = Configuration { shards, ..Configuration::default() };
        configuration.ranges().iter().map(|(range, group)| range_line(range, *group)).collect()
    }

    #[test]
    fn neighbours_of_one_group_are_one_line() {
        assert_eq!(lines(&[1, 1, 2, 1]), ["0-1 -> 1", "2 -> 2", "3 -> 1"]);
        assert_eq!(lines(&[0, 0]), ["0-1 -> none"]);
        assert_eq!(lines(&[]), Vec::<String>::new());
    }

    #[test]
    fn the_shards_of_a_group_are_those_the_configuration_names() {
        let shards = [1, 2, 1].map(GroupId).to_vec();
        let configuration = Configuration { shards, ..Configuration::default() };
        assert_eq!(configuration.shards_of(GroupId(1)), [ShardId(0), ShardId(2)]);
    }
}
