//! Cost of one operation through client and doors.
use super::fake::{Doors, Fake};
use client::{Client, Options};
use std::time::Instant;

#[test]
fn measure() {
    for (callers, size) in [(64usize, 16usize)] {
        let fake = Fake::default();
        let doors = Doors::open(&fake);
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            let client = Client::connect(vec![doors.endpoint()], Options::default()).unwrap();
            client.put("a", "x").await.unwrap();
            let total = if size > 1000 {
                40_000
            } else if callers == 1 {
                20_000
            } else {
                400_000
            };
            let start = Instant::now();
            let tasks: Vec<_> = (0..callers)
                .map(|c| {
                    let client = client.clone();
                    tokio::spawn(async move {
                        let value = bytes::Bytes::from(vec![1u8; size]);
                        let key = bytes::Bytes::from(format!("key{c}"));
                        for _ in 0..total / callers {
                            client.put(key.clone(), value.clone()).await.unwrap();
                        }
                    })
                })
                .collect();
            for t in tasks {
                t.await.unwrap();
            }
            let took = start.elapsed();
            eprintln!(
                "{callers} callers, {size} B: {:.1} us/op, {:.0}/s",
                took.as_secs_f64() * 1e6 / total as f64,
                total as f64 / took.as_secs_f64()
            );
        });
        let usage = std::fs::read_to_string("/proc/self/stat").unwrap();
        let f: Vec<&str> = usage.rsplit(')').next().unwrap().split_whitespace().collect();
        eprintln!("  cpu so far: user {} sys {} ticks", f[11], f[12]);
    }
}
