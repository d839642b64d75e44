//! Whole clusters in virtual time.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, missing_docs)]

mod beginnings;
mod book;
mod cancels;
mod diskv;
mod diskv_lost;
mod dslabs;
mod elections;
mod fault_classes;
mod leases;
mod lost_replicas;
mod moves;
mod puppet;
mod replicas;
mod scenarios;
mod seeds;
mod self_tests;
mod shardkv_2024;
mod shardkv_2025;
mod shardmaster;
mod snapshots;
mod storage_faults;
mod toy;
mod unreliable;
