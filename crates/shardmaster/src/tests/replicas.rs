//! Which replicas are replaced, by whom and in which order (docs/paxos.md 11.8, 11.9).

use router::MemberChange;

use super::*;

type Place = (ReplicaId, NodeId, DiskId);

fn place(replica: u64, node: u64, disk: u128) -> Place {
    (ReplicaId(replica), NodeId(node), DiskId(disk))
}

fn change(epoch: u32, joins: &[Place], leaves: &[u64]) -> MemberChange {
    let leaves = leaves.iter().copied().map(ReplicaId).collect();
    MemberChange { epoch, joins: joins.to_vec(), leaves }
}

impl Replica {
    /// Group 1 on the nodes 1 to 3, as the replicas 4 to 6, and two more nodes, 4 and 5.
    fn with_spares() -> Replica {
        let mut replica = Replica::new();
        replica.join(&[(1, &[1, 2, 3])]).unwrap();
        replica.create();
        for node in [4, 5] {
            replica.register(node, u128::from(node), &format!("host{node}:1")).unwrap();
        }
        replica
    }

    /// The change of a group's members that is under way.
    fn change(&self, group: u64) -> Option<MemberChange> {
        self.master.routes().changes.get(&GroupId(group)).cloned()
    }

    fn members(&self, group: u64) -> Vec<Place> {
        self.master.routes().groups[&GroupId(group)].members.clone()
    }

    /// The group's leader tells that the change has come about.
    fn comes_about(&mut self, group: u64) {
        let MemberChange { epoch, joins, leaves } = self.change(group).unwrap();
        let mut members = self.members(group);
        members.retain(|member| !leaves.contains(&member.0));
        members.extend(joins);
        self.members_are(group, epoch + 1, &members).unwrap();
    }

    fn members_are(
        &mut self,
        group: u64,
        epoch: u32,
        members: &[Place],
    ) -> Result<MasterAnswer, ErrorReply> {
        let (group, members) = (GroupId(group), members.to_vec());
        self.write(MasterOp::MembersAre { group, epoch, members })
    }

    fn lost(&mut self, group: u64, replica: u64) {
        let (group, replica) = (GroupId(group), ReplicaId(replica));
        self.write(MasterOp::ReplicaLost { group, replica }).unwrap();
    }

    /// A node has another disk.
    fn registers_anew(&mut self, node: u64, disk: u128, starts: u64) -> MasterOp {
        let node = node_info(node, disk, &format!("host{node}:1"));
        let known = self.master.routes().nodes.values().find(|known| known.peer == node.peer);
        let replaces = known.map(|known| known.disk);
        MasterOp::Register { node, starts: starts << 33, replaces }
    }
}

#[test]
fn a_drained_node_gives_its_replicas_to_those_that_have_least() {
    let mut replica = Replica::with_spares();
    replica.write(MasterOp::DrainNode { node: NodeId(2) }).unwrap();
    assert_eq!(replica.change(0), Some(change(1, &[place(7, 4, 4)], &[2])));
    assert_eq!(replica.change(1), Some(change(1, &[place(8, 5, 5)], &[5])));
    replica.comes_about(1);
    assert_eq!(replica.change(1), None);
    assert_eq!(replica.members(1), [place(4, 1, 1), place(6, 3, 3), place(8, 5, 5)]);
    assert_eq!(replica.master.routes().epoch(GroupId(1)), 2);
    assert!(replica.master.routes().drained.contains(&NodeId(2)));
    replica.comes_about(0);
    let again = replica.refused(MasterOp::DrainNode { node: NodeId(2) });
    assert!(again.contains("is drained already"), "{again}");
    // It may come back in another's place.
    replica.write(MasterOp::ReplaceNode { old: NodeId(1), new: NodeId(2) }).unwrap();
    assert!(!replica.master.routes().drained.contains(&NodeId(2)));
    assert_eq!(replica.change(0), Some(change(2, &[place(9, 2, 2)], &[1])));
}

/// Two of three are left: a third comes before one of the two goes.
#[test]
fn a_group_that_lacks_a_member_is_made_whole_before_one_is_moved() {
    let mut replica = Replica::with_spares();
    replica.lost(1, 5);
    replica.comes_about(1);
    assert_eq!(replica.change(1), Some(change(2, &[place(7, 2, 2)], &[])));
    replica.write(MasterOp::ReplaceNode { old: NodeId(3), new: NodeId(5) }).unwrap();
    // The new third is lost before it is a member, and the next one does not replace another.
    replica.lost(1, 7);
    assert_eq!(replica.change(1), Some(change(2, &[place(9, 2, 2)], &[])));
    replica.comes_about(1);
    assert_eq!(replica.change(1), Some(change(3, &[place(10, 5, 5)], &[6])));
}

#[test]
fn a_group_of_one_moves_to_another_node() {
    let mut replica = Replica::with_spares();
    replica.join(&[(2, &[3])]).unwrap();
    replica.write(MasterOp::ReplaceNode { old: NodeId(3), new: NodeId(5) }).unwrap();
    assert_eq!(replica.change(2), Some(change(1, &[place(10, 5, 5)], &[7])));
}

#[test]
fn a_replica_that_votes_no_more_leaves_before_another_comes_to_its_disk() {
    let mut replica = Replica::with_spares();
    replica.lost(1, 5);
    assert_eq!(replica.change(1), Some(change(1, &[], &[5])));
    let before = replica.master.routes().clone();
    replica.lost(1, 5);
    replica.lost(1, 99);
    assert_eq!(
        replica.master.routes(),
        &before,
        "told twice, or of a stranger, it changes nothing"
    );
    replica.comes_about(1);
    assert_eq!(replica.change(1), Some(change(2, &[place(7, 2, 2)], &[])));
    replica.comes_about(1);
    assert_eq!(replica.change(1), None);
    assert_eq!(replica.members(1), [place(4, 1, 1), place(6, 3, 3), place(7, 2, 2)]);
}

#[test]
fn a_learner_that_is_lost_is_replaced_under_another_number() {
    let mut replica = Replica::with_spares();
    replica.write(MasterOp::ReplaceNode { old: NodeId(2), new: NodeId(4) }).unwrap();
    assert_eq!(replica.change(1), Some(change(1, &[place(8, 4, 4)], &[5])));
    replica.lost(1, 8);
    assert_eq!(replica.change(1), Some(change(1, &[place(9, 4, 4)], &[5])));
    // The first one came to vote all the same: then it is a member that is lost.
    let members = [place(4, 1, 1), place(6, 3, 3), place(8, 4, 4)];
    replica.members_are(1, 2, &members).unwrap();
    assert_eq!(replica.change(1), None);
    replica.lost(1, 8);
    assert_eq!(replica.change(1), Some(change(2, &[], &[8])));
}

/// A disk may be lost before it was registered; the message that would have registered it may come
/// when the next one is there.
#[test]
fn f14_only_who_names_the_known_disk_and_counts_on_from_it_comes_in_its_place() {
    let mut replica = Replica::with_spares();
    let before = replica.master.routes().clone();
    let register = |disk, starts: u64, replaces: Option<u128>| MasterOp::Register {
        node: node_info(2, disk, "host2:1"),
        starts: starts << 33,
        replaces: replaces.map(DiskId),
    };
    let told = |disk, known, starts: u64, leaps: u64| {
        let starts = (starts << 33) + (leaps << 32);
        Ok(MasterAnswer::Replaces { disk: DiskId(disk), known: DiskId(known), starts })
    };
    assert_eq!(replica.write(register(20, 7, None)), told(20, 2, 0, 1));
    assert_eq!(replica.write(register(21, 7, Some(3))), told(21, 2, 0, 2));
    assert_eq!(replica.write(register(21, 0, Some(2))), told(21, 2, 0, 2));
    assert_eq!(replica.master.routes(), &before);
    let registered = Ok(MasterAnswer::Registered(NodeId(2)));
    assert_eq!(replica.write(register(21, 7, Some(2))), registered);
    let after = replica.master.routes().clone();
    assert_eq!(replica.write(register(20, 9, Some(2))), told(20, 21, 7, 1), "it comes late");
    assert_eq!(
        replica.write(register(22, 7, Some(21))),
        told(22, 21, 7, 2),
        "its count is too low"
    );
    assert_eq!(replica.master.routes(), &after);
    assert_eq!(replica.write(register(21, 7, None)), registered, "a known disk is who it is");
    assert_eq!(replica.write(register(21, 1, None)), told(21, 21, 7, 3), "it has lost count");
    assert_eq!(replica.write(register(21, 1, None)), told(21, 21, 7, 3), "asked again");
    assert_eq!(replica.write(register(22, 9, Some(21))), told(22, 21, 7, 4), "another is told");
    assert_eq!(replica.write(register(22, 10, Some(21))), registered);
}

/// Whoever was told from where to count speaks under that count, registered or not.
#[test]
fn f14_no_two_disks_of_a_node_are_told_the_same_count() {
    let mut replica = Replica::with_spares();
    let mut register = |disk, starts, replaces: Option<u128>| {
        let node = node_info(2, disk, "host2:1");
        let op = MasterOp::Register { node, starts, replaces: replaces.map(DiskId) };
        match replica.write(op).unwrap() {
            MasterAnswer::Replaces { starts, .. } => Some(starts),
            MasterAnswer::Registered(_) => None,
            MasterAnswer::Configuration(_) | MasterAnswer::Routes(_) => panic!("another answer"),
        }
    };
    let first = register(20, 1, None).unwrap();
    assert_eq!(register(20, 1, None), Some(first), "asked again");
    // It is lost after some starts that nobody registered.
    let second = register(21, 1, None).unwrap();
    assert!(second > first + 1_000_000, "{second} {first}");
    // So does what the known disk said before.
    assert_eq!(register(2, 9, None), None);
    assert_eq!(register(21, 1, None), Some(second));
    let late = register(20, first + 1, Some(2)).unwrap();
    assert!(late > second, "what the first one said comes late");
    let again = register(21, second + 1, Some(2)).unwrap();
    assert!(again > late);
    assert_eq!(register(21, again + 1, Some(2)), None);
    assert!(register(22, 1, None).unwrap() > again + 1_000_000);
}

#[test]
fn the_replicas_of_a_lost_disk_are_replaced_on_the_new_one() {
    let mut replica = Replica::with_spares();
    let anew = replica.registers_anew(2, 20, 7);
    assert_eq!(replica.write(anew), Ok(MasterAnswer::Registered(NodeId(2))));
    assert_eq!(replica.change(0), Some(change(1, &[place(7, 2, 20)], &[2])));
    assert_eq!(replica.change(1), Some(change(1, &[place(8, 2, 20)], &[5])));
    // That disk is lost too before it was of any use.
    let anew = replica.registers_anew(2, 21, 9);
    replica.write(anew).unwrap();
    assert_eq!(replica.change(0), Some(change(1, &[place(9, 2, 21)], &[2])));
    assert_eq!(replica.change(1), Some(change(1, &[place(10, 2, 21)], &[5])));
    // The one that it had first comes back: it is no node of this cluster.
    let back = replica.registers_anew(2, 2, 11);
    assert!(replica.refused(back).contains("this data directory was lost"));
}

#[test]
fn a_group_without_its_majority_is_left_alone() {
    let mut replica = Replica::with_spares();
    for (node, disk) in [(2, 20), (3, 30)] {
        let anew = replica.registers_anew(node, disk, 5);
        replica.write(anew).unwrap();
    }
    // The first loss began a change, and nobody is left to agree on it.
    assert_eq!(replica.change(1), Some(change(1, &[place(8, 2, 20)], &[5])));
    let text = replica.refused(MasterOp::ReplaceNode { old: NodeId(2), new: NodeId(4) });
    assert!(text.contains("lost the majority of its replicas: of 3 members 1 are left"), "{text}");
    let text = replica.refused(MasterOp::DrainNode { node: NodeId(1) });
    assert!(text.contains("lost the majority"), "{text}");
}

#[test]
fn what_a_leader_tells_of_members_late_or_wrongly_changes_nothing() {
    let mut replica = Replica::with_spares();
    replica.lost(1, 5);
    replica.comes_about(1);
    let before = replica.master.routes().clone();
    // An epoch that is over.
    replica.members_are(1, 1, &[place(4, 1, 1), place(5, 2, 2), place(6, 3, 3)]).unwrap();
    replica.members_are(1, 2, &[place(4, 1, 1)]).unwrap();
    // A replica that was never numbered, no members, and a group that there is not.
    for (group, members) in [(1, vec![place(1_000, 1, 1)]), (1, vec![]), (9, vec![place(4, 1, 1)])]
    {
        assert!(replica.members_are(group, 9, &members).is_err());
    }
    assert_eq!(replica.master.routes(), &before);
}

#[test]
fn replacements_that_make_no_sense_say_why() {
    let mut replica = Replica::with_spares();
    let replace = |old, new| MasterOp::ReplaceNode { old: NodeId(old), new: NodeId(new) };
    for (op, part) in [
        (replace(9, 4), "node 9 is not known; known are 1, 2, 3, 4, 5"),
        (replace(4, 9), "node 9 is not known"),
        (replace(2, 2), "cannot replace itself"),
        (replace(1, 2), "node 2 holds a replica of group 0 already, as node 1 does"),
        (replace(4, 5), "node 4 holds no replica"),
        (MasterOp::DrainNode { node: NodeId(9) }, "node 9 is not known"),
    ] {
        let text = replica.refused(op.clone());
        assert!(text.contains(part), "{op:?}: {text}");
    }
    let mut replica = Replica::new();
    let text = replica.refused(MasterOp::DrainNode { node: NodeId(1) });
    assert!(text.contains("start another node first"), "{text}");
}
