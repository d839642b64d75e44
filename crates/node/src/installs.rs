//! Taking a copy of another replica's state where nothing else helps (`docs/paxos.md` 11.11).
//!
//! The copy is written under a generation of its own, beside the state. Until the flush that
//! switches to it is durable it means nothing, and a start deletes it.

mod receive;

use std::collections::BTreeMap;

use base::{Generation, GroupId, Micros, NodeId, ReplicaId, Slot};
use bytes::Bytes;
use paxos::Standing;
use replica_group::state_machine::PREFIX_BYTES;
use replica_group::turn::{Check, Lane, Level};
use storage::{FlushId, View};

use crate::frame::{Have, NodeMessage};
use crate::generations::{Generations, range};
use crate::node::Node;
use crate::parts::Total;

pub(crate) use self::receive::SnapshotPart;

/// The copies that are taken here.
#[derive(Debug, Default)]
pub(crate) struct Installs {
    groups: BTreeMap<GroupId, Install>,
    copies: u64,
    pub(crate) stats: CopyStats,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Copies that became a replica's state.
    pub installed: u64,
    /// Parts that came.
    pub parts: u64,
    /// Parts of them that were here already, from a former source.
    pub same: u64,
    /// Copies that turned out to be of no use.
    pub useless: u64,
    /// Logs that went on behind what the store held already.
    pub skipped: u64,
}

/// A copy that is taken.
#[derive(Debug)]
struct Install {
    /// Since when it is needed.
    since: Micros,
    /// The lowest slot that is of use.
    least: Slot,
    stage: Stage,
    source: Option<ReplicaId>,
    /// How many sources were tried.
    tried: u64,
    /// Names what the source serves.
    copy: u64,
    /// The slot that the copy stands at, once a part came.
    slot: Option<Slot>,
    generation: Option<Generation>,
    /// All before this key is here.
    after: Bytes,
    /// What of it came from this source or is the same there.
    total: Total,
    /// What the source says of all of it.
    expected: Option<Total>,
    /// Who the members are after the slot.
    standing: Option<Standing>,
    /// What came from a former source, by where it began.
    held: BTreeMap<Bytes, Have>,
    /// The last key that came from a former source.
    held_upto: Bytes,
    asked_at: Option<Micros>,
    asked_again: u32,
    /// When the source was last asked to keep the copy.
    held_at: Micros,
    /// Nothing is asked before.
    not_before: Micros,
}

#[derive(Debug)]
enum Stage {
    /// Parts are asked for.
    Receiving,
    /// All is written, and not all of it flushed.
    Written,
    /// This flush has the rest.
    Flushing(FlushId),
    /// It is read back.
    Verifying { view: View, from: Bytes, total: Total, reading: bool },
    /// The replica is held, and the next flush switches.
    Ready,
    /// This flush switches.
    Switching(FlushId),
}

/// A need that lasts so long is one: catching up may be on its way.
const NEEDED_FOR: Micros = Micros::from_millis(300);
/// An unanswered question is asked again after this time.
const ASK_AGAIN: Micros = Micros::from_secs(1);
/// After so many another source is asked.
const ASK_MAX: u32 = 3;
/// A source that refused, and all others too, are left alone for so long.
const REFUSED: Micros = Micros::from_millis(500);
/// Most copies taken at a time.
const TAKEN_MAX: usize = 2;
/// No log ever comes to this slot.
const SLOT_END: u64 = 1 << 62;
/// Bytes that are read back at once.
const VERIFY_BYTES: usize = 1 << 20;

impl Install {
    fn new(now: Micros, least: Slot) -> Install {
        Install {
            since: now,
            least,
            stage: Stage::Receiving,
            source: None,
            tried: 0,
            copy: 0,
            slot: None,
            generation: None,
            after: Bytes::new(),
            total: Total::default(),
            expected: None,
            standing: None,
            held: BTreeMap::new(),
            held_upto: Bytes::new(),
            asked_at: None,
            asked_again: 0,
            held_at: now,
            not_before: now,
        }
    }

    /// Leaves the source. What came stays; the next source is asked whether it is the same there.
    fn leave(&mut self, not_before: Micros) {
        self.held_upto = self.held_upto.clone().max(self.after.clone());
        self.source = None;
        self.slot = None;
        self.after = Bytes::new();
        self.total = Total::default();
        self.expected = None;
        self.stage = Stage::Receiving;
        self.asked_at = None;
        self.asked_again = 0;
        self.not_before = not_before;
    }

    fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Ready | Stage::Switching(_))
    }
}

impl Installs {
    /// The slot of the copy that is taken of a group's state.
    pub(crate) fn slot(&self, group: GroupId) -> Option<Slot> {
        self.groups.get(&group).and_then(|install| install.slot)
    }

    /// From which replica the copy comes.
    pub(crate) fn source(&self, group: GroupId) -> Option<ReplicaId> {
        self.groups.get(&group).and_then(|install| install.source)
    }

    /// The generation under which a copy of a group's state is written.
    pub(crate) fn generation(&self, group: GroupId) -> Option<Generation> {
        self.groups.get(&group).and_then(|install| install.generation)
    }

    /// Whether something waits for a flush to begin.
    pub(crate) fn wants_flush(&self) -> bool {
        let wants = |install: &Install| matches!(install.stage, Stage::Written | Stage::Ready);
        self.groups.values().any(wants)
    }

    /// The copy that the flush that is about to begin switches a group to.
    pub(crate) fn switch(&self, group: GroupId) -> Option<(Slot, Generations)> {
        let install = self.groups.get(&group)?;
        let (Stage::Ready, Some(slot), Some(current)) =
            (&install.stage, install.slot, install.generation)
        else {
            return None;
        };
        // The position of the log is filled in by the node.
        Some((slot, Generations { current, started: current, slot, ..Generations::default() }))
    }

    /// Who the members are after the slot of that copy.
    pub(crate) fn standing(&self, group: GroupId) -> Option<&Standing> {
        self.groups.get(&group)?.standing.as_ref()
    }

    /// A flush has begun.
    pub(crate) fn flushing(&mut self, id: FlushId) {
        for install in self.groups.values_mut() {
            match install.stage {
                Stage::Written => install.stage = Stage::Flushing(id),
                Stage::Ready => install.stage = Stage::Switching(id),
                Stage::Receiving
                | Stage::Flushing(_)
                | Stage::Verifying { .. }
                | Stage::Switching(_) => {}
            }
        }
    }

    /// How far a group's copy is, for checks.
    pub(crate) fn stage(&self, group: GroupId) -> Option<&'static str> {
        Some(match self.groups.get(&group)?.stage {
            Stage::Receiving if self.groups[&group].after.is_empty() => "wanted",
            Stage::Receiving => "received",
            Stage::Written => "written",
            Stage::Flushing(_) => "flushed",
            Stage::Verifying { .. } => "verified",
            Stage::Ready => "held",
            Stage::Switching(_) => "switched",
        })
    }

    /// What a person should know of a group's copy.
    pub(crate) fn describe(&self, group: GroupId) -> Option<String> {
        let install = self.groups.get(&group)?;
        let bytes = install.total.bytes >> 10;
        Some(match (install.source, &install.stage) {
            (None, _) => "a copy of its state is wanted, and nobody has one to give".to_owned(),
            (Some(source), Stage::Receiving) => {
                format!("its state is copied from replica {}: {bytes} KiB so far", source.0)
            }
            (Some(source), _) => {
                format!("its state was copied from replica {}: {bytes} KiB are checked", source.0)
            }
        })
    }
}

impl Node {
    pub(crate) fn tick_installs(&mut self) {
        let now = self.now.mono;
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for group in groups {
            let Some(hosted) = self.groups.get_mut(&group) else { continue };
            if hosted.skip() {
                self.installs.stats.skipped += 1;
                self.dirty.insert(group);
                continue;
            }
            let need = hosted.paxos().needs_copy();
            let fenced = hosted.fenced().is_some();
            match (self.installs.groups.get_mut(&group), need) {
                (None, None) => continue,
                (None, Some(least)) => {
                    self.installs.groups.insert(group, Install::new(now, least));
                }
                (Some(install), None) if install.is_held() => continue,
                (Some(install), None) if hosted.paxos().needs_no_copy(install.least) => {
                    self.drop_install(group);
                    continue;
                }
                // A source that does not answer is left after a while, for others to be served.
                (Some(_), None) => {}
                (Some(install), Some(least)) => {
                    install.least = install.least.max(least);
                    if install.slot.is_some_and(|slot| slot < least) {
                        install.leave(now);
                        self.pin(group);
                    }
                }
            }
            let needed =
                self.installs.groups.get(&group).is_some_and(|i| now.since(i.since) >= NEEDED_FOR);
            if needed || fenced {
                self.drive_install(group);
            }
        }
    }

    fn drop_install(&mut self, group: GroupId) {
        self.send_wish(group, false, true);
        if let Some(install) = self.installs.groups.remove(&group) {
            self.pin(group);
            if let Some(generation) = install.generation {
                self.litter(group, generation, Generation(generation.0 + 1));
            }
        }
    }

    /// The replica here is about to go, and with it whatever its store has.
    pub(crate) fn forget_install(&mut self, group: GroupId) {
        self.send_wish(group, false, true);
        self.installs.groups.remove(&group);
    }

    fn drive_install(&mut self, group: GroupId) {
        let now = self.now.mono;
        let taken = self.installs.groups.values().filter(|i| i.source.is_some()).count();
        let Some(install) = self.installs.groups.get_mut(&group) else { return };
        match &mut install.stage {
            Stage::Receiving => {}
            Stage::Verifying { view, from, reading, .. } => {
                if !std::mem::replace(reading, true)
                    && let Some(generation) = install.generation
                {
                    let ticket = self.viewing.verify(group, install.copy);
                    let (view, from) = (view.clone(), from.clone());
                    let (_, to) = range(group, generation);
                    let bytes = VERIFY_BYTES;
                    self.output.checks.push(Check::View { ticket, view, from, to, bytes });
                }
                return self.hold_source(group);
            }
            Stage::Written | Stage::Flushing(_) => return self.hold_source(group),
            Stage::Ready | Stage::Switching(_) => return,
        }
        if install.source.is_none() {
            let sources = self.groups.get(&group).map(|h| h.paxos().copy_sources(install.least));
            let sources = sources.unwrap_or_default();
            if sources.is_empty() || now < install.not_before || taken >= TAKEN_MAX {
                return;
            }
            let source = sources[(install.tried % sources.len() as u64) as usize];
            install.tried += 1;
            self.installs.copies += 1;
            install.copy = self.installs.copies;
            install.source = Some(source);
            let (tried, least) = (install.tried, install.least);
            let text = format!(
                "group {}: what the replica here needs next, others have only as part of their \
                 state (slot {}): it is copied from replica {}",
                group.0, least.0, source.0
            );
            if tried == 1 {
                self.event(Level::Info, text);
            }
        }
        self.ask_part(group);
    }

    fn ask_part(&mut self, group: GroupId) {
        let now = self.now.mono;
        let room = self.overlay.bytes() + self.overlay.frozen_bytes()
            <= self.options.overlay_bytes_max + self.options.snapshot_part_bytes;
        let Some(install) = self.installs.groups.get_mut(&group) else { return };
        if let Some(at) = install.asked_at {
            if now.since(at) < ASK_AGAIN {
                return;
            }
            install.asked_again += 1;
            if install.asked_again >= ASK_MAX {
                install.leave(now);
                return self.pin(group);
            }
        }
        if !room {
            return self.hold_source(group);
        }
        install.asked_at = Some(now);
        install.held_at = now;
        self.send_wish(group, false, false);
    }

    /// Lets the source keep its log, and its copy.
    fn hold_source(&mut self, group: GroupId) {
        let now = self.now.mono;
        let Some(install) = self.installs.groups.get_mut(&group) else { return };
        if now.since(install.held_at) >= ASK_AGAIN {
            install.held_at = now;
            self.send_wish(group, true, false);
        }
    }

    fn send_wish(&mut self, group: GroupId, hold: bool, done: bool) {
        let Some(install) = self.installs.groups.get(&group) else { return };
        let (Some(hosted), Some(to)) = (self.groups.get(&group), install.source) else { return };
        let Some(node) = hosted.node_of(to) else { return };
        let message = NodeMessage::SnapshotRequest {
            group,
            from: hosted.paxos().replica(),
            to,
            copy: self.copy_name(install.copy),
            least: install.least,
            after: install.after.clone(),
            have: install.held.get(&install.after).cloned(),
            hold,
            done,
        };
        self.send(node, Lane::Protocol, &message);
    }

    /// A number that no other start of this node gave to a copy.
    fn copy_name(&self, copy: u64) -> u64 {
        self.options.starts << 32 | copy
    }

    pub(crate) fn on_snapshot_refused(
        &mut self,
        sender: NodeId,
        group: GroupId,
        from: ReplicaId,
        copy: u64,
    ) {
        let now = self.now.mono;
        if !self.is_from_source(sender, group, from, copy) {
            return;
        }
        if let Some(install) = self.installs.groups.get_mut(&group)
            && matches!(install.stage, Stage::Receiving)
        {
            install.leave(now + REFUSED);
            self.pin(group);
        }
    }

    fn is_from_source(&self, node: NodeId, group: GroupId, from: ReplicaId, copy: u64) -> bool {
        let known = self.groups.get(&group).is_some_and(|h| h.node_of(from) == Some(node));
        let install = self.installs.groups.get(&group);
        known && install.is_some_and(|i| i.source == Some(from) && self.copy_name(i.copy) == copy)
    }

    /// The copy is of no use: all of it is asked for again.
    fn begin_anew(&mut self, group: GroupId, why: &str) {
        let now = self.now.mono;
        let Some(install) = self.installs.groups.get_mut(&group) else { return };
        let text = format!(
            "group {}: the copy of another replica's state is of no use ({why}): it is taken anew",
            group.0
        );
        let (least, tried) = (install.least, install.tried);
        self.complain(Level::Error, text);
        self.installs.stats.useless += 1;
        self.drop_install(group);
        let mut install = Install::new(now, least);
        (install.tried, install.not_before) = (tried, now + REFUSED);
        self.installs.groups.insert(group, install);
    }

    /// A flush is durable.
    pub(crate) fn installs_flushed(&mut self, id: FlushId) {
        let groups: Vec<GroupId> = self.installs.groups.keys().copied().collect();
        for group in groups {
            let Some(install) = self.installs.groups.get_mut(&group) else { continue };
            match install.stage {
                Stage::Flushing(of) if of == id => {
                    let Some(generation) = install.generation else { continue };
                    let view = self.overlay.view();
                    let (from, _) = range(group, generation);
                    let total = Total::default();
                    install.stage = Stage::Verifying { view, from, total, reading: false };
                    self.drive_install(group);
                }
                Stage::Switching(of) if of == id => self.finish_install(group),
                Stage::Receiving
                | Stage::Written
                | Stage::Flushing(_)
                | Stage::Verifying { .. }
                | Stage::Ready
                | Stage::Switching(_) => {}
            }
        }
    }

    /// Records of a copy were read back.
    pub(crate) fn on_install_read(
        &mut self,
        group: GroupId,
        copy: u64,
        found: Result<Vec<(Bytes, Bytes)>, String>,
    ) {
        let Some(install) = self.installs.groups.get_mut(&group).filter(|i| i.copy == copy) else {
            return;
        };
        let Stage::Verifying { from, total, reading, .. } = &mut install.stage else { return };
        let found = match found {
            Ok(found) => found,
            Err(why) => return self.begin_anew(group, &why),
        };
        let Some((last, _)) = found.last() else {
            if Some(*total) != install.expected {
                return self.begin_anew(group, "what was written is not what came");
            }
            return self.ready_install(group);
        };
        let mut behind = last.to_vec();
        behind.push(0);
        *from = Bytes::from(behind);
        total.add(Total::of(found.iter().map(|(key, value)| (&key[PREFIX_BYTES..], &value[..]))));
        *reading = false;
        self.drive_install(group);
    }

    /// The copy is good: nothing more is executed before it is the state.
    fn ready_install(&mut self, group: GroupId) {
        let Some(install) = self.installs.groups.get_mut(&group) else { return };
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        let needless = hosted.paxos().needs_no_copy(install.least);
        let least = hosted.paxos().needs_copy().unwrap_or(install.least);
        let Some(slot) = install.slot.filter(|slot| *slot >= least && !needless) else {
            return self.drop_install(group);
        };
        assert!(slot >= hosted.paxos().emitted_upto(), "{group}: a copy at {slot} is too old");
        hosted.hold();
        install.stage = Stage::Ready;
        self.dirty.insert(group);
    }

    /// The copy is the state.
    fn finish_install(&mut self, group: GroupId) {
        self.send_wish(group, false, true);
        let Some(install) = self.installs.groups.remove(&group) else { return };
        let (Some(slot), Some(current)) = (install.slot, install.generation) else { return };
        let before = self.generations.get(&group).copied().unwrap_or_default();
        let known = Generations { current, started: current, slot, lsn: before.lsn };
        self.generations.insert(group, known);
        let opened = self.exchange(group, slot, current, install.standing.clone());
        self.litter(group, Generation(0), current);
        self.pin(group);
        self.dirty.insert(group);
        let from = install.source.map_or(0, |source| source.0);
        let (records, bytes) = (install.total.records, install.total.bytes);
        match opened {
            Ok(()) => {
                self.installs.stats.installed += 1;
                let text = format!(
                    "group {}: the state here is now that of replica {from} after {slot}: \
                     {records} records, {bytes} bytes",
                    group.0
                );
                self.event(Level::Info, text);
            }
            Err(error) => self.on_store_error(group, &error),
        }
        self.wake_applied(group);
        if crate::hosted::is_master(group) {
            self.take_master_routes();
        }
    }
}
