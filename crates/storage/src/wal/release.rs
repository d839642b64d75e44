//! What groups need of the log, and which segments nobody needs.

use base::mutant::{self, Mutant};
use base::{GroupId, Lsn};

use super::Wal;
use super::segment::Segment;

/// A record that restates a group's state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    pub(super) lsn: Lsn,
    /// The group needed none of its records below this one when it was written: the state knows
    /// that they are gone. It says nothing of those that became needless later.
    pub(super) covers: Lsn,
}

/// What a group says of the records that it needs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// See [`Wal::keep_from`].
    From(GroupId, Lsn),
    /// See [`Wal::forget`].
    Nothing(GroupId),
}

impl Wal {
    /// The lowest record of this group, other than its state, that is still needed; none where
    /// none is. A group of which the log holds records and that never said so needs all of them.
    /// It may rest on records that are appended and not durable yet: it counts once they are. It
    /// says nothing of records appended later, which are needed.
    pub fn keep_from(&mut self, group: GroupId, lsn: Option<Lsn>) {
        let lsn = lsn.unwrap_or(self.lsn_next);
        self.said.insert(group, lsn);
        self.defer(Need::From(group, lsn));
    }

    /// The group is gone for ever, and the record that says so is appended: none of its records is
    /// needed, nor will its state be asked for, once that is durable.
    pub fn forget(&mut self, group: GroupId) {
        self.defer(Need::Nothing(group));
    }

    /// The first record behind which the log takes no more than about so many bytes. A segment that
    /// was left takes all of its room, as it does where the log is said to be full: starts leave
    /// segments with little in them.
    pub fn within(&self, bytes: u64) -> Lsn {
        let mut taken = 0;
        let mut within = self.lsn_next;
        for (behind, segment) in self.segments.iter().rev().enumerate() {
            taken += if behind == 0 { segment.used } else { segment.len };
            if taken > bytes && within < self.lsn_next {
                break;
            }
            within = segment.first_lsn;
        }
        within
    }

    /// The groups of which the log holds records, or about to, in order: after the start, those
    /// among them that no longer exist are to be given to [`Wal::forget`].
    pub fn groups(&self) -> Vec<GroupId> {
        self.last.keys().copied().collect()
    }

    /// The groups that are to append a record with their state, so that the oldest segment can be
    /// let go.
    pub fn wants_state(&self) -> Vec<GroupId> {
        self.wanted.iter().copied().collect()
    }

    fn defer(&mut self, need: Need) {
        if self.is_quiet() {
            self.count_need(need);
        } else {
            self.deferred.push_back((Lsn(self.lsn_next.0 - 1), need));
        }
    }

    pub(super) fn count_need(&mut self, need: Need) {
        let group = match need {
            Need::From(group, lsn) => {
                self.keep.insert(group, lsn);
                group
            }
            Need::Nothing(group) => {
                self.drop_group(group);
                group
            }
        };
        if self.pin.is_none() || self.pin == Some(group) {
            self.advance();
        }
    }

    fn drop_group(&mut self, group: GroupId) {
        self.keep.remove(&group);
        self.said.remove(&group);
        self.states.remove(&group);
        self.last.remove(&group);
        self.wanted.remove(&group);
        for segment in &mut self.segments {
            segment.groups.remove(&group);
        }
        for block in &mut self.pending {
            block.groups.remove(&group);
        }
    }

    /// Lets go of the oldest segments as far as nothing in them is needed, and finds out whose
    /// state is in the way of the next.
    pub(super) fn advance(&mut self) {
        while self.segments.len() > 1
            && let Some(segment) = self.segments.front()
        {
            if segment.last_block > self.synced.block {
                break;
            }
            if self.pin.is_some_and(|pin| self.is_kept(pin, segment)) {
                break;
            }
            self.pin = segment.groups.keys().copied().find(|g| self.is_kept(*g, segment));
            if self.pin.is_some() {
                break;
            }
            let mut restated = true;
            let last_lsn = segment.last_lsn();
            for (group, last) in &segment.groups {
                let state = self.states.get(group).copied().unwrap_or_default();
                let covered = *last == Lsn::ZERO || *last < state.covers;
                if state.lsn <= last_lsn || !covered {
                    self.wanted.insert(*group);
                    restated = false;
                }
                restated &= state.lsn <= self.synced.lsn;
            }
            if !restated && !mutant::is(Mutant::SegmentUnstated) {
                break;
            }
            if let Some(segment) = self.segments.pop_front() {
                self.leaving.push_back((segment.number, segment.file, segment.len));
            }
        }
    }

    /// Whether the group needs one of its records in this segment, its state apart.
    fn is_kept(&self, group: GroupId, segment: &Segment) -> bool {
        let Some(&last) = segment.groups.get(&group) else { return false };
        self.keep.get(&group).is_none_or(|keep| last >= *keep)
    }
}
