//! What the cluster says of itself at one moment, and whether all of it is well.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base::{GroupId, Slot};
use client::Client;
use router::{GroupStatus, NodeStatus, Routes};

use super::support::replicas::Replicas;

/// The shard master answers within this time, or is left out.
const ROUTES_TIME_MAX: Duration = Duration::from_secs(2);

/// What was seen.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// When the nodes were begun to be asked.
    pub(crate) begun: Instant,
    /// The nodes that answered.
    pub(crate) statuses: BTreeMap<u64, NodeStatus>,
    /// What the shard master knows, if it answered.
    pub(crate) routes: Option<Routes>,
}

impl Sample {
    /// Asks all.
    pub(crate) async fn take(control: &Client, endpoints: &[String]) -> Sample {
        let begun = Instant::now();
        // What the masters say comes first: what the nodes say is then true after it.
        let routes = control.with_timeout(ROUTES_TIME_MAX).newest_routes().await.ok();
        let statuses = Replicas::take(control, endpoints).await.nodes;
        Sample { begun, statuses, routes }
    }

    /// All replicas that answered, by node.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = (u64, &GroupStatus)> {
        self.statuses
            .iter()
            .flat_map(|(node, status)| status.groups.iter().map(move |replica| (*node, replica)))
    }

    /// What is wrong with some replica.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.replicas().find_map(|(node, replica)| {
            let trouble = replica.trouble.as_ref()?;
            Some(format!("group {} on node {node}: {trouble}", replica.group.0))
        })
    }

    /// A member of a group on a disk that is not there any more.
    pub(crate) fn lost_member(&self) -> Option<String> {
        let routes = self.routes.as_ref()?;
        routes.groups.iter().find_map(|(group, info)| {
            let is_lost = |node, disk| routes.nodes.get(node).is_none_or(|n| n.disk != disk);
            let lost = info.members.iter().find(|(_, node, disk)| is_lost(node, *disk))?;
            Some(format!("replica {} of group {} is on a lost disk", lost.0.0, group.0))
        })
    }

    /// The highest chosen slot of each group.
    pub(crate) fn chosen(&self) -> BTreeMap<GroupId, Slot> {
        let mut chosen: BTreeMap<GroupId, Slot> = BTreeMap::new();
        for (_, replica) in self.replicas() {
            let slot = chosen.entry(replica.group).or_default();
            *slot = (*slot).max(replica.chosen_upto);
        }
        chosen
    }

    /// Why not every group has exactly its members, all up, sound, following the same leader and
    /// not more than so many slots behind; none when all is well.
    pub(crate) fn lack(&self, nodes: u64, slots: u64) -> Option<String> {
        let Some(routes) = &self.routes else { return Some("no master answers".to_owned()) };
        if let Some(silent) = (1..=nodes).find(|node| !self.statuses.contains_key(node)) {
            return Some(format!("node {silent} does not answer"));
        }
        if !routes.changes.is_empty() {
            return Some(format!("members change: {:?}", routes.changes));
        }
        if let Some(text) = self.trouble().or_else(|| self.lost_member()) {
            return Some(text);
        }
        let chosen = self.chosen();
        for (group, info) in &routes.groups {
            let members: BTreeMap<u64, u64> =
                info.members.iter().map(|(replica, node, _)| (node.0, replica.0)).collect();
            let of_group = self.replicas().filter(|(_, replica)| replica.group == *group);
            let all: BTreeMap<u64, &GroupStatus> = of_group.collect();
            let here: BTreeMap<u64, u64> = all.iter().map(|(n, r)| (*n, r.replica.0)).collect();
            if here != members {
                return Some(format!("group {} has {here:?}, not {members:?}", group.0));
            }
            let leading = all.values().filter(|replica| replica.leading).count();
            if leading != 1 {
                return Some(format!("{leading} lead group {}", group.0));
            }
            for (node, replica) in all {
                let chosen = chosen.get(group).copied().unwrap_or_default();
                let behind = chosen.0.saturating_sub(replica.applied.0);
                if behind > slots || replica.leader.is_none() {
                    let number = group.0;
                    return Some(format!("group {number} on node {node} is {behind} slots behind"));
                }
            }
        }
        let full = self.statuses.values().find(|status| status.wal_full);
        full.map(|status| format!("the log or the disk of node {} is full", status.node.0))
    }
}
