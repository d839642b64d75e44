//! Who leads, as far as this replica can tell, and when to try for it (docs/paxos.md 11.6).
//!
//! A replica campaigns only while it hears no leader and is connected to a quorum. It first probes:
//! a probe changes nothing, and whoever hears a leader refuses it, so that a replica with a bad
//! link does not disturb a group that works. None of this is needed for safety.

use std::collections::BTreeMap;

use base::limits::{GRANT_SPAN, WINDOW_SLOTS_MAX};
use base::{Micros, Now, Random, ReplicaId, Slot};

use crate::ballot::Ballot;
use crate::message::{HeartbeatRow, Message, Prepare, Reject, Why};
use crate::paxos::Paxos;
use crate::proposer::{Probing, Role};

/// What is known of another replica.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    /// It votes in the present epoch.
    votes: bool,
    /// Its node and this one hear each other.
    connected: bool,
    /// The smoothed round trip to its node.
    round_trip: Micros,
    /// The newest row of its heartbeat.
    row: HeartbeatRow,
}

/// The state of the election on one replica.
#[derive(Debug)]
pub(crate) struct Election {
    /// The present epoch.
    epoch: u32,
    peers: BTreeMap<ReplicaId, Peer>,
    /// The leader heard at the last look; its own ballot while this replica leads.
    pub(crate) leader: Option<Ballot>,
    /// The newest message of a leader and when it came.
    heard: Option<(Ballot, Micros)>,
    /// The highest round that was seen anywhere.
    round_max: u32,
    /// When to campaign, if no leader is heard by then.
    campaign_at: Option<Micros>,
    /// Campaigns since a leader was last heard.
    attempts: u32,
    /// When a promise was last given to another replica.
    promised_at: Option<Micros>,
    /// The highest ballot whose leader said that it leads no more.
    ended: Ballot,
    /// This replica's disk does not keep up.
    unwell: bool,
    /// Since when that is as it is.
    unwell_since: Micros,
    /// How much longer than usual it leads on although it leads badly: where all do, it is no use
    /// to change leaders all the time.
    indulgence: Micros,
    /// When it last made way for another.
    made_way_at: Micros,
    /// This replica's node stops.
    abstaining: bool,
    /// It gave up its leadership, and leaves the next campaign to others until then.
    rest_until: Micros,
    random: Random,
}

/// A leader's message proves it alive for so long: it comes before its heartbeat's row does.
const HEARD_FOR: Micros = Micros::from_millis(100);
/// A candidate that was promised to gets so long before others compete.
const CANDIDATE_FOR: Micros = Micros::from_millis(100);
/// The shortest time for an answer before something is sent again.
const PATIENCE_MIN: Micros = Micros::from_millis(30);
/// The shortest step between the ranks of candidates.
const RANK_STEP_MIN: Micros = Micros::from_millis(5);
/// A probe that a quorum has not answered by then is given up.
const PROBE_FOR: Micros = Micros::from_millis(60);
/// Further probes get so much longer: the way may be longer than what was measured of it.
const PROBE_AGAIN_FOR: Micros = Micros::from_millis(150);
/// A campaign that has not succeeded by then is given up; each further one gets twice the time, as
/// the disks may be slow.
const PREPARE_FOR: Micros = Micros::from_millis(400);
/// A leader whose proposals are not chosen for so long makes way for another.
const STUCK_FOR: Micros = Micros(5 * GRANT_SPAN.0);
/// Whoever made way leads on so much longer the next time; it doubles each time.
const INDULGENCE_MIN: Micros = Micros::from_millis(500);
/// How far that goes.
const INDULGENCE_MAX: Micros = Micros::from_secs(16);
/// After so long it is forgotten.
const INDULGENCE_FOR: Micros = Micros::from_secs(60);
/// Whoever made way leaves the next campaigns to others for so long.
const REST_FOR: Micros = Micros::from_millis(1_000);
/// A leader without a quorum leads on for so long.
const LONELY_FOR: Micros = Micros::from_millis(100);
/// The step by which the wait between campaigns grows.
const BACKOFF: Micros = Micros::from_millis(20);
/// How often the wait doubles at most.
const BACKOFF_DOUBLINGS: u32 = 4;

impl Election {
    pub(crate) fn new(seed: u64, epoch: u32, others: impl Iterator<Item = ReplicaId>) -> Election {
        let voter = Peer { votes: true, ..Peer::default() };
        Election {
            epoch,
            peers: others.map(|replica| (replica, voter)).collect(),
            leader: None,
            heard: None,
            round_max: 0,
            campaign_at: None,
            attempts: 0,
            promised_at: None,
            ended: Ballot::ZERO,
            unwell: false,
            unwell_since: Micros::default(),
            indulgence: Micros::default(),
            made_way_at: Micros::default(),
            abstaining: false,
            rest_until: Micros::default(),
            random: Random::new(seed),
        }
    }

    /// Whether this replica's node and ours hear each other.
    pub(crate) fn is_connected(&self, replica: ReplicaId) -> bool {
        self.peers.get(&replica).is_some_and(|peer| peer.connected)
    }

    /// The other voters that are connected.
    fn connected(&self) -> impl Iterator<Item = (ReplicaId, &Peer)> + '_ {
        self.linked().filter(|(_, peer)| peer.votes)
    }

    /// All replicas that are connected.
    fn linked(&self) -> impl Iterator<Item = (ReplicaId, &Peer)> + '_ {
        self.peers.iter().filter(|(_, peer)| peer.connected).map(|(replica, peer)| (*replica, peer))
    }

    /// The other replicas are these, each with whether it votes. What is known of one stays.
    pub(crate) fn set_peers(&mut self, peers: Vec<(ReplicaId, bool)>) {
        let mut known = std::mem::take(&mut self.peers);
        for (replica, votes) in peers {
            let peer = known.remove(&replica).unwrap_or_default();
            self.peers.insert(replica, Peer { votes, ..peer });
        }
    }

    /// The present epoch is over: what was seen of its ballots is of no interest.
    pub(crate) fn enter(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.round_max = 0;
        self.leader = None;
        self.heard = None;
        self.campaign_at = None;
        self.attempts = 0;
    }

    /// The highest epoch of a replica that is connected.
    pub(crate) fn epoch_max(&self) -> u32 {
        self.linked().map(|(_, peer)| peer.row.ballot.epoch).max().unwrap_or_default()
    }

    /// Whether this replica's node stops.
    pub(crate) fn is_abstaining(&self) -> bool {
        self.abstaining
    }

    /// Whether that replica could lead, by its last row.
    pub(crate) fn is_able(&self, replica: ReplicaId) -> bool {
        self.peers.get(&replica).is_some_and(|peer| peer.connected && peer.votes && peer.row.able)
    }

    /// Whether any other replica could lead.
    fn another_is_able(&self) -> bool {
        self.connected().any(|(_, peer)| peer.row.able)
    }

    /// Whether one that this replica hears hears a leader: as long as a group works, who does not
    /// hear its leader leaves it alone.
    fn neighbour_is_happy(&self, promised: Ballot) -> bool {
        self.connected().any(|(_, peer)| {
            peer.row.leader.is_some_and(|leader| leader >= promised && leader != self.ended)
        })
    }

    /// The leader of this ballot leads no more.
    pub(crate) fn ended(&mut self, ballot: Ballot) {
        if ballot.epoch == self.epoch {
            self.ended = self.ended.max(ballot);
        }
        if self.leader == Some(ballot) {
            self.leader = None;
        }
    }

    /// Whether this replica's disk keeps up; tells whether that is new.
    pub(crate) fn set_unwell(&mut self, unwell: bool, now: Micros) -> bool {
        let changed = std::mem::replace(&mut self.unwell, unwell) != unwell;
        if changed {
            self.unwell_since = now;
        }
        changed
    }

    /// Makes way for another: that has some time to do better, and the next time this replica leads
    /// it does not make way as soon, unless that is long ago.
    fn make_way(&mut self, now: Micros) {
        if now.since(self.made_way_at) >= INDULGENCE_FOR {
            self.indulgence = Micros::default();
        }
        self.made_way_at = now;
        let longer = Micros(2 * self.indulgence.0).max(INDULGENCE_MIN);
        self.indulgence = longer.min(INDULGENCE_MAX);
        self.rest(now + REST_FOR);
    }

    /// Never campaigns again.
    pub(crate) fn abstain(&mut self) {
        self.abstaining = true;
    }

    /// Leaves the next campaigns to others until then.
    pub(crate) fn rest(&mut self, until: Micros) {
        self.rest_until = self.rest_until.max(until);
        self.campaign_at = None;
    }

    /// Whether the next campaign is left to others, one of which could win it.
    fn yields(&self, now: Micros) -> bool {
        self.abstaining || (self.unwell || now < self.rest_until) && self.another_is_able()
    }

    /// How long to wait for an answer before sending again.
    pub(crate) fn patience(&self) -> Micros {
        let round_trip = self.connected().map(|(_, peer)| peer.round_trip).max();
        PATIENCE_MIN.max(Micros(round_trip.unwrap_or_default().0.saturating_mul(2)))
    }

    /// The highest durable chosen prefix among those connected.
    pub(crate) fn have_upto_max(&self) -> Slot {
        self.linked().map(|(_, peer)| peer.row.have_upto).max().unwrap_or_default()
    }

    /// The durable chosen prefix of a voter, by its last row.
    pub(crate) fn have_upto(&self, replica: ReplicaId) -> Slot {
        self.peers.get(&replica).map_or(Slot::ZERO, |peer| peer.row.have_upto)
    }

    /// The connected replicas that have executed this slot, or will have in a moment, by their rows.
    pub(crate) fn holders(&self, slot: Slot) -> Vec<ReplicaId> {
        let holds = |(_, peer): &(ReplicaId, &Peer)| peer.row.have_upto >= slot;
        self.linked().filter(holds).map(|(replica, _)| replica).collect()
    }

    /// Whether connected replicas had this slot, and all of them have forgotten it. Who was away for
    /// long may know only some of them as voters.
    pub(crate) fn is_forgotten(&self, slot: Slot) -> bool {
        let mut had = self.linked().filter(|(_, peer)| peer.row.have_upto >= slot).peekable();
        had.peek().is_some() && had.all(|(_, peer)| peer.row.truncated_upto >= slot)
    }

    /// Whether no connected replica has this slot, by their rows.
    pub(crate) fn is_had_by_none(&self, slot: Slot) -> bool {
        self.linked().all(|(_, peer)| peer.row.have_upto < slot)
    }

    /// Whom to ask for chosen slots above `chosen_upto`: somebody who has them by its row, or the
    /// leader, whose messages run ahead of its row. Those who have forgotten the next one are asked
    /// only where all have: they may know that all had it, and then what is held here is chosen.
    pub(crate) fn catch_up_source(&mut self, chosen_upto: Slot) -> Option<ReplicaId> {
        let leader = self.leader.map(|ballot| ballot.replica);
        let (sources, forgetful): (Vec<_>, Vec<_>) = self
            .linked()
            .filter(|(replica, peer)| peer.row.have_upto > chosen_upto || leader == Some(*replica))
            .partition(|(_, peer)| peer.row.truncated_upto <= chosen_upto);
        let sources = if sources.is_empty() { forgetful } else { sources };
        let sources: Vec<ReplicaId> = sources.into_iter().map(|(replica, _)| replica).collect();
        self.random.pick(&sources).copied()
    }

    /// A message of a leader came.
    pub(crate) fn heard_message(&mut self, ballot: Ballot, now: Micros) {
        self.saw(ballot);
        self.heard = Some((ballot, now));
    }

    /// A ballot was seen.
    pub(crate) fn saw(&mut self, ballot: Ballot) {
        if ballot.epoch == self.epoch {
            self.round_max = self.round_max.max(ballot.round);
        }
    }

    /// This replica leads: its next campaign starts anew.
    pub(crate) fn won(&mut self, ballot: Ballot) {
        self.leader = Some(ballot);
        self.campaign_at = None;
        self.attempts = 0;
    }

    /// Another replica got a promise: it may well succeed.
    pub(crate) fn promised_to_other(&mut self, now: Micros) {
        self.promised_at = Some(now);
    }

    fn is_patient(&self, now: Micros) -> bool {
        self.promised_at.is_some_and(|at| now.since(at) < CANDIDATE_FOR)
    }

    /// The leader heard: a connected replica whose own row says that it leads, or whose message came
    /// just now. One that does not hear this replica is of no use to it, however loud it is; and
    /// one below the promise leads no more.
    fn hear(&self, now: Micros, promised: Ballot) -> Option<Ballot> {
        let rows = self.linked().filter_map(|(replica, peer)| {
            peer.row.leader.filter(|ballot| ballot.replica == replica)
        });
        let fresh = self.heard.filter(|(_, at)| now.since(*at) < HEARD_FOR);
        let message =
            fresh.map(|(ballot, _)| ballot).filter(|ballot| self.is_connected(ballot.replica));
        let present = |ballot: &Ballot| *ballot >= promised && *ballot != self.ended;
        rows.chain(message).filter(present).max()
    }

    /// Waits longer after every failure, and never equally long on two replicas.
    fn back_off(&mut self, now: Micros) {
        self.attempts += 1;
        let most = BACKOFF.0 << self.attempts.min(BACKOFF_DOUBLINGS);
        self.campaign_at = Some(now + Micros(BACKOFF.0 / 2 + self.random.below(most)));
    }

    /// The wait before the first attempt: the replica that has most goes first.
    fn first_wait(&mut self, me: ReplicaId, have_upto: Slot) -> Micros {
        let mine = (have_upto, me);
        let ahead = self.connected().filter(|(id, peer)| (peer.row.have_upto, *id) > mine).count();
        let round_trip = self.connected().map(|(_, peer)| peer.round_trip).max();
        let round_trip = round_trip.unwrap_or_default().0.min(HEARD_FOR.0);
        let step = RANK_STEP_MIN.0.max(2 * round_trip);
        Micros(ahead as u64 * step + self.random.below(step))
    }
}

impl Paxos {
    /// Whether this replica and those that it is connected to are a quorum.
    pub(crate) fn is_quorum_connected(&self) -> bool {
        let others = self.election.connected().count();
        self.is_voter() && others + 1 >= self.members.q1().max(self.members.q2())
    }

    /// Whether this replica could lead, and would campaign if nobody did.
    pub(crate) fn is_able(&self) -> bool {
        let fit = !self.election.unwell && !self.election.abstaining;
        let rested = self.now >= self.election.rest_until;
        let able = fit && rested && !self.is_unfit_to_lead();
        // Whoever has forgotten what is lacking here would not be answered by this candidate.
        let lacks = self.election.is_forgotten(self.learner.chosen_upto.next());
        self.is_quorum_connected() && able && !self.is_far_behind() && !lacks
    }

    /// Whoever lags by more than a window catches up first: the recovery of so many slots would be
    /// slower, and somebody connected has them.
    fn is_far_behind(&self) -> bool {
        self.election.have_upto_max().0 > self.learner.chosen_upto.0 + WINDOW_SLOTS_MAX
    }

    /// Whether a probe of this replica should be turned away. A leader that probes leads no more.
    pub(crate) fn refuses_probe(&self, now: Now, from: ReplicaId) -> bool {
        let promised = self.acceptor.promised;
        match &self.role {
            Role::Leading(_) | Role::Preparing(_) => true,
            Role::Following | Role::Probing(_) => {
                let leader = self.election.hear(now.mono, promised);
                let promising = !self.acceptor.is_durable() || self.election.is_patient(now.mono);
                let patient = promising && promised.replica != from;
                patient || leader.is_some_and(|ballot| ballot.replica != from)
            }
        }
    }

    pub(crate) fn on_connected(&mut self, replica: ReplicaId, connected: bool, trip: Micros) {
        let Some(peer) = self.election.peers.get_mut(&replica) else { return };
        peer.round_trip = trip;
        if std::mem::replace(&mut peer.connected, connected) != connected {
            self.election.attempts = 0;
            if connected {
                self.restart_stream(replica);
            }
        }
    }

    pub(crate) fn on_heard(&mut self, from: ReplicaId, row: HeartbeatRow) {
        let Some(peer) = self.election.peers.get_mut(&from) else { return };
        let old = std::mem::replace(&mut peer.row, row);
        self.election.saw(row.ballot);
        if let Some(leader) = row.leader {
            self.election.saw(leader);
        }
        if old.leader != row.leader {
            self.election.attempts = 0;
        }
        // A voter that promised more will never vote for this leader again.
        if let Role::Leading(leading) = &self.role
            && row.ballot > leading.ballot
        {
            self.step_down();
        }
    }

    /// Whether this replica leads badly: its disk does not keep up, or what it proposed is not
    /// chosen though it hears a quorum.
    fn leads_badly(&self, now: Micros) -> bool {
        let Role::Leading(leading) = &self.role else { return false };
        let election = &self.election;
        let late = now.since(election.made_way_at) >= INDULGENCE_FOR;
        let indulgence = if late { Micros::default() } else { election.indulgence };
        let unwell = election.unwell && now.since(election.unwell_since) >= indulgence;
        let waiting = leading.last > self.learner.chosen_upto;
        unwell || waiting && now.since(leading.moved_at) >= STUCK_FOR + indulgence
    }

    /// Looks at who leads, and does what the time asks for in every role.
    pub(crate) fn elect(&mut self, now: Now) {
        let heard = self.election.hear(now.mono, self.acceptor.promised);
        let connected = self.is_quorum_connected();
        if self.leads_badly(now.mono) && self.election.another_is_able() {
            self.stats.made_way += 1;
            self.step_down();
            self.election.make_way(now.mono);
        }
        match &mut self.role {
            Role::Following => self.follow(now, heard, connected),
            Role::Probing(probing) => {
                let most = if self.election.attempts == 0 { PROBE_FOR } else { PROBE_AGAIN_FOR };
                let late = now.mono.since(probing.since) >= most.max(self.election.patience());
                if heard.is_some() || !connected || late {
                    self.give_up(now);
                }
            }
            Role::Preparing(preparing) => {
                let doublings = self.election.attempts.min(BACKOFF_DOUBLINGS);
                let most = Micros(PREPARE_FOR.0 << doublings);
                let late = now.mono.since(preparing.since) >= most;
                if late && self.acceptor.is_durable() || !connected {
                    self.give_up(now);
                }
            }
            Role::Leading(leading) => {
                if connected {
                    leading.lonely_since = None;
                } else {
                    let since = *leading.lonely_since.get_or_insert(now.mono);
                    if now.mono.since(since) >= LONELY_FOR {
                        self.step_down();
                    }
                }
            }
        }
        self.election.leader = match &self.role {
            Role::Leading(leading) => Some(leading.ballot),
            Role::Following | Role::Probing(_) | Role::Preparing(_) => {
                self.election.hear(now.mono, self.acceptor.promised)
            }
        };
    }

    fn follow(&mut self, now: Now, heard: Option<Ballot>, connected: bool) {
        if heard.is_some() {
            self.election.attempts = 0;
        }
        let ahead = self.is_far_behind() || self.is_superseded(now.mono);
        let unable = self.is_unfit_to_lead();
        let left_to_others = self.election.yields(now.mono)
            || self.election.neighbour_is_happy(self.acceptor.promised);
        if heard.is_some() || !connected || ahead || unable || left_to_others {
            self.election.campaign_at = None;
            return;
        }
        let bound = self.bound(now, self.options.replica, None).unwrap_or_default();
        let at = match self.election.campaign_at {
            Some(at) => at,
            None => {
                let wait = self.election.first_wait(self.options.replica, self.learner.have_upto);
                // The order of those who wait is kept beyond what all of them have granted.
                now.mono + bound + wait
            }
        };
        self.election.campaign_at = Some(at);
        // A promise that is not durable yet has not reached its candidate.
        let patient = self.election.is_patient(now.mono) || !self.acceptor.is_durable();
        if now.mono >= at && !patient && bound == Micros::default() {
            self.probe(now);
        }
    }

    /// The ballot of the next campaign: above everything seen. None once the rounds have run out.
    pub(crate) fn next_ballot(&self) -> Option<Ballot> {
        let promised = self.acceptor.promised;
        let own = if promised.epoch == self.epoch() { promised.round } else { 0 };
        let round = self.election.round_max.max(own).checked_add(1)?;
        Some(Ballot { epoch: self.epoch(), round, replica: self.options.replica })
    }

    fn probe(&mut self, now: Now) {
        let Some(ballot) = self.next_ballot() else { return };
        self.stats.campaigns += 1;
        self.role = Role::Probing(Probing::new(ballot, now.mono, self.options.replica));
        let chosen_upto = self.learner.chosen_upto;
        let prepare =
            Prepare { ballot, probe: true, chosen_upto, runs: Vec::new(), released: None };
        let me = self.options.replica;
        for replica in self.members.replicas().filter(|replica| *replica != me) {
            self.gate.send(replica, Message::Prepare(prepare.clone()));
        }
        self.count_probe(now);
    }

    /// Ends a campaign without success.
    pub(crate) fn give_up(&mut self, now: Now) {
        self.step_down();
        self.election.back_off(now.mono);
    }

    pub(crate) fn on_reject(&mut self, now: Now, reject: Reject) {
        self.election.saw(reject.promised);
        let higher = reject.promised > reject.ballot;
        match &self.role {
            Role::Probing(probing) if probing.ballot == reject.ballot => match reject.why {
                Why::Ballot | Why::Leader => self.give_up(now),
                Why::Grant(wait) => {
                    self.step_down();
                    let wait = wait.min(GRANT_SPAN) + Micros(self.election.random.below(2_000));
                    self.election.campaign_at = Some(now.mono + wait);
                }
                // It does not count, whatever it says.
                Why::NotVoter => {}
            },
            Role::Preparing(preparing) if preparing.ballot == reject.ballot && higher => {
                self.give_up(now);
            }
            Role::Leading(leading) if leading.ballot == reject.ballot && higher => {
                self.step_down();
            }
            Role::Following | Role::Probing(_) | Role::Preparing(_) | Role::Leading(_) => {}
        }
    }
}
