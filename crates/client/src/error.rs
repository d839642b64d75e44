//! What a caller is told when there is no answer.

use api::v1;
use router::{CallError, ErrorReply};
use tonic::{Code, Status};

use crate::convert::error_from_proto;

/// Why an operation has no answer. Each displays as a sentence that can be shown to a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A write that may have been executed, or may still be: its answer was lost.
    #[error("The outcome is unknown: {0}.")]
    OutcomeUnknown(String),
    /// Not executed, or a read: nobody who could answer did so in time.
    #[error("Not done, no node could answer in time: {0}.")]
    Unavailable(String),
    /// A node refused, finally; it was not executed.
    #[error("Not done: {0}.")]
    Refused(ErrorReply),
    /// Not executed: there is no connection to any node.
    #[error("No node can be reached: {0}.")]
    NobodyReachable(String),
    /// Not executed: the request makes no sense, or is over a limit.
    #[error("Not done, the request is not valid: {0}.")]
    Invalid(String),
}

impl From<ErrorReply> for Error {
    fn from(error: ErrorReply) -> Error {
        match error {
            ErrorReply::Invalid(text) => Error::Invalid(text),
            ErrorReply::OutcomeUnknown(text) => Error::OutcomeUnknown(text),
            ErrorReply::Unavailable(text) | ErrorReply::NotReady(text) => Error::Unavailable(text),
            ErrorReply::Stale | ErrorReply::SessionExpired { .. } => {
                Error::OutcomeUnknown(error.to_string())
            }
            ErrorReply::NotLeader
            | ErrorReply::Moved { .. }
            | ErrorReply::ResourceExhausted(_)
            | ErrorReply::StampTooFar { .. }
            | ErrorReply::WrongCluster { .. }
            | ErrorReply::Refused(_)
            | ErrorReply::Unsupported(_) => Error::Refused(error),
        }
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Error {
        match error {
            CallError::OutcomeUnknown(text) => Error::OutcomeUnknown(text),
            CallError::Unavailable(text) => Error::Unavailable(text),
            CallError::Refused(error) => error.into(),
        }
    }
}

impl Error {
    /// What a call that ended with this status amounts to, after it was sent.
    pub(crate) fn from_status(status: &Status, is_write: bool) -> Error {
        if let Some(error) = api::status::to_error(status) {
            return from_proto(error);
        }
        let text = describe(status);
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Error::Invalid(text),
            Code::Unimplemented => Error::Refused(ErrorReply::Unsupported(text)),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unauthenticated => Error::lost(text, is_write),
        }
    }

    /// An answer that will not come, of a request that was sent.
    pub(crate) fn lost(text: String, is_write: bool) -> Error {
        if is_write { Error::OutcomeUnknown(text) } else { Error::Unavailable(text) }
    }
}

fn from_proto(error: v1::Error) -> Error {
    match error_from_proto(error) {
        Ok(error) => error.into(),
        Err(malformed) => Error::OutcomeUnknown(malformed.to_string()),
    }
}

/// A status of the transport, in one line.
pub(crate) fn describe(status: &Status) -> String {
    let message = status.message().trim_end_matches('.');
    if message.is_empty() { status.code().description().to_owned() } else { message.to_owned() }
}

/// The innermost reason of an error of the transport, which says most in fewest words.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
