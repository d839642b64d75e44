//! Storage as data and decisions: the write-ahead log's format and recovery over a [`Disk`], and
//! the write-back overlay over an [`Engine`]. Nothing here reads a clock, starts a thread or opens
//! a file: a driver lends a disk at the start, and later carries out commands.
//!
//! # The log
//!
//! A node has one log for all its groups ([`Wal`]; docs/paxos.md 11.2 and 11.3). It knows neither
//! ballots nor slots: a record is a group, an identity of a few bytes, and a payload.
//!
//! **Segments.** A file of the log is written with zeros once and then used again and again,
//! because overwriting is what a disk syncs fastest. Each use is a *segment* with a number that is
//! never used twice. The number and the disk's id are the salt of all checksums in it, so that
//! nothing an earlier use left behind is valid. The header, in two copies, names the block that
//! the segment goes on from.
//!
//! **Blocks.** What one turn appended becomes a block of whole pages, written in one piece; while
//! two are on their way, what comes meanwhile gathers into the next. A block's head says which
//! block was durable when it was made, and from which segment on the log is needed. Each
//! record's row, its group and identity and the checksum of its payload, stands before the payload
//! and once more in a copy of head and rows at the block's end. The row before the payload makes a
//! record readable by itself; the copy can be found from the block's last page alone.
//!
//! **Opening.** The log is read along the chain of headers as far as it is intact. If anything
//! behind that place knew of a durable block that was not read, the log is damaged: as much as can
//! be is made out of that block, payloads that cannot be read are told by name ([`Recovered`]), and
//! reading goes on behind it. Otherwise the rest was a write that was cut off. It is
//! dropped for good by a new segment, which each start begins, and whose header goes on from the
//! last block that was read; what was read is synced first, because after a kill it may exist in
//! the page cache only. The rot of a last block that nothing behind it vouches for cannot be told
//! from a write that was cut off; [`Wal::idle`] writes the voucher.
//!
//! **Making room.** The oldest segment is let go when each group with a record in it has said that
//! it needs none of them ([`Wal::keep_from`]) and has a durable record of its state in a later
//! segment ([`Wal::wants_state`]); otherwise an idle group would forget its promise. Its file is
//! used again once a durable block says that it was let go, so that an unreadable header never has
//! to be explained by a guess. Segments leave in order, and only so.
//!
//! **Who does what.** Commands of the foreground run in order, any number of them with one sync
//! ([`execute`]). Commands of the background make and remove files in which nothing lives. They
//! may run on another thread, and blocks do not wait for them; if a segment is full before the next
//! is prepared, its file is made in the foreground. Where the disk has no room for that, the
//! driver reports it by [`Wal::preparation_failed`], and the log is full while the present segment
//! still takes what cannot be refused. Any error of the foreground ends the process.
//!
//! **Scrubbing.** [`Wal::next_check`] and [`check`] read the log again, part by part, so that damage
//! is found while other replicas can still repair it.
//!
//! # The store
//!
//! [`Overlay`] holds in memory what was applied and not yet flushed, over an [`Engine`] that is
//! written by whole flushes only: atomic, sorted, each key once. The log has what the overlay
//! loses in a crash, until the flush is durable.
//!
//! # Models
//!
//! [`MemoryDisk`] and [`MemoryEngine`] stand for real ones in the simulator and in tests.
//!
//! # Not here
//!
//! What becomes of damage: who may still vote, and where values come from again.

mod disk;
mod engine;
mod memory_disk;
mod memory_engine;
mod overlay;
mod superblock;
mod wal;

pub use disk::Disk;
pub use engine::{Batch, Engine, EngineError, Renewal, Renewed, ScanLimit, Version, View};
pub use memory_disk::{DiskFault, DiskStats, MemoryDisk};
pub use memory_engine::MemoryEngine;
pub use overlay::{Flush, FlushId, Overlay};
pub use superblock::{Superblock, SuperblockError};
pub use wal::{
    Identity, ReadError, Recovered, RecoveredRecord, RecoveryReport, Wal, WalCheck, WalChecked,
    WalCommand, WalError, WalOptions, WalRead, WalStats, WalTicket, check, execute,
};
