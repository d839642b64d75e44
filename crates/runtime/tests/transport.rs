//! Frames between two nodes, over real sockets.
#![allow(clippy::unwrap_used)]

mod toy;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use base::limits::FRAME_BYTES_MAX;
use base::{Address, Random};
use bytes::Bytes;
use replica_group::turn::Lane;
use runtime::PREAMBLE;
use toy::{Ask, Node, Told};

fn frame(random: &mut Random, len: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    Bytes::from(bytes)
}

#[tokio::test]
async fn frames_of_all_sizes_arrive_whole_and_in_order() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [a, b] = [Node::start(dirs[0].path()), Node::start(dirs[1].path())];
    let mut random = Random::new(1);
    let sizes = [1, 2, 3, 4_095, 4_096, 16_384, 16_385, 65_536, 1 << 20, 16 << 20, FRAME_BYTES_MAX];
    let sent: Vec<Bytes> = sizes.iter().map(|len| frame(&mut random, *len)).collect();
    for bytes in &sent {
        let to = b.address.clone();
        assert_eq!(a.ask(Ask::Send(to, Lane::Protocol, bytes.clone())).await, Told::Done);
    }
    assert!(b.frames(sent.len()).await == sent);

    // The other way, and by both lanes at once.
    for bytes in &sent[..8] {
        for lane in [Lane::Protocol, Lane::Bulk] {
            b.ask(Ask::Send(a.address.clone(), lane, bytes.clone())).await;
        }
    }
    let arrived: BTreeSet<Bytes> = a.frames(16).await.into_iter().collect();
    assert!(arrived == sent[..8].iter().cloned().collect());
    assert_eq!(b.stats.snapshot().peer_connections, 2);
    a.stop();
    b.stop();
}

/// With Nagle's algorithm on, a small frame behind another waits 40 ms for a delayed
/// acknowledgement.
#[tokio::test]
async fn small_frames_are_not_held_back() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [a, b] = [Node::start(dirs[0].path()), Node::start(dirs[1].path())];
    let mut shortest = Duration::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..2 {
            let bytes = Bytes::from_static(b"ping");
            a.ask(Ask::Send(b.address.clone(), Lane::Protocol, bytes)).await;
        }
        b.frames(2).await;
        shortest = shortest.min(start.elapsed());
    }
    assert!(shortest < Duration::from_millis(20), "{shortest:?}");
    a.stop();
    b.stop();
}

/// Whether the node closes a connection that says this.
fn is_closed_after(node: &Node, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(node.address.as_str()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The other end may close before it has read everything.
    let _ = stream.write_all(bytes);
    match stream.read(&mut [0; 16]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn garbage_at_the_peer_port_is_refused_and_disturbs_nobody() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [a, b] = [Node::start(dirs[0].path()), Node::start(dirs[1].path())];
    let mut random = Random::new(2);
    assert!(is_closed_after(&b, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"));
    assert!(is_closed_after(&b, b"DECREEP2"));
    for length in [0, FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
        let mut bytes = PREAMBLE.to_vec();
        bytes.extend_from_slice(&length.to_le_bytes());
        assert!(is_closed_after(&b, &bytes), "a frame of length {length}");
    }
    for _ in 0..20 {
        assert!(is_closed_after(&b, &frame(&mut random, 5_000)));
    }
    a.ask(Ask::Send(b.address.clone(), Lane::Protocol, Bytes::from_static(b"x"))).await;
    assert_eq!(b.frames(1).await, [Bytes::from_static(b"x")]);
    a.stop();
    b.stop();
}

#[tokio::test]
async fn a_peer_that_restarts_is_found_again() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [a, b] = [Node::start(dirs[0].path()), Node::start(dirs[1].path())];
    let to = b.address.clone();
    let hello = Bytes::from_static(b"hello");
    a.ask(Ask::Send(to.clone(), Lane::Protocol, hello.clone())).await;
    b.frames(1).await;
    b.stop();
    // Frames to a peer that is away are lost, and nothing piles up.
    while a.stats.snapshot().peer_dials_failed < 2 {
        a.ask(Ask::Send(to.clone(), Lane::Protocol, Bytes::from_static(b"lost"))).await;
        tokio::task::yield_now().await;
    }
    assert!(a.stats.snapshot().frames_dropped > 0);
    let b = Node::start_at(dirs[1].path(), to.as_str());
    let mut waiting = Box::pin(b.frames(1));
    loop {
        a.ask(Ask::Send(to.clone(), Lane::Protocol, hello.clone())).await;
        let wait = tokio::time::timeout(Duration::from_millis(10), &mut waiting);
        if let Ok(frames) = wait.await {
            assert!(frames.contains(&hello));
            break;
        }
    }
    drop(waiting);
    a.stop();
    b.stop();
}

#[tokio::test]
async fn an_address_that_leads_nowhere_costs_only_its_frames() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    for address in ["no such host:1", "127.0.0.1:1", "", "127.0.0.1:99999"] {
        let bytes = Bytes::from_static(b"x");
        node.ask(Ask::Send(Address::new(address), Lane::Bulk, bytes)).await;
    }
    while node.stats.snapshot().frames_dropped < 4 {
        assert_eq!(node.ask(Ask::Echo(1)).await, Told::Number(1));
    }
    node.stop();
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() {
    let first = runtime::bind("127.0.0.1:0").await.unwrap();
    let address = first.local_addr().unwrap().to_string();
    let error = runtime::bind(&address).await.unwrap_err().to_string();
    assert!(error.contains(&address) && error.contains("choose another port"), "{error}");
    let error = runtime::bind("nonsense").await.unwrap_err().to_string();
    assert!(error.contains("cannot listen on nonsense"), "{error}");
}
