//! Every bound of the system in one place. Full means refused, never grown.

use crate::time::Micros;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 8 << 20;
/// Longest batch of operations, in bytes.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// Longest command of a group's log, in bytes: everything that one command can change of a shard,
/// which is a value, and a session's row with the answers that are kept, fits into one.
pub const COMMAND_BYTES_MAX: usize = BATCH_BYTES_MAX + VALUE_BYTES_MAX + (1 << 20);
/// Most requests that one client may have open on one shard.
pub const SESSION_OPEN_MAX: usize = 512;
/// Most session rows of one shard; the oldest are evicted by a log command.
pub const SESSION_ROWS_MAX: usize = 4_096;
/// Most bytes of cached replies of one shard; the oldest are evicted by a log command.
pub const SESSION_BYTES_MAX: usize = 16 << 20;
/// A session that was idle for so long, by log time in milliseconds, may be evicted.
pub const SESSION_IDLE_MILLIS: u64 = 3_600_000;
/// A stamp may lie so many milliseconds above its shard's log time.
pub const STAMP_AHEAD_MILLIS_MAX: u64 = 600_000;

/// Hash slots of the key space (Redis Cluster's number).
pub const HASH_SLOTS: u16 = 16_384;
/// Most shards of a cluster.
pub const SHARDS_MAX: u16 = HASH_SLOTS;
/// Shards of a cluster unless `init` says otherwise.
pub const SHARDS_DEFAULT: u16 = 1_024;
/// The highest number that a node may have.
pub const NODE_NUMBER_MAX: u64 = 1_000_000;
/// No epoch, version, or count of records or bytes gets so far. What claims to be beyond comes from
/// damage or a fault, and could not be counted on from.
pub const COUNT_MAX: u64 = 1 << 62;
/// Most replicas of a group.
pub const GROUP_REPLICAS_MAX: usize = 7;

/// Most bytes of payload in one `Accept` (one larger command travels alone).
pub const ACCEPT_BYTES_MAX: usize = 256 << 10;
/// Most slots in one `Accept`.
pub const ACCEPT_SLOTS_MAX: usize = 1_024;
/// Most slots proposed beyond the chosen prefix.
pub const WINDOW_SLOTS_MAX: u64 = 4_096;
/// Most bytes in flight to one follower (one larger command travels alone).
pub const WINDOW_BYTES_MAX: usize = 4 << 20;
/// Payload bytes of the newest slots that a replica keeps in memory.
pub const TAIL_BYTES_MAX: usize = 16 << 20;
/// Most slots of its log that a group keeps for those who lack them.
pub const LOG_SLOTS_MAX: u64 = 1 << 20;
/// Bytes of its log that a group keeps for those who lack them, unless an option says otherwise.
pub const LOG_BYTES_MAX_DEFAULT: usize = 256 << 20;
/// Most bytes of entries in one catch-up message (one larger entry travels alone).
pub const CATCH_UP_BYTES_MAX: usize = 1 << 20;
/// Largest frame between nodes, in bytes. A message of one largest command fits with its headers.
pub const FRAME_BYTES_MAX: usize = COMMAND_BYTES_MAX + (1 << 20);
/// Most bytes that wait for the connection to one peer; more are dropped, as a network would.
pub const PEER_QUEUE_BYTES_MAX: usize = 64 << 20;
/// Most client requests that a node holds at a time.
pub const NODE_REQUESTS_MAX: usize = 16_384;
/// Most bytes of client requests that a node holds at a time.
pub const NODE_REQUEST_BYTES_MAX: usize = 256 << 20;

/// The identity of a record in the write-ahead log, in bytes.
pub const WAL_IDENTITY_BYTES_MAX: usize = 40;
/// Size of a segment of the write-ahead log unless an option says otherwise.
pub const WAL_SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// The write-ahead log refuses writes beyond this size unless an option says otherwise.
pub const WAL_BYTES_MAX_DEFAULT: u64 = 1 << 30;
/// An overlay is frozen and flushed when it holds so many bytes.
pub const OVERLAY_BYTES_MAX: usize = 32 << 20;
/// An overlay is flushed after so long without a write.
pub const OVERLAY_IDLE: Micros = Micros::from_secs(1);

/// How often a node sends its heartbeat to each peer.
pub const HEARTBEAT_INTERVAL: Micros = Micros::from_millis(25);
/// A voter that answers its leader's heartbeat promises nobody else for so long.
pub const GRANT_SPAN: Micros = Micros::from_millis(200);
/// Boot clocks run too fast or too slowly by at most so many parts per million.
pub const CLOCK_DRIFT_PPM: u64 = 500;
/// Every lease ends so much before the grants that it rests on.
pub const LEASE_GUARD: Micros = Micros::from_millis(5);
/// For how long a leader may count on a grant, from when it sent the heartbeat that was answered.
pub const LEASE_SPAN: Micros =
    Micros(GRANT_SPAN.0 - 2 * GRANT_SPAN.0 * CLOCK_DRIFT_PPM / 1_000_000 - LEASE_GUARD.0);
/// A node whose write-ahead log waited for its disk for so long leads no more.
pub const DISK_STALL: Micros = Micros::from_millis(500);
/// A node whose write-ahead log has been full for so long leads no more.
pub const LOG_FULL: Micros = Micros::from_secs(1);
/// A peer is connected while an answer to one of the last so many heartbeats has arrived.
pub const HEARTBEATS_CONNECTED: u64 = 4;

const _: () = assert!(LEASE_SPAN.0 < GRANT_SPAN.0);
const _: () = assert!(VALUE_BYTES_MAX + KEY_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX < COMMAND_BYTES_MAX);
const _: () = assert!(COMMAND_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(ACCEPT_BYTES_MAX <= WINDOW_BYTES_MAX);
const _: () = assert!(WINDOW_BYTES_MAX <= TAIL_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX <= PEER_QUEUE_BYTES_MAX);
