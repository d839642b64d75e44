//! The log against a model of what it must not lose, over thousands of crashes.

mod common;

use common::{Model, options};

fn run(seeds: std::ops::Range<u64>, steps: u64, segment_pages: u64, in_flight_max: usize) {
    let (mut crashes, mut let_go, mut dropped) = (0, 0, 0);
    for seed in seeds {
        println!("seed {seed}, segments of {segment_pages} pages, {in_flight_max} in flight");
        let mut options = options(segment_pages);
        options.in_flight_max = in_flight_max;
        let mut model = Model::new(seed, options);
        for _ in 0..steps {
            model.step();
        }
        model.restart();
        crashes += model.crashes;
        let_go += model.let_go;
        dropped += model.dropped;
    }
    println!("{crashes} crashes, {let_go} records let go, {dropped} tails dropped");
    assert!(crashes > 100 && let_go > 1_000 && dropped > 20, "the test must reach these");
}

#[test]
fn i25_f02_nothing_durable_is_lost_and_nothing_comes_back() {
    run(0..150, 1_500, 16, 2);
}

#[test]
fn i25_f02_nothing_durable_is_lost_in_smallest_segments() {
    run(1_000..1_100, 1_500, 4, 2);
}

#[test]
fn i25_f02_nothing_durable_is_lost_with_many_blocks_in_flight() {
    run(2_000..2_100, 1_500, 8, 6);
}
