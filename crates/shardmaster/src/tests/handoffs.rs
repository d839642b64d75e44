//! From the plan to the owners: what is started, given up and recorded.

use std::collections::{BTreeMap, BTreeSet};

use base::Random;
use proptest::prelude::*;

use super::*;
use crate::Migration;
use crate::planner::MIGRATION_SHARDS_MAX;

fn one_group(shards: u16) -> Replica {
    let mut replica = Replica::empty();
    replica.apply(&found(CLUSTER, shards)).body.unwrap();
    replica.join(&[(1, &[1])]).unwrap();
    replica.hand_over();
    replica
}

fn migrations(replica: &Replica) -> Vec<Migration> {
    replica.master.migrations().values().cloned().collect()
}

fn only(replica: &Replica) -> Migration {
    let all = migrations(replica);
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

#[test]
fn shards_that_go_the_same_way_go_together() {
    let mut replica = one_group(8);
    replica.join(&[(2, &[2]), (3, &[3])]).unwrap();
    let expected = |mig, to, shards: &[u16]| Migration {
        mig: CopyId(mig),
        from: GroupId(1),
        to: GroupId(to),
        shards: shards.iter().map(|shard| (ShardId(*shard), ShardEpoch(1))).collect(),
        cancel: false,
    };
    assert_eq!(migrations(&replica), [expected(2, 2, &[3, 4, 5]), expected(3, 3, &[6, 7])]);
    let routes = replica.master.routes();
    let listed: Vec<CopyId> = routes.handoffs.iter().map(|handoff| handoff.mig).collect();
    assert_eq!(listed, [2, 3].map(CopyId));
}

#[test]
fn owners_change_when_a_hand_off_ends() {
    let mut replica = one_group(8);
    replica.move_to(&[5], 1).unwrap_err();
    replica.join(&[(2, &[2])]).unwrap();
    let version = replica.master.routes().version;
    let mig = only(&replica).mig;
    replica.apply(&Command::MigrationDone { mig });
    let routes = replica.master.routes().clone();
    let owner = Owner { group: GroupId(2), epoch: ShardEpoch(2), copy: mig };
    assert_eq!(routes.owner(ShardId(4)), Some(owner));
    assert_eq!(routes.owner(ShardId(3)).unwrap().epoch, ShardEpoch(1));
    assert_eq!(routes.handoffs, []);
    assert!(routes.version > version);
    assert_eq!(routes.configuration, ConfigNumber(2), "an end is no new plan");
    // Told twice, or of a hand-off that there is not, nothing changes.
    replica.apply(&Command::MigrationDone { mig });
    replica.apply(&Command::MigrationCancelled { mig, unequal: Vec::new() });
    replica.apply(&Command::MigrationDone { mig: CopyId(99) });
    assert_eq!(replica.master.routes(), &routes);
}

#[test]
fn sets_are_bounded() {
    let mut replica = one_group(200);
    replica.join(&[(2, &[2])]).unwrap();
    let sizes: Vec<usize> = migrations(&replica).iter().map(|m| m.shards.len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 100);
    assert!(sizes[..sizes.len() - 1].iter().all(|size| *size == MIGRATION_SHARDS_MAX));
    assert!((1..=MIGRATION_SHARDS_MAX).contains(sizes.last().unwrap()));
}

#[test]
fn a_plan_that_goes_back_gives_the_hand_off_up() {
    let mut replica = one_group(8);
    replica.join(&[(2, &[2])]).unwrap();
    let first = only(&replica);
    replica.move_to(&[5], 1).unwrap();
    let given_up = only(&replica);
    assert_eq!(given_up, Migration { cancel: true, ..first.clone() });
    assert!(replica.master.routes().handoffs[0].cancel);
    // Wanting it again does not take that back: the groups may have begun to give up.
    replica.move_to(&[5], 2).unwrap();
    assert!(only(&replica).cancel);
    replica.move_to(&[5], 1).unwrap();
    // What the plan still wants of its set starts anew, under a new name.
    replica.apply(&Command::MigrationCancelled { mig: first.mig, unequal: Vec::new() });
    let second = only(&replica);
    assert!(second.mig > first.mig);
    assert_eq!(second.shards, [4, 6, 7].map(|shard| (ShardId(shard), ShardEpoch(1))));
    assert!(!second.cancel);
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[1, 1, 1, 1, 2, 1, 2, 2]));
}

#[test]
fn a_hand_off_that_could_not_be_given_up_any_more_is_planned_back() {
    let mut replica = one_group(8);
    replica.join(&[(2, &[2])]).unwrap();
    let first = only(&replica);
    replica.move_to(&[5], 1).unwrap();
    // The destination had the shards before it heard.
    replica.apply(&Command::MigrationDone { mig: first.mig });
    assert_eq!(replica.owners(), shards(&[1, 1, 1, 1, 2, 2, 2, 2]));
    let back = only(&replica);
    assert_eq!((back.from, back.to), (GroupId(2), GroupId(1)));
    assert_eq!(back.shards, [(ShardId(5), ShardEpoch(2))]);
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[1, 1, 1, 1, 2, 1, 2, 2]));
}

#[test]
fn a_refused_hand_off_begins_again() {
    let mut replica = one_group(8);
    replica.join(&[(2, &[2])]).unwrap();
    let first = only(&replica);
    replica.apply(&Command::MigrationCancelled { mig: first.mig, unequal: Vec::new() });
    let again = only(&replica);
    assert_eq!(again, Migration { mig: CopyId(first.mig.0 + 1), ..first });
}

#[test]
fn a_shard_that_arrived_unequal_stays_until_it_is_moved_by_name() {
    let mut replica = one_group(8);
    replica.join(&[(2, &[2])]).unwrap();
    let first = only(&replica);
    let unequal = vec![ShardId(5)];
    replica.apply(&Command::MigrationCancelled { mig: first.mig, unequal });
    let second = only(&replica);
    assert_eq!(second.shards, [4, 6, 7].map(|shard| (ShardId(shard), ShardEpoch(1))));
    assert_eq!(replica.master.routes().barred, [(ShardId(5), first.mig)].into());
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[1, 1, 1, 1, 2, 1, 2, 2]));
    // Other changes of the plan leave it where it is.
    replica.move_to(&[0], 2).unwrap();
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[2, 1, 1, 1, 2, 1, 2, 2]));
    // It is planned for group 2 already; naming it tries again.
    replica.move_to(&[5], 2).unwrap();
    assert!(replica.master.routes().barred.is_empty());
    assert_eq!(only(&replica).shards, [(ShardId(5), ShardEpoch(1))]);
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[2, 1, 1, 1, 2, 2, 2, 2]));
    replica.move_to(&[5], 2).unwrap_err();
}

#[test]
fn a_plan_without_groups_contradicts_nothing() {
    let mut replica = one_group(8);
    replica.join(&[(2, &[2])]).unwrap();
    replica.leave(&[1, 2]).unwrap();
    assert!(!only(&replica).cancel, "what is under way may end");
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[1, 1, 1, 1, 2, 2, 2, 2]));
}

#[test]
fn shards_that_nobody_has_yet_are_made_where_the_plan_was_and_then_moved() {
    let mut replica = Replica::new();
    replica.join(&[(1, &[1])]).unwrap();
    replica.join(&[(2, &[2])]).unwrap();
    replica.leave(&[1]).unwrap();
    assert_eq!(replica.master.pending().len(), 1);
    assert_eq!(migrations(&replica), [], "nobody owns anything");
    replica.create();
    assert_eq!(replica.owners(), shards(&[1; 8]));
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[2; 8]));
}

#[test]
fn a_group_several_configurations_behind_takes_the_short_way() {
    let mut replica = one_group(8);
    // Nobody hands anything over while the plan changes four times.
    replica.join(&[(2, &[2])]).unwrap();
    replica.join(&[(3, &[3])]).unwrap();
    replica.leave(&[2]).unwrap();
    replica.leave(&[3]).unwrap();
    for migration in migrations(&replica) {
        assert!(migration.cancel);
        replica.apply(&Command::MigrationCancelled { mig: migration.mig, unequal: Vec::new() });
    }
    assert_eq!(migrations(&replica), [], "all is where the newest plan wants it");
    assert_eq!(replica.owners(), shards(&[1; 8]));
}

/// What the two groups of a migration have come to. They may not say that they gave it up and
/// that they did it.
fn end_one(replica: &mut Replica, random: &mut Random) {
    let all = migrations(replica);
    let Some(migration) = random.pick(&all) else { return };
    let mig = migration.mig;
    let command = match (migration.cancel, random.chance(1, 4)) {
        (true, false) | (false, true) => Command::MigrationCancelled { mig, unequal: Vec::new() },
        (true, true) | (false, false) => Command::MigrationDone { mig },
    };
    replica.apply(&command);
}

/// What must hold at every moment.
fn check(replica: &Replica, epochs: &mut BTreeMap<ShardId, ShardEpoch>) {
    let mut moving = BTreeSet::new();
    let routes = replica.master.routes();
    for migration in replica.master.migrations().values() {
        assert!(migration.shards.len() <= MIGRATION_SHARDS_MAX && !migration.shards.is_empty());
        assert_ne!(migration.from, migration.to);
        for (shard, epoch) in &migration.shards {
            assert!(moving.insert(*shard), "{shard} is in two migrations");
            let owner = routes.owner(*shard).unwrap();
            assert_eq!((owner.group, owner.epoch), (migration.from, *epoch));
            let planned = replica.master.configuration().shards[usize::from(shard.0)];
            let contradicted = planned != migration.to && planned != GroupId(0);
            assert!(migration.cancel || !contradicted, "{migration:?}");
        }
    }
    for creation in replica.master.pending() {
        for shard in &creation.shards {
            assert!(moving.insert(*shard), "{shard} is made and moved at once");
            assert_eq!(routes.owner(*shard), None);
        }
    }
    for (number, planned) in (0..).zip(&replica.master.configuration().shards) {
        let shard = ShardId(number);
        let owner = routes.owner(shard);
        let done = planned.0 == 0 || owner.is_some_and(|owner| owner.group == *planned);
        assert!(done || moving.contains(&shard), "nobody works on {shard}");
        let epoch = owner.map_or(ShardEpoch(0), |owner| owner.epoch);
        let before = epochs.insert(shard, epoch).unwrap_or_default();
        assert!(before <= epoch && epoch.0 <= before.0 + 1, "{shard}: {before} to {epoch}");
    }
    let listed: Vec<CopyId> = routes.handoffs.iter().map(|handoff| handoff.mig).collect();
    let keys: Vec<CopyId> = replica.master.migrations().keys().copied().collect();
    assert_eq!(listed, keys);
}

fn random_change(replica: &mut Replica, random: &mut Random) {
    let groups: Vec<u64> = (1..=6).filter(|_| random.chance(1, 4)).collect();
    let shards: Vec<u16> =
        (0..replica.master.routes().shards()).filter(|_| random.chance(1, 6)).collect();
    // Refusals are answers like others; the state must bear whatever comes.
    let _answer = match random.below(3) {
        0 => {
            let nodes: Vec<Vec<u64>> = groups.iter().map(|group| vec![group % 3 + 1]).collect();
            let joined: Vec<(u64, &[u64])> =
                groups.iter().zip(&nodes).map(|(group, nodes)| (*group, &nodes[..])).collect();
            replica.join(&joined)
        }
        1 => replica.leave(&groups),
        _ => replica.move_to(&shards, 1 + random.below(6)),
    };
}

/// Any changes of the plan and any ends of hand-offs, and then some quiet.
fn run(seed: u64) {
    let mut random = Random::new(seed);
    let mut replica = Replica::empty();
    replica.apply(&found(CLUSTER, 1 + random.below(90) as u16)).body.unwrap();
    let mut epochs = BTreeMap::new();
    for _ in 0..120 {
        match random.below(8) {
            0..3 => random_change(&mut replica, &mut random),
            3..7 => end_one(&mut replica, &mut random),
            _ => {
                let pending = replica.master.pending().to_vec();
                if let Some(creation) = random.pick(&pending) {
                    replica.apply(&Command::ShardsCreated { copy: creation.copy });
                }
            }
        }
        check(&replica, &mut epochs);
    }
    let mut ends = 0;
    while !replica.master.migrations().is_empty() || !replica.master.pending().is_empty() {
        replica.create();
        check(&replica, &mut epochs);
        end_one(&mut replica, &mut random);
        check(&replica, &mut epochs);
        ends += 1;
        assert!(ends < 10_000, "it does not come to rest");
    }
    let owners = replica.owners();
    for (owner, planned) in owners.iter().zip(&replica.master.configuration().shards) {
        assert!(planned.0 == 0 || owner == planned, "{owner} has what is planned for {planned}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_owners_come_to_be_what_is_planned(seed: u64) {
        run(seed);
    }
}
