//! Replicas that take copies of others' states: how far they are seen to come, and crashes that
//! meet them in the middle.

use std::collections::BTreeMap;

use base::{GroupId, Micros};

use super::alarm::Alarm;
use super::{Failed, Guest, Run};
use crate::disk::Crash;

/// By step: how often it was seen, and how often a crash of the receiver or of another node met it.
pub type Copies = BTreeMap<&'static str, (u64, u64)>;

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Watched {
    steps: BTreeMap<(usize, GroupId), &'static str>,
    pub(super) seen: Copies,
}

/// A node that was ended in the middle of a copy stays away for at most so long.
const AWAY_MAX: Micros = Micros::from_secs(3);

impl<G: Guest> Run<G> {
    /// Looks at the copies that a node takes; now and then a step that was just seen is its last.
    pub(super) fn watch_copies(&mut self, node: usize) -> Result<(), Failed> {
        let Some(guest) = self.cluster.world.guest(node) else { return Ok(()) };
        let mut news = 0;
        for (group, step) in guest.copying() {
            if self.copying.steps.insert((node, group), step) != Some(step) {
                self.copying.seen.entry(step).or_default().0 += 1;
                if self.working && self.random.chance(self.options.faults.copy_crash, 100) {
                    self.copying.seen.entry(step).or_default().1 += 1;
                    news += 1;
                }
            }
        }
        if news == 0 {
            return Ok(());
        }
        let nodes = self.cluster.world.nodes() as u64;
        let node = match self.random.chance(1, 3) {
            true => self.random.below(nodes) as usize,
            false => node,
        };
        if self.cluster.world.is_up(node) {
            self.cluster.observe(node)?;
            let crash = if self.options.faults.power { Crash::Power } else { Crash::Kill };
            self.cluster.world.crash(node, crash);
            let span = Micros(self.random.below(AWAY_MAX.0));
            self.alarm(span, Alarm::Restart(node));
        }
        Ok(())
    }
}
