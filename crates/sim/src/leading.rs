//! Sentences of stories about links, disks and clocks, and about who leads.

use base::{GroupId, Micros};
use paxos::{Paxos, Stats};

use crate::disk::DiskOptions;
use crate::network::Place;
use crate::scenario::Scenario;

impl Scenario {
    /// Cuts or mends the link between two nodes.
    pub fn link(&mut self, one: usize, other: usize, works: bool) {
        self.one_way(one, other, works);
        self.one_way(other, one, works);
    }

    /// Cuts or mends one direction of a link.
    pub fn one_way(&mut self, from: usize, to: usize, works: bool) {
        let (from, to) = (Place::Node(from), Place::Node(to));
        let network = &mut self.cluster.world.network;
        if works { network.mend(from, to) } else { network.cut(from, to) }
    }

    /// Asks a node to stop in good order.
    pub fn stop(&mut self, node: usize) {
        self.cluster.world.stop(node);
    }

    /// Whether a node is up.
    pub fn is_up(&self, node: usize) -> bool {
        self.cluster.world.is_up(node)
    }

    /// From now on every sync of a node's disk takes so long.
    pub fn slow_disk(&mut self, node: usize, millis: u64) {
        let span = Micros::from_millis(millis);
        let slow = DiskOptions { sync_min: span, sync_max: span, ..DiskOptions::calm() };
        self.cluster.world.set_disk(node, slow);
    }

    /// A node's disk is as good as any again.
    pub fn good_disk(&mut self, node: usize) {
        self.cluster.world.set_disk(node, DiskOptions::calm());
    }

    /// Moves a node's wall clock to so many milliseconds ahead of the right time.
    pub fn wall_clock(&mut self, node: usize, ahead_millis: i64) {
        self.cluster.world.set_wall_offset(node, ahead_millis);
    }

    /// The nodes that lead a group, as they believe.
    pub fn leaders(&self, group: u64) -> Vec<usize> {
        let group = GroupId(group);
        let leads = |node: &usize| {
            let guest = self.cluster.world.guest(*node);
            guest.and_then(|node| node.paxos_of(group)).is_some_and(Paxos::is_leading)
        };
        (0..self.cluster.world.nodes()).filter(leads).collect()
    }

    /// Makes a node lead a group of all nodes: for a while no other reaches a quorum.
    pub fn make_leader(&mut self, group: u64, node: usize) {
        self.only_hub(node);
        for _ in 0..500 {
            if self.leaders(group) == [node] {
                self.heal();
                return self.wait(200);
            }
            self.wait(10);
        }
        self.fail("a node does not come to lead")
    }

    /// What the replica of a group on a node has counted since its start.
    pub fn stats(&self, group: u64, node: usize) -> Stats {
        let guest = self.cluster.world.guest(node);
        let paxos = guest.and_then(|node| node.paxos_of(GroupId(group)));
        paxos.map(Paxos::stats).unwrap_or_default()
    }

    /// How often any node that is up has come to lead a group.
    pub fn elections(&self, group: u64) -> u64 {
        let nodes = 0..self.cluster.world.nodes();
        nodes.map(|node| self.stats(group, node).elections_won).sum()
    }

    /// Blocks that a node's log has synced since its start.
    pub fn syncs(&self, node: usize) -> u64 {
        self.cluster.world.guest(node).map_or(0, |node| node.status().wal_syncs)
    }
}
