//! From started processes to a cluster that serves: the same steps that a person takes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use base::{ConfigNumber, GroupId};
use client::Client;

use super::layout::Layout;
use crate::admin;
use crate::ask::failure_of;
use crate::failure::Failure;
use crate::plan;

/// Creates the cluster if it is not there yet, and waits until every shard is served.
pub(crate) async fn form(client: &Client, layout: &Layout) -> Result<(), Failure> {
    let deadline = Instant::now() + FORMATION_TIME_MAX;
    for endpoint in layout.endpoints() {
        until(deadline, &format!("the node at {endpoint} does not answer"), async || {
            Ok(client.status(&endpoint).await.is_ok())
        })
        .await?;
    }
    admin::create(client, &layout.masters(), layout.shards, Some(deadline)).await?;
    // Whichever node is asked later, it is to know all others: each has routes of its own.
    for endpoint in layout.endpoints() {
        until(deadline, "the nodes are not all registered", async || {
            let Ok(routes) = client.routes_of(&endpoint).await else { return Ok(false) };
            let registered = routes.nodes.values().filter(|node| node.has_registered()).count();
            Ok(registered >= layout.ports.len())
        })
        .await?;
    }
    let newest = client.query(None).await.map_err(failure_of)?;
    // Without groups later it is because they left.
    if newest.value.number == ConfigNumber(0) {
        client.join(plan::new_groups(&layout.groups())).await.map_err(failure_of)?;
    }
    until(deadline, "not every shard is served", async || served(client, layout).await).await
}

/// Whether every shard has an owner, and every group with shards and the master's a leader.
async fn served(client: &Client, layout: &Layout) -> Result<bool, Failure> {
    let Ok(routes) = client.routes().await else { return Ok(false) };
    if routes.owners.is_empty() || routes.owners.iter().any(Option::is_none) {
        return Ok(false);
    }
    let mut needed: BTreeSet<GroupId> = routes.owners.iter().flatten().map(|o| o.group).collect();
    needed.insert(GroupId::MASTER);
    let mut led = BTreeSet::new();
    for endpoint in layout.endpoints() {
        let Ok(status) = client.status(&endpoint).await else { return Ok(false) };
        led.extend(status.groups.iter().filter(|group| group.leading).map(|group| group.group));
    }
    Ok(needed.is_subset(&led))
}

async fn until(
    deadline: Instant,
    missing: &str,
    condition: impl AsyncFn() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    while !condition().await? {
        if Instant::now() > deadline {
            return Err(Failure::error(
                "start",
                format!(
                    "the cluster did not start within {} s: {missing}; the nodes' logs are the files \
                 node.log in their data directories",
                    FORMATION_TIME_MAX.as_secs()
                ),
            ));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

const FORMATION_TIME_MAX: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
