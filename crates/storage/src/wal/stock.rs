//! How many files the log keeps ready: making one means writing all of it, which takes as long as
//! a segment of log itself.

use std::collections::VecDeque;

use super::Wal;
use super::command::WalCommand;
use super::format::PAGE;

/// Files kept ready beside those that were needed lately.
pub(super) const SPARE_MAX: usize = 2;
/// So many changes of segment are looked back at.
const LATELY: usize = 16;
/// The part of a segment that is made when none is ready and records wait.
const STOPGAP_PART: u64 = 16;

/// How many segments were needed, at each of the last changes of segment of this start.
#[derive(Debug, Default)]
pub(super) struct Needed(VecDeque<usize>);

impl Needed {
    /// A segment is begun, and there are so many now.
    pub(super) fn note(&mut self, segments: usize) {
        self.0.truncate(LATELY - 1);
        self.0.push_front(segments);
    }

    fn most(&self) -> usize {
        self.0.iter().copied().max().unwrap_or_default()
    }
}

impl Wal {
    /// Files that are made before they are needed: one, or two for a log that has shown that it
    /// goes on.
    fn spare_min(&self) -> usize {
        if self.needed.0.is_empty() { 1 } else { SPARE_MAX }
    }

    /// Files that are worth their room: what the log needed lately it will need again.
    fn spare_max(&self) -> usize {
        SPARE_MAX + self.needed.most().saturating_sub(self.segments.len())
    }

    /// The length of a segment that is made while records wait for it: short, as writing all of a
    /// usual one takes longer than a leader may be silent.
    pub(super) fn stopgap_bytes(&self) -> u64 {
        (self.options.segment_bytes / STOPGAP_PART).next_multiple_of(PAGE as u64)
    }

    /// Nothing in a file is needed any more.
    pub(super) fn free(&mut self, file: String, len: u64) {
        if len == self.options.segment_bytes {
            self.spare.push_back(file);
        } else {
            self.surplus.push(file);
        }
    }

    /// Has files made before they are needed, and removed when nobody will need them.
    pub(super) fn tend_files(&mut self, commands: &mut Vec<WalCommand>) {
        let creating = self.background.iter().any(|(_, file)| file.is_some());
        if self.spare.len() < self.spare_min() && !creating && self.failed.is_none() {
            let file = self.retry.take().unwrap_or_else(|| self.new_file());
            let ticket = self.background_ticket();
            self.background.push_back((ticket, Some(file.clone())));
            let len = self.options.segment_bytes;
            commands.push(WalCommand::Create { ticket, file, len, background: true });
        }
        let kept = self.spare_max().min(self.spare.len());
        self.surplus.extend(self.spare.drain(kept..));
        for file in std::mem::take(&mut self.surplus) {
            let ticket = self.background_ticket();
            self.background.push_back((ticket, None));
            commands.push(WalCommand::Remove { ticket, file });
        }
    }
}
