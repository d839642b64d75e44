//! Messages, records and values in words, for people who read what a test prints.
#![allow(dead_code, unreachable_pub)]

use base::Slot;
use paxos::message::{Item, Run, SlotRange, Why};
use paxos::{Members, Message, Record, Value};

/// A value; commands of tests are text.
pub fn value(value: &Value) -> String {
    match value {
        Value::Noop => "noop".to_owned(),
        Value::Command(command) => String::from_utf8_lossy(&command.payload).into_owned(),
        Value::Stop(members) => format!("stop-sign({})", voters(members)),
        Value::Done(epoch) => format!("done({epoch})"),
    }
}

/// The voters, the first leader in front.
pub fn voters(members: &Members) -> String {
    let first = members.first_leader();
    let rest = members.replicas().filter(|replica| *replica != first);
    let first = members.contains(first).then_some(first);
    list(first.into_iter().chain(rest).map(|replica| replica.to_string()), " ")
}

fn list(items: impl Iterator<Item = String>, between: &str) -> String {
    items.collect::<Vec<_>>().join(between)
}

fn span(first: Slot, last: Slot) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn runs(runs: &[Run]) -> String {
    let words = runs.iter().map(|run| {
        let faulty = if run.faulty { " unreadable" } else { "" };
        format!("{} under {}{faulty}", span(run.first, run.last), run.ballot)
    });
    list(words, ", ")
}

fn items(items: &[Item]) -> String {
    list(items.iter().map(|item| format!("{}={}", item.slot, value(&item.value))), " ")
}

fn values(first: Slot, values: &[Value]) -> String {
    let slots = (first.0..).map(Slot);
    list(slots.zip(values).map(|(slot, of)| format!("{slot}={}", value(of))), " ")
}

fn chosen(upto: Slot) -> String {
    if upto == Slot::ZERO { String::new() } else { format!(", chosen to {upto}") }
}

/// What stands in brackets, or nothing.
fn brackets(words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().filter(|words| !words.is_empty()).collect();
    if words.is_empty() { String::new() } else { format!(" [{}]", words.join("; ")) }
}

/// A message.
pub fn message(message: &Message) -> String {
    match message {
        Message::Prepare(prepare) if prepare.probe => format!("Probe {}", prepare.ballot),
        Message::Prepare(prepare) => {
            let own = brackets(&[&runs(&prepare.runs)]);
            format!("Prepare {} above {}{own}", prepare.ballot, prepare.chosen_upto)
        }
        Message::Promise(promise) if promise.probe => format!("Would promise {}", promise.ballot),
        Message::Promise(promise) => {
            let accepted = brackets(&[&runs(&promise.runs), &items(&promise.values)]);
            format!("Promise {}{accepted}", promise.ballot)
        }
        Message::Reject(reject) => {
            let why = match reject.why {
                Why::Ballot => format!("promised {}", reject.promised),
                Why::Leader => "hears a leader".to_owned(),
                Why::Grant(_) => format!("granted time under {}", reject.promised),
                Why::NotVoter => "does not vote".to_owned(),
            };
            format!("Reject {}: {why}", reject.ballot)
        }
        Message::Accept(accept) => {
            let values = brackets(&[&values(accept.first, &accept.values)]);
            format!("Accept {}{values}{}", accept.ballot, chosen(accept.chosen_upto))
        }
        Message::Accepted(accepted) => {
            let behind = |range: &SlotRange| span(range.first, range.last);
            let sack = list(accepted.sack.iter().map(behind), ", ");
            let votes = match (accepted.acc_upto, sack.is_empty()) {
                (Slot::ZERO, true) => "no vote".to_owned(),
                (Slot::ZERO, false) => format!("votes for {sack}"),
                (upto, true) => format!("votes to {upto}"),
                (upto, false) => format!("votes to {upto} and for {sack}"),
            };
            let has = match accepted.have_upto {
                Slot::ZERO => String::new(),
                upto => format!(", has the chosen to {upto}"),
            };
            format!("Accepted {}: {votes}{has}", accepted.ballot)
        }
        Message::Chosen(chosen) => format!("Chosen {} to {}", chosen.ballot, chosen.chosen_upto),
        Message::Fetch(fetch) => {
            let names = fetch.items.iter().map(|name| name.slot.to_string());
            format!("Fetch {} [{}]", fetch.ballot, list(names, " "))
        }
        Message::Values(values) => format!("Values {} [{}]", values.ballot, items(&values.items)),
        Message::CatchUpRequest(request) => format!("CatchUpRequest above {}", request.chosen_upto),
        Message::CatchUp(catch_up) => {
            let items = brackets(&[&items(&catch_up.items)]);
            format!("CatchUp{items}{}", chosen(catch_up.chosen_upto))
        }
        Message::Confirm(confirm) => format!("Confirm {} #{}", confirm.ballot, confirm.round),
        Message::ConfirmAck(ack) => format!("ConfirmAck {} #{}", ack.ballot, ack.round),
        Message::TransferGo(go) => format!("TransferGo {}", go.ballot),
        Message::Release(release) => format!("Release {}", release.ballot),
        Message::EpochInfo(info) => {
            format!("EpochInfo {} ({})", info.members.epoch(), voters(&info.members))
        }
    }
}

/// A record of the log on disk.
pub fn record(record: &Record) -> String {
    match record {
        Record::GroupCreate { members, .. } => format!("group ({})", voters(members)),
        Record::Promise { ballot } => format!("promise {ballot}"),
        Record::Entries { first, ballot, values: of } => {
            format!("accept {ballot} [{}]", values(*first, of))
        }
        Record::Epoch { members } => format!("epoch {} ({})", members.epoch(), voters(members)),
        Record::GroupDestroy => "destroyed".to_owned(),
        Record::GroupState { promised, chosen_upto, .. } => {
            format!("state: promised {promised}, chosen to {chosen_upto}")
        }
        Record::Quarantine => "quarantine".to_owned(),
        Record::StoreLost => "store lost".to_owned(),
        Record::Mended { first, last } => format!("mended {first}-{last}"),
        Record::Snapshot { slot } => format!("copy of the state after {slot}"),
        Record::ChosenHint { upto } => format!("chosen to {upto}"),
    }
}
