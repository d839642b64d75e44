//! What the overlay asks of the ordered store below it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// An ordered map on disk. It is written only by whole flushes, one at a time, and read at any
/// time meanwhile.
pub trait Engine: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// The records with `from <= key < to`, in order, until `limit` is reached.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError>;

    /// Makes all changes of the batch visible and durable, or after a crash none of them. Returns
    /// when they are durable.
    fn write(&self, batch: &Batch) -> Result<(), EngineError>;

    /// What it holds now: all of some batch and of those before it. It may take room on the disk
    /// for as long as it is kept.
    fn view(&self) -> View;

    /// Why it cannot be kept in order any more, where damage is the reason: it goes on, slower by and
    /// by, until it is renewed.
    fn stuck(&self) -> Option<EngineError>;

    /// Carries out a step of a renewal; one at a time, while flushes go on.
    fn renew(&self, step: &Renewal) -> Result<Renewed, EngineError>;
}

/// A step by which an engine is renewed: what lives is written anew, and all else goes, so that
/// nothing is left of what is damaged. Until the end reads see it as it was; a crash before undoes
/// all steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// From here on each flush belongs to what is written anew. What was begun before is given up.
    Begin,
    /// Writes anew about so many bytes of the records from one key on, before another.
    Copy {
        /// The first key.
        from: Bytes,
        /// The key behind the last.
        to: Bytes,
        /// About how many bytes.
        bytes: usize,
    },
    /// What was written anew since the begin takes the place of all else.
    End,
    /// Everything stays as it is.
    GiveUp,
}

/// What came of such a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// It has begun.
    Begun,
    /// Records were written anew.
    Copied {
        /// Their bytes.
        bytes: u64,
        /// Where to go on; none at the end.
        next: Option<Bytes>,
    },
    /// All is renewed.
    Ended {
        /// How many bytes it takes on the disk.
        bytes: u64,
    },
    /// It was given up.
    GivenUp,
}

/// What an engine held at some time, whatever was written to it since.
pub trait Version: Send + Sync {
    /// As [`Engine::get`].
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// As [`Engine::scan`].
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError>;
}

/// A version of an engine that is kept for as long as somebody holds it.
#[derive(Clone)]
pub struct View(pub Arc<dyn Version>);

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("View")
    }
}

/// Changes in key order, each key once; no value means that the key is removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes.
    pub changes: Vec<(Bytes, Option<Bytes>)>,
}

/// Where a scan stops. At least one record is returned where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimit {
    /// Most records.
    pub records: usize,
    /// Most bytes of keys and values together.
    pub bytes: usize,
}

/// The store failed. The node that meets this stops: what it would answer is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError(pub String);

/// How the text of an error begins that says that the disk has no room.
const FULL: &str = "the disk is full: ";

/// How the text of an error begins that ends by itself.
const LATER: &str = "for now: ";

/// What the text of an error says where the store is damaged.
const DAMAGED: &str = "the store is damaged";

impl EngineError {
    /// The store is damaged; `what` tells which, and how it showed.
    pub fn damage(what: &str) -> EngineError {
        EngineError(format!("{what}; {DAMAGED}"))
    }

    /// Whether it says that the store is damaged.
    pub fn is_damage(&self) -> bool {
        self.0.contains(DAMAGED)
    }

    /// There is no room on the disk; nothing was changed, and it may be tried again.
    pub fn full(text: &str) -> EngineError {
        EngineError(format!("{FULL}{text}"))
    }

    /// Whether it says that there is no room.
    pub fn is_full(&self) -> bool {
        self.0.starts_with(FULL)
    }

    /// Nothing can be written before something else is done; nothing was changed, and it may be tried
    /// again.
    pub fn later(text: &str) -> EngineError {
        EngineError(format!("{LATER}{text}"))
    }

    /// Whether it may be tried again.
    pub fn may_end(&self) -> bool {
        self.is_full() || self.0.starts_with(LATER)
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EngineError {}
