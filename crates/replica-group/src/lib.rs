//! One replica of a group: Paxos, a state machine, its sessions and its reads; and the interface
//! through which a whole node is driven ([`turn`]).

pub mod sessions;
pub mod state_machine;
pub mod turn;

pub use state_machine::{ApplyError, Entry, GroupStore, StateMachine};
