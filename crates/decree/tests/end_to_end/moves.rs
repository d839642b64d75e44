//! Groups that join and leave, and shards that move, while the cluster answers.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Dev, Finished, eventually};

/// Longest wait for something that a healthy cluster does in a moment.
const SOON: Duration = Duration::from_secs(30);

/// Shards of the clusters in which shards move.
pub(crate) const SHARDS: u64 = 16;

fn start(directory: &tempfile::TempDir, options: &[&str]) -> Dev {
    let shards = SHARDS.to_string();
    Dev::start(directory.path(), &[&["--shards", &shards], options].concat())
}

fn done(finished: &Finished) {
    assert_eq!(finished.code, 0, "{finished:?}");
}

/// The group of each shard in the newest configuration.
fn planned(dev: &Dev) -> Vec<u64> {
    planned_of(&dev.run(&["query", "--json"]).json()[0])
}

/// The group of each shard in a configuration.
pub(crate) fn planned_of(configuration: &Value) -> Vec<u64> {
    let ranges = configuration["shards"].as_array().unwrap();
    let of_range = |range: &Value| {
        let count = range["last"].as_u64().unwrap() - range["first"].as_u64().unwrap() + 1;
        std::iter::repeat_n(range["group"].as_u64().unwrap(), count as usize)
    };
    ranges.iter().flat_map(of_range).collect()
}

/// The group that serves each shard; each is served by one, and nothing dead is left.
fn served(dev: &Dev) -> Vec<u64> {
    served_if_at_rest(dev).unwrap_or_else(|line| panic!("not at rest: {line}"))
}

/// The group that serves each shard, or the line that tells of a hand-off or of something dead.
fn served_if_at_rest(dev: &Dev) -> Result<Vec<u64>, Value> {
    served_of(&dev.run(&["shards", "--json"]).json())
}

/// The same of what `decree shards --json` printed.
pub(crate) fn served_of(lines: &[Value]) -> Result<Vec<u64>, Value> {
    let mut groups = vec![0; SHARDS as usize];
    for line in lines {
        if line["dead_copies"] != 0 || line["dead_records"] != 0 {
            return Err(line.clone());
        }
        if line["state"] == "served" {
            for shard in line["first"].as_u64().unwrap()..=line["last"].as_u64().unwrap() {
                let before = &mut groups[shard as usize];
                assert_eq!(*before, 0, "shard {shard} is served twice");
                *before = line["group"].as_u64().unwrap();
            }
        } else if line["state"] != "moved" && line["state"] != "refused" {
            // Other than what a group remembers of shards that it does not have.
            return Err(line.clone());
        }
    }
    Ok(groups)
}

/// Waits until the groups serve these shards and all is at rest.
fn wait_until_served(dev: &Dev, groups: &[u64]) {
    let begun = Instant::now();
    loop {
        let seen = served_if_at_rest(dev);
        if seen.as_ref().is_ok_and(|seen| seen == groups) {
            return;
        }
        let status = || dev.run(&["status"]).text().to_owned();
        assert!(begun.elapsed() < SOON, "not as planned, {groups:?}: {seen:?}\n{}", status());
        thread::sleep(Duration::from_millis(20));
    }
}

/// How many of the shards a group has.
pub(crate) fn shards_of(groups: &[u64], group: u64) -> usize {
    groups.iter().filter(|one| **one == group).count()
}

fn write(dev: &Dev) {
    for key in 0..20 {
        done(&dev.run(&["put", &format!("key{key}"), &format!("value{key}")]));
    }
}

/// Everything is still there, and each append is seen once.
fn check(dev: &Dev, appended: &mut String) {
    done(&dev.run(&["append", "log", "x"]));
    appended.push('x');
    assert_eq!(dev.run(&["get", "log"]).text(), format!("{appended}\n"));
    for key in 0..20 {
        let value = dev.run(&["get", &format!("key{key}")]);
        assert_eq!(value.text(), format!("value{key}\n"), "{value:?}");
    }
}

#[test]
fn groups_come_and_go_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let dev = start(&directory, &["--groups", "2"]);
    write(&dev);
    let mut log = String::new();
    let settled = |arguments: &[&str]| {
        let finished = dev.run(&[arguments, &["--watch"]].concat());
        done(&finished);
        let last = finished.text().lines().last().unwrap().to_owned();
        assert!(last.ends_with("every shard is where it belongs"), "{finished:?}");
        let (planned, served) = (planned(&dev), served(&dev));
        assert!(
            planned
                .iter()
                .zip(&served)
                .all(|(planned, served)| { *planned == 0 || planned == served })
        );
        served
    };
    let groups = settled(&["join", "3", "1", "2", "3"]);
    assert_eq!([1, 2, 3].map(|group| shards_of(&groups, group)), [6, 5, 5]);
    check(&dev, &mut log);
    let swapped = settled(&["move", "0", "2", "+", "8", "1"]);
    assert_eq!((swapped[0], swapped[8]), (2, 1));
    check(&dev, &mut log);
    let groups = settled(&["leave", "1"]);
    assert_eq!([1, 2, 3].map(|group| shards_of(&groups, group)), [0, 8, 8]);
    check(&dev, &mut log);
    // All leave: the plan is empty, and the data is served on.
    let groups = settled(&["leave", "2", "3"]);
    assert_eq!(shards_of(&groups, 2) + shards_of(&groups, 3), 16);
    assert_eq!(planned(&dev), [0; SHARDS as usize]);
    check(&dev, &mut log);
    // One that was there before takes everything over.
    assert_eq!(settled(&["join", "1", "3", "2", "1"]), [1; SHARDS as usize]);
    check(&dev, &mut log);
    let old = &dev.run(&["query", "1", "--json"]).json()[0];
    assert_eq!(old["shards"][1], serde_json::json!({ "first": 8, "last": 15, "group": 2 }));
}

#[test]
fn changes_that_make_no_sense_are_refused_in_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let dev = start(&directory, &["--groups", "2"]);
    let refused = |arguments: &[&str], part: &str| {
        let finished = dev.run(arguments);
        assert_eq!(finished.code, 1, "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        assert!(finished.stderr.contains(part), "{finished:?}");
    };
    refused(&["join", "2", "1", "2", "3"], "group 2 is a member already");
    refused(&["leave", "9"], "group 9 is not known; members are 1, 2");
    refused(&["move", "0", "9"], "group 9 is not known");
    refused(&["move", "0", "0"], "group 0 is the shard master");
    refused(&["move", "16", "2"], "no shard 16: this cluster has the shards 0 to 15");
    refused(&["move", "0-7", "1"], "planned for these groups already");
    refused(&["move", "--cancel", "0-15"], "nothing to cancel: shards 0-15 stay where they are");
    refused(&["move", "--cancel", "16"], "no shard 16");
    let usage = dev.run(&["move", "0"]);
    assert_eq!(usage.code, 2, "{usage:?}");
    done(&dev.run(&["leave", "2", "--watch"]));
    refused(&["leave", "2"], "group 2 has left");
    refused(&["move", "0", "2"], "group 2 has left");
    refused(&["join", "2", "1", "2"], "group 2 was a member before, on the nodes 1, 2, 3");
    assert_eq!(dev.run(&["query", "--json"]).json()[0]["configuration"], 2, "no other changes");
    assert_eq!(served(&dev), [1; SHARDS as usize]);
}

#[test]
fn a_destination_that_does_not_answer_holds_up_only_its_own_shards() {
    let directory = tempfile::tempdir().unwrap();
    // The masters and group 1 live on the first three nodes.
    let mut dev = start(&directory, &["--nodes", "4", "--groups", "1"]);
    write(&dev);
    let mut log = String::new();
    let line = dev.kill_node(4);
    done(&dev.run(&["join", "2", "4"]));
    let half: Vec<u64> = planned(&dev);
    assert_eq!(shards_of(&half, 2), 8);
    let watched = dev.run(&["join", "3", "1", "2", "3", "--watch", "--timeout", "3s"]);
    assert_eq!(watched.code, 1, "{watched:?}");
    assert!(watched.text().contains("waits for group 2: no leader answers"), "{watched:?}");
    assert!(watched.stderr.contains("it goes on"), "{watched:?}");
    // What can arrive arrives, and `status` says what waits for whom.
    let (live, stuck) = (planned(&dev), |group: u64| group == 2);
    eventually("group 3 has its shards", SOON, || {
        let lines = dev.run(&["shards", "--json"]).json();
        let is_third = |line: &&Value| line["group"] == 3 && line["state"] == "served";
        lines.iter().any(|line| is_third(&line))
    });
    assert!(live.iter().any(|group| stuck(*group)));
    let status = dev.run(&["status"]);
    assert!(status.text().contains("; waits for group 2: no leader answers"), "{status:?}");
    let status = dev.run(&["status", "--json"]).json();
    let waits = status.iter().filter(|object| object["waits_for"] == serde_json::json!([2]));
    assert!(waits.count() > 0, "{status:?}");
    check(&dev, &mut log);
    // One shard is to stay after all; the others go on when the node is back.
    let wanted = live.iter().position(|group| *group == 2).unwrap();
    done(&dev.run(&["move", "--cancel", &wanted.to_string()]));
    dev.restart_node(4, &line);
    let last = planned(&dev);
    assert_eq!(shards_of(&last, 2), shards_of(&live, 2) - 1);
    wait_until_served(&dev, &last);
    check(&dev, &mut log);
}

#[test]
fn programs_watch_objects() {
    let directory = tempfile::tempdir().unwrap();
    let dev = start(&directory, &["--groups", "1"]);
    write(&dev);
    let watched = dev.run(&["join", "2", "1", "2", "3", "--watch", "--json"]);
    done(&watched);
    let objects = watched.json();
    assert_eq!(objects[0]["configuration"], 2);
    assert!(objects[0]["shards"].is_array());
    let last = objects.last().unwrap();
    assert_eq!((&last["settled"], &last["shards_to_move"]), (&true.into(), &0.into()), "{last}");
}
