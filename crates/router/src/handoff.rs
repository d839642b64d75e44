//! How far a hand-off of shards is, as the leaders of the groups tell each other.

use base::codec;
use base::{CopyId, ShardEpoch, ShardId, Version};
use bytes::Bytes;
use minicbor::{Decode, Encode};

/// How far a hand-off is in the log of one of its two groups (`docs/sharding.md` 11.14).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub struct HandoffState {
    /// The hand-off.
    #[n(0)]
    pub mig: CopyId,
    /// How far all of its shards are.
    #[n(1)]
    pub phase: HandoffPhase,
    /// Its shards, in order; empty where the group knows nothing of the hand-off.
    #[n(2)]
    pub shards: Vec<HandoffShard>,
    /// At the destination: those of them whose copies were complete, and were not what the source
    /// has. That is a fault of the program.
    #[cbor(n(3), default)]
    pub unequal: Vec<ShardId>,
}

/// How far a hand-off is in the log of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HandoffPhase {
    /// The group has nothing of it: not begun here, or long over.
    #[n(0)]
    Unknown,
    /// At the destination: the copies grow.
    #[n(1)]
    In,
    /// At the source, which serves meanwhile.
    #[n(2)]
    Out,
    /// At the source, which has stopped to serve.
    #[n(3)]
    Frozen,
    /// At the destination, which serves the shards, or has served them.
    #[n(4)]
    Active,
    /// At the source, which has given the shards away.
    #[n(5)]
    Moved,
    /// At the source, which keeps the shards: the hand-off was aborted.
    #[n(6)]
    Owned,
    /// At the destination, which will never take the shards by this hand-off.
    #[n(7)]
    Refused,
}

/// One shard of a hand-off, as one of the two groups has it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub struct HandoffShard {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// Its epoch as this group knows it: the source's while it has the shard or the copy grows,
    /// one more once the shard was handed over.
    #[n(1)]
    pub epoch: ShardEpoch,
    /// At the destination: where the next chunk begins, opaque; empty at the beginning, none where
    /// no chunk is missing.
    #[cbor(n(2), with = "codec::payload_option")]
    pub cursor: Option<Bytes>,
    /// At the destination: whether every chunk has come.
    #[n(3)]
    pub scan_done: bool,
    /// At the destination: the count of changes through which the deltas have come; none before
    /// the first.
    #[n(4)]
    pub delta_upto: Option<Version>,
    /// At the source: the count of changes with which the copying began, and the first delta
    /// begins.
    #[n(5)]
    pub x0: Version,
    /// The count of changes now; at the source the end of the newest possible delta.
    #[n(6)]
    pub changes: Version,
}
