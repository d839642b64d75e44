//! The inputs that are kept, made from what really happens: small clusters are run, and what their
//! nodes say, write and answer is taken apart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use base::{GroupId, Micros, Slot, codec};
use bytes::{Buf, Bytes};
use client::convert::{AddressBook, reply_to_proto, request_from_proto, request_to_proto};
use paxos::{Message, Value};
use prost::Message as _;
use replica_group::state_machine::{PREFIX_BYTES, owner};
use router::{
    Body, ClusterOp, Consistency, Expected, HashKind, Header, KvOp, MasterOp, NewGroup, Request,
    Session, ShardMove,
};
use storage::{Engine, MemoryDisk, Recovered, ScanLimit, Wal, execute};

use crate::frame::NodeMessage;
use crate::host::Given;
use crate::items::{self, Item};
use crate::stage::{self, HEADER_BYTES, STEP, Stage};
use crate::targets::{disk, engine, node, open, paxos::Core, store};

/// An input: the target, its name, its bytes.
pub type Kept = (&'static str, String, Vec<u8>);

/// Longest input that is kept, about.
const KEPT_BYTES_MAX: usize = 6 << 10;

/// Where the inputs of a target lie.
pub fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Makes all of them.
pub fn made() -> Vec<Kept> {
    let mut kept = Vec::new();
    let mut commands: BTreeMap<(GroupId, usize, Slot), Bytes> = BTreeMap::new();
    let mut messages = BTreeMap::new();
    for (number, stage) in stage::all().iter().enumerate() {
        kept.extend(stories(number, stage));
        kept.push(("frame", stage.name.to_owned(), frame(stage)));
        for message in heard(stage) {
            let NodeMessage::Paxos { group, message, .. } = message else { continue };
            if let Message::Accept(accept) = &message {
                for (slot, value) in (accept.first.0..).map(Slot).zip(&accept.values) {
                    if let Value::Command(command) = value {
                        commands.insert((group, number, slot), command.payload.clone());
                    }
                }
            }
            let bytes = codec::encode(&message);
            messages.entry(kind(&bytes)).or_insert(bytes);
        }
        kept.extend(states(stage));
    }
    for (kind, bytes) in messages {
        kept.push(("message", format!("kind{kind}"), bytes.to_vec()));
    }
    for (target, group) in [("master", 0), ("kv", 1), ("kv", 2)] {
        let log = commands.iter().filter(|((of, ..), _)| of.0 == group);
        let mut story: Vec<Item> = log.map(|(_, payload)| Item::new(0, payload)).collect();
        shorten(&mut story);
        story.push(Item::new(6, &[0; 8]));
        story.push(Item::new(if target == "kv" { 4 } else { 7 }, &[]));
        kept.push((target, format!("group{group}"), items::join(&story)));
    }
    kept.extend(cores());
    let mut image = image();
    kept.push(("disk", "log".to_owned(), items::join(&image)));
    image.push(Item::new(disk::RESEAL, &[255]));
    kept.push(("disk", "sealed".to_owned(), items::join(&image)));
    kept.push(("engine", "store".to_owned(), items::join(&tables())));
    kept.push(("transport", "stream".to_owned(), stream()));
    kept.extend(asked_and_answered());
    kept
}

/// Leaves the first items, as many as fit.
fn shorten(story: &mut Vec<Item>) {
    let mut bytes = 0;
    let fits = story.iter().take_while(|item| {
        bytes += 3 + item.bytes.len();
        bytes <= KEPT_BYTES_MAX
    });
    let fits = fits.count();
    story.truncate(fits);
}

/// The messages of a frame, as they are.
fn messages(frame: &Bytes) -> Vec<Bytes> {
    let mut rest = frame.slice(HEADER_BYTES..);
    let mut found = Vec::new();
    while rest.len() > 4 {
        let len = rest.get_u32() as usize;
        found.push(rest.split_to(len));
    }
    found
}

/// All that a node of a stage was told.
fn heard(stage: &Stage) -> Vec<NodeMessage> {
    let mut found = Vec::new();
    for given in stage.after.iter().flatten() {
        if let Given::Frame(frame) = given {
            found.extend(messages(frame).iter().filter_map(|bytes| codec::decode(bytes).ok()));
        }
    }
    found
}

/// The number of a message's kind, and of the Paxos message within.
fn kind(bytes: &[u8]) -> u64 {
    let mut decoder = minicbor::Decoder::new(bytes);
    let variant = decoder.array().and_then(|_| decoder.u64());
    variant.unwrap_or(u64::MAX)
}

fn kind_within(bytes: &Bytes) -> (u64, u64) {
    match codec::decode::<NodeMessage>(bytes) {
        Ok(NodeMessage::Paxos { message, .. }) => (0, 1 + kind(&codec::encode(&message))),
        _ => (kind(bytes), 0),
    }
}

/// What came to a node, from the beginning, and one message of each kind.
fn stories(number: usize, stage: &Stage) -> Vec<Kept> {
    let place = |frame: &Bytes| {
        let header = frame.slice(..HEADER_BYTES);
        stage.headers.iter().position(|other| *other == header).unwrap_or_default() as u8
    };
    let begin = Item::new(node::STAGE + number as u8, &[]);
    let (mut story, mut one_each) = (vec![begin.clone()], vec![begin]);
    let mut seen = BTreeSet::new();
    for given in &stage.after {
        for given in given {
            match given {
                Given::Frame(frame) => {
                    for message in messages(frame) {
                        let item = Item::new(place(frame) % node::NEIGHBOURS, &message);
                        story.push(item.clone());
                        if seen.insert(kind_within(&message)) {
                            one_each.push(item);
                        }
                    }
                }
                Given::Request(_, request) => {
                    if let Ok(request) = request_to_proto((**request).clone()) {
                        let request =
                            api::v1::PipelineRequest { number: 1, request: Some(request) };
                        let item = Item::new(node::REQUEST, &request.encode_to_vec());
                        story.push(item.clone());
                        one_each.push(item);
                    }
                }
            }
        }
        match story.last_mut() {
            Some(Item { kind: node::TIME, bytes }) if bytes[0] < 20 => bytes[0] += 1,
            _ => story.push(Item::new(node::TIME, &[0])),
        }
    }
    one_each.push(Item::new(node::TIME, &[20]));
    let first = story.first().cloned();
    shorten(&mut story);
    if story.is_empty() {
        story.extend(first);
    }
    let name = stage.name;
    vec![
        ("node", name.to_owned(), items::join(&story)),
        ("node", format!("{name}-each"), items::join(&one_each)),
    ]
}

/// A frame with one message of each kind.
fn frame(stage: &Stage) -> Vec<u8> {
    let mut seen = BTreeSet::new();
    let mut out = stage.headers.first().map(|header| header.to_vec()).unwrap_or_default();
    for given in stage.after.iter().flatten() {
        let Given::Frame(frame) = given else { continue };
        for message in messages(frame) {
            if seen.insert(kind_within(&message)) && message.len() < 2_000 {
                out.extend_from_slice(&(message.len() as u32).to_be_bytes());
                out.extend_from_slice(&message);
            }
        }
    }
    out
}

/// What a node has on its disks at the beginning of a stage.
fn states(stage: &Stage) -> Vec<Kept> {
    let (mut opened, mut records, mut stored) = (Vec::new(), Vec::new(), Vec::new());
    let mut disk = stage.disk.clone();
    let found = Wal::recover(&mut disk, stage.options.wal.clone(), &mut |found| {
        let Recovered::Record(found) = found else { return };
        let is_node = found.group == GroupId::NODE;
        let group = if is_node { open::NODE } else { found.group.0 as u8 };
        let mut bytes = vec![group, u8::from(found.state), found.identity.len() as u8];
        bytes.extend_from_slice(&found.identity);
        bytes.extend_from_slice(&found.payload);
        opened.push(Item::new(open::LOG, &bytes));
        if is_node {
            records.push(Item::new(1, &found.payload));
        } else {
            records.push(Item::new(0, &bytes[2..]));
        }
    });
    found.expect("the log of a stage is read");
    // The newest say the most, and what they are without is a matter of its own.
    let skipped = opened.len().saturating_sub(60);
    opened.drain(..skipped);
    let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
    let scanned = stage.engine.scan(&[], &[255; 16], all).expect("a store in memory is read");
    for (key, value) in &scanned {
        let mut bytes = (key.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
        opened.push(Item::new(open::STORE, &bytes));
        let group = owner(key).0;
        if let Some(own) = key.get(PREFIX_BYTES..)
            && group.0 <= 1
        {
            let mut bytes = vec![own.len() as u8];
            bytes.extend_from_slice(own);
            bytes.extend_from_slice(value);
            let kind = if group.0 == 0 { store::MASTER } else { store::DATA };
            stored.push(Item::new(kind, &bytes));
            records.push(Item::new(3, value));
        }
    }
    for message in heard(stage) {
        if let NodeMessage::SnapshotPart { records: part, .. } = message {
            records.push(Item::new(2, &part));
        }
    }
    shorten(&mut records);
    shorten(&mut stored);
    let parts = [("open", opened), ("record", records), ("store", stored)];
    let kept = parts.into_iter().filter(|(_, items)| !items.is_empty());
    kept.map(|(target, items)| (target, stage.name.to_owned(), items::join(&items))).collect()
}

/// Three replicas and what they say to each other; for each of them its part of it.
fn cores() -> Vec<Kept> {
    let mut cores: Vec<Core> = (1..=3).map(Core::of).collect();
    let mut stories: Vec<Vec<Item>> = vec![Vec::new(); 3];
    let mut net: VecDeque<(usize, usize, Message)> = VecDeque::new();
    let mut tell = |cores: &mut Vec<Core>, to: usize, kind: u8, bytes: Bytes| {
        stories[to].push(Item::new(kind, &bytes));
        cores[to].step(kind, bytes);
    };
    for round in 0..40_u8 {
        for at in 0..3 {
            tell(&mut cores, at, 3, Bytes::from_static(&[4]));
            let row = codec::encode(&cores[at].paxos.heartbeat_row());
            for to in (0..3).filter(|to| *to != at) {
                tell(&mut cores, to, 4 + neighbour(at, to), row.clone());
            }
        }
        match round {
            5 | 20 => tell(&mut cores, usize::from(round / 20), 8, Bytes::new()),
            8..=12 | 24..=26 => {
                let leader = usize::from(round >= 20);
                tell(&mut cores, leader, 6, Bytes::from(vec![round; 20]));
                tell(&mut cores, leader, 7, Bytes::new());
            }
            15 => tell(&mut cores, 2, 9, Bytes::new()),
            30 => tell(&mut cores, 1, 13, Bytes::from_static(&[8])),
            _ => {}
        }
        for _ in 0..20 {
            for (from, core) in cores.iter_mut().enumerate() {
                let said = std::mem::take(&mut core.said);
                let said = said.into_iter().filter(|(to, _)| (1..=3).contains(&to.0));
                net.extend(said.map(|(to, message)| (from, to.0 as usize - 1, message)));
            }
            while let Some((from, to, message)) = net.pop_front() {
                // Each is told of the others as its second and third, whoever they are.
                tell(&mut cores, to, neighbour(from, to), codec::encode(&message));
            }
        }
    }
    assert!(cores.iter().all(|core| core.values() > 0), "something was chosen");
    let named = stories.into_iter().zip(["first", "second", "third"]);
    named
        .map(|(mut story, name)| {
            shorten(&mut story);
            ("paxos", name.to_owned(), items::join(&story))
        })
        .collect()
}

fn neighbour(from: usize, to: usize) -> u8 {
    u8::from(from > to && !(from == 1 && to == 0))
}

/// A log with records of two groups over several files, and a superblock.
fn image() -> Vec<Item> {
    let mut disk = MemoryDisk::new();
    let mut superblock = storage::Superblock::format(&mut disk, disk::DISK).expect("a fresh disk");
    superblock.update(&mut disk).expect("a disk in memory");
    let mut wal = Wal::recover(&mut disk, disk::options(), &mut |_| {}).expect("an empty disk");
    for round in 0..9_u8 {
        for group in 0..2 {
            let identity = vec![round; 5 + usize::from(group)];
            let state = round % 4 == 3;
            wal.append(GroupId(u64::from(group)), &identity, state, &mut |out| {
                out.extend_from_slice(&[round | group << 4; 24]);
            });
        }
        loop {
            let commands = wal.seal();
            if commands.is_empty() {
                break;
            }
            let (background, foreground): (Vec<_>, Vec<_>) =
                commands.into_iter().partition(storage::WalCommand::is_background);
            if let Some(ticket) = execute(&mut disk, &foreground).expect("a disk in memory") {
                wal.done(ticket);
            }
            if let Some(ticket) = execute(&mut disk, &background).expect("a disk in memory") {
                wal.prepared(ticket);
            }
        }
    }
    let content = |kind: u8, number: Option<u8>, (offset, bytes): (u32, Vec<u8>)| {
        let mut item: Vec<u8> = number.into_iter().collect();
        item.extend_from_slice(&offset.to_be_bytes());
        item.extend_from_slice(&bytes);
        Item::new(kind, &item)
    };
    let mut found: Vec<Item> = disk::dump(&mut disk, "superblock")
        .into_iter()
        .map(|part| content(disk::SUPERBLOCK, None, part))
        .collect();
    for number in 0..4_u8 {
        let parts = disk::dump(&mut disk, &disk::file(usize::from(number)));
        found.extend(parts.into_iter().map(|part| content(disk::LOG, Some(number), part)));
    }
    found
}

/// The outlines of a version and of a table.
fn tables() -> Vec<Item> {
    let mut table = b"TOC!\0\0\0\x03sections".to_vec();
    table.extend_from_slice(b"SFA!\0\0");
    table.extend_from_slice(&[7; 16]);
    table.extend_from_slice(&0_u64.to_le_bytes());
    table.extend_from_slice(&16_u64.to_le_bytes());
    let current = [&1_u64.to_le_bytes()[..], &[9; 16], &[0]].concat();
    vec![
        Item::new(engine::CURRENT, &current),
        Item::new(engine::VERSION, b"a version"),
        Item::new(engine::TABLE, &table),
    ]
}

fn stream() -> Vec<u8> {
    let mut bytes = vec![3];
    for len in [1_usize, 5, 300, 2] {
        bytes.extend_from_slice(&(len as u32).to_le_bytes());
        bytes.extend(vec![len as u8; len]);
    }
    bytes
}

struct Book;

impl AddressBook for Book {
    fn grpc(&self, node: base::NodeId) -> String {
        format!("127.0.0.1:{}", 7_100 + node.0)
    }
}

/// Requests of every kind, and what a node answers them.
fn asked_and_answered() -> Vec<Kept> {
    let mut kept = Vec::new();
    let stage = &stage::all()[1];
    let (mut host, mut time) = stage.enter();
    for (number, request) in requests().into_iter().enumerate() {
        let Ok(sent) = request_to_proto(request.clone()) else { continue };
        let asked = api::v1::PipelineRequest { number: number as u64, request: Some(sent) };
        kept.push(("grpc-request", format!("request{number:02}"), asked.encode_to_vec()));
        let (_, kind) = request_from_proto(asked.request).expect("it was just written");
        let mut given = vec![Given::Request(number as u64, Box::new(request))];
        for _ in 0..400 {
            time = time + STEP;
            let taken = host.step(stage::clock(time), &std::mem::take(&mut given));
            for (token, reply) in taken.replies.into_iter().filter(|(t, _)| *t == number as u64) {
                let reply = Some(reply_to_proto(kind, reply, &Book));
                let answer = api::v1::PipelineReply { number: token, reply };
                kept.push(("grpc-reply", format!("reply{number:02}"), answer.encode_to_vec()));
            }
        }
    }
    kept
}

fn requests() -> Vec<Request> {
    let key = Bytes::from_static(b"key1");
    let value = Bytes::from_static(b"value");
    let session = Session {
        client: base::ClientId(7),
        number: base::RequestNumber(3),
        first_incomplete: base::RequestNumber(2),
        stamp: base::WallMillis(1_700_000_000_000),
    };
    let expected = Expected::Version(base::Version(0));
    let by_value = Expected::Value(value.clone());
    let (k, v) = (|| key.clone(), || value.clone());
    let kv = [
        KvOp::Get { key: k() },
        KvOp::Put { key: k(), value: v() },
        KvOp::PutHash { key: k(), value: v(), hash: HashKind::Fnv1a32 },
        KvOp::Append { key: k(), value: v() },
        KvOp::CompareAndSwap { key: k(), expected, value: v() },
        KvOp::CompareAndSwap { key: k(), expected: by_value, value: v() },
        KvOp::Delete { key: k() },
    ];
    let groups = vec![NewGroup { group: GroupId(5), nodes: vec![base::NodeId(1)] }];
    let moves = vec![ShardMove { shards: vec![base::ShardId(1)], group: GroupId(1) }];
    let masters = [
        MasterOp::Join { groups },
        MasterOp::Move { moves },
        MasterOp::Leave { groups: vec![GroupId(5)] },
        MasterOp::Query { number: None },
        MasterOp::Routes,
        MasterOp::DrainNode { node: base::NodeId(3) },
        MasterOp::ReplaceNode { old: base::NodeId(3), new: base::NodeId(4) },
    ];
    let addresses = vec![base::Address::new("127.0.0.1:7301")];
    let clusters = [
        ClusterOp::Init { masters: addresses, shards: 16 },
        ClusterOp::Status,
        ClusterOp::Routes,
        ClusterOp::Shards,
    ];
    let bodies = kv.into_iter().map(Body::Kv);
    let bodies = bodies.chain(masters.into_iter().map(Body::Master));
    let bodies = bodies.chain(clusters.into_iter().map(Body::Cluster));
    let with_header = |(number, body): (usize, Body)| {
        let header = match number % 3 {
            0 => Header::default(),
            1 => Header { session: Some(session), timeout: Micros(5_000_000), ..Header::default() },
            _ => Header {
                consistency: Consistency::Bounded(500),
                route_epoch: Some(base::ShardEpoch(1)),
                trace: Some(base::TraceId(9)),
                ..Header::default()
            },
        };
        Request { header, body }
    };
    bodies.enumerate().map(with_header).collect()
}
