//! The commands that shape the cluster, and the one that prints its plan.

use std::time::{Duration, Instant};

use base::{Address, ClusterId, ConfigNumber, GroupId, Micros, NodeId};
use router::{
    Answer, Body, ClusterAnswer, ClusterOp, Configuration, ErrorReply, Header, NewGroup, Request,
    range_line,
};
use serde_json::json;

use crate::arguments::{InitArguments, JoinArguments, QueryArguments};
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

/// `decree join`: adds groups and prints the configuration that this makes.
pub(crate) async fn join(asker: &Asker, arguments: JoinArguments) -> Result<(), Failure> {
    let groups = parse_groups(&arguments.groups)?;
    let joined = asker.client.join(new_groups(&groups)).await.map_err(failure_of)?;
    print_configuration(asker, &joined.value)
}

/// `decree query`: prints a configuration.
pub(crate) async fn query(asker: &Asker, arguments: QueryArguments) -> Result<(), Failure> {
    let number = arguments.number.map(ConfigNumber);
    let found = asker.client.query(number).await.map_err(failure_of)?;
    print_configuration(asker, &found.value)
}

/// Groups as a request names them.
pub(crate) fn new_groups(groups: &[(u64, Vec<u64>)]) -> Vec<NewGroup> {
    groups
        .iter()
        .map(|(group, nodes)| NewGroup {
            group: GroupId(*group),
            nodes: nodes.iter().copied().map(NodeId).collect(),
        })
        .collect()
}

/// `GID NODE... [+ GID NODE...]`.
fn parse_groups(words: &[String]) -> Result<Vec<(u64, Vec<u64>)>, Failure> {
    words
        .split(|word| word == "+")
        .map(|group| {
            let numbers = group
                .iter()
                .map(|word| {
                    word.parse::<u64>().map_err(|_| {
                        Failure::usage(format!(
                            "`{word}` is no number; write GID NODE... [+ GID NODE...], for \
                             example: decree join 1 1 2 3 + 2 1 2 3"
                        ))
                    })
                })
                .collect::<Result<Vec<u64>, Failure>>()?;
            match numbers.split_first() {
                Some((&group, nodes)) if !nodes.is_empty() => Ok((group, nodes.to_vec())),
                _ => Err(Failure::usage(
                    "each group needs its number and at least one node, for example: \
                     decree join 1 1 2 3 + 2 1 2 3",
                )),
            }
        })
        .collect()
}

fn print_configuration(asker: &Asker, configuration: &Configuration) -> Result<(), Failure> {
    let ranges = configuration.ranges();
    if asker.json {
        let groups: Vec<_> = configuration
            .groups
            .iter()
            .map(|(group, nodes)| {
                let nodes: Vec<u64> = nodes.iter().map(|node| node.0).collect();
                json!({ "group": group.0, "nodes": nodes })
            })
            .collect();
        let shards: Vec<_> = ranges
            .iter()
            .map(|(range, group)| {
                json!({ "first": range.start(), "last": range.end(), "group": group.0 })
            })
            .collect();
        return print_json(&json!({
            "configuration": configuration.number.0, "groups": groups, "shards": shards
        }));
    }
    let mut text = format!("configuration {}\n", configuration.number.0);
    for (group, nodes) in &configuration.groups {
        let nodes: Vec<String> = nodes.iter().map(|node| node.0.to_string()).collect();
        text.push_str(&format!("group {}: nodes {}\n", group.0, nodes.join(" ")));
    }
    for (range, group) in &ranges {
        text.push_str(&range_line(range, *group));
        text.push('\n');
    }
    print_text(&text)
}

/// A cluster that is just starting is not worth a word.
const QUIET_TIME: Duration = Duration::from_secs(1);
const NODE_TIME_MAX: Micros = Micros::from_secs(2);
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn groups_are_separated_by_plus() {
        let groups = parse_groups(&words("1 1 2 3 + 2 3 4")).unwrap();
        assert_eq!(groups, [(1, vec![1, 2, 3]), (2, vec![3, 4])]);
        assert!(parse_groups(&words("1 1 +")).is_err());
        assert!(parse_groups(&words("1")).is_err());
        assert!(parse_groups(&words("1 one")).is_err());
    }
}
