//! A store that damage keeps from being kept in order is renewed: what lives in it is written anew, and
//! all else is dropped (`docs/paxos.md` 11.3).
//!
//! What lives is the state of each group, what is received of a copy of one, and the node's own records.
//! Where these are damaged they are written from memory, which has all that they say.

use base::{Generation, GroupId, Lsn, Micros};
use bytes::Bytes;
use replica_group::state_machine::{EngineError, owner};
use replica_group::turn::{Check, Checked, Level};
use storage::{FlushId, Renewal, Renewed};

use crate::generations::range;
use crate::node::Node;

/// How far the renewal of the store has come.
#[derive(Debug, Default)]
pub(crate) struct Renewing {
    /// Why the store wants it; none where it does not.
    why: Option<String>,
    stage: Stage,
    /// What was asked for is not answered yet.
    busy: bool,
    /// Nothing is asked for before.
    not_before: Micros,
}

#[derive(Debug, Default)]
enum Stage {
    /// For its time, and until no group waits for a copy of its state.
    #[default]
    Waiting,
    /// All that lives is read once, so that nothing is begun that cannot be ended.
    Looking { left: Vec<(Bytes, Bytes)>, whole: bool, own: bool },
    /// They are written anew.
    Copying { left: Vec<(Bytes, Bytes)>, own: Own },
    /// Nothing may be dropped before the log is durable through here: it says which groups there are,
    /// and which have lost their state.
    Settling(Lsn),
}

/// The node's own records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    /// They are written anew like all else.
    Read,
    /// They cannot be read: the next flush has them from memory.
    Written,
    Flushing(FlushId),
    Durable,
}

/// What is read, or written anew, at once, and how long that may take at the least.
const PART_BYTES: usize = 8 << 20;
const PART_MICROS: u64 = 250_000;
/// Pause after a look that found damage.
const LOOK_AGAIN: Micros = Micros::from_secs(1);
/// Pause after a renewal that was given up.
const RENEW_AGAIN: Micros = Micros::from_secs(10);

impl Renewing {
    /// Whether the store is read or written for it, or will be at once.
    pub(crate) fn is_active(&self) -> bool {
        self.busy || !matches!(self.stage, Stage::Waiting)
    }

    /// Whether all states are being read.
    pub(crate) fn is_looking(&self) -> bool {
        matches!(self.stage, Stage::Looking { .. })
    }

    /// Whether the flush that is about to begin has the node's own records from memory. Only there is
    /// what memory has what the store is to have: while a flush is under way that switches a group to
    /// a copy of its state, memory still has the group's former state.
    pub(crate) fn restates(&self) -> bool {
        matches!(self.stage, Stage::Copying { own: Own::Written, .. })
    }

    /// A flush has begun.
    pub(crate) fn flushing(&mut self, id: FlushId) {
        if let Stage::Copying { own: own @ Own::Written, .. } = &mut self.stage {
            *own = Own::Flushing(id);
        }
    }

    /// A flush is durable.
    pub(crate) fn flushed(&mut self, id: FlushId) {
        if let Stage::Copying { own, .. } = &mut self.stage
            && *own == Own::Flushing(id)
        {
            *own = Own::Durable;
        }
    }

    /// What a person should know of it.
    pub(crate) fn describe(&self) -> Option<String> {
        let why = self.why.as_ref()?;
        Some(match &self.stage {
            Stage::Waiting | Stage::Looking { .. } => {
                format!("the store of its node waits to be renewed: {why}")
            }
            Stage::Copying { .. } | Stage::Settling(_) => {
                format!("the store of its node is being renewed: {why}")
            }
        })
    }

    fn pause(&mut self, now: Micros, bytes: u64) {
        self.not_before = now + Micros(bytes * PART_MICROS / PART_BYTES as u64);
    }
}

impl Node {
    /// Damage keeps the store from being kept in order.
    pub(crate) fn on_store_stuck(&mut self, why: String) {
        if self.renewing.why.is_none() {
            let text = format!(
                "the store cannot be kept in order any more, and gets slower ({why}): what lives \
                 in it is written anew as soon as all of it can be read"
            );
            self.event(Level::Error, text);
        }
        self.renewing.why = Some(why);
    }

    pub(crate) fn tick_renewal(&mut self) {
        let now = self.now.mono;
        let renewing = &mut self.renewing;
        if renewing.why.is_none() || renewing.busy || now < renewing.not_before {
            return;
        }
        let check = match &renewing.stage {
            Stage::Waiting => return self.look(),
            Stage::Looking { left, whole, .. } => match left.last() {
                Some((from, to)) => {
                    Check::Store { from: from.clone(), to: to.clone(), bytes: PART_BYTES }
                }
                None if *whole => Check::Renew(Renewal::Begin),
                None => {
                    renewing.stage = Stage::Waiting;
                    renewing.not_before = now + LOOK_AGAIN;
                    return;
                }
            },
            Stage::Copying { left, own, .. } => match left.last() {
                Some((from, to)) => {
                    let (from, to) = (from.clone(), to.clone());
                    Check::Renew(Renewal::Copy { from, to, bytes: PART_BYTES })
                }
                None if matches!(own, Own::Read | Own::Durable) => {
                    renewing.stage = Stage::Settling(Lsn(self.wal.next_lsn().0 - 1));
                    return;
                }
                None => return,
            },
            Stage::Settling(lsn) if *lsn <= self.wal.synced() => Check::Renew(Renewal::End),
            Stage::Settling(_) => return,
        };
        renewing.busy = true;
        self.output.checks.push(check);
    }

    /// Begins to read all states, unless one is known to be lost: what is left of it may be all that
    /// there is.
    fn look(&mut self) {
        let lost = self.groups.values().any(|hosted| hosted.fenced().is_some());
        if !lost && !self.damage.scrub.is_busy() {
            let mut left = self.states();
            left.push(own_range());
            self.renewing.stage = Stage::Looking { left, whole: true, own: true };
        }
    }

    /// Where the states of all groups lie, the last first.
    fn states(&self) -> Vec<(Bytes, Bytes)> {
        let states = self.groups.iter().map(|(group, hosted)| range(*group, hosted.generation()));
        let mut states: Vec<_> = states.collect();
        states.sort_by(|a, b| b.cmp(a));
        states
    }

    /// A part of the states was read.
    pub(crate) fn on_looked(&mut self, from: &Bytes, result: Result<(u64, Option<Bytes>), String>) {
        let now = self.now.mono;
        self.renewing.busy = false;
        let Stage::Looking { left, whole, own } = &mut self.renewing.stage else { return };
        let (group, generation) = owner(from);
        let is_own = group == GroupId::NODE;
        let next = match &result {
            Ok((_, next)) => next.clone(),
            Err(_) => None,
        };
        let sound = if is_own { own } else { whole };
        *sound &= result.is_ok();
        go_on(left, next);
        match result {
            Ok((bytes, _)) => {
                self.damage.scrubbed_bytes += bytes;
                self.renewing.pause(now, bytes);
            }
            Err(why) if is_own => {
                self.damage.places += 1;
                let text = format!(
                    "the node's own records in the store are damaged ({why}): they are written \
                     anew from memory"
                );
                self.complain(Level::Error, text);
            }
            Err(why) => {
                self.damage.places += 1;
                // The state may have been exchanged since.
                if self.groups.get(&group).is_some_and(|h| h.generation() == generation) {
                    self.on_store_error(group, &EngineError(why));
                }
            }
        }
    }

    /// A step of the renewal was carried out, or was not.
    pub(crate) fn on_renewed(&mut self, result: Result<Checked, String>) {
        let now = self.now.mono;
        self.renewing.busy = false;
        let renewed = match result {
            Ok(Checked::Renewed(renewed)) => renewed,
            Ok(Checked::Log(_) | Checked::Store { .. } | Checked::View(_)) => {
                unreachable!("another check was answered than the one asked for")
            }
            Err(why) => return self.give_up_renewal(&why),
        };
        match renewed {
            Renewed::Begun => self.begin_copying(),
            Renewed::Copied { bytes, next } => {
                if let Stage::Copying { left, .. } = &mut self.renewing.stage {
                    go_on(left, next);
                }
                self.renewing.pause(now, bytes);
            }
            Renewed::Ended { bytes } => {
                self.renewing = Renewing::default();
                let text = format!(
                    "the store is renewed, and takes {bytes} bytes: nothing is left in it of what \
                     was damaged"
                );
                self.event(Level::Info, text);
            }
            Renewed::GivenUp => {}
        }
    }

    /// From now on each flush belongs to what is written anew. So whatever was not there when this
    /// was asked for comes with a flush.
    fn begin_copying(&mut self) {
        let Stage::Looking { own, .. } = self.renewing.stage else { return };
        let mut left = self.states();
        for group in self.groups.keys() {
            // What is received of a copy will be the state.
            let received = self.installs.generation(*group);
            left.extend(received.map(|generation: Generation| range(*group, generation)));
        }
        left.sort_by(|a, b| b.cmp(a));
        left.dedup();
        if own {
            left.push(own_range());
            self.renewing.stage = Stage::Copying { left, own: Own::Read };
        } else {
            self.renewing.stage = Stage::Copying { left, own: Own::Written };
            // With this there is something to flush.
            let (key, record) = crate::store::meta_record(self.options.disk);
            self.overlay.put(key, record);
            self.flush.written(self.now.mono);
        }
        let why = self.renewing.why.clone().unwrap_or_default();
        let text = format!("all that lives in the store can be read: it is renewed ({why})");
        self.event(Level::Info, text);
    }

    fn give_up_renewal(&mut self, why: &str) {
        let text = format!(
            "the store cannot be renewed ({why}): everything stays as it is, and it is tried again"
        );
        self.complain(Level::Error, text);
        let begun = !matches!(self.renewing.stage, Stage::Waiting);
        self.renewing.stage = Stage::Waiting;
        self.renewing.not_before = self.now.mono + RENEW_AGAIN;
        if begun {
            self.renewing.busy = true;
            self.output.checks.push(Check::Renew(Renewal::GiveUp));
        }
    }
}

/// Where the node's own records lie.
fn own_range() -> (Bytes, Bytes) {
    let (_, end) = range(GroupId(GroupId::NODE.0 - 1), Generation(0));
    (end, range(GroupId(0), Generation(1)).0)
}

/// Goes on with the rest of a part, or with the next one.
fn go_on(left: &mut Vec<(Bytes, Bytes)>, next: Option<Bytes>) {
    match (left.last_mut(), next) {
        (Some((from, _)), Some(next)) => *from = next,
        (_, _) => drop(left.pop()),
    }
}
