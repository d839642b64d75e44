//! The interface between a node, which is pure, and the world that drives it: the runtime with
//! files, sockets and clocks, or the simulator with models of them.
//!
//! The driver hands in inputs, each with the time, as many as are ready; then it takes the output
//! and carries it out. No call waits for anything. No order is asked of the driver beyond what the
//! fields say: what must not leave before it is durable is still inside the node.

use base::{Address, Micros, Now};
use bytes::Bytes;
use storage::{
    Disk, Engine, Flush, FlushId, Renewal, Renewed, ScanLimit, View, WalCheck, WalChecked,
    WalCommand, WalRead, WalTicket,
};

/// A node as its driver sees it. `Q` is what the doors ask, `P` what they are answered; frames
/// between nodes are opaque.
pub trait Machine<Q, P> {
    /// Takes one input. `now` was read after the input was taken from its socket or queue.
    fn handle(&mut self, now: Now, input: Input<Q>);

    /// What is to be done since the last call. Taken once after each batch of inputs.
    fn take_output(&mut self) -> Output<P>;
}

/// Names an open request between a door and the node. Chosen by the driver, unique while open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Something that happened.
#[derive(Debug)]
pub enum Input<Q> {
    /// A door received a request.
    Request {
        /// Names the request in [`Output::replies`]; each is answered exactly once.
        token: Token,
        /// The request.
        request: Q,
    },
    /// A frame arrived from another node. The sender says inside who it is.
    Frame(Bytes),
    /// All [`Output::wal`] commands through this ticket were carried out, and are durable.
    WalDone(WalTicket),
    /// A background command of the write-ahead log was carried out.
    WalPrepared(WalTicket),
    /// Of the background commands through this ticket some failed, most likely because the disk
    /// is full, and why. The log goes on with the files it has.
    WalPreparationFailed(WalTicket, String),
    /// There is no room on the disk for what the log or the store is to write, and why; or there is
    /// again. What waits is tried again by itself, and nothing is lost meanwhile.
    NoRoom {
        /// Whose work waits.
        place: Place,
        /// What the disk says; none where the work goes on.
        why: Option<String>,
    },
    /// One of [`Output::checks`] was carried out, or could not be: what was found, or why not.
    Checked {
        /// What was asked for.
        check: Check,
        /// What came of it.
        result: Result<Checked, String>,
    },
    /// An old record of the write-ahead log was read, or could not be.
    WalRead {
        /// What was asked for.
        read: WalRead,
        /// Its bytes, or why there are none.
        bytes: Result<Bytes, String>,
    },
    /// A flush is durable in the engine.
    Flushed(FlushId),
    /// Damage keeps the store from being kept in order, and how: it wants to be renewed
    /// ([`Check::Renew`]).
    StoreStuck(String),
    /// A reply was taken too late to be given; it counts as not given (see [`Reply::not_after`]).
    /// It is handed in before the next output is taken.
    Late(Token),
    /// Some time passed, about 5 milliseconds.
    Tick,
    /// The node shall stop in good order: [`Output::stopped`] says when it has.
    Stop,
}

/// What is to be done with the disk when there is nothing better to do: a part of it is read to look
/// for damage or for a copy of a group's state, or the store is renewed.
#[derive(Clone, Debug)]
pub enum Check {
    /// Of the write-ahead log; see [`storage::check`].
    Log(WalCheck),
    /// Of the store: about so many bytes of the records from one key on, before another.
    Store {
        /// The first key.
        from: Bytes,
        /// The key behind the last.
        to: Bytes,
        /// About how many bytes.
        bytes: usize,
    },
    /// Records of a version of the store, about so many bytes of them.
    View {
        /// Names it in the answer.
        ticket: u64,
        /// The version.
        view: View,
        /// The first key.
        from: Bytes,
        /// The key behind the last.
        to: Bytes,
        /// About how many bytes.
        bytes: usize,
    },
    /// A step of a renewal of the store.
    Renew(Renewal),
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// In the log.
    Log(WalChecked),
    /// The store could be read: so many bytes, and the key to go on from if there is more.
    Store {
        /// How many bytes.
        bytes: u64,
        /// Where to go on; none at the end.
        next: Option<Bytes>,
    },
    /// The records of a version of the store.
    View(Vec<(Bytes, Bytes)>),
    /// A step of a renewal was carried out.
    Renewed(Renewed),
}

/// Carries out a check.
pub fn check(disk: &mut dyn Disk, engine: &dyn Engine, check: &Check) -> Result<Checked, String> {
    match check {
        Check::Log(part) => {
            storage::check(disk, part).map(Checked::Log).map_err(|error| error.to_string())
        }
        Check::Store { from, to, bytes } => {
            let limit = ScanLimit { records: usize::MAX, bytes: *bytes };
            let found = engine.scan(from, to, limit).map_err(|error| error.to_string())?;
            let next = found.last().map(|(key, _)| {
                let mut next = key.to_vec();
                next.push(0);
                Bytes::from(next)
            });
            let bytes = found.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
            Ok(Checked::Store { bytes, next })
        }
        Check::View { view, from, to, bytes, ticket: _ } => {
            let limit = ScanLimit { records: usize::MAX, bytes: *bytes };
            let found = view.0.scan(from, to, limit).map_err(|error| error.to_string())?;
            Ok(Checked::View(found))
        }
        Check::Renew(step) => {
            engine.renew(step).map(Checked::Renewed).map_err(|error| error.to_string())
        }
    }
}

/// A part of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The write-ahead log.
    Log,
    /// The store.
    Store,
}

/// What is to be done.
#[derive(Debug)]
pub struct Output<P> {
    /// For the log's disk, in this order and after all earlier ones, save those marked as
    /// background, which have an order among themselves only.
    pub wal: Vec<WalCommand>,
    /// Old records to be read.
    pub wal_reads: Vec<WalRead>,
    /// What is to be read when there is time, in this order; each is answered by
    /// [`Input::Checked`].
    pub checks: Vec<Check>,
    /// A batch for the engine; the next one comes only after this is [`Input::Flushed`].
    pub flush: Option<Flush>,
    /// Frames for other nodes. Any of them may be lost, delayed, doubled or reordered.
    pub frames: Vec<Frame>,
    /// Answers for the doors.
    pub replies: Vec<Reply<P>>,
    /// Lines for the log of the process.
    pub events: Vec<Event>,
    /// The node cannot go on, and why. The driver does nothing else of this output and ends it.
    pub fatal: Option<String>,
    /// The stop asked for is complete: everything is durable and nothing more will come.
    pub stopped: bool,
}

/// A frame for another node.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Where to.
    pub to: Address,
    /// By which of the connections to that node.
    pub lane: Lane,
    /// Opaque.
    pub bytes: Bytes,
    /// Set for answers to reads under a lease.
    pub leased: Option<Leased>,
}

/// For how long a frame may leave as it is.
#[derive(Clone, Debug)]
pub struct Leased {
    /// Where this time has passed when the driver reads its clock, once after it took the output,
    /// the frame is not sent.
    pub not_after: Micros,
    /// What is sent in its place, so that those who asked know that they are to ask again.
    pub instead: Bytes,
}

impl Frame {
    /// Where the driver's clock shows a time at which the frame may no longer leave, what is sent in
    /// its place takes its place; tells whether that is so.
    pub fn expire(&mut self, now: Micros) -> bool {
        let late = self.leased.take_if(|leased| now > leased.not_after);
        let is_late = late.is_some();
        if let Some(leased) = late {
            self.bytes = leased.instead;
        }
        is_late
    }
}

/// The connections between two nodes, so that bulk data does not delay the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Heartbeats, Paxos and forwarded requests.
    Protocol,
    /// Catch-up and, later, snapshots and shards on the move.
    Bulk,
}

/// An answer for a door.
#[derive(Clone, Debug)]
pub struct Reply<P> {
    /// Whose answer.
    pub token: Token,
    /// The answer.
    pub reply: P,
    /// Set for a read under a lease: the driver reads its clock once after it took the output, and
    /// where this time has passed it drops the reply and hands in [`Input::Late`] instead.
    pub not_after: Option<Micros>,
}

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A person must look into it.
    Error,
    /// Unusual, and handled.
    Warn,
    /// A change that an operator wants to see.
    Info,
    /// For whoever debugs.
    Debug,
}

/// A line for the log of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// How much it matters.
    pub level: Level,
    /// What happened, one line.
    pub text: String,
}

impl<P> Default for Output<P> {
    fn default() -> Output<P> {
        Output {
            wal: Vec::new(),
            wal_reads: Vec::new(),
            checks: Vec::new(),
            flush: None,
            frames: Vec::new(),
            replies: Vec::new(),
            events: Vec::new(),
            fatal: None,
            stopped: false,
        }
    }
}
