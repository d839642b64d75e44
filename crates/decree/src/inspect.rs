//! The commands that show nodes and replicas, who leads, and the hand-offs under way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{CopyId, GroupId, NodeId, ShardId};
use router::{GroupStatus, NodeStatus, Routes};
use serde_json::{Value, json};

use crate::ask::{Asker, failure_of};
use crate::failure::Failure;
use crate::machines::{change_json, change_lines};
use crate::output::{print_json, print_text, table};
use crate::view::{Progress, View};

/// `decree status`: asks each node that is known for its own view. It needs no quorum, and fails
/// only when no node answers at all.
pub(crate) async fn status(asker: &Asker) -> Result<(), Failure> {
    let (answers, routes) = statuses(asker).await?;
    let progress = progress(asker, &routes).await;
    if asker.json {
        for (endpoint, answer) in &answers {
            print_json(&match answer {
                Ok(status) => status_json(endpoint, status),
                Err(failure) => json!({ "grpc": endpoint, "error": failure.to_string() }),
            })?;
        }
        progress.iter().try_for_each(|handoff| print_json(&handoff.json()))?;
        let mut changes = routes.changes.iter();
        changes.try_for_each(|(group, change)| print_json(&change_json(*group, change)))?;
        let mut barred = routes.barred.iter();
        return barred.try_for_each(|(shard, handoff)| {
            print_json(&json!({ "barred_shard": shard.0, "unequal_in_handoff": handoff.0 }))
        });
    }
    let mut text = String::new();
    let up = || answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
    let clusters: BTreeSet<String> =
        up().filter_map(|s| s.cluster).map(|c| c.to_string()).collect();
    match clusters.len() {
        0 => text.push_str("no cluster yet: create it with `decree init`\n"),
        1 => text.extend(clusters.iter().map(|cluster| format!("cluster {cluster}\n"))),
        _ => text.push_str("warning: these nodes belong to different clusters\n"),
    }
    if let Some(newest) = up().map(|status| status.configuration.0).max() {
        text.push_str(&format!("configuration {newest}\n"));
    }
    text.push('\n');
    text.push_str(&node_table(&answers));
    let replicas = replica_table(up());
    if !replicas.is_empty() {
        text.push('\n');
        text.push_str(&replicas);
    }
    text.push_str(&movements(&routes, &progress));
    print_text(&text)
}

type Answers = Vec<(String, Result<NodeStatus, client::Error>)>;

/// Where the hand-offs stand, if there are any.
async fn progress(asker: &Asker, routes: &Routes) -> Vec<Progress> {
    if routes.handoffs.is_empty() {
        return Vec::new();
    }
    View::gather(asker, routes.clone()).await.progress()
}

/// What is said of a shard that stays where it is because its copy was not right.
fn barred_line(shard: ShardId, handoff: CopyId) -> String {
    format!(
        "shard {} stays where it is: in hand-off {} its copy was not equal to it, which is a fault \
         of this program; please report it with the logs; `decree move {} GROUP` tries again",
        shard.0, handoff.0, shard.0
    )
}

/// What is on its way, and what waits for whom.
fn movements(routes: &Routes, progress: &[Progress]) -> String {
    let mut text = String::new();
    let homeless = routes.owners.iter().filter(|owner| owner.is_none()).count();
    if routes.configuration.0 > 0 && homeless > 0 {
        text.push_str(&format!("\n{homeless} shards have no owner: no group has made them yet\n"));
    }
    if !routes.barred.is_empty() || !progress.is_empty() {
        text.push('\n');
    }
    for (shard, handoff) in &routes.barred {
        text.push_str(&barred_line(*shard, *handoff));
        text.push('\n');
    }
    for handoff in progress {
        text.push_str(&handoff.line());
        text.push('\n');
    }
    let changes = change_lines(routes);
    if !changes.is_empty() {
        text.push('\n');
    }
    for line in changes {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// The status of every node that is named on the command line or known to one that answers.
/// Also the routes, as one of them has them.
async fn statuses(asker: &Asker) -> Result<(Answers, Routes), Failure> {
    // A node that hangs must not hide the others for long.
    let time_max = asker.timeout.unwrap_or(ANSWER_TIME_MAX);
    let client = asker.client.with_timeout(time_max);
    let ask = async |endpoints: &[String]| -> Answers {
        let asked = endpoints.iter().map(async |endpoint| {
            let answer = client.status(endpoint).await;
            (endpoint.clone(), answer)
        });
        futures::future::join_all(asked).await
    };
    let mut answers = ask(&asker.endpoints).await;
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        return Err(match answers.into_iter().next() {
            Some((_, Err(error))) => failure_of(error),
            _ => Failure::usage("no endpoint is given"),
        });
    }
    let in_cluster = |answer: &NodeStatus| answer.cluster.is_some();
    let routes = match client.routes().await {
        Ok(routes) => routes,
        Err(error) => {
            if answers.iter().any(|(_, answer)| answer.as_ref().is_ok_and(in_cluster)) {
                eprintln!("only nodes that were named are shown; which others there are: {error}");
            }
            Routes::default()
        }
    };
    let (reachable, others): (Vec<_>, Vec<_>) =
        routes.nodes.values().partition(|node| node.has_registered());
    let mut more: Vec<String> =
        reachable.iter().map(|node| node.grpc.as_str().to_owned()).collect();
    more.retain(|endpoint| !asker.endpoints.contains(endpoint));
    answers.extend(ask(&more).await);
    // One node may be reached by two names.
    let mut seen = BTreeSet::new();
    answers.retain(|(_, answer)| answer.as_ref().map_or(true, |s| seen.insert(s.disk)));
    answers.sort_by_key(|(_, answer)| answer.as_ref().map_or(NodeId(u64::MAX), |s| s.node));
    answers.extend(others.iter().filter(|node| !seen.contains(&node.disk)).map(|node| {
        let text = format!("node {} at {} has not registered yet", node.node.0, node.peer);
        (String::new(), Err(client::Error::Unavailable(text)))
    }));
    Ok((answers, routes))
}

fn node_table(answers: &Answers) -> String {
    let rows: Vec<[String; 8]> = answers
        .iter()
        .map(|(endpoint, answer)| match answer {
            Ok(status) => [
                node_text(status.node),
                endpoint.clone(),
                status.peer.to_string(),
                state_text(status),
                status.groups.iter().filter(|group| group.leading).count().to_string(),
                size_text(status.wal_live_bytes),
                size_text(status.overlay_bytes),
                uptime_text(status.uptime.0 / 1_000_000),
            ],
            Err(error) => {
                let mut row = [const { String::new() }; 8].map(|_| "-".to_owned());
                row[1] = endpoint.clone();
                row[3] = format!("no answer: {error}");
                row
            }
        })
        .collect();
    table(["NODE", "GRPC", "PEERS", "STATE", "LEADS", "WAL", "OVERLAY", "UP"], &rows)
}

/// One line per replica, groups together, its lag behind the farthest replica of its group.
fn replica_table<'a>(nodes: impl Iterator<Item = &'a NodeStatus>) -> String {
    let mut groups: BTreeMap<GroupId, Vec<(NodeId, &GroupStatus)>> = BTreeMap::new();
    for status in nodes {
        for group in &status.groups {
            groups.entry(group.group).or_default().push((status.node, group));
        }
    }
    let mut rows: Vec<[String; 8]> = Vec::new();
    for (group, mut replicas) in groups {
        replicas.sort_by_key(|(node, _)| *node);
        let chosen_max = replicas.iter().map(|(_, replica)| replica.chosen_upto.0).max();
        for (node, replica) in replicas {
            let lag = chosen_max.unwrap_or_default().saturating_sub(replica.applied.0);
            let role = match (&replica.trouble, replica.leading, replica.leader) {
                (Some(trouble), _, _) => trouble.clone(),
                (None, true, _) => "leads".to_owned(),
                (None, false, Some(leader)) => format!("follows node {}", leader.0),
                (None, false, None) => "knows no leader".to_owned(),
            };
            rows.push([
                group_text(group),
                node_text(node),
                role,
                replica.round.to_string(),
                replica.chosen_upto.0.to_string(),
                replica.applied.0.to_string(),
                replica.persisted.0.to_string(),
                lag.to_string(),
            ]);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    table(["GROUP", "NODE", "ROLE", "ROUND", "CHOSEN", "APPLIED", "PERSISTED", "LAG"], &rows)
}

fn status_json(endpoint: &str, status: &NodeStatus) -> Value {
    let groups: Vec<Value> = status
        .groups
        .iter()
        .map(|group| {
            let nodes: Vec<u64> = group.nodes.iter().map(|node| node.0).collect();
            json!({
                "group": group.group.0, "replica": group.replica.0, "nodes": nodes,
                "leader": group.leader.map(|node| node.0), "leading": group.leading,
                "round": group.round, "chosen": group.chosen_upto.0,
                "applied": group.applied.0, "persisted": group.persisted.0,
                "truncated": group.truncated_upto.0, "trouble": group.trouble
            })
        })
        .collect();
    let peers: Vec<Value> = status
        .peers
        .iter()
        .map(|peer| {
            json!({
                "node": peer.node.0, "connected": peer.connected,
                "round_trip_us": peer.round_trip.0
            })
        })
        .collect();
    json!({
        "node": status.node.0, "grpc": endpoint, "peer": status.peer.as_str(),
        "disk": status.disk.to_string(), "boot": status.boot.to_string(),
        "cluster": status.cluster.map(|cluster| cluster.to_string()),
        "ready": status.not_ready.is_none(), "not_ready": status.not_ready,
        "configuration": status.configuration.0, "routes": status.routes_version,
        "groups": groups, "peers": peers, "wal_live_bytes": status.wal_live_bytes,
        "wal_syncs": status.wal_syncs, "wal_full": status.wal_full,
        "overlay_bytes": status.overlay_bytes, "open_requests": status.open_requests,
        "uptime_s": status.uptime.0 / 1_000_000, "program": status.program,
        "scrubbed_bytes": status.scrubbed_bytes, "damage_found": status.damage_found,
        "repaired_slots": status.repaired_slots
    })
}

/// `decree nodes`: the registry, as the nodes' routes have it.
pub(crate) async fn nodes(asker: &Asker) -> Result<(), Failure> {
    let routes = asker.client.routes().await.map_err(failure_of)?;
    let groups_of = |node: NodeId| -> Vec<u64> {
        let on_node = |info: &router::GroupInfo| info.members.iter().any(|(_, on, _)| *on == node);
        routes.groups.iter().filter(|(_, info)| on_node(info)).map(|(group, _)| group.0).collect()
    };
    if asker.json {
        for node in routes.nodes.values() {
            print_json(&json!({
                "node": node.node.0, "disk": node.disk.to_string(), "grpc": node.grpc.as_str(),
                "peer": node.peer.as_str(), "groups": groups_of(node.node)
            }))?;
        }
        return Ok(());
    }
    let rows: Vec<[String; 5]> = routes
        .nodes
        .values()
        .map(|node| {
            let groups: Vec<String> =
                groups_of(node.node).into_iter().map(|group| group_text(GroupId(group))).collect();
            [
                node_text(node.node),
                node.grpc.to_string(),
                node.peer.to_string(),
                groups.join(" "),
                node.disk.to_string(),
            ]
        })
        .collect();
    print_text(&table(["NODE", "GRPC", "PEERS", "GROUPS", "DISK"], &rows))
}

const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

pub(crate) fn node_text(node: NodeId) -> String {
    if node.0 == 0 { "new".to_owned() } else { node.0.to_string() }
}

pub(crate) fn group_text(group: GroupId) -> String {
    if group == GroupId::MASTER { "master".to_owned() } else { group.0.to_string() }
}

fn state_text(status: &NodeStatus) -> String {
    match &status.not_ready {
        Some(reason) => format!("not ready: {reason}"),
        None if status.wal_full => "log full: refuses writes".to_owned(),
        None => "ready".to_owned(),
    }
}

fn size_text(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes / 1_024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

fn uptime_text(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3_600),
    }
}
