//! Sentences of stories about several groups: who joins and leaves, what moves where.

use std::collections::BTreeMap;

use base::{GroupId, Micros, ShardId};
use router::{Answer, Body, Configuration, MasterAnswer, MasterOp, NewGroup, Routes, ShardMove};

use crate::scenario::Scenario;

impl Scenario {
    /// A group joins with a replica on each of these nodes.
    pub fn join(&mut self, group: u64, nodes: &[usize]) -> Configuration {
        let group = self.new_group(group, nodes);
        self.operate(MasterOp::Join { groups: vec![group] })
    }

    /// Groups leave in one step.
    pub fn leave(&mut self, groups: &[u64]) -> Configuration {
        let groups = groups.iter().copied().map(GroupId).collect();
        self.operate(MasterOp::Leave { groups })
    }

    /// Shards go to groups in one step.
    pub fn move_shards(&mut self, moves: &[(&[u16], u64)]) -> Configuration {
        let to = |(shards, group): &(&[u16], u64)| ShardMove {
            shards: shards.iter().copied().map(ShardId).collect(),
            group: GroupId(*group),
        };
        self.operate(MasterOp::Move { moves: moves.iter().map(to).collect() })
    }

    /// Asks for a shard to go to a group, which may have it already.
    pub fn try_move(&mut self, shard: u16, group: u64) {
        let moves = vec![ShardMove { shards: vec![ShardId(shard)], group: GroupId(group) }];
        let body = Body::Master(MasterOp::Move { moves });
        let client = self.client(vec![0, 1, 2]);
        self.cluster.world.call(client, body, None);
    }

    /// The routes as the shard master has them.
    pub fn routes(&mut self) -> Routes {
        let answer = self.ask_master(MasterOp::Routes);
        let Answer::Master(MasterAnswer::Routes(routes)) = answer else {
            self.fail(&format!("routes are answered {answer:?}"));
        };
        routes
    }

    /// How many shards each group owns.
    pub fn owned(&mut self) -> BTreeMap<u64, usize> {
        let mut owned = BTreeMap::new();
        for owner in self.routes().owners.into_iter().flatten() {
            *owned.entry(owner.group.0).or_default() += 1;
        }
        owned
    }

    /// The plan becomes reality within this time, and nothing is left of the way there.
    pub fn settles(&mut self, millis: u64) {
        let settled = self.cluster.settle(Micros::from_millis(millis));
        self.check(settled);
    }

    fn new_group(&mut self, group: u64, nodes: &[usize]) -> NewGroup {
        let routes = self.routes();
        let nodes = nodes.iter().map(|place| self.cluster.node_id(&routes, *place)).collect();
        NewGroup { group: GroupId(group), nodes }
    }

    fn operate(&mut self, op: MasterOp) -> Configuration {
        let answer = self.ask_master(op);
        let Answer::Master(MasterAnswer::Configuration(plan)) = answer else {
            self.fail(&format!("a new plan is answered {answer:?}"));
        };
        plan
    }

    fn ask_master(&mut self, op: MasterOp) -> Answer {
        let asked = self.cluster.ask(self.anyone, Body::Master(op));
        self.check(asked)
    }
}
