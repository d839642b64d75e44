//! The scenarios D10 to D15: processes that are killed, some of them with their disks.

use bytes::Bytes;
use router::KvOp;
use sim::scenario::{Scenario, Via, append};

/// One group on all nodes, all of them masters, and what is written is soon in the store only.
fn begin(name: &str, nodes: usize) -> Scenario {
    let group = (0..nodes).collect();
    Scenario::with_options(name, nodes, 16, &[group], |options| options.masters = nodes)
}

fn appended(s: &mut Scenario, expected: &str) {
    let value = s.value(Via::Any, "k1");
    assert_eq!(value, Bytes::copy_from_slice(expected.as_bytes()));
}

/// Appends to one key and puts of another, in turns.
struct Writer {
    k1: String,
    k2: String,
    count: u64,
}

impl Writer {
    fn new() -> Writer {
        Writer { k1: String::new(), k2: String::new(), count: 0 }
    }

    fn append(&mut self, s: &mut Scenario) {
        self.count += 1;
        let part = format!("x {} y", self.count);
        s.append(Via::Any, "k1", &part);
        self.k1.push_str(&part);
    }

    fn put(&mut self, s: &mut Scenario) {
        self.count += 1;
        self.k2 = format!("value {}", self.count);
        s.put(Via::Any, "k2", &self.k2);
    }

    fn check(&self, s: &mut Scenario) {
        appended(s, &self.k1);
        s.reads(Via::Any, "k2", &self.k2);
    }
}

/// Servers lose their disks one after the other.
fn lose_in_turn(s: &mut Scenario, victims: std::ops::Range<usize>) -> Writer {
    let mut writer = Writer::new();
    for _ in 0..7 + s.random().below(7) {
        writer.append(s);
        writer.put(s);
    }
    for victim in victims {
        writer.check(s);
        s.lose(victim);
        s.wait(1_000);
        writer.append(s);
        writer.put(s);
        s.restart(victim);
        writer.append(s);
        s.wait(10);
        writer.append(s);
        s.wait(2_000);
        s.replaced(20_000);
    }
    writer.check(s);
    writer
}

#[test]
fn d10_one_server_loses_its_disk() {
    let mut s = begin("d10", 3);
    lose_in_turn(&mut s, 0..3);
}

#[test]
fn d11_one_is_down_and_others_lose_their_disks() {
    let mut s = begin("d11", 5);
    s.kill(0);
    let writer = lose_in_turn(&mut s, 1..5);
    s.restart(0);
    s.put(Via::Any, "a", "b");
    s.wait(1_000);
    s.put(Via::Any, "a", "c");
    s.reads(Via::Any, "a", "c");
    writer.check(&mut s);
}

/// Five clients append while servers crash, and what each appended stays in its order.
#[test]
fn d12_appends_and_crashes() {
    let mut s = begin("d12", 3);
    let clients: Vec<usize> = (0..5).map(|_| s.client(vec![0, 1, 2])).collect();
    let mut counts = [0usize; 5];
    let mut open = Vec::new();
    for round in 0..6 {
        let victim = round % 3;
        for _ in 0..4 {
            for (index, client) in clients.iter().enumerate() {
                let part = format!("x {index} {} y", counts[index]);
                counts[index] += 1;
                open.push(s.begin_as(*client, append("k1", &part)));
            }
            s.wait(200);
            for call in std::mem::take(&mut open) {
                s.finishes(call, 30_000);
            }
        }
        if round < 3 {
            s.kill(victim);
        } else {
            s.lose(victim);
        }
        s.wait(1_000);
        let before = s.value(Via::Any, "k1");
        s.restart(victim);
        s.wait(3_000);
        s.replaced(20_000);
        assert_eq!(s.value(Via::Any, "k1"), before);
    }
    let value = String::from_utf8(s.value(Via::Any, "k1").to_vec()).unwrap();
    for (index, count) in counts.iter().enumerate() {
        let places: Vec<usize> = (0..*count)
            .map(|number| {
                let part = format!("x {index} {number} y");
                assert_eq!(value.matches(&part).count(), 1, "{part}");
                value.find(&part).unwrap()
            })
            .collect();
        assert!(places.is_sorted(), "client {index}");
    }
}

#[test]
fn d13_an_append_while_a_server_crashes_unreliable() {
    let mut s = begin("d13", 3);
    s.unreliable();
    let mut expected = String::new();
    for round in 0..25usize {
        let clerk = s.client(vec![0, 1, 2]);
        let part = format!("x 0 {round} y");
        let call = s.begin_as(clerk, append("k1", &part));
        let before = s.random().below(200);
        s.wait(before);
        let victim = round % 3;
        if s.random().chance(1, 2) {
            s.lose(victim);
        } else {
            s.kill(victim);
        }
        s.wait(1_000);
        let seen = s.value(Via::Any, "k1");
        assert!(seen.starts_with(expected.as_bytes()), "round {round}");
        s.restart(victim);
        s.wait(2_200);
        s.finishes(call, 20_000);
        expected.push_str(&part);
        s.replaced(20_000);
    }
    appended(&mut s, &expected);
}

#[test]
fn d14_who_lost_its_disk_does_not_make_a_majority() {
    let mut s = begin("d14", 5);
    let mut writer = Writer::new();
    for _ in 0..7 + s.random().below(7) {
        writer.append(&mut s);
    }
    s.kill(0);
    writer.append(&mut s);
    writer.append(&mut s);
    s.lose(1);
    s.lose(2);
    s.kill(3);
    s.kill(4);
    s.restart_nodes(&[0, 1, 2]);
    s.wait(300);
    let read = s.begin(Via::Any, KvOp::Get { key: Bytes::from_static(b"k1") });
    s.does_not_finish(read, 3_000);
    s.restart_nodes(&[3, 4]);
    writer.append(&mut s);
    appended(&mut s, &writer.k1);
}

#[test]
fn d15_nothing_is_decided_anew_after_a_disk_was_lost() {
    let mut s = begin("d15", 5);
    let mut writer = Writer::new();
    for _ in 0..7 + s.random().below(7) {
        writer.append(&mut s);
    }
    s.kill(1);
    s.kill(2);
    for _ in 0..100 + s.random().below(7) {
        writer.append(&mut s);
    }
    s.lose(0);
    s.wait(50);
    s.restart_nodes(&[1, 2]);
    s.wait(1);
    s.restart(0);
    let first = s.begin(Via::Any, append("k1", "first"));
    s.wait(10);
    let second = s.begin(Via::Node(3), append("k1", "second"));
    s.finishes(first, 30_000);
    s.finishes(second, 30_000);
    let value = s.value(Via::Any, "k1");
    let either = ["firstsecond", "secondfirst"].map(|end| format!("{}{end}", writer.k1));
    assert!(either.iter().any(|either| value == either.as_bytes()), "{value:?}");
}
