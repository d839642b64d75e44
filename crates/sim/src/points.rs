//! Crash points: places on the way from an input to an answer, and on the way of a record to the
//! disk, at which a node's process or machine can be made to end.
//!
//! Chance finds most of these places seldom: nothing takes time between two messages of one output.
//! So a run *arms* one point of one node, and the node ends the next time that it comes there.

use std::collections::BTreeMap;

/// How often nodes ended at each point, by its name.
pub type PointHits = BTreeMap<&'static str, u64>;

macro_rules! points {
    ($($(#[$doc:meta])+ $point:ident = $name:literal,)+) => {
        /// Where a node can be made to end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CrashPoint {
            $($(#[$doc])+ $point,)+
        }

        impl CrashPoint {
            /// All of them.
            pub const ALL: &[CrashPoint] = &[$(CrashPoint::$point,)+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(CrashPoint::$point => $name,)+
                }
            }
        }
    };
}

points! {
    /// Inputs have come, and none of them is handled.
    BeforeInput = "before input",
    /// Commands are executed, and nothing that follows from them is carried out.
    AfterApply = "after apply",
    /// The log's commands are given to the disk, and no message has left.
    BeforeSend = "before send",
    /// Some of the messages have left.
    BetweenSends = "between sends",
    /// All messages have left; answers, where there are any, have not.
    AfterSend = "after send",
    /// Answers are ready, and none has left.
    BeforeAnswer = "before answer",
    /// All answers have left.
    AfterAnswer = "after answer",
    /// The log's disk is about to write.
    BeforeWrite = "before write",
    /// It has written, and not synced.
    AfterWrite = "after write",
    /// All of a batch is written, and nothing of it synced.
    BeforeSync = "before sync",
    /// All of it is synced, and the node has not been told.
    AfterSync = "after sync",
    /// A segment is about to be made.
    BeforeCreate = "before create",
    /// It is made, and the node has not been told.
    AfterCreate = "after create",
    /// A segment is about to be removed.
    BeforeRemove = "before remove",
    /// It is removed, and the node has not been told.
    AfterRemove = "after remove",
    /// A flush is about to reach the store.
    BeforeFlush = "before flush",
    /// It is durable, and the node has not been told.
    AfterFlush = "after flush",
    /// The store is about to take a step of its renewal.
    BeforeRenew = "before renew",
    /// It has taken it, and the node has not been told.
    AfterRenew = "after renew",
}

/// The point that is armed, and what came of others.
#[derive(Debug, Default)]
pub(crate) struct Points {
    armed: Option<(usize, CrashPoint)>,
    hits: PointHits,
}

impl Points {
    /// A node ends when it next comes to this point; no other does.
    pub(crate) fn arm(&mut self, node: usize, point: CrashPoint) {
        self.armed = Some((node, point));
    }

    /// Nobody ends at any point.
    pub(crate) fn disarm(&mut self) {
        self.armed = None;
    }

    /// The point of this node that is armed, if one is.
    pub(crate) fn of(&self, node: usize) -> Option<CrashPoint> {
        self.armed.filter(|(at, _)| *at == node).map(|(_, point)| point)
    }

    /// Whether a node, being here, is to end.
    pub(crate) fn is_reached(&mut self, node: usize, point: CrashPoint) -> bool {
        let reached = self.armed == Some((node, point));
        if reached {
            self.armed = None;
            *self.hits.entry(point.name()).or_default() += 1;
        }
        reached
    }

    /// How often nodes ended, by point.
    pub(crate) fn hits(&self) -> &PointHits {
        &self.hits
    }
}
