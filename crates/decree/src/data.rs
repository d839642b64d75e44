//! The commands on keys.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use base::limits::VALUE_BYTES_MAX;
use bytes::Bytes;
use router::{Consistency, Expected, HashKind, KvOp, ReplyHeader};
use serde_json::json;

use crate::arguments::{
    CasArguments, GetArguments, KeyArguments, PutArguments, PutHashArguments, ValueArguments,
};
use crate::ask::{Asker, Stdin, failure_of};
use crate::failure::Failure;
use crate::output::{json_bytes, print_bytes, print_json};

/// `decree get`: prints the value.
pub(crate) async fn get(asker: &Asker, arguments: GetArguments) -> Result<(), Failure> {
    let key = bytes_of(arguments.key);
    check_limits(&key, &Bytes::new())?;
    let reads = match (arguments.read, arguments.after) {
        (Consistency::Sequential(_), after) => Consistency::Sequential(after),
        (other, None) => other,
        (_, Some(_)) => return Err(Failure::usage("--after goes with --read sequential")),
    };
    let client = asker.client.with_reads(reads);
    let reply = client.get(key.clone()).await.map_err(failure_of)?;
    if asker.json {
        let value = reply.value.as_ref().map(|value| json_bytes(value));
        print_json(&json!({
            "key": json_bytes(&key), "value": value, "version": reply.header.version.0,
            "seen": seen(&reply.header)
        }))?;
    }
    match reply.value {
        Some(_) if asker.json => Ok(()),
        Some(value) => print_bytes(&value, arguments.raw),
        None => Err(not_found(asker)),
    }
}

/// `decree put`: prints OK.
pub(crate) async fn put(asker: &Asker, arguments: PutArguments) -> Result<(), Failure> {
    let value = value_of(asker, arguments.value)?;
    let key = bytes_of(arguments.key);
    check_limits(&key, &value)?;
    let reply = asker.client.put(key.clone(), value).await.map_err(failure_of)?;
    if asker.json {
        return print_json(&json!({
            "key": json_bytes(&key), "version": reply.header.version.0,
            "seen": seen(&reply.header)
        }));
    }
    print_bytes(b"OK", false)
}

/// `decree puthash`: prints the previous value, an empty line where there was none.
pub(crate) async fn puthash(asker: &Asker, arguments: PutHashArguments) -> Result<(), Failure> {
    let value = value_of(asker, arguments.value)?;
    let key = bytes_of(arguments.key);
    check_limits(&key, &value)?;
    let hash = if arguments.sha256 { HashKind::Sha256 } else { HashKind::Fnv1a32 };
    let reply = asker.client.put_hash(key.clone(), value, hash).await.map_err(failure_of)?;
    if asker.json {
        let previous = reply.value.as_ref().map(|value| json_bytes(value));
        return print_json(&json!({
            "key": json_bytes(&key), "previous": previous, "version": reply.header.version.0,
            "seen": seen(&reply.header)
        }));
    }
    print_bytes(&reply.value.unwrap_or_default(), arguments.raw)
}

/// `decree delete`: prints OK, if there was something to remove.
pub(crate) async fn delete(asker: &Asker, arguments: KeyArguments) -> Result<(), Failure> {
    let key = bytes_of(arguments.key);
    check_limits(&key, &Bytes::new())?;
    let reply = asker.client.delete(key.clone()).await.map_err(failure_of)?;
    if asker.json {
        print_json(&json!({
            "key": json_bytes(&key), "deleted": reply.value, "seen": seen(&reply.header)
        }))?;
    }
    match reply.value {
        true if asker.json => Ok(()),
        true => print_bytes(b"OK", false),
        false => Err(not_found(asker)),
    }
}

/// `decree append`: prints OK.
pub(crate) async fn append(asker: &Asker, arguments: PutArguments) -> Result<(), Failure> {
    let value = value_of(asker, arguments.value)?;
    let key = bytes_of(arguments.key);
    check_limits(&key, &value)?;
    let reply = asker.client.append(key.clone(), value).await.map_err(failure_of)?;
    if asker.json {
        return print_json(&json!({
            "key": json_bytes(&key), "length": reply.value, "version": reply.header.version.0,
            "seen": seen(&reply.header)
        }));
    }
    print_bytes(b"OK", false)
}

/// `decree cas`: prints OK, or that it was not swapped.
pub(crate) async fn cas(asker: &Asker, arguments: CasArguments) -> Result<(), Failure> {
    let value = value_of(asker, arguments.value)?;
    let key = bytes_of(arguments.key);
    check_limits(&key, &value)?;
    let condition = arguments.condition;
    let expected = match (condition.if_value, condition.if_version) {
        (Some(old), _) => Expected::Value(bytes_of(old)),
        (None, Some(version)) => Expected::Version(base::Version(version)),
        // An absent key has version 0 and no present one has.
        (None, None) => Expected::Version(base::Version(0)),
    };
    let asked = asker.client.compare_and_swap(key.clone(), expected, value).await;
    let reply = asked.map_err(failure_of)?;
    let version = reply.header.version.0;
    if asker.json {
        print_json(&json!({
            "key": json_bytes(&key), "swapped": reply.value, "version": version,
            "seen": seen(&reply.header)
        }))?;
        return if reply.value { Ok(()) } else { Err(Failure::printed()) };
    }
    match (reply.value, version) {
        (true, _) => print_bytes(b"OK", false),
        (false, 0) => Err(Failure::expected("not_swapped", "not swapped: the key is absent")),
        (false, _) => {
            let line = format!("not swapped: version is {version}");
            Err(Failure::expected("not_swapped", line))
        }
    }
}

/// What an answer shows of its shard, as `--after` takes it.
fn seen(header: &ReplyHeader) -> Option<String> {
    header.seen().map(|(_, seen)| format!("{}:{}", seen.epoch.0, seen.slot.0))
}

fn not_found(asker: &Asker) -> Failure {
    if asker.json { Failure::printed() } else { Failure::expected("not_found", "not found") }
}

/// Refuses what is over a limit before anybody is asked.
fn check_limits(key: &Bytes, value: &Bytes) -> Result<(), Failure> {
    let op = KvOp::Put { key: key.clone(), value: value.clone() };
    router::validate(&op).map_err(|refused| failure_of(refused.into()))
}

fn bytes_of(text: OsString) -> Bytes {
    Bytes::from(text.into_vec())
}

/// The bytes of a value, wherever they come from. At most one more than a value may have is read,
/// so that an endless input is refused like any other that is too long.
fn value_of(asker: &Asker, arguments: ValueArguments) -> Result<Bytes, Failure> {
    let readable_max = VALUE_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    if let Some(path) = arguments.file {
        std::fs::File::open(&path)
            .and_then(|file| file.take(readable_max).read_to_end(&mut bytes))
            .map_err(|error| {
                Failure::error("input", format!("cannot read {}: {error}", path.display()))
            })?;
    } else if arguments.value.as_deref().is_some_and(|value| value == "-") {
        if asker.stdin == Stdin::Taken {
            return Err(Failure::usage(
                "at the prompt `-` cannot read standard input, which the prompt itself reads; \
                 use --file PATH",
            ));
        }
        std::io::stdin().lock().take(readable_max).read_to_end(&mut bytes).map_err(|error| {
            Failure::error("input", format!("cannot read standard input: {error}"))
        })?;
    } else {
        return Ok(bytes_of(arguments.value.unwrap_or_default()));
    }
    Ok(Bytes::from(bytes))
}
