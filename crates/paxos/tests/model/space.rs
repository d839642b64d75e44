//! The explorer: all states that three replicas and the messages between them can reach, the
//! nearest first, each looked at once.
//!
//! What a step does to a replica depends on that replica alone. So a replica's state is made once
//! for each number that names it, by repeating what happened to that replica from its creation on,
//! and a step from it is made once too, however many states of the whole it is part of: a state of
//! the whole is three such numbers and the messages under way.
//!
//! Two choices need no steps of their own. A message that is lost is one that never arrives; and a
//! replica that is down for a while is one that got nothing meanwhile. A delivery that changes
//! nothing and says nothing is such a loss too.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use base::{ReplicaId, Slot};
use paxos::{Ballot, Message};

use crate::bugs::Bug;
use crate::replica::{COUNT, Event, Facts, Replica, Setting, Spent, voters};
use crate::words;

/// How much the adversary may do.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Campaigns of each replica.
    pub campaigns: [u8; COUNT],
    /// Crashes of each replica.
    pub crashes: [u8; COUNT],
    /// Time-outs of each replica.
    pub ticks: [u8; COUNT],
    /// Commands that wait at each replica until it leads.
    pub waiting: [u8; COUNT],
    /// Commands at any later time, whoever takes them.
    pub commands: u8,
    /// Messages that arrive and remain under way.
    pub duplicates: u8,
    /// Changes of the members.
    pub changes: u8,
    /// Hints of what is chosen are written at once, not only after a second.
    pub hints: bool,
    /// Steps from the beginning.
    pub depth: usize,
    /// States; when there are more the search ends unfinished.
    pub states: usize,
    pub bug: Option<Bug>,
    pub judged: Judged,
}

impl Bounds {
    /// Nothing happens.
    pub const NONE: Bounds = Bounds {
        campaigns: [0; COUNT],
        crashes: [0; COUNT],
        ticks: [0; COUNT],
        waiting: [0; COUNT],
        commands: 0,
        duplicates: 0,
        changes: 0,
        hints: false,
        depth: usize::MAX,
        states: 10_000_000,
        bug: None,
        judged: Judged::Steps,
    };
}

/// What a search takes for wrong. A fault shows in a step at once, and in what comes of it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judged {
    /// Two values of a slot.
    Outcome,
    /// What no replica can see by itself, too: a leader without what is chosen.
    Whole,
    /// What a single replica does, too: messages that vouch for what is not on the disk.
    Steps,
}

/// What a search found.
#[derive(Debug, Default)]
pub struct Found {
    /// Different states of the whole.
    pub states: usize,
    /// Different states of one replica.
    pub replicas: usize,
    /// Steps to the farthest state.
    pub depth: usize,
    /// Everything within the bounds was seen.
    pub complete: bool,
    pub seen: Seen,
    /// What is wrong, and how it came to it, in as few steps as possible.
    pub wrong: Option<String>,
}

/// In how many states something worth reaching is so.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Two replicas lead at a time.
    pub two_leaders: usize,
    /// A value is chosen under two ballots.
    pub chosen_again: usize,
    /// A value is chosen, and nobody knows.
    pub unknown: usize,
    /// All replicas know of a chosen value.
    pub known_by_all: usize,
    /// A value is chosen in the second epoch.
    pub second_epoch: usize,
}

/// Names a replica's state.
type At = u32;
/// Names a message with its sender and receiver.
type Letter = u32;

/// Where a step leads to, and what is said meanwhile; nothing where nothing comes of it.
type Stepped = Option<(At, Vec<Letter>)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Move {
    Deliver(Letter),
    Repeat(Letter),
    Campaign(u8),
    Propose(u8),
    Change(u8),
    Tick(u8),
    Sync(u8),
    Crash(u8),
    CrashStored(u8),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    at: [At; COUNT],
    /// Sorted; one that is under way twice stands here twice.
    net: Vec<Letter>,
    duplicates: u8,
}

/// A replica's state: what happened last, and the state before.
struct Node {
    before: Option<(At, Move)>,
    replica: usize,
    facts: Facts,
    /// The facts that all states with this replica are judged by, in numbers.
    votes: Vec<(Slot, Ballot, u16)>,
    learned: Vec<(Slot, u16)>,
}

/// Hashes are hashed no more.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, number: u128) {
        self.0 = number as u64;
    }
}

type Known<T> = HashMap<u128, T, std::hash::BuildHasherDefault<Same>>;

/// 128 bits: that two of some million states share them is out of the question.
fn fingerprint(of: &impl Hash) -> u128 {
    let mut halves = [0_u64; 2];
    for (salt, half) in halves.iter_mut().enumerate() {
        let mut hasher = DefaultHasher::new();
        hasher.write_usize(salt);
        of.hash(&mut hasher);
        *half = hasher.finish();
    }
    u128::from(halves[0]) << 64 | u128::from(halves[1])
}

struct Space {
    bounds: Bounds,
    nodes: Vec<Node>,
    known_nodes: Known<At>,
    letters: Vec<(ReplicaId, ReplicaId, Message)>,
    known_letters: Known<Letter>,
    steps: HashMap<(At, Move), Stepped>,
    values: Vec<String>,
    /// How each state came about.
    path: Vec<(u32, Move)>,
    seen: Seen,
}

/// Looks at every state within the bounds, or at those up to the first that is wrong.
pub fn explore(bounds: Bounds) -> Found {
    let mut space = Space {
        bounds,
        nodes: Vec::new(),
        known_nodes: Known::default(),
        letters: Vec::new(),
        known_letters: Known::default(),
        steps: HashMap::new(),
        values: Vec::new(),
        path: Vec::new(),
        seen: Seen::default(),
    };
    space.run()
}

impl Space {
    fn run(&mut self) -> Found {
        let mut at = [0; COUNT];
        for (index, at) in at.iter_mut().enumerate() {
            *at = self.node(None, index, &self.create(index));
        }
        let first = State { at, net: Vec::new(), duplicates: 0 };
        let mut known: Known<()> = Known::default();
        known.insert(fingerprint(&first), ());
        self.path.push((0, Move::Sync(0)));
        let mut level = vec![(0_u32, first)];
        let mut found = Found::default();
        'search: while !level.is_empty() && found.depth < self.bounds.depth {
            let mut next = Vec::new();
            for (number, state) in &level {
                for choice in self.moves(state) {
                    let to = match self.go(state, choice) {
                        Ok(None) => continue,
                        Ok(Some(to)) => to,
                        Err(wrong) => {
                            found.wrong = Some(self.tell(*number, choice, &wrong));
                            break 'search;
                        }
                    };
                    let Entry::Vacant(free) = known.entry(fingerprint(&to)) else { continue };
                    free.insert(());
                    if let Err(wrong) = self.judge(&to) {
                        found.wrong = Some(self.tell(*number, choice, &wrong));
                        break 'search;
                    }
                    next.push((self.path.len() as u32, to));
                    self.path.push((*number, choice));
                    if self.path.len() >= self.bounds.states {
                        break 'search;
                    }
                }
            }
            found.depth += usize::from(!next.is_empty());
            found.complete = next.is_empty();
            level = next;
        }
        Found { states: self.path.len(), replicas: self.nodes.len(), seen: self.seen, ..found }
    }

    fn create(&self, index: usize) -> Replica {
        let bounds = &self.bounds;
        let me = ReplicaId(index as u64 + 1);
        let judged = bounds.judged == Judged::Steps;
        let (waiting, hints, bug) = (bounds.waiting[index], bounds.hints, bounds.bug);
        Replica::create(me, Setting { waiting, hints, bug, judged })
    }

    fn node(&mut self, before: Option<(At, Move)>, replica: usize, state: &Replica) -> At {
        let print = fingerprint(&(replica, state.picture()));
        if let Some(at) = self.known_nodes.get(&print) {
            return *at;
        }
        let facts = state.facts();
        let mut number = |value: &String| {
            let known = self.values.iter().position(|known| known == value);
            known.unwrap_or_else(|| {
                self.values.push(value.clone());
                self.values.len() - 1
            }) as u16
        };
        let votes = facts.votes.iter().map(|(s, b, value)| (*s, *b, number(value))).collect();
        let learned = facts.learned.iter().map(|(slot, value)| (*slot, number(value))).collect();
        self.nodes.push(Node { before, replica, facts, votes, learned });
        let at = self.nodes.len() as At - 1;
        self.known_nodes.insert(print, at);
        at
    }

    fn letter(&mut self, from: ReplicaId, to: ReplicaId, message: Message) -> Letter {
        let print = fingerprint(&(from, to, base::codec::encode(&message)));
        let new = self.letters.len() as Letter;
        let letter = *self.known_letters.entry(print).or_insert(new);
        if letter == new {
            self.letters.push((from, to, message));
        }
        letter
    }

    /// What can happen next.
    fn moves(&self, state: &State) -> Vec<Move> {
        let bounds = &self.bounds;
        let mut moves = Vec::new();
        let facts = |index: usize| &self.nodes[state.at[index] as usize].facts;
        let spent = (0..COUNT).map(|index| facts(index).spent);
        let later =
            |(index, spent): (usize, Spent)| spent.commands.saturating_sub(bounds.waiting[index]);
        let commands: u8 = spent.clone().enumerate().map(later).sum();
        let changes: u8 = spent.map(|spent| spent.changes).sum();
        for index in 0..COUNT {
            let replica = index as u8;
            let facts = facts(index);
            let (leads, spent) = (facts.leads.is_some(), facts.spent);
            let crashes = spent.crashes < bounds.crashes[index];
            let choices = [
                (facts.unsynced, Move::Sync(replica)),
                (!leads && spent.campaigns < bounds.campaigns[index], Move::Campaign(replica)),
                (leads && commands < bounds.commands, Move::Propose(replica)),
                (leads && changes < bounds.changes, Move::Change(replica)),
                (spent.ticks < bounds.ticks[index], Move::Tick(replica)),
                (crashes, Move::Crash(replica)),
                (crashes && !facts.learned.is_empty(), Move::CrashStored(replica)),
            ];
            moves.extend(choices.into_iter().filter(|(may, _)| *may).map(|(_, choice)| choice));
        }
        let mut letters = state.net.clone();
        letters.dedup();
        moves.extend(letters.iter().map(|letter| Move::Deliver(*letter)));
        if state.duplicates < bounds.duplicates {
            moves.extend(letters.iter().map(|letter| Move::Repeat(*letter)));
        }
        moves
    }

    fn event(&self, choice: Move) -> (usize, Event) {
        match choice {
            Move::Deliver(letter) | Move::Repeat(letter) => {
                let (from, to, message) = &self.letters[letter as usize];
                (to.0 as usize - 1, Event::Deliver(*from, message.clone()))
            }
            Move::Campaign(replica) => (replica.into(), Event::Campaign),
            Move::Propose(replica) => (replica.into(), Event::Propose),
            Move::Change(replica) => (replica.into(), Event::Change),
            Move::Tick(replica) => (replica.into(), Event::Tick),
            Move::Sync(replica) => (replica.into(), Event::Sync),
            Move::Crash(replica) => (replica.into(), Event::Crash { stored: false }),
            Move::CrashStored(replica) => (replica.into(), Event::Crash { stored: true }),
        }
    }

    /// Makes a replica's state anew.
    fn rebuild(&self, at: At) -> Replica {
        let mut events = Vec::new();
        let mut node = &self.nodes[at as usize];
        while let Some((before, choice)) = node.before {
            events.push(choice);
            node = &self.nodes[before as usize];
        }
        let mut replica = self.create(node.replica);
        for choice in events.into_iter().rev() {
            replica.step(&self.event(choice).1).expect("what was right once is right again");
        }
        replica
    }

    /// What a step does to its replica.
    fn step(&mut self, at: At, choice: Move) -> Result<Stepped, String> {
        if let Some(known) = self.steps.get(&(at, choice)) {
            return Ok(known.clone());
        }
        let (index, event) = self.event(choice);
        let mut replica = self.rebuild(at);
        let sent = replica.step(&event)?;
        let me = ReplicaId(index as u64 + 1);
        // Nobody granted time to anybody, so that releasing it says nothing: these are all lost.
        let sent = sent.into_iter().filter(|(_, message)| !matches!(message, Message::Release(_)));
        let sent: Vec<Letter> = sent.map(|(to, message)| self.letter(me, to, message)).collect();
        let to = self.node(Some((at, choice)), index, &replica);
        let stepped = (to != at || !sent.is_empty()).then_some((to, sent));
        self.steps.insert((at, choice), stepped.clone());
        Ok(stepped)
    }

    fn go(&mut self, state: &State, choice: Move) -> Result<Option<State>, String> {
        let (index, delivered) = match choice {
            Move::Deliver(letter) | Move::Repeat(letter) => {
                (self.letters[letter as usize].1.0 as usize - 1, Some(letter))
            }
            Move::Campaign(replica)
            | Move::Propose(replica)
            | Move::Change(replica)
            | Move::Tick(replica)
            | Move::Sync(replica)
            | Move::Crash(replica)
            | Move::CrashStored(replica) => (replica.into(), None),
        };
        let same = delivered.map_or(choice, Move::Deliver);
        let Some((at, sent)) = self.step(state.at[index], same)? else { return Ok(None) };
        let mut to = state.clone();
        to.at[index] = at;
        if let Some(letter) = delivered {
            if choice == same {
                let place = to.net.iter().position(|other| *other == letter);
                to.net.remove(place.expect("it is under way"));
            } else {
                to.duplicates += 1;
            }
        }
        to.net.extend(sent);
        to.net.sort_unstable();
        self.forget_dead(&mut to);
        Ok(Some(to))
    }

    /// Takes away the promises and votes for a ballot that their receiver has left behind: it never
    /// leads under it again, and heeds nothing that is said of it.
    fn forget_dead(&self, state: &mut State) {
        if self.bounds.bug.is_some() {
            return;
        }
        let at = state.at;
        state.net.retain(|letter| {
            let (_, to, message) = &self.letters[*letter as usize];
            let ballot = match message {
                Message::Promise(promise) => promise.ballot,
                Message::Accepted(accepted) => accepted.ballot,
                _ => return true,
            };
            self.nodes[at[to.0 as usize - 1] as usize].facts.ballot <= ballot
        });
    }

    // ------------------------------------------------------------------ what must hold

    /// The values that are or were accepted by a quorum under one ballot, in the order of slots.
    fn chosen(&self, state: &State) -> Vec<(Slot, Ballot, u16)> {
        let mut votes: Vec<(Slot, Ballot, u16, u64)> = Vec::with_capacity(16);
        for (index, at) in state.at.iter().enumerate() {
            let of = self.nodes[*at as usize].votes.iter();
            votes.extend(of.map(|(slot, ballot, value)| (*slot, *ballot, *value, index as u64)));
        }
        votes.sort_unstable();
        let mut chosen = Vec::new();
        for same in votes.chunk_by(|a, b| (a.0, a.1, a.2) == (b.0, b.1, b.2)) {
            let (slot, ballot, value, _) = same[0];
            let first = if ballot.epoch == 1 { 0 } else { COUNT as u64 - 2 };
            let voters = COUNT as u64 - first;
            let count = same.iter().filter(|vote| vote.3 >= first).count() as u64;
            if count > voters / 2 {
                chosen.push((slot, ballot, value));
            }
        }
        chosen
    }

    fn value(&self, value: u16) -> &str {
        &self.values[usize::from(value)]
    }

    fn judge(&mut self, state: &State) -> Result<(), String> {
        let chosen = self.chosen(state);
        // Within an epoch, and whatever lies before the slot: one value (I1).
        for pair in chosen.windows(2) {
            let ((slot, one, first), (other, two, second)) = (pair[0], pair[1]);
            if slot == other && one.epoch == two.epoch && first != second {
                let (first, second) = (self.value(first), self.value(second));
                return Err(format!(
                    "I1: in {slot} {first} is chosen under {one} and {second} under {two}"
                ));
            }
        }
        let nodes = state.at.map(|at| &self.nodes[at as usize]);
        let mut known: Vec<(Slot, u16)> = Vec::with_capacity(8);
        for (index, node) in nodes.iter().enumerate() {
            let me = index + 1;
            for (slot, value) in &node.learned {
                let sure = self.bounds.judged >= Judged::Whole;
                if sure && !chosen.iter().any(|(at, _, what)| at == slot && what == value) {
                    let value = self.value(*value);
                    return Err(format!("r{me} learned {value} in {slot}, which is not chosen"));
                }
                // Over all epochs: what was chosen behind the end of one is never learned.
                match known.iter().find(|(at, _)| at == slot) {
                    Some((_, other)) if other != value => {
                        let (one, two) = (self.value(*other), self.value(*value));
                        return Err(format!("I1: in {slot} {one} and {two} are learned"));
                    }
                    Some(_) => {}
                    None => known.push((*slot, *value)),
                }
            }
            let Some(log) = &node.facts.leads else { continue };
            if self.bounds.judged < Judged::Whole {
                continue;
            }
            let ballot = node.facts.ballot;
            for (slot, under, value) in &chosen {
                let over = under.epoch < ballot.epoch && *slot >= node.facts.epoch_first;
                let settled = over || *slot < node.facts.log_first;
                let value = self.value(*value);
                if *under < ballot && !settled && log.get(slot).map(String::as_str) != Some(value) {
                    return Err(format!(
                        "I7: r{me} leads under {ballot} without {value}, chosen in {slot} under {under}"
                    ));
                }
            }
            for other in &nodes[..index] {
                if other.facts.leads.is_some() && other.facts.ballot == ballot {
                    return Err(format!("two lead under {ballot}"));
                }
            }
        }
        let leaders = nodes.iter().filter(|node| node.facts.leads.is_some()).count();
        let learned = nodes.iter().filter(|node| !node.learned.is_empty()).count();
        let again = chosen.windows(2).any(|pair| pair[0].0 == pair[1].0);
        let second = chosen.iter().any(|(_, ballot, _)| ballot.epoch > 1);
        self.seen.two_leaders += usize::from(leaders > 1);
        self.seen.chosen_again += usize::from(again);
        self.seen.unknown += usize::from(!chosen.is_empty() && learned == 0);
        self.seen.known_by_all += usize::from(learned == COUNT);
        self.seen.second_epoch += usize::from(second);
        Ok(())
    }

    // ------------------------------------------------------------------ how it came about

    fn words(&self, choice: Move) -> String {
        let (index, event) = self.event(choice);
        let me = index + 1;
        match event {
            Event::Deliver(from, message) => {
                let twice = matches!(choice, Move::Repeat(_));
                let twice = if twice { ", and will once more" } else { "" };
                format!("{from} → r{me} arrives: {}{twice}", words::message(&message))
            }
            Event::Campaign => format!("r{me} campaigns"),
            Event::Propose => format!("r{me} proposes a command"),
            Event::Change => format!("r{me} proposes that the members are {}", members()),
            Event::Tick => format!("r{me} waits for 250 ms"),
            Event::Sync => format!("r{me} has its oldest unsynced record on the disk"),
            Event::Crash { stored: false } => format!("r{me} crashes and starts again"),
            Event::Crash { stored: true } => {
                format!("r{me} crashes and starts again, with all executed that it learned")
            }
        }
    }

    /// The steps to a state, and what is wrong in it.
    fn tell(&self, number: u32, last: Move, wrong: &str) -> String {
        let mut choices = vec![last];
        let mut number = number as usize;
        while number > 0 {
            choices.push(self.path[number].1);
            number = self.path[number].0 as usize;
        }
        let mut at: Vec<Replica> = (0..COUNT).map(|index| self.create(index)).collect();
        let mut story = String::new();
        for (step, choice) in choices.iter().rev().enumerate() {
            let _ = writeln!(story, "{:3}. {}", step + 1, self.words(*choice));
            let (index, event) = self.event(*choice);
            for (to, message) in at[index].step(&event).unwrap_or_default() {
                let me = index + 1;
                let _ = writeln!(story, "       r{me} → {to} {}", words::message(&message));
            }
        }
        for (index, replica) in at.iter().enumerate() {
            let _ = writeln!(story, "on the disk of r{}: {}", index + 1, replica.disk());
        }
        let _ = write!(story, "wrong after {} steps: {wrong}", choices.len());
        story
    }
}

fn members() -> String {
    let ids: Vec<String> = voters(2).iter().map(|voter| voter.replica.to_string()).collect();
    ids.join(" ")
}
