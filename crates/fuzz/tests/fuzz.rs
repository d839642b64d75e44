//! Inputs that were kept, and changes of them that follow from fixed seeds, put to every target.
//!
//! ```text
//! cargo test -p decree-fuzz --test fuzz                           # a few seconds
//! DECREE_FUZZ_ROUNDS=20 cargo test -p decree-fuzz --test fuzz     # 20 times as many
//! DECREE_FUZZ_SEED=7 ...                                          # others
//! DECREE_INPUT=node:path cargo test -p decree-fuzz --test fuzz replay -- --nocapture
//! DECREE_RECORD=1 cargo test -p decree-fuzz --test fuzz corpus    # makes the kept inputs anew
//! ```
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use base::Random;
use fuzz::corpus;
use fuzz::heap::Counting;
use fuzz::mutate::mutate;
use fuzz::targets::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Longest input that is tried.
const INPUT_BYTES_MAX: usize = 16 << 10;
/// Kept inputs that the recorder makes begin with this.
const MADE: &str = "made-";

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// The kept inputs of a target, by name.
fn kept(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(corpus::folder(target))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{target} has no kept inputs");
    found
}

fn try_input(target: &Target, input: &[u8], origin: &str) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target.check(input))) {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = folder.join(format!("{}-{:08x}", target.name, crc32fast::hash(input)));
        fs::write(&path, input).unwrap();
        eprintln!(
            "{}: {origin} fails; replay it: DECREE_INPUT={}:{} \
             cargo test -p decree-fuzz --test fuzz replay -- --nocapture",
            target.name,
            target.name,
            path.display()
        );
        std::panic::resume_unwind(panic);
    }
}

fn run(name: &str) {
    let target = Target::named(name).unwrap();
    let inputs = kept(name);
    // What is made once, whatever the input, is not to count for the first one.
    let _ = catch_unwind(AssertUnwindSafe(|| (target.run)(&inputs[0].1)));
    for (name, input) in &inputs {
        try_input(target, input, name);
    }
    let seed = number("DECREE_FUZZ_SEED", 1);
    let mut random = Random::new(seed ^ u64::from(crc32fast::hash(name.as_bytes())) << 32);
    for round in 0..target.rounds * number("DECREE_FUZZ_ROUNDS", 1) {
        let (from, input) = random.pick(&inputs).unwrap();
        let (_, other) = random.pick(&inputs).unwrap();
        let changed = mutate(target.layout, input, other, INPUT_BYTES_MAX, &mut random);
        try_input(target, &changed, &format!("round {round} of seed {seed}, from {from},"));
    }
}

macro_rules! targets {
    ($($test:ident: $name:literal;)*) => {
        $(#[test] fn $test() { run($name); })*

        #[test]
        fn every_target_is_put_to_the_test() {
            let tested = [$($name),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(tested.to_vec(), all);
        }
    };
}

targets! {
    transport: "transport";
    frame: "frame";
    message: "message";
    record: "record";
    paxos: "paxos";
    kv: "kv";
    master: "master";
    node: "node";
    open: "open";
    store: "store";
    disk: "disk";
    engine: "engine";
    grpc_request: "grpc-request";
    grpc_reply: "grpc-reply";
}

#[test]
fn replay() {
    let Ok(named) = std::env::var("DECREE_INPUT") else { return };
    let (target, path) = named.split_once(':').unwrap();
    Target::named(target).unwrap().check(&fs::read(path).unwrap());
}

/// What the recorder makes is what is kept; with `DECREE_RECORD=1` it is written.
#[test]
fn f27_the_corpus_is_made_from_what_happens() {
    let made: BTreeMap<(&str, String), Vec<u8>> = corpus::made()
        .into_iter()
        .map(|(target, name, bytes)| ((target, format!("{MADE}{name}")), bytes))
        .collect();
    for ((target, name), bytes) in &made {
        assert!(bytes.len() <= INPUT_BYTES_MAX, "{target}/{name} has {} bytes", bytes.len());
        if std::env::var_os("DECREE_RECORD").is_some() {
            fs::create_dir_all(corpus::folder(target)).unwrap();
            fs::write(corpus::folder(target).join(name), bytes).unwrap();
        }
    }
    for target in TARGETS {
        assert!(made.keys().any(|(of, _)| *of == target.name), "nothing for {}", target.name);
    }
}
