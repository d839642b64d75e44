//! The log of the shard master: commands, as any node could get them into it.

use std::sync::Arc;

use base::{ConfigNumber, GroupId, NodeId, Slot, WallMillis};
use bytes::Bytes;
use replica_group::{Entry, GroupStore, StateMachine};
use router::MasterOp;
use shardmaster::{Command, ShardMaster};
use storage::{Engine, MemoryEngine, Overlay};

use super::Target;
use crate::items;
use crate::mutate::Layout;

pub(super) const TARGET: Target = Target {
    name: "master",
    layout: Layout::Items,
    run,
    // The shards of a cluster are up to 16,384, each with an owner, whatever a command's size.
    memory: 64 << 20,
    memory_per_byte: 4_096,
    rounds: 10_000,
};

const STEPS_MAX: usize = 100;

fn run(input: &[u8]) {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let mut overlay = Overlay::new(engine.clone());
    let opened = ShardMaster::open(&GroupStore::new(&mut overlay, GroupId::MASTER));
    let mut master = opened.expect("an empty store is read");
    let mut time = 1_700_000_000_000;
    for (slot, item) in (1..).zip(items::split(input).into_iter().take(STEPS_MAX)) {
        let bytes = Bytes::from(item.bytes);
        let mut store = GroupStore::new(&mut overlay, GroupId::MASTER);
        match item.kind % 8 {
            0..=4 => {
                if let Ok(command) = Command::decode(&bytes) {
                    assert_eq!(command.encode(), bytes, "a command is written as it was read");
                }
                let entry = Entry { slot: Slot(slot), time: WallMillis(time), payload: bytes };
                if master.apply(&mut store, &entry).is_err() {
                    return;
                }
            }
            5 => time += 1 << bytes.first().copied().unwrap_or_default().min(48),
            6 => ask(&master, &store, &bytes),
            _ => {
                if master.settle(&mut store).is_err() {
                    return;
                }
                if let Some(flush) = overlay.freeze(Vec::new()) {
                    engine.write(&flush.batch).expect("a store in memory takes all");
                    overlay.flushed(flush.id);
                }
                let again = ShardMaster::open(&GroupStore::new(&mut overlay, GroupId::MASTER));
                let again = again.expect("what was settled is read");
                assert!(again.state_bytes() == master.state_bytes(), "a restart finds the state");
                assert_eq!(again.digest(), master.digest());
                master = again;
            }
        }
        time += 1;
    }
}

pub(super) fn ask(master: &ShardMaster, store: &GroupStore<'_>, bytes: &Bytes) {
    let field = bytes.get(..8).and_then(|field| field.try_into().ok());
    let number = field.map_or(1, u64::from_be_bytes);
    for op in [
        MasterOp::Query { number: Some(ConfigNumber(number)) },
        MasterOp::Query { number: None },
        MasterOp::Routes,
    ] {
        let _ = master.read(store, &op);
    }
    let _ = master.replicas_of(NodeId(number));
    let _ = (master.pending().len(), master.migrations().len());
    let _ = (master.expired_sessions(WallMillis(number)), master.digest());
}
