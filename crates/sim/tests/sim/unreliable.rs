//! One replicated group over a bad network: K8 to K13.

use base::Random;
use router::Answer;
use sim::scenario::{Begun, Scenario, Via, append, get, put};

/// A client with a key of its own, that knows what must be in it.
struct Worker {
    client: usize,
    key: String,
    value: String,
    begun: Option<Begun>,
    /// The call under way is a read.
    reads: bool,
    calls: u64,
}

impl Worker {
    fn new(s: &mut Scenario, index: usize, nodes: Vec<usize>) -> Worker {
        let (client, key) = (s.client(nodes), format!("own{index}"));
        Worker { client, key, value: String::new(), begun: None, reads: false, calls: 0 }
    }

    fn begin(&mut self, s: &mut Scenario, puts: bool) {
        self.reads = self.calls > 0 && s.random().chance(1, 2);
        let op = if self.reads {
            get(&self.key)
        } else if puts {
            self.value = s.random().next_u64().to_string();
            put(&self.key, &self.value)
        } else {
            let element = format!("{};", self.calls);
            self.value.push_str(&element);
            append(&self.key, &element)
        };
        self.calls += 1;
        self.begun = Some(s.begin_as(self.client, op));
    }

    fn check(&mut self, s: &Scenario, answer: &Answer) {
        if self.reads {
            s.same(answer, &Answer::Value(Some(self.value.clone().into())));
        }
        self.begun = None;
    }

    /// Judges what has ended, and goes on.
    fn work(&mut self, s: &mut Scenario, puts: bool) {
        if let Some(begun) = self.begun {
            let Some(answer) = s.ended(begun) else { return };
            self.check(s, &answer);
        }
        self.begin(s, puts);
    }

    /// The last call ends within this time.
    fn end(&mut self, s: &mut Scenario, millis: u64) {
        if let Some(begun) = self.begun {
            let answer = s.finishes(begun, millis);
            self.check(s, &answer);
        }
    }
}

fn shuffled(random: &mut Random, count: usize) -> Vec<usize> {
    let mut nodes: Vec<usize> = (0..count).collect();
    random.shuffle(&mut nodes);
    nodes
}

fn unreliable(name: &str, nodes: usize) -> Scenario {
    let mut s = Scenario::new(name, nodes);
    s.unreliable();
    s
}

#[test]
fn k8_basic_put_and_get_in_a_bad_network() {
    let mut s = unreliable("k8", 3);
    s.put(Via::Any, "a", "aa");
    s.reads(Via::Any, "a", "aa");
    s.put(1, "a", "aaa");
    s.reads(2, "a", "aaa");
    s.reads(1, "a", "aaa");
    s.reads(Via::Any, "a", "aaa");
}

#[test]
fn k9_sequences_of_writes_in_a_bad_network() {
    let mut s = unreliable("k9", 3);
    for client in 0..5_usize {
        let nodes = shuffled(s.random(), 3);
        let (number, key) = (s.client(nodes), client.to_string());
        let mut expected = String::new();
        for _ in 0..6 {
            for element in ["0", "1", "2"] {
                let begun = s.begin_as(number, append(&key, element));
                s.finishes(begun, 20_000);
                expected.push_str(element);
            }
            s.wait(100);
            for _ in 0..2 {
                let begun = s.begin_as(number, get(&key));
                let answer = s.finishes(begun, 20_000);
                s.same(&answer, &Answer::Value(Some(expected.clone().into())));
            }
        }
    }
}

#[test]
fn k10_concurrent_clients_in_a_bad_network() {
    let mut s = unreliable("k10", 3);
    for round in 0..20 {
        let mut begun = Vec::new();
        for _ in 0..15 {
            let nodes = shuffled(s.random(), 3);
            let client = s.client(nodes);
            let op = if s.random().chance(1, 2) {
                put("b", &format!("{round}.{}", s.random().next_u64()))
            } else {
                get("b")
            };
            begun.push(s.begin_as(client, op));
        }
        begun.into_iter().for_each(|call| drop(s.finishes(call, 20_000)));
        let value = s.value(0, "b");
        assert_eq!(s.value(1, "b"), value);
        assert_eq!(s.value(2, "b"), value);
    }
}

#[test]
fn k11_concurrent_appends_to_one_key_in_a_bad_network() {
    let mut s = unreliable("k11", 3);
    s.put(Via::Any, "k", "");
    let clients: Vec<usize> = (0..5)
        .map(|_| {
            let nodes = shuffled(s.random(), 3);
            s.client(nodes)
        })
        .collect();
    for number in 0..5 {
        let begin = |(index, client): (usize, &usize)| {
            let element = format!("x {index} {number} y");
            s.begin_as(*client, append("k", &element))
        };
        let begun: Vec<Begun> = clients.iter().enumerate().map(begin).collect();
        begun.into_iter().for_each(|call| drop(s.finishes(call, 20_000)));
    }
    let value = s.value(Via::Any, "k");
    let text = String::from_utf8(value.to_vec()).unwrap();
    for client in 0..5 {
        let places: Vec<usize> = (0..5)
            .map(|number| {
                let element = format!("x {client} {number} y");
                assert_eq!(text.matches(&element).count(), 1, "{element} in {text}");
                text.find(&element).unwrap()
            })
            .collect();
        assert!(places.is_sorted(), "client {client}: {text}");
    }
    (0..3).for_each(|node| assert_eq!(s.value(node, "k"), value));
}

#[test]
fn k12_holes_in_the_log_stop_nobody() {
    let mut s = Scenario::new("k12", 5);
    for _ in 0..5 {
        s.heal();
        s.put(2, "q", "q");
        let mut workers: Vec<Worker> = (0..10)
            .map(|index| {
                let node = s.random().below(2) as usize;
                Worker::new(&mut s, index, vec![node])
            })
            .collect();
        let end = s.millis() + 3_000;
        while s.millis() < end {
            workers.iter_mut().for_each(|worker| worker.work(&mut s, true));
            s.wait(5);
        }
        s.partition(&[&[2, 3, 4], &[0, 1]]);
        s.reads(2, "q", "q");
        s.put(2, "q", "qq");
        s.reads(2, "q", "qq");
        s.heal();
        workers.iter_mut().for_each(|worker| worker.end(&mut s, 20_000));
        s.reads(Via::Any, "q", "qq");
    }
}

#[test]
fn k13_many_clients_while_partitions_change() {
    let mut s = unreliable("k13", 5);
    let mut workers: Vec<Worker> = (0..10)
        .map(|index| {
            let nodes = shuffled(s.random(), 5);
            Worker::new(&mut s, index, nodes)
        })
        .collect();
    let end = s.millis() + 20_000;
    let mut again = 0;
    while s.millis() < end {
        if s.millis() >= again {
            let mut blocks = [Vec::new(), Vec::new(), Vec::new()];
            (0..5).for_each(|node| blocks[s.random().below(3) as usize].push(node));
            let blocks: Vec<&[usize]> = blocks.iter().map(Vec::as_slice).collect();
            s.partition(&blocks);
            again = s.millis() + 1 + s.random().below(200);
        }
        workers.iter_mut().for_each(|worker| worker.work(&mut s, false));
        s.wait(5);
    }
    s.heal();
    workers.iter_mut().for_each(|worker| worker.end(&mut s, 20_000));
    s.converges();
}
