//! Where the replicas of groups are to be, and what is done so that they are there
//! (docs/paxos.md 11.8, 11.9). As with shards there is a plan, which nodes hold each group, and what
//! is, the members of each group as its leader reports them. A pure comparison of the two starts one
//! change of members at a time for a group; whatever it is made of is told to the group's leader
//! again and again.

use std::collections::{BTreeMap, BTreeSet};

use base::{DiskId, GroupId, NodeId, ReplicaId};
use minicbor::{Decode, Encode};
use router::{ErrorReply, MasterAnswer, MemberChange};

use crate::registry::{invalid, refused};
use crate::state::State;

/// What the shard master knows of replicas beyond the routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Placements {
    /// The nodes that are to hold each group, group 0 included.
    #[n(0)]
    pub(crate) nodes: BTreeMap<GroupId, Vec<NodeId>>,
    /// Disks that were lost: what comes back with one of them is no node of this cluster.
    #[n(1)]
    pub(crate) lost_disks: BTreeSet<DiskId>,
    /// Members that may have forgotten what they promised, on disks that are there.
    #[n(2)]
    pub(crate) lost_replicas: BTreeSet<ReplicaId>,
    /// The highest count of starts that each node has told.
    #[cbor(n(3), default)]
    pub(crate) starts: BTreeMap<NodeId, u64>,
    /// From which count on the starts of a node go, as the disk was told that comes next. It may
    /// have spoken under that count and never come to be registered.
    #[cbor(n(4), default)]
    pub(crate) told: BTreeMap<NodeId, Told>,
}

/// What a disk was told that comes in the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Told {
    /// The disk.
    #[n(0)]
    pub(crate) disk: DiskId,
    /// Its starts are counted from behind this one.
    #[n(1)]
    pub(crate) starts: u64,
}

/// Most disks that are remembered as lost.
const LOST_DISKS_MAX: usize = 4_096;

type Place = (ReplicaId, NodeId, DiskId);

/// `decree node replace`: another machine takes over all replicas of a node.
pub(crate) fn replace(
    state: &mut State,
    old: NodeId,
    new: NodeId,
) -> Result<MasterAnswer, ErrorReply> {
    for node in [old, new] {
        validate_known(state, node)?;
    }
    if old == new {
        return Err(invalid(format!(
            "node {} cannot replace itself. To start it anew with an empty data directory, start it \
             at its address: its replicas are replaced by themselves",
            old.0
        )));
    }
    let groups = groups_on(state, old);
    for group in &groups {
        if placement(state, *group).contains(&new) {
            return Err(refused(format!(
                "node {} holds a replica of group {} already, as node {} does: name a node that \
                 holds none of the groups {}",
                new.0,
                group.0,
                old.0,
                numbers(groups.iter().map(|group| group.0))
            )));
        }
    }
    if groups.is_empty() {
        return Err(refused(format!("node {} holds no replica: nothing to replace", old.0)));
    }
    validate_majorities(state, &groups)?;
    state.routes.drained.insert(old);
    state.routes.drained.remove(&new);
    let moves = groups.into_iter().map(|group| (group, new)).collect();
    Ok(relocate(state, old, moves))
}

/// `decree node drain`: all replicas of a node go to others.
pub(crate) fn drain(state: &mut State, node: NodeId) -> Result<MasterAnswer, ErrorReply> {
    validate_known(state, node)?;
    let groups = groups_on(state, node);
    validate_majorities(state, &groups)?;
    let mut loads: BTreeMap<NodeId, usize> = state.routes.nodes.keys().map(|n| (*n, 0)).collect();
    for nodes in state.placements.nodes.values() {
        for node in nodes {
            *loads.entry(*node).or_default() += 1;
        }
    }
    loads.remove(&node);
    loads.retain(|other, _| !state.routes.drained.contains(other));
    let mut moves = BTreeMap::new();
    for group in groups {
        let present = placement(state, group);
        let free = loads.iter().filter(|(other, _)| !present.contains(other));
        let Some(target) = free.min_by_key(|(other, load)| (**load, **other)).map(|(n, _)| *n)
        else {
            return Err(refused(format!(
                "node {} cannot be drained: group {} has replicas on the nodes {}, and there is no \
                 other node that could hold one: start another node first",
                node.0,
                group.0,
                numbers(present.iter().map(|node| node.0))
            )));
        };
        *loads.entry(target).or_default() += 1;
        moves.insert(group, target);
    }
    if !state.routes.drained.insert(node) && moves.is_empty() {
        return Err(refused(format!("node {} is drained already", node.0)));
    }
    Ok(relocate(state, node, moves))
}

fn relocate(state: &mut State, old: NodeId, moves: BTreeMap<GroupId, NodeId>) -> MasterAnswer {
    for (group, new) in moves {
        let nodes = state.placements.nodes.entry(group).or_default();
        nodes.iter_mut().filter(|node| **node == old).for_each(|node| *node = new);
    }
    state.replan_nodes()
}

/// The leader of a group says who its members are. Told late or twice, it changes nothing.
pub(crate) fn members_are(
    state: &mut State,
    group: GroupId,
    epoch: u32,
    members: &[Place],
) -> Result<MasterAnswer, ErrorReply> {
    let known = state.routes.epoch(group);
    let allocated = members.iter().all(|(replica, ..)| *replica < state.routes.replica_next);
    let Some(info) = state.routes.groups.get_mut(&group) else {
        return Err(refused(format!("group {} is not known", group.0)));
    };
    if !allocated || members.is_empty() {
        return Err(invalid(format!("group {} cannot have these members", group.0)));
    }
    if epoch > known {
        info.members = members.to_vec();
        info.members.sort();
        state.routes.epochs.insert(group, epoch);
        state.routes.changes.remove(&group);
        let present: BTreeSet<ReplicaId> = state
            .routes
            .groups
            .values()
            .flat_map(|info| info.members.iter().map(|m| m.0))
            .collect();
        state.placements.lost_replicas.retain(|replica| present.contains(replica));
        plan(state);
        state.change_routes();
    }
    Ok(MasterAnswer::Configuration(state.configuration.clone()))
}

/// A replica will never vote again: another is to take its place.
pub(crate) fn replica_lost(
    state: &mut State,
    group: GroupId,
    replica: ReplicaId,
) -> Result<MasterAnswer, ErrorReply> {
    let info = state.routes.groups.get(&group);
    let member = info.is_some_and(|info| info.members.iter().any(|m| m.0 == replica));
    let joins = state.routes.changes.get_mut(&group).map(|change| &mut change.joins);
    let joining = joins.is_some_and(|joins| {
        let before = joins.len();
        joins.retain(|join| join.0 != replica);
        joins.len() < before
    });
    if joining {
        // Another takes its place.
        state.routes.changes.remove(&group);
    }
    if joining || member && state.placements.lost_replicas.insert(replica) {
        plan(state);
        state.change_routes();
    }
    Ok(MasterAnswer::Configuration(state.configuration.clone()))
}

/// A node has lost its disk, and has another one.
pub(crate) fn disk_lost(state: &mut State, old: DiskId) {
    state.placements.lost_disks.insert(old);
    while state.placements.lost_disks.len() > LOST_DISKS_MAX {
        state.placements.lost_disks.pop_first();
    }
    // Learners that were on it never will be what they were to be.
    for change in state.routes.changes.values_mut() {
        change.joins.retain(|(_, _, disk)| *disk != old);
    }
    state.routes.changes.retain(|_, change| !change.joins.is_empty());
    plan(state);
}

/// The nodes that are to hold a group.
pub(crate) fn placement(state: &State, group: GroupId) -> Vec<NodeId> {
    state.placements.nodes.get(&group).cloned().unwrap_or_default()
}

/// Starts the changes that the plan asks for, one for a group at a time.
pub(crate) fn plan(state: &mut State) {
    let groups: Vec<GroupId> = state.placements.nodes.keys().copied().collect();
    for group in groups {
        if state.routes.changes.contains_key(&group) {
            continue;
        }
        if let Some((join, leaves)) = next_change(state, group) {
            let joins = join.into_iter().map(|(node, disk)| {
                let replica = state.meta.replica_next;
                state.meta.replica_next = ReplicaId(replica.0 + 1);
                (replica, node, disk)
            });
            let joins = joins.collect();
            let epoch = state.routes.epoch(group);
            state.routes.changes.insert(group, MemberChange { epoch, joins, leaves });
        }
    }
    state.routes.replica_next = state.meta.replica_next;
}

/// Where a replica lives.
type Home = (NodeId, DiskId);

/// Who is to join a group next, and who is to leave it then.
fn next_change(state: &State, group: GroupId) -> Option<(Option<Home>, Vec<ReplicaId>)> {
    let members = &state.routes.groups.get(&group)?.members;
    let nodes = placement(state, group);
    let is_well = |member: &&Place| is_present(state, member) && nodes.contains(&member.1);
    if !has_majority(state, members) {
        return None;
    }
    let lacking = nodes.iter().copied().filter(|node| {
        let here = members.iter().filter(|member| member.1 == *node);
        here.filter(is_well).count() == 0
    });
    let lacking: Vec<NodeId> = lacking.collect();
    let mut going: Vec<&Place> = members.iter().filter(|member| !is_well(member)).collect();
    // Who has lost its disk goes first, then who will never vote again.
    going.sort_by_key(|member| is_present(state, member));
    // A node does not hold two replicas of a group on one disk: the old one leaves first.
    let free = lacking.iter().copied().find_map(|node| {
        let disk = state.routes.nodes.get(&node)?.disk;
        let taken = members.iter().any(|member| (member.1, member.2) == (node, disk));
        (!taken).then_some((node, disk))
    });
    // Who is there and well goes only for another, or as one too many: a group that lacks members
    // already is made whole first.
    let spare = members.len() + usize::from(free.is_some()) > nodes.len();
    going.retain(|member| !is_present(state, member) || spare);
    let same = going.iter().find(|member| free.is_some_and(|(node, _)| node == member.1));
    let leaves: Vec<ReplicaId> =
        same.or(going.first()).map(|member| member.0).into_iter().collect();
    let alone = members.len() == leaves.len();
    match (free, leaves.is_empty()) {
        (None, true) => None,
        (None, false) if alone => None,
        (join, _) => Some((join, leaves)),
    }
}

/// Whether a member is still where it was, and votes.
fn is_present(state: &State, (replica, node, disk): &Place) -> bool {
    let known = state.routes.nodes.get(node).is_some_and(|info| info.disk == *disk);
    known && !state.placements.lost_replicas.contains(replica)
}

/// Whether enough members are left to agree on others.
fn has_majority(state: &State, members: &[Place]) -> bool {
    members.iter().filter(|member| is_present(state, member)).count() > members.len() / 2
}

fn groups_on(state: &State, node: NodeId) -> Vec<GroupId> {
    let groups = state.placements.nodes.iter().filter(|(_, nodes)| nodes.contains(&node));
    groups.map(|(group, _)| *group).collect()
}

fn validate_known(state: &State, node: NodeId) -> Result<(), ErrorReply> {
    if state.routes.nodes.contains_key(&node) {
        return Ok(());
    }
    let known = numbers(state.routes.nodes.keys().map(|node| node.0));
    Err(refused(format!("node {} is not known; known are {known}", node.0)))
}

fn validate_majorities(state: &State, groups: &[GroupId]) -> Result<(), ErrorReply> {
    for group in groups {
        let Some(info) = state.routes.groups.get(group) else { continue };
        if !has_majority(state, &info.members) {
            let left = info.members.iter().filter(|member| is_present(state, member));
            return Err(refused(format!(
                "group {} has lost the majority of its replicas: of {} members {} are left, and \
                 they cannot agree on others, as they do not know what the lost ones agreed on. \
                 Bring back a lost data directory, or restore a backup",
                group.0,
                info.members.len(),
                left.count()
            )));
        }
    }
    Ok(())
}

fn numbers(numbers: impl Iterator<Item = u64>) -> String {
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
}
