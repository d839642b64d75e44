//! Runs told step by step: a cluster of one group with a replica on every node, and sentences
//! about it. A sentence that is not true panics with the seed and the virtual time.
//!
//! ```text
//! let mut s = Scenario::new("k5", 5);
//! s.partition(&[&[2, 3, 4], &[0, 1]]);
//! s.put(2, "1", "14");
//! s.reads(4, "1", "14");
//! ```

use base::{DiskId, Micros, Random};
use bytes::Bytes;
use node::Node;
use router::{Answer, CallError, HashKind, KvOp, Reply};
use storage::MemoryEngine;

use crate::cluster::{Cluster, Failed};
use crate::disk::{Crash, DiskOptions};
use crate::guest::Settings;
use crate::network::{NetworkOptions, Place};
use crate::rot::{self, LogRecord};
use crate::world::{Image, WorldOptions};

/// A cluster in the middle of a story.
pub struct Scenario {
    pub(crate) cluster: Cluster<Node>,
    name: String,
    /// One client for each node, that talks to no other.
    clerks: Vec<usize>,
    /// A client that talks to all.
    pub(crate) anyone: usize,
    random: Random,
}

/// A call that was begun.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    client: usize,
    call: u64,
}

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A client that talks to this node only.
    Node(usize),
    /// A client that talks to every node.
    Any,
}

impl From<usize> for Via {
    fn from(node: usize) -> Via {
        Via::Node(node)
    }
}

impl Scenario {
    /// A cluster of so many nodes, the first three of them masters, with one group of all of them.
    /// The name decides what chance decides.
    pub fn new(name: &str, nodes: usize) -> Scenario {
        Scenario::with_groups(name, nodes, 16, &[(0..nodes).collect()])
    }

    /// A cluster of so many nodes, the first three of them masters, and shards, with groups
    /// numbered from 1 on these nodes.
    pub fn with_groups(name: &str, nodes: usize, shards: u16, groups: &[Vec<usize>]) -> Scenario {
        Scenario::with_options(name, nodes, shards, groups, |_| ())
    }

    /// The same, with other options where `change` makes them others.
    pub fn with_options(
        name: &str,
        nodes: usize,
        shards: u16,
        groups: &[Vec<usize>],
        change: impl FnOnce(&mut WorldOptions),
    ) -> Scenario {
        let add = |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte));
        let seed = name.bytes().fold(7, add);
        let mut options = WorldOptions {
            nodes,
            masters: 3.min(nodes),
            settings: Settings {
                segment_bytes: 64 << 10,
                wal_bytes_max: 64 << 20,
                tail_bytes_max: 1 << 20,
                overlay_bytes_max: 1 << 20,
                overlay_idle: Micros::from_millis(200),
                overlay_age_max: Micros::from_secs(1),
                log_bytes_max: 64 << 20,
                log_tail_bytes: 0,
                log_tail_age: Micros(0),
                snapshot_part_bytes: 16 << 10,
                snapshot_bytes_per_second: 32 << 20,
                handoff_part_bytes: 512 << 10,
                handoff_left_bytes: 256 << 10,
            },
            network: NetworkOptions::calm(),
            disk: DiskOptions::calm(),
            tick: Micros::from_millis(5),
            drift_max: 500,
            wall_offset_max: 100,
            paused: 0,
            pause_max: Micros(0),
            attempt_timeout: Micros::from_secs(1),
            log_lines: 200,
        };
        change(&mut options);
        let mut cluster = Cluster::new(seed, options);
        let anyone = match cluster.bootstrap(shards, groups) {
            Ok(client) => client,
            Err(failed) => panic!("{name}: {failed}"),
        };
        let timeout = Micros::from_secs(60);
        let clerks =
            (0..nodes).map(|node| cluster.world.add_client(vec![node], true, timeout)).collect();
        let random = Random::new(seed);
        Scenario { cluster, name: name.to_owned(), clerks, anyone, random }
    }

    /// The network loses, delays and doubles messages from now on.
    pub fn unreliable(&mut self) {
        self.set_network(NetworkOptions {
            lost: 1_000,
            doubled: 500,
            held: 1_000,
            held_max: Micros::from_millis(30),
            ..NetworkOptions::calm()
        });
    }

    /// Messages are lost and delayed no more.
    pub fn reliable(&mut self) {
        self.set_network(NetworkOptions::calm());
    }

    /// Messages fare like this from now on.
    pub fn set_network(&mut self, options: NetworkOptions) {
        self.cluster.world.network.set_options(options);
    }

    /// Chance, for stories that need it.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Lets time pass.
    pub fn wait(&mut self, millis: u64) {
        let result = self.cluster.run_for(Micros::from_millis(millis));
        self.check(result);
    }

    /// Lets so little time pass.
    pub fn wait_micros(&mut self, span: Micros) {
        let result = self.cluster.run_for(span);
        self.check(result);
    }

    /// Cuts all links between different blocks.
    pub fn partition(&mut self, blocks: &[&[usize]]) {
        let nodes = self.cluster.world.nodes();
        let blocks: Vec<Vec<usize>> = blocks.iter().map(|block| block.to_vec()).collect();
        self.cluster.world.network.partition(nodes, &blocks);
    }

    /// Leaves only the links of one node.
    pub fn only_hub(&mut self, hub: usize) {
        let nodes = self.cluster.world.nodes();
        let network = &mut self.cluster.world.network;
        network.partition(nodes, &[]);
        for other in (0..nodes).filter(|other| *other != hub) {
            network.mend(Place::Node(hub), Place::Node(other));
            network.mend(Place::Node(other), Place::Node(hub));
        }
    }

    /// Mends all links.
    pub fn heal(&mut self) {
        self.cluster.world.network.heal();
    }

    /// Nothing reaches these nodes, and nothing of theirs reaches anybody, clients included.
    pub fn isolate(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.cluster.world.network.isolate(Place::Node(*node), true);
        }
    }

    /// A node does nothing for so long; what arrives meanwhile waits.
    pub fn pause(&mut self, node: usize, millis: u64) {
        self.cluster.world.pause(node, Micros::from_millis(millis));
    }

    /// Kills a node's process.
    pub fn kill(&mut self, node: usize) {
        self.crash(node, Crash::Kill);
    }

    /// Kills the processes of these nodes.
    pub fn kill_all(&mut self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.kill(*node));
    }

    /// All machines lose power at one instant.
    pub fn power_off(&mut self) {
        (0..self.cluster.world.nodes()).for_each(|node| self.crash(node, Crash::Power));
    }

    fn crash(&mut self, node: usize, crash: Crash) {
        // What it knew last is not to be missed.
        let seen = self.cluster.observe(node);
        self.check(seen);
        self.cluster.world.crash(node, crash);
    }

    /// Damages the records of a node's log that `wanted` picks; tells how many. The node is down,
    /// or finds out by itself.
    pub fn rot(&mut self, node: usize, wanted: impl Fn(&LogRecord) -> bool) -> usize {
        let options = self.cluster.world.wal_options(node);
        let disk = self.cluster.world.disk(node);
        let mut records = rot::records(disk, options);
        records.retain(wanted);
        for record in &records {
            // The content only: its name stands.
            let last = record.read.offset + 32 + record.identity.len() as u64;
            disk.flip(&record.read.file, last, 0x10);
        }
        records.len()
    }

    /// A node's disk has no room for more from now on, or has room again.
    pub fn fill(&mut self, node: usize, full: bool) {
        let disk = self.cluster.world.disk(node);
        let most = full.then(|| disk.bytes());
        disk.set_bytes_max(most);
    }

    /// A copy of what a node's disks durably hold.
    pub fn image(&self, node: usize) -> Image {
        self.cluster.world.image(node)
    }

    /// Puts back what a node's disks once held; the node is down.
    pub fn restore(&mut self, node: usize, image: Image) {
        self.cluster.exchanged(node);
        self.cluster.world.restore(node, image);
    }

    /// The disk of a node.
    pub fn disk_id(&self, node: usize) -> DiskId {
        self.cluster.world.disk_id(node)
    }

    /// Kills a node, and takes its disks away.
    pub fn lose(&mut self, node: usize) {
        self.kill(node);
        self.cluster.world.wipe(node);
    }

    /// The store of a node, to be changed behind its back: it may differ from the others then.
    pub fn store(&mut self, node: usize) -> &MemoryEngine {
        self.cluster.checker.hurt.insert(node);
        self.cluster.checker.deviant = Some(node);
        self.cluster.world.store(node)
    }

    /// Makes the record of a node's store unreadable whose key ends like this.
    pub fn damage_record(&mut self, node: usize, end: &[u8]) {
        self.cluster.checker.hurt.insert(node);
        let store = self.cluster.world.store(node);
        let place = store.place(end);
        match place {
            Some(place) => drop(store.damage(place)),
            None => self.fail("there is no such record"),
        }
    }

    /// Makes every record of a node's store unreadable.
    pub fn spoil_store(&mut self, node: usize) {
        self.cluster.checker.hurt.insert(node);
        self.cluster.world.spoil_store(node);
    }

    /// The node itself, which must be up.
    pub fn node(&self, node: usize) -> &Node {
        match self.cluster.world.guest(node) {
            Some(guest) => guest,
            None => self.fail(&format!("node {node} is down")),
        }
    }

    /// From now on nodes give copies of their states; all are started anew.
    pub fn serve_copies(&mut self) {
        let nodes: Vec<usize> = (0..self.cluster.world.nodes()).collect();
        self.kill_all(&nodes);
        self.cluster.world.settings_mut().snapshot_bytes_per_second = 32 << 20;
        self.restart_all();
    }

    /// The newest lines of the nodes' logs.
    pub fn log(&self) -> Vec<String> {
        self.cluster.world.log().cloned().collect()
    }

    /// Starts a node again.
    pub fn restart(&mut self, node: usize) {
        self.cluster.world.start(node);
    }

    /// Starts every node that is down.
    pub fn restart_all(&mut self) {
        for node in 0..self.cluster.world.nodes() {
            if !self.cluster.world.is_up(node) {
                self.cluster.world.start(node);
            }
        }
    }

    /// Starts these nodes again.
    pub fn restart_nodes(&mut self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.restart(*node));
    }

    /// All replicas come to the same state.
    pub fn converges(&mut self) {
        let result = self.cluster.converge(Micros::from_secs(10));
        self.check(result);
    }

    /// A further client that talks to these nodes.
    pub fn client(&mut self, nodes: Vec<usize>) -> usize {
        self.cluster.world.add_client(nodes, false, Micros::from_secs(60))
    }

    /// A client of [`Scenario::client`] begins to call.
    pub fn begin_as(&mut self, client: usize, op: KvOp) -> Begun {
        let call = self.cluster.world.call(client, router::Body::Kv(op), None);
        Begun { client, call }
    }

    /// Begins to call.
    pub fn begin(&mut self, via: impl Into<Via>, op: KvOp) -> Begun {
        let client = match via.into() {
            Via::Node(node) => self.clerks[node],
            Via::Any => self.anyone,
        };
        self.begin_as(client, op)
    }

    /// The call ends within this time, with an answer.
    pub fn finishes(&mut self, begun: Begun, millis: u64) -> Answer {
        let span = Micros::from_millis(millis);
        let result = self.cluster.wait(begun.client, begun.call, span);
        match self.check(result) {
            Some(result) => self.answer(result),
            None => self.fail(&format!("a call does not finish within {millis} ms")),
        }
    }

    /// What the call was answered, if it has ended.
    pub fn ended(&mut self, begun: Begun) -> Option<Answer> {
        let result = self.cluster.ended(begun.client, begun.call)?;
        Some(self.answer(result))
    }

    /// Answers of a node to a client are lost from now on, or reach it again.
    pub fn mute(&mut self, node: usize, client: usize, muted: bool) {
        let (node, client) = (Place::Node(node), Place::Client(client));
        let network = &mut self.cluster.world.network;
        if muted { network.cut(node, client) } else { network.mend(node, client) }
    }

    /// The call is still open when this time has passed.
    pub fn does_not_finish(&mut self, begun: Begun, millis: u64) {
        let span = Micros::from_millis(millis);
        let result = self.cluster.wait(begun.client, begun.call, span);
        if let Some(result) = self.check(result) {
            self.fail(&format!("a call ends that must not: {result:?}"));
        }
    }

    /// Calls and waits; the call may be refused.
    pub fn tries(&mut self, via: impl Into<Via>, op: KvOp) -> Result<Answer, String> {
        let begun = self.begin(via, op);
        let result = self.cluster.wait(begun.client, begun.call, Micros::from_secs(20));
        match self.check(result) {
            Some(Ok(Reply { body, .. })) => body.map_err(|error| error.to_string()),
            Some(Err(error)) => Err(error.to_string()),
            None => self.fail("a call does not finish within 20 s"),
        }
    }

    /// Calls and waits.
    pub fn call(&mut self, via: impl Into<Via>, op: KvOp) -> Answer {
        let begun = self.begin(via, op);
        self.finishes(begun, 20_000)
    }

    /// Sets a value.
    pub fn put(&mut self, via: impl Into<Via>, key: &str, value: &str) {
        let answer = self.call(via, put(key, value));
        self.same(&answer, &Answer::Done);
    }

    /// Sets a value to its hash; the previous value is this one, or none.
    pub fn put_hash(
        &mut self,
        via: impl Into<Via>,
        key: &str,
        value: &str,
        previous: Option<&str>,
    ) {
        let (key, value) = (text(key), text(value));
        let answer = self.call(via, KvOp::PutHash { key, value, hash: HashKind::Fnv1a32 });
        self.same(&answer, &Answer::Value(previous.map(text)));
    }

    /// Appends to a value.
    pub fn append(&mut self, via: impl Into<Via>, key: &str, value: &str) {
        let answer = self.call(via, append(key, value));
        if !matches!(answer, Answer::Appended(_)) {
            self.fail(&format!("append is answered {answer:?}"));
        }
    }

    /// A read shows this value.
    pub fn reads(&mut self, via: impl Into<Via>, key: &str, value: &str) {
        let answer = self.call(via, get(key));
        self.same(&answer, &Answer::Value(Some(text(value))));
    }

    /// The value that a read shows.
    pub fn value(&mut self, via: impl Into<Via>, key: &str) -> Bytes {
        let answer = self.call(via, get(key));
        let Answer::Value(value) = answer else {
            self.fail(&format!("get is answered {answer:?}"));
        };
        value.unwrap_or_default()
    }

    /// These two are the same.
    pub fn same(&self, found: &Answer, expected: &Answer) {
        if found != expected {
            self.fail(&format!("{found:?} is answered, and it must be {expected:?}"));
        }
    }

    fn answer(&self, result: Result<Reply, CallError>) -> Answer {
        match result {
            Ok(reply) => match reply.body {
                Ok(answer) => answer,
                Err(error) => self.fail(&error.to_string()),
            },
            Err(error) => self.fail(&error.to_string()),
        }
    }

    pub(crate) fn check<T>(&self, result: Result<T, Failed>) -> T {
        match result {
            Ok(value) => value,
            Err(failed) => panic!("{}: {failed}", self.name),
        }
    }

    pub(crate) fn fail(&self, what: &str) -> ! {
        panic!("{}: {}", self.name, self.cluster.failed(what))
    }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A Get.
pub fn get(key: &str) -> KvOp {
    KvOp::Get { key: text(key) }
}

/// A Put.
pub fn put(key: &str, value: &str) -> KvOp {
    KvOp::Put { key: text(key), value: text(value) }
}

/// An Append.
pub fn append(key: &str, value: &str) -> KvOp {
    KvOp::Append { key: text(key), value: text(value) }
}
