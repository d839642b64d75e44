//! Every schedule of three replicas within small bounds, with the real `Paxos` values
//! (docs/testing.md).
//!
//! `PAXOS_MODEL` names other bounds, which are then explored instead, for example
//! `PAXOS_MODEL="campaigns=1,1,1 waiting=1,1,1 crashes=0,1,0 states=30000000"`.
#![allow(clippy::unwrap_used, unreachable_pub)]
// The order of hashes decides nothing here: what is found is looked up, never walked through.
#![allow(clippy::disallowed_types)]
// Of the messages and records of the core those count that say something; others come and go.
#![allow(clippy::wildcard_enum_match_arm)]

mod bugs;
mod replica;
mod space;
#[path = "../words/mod.rs"]
mod words;

use bugs::Bug;
use space::{Bounds, Found, Judged, explore};

/// Two replicas campaign, each with a command of its own.
const DUEL: Bounds = Bounds { campaigns: [1, 0, 1], waiting: [1, 0, 1], ..Bounds::NONE };
/// One of those who vote crashes, too.
const CRASH: Bounds = Bounds { crashes: [0, 1, 0], ..DUEL };
/// One replica leads, takes a command and ends the epoch; all crash, it does so twice.
const STOP: Bounds = Bounds {
    campaigns: [1, 0, 0],
    waiting: [1, 0, 0],
    changes: 1,
    crashes: [2, 1, 1],
    ..Bounds::NONE
};

/// Explores everything within the bounds: nothing may be wrong, and an explorer that sees less than
/// it did before is broken.
fn all_is_well(name: &str, bounds: Bounds, states: usize, depth: usize) -> Found {
    let found = explore(bounds);
    println!(
        "{name}: {} states, {} of single replicas, {} steps deep; {:?}",
        found.states, found.replicas, found.depth, found.seen
    );
    assert!(found.wrong.is_none(), "{name}\n{}", found.wrong.unwrap());
    assert!(found.complete || bounds.depth == found.depth, "{name}: the search ended early");
    assert!(found.states >= states, "{name}: only {} states", found.states);
    assert!(found.depth >= depth, "{name}: only {} steps deep", found.depth);
    found
}

#[test]
fn two_that_compete_choose_one_value() {
    let seen = all_is_well("duel", DUEL, 82_000, 28).seen;
    assert!(seen.two_leaders > 0 && seen.chosen_again > 0 && seen.unknown > 0);
    all_is_well("duel, hints", Bounds { hints: true, ..DUEL }, 100_000, 31);
}

#[test]
fn a_crash_of_a_voter_loses_nothing_that_it_told() {
    let seen = all_is_well("crash of a voter", CRASH, 340_000, 29).seen;
    assert!(seen.two_leaders > 0 && seen.chosen_again > 0);
}

#[test]
fn a_crash_of_a_leader_loses_nothing_that_is_chosen() {
    let bounds = Bounds { crashes: [1, 0, 0], ..DUEL };
    all_is_well("crash of a leader", bounds, 460_000, 29);
    // The same replica leads again, and does not know what it proposed before.
    let bounds = Bounds { campaigns: [2, 0, 0], waiting: [2, 0, 0], ..bounds };
    let seen = all_is_well("a leader again", bounds, 70_000, 27).seen;
    assert!(seen.chosen_again > 0);
}

#[test]
fn messages_that_come_twice_do_no_harm() {
    let bounds = Bounds { duplicates: 1, ..DUEL };
    all_is_well("duel, a message doubled", bounds, 1_200_000, 30);
}

#[test]
fn what_is_sent_again_and_told_does_no_harm() {
    let bounds = Bounds { campaigns: [1, 0, 0], waiting: [2, 0, 0], ..Bounds::NONE };
    let bounds = Bounds { ticks: [1, 1, 0], duplicates: 1, ..bounds };
    all_is_well("time-outs under one leader", bounds, 100_000, 20);
    let bounds = Bounds { ticks: [1, 0, 0], ..DUEL };
    let seen = all_is_well("duel, a time-out", bounds, 1_500_000, 33).seen;
    assert!(seen.known_by_all > 0);
}

#[test]
fn a_value_is_believed_only_under_the_ballot_that_announces_it() {
    // What r1 sent to r2 is lost at r1, r3 has another value chosen, and tells that to r2 with the
    // next slot.
    let bounds = Bounds { crashes: [1, 0, 0], commands: 1, depth: 17, ..DUEL };
    all_is_well("told after a crash", bounds, 1_000_000, 17);
}

#[test]
fn of_two_values_in_a_slot_the_later_ballot_counts() {
    // r1 comes back with its own value, and finds that of r3, which was chosen later.
    let bounds = Bounds { campaigns: [2, 0, 1], depth: 21, ..DUEL };
    let seen = all_is_well("a third campaign", bounds, 1_200_000, 21).seen;
    assert!(seen.chosen_again > 0);
}

#[test]
fn three_that_compete_choose_one_value() {
    let bounds = Bounds { campaigns: [1, 1, 1], waiting: [1, 1, 1], depth: 16, ..Bounds::NONE };
    let seen = all_is_well("three compete, the first steps", bounds, 360_000, 16).seen;
    assert!(seen.two_leaders > 0);
}

#[test]
fn a_stop_sign_ends_an_epoch_once() {
    let seen = all_is_well("stop-sign", STOP, 1_070_000, 40).seen;
    assert!(seen.second_epoch > 0);
    let bounds = Bounds { hints: true, crashes: [1, 1, 1], ..STOP };
    all_is_well("stop-sign, hints", bounds, 1_560_000, 44);
}

#[test]
fn a_search_twice_is_the_same() {
    let bounds = Bounds { depth: 14, ..CRASH };
    let (one, two) = (explore(bounds), explore(bounds));
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
}

// ---------------------------------------------------------------------- planted bugs

/// A fault that is planted must be found, as soon as a replica does what it must not (`step`) and,
/// if nobody looks at that, by two values of one slot.
fn is_caught(bug: Bug, bounds: Bounds, step: &str) {
    for judged in [Judged::Steps, Judged::Whole, Judged::Outcome] {
        let found = explore(Bounds { bug: Some(bug), judged, ..bounds });
        let wrong = found.wrong.unwrap_or_else(|| panic!("{bug:?} is not found by {judged:?}"));
        let last = wrong.lines().last().unwrap().to_owned();
        println!("{bug:?} by {judged:?}, {} states: {last}", found.states);
        if judged == Judged::Steps {
            println!("{wrong}");
            assert!(last.contains(step), "{bug:?}: {last}");
        }
        if judged == Judged::Outcome {
            assert!(last.contains("I1: in s"), "{bug:?}: {last}");
        }
    }
}

#[test]
fn a_promise_that_is_lost_after_its_sync_is_caught() {
    is_caught(Bug::LosesPromise, CRASH, "I2: r2 promised 1.1.r1 and has forgotten it");
}

#[test]
fn a_vote_that_is_lost_after_its_sync_is_caught() {
    is_caught(Bug::LosesVote, CRASH, "I2: r2 promised 1.1.r1 and has forgotten it");
}

#[test]
fn a_sync_that_is_reported_early_is_caught() {
    is_caught(Bug::EarlySync, CRASH, "I3: r1 campaigns under 1.1.r1");
}

#[test]
fn an_empty_disk_under_an_old_number_is_caught() {
    is_caught(Bug::EmptyDisk, CRASH, "I2: r2 promised 1.1.r1 and has forgotten it");
}

#[test]
fn an_answer_to_an_older_ballot_taken_for_one_to_the_newer_is_caught() {
    let bounds = Bounds { campaigns: [2, 0, 1], ..DUEL };
    is_caught(Bug::OldReplyAsNew, bounds, "I7: r1 leads under 1.2.r1 without r3#1");
}

#[test]
fn a_promise_that_denies_votes_is_caught() {
    is_caught(Bug::DeniesVotes, DUEL, "I7: r3 leads under 1.1.r3 without r1#1");
}

#[test]
fn a_vote_that_counts_for_two_is_caught() {
    let bounds = Bounds { crashes: [1, 0, 0], ..DUEL };
    is_caught(Bug::VoteOfTwo, bounds, "r1 learned r1#1 in s1, which is not chosen");
}

#[test]
fn an_epoch_that_is_lost_after_its_sync_is_caught() {
    // Its own promise of the first ballot is lost with the record: it takes that ballot again.
    let bounds = Bounds { campaigns: [0, 1, 0], waiting: [0; 3], crashes: [0, 1, 0], ..STOP };
    let found = explore(Bounds { bug: Some(Bug::LosesEpoch), ..bounds });
    let wrong = found.wrong.expect("LosesEpoch is not found");
    println!("LosesEpoch, {} states\n{wrong}", found.states);
    assert!(wrong.contains("I4: r2 leads again under 2.0.r2"), "{wrong}");
}

// ---------------------------------------------------------------------- larger bounds

fn three(text: &str) -> [u8; 3] {
    let numbers: Vec<u8> = text.split(',').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().expect("a number for each of three replicas")
}

fn parse(text: &str) -> Bounds {
    let mut bounds = Bounds { states: 50_000_000, ..Bounds::NONE };
    for word in text.split_whitespace() {
        let (name, value) = word.split_once('=').expect("name=value");
        match name {
            "campaigns" => bounds.campaigns = three(value),
            "waiting" => bounds.waiting = three(value),
            "crashes" => bounds.crashes = three(value),
            "ticks" => bounds.ticks = three(value),
            "commands" => bounds.commands = value.parse().unwrap(),
            "duplicates" => bounds.duplicates = value.parse().unwrap(),
            "changes" => bounds.changes = value.parse().unwrap(),
            "hints" => bounds.hints = value.parse().unwrap(),
            "depth" => bounds.depth = value.parse().unwrap(),
            "states" => bounds.states = value.parse().unwrap(),
            other => panic!("{other} is no bound"),
        }
    }
    bounds
}

#[test]
fn larger_bounds_that_are_asked_for() {
    let Some((_, text)) = std::env::vars().find(|(name, _)| name == "PAXOS_MODEL") else { return };
    let found = explore(parse(&text));
    println!("{} states, {} steps deep, {:?}", found.states, found.depth, found.seen);
    println!("{}", if found.complete { "all there are" } else { "not all there are" });
    assert!(found.wrong.is_none(), "{}", found.wrong.unwrap());
}
