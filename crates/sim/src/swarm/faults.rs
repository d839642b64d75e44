//! What goes wrong for a while, and by chance: links, processes, clocks, and disks that are slow,
//! fail or fill up.

use base::{GroupId, Micros};
use storage::DiskFault;

use super::alarm::Alarm;
use super::{Failed, Fault, Guest, Run};
use crate::disk::{Crash, DiskOptions};
use crate::network::Place;
use crate::ownership;
use crate::points::CrashPoint;

impl<G: Guest> Run<G> {
    pub(super) fn begin_faults(&mut self) {
        self.cluster.world.network.set_options(self.options.world.network.clone());
        for node in 0..self.cluster.world.nodes() {
            self.cluster.world.set_disk(node, self.options.world.disk.clone());
        }
        let faults = self.options.faults.clone();
        self.next(faults.partition, Alarm::Partition);
        self.next(faults.crash, Alarm::Crash);
        self.next(faults.pause, Alarm::Pause);
        self.next(faults.slow_disk, Alarm::SlowDisk);
        self.next(faults.clock_jump, Alarm::ClockJump);
        self.next(faults.disk_error, Alarm::DiskError);
        self.next(faults.disk_full, Alarm::DiskFull);
        self.next(faults.stop, Alarm::Stop);
        self.next(faults.clog, Alarm::Clog);
        self.next(faults.churn, Alarm::Churn);
        self.next(faults.wipe, Alarm::Wipe);
        self.next(faults.old_copy, Alarm::TakeImage);
        self.next(faults.members, Alarm::Members);
        self.next(faults.point, Alarm::Point);
        self.next_rot();
    }

    /// Sets the alarm for the next fault of a kind.
    pub(super) fn next(&mut self, fault: Option<Fault>, alarm: Alarm) {
        if let Some(fault) = fault {
            let after = Micros(self.random.below(fault.every_max.0));
            self.alarm(after, alarm);
        }
    }

    pub(super) fn span(&mut self, fault: Option<Fault>) -> Micros {
        Micros(self.random.below(fault.map_or(1, |fault| fault.span_max.0)))
    }

    /// A fault of this class happened.
    pub(super) fn count(&mut self, class: &'static str) {
        *self.faults.entry(class).or_default() += 1;
    }

    pub(super) fn on_partition(&mut self) {
        self.partition();
        let span = self.span(self.options.faults.partition);
        self.alarm(span, Alarm::Heal);
    }

    pub(super) fn on_heal(&mut self) {
        self.cluster.world.note("the network is whole");
        self.cluster.world.network.heal();
        self.next(self.options.faults.partition, Alarm::Partition);
    }

    /// Some nodes are cut off from everybody one after the other, and come back in any order.
    pub(super) fn clog(&mut self) {
        self.count("F08 clogs");
        let fault = self.options.faults.clog;
        let mut nodes: Vec<usize> = (0..self.cluster.world.nodes()).collect();
        self.random.shuffle(&mut nodes);
        nodes.truncate(self.random.between(1, nodes.len() as u64) as usize);
        self.cluster.world.note(&format!("the nodes {nodes:?} are clogged"));
        for node in nodes {
            let span = self.span(fault);
            self.alarm(span, Alarm::Clogged(node));
            let more = self.span(fault);
            self.alarm(span + more, Alarm::Freed(node));
        }
        self.next(fault, Alarm::Clog);
    }

    pub(super) fn stop(&mut self, node: usize) {
        self.count("F03 stops");
        self.cluster.world.stop(node);
        let span = Micros::from_millis(1_700) + self.span(self.options.faults.stop);
        self.alarm(span, Alarm::Restart(node));
        self.next(self.options.faults.stop, Alarm::Stop);
    }

    pub(super) fn on_pause(&mut self, node: usize) {
        self.count("F09 pauses");
        let span = self.span(self.options.faults.pause);
        self.cluster.world.note(&format!("node {node} pauses for {span:?}"));
        self.cluster.world.pause(node, span);
        self.next(self.options.faults.pause, Alarm::Pause);
    }

    /// Whoever leads some group is not heard of until others want to lead it.
    pub(super) fn churn(&mut self) {
        let fault = self.options.faults.churn;
        let groups = 1 + self.options.groups.len() as u64;
        let group = GroupId(self.random.below(groups));
        if let Some(leader) = ownership::leader(&self.cluster.world, group) {
            self.count("F17 leaders paused");
            let span = Micros::from_millis(100) + self.span(fault);
            self.cluster.world.pause(leader, span);
        }
        self.next(fault, Alarm::Churn);
    }

    pub(super) fn slow_disk(&mut self, node: usize) {
        let stalled = self.random.chance(self.options.faults.stalled, 100);
        let slowest = Micros::from_millis(self.random.between(10, 500));
        let slow = if stalled {
            self.count("F16 stalled disks");
            let span = Micros(slowest.0 * 6);
            DiskOptions { sync_min: span, sync_max: span, ..self.options.world.disk.clone() }
        } else {
            self.count("F16 slow disks");
            let sync_min = Micros::from_millis(5);
            DiskOptions { sync_min, sync_max: slowest, ..self.options.world.disk.clone() }
        };
        self.cluster.world.set_disk(node, slow);
        let span = self.span(self.options.faults.slow_disk);
        self.alarm(span, Alarm::QuickDisk(node));
        self.next(self.options.faults.slow_disk, Alarm::SlowDisk);
    }

    pub(super) fn clock_jump(&mut self, node: usize) {
        self.count("F10 clock jumps");
        let hour = 3_600_000;
        let millis = self.random.below(2 * hour) as i64 - hour as i64;
        self.cluster.world.note(&format!("the clock of node {node} jumps to {millis} ms"));
        self.cluster.world.set_wall_offset(node, millis);
        let span = self.span(self.options.faults.clock_jump);
        self.alarm(span, Alarm::ClockBack(node));
        self.next(self.options.faults.clock_jump, Alarm::ClockJump);
    }

    pub(super) fn fail_disk(&mut self, node: usize) {
        self.count("F15 disk errors");
        let after = self.random.below(20);
        let fault = match self.random.below(3) {
            // What cannot be read for long is as good as lost.
            0 if self.admit(Some(node)).is_some() => DiskFault::Read(after / 4),
            0 | 1 => DiskFault::Write(after),
            _ => DiskFault::Sync(after),
        };
        self.cluster.world.note(&format!("the disk of node {node} fails: {fault:?}"));
        self.cluster.may_give_up.insert(node);
        self.cluster.world.disk(node).set_fault(Some(fault));
        self.next(self.options.faults.disk_error, Alarm::DiskError);
    }

    /// A disk is full for a while, or those of all nodes are.
    pub(super) fn fill_disk(&mut self, node: usize) {
        let all = self.random.chance(self.options.faults.full_all, 100);
        self.count(if all { "F15 all disks full" } else { "F15 disks full" });
        let nodes = self.cluster.world.nodes();
        let span = self.span(self.options.faults.disk_full);
        for node in if all { 0..nodes } else { node..node + 1 } {
            let disk = self.cluster.world.disk(node);
            disk.set_bytes_max(Some(disk.bytes()));
            self.cluster.may_not_start.insert(node);
            self.cluster.world.note(&format!("the disk of node {node} is full"));
            self.alarm(span, Alarm::DiskRoom(node));
        }
        self.next(self.options.faults.disk_full, Alarm::DiskFull);
    }

    fn partition(&mut self) {
        let nodes = self.cluster.world.nodes();
        let mut places: Vec<usize> = (0..nodes).collect();
        self.random.shuffle(&mut places);
        let network = &mut self.cluster.world.network;
        let kind = self.random.below(5);
        let what = match kind {
            0 => {
                let at = self.random.between(1, nodes as u64 - 1) as usize;
                let blocks = vec![places[..at].to_vec(), places[at..].to_vec()];
                network.partition(nodes, &blocks);
                format!("partition {blocks:?}")
            }
            1 => {
                // One node is heard by nobody, or hears nobody.
                let (lone, deaf) = (places[0], self.random.chance(1, 2));
                for other in &places[1..] {
                    let (from, to) = if deaf { (*other, lone) } else { (lone, *other) };
                    network.cut(Place::Node(from), Place::Node(to));
                }
                format!("node {lone} is {}", if deaf { "deaf" } else { "mute" })
            }
            2 => {
                // Only one node is connected with all others.
                network.partition(nodes, &[]);
                for other in &places[1..] {
                    network.mend(Place::Node(places[0]), Place::Node(*other));
                    network.mend(Place::Node(*other), Place::Node(places[0]));
                }
                format!("only node {} reaches all", places[0])
            }
            3 => {
                // A chain of nodes, each connected with its neighbours.
                network.partition(nodes, &[]);
                for pair in places.windows(2) {
                    network.mend(Place::Node(pair[0]), Place::Node(pair[1]));
                    network.mend(Place::Node(pair[1]), Place::Node(pair[0]));
                }
                format!("a chain {places:?}")
            }
            _ => {
                let lone = places[0];
                for client in &self.clients {
                    network.cut(Place::Client(*client), Place::Node(lone));
                }
                network.cut(Place::Node(lone), Place::Node(places[1]));
                format!("no client reaches node {lone}, nor does node {} hear it", places[1])
            }
        };
        self.cluster.world.note(&what);
        self.count(PARTITIONS[kind as usize]);
    }

    pub(super) fn crash(&mut self, node: usize) -> Result<(), Failed> {
        let crash = if self.options.faults.power { Crash::Power } else { Crash::Kill };
        let all = self.random.chance(self.options.faults.crash_all, 100);
        self.count(if all { "F02 all crash" } else { "F01 crashes" });
        let nodes = self.cluster.world.nodes();
        for node in if all { 0..nodes } else { node..node + 1 } {
            self.end_process(node, crash)?;
        }
        self.next(self.options.faults.crash, Alarm::Crash);
        Ok(())
    }

    /// A node is to end at some point.
    pub(super) fn arm(&mut self, node: usize) {
        if let Some(point) = self.random.pick(CrashPoint::ALL).copied() {
            self.cluster.world.arm(node, point);
        }
        self.next(self.options.faults.point, Alarm::Point);
    }

    /// A node is at the point at which it is to end.
    pub(super) fn on_point(&mut self, node: usize) -> Result<(), Failed> {
        self.count("F01 crashes at a point");
        self.crash_one(node)
    }

    pub(super) fn crash_one(&mut self, node: usize) -> Result<(), Failed> {
        let crash = if self.options.faults.power { Crash::Power } else { Crash::Kill };
        self.end_process(node, crash)
    }

    pub(super) fn end_process(&mut self, node: usize, crash: Crash) -> Result<(), Failed> {
        if self.cluster.world.is_up(node) {
            self.cluster.observe(node)?;
            self.count_crash(node);
            self.cluster.world.crash(node, crash);
            let span = self.span(self.options.faults.crash);
            self.alarm(span, Alarm::Restart(node));
        }
        Ok(())
    }
}

/// The classes of partitions.
const PARTITIONS: [&str; 5] =
    ["F05 partitions", "F06 one-way links", "F07 hubs", "F07 chains", "F06 clients cut off"];
