//! Deterministic simulation of whole clusters: one seed is one run.
//!
//! The nodes are those of production below sockets, files and clocks; what is simulated is the
//! network, the disks, the clocks, and when processes die. See [`swarm`] for what a run consists
//! of, [`scenario`] for runs told step by step, [`checker`] and [`linearizability`] for what is
//! demanded of them.

pub mod checker;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod crew;
pub mod disk;
pub mod guest;
pub mod history;
pub mod lab;
mod leading;
pub mod leases;
pub mod linearizability;
pub mod network;
mod operations;
pub mod ownership;
pub mod points;
mod production;
pub mod reconfiguration;
pub mod rot;
pub mod scenario;
pub mod swarm;
pub mod trace;
pub mod workload;
pub mod world;
