//! A second operator, who replaces nodes by others and drains them.

use base::{Micros, NodeId};
use router::{Body, CallError, ErrorReply, MasterOp, Reply};

use super::alarm::Alarm;
use super::{Failed, Guest, Run};

/// The second operator.
#[derive(Debug)]
pub(super) struct Steward {
    /// The world's number of its client.
    pub(super) client: usize,
    /// The number of each node, by its place in the world.
    numbers: Vec<NodeId>,
    /// Whether it waits for an answer.
    pub(super) is_open: bool,
}

/// Its patience.
const TIMEOUT: Micros = Micros::from_secs(5);

impl<G: Guest> Run<G> {
    /// Gives the steward its client, if there is to be one.
    pub(super) fn employ_steward(&mut self, admin: usize) -> Result<(), Failed> {
        if self.options.faults.members.is_none() {
            return Ok(());
        }
        let routes = self.cluster.routes_when(admin, "routes", |_| true)?;
        let nodes = self.cluster.world.nodes();
        let numbers = (0..nodes).map(|place| self.cluster.node_id(&routes, place)).collect();
        let client = self.cluster.world.add_client((0..nodes).collect(), false, TIMEOUT);
        self.steward = Some(Steward { client, numbers, is_open: false });
        Ok(())
    }

    /// Some node is to hold no replicas any more, or another to hold those that it has.
    pub(super) fn change_members(&mut self) {
        self.next(self.options.faults.members, Alarm::Members);
        let Some(steward) = &mut self.steward else { return };
        if steward.is_open {
            return;
        }
        let mut numbers = steward.numbers.clone();
        self.random.shuffle(&mut numbers);
        let (old, new) = (numbers[0], numbers[1]);
        let op = match self.random.chance(1, 3) {
            true => MasterOp::DrainNode { node: old },
            false => MasterOp::ReplaceNode { old, new },
        };
        steward.is_open = true;
        let client = steward.client;
        self.cluster.world.note(&format!("the second operator asks {op:?}"));
        self.cluster.world.call(client, Body::Master(op), None);
    }

    /// What makes no sense at the time is refused, with a reason.
    pub(super) fn on_members(&mut self, result: Result<Reply, CallError>) -> Result<(), Failed> {
        if let Some(steward) = &mut self.steward {
            steward.is_open = false;
        }
        match result {
            Ok(Reply { body: Ok(_), .. }) => self.count("F18 nodes replaced"),
            Err(CallError::Refused(ErrorReply::Invalid(text))) => {
                let what = format!("what the second operator asks is invalid: {text}");
                return Err(self.cluster.failed(&what));
            }
            Ok(_) | Err(_) => self.count("F18 refused"),
        }
        Ok(())
    }
}
