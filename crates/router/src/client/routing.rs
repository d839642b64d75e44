//! Where a request goes: the owner group of its shard, and the node that leads it.

use std::collections::BTreeMap;

use base::{GroupId, NodeId, Random, ShardEpoch, ShardId};

use crate::client::Target;
use crate::configuration::Routes;

/// What a client knows of owners and leaders. All of it is a hint: a wrong one costs a retry.
#[derive(Debug)]
pub(super) struct Routing {
    routes: Routes,
    /// What single answers said about shards, where that is newer than the routes.
    moved: BTreeMap<ShardId, (ShardEpoch, GroupId)>,
    leaders: BTreeMap<GroupId, NodeId>,
}

impl Routing {
    pub(super) fn new() -> Routing {
        Routing { routes: Routes::default(), moved: BTreeMap::new(), leaders: BTreeMap::new() }
    }

    pub(super) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The number of shards, once it is known.
    pub(super) fn shards(&self) -> Option<u16> {
        Some(self.routes.shards()).filter(|shards| *shards > 0)
    }

    /// Takes newer routes; older ones are dropped.
    pub(super) fn take_routes(&mut self, routes: Routes) {
        if routes.version <= self.routes.version {
            return;
        }
        self.routes = routes;
        let routes = &self.routes;
        self.moved.retain(|shard, (epoch, _)| {
            routes.owner(*shard).is_none_or(|owner| owner.epoch < *epoch)
        });
        self.leaders.retain(|group, node| {
            routes.groups.get(group).is_none_or(|info| info.members.iter().any(|m| m.1 == *node))
        });
    }

    /// The group that owns a shard, and the shard's epoch there.
    pub(super) fn owner(&self, shard: ShardId) -> Option<(ShardEpoch, GroupId)> {
        let moved = self.moved.get(&shard).copied();
        let owner = self.routes.owner(shard).map(|owner| (owner.epoch, owner.group));
        // Equal epochs name one group; the order by epoch alone decides.
        moved.into_iter().chain(owner).max_by_key(|(epoch, _)| *epoch)
    }

    /// An answer named the owner of a shard. Whether that was news.
    pub(super) fn take_moved(&mut self, shard: ShardId, epoch: ShardEpoch, group: GroupId) -> bool {
        if self.owner(shard).is_some_and(|(known, _)| known >= epoch) {
            return false;
        }
        self.moved.insert(shard, (epoch, group));
        true
    }

    /// An answer named the leader of a group.
    pub(super) fn take_leader(&mut self, group: GroupId, node: NodeId) {
        self.leaders.insert(group, node);
    }

    /// A node did not answer, or does not lead.
    pub(super) fn forget_leader(&mut self, node: NodeId) {
        self.leaders.retain(|_, leader| *leader != node);
    }

    /// Where to send what concerns a shard: the owner's leader; where that is not known, or `anyone`
    /// can answer, any member but the one that was `tried` last; without an owner any node.
    pub(super) fn target(
        &self,
        shard: Option<ShardId>,
        tried: Option<NodeId>,
        anyone: bool,
        random: &mut Random,
    ) -> Target {
        let Some((_, group)) = shard.and_then(|shard| self.owner(shard)) else {
            return Target::Any;
        };
        if let Some(leader) = self.leaders.get(&group)
            && !anyone
        {
            return Target::Node(*leader);
        }
        let members = self.routes.groups.get(&group).map_or(&[][..], |info| &info.members);
        let nodes: Vec<NodeId> =
            members.iter().map(|member| member.1).filter(|node| Some(*node) != tried).collect();
        random.pick(&nodes).map_or(Target::Any, |node| Target::Node(*node))
    }
}
