//! Agreement in one block: P1 to P5, P12 to P14, and what every run has to be.

use base::Micros;
use bytes::Bytes;
use sim::lab::{Lab, Status};

use crate::{labs, stays};

/// Decided by all, with this value.
fn decided(lab: &Lab, seq: u64, peers: usize, value: &'static str) {
    let all: Vec<Bytes> = lab.decisions(seq).collect();
    assert_eq!(all, vec![Bytes::from(value); peers]);
}

#[test]
fn p1_one_proposer() {
    for mut lab in labs(3) {
        assert_eq!((lab.max(0), lab.min(0)), (None, 0));
        lab.start(0, 0, "hello");
        assert_eq!(lab.status(0, 0), Status::Pending, "start returns before anybody answers");
        lab.wait(0, 3);
        decided(&lab, 0, 3, "hello");
    }
}

#[test]
fn p2_many_proposers_of_the_same_value() {
    for mut lab in labs(3) {
        for peer in 0..3 {
            lab.start(peer, 1, "77");
        }
        lab.wait(1, 3);
        decided(&lab, 1, 3, "77");
    }
}

#[test]
fn p3_many_proposers_of_different_values() {
    for mut lab in labs(3) {
        for peer in 0..3 {
            lab.start(peer, 2, (100 + peer).to_string());
        }
        lab.wait(2, 3);
        let mut values: Vec<Bytes> = lab.decisions(2).collect();
        values.dedup();
        assert_eq!(values.len(), 1);
        // Who starts again, with whatever value, changes nothing.
        lab.start(1, 2, "another");
        lab.run(Micros::from_secs(1));
        assert!(lab.decisions(2).eq(vec![values[0].clone(); 3]));
    }
}

#[test]
fn p4_instances_out_of_order() {
    for mut lab in labs(3) {
        lab.start(0, 7, "700");
        lab.start(0, 6, "600");
        lab.start(1, 5, "500");
        lab.wait(7, 3);
        lab.start(0, 4, "400");
        lab.start(1, 3, "300");
        for seq in [6, 5, 4, 3] {
            lab.wait(seq, 3);
        }
        decided(&lab, 3, 3, "300");
        assert_eq!(lab.max(0), Some(7));
        assert_eq!(lab.deciders(2), 0, "nobody started it");
    }
}

#[test]
fn p5_deaf_peers_learn_by_proposing() {
    for mut lab in labs(5) {
        lab.start(0, 0, "hello");
        lab.wait(0, 5);
        lab.set_deaf(0, true);
        lab.set_deaf(4, true);
        lab.start(1, 1, "goodbye");
        lab.wait(1, 3);
        stays(&mut lab, 1, 3, Micros::from_secs(1));
        lab.start(0, 1, "xxx");
        lab.wait(1, 4);
        stays(&mut lab, 1, 4, Micros::from_secs(1));
        assert_eq!(lab.status(4, 1), Status::Pending);
        lab.start(4, 1, "yyy");
        lab.wait(1, 5);
        decided(&lab, 1, 5, "goodbye");
    }
}

/// 50 instances, each started by everybody with a value of his own; at most so many are active.
fn many_instances(lab: &mut Lab, active: u64) {
    for seq in 0..50_u64 {
        if let Some(earlier) = seq.checked_sub(active) {
            lab.wait(earlier, 3);
        }
        for peer in 0..3 {
            lab.start(peer, seq, (10 * seq + peer as u64).to_string());
        }
    }
    for seq in 0..50 {
        lab.wait(seq, 3);
    }
}

#[test]
fn p12_many_instances() {
    for mut lab in labs(3) {
        many_instances(&mut lab, 5);
    }
}

#[test]
fn p13_a_minority_proposal_is_ignored() {
    for seed in 0..crate::SEEDS {
        println!("seed {seed}");
        let mut lab = Lab::without_peers(seed, 5);
        for peer in 1..4 {
            lab.create(peer);
        }
        lab.start(1, 1, "111");
        lab.wait(1, 3);
        stays(&mut lab, 1, 3, Micros::from_secs(1));
        lab.create(0);
        assert_eq!(lab.status(0, 1), Status::Pending);
        lab.start(0, 1, "222");
        lab.wait(1, 4);
        decided(&lab, 1, 4, "111");
    }
}

#[test]
fn p14_many_instances_in_a_bad_network() {
    for mut lab in labs(3) {
        lab.set_unreliable(true);
        many_instances(&mut lab, 3);
    }
}

#[test]
fn a_peer_alone_decides_at_once() {
    let mut lab = Lab::new(1, 1);
    lab.start(0, 3, "alone");
    assert_eq!(lab.status(0, 3), Status::Decided("alone".into()));
    lab.done(0, 3);
    assert_eq!((lab.status(0, 3), lab.min(0), lab.max(0)), (Status::Forgotten, 4, Some(3)));
    assert_eq!(lab.calls(), 0);
}

#[test]
fn one_seed_gives_one_run() {
    let run = |seed| {
        let mut lab = Lab::new(seed, 3);
        lab.set_unreliable(true);
        many_instances(&mut lab, 3);
        let values: Vec<Bytes> = (0..50).flat_map(|seq| lab.decisions(seq).next()).collect();
        (lab.time(), lab.calls(), values)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
