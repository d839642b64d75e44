//! Where stories about nodes begin: nodes in different situations, each made by giving it again
//! what it was given in a small cluster that really ran. And what came to them next there, which is
//! what inputs are made from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use base::{Address, BootId, DiskId, GroupId, Micros, NodeId, Now, Random, WallMillis};
use bytes::Bytes;
use node::Options;
use replica_group::turn::Frame;
use router::{Body, ClusterOp, KvOp, MasterOp, NewGroup, Reply, Request, ShardMove};
use storage::{MemoryDisk, MemoryEngine, WalOptions};

use crate::host::{Given, Host};

/// Bytes of a frame before its first message.
pub(crate) const HEADER_BYTES: usize = 42;
/// How much time passes in a step.
pub(crate) const STEP: Micros = Micros::from_millis(5);
const NODES: usize = 3;

/// What comes to a node in each step.
type Steps = Vec<Vec<Given>>;

/// A node in some situation.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) options: Options,
    pub(crate) disk: MemoryDisk,
    pub(crate) engine: MemoryEngine,
    pub(crate) start: Micros,
    /// Leads there.
    before: Steps,
    /// What came next.
    pub(crate) after: Steps,
    /// The headers of other nodes' frames.
    pub(crate) headers: Vec<Bytes>,
}

impl Stage {
    /// The node, and the time there.
    pub(crate) fn enter(&self) -> (Host, Micros) {
        let (disk, engine) = (self.disk.clone(), self.engine.copy());
        let mut time = self.start;
        let mut host = Host::open(self.options.clone(), disk, engine, clock(time))
            .unwrap_or_else(|error| panic!("the stage {} cannot be entered: {error}", self.name));
        for given in &self.before {
            time = time + STEP;
            host.step(clock(time), given);
        }
        (host, time)
    }
}

/// What a node's clocks show.
pub(crate) fn clock(mono: Micros) -> Now {
    Now { mono, wall: WallMillis(1_700_000_000_000 + mono.0 / 1_000) }
}

/// The stages, made once.
pub(crate) fn all() -> &'static [Stage] {
    static ALL: OnceLock<Vec<Stage>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut stages = vec![blank()];
        stages.extend(started());
        stages.push(copying());
        stages
    })
}

/// A node without a cluster.
fn blank() -> Stage {
    let mut world = World::new();
    (0..NODES).for_each(|node| world.start(node));
    world.run(10);
    world.cut();
    world.found();
    world.stage(1, "blank")
}

/// Nodes that were started again: the one that leads group 1 then, and another one. Meanwhile
/// group 2 joins, shards move, and it leaves again.
fn started() -> Vec<Stage> {
    let mut world = World::new();
    (0..NODES).for_each(|node| world.start(node));
    world.found();
    world.fill(12);
    world.run(300);
    (0..NODES).for_each(|node| world.crash(node));
    (0..NODES).for_each(|node| world.start(node));
    world.run(140);
    world.cut();
    let leader = world.leader(1).expect("group 1 has a leader 0.7 s after the start");
    world.fill(3);
    world.join(2);
    world.run(200);
    let moves = vec![ShardMove { shards: vec![base::ShardId(0)], group: GroupId(1) }];
    world.call(0, Body::Master(MasterOp::Move { moves }));
    world.run(100);
    world.call(1, Body::Master(MasterOp::Leave { groups: vec![GroupId(2)] }));
    world.run(200);
    vec![world.stage(leader, "leads"), world.stage((leader + 1) % NODES, "follows")]
}

/// A node that lost its disk and begins to copy its group's state from another.
fn copying() -> Stage {
    let mut world = World::new();
    (0..NODES).for_each(|node| world.start(node));
    world.found();
    world.fill(40);
    world.run(1_000);
    world.crash(2);
    world.blank_disk(2);
    world.start(2);
    for _ in 0..8_000 {
        world.run(1);
        if world.host(2).node.copy_stage(GroupId(1)).is_some() {
            break;
        }
    }
    assert!(world.host(2).node.copy_stage(GroupId(1)).is_some(), "no copy begins");
    world.crash(2);
    world.start(2);
    world.run(40);
    world.cut();
    world.run(200);
    world.fill(2);
    world.stage(2, "copies")
}

/// What a node had at its last start, and what came since.
struct Start {
    options: Options,
    disk: MemoryDisk,
    engine: MemoryEngine,
    time: Micros,
    given: Steps,
}

struct World {
    hosts: Vec<Option<Host>>,
    /// Where a node that is down has its things.
    disks: Vec<(DiskId, MemoryDisk, MemoryEngine)>,
    starts: Vec<u64>,
    started: Vec<Option<Start>>,
    /// For each node, how many steps it had taken since its start when the stage was set.
    cuts: Vec<usize>,
    frames: Vec<Frame>,
    requests: Vec<(usize, u64, Request)>,
    replies: BTreeMap<u64, Reply>,
    time: Micros,
    token: u64,
}

fn address(node: usize) -> Address {
    Address::new(&format!("127.0.0.1:{}", 7_301 + node))
}

impl World {
    fn new() -> World {
        let fresh = |node| (DiskId(100 + node), MemoryDisk::new(), MemoryEngine::new());
        World {
            hosts: (0..NODES).map(|_| None).collect(),
            disks: (0..NODES as u128).map(fresh).collect(),
            starts: vec![0; NODES],
            started: (0..NODES).map(|_| None).collect(),
            cuts: vec![0; NODES],
            frames: Vec::new(),
            requests: Vec::new(),
            replies: BTreeMap::new(),
            time: Micros::from_secs(100),
            token: 0,
        }
    }

    fn host(&self, node: usize) -> &Host {
        self.hosts[node].as_ref().expect("the node is up")
    }

    fn start(&mut self, node: usize) {
        self.starts[node] += 1;
        let starts = self.starts[node];
        let (disk_id, disk, engine) = &self.disks[node];
        let (disk_id, disk, engine) = (*disk_id, disk.clone(), engine.copy());
        let mut wal = WalOptions::new(disk_id);
        (wal.segment_bytes, wal.bytes_max) = (16 << 10, 64 * (16 << 10));
        let boot = BootId((node as u128) << 32 | u128::from(starts));
        let options = Options {
            node: NodeId(node as u64 + 1),
            masters: (0..NODES).map(address).collect(),
            seed: 7 * node as u64 + starts,
            tail_bytes_max: 4 << 10,
            log_bytes_max: 2 << 10,
            log_tail_bytes: 1 << 10,
            log_tail_age: Micros::from_millis(200),
            snapshot_part_bytes: 256,
            handoff_part_bytes: 128,
            handoff_left_bytes: 128,
            ..Options::new(disk_id, boot, starts, address(node), address(node), wal)
        };
        let host = Host::open(options.clone(), disk.clone(), engine.copy(), clock(self.time));
        self.hosts[node] = Some(host.expect("a node of the stage starts"));
        let time = self.time;
        self.started[node] = Some(Start { options, disk, engine, time, given: Vec::new() });
    }

    fn crash(&mut self, node: usize) {
        let mut host = self.hosts[node].take().expect("the node is up");
        host.disk.crash(&mut Random::new(self.time.0), false);
        self.disks[node] = (self.disks[node].0, host.disk, host.engine.copy());
    }

    fn blank_disk(&mut self, node: usize) {
        let id = DiskId(self.disks[node].0.0 + 100);
        self.disks[node] = (id, MemoryDisk::new(), MemoryEngine::new());
    }

    fn cut(&mut self) {
        for (cut, start) in self.cuts.iter_mut().zip(&self.started) {
            *cut = start.as_ref().map_or(0, |start| start.given.len());
        }
    }

    fn step(&mut self) {
        self.time = self.time + STEP;
        let now = clock(self.time);
        let frames = std::mem::take(&mut self.frames);
        let requests = std::mem::take(&mut self.requests);
        for node in 0..NODES {
            let Some(host) = &mut self.hosts[node] else { continue };
            let here = frames.iter().filter(|frame| frame.to == address(node));
            let mut given: Vec<Given> =
                here.map(|frame| Given::Frame(frame.bytes.clone())).collect();
            let asked = requests.iter().filter(|(at, ..)| *at == node);
            given.extend(
                asked.map(|(_, token, request)| Given::Request(*token, Box::new(request.clone()))),
            );
            let taken = host.step(now, &given);
            assert_eq!(host.fatal, None, "a node of the stage ends");
            self.frames.extend(taken.frames);
            self.replies.extend(taken.replies);
            if let Some(start) = &mut self.started[node] {
                start.given.push(given);
            }
        }
    }

    fn run(&mut self, steps: u64) {
        (0..steps).for_each(|_| self.step());
    }

    fn call(&mut self, node: usize, body: Body) -> Reply {
        self.token += 1;
        let token = self.token;
        let request = Request { header: router::Header::default(), body };
        self.requests.push((node, token, request));
        for _ in 0..20_000 {
            self.step();
            if let Some(reply) = self.replies.remove(&token) {
                return reply;
            }
        }
        panic!("a request to the stage is stuck");
    }

    fn found(&mut self) {
        let masters = (0..NODES).map(address).collect();
        self.call(0, Body::Cluster(ClusterOp::Init { masters, shards: 4 }));
        self.run(100);
        self.join(1);
        self.run(200);
        self.fill(1);
    }

    fn join(&mut self, group: u64) {
        let nodes = (1..=NODES as u64).map(NodeId).collect();
        let groups = vec![NewGroup { group: GroupId(group), nodes }];
        let reply = self.call(0, Body::Master(MasterOp::Join { groups }));
        assert!(reply.body.is_ok(), "{:?}", reply.body);
    }

    fn fill(&mut self, keys: usize) {
        for key in 0..keys {
            let key = Bytes::from(format!("key{key}"));
            let value = Bytes::from(vec![b'v'; 40]);
            let reply = self.call(key.len() % NODES, Body::Kv(KvOp::Put { key, value }));
            assert!(reply.body.is_ok(), "{:?}", reply.body);
        }
    }

    fn leader(&self, group: u64) -> Option<usize> {
        (0..NODES).find(|node| {
            let paxos = self.host(*node).node.paxos_of(GroupId(group));
            paxos.is_some_and(paxos::Paxos::is_leading)
        })
    }

    fn stage(&mut self, node: usize, name: &'static str) -> Stage {
        let Start { options, disk, engine, time, mut given } =
            self.started[node].take().expect("it was started");
        let mut headers = BTreeSet::new();
        for given in given.iter().flatten() {
            if let Given::Frame(frame) = given {
                headers.insert(frame.slice(..HEADER_BYTES));
            }
        }
        let after = given.split_off(self.cuts[node]);
        let headers = headers.into_iter().collect();
        Stage { name, options, disk, engine, start: time, before: given, after, headers }
    }
}
