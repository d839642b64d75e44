//! The leader: proposals, each follower's stream, and the count of votes (docs/paxos.md 11.6,
//! 11.10).

use std::collections::{BTreeMap, VecDeque};

use base::limits::{ACCEPT_BYTES_MAX, ACCEPT_SLOTS_MAX, COMMAND_BYTES_MAX};
use base::mutant::{self, Mutant};
use base::{Micros, Now, ReplicaId, Slot};

use crate::acceptor::AHEAD_SLOTS_MAX;
use crate::ballot::Ballot;
use crate::election::Election;
use crate::log::Log;
use crate::message::{
    Accept, Accepted, Chosen, Command, Message, SACK_RANGES_MAX, SlotRange, Value,
};
use crate::output::Refusal;
use crate::paxos::{Options, Paxos};
use crate::proposer::Role;

/// The state of a leader.
///
/// - `ballot` is the promise of this replica's own acceptor, made since it started.
/// - Slots from `base` to `last` were proposed under it, those up to `barrier` with recovered
///   values (I7).
#[derive(Debug)]
pub(crate) struct Leading {
    /// The ballot.
    pub(crate) ballot: Ballot,
    /// The first slot proposed.
    pub(crate) base: Slot,
    /// The last recovered slot: reads wait until it is chosen.
    pub(crate) barrier: Slot,
    /// The last slot proposed.
    pub(crate) last: Slot,
    /// The other voters, and those who learn.
    pub(crate) followers: BTreeMap<ReplicaId, Progress>,
    /// The weight of what is proposed and not chosen.
    pub(crate) unchosen_bytes: usize,
    /// Since when a quorum has not been connected.
    pub(crate) lonely_since: Option<Micros>,
    /// When something was last chosen, or the first of what is not chosen was proposed.
    pub(crate) moved_at: Micros,
    /// To whom the leadership is being passed on, and since when.
    pub(crate) transfer: Option<(ReplicaId, Micros)>,
    /// Every voter has this prefix.
    pub(crate) truncate_upto: Slot,
    /// The slot of the stop-sign that was proposed: nothing is proposed behind it.
    pub(crate) stop: Option<Slot>,
    /// Another may lead as soon as that is chosen: there is no lease any more.
    pub(crate) lease_void: bool,
    /// The end of the change that made this epoch was proposed.
    pub(crate) done_proposed: bool,
}

impl Leading {
    /// The followers that vote.
    pub(crate) fn voters(&self) -> impl Iterator<Item = &Progress> + '_ {
        self.followers.values().filter(|at| at.votes || mutant::is(Mutant::LearnerVotes))
    }

    /// These learn, and nobody else that does not vote.
    pub(crate) fn set_learners(&mut self, learners: &[ReplicaId], now: Micros) {
        self.followers.retain(|id, progress| progress.votes || learners.contains(id));
        let base = self.base;
        for learner in learners {
            let fresh = || Progress { votes: false, ..Progress::new(base, now) };
            self.followers.entry(*learner).or_insert_with(fresh);
        }
    }
}

/// How far a follower has come.
#[derive(Debug)]
pub(crate) struct Progress {
    /// It votes; it only learns otherwise.
    votes: bool,
    /// Its votes: all slots from the base to here.
    acc_upto: Slot,
    /// Its votes behind gaps.
    sack: Vec<SlotRange>,
    /// Its durable chosen prefix.
    have_upto: Slot,
    /// The next slot to send.
    next: Slot,
    /// The last slot and the bytes of each message that is not acknowledged.
    in_flight: VecDeque<(Slot, usize)>,
    /// The sum of these bytes.
    in_flight_bytes: usize,
    /// It has answered under this ballot.
    answered: bool,
    /// It should hear of this leader even if nothing else is due.
    greet: bool,
    /// When it last moved on, or was last sent something again.
    progress_at: Micros,
    /// How often in a row something was sent again in vain.
    resends: u32,
    /// The chosen prefix that it was last told.
    told_chosen: Slot,
    /// The prefix that it knows all voters to have, as it said itself.
    knows_truncate: Slot,
    /// When it was last told what is chosen, and what all voters have.
    told_at: Micros,
    /// It grants this leader time until then, reckoned from here.
    pub(crate) lease_until: Micros,
}

/// A follower that does not answer is sent the same again less and less often, down to this.
const RESEND_MAX: Micros = Micros::from_secs(1);
/// A follower that knows less than it was told is told again after this time.
const TELL_AGAIN: Micros = Micros::from_millis(100);
/// What every voter has is announced so often until it is known.
const TELL_TRUNCATE: Micros = Micros::from_secs(1);

impl Progress {
    pub(crate) fn new(base: Slot, now: Micros) -> Progress {
        Progress {
            votes: true,
            acc_upto: base.prev(),
            sack: Vec::new(),
            have_upto: Slot::ZERO,
            next: base,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            answered: false,
            greet: true,
            progress_at: now,
            resends: 0,
            told_chosen: Slot::ZERO,
            knows_truncate: Slot::ZERO,
            told_at: now,
            lease_until: Micros::default(),
        }
    }

    /// Its durable chosen prefix.
    pub(crate) fn have_upto(&self) -> Slot {
        self.have_upto
    }

    /// Whether it has answered under this ballot.
    pub(crate) fn answered(&self) -> bool {
        self.answered
    }

    /// The prefix that it voted for, or has.
    pub(crate) fn voted_upto(&self) -> Slot {
        self.acc_upto.max(self.have_upto)
    }

    /// Has voted for everything up to `last`.
    pub(crate) fn has_all(&self, last: Slot) -> bool {
        self.answered && self.voted_upto() >= last
    }

    /// Lacks little of what was proposed up to `last`.
    pub(crate) fn has_most(&self, last: Slot) -> bool {
        self.answered && self.voted_upto().0 + ACCEPT_SLOTS_MAX as u64 >= last.0
    }

    /// Votes for the slot.
    fn voted(&self, slot: Slot) -> bool {
        slot <= self.acc_upto.max(self.have_upto) || self.sacked(slot).is_some()
    }

    fn sacked(&self, slot: Slot) -> Option<SlotRange> {
        self.sack.iter().copied().find(|range| range.first <= slot && slot <= range.last)
    }

    /// Sends everything that is not acknowledged again.
    fn restart(&mut self, now: Micros) {
        self.next = self.acc_upto.next();
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.greet = true;
        self.progress_at = now;
    }

    fn resend_after(&self, patience: Micros) -> Micros {
        RESEND_MAX.min(Micros(patience.0 << self.resends.min(8))).max(patience)
    }

    /// The next values to send, and the slot of the first; empty where nothing is due or the
    /// window is full.
    fn next_run(&mut self, log: &Log, options: &Options, last: Slot) -> (Slot, Vec<Value>) {
        self.next = self.next.max(self.acc_upto.next()).max(self.have_upto.next());
        // What is chosen and no longer in memory reaches the follower by catch-up.
        self.next = self.next.max(log.tail_first());
        while let Some(range) = self.sacked(self.next) {
            self.next = range.last.next();
        }
        let first = self.next;
        let mut values = Vec::new();
        let mut bytes = 0;
        while self.next <= last && values.len() < ACCEPT_SLOTS_MAX {
            let Some(value) = log.value(self.next) else { break };
            let more = bytes + value.weight();
            let alone = values.is_empty() && self.in_flight_bytes == 0;
            let full = self.in_flight_bytes + more > options.window_bytes;
            let large = !values.is_empty() && more > ACCEPT_BYTES_MAX;
            if full && !alone || large || self.sacked(self.next).is_some() {
                break;
            }
            values.push(value.clone());
            bytes = more;
            self.next = self.next.next();
        }
        if bytes > 0 {
            self.in_flight.push_back((self.next.prev(), bytes));
            self.in_flight_bytes += bytes;
        }
        (first, values)
    }

    /// Takes an answer; tells whether it moved anything on.
    fn accepted(&mut self, accepted: Accepted, last: Slot, now: Micros) {
        // Under this ballot nothing is chosen beyond what its leader proposed.
        let acc_upto = accepted.acc_upto.min(last);
        let have_upto = accepted.have_upto.min(last);
        let moved = acc_upto > self.acc_upto || have_upto > self.have_upto;
        if acc_upto >= self.acc_upto {
            self.sack = accepted.sack;
            self.sack.retain(|range| range.first <= range.last && range.last <= last);
            self.sack.truncate(SACK_RANGES_MAX);
        }
        self.acc_upto = self.acc_upto.max(acc_upto);
        self.have_upto = self.have_upto.max(have_upto);
        self.knows_truncate = self.knows_truncate.max(accepted.truncate_upto);
        while let Some((upto, bytes)) = self.in_flight.front()
            && *upto <= self.acc_upto
        {
            self.in_flight_bytes -= bytes;
            self.in_flight.pop_front();
        }
        self.answered = true;
        if moved {
            self.progress_at = now;
            self.resends = 0;
        }
    }
}

impl Paxos {
    pub(crate) fn propose_command(&mut self, command: Command) -> Result<Slot, Refusal> {
        assert!(command.payload.len() <= COMMAND_BYTES_MAX, "a command above its limit");
        self.propose_value(Value::Command(command))
    }

    /// Puts a value into the next slot, unless a stop-sign is the last.
    pub(crate) fn propose_value(&mut self, value: Value) -> Result<Slot, Refusal> {
        let leader = self.leader();
        let Role::Leading(leading) = &mut self.role else {
            return Err(Refusal::NotLeader { leader });
        };
        let bytes = leading.unchosen_bytes + value.weight();
        let slots = leading.last.0 - self.learner.chosen_upto.0;
        let large = leading.unchosen_bytes > 0 && bytes > self.options.unchosen_bytes_max;
        // The others may choose without this replica's disk: what waits for that is in memory.
        let chosen_bytes = self.log.tail_bytes().saturating_sub(leading.unchosen_bytes);
        let room = chosen_bytes <= 2 * self.options.tail_bytes_max;
        let stops = leading.stop.is_some() && !mutant::is(Mutant::StopSignPassed);
        let passes = leading.transfer.is_some() || stops;
        if slots >= self.options.window_slots || large || !room || passes {
            return Err(Refusal::Busy);
        }
        if slots == 0 {
            leading.moved_at = self.now;
        }
        let slot = leading.last.next();
        assert!(slot > leading.barrier, "{slot} is to be recovered");
        leading.last = slot;
        leading.unchosen_bytes = bytes;
        let ballot = leading.ballot;
        self.write_entry(slot, ballot, value);
        if let Some(stream) = &mut self.acceptor.stream {
            stream.top = slot;
        }
        self.stats.proposed += 1;
        Ok(slot)
    }

    /// Sends to every connected follower what it lacks and its window admits.
    pub(crate) fn stream(&mut self) {
        // Whoever votes alone leads before its promise is durable; those who learn from it must not
        // hear of a ballot that it may take again after a crash.
        if !self.acceptor.is_durable() {
            return;
        }
        let Role::Leading(leading) = &mut self.role else { return };
        let leading = leading.as_mut();
        let chosen_upto = self.learner.chosen_upto;
        for (replica, progress) in &mut leading.followers {
            if !self.election.is_connected(*replica) {
                continue;
            }
            // Nothing beyond what the follower would take: see `AHEAD_SLOTS_MAX`.
            let have_upto = progress.have_upto.max(self.election.have_upto(*replica));
            let last = leading.last.min(Slot(have_upto.0.saturating_add(AHEAD_SLOTS_MAX)));
            loop {
                let idle = progress.in_flight.is_empty();
                let (first, values) = progress.next_run(&self.log, &self.options, last);
                if values.is_empty() && !progress.greet {
                    break;
                }
                if idle {
                    progress.progress_at = self.now;
                }
                progress.greet = false;
                progress.told_chosen = chosen_upto;
                progress.told_at = self.now;
                let accept = Accept {
                    ballot: leading.ballot,
                    base: leading.base,
                    first,
                    values,
                    chosen_upto,
                    truncate_upto: leading.truncate_upto,
                };
                self.gate.send(*replica, Message::Accept(accept));
            }
        }
    }

    /// A learner says how far it has come.
    pub(crate) fn note_accepted(&mut self, from: ReplicaId, ballot: Ballot, accepted: Accepted) {
        let now = self.now;
        if let Role::Leading(leading) = &mut self.role
            && leading.ballot == ballot
            && let Some(progress) = leading.followers.get_mut(&from)
        {
            progress.accepted(accepted, leading.last, now);
        }
    }

    pub(crate) fn on_accepted(&mut self, now: Now, from: ReplicaId, accepted: Accepted) {
        let Role::Leading(leading) = &mut self.role else { return };
        if accepted.ballot != leading.ballot {
            return;
        }
        let Some(progress) = leading.followers.get_mut(&from) else { return };
        progress.accepted(accepted, leading.last, now.mono);
        self.count_votes(now);
    }

    /// Moves the chosen prefix on over every slot that a quorum voted for.
    pub(crate) fn count_votes(&mut self, now: Now) {
        let Role::Leading(leading) = &mut self.role else { return };
        let Some(stream) = &self.acceptor.stream else { return };
        let q2 = self.members.q2();
        let followers = leading.voters();
        let mut votes: smallvec::SmallVec<[Slot; 8]> =
            followers.map(|progress| progress.acc_upto.max(progress.have_upto)).collect();
        if self.members.contains(self.options.replica) {
            let unsynced = mutant::is(Mutant::OwnVoteUnsynced);
            votes.push(if unsynced { stream.top } else { stream.acc_upto });
        }
        votes.sort_unstable_by(|a, b| b.cmp(a));
        let enough = if mutant::is(Mutant::VoteMissing) { q2.max(2) - 1 } else { q2 };
        let quorum = votes.get(enough - 1).copied().unwrap_or_default().min(leading.last);
        let mut chosen = quorum.max(self.learner.chosen_upto);
        if leading.voters().any(|progress| !progress.sack.is_empty()) {
            while chosen < leading.last {
                let next = chosen.next();
                let own = usize::from(next <= stream.acc_upto);
                let followers = leading.voters();
                if own + followers.filter(|progress| progress.voted(next)).count() < q2 {
                    break;
                }
                chosen = next;
            }
        }
        self.set_chosen(now, chosen);
        self.advance_votes();
        self.announce_truncate();
    }

    fn announce_truncate(&mut self) {
        let Role::Leading(leading) = &mut self.role else { return };
        let election: &Election = &self.election;
        // Who learns holds back nobody's log.
        let voters = leading.followers.iter().filter(|(_, progress)| progress.votes);
        let have = voters.map(|(id, progress)| {
            progress.have_upto.max(election.have_upto(*id)).min(self.learner.chosen_upto)
        });
        let all = have.chain([self.learner.have_upto]).min().unwrap_or_default();
        let claimed = mutant::is(Mutant::TruncationClaimed);
        let all = if claimed { self.learner.have_upto } else { all };
        leading.truncate_upto = leading.truncate_upto.max(all);
        self.learner.truncate_upto = self.learner.truncate_upto.max(leading.truncate_upto);
    }

    /// A follower is connected again: what was sent meanwhile may be lost.
    pub(crate) fn restart_stream(&mut self, replica: ReplicaId) {
        let now = self.now;
        if let Role::Leading(leading) = &mut self.role
            && let Some(progress) = leading.followers.get_mut(&replica)
        {
            progress.restart(now);
            progress.resends = 0;
        }
    }

    /// Sends again what is late, and tells followers what is chosen where nothing else did.
    pub(crate) fn tend_followers(&mut self, now: Now) {
        let patience = self.election.patience();
        let chosen_upto = self.learner.chosen_upto;
        let Role::Leading(leading) = &mut self.role else { return };
        let leading = leading.as_mut();
        for (replica, progress) in &mut leading.followers {
            if !self.election.is_connected(*replica) {
                continue;
            }
            let sent = progress.next.prev();
            let waits = !progress.answered || progress.acc_upto.max(progress.have_upto) < sent;
            let late = now.mono.since(progress.progress_at) >= progress.resend_after(patience);
            if waits && late {
                progress.restart(now.mono);
                progress.resends += 1;
                self.stats.resends += 1;
                continue;
            }
            let quiet = now.mono.since(progress.told_at);
            let news = progress.told_chosen < chosen_upto
                || progress.have_upto < chosen_upto && quiet >= TELL_AGAIN
                || progress.knows_truncate < leading.truncate_upto && quiet >= TELL_TRUNCATE;
            if news && progress.answered {
                progress.told_chosen = chosen_upto;
                progress.told_at = now.mono;
                let (ballot, base) = (leading.ballot, leading.base);
                let truncate_upto = leading.truncate_upto;
                let chosen = Chosen { ballot, base, chosen_upto, truncate_upto };
                self.gate.send(*replica, Message::Chosen(chosen));
            }
        }
    }
}
