//! The state of one key, and what each call does to it.

use bytes::Bytes;

use crate::history::{Answer, Call, Ending, Expected, Operation};

/// What is kept of a value: enough to tell it from others and to continue it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Digest {
    pub(super) len: u64,
    /// FNV-1a of 128 bits.
    pub(super) wide: u128,
    /// FNV-1a of 32 bits, the hash of PutHash.
    pub(super) narrow: u32,
}

impl Digest {
    pub(super) const EMPTY: Digest =
        Digest { len: 0, wide: 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, narrow: 0x811c_9dc5 };

    pub(super) fn of(bytes: &[u8]) -> Digest {
        Digest::EMPTY.then(bytes)
    }

    pub(super) fn then(mut self, bytes: &[u8]) -> Digest {
        for byte in bytes {
            self.wide = (self.wide ^ u128::from(*byte))
                .wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
            self.narrow = (self.narrow ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
        self.len += bytes.len() as u64;
        self
    }
}

/// A key's state between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct State {
    pub(super) value: Option<Digest>,
    /// The version of the newest change as far as known; a later change has a higher one.
    pub(super) version: u64,
    /// Whether the newest change has exactly this version, or just a higher one.
    pub(super) exact: bool,
}

impl State {
    pub(super) const ABSENT: State = State { value: None, version: 0, exact: true };

    /// After a change to `value`; none if the version it was given contradicts the order.
    pub(super) fn changed(self, value: Option<Digest>, version: Option<u64>) -> Option<State> {
        match version {
            Some(version) if version > self.version => Some(State { value, version, exact: true }),
            Some(_) => None,
            None => Some(State { value, version: self.version, exact: false }),
        }
    }

    /// After a call that changed nothing and was told this version of the record.
    pub(super) fn seen(self, version: Option<u64>) -> Option<State> {
        match version {
            None => Some(self),
            Some(version) if self.value.is_none() => (version == 0).then_some(self),
            Some(version) if self.exact => (version == self.version).then_some(self),
            Some(version) => {
                (version > self.version).then_some(State { version, exact: true, ..self })
            }
        }
    }

    /// Whether the record has this version; none if that is not known.
    pub(super) fn has_version(self, version: u64) -> Option<bool> {
        if self.value.is_none() {
            Some(version == 0)
        } else if self.exact {
            Some(version == self.version)
        } else if version > self.version {
            None
        } else {
            Some(false)
        }
    }
}

/// A call with what the search needs of it worked out once.
pub(super) struct Step {
    /// Place in the caller's list.
    pub(super) call: usize,
    pub(super) start: u64,
    /// The call before which it cannot come: of the same client, whose session it goes on from.
    pub(super) after: Option<usize>,
    /// None: the outcome is unknown.
    pub(super) end: Option<u64>,
    pub(super) action: Action,
    pub(super) answer: Option<Answer>,
    /// The digest of the answer's value.
    pub(super) told: Option<Digest>,
    pub(super) version: Option<u64>,
    /// Stands for the call in the set of calls placed.
    pub(super) mark: u128,
}

pub(super) enum Action {
    Get,
    Put(Digest),
    Extend { bytes: Bytes, hash: bool },
    Delete,
    SwapValue { expected: Digest, value: Digest },
    SwapVersion { expected: u64, value: Digest },
}

impl Step {
    pub(super) fn new(call: usize, source: &Call, mark: u128) -> Option<Step> {
        let action = match &source.operation {
            Operation::Get | Operation::Look(_) => Action::Get,
            Operation::Put(value) => Action::Put(Digest::of(value)),
            Operation::PutHash(value) => Action::Extend { bytes: value.clone(), hash: true },
            Operation::Delete => Action::Delete,
            Operation::Append(value) => Action::Extend { bytes: value.clone(), hash: false },
            Operation::CompareAndSwap { expected: Expected::Value(expected), value } => {
                Action::SwapValue { expected: Digest::of(expected), value: Digest::of(value) }
            }
            Operation::CompareAndSwap { expected: Expected::Version(expected), value } => {
                Action::SwapVersion { expected: *expected, value: Digest::of(value) }
            }
        };
        let (end, answer, version) = match &source.ending {
            Ending::Refused => return None,
            // An unanswered read has no effect and says nothing.
            Ending::Unknown if matches!(action, Action::Get) => return None,
            Ending::Unknown => (None, None, None),
            Ending::Answered { at, answer, version } => (Some(*at), Some(answer.clone()), *version),
        };
        let told = match &answer {
            Some(Answer::Value(Some(value))) => Some(Digest::of(value)),
            Some(
                Answer::Value(None)
                | Answer::Done
                | Answer::Deleted(_)
                | Answer::Appended(_)
                | Answer::Swapped(_),
            )
            | None => None,
        };
        let start = source.start;
        Some(Step { call, start, after: None, end, action, answer, told, version, mark })
    }

    /// The state after the call; none if the call was answered otherwise than it would be in this
    /// state. A call with an unknown outcome is only tried for its effect.
    pub(super) fn apply(&self, state: State) -> Option<State> {
        let known = self.answer.is_some();
        match &self.action {
            Action::Get => {
                matches!(self.answer, Some(Answer::Value(_))).then_some(())?;
                (self.told == state.value).then_some(())?;
                state.seen(self.version)
            }
            Action::Put(value) => {
                (!known || self.answer == Some(Answer::Done)).then_some(())?;
                state.changed(Some(*value), self.version)
            }
            Action::Extend { bytes, hash: true } => {
                if known {
                    matches!(self.answer, Some(Answer::Value(_))).then_some(())?;
                    (self.told == state.value).then_some(())?;
                }
                let hash = state.value.unwrap_or(Digest::EMPTY).then(bytes).narrow;
                state.changed(Some(Digest::of(hash.to_string().as_bytes())), self.version)
            }
            Action::Extend { bytes, hash: false } => {
                let value = state.value.unwrap_or(Digest::EMPTY).then(bytes);
                (!known || self.answer == Some(Answer::Appended(value.len))).then_some(())?;
                state.changed(Some(value), self.version)
            }
            Action::Delete => match (self.answer.as_ref(), state.value) {
                (Some(Answer::Deleted(true)) | None, Some(_)) => state.changed(None, None),
                (Some(Answer::Deleted(false)), None) => Some(state),
                _ => None,
            },
            Action::SwapValue { expected, value } => {
                self.swap(state, Some(state.value == Some(*expected)), *value)
            }
            Action::SwapVersion { expected, value } => {
                let same = state.has_version(*expected);
                self.swap(state, same, *value)
            }
        }
    }

    /// The version by which the call is ordered, where there is one (an absent record has none).
    pub(super) fn order(&self, index: usize) -> Option<(u64, usize)> {
        self.version.filter(|version| *version > 0).map(|version| (version, index))
    }

    /// Whether a call that was answered so changes nothing, in whatever state it was executed. (A
    /// Put of the value that is there changes nothing either, but may be needed later.)
    pub(super) fn is_read(&self) -> bool {
        match (&self.action, &self.answer) {
            (Action::Get, _) | (_, Some(Answer::Deleted(false) | Answer::Swapped(false))) => true,
            (
                Action::Put(_)
                | Action::Extend { .. }
                | Action::Delete
                | Action::SwapValue { .. }
                | Action::SwapVersion { .. },
                _,
            ) => false,
        }
    }

    pub(super) fn swap(&self, state: State, same: Option<bool>, value: Digest) -> Option<State> {
        match (self.answer.as_ref(), same) {
            (Some(Answer::Swapped(true)) | None, Some(true) | None) => {
                state.changed(Some(value), self.version)
            }
            (Some(Answer::Swapped(false)), Some(false) | None) => state.seen(self.version),
            _ => None,
        }
    }
}
