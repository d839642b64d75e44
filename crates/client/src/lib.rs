//! The async client of a cluster.
//!
//! [`Client`] routes each operation to the node that leads its shard, retries under one identity
//! so that nothing is executed twice, and tells its caller in the end what is known: an answer, a
//! refusal, or that the outcome is unknown. It is cheap to clone and meant to be shared: the more
//! callers share one, the fewer system calls an operation costs.
//!
//! ```no_run
//! # async fn example() -> Result<(), client::Error> {
//! let endpoints = vec!["127.0.0.1:7101".to_owned(), "127.0.0.1:7102".to_owned()];
//! let client = client::Client::connect(endpoints, client::Options::default())?;
//! client.put("color", "blue").await?;
//! let color = client.get("color").await?;
//! assert_eq!(color.value.as_deref(), Some("blue".as_bytes()));
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//!  callers ── one queue ──► driver (one task) ── one Kv.Pipeline stream per node ──► nodes
//!                             │  ▲
//!                             ▼  │ where to, when again, under which identity
//!                         router::Client (pure)
//! ```
//!
//! [`Unary`] is a plain client of one node: a call is one attempt, without routing or retries.

mod calls;
mod context;
pub mod convert;
mod driver;
mod error;
mod link;
mod options;
mod unary;

#[cfg(test)]
mod tests;

pub use calls::{Answered, Client};
pub use error::Error;
pub use options::Options;
pub use unary::Unary;
