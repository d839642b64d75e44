//! One replica of a group: Paxos, a state machine, its sessions and its reads; and the interface
//! through which a whole node is driven ([`turn`]).

pub mod turn;
