//! Measures the store under the writes that flushes make: `cargo run --release -p decree-runtime
//! --example engine_load [DIR]`. docs/engine.md records what it said.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base::Random;
use bytes::Bytes;
use runtime::{EngineOptions, LsmEngine};
use storage::{Batch, Engine, EngineError, ScanLimit};

const RECORDS: u64 = 1_000_000;
const HOT: u64 = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let scratch = std::env::args().nth(1).unwrap_or_else(|| "engine-load-data".to_string());
    let path = Path::new(&scratch);
    let _ = fs::remove_dir_all(path);
    let mut random = Random::new(42);
    let engine = step("open", || open(path))?;
    step("load 20 x 50,000 records of 256 bytes", || load(&engine, &mut random))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<(), EngineError> {
        let reader = scope.spawn(|| read_until(&engine, &stop));
        step("rewrite 200 x 10,000 hot records", || rewrite(&engine, &mut random, HOT, HOT))?;
        step("rewrite 200 x 100 records anywhere", || rewrite(&engine, &mut random, 100, RECORDS))?;
        stop.store(true, Ordering::Relaxed);
        if let Ok(gets) = reader.join() {
            println!("  gets meanwhile: {}", quantiles(gets?));
        }
        Ok(())
    })?;
    step("get 300,000 anywhere", || get(&engine, &mut random, 0, RECORDS))?;
    step("get 300,000 hot", || get(&engine, &mut random, 0, HOT))?;
    step("get 300,000 absent", || get(&engine, &mut random, RECORDS, RECORDS))?;
    step("scan 1,000 x 1,000", || {
        (0..1_000).try_for_each(|_| {
            let limit = ScanLimit { records: 1_000, bytes: usize::MAX };
            engine.scan(&key(random.below(RECORDS)), b"h", limit).map(drop)
        })
    })?;
    step("write 8 x 300 values of 64 KiB", || large(&engine, &mut random, 8, 300, 64 << 10))?;
    step("write 4 x 3 values of 8 MiB", || large(&engine, &mut random, 4, 3, 8 << 20))?;
    step("remove a sixteenth", || remove(&engine))?;
    step("close", || drop(engine));
    let engine = step("open again", || open(path))?;
    println!("  {} MiB on disk", engine.disk_bytes() >> 20);
    drop(engine);
    fs::remove_dir_all(path)?;
    Ok(())
}

fn open(path: &Path) -> Result<LsmEngine, EngineError> {
    LsmEngine::open(path, EngineOptions::default())
}

/// Spreads neighbouring numbers over sixteen groups and all of each.
fn key(number: u64) -> Bytes {
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3;
    Bytes::from(format!("g{:02}k{spread:019}", number % 16))
}

fn value(random: &mut Random, len: usize) -> Option<Bytes> {
    let words = (0..len / 8).flat_map(|_| random.next_u64().to_le_bytes());
    Some(words.collect::<Vec<u8>>().into())
}

fn batch(changes: impl Iterator<Item = (Bytes, Option<Bytes>)>) -> Batch {
    let mut changes: Vec<_> = changes.collect();
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    changes.dedup_by(|a, b| a.0 == b.0);
    Batch { changes }
}

fn load(engine: &LsmEngine, random: &mut Random) -> Result<(), EngineError> {
    (0..20).try_for_each(|part| {
        let numbers = part * RECORDS / 20..(part + 1) * RECORDS / 20;
        engine.write(&batch(numbers.map(|number| (key(number), value(random, 256)))))
    })
}

fn rewrite(
    engine: &LsmEngine,
    random: &mut Random,
    count: u64,
    among: u64,
) -> Result<(), EngineError> {
    let mut times = Vec::new();
    for _ in 0..200 {
        let records = batch((0..count).map(|_| (key(random.below(among)), value(random, 256))));
        let start = Instant::now();
        engine.write(&records)?;
        times.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("  flushes: {}", quantiles(times));
    Ok(())
}

fn read_until(engine: &LsmEngine, stop: &AtomicBool) -> Result<Vec<Duration>, EngineError> {
    let mut random = Random::new(7);
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        engine.get(&key(random.below(RECORDS)))?;
        times.push(start.elapsed());
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(times)
}

fn get(engine: &LsmEngine, random: &mut Random, from: u64, among: u64) -> Result<(), EngineError> {
    (0..300_000).try_for_each(|_| engine.get(&key(from + random.below(among))).map(drop))
}

fn large(
    engine: &LsmEngine,
    random: &mut Random,
    times: usize,
    count: usize,
    len: usize,
) -> Result<(), EngineError> {
    (0..times).try_for_each(|_| {
        let records = (0..count)
            .map(|number| (Bytes::from(format!("large {len} {number:09}")), value(random, len)));
        engine.write(&batch(records))
    })
}

fn remove(engine: &LsmEngine) -> Result<(), EngineError> {
    let numbers: Vec<u64> = (5..RECORDS).step_by(16).collect();
    numbers
        .chunks(20_000)
        .try_for_each(|part| engine.write(&batch(part.iter().map(|number| (key(*number), None)))))
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |permille: usize| times.get(times.len() * permille / 1_000).copied();
    let of = |permille| at(permille).unwrap_or_default();
    let most = times.last().copied().unwrap_or_default();
    format!("p50 {:?}, p99 {:?}, p99.9 {:?}, max {most:?}", of(500), of(990), of(999))
}

fn step<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let (written, start) = (written_bytes(), Instant::now());
    let result = work();
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), written_bytes() - written);
    println!("{name:36} {seconds:6.2} s {:5} MiB written, {:4} MiB resident", bytes >> 20, {
        number("/proc/self/status", "VmRSS:") >> 10
    });
    result
}

fn written_bytes() -> u64 {
    number("/proc/self/io", "write_bytes:")
}

fn number(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}
