//! Deterministic simulation of whole clusters: one seed is one run.

pub mod history;
pub mod linearizability;
