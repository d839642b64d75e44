//! Who votes in a group, and what a quorum is (docs/paxos.md 11.1, 11.8).

use std::collections::BTreeSet;

use base::limits::GROUP_REPLICAS_MAX;
use base::{DiskId, NodeId, ReplicaId, Slot};
use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder, Write};
use minicbor::{Decode, Encode};

use crate::ballot::{Ballot, EPOCH_FIRST};

/// One replica of a group and where it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Member {
    /// The replica.
    #[n(0)]
    pub replica: ReplicaId,
    /// The node that runs it.
    #[n(1)]
    pub node: NodeId,
    /// The data directory that holds its votes; it is bound to this one for ever.
    #[n(2)]
    pub disk: DiskId,
}

/// The voters of a group in one epoch.
///
/// - There is at least one and there are at most `GROUP_REPLICAS_MAX`.
/// - They are sorted by replica, and no replica occurs twice.
/// - `first_leader` is a voter, save in the first epoch, which has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    epoch: u32,
    first_slot: Slot,
    first_leader: ReplicaId,
    voters: Vec<Member>,
}

/// As it is encoded.
#[derive(Encode, Decode)]
struct Parts {
    #[n(0)]
    voters: Vec<Member>,
    #[n(1)]
    epoch: u32,
    #[n(2)]
    first_slot: Slot,
    #[n(3)]
    first_leader: ReplicaId,
}

impl Members {
    /// A new group of these voters, in any order; none where there is no voter, there are too many
    /// or a replica occurs twice.
    pub fn new(mut voters: Vec<Member>) -> Option<Members> {
        voters.sort_unstable();
        let distinct = voters.windows(2).all(|pair| pair[0].replica != pair[1].replica);
        let sized = (1..=GROUP_REPLICAS_MAX).contains(&voters.len());
        let first_slot = Slot(1);
        let (epoch, first_leader) = (EPOCH_FIRST, ReplicaId(0));
        (distinct && sized).then_some(Members { epoch, first_slot, first_leader, voters })
    }

    /// The members that a stop-sign in this slot brings in, the slot being the last of the epoch of
    /// these; none where they make no group, or its first leader is none of them.
    pub fn next(
        &self,
        stop: Slot,
        voters: Vec<Member>,
        first_leader: ReplicaId,
    ) -> Option<Members> {
        let fresh = Members::new(voters)?;
        let epoch = self.epoch.checked_add(1)?;
        let leads = fresh.contains(first_leader);
        leads.then_some(Members { epoch, first_slot: stop.next(), first_leader, ..fresh })
    }

    /// The voters that a shard master knows of an epoch of which it does not know the rest: enough
    /// to find them.
    pub fn known(epoch: u32, voters: Vec<Member>) -> Option<Members> {
        Some(Members { epoch, ..Members::new(voters)? })
    }

    /// The number of the epoch, from 1.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The first slot that these members decide.
    pub fn first_slot(&self) -> Slot {
        self.first_slot
    }

    /// Who may propose from the first slot on without phase 1.
    pub fn first_leader(&self) -> ReplicaId {
        self.first_leader
    }

    /// What every member promises by being one: the ballot of the first leader, below which nothing
    /// is accepted in this epoch. The first epoch has no first leader, and begins with an election.
    pub fn first_ballot(&self) -> Ballot {
        match self.first_leader {
            ReplicaId(0) => Ballot::ZERO,
            replica => Ballot { epoch: self.epoch, round: 0, replica },
        }
    }

    /// The voters, sorted by replica.
    pub fn voters(&self) -> &[Member] {
        &self.voters
    }

    /// The voters' replicas in increasing order.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.voters.iter().map(|member| member.replica)
    }

    /// The member with this replica.
    pub fn member(&self, replica: ReplicaId) -> Option<&Member> {
        let at = self.voters.binary_search_by_key(&replica, |member| member.replica).ok()?;
        self.voters.get(at)
    }

    /// Whether this replica votes.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.member(replica).is_some()
    }

    /// How many promises phase 1 needs: a majority.
    pub fn q1(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// How many votes choose a value: a majority. `q1 + q2` exceeds the number of voters, so that
    /// every phase 1 meets every choice.
    pub fn q2(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Whether these replicas, of which those that do not vote are not counted, are a quorum for
    /// either phase.
    pub fn is_quorum(&self, replicas: &BTreeSet<ReplicaId>) -> bool {
        let voting = replicas.iter().filter(|replica| self.contains(**replica)).count();
        voting >= self.q1().max(self.q2())
    }
}

impl<C> Encode<C> for Members {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        let parts = Parts {
            voters: self.voters.clone(),
            epoch: self.epoch,
            first_slot: self.first_slot,
            first_leader: self.first_leader,
        };
        parts.encode(e, context)
    }
}

impl<'b, C> Decode<'b, C> for Members {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Members, decode::Error> {
        let Parts { voters, epoch, first_slot, first_leader } = Parts::decode(d, context)?;
        let wrong = || decode::Error::message("not a set of voters");
        let members = Members::new(voters).ok_or_else(wrong)?;
        let led = first_leader == ReplicaId(0) || members.contains(first_leader);
        if !led || !(1..1 << 62).contains(&first_slot.0) || epoch < EPOCH_FIRST {
            return Err(wrong());
        }
        Ok(Members { epoch, first_slot, first_leader, ..members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(replicas: &[u64]) -> Option<Members> {
        let member =
            |id: &u64| Member { replica: ReplicaId(*id), node: NodeId(*id), disk: DiskId(1) };
        Members::new(replicas.iter().map(member).collect())
    }

    #[test]
    fn two_quorums_always_meet() {
        for count in 1..=GROUP_REPLICAS_MAX as u64 {
            let members = members(&(1..=count).collect::<Vec<_>>()).expect("voters");
            assert!(members.q1() + members.q2() > count as usize);
        }
    }

    #[test]
    fn strangers_do_not_count_towards_a_quorum() {
        let members = members(&[3, 1, 2]).expect("voters");
        let set = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect::<BTreeSet<_>>();
        assert!(members.is_quorum(&set(&[1, 3])));
        assert!(!members.is_quorum(&set(&[1, 8, 9])));
        assert!(members.voters().is_sorted());
    }

    #[test]
    fn empty_doubled_and_oversized_groups_are_no_members() {
        assert_eq!(members(&[]), None);
        assert_eq!(members(&[1, 2, 1]), None);
        assert_eq!(members(&(0..8).collect::<Vec<_>>()), None);
    }
}
