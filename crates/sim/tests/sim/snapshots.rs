//! Replicas that are behind what the others keep, or whose store is lost, take a copy of another's
//! state (docs/paxos.md 11.11).

use base::{GroupId, Micros};
use paxos::Record;
use paxos::record::Outline;
use sim::scenario::{Scenario, Via};
use sim::world::WorldOptions;
use storage::{Engine, ScanLimit};

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
    s.wait(1_000);
    let stored = [0, 1, 2].map(|node| s.stored_bytes(node));
    assert!(stored[2] < stored[0] + 10_000, "{stored:?}");
    let damage = [0, 1, 2].map(|node| s.node(node).status().damage_found);
    assert_eq!(damage, [0; 3], "what is forgotten is not taken for damaged");
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
fn f14_a_replica_without_its_store_crashes_at_every_step_of_a_copy() {
    for step in ["received", "written", "flushed", "verified", "held", "switched", "recorded"] {
        let mut s = three(&format!("fenced {step}"));
        write(&mut s, 0, 60);
        s.wait(1_000);
        s.spoil_store(2);
        until(&mut s, 2, step);
        s.kill(2);
        s.restart(2);
        write(&mut s, 1, 50);
        s.wait(2_000);
        s.converges();
        // Whatever it was before the crash, it is the others' state now.
        s.kill(0);
        check(&mut s, 2, 1, 50);
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
fn f21_a_copy_goes_on_where_it_was_when_its_receiver_was_cut_off() {
    // How many parts of a copy came that were not here yet.
    let copied = |cuts: u32| {
        let mut s = half_copied("cut off");
        for _ in 0..cuts {
            s.isolate(&[2]);
            s.wait(400);
            s.heal();
            s.wait(150);
        }
        while s.node(2).copy_stats().installed == 0 {
            s.wait(100);
        }
        s.converges();
        let stats = s.node(2).copy_stats();
        assert_eq!(stats.useless, 0);
        stats.parts - stats.same
    };
    let (whole, cut) = (copied(0), copied(3));
    assert!(cut <= whole + 10, "{cut} parts, and {whole} where nothing is cut");
}

#[test]
fn f15_a_leader_with_a_full_disk_leads_on_while_the_only_other_replica_needs_a_copy() {
    let mut s = Scenario::with_options("full source", 3, 16, &[vec![0, 1, 2]], |options| {
        short_logs(options);
        // The copy takes some seconds.
        options.settings.snapshot_bytes_per_second = 10 << 10;
    });
    write(&mut s, 0, 40);
    let full = s.leader(1);
    let others: Vec<usize> = (0..3).filter(|node| *node != full).collect();
    let (behind, dead) = (others[0], others[1]);
    s.kill(behind);
    write(&mut s, 1, 400);
    s.wait(1_500);
    s.fill(full, true);
    let fills = |i: u32| sim::scenario::put(&format!("key {}", 40 + i % 40), &"v".repeat(1_000));
    let refused = (0..2_000).any(|i| s.tries(Via::Any, fills(i)).is_err());
    assert!(refused);
    s.kill(dead);
    s.restart(behind);
    for _ in 0..20 {
        s.wait(300);
        check(&mut s, Via::Any, 1, 400);
    }
    assert_eq!(s.node(behind).copy_stats().installed, 1);
    s.fill(full, false);
    s.wait(2_000);
    write(&mut s, 2, 40);
    s.restart(dead);
    s.converges();
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
        options.settings.log_bytes_max = 256 << 10;
    });
    write(&mut s, 0, 200);
    s.kill(2);
    write(&mut s, 1, 400);
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
    let installed = s.node(2).copy_stats().installed;
    assert_eq!(installed, 1, "the rest came from the log, after {i} writes: {:#?}", s.log());
}

/// Node 2 has taken a part of a copy, and some of it is in its store.
fn half_copied(name: &str) -> Scenario {
    let mut s = Scenario::with_options(name, 3, 16, &[vec![0, 1, 2]], |options| {
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
    s
}

/// Whether it is a value of such a copy: it lies under the second generation of the group's state.
fn is_copied(key: &[u8], record: &[u8]) -> bool {
    key.starts_with(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]) && record.len() > 1_000
}

#[test]
fn i28_a_copy_that_is_written_wrong_is_taken_anew() {
    let mut s = half_copied("wrong");
    let altered = s.store(2).alter(|key, record| {
        is_copied(key, record)
            .then(|| record.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>().into())
    });
    assert!(altered > 0);
    s.wait(4_000);
    let stats = s.node(2).copy_stats();
    assert_eq!((stats.useless, stats.installed), (1, 1), "{stats:?}");
    s.converges();
    s.kill(0);
    check(&mut s, 2, 1, 100);
}

/// What came from the first source lies in the store damaged, and what the next one has there is to
/// take its place.
#[test]
fn f11_a_copy_of_which_a_written_part_is_damaged_is_taken_anew() {
    let mut s = half_copied("damaged part");
    let source = s.node(2).copy_source(GROUP).unwrap();
    let source = (0..3).find(|node| s.node(*node).id() == source).unwrap();
    let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
    let records = s.store(2).scan(&[], &[0xff; 4], all).unwrap();
    let copied = records.iter().position(|(key, record)| is_copied(key, record));
    s.store(2).damage(copied.expect("some of the copy is in the store"));
    write(&mut s, 2, 40);
    s.kill(source);
    s.wait(8_000);
    let stats = s.node(2).copy_stats();
    assert_eq!((stats.useless, stats.installed), (1, 1), "{stats:?}");
    s.restart(source);
    s.converges();
    s.kill(source);
    check(&mut s, 2, 2, 40);
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

/// Bytes of the data group on all nodes that are up: of its log, and of its part of the store.
fn live_bytes(s: &mut Scenario) -> u64 {
    let stored: u64 = (0..3).map(|node| s.stored_bytes(node)).sum();
    let logs = (0..3)
        .filter(|node| s.is_up(*node))
        .map(|node| s.node(node).paxos_of(GROUP).map_or(0, |paxos| paxos.log_bytes() as u64));
    stored + logs.sum::<u64>()
}

/// Rounds of writes, and the bytes that are left of them: when all is quiet, when all nodes are
/// killed, and a second after they are started again.
fn disk_use(s: &mut Scenario, rounds: u32, appended: usize, bytes_max: u64) {
    let mut expected = String::new();
    for round in 0..rounds {
        s.put(Via::Any, "k2", &format!("{round:04}{}", "x".repeat(996)));
        let piece = format!("{}", round % 10).repeat(appended);
        s.append(Via::Any, "k3", &piece);
        expected += &piece;
        s.value(Via::Any, "k4");
    }
    for key in ["k1", "k2", "k3"] {
        s.wait(100);
        s.append(Via::Any, key, "z");
    }
    s.wait(2_100);
    let live = live_bytes(s);
    assert!(live <= bytes_max, "{live} bytes");
    s.kill_all(&[0, 1, 2]);
    let live = live_bytes(s);
    assert!(live <= bytes_max, "{live} bytes while all are down");
    s.restart_all();
    s.wait(1_000);
    s.reads(Via::Any, "k1", "z");
    s.reads(Via::Any, "k3", &(expected + "z"));
    s.reads(Via::Any, "k2", &format!("{:04}{}z", rounds - 1, "x".repeat(996)));
    s.wait(1_000);
    let live = live_bytes(s);
    assert!(live <= bytes_max, "{live} bytes after the start");
}

#[test]
fn d8_old_log_and_old_values_leave_the_disk() {
    let mut s = Scenario::new("d8", 3);
    let rounds = 100 + s.random().below(20) as u32;
    disk_use(&mut s, rounds, 1, 20_000);
}

#[test]
fn d9_appends_take_the_room_of_what_is_appended() {
    let mut s = Scenario::new("d9", 3);
    let rounds = 100 + s.random().below(20) as u32;
    disk_use(&mut s, rounds, 1_000, 3 * u64::from(rounds) * 1_000 + 20_000);
}

/// Six nodes in two groups, of which each has a replica that is behind what the others keep.
fn two_groups_with_laggards(name: &str) -> Scenario {
    let mut s = Scenario::with_options(name, 6, 16, &[vec![0, 1, 2], vec![3, 4, 5]], short_logs);
    write(&mut s, 0, 80);
    s.kill(2);
    s.kill(5);
    write(&mut s, 1, 200);
    s.wait(1_500);
    s
}

#[test]
fn f19_copies_are_taken_in_the_middle_of_hand_offs_at_source_and_destination() {
    for after in [0, 20, 60, 150, 400] {
        let mut s = two_groups_with_laggards(&format!("hand-off {after}"));
        s.leave(&[1]);
        s.wait(after);
        s.restart_nodes(&[2, 5]);
        write(&mut s, 2, 60);
        s.settles(10_000);
        s.converges();
        let taken = [2, 5].map(|node| s.node(node).copy_stats().installed);
        assert!(taken.iter().all(|taken| *taken > 0), "{taken:?}");
        // With what the copies brought the groups go on, shards that moved and those that stay.
        s.kill_all(&[0, 3]);
        check(&mut s, Via::Any, 2, 60);
    }
}

#[test]
fn f19_those_who_took_copies_lead_hand_offs_on() {
    let mut s = two_groups_with_laggards("hand-off led on");
    s.leave(&[1]);
    s.wait(30);
    s.restart_nodes(&[2, 5]);
    s.wait(2_000);
    // Each group keeps the replica that took a copy and one other.
    s.kill_all(&[1, 4]);
    s.wait(3_000);
    check(&mut s, Via::Any, 1, 200);
    s.restart_nodes(&[1, 4]);
    s.settles(10_000);
    s.converges();
}

#[test]
fn f11_a_start_that_cannot_tell_which_state_is_the_groups_takes_a_copy() {
    let mut s = three("which state");
    write(&mut s, 0, 60);
    s.kill(2);
    write(&mut s, 1, 100);
    s.wait(1_500);
    s.restart(2);
    s.wait(2_000);
    assert_eq!(s.node(2).copy_stats().installed, 1);
    s.kill(2);
    s.damage_record(2, b"generation\0\0\0\0\0\0\0\x01");
    s.restart(2);
    s.wait(2_000);
    assert_eq!(s.node(2).copy_stats().installed, 1);
    s.converges();
    s.kill(0);
    check(&mut s, 2, 1, 100);
}
