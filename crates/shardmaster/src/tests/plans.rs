//! Join, Leave and Move: what they make of the plan, and what they refuse.

use super::*;

/// Shards 0 to 3 at group 1, 4 to 7 at group 2, handed out.
fn two_groups() -> Replica {
    let mut replica = Replica::new();
    replica.join(&[(1, &[1, 2, 3]), (2, &[1, 2, 3])]).unwrap();
    replica.hand_over();
    replica
}

fn has(text: &str, part: &str) {
    assert!(text.contains(part), "{text}");
}

#[test]
fn a_further_join_takes_a_share_from_each() {
    let mut replica = two_groups();
    replica.join(&[(3, &[2, 3])]).unwrap();
    let made = replica.query(None);
    assert_eq!(made.number, ConfigNumber(2));
    assert_eq!(made.shards, shards(&[1, 1, 1, 3, 2, 2, 2, 3]));
    assert_eq!(made.groups.len(), 3);
    assert_eq!(made.groups[&GroupId(3)], [2, 3].map(NodeId));
    assert_eq!(replica.owners(), shards(&[1, 1, 1, 1, 2, 2, 2, 2]), "nothing moved yet");
    replica.hand_over();
    assert_eq!(replica.owners(), made.shards);
}

#[test]
fn groups_that_leave_give_their_shards_to_those_that_stay() {
    let mut replica = two_groups();
    replica.join(&[(3, &[1]), (4, &[2])]).unwrap();
    replica.hand_over();
    replica.leave(&[1, 4]).unwrap();
    let made = replica.query(None);
    assert_eq!(made.shards.iter().filter(|group| group.0 == 2).count(), 4);
    assert_eq!(made.shards.iter().filter(|group| group.0 == 3).count(), 4);
    replica.hand_over();
    assert_eq!(replica.owners(), made.shards);
    // Their replicas stay.
    assert!(replica.master.routes().groups.contains_key(&GroupId(1)));
}

#[test]
fn who_leaves_comes_back_with_the_replicas_it_had() {
    let mut replica = two_groups();
    let before = replica.master.routes().groups.clone();
    replica.leave(&[1]).unwrap();
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[2; 8]));
    has(&replica.refusal(&[(1, &[1, 2])]), "group 1 was a member before, on the nodes 1, 2, 3");
    has(&replica.refusal(&[(1, &[1, 2, 3, 9])]), "node 9 is not known");
    replica.join(&[(1, &[3, 1, 2])]).unwrap();
    assert_eq!(replica.master.routes().groups, before);
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[2, 2, 2, 2, 1, 1, 1, 1]));
    let epoch = replica.master.routes().owner(ShardId(4)).unwrap().epoch;
    assert_eq!(epoch, ShardEpoch(2), "from group 2, which had it first");
    let epoch = replica.master.routes().owner(ShardId(0)).unwrap().epoch;
    assert_eq!(epoch, ShardEpoch(2), "group 2 had it from group 1");
}

#[test]
fn when_all_leave_the_data_stays_until_somebody_joins() {
    let mut replica = two_groups();
    replica.leave(&[1]).unwrap();
    replica.hand_over();
    replica.leave(&[2]).unwrap();
    assert_eq!(replica.query(None).shards, shards(&[0; 8]));
    assert_eq!(replica.query(None).groups.len(), 0);
    assert!(replica.master.migrations().is_empty());
    assert_eq!(replica.owners(), shards(&[2; 8]), "it serves on");
    has(&replica.refused(leave(&[2])), "no group is a member");
    // The next to join takes all of it over.
    replica.join(&[(3, &[1, 2])]).unwrap();
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[3; 8]));
    assert!(replica.master.pending().is_empty(), "nothing is made anew: that would lose data");
}

#[test]
fn groups_that_left_together_find_their_shards_again() {
    let mut replica = two_groups();
    replica.leave(&[1, 2]).unwrap();
    assert_eq!(replica.owners(), shards(&[1, 1, 1, 1, 2, 2, 2, 2]));
    replica.join(&[(1, &[1, 2, 3]), (2, &[1, 2, 3]), (3, &[1])]).unwrap();
    assert_eq!(replica.query(None).shards, shards(&[1, 1, 1, 3, 2, 2, 2, 3]));
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[1, 1, 1, 3, 2, 2, 2, 3]));
}

#[test]
fn a_move_moves_what_it_names_and_nothing_else() {
    let mut replica = two_groups();
    replica.move_to(&[0, 2, 5], 2).unwrap();
    let made = replica.query(None);
    assert_eq!(made.shards, shards(&[2, 1, 2, 1, 2, 2, 2, 2]), "no matter how uneven");
    replica.hand_over();
    assert_eq!(replica.owners(), made.shards);
    // A later join divides anew.
    replica.join(&[(3, &[1])]).unwrap();
    let counts = [1, 2, 3].map(|group| replica.query(None).shards_of(GroupId(group)).len());
    assert_eq!(counts, [3, 3, 2]);
}

#[test]
fn a_swap_is_one_step() {
    let mut replica = two_groups();
    replica.write(move_to(&[(&[1], 2), (&[6], 1)])).unwrap();
    assert_eq!(replica.query(None).number, ConfigNumber(2));
    let directions: Vec<(u64, u64, Vec<ShardId>)> = replica
        .master
        .routes()
        .handoffs
        .iter()
        .map(|handoff| (handoff.from.0, handoff.to.0, handoff.shards.clone()))
        .collect();
    assert_eq!(directions, [(1, 2, vec![ShardId(1)]), (2, 1, vec![ShardId(6)])]);
    replica.hand_over();
    assert_eq!(replica.owners(), shards(&[1, 2, 1, 1, 2, 2, 1, 2]));
}

#[test]
fn leaves_that_make_no_sense_say_why() {
    let mut replica = two_groups();
    replica.leave(&[1]).unwrap();
    let cases: [(&[u64], &str); 6] = [
        (&[], "at least one group"),
        (&[0], "group 0 is the shard master itself"),
        (&[u64::MAX], "group numbers end"),
        (&[2, 2], "group 2 is named twice"),
        (&[2, 9], "group 9 is not known; members are 2"),
        (&[1], "group 1 has left"),
    ];
    for (groups, part) in cases {
        has(&replica.refused(leave(groups)), part);
    }
    assert_eq!(replica.query(None).groups.len(), 1, "not even the member of `2 9` left");
}

#[test]
fn moves_that_make_no_sense_say_why() {
    let mut replica = two_groups();
    replica.join(&[(3, &[1])]).unwrap();
    replica.leave(&[3]).unwrap();
    let cases: [(Moves<'_>, &str); 9] = [
        (&[], "at least one shard"),
        (&[(&[], 1)], "at least one shard"),
        (&[(&[8], 1)], "there is no shard 8: this cluster has the shards 0 to 7"),
        (&[(&[u16::MAX], 1)], "there is no shard 65535"),
        (&[(&[1], 2), (&[1], 1)], "shard 1 is named twice"),
        (&[(&[1], 0)], "group 0 is the shard master itself"),
        (&[(&[1], 9)], "group 9 is not known; members are 1, 2"),
        (&[(&[1], 3)], "group 3 has left"),
        (&[(&[0, 1], 1)], "all 2 shards are planned for these groups already"),
    ];
    for (moves, part) in cases {
        has(&replica.refused(move_to(moves)), part);
    }
    has(&replica.refused(move_to(&[(&[0], 1)])), "shard 0 is planned for group 1 already");
    // What changes something is done, though part of it is done already.
    assert!(replica.move_to(&[0, 4], 1).is_ok());
}

#[test]
fn a_joined_member_does_not_join_again() {
    let mut replica = two_groups();
    has(&replica.refusal(&[(3, &[1]), (2, &[1, 2, 3])]), "group 2 is a member already");
    assert_eq!(replica.query(None).groups.len(), 2);
    assert!(!replica.master.routes().groups.contains_key(&GroupId(3)));
}

#[test]
fn the_number_of_groups_is_bounded() {
    let mut replica = Replica::new();
    let nodes = vec![NodeId(1)];
    let new = |group| NewGroup { group: GroupId(group), nodes: nodes.clone() };
    let join = |from: u64, upto: u64| MasterOp::Join { groups: (from..=upto).map(new).collect() };
    has(&replica.refused(join(1, 1_025)), "at most 1024 groups");
    for first in [1, 1_025, 2_049] {
        replica.write(join(first, first + 1_023)).unwrap();
    }
    // Group 0 is one of them.
    let full = replica.write(join(3_073, 4_096));
    assert!(matches!(full, Err(ErrorReply::ResourceExhausted(_))), "{full:?}");
    replica.write(join(3_073, 4_095)).unwrap();
    replica.leave(&[7]).unwrap();
    replica.write(join(7, 7)).unwrap();
}

#[test]
fn repeated_requests_have_their_first_answers() {
    let mut replica = two_groups();
    let ops = [join(&[(3, &[1])]), move_to(&[(&[0], 2)]), leave(&[3])];
    for (number, op) in (1..).zip(ops) {
        let command = Command::Client { session: session(9, number, 1_000), op };
        let first = replica.apply(&command);
        let state = replica.master.routes().clone();
        assert!(first.body.is_ok(), "{first:?}");
        assert_eq!(replica.apply(&command).body, first.body);
        assert_eq!(replica.master.routes(), &state);
    }
}
