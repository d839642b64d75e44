//! What a data group promises, shown on its state machine and a store in memory.

mod golden;
mod handoff;
mod lossy;
mod model;
mod moves;
mod words;

use std::sync::Arc;

use base::limits::{SESSION_IDLE_MILLIS, VALUE_BYTES_MAX};
use base::{ClientId, CopyId, GroupId, Random, RequestNumber, ShardEpoch, ShardId, Slot};
use base::{Version, WallMillis};
use bytes::Bytes;
use replica_group::{ApplyError, Entry, GroupStore, StateMachine};
use router::{Answer, ErrorReply, Expected, HashKind, KvOp, Reply, Session};
use storage::{Engine, MemoryEngine, Overlay};

use crate::{Command, KvServer};

const GROUP: GroupId = GroupId(3);
const SHARD: ShardId = ShardId(5);

/// A replica of a data group: its log, its state, its store.
struct Replica {
    group: GroupId,
    engine: Arc<MemoryEngine>,
    overlay: Overlay,
    server: KvServer,
    log: Vec<Entry>,
    time: u64,
    number: u64,
}

impl Replica {
    fn empty() -> Replica {
        Replica::of(GROUP)
    }

    fn of(group: GroupId) -> Replica {
        let engine = Arc::new(MemoryEngine::new());
        let mut overlay = Overlay::new(engine.clone());
        let server = KvServer::open(group, &GroupStore::new(&mut overlay, group)).unwrap();
        Replica { group, engine, overlay, server, log: Vec::new(), time: 1_000, number: 0 }
    }

    /// The state, and its part of the store.
    fn parts(&mut self) -> (&mut KvServer, GroupStore<'_>) {
        (&mut self.server, GroupStore::new(&mut self.overlay, self.group))
    }

    /// A replica whose group owns the shards 4 and 5.
    fn new() -> Replica {
        let mut replica = Replica::empty();
        let shards = [ShardId(4), SHARD].map(|shard| (shard, ShardEpoch(1))).to_vec();
        let reply = replica.apply(&Command::Create { copy: CopyId(7), shards });
        assert_eq!(reply.body, Ok(Answer::Done));
        replica
    }

    fn apply(&mut self, command: &Command) -> Reply {
        self.time += 1;
        let entry = Entry {
            slot: Slot(self.log.len() as u64 + 1),
            time: WallMillis(self.time),
            payload: command.encode(),
        };
        self.apply_entry(entry)
    }

    fn apply_entry(&mut self, entry: Entry) -> Reply {
        self.log.push(entry.clone());
        let mut store = GroupStore::new(&mut self.overlay, self.group);
        self.server.apply(&mut store, &entry).unwrap()
    }

    /// Executes an operation of a client that closes each request before the next.
    fn write(&mut self, op: KvOp) -> Reply {
        self.number += 1;
        let session = session(1, self.number, self.number, self.time);
        self.apply(&Command::Client { session, shard: SHARD, op })
    }

    fn answer(&mut self, op: KvOp) -> Answer {
        self.write(op).body.unwrap()
    }

    fn get(&mut self, key: &'static str) -> Reply {
        let store = GroupStore::new(&mut self.overlay, self.group);
        self.server.read(&store, SHARD, &KvOp::Get { key: bytes(key) }).unwrap()
    }

    fn value(&mut self, key: &'static str) -> Option<Bytes> {
        match self.get(key).body {
            Ok(Answer::Value(value)) => value,
            other => panic!("{other:?}"),
        }
    }

    fn settle_and_flush(&mut self) {
        let mut store = GroupStore::new(&mut self.overlay, self.group);
        self.server.settle(&mut store).unwrap();
        if let Some(flush) = self.overlay.freeze(Vec::new()) {
            self.engine.write(&flush.batch).unwrap();
            self.overlay.flushed(flush.id);
        }
    }

    /// Loses what is only in memory, and applies the log again from `slot` on, which is where the
    /// last flush stood.
    fn restart(&mut self, slot: usize) {
        self.overlay = Overlay::new(self.engine.clone());
        let store = GroupStore::new(&mut self.overlay, self.group);
        self.server = KvServer::open(self.group, &store).unwrap();
        for entry in self.log.split_off(slot) {
            self.apply_entry(entry);
        }
    }

    fn assert_sound(&mut self) {
        let store = GroupStore::new(&mut self.overlay, self.group);
        assert_eq!(self.server.audit(&store).unwrap(), Ok(()));
    }
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn session(client: u128, number: u64, first: u64, stamp: u64) -> Session {
    Session {
        client: ClientId(client),
        number: RequestNumber(number),
        first_incomplete: RequestNumber(first),
        stamp: WallMillis(stamp),
    }
}

fn put(key: &'static str, value: &'static str) -> KvOp {
    KvOp::Put { key: bytes(key), value: bytes(value) }
}

fn put_hash(key: &'static str, value: &'static str) -> KvOp {
    KvOp::PutHash { key: bytes(key), value: bytes(value), hash: HashKind::Fnv1a32 }
}

fn append(key: &'static str, value: &'static str) -> KvOp {
    KvOp::Append { key: bytes(key), value: bytes(value) }
}

fn swap(key: &'static str, expected: Expected, value: &'static str) -> KvOp {
    KvOp::CompareAndSwap { key: bytes(key), expected, value: bytes(value) }
}

fn client(shard: ShardId, session: Session, op: KvOp) -> Command {
    Command::Client { session, shard, op }
}

#[test]
fn a_value_that_was_put_is_read_with_its_version() {
    let mut replica = Replica::new();
    assert_eq!(replica.value("a"), None);
    assert_eq!(replica.get("a").header.version, Version(0));
    let reply = replica.write(put("a", "x"));
    assert_eq!((reply.body, reply.header.version), (Ok(Answer::Done), Version(1)));
    assert_eq!(reply.header.group, Some(GROUP));
    assert_eq!(reply.header.shard, Some(SHARD));
    assert_eq!(reply.header.shard_epoch, Some(ShardEpoch(1)));
    assert_eq!(reply.header.stamp, WallMillis(replica.time));
    replica.write(put("b", "y"));
    let read = replica.get("a");
    assert_eq!(read.body, Ok(Answer::Value(Some(bytes("x")))));
    assert_eq!((read.header.version, read.header.stamp), (Version(1), WallMillis(replica.time)));
    replica.assert_sound();
}

#[test]
fn put_hash_answers_the_previous_value_and_stores_the_published_hashes() {
    let mut replica = Replica::new();
    assert_eq!(replica.answer(put_hash("a", "x")), Answer::Value(None));
    assert_eq!(replica.value("a"), Some(bytes("4245442695")));
    replica.write(put("a", "x"));
    assert_eq!(replica.answer(put_hash("a", "b")), Answer::Value(Some(bytes("x"))));
    assert_eq!(replica.value("a"), Some(bytes("1063475327")));
    let mut previous = None;
    for (value, stored) in [("0", "890022063"), ("1", "78513644"), ("2", "3250269825")] {
        assert_eq!(replica.answer(put_hash("chain", value)), Answer::Value(previous));
        previous = replica.value("chain");
        assert_eq!(previous, Some(bytes(stored)));
    }
    let op = KvOp::PutHash { key: bytes("s"), value: bytes("abc"), hash: HashKind::Sha256 };
    replica.write(op);
    let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(replica.value("s"), Some(bytes(sha)));
    replica.assert_sound();
}

#[test]
fn delete_says_whether_there_was_something() {
    let mut replica = Replica::new();
    assert_eq!(replica.answer(KvOp::Delete { key: bytes("a") }), Answer::Deleted(false));
    replica.write(put("a", "x"));
    let reply = replica.write(KvOp::Delete { key: bytes("a") });
    assert_eq!((reply.body, reply.header.version), (Ok(Answer::Deleted(true)), Version(0)));
    assert_eq!(replica.value("a"), None);
    replica.assert_sound();
}

#[test]
fn append_begins_with_nothing_and_ends_at_the_limit() {
    let mut replica = Replica::new();
    assert_eq!(replica.answer(append("a", "x")), Answer::Appended(1));
    assert_eq!(replica.answer(append("a", "yz")), Answer::Appended(3));
    assert_eq!(replica.value("a"), Some(bytes("xyz")));
    let value = Bytes::from(vec![7; VALUE_BYTES_MAX]);
    replica.write(KvOp::Put { key: bytes("a"), value });
    assert_eq!(replica.answer(append("a", "")), Answer::Appended(VALUE_BYTES_MAX as u64));
    let version = replica.get("a").header.version;
    let refused = replica.write(append("a", "x"));
    assert!(matches!(refused.body, Err(ErrorReply::Invalid(_))), "{refused:?}");
    assert_eq!((refused.header.version, replica.get("a").header.version), (version, version));
    replica.assert_sound();
}

#[test]
fn a_swap_is_done_only_where_the_value_is_as_expected() {
    let mut replica = Replica::new();
    let value = |text| Expected::Value(bytes(text));
    // An absent key equals no value, not even the empty one.
    assert_eq!(replica.answer(swap("a", value(""), "x")), Answer::Swapped(false));
    replica.write(put("a", ""));
    assert_eq!(replica.answer(swap("a", value(""), "x")), Answer::Swapped(true));
    let refused = replica.write(swap("a", value("y"), "z"));
    assert_eq!(refused.body, Ok(Answer::Swapped(false)));
    assert_eq!(refused.header.version, replica.get("a").header.version);
    assert_eq!(replica.value("a"), Some(bytes("x")));
    replica.assert_sound();
}

#[test]
fn a_swap_is_done_only_where_the_version_is_as_expected() {
    let mut replica = Replica::new();
    let version = |version| Expected::Version(Version(version));
    assert_eq!(replica.answer(swap("a", version(1), "x")), Answer::Swapped(false));
    let created = replica.write(swap("a", version(0), "x"));
    assert_eq!((created.body, created.header.version), (Ok(Answer::Swapped(true)), Version(2)));
    assert_eq!(replica.answer(swap("a", version(0), "y")), Answer::Swapped(false));
    assert_eq!(replica.answer(swap("a", version(2), "y")), Answer::Swapped(true));
    assert_eq!(replica.get("a").header.version, Version(4));
    replica.assert_sound();
}

#[test]
fn a_repeated_write_executes_once_and_is_answered_the_same() {
    let mut replica = Replica::new();
    replica.write(put("a", "x"));
    let at_first = session(2, 1, 1, replica.time);
    let first = replica.apply(&client(SHARD, at_first, put_hash("a", "b")));
    replica.write(put("a", "other"));
    replica.settle_and_flush();
    let repeated = replica.apply(&client(SHARD, at_first, put_hash("a", "b")));
    assert_eq!(repeated.body, Ok(Answer::Value(Some(bytes("x")))));
    assert_eq!(repeated.body, first.body);
    assert_eq!(repeated.header.version, first.header.version);
    assert_eq!(replica.value("a"), Some(bytes("other")));
    // Failures are kept like everything else.
    let failing = session(2, 2, 1, replica.time);
    let op = swap("a", Expected::Version(Version(99)), "y");
    assert_eq!(replica.apply(&client(SHARD, failing, op.clone())).body, Ok(Answer::Swapped(false)));
    let version = replica.get("a").header.version;
    let op_now = swap("a", Expected::Version(version), "y");
    assert_eq!(replica.apply(&client(SHARD, failing, op_now)).body, Ok(Answer::Swapped(false)));
    assert_eq!(replica.apply(&client(SHARD, failing, op)).body, Ok(Answer::Swapped(false)));
    replica.assert_sound();
}

#[test]
fn refusals_of_the_session_change_nothing() {
    let mut replica = Replica::new();
    let digest = |replica: &mut Replica| replica.server.shards(true)[1].version;
    replica.apply(&client(SHARD, session(2, 5, 5, replica.time), put("a", "x")));
    let before = digest(&mut replica);
    let stale = replica.apply(&client(SHARD, session(2, 4, 4, replica.time), put("a", "y")));
    assert_eq!(stale.body, Err(ErrorReply::Stale));
    let far = session(3, 1, 1, replica.time + 10_000_000);
    let far = replica.apply(&client(SHARD, far, put("a", "y")));
    let log_time = WallMillis(replica.time);
    assert_eq!(far.body, Err(ErrorReply::StampTooFar { log_time }));
    assert_eq!(digest(&mut replica), before);
    assert_eq!(replica.value("a"), Some(bytes("x")));
    replica.assert_sound();
}

#[test]
fn f22_an_idle_session_is_forgotten_by_command_and_never_executed_as_new() {
    let mut replica = Replica::new();
    let old = session(2, 1, 1, replica.time);
    replica.apply(&client(SHARD, old, append("a", "x")));
    assert_eq!(replica.server.expired_sessions(WallMillis(replica.time)), None);
    replica.time += SESSION_IDLE_MILLIS + 10;
    let command = replica.server.expired_sessions(WallMillis(replica.time)).unwrap();
    replica.apply(&command);
    assert_eq!(replica.server.expired_sessions(WallMillis(replica.time)), None);
    let again = replica.apply(&client(SHARD, old, append("a", "x")));
    assert_eq!(again.body, Err(ErrorReply::SessionExpired { horizon: old.stamp }));
    assert_eq!(replica.value("a"), Some(bytes("x")));
    replica.assert_sound();
    let slot = replica.log.len();
    replica.settle_and_flush();
    replica.restart(slot);
    let again = replica.apply(&client(SHARD, old, append("a", "x")));
    assert_eq!(again.body, Err(ErrorReply::SessionExpired { horizon: old.stamp }));
    replica.assert_sound();
}

#[test]
fn a_shard_that_is_not_owned_is_refused_without_a_trace() {
    let mut replica = Replica::new();
    let identity = session(2, 1, 1, replica.time);
    let elsewhere = replica.apply(&client(ShardId(6), identity, put("a", "x")));
    assert!(matches!(elsewhere.body, Err(ErrorReply::NotReady(_))), "{elsewhere:?}");
    let store = GroupStore::new(&mut replica.overlay, GROUP);
    let op = KvOp::Get { key: bytes("a") };
    let read = replica.server.read(&store, ShardId(6), &op).unwrap();
    assert!(matches!(read.body, Err(ErrorReply::NotReady(_))), "{read:?}");
    // The same identity still executes where the shard is.
    assert_eq!(replica.apply(&client(SHARD, identity, put("a", "x"))).body, Ok(Answer::Done));
    replica.assert_sound();
}

#[test]
fn a_creation_that_is_told_again_empties_nothing() {
    let mut replica = Replica::empty();
    let shards = vec![(SHARD, ShardEpoch(1))];
    assert!(!replica.server.created(CopyId(7), &[SHARD]));
    let create = Command::Create { copy: CopyId(7), shards: shards.clone() };
    replica.apply(&create);
    replica.write(put("a", "x"));
    assert_eq!(replica.apply(&create).body, Ok(Answer::Done));
    assert!(replica.server.created(CopyId(7), &[SHARD]));
    assert!(!replica.server.created(CopyId(8), &[SHARD]));
    assert!(!replica.server.created(CopyId(7), &[SHARD, ShardId(9)]));
    assert_eq!(replica.value("a"), Some(bytes("x")));
    // Another creation of an owned shard makes none of its shards.
    let both = vec![(ShardId(9), ShardEpoch(1)), (SHARD, ShardEpoch(1))];
    let refused = replica.apply(&Command::Create { copy: CopyId(8), shards: both });
    assert!(matches!(refused.body, Err(ErrorReply::Refused(_))), "{refused:?}");
    assert!(!replica.server.owns(ShardId(9)));
    assert_eq!(replica.server.shards(true).len(), 1);
}

#[test]
fn unknown_commands_stop_the_replica() {
    let mut replica = Replica::new();
    for payload in [bytes(""), bytes("\u{7f}"), bytes("\u{1}short")] {
        let entry = Entry { slot: Slot(9), time: WallMillis(1), payload };
        let mut store = GroupStore::new(&mut replica.overlay, GROUP);
        let error = replica.server.apply(&mut store, &entry).unwrap_err();
        assert!(matches!(error, ApplyError::Unknown(_)), "{error}");
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let mut replica = Replica::new();
    let mut store = GroupStore::new(&mut replica.overlay, GROUP);
    store.put(&crate::keys::group_meta(), Bytes::from_static(&[1, 0, 0, 0, 2]));
    let error = KvServer::open(GROUP, &store).unwrap_err();
    assert!(error.0.contains("newer version"), "{error}");
}

#[test]
fn the_status_counts_keys_and_bytes() {
    let mut replica = Replica::new();
    replica.write(put("abc", "12345"));
    replica.write(put("d", "1"));
    replica.write(put("abc", "1"));
    let status = &replica.server.shards(true)[1];
    assert_eq!((status.shard, status.keys, status.bytes), (SHARD, 2, 6));
    assert_eq!((status.version, status.epoch, status.leading), (Version(3), ShardEpoch(1), true));
}

/// Any command, with many repetitions and few keys.
fn random_command(random: &mut Random, time: u64) -> Command {
    const KEYS: [&str; 4] = ["a", "b", "c", "{a}d"];
    const VALUES: [&str; 4] = ["", "x", "yy", "a longer value than the others"];
    let pick = |random: &mut Random, from: [&'static str; 4]| from[random.below(4) as usize];
    let key = bytes(pick(random, KEYS));
    let value = bytes(pick(random, VALUES));
    let op = match random.below(8) {
        0 => KvOp::Delete { key },
        1 => KvOp::PutHash { key, value, hash: HashKind::Sha256 },
        2 => KvOp::PutHash { key, value, hash: HashKind::Fnv1a32 },
        3 => KvOp::Append { key, value },
        4 => {
            let expected = Expected::Version(Version(random.below(20)));
            KvOp::CompareAndSwap { key, expected, value }
        }
        5 => {
            let expected = Expected::Value(bytes(pick(random, VALUES)));
            KvOp::CompareAndSwap { key, expected, value }
        }
        _ => KvOp::Put { key, value },
    };
    let number = random.between(1, 40);
    let session = session(u128::from(random.below(4)), number, number.saturating_sub(5), time);
    let shard = ShardId(random.between(3, 6) as u16);
    match random.below(30) {
        0 => Command::ExpireSessions { shard, before: WallMillis(time.saturating_sub(20)) },
        1 => {
            let shards = vec![(shard, ShardEpoch(1))];
            Command::Create { copy: CopyId(7 + random.below(2)), shards }
        }
        _ => Command::Client { session, shard, op },
    }
}

#[test]
fn replicas_with_equal_logs_are_equal_over_restarts() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let (mut steady, mut restarted) = (Replica::new(), Replica::new());
        let mut flushed = 0;
        for step in 0..400 {
            let command = random_command(&mut random, steady.time);
            let (left, right) = (steady.apply(&command), restarted.apply(&command));
            assert_eq!(left, right, "seed {seed}, step {step}: {command:?}");
            if random.chance(1, 40) {
                restarted.settle_and_flush();
                flushed = restarted.log.len();
            }
            if random.chance(1, 60) {
                restarted.restart(flushed);
            }
            if random.chance(1, 50) {
                steady.settle_and_flush();
            }
            let digests = (steady.server.digest().unwrap(), restarted.server.digest().unwrap());
            assert_eq!(digests.0, digests.1, "seed {seed}, step {step}");
        }
        steady.assert_sound();
        restarted.assert_sound();
        assert_eq!(steady.server.shards(false), restarted.server.shards(false), "seed {seed}");
    }
}

#[test]
fn rows_of_more_clients_than_are_kept_back_are_settled_meanwhile() {
    let most = crate::state_machine::UNSETTLED_ROWS_MAX;
    let mut replica = Replica::new();
    for number in 0..most as u128 + 40 {
        let identity = session(100 + number, 1, 1, replica.time);
        replica.apply(&client(SHARD, identity, append("a", "x")));
        assert!(replica.server.unsettled.len() <= most);
    }
    assert_eq!(replica.server.unsettled.len(), most);
    replica.assert_sound();
    // The oldest and the newest row say what was answered, here and after a start.
    replica.settle_and_flush();
    replica.restart(replica.log.len());
    replica.assert_sound();
    for number in [0, most as u128 + 39] {
        let identity = session(100 + number, 1, 1, replica.time);
        replica.apply(&client(SHARD, identity, append("a", "x")));
    }
    assert_eq!(replica.value("a").unwrap().len(), most + 40);
}

#[test]
fn different_histories_have_different_digests() {
    let (mut left, mut right) = (Replica::new(), Replica::new());
    for (replica, value) in [(&mut left, "x"), (&mut right, "y")] {
        replica.write(put("a", value));
        replica.write(put("a", "same"));
    }
    // The versions and the sessions are the same, and the values now too.
    assert_eq!(left.server.digest().unwrap(), right.server.digest().unwrap());
    right.write(put("a", "z"));
    left.write(put("a", "same"));
    assert_ne!(left.server.digest().unwrap(), right.server.digest().unwrap());
}
