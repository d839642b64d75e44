//! Grants, leases, and how a leadership ends in good order (docs/paxos.md 11.6, 11.7). The world
//! checks after every input that no lease overlaps a later leadership (I14).
#![allow(clippy::unwrap_used)]

mod world;

use base::limits::{GRANT_SPAN, LEASE_SPAN};
use base::{Micros, ReplicaId, Slot};
use paxos::message::{Prepare, Why};
use paxos::{Ballot, Message, Refusal};
use world::{USUAL, World};

/// A group with a leader that holds a lease.
fn leased_group(seed: u64, count: u64) -> (World, ReplicaId) {
    let mut world = World::new(seed, count, USUAL);
    world.run(250);
    let leader = world.leader().expect("a fresh group elects a leader");
    assert!(has_lease(&world, leader));
    (world, leader)
}

fn has_lease(world: &World, replica: ReplicaId) -> bool {
    world.paxos(replica).lease().is_some_and(|lease| lease.until >= world.now.mono)
}

fn others(world: &World, replica: ReplicaId) -> Vec<ReplicaId> {
    world.ids().into_iter().filter(|other| *other != replica).collect()
}

/// Asks `voter` for a promise in the name of `candidate`, and gives its answer.
fn ask(
    world: &mut World,
    voter: ReplicaId,
    candidate: ReplicaId,
    released: Option<Ballot>,
) -> Message {
    let ballot = world.paxos(voter).ballot();
    let ballot = Ballot { round: ballot.round + 1, replica: candidate, ..ballot };
    let chosen_upto = Slot::ZERO;
    let prepare = Prepare { ballot, probe: false, chosen_upto, runs: Vec::new(), released };
    world.net.clear();
    let message = Message::Prepare(prepare);
    world.with(voter, |paxos, now| paxos.handle(now, candidate, message));
    world.sync_all(voter);
    let answers = world.net.iter().filter(|(from, to, _)| (*from, *to) == (voter, candidate));
    let answers: Vec<Message> =
        answers.map(|(_, _, bytes)| base::codec::decode(bytes).unwrap()).collect();
    let [answer] = answers.as_slice() else { panic!("one answer is due: {answers:?}") };
    answer.clone()
}

fn is_bound(answer: &Message) -> bool {
    matches!(answer, Message::Reject(reject) if matches!(reject.why, Why::Grant(_)))
}

fn is_promise(answer: &Message) -> bool {
    matches!(answer, Message::Promise(promise) if !promise.probe)
}

#[test]
fn a_lease_rests_on_answered_heartbeats_and_ends_before_what_was_granted() {
    for count in [2, 3, 5, 7] {
        let (mut world, leader) = leased_group(1, count);
        world.run(1);
        let lease = world.paxos(leader).lease().unwrap();
        let latest = if count == 2 { Micros(u64::MAX) } else { world.now.mono + LEASE_SPAN };
        assert!(lease.until <= latest && LEASE_SPAN < GRANT_SPAN);
        // The votes of two are both needed, so nobody else leads as long as one of them does.
        let cut_at = world.now.mono;
        world.isolate(leader);
        while count > 2 && has_lease(&world, leader) {
            world.run(5);
        }
        assert!(count == 2 || world.now.mono.since(cut_at) <= GRANT_SPAN, "{count} replicas");
    }
}

#[test]
fn f10_a_lease_is_reckoned_from_when_the_heartbeat_was_sent() {
    let (mut world, leader) = leased_group(14, 3);
    let follower = others(&world, leader)[0];
    let ballot = world.paxos(leader).ballot();
    // All that was granted is over, and one answer was long on its way.
    world.advance(2 * GRANT_SPAN.0);
    let sent = Micros(world.now.mono.0 - GRANT_SPAN.0 / 2);
    world.with(leader, |paxos, now| paxos.supported(now, follower, ballot, sent));
    assert_eq!(world.paxos(leader).lease().unwrap().until, sent + LEASE_SPAN);
    // Nothing is granted to what it led before, nor from a time to come.
    let lower = Ballot { round: ballot.round - 1, ..ballot };
    let now = world.now.mono;
    world.with(leader, |paxos, at| paxos.supported(at, follower, lower, now));
    world.with(leader, |paxos, at| paxos.supported(at, follower, ballot, now + Micros(1)));
    assert_eq!(world.paxos(leader).lease().unwrap().until, sent + LEASE_SPAN);
}

#[test]
fn a_new_leader_holds_no_lease_before_what_it_recovered_is_chosen() {
    let (mut world, old) = leased_group(18, 3);
    let slot = world.propose(old, 10).unwrap();
    world.run(1);
    world.crash(old);
    world.net.clear();
    while world.leader().is_none() {
        world.run(1);
    }
    let new = world.leader().unwrap();
    assert!(world.paxos(new).chosen_upto() < slot);
    for _ in 0..200 {
        // Heartbeats pass, and with them grants.
        world.net.clear();
        world.run(1);
        assert_eq!(world.paxos(new).lease(), None);
    }
    world.run(100);
    assert!(world.paxos(new).chosen_upto() >= slot && has_lease(&world, new));
}

#[test]
fn who_passed_its_leadership_on_reads_nothing_under_its_lease() {
    let (mut world, leader) = leased_group(15, 3);
    let target = others(&world, leader)[0];
    assert!(world.with(leader, |paxos, now| paxos.transfer(now, target)).unwrap());
    let said = |world: &World| {
        world.net.iter().any(|(from, _, bytes)| {
            let message: Message = base::codec::decode(bytes).unwrap();
            *from == leader && matches!(message, Message::TransferGo(_))
        })
    };
    while !said(&world) {
        assert!(world.paxos(leader).lease().is_some(), "it leads on until then");
        world.run(1);
        world.with(leader, |paxos, now| paxos.tick(now));
    }
    // The others are free from here on, whatever they had granted.
    assert_eq!(world.paxos(leader).lease(), None);
}

#[test]
fn f13_a_quarantined_replica_grants_nothing_and_takes_over_from_nobody() {
    let (mut world, leader) = leased_group(16, 3);
    let [hurt, other] = others(&world, leader)[..] else { panic!("three replicas") };
    let granted = world.with(hurt, |paxos, now| paxos.support(now, leader)).unwrap();
    assert!(granted.is_some());
    world.with(hurt, |paxos, _| paxos.quarantine());
    world.run(50);
    assert_eq!(world.paxos(hurt).leader(), Some(leader), "it follows still");
    assert_eq!(world.with(hurt, |paxos, now| paxos.support(now, leader)).unwrap(), None);
    assert!(!world.paxos(hurt).heartbeat_row().able);
    world.run(100);
    assert!(!world.with(leader, |paxos, now| paxos.transfer(now, hurt)).unwrap());
    // It may have been told before.
    let ballot = world.paxos(leader).ballot();
    let go = Message::TransferGo(paxos::message::TransferGo { ballot });
    world.with(hurt, |paxos, now| paxos.handle(now, leader, go.clone()));
    world.with(hurt, |paxos, now| paxos.campaign(now));
    assert_eq!(world.paxos(hurt).ballot(), ballot, "it makes no ballot of its own");
    world.with(other, |paxos, now| paxos.handle(now, leader, go));
    assert_eq!(world.paxos(other).ballot().replica, other, "as another does");
}

#[test]
fn f11_a_replica_without_its_store_takes_over_from_nobody() {
    let (mut world, leader) = leased_group(17, 3);
    let hurt = others(&world, leader)[0];
    world.copies = false;
    world.with(hurt, |paxos, _| paxos.lose_store());
    world.sync_all(hurt);
    assert!(!world.paxos(hurt).heartbeat_row().able);
    world.heartbeat(hurt, leader);
    world.heartbeat(leader, hurt);
    assert!(!world.with(leader, |paxos, now| paxos.transfer(now, hurt)).unwrap());
    let granted = world.with(hurt, |paxos, now| paxos.support(now, leader)).unwrap();
    assert!(granted.is_some(), "its promises are kept");
    let ballot = world.paxos(leader).ballot();
    let go = Message::TransferGo(paxos::message::TransferGo { ballot });
    world.with(hurt, |paxos, now| paxos.handle(now, leader, go));
    assert_eq!(world.paxos(hurt).ballot(), ballot);
}

#[test]
fn a_group_of_one_holds_its_lease_for_ever() {
    let mut world = World::new(2, 1, USUAL);
    world.run(1_000);
    let leader = world.leader().unwrap();
    assert_eq!(world.paxos(leader).lease().unwrap().until, Micros(u64::MAX));
}

#[test]
fn a_voter_promises_nobody_else_while_its_grant_lasts() {
    let (mut world, leader) = leased_group(3, 3);
    let rest = others(&world, leader);
    world.heartbeat(leader, rest[0]);
    let granted_at = world.now.mono;
    assert!(is_bound(&ask(&mut world, rest[0], rest[1], None)));
    world.with(rest[0], |paxos, now| paxos.campaign(now));
    assert_eq!(world.paxos(rest[0]).ballot().replica, leader, "nor itself");
    let left = (granted_at + GRANT_SPAN).since(world.now.mono);
    world.advance(left.0);
    assert!(is_bound(&ask(&mut world, rest[0], rest[1], None)), "to the last");
    world.advance(1);
    assert!(is_promise(&ask(&mut world, rest[0], rest[1], None)));
}

#[test]
fn a_leader_that_passed_on_or_released_what_was_granted_binds_nobody() {
    let (mut world, leader) = leased_group(4, 3);
    let rest = others(&world, leader);
    let ballot = world.paxos(leader).ballot();
    world.heartbeat(leader, rest[0]);
    let lower = Ballot { round: ballot.round - 1, ..ballot };
    assert!(is_bound(&ask(&mut world, rest[0], rest[1], Some(lower))));
    world.isolate(leader);
    world.with(leader, |paxos, now| paxos.campaign(now));
    assert!(is_promise(&ask(&mut world, rest[0], rest[1], Some(ballot))));

    let (mut world, leader) = leased_group(5, 3);
    let rest = others(&world, leader);
    world.heartbeat(leader, rest[0]);
    let forged = Message::Release(paxos::message::Release { ballot: world.paxos(leader).ballot() });
    world.with(rest[0], |paxos, now| paxos.handle(now, rest[1], forged.clone()));
    assert!(is_bound(&ask(&mut world, rest[0], rest[1], None)), "another has no say in it");
    // It campaigns anew, and leaves its old leadership for that.
    world.with(leader, |paxos, now| paxos.campaign(now));
    world.with(rest[0], |paxos, now| paxos.handle(now, leader, forged));
    assert!(is_promise(&ask(&mut world, rest[0], rest[1], None)));
}

#[test]
fn a_restarted_voter_keeps_what_it_forgot_that_it_granted() {
    let (mut world, leader) = leased_group(6, 3);
    let rest = others(&world, leader);
    world.heartbeat(leader, rest[0]);
    world.isolate(leader);
    world.crash(rest[0]);
    world.restart(rest[0]);
    world.with(rest[0], |paxos, now| paxos.tick(now));
    assert!(has_lease(&world, leader));
    assert!(is_bound(&ask(&mut world, rest[0], rest[1], None)));
    assert!(is_promise(&ask(&mut world, rest[0], leader, None)), "but to the one it granted it");
    world.advance(GRANT_SPAN.0 + 1);
    assert!(is_promise(&ask(&mut world, rest[0], rest[1], None)));
}

#[test]
fn a_voter_grants_nothing_on_a_promise_that_a_crash_would_take_back() {
    let (mut world, old) = leased_group(7, 3);
    let rest = others(&world, old);
    world.isolate(old);
    world.run(600);
    let new = world.leader().expect("another leads");
    let follower = *rest.iter().find(|id| **id != new).unwrap();
    // The old leader hears of the new one, and does not have it on its disk.
    world.heal();
    world.with(old, |paxos, now| paxos.tick(now));
    let accepts: Vec<_> =
        world.net.iter().filter(|(from, to, _)| (*from, *to) == (new, old)).cloned().collect();
    assert!(!accepts.is_empty() && follower != old);
    accepts.iter().for_each(|(from, to, bytes)| world.deliver(*from, *to, bytes));
    let row = world.paxos(new).heartbeat_row();
    world.with(old, |paxos, now| paxos.heard(now, new, row));
    assert_eq!(world.paxos(old).leader(), Some(new));
    assert_eq!(world.with(old, |paxos, now| paxos.support(now, new)).unwrap(), None);
    world.sync_all(old);
    assert!(world.with(old, |paxos, now| paxos.support(now, new)).unwrap().is_some());
}

#[test]
fn a_grant_ends_when_the_leaders_process_is_known_to_be_gone() {
    let (mut world, leader) = leased_group(8, 3);
    let rest = others(&world, leader);
    world.heartbeat(leader, rest[0]);
    world.crash(leader);
    assert!(is_bound(&ask(&mut world, rest[0], rest[1], None)));
    world.with(rest[0], |paxos, now| paxos.restarted(now, rest[1]));
    assert!(is_bound(&ask(&mut world, rest[0], rest[1], None)), "not that of another");
    world.with(rest[0], |paxos, now| paxos.restarted(now, leader));
    assert!(is_promise(&ask(&mut world, rest[0], rest[1], None)));
}

#[test]
fn a_follower_that_the_leader_does_not_hear_grants_it_nothing() {
    let (mut world, leader) = leased_group(9, 3);
    let follower = others(&world, leader)[0];
    world.cut.insert((follower, leader));
    world.connect();
    assert_eq!(world.with(follower, |paxos, now| paxos.support(now, leader)).unwrap(), None);
}

#[test]
fn a_leadership_is_passed_on_within_a_few_round_trips_and_nothing_is_lost() {
    for seed in 0..20 {
        let (mut world, old) = leased_group(seed, 3);
        let target = others(&world, old)[(seed % 2) as usize];
        let slot = world.propose(old, 10).unwrap();
        assert!(world.with(old, |paxos, now| paxos.transfer(now, target)).unwrap());
        let command = world.command(1);
        let refused = world.with(old, |paxos, now| paxos.propose(now, command)).unwrap();
        assert_eq!(refused, Err(Refusal::Busy));
        world.run(20);
        assert_eq!(world.leader(), Some(target), "seed {seed}");
        assert!(world.truth.contains_key(&slot), "seed {seed}");
        assert!(world.propose(target, 10).is_some());
        world.run(1_000);
        assert_eq!(world.leader(), Some(target), "seed {seed}: and stays there");
        assert!(has_lease(&world, target));
    }
}

#[test]
fn a_leadership_that_cannot_be_passed_on_stays_where_it_is() {
    let (mut world, leader) = leased_group(10, 3);
    let target = others(&world, leader)[0];
    world.cut.insert((target, leader));
    world.propose(leader, 10).unwrap();
    assert!(world.with(leader, |paxos, now| paxos.transfer(now, target)).unwrap());
    world.run(900);
    assert!(world.propose(leader, 10).is_none());
    world.run(150);
    assert_eq!(world.leader(), Some(leader));
    assert!(world.propose(leader, 10).is_some());
}

#[test]
fn f16_a_leader_whose_disk_stands_still_makes_way_and_leaves_it_to_the_others() {
    for seed in 0..20 {
        let (mut world, leader) = leased_group(seed, 3);
        world.with(leader, |paxos, now| paxos.set_unwell(now, true));
        assert!(!world.paxos(leader).is_leading());
        world.run(100);
        let new = world.leader().expect("another leads");
        assert_ne!(new, leader, "seed {seed}");
        world.crash(new);
        world.run(400);
        let last = world.leader().expect("the third leads");
        assert!(last != new && last != leader, "seed {seed}");
        // Where nobody does better, it is of use again.
        world.crash(last);
        world.restart(new);
        world.with(new, |paxos, now| paxos.set_unwell(now, true));
        world.run(600);
        assert!(world.leader().is_some(), "seed {seed}");
    }
}

#[test]
fn where_no_other_could_lead_a_leader_with_a_bad_disk_goes_on() {
    let (mut world, leader) = leased_group(11, 3);
    for other in others(&world, leader) {
        world.with(other, |paxos, now| paxos.set_unwell(now, true));
    }
    world.run(30);
    world.with(leader, |paxos, now| paxos.set_unwell(now, true));
    world.run(500);
    assert_eq!(world.leader(), Some(leader));
    assert_eq!(world.paxos(leader).stats().made_way, 0);
}

#[test]
fn a_leader_whose_proposals_are_not_chosen_makes_way() {
    let (mut world, leader) = leased_group(12, 3);
    // Heartbeats pass, and nothing else does.
    world.propose(leader, 10).unwrap();
    for _ in 0..1_100 {
        world.net.clear();
        world.run(1);
    }
    assert!(!world.paxos(leader).is_leading());
    assert_eq!(world.paxos(leader).stats().made_way, 1);
}

#[test]
fn who_stops_campaigns_no_more() {
    let (mut world, leader) = leased_group(13, 3);
    let rest = others(&world, leader);
    for id in rest {
        world.with(id, |paxos, _| paxos.abstain());
    }
    world.crash(leader);
    world.run(1_000);
    assert_eq!(world.leader(), None);
}
