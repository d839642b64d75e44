//! Leaders that make way where that helps nobody, and grants of a start that nobody remembers
//! (docs/paxos.md 11.6, 11.7).
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

mod world;

use base::{Micros, ReplicaId, Slot};
use paxos::message::Prepare;
use paxos::{Ballot, Message};
use world::{USUAL, World};

fn leased_group(seed: u64, count: u64) -> (World, ReplicaId) {
    let mut world = World::new(seed, count, USUAL);
    world.run(250);
    let leader = world.leader().expect("a fresh group elects a leader");
    (world, leader)
}

fn others(world: &World, replica: ReplicaId) -> Vec<ReplicaId> {
    world.ids().into_iter().filter(|other| *other != replica).collect()
}

/// Every disk needs 600 ms for a sync. Each replica says that its disk does not keep up when its log
/// has waited 500 ms, as `Node::watch_disk` does.
#[test]
fn where_all_disks_are_slow_something_is_chosen_at_last() {
    let (mut world, first) = leased_group(21, 3);
    let (sync, stall) = (600, 500);
    let ids = world.ids();
    let start = world.paxos(first).chosen_upto();
    // Since when the present sync runs and through what; since when the node sees the log wait.
    let mut syncing = vec![None::<(u64, base::Lsn)>; ids.len()];
    let mut waiting = vec![None::<(base::Lsn, u64)>; ids.len()];
    let (mut made_way, mut proposed) = (0, 0);
    for ms in 0..60_000_u64 {
        world.advance(1_000);
        for (from, to, bytes) in std::mem::take(&mut world.net) {
            world.deliver(from, to, &bytes);
        }
        // A client that has one write open at a time, and tries again after a second.
        if ms % 1_000 == 0
            && let Some(leader) = world.leader()
        {
            proposed += u64::from(world.propose(leader, 10).is_some());
        }
        for (i, id) in ids.iter().copied().enumerate() {
            if let Some((since, upto)) = syncing[i]
                && ms - since >= sync
            {
                syncing[i] = None;
                world.sync(id, upto);
            }
            let disk = &world.replicas[&id].disk;
            let (synced, last) = (disk.synced, disk.last);
            if syncing[i].is_none() && last > synced {
                syncing[i] = Some((ms, last));
            }
            if (ms + i as u64).is_multiple_of(5) {
                waiting[i] = match waiting[i] {
                    Some((at, since)) if last > synced && at == synced => Some((at, since)),
                    _ => (last > synced).then_some((synced, ms)),
                };
                let stalled = waiting[i].is_some_and(|(_, since)| ms - since >= stall);
                world.with(id, |paxos, now| paxos.set_unwell(now, stalled));
                world.with(id, |paxos, now| paxos.tick(now));
            }
            if (ms + 7 * i as u64).is_multiple_of(25) {
                for other in world.ids() {
                    world.heartbeat(id, other);
                }
            }
        }
        made_way = ids.iter().map(|id| world.paxos(*id).stats().made_way).sum();
    }
    let end = ids.iter().map(|id| world.paxos(*id).chosen_upto()).max().unwrap();
    println!("{} chosen, made way {made_way}, writes {proposed}", end.0 - start.0);
    assert!(
        end.0 >= start.0 + 20,
        "in 60 s with syncs of {sync} ms {} slots were chosen, {proposed} writes were taken, and \
         leaders made way {made_way} times",
        end.0 - start.0
    );
}

/// What `Node::meet` does where a late hello of the leader node's earlier start is the first that a
/// restarted voter hears: the present start seems to be news.
#[test]
fn what_an_earlier_start_granted_is_kept_whatever_is_heard_of_the_leaders_start() {
    let (mut world, leader) = leased_group(23, 3);
    let rest = others(&world, leader);
    let (voter, candidate) = (rest[0], rest[1]);
    world.cut.insert((candidate, leader));
    world.cut.insert((leader, candidate));
    world.run(300);
    world.heartbeat(leader, voter);
    world.isolate(leader);
    world.crash(voter);
    world.restart(voter);
    world.with(voter, |paxos, now| paxos.restarted(now, leader));
    let until = world.paxos(leader).lease().unwrap().until;
    assert!(until > world.now.mono + Micros::from_millis(100), "the lease has long to go");
    let ballot = world.paxos(voter).ballot();
    let ballot = Ballot { round: ballot.round + 1, replica: candidate, ..ballot };
    let chosen_upto = Slot::ZERO;
    let prepare = Prepare { ballot, probe: false, chosen_upto, runs: Vec::new(), released: None };
    let message = Message::Prepare(prepare);
    world.with(voter, |paxos, now| paxos.handle(now, candidate, message));
    assert!(world.paxos(voter).ballot() < ballot, "promised while a lease rests on it");
}

/// A leader with a bad clock, beside a voter that has to catch up first; the third is down.
#[test]
fn a_leader_makes_way_only_for_who_would_campaign() {
    let (mut world, leader) = leased_group(24, 3);
    let rest = others(&world, leader);
    let (late, third) = (rest[0], rest[1]);
    world.isolate(late);
    for _ in 0..3 {
        for _ in 0..2_000 {
            world.propose(leader, 10).unwrap();
        }
        world.run(40);
    }
    world.crash(third);
    world.heal();
    // The voter takes no part of what is chosen: its log is full, or the way is slow.
    for ms in 0..3_000_u64 {
        world.net.retain(|(_, _, bytes)| {
            let message: Message = base::codec::decode(bytes).unwrap();
            match message {
                Message::CatchUp(_) => false,
                Message::Accept(accept) => accept.values.is_empty(),
                _ => true,
            }
        });
        world.run(1);
        if ms == 100 {
            assert_eq!(world.leader(), Some(leader));
            world.with(leader, |paxos, now| paxos.set_unwell(now, true));
        }
        if ms % 5 == 0 {
            for id in [leader, late] {
                world.with(id, |paxos, now| paxos.tick(now));
            }
            for (a, b) in [(leader, late), (late, leader)] {
                world.heartbeat(a, b);
            }
        }
    }
    assert_eq!(world.leader(), Some(leader), "nobody led for 2.9 s");
}
