//! Whole clusters in virtual time.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, missing_docs)]

mod beginnings;
mod elections;
mod leases;
mod moves;
mod scenarios;
mod seeds;
mod self_tests;
mod shardmaster;
mod toy;
