//! How many calls agreement takes: P10 and P11. A call is a message that asks for something and
//! arrives.

use base::Micros;
use sim::lab::Lab;

use crate::labs;

#[test]
fn p10_calls_of_one_proposer() {
    for mut lab in labs(3) {
        for seq in 0..5 {
            lab.start(0, seq, "x".repeat(100));
            lab.wait(seq, 3);
        }
        lab.run(Micros::from_secs(2));
        println!("{} calls", lab.calls());
        assert!(lab.calls() <= 45, "{} calls", lab.calls());
        // Two others are asked in each phase and told the decision. Seldom the chance that says how
        // long a replica waits says not at all, and they are also probed.
        assert!((5 * 6..=5 * 6 + 2).contains(&lab.calls()), "{} calls", lab.calls());
    }
}

/// All start each instance, with values of their own and at most so long after each other; returns
/// the calls.
fn compete(lab: &mut Lab, apart: Micros) -> u64 {
    for seq in 0..5 {
        let mut peers = [0, 1, 2];
        lab.random().shuffle(&mut peers);
        for peer in peers {
            lab.start(peer, seq, format!("{seq} from {peer}, ").repeat(20));
            let gap = lab.random().below(apart.0 + 1);
            lab.run(Micros(gap));
        }
        lab.wait(seq, 3);
    }
    lab.run(Micros::from_secs(2));
    lab.calls()
}

#[test]
fn p11_calls_of_proposers_that_compete() {
    for mut lab in labs(3) {
        let calls = compete(&mut lab, Micros(0));
        println!("{calls} calls");
        assert!(calls <= 225, "{calls} calls");
        // All are asked by all, and the highest ballot wins; where a lower one had its promises just
        // before, its Accepts are refused.
        assert!((5 * (6 + 2 + 2)..=5 * (6 + 2 + 2 + 2)).contains(&calls), "{calls} calls");
    }
}

#[test]
fn p11_calls_of_proposers_that_cross() {
    let mut most = 0;
    for mut lab in labs(3) {
        let calls = compete(&mut lab, Micros::from_millis(1));
        assert!(calls <= 225, "{calls} calls");
        most = most.max(calls);
    }
    println!("at most {most} calls");
}
