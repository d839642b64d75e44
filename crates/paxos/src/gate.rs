//! The one place where durability holds messages back (docs/paxos.md 11.2, I3).
//!
//! A message that vouches for a record is sent only once that record is durable: a promise, a
//! vote, a `Prepare` (which makes its ballot single-use) and a refusal that rests on a promise. The
//! leader's `Accept` vouches for nothing: it runs beside the leader's own write.

use std::collections::VecDeque;

use base::{Lsn, ReplicaId};

use crate::message::Message;

/// Stands for the position of a record that no output has taken yet. It lies above every durable
/// position, so that what waits for it waits.
pub(crate) const PENDING: Lsn = Lsn(u64::MAX);

/// Messages on their way out.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// All records up to here are durable.
    durable: Lsn,
    /// The position of the newest record that an output took.
    placed: Lsn,
    /// May be sent.
    free: Vec<(ReplicaId, Message)>,
    /// Waits, in the order of sending, each message for its record.
    held: VecDeque<(Lsn, ReplicaId, Message)>,
}

impl Gate {
    /// The gate of a replica whose records up to `durable` are on the disk.
    pub(crate) fn new(durable: Lsn) -> Gate {
        Gate { durable, placed: durable, ..Gate::default() }
    }

    /// All records up to here are durable.
    pub(crate) fn durable(&self) -> Lsn {
        self.durable
    }

    /// The position of the newest record that an output took.
    pub(crate) fn placed(&self) -> Lsn {
        self.placed
    }

    /// Sends what vouches for no record of the sender.
    pub(crate) fn send(&mut self, to: ReplicaId, message: Message) {
        self.free.push((to, message));
    }

    /// Sends once the record at `after` is durable.
    pub(crate) fn send_after(&mut self, after: Lsn, to: ReplicaId, message: Message) {
        if after <= self.durable {
            self.free.push((to, message));
        } else {
            self.held.push_back((after, to, message));
        }
    }

    /// An output takes records, the last of them to this position.
    pub(crate) fn place(&mut self, last: Lsn) {
        assert!(last > self.placed, "position {last} is not above {}", self.placed);
        self.placed = last;
        for (after, _, _) in &mut self.held {
            if *after == PENDING {
                *after = last;
            }
        }
    }

    /// All records up to `through` are durable.
    pub(crate) fn persisted(&mut self, through: Lsn) {
        self.durable = self.durable.max(through);
        let durable = self.durable;
        if self.held.iter().any(|(after, _, _)| *after <= durable) {
            for (after, to, message) in std::mem::take(&mut self.held) {
                self.send_after(after, to, message);
            }
        }
    }

    /// Takes what may be sent.
    pub(crate) fn take(&mut self) -> Vec<(ReplicaId, Message)> {
        std::mem::take(&mut self.free)
    }

    /// How many messages wait for a record.
    pub(crate) fn held_count(&self) -> usize {
        self.held.len()
    }
}
