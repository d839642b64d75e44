//! Every command comes back as it was logged, and nothing else is taken for one.

use base::limits::{COUNT_MAX, SHARDS_MAX};
use replica_group::sessions::SessionCounters;

use super::*;
use crate::keys::Kind;

fn commands() -> Vec<Command> {
    let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
    let cas = |expected| KvOp::CompareAndSwap {
        key: Bytes::from_static(b"k"),
        expected,
        value: Bytes::from_static(b"new"),
    };
    let ops = vec![
        KvOp::Put { key: key.clone(), value: value.clone() },
        KvOp::PutHash { key: key.clone(), value: value.clone(), hash: HashKind::Fnv1a32 },
        KvOp::PutHash { key: key.clone(), value: value.clone(), hash: HashKind::Sha256 },
        KvOp::Delete { key: key.clone() },
        KvOp::Append { key, value: Bytes::new() },
        cas(Expected::Value(value)),
        cas(Expected::Version(Version(7))),
    ];
    let session = Session {
        client: ClientId(u128::MAX - 1),
        number: RequestNumber(9),
        first_incomplete: RequestNumber(8),
        stamp: WallMillis(1_000),
    };
    let shard = ShardId(3);
    let mut commands: Vec<Command> =
        ops.into_iter().map(|op| Command::Client { session, shard, op }).collect();
    let shards = vec![(ShardId(0), ShardEpoch(1)), (ShardId(16_383), ShardEpoch(2))];
    commands.push(Command::Create { copy: CopyId(5), shards });
    commands.push(Command::Create { copy: CopyId(6), shards: Vec::new() });
    commands.push(Command::ExpireSessions { shard, before: WallMillis(77) });
    commands.extend(handoff_commands());
    commands
}

fn handoff_commands() -> Vec<Command> {
    let (mig, shard, group) = (CopyId(9), ShardId(3), GroupId(4));
    let shards = vec![(ShardId(3), ShardEpoch(2)), (ShardId(4), ShardEpoch(1))];
    let key = Bytes::from_static(b"key");
    let record = |kind, content| MovedRecord { kind, key: Bytes::from_static(b"k"), content };
    let records = vec![
        record(Kind::Data, Content::Present(Bytes::from_static(b"record"))),
        record(Kind::Session, Content::Present(Bytes::new())),
        record(Kind::Data, Content::Removed(Version(7))),
        MovedRecord { key: Bytes::new(), ..record(Kind::Session, Content::Removed(Version(8))) },
    ];
    let (x0, from, to) = (Version(3), Version(5), Version(COUNT_MAX));
    let part = FinalPart {
        shard,
        x0,
        from,
        to,
        records: records.clone(),
        keys: 1,
        bytes: 2,
        digest: u128::MAX - 5,
        log_time: WallMillis(6),
        sessions: SessionCounters {
            rows: 3,
            bytes: 4,
            oldest: WallMillis(5),
            horizon: WallMillis(1),
        },
    };
    let empty = FinalPart { shard: ShardId(4), records: Vec::new(), ..part.clone() };
    let next = Some(key.clone());
    vec![
        Command::InBegin { mig, src: group, shards: shards.clone() },
        Command::OutBegin { mig, dst: group, shards: shards.clone() },
        Command::InChunk { mig, shard, start: key.clone(), records: records.clone(), next },
        Command::InChunk { mig, shard, start: Bytes::new(), records: Vec::new(), next: None },
        Command::InDelta { mig, shard, x0, from, to, records },
        Command::Freeze { mig },
        Command::Activate { mig, shards: vec![part, empty] },
        Command::OutDone { mig },
        Command::GcSlice { shard, copy: mig, from: key },
        Command::OutAbort { mig, shards: shards.clone() },
        Command::Refuse { mig, src: group, shards },
        Command::Unfreeze { mig },
    ]
}

#[test]
fn every_command_comes_back_as_it_was() {
    for command in commands() {
        let bytes = command.encode();
        assert!(bytes.len() <= command.encoded_bytes(), "{command:?}");
        assert_eq!(Command::decode(&bytes), Ok(command));
    }
}

#[test]
fn a_byte_too_few_or_too_many_is_an_error() {
    for command in commands() {
        let bytes = command.encode();
        for cut in 0..bytes.len() {
            assert!(Command::decode(&bytes.slice(..cut)).is_err(), "{command:?} cut at {cut}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Command::decode(&Bytes::from(longer)).is_err(), "{command:?}");
    }
}

#[test]
fn unknown_kinds_are_errors() {
    for kind in [0, 15, 255] {
        assert!(Command::decode(&Bytes::from(vec![kind; 64])).is_err());
    }
    let mut bytes = commands()[0].encode().to_vec();
    bytes[43] = 6;
    assert_eq!(
        Command::decode(&Bytes::from(bytes)),
        Err(DecodeError("operation kind 6".to_string()))
    );
}

/// A fault of another node must not get into the log what no replica could execute: it would end
/// all of them, at every start again.
#[test]
fn numbers_that_nothing_is_counted_to_are_refused() {
    let (mig, src) = (CopyId(9), GroupId(4));
    let begin = |shard, epoch| {
        let shards = vec![(ShardId(shard), ShardEpoch(epoch))];
        Command::decode(&Command::InBegin { mig, src, shards }.encode())
    };
    assert!(begin(SHARDS_MAX - 1, COUNT_MAX).is_ok());
    assert!(begin(SHARDS_MAX, 1).is_err(), "behind the shards lies the record of the group");
    assert!(begin(u16::MAX, 1).is_err());
    assert!(begin(1, COUNT_MAX + 1).is_err(), "the next epoch must be a number");
    for to in [COUNT_MAX + 1, u64::MAX] {
        let delta = Command::InDelta {
            mig,
            shard: ShardId(3),
            x0: Version(0),
            from: Version(0),
            to: Version(to),
            records: Vec::new(),
        };
        assert!(Command::decode(&delta.encode()).is_err(), "and the next version");
    }
}

#[test]
fn a_value_shares_the_buffer_of_its_command() {
    let bytes = commands()[0].encode();
    let Ok(Command::Client { op, .. }) = Command::decode(&bytes) else { panic!() };
    let value = op.value().unwrap();
    assert!(bytes.as_ptr_range().contains(&value.as_ptr()));
}
