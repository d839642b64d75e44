//! The client's one task: it carries what callers want to the routing machine, and what that says
//! to the links.
//!
//! Each time it is woken it takes everything that is ready, and only then sends: so requests of
//! callers that were woken together leave in one write, and answers that arrived together wake
//! their callers together.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::v1::pipeline_reply;
use base::{Micros, NodeId, Now};
use router::{
    Answer, Body, CallError, CallId, ClientOptions, ClientSend, ClusterAnswer, ClusterOp,
    Consistency, ErrorReply, Failure, Header, Reply, Request, Target,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use crate::context::{Clock, draw_identity};
use crate::convert::{leader_hint, reply_from_proto, request_to_proto};
use crate::error::Error;
use crate::link::{Event, Link};
use crate::options::{Options, micros};

/// What a caller wants.
pub(crate) enum Command {
    /// A call with routing and retries.
    Call { body: Body, timeout: Micros, reads: Consistency, sender: Done },
    /// One attempt, as it is.
    Raw { endpoint: Option<String>, request: Request, sender: Done },
}

/// Where the result of a call goes; a caller that is gone does not mind.
type Done = oneshot::Sender<Result<Reply, Error>>;

/// Links in all; addresses beyond that are not connected to.
const LINKS_MAX: usize = 256;
/// A question for routes that has no answer for so long is asked again, elsewhere.
const ROUTES_TIMEOUT: Micros = Micros::from_secs(1);
/// Between two questions for routes.
const ROUTES_PAUSE: Micros = Micros::from_millis(50);

/// The task.
pub(crate) struct Driver {
    commands: mpsc::Receiver<Command>,
    options: Options,
    clock: Clock,
    router: router::Client,
    calls: HashMap<CallId, Done>,
    /// Calls from before the first connection. They are not known to the router, so that giving
    /// them up is safe.
    held: Vec<Held>,
    /// Whether any node was ever reached.
    reached: bool,
    links: Vec<(String, Link<Waiter>)>,
    /// The endpoints that were given, and how many links they are: the first of `links`.
    endpoints: Arc<[String]>,
    /// The link that the next request for any node goes to.
    any: usize,
    /// Addresses of leaders as replies named them, for nodes that the routes do not have.
    hints: BTreeMap<NodeId, String>,
    routes: RoutesQuestion,
    timer: Pin<Box<Sleep>>,
    timer_at: Micros,
}

/// A call that waits for the first connection.
struct Held {
    body: Body,
    deadline: Micros,
    give_up: Micros,
    reads: Consistency,
    sender: Done,
}

/// What a link's open request is for.
enum Waiter {
    Call(CallId, u32),
    Raw { sender: Done, is_write: bool },
    Routes,
}

/// Whether newer routes are wanted.
enum RoutesQuestion {
    Idle,
    /// To be asked from this time on.
    Wanted(Micros),
    /// Asked; given up at this time.
    Asked(Micros),
}

impl Driver {
    pub(crate) fn new(
        commands: mpsc::Receiver<Command>,
        endpoints: Arc<[String]>,
        options: Options,
    ) -> Result<Driver, Error> {
        let (id, seed) = draw_identity()?;
        let router_options = ClientOptions {
            timeout: micros(options.timeout),
            attempt_timeout: micros(options.attempt_timeout),
            ..ClientOptions::default()
        };
        let mut links: Vec<(String, Link<Waiter>)> = Vec::new();
        for address in endpoints.iter() {
            if !links.iter().any(|(known, _)| known == address) {
                links.push((address.clone(), Link::new(address.clone())));
            }
        }
        let clock = Clock::start();
        let timer = Box::pin(tokio::time::sleep_until(clock.instant(Micros(0))));
        Ok(Driver {
            commands,
            clock,
            router: router::Client::new(id, seed, router_options),
            calls: HashMap::new(),
            held: Vec::new(),
            reached: false,
            // Clients of one cluster begin at different nodes.
            any: usize::try_from(seed % links.len().max(1) as u64).unwrap_or(0),
            links,
            endpoints,
            hints: BTreeMap::new(),
            routes: RoutesQuestion::Wanted(Micros(0)),
            timer,
            timer_at: Micros(0),
            options,
        })
    }

    /// Takes what callers want. Ready when the last of them is gone.
    fn take_commands(&mut self, now: Now, context: &mut Context<'_>) -> Poll<bool> {
        let mut progress = false;
        loop {
            match self.commands.poll_recv(context) {
                Poll::Ready(Some(command)) => self.take_command(now, command),
                Poll::Ready(None) => return Poll::Ready(progress),
                Poll::Pending if progress => return Poll::Ready(true),
                Poll::Pending => return Poll::Pending,
            }
            progress = true;
        }
    }

    fn take_command(&mut self, now: Now, command: Command) {
        match command {
            Command::Call { body, timeout, reads, sender } if self.reached => {
                self.begin(now, body, timeout, reads, sender);
            }
            Command::Call { body, timeout, reads, sender } => {
                let give_up = now.mono + timeout.min(micros(self.options.first_contact));
                let deadline = now.mono + timeout;
                self.held.push(Held { body, deadline, give_up, reads, sender });
            }
            Command::Raw { endpoint, request, sender } => {
                self.send_raw(now, endpoint, request, sender);
            }
        }
    }

    fn begin(&mut self, now: Now, body: Body, timeout: Micros, reads: Consistency, sender: Done) {
        match self.router.begin_with(now, body, Some(timeout), reads) {
            Ok(call) => {
                self.calls.insert(call, sender);
            }
            Err(error) => drop(sender.send(Err(error.into()))),
        }
    }

    fn send_raw(&mut self, now: Now, endpoint: Option<String>, request: Request, sender: Done) {
        let is_write = request.body.is_write();
        let request = match request_to_proto(request) {
            Ok(request) => request,
            Err(error) => return drop(sender.send(Err(error.into()))),
        };
        let link = match endpoint {
            Some(address) => self.link(&address),
            None => self.link_any(now, false),
        };
        let waiter = Waiter::Raw { sender, is_write };
        let sent = match link.and_then(|link| self.links.get_mut(link)) {
            Some((_, link)) => link.send(now.mono, &self.options, request, waiter),
            None => Err(waiter),
        };
        if let Err(waiter) = sent {
            self.fail(now, waiter, Failure::NotSent);
        }
    }

    /// Takes what the links have to tell.
    fn poll_links(&mut self, now: Now, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        let mut index = 0;
        while let Some((_, link)) = self.links.get_mut(index) {
            match link.poll(now.mono, context) {
                Poll::Pending => {
                    index += 1;
                    continue;
                }
                Poll::Ready(Event::Opened) => self.on_opened(now),
                Poll::Ready(Event::Reply(waiter, reply)) => self.on_reply(now, waiter, reply),
                Poll::Ready(Event::Broke { open, unsent }) => {
                    let failure = if unsent { Failure::NotSent } else { Failure::Lost };
                    for waiter in open {
                        self.fail(now, waiter, failure);
                    }
                }
            }
            progress = true;
        }
        progress
    }

    fn on_opened(&mut self, now: Now) {
        self.reached = true;
        for held in std::mem::take(&mut self.held) {
            let left = held.deadline.since(now.mono);
            self.begin(now, held.body, left, held.reads, held.sender);
        }
    }

    fn on_reply(&mut self, now: Now, waiter: Waiter, reply: Option<pipeline_reply::Reply>) {
        if let Some((node, address)) = reply.as_ref().and_then(leader_hint)
            && !self.router.known_routes().nodes.contains_key(&node)
            && self.hints.len() < LINKS_MAX
            && self.hints.get(&node).is_none_or(|known| known != address)
        {
            self.hints.insert(node, address.to_owned());
        }
        let reply = reply_from_proto(reply);
        match waiter {
            Waiter::Call(call, attempt) => {
                // Who cannot be understood may have executed what was asked.
                let reply = reply.unwrap_or_else(|malformed| Reply {
                    header: router::ReplyHeader::default(),
                    body: Err(ErrorReply::OutcomeUnknown(malformed.to_string())),
                });
                self.router.reply(now, call, attempt, reply);
            }
            Waiter::Raw { sender, is_write } => {
                let lost =
                    |malformed: crate::convert::Malformed| Error::lost(malformed.0, is_write);
                drop(sender.send(reply.map_err(lost)));
            }
            Waiter::Routes => {
                let body = reply.map(|reply| reply.body);
                if let Ok(Ok(Answer::Cluster(ClusterAnswer::Routes(routes)))) = body
                    && routes.version > 0
                {
                    self.routes = RoutesQuestion::Idle;
                    self.router.routes(now, *routes);
                } else {
                    // A node that has none yet: another one may.
                    self.any = self.any.wrapping_add(1);
                    self.routes = RoutesQuestion::Wanted(now.mono + ROUTES_PAUSE);
                }
            }
        }
    }

    fn fail(&mut self, now: Now, waiter: Waiter, failure: Failure) {
        match waiter {
            Waiter::Call(call, attempt) => self.router.failed(now, call, attempt, failure),
            Waiter::Raw { sender, is_write } => {
                let error = match failure {
                    Failure::NotSent => Error::NobodyReachable(self.troubles()),
                    Failure::Lost => {
                        Error::lost("the connection was lost before the answer".into(), is_write)
                    }
                };
                drop(sender.send(Err(error)));
            }
            Waiter::Routes => self.routes = RoutesQuestion::Wanted(now.mono + ROUTES_PAUSE),
        }
    }

    /// Carries out what the router says.
    fn carry_out(&mut self, now: Now) -> bool {
        let mut progress = false;
        loop {
            let output = self.router.take_output();
            let idle = output.sends.is_empty() && output.finished.is_empty();
            if output.wants_routes && matches!(self.routes, RoutesQuestion::Idle) {
                self.routes = RoutesQuestion::Wanted(now.mono);
            }
            for (call, result) in output.finished {
                if let Some(sender) = self.calls.remove(&call) {
                    drop(sender.send(result.map_err(|error| self.explain(error))));
                }
            }
            for send in output.sends {
                self.send(now, send);
            }
            if idle {
                return progress;
            }
            progress = true;
        }
    }

    fn send(&mut self, now: Now, send: ClientSend) {
        let link = match send.to {
            Target::Node(node) => self.link_to(node),
            Target::Any => None,
        };
        // A node whose address is not known, or that was just found dead, is left to the others,
        // who forward.
        let usable = |link: &usize| self.links.get(*link).is_some_and(|l| l.1.is_usable(now.mono));
        let link = link.filter(usable).or_else(|| self.link_any(now, send.attempt > 1));
        let waiter = Waiter::Call(send.call, send.attempt);
        let request = match request_to_proto(send.request) {
            Ok(request) => request,
            Err(error) => {
                let reply = Reply { header: router::ReplyHeader::default(), body: Err(error) };
                return self.router.reply(now, send.call, send.attempt, reply);
            }
        };
        let sent = match link.and_then(|link| self.links.get_mut(link)) {
            Some((_, link)) => link.send(now.mono, &self.options, request, waiter),
            None => Err(waiter),
        };
        if let Err(waiter) = sent {
            self.fail(now, waiter, Failure::NotSent);
        }
    }

    /// Opens links while calls wait for the first of all, gives such calls up, asks for routes.
    fn housekeeping(&mut self, now: Now) -> bool {
        let mut progress = false;
        if !self.held.is_empty() {
            for (_, link) in &mut self.links {
                progress |= link.pause_until().is_some_and(|until| now.mono >= until);
                link.open(now.mono, &self.options);
            }
            for held in
                self.held.extract_if(.., |held| held.give_up <= now.mono).collect::<Vec<_>>()
            {
                drop(held.sender.send(Err(Error::NobodyReachable(self.troubles()))));
            }
        }
        if let RoutesQuestion::Asked(until) = self.routes
            && until <= now.mono
        {
            self.any = self.any.wrapping_add(1);
            self.routes = RoutesQuestion::Wanted(now.mono);
        }
        if let RoutesQuestion::Wanted(from) = self.routes
            && from <= now.mono
            && self.reached
            && self.router.open() > 0
        {
            self.routes = RoutesQuestion::Asked(now.mono + ROUTES_TIMEOUT);
            self.ask_routes(now);
            progress = true;
        }
        progress
    }

    fn ask_routes(&mut self, now: Now) {
        let header = Header { timeout: ROUTES_TIMEOUT, ..Header::default() };
        let request = Request { header, body: Body::Cluster(ClusterOp::Routes) };
        let Ok(request) = request_to_proto(request) else { return };
        let link = self.link_any(now, false);
        let sent = match link.and_then(|link| self.links.get_mut(link)) {
            Some((_, link)) => link.send(now.mono, &self.options, request, Waiter::Routes),
            None => Err(Waiter::Routes),
        };
        if let Err(waiter) = sent {
            self.fail(now, waiter, Failure::NotSent);
        }
    }

    /// The link to an address, new if need be.
    fn link(&mut self, address: &str) -> Option<usize> {
        if let Some(index) = self.links.iter().position(|(known, _)| known == address) {
            return Some(index);
        }
        if self.links.len() >= LINKS_MAX {
            return None;
        }
        self.links.push((address.to_owned(), Link::new(address.to_owned())));
        Some(self.links.len() - 1)
    }

    fn link_to(&mut self, node: NodeId) -> Option<usize> {
        let routed = self.router.known_routes().nodes.get(&node).map(|info| info.grpc.clone());
        let address = match &routed {
            Some(address) => address.as_str(),
            None => self.hints.get(&node)?.as_str(),
        };
        if let Some(index) = self.links.iter().position(|(known, _)| known == address) {
            return Some(index);
        }
        let address = address.to_owned();
        self.link(&address)
    }

    /// The link for what any node may take: an open one, else one that may be opened. `next`: not
    /// the one that had the last such request.
    fn link_any(&mut self, now: Now, next: bool) -> Option<usize> {
        let count = self.links.len();
        let first = if next { self.any.wrapping_add(1) } else { self.any } % count.max(1);
        let in_turn = || (first..count).chain(0..first);
        let is = |link: usize, test: &dyn Fn(&Link<Waiter>) -> bool| {
            self.links.get(link).is_some_and(|(_, link)| test(link))
        };
        let open = in_turn().find(|link| is(*link, &|link| link.is_open()));
        let usable = || in_turn().find(|link| is(*link, &|link| link.is_usable(now.mono)));
        let found = open.or_else(usable);
        if let Some(found) = found {
            self.any = found;
        }
        found
    }

    /// What a caller is told: where no node is connected any more, that is the reason.
    fn explain(&self, error: CallError) -> Error {
        match error {
            CallError::Unavailable(_) if !self.links.iter().any(|(_, link)| link.is_open()) => {
                Error::NobodyReachable(self.troubles())
            }
            CallError::Unavailable(_) | CallError::OutcomeUnknown(_) | CallError::Refused(_) => {
                error.into()
            }
        }
    }

    fn troubles(&self) -> String {
        let links = self.links.iter().filter(|(address, _)| self.endpoints.contains(address));
        let texts = links.map(|(address, link)| {
            format!("{address} ({})", link.trouble().unwrap_or("no answer"))
        });
        texts.collect::<Vec<_>>().join(", ")
    }

    /// Sets the timer to the next thing that is due. A timer that is too early costs one wake-up;
    /// moving it with each call would cost more.
    fn set_timer(&mut self, now: Now, context: &mut Context<'_>) -> bool {
        let mut wake = self.router.next_wake();
        let mut at = |time: Micros| wake = Some(wake.map_or(time, |wake| wake.min(time)));
        match self.routes {
            RoutesQuestion::Wanted(from) if self.reached && self.router.open() > 0 => at(from),
            RoutesQuestion::Asked(until) => at(until),
            RoutesQuestion::Idle | RoutesQuestion::Wanted(_) => {}
        }
        if let Some(give_up) = self.held.iter().map(|held| held.give_up).min() {
            at(give_up);
            for until in self.links.iter().filter_map(|(_, link)| link.pause_until()) {
                at(until);
            }
        }
        let Some(wake) = wake else { return false };
        if wake <= now.mono {
            return true;
        }
        if wake < self.timer_at || self.timer_at <= now.mono {
            self.timer_at = wake;
            self.timer.as_mut().reset(self.clock.instant(wake));
        }
        // Registers this task; a timer that has just passed counts as something to do.
        self.timer.as_mut().poll(context).is_ready()
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let driver = self.get_mut();
        let mut closed = false;
        // More than a few rounds would keep the connections, which may share this thread, from
        // sending what was handed to them.
        for _ in 0..16 {
            let now = driver.clock.now();
            let mut progress = match driver.take_commands(now, context) {
                Poll::Ready(true) => true,
                Poll::Ready(false) => {
                    closed = true;
                    false
                }
                Poll::Pending => false,
            };
            progress |= driver.poll_links(now, context);
            driver.router.tick(now);
            progress |= driver.housekeeping(now);
            progress |= driver.carry_out(now);
            if closed {
                return Poll::Ready(());
            }
            if !progress && !driver.set_timer(now, context) {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
