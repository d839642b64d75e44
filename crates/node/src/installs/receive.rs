//! Parts of another replica's state, as they come in.

use base::{Generation, GroupId, NodeId, ReplicaId, Slot};
use bytes::Bytes;
use replica_group::state_machine::{EngineError, PREFIX_BYTES, ScanLimit};
use replica_group::turn::Level;

use super::{REFUSED, SLOT_END, Stage};
use crate::frame::Have;
use crate::generations::{self, full_key, range};
use crate::node::Node;
use crate::parts::{Total, decode};

/// A part of another replica's state, as it came.
#[derive(Debug)]
pub(crate) struct SnapshotPart {
    pub(crate) group: GroupId,
    pub(crate) from: ReplicaId,
    pub(crate) copy: u64,
    pub(crate) slot: Slot,
    pub(crate) after: Bytes,
    pub(crate) upto: Bytes,
    pub(crate) same: bool,
    pub(crate) records: Bytes,
    pub(crate) total: Total,
    pub(crate) end: Option<Total>,
    pub(crate) standing: Option<paxos::Standing>,
}

impl Node {
    pub(crate) fn on_snapshot_part(&mut self, sender: NodeId, part: SnapshotPart) {
        let group = part.group;
        if !self.is_from_source(sender, group, part.from, part.copy) {
            return;
        }
        let Some(install) = self.installs.groups.get_mut(&group) else { return };
        let expected = matches!(install.stage, Stage::Receiving) && part.after == install.after;
        let stands = install.slot.is_none_or(|slot| slot == part.slot);
        let sane = part.slot >= install.least && part.slot.0 < SLOT_END;
        if !expected || !stands || !sane {
            return;
        }
        install.asked_at = None;
        install.asked_again = 0;
        if install.slot.is_none() {
            install.slot = Some(part.slot);
            self.pin(group);
        }
        if self.take_part(group, part).is_none() {
            let now = self.now.mono;
            let text = format!(
                "group {}: a part of another replica's state is damaged, or makes no sense: it is \
                 asked for again",
                group.0
            );
            self.complain(Level::Warn, text);
            if let Some(install) = self.installs.groups.get_mut(&group) {
                install.leave(now + REFUSED);
            }
            return;
        }
        self.drive_install(group);
    }

    /// Takes a part; none where it makes no sense.
    fn take_part(&mut self, group: GroupId, part: SnapshotPart) -> Option<()> {
        let install = self.installs.groups.get(&group)?;
        let same = match (part.same, install.held.get(&install.after)) {
            (true, Some(have)) => have.upto == part.upto && have.total == part.total,
            (true, None) => return None,
            (false, _) => false,
        };
        if part.same != same {
            return None;
        }
        if !same {
            let records = decode(part.records.clone())?;
            let total = Total::of(records.iter().map(|(key, value)| (&key[..], &value[..])));
            let first = records.first().is_none_or(|(key, _)| *key > part.after);
            let last = records.last().is_none_or(|(key, _)| *key <= part.upto);
            let grows = part.end.is_some() || part.upto > part.after;
            if total != part.total || !first || !last || !grows {
                return None;
            }
            let after = part.after.clone();
            let upto = part.end.is_none().then(|| part.upto.clone());
            if let Err(error) = self.write_part(group, after, upto, records) {
                // What is written of the copy is damaged here, however often a part comes.
                self.begin_anew(group, &error.0);
                return Some(());
            }
        }
        self.installs.stats.parts += 1;
        self.installs.stats.same += u64::from(same);
        let install = self.installs.groups.get_mut(&group)?;
        install.total.add(part.total);
        if let Some(end) = part.end {
            let total = install.total;
            install.expected = Some(end);
            install.standing = part.standing;
            install.stage = Stage::Written;
            if end != total {
                self.begin_anew(group, "what came is not what was sent");
            }
            return Some(());
        }
        if !same {
            install.held.retain(|from, have| *from >= part.upto || have.upto <= part.after);
            let have = Have { upto: part.upto.clone(), total: part.total };
            install.held.insert(part.after, have);
        }
        install.after = part.upto;
        Some(())
    }

    /// Writes the records behind a key up to another, in the place of what a former source had there.
    fn write_part(
        &mut self,
        group: GroupId,
        after: Bytes,
        upto: Option<Bytes>,
        records: Vec<(Bytes, Bytes)>,
    ) -> Result<(), EngineError> {
        let generation = self.begin_generation(group);
        let Some(install) = self.installs.groups.get(&group) else { return Ok(()) };
        let put = |key: &[u8]| full_key(group, generation, key);
        if after < install.held_upto {
            let behind = |key: &[u8]| {
                let mut behind = put(key).to_vec();
                behind.push(0);
                behind
            };
            let (start, end) = range(group, generation);
            let from = if after.is_empty() { start.to_vec() } else { behind(&after) };
            let to = upto.map_or(end.to_vec(), |upto| behind(&upto));
            let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
            for (key, _) in self.overlay.scan(&from, &to, all)? {
                let kept = records.binary_search_by(|(k, _)| k[..].cmp(&key[PREFIX_BYTES..]));
                if kept.is_err() {
                    self.overlay.delete(key);
                }
            }
        }
        for (key, value) in records {
            self.overlay.put(put(&key), value);
        }
        self.flush.written(self.now.mono);
        Ok(())
    }

    /// The generation that the copy is written under. That it is begun is durable no later than the
    /// first record in it.
    fn begin_generation(&mut self, group: GroupId) -> Generation {
        let next = generations::next(&self.generations);
        let known = self.generations.entry(group).or_default();
        let Some(install) = self.installs.groups.get_mut(&group) else { return known.started };
        if let Some(generation) = install.generation {
            return generation;
        }
        known.started = next;
        install.generation = Some(known.started);
        let (key, record) = known.record(group);
        self.overlay.put(key, record);
        known.started
    }
}
