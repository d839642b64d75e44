//! What passes between a client, its caller and its driver.

use base::{Micros, NodeId};

use crate::request::{ErrorReply, Reply, Request};

/// Names a call between the client and its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Which node an attempt goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// This one; the driver finds its address in the routes.
    Node(NodeId),
    /// Any: the driver goes round the endpoints it knows, with each attempt to another one.
    Any,
}

/// An attempt that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// The call.
    pub call: CallId,
    /// Which of its attempts, counted from 1; given back with whatever comes of it.
    pub attempt: u32,
    /// Where to.
    pub to: Target,
    /// What.
    pub request: Request,
}

/// What became of an attempt that was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing of it left this process.
    NotSent,
    /// It may have arrived.
    Lost,
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// A write that was executed, or is still going to be, or never will: nobody can tell. The
    /// sentence says what stood in the way.
    OutcomeUnknown(String),
    /// Not executed, or a read: nobody who could answer was reached in time.
    Unavailable(String),
    /// An answer, and final: the request was not done.
    Refused(ErrorReply),
}

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// How long a call may take when its caller does not say.
    pub timeout: Micros,
    /// An attempt without an answer for so long is followed by another one.
    pub attempt_timeout: Micros,
    /// The first pause before a retry; each further one is up to twice as long.
    pub pause_min: Micros,
    /// The longest pause before a retry.
    pub pause_max: Micros,
    /// Most calls at a time; one more is refused. (Those above the bound of a shard's session
    /// table wait inside until there is room.)
    pub calls_max: usize,
}

/// What a client wants of its driver.
#[derive(Debug, Default)]
pub struct ClientOutput {
    /// Attempts to be sent.
    pub sends: Vec<Send>,
    /// Calls that ended. The body of the reply is an answer: errors are in the `Err`.
    pub finished: Vec<(CallId, Result<Reply, CallError>)>,
    /// Newer routes would help: ask any node for them, and hand them in.
    pub wants_routes: bool,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            timeout: Micros::from_secs(10),
            attempt_timeout: Micros::from_secs(1),
            pause_min: Micros::from_millis(2),
            pause_max: Micros::from_millis(200),
            calls_max: 65_536,
        }
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::OutcomeUnknown(why) => {
                write!(f, "outcome unknown: the write may have been done, or not ({why})")
            }
            CallError::Unavailable(why) => write!(f, "unavailable: nothing was done ({why})"),
            CallError::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CallError {}
