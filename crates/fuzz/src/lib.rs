//! Everything that reads bytes from the network or from disk, put to bytes that nobody would send.
//!
//! A [`Target`](targets::Target) takes any bytes, reads them as the program would, and hands what
//! it read to what the program would hand it to. It must not panic, nor take more memory than the
//! input is worth; what is read and written again must be the same. `tests/fuzz.rs` changes the
//! inputs of `corpus` at random from fixed seeds.
//!
//! Some of what reads is private to its crate. The files of it are a part of this crate too, so
//! that nothing has to be made public for tests.

#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../runtime/src/engine/damage.rs"]
mod damage;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../node/src/frame.rs"]
mod frame;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../runtime/src/frames.rs"]
mod frames;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../node/src/identity.rs"]
mod identity;
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../../node/src/parts.rs"]
mod parts;

pub mod corpus;
pub mod heap;
mod host;
pub mod items;
pub mod mutate;
mod stage;
pub mod targets;
