//! Guards that are taken away are missed: the simulator fails within the number of seeds that the
//! catalogue states, and the very seed that fails passes with all guards in place. Here for those
//! that are missed at once; `cargo run -p decree-sim --example mutants` hunts all of them.
#![cfg(debug_assertions)]
#![allow(missing_docs)]

use std::collections::BTreeSet;

use base::mutant::{Mutant, PLANTABLE, is, plant};
use sim::mutants::{self, AREAS, Hunt, Terrain};

/// Looks for a seed that kills the mutant, among those that the catalogue allows. `sound` has those
/// that are known to pass with all guards in place.
fn kill(hunt: &Hunt, sound: &mut BTreeSet<(Terrain, u64)>) {
    let Hunt { mutant, terrain, .. } = *hunt;
    let seeds = hunt.seed..hunt.seed + hunt.within;
    let found = seeds.clone().find(|seed| mutants::run(Some(mutant), terrain, *seed).is_err());
    let Some(seed) = found else {
        panic!("no seed of {seeds:?} on {terrain:?} fails with {mutant:?}");
    };
    println!("{mutant:?}: seed {seed}");
    if sound.insert((terrain, seed))
        && let Err(failure) = mutants::run(None, terrain, seed)
    {
        panic!("seed {seed} on {terrain:?} fails without a mutant: {failure}");
    }
}

/// Those that so many seeds kill are hunted here: the others take too long.
const QUICK_WITHIN: u64 = 25;

/// Kills the quick ones of these areas.
fn kill_all(areas: [&str; 2]) {
    let mut sound = BTreeSet::new();
    let wanted = AREAS.iter().filter(|(name, _)| areas.contains(name));
    let hunts = wanted.flat_map(|(_, hunts)| hunts.iter());
    let mut killed = 0;
    for hunt in hunts.filter(|hunt| hunt.within <= QUICK_WITHIN) {
        kill(hunt, &mut sound);
        killed += 1;
    }
    assert!(killed > 12, "{areas:?}: {killed}");
}

#[test]
fn f28_mutants_of_votes_and_leases_are_killed() {
    kill_all(["promises and votes", "leases and reads"]);
}

#[test]
fn f28_mutants_of_disks_and_shards_are_killed() {
    kill_all(["log and store", "sessions and shards"]);
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
    let elsewhere = std::thread::scope(|scope| scope.spawn(|| is(Mutant::VoteMissing)).join().ok());
    assert_eq!(elsewhere, Some(false));
    drop(planted);
    assert!(!is(Mutant::VoteMissing));
}
