//! The log of a data group: commands, as any node could get them into it, on a store in memory.

use std::sync::Arc;

use base::{CopyId, GroupId, ShardId, Slot, Version, WallMillis};
use bytes::Bytes;
use kvserver::{Command, KvServer};
use replica_group::{Entry, GroupStore, StateMachine};
use router::KvOp;
use storage::{Engine, MemoryEngine, Overlay};

use super::Target;
use crate::items;
use crate::mutate::Layout;

pub(super) const TARGET: Target = Target {
    name: "kv",
    layout: Layout::Items,
    run,
    memory: 4 << 20,
    memory_per_byte: 1_024,
    rounds: 25_000,
};

const GROUP: GroupId = GroupId(1);
const STEPS_MAX: usize = 300;

fn run(input: &[u8]) {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let mut overlay = Overlay::new(engine.clone());
    let opened = KvServer::open(GROUP, &GroupStore::new(&mut overlay, GROUP));
    let mut server = opened.expect("an empty store is read");
    let mut time = 1_700_000_000_000;
    for (slot, item) in (1..).zip(items::split(input).into_iter().take(STEPS_MAX)) {
        let bytes = Bytes::from(item.bytes);
        let mut store = GroupStore::new(&mut overlay, GROUP);
        match item.kind % 8 {
            0..=3 => {
                if let Ok(command) = Command::decode(&bytes) {
                    assert_eq!(command.encode(), bytes, "a command is written as it was read");
                }
                let entry = Entry { slot: Slot(slot), time: WallMillis(time), payload: bytes };
                // What cannot be applied ends the replica, or parts it from its store.
                if server.apply(&mut store, &entry).is_err() {
                    return;
                }
            }
            4 => {
                let Some(again) = reopened(&mut server, &mut overlay, &*engine) else { return };
                server = again;
            }
            5 => time += 1 << bytes.first().copied().unwrap_or_default().min(48),
            _ => ask(&mut server, &store, &bytes),
        }
        time += 1;
    }
    audit(&server, &mut overlay);
}

/// The state as a restart finds it: the same.
fn reopened(server: &mut KvServer, overlay: &mut Overlay, engine: &dyn Engine) -> Option<KvServer> {
    audit(server, overlay);
    server.settle(&mut GroupStore::new(overlay, GROUP)).ok()?;
    if let Some(flush) = overlay.freeze(Vec::new()) {
        engine.write(&flush.batch).ok()?;
        overlay.flushed(flush.id);
    }
    let again = KvServer::open(GROUP, &GroupStore::new(overlay, GROUP));
    let again = again.expect("what was settled is read");
    assert_eq!(again.digest(), server.digest(), "a restart finds the state as it was");
    Some(again)
}

fn audit(server: &KvServer, overlay: &mut Overlay) {
    // What another group gave away may contradict itself; it is looked at all the same.
    let _ = server.audit(&GroupStore::new(overlay, GROUP));
}

/// What a leader asks, of the numbers in these bytes.
pub(super) fn ask(server: &mut KvServer, store: &GroupStore<'_>, bytes: &Bytes) {
    let number = |at: usize| {
        let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
        field.map_or(at as u64 / 8, u64::from_be_bytes)
    };
    let (mig, from) = (CopyId(number(0)), Version(number(8)));
    let start = bytes.slice(bytes.len().min(16)..);
    let there = server.handoff(mig);
    for shard in server.shards(true).into_iter().map(|status| status.shard).take(8) {
        let _ = server.chunk(store, mig, shard, Bytes::new(), 64);
        let _ = server.chunk(store, mig, shard, start.clone(), 64);
        let _ = server.delta(store, mig, shard, from, 64);
        let _ = server.lag_bytes(shard, from);
        let _ = server.read(store, shard, &KvOp::Get { key: start.clone() });
        let _ = server.epoch(shard);
    }
    let _ = server.activate(store, mig, Some(&there));
    let _ = server.activate(store, mig, None);
    let _ = (server.refuse(mig), server.abort(mig), server.refuse_incoming(mig));
    let _ = (server.garbage(), server.created(mig, &[ShardId(from.0 as u16)]));
    let _ = server.expired_sessions(WallMillis(from.0));
    let _ = (server.digest(), server.take_alarms());
}
