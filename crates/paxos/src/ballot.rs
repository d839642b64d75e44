//! Ballots: the numbers under which proposers compete (docs/paxos.md 11.1).

use std::fmt;

use base::ReplicaId;
use minicbor::{Decode, Encode};

/// The epoch of a new group's members.
pub const EPOCH_FIRST: u32 = 1;

/// A proposal number, ordered by all of its fields in their order. Only `replica` proposes under
/// it, and at most one value per slot (docs/paxos.md 11.1).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Ballot {
    /// The number of the group's membership, from 1; 0 only in [`Ballot::ZERO`].
    #[n(0)]
    pub epoch: u32,
    /// The attempt within the epoch. A campaign takes one above all rounds it has heard of.
    #[n(1)]
    pub round: u32,
    /// The proposer.
    #[n(2)]
    pub replica: ReplicaId,
}

impl Ballot {
    /// Below every ballot that anybody proposes under; it marks slots that hold nothing.
    pub const ZERO: Ballot = Ballot { epoch: 0, round: 0, replica: ReplicaId(0) };

    /// Bytes of the fixed form.
    pub const BYTES: usize = 16;

    /// The fixed form, big-endian, whose order as bytes is the order of ballots.
    pub fn to_bytes(self) -> [u8; Ballot::BYTES] {
        let mut out = [0; Ballot::BYTES];
        out[..4].copy_from_slice(&self.epoch.to_be_bytes());
        out[4..8].copy_from_slice(&self.round.to_be_bytes());
        out[8..].copy_from_slice(&self.replica.0.to_be_bytes());
        out
    }

    /// The ballot of a fixed form.
    pub fn from_bytes(bytes: [u8; Ballot::BYTES]) -> Ballot {
        let number = u128::from_be_bytes(bytes);
        Ballot {
            epoch: (number >> 96) as u32,
            round: (number >> 64) as u32,
            replica: ReplicaId(number as u64),
        }
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.epoch, self.round, self.replica)
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ballots_are_ordered_by_epoch_then_round_then_replica() {
        let ballot = |epoch, round, replica| Ballot { epoch, round, replica: ReplicaId(replica) };
        let sorted = [
            Ballot::ZERO,
            ballot(1, 0, 9),
            ballot(1, 1, 1),
            ballot(1, 1, 2),
            ballot(1, 2, 1),
            ballot(2, 0, 1),
        ];
        assert!(sorted.is_sorted());
        for one in sorted {
            assert_eq!(Ballot::from_bytes(one.to_bytes()), one);
        }
        assert!(sorted.map(Ballot::to_bytes).is_sorted());
    }
}
