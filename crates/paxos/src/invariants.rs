//! What must hold after every step (docs/paxos.md 12). Debug builds check the cheap ones after
//! every input; tests and the simulator also call [`check_log`].

use base::{Lsn, Slot};

use crate::ballot::Ballot;
use crate::output::SlotStatus;
use crate::paxos::Paxos;
use crate::proposer::Role;

/// Remembers one step to compare the next one with.
#[derive(Debug, Default)]
pub struct Watch {
    last: Option<Facts>,
}

/// What may only grow.
#[derive(Clone, Copy, Debug)]
struct Facts {
    promised: Ballot,
    promised_durable: Ballot,
    chosen_upto: Slot,
    have_upto: Slot,
    emitted_upto: Slot,
    truncated_upto: Slot,
    durable: Lsn,
    votes: Option<(Ballot, Slot)>,
}

impl Watch {
    /// Checks one replica after a step.
    pub fn step(&mut self, paxos: &Paxos) {
        check_facts(paxos);
        let stream = paxos.acceptor.stream.as_ref();
        let now = Facts {
            promised: paxos.acceptor.promised,
            promised_durable: paxos.acceptor.promised_durable,
            chosen_upto: paxos.learner.chosen_upto,
            have_upto: paxos.learner.have_upto,
            emitted_upto: paxos.learner.emitted_upto,
            truncated_upto: paxos.log.truncated_upto(),
            durable: paxos.gate.durable(),
            votes: stream.map(|stream| (stream.ballot, stream.acc_upto)),
        };
        if let Some(before) = self.last.replace(now) {
            check_delta(&before, &now);
        }
    }
}

fn check_facts(paxos: &Paxos) {
    let me = paxos.options.replica;
    let promised = paxos.acceptor.promised;
    let learner = &paxos.learner;
    assert!(paxos.acceptor.promised_durable <= promised, "I2: durable above promised");
    assert!(learner.have_upto <= learner.chosen_upto, "I8: have what is not chosen");
    assert!(paxos.log.truncated_upto() <= learner.have_upto, "forgot what is not held");
    assert!(learner.chosen_upto <= paxos.log.last(), "chosen beyond the log");
    if let Some(stream) = &paxos.acceptor.stream {
        assert_eq!(stream.ballot, promised, "I5: votes under another ballot than the promised one");
    }
    match &paxos.role {
        Role::Following | Role::Probing(_) => {}
        Role::Preparing(preparing) => {
            assert_eq!(preparing.ballot, promised, "I4: campaigns under what it did not promise");
            assert_eq!(promised.replica, me, "I4: campaigns under another's ballot");
        }
        Role::Leading(leading) => {
            assert_eq!(leading.ballot, promised, "I4: leads under what it did not promise");
            assert_eq!(promised.replica, me, "I4: leads under another's ballot");
            assert!(leading.last >= leading.barrier, "I7: proposes below the barrier");
            assert_eq!(leading.last, paxos.log.last(), "I4: the log runs beyond the proposals");
            assert!(learner.chosen_upto <= leading.last, "I8: chosen and not proposed");
        }
    }
}

fn check_delta(before: &Facts, now: &Facts) {
    assert!(before.promised <= now.promised, "I2: the promise went back");
    assert!(before.promised_durable <= now.promised_durable, "I2: the durable promise went back");
    assert!(before.chosen_upto <= now.chosen_upto, "I8: the chosen prefix went back");
    assert!(before.have_upto <= now.have_upto, "I8: the durable chosen prefix went back");
    assert!(before.emitted_upto <= now.emitted_upto, "I8: the executed prefix went back");
    assert!(before.truncated_upto <= now.truncated_upto, "the log came back");
    assert!(before.durable <= now.durable, "I3: the disk went back");
    if let (Some((ballot, upto)), Some((ballot_now, upto_now))) = (before.votes, now.votes) {
        assert!(ballot < ballot_now || upto <= upto_now, "I12: votes were taken back");
    }
}

/// Checks every slot of a replica's log; for tests, as it takes time.
pub fn check_log(paxos: &Paxos) {
    let durable = paxos.gate.durable();
    for slot in (paxos.first_slot().0..=paxos.last_slot().0).map(Slot) {
        let Some(entry) = paxos.log.entry(slot) else {
            assert_eq!(paxos.status(slot), SlotStatus::Empty, "a chosen slot is empty");
            continue;
        };
        assert!(entry.ballot <= paxos.acceptor.promised, "I5: accepted above the promise");
        let over =
            slot >= paxos.members.first_slot() && entry.ballot < paxos.members.first_ballot();
        assert!(!over, "I9: {slot} holds what an epoch left that is over");
        let in_memory = paxos.log.value(slot).is_some();
        assert!(in_memory || entry.lsn <= durable, "{slot} is neither in memory nor on the disk");
        if slot <= paxos.learner.have_upto {
            // What a leader proposes once more lies on the disk in an earlier record too, and what
            // is mended was there until it was damaged.
            let again = matches!(&paxos.role, Role::Leading(leading) if slot >= leading.base);
            let held = entry.lsn <= durable || again || paxos.repaired_slots() > 0;
            assert!(held, "I8: {slot} is counted as held and is not durable");
        }
        if let Role::Leading(leading) = &paxos.role
            && slot >= leading.base
        {
            assert_eq!(
                entry.ballot, leading.ballot,
                "I4: {slot} was proposed under another ballot"
            );
        }
    }
    if let Some(stream) = &paxos.acceptor.stream {
        for slot in (paxos.learner.have_upto.0 + 1..=stream.acc_upto.0).map(Slot) {
            let below_base = paxos.log.ballot(slot) != stream.ballot;
            let voted = paxos.log.is_durable(slot, durable);
            // Damage takes nothing back that was told.
            let hurt = paxos.log.faulty().contains(&slot) || paxos.repaired_slots() > 0;
            assert!(voted || below_base || hurt, "I12: {slot} is voted for and not durable");
        }
    }
}
