//! A node that is a map in memory, with sessions, and that can keep its answers to itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use base::{
    Address, BootId, ClientId, ClusterId, ConfigNumber, CopyId, DiskId, GroupId, Micros, NodeId,
    RequestNumber, ShardEpoch, ShardId, Version, WallMillis,
};
use bytes::Bytes;
use router::{
    Answer, Body, ClusterAnswer, ClusterOp, Configuration, ErrorReply, Expected, KvOp,
    MasterAnswer, MasterOp, NodeInfo, NodeStatus, Owner, Reply, ReplyHeader, Request, Routes,
    ShardState, ShardStatus,
};
use tokio::sync::{mpsc, oneshot};

use crate::{Answers, Ask, Asking, Stopped, open_doors};

/// The node.
#[derive(Clone, Default)]
pub(super) struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
pub(super) struct State {
    pub(super) map: BTreeMap<Bytes, (Bytes, Version)>,
    changes: u64,
    sessions: BTreeMap<(ClientId, RequestNumber), Reply>,
    /// All requests on keys that arrived, in order.
    pub(super) seen: Vec<Request>,
    /// While true, what is done is not answered.
    pub(super) mute: bool,
    /// The answers that were not given.
    pub(super) withheld: Vec<Withheld>,
    /// What every request on a key is answered instead of being done.
    pub(super) refuse_with: Option<ErrorReply>,
    pub(super) not_ready: Option<String>,
    address: Option<SocketAddr>,
}

/// Where an answer would go, its number, and the answer.
type Withheld = (mpsc::OwnedPermit<(u64, Reply)>, u64, Reply);

pub(super) const CLUSTER: ClusterId = ClusterId(0xc1);
const SHARDS: u16 = 16;

impl Fake {
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn value(&self, key: &str) -> Option<Bytes> {
        self.state().map.get(key.as_bytes()).map(|(value, _)| value.clone())
    }
}

impl State {
    fn answer(&mut self, request: Request) -> Reply {
        let mut header = ReplyHeader {
            cluster: Some(CLUSTER),
            leader: Some(NodeId(1)),
            configuration: ConfigNumber(1),
            ..ReplyHeader::default()
        };
        let body = match request.body.clone() {
            Body::Kv(op) => return self.answer_kv(request, op, header),
            Body::Master(op) => self.answer_master(op),
            Body::Cluster(op) => self.answer_cluster(op),
        };
        header.group = Some(GroupId::MASTER);
        Reply { header, body }
    }

    fn answer_kv(&mut self, request: Request, op: KvOp, mut header: ReplyHeader) -> Reply {
        if self.seen.len() < 10_000 {
            self.seen.push(request.clone());
        }
        if let Some(error) = &self.refuse_with {
            return Reply { header, body: Err(error.clone()) };
        }
        let session = request.header.session.map(|session| (session.client, session.number));
        if let Some(reply) = session.and_then(|session| self.sessions.get(&session)) {
            return reply.clone();
        }
        header.group = Some(GroupId(1));
        header.shard = Some(router::shard_of(op.key(), SHARDS));
        header.shard_epoch = Some(ShardEpoch(1));
        header.stamp = WallMillis(1);
        let body = Ok(self.execute(&op));
        header.version = self.map.get(op.key()).map_or(Version(0), |(_, version)| *version);
        let reply = Reply { header, body };
        if let Some(session) = session {
            self.sessions.insert(session, reply.clone());
        }
        reply
    }

    fn execute(&mut self, op: &KvOp) -> Answer {
        let before = self.map.get(op.key()).cloned();
        let (value, version) = match before.clone() {
            Some((value, version)) => (Some(value), version),
            None => (None, Version(0)),
        };
        match op {
            KvOp::Get { .. } => Answer::Value(value),
            KvOp::Put { key, value } => {
                self.set(key, value.clone());
                Answer::Done
            }
            KvOp::PutHash { key, value: hashed, .. } => {
                let hashed = [value.clone().unwrap_or_default(), hashed.clone()].concat();
                self.set(key, format!("#{}", hashed.len()).into());
                Answer::Value(value)
            }
            KvOp::Delete { key } => Answer::Deleted(self.map.remove(key).is_some()),
            KvOp::Append { key, value: more } => {
                let value = [value.unwrap_or_default(), more.clone()].concat();
                let length = value.len() as u64;
                self.set(key, value.into());
                Answer::Appended(length)
            }
            KvOp::CompareAndSwap { key, expected, value: new } => {
                let fits = match expected {
                    Expected::Value(expected) => value.as_ref() == Some(expected),
                    Expected::Version(expected) => version == *expected,
                };
                if fits {
                    self.set(key, new.clone());
                }
                Answer::Swapped(fits)
            }
        }
    }

    fn set(&mut self, key: &Bytes, value: Bytes) {
        self.changes += 1;
        self.map.insert(key.clone(), (value, Version(self.changes)));
    }

    fn answer_master(&mut self, op: MasterOp) -> Result<Answer, ErrorReply> {
        match op {
            MasterOp::Join { groups } => {
                let groups = groups.into_iter().map(|group| (group.group, group.nodes));
                let configuration = Configuration {
                    number: ConfigNumber(1),
                    groups: groups.collect(),
                    shards: vec![GroupId(1); usize::from(SHARDS)],
                };
                Ok(Answer::Master(MasterAnswer::Configuration(configuration)))
            }
            MasterOp::Leave { .. }
            | MasterOp::Move { .. }
            | MasterOp::Query { .. }
            | MasterOp::ReplaceNode { .. }
            | MasterOp::DrainNode { .. }
            | MasterOp::MembersAre { .. }
            | MasterOp::ReplicaLost { .. } => {
                Ok(Answer::Master(MasterAnswer::Configuration(Configuration::default())))
            }
            MasterOp::Register { .. } => Ok(Answer::Master(MasterAnswer::Registered(NodeId(1)))),
            MasterOp::Routes => Ok(Answer::Master(MasterAnswer::Routes(Box::new(self.routes())))),
        }
    }

    fn answer_cluster(&mut self, op: ClusterOp) -> Result<Answer, ErrorReply> {
        Ok(Answer::Cluster(match op {
            ClusterOp::Init { .. } => {
                return Err(ErrorReply::Refused("the cluster exists".to_owned()));
            }
            ClusterOp::Status => ClusterAnswer::Status(Box::new(self.status())),
            ClusterOp::Routes => ClusterAnswer::Routes(Box::new(self.routes())),
            ClusterOp::Shards => ClusterAnswer::Shards(vec![ShardStatus {
                shard: ShardId(3),
                group: GroupId(1),
                leading: true,
                state: ShardState::Owned,
                epoch: ShardEpoch(1),
                keys: self.map.len() as u64,
                bytes: 7,
                version: Version(self.changes),
                dead_copies: 0,
                dead_records: 0,
            }]),
        }))
    }

    fn status(&self) -> NodeStatus {
        NodeStatus {
            node: NodeId(1),
            disk: DiskId(2),
            boot: BootId(3),
            cluster: Some(CLUSTER),
            peer: Address::new("127.0.0.1:1"),
            grpc: self.grpc(),
            not_ready: self.not_ready.clone(),
            routes_version: 1,
            configuration: ConfigNumber(1),
            groups: Vec::new(),
            peers: Vec::new(),
            wal_live_bytes: 0,
            wal_syncs: 9,
            wal_full: false,
            overlay_bytes: 0,
            open_requests: 0,
            uptime: Micros(5),
            program: "test".to_owned(),
            scrubbed_bytes: 0,
            damage_found: 0,
            repaired_slots: 0,
        }
    }

    fn routes(&self) -> Routes {
        let owner = Owner { group: GroupId(1), epoch: ShardEpoch(1), copy: CopyId(1) };
        let node = NodeInfo {
            node: NodeId(1),
            disk: DiskId(2),
            peer: Address::new("127.0.0.1:1"),
            grpc: self.grpc(),
        };
        Routes {
            cluster: CLUSTER,
            version: 1,
            configuration: ConfigNumber(1),
            owners: vec![Some(owner); usize::from(SHARDS)],
            groups: BTreeMap::new(),
            nodes: BTreeMap::from([(NodeId(1), node)]),
            handoffs: Vec::new(),
            ..Routes::default()
        }
    }

    fn grpc(&self) -> Address {
        Address::new(&self.address.unwrap().to_string())
    }
}

impl Ask for Fake {
    type Asking = FakeAsking;
    type Answers = FakeAnswers;

    async fn call(&self, request: Request) -> Result<Reply, Stopped> {
        Ok(self.state().answer(request))
    }

    fn stream(&self, open_max: usize) -> (FakeAsking, FakeAnswers) {
        let (sender, receiver) = mpsc::channel(open_max);
        (FakeAsking { fake: self.clone(), sender }, FakeAnswers(receiver))
    }
}

pub(super) struct FakeAsking {
    fake: Fake,
    sender: mpsc::Sender<(u64, Reply)>,
}

impl Asking for FakeAsking {
    async fn send(&self, number: u64, request: Request) -> Result<(), Stopped> {
        let permit = self.sender.clone().reserve_owned().await.map_err(|_| Stopped)?;
        let mut state = self.fake.state();
        let is_kv = matches!(request.body, Body::Kv(_));
        let reply = state.answer(request);
        if state.mute && is_kv {
            state.withheld.push((permit, number, reply));
        } else {
            permit.send((number, reply));
        }
        Ok(())
    }

    async fn answer(&self, number: u64, reply: Reply) -> Result<(), Stopped> {
        self.sender.send((number, reply)).await.map_err(|_| Stopped)
    }
}

pub(super) struct FakeAnswers(mpsc::Receiver<(u64, Reply)>);

impl Answers for FakeAnswers {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(u64, Reply)>> {
        self.0.poll_recv(context)
    }
}

/// The doors of a fake, on a thread of their own that can be killed.
pub(super) struct Doors {
    pub(super) address: SocketAddr,
    pub(super) fake: Fake,
    stop: Option<oneshot::Sender<Ending>>,
    thread: Option<JoinHandle<()>>,
}

/// How the doors end.
enum Ending {
    InGoodOrder,
    Killed,
}

impl Doors {
    /// Doors on a free port.
    pub(super) fn open(fake: &Fake) -> Doors {
        Doors::open_at(fake, "127.0.0.1:0".parse().unwrap())
    }

    /// Doors on this port.
    pub(super) fn open_at(fake: &Fake, address: SocketAddr) -> Doors {
        let (stop, stopped) = oneshot::channel();
        let (report, listening) = std::sync::mpsc::channel();
        let node = fake.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = tokio::net::TcpListener::bind(address).await.unwrap();
                let address = listener.local_addr().unwrap();
                node.state().address = Some(address);
                report.send(address).unwrap();
                let (gently, gentle) = oneshot::channel::<()>();
                let doors = open_doors(listener, node, async move { drop(gentle.await) });
                tokio::pin!(doors);
                let ending = tokio::select! {
                    ended = &mut doors => panic!("{ended:?}"),
                    ending = stopped => ending.unwrap(),
                };
                if matches!(ending, Ending::InGoodOrder) {
                    drop(gently);
                    doors.await.unwrap();
                }
            });
        });
        let address = listening.recv().unwrap();
        Doors { address, fake: fake.clone(), stop: Some(stop), thread: Some(thread) }
    }

    pub(super) fn endpoint(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn stop(mut self) {
        self.end(Ending::InGoodOrder);
    }

    /// All connections break at once.
    pub(super) fn kill(mut self) {
        self.end(Ending::Killed);
    }

    fn end(&mut self, ending: Ending) {
        if let Some(stop) = self.stop.take() {
            drop(stop.send(ending));
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        self.end(Ending::Killed);
    }
}

/// Waits for something that another thread does.
pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed().as_secs() < 10, "waited too long until {what}");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
