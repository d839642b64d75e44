//! What no node would ask: it must not get into a log, where it would end every replica.

use base::limits::COUNT_MAX;
use base::{Address, CopyId, GroupId, Micros, ShardEpoch, ShardId};
use bytes::Bytes;
use replica_group::turn::Input;

use crate::world::World;

/// A frame of another node of the cluster that asks for shards to be created.
fn create_shards(world: &World, shards: Vec<(ShardId, ShardEpoch)>) -> Bytes {
    let cluster = world.hosts[0].node().status().cluster.unwrap();
    let reply_to = Address::new("node9");
    let message = (11_u32, (reply_to, GroupId(1), CopyId(u64::MAX), shards));
    let message = base::codec::encode(&message);
    let mut frame = vec![0xDC, 1];
    frame.extend_from_slice(&((cluster.0 >> 64) as u64).to_be_bytes());
    frame.extend_from_slice(&9_u64.to_be_bytes());
    frame.extend_from_slice(&1_u64.to_be_bytes());
    frame.extend_from_slice(&7_u128.to_be_bytes());
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    Bytes::from(frame)
}

#[test]
fn f27_shards_that_no_log_can_hold_are_not_created() {
    let mut world = World::cluster(1);
    let many = vec![(ShardId(1), ShardEpoch(1)); 70_000];
    let far = vec![(ShardId(1), ShardEpoch(COUNT_MAX + 1))];
    let behind = vec![(ShardId(u16::MAX), ShardEpoch(1))];
    for shards in [many, far, behind] {
        let applied = world.hosts[0].node().paxos_of(GroupId(1)).unwrap().last_slot();
        let frame = create_shards(&world, shards);
        world.give(0, Input::Frame(frame));
        // The world itself sees to it that no node ends.
        world.run(Micros::from_millis(100));
        let now = world.hosts[0].node().paxos_of(GroupId(1)).unwrap().last_slot();
        assert_eq!(now, applied, "it does not come to the log");
    }
    let frame = create_shards(&world, vec![(ShardId(1), ShardEpoch(1))]);
    let before = world.hosts[0].node().paxos_of(GroupId(1)).unwrap().last_slot();
    world.give(0, Input::Frame(frame));
    world.run(Micros::from_millis(100));
    let after = world.hosts[0].node().paxos_of(GroupId(1)).unwrap().last_slot();
    assert!(after > before, "one that can be logged does");
}
