//! What every place that handles an operation asks about it: its key, whether it writes, whether
//! it keeps the limits.

use base::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use bytes::Bytes;

use crate::request::{Body, ClusterOp, ErrorReply, Expected, KvOp, MasterOp};

impl KvOp {
    /// The key that the operation is about.
    pub fn key(&self) -> &Bytes {
        match self {
            KvOp::Get { key }
            | KvOp::Put { key, .. }
            | KvOp::PutHash { key, .. }
            | KvOp::Delete { key }
            | KvOp::Append { key, .. }
            | KvOp::CompareAndSwap { key, .. } => key,
        }
    }

    /// Whether the operation may change something, so that it goes through the log.
    pub fn is_write(&self) -> bool {
        match self {
            KvOp::Get { .. } => false,
            KvOp::Put { .. }
            | KvOp::PutHash { .. }
            | KvOp::Delete { .. }
            | KvOp::Append { .. }
            | KvOp::CompareAndSwap { .. } => true,
        }
    }

    /// What the operation writes, where it carries a value.
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            KvOp::Get { .. } | KvOp::Delete { .. } => None,
            KvOp::Put { value, .. }
            | KvOp::PutHash { value, .. }
            | KvOp::Append { value, .. }
            | KvOp::CompareAndSwap { value, .. } => Some(value),
        }
    }
}

impl MasterOp {
    /// Whether the operation may change something, so that it goes through the log.
    pub fn is_write(&self) -> bool {
        match self {
            MasterOp::Join { .. }
            | MasterOp::Leave { .. }
            | MasterOp::Move { .. }
            | MasterOp::Register { .. }
            | MasterOp::ReplaceNode { .. }
            | MasterOp::DrainNode { .. }
            | MasterOp::MembersAre { .. }
            | MasterOp::ReplicaLost { .. } => true,
            MasterOp::Query { .. } | MasterOp::Routes => false,
        }
    }
}

impl ClusterOp {
    /// Whether the operation may change something. The one that does is the same however often it
    /// is done, and needs no session.
    pub fn is_write(&self) -> bool {
        match self {
            ClusterOp::Init { .. } => true,
            ClusterOp::Status | ClusterOp::Routes | ClusterOp::Shards => false,
        }
    }
}

impl Body {
    /// Whether the request may change something.
    pub fn is_write(&self) -> bool {
        match self {
            Body::Kv(op) => op.is_write(),
            Body::Master(op) => op.is_write(),
            Body::Cluster(op) => op.is_write(),
        }
    }
}

/// Whether an operation keeps the limits of keys and values; the error says which it does not, and
/// what to do. An empty key is a key.
pub fn validate(op: &KvOp) -> Result<(), ErrorReply> {
    let key = op.key().len();
    if key > KEY_BYTES_MAX {
        return Err(ErrorReply::Invalid(format!(
            "the key has {key} bytes, and the limit is {KEY_BYTES_MAX}: use a shorter key"
        )));
    }
    if let Some(value) = op.value() {
        validate_value("value", value.len())?;
    }
    if let KvOp::CompareAndSwap { expected: Expected::Value(expected), .. } = op {
        validate_value("expected value", expected.len())?;
    }
    Ok(())
}

fn validate_value(what: &str, bytes: usize) -> Result<(), ErrorReply> {
    if bytes > VALUE_BYTES_MAX {
        return Err(ErrorReply::Invalid(format!(
            "the {what} has {bytes} bytes, and the limit is {VALUE_BYTES_MAX}: split it over \
             several keys"
        )));
    }
    Ok(())
}

impl std::fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ErrorReply::Invalid(text) => write!(f, "invalid request: {text}"),
            ErrorReply::NotLeader => f.write_str("the replica that was asked does not lead"),
            ErrorReply::Moved { epoch, group } => {
                write!(f, "the shard is at group {} (epoch {})", group.0, epoch.0)
            }
            ErrorReply::NotReady(text) => write!(f, "not ready: {text}"),
            ErrorReply::ResourceExhausted(text) => write!(f, "full: {text}"),
            ErrorReply::SessionExpired { horizon } => write!(
                f,
                "the session is not known any more (what was stamped up to {} is forgotten)",
                horizon.0
            ),
            ErrorReply::StampTooFar { log_time } => write!(
                f,
                "the request's stamp lies too far ahead of the shard's time {}: check the \
                 client's clock",
                log_time.0
            ),
            ErrorReply::Stale => {
                f.write_str("the client has closed this request, and its answer is not kept")
            }
            ErrorReply::OutcomeUnknown(text) => write!(f, "outcome unknown: {text}"),
            ErrorReply::WrongCluster { cluster } => {
                write!(f, "the node belongs to another cluster, {cluster}")
            }
            ErrorReply::Refused(text) => write!(f, "refused: {text}"),
            ErrorReply::Unavailable(text) => write!(f, "unavailable: {text}"),
            ErrorReply::Unsupported(text) => write!(f, "not supported: {text}"),
        }
    }
}

impl std::error::Error for ErrorReply {}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: usize, value: usize) -> KvOp {
        KvOp::Put { key: vec![b'k'; key].into(), value: vec![b'v'; value].into() }
    }

    #[test]
    fn what_is_exactly_at_the_limit_is_taken() {
        assert_eq!(validate(&put(0, 0)), Ok(()));
        assert_eq!(validate(&put(KEY_BYTES_MAX, VALUE_BYTES_MAX)), Ok(()));
    }

    #[test]
    fn a_byte_over_the_limit_is_named_with_both_numbers() {
        let text = validate(&put(KEY_BYTES_MAX + 1, 0)).unwrap_err().to_string();
        assert!(text.contains("4097") && text.contains("4096") && text.contains("key"), "{text}");
        let text = validate(&put(1, VALUE_BYTES_MAX + 1)).unwrap_err().to_string();
        assert!(text.contains("8388609") && text.contains("8388608"), "{text}");
    }

    #[test]
    fn the_expected_value_of_a_swap_is_bounded_too() {
        let expected = Expected::Value(vec![0; VALUE_BYTES_MAX + 1].into());
        let op =
            KvOp::CompareAndSwap { key: Bytes::from_static(b"k"), expected, value: Bytes::new() };
        assert!(matches!(validate(&op), Err(ErrorReply::Invalid(_))));
    }
}
