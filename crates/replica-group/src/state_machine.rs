//! What a replicated service is: a deterministic function of its group's log.

use base::{Generation, GroupId, Slot, WallMillis};
use bytes::Bytes;
use storage::Overlay;
/// The store's vocabulary, for the services that know the store only through their group's part.
pub use storage::{EngineError, ScanLimit};

/// A service that is replicated by a log. Its whole state lies in the group's store, besides what
/// it can rebuild from there; equal logs make equal states and equal replies: no clock, no
/// randomness, no hash order, no floating point.
pub trait StateMachine {
    /// What the proposer of a command is answered.
    type Reply;

    /// Executes one chosen command. Called for each command once, in the order of slots.
    fn apply(
        &mut self,
        store: &mut GroupStore<'_>,
        entry: &Entry,
    ) -> Result<Self::Reply, ApplyError>;

    /// Writes what is so far only in memory into the store. Called before the store is flushed
    /// with this replica's applied slot.
    fn settle(&mut self, store: &mut GroupStore<'_>) -> Result<(), EngineError>;

    /// A digest of the whole state. Equal logs give equal digests on every replica, whatever is
    /// settled and what is not.
    fn digest(&self) -> Result<u128, EngineError>;
}

/// A chosen command.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its slot.
    pub slot: Slot,
    /// The wall time at which its leader proposed it.
    pub time: WallMillis,
    /// The command, as encoded where it entered the system.
    pub payload: Bytes,
}

/// Why a command cannot be applied. The node stops: going on would let the replicas differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// The store failed.
    Engine(EngineError),
    /// The command is of a kind that this version of the program does not know.
    Unknown(String),
}

impl std::fmt::Display for ApplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ApplyError::Engine(error) => write!(f, "the store failed: {error}"),
            ApplyError::Unknown(what) => {
                write!(f, "a command in the log is unknown to this version: {what}")
            }
        }
    }
}

impl From<EngineError> for ApplyError {
    fn from(error: EngineError) -> ApplyError {
        ApplyError::Engine(error)
    }
}

/// One group's part of the node's store: every key is prefixed with the group and the generation
/// of its state (docs/paxos.md 11.11).
#[derive(Debug)]
pub struct GroupStore<'a> {
    overlay: &'a mut Overlay,
    prefix: [u8; PREFIX_BYTES],
}

impl<'a> GroupStore<'a> {
    /// The part of this group, in its first generation.
    pub fn new(overlay: &'a mut Overlay, group: GroupId) -> GroupStore<'a> {
        GroupStore::of(overlay, group, Generation(0))
    }

    /// The part of this generation of this group.
    pub fn of(overlay: &'a mut Overlay, group: GroupId, generation: Generation) -> GroupStore<'a> {
        GroupStore { overlay, prefix: prefix(group, generation) }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.overlay.get(&self.full(key))
    }

    /// Sets the value of a key.
    pub fn put(&mut self, key: &[u8], value: Bytes) {
        let key = Bytes::from(self.full(key));
        self.overlay.put(key, value);
    }

    /// Removes a key.
    pub fn delete(&mut self, key: &[u8]) {
        let key = Bytes::from(self.full(key));
        self.overlay.delete(key);
    }

    /// The records with `from <= key < to`, in order, until `limit` is reached; keys without the
    /// group's prefix.
    pub fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let found = self.overlay.scan(&self.full(from), &self.full(to), limit)?;
        Ok(found.into_iter().map(|(key, value)| (key.slice(PREFIX_BYTES..), value)).collect())
    }

    fn full(&self, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::with_capacity(PREFIX_BYTES + key.len());
        full.extend_from_slice(&self.prefix);
        full.extend_from_slice(key);
        full
    }
}

/// The length of the prefix of a group's records.
pub const PREFIX_BYTES: usize = 12;

/// What all keys of one generation of a group begin with, and no others. The generation comes
/// first: a damaged block of the store hides everything between its first key and its last, and what
/// takes the place of the records in it must not lie there too.
pub fn prefix(group: GroupId, generation: Generation) -> [u8; PREFIX_BYTES] {
    let mut prefix = [0; PREFIX_BYTES];
    prefix[..4].copy_from_slice(&generation.0.to_be_bytes());
    prefix[4..].copy_from_slice(&group.0.to_be_bytes());
    prefix
}

/// Which group's and which generation's a key of the store is.
pub fn owner(key: &[u8]) -> (GroupId, Generation) {
    let (mut group, mut generation) = ([0; 8], [0; 4]);
    generation.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    group.iter_mut().zip(key.iter().skip(4)).for_each(|(to, from)| *to = *from);
    (GroupId(u64::from_be_bytes(group)), Generation(u32::from_be_bytes(generation)))
}
