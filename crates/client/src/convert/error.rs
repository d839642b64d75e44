//! Errors.

use api::v1::{self, ErrorCode};
use base::{ClusterId, GroupId, ShardEpoch, WallMillis};
use router::ErrorReply;

use super::{Malformed, id_required, id_to};

/// An error as it is sent, under the given reply header. Its sentence is that of the error alone,
/// as the code already says which kind it is.
pub fn error_to_proto(error: &ErrorReply, header: Option<v1::ReplyHeader>) -> v1::Error {
    let mut proto = v1::Error { header, ..v1::Error::default() };
    let code = match error {
        ErrorReply::Invalid(text) => say(&mut proto, ErrorCode::Invalid, text),
        ErrorReply::NotReady(text) => say(&mut proto, ErrorCode::NotReady, text),
        ErrorReply::ResourceExhausted(text) => say(&mut proto, ErrorCode::ResourceExhausted, text),
        ErrorReply::OutcomeUnknown(text) => say(&mut proto, ErrorCode::OutcomeUnknown, text),
        ErrorReply::Refused(text) => say(&mut proto, ErrorCode::Refused, text),
        ErrorReply::Unavailable(text) => say(&mut proto, ErrorCode::Unavailable, text),
        ErrorReply::Unsupported(text) => say(&mut proto, ErrorCode::Unsupported, text),
        ErrorReply::NotLeader => say(&mut proto, ErrorCode::NotLeader, &error.to_string()),
        ErrorReply::Stale => say(&mut proto, ErrorCode::Stale, &error.to_string()),
        ErrorReply::Moved { epoch, group } => {
            proto.moved_group = group.0;
            proto.moved_epoch = epoch.0;
            say(&mut proto, ErrorCode::Moved, &error.to_string())
        }
        ErrorReply::SessionExpired { horizon } => {
            proto.horizon_millis = horizon.0;
            say(&mut proto, ErrorCode::SessionExpired, &error.to_string())
        }
        ErrorReply::StampTooFar { log_time } => {
            proto.log_time_millis = log_time.0;
            say(&mut proto, ErrorCode::StampTooFar, &error.to_string())
        }
        ErrorReply::WrongCluster { cluster } => {
            proto.cluster = id_to(cluster.0);
            say(&mut proto, ErrorCode::WrongCluster, &error.to_string())
        }
    };
    proto.code = code.into();
    proto
}

fn say(proto: &mut v1::Error, code: ErrorCode, text: &str) -> ErrorCode {
    proto.message = text.to_owned();
    code
}

/// An error as it came; its header is left to the caller.
pub fn error_from_proto(proto: v1::Error) -> Result<ErrorReply, Malformed> {
    let code = ErrorCode::try_from(proto.code).unwrap_or(ErrorCode::Unspecified);
    let text = proto.message;
    Ok(match code {
        // Whether an error of an unknown kind means "not executed" is not known either.
        ErrorCode::Unspecified => ErrorReply::OutcomeUnknown(text),
        ErrorCode::Invalid => ErrorReply::Invalid(text),
        ErrorCode::NotLeader => ErrorReply::NotLeader,
        ErrorCode::Moved => ErrorReply::Moved {
            epoch: ShardEpoch(proto.moved_epoch),
            group: GroupId(proto.moved_group),
        },
        ErrorCode::NotReady => ErrorReply::NotReady(text),
        ErrorCode::ResourceExhausted => ErrorReply::ResourceExhausted(text),
        ErrorCode::SessionExpired => {
            ErrorReply::SessionExpired { horizon: WallMillis(proto.horizon_millis) }
        }
        ErrorCode::StampTooFar => {
            ErrorReply::StampTooFar { log_time: WallMillis(proto.log_time_millis) }
        }
        ErrorCode::Stale => ErrorReply::Stale,
        ErrorCode::OutcomeUnknown => ErrorReply::OutcomeUnknown(text),
        ErrorCode::WrongCluster => {
            let cluster = ClusterId(id_required(&proto.cluster, "the cluster that was asked")?);
            ErrorReply::WrongCluster { cluster }
        }
        ErrorCode::Refused => ErrorReply::Refused(text),
        ErrorCode::Unavailable => ErrorReply::Unavailable(text),
        ErrorCode::Unsupported => ErrorReply::Unsupported(text),
    })
}
