//! The command that creates the cluster.

use std::time::{Duration, Instant};

use base::{Address, ClusterId, Micros};
use router::{Answer, Body, ClusterAnswer, ClusterOp, ErrorReply, Header, Request};
use serde_json::json;

use crate::arguments::InitArguments;
use crate::ask::{Asker, check_address, failure_of};
use crate::failure::Failure;
use crate::output::{print_json, print_text};

/// `decree init`: creates the cluster, and waits for its masters as long as it takes.
pub(crate) async fn init(asker: &Asker, arguments: InitArguments) -> Result<(), Failure> {
    for master in &arguments.masters {
        check_address(master)?;
    }
    let deadline = asker.timeout.map(|timeout| Instant::now() + timeout);
    let cluster = create(&asker.client, &arguments.masters, arguments.shards, deadline).await?;
    if asker.json {
        return print_json(&json!({
            "cluster": cluster.to_string(), "shards": arguments.shards
        }));
    }
    print_text(&format!("cluster {cluster} with {} shards", arguments.shards))
}

/// Creates the cluster. What is missing is said on standard error, once for each change, and
/// tried again until the deadline.
pub(crate) async fn create(
    client: &client::Client,
    masters: &[String],
    shards: u16,
    deadline: Option<Instant>,
) -> Result<ClusterId, Failure> {
    let masters: Vec<Address> = masters.iter().map(|master| Address::new(master)).collect();
    let quiet_until = Instant::now() + QUIET_TIME;
    let mut said = String::new();
    for endpoint in client.endpoints().iter().cycle() {
        let error = match attempt(client, endpoint, &masters, shards).await {
            Ok(cluster) => return Ok(cluster),
            Err(error) => error,
        };
        let passing = match &error {
            client::Error::NobodyReachable(_)
            | client::Error::Unavailable(_)
            | client::Error::OutcomeUnknown(_) => true,
            client::Error::Refused(reply) => is_passing(reply),
            client::Error::Invalid(_) => false,
        };
        if !passing || deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Err(failure_of(error));
        }
        let line = error.to_string();
        if line != said && Instant::now() > quiet_until {
            eprintln!("{line} Trying again (Ctrl-C to give up).");
            said = line;
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    Err(Failure::usage("no endpoint is given"))
}

/// Asks one node to create the cluster. The node is given less time than this side waits, so that
/// its answer, which says what is missing, arrives.
async fn attempt(
    client: &client::Client,
    endpoint: &str,
    masters: &[Address],
    shards: u16,
) -> Result<ClusterId, client::Error> {
    let request = Request {
        header: Header { timeout: NODE_TIME_MAX, ..Header::default() },
        body: Body::Cluster(ClusterOp::Init { masters: masters.to_vec(), shards }),
    };
    let client = client.with_timeout(ATTEMPT_TIME_MAX);
    let answer = client.raw(Some(endpoint), request).await?.body?;
    let Answer::Cluster(ClusterAnswer::Created(cluster)) = answer else {
        return Err(client::Error::Unavailable(format!("not an answer to init: {answer:?}")));
    };
    Ok(cluster)
}

/// Whether the same request may succeed later without anybody's doing.
fn is_passing(reply: &ErrorReply) -> bool {
    match reply {
        ErrorReply::NotReady(_)
        | ErrorReply::NotLeader
        | ErrorReply::Moved { .. }
        | ErrorReply::OutcomeUnknown(_)
        | ErrorReply::ResourceExhausted(_)
        | ErrorReply::Unavailable(_) => true,
        ErrorReply::Invalid(_)
        | ErrorReply::SessionExpired { .. }
        | ErrorReply::StampTooFar { .. }
        | ErrorReply::Stale
        | ErrorReply::WrongCluster { .. }
        | ErrorReply::Refused(_)
        | ErrorReply::Unsupported(_) => false,
    }
}

/// A cluster that is just starting is not worth a word.
const QUIET_TIME: Duration = Duration::from_secs(1);
const NODE_TIME_MAX: Micros = Micros::from_secs(2);
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
