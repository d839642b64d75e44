//! Reads at replicas that do not lead (`docs/paxos.md` 11.7).

use base::limits::LEASE_SPAN;
use base::{GroupId, Micros, NodeId};
use router::{Answer, Body, Consistency, ErrorReply, MasterOp, Reply, Request, Seen};

use crate::world::{World, get, put, request};

fn value(reply: &Reply) -> usize {
    match &reply.body {
        Ok(Answer::Value(Some(value))) => value.len(),
        other => panic!("{other:?}"),
    }
}

fn seen(reply: &Reply) -> Seen {
    reply.header.seen().expect("an answer says what it shows").1
}

fn get_as(key: &str, consistency: Consistency) -> Request {
    let mut request = get(key);
    request.header.consistency = consistency;
    request.header.timeout = Micros::from_secs(60);
    request
}

/// A settled cluster of three, its leader and a follower.
fn settled() -> (World, usize, usize) {
    let mut world = World::cluster(3);
    world.until(60, |world| world.leader(1) == Some(1));
    world.run(Micros::from_secs(2));
    (world, 1, 0)
}

/// The answer, if it comes within so many milliseconds.
fn within(world: &mut World, at: usize, token: u64, millis: u64) -> Option<Reply> {
    let end = world.now + Micros::from_millis(millis);
    while world.now < end {
        world.step();
        if let Some(reply) = world.reply(at, token) {
            return Some(reply);
        }
    }
    None
}

#[test]
fn a_follower_answers_newest_values_from_its_own_state() {
    let (mut world, leader, follower) = settled();
    world.put(leader, "large", 200_000).unwrap();
    world.run(Micros::from_secs(1));
    let sent = world.sent[leader];
    for _ in 0..20 {
        assert_eq!(value(&world.call(follower, get("large"))), 200_000);
    }
    assert!(world.sent[leader] - sent < 200_000, "the leader sends slots, and no values");
    for bytes in 1..40 {
        world.put(leader, "key", bytes).unwrap();
        let reply = world.call(follower, get("key"));
        assert_eq!(value(&reply), bytes);
        assert_eq!(reply.header.leader, Some(NodeId(leader as u64 + 1)));
    }
}

#[test]
fn a_follower_that_was_left_behind_answers_no_newest_value() {
    let (mut world, leader, follower) = settled();
    world.put(leader, "key", 1).unwrap();
    world.cut.insert(follower);
    let mut early = get("key");
    early.header.timeout = Micros::from_secs(60);
    let token = world.ask(follower, early);
    world.put(leader, "key", 2).unwrap();
    assert_eq!(within(&mut world, follower, token, 5_000), None, "nobody says how far the log is");
    world.cut.clear();
    assert_eq!(value(&within(&mut world, follower, token, 5_000).unwrap()), 2);
    // The leader can be asked, and what it names is not here yet.
    for bytes in 3..20 {
        world.cut.insert(follower);
        world.put(leader, "key", bytes).unwrap();
        world.cut.clear();
        assert_eq!(value(&world.call(follower, get("key"))), bytes);
    }
}

#[test]
fn a_sequential_read_goes_on_from_what_its_client_has_seen_and_needs_no_leader() {
    let (mut world, leader, follower) = settled();
    world.put(leader, "key", 1).unwrap();
    world.run(Micros::from_millis(500));
    world.cut.insert(follower);
    world.run(Micros::from_secs(1));
    let written = world.call(leader, put("key", 2));
    let newest = seen(&written);

    // Whoever has seen nothing may see the old value, alone as the replica is.
    let token = world.ask(follower, get_as("key", Consistency::Sequential(None)));
    let reply = within(&mut world, follower, token, 50).expect("it asks nobody");
    assert_eq!(value(&reply), 1);
    assert!(seen(&reply) < newest, "{reply:?} after {newest:?}");
    let again = Consistency::Sequential(Some(seen(&reply)));
    let token = world.ask(follower, get_as("key", again));
    assert_eq!(value(&within(&mut world, follower, token, 50).unwrap()), 1);

    // Who wrote the new one must not.
    let own = Consistency::Sequential(Some(newest));
    let token = world.ask(follower, get_as("key", own));
    assert_eq!(within(&mut world, follower, token, 5_000), None);
    world.cut.clear();
    let reply = within(&mut world, follower, token, 5_000).unwrap();
    assert_eq!(value(&reply), 2);
    assert!(seen(&reply) >= newest);

    // What was written is there a moment later.
    for bytes in 3..30 {
        let own = Consistency::Sequential(Some(seen(&world.call(leader, put("key", bytes)))));
        assert_eq!(value(&world.call(follower, get_as("key", own))), bytes);
    }
}

#[test]
fn what_was_seen_of_a_later_epoch_is_not_answered_from_an_earlier_one() {
    let (mut world, leader, follower) = settled();
    let mut later = seen(&world.call(leader, put("key", 1)));
    world.run(Micros::from_secs(1));
    let earlier = Seen { epoch: base::ShardEpoch(0), slot: base::Slot(u64::MAX) };
    let earlier = Consistency::Sequential(Some(earlier));
    assert_eq!(value(&world.call(follower, get_as("key", earlier))), 1);
    later.epoch = base::ShardEpoch(later.epoch.0 + 1);
    later.slot = base::Slot(1);
    world.cut.insert(follower);
    let token = world.ask(follower, get_as("key", Consistency::Sequential(Some(later))));
    assert_eq!(within(&mut world, follower, token, 2_000), None);
}

#[test]
fn a_bounded_read_is_answered_by_whoever_heard_of_the_leader_that_recently() {
    let (mut world, leader, follower) = settled();
    world.put(leader, "key", 1).unwrap();
    let bounded = |millis| get_as("key", Consistency::Bounded(millis));
    assert_eq!(value(&world.call(follower, bounded(1_000))), 1, "it asks the leader");
    world.cut.insert(follower);
    world.put(leader, "key", 2).unwrap();
    let token = world.ask(follower, bounded(1_000));
    let reply = within(&mut world, follower, token, 20).expect("it asked just now");
    assert_eq!(value(&reply), 1);
    let token = world.ask(follower, bounded(10));
    assert_eq!(within(&mut world, follower, token, 500), None, "that is too long ago");
    world.run(Micros::from_secs(1));
    let token = world.ask(follower, bounded(1_000));
    assert_eq!(within(&mut world, follower, token, 3_000), None);
    world.cut.clear();
    assert_eq!(value(&within(&mut world, follower, token, 5_000).unwrap()), 2);
}

#[test]
fn a_bounded_read_that_is_held_up_on_its_way_out_is_made_anew() {
    let (mut world, leader, follower) = settled();
    world.put(leader, "key", 1).unwrap();
    let bounded = get_as("key", Consistency::Bounded(1_000));
    world.call(follower, bounded.clone());
    world.put(leader, "key", 2).unwrap();
    let token = world.ask(follower, bounded);
    world.until(1, |world| world.is_answered(follower, token));
    let limit = world.limit(follower, token).expect("it is true for a while only");
    assert!(limit <= world.now + Micros::from_secs(1));
    world.reply(follower, token);
    world.now = world.now + Micros::from_millis(1_500);
    world.give(follower, replica_group::turn::Input::Late(replica_group::turn::Token(token)));
    assert_eq!(value(&within(&mut world, follower, token, 5_000).unwrap()), 2);
}

#[test]
fn only_reads_of_keys_have_a_choice() {
    let (mut world, leader, _) = settled();
    let mut write = put("key", 1);
    write.header.consistency = Consistency::Bounded(5);
    let mut query = request(Body::Master(MasterOp::Query { number: None }));
    query.header.consistency = Consistency::Sequential(None);
    for refused in [write, query] {
        let reply = world.call(leader, refused);
        assert!(matches!(reply.body, Err(ErrorReply::Invalid(_))), "{reply:?}");
    }
}

#[test]
fn i15_what_is_read_under_a_lease_leaves_before_its_end_or_not_at_all() {
    let (mut world, leader, follower) = settled();
    for _ in 0..40 {
        let token = world.ask(leader, get("first"));
        world.until(1, |world| world.is_answered(leader, token));
        let limit = world.limit(leader, token).expect("a lease ends");
        // A heartbeat and its answer take two steps of 5 ms, and it counts from when it was sent.
        assert!(limit <= world.now + LEASE_SPAN - Micros::from_millis(10), "{limit:?}");
        world.reply(leader, token);
    }

    // Another node is told where the answer comes too late, and how far the log is too: it asks
    // again, and does not wait for what never comes.
    world.late.insert(leader);
    let mut patient = get("first");
    patient.header.timeout = Micros::from_secs(60);
    let token = world.ask(follower, patient);
    assert_eq!(within(&mut world, follower, token, 5_000), None);
    world.late.clear();
    assert_eq!(value(&within(&mut world, follower, token, 100).unwrap()), 10);
}

#[test]
fn i15_a_leader_that_was_replaced_while_it_stood_still_says_nothing_of_the_log() {
    let mut world = World::cluster(5);
    world.until(60, |world| world.leader(1) == Some(1));
    world.put(1, "key", 1).unwrap();
    world.run(Micros::from_secs(1));
    let (old, follower) = (1, 0);
    let mut patient = get("key");
    patient.header.timeout = Micros::from_secs(60);
    let token = world.ask(follower, patient);
    // The question is on its way, and both nodes stand still; the follower misses what follows.
    world.paused.insert(old);
    world.step();
    world.paused.insert(follower);
    world.cut.insert(follower);
    world.until(10, |world| {
        let leads = |i: usize| world.hosts[i].node().paxos_of(GroupId(1)).unwrap().is_leading();
        (2..5).any(leads)
    });
    let new = (2..5).find(|i| {
        let paxos = world.hosts[*i].node().paxos_of(GroupId(1)).unwrap();
        paxos.is_leading()
    });
    world.put(new.unwrap(), "key", 2).unwrap();
    world.paused.clear();
    world.cut.clear();
    let reply = within(&mut world, follower, token, 20_000).unwrap();
    assert_eq!(value(&reply), 2, "{reply:?}");
}
