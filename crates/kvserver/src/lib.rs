//! What a replica of a data group is: the keys and values of its shards, and the sessions of the
//! clients that write them.
//!
//! Everything is decided when a command is applied, in the order of the log: whether the group
//! owns the shard, whether the request was executed before, and what the operation does. Requests
//! may be checked earlier, to answer sooner; only what is said here counts.

pub mod command;
mod execute;
mod handoff;
pub mod keys;
pub mod record;
mod shard;
mod state_machine;
#[cfg(test)]
mod tests;

pub use command::{Command, Content, FinalPart, MovedRecord};
pub use handoff::FINAL_BYTES_MAX;
pub use state_machine::{FEATURE_LEVEL, KvServer};
