//! A replica put together again from its records (docs/paxos.md 11.2).

use std::collections::BTreeMap;
use std::fmt;

use base::mutant::{self, Mutant};
use base::{GroupId, Lsn, Now, ReplicaId, Slot};

use crate::acceptor::{AHEAD_SLOTS_MAX, Acceptor};
use crate::ballot::Ballot;
use crate::epoch::Standing;
use crate::learner::Learner;
use crate::log::{Entry, Log, Mark};
use crate::members::Members;
use crate::message::Value;
use crate::paxos::{Options, Paxos};
use crate::record::{Outline, Record};

/// Takes the records of one replica in the order of their positions; one scan of the log can feed
/// the recoveries of all groups. It keeps no more values than a running replica does.
///
/// All that is pushed must be durable: the caller syncs the tail of the log again after a start.
#[derive(Debug)]
pub struct Recovery {
    options: Options,
    /// Whose records these are, once that is known.
    replica: Option<ReplicaId>,
    members: Option<Members>,
    promised: Ballot,
    chosen_upto: Slot,
    truncated_upto: Slot,
    last_lsn: Lsn,
    entries: BTreeMap<Slot, Entry>,
    values: BTreeMap<Slot, Value>,
    value_bytes: usize,
    /// What values say of epochs.
    marks: BTreeMap<Slot, Mark>,
    done: u32,
    /// The last record says that the replica is no more.
    destroyed: bool,
    /// What the store says of a later epoch.
    standing: Option<Standing>,
    /// Records of which nothing is known were lost, now or at an earlier start.
    quarantined: bool,
    /// They were found lost just now: no record says so yet.
    lost_now: bool,
    /// The newest `GroupState` is damaged: what it said of forgotten slots is not known.
    state_damaged: bool,
    /// The record that says that the store does not hold what the replica executed.
    store_lost: Option<Lsn>,
    /// The store has a copy of another replica's state, after this slot, and no record says so.
    installed_now: Option<Slot>,
    /// Every voter had the slots up to here.
    all_upto: Slot,
    /// Records whose damage is mended.
    mended: Vec<(Lsn, Lsn)>,
}

/// Why records do not make a replica. None of these can come from a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoverError {
    /// No record says who votes.
    NoMembers,
    /// The records belong to another replica, or to one that does not vote.
    WrongReplica {
        /// The replica that they belong to.
        found: ReplicaId,
    },
    /// A record cannot follow those before it.
    Contradiction {
        /// The position of the record.
        lsn: Lsn,
        /// What does not fit.
        what: &'static str,
    },
    /// Slots known to be chosen are missing.
    Missing {
        /// The first of them.
        slot: Slot,
    },
    /// The log no longer holds slots that were not executed.
    StoreBehind {
        /// The last slot executed.
        applied: Slot,
        /// The last slot that the log forgot.
        truncated_upto: Slot,
    },
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::NoMembers => f.write_str("no record says who votes"),
            RecoverError::WrongReplica { found } => write!(f, "the records belong to {found}"),
            RecoverError::Contradiction { lsn, what } => write!(f, "the record at {lsn} {what}"),
            RecoverError::Missing { slot } => write!(f, "{slot} was chosen and is not in the log"),
            RecoverError::StoreBehind { applied, truncated_upto } => {
                write!(f, "executed up to {applied}, but the log begins after {truncated_upto}")
            }
        }
    }
}

impl std::error::Error for RecoverError {}

/// A gap wider than this is not one that a replica can have left.
const GAP_SLOTS_MAX: u64 = 64 * AHEAD_SLOTS_MAX;

/// The chosen prefix that is at hand: what is damaged is not, unless it was executed durably.
fn have_upto(log: &Log, chosen_upto: Slot, applied: Slot) -> Slot {
    let damaged = log.faulty().range(applied.next()..).next();
    damaged.map_or(chosen_upto, |slot| chosen_upto.min(slot.prev()))
}

impl Recovery {
    /// A recovery of whichever replica of the group the records name, with the usual limits: a
    /// node has one replica of a group at most.
    pub fn of_group(group: GroupId, seed: u64) -> Recovery {
        let options = Options::new(group, ReplicaId(0), seed);
        Recovery { replica: None, ..Recovery::new(options) }
    }

    /// A recovery without records.
    pub fn new(options: Options) -> Recovery {
        Recovery {
            replica: Some(options.replica),
            options,
            members: None,
            promised: Ballot::ZERO,
            chosen_upto: Slot::ZERO,
            truncated_upto: Slot::ZERO,
            last_lsn: Lsn::ZERO,
            entries: BTreeMap::new(),
            values: BTreeMap::new(),
            value_bytes: 0,
            marks: BTreeMap::new(),
            done: 0,
            destroyed: false,
            standing: None,
            quarantined: false,
            lost_now: false,
            state_damaged: false,
            store_lost: None,
            installed_now: None,
            all_upto: Slot::ZERO,
            mended: Vec::new(),
        }
    }

    /// Keeps at most so many bytes of values in memory.
    #[must_use]
    pub fn with_tail_bytes_max(mut self, bytes: usize) -> Recovery {
        self.options.tail_bytes_max = bytes;
        self
    }

    /// The next record of this replica.
    pub fn push(&mut self, lsn: Lsn, record: Record) -> Result<(), RecoverError> {
        if lsn <= self.last_lsn {
            let what = "does not follow the one before it";
            return Err(RecoverError::Contradiction { lsn, what });
        }
        self.last_lsn = lsn;
        self.destroyed &= matches!(record, Record::GroupDestroy);
        match record {
            Record::GroupCreate { replica, members } => {
                if self.replica.is_none() {
                    // It is a replica's first: what came before is left of another, of which
                    // damage took the records that name it.
                    self.destroy();
                }
                self.set_members(replica, members)
            }
            Record::Promise { ballot } => {
                self.promised = self.promised.max(ballot);
                Ok(())
            }
            Record::Entries { first, ballot, values } => {
                self.promised = self.promised.max(ballot);
                for (index, value) in values.into_iter().enumerate() {
                    let slot = Slot(first.0.saturating_add(index as u64));
                    self.push_entry(lsn, slot, ballot, index as u32, value)?;
                }
                Ok(())
            }
            Record::Epoch { members } => self.push_epoch(lsn, members),
            Record::GroupDestroy => {
                self.destroy();
                Ok(())
            }
            Record::Quarantine => {
                self.quarantined = true;
                Ok(())
            }
            Record::Mended { first, last } => {
                self.mended.push((first, last));
                Ok(())
            }
            Record::StoreLost => {
                self.store_lost = Some(lsn);
                Ok(())
            }
            Record::Snapshot { slot } => {
                self.store_lost = None;
                self.chosen_upto = self.chosen_upto.max(slot);
                self.forget(slot);
                Ok(())
            }
            Record::GroupState {
                replica,
                members,
                promised,
                chosen_upto,
                truncated_upto,
                done,
                quarantined,
                store_lost,
                all_upto,
            } => {
                self.set_members(replica, members)?;
                self.done = self.done.max(done);
                self.quarantined |= quarantined;
                self.store_lost = self.store_lost.or(store_lost.then_some(lsn));
                self.all_upto = self.all_upto.max(all_upto);
                self.state_damaged = false;
                self.promised = self.promised.max(promised);
                self.chosen_upto = self.chosen_upto.max(chosen_upto);
                self.forget(truncated_upto);
                Ok(())
            }
            Record::ChosenHint { upto } => {
                self.chosen_upto = self.chosen_upto.max(upto);
                Ok(())
            }
        }
    }

    /// The replica is no more; another may take its place.
    fn destroy(&mut self) {
        let fresh = Recovery::of_group(self.options.group, self.options.seed);
        let (last_lsn, tail) = (self.last_lsn, self.options.tail_bytes_max);
        *self = Recovery { last_lsn, destroyed: true, ..fresh.with_tail_bytes_max(tail) };
    }

    /// The slots up to here are forgotten.
    fn forget(&mut self, upto: Slot) {
        self.truncated_upto = self.truncated_upto.max(upto);
        self.entries = self.entries.split_off(&self.truncated_upto.next());
        let kept = self.values.split_off(&self.truncated_upto.next());
        self.value_bytes -= self.values.values().map(Value::weight).sum::<usize>();
        self.values = kept;
    }

    /// The store says that it got a copy of another replica's state, after this slot, when the
    /// write-ahead log was durable through `lsn`. What the log does not know of it, a crash
    /// kept from it; it is recorded in the first output.
    pub fn installed(&mut self, slot: Slot, lsn: Lsn) {
        if self.store_lost.is_some_and(|lost| lost <= lsn) {
            self.store_lost = None;
            self.installed_now = Some(slot);
        }
        if slot > self.truncated_upto {
            self.chosen_upto = self.chosen_upto.max(slot);
            self.forget(slot);
            self.installed_now = Some(slot);
        }
    }

    /// The store has executed the log through this slot, and says who the members are after it. Where
    /// the log does not know of that epoch, a crash kept it from it: the log goes on behind the slot,
    /// as behind a copy.
    pub fn stands(&mut self, slot: Slot, standing: Standing) {
        let known = self.members.as_ref().map_or(0, Members::epoch);
        self.done = self.done.max(standing.done);
        if standing.members.epoch() > known && standing.members.first_slot() <= slot.next() {
            if slot > self.truncated_upto {
                self.chosen_upto = self.chosen_upto.max(slot);
                self.forget(slot);
                self.installed_now = Some(slot);
            }
            self.standing = Some(standing);
        }
    }

    /// The next record of this replica, of which only the identity could be read.
    pub fn push_damaged(&mut self, lsn: Lsn, identity: &[u8]) -> Result<(), RecoverError> {
        let Ok(outline) = Record::outline(identity) else {
            let what = "has an identity of no known kind";
            return Err(RecoverError::Contradiction { lsn, what });
        };
        let (first, count, ballot) = match outline {
            Outline::Whole(record) => return self.push(lsn, record),
            Outline::Entries { first, count, ballot } => (first, count, ballot),
            Outline::Create => (Slot::ZERO, 0, Ballot::ZERO),
            Outline::State { promised, chosen_upto } => {
                self.chosen_upto = self.chosen_upto.max(chosen_upto);
                self.state_damaged = true;
                (Slot::ZERO, 0, promised)
            }
        };
        self.last_lsn = self.last_lsn.max(lsn);
        // Whatever follows the end of a replica is of another, of which this may be the first.
        self.destroyed = false;
        self.promised = self.promised.max(ballot);
        for index in 0..count {
            let slot = Slot(first.0 + u64::from(index));
            // What was carried forward is whole in its former record.
            if self.entries.get(&slot).is_some_and(|known| known.ballot == ballot && !known.faulty)
            {
                continue;
            }
            let entry = Entry { ballot, lsn, index, weight: 0, faulty: true };
            self.put_entry(slot, entry)?;
            if let Some(old) = self.values.remove(&slot) {
                self.value_bytes -= old.weight();
            }
        }
        Ok(())
    }

    /// Records of this replica may be lost: it may have promised or accepted what nothing here
    /// tells of. It will never vote again, and say so in its first output.
    pub fn push_lost(&mut self) {
        self.lost_now |= !self.quarantined;
        self.quarantined = true;
    }

    /// Whether the loss of these records is made good by later ones, as far as this replica goes.
    pub fn is_mended(&self, first: Lsn, last: Lsn) -> bool {
        self.mended.iter().any(|(from, to)| *from <= first && last <= *to)
    }

    /// Whether a record says that the store does not hold what the replica executed.
    pub fn is_store_lost(&self) -> bool {
        self.store_lost.is_some()
    }

    /// The log begins behind this slot.
    pub fn truncated_upto(&self) -> Slot {
        self.truncated_upto
    }

    fn set_members(&mut self, found: ReplicaId, members: Members) -> Result<(), RecoverError> {
        let present = *self.replica.get_or_insert(found);
        if present < found && self.members.is_some() {
            // The record that says that the one before is no more is lost.
            self.destroy();
        } else if present != found {
            return Err(RecoverError::WrongReplica { found });
        }
        self.replica = Some(found);
        self.options.replica = found;
        self.destroyed = false;
        self.members = Some(members);
        Ok(())
    }

    /// All that was accepted behind the end of the epoch before was never decided, unless it was
    /// accepted in a later one: a replica may learn that before it learns of the end.
    fn push_epoch(&mut self, lsn: Lsn, members: Members) -> Result<(), RecoverError> {
        if self.members.as_ref().is_some_and(|known| known.epoch() >= members.epoch()) {
            let what = "begins an epoch that does not follow";
            return Err(RecoverError::Contradiction { lsn, what });
        }
        let first = members.first_slot();
        self.promised = self.promised.max(members.first_ballot());
        self.chosen_upto = self.chosen_upto.max(first.prev());
        let behind = self.entries.range(first..);
        let older = behind.filter(|(_, entry)| entry.ballot.epoch < members.epoch());
        let older: Vec<Slot> = older.map(|(slot, _)| *slot).collect();
        for slot in older {
            self.entries.remove(&slot);
            self.marks.remove(&slot);
            let dropped = self.values.remove(&slot);
            self.value_bytes -= dropped.map_or(0, |value| value.weight());
        }
        // Where nothing is left of who this replica is, its state follows.
        if self.members.is_some() {
            self.members = Some(members);
        }
        Ok(())
    }

    fn push_entry(
        &mut self,
        lsn: Lsn,
        slot: Slot,
        ballot: Ballot,
        index: u32,
        value: Value,
    ) -> Result<(), RecoverError> {
        if slot <= self.truncated_upto {
            return Ok(());
        }
        let weight = value.weight();
        let entry = Entry { ballot, lsn, index, weight: weight as u32, faulty: false };
        self.put_entry(slot, entry)?;
        self.value_bytes += weight;
        if let Some(mark) = Mark::of(&value) {
            self.marks.insert(slot, mark);
        }
        if let Some(old) = self.values.insert(slot, value) {
            self.value_bytes -= old.weight();
        }
        while self.value_bytes > self.options.tail_bytes_max
            && let Some((_, value)) = self.values.pop_first()
        {
            self.value_bytes -= value.weight();
        }
        Ok(())
    }

    /// The same slot and ballot come twice where the first record was found damaged: the value is
    /// the same.
    fn put_entry(&mut self, slot: Slot, entry: Entry) -> Result<(), RecoverError> {
        if slot <= self.truncated_upto {
            return Ok(());
        }
        self.marks.remove(&slot);
        let old = self.entries.insert(slot, entry);
        if old.is_some_and(|old| old.ballot > entry.ballot) || entry.ballot == Ballot::ZERO {
            let what = "accepts a slot under a lower ballot than before";
            return Err(RecoverError::Contradiction { lsn: entry.lsn, what });
        }
        Ok(())
    }

    /// Whether the replica is no more, and no other has taken its place.
    pub fn is_destroyed(&self) -> bool {
        self.destroyed
    }

    /// Whether any record said who votes: a torn log may hold nothing of a group but less.
    pub fn is_created(&self) -> bool {
        self.members.is_some()
    }

    /// The replica, if the store has executed the log up to `applied`.
    ///
    /// Only slots after that are handed out as chosen. The store may be ahead of what the log knows
    /// to be chosen, and even of what the log holds: a slot can be chosen by the others before it is
    /// durable here. What the log itself does not know is learned again from the group.
    pub fn finish(mut self, applied: Slot) -> Result<Paxos, RecoverError> {
        let members = self.members.take().ok_or(RecoverError::NoMembers)?;
        let truncated_upto = self.truncated_upto;
        if applied < truncated_upto {
            return Err(RecoverError::StoreBehind { applied, truncated_upto });
        }
        let quarantined_anew = self.state_damaged && !self.quarantined;
        let doubted = self.quarantined || self.state_damaged;
        if doubted && !mutant::is(Mutant::QuarantineSkipped) {
            return Ok(self.finish_quarantined(members, applied, quarantined_anew));
        }
        let chosen_upto = self.chosen_upto.max(truncated_upto);
        let mut log = Log::new(truncated_upto);
        for (slot, entry) in &self.entries {
            let empty = slot.0 - log.last().0 - 1;
            if log.last() < chosen_upto && empty > 0 {
                return Err(RecoverError::Missing { slot: log.last().next() });
            }
            if empty > GAP_SLOTS_MAX {
                let what = "accepts a slot far beyond the log";
                return Err(RecoverError::Contradiction { lsn: entry.lsn, what });
            }
            log.restore(*slot, *entry, self.values.remove(slot));
            log.set_mark(*slot, self.marks.remove(slot));
        }
        if log.last() < chosen_upto {
            return Err(RecoverError::Missing { slot: log.last().next() });
        }
        let acceptor = Acceptor {
            promised: self.promised,
            promised_at: Lsn::ZERO,
            promised_durable: self.promised,
            stream: None,
        };
        let mut learner = Learner::new(chosen_upto, have_upto(&log, chosen_upto, applied), applied);
        learner.truncate_upto = self.all_upto;
        let mut paxos =
            Paxos::assemble(self.options, members, log, acceptor, learner, self.last_lsn);
        paxos.epochs.done = paxos.epochs.done.max(self.done);
        paxos.store_lost = self.store_lost.is_some();
        if let Some(slot) = self.installed_now {
            paxos.append(Record::Snapshot { slot });
        }
        // An epoch may be known to have begun whose record was lost.
        paxos.pass_marks(Now::default());
        if let Some(standing) = self.standing {
            paxos.adopt(Now::default(), standing);
        }
        paxos.close_epoch();
        let forgets = mutant::is(Mutant::GrantForgotten);
        paxos.grant.forgot = self.promised > Ballot::ZERO && !forgets;
        paxos.lead_alone();
        Ok(paxos)
    }

    /// A replica that never votes again needs its log only to learn on and to help others: it goes
    /// on from what the store has. What it accepted behind that may have been replaced by what was
    /// lost: none of it counts as chosen until others say so.
    fn finish_quarantined(mut self, members: Members, applied: Slot, state_damaged: bool) -> Paxos {
        let base = self.truncated_upto.max(applied);
        let mut log = Log::new(base);
        for (slot, entry) in &self.entries {
            if *slot > base && slot.0 - log.last().0 <= GAP_SLOTS_MAX {
                log.restore(*slot, *entry, self.values.remove(slot));
                log.set_mark(*slot, self.marks.remove(slot));
            }
        }
        let acceptor = Acceptor {
            promised: self.promised,
            promised_at: Lsn::ZERO,
            promised_durable: self.promised,
            stream: None,
        };
        let learner = Learner::new(base, base, applied);
        let mut paxos =
            Paxos::assemble(self.options, members, log, acceptor, learner, self.last_lsn);
        paxos.epochs.done = paxos.epochs.done.max(self.done);
        paxos.quarantined = true;
        paxos.store_lost = self.store_lost.is_some();
        if let Some(slot) = self.installed_now {
            paxos.append(Record::Snapshot { slot });
        }
        if state_damaged || self.lost_now {
            paxos.append(Record::Quarantine);
        }
        // Others learn from it who votes as well as from any other.
        if let Some(standing) = self.standing {
            paxos.adopt(Now::default(), standing);
        }
        paxos
    }
}
