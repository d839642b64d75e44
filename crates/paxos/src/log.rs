//! What one replica holds of the log: for each slot the accepted ballot and where the value lies
//! in the write-ahead log, and the values themselves for the newest slots only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::{Lsn, Slot};

use crate::ballot::Ballot;
use crate::gate::PENDING;
use crate::members::Members;
use crate::message::{Run, Value};

/// What a value says of epochs: kept in memory as long as its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The last of an epoch: the members of the next.
    Stop(Members),
    /// The predecessor of this epoch is no longer needed.
    Done(u32),
}

impl Mark {
    /// What the value says, if it says anything.
    pub(crate) fn of(value: &Value) -> Option<Mark> {
        match value {
            Value::Noop | Value::Command(_) => None,
            Value::Stop(members) => Some(Mark::Stop(members.clone())),
            Value::Done(epoch) => Some(Mark::Done(*epoch)),
        }
    }

    /// Whether, standing in this slot, it ends this epoch or, for who does not know the epochs
    /// between, a later one.
    pub(crate) fn ends(&self, slot: Slot, epoch: u32) -> bool {
        match self {
            Mark::Stop(next) => next.epoch() > epoch && next.first_slot() == slot.next(),
            Mark::Done(_) => false,
        }
    }
}

/// What is known of one slot without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The ballot under which the value was accepted; `Ballot::ZERO` where nothing was.
    pub(crate) ballot: Ballot,
    /// The record that holds the value; `PENDING` until an output takes it.
    pub(crate) lsn: Lsn,
    /// The value's index among the values of that record.
    pub(crate) index: u32,
    /// The value's weight.
    pub(crate) weight: u32,
    /// The record is damaged: the value was accepted here, and cannot be read.
    pub(crate) faulty: bool,
}

impl Entry {
    const EMPTY: Entry =
        Entry { ballot: Ballot::ZERO, lsn: Lsn::ZERO, index: 0, weight: 0, faulty: false };

    fn is_empty(&self) -> bool {
        self.ballot == Ballot::ZERO
    }
}

/// An accepted slot that is written once more, so that the record that has it can be freed.
#[derive(Clone, Copy, Debug)]
struct Carried {
    slot: Slot,
    ballot: Ballot,
    /// Where the new record lies; `PENDING` until an output takes it.
    lsn: Lsn,
    index: u32,
}

/// The log of one replica.
///
/// - Slots up to `truncated_upto` are forgotten; `entries` holds those from there to the last slot
///   that anything was accepted in, empty ones included.
/// - The value of every entry whose record is not durable is in the tail; any other value that is
///   not there can be read back from the disk.
/// - The ballot of a slot never decreases, and a (slot, ballot) is written once (I4, I5); once more,
///   with the same value, where the first record is damaged, or is to be freed while the slot waits
///   to be decided.
/// - `faulty` names the slots whose entry is.
/// - `live` counts the entries of each record of the write-ahead log.
#[derive(Debug)]
pub(crate) struct Log {
    truncated_upto: Slot,
    entries: VecDeque<Entry>,
    tail_first: Slot,
    tail: VecDeque<Option<Value>>,
    tail_bytes: usize,
    /// The weight of all entries.
    bytes: usize,
    live: BTreeMap<Lsn, u32>,
    /// What the values of these slots say of epochs.
    marks: BTreeMap<Slot, Mark>,
    faulty: BTreeSet<Slot>,
    mended: u64,
    /// What is written once more, until the new records are durable.
    carried: VecDeque<Carried>,
}

impl Log {
    /// An empty log behind the forgotten slots.
    pub(crate) fn new(truncated_upto: Slot) -> Log {
        Log {
            truncated_upto,
            entries: VecDeque::new(),
            tail_first: truncated_upto.next(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            bytes: 0,
            live: BTreeMap::new(),
            marks: BTreeMap::new(),
            faulty: BTreeSet::new(),
            mended: 0,
            carried: VecDeque::new(),
        }
    }

    /// Slots up to here are forgotten.
    pub(crate) fn truncated_upto(&self) -> Slot {
        self.truncated_upto
    }

    /// The highest slot that holds anything, or the last forgotten one.
    pub(crate) fn last(&self) -> Slot {
        Slot(self.truncated_upto.0 + self.entries.len() as u64)
    }

    /// The lowest slot whose value is in memory, if it holds one.
    pub(crate) fn tail_first(&self) -> Slot {
        self.tail_first
    }

    /// Bytes of the values in memory.
    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// The weight of all entries.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entry of this slot.
    pub(crate) fn entry(&self, slot: Slot) -> Option<&Entry> {
        let at = slot.0.checked_sub(self.truncated_upto.0)?.checked_sub(1)?;
        let entry = self.entries.get(usize::try_from(at).ok()?)?;
        (!entry.is_empty()).then_some(entry)
    }

    /// The ballot of this slot, `Ballot::ZERO` where it holds nothing.
    pub(crate) fn ballot(&self, slot: Slot) -> Ballot {
        self.entry(slot).map_or(Ballot::ZERO, |entry| entry.ballot)
    }

    /// The value of this slot if it is in memory.
    pub(crate) fn value(&self, slot: Slot) -> Option<&Value> {
        let at = slot.0.checked_sub(self.tail_first.0)?;
        self.tail.get(usize::try_from(at).ok()?)?.as_ref()
    }

    /// Whether the slot holds an entry of at most this position, whose value can be read.
    pub(crate) fn is_durable(&self, slot: Slot, durable: Lsn) -> bool {
        self.entry(slot).is_some_and(|entry| entry.lsn <= durable && !entry.faulty)
    }

    /// Whether the slot holds an entry whose value can be read neither from the disk nor in memory.
    pub(crate) fn is_unreadable(&self, slot: Slot) -> bool {
        self.faulty.contains(&slot) && self.value(slot).is_none()
    }

    /// The slots whose record is damaged.
    pub(crate) fn faulty(&self) -> &BTreeSet<Slot> {
        &self.faulty
    }

    /// How many damaged slots were written anew.
    pub(crate) fn mended(&self) -> u64 {
        self.mended
    }

    /// The records from `first` to `last` turned out to be damaged; returns the slots in them.
    pub(crate) fn damage(&mut self, first: Lsn, last: Lsn) -> Vec<Slot> {
        let mut slots = Vec::new();
        for (at, entry) in self.entries.iter_mut().enumerate() {
            let within = (first..=last).contains(&entry.lsn);
            if within && !entry.is_empty() && !entry.faulty {
                entry.faulty = true;
                slots.push(Slot(self.truncated_upto.0 + 1 + at as u64));
            }
        }
        self.faulty.extend(&slots);
        self.carried.retain(|carried| !(first..=last).contains(&carried.lsn));
        slots
    }

    /// Writes a slot. Its record is still to be placed.
    pub(crate) fn set(&mut self, slot: Slot, ballot: Ballot, index: u32, value: Value) {
        assert!(slot > self.truncated_upto, "{slot} is forgotten");
        let weight = value.weight();
        let entry = Entry { ballot, lsn: PENDING, index, weight: weight as u32, faulty: false };
        self.set_entry(slot, entry);
        self.set_mark(slot, Mark::of(&value));
        // A new leader may propose a slot again whose old value was dropped from memory.
        while self.tail_first > slot {
            self.tail.push_front(None);
            self.tail_first = self.tail_first.prev();
        }
        let at = (slot.0 - self.tail_first.0) as usize;
        while self.tail.len() <= at {
            self.tail.push_back(None);
        }
        let old = self.tail[at].replace(value);
        self.tail_bytes += weight;
        self.tail_bytes -= old.map_or(0, |old| old.weight());
    }

    /// Puts back a slot as a record on the disk has it, with the value if it is still wanted.
    pub(crate) fn restore(&mut self, slot: Slot, entry: Entry, value: Option<Value>) {
        *self.live.entry(entry.lsn).or_insert(0) += 1;
        self.set_entry(slot, entry);
        if value.is_none() && self.tail_bytes == 0 {
            self.tail.clear();
            self.tail_first = slot.next();
            return;
        }
        self.tail.resize((slot.0 - self.tail_first.0) as usize, None);
        self.tail_bytes += value.as_ref().map_or(0, Value::weight);
        self.tail.push_back(value);
    }

    fn set_entry(&mut self, slot: Slot, entry: Entry) {
        let at = (slot.0 - self.truncated_upto.0 - 1) as usize;
        while self.entries.len() <= at {
            self.entries.push_back(Entry::EMPTY);
        }
        let old = std::mem::replace(&mut self.entries[at], entry);
        self.bytes += entry.weight as usize;
        self.bytes -= old.weight as usize;
        self.mended += u64::from(old.faulty && !entry.faulty);
        match entry.faulty {
            true => self.faulty.insert(slot),
            false => self.faulty.remove(&slot),
        };
        assert!(
            old.ballot < entry.ballot || old.faulty && old.ballot == entry.ballot,
            "{slot} was accepted under {} and now under {}",
            old.ballot,
            entry.ballot
        );
        self.release(old);
    }

    /// What the value of this slot says of epochs.
    pub(crate) fn set_mark(&mut self, slot: Slot, mark: Option<Mark>) {
        match mark {
            Some(mark) => self.marks.insert(slot, mark),
            None => self.marks.remove(&slot),
        };
    }

    /// What the value of this slot says of epochs.
    pub(crate) fn mark(&self, slot: Slot) -> Option<&Mark> {
        self.marks.get(&slot)
    }

    /// What the values after one slot and up to another say of epochs.
    pub(crate) fn marks(&self, after: Slot, upto: Slot) -> impl Iterator<Item = (Slot, &Mark)> {
        let range = after.next()..=upto.max(after.next());
        let marks = self.marks.range(range);
        marks.map(|(slot, mark)| (*slot, mark)).filter(move |(slot, _)| *slot <= upto)
    }

    /// Forgets what was accepted above this slot.
    pub(crate) fn drop_above(&mut self, slot: Slot) {
        while self.last() > slot {
            self.faulty.remove(&self.last());
            let Some(entry) = self.entries.pop_back() else { break };
            self.bytes -= entry.weight as usize;
            self.release(entry);
        }
        while self.tail_first.0 + self.tail.len() as u64 > slot.0 + 1 {
            let Some(value) = self.tail.pop_back() else { break };
            self.tail_bytes -= value.map_or(0, |value| value.weight());
        }
        self.tail_first = self.tail_first.min(slot.next());
        self.marks.split_off(&slot.next());
    }

    /// Forgets what was accepted above this slot in epochs before this one.
    pub(crate) fn drop_older(&mut self, above: Slot, epoch: u32) {
        for slot in (above.0 + 1..=self.last().0).map(Slot) {
            let at = (slot.0 - self.truncated_upto.0 - 1) as usize;
            let Some(entry) = self.entries.get_mut(at) else { break };
            if entry.is_empty() || entry.ballot.epoch >= epoch {
                continue;
            }
            let entry = std::mem::replace(entry, Entry::EMPTY);
            self.bytes -= entry.weight as usize;
            self.faulty.remove(&slot);
            self.marks.remove(&slot);
            self.release(entry);
            let at = slot.0.checked_sub(self.tail_first.0).map(|at| at as usize);
            let value = at.and_then(|at| self.tail.get_mut(at)).and_then(Option::take);
            self.tail_bytes -= value.map_or(0, |value| value.weight());
        }
        let held = self.entries.iter().rposition(|entry| !entry.is_empty());
        let last = held.map_or(self.truncated_upto.0, |at| self.truncated_upto.0 + 1 + at as u64);
        self.drop_above(Slot(last));
    }

    /// A record with these entries got its position.
    pub(crate) fn place(&mut self, first: Slot, ballot: Ballot, count: usize, lsn: Lsn) {
        let mut placed = 0;
        let slots = first..Slot(first.0 + count as u64);
        // An output may have a slot twice under one ballot, carried and mended: the index tells in
        // which record what is meant lies.
        let here = |slot: Slot, index: u32| slot.0 - first.0 == u64::from(index);
        for carried in &mut self.carried {
            if carried.lsn == PENDING
                && carried.ballot == ballot
                && slots.contains(&carried.slot)
                && here(carried.slot, carried.index)
            {
                carried.lsn = lsn;
            }
        }
        for slot in slots.start.0..slots.end.0 {
            let Some(at) = slot.checked_sub(self.truncated_upto.0 + 1) else { continue };
            if let Some(entry) = self.entries.get_mut(at as usize)
                && entry.ballot == ballot
                && entry.lsn == PENDING
                && here(Slot(slot), entry.index)
            {
                entry.lsn = lsn;
                placed += 1;
            }
        }
        if placed > 0 {
            *self.live.entry(lsn).or_insert(0) += placed;
        }
    }

    /// The slots above `after` whose record lies below this position and can be read, as far as
    /// they weigh no more than about so many bytes, and what they weigh. None while others are
    /// being written once more.
    pub(crate) fn stranded(&self, after: Slot, below: Lsn, bytes_max: usize) -> (Vec<Slot>, usize) {
        let mut stranded = Vec::new();
        let mut bytes = 0;
        let first = after.max(self.truncated_upto).0.saturating_add(1);
        let last = if self.carried.is_empty() { self.last().0 } else { 0 };
        for slot in (first..=last).map(Slot) {
            let there = |entry: &&Entry| entry.lsn < below && !entry.faulty;
            let Some(entry) = self.entry(slot).filter(there) else { continue };
            if bytes + entry.weight as usize > bytes_max && !stranded.is_empty() {
                break;
            }
            bytes += entry.weight as usize;
            stranded.push(slot);
        }
        (stranded, bytes)
    }

    /// The next output has the slot once more, as it is. It stays where it was until that is
    /// durable.
    pub(crate) fn carry(&mut self, slot: Slot, index: u32) {
        let ballot = self.ballot(slot);
        self.carried.push_back(Carried { slot, ballot, lsn: PENDING, index });
    }

    /// All records up to here are durable: what they have once more is where they are.
    pub(crate) fn persisted(&mut self, durable: Lsn) {
        while let Some(carried) = self.carried.pop_front_if(|carried| carried.lsn <= durable) {
            let Carried { slot, ballot, lsn, index } = carried;
            let at = slot.0.checked_sub(self.truncated_upto.0 + 1);
            let Some(entry) = at.and_then(|at| self.entries.get_mut(at as usize)) else { continue };
            // It may have been forgotten, or accepted under another ballot.
            if entry.ballot == ballot && entry.lsn < lsn {
                let there = Entry { lsn, index, faulty: false, ..*entry };
                let former = std::mem::replace(entry, there);
                if former.faulty {
                    self.faulty.remove(&slot);
                    self.mended += 1;
                }
                *self.live.entry(lsn).or_insert(0) += 1;
                self.release(former);
            }
        }
    }

    fn release(&mut self, entry: Entry) {
        if entry.is_empty() || entry.lsn == PENDING {
            return;
        }
        if let Some(count) = self.live.get_mut(&entry.lsn) {
            *count -= 1;
            if *count == 0 {
                self.live.remove(&entry.lsn);
            }
        }
    }

    /// Drops values from the low end until the tail fits: only of slots up to `limit`, and only
    /// those that can be read back from the disk.
    pub(crate) fn evict(&mut self, bytes_max: usize, durable: Lsn, limit: Slot) {
        while self.tail_bytes > bytes_max && self.tail_first <= limit {
            let lsn = self.entry(self.tail_first).map_or(Lsn::ZERO, |entry| entry.lsn);
            if lsn > durable {
                return;
            }
            self.drop_front_value();
        }
    }

    fn drop_front_value(&mut self) {
        if let Some(Some(value)) = self.tail.pop_front() {
            self.tail_bytes -= value.weight();
        }
        self.tail_first = self.tail_first.next();
    }

    /// Forgets the slots up to here.
    pub(crate) fn truncate(&mut self, upto: Slot) {
        while self.truncated_upto < upto {
            let Some(entry) = self.entries.pop_front() else { break };
            self.truncated_upto = self.truncated_upto.next();
            self.faulty.remove(&self.truncated_upto);
            self.bytes -= entry.weight as usize;
            self.release(entry);
        }
        assert!(self.truncated_upto >= upto, "{upto} is beyond the log");
        self.marks = self.marks.split_off(&upto.next());
        while self.tail_first <= self.truncated_upto && !self.tail.is_empty() {
            self.drop_front_value();
        }
        self.tail_first = self.tail_first.max(self.truncated_upto.next());
    }

    /// Forgets the slots up to here, which may lie beyond the log.
    pub(crate) fn forget(&mut self, upto: Slot) {
        self.truncate(upto.min(self.last()).max(self.truncated_upto));
        if self.truncated_upto < upto {
            self.truncated_upto = upto;
            self.tail_first = upto.next();
        }
    }

    /// The last slot such that those behind it weigh no more than so many bytes, and are not more.
    pub(crate) fn keeping(&self, bytes_max: usize, slots_max: u64) -> Slot {
        let (mut upto, mut bytes) = (self.truncated_upto, self.bytes);
        for entry in &self.entries {
            if bytes <= bytes_max && self.last().0 - upto.0 <= slots_max {
                break;
            }
            bytes -= entry.weight as usize;
            upto = upto.next();
        }
        upto
    }

    /// The last slot whose record lies below this position.
    pub(crate) fn below(&self, lsn: Lsn) -> Slot {
        if self.keep_from().is_none_or(|first| first >= lsn) {
            return self.truncated_upto;
        }
        let below = |entry: &Entry| !entry.is_empty() && entry.lsn < lsn;
        let behind = self.entries.iter().rposition(below).map_or(0, |at| at as u64 + 1);
        Slot(self.truncated_upto.0 + behind)
    }

    /// The lowest record that still holds an entry.
    pub(crate) fn keep_from(&self) -> Option<Lsn> {
        self.live.keys().next().copied()
    }

    /// What is accepted above `after`, as runs.
    pub(crate) fn runs(&self, after: Slot) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let first = after.max(self.truncated_upto).0.saturating_add(1);
        for slot in first..=self.last().0 {
            let Some(entry) = self.entry(Slot(slot)) else { continue };
            match runs.last_mut() {
                Some(run)
                    if run.ballot == entry.ballot
                        && run.faulty == entry.faulty
                        && run.last.0 + 1 == slot =>
                {
                    run.last = Slot(slot);
                }
                Some(_) | None => {
                    let slot = Slot(slot);
                    let (ballot, faulty) = (entry.ballot, entry.faulty);
                    runs.push(Run { first: slot, last: slot, ballot, faulty });
                }
            }
        }
        runs
    }
}

#[cfg(test)]
#[path = "log/tests.rs"]
mod tests;
