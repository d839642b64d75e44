//! Round trips, and what does not pass.

use std::collections::{BTreeMap, BTreeSet};

use api::v1;
use base::{
    Address, BootId, ClientId, ClusterId, ConfigNumber, CopyId, DiskId, GroupId, Micros, NodeId,
    ReplicaId, RequestNumber, ShardEpoch, ShardId, Slot, TraceId, Version, WallMillis,
};
use bytes::Bytes;
use router::{
    Answer, Body, ClusterAnswer, ClusterOp, Configuration, Consistency, ErrorReply, Expected,
    GroupInfo, GroupStatus, Handoff, HashKind, Header, KvOp, MasterAnswer, MasterOp, MemberChange,
    NewGroup, NodeInfo, NodeStatus, Owner, PeerStatus, Reply, ReplyHeader, Request, Routes, Seen,
    Session, ShardMove, ShardState, ShardStatus,
};

use super::*;

struct NodeNameBook;

impl AddressBook for NodeNameBook {
    fn grpc(&self, node: NodeId) -> String {
        format!("{node}:1")
    }
}

fn header() -> Header {
    Header {
        cluster: Some(ClusterId(1 << 100)),
        session: Some(Session {
            client: ClientId(7),
            number: RequestNumber(9),
            first_incomplete: RequestNumber(4),
            stamp: WallMillis(1_234),
        }),
        route_epoch: Some(ShardEpoch(0)),
        timeout: Micros::from_millis(250),
        consistency: Consistency::Bounded(5),
        trace: Some(TraceId(3)),
    }
}

fn reply_header() -> ReplyHeader {
    ReplyHeader {
        cluster: Some(ClusterId(2)),
        group: Some(GroupId(0)),
        shard: Some(ShardId(0)),
        shard_epoch: Some(ShardEpoch(0)),
        version: Version(8),
        stamp: WallMillis(99),
        leader: Some(NodeId(3)),
        configuration: ConfigNumber(1),
        slot: Slot(70),
    }
}

fn bodies() -> Vec<(Kind, Body)> {
    let key = || Bytes::from_static(b"k\xff");
    let value = || Bytes::from_static(b"\0");
    let swap = |expected| KvOp::CompareAndSwap { key: key(), expected, value: value() };
    let group = NewGroup { group: GroupId(2), nodes: vec![NodeId(1), NodeId(3)] };
    let to = |group, shards: &[u16]| ShardMove {
        shards: shards.iter().copied().map(ShardId).collect(),
        group: GroupId(group),
    };
    let moves = vec![to(1, &[0, u16::MAX]), to(2, &[7])];
    let masters = vec![Address::new("127.0.0.1:7301"), Address::new("[::1]:7302")];
    vec![
        (Kind::Get, Body::Kv(KvOp::Get { key: key() })),
        (Kind::Put, Body::Kv(KvOp::Put { key: key(), value: Bytes::new() })),
        (
            Kind::PutHash,
            Body::Kv(KvOp::PutHash { key: key(), value: value(), hash: HashKind::Sha256 }),
        ),
        (
            Kind::PutHash,
            Body::Kv(KvOp::PutHash { key: key(), value: value(), hash: HashKind::Fnv1a32 }),
        ),
        (Kind::Delete, Body::Kv(KvOp::Delete { key: Bytes::new() })),
        (Kind::Append, Body::Kv(KvOp::Append { key: key(), value: value() })),
        (Kind::CompareAndSwap, Body::Kv(swap(Expected::Value(Bytes::new())))),
        (Kind::CompareAndSwap, Body::Kv(swap(Expected::Version(Version(0))))),
        (Kind::Join, Body::Master(MasterOp::Join { groups: vec![group] })),
        (Kind::Leave, Body::Master(MasterOp::Leave { groups: vec![GroupId(1), GroupId(9)] })),
        (Kind::ReplaceNode, Body::Master(MasterOp::ReplaceNode { old: NodeId(3), new: NodeId(5) })),
        (Kind::DrainNode, Body::Master(MasterOp::DrainNode { node: NodeId(2) })),
        (Kind::Move, Body::Master(MasterOp::Move { moves })),
        (Kind::Query, Body::Master(MasterOp::Query { number: None })),
        (Kind::Query, Body::Master(MasterOp::Query { number: Some(ConfigNumber(0)) })),
        (Kind::Routes, Body::Master(MasterOp::Routes)),
        (Kind::Init, Body::Cluster(ClusterOp::Init { masters, shards: 16_384 })),
        (Kind::Status, Body::Cluster(ClusterOp::Status)),
        (Kind::Routes, Body::Cluster(ClusterOp::Routes)),
        (Kind::Shards, Body::Cluster(ClusterOp::Shards)),
    ]
}

fn routes() -> Routes {
    let owner = Owner { group: GroupId(2), epoch: ShardEpoch(3), copy: CopyId(4) };
    let members = vec![(ReplicaId(5), NodeId(1), DiskId(6))];
    let node = NodeInfo {
        node: NodeId(1),
        disk: DiskId(6),
        peer: Address::new("a:1"),
        grpc: Address::new("a:2"),
    };
    Routes {
        cluster: ClusterId(2),
        version: 10,
        configuration: ConfigNumber(1),
        owners: vec![Some(owner), None, Some(owner)],
        groups: BTreeMap::from([(GroupId(0), GroupInfo { members })]),
        nodes: BTreeMap::from([(NodeId(1), node)]),
        handoffs: vec![Handoff {
            mig: CopyId(7),
            from: GroupId(2),
            to: GroupId(3),
            shards: vec![ShardId(0), ShardId(u16::MAX)],
            cancel: true,
        }],
        handoff_next: CopyId(9),
        barred: BTreeMap::from([(ShardId(3), CopyId(6))]),
        changes: BTreeMap::from([(
            GroupId(0),
            MemberChange {
                epoch: 3,
                joins: vec![(ReplicaId(8), NodeId(4), DiskId(5))],
                leaves: vec![ReplicaId(2)],
            },
        )]),
        drained: BTreeSet::from([NodeId(7)]),
        // Only nodes need the rest.
        ..Routes::default()
    }
}

fn node_status() -> NodeStatus {
    let group = GroupStatus {
        group: GroupId(0),
        replica: ReplicaId(2),
        nodes: vec![NodeId(1)],
        leader: Some(NodeId(0)),
        leading: true,
        round: 3,
        chosen_upto: Slot(4),
        applied: Slot(5),
        persisted: Slot(6),
        truncated_upto: Slot(7),
        trouble: Some("worn".to_owned()),
    };
    NodeStatus {
        node: NodeId(1),
        disk: DiskId(2),
        boot: BootId(3),
        cluster: None,
        peer: Address::new("a:1"),
        grpc: Address::new("a:2"),
        not_ready: Some(String::new()),
        routes_version: 4,
        configuration: ConfigNumber(5),
        groups: vec![group],
        peers: vec![PeerStatus { node: NodeId(2), connected: true, round_trip: Micros(80) }],
        wal_live_bytes: 6,
        wal_syncs: 7,
        wal_full: true,
        overlay_bytes: 8,
        open_requests: 9,
        uptime: Micros(10),
        program: "0.1.0".to_owned(),
        scrubbed_bytes: 11,
        damage_found: 12,
        repaired_slots: 13,
    }
}

fn answers() -> Vec<(Kind, Answer)> {
    let configuration = Configuration {
        number: ConfigNumber(3),
        groups: BTreeMap::from([(GroupId(1), vec![NodeId(1), NodeId(2)])]),
        shards: vec![GroupId(1), GroupId(0)],
    };
    let master = |answer| Answer::Master(answer);
    let cluster = |answer| Answer::Cluster(answer);
    let (mig, dst, src) = (CopyId(5), GroupId(6), GroupId(7));
    let states = [
        ShardState::Owned,
        ShardState::Out { mig, dst },
        ShardState::Frozen { mig, dst },
        ShardState::Moved { epoch: ShardEpoch(8), dst },
        ShardState::In { mig, src },
        ShardState::Refused { mig },
    ];
    let shards = states.map(|state| ShardStatus {
        shard: ShardId(u16::MAX),
        group: GroupId(1),
        leading: false,
        state,
        epoch: ShardEpoch(1),
        keys: 2,
        bytes: 3,
        version: Version(4),
        dead_copies: 9,
        dead_records: 10,
    });
    vec![
        (Kind::Get, Answer::Value(None)),
        (Kind::Get, Answer::Value(Some(Bytes::new()))),
        (Kind::PutHash, Answer::Value(None)),
        (Kind::PutHash, Answer::Value(Some(Bytes::from_static(b"x")))),
        (Kind::Put, Answer::Done),
        (Kind::Delete, Answer::Deleted(true)),
        (Kind::Append, Answer::Appended(9)),
        (Kind::CompareAndSwap, Answer::Swapped(false)),
        (Kind::Join, master(MasterAnswer::Configuration(configuration.clone()))),
        (Kind::Leave, master(MasterAnswer::Configuration(configuration.clone()))),
        (Kind::ReplaceNode, master(MasterAnswer::Configuration(configuration.clone()))),
        (Kind::DrainNode, master(MasterAnswer::Configuration(configuration.clone()))),
        (Kind::Move, master(MasterAnswer::Configuration(configuration.clone()))),
        (Kind::Query, master(MasterAnswer::Configuration(configuration))),
        (Kind::Init, cluster(ClusterAnswer::Created(ClusterId(0)))),
        (Kind::Status, cluster(ClusterAnswer::Status(Box::new(node_status())))),
        (Kind::Routes, cluster(ClusterAnswer::Routes(Box::new(routes())))),
        (Kind::Shards, cluster(ClusterAnswer::Shards(shards.to_vec()))),
    ]
}

fn errors() -> Vec<ErrorReply> {
    let text = || "because".to_owned();
    vec![
        ErrorReply::Invalid(text()),
        ErrorReply::NotLeader,
        ErrorReply::Moved { epoch: ShardEpoch(1), group: GroupId(2) },
        ErrorReply::NotReady(text()),
        ErrorReply::ResourceExhausted(text()),
        ErrorReply::SessionExpired { horizon: WallMillis(3) },
        ErrorReply::StampTooFar { log_time: WallMillis(4) },
        ErrorReply::Stale,
        ErrorReply::OutcomeUnknown(text()),
        ErrorReply::WrongCluster { cluster: ClusterId(5) },
        ErrorReply::Refused(text()),
        ErrorReply::Unavailable(text()),
        ErrorReply::Unsupported(text()),
    ]
}

#[test]
fn every_request_arrives_as_it_was_sent() {
    for (kind, body) in bodies() {
        let seen = Seen { epoch: ShardEpoch(2), slot: Slot(9) };
        let consistency = Consistency::Sequential(Some(seen));
        let sequential = Header { consistency, ..Header::default() };
        for header in [header(), sequential, Header::default()] {
            let request = Request { header, body: body.clone() };
            let proto = request_to_proto(request.clone()).unwrap();
            assert_eq!(request_from_proto(Some(proto)), Ok((request, kind)));
        }
    }
}

#[test]
fn every_answer_arrives_as_it_was_given() {
    for (kind, answer) in answers() {
        for header in [reply_header(), ReplyHeader::default()] {
            let reply = Reply { header, body: Ok(answer.clone()) };
            let proto = reply_to_proto(kind, reply.clone(), &NodeNameBook);
            assert_eq!(reply_from_proto(Some(proto)), Ok(reply));
        }
    }
}

#[test]
fn every_error_arrives_as_it_was_given() {
    for error in errors() {
        let reply = Reply { header: reply_header(), body: Err(error) };
        let proto = reply_to_proto(Kind::Put, reply.clone(), &NodeNameBook);
        assert_eq!(leader_hint(&proto), Some((NodeId(3), "n3:1")));
        assert_eq!(reply_from_proto(Some(proto)), Ok(reply));
    }
}

#[test]
fn an_answer_of_another_kind_claims_nothing() {
    let reply = Reply { header: ReplyHeader::default(), body: Ok(Answer::Done) };
    let reply = reply_from_proto(Some(reply_to_proto(Kind::Delete, reply, &NodeNameBook)));
    assert!(matches!(reply.unwrap().body, Err(ErrorReply::OutcomeUnknown(_))));
}

#[test]
fn an_error_of_a_later_version_claims_nothing() {
    let error = v1::Error { code: 4_711, message: "new".to_owned(), ..v1::Error::default() };
    assert_eq!(error_from_proto(error), Ok(ErrorReply::OutcomeUnknown("new".to_owned())));
}

#[test]
fn a_node_does_not_register_through_the_doors() {
    let routes = routes();
    let node = routes.nodes.get(&NodeId(1)).unwrap().clone();
    let body = Body::Master(MasterOp::Register { node, starts: 1, replaces: None });
    let request = Request { header: Header::default(), body };
    assert!(matches!(request_to_proto(request), Err(ErrorReply::Unsupported(_))));
}

#[test]
fn what_makes_no_sense_is_refused_with_a_sentence() {
    let refused = |request: v1::pipeline_request::Request| {
        let error = request_from_proto(Some(request)).unwrap_err();
        assert!(matches!(error, ErrorReply::Invalid(_)), "{error:?}");
        error.to_string()
    };
    let init = |masters: &[&str], shards| {
        let masters = masters.iter().map(|master| (*master).to_owned()).collect();
        v1::InitRequest { header: None, masters, shards }.into_request()
    };
    assert!(refused(init(&["a:1"], 16_385)).contains("16384"));
    assert!(refused(init(&[], 1)).contains("masters"));
    let moves = vec![v1::ShardMove { shards: vec![3, 65_536], group: 1 }];
    let request = v1::pipeline_request::Request::Move(v1::MoveRequest { header: None, moves });
    assert!(refused(request).contains("no shard 65536"));
    for bad in ["a", ":1", "a:", "a:0", "a:70000", ""] {
        assert!(refused(init(&[bad], 1)).contains("host:port"), "{bad}");
    }
    let get = |header| v1::GetRequest { header: Some(header), key: Bytes::new() }.into_request();
    let trace = Bytes::from_static(&[1; 15]);
    let text = refused(get(v1::Header { trace, ..v1::Header::default() }));
    assert!(text.contains("15 bytes"), "{text}");
    let text = refused(get(v1::Header { consistency: 9, ..v1::Header::default() }));
    assert!(text.contains("consistency 9"), "{text}");
    let session = v1::Session {
        client: Bytes::from_static(&[1; 16]),
        number: 3,
        first_incomplete: 4,
        stamp_millis: 0,
    };
    let text = refused(get(v1::Header { session: Some(session), ..v1::Header::default() }));
    assert!(text.contains("first incomplete"), "{text}");
}

#[test]
fn shards_by_default_and_the_earlier_deadline() {
    let init = v1::InitRequest { header: None, masters: vec!["a:1".to_owned()], shards: 0 };
    let request = init.to_request().unwrap();
    let Body::Cluster(ClusterOp::Init { shards, .. }) = request.body else { panic!() };
    assert_eq!(shards, base::limits::SHARDS_DEFAULT);
    let mut header = Header::default();
    limit_timeout(&mut header, Micros(50));
    assert_eq!(header.timeout, Micros(50));
    limit_timeout(&mut header, Micros(80));
    assert_eq!(header.timeout, Micros(50));
}

/// Short ways into the stream's sum of requests.
trait IntoStream {
    fn into_request(self) -> v1::pipeline_request::Request;
}

impl IntoStream for v1::InitRequest {
    fn into_request(self) -> v1::pipeline_request::Request {
        v1::pipeline_request::Request::Init(self)
    }
}

impl IntoStream for v1::GetRequest {
    fn into_request(self) -> v1::pipeline_request::Request {
        v1::pipeline_request::Request::Get(self)
    }
}
