//! An operator who changes the plan again and again while clients work and faults happen: groups
//! join, leave and join again, shards and ranges are moved, swapped and moved back.

use std::collections::BTreeMap;

use base::{GroupId, Micros, NodeId, Random, ShardId};
use router::{Answer, Body, CallError, Configuration, ErrorReply, MasterAnswer, MasterOp};
use router::{NewGroup, Reply, ShardMove};

use crate::cluster::is_refusal;

/// What an operator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReconfigurationOptions {
    /// The groups that may join beside those of the beginning, by the places of their nodes.
    pub groups: Vec<Vec<usize>>,
    /// The longest pause between two requests.
    pub pause_max: Micros,
    /// Of a hundred steps of hand-offs so many end a leader's process.
    pub ambushed: u64,
}

/// What an operator did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorCounts {
    /// Joins that made a configuration.
    pub joins: u64,
    /// Leaves that made one.
    pub leaves: u64,
    /// Moves that made one.
    pub moves: u64,
    /// Of these, swaps between two groups in one step.
    pub swaps: u64,
    /// Of these, back to where the shards were planned before.
    pub backs: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Requests with an unknown outcome.
    pub unknown: u64,
}

impl OperatorCounts {
    /// Adds what another operator did.
    pub fn add(&mut self, other: &OperatorCounts) {
        self.joins += other.joins;
        self.leaves += other.leaves;
        self.moves += other.moves;
        self.swaps += other.swaps;
        self.backs += other.backs;
        self.refused += other.refused;
        self.unknown += other.unknown;
    }
}

/// The operator.
#[derive(Debug)]
pub struct Operator {
    options: ReconfigurationOptions,
    random: Random,
    /// All groups there can be, with their nodes.
    groups: BTreeMap<GroupId, Vec<NodeId>>,
    /// The newest configuration that was answered; none while it must be asked for.
    plan: Option<Configuration>,
    /// The one before.
    before: Option<Configuration>,
    /// What was planned when the last request was refused, if that was known: nobody else changes
    /// it, and what is refused has no effect.
    untouched: Option<Configuration>,
    /// Whether a change with an unknown outcome may still take effect: until a later one is
    /// answered, after which the session takes the earlier one's number for stale.
    stray: bool,
    asked: Option<Asked>,
    counts: OperatorCounts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Query,
    Join,
    Leave,
    Move,
    Swap,
    Back,
    Wrong,
}

impl Operator {
    /// An operator of these groups.
    pub fn new(
        random: Random,
        options: ReconfigurationOptions,
        groups: BTreeMap<GroupId, Vec<NodeId>>,
    ) -> Operator {
        Operator {
            options,
            random,
            groups,
            plan: None,
            before: None,
            untouched: None,
            stray: false,
            asked: None,
            counts: OperatorCounts::default(),
        }
    }

    /// Whether a request is open.
    pub fn is_open(&self) -> bool {
        self.asked.is_some()
    }

    /// What was done.
    pub fn counts(&self) -> &OperatorCounts {
        &self.counts
    }

    /// How long until the next request.
    pub fn pause(&mut self) -> Micros {
        // Now and then several in a row, so that plans contradict what is under way.
        let max = self.options.pause_max.0;
        Micros(if self.random.chance(1, 3) { max / 20 } else { self.random.below(max + 1) })
    }

    /// Whether a leader is to be ended at a step of a hand-off.
    pub fn is_ambush(&mut self) -> bool {
        self.random.chance(self.options.ambushed, 100)
    }

    /// The next request.
    pub fn begin(&mut self) -> Body {
        let query = (Asked::Query, MasterOp::Query { number: None });
        let (asked, op) = match self.plan.clone() {
            Some(plan) => self.draw(&plan).unwrap_or(query),
            None => query,
        };
        self.asked = Some(asked);
        Body::Master(op)
    }

    fn draw(&mut self, plan: &Configuration) -> Option<(Asked, MasterOp)> {
        let members: Vec<GroupId> = plan.groups.keys().copied().collect();
        if members.is_empty() {
            return self.join(plan);
        }
        match self.random.below(16) {
            0..=3 => self.join(plan),
            4..=6 => self.leave(&members),
            7..=10 => self.shift(plan, &members),
            11 | 12 => self.swap(plan, &members),
            13 | 14 => self.back(plan),
            _ => Some((Asked::Wrong, MasterOp::Leave { groups: vec![GroupId(999)] })),
        }
    }

    fn join(&mut self, plan: &Configuration) -> Option<(Asked, MasterOp)> {
        let away = self.groups.iter().filter(|(group, _)| !plan.groups.contains_key(group));
        let new = |(group, nodes): (&GroupId, &Vec<NodeId>)| NewGroup {
            group: *group,
            nodes: nodes.clone(),
        };
        let mut groups: Vec<NewGroup> = away.map(new).collect();
        self.random.shuffle(&mut groups);
        groups.truncate(if self.random.chance(1, 4) { 2 } else { 1 });
        (!groups.is_empty()).then_some((Asked::Join, MasterOp::Join { groups }))
    }

    fn leave(&mut self, members: &[GroupId]) -> Option<(Asked, MasterOp)> {
        let mut groups = members.to_vec();
        self.random.shuffle(&mut groups);
        if !self.random.chance(1, 8) {
            groups.truncate(if self.random.chance(1, 4) { 2 } else { 1 });
        }
        Some((Asked::Leave, MasterOp::Leave { groups }))
    }

    /// A shard or a range to some group.
    fn shift(&mut self, plan: &Configuration, members: &[GroupId]) -> Option<(Asked, MasterOp)> {
        let count = plan.shards.len() as u64;
        let first = self.random.below(count);
        let last =
            if self.random.chance(1, 2) { first } else { self.random.between(first, count - 1) };
        let shards = (first..=last).map(|shard| ShardId(shard as u16)).collect();
        let group = members[self.random.below(members.len() as u64) as usize];
        Some((Asked::Move, MasterOp::Move { moves: vec![ShardMove { shards, group }] }))
    }

    /// Two groups exchange some of their shards in one step.
    fn swap(&mut self, plan: &Configuration, members: &[GroupId]) -> Option<(Asked, MasterOp)> {
        let mut pair = members.to_vec();
        self.random.shuffle(&mut pair);
        let (one, other) = (*pair.first()?, *pair.get(1)?);
        let moves = [(one, other), (other, one)].map(|(from, group)| {
            let mut shards = planned_at(plan, from);
            self.random.shuffle(&mut shards);
            shards.truncate(self.random.between(1, 3) as usize);
            ShardMove { shards, group }
        });
        let is_swap = moves.iter().all(|part| !part.shards.is_empty());
        is_swap.then(|| (Asked::Swap, MasterOp::Move { moves: moves.to_vec() }))
    }

    /// What the newest plan changed goes back to where it was.
    fn back(&mut self, plan: &Configuration) -> Option<(Asked, MasterOp)> {
        let before = self.before.as_ref()?;
        let mut moves: BTreeMap<GroupId, Vec<ShardId>> = BTreeMap::new();
        for (shard, (was, is)) in before.shards.iter().zip(&plan.shards).enumerate() {
            if was != is && plan.groups.contains_key(was) {
                moves.entry(*was).or_default().push(ShardId(shard as u16));
            }
        }
        let moves: Vec<ShardMove> =
            moves.into_iter().map(|(group, shards)| ShardMove { shards, group }).collect();
        (!moves.is_empty()).then_some((Asked::Back, MasterOp::Move { moves }))
    }

    /// The request ended. An error is an answer that must not be.
    pub fn end(&mut self, result: Result<Reply, CallError>) -> Result<(), String> {
        let Some(asked) = self.asked.take() else {
            return Err("the operator is answered what was not asked".to_owned());
        };
        match result {
            Ok(Reply { body: Ok(Answer::Master(MasterAnswer::Configuration(plan))), .. }) => {
                self.on_plan(asked, plan)
            }
            Ok(reply) => Err(format!("the operator's {asked:?} is answered {reply:?}")),
            Err(error) => {
                let known = self.plan.take();
                if !is_refusal(&error) {
                    self.counts.unknown += 1;
                    self.stray |= asked != Asked::Query;
                } else {
                    self.counts.refused += 1;
                    if asked != Asked::Query {
                        self.untouched = known;
                    }
                }
                if self.stray {
                    self.untouched = None;
                }
                match (asked, error) {
                    // The plan may have become another meanwhile, which is a reason to refuse;
                    // but what the operator asks always makes sense.
                    (
                        Asked::Query | Asked::Join | Asked::Leave | Asked::Swap,
                        CallError::Refused(ErrorReply::Invalid(text)),
                    ) => Err(format!("the operator's {asked:?} is invalid: {text}")),
                    _ => Ok(()),
                }
            }
        }
    }

    fn on_plan(&mut self, asked: Asked, plan: Configuration) -> Result<(), String> {
        match asked {
            Asked::Query => self.check_untouched(&plan)?,
            Asked::Join => self.counts.joins += 1,
            Asked::Leave => self.counts.leaves += 1,
            Asked::Move => self.counts.moves += 1,
            Asked::Swap => self.counts.swaps += 1,
            Asked::Back => self.counts.backs += 1,
            Asked::Wrong => return Err("a stranger leaves".to_owned()),
        }
        if matches!(asked, Asked::Join | Asked::Leave) {
            check_balance(&plan)?;
        }
        if asked != Asked::Query {
            self.stray = false;
        }
        self.before = self.plan.replace(plan);
        Ok(())
    }

    /// After a request that was refused the same groups have the same shards as before.
    fn check_untouched(&mut self, plan: &Configuration) -> Result<(), String> {
        let Some(before) = self.untouched.take() else { return Ok(()) };
        if before.groups.keys().eq(plan.groups.keys()) && before.shards == plan.shards {
            return Ok(());
        }
        Err(format!("the operator's request was refused, and from {before:?} came {plan:?}"))
    }
}

fn planned_at(plan: &Configuration, group: GroupId) -> Vec<ShardId> {
    let shards = plan.shards.iter().enumerate().filter(|(_, planned)| **planned == group);
    shards.map(|(shard, _)| ShardId(shard as u16)).collect()
}

/// After Join and Leave no group has two shards more than another.
pub fn check_balance(plan: &Configuration) -> Result<(), String> {
    let counts: Vec<usize> = plan.groups.keys().map(|g| planned_at(plan, *g).len()).collect();
    let (min, max) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    if max - min > 1 {
        return Err(format!("the plan is not balanced: {plan:?}"));
    }
    Ok(())
}
