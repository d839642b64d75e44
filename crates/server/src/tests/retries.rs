//! Connections that break, nodes that come back, and nodes that do not.

use std::time::Duration;

use base::limits::VALUE_BYTES_MAX;
use client::{Client, Error, Options};
use router::ErrorReply;

use super::fake::{Doors, Fake, until};

fn patient(timeout_millis: u64) -> Options {
    Options { timeout: Duration::from_millis(timeout_millis), ..Options::default() }
}

#[tokio::test]
async fn f22_a_write_whose_answer_was_lost_is_repeated_under_its_identity() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let address = doors.address;
    let client = Client::connect(vec![doors.endpoint()], patient(10_000)).unwrap();
    client.append("a", "1").await.unwrap();
    fake.state().mute = true;
    let append = tokio::spawn({
        let client = client.clone();
        async move { client.append("a", "2").await }
    });
    until("it is executed", || fake.value("a").as_deref() == Some(b"12")).await;
    doors.kill();
    fake.state().mute = false;
    fake.state().withheld.clear();
    let _doors = Doors::open_at(&fake, address);
    assert_eq!(append.await.unwrap().unwrap().value, 2);
    assert_eq!(fake.value("a").as_deref(), Some(&b"12"[..]));
    let seen = fake.state().seen.clone();
    let sessions: Vec<_> = seen.iter().skip(1).map(|request| request.header.session).collect();
    assert!(sessions.len() >= 2, "it was sent again");
    assert!(sessions.iter().all(|session| session.is_some() && *session == sessions[0]));
}

#[tokio::test]
async fn a_write_that_may_have_been_done_ends_as_unknown() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let client = Client::connect(vec![doors.endpoint()], patient(500)).unwrap();
    client.put("a", "1").await.unwrap();
    fake.state().mute = true;
    let put = tokio::spawn({
        let client = client.clone();
        async move { client.put("a", "2").await }
    });
    until("it is executed", || fake.value("a").as_deref() == Some(b"2")).await;
    doors.kill();
    let error = put.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
}

#[tokio::test]
async fn what_was_never_sent_ends_as_not_done() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let client = Client::connect(vec![doors.endpoint()], patient(300)).unwrap();
    client.put("a", "1").await.unwrap();
    let endpoint = doors.endpoint();
    doors.kill();
    // The client may not have noticed yet; then its first attempt counts as sent.
    let read = client.get("a").await.unwrap_err();
    assert!(matches!(read, Error::NobodyReachable(_)), "{read}");
    let write = client.put("a", "2").await.unwrap_err();
    assert!(matches!(write, Error::NobodyReachable(_)), "{write}");
    assert!(write.to_string().contains(&endpoint), "{write}");
}

#[tokio::test]
async fn nobody_at_the_endpoints_is_said_soon() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    drop(listener);
    let options = Options { first_contact: Duration::from_millis(100), ..Options::default() };
    let client = Client::connect(vec![endpoint.clone()], options).unwrap();
    let start = std::time::Instant::now();
    let error = client.put("a", "1").await.unwrap_err();
    assert!(matches!(error, Error::NobodyReachable(_)), "{error}");
    assert!(error.to_string().contains(&endpoint), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    let error = client.status(&endpoint).await.unwrap_err();
    assert!(matches!(error, Error::NobodyReachable(_)), "{error}");
}

#[tokio::test]
async fn a_client_that_starts_before_its_node_waits_for_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let options = Options { first_contact: Duration::from_secs(10), ..Options::default() };
    let client = Client::connect(vec![address.to_string()], options).unwrap();
    let put = tokio::spawn(async move { client.put("a", "1").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let doors = Doors::open_at(&Fake::default(), address);
    put.await.unwrap().unwrap();
    assert_eq!(doors.fake.value("a").as_deref(), Some(&b"1"[..]));
}

#[tokio::test]
async fn a_dead_endpoint_among_live_ones_costs_only_its_attempt() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = listener.local_addr().unwrap().to_string();
    drop(listener);
    let doors = Doors::open(&Fake::default());
    for endpoints in [[dead.clone(), doors.endpoint()], [doors.endpoint(), dead]] {
        let client = Client::connect(endpoints.to_vec(), Options::default()).unwrap();
        client.put("a", "1").await.unwrap();
    }
}

#[tokio::test]
async fn errors_that_pass_are_hidden_and_final_ones_shown() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let client = Client::connect(vec![doors.endpoint()], patient(10_000)).unwrap();
    fake.state().refuse_with = Some(ErrorReply::NotReady("no leader yet".to_owned()));
    let put = tokio::spawn({
        let client = client.clone();
        async move { client.put("a", "1").await }
    });
    until("it was refused twice", || fake.state().seen.len() >= 2).await;
    fake.state().refuse_with = None;
    put.await.unwrap().unwrap();
    fake.state().refuse_with = Some(ErrorReply::Unsupported("not in this version".to_owned()));
    let error = client.get("a").await.unwrap_err();
    let unsupported = ErrorReply::Unsupported("not in this version".to_owned());
    assert_eq!(error, Error::Refused(unsupported));
}

#[tokio::test]
async fn the_largest_value_passes_and_one_byte_more_is_refused_without_being_sent() {
    let fake = Fake::default();
    let doors = Doors::open(&fake);
    let client = Client::connect(vec![doors.endpoint()], Options::default()).unwrap();
    client.put("big", vec![7; VALUE_BYTES_MAX]).await.unwrap();
    let value = client.get("big").await.unwrap().value.unwrap();
    assert_eq!(value.len(), VALUE_BYTES_MAX);
    let seen = fake.state().seen.len();
    let error = client.put("big", vec![7; VALUE_BYTES_MAX + 1]).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert!(error.to_string().contains("8388608"), "{error}");
    assert_eq!(fake.state().seen.len(), seen);
}

#[tokio::test]
async fn endpoints_that_are_none_are_refused_at_once() {
    for endpoints in [vec![], vec!["nonsense".to_owned()], vec!["host:0".to_owned()]] {
        let error = Client::connect(endpoints, Options::default()).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert!(error.to_string().contains("host:port"), "{error}");
    }
    Client::connect(vec!["http://localhost:7101/".to_owned()], Options::default()).unwrap();
}
