//! The scenarios of one replicated group, and of its durability, under their ids.

use router::Answer;
use sim::scenario::{Scenario, Via, append, get, put};

#[test]
fn k1_basic_put_puthash_get() {
    let mut s = Scenario::new("k1", 3);
    s.put_hash(Via::Any, "a", "x", None);
    s.put(Via::Any, "a", "aa");
    s.reads(Via::Any, "a", "aa");
    s.put(1, "a", "aaa");
    s.reads(2, "a", "aaa");
    s.reads(1, "a", "aaa");
    s.reads(Via::Any, "a", "aaa");
    s.append(Via::Any, "app", "x");
    s.append(Via::Any, "app", "y");
    s.reads(Via::Any, "app", "xy");
}

#[test]
fn k2_concurrent_clients() {
    let mut s = Scenario::new("k2", 3);
    let clients: Vec<usize> = (0..15).map(|index| s.client(vec![index % 3])).collect();
    for round in 0..20 {
        let mut begun = Vec::new();
        for client in &clients {
            let op = if s.random().chance(1, 2) {
                put("b", &format!("{round}.{}", s.random().next_u64()))
            } else {
                get("b")
            };
            begun.push(s.begin_as(*client, op));
        }
        begun.into_iter().for_each(|call| drop(s.finishes(call, 5_000)));
        let value = s.value(0, "b");
        assert_eq!(s.value(1, "b"), value);
        assert_eq!(s.value(2, "b"), value);
    }
}

/// Five nodes of which 0 and 1 are cut off after the key was set: the story that K4 to K7 go on
/// telling.
fn split_after_k4(name: &str) -> Scenario {
    let mut s = Scenario::new(name, 5);
    s.put(0, "1", "12");
    s.put(2, "1", "13");
    s.reads(3, "1", "13");
    s.partition(&[&[2, 3, 4], &[0, 1]]);
    s
}

#[test]
fn k4_no_partition() {
    let mut s = Scenario::new("k4", 5);
    s.put(0, "1", "12");
    s.put(2, "1", "13");
    s.reads(3, "1", "13");
}

#[test]
fn k5_progress_in_majority() {
    let mut s = split_after_k4("k5");
    s.put(2, "1", "14");
    s.reads(4, "1", "14");
}

#[test]
fn k6_no_progress_in_minority() {
    let mut s = split_after_k4("k6");
    s.put(2, "1", "14");
    let late_put = s.begin(0, put("1", "15"));
    let late_get = s.begin(1, get("1"));
    s.does_not_finish(late_put, 1_000);
    s.does_not_finish(late_get, 1);
    s.reads(4, "1", "14");
    s.put(3, "1", "16");
    s.reads(4, "1", "16");
}

#[test]
fn k7_completion_after_heal() {
    let mut s = split_after_k4("k7");
    s.put(2, "1", "14");
    let late_put = s.begin(0, put("1", "15"));
    let late_get = s.begin(1, get("1"));
    s.does_not_finish(late_put, 1_000);
    s.does_not_finish(late_get, 1);
    s.put(3, "1", "16");
    s.reads(4, "1", "16");
    s.partition(&[&[0, 2, 3, 4], &[1]]);
    let answer = s.finishes(late_put, 3_000);
    s.same(&answer, &Answer::Done);
    s.does_not_finish(late_get, 1);
    s.reads(4, "1", "15");
    s.reads(0, "1", "15");
    s.partition(&[&[0, 1, 2], &[3, 4]]);
    s.finishes(late_get, 10_000);
    s.reads(1, "1", "15");
}

#[test]
fn d6_basic_persistence() {
    let mut s = Scenario::new("d6", 3);
    s.append(Via::Any, "a", "x");
    s.append(Via::Any, "a", "y");
    s.reads(Via::Any, "a", "xy");
    s.power_off();
    let client = s.client(vec![0, 1, 2]);
    let read = s.begin_as(client, get("a"));
    s.does_not_finish(read, 3_000);
    s.restart_all();
    s.wait(2_000);
    s.append(Via::Any, "a", "z");
    s.reads(Via::Any, "a", "xyz");
    s.converges();
}

#[test]
fn d7_one_server_restarts() {
    let mut s = Scenario::new("d7", 3);
    let mut list = "0;".to_owned();
    s.append(Via::Any, "k1", "0;");
    s.put(Via::Any, "k2", "0");
    let mut last = "0".to_owned();
    for node in 0..3 {
        s.reads(Via::Any, "k1", &list);
        s.reads(Via::Any, "k2", &last);
        s.kill(node);
        s.wait(1_000);
        let element = format!("{};", node + 1);
        list.push_str(&element);
        last = format!("{}", node + 1);
        s.append(Via::Any, "k1", &element);
        s.put(Via::Any, "k2", &last);
        s.restart(node);
        s.wait(2_000);
    }
    s.reads(Via::Any, "k1", &list);
    s.reads(Via::Any, "k2", &last);
    s.converges();
}

#[test]
fn f05_a_leader_cut_off_is_replaced_within_a_second() {
    let mut s = Scenario::new("f05", 3);
    s.put(Via::Any, "k", "0");
    for lone in 0..3_usize {
        let others = [(lone + 1) % 3, (lone + 2) % 3];
        s.partition(&[&others, &[lone]]);
        let call = s.begin(others[0], append("k", "x"));
        s.finishes(call, 1_000);
        s.heal();
        s.wait(500);
    }
    s.reads(Via::Any, "k", "0xxx");
}

#[test]
fn f07_one_node_connected_with_all_makes_progress() {
    let mut s = Scenario::new("f07", 5);
    for hub in 0..5_usize {
        s.only_hub(hub);
        let call = s.begin(hub, put("k", &hub.to_string()));
        s.finishes(call, 3_000);
        s.heal();
        s.wait(500);
        s.reads(Via::Any, "k", &hub.to_string());
    }
}
