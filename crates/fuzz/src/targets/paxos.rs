//! One replica's Paxos core, with messages from others, time, crashes and restarts. What it hands
//! out is durable at once; it must go on whatever comes.

use base::limits::{GRANT_SPAN, WINDOW_SLOTS_MAX};
use base::{DiskId, GroupId, Lsn, Micros, NodeId, Now, ReplicaId, Slot, WallMillis, codec};
use bytes::Bytes;
use paxos::{
    Command, HeartbeatRow, Member, Members, Message, Options, Paxos, Record, Recovery, Value,
};

use super::Target;
use crate::items;
use crate::mutate::Layout;

pub(super) const TARGET: Target = Target {
    name: "paxos",
    layout: Layout::Items,
    run,
    memory: 8 << 20,
    memory_per_byte: 512,
    rounds: 15_000,
};

/// Steps of one story that are told; a longer one is left there.
const STEPS_MAX: usize = 200;

fn run(input: &[u8]) {
    let mut core = Core::new();
    for item in items::split(input).into_iter().take(STEPS_MAX) {
        core.step(item.kind, Bytes::from(item.bytes));
    }
}

/// A replica of a group of three, and its log.
pub(crate) struct Core {
    pub(crate) paxos: Paxos,
    pub(crate) now: Now,
    me: ReplicaId,
    records: Vec<(Lsn, Vec<u8>, Bytes)>,
    /// What it has executed, durably at once.
    applied: Slot,
    starts: u64,
    /// What it wants to say.
    pub(crate) said: Vec<(ReplicaId, Message)>,
}

fn member(n: u64) -> Member {
    Member { replica: ReplicaId(n), node: NodeId(n), disk: DiskId(n.into()) }
}

fn options(me: ReplicaId, starts: u64) -> Options {
    Options { tail_bytes_max: 256, ..Options::new(GroupId(1), me, me.0 * 100 + starts) }
}

impl Core {
    fn new() -> Core {
        Core::of(1)
    }

    pub(crate) fn of(replica: u64) -> Core {
        let me = ReplicaId(replica);
        let members = Members::new((1..=3).map(member).collect()).expect("three voters");
        let now = Now { mono: Micros::from_secs(1), wall: WallMillis(1) };
        let mut core = Core {
            paxos: Paxos::create(options(me, 1), members),
            now,
            me,
            records: Vec::new(),
            applied: Slot::ZERO,
            starts: 1,
            said: Vec::new(),
        };
        core.drain();
        for other in (1..=3).map(ReplicaId).filter(|other| *other != me) {
            core.paxos.connected(now, other, true, Micros(500));
        }
        core
    }

    /// One step; the corpus is written in the same terms.
    pub(crate) fn step(&mut self, kind: u8, bytes: Bytes) {
        let first = bytes.first().copied().unwrap_or_default();
        let now = self.now;
        match kind % 16 {
            from @ 0..=2 => {
                if let Ok(message) = codec::decode::<Message>(&bytes) {
                    let from = [2, 3, 9][usize::from(from)];
                    self.paxos.handle(now, ReplicaId(from), message);
                }
            }
            3 => {
                self.now.mono = now.mono + Micros::from_millis(5 * (1 + u64::from(first)));
                self.paxos.tick(self.now);
            }
            from @ (4 | 5) => {
                if let Ok(row) = codec::decode::<HeartbeatRow>(&bytes) {
                    self.paxos.heard(now, ReplicaId(u64::from(from) - 2), row);
                }
            }
            6 => {
                let command = Command { time: now.wall, trace: None, payload: bytes };
                let _ = self.paxos.propose(now, command);
            }
            7 => drop(self.paxos.confirm(now)),
            8 => self.paxos.campaign(now),
            9 => self.restart(None),
            10 => {
                let ballot = self.paxos.ballot();
                self.paxos.supported(now, ReplicaId(2 + u64::from(first & 1)), ballot, now.mono);
            }
            11 => {
                let peer = ReplicaId(2 + u64::from(first & 1));
                self.paxos.connected(now, peer, first & 2 == 0, Micros(500));
                self.paxos.restarted(now, peer);
            }
            12 => drop(self.paxos.transfer(now, ReplicaId(2 + u64::from(first & 1)))),
            13 => {
                let voters: Vec<Member> =
                    (1..=4).filter(|n| first >> n & 1 == 0).map(member).collect();
                if let Some(leader) = voters.first().map(|voter| voter.replica) {
                    let _ = self.paxos.change(now, voters, leader);
                }
            }
            14 => self.truncate(),
            _ => self.restart(Some(usize::from(first))),
        }
        self.drain();
    }

    fn truncate(&mut self) {
        let upto = self.applied.min(self.paxos.have_upto()).min(self.paxos.truncatable());
        if upto >= self.paxos.first_slot() {
            self.paxos.truncate(upto);
        }
    }

    /// Takes the outputs until there are none, each durable before the next.
    fn drain(&mut self) {
        for _ in 0..64 {
            let next = Lsn(self.records.last().map_or(1, |(lsn, ..)| lsn.0 + 1));
            let output = self.paxos.take_output(next);
            let quiet = output.records.is_empty() && output.loads.is_empty();
            for (lsn, record) in (next.0..).map(Lsn).zip(&output.records) {
                let mut payload = Vec::new();
                record.encode_payload(&mut payload);
                let identity = record.identity().as_bytes().to_vec();
                self.records.push((lsn, identity, payload.into()));
            }
            for chosen in output.chosen {
                assert_eq!(chosen.slot, self.applied.next(), "what is chosen comes in order");
                self.applied = chosen.slot;
            }
            self.paxos.stored(self.applied);
            self.said.extend(output.messages);
            if let Some((last, ..)) = self.records.last() {
                self.paxos.persisted(self.now, *last);
            }
            for load in output.loads {
                let held = self.records.iter().find(|(lsn, ..)| *lsn == load.lsn);
                let value =
                    held.and_then(|(.., payload)| Record::decode_value(payload, load.index).ok());
                self.paxos.loaded(self.now, load.slot, load.ballot, value);
            }
            let bound = self.applied.0 + 2 * WINDOW_SLOTS_MAX + (1 << 16);
            assert!(self.paxos.last_slot().0 <= bound, "the log does not jump");
            if quiet {
                break;
            }
        }
    }

    /// A crash and a start from the log, of which one record may be damaged.
    fn restart(&mut self, damaged: Option<usize>) {
        self.starts += 1;
        let mut recovery = Recovery::new(options(self.me, self.starts));
        for (place, (lsn, identity, payload)) in self.records.iter().enumerate() {
            // The first record says that there is a group.
            let pushed = if damaged.is_some_and(|damaged| damaged + 1 == place) {
                recovery.push_damaged(*lsn, identity)
            } else {
                let record = Record::decode(identity, payload);
                recovery.push(*lsn, record.expect("what was written is read"))
            };
            pushed.unwrap_or_else(|error| panic!("its own log contradicts itself: {error}"));
        }
        self.paxos = match recovery.finish(self.applied) {
            Ok(paxos) => paxos,
            Err(error) => panic!("it cannot start from its own log: {error}"),
        };
        self.now.mono = self.now.mono + GRANT_SPAN;
    }

    /// For the corpus: everything it holds.
    pub(crate) fn values(&self) -> usize {
        let entries =
            self.records.iter().filter_map(|(_, identity, payload)| {
                match Record::decode(identity, payload) {
                    Ok(Record::Entries { values, .. }) => Some(values),
                    _ => None,
                }
            });
        entries.flatten().filter(|value| matches!(value, Value::Command(_))).count()
    }
}
