//! How much of its log a replica keeps for others (docs/paxos.md 11.11).

use std::collections::VecDeque;

use base::{Lsn, Micros, Slot};

/// What is kept of a group's log when the own store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Most bytes that are kept for those who lack them; twice as many while a copy of the state
    /// needs them.
    pub bytes_max: usize,
    /// Most slots, likewise.
    pub slots_max: u64,
    /// So many bytes of what all replicas have are kept.
    pub tail_bytes: usize,
    /// And no longer than for so long.
    pub tail_age: Micros,
    /// The write-ahead log has no room for what lies below this position.
    pub below: Lsn,
    /// Nor for this, even if a copy of the state needs it.
    pub below_pinned: Lsn,
}

/// Remembers since when all replicas have had a prefix.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    marks: VecDeque<(Micros, Slot)>,
    aged: Slot,
}

/// Most moments that are remembered; between two of them lies a part of the age.
const MARKS_MAX: u64 = 16;

impl Ages {
    /// All have the prefix `all` now: the prefix that they have had for so long.
    pub(crate) fn aged(&mut self, now: Micros, all: Slot, age: Micros) -> Slot {
        while let Some((at, slot)) = self.marks.front().copied()
            && now.since(at) >= age
        {
            self.aged = self.aged.max(slot);
            self.marks.pop_front();
        }
        let due = self
            .marks
            .back()
            .is_none_or(|(at, slot)| *slot < all && now.since(*at).0 * MARKS_MAX >= age.0);
        if due && all > self.aged {
            self.marks.push_back((now, all));
        }
        if age == Micros(0) {
            self.aged = self.aged.max(all);
        }
        self.aged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ages_from_when_all_have_it() {
        let mut ages = Ages::default();
        let age = Micros::from_secs(10);
        let mut aged = |second, slot| ages.aged(Micros::from_secs(second), Slot(slot), age).0;
        assert_eq!(
            [aged(0, 5), aged(4, 9), aged(9, 9), aged(10, 12), aged(14, 12)],
            [0, 0, 0, 5, 9]
        );
        assert_eq!([aged(19, 12), aged(20, 12), aged(40, 30)], [9, 12, 12]);
        assert_eq!(aged(50, 30), 30);
    }

    #[test]
    fn the_moments_remembered_are_few() {
        let mut ages = Ages::default();
        for milli in 0..100_000 {
            ages.aged(Micros::from_millis(milli), Slot(milli), Micros::from_secs(10));
            assert!(ages.marks.len() as u64 <= MARKS_MAX + 1);
        }
    }
}
