//! The overlay against an ordered map that does the same in memory.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Random;
use bytes::Bytes;
use proptest::prelude::*;
use storage::{Engine, EngineError, Flush, MemoryEngine, Overlay, ScanLimit};

const ALL: ScanLimit = ScanLimit { records: usize::MAX, bytes: usize::MAX };

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u16),
    Delete(u8),
    Get(u8),
    Scan(u8, u8, usize, usize),
    Freeze,
    Write,
    Flushed,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<u8>(), any::<u16>()).prop_map(|(key, value)| Step::Put(key, value)),
        4 => any::<u8>().prop_map(Step::Delete),
        3 => any::<u8>().prop_map(Step::Get),
        3 => (any::<u8>(), any::<u8>(), 1..20usize, 1..200usize)
            .prop_map(|(from, to, records, bytes)| Step::Scan(from, to, records, bytes)),
        2 => Just(Step::Freeze),
        2 => Just(Step::Write),
        2 => Just(Step::Flushed),
        1 => Just(Step::Crash),
    ]
}

fn key(n: u8) -> Bytes {
    // Few keys and of several lengths, so that they meet often.
    Bytes::from(vec![n % 40; usize::from(n % 3) + 1])
}

fn value(n: u16) -> Bytes {
    Bytes::from(vec![n as u8; usize::from(n % 23)])
}

type Twin = BTreeMap<Bytes, Bytes>;

fn twin_scan(twin: &Twin, from: &Bytes, to: &Bytes, limit: ScanLimit) -> Vec<(Bytes, Bytes)> {
    let mut out: Vec<(Bytes, Bytes)> = Vec::new();
    let mut bytes = 0;
    for (key, value) in twin.iter().filter(|(key, _)| *key >= from && *key < to) {
        bytes += key.len() + value.len();
        if !out.is_empty() && (out.len() >= limit.records || bytes > limit.bytes) {
            break;
        }
        out.push((key.clone(), value.clone()));
    }
    out
}

/// The overlay, the twin, and the twin as it was at each durable flush.
struct Pair {
    engine: Arc<MemoryEngine>,
    overlay: Overlay,
    twin: Twin,
    durable: Twin,
    /// The flush under way, the twin when it began, and whether the engine has it.
    flush: Option<(Flush, Twin, bool)>,
    applied: u64,
}

impl Pair {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Put(k, v) => {
                self.overlay.put(key(k), value(v));
                self.twin.insert(key(k), value(v));
            }
            Step::Delete(k) => {
                self.overlay.delete(key(k));
                self.twin.remove(&key(k));
            }
            Step::Get(k) => {
                assert_eq!(self.overlay.get(&key(k)).unwrap(), self.twin.get(&key(k)).cloned());
            }
            Step::Scan(from, to, records, bytes) => {
                let (from, to, limit) = (key(from), key(to), ScanLimit { records, bytes });
                let found = self.overlay.scan(&from, &to, limit).unwrap();
                assert_eq!(found, twin_scan(&self.twin, &from, &to, limit));
            }
            Step::Freeze => self.freeze(),
            Step::Write => {
                if let Some((flush, twin, written)) = &mut self.flush
                    && !*written
                {
                    self.engine.write(&flush.batch).unwrap();
                    *written = true;
                    self.durable = twin.clone();
                }
            }
            Step::Flushed => {
                if let Some((flush, _, true)) = &self.flush {
                    self.overlay.flushed(flush.id);
                    self.flush = None;
                }
            }
            Step::Crash => {
                self.overlay = Overlay::new(self.engine.clone());
                self.twin = self.durable.clone();
                self.flush = None;
            }
        }
    }

    fn freeze(&mut self) {
        self.applied += 1;
        let applied = (Bytes::from_static(b"applied"), Bytes::from(self.applied.to_string()));
        let flush = self.overlay.freeze(vec![(applied.0.clone(), Some(applied.1.clone()))]);
        assert_eq!(flush.is_none(), self.flush.is_some(), "one flush at a time");
        if let Some(flush) = flush {
            assert!(flush.batch.changes.is_sorted_by(|a, b| a.0 < b.0));
            assert_eq!(self.overlay.bytes(), 0);
            self.twin.insert(applied.0, applied.1);
            self.flush = Some((flush, self.twin.clone(), false));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn i25_the_overlay_is_the_map_and_after_a_crash_the_last_whole_flush(
        steps in prop::collection::vec(step(), 1..300)
    ) {
        let engine = Arc::new(MemoryEngine::new());
        let mut pair = Pair {
            overlay: Overlay::new(engine.clone()),
            engine,
            twin: Twin::new(),
            durable: Twin::new(),
            flush: None,
            applied: 0,
        };
        for step in steps {
            pair.apply(step);
        }
        let (from, to) = (Bytes::new(), Bytes::from_static(&[255; 9]));
        let found = pair.overlay.scan(&from, &to, ALL).unwrap();
        prop_assert_eq!(found, twin_scan(&pair.twin, &from, &to, ALL));
    }
}

#[test]
fn a_scan_finds_the_one_record_left_among_many_removed() {
    let engine = Arc::new(MemoryEngine::new());
    let mut overlay = Overlay::new(engine.clone());
    for i in 0..1_000u32 {
        overlay.put(Bytes::from(i.to_be_bytes().to_vec()), Bytes::from_static(b"v"));
    }
    let flush = overlay.freeze(Vec::new()).unwrap();
    engine.write(&flush.batch).unwrap();
    overlay.flushed(flush.id);
    for i in 0..999u32 {
        overlay.delete(Bytes::from(i.to_be_bytes().to_vec()));
    }
    let one = ScanLimit { records: 1, bytes: 1 };
    let found = overlay.scan(&[], &[255; 5], one).unwrap();
    assert_eq!(found, [(Bytes::from(999u32.to_be_bytes().to_vec()), Bytes::from_static(b"v"))]);
}

#[test]
fn an_empty_overlay_has_nothing_to_flush_but_what_is_added() {
    let mut overlay = Overlay::new(Arc::new(MemoryEngine::new()));
    assert_eq!(overlay.freeze(Vec::new()), None);
    let extra = (Bytes::from_static(b"a"), Some(Bytes::from_static(b"1")));
    let flush = overlay.freeze(vec![extra.clone()]).unwrap();
    assert_eq!(flush.batch.changes, [extra]);
    assert_eq!(overlay.get(b"a").unwrap(), Some(Bytes::from_static(b"1")));
}

#[test]
fn f15_an_engine_that_fails_is_an_error_where_it_is_needed() {
    let engine = Arc::new(MemoryEngine::new());
    let mut overlay = Overlay::new(engine.clone());
    overlay.put(Bytes::from_static(b"a"), Bytes::from_static(b"1"));
    engine.fail(Some("broken"));
    assert_eq!(overlay.get(b"b"), Err(EngineError("broken".to_owned())));
    assert_eq!(overlay.get(b"a").unwrap(), Some(Bytes::from_static(b"1")), "the overlay has it");
    assert!(overlay.scan(b"a", b"c", ALL).is_err());
}

#[test]
fn bytes_count_what_is_held() {
    let mut overlay = Overlay::new(Arc::new(MemoryEngine::new()));
    let mut random = Random::new(5);
    for _ in 0..10_000 {
        let key = Bytes::from(random.below(100).to_be_bytes().to_vec());
        let value = vec![1; random.below(500) as usize];
        overlay.put(key, Bytes::from(value));
    }
    assert!((100 * 100..100 * 700).contains(&overlay.bytes()), "{}", overlay.bytes());
}
