//! What the nodes of a cluster say, put together: who leads, what the groups have of the shards,
//! and how far the hand-offs are. It is read from every node that answers and needs no quorum.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use base::{GroupId, NodeId, ShardId};
use router::{Handoff, NodeStatus, Routes, ShardState, ShardStatus};
use serde_json::{Value, json};

use crate::ask::Asker;

/// The cluster, as far as it answers.
pub(crate) struct View {
    /// The routes that it was put together by.
    pub(crate) routes: Routes,
    /// The node that leads each group.
    pub(crate) leaders: BTreeMap<GroupId, NodeId>,
    /// What the groups have of the shards, as their leaders say.
    pub(crate) shards: BTreeMap<(GroupId, ShardId), ShardStatus>,
}

/// A hand-off under way, and where it stands.
pub(crate) struct Progress {
    pub(crate) handoff: Handoff,
    pub(crate) stage: Stage,
    /// Groups that it needs and of which no leader answers.
    pub(crate) waits_for: Vec<GroupId>,
    /// Bytes of keys and values at the group that has the shards, and of its copy at the other.
    pub(crate) bytes: u64,
    pub(crate) bytes_copied: u64,
}

/// Where a hand-off stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Neither group has begun, or it is not known.
    Planned,
    /// A copy grows while the shards are served as before.
    Copying,
    /// The shards are not served for a moment.
    Frozen,
    /// The new group serves them; that is yet to be recorded.
    Done,
    /// The new group will not take them.
    Refused,
}

impl View {
    /// Asks every node that the routes name.
    pub(crate) async fn gather(asker: &Asker, routes: Routes) -> View {
        let time_max =
            asker.timeout.map_or(ANSWER_TIME_MAX, |timeout| timeout.min(ANSWER_TIME_MAX));
        let client = asker.client.with_timeout(time_max);
        let asked = routes.nodes.values().map(async |node| {
            let endpoint = node.grpc.as_str();
            let (status, shards) =
                futures::future::join(client.status(endpoint), client.shards(endpoint)).await;
            Some((status.ok()?, shards.ok()?))
        });
        let answers = futures::future::join_all(asked).await;
        View::put_together(routes, answers.into_iter().flatten().collect())
    }

    fn put_together(routes: Routes, answers: Vec<(NodeStatus, Vec<ShardStatus>)>) -> View {
        // One that was replaced may not know it yet: the higher round counts.
        let mut leaders: BTreeMap<GroupId, (u32, NodeId)> = BTreeMap::new();
        for (status, _) in &answers {
            for group in status.groups.iter().filter(|group| group.leading) {
                let leader = leaders.entry(group.group).or_default();
                *leader = (*leader).max((group.round, status.node));
            }
        }
        let leaders: BTreeMap<GroupId, NodeId> =
            leaders.into_iter().map(|(group, (_, node))| (group, node)).collect();
        let mut shards = BTreeMap::new();
        for (status, of_node) in answers {
            let led = of_node.into_iter().filter(|s| leaders.get(&s.group) == Some(&status.node));
            shards.extend(led.map(|shard| ((shard.group, shard.shard), shard)));
        }
        View { routes, leaders, shards }
    }

    /// The hand-offs under way.
    pub(crate) fn progress(&self) -> Vec<Progress> {
        self.routes.handoffs.iter().map(|handoff| self.progress_of(handoff)).collect()
    }

    fn progress_of(&self, handoff: &Handoff) -> Progress {
        let mut progress = Progress {
            handoff: handoff.clone(),
            stage: Stage::Planned,
            waits_for: [handoff.from, handoff.to]
                .into_iter()
                .filter(|group| !self.leaders.contains_key(group))
                .collect(),
            bytes: 0,
            bytes_copied: 0,
        };
        for shard in &handoff.shards {
            let source = self.shards.get(&(handoff.from, *shard));
            let copy = self.shards.get(&(handoff.to, *shard));
            progress.bytes += source.map_or(0, |source| source.bytes);
            progress.bytes_copied += copy.map_or(0, |copy| copy.bytes);
            // All shards of a set are at the same place in one log, and the farther log decides.
            let stages = [source, copy].into_iter().flatten().map(|s| stage_of(handoff, s.state));
            progress.stage = stages.fold(progress.stage, farther);
        }
        progress
    }

    /// Dead copies that the leaders know of, and the groups among these of which no leader answers.
    pub(crate) fn dead_copies(&self, groups: &BTreeSet<GroupId>) -> (u64, Vec<GroupId>) {
        let dead = self.shards.values().map(|shard| u64::from(shard.dead_copies)).sum();
        let silent = groups.iter().filter(|group| !self.leaders.contains_key(group));
        (dead, silent.copied().collect())
    }
}

fn stage_of(handoff: &Handoff, state: ShardState) -> Stage {
    match state {
        ShardState::Out { mig, .. } | ShardState::In { mig, .. } if mig == handoff.mig => {
            Stage::Copying
        }
        ShardState::Frozen { mig, .. } if mig == handoff.mig => Stage::Frozen,
        ShardState::Refused { mig } if mig == handoff.mig => Stage::Refused,
        ShardState::Moved { dst, .. } if dst == handoff.to => Stage::Done,
        ShardState::Owned
        | ShardState::Out { .. }
        | ShardState::In { .. }
        | ShardState::Frozen { .. }
        | ShardState::Refused { .. }
        | ShardState::Moved { .. } => Stage::Planned,
    }
}

fn farther(one: Stage, other: Stage) -> Stage {
    let rank = |stage| match stage {
        Stage::Planned => 0,
        Stage::Copying => 1,
        Stage::Frozen => 2,
        Stage::Refused => 3,
        Stage::Done => 4,
    };
    if rank(other) > rank(one) { other } else { one }
}

impl Progress {
    /// How much of the shards was copied, in percent.
    pub(crate) fn percent(&self) -> u64 {
        match self.stage {
            Stage::Planned | Stage::Refused => 0,
            Stage::Copying if self.bytes == 0 => 0,
            Stage::Copying => (self.bytes_copied.saturating_mul(100) / self.bytes).min(100),
            Stage::Frozen | Stage::Done => 100,
        }
    }

    /// A line for people: what moves, where it stands, and what it waits for.
    pub(crate) fn line(&self) -> String {
        let Handoff { mig, from, to, shards, cancel } = &self.handoff;
        let mut line = format!(
            "hand-off {}: {} from group {} to group {}: ",
            mig.0,
            shards_text(shards),
            from.0,
            to.0
        );
        if *cancel {
            line.push_str("given up by the newest configuration, ");
        }
        match self.stage {
            Stage::Planned => line.push_str("planned"),
            Stage::Copying => line.push_str(&format!("copying, {} %", self.percent())),
            Stage::Frozen => line.push_str("changing hands"),
            Stage::Done => line.push_str("done, to be recorded"),
            Stage::Refused => line.push_str("refused, begins again"),
        }
        for group in &self.waits_for {
            line.push_str(&format!("; waits for group {}: no leader answers", group.0));
        }
        line
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> Value {
        let state = match self.stage {
            Stage::Planned => "planned",
            Stage::Copying => "copying",
            Stage::Frozen => "frozen",
            Stage::Done => "done",
            Stage::Refused => "refused",
        };
        let shards = ranges(&self.handoff.shards);
        let shards: Vec<_> = shards.iter().map(|r| json!([r.start(), r.end()])).collect();
        let waits_for: Vec<u64> = self.waits_for.iter().map(|group| group.0).collect();
        json!({
            "handoff": self.handoff.mig.0, "from": self.handoff.from.0, "to": self.handoff.to.0,
            "shards": shards, "cancel": self.handoff.cancel, "state": state,
            "bytes": self.bytes, "bytes_copied": self.bytes_copied, "waits_for": waits_for
        })
    }
}

/// Shards in ranges of neighbours.
pub(crate) fn ranges(shards: &[ShardId]) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for shard in shards {
        match ranges.last_mut() {
            Some(range) if range.end().checked_add(1) == Some(shard.0) => {
                *range = *range.start()..=shard.0;
            }
            Some(_) | None => ranges.push(shard.0..=shard.0),
        }
    }
    ranges
}

/// `shard 7`, or `shards 0-9 12 14` with no more ranges than fit a line.
pub(crate) fn shards_text(shards: &[ShardId]) -> String {
    if let [shard] = shards {
        return format!("shard {}", shard.0);
    }
    let ranges = ranges(shards);
    let mut words: Vec<String> = ranges.iter().take(RANGES_MAX).map(range_text).collect();
    if ranges.len() > RANGES_MAX {
        words.push(format!("... ({} in all)", shards.len()));
    }
    format!("shards {}", words.join(" "))
}

/// `7` or `0-9`.
pub(crate) fn range_text(range: &RangeInclusive<u16>) -> String {
    match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{}-{}", range.start(), range.end()),
    }
}

/// A node that hangs must not hide the others for long.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
const RANGES_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Address, BootId, ConfigNumber, CopyId, DiskId, Micros, ReplicaId, ShardEpoch};
    use base::{Slot, Version};
    use router::GroupStatus;

    fn node(node: u64, led: &[(u64, u32)]) -> NodeStatus {
        let group = |(group, round): &(u64, u32)| GroupStatus {
            group: GroupId(*group),
            replica: ReplicaId(1),
            nodes: Vec::new(),
            leader: None,
            leading: true,
            round: *round,
            chosen_upto: Slot(0),
            applied: Slot(0),
            persisted: Slot(0),
            truncated_upto: Slot(0),
            trouble: None,
        };
        NodeStatus {
            node: NodeId(node),
            disk: DiskId(1),
            boot: BootId(1),
            cluster: None,
            peer: Address::new(""),
            grpc: Address::new(""),
            not_ready: None,
            routes_version: 1,
            configuration: ConfigNumber(1),
            groups: led.iter().map(group).collect(),
            peers: Vec::new(),
            wal_live_bytes: 0,
            wal_syncs: 0,
            wal_full: false,
            overlay_bytes: 0,
            open_requests: 0,
            uptime: Micros(0),
            program: String::new(),
            scrubbed_bytes: 0,
            damage_found: 0,
            repaired_slots: 0,
        }
    }

    fn shard(group: u64, shard: u16, state: ShardState, bytes: u64) -> ShardStatus {
        ShardStatus {
            shard: ShardId(shard),
            group: GroupId(group),
            leading: true,
            state,
            epoch: ShardEpoch(1),
            keys: 1,
            bytes,
            version: Version(1),
            dead_copies: 1,
            dead_records: 5,
        }
    }

    fn routes() -> Routes {
        let handoff = Handoff {
            mig: CopyId(7),
            from: GroupId(1),
            to: GroupId(2),
            shards: [0, 1, 2, 9].map(ShardId).to_vec(),
            cancel: false,
        };
        Routes { handoffs: vec![handoff], ..Routes::default() }
    }

    fn line(answers: Vec<(NodeStatus, Vec<ShardStatus>)>) -> String {
        let view = View::put_together(routes(), answers);
        view.progress()[0].line()
    }

    #[test]
    fn a_line_says_where_a_hand_off_stands() {
        let (mig, dst, src) = (CopyId(7), GroupId(2), GroupId(1));
        let begin = "hand-off 7: shards 0-2 9 from group 1 to group 2: ";
        let at = |source, copy| {
            line(vec![
                (node(1, &[(1, 1)]), vec![shard(1, 0, source, 200)]),
                (node(2, &[(2, 1)]), vec![shard(2, 0, copy, 50)]),
            ])
        };
        let out = ShardState::Out { mig, dst };
        let copy = ShardState::In { mig, src };
        assert_eq!(at(ShardState::Owned, ShardState::Refused { mig: CopyId(3) }), {
            format!("{begin}planned")
        });
        assert_eq!(at(out, copy), format!("{begin}copying, 25 %"));
        let frozen = ShardState::Frozen { mig, dst };
        assert_eq!(at(frozen, copy), format!("{begin}changing hands"));
        let moved = ShardState::Moved { epoch: ShardEpoch(2), dst };
        assert_eq!(at(moved, ShardState::Owned), format!("{begin}done, to be recorded"));
        let refused = at(out, ShardState::Refused { mig });
        assert_eq!(refused, format!("{begin}refused, begins again"));
    }

    #[test]
    fn a_line_says_what_a_hand_off_waits_for() {
        let source = (node(1, &[(1, 1)]), vec![shard(1, 0, ShardState::Owned, 200)]);
        let text = line(vec![source]);
        assert!(text.ends_with("planned; waits for group 2: no leader answers"), "{text}");
        assert!(line(Vec::new()).contains("waits for group 1"));
    }

    #[test]
    fn the_leader_of_the_higher_round_is_believed() {
        let old = (node(1, &[(1, 1)]), vec![shard(1, 0, ShardState::Owned, 1)]);
        let new = (node(2, &[(1, 2)]), vec![shard(1, 0, ShardState::Owned, 2)]);
        let view = View::put_together(routes(), vec![new, old]);
        assert_eq!(view.leaders[&GroupId(1)], NodeId(2));
        assert_eq!(view.shards[&(GroupId(1), ShardId(0))].bytes, 2);
        let groups = [GroupId(1), GroupId(2)].into();
        assert_eq!(view.dead_copies(&groups), (1, vec![GroupId(2)]));
    }

    #[test]
    fn many_ranges_are_cut_short() {
        let shards: Vec<ShardId> = (0..10).map(|n| ShardId(2 * n)).collect();
        assert_eq!(shards_text(&shards), "shards 0 2 4 6 8 10 ... (10 in all)");
        assert_eq!(shards_text(&shards[1..2]), "shard 2");
        assert_eq!(ranges(&[ShardId(u16::MAX)]), [u16::MAX..=u16::MAX]);
    }
}
