//! The nodes: how they become known, and what a group takes of them.

use std::collections::BTreeSet;

use base::limits::{GROUP_REPLICAS_MAX, NODE_NUMBER_MAX};
use base::{Address, DiskId, NodeId, ReplicaId};
use router::{ErrorReply, MasterAnswer, NewGroup, NodeInfo};

use crate::command::Master;
use crate::replicas::{self, Told};
use crate::state::State;

/// Most nodes of a cluster.
pub(crate) const NODES_MAX: usize = 1_024;
/// The starts of a disk that takes the place of another, or has lost count, are counted from so far
/// behind the last registration of that node: it is not started so often without one.
const STARTS_LEAP: u64 = 1 << 32;
/// Longest address, in bytes: a longest host name, and a port.
const ADDRESS_BYTES_MAX: usize = 262;

/// A node makes itself known. The disk decides who it is.
pub(crate) fn register(
    state: &mut State,
    node: &NodeInfo,
    starts: u64,
    replaces: Option<DiskId>,
) -> Result<MasterAnswer, ErrorReply> {
    validate_address(&node.peer)?;
    validate_address(&node.grpc)?;
    if node.node.0 > NODE_NUMBER_MAX {
        return Err(invalid(format!("node numbers end at {NODE_NUMBER_MAX}")));
    }
    if state.placements.lost_disks.contains(&node.disk) {
        return Err(refused(
            "this data directory was lost, and its replicas were replaced by others: start the node \
             with an empty data directory"
                .to_string(),
        ));
    }
    let known = state.routes.nodes.values().find(|known| known.disk == node.disk);
    // An empty data directory at the address of a node is that node's, which lost its own.
    let heir = state.routes.nodes.values().find(|known| {
        known.peer == node.peer && (node.node == known.node || node.node == NodeId(0))
    });
    let heir = heir.filter(|_| known.is_none()).map(|known| (known.node, known.disk));
    // Whoever names the disk that is known was there after it, and is newer than any other that was.
    if let Some((number, known)) = heir {
        let behind = counted_from(state, number, node.disk);
        if replaces != Some(known) || starts <= behind {
            let now = Told { disk: node.disk, starts: behind };
            state.placements.told.insert(number, now);
            return Ok(MasterAnswer::Replaces { disk: node.disk, known, starts: behind });
        }
    }
    // A disk that counts less than it did has lost the record of it, or is an old copy.
    // It may have been started since its last registration, so that it counts on from far behind it.
    if let Some((number, disk)) = known.map(|known| (known.node, known.disk))
        && starts < newest(state, number)
    {
        let behind = counted_from(state, number, disk);
        state.placements.told.insert(number, Told { disk, starts: behind });
        return Ok(MasterAnswer::Replaces { disk, known: disk, starts: behind });
    }
    let number = match known.map(|known| known.node) {
        Some(known) if node.node == NodeId(0) || node.node == known => known,
        Some(known) => {
            return Err(refused(format!(
                "this data directory belongs to node {}, and asks to be node {}: start it \
                 under its own number",
                known.0, node.node.0
            )));
        }
        None if heir.is_some() => heir.map(|(node, _)| node).unwrap_or_default(),
        None if state.routes.nodes.len() >= NODES_MAX => {
            return Err(ErrorReply::ResourceExhausted(format!(
                "the cluster has {NODES_MAX} nodes, its limit"
            )));
        }
        None if node.node == NodeId(0) => state.meta.node_next,
        None if state.routes.nodes.contains_key(&node.node) => {
            return Err(refused(format!(
                "number {} belongs to a node with another data directory, at {}: choose a free \
                 number, or none to be given one. To replace a lost data directory, start the node \
                 at its address",
                node.node.0,
                state.routes.nodes.get(&node.node).map_or("", |known| known.peer.as_str())
            )));
        }
        None => node.node,
    };
    state.meta.node_next = state.meta.node_next.max(NodeId(number.0 + 1));
    let newest = state.placements.starts.entry(number).or_default();
    *newest = starts.max(*newest);
    let newest = *newest;
    // The disk before may register once more while its successor counts already.
    if state.placements.told.get(&number).is_some_and(|told| told.starts < newest) {
        state.placements.told.remove(&number);
    }
    let info = NodeInfo { node: number, ..node.clone() };
    if state.routes.nodes.get(&number) != Some(&info) {
        state.routes.nodes.insert(number, info);
        if let Some((_, lost)) = heir {
            replicas::disk_lost(state, lost);
        }
        state.change_routes();
    }
    Ok(MasterAnswer::Registered(number))
}

/// The highest count of starts that a node has told.
fn newest(state: &State, node: NodeId) -> u64 {
    state.placements.starts.get(&node).copied().unwrap_or_default()
}

/// From where the starts of a disk are counted that is to be a node's next one, or does not know how
/// often it was started: behind those of its last, and behind those of any other that was told so
/// meanwhile and lost before it was registered.
fn counted_from(state: &State, number: NodeId, disk: DiskId) -> u64 {
    let newest = newest(state, number);
    match state.placements.told.get(&number) {
        Some(told) if told.disk == disk && told.starts > newest => told.starts,
        Some(told) => told.starts.max(newest).saturating_add(STARTS_LEAP),
        None => newest.saturating_add(STARTS_LEAP),
    }
}

/// Whether nodes can be those of group 0: others count on from the numbers that they bring.
pub(crate) fn validate_masters(masters: &[Master]) -> Result<(), ErrorReply> {
    let numbers = 1..=NODE_NUMBER_MAX;
    for (place, master) in masters.iter().enumerate() {
        validate_address(&master.peer)?;
        if !numbers.contains(&master.node.0) || !numbers.contains(&master.replica.0) {
            return Err(invalid(format!(
                "a master is replica {} on node {}: both are numbered from 1 to {NODE_NUMBER_MAX}",
                master.replica.0, master.node.0
            )));
        }
        let same = |other: &Master| {
            other.node == master.node
                || other.replica == master.replica
                || other.disk == master.disk
        };
        if masters.iter().take(place).any(same) {
            return Err(invalid(format!("node {} is a master twice", master.node.0)));
        }
    }
    Ok(())
}

/// Replicas for the nodes, under numbers that were never used.
pub(crate) fn allocate(state: &mut State, nodes: &[NodeId]) -> Vec<(ReplicaId, NodeId, DiskId)> {
    let mut members = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(info) = state.routes.nodes.get(node) else {
            unreachable!("{node} was known when the join was checked");
        };
        members.push((state.meta.replica_next, *node, info.disk));
        state.meta.replica_next = ReplicaId(state.meta.replica_next.0 + 1);
    }
    members
}

/// Whether a group may live on the nodes.
pub(crate) fn validate_nodes(state: &State, new: &NewGroup) -> Result<(), ErrorReply> {
    let number = new.group.0;
    if new.nodes.is_empty() {
        return Err(invalid(format!("group {number} has no nodes: name those it shall live on")));
    }
    if new.nodes.len() > GROUP_REPLICAS_MAX {
        return Err(invalid(format!(
            "group {number} has {} nodes, and the limit is {GROUP_REPLICAS_MAX}",
            new.nodes.len()
        )));
    }
    let mut seen = BTreeSet::new();
    for node in &new.nodes {
        if !seen.insert(node) {
            return Err(invalid(format!("group {number} names node {} twice", node.0)));
        }
        if !state.routes.nodes.contains_key(node) {
            let known: Vec<String> =
                state.routes.nodes.keys().map(|node| node.0.to_string()).collect();
            return Err(refused(format!(
                "node {} is not known; known are {}",
                node.0,
                known.join(", ")
            )));
        }
    }
    Ok(())
}

fn validate_address(address: &Address) -> Result<(), ErrorReply> {
    let bytes = address.as_str().len();
    if bytes > ADDRESS_BYTES_MAX {
        return Err(invalid(format!(
            "an address has {bytes} bytes, and the limit is {ADDRESS_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// The request makes no sense.
pub(crate) fn invalid(text: String) -> ErrorReply {
    ErrorReply::Invalid(text)
}

/// The request contradicts the present state.
pub(crate) fn refused(text: String) -> ErrorReply {
    ErrorReply::Refused(text)
}
