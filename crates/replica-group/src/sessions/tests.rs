//! What a session table promises, shown on a table in memory.

use std::sync::Arc;

use base::GroupId;
use base::limits::{SESSION_BYTES_MAX, SESSION_OPEN_MAX, SESSION_ROWS_MAX};
use storage::{MemoryEngine, Overlay};

use super::row::ROW_HEADER_BYTES;
use super::*;

struct World {
    overlay: Overlay,
    sessions: Sessions,
    version: u64,
    changes: Vec<SessionChange>,
}

impl World {
    fn new() -> World {
        World {
            overlay: Overlay::new(Arc::new(MemoryEngine::new())),
            sessions: Sessions::new(b"sess".to_vec(), SessionCounters::default()),
            version: 0,
            changes: Vec::new(),
        }
    }

    fn check(&mut self, identity: Identity, time: u64) -> Verdict {
        let store = GroupStore::new(&mut self.overlay, GroupId(1));
        self.sessions.check(&store, &identity, WallMillis(time)).unwrap()
    }

    /// Executes a request with a reply; it must be new.
    fn execute(&mut self, identity: Identity, time: u64, reply: &Bytes) {
        assert_eq!(self.check(identity, time), Verdict::New, "{identity:?}");
        self.version += 1;
        let mut store = GroupStore::new(&mut self.overlay, GroupId(1));
        let (reply, version) = (reply.clone(), Version(self.version));
        let (time, changes) = (WallMillis(time), &mut self.changes);
        self.sessions.record(&mut store, &identity, reply, time, version, changes).unwrap();
    }

    fn expire(&mut self, before: u64) {
        self.version += 1;
        let mut store = GroupStore::new(&mut self.overlay, GroupId(1));
        let (before, version) = (WallMillis(before), Version(self.version));
        self.sessions.expire(&mut store, before, version, &mut self.changes).unwrap();
    }

    fn settle(&mut self) {
        let mut store = GroupStore::new(&mut self.overlay, GroupId(1));
        self.sessions.settle(&mut store, &mut self.changes);
    }

    /// The counters as a reading of all rows gives them.
    fn counted(&mut self) -> (u64, u64) {
        self.settle();
        let store = GroupStore::new(&mut self.overlay, GroupId(1));
        let rows = self.sessions.stored_rows(&store).unwrap();
        (rows.len() as u64, rows.iter().map(|row| row.bytes).sum())
    }

    fn assert_counters(&mut self) {
        let counters = self.sessions.counters();
        assert_eq!(self.counted(), (counters.rows, counters.bytes));
    }
}

fn identity(client: u128, number: u64, first: u64, stamp: u64) -> Identity {
    Identity {
        client: ClientId(client),
        number: RequestNumber(number),
        first_incomplete: RequestNumber(first),
        stamp: WallMillis(stamp),
    }
}

fn reply(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn a_repeated_request_gets_its_first_reply() {
    let mut world = World::new();
    world.execute(identity(1, 1, 1, 10), 10, &reply("one"));
    world.execute(identity(1, 2, 1, 11), 11, &reply("two"));
    for (number, text) in [(2, "two"), (1, "one")] {
        let verdict = world.check(identity(1, number, 1, 11), 99);
        assert!(matches!(&verdict, Verdict::Repeat(bytes) if *bytes == text), "{verdict:?}");
    }
    world.assert_counters();
}

#[test]
fn requests_may_be_executed_out_of_order() {
    let mut world = World::new();
    world.execute(identity(1, 5, 1, 10), 10, &reply("five"));
    world.execute(identity(1, 3, 1, 10), 11, &reply("three"));
    let verdict = world.check(identity(1, 5, 1, 10), 12);
    assert!(matches!(&verdict, Verdict::Repeat(bytes) if *bytes == "five"), "{verdict:?}");
    assert!(matches!(world.check(identity(1, 4, 1, 10), 12), Verdict::New));
}

#[test]
fn what_the_client_closed_is_dropped_and_stale() {
    let mut world = World::new();
    world.execute(identity(1, 1, 1, 10), 10, &reply("one"));
    world.execute(identity(1, 2, 2, 11), 11, &reply("two"));
    assert!(matches!(world.check(identity(1, 1, 1, 10), 12), Verdict::Stale));
    assert_eq!(world.sessions.counters().bytes, 3);
    world.assert_counters();
}

#[test]
fn a_lower_first_incomplete_brings_nothing_back() {
    let mut world = World::new();
    world.execute(identity(1, 7, 7, 10), 10, &reply("seven"));
    assert!(matches!(world.check(identity(1, 6, 1, 10), 12), Verdict::Stale));
}

#[test]
fn what_was_forgotten_is_never_executed_as_new() {
    let mut world = World::new();
    world.execute(identity(1, 1, 1, 1_000), 10, &reply("one"));
    world.execute(identity(2, 1, 1, 20), 500, &reply("other"));
    world.expire(500);
    assert_eq!(world.sessions.counters().horizon, WallMillis(1_000));
    let verdict = world.check(identity(1, 1, 1, 1_000), 600);
    assert!(matches!(verdict, Verdict::Expired { horizon: WallMillis(1_000) }), "{verdict:?}");
    // A stamp above the horizon is new, and a row that stayed still answers.
    assert!(matches!(world.check(identity(1, 2, 1, 1_001), 600), Verdict::New));
    assert!(matches!(world.check(identity(2, 1, 1, 20), 600), Verdict::Repeat(_)));
    world.assert_counters();
}

#[test]
fn a_row_that_came_back_does_not_vouch_for_what_was_forgotten_before() {
    let mut world = World::new();
    world.execute(identity(1, 1, 1, 100), 10, &reply("one"));
    world.expire(11);
    world.execute(identity(1, 2, 1, 101), 12, &reply("two"));
    assert!(matches!(world.check(identity(1, 1, 1, 100), 13), Verdict::Expired { .. }));
}

#[test]
fn the_horizon_never_goes_down() {
    let mut world = World::new();
    world.execute(identity(1, 1, 1, 1_000), 10, &reply("one"));
    world.expire(11);
    world.execute(identity(2, 1, 1, 1_001), 12, &reply("two"));
    world.execute(identity(3, 1, 1, 1_005), 13, &reply("three"));
    world.expire(13);
    assert_eq!(world.sessions.counters().horizon, WallMillis(1_001));
    assert!(world.sessions.may_expire(WallMillis(14)));
    assert!(!world.sessions.may_expire(WallMillis(13)));
}

#[test]
fn a_stamp_far_ahead_leaves_no_trace() {
    let mut world = World::new();
    let far = 1_000 + STAMP_AHEAD_MILLIS_MAX + 1;
    let verdict = world.check(identity(1, 1, 1, far), 1_000);
    assert!(matches!(verdict, Verdict::TooFar { log_time: WallMillis(1_000) }), "{verdict:?}");
    assert_eq!(world.sessions.counters(), SessionCounters::default());
    // The same number under a better stamp is new.
    world.execute(identity(1, 1, 1, 1_001), 1_000, &reply("one"));
}

#[test]
fn a_client_with_too_many_open_answers_must_close_some() {
    let mut world = World::new();
    for number in 1..=SESSION_OPEN_MAX as u64 {
        world.execute(identity(1, number, 1, 10), 10, &reply("x"));
    }
    let next = SESSION_OPEN_MAX as u64 + 1;
    assert!(matches!(world.check(identity(1, next, 1, 10), 10), Verdict::Full));
    assert!(matches!(world.check(identity(1, next, 2, 10), 10), Verdict::New));
}

#[test]
fn a_full_table_forgets_the_rows_that_were_idle_longest() {
    let mut world = World::new();
    for client in 0..=SESSION_ROWS_MAX as u64 {
        world.execute(identity(u128::from(client), 1, 1, 5_000 + client), client, &reply("x"));
    }
    let counters = world.sessions.counters();
    assert!(counters.rows <= SESSION_ROWS_MAX as u64);
    let gone = SESSION_ROWS_MAX as u64 + 1 - counters.rows;
    assert_eq!(counters.horizon, WallMillis(5_000 + gone - 1));
    let oldest_left = identity(u128::from(gone), 1, 1, 5_000 + gone);
    assert!(matches!(world.check(oldest_left, 9_000), Verdict::Repeat(_)));
    world.assert_counters();
}

#[test]
fn large_replies_are_bounded_in_bytes() {
    let mut world = World::new();
    let large = Bytes::from(vec![7; SESSION_BYTES_MAX / 4]);
    for client in 0..12 {
        let time = 10 + client as u64;
        world.execute(identity(client, 1, 1, time), time, &large);
        assert!(world.sessions.counters().bytes <= SESSION_BYTES_MAX as u64);
        world.assert_counters();
    }
    // One client alone is stopped before it fills the table.
    world.execute(identity(20, 1, 1, 30), 30, &large);
    world.execute(identity(20, 2, 1, 30), 30, &large);
    assert!(matches!(world.check(identity(20, 3, 1, 30), 30), Verdict::Full));
    assert!(matches!(world.check(identity(20, 3, 2, 30), 30), Verdict::New));
}

#[test]
fn the_changes_tell_every_record_before_and_after() {
    let mut world = World::new();
    for number in 1..=3 {
        let client = u128::from(number % 2);
        world.execute(identity(client, number, 1, 10 + number), number, &reply("x"));
    }
    world.expire(3);
    let mut seen = BTreeMap::new();
    for change in std::mem::take(&mut world.changes) {
        assert_eq!(seen.get(&change.key), change.before.as_ref());
        match change.after {
            Some(after) => seen.insert(change.key, after),
            None => seen.remove(&change.key),
        };
    }
    let store = GroupStore::new(&mut world.overlay, GroupId(1));
    let limit = ScanLimit { records: 100, bytes: 1 << 20 };
    let stored = store.scan(b"sess", b"sest", limit).unwrap();
    let stored: Vec<_> = stored.into_iter().map(|(key, v)| (key[4..].to_vec(), v)).collect();
    assert_eq!(stored, seen.into_iter().collect::<Vec<_>>());
    assert_eq!(stored.len(), 2, "the horizon and one row are left");
    assert_eq!(record_version(&stored[0].1).unwrap(), Version(4));
}

#[test]
fn settling_changes_nothing_that_is_answered() {
    for seed in 0..50 {
        let mut random = base::Random::new(seed);
        let (mut often, mut never) = (World::new(), World::new());
        for time in 1..300 {
            let number = random.between(1, 30);
            let stamp = random.between(time, time + 40);
            let of = identity(
                u128::from(random.below(3)),
                number,
                number.saturating_sub(random.below(8)),
                stamp,
            );
            let verdict = often.check(of, time);
            assert_eq!(verdict, never.check(of, time), "seed {seed}, time {time}");
            if verdict == Verdict::New {
                let reply = Bytes::from(vec![7; random.below(20) as usize]);
                often.execute(of, time, &reply);
                never.execute(of, time, &reply);
            }
            if random.chance(1, 4) {
                often.settle();
            }
            if random.chance(1, 4) {
                let mut store = GroupStore::new(&mut often.overlay, GroupId(1));
                let client = ClientId(u128::from(random.below(3)));
                often.sessions.settle_row(&mut store, client, &mut often.changes);
            }
            if random.chance(1, 20) {
                often.settle();
                let counters = often.sessions.counters();
                often.sessions = Sessions::new(b"sess".to_vec(), counters);
            }
            if random.chance(1, 60) {
                let before = time.saturating_sub(20);
                often.expire(before);
                never.expire(before);
            }
            assert_eq!(often.sessions.counters(), never.sessions.counters());
        }
        often.assert_counters();
        never.assert_counters();
    }
}

#[test]
fn damaged_rows_are_an_error_and_not_a_panic() {
    let mut row = Row::default();
    row.record(&identity(1, 1, 1, 1), reply("one"), WallMillis(1), Version(1));
    let stored = row.encode();
    for cut in 0..stored.len() {
        // A cut right behind the header is a row without answers.
        if cut != ROW_HEADER_BYTES {
            assert!(Row::read(stored.slice(..cut)).is_err(), "{cut}");
        }
    }
    assert!(Row::read(stored).is_ok());
}

#[test]
fn a_record_is_told_as_settling_would_leave_it() {
    let mut world = World::new();
    let key = row_key(ClientId(1));
    let record_at = |world: &mut World, key: &[u8]| {
        let store = GroupStore::new(&mut world.overlay, GroupId(1));
        world.sessions.record_at(&store, key).unwrap()
    };
    assert_eq!(record_at(&mut world, &key), None);
    world.execute(identity(1, 1, 1, 10), 10, &Bytes::from_static(b"reply"));
    let told = record_at(&mut world, &key).unwrap();
    assert_eq!(told.len(), world.sessions.row_bytes(ClientId(1)));
    assert_eq!(record_version(&told), Ok(Version(1)));
    assert!(is_record(&key, &told));
    world.settle();
    assert_eq!(world.changes.pop().unwrap().after, Some(told.clone()));
    assert_eq!(record_at(&mut world, &key), Some(told.clone()));
    world.expire(20);
    assert_eq!(record_at(&mut world, &key), None);
    let horizon = record_at(&mut world, &[]).unwrap();
    assert!(is_record(&[], &horizon));
    // Each kind under its own key only, and whole.
    assert!(!is_record(&[], &told) && !is_record(&key, &horizon) && !is_record(b"k", &told));
    for cut in [0, 1, ROW_HEADER_BYTES, told.len() - 1] {
        let damaged = told.slice(..cut);
        assert!(!is_record(&key, &damaged) || cut == ROW_HEADER_BYTES, "{cut}");
    }
}
