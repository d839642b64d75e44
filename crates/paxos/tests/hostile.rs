//! Messages that no replica would send: none of them ends a replica or makes its log jump.
#![allow(clippy::unwrap_used)]

mod world;

use base::{Lsn, Micros, ReplicaId, Slot};
use paxos::{Ballot, HeartbeatRow, Message, Value};
use world::{USUAL, World};

fn leading_group(seed: u64) -> (World, ReplicaId) {
    let mut world = World::new(seed, 3, USUAL);
    world.run(200);
    let leader = world.leader().expect("a fresh group elects a leader");
    (world, leader)
}

fn others(world: &World, replica: ReplicaId) -> Vec<ReplicaId> {
    world.ids().into_iter().filter(|other| *other != replica).collect()
}

#[test]
fn f27_garbled_messages_neither_panic_nor_make_the_log_jump() {
    let (mut world, leader) = leading_group(19);
    for _ in 0..5 {
        world.propose(leader, 30).unwrap();
    }
    let mut samples = world.net.clone();
    for _ in 0..4 {
        world.run(1);
        samples.extend(world.net.clone());
    }
    world.confirm(leader).unwrap();
    samples.extend(world.net.clone());
    let target = others(&world, leader)[0];
    for round in 0..20_000u64 {
        let (from, _, bytes) = world.random.pick(&samples).cloned().unwrap();
        let mut garbled = bytes.to_vec();
        for _ in 0..=world.random.below(3) {
            let at = world.random.below(garbled.len() as u64) as usize;
            garbled[at] = world.random.next_u64() as u8;
        }
        let decoded = base::codec::decode::<Message>(&garbled.into());
        if let (Ok(message), true) = (decoded, from != target) {
            // A garbled value may pass for another: only one replica gets to see them.
            let paxos = world.replicas.get_mut(&target).unwrap().paxos.as_mut().unwrap();
            paxos.handle(world.now, from, message);
            if round % 64 == 0 {
                paxos.tick(world.now);
            }
            assert!(paxos.last_slot() <= Slot(20_000));
        }
    }
}

#[test]
fn f27_far_away_slots_and_rounds_are_ignored() {
    let (mut world, leader) = leading_group(20);
    let target = others(&world, leader)[0];
    let ballot = world.paxos(leader).ballot();
    for far in [1 << 20, u64::MAX - 1, u64::MAX, 0] {
        let accept = paxos::message::Accept {
            ballot,
            base: Slot(far),
            first: Slot(far),
            values: vec![Value::Noop; 3],
            chosen_upto: Slot(far),
            truncate_upto: Slot(0),
        };
        world.with(target, |paxos, now| paxos.handle(now, leader, Message::Accept(accept)));
        assert_eq!(world.paxos(target).last_slot(), Slot::ZERO);
    }
    let row = HeartbeatRow { have_upto: Slot(u64::MAX), ..HeartbeatRow::default() };
    world.with(target, |paxos, now| paxos.heard(now, leader, row));
    world.advance(Micros::from_millis(200).0);
    world.with(target, |paxos, now| paxos.tick(now));
}

#[test]
fn f27_an_answer_with_impossible_numbers_does_not_harm_the_leader() {
    let (mut world, leader) = leading_group(21);
    let from = others(&world, leader)[0];
    let ballot = world.paxos(leader).ballot();
    for far in [1 << 20, 1 << 63, u64::MAX - 1, u64::MAX] {
        let accepted = paxos::message::Accepted {
            ballot,
            acc_upto: Slot(far),
            sack: vec![paxos::message::SlotRange { first: Slot(0), last: Slot(far) }],
            have_upto: Slot(far),
            truncate_upto: Slot(far),
        };
        world.with(leader, |paxos, now| paxos.handle(now, from, Message::Accepted(accepted)));
        world.propose(leader, 10).unwrap();
        world.advance(Micros::from_millis(200).0);
        world.with(leader, |paxos, now| paxos.tick(now));
        let paxos = world.paxos(leader);
        assert!(paxos.chosen_upto() <= paxos.last_slot());
    }
}

/// Messages of every kind with numbers that no replica ever reaches.
fn impossible(ballot: Ballot, far: u64) -> Vec<Message> {
    use paxos::message::*;
    let slot = Slot(far);
    let runs = [(Slot(1), false), (slot, true)]
        .map(|(first, faulty)| Run { first, last: slot, ballot, faulty })
        .to_vec();
    let item = |slot| Item { slot, ballot, value: Value::Noop };
    let prepare = |probe, runs: &[Run]| {
        Message::Prepare(Prepare {
            ballot,
            probe,
            chosen_upto: slot,
            runs: runs.to_vec(),
            released: Some(ballot),
        })
    };
    let promise = |probe| {
        Message::Promise(Promise {
            ballot,
            probe,
            chosen_upto: slot,
            truncated_upto: slot,
            runs: runs.clone(),
            values: vec![item(slot)],
            all_upto: slot,
        })
    };
    let accept = |base, first| {
        Message::Accept(Accept {
            ballot,
            base,
            first,
            values: vec![Value::Noop; 2],
            chosen_upto: slot,
            truncate_upto: Slot::ZERO,
        })
    };
    let range = SlotRange { first: Slot::ZERO, last: slot };
    let chosen = |base, truncate_upto| {
        Message::Chosen(Chosen { ballot, base, chosen_upto: slot, truncate_upto })
    };
    vec![
        prepare(true, &runs),
        promise(true),
        promise(false),
        Message::Reject(Reject { ballot, promised: ballot, why: Why::Leader }),
        Message::Reject(Reject { ballot, promised: ballot, why: Why::Grant(Micros(far)) }),
        accept(Slot(1), slot),
        accept(slot, Slot(1)),
        accept(slot, slot),
        Message::Accepted(Accepted {
            ballot,
            acc_upto: slot,
            sack: vec![range],
            have_upto: slot,
            truncate_upto: slot,
        }),
        chosen(slot, Slot::ZERO),
        chosen(Slot(1), slot),
        Message::Fetch(Fetch { ballot, items: vec![ItemName { slot, ballot }] }),
        Message::Values(Values { ballot, items: vec![item(slot)] }),
        Message::CatchUpRequest(CatchUpRequest { chosen_upto: slot, bytes_max: u32::MAX }),
        Message::CatchUp(CatchUp {
            chosen_upto: slot,
            truncated_upto: slot,
            items: vec![item(slot)],
            epoch: 1,
            all_upto: slot,
        }),
        Message::TransferGo(TransferGo { ballot }),
        Message::Release(Release { ballot }),
        Message::Confirm(Confirm { ballot, round: far }),
        Message::ConfirmAck(ConfirmAck { ballot, round: far }),
        prepare(false, &runs),
    ]
}

#[test]
fn f27_impossible_numbers_end_no_replica_in_any_role() {
    for far in [0, 1 << 20, 1 << 62, 1 << 63, u64::MAX - 1, u64::MAX] {
        for role in 0..3 {
            let (mut world, leader) = leading_group(22);
            let rest = others(&world, leader);
            world.propose(leader, 10).unwrap();
            world.run(20);
            let target = if role == 0 { leader } else { rest[0] };
            if role == 2 {
                world.with(target, |paxos, now| paxos.campaign(now));
                world.sync_all(target);
            }
            let from = if role == 0 { rest[0] } else { leader };
            for ballot in [world.paxos(target).ballot(), world.paxos(leader).ballot()] {
                for message in impossible(ballot, far) {
                    // What it would say is not looked at: only that it goes on.
                    let replica = world.replicas.get_mut(&target).unwrap();
                    let paxos = replica.paxos.as_mut().unwrap();
                    paxos.handle(world.now, from, message);
                    world.now.mono = world.now.mono + Micros::from_millis(40);
                    paxos.tick(world.now);
                    let next = Lsn(replica.disk.last.0 + 1);
                    let output = paxos.take_output(next);
                    replica.disk.last = Lsn(replica.disk.last.0 + output.records.len() as u64);
                    let last = replica.disk.last;
                    paxos.persisted(world.now, last);
                    assert!(paxos.last_slot() < Slot(1 << 20), "the log does not jump");
                }
            }
        }
    }
}
