//! When the overlay is flushed to the engine, what goes along, and what is freed by it.

use base::mutant::{self, Mutant};
use base::{DiskId, Generation, GroupId, Micros, Slot, codec, limits};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use paxos::Standing;
use replica_group::Keep;
use storage::{EngineError, FlushId, Overlay};

use crate::generations::full_key;
use crate::hosted::Hosted;
use crate::node::Node;
use crate::open::OpenError;

/// The flush under way, and when the next is due.
#[derive(Debug)]
pub(crate) struct StoreFlush {
    flushing: Option<FlushId>,
    last_write: Micros,
    last_flush: Micros,
    let_go_at: Micros,
}

/// A log that is heavy leads to so frequent flushes.
const HEAVY: Micros = Micros::from_millis(250);
/// How often the log is told what is not needed any more, whether anything is flushed or not.
const LET_GO: Micros = Micros::from_secs(1);

impl StoreFlush {
    pub(crate) fn new(now: Micros) -> StoreFlush {
        StoreFlush { flushing: None, last_write: now, last_flush: now, let_go_at: now }
    }

    /// Something was written to the overlay.
    pub(crate) fn written(&mut self, now: Micros) {
        self.last_write = now;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flushing.is_none()
    }
}

impl Node {
    pub(crate) fn tick_store(&mut self) {
        let now = self.now.mono;
        if now.since(self.flush.let_go_at) >= LET_GO {
            self.let_go();
        }
        // Slots that changed nothing are to be counted as flushed too: their entries would else
        // stay in the log for as long as their group is idle.
        let behind = || self.groups.values().any(Hosted::is_behind);
        let copied = self.installs.wants_flush();
        if !self.flush.is_idle() || self.overlay.bytes() == 0 && !behind() && !copied {
            return;
        }
        let due = self.overlay.bytes() >= self.options.overlay_bytes_max
            || now.since(self.flush.last_write) >= self.options.overlay_idle
            || now.since(self.flush.last_flush) >= self.options.overlay_age_max
            || self.wal.is_full()
            || self.is_log_heavy()
            || copied;
        if due {
            self.begin_flush();
        }
    }

    /// Forgets what the store and every replica have, and tells the log. Other replicas may have
    /// caught up long after the last flush; a full log, which takes no write that would lead to
    /// another one, is freed by this alone. What is not decided and has come to lie far back is
    /// written once more: one group that decides nothing must not fill the log for all others.
    fn let_go(&mut self) {
        self.flush.let_go_at = self.now.mono;
        let wal_bytes = self.options.wal.bytes_max;
        let keep = Keep {
            bytes_max: self.options.log_bytes_max,
            slots_max: limits::LOG_SLOTS_MAX,
            tail_bytes: self.options.log_tail_bytes.min(self.options.log_bytes_max / 2),
            tail_age: self.options.log_tail_age,
            below: self.wal.within(wal_bytes / 2),
            below_pinned: self.wal.within(wal_bytes / 8 * 5),
        };
        // What is written once more must fit into the room that is left for what is under way.
        let mut carried_max = match self.wal.is_out_of_disk() {
            true => 0,
            false => (self.options.wal.segment_bytes / 2) as usize,
        };
        for (group, hosted) in &mut self.groups {
            let lsn = hosted.truncate(self.now, &keep);
            self.wal.keep_from(*group, lsn);
            if carried_max > 0 {
                let carried = hosted.carry_forward(keep.below_pinned, carried_max);
                carried_max = carried_max.saturating_sub(carried);
                if carried > 0 {
                    self.dirty.insert(*group);
                }
            }
            // How far it forgot belongs to the next heartbeat.
            self.rows.set(*group, hosted.paxos().heartbeat_row());
        }
    }

    /// Whether the log has grown so much that what is in it only for want of a flush should go.
    fn is_log_heavy(&self) -> bool {
        let early = self.now.mono.since(self.flush.last_flush) < HEAVY;
        !early && self.wal.stats().bytes_live > self.options.wal.bytes_max / 2
    }

    /// A replica is about to go. What it executed since the last flush goes into the store with the
    /// next one, and its slot goes along: until it is durable that the replica is no more, a start
    /// finds it again, and it must not execute anything twice.
    pub(crate) fn settle_last(&mut self, group: GroupId) {
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        if let Ok(applied) = hosted.settle_last(&mut self.overlay) {
            let standing = hosted.paxos().standing(applied);
            self.overlay.put(applied_key(group), encode_slot(applied));
            if let Some(standing) = standing {
                self.overlay.put(standing_key(group), codec::encode(&standing));
            }
        }
    }

    pub(crate) fn begin_flush(&mut self) {
        // A store that has effects of a replica of which the log knows nothing would, after a
        // restart, have them applied once more.
        if self.wal.synced() < self.created_at {
            return;
        }
        let mut extra = Vec::with_capacity(self.groups.len());
        let mut failed = Vec::new();
        for (group, hosted) in &mut self.groups {
            if let Some((slot, mut generations)) = self.installs.switch(*group) {
                let standing = self.installs.standing(*group).map(codec::encode);
                extra.push((standing_key(*group), standing));
                // A position behind it may be given once more after a crash.
                generations.lsn = self.wal.synced();
                let (key, record) = generations.record(*group);
                extra.push((applied_key(*group), Some(encode_slot(slot))));
                extra.push((key, Some(record)));
                continue;
            }
            if self.renewing.restates()
                && let Some(known) = self.generations.get(group)
            {
                let (key, record) = known.record(*group);
                extra.push((key, Some(record)));
            }
            match hosted.settle(&mut self.overlay) {
                Ok(_) if mutant::is(Mutant::AppliedSlotLeftOut) => {}
                Ok(applied) => {
                    extra.push((applied_key(*group), Some(encode_slot(applied))));
                    if let Some(standing) = hosted.paxos().standing(applied) {
                        extra.push((standing_key(*group), Some(codec::encode(&standing))));
                    }
                }
                Err(error) => failed.push((*group, error)),
            }
        }
        if !failed.is_empty() {
            self.groups.values_mut().for_each(Hosted::unsettle);
            failed.iter().for_each(|(group, error)| self.fail_apply(*group, error));
            return;
        }
        if let Some(flush) = self.overlay.freeze(extra) {
            self.wipes_flushing();
            self.flush.flushing = Some(flush.id);
            self.installs.flushing(flush.id);
            self.renewing.flushing(flush.id);
            self.output.flush = Some(flush);
        }
        self.flush.last_flush = self.now.mono;
    }

    pub(crate) fn on_flushed(&mut self, id: FlushId) {
        if self.flush.flushing != Some(id) {
            return;
        }
        self.flush.flushing = None;
        self.overlay.flushed(id);
        self.groups.values_mut().for_each(Hosted::flushed);
        self.wipes_flushed();
        self.installs_flushed(id);
        self.renewing.flushed(id);
        self.let_go();
    }
}

/// The store's own record, checked whenever it is opened.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
struct StoreMeta {
    #[n(0)]
    magic: u64,
    #[n(1)]
    version: u32,
    #[n(2)]
    disk: DiskId,
}

/// "DECREEST" as a number.
const STORE_MAGIC: u64 = 0x4445_4352_4545_5354;
/// The version of the layout of the store's keys and records.
const STORE_VERSION: u32 = 2;

/// That record.
pub(crate) fn meta_record(disk: DiskId) -> (Bytes, Bytes) {
    let meta = StoreMeta { magic: STORE_MAGIC, version: STORE_VERSION, disk };
    (node_key(b"meta"), codec::encode(&meta))
}

/// Checks that the store belongs to this disk, or makes an empty one belong to it.
pub(crate) fn check_meta(overlay: &mut Overlay, disk: DiskId) -> Result<(), OpenError> {
    let (key, wanted) = meta_record(disk);
    // Where this very record is damaged, the others tell by themselves whether they can be read.
    let Some(bytes) = overlay.get(&key).unwrap_or_default() else {
        overlay.put(key, wanted);
        return Ok(());
    };
    let found: StoreMeta = codec::decode(&bytes)
        .map_err(|error| OpenError(format!("the store's own record cannot be read: {error}")))?;
    if found.magic != STORE_MAGIC {
        return Err(OpenError("the store in this data directory is not Decree's".to_owned()));
    }
    if found.version != STORE_VERSION {
        return Err(OpenError(format!(
            "the store has format {}, this program knows format {STORE_VERSION}",
            found.version
        )));
    }
    if found.disk != disk {
        return Err(OpenError(format!(
            "the store belongs to disk {}, the rest of this data directory to disk {disk}: \
             they were mixed up; put back what belongs together",
            found.disk
        )));
    }
    Ok(())
}

/// The slot of this group through which the store has all effects.
pub(crate) fn applied(overlay: &Overlay, group: GroupId) -> Result<Slot, EngineError> {
    decode_slot(group, overlay.get(&applied_key(group))?.as_deref())
}

/// The slot in the store's record of it, zero where there is none.
pub(crate) fn decode_slot(group: GroupId, record: Option<&[u8]>) -> Result<Slot, EngineError> {
    let Some(bytes) = record else { return Ok(Slot::ZERO) };
    <[u8; 8]>::try_from(bytes)
        .map(|bytes| Slot(u64::from_be_bytes(bytes)))
        .map_err(|_| EngineError(format!("the applied slot of {group} is not 8 bytes long")))
}

/// Keys of the node itself lie behind those of all groups in their first generation, and before all
/// copies of states: these must not lie between the first and the last key of a damaged table.
pub(crate) fn node_key(name: &[u8]) -> Bytes {
    full_key(GroupId::NODE, Generation(0), name)
}

/// The key of what the store says of a group's epochs.
pub(crate) fn standing_key(group: GroupId) -> Bytes {
    let mut name = b"standing".to_vec();
    name.extend_from_slice(&group.0.to_be_bytes());
    node_key(&name)
}

/// What that record says, if there is one.
pub(crate) fn decode_standing(
    group: GroupId,
    record: Option<&Bytes>,
) -> Result<Option<Standing>, EngineError> {
    let damaged = |_| EngineError(format!("the record of {group}'s members is damaged"));
    record.map(codec::decode).transpose().map_err(damaged)
}

pub(crate) fn applied_key(group: GroupId) -> Bytes {
    let mut name = b"applied".to_vec();
    name.extend_from_slice(&group.0.to_be_bytes());
    node_key(&name)
}

fn encode_slot(slot: Slot) -> Bytes {
    Bytes::copy_from_slice(&slot.0.to_be_bytes())
}
