//! The commands that take replicas off a node, and what is said of replicas on their way.

use std::time::{Duration, Instant};

use base::{GroupId, NodeId};
use router::{Configuration, MemberChange, Routes};
use serde_json::{Value, json};

use crate::arguments::NodeCommand;
use crate::ask::{Asker, failure_of};
use crate::failure::Failure;
use crate::output::{print_json, print_text};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// `decree node replace` and `decree node drain`.
pub(crate) async fn node(asker: &Asker, command: NodeCommand) -> Result<(), Failure> {
    let (node, watched, made) = match command {
        NodeCommand::Replace(arguments) => {
            let (old, new) = (NodeId(arguments.old), NodeId(arguments.new));
            (old, arguments.watch, asker.client.replace_node(old, new).await)
        }
        NodeCommand::Drain(arguments) => {
            let node = NodeId(arguments.node);
            (node, arguments.watch, asker.client.drain_node(node).await)
        }
    };
    let made: Configuration = made.map_err(failure_of)?.value;
    let number = made.number.0;
    if asker.json {
        print_json(&json!({ "configuration": number, "leaving_node": node.0 }))?;
    } else {
        print_text(&format!(
            "configuration {number}: the replicas on node {} go to other nodes{}",
            node.0,
            if watched { "" } else { "; `decree status` shows how far they are" }
        ))?;
    }
    if watched { watch(asker, node).await } else { Ok(()) }
}

/// Waits until no group has a member on the node.
async fn watch(asker: &Asker, node: NodeId) -> Result<(), Failure> {
    let deadline = asker.timeout.map(|timeout| Instant::now() + timeout);
    let mut said = String::new();
    loop {
        let left = match asker.client.newest_routes().await {
            Ok(routes) => left_text(&routes, node),
            Err(client::Error::Refused(reply)) => {
                return Err(failure_of(client::Error::Refused(reply)));
            }
            Err(error) => Some(error.to_string()),
        };
        let text = left.clone().unwrap_or_else(|| format!("no replica is left on node {}", node.0));
        if text != said {
            match asker.json {
                true => print_json(&json!({ "node": node.0, "state": text }))?,
                false => print_text(&text)?,
            }
            said = text;
        }
        if left.is_none() {
            return Ok(());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let text = format!("the time is over, and it goes on: {said}");
            return Err(Failure::error("unfinished", text));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is still on a node.
fn left_text(routes: &Routes, node: NodeId) -> Option<String> {
    let on_node = routes.groups.iter().filter(|(_, info)| info.members.iter().any(|m| m.1 == node));
    let groups: Vec<String> = on_node.map(|(group, _)| group.0.to_string()).collect();
    (!groups.is_empty()).then(|| {
        format!("node {} still holds replicas of the groups {}", node.0, groups.join(", "))
    })
}

/// A change of members, for people.
fn change_line(group: GroupId, change: &MemberChange, routes: &Routes) -> String {
    let members = routes.groups.get(&group).map(|info| info.members.as_slice()).unwrap_or_default();
    let joins = change.joins.iter().map(|(replica, node, _)| {
        format!("replica {} on node {} learns and is to come in", replica.0, node.0)
    });
    let leaves = change.leaves.iter().map(|gone| {
        match members.iter().find(|(replica, ..)| replica == gone) {
            Some((replica, node, _)) => {
                format!("replica {} on node {} is to go", replica.0, node.0)
            }
            None => format!("replica {} is to go", gone.0),
        }
    });
    let what: Vec<String> = joins.chain(leaves).collect();
    format!("group {}: its members change: {}", group.0, what.join(", "))
}

/// What is wrong with the members of a group, where too many have lost their disks.
fn lost_line(group: GroupId, routes: &Routes) -> Option<String> {
    let members = &routes.groups.get(&group)?.members;
    let is_there = |node: &NodeId, disk| routes.nodes.get(node).is_some_and(|n| n.disk == disk);
    let left = members.iter().filter(|(_, node, disk)| is_there(node, *disk)).count();
    (left <= members.len() / 2).then(|| {
        format!(
            "group {}: {} of its {} replicas have lost their disks: those that are left cannot \
             agree on others; bring back a lost data directory, or restore a backup",
            group.0,
            members.len() - left,
            members.len()
        )
    })
}

/// What is said of members that change, one line each.
pub(crate) fn change_lines(routes: &Routes) -> Vec<String> {
    let changes = routes.changes.iter();
    let changes = changes.map(|(group, change)| change_line(*group, change, routes));
    changes.chain(routes.groups.keys().filter_map(|group| lost_line(*group, routes))).collect()
}

/// The same for programs.
pub(crate) fn change_json(group: GroupId, change: &MemberChange) -> Value {
    let joins = change.joins.iter().map(|(r, n, _)| json!({ "replica": r.0, "node": n.0 }));
    json!({
        "group": group.0,
        "joining": joins.collect::<Vec<_>>(),
        "leaving": change.leaves.iter().map(|replica| replica.0).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use base::{Address, DiskId, ReplicaId};
    use router::{GroupInfo, NodeInfo};

    use super::*;

    fn routes() -> Routes {
        let member = |n: u64| (ReplicaId(n), NodeId(n), DiskId(u128::from(n)));
        let info = |n: u64, disk: u128| NodeInfo {
            node: NodeId(n),
            disk: DiskId(disk),
            peer: Address::new("a:1"),
            grpc: Address::new("a:2"),
        };
        let mut routes = Routes::default();
        let members = (1..=3).map(member).collect();
        routes.groups.insert(GroupId(1), GroupInfo { members });
        routes.nodes = (1..=3).map(|n| (NodeId(n), info(n, u128::from(n)))).collect();
        let change = MemberChange { epoch: 1, joins: vec![member(4)], leaves: vec![ReplicaId(3)] };
        routes.changes.insert(GroupId(1), change);
        routes
    }

    #[test]
    fn a_change_of_members_is_said_in_one_line() {
        let mut routes = routes();
        let line = "group 1: its members change: replica 4 on node 4 learns and is to come in, \
                    replica 3 on node 3 is to go";
        assert_eq!(change_lines(&routes), [line]);
        assert_eq!(
            left_text(&routes, NodeId(3)).unwrap(),
            "node 3 still holds replicas of the groups 1"
        );
        assert_eq!(left_text(&routes, NodeId(4)), None);
        routes.changes.clear();
        for lost in [2, 3] {
            routes.nodes.get_mut(&NodeId(lost)).unwrap().disk = DiskId(99);
        }
        let lines = change_lines(&routes);
        assert!(lines[0].contains("2 of its 3 replicas have lost their disks"), "{lines:?}");
    }
}
