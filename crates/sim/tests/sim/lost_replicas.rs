//! Replicas that forgot something, or are no more: none of them is ever made again, and others take
//! their places by themselves (docs/paxos.md 11.3, 11.8, 11.9).

use std::collections::BTreeSet;

use base::{GroupId, Micros, NodeId, ReplicaId};
use paxos::Record;
use paxos::record::Outline;
use router::MasterOp;
use sim::scenario::{Scenario, Via};

/// All replicas that the shard master has on a node.
fn replicas_on(s: &mut Scenario, node: NodeId) -> BTreeSet<(GroupId, ReplicaId)> {
    let routes = s.routes();
    let groups = routes.groups.iter();
    let members = groups.flat_map(|(group, info)| {
        let here = info.members.iter().filter(|member| member.1 == node);
        here.map(|member| (*group, member.0)).collect::<Vec<_>>()
    });
    members.collect()
}

/// Each of these replicas on the node is replaced by another there.
fn are_replaced(s: &mut Scenario, node: NodeId, old: &BTreeSet<(GroupId, ReplicaId)>) {
    for _ in 0..300 {
        let now = replicas_on(s, node);
        if now.len() == old.len() && now.is_disjoint(old) && s.routes().changes.is_empty() {
            return s.converges();
        }
        s.wait(100);
    }
    panic!("{old:?} are not replaced: {:?}", s.routes());
}

fn write(s: &mut Scenario, keys: std::ops::Range<usize>) {
    for key in keys {
        s.put(Via::Any, &format!("key {key}"), &format!("value {key}"));
    }
}

fn read(s: &mut Scenario, keys: std::ops::Range<usize>) {
    for key in keys {
        s.reads(Via::Any, &format!("key {key}"), &format!("value {key}"));
    }
}

#[test]
fn f11_a_replica_of_which_damage_took_who_votes_is_not_made_again() {
    for round in 0..3 {
        let mut s = Scenario::new(&format!("members record {round}"), 3);
        write(&mut s, 0..10);
        // One that came later is made again otherwise than one of the beginning.
        let (node, number) = (round % 2 + 1, s.number(round % 2 + 1));
        if round > 0 {
            let old = replicas_on(&mut s, number);
            s.lose(node);
            s.restart(node);
            are_replaced(&mut s, number, &old);
        }
        write(&mut s, 10..20);
        s.wait(500);
        s.kill(node);
        let told = s.rot(node, |record| {
            let outline = Record::outline(&record.identity);
            record.group == GroupId(1)
                && matches!(outline, Ok(Outline::Create | Outline::State { .. }))
        });
        assert!(told > 0, "some record says who votes");
        let lost = replicas_on(&mut s, number);
        let lost: BTreeSet<_> = lost.into_iter().filter(|(g, _)| *g == GroupId(1)).collect();
        s.restart(node);
        for _ in 0..200 {
            s.wait(100);
            if replicas_on(&mut s, number).is_disjoint(&lost) && s.routes().changes.is_empty() {
                break;
            }
        }
        assert!(replicas_on(&mut s, number).is_disjoint(&lost), "{:?}", s.routes());
        s.replaced(20_000);
        s.wait(1_000);
        s.converges();
        assert_eq!(replicas_on(&mut s, number).len(), 2);
        read(&mut s, 0..20);
    }
}

#[test]
fn f13_the_replicas_on_an_old_copy_of_a_disk_leave_and_others_come_in_their_places() {
    let mut s = Scenario::new("old copy replaced", 3);
    write(&mut s, 0..10);
    s.wait(1_000);
    let image = s.image(1);
    write(&mut s, 10..20);
    // It is started in between, so that the copy counts fewer starts than the others have seen.
    for _ in 0..2 {
        s.kill(1);
        s.restart(1);
        s.wait(1_000);
    }
    let number = s.number(1);
    let old = replicas_on(&mut s, number);
    s.kill(1);
    s.restore(1, image);
    s.restart(1);
    are_replaced(&mut s, number, &old);
    // Nobody takes the disk for an old copy any more, however often the node is started.
    let new = replicas_on(&mut s, number);
    for _ in 0..4 {
        s.kill(1);
        s.wait(300);
        s.restart(1);
        s.wait(1_500);
    }
    assert_eq!(replicas_on(&mut s, number), new);
    s.kill(0);
    read(&mut s, 0..20);
}

#[test]
fn f13_an_old_copy_without_any_replica_is_found_out_too() {
    let mut s = Scenario::with_groups("empty copy", 4, 16, &[vec![0, 1, 2]]);
    write(&mut s, 0..10);
    s.wait(1_000);
    let image = s.image(3);
    s.kill(3);
    s.restart(3);
    s.join(2, &[1, 2, 3]);
    s.wait(1_000);
    let number = s.number(3);
    let old = replicas_on(&mut s, number);
    assert_eq!(old.len(), 1);
    s.kill(3);
    s.restore(3, image);
    s.restart(3);
    are_replaced(&mut s, number, &old);
    write(&mut s, 10..20);
    read(&mut s, 0..20);
}

#[test]
fn f14_an_empty_disk_counts_on_from_the_lost_one() {
    let mut s = Scenario::new("counts on", 3);
    write(&mut s, 0..10);
    let number = s.number(1);
    // Each of them begins to count at nothing.
    for _ in 0..4 {
        let old = replicas_on(&mut s, number);
        s.lose(1);
        s.restart(1);
        are_replaced(&mut s, number, &old);
    }
    s.kill(0);
    read(&mut s, 0..10);
}

#[test]
fn f13_a_replica_that_was_made_after_the_copy_is_not_made_again() {
    let mut s = Scenario::with_groups("made after", 3, 16, &[vec![0, 1, 2]]);
    write(&mut s, 0..10);
    s.wait(1_000);
    let image = s.image(1);
    s.join(2, &[0, 1, 2]);
    s.settles(20_000);
    write(&mut s, 10..20);
    s.kill(1);
    s.restart(1);
    s.wait(1_000);
    let number = s.number(1);
    let old = replicas_on(&mut s, number);
    assert_eq!(old.len(), 3);
    s.kill(1);
    s.restore(1, image);
    s.restart(1);
    are_replaced(&mut s, number, &old);
    s.kill(0);
    read(&mut s, 0..20);
}

#[test]
fn f14_a_blank_node_reaches_a_leader_that_it_was_not_told_of() {
    let mut s = Scenario::with_groups("unnamed leader", 5, 16, &[vec![1, 2, 3]]);
    write(&mut s, 0..10);
    // The blank node knows the masters of the beginning: of the other two none is one any more.
    for (old, new) in [(0, 3), (1, 4)] {
        let (old, new) = (s.number(old), s.number(new));
        s.master(MasterOp::ReplaceNode { old, new });
        s.replaced(20_000);
        s.wait(1_000);
    }
    let number = s.number(2);
    let old = replicas_on(&mut s, number);
    s.lose(2);
    s.wait(1_000);
    assert!(s.leader(0) > 2);
    s.restart(2);
    are_replaced(&mut s, number, &old);
    read(&mut s, 0..10);
}

#[test]
fn f18_a_group_of_one_moves_to_another_node() {
    let mut s = Scenario::with_groups("alone", 4, 16, &[vec![0, 1, 2], vec![2]]);
    write(&mut s, 0..20);
    let (third, fourth) = (s.number(2), s.number(3));
    s.master(MasterOp::ReplaceNode { old: third, new: fourth });
    for _ in 0..100 {
        s.wait(100);
        if replicas_on(&mut s, third).is_empty() {
            break;
        }
    }
    assert_eq!(replicas_on(&mut s, fourth).len(), 3, "{:?}", s.routes());
    s.kill(2);
    read(&mut s, 0..20);
}

#[test]
fn f18_who_was_away_while_all_others_were_replaced_finds_those_of_today() {
    let mut s = Scenario::with_options("all others", 5, 16, &[vec![0, 1, 2]], |options| {
        options.settings.log_bytes_max = 256;
    });
    write(&mut s, 0..20);
    let numbers: Vec<NodeId> = (0..5).map(|place| s.number(place)).collect();
    s.kill(2);
    // They come back to where they were, as other replicas on the same disks.
    for (old, new) in [(0, 3), (1, 4), (3, 0), (4, 1)] {
        let op = MasterOp::ReplaceNode { old: numbers[old], new: numbers[new] };
        s.master(op);
        for _ in 0..200 {
            s.wait(100);
            if s.routes().changes.is_empty() {
                break;
            }
        }
        assert!(replicas_on(&mut s, numbers[old]).is_empty(), "{:?}", s.routes());
        write(&mut s, 20 * old..20 * old + 40);
    }
    s.wait(3_000);
    s.restart(2);
    s.wait(3_000);
    s.converges();
    s.kill(0);
    read(&mut s, 0..120);
}

#[test]
fn f18_the_state_of_a_deleted_replica_goes_after_the_replica() {
    for round in 0..4 {
        let name = format!("deleted {round}");
        let mut s = Scenario::with_options(&name, 4, 16, &[vec![0, 1, 2]], |options| {
            options.settings.overlay_idle = Micros::from_millis(20);
        });
        write(&mut s, 0..20);
        s.wait(1_000);
        let (second, fourth) = (s.number(1), s.number(3));
        s.master(MasterOp::ReplaceNode { old: second, new: fourth });
        while !s.routes().changes.is_empty() {
            s.wait(5);
        }
        // What its log says from now on is durable only in three seconds; the store is quicker.
        s.slow_disk(1, 3_000);
        s.wait(1_500);
        s.kill(1);
        s.good_disk(1);
        s.restart(1);
        s.wait(3_000);
        s.converges();
        read(&mut s, 0..20);
    }
}
