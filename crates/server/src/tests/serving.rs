//! A node's process on a real data directory.

use std::path::Path;
use std::time::Duration;

use base::{Address, ClusterId};
use client::{Client, Options};
use storage::Superblock;

use crate::{ServeError, ServeOptions, serve};

/// A port that was free a moment ago.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn options(dir: &Path) -> ServeOptions {
    let (grpc, peer) = (free_address(), free_address());
    ServeOptions {
        data_dir: dir.to_path_buf(),
        masters: vec![Address::new(&peer)],
        grpc,
        peer,
        advertise: "127.0.0.1".to_owned(),
        node: Some(1),
        wal_bytes_max: Some(4 << 20),
        wal_segment_bytes: Some(1 << 20),
        cache_bytes: None,
        log_bytes_max: None,
        scrub_bytes_per_second: None,
        insecure: false,
    }
}

fn named(dir: &Path) -> Option<ClusterId> {
    // The node still has the directory: its file is only read.
    let bytes = std::fs::read(dir.join("superblock")).ok()?;
    let id = bytes.get(64..80)?;
    Some(ClusterId(u128::from_le_bytes(id.try_into().ok()?)))
}

/// Waits until the threads of a node that ended have let go of its directory.
async fn released(dir: &Path) {
    for _ in 0..200 {
        if runtime::DataDir::open(dir).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the directory stays in use");
}

async fn init(options: ServeOptions) -> ClusterId {
    // It tries again while the node starts.
    let client = Client::connect(vec![options.grpc], Options::default()).unwrap();
    client.init(options.masters, 4).await.unwrap()
}

#[tokio::test]
async fn a_node_whose_log_was_removed_does_not_start_as_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let first = options(dir.path());
    // The superblock names the cluster while the node runs: it may never stop in good order.
    let named_in_time = async {
        let cluster = init(first.clone()).await;
        for _ in 0..200 {
            if named(dir.path()) == Some(cluster) {
                return cluster;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the superblock does not name the cluster");
    };
    let cluster = tokio::select! {
        ended = serve(first.clone(), std::future::pending()) => panic!("the node ended: {ended:?}"),
        cluster = named_in_time => cluster,
    };
    released(dir.path()).await;
    let again = tokio::time::sleep(Duration::from_secs(1));
    serve(options(dir.path()), again).await.unwrap();

    released(dir.path()).await;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("wal-") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let error = serve(options(dir.path()), std::future::pending()).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ServeError::Open(_)), "{text}");
    assert!(text.contains("were removed") && text.contains(&cluster.to_string()), "{text}");
    assert!(text.contains("knows of none"), "{text}");
    released(dir.path()).await;
    // Nor later, and what names the cluster stays.
    assert!(serve(options(dir.path()), std::future::pending()).await.is_err());
    released(dir.path()).await;
    let mut disk = runtime::DataDir::open(dir.path()).unwrap().disk().unwrap();
    assert_eq!(Superblock::read(&mut disk).unwrap().unwrap().cluster_id, cluster);
}
