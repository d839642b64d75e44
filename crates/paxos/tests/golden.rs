//! Golden scripts: one situation a file in `golden/`, told step by step with what comes of each step
//! (docs/testing.md).
#![allow(clippy::unwrap_used)]

mod scripts;
mod words;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use base::{Lsn, ReplicaId, Slot, WallMillis};
use bytes::Bytes;
use paxos::{Ballot, ChangeRefusal, Command, HeartbeatRow, Message, Record, Refusal};
use world::{USUAL, World, id, member};

/// What a reader has been told of a replica.
#[derive(Clone, Default)]
struct Told {
    written: Lsn,
    learned: usize,
    leads: Option<Ballot>,
    epoch: u32,
}

/// A world and the reader's knowledge of it.
struct Stage {
    world: World,
    told: BTreeMap<ReplicaId, Told>,
    /// What came of the present step.
    text: String,
}

impl Stage {
    /// A group of so many voters, and so many replicas that learn. Nobody has campaigned.
    fn new(voters: u64, learners: u64) -> Stage {
        let mut world = World::with_learners(1, voters, learners, USUAL);
        world.copies = false;
        let told = world.ids().into_iter().map(|id| (id, Told::default())).collect();
        let mut stage = Stage { world, told, text: String::new() };
        for replica in stage.world.ids() {
            stage.calm(replica);
        }
        stage.look(0);
        stage.text.clear();
        stage
    }

    /// A replica hears from all others that they hear a leader, so that it campaigns only when the
    /// script says so.
    fn calm(&mut self, replica: ReplicaId) {
        let happy = Ballot { epoch: u32::MAX, round: 0, replica: ReplicaId(u64::MAX) };
        let row = HeartbeatRow { leader: Some(happy), ..HeartbeatRow::default() };
        for other in self.world.ids() {
            self.world.with(replica, |paxos, now| paxos.heard(now, other, row));
        }
    }

    fn say(&mut self, indent: usize, what: &str) {
        let _ = writeln!(self.text, "{:1$}{what}", "", 2 + 2 * indent);
    }

    /// Tells what is new: records, messages from this one on, values learned, and who leads.
    fn look(&mut self, indent: usize) {
        for replica in self.world.ids() {
            let mut told = self.told[&replica].clone();
            let at = &self.world.replicas[&replica];
            let records = at.disk.decode().filter(|(lsn, _)| *lsn > told.written);
            let written: Vec<String> = records.map(|(_, record)| words::record(&record)).collect();
            told.written = at.disk.last;
            let learned: Vec<String> = at.chosen[told.learned..]
                .iter()
                .map(|chosen| format!("{}={}", chosen.slot, words::value(&chosen.value)))
                .collect();
            told.learned = at.chosen.len();
            let paxos = at.paxos.as_ref();
            let leads = paxos.filter(|paxos| paxos.is_leading()).map(|paxos| paxos.ballot());
            let epoch = paxos.map_or(told.epoch, |paxos| paxos.members().epoch());
            let entered = (epoch > told.epoch).then_some(epoch);
            let before = std::mem::replace(&mut told.leads, leads);
            told.epoch = epoch;
            self.told.insert(replica, told);
            for record in written {
                self.say(indent, &format!("{replica} writes: {record}"));
            }
            for value in learned {
                self.say(indent, &format!("{replica} learns: {value}"));
            }
            if let Some(epoch) = entered {
                self.say(indent, &format!("{replica} is in epoch {epoch}"));
            }
            match (before, leads) {
                (_, Some(ballot)) if before != leads => {
                    self.say(indent, &format!("{replica} leads under {ballot}"));
                }
                (Some(_), None) => self.say(indent, &format!("{replica} leads no more")),
                (Some(_) | None, Some(_)) | (None, None) => {}
            }
        }
    }

    /// Tells of the messages from this one on.
    fn look_at_net(&mut self, from: usize, indent: usize) {
        let sent = self.world.net[from..].iter().map(|(from, to, bytes)| {
            let message: Message = base::codec::decode(bytes).unwrap();
            format!("{from} sends to {to}: {}", words::message(&message))
        });
        for line in sent.collect::<Vec<_>>() {
            self.say(indent, &line);
        }
    }

    /// Does something, and tells what came of it.
    fn act(&mut self, indent: usize, f: impl FnOnce(&mut World)) {
        let before = self.world.net.len();
        f(&mut self.world);
        self.look(indent);
        self.look_at_net(before, indent);
    }

    /// Brings messages that are under way now to their receivers.
    fn deliver(&mut self, wanted: &Wanted, again: bool) {
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.world.net).into_iter().partition(|sent| wanted.is(sent));
        self.world.net = later;
        if again {
            self.world.net.extend(now.iter().cloned());
        }
        for (from, to, bytes) in now {
            let message: Message = base::codec::decode(&bytes).unwrap();
            let cut = self.world.cut.contains(&(from, to));
            let fate = match (self.world.is_up(to), cut) {
                (false, _) => " (it is down)",
                (true, true) => " (the link is cut)",
                (true, false) => "",
            };
            self.say(0, &format!("{from} → {to}: {}{fate}", words::message(&message)));
            self.act(1, |world| world.deliver(from, to, &bytes));
        }
    }

    fn lose(&mut self, wanted: &Wanted) {
        let (lost, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.world.net).into_iter().partition(|sent| wanted.is(sent));
        self.world.net = kept;
        for (from, to, bytes) in lost {
            let message: Message = base::codec::decode(&bytes).unwrap();
            self.say(0, &format!("lost: {from} → {to} {}", words::message(&message)));
        }
    }

    fn sync(&mut self, replica: ReplicaId, indent: usize) {
        self.act(indent, |world| world.sync_all(replica));
    }

    /// Everything arrives and is synced until nothing is under way.
    fn settle(&mut self) {
        for _ in 0..50 {
            for replica in self.world.ids() {
                self.sync(replica, 0);
            }
            if self.world.net.is_empty() {
                return;
            }
            self.deliver(&Wanted::default(), false);
        }
        panic!("it does not settle");
    }

    fn crash(&mut self, replica: ReplicaId) {
        // All that was not synced is lost, where the world would lose a part of it.
        let disk = &mut self.world.replicas.get_mut(&replica).unwrap().disk;
        let synced = disk.synced;
        let gone = disk.decode().filter(|(lsn, _)| *lsn > synced);
        let gone: Vec<String> = gone.map(|(_, record)| words::record(&record)).collect();
        disk.records.retain(|(lsn, _, _)| *lsn <= synced);
        disk.last = synced;
        for record in gone {
            self.say(0, &format!("{replica} had not synced: {record}"));
        }
        self.told.get_mut(&replica).unwrap().written = synced;
        self.act(0, |world| world.crash(replica));
    }

    /// What is on a disk, and what its replica knows.
    fn show(&mut self, replica: ReplicaId) {
        let at = &self.world.replicas[&replica];
        let synced = at.disk.synced;
        let records = at.disk.decode().map(|(lsn, record)| {
            let loose = if lsn > synced { " (not synced)" } else { "" };
            format!("{replica} has on its disk: {}{loose}", words::record(&record))
        });
        let mut lines: Vec<String> = records.collect();
        lines.push(match &at.paxos {
            Some(paxos) => {
                let promised = match paxos.ballot() {
                    Ballot::ZERO => "nothing".to_owned(),
                    ballot => ballot.to_string(),
                };
                let chosen = match paxos.chosen_upto() {
                    Slot::ZERO => "nothing".to_owned(),
                    upto => format!("all up to {upto}"),
                };
                format!("{replica} promised {promised} and knows {chosen} to be chosen")
            }
            None => format!("{replica} is down"),
        });
        for line in lines {
            self.say(0, &line);
        }
    }

    /// What a quorum accepted under one ballot, by the disks; for each slot the lowest such ballot.
    fn chosen(&mut self) {
        let mut votes: BTreeMap<(Slot, Ballot), (String, BTreeSet<ReplicaId>)> = BTreeMap::new();
        for (replica, at) in &self.world.replicas {
            for (lsn, record) in at.disk.decode() {
                let Record::Entries { first, ballot, values } = record else { continue };
                for (slot, value) in (first.0..).map(Slot).zip(values) {
                    if lsn <= at.disk.synced && self.world.members_at(slot).contains(*replica) {
                        let what = (words::value(&value), BTreeSet::new());
                        votes.entry((slot, ballot)).or_insert(what).1.insert(*replica);
                    }
                }
            }
        }
        let mut last = Slot::ZERO;
        for ((slot, ballot), (value, voters)) in votes {
            let members = self.world.members_at(slot);
            let right = ballot.epoch == members.epoch() && slot > last;
            if right && voters.len() >= members.q2() {
                last = slot;
                let voters: Vec<String> = voters.iter().map(ReplicaId::to_string).collect();
                let voters = voters.join(" ");
                let known = self.world.truth.contains_key(&slot);
                let known = if known { "" } else { ", which nobody knows" };
                self.say(0, &format!("{slot} is {value}: {voters} under {ballot}{known}"));
            }
        }
    }

    /// Carries out one step.
    fn step(&mut self, line: &str) {
        let step: Vec<&str> = line.split_whitespace().collect();
        match step.as_slice() {
            [who, "campaigns"] => {
                let who = replica(who);
                self.act(0, |world| {
                    world.with(who, |paxos, now| paxos.campaign(now)).unwrap();
                });
            }
            [who, "proposes", what] => {
                let payload = Bytes::from((*what).to_owned());
                let command = Command { time: WallMillis(0), trace: None, payload };
                let who = replica(who);
                let mut refused = None;
                self.act(0, |world| {
                    let slot = world.with(who, |paxos, now| paxos.propose(now, command));
                    refused = slot.unwrap().err();
                });
                match refused {
                    Some(Refusal::NotLeader { .. }) => self.say(0, &format!("{who} does not lead")),
                    Some(Refusal::Busy) => self.say(0, &format!("{who} takes no command now")),
                    None => {}
                }
            }
            [who, "changes", "to", voters @ ..] => {
                let who = replica(who);
                let voters: Vec<ReplicaId> = voters.iter().map(|voter| replica(voter)).collect();
                let first = voters[0];
                let voters = voters.into_iter().map(|voter| member(voter.0)).collect();
                let mut refused: Option<ChangeRefusal> = None;
                self.act(0, |world| {
                    let changed = world.with(who, |paxos, now| paxos.change(now, voters, first));
                    refused = changed.unwrap().err();
                });
                assert_eq!(refused, None, "{line}");
            }
            [who, "syncs"] => self.sync(replica(who), 0),
            ["crash", who] => self.crash(replica(who)),
            ["restart", who] => {
                let who = replica(who);
                self.act(0, |world| world.restart(who));
                self.calm(who);
            }
            ["isolate", who] => self.act(0, |world| world.isolate(replica(who))),
            ["heal"] => self.act(0, World::heal),
            ["wait", millis] => {
                let millis: u64 = millis.parse().unwrap();
                self.world.advance(millis * 1_000);
                for replica in self.world.ids() {
                    self.act(0, |world| {
                        world.with(replica, |paxos, now| paxos.tick(now));
                    });
                }
            }
            ["settle"] => self.settle(),
            ["deliver", wanted @ ..] => self.deliver(&Wanted::parse(wanted), false),
            ["double", wanted @ ..] => self.deliver(&Wanted::parse(wanted), true),
            ["lose", wanted @ ..] => self.lose(&Wanted::parse(wanted)),
            ["show"] => {
                for replica in self.world.ids() {
                    self.show(replica);
                }
            }
            ["show", who] => self.show(replica(who)),
            ["chosen"] => self.chosen(),
            _ => panic!("no step: {line}"),
        }
    }
}

/// Some of the messages under way.
#[derive(Default)]
struct Wanted {
    kind: Option<String>,
    from: Option<ReplicaId>,
    to: Option<ReplicaId>,
}

impl Wanted {
    /// `[KIND] [from R] [to R]`
    fn parse(step: &[&str]) -> Wanted {
        let mut wanted = Wanted::default();
        let mut rest = step.iter();
        while let Some(word) = rest.next() {
            match *word {
                "from" => wanted.from = Some(replica(rest.next().unwrap())),
                "to" => wanted.to = Some(replica(rest.next().unwrap())),
                kind => wanted.kind = Some(kind.to_owned()),
            }
        }
        wanted
    }

    fn is(&self, (from, to, bytes): &(ReplicaId, ReplicaId, Bytes)) -> bool {
        let message: Message = base::codec::decode(bytes).unwrap();
        let name = words::message(&message);
        let name = name.split_whitespace().next();
        let kind = self.kind.as_ref().is_none_or(|kind| name == Some(kind.as_str()));
        kind && self.from.is_none_or(|r| r == *from) && self.to.is_none_or(|r| r == *to)
    }
}

fn replica(name: &str) -> ReplicaId {
    let number = name.strip_prefix('r').and_then(|number| number.parse().ok());
    id(number.unwrap_or_else(|| panic!("{name} is no replica")))
}

/// Plays the steps of a script, and writes down what comes of each.
fn play(script: &str) -> String {
    let mut stage: Option<Stage> = None;
    scripts::play(script, |step| {
        let words: Vec<&str> = step.split_whitespace().collect();
        match (words.as_slice(), &mut stage) {
            (["group", voters], _) => stage = Some(Stage::new(voters.parse().unwrap(), 0)),
            (["group", voters, "learners", learners], _) => {
                stage = Some(Stage::new(voters.parse().unwrap(), learners.parse().unwrap()));
            }
            (_, Some(stage)) => {
                stage.step(step);
                stage.world.check_logs();
                return std::mem::take(&mut stage.text);
            }
            (_, None) => panic!("a script begins with a group"),
        }
        String::new()
    })
}

#[test]
fn every_script_tells_what_it_told_before() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    scripts::check(&folder, 8, play);
}

#[test]
fn a_difference_shows_what_was_expected_and_what_came() {
    let shown = scripts::difference("> a\n  b\n> c\n", "> a\n  d\n  b\n> c\n");
    assert_eq!(shown, "  > a\n+   d\n    b\n  > c\n");
    assert_eq!(scripts::difference("a\nb\n", "a\nc\n"), "  a\n- b\n+ c\n");
}
