//! `decree dev` from its start to its end.

use std::time::{Duration, Instant};

use crate::support::{Dev, eventually, run_with_input};

#[test]
fn a_piped_session_prints_its_answers_and_stops() {
    let begun = Instant::now();
    let finished = run_with_input(
        &["dev", "--base-port", "0"],
        b"put a x\nputhash a b\nget a\nquery\nstatus\n",
    );
    assert_eq!(finished.code, 0, "{finished:?}");
    let lines: Vec<&str> = finished.text().lines().collect();
    assert_eq!(lines[..3], ["OK", "x", "1063475327"], "{finished:?}");
    assert_eq!(lines[3], "configuration 1");
    assert_eq!(lines[4..6], ["group 1: nodes 1 2 3", "group 2: nodes 1 2 3"]);
    assert_eq!(lines[6..8], ["0-511 -> 1", "512-1023 -> 2"]);
    let roles: Vec<&str> = lines.iter().copied().filter(|line| line.contains(" leads ")).collect();
    assert_eq!(roles.len(), 3, "one leader for each of three groups: {finished:?}");
    // The machine that runs all tests at once is slow; alone it is a second or two.
    assert!(begun.elapsed() < Duration::from_secs(40));
}

#[test]
fn the_first_failure_gives_the_exit_code_and_the_rest_runs() {
    let finished = run_with_input(
        &["dev", "--base-port", "0", "--nodes", "1", "--groups", "1", "--shards", "8"],
        b"get nothing\nnonsense\nput 'a b' \"c d\"\nget 'a b'\n\n# a remark\nput x -\nget 'open\nexit\nget a\n",
    );
    assert_eq!(finished.code, 1, "{finished:?}");
    assert_eq!(finished.text(), "OK\nc d\n", "{finished:?}");
    assert!(finished.stderr.contains("not found"), "{finished:?}");
    assert!(finished.stderr.contains("nonsense"), "{finished:?}");
    assert!(finished.stderr.contains("--file"), "{finished:?}");
    assert!(finished.stderr.contains("quotation"), "{finished:?}");
}

#[test]
fn a_second_dev_continues_with_the_data() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let options = ["dev", "--base-port", "0", "--data-dir", path];
    let first = run_with_input(&options, b"put kept value\nputhash chain a\n");
    assert_eq!(first.code, 0, "{first:?}");
    let contradicting = [&options[..], &["--nodes", "5", "--shards", "16"]].concat();
    let second = run_with_input(&contradicting, b"get kept\nputhash chain b\nquery\n");
    assert_eq!(second.code, 0, "{second:?}");
    let lines: Vec<&str> = second.text().lines().collect();
    assert_eq!(lines[..2], ["value", "3826002220"], "{second:?}");
    assert_eq!(lines[2], "configuration 1", "joined once and for all: {second:?}");
    assert!(second.stderr.contains("--nodes 3"), "{second:?}");
    assert!(second.stderr.contains("--shards 1024"), "{second:?}");
}

#[test]
fn a_signal_ends_it_in_good_order() {
    for name in ["INT", "TERM"] {
        let directory = tempfile::tempdir().unwrap();
        let mut dev = Dev::start(directory.path(), &["--no-shell", "--groups", "1"]);
        assert!(dev.stdout.find("NODE").is_some(), "the table is its output");
        assert_eq!(dev.run(&["put", "a", "b"]).code, 0);
        dev.signal(name);
        assert_eq!(dev.wait_for_end(), 0, "{:#?}", dev.stderr.all());
        assert!(dev.all_gone());
    }
}

#[test]
fn nodes_end_when_dev_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path(), &["--groups", "1", "--shards", "4"]);
    dev.signal("KILL");
    dev.wait_for_end();
    eventually("the nodes end with their parent", Duration::from_secs(20), || dev.all_gone());
}

#[test]
fn it_ends_when_all_nodes_are_dead() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path(), &["--no-shell", "--groups", "1", "--shards", "4"]);
    for node in dev.nodes() {
        dev.kill_node(node);
    }
    assert_eq!(dev.wait_for_end(), 1);
    dev.stderr.wait_for("all nodes are dead");
}

#[test]
fn more_nodes_share_the_groups() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &["--nodes", "5", "--groups", "3", "--shards", "9"]);
    let query = dev.run(&["query"]);
    assert_eq!(
        query.text(),
        "configuration 1\ngroup 1: nodes 1 2 3\ngroup 2: nodes 1 4 5\ngroup 3: nodes 2 3 4\n\
         0-2 -> 1\n3-5 -> 2\n6-8 -> 3\n",
        "{query:?}"
    );
    for key in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(dev.run(&["put", key, key]).code, 0);
        for endpoint in dev.endpoints() {
            let read = crate::support::run(&["--endpoints", &endpoint, "get", key]);
            assert_eq!(read.text(), format!("{key}\n"), "{endpoint}: {read:?}");
        }
    }
    assert_eq!(dev.stop(), 0);
}
