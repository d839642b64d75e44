//! Serving copies of a group's state to replicas that need one (`docs/paxos.md` 11.11). A copy is a
//! version of the store that is kept, read part by part by a thread that has time.

use std::collections::BTreeMap;

use base::mutant::{self, Mutant};
use base::{Generation, GroupId, Micros, NodeId, ReplicaId, Slot};
use bytes::Bytes;
use paxos::Standing;
use replica_group::state_machine::PREFIX_BYTES;
use replica_group::turn::{Check, Lane};
use storage::{EngineError, View};

use crate::frame::{Have, NodeMessage};
use crate::generations::{Generations, full_key, range};
use crate::node::Node;
use crate::parts::{Total, encode};

/// The copies that are served from here.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    served: BTreeMap<(GroupId, ReplicaId), Served>,
    /// No part is read before.
    next_at: Micros,
}

/// A copy that is served.
#[derive(Debug)]
struct Served {
    /// Named by the receiver.
    copy: u64,
    /// Where it is.
    node: NodeId,
    view: View,
    slot: Slot,
    generation: Generation,
    standing: Option<Standing>,
    /// Where the newest part began, and what came before that.
    before: (Bytes, Total),
    /// Where it ended, and what came until there.
    until: (Bytes, Total),
    /// What is asked for and not being read.
    asked: Option<Asked>,
    /// What is being read.
    reading: Option<Asked>,
    heard_at: Micros,
    /// The receiver has it. What it needs of the log behind it is kept for a while.
    done: bool,
}

#[derive(Clone, Debug)]
struct Asked {
    after: Bytes,
    have: Option<Have>,
}

/// What a receiver asks for.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) from: ReplicaId,
    pub(crate) copy: u64,
    pub(crate) least: Slot,
    pub(crate) after: Bytes,
    pub(crate) have: Option<Have>,
    pub(crate) hold: bool,
    pub(crate) done: bool,
}

/// Most copies served at a time.
const SERVED_MAX: usize = 4;
/// A receiver that was not heard for so long does not want the rest.
const FORGET: Micros = Micros::from_secs(10);

impl Node {
    pub(crate) fn on_snapshot_request(&mut self, sender: NodeId, group: GroupId, wish: Wish) {
        let Some(hosted) = self.groups.get(&group) else { return };
        if hosted.node_of(wish.from) != Some(sender) {
            return;
        }
        let now = self.now.mono;
        let key = (group, wish.from);
        let known = self.snapshots.served.get(&key).is_some_and(|s| s.copy == wish.copy);
        let begins = !wish.hold && !wish.done && wish.after.is_empty();
        if !known && begins {
            self.snapshots.served.remove(&key);
            if let Some(served) = self.begin_snapshot(sender, group, &wish) {
                self.snapshots.served.insert(key, served);
                self.pin(group);
            }
        }
        let Some(served) = self.snapshots.served.get_mut(&key).filter(|s| s.copy == wish.copy)
        else {
            return self.refuse_snapshot(sender, group, wish.from, wish.copy);
        };
        served.heard_at = now;
        served.done |= wish.done;
        let known = wish.after == served.until.0 || wish.after == served.before.0;
        if !wish.hold && !wish.done && known && served.reading.is_none() {
            served.asked = Some(Asked { after: wish.after, have: wish.have });
        }
        self.drive_snapshots();
    }

    fn refuse_snapshot(&mut self, to: NodeId, group: GroupId, replica: ReplicaId, copy: u64) {
        let Some(from) = self.groups.get(&group).map(|hosted| hosted.paxos().replica()) else {
            return;
        };
        let message = NodeMessage::SnapshotRefused { group, from, to: replica, copy };
        self.send(to, Lane::Protocol, &message);
    }

    fn begin_snapshot(&mut self, node: NodeId, group: GroupId, wish: &Wish) -> Option<Served> {
        let hosted = self.groups.get(&group)?;
        let sound = hosted.fenced().is_none() && !hosted.paxos().is_installing();
        let none = self.options.snapshot_bytes_per_second == 0;
        if !sound || none || self.snapshots.served.len() >= SERVED_MAX {
            return None;
        }
        let view = self.overlay.view();
        let (slot, generation, standing) = match stands_at(&view, group) {
            Ok((slot, generations, standing)) => (slot, generations.current, standing),
            Err(error) => {
                self.on_store_error(group, &error);
                return None;
            }
        };
        let nothing = (Bytes::new(), Total::default());
        (slot >= wish.least).then(|| Served {
            copy: wish.copy,
            node,
            view,
            slot,
            generation,
            standing,
            before: nothing.clone(),
            until: nothing,
            asked: None,
            reading: None,
            heard_at: self.now.mono,
            done: false,
        })
    }

    /// Begins to read what is asked for, as far as the rate allows.
    fn drive_snapshots(&mut self) {
        let now = self.now.mono;
        for ((group, replica), served) in &mut self.snapshots.served {
            if now < self.snapshots.next_at {
                return;
            }
            if served.reading.is_some() {
                continue;
            }
            let Some(asked) = served.asked.take() else { continue };
            let (start, end) = range(*group, served.generation);
            let behind = |key: &[u8]| {
                let mut behind = full_key(*group, served.generation, key).to_vec();
                behind.push(0);
                Bytes::from(behind)
            };
            let from = if asked.after.is_empty() { start } else { behind(&asked.after) };
            // What the receiver has may be divided otherwise: there may be more of it here.
            let (to, more) = match &asked.have {
                Some(have) => (behind(&have.upto), 2),
                None => (end, 1),
            };
            let bytes = more * self.options.snapshot_part_bytes;
            let ticket = self.viewing.serve(*group, *replica, served.copy);
            self.output.checks.push(Check::View {
                ticket,
                view: served.view.clone(),
                from,
                to,
                bytes,
            });
            served.reading = Some(asked);
        }
    }

    /// A part was read.
    pub(crate) fn on_snapshot_read(
        &mut self,
        group: GroupId,
        replica: ReplicaId,
        copy: u64,
        found: Result<Vec<(Bytes, Bytes)>, String>,
    ) {
        let Some(served) = self.snapshots.served.get_mut(&(group, replica)) else { return };
        if served.copy != copy {
            return;
        }
        let Some(asked) = served.reading.take() else { return };
        let node = served.node;
        let mut records = match found {
            Ok(found) => found,
            Err(why) => {
                self.snapshots.served.remove(&(group, replica));
                self.pin(group);
                self.on_store_error(group, &EngineError(why));
                return self.refuse_snapshot(node, group, replica, copy);
            }
        };
        records.iter_mut().for_each(|(key, _)| *key = key.slice(PREFIX_BYTES..));
        if mutant::is(Mutant::CopyWithoutSessions) {
            drop_sessions(&mut records);
        }
        let read: u64 = records.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        let rate = self.options.snapshot_bytes_per_second;
        let pause = Micros(read.saturating_mul(1_000_000) / rate.max(1));
        self.snapshots.next_at = self.snapshots.next_at.max(self.now.mono) + pause;
        let message = served.part(asked, records, self.options.snapshot_part_bytes);
        let Some(hosted) = self.groups.get(&group) else { return };
        let part = message.into_message(group, hosted.paxos().replica(), replica);
        self.send(node, Lane::Bulk, &part);
    }

    pub(crate) fn tick_snapshots(&mut self) {
        let now = self.now.mono;
        let groups = &self.groups;
        // Whoever has the copy needs the log behind it until it has that too.
        let has_all = |(group, replica): &(GroupId, ReplicaId)| {
            let hosted = groups.get(group);
            hosted.is_none_or(|h| h.paxos().have_of(*replica) >= h.paxos().chosen_upto())
        };
        let mut changed = Vec::new();
        self.snapshots.served.retain(|key, served| {
            let late = now.since(served.heard_at) >= FORGET;
            if late || served.done {
                changed.push(key.0);
            }
            !(late || served.done && has_all(key))
        });
        changed.into_iter().for_each(|group| self.pin(group));
        self.drive_snapshots();
    }

    /// Lets a group's replica keep what copies that are under way will need.
    pub(crate) fn pin(&mut self, group: GroupId) {
        let of_group = self.snapshots.served.iter().filter(|((g, _), _)| *g == group);
        let had = |replica| self.groups.get(&group).map(|h| h.paxos().have_of(replica));
        let served = of_group.map(|((_, replica), served)| {
            let had = had(*replica).filter(|_| served.done).unwrap_or_default();
            served.slot.max(had)
        });
        let served = served.min();
        let own = self.installs.slot(group);
        let pinned = [served, own].into_iter().flatten().min();
        if let Some(hosted) = self.groups.get_mut(&group) {
            hosted.pin(pinned);
        }
    }
}

/// What [`Mutant::CopyWithoutSessions`] does. A part keeps its last record, as it would else be taken
/// for the end.
fn drop_sessions(records: &mut Vec<(Bytes, Bytes)>) {
    let kind = |key: &Bytes| key.get(kvserver::keys::COPY_PREFIX_BYTES).copied();
    let last = records.pop();
    records.retain(|(key, _)| kind(key) != Some(kvserver::keys::Kind::Session as u8));
    records.extend(last);
}

/// The slot at which a version of the store has a group's state, and where that is.
fn stands_at(
    view: &View,
    group: GroupId,
) -> Result<(Slot, Generations, Option<Standing>), EngineError> {
    let standing = view.0.get(&crate::store::standing_key(group))?;
    let standing = crate::store::decode_standing(group, standing.as_ref())?;
    let slot = view.0.get(&crate::store::applied_key(group))?;
    let generations = view.0.get(&Generations::default().record(group).0)?;
    let slot = crate::store::decode_slot(group, slot.as_deref())?;
    let slot = if mutant::is(Mutant::CopySlotAhead) { slot.next() } else { slot };
    Ok((slot, Generations::decode(group, generations.as_ref())?, standing))
}

/// A part as it goes to its receiver.
struct Part {
    copy: u64,
    slot: Slot,
    after: Bytes,
    upto: Bytes,
    same: bool,
    records: Bytes,
    total: Total,
    end: Option<Total>,
    standing: Option<Standing>,
}

impl Served {
    /// The part that these records are the answer with, and how far it goes.
    fn part(&mut self, asked: Asked, mut records: Vec<(Bytes, Bytes)>, bytes_max: usize) -> Part {
        let total_of = |records: &[(Bytes, Bytes)]| {
            Total::of(records.iter().map(|(key, value)| (&key[..], &value[..])))
        };
        let so_far = if asked.after == self.until.0 { self.until.1 } else { self.before.1 };
        let mut total = total_of(&records);
        let same = asked.have.as_ref().is_some_and(|have| have.total == total);
        if !same {
            let mut bytes = 0;
            let fits = |(key, value): &(Bytes, Bytes)| {
                bytes += key.len() + value.len();
                bytes <= bytes_max
            };
            let fit = records.iter().map(|(key, value)| (key.clone(), value.clone()));
            let fit = fit.take_while(fits).count();
            records.truncate(fit.max(1));
            total = total_of(&records);
        }
        let upto = match (&asked.have, records.last()) {
            (Some(have), _) if same => have.upto.clone(),
            (_, Some((last, _))) => last.clone(),
            (Some(have), None) => have.upto.clone(),
            (None, None) => Bytes::new(),
        };
        let end = (records.is_empty() && asked.have.is_none()).then_some(so_far);
        let mut until = so_far;
        until.add(total);
        if end.is_none() {
            self.before = (asked.after.clone(), so_far);
            self.until = (upto.clone(), until);
        }
        let records = if same { Bytes::new() } else { encode(&records) };
        let (copy, slot) = (self.copy, self.slot);
        let standing = self.standing.clone().filter(|_| end.is_some());
        Part { copy, slot, after: asked.after, upto, same, records, total, end, standing }
    }
}

impl Part {
    fn into_message(self, group: GroupId, from: ReplicaId, to: ReplicaId) -> NodeMessage {
        NodeMessage::SnapshotPart {
            group,
            from,
            to,
            copy: self.copy,
            slot: self.slot,
            after: self.after,
            upto: self.upto,
            same: self.same,
            records: self.records,
            total: self.total,
            end: self.end,
            standing: self.standing,
        }
    }
}
