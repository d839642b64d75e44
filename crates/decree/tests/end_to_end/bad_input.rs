//! What goes wrong outside: each gets one clear line, and nothing panics or is lost.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::{ByHand, Dev, Node, decree, eventually, finish, run};

/// Longest wait for something that a healthy cluster does at once.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn init_waits_for_masters_that_are_not_reachable_and_says_so() {
    let cluster = ByHand::new(3);
    let _first = cluster.start(1);
    let line = format!(
        "{} --endpoints {} init --masters {} --shards 8",
        env!("CARGO_BIN_EXE_decree"),
        cluster.endpoint(1),
        cluster.masters()
    );
    let mut init = Node::start(0, &line);
    init.stderr.wait_for(&format!("127.0.0.1:{}", cluster.peer[1]));
    let _others = [cluster.start(2), cluster.start(3)];
    assert_eq!(init.wait(), Some(0), "{:#?}", init.stderr.all());
}

#[test]
fn a_second_init_is_one_with_the_first_or_refused() {
    let cluster = ByHand::new(3);
    let _nodes = [1, 2, 3].map(|node| cluster.start(node));
    let init = |node: u64, shards: &str| {
        run(&[
            "--endpoints",
            &cluster.endpoint(node),
            "init",
            "--masters",
            &cluster.masters(),
            "--shards",
            shards,
        ])
    };
    // Two at once, through different nodes, that mean the same cluster.
    let (one, two) = thread::scope(|scope| {
        let one = scope.spawn(|| init(1, "16"));
        let two = scope.spawn(|| init(2, "16"));
        (one.join().unwrap(), two.join().unwrap())
    });
    assert_eq!((one.code, two.code), (0, 0), "{one:?} {two:?}");
    assert_eq!(one.text(), two.text());
    let again = init(3, "16");
    assert_eq!((again.code, again.text()), (0, one.text()), "{again:?}");
    let other = init(1, "32");
    assert_eq!(other.code, 1, "{other:?}");
    assert_eq!(other.stderr.lines().count(), 1, "{other:?}");

    let stranger = run(&["--endpoints", &cluster.endpoint(1), "join", "1", "1", "2", "9"]);
    assert_eq!(stranger.code, 1, "{stranger:?}");
    assert!(stranger.stderr.contains('9'), "{stranger:?}");
    let joined = run(&["--endpoints", &cluster.endpoint(1), "join", "1", "1", "2", "3"]);
    assert_eq!(joined.code, 0, "{joined:?}");
    let again = run(&["--endpoints", &cluster.endpoint(2), "join", "1", "1", "2", "3"]);
    assert_eq!(again.code, 1, "{again:?}");
    assert_eq!(again.stderr.lines().count(), 1, "{again:?}");
}

#[test]
fn two_different_inits_at_once_make_at_most_one_cluster() {
    let cluster = ByHand::new(3);
    let _nodes = [1, 2, 3].map(|node| cluster.start(node));
    let init = |node: u64, shards: &str| {
        let endpoint = cluster.endpoint(node);
        let masters = cluster.masters();
        run(&[
            "--timeout",
            "20s",
            "--endpoints",
            &endpoint,
            "init",
            "--masters",
            &masters,
            "--shards",
            shards,
        ])
    };
    let (one, two) = thread::scope(|scope| {
        let one = scope.spawn(|| init(1, "16"));
        let two = scope.spawn(|| init(2, "32"));
        (one.join().unwrap(), two.join().unwrap())
    });
    let mut codes = [one.code, two.code];
    codes.sort_unstable();
    assert_eq!(codes, [0, 1], "{one:?} {two:?}");
}

#[test]
fn a_node_without_a_cluster_says_so() {
    let cluster = ByHand::new(1);
    let _node = cluster.start(1);
    let endpoint = cluster.endpoint(1);
    eventually("the node answers", SOON, || run(&["--endpoints", &endpoint, "status"]).code == 0);
    let status = run(&["--endpoints", &endpoint, "status"]);
    assert!(status.text().contains("init"), "{status:?}");
    let get = run(&["--endpoints", &endpoint, "--timeout", "500ms", "get", "a"]);
    assert_eq!(get.code, 1, "{get:?}");
    assert!(get.stderr.contains("init"), "{get:?}");
    assert_eq!(get.stderr.lines().count(), 1, "{get:?}");
}

#[test]
fn a_data_directory_serves_one_node_of_one_cluster_at_a_time() {
    let cluster = ByHand::new(1);
    let node = cluster.start(1);
    let endpoint = cluster.endpoint(1);
    let init = run(&["--endpoints", &endpoint, "init", "--masters", &cluster.masters()]);
    assert_eq!(init.code, 0, "{init:?}");

    let refused = |line: &str, part: &str| {
        let mut node = Node::start(1, line);
        assert_eq!(node.wait(), Some(1), "{line}: {:#?}", node.stderr.all());
        let said = node.stderr.all();
        let errors: Vec<&String> = said.iter().filter(|line| line.starts_with("error")).collect();
        assert_eq!(errors.len(), 1, "{line}: {said:#?}");
        assert!(errors[0].contains(part), "{line}: {said:#?}");
        assert!(!said.iter().any(|line| line.contains("panicked")), "{line}: {said:#?}");
    };
    let other_ports = format!(
        "--grpc-port {} --peer-port {}",
        crate::support::free_port(),
        crate::support::free_port()
    );
    let line = cluster.line(1, "");
    let on_other_ports = line.split(" --grpc-port").next().unwrap().to_owned() + " " + &other_ports;
    refused(&on_other_ports, "in use");

    let elsewhere = tempfile::tempdir().unwrap();
    let home = elsewhere.path().join("n1");
    let taken = format!(
        "{} serve --data-dir {} --masters {} --grpc-port {} --peer-port {}",
        env!("CARGO_BIN_EXE_decree"),
        home.display(),
        cluster.masters(),
        cluster.grpc[0],
        crate::support::free_port(),
    );
    refused(&taken, &cluster.grpc[0].to_string());

    drop(node);
    let as_another = on_other_ports.replace("--node 1", "--node 2");
    refused(&as_another, "node 1");

    let wrong = on_other_ports.replace("--data-dir ", "--data-dir /dev/null/");
    refused(&wrong, "/dev/null");
    let open_to_all = format!("{on_other_ports} --host 0.0.0.0");
    refused(&open_to_all, "--insecure");
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let options = ["--nodes", "1", "--groups", "1", "--shards", "4"];
    let mut first = Dev::start(directories[0].path(), &options);
    let second = Dev::start(directories[1].path(), &options);
    assert_eq!(first.run(&["put", "a", "first"]).code, 0);
    assert_eq!(second.run(&["put", "a", "second"]).code, 0);
    // The first cluster's node is brought back with the second one's masters.
    let line = first.kill_node(1);
    let peer = |dev: &Dev| format!("127.0.0.1:{}", dev.ports()[0]["peer"]);
    let confused = line
        .replace(&format!("--masters {}", peer(&first)), &format!("--masters {}", peer(&second)));
    assert_ne!(confused, line);
    let node = Node::start(1, &confused);
    // Whether it ends or serves its own cluster: it never answers for the other one.
    eventually("the second cluster answers", SOON, || {
        second.run(&["get", "a"]).text() == "second\n"
    });
    let own = run(&["--endpoints", &first.endpoints()[0], "--timeout", "2s", "get", "a"]);
    assert!(own.code != 0 || own.text() == "first\n", "{own:?}");
    assert!(!node.stderr.all().iter().any(|line| line.contains("panicked")));
}

#[test]
fn garbage_on_every_port_harms_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &["--groups", "1", "--shards", "4"]);
    let noise: Vec<u8> =
        (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for ports in dev.ports() {
        for door in ["grpc", "peer"] {
            let port = u16::try_from(ports[door].as_u64().unwrap()).unwrap();
            for garbage in [
                &noise[..],
                b"GET / HTTP/1.1\r\n\r\n",
                &[0xff; 64],
                b"DECREEP1\xff\xff\xff\xff",
                b"DECREEP1\x05\x00\x00\x00hello",
                b"",
            ] {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                // The node may close in the middle of what it does not understand.
                stream.write_all(garbage).ok();
            }
        }
    }
    assert_eq!(dev.run(&["put", "a", "b"]).code, 0);
    assert_eq!(dev.run(&["get", "a"]).text(), "b\n");
    for node in dev.nodes() {
        let log = directory.path().join(format!("node{node}/node.log"));
        let log = std::fs::read_to_string(log).unwrap();
        assert!(!log.contains("panicked"), "{log}");
        assert!(log.lines().count() < 200, "garbage fills the log: {log}");
    }
    assert_eq!(dev.stop(), 0, "every node is still there to be stopped");
}

#[test]
fn dev_names_the_port_that_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let options = ["dev", "--base-port", "0", "--groups", "1", "--data-dir", path];
    let first = crate::support::run_with_input(&options, b"put a b\n");
    assert_eq!(first.code, 0, "{first:?}");
    let kept = std::fs::read(directory.path().join("dev.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    let port = kept["ports"][1]["grpc"].as_u64().unwrap();
    let held = TcpListener::bind(("127.0.0.1", u16::try_from(port).unwrap())).unwrap();
    let second = crate::support::run_with_input(&options, b"get a\n");
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains(&port.to_string()), "{second:?}");
    drop(held);
    let third = crate::support::run_with_input(&options, b"get a\n");
    assert_eq!((third.code, third.text()), (0, "b\n"), "{third:?}");
}

#[test]
fn a_full_log_refuses_writes_and_goes_on_reading() {
    let cluster = ByHand::new(1);
    let line = cluster.line(1, "--wal-bytes-max 4MiB --wal-segment-bytes 1MiB");
    let _node = Node::start(1, &line);
    let endpoint = cluster.endpoint(1);
    let ask = |arguments: &[&str]| {
        let mut command = decree();
        command.args(["--endpoints", &endpoint, "--timeout", "3s"]).args(arguments);
        finish(command, b"")
    };
    assert_eq!(ask(&["init", "--masters", &cluster.masters(), "--shards", "4"]).code, 0);
    assert_eq!(ask(&["join", "1", "1"]).code, 0);
    assert_eq!(ask(&["put", "kept", "value"]).code, 0);
    // One replica alone frees its log with every flush: writes slow down at worst.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("value");
    std::fs::write(&path, vec![b'x'; 600 << 10]).unwrap();
    for number in 0..20 {
        let put = ask(&["put", &format!("key{number}"), "--file", path.to_str().unwrap()]);
        assert!(put.code == 0 || put.stderr.contains("log"), "{put:?}");
        let kept = ask(&["get", "kept"]);
        assert_eq!((kept.code, kept.text()), (0, "value\n"), "{kept:?}");
    }
}

#[test]
fn a_disk_without_room_refuses_writes_goes_on_reading_and_loses_nothing() {
    let cluster = ByHand::new(1);
    let line = cluster.line(1, "--wal-bytes-max 8MiB --wal-segment-bytes 2MiB");
    let endpoint = cluster.endpoint(1);
    let ask = |arguments: &[&str]| {
        let mut command = decree();
        command.args(["--endpoints", &endpoint, "--timeout", "3s"]).args(arguments);
        finish(command, b"")
    };
    let node = Node::start(1, &line);
    assert_eq!(ask(&["init", "--masters", &cluster.masters(), "--shards", "4"]).code, 0);
    assert_eq!(ask(&["join", "1", "1"]).code, 0);
    assert_eq!(ask(&["put", "kept", "value"]).code, 0);
    drop(node);

    // The limit of the shell on the size of files, in blocks of 512 bytes, stands for a full disk:
    // no segment of the log can be made.
    let limited = format!("sh -c 'trap \"\" XFSZ; ulimit -f 2048; exec {line}'");
    let node = Node::start(1, &limited);
    eventually("the node reads", SOON, || ask(&["get", "kept"]).text() == "value\n");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("value");
    std::fs::write(&path, vec![b'x'; 700 << 10]).unwrap();
    let mut acknowledged = Vec::new();
    let refused = (0..20).find_map(|number| {
        let key = format!("key{number}");
        let put = ask(&["put", &key, "--file", path.to_str().unwrap()]);
        if put.code != 0 {
            return Some(put);
        }
        acknowledged.push(key);
        None
    });
    let refused = refused.expect("more was acknowledged than has room");
    assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1), "{refused:?}");
    assert!(refused.stderr.contains("full"), "{refused:?}");
    assert_eq!(ask(&["get", "kept"]).text(), "value\n");
    node.stderr.wait_for("free some space");
    assert!(node.stderr.find("panicked").is_none(), "{:#?}", node.stderr.all());
    drop(node);

    let _node = Node::start(1, &line);
    eventually("the node is back", SOON, || ask(&["get", "kept"]).text() == "value\n");
    for key in acknowledged {
        assert_eq!(ask(&["get", "--raw", &key]).stdout.len(), 700 << 10, "{key}");
    }
}
