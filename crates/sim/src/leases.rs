//! The invariant of leases (`docs/paxos.md` 12, I14), checked in true time, which no node knows: at
//! no instant do two replicas of a group hold a lease, and while one does nobody leads later.

use std::collections::BTreeMap;

use base::{GroupId, Micros};

use crate::guest::{BallotView, Guest};
use crate::world::World;

/// What was seen of leases.
#[derive(Debug, Default)]
pub struct Leases {
    /// How often a replica was seen that held a lease.
    held: u64,
}

/// A replica that leads, as it believes.
struct Leader {
    node: usize,
    ballot: BallotView,
    /// Its lease holds at this instant.
    leased: bool,
}

impl Leases {
    /// Looks at all nodes at one instant.
    pub fn check<G: Guest>(&mut self, world: &World<G>) -> Result<(), String> {
        let mut leaders: BTreeMap<GroupId, Vec<Leader>> = BTreeMap::new();
        for node in 0..world.nodes() {
            let Some(guest) = world.guest(node) else { continue };
            let now = world.boot_clock(node);
            for (group, ballot, until) in guest.leases() {
                let leased = until.is_some_and(|until: Micros| now <= until);
                self.held += u64::from(leased);
                leaders.entry(group).or_default().push(Leader { node, ballot, leased });
            }
        }
        for (group, leaders) in leaders {
            for holder in leaders.iter().filter(|leader| leader.leased) {
                let later = leaders.iter().find(|other| other.ballot > holder.ballot);
                if let Some(later) = later {
                    return Err(format!(
                        "I14: node {} leads {group} under {:?} while node {} holds a lease under \
                         {:?}",
                        later.node, later.ballot, holder.node, holder.ballot
                    ));
                }
            }
        }
        Ok(())
    }

    /// How often a replica was seen that held a lease.
    pub fn held(&self) -> u64 {
        self.held
    }
}
