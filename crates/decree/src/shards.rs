//! The command that shows what the groups have of the shards.

use base::{GroupId, NodeId, ShardId};
use router::{Routes, ShardState, ShardStatus};
use serde_json::{Value, json};

use crate::arguments::ShardsArguments;
use crate::ask::{Asker, failure_of};
use crate::failure::Failure;
use crate::inspect::{group_text, node_text};
use crate::output::{print_json, print_text, table};
use crate::view::{View, range_text};

/// `decree shards`: every shard at its owner, and whatever else the groups have of it. People are
/// not shown what a group has given away without a rest.
pub(crate) async fn shards(asker: &Asker, arguments: ShardsArguments) -> Result<(), Failure> {
    let routes = asker.client.routes().await.map_err(failure_of)?;
    let view = View::gather(asker, routes).await;
    let lines = shard_lines(&view, arguments.all);
    if asker.json {
        return lines.iter().try_for_each(|line| print_json(&line.json()));
    }
    let shown = lines.iter().filter(|line| !line.is_over());
    let rows: Vec<[String; 8]> = shown.map(ShardLine::row).collect();
    let header = ["SHARDS", "GROUP", "LEADER", "STATE", "EPOCH", "KEYS", "BYTES", "DEAD COPIES"];
    print_text(&table(header, &rows))
}

/// A range of shards at one group that differ in nothing but their content.
struct ShardLine {
    first: u16,
    last: u16,
    group: Option<GroupId>,
    leader: Option<NodeId>,
    /// None where no leader says.
    state: Option<ShardState>,
    epoch: u64,
    keys: u64,
    bytes: u64,
    dead_copies: u64,
    dead_records: u64,
}

/// The lines, by their first shard and then their group.
fn shard_lines(view: &View, all: bool) -> Vec<ShardLine> {
    // By group and then shard, as neighbours of one group are one line.
    let mut single: Vec<ShardLine> = view.shards.values().map(|s| of_status(view, s)).collect();
    single.extend(unanswered(view));
    single.sort_by_key(|line| (line.group, line.first));
    let mut lines: Vec<ShardLine> = Vec::new();
    for line in single {
        match lines.last_mut() {
            Some(last) if !all && last.continues(&line) => last.extend(&line),
            Some(_) | None => lines.push(line),
        }
    }
    lines.sort_by_key(|line| (line.first, line.group));
    lines
}

fn of_status(view: &View, status: &ShardStatus) -> ShardLine {
    ShardLine {
        first: status.shard.0,
        last: status.shard.0,
        group: Some(status.group),
        leader: view.leaders.get(&status.group).copied(),
        state: Some(status.state),
        epoch: status.epoch.0,
        keys: status.keys,
        bytes: status.bytes,
        dead_copies: u64::from(status.dead_copies),
        dead_records: status.dead_records,
    }
}

/// The shards of whose owner no leader says anything, and those without an owner.
fn unanswered(view: &View) -> Vec<ShardLine> {
    let routes: &Routes = &view.routes;
    let shards = (0..routes.shards()).map(ShardId);
    let lines = shards.map(|shard| (shard, routes.owner(shard))).filter(|(shard, owner)| {
        let answered = |group| view.shards.contains_key(&(group, *shard));
        !owner.is_some_and(|owner| answered(owner.group))
    });
    let lines = lines.map(|(shard, owner)| ShardLine {
        first: shard.0,
        last: shard.0,
        group: owner.map(|owner| owner.group),
        leader: None,
        state: None,
        epoch: owner.map_or(0, |owner| owner.epoch.0),
        keys: 0,
        bytes: 0,
        dead_copies: 0,
        dead_records: 0,
    });
    lines.collect()
}

impl ShardLine {
    fn continues(&self, next: &ShardLine) -> bool {
        let same = (self.group, self.leader, self.state, self.epoch)
            == (next.group, next.leader, next.state, next.epoch);
        same && self.last.checked_add(1) == Some(next.first)
    }

    fn extend(&mut self, next: &ShardLine) {
        self.last = next.last;
        self.keys += next.keys;
        self.bytes += next.bytes;
        self.dead_copies += next.dead_copies;
        self.dead_records += next.dead_records;
    }

    /// Whether the group has nothing of the shards any more.
    fn is_over(&self) -> bool {
        let is_past = match self.state {
            Some(ShardState::Moved { .. } | ShardState::Refused { .. }) => true,
            Some(
                ShardState::Owned
                | ShardState::Out { .. }
                | ShardState::Frozen { .. }
                | ShardState::In { .. },
            )
            | None => false,
        };
        is_past && self.dead_copies == 0 && self.dead_records == 0
    }

    /// The state in one word, as programs read it.
    fn state_word(&self) -> &'static str {
        match self.state {
            Some(ShardState::Owned) => "served",
            Some(ShardState::Out { .. }) => "out",
            Some(ShardState::Frozen { .. }) => "frozen",
            Some(ShardState::Moved { .. }) => "moved",
            Some(ShardState::In { .. }) => "in",
            Some(ShardState::Refused { .. }) => "refused",
            None if self.group.is_some() => "no leader answers",
            None => "no owner",
        }
    }

    fn state_text(&self) -> String {
        match self.state {
            Some(ShardState::Out { dst, .. }) => {
                format!("served, copied to group {}", dst.0)
            }
            Some(ShardState::Frozen { dst, .. }) => format!("changing to group {}", dst.0),
            Some(ShardState::Moved { dst, .. }) => format!("moved to group {}", dst.0),
            Some(ShardState::In { src, .. }) => format!("copied from group {}", src.0),
            Some(ShardState::Owned | ShardState::Refused { .. }) | None => {
                self.state_word().to_owned()
            }
        }
    }

    fn row(&self) -> [String; 8] {
        let dash = || "-".to_owned();
        [
            range_text(&(self.first..=self.last)),
            self.group.map_or_else(dash, group_text),
            self.leader.map_or_else(dash, node_text),
            self.state_text(),
            self.epoch.to_string(),
            self.keys.to_string(),
            self.bytes.to_string(),
            self.dead_copies.to_string(),
        ]
    }

    fn json(&self) -> Value {
        let (handoff, other) = match self.state {
            Some(ShardState::Out { mig, dst } | ShardState::Frozen { mig, dst }) => {
                (Some(mig.0), Some(dst.0))
            }
            Some(ShardState::In { mig, src }) => (Some(mig.0), Some(src.0)),
            Some(ShardState::Moved { dst, .. }) => (None, Some(dst.0)),
            Some(ShardState::Refused { mig }) => (Some(mig.0), None),
            Some(ShardState::Owned) | None => (None, None),
        };
        json!({
            "first": self.first, "last": self.last, "group": self.group.map(|group| group.0),
            "leader": self.leader.map(|node| node.0), "state": self.state_word(),
            "epoch": self.epoch, "keys": self.keys, "bytes": self.bytes,
            "dead_copies": self.dead_copies, "dead_records": self.dead_records,
            "handoff": handoff, "other_group": other
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{CopyId, ShardEpoch, Version};
    use router::Owner;
    use std::collections::BTreeMap;

    fn status(group: u64, shard: u16, state: ShardState, dead_copies: u32) -> ShardStatus {
        ShardStatus {
            shard: ShardId(shard),
            group: GroupId(group),
            leading: true,
            state,
            epoch: ShardEpoch(1),
            keys: 1,
            bytes: 10,
            version: Version(1),
            dead_copies,
            dead_records: u64::from(dead_copies),
        }
    }

    /// Group 1 owns the shards 0 to 3, of which it hands 2 and 3 to group 2; it has given 4 to
    /// group 3, which does not answer. Nobody owns 5.
    fn view() -> View {
        let (mig, dst, src) = (CopyId(7), GroupId(2), GroupId(1));
        let moved = ShardState::Moved { epoch: ShardEpoch(2), dst: GroupId(3) };
        let shards = [
            status(1, 0, ShardState::Owned, 0),
            status(1, 1, ShardState::Owned, 1),
            status(1, 2, ShardState::Out { mig, dst }, 0),
            status(1, 3, ShardState::Out { mig, dst }, 0),
            status(1, 4, moved, 0),
            status(2, 2, ShardState::In { mig, src }, 0),
            status(2, 3, ShardState::In { mig, src }, 0),
        ];
        let owner =
            |group| Some(Owner { group: GroupId(group), epoch: ShardEpoch(1), copy: CopyId(1) });
        let owners = vec![owner(1), owner(1), owner(1), owner(1), owner(3), None];
        View {
            routes: Routes { owners, ..Routes::default() },
            leaders: BTreeMap::from([(GroupId(1), NodeId(1)), (GroupId(2), NodeId(2))]),
            shards: shards.into_iter().map(|s| ((s.group, s.shard), s)).collect(),
        }
    }

    #[test]
    fn every_group_shows_what_it_has_of_a_shard() {
        let lines: Vec<_> = shard_lines(&view(), false)
            .iter()
            .map(|line| (line.first, line.last, line.group.map(|g| g.0), line.state_text()))
            .collect();
        let line = |first, last, group, state: &str| (first, last, group, state.to_owned());
        let expected = [
            line(0, 1, Some(1), "served"),
            line(2, 3, Some(1), "served, copied to group 2"),
            line(2, 3, Some(2), "copied from group 1"),
            line(4, 4, Some(1), "moved to group 3"),
            line(4, 4, Some(3), "no leader answers"),
            line(5, 5, None, "no owner"),
        ];
        assert_eq!(lines, expected);
        assert_eq!(shard_lines(&view(), true).len(), 9);
    }

    #[test]
    fn programs_read_numbers_and_people_are_spared_what_is_over() {
        let lines = shard_lines(&view(), false);
        let first = json!({
            "first": 0, "last": 1, "group": 1, "leader": 1, "state": "served", "epoch": 1,
            "keys": 2, "bytes": 20, "dead_copies": 1, "dead_records": 1, "handoff": null,
            "other_group": null
        });
        assert_eq!(lines[0].json(), first);
        assert_eq!(lines[2].json()["handoff"], 7);
        assert_eq!(lines[3].json()["state"], "moved");
        let over: Vec<bool> = lines.iter().map(ShardLine::is_over).collect();
        assert_eq!(over, [false, false, false, true, false, false]);
    }
}
