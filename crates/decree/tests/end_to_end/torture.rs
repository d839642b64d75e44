//! A cluster under every class of faults, each once and short: what `--example torture` does for as
//! long as one likes.

use std::time::Duration;

use crate::harness::{Options, run};

#[test]
fn every_class_of_faults_comes_and_all_is_well_after() {
    let outcome = run(&Options {
        seed: 1,
        nodes: 5,
        base_port: 24_000,
        // One round, as none begins later.
        time: Duration::from_secs(1),
        storm: Duration::ZERO,
        every_class: true,
        pause: Duration::from_millis(400),
        at_a_time: 3,
        haste: 4,
        clients: (3, 3, 1),
        client_pause: Duration::from_millis(40),
        patience: Duration::from_secs(240),
        sabotage: false,
        verbose: true,
    });
    assert_eq!(outcome.failures, [""; 0], "kept: {:?}", outcome.kept);
    assert_eq!(outcome.faults.len() + outcome.absent.len(), outcome.classes, "{outcome:?}");
    // Full, slow and stalled disks need rights that who runs tests may not have.
    assert!(outcome.absent.len() <= 3, "{:?}", outcome.absent);
    assert!(outcome.acknowledged > 200, "{outcome:?}");
}

#[test]
fn writes_that_are_lost_or_executed_twice_are_found() {
    let outcome = run(&Options {
        seed: 2,
        nodes: 5,
        base_port: 24_500,
        time: Duration::from_secs(1),
        storm: Duration::from_secs(1),
        every_class: false,
        pause: Duration::from_secs(1),
        at_a_time: 0,
        haste: 4,
        clients: (3, 3, 1),
        client_pause: Duration::from_millis(40),
        patience: Duration::from_secs(120),
        sabotage: true,
        verbose: true,
    });
    assert_eq!(outcome.faults.len(), 0, "{outcome:?}");
    let found = |what: &str| outcome.failures.iter().any(|failure| failure.contains(what));
    assert!(found("shared-1-"), "lost writes are not found: {:?}", outcome.failures);
    assert!(found("chain-"), "second executions are not found: {:?}", outcome.failures);
    let kept = outcome.kept.expect("what was wrong is kept");
    std::fs::remove_dir_all(kept).expect("it can be removed");
}
