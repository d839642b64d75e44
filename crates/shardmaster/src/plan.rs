//! What Join, Leave and Move do to the plan, each all or nothing; and how the plan becomes work.

use std::collections::{BTreeMap, BTreeSet};

use base::{ConfigNumber, CopyId, GroupId, NodeId, ShardId};
use router::{Configuration, ErrorReply, GroupInfo, MasterAnswer, NewGroup, Routes, ShardMove};

use crate::planner;
use crate::rebalance::rebalance;
use crate::registry::{self, invalid, refused};
use crate::replicas;
use crate::state::State;

/// Most groups of one Join or Leave.
const REQUEST_GROUPS_MAX: usize = 1_024;
/// Most groups that a cluster ever has, those that left included: all of them are in the routes.
const GROUPS_MAX: usize = 4_096;
/// The highest number of a group.
const GROUP_NUMBER_MAX: GroupId = GroupId(1_000_000);

/// Adds groups to the plan, and divides the shards anew. A group that left before resumes.
pub(crate) fn join(state: &mut State, groups: &[NewGroup]) -> Result<MasterAnswer, ErrorReply> {
    validate_join(state, groups)?;
    let mut members = state.configuration.groups.clone();
    for new in groups {
        members.insert(new.group, new.nodes.clone());
        if !state.routes.groups.contains_key(&new.group) {
            let info = GroupInfo { members: registry::allocate(state, &new.nodes) };
            state.routes.groups.insert(new.group, info);
            state.routes.replica_next = state.meta.replica_next;
            state.placements.nodes.insert(new.group, new.nodes.clone());
            state.routes.drained.retain(|node| !new.nodes.contains(node));
        }
    }
    let names = members.keys().copied().collect();
    let shards = rebalance(&state.present_division(), &names);
    Ok(state.change_plan(members, shards))
}

/// Takes groups out of the plan; those that stay divide their shards. Without any left the plan
/// names no group, and whoever has shards keeps and serves them until the next Join.
pub(crate) fn leave(state: &mut State, groups: &[GroupId]) -> Result<MasterAnswer, ErrorReply> {
    validate_leave(state, groups)?;
    let mut members = state.configuration.groups.clone();
    for group in groups {
        members.remove(group);
    }
    let names = members.keys().copied().collect();
    let shards = rebalance(&state.configuration.shards, &names);
    Ok(state.change_plan(members, shards))
}

/// Gives shards to groups, and nothing else.
pub(crate) fn move_shards(
    state: &mut State,
    moves: &[ShardMove],
) -> Result<MasterAnswer, ErrorReply> {
    let targets = validate_move(state, moves)?;
    let mut shards = state.configuration.shards.clone();
    for (shard, group) in shards.iter_mut().enumerate() {
        let target = u16::try_from(shard).ok().and_then(|shard| targets.get(&ShardId(shard)));
        *group = target.copied().unwrap_or(*group);
    }
    // Named by an operator, a shard whose copy was unequal is tried again.
    let barred = state.routes.barred.len();
    state.routes.barred.retain(|shard, _| !targets.contains_key(shard));
    if shards == state.configuration.shards && state.routes.barred.len() == barred {
        return Err(refused(nothing_to_move(&targets)));
    }
    Ok(state.change_plan(state.configuration.groups.clone(), shards))
}

impl State {
    /// The division that a new one starts from: the plan; where that names nobody, who has the
    /// shard, so that it stays there if that group joins again.
    fn present_division(&self) -> Vec<GroupId> {
        let plan = self.configuration.shards.iter().zip(&self.routes.owners);
        let present = plan.map(|(group, owner)| match owner {
            Some(owner) if *group == GroupId::MASTER => owner.group,
            Some(_) | None => *group,
        });
        present.collect()
    }

    /// Other nodes are to hold groups than before: makes the next configuration, in which shards
    /// stay where they are.
    pub(crate) fn replan_nodes(&mut self) -> MasterAnswer {
        let mut groups = self.configuration.groups.clone();
        for (group, nodes) in &mut groups {
            *nodes = replicas::placement(self, *group);
        }
        let shards = self.configuration.shards.clone();
        self.change_plan(groups, shards)
    }

    /// Makes the next configuration, and starts what it asks for.
    fn change_plan(
        &mut self,
        groups: BTreeMap<GroupId, Vec<NodeId>>,
        shards: Vec<GroupId>,
    ) -> MasterAnswer {
        let number = ConfigNumber(self.configuration.number.0 + 1);
        let configuration = Configuration { number, groups, shards };
        self.routes.configuration = number;
        self.configuration = configuration.clone();
        self.plan();
        MasterAnswer::Configuration(configuration)
    }

    /// Starts what the plan wants and nobody does yet, and gives up what it contradicts. To be
    /// called after every change of the plan, of the owners and of what is under way.
    pub(crate) fn plan(&mut self) {
        let plan = &self.configuration;
        for migration in self.migrations.values_mut() {
            migration.cancel |= planner::is_contradicted(migration, plan);
        }
        let copy_next = self.meta.copy_next;
        let new = planner::creations(plan, &self.routes.owners, &self.pending, copy_next);
        let copy_next = CopyId(copy_next.0 + new.len() as u64);
        self.pending.extend(new);
        let Routes { owners, barred, .. } = &self.routes;
        let new = planner::migrations(plan, owners, &self.migrations, barred, copy_next);
        self.meta.copy_next = CopyId(copy_next.0 + new.len() as u64);
        self.migrations.extend(new.into_iter().map(|migration| (migration.mig, migration)));
        replicas::plan(self);
        self.routes.handoffs = self.migrations.values().map(|m| m.handoff()).collect();
        self.routes.handoff_next = self.meta.copy_next;
        self.change_routes();
    }
}

fn validate_join(state: &State, groups: &[NewGroup]) -> Result<(), ErrorReply> {
    validate_groups(groups.iter().map(|new| new.group), "join")?;
    let unknown = groups.iter().filter(|new| !state.routes.groups.contains_key(&new.group));
    if state.routes.groups.len() + unknown.count() > GROUPS_MAX {
        return Err(ErrorReply::ResourceExhausted(format!(
            "a cluster has at most {GROUPS_MAX} groups, those that left included: let groups that \
             left join again"
        )));
    }
    for new in groups {
        if state.configuration.groups.contains_key(&new.group) {
            return Err(refused(format!("group {} is a member already", new.group.0)));
        }
        registry::validate_nodes(state, new)?;
        if !state.routes.groups.contains_key(&new.group) {
            continue;
        }
        let nodes: BTreeSet<NodeId> = replicas::placement(state, new.group).into_iter().collect();
        if nodes != new.nodes.iter().copied().collect() {
            return Err(refused(format!(
                "group {} was a member before, on the nodes {}: let it join with these, or take a \
                 number that was never used",
                new.group.0,
                numbers(nodes.iter().map(|node| node.0))
            )));
        }
    }
    Ok(())
}

fn validate_leave(state: &State, groups: &[GroupId]) -> Result<(), ErrorReply> {
    validate_groups(groups.iter().copied(), "leave")?;
    groups.iter().try_for_each(|group| validate_member(state, *group))
}

/// Where each shard is to go.
fn validate_move(
    state: &State,
    moves: &[ShardMove],
) -> Result<BTreeMap<ShardId, GroupId>, ErrorReply> {
    let mut targets = BTreeMap::new();
    for ShardMove { shards, group } in moves {
        if *group == GroupId::MASTER {
            return Err(invalid(
                "group 0 is the shard master itself, and has no data: name another group"
                    .to_string(),
            ));
        }
        validate_member(state, *group)?;
        for shard in shards {
            let end = state.routes.shards();
            if shard.0 >= end {
                return Err(invalid(format!(
                    "there is no shard {}: this cluster has the shards 0 to {}",
                    shard.0,
                    end.saturating_sub(1)
                )));
            }
            if targets.insert(*shard, *group).is_some() {
                return Err(invalid(format!("shard {} is named twice", shard.0)));
            }
        }
    }
    if targets.is_empty() {
        return Err(invalid("name at least one shard, and the group it shall go to".to_string()));
    }
    Ok(targets)
}

/// What holds for the groups of a join and of a leave alike.
fn validate_groups(groups: impl Iterator<Item = GroupId>, what: &str) -> Result<(), ErrorReply> {
    let mut seen = BTreeSet::new();
    for group in groups {
        if seen.len() >= REQUEST_GROUPS_MAX {
            return Err(invalid(format!("one {what} takes at most {REQUEST_GROUPS_MAX} groups")));
        }
        if group == GroupId::MASTER {
            return Err(invalid(
                "group 0 is the shard master itself: number groups from 1".to_string(),
            ));
        }
        if group > GROUP_NUMBER_MAX {
            return Err(invalid(format!("group numbers end at {}", GROUP_NUMBER_MAX.0)));
        }
        if !seen.insert(group) {
            return Err(invalid(format!("group {} is named twice", group.0)));
        }
    }
    if seen.is_empty() {
        return Err(invalid(format!("name at least one group to {what}")));
    }
    Ok(())
}

fn validate_member(state: &State, group: GroupId) -> Result<(), ErrorReply> {
    let members = &state.configuration.groups;
    if members.contains_key(&group) {
        return Ok(());
    }
    let known = if state.routes.groups.contains_key(&group) {
        "has left: it can join again with the nodes it had"
    } else {
        "is not known"
    };
    let present = match members.len() {
        0 => "no group is a member".to_string(),
        _ => format!("members are {}", numbers(members.keys().map(|group| group.0))),
    };
    Err(refused(format!("group {} {known}; {present}", group.0)))
}

fn nothing_to_move(targets: &BTreeMap<ShardId, GroupId>) -> String {
    match targets.first_key_value() {
        Some((shard, group)) if targets.len() == 1 => {
            format!("shard {} is planned for group {} already", shard.0, group.0)
        }
        Some(_) | None => {
            format!("all {} shards are planned for these groups already", targets.len())
        }
    }
}

fn numbers(numbers: impl Iterator<Item = u64>) -> String {
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
}
