//! What was found damaged on this node's disk, and what follows from it (`docs/paxos.md` 11.3).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{DiskId, Generation, GroupId, Lsn, Micros, NodeId, ReplicaId, Slot};
use kvserver::KvServer;
use paxos::Record;
use replica_group::turn::{Level, Place};
use replica_group::{GroupStore, Replica};
use router::Routes;
use shardmaster::ShardMaster;
use storage::{EngineError, MemoryEngine, Overlay};

use crate::frame::{Hello, Sender};
use crate::hosted::{Hosted, is_master};
use crate::identity::Seen;
use crate::node::Node;
use crate::open::OpenError;
use crate::scrub::Scrub;

/// What was found damaged since the start.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    /// Places in the log.
    pub(crate) places: u64,
    /// Bytes that were read to look for damage.
    pub(crate) scrubbed_bytes: u64,
    pub(crate) scrub: Scrub,
    /// Records that the disk fails to read, and since when.
    unreadable: BTreeMap<Lsn, Micros>,
    /// What cannot be written because the disk is full.
    no_room: BTreeSet<Place>,
    /// Groups whose state was said to be lost.
    fenced: BTreeSet<GroupId>,
    /// Groups whose damaged slots are not all mended yet, with the records that are said to be
    /// mended when they are.
    pub(crate) mending: BTreeMap<GroupId, Vec<(Lsn, Lsn)>>,
}

/// Most disks of other nodes that are kept in mind.
const SEEN_MAX: usize = 4_096;
/// Most places in the log that the node's record names as mended.
const MENDED_MAX: usize = 64;

/// What the disk fails to read for so long counts as damaged.
const UNREADABLE_FOR: Micros = Micros::from_secs(5);
/// Most records of which that is kept in mind.
const UNREADABLE_MAX: usize = 4_096;

impl Damage {
    /// The disk failed to read a record: whether it has done so for long.
    pub(crate) fn is_unreadable_for_long(&mut self, lsn: Lsn, now: Micros) -> bool {
        if self.unreadable.len() >= UNREADABLE_MAX {
            self.unreadable.pop_first();
        }
        let since = *self.unreadable.entry(lsn).or_insert(now);
        now.since(since) >= UNREADABLE_FOR
    }

    /// A record was read, or is known to be damaged.
    pub(crate) fn was_read(&mut self, lsn: Lsn) {
        self.unreadable.remove(&lsn);
    }
}

impl Node {
    /// Says what the start found damaged in the log.
    pub(crate) fn say_damage(&mut self) {
        for line in self.wal.report().damage.clone() {
            self.damage.places += 1;
            self.event(Level::Error, format!("the write-ahead log is damaged: {line}"));
        }
        if self.wal.report().lost {
            let text = "records of the write-ahead log are lost of which not even the group is \
                        known: replicas that may have been among them are not made here again";
            self.event(Level::Error, text.to_owned());
        }
    }

    pub(crate) fn say_quarantined(&mut self, group: GroupId) {
        let text = format!(
            "group {}: the replica here may have forgotten a promise or a vote, as its records are \
             damaged: it is quarantined, which means that it never votes again, and only learns, \
             until another takes its place",
            group.0
        );
        self.event(Level::Error, text);
    }

    /// A group of which records are left, and none says who votes: what is left is of no use, and the
    /// replica must not be made again, as it may have voted.
    pub(crate) fn forget_group(&mut self, group: GroupId) {
        self.record.forget();
        self.save_record();
        let record = Record::GroupDestroy;
        self.wal.append(group, record.identity().as_bytes(), false, &mut |out| {
            record.encode_payload(out);
        });
        self.wal.forget(group);
        let text = format!(
            "group {}: damage took the record that says who votes: the replica here is lost; \
             another takes its place",
            group.0
        );
        self.event(Level::Error, text);
    }

    /// Whether a replica that this node is asked to make is no more, or may be one that was here and
    /// voted, of which damage took all records: it is never made again, and the shard master is told
    /// to let another take its place. Replicas get new numbers for ever, so that one that was not
    /// there yet when the shard master was asked after the loss is none of them. Until the shard
    /// master has answered, all may be.
    pub(crate) fn is_forgotten(&mut self, group: GroupId, replica: ReplicaId) -> bool {
        if self.is_retired(group, replica) {
            return true;
        }
        let record = &mut self.record;
        let Some(fresh_from) = record.fresh_from else { return record.forgot };
        let lost = replica < fresh_from;
        if lost {
            record.retired.insert(group, replica);
            self.save_record();
            let text = format!(
                "group {}: replica {} may have been here, and voted, before records were lost: it \
                 is not made again; another takes its place",
                group.0, replica.0
            );
            self.event(Level::Error, text);
        }
        lost
    }

    /// The shard master's routes as they were after the loss of records.
    pub(crate) fn take_fresh(&mut self, routes: &Routes) {
        if self.record.forgot && self.record.fresh_from.is_none() && routes.version > 0 {
            self.record.fresh_from = Some(routes.replica_next);
            self.save_record();
        }
    }

    /// Whether this replica was here and is no more.
    pub(crate) fn is_retired(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.record.retired.get(&group).is_some_and(|last| replica <= *last)
    }

    /// The slot through which the store has executed the log, and why its state cannot be gone on
    /// from, where that is so.
    pub(crate) fn executed(
        &self,
        group: GroupId,
        recovery: &paxos::Recovery,
    ) -> (Slot, Option<String>) {
        let truncated = recovery.truncated_upto();
        let applied = crate::store::applied(&self.overlay, group);
        let why = match &applied {
            _ if recovery.is_store_lost() => "an earlier start found it damaged".to_owned(),
            Err(error) => error.to_string(),
            Ok(applied) if *applied < truncated => {
                format!("it ends at {applied}, and the log begins behind {truncated}")
            }
            Ok(applied) => return (*applied, None),
        };
        (applied.unwrap_or_default().max(truncated), Some(why))
    }

    /// A replica without its state: the machine is an empty one, which is never asked anything.
    pub(crate) fn host_fenced(
        &mut self,
        group: GroupId,
        paxos: paxos::Paxos,
        applied: Slot,
        generation: Generation,
        why: String,
    ) -> Result<Hosted, OpenError> {
        let mut nothing = Overlay::new(Arc::new(MemoryEngine::new()));
        let store = GroupStore::new(&mut nothing, group);
        let failed = |error: EngineError| OpenError(format!("an empty store failed: {error}"));
        let mut hosted = if is_master(group) {
            let machine = ShardMaster::open(&store).map_err(failed)?;
            Hosted::Master(Box::new(Replica::new(group, paxos, machine, applied, generation)))
        } else {
            let machine = KvServer::open(group, &store).map_err(failed)?;
            Hosted::Data(Box::new(Replica::new(group, paxos, machine, applied, generation)))
        };
        hosted.fence(why);
        Ok(hosted)
    }

    /// The store could not be read for a group: its replica executes and answers nothing more.
    pub(crate) fn on_store_error(&mut self, group: GroupId, error: &EngineError) {
        if let Some(hosted) = self.groups.get_mut(&group) {
            hosted.fence(error.0.clone());
            self.dirty.insert(group);
        }
    }

    /// Exchanges a replica's state for the one of this generation, which stands at `slot`.
    pub(crate) fn exchange(
        &mut self,
        group: GroupId,
        slot: Slot,
        generation: Generation,
        standing: Option<paxos::Standing>,
    ) -> Result<(), EngineError> {
        self.damage.fenced.remove(&group);
        match self.groups.get_mut(&group) {
            Some(hosted) => hosted.exchange(&mut self.overlay, slot, generation, standing),
            None => Ok(()),
        }
    }

    /// Says once that a replica was fenced.
    pub(crate) fn note_fence(&mut self, group: GroupId) {
        let Some(hosted) = self.groups.get(&group) else { return };
        let Some(why) = hosted.fenced().map(str::to_owned) else { return };
        if self.damage.fenced.insert(group) {
            let text = format!(
                "group {}: the store of the replica here is lost ({why}): it votes on, but does not \
                 lead and answers nobody, until the state of another replica is copied",
                group.0
            );
            self.event(Level::Error, text);
        }
    }

    /// Records of the log turned out to be damaged.
    pub(crate) fn on_damaged_records(&mut self, first: Lsn, last: Lsn, place: &str) {
        self.damage.places += 1;
        let text = format!(
            "records {} to {} of the write-ahead log are damaged ({place}): what they hold is \
             written anew, or asked from other replicas",
            first.0, last.0
        );
        self.event(Level::Error, text);
        let now = self.now;
        for (group, hosted) in &mut self.groups {
            hosted.damaged(now, first, last);
            self.dirty.insert(*group);
            self.damage.mending.entry(*group).or_default().push((first, last));
        }
        // All that they said of the node itself is in memory.
        self.record.mended.push((first, last));
        if self.record.mended.len() > MENDED_MAX {
            self.record.mended.remove(0);
        }
        self.save_record();
    }

    /// Whether a node shows less of its disk than it did before: then the disk is an old copy, and
    /// has forgotten promises.
    pub(crate) fn is_old_copy(&mut self, sender: &Sender, hello: &Hello) -> bool {
        let Some(seen) = self.record.seen.get(&hello.disk).copied() else { return false };
        let old = match (hello.copies.cmp(&seen.copies), sender.starts.cmp(&seen.starts)) {
            (Ordering::Less, _) => true,
            // It knows, and what it had then votes no more; but it must count on from here.
            (Ordering::Greater, after) => after != Ordering::Greater,
            (Ordering::Equal, Ordering::Less) => true,
            (Ordering::Equal, Ordering::Equal) => sender.boot != seen.boot,
            (Ordering::Equal, Ordering::Greater) => hello.opened < seen.synced,
        };
        // A frame of an earlier start that comes late is no reason for alarm.
        if old && sender.starts > seen.starts {
            let text = format!(
                "node {} was started on an old copy of its disk: its log ends at record {}, and \
                 was durable through {} before",
                sender.node.0, hello.opened.0, seen.synced.0
            );
            self.complain(Level::Error, text);
        }
        old
    }

    /// Keeps in mind what a node's disk has shown; durably with each of its starts.
    pub(crate) fn remember(&mut self, sender: &Sender, hello: Option<&Hello>, synced: Lsn) {
        let Some(disk) = self.peers.get(&sender.node).and_then(|peer| peer.disk) else { return };
        if self.record.seen.len() >= SEEN_MAX && !self.record.seen.contains_key(&disk) {
            return;
        }
        let seen = self.record.seen.entry(disk).or_default();
        let copies = hello.map_or(seen.copies, |hello| hello.copies);
        if copies > seen.copies {
            *seen = Seen { copies, ..Seen::default() };
        }
        seen.synced = seen.synced.max(synced);
        if (sender.starts, sender.boot) != (seen.starts, seen.boot) {
            (seen.starts, seen.boot) = (sender.starts, sender.boot);
            self.save_record();
        }
    }

    /// The count of starts on this node's disk.
    pub fn starts(&self) -> u64 {
        self.options.starts
    }

    /// The highest count of starts that a disk of another node has shown, 0 where it showed none.
    pub fn starts_seen(&self, disk: DiskId) -> u64 {
        self.seen_of(disk).0
    }

    /// That, and how often the disk was found to be an old copy.
    pub(crate) fn seen_of(&self, disk: DiskId) -> (u64, u64) {
        self.record.seen.get(&disk).map_or((0, 0), |seen| (seen.starts, seen.copies))
    }

    /// Another node has seen more of this node's disk than it shows now.
    pub(crate) fn on_old_copy(&mut self, node: NodeId, (starts, copies): (u64, u64)) {
        // Otherwise it is known already, and only the count of starts was too low.
        if copies >= self.record.copies {
            self.quarantine_all();
            // Whoever has the record below has those of the quarantine too.
            self.collect_now();
            self.record.copies = copies.saturating_add(1);
            // Replicas that were made since are not in the copy.
            self.record.forget();
        }
        self.count_on(starts);
        let text = format!(
            "node {} has seen more of this node's disk than there is now: it is an old copy, or \
             a part of its log is missing",
            node.0
        );
        self.complain(Level::Error, text);
    }

    /// The starts of this disk are counted on from those of an earlier one, so that what is said from now
    /// on is newer than all that was said from that one.
    pub(crate) fn count_on(&mut self, starts: u64) {
        let more = starts.saturating_add(1).saturating_sub(self.options.starts);
        self.record.starts_more = self.record.starts_more.saturating_add(more);
        self.options.starts = self.options.starts.saturating_add(more);
        self.save_record();
        self.peers.values_mut().for_each(|peer| peer.greeted = false);
    }

    fn quarantine_all(&mut self) {
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for group in groups {
            let Some(hosted) = self.groups.get_mut(&group) else { continue };
            if !hosted.paxos().is_quarantined() {
                hosted.quarantine();
                self.dirty.insert(group);
                self.say_quarantined(group);
            }
        }
    }

    /// The disk is full, or has room again. Until it has, writes are refused.
    pub(crate) fn on_no_room(&mut self, place: Place, why: Option<String>) {
        let what = match place {
            Place::Log => "the write-ahead log",
            Place::Store => "the store",
        };
        match why {
            // It is not for the disk that the store waits.
            Some(why) if EngineError(why.clone()).is_damage() => {
                if self.damage.no_room.insert(place) {
                    let text = format!(
                        "{what} cannot be written before it is renewed ({why}): writes are \
                         refused, reads go on"
                    );
                    self.event(Level::Error, text);
                }
            }
            Some(why) => {
                if self.damage.no_room.insert(place) {
                    let text = format!(
                        "the disk is full: {what} cannot be written ({why}): writes are refused, \
                         reads go on; free some space, it is tried again by itself"
                    );
                    self.event(Level::Error, text);
                }
            }
            None => {
                if self.damage.no_room.remove(&place) {
                    self.event(Level::Info, format!("{what} is written again"));
                }
            }
        }
        self.wal.set_no_room(!self.damage.no_room.is_empty());
    }

    /// Says when all damaged slots of a group are mended.
    pub(crate) fn tick_damage(&mut self) {
        let groups = &self.groups;
        let is_mended = |group: &GroupId| {
            groups.get(group).is_none_or(|hosted| hosted.paxos().faulty_slots() == 0)
        };
        let mended: Vec<GroupId> = self.damage.mending.keys().copied().filter(is_mended).collect();
        for group in mended {
            let records = self.damage.mending.remove(&group).unwrap_or_default();
            if let Some(hosted) = self.groups.get_mut(&group) {
                records.iter().for_each(|(first, last)| hosted.mended(*first, *last));
                self.dirty.insert(group);
            }
            let repaired = self.groups.get(&group).map_or(0, |h| h.paxos().repaired_slots());
            if repaired > 0 {
                let text = format!("group {}: {repaired} damaged slots are repaired", group.0);
                self.event(Level::Warn, text);
            }
        }
    }

    /// What is wrong with a replica, for a person.
    pub(crate) fn trouble(&self, hosted: &Hosted) -> Option<String> {
        let paxos = hosted.paxos();
        let copied = self.installs.describe(paxos.group());
        let renewed = self.renewing.describe();
        let all: Vec<String> =
            [Node::trouble_of(hosted), copied, renewed].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn trouble_of(hosted: &Hosted) -> Option<String> {
        let paxos = hosted.paxos();
        let faulty = paxos.faulty_slots();
        match hosted.fenced() {
            _ if paxos.is_quarantined() => {
                Some("quarantined: it may have forgotten a vote, and never votes again".to_owned())
            }
            Some(why) => Some(format!("its store is lost: {why}")),
            None if paxos.is_beyond_repair() => {
                let next = hosted.applied().next();
                Some(format!("{next} is damaged here and forgotten by the others"))
            }
            None => (faulty > 0).then(|| format!("{faulty} damaged slots wait for repair")),
        }
    }
}
