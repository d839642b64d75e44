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
//! A call with an unknown outcome may take effect at any time after its start, or never. A read
//! that need not see the newest value is judged as one that began earlier: by the bound that it
//! asked for, or with the last call of its own client that was answered, and then not before that.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base::Random;
use bytes::Bytes;

use crate::history::{Call, Ending, Escaped, History, Operation, Sees};

use self::model::{Action, State, Step};

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
    /// By place in the caller's list: calls that are placed.
    placed: Vec<bool>,
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
        let begun = begin_earlier(calls);
        for step in &mut steps {
            (step.start, step.after) = begun[step.call];
        }
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
        let placed = vec![false; calls.len()];
        Search { calls, steps, answered, next, prev, unknown_placed, placed, versions }
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
            let strange = self.steps[step].after.is_some_and(|call| !self.placed[call]);
            if !blind
                && !early
                && !strange
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
        self.placed[self.steps[step].call] = true;
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
        self.placed[self.steps[step].call] = false;
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

/// When each call begins as it is judged, and the call before which it cannot come.
fn begin_earlier(calls: &[Call]) -> Vec<(u64, Option<usize>)> {
    // A client makes one call after the other, on each key.
    let mut last: BTreeMap<u64, usize> = BTreeMap::new();
    let mut order: Vec<usize> = (0..calls.len()).collect();
    order.sort_by_key(|index| calls[*index].start);
    let mut begun: Vec<(u64, Option<usize>)> = vec![(0, None); calls.len()];
    for index in order {
        let call = &calls[index];
        begun[index] = match call.operation {
            Operation::Look(Sees::Session) => match last.get(&call.client) {
                Some(before) => (begun[*before].0, Some(*before)),
                None => (0, None),
            },
            Operation::Look(Sees::Bounded(span)) => (call.start.saturating_sub(span), None),
            Operation::Get
            | Operation::Put(_)
            | Operation::PutHash(_)
            | Operation::Delete
            | Operation::Append(_)
            | Operation::CompareAndSwap { .. } => (call.start, None),
        };
        if matches!(call.ending, Ending::Answered { .. }) {
            last.insert(call.client, index);
        }
    }
    begun
}

#[cfg(test)]
mod tests;
