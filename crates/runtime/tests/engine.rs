//! The store on disk against its twin in memory, through restarts and kills.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base::{Generation, GroupId, Random};
use bytes::Bytes;
use replica_group::state_machine::prefix;
use runtime::{EngineOptions, LsmEngine};
use storage::{Batch, Engine, MemoryEngine, ScanLimit};

const ALL: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };

/// In memory where that is possible: nothing here needs a real disk, and its syncs take long.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(path: &Path) -> LsmEngine {
    LsmEngine::open(path, EngineOptions { cache_bytes: 1 << 20, open_files: 16 }).unwrap()
}

fn batch(changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) -> Batch {
    let sorted: std::collections::BTreeMap<_, _> = changes.into_iter().collect();
    Batch { changes: sorted.into_iter().collect() }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[test]
fn records_are_found_overwritten_removed_and_scanned_in_order() {
    let dir = scratch();
    let engine = open(dir.path());
    assert_eq!(engine.get(b"a"), Ok(None));
    assert_eq!(engine.get(b""), Ok(None));
    engine.write(&Batch::default()).unwrap();
    let put = |key: &str, value: &str| (bytes(key), Some(bytes(value)));
    engine.write(&batch([put("a", "1"), put("b", ""), put("c", "3")])).unwrap();
    engine.write(&batch([put("a", "2"), (bytes("c"), None), (bytes("d"), None)])).unwrap();
    assert_eq!(engine.get(b"a"), Ok(Some(bytes("2"))));
    assert_eq!(engine.get(b"b"), Ok(Some(Bytes::new())));
    assert_eq!(engine.get(b"c"), Ok(None));
    let all = [(bytes("a"), bytes("2")), (bytes("b"), Bytes::new())];
    assert_eq!(engine.scan(b"", b"z", ALL).unwrap(), all);
    assert_eq!(engine.scan(b"a", b"b", ALL).unwrap(), all[..1]);
    assert_eq!(engine.scan(b"b", b"a", ALL).unwrap(), []);
    let one = ScanLimit { records: 0, bytes: 0 };
    assert_eq!(engine.scan(b"", b"z", one).unwrap(), all[..1]);
    assert!(engine.disk_bytes() > 0);
}

fn random_key(random: &mut Random) -> Bytes {
    // Few keys with common beginnings, so that most are rewritten often.
    bytes(&format!("{}{}", ["a", "ab", "b", "zz"][random.below(4) as usize], random.below(300)))
}

fn random_value(random: &mut Random) -> Option<Bytes> {
    let len = match random.below(20) {
        0..4 => return None,
        4 => 200_000,
        5..8 => 3_000,
        _ => random.below(40) as usize,
    };
    Some(Bytes::from(vec![random.next_u64() as u8; len]))
}

fn compare(engine: &LsmEngine, twin: &MemoryEngine, random: &mut Random, context: &str) {
    for _ in 0..50 {
        let key = random_key(random);
        assert!(engine.get(&key) == twin.get(&key), "{context}: get {key:?}");
    }
    for _ in 0..5 {
        let (from, to) = (random_key(random), random_key(random));
        let limit = ScanLimit {
            records: 1 + random.below(100) as usize,
            bytes: random.below(300_000) as usize,
        };
        let found = engine.scan(&from, &to, limit);
        assert!(found == twin.scan(&from, &to, limit), "{context}: scan {from:?} to {to:?}");
    }
}

#[test]
fn it_agrees_with_its_twin_in_memory_through_restarts() {
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let dir = scratch();
        let mut engine = open(dir.path());
        let twin = MemoryEngine::new();
        for step in 0..120 {
            let context = format!("seed {seed}, step {step}");
            let most = if random.chance(1, 4) { 400 } else { 10 };
            let count = 1 + random.below(most);
            let changes =
                batch((0..count).map(|_| (random_key(&mut random), random_value(&mut random))));
            engine.write(&changes).unwrap();
            twin.write(&changes).unwrap();
            compare(&engine, &twin, &mut random, &context);
            if random.chance(1, 20) {
                drop(engine);
                engine = open(dir.path());
                compare(&engine, &twin, &mut random, &format!("{context}, reopened"));
            }
        }
        let all = engine.scan(b"", b"\xff", ALL);
        assert!(all == twin.scan(b"", b"\xff", ALL), "seed {seed}: everything");
    }
}

#[test]
fn largest_values_and_keys_come_back() {
    let dir = scratch();
    let key = Bytes::from(vec![0xff; base::limits::KEY_BYTES_MAX + 100]);
    let value = Bytes::from(vec![7; base::limits::VALUE_BYTES_MAX + 100]);
    let engine = open(dir.path());
    engine.write(&batch([(key.clone(), Some(value.clone())), (bytes("k"), None)])).unwrap();
    assert!(engine.get(&key) == Ok(Some(value.clone())));
    drop(engine);
    assert!(open(dir.path()).get(&key) == Ok(Some(value)));
}

/// Compactions run all the while, and reads must neither fail nor go back in time.
#[test]
fn reads_during_writes_see_whole_batches_and_never_older_ones() {
    let dir = scratch();
    let engine = open(dir.path());
    let (ended, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let numbered = |number: u64| {
        let value = Bytes::from(number.to_be_bytes().repeat(20));
        batch((0..50).map(|key| (bytes(&format!("k{key:02}")), Some(value.clone()))))
    };
    let number = |value: &Bytes| u64::from_be_bytes(value[..8].try_into().unwrap());
    engine.write(&numbered(0)).unwrap();
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (engine, ended, written) = (&engine, &ended, &written);
            scope.spawn(move || {
                let mut random = Random::new(reader);
                while !ended.load(Ordering::Acquire) {
                    let floor = written.load(Ordering::Acquire);
                    let key = format!("k{:02}", random.below(50));
                    let value = engine.get(key.as_bytes()).unwrap().unwrap();
                    assert!(number(&value) >= floor, "an older value came back");
                    let all = engine.scan(b"k", b"l", ALL).unwrap();
                    assert_eq!(all.len(), 50);
                    assert!(number(&all[0].1) >= floor);
                    assert!(all.iter().all(|(_, value)| *value == all[0].1), "half a batch");
                }
            });
        }
        for number in 1..300 {
            engine.write(&numbered(number)).unwrap();
            written.store(number, Ordering::Release);
        }
        ended.store(true, Ordering::Release);
    });
}

const CHILD: &str = "DECREE_ENGINE_TEST_DIRECTORY";

/// The child of the test below: writes numbered batches and says which are durable.
fn write_until_killed(path: &Path) -> ! {
    let engine = open(path);
    let mut random = Random::new(std::process::id().into());
    let first = engine.get(b"batch").unwrap().map_or(0, |value| number_in(&value));
    let mut out = std::io::stdout();
    for number in first + 1.. {
        let value = Bytes::from(number.to_string());
        let filler = Bytes::from(vec![number as u8; random.below(60_000) as usize]);
        let mut changes = vec![(bytes("batch"), Some(value.clone()))];
        changes.extend((0..40).map(|key| (bytes(&format!("k{key:02}")), Some(value.clone()))));
        changes.push((bytes(&format!("on{}", number % 7)), Some(filler)));
        changes.push((bytes(&format!("on{}", (number + 1) % 7)), None));
        engine.write(&batch(changes)).unwrap();
        writeln!(out, "durable {number}").and_then(|()| out.flush()).unwrap();
    }
    unreachable!("the parent kills this process long before")
}

fn number_in(value: &Bytes) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

#[test]
fn a_kill_leaves_all_of_a_batch_or_nothing_and_no_durable_one_is_lost() {
    if let Some(path) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&path));
    }
    let dir = scratch();
    let mut random = Random::new(5);
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("a_kill_leaves_all_of_a_batch_or_nothing_and_no_durable_one_is_lost")
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut durable = 0;
        let mut seen = 0;
        let enough = 1 + random.below(40);
        let note = |line: &str, durable: &mut u64| {
            let number = line.strip_prefix("durable ").and_then(|text| text.parse().ok());
            *durable = number.unwrap_or(*durable);
            number.is_some()
        };
        while seen < enough {
            let line = lines.next().unwrap().unwrap();
            seen += u64::from(note(&line, &mut durable));
        }
        // At any point of the next batch or of a compaction.
        std::thread::sleep(Duration::from_micros(random.below(8_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            note(&line, &mut durable);
        }

        let engine = open(dir.path());
        let last = engine.get(b"batch").unwrap().unwrap();
        let number = number_in(&last);
        assert!(number == durable || number == durable + 1, "round {round}: {number}, {durable}");
        for key in 0..40 {
            let value = engine.get(format!("k{key:02}").as_bytes()).unwrap();
            assert_eq!(value.as_ref(), Some(&last), "round {round}: key {key}");
        }
        let filler = engine.get(format!("on{}", number % 7).as_bytes()).unwrap().unwrap();
        assert!(filler.iter().all(|byte| *byte == number as u8), "round {round}");
        let removed = engine.get(format!("on{}", (number + 1) % 7).as_bytes()).unwrap();
        assert_eq!(removed, None, "round {round}: a removed record is back");
    }
}

fn numbered(number: u64) -> Batch {
    let value = |key| Bytes::from(format!("{key}-{number}").repeat(20));
    batch((0..500).map(|key| (bytes(&format!("k{key:03}")), Some(value(key)))))
}

/// Flipped bits show as errors, or lie where nothing looks, but never as another value.
#[test]
fn damage_anywhere_is_an_error_and_never_a_wrong_value() {
    let mut random = Random::new(9);
    let mut errors = 0;
    for round in 0..40 {
        let dir = scratch();
        let engine = open(dir.path());
        engine.write(&numbered(6)).unwrap();
        engine.write(&numbered(7)).unwrap();
        drop(engine);
        let mut files = vec![dir.path().join("current")];
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            files.extend(path.is_file().then_some(path));
        }
        for entry in std::fs::read_dir(dir.path().join("tables")).unwrap() {
            files.push(entry.unwrap().path());
        }
        files.sort();
        let file = random.pick(&files).unwrap().clone();
        let mut content = std::fs::read(&file).unwrap();
        // The last bytes hold a table's own description.
        let from = if random.chance(1, 2) { content.len().saturating_sub(2_000) } else { 0 };
        let at = from + random.below((content.len() - from) as u64) as usize;
        content[at] ^= 1 << random.below(8);
        std::fs::write(&file, &content).unwrap();

        let context = format!("round {round}, byte {at} of {}", file.display());
        let options = EngineOptions { cache_bytes: 1 << 20, open_files: 16 };
        let Ok(engine) = LsmEngine::open(dir.path(), options) else {
            errors += 1;
            continue;
        };
        for (key, value) in numbered(7).changes {
            match engine.get(&key) {
                Ok(found) => assert!(found == value, "{context}: key {key:?}"),
                Err(_) => errors += 1,
            }
        }
        match engine.scan(b"k", b"l", ALL) {
            Ok(found) => {
                let found = found.into_iter().map(|(key, value)| (key, Some(value)));
                assert!(batch(found) == numbered(7), "{context}: scan");
            }
            Err(_) => errors += 1,
        }
    }
    assert!(errors > 0);
}

/// What a start finds damaged is set aside, and copies of the states take its place; any other
/// error ends the node.
#[test]
fn f11_whatever_keeps_a_store_from_being_opened_is_known_for_damage() {
    let mut random = Random::new(10);
    let dir = scratch();
    let engine = open(dir.path());
    engine.write(&numbered(6)).unwrap();
    engine.write(&numbered(7)).unwrap();
    drop(engine);
    let tables = std::fs::read_dir(dir.path().join("tables")).unwrap();
    let table = tables.map(|entry| entry.unwrap().path()).max().unwrap();
    let content = std::fs::read(&table).unwrap();
    let options = EngineOptions { cache_bytes: 1 << 20, open_files: 16 };
    // The last bytes hold a table's own description.
    let described = content.len().saturating_sub(1_200)..content.len();
    let (mut refused, mut cut_short) = (0, 0);
    let flips = described.map(|at| (at, 1 << random.below(8)));
    // The directory's place in it, behind which is its length: no file goes as far as this says.
    let farthest = (content.len() - 9, 1 << 7);
    for (at, flip) in flips.chain([farthest]) {
        let mut damaged = content.clone();
        damaged[at] ^= flip;
        std::fs::write(&table, &damaged).unwrap();
        if let Err(error) = LsmEngine::open(dir.path(), options) {
            assert!(error.is_damage(), "byte {at} of {}: {error}", content.len());
            refused += 1;
            cut_short += u64::from(error.to_string().contains("fill whole buffer"));
        }
    }
    assert!(refused > 100 && cut_short > 0, "{refused}, {cut_short}");
}

#[test]
fn a_store_that_lost_its_version_is_not_taken_for_a_new_one() {
    let dir = scratch();
    let engine = open(dir.path());
    engine.write(&numbered(1)).unwrap();
    drop(engine);
    std::fs::remove_file(dir.path().join("current")).unwrap();
    let error = LsmEngine::open(dir.path(), EngineOptions::default()).err().unwrap();
    assert!(error.to_string().contains("no file that names its version"), "{error}");
}

#[test]
fn a_damaged_or_unusable_directory_is_an_error_with_its_name() {
    let dir = scratch();
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    let error = LsmEngine::open(&file, EngineOptions::default()).err().unwrap();
    assert!(error.to_string().contains("file"), "{error}");

    let path = dir.path().join("engine");
    let engine = open(&path);
    engine.write(&batch([(bytes("k"), Some(bytes("v")))])).unwrap();
    drop(engine);
    std::fs::write(path.join("current"), b"garbage").unwrap();
    let error = LsmEngine::open(&path, EngineOptions::default()).err().unwrap();
    assert!(error.to_string().contains("cannot be opened"), "{error}");
}

#[test]
fn a_view_shows_what_was_there_when_it_was_taken_whatever_is_written_and_compacted_since() {
    let dir = scratch();
    let engine = open(dir.path());
    let round = |number: u64| {
        let value = format!("{number} {}", "v".repeat(2_000));
        let records = (0..200).map(|key| (bytes(&format!("key {key:03}")), Some(bytes(&value))));
        batch(records)
    };
    let mut views = Vec::new();
    for number in 0..60 {
        engine.write(&round(number)).unwrap();
        if number % 10 == 0 {
            views.push((number, engine.view()));
        }
    }
    engine.write(&batch((0..200).map(|key| (bytes(&format!("key {key:03}")), None)))).unwrap();
    assert_eq!(engine.scan(b"", b"z", ALL).unwrap(), []);
    for (number, view) in views {
        let expected: Vec<(Bytes, Bytes)> =
            round(number).changes.into_iter().map(|(key, value)| (key, value.unwrap())).collect();
        assert_eq!(view.0.scan(b"", b"z", ALL).unwrap(), expected);
        assert_eq!(view.0.get(b"key 017").unwrap(), Some(expected[17].1.clone()));
    }
}

/// F11: a table rots in which states of groups lie, and the node's own records. What takes the place
/// of a state must not lie between its first and its last key.
#[test]
fn f11_a_copy_of_a_state_can_be_read_beside_a_damaged_table_with_the_old_one() {
    let key = |group: u64, generation: u32, key: &str| {
        let prefix = prefix(GroupId(group), Generation(generation));
        Bytes::from([&prefix[..], key.as_bytes()].concat())
    };
    let state = |generation: u32, group: u64| {
        (0..9).map(move |n| (key(group, generation, &n.to_string()), Some(bytes("value"))))
    };
    let (mut damaged, mut at) = (0, 0);
    loop {
        let dir = scratch();
        let engine = open(dir.path());
        engine
            .write(&batch(state(0, 0).chain(state(0, 1)).chain(state(0, GroupId::NODE.0))))
            .unwrap();
        drop(engine);
        let tables = dir.path().join("tables");
        let files: Vec<_> =
            std::fs::read_dir(tables).unwrap().map(|file| file.unwrap().path()).collect();
        let [table] = &files[..] else { panic!("{files:?}") };
        let mut contents = std::fs::read(table).unwrap();
        let Some(byte) = contents.get_mut(at) else { break };
        *byte ^= 1;
        std::fs::write(table, contents).unwrap();
        at += 5;

        // A store that is not opened is set aside as a whole.
        let options = EngineOptions { cache_bytes: 1 << 20, open_files: 16 };
        let Ok(engine) = LsmEngine::open(dir.path(), options) else { continue };
        damaged += usize::from(engine.scan(&key(0, 0, ""), &key(0, 0, "~"), ALL).is_err());
        engine.write(&batch(state(1, 0))).unwrap();
        let copy = engine.scan(&key(0, 1, ""), &key(0, 1, "~"), ALL);
        assert_eq!(copy.map(|records| records.len()), Ok(9), "byte {at}");
    }
    assert!(damaged > 20, "{damaged} places");
}
