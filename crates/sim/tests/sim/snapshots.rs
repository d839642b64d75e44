//! Replicas that are behind what the others keep, or whose store is lost, take a copy of another's
//! state (docs/paxos.md 11.11).

use base::{GroupId, Micros};
use paxos::Record;
use paxos::record::Outline;
use sim::scenario::{Scenario, Via};
use sim::world::WorldOptions;

const GROUP: GroupId = GroupId(1);

/// Logs of a few kilobytes, so that whoever is away for a while is behind them.
fn short_logs(options: &mut WorldOptions) {
    options.settings.log_bytes_max = 8 << 10;
    options.settings.snapshot_part_bytes = 1 << 10;
}

fn three(name: &str) -> Scenario {
    Scenario::with_options(name, 3, 16, &[vec![0, 1, 2]], short_logs)
}

/// Writes so many values of a kilobyte to 40 keys.
fn write(s: &mut Scenario, round: u32, count: u32) {
    for i in 0..count {
        let value = format!("{round} {i} {}", "v".repeat(1_000));
        s.put(Via::Any, &format!("key {}", i % 40), &value);
    }
}

fn check(s: &mut Scenario, via: impl Into<Via> + Copy, round: u32, count: u32) {
    for i in count.saturating_sub(40)..count {
        let value = format!("{round} {i} {}", "v".repeat(1_000));
        s.reads(via, &format!("key {}", i % 40), &value);
    }
}

fn slots_kept(s: &Scenario, node: usize) -> u64 {
    let paxos = s.node(node).paxos_of(GROUP).unwrap();
    paxos.last_slot().0 - paxos.first_slot().prev().0
}

/// Lets time pass until a node has come so far with its copy.
fn until(s: &mut Scenario, node: usize, step: &str) {
    for _ in 0..200_000 {
        if s.node(node).copy_stage(GROUP) == Some(step) {
            return;
        }
        s.wait_micros(Micros(50));
    }
    panic!("node {node} does not come to \"{step}\": {:?}", s.node(node).copy_stats());
}

#[test]
fn f21_a_replica_that_was_away_for_long_gets_a_copy_and_logs_stay_short() {
    let mut s = three("away");
    write(&mut s, 0, 40);
    s.kill(2);
    write(&mut s, 1, 400);
    s.wait(2_500);
    for node in 0..2 {
        assert!(slots_kept(&s, node) <= 16, "{} slots on node {node}", slots_kept(&s, node));
        let live = s.node(node).status().wal_live_bytes;
        assert!(live <= 6 * (64 << 10), "{live} bytes of log on node {node}");
    }
    s.restart(2);
    s.wait(2_000);
    s.converges();
    assert!(s.node(2).copy_stats().installed >= 1, "{:?}", s.node(2).copy_stats());
    // It has everything: without it there is no quorum now.
    s.kill(0);
    check(&mut s, 2, 1, 400);
    s.put(2, "after", "it");
    s.restart(0);
    s.converges();
    s.wait(3_000);
    assert!(!s.node(2).has_litter(), "the old state is deleted");
}

#[test]
fn f21_a_group_of_which_one_replica_is_dead_is_not_held_by_an_idle_one() {
    let mut s = Scenario::with_options("idle", 3, 16, &[vec![0, 1, 2], vec![0, 1, 2]], |options| {
        options.settings.wal_bytes_max = 32 * (64 << 10);
    });
    s.wait(500);
    s.kill(2);
    // Groups that do next to nothing keep a record in the oldest segment each.
    write(&mut s, 0, 1_500);
    for node in 0..2 {
        let live = s.node(node).status().wal_live_bytes;
        assert!(live <= 26 * (64 << 10), "{live} bytes of log on node {node}");
        assert!(!s.node(node).status().wal_full);
    }
    s.restart(2);
    s.wait(2_000);
    s.converges();
    check(&mut s, 2, 0, 1_500);
}

#[test]
fn f21_the_receiver_crashes_at_every_step_of_a_copy() {
    let steps = ["received", "written", "flushed", "verified", "held", "switched", "recorded"];
    for (round, step) in steps.into_iter().enumerate() {
        for twice in [false, true] {
            let mut s = three(&format!("receiver {step} {twice}"));
            write(&mut s, 0, 60);
            s.kill(2);
            write(&mut s, 1, 100);
            s.wait(1_500);
            s.restart(2);
            until(&mut s, 2, step);
            if twice {
                s.power_off();
                s.restart_all();
            } else {
                s.kill(2);
                s.restart(2);
            }
            write(&mut s, 2 + round as u32, 50);
            s.converges();
            s.kill(0);
            check(&mut s, 2, 2 + round as u32, 50);
        }
    }
}

#[test]
fn f21_the_source_dies_and_another_goes_on_where_it_was() {
    let mut s = three("source");
    write(&mut s, 0, 200);
    s.kill(2);
    write(&mut s, 1, 100);
    s.wait(1_500);
    s.restart(2);
    while s.node(2).copy_stats().parts < 20 {
        s.wait_micros(Micros(500));
    }
    // Whoever it is, the other one goes on.
    let source = s.node(2).copy_source(GROUP).unwrap();
    let source = (0..3).find(|node| s.node(*node).id() == source).unwrap();
    s.kill(source);
    s.wait(8_000);
    s.restart(source);
    s.converges();
    let stats = s.node(2).copy_stats();
    assert!(stats.installed >= 1 && stats.same >= 15, "{stats:?}");
    s.kill(source);
    check(&mut s, 2, 1, 100);
}

#[test]
fn f21_two_copies_in_a_short_time() {
    let mut s = three("two copies");
    for round in 0..3 {
        s.kill(2);
        write(&mut s, round, 100);
        s.wait(1_200);
        s.restart(2);
        s.wait(1_500);
        s.converges();
    }
    s.kill(1);
    check(&mut s, 2, 2, 100);
}

#[test]
fn i31_the_group_commits_while_a_copy_is_given_and_the_copy_meets_the_stream() {
    let mut s = Scenario::with_options("meeting", 3, 16, &[vec![0, 1, 2]], |options| {
        short_logs(options);
        options.settings.log_bytes_max = 64 << 10;
    });
    write(&mut s, 0, 200);
    s.kill(2);
    write(&mut s, 1, 100);
    s.wait(1_500);
    s.restart(2);
    let mut i = 0;
    while s.node(2).copy_stats().installed == 0 {
        s.put(Via::Any, "meanwhile", &format!("{i}"));
        i += 1;
        assert!(i < 20_000, "{:?}", s.node(2).copy_stats());
    }
    assert!(i > 50, "{i} writes while a copy was given");
    s.converges();
    assert_eq!(s.node(2).copy_stats().installed, 1, "the rest came from the log");
}

#[test]
fn i28_a_copy_that_is_written_wrong_is_taken_anew() {
    let mut s = Scenario::with_options("wrong", 3, 16, &[vec![0, 1, 2]], |options| {
        short_logs(options);
        options.settings.overlay_bytes_max = 4 << 10;
    });
    write(&mut s, 0, 100);
    s.kill(2);
    write(&mut s, 1, 100);
    s.wait(1_500);
    s.restart(2);
    while s.node(2).copy_stats().parts < 30 {
        s.wait_micros(Micros(500));
    }
    // Some of it is in the store already, under the second generation of the group's state.
    let altered = s.store(2).alter(|key, record| {
        let copied = key.starts_with(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]) && record.len() > 1_000;
        copied.then(|| record.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>().into())
    });
    assert!(altered > 0);
    s.wait(4_000);
    let stats = s.node(2).copy_stats();
    assert_eq!((stats.useless, stats.installed), (1, 1), "{stats:?}");
    s.converges();
    s.kill(0);
    check(&mut s, 2, 1, 100);
}

#[test]
fn f21_slots_that_are_damaged_here_and_forgotten_by_the_others_come_with_a_copy() {
    let mut s = Scenario::with_options("damaged slots", 3, 16, &[vec![0, 1, 2]], |options| {
        short_logs(options);
        options.settings.overlay_idle = Micros::from_secs(2);
        options.settings.overlay_age_max = Micros::from_secs(2);
    });
    write(&mut s, 0, 60);
    // Node 2 knows what is chosen and has not flushed it.
    s.kill(2);
    let damaged = s.rot(2, |record| {
        record.group == GROUP
            && matches!(Record::outline(&record.identity), Ok(Outline::Entries { .. }))
    });
    assert!(damaged > 20, "{damaged}");
    write(&mut s, 1, 100);
    s.wait(3_500);
    s.restart(2);
    s.wait(4_000);
    let groups = s.node(2).status().groups;
    let trouble = groups.into_iter().find(|g| g.group == GROUP).and_then(|g| g.trouble);
    assert_eq!(trouble, None);
    assert!(s.node(2).copy_stats().installed > 0);
    s.converges();
    s.kill(0);
    check(&mut s, 2, 1, 100);
}

#[test]
fn f14_a_lost_store_comes_back_while_clients_write() {
    let mut s = three("lost store");
    write(&mut s, 0, 100);
    s.wait(1_000);
    s.spoil_store(1);
    write(&mut s, 1, 200);
    s.wait(6_000);
    let stats = s.node(1).copy_stats();
    assert!(stats.installed >= 1, "{stats:?}");
    s.converges();
    s.kill(0);
    check(&mut s, 1, 1, 200);
}
