//! Where in the store a group's state lies, and the states that are of no use any more
//! (`docs/paxos.md` 11.11).

use std::collections::BTreeMap;

use base::{Generation, GroupId, Lsn, Slot, codec};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use replica_group::state_machine::{EngineError, PREFIX_BYTES, ScanLimit, owner, prefix};
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
    /// How far the write-ahead log was durable then.
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

/// The generation of a copy that is begun now. It lies behind everything in the store that is known,
/// and so behind what is damaged there.
pub(crate) fn next(all: &BTreeMap<GroupId, Generations>) -> Generation {
    // A group that is not listed has its first.
    let newest = all.values().map(|known| known.started.0).max().unwrap_or_default();
    Generation(newest + 1)
}

/// The keys of a generation: the first, and the one behind the last.
pub(crate) fn range(group: GroupId, generation: Generation) -> (Bytes, Bytes) {
    (start(group, generation), start(GroupId(group.0 + 1), generation))
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

/// The first keys of a group in these generations, all of one generation; none if there are no more.
///
/// The store has the groups of one generation one behind the other, so that the way from one
/// generation of a group to the next leads over other groups: it is gone in steps, each of which
/// looks at one record.
pub(crate) fn keys_of(
    overlay: &Overlay,
    group: GroupId,
    (first, end): (Generation, Generation),
    limit: ScanLimit,
) -> Result<Vec<Bytes>, EngineError> {
    let one = ScanLimit { records: 1, ..limit };
    let (mut at, to) = (first, start(GroupId(0), end));
    while at < end {
        let found = overlay.scan(&start(group, at), &to, one)?;
        let Some((key, _)) = found.first() else { break };
        at = match owner(key) {
            (of, generation) if of == group => {
                let (from, to) = range(group, generation);
                let found = overlay.scan(&from, &to, limit)?;
                return Ok(found.into_iter().map(|(key, _)| key).collect());
            }
            (of, generation) if of < group => generation,
            (_, generation) => Generation(generation.0 + 1),
        };
    }
    Ok(Vec::new())
}

/// Generations that are of no use, by group: from the first up to before the second.
#[derive(Debug, Default)]
pub(crate) struct Litter(BTreeMap<GroupId, Vec<(Generation, Generation)>>);

/// What is deleted at once.
const SLICE: ScanLimit = ScanLimit { records: 256, bytes: 256 << 10 };

impl Node {
    /// Generations of a group from the first number up to before the last one are of no use.
    pub(crate) fn litter(&mut self, group: GroupId, first: Generation, end: Generation) {
        if first < end {
            self.litter.0.entry(group).or_default().push((first, end));
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
        let Some((group, generations)) =
            self.litter.0.iter().find_map(|(group, ranges)| Some((*group, *ranges.last()?)))
        else {
            return;
        };
        if self.overlay.bytes() > self.options.overlay_bytes_max / 2 {
            return;
        }
        match keys_of(&self.overlay, group, generations, SLICE) {
            Ok(keys) if !keys.is_empty() => {
                keys.into_iter().for_each(|key| self.overlay.delete(key));
                return self.flush.written(self.now.mono);
            }
            Ok(_) => {}
            Err(error) => {
                let text = format!(
                    "group {}: an old state cannot be deleted, its room is lost: {error}",
                    group.0
                );
                self.complain(Level::Warn, text);
            }
        }
        let Some(ranges) = self.litter.0.get_mut(&group) else { return };
        ranges.pop();
        if ranges.is_empty() {
            self.litter.0.remove(&group);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use storage::MemoryEngine;

    use super::*;

    const LIMIT: ScanLimit = ScanLimit { records: 2, bytes: 1 << 20 };

    #[test]
    fn the_keys_of_old_generations_are_found_among_those_of_other_groups() {
        let mut overlay = Overlay::new(Arc::new(MemoryEngine::new()));
        let mut expected = Vec::new();
        for generation in [0, 3, 4, 1 << 31] {
            for group in [0, 2, 7] {
                for key in [b"a", b"b", b"c"] {
                    let full = full_key(GroupId(group), Generation(generation), key);
                    overlay.put(full.clone(), Bytes::from_static(b"value"));
                    if group == 2 && generation < 1 << 31 {
                        expected.push(full);
                    }
                }
            }
        }
        let old = (Generation(0), Generation(1 << 31));
        let mut found = Vec::new();
        loop {
            let keys = keys_of(&overlay, GroupId(2), old, LIMIT).unwrap();
            if keys.is_empty() {
                break;
            }
            keys.iter().for_each(|key| overlay.delete(key.clone()));
            found.extend(keys);
        }
        assert_eq!(found, expected);
        for group in [0, 2, 7] {
            let newest = (Generation(1 << 31), Generation(u32::MAX));
            let keys = keys_of(&overlay, GroupId(group), newest, LIMIT).unwrap();
            assert_eq!(keys.len(), 2, "the newest stays, and so do others");
        }
    }

    #[test]
    fn a_copy_is_begun_behind_all_that_the_store_has() {
        let of = |started: u32| Generations { started: Generation(started), ..Default::default() };
        let all = BTreeMap::from([(GroupId(0), of(5)), (GroupId(1), of(2))]);
        let begun = next(&all);
        let lowest = full_key(GroupId(0), begun, b"");
        for (group, known) in &all {
            assert!(range(*group, known.started).1 <= lowest, "{group}");
        }
        assert!(node_key(b"key") < lowest && lowest < start(GroupId(0), Generation(begun.0 + 1)));
        assert!(next(&BTreeMap::new()) > Generations::default().started);
    }
}
