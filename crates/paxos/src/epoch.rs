//! Changing the members of a group (docs/paxos.md 11.8).
//!
//! A stop-sign is the last value of an epoch: it names the members of the next one. Where it is
//! chosen, in slot `k`, the old members decide nothing more, and the new ones decide the slots from
//! `k + 1` on. Each replica passes from one epoch to the next when its own chosen prefix reaches the
//! stop-sign, so that whoever votes in an epoch has all that was chosen before it. It records that
//! before it says anything in the new epoch; the record is a promise, too, of the ballot of the
//! first leader, which therefore proposes without phase 1.

use base::mutant::{self, Mutant};
use base::{Micros, Now, ReplicaId, Slot};
use minicbor::{Decode, Encode};

use crate::ballot::Ballot;
use crate::log::Mark;
use crate::members::{Member, Members};
use crate::message::{CatchUpRequest, Chosen, EpochInfo, Message, Value, Why};
use crate::output::ChangeRefusal;
use crate::paxos::Paxos;
use crate::proposer::Role;
use crate::record::Record;

/// What a replica knows of the members beyond those who vote.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    /// Replicas that are to vote one day, and learn until then.
    learners: Vec<Member>,
    /// Who voted in the epoch before, and votes no more.
    former: Vec<Member>,
    /// The members of the newest epochs before the present one, in their order.
    before: Vec<Members>,
    /// What a copy of another's state says of epochs, until it is the state.
    pub(crate) copied: Option<Standing>,
    /// Members of a later epoch, as somebody said, and when that was.
    newer: Option<(Members, Micros)>,
    /// The newest epoch whose predecessor is no longer needed.
    pub(crate) done: u32,
    /// The first ballot of the present epoch, if it is this replica's and this start of it has
    /// recorded the epoch: under it it leads once that record is durable.
    opening: Option<Ballot>,
    /// The other replicas that this one knows of have changed.
    pub(crate) peers_changed: bool,
}

/// What is known of epochs after some slot.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Standing {
    /// The members that decide the next slot.
    #[n(0)]
    pub members: Members,
    /// As [`Paxos::done`].
    #[n(1)]
    pub done: u32,
}

/// So many epochs that are over are kept in mind.
const BEFORE_MAX: usize = 8;
/// Who was told of a later epoch leaves its own alone for so long.
const SUPERSEDED_FOR: Micros = Micros::from_secs(1);
/// A new voter lacks at most so many bytes when it begins to vote.
const GATE_BYTES: usize = 4 << 20;
/// And at most so many slots.
const GATE_SLOTS: u64 = 4_096;

impl Epochs {
    /// For a replica of the first epoch there is nothing to be done with.
    pub(crate) fn new(done: u32) -> Epochs {
        Epochs { done, ..Epochs::default() }
    }
}

impl Paxos {
    /// Whether this replica votes in the present epoch.
    pub fn is_voter(&self) -> bool {
        self.members.contains(self.options.replica)
    }

    /// The number of the present epoch.
    pub(crate) fn epoch(&self) -> u32 {
        self.members.epoch()
    }

    /// The newest epoch whose predecessor is no longer needed: its members have what was chosen
    /// before, and the members can be changed again.
    pub fn done(&self) -> u32 {
        self.epochs.done
    }

    /// What holds of epochs after this slot, of the newest slots.
    pub fn standing(&self, slot: Slot) -> Option<Standing> {
        // Until the log knows of a copy, only that says what it brought.
        let copied = self.epochs.copied.as_ref();
        let newer = copied.filter(|copied| copied.members.epoch() > self.epoch());
        if let Some(copied) = newer.filter(|copied| copied.members.first_slot() <= slot.next()) {
            return Some(copied.clone());
        }
        let all = self.epochs.before.iter().chain([&self.members]);
        let members = all.rev().find(|members| members.first_slot() <= slot.next())?.clone();
        let done = self.epochs.done.min(members.epoch());
        Some(Standing { members, done })
    }

    /// The state is a copy of another's, about which this is known.
    pub(crate) fn adopt(&mut self, now: Now, standing: Standing) {
        self.epochs.done = self.epochs.done.max(standing.done);
        let members = standing.members;
        let follows = members.first_slot() <= self.learner.chosen_upto.next();
        if members.epoch() > self.epoch() && follows {
            let stop = members.first_slot().prev();
            self.enter(now, members, stop);
        }
    }

    /// All other replicas of the group that this one knows of: who votes, who will, who did, and
    /// who is said to.
    pub fn peers(&self) -> Vec<Member> {
        let newer = self.epochs.newer.iter().flat_map(|(members, _)| members.voters());
        let known = self.members.voters().iter().chain(&self.epochs.learners);
        let mut peers: Vec<Member> = Vec::new();
        for member in known.chain(&self.epochs.former).chain(newer) {
            let present = peers.iter().any(|peer| peer.replica == member.replica);
            if member.replica != self.options.replica && !present {
                peers.push(*member);
            }
        }
        peers
    }

    /// Names the replicas that are to learn, in place of those named before.
    pub fn set_learners(&mut self, now: Now, mut learners: Vec<Member>) {
        self.at(now);
        learners.sort_unstable();
        learners.retain(|learner| learner.replica != self.options.replica);
        if learners != self.epochs.learners {
            self.epochs.learners = learners;
            self.sync_peers();
        }
    }

    /// The replicas that learn and do not vote yet.
    pub(crate) fn learners(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let learners = self.epochs.learners.iter().map(|member| member.replica);
        learners.filter(|replica| !self.members.contains(*replica))
    }

    /// The other replicas have changed, or what they are.
    fn sync_peers(&mut self) {
        let members = &self.members;
        let peers = self.peers().into_iter();
        let peers = peers.map(|peer| (peer.replica, members.contains(peer.replica)));
        self.election.set_peers(peers.collect());
        let learners: Vec<ReplicaId> = self.learners().collect();
        let now = self.now;
        if let Role::Leading(leading) = &mut self.role {
            leading.set_learners(&learners, now);
        }
        self.epochs.peers_changed = true;
    }

    // ------------------------------------------------------------------ the end of an epoch

    /// Proposes that from the next slot on these are the voters, and that slot's leader is the first
    /// of them to propose. Nothing more is proposed in this epoch.
    pub fn change(
        &mut self,
        now: Now,
        voters: Vec<Member>,
        first_leader: ReplicaId,
    ) -> Result<Slot, ChangeRefusal> {
        self.at(now);
        let leader = self.leader();
        let Role::Leading(leading) = &self.role else {
            return Err(ChangeRefusal::NotLeader { leader });
        };
        let stop = leading.last.next();
        let unsettled = self.learner.chosen_upto < leading.barrier || leading.transfer.is_some();
        if leading.stop.is_some() || unsettled || self.epochs.done < self.epoch() {
            return Err(ChangeRefusal::Busy);
        }
        let next = self.members.next(stop, voters, first_leader);
        let next = next.ok_or(ChangeRefusal::NoMembers)?;
        if next.voters() == self.members.voters() {
            return Err(ChangeRefusal::Same);
        }
        let lacking: Vec<ReplicaId> = next.replicas().filter(|id| !self.is_near(*id)).collect();
        if next.voters().len() - lacking.len() < next.q1() || lacking.contains(&first_leader) {
            return Err(ChangeRefusal::NotReady { lacking });
        }
        let stays = first_leader == self.options.replica;
        let slot = self.propose_value(Value::Stop(next)).map_err(ChangeRefusal::from)?;
        if let Role::Leading(leading) = &mut self.role {
            leading.stop = Some(slot);
            // What follows is another's to decide: reads ask from now on.
            leading.lease_void |= !stays;
        }
        self.settle(now);
        Ok(slot)
    }

    /// Whether a replica is connected and lacks little of what was proposed. One that was never
    /// heard may not be there at all, however little there is to lack; and what is forgotten here
    /// counts as much.
    pub fn is_near(&self, replica: ReplicaId) -> bool {
        let Role::Leading(leading) = &self.role else { return false };
        if replica == self.options.replica {
            return true;
        }
        let Some(progress) = leading.followers.get(&replica) else { return false };
        let have_upto = progress.have_upto().max(self.election.have_upto(replica));
        let slots = leading.last.0.saturating_sub(have_upto.0);
        let unheard = have_upto == Slot::ZERO && !progress.answered();
        let forgotten = have_upto < self.log.truncated_upto();
        if !self.election.is_connected(replica) || unheard || forgotten || slots > GATE_SLOTS {
            return false;
        }
        let lacks = (have_upto.0 + 1..=leading.last.0).map(Slot);
        let entries = lacks.filter_map(|slot| self.log.entry(slot));
        entries.map(|entry| entry.weight as usize).sum::<usize>() <= GATE_BYTES
    }

    // ------------------------------------------------------------------ from one epoch to the next

    /// Where the present epoch ends, among the slots up to this one: at most one is a stop-sign of
    /// it, as nothing is proposed behind one.
    pub(crate) fn stop_within(&self, upto: Slot) -> Option<Slot> {
        let epoch = self.epoch();
        let from = self.epochs_seen();
        let mut marks = self.log.marks(from, upto);
        let ends =
            |slot, mark: &Mark| mark.ends(slot, epoch) && !mutant::is(Mutant::StopSignPassed);
        marks.find(|(slot, mark)| ends(*slot, mark)).map(|(slot, _)| slot)
    }

    /// Up to here no mark is of interest any more.
    fn epochs_seen(&self) -> Slot {
        self.log.truncated_upto()
    }

    /// Heeds what the chosen prefix says of epochs.
    pub(crate) fn pass_marks(&mut self, now: Now) {
        let chosen_upto = self.learner.chosen_upto;
        let dones = self.log.marks(self.epochs_seen(), chosen_upto);
        let done = dones.filter_map(|(_, mark)| match mark {
            Mark::Done(epoch) => Some(*epoch),
            Mark::Stop(_) => None,
        });
        let done = done.max().unwrap_or_default();
        if done > self.epochs.done {
            self.epochs.done = done;
            if done >= self.epoch() && !self.epochs.former.is_empty() {
                self.epochs.former.clear();
                self.sync_peers();
            }
        }
        if let Some(stop) = self.stop_within(chosen_upto)
            && let Some(Mark::Stop(members)) = self.log.mark(stop).cloned()
        {
            self.enter(now, members, stop);
        }
    }

    /// The epoch is over, and these are the members of the next one.
    fn enter(&mut self, now: Now, members: Members, stop: Slot) {
        assert_eq!(stop.next(), members.first_slot(), "I9: {stop} does not end its epoch");
        self.tell_stop(stop);
        self.step_down();
        // What was learned of later epochs is decided.
        self.log.drop_older(stop.max(self.log.truncated_upto()), members.epoch());
        self.learner.forget_announced();
        let ballot = members.first_ballot();
        let me = self.options.replica;
        let before = std::mem::replace(&mut self.members, members);
        self.epochs.before.push(before.clone());
        let surplus = self.epochs.before.len().saturating_sub(BEFORE_MAX);
        self.epochs.before.drain(..surplus);
        let gone = before.voters().iter().filter(|old| !self.members.contains(old.replica));
        self.epochs.former = gone.copied().collect();
        if self.epochs.newer.as_ref().is_some_and(|(newer, _)| newer.epoch() <= self.epoch()) {
            self.epochs.newer = None;
        }
        // A learner may have promised more of the epoch that it was created in.
        if ballot > self.acceptor.promised {
            self.promise(ballot);
        }
        self.append(Record::Epoch { members: self.members.clone() });
        let fresh = self.is_voter() && self.learner.chosen_upto == stop;
        self.epochs.opening = (ballot.replica == me && fresh).then_some(ballot);
        self.election.enter(self.epoch());
        self.election.promised_to_other(now.mono);
        self.sync_peers();
        self.stats.epochs += 1;
    }

    /// A leader says to all that the stop-sign is chosen: it will not say anything more in this
    /// epoch.
    fn tell_stop(&mut self, stop: Slot) {
        let Role::Leading(leading) = &self.role else { return };
        let chosen = Chosen {
            ballot: leading.ballot,
            base: leading.base,
            chosen_upto: stop,
            truncate_upto: leading.truncate_upto,
        };
        for replica in leading.followers.keys() {
            self.gate.send(*replica, Message::Chosen(chosen));
        }
    }

    /// The first leader of an epoch begins when its record of the epoch is durable: no later start
    /// of it will take that ballot, which it cannot know to be unused.
    pub(crate) fn open_epoch(&mut self, now: Now) {
        let Some(ballot) = self.epochs.opening else { return };
        let unfit = self.is_unfit_to_lead() || self.election.is_abstaining();
        if ballot != self.acceptor.promised || unfit {
            self.epochs.opening = None;
        } else if self.acceptor.is_durable() {
            self.epochs.opening = None;
            self.lead(now, self.members.first_slot(), Vec::new());
        }
    }

    /// What this start of the replica did not begin itself it does not lead without phase 1.
    pub(crate) fn close_epoch(&mut self) {
        self.epochs.opening = None;
    }

    /// A leader proposes the end of a change once a majority of the new voters has everything that
    /// was chosen before: from then on nobody needs the old ones.
    pub(crate) fn tend_epoch(&mut self) {
        let epoch = self.epoch();
        let before = self.members.first_slot().prev();
        let Role::Leading(leading) = &self.role else { return };
        let waits = leading.stop.is_some() || leading.done_proposed;
        if self.epochs.done >= epoch || waits || self.learner.chosen_upto < leading.barrier {
            return;
        }
        let others = self.members.replicas().filter_map(|id| leading.followers.get(&id));
        let have = others.filter(|progress| progress.have_upto() >= before).count();
        let own = usize::from(self.is_voter() && self.learner.have_upto >= before);
        if have + own >= self.members.q1().max(self.members.q2())
            && self.propose_value(Value::Done(epoch)).is_ok()
            && let Role::Leading(leading) = &mut self.role
        {
            leading.done_proposed = true;
        }
    }

    // ------------------------------------------------------------------ replicas of other epochs

    /// A message speaks of another epoch than the present one.
    pub(crate) fn on_other_epoch(&mut self, now: Now, from: ReplicaId, message: &Message) {
        let Some(ballot) = message.ballot() else { return };
        if ballot.epoch > self.epoch() {
            return self.ask_ahead(now, from);
        }
        let asks = match message {
            Message::Prepare(_) | Message::Accept(_) | Message::Chosen(_) => true,
            Message::Confirm(_) | Message::TransferGo(_) => true,
            Message::Promise(_)
            | Message::Reject(_)
            | Message::Accepted(_)
            | Message::Fetch(_)
            | Message::Values(_)
            | Message::CatchUpRequest(_)
            | Message::CatchUp(_)
            | Message::ConfirmAck(_)
            | Message::EpochInfo(_)
            | Message::Release(_) => false,
        };
        if asks {
            let info = EpochInfo { members: self.members.clone() };
            self.gate.send_after(self.acceptor.promised_at, from, Message::EpochInfo(info));
        }
    }

    /// Somebody is in a later epoch, so that this one is over: asks for what was chosen since.
    fn ask_ahead(&mut self, now: Now, from: ReplicaId) {
        self.step_down();
        if self.learner.may_ask(now.mono) {
            self.stats.catch_ups_asked += 1;
            let chosen_upto = self.learner.chosen_upto;
            let bytes_max = base::limits::CATCH_UP_BYTES_MAX as u32;
            let request = CatchUpRequest { chosen_upto, bytes_max };
            self.gate.send(from, Message::CatchUpRequest(request));
        }
    }

    pub(crate) fn on_epoch_info(&mut self, now: Now, from: ReplicaId, info: EpochInfo) {
        let known = self.epochs.newer.as_ref().map_or(0, |(members, _)| members.epoch());
        let epoch = info.members.epoch();
        if epoch <= self.epoch() || epoch < known {
            return;
        }
        let changed = epoch > known;
        self.epochs.newer = Some((info.members, now.mono));
        if changed {
            self.sync_peers();
        }
        self.ask_ahead(now, from);
    }

    /// Whether the present epoch is over, as somebody said just now or still says: who is in it
    /// still leaves it alone.
    pub(crate) fn is_superseded(&self, now: Micros) -> bool {
        let told =
            self.epochs.newer.as_ref().is_some_and(|(_, at)| now.since(*at) < SUPERSEDED_FOR);
        told || self.election.epoch_max() > self.epoch()
    }

    /// A message that only voters send came from a replica that does not vote: that is told so,
    /// where it asks.
    pub(crate) fn on_stranger(&mut self, from: ReplicaId, message: &Message) {
        let ballot = match message {
            Message::Prepare(prepare) => prepare.ballot,
            Message::Accept(accept) => accept.ballot,
            Message::Confirm(confirm) => confirm.ballot,
            Message::Accepted(accepted) => {
                let (ballot, accepted) = (accepted.ballot, accepted.clone());
                if self.learners().any(|learner| learner == from) {
                    self.note_accepted(from, ballot, accepted);
                }
                return;
            }
            Message::Promise(_)
            | Message::Reject(_)
            | Message::Chosen(_)
            | Message::Fetch(_)
            | Message::Values(_)
            | Message::CatchUpRequest(_)
            | Message::CatchUp(_)
            | Message::ConfirmAck(_)
            | Message::TransferGo(_)
            | Message::Release(_)
            | Message::EpochInfo(_) => return,
        };
        self.reject(from, ballot, Why::NotVoter);
    }
}
