//! The store on disk is renewed where a damaged block keeps it from being compacted.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base::Random;
use bytes::Bytes;
use runtime::{EngineOptions, LsmEngine};
use storage::{Batch, Engine, EngineError, MemoryEngine, Renewal, Renewed, ScanLimit};

const ALL: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };

/// In memory where that is possible: nothing here needs a real disk, and its syncs take long.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(path: &Path) -> Result<LsmEngine, EngineError> {
    LsmEngine::open(path, EngineOptions { cache_bytes: 1 << 20, open_files: 16 })
}

fn key(range: char, number: u64) -> Bytes {
    Bytes::from(format!("{range}{number:04}"))
}

fn value(seed: u64) -> Bytes {
    Bytes::from(format!("{seed} ").repeat(40))
}

fn batch(changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) -> Batch {
    let sorted: std::collections::BTreeMap<_, _> = changes.into_iter().collect();
    Batch { changes: sorted.into_iter().collect() }
}

/// Some records of the live ranges are written, and others removed.
fn some_changes(random: &mut Random) -> Batch {
    let changes = (0..20).map(|_| {
        let key = key(['b', 'c'][random.below(2) as usize], random.below(300));
        (key, random.chance(2, 3).then(|| value(random.next_u64())))
    });
    batch(changes.collect::<Vec<_>>())
}

fn tables(home: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(home.join("tables")) else { return Vec::new() };
    let mut tables: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    tables.sort();
    tables
}

fn renewed(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("renewed-{number}"))
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A store whose range `a`, which is dead, lies in a damaged block, and its twin in memory. It is
/// written to until its compaction fails.
fn stuck(dir: &Path, random: &mut Random) -> (LsmEngine, MemoryEngine, PathBuf) {
    let engine = open(dir).unwrap();
    let twin = MemoryEngine::new();
    let first =
        batch((0..300).flat_map(|n| ['a', 'b', 'c'].map(|range| (key(range, n), Some(value(n))))));
    engine.write(&first).unwrap();
    twin.write(&first).unwrap();
    drop(engine);
    let [table] = &tables(dir)[..] else { panic!("there are several tables") };
    let mut content = std::fs::read(table).unwrap();
    content[200] ^= 4;
    std::fs::write(table, content).unwrap();
    let engine = open(dir).unwrap();
    assert!(engine.scan(b"a", b"b", ALL).unwrap_err().is_damage());
    until("compaction fails", || {
        let changes = some_changes(random);
        engine.write(&changes).unwrap();
        twin.write(&changes).unwrap();
        engine.stuck().is_some()
    });
    assert!(engine.stuck().unwrap().is_damage());
    (engine, twin, table.clone())
}

/// Writes a range anew in small parts; something is done after each.
fn copy(engine: &LsmEngine, from: &str, to: &str, mut after: impl FnMut()) {
    let mut next = Some(Bytes::copy_from_slice(from.as_bytes()));
    while let Some(from) = next {
        let to = Bytes::copy_from_slice(to.as_bytes());
        let step = Renewal::Copy { from, to, bytes: 8_000 };
        let Renewed::Copied { bytes, next: more } = engine.renew(&step).unwrap() else {
            panic!("another step was answered")
        };
        assert!(bytes < 10_000, "{bytes} bytes");
        next = more;
        after();
    }
}

fn renew(engine: &LsmEngine, mut after: impl FnMut()) {
    assert_eq!(engine.renew(&Renewal::Begin), Ok(Renewed::Begun));
    after();
    copy(engine, "b", "c", &mut after);
    copy(engine, "c", "d", &mut after);
    assert!(matches!(engine.renew(&Renewal::End), Ok(Renewed::Ended { bytes }) if bytes > 0));
}

fn agree(engine: &LsmEngine, twin: &MemoryEngine, context: &str) {
    let (found, expected) = (engine.scan(b"b", b"d", ALL), twin.scan(b"b", b"d", ALL));
    assert!(found == expected, "{context}");
    for (range, number) in [('b', 7), ('b', 150), ('c', 0), ('c', 299)] {
        let key = key(range, number);
        assert!(engine.get(&key) == twin.get(&key), "{context}: {key:?}");
    }
}

#[test]
fn f11_a_store_with_a_damaged_block_is_renewed_while_it_is_written_to_and_compacted_again() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let dir = scratch();
        let (engine, twin, table) = stuck(dir.path(), &mut random);
        let view = engine.view();
        let before = engine.scan(b"b", b"d", ALL).unwrap();
        renew(&engine, || {
            for _ in 0..random.below(3) {
                let changes = some_changes(&mut random);
                engine.write(&changes).unwrap();
                twin.write(&changes).unwrap();
                agree(&engine, &twin, "renewed by and by");
            }
        });
        assert_eq!(engine.stuck(), None);
        agree(&engine, &twin, "renewed");
        assert_eq!(engine.scan(b"", b"b", ALL).unwrap(), [], "what is dead is gone");
        assert_eq!(view.0.scan(b"b", b"d", ALL).unwrap(), before, "a view is what it was");
        drop(view);
        assert!(!table.exists() && tables(dir.path()).is_empty(), "and so is what was damaged");

        // Each write is a run, and so many are never left alone.
        for _ in 0..60 {
            let changes = some_changes(&mut random);
            engine.write(&changes).unwrap();
            twin.write(&changes).unwrap();
        }
        until("few tables are left", || tables(&renewed(dir.path(), 1)).len() < 30);
        assert_eq!(engine.stuck(), None);
        drop(engine);
        let engine = open(dir.path()).unwrap();
        agree(&engine, &twin, "opened again");
        assert_eq!(engine.scan(b"", b"b", ALL).unwrap(), []);
    }
}

#[test]
fn f11_a_store_is_renewed_as_often_as_it_must() {
    let mut random = Random::new(1);
    let dir = scratch();
    let (engine, twin, _) = stuck(dir.path(), &mut random);
    renew(&engine, || {});
    renew(&engine, || {});
    agree(&engine, &twin, "renewed twice");
    drop(engine);
    let engine = open(dir.path()).unwrap();
    agree(&engine, &twin, "opened again");
    renew(&engine, || {});
    agree(&engine, &twin, "renewed three times");
    drop(engine);
    let homes: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(homes, ["renewed-3"]);
    agree(&open(dir.path()).unwrap(), &twin, "opened again");
}

#[test]
fn f11_a_crash_or_an_unreadable_part_undoes_a_renewal_and_loses_nothing() {
    for part in 0..12 {
        let mut random = Random::new(part);
        let dir = scratch();
        let (engine, twin, table) = stuck(dir.path(), &mut random);
        engine.renew(&Renewal::Begin).unwrap();
        let mut left = part;
        copy(&engine, "b", "c", || {
            if left > 0 {
                left -= 1;
                let changes = some_changes(&mut random);
                engine.write(&changes).unwrap();
                twin.write(&changes).unwrap();
            }
        });
        if part % 3 == 0 {
            let (from, to) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
            let step = Renewal::Copy { from, to, bytes: 1 << 20 };
            let error = engine.renew(&step).unwrap_err();
            assert!(error.is_damage(), "{error}");
            assert_eq!(engine.renew(&Renewal::GiveUp), Ok(Renewed::GivenUp));
            assert!(engine.renew(&Renewal::End).is_err());
            assert!(!renewed(dir.path(), 1).exists());
        }
        drop(engine);
        let engine = open(dir.path()).unwrap();
        assert!(table.exists() && !renewed(dir.path(), 1).exists());
        agree(&engine, &twin, "after a crash");
        // Damage is met again without a write.
        until("compaction fails again", || engine.stuck().is_some());
        renew(&engine, || {});
        agree(&engine, &twin, "renewed after a crash");
        drop(engine);
        agree(&open(dir.path()).unwrap(), &twin, "opened again");
    }
}

/// A process that ended just before, or just after, the new store took the place of the old.
#[test]
fn f11_the_mark_decides_which_store_is_the_one() {
    for marked in [false, true] {
        let mut random = Random::new(3);
        let dir = scratch();
        let (engine, twin, _) = stuck(dir.path(), &mut random);
        engine.renew(&Renewal::Begin).unwrap();
        copy(&engine, "b", "d", || {});
        drop(engine);
        let home = renewed(dir.path(), 1);
        if marked {
            std::fs::write(home.join("complete"), b"").unwrap();
        }
        let engine = open(dir.path()).unwrap();
        assert_eq!(tables(dir.path()).is_empty(), marked);
        assert_eq!(home.exists(), marked);
        assert_eq!(engine.scan(b"a", b"b", ALL).is_ok(), marked);
        agree(&engine, &twin, "opened again");
        drop(engine);
        if marked {
            std::fs::remove_file(home.join("complete")).unwrap();
            let error = open(dir.path()).err().unwrap();
            assert!(error.to_string().contains("is lost since"), "{error}");
            assert!(!tables(&home).is_empty(), "nothing was removed");
        }
    }
}

#[test]
fn f11_a_store_that_is_never_renewed_refuses_writes_before_it_has_too_many_runs() {
    let mut random = Random::new(4);
    let dir = scratch();
    let (engine, twin, _) = stuck(dir.path(), &mut random);
    let refused = loop {
        // All of it overlaps, so that each is a run of its own.
        let mut changes = some_changes(&mut random);
        changes.changes.insert(0, (key('b', 0), None));
        changes.changes.push((key('c', 999), Some(value(1))));
        let changes = batch(changes.changes);
        if let Err(error) = engine.write(&changes) {
            break error;
        }
        twin.write(&changes).unwrap();
    };
    assert!(refused.may_end() && refused.is_damage(), "{refused}");
    agree(&engine, &twin, "refused");
    drop(engine);
    let engine = open(dir.path()).unwrap();
    agree(&engine, &twin, "opened again");
    until("compaction fails again", || engine.stuck().is_some());
    assert!(engine.write(&some_changes(&mut random)).is_err());
    // While it is renewed, there is room for what that needs.
    let mut writes = 0;
    renew(&engine, || {
        if writes < 30 {
            writes += 1;
            let changes = some_changes(&mut random);
            engine.write(&changes).unwrap();
            twin.write(&changes).unwrap();
        }
    });
    agree(&engine, &twin, "renewed");
    for _ in 0..100 {
        let changes = some_changes(&mut random);
        engine.write(&changes).unwrap();
        twin.write(&changes).unwrap();
    }
    agree(&engine, &twin, "written again");
}
