//! What the programs that work on real clusters share.

// Each program uses its own part of this.
#![allow(dead_code)]

pub(crate) mod cluster;
pub(crate) mod predicted;
pub(crate) mod survey;
