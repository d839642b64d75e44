//! Faults that tests plant in the protocol: each [`Mutant`] takes away one guard, so that tests can
//! show that the simulator notices (`docs/testing.md`).
//!
//! Nothing is planted, and nothing can be, unless the feature `mutants` is on *and* debug assertions
//! are: [`is`] is a constant `false` otherwise, and the guards are compiled as if they were alone.
//! Only the tests of `decree-sim` ask for the feature. No release of the program has the switch,
//! whatever features it is built with.

use std::cell::Cell;

/// Whether this build can plant anything.
pub const PLANTABLE: bool = cfg!(all(feature = "mutants", debug_assertions));

/// A guard that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// A promise leaves before its record is on the disk.
    PromiseUnsynced,
    /// A vote counts slots whose records are not on the disk.
    VoteUnsynced,
    /// A leader counts its own vote as soon as it proposes.
    OwnVoteUnsynced,
    /// Values are accepted under a ballot below the promise.
    OldBallotAccepted,
    /// A promise does not tell what was accepted before.
    PromiseDenies,
    /// Of several accepted values that of the lowest ballot is recovered.
    LowestBallotWins,
    /// A candidate leads with one promise less than a quorum.
    PromiseMissing,
    /// A value is chosen with one vote less than a quorum.
    VoteMissing,
    /// An announcement is believed whatever ballot the value here was accepted under.
    AnnouncementBelieved,
    /// What the leader has is announced as what every voter has.
    TruncationClaimed,
    /// A replica hands out accepted values as chosen ones.
    CatchUpUnchosen,
    /// The votes of replicas that only learn are counted.
    LearnerVotes,
    /// A leader proposes behind a stop-sign, and that counts as chosen.
    StopSignPassed,
    /// A leader reads under its lease before the recovered slots are chosen.
    LeaseBeforeBarrier,
    /// A lease does not end.
    LeaseEndless,
    /// A voter promises to another while its grant binds it.
    GrantBroken,
    /// A start forgets that an earlier one may have granted time.
    GrantForgotten,
    /// A grant counts from when the answer came, not from when the heartbeat was sent.
    GrantFromAnswer,
    /// A grant ends when any replica's node is started again, not only its holder's.
    GrantFreedByAnyone,
    /// A read without a lease is answered without asking a quorum.
    ReadUnconfirmed,
    /// A replica that lost records of its log votes on.
    QuarantineSkipped,
    /// The applied slot is not flushed with what it stands for.
    AppliedSlotLeftOut,
    /// The log is forgotten before the store has it on its disk.
    LogForgottenEarly,
    /// A request that was executed is executed again.
    SessionUnchecked,
    /// Sessions are not written when the state is flushed.
    SessionsUnsettled,
    /// Which rows of sessions expire depends on what a replica has in memory.
    ExpiryByMemory,
    /// Rows of sessions are forgotten without a trace.
    HorizonStays,
    /// Whether a shard is served is not judged when a command is applied.
    OwnershipUnjudged,
    /// A read is answered for a shard that was frozen or given away.
    ForeignShardRead,
    /// The session rows of a shard do not travel with it.
    SessionsStay,
    /// What is written while a shard is copied is not sent behind the copy.
    DeltaLost,
    /// A hand-off is aborted although its shards are frozen.
    FrozenTakenBack,
    /// A source takes frozen shards back before the destination has refused them.
    UnfreezeUnasked,
    /// A source gives frozen shards away before the destination serves them.
    GiftUnasked,
    /// The shard master believes a hand-off to be done when it has begun.
    DoneUnasked,
    /// The shard master executes a request again that it has executed.
    MasterSessionUnchecked,
    /// A copy of a state comes without its sessions.
    CopyWithoutSessions,
    /// A copy of a state stands at a later slot than its source says.
    CopySlotAhead,
    /// A replica that does not lead answers before it has applied what the leader named.
    FollowerReadUnapplied,
    /// A sequential read is answered by a replica that has less than its client has seen.
    SequentialReadBehind,
    /// A bounded read is answered from a state of any age.
    BoundIgnored,
    /// A request that may have been executed is answered as one that was not.
    OutcomeDenied,
    /// An old copy of a disk is let in.
    OldCopyAdmitted,
    /// A replica of which all records were lost is made again.
    LostReplicaMade,
    /// A segment of the log is let go of before the groups in it have restated themselves.
    SegmentUnstated,
    /// The file of a segment is used again before a durable block says that it may be.
    SegmentReusedEarly,
    /// Bytes of the log are taken without a look at their checksums.
    ChecksumUnchecked,
    /// Damage in the middle of the log is taken for a torn tail.
    DamageTakenForTail,
}

thread_local! {
    static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether this guard is taken away, in this thread.
#[inline(always)]
pub fn is(mutant: Mutant) -> bool {
    PLANTABLE && PLANTED.get() == Some(mutant)
}

/// Takes a guard away in this thread, until the result is dropped.
pub fn plant(mutant: Mutant) -> Planted {
    if !PLANTABLE {
        panic!("this build has no mutants: see `base::mutant`");
    }
    let before = PLANTED.replace(Some(mutant));
    assert!(before.is_none(), "{before:?} is planted, and one at a time is enough");
    Planted { _private: () }
}

/// A guard is taken away for as long as this lives.
#[derive(Debug)]
pub struct Planted {
    _private: (),
}

impl Drop for Planted {
    fn drop(&mut self) {
        PLANTED.set(None);
    }
}
