//! From one set of members to the next (docs/paxos.md 11.8).
#![allow(clippy::unwrap_used)]

mod world;

use base::{GroupId, Lsn, Micros, ReplicaId, Slot};
use paxos::message::{Accept, Prepare};
use paxos::{
    Ballot, ChangeRefusal, Members, Message, Options, Paxos, Record, Recovery, Standing, Value,
};
use world::{USUAL, World, id, member};

/// A group of three and one that learns, with a leader and a few commands.
fn group(seed: u64) -> (World, ReplicaId) {
    let mut world = World::with_learners(seed, 3, 1, USUAL);
    world.run(600);
    let leader = world.leader().expect("a leader");
    for _ in 0..5 {
        world.propose(leader, 8);
    }
    world.run(100);
    (world, leader)
}

fn others(leader: ReplicaId) -> Vec<ReplicaId> {
    (1..=3).map(id).filter(|other| *other != leader).collect()
}

fn change(world: &mut World, leader: ReplicaId, voters: &[u64], first: ReplicaId) -> Slot {
    let voters = voters.iter().copied().map(member).collect();
    world.with(leader, |paxos, now| paxos.change(now, voters, first)).unwrap().unwrap()
}

#[test]
fn a_learner_becomes_a_voter_and_a_voter_leaves() {
    let (mut world, leader) = group(1);
    assert!(!world.paxos(id(4)).is_voter());
    let gone = others(leader)[0];
    let stay = others(leader)[1];
    let stop = change(&mut world, leader, &[leader.0, stay.0, 4], leader);
    world.run(200);
    for replica in world.ids() {
        let paxos = world.paxos(replica);
        assert_eq!((paxos.members().epoch(), paxos.done()), (2, 2), "{replica}");
        assert_eq!(paxos.members().first_slot(), stop.next());
    }
    assert!(world.paxos(id(4)).is_voter() && !world.paxos(gone).is_voter());
    assert_eq!(world.paxos(leader).ballot(), Ballot { epoch: 2, round: 0, replica: leader });
    // Who left leads nobody, and the new one counts.
    world.isolate(stay);
    assert!(world.propose(leader, 8).is_some());
    world.run(300);
    assert_eq!(world.paxos(id(4)).chosen_upto(), world.paxos(leader).last_slot());
    world.with(gone, |paxos, now| paxos.campaign(now));
    assert_eq!(world.paxos(gone).ballot().replica, leader);
    world.check_logs();
}

#[test]
fn another_leads_first_without_phase_1_and_the_lease_ends_before() {
    let (mut world, leader) = group(2);
    world.run(200);
    assert!(world.paxos(leader).lease().is_some());
    let next = others(leader)[0];
    change(&mut world, leader, &[1, 2, 3, 4].map(|n| n), next);
    assert!(world.paxos(leader).lease().is_none(), "it ends before the stop-sign leaves");
    assert!(world.propose(leader, 8).is_none(), "nothing stands behind a stop-sign");
    world.run(100);
    assert_eq!(world.leader(), Some(next));
    assert_eq!(world.paxos(next).ballot(), Ballot { epoch: 2, round: 0, replica: next });
}

#[test]
fn a_first_leader_that_was_started_again_takes_a_new_ballot() {
    let (mut world, leader) = group(3);
    change(&mut world, leader, &[1, 2, 3, 4], leader);
    for _ in 0..20 {
        world.run(1);
        if world.paxos(leader).members().epoch() == 2 {
            break;
        }
    }
    world.sync_all(leader);
    world.crash(leader);
    world.restart(leader);
    assert!(!world.paxos(leader).is_leading(), "it may have proposed under that ballot");
    world.run(1_500);
    let now = world.leader().expect("a leader");
    assert!(world.paxos(now).ballot().round > 0);
}

#[test]
fn one_change_is_made_at_a_time_and_only_to_those_who_are_there() {
    let (mut world, leader) = group(4);
    let voters = |numbers: &[u64]| numbers.iter().copied().map(member).collect::<Vec<_>>();
    let ask = |world: &mut World, numbers: &[u64], first| {
        let voters = voters(numbers);
        world.with(leader, |paxos, now| paxos.change(now, voters, first)).unwrap()
    };
    assert_eq!(ask(&mut world, &[1, 2, 3], leader), Err(ChangeRefusal::Same));
    assert_eq!(ask(&mut world, &[1, 2], id(3)), Err(ChangeRefusal::NoMembers));
    assert_eq!(ask(&mut world, &[], id(1)), Err(ChangeRefusal::NoMembers));
    world.isolate(id(4));
    let refused = ask(&mut world, &[leader.0, 4], leader);
    assert_eq!(refused, Err(ChangeRefusal::NotReady { lacking: vec![id(4)] }));
    world.heal();
    world.run(200);
    ask(&mut world, &[1, 2, 3, 4], leader).unwrap();
    assert_eq!(ask(&mut world, &[1, 2, 3], leader), Err(ChangeRefusal::Busy));
    world.run(200);
    ask(&mut world, &[1, 2, 3], leader).unwrap();
}

/// There are so few slots that to have none is to lack little.
#[test]
fn f18_a_replica_that_was_never_made_is_no_member_though_its_node_is_there() {
    let mut world = World::with_learners(9, 3, 1, USUAL);
    world.crash(id(4));
    world.run(600);
    let leader = world.leader().expect("a leader");
    world.propose(leader, 8);
    world.run(100);
    let result = world.with(leader, |paxos, now| {
        paxos.connected(now, id(4), true, Micros(500));
        paxos.change(now, vec![member(leader.0), member(4)], leader)
    });
    assert_eq!(result.unwrap(), Err(ChangeRefusal::NotReady { lacking: vec![id(4)] }));
}

/// The leader vanishes after it proposed a stop-sign, and some accepted a command behind it under an
/// older ballot, past a hole.
fn stop_with_leftovers(seed: u64) -> (World, ReplicaId, Slot) {
    let (mut world, leader) = group(seed);
    let (one, two) = (others(leader)[0], others(leader)[1]);
    let stop = world.paxos(leader).last_slot().next();
    let voters = vec![member(one.0), member(two.0), member(4)];
    let members = world.paxos(leader).members().next(stop, voters, one).unwrap();
    let command = Value::Command(world.command(8));
    let ballot = world.paxos(leader).ballot();
    let accept = |ballot, first, value| {
        let base = stop;
        let (chosen_upto, truncate_upto) = (stop.prev(), Slot::ZERO);
        Message::Accept(Accept {
            ballot,
            base,
            first,
            values: vec![value],
            chosen_upto,
            truncate_upto,
        })
    };
    world.isolate(leader);
    world.crash(leader);
    let behind = accept(ballot, stop.next(), command);
    let sign = accept(ballot, stop, Value::Stop(members));
    for replica in [one, two] {
        world.with(replica, |paxos, now| paxos.handle(now, leader, behind.clone()));
        world.with(replica, |paxos, now| paxos.handle(now, leader, sign.clone()));
        world.sync_all(replica);
        assert_eq!(world.paxos(replica).last_slot(), stop.next());
    }
    (world, one, stop)
}

#[test]
fn what_stands_behind_a_recovered_stop_sign_is_dropped() {
    let (mut world, one, stop) = stop_with_leftovers(5);
    world.run(2_000);
    assert_eq!(world.paxos(one).members().epoch(), 2);
    assert!(matches!(world.truth[&stop], Value::Stop(_)));
    assert!(!matches!(world.truth.get(&stop.next()), Some(Value::Command(_))));
    world.check_logs();
}

#[test]
fn what_an_epoch_left_behind_is_not_reported_in_the_next() {
    let (mut world, one, stop) = stop_with_leftovers(6);
    // They learn that the stop-sign is chosen before anybody recovers it.
    let ballot = world.paxos(one).ballot();
    for replica in world.ids() {
        if !world.is_up(replica) {
            continue;
        }
        let (base, chosen_upto, truncate_upto) = (stop, stop, Slot::ZERO);
        let chosen = paxos::message::Chosen { ballot, base, chosen_upto, truncate_upto };
        let leader = ballot.replica;
        world.with(replica, |paxos, now| paxos.handle(now, leader, Message::Chosen(chosen)));
        world.sync_all(replica);
    }
    assert_eq!(world.paxos(one).members().epoch(), 2);
    assert_eq!(world.paxos(one).last_slot(), stop, "nothing is held behind it");
    world.check_logs();
    // A candidate of the new epoch hears of nothing.
    let ballot = Ballot { epoch: 2, round: 1, replica: id(4) };
    let (runs, chosen_upto) = (Vec::new(), stop);
    let prepare = Prepare { ballot, probe: false, chosen_upto, runs, released: None };
    world.net.clear();
    world.with(one, |paxos, now| paxos.handle(now, id(4), Message::Prepare(prepare)));
    world.sync_all(one);
    let promises = world.net.iter().filter_map(|(_, _, bytes)| {
        let message: Message = base::codec::decode(bytes).unwrap();
        let Message::Promise(promise) = message else { return None };
        Some(promise.runs)
    });
    assert_eq!(promises.collect::<Vec<_>>(), [vec![]]);
}

#[test]
fn f18_a_removed_voter_is_told_so_and_disturbs_nobody() {
    let (mut world, leader) = group(7);
    let gone = others(leader)[0];
    world.isolate(gone);
    let stay = others(leader)[1];
    world.run(300);
    change(&mut world, leader, &[leader.0, stay.0, 4], leader);
    world.run(300);
    assert_eq!(world.paxos(gone).members().epoch(), 1);
    let ballot = world.paxos(leader).ballot();
    world.with(gone, |paxos, now| paxos.campaign(now));
    world.heal();
    world.run(500);
    assert_eq!(world.paxos(gone).members().epoch(), 2, "it learns that it is out");
    assert!(!world.paxos(gone).is_voter());
    assert_eq!(world.paxos(leader).ballot(), ballot, "the leader leads on");
}

/// The stop-sign was damaged when the replica learned what was chosen behind it: those entries are
/// of the next epoch, and stay when the stop-sign is mended and the epoch entered, and after a
/// restart.
#[test]
fn f11_what_is_learned_of_the_next_epoch_outlives_the_end_of_the_one_before() {
    let members = Members::new((1..=3).map(member).collect()).unwrap();
    let voters = vec![member(1), member(2), member(4)];
    let next = members.next(Slot(2), voters, id(2)).unwrap();
    let (old, new) = (Ballot { epoch: 1, round: 1, replica: id(2) }, next.first_ballot());
    let stop = Value::Stop(next.clone());
    let entries = |first, ballot, values| Record::Entries { first: Slot(first), ballot, values };
    let stopped = entries(2, old, vec![stop]);
    let records = [
        Record::GroupCreate { replica: id(1), members },
        entries(1, old, vec![Value::Noop]),
        stopped.clone(),
        entries(3, old, vec![Value::Noop]),
        entries(5, old, vec![Value::Noop]),
        entries(3, new, vec![Value::Done(2), Value::Noop]),
        Record::ChosenHint { upto: Slot(4) },
        stopped.clone(),
        Record::Epoch { members: next },
    ];
    let recover = |count: usize| {
        let mut recovery = Recovery::new(Options::new(GroupId(1), id(1), 1));
        for (lsn, record) in (1..).map(Lsn).zip(&records).take(count) {
            if lsn == Lsn(3) {
                recovery.push_damaged(lsn, record.identity().as_bytes()).unwrap();
            } else {
                recovery.push(lsn, record.clone()).unwrap();
            }
        }
        recovery.finish(Slot(1)).unwrap()
    };
    let paxos = recover(records.len());
    assert_eq!((paxos.members().epoch(), paxos.chosen_upto()), (2, Slot(4)));
    assert_eq!(paxos.last_slot(), Slot(4), "what the old epoch left behind it is gone");
    // Without the last record the epoch is entered as soon as the slots are there again.
    let paxos = recover(records.len() - 1);
    assert_eq!((paxos.members().epoch(), paxos.chosen_upto()), (2, Slot(4)));
    assert_eq!(paxos.last_slot(), Slot(4));
    paxos::invariants::check_log(&paxos);
}

/// Between the moment in which the store has a copy, and that in which the log durably has the
/// record of it, the store is flushed again: it must not say less of epochs than the copy did.
#[test]
fn f21_a_copy_says_who_votes_until_the_log_does() {
    let members = Members::new((1..=3).map(member).collect()).unwrap();
    let next = members.next(Slot(5), vec![member(2), member(3), member(4)], id(2)).unwrap();
    let mut paxos = Paxos::create(Options::new(GroupId(1), id(4), 1), members.clone());
    assert_eq!(paxos.standing(Slot(0)).map(|standing| standing.members), Some(members));
    let standing = Standing { members: next, done: 2 };
    paxos.hold();
    paxos.install(Slot(5), Some(standing.clone()));
    assert_eq!(paxos.standing(Slot(5)), Some(standing));
}

/// Damage took the record that says that a replica is no more; another came to its place since.
#[test]
fn f11_a_later_replica_has_nothing_of_the_one_before_whose_end_is_lost() {
    let members = |n: u64| Members::new((n..n + 3).map(member).collect()).unwrap();
    let ballot = Ballot { epoch: 1, round: 9, replica: id(2) };
    let mut recovery = Recovery::of_group(GroupId(1), 1);
    let entries = Record::Entries { first: Slot(1), ballot, values: vec![Value::Noop; 5] };
    let create = |n| Record::GroupCreate { replica: id(n), members: members(n) };
    recovery.push(Lsn(1), create(1)).unwrap();
    recovery.push(Lsn(2), entries).unwrap();
    recovery.push(Lsn(9), create(4)).unwrap();
    // What is older comes no more.
    assert!(recovery.push(Lsn(10), create(1)).is_err());
    let paxos = recovery.finish(Slot(0)).unwrap();
    assert_eq!((paxos.replica(), paxos.last_slot()), (id(4), Slot(0)));
    assert_eq!(paxos.ballot(), Ballot::ZERO);
    // Nor has it where nothing is left of the one before that names it.
    let mut recovery = Recovery::of_group(GroupId(1), 1);
    let later = members(1).next(Slot(27), vec![member(2), member(3)], id(2)).unwrap();
    recovery.push(Lsn(5), Record::Epoch { members: later }).unwrap();
    recovery.push(Lsn(9), create(4)).unwrap();
    let paxos = recovery.finish(Slot(0)).unwrap();
    assert_eq!((paxos.replica(), paxos.chosen_upto()), (id(4), Slot(0)));
    assert_eq!(paxos.ballot(), Ballot::ZERO);
}

/// It may have promised anything: it must not pass for one that is no more, and be made again.
#[test]
fn f11_a_replica_whose_first_record_is_damaged_is_not_the_one_before_it_that_is_no_more() {
    let members = |n: u64| Members::new((n..n + 3).map(member).collect()).unwrap();
    let create = |n| Record::GroupCreate { replica: id(n), members: members(n) };
    let ballot = Ballot { epoch: 1, round: 9, replica: id(5) };
    let mut recovery = Recovery::of_group(GroupId(1), 1);
    recovery.push(Lsn(1), create(1)).unwrap();
    recovery.push(Lsn(2), Record::GroupDestroy).unwrap();
    assert!(recovery.is_destroyed());
    recovery.push_damaged(Lsn(3), create(4).identity().as_bytes()).unwrap();
    assert!(!recovery.is_destroyed() && !recovery.is_created());
    // Nor where not even that much is left of it.
    let mut recovery = Recovery::of_group(GroupId(1), 1);
    recovery.push(Lsn(1), create(1)).unwrap();
    recovery.push(Lsn(2), Record::GroupDestroy).unwrap();
    recovery.push(Lsn(4), Record::Promise { ballot }).unwrap();
    assert!(!recovery.is_destroyed() && !recovery.is_created());
}

/// A quarantined replica serves copies of its state too, and whoever takes one believes what it says
/// of who votes.
#[test]
fn f11_a_quarantined_replica_goes_on_in_the_epoch_that_its_store_has_reached() {
    let members = Members::new((1..=3).map(member).collect()).unwrap();
    let next = members.next(Slot(5), vec![member(1), member(2), member(4)], id(2)).unwrap();
    let mut recovery = Recovery::of_group(GroupId(1), 1);
    recovery.push(Lsn(1), Record::GroupCreate { replica: id(1), members }).unwrap();
    recovery.push_lost();
    recovery.stands(Slot(9), Standing { members: next.clone(), done: 2 });
    let paxos = recovery.finish(Slot(9)).unwrap();
    assert!(paxos.is_quarantined());
    assert_eq!(paxos.standing(Slot(9)), Some(Standing { members: next, done: 2 }));
}

#[test]
fn f18_who_was_away_while_all_others_were_replaced_takes_a_copy_of_those_of_today() {
    let mut world = World::with_learners(7, 3, 2, USUAL);
    world.run(600);
    let leader = world.leader().expect("a leader");
    let (away, other) = (others(leader)[0], others(leader)[1]);
    world.crash(away);
    for _ in 0..5 {
        world.propose(leader, 8);
    }
    world.run(200);
    change(&mut world, leader, &[away.0, 4, 5], id(4));
    world.run(600);
    assert!(world.propose(id(4), 8).is_some());
    world.run(200);
    // Nobody has the log that it lacks, and nobody is left whom it knows as a voter.
    for replica in [id(4), id(5)] {
        let stored = world.replicas[&replica].stored;
        world.with(replica, |paxos, _| paxos.truncate(stored));
    }
    world.crash(leader);
    world.crash(other);
    world.restart(away);
    world.heal();
    world.run(1_500);
    assert_eq!(world.paxos(away).members().epoch(), 2);
    assert_eq!(world.paxos(away).chosen_upto(), world.paxos(id(4)).chosen_upto());
    assert_eq!(world.replicas[&away].copies, 1);
    world.check_logs();
}
