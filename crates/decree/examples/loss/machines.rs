//! Other machines take over.

use std::time::{Duration, Instant};

use crate::contents::Contents;
use crate::support::predicted::Load;
use crate::{GROUP, Machines, PREDICTORS, SETTLE_TIME_MAX, Subject, pause, seconds};

const VALUE_BYTES: usize = 4_096;

/// Five nodes, of which two are spare: replaced are one that is dead and one that is up, and one is
/// drained.
pub(crate) async fn run(base: u16, options: &Machines) -> Vec<String> {
    let mut subject = Subject::start("machines", base, (5, 3), &[]).await;
    let endpoints = subject.cluster.endpoints();
    let contents = Contents::new((options.mebibytes << 20) / VALUE_BYTES as u64, VALUE_BYTES);
    let mut failures = Vec::from_iter(contents.fill(&endpoints).await.err());
    let load = Load::start("predicted", endpoints, PREDICTORS);
    println!("{:<34}{:>12}{:>16}{:>22}", "STEP", "TOOK", "LONGEST CALL", "GROUP 1 IS ON");
    if let Err(why) = steps(&mut subject, &load).await {
        failures.push(why);
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

async fn steps(subject: &mut Subject, load: &Load) -> Result<(), String> {
    pause(Duration::from_secs(2)).await;
    subject.cluster.kill(3);
    step(subject, load, "node replace 3 4, which is dead", &["replace", "3", "4"], 3).await?;
    let begun = Instant::now();
    subject.cluster.start(3);
    while !subject.replicas().await.nodes.contains_key(&3)
        || !subject.replicas().await.on_node(3).is_empty()
    {
        if begun.elapsed() > SETTLE_TIME_MAX {
            return Err("node 3 comes back and keeps its replicas".to_owned());
        }
        pause(Duration::from_millis(50)).await;
    }
    println!("{:<34}{:>12}", "it comes back and holds nothing", seconds(begun.elapsed()));
    step(subject, load, "node replace 1 3, which is up", &["replace", "1", "3"], 1).await?;
    step(subject, load, "node drain 2", &["drain", "2"], 2).await
}

async fn step(
    subject: &Subject,
    load: &Load,
    name: &str,
    arguments: &[&str],
    leaves: u64,
) -> Result<(), String> {
    load.take_longest();
    let begun = Instant::now();
    let mut command = subject.cluster.command(&["node"]);
    let output = command.args(arguments).args(["--watch", "--timeout", "120s"]).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    subject.until_whole().await?;
    let took = begun.elapsed();
    let on: Vec<u64> = subject.replicas().await.of_group(GROUP).map(|(node, _)| node).collect();
    println!(
        "{name:<34}{:>12}{:>16}{:>22}",
        seconds(took),
        seconds(load.take_longest()),
        format!("{on:?}")
    );
    if on.contains(&leaves) || on.len() != subject.replicas {
        return Err(format!("{name}: the replicas are on {on:?}"));
    }
    pause(Duration::from_secs(1)).await;
    Ok(())
}
