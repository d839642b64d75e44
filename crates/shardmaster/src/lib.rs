//! The shard master: group 0, which holds what the whole cluster agrees on. The nodes and the
//! groups, the numbered configurations (the plan: which group is to serve which shard) and the
//! owners (what is).
//!
//! It never tells a data group what to do by itself. It holds what is planned and not yet done;
//! the node that leads group 0 carries it to the groups, as often as it takes, and the answer comes
//! back as a command.

pub mod command;
mod plan;
pub mod planner;
pub mod rebalance;
mod registry;
mod replicas;
mod state;
mod state_machine;
#[cfg(test)]
mod tests;

pub use command::{Command, Master};
pub use planner::{Creation, Migration};
pub use rebalance::rebalance;
pub use state_machine::{FEATURE_LEVEL, ShardMaster};
