//! Storage as data and decisions: the write-ahead log's format and recovery over a [`Disk`], and
//! the write-back overlay over an [`Engine`].

mod disk;
mod engine;

pub use disk::Disk;
pub use engine::{Batch, Engine, EngineError, ScanLimit};
