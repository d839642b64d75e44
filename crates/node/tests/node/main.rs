//! Whole nodes, driven by hand.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, missing_docs)]

mod hostile;
mod reads;
mod world;

use base::{GroupId, Micros, NodeId, limits};
use bytes::Bytes;
use replica_group::turn::{Input, Token};
use router::{
    Answer, Body, ClusterOp, ErrorReply, Expected, KvOp, MasterOp, NewGroup, Routes, Session,
};
use storage::{Engine, ScanLimit};
use world::{SEGMENT, World, get, put, request};

#[test]
fn f14_a_lost_replica_does_not_fill_the_others_logs_and_gets_a_copy_when_it_is_back() {
    let mut world = World::new(3);
    world.wal_bytes_max = 8 * SEGMENT;
    world.found();
    world.cut.insert(2);
    world.until(5, |world| world.leader(1).is_some_and(|leader| leader != 2));
    // Three times what a log takes at all.
    for i in 0..200 {
        world.put(0, &format!("key{i}"), 8 << 10).unwrap();
        world.run(Micros::from_millis(20));
    }
    assert_eq!(world.hosts[2].node().copy_stats().installed, 0);
    world.cut.clear();
    world.run(Micros::from_secs(10));
    assert!(world.hosts[2].node().copy_stats().installed > 0);
    world.cut.insert(0);
    world.until(10, |world| world.leader(1).is_some_and(|leader| leader != 0));
    world.put(2, "more", 10).unwrap();
    assert!(world.call(2, get("key199")).body.is_ok());
}

#[test]
fn a_master_that_registered_before_it_was_asked_gets_its_replica_all_the_same() {
    let mut world = World::new(3);
    (0..3).for_each(|i| world.start(i));
    let mut init = world.init();
    init.header.timeout = Micros::from_secs(2);
    let token = world.ask(0, init.clone());
    world.until(2, |world| world.hosts[1].node().group_ids().contains(&GroupId(0)));
    world.cut.insert(2);
    world.until(4, |world| world.leader(0).is_some());
    world.run(Micros::from_secs(3));
    let reply = world.reply(0, token).unwrap();
    assert!(matches!(reply.body, Err(ErrorReply::Unavailable(_))), "{reply:?}");
    world.cut.clear();
    world.until(5, |world| world.hosts[2].node().status().cluster.is_some());
    assert!(world.hosts[2].node().group_ids().is_empty());
    world.call(0, init).body.unwrap();
    world.until(5, |world| world.hosts[2].node().group_ids() == [GroupId(0)]);
    world.cut.insert(0);
    world.until(5, |world| world.leader(0).is_some_and(|leader| leader != 0));
}

#[test]
fn f14_an_answer_to_an_earlier_start_registers_no_later_one() {
    let mut world = World::new(4);
    (0..3).for_each(|i| world.start(i));
    let masters = world.hosts[..3].iter().map(|host| host.address.clone()).collect();
    world.call(0, request(Body::Cluster(ClusterOp::Init { masters, shards: 4 }))).body.unwrap();
    world.start(3);
    let is_one_of_them = |world: &World| world.hosts[3].node().status().cluster.is_some();
    let mut heard = Vec::new();
    while !is_one_of_them(&world) {
        assert!(world.now < Micros::from_secs(110), "it registers");
        heard.extend(world.coming(3));
        world.step();
    }
    // What it knew is lost, and comes to its next start late.
    world.lose(3);
    world.cut.insert(3);
    world.start(3);
    heard.into_iter().for_each(|frame| world.give(3, Input::Frame(frame)));
    world.run(Micros::from_secs(1));
    assert!(!is_one_of_them(&world), "that was answered to another start");
    world.cut.clear();
    world.until(10, is_one_of_them);
}

/// A node whose disk lost its count of starts asks more than once before it counts on. What a late
/// copy of such a question is answered is not for it any more.
#[test]
fn f14_an_answer_to_an_earlier_count_moves_no_later_one() {
    let mut world = World::new(4);
    (0..3).for_each(|i| world.start(i));
    let masters = world.hosts[..3].iter().map(|host| host.address.clone()).collect();
    world.call(0, request(Body::Cluster(ClusterOp::Init { masters, shards: 4 }))).body.unwrap();
    let is_one_of_them = |world: &World| world.hosts[3].node().status().routes_version > 0;
    // Its second start registers, too.
    for _ in 0..2 {
        world.lose(3);
        world.start(3);
        world.until(10, is_one_of_them);
    }
    world.lose(3);
    world.hosts[3].starts = 0;
    world.start(3);
    let mut asked = Vec::new();
    while world.hosts[3].node().starts() == 1 {
        assert!(world.now < Micros::from_secs(110), "it counts on");
        asked.extend((0..3).map(|to| (to, world.coming(to))));
        world.step();
    }
    world.until(10, is_one_of_them);
    world.run(Micros::from_secs(1));
    let starts = world.hosts[3].node().starts();
    for (to, frames) in asked {
        frames.into_iter().for_each(|frame| world.give(to, Input::Frame(frame)));
    }
    world.run(Micros::from_secs(1));
    assert_eq!(world.hosts[3].node().starts(), starts);
}

#[test]
fn a_command_that_changes_nothing_does_not_stay_in_the_log() {
    let mut world = World::cluster(3);
    let mut write = put("key", 10);
    let session = |number, first_incomplete| Session {
        client: base::ClientId(7),
        number: base::RequestNumber(number),
        first_incomplete: base::RequestNumber(first_incomplete),
        stamp: base::WallMillis(1),
    };
    write.header.session = Some(session(5, 5));
    world.call(0, write.clone()).body.unwrap();
    let freed = |world: &World| {
        let groups = world.hosts.iter().flat_map(|host| host.node().status().groups);
        groups.filter(|g| g.group.0 > 0).all(|group| group.truncated_upto == group.chosen_upto)
    };
    world.until(20, freed);
    // Too late for the session, and therefore without any trace in the store.
    write.header.session = Some(session(1, 1));
    assert_eq!(world.call(0, write).body, Err(ErrorReply::Stale));
    assert!(!freed(&world));
    world.until(20, freed);
}

#[test]
fn a_stop_ends_although_the_others_go_on_writing() {
    let mut world = World::cluster(3);
    let leader = world.leader(1).unwrap();
    let follower = (leader + 1) % 3;
    for i in 0..400 {
        world.ask(leader, put(&format!("key{i}"), 100));
        if i == 50 {
            world.give(follower, Input::Stop);
        }
        world.step();
    }
    assert!(world.hosts[follower].stopped);
    // All of it is on the disk, and nothing was promised that is not.
    world.crash(follower);
    world.start(follower);
    world.run(Micros::from_secs(2));
    world.put(follower, "after", 10).unwrap();
}

#[test]
fn a_stop_answers_what_is_open() {
    let mut world = World::cluster(3);
    let leader = world.leader(1).unwrap();
    for i in 0..3 {
        if i != leader {
            world.cut.insert(i);
        }
    }
    let mut long = put("key", 10);
    long.header.timeout = Micros::from_secs(100_000);
    let write = world.ask(leader, long.clone());
    // Nothing is read under a lease any more.
    world.run(Micros::from_millis(250));
    let mut read = get("key");
    read.header.timeout = long.header.timeout;
    let read = world.ask(leader, read);
    let mut init = world.init();
    init.header.timeout = long.header.timeout;
    let init = world.ask(leader, init);
    world.run(Micros::from_millis(20));
    world.give(leader, Input::Stop);
    let late = world.ask(leader, long);
    world.run(Micros::from_secs(1));
    let error = |world: &mut World, token| world.reply(leader, token).unwrap().body.unwrap_err();
    assert!(matches!(error(&mut world, write), ErrorReply::OutcomeUnknown(_)));
    assert!(matches!(error(&mut world, read), ErrorReply::Unavailable(_)));
    assert!(matches!(error(&mut world, init), ErrorReply::Unavailable(_)));
    assert!(matches!(error(&mut world, late), ErrorReply::Unavailable(_)));
    assert!(world.hosts[leader].stopped);
}

#[test]
fn a_node_full_of_requests_without_a_leader_asks_for_it_in_measure() {
    let mut world = World::new(4);
    (0..4).for_each(|i| world.start(i));
    let init = world.init();
    world.call(0, init).body.unwrap();
    world.until(5, |world| world.hosts.iter().all(|h| h.node().status().routes_version > 0));
    let groups = vec![NewGroup { group: GroupId(1), nodes: (1..=3).map(NodeId).collect() }];
    world.call(0, request(Body::Master(MasterOp::Join { groups }))).body.unwrap();
    world.run(Micros::from_secs(2));
    world.put(3, "key", 10).unwrap();
    // The group's nodes answer, and cannot elect anybody.
    for i in 0..3 {
        world.crash(i);
        world.start(i);
        world.hosts[i].log_hangs = true;
    }
    let mut read = get("key");
    read.header.timeout = Micros::from_secs(1_000);
    let tokens: Vec<u64> = (0..10_000).map(|_| world.ask(3, read.clone())).collect();
    world.run(Micros::from_secs(2));
    let before = world.sent[3];
    world.run(Micros::from_secs(1));
    // An attempt is more than 50 bytes, and each of them every 20 ms would be 25 MB.
    let sent = world.sent[3] - before;
    assert!(sent < 10_000_000, "{sent} bytes in a second");
    (0..3).for_each(|i| world.hosts[i].log_hangs = false);
    world.run(Micros::from_secs(10));
    for token in tokens {
        world.reply(3, token).unwrap().body.unwrap();
    }
}

#[test]
fn a_store_gets_nothing_of_a_replica_that_the_log_may_forget() {
    let mut world = World::new(3);
    (0..3).for_each(|i| world.start(i));
    let init = world.init();
    world.call(0, init).body.unwrap();
    world.until(5, |world| world.hosts.iter().all(|h| h.node().status().routes_version > 0));
    world.run(Micros::from_secs(3));
    world.hosts[2].log_hangs = true;
    let before = world.hosts[2].engine.writes();
    let groups = vec![NewGroup { group: GroupId(1), nodes: (1..=3).map(NodeId).collect() }];
    world.call(0, request(Body::Master(MasterOp::Join { groups }))).body.unwrap();
    world.run(Micros::from_secs(2));
    world.put(0, "key", 10).unwrap();
    world.run(Micros::from_secs(10));
    assert!(world.hosts[2].node().group_ids().contains(&GroupId(1)));
    assert_eq!(world.hosts[2].engine.writes(), before);
    world.crash(2);
    world.hosts[2].log_hangs = false;
    world.start(2);
    world.run(Micros::from_secs(5));
    world.cut.insert(0);
    world.run(Micros::from_secs(2));
    let body = world.call(2, get("key")).body;
    assert!(body.is_ok(), "{body:?} {:#?} {:#?}", world.events, world.hosts[2].node().status());
}

#[test]
fn a_node_that_was_away_when_its_group_was_made_gets_its_replica() {
    let mut world = World::new(3);
    (0..3).for_each(|i| world.start(i));
    let init = world.init();
    world.call(0, init).body.unwrap();
    world.until(5, |world| world.hosts.iter().all(|h| h.node().status().routes_version > 0));
    world.cut.insert(2);
    world.run(Micros::from_secs(2));
    let groups = vec![NewGroup { group: GroupId(1), nodes: (1..=3).map(NodeId).collect() }];
    world.call(0, request(Body::Master(MasterOp::Join { groups }))).body.unwrap();
    world.run(Micros::from_secs(5));
    world.put(0, "key", 10).unwrap();
    world.cut.clear();
    world.until(5, |world| world.hosts[2].node().group_ids().contains(&GroupId(1)));
    // It hears who leads, although nobody's state changes any more.
    world.put(2, "key", 10).unwrap();
    world.run(Micros::from_secs(2));
    let campaigns = |world: &World| {
        let replica = world.hosts[2].node().paxos_of(GroupId(1));
        replica.map(|paxos| paxos.stats().campaigns)
    };
    let before = campaigns(&world);
    world.run(Micros::from_secs(10));
    assert_eq!(campaigns(&world), before);
}

#[test]
fn masters_that_all_moved_find_each_other() {
    let mut world = World::cluster(3);
    for i in 0..3 {
        world.crash(i);
        world.hosts[i].address = base::Address::new(&format!("elsewhere{i}"));
    }
    (0..3).for_each(|i| world.start(i));
    world.run(Micros::from_secs(3));
    world.put(0, "key", 10).unwrap();
}

#[test]
fn a_wall_clock_far_off_harms_nobody_else() {
    let mut world = World::cluster(3);
    for ahead in [1 << 63, 1 << 62, u64::MAX - (1 << 40)] {
        world.hosts[2].wall_ahead = ahead;
        world.run(Micros::from_secs(1));
    }
    world.put(0, "key", 10).unwrap();
}

#[test]
fn the_largest_requests_fit_into_frames_together() {
    let mut world = World::new(3);
    world.wal_bytes_max = 256 << 20;
    world.found();
    let leader = world.leader(1).unwrap();
    let follower = (leader + 1) % 3;
    let largest = |byte| Bytes::from(vec![byte; limits::VALUE_BYTES_MAX]);
    let key = Bytes::from(vec![b'k'; limits::KEY_BYTES_MAX]);
    let expected = Expected::Value(largest(b'a'));
    let swap = KvOp::CompareAndSwap { key: key.clone(), expected, value: largest(b'b') };
    // The first leaves its frame open for one more, just so.
    let first = world.ask(follower, put("key", (1 << 20) - 300));
    let second = world.ask(follower, request(Body::Kv(swap)));
    world.run(Micros::from_secs(5));
    assert!(world.reply(follower, first).unwrap().body.is_ok());
    assert!(world.reply(follower, second).unwrap().body.is_ok());
    let store = KvOp::Put { key, value: largest(b'c') };
    world.call(follower, request(Body::Kv(store))).body.unwrap();
}

#[test]
fn an_endless_join_is_refused_at_every_node() {
    let mut world = World::cluster(3);
    let nodes = vec![NodeId(u64::MAX); 3 << 20];
    let groups = vec![NewGroup { group: GroupId(9), nodes }];
    for i in 0..3 {
        let join = request(Body::Master(MasterOp::Join { groups: groups.clone() }));
        let body = world.call(i, join).body;
        assert!(matches!(body, Err(ErrorReply::Invalid(_))), "{body:?}");
    }
}

#[test]
fn a_master_named_twice_is_refused_at_once() {
    let mut world = World::new(1);
    world.start(0);
    let masters = vec![world.hosts[0].address.clone(); 2];
    let init = request(Body::Cluster(ClusterOp::Init { masters, shards: 4 }));
    let body = world.call(0, init).body;
    assert!(matches!(body, Err(ErrorReply::Invalid(_))), "{body:?}");
}

#[test]
fn routes_that_cannot_be_are_not_taken() {
    let mut world = World::cluster(3);
    let status = world.hosts[0].node().status();
    let cluster = status.cluster.unwrap();
    let routes = Routes { cluster, version: status.routes_version + 1_000, ..Routes::default() };
    // The header of a frame from node 2, and a message with these routes.
    let mut frame = vec![0xDC, 1];
    frame.extend_from_slice(&((cluster.0 >> 64) as u64).to_be_bytes());
    frame.extend_from_slice(&2u64.to_be_bytes());
    frame.extend_from_slice(&1u64.to_be_bytes());
    frame.extend_from_slice(&1u128.to_be_bytes());
    let mut message = vec![0x82, 14, 0x81];
    base::codec::encode_into(&routes, &mut message);
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    world.give(0, Input::Frame(Bytes::from(frame)));
    world.put(0, "key", 10).unwrap();
    assert!(!world.events.iter().any(|event| event.contains("cannot be read")));
}

#[test]
fn a_record_that_is_let_go_while_it_is_read_ends_nobody() {
    let (mut world, slow) = reading();
    for i in (0..3).filter(|i| *i != slow) {
        world.hosts[i].reads_hang = false;
    }
    world.cut.insert(slow);
    world.run(Micros::from_secs(5));
    world.cut.clear();
    for i in 0..200 {
        let _ = world.put(slow, &format!("later{i}"), 4 << 10);
    }
    world.run(Micros::from_secs(10));
    let held = world.hosts[slow].reads.len();
    world.hosts[slow].reads_hang = false;
    world.run(Micros::from_secs(5));
    assert!(held > 0);
    world.put(slow, "last", 10).unwrap();
}

#[test]
fn f11_a_leader_whose_store_is_found_damaged_answers_no_read_of_that_turn() {
    let mut world = World::cluster(3);
    world.put(0, "bad", 10).unwrap();
    world.put(0, "good", 10).unwrap();
    // Long enough for everything to be flushed, and for a lease.
    world.run(Micros::from_secs(20));
    let leader = world.leader(1).unwrap();
    let engine = world.hosts[leader].engine.clone();
    let all = engine.scan(&[], &[0xff; 64], ScanLimit { records: 1_000, bytes: 1 << 20 }).unwrap();
    let place = all.iter().position(|(key, _)| key.ends_with(b"bad")).unwrap();
    assert!(engine.damage(place).is_some_and(|key| key.ends_with(b"bad")));

    let (bad, good) = (world.ask(leader, get("bad")), world.ask(leader, get("good")));
    let answered = |world: &mut World, token| {
        for _ in 0..2_000 {
            world.step();
            if let Some(reply) = world.reply(leader, token) {
                return reply;
            }
        }
        panic!("no reply")
    };
    for token in [bad, good] {
        let reply = answered(&mut world, token);
        assert!(matches!(reply.body, Ok(Answer::Value(Some(_)))), "{reply:?}");
        let by = reply.header.leader.unwrap();
        assert_ne!(by, NodeId(leader as u64 + 1), "its state is not to be trusted");
    }
    assert!(
        world.events.iter().any(|event| event.contains("the store of the replica here is lost"))
    );
}

#[test]
fn f03_a_frame_to_an_earlier_start_that_comes_late_makes_no_later_one_old() {
    let mut world = World::cluster(3);
    // Group 1 is led from node 2 when things are quiet.
    world.until(60, |world| world.leader(1) == Some(1));
    let late = world.passing(2, 0);
    assert!(!late.is_empty());
    world.crash(0);
    world.run(Micros::from_secs(1));
    world.start(0);
    let follows = |world: &World, leader: u64| {
        let status = world.hosts[0].node().status();
        status.groups.iter().any(|g| g.group == GroupId(1) && g.leader == Some(NodeId(leader)))
    };
    world.until(5, |world| follows(world, 2));
    for frame in late {
        world.give(0, Input::Frame(frame));
    }
    // Node 2 passes on what it leads, to node 3, which has the higher number.
    world.give(1, Input::Stop);
    world.until(5, |world| world.leader(1) == Some(2));
    // All that node 1 hears of its new leader, with nothing to be written, are heartbeats.
    world.run(Micros::from_secs(1));
    for _ in 0..200 {
        world.step();
        assert!(follows(&world, 3), "node 1 hears who leads");
    }
}

#[test]
fn a_read_that_comes_back_too_late_while_the_node_stops_is_answered() {
    let mut world = World::cluster(3);
    world.run(Micros::from_secs(2));
    let leader = world.leader(1).unwrap();
    let token = world.ask(leader, get("first"));
    world.until(1, |world| world.is_answered(leader, token));
    let reply = world.reply(leader, token).unwrap();
    assert!(matches!(reply.body, Ok(Answer::Value(Some(_)))), "{reply:?}");
    // The node was asked to stop meanwhile, and had to wait in vain for others.
    world.give(leader, Input::Stop);
    world.now = world.now + Micros::from_secs(3);
    world.give(leader, Input::Tick);
    world.give(leader, Input::Late(Token(token)));
    world.step();
    let reply = world.reply(leader, token).expect("an answer, at once");
    assert!(matches!(reply.body, Err(ErrorReply::Unavailable(_))), "{reply:?}");
}

/// A world in which a node reads old records of its log for another one, and all such reads hang.
fn reading() -> (World, usize) {
    let mut world = World::new(3);
    world.tail_bytes_max = 1 << 10;
    world.found();
    world.cut.insert(2);
    world.run(Micros::from_secs(1));
    for i in 0..40 {
        world.put(0, &format!("key{i}"), 4 << 10).unwrap();
    }
    world.hosts.iter_mut().for_each(|host| host.reads_hang = true);
    world.cut.clear();
    let reading = |world: &World| world.hosts.iter().position(|host| !host.reads.is_empty());
    world.until(10, |world| reading(world).is_some());
    let at = reading(&world).unwrap();
    (world, at)
}

#[test]
fn f11_a_log_that_the_disk_fails_to_read_for_a_while_is_read_again_or_by_another() {
    let (mut world, at) = reading();
    world.hosts[at].reads_fail = true;
    world.hosts[at].reads_hang = false;
    // The world itself sees to it that no node ends.
    world.run(Micros::from_secs(2));
    assert!(world.events.iter().any(|event| event.contains("input/output error")));
    assert_eq!(world.hosts[at].node().status().damage_found, 0);
    world.hosts[at].reads_fail = false;
    world.run(Micros::from_secs(5));
    for i in 0..40 {
        assert!(world.call(2, get(&format!("key{i}"))).body.is_ok());
    }
    assert_eq!(world.hosts[at].node().paxos_of(GroupId(1)).unwrap().faulty_slots(), 0);
}

#[test]
fn f11_a_log_that_the_disk_fails_to_read_for_long_is_mended_by_the_others() {
    let (mut world, at) = reading();
    world.hosts[at].reads_fail = true;
    world.hosts[at].reads_hang = false;
    world.until(30, |world| world.hosts[at].node().status().damage_found > 0);
    world.hosts.iter_mut().for_each(|host| host.reads_hang = false);
    world.run(Micros::from_secs(20));
    for host in &world.hosts {
        let paxos = host.node().paxos_of(GroupId(1)).unwrap();
        assert_eq!(paxos.faulty_slots(), 0, "all is mended");
    }
    for i in 0..40 {
        assert!(world.call(2, get(&format!("key{i}"))).body.is_ok());
    }
}
