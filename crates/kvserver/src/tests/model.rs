//! Every schedule of hand-offs within small bounds: real state machines of groups and of drivers
//! that know anything that was ever so, in all orders (docs/testing.md).

mod drivers;
mod space;

use space::{Found, explore};

use super::*;

/// Groups of a search, at most.
const GROUPS_MAX: usize = 3;
/// The number of the group that never gives anything away.
const REFERENCE: usize = 98;

/// What may happen.
#[derive(Clone, Debug)]
struct Bounds {
    groups: usize,
    shards: u16,
    /// Each of another client, which asks any group at any time, and again for ever.
    requests: Vec<(u16, KvOp)>,
    /// To which group the shards are to go, one hand-off after another.
    plan: Vec<GroupId>,
    /// How often the shard master gives a hand-off up.
    give_up: u8,
    /// About the bytes of a chunk or of changes; with 1 there is one record in each.
    part_bytes: usize,
    /// States; when there are more the search ends unfinished.
    states: usize,
    bug: Option<Bug>,
}

/// What is wrong with the drivers, or with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// The source serves again although the destination did not refuse.
    UnfreezeUnasked,
    /// The source gives the shards away although the destination does not serve them.
    GiftUnasked,
    /// The shard master takes a hand-off for done when the source is frozen.
    DoneUnasked,
    /// The shard master takes a hand-off for cancelled that the source may still begin.
    CancelledUnasked,
    /// A group loses a refusal that it has answered.
    RefusalForgotten,
    /// Changes come without what was removed.
    RemovalsLeftOut,
}

impl Bounds {
    fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards).map(ShardId)
    }

    fn shards_of(&self, epoch: ShardEpoch) -> Vec<(ShardId, ShardEpoch)> {
        self.shards().map(|shard| (shard, epoch)).collect()
    }

    /// The keys that requests write.
    fn keys(&self) -> Vec<(ShardId, Bytes)> {
        let of = |(shard, op): &(u16, KvOp)| (ShardId(*shard), Bytes::copy_from_slice(op.key()));
        let mut keys: Vec<(ShardId, Bytes)> = self.requests.iter().map(of).collect();
        keys.sort();
        keys.dedup();
        keys
    }
}

/// A request, the same whenever it is made.
fn request(bounds: &Bounds, number: usize) -> Command {
    let (shard, op) = &bounds.requests[number];
    client(ShardId(*shard), session(number as u128 + 1, 1, 1, 1_000), op.clone())
}

fn one_move() -> Bounds {
    Bounds {
        groups: 2,
        shards: 1,
        requests: vec![(0, append("k", "x")), (0, KvOp::Delete { key: bytes("k") })],
        plan: vec![GroupId(2)],
        give_up: 1,
        part_bytes: 1,
        states: 3_000_000,
        bug: None,
    }
}

/// Explores everything within the bounds, and finds nothing wrong.
fn is_sound(name: &str, bounds: Bounds) -> Found {
    let found = explore(bounds);
    println!(
        "{name}: {} states, {} of groups, {} commands, {} steps, {} ends, {} of them moved",
        found.states, found.logs, found.letters, found.depth, found.ends, found.moved
    );
    if let Some(wrong) = &found.wrong {
        panic!("{name}\n{wrong}");
    }
    assert!(found.complete, "{name}: not everything was seen");
    assert!(found.moved > 0 && found.moved < found.ends, "{name}: {found:?}");
    found
}

#[test]
fn every_schedule_of_a_move_ends_well() {
    let found = is_sound("a move", one_move());
    assert!(found.states > 25_000, "{}", found.states);
}

#[test]
fn every_schedule_of_a_move_of_two_shards_ends_well() {
    let requests = vec![(0, append("k", "x")), (1, append("l", "x"))];
    let found =
        is_sound("two shards", Bounds { shards: 2, requests, part_bytes: 1_000, ..one_move() });
    assert!(found.states > 150_000, "{}", found.states);
}

#[test]
fn every_schedule_of_a_move_there_and_back_ends_well() {
    let plan = vec![GroupId(2), GroupId(1)];
    let found = is_sound("there and back", Bounds { plan, give_up: 0, ..one_move() });
    assert!(found.states > 300_000, "{}", found.states);
}

#[test]
fn every_schedule_of_a_second_attempt_ends_well() {
    let (plan, requests) = (vec![GroupId(2), GroupId(2)], vec![(0, append("k", "x"))]);
    let found = is_sound("a second attempt", Bounds { plan, requests, ..one_move() });
    assert!(found.states > 150_000, "{}", found.states);
}

#[test]
fn every_schedule_of_a_move_on_to_a_third_group_ends_well() {
    let (plan, requests) = (vec![GroupId(2), GroupId(3)], vec![(0, append("k", "x"))]);
    let found = is_sound("on to a third", Bounds { groups: 3, plan, requests, ..one_move() });
    assert!(found.states > 200_000, "{}", found.states);
}

/// A fault that is planted must be found, and told in its steps.
fn is_caught(bug: Bug, bounds: Bounds, wrong: &str) {
    let found = explore(Bounds { bug: Some(bug), ..bounds });
    let story =
        found.wrong.unwrap_or_else(|| panic!("{bug:?} is not found: {} states", found.states));
    let last = story.lines().last().unwrap().to_owned();
    println!("{bug:?}, {} states:\n{story}\n", found.states);
    assert!(last.contains(wrong), "{bug:?}: {last}");
}

#[test]
fn a_source_that_serves_again_unasked_is_caught() {
    is_caught(Bug::UnfreezeUnasked, one_move(), "is served by");
}

#[test]
fn a_source_that_gives_away_unasked_is_caught() {
    is_caught(Bug::GiftUnasked, one_move(), "a hand-off is under way");
}

#[test]
fn a_shard_master_that_takes_a_frozen_source_for_moved_is_caught() {
    is_caught(Bug::DoneUnasked, one_move(), "should serve under");
}

#[test]
fn a_shard_master_that_plans_anew_too_early_is_caught() {
    let plan = vec![GroupId(2), GroupId(3)];
    let bounds = Bounds { groups: 3, plan, ..one_move() };
    is_caught(Bug::CancelledUnasked, bounds, "should serve under");
}

#[test]
fn a_refusal_that_is_lost_is_caught() {
    is_caught(Bug::RefusalForgotten, one_move(), "is served by");
}

#[test]
fn a_removal_that_does_not_travel_is_caught() {
    is_caught(Bug::RemovalsLeftOut, one_move(), "is not what it must be");
}
