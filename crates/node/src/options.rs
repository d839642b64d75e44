//! The settings of a node's process.

use base::{Address, BootId, ClusterId, DiskId, Micros, NodeId, limits};
use storage::WalOptions;

/// The settings of a node. Those that must be equal in the whole cluster are not here: they are in
/// the cluster's own state.
#[derive(Clone, Debug)]
pub struct Options {
    /// The disk, from the superblock.
    pub disk: DiskId,
    /// This start of the process, drawn at random.
    pub boot: BootId,
    /// Counts the starts on this disk, from the superblock; this one included.
    pub starts: u64,
    /// The node's cluster, from the superblock: it counts where the log's record of it is damaged, and
    /// a log that is whole must say the same.
    pub cluster: Option<ClusterId>,
    /// The node's number as its operator wants it; 0 leaves it to the cluster.
    pub node: NodeId,
    /// Where other nodes reach it.
    pub peer: Address,
    /// Where clients reach it.
    pub grpc: Address,
    /// Where the masters are reached, for a node that does not know its cluster yet.
    pub masters: Vec<Address>,
    /// Seed of the node's randomness.
    pub seed: u64,
    /// The write-ahead log.
    pub wal: WalOptions,
    /// Bytes of the overlay at which it is flushed.
    pub overlay_bytes_max: usize,
    /// Time without a write after which the overlay is flushed.
    pub overlay_idle: Micros,
    /// Time after which the overlay is flushed in any case, so that the log can be reclaimed.
    pub overlay_age_max: Micros,
    /// Bytes of a group's newest values that are kept in memory; others are read from the log.
    pub tail_bytes_max: usize,
    /// Bytes of its log that a group keeps for replicas that lack them.
    pub log_bytes_max: usize,
    /// Bytes of its log that a group keeps when all replicas have them.
    pub log_tail_bytes: usize,
    /// How long it keeps these.
    pub log_tail_age: Micros,
    /// Bytes of records in one part of a copy of a group's state, about.
    pub snapshot_part_bytes: usize,
    /// Bytes of such parts that are read in a second for other nodes; none are with 0.
    pub snapshot_bytes_per_second: u64,
    /// Bytes of records in one chunk or delta of a hand-off, about.
    pub handoff_part_bytes: usize,
    /// A hand-off freezes its shards at once where no more bytes than this are left to send.
    pub handoff_left_bytes: usize,
    /// Bytes of the log and the store that are read in a second to look for damage; 0 for none.
    pub scrub_bytes_per_second: u64,
    /// How long a request without a time-out of its own is worked on.
    pub request_timeout: Micros,
    /// How long a forwarded request waits for its answer before it is sent again.
    pub forward_timeout: Micros,
}

impl Options {
    /// The usual settings for a node with this identity.
    pub fn new(
        disk: DiskId,
        boot: BootId,
        starts: u64,
        peer: Address,
        grpc: Address,
        wal: WalOptions,
    ) -> Options {
        Options {
            disk,
            boot,
            starts,
            cluster: None,
            node: NodeId(0),
            peer,
            grpc,
            masters: Vec::new(),
            seed: (boot.0 >> 64) as u64 ^ boot.0 as u64,
            wal,
            overlay_bytes_max: limits::OVERLAY_BYTES_MAX,
            overlay_idle: limits::OVERLAY_IDLE,
            overlay_age_max: Micros::from_secs(5),
            tail_bytes_max: limits::TAIL_BYTES_MAX,
            log_bytes_max: limits::LOG_BYTES_MAX_DEFAULT,
            log_tail_bytes: LOG_TAIL_BYTES,
            log_tail_age: Micros::from_secs(10),
            snapshot_part_bytes: SNAPSHOT_PART_BYTES,
            snapshot_bytes_per_second: SNAPSHOT_BYTES,
            handoff_part_bytes: HANDOFF_PART_BYTES,
            handoff_left_bytes: HANDOFF_LEFT_BYTES,
            scrub_bytes_per_second: SCRUB_BYTES,
            request_timeout: Micros::from_secs(10),
            forward_timeout: Micros::from_secs(1),
        }
    }
}

/// What is usually kept of a log though all replicas have it.
const LOG_TAIL_BYTES: usize = 16 << 20;
/// The usual size of a part of a copy.
const SNAPSHOT_PART_BYTES: usize = 256 << 10;
/// How much is usually read in a second for copies: what clients do comes first.
const SNAPSHOT_BYTES: u64 = 32 << 20;
/// How much is usually read in a second to look for damage: 340 GiB in a day.
const SCRUB_BYTES: u64 = 4 << 20;
/// The usual size of a chunk or delta of a hand-off. The destination's log writes each in one
/// piece, and what its clients write waits for that.
const HANDOFF_PART_BYTES: usize = 256 << 10;
/// What the usual freeze leaves to be sent.
const HANDOFF_LEFT_BYTES: usize = 256 << 10;
