//! Whether a history is linearizable: whether each call can be given one instant between its start
//! and its end, such that the answers are those of the calls executed one after the other
//! (`docs/paxos.md` 12, I16).
//!
//! Keys are independent, so each is judged alone. The search is that of Wing and Gong with the
//! cache of Lowe: depth first over the calls that may come next, remembering each pair of (set of
//! calls placed, state) that was tried. What makes it fast here:
//!
//! - A state has a constant size. Of a value only its length, a wide hash and the hash of PutHash
//!   are kept; all three can be continued over appended bytes.
//! - The set of calls placed is remembered by the exclusive-or of a random number per call.
//! - Calls with an unknown outcome are tried only when no answered call fits, and only where
//!   something can see their effect.
//! - A read that fits and leaves the state as it is, as most do, is placed for good: nothing that
//!   was possible before it is impossible after it.
//! - Versions, where the clients were told them, order the calls.
//!
//! A call with an unknown outcome may take effect at any time after its start, or never.

use std::collections::BTreeSet;
use std::fmt;

use base::Random;
use bytes::Bytes;

use crate::history::{Answer, Call, Ending, Escaped, Expected, History, Operation};

/// Why a history does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// No order of the calls explains the answers.
    NotLinearizable {
        /// The key.
        key: Bytes,
        /// Lines for a person: as many calls as could be placed, the last of them in that order,
        /// and the calls of which none could come next.
        report: String,
    },
    /// The search was given up.
    Undecided {
        /// The key.
        key: Bytes,
        /// Pairs of calls and state that were tried.
        steps: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::NotLinearizable { key, report } => {
                write!(f, "the calls on {} are not linearizable:\n{report}", Escaped(key))
            }
            Violation::Undecided { key, steps } => {
                write!(f, "the calls on {} are undecided after {steps} steps", Escaped(key))
            }
        }
    }
}

impl std::error::Error for Violation {}

/// Steps after which [`check`] gives up on a key: a few seconds.
pub const STEPS_MAX: u64 = 4_000_000;

/// Checks every key of a history.
pub fn check(history: &History) -> Result<(), Violation> {
    for (key, calls) in history.by_key() {
        check_key(&key, &calls, STEPS_MAX)?;
    }
    Ok(())
}

/// Checks the calls of one key, in at most `steps_max` steps.
pub fn check_key(key: &Bytes, calls: &[Call], steps_max: u64) -> Result<(), Violation> {
    Search::new(calls).run(steps_max).map_err(|failure| match failure {
        Failure::Contradiction(report) => Violation::NotLinearizable { key: key.clone(), report },
        Failure::TooLong(steps) => Violation::Undecided { key: key.clone(), steps },
    })
}

/// What is kept of a value: enough to tell it from others and to continue it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Digest {
    len: u64,
    /// FNV-1a of 128 bits.
    wide: u128,
    /// FNV-1a of 32 bits, the hash of PutHash.
    narrow: u32,
}

impl Digest {
    const EMPTY: Digest =
        Digest { len: 0, wide: 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, narrow: 0x811c_9dc5 };

    fn of(bytes: &[u8]) -> Digest {
        Digest::EMPTY.then(bytes)
    }

    fn then(mut self, bytes: &[u8]) -> Digest {
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
struct State {
    value: Option<Digest>,
    /// The version of the newest change as far as known; a later change has a higher one.
    version: u64,
    /// Whether the newest change has exactly this version, or just a higher one.
    exact: bool,
}

impl State {
    const ABSENT: State = State { value: None, version: 0, exact: true };

    /// After a change to `value`; none if the version it was given contradicts the order.
    fn changed(self, value: Option<Digest>, version: Option<u64>) -> Option<State> {
        match version {
            Some(version) if version > self.version => Some(State { value, version, exact: true }),
            Some(_) => None,
            None => Some(State { value, version: self.version, exact: false }),
        }
    }

    /// After a call that changed nothing and was told this version of the record.
    fn seen(self, version: Option<u64>) -> Option<State> {
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
    fn has_version(self, version: u64) -> Option<bool> {
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
struct Step {
    /// Place in the caller's list.
    call: usize,
    start: u64,
    /// None: the outcome is unknown.
    end: Option<u64>,
    action: Action,
    answer: Option<Answer>,
    /// The digest of the answer's value.
    told: Option<Digest>,
    version: Option<u64>,
    /// Stands for the call in the set of calls placed.
    mark: u128,
}

enum Action {
    Get,
    Put(Digest),
    Extend { bytes: Bytes, hash: bool },
    Delete,
    SwapValue { expected: Digest, value: Digest },
    SwapVersion { expected: u64, value: Digest },
}

impl Step {
    fn new(call: usize, source: &Call, mark: u128) -> Option<Step> {
        let action = match &source.operation {
            Operation::Get => Action::Get,
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
            Ending::Unknown if source.operation == Operation::Get => return None,
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
        Some(Step { call, start: source.start, end, action, answer, told, version, mark })
    }

    /// The state after the call; none if the call was answered otherwise than it would be in this
    /// state. A call with an unknown outcome is only tried for its effect.
    fn apply(&self, state: State) -> Option<State> {
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
    fn order(&self, index: usize) -> Option<(u64, usize)> {
        self.version.filter(|version| *version > 0).map(|version| (version, index))
    }

    /// Whether a call that was answered so changes nothing, in whatever state it was executed. (A
    /// Put of the value that is there changes nothing either, but may be needed later.)
    fn is_read(&self) -> bool {
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

    fn swap(&self, state: State, same: Option<bool>, value: Digest) -> Option<State> {
        match (self.answer.as_ref(), same) {
            (Some(Answer::Swapped(true)) | None, Some(true) | None) => {
                state.changed(Some(value), self.version)
            }
            (Some(Answer::Swapped(false)), Some(false) | None) => state.seen(self.version),
            _ => None,
        }
    }
}

/// How a search ended.
enum Attempt {
    Explained,
    GivenUp,
    /// `placed` is what was placed at the end, `deepest` the most that ever was.
    Stuck {
        deepest: usize,
        placed: Vec<Placed>,
    },
}

enum Failure {
    Contradiction(String),
    TooLong(u64),
}

/// Where the search looks for the next call.
#[derive(Clone, Copy)]
enum Cursor {
    /// At this node of the list of starts and ends.
    Listed(usize),
    /// At this place among the calls with an unknown outcome that started before the time.
    Unknown { index: usize, before: u64 },
}

/// A call that was placed, and what to go back to.
struct Placed {
    cursor: Cursor,
    step: usize,
    state: State,
    /// A read that left the state as it was; no other call needs to be tried in its place.
    settled: bool,
    /// How many calls with an unknown outcome were placed last, up to and with this one.
    unknown_row: usize,
}

struct Search<'a> {
    calls: &'a [Call],
    /// Answered calls by start, then those with an unknown outcome by start.
    steps: Vec<Step>,
    /// How many are answered.
    answered: usize,
    /// Doubly linked: node 2i+1 is the start of answered call i, node 2i+2 its end, 0 the head.
    next: Vec<usize>,
    prev: Vec<usize>,
    unknown_placed: Vec<bool>,
    /// The answered calls not placed that were told a version, by that version.
    versions: BTreeSet<(u64, usize)>,
}

impl<'a> Search<'a> {
    fn new(calls: &'a [Call]) -> Search<'a> {
        let mut random = Random::new(calls.len() as u64);
        let mut steps: Vec<Step> = calls
            .iter()
            .enumerate()
            .filter_map(|(index, call)| Step::new(index, call, random.next_u128()))
            .collect();
        steps.sort_by_key(|step| (step.end.is_none(), step.start, step.call));
        let answered = steps.iter().filter(|step| step.end.is_some()).count();
        // At one time starts come before ends: such calls count as concurrent.
        let mut nodes: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * answered);
        for (index, step) in steps[..answered].iter().enumerate() {
            nodes.push((step.start, false, 2 * index + 1));
            nodes.push((step.end.unwrap_or(u64::MAX), true, 2 * index + 2));
        }
        nodes.sort_unstable();
        let mut next = vec![0; nodes.len() + 1];
        let mut prev = vec![0; nodes.len() + 1];
        let mut last = 0;
        for (_, _, node) in nodes {
            next[last] = node;
            prev[node] = last;
            last = node;
        }
        let unknown_placed = vec![false; steps.len() - answered];
        let told = steps.iter().enumerate().filter_map(|(index, step)| step.order(index));
        let versions = told.collect();
        Search { calls, steps, answered, next, prev, unknown_placed, versions }
    }

    /// First with few calls of unknown outcome in a row, which explains nearly every good history
    /// and keeps the choice small; then with any number.
    fn run(self, steps_max: u64) -> Result<(), Failure> {
        for unknown_max in [1, 2] {
            if let Attempt::Explained =
                Search::new(self.calls).attempt(steps_max / 4, unknown_max, usize::MAX)
            {
                return Ok(());
            }
        }
        let unknown_max = usize::MAX;
        match Search::new(self.calls).attempt(steps_max, unknown_max, usize::MAX) {
            Attempt::Explained => Ok(()),
            Attempt::GivenUp => Err(Failure::TooLong(steps_max)),
            Attempt::Stuck { deepest, .. } => {
                // The same search again, up to where it had placed most.
                let mut again = Search::new(self.calls);
                match again.attempt(steps_max, unknown_max, deepest) {
                    Attempt::Stuck { placed, .. } => {
                        Err(Failure::Contradiction(again.report(&placed)))
                    }
                    Attempt::Explained | Attempt::GivenUp => {
                        unreachable!("a search that is repeated goes another way")
                    }
                }
            }
        }
    }

    /// Searches until every answered call is placed, nothing is left to try, or as many calls as
    /// `stop_at` are placed and none can come next. At most `unknown_max` calls with an unknown
    /// outcome are placed in a row.
    fn attempt(&mut self, steps_max: u64, unknown_max: usize, stop_at: usize) -> Attempt {
        let mut state = State::ABSENT;
        let mut set = 0u128;
        let mut tried: BTreeSet<(u128, State)> = BTreeSet::new();
        let mut placed: Vec<Placed> = Vec::new();
        let mut deepest = 0;
        let mut cursor = Cursor::Listed(self.next[0]);
        while self.next[0] != 0 {
            let unknown_row = placed.last().map_or(0, |placed| placed.unknown_row);
            let may_unknown = unknown_row < unknown_max;
            let Some((step, found)) =
                self.candidate(&mut cursor, state, unknown_row > 0, may_unknown)
            else {
                deepest = deepest.max(placed.len());
                if placed.len() >= stop_at {
                    return Attempt::Stuck { deepest, placed };
                }
                loop {
                    let Some(back) = placed.pop() else {
                        return Attempt::Stuck { deepest, placed };
                    };
                    self.put_back(back.step);
                    set ^= self.steps[back.step].mark;
                    state = back.state;
                    cursor = back.cursor;
                    if !back.settled {
                        break;
                    }
                }
                self.advance(&mut cursor);
                continue;
            };
            let with = set ^ self.steps[step].mark;
            if tried.insert((with, found)) {
                if tried.len() as u64 > steps_max {
                    return Attempt::GivenUp;
                }
                let settled = found == state && self.steps[step].is_read();
                let unknown_row = if step < self.answered { 0 } else { unknown_row + 1 };
                placed.push(Placed { cursor, step, state, settled, unknown_row });
                self.take(step);
                set = with;
                state = found;
                cursor = Cursor::Listed(self.next[0]);
            } else {
                self.advance(&mut cursor);
            }
        }
        Attempt::Explained
    }

    /// The next call from the cursor on that fits the state, and the state after it. The cursor
    /// stays on it.
    ///
    /// Behind a call with an unknown outcome nothing is placed that overwrites blindly: the unseen
    /// call might as well not have been executed. And nothing is placed before what was told a
    /// lower version.
    fn candidate(
        &self,
        cursor: &mut Cursor,
        state: State,
        behind_unknown: bool,
        may_unknown: bool,
    ) -> Option<(usize, State)> {
        loop {
            let step = match *cursor {
                Cursor::Listed(node) if node % 2 == 1 => node / 2,
                Cursor::Listed(node) => {
                    // The end of a call that is not placed: nothing that starts later can come
                    // before it.
                    if !may_unknown {
                        return None;
                    }
                    let before = self.steps[node / 2 - 1].end.unwrap_or(u64::MAX);
                    *cursor = Cursor::Unknown { index: 0, before };
                    continue;
                }
                Cursor::Unknown { index, before } => {
                    let step = self.steps.get(self.answered + index)?;
                    if step.start > before {
                        return None;
                    }
                    if self.unknown_placed[index] {
                        self.advance(cursor);
                        continue;
                    }
                    self.answered + index
                }
            };
            let blind = behind_unknown && matches!(self.steps[step].action, Action::Put(_));
            let first = self.versions.first().map_or(u64::MAX, |(version, _)| *version);
            let early = self.steps[step].order(step).is_some_and(|(version, _)| version > first);
            if !blind
                && !early
                && let Some(found) = self.steps[step].apply(state)
            {
                return Some((step, found));
            }
            self.advance(cursor);
        }
    }

    fn advance(&self, cursor: &mut Cursor) {
        *cursor = match *cursor {
            Cursor::Listed(node) => Cursor::Listed(self.next[node]),
            Cursor::Unknown { index, before } => Cursor::Unknown { index: index + 1, before },
        };
    }

    fn take(&mut self, step: usize) {
        if step >= self.answered {
            self.unknown_placed[step - self.answered] = true;
            return;
        }
        if let Some(order) = self.steps[step].order(step) {
            self.versions.remove(&order);
        }
        for node in [2 * step + 1, 2 * step + 2] {
            self.next[self.prev[node]] = self.next[node];
            let next = self.next[node];
            self.prev[next] = self.prev[node];
        }
    }

    fn put_back(&mut self, step: usize) {
        if step >= self.answered {
            self.unknown_placed[step - self.answered] = false;
            return;
        }
        if let Some(order) = self.steps[step].order(step) {
            self.versions.insert(order);
        }
        for node in [2 * step + 2, 2 * step + 1] {
            self.next[self.prev[node]] = node;
            let next = self.next[node];
            self.prev[next] = node;
        }
    }

    /// The last calls placed and the calls that could have come next.
    fn report(&self, placed: &[Placed]) -> String {
        let mut lines = format!("placed {} of {} answered calls", placed.len(), self.answered);
        lines.push_str("; the last of them in this order:\n");
        for entry in placed.iter().rev().take(8).rev() {
            lines.push_str(&format!("    {}\n", self.calls[self.steps[entry.step].call]));
        }
        lines.push_str("and none of these can come next:\n");
        let mut node = self.next[0];
        while node % 2 == 1 {
            lines.push_str(&format!("    {}\n", self.calls[self.steps[node / 2].call]));
            node = self.next[node];
        }
        for (index, placed) in self.unknown_placed.iter().enumerate().take(8) {
            if !placed {
                let call = &self.calls[self.steps[self.answered + index].call];
                lines.push_str(&format!("    {call}\n"));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests;
