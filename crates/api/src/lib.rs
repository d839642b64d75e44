//! The public gRPC interface, `decree.v1`: code generated from `proto/decree/v1/decree.proto`,
//! its descriptors, and the form in which a status carries an error.

pub mod status;

/// The messages, clients and servers of `decree.v1`. The definition file documents them.
#[allow(missing_docs, unreachable_pub, unused_qualifications)]
#[allow(clippy::wildcard_enum_match_arm)]
pub mod v1 {
    tonic::include_proto!("decree.v1");
}

/// The compiled definitions, a `FileDescriptorSet`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/decree.v1.bin"));

/// Largest message either side takes, in bytes. It lies well above the largest value, so that one
/// that is over its limit is answered with a sentence instead of a broken stream.
pub const MESSAGE_BYTES_MAX: usize = 17 << 20;
/// HTTP/2 window of one stream, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 window of one connection, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
