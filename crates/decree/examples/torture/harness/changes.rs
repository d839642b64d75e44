//! An operator who changes the plan all the time: groups join and leave, shards move, nodes are
//! replaced, drained and used again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use base::{GroupId, NodeId, Random, ShardId};
use client::{Client, Error};
use router::{Configuration, NewGroup, Routes, ShardMove};

/// The groups that there are, and come and go.
const GROUPS: u64 = 3;
/// How long a change is waited for.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(20);

/// The operator.
pub(crate) struct Operator {
    control: Client,
    random: RefCell<Random>,
    nodes: u64,
    /// Between two changes up to so many milliseconds pass.
    pause: u64,
    works: Cell<bool>,
    busy: Cell<bool>,
    /// What was done, how often.
    pub(crate) counts: RefCell<BTreeMap<&'static str, u64>>,
}

/// A change of the plan.
enum Change {
    Join(NewGroup),
    Leave(GroupId),
    Move(Vec<ShardMove>),
    Replace(NodeId, NodeId),
    Drain(NodeId),
}

impl Operator {
    /// Who begins when he is told to.
    pub(crate) fn new(control: Client, nodes: u64, pause: u64, seed: u64) -> Rc<Operator> {
        Rc::new(Operator {
            control: control.with_timeout(CHANGE_TIME_MAX),
            random: RefCell::new(Random::new(seed)),
            nodes,
            pause,
            works: Cell::new(false),
            busy: Cell::new(false),
            counts: RefCell::default(),
        })
    }

    /// Works, or lets things be.
    pub(crate) fn work(&self, works: bool) {
        self.works.set(works);
    }

    /// Waits until nothing that was begun is open.
    pub(crate) async fn rested(&self) {
        while self.busy.get() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Changes the plan, for ever.
    pub(crate) async fn run(self: Rc<Operator>) {
        loop {
            let pause = self.random.borrow_mut().below(self.pause);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if !self.works.get() {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            self.busy.set(true);
            let ended = self.change().await;
            *self.counts.borrow_mut().entry(ended).or_default() += 1;
            self.busy.set(false);
        }
    }

    async fn change(&self) -> &'static str {
        let (plan, routes) = futures::join!(self.control.query(None), self.control.newest_routes());
        let (Ok(plan), Ok(routes)) = (plan, routes) else { return "masters not reached" };
        let Some(change) = self.draw(&plan.value, &routes) else { return "nothing to change" };
        let (name, made) = match change {
            Change::Join(group) => ("join", self.control.join(vec![group]).await),
            Change::Leave(group) => ("leave", self.control.leave(vec![group]).await),
            Change::Move(moves) => ("move", self.control.move_shards(moves).await),
            Change::Replace(old, new) => {
                ("node replace", self.control.replace_node(old, new).await)
            }
            Change::Drain(node) => ("node drain", self.control.drain_node(node).await),
        };
        match made {
            Ok(_) => name,
            Err(Error::Refused(_) | Error::Invalid(_)) => "refused",
            Err(Error::OutcomeUnknown(_)) => "outcome unknown",
            Err(Error::Unavailable(_) | Error::NobodyReachable(_)) => "not done",
        }
    }

    fn draw(&self, plan: &Configuration, routes: &Routes) -> Option<Change> {
        let mut random = self.random.borrow_mut();
        let members: Vec<GroupId> = plan.groups.keys().copied().collect();
        let absent: Vec<GroupId> =
            (1..=GROUPS).map(GroupId).filter(|group| !members.contains(group)).collect();
        match random.below(12) {
            0..=2 => {
                let group = *random.pick(&absent)?;
                Some(Change::Join(self.new_group(group, routes, &mut random)))
            }
            3 if members.len() > 1 => random.pick(&members).copied().map(Change::Leave),
            3..=6 => moves(plan, &members, &mut random),
            7 => {
                // What is under way is given up.
                let back = routes.handoffs.iter().filter(|handoff| !handoff.cancel);
                let back = back.filter(|handoff| members.contains(&handoff.from));
                let back: Vec<ShardMove> = back
                    .map(|handoff| ShardMove {
                        shards: handoff.shards.clone(),
                        group: handoff.from,
                    })
                    .collect();
                (!back.is_empty()).then_some(Change::Move(back))
            }
            8..=10 => {
                let pairs = self.replacements(routes);
                random.pick(&pairs).map(|(old, new)| Change::Replace(*old, *new))
            }
            // One node at a time rests.
            _ if routes.drained.is_empty() => {
                Some(Change::Drain(NodeId(random.between(1, self.nodes))))
            }
            _ => {
                let drained: Vec<NodeId> = routes.drained.iter().copied().collect();
                let new = *random.pick(&drained)?;
                let pairs: Vec<(NodeId, NodeId)> =
                    self.replacements(routes).into_iter().filter(|pair| pair.1 == new).collect();
                random.pick(&pairs).map(|(old, new)| Change::Replace(*old, *new))
            }
        }
    }

    /// A group comes back where its replicas are, or is new.
    fn new_group(&self, group: GroupId, routes: &Routes, random: &mut Random) -> NewGroup {
        if let Some(info) = routes.groups.get(&group) {
            let nodes = info.members.iter().map(|(_, node, _)| *node).collect();
            return NewGroup { group, nodes };
        }
        let mut nodes: Vec<NodeId> = (1..=self.nodes).map(NodeId).collect();
        random.shuffle(&mut nodes);
        nodes.truncate(3);
        NewGroup { group, nodes }
    }

    /// Nodes that can take over all that another one has.
    fn replacements(&self, routes: &Routes) -> Vec<(NodeId, NodeId)> {
        let groups_on = |node: NodeId| -> BTreeSet<GroupId> {
            let groups = routes.groups.iter();
            let on_node = groups.filter(|(_, info)| info.members.iter().any(|m| m.1 == node));
            on_node.map(|(group, _)| *group).collect()
        };
        let nodes = (1..=self.nodes).map(NodeId);
        let pairs = nodes.flat_map(|old| (1..=self.nodes).map(move |new| (old, NodeId(new))));
        let fit = |(old, new): &(NodeId, NodeId)| {
            let (has, had) = (groups_on(*new), groups_on(*old));
            old != new && !had.is_empty() && has.is_disjoint(&had)
        };
        pairs.filter(fit).collect()
    }
}

/// Some shards go to another group, or shards of two groups are exchanged.
fn moves(plan: &Configuration, members: &[GroupId], random: &mut Random) -> Option<Change> {
    let shards = plan.shards.len() as u64;
    let to = *random.pick(members)?;
    let low = random.below(shards);
    let high = (low + random.between(1, shards / 3)).min(shards);
    let range = (low..high).filter_map(|shard| u16::try_from(shard).ok());
    let goes = |shard: &u16| plan.shards[usize::from(*shard)] != to;
    let going: Vec<ShardId> = range.filter(goes).map(ShardId).collect();
    let first = going.first()?;
    let from = plan.shards[usize::from(first.0)];
    let mut all = vec![ShardMove { shards: going.clone(), group: to }];
    let back = (0..plan.shards.len()).find(|shard| plan.shards[*shard] == to);
    if let (true, Some(back)) = (random.chance(1, 2) && members.contains(&from), back) {
        let shards = vec![ShardId(u16::try_from(back).ok()?)];
        all.push(ShardMove { shards, group: from });
    }
    Some(Change::Move(all))
}
