//! What the nodes of a cluster say of their replicas at one moment, and whether all are whole.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base::GroupId;
use client::Client;
use router::{GroupStatus, NodeStatus};

/// A node that does not answer within this time is passed over.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// The answers of the nodes that gave one.
pub(crate) struct Replicas {
    pub(crate) nodes: BTreeMap<u64, NodeStatus>,
}

impl Replicas {
    /// Asks every node.
    pub(crate) async fn take(client: &Client, endpoints: &[String]) -> Replicas {
        let short = client.with_timeout(ANSWER_TIME_MAX);
        let asked = endpoints.iter().map(|endpoint| short.status(endpoint));
        let answers = futures::future::join_all(asked).await.into_iter().flatten();
        Replicas { nodes: answers.map(|status| (status.node.0, status)).collect() }
    }

    /// Asks every node but one, which does not answer.
    pub(crate) async fn take_but(client: &Client, endpoints: &[String], node: u64) -> Replicas {
        let mut others = endpoints.to_vec();
        others.remove(node as usize - 1);
        Replicas::take(client, &others).await
    }

    /// All replicas of a group that answered, by node.
    pub(crate) fn of_group(&self, group: GroupId) -> impl Iterator<Item = (u64, &GroupStatus)> {
        self.nodes.iter().filter_map(move |(node, status)| {
            let replica = status.groups.iter().find(|replica| replica.group == group);
            replica.map(|replica| (*node, replica))
        })
    }

    /// The node that leads a group: where several say so, the one of the highest round.
    pub(crate) fn leader(&self, group: GroupId) -> Option<u64> {
        let leading = self.of_group(group).filter(|(_, replica)| replica.leading);
        leading.max_by_key(|(_, replica)| replica.round).map(|(node, _)| node)
    }

    /// The numbers of the replicas on a node, by group.
    pub(crate) fn on_node(&self, node: u64) -> BTreeMap<GroupId, u64> {
        let groups = self.nodes.get(&node).map(|status| status.groups.as_slice());
        let groups = groups.unwrap_or_default().iter();
        groups.map(|replica| (replica.group, replica.replica.0)).collect()
    }

    /// Why not every one of these groups has all its replicas up, sound and not more than so many
    /// slots behind; none when all is well.
    pub(crate) fn lack(&self, groups: &[GroupId], replicas: usize, slots: u64) -> Option<String> {
        for group in groups {
            let number = group.0;
            let all: Vec<(u64, &GroupStatus)> = self.of_group(*group).collect();
            if all.len() != replicas {
                return Some(format!("{} replicas of group {number} answer", all.len()));
            }
            if self.leader(*group).is_none() {
                return Some(format!("nobody leads group {number}"));
            }
            let chosen = all.iter().map(|(_, replica)| replica.chosen_upto.0).max();
            for (node, replica) in all {
                if let Some(trouble) = &replica.trouble {
                    return Some(format!("group {number} on node {node}: {trouble}"));
                }
                let behind = chosen.unwrap_or_default().saturating_sub(replica.applied.0);
                if behind > slots || replica.leader.is_none() {
                    return Some(format!("group {number} on node {node} is {behind} slots behind"));
                }
            }
        }
        None
    }
}

/// Waits until all replicas of these groups are up and sound, and close behind the first: how long
/// that took, and what was seen; else what is lacking.
pub(crate) async fn until_whole(
    client: &Client,
    endpoints: &[String],
    (groups, replicas, slots): (&[GroupId], usize, u64),
    longest: Duration,
) -> Result<(Duration, Replicas), String> {
    let begun = Instant::now();
    loop {
        let seen = Replicas::take(client, endpoints).await;
        let Some(lack) = seen.lack(groups, replicas, slots) else {
            return Ok((begun.elapsed(), seen));
        };
        if begun.elapsed() >= longest {
            return Err(format!("not whole after {} s: {lack}", longest.as_secs()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until a group has a leader that stays the same for a while: its node.
pub(crate) async fn steady_leader(
    client: &Client,
    endpoints: &[String],
    group: GroupId,
    longest: Duration,
) -> Result<u64, String> {
    const STEADY: Duration = Duration::from_millis(1_500);
    let begun = Instant::now();
    let mut held: Option<(u64, Instant)> = None;
    while begun.elapsed() < longest {
        let now = Replicas::take(client, endpoints).await.leader(group);
        held = match (held, now) {
            (Some((before, since)), Some(now)) if before == now => {
                if since.elapsed() >= STEADY {
                    return Ok(now);
                }
                Some((before, since))
            }
            (_, now) => now.map(|now| (now, Instant::now())),
        };
        tokio::time::sleep(PAUSE).await;
    }
    Err(format!("group {} has no steady leader after {} s", group.0, longest.as_secs()))
}
