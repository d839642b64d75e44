//! The write-ahead log.

mod command;

pub use command::{WalCommand, WalRead, WalTicket, execute};
