//! A simulated client: the deciding part is [`router::client::Client`], the one that real clients
//! use; here are its clock, its connections, and what a driver must do around it.

use std::collections::BTreeMap;

use base::{Address, ClientId, Micros};
use router::client::{CallError, CallId, Client, ClientOptions, Failure, Target};
use router::{Answer, Body, ClusterAnswer, ClusterOp, Consistency, Header, Reply, Request};

use crate::clock::Clock;

/// A call that ended.
#[derive(Debug)]
pub struct Answered {
    /// The call's number.
    pub call: u64,
    /// Its reply, or why there is none.
    pub result: Result<Reply, CallError>,
}

/// What a client wants done.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) answered: Vec<Answered>,
    /// To which node (none: to one that cannot be found), under which number, what.
    pub(crate) sends: Vec<(Option<usize>, u64, Request)>,
    /// When it wants to be woken, if it did not say so before.
    pub(crate) wake: Option<Micros>,
}

/// What was sent and not answered yet.
#[derive(Clone, Copy, Debug)]
enum Sent {
    Attempt(CallId, u32),
    Routes,
}

/// One client.
#[derive(Debug)]
pub(crate) struct SimClient {
    client: Client,
    clock: Clock,
    endpoints: Vec<usize>,
    pinned: bool,
    next_endpoint: usize,
    sent: BTreeMap<u64, Sent>,
    sent_last: u64,
    /// The virtual time for which it was promised to be woken.
    woken_at: Option<Micros>,
    open: BTreeMap<CallId, ()>,
    refused: Vec<Answered>,
    refused_last: u64,
}

impl SimClient {
    pub(crate) fn new(
        id: ClientId,
        seed: u64,
        clock: Clock,
        endpoints: Vec<usize>,
        pinned: bool,
        options: ClientOptions,
    ) -> SimClient {
        assert!(!endpoints.is_empty(), "a client that knows no node");
        SimClient {
            client: Client::new(id, seed, options),
            clock,
            endpoints,
            pinned,
            next_endpoint: 0,
            sent: BTreeMap::new(),
            sent_last: 0,
            woken_at: None,
            open: BTreeMap::new(),
            refused: Vec::new(),
            refused_last: u64::MAX,
        }
    }

    pub(crate) fn begin(
        &mut self,
        time: Micros,
        body: Body,
        timeout: Option<Micros>,
        reads: Consistency,
    ) -> u64 {
        match self.client.begin_with(self.clock.now(time), body, timeout, reads) {
            Ok(call) => {
                self.open.insert(call, ());
                call.0
            }
            Err(error) => {
                self.refused_last -= 1;
                let call = self.refused_last;
                self.refused.push(Answered { call, result: Err(error) });
                call
            }
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn abandon(&mut self, time: Micros) {
        for call in std::mem::take(&mut self.open).into_keys() {
            self.client.abandon(self.clock.now(time), call);
        }
    }

    pub(crate) fn answered(&mut self, time: Micros, number: u64, reply: Reply) {
        let now = self.clock.now(time);
        match self.sent.remove(&number) {
            Some(Sent::Attempt(call, attempt)) => self.client.reply(now, call, attempt, reply),
            Some(Sent::Routes) => {
                if let Ok(Answer::Cluster(ClusterAnswer::Routes(routes))) = reply.body {
                    self.client.routes(now, *routes);
                }
            }
            // Its double came before.
            None => {}
        }
    }

    pub(crate) fn broken(&mut self, time: Micros, number: u64, sent: bool) {
        let failure = if sent { Failure::Lost } else { Failure::NotSent };
        if let Some(Sent::Attempt(call, attempt)) = self.sent.remove(&number) {
            self.client.failed(self.clock.now(time), call, attempt, failure);
        }
    }

    pub(crate) fn wake(&mut self, time: Micros) {
        if self.woken_at.is_some_and(|at| at <= time) {
            self.woken_at = None;
            self.client.tick(self.clock.now(time));
        }
    }

    pub(crate) fn take_output(&mut self, time: Micros, doors: &BTreeMap<Address, usize>) -> Wanted {
        let output = self.client.take_output();
        let mut wanted =
            Wanted { answered: std::mem::take(&mut self.refused), ..Wanted::default() };
        for (call, result) in output.finished {
            self.open.remove(&call);
            wanted.answered.push(Answered { call: call.0, result });
        }
        for send in output.sends {
            let node = match send.to {
                Target::Node(node) if !self.pinned => {
                    let nodes = &self.client.known_routes().nodes;
                    nodes.get(&node).and_then(|info| doors.get(&info.grpc)).copied()
                }
                Target::Node(_) | Target::Any => Some(self.any_endpoint()),
            };
            let number = self.remember(Sent::Attempt(send.call, send.attempt));
            wanted.sends.push((node, number, send.request));
        }
        if output.wants_routes {
            let node = self.any_endpoint();
            let number = self.remember(Sent::Routes);
            let body = Body::Cluster(ClusterOp::Routes);
            wanted.sends.push((Some(node), number, Request { header: Header::default(), body }));
        }
        if let Some(mono) = self.client.next_wake() {
            let at = self.clock.when(mono).max(time);
            if self.woken_at.is_none_or(|woken| at < woken) {
                self.woken_at = Some(at);
                wanted.wake = Some(at);
            }
        }
        wanted
    }

    fn any_endpoint(&mut self) -> usize {
        if self.pinned {
            return self.endpoints[0];
        }
        self.next_endpoint = (self.next_endpoint + 1) % self.endpoints.len();
        self.endpoints[self.next_endpoint]
    }

    fn remember(&mut self, sent: Sent) -> u64 {
        self.sent_last += 1;
        self.sent.insert(self.sent_last, sent);
        // What was lost on its way is never answered.
        while self.sent.len() > SENT_MAX {
            self.sent.pop_first();
        }
        self.sent_last
    }
}

/// Most attempts that are remembered as open.
const SENT_MAX: usize = 1_000;
