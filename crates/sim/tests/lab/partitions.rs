//! Partitions: P15 to P19. A minority never decides.

use base::Micros;
use sim::lab::{Lab, Status};

use crate::{SEEDS, labs, stays};

/// P15: five peers in three blocks of which none is a majority, and one that was started.
fn parted(seed: u64) -> Lab {
    let mut lab = Lab::new(seed, 5);
    lab.partition(&[&[0, 2], &[1, 3], &[4]]);
    lab.start(1, 0, "111");
    stays(&mut lab, 0, 0, Micros::from_secs(3));
    lab
}

#[test]
fn p15_no_decision_without_a_majority() {
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut lab = parted(seed);
        // Nor if everybody tries, for long.
        for peer in 0..5 {
            lab.start(peer, 0, peer.to_string());
        }
        stays(&mut lab, 0, 0, Micros::from_secs(30));
    }
}

#[test]
fn p16_the_majority_decides_and_all_agree_after_it_healed() {
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut lab = parted(seed);
        lab.partition(&[&[0], &[1, 2, 3], &[4]]);
        lab.run(Micros::from_secs(2));
        lab.wait(0, 3);
        stays(&mut lab, 0, 3, Micros::from_secs(3));
        lab.start(0, 0, "1000");
        lab.start(4, 0, "1004");
        stays(&mut lab, 0, 3, Micros::from_secs(3));
        lab.heal();
        lab.wait(0, 5);
        assert!(lab.decisions(0).all(|value| value == "111"));
    }
}

#[test]
fn p17_one_peer_changes_sides() {
    for mut lab in labs(5) {
        for seq in 0..20 {
            lab.partition(&[&[0, 1, 2], &[3, 4]]);
            lab.start(0, seq, (10 * seq).to_string());
            lab.start(3, seq, (10 * seq + 1).to_string());
            lab.wait(seq, 3);
            stays(&mut lab, seq, 3, Micros::from_secs(1));
            lab.partition(&[&[0, 1], &[2, 3, 4]]);
            lab.wait(seq, 5);
            assert!(lab.decisions(seq).all(|value| value == (10 * seq).to_string()));
        }
    }
}

#[test]
fn p18_one_peer_changes_sides_in_a_bad_network() {
    for mut lab in labs(5) {
        for seq in 0..20 {
            lab.set_unreliable(true);
            lab.partition(&[&[0, 1, 2], &[3, 4]]);
            for peer in 0..5 {
                lab.start(peer, seq, (10 * seq + peer as u64).to_string());
            }
            lab.wait(seq, 3);
            stays(&mut lab, seq, 3, Micros::from_secs(1));
            for peer in 3..5 {
                assert_eq!(lab.status(peer, seq), Status::Pending, "in a minority");
            }
            lab.partition(&[&[0, 1], &[2, 3, 4]]);
            lab.set_unreliable(false);
            lab.wait(seq, 5);
        }
    }
}

/// Every peer is in one of three blocks, drawn at random.
fn part_at_random(lab: &mut Lab) {
    let mut blocks: [Vec<usize>; 3] = Default::default();
    for peer in 0..5 {
        let block = lab.random().below(3) as usize;
        blocks[block].push(peer);
    }
    lab.partition(&[&blocks[0], &blocks[1], &blocks[2]]);
}

#[test]
fn p19_many_requests_while_partitions_change() {
    for mut lab in labs(5) {
        lab.set_unreliable(true);
        let end = lab.time() + Micros::from_secs(20);
        let mut next = [lab.time(); 3];
        let mut seqs = 0;
        while lab.time() < end {
            if lab.time() >= next[0] {
                part_at_random(&mut lab);
                next[0] = lab.time() + Micros::from_millis(lab.random().below(200));
            }
            if lab.time() >= next[1] {
                let undecided = (0..seqs).filter(|seq| lab.deciders(*seq) < 5).count();
                if undecided < 10 {
                    for peer in 0..5 {
                        let value = lab.random().below(10).to_string();
                        lab.start(peer, seqs, value);
                    }
                    seqs += 1;
                }
                next[1] = lab.time() + Micros::from_millis(lab.random().below(300));
            }
            if lab.time() >= next[2] {
                agree(&lab, seqs);
                next[2] = lab.time() + Micros::from_millis(lab.random().below(300));
            }
            lab.run(Micros::from_millis(1));
        }
        let before = (0..seqs).filter(|seq| lab.deciders(*seq) > 0).count();
        println!("{seqs} instances, {before} decided somewhere before it healed");
        lab.set_unreliable(false);
        lab.heal();
        lab.run(Micros::from_secs(5));
        agree(&lab, seqs);
        for seq in 0..seqs {
            assert!(lab.deciders(seq) >= 3, "{} decide {seq}", lab.deciders(seq));
        }
        assert!(seqs >= 10 && before > 0);
    }
}

/// No instance has two values.
fn agree(lab: &Lab, seqs: u64) {
    for seq in 0..seqs {
        let mut values = lab.decisions(seq);
        if let Some(first) = values.next() {
            assert!(values.all(|value| value == first), "two values in {seq}");
        }
    }
}
