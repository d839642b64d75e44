//! The node's log and store are read again and again, at a low rate, so that damage is found while
//! other replicas can still repair it (`docs/paxos.md` 11.3).

use base::{GroupId, Micros};
use bytes::Bytes;
use replica_group::state_machine::owner;
use replica_group::turn::{Check, Checked};
use storage::EngineError;

use crate::generations::range;
use crate::node::Node;

/// How far reading has come.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// Something is being read.
    busy: bool,
    next_at: Micros,
    /// The part of the store that comes next; none while the log's turn lasts.
    store: Option<(GroupId, Bytes)>,
    /// Where the present round through the log began.
    log_left: u64,
}

/// Pause between two parts.
const INTERVAL: Micros = Micros::from_millis(250);

impl Scrub {
    /// Whether something is being read.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }
}

impl Node {
    pub(crate) fn tick_scrub(&mut self) {
        let now = self.now.mono;
        if self.renewing.is_active() {
            return;
        }
        let bytes = self.options.scrub_bytes_per_second / 4;
        if self.damage.scrub.busy || now < self.damage.scrub.next_at || bytes == 0 {
            return;
        }
        self.damage.scrub.next_at = now + INTERVAL;
        let check = self.next_store_check(bytes).or_else(|| {
            // Once through the log, then once through the store.
            if self.damage.scrub.log_left == 0 {
                self.damage.scrub.log_left = self.wal.stats().bytes_live;
            }
            self.wal.next_check(bytes).map(Check::Log)
        });
        self.damage.scrub.busy = check.is_some();
        self.output.checks.extend(check);
    }

    fn next_store_check(&mut self, bytes: u64) -> Option<Check> {
        let (group, from) = self.damage.scrub.store.clone()?;
        let (_, to) = range(group, self.groups.get(&group)?.generation());
        Some(Check::Store { from, to, bytes: bytes as usize })
    }

    pub(crate) fn on_checked(&mut self, check: &Check, result: Result<Checked, String>) {
        match check {
            Check::View { ticket, .. } => return self.on_viewed(*ticket, result),
            Check::Renew(_) => return self.on_renewed(result),
            Check::Store { from, .. } if self.renewing.is_looking() => {
                let read = result.map(|checked| match checked {
                    Checked::Store { bytes, next } => (bytes, next),
                    Checked::Log(_) | Checked::View(_) | Checked::Renewed(_) => {
                        unreachable!("another check was answered than the one asked for")
                    }
                });
                return self.on_looked(from, read);
            }
            Check::Log(_) | Check::Store { .. } => {}
        }
        self.damage.scrub.busy = false;
        match (check, result) {
            (Check::View { .. } | Check::Renew(_), _) => {}
            (Check::Log(part), Ok(Checked::Log(checked))) => {
                let (bytes, damaged) = self.wal.checked(part, &checked);
                self.damage.scrubbed_bytes += bytes;
                for (first, last) in damaged {
                    self.on_damaged_records(first, last, "found by reading the log again");
                }
                let left = self.damage.scrub.log_left.saturating_sub(bytes.max(1));
                self.damage.scrub.log_left = left;
                if left == 0 {
                    self.scrub_store_from(None);
                }
            }
            (Check::Store { from, .. }, Ok(Checked::Store { bytes, next })) => {
                self.damage.scrubbed_bytes += bytes;
                match (next, owner(from).0) {
                    (Some(next), group) => self.damage.scrub.store = Some((group, next)),
                    (None, group) => self.scrub_store_from(Some(group)),
                }
            }
            (Check::Store { from, .. }, Err(why)) => {
                let group = owner(from).0;
                self.damage.places += 1;
                self.on_store_error(group, &EngineError(why));
                self.scrub_store_from(Some(group));
            }
            (Check::Log(part), Err(_)) if !self.wal.is_present(part) => {}
            // A disk that cannot be read at all says so wherever it is needed.
            (Check::Log(_), Err(why)) => {
                let text = format!("the write-ahead log cannot be looked at for damage: {why}");
                self.complain(replica_group::turn::Level::Error, text);
            }
            (Check::Log(_), Ok(Checked::Store { .. } | Checked::View(_) | Checked::Renewed(_)))
            | (Check::Store { .. }, Ok(Checked::Log(_) | Checked::View(_) | Checked::Renewed(_))) =>
            {
                unreachable!("another check was answered than the one asked for")
            }
        }
    }

    /// Goes on with the store's part of the group after this one; with the log behind the last.
    fn scrub_store_from(&mut self, after: Option<GroupId>) {
        let later = |group: &&GroupId| after.is_none_or(|after| **group > after);
        let next = self.groups.iter().find(|(group, _)| later(group));
        self.damage.scrub.store =
            next.map(|(group, hosted)| (*group, range(*group, hosted.generation()).0));
    }
}
