//! What needs no cluster: usage, its errors, and what is refused before anybody is asked.

use std::fs::File;

use crate::support::{run, run_with_input};

#[test]
fn an_unknown_command_or_flag_is_a_usage_error() {
    for arguments in [&["fetch", "a"][..], &["get", "a", "--fast"], &["get"], &[]] {
        let finished = run(arguments);
        assert_eq!(finished.code, 2, "{finished:?}");
        assert!(finished.stderr.contains("Usage"), "{finished:?}");
        assert!(finished.stdout.is_empty(), "{finished:?}");
    }
}

#[test]
fn help_teaches_by_example() {
    for command in [
        "dev", "serve", "init", "get", "put", "puthash", "append", "cas", "join", "leave", "move",
        "bench",
    ] {
        let finished = run(&[command, "--help"]);
        assert_eq!(finished.code, 0, "{finished:?}");
        let example = format!("decree {command}");
        let examples = finished.text().split_once("Example").unwrap().1.to_owned();
        assert!(examples.contains(&example), "{examples}");
    }
    assert!(run(&["--help"]).text().contains("Exit codes"));
}

#[test]
fn a_condition_is_required_and_only_one() {
    let without = run(&["cas", "key", "new"]);
    assert_eq!(without.code, 2, "{without:?}");
    let with_two = run(&["cas", "key", "new", "--if-absent", "--if-version", "3"]);
    assert_eq!(with_two.code, 2, "{with_two:?}");
}

#[test]
fn what_is_no_address_is_named() {
    for endpoint in ["localhost", "127.0.0.1:", ":7101", "127.0.0.1:99999", "127.0.0.1:0"] {
        let finished = run(&["--endpoints", endpoint, "get", "a"]);
        assert_eq!(finished.code, 2, "{finished:?}");
        assert!(finished.stderr.contains(&format!("`{endpoint}`")), "{finished:?}");
    }
    let finished = run(&["init", "--masters", "7301"]);
    assert_eq!(finished.code, 2, "{finished:?}");
}

#[test]
fn groups_without_nodes_are_a_usage_error() {
    for words in ["1", "1 1 +", "+ 1 1", "one 1", "1 n1"] {
        let arguments: Vec<&str> = ["join"].into_iter().chain(words.split(' ')).collect();
        let finished = run(&arguments);
        assert_eq!(finished.code, 2, "{words}: {finished:?}");
    }
}

#[test]
fn moves_without_shards_or_a_group_are_a_usage_error() {
    for words in ["7", "7 one", "a-b 1", "9-7 1", "7 1 +", "+ 7 1", "70000 1", "--cancel x"] {
        let arguments: Vec<&str> = ["move"].into_iter().chain(words.split(' ')).collect();
        let finished = run(&arguments);
        assert_eq!(finished.code, 2, "{words}: {finished:?}");
        assert!(!finished.stderr.is_empty(), "{words}: {finished:?}");
    }
    assert_eq!(run(&["leave"]).code, 2);
    assert_eq!(run(&["leave", "one"]).code, 2);
}

#[test]
fn a_benchmark_has_a_rate_or_clients_that_wait_and_not_both() {
    for words in [
        "--rate 0",
        "--rate 1000001",
        "--rate fast",
        "--rate 10 --clients 4",
        "--outstanding 10",
        "--rate 10 --outstanding 0",
    ] {
        let arguments: Vec<&str> = ["bench"].into_iter().chain(words.split(' ')).collect();
        let finished = run(&arguments);
        assert_eq!(finished.code, 2, "{words}: {finished:?}");
        assert!(finished.stdout.is_empty(), "{words}: {finished:?}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let finished = run(&["put", "key", "--file", "/no/such/file"]);
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stderr.contains("/no/such/file"), "{finished:?}");
}

#[test]
fn a_key_or_value_over_its_limit_is_refused_before_anybody_is_asked() {
    let key = "k".repeat((4 << 10) + 1);
    let finished = run(&["--endpoints", "127.0.0.1:1", "get", &key]);
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stderr.contains("4097"), "{finished:?}");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("value");
    File::create(&path).unwrap().set_len((8 << 20) + 1).unwrap();
    let path = path.to_str().unwrap();
    let finished = run(&["--endpoints", "127.0.0.1:1", "put", "key", "--file", path]);
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stderr.contains("8388608"), "{finished:?}");
}

#[test]
fn nobody_reachable_has_its_own_exit_code() {
    for command in [&["get", "a"][..], &["put", "a", "b"], &["query"], &["status"], &["shards"]] {
        let mut arguments = vec!["--endpoints", "127.0.0.1:1", "--timeout", "300ms"];
        arguments.extend(command);
        let finished = run(&arguments);
        assert_eq!(finished.code, 4, "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        assert!(finished.stderr.contains("127.0.0.1:1"), "{finished:?}");
    }
}

#[test]
fn with_json_a_failure_is_an_object() {
    let finished = run(&["--json", "--endpoints", "127.0.0.1:1", "--timeout", "300ms", "get", "a"]);
    let object: serde_json::Value = serde_json::from_str(finished.stderr.trim()).unwrap();
    assert_eq!(object["error"], "nobody_reachable");
    assert!(object["message"].as_str().is_some_and(|message| !message.is_empty()));
}

#[test]
fn an_endless_input_is_refused_like_any_value_that_is_too_long() {
    let finished = run_with_input(
        &["--endpoints", "127.0.0.1:1", "put", "key", "-"],
        &vec![b'x'; (8 << 20) + 4_096],
    );
    assert_eq!(finished.code, 1, "{finished:?}");
}

#[test]
fn ports_that_do_not_exist_are_a_usage_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let finished = run(&["dev", "--base-port", "65500", "--data-dir", path.to_str().unwrap()]);
    assert_eq!(finished.code, 2, "{finished:?}");
}

#[test]
fn how_new_a_value_must_be_is_checked_before_anybody_is_asked() {
    for (arguments, word) in [
        (&["--read", "newest"][..], "linearizable"),
        (&["--read", "bounded"], "bounded:500ms"),
        (&["--read", "bounded:"], "500ms"),
        (&["--read", "bounded:0s"], "1ms"),
        (&["--read", "bounded:-1s"], "500ms"),
        (&["--read", "sequential", "--after", "7"], "1:7"),
        (&["--read", "sequential", "--after", "1:x"], "1:7"),
        (&["--read", "bounded:1s", "--after", "1:7"], "sequential"),
        (&["--after", "1:7"], "sequential"),
    ] {
        let endpoint = ["--endpoints", "127.0.0.1:1", "get", "a"];
        let finished = run(&[&endpoint, arguments].concat());
        assert_eq!(finished.code, 2, "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(word), "{arguments:?}: {finished:?}");
    }
}
