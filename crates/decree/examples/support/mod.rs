//! What the programs that work on real clusters share.

// Each program uses its own part of this.
#![allow(dead_code)]

pub(crate) mod cluster;
pub(crate) mod held;
pub(crate) mod predicted;
pub(crate) mod replicas;
pub(crate) mod survey;
pub(crate) mod writers;
