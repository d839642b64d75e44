//! Done, Min and Max: P6, P7, P8b, P9.

use base::Micros;
use sim::lab::{Lab, Status};

use crate::labs;

fn min_is(lab: &Lab, peers: usize, min: u64) {
    for peer in 0..peers {
        assert_eq!(lab.min(peer), min, "Min of peer {peer}");
    }
}

/// All are done with everything up to this instance, and know it of each other.
fn forget(lab: &mut Lab, peers: usize, upto: u64) {
    for peer in 0..peers {
        lab.done(peer, upto);
    }
    for peer in 0..peers {
        lab.start(peer, upto + 1 + peer as u64, "z");
    }
    lab.run(Micros::from_secs(3));
    min_is(lab, peers, upto + 1);
}

#[test]
fn p6_what_all_are_done_with_is_forgotten() {
    for mut lab in labs(6) {
        min_is(&lab, 6, 0);
        for (peer, seq) in [(0, 0), (1, 1), (2, 2), (0, 6), (1, 7)] {
            lab.start(peer, seq, seq.to_string());
        }
        lab.wait(0, 6);
        min_is(&lab, 6, 0);
        lab.wait(1, 6);
        min_is(&lab, 6, 0);
        for peer in 0..6 {
            lab.done(peer, 0);
        }
        for peer in 1..6 {
            lab.done(peer, 1);
        }
        for peer in 0..6 {
            lab.start(peer, 8 + peer as u64, "xx");
        }
        let mut tries = 0;
        while (0..6).any(|peer| lab.min(peer) != 1) {
            tries += 1;
            assert!(tries <= 12, "Min is not 1 everywhere");
            lab.run(Micros::from_secs(1));
        }
        // The one that is done with less holds all of them back.
        lab.run(Micros::from_secs(5));
        min_is(&lab, 6, 1);
        assert_eq!((lab.status(3, 0), lab.deciders(1)), (Status::Forgotten, 6));
    }
}

#[test]
fn p7_much_is_forgotten_in_a_bad_network() {
    for mut lab in labs(3) {
        lab.set_unreliable(true);
        let mut seqs: Vec<u64> = (0..20).collect();
        lab.random().shuffle(&mut seqs);
        let mut started: Vec<(usize, u64)> = Vec::new();
        let mut done: [Option<u64>; 3] = [None; 3];
        let mut mins = [0; 3];
        for turn in 0..500 {
            if turn % 10 == 0
                && let Some(seq) = seqs.pop()
            {
                let (peer, value) = (lab.random().below(3) as usize, lab.random().next_u64());
                lab.start(peer, seq, value.to_string());
                started.push((peer, seq));
            }
            let (peer, seq) = (lab.random().below(3) as usize, lab.random().below(20));
            if let Status::Decided(_) = lab.status(peer, seq) {
                lab.done(peer, seq);
                done[peer] = done[peer].max(Some(seq));
            }
            lab.run(Micros::from_millis(10));
            let bound = done.iter().map(|done| done.map_or(0, |seq| seq + 1)).min().unwrap();
            for (peer, min) in mins.iter_mut().enumerate() {
                assert!((*min..=bound).contains(&lab.min(peer)), "Min of peer {peer}");
                *min = lab.min(peer);
            }
        }
        assert!(seqs.is_empty());
        lab.set_unreliable(false);
        lab.run(Micros::from_secs(2));
        let kept = (0..3).map(|peer| lab.min(peer)).max().unwrap();
        for seq in 0..20 {
            for peer in 0..3 {
                let forgotten = seq < lab.min(peer);
                assert_eq!(lab.status(peer, seq) == Status::Forgotten, forgotten, "{seq}, {peer}");
            }
        }
        for (peer, seq) in started.into_iter().filter(|(_, seq)| *seq >= kept) {
            assert!(matches!(lab.status(peer, seq), Status::Decided(_)), "{seq} at {peer}");
        }
        for peer in 0..3 {
            assert!(lab.peer(peer).instances() as u64 <= 20 - lab.min(peer), "peer {peer}");
        }
    }
}

#[test]
fn p8b_what_is_forgotten_stays_so() {
    for mut lab in labs(3) {
        for seq in 0..3 {
            lab.start(0, seq, "x");
            lab.wait(seq, 3);
        }
        forget(&mut lab, 3, 10);
        for seq in 0..3 {
            for peer in 0..3 {
                assert_eq!(lab.status(peer, seq), Status::Forgotten);
                let value = format!("{:020}", lab.random().below(1 << 60));
                lab.start(peer, seq, value);
            }
        }
        lab.run(Micros::from_secs(1));
        for seq in 0..3 {
            for peer in 0..3 {
                assert_eq!(lab.status(peer, seq), Status::Forgotten);
            }
        }
        min_is(&lab, 3, 11);
    }
}

#[test]
fn p8b_who_knows_less_learns_that_it_is_forgotten() {
    for mut lab in labs(3) {
        lab.partition(&[&[0, 1], &[2]]);
        lab.start(0, 0, "x");
        lab.wait(0, 2);
        lab.run(Micros::from_secs(1));
        lab.heal();
        // Peer 2 is done, and the others hear of it; of them it hears nothing.
        lab.done(2, 0);
        for (peer, seq) in [(0, 1), (1, 2)] {
            lab.start(peer, seq, "y");
            lab.wait(seq, 3);
        }
        lab.partition(&[&[0, 1], &[2]]);
        for (peer, seq) in [(0, 3), (1, 4)] {
            lab.done(peer, 0);
            lab.start(peer, seq, "z");
            lab.wait(seq, 2);
        }
        lab.run(Micros::from_secs(1));
        lab.heal();
        assert_eq!((lab.min(0), lab.min(1), lab.min(2)), (1, 1, 0));
        assert_eq!(lab.status(2, 0), Status::Pending);
        lab.start(2, 0, "again");
        lab.run(Micros::from_secs(1));
        min_is(&lab, 3, 1);
        assert_eq!(lab.status(2, 0), Status::Forgotten);
    }
}

#[test]
fn p9_max_stays_when_all_is_forgotten() {
    for mut lab in labs(3) {
        for seq in 0..=10 {
            lab.start(0, seq, "x");
            lab.wait(seq, 3);
        }
        for peer in 0..3 {
            lab.done(peer, 10);
        }
        for peer in 0..3 {
            lab.start(peer, 10, "z");
        }
        lab.run(Micros::from_secs(2));
        for peer in 0..3 {
            assert_eq!(lab.max(peer), Some(10));
        }
        forget(&mut lab, 3, 10);
        for peer in 0..3 {
            assert_eq!(lab.max(peer), Some(13));
            lab.done(peer, 13);
        }
        // What is forgotten is not started, and counts all the same.
        forget(&mut lab, 3, 13);
        lab.start(0, 5, "late");
        assert_eq!((lab.max(0), lab.status(0, 5)), (Some(16), Status::Forgotten));
    }
}
