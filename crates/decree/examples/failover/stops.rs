//! Every node in turn is stopped in good order.

use std::time::{Duration, Instant};

use crate::support::replicas::Replicas;
use crate::{GROUP, SETTLE_TIME_MAX, Subject, ms, pause};

const WRITERS: u64 = 8;
/// How long a stop may take.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);
/// How long the node stays away.
const AWAY: Duration = Duration::from_secs(2);
/// Load after a node is back, in which the lead may come back to it.
const AFTER: Duration = Duration::from_secs(3);

/// Stops and starts each node, so many times.
pub(crate) async fn run(subject: &mut Subject, rounds: usize) -> Vec<String> {
    let mut failures = Vec::new();
    let mut longest = Duration::ZERO;
    let writers = subject.writers(WRITERS);
    pause(AFTER).await;
    println!(
        "{:<6}{:<8}{:>12}{:>12}{:>16}{:>12}{:>18}",
        "NODE", "LED", "STOPPED IN", "WRITE GAP", "LONGEST WRITE", "BACK AFTER", "GAP BEING BACK"
    );
    for node in (1..=3).cycle().take(3 * rounds) {
        let seen = Replicas::take(&subject.control, &subject.cluster.endpoints()).await;
        let led = seen.leader(GROUP) == Some(node);
        let begun = Instant::now();
        let status = subject.cluster.stop(node, STOP_TIME_MAX).await;
        let took = begun.elapsed();
        match status {
            Some(status) if status.success() => {}
            Some(status) => failures.push(format!("node {node} ended with {status}")),
            None => failures.push(format!("node {node} did not stop")),
        }
        pause(AWAY).await;
        let (gap, slowest) = (writers.gap_since(begun), writers.longest_since(begun));
        let started = Instant::now();
        subject.cluster.kill(node);
        subject.cluster.start(node);
        let back = match subject.until_whole().await {
            Ok(back) => back,
            Err(why) => {
                failures.push(format!("node {node}: {why}"));
                SETTLE_TIME_MAX
            }
        };
        pause(AFTER).await;
        let gap_back = writers.gap_since(started);
        longest = longest.max(gap).max(gap_back);
        println!(
            "{node:<6}{:<8}{:>12}{:>12}{:>16}{:>12}{:>18}",
            if led { "yes" } else { "no" },
            ms(took),
            ms(gap),
            ms(slowest),
            ms(back),
            ms(gap_back)
        );
    }
    let (count, failed) = writers.stop();
    println!("{count} writes, {} failed; longest write gap {}", failed.len(), ms(longest));
    failures.extend(failed);
    failures
}
