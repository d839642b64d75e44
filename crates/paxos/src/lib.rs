//! Multi-Paxos of one replica group as a pure state machine: inputs come in with the time they came
//! at, records, messages and chosen values come out. It does no IO, reads no clock, and draws no
//! randomness that it was not seeded with. The sections named in comments are those of
//! docs/paxos.md.
//!
//! # The protocol
//!
//! A group agrees on the value of each *slot* of a log (the literature also says *instance*). A
//! value is *chosen* in a slot when a quorum of the voters has accepted it there under one
//! [`Ballot`]; all else serves to make that final, and to let everybody know.
//!
//! **Phase 1.** A replica that wants to lead takes a ballot above all it has seen, makes it durable
//! and sends [`message::Prepare`]. Whoever has not promised a higher one promises to accept nothing
//! lower any more, makes that durable, and answers with what it accepted so far. One phase 1 covers
//! all slots from the candidate's own chosen prefix on. With the promises of a quorum the candidate
//! knows, for every slot, the only value that may have been chosen: the one under the highest
//! ballot reported. It proposes those again under its own ballot, a no-op where nothing was
//! reported, and is the leader (`proposer.rs`).
//!
//! **Phase 2.** The leader puts each command into the next slot and sends [`message::Accept`] with
//! a run of slots; it writes its own record meanwhile. A follower writes the values and, when they
//! are durable, answers how far its votes reach ([`message::Accepted`]). Accepts may be lost, come
//! twice or out of order: votes for what lies behind a gap are told as ranges, and the leader sends
//! again from the gap. A slot that a quorum voted for is chosen; the leader counts its own vote only
//! when its own record is durable (`leader.rs`, `acceptor.rs`).
//!
//! **Learning.** The end of the chosen prefix rides on the Accepts. A follower that hears of slot
//! `s` believes its own value to be the chosen one only if it accepted it under that leader's
//! ballot; otherwise it asks for the slot ([`message::CatchUpRequest`]). Chosen values are handed
//! out in the order of slots, each once (`learner.rs`).
//!
//! **Durability.** A promise, a vote, and a `Prepare` speak of something written down. They stay
//! inside until it is durable; `gate.rs` is the one place that holds them.
//!
//! **Restart.** Records give back the promise and what was accepted. A replica does not know what
//! it proposed before it stopped, because an Accept may leave before its record is durable: so it
//! never proposes again under an old ballot, and takes a new round instead (`recovery.rs`).
//!
//! **Election.** Safety never depends on who campaigns when. A replica campaigns when it hears no
//! leader and is connected to a quorum, the freshest first, and asks by a *probe* whether it would
//! succeed before it disturbs anybody (`election.rs`).
//!
//! **Reads.** A leader to which enough voters granted time reads from its state, and checks the
//! clock afterwards (`lease.rs`). Without such a lease it learns that it still leads by asking a
//! quorum after the read arrived; all reads that wait share one question (`confirm.rs`).
//!
//! **Forgetting.** When every voter has a prefix durable and knows it to be chosen, the leader says
//! so, and the callers may truncate. That all had a prefix proves to a replica that lost count in a
//! restart that what it holds there is chosen. The callers may also truncate what others lack, so
//! that a dead replica does not make logs grow; who lacks it gets a copy of the state (`install.rs`).
//!
//! **Memory.** The log keeps a few dozen bytes per slot and the values of the newest ones; other
//! values are asked back from the write-ahead log (`loader.rs`).
//!
//! **Changing the members.** A stop-sign, chosen like any value, ends an epoch and names the members
//! of the next. Whoever is to vote learns first (`epoch.rs`).
//!
//! **Damage.** An entry whose record cannot be read is still reported as accepted, and its value is
//! taken from others. A replica that may have forgotten a promise or a vote never votes again, but
//! learns on (`repair.rs`).
//!
//! # Not implemented
//!
//! Adoption of values by reference. Numbers for it on the wire and in records are reserved.

mod acceptor;
pub mod ballot;
mod confirm;
mod election;
mod epoch;
mod gate;
mod install;
pub mod invariants;
mod leader;
mod learner;
mod lease;
mod loader;
mod log;
pub mod members;
pub mod message;
pub mod output;
mod paxos;
mod proposer;
pub mod record;
pub mod recovery;
mod repair;

pub use crate::ballot::Ballot;
pub use crate::confirm::ReadTicket;
pub use crate::epoch::Standing;
pub use crate::lease::Lease;
pub use crate::members::{Member, Members};
pub use crate::message::{Command, HeartbeatRow, Message, Value};
pub use crate::output::{
    ChangeRefusal, Chosen, Confirmed, Load, Output, Refusal, SlotStatus, Stats,
};
pub use crate::paxos::{Options, Paxos};
pub use crate::record::{Identity, Record};
pub use crate::recovery::{RecoverError, Recovery};
