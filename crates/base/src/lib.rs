//! What every other crate may use: identifiers, limits, wire codec helpers, time and seeded
//! randomness. It holds no behaviour of its own, and depends on no other crate of the project.

pub mod codec;
pub mod ids;
pub mod limits;
pub mod mutant;
pub mod random;
pub mod time;

pub use ids::{
    Address, BootId, ClientId, ClusterId, ConfigNumber, CopyId, DiskId, Generation, GroupId, Lsn,
    NodeId, ReplicaId, RequestNumber, ShardEpoch, ShardId, Slot, TraceId, Version,
};
pub use random::Random;
pub use time::{Micros, Now, WallMillis};
