//! The scenarios D10 to D15: processes that are killed, some of them with their disks.

use bytes::Bytes;
use router::KvOp;
use sim::scenario::{Begun, Scenario, Via, append};

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

/// Five clients that append to one key, each the next part as soon as the one before is answered.
struct Appenders {
    clients: Vec<usize>,
    counts: Vec<usize>,
    open: Vec<Option<Begun>>,
}

impl Appenders {
    fn new(s: &mut Scenario) -> Appenders {
        let clients: Vec<usize> = (0..5).map(|_| s.client(vec![0, 1, 2])).collect();
        Appenders { counts: vec![0; clients.len()], open: vec![None; clients.len()], clients }
    }

    /// Lets time pass, at least so much, in which all that are free begin anew every 200 ms.
    fn work(&mut self, s: &mut Scenario, millis: u64) {
        let end = s.millis() + millis;
        while s.millis() < end {
            for (index, open) in self.open.iter_mut().enumerate() {
                if open.is_some_and(|call| s.ended(call).is_none()) {
                    continue;
                }
                let part = format!("x {index} {} y", self.counts[index]);
                self.counts[index] += 1;
                *open = Some(s.begin_as(self.clients[index], append("k1", &part)));
            }
            s.wait(200);
        }
    }

    /// All that was begun ends.
    fn stop(&mut self, s: &mut Scenario) {
        for call in self.open.iter_mut().filter_map(Option::take) {
            if s.ended(call).is_none() {
                s.finishes(call, 30_000);
            }
        }
    }

    /// Each part is there once, and each client's are in the order in which it wrote them.
    fn check(&self, value: &Bytes) {
        let value = String::from_utf8(value.to_vec()).unwrap();
        for (index, count) in self.counts.iter().enumerate() {
            assert!(*count >= 5, "client {index} wrote {count} parts");
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
}

/// Five clients append all the time while servers crash, keeping their disks and then losing them,
/// and what each appended stays in its order; then nothing changes any more, whoever crashes.
#[test]
fn d12_appends_and_crashes() {
    let mut s = begin("d12", 3);
    let mut appenders = Appenders::new(&mut s);
    appenders.work(&mut s, 1_000);
    for round in 0..6 {
        let victim = round % 3;
        if round < 3 {
            s.kill(victim);
        } else {
            s.lose(victim);
        }
        appenders.work(&mut s, 1_000);
        s.value(Via::Any, "k1");
        s.restart(victim);
        appenders.work(&mut s, 3_000);
        s.value(Via::Any, "k1");
        s.replaced(20_000);
    }
    appenders.work(&mut s, 2_000);
    appenders.stop(&mut s);
    let value = s.value(Via::Any, "k1");
    appenders.check(&value);
    for victim in 0..3 {
        s.kill(victim);
        assert_eq!(s.value(Via::Any, "k1"), value);
        s.restart(victim);
        assert_eq!(s.value(Via::Any, "k1"), value);
        s.wait(3_000);
        assert_eq!(s.value(Via::Any, "k1"), value);
    }
}

#[test]
fn d13_an_append_while_a_server_crashes_unreliable() {
    let mut s = begin("d13", 3);
    s.unreliable();
    let mut expected = String::new();
    for round in 0..50usize {
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
