//! The other nodes: where they are, which start of theirs is the present one, and whether
//! heartbeats go both ways (`docs/paxos.md` 11.4, 11.6).

use std::collections::{BTreeMap, BTreeSet};

use base::{Address, BootId, DiskId, GroupId, Micros, NodeId, ReplicaId, WallMillis, limits};
use paxos::HeartbeatRow;

use crate::frame::{GrantRow, Sender};

/// One other node.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where it is; what it says of itself beats the registry.
    pub(crate) address: Address,
    /// Where clients find it.
    pub(crate) grpc: Option<Address>,
    /// Its disk, from its hello.
    pub(crate) disk: Option<DiskId>,
    /// Its present start, and the count of its starts.
    pub(crate) boot: Option<(u64, BootId)>,
    /// Whether this boot has introduced itself.
    pub(crate) introduced: bool,
    /// Number of the newest heartbeat sent to it.
    pub(crate) sent: u64,
    /// Number of the newest heartbeat that came from its present start.
    pub(crate) heard: u64,
    /// Number of the newest heartbeat that it answered.
    pub(crate) answered: u64,
    /// Whether its present boot has answered this boot of ours: our hello may be left out.
    pub(crate) greeted: bool,
    /// The state of our rows that it has confirmed.
    pub(crate) rows_confirmed: u64,
    /// The newest row of each of its replicas that one of ours took: a later replica of the group
    /// on this node needs it too, and it does not come again.
    pub(crate) rows: BTreeMap<GroupId, (ReplicaId, HeartbeatRow)>,
    /// Smoothed round trip of answered heartbeats.
    pub(crate) round_trip: Micros,
    /// Whether it counts as connected.
    pub(crate) connected: bool,
    /// When that last changed.
    pub(crate) connected_since: Micros,
    /// What our replicas grant to its replicas, and how often that has changed.
    pub(crate) granted: (u64, Vec<GrantRow>),
    /// What its replicas grant to ours, as of its change of this number.
    pub(crate) grants: (u64, Vec<GrantRow>),
    /// Its wall clock less ours, in milliseconds, at its newest heartbeat.
    pub(crate) wall_ahead: i64,
}

impl Peer {
    pub(crate) fn new(address: Address) -> Peer {
        Peer {
            address,
            grpc: None,
            disk: None,
            boot: None,
            introduced: false,
            sent: 0,
            heard: 0,
            answered: 0,
            greeted: false,
            rows_confirmed: 0,
            rows: BTreeMap::new(),
            round_trip: Micros::from_millis(1),
            connected: false,
            connected_since: Micros(0),
            granted: (0, Vec::new()),
            grants: (0, Vec::new()),
            wall_ahead: 0,
        }
    }

    /// Whether an answer to one of the last heartbeats has arrived.
    pub(crate) fn is_answering(&self) -> bool {
        self.introduced
            && self.answered > 0
            && self.sent - self.answered < limits::HEARTBEATS_CONNECTED
    }

    /// Takes note of an answered round trip.
    pub(crate) fn measured(&mut self, round_trip: Micros) {
        self.round_trip = Micros((self.round_trip.0 * 7 + round_trip.0) / 8);
    }

    /// Takes what its replicas grant to ours from the answer to a heartbeat; tells whether what is
    /// known here is what the answer speaks of.
    pub(crate) fn take_grants(&mut self, number: u64, rows: Option<Vec<GrantRow>>) -> bool {
        if let Some(rows) = rows
            && number > self.grants.0
        {
            self.grants = (number, rows);
        }
        self.grants.0 == number
    }

    /// Takes note of the peer's wall clock.
    pub(crate) fn clock(&mut self, theirs: WallMillis, ours: WallMillis) {
        // Not further than a century, so that whatever a peer says can be reckoned with.
        const FAR: i64 = 100 * 366 * 86_400_000;
        let ahead = (theirs.0 as i64).saturating_sub(ours.0 as i64);
        self.wall_ahead = ahead.clamp(-FAR, FAR);
    }
}

/// Which numbers of a growing sequence have come, over a channel that may double and reorder. What
/// comes far too late counts as seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The start of the sender that counts.
    starts: u64,
    highest: u64,
    recent: BTreeSet<u64>,
}

/// How far behind the highest a number may come.
const SEEN_BEHIND_MAX: u64 = 4_096;

impl Seen {
    /// Whether this number comes for the first time.
    pub(crate) fn is_first(&mut self, sender: &Sender, number: u64) -> bool {
        if sender.starts > self.starts {
            *self = Seen { starts: sender.starts, ..Seen::default() };
        }
        self.highest = self.highest.max(number);
        let lowest = self.highest.saturating_sub(SEEN_BEHIND_MAX);
        if self.recent.first().is_some_and(|first| *first < lowest) {
            self.recent = self.recent.split_off(&lowest);
        }
        sender.starts == self.starts && number >= lowest && self.recent.insert(number)
    }
}

/// What this node's replicas stand at, with the moment of their last change, so that a heartbeat
/// carries only what the peer does not have.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    version: u64,
    rows: BTreeMap<GroupId, (u64, HeartbeatRow)>,
}

impl Rows {
    /// The present state.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Takes note of a replica's row.
    pub(crate) fn set(&mut self, group: GroupId, row: HeartbeatRow) {
        match self.rows.get(&group) {
            Some((_, present)) if *present == row => {}
            Some(_) | None => {
                self.version += 1;
                self.rows.insert(group, (self.version, row));
            }
        }
    }

    /// Others may need this row that did not before.
    pub(crate) fn touch(&mut self, group: GroupId) {
        if let Some((changed, _)) = self.rows.get_mut(&group) {
            self.version += 1;
            *changed = self.version;
        }
    }

    /// The replica is no more.
    pub(crate) fn remove(&mut self, group: GroupId) {
        self.rows.remove(&group);
    }

    /// The rows of these groups that changed after the state `confirmed`.
    pub(crate) fn since<'a>(
        &'a self,
        confirmed: u64,
        groups: &'a BTreeSet<GroupId>,
    ) -> impl Iterator<Item = (GroupId, HeartbeatRow)> + 'a {
        groups.iter().filter_map(move |group| {
            let (changed, row) = self.rows.get(group)?;
            (*changed > confirmed).then_some((*group, *row))
        })
    }
}

/// How far apart two wall clocks may be before a node says so.
pub(crate) const CLOCK_APART_MILLIS_MAX: i64 = 10_000;

/// The median of the clocks that a node hears, its own included, relative to its own, in
/// milliseconds; of two middle ones the nearer to its own.
pub(crate) fn clock_median(ahead: &mut Vec<i64>) -> i64 {
    ahead.push(0);
    ahead.sort_unstable();
    let middle = ahead.len() / 2;
    if ahead.len() % 2 == 1 {
        return ahead[middle];
    }
    let (low, high) = (ahead[middle - 1], ahead[middle]);
    if low.abs() <= high.abs() { low } else { high }
}

/// The nodes that share a group with this one, and the groups they share.
pub(crate) type Shared = BTreeMap<NodeId, BTreeSet<GroupId>>;
