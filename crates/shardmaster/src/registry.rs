//! What Register and Join do to the state, each all or nothing.

use std::collections::{BTreeMap, BTreeSet};

use base::limits::GROUP_REPLICAS_MAX;
use base::{Address, ConfigNumber, CopyId, GroupId, NodeId, ReplicaId};
use router::{Configuration, ErrorReply, GroupInfo, MasterAnswer, NewGroup, NodeInfo};

use crate::planner;
use crate::rebalance::rebalance;
use crate::state::State;

/// Most nodes of a cluster.
pub(crate) const NODES_MAX: usize = 1_024;
/// The highest number that a node may ask for.
const NODE_NUMBER_MAX: NodeId = NodeId(1_000_000);
/// Most groups of one Join.
const JOIN_GROUPS_MAX: usize = 1_024;
/// The highest number of a group.
const GROUP_NUMBER_MAX: GroupId = GroupId(1_000_000);
/// Longest address, in bytes: a longest host name, and a port.
const ADDRESS_BYTES_MAX: usize = 262;

/// A node makes itself known. The disk decides who it is.
pub(crate) fn register(state: &mut State, node: &NodeInfo) -> Result<MasterAnswer, ErrorReply> {
    validate_address(&node.peer)?;
    validate_address(&node.grpc)?;
    if node.node > NODE_NUMBER_MAX {
        return Err(invalid(format!("node numbers end at {}", NODE_NUMBER_MAX.0)));
    }
    let known = state.routes.nodes.values().find(|known| known.disk == node.disk);
    let number = match known.map(|known| known.node) {
        Some(known) if node.node == NodeId(0) || node.node == known => known,
        Some(known) => {
            return Err(refused(format!(
                "this data directory belongs to node {}, and asks to be node {}: start it \
                 under its own number",
                known.0, node.node.0
            )));
        }
        None if state.routes.nodes.len() >= NODES_MAX => {
            return Err(ErrorReply::ResourceExhausted(format!(
                "the cluster has {NODES_MAX} nodes, its limit"
            )));
        }
        None if node.node == NodeId(0) => state.meta.node_next,
        None if state.routes.nodes.contains_key(&node.node) => {
            return Err(refused(format!(
                "number {} belongs to a node with another data directory: choose a free number, \
                 or none to be given one",
                node.node.0
            )));
        }
        None => node.node,
    };
    state.meta.node_next = state.meta.node_next.max(NodeId(number.0 + 1));
    let info = NodeInfo { node: number, ..node.clone() };
    if state.routes.nodes.get(&number) != Some(&info) {
        state.routes.nodes.insert(number, info);
        state.change_routes();
    }
    Ok(MasterAnswer::Registered(number))
}

/// Adds groups to the plan.
pub(crate) fn join(state: &mut State, groups: &[NewGroup]) -> Result<MasterAnswer, ErrorReply> {
    validate_join(state, groups)?;
    let members: BTreeMap<GroupId, Vec<NodeId>> =
        groups.iter().map(|new| (new.group, new.nodes.clone())).collect();
    for (group, nodes) in &members {
        let info = GroupInfo { members: allocate(state, nodes) };
        state.routes.groups.insert(*group, info);
    }
    let names: BTreeSet<GroupId> = members.keys().copied().collect();
    let configuration = Configuration {
        number: ConfigNumber(state.configuration.number.0 + 1),
        groups: members,
        shards: rebalance(&state.configuration.shards, &names),
    };
    state.routes.configuration = configuration.number;
    state.configuration = configuration.clone();
    state.plan();
    state.change_routes();
    Ok(MasterAnswer::Configuration(configuration))
}

impl State {
    /// Starts what the plan wants and nobody does yet.
    pub(crate) fn plan(&mut self) {
        let copy_next = self.meta.copy_next;
        let owners = &self.routes.owners;
        let new = planner::creations(&self.configuration, owners, &self.pending, copy_next);
        self.meta.copy_next = CopyId(copy_next.0 + new.len() as u64);
        self.pending.extend(new);
    }
}

/// Replicas for the nodes, under numbers that were never used.
fn allocate(state: &mut State, nodes: &[NodeId]) -> Vec<(ReplicaId, NodeId, base::DiskId)> {
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

fn validate_join(state: &State, groups: &[NewGroup]) -> Result<(), ErrorReply> {
    if groups.is_empty() {
        return Err(invalid("name at least one group, each with its nodes".to_string()));
    }
    if groups.len() > JOIN_GROUPS_MAX {
        return Err(invalid(format!("one join takes at most {JOIN_GROUPS_MAX} groups")));
    }
    let mut seen = BTreeSet::new();
    for new in groups {
        let number = new.group.0;
        if new.group == GroupId::MASTER {
            return Err(invalid(
                "group 0 is the shard master itself: number groups from 1".to_string(),
            ));
        }
        if new.group > GROUP_NUMBER_MAX {
            return Err(invalid(format!("group numbers end at {}", GROUP_NUMBER_MAX.0)));
        }
        if !seen.insert(new.group) {
            return Err(invalid(format!("group {number} is named twice")));
        }
        if state.configuration.groups.contains_key(&new.group) {
            return Err(refused(format!("group {number} is a member already")));
        }
        validate_nodes(state, new)?;
    }
    if !state.configuration.groups.is_empty() {
        return Err(refused(
            "the cluster has its groups already: joining more groups comes with shard movement, \
             which this version does not have"
                .to_string(),
        ));
    }
    Ok(())
}

fn validate_nodes(state: &State, new: &NewGroup) -> Result<(), ErrorReply> {
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

fn invalid(text: String) -> ErrorReply {
    ErrorReply::Invalid(text)
}

fn refused(text: String) -> ErrorReply {
    ErrorReply::Refused(text)
}
