//! What a node does about who leads: it makes way where its disk or its clock is bad or its log is
//! full, it passes its leaderships on before it stops, and it brings leaders to where they belong,
//! so that no node leads everything (`docs/paxos.md` 11.6).

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, Lsn, Micros, ReplicaId, limits};
use paxos::Ballot;
use replica_group::turn::Level;
use router::ShardState;

use crate::hosted::Hosted;
use crate::node::Node;

/// What this node knows of its fitness to lead, and of the leaderships that it passes on.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    /// How far the log was durable when something began to wait for the disk, and when that was.
    waiting: Option<(Lsn, Micros)>,
    /// Ticks since then.
    ticks: u32,
    stalled: bool,
    /// Since when the log has been full.
    full_since: Option<Micros>,
    full: bool,
    /// The wall clock is far from those of the other nodes.
    pub(crate) clock_apart: bool,
    /// Set once the node is to stop: by when it stops in any case.
    leaving: Option<Micros>,
    /// What it led then.
    left: BTreeSet<GroupId>,
    /// When leaders are next looked at.
    look_at: Micros,
    led: BTreeMap<GroupId, Led>,
}

/// A group led from here.
#[derive(Debug)]
struct Led {
    ballot: Ballot,
    since: Micros,
    /// How often the leadership went from here to where it belongs.
    passed: u32,
    /// Not again before.
    not_before: Micros,
}

impl Node {
    pub(crate) fn tick_leadership(&mut self) {
        self.watch_disk();
        self.watch_room();
        let lead = &self.leadership;
        let unwell = lead.stalled || lead.full || lead.clock_apart;
        let now = self.now;
        for hosted in self.groups.values_mut() {
            hosted.set_unwell(now, unwell);
        }
        if let Some(deadline) = self.leadership.leaving {
            return self.go_on_leaving(deadline);
        }
        if now.mono >= self.leadership.look_at {
            self.leadership.look_at = now.mono + LOOK;
            self.spread_leaders();
        }
    }

    /// Takes note of whether the log waits for the disk and gets no further.
    fn watch_disk(&mut self) {
        let synced = self.wal.synced();
        let waits = self.wal.next_lsn().0 > synced.0 + 1;
        let since = match self.leadership.waiting {
            Some((at, since)) if waits && at == synced => since,
            Some(_) | None => {
                self.leadership.ticks = 0;
                self.leadership.waiting = waits.then_some((synced, self.now.mono));
                self.now.mono
            }
        };
        self.leadership.ticks = self.leadership.ticks.saturating_add(1);
        // A process that did not run for a while has not heard its disk either.
        let long = self.now.mono.since(since) >= limits::DISK_STALL;
        let stalled = long && self.leadership.ticks >= TICKS_MIN;
        if std::mem::replace(&mut self.leadership.stalled, stalled) != stalled {
            let text = if stalled {
                "the disk of the write-ahead log has not answered for half a second: other nodes \
                 are left to lead"
            } else {
                "the disk of the write-ahead log answers again"
            };
            self.event(if stalled { Level::Warn } else { Level::Info }, text.to_owned());
        }
    }

    /// Takes note of whether the log has been full for so long that writes should find another
    /// leader: one that flushes a moment later is better off with the one that it has.
    fn watch_room(&mut self) {
        let now = self.now.mono;
        let since = self.wal.is_full().then(|| self.leadership.full_since.unwrap_or(now));
        self.leadership.full_since = since;
        let full = since.is_some_and(|since| now.since(since) >= limits::LOG_FULL);
        if full && !self.leadership.full {
            let text =
                "the write-ahead log has been full for a second: other nodes are left to lead";
            self.event(Level::Warn, text.to_owned());
        }
        self.leadership.full = full;
    }

    /// The groups that are led from here and have other voters.
    fn led_here(&self) -> Vec<GroupId> {
        let led = self.groups.iter().filter(|(_, hosted)| {
            hosted.paxos().is_leading() && hosted.paxos().members().voters().len() > 1
        });
        led.map(|(group, _)| *group).collect()
    }

    /// Before the node stops it passes on what it leads, so that nobody waits for an election.
    pub(crate) fn begin_leaving(&mut self) {
        if self.leadership.leaving.is_some() {
            return;
        }
        let deadline = self.now.mono + LEAVE_FOR;
        self.leadership.leaving = Some(deadline);
        self.leadership.left = self.led_here().into_iter().collect();
        for hosted in self.groups.values_mut() {
            hosted.abstain();
        }
        self.go_on_leaving(deadline);
    }

    fn go_on_leaving(&mut self, deadline: Micros) {
        let now = self.now;
        let mut passing = false;
        for group in self.led_here() {
            let Some(hosted) = self.groups.get_mut(&group) else { continue };
            let targets = hosted.paxos().transfer_targets();
            passing |= hosted.paxos().is_transferring() || !targets.is_empty();
            for target in targets {
                if hosted.transfer(now, target) {
                    break;
                }
            }
            self.dirty.insert(group);
        }
        // What is on its way is answered where that does not take long; and what was said last must
        // have left before the process ends, which shows when somebody else leads.
        let orphans = self.leadership.left.iter().filter_map(|group| self.groups.get(group));
        let orphaned = orphans.filter(|hosted| hosted.paxos().leader().is_none()).count() > 0;
        let soon = now.mono + LEAVE_FOR < deadline + DRAIN_FOR;
        let open = self.requests.len() > 0 && self.led_here().is_empty();
        let busy = soon && (open || orphaned);
        if now.mono >= deadline || !passing && !busy {
            self.begin_stop();
        }
    }

    /// Passes on what another node is to lead, once that is fit for it and things are quiet.
    fn spread_leaders(&mut self) {
        let now = self.now;
        for group in self.led_here() {
            let Some(hosted) = self.groups.get_mut(&group) else { continue };
            let ballot = hosted.paxos().ballot();
            let fresh = Led { ballot, since: now.mono, passed: 0, not_before: now.mono };
            let led = self.leadership.led.entry(group).or_insert(fresh);
            if led.ballot != ballot {
                led.ballot = ballot;
                led.since = now.mono;
            }
            let preferred = preferred(group, hosted);
            let fit = hosted.paxos().transfer_targets().contains(&preferred);
            let node = hosted.node_of(preferred);
            let peer = node.and_then(|node| self.peers.get(&node));
            let steady = |since: Micros| now.mono.since(since) >= STEADY;
            let known = peer.is_some_and(|peer| peer.connected && steady(peer.connected_since));
            let early = !steady(led.since) || now.mono < led.not_before;
            if !fit || !known || early || !is_quiet(hosted) {
                continue;
            }
            if hosted.transfer(now, preferred) {
                // A node that cannot keep what it is given is given it less and less often.
                led.not_before = now.mono + Micros(PASS_AGAIN.0 << led.passed);
                led.passed = (led.passed + 1).min(PASS_DOUBLINGS);
                self.dirty.insert(group);
            }
        }
    }
}

/// Whether a group takes part in no hand-off: those who drive one, or ask for it, would have to find
/// the new leader first.
fn is_quiet(hosted: &Hosted) -> bool {
    match hosted {
        Hosted::Master(replica) => {
            let master = replica.machine();
            master.migrations().is_empty() && master.pending().is_empty()
        }
        Hosted::Data(replica) => {
            replica.machine().shards(true).iter().all(|shard| match shard.state {
                ShardState::Owned | ShardState::Moved { .. } | ShardState::Refused { .. } => true,
                ShardState::Out { .. } | ShardState::Frozen { .. } | ShardState::In { .. } => false,
            })
        }
    }
}

/// The replica that is to lead a group where nothing speaks against it: the groups take turns with
/// their voters.
fn preferred(group: GroupId, hosted: &Hosted) -> ReplicaId {
    let voters = hosted.paxos().members().voters();
    voters[(group.0 % voters.len() as u64) as usize].replica
}

/// A node that is to stop stops after so long at the latest.
const LEAVE_FOR: Micros = Micros::from_millis(1_500);
/// What is open when it begins to stop has so long to be answered, led from here or elsewhere.
const DRAIN_FOR: Micros = Micros::from_millis(500);
/// Pause between two looks at who leads.
const LOOK: Micros = Micros::from_millis(500);
/// A leadership, and a connection, that is so old is steady.
const STEADY: Micros = Micros::from_secs(10);
/// A leadership that came back is passed on again after this time, which doubles each time.
const PASS_AGAIN: Micros = Micros::from_secs(20);
/// How often that doubles at most.
const PASS_DOUBLINGS: u32 = 6;
/// A stalled disk is one that gave no answer for at least so many ticks.
const TICKS_MIN: u32 = 20;
