//! A few nodes on disks and stores in memory, a network that delivers in the next step, and a clock
//! that goes on by 5 ms a step. Everything that can be held up can be held up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::limits::FRAME_BYTES_MAX;
use base::{Address, BootId, DiskId, GroupId, Micros, NodeId, Now, Random, WallMillis};
use bytes::Bytes;
use node::{Node, Options};
use replica_group::turn::{self, Frame, Input, Machine, Token};
use router::{
    Answer, Body, ClusterOp, ErrorReply, Header, KvOp, MasterOp, NewGroup, Reply, Request,
};
use storage::{Disk, Engine, MemoryDisk, MemoryEngine, WalCommand, WalOptions, WalRead};

pub(crate) const SEGMENT: u64 = 64 << 10;
const STEP: Micros = Micros::from_millis(5);

/// A node's process, and what outlives it.
pub(crate) struct Host {
    pub(crate) node: Option<Node>,
    pub(crate) disk: MemoryDisk,
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) address: Address,
    pub(crate) stopped: bool,
    /// Added to the wall clock, in milliseconds.
    pub(crate) wall_ahead: u64,
    /// Commands for the log wait, and reads of old records.
    pub(crate) log_hangs: bool,
    pub(crate) reads_hang: bool,
    pub(crate) reads_fail: bool,
    pub(crate) reads: Vec<WalRead>,
    commands: Vec<WalCommand>,
    pub(crate) starts: u64,
}

pub(crate) struct World {
    pub(crate) hosts: Vec<Host>,
    pub(crate) now: Micros,
    /// Neither sends nor hears.
    pub(crate) cut: BTreeSet<usize>,
    /// Its process stands still; what is sent to it waits.
    pub(crate) paused: BTreeSet<usize>,
    /// By its clock whatever may leave for a time only is too late.
    pub(crate) late: BTreeSet<usize>,
    pub(crate) wal_bytes_max: u64,
    pub(crate) tail_bytes_max: usize,
    pub(crate) events: Vec<String>,
    /// Bytes of frames that each has sent.
    pub(crate) sent: Vec<usize>,
    frames: Vec<(usize, Frame)>,
    replies: BTreeMap<(usize, u64), Reply>,
    limits: BTreeMap<(usize, u64), Micros>,
    token: u64,
}

impl World {
    /// Nodes 1 to `count`, all masters, not started yet.
    pub(crate) fn new(count: usize) -> World {
        let host = |i: usize| Host {
            node: None,
            disk: MemoryDisk::new(),
            engine: Arc::new(MemoryEngine::new()),
            address: Address::new(&format!("node{}", i + 1)),
            stopped: false,
            wall_ahead: 0,
            log_hangs: false,
            reads_hang: false,
            reads_fail: false,
            reads: Vec::new(),
            commands: Vec::new(),
            starts: 0,
        };
        World {
            hosts: (0..count).map(host).collect(),
            now: Micros::from_secs(100),
            cut: BTreeSet::new(),
            paused: BTreeSet::new(),
            late: BTreeSet::new(),
            wal_bytes_max: 64 * SEGMENT,
            tail_bytes_max: 16 << 20,
            events: Vec::new(),
            sent: vec![0; count],
            frames: Vec::new(),
            replies: BTreeMap::new(),
            limits: BTreeMap::new(),
            token: 0,
        }
    }

    /// All nodes in one cluster of 4 shards, and one group on all of them that has the shards.
    pub(crate) fn cluster(count: usize) -> World {
        let mut world = World::new(count);
        world.found();
        world
    }

    pub(crate) fn found(&mut self) {
        (0..self.hosts.len()).for_each(|i| self.start(i));
        let init = self.init();
        self.call(0, init).body.unwrap();
        let nodes: Vec<NodeId> = (1..=self.hosts.len() as u64).map(NodeId).collect();
        let groups = vec![NewGroup { group: GroupId(1), nodes }];
        self.until(5, |world| {
            world.hosts.iter().all(|host| host.node().status().routes_version > 0)
        });
        let join = Body::Master(MasterOp::Join { groups });
        self.call(0, request(join)).body.unwrap();
        self.run(Micros::from_secs(2));
        for i in 0..self.hosts.len() {
            self.put(i, "first", 10).unwrap();
        }
    }

    pub(crate) fn init(&self) -> Request {
        let masters = self.hosts.iter().map(|host| host.address.clone()).collect();
        request(Body::Cluster(ClusterOp::Init { masters, shards: 4 }))
    }

    fn clock(&self, i: usize) -> Now {
        let wall = 1_700_000_000_000 + self.now.0 / 1_000;
        let ahead = self.hosts[i].wall_ahead;
        Now { mono: self.now, wall: WallMillis(wall.wrapping_add(ahead)) }
    }

    pub(crate) fn start(&mut self, i: usize) {
        let now = self.clock(i);
        let masters = self.hosts.iter().map(|host| host.address.clone()).collect();
        let host = &mut self.hosts[i];
        host.starts += 1;
        host.stopped = false;
        let disk = DiskId(100 + i as u128);
        let mut wal = WalOptions::new(disk);
        wal.segment_bytes = SEGMENT;
        wal.bytes_max = self.wal_bytes_max;
        let boot = BootId((i as u128) << 32 | u128::from(host.starts));
        let address = host.address.clone();
        let options = Options {
            node: NodeId(i as u64 + 1),
            masters,
            seed: 7 * i as u64 + host.starts,
            tail_bytes_max: self.tail_bytes_max,
            ..Options::new(disk, boot, host.starts, address.clone(), address, wal)
        };
        let engine: Arc<dyn Engine> = host.engine.clone();
        host.node = Some(Node::open(options, &mut host.disk, engine, now).unwrap());
    }

    /// The loss of power.
    pub(crate) fn crash(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        host.node = None;
        host.commands.clear();
        host.reads.clear();
        host.disk.crash(&mut Random::new(self.now.0), false);
    }

    /// The loss of all that a node had on its disk.
    pub(crate) fn lose(&mut self, i: usize) {
        self.crash(i);
        let host = &mut self.hosts[i];
        host.disk = MemoryDisk::new();
        host.engine = Arc::new(MemoryEngine::new());
    }

    pub(crate) fn give(&mut self, i: usize, input: Input<Request>) {
        let now = self.clock(i);
        if let Some(node) = &mut self.hosts[i].node {
            node.handle(now, input);
        }
    }

    /// Asks; the token names the reply.
    pub(crate) fn ask(&mut self, i: usize, request: Request) -> u64 {
        self.token += 1;
        let token = self.token;
        self.give(i, Input::Request { token: Token(token), request });
        token
    }

    /// Frames that are on their way from one node to another.
    pub(crate) fn passing(&mut self, from: usize, to: usize) -> Vec<Bytes> {
        for _ in 0..100 {
            let to = self.hosts[to].address.clone();
            let there = |(sender, frame): &&(usize, Frame)| *sender == from && frame.to == to;
            let found: Vec<Bytes> =
                self.frames.iter().filter(there).map(|(_, frame)| frame.bytes.clone()).collect();
            if !found.is_empty() {
                return found;
            }
            self.step();
        }
        Vec::new()
    }

    /// Frames that come to a node with the next step.
    pub(crate) fn coming(&self, to: usize) -> Vec<Bytes> {
        let to = &self.hosts[to].address;
        let there = self.frames.iter().filter(|(_, frame)| frame.to == *to);
        there.map(|(_, frame)| frame.bytes.clone()).collect()
    }

    /// When an answer may no longer leave.
    pub(crate) fn limit(&self, i: usize, token: u64) -> Option<Micros> {
        self.limits.get(&(i, token)).copied()
    }

    pub(crate) fn is_answered(&self, i: usize, token: u64) -> bool {
        self.replies.contains_key(&(i, token))
    }

    pub(crate) fn reply(&mut self, i: usize, token: u64) -> Option<Reply> {
        self.replies.remove(&(i, token))
    }

    pub(crate) fn call(&mut self, i: usize, request: Request) -> Reply {
        let token = self.ask(i, request);
        for _ in 0..20_000 {
            self.step();
            if let Some(reply) = self.reply(i, token) {
                return reply;
            }
        }
        panic!("no reply: a request is stuck");
    }

    /// Puts so many bytes.
    pub(crate) fn put(&mut self, i: usize, key: &str, bytes: usize) -> Result<Answer, ErrorReply> {
        self.call(i, put(key, bytes)).body
    }

    pub(crate) fn run(&mut self, span: Micros) {
        let end = self.now + span;
        while self.now < end {
            self.step();
        }
    }

    /// Goes on for at most so many seconds until it is so.
    pub(crate) fn until(&mut self, secs: u64, mut so: impl FnMut(&World) -> bool) {
        let end = self.now + Micros::from_secs(secs);
        while !so(self) {
            assert!(self.now < end, "after {secs} s it is not so; logged: {:#?}", self.events);
            self.step();
        }
    }

    pub(crate) fn step(&mut self) {
        self.now = self.now + STEP;
        for (from, frame) in std::mem::take(&mut self.frames) {
            let to = self.hosts.iter().position(|host| host.address == frame.to);
            let Some(to) = to else { continue };
            if self.paused.contains(&to) && !self.cut.contains(&to) {
                self.frames.push((from, frame));
                continue;
            }
            if from == to || !self.cut.contains(&from) && !self.cut.contains(&to) {
                self.give(to, Input::Frame(frame.bytes));
            }
        }
        for i in (0..self.hosts.len()).filter(|i| !self.paused.contains(i)).collect::<Vec<_>>() {
            self.finish_commands(i);
            self.give(i, Input::Tick);
            self.take(i);
        }
    }

    /// What the last step gave the log becomes durable in this one.
    fn finish_commands(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        if host.log_hangs {
            return;
        }
        let (background, foreground): (Vec<_>, Vec<_>) =
            std::mem::take(&mut host.commands).into_iter().partition(WalCommand::is_background);
        if let Some(ticket) = storage::execute(&mut host.disk, &foreground).unwrap() {
            self.give(i, Input::WalDone(ticket));
        }
        if let Some(ticket) = storage::execute(&mut self.hosts[i].disk, &background).unwrap() {
            self.give(i, Input::WalPrepared(ticket));
        }
        if !self.hosts[i].reads_hang {
            self.finish_reads(i);
        }
    }

    pub(crate) fn finish_reads(&mut self, i: usize) {
        for read in std::mem::take(&mut self.hosts[i].reads) {
            let disk = &mut self.hosts[i].disk;
            let mut bytes: Result<Bytes, String> =
                disk.read(&read.file, read.offset, read.len).map_err(|error| error.to_string());
            if self.hosts[i].reads_fail {
                bytes = Err("input/output error".to_owned());
            }
            self.give(i, Input::WalRead { read, bytes });
        }
    }

    fn take(&mut self, i: usize) {
        let Some(node) = &mut self.hosts[i].node else { return };
        let output = node.take_output();
        let named = |event: &turn::Event| format!("node {}: {}", i + 1, event.text);
        self.events.extend(output.events.iter().map(named));
        assert_eq!(output.fatal, None, "node {} ended", i + 1);
        for frame in &output.frames {
            assert!(frame.bytes.len() <= FRAME_BYTES_MAX, "{} bytes", frame.bytes.len());
            self.sent[i] += frame.bytes.len();
        }
        let host = &mut self.hosts[i];
        host.stopped |= output.stopped;
        host.commands.extend(output.wal);
        host.reads.extend(output.wal_reads);
        let late = self.late.contains(&i);
        for mut frame in output.frames {
            if let Some(leased) = frame.leased.take_if(|_| late) {
                frame.bytes = leased.instead;
            }
            self.frames.push((i, frame));
        }
        for reply in output.replies {
            let key = (i, reply.token.0);
            self.limits.extend(reply.not_after.map(|limit| (key, limit)));
            let before = self.replies.insert(key, reply.reply);
            assert_eq!(before, None, "answered twice");
        }
        for check in output.checks {
            // Nothing rots here: what is read to look for damage is never answered.
            if matches!(check, turn::Check::View { .. }) {
                let host = &mut self.hosts[i];
                let result = turn::check(&mut host.disk, &*host.engine, &check);
                self.give(i, Input::Checked { check, result });
            }
        }
        if let Some(flush) = output.flush {
            self.hosts[i].engine.write(&flush.batch).unwrap();
            self.give(i, Input::Flushed(flush.id));
        }
    }

    /// The node that leads a group.
    pub(crate) fn leader(&self, group: u64) -> Option<usize> {
        let leads = |host: &Host| {
            let paxos = host.node.as_ref().and_then(|node| node.paxos_of(GroupId(group)));
            paxos.is_some_and(|paxos| paxos.is_leading())
        };
        self.hosts.iter().position(leads)
    }
}

impl Host {
    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }
}

pub(crate) fn request(body: Body) -> Request {
    Request { header: Header::default(), body }
}

pub(crate) fn put(key: &str, bytes: usize) -> Request {
    let key = Bytes::copy_from_slice(key.as_bytes());
    request(Body::Kv(KvOp::Put { key, value: Bytes::from(vec![b'v'; bytes]) }))
}

pub(crate) fn get(key: &str) -> Request {
    request(Body::Kv(KvOp::Get { key: Bytes::copy_from_slice(key.as_bytes()) }))
}
