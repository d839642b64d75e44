//! The operator's part of a run.

use std::collections::BTreeMap;

use base::{GroupId, Micros};
use router::{CallError, Reply};

use crate::cluster::Failed;
use crate::disk::Crash;
use crate::guest::Guest;
use crate::ownership;
use crate::reconfiguration::Operator;
use crate::swarm::Run;
use crate::swarm::alarm::Alarm;

impl<G: Guest> Run<G> {
    /// Gives the operator its client, if there is an operator, and all groups their nodes.
    pub(super) fn employ_operator(&mut self, admin: usize) -> Result<(), Failed> {
        let Some(options) = self.options.reconfiguration.clone() else { return Ok(()) };
        let routes = self.cluster.routes_when(admin, "routes", |_| true)?;
        let places = self.options.groups.iter().chain(&options.groups);
        let mut groups = BTreeMap::new();
        for (index, places) in places.enumerate() {
            let nodes = places.iter().map(|place| self.cluster.node_id(&routes, *place));
            groups.insert(GroupId(index as u64 + 1), nodes.collect());
        }
        let endpoints = (0..self.cluster.world.nodes()).collect();
        let client = self.cluster.world.add_client(endpoints, false, OPERATOR_TIMEOUT);
        let mut operator = Operator::new(self.random.fork(), options, groups);
        let pause = operator.pause();
        self.operator = Some((operator, client));
        self.alarm(pause, Alarm::Operate);
        Ok(())
    }

    pub(super) fn operate(&mut self) {
        if let Some((operator, client)) = &mut self.operator {
            let (body, client) = (operator.begin(), *client);
            self.cluster.world.note(&format!("the operator asks {body:?}"));
            self.cluster.world.call(client, body, None);
        }
    }

    pub(super) fn on_operated(&mut self, result: Result<Reply, CallError>) -> Result<(), Failed> {
        let Some((operator, _)) = &mut self.operator else { return Ok(()) };
        let ended = operator.end(result);
        let pause = operator.pause();
        ended.map_err(|what| self.cluster.failed(&what))?;
        if self.working {
            self.alarm(pause, Alarm::Operate);
        }
        Ok(())
    }

    /// At some steps of hand-offs a leader that takes part is ended.
    pub(super) fn ambush(&mut self) -> Result<(), Failed> {
        for step in self.cluster.take_stepped() {
            let Some((operator, _)) = &mut self.operator else { continue };
            if !self.working || !operator.is_ambush() {
                continue;
            }
            let group = match self.random.below(3) {
                0 => step.from,
                1 => step.to,
                _ => GroupId::MASTER,
            };
            let Some(node) = ownership::leader(&self.cluster.world, group) else { continue };
            let party = match group {
                GroupId::MASTER => ownership::MASTER,
                group if group == step.from => ownership::SOURCE,
                _ => ownership::DESTINATION,
            };
            *self.crashes.entry((step.phase, party)).or_default() += 1;
            self.cluster.observe(node)?;
            let crash = if self.options.faults.power { Crash::Power } else { Crash::Kill };
            self.cluster.world.crash(node, crash);
            let span = Micros(self.random.below(AWAY_MAX.0));
            self.alarm(span, Alarm::Restart(node));
        }
        Ok(())
    }
}

impl<G: Guest> Run<G> {
    /// A node is about to be ended by chance: which hand-offs that meets.
    pub(super) fn count_crash(&mut self, node: usize) {
        let Some(guest) = self.cluster.world.guest(node) else { return };
        for view in guest.views(false) {
            if view.leading.is_some() {
                for (party, step) in self.cluster.ownership.parts(view.group) {
                    *self.crashes.entry((step, party)).or_default() += 1;
                }
            }
        }
    }
}

/// The operator's patience.
const OPERATOR_TIMEOUT: Micros = Micros::from_secs(5);
/// A leader that was ended is started again within this time.
const AWAY_MAX: Micros = Micros::from_secs(3);
