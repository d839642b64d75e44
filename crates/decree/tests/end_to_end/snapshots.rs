//! A node that is away while more is written than the others keep of their logs.

use std::path::Path;
use std::time::Duration;

use crate::support::{ByHand, Finished, Node, decree, eventually, finish};

/// Longest wait for something that a healthy cluster does at once.
const SOON: Duration = Duration::from_secs(60);
/// Bytes of one value.
const VALUE: usize = 1 << 20;
const KEYS: usize = 8;
const OPTIONS: &str =
    "--log-bytes-max 4194304 --wal-segment-bytes 4194304 --wal-bytes-max 67108864";

fn ask(cluster: &ByHand, node: u64, arguments: &[&str]) -> Finished {
    let mut command = decree();
    command.args(["--endpoints", &cluster.endpoint(node), "--timeout", "20s"]).args(arguments);
    finish(command, b"")
}

fn start(cluster: &ByHand, node: u64) -> Node {
    Node::start(node, &cluster.line(node, OPTIONS))
}

/// Bytes of the files of a node's log.
fn log_bytes(home: &Path) -> u64 {
    let files = std::fs::read_dir(home).unwrap().map(|entry| entry.unwrap());
    let logs = files.filter(|file| file.file_name().to_string_lossy().starts_with("wal-"));
    logs.map(|file| file.metadata().unwrap().len()).sum()
}

fn value(round: usize, key: usize) -> String {
    let start = format!("{round}-{key}-");
    let filler = "x".repeat(VALUE - start.len());
    start + &filler
}

fn put(cluster: &ByHand, node: u64, round: usize, key: usize) {
    let key_name = format!("key{key}");
    // A disk that is slower than the log is long may refuse for a moment.
    eventually("a value is written", SOON, || {
        let mut command = decree();
        command.args(["--endpoints", &cluster.endpoint(node), "--timeout", "20s"]);
        command.args(["put", &key_name, "-"]);
        finish(command, value(round, key).as_bytes()).code == 0
    });
}

#[test]
fn f21_a_node_that_was_away_for_longer_than_logs_are_kept_comes_back_whole() {
    let cluster = ByHand::new(3);
    let mut nodes: Vec<Option<Node>> = (1..=3).map(|node| Some(start(&cluster, node))).collect();
    let masters = cluster.masters();
    eventually("the cluster is made", SOON, || {
        ask(&cluster, 1, &["init", "--masters", &masters, "--shards", "8"]).code == 0
    });
    eventually("the group is made", SOON, || {
        ask(&cluster, 1, &["join", "1", "1", "2", "3"]).code == 0
    });
    for key in 0..KEYS {
        put(&cluster, 1, 0, key);
    }
    nodes[2] = None;
    // More than a log may be at all.
    for round in 1..=12 {
        for key in 0..KEYS {
            put(&cluster, 1, round, key);
        }
    }
    for node in 1..=2 {
        let bytes = log_bytes(&cluster.directory.path().join(format!("n{node}")));
        assert!(bytes <= 67_108_864 + 2 * 4_194_304, "{bytes} bytes of log on node {node}");
    }
    let node = start(&cluster, 3);
    node.stderr.wait_for("the state here is now that of replica");
    nodes[2] = Some(node);
    eventually("node 3 has everything", SOON, || {
        let status = ask(&cluster, 3, &["--json", "status"]);
        status.code == 0 && status.text().contains("\"trouble\":null")
    });
    // Without node 1 there is no quorum but with node 3.
    nodes[0] = None;
    for key in 0..KEYS {
        eventually("a value is read", SOON, || {
            let got = ask(&cluster, 3, &["get", &format!("key{key}")]);
            let expected = value(12, key);
            assert!(got.code != 0 || got.text().trim_end() == expected, "another value of {key}");
            got.code == 0
        });
    }
    eventually("a write is taken", SOON, || ask(&cluster, 3, &["put", "more", "1"]).code == 0);
    for node in nodes.iter().flatten() {
        assert!(node.stderr.find("panicked").is_none(), "{:#?}", node.stderr.all());
    }
}
