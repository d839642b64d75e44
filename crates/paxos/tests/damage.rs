//! What a replica does whose log is damaged (docs/paxos.md 11.3).
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod world;

use base::{Lsn, ReplicaId, Slot};
use paxos::{Message, Record, Recovery};
use world::{SMALL, USUAL, World, id};

fn leading_group(seed: u64, count: u64) -> (World, ReplicaId) {
    let mut world = World::new(seed, count, USUAL);
    world.run(200);
    let leader = world.leader().expect("a fresh group elects a leader");
    (world, leader)
}

fn others(world: &World, replica: ReplicaId) -> Vec<ReplicaId> {
    world.ids().into_iter().filter(|other| *other != replica).collect()
}

/// The records of accepted values on a disk.
fn entries(world: &World, replica: ReplicaId) -> Vec<(Lsn, Slot)> {
    let all = world.replicas[&replica].disk.decode();
    let entries = all.filter_map(|(lsn, record)| match record {
        Record::Entries { first, .. } => Some((lsn, first)),
        Record::GroupCreate { .. }
        | Record::Promise { .. }
        | Record::GroupState { .. }
        | Record::Quarantine
        | Record::Mended { .. }
        | Record::StoreLost
        | Record::Epoch { .. }
        | Record::GroupDestroy
        | Record::Snapshot { .. }
        | Record::ChosenHint { .. } => None,
    });
    entries.collect()
}

/// Messages of a kind that a replica has under way.
fn sent<T>(world: &World, from: ReplicaId, f: impl Fn(Message) -> Option<T>) -> Vec<T> {
    let own = world.net.iter().filter(|(sender, _, _)| *sender == from);
    own.filter_map(|(_, _, bytes)| f(base::codec::decode(bytes).unwrap())).collect()
}

#[test]
fn f11_a_damaged_entry_is_reported_as_accepted_and_faulty_never_as_absent() {
    let (mut world, leader) = leading_group(1, 3);
    let [hurt, other] = others(&world, leader)[..] else { panic!("three replicas") };
    world.isolate(other);
    let slot = world.propose(leader, 20).unwrap();
    world.run(20);
    world.crash(leader);
    world.crash(hurt);
    let (lsn, first) = *entries(&world, hurt).last().unwrap();
    assert_eq!(first, slot);
    world.replicas.get_mut(&hurt).unwrap().damaged.insert(lsn);
    world.restart(hurt);
    // What both may have granted to the leader runs out.
    world.run(300);
    world.heal();
    world.net.clear();
    world.with(other, |paxos, now| paxos.campaign(now));
    world.sync_all(other);
    for (from, to, bytes) in std::mem::take(&mut world.net) {
        world.deliver(from, to, &bytes);
    }
    world.sync_all(hurt);
    let runs = sent(&world, hurt, |message| match message {
        Message::Promise(promise) if !promise.probe => Some(promise.runs),
        _ => None,
    });
    let runs = runs.last().unwrap();
    assert!(runs.iter().any(|run| run.last >= slot && run.first <= slot && run.faulty), "{runs:?}");
    // Nobody who is up has the value: the slot must not be filled with anything.
    world.run(2_000);
    assert!(world.leader().is_none(), "the value may have been chosen");
    world.restart(leader);
    world.run(1_000);
    assert!(world.leader().is_some());
    assert!(world.replicas.values().all(|at| at.applied >= slot), "and its holder brings it");
    assert_eq!(world.paxos(hurt).faulty_slots(), 0, "mended");
    world.check_logs();
}

#[test]
fn f11_a_part_of_the_log_damaged_on_each_replica_is_repaired_by_the_others() {
    for seed in 0..20 {
        let (mut world, leader) = leading_group(seed, 3);
        for _ in 0..60 {
            world.propose(leader, 20).unwrap();
            world.run(2);
        }
        world.run(50);
        for replica in world.ids() {
            world.crash(replica);
            for (lsn, slot) in entries(&world, replica) {
                if slot.0 / 8 % 3 == replica.0 - 1 {
                    world.replicas.get_mut(&replica).unwrap().damaged.insert(lsn);
                }
            }
        }
        let before = world.truth.clone();
        assert!(before.len() >= 60);
        world.ids().into_iter().for_each(|replica| world.restart(replica));
        assert!(world.ids().iter().all(|replica| world.paxos(*replica).faulty_slots() > 0));
        world.run(2_000);
        for (id, at) in &world.replicas {
            assert!(at.applied.0 >= before.len() as u64, "seed {seed}: {id} at {}", at.applied);
            assert_eq!(world.paxos(*id).faulty_slots(), 0, "seed {seed}: {id} is mended");
        }
        world.check_logs();
    }
}

#[test]
fn f11_damage_found_while_running_is_mended_from_memory_or_from_a_peer() {
    for (seed, limits) in [(1, USUAL), (2, SMALL)] {
        let mut world = World::new(seed, 3, limits);
        world.run(200);
        let leader = world.leader().unwrap();
        for _ in 0..40 {
            world.propose(leader, 40).unwrap();
            world.run(3);
        }
        for replica in world.ids() {
            let (lsn, slot) = *entries(&world, replica).get(10).unwrap();
            let at = world.replicas.get_mut(&replica).unwrap();
            at.damaged.insert(lsn);
            world.with(replica, |paxos, now| paxos.damaged(now, lsn, lsn));
            world.run(500);
            assert_eq!(world.paxos(replica).faulty_slots(), 0, "{slot} on {replica}");
            assert!(world.paxos(replica).repaired_slots() > 0);
        }
        assert_eq!(world.leader(), Some(leader), "nobody noticed");
        world.check_logs();
    }
}

/// What is carried forward lies in two records until the former one is freed.
#[test]
fn f11_a_slot_of_which_a_later_record_is_damaged_is_whole_in_the_former_one() {
    let (mut world, leader) = leading_group(4, 3);
    let [hurt, other] = others(&world, leader)[..] else { panic!("three replicas") };
    world.isolate(other);
    let slot = world.propose(leader, 20).unwrap();
    world.sync_all(leader);
    // It is accepted, and the answer does not come.
    let net = std::mem::take(&mut world.net);
    for (from, to, bytes) in net {
        if (from, to) == (leader, hurt) {
            world.deliver(from, to, &bytes);
        }
    }
    world.crash(leader);
    world.sync_all(hurt);
    let former = *entries(&world, hurt).last().unwrap();
    world.with(hurt, |paxos, _| assert!(paxos.carry_forward(Lsn(former.0.0 + 1), 1_000) > 0));
    world.sync_all(hurt);
    let later = *entries(&world, hurt).last().unwrap();
    assert!(later.0 > former.0 && later.1 == slot);
    world.crash(hurt);
    world.replicas.get_mut(&hurt).unwrap().damaged.insert(later.0);
    world.restart(hurt);
    assert_eq!(world.paxos(hurt).faulty_slots(), 0);
    assert!(world.paxos(hurt).keep_from().is_some_and(|lsn| lsn <= former.0));
}

#[test]
fn a_quarantined_replica_never_votes_and_learns_on() {
    let (mut world, leader) = leading_group(3, 3);
    let [hurt, other] = others(&world, leader)[..] else { panic!("three replicas") };
    for _ in 0..10 {
        world.propose(leader, 20).unwrap();
        world.run(3);
    }
    world.crash(hurt);
    world.replicas.get_mut(&hurt).unwrap().lost = true;
    world.restart(hurt);
    assert!(world.paxos(hurt).is_quarantined());
    let records = world.replicas[&hurt].disk.decode();
    assert_eq!(records.last().unwrap().1, Record::Quarantine, "its first record says so");
    world.run(500);
    let slot = world.propose(leader, 20).unwrap();
    world.run(500);
    assert_eq!(world.replicas[&hurt].applied, slot, "it learns what the others choose");
    assert_eq!(world.paxos(hurt).have_upto(), slot);
    assert_eq!(world.paxos(leader).truncatable(), slot, "nobody keeps his log for it");

    // Without the other healthy one nothing is chosen, confirmed or promised any more.
    world.crash(other);
    let ticket = world.confirm(leader);
    let slot = world.propose(leader, 20);
    world.run(60);
    assert!(world.replicas[&leader].confirmed.iter().all(|(t, _)| Some(*t) != ticket));
    assert!(slot.is_none_or(|slot| world.paxos(leader).chosen_upto() < slot));
    world.crash(leader);
    world.run(1_000);
    assert!(!world.paxos(hurt).is_leading());
    world.with(hurt, |paxos, now| paxos.campaign(now));
    assert!(!world.paxos(hurt).is_leading());
    world.restart(leader);
    world.run(2_000);
    assert!(world.leader().is_none(), "one voter of three");
    world.restart(other);
    world.run(1_000);
    assert!(world.leader().is_some());

    // The next start knows it, even from a restatement alone.
    world.store_and_truncate(hurt);
    world.crash(hurt);
    world.restart(hurt);
    assert!(world.paxos(hurt).is_quarantined());
    world.run(500);
    world.check_logs();
}

#[test]
fn the_quarantine_survives_in_a_restatement_alone() {
    let (mut world, leader) = leading_group(4, 3);
    let hurt = others(&world, leader)[0];
    world.with(hurt, |paxos, _| paxos.quarantine());
    world.with(hurt, |paxos, _| paxos.restate());
    let (lsn, state) = world.replicas[&hurt].disk.decode().last().unwrap();
    let mut recovery = Recovery::of_group(base::GroupId(1), 1);
    recovery.push(lsn, state).unwrap();
    assert!(recovery.finish(world.replicas[&hurt].applied).unwrap().is_quarantined());
}

#[test]
fn a_damaged_restatement_quarantines_unless_a_later_one_replaces_it() {
    let (mut world, leader) = leading_group(5, 3);
    world.propose(leader, 20).unwrap();
    world.run(50);
    let hurt = others(&world, leader)[0];
    world.with(hurt, |paxos, _| paxos.restate());
    world.sync_all(hurt);
    let lsn = world.replicas[&hurt].disk.last;
    world.replicas.get_mut(&hurt).unwrap().damaged.insert(lsn);
    world.with(hurt, |paxos, _| paxos.restate());
    world.sync_all(hurt);
    world.crash(hurt);
    world.restart(hurt);
    assert!(!world.paxos(hurt).is_quarantined(), "the later one says all");
    let lsn = {
        world.with(hurt, |paxos, _| paxos.restate());
        world.sync_all(hurt);
        world.replicas[&hurt].disk.last
    };
    world.replicas.get_mut(&hurt).unwrap().damaged.insert(lsn);
    world.crash(hurt);
    world.restart(hurt);
    assert!(world.paxos(hurt).is_quarantined());
    world.run(200);
    let slot = world.propose(leader, 20).unwrap();
    world.run(300);
    assert_eq!(world.replicas[&hurt].applied, slot);
    assert!(world.replicas[&id(1)].applied >= slot);
}

/// The others have forgotten what is damaged, and the log does not say that it is chosen; but the
/// store has its effects, so that nothing is lacked.
#[test]
fn f11_a_damaged_slot_whose_effects_are_in_the_store_is_not_lacked() {
    let (mut world, leader) = leading_group(6, 3);
    let [hurt, other] = others(&world, leader)[..] else { panic!("three replicas") };
    world.propose(leader, 20).unwrap();
    world.run(1_000);
    let (lsn, slot) = *entries(&world, hurt).last().unwrap();
    world.crash(hurt);
    let at = world.replicas.get_mut(&hurt).unwrap();
    at.damaged.insert(lsn);
    at.stored = slot;
    at.disk.records.retain(|(_, identity, payload)| {
        !matches!(Record::decode(identity, payload), Ok(Record::ChosenHint { .. }))
    });
    for replica in [leader, other] {
        world.with(replica, |paxos, _| paxos.truncate(slot));
    }
    world.restart(hurt);
    assert!(world.paxos(hurt).have_upto() < slot, "its log does not say what is chosen");
    world.run(500);
    assert_eq!(world.paxos(hurt).chosen_upto(), slot);
    assert_eq!(world.paxos(hurt).have_upto(), slot);
}

/// The same where the store comes to have the effects only after the start.
#[test]
fn f11_a_damaged_slot_whose_effects_reach_the_store_later_is_not_lacked_from_then_on() {
    let (mut world, leader) = leading_group(7, 3);
    let [hurt, other] = others(&world, leader)[..] else { panic!("three replicas") };
    let slot = world.propose(leader, 20).unwrap();
    world.run(1_000);
    let (lsn, damaged) = *entries(&world, hurt).last().unwrap();
    assert_eq!(damaged, slot);
    for replica in [leader, other] {
        world.with(replica, |paxos, _| paxos.truncate(slot));
    }
    world.crash(hurt);
    let at = world.replicas.get_mut(&hurt).unwrap();
    at.damaged.insert(lsn);
    at.stored = slot.prev();
    at.disk.records.retain(|(_, identity, payload)| {
        !matches!(Record::decode(identity, payload), Ok(Record::ChosenHint { .. }))
    });
    world.copies = false;
    world.restart(hurt);
    world.run(500);
    assert!(world.paxos(hurt).have_upto() < slot, "nobody can give what is damaged");
    world.with(hurt, |paxos, _| paxos.stored(slot));
    world.run(500);
    assert_eq!(world.paxos(hurt).have_upto(), slot);
}
