//! Between the vocabulary of `router` and the messages of `decree.v1`: both directions, for the
//! client and for the doors of a node.
//!
//! What comes from the network is checked here; what does not fit is an error with a sentence.

mod error;
mod header;
mod plan;
mod reply;
mod request;
mod status;

#[cfg(test)]
mod tests;

use base::NodeId;
use bytes::Bytes;
use router::ErrorReply;

pub use error::{error_from_proto, error_to_proto};
pub use header::{header_from_proto, header_to_proto, reply_header_to_proto};
pub use reply::{leader_hint, reply_from_proto, reply_to_proto};
pub use request::{ToRequest, limit_timeout, request_from_proto, request_to_proto};

/// The kind of a request, which decides under which field of a stream its answer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the value of a key.
    Get,
    /// Sets a value.
    Put,
    /// Sets a value to a hash.
    PutHash,
    /// Removes a key.
    Delete,
    /// Appends to a value.
    Append,
    /// Sets a value if the record is as expected.
    CompareAndSwap,
    /// Adds groups.
    Join,
    /// Takes groups out.
    Leave,
    /// Gives shards to groups.
    Move,
    /// Another node takes over the replicas of one.
    ReplaceNode,
    /// Other nodes take over the replicas of one.
    DrainNode,
    /// Reads a configuration.
    Query,
    /// Creates the cluster.
    Init,
    /// The state of a node.
    Status,
    /// Who serves which shard.
    Routes,
    /// The shards of a node.
    Shards,
}

/// What came from the other side is not understood; the sentence says what.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl From<Malformed> for ErrorReply {
    fn from(malformed: Malformed) -> ErrorReply {
        ErrorReply::Invalid(malformed.0)
    }
}

/// Says at which gRPC address a node is reached, where that is known.
pub trait AddressBook {
    /// The address, `host:port`, or an empty text.
    fn grpc(&self, node: NodeId) -> String;
}

/// An identifier of 16 bytes; an empty field is none.
fn id_from(bytes: &Bytes, what: &str) -> Result<Option<u128>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let id = <[u8; 16]>::try_from(bytes.as_ref())
        .map_err(|_| Malformed(format!("{what} has {} bytes, not 16", bytes.len())))?;
    Ok(Some(u128::from_be_bytes(id)))
}

/// An identifier of 16 bytes that may not be missing.
fn id_required(bytes: &Bytes, what: &str) -> Result<u128, Malformed> {
    id_from(bytes, what)?.ok_or_else(|| Malformed(format!("{what} is missing")))
}

fn id_to(id: u128) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

fn shard_from(number: u32) -> Result<base::ShardId, Malformed> {
    let number =
        u16::try_from(number).map_err(|_| Malformed(format!("there is no shard {number}")))?;
    Ok(base::ShardId(number))
}
