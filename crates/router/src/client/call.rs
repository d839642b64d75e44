//! One call of a client: its identity, its attempts, and what it waits for.

use base::{Micros, NodeId, ShardId};
use smallvec::SmallVec;

use crate::client::interface::CallError;
use crate::client::numbers::Place;
use crate::request::{Body, Consistency, Session};

/// One call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) body: Body,
    pub(super) deadline: Micros,
    pub(super) consistency: Consistency,
    /// The shard of the key, once the number of shards is known.
    pub(super) shard: Option<ShardId>,
    /// Where the session is kept; none for what needs no session.
    pub(super) place: Option<Place>,
    /// Whether it stands in the queue of its place.
    pub(super) queued: bool,
    /// The identity; none before the first attempt.
    pub(super) session: Option<Session>,
    /// The number of the newest attempt.
    pub(super) attempt: u32,
    /// The attempts that may have been executed.
    pub(super) unsettled: SmallVec<[u32; 4]>,
    pub(super) state: CallState,
    /// The node that the newest attempt went to.
    pub(super) tried: Option<NodeId>,
    /// Attempts in a row that were sent on at once, following a hint.
    pub(super) hops: u32,
    /// Pauses so far.
    pub(super) pauses: u32,
    /// The newest reason why there is no answer yet.
    pub(super) trouble: Option<String>,
    /// Its entry in `timers`.
    pub(super) timer: Micros,
}

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallState {
    /// Room in its place's session table.
    Room,
    /// An answer; at this time it is sent again.
    Answer { resend: Micros },
    /// The end of a pause.
    Pause { until: Micros },
}

impl Call {
    /// What its caller is told when time is up.
    pub(super) fn error_at_deadline(&self) -> CallError {
        let trouble = match (&self.trouble, self.state) {
            (Some(trouble), _) => trouble.clone(),
            (None, CallState::Room) => "too many requests of this client were open".to_string(),
            (None, CallState::Answer { .. } | CallState::Pause { .. }) => {
                "no answer came in time".to_string()
            }
        };
        if self.body.is_write() && !self.unsettled.is_empty() {
            CallError::OutcomeUnknown(trouble)
        } else {
            CallError::Unavailable(trouble)
        }
    }
}

/// Where the session of a request is kept; none for a read, and for what is the same however often
/// it is done.
pub(super) fn place(body: &Body, shard: Option<ShardId>) -> Option<Place> {
    match body {
        Body::Kv(op) if op.is_write() => Some(shard.map_or(Place::Unplaced, Place::Shard)),
        Body::Master(op) if op.is_write() => Some(Place::Master),
        Body::Kv(_) | Body::Master(_) | Body::Cluster(_) => None,
    }
}
