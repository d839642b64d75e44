//! Disks are lost.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::contents::Contents;
use crate::support::predicted::Load;
use crate::{PREDICTORS, SETTLE_TIME_MAX, Subject, Wipes, pause, seconds};

const VALUE_BYTES: usize = 4_096;
/// How long a node stays away.
const AWAY: Duration = Duration::from_secs(1);

/// Wipes each node of three.
pub(crate) async fn run(base: u16, options: &Wipes) -> Vec<String> {
    let mut subject = Subject::start("wipes", base, (3, 3), &[]).await;
    let endpoints = subject.cluster.endpoints();
    let contents = Contents::new((options.mebibytes << 20) / VALUE_BYTES as u64, VALUE_BYTES);
    let mut failures = Vec::from_iter(contents.fill(&endpoints).await.err());
    let load = Load::start("predicted", endpoints, PREDICTORS);
    println!(
        "{:<6}{:>12}{:>12}{:>14}{:>22}{:>12}{:>16}",
        "NODE", "DATA", "CALLS AWAY", "WHOLE AFTER", "REPLICAS", "DATA THEN", "LONGEST CALL"
    );
    for node in (1..=3).cycle().take(3 * options.rounds) {
        pause(Duration::from_secs(2)).await;
        if let Err(why) = wipe(&mut subject, &load, node).await {
            failures.push(format!("node {node}: {why}"));
            break;
        }
    }
    let (calls, wrong) = load.stop();
    println!("{calls} predicted calls, {} wrong or failed", wrong.len());
    failures.extend(wrong);
    let wrong = subject.check(&contents).await;
    println!("{} keys read and compared, {} wrong", contents.keys(), wrong.len());
    failures.extend(wrong);
    failures.extend(subject.panics());
    subject.end(&failures);
    failures
}

async fn wipe(subject: &mut Subject, load: &Load, node: u64) -> Result<(), String> {
    let home = subject.cluster.home(node);
    let before = subject.replicas().await.on_node(node);
    let bytes = bytes_in(&home.join("engine"));
    load.take_longest();
    subject.cluster.kill(node);
    std::fs::remove_dir_all(&home).map_err(|error| error.to_string())?;
    let calls = load.calls();
    pause(AWAY).await;
    let away = load.calls() - calls;
    let begun = Instant::now();
    subject.cluster.start(node);
    let after = loop {
        subject.until_whole().await?;
        let after = subject.replicas().await.on_node(node);
        let new = |(group, replica): (_, &u64)| after.get(group).is_some_and(|now| now > replica);
        if after.len() == before.len() && before.iter().all(new) {
            break after;
        }
        if begun.elapsed() > SETTLE_TIME_MAX {
            return Err(format!("the replicas {before:?} are {after:?}, not made anew"));
        }
        pause(Duration::from_millis(50)).await;
    };
    let took = begun.elapsed();
    let numbers = |replicas: &std::collections::BTreeMap<_, u64>| {
        let numbers: Vec<String> = replicas.values().map(u64::to_string).collect();
        numbers.join(", ")
    };
    println!(
        "{node:<6}{:>8} MiB{away:>12}{:>14}{:>22}{:>8} MiB{:>16}",
        bytes >> 20,
        seconds(took),
        format!("{} for {}", numbers(&after), numbers(&before)),
        bytes_in(&home.join("engine")) >> 20,
        seconds(load.take_longest())
    );
    Ok(())
}

/// Bytes of all files below a directory.
fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(of) if of.is_dir() => bytes_in(&entry.path()),
        Ok(of) => of.len(),
        // It was removed meanwhile.
        Err(_) => 0,
    });
    bytes.sum()
}
