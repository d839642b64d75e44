//! Streams of numbered requests.

use api::v1::kv_client::KvClient;
use api::v1::pipeline_reply::Reply as ProtoReply;
use api::v1::pipeline_request::Request as ProtoRequest;
use api::v1::{ErrorCode, GetRequest, PipelineRequest, PutRequest};
use client::{Client, Options};
use router::{Expected, HashKind, NewGroup};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::fake::{Doors, Fake, until};

fn put(number: u64, key: &str) -> PipelineRequest {
    let put = PutRequest { header: None, key: key.to_owned().into(), value: "v".into() };
    PipelineRequest { number, request: Some(ProtoRequest::Put(put)) }
}

async fn stream(
    doors: &Doors,
) -> (mpsc::Sender<PipelineRequest>, tonic::Streaming<api::v1::PipelineReply>) {
    let mut kv = KvClient::connect(format!("http://{}", doors.address)).await.unwrap();
    let (sender, receiver) = mpsc::channel(16);
    let replies = kv.pipeline(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    (sender, replies)
}

#[tokio::test]
async fn every_operation_goes_through_the_stream() {
    let doors = Doors::open(&Fake::default());
    let client = Client::connect(vec![doors.endpoint()], Options::default()).unwrap();
    assert_eq!(client.get("a").await.unwrap().value, None);
    let put = client.put("a", "x").await.unwrap();
    assert_eq!((put.header.version.0, put.header.group.map(|group| group.0)), (1, Some(1)));
    assert_eq!(client.get("a").await.unwrap().value.as_deref(), Some(&b"x"[..]));
    let hash = client.put_hash("a", "b", HashKind::Sha256).await.unwrap();
    assert_eq!(hash.value.as_deref(), Some(&b"x"[..]));
    assert_eq!(client.append("a", "!").await.unwrap().value, 3);
    let absent = Expected::Version(base::Version(0));
    assert!(client.compare_and_swap("n", absent.clone(), "1").await.unwrap().value);
    assert!(!client.compare_and_swap("n", absent, "2").await.unwrap().value);
    let one = Expected::Value("1".into());
    assert!(client.compare_and_swap("n", one, "2").await.unwrap().value);
    assert!(client.delete("n").await.unwrap().value);
    assert!(!client.delete("n").await.unwrap().value);
    let group = NewGroup { group: base::GroupId(4), nodes: vec![base::NodeId(1)] };
    let joined = client.join(vec![group]).await.unwrap().value;
    assert_eq!(joined.groups.keys().map(|group| group.0).collect::<Vec<_>>(), [4]);
    assert_eq!(client.query(None).await.unwrap().value.number.0, 0);
    assert_eq!(client.routes().await.unwrap().owners.len(), 16);
}

#[tokio::test]
async fn replies_come_in_the_order_in_which_they_are_ready() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let (requests, mut replies) = stream(&doors).await;
    fake.state().mute = true;
    requests.send(put(1, "a")).await.unwrap();
    requests.send(put(2, "b")).await.unwrap();
    until("both arrived", || fake.state().withheld.len() == 2).await;
    while let Some((permit, number, reply)) = { fake.state().withheld.pop() } {
        permit.send((number, reply));
    }
    let first = replies.message().await.unwrap().unwrap();
    let second = replies.message().await.unwrap().unwrap();
    assert_eq!((first.number, second.number), (2, 1));
}

#[tokio::test]
async fn a_bad_request_is_answered_in_its_place_and_the_stream_goes_on() {
    let doors = Doors::open(&Fake::default());
    let (requests, mut replies) = stream(&doors).await;
    let unknown = PipelineRequest { number: 7, request: None };
    requests.send(unknown).await.unwrap();
    let reply = replies.message().await.unwrap().unwrap();
    let Some(ProtoReply::Error(error)) = reply.reply else { panic!("{reply:?}") };
    assert_eq!((reply.number, error.code()), (7, ErrorCode::Unsupported));
    let long = GetRequest { header: None, key: vec![b'k'; 5_000].into() };
    let long = PipelineRequest { number: 8, request: Some(ProtoRequest::Get(long)) };
    requests.send(long).await.unwrap();
    let reply = replies.message().await.unwrap().unwrap();
    let Some(ProtoReply::Error(error)) = reply.reply else { panic!("{reply:?}") };
    assert_eq!((reply.number, error.code()), (8, ErrorCode::Invalid));
    assert!(error.message.contains("5000"), "{}", error.message);
    requests.send(put(9, "a")).await.unwrap();
    let reply = replies.message().await.unwrap().unwrap();
    assert!(matches!(reply.reply, Some(ProtoReply::Put(_))), "{reply:?}");
    drop(requests);
    assert_eq!(replies.message().await.unwrap(), None);
}

#[tokio::test]
async fn no_more_than_the_bound_is_read_of_a_stream_that_is_not_answered() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let (requests, mut replies) = stream(&doors).await;
    fake.state().mute = true;
    let sending = tokio::spawn(async move {
        for number in 0..5_000 {
            requests.send(put(number, "a")).await.unwrap();
        }
    });
    until("the bound is reached", || fake.state().seen.len() == 4_096).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.state().seen.len(), 4_096);
    let withheld = {
        let mut state = fake.state();
        state.mute = false;
        std::mem::take(&mut state.withheld)
    };
    for (permit, number, reply) in withheld {
        permit.send((number, reply));
    }
    let mut answered = 0;
    while replies.message().await.unwrap().is_some() {
        answered += 1;
    }
    assert_eq!(answered, 5_000);
    sending.await.unwrap();
}

#[tokio::test]
async fn large_requests_are_bounded_by_their_bytes() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let (requests, mut replies) = stream(&doors).await;
    fake.state().mute = true;
    let value = bytes::Bytes::from(vec![1; base::limits::VALUE_BYTES_MAX]);
    let sending = tokio::spawn(async move {
        for number in 0..12 {
            let put = PutRequest { header: None, key: "k".into(), value: value.clone() };
            let put = PipelineRequest { number, request: Some(ProtoRequest::Put(put)) };
            requests.send(put).await.unwrap();
        }
    });
    until("the bound is reached", || fake.state().seen.len() == 8).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.state().seen.len(), 8);
    let withheld = {
        let mut state = fake.state();
        state.mute = false;
        std::mem::take(&mut state.withheld)
    };
    for (permit, number, reply) in withheld {
        permit.send((number, reply));
    }
    let mut answered = 0;
    while replies.message().await.unwrap().is_some() {
        answered += 1;
    }
    assert_eq!(answered, 12);
    sending.await.unwrap();
}

#[tokio::test]
async fn a_reply_names_the_leader_with_its_address() {
    let doors = Doors::open(&Fake::default());
    let (requests, mut replies) = stream(&doors).await;
    let start = std::time::Instant::now();
    loop {
        requests.send(put(1, "a")).await.unwrap();
        let Some(ProtoReply::Put(reply)) = replies.message().await.unwrap().unwrap().reply else {
            panic!("not the answer to a put");
        };
        let leader = reply.header.unwrap().leader.unwrap();
        assert_eq!(leader.node, 1);
        if leader.grpc == doors.endpoint() {
            return;
        }
        assert!(start.elapsed().as_secs() < 10, "the address never became known");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn many_callers_share_one_client() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let client = Client::connect(vec![doors.endpoint()], Options::default()).unwrap();
    let callers = (0..256).map(|caller| {
        let client = client.clone();
        tokio::spawn(async move {
            for round in 1..=20 {
                let length = client.append(format!("key{caller}"), "x").await.unwrap().value;
                assert_eq!(length, round);
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert_eq!(fake.state().map.len(), 256);
}

#[tokio::test]
async fn a_stop_in_good_order_gives_the_answers_that_are_there() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let (requests, mut replies) = stream(&doors).await;
    requests.send(put(1, "a")).await.unwrap();
    assert_eq!(replies.message().await.unwrap().unwrap().number, 1);
    let start = std::time::Instant::now();
    tokio::task::spawn_blocking(|| doors.stop()).await.unwrap();
    assert!(start.elapsed().as_millis() < 900, "an open stream held the stop up");
    assert_eq!(replies.message().await.unwrap(), None);
}
