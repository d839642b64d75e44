//! K3: what was executed everywhere leaves memory (scenarios of one replicated group). In a binary
//! of its own, whose heap nobody else uses.
#![allow(clippy::unwrap_used)]

mod live;

use base::GroupId;
use sim::scenario::{Scenario, Via};

const VALUE_BYTES: usize = 1_000_000;

/// Bytes of memory that are in use, without those that stand for disks.
fn without_disks(s: &mut Scenario) -> usize {
    let disks: u64 = (0..3).map(|node| s.disk_bytes(node)).sum();
    live::bytes() - disks as usize
}

#[test]
fn k3_what_is_executed_leaves_memory() {
    // Values stay in memory as on a node with the usual settings.
    let mut s = Scenario::with_options("k3", 3, 16, &[vec![0, 1, 2]], |options| {
        options.settings.tail_bytes_max = 8 << 20;
        options.settings.overlay_bytes_max = 8 << 20;
        options.settings.segment_bytes = 16 << 20;
        options.settings.wal_bytes_max = 256 << 20;
    });
    s.put(Via::Any, "a", "aa");
    s.wait(1_000);
    let before = without_disks(&mut s);
    for pass in 0..2_u8 {
        for key in 0..10 {
            let letter = char::from(b'a' + pass * 10 + key);
            let value = letter.to_string().repeat(VALUE_BYTES);
            s.put(Via::Any, &key.to_string(), &value);
            s.reads(usize::from(key) % 3, &key.to_string(), &value);
        }
    }
    for _ in 0..2 {
        for node in 0..3 {
            s.put(node, "a", "aa");
            s.reads(node, "a", "aa");
        }
    }
    s.wait(1_000);
    let after = without_disks(&mut s);
    println!("{before} bytes before, {after} after");
    // Three servers, ten items, twice a million bytes.
    assert!(after <= before + 60_000_000, "{before} bytes before, {after} after");
    let slots = s.log_slots();
    assert!(slots <= 40, "{slots} slots are kept");
    let group = GroupId(1);
    for node in 0..3 {
        let tail = s.node(node).paxos_of(group).map_or(0, paxos::Paxos::tail_bytes);
        assert!(tail <= 8 << 20, "node {node} keeps {tail} bytes of values");
    }
}
