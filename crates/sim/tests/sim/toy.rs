//! A small machine that serves a whole "cluster" from its first node, durably and at most once, so
//! that the simulator itself can be tried; and the same with faults planted in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{
    ClientId, CopyId, GroupId, NodeId, Now, ReplicaId, RequestNumber, ShardEpoch, Slot, Version,
    codec,
};
use bytes::Bytes;
use replica_group::turn::{self, Input, Machine, Output, Token};
use router::{
    Answer, Body, ClusterAnswer, ClusterOp, Configuration, ErrorReply, Expected, GroupInfo, KvOp,
    MasterAnswer, MasterOp, NodeInfo, Owner, Reply, ReplyHeader, Request, Routes,
};
use sim::guest::{Guest, Start, View};
use storage::{Disk, Engine, WalCommand, WalTicket};

/// A fault in the machine.
pub(crate) trait Planted {
    /// Which one.
    const FAULT: Fault;
}

/// The faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None: the machine is right.
    None,
    /// Writes are answered before they are durable.
    EarlyAnswer,
    /// Reads show what is not durable yet.
    DirtyRead,
    /// A retried request is executed again.
    NoSessions,
    /// Sessions are forgotten by a restart.
    ForgottenSessions,
    /// Some reads are answered from before the last write.
    StaleRead,
    /// Some writes are answered and not executed.
    LostWrite,
    /// The same slot shows another digest after a restart.
    OtherDigest,
}

macro_rules! planted {
    ($($name:ident),*) => {
        $(
            /// Plants the fault of this name.
            pub(crate) struct $name;
            impl Planted for $name {
                const FAULT: Fault = Fault::$name;
            }
        )*
    };
}

planted!(
    None,
    EarlyAnswer,
    DirtyRead,
    NoSessions,
    ForgottenSessions,
    StaleRead,
    LostWrite,
    OtherDigest
);

/// The machine.
pub(crate) struct Toy<P> {
    start: Start,
    records: BTreeMap<Bytes, (Bytes, Version)>,
    before: BTreeMap<Bytes, (Bytes, Version)>,
    sessions: BTreeMap<(ClientId, RequestNumber), Reply>,
    done_with: BTreeMap<ClientId, RequestNumber>,
    version: u64,
    written: u64,
    synced: u64,
    waiting: Vec<(u64, Token, Reply)>,
    output: Output<Reply>,
    fault: std::marker::PhantomData<P>,
}

fn checksum(bytes: &Bytes) -> [u8; 4] {
    sim::workload::fnv(Option::None, bytes).to_be_bytes()
}

const FILE: &str = "log";
const ENTRY: u64 = 32 << 10;
const ENTRIES: u64 = 8_000;

impl<P: Planted> Toy<P> {
    fn routes(&self) -> Routes {
        let owner = Owner { group: GroupId(1), epoch: ShardEpoch(1), copy: CopyId(1) };
        let members = vec![(ReplicaId(1), NodeId(1), self.start.disk)];
        let info = |node: u64| NodeInfo {
            node: NodeId(node),
            disk: self.start.disk,
            peer: base::Address::new(&format!("peer{}", node - 1)),
            grpc: base::Address::new(&format!("grpc{}", node - 1)),
        };
        Routes {
            version: 1,
            owners: vec![Some(owner); 16],
            groups: BTreeMap::from([(GroupId(1), GroupInfo { members })]),
            nodes: (1..=3).map(|node| (NodeId(node), info(node))).collect(),
            ..Routes::default()
        }
    }

    fn header(&self, version: Version) -> ReplyHeader {
        ReplyHeader { version, leader: Some(NodeId(1)), ..ReplyHeader::default() }
    }

    fn reply(&self, body: Result<Answer, ErrorReply>) -> Reply {
        Reply { header: self.header(Version(0)), body }
    }

    fn on_request(&mut self, token: Token, request: Request) {
        match &request.body {
            Body::Cluster(ClusterOp::Init { .. }) => {
                let created = ClusterAnswer::Created(base::ClusterId(1));
                self.answer_now(token, Ok(Answer::Cluster(created)));
            }
            Body::Cluster(_) => {
                let routes = ClusterAnswer::Routes(Box::new(self.routes()));
                self.answer_now(token, Ok(Answer::Cluster(routes)));
            }
            Body::Master(MasterOp::Routes) => {
                let routes = MasterAnswer::Routes(Box::new(self.routes()));
                self.answer_now(token, Ok(Answer::Master(routes)));
            }
            Body::Master(_) => {
                let made = MasterAnswer::Configuration(Configuration::default());
                self.answer_now(token, Ok(Answer::Master(made)));
            }
            Body::Kv(_) if self.start.grpc.as_str() != "grpc0" => {
                self.answer_now(token, Err(ErrorReply::NotLeader));
            }
            Body::Kv(KvOp::Get { key }) => self.read(token, key),
            Body::Kv(_) => self.write(token, &request),
        }
    }

    fn answer_now(&mut self, token: Token, body: Result<Answer, ErrorReply>) {
        let reply = self.reply(body);
        self.output.replies.push(turn::Reply { token, reply, not_after: Option::None });
    }

    fn read(&mut self, token: Token, key: &Bytes) {
        let stale = P::FAULT == Fault::StaleRead && token.0.is_multiple_of(5);
        let records = if stale { &self.before } else { &self.records };
        let found = records.get(key);
        let version = found.map_or(Version(0), |(_, version)| *version);
        let reply = Reply {
            header: self.header(version),
            body: Ok(Answer::Value(found.map(|(value, _)| value.clone()))),
        };
        let through = if P::FAULT == Fault::DirtyRead { 0 } else { self.written };
        self.waiting.push((through, token, reply));
    }

    fn write(&mut self, token: Token, request: &Request) {
        if P::FAULT == Fault::LostWrite && token.0.is_multiple_of(50) {
            let Body::Kv(KvOp::Put { .. }) = &request.body else { return };
            return self.answer_now(token, Ok(Answer::Done));
        }
        let bytes = Bytes::from(codec::encode_vec(request));
        let mut entry = (bytes.len() as u32).to_be_bytes().to_vec();
        entry.extend(checksum(&bytes));
        entry.extend_from_slice(&bytes);
        assert!((entry.len() as u64) < ENTRY && self.written < ENTRIES);
        self.output.wal.push(WalCommand::Write {
            ticket: WalTicket(self.written + 1),
            file: FILE.to_owned(),
            offset: self.written * ENTRY,
            bytes: Bytes::from(entry),
        });
        self.written += 1;
        let reply = self.execute(request);
        let through = if P::FAULT == Fault::EarlyAnswer { 0 } else { self.written };
        self.waiting.push((through, token, reply));
    }

    fn execute(&mut self, request: &Request) -> Reply {
        let (Some(session), Body::Kv(op)) = (request.header.session, &request.body) else {
            return self.reply(Err(ErrorReply::Invalid("no session".to_owned())));
        };
        let number = (session.client, session.number);
        if P::FAULT != Fault::NoSessions {
            if let Some(reply) = self.sessions.get(&number) {
                return reply.clone();
            }
            let done = self.done_with.entry(session.client).or_default();
            if session.number < *done {
                return self.reply(Err(ErrorReply::Stale));
            }
            *done = (*done).max(session.first_incomplete);
        }
        self.before = self.records.clone();
        let reply = self.change(op);
        self.sessions.insert(number, reply.clone());
        reply
    }

    fn change(&mut self, op: &KvOp) -> Reply {
        let (key, new, answer) = match op {
            KvOp::Get { .. } => return self.reply(Err(ErrorReply::Stale)),
            KvOp::Put { key, value } => (key, Some(value.clone()), Answer::Done),
            KvOp::PutHash { key, value, .. } => {
                let old = self.records.get(key).map(|(value, _)| value.clone());
                let hash = sim::workload::fnv(old.as_ref(), value);
                (key, Some(Bytes::from(hash.to_string())), Answer::Value(old))
            }
            KvOp::Delete { key } => {
                (key, Option::None, Answer::Deleted(self.records.contains_key(key)))
            }
            KvOp::Append { key, value } => {
                let old = self.records.get(key).map(|(value, _)| value.clone());
                let new = [old.unwrap_or_default(), value.clone()].concat();
                let len = new.len() as u64;
                (key, Some(Bytes::from(new)), Answer::Appended(len))
            }
            KvOp::CompareAndSwap { key, expected, value } => {
                let old = self.records.get(key);
                let version = old.map_or(Version(0), |(_, version)| *version);
                let same = match expected {
                    Expected::Value(expected) => old.is_some_and(|(value, _)| value == expected),
                    Expected::Version(expected) => version == *expected,
                };
                if !same {
                    let header = self.header(version);
                    return Reply { header, body: Ok(Answer::Swapped(false)) };
                }
                (key, Some(value.clone()), Answer::Swapped(true))
            }
        };
        self.version += 1;
        let version = Version(self.version);
        match new {
            Some(new) => self.records.insert(key.clone(), (new, version)),
            Option::None => self.records.remove(key),
        };
        Reply { header: self.header(version), body: Ok(answer) }
    }

    fn release(&mut self) {
        let synced = self.synced;
        let waiting = std::mem::take(&mut self.waiting);
        for (through, token, reply) in waiting {
            if through <= synced {
                self.output.replies.push(turn::Reply { token, reply, not_after: Option::None });
            } else {
                self.waiting.push((through, token, reply));
            }
        }
    }
}

impl<P: Planted> Machine<Request, Reply> for Toy<P> {
    fn handle(&mut self, _: Now, input: Input<Request>) {
        match input {
            Input::Request { token, request } => self.on_request(token, request),
            Input::WalDone(ticket) => self.synced = ticket.0,
            _ => {}
        }
        self.release();
    }

    fn take_output(&mut self) -> Output<Reply> {
        std::mem::take(&mut self.output)
    }
}

impl<P: Planted> Guest for Toy<P> {
    fn open(
        start: &Start,
        disk: &mut dyn Disk,
        _: Arc<dyn Engine>,
        _: Now,
    ) -> Result<Toy<P>, String> {
        let mut toy = Toy {
            start: start.clone(),
            records: BTreeMap::new(),
            before: BTreeMap::new(),
            sessions: BTreeMap::new(),
            done_with: BTreeMap::new(),
            version: 0,
            written: 0,
            synced: 0,
            waiting: Vec::new(),
            output: Output::default(),
            fault: std::marker::PhantomData,
        };
        if disk.list().map_err(|error| error.to_string())?.is_empty() {
            disk.create(FILE, 0).map_err(|error| error.to_string())?;
            return Ok(toy);
        }
        loop {
            let entry = disk
                .read(FILE, toy.written * ENTRY, ENTRY as usize)
                .map_err(|error| error.to_string())?;
            let Some((len, entry)) = entry.split_first_chunk::<4>() else { break };
            let len = u32::from_be_bytes(*len) as usize;
            let Some((sum, entry)) = entry.split_first_chunk::<4>() else { break };
            let Some(bytes) = entry.get(..len).filter(|bytes| !bytes.is_empty()) else { break };
            let bytes = Bytes::copy_from_slice(bytes);
            // A crash may have left only some of its sectors.
            let whole = *sum == checksum(&bytes);
            let Some(request) = codec::decode::<Request>(&bytes).ok().filter(|_| whole) else {
                break;
            };
            toy.execute(&request);
            toy.written += 1;
        }
        disk.sync(FILE).map_err(|error| error.to_string())?;
        toy.synced = toy.written;
        if P::FAULT == Fault::ForgottenSessions {
            toy.sessions.clear();
            toy.done_with.clear();
        }
        Ok(toy)
    }

    fn views(&self, _: bool) -> Vec<View> {
        if self.start.grpc.as_str() != "grpc0" {
            return Vec::new();
        }
        let slot = Slot(self.synced);
        let other = P::FAULT == Fault::OtherDigest && self.synced.is_multiple_of(7);
        let view = |group| View {
            group,
            replica: ReplicaId(1),
            promised: (1, 1, 1),
            promised_durable: (1, 1, 1),
            leading: Option::None,
            chosen_upto: slot,
            have_upto: slot,
            applied: slot,
            epoch: 1,
            voters: vec![ReplicaId(1)],
            last: slot,
            quarantined: false,
            truncated_upto: Slot(0),
            hurt: false,
            digest: Some(if other { u128::from(self.start.starts) } else { 0 }),
        };
        vec![view(GroupId(0)), view(GroupId(1))]
    }

    fn chosen(&self, _: GroupId, _: Slot) -> Option<u128> {
        Option::None
    }
}
