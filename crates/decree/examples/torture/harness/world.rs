//! The nodes, what stands between them, and the rules of their links.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::disks::SmallDisk;
use super::links::{Door, Links, Mode, Pair, Passed, Proxy};
use super::support::cluster::{Cluster, Hosts};

/// Segments are small, so that they are recycled.
pub(crate) const SEGMENT_BYTES: u64 = 4 << 20;
/// Size of a file system that is to be filled now and then.
const SMALL_DISK_BYTES: u64 = 512 << 20;
/// Longest that a node may take to stop in good order, on a machine that has other things to do.
const STOP_TIME_MAX: Duration = Duration::from_secs(60);
/// Logs are short, so that who was away needs a copy of the others' state; and so is the time in
/// which damage is found.
const SERVE_OPTIONS: [&str; 8] = [
    "--wal-segment-bytes",
    "4MiB",
    "--wal-bytes-max",
    "128MiB",
    "--log-bytes-max",
    "4MiB",
    "--scrub-rate",
    "32MiB",
];

/// All nodes, by number from 1.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    links: Links,
    nodes: u64,
    small: Vec<(u64, SmallDisk)>,
    /// Why there are no small disks, where there are none.
    pub(crate) no_small: Option<String>,
    /// The rules of faults under way, by the fault's number.
    rules: Vec<(u64, Vec<(Pair, Mode)>)>,
    /// When each node was started last.
    started: Vec<Instant>,
    /// How often nodes that nobody told to ended, and how.
    ended: Vec<String>,
    /// How much of each node's log has been read.
    read: Vec<usize>,
}

impl World {
    /// Starts so many nodes, and creates a cluster of them with three masters.
    pub(crate) fn start(name: &str, base: u16, nodes: u64, shards: u16, seed: u64) -> World {
        let count = u16::try_from(nodes).expect("few nodes");
        let mut cluster = Cluster::new(name, base, count, 3);
        let links = stand_between(&mut cluster, nodes, base, seed);
        cluster.set_options(&SERVE_OPTIONS);
        let mounted: Result<Vec<(u64, SmallDisk)>, String> = [2, 4]
            .into_iter()
            .filter(|node| *node <= nodes)
            .map(|node| Ok((node, SmallDisk::mount(&cluster.home(node), SMALL_DISK_BYTES)?)))
            .collect();
        let (small, no_small) = match mounted {
            Ok(small) => (small, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        let started = vec![Instant::now(); nodes as usize];
        let read = vec![0; nodes as usize];
        let (rules, ended) = (Vec::new(), Vec::new());
        let mut world =
            World { cluster, links, nodes, small, no_small, rules, started, ended, read };
        world.all().into_iter().for_each(|node| world.start_node(node));
        world.cluster.init(shards);
        world
    }

    /// All nodes.
    pub(crate) fn all(&self) -> Vec<u64> {
        (1..=self.nodes).collect()
    }

    pub(crate) fn is_up(&self, node: u64) -> bool {
        self.cluster.is_up(node)
    }

    /// Starts a node that is down.
    pub(crate) fn start_node(&mut self, node: u64) {
        if !self.is_up(node) {
            self.cluster.start(node);
            self.links.note_process(node, self.cluster.process(node));
            self.started[node as usize - 1] = Instant::now();
        }
    }

    /// When a node was started last.
    pub(crate) fn started(&self, node: u64) -> Instant {
        self.started[node as usize - 1]
    }

    /// Stops a node in good order. One that does not end, or not well, is a failure.
    pub(crate) async fn stop_node(&mut self, node: u64) -> Result<(), String> {
        match self.cluster.stop(node, STOP_TIME_MAX).await {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                Err(format!("node {node} is stopped in good order, and ends with {status}"))
            }
            None => {
                self.cluster.kill(node);
                Err(format!("node {node} does not stop in good order"))
            }
        }
    }

    /// Notes nodes that ended by themselves, of which those with a full disk may.
    pub(crate) fn look(&mut self, full: &BTreeSet<u64>) {
        for node in self.all() {
            if let Some(status) = self.cluster.ended(node)
                && !full.contains(&node)
            {
                let log = self.cluster.log(node);
                let last = log.lines().last().unwrap_or_default();
                self.ended.push(format!("node {node} ended by itself ({status}): {last}"));
            }
        }
    }

    /// What nodes did that no node may: end by themselves, or panic.
    pub(crate) fn take_misdeeds(&mut self) -> Vec<String> {
        let mut found = std::mem::take(&mut self.ended);
        for node in self.all() {
            let log = self.cluster.log(node);
            let read = std::mem::replace(&mut self.read[node as usize - 1], log.len());
            let lines = log.get(read..).unwrap_or_default().lines();
            let lines = lines.filter(|line| line.contains("panicked"));
            found.extend(lines.map(|line| format!("node {node}: {line}")));
        }
        found
    }

    /// The rules of a fault, in place of those that it had.
    pub(crate) fn rule(&mut self, fault: u64, rules: Vec<(Pair, Mode)>) {
        self.rules.retain(|(of, _)| *of != fault);
        if !rules.is_empty() {
            self.rules.push((fault, rules));
        }
        for from in 0..=self.nodes {
            for to in 1..=self.nodes {
                let of_pair = self.rules.iter().flat_map(|(_, rules)| rules);
                let mut modes = of_pair.filter(|(pair, _)| *pair == (from, to)).map(|rule| rule.1);
                // One that is cut by one fault is cut.
                let is_cut = |mode: &Mode| matches!(mode, Mode::Cut | Mode::Swallowed);
                let mode = modes.clone().find(is_cut).or_else(|| modes.next());
                self.links.set((from, to), mode.unwrap_or_default());
            }
        }
    }

    /// All connections of a pair break.
    pub(crate) fn reset(&self, pair: Pair) {
        self.links.reset(pair);
    }

    pub(crate) fn passed(&self) -> Passed {
        self.links.passed()
    }

    /// The small disk of a node, which can be filled.
    pub(crate) fn small(&self, node: u64) -> Option<&SmallDisk> {
        self.small.iter().find(|(of, _)| *of == node).map(|(_, disk)| disk)
    }

    /// Where programs find the nodes: at their own doors, and through proxies.
    pub(crate) fn endpoints(&self) -> (Vec<String>, Vec<String>) {
        let through = self.all().into_iter().map(|node| self.cluster.advertised(node)).collect();
        (self.cluster.endpoints(), through)
    }

    /// Ends all nodes; their data and logs are removed, or kept.
    pub(crate) fn end(mut self, keep: bool) {
        self.cluster.kill_all();
        self.small.drain(..).for_each(|(_, disk)| disk.end(keep));
        if !keep {
            self.cluster.remove();
        }
    }
}

/// Addresses of this machine that nobody else uses, and proxies at them.
fn stand_between(cluster: &mut Cluster, nodes: u64, base: u16, seed: u64) -> Links {
    let process = std::process::id();
    let mut refused = None;
    for attempt in 0..50 {
        let mixed = process.wrapping_add(attempt * 7_919);
        let (high, low) = (1 + (mixed >> 8) % 250, mixed & 0xff);
        let at = |last: u64| Ipv4Addr::new(127, high as u8, low as u8, last as u8);
        let (own, known): (Vec<_>, Vec<_>) =
            (1..=nodes).map(|node| (at(node), at(100 + node))).unzip();
        let proxies = (1..=nodes).flat_map(|node| {
            let index = node as usize - 1;
            let ports =
                [(Door::Peer, cluster.peer_port(node)), (Door::Program, cluster.grpc_port(node))];
            let (at, to) = (known[index], own[index]);
            ports.map(|(door, port)| Proxy {
                door,
                node,
                at: SocketAddrV4::new(at, port),
                to: SocketAddrV4::new(to, port),
            })
        });
        match Links::start(proxies.collect(), nodes, seed) {
            Ok(links) => {
                let texts = |all: &[Ipv4Addr]| all.iter().map(ToString::to_string).collect();
                let hosts = Hosts { listening: texts(&own), advertised: texts(&known) };
                cluster.set_hosts(hosts);
                return links;
            }
            Err(error) => refused = Some(error),
        }
    }
    panic!("no addresses of this machine are free at ports from {base} on: {refused:?}");
}
