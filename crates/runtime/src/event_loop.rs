//! The loop that drives a machine: one turn after another.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use replica_group::turn::{Event, Input, Level, Machine, Output, Reply, Token};
use storage::{Engine, EngineError};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::clock::now;
use crate::disk::FileDisk;
use crate::engine::is_full;
use crate::listener::{Received, receive};
use crate::peers::Peers;
use crate::requests::{Answer, Requests, Submission};
use crate::stats::Stats;
use crate::workers::{Done, Workers};

/// Most inputs of one kind in a turn, so that no kind starves another and answers leave in time.
const INPUTS_MAX: usize = 1_024;

/// How the loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How often the machine is told that time passes.
    pub tick: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { tick: Duration::from_millis(5) }
    }
}

/// What the loop drives the machine with.
pub struct Parts<Q, P> {
    /// The files of the write-ahead log.
    pub disk: FileDisk,
    /// The store.
    pub engine: Arc<dyn Engine>,
    /// Where other nodes connect to (see [`bind`](crate::bind)).
    pub listener: TcpListener,
    /// What the doors ask (see [`requests`](crate::requests())).
    pub requests: Requests<Q, P>,
    /// Where to count.
    pub stats: Arc<Stats>,
}

/// Why the node ended otherwise than by a stop in good order. The process must end too, with an
/// exit code that is not zero.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log cannot be written because there is no room.
    #[error(
        "the disk is full: the write-ahead log cannot be written ({0}); free some space and start \
         the node again, nothing that was acknowledged is lost"
    )]
    WalFull(io::Error),
    /// The log cannot be written or synced.
    #[error(
        "the write-ahead log cannot be written ({0}); the disk may be failing: look into it \
         before the node is started again"
    )]
    Wal(io::Error),
    /// The store cannot be written.
    #[error("{0}")]
    Engine(EngineError),
    /// The machine found that it cannot go on.
    #[error("{0}")]
    Machine(String),
    /// A thread ended by a panic, whose message was printed when it happened.
    #[error("thread {thread} panicked: this is a bug, please report the lines above")]
    Panicked {
        /// Its name.
        thread: &'static str,
    },
    /// The system gives no threads.
    #[error("cannot start a thread: {0}")]
    Threads(io::Error),
}

impl RunError {
    pub(crate) fn wal(error: io::Error) -> RunError {
        if is_full(&error) { RunError::WalFull(error) } else { RunError::Wal(error) }
    }
}

/// The executor on which [`run`] and the doors belong: all of its tasks share the calling thread.
pub fn current_thread() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Drives the machine until it has stopped in good order, or cannot go on, which is the error.
/// Doors may ask as soon as this runs. Connections to and from peers end with it.
pub async fn run<M, Q, P>(
    mut machine: M,
    parts: Parts<Q, P>,
    options: Options,
) -> Result<(), RunError>
where
    M: Machine<Q, P>,
{
    let Parts { disk, engine, listener, requests, stats } = parts;
    // Dropped with this future, and all connections with it.
    let mut tasks = JoinSet::new();
    let (workers, done) = Workers::start(disk, engine, stats.clone()).map_err(RunError::Threads)?;
    let Requests { receiver, stop } = requests;
    let mut ticks = interval(options.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let frames = receive(listener, stats.clone(), &mut tasks);
    let mut inbox = Inbox { done, frames, requests: receiver, stop, ticks, late: VecDeque::new() };
    let mut world = World {
        workers,
        peers: Peers::new(stats.clone()),
        tasks,
        answers: HashMap::new(),
        token: 0,
        stats,
    };
    loop {
        let mut turn = Turn { machine: &mut machine, world: &mut world, inputs: 0 };
        let waited = inbox.wait().await;
        let start = Instant::now();
        turn.first(waited, &mut inbox)?;
        turn.rest(&mut inbox)?;
        let inputs = turn.inputs;
        let stopped = world.dispatch(machine.take_output(), &mut inbox.late)?;
        world.stats.turns.add(1);
        world.stats.inputs.add(inputs);
        world.stats.inputs_in_turn_max.raise(inputs);
        world.stats.turn_micros_max.raise(start.elapsed().as_micros() as u64);
        if stopped {
            break;
        }
    }
    world.workers.join();
    Ok(())
}

/// All that inputs come from.
struct Inbox<Q, P> {
    done: mpsc::UnboundedReceiver<Done>,
    frames: mpsc::Receiver<Received>,
    requests: mpsc::Receiver<Submission<Q, P>>,
    stop: Arc<Notify>,
    ticks: Interval,
    /// Replies that came too late to be given.
    late: VecDeque<Token>,
}

/// What a turn began with.
enum First<Q, P> {
    Late,
    Done(Done),
    Frame(Received),
    Request(Submission<Q, P>),
    Tick,
    Stop,
}

impl<Q, P> Inbox<Q, P> {
    /// Until there is something to do.
    async fn wait(&mut self) -> First<Q, P> {
        if !self.late.is_empty() {
            return First::Late;
        }
        tokio::select! {
            biased;
            Some(done) = self.done.recv() => First::Done(done),
            _ = self.ticks.tick() => First::Tick,
            Some(frame) = self.frames.recv() => First::Frame(frame),
            () = self.stop.notified() => First::Stop,
            Some(request) = self.requests.recv() => First::Request(request),
        }
    }
}

/// What outputs go to.
struct World<P> {
    workers: Workers,
    peers: Peers,
    tasks: JoinSet<()>,
    /// The open requests.
    answers: HashMap<u64, Answer<P>>,
    /// The last token given.
    token: u64,
    stats: Arc<Stats>,
}

struct Turn<'a, M, P> {
    machine: &'a mut M,
    world: &'a mut World<P>,
    inputs: u64,
}

impl<M, P> Turn<'_, M, P> {
    fn first<Q>(&mut self, first: First<Q, P>, inbox: &mut Inbox<Q, P>) -> Result<(), RunError>
    where
        M: Machine<Q, P>,
    {
        match first {
            First::Late => {
                for token in inbox.late.drain(..) {
                    self.handle(Input::Late(token));
                }
            }
            First::Done(done) => self.done(done)?,
            First::Frame(received) => self.handle(Input::Frame(received.frame)),
            First::Request(submission) => self.request(submission),
            First::Tick => self.handle(Input::Tick),
            First::Stop => {
                self.world.workers.stop_waiting();
                self.handle(Input::Stop);
            }
        }
        Ok(())
    }

    /// What else is there already. Done work comes first, since it releases what others wait for.
    fn rest<Q>(&mut self, inbox: &mut Inbox<Q, P>) -> Result<(), RunError>
    where
        M: Machine<Q, P>,
    {
        for _ in 0..INPUTS_MAX {
            let Ok(done) = inbox.done.try_recv() else { break };
            self.done(done)?;
        }
        for _ in 0..INPUTS_MAX {
            let Ok(received) = inbox.frames.try_recv() else { break };
            self.handle(Input::Frame(received.frame));
        }
        for _ in 0..INPUTS_MAX {
            let Ok(submission) = inbox.requests.try_recv() else { break };
            self.request(submission);
        }
        Ok(())
    }

    fn done<Q>(&mut self, done: Done) -> Result<(), RunError>
    where
        M: Machine<Q, P>,
    {
        match done {
            Done::Wal(ticket) => self.handle(Input::WalDone(ticket)),
            Done::Prepared(ticket) => self.handle(Input::WalPrepared(ticket)),
            Done::PreparationFailed(ticket, why) => {
                self.handle(Input::WalPreparationFailed(ticket, why));
            }
            Done::Read { read, bytes } => self.handle(Input::WalRead { read, bytes }),
            Done::Flushed(id) => self.handle(Input::Flushed(id)),
            Done::StoreStuck(why) => self.handle(Input::StoreStuck(why)),
            Done::Checked(check, result) => self.handle(Input::Checked { check, result }),
            Done::NoRoom(place, why) => self.handle(Input::NoRoom { place, why }),
            Done::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn request<Q>(&mut self, submission: Submission<Q, P>)
    where
        M: Machine<Q, P>,
    {
        self.world.token += 1;
        let token = self.world.token;
        self.world.answers.insert(token, submission.answer);
        self.world.stats.requests.add(1);
        self.handle(Input::Request { token: Token(token), request: submission.request });
    }

    /// The clock is read for each input: a turn may be long, and an input was taken before.
    fn handle<Q>(&mut self, input: Input<Q>)
    where
        M: Machine<Q, P>,
    {
        self.inputs += 1;
        self.machine.handle(now(), input);
    }
}

impl<P> World<P> {
    /// Carries out what the machine said; true when it has stopped.
    fn dispatch(
        &mut self,
        output: Output<P>,
        late: &mut VecDeque<Token>,
    ) -> Result<bool, RunError> {
        let Output { wal, wal_reads, checks, flush, frames, replies, events, fatal, stopped } =
            output;
        // One reading, after the output was taken: a later one for each reply would only be dearer.
        let leased = replies.iter().any(|reply| reply.not_after.is_some())
            || frames.iter().any(|frame| frame.leased.is_some());
        let taken = if leased { now() } else { base::Now::default() };
        events.iter().for_each(log);
        if let Some(text) = fatal {
            return Err(RunError::Machine(text));
        }
        // The disk takes longest, so it begins first.
        if !wal.is_empty() {
            self.workers.write(wal);
        }
        for mut frame in frames {
            if frame.expire(taken.mono) {
                self.stats.replies_late.add(1);
            }
            self.peers.send(frame, &mut self.tasks);
        }
        for reply in replies {
            self.reply(reply, taken, late);
        }
        for read in wal_reads {
            self.workers.read(read);
        }
        for check in checks {
            self.workers.check(check);
        }
        if let Some(flush) = flush {
            self.workers.flush(flush);
        }
        Ok(stopped)
    }

    fn reply(&mut self, reply: Reply<P>, taken: base::Now, late: &mut VecDeque<Token>) {
        let Reply { token, reply, not_after } = reply;
        if not_after.is_some_and(|limit| taken.mono > limit) {
            self.stats.replies_late.add(1);
            late.push_back(token);
            return;
        }
        let answer = self.answers.remove(&token.0);
        assert!(answer.is_some(), "a reply to request {} that is not open", token.0);
        self.stats.replies.add(1);
        if let Some(answer) = answer {
            answer.give(reply);
        }
    }
}

fn log(event: &Event) {
    let text = &event.text;
    match event.level {
        Level::Error => tracing::error!("{text}"),
        Level::Warn => tracing::warn!("{text}"),
        Level::Info => tracing::info!("{text}"),
        Level::Debug => tracing::debug!("{text}"),
    }
}
