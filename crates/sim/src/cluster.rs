//! A world under the eyes of the checker, and how a cluster comes to be in it: by the requests
//! that a user sends.

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, Micros, NodeId, ReplicaId};
use router::{
    Answer, Body, CallError, ClusterAnswer, ClusterOp, ErrorReply, MasterAnswer, MasterOp,
    NewGroup, NodeInfo, Reply, Routes,
};

use crate::checker::Checker;
use crate::client::Answered;
use crate::crew::Crew;
use crate::disk::Crash;
use crate::guest::Guest;
use crate::leases::Leases;
use crate::ownership::{Ownership, Stepped};
use crate::world::{Happening, World, WorldOptions};

/// A world, and what was seen of it.
pub struct Cluster<G> {
    /// The world.
    pub world: World<G>,
    /// The checker.
    pub checker: Checker,
    /// The checker of leases.
    pub leases: Leases,
    /// The checker of shards.
    pub ownership: Ownership,
    /// Nodes that may give up: their disks were made to fail.
    pub may_give_up: BTreeSet<usize>,
    /// Nodes that may find no room to start.
    pub may_not_start: BTreeSet<usize>,
    /// Whoever was asked to stop and does so only now is started again.
    pub stops_no_more: bool,
    /// Clients at work in the background, if there are any.
    pub crew: Option<Crew>,
    /// Calls that ended and nobody asked for yet.
    ended: BTreeMap<(usize, u64), Result<Reply, CallError>>,
    /// Steps of hand-offs that nobody asked for yet.
    stepped: Vec<Stepped>,
    /// A process ended by itself, and what it knew last was not seen.
    blind: bool,
    ticks: u64,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed(pub String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

impl<G: Guest> Cluster<G> {
    /// A world of blank nodes, none of them started.
    pub fn new(seed: u64, options: WorldOptions) -> Cluster<G> {
        Cluster {
            world: World::new(seed, options),
            checker: Checker::new(),
            leases: Leases::default(),
            ownership: Ownership::default(),
            stepped: Vec::new(),
            blind: false,
            may_give_up: BTreeSet::new(),
            may_not_start: BTreeSet::new(),
            stops_no_more: false,
            crew: None,
            ended: BTreeMap::new(),
            ticks: 0,
        }
    }

    /// One event, with the invariants checked where a node may have changed.
    pub fn step(&mut self) -> Result<Happening, Failed> {
        let Some(happening) = self.world.step() else {
            return Err(Failed("nothing can happen any more".to_owned()));
        };
        if self.world.under_way() > UNDER_WAY_MAX {
            return Err(self.failed("more is under way than any run should come to"));
        }
        if let Some(error) = self.world.take_errors().first() {
            return Err(self.failed(error));
        }
        match &happening {
            Happening::Ticked(node) => {
                self.ticks += 1;
                self.look(*node, self.ticks.is_multiple_of(DIGEST_TICKS))?;
                self.leases.check(&self.world).map_err(|what| self.failed(&what))?;
                if self.ticks.is_multiple_of(AUDIT_TICKS) {
                    self.audit()?;
                }
                if self.ticks.is_multiple_of(64) {
                    let checked = self.checker.check_promises(&self.world);
                    checked.map_err(|what| self.failed(&what))?;
                    self.check_single()?;
                }
            }
            Happening::Fatal(node, why)
                if self.may_give_up.contains(node)
                    || self.may_not_start.contains(node) && why.starts_with("cannot start") =>
            {
                self.blind = true;
                let note = format!("node {node} gives up: {why}");
                self.world.note(&note);
            }
            Happening::Fatal(node, why) => {
                return Err(self.failed(&format!("node {node} gave up: {why}")));
            }
            Happening::Answered(_, answered) => {
                if let Ok(reply) = &answered.result {
                    let checked = self.ownership.check_reply(reply);
                    checked.map_err(|what| self.failed(&what))?;
                }
            }
            Happening::Stopped(node) => {
                let node = *node;
                self.observe(node)?;
                self.world.crash(node, Crash::Kill);
                if self.stops_no_more {
                    self.world.start(node);
                }
            }
            Happening::Nothing | Happening::Alarm(_) | Happening::Reached(_) => {}
        }
        self.on_crew(happening)
    }

    /// Looks at one node now.
    pub fn observe(&mut self, node: usize) -> Result<(), Failed> {
        self.look(node, true)
    }

    fn look(&mut self, node: usize, digests: bool) -> Result<(), Failed> {
        let starts = self.world.nodes[node].starts();
        let disk = self.world.disk_id(node);
        let Some(guest) = self.world.guest(node) else { return Ok(()) };
        let checked = self.checker.observe((node, disk), starts, guest, digests);
        let owned = self.ownership.observe(node, starts, guest);
        checked.map_err(|what| self.failed(&what))?;
        self.stepped.extend(owned.map_err(|what| self.failed(&what))?);
        Ok(())
    }

    /// The steps of hand-offs that were seen since this was last asked.
    pub fn take_stepped(&mut self) -> Vec<Stepped> {
        std::mem::take(&mut self.stepped)
    }

    fn check_single(&mut self) -> Result<(), Failed> {
        for node in 0..self.world.nodes() {
            self.look(node, false)?;
        }
        if self.blind {
            return Ok(());
        }
        self.ownership.check_single().map_err(|what| self.failed(&what))
    }

    /// Every record of every node is what its replica says (I21).
    pub fn audit(&mut self) -> Result<(), Failed> {
        let hurt = self.checker.hurt.clone();
        for node in (0..self.world.nodes()).filter(|node| !hurt.contains(node)) {
            let Some(guest) = self.world.guest_mut(node) else { continue };
            guest.audit().map_err(|what| self.failed(&format!("I21: node {node}: {what}")))?;
        }
        Ok(())
    }

    /// Waits until all nodes are up, the plan is reality and nothing is left of the way there.
    pub fn settle(&mut self, span: Micros) -> Result<(), Failed> {
        let end = self.world.time() + span;
        loop {
            for node in 0..self.world.nodes() {
                self.observe(node)?;
            }
            let guests = (0..self.world.nodes()).map(|node| self.world.guest(node));
            let settled = self.ownership.check_settled(guests);
            let settled = settled.and_then(|()| self.check_members());
            let Err(missing) = settled else { break };
            if self.world.time() >= end {
                return Err(self.failed(&format!("the plan does not become true: {missing}")));
            }
            self.run_for(Micros::from_millis(100))?;
        }
        Ok(())
    }

    /// Every member of every group is where the shard master believes it to be, on a disk that is
    /// there, and votes; nobody is on the way to become one.
    pub fn check_members(&self) -> Result<(), String> {
        let Some(plan) = self.ownership.plan() else { return Ok(()) };
        if let Some((group, change)) = plan.changes.first() {
            let members = plan.members.iter().find(|(known, _)| known == group);
            return Err(format!("{members:?} still change: {change:?}"));
        }
        let shown = |node: usize, group: GroupId, replica: ReplicaId| {
            let views = self.world.guest(node).map(|guest| guest.views(false)).unwrap_or_default();
            views.into_iter().find(|view| view.group == group && view.replica == replica)
        };
        for (group, members) in &plan.members {
            for (replica, number, disk) in members {
                let mut nodes = 0..self.world.nodes();
                let Some(node) = nodes.find(|node| self.world.disk_id(*node) == *disk) else {
                    return Err(format!("{replica} of {group} is on a lost disk of {number}"));
                };
                let Some(view) = shown(node, *group, *replica) else {
                    return Err(format!("node {node} does not show {replica} of {group}"));
                };
                if view.hurt || !view.voters.contains(replica) {
                    return Err(format!("node {node} is not whole: {view:?}"));
                }
            }
        }
        Ok(())
    }

    /// A node has other disks than it had before.
    pub fn exchanged(&mut self, node: usize) {
        self.checker.exchanged(node);
        self.ownership.exchanged(node);
    }

    /// A failure at the present time.
    pub fn failed(&self, what: &str) -> Failed {
        Failed(format!("at {:.6} s: {what}", self.world.time().0 as f64 / 1e6))
    }

    /// Lets time pass. Calls that end meanwhile can be asked for by [`Cluster::ended`].
    pub fn run_for(&mut self, span: Micros) -> Result<(), Failed> {
        let end = self.world.time() + span;
        // The alarm makes the time come even where nothing else happens.
        self.world.alarm(span, IDLE_ALARM);
        while self.world.time() < end {
            if let Happening::Answered(client, answered) = self.step()? {
                self.keep(client, *answered);
            }
        }
        Ok(())
    }

    fn keep(&mut self, client: usize, answered: Answered) {
        self.ended.insert((client, answered.call), answered.result);
    }

    /// The end of a call, once; none while it is open.
    pub fn ended(&mut self, client: usize, call: u64) -> Option<Result<Reply, CallError>> {
        self.ended.remove(&(client, call))
    }

    /// Waits for the end of a call; none if it is still open after so long.
    pub fn wait(
        &mut self,
        client: usize,
        call: u64,
        span: Micros,
    ) -> Result<Option<Result<Reply, CallError>>, Failed> {
        let end = self.world.time() + span;
        self.world.alarm(span, IDLE_ALARM);
        loop {
            if let Some(result) = self.ended(client, call) {
                return Ok(Some(result));
            }
            if self.world.time() >= end {
                return Ok(None);
            }
            if let Happening::Answered(client, answered) = self.step()? {
                self.keep(client, *answered);
            }
        }
    }

    /// Calls and waits for the answer, as a user without patience for errors.
    pub fn ask(&mut self, client: usize, body: Body) -> Result<Answer, Failed> {
        let what = format!("{body:?}");
        let call = self.world.call(client, body, Some(Micros::from_secs(20)));
        match self.wait(client, call, Micros::from_secs(25))? {
            Some(Ok(reply)) => match reply.body {
                Ok(answer) => Ok(answer),
                Err(error) => Err(self.failed(&format!("{what}: {error}"))),
            },
            Some(Err(error)) => Err(self.failed(&format!("{what}: {error}"))),
            None => Err(self.failed(&format!("{what}: no end"))),
        }
    }

    /// Starts all nodes and makes a cluster of so many shards of them, with one group on each of
    /// the lists of nodes (by their places in the world), numbered from 1. Returns the client that
    /// did it.
    pub fn bootstrap(&mut self, shards: u16, groups: &[Vec<usize>]) -> Result<usize, Failed> {
        for node in 0..self.world.nodes() {
            self.world.start(node);
        }
        let all: Vec<usize> = (0..self.world.nodes()).collect();
        let admin = self.world.add_client(all, false, Micros::from_secs(20));
        let masters = self.world.master_addresses();
        let init = Body::Cluster(ClusterOp::Init { masters, shards });
        let created = self.ask(admin, init)?;
        if !matches!(created, Answer::Cluster(ClusterAnswer::Created(_))) {
            return Err(self.failed(&format!("init is answered {created:?}")));
        }
        let nodes = self.world.nodes();
        let routes = self.routes_when(admin, "all nodes are registered", |routes| {
            let known = |info: &&NodeInfo| !info.grpc.as_str().is_empty();
            routes.nodes.values().filter(known).count() == nodes
        })?;
        let mut new = Vec::new();
        for (index, places) in groups.iter().enumerate() {
            let group = GroupId(index as u64 + 1);
            let nodes = places.iter().map(|place| self.node_id(&routes, *place)).collect();
            new.push(NewGroup { group, nodes });
        }
        let joined = self.ask(admin, Body::Master(MasterOp::Join { groups: new }))?;
        if !matches!(joined, Answer::Master(MasterAnswer::Configuration(_))) {
            return Err(self.failed(&format!("join is answered {joined:?}")));
        }
        self.routes_when(admin, "all shards have owners", |routes| {
            routes.owners.iter().all(Option::is_some)
        })?;
        Ok(admin)
    }

    /// The number of the node at this place of the world.
    pub(crate) fn node_id(&self, routes: &Routes, place: usize) -> NodeId {
        let door = self.world.nodes[place].door();
        let found = routes.nodes.values().find(|info| info.grpc == *door);
        found.map_or(NodeId(0), |info| info.node)
    }

    pub(crate) fn routes_when(
        &mut self,
        client: usize,
        what: &str,
        ready: impl Fn(&Routes) -> bool,
    ) -> Result<Routes, Failed> {
        for _ in 0..200 {
            let answer = self.ask(client, Body::Master(MasterOp::Routes))?;
            let Answer::Master(MasterAnswer::Routes(routes)) = answer else {
                return Err(self.failed(&format!("routes are answered {answer:?}")));
            };
            if ready(&routes) {
                return Ok(*routes);
            }
            self.run_for(Micros::from_millis(50))?;
        }
        Err(self.failed(&format!("ten seconds later not yet: {what}")))
    }

    /// Waits until all nodes are up and all replicas agree on everything that was ever chosen.
    pub fn converge(&mut self, span: Micros) -> Result<(), Failed> {
        let end = self.world.time() + span;
        loop {
            for node in 0..self.world.nodes() {
                self.observe(node)?;
            }
            let Err(missing) = self.checker.check_converged(&self.world) else { return Ok(()) };
            if self.world.time() >= end {
                return Err(self.failed(&format!("the replicas do not converge: {missing}")));
            }
            self.run_for(Micros::from_millis(100))?;
        }
    }
}

/// Whether an end of a call says that the operation was certainly not executed.
pub fn is_refusal(error: &CallError) -> bool {
    match error {
        CallError::OutcomeUnknown(_) => false,
        CallError::Unavailable(_) => true,
        CallError::Refused(error) => !matches!(error, ErrorReply::OutcomeUnknown(_)),
    }
}

/// States are compared at one tick in so many (odd, so that it meets every node).
const DIGEST_TICKS: u64 = 7;

/// Of a usual run some hundred events are under way.
const UNDER_WAY_MAX: usize = 1_000_000;

/// All records are read at one tick in so many.
const AUDIT_TICKS: u64 = 3_001;

/// An alarm that means nothing.
pub const IDLE_ALARM: u64 = u64::MAX;
