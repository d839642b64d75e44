//! Client and doors against each other over loopback, with a node behind the doors that is a map.

mod fake;
mod pipeline;
mod retries;
mod serving;
mod unary;
