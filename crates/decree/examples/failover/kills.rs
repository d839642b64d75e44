//! The leader dies.

use std::time::{Duration, Instant};

use crate::etcd::Etcd;
use crate::support::replicas::steady_leader;
use crate::support::writers::Writers;
use crate::{GROUP, Kills, SETTLE_TIME_MAX, Subject, ms, p50_and_max, pause};

const WRITERS: u64 = 8;
/// Load before a kill; a part of a heartbeat's interval is added each round.
const BEFORE: Duration = Duration::from_millis(1_500);
const STAGGER: Duration = Duration::from_millis(37);
/// How long the node stays dead.
const DEAD: Duration = Duration::from_secs(3);
/// If writes are not acknowledged again after this time, they will not be.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// What the median of the gaps must be.
const P50_MAX: Duration = Duration::from_millis(600);
const WRITES: usize = 50;

/// What was seen in one round.
struct Round {
    gap: Duration,
    longest: Duration,
    /// Until the node was back, and for how long no write was acknowledged meanwhile.
    back: Duration,
    gap_back: Duration,
}

/// Kills in turn, ours and etcd's.
pub(crate) async fn run(subject: &mut Subject, options: &Kills, base: u16) -> Vec<String> {
    let mut etcd = None;
    if let Some(binary) = &options.etcd {
        etcd = Some(Etcd::start(binary, subject.cluster.directory(), base));
    }
    let (mut failures, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    println!(
        "{:<8}{:>6}{:>12}{:>16}{:>12}{:>18}",
        "", "ROUND", "WRITE GAP", "LONGEST WRITE", "BACK AFTER", "GAP BEING BACK"
    );
    for round in 1..=options.rounds {
        match kill_ours(subject, round, &mut failures).await {
            Ok(seen) => ours.push(seen.print("decree", round)),
            Err(why) => failures.push(format!("round {round}: {why}")),
        }
        if let Some(etcd) = &mut etcd {
            match kill_etcd(etcd, round).await {
                Ok(seen) => theirs.push(seen.print("etcd", round)),
                Err(why) => println!("etcd, round {round}: {why}"),
            }
        }
    }
    let (p50, max) = p50_and_max(&ours);
    println!("decree: write gap p50 {}, max {} over {} kills", ms(p50), ms(max), ours.len());
    if etcd.is_some() {
        let (p50, max) = p50_and_max(&theirs);
        println!("etcd:   write gap p50 {}, max {} over {} kills", ms(p50), ms(max), theirs.len());
    }
    if p50 > P50_MAX {
        failures.push(format!("the median of the gaps is over {}", ms(P50_MAX)));
    }
    failures
}

impl Round {
    fn print(self, name: &str, round: usize) -> Duration {
        println!(
            "{name:<8}{round:>6}{:>12}{:>16}{:>12}{:>18}",
            ms(self.gap),
            ms(self.longest),
            ms(self.back),
            ms(self.gap_back)
        );
        self.gap
    }
}

fn before(round: usize) -> Duration {
    BEFORE + STAGGER * u32::try_from(round).unwrap_or_default()
}

async fn kill_ours(
    subject: &mut Subject,
    round: usize,
    failures: &mut Vec<String>,
) -> Result<Round, String> {
    let endpoints = subject.cluster.endpoints();
    let writers = subject.writers(WRITERS);
    pause(before(round)).await;
    let leader = steady_leader(&subject.control, &endpoints, GROUP, SETTLE_TIME_MAX).await?;
    let killed = Instant::now();
    subject.cluster.kill(leader);
    let (gap, longest) = gap_of(&writers, killed).await?;
    let started = Instant::now();
    subject.cluster.start(leader);
    let back = subject.until_whole().await?;
    // The lead may come back to where it belongs.
    pause(Duration::from_secs(2)).await;
    let gap_back = writers.gap_since(started);
    let (_, failed) = writers.stop();
    failures.extend(failed);
    Ok(Round { gap, longest, back, gap_back })
}

/// What fails at etcd is told and no more.
async fn kill_etcd(etcd: &mut Etcd, round: usize) -> Result<Round, String> {
    let leader = etcd.until_whole(SETTLE_TIME_MAX).await?;
    let writers = Writers::start(etcd.clients(WRITERS));
    pause(before(round)).await;
    let killed = Instant::now();
    etcd.kill(leader);
    let (gap, longest) = gap_of(&writers, killed).await?;
    let started = Instant::now();
    etcd.start_member(leader);
    etcd.until_whole(SETTLE_TIME_MAX).await?;
    let back = started.elapsed();
    pause(Duration::from_secs(2)).await;
    let gap_back = writers.gap_since(started);
    let (_, failed) = writers.stop();
    failed.iter().for_each(|why| println!("etcd: {why}"));
    Ok(Round { gap, longest, back, gap_back })
}

/// Waits while the node is dead: for how long no write was acknowledged, and the longest that one
/// client waited for one.
async fn gap_of(writers: &Writers, killed: Instant) -> Result<(Duration, Duration), String> {
    if !writers.go_on(WRITES, AGAIN_MAX).await {
        return Err(format!("no writes are acknowledged {} s after a kill", AGAIN_MAX.as_secs()));
    }
    pause(DEAD.saturating_sub(killed.elapsed())).await;
    Ok((writers.gap_since(killed), writers.longest_since(killed)))
}
