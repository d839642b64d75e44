//! Sentences of stories about several groups: who joins and leaves, what moves where, and who works
//! meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use base::{DiskId, GroupId, Micros, NodeId, ShardId};
use router::{
    Answer, Body, CallError, Configuration, ErrorReply, MasterAnswer, MasterOp, NewGroup, Reply,
    Routes, ShardMove,
};

use crate::crew::Crew;
use crate::guest::Guest;
use crate::ownership;
use crate::scenario::Scenario;
use crate::workload::WorkloadOptions;

impl Scenario {
    /// A group joins with a replica on each of these nodes.
    pub fn join(&mut self, group: u64, nodes: &[usize]) -> Configuration {
        self.join_all(&[(group, nodes)])
    }

    /// Groups join in one step.
    pub fn join_all(&mut self, groups: &[(u64, &[usize])]) -> Configuration {
        let op = self.joining(groups);
        self.operate(op)
    }

    /// The request by which these groups join.
    pub fn joining(&mut self, groups: &[(u64, &[usize])]) -> MasterOp {
        let routes = self.routes();
        let new = |(group, nodes): &(u64, &[usize])| NewGroup {
            group: GroupId(*group),
            nodes: nodes.iter().map(|place| self.cluster.node_id(&routes, *place)).collect(),
        };
        MasterOp::Join { groups: groups.iter().map(new).collect() }
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
        *routes
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

    /// Begins to ask for a change of the plan, or for the plan.
    pub fn begin_change(&mut self, client: usize, op: MasterOp) -> u64 {
        self.cluster.world.call(client, Body::Master(op), None)
    }

    /// How a request of [`Scenario::begin_change`] ended, once; none while it is open.
    pub fn changed(&mut self, client: usize, call: u64) -> Option<Result<Reply, CallError>> {
        self.cluster.ended(client, call)
    }

    /// The newest plan.
    pub fn plan(&mut self) -> Configuration {
        self.operate(MasterOp::Query { number: None })
    }

    /// The group that owns each shard, by shard number; 0 where nobody does.
    pub fn owners(&mut self) -> Vec<u64> {
        let owners = self.routes().owners.into_iter();
        owners.map(|owner| owner.map_or(0, |owner| owner.group.0)).collect()
    }

    /// The node that leads a group, in at most ten seconds.
    pub fn leader(&mut self, group: u64) -> usize {
        for _ in 0..1_000 {
            if let Some(node) = ownership::leader(&self.cluster.world, GroupId(group)) {
                return node;
            }
            self.wait(10);
        }
        self.fail(&format!("nobody leads group {group}"));
    }

    /// Bytes of all records of data groups, keys included, in the store of a node: whatever is
    /// there, of use or not.
    pub fn stored_bytes(&mut self, node: usize) -> u64 {
        self.cluster.world.stored(node, GroupId(1)..GroupId(u64::MAX))
    }

    /// Bytes of the files and of the store of a node's disk.
    pub fn disk_bytes(&mut self, node: usize) -> u64 {
        let world = &mut self.cluster.world;
        world.disk(node).bytes() + world.stored(node, GroupId(0)..GroupId(u64::MAX))
    }

    /// Slots that the replica of a data group still has in its log, the most on any node.
    pub fn log_slots(&self) -> u64 {
        let guests = (0..self.cluster.world.nodes()).filter_map(|n| self.cluster.world.guest(n));
        let views = guests.flat_map(|guest| guest.views(false));
        let data = views.filter(|view| view.group != GroupId::MASTER);
        data.map(|view| view.last.0 - view.truncated_upto.0).max().unwrap_or(0)
    }

    /// Clients that know all nodes begin to work in the background.
    pub fn employ(&mut self, options: WorkloadOptions) {
        let random = self.random().fork();
        let nodes: Vec<usize> = (0..self.cluster.world.nodes()).collect();
        self.cluster.employ(random, options, &nodes);
    }

    /// The clients at work end, which they must within this time; every answer that they had was
    /// right, and what they wrote is there.
    pub fn dismiss(&mut self, millis: u64) {
        let dismissed = self.cluster.dismiss(Micros::from_millis(millis));
        self.check(dismissed);
        let judged = self.cluster.judge();
        self.check(judged);
    }

    /// How many calls of the clients at work were answered so far.
    pub fn answered(&self) -> u64 {
        self.cluster.crew.as_ref().map_or(0, Crew::answered)
    }

    /// The longest that one of the clients at work ever waited, in milliseconds.
    pub fn longest_wait(&self) -> u64 {
        self.longest_wait_since(0)
    }

    /// The same of calls that began at this time or later, in milliseconds too.
    pub fn longest_wait_since(&self, millis: u64) -> u64 {
        let now = self.cluster.world.time();
        let since = Micros::from_millis(millis);
        self.cluster.crew.as_ref().map_or(0, |crew| crew.longest_wait(since, now).0 / 1_000)
    }

    /// Virtual time, in milliseconds.
    pub fn millis(&self) -> u64 {
        self.cluster.world.time().0 / 1_000
    }

    /// The shard master's answer, or its refusal.
    pub fn try_master(&mut self, op: MasterOp) -> Result<MasterAnswer, ErrorReply> {
        let span = Micros::from_secs(30);
        let call = self.cluster.world.call(self.anyone, Body::Master(op), Some(span));
        let ended = self.cluster.wait(self.anyone, call, span);
        match self.check(ended) {
            Some(Ok(Reply { body: Ok(Answer::Master(answer)), .. })) => Ok(answer),
            Some(Ok(Reply { body: Err(error), .. }) | Err(CallError::Refused(error))) => Err(error),
            other => self.fail(&format!("the shard master answers {other:?}")),
        }
    }

    /// The shard master does it.
    pub fn master(&mut self, op: MasterOp) -> MasterAnswer {
        match self.try_master(op) {
            Ok(answer) => answer,
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Every member of every group comes to be on a disk that is there, and nothing is under way.
    pub fn replaced(&mut self, millis: u64) {
        let end = self.cluster.world.time() + Micros::from_millis(millis);
        loop {
            let routes = self.routes();
            let disks: BTreeSet<DiskId> =
                (0..self.cluster.world.nodes()).map(|node| self.disk_id(node)).collect();
            let mut members = routes.groups.values().flat_map(|info| &info.members);
            if routes.changes.is_empty() && members.all(|member| disks.contains(&member.2)) {
                return;
            }
            if self.cluster.world.time() >= end {
                self.fail(&format!("replicas are not replaced: {:?}", routes.changes));
            }
            self.wait(100);
        }
    }

    /// The number of a node, by its place.
    pub fn number(&mut self, place: usize) -> NodeId {
        let routes = self.routes();
        self.cluster.node_id(&routes, place)
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
