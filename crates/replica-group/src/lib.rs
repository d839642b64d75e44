//! One replica of a group: Paxos, a state machine, its sessions and its reads; and the interface
//! through which a whole node is driven ([`turn`]).

mod replica;
mod retention;
pub mod sessions;
pub mod state_machine;
pub mod turn;

pub use replica::{Replica, ReplicaOutput, Waiter};
pub use retention::Keep;
pub use state_machine::{ApplyError, Entry, GroupStore, StateMachine};
