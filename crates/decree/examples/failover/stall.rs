//! The disk of the leader stalls: whatever its threads write or sync does not come back.

use std::time::{Duration, Instant};

use crate::support::held::Held;
use crate::support::replicas::{Replicas, steady_leader};
use crate::{GROUP, SETTLE_TIME_MAX, Stall, Subject, ms, p50_and_max, pause};

const WRITERS: u64 = 8;
/// How soon writes must be acknowledged again, and somebody else lead.
const REPLACED_MAX: Duration = Duration::from_secs(2);
const WRITES: usize = 50;
const BEFORE: Duration = Duration::from_millis(1_500);
/// Longer than any round.
const FOR_EVER: Duration = Duration::from_secs(600);

/// Stalls the disk of whoever leads, so many times.
pub(crate) async fn run(subject: &mut Subject, options: &Stall) -> Vec<String> {
    let (mut failures, mut times, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
    println!(
        "{:<7}{:>6}{:>16}{:>12}{:>16}{:>14}{:>12}",
        "ROUND",
        "NODE",
        "REPLACED AFTER",
        "WRITE GAP",
        "LONGEST WRITE",
        "NEXT LEADER",
        "BACK AFTER"
    );
    for round in 1..=options.rounds {
        match stall(subject, options, round, &mut failures).await {
            Ok((replaced, gap)) => {
                times.push(replaced);
                gaps.push(gap);
            }
            Err(why) => failures.push(format!("round {round}: {why}")),
        }
    }
    for (what, spans) in [("replaced after", &times), ("write gap", &gaps)] {
        let (p50, max) = p50_and_max(spans);
        println!("{what}: p50 {}, max {} over {} stalls", ms(p50), ms(max), spans.len());
        if max >= REPLACED_MAX {
            failures.push(format!("{what} {} where a disk stalls", ms(max)));
        }
    }
    failures
}

async fn stall(
    subject: &mut Subject,
    options: &Stall,
    round: usize,
    failures: &mut Vec<String>,
) -> Result<(Duration, Duration), String> {
    let endpoints = subject.cluster.endpoints();
    let writers = subject.writers(WRITERS);
    pause(BEFORE).await;
    let leader = steady_leader(&subject.control, &endpoints, GROUP, SETTLE_TIME_MAX).await?;
    let said = subject.cluster.log(leader).lines().count();
    let held = Held::hold(subject.cluster.process(leader), FOR_EVER)?;
    let begun = Instant::now();
    if !writers.go_on(WRITES, SETTLE_TIME_MAX).await {
        return Err("no writes are acknowledged while the disk stalls".to_owned());
    }
    let replaced = loop {
        let next = Replicas::take_but(&subject.control, &endpoints, leader).await.leader(GROUP);
        if next.is_some() || begun.elapsed() >= SETTLE_TIME_MAX {
            break begun.elapsed();
        }
        pause(Duration::from_millis(10)).await;
    };
    let (gap, longest) = (writers.gap_since(begun), writers.longest_since(begun));
    pause(Duration::from_secs(options.seconds).saturating_sub(begun.elapsed())).await;
    let next = Replicas::take(&subject.control, &endpoints).await.leader(GROUP);
    if next.is_none() || next == Some(leader) {
        failures.push(format!("round {round}: node {leader}, whose disk stalls, leads"));
    }
    let still_waits = held.let_go()?;
    if !still_waits {
        failures.push(format!("round {round}: strace does not hold the threads"));
    }
    let back = subject.until_whole().await?;
    pause(Duration::from_secs(2)).await;
    println!(
        "{round:<7}{leader:>6}{:>16}{:>12}{:>16}{:>14}{:>12}",
        ms(replaced),
        ms(gap),
        ms(longest),
        next.unwrap_or_default(),
        ms(back)
    );
    subject.cluster.log(leader).lines().skip(said).for_each(|line| println!("  {line}"));
    let (_, failed) = writers.stop();
    failures.extend(failed);
    Ok((replaced, gap))
}
