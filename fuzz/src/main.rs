//! libFuzzer on one target of `decree-fuzz`, the one that `DECREE_FUZZ` names. `fuzz/run` builds
//! and starts it.
#![no_main]

use std::sync::OnceLock;

use base::Random;
use fuzz::heap::Counting;
use fuzz::mutate::mutate;
use fuzz::targets::{TARGETS, Target};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("DECREE_FUZZ").unwrap_or_default();
        Target::named(&name).unwrap_or_else(|| {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            eprintln!("DECREE_FUZZ={name:?} names no target: {}", names.join(" "));
            std::process::exit(2);
        })
    })
}

fuzz_target!(
    init: {
        // What is made once, whatever the input, does not count for the first one.
        (target().run)(&[]);
    },
    |input: &[u8]| target().check(input)
);

// Half of the changes know how inputs are made up, half are those of libFuzzer, which know what the
// program compares bytes with.
fuzz_mutator!(|data: &mut [u8], size: usize, size_max: usize, seed: u32| {
    let mut random = Random::new(u64::from(seed));
    if random.chance(1, 2) {
        return fuzzer_mutate(data, size, size_max);
    }
    let changed = mutate(target().layout, &data[..size], &data[..size], size_max, &mut random);
    data[..changed.len()].copy_from_slice(&changed);
    changed.len()
});
