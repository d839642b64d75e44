//! Every command against a running cluster: what it prints and how it ends.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::support::{Dev, decree, eventually, finish};

#[test]
fn values_of_any_bytes_come_back_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(&directory.path().join("data"), &["--groups", "1"]);
    let every_byte: Vec<u8> = (0..=255).cycle().take(1_000).collect();
    let put = dev.run_with_input(&["put", "binary", "-"], &every_byte);
    assert_eq!((put.code, put.text()), (0, "OK\n"), "{put:?}");
    assert_eq!(dev.run(&["get", "--raw", "binary"]).stdout, every_byte);
    let with_newline = [&every_byte[..], b"\n"].concat();
    assert_eq!(dev.run(&["get", "binary"]).stdout, with_newline);
    let json = &dev.run(&["get", "binary", "--json"]).json()[0];
    assert!(json["value"]["base64"].is_string(), "{json}");

    let largest = vec![0xabu8; 8 << 20];
    let path = directory.path().join("largest");
    std::fs::write(&path, &largest).unwrap();
    let path = path.to_str().unwrap();
    let put = dev.run(&["put", "largest", "--file", path]);
    assert_eq!((put.code, put.text()), (0, "OK\n"), "{put:?}");
    assert!(dev.run(&["get", "--raw", "largest"]).stdout == largest, "8 MiB differ");
    std::fs::write(path, [&largest[..], b"x"].concat()).unwrap();
    let put = dev.run(&["put", "largest", "--file", path]);
    assert_eq!(put.code, 1, "{put:?}");
    assert!(put.stderr.contains("8388608"), "{put:?}");
    let append = dev.run(&["append", "largest", "x"]);
    assert_eq!(append.code, 1, "{append:?}");
    assert_eq!(dev.run(&["get", "--raw", "largest"]).stdout.len(), 8 << 20);

    let mut odd_key = decree();
    odd_key.args(["--endpoints", &dev.endpoints()[0], "put"]);
    odd_key.arg(OsStr::from_bytes(b"\xff\xfe")).arg("value");
    assert_eq!(finish(odd_key, b"").code, 0);
    let mut odd_key = decree();
    odd_key.args(["--endpoints", &dev.endpoints()[1], "get"]).arg(OsStr::from_bytes(b"\xff\xfe"));
    assert_eq!(finish(odd_key, b"").text(), "value\n");
    for value in ["", "-5", "--", " "] {
        assert_eq!(dev.run(&["put", "--", "odd", value]).code, 0);
        assert_eq!(dev.run(&["get", "odd"]).text(), format!("{value}\n"));
    }
}

#[test]
fn operations_print_what_they_promise() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &["--groups", "2", "--shards", "16"]);
    let expect = |arguments: &[&str], code: i32, stdout: &str, stderr: &str| {
        let finished = dev.run(arguments);
        assert_eq!(finished.code, code, "{arguments:?}: {finished:?}");
        assert_eq!(finished.text(), stdout, "{arguments:?}: {finished:?}");
        assert_eq!(finished.stderr, stderr, "{arguments:?}: {finished:?}");
    };
    expect(&["get", "a"], 1, "", "not found\n");
    expect(&["delete", "a"], 1, "", "not found\n");
    expect(&["puthash", "a", "x"], 0, "\n", "");
    expect(&["get", "a"], 0, "4245442695\n", "");
    expect(&["puthash", "a", "0", "--raw"], 0, "4245442695", "");
    expect(&["put", "a", "v"], 0, "OK\n", "");
    expect(&["append", "a", "w"], 0, "OK\n", "");
    expect(&["get", "a"], 0, "vw\n", "");
    expect(&["delete", "a"], 0, "OK\n", "");
    expect(&["cas", "a", "1", "--if-value", "0"], 1, "", "not swapped: the key is absent\n");
    expect(&["cas", "a", "1", "--if-absent"], 0, "OK\n", "");
    let version = dev.run(&["get", "a", "--json"]).json()[0]["version"].to_string();
    let swapped = format!("not swapped: version is {version}\n");
    expect(&["cas", "a", "2", "--if-absent"], 1, "", &swapped);
    expect(&["cas", "a", "2", "--if-value", "1"], 0, "OK\n", "");
    let now = dev.run(&["get", "a", "--json"]).json()[0]["version"].to_string();
    let swapped = format!("not swapped: version is {now}\n");
    expect(&["cas", "a", "3", "--if-version", &version], 1, "", &swapped);
    expect(&["get", "a"], 0, "2\n", "");
    for (sent, stored) in [("0", "890022063"), ("1", "78513644"), ("2", "3250269825")] {
        dev.run(&["puthash", "chain", sent]);
        expect(&["get", "chain"], 0, &format!("{stored}\n"), "");
    }
    dev.run(&["puthash", "tamper", "", "--sha256"]);
    expect(
        &["get", "tamper"],
        0,
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n",
        "",
    );
    let absent = dev.run(&["get", "nothing", "--json"]);
    assert_eq!((absent.code, absent.stderr.as_str()), (1, ""), "{absent:?}");
    let absent: serde_json::Value = serde_json::from_str(absent.text()).unwrap();
    assert!(absent["seen"].as_str().is_some_and(|seen| seen.contains(':')), "{absent}");
    let known = ["key", "value", "version"].map(|name| absent[name].clone());
    assert_eq!(known, ["nothing".into(), serde_json::Value::Null, 0.into()]);
}

#[test]
fn the_cluster_shows_what_is_where() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &["--groups", "2", "--shards", "16"]);
    assert_eq!(dev.run(&["put", "a", "12345"]).code, 0);

    let status = dev.run(&["status", "--json"]).json();
    assert_eq!(status.len(), 3, "{status:#?}");
    for node in &status {
        assert_eq!(node["ready"], true, "{node}");
        assert_eq!(node["cluster"], status[0]["cluster"]);
        assert_eq!(node["groups"].as_array().unwrap().len(), 3, "{node}");
    }
    // One endpoint is enough to see all nodes.
    let through_one =
        crate::support::run(&["--endpoints", &dev.endpoints()[2], "status", "--json"]).json();
    assert_eq!(through_one.len(), 3);

    let nodes = dev.run(&["nodes", "--json"]).json();
    let numbers: Vec<u64> = nodes.iter().map(|node| node["node"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(dev.run(&["nodes"]).text().lines().count(), 4);

    let ranges = dev.run(&["shards", "--json"]).json();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(ranges.iter().all(|range| range["state"] == "served"), "{ranges:?}");
    let keys: u64 = ranges.iter().map(|range| range["keys"].as_u64().unwrap()).sum();
    assert_eq!(keys, 1);
    assert_eq!(dev.run(&["shards", "--all"]).text().lines().count(), 17);

    let empty = dev.run(&["query", "0"]);
    assert!(empty.text().starts_with("configuration 0\n"), "{empty:?}");
    let newest = &dev.run(&["query", "99", "--json"]).json()[0];
    assert_eq!(newest["configuration"], 1);
    assert_eq!(newest["shards"][1], serde_json::json!({ "first": 8, "last": 15, "group": 2 }));
}

#[test]
fn bench_reports_its_figures() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &["--groups", "1", "--shards", "16"]);
    for (op, more) in [("put", "--clients=4"), ("get", "--unary"), ("mix", "--clients=4")] {
        let arguments =
            ["bench", "--op", op, more, "--keys", "50", "--ops", "500", "--warmup", "0", "--json"];
        let figures = &dev.run(&arguments).json()[0];
        assert_eq!(figures["ops"], 500, "{figures}");
        assert_eq!(figures["failed"], 0, "{figures}");
        assert!(figures["p50_us"].as_u64() <= figures["p999_us"].as_u64(), "{figures}");
    }
    let csv = dev.run(&["bench", "--seconds", "300ms", "--warmup", "0", "--csv"]);
    assert_eq!(csv.code, 0, "{csv:?}");
    let lines: Vec<&str> = csv.text().lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].split(',').count(), lines[1].split(',').count());
}

#[test]
fn a_benchmark_at_a_rate_starts_as_many_operations_as_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &["--groups", "1", "--shards", "4"]);
    let options = ["--warmup", "0s", "--op", "mix", "--keys", "50", "--value-size", "10"];
    let bench = |more: &[&str]| {
        let finished = dev.run(&[&["bench", "--json"], &options[..], more].concat());
        finished.json().remove(0)
    };
    let figures = bench(&["--rate", "200", "--ops", "100"]);
    assert_eq!((&figures["rate"], &figures["ops"]), (&200.into(), &100.into()), "{figures}");
    assert_eq!((&figures["not_sent"], &figures["failed"]), (&0.into(), &0.into()), "{figures}");
    // A hundred of them are due within half a second.
    assert!(figures["seconds"].as_f64().unwrap() > 0.49, "{figures}");
    // Far more than may be open at a time: none waits for another, and none is forgotten.
    let figures = bench(&["--rate", "500000", "--outstanding", "1", "--ops", "5000"]);
    let count = |name: &str| figures[name].as_u64().unwrap();
    assert_eq!(count("ops") + count("not_sent") + count("failed"), 5_000, "{figures}");
    assert!(count("not_sent") > 0, "{figures}");
}

#[test]
fn a_read_says_how_new_its_value_must_be() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path(), &["--shards", "16"]);
    let put = dev.run(&["put", "a", "1", "--json"]);
    let seen = put.json()[0]["seen"].as_str().unwrap().to_owned();
    for read in ["linearizable", "bounded:1h", "bounded:1ms"] {
        let finished = dev.run(&["get", "a", "--read", read]);
        assert_eq!((finished.code, finished.text()), (0, "1\n"), "{read}: {finished:?}");
    }
    let after = ["get", "a", "--read", "sequential", "--after", &seen];
    for _ in 0..5 {
        let finished = dev.run(&after);
        assert_eq!((finished.code, finished.text()), (0, "1\n"), "{finished:?}");
    }
    // The leader has whatever anybody may have seen.
    let later = dev.run(&["get", "a", "--read", "sequential", "--after", "9:1"]);
    assert_eq!((later.code, later.text()), (0, "1\n"), "{later:?}");

    // One node alone can answer what it has, and no more.
    let nodes = dev.nodes();
    dev.kill_node(nodes[0]);
    dev.kill_node(nodes[1]);
    eventually("its lease ends", Duration::from_secs(20), || {
        dev.run(&["get", "a", "--timeout", "500ms"]).code == 1
    });
    assert_eq!(dev.run(&["get", "a", "--timeout", "500ms", "--read", "bounded:1ms"]).code, 1);
    let finished = dev.run(&after);
    assert_eq!((finished.code, finished.text()), (0, "1\n"), "{finished:?}");
    let later = ["get", "a", "--timeout", "500ms", "--read", "sequential", "--after", "9:1"];
    assert_eq!(dev.run(&later).code, 1);
}
