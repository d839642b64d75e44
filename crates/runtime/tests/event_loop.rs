//! The loop with a machine that has no protocol.
#![allow(clippy::unwrap_used)]

mod toy;

use std::os::unix::fs::symlink;

use bytes::Bytes;
use replica_group::turn::Place;
use runtime::{Handle, RunError, Stopped};
use storage::{Batch, Engine, EngineError};
use toy::{Ask, LOG, Node, PAGE, Told};

#[tokio::test]
async fn requests_are_answered_by_calls_and_by_streams() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    assert_eq!(node.ask(Ask::Echo(7)).await, Told::Number(7));

    let (stream, mut replies) = node.handle.stream(16);
    let asking = async {
        for number in 0..10_000 {
            stream.send(number, Ask::Echo(number * 2)).await.unwrap();
        }
        drop(stream);
    };
    let answering = async {
        let mut count = 0;
        while let Some((number, told)) = replies.next().await {
            assert_eq!(told, Told::Number(number * 2));
            count += 1;
        }
        count
    };
    let ((), count) = tokio::join!(asking, answering);
    assert_eq!(count, 10_000);
    node.stop();
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    tokio::select! {
        biased;
        _ = node.handle.call(Ask::Store(1)) => {}
        () = std::future::ready(()) => {}
    }
    let (stream, replies) = node.handle.stream(4);
    stream.send(1, Ask::Store(2)).await.unwrap();
    drop(replies);
    assert_eq!(stream.send(2, Ask::Store(3)).await, Err(Stopped));
    assert_eq!(node.ask(Ask::Echo(1)).await, Told::Number(1));
    node.stop();
}

#[tokio::test]
async fn what_is_answered_after_the_log_is_on_disk_and_syncs_are_shared() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    let (stream, mut replies) = node.handle.stream(64);
    for number in 0..50 {
        stream.send(number, Ask::Store(number as u8 + 1)).await.unwrap();
    }
    for _ in 0..50 {
        assert_eq!(replies.next().await.unwrap().1, Told::Done);
    }
    let log = std::fs::read(dir.path().join(LOG)).unwrap();
    for page in 0..50 {
        assert!(log[page * PAGE..(page + 1) * PAGE].iter().all(|byte| *byte == page as u8 + 1));
    }
    let stats = node.stats.snapshot();
    assert!(stats.wal_syncs < 50, "{} syncs for 50 requests at once", stats.wal_syncs);
    assert_eq!(stats.wal_bytes, 50 * PAGE as u64);
    assert_eq!((stats.requests, stats.replies), (50, 50));
    assert!(stats.open_files > 0 && stats.resident_bytes > 0 && stats.turns > 0);
    node.stop();
}

#[tokio::test]
async fn old_records_are_read_segments_prepared_and_flushes_written() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    assert_eq!(node.ask(Ask::Store(9)).await, Told::Done);
    assert_eq!(node.ask(Ask::ReadPage(0)).await, Told::Bytes(Ok(Bytes::from(vec![9; PAGE]))));
    assert_eq!(node.ask(Ask::Prepare("wal-2".to_string())).await, Told::Done);
    assert_eq!(std::fs::metadata(dir.path().join("wal-2")).unwrap().len(), 1 << 20);
    let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
    let batch = Batch { changes: vec![(key, Some(value.clone()))] };
    assert_eq!(node.ask(Ask::Flush(batch)).await, Told::Done);
    assert_eq!(node.engine.get(b"k"), Ok(Some(value)));
    assert_eq!(node.stats.snapshot().flush_bytes, 2);
    node.stop();
}

#[tokio::test]
async fn a_reply_whose_time_has_passed_is_not_given() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    assert_eq!(node.ask(Ask::Late).await, Told::Late(1));
    assert_eq!(node.stats.snapshot().replies_late, 1);
    node.stop();
}

#[tokio::test]
async fn a_stopped_node_answers_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    let handle: Handle<Ask, Told> = node.handle.clone();
    node.stop();
    assert_eq!(handle.call(Ask::Echo(1)).await, Err(Stopped));
    let (stream, _replies) = handle.stream(1);
    assert_eq!(stream.send(1, Ask::Echo(1)).await, Err(Stopped));
    // The lock of the directory went with the node.
    Node::start(dir.path()).stop();
}

#[tokio::test]
async fn a_log_that_cannot_be_written_ends_the_node_unanswered() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    assert_eq!(node.handle.call(Ask::StoreNowhere).await, Err(Stopped));
    let error = node.end().unwrap_err();
    assert!(matches!(error, RunError::Wal(_)), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
}

/// What the disk had no room for so far, once it is so much.
async fn no_room(node: &Node, count: usize) -> Vec<(Place, bool)> {
    loop {
        let told = node.ask(Ask::NoRoom).await;
        let Told::NoRoom(places) = told else { panic!("{told:?}") };
        if places.len() >= count {
            return places;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn f15_a_log_without_room_waits_and_goes_on_when_there_is_some() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/dev/full", dir.path().join("nowhere")).unwrap();
    let node = Node::start(dir.path());
    let waiting = tokio::spawn({
        let handle = node.handle.clone();
        async move { handle.call(Ask::StoreNowhere).await }
    });
    assert_eq!(no_room(&node, 1).await, [(Place::Log, true)]);
    assert_eq!(node.ask(Ask::Echo(7)).await, Told::Number(7), "everything else goes on");
    assert!(!waiting.is_finished(), "nothing is acknowledged");
    std::fs::write(dir.path().join("room"), [0; 4096]).unwrap();
    std::fs::rename(dir.path().join("room"), dir.path().join("nowhere")).unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(Told::Done));
    assert_eq!(no_room(&node, 2).await, [(Place::Log, true), (Place::Log, false)]);
    node.stop();
}

#[tokio::test]
async fn f15_a_store_without_room_waits_and_goes_on_when_there_is_some() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    node.engine.fail(Some(&EngineError::full("no room").0));
    let change = (Bytes::from_static(b"k"), Some(Bytes::from_static(b"v")));
    let waiting = tokio::spawn({
        let handle = node.handle.clone();
        async move { handle.call(Ask::Flush(Batch { changes: vec![change] })).await }
    });
    assert_eq!(no_room(&node, 1).await, [(Place::Store, true)]);
    assert_eq!(node.ask(Ask::Echo(7)).await, Told::Number(7));
    node.engine.fail(None);
    assert_eq!(waiting.await.unwrap(), Ok(Told::Done));
    assert_eq!(no_room(&node, 2).await, [(Place::Store, true), (Place::Store, false)]);
    assert_eq!(node.engine.records(), 1);
    node.stop();
}

#[tokio::test]
async fn f15_a_node_that_stops_on_a_full_disk_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/dev/full", dir.path().join("nowhere")).unwrap();
    let node = Node::start(dir.path());
    let waiting = tokio::spawn({
        let handle = node.handle.clone();
        async move { handle.call(Ask::StoreNowhere).await }
    });
    assert_eq!(no_room(&node, 1).await.len(), 1);
    node.handle.stop();
    assert_eq!(waiting.await.unwrap(), Err(Stopped));
    let error = node.end().unwrap_err();
    assert!(matches!(error, RunError::WalFull(_)), "{error}");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
}

#[tokio::test]
async fn a_failed_engine_or_machine_ends_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    node.engine.fail(Some("the engine broke"));
    let change = (Bytes::from_static(b"k"), None);
    let asked = node.handle.call(Ask::Flush(Batch { changes: vec![change] })).await;
    assert_eq!(asked, Err(Stopped));
    assert_eq!(node.end().unwrap_err().to_string(), "the engine broke");

    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    assert_eq!(node.handle.call(Ask::GiveUp).await, Err(Stopped));
    assert_eq!(node.end().unwrap_err().to_string(), "the toy gave up");
}
