//! Bits that rot on a node's disk: nothing is lost, and the node says what it found.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base::GroupId;
use storage::{Superblock, WalOptions};

use crate::harness::disks::load;
use crate::support::{ByHand, Node, decree, eventually, finish};

/// Longest wait for something that a healthy cluster does at once.
const SOON: Duration = Duration::from_secs(60);
const KEYS: usize = 24;

fn value(number: usize) -> String {
    format!("value-{number:04}-of-a-key-whose-disk-rots")
}

fn ask(cluster: &ByHand, node: u64, arguments: &[&str]) -> crate::support::Finished {
    let mut command = decree();
    command.args(["--endpoints", &cluster.endpoint(node), "--timeout", "20s"]).args(arguments);
    finish(command, b"")
}

/// Three nodes, one group on all of them, and values in it.
fn cluster_with_values() -> (ByHand, Vec<Option<Node>>) {
    let cluster = ByHand::new(3);
    let nodes = (1..=3).map(|node| Some(cluster.start(node))).collect();
    let masters = cluster.masters();
    eventually("the cluster is made", SOON, || {
        ask(&cluster, 1, &["init", "--masters", &masters, "--shards", "8"]).code == 0
    });
    eventually("the group is made", SOON, || {
        ask(&cluster, 1, &["join", "1", "1", "2", "3"]).code == 0
    });
    for number in 0..KEYS {
        let put = ask(&cluster, 1, &["put", &format!("key{number}"), &value(number)]);
        assert_eq!(put.code, 0, "{put:?}");
    }
    (cluster, nodes)
}

fn assert_values(cluster: &ByHand, node: u64) {
    for number in 0..KEYS {
        eventually("a value is read", SOON, || {
            let got = ask(cluster, node, &["get", &format!("key{number}")]);
            assert!(got.code != 0 || got.text() == format!("{}\n", value(number)), "{got:?}");
            got.code == 0
        });
    }
}

/// Flips a bit in each place of a node's log where one of these values stands.
fn rot_log(home: &Path, numbers: impl Fn(usize) -> bool) -> usize {
    let mut flipped = 0;
    for entry in std::fs::read_dir(home).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("wal-") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        for number in (0..KEYS).filter(|number| numbers(*number)) {
            let wanted = value(number).into_bytes();
            let found: Vec<usize> = bytes
                .windows(wanted.len())
                .enumerate()
                .filter(|(_, window)| *window == wanted)
                .map(|(at, _)| at)
                .collect();
            for at in found {
                bytes[at + 3] ^= 4;
                flipped += 1;
            }
        }
        std::fs::write(&path, bytes).unwrap();
    }
    flipped
}

/// Flips a bit in each record of a node's log that says who the node is.
fn rot_own_records(home: &Path) -> usize {
    let mut disk = load(home).unwrap();
    let superblock = Superblock::read(&mut disk).unwrap().unwrap();
    let records = sim::rot::records(&disk, WalOptions::new(superblock.disk_id));
    let own = records.iter().filter(|record| record.group == GroupId::NODE);
    let rotten = own.map(|record| {
        let path = home.join(&record.read.file);
        let mut bytes = std::fs::read(&path).unwrap();
        let mut places = bytes.windows(record.payload.len());
        let at = places.position(|window| window == record.payload).unwrap();
        bytes[at + record.payload.len() / 2] ^= 0x10;
        std::fs::write(&path, bytes).unwrap();
    });
    rotten.count()
}

fn home(cluster: &ByHand, node: u64) -> PathBuf {
    cluster.directory.path().join(format!("n{node}"))
}

#[test]
fn f11_rot_of_a_different_part_of_each_nodes_log_loses_nothing() {
    let (cluster, mut nodes) = cluster_with_values();
    // The last block is covered by another when the log falls idle.
    std::thread::sleep(Duration::from_secs(2));
    nodes.clear();
    for node in 1..=3 {
        let flipped = rot_log(&home(&cluster, node), |number| number as u64 % 3 + 1 == node);
        assert!(flipped > 0, "node {node} has its part");
    }
    let nodes: Vec<Node> = (1..=3).map(|node| cluster.start(node)).collect();
    for node in 1..=3 {
        assert_values(&cluster, node);
    }
    for node in &nodes {
        node.stderr.wait_for("the write-ahead log is damaged");
        assert!(node.stderr.find("panicked").is_none(), "{:#?}", node.stderr.all());
        assert!(node.stderr.find("quarantined").is_none(), "{:#?}", node.stderr.all());
    }
    eventually("all is mended", SOON, || {
        (1..=3).all(|node| {
            let status = ask(&cluster, node, &["--json", "status"]);
            let status = status.text();
            status.contains("\"trouble\":null") && !status.contains("wait for repair")
        })
    });
}

/// The records are all that the log knows of the cluster; the superblock knows it too.
#[test]
fn f11_a_node_whose_records_of_itself_rotted_is_one_of_its_cluster_all_the_same() {
    let (cluster, mut nodes) = cluster_with_values();
    // The last block is covered by another when the log falls idle.
    std::thread::sleep(Duration::from_secs(2));
    nodes[2] = None;
    assert!(rot_own_records(&home(&cluster, 3)) > 0);
    nodes[2] = Some(cluster.start(3));
    assert_values(&cluster, 3);
    // With its vote the group goes on without another node.
    nodes[0] = None;
    eventually("a write is taken", SOON, || ask(&cluster, 3, &["put", "more", "1"]).code == 0);
    assert_values(&cluster, 3);
    let node = nodes[2].as_ref().unwrap();
    node.stderr.wait_for("the write-ahead log is damaged");
    assert!(node.stderr.find("panicked").is_none(), "{:#?}", node.stderr.all());
}

#[test]
fn f11_rot_of_a_store_is_never_a_wrong_answer_and_no_end_of_the_node() {
    let (cluster, mut nodes) = cluster_with_values();
    let tables = home(&cluster, 2).join("engine/tables");
    let files = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&tables).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    eventually("the store is written", SOON, || !files().is_empty());
    // What is there may still be on its way.
    std::thread::sleep(Duration::from_secs(2));
    nodes[1] = None;
    for file in files() {
        let mut bytes = std::fs::read(&file).unwrap();
        let end = bytes.len() / 2;
        bytes[..end].iter_mut().for_each(|byte| *byte ^= 0x40);
        std::fs::write(&file, bytes).unwrap();
    }
    nodes[1] = Some(cluster.start(2));
    assert_values(&cluster, 2);
    // With its vote the group goes on without another node.
    nodes[0] = None;
    assert_values(&cluster, 2);
    eventually("a write is taken", SOON, || ask(&cluster, 2, &["put", "more", "1"]).code == 0);
    let node = nodes[1].take().unwrap();
    assert!(node.stderr.find("panicked").is_none(), "{:#?}", node.stderr.all());
    let lines = node.stderr.all();
    let said = |line: &String| {
        line.contains("store") && line.contains("lost") || line.contains("set aside")
    };
    assert!(lines.iter().any(said), "{lines:#?}");
}

/// A block of a table rots. The group takes a copy; what is left in the table would keep the store from
/// being compacted for ever.
#[test]
fn f11_a_store_with_a_damaged_block_is_renewed_while_the_node_runs() {
    let (cluster, mut nodes) = cluster_with_values();
    let engine = home(&cluster, 2).join("engine");
    let rotten = value(7);
    let rot = || {
        let entries = std::fs::read_dir(engine.join("tables")).into_iter().flatten();
        let mut rotted = 0;
        for entry in entries {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let mut places = bytes.windows(rotten.len());
            let Some(at) = places.position(|window| window == rotten.as_bytes()) else { continue };
            bytes[at] ^= 0x40;
            std::fs::write(&path, bytes).unwrap();
            rotted += 1;
        }
        rotted
    };
    // What is there may still be on its way.
    std::thread::sleep(Duration::from_secs(3));
    nodes[1] = None;
    assert!(rot() > 0, "the store has the value");
    nodes[1] = Some(cluster.start(2));
    let mut writes = 0;
    eventually("the store is renewed", SOON, || {
        // Each that stands alone for a while is a flush.
        writes += 1;
        ask(&cluster, 1, &["put", "more", &format!("{writes}")]);
        std::thread::sleep(Duration::from_millis(300));
        let node = nodes[1].as_ref().unwrap();
        assert!(node.stderr.find("panicked").is_none(), "{:#?}", node.stderr.all());
        node.stderr.find("the store is renewed, and takes").is_some()
    });
    eventually("nothing is wrong", SOON, || {
        ask(&cluster, 2, &["--json", "status"]).text().contains("\"trouble\":null")
    });
    eventually("what was damaged is gone", SOON, || {
        !engine.join("tables").exists() && engine.join("renewed-1/complete").exists()
    });
    nodes[1] = None;
    nodes[1] = Some(cluster.start(2));
    nodes[0] = None;
    assert_values(&cluster, 2);
}
