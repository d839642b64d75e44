//! The simulator and its checkers, tried on a machine with and without planted faults.

use base::Micros;
use sim::guest::Guest;
use sim::swarm::{self, Fault, SwarmOptions};

use crate::toy::{self, Toy};

/// A run that crashes often and uses one node.
fn options(seed: u64) -> SwarmOptions {
    let mut options = SwarmOptions::draw(seed);
    options.world.nodes = 3;
    options.world.masters = 1;
    options.groups = vec![vec![0]];
    options.reconfiguration = None;
    options.pinned = false;
    options.workload.mixed = 3;
    options.workload.appending = 1;
    options.workload.chaining = usize::from(seed.is_multiple_of(2));
    options.workload.keys = 2;
    options.world.network.lost = 300;
    options.world.disk.sync_min = Micros::from_millis(10);
    options.world.disk.sync_max = Micros::from_millis(60);
    options.faults.power = true;
    // The toy has nothing to mend its log with, and does not know its disk.
    options.faults.rot = None;
    options.faults.wipe = None;
    options.faults.old_copy = None;
    options.faults.members = None;
    options.faults.crash =
        Some(Fault { every_max: Micros::from_millis(1_500), span_max: Micros::from_millis(100) });
    options
}

fn verdict<G: Guest>(seed: u64) -> Result<swarm::Report, String> {
    swarm::run_with::<G>(seed, options(seed)).map_err(|run| run.failed.to_string())
}

/// The complaint that one of a few seeds raises.
fn complaint<G: Guest>(words: &str) {
    let complaints: Vec<String> = (0..36).filter_map(|seed| verdict::<G>(seed).err()).collect();
    let meant = complaints.iter().filter(|complaint| complaint.contains(words)).count();
    assert!(meant > 0, "nobody says {words:?}: {complaints:?}");
}

#[test]
fn a_right_machine_passes() {
    for seed in 0..12 {
        let report = verdict::<Toy<toy::None>>(seed);
        let report = report.unwrap_or_else(|failed| panic!("seed {seed}: {failed}"));
        let faults: u64 = report.faults.values().sum();
        assert!(report.answered > 150 && faults > 3, "seed {seed}: {report:?}");
    }
}

#[test]
fn one_seed_twice_is_one_trace_of_the_toy() {
    let one = verdict::<Toy<toy::None>>(5).unwrap();
    assert_eq!(one, verdict::<Toy<toy::None>>(5).unwrap());
    assert_ne!(one.trace, verdict::<Toy<toy::None>>(6).unwrap().trace);
}

#[test]
fn planted_early_answer_is_found() {
    complaint::<Toy<toy::EarlyAnswer>>("not linearizable");
}

#[test]
fn planted_dirty_read_is_found() {
    complaint::<Toy<toy::DirtyRead>>("not linearizable");
}

#[test]
fn planted_double_execution_is_found() {
    complaint::<Toy<toy::NoSessions>>("is there twice");
}

#[test]
fn planted_loss_of_sessions_is_found() {
    let complaints: Vec<String> =
        (0..40).filter_map(|seed| verdict::<Toy<toy::ForgottenSessions>>(seed).err()).collect();
    assert!(!complaints.is_empty());
}

#[test]
fn planted_stale_read_is_found() {
    complaint::<Toy<toy::StaleRead>>("not linearizable");
}

#[test]
fn planted_lost_write_is_found() {
    complaint::<Toy<toy::LostWrite>>("not linearizable");
}

#[test]
fn planted_difference_of_replicas_is_found() {
    complaint::<Toy<toy::OtherDigest>>("I18");
}
