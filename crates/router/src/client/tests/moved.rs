//! Shards that change hands while they are asked for.

use super::*;

fn moved(epoch: u64, group: u64) -> Result<Answer, ErrorReply> {
    Err(ErrorReply::Moved { epoch: ShardEpoch(epoch), group: GroupId(group) })
}

#[test]
fn a_retry_at_the_new_owner_is_the_same_request() {
    let mut world = World::routed();
    let first = world.first(put(0));
    // Executed or not: the old owner's answer got lost.
    world.client.failed(world.now, first.call, first.attempt, Failure::Lost);
    let second = world.wake();
    world.answer(&second, moved(2, 2));
    let third = world.sent();
    assert!(matches!(third.to, Target::Node(NodeId(4..=6))), "{third:?}");
    assert_eq!(session(&third), session(&first), "the new owner knows the first answer by this");
    assert_eq!(third.request.body, first.request.body);
    assert_eq!(third.request.header.route_epoch, Some(ShardEpoch(2)));
    world.answer(&third, done());
    assert!(world.finished().1.is_ok());
}

#[test]
fn what_moved_in_the_middle_and_is_not_answered_ends_as_unknown() {
    let mut world = World::routed();
    let first = world.first(put(0));
    world.client.failed(world.now, first.call, first.attempt, Failure::Lost);
    let second = world.wake();
    world.answer(&second, moved(2, 2));
    let third = world.sent();
    // "Moved" says that the second was not executed, and nothing about the first.
    world.answer(&third, Err(ErrorReply::NotReady("being handed over".to_string())));
    let end = world.wait_for_end();
    assert!(matches!(end, Err(CallError::OutcomeUnknown(_))), "{end:?}");
}

#[test]
fn a_write_that_only_met_former_owners_was_not_executed() {
    let mut world = World::routed();
    let mut send = world.first(put(0));
    for epoch in 2..=3 {
        world.answer(&send, moved(epoch, if epoch % 2 == 0 { 2 } else { 1 }));
        send = world.sent();
    }
    world.client.failed(world.now, send.call, send.attempt, Failure::NotSent);
    let mut end = None;
    while end.is_none() {
        world.now.mono = world.client.next_wake().unwrap();
        world.client.tick(world.now);
        let output = world.client.take_output();
        for send in output.sends {
            world.client.failed(world.now, send.call, send.attempt, Failure::NotSent);
        }
        end = output.finished.into_iter().next();
    }
    assert!(matches!(end, Some((_, Err(CallError::Unavailable(_))))), "{end:?}");
}

#[test]
fn a_group_that_is_not_known_yet_is_found_through_any_node() {
    let mut world = World::routed();
    let send = world.first(put(0));
    world.answer(&send, moved(2, 9));
    let output = world.client.take_output();
    assert!(output.wants_routes, "they name the group's nodes");
    assert_eq!(output.sends[0].to, Target::Any);
    assert_eq!(output.sends[0].request.header.route_epoch, Some(ShardEpoch(2)));
}

#[test]
fn the_word_of_a_former_owner_does_not_send_the_client_back() {
    let mut world = World::routed();
    world.client.routes(world.now, routes(5, &[1, 2]));
    world.client.take_output();
    let send = world.first(put(0));
    // A replica that lags behind several hand-offs.
    world.answer(&send, moved(3, 2));
    world.silent();
    let again = world.wake();
    assert!(matches!(again.to, Target::Node(NodeId(1..=3))), "{again:?}");
    assert_eq!(again.request.header.route_epoch, Some(ShardEpoch(5)));
}

#[test]
fn a_shard_that_is_changing_hands_is_asked_again_after_a_pause() {
    let mut world = World::routed();
    let send = world.first(put(0));
    let frozen = ErrorReply::NotReady("shard 0 is being handed over".to_string());
    world.answer(&send, Err(frozen));
    let output = world.client.take_output();
    assert!(output.sends.is_empty() && output.finished.is_empty() && output.wants_routes);
    // The routes come while it waits.
    world.client.routes(world.now, routes(2, &[2, 2]));
    let again = world.wake();
    assert!(matches!(again.to, Target::Node(NodeId(4..=6))), "{again:?}");
    assert_eq!(session(&again), session(&send));
}

#[test]
fn other_shards_do_not_wait_for_one_that_moves() {
    let mut world = World::routed();
    let stuck = world.first(put(0));
    world.answer(&stuck, Err(ErrorReply::NotReady("being handed over".to_string())));
    world.silent();
    let other = world.first(put(1));
    assert_eq!(number(&other), (2, 2), "lowest open numbers are counted for each shard");
    world.answer(&other, done());
    assert_eq!(world.finished().0, other.call);
}
