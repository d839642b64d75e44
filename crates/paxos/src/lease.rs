//! Leases (docs/paxos.md 11.7): voters grant their leader time by answering its heartbeats, and a
//! leader that holds the grants of enough of them reads from its own state without asking anybody.
//!
//! A grant is a statement: "for `GRANT_SPAN` from now I promise nobody but the leader of this
//! ballot". It is kept by the replica that makes it, over a restart too, and never taken back by
//! it, so a leader may count on every statement that ever reached it. It counts from when it sent
//! the heartbeat that was answered, which came before; the voter counts from when that arrived.
//! Every quorum of promises for a later ballot holds one of the voters that a lease rests on, and
//! that voter promised only when its statement had run out.

use base::limits::{GRANT_SPAN, LEASE_SPAN};
use base::mutant::{self, Mutant};
use base::{Micros, Now, ReplicaId, Slot};

use crate::ballot::Ballot;
use crate::message::{Message, Prepare, Release, TransferGo};
use crate::paxos::Paxos;
use crate::proposer::Role;

/// What this replica has granted.
///
/// - `until` binds it towards the replica of its highest promise: it is nothing once that changes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Grant {
    /// No promise to another replica before this time has passed.
    pub(crate) until: Micros,
    /// As `until`, for what an earlier start of this replica may have granted, to whichever start
    /// of its leader: news of another start of that says nothing about it.
    pub(crate) inherited: Micros,
    /// A start without a memory of what was granted before: the first input tells when it began.
    pub(crate) forgot: bool,
}

impl Grant {
    /// When nothing binds any more.
    fn end(&self) -> Micros {
        self.until.max(self.inherited)
    }
}

/// A lease as its holder may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The boot clock must not have passed this when a read has been executed.
    pub until: Micros,
    /// The read must be executed on a state that has this slot.
    pub slot: Slot,
}

impl Paxos {
    /// Takes note of the time of an input. Whatever an earlier start granted, it granted before
    /// the first one; that the promise on the disk names its holder is why a grant is made only
    /// when the promise is durable.
    pub(crate) fn at(&mut self, now: Now) {
        self.now = self.now.max(now.mono);
        if std::mem::take(&mut self.grant.forgot) {
            self.grant.inherited = self.now + GRANT_SPAN;
        }
    }

    /// A heartbeat of the node on which that replica lives is being answered: the ballot under
    /// which the replica leads and for which this one now grants it time, if it does. The grant
    /// begins with this call.
    ///
    /// Only a leader that is heard, and hears this replica, is granted anything: if it could not
    /// hear the answer, the grant would keep others from leading and serve nobody.
    pub fn support(&mut self, now: Now, replica: ReplicaId) -> Option<Ballot> {
        self.at(now);
        let ballot = self.acceptor.promised;
        let follows = self.election.leader == Some(ballot) && ballot.replica == replica;
        let hears = self.election.is_connected(replica);
        // What a quarantined replica said it would not promise, it may have promised before.
        let keeps = self.acceptor.is_durable() && !self.quarantined;
        if !follows || !hears || !keeps || replica == self.replica() {
            return None;
        }
        self.grant.until = self.grant.until.max(now.mono + GRANT_SPAN);
        Some(ballot)
    }

    /// The node of that replica has answered the heartbeat that was sent at `sent`: the replica
    /// grants time to the leader of this ballot.
    pub fn supported(&mut self, now: Now, replica: ReplicaId, ballot: Ballot, sent: Micros) {
        self.at(now);
        let Role::Leading(leading) = &mut self.role else { return };
        if leading.ballot == ballot
            && sent <= now.mono
            && let Some(progress) = leading.followers.get_mut(&replica)
        {
            let sent = if mutant::is(Mutant::GrantFromAnswer) { now.mono } else { sent };
            progress.lease_until = progress.lease_until.max(sent + LEASE_SPAN);
        }
    }

    /// The node of that replica was started again: what led there while this replica granted it time
    /// leads no more.
    pub fn restarted(&mut self, now: Now, replica: ReplicaId) {
        self.at(now);
        let anyone = mutant::is(Mutant::GrantFreedByAnyone);
        if self.acceptor.promised.replica == replica || anyone {
            self.grant.until = Micros::default();
        }
    }

    /// The lease that this replica holds, if it may read from its state by itself. Whether it has
    /// run out is for the caller to see, on a clock that is read after the read was executed.
    pub fn lease(&self) -> Option<Lease> {
        let Role::Leading(leading) = &self.role else { return None };
        assert_eq!(leading.ballot, self.acceptor.promised, "I15: a lease under what was left");
        let recovered = self.learner.chosen_upto >= leading.barrier;
        if !recovered && !mutant::is(Mutant::LeaseBeforeBarrier) || leading.lease_void {
            return None;
        }
        // Every quorum of promises meets so many voters, of which this replica is one.
        let voters = self.members.voters().len();
        let others = voters - self.members.q1();
        let mut ends: smallvec::SmallVec<[Micros; 8]> =
            leading.voters().map(|progress| progress.lease_until).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        let until = match others.checked_sub(1) {
            Some(last) => ends.get(last).copied().unwrap_or_default(),
            None => Micros(u64::MAX),
        };
        let until = if mutant::is(Mutant::LeaseEndless) { Micros(u64::MAX) } else { until };
        Some(Lease { until, slot: self.learner.chosen_upto })
    }

    /// For how long this replica cannot promise anything to that one yet.
    pub(crate) fn bound(
        &self,
        now: Now,
        to: ReplicaId,
        released: Option<Ballot>,
    ) -> Option<Micros> {
        let promised = self.acceptor.promised;
        let end = self.grant.end();
        let over = end == Micros::default() || now.mono > end;
        let free = promised.replica == to || released == Some(promised) || over;
        let free = free || mutant::is(Mutant::GrantBroken);
        (!free).then(|| end.since(now.mono) + Micros(1))
    }

    /// As [`Paxos::bound`], for a question of another replica.
    pub(crate) fn bound_towards(&self, now: Now, prepare: &Prepare) -> Option<Micros> {
        self.bound(now, prepare.ballot.replica, prepare.released)
    }

    /// Tells all voters that what they granted to this leader binds them no more.
    pub(crate) fn release(&mut self, ballot: Ballot) {
        let me = self.options.replica;
        for replica in self.members.replicas().filter(|replica| *replica != me) {
            self.gate.send(replica, Message::Release(Release { ballot }));
        }
    }

    pub(crate) fn on_release(&mut self, from: ReplicaId, release: Release) {
        if release.ballot.replica == from {
            self.ended(release.ballot);
        }
    }

    /// Nobody leads under this ballot any more.
    fn ended(&mut self, ballot: Ballot) {
        self.election.ended(ballot);
        if self.acceptor.promised == ballot {
            self.grant = Grant::default();
        }
    }

    /// Passes the leadership on: takes no more proposals until that replica has everything, then
    /// tells it to take over. False where that cannot be begun.
    pub fn transfer(&mut self, now: Now, to: ReplicaId) -> bool {
        self.at(now);
        let able = self.election.is_able(to);
        let Role::Leading(leading) = &mut self.role else { return false };
        let busy = leading.transfer.is_some() || leading.stop.is_some();
        if busy || !able || !leading.followers.contains_key(&to) {
            return false;
        }
        leading.transfer = Some((to, now.mono));
        self.settle(now);
        true
    }

    /// To whom the leadership could be passed on at once, the most advanced first.
    pub fn transfer_targets(&self) -> Vec<ReplicaId> {
        let Role::Leading(leading) = &self.role else { return Vec::new() };
        let mut targets: Vec<(Slot, ReplicaId)> = leading
            .followers
            .iter()
            .filter(|(id, at)| self.election.is_able(**id) && at.has_most(leading.last))
            .map(|(id, at)| (at.voted_upto(), *id))
            .collect();
        targets.sort_unstable_by(|a, b| b.cmp(a));
        targets.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether the leadership is being passed on.
    pub fn is_transferring(&self) -> bool {
        matches!(&self.role, Role::Leading(leading) if leading.transfer.is_some())
    }

    /// Goes on with a transfer: gives up where it takes too long.
    pub(crate) fn tend_transfer(&mut self, now: Now) {
        let chosen_upto = self.learner.chosen_upto;
        let Role::Leading(leading) = &mut self.role else { return };
        let Some((to, since)) = leading.transfer else { return };
        let voted = leading.followers.get(&to).is_some_and(|at| at.has_all(leading.last));
        let late = now.mono.since(since) >= TRANSFER_FOR;
        if late || !self.election.is_able(to) {
            leading.transfer = None;
        } else if voted && chosen_upto == leading.last {
            let ballot = leading.ballot;
            self.stats.transfers += 1;
            // It hears this before the others are free, so that it comes first.
            self.gate.send(to, Message::TransferGo(TransferGo { ballot }));
            self.step_down();
            self.election.rest(now.mono + TRANSFER_REST);
        }
    }

    pub(crate) fn on_transfer_go(&mut self, now: Now, from: ReplicaId, go: TransferGo) {
        if go.ballot.replica != from {
            return;
        }
        let idle = matches!(self.role, Role::Following | Role::Probing(_));
        let present = self.acceptor.promised == go.ballot;
        self.ended(go.ballot);
        if idle && present && self.is_able() {
            self.step_down();
            self.prepare(now, Some(go.ballot));
        }
    }
}

/// A transfer that was not possible within this time is given up, and the leader leads on.
const TRANSFER_FOR: Micros = Micros::from_millis(1_000);
/// Who passed its leadership on does not campaign for so long.
const TRANSFER_REST: Micros = Micros::from_millis(300);
