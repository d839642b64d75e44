//! The part of a store that is a group's, as a damaged disk or a copy from another node may have
//! it: state machines open it, or say why not, and go on.

use std::sync::Arc;

use base::{GroupId, ShardId, Slot, WallMillis};
use bytes::Bytes;
use kvserver::KvServer;
use replica_group::{Entry, GroupStore, StateMachine};
use router::KvOp;
use shardmaster::ShardMaster;
use storage::{MemoryEngine, Overlay};

use super::{Target, kv, master};
use crate::items;
use crate::mutate::Layout;

pub(super) const TARGET: Target = Target {
    name: "store",
    layout: Layout::Items,
    run,
    memory: 64 << 20,
    memory_per_byte: 4_096,
    rounds: 20_000,
};

/// A record of a data group's store: the length of the key, the key, the value.
pub(crate) const DATA: u8 = 0;
/// A record of the shard master's.
pub(crate) const MASTER: u8 = 1;
/// A command that is applied to the data group's state.
pub(crate) const COMMAND: u8 = 2;
const ITEMS_MAX: usize = 400;

fn run(input: &[u8]) {
    let group = GroupId(1);
    let mut data = Overlay::new(Arc::new(MemoryEngine::new()));
    let mut masters = Overlay::new(Arc::new(MemoryEngine::new()));
    let story: Vec<_> = items::split(input).into_iter().take(ITEMS_MAX).collect();
    let mut keys = Vec::new();
    for item in &story {
        let Some((len, rest)) = item.bytes.split_first() else { continue };
        let (key, value) = rest.split_at(usize::from(*len).min(rest.len()));
        let value = Bytes::copy_from_slice(value);
        match item.kind % 4 {
            DATA => {
                GroupStore::new(&mut data, group).put(key, value);
                keys.push(key);
            }
            MASTER => GroupStore::new(&mut masters, GroupId::MASTER).put(key, value),
            _ => {}
        }
    }
    if let Ok(mut server) = KvServer::open(group, &GroupStore::new(&mut data, group)) {
        let mut store = GroupStore::new(&mut data, group);
        for key in keys {
            let name =
                Bytes::copy_from_slice(key.get(kvserver::keys::PREFIX_BYTES..).unwrap_or(&[]));
            let shard = kvserver::keys::parse(key).map_or(ShardId(0), |(shard, _)| shard);
            let _ = server.read(&store, shard, &KvOp::Get { key: name });
            kv::ask(&mut server, &store, &Bytes::copy_from_slice(key));
        }
        let _ = server.audit(&store);
        let commands = story.iter().filter(|item| item.kind % 4 >= COMMAND);
        for (slot, item) in (1..).zip(commands) {
            let payload = Bytes::copy_from_slice(&item.bytes);
            let time = WallMillis(1_700_000_000_000 + slot);
            let entry = Entry { slot: Slot(slot), time, payload };
            if server.apply(&mut store, &entry).is_err() {
                break;
            }
        }
        let _ = server.settle(&mut store);
    }
    let store = GroupStore::new(&mut masters, GroupId::MASTER);
    if let Ok(opened) = ShardMaster::open(&store) {
        master::ask(&opened, &store, &Bytes::new());
    }
}
