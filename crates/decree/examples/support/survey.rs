//! What a cluster says of its shards at one moment, and whether all is at rest.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base::{GroupId, NodeId, ShardId};
use client::{Client, Error, Options};
use router::{Configuration, Routes, ShardState, ShardStatus};

/// A node that does not answer within this time is passed over.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);

/// Plan, owners, and what the leaders have of the shards.
pub(crate) struct Survey {
    pub(crate) plan: Configuration,
    pub(crate) routes: Routes,
    pub(crate) leaders: BTreeMap<GroupId, NodeId>,
    pub(crate) shards: Vec<ShardStatus>,
}

/// A client for the control of a cluster.
pub(crate) fn controller(endpoints: Vec<String>) -> Client {
    let options = Options { timeout: Duration::from_secs(20), ..Options::default() };
    Client::connect(endpoints, options).expect("the endpoints are valid")
}

impl Survey {
    /// Asks the shard master, and every node for its shards.
    pub(crate) async fn take(client: &Client) -> Result<Survey, Error> {
        let plan = client.query(None).await?.value;
        let routes = client.newest_routes().await?;
        let short = client.with_timeout(ANSWER_TIME_MAX);
        let mut answers = Vec::new();
        for node in routes.nodes.values() {
            let endpoint = node.grpc.as_str();
            let asked = futures::future::join(short.status(endpoint), short.shards(endpoint));
            let (status, shards) = asked.await;
            if let (Ok(status), Ok(shards)) = (status, shards) {
                answers.push((status, shards));
            }
        }
        // A leader that was replaced may not know it yet: the higher round counts.
        let mut rounds: BTreeMap<GroupId, (u32, NodeId)> = BTreeMap::new();
        for (status, _) in &answers {
            for group in status.groups.iter().filter(|group| group.leading) {
                let leader = rounds.entry(group.group).or_default();
                *leader = (*leader).max((group.round, status.node));
            }
        }
        let leaders: BTreeMap<GroupId, NodeId> =
            rounds.into_iter().map(|(group, (_, node))| (group, node)).collect();
        let mut shards = Vec::new();
        for (status, of_node) in answers {
            let led = |shard: &ShardStatus| leaders.get(&shard.group) == Some(&status.node);
            shards.extend(of_node.into_iter().filter(led));
        }
        Ok(Survey { plan, routes, leaders, shards })
    }

    /// How many shards each member of the plan serves, by what the groups themselves say.
    pub(crate) fn served(&self) -> BTreeMap<GroupId, usize> {
        let mut served: BTreeMap<GroupId, usize> =
            self.plan.groups.keys().map(|group| (*group, 0)).collect();
        for shard in self.shards.iter().filter(|shard| shard.state == ShardState::Owned) {
            *served.entry(shard.group).or_default() += 1;
        }
        served
    }

    /// What is left to do, in a line; none when every shard is served where the plan wants it, by
    /// that group only, no hand-off is open and nothing dead is left.
    pub(crate) fn unrest(&self) -> Option<String> {
        let to_move = to_move(&self.plan, &self.routes);
        if to_move > 0 || !self.routes.handoffs.is_empty() {
            let open = self.routes.handoffs.len();
            return Some(format!("{to_move} shards to move, {open} hand-offs under way"));
        }
        // Groups that left count too: what they gave away must be deleted there.
        let mut groups = self.routes.groups.keys().filter(|group| **group != GroupId::MASTER);
        if let Some(silent) = groups.find(|group| !self.leaders.contains_key(group)) {
            return Some(format!("no leader of group {} answers", silent.0));
        }
        let mut owner: BTreeMap<ShardId, GroupId> = BTreeMap::new();
        for shard in &self.shards {
            match shard.state {
                ShardState::Owned => {
                    if let Some(other) = owner.insert(shard.shard, shard.group) {
                        let both = [other.0, shard.group.0];
                        return Some(format!("shard {} is served by {both:?}", shard.shard.0));
                    }
                }
                ShardState::Moved { .. } | ShardState::Refused { .. } => {}
                ShardState::Out { .. } | ShardState::Frozen { .. } | ShardState::In { .. } => {
                    let (number, group) = (shard.shard.0, shard.group.0);
                    return Some(format!("group {group} has shard {number} {:?}", shard.state));
                }
            }
            if shard.dead_copies > 0 || shard.dead_records > 0 {
                let (number, group) = (shard.shard.0, shard.group.0);
                return Some(format!("group {group} has {} dead records of shard {number}", {
                    shard.dead_records
                }));
            }
        }
        let served = |(number, planned): (usize, &GroupId)| {
            let owner = u16::try_from(number).ok().and_then(|number| owner.get(&ShardId(number)));
            owner == Some(planned)
        };
        let all = self.plan.shards.iter().enumerate().all(served);
        (!all).then(|| "the leaders do not serve what the plan says".to_owned())
    }

    /// Whether the groups of the plan serve equally many shards, give or take one.
    pub(crate) fn is_balanced(&self) -> bool {
        let served = self.served();
        let members = self.plan.groups.keys().filter_map(|group| served.get(group));
        let (min, max) = members.fold((usize::MAX, 0), |(min, max), n| (min.min(*n), max.max(*n)));
        max <= min + 1
    }
}

/// Shards that are not where the plan wants them.
pub(crate) fn to_move(plan: &Configuration, routes: &Routes) -> usize {
    let owners = routes.owners.iter().map(|owner| owner.map(|owner| owner.group));
    let pairs = plan.shards.iter().zip(owners);
    let elsewhere = |planned: GroupId, owner: Option<GroupId>| {
        planned != GroupId::MASTER && owner != Some(planned)
    };
    pairs.filter(|(planned, owner)| elsewhere(**planned, *owner)).count()
}

/// Waits until all is at rest: how long that took, and what was seen then; else what is left.
pub(crate) async fn settle(client: &Client, longest: Duration) -> Result<Survey, String> {
    let begun = Instant::now();
    loop {
        let left = match Survey::take(client).await {
            Ok(survey) => match survey.unrest() {
                None => return Ok(survey),
                Some(left) => left,
            },
            Err(error) => error.to_string(),
        };
        if begun.elapsed() >= longest {
            return Err(format!("not at rest after {} s: {left}", longest.as_secs()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
