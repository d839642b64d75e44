//! The commands that change the plan, and the one that prints it.

use std::collections::{BTreeMap, BTreeSet};

use base::{ConfigNumber, GroupId, NodeId, ShardId};
use router::{Configuration, NewGroup, Routes, ShardMove, range_line};
use serde_json::json;

use crate::arguments::{JoinArguments, LeaveArguments, MoveArguments, QueryArguments};
use crate::ask::{Asker, failure_of};
use crate::failure::Failure;
use crate::output::{print_json, print_text};
use crate::view::shards_text;
use crate::watch::watch;

/// `decree join`: adds groups and prints the configuration that this makes.
pub(crate) async fn join(asker: &Asker, arguments: JoinArguments) -> Result<(), Failure> {
    let groups = parse_groups(&arguments.groups)?;
    let made = asker.client.join(new_groups(&groups)).await.map_err(failure_of)?;
    made_plan(asker, &made.value, arguments.watch).await
}

/// `decree leave`: takes groups out and prints the configuration that this makes.
pub(crate) async fn leave(asker: &Asker, arguments: LeaveArguments) -> Result<(), Failure> {
    let groups = arguments.groups.into_iter().map(GroupId).collect();
    let made = asker.client.leave(groups).await.map_err(failure_of)?;
    made_plan(asker, &made.value, arguments.watch).await
}

/// `decree move`: gives shards to groups, or back, and prints the configuration that this makes.
pub(crate) async fn move_shards(asker: &Asker, arguments: MoveArguments) -> Result<(), Failure> {
    let moves = if arguments.cancel {
        let shards = parse_shard_list(&arguments.words)?;
        let routes = asker.client.newest_routes().await.map_err(failure_of)?;
        let plan = asker.client.query(None).await.map_err(failure_of)?;
        moves_back(&shards, &routes, &plan.value)?
    } else {
        parse_moves(&arguments.words)?
    };
    let made = asker.client.move_shards(moves).await.map_err(failure_of)?;
    made_plan(asker, &made.value, arguments.watch).await
}

async fn made_plan(asker: &Asker, made: &Configuration, watched: bool) -> Result<(), Failure> {
    print_configuration(asker, made)?;
    if watched { watch(asker, made).await } else { Ok(()) }
}

/// `decree query`: prints a configuration.
pub(crate) async fn query(asker: &Asker, arguments: QueryArguments) -> Result<(), Failure> {
    let number = arguments.number.map(ConfigNumber);
    let found = asker.client.query(number).await.map_err(failure_of)?;
    print_configuration(asker, &found.value)
}

/// Groups as a request names them.
pub(crate) fn new_groups(groups: &[(u64, Vec<u64>)]) -> Vec<NewGroup> {
    groups
        .iter()
        .map(|(group, nodes)| NewGroup {
            group: GroupId(*group),
            nodes: nodes.iter().copied().map(NodeId).collect(),
        })
        .collect()
}

/// `GID NODE... [+ GID NODE...]`.
fn parse_groups(words: &[String]) -> Result<Vec<(u64, Vec<u64>)>, Failure> {
    words
        .split(|word| word == "+")
        .map(|group| {
            let numbers = group
                .iter()
                .map(|word| {
                    word.parse::<u64>().map_err(|_| {
                        Failure::usage(format!(
                            "`{word}` is no number; write GID NODE... [+ GID NODE...], for \
                             example: decree join 1 1 2 3 + 2 1 2 3"
                        ))
                    })
                })
                .collect::<Result<Vec<u64>, Failure>>()?;
            match numbers.split_first() {
                Some((&group, nodes)) if !nodes.is_empty() => Ok((group, nodes.to_vec())),
                _ => Err(Failure::usage(
                    "each group needs its number and at least one node, for example: \
                     decree join 1 1 2 3 + 2 1 2 3",
                )),
            }
        })
        .collect()
}

/// `SHARD|A-B... GID [+ SHARD|A-B... GID]`.
fn parse_moves(words: &[String]) -> Result<Vec<ShardMove>, Failure> {
    let moves = words.split(|word| word == "+").map(|words| match words.split_last() {
        Some((group, shards)) if !shards.is_empty() => {
            let group = group.parse().map_err(|_| move_usage(group))?;
            Ok(ShardMove { shards: parse_shard_list(shards)?, group: GroupId(group) })
        }
        Some(_) | None => Err(move_usage(&words.join(" "))),
    });
    moves.collect()
}

fn parse_shard_list(words: &[String]) -> Result<Vec<ShardId>, Failure> {
    let mut shards = Vec::new();
    for word in words {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let number = |text: &str| text.parse::<u16>().map_err(|_| move_usage(word));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(Failure::usage(format!(
                "`{word}` is no range: write the lower number first, {last}-{first}"
            )));
        }
        shards.extend((first..=last).map(ShardId));
    }
    Ok(shards)
}

fn move_usage(word: &str) -> Failure {
    Failure::usage(format!(
        "`{word}` is not understood; write SHARD|A-B... GID [+ SHARD|A-B... GID], for example: \
         decree move 0-9 2"
    ))
}

/// The moves that leave these shards with the groups that still have them, where the plan is to
/// take them away.
fn moves_back(
    shards: &[ShardId],
    routes: &Routes,
    plan: &Configuration,
) -> Result<Vec<ShardMove>, Failure> {
    let mut back: BTreeMap<GroupId, Vec<ShardId>> = BTreeMap::new();
    for shard in shards.iter().collect::<BTreeSet<_>>() {
        let Some(planned) = plan.shards.get(usize::from(shard.0)) else {
            return Err(Failure::error(
                "refused",
                format!(
                    "there is no shard {}: this cluster has the shards 0 to {}",
                    shard.0,
                    plan.shards.len().saturating_sub(1)
                ),
            ));
        };
        let owner = routes.owner(*shard).map(|owner| owner.group);
        if let Some(owner) = owner.filter(|owner| owner != planned && *planned != GroupId::MASTER) {
            back.entry(owner).or_default().push(*shard);
        }
    }
    if back.is_empty() {
        return Err(Failure::error(
            "refused",
            format!("nothing to cancel: {} stay where they are", shards_text(shards)),
        ));
    }
    Ok(back.into_iter().map(|(group, shards)| ShardMove { shards, group }).collect())
}

fn print_configuration(asker: &Asker, configuration: &Configuration) -> Result<(), Failure> {
    let ranges = configuration.ranges();
    if asker.json {
        let groups: Vec<_> = configuration
            .groups
            .iter()
            .map(|(group, nodes)| {
                let nodes: Vec<u64> = nodes.iter().map(|node| node.0).collect();
                json!({ "group": group.0, "nodes": nodes })
            })
            .collect();
        let shards: Vec<_> = ranges
            .iter()
            .map(|(range, group)| {
                json!({ "first": range.start(), "last": range.end(), "group": group.0 })
            })
            .collect();
        return print_json(&json!({
            "configuration": configuration.number.0, "groups": groups, "shards": shards
        }));
    }
    let mut text = format!("configuration {}\n", configuration.number.0);
    for (group, nodes) in &configuration.groups {
        let nodes: Vec<String> = nodes.iter().map(|node| node.0.to_string()).collect();
        text.push_str(&format!("group {}: nodes {}\n", group.0, nodes.join(" ")));
    }
    for (range, group) in &ranges {
        text.push_str(&range_line(range, *group));
        text.push('\n');
    }
    print_text(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn shards(numbers: &[u16]) -> Vec<ShardId> {
        numbers.iter().copied().map(ShardId).collect()
    }

    #[test]
    fn groups_are_separated_by_plus() {
        let groups = parse_groups(&words("1 1 2 3 + 2 3 4")).unwrap();
        assert_eq!(groups, [(1, vec![1, 2, 3]), (2, vec![3, 4])]);
        assert!(parse_groups(&words("1 1 +")).is_err());
        assert!(parse_groups(&words("1")).is_err());
        assert!(parse_groups(&words("1 one")).is_err());
    }

    #[test]
    fn moves_name_shards_and_ranges_and_then_a_group() {
        let moves = parse_moves(&words("3 7-9 2 + 12 1")).unwrap();
        let expected = [
            ShardMove { shards: shards(&[3, 7, 8, 9]), group: GroupId(2) },
            ShardMove { shards: shards(&[12]), group: GroupId(1) },
        ];
        assert_eq!(moves, expected);
        for wrong in
            ["1", "1 2 +", "+ 1 2", "a 2", "9-7 2", "1- 2", "-1 2", "70000 2", "1 b", "1-2"]
        {
            assert!(parse_moves(&words(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_cancelled_goes_back_to_who_has_it() {
        let owner = |group| {
            let (epoch, copy) = (base::ShardEpoch(1), base::CopyId(1));
            Some(router::Owner { group: GroupId(group), epoch, copy })
        };
        let owners = vec![owner(1), owner(2), owner(1), owner(1), None];
        let routes = Routes { owners, ..Routes::default() };
        let planned = [2, 1, 1, 0, 1].map(GroupId).to_vec();
        let plan = Configuration { shards: planned, ..Configuration::default() };
        let back = moves_back(&shards(&[0, 1, 2, 3, 4, 0]), &routes, &plan).unwrap();
        let expected = [
            ShardMove { shards: shards(&[0]), group: GroupId(1) },
            ShardMove { shards: shards(&[1]), group: GroupId(2) },
        ];
        assert_eq!(back, expected);
        assert!(moves_back(&shards(&[2]), &routes, &plan).is_err(), "it is where it shall be");
        assert!(moves_back(&shards(&[5]), &routes, &plan).is_err(), "there is no such shard");
    }
}
