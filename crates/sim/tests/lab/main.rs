//! What courses on Paxos ask of the lab interface: scenarios P1 to P19. P8 counts the heap, in a
//! binary of its own (`tests/lab_heap.rs`).
#![allow(clippy::unwrap_used)]

mod agreement;
mod counts;
mod forgetting;
mod partitions;

use base::Micros;
use sim::lab::Lab;

/// With how many seeds each scenario is told.
const SEEDS: u64 = 20;

/// A lab of so many peers for each seed; which one it was is printed where a test fails.
fn labs(peers: usize) -> impl Iterator<Item = Lab> {
    (0..SEEDS).map(move |seed| {
        println!("seed {seed}");
        Lab::new(seed, peers)
    })
}

/// The instance is decided by exactly so many, now and after so long.
fn stays(lab: &mut Lab, seq: u64, count: usize, span: Micros) {
    assert_eq!(lab.deciders(seq), count, "who decides {seq}");
    lab.run(span);
    assert_eq!(lab.deciders(seq), count, "who decides {seq} later");
}
