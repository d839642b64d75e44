//! The program as its users meet it: the real binary, real processes, free ports, temporary
//! directories.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod commands;
mod damage;
mod kills;
mod moves;
#[path = "../../examples/support/predicted.rs"]
mod predicted;
mod predictions;
mod replaced;
mod sessions;
mod snapshots;
mod support;
mod usage;
