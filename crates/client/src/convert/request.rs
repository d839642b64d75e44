//! Requests.

use api::v1::{self, pipeline_request::Request as Proto};
use base::limits::{SHARDS_DEFAULT, SHARDS_MAX};
use base::{Address, ConfigNumber, GroupId, NodeId, Version};
use router::{Body, ClusterOp, ErrorReply, Expected, HashKind, Header, KvOp, MasterOp, NewGroup};
use router::{Request, ShardMove, validate};

use super::plan::{shards_from_proto, shards_to_proto};
use super::{Kind, Malformed, header_from_proto, header_to_proto};

/// A message that asks for something.
pub trait ToRequest {
    /// The kind of the message.
    const KIND: Kind;

    /// What it asks; an error says what is wrong with it.
    fn to_request(self) -> Result<Request, ErrorReply>;
}

fn kv(header: Option<v1::Header>, op: KvOp) -> Result<Request, ErrorReply> {
    validate(&op)?;
    Ok(Request { header: header_from_proto(header)?, body: Body::Kv(op) })
}

fn master(header: Option<v1::Header>, op: MasterOp) -> Result<Request, ErrorReply> {
    Ok(Request { header: header_from_proto(header)?, body: Body::Master(op) })
}

fn cluster(header: Option<v1::Header>, op: ClusterOp) -> Result<Request, ErrorReply> {
    Ok(Request { header: header_from_proto(header)?, body: Body::Cluster(op) })
}

impl ToRequest for v1::GetRequest {
    const KIND: Kind = Kind::Get;

    fn to_request(self) -> Result<Request, ErrorReply> {
        kv(self.header, KvOp::Get { key: self.key })
    }
}

impl ToRequest for v1::PutRequest {
    const KIND: Kind = Kind::Put;

    fn to_request(self) -> Result<Request, ErrorReply> {
        kv(self.header, KvOp::Put { key: self.key, value: self.value })
    }
}

impl ToRequest for v1::PutHashRequest {
    const KIND: Kind = Kind::PutHash;

    fn to_request(self) -> Result<Request, ErrorReply> {
        let hash = match v1::HashKind::try_from(self.hash) {
            Ok(v1::HashKind::Fnv1a32) => HashKind::Fnv1a32,
            Ok(v1::HashKind::Sha256) => HashKind::Sha256,
            Err(_) => return Err(Malformed(format!("there is no hash {}", self.hash)).into()),
        };
        kv(self.header, KvOp::PutHash { key: self.key, value: self.value, hash })
    }
}

impl ToRequest for v1::DeleteRequest {
    const KIND: Kind = Kind::Delete;

    fn to_request(self) -> Result<Request, ErrorReply> {
        kv(self.header, KvOp::Delete { key: self.key })
    }
}

impl ToRequest for v1::AppendRequest {
    const KIND: Kind = Kind::Append;

    fn to_request(self) -> Result<Request, ErrorReply> {
        kv(self.header, KvOp::Append { key: self.key, value: self.value })
    }
}

impl ToRequest for v1::CompareAndSwapRequest {
    const KIND: Kind = Kind::CompareAndSwap;

    fn to_request(self) -> Result<Request, ErrorReply> {
        use v1::compare_and_swap_request::Expected as Proto;
        let expected = match self.expected {
            Some(Proto::ExpectedValue(value)) => Expected::Value(value),
            Some(Proto::ExpectedVersion(version)) => Expected::Version(Version(version)),
            None => {
                return Err(ErrorReply::Invalid(
                    "set expected_value or expected_version; version 0 expects an absent key"
                        .to_owned(),
                ));
            }
        };
        kv(self.header, KvOp::CompareAndSwap { key: self.key, expected, value: self.value })
    }
}

impl ToRequest for v1::JoinRequest {
    const KIND: Kind = Kind::Join;

    fn to_request(self) -> Result<Request, ErrorReply> {
        let groups = self.groups.into_iter().map(|group| NewGroup {
            group: GroupId(group.group),
            nodes: group.nodes.into_iter().map(NodeId).collect(),
        });
        let groups = groups.collect();
        master(self.header, MasterOp::Join { groups })
    }
}

impl ToRequest for v1::LeaveRequest {
    const KIND: Kind = Kind::Leave;

    fn to_request(self) -> Result<Request, ErrorReply> {
        let groups = self.groups.into_iter().map(GroupId).collect();
        master(self.header, MasterOp::Leave { groups })
    }
}

impl ToRequest for v1::ReplaceNodeRequest {
    const KIND: Kind = Kind::ReplaceNode;

    fn to_request(self) -> Result<Request, ErrorReply> {
        let (old, new) = (NodeId(self.old), NodeId(self.new));
        master(self.header, MasterOp::ReplaceNode { old, new })
    }
}

impl ToRequest for v1::DrainNodeRequest {
    const KIND: Kind = Kind::DrainNode;

    fn to_request(self) -> Result<Request, ErrorReply> {
        master(self.header, MasterOp::DrainNode { node: NodeId(self.node) })
    }
}

impl ToRequest for v1::MoveRequest {
    const KIND: Kind = Kind::Move;

    fn to_request(self) -> Result<Request, ErrorReply> {
        let moves = self.moves.iter().map(|to_group| {
            let shards = shards_from_proto(&to_group.shards)?;
            Ok(ShardMove { shards, group: GroupId(to_group.group) })
        });
        let moves = moves.collect::<Result<_, Malformed>>()?;
        master(self.header, MasterOp::Move { moves })
    }
}

impl ToRequest for v1::QueryRequest {
    const KIND: Kind = Kind::Query;

    fn to_request(self) -> Result<Request, ErrorReply> {
        master(self.header, MasterOp::Query { number: self.number.map(ConfigNumber) })
    }
}

impl ToRequest for v1::InitRequest {
    const KIND: Kind = Kind::Init;

    fn to_request(self) -> Result<Request, ErrorReply> {
        let shards = match u16::try_from(self.shards) {
            Ok(0) => SHARDS_DEFAULT,
            Ok(shards) if shards <= SHARDS_MAX => shards,
            Ok(_) | Err(_) => {
                return Err(ErrorReply::Invalid(format!(
                    "a cluster has 1 to {SHARDS_MAX} shards, not {}",
                    self.shards
                )));
            }
        };
        if self.masters.is_empty() {
            return Err(ErrorReply::Invalid(
                "name the masters: the peer addresses of the nodes that hold the shard master"
                    .to_owned(),
            ));
        }
        for master in &self.masters {
            check_address(master)?;
        }
        let masters = self.masters.iter().map(|master| Address::new(master)).collect();
        cluster(self.header, ClusterOp::Init { masters, shards })
    }
}

impl ToRequest for v1::StatusRequest {
    const KIND: Kind = Kind::Status;

    fn to_request(self) -> Result<Request, ErrorReply> {
        cluster(self.header, ClusterOp::Status)
    }
}

impl ToRequest for v1::RoutesRequest {
    const KIND: Kind = Kind::Routes;

    fn to_request(self) -> Result<Request, ErrorReply> {
        if self.from_shard_master {
            master(self.header, MasterOp::Routes)
        } else {
            cluster(self.header, ClusterOp::Routes)
        }
    }
}

impl ToRequest for v1::ShardsRequest {
    const KIND: Kind = Kind::Shards;

    fn to_request(self) -> Result<Request, ErrorReply> {
        cluster(self.header, ClusterOp::Shards)
    }
}

fn check_address(address: &str) -> Result<(), ErrorReply> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Ok(());
    }
    Err(ErrorReply::Invalid(format!("{address:?} is not an address: write host:port")))
}

/// A request of a stream as it came, and its kind.
pub fn request_from_proto(request: Option<Proto>) -> Result<(Request, Kind), ErrorReply> {
    fn with_kind<R: ToRequest>(request: R) -> Result<(Request, Kind), ErrorReply> {
        Ok((request.to_request()?, R::KIND))
    }
    match request {
        Some(Proto::Get(request)) => with_kind(request),
        Some(Proto::Put(request)) => with_kind(request),
        Some(Proto::PutHash(request)) => with_kind(request),
        Some(Proto::Delete(request)) => with_kind(request),
        Some(Proto::Append(request)) => with_kind(request),
        Some(Proto::CompareAndSwap(request)) => with_kind(request),
        Some(Proto::Join(request)) => with_kind(request),
        Some(Proto::Leave(request)) => with_kind(request),
        Some(Proto::Move(request)) => with_kind(request),
        Some(Proto::ReplaceNode(request)) => with_kind(request),
        Some(Proto::DrainNode(request)) => with_kind(request),
        Some(Proto::Query(request)) => with_kind(request),
        Some(Proto::Init(request)) => with_kind(request),
        Some(Proto::Status(request)) => with_kind(request),
        Some(Proto::Routes(request)) => with_kind(request),
        Some(Proto::Shards(request)) => with_kind(request),
        None => Err(ErrorReply::Unsupported(
            "the request is of a kind that this version does not know".to_owned(),
        )),
    }
}

/// A request as it is sent; an error where it is none of clients.
pub fn request_to_proto(request: Request) -> Result<Proto, ErrorReply> {
    let header = header_to_proto(&request.header);
    match request.body {
        Body::Kv(op) => Ok(kv_to_proto(header, op)),
        Body::Master(op) => master_to_proto(header, op),
        Body::Cluster(op) => Ok(cluster_to_proto(header, op)),
    }
}

fn kv_to_proto(header: Option<v1::Header>, op: KvOp) -> Proto {
    match op {
        KvOp::Get { key } => Proto::Get(v1::GetRequest { header, key }),
        KvOp::Put { key, value } => Proto::Put(v1::PutRequest { header, key, value }),
        KvOp::PutHash { key, value, hash } => {
            let hash = match hash {
                HashKind::Fnv1a32 => v1::HashKind::Fnv1a32,
                HashKind::Sha256 => v1::HashKind::Sha256,
            };
            Proto::PutHash(v1::PutHashRequest { header, key, value, hash: hash.into() })
        }
        KvOp::Delete { key } => Proto::Delete(v1::DeleteRequest { header, key }),
        KvOp::Append { key, value } => Proto::Append(v1::AppendRequest { header, key, value }),
        KvOp::CompareAndSwap { key, expected, value } => {
            use v1::compare_and_swap_request::Expected as ProtoExpected;
            let expected = Some(match expected {
                Expected::Value(value) => ProtoExpected::ExpectedValue(value),
                Expected::Version(version) => ProtoExpected::ExpectedVersion(version.0),
            });
            Proto::CompareAndSwap(v1::CompareAndSwapRequest { header, key, expected, value })
        }
    }
}

fn master_to_proto(header: Option<v1::Header>, op: MasterOp) -> Result<Proto, ErrorReply> {
    match op {
        MasterOp::Join { groups } => {
            let groups = groups.into_iter().map(|group| v1::NewGroup {
                group: group.group.0,
                nodes: group.nodes.into_iter().map(|node| node.0).collect(),
            });
            Ok(Proto::Join(v1::JoinRequest { header, groups: groups.collect() }))
        }
        MasterOp::Leave { groups } => {
            let groups = groups.into_iter().map(|group| group.0).collect();
            Ok(Proto::Leave(v1::LeaveRequest { header, groups }))
        }
        MasterOp::Move { moves } => {
            let moves = moves.into_iter().map(|to_group| v1::ShardMove {
                shards: shards_to_proto(&to_group.shards),
                group: to_group.group.0,
            });
            Ok(Proto::Move(v1::MoveRequest { header, moves: moves.collect() }))
        }
        MasterOp::Query { number } => {
            Ok(Proto::Query(v1::QueryRequest { header, number: number.map(|number| number.0) }))
        }
        MasterOp::ReplaceNode { old, new } => {
            Ok(Proto::ReplaceNode(v1::ReplaceNodeRequest { header, old: old.0, new: new.0 }))
        }
        MasterOp::DrainNode { node } => {
            Ok(Proto::DrainNode(v1::DrainNodeRequest { header, node: node.0 }))
        }
        MasterOp::MembersAre { .. } | MasterOp::ReplicaLost { .. } => {
            Err(ErrorReply::Unsupported("only nodes tell the shard master of replicas".to_owned()))
        }
        MasterOp::Register { .. } => Err(ErrorReply::Unsupported(
            "only nodes register, and they do it among themselves".to_owned(),
        )),
        MasterOp::Routes => {
            Ok(Proto::Routes(v1::RoutesRequest { header, from_shard_master: true }))
        }
    }
}

fn cluster_to_proto(header: Option<v1::Header>, op: ClusterOp) -> Proto {
    match op {
        ClusterOp::Init { masters, shards } => {
            let masters = masters.iter().map(|master| master.as_str().to_owned()).collect();
            Proto::Init(v1::InitRequest { header, masters, shards: u32::from(shards) })
        }
        ClusterOp::Status => Proto::Status(v1::StatusRequest { header }),
        ClusterOp::Routes => Proto::Routes(v1::RoutesRequest { header, from_shard_master: false }),
        ClusterOp::Shards => Proto::Shards(v1::ShardsRequest { header }),
    }
}

impl Kind {
    /// Whether a request of this kind may change something.
    pub fn is_write(self) -> bool {
        match self {
            Kind::Put
            | Kind::PutHash
            | Kind::Delete
            | Kind::Append
            | Kind::CompareAndSwap
            | Kind::Join
            | Kind::Leave
            | Kind::Move
            | Kind::ReplaceNode
            | Kind::DrainNode
            | Kind::Init => true,
            Kind::Get | Kind::Query | Kind::Status | Kind::Routes | Kind::Shards => false,
        }
    }
}

/// Puts a limit on the time of a request: the earlier of its own and this one.
pub fn limit_timeout(header: &mut Header, limit: base::Micros) {
    if header.timeout.0 == 0 || limit < header.timeout {
        header.timeout = limit;
    }
}
