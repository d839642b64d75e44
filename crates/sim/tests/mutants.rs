//! Every guard that can be taken away is missed: the simulator fails within the number of seeds
//! that the catalogue states, and the very seed that fails passes with all guards in place.
//! `cargo run -p decree-sim --example mutants` looks further.
#![cfg(debug_assertions)]
#![allow(missing_docs)]

use std::collections::BTreeSet;

use base::mutant::{Mutant, PLANTABLE, is, plant};
use sim::mutants::{self, AREAS, Hunt};

/// The first seed that kills the mutant, of those that the catalogue allows.
fn kill(hunt: &Hunt) {
    let Hunt { mutant, terrain, .. } = *hunt;
    let seeds = hunt.seed..hunt.seed + hunt.within;
    let found = seeds.clone().find(|seed| mutants::run(Some(mutant), terrain, *seed).is_err());
    let Some(seed) = found else {
        panic!("no seed of {seeds:?} on {terrain:?} fails with {mutant:?}");
    };
    if let Err(failure) = mutants::run(None, terrain, seed) {
        panic!("seed {seed} on {terrain:?} fails without a mutant: {failure}");
    }
}

fn kill_all(area: &str) {
    let found = AREAS.iter().find(|(name, _)| *name == area);
    let hunts = found.map_or(&[][..], |(_, hunts)| hunts);
    assert!(hunts.len() > 3, "{area}");
    hunts.iter().for_each(kill);
}

#[test]
fn mutants_of_promises_and_votes_are_killed() {
    kill_all("promises and votes");
}

#[test]
fn mutants_of_leases_and_reads_are_killed() {
    kill_all("leases and reads");
}

#[test]
fn mutants_of_the_log_and_the_store_are_killed() {
    kill_all("log and store");
}

#[test]
fn mutants_of_sessions_and_shards_are_killed() {
    kill_all("sessions and shards");
}

#[test]
fn every_hunt_is_for_another_mutant() {
    let hunts = || AREAS.iter().flat_map(|(_, hunts)| hunts.iter());
    let mutants: BTreeSet<Mutant> = hunts().map(|hunt| hunt.mutant).collect();
    assert_eq!(mutants.len(), hunts().count());
    assert_eq!(mutants.len(), HUNTED);
}

/// How many guards are taken away.
const HUNTED: usize = 48;

#[test]
fn a_mutant_is_planted_in_one_thread_for_a_while() {
    assert!(PLANTABLE && !is(Mutant::VoteMissing));
    let planted = plant(Mutant::VoteMissing);
    assert!(is(Mutant::VoteMissing) && !is(Mutant::PromiseMissing));
    std::thread::scope(|scope| scope.spawn(|| assert!(!is(Mutant::VoteMissing))));
    drop(planted);
    assert!(!is(Mutant::VoteMissing));
}
