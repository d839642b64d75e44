//! Unary calls, statuses, health, reflection, and visitors who speak something else.

use api::v1::ErrorCode;
use api::v1::kv_client::KvClient;
use base::limits::VALUE_BYTES_MAX;
use base::{GroupId, NodeId, ShardId};
use client::{Client, Error, Options, Unary};
use router::{
    Answer, Body, ClusterOp, ErrorReply, Header, KvOp, MasterAnswer, MasterOp, NewGroup, Request,
    ShardMove,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::fake::{CLUSTER, Doors, Fake};

async fn channel(doors: &Doors) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", doors.address)).unwrap();
    endpoint.connect().await.unwrap()
}

async fn generated(doors: &Doors) -> KvClient<Channel> {
    KvClient::new(channel(doors).await)
}

#[tokio::test]
async fn a_unary_call_is_answered_with_its_header() {
    let doors = Doors::open(&Fake::default());
    let unary = Unary::connect(&doors.endpoint(), Options::default()).await.unwrap();
    let put = unary.put("a", "x").await.unwrap();
    assert_eq!(put.header.version.0, 1);
    assert_eq!(put.header.cluster, Some(CLUSTER));
    assert_eq!(unary.get("a").await.unwrap().value.as_deref(), Some(&b"x"[..]));
    assert_eq!(unary.get("b").await.unwrap().value, None);
}

#[tokio::test]
async fn an_error_reaches_a_generated_client_as_code_sentence_and_detail() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let mut kv = generated(&doors).await;
    fake.state().refuse_with = Some(ErrorReply::ResourceExhausted("the log is full".to_owned()));
    let status = kv.put(api::v1::PutRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "the log is full");
    let error = api::status::to_error(&status).unwrap();
    assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    assert_eq!(error.header.unwrap().cluster.len(), 16);
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_refused_at_the_door() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let mut kv = generated(&doors).await;
    let bad_session = api::v1::Session { client: vec![1; 3].into(), ..Default::default() };
    let header = api::v1::Header { session: Some(bad_session), ..Default::default() };
    let get = api::v1::GetRequest { header: Some(header), ..Default::default() };
    let status = kv.get(get).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("3 bytes"), "{status}");
    let swap = api::v1::CompareAndSwapRequest::default();
    let status = kv.compare_and_swap(swap).await.unwrap_err();
    assert!(status.message().contains("expected_version"), "{status}");
    let hash = api::v1::PutHashRequest { hash: 77, ..Default::default() };
    assert_eq!(kv.put_hash(hash).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(fake.state().seen.is_empty());
}

#[tokio::test]
async fn a_value_at_the_limit_is_taken_and_one_byte_more_is_refused_with_both_numbers() {
    let doors = Doors::open(&Fake::default());
    let mut kv = generated(&doors).await.max_decoding_message_size(api::MESSAGE_BYTES_MAX);
    let put = |bytes: usize| api::v1::PutRequest {
        header: None,
        key: "big".into(),
        value: vec![7; bytes].into(),
    };
    kv.put(put(VALUE_BYTES_MAX)).await.unwrap();
    let get = api::v1::GetRequest { header: None, key: "big".into() };
    assert_eq!(kv.get(get).await.unwrap().into_inner().value.unwrap().len(), VALUE_BYTES_MAX);
    let status = kv.put(put(VALUE_BYTES_MAX + 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let text = status.message();
    assert!(text.contains("8388609") && text.contains("8388608"), "{text}");
}

#[tokio::test]
async fn the_deadline_of_a_call_goes_along_with_its_request() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let mut kv = generated(&doors).await;
    let mut request = tonic::Request::new(api::v1::GetRequest::default());
    request.set_timeout(std::time::Duration::from_millis(100));
    kv.get(request).await.unwrap();
    let timeout = fake.state().seen.last().unwrap().header.timeout;
    assert_eq!(timeout, base::Micros::from_millis(90));
}

#[tokio::test]
async fn a_node_tells_its_state_and_shards() {
    let doors = Doors::open(&Fake::default());
    let client = Client::connect(vec![doors.endpoint()], Options::default()).unwrap();
    let status = client.status(&doors.endpoint()).await.unwrap();
    assert_eq!((status.node.0, status.disk.0, status.wal_syncs), (1, 2, 9));
    assert_eq!(status.cluster, Some(CLUSTER));
    let shards = client.shards(&doors.endpoint()).await.unwrap();
    assert_eq!(shards.len(), 1);
    assert_eq!(shards.first().unwrap().shard.0, 3);
}

#[tokio::test]
async fn changes_of_the_plan_pass_the_door_by_stream_and_by_unary_calls() {
    let doors = Doors::open(&Fake::default());
    let client = Client::connect(vec![doors.endpoint()], Options::default()).unwrap();
    let to_two = || vec![ShardMove { shards: vec![ShardId(3)], group: GroupId(2) }];
    let new = || vec![NewGroup { group: GroupId(2), nodes: vec![NodeId(1)] }];
    client.join(new()).await.unwrap();
    client.leave(vec![GroupId(2)]).await.unwrap();
    client.move_shards(to_two()).await.unwrap();
    assert_eq!(client.newest_routes().await.unwrap().cluster, CLUSTER);
    let unary = Unary::connect(&doors.endpoint(), Options::default()).await.unwrap();
    let changes = [
        MasterOp::Join { groups: new() },
        MasterOp::Leave { groups: vec![GroupId(2)] },
        MasterOp::Move { moves: to_two() },
    ];
    for op in changes {
        let request = Request { header: Header::default(), body: Body::Master(op) };
        let answer = unary.call(request).await.unwrap().value;
        let made = matches!(answer, Answer::Master(MasterAnswer::Configuration(_)));
        assert!(made, "{answer:?}");
    }
}

#[tokio::test]
async fn a_refused_init_is_not_repeated() {
    let doors = Doors::open(&Fake::default());
    let client = Client::connect(vec![doors.endpoint()], Options::default()).unwrap();
    let masters = vec![base::Address::new("127.0.0.1:7301")];
    let error = client.init(masters, 16).await.unwrap_err();
    assert_eq!(error, Error::Refused(ErrorReply::Refused("the cluster exists".to_owned())));
    let error = client.init(vec![base::Address::new("nowhere")], 16).await.unwrap_err();
    assert!(error.to_string().contains("host:port"), "{error}");
}

#[tokio::test]
async fn the_health_service_follows_the_node() {
    let fake = Fake::default();
    fake.state().not_ready = Some("the masters are not reachable".to_owned());
    let doors = Doors::open(&fake);
    let mut health = HealthClient::new(channel(&doors).await);
    let mut status = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.unwrap().into_inner().status()
    };
    assert_eq!(status("").await, ServingStatus::NotServing);
    fake.state().not_ready = None;
    let start = std::time::Instant::now();
    while status("decree.v1.Kv").await != ServingStatus::Serving {
        assert!(start.elapsed().as_secs() < 10, "the node never became healthy");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(status("").await, ServingStatus::Serving);
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    let doors = Doors::open(&Fake::default());
    let mut reflection = ServerReflectionClient::new(channel(&doors).await);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = reflection.server_reflection_info(tokio_stream::once(ask)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let text = format!("{answer:?}");
    for service in ["decree.v1.Kv", "decree.v1.ShardMaster", "decree.v1.Cluster"] {
        assert!(text.contains(service), "{text}");
    }
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let doors = Doors::open(&Fake::default());
    for garbage in
        [&[0xff; 4_096][..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"*1\r\n$4\r\nPING\r\n"]
    {
        let mut stream = TcpStream::connect(doors.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
    }
    // A good preface and a broken frame behind it.
    let mut stream = TcpStream::connect(doors.address).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff")
        .await
        .unwrap();
    drop(stream);
    let unary = Unary::connect(&doors.endpoint(), Options::default()).await.unwrap();
    unary.put("a", "x").await.unwrap();
}

#[tokio::test]
async fn small_answers_are_not_held_back_by_the_kernel() {
    use tokio_stream::StreamExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = crate::doors::incoming(listener);
    let _visitor = TcpStream::connect(address).await.unwrap();
    let connection = incoming.next().await.unwrap().unwrap();
    assert!(connection.nodelay().unwrap());
}

#[tokio::test]
async fn raw_shows_what_the_client_hides() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    fake.state().refuse_with = Some(ErrorReply::NotLeader);
    let client = Client::connect(vec![doors.endpoint()], Options::default()).unwrap();
    let body = Body::Kv(KvOp::Get { key: "a".into() });
    let request = Request { header: Header::default(), body };
    let reply = client.raw(Some(&doors.endpoint()), request.clone()).await.unwrap();
    assert_eq!(reply.body, Err(ErrorReply::NotLeader));
    let reply = client.raw(None, request).await.unwrap();
    assert_eq!(reply.body, Err(ErrorReply::NotLeader));
    let body = Body::Cluster(ClusterOp::Status);
    let reply = client.raw(None, Request { header: Header::default(), body }).await.unwrap();
    assert!(matches!(reply.body, Ok(Answer::Cluster(_))));
}
