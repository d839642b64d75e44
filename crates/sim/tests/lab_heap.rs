//! P8: what all peers are done with leaves memory. In a binary of its own, whose heap nobody else
//! uses.

mod live;

use base::Micros;
use sim::lab::{Lab, Status};

const VALUE_BYTES: usize = 1_000_000;

#[test]
fn p8_what_is_forgotten_leaves_memory() {
    for seed in 0..5 {
        let start = live::bytes();
        let mut lab = Lab::new(seed, 3);
        lab.start(0, 0, "x");
        lab.wait(0, 3);
        let before = live::bytes() - start;
        for seq in 1..=10_u64 {
            lab.start(0, seq, vec![seq as u8; VALUE_BYTES]);
            lab.wait(seq, 3);
        }
        lab.run(Micros::from_secs(1));
        let full = live::bytes() - start;
        // The peers share no memory: each holds ten values, and holds each once.
        assert!((30 * VALUE_BYTES..40 * VALUE_BYTES).contains(&full), "{full} bytes");
        for peer in 0..3 {
            lab.done(peer, 10);
        }
        for peer in 0..3 {
            lab.start(peer, 11 + peer as u64, "z");
        }
        lab.run(Micros::from_secs(3));
        for peer in 0..3 {
            assert_eq!(lab.min(peer), 11, "Min of peer {peer}");
            assert_eq!(lab.status(peer, 1), Status::Forgotten);
            assert_eq!(lab.peer(peer).instances(), 3);
        }
        let after = live::bytes() - start;
        println!("seed {seed}: {before} bytes, {full} with ten values, {after} without");
        assert!(after <= full / 2, "{after} of {full} bytes are left");
        assert!(after < VALUE_BYTES, "{after} bytes are left");
    }
}
