//! Reads under leases (`docs/paxos.md` 11.7), whatever happens to clocks and processes.

use base::{Micros, limits};
use node::Node;
use sim::scenario::{Scenario, Via, get, put};
use sim::swarm::{self, Fault, Faults, Report, SwarmOptions};

/// Runs a seed with these faults and interruptions only.
fn run(seed: u64, change: impl Fn(&mut SwarmOptions)) -> Report {
    let mut options = SwarmOptions::draw(seed);
    options.reconfiguration = None;
    options.faults = Faults::default();
    options.world.paused = 0;
    options.pinned = false;
    change(&mut options);
    match swarm::run_with::<Node>(seed, options) {
        Ok(report) => report,
        Err(run) => {
            run.log.iter().chain(&run.replicas).for_each(|line| println!("{line}"));
            panic!("seed {seed}: {}", run.failed);
        }
    }
}

fn often(every_millis: u64, span_millis: u64) -> Option<Fault> {
    let (every_max, span_max) =
        (Micros::from_millis(every_millis), Micros::from_millis(span_millis));
    Some(Fault { every_max, span_max })
}

#[test]
fn a_read_under_a_lease_costs_no_message_and_no_sync() {
    let mut s = Scenario::new("lease", 3);
    s.put(Via::Any, "k", "v");
    let leader = s.leader(1);
    s.reads(leader, "k", "v");
    s.wait(2_000);
    let (asked, synced) = (s.stats(1, leader).confirm_rounds, s.syncs(leader));
    let before = s.millis();
    for _ in 0..200 {
        s.reads(leader, "k", "v");
    }
    assert!(s.millis() - before < 300, "a read takes the way to the node and back");
    assert_eq!(s.stats(1, leader).confirm_rounds, asked);
    // The log is covered now and then while it is idle; no read makes it.
    assert!(s.syncs(leader) <= synced + 1);
}

#[test]
fn a_leader_that_lost_its_lease_asks_before_it_reads() {
    let mut s = Scenario::new("lapse", 3);
    s.put(Via::Any, "k", "v");
    let leader = s.leader(1);
    s.reads(leader, "k", "v");
    s.wait(500);
    let asked = s.stats(1, leader).confirm_rounds;
    // It did nothing for longer than its lease, but less than it takes to be replaced.
    s.pause(leader, 197);
    s.wait(197);
    s.reads(leader, "k", "v");
    assert!(s.stats(1, leader).confirm_rounds > asked || s.leader(1) != leader);
}

#[test]
fn f09_a_leader_that_was_stopped_for_a_while_reads_nothing_stale() {
    let mut s = Scenario::new("f09", 3);
    s.put(Via::Any, "k", "0");
    for round in 1..20_u64 {
        let leader = s.leader(1);
        s.wait(300);
        s.reads(leader, "k", &(round - 1).to_string());
        s.pause(leader, 1_000 + 37 * round);
        let other = (leader + 1) % 3;
        let write = s.begin(other, put("k", &round.to_string()));
        s.finishes(write, 900);
        // It waits in the queue of the stopped process, which then still believes that it leads.
        let read = s.begin(leader, get("k"));
        let answer = s.finishes(read, 5_000);
        let expected = router::Answer::Value(Some(round.to_string().into()));
        s.same(&answer, &expected);
    }
}

#[test]
fn f09_pauses_between_the_reading_of_a_clock_and_the_check_of_a_lease() {
    let mut held = 0;
    for seed in 1_000..1_012 {
        let report = run(seed, |options| {
            options.world.paused = 300;
            options.world.pause_max = Micros::from_millis(600);
            options.world.drift_max = limits::CLOCK_DRIFT_PPM;
            options.faults.pause = often(1_500, 1_500);
            options.faults.partition = often(3_000, 1_500);
        });
        held += report.leases;
        assert!(report.leaders > 4, "seed {seed}: {report:?}");
    }
    assert!(held > 1_000, "leases were held {held} times");
}

#[test]
fn f10_clocks_that_drift_and_jump_make_no_read_stale() {
    for seed in 1_100..1_108 {
        let report = run(seed, |options| {
            options.world.drift_max = limits::CLOCK_DRIFT_PPM;
            options.world.wall_offset_max = 200_000;
            options.faults.clock_jump = often(500, 1_000);
            options.faults.partition = often(2_000, 1_000);
            options.faults.crash = often(4_000, 1_000);
        });
        assert!(report.leases > 0, "seed {seed}: {report:?}");
    }
}

#[test]
fn f10_a_wall_clock_far_off_does_not_lead_while_another_can() {
    let mut s = Scenario::new("f10", 3);
    s.put(Via::Any, "k", "v");
    let leader = s.leader(1);
    s.wall_clock(leader, 3_600_000);
    s.wait(1_500);
    let next = s.leader(1);
    assert_ne!(next, leader);
    s.put(Via::Any, "k", "w");
    // If two of three are wrong nobody can say who is right, and the group goes on.
    s.wall_clock((leader + 1) % 3, -3_600_000);
    s.wait(1_500);
    s.put(Via::Any, "k", "x");
    s.reads(Via::Any, "k", "x");
}

#[test]
fn f09_f10_reads_of_older_values_are_in_order_and_within_their_bounds() {
    let mut looks = 0;
    for seed in 1_300..1_310 {
        let report = run(seed, |options| {
            options.workload.relaxed = 80;
            options.workload.think_max = Micros::from_millis(20);
            options.world.paused = 200;
            options.world.pause_max = Micros::from_millis(600);
            options.world.drift_max = limits::CLOCK_DRIFT_PPM;
            options.faults.pause = often(1_500, 1_000);
            options.faults.partition = often(1_500, 1_500);
            options.faults.crash = often(4_000, 1_000);
        });
        looks += report.looks;
    }
    assert!(looks > 1_000, "{looks} reads of older values");
}

#[test]
fn f03_leases_and_restarts_do_not_meet() {
    for seed in 1_200..1_206 {
        let report = run(seed, |options| {
            options.world.drift_max = limits::CLOCK_DRIFT_PPM;
            options.faults.crash = often(900, 300);
            options.faults.crash_all = 10;
            options.faults.power = seed % 2 == 0;
        });
        assert!(report.leases > 0, "seed {seed}: {report:?}");
    }
}
