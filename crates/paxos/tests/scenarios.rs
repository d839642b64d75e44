//! One situation each, told step by step (docs/paxos.md 11.5, 11.6, 11.7).
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::VecDeque;

use base::{Lsn, ReplicaId, Slot};
use paxos::{Message, Record, Refusal, SlotStatus, Value};
use world::{Limits, SMALL, USUAL, World, id};

fn leading_group(seed: u64, count: u64, limits: Limits) -> (World, ReplicaId) {
    let mut world = World::new(seed, count, limits);
    world.run(200);
    let leader = world.leader().expect("a fresh group elects a leader");
    (world, leader)
}

fn others(world: &World, replica: ReplicaId) -> Vec<ReplicaId> {
    world.ids().into_iter().filter(|other| *other != replica).collect()
}

/// Messages under way, decoded.
fn under_way(world: &World) -> Vec<(ReplicaId, ReplicaId, Message)> {
    let decode = |bytes| base::codec::decode(bytes).unwrap();
    world.net.iter().map(|(from, to, bytes)| (*from, *to, decode(bytes))).collect()
}

fn deliver_where(world: &mut World, wanted: impl Fn(ReplicaId, ReplicaId, &Message) -> bool) {
    for (from, to, bytes) in std::mem::take(&mut world.net) {
        let message: Message = base::codec::decode(&bytes).unwrap();
        match wanted(from, to, &message) {
            true => world.deliver(from, to, &bytes),
            false => world.net.push((from, to, bytes)),
        }
    }
}

fn value_at(world: &World, replica: ReplicaId, slot: Slot) -> Option<Value> {
    let chosen = &world.replicas[&replica].chosen;
    chosen.iter().find(|chosen| chosen.slot == slot).map(|chosen| chosen.value.clone())
}

#[test]
fn a_fresh_group_elects_within_100_ms() {
    for seed in 0..50 {
        for count in [1, 2, 3, 5, 7] {
            let mut world = World::new(seed, count, USUAL);
            world.run(100);
            assert!(world.leader().is_some(), "seed {seed}, {count} replicas");
        }
    }
}

#[test]
fn a_group_of_one_decides_when_its_record_is_durable_and_sends_nothing() {
    let mut world = World::new(1, 1, USUAL);
    assert!(world.paxos(id(1)).is_leading(), "it leads from the start");
    let slot = world.propose(id(1), 10).unwrap();
    assert_eq!(world.replicas[&id(1)].applied, Slot::ZERO, "not before it is durable");
    world.sync_all(id(1));
    assert_eq!(world.replicas[&id(1)].applied, slot);
    world.confirm(id(1)).unwrap();
    assert_eq!(world.replicas[&id(1)].confirmed.len(), 1);
    assert!(world.net.is_empty());

    world.crash(id(1));
    world.restart(id(1));
    world.sync_all(id(1));
    assert_eq!(world.paxos(id(1)).chosen_upto(), slot, "a restart decides it again");
}

#[test]
fn a_new_leader_adopts_the_value_of_the_highest_ballot() {
    let (mut world, first) = leading_group(3, 3, USUAL);
    let rest = others(&world, first);
    // Two commands for one slot: one stays with the first leader, a later one reaches a quorum.
    world.isolate(first);
    let slot = world.propose(first, 10).unwrap();
    world.sync_all(first);
    world.run(600);
    let second = rest.iter().copied().find(|id| world.paxos(*id).is_leading()).unwrap();
    let chosen = world.propose(second, 20).unwrap();
    assert_eq!(slot, chosen, "both take the next slot");
    world.run(50);
    let value = value_at(&world, second, chosen).unwrap();

    // The old leader comes back and campaigns: its own value has the lower ballot.
    let third = rest.iter().copied().find(|id| *id != second).unwrap();
    world.crash(second);
    world.heal();
    world.with(first, |paxos, now| paxos.campaign(now));
    world.run(300);
    assert!(world.leader().is_some());
    assert_eq!(value_at(&world, first, slot), Some(value.clone()));
    assert_eq!(value_at(&world, third, slot), Some(value));
}

#[test]
fn holes_are_filled_with_noop_after_a_fail_over() {
    let (mut world, leader) = leading_group(4, 3, USUAL);
    let rest = others(&world, leader);
    let first = world.propose(leader, 10).unwrap();
    world.net.clear();
    // The Accept of the first slot is lost; that of the second reaches one follower.
    let second = world.propose(leader, 10).unwrap();
    deliver_where(&mut world, |_, to, _| to == rest[0]);
    world.sync_all(rest[0]);
    assert!(matches!(world.paxos(rest[0]).status(second), SlotStatus::Accepted(_)));
    assert_eq!(world.paxos(rest[0]).status(first), SlotStatus::Empty);
    world.net.clear();
    world.crash(leader);
    world.run(500);
    assert!(world.leader().is_some());
    assert_eq!(value_at(&world, rest[1], first), Some(Value::Noop));
    assert!(matches!(value_at(&world, rest[1], second), Some(Value::Command(_))));
}

#[test]
fn what_vouches_for_a_record_waits_for_the_disk() {
    let mut world = World::new(5, 3, USUAL);
    world.with(id(1), |paxos, now| paxos.campaign(now));
    assert!(under_way(&world).is_empty(), "no Prepare before the own promise is durable");
    world.sync_all(id(1));
    assert_eq!(under_way(&world).len(), 2);
    deliver_where(&mut world, |_, _, _| true);
    assert!(under_way(&world).is_empty(), "no Promise before it is durable");
    assert_eq!(world.paxos(id(2)).held_count(), 1);
    world.sync_all(id(2));
    assert!(matches!(under_way(&world)[0], (_, _, Message::Promise(_))));
    deliver_where(&mut world, |_, _, _| true);
    assert!(world.paxos(id(1)).is_leading());

    // The Accept leaves before the leader's own record is durable; votes do not.
    let slot = world.propose(id(1), 10).unwrap();
    let accepts = under_way(&world);
    assert!(accepts.iter().any(|(_, _, message)| matches!(message, Message::Accept(_))));
    deliver_where(&mut world, |_, to, _| to == id(2));
    let voted = |message: &Message| matches!(message, Message::Accepted(accepted) if accepted.acc_upto >= slot);
    let votes = |world: &World| under_way(world).iter().filter(|sent| voted(&sent.2)).count();
    assert_eq!(votes(&world), 0);
    world.sync_all(id(2));
    assert_eq!(votes(&world), 1);
    deliver_where(&mut world, |_, to, _| to == id(1));
    assert_eq!(
        world.paxos(id(1)).chosen_upto(),
        Slot::ZERO,
        "the leader's own vote is not durable"
    );
    world.sync_all(id(1));
    assert_eq!(world.paxos(id(1)).chosen_upto(), slot);
}

#[test]
fn a_refusal_waits_for_the_promise_that_it_rests_on() {
    let mut world = World::new(6, 3, USUAL);
    for campaigner in [1, 2] {
        world.with(id(campaigner), |paxos, now| paxos.campaign(now));
        world.sync_all(id(campaigner));
    }
    deliver_where(&mut world, |from, to, _| (from, to) == (id(2), id(3)));
    deliver_where(&mut world, |from, to, _| (from, to) == (id(1), id(3)));
    assert!(!under_way(&world).iter().any(|(from, _, _)| *from == id(3)));
    world.sync_all(id(3));
    let sent = under_way(&world);
    assert!(sent.iter().any(|(from, to, message)| {
        (*from, *to) == (id(3), id(1)) && matches!(message, Message::Reject(_))
    }));
}

#[test]
fn a_restarted_replica_takes_a_new_round() {
    let (mut world, leader) = leading_group(7, 3, USUAL);
    let before = world.paxos(leader).ballot();
    world.crash(leader);
    world.restart(leader);
    assert!(!world.paxos(leader).is_leading());
    assert_eq!(world.propose(leader, 1), None, "it does not go on under the old ballot");
    world.with(leader, |paxos, now| paxos.campaign(now));
    world.run(100);
    assert!(world.paxos(leader).is_leading());
    assert!(world.paxos(leader).ballot().round > before.round);
}

#[test]
fn a_replica_behind_the_tail_catches_up_from_the_disk() {
    let (mut world, leader) = leading_group(8, 3, SMALL);
    let lagging = others(&world, leader)[0];
    world.isolate(lagging);
    for _ in 0..60 {
        world.propose(leader, 100).unwrap();
        world.run(5);
    }
    assert!(world.paxos(leader).tail_bytes() <= SMALL.tail_bytes);
    assert_eq!(world.replicas[&lagging].applied, Slot::ZERO);
    world.heal();
    world.run(1_000);
    assert_eq!(world.replicas[&lagging].applied, Slot(60));
    let stats = world.ids().iter().map(|id| world.paxos(*id).stats().loads).sum::<u64>();
    assert!(stats >= 50, "values came from the disk: {stats}");
    world.check_logs();
}

#[test]
fn live_votes_go_on_while_a_replica_catches_up() {
    let (mut world, leader) = leading_group(9, 3, USUAL);
    let rest = others(&world, leader);
    world.isolate(rest[0]);
    for _ in 0..50 {
        world.propose(leader, 100).unwrap();
        world.run(2);
    }
    // The one that was up to date dies; the one that lags must vote.
    world.crash(rest[1]);
    world.heal();
    let slot = world.propose(leader, 100).unwrap();
    world.run(300);
    let leader = world.leader().unwrap();
    assert!(world.paxos(leader).chosen_upto() >= slot);
    assert_eq!(world.replicas[&rest[0]].applied, slot);
}

#[test]
fn a_read_is_not_served_by_an_older_round() {
    let (mut world, leader) = leading_group(10, 3, USUAL);
    world.propose(leader, 1).unwrap();
    world.run(20);
    world.net.clear();
    let early = world.confirm(leader).unwrap();
    let late = world.confirm(leader).unwrap();
    let same_turn = world.confirm(leader).unwrap();
    for replica in others(&world, leader) {
        deliver_where(&mut world, |_, to, message| {
            to == replica && matches!(message, Message::Confirm(_))
        });
    }
    deliver_where(&mut world, |_, to, _| to == leader);
    let confirmed = |world: &World| -> Vec<_> {
        world.replicas[&leader].confirmed.iter().map(|(ticket, _)| *ticket).collect()
    };
    assert_eq!(confirmed(&world), vec![early], "the others came after the question");
    world.run(10);
    assert_eq!(confirmed(&world), vec![early, late, same_turn]);
    assert_eq!(world.paxos(leader).stats().confirm_rounds, 2, "they share the next one");
}

#[test]
fn a_doubled_answer_of_an_older_round_confirms_nothing() {
    let (mut world, leader) = leading_group(21, 3, USUAL);
    world.confirm(leader).unwrap();
    deliver_where(&mut world, |_, _, message| matches!(message, Message::Confirm(_)));
    let answers = world.net.clone();
    world.run(5);
    assert_eq!(world.replicas[&leader].confirmed.len(), 1);
    world.net.clear();
    world.confirm(leader).unwrap();
    world.net = answers;
    deliver_where(&mut world, |_, to, _| to == leader);
    assert_eq!(world.replicas[&leader].confirmed.len(), 1, "the second read has its own round");
}

#[test]
fn a_voter_that_promised_more_does_not_confirm_a_leader() {
    let (mut world, old) = leading_group(22, 3, USUAL);
    world.net.clear();
    let rest = others(&world, old);
    world.cut.extend([(old, rest[0]), (rest[0], old)]);
    // Whatever was granted to the old leader is over, and it has not noticed anything.
    world.advance(250_000);
    world.with(rest[0], |paxos, now| paxos.campaign(now));
    world.sync_all(rest[0]);
    deliver_where(&mut world, |_, to, _| to == rest[1]);
    world.sync_all(rest[1]);
    deliver_where(&mut world, |_, to, _| to == rest[0]);
    assert!(world.paxos(rest[0]).is_leading() && world.paxos(old).is_leading());

    let ticket = world.confirm(old).unwrap();
    deliver_where(&mut world, |from, to, _| (from, to) == (old, rest[1]));
    deliver_where(&mut world, |_, to, _| to == old);
    assert!(world.replicas[&old].confirmed.is_empty());
    assert_eq!(world.replicas[&old].refused, vec![ticket], "it learns that it leads no more");
}

#[test]
fn reads_of_a_deposed_leader_are_refused_and_never_confirmed() {
    let (mut world, old) = leading_group(11, 3, USUAL);
    world.isolate(old);
    let ticket = world.confirm(old).unwrap();
    world.run(600);
    let new = world.leader().expect("another leads");
    assert_ne!(new, old);
    assert_eq!(world.replicas[&old].refused, vec![ticket]);
    assert!(world.replicas[&old].confirmed.is_empty());
}

#[test]
fn votes_for_another_ballot_are_not_counted() {
    let (mut world, leader) = leading_group(12, 3, USUAL);
    let slot = world.propose(leader, 10).unwrap();
    world.sync_all(leader);
    world.net.clear();
    let mut ballot = world.paxos(leader).ballot();
    ballot.round -= 1;
    for replica in others(&world, leader) {
        let accepted = paxos::message::Accepted {
            ballot,
            acc_upto: slot,
            sack: Vec::new(),
            have_upto: Slot::ZERO,
        };
        world.with(leader, |paxos, now| paxos.handle(now, replica, Message::Accepted(accepted)));
    }
    assert_eq!(world.paxos(leader).chosen_upto(), slot.prev());
}

#[test]
fn a_full_window_answers_busy_until_something_is_chosen() {
    let (mut world, leader) = leading_group(13, 3, SMALL);
    let rest = others(&world, leader);
    for replica in &rest {
        world.cut.insert((*replica, leader));
    }
    for _ in 0..SMALL.window_slots {
        world.propose(leader, 1).unwrap();
    }
    let command = world.command(1);
    let refused = world.with(leader, |paxos, now| paxos.propose(now, command)).unwrap();
    assert_eq!(refused, Err(Refusal::Busy));
    world.cut.clear();
    world.run(60);
    assert!(world.propose(leader, 1).is_some());
}

#[test]
fn a_large_command_goes_alone_through_a_small_window() {
    let (mut world, leader) = leading_group(14, 3, SMALL);
    let slots: Vec<Slot> = (0..5).map(|_| world.propose(leader, 5_000).unwrap()).collect();
    world.run(300);
    for replica in world.ids() {
        assert_eq!(world.replicas[&replica].applied, slots[4]);
    }
}

#[test]
fn a_leader_without_a_quorum_steps_down() {
    let (mut world, leader) = leading_group(15, 3, USUAL);
    for other in others(&world, leader) {
        world.crash(other);
    }
    world.run(200);
    assert!(!world.paxos(leader).is_leading());
    assert_eq!(world.paxos(leader).heartbeat_row().leader, None);
}

#[test]
fn a_new_leader_is_up_within_300_ms_of_losing_the_old_one() {
    for seed in 0..60 {
        let (mut world, old) = leading_group(seed, 3, USUAL);
        world.propose(old, 10).unwrap();
        world.run(30);
        world.crash(old);
        // The crash shows at once here; a node sees it when its heartbeats stay away for 100 ms.
        world.run(250);
        let new = world.leader();
        assert!(new.is_some() && new != Some(old), "seed {seed}");
    }
}

#[test]
fn a_replica_with_a_bad_link_does_not_depose_the_leader() {
    let (mut world, leader) = leading_group(16, 3, USUAL);
    let ballot = world.paxos(leader).ballot();
    let lame = others(&world, leader)[0];
    world.cut.insert((lame, leader));
    world.cut.insert((leader, lame));
    world.connect();
    for _ in 0..20 {
        world.propose(leader, 10).unwrap();
        world.run(100);
    }
    assert_eq!(world.paxos(leader).ballot(), ballot);
    assert!(world.paxos(leader).is_leading());
    // It learns through the third.
    assert!(world.replicas[&lame].applied >= Slot(15));
}

#[test]
fn a_truncated_prefix_proves_what_a_restart_forgot() {
    let (mut world, leader) = leading_group(17, 3, USUAL);
    for _ in 0..30 {
        world.propose(leader, 10).unwrap();
        world.run(5);
    }
    world.run(1_500);
    let forgetful = others(&world, leader)[0];
    // Hints are lost where they were not written yet; here all of them are.
    let at = world.replicas.get_mut(&forgetful).unwrap();
    at.disk.records.retain(|(lsn, identity, payload)| {
        let record = Record::decode(identity, payload).unwrap();
        *lsn == Lsn(0) || !matches!(record, Record::ChosenHint { .. })
    });
    for replica in world.ids() {
        let at = world.replicas.get_mut(&replica).unwrap();
        at.stored = at.applied;
        let paxos = at.paxos.as_mut().unwrap();
        let upto = paxos.truncatable();
        assert_eq!(upto, Slot(30), "{replica}");
        if replica != forgetful {
            paxos.truncate(upto);
        }
    }
    world.crash(forgetful);
    world.restart(forgetful);
    assert_eq!(world.paxos(forgetful).chosen_upto(), Slot::ZERO);
    world.run(500);
    assert_eq!(world.paxos(forgetful).have_upto(), Slot(30));
}

#[test]
fn a_store_ahead_of_the_log_skips_what_it_executed() {
    let (mut world, leader) = leading_group(18, 3, USUAL);
    let late = others(&world, leader)[0];
    for _ in 0..10 {
        world.propose(leader, 10).unwrap();
        world.run(10);
    }
    world.run(50);
    // The store has executed ten slots, and the log has lost the newest records of five.
    let at = world.replicas.get_mut(&late).unwrap();
    assert_eq!(at.applied, Slot(10));
    at.stored = at.applied;
    let cut = at
        .disk
        .decode()
        .find(|(_, record)| matches!(record, Record::Entries { first, .. } if *first >= Slot(6)));
    let cut = cut.unwrap().0;
    world.crash(late);
    let at = world.replicas.get_mut(&late).unwrap();
    at.disk.records.retain(|(lsn, _, _)| *lsn < cut);
    world.restart(late);
    assert!(world.paxos(late).chosen_upto() < Slot(6));
    let slot = world.propose(leader, 10).unwrap();
    world.run(300);
    assert_eq!(world.paxos(late).have_upto(), slot);
    let handed_out = world.replicas[&late].chosen.iter().filter(|one| one.slot <= Slot(10));
    assert_eq!(handed_out.count(), 10, "none of them twice");
}

#[test]
fn slow_disks_delay_an_election_but_do_not_prevent_it() {
    for seed in 0..10 {
        let mut world = World::new(seed, 3, USUAL);
        for step in 0..6_000 {
            world.advance(1_000);
            for (from, to, bytes) in std::mem::take(&mut world.net) {
                world.deliver(from, to, &bytes);
            }
            for replica in world.ids() {
                if (step + 100 * replica.0) % 600 == 0 {
                    world.sync_all(replica);
                }
                if step % 5 == 0 {
                    world.with(replica, |paxos, now| paxos.tick(now));
                    let other = id(replica.0 % 3 + 1);
                    world.heartbeat(replica, other);
                    world.heartbeat(other, replica);
                }
            }
        }
        assert!(world.leader().is_some(), "seed {seed}");
    }
}

#[test]
fn a_gap_that_is_closed_is_answered_as_soon_as_it_is_durable() {
    let (mut world, leader) = leading_group(17, 3, USUAL);
    let follower = others(&world, leader)[0];
    let mut accepts = Vec::new();
    for _ in 0..3 {
        world.net.clear();
        world.propose(leader, 10).unwrap();
        accepts.extend(world.net.iter().find(|(_, to, _)| *to == follower).cloned());
    }
    world.net.clear();
    let deliver = |world: &mut World, at: usize| {
        let (from, to, bytes) = accepts[at].clone();
        world.deliver(from, to, &bytes);
    };
    deliver(&mut world, 0);
    deliver(&mut world, 2);
    world.sync_all(follower);
    // The gap closes, and a copy of what is behind it comes before the disk is done.
    deliver(&mut world, 1);
    deliver(&mut world, 2);
    world.net.clear();
    world.sync_all(follower);
    let last = world.paxos(leader).last_slot();
    let told = under_way(&world).into_iter().any(|(_, _, message)| {
        matches!(message, Message::Accepted(accepted) if accepted.acc_upto == last)
    });
    assert!(told, "the leader is told without asking again");
}

#[test]
fn a_vote_for_what_is_chosen_already_is_told_once_it_is_durable() {
    let (mut world, leader) = leading_group(18, 3, USUAL);
    let follower = others(&world, leader)[0];
    let slot = world.propose(leader, 10).unwrap();
    let accept = world.net.iter().find(|(_, to, _)| *to == follower).cloned().unwrap();
    world.net.clear();
    world.deliver(accept.0, accept.1, &accept.2);
    world.deliver(accept.0, accept.1, &accept.2);
    world.net.clear();
    world.sync_all(follower);
    let told = under_way(&world).into_iter().any(|(_, _, message)| {
        matches!(message, Message::Accepted(accepted) if accepted.acc_upto == slot)
    });
    assert!(told);
}

#[test]
fn a_way_longer_than_what_was_measured_of_it_does_not_prevent_an_election() {
    for delay in [10, 25, 31, 33, 36, 45] {
        let mut world = World::new(23, 3, USUAL);
        let mut under_way = VecDeque::new();
        for step in 0..2_000 {
            under_way.extend(std::mem::take(&mut world.net).into_iter().map(|sent| (step, sent)));
            while let Some((_, (from, to, bytes))) =
                under_way.pop_front_if(|(sent, _)| *sent + delay <= step)
            {
                world.deliver(from, to, &bytes);
            }
            let late = std::mem::take(&mut world.net);
            under_way.extend(late.into_iter().map(|sent| (step, sent)));
            world.run(1);
        }
        assert!(world.leader().is_some(), "{delay} ms");
    }
}

#[test]
fn a_leader_whose_disk_stands_still_takes_no_more_than_it_can_hold() {
    let (mut world, leader) = leading_group(24, 3, SMALL);
    let mut refused = false;
    for _ in 0..100 {
        refused |= world.propose(leader, 50).is_none();
        for _ in 0..3 {
            for (from, to, bytes) in std::mem::take(&mut world.net) {
                world.deliver(from, to, &bytes);
            }
            others(&world, leader).into_iter().for_each(|other| world.sync_all(other));
        }
    }
    assert!(refused);
    assert!(world.paxos(leader).chosen_upto() > Slot(3), "the others choose");
    assert!(world.paxos(leader).tail_bytes() <= 3 * SMALL.tail_bytes);
    world.run(200);
    assert!(world.propose(leader, 50).is_some(), "room again");
}
