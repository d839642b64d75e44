//! A gRPC status that carries an [`Error`]: its details are a `google.rpc.Status`, which is what
//! the usual tools and libraries of other languages look for.

use prost::Message;
use tonic::{Code, Status};

use crate::v1::{Error, ErrorCode};

/// The type of the one detail.
const ERROR_TYPE: &str = "type.googleapis.com/decree.v1.Error";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// The gRPC code that fits an error. What may have been executed must not become `UNAVAILABLE`,
/// which libraries repeat on their own.
pub fn code(error: ErrorCode) -> Code {
    match error {
        ErrorCode::Unspecified => Code::Unknown,
        ErrorCode::Invalid => Code::InvalidArgument,
        ErrorCode::NotLeader | ErrorCode::Moved | ErrorCode::NotReady | ErrorCode::Unavailable => {
            Code::Unavailable
        }
        ErrorCode::ResourceExhausted => Code::ResourceExhausted,
        ErrorCode::SessionExpired
        | ErrorCode::StampTooFar
        | ErrorCode::Stale
        | ErrorCode::WrongCluster
        | ErrorCode::Refused => Code::FailedPrecondition,
        ErrorCode::OutcomeUnknown => Code::DeadlineExceeded,
        ErrorCode::Unsupported => Code::Unimplemented,
    }
}

/// Longest sentence of a status, in bytes: statuses travel in HTTP/2 headers, twice encoded, and
/// receivers bound these.
const MESSAGE_BYTES_MAX: usize = 2 << 10;

/// The status that ends a call with this error. A very long sentence is cut.
pub fn from_error(error: &Error) -> Status {
    let mut error = error.clone();
    error.message.truncate(error.message.floor_char_boundary(MESSAGE_BYTES_MAX));
    let code = code(error.code());
    let details = RpcStatus {
        code: code as i32,
        message: error.message.clone(),
        details: vec![Any { type_url: ERROR_TYPE.to_owned(), value: error.encode_to_vec() }],
    };
    Status::with_details(code, error.message, details.encode_to_vec().into())
}

/// The error that a status carries; none where it did not come from a node.
pub fn to_error(status: &Status) -> Option<Error> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let detail = details.into_iter().find(|any| any.type_url == ERROR_TYPE)?;
    Error::decode(detail.value.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_returns_the_error_it_was_made_from() {
        let error = Error {
            code: ErrorCode::Moved.into(),
            message: "Shard 3 is served by group 7.".to_owned(),
            moved_group: 7,
            moved_epoch: 2,
            ..Error::default()
        };
        let status = from_error(&error);
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), error.message);
        assert_eq!(to_error(&status), Some(error));
    }

    #[test]
    fn a_sentence_without_end_is_cut_between_two_characters() {
        let error = Error { message: format!("x{}", "ü".repeat(9_000)), ..Error::default() };
        let status = from_error(&error);
        assert_eq!(status.message().len(), MESSAGE_BYTES_MAX - 1);
    }

    #[test]
    fn a_status_of_someone_else_holds_no_error() {
        assert_eq!(to_error(&Status::unavailable("a proxy is down")), None);
        let garbage = Status::with_details(Code::Internal, "", vec![0xff; 40].into());
        assert_eq!(to_error(&garbage), None);
    }
}
