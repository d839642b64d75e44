//! The program as its users meet it: the real binary, real processes, free ports, temporary
//! directories.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod commands;
mod damage;
#[path = "../../examples/torture/harness/mod.rs"]
mod harness;
mod kills;
mod moves;
mod predictions;
mod replaced;
mod sessions;
mod snapshots;
mod support;
mod torture;
mod usage;
