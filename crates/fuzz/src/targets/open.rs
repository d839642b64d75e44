//! A node that starts from a log and a store that say anything: the records are whole, their
//! content is not what a node would have written.

use base::GroupId;
use bytes::Bytes;
use storage::{Batch, Engine, MemoryDisk, MemoryEngine, Wal, execute};

use super::Target;
use crate::host::Host;
use crate::items;
use crate::mutate::Layout;
use crate::stage::{self, STEP};

pub(super) const TARGET: Target = Target {
    name: "open",
    layout: Layout::Items,
    run,
    memory: 64 << 20,
    memory_per_byte: 1_024,
    rounds: 3_000,
};

/// A record of the log.
pub(crate) const LOG: u8 = 0;
/// A record of the store.
pub(crate) const STORE: u8 = 1;
/// In the log: the node itself, where other numbers are groups.
pub(crate) const NODE: u8 = 255;
const RECORDS_MAX: usize = 400;

fn run(input: &[u8]) {
    let stage = &stage::all()[1];
    let mut disk = MemoryDisk::new();
    let mut wal = Wal::recover(&mut disk, stage.options.wal.clone(), &mut |_| {})
        .expect("an empty disk is read");
    let mut changes = Vec::new();
    for item in items::split(input).into_iter().take(RECORDS_MAX) {
        if item.kind % 2 == LOG {
            append(&mut wal, &item.bytes);
        } else if let Some((len, rest)) = item.bytes.split_first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
            let (key, value) = (Bytes::copy_from_slice(&rest[..len]), &rest[len..]);
            changes.push((key, Some(Bytes::copy_from_slice(value))));
        }
    }
    loop {
        let commands = wal.seal();
        if commands.is_empty() {
            break;
        }
        let (background, foreground): (Vec<_>, Vec<_>) =
            commands.into_iter().partition(storage::WalCommand::is_background);
        if let Ok(Some(ticket)) = execute(&mut disk, &foreground) {
            wal.done(ticket);
        }
        if let Ok(Some(ticket)) = execute(&mut disk, &background) {
            wal.prepared(ticket);
        }
    }
    changes.sort();
    changes.dedup_by(|next, before| next.0 == before.0);
    let engine = MemoryEngine::new();
    engine.write(&Batch { changes }).expect("a store in memory takes all");
    let mut time = stage.start;
    let Ok(mut host) = Host::open(stage.options.clone(), disk, engine, stage::clock(time)) else {
        return;
    };
    for _ in 0..60 {
        time = time + STEP;
        host.step(stage::clock(time), &[]);
        if host.fatal.is_some() {
            return;
        }
    }
}

/// The group, whether it restates the group's state, the length of the identity, the identity, the
/// payload.
fn append(wal: &mut Wal, bytes: &[u8]) {
    let Some(([group, state, len], rest)) = bytes.split_first_chunk::<3>() else { return };
    let len = usize::from(*len).min(rest.len()).min(base::limits::WAL_IDENTITY_BYTES_MAX);
    let (identity, payload) = rest.split_at(len);
    let group = if *group == NODE { GroupId::NODE } else { GroupId(u64::from(*group)) };
    wal.append(group, identity, state & 1 == 1, &mut |out| out.extend_from_slice(payload));
}
