//! The scenarios of the shard master that need servers and a network, under their ids: three
//! masters of production in the simulated world. (The others are told on replicas of one log, by
//! `crates/shardmaster`.)

use std::collections::BTreeSet;

use base::{GroupId, Micros, NodeId, Random, Slot};
use node::Node;
use router::{
    Answer, Body, CallError, Configuration, ErrorReply, MasterAnswer, MasterOp, NewGroup, Reply,
};
use sim::cluster::Cluster;
use sim::disk::{Crash, DiskOptions};
use sim::guest::{Guest, Settings};
use sim::network::{NetworkOptions, Place};
use sim::world::WorldOptions;

/// Three masters, and a clerk for each that talks to no other.
struct Masters {
    cluster: Cluster<Node>,
    clerks: Vec<usize>,
    anyone: usize,
}

const SHARDS: usize = 10;

impl Masters {
    /// A cluster in which no group is left: the one that every cluster begins with has left.
    fn new(seed: u64) -> Masters {
        let options = WorldOptions {
            nodes: 3,
            masters: 3,
            settings: Settings {
                segment_bytes: 64 << 10,
                wal_bytes_max: 64 << 20,
                tail_bytes_max: 1 << 10,
                overlay_bytes_max: 1 << 20,
                overlay_idle: Micros::from_millis(200),
                overlay_age_max: Micros::from_secs(1),
                log_bytes_max: 64 << 20,
                log_tail_bytes: 0,
                log_tail_age: Micros(0),
                snapshot_part_bytes: 16 << 10,
                snapshot_bytes_per_second: 32 << 20,
                handoff_part_bytes: 512 << 10,
                handoff_left_bytes: 256 << 10,
            },
            network: NetworkOptions::calm(),
            disk: DiskOptions::calm(),
            tick: Micros::from_millis(5),
            drift_max: 500,
            wall_offset_max: 100,
            paused: 0,
            pause_max: Micros(0),
            attempt_timeout: Micros::from_secs(1),
            log_lines: 200,
        };
        let mut cluster = Cluster::new(seed, options);
        let anyone = cluster.bootstrap(SHARDS as u16, &[vec![0, 1, 2]]).unwrap();
        let timeout = Micros::from_secs(60);
        let clerks =
            (0..3).map(|node| cluster.world.add_client(vec![node], true, timeout)).collect();
        let mut masters = Masters { cluster, clerks, anyone };
        masters.change(anyone, leave(&[1]));
        masters
    }

    fn ends(&mut self, client: usize, call: u64, millis: u64) -> Option<Answer> {
        let span = Micros::from_millis(millis);
        let end = self.cluster.wait(client, call, span).unwrap();
        end.map(|result| result.unwrap().body.unwrap())
    }

    fn change(&mut self, client: usize, op: MasterOp) -> Configuration {
        match self.cluster.ask(client, Body::Master(op)).unwrap() {
            Answer::Master(MasterAnswer::Configuration(made)) => made,
            other => panic!("{other:?}"),
        }
    }

    fn query(&mut self, client: usize, number: Option<u64>) -> Configuration {
        let number = number.map(base::ConfigNumber);
        self.change(client, MasterOp::Query { number })
    }

    /// The newest configuration has exactly these groups, and its division is even.
    fn check(&mut self, groups: impl Iterator<Item = u64>) {
        let newest = self.query(self.anyone, None);
        let expected: BTreeSet<GroupId> = groups.map(GroupId).collect();
        assert_eq!(newest.groups.keys().copied().collect::<BTreeSet<_>>(), expected);
        assert!(newest.shards.iter().all(|group| expected.contains(group)), "{newest:?}");
        let counts = expected.iter().map(|group| newest.shards_of(*group).len());
        let (min, max) = (counts.clone().min().unwrap(), counts.max().unwrap());
        assert!(max - min <= 1, "{newest:?}");
    }

    /// The node that leads group 0.
    fn leader(&self) -> Option<usize> {
        (0..3).find(|node| {
            let guest = self.cluster.world.guest(*node);
            let views = guest.map(|guest| guest.views(false)).unwrap_or_default();
            views.iter().any(|view| view.group == GroupId::MASTER && view.leading.is_some())
        })
    }

    /// Runs threads of changes at once, each through clients of its own, one change after the
    /// other. `now` is called whenever one has ended.
    fn run(&mut self, threads: Vec<Vec<(usize, MasterOp)>>, mut now: impl FnMut(&mut Self, usize)) {
        struct Thread {
            rest: std::vec::IntoIter<(usize, MasterOp)>,
            open: Option<(usize, u64)>,
        }
        let mut threads: Vec<Thread> = threads
            .into_iter()
            .map(|changes| Thread { rest: changes.into_iter(), open: None })
            .collect();
        let mut ended = 0;
        while !threads.is_empty() {
            threads.retain_mut(|thread| {
                if let Some((client, call)) = thread.open {
                    match self.cluster.ended(client, call) {
                        None => return true,
                        Some(result) => succeeded(result),
                    }
                    ended += 1;
                    now(self, ended);
                }
                thread.open = thread.rest.next().map(|(client, op)| {
                    (client, self.cluster.world.call(client, Body::Master(op), None))
                });
                thread.open.is_some()
            });
            self.cluster.run_for(Micros::from_millis(1)).unwrap();
            assert!(self.cluster.world.time() < Micros::from_secs(120), "it does not end");
        }
    }

    /// A client that talks to this node only.
    fn clerk(&mut self, node: usize) -> usize {
        self.cluster.world.add_client(vec![node], true, Micros::from_secs(60))
    }
}

/// A change is done; a repetition of its request has the same answer.
fn succeeded(result: Result<Reply, CallError>) {
    let reply = result.unwrap();
    assert!(reply.body.is_ok(), "{reply:?}");
}

fn join(groups: &[u64]) -> MasterOp {
    let nodes = || (1..=3).map(NodeId).collect();
    let groups = groups.iter().map(|group| NewGroup { group: GroupId(*group), nodes: nodes() });
    MasterOp::Join { groups: groups.collect() }
}

fn leave(groups: &[u64]) -> MasterOp {
    MasterOp::Leave { groups: groups.iter().copied().map(GroupId).collect() }
}

#[test]
fn m5_logs_are_shortened_after_joins() {
    let mut masters = Masters::new(5);
    for group in 11..31 {
        masters.change(masters.anyone, join(&[group]));
    }
    let truncated = |masters: &Masters, node| {
        let views = masters.cluster.world.guest(node).unwrap().views(false);
        let own = views.into_iter().find(|view: &sim::guest::View| view.group == GroupId::MASTER);
        own.unwrap().truncated_upto
    };
    for node in 0..3 {
        for _ in 0..100 {
            if truncated(&masters, node) > Slot(0) {
                break;
            }
            masters.cluster.run_for(Micros::from_millis(100)).unwrap();
        }
        assert!(truncated(&masters, node) > Slot(0), "node {node} keeps its whole log");
    }
    masters.check(11..31);
}

#[test]
fn m8_concurrent_changes_while_a_server_hears_nothing() {
    let mut masters = Masters::new(8);
    let mut random = Random::new(8);
    let threads = (101..121).map(|group| {
        let (first, second) = (1 + random.below(2) as usize, 1 + random.below(2) as usize);
        let (first, second) = (masters.clerk(first), masters.clerk(second));
        vec![
            (first, join(&[group + 1_000])),
            (first, join(&[group])),
            (second, leave(&[group + 1_000])),
        ]
    });
    let threads = threads.collect();
    masters.run(threads, |masters, ended| {
        if ended == 15 {
            let network = &mut masters.cluster.world.network;
            network.cut(Place::Node(1), Place::Node(0));
            network.cut(Place::Node(2), Place::Node(0));
        }
    });
    masters.check(101..121);
    masters.cluster.world.network.heal();
    let expected = masters.query(masters.anyone, None);
    for node in 0..3 {
        assert_eq!(masters.query(masters.clerks[node], None), expected);
    }
}

#[test]
fn m9_a_query_returns_the_latest_or_nothing() {
    for lone in 0..3 {
        let mut masters = Masters::new(90 + lone as u64);
        let (before, other) = (masters.query(masters.anyone, None), (lone + 1) % 3);
        for peer in (0..3).filter(|node| *node != lone) {
            masters.cluster.world.network.cut(Place::Node(peer), Place::Node(lone));
        }
        masters.change(masters.clerks[other], join(&[1_001]));
        // It may have led until a moment ago, and does not know better.
        let query = Body::Master(MasterOp::Query { number: None });
        let call = masters.cluster.world.call(masters.clerks[lone], query, None);
        let early = masters.ends(masters.clerks[lone], call, 3_000);
        masters.cluster.world.network.heal();
        let answer = early.or_else(|| masters.ends(masters.clerks[lone], call, 10_000)).unwrap();
        let Answer::Master(MasterAnswer::Configuration(found)) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(found.number.0, before.number.0 + 1, "node {lone}");
        assert!(found.groups.contains_key(&GroupId(1_001)), "node {lone}: {found:?}");
    }
}

#[test]
fn c1_each_server_down_in_turn_the_others_know_all_configurations() {
    let mut masters = Masters::new(1);
    for change in [join(&[11]), join(&[12]), leave(&[11]), leave(&[12])] {
        masters.change(masters.anyone, change);
    }
    let newest = masters.query(masters.anyone, None);
    let seen: Vec<Configuration> =
        (0..=newest.number.0).map(|number| masters.query(masters.anyone, Some(number))).collect();
    for down in 0..3 {
        masters.cluster.world.crash(down, Crash::Kill);
        for configuration in &seen {
            let number = Some(configuration.number.0);
            assert_eq!(masters.query(masters.anyone, number), *configuration, "without {down}");
        }
        masters.cluster.world.start(down);
        masters.cluster.run_for(Micros::from_millis(500)).unwrap();
        let number = Some(newest.number.0);
        assert_eq!(masters.query(masters.clerks[down], number), newest, "{down} is back");
    }
}

#[test]
fn c6_a_new_leader_has_the_same_configuration() {
    for seed in 60..70 {
        let mut masters = Masters::new(seed);
        for groups in [&[11, 12, 13][..], &[14, 15], &[16]] {
            masters.change(masters.anyone, join(groups));
        }
        masters.change(masters.anyone, leave(&[12, 15]));
        let newest = masters.query(masters.anyone, None);
        let leader = masters.leader().unwrap();
        masters.cluster.world.crash(leader, Crash::Kill);
        let mut tries = 0;
        while masters.leader().is_none() {
            tries += 1;
            assert!(tries <= 3, "seed {seed}: no new leader within three seconds");
            masters.cluster.run_for(Micros::from_secs(1)).unwrap();
        }
        assert_ne!(masters.leader(), Some(leader));
        assert_eq!(masters.query(masters.anyone, None), newest, "seed {seed}");
    }
}

#[test]
fn a_refused_change_is_refused_by_every_server() {
    let mut masters = Masters::new(3);
    masters.change(masters.anyone, join(&[11]));
    for node in 0..3 {
        for op in [join(&[11]), leave(&[99])] {
            let client = masters.clerks[node];
            let call = masters.cluster.world.call(client, Body::Master(op), None);
            let result = masters.cluster.wait(client, call, Micros::from_secs(5)).unwrap();
            let refused = matches!(result, Some(Err(CallError::Refused(ErrorReply::Refused(_)))));
            assert!(refused, "{result:?}");
        }
    }
    assert_eq!(masters.query(masters.anyone, None).groups.len(), 1);
}
