//! Faults that the protocol does not bear, put between the core and the world: an explorer that
//! does not find them finds nothing.

/// What is wrong with the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A crash takes the newest promise from the disk, although it was synced.
    LosesPromise,
    /// A crash takes the newest vote from the disk, although it was synced.
    LosesVote,
    /// A crash takes the record of the present epoch from the disk, although it was synced.
    LosesEpoch,
    /// The disk says of every record at once that it is durable.
    EarlySync,
    /// A replica starts again on an empty disk, under its old number.
    EmptyDisk,
    /// A promise or a vote for an older ballot of the receiver comes in as one for its present one.
    OldReplyAsNew,
    /// Promises do not tell what was accepted.
    DeniesVotes,
    /// Each vote is also counted as that of the third replica.
    VoteOfTwo,
}
