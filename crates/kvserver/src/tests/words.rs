//! Commands, shards and replies in words, for people who read what a test prints.

use replica_group::state_machine::ScanLimit;
use router::{HandoffPhase, ShardState};

use super::*;
use crate::keys::{self, Kind};
use crate::record::{self, Record};
use crate::{Content, FinalPart, MovedRecord};

fn list<T>(items: impl IntoIterator<Item = T>, word: impl Fn(T) -> String) -> String {
    items.into_iter().map(word).collect::<Vec<_>>().join(" ")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shards(shards: &[(ShardId, ShardEpoch)]) -> String {
    list(shards, |(shard, epoch)| format!("{shard}/{epoch}"))
}

/// What a client asks for.
pub(super) fn op(op: &KvOp) -> String {
    let key = text(op.key());
    match op {
        KvOp::Get { .. } => format!("get {key}"),
        KvOp::Put { value, .. } => format!("put {key} {}", text(value)),
        KvOp::Append { value, .. } => format!("append {key} {}", text(value)),
        KvOp::Delete { .. } => format!("delete {key}"),
        KvOp::PutHash { value, .. } => format!("puthash {key} {}", text(value)),
        KvOp::CompareAndSwap { value, .. } => format!("swap {key} {}", text(value)),
    }
}

/// A key of a shard's records: a client's row, or a key.
fn record_key(kind: Kind, key: &[u8]) -> String {
    match (kind, <[u8; 16]>::try_from(key)) {
        (Kind::Session, Ok(client)) => format!("row of c{}", u128::from_be_bytes(client)),
        (Kind::Session, Err(_)) => "horizon".to_owned(),
        (Kind::Data | Kind::Meta | Kind::Tombstone, _) => text(key),
    }
}

/// A place of a scan.
fn place(cursor: &[u8]) -> String {
    match cursor.split_first() {
        None => "the start".to_owned(),
        Some((kind, [])) if *kind == Kind::Session as u8 => "the rows".to_owned(),
        Some((kind, key)) if *kind == Kind::Session as u8 => {
            format!("what follows the {}", record_key(Kind::Session, key.get(..16).unwrap_or(key)))
        }
        Some((_, key)) => format!("what follows {}", text(key.strip_suffix(&[0]).unwrap_or(key))),
    }
}

fn moved(record: &MovedRecord) -> String {
    let key = record_key(record.kind, &record.key);
    match &record.content {
        Content::Removed(version) => format!("no {key}@{version}"),
        Content::Present(stored) => {
            let version = record::stored_version(record.kind, stored).unwrap();
            match record.kind {
                Kind::Data => {
                    let value = Record::decode(stored).unwrap().value;
                    format!("{key}={}@{version}", text(&value))
                }
                Kind::Session | Kind::Meta | Kind::Tombstone => format!("{key}@{version}"),
            }
        }
    }
}

fn records(records: &[MovedRecord]) -> String {
    match records {
        [] => "nothing".to_owned(),
        records => records.iter().map(moved).collect::<Vec<_>>().join(", "),
    }
}

fn final_part(part: &FinalPart) -> String {
    let FinalPart { shard, from, to, keys, .. } = part;
    format!("{shard}: {keys} keys, from {from} to {to}: {}", records(&part.records))
}

/// A command of a group's log.
pub(super) fn command(command: &Command) -> String {
    match command {
        Command::Client { session, shard, op: of } => {
            format!("c{}{} {} ({shard})", session.client.0, session.number, op(of))
        }
        Command::Create { copy, shards: new } => format!("Create {copy} [{}]", shards(new)),
        Command::ExpireSessions { shard, before } => {
            format!("ExpireSessions {shard} before {}", before.0)
        }
        Command::InBegin { mig, src, shards: set } => {
            format!("InBegin {mig} from {src} [{}]", shards(set))
        }
        Command::OutBegin { mig, dst, shards: set } => {
            format!("OutBegin {mig} to {dst} [{}]", shards(set))
        }
        Command::InChunk { mig, shard, start, records: found, next } => {
            let next = next.as_ref().map_or("the end".to_owned(), |next| place(next));
            let (from, found) = (place(start), records(found));
            format!("InChunk {mig} {shard}, from {from} to {next}: {found}")
        }
        Command::InDelta { mig, shard, from, to, records: found, .. } => {
            format!("InDelta {mig} {shard}, from {from} to {to}: {}", records(found))
        }
        Command::Freeze { mig } => format!("Freeze {mig}"),
        Command::Activate { mig, shards } => {
            let parts: Vec<String> = shards.iter().map(final_part).collect();
            format!("Activate {mig}, {}", parts.join("; "))
        }
        Command::OutDone { mig } => format!("OutDone {mig}"),
        Command::GcSlice { shard, copy, .. } => format!("GcSlice {shard} of {copy}"),
        Command::OutAbort { mig, shards: set } => format!("OutAbort {mig} [{}]", shards(set)),
        Command::Refuse { mig, src, shards: set } => {
            format!("Refuse {mig} from {src} [{}]", shards(set))
        }
        Command::Unfreeze { mig } => format!("Unfreeze {mig}"),
    }
}

/// How far a hand-off is at one of its groups.
pub(super) fn phase(phase: HandoffPhase) -> &'static str {
    match phase {
        HandoffPhase::Unknown => "Unknown",
        HandoffPhase::In => "In",
        HandoffPhase::Out => "Out",
        HandoffPhase::Frozen => "Frozen",
        HandoffPhase::Active => "Active",
        HandoffPhase::Moved => "Moved",
        HandoffPhase::Owned => "Owned",
        HandoffPhase::Refused => "Refused",
    }
}

/// What a group answers.
pub(super) fn reply(reply: &Reply) -> String {
    match &reply.body {
        Ok(Answer::Done) => "done".to_owned(),
        Ok(Answer::Value(None)) => "nothing".to_owned(),
        Ok(Answer::Value(Some(value))) => format!("{}@{}", text(value), reply.header.version),
        Ok(Answer::Deleted(was)) => if *was { "deleted" } else { "was absent" }.to_owned(),
        Ok(Answer::Appended(bytes)) => format!("{bytes} bytes now"),
        Ok(Answer::Handoff(state)) => phase(state.phase).to_owned(),
        Ok(other) => format!("{other:?}"),
        Err(ErrorReply::Moved { epoch, group }) => format!("it is {group}'s since {epoch}"),
        Err(ErrorReply::NotReady(why) | ErrorReply::Refused(why)) => format!("refused: {why}"),
        Err(other) => format!("{other:?}"),
    }
}

impl Replica {
    /// What the group has of each shard, and where its records are, each with its copy.
    pub(super) fn told(&mut self) -> Vec<(ShardId, String)> {
        let (server, store) = self.parts();
        let shards = server.shards.keys().copied().collect::<Vec<_>>();
        let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
        let (from, to) = keys::shards_from(0);
        let found = store.scan(&from, &to, all).unwrap();
        shards.into_iter().map(|id| (id, shard(server, &found, id))).collect()
    }
}

fn shard(server: &KvServer, found: &[(Bytes, Bytes)], id: ShardId) -> String {
    let meta = server.shards[&id].meta();
    let is = match meta.state {
        ShardState::Owned => "Owned".to_owned(),
        ShardState::Out { mig, dst } => format!("Out by {mig} to {dst}"),
        ShardState::Frozen { mig, dst } => format!("Frozen by {mig} to {dst}"),
        ShardState::Moved { dst, .. } => format!("Moved to {dst}"),
        ShardState::In { mig, src } => {
            let incoming = meta.incoming.as_ref().unwrap();
            let next = incoming.cursor.as_ref().map(|next| place(next));
            let next = next.map_or("all scanned".to_owned(), |next| format!("goes on at {next}"));
            let upto = incoming.delta_upto;
            let upto = upto.map_or("no changes".to_owned(), |upto| format!("changes to {upto}"));
            format!("In by {mig} from {src}, {next}, {upto}")
        }
        ShardState::Refused { mig } => format!("Refused by {mig}"),
    };
    let mut has = String::new();
    for (key, stored) in found {
        let (of, copy) = keys::parse(key).unwrap();
        let (kind, key) = (key[keys::PREFIX_BYTES - 1], &key[keys::PREFIX_BYTES..]);
        if of != id {
            continue;
        }
        if kind == Kind::Data as u8 {
            let Record { version, value, .. } = Record::decode(stored).unwrap();
            has.push_str(&format!(" {copy}:{}={}@{version}", text(key), text(&value)));
        } else if kind == Kind::Tombstone as u8 {
            let version = record::stored_version(Kind::Tombstone, stored).unwrap();
            let of = if key[0] == Kind::Data as u8 { Kind::Data } else { Kind::Session };
            has.push_str(&format!(" {copy}:no {}@{version}", record_key(of, &key[1..])));
        }
    }
    format!("{is}, {}, count {};{}", meta.epoch, meta.changes.0, or_nothing(&has))
}

fn or_nothing(has: &str) -> &str {
    if has.is_empty() { " nothing" } else { has }
}
