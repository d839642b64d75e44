//! Reads that need not see the newest value.

use std::collections::BTreeSet;

use base::Slot;

use super::*;
use crate::request::{Consistency, Seen};

fn shows(epoch: u64, slot: u64) -> ReplyHeader {
    let shard_epoch = Some(ShardEpoch(epoch));
    let shard = Some(ShardId(0));
    ReplyHeader { shard, shard_epoch, slot: Slot(slot), ..leader(1, 2) }
}

fn value() -> Result<Answer, ErrorReply> {
    Ok(Answer::Value(None))
}

fn first_as(world: &mut World, body: Body, reads: Consistency) -> Send {
    world.client.begin_with(world.now, body, None, reads).unwrap();
    world.sent()
}

/// The answer to an attempt, which ends its call.
fn answered(world: &mut World, send: &Send, header: ReplyHeader, body: Result<Answer, ErrorReply>) {
    world.answer_with(send, header, body);
    world.finished().1.unwrap();
}

fn after(send: &Send) -> Option<Seen> {
    match send.request.header.consistency {
        Consistency::Sequential(after) => after,
        other @ (Consistency::Linearizable | Consistency::Bounded(_)) => panic!("{other:?}"),
    }
}

fn seen(epoch: u64, slot: u64) -> Seen {
    Seen { epoch: ShardEpoch(epoch), slot: Slot(slot) }
}

#[test]
fn a_sequential_read_names_the_latest_that_any_answer_showed_of_its_shard() {
    let sequential = Consistency::Sequential(None);
    let mut world = World::routed();
    let send = first_as(&mut world, get(0), sequential);
    assert_eq!(after(&send), None);
    answered(&mut world, &send, shows(1, 7), value());
    let write = world.first(put(0));
    answered(&mut world, &write, shows(1, 9), done());
    let send = first_as(&mut world, get(0), sequential);
    assert_eq!(after(&send), Some(seen(1, 9)), "its own write");
    answered(&mut world, &send, shows(2, 3), value());
    let send = first_as(&mut world, get(0), sequential);
    assert_eq!(after(&send), Some(seen(2, 3)), "a later epoch counts its slots anew");
    // An old answer that comes late takes nothing back.
    answered(&mut world, &send, shows(1, 12), value());
    let send = first_as(&mut world, get(0), sequential);
    assert_eq!(after(&send), Some(seen(2, 3)));
    answered(&mut world, &send, shows(2, 3), value());
    let send = first_as(&mut world, get(1), sequential);
    assert_eq!(after(&send), None, "nothing is known of another shard");
    answered(&mut world, &send, ReplyHeader::default(), value());
    let send = first_as(&mut world, get(0), Consistency::Sequential(Some(seen(2, 8))));
    assert_eq!(after(&send), Some(seen(2, 8)), "what the caller names counts too");
}

#[test]
fn reads_of_older_values_go_to_all_members_and_writes_are_what_they_are() {
    let mut world = World::routed();
    let write = first_as(&mut world, put(0), Consistency::Bounded(100));
    assert_eq!(write.request.header.consistency, Consistency::Linearizable);
    answered(&mut world, &write, shows(1, 1), done());
    let mut asked = BTreeSet::new();
    for _ in 0..100 {
        let send = first_as(&mut world, get(0), Consistency::Bounded(100));
        assert_eq!(send.request.header.consistency, Consistency::Bounded(100));
        asked.insert(send.to);
        answered(&mut world, &send, shows(1, 1), value());
    }
    assert_eq!(asked.len(), 3, "{asked:?}");
    let send = world.first(get(0));
    assert_eq!(send.to, Target::Node(NodeId(2)), "the leader has the newest");
}

#[test]
fn before_the_shards_are_known_the_newest_value_is_asked_for() {
    let mut world = World::new();
    world.client.begin_with(world.now, get(0), None, Consistency::Sequential(None)).unwrap();
    let output = world.client.take_output();
    assert_eq!(output.sends[0].request.header.consistency, Consistency::Linearizable);
}
