//! Storage as data and decisions: the write-ahead log's format and recovery over a [`Disk`], and
//! the write-back overlay over an [`Engine`].

mod disk;
mod engine;
mod memory_disk;
mod memory_engine;
mod overlay;
mod superblock;
mod wal;

pub use disk::Disk;
pub use engine::{Batch, Engine, EngineError, ScanLimit};
pub use memory_disk::{DiskFault, DiskStats, MemoryDisk};
pub use memory_engine::MemoryEngine;
pub use overlay::{Flush, FlushId, Overlay};
pub use superblock::{Superblock, SuperblockError};
pub use wal::{
    Identity, ReadError, RecoveredRecord, RecoveryReport, Wal, WalCommand, WalError, WalOptions,
    WalRead, WalStats, WalTicket, execute,
};
