//! What must hold when a round is over: the history is linearizable, all replicas of a group answer
//! the same, and what clients know of keys of their own is there.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use client::{Answered, Client, Error, Options, Unary};
use router::{Answer, Body, Consistency, Header, KvOp, Request};
use sim::history::{History, Operation};
use sim::linearizability::{STEPS_MAX, check_key};

use super::clients::{SHARED_KEYS, shared_key};
use super::notes::Notes;
use super::sampling::Sample;

/// The number of who reads in the end.
const READER: u64 = 1_000;
/// How many chains are read in the end, of those that clients know.
const CHAINS_MAX: usize = 60;
const READ_TIME_MAX: Duration = Duration::from_secs(30);
/// How often a key is looked at anew of which a write of unknown outcome came late.
const LOOKS_MAX: usize = 5;

/// Judges a history, key by key: what is wrong.
pub(crate) fn judge(history: &History) -> Vec<String> {
    let mut wrong: Vec<String> = history.check_elements().err().into_iter().collect();
    for (key, calls) in history.by_key() {
        if let Err(violation) = check_key(&key, &calls, STEPS_MAX) {
            wrong.push(violation.to_string());
        }
    }
    wrong
}

/// Reads every shared key of a round through the cluster, as a part of its history, and then at
/// each replica of the group that answered: what differs. How many answers of replicas were
/// compared.
pub(crate) async fn compare(
    control: &Client,
    notes: &Notes,
    sample: &Sample,
    endpoints: &BTreeMap<u64, String>,
) -> Result<u64, Vec<String>> {
    let options = Options { timeout: READ_TIME_MAX, ..Options::default() };
    let mut nodes: BTreeMap<u64, Unary> = BTreeMap::new();
    for (node, endpoint) in endpoints {
        match Unary::connect(endpoint, options.clone()).await {
            Ok(unary) => nodes.insert(*node, unary),
            Err(error) => return Err(vec![format!("node {node}: {error}")]),
        };
    }
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for at in 0..SHARED_KEYS {
        let key = shared_key(notes.round(), at);
        match compare_key(control, notes, sample, &nodes, key).await {
            Ok(count) => compared += count,
            Err(why) => wrong.push(why),
        }
    }
    if wrong.is_empty() { Ok(compared) } else { Err(wrong) }
}

async fn compare_key(
    control: &Client,
    notes: &Notes,
    sample: &Sample,
    nodes: &BTreeMap<u64, Unary>,
    key: Bytes,
) -> Result<u64, String> {
    let mut differs = String::new();
    for _ in 0..LOOKS_MAX {
        let held = read(control, notes, &key).await.map_err(|error| error.to_string())?;
        let Some((group, (_, seen))) = held.header.group.zip(held.header.seen()) else {
            return Err(format!("{key:?} was read from no group and slot: {:?}", held.header));
        };
        let mut compared = 0;
        let mut same = true;
        for (node, _) in sample.replicas().filter(|(_, replica)| replica.group == group) {
            let Some(unary) = nodes.get(&node) else { continue };
            let header = Header {
                timeout: base::Micros(READ_TIME_MAX.as_micros() as u64),
                consistency: Consistency::Sequential(Some(seen)),
                ..Header::default()
            };
            let body = Body::Kv(KvOp::Get { key: key.clone() });
            let answer = unary.call(Request { header, body }).await;
            let answer = answer.map_err(|error| format!("{key:?} at node {node}: {error}"))?;
            compared += 1;
            if answer.value != Answer::Value(held.value.clone()) {
                same = false;
                differs = format!(
                    "{key:?} of group {} is {:?} at node {node}, and {:?} at its leader",
                    group.0, answer.value, held.value
                );
            }
        }
        if same {
            return Ok(compared);
        }
    }
    Err(differs)
}

async fn read(
    control: &Client,
    notes: &Notes,
    key: &Bytes,
) -> Result<Answered<Option<Bytes>>, Error> {
    let begin = notes.now();
    let call = notes.history(|history| history.begin(READER, begin, key.clone(), Operation::Get));
    let done = control.with_timeout(READ_TIME_MAX).get(key.clone()).await;
    let now = notes.now();
    match &done {
        Ok(done) => {
            let answer = sim::history::Answer::Value(done.value.clone());
            let version = Some(done.header.version.0);
            notes.history(|history| history.answered(call, now, answer, version));
        }
        Err(_) => notes.history(|history| history.refused(call)),
    }
    done
}

/// Reads some of the chains of which clients know what they hold: what differs.
pub(crate) async fn check_chains(control: &Client, notes: &Notes, skip: usize) -> Vec<String> {
    let predicted = notes.predicted();
    let step = (predicted.len() / CHAINS_MAX).max(1);
    let mut wrong = Vec::new();
    for (key, known) in predicted.into_iter().skip(skip % step).step_by(step) {
        match control.with_timeout(READ_TIME_MAX).get(key.clone()).await {
            Ok(done) if done.value.as_deref() == Some(&known[..]) => {}
            Ok(done) => wrong.push(format!("{key} holds {:?}, not {known:?}", done.value)),
            Err(error) => wrong.push(format!("{key}: {error}")),
        }
    }
    wrong
}
