//! The doors of a node: what comes in over the public interface goes to the turn as requests, and
//! the answers go back.
//!
//! The doors share their thread with the turn, and have no task per request: a stream's requests
//! go into the turn's queue as they are read, and what one turn answers leaves in one write.

mod ask;
mod book;
mod doors;
mod handle;
mod listen;
mod pipeline;
mod serve;
mod services;

#[cfg(test)]
mod tests;

pub use ask::{Answers, Ask, Asking, Stopped};
pub use doors::{DoorsError, open_doors};
pub use listen::{ListenError, check_listen};
pub use serve::{ServeError, ServeOptions, serve};
