//! Who leads, whatever happens to links and disks (`docs/paxos.md` 11.6), and how a leadership is
//! passed on.

use base::limits::GRANT_SPAN;
use sim::scenario::{Scenario, Via, append, put};

/// An election time-out, in milliseconds: what was granted to the last leader must have run out.
const TIMEOUT: u64 = GRANT_SPAN.0 / 1_000;

/// A write through this node, or any, is chosen within four election time-outs; afterwards the
/// leader changes at most once in a minute.
fn recovers(s: &mut Scenario, via: impl Into<Via>, key: &str) {
    let begun = s.begin(via, put(key, "after"));
    s.finishes(begun, 4 * TIMEOUT);
    s.wait(1_000);
    let before = s.elections(1);
    s.wait(60_000);
    let after = s.elections(1);
    assert!(after <= before + 1, "{} leaders in a minute", after - before);
}

/// Five nodes of which this one leads.
fn five(name: &str, leader: usize) -> Scenario {
    let mut s = Scenario::new(name, 5);
    s.put(Via::Any, "k", "before");
    s.make_leader(1, leader);
    s.wait(500);
    s
}

#[test]
fn f07_quorum_loss_only_a_hub_is_connected_with_all() {
    for (leader, hub) in [(0, 1), (1, 4), (3, 0)] {
        let mut s = five(&format!("f07q{leader}{hub}"), leader);
        s.only_hub(hub);
        recovers(&mut s, hub, "k");
    }
}

#[test]
fn f07_constrained_election_the_only_candidate_lags() {
    for (leader, hub) in [(0, 2), (2, 1)] {
        let mut s = five(&format!("f07c{leader}{hub}"), leader);
        let rest: Vec<usize> = (0..5).filter(|node| *node != hub).collect();
        s.partition(&[&rest, &[hub]]);
        s.wait(400);
        for i in 0..50 {
            s.put(leader, &format!("k{i}"), "missed");
        }
        s.only_hub(hub);
        s.link(hub, leader, false);
        recovers(&mut s, hub, "k");
        s.reads(hub, "k49", "missed");
    }
}

#[test]
fn f07_chained_nodes_with_the_leader_at_one_end() {
    for (name, chain) in [("f07l1", [0, 1, 2, 3, 4]), ("f07l2", [3, 0, 4, 1, 2])] {
        let mut s = five(name, chain[0]);
        s.partition(&[]);
        for pair in chain.windows(2) {
            s.link(pair[0], pair[1], true);
        }
        recovers(&mut s, chain[2], "k");
    }
}

#[test]
fn f07_three_nodes_of_which_one_does_not_reach_the_leader() {
    for round in 0..3 {
        let mut s = Scenario::new(&format!("f07t{round}"), 3);
        s.put(Via::Any, "k", "before");
        s.wait(5_000);
        let leader = s.leader(1);
        let elections = s.elections(1);
        s.link(leader, (leader + 1) % 3, false);
        recovers(&mut s, (leader + 2) % 3, "k");
        assert!(s.elections(1) <= elections + 1, "a leader with a quorum stays");
    }
}

#[test]
fn f06_a_leader_that_only_sends_or_only_receives_is_replaced() {
    for deaf in [true, false] {
        let mut s = Scenario::new(&format!("f06{deaf}"), 3);
        s.put(Via::Any, "k", "before");
        for _ in 0..5 {
            let leader = s.leader(1);
            let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
            for other in &others {
                let (from, to) = if deaf { (*other, leader) } else { (leader, *other) };
                s.one_way(from, to, false);
            }
            let begun = s.begin(others[0], append("a", "x"));
            s.finishes(begun, 4 * TIMEOUT);
            s.heal();
            s.wait(600);
        }
        s.reads(Via::Any, "a", "xxxxx");
    }
}

#[test]
fn f05_halves_that_rotate_lose_nothing() {
    let mut s = Scenario::new("f05r", 5);
    let mut expected = String::new();
    for round in 0..10_usize {
        let places: Vec<usize> = (0..5).map(|place| (place + round) % 5).collect();
        s.partition(&[&places[..3], &places[3..]]);
        let element = format!("{round};");
        let begun = s.begin(places[0], append("k", &element));
        s.finishes(begun, 4 * TIMEOUT);
        expected.push_str(&element);
    }
    s.heal();
    s.reads(Via::Any, "k", &expected);
    s.converges();
}

#[test]
fn f16_a_leader_with_a_stalled_disk_is_replaced_within_two_seconds() {
    for round in 0..3 {
        let mut s = Scenario::new(&format!("f16{round}"), 3);
        s.put(Via::Any, "k", "before");
        let leader = s.leader(1);
        s.slow_disk(leader, 5_000);
        // The others choose without it for a while; then they do without it.
        let began = s.millis();
        let mut begun = s.begin(Via::Any, put("k", "x"));
        while s.leaders(1) == [leader] && s.millis() < began + 2_000 {
            if s.ended(begun).is_some() {
                begun = s.begin(Via::Any, put("k", "x"));
            }
            s.wait(5);
        }
        s.wait(300);
        assert_ne!(s.leader(1), leader);
        assert!(s.millis() < began + 2_000, "after {} ms", s.millis() - began);
        for _ in 0..50 {
            let begun = s.begin(Via::Any, put("k", "y"));
            s.finishes(begun, 100);
        }
        s.wait(5_000);
        assert_ne!(s.leader(1), leader, "and it does not come back as long as it lasts");
        s.good_disk(leader);
        s.wait(6_000);
        s.converges();
    }
}

#[test]
fn f17_a_hundred_elections_a_minute_leave_room_for_progress() {
    let mut s = Scenario::new("f17", 5);
    s.unreliable();
    let end = s.millis() + 60_000;
    let (mut written, mut elections) = (0, 0);
    let mut begun = s.begin(Via::Any, put("k", "0"));
    while s.millis() < end {
        let lone = s.leader(1);
        elections += 1;
        let rest: Vec<usize> = (0..5).filter(|node| *node != lone).collect();
        s.partition(&[&rest, &[lone]]);
        let heals = s.millis() + 450;
        while s.millis() < heals {
            if s.ended(begun).is_some() {
                written += 1;
                begun = s.begin(Via::Any, put("k", &written.to_string()));
            }
            s.wait(2);
        }
        s.heal();
    }
    assert!(elections >= 100, "{elections} elections");
    assert!(written >= 60_000 / (2 * TIMEOUT), "{written} writes");
}

#[test]
fn a_graceful_stop_of_each_node_loses_no_call_and_makes_a_short_gap() {
    let mut s = Scenario::new("stop", 3);
    s.put(Via::Any, "k", "0");
    let mut longest = 0;
    let mut list = String::new();
    for node in [0, 1, 2, 0, 1, 2] {
        s.wait(4_000);
        let down_at = s.millis() + 200;
        let mut asked = false;
        let mut round = 0;
        while s.is_up(node) || s.millis() < down_at + 1_000 {
            if !asked && s.millis() >= down_at {
                s.stop(node);
                asked = true;
            }
            let began = s.millis();
            let element = format!("{node}.{round};");
            round += 1;
            let begun = s.begin(Via::Any, append("k2", &element));
            s.finishes(begun, 2_000);
            list.push_str(&element);
            longest = longest.max(s.millis() - began);
        }
        s.restart(node);
    }
    s.reads(Via::Any, "k2", &list);
    assert!(longest <= 150, "a write took {longest} ms");
    println!("longest write: {longest} ms");
}

#[test]
fn leaders_are_spread_over_the_nodes_and_stay() {
    let all = vec![0, 1, 2];
    let mut s = Scenario::with_groups("spread", 3, 16, &[all.clone(), all.clone(), all]);
    s.wait(30_000);
    let leaders: Vec<usize> = (1..=3).map(|group| s.leader(group)).collect();
    let mut distinct = leaders.clone();
    distinct.sort_unstable();
    assert_eq!(distinct, [0, 1, 2], "{leaders:?}");
    let elections: Vec<u64> = (0..=3).map(|group| s.elections(group)).collect();
    s.wait(60_000);
    assert_eq!((0..=3).map(|group| s.elections(group)).collect::<Vec<u64>>(), elections);
}
