//! Bits rot on disks.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base::Random;

use crate::contents::Contents;
use crate::rot::{Flipped, Kind, flip};
use crate::{Flips, Subject, pause, seconds};

const KEYS: u64 = 6_000;
const VALUE_BYTES: usize = 300;
/// Without writes for so long, all is in the store.
const IDLE: Duration = Duration::from_millis(2_500);
/// Then this much of writes, of which the end is in the logs only.
const WRITE: Duration = Duration::from_millis(1_500);
const OPTIONS: [&str; 4] = ["--wal-segment-bytes", "4MiB", "--scrub-rate", "64MiB"];

/// Runs all kinds and seeds.
pub(crate) async fn run(base: u16, options: &Flips) -> Vec<String> {
    let mut failures = Vec::new();
    for kind in options.kind.map_or(Kind::MENDED.to_vec(), |only| vec![only]) {
        for seed in options.seed..options.seed + options.seeds {
            let failed = one(base, kind, seed).await;
            failures.extend(failed.into_iter().map(|why| format!("{kind:?}, seed {seed}: {why}")));
        }
    }
    failures
}

async fn one(base: u16, kind: Kind, seed: u64) -> Vec<String> {
    let nodes = kind.nodes();
    let name = format!("flips-{kind:?}-{seed}");
    let mut subject = Subject::start(&name, base, (nodes, nodes), &OPTIONS).await;
    let endpoints = subject.cluster.endpoints();
    let mut random = Random::new(seed);
    let victims = kind.victims(&mut random);
    // Those that are sound go on in half of the cases.
    let all_die = victims.len() == usize::from(nodes) || random.below(2) == 0;
    let dying = if all_die { (1..=u64::from(nodes)).collect() } else { victims.clone() };
    let contents = Contents::new(KEYS, VALUE_BYTES);
    let mut failures = Vec::from_iter(contents.fill(&endpoints).await.err());
    pause(IDLE).await;
    let stop = Cell::new(false);
    let overwritten = contents.overwrite(&endpoints, seed, &stop);
    let kill = async {
        pause(WRITE).await;
        dying.iter().for_each(|node| subject.cluster.kill(*node));
        stop.set(true);
    };
    let (written, ()) = futures::future::join(overwritten, kill).await;
    let lines: Vec<usize> =
        victims.iter().map(|v| subject.cluster.log(*v).lines().count()).collect();
    let mut flipped = Vec::new();
    for node in &victims {
        let home = subject.cluster.home(*node);
        flipped.push(flip(kind, &home, (*node, KEYS, contents.newest()), &mut random));
    }
    let begun = Instant::now();
    dying.iter().for_each(|node| subject.cluster.start(*node));
    let wrong = subject.check(&contents).await;
    let read = begun.elapsed();
    let whole = subject.until_whole().await;
    let again = subject.check(&contents).await;
    let Flipped { log, store } = flipped.iter().fold(Flipped::default(), |sum, each| Flipped {
        log: sum.log + each.log,
        store: sum.store + each.store,
    });
    println!(
        "{kind:?}, seed {seed}: {written} writes since; nodes {dying:?} killed, {log} bits of logs \
         and {store} of stores flipped at {victims:?}; all read after {}, whole after {}; {} wrong",
        seconds(read),
        whole.as_ref().map_or("-".to_owned(), |_| seconds(begun.elapsed())),
        wrong.len() + again.len()
    );
    for (node, before) in victims.iter().zip(lines) {
        say(*node, &subject.cluster.log(*node), before);
    }
    failures.extend(wrong);
    failures.extend(again);
    failures.extend(whole.err());
    failures.extend(subject.panics());
    subject.end(&failures);
    failures
}

/// What a node said of its disk and its replicas, each kind of line once.
fn say(node: u64, log: &str, before: usize) {
    let mut said: BTreeMap<String, (String, u64)> = BTreeMap::new();
    for line in log.lines().skip(before) {
        let text = line.split_once("Z ").map_or(line, |(_, text)| text).trim();
        let is_worth = text.starts_with("WARN") || text.starts_with("ERROR");
        let tells = ["repair", "mended", "damage", "quarantine", "copie", "copy", "is now that"];
        if is_worth || tells.iter().any(|word| text.contains(word)) {
            let kind: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
            said.entry(kind).or_insert_with(|| (text.to_owned(), 0)).1 += 1;
        }
    }
    for (text, times) in said.values() {
        let short: String = text.chars().take(230).collect();
        println!(
            "  node {node}: {short}{}",
            if *times > 1 { format!(" ({times}x)") } else { String::new() }
        );
    }
}
