//! The world around a node: threads, sockets, files, the store on disk and the clock.
//!
//! A node is a pure [`Machine`](replica_group::turn::Machine): inputs go in, outputs come out.
//! This crate feeds it and carries out what it says, and knows nothing of shards, configurations
//! or keys: frames are opaque bytes, requests and replies are type parameters.
//!
//! ```text
//!  doors ── Handle ──┐                            ┌── replies ──► doors
//!  peers ── frames ──┤  one thread: turn + sockets├── frames ───► peers
//!  ticks ────────────┤  drain, handle*, take,     ├── wal ──────► log thread (writes, syncs)
//!  WalDone, Flushed ─┘  dispatch                  ├── segments, old records ► helper threads
//!                                                 └── flush ────► flush thread (engine)
//! ```
//!
//! - **The turn and all sockets share one thread**, so that a request reaches the machine without
//!   a wake-up across cores (about 30 us each on small machines). Only disk work is elsewhere.
//! - **A turn takes what is ready**: everything queued since the last one, then one output. Under
//!   load turns grow and writes to disk and peers are shared by many requests; an idle node
//!   answers at once.
//! - **A failed write or sync ends the process.** After such an error nobody knows what the disk
//!   holds; [`run`] returns the error, and the caller exits.
//! - **Every queue has a bound**: a full request queue makes doors wait, a full peer queue drops
//!   frames as a network would, and frames that arrive faster than turns take them are left in
//!   the kernel's buffers.

mod background;
mod clock;
mod data_dir;
mod disk;
mod engine;
mod event_loop;
mod frames;
mod listener;
mod peers;
mod requests;
mod stats;
mod workers;

pub use clock::{now, random_u64, random_u128};
pub use data_dir::{DataDir, DataDirError};
pub use disk::FileDisk;
pub use engine::{EngineOptions, LsmEngine};
pub use event_loop::{Options, Parts, RunError, current_thread, run};
pub use frames::PREAMBLE;
pub use listener::{BindError, bind};
pub use requests::{Handle, Replies, RequestStream, Requests, Stopped, requests};
pub use stats::{Stats, StatsSnapshot};
