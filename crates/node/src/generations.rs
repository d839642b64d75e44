//! Where in the store a group's state lies, and the states that are of no use any more
//! (`docs/paxos.md` 11.11).

use std::collections::BTreeMap;

use base::{Generation, GroupId, Lsn, Slot, codec};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use replica_group::state_machine::{EngineError, PREFIX_BYTES, ScanLimit, prefix};
use replica_group::turn::Level;
use storage::Overlay;

use crate::node::Node;
use crate::store::node_key;

/// What the store says of a group's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Generations {
    /// The state.
    #[n(0)]
    pub(crate) current: Generation,
    /// The newest of which records may lie in the store.
    #[n(1)]
    pub(crate) started: Generation,
    /// The slot at which the state was copied from another replica, zero where it was not.
    #[n(2)]
    pub(crate) slot: Slot,
    /// The record that the write-ahead log was about to have then.
    #[n(3)]
    pub(crate) lsn: Lsn,
}

impl Default for Generations {
    fn default() -> Generations {
        let first = Generation(0);
        Generations { current: first, started: first, slot: Slot::ZERO, lsn: Lsn::ZERO }
    }
}

impl Generations {
    /// Of a group of which the store cannot tell: a number that was not used before, most likely.
    pub(crate) fn unknown(random: u64) -> Generations {
        let some = Generation(1 << 31 | random as u32 >> 2);
        Generations { current: some, started: some, ..Generations::default() }
    }

    /// What the store says.
    pub(crate) fn read(overlay: &Overlay, group: GroupId) -> Result<Generations, EngineError> {
        Generations::decode(group, overlay.get(&key(group))?.as_ref())
    }

    /// What the record of the store says, if there is one.
    pub(crate) fn decode(
        group: GroupId,
        record: Option<&Bytes>,
    ) -> Result<Generations, EngineError> {
        let Some(bytes) = record else { return Ok(Generations::default()) };
        let damaged = |_| EngineError(format!("the record of {group}'s states is damaged"));
        codec::decode(bytes).map_err(damaged)
    }

    /// The record in the store.
    pub(crate) fn record(&self, group: GroupId) -> (Bytes, Bytes) {
        (key(group), codec::encode(self))
    }
}

fn key(group: GroupId) -> Bytes {
    let mut name = b"generation".to_vec();
    name.extend_from_slice(&group.0.to_be_bytes());
    node_key(&name)
}

/// The keys of a generation: the first, and the one behind the last.
pub(crate) fn range(group: GroupId, generation: Generation) -> (Bytes, Bytes) {
    (start(group, generation), start(group, Generation(generation.0 + 1)))
}

/// The key with its group and generation.
pub(crate) fn full_key(group: GroupId, generation: Generation, key: &[u8]) -> Bytes {
    let mut full = Vec::with_capacity(PREFIX_BYTES + key.len());
    full.extend_from_slice(&prefix(group, generation));
    full.extend_from_slice(key);
    Bytes::from(full)
}

fn start(group: GroupId, generation: Generation) -> Bytes {
    Bytes::copy_from_slice(&prefix(group, generation))
}

/// Ranges of the store that are of no use, by group.
#[derive(Debug, Default)]
pub(crate) struct Litter(BTreeMap<GroupId, Vec<(Bytes, Bytes)>>);

/// What is deleted at once.
const SLICE: ScanLimit = ScanLimit { records: 256, bytes: 256 << 10 };

impl Node {
    /// Generations of a group from the first number up to before the last one are of no use.
    pub(crate) fn litter(&mut self, group: GroupId, first: Generation, end: Generation) {
        if first < end {
            let range = (start(group, first), start(group, end));
            self.litter.0.entry(group).or_default().push(range);
        }
    }

    /// At a start: everything but the group's state is of no use.
    pub(crate) fn litter_at_start(&mut self, group: GroupId, known: &Generations) {
        let behind = |generation: Generation| Generation(generation.0 + 1);
        if known.started > Generation(0) {
            self.litter(group, Generation(0), known.current);
            self.litter(group, behind(known.current), behind(known.started));
        }
    }

    /// Whether something is of no use and not deleted yet.
    pub(crate) fn is_littered(&self) -> bool {
        !self.litter.0.is_empty()
    }

    /// Deletes a slice of what is of no use.
    pub(crate) fn tick_litter(&mut self) {
        let Some((group, (from, to))) =
            self.litter.0.iter().find_map(|(group, ranges)| Some((*group, ranges.last()?.clone())))
        else {
            return;
        };
        if self.overlay.bytes() > self.options.overlay_bytes_max / 2 {
            return;
        }
        let next = match self.overlay.scan(&from, &to, SLICE) {
            Ok(found) => {
                let last = found.last().map(|(key, _)| key.clone());
                found.into_iter().for_each(|(key, _)| self.overlay.delete(key));
                self.flush.written(self.now.mono);
                last
            }
            Err(error) => {
                let text = format!(
                    "group {}: an old state cannot be deleted, its room is lost: {error}",
                    group.0
                );
                self.complain(Level::Warn, text);
                None
            }
        };
        let Some(ranges) = self.litter.0.get_mut(&group) else { return };
        match (next, ranges.last_mut()) {
            (Some(last), Some((from, _))) => {
                let mut behind = last.to_vec();
                behind.push(0);
                *from = Bytes::from(behind);
            }
            (_, _) => drop(ranges.pop()),
        }
        if ranges.is_empty() {
            self.litter.0.remove(&group);
        }
    }
}
