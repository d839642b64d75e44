//! Disks that are lost, machines that are replaced, and the members of groups that change with them
//! (docs/paxos.md 11.8, 11.9).

use std::collections::BTreeSet;

use base::{GroupId, Micros, NodeId, ReplicaId};
use bytes::Bytes;
use router::{Answer, ErrorReply, HashKind, KvOp, MasterAnswer, MasterOp, Routes};
use sim::scenario::{Scenario, Via};
use sim::workload::fnv;

/// A cluster of so many nodes whose logs hold all there is.
fn begin(name: &str, nodes: usize, group: &[usize]) -> Scenario {
    Scenario::with_options(name, nodes, 16, &[group.to_vec()], |options| {
        options.settings.overlay_idle = Micros::from_secs(1_000);
        options.settings.overlay_age_max = Micros::from_secs(1_000);
    })
}

fn routes(s: &mut Scenario) -> Routes {
    match s.try_master(MasterOp::Routes) {
        Ok(MasterAnswer::Routes(routes)) => *routes,
        other => panic!("{other:?}"),
    }
}

/// The replicas of a group.
fn replicas(s: &mut Scenario, group: u64) -> BTreeSet<ReplicaId> {
    let routes = routes(s);
    routes.groups[&GroupId(group)].members.iter().map(|member| member.0).collect()
}

/// A node that lost its disk is known with its new one.
fn comes_back(s: &mut Scenario, node: usize) {
    s.restart(node);
    let disk = s.disk_id(node);
    for _ in 0..200 {
        if routes(s).nodes.values().any(|info| info.disk == disk) {
            return;
        }
        s.wait(100);
    }
    panic!("node {node} does not come back");
}

/// The members become what they are to be, on nodes that are there.
fn settles(s: &mut Scenario) -> Routes {
    for _ in 0..300 {
        let routes = routes(s);
        let present = routes.groups.values().flat_map(|info| &info.members).all(|member| {
            routes.nodes.get(&member.1).is_some_and(|node| node.disk == member.2)
                && !routes.drained.contains(&member.1)
        });
        if present && routes.changes.is_empty() {
            return routes;
        }
        s.wait(100);
    }
    panic!("the members do not become what they are to be: {:?}", routes(s));
}

#[test]
fn f14_each_of_three_nodes_loses_its_disk_and_its_replicas_are_replaced() {
    let mut s = begin("f14", 3, &[0, 1, 2]);
    let before = [replicas(&mut s, 0), replicas(&mut s, 1)];
    let mut written = 0;
    for node in 0..3 {
        for _ in 0..10 {
            s.put(Via::Any, &format!("key {written}"), &format!("value {written}"));
            written += 1;
        }
        s.lose(node);
        s.put(Via::Any, "while it is away", &format!("{node}"));
        s.wait(1_000);
        comes_back(&mut s, node);
        settles(&mut s);
        for key in 0..written {
            s.reads(Via::Any, &format!("key {key}"), &format!("value {key}"));
        }
    }
    for (group, before) in before.iter().enumerate() {
        let after = replicas(&mut s, group as u64);
        assert!(before.is_disjoint(&after), "group {group}: {before:?} and {after:?}");
    }
    s.wait(3_000);
    s.power_off();
    s.restart_all();
    for key in 0..written {
        s.reads(Via::Any, &format!("key {key}"), &format!("value {key}"));
    }
}

#[test]
fn another_machine_takes_over_a_dead_one() {
    let mut s = begin("replace", 5, &[0, 1, 2]);
    for key in 0..20 {
        s.put(Via::Any, &format!("key {key}"), "value");
    }
    s.kill(2);
    s.wait(500);
    let new = s.number(4);
    s.master(MasterOp::ReplaceNode { old: NodeId(3), new });
    let routes = settles(&mut s);
    for info in routes.groups.values() {
        let nodes: BTreeSet<NodeId> = info.members.iter().map(|member| member.1).collect();
        assert_eq!(nodes, [NodeId(1), NodeId(2), new].into());
    }
    // The old one comes back after all, and votes no more.
    s.restart(2);
    s.wait(3_000);
    assert!(s.node(2).status().groups.is_empty(), "{:?}", s.node(2).status().groups);
    s.kill(0);
    s.wait(1_000);
    for key in 0..20 {
        s.reads(Via::Any, &format!("key {key}"), "value");
    }
}

#[test]
fn a_drained_node_holds_nothing_and_the_leader_moves_with_it() {
    let mut s = begin("drain", 5, &[0, 1, 2]);
    s.put(Via::Any, "a", "1");
    // The node that leads the shard master is the second one to go.
    for place in [2, 0] {
        let node = s.number(place);
        s.master(MasterOp::DrainNode { node });
        let routes = settles(&mut s);
        let held = routes.groups.values().flat_map(|info| &info.members);
        assert_eq!(held.filter(|member| member.1 == node).count(), 0);
        s.wait(2_000);
        assert!(s.node(place).status().groups.is_empty());
        s.reads(Via::Any, "a", "1");
        s.put(Via::Any, "b", "2");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let mut s = begin("refusals", 4, &[0, 1, 2]);
    let mut refused = |op: MasterOp, why: &str| match s.try_master(op.clone()) {
        Err(ErrorReply::Refused(text) | ErrorReply::Invalid(text)) => {
            assert!(text.contains(why), "{op:?}: {text}");
        }
        other => panic!("{op:?}: {other:?}"),
    };
    let replace = |old, new| MasterOp::ReplaceNode { old: NodeId(old), new: NodeId(new) };
    refused(replace(9, 4), "node 9 is not known; known are 1, 2, 3, 4");
    refused(replace(1, 9), "node 9 is not known");
    refused(replace(2, 2), "cannot replace itself");
    refused(replace(1, 2), "node 2 holds a replica of group 0 already");
    refused(replace(4, 1), "holds no replica");
    refused(MasterOp::DrainNode { node: NodeId(7) }, "node 7 is not known");
    let mut s = begin("no room", 3, &[0, 1, 2]);
    match s.try_master(MasterOp::DrainNode { node: NodeId(2) }) {
        Err(ErrorReply::Refused(text)) => assert!(text.contains("start another node"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_group_that_lost_its_majority_is_not_made_anew() {
    let mut s = begin("majority", 7, &[3, 4, 5]);
    s.put(Via::Any, "a", "1");
    s.lose(3);
    s.lose(4);
    comes_back(&mut s, 3);
    comes_back(&mut s, 4);
    s.wait(2_000);
    let routes = routes(&mut s);
    assert_eq!(routes.epoch(GroupId(1)), 1, "nobody decided for those who are gone");
    let (old, new) = (s.number(3), s.number(6));
    match s.try_master(MasterOp::ReplaceNode { old, new }) {
        Err(ErrorReply::Refused(text)) => {
            assert!(text.contains("lost the majority of its replicas"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let waiting = s.begin(Via::Any, sim::scenario::get("a"));
    s.does_not_finish(waiting, 3_000);
}

/// Clients chain hashes, each answer predicted, while nodes lose their disks, are replaced and
/// drained, are killed and cut off.
fn members_change_at_random(name: &str, flushing: bool) {
    let mut s = Scenario::with_options(name, 5, 16, &[vec![0, 1, 2]], |options| {
        if flushing {
            options.settings.overlay_idle = Micros::from_millis(50);
            options.settings.tail_bytes_max = 1 << 10;
        }
    });
    s.unreliable();
    let clients: Vec<usize> = (0..4).map(|_| s.client((0..5).collect())).collect();
    let mut values: Vec<Option<Bytes>> = vec![None; clients.len()];
    let numbers: Vec<NodeId> = (0..5).map(|place| s.number(place)).collect();
    for round in 0..16 {
        let added = Bytes::from(format!("{round}"));
        let begin = |(index, client): (usize, &usize)| {
            let key = Bytes::from(format!("{index}"));
            let op = KvOp::PutHash { key, value: added.clone(), hash: HashKind::Fnv1a32 };
            s.begin_as(*client, op)
        };
        let begun: Vec<_> = clients.iter().enumerate().map(begin).collect();
        let (victim, other) = (s.random().below(5) as usize, s.random().below(5) as usize);
        let before = s.random().below(60);
        s.wait(before);
        // What is refused, because it makes no sense now, changes nothing.
        match s.random().below(5) {
            0 => s.lose(victim),
            1 => s.kill(victim),
            2 => {
                let op = MasterOp::ReplaceNode { old: numbers[victim], new: numbers[other] };
                drop(s.try_master(op));
                s.kill(other);
            }
            3 => {
                drop(s.try_master(MasterOp::DrainNode { node: numbers[victim] }));
                s.kill(victim);
            }
            _ => s.isolate(&[victim]),
        }
        let away = s.random().below(800);
        s.wait(away);
        s.heal();
        s.restart_all();
        for (call, value) in begun.into_iter().zip(&mut values) {
            let answer = s.finishes(call, 30_000);
            assert_eq!(answer, Answer::Value(value.clone()), "{name}, round {round}");
            *value = Some(Bytes::from(fnv(value.as_ref(), &added).to_string()));
        }
        // A second disk is lost only when the first is made good.
        s.replaced(30_000);
    }
    s.reliable();
    s.power_off();
    s.restart_all();
    for (index, value) in values.into_iter().enumerate() {
        assert_eq!(s.value(Via::Any, &format!("{index}")), value.unwrap_or_default());
    }
}

#[test]
fn f18_members_change_at_random_with_faults_and_every_prediction_holds() {
    for take in 0..6 {
        members_change_at_random(&format!("members {take}"), take % 2 == 1);
    }
}
