//! The explorer: all states that a few groups, a shard master and the commands between them can
//! reach, the nearest first, each looked at once.
//!
//! A group is its log, so a state of a group is what a sequence of commands makes of it. It is made
//! once for each number that names it, by applying those commands to a real state machine, and each
//! step from it is made once too, however many states of the whole it is part of.
//!
//! What any driver could ever have said may arrive at any time from then on, any number of times or
//! never: commands are a set that only grows. A driver is whoever leads at the moment, so it may
//! know all that any group ever answered, and nothing newer: answers are such a set, too. Whatever
//! messages are lost, doubled, late or in another order, and whichever leaders crash and forget, is
//! one of the schedules of that.

mod story;

use std::collections::{BTreeMap, BTreeSet};

use router::{HandoffPhase, HandoffState};

use super::drivers::{self, Master};
use super::{Bounds, Bug, GROUPS_MAX, REFERENCE, request};
use crate::tests::*;

/// Names a state of a group: what its log has made of it.
type At = u32;
/// Names a command with the group that it is for.
type Letter = u32;
/// Names a set of numbers.
type Set = u32;

/// What a search found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Different states of the whole.
    pub(super) states: usize,
    /// Different states of one group.
    pub(super) logs: usize,
    /// Different commands of drivers.
    pub(super) letters: usize,
    /// Steps to the farthest state.
    pub(super) depth: usize,
    /// States in which nothing can happen any more.
    pub(super) ends: usize,
    /// In how many of them the last owner is not the first.
    pub(super) moved: usize,
    /// Everything within the bounds was seen.
    pub(super) complete: bool,
    /// What is wrong, and how it came to it, in as few steps as possible.
    pub(super) wrong: Option<String>,
}

/// What the shard master's log takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Plan,
    GiveUp,
    Done,
    Cancelled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Deliver(Letter),
    /// Request and group.
    Ask(u8, u8),
    Master(Turn),
    /// A group loses what it did last.
    Forget(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    at: [At; GROUPS_MAX],
    /// A group that has all shards for ever, and executes what the others execute.
    reference: At,
    master: u32,
    letters: Set,
    news: Set,
}

/// What is known of a state of a group.
struct Node {
    /// The state before, and the command that led here.
    before: Option<(At, u32)>,
    group: usize,
    /// Epoch of each shard that the group serves.
    served: Vec<Option<ShardEpoch>>,
    /// What it has under each key, with its version.
    values: Vec<(Option<Bytes>, Version)>,
    /// Hand-offs that it is to drive.
    outgoing: Vec<(CopyId, GroupId)>,
    /// What it answers of each hand-off.
    news: Vec<u32>,
    /// Its own leader's commands that need nothing of others: slices of garbage.
    garbage: Option<Letter>,
    /// A hand-off brought something else than the source has.
    unequal: bool,
}

/// What came of a step of a group.
#[derive(Clone)]
struct Stepped {
    to: At,
    reply: Reply,
}

/// Numbers for values: the same for the same.
struct Names<T> {
    all: Vec<T>,
    known: BTreeMap<T, u32>,
}

impl<T: Clone + Ord> Names<T> {
    fn new() -> Names<T> {
        Names { all: Vec::new(), known: BTreeMap::new() }
    }

    fn of(&mut self, what: T) -> u32 {
        if let Some(number) = self.known.get(&what) {
            return *number;
        }
        let number = self.all.len() as u32;
        self.all.push(what.clone());
        self.known.insert(what, number);
        number
    }
}

struct Space {
    bounds: Bounds,
    nodes: Vec<Node>,
    known_nodes: BTreeMap<(usize, u128), At>,
    commands: Names<Bytes>,
    /// Group and command.
    letters: Names<(usize, u32)>,
    news: Names<(usize, Vec<u8>)>,
    states_of_news: Vec<HandoffState>,
    sets: Names<Vec<u32>>,
    masters: Names<Master>,
    steps: BTreeMap<(At, u32), Stepped>,
    from_source: BTreeMap<(At, Set), Set>,
    from_master: BTreeMap<(u32, Set), Set>,
    /// How each state came about.
    path: Vec<(u32, Move)>,
}

/// Looks at every state within the bounds, or at those up to the first that is wrong.
pub(super) fn explore(bounds: Bounds) -> Found {
    let mut space = Space {
        bounds,
        nodes: Vec::new(),
        known_nodes: BTreeMap::new(),
        commands: Names::new(),
        letters: Names::new(),
        news: Names::new(),
        states_of_news: Vec::new(),
        sets: Names::new(),
        masters: Names::new(),
        steps: BTreeMap::new(),
        from_source: BTreeMap::new(),
        from_master: BTreeMap::new(),
        path: Vec::new(),
    };
    space.run()
}

impl Space {
    fn run(&mut self) -> Found {
        let first = self.first();
        let mut known = BTreeSet::from([first]);
        self.path.push((0, Move::Master(Turn::Plan)));
        let mut level = vec![(0_u32, first)];
        let mut found = Found::default();
        'search: while !level.is_empty() {
            let mut next = Vec::new();
            for (number, state) in &level {
                let mut is_end = true;
                for choice in self.moves(state) {
                    let to = match self.go(state, choice) {
                        Ok(None) => continue,
                        Ok(Some(to)) => to,
                        Err(wrong) => {
                            found.wrong = Some(self.tell(*number, Some(choice), &wrong));
                            break 'search;
                        }
                    };
                    is_end = false;
                    if !known.insert(to) {
                        continue;
                    }
                    if let Err(wrong) = self.judge(&to) {
                        found.wrong = Some(self.tell(*number, Some(choice), &wrong));
                        break 'search;
                    }
                    next.push((self.path.len() as u32, to));
                    self.path.push((*number, choice));
                }
                if is_end {
                    found.ends += 1;
                    match self.judge_end(state) {
                        Ok(moved) => found.moved += usize::from(moved),
                        Err(wrong) => {
                            found.wrong = Some(self.tell(*number, None, &wrong));
                            break 'search;
                        }
                    }
                }
            }
            if known.len() > self.bounds.states {
                break;
            }
            found.depth += usize::from(!next.is_empty());
            level = next;
            found.complete = level.is_empty();
        }
        found.states = known.len();
        found.logs = self.nodes.len();
        found.letters = self.letters.all.len();
        found
    }

    /// The first group has all shards, and nothing is planned.
    fn first(&mut self) -> State {
        let groups = self.bounds.groups;
        let shards = self.bounds.shards_of(ShardEpoch(1));
        let create = Command::Create { copy: CopyId(1), shards };
        let create = self.commands.of(create.encode());
        let mut at = [0; GROUPS_MAX];
        for (group, at) in at.iter_mut().enumerate().take(groups) {
            *at = self.node(None, group);
        }
        at[0] = self.step(at[0], create).to;
        let blank = self.node(None, REFERENCE);
        let reference = self.step(blank, create).to;
        let master = self.masters.of(Master::new(&self.bounds));
        let empty = self.sets.of(Vec::new());
        let mut state = State { at, reference, master, letters: empty, news: empty };
        self.listen(&mut state);
        state
    }

    // ------------------------------------------------------------ states of groups

    fn create(&self, at: At) -> Replica {
        let mut commands = Vec::new();
        let mut node = &self.nodes[at as usize];
        while let Some((before, command)) = node.before {
            commands.push(command);
            node = &self.nodes[before as usize];
        }
        let mut replica = Replica::of(group_id(node.group));
        for command in commands.into_iter().rev() {
            self.apply(&mut replica, command);
        }
        replica
    }

    /// All commands have the same time: clocks are not what a hand-off rests on.
    fn apply(&self, replica: &mut Replica, command: u32) -> Reply {
        let slot = Slot(replica.log.len() as u64 + 1);
        let payload = self.commands.all[command as usize].clone();
        replica.apply_entry(Entry { slot, time: WallMillis(TIME), payload })
    }

    fn command(&self, number: u32) -> Command {
        Command::decode(&self.commands.all[number as usize]).unwrap()
    }

    fn step(&mut self, at: At, command: u32) -> Stepped {
        if let Some(stepped) = self.steps.get(&(at, command)) {
            return stepped.clone();
        }
        let mut replica = self.create(at);
        let reply = self.apply(&mut replica, command);
        let group = self.nodes[at as usize].group;
        let to = self.known(&mut replica, Some((at, command)), group);
        self.steps.insert((at, command), Stepped { to, reply: reply.clone() });
        Stepped { to, reply }
    }

    fn node(&mut self, before: Option<(At, u32)>, group: usize) -> At {
        self.known(&mut Replica::of(group_id(group)), before, group)
    }

    /// The number of a replica's state.
    fn known(&mut self, replica: &mut Replica, before: Option<(At, u32)>, group: usize) -> At {
        let print = replica.fingerprint();
        if let Some(at) = self.known_nodes.get(&(group, print)) {
            return *at;
        }
        replica.assert_sound();
        let node = self.facts(replica, before, group);
        // What is on the disk makes the same of it, whatever was flushed before.
        replica.settle_and_flush();
        replica.restart(replica.log.len());
        assert_eq!(replica.fingerprint(), print, "a restart changes nothing");
        assert_eq!(replica.server.outgoing(), node.outgoing, "a restart changes nothing");
        let at = self.nodes.len() as At;
        self.nodes.push(node);
        self.known_nodes.insert((group, print), at);
        at
    }

    fn facts(&mut self, replica: &mut Replica, before: Option<(At, u32)>, group: usize) -> Node {
        let (server, store) = replica.parts();
        let shards: Vec<ShardId> = self.bounds.shards().collect();
        let served = shards.iter().map(|shard| server.epoch(*shard)).collect();
        let keys = self.bounds.keys();
        let value = |(shard, key): &(ShardId, Bytes)| {
            let read = server.read(&store, *shard, &KvOp::Get { key: key.clone() }).unwrap();
            match read.body {
                Ok(Answer::Value(value)) => (value, read.header.version),
                Ok(_) | Err(_) => (None, Version(0)),
            }
        };
        let values = keys.iter().map(value).collect();
        let migs: Vec<CopyId> = (0..self.bounds.plan.len()).map(drivers::mig).collect();
        let answers: Vec<HandoffState> = migs.iter().map(|mig| server.handoff(*mig)).collect();
        let unequal = answers.iter().any(|answer| !answer.unequal.is_empty());
        let garbage = server.garbage().map(|command| command.encode());
        let outgoing = server.outgoing().to_vec();
        let news = answers.into_iter().map(|answer| self.news_of(group, answer)).collect();
        let garbage = garbage.map(|command| {
            let command = self.commands.of(command);
            self.letters.of((group, command))
        });
        Node { before, group, served, values, outgoing, news, garbage, unequal }
    }

    /// Only of a copy that grows it matters to anybody how far it is.
    fn news_of(&mut self, group: usize, mut state: HandoffState) -> u32 {
        if state.phase != HandoffPhase::In {
            state.shards.clear();
        }
        let number = self.news.of((group, base::codec::encode(&state).to_vec()));
        if number as usize == self.states_of_news.len() {
            self.states_of_news.push(state);
        }
        number
    }

    // ------------------------------------------------------------ states of the whole

    fn moves(&self, state: &State) -> Vec<Move> {
        let letters = &self.sets.all[state.letters as usize];
        let mut moves: Vec<Move> = letters.iter().map(|letter| Move::Deliver(*letter)).collect();
        for request in 0..self.bounds.requests.len() {
            for group in 0..self.bounds.groups {
                moves.push(Move::Ask(request as u8, group as u8));
            }
        }
        moves.extend([Turn::Plan, Turn::GiveUp, Turn::Done, Turn::Cancelled].map(Move::Master));
        if self.bounds.bug == Some(Bug::RefusalForgotten) {
            moves.extend((0..self.bounds.groups).map(|group| Move::Forget(group as u8)));
        }
        moves
    }

    /// Where a step leads to; nowhere where nothing comes of it.
    fn go(&mut self, state: &State, choice: Move) -> Result<Option<State>, String> {
        let mut to = *state;
        match choice {
            Move::Deliver(letter) => {
                let (group, command) = self.letters.all[letter as usize];
                to.at[group] = self.step(state.at[group], command).to;
            }
            Move::Ask(number, group) => {
                let group = usize::from(group);
                let command = request(&self.bounds, usize::from(number)).encode();
                let command = self.commands.of(command);
                let stepped = self.step(state.at[group], command);
                if let Err(ErrorReply::NotReady(_) | ErrorReply::Moved { .. }) = stepped.reply.body
                {
                    let left_a_trace = stepped.to != state.at[group];
                    return if left_a_trace {
                        Err("a refusal left a trace".into())
                    } else {
                        Ok(None)
                    };
                }
                let same = self.step(state.reference, command);
                to.at[group] = stepped.to;
                to.reference = same.to;
                let (is, must) = (&stepped.reply, &same.reply);
                if (&is.body, is.header.version) != (&must.body, must.header.version) {
                    return Err(format!(
                        "{} answers: {}; a group that never gave anything away: {}",
                        group_id(group),
                        words::reply(is),
                        words::reply(must)
                    ));
                }
            }
            Move::Master(turn) => {
                let mut master = self.masters.all[state.master as usize].clone();
                let heard = self.heard(state.news);
                let changed = match turn {
                    Turn::Plan => master.plan(&self.bounds),
                    Turn::GiveUp => master.give_up(),
                    Turn::Done => master.done(&heard, self.bounds.bug),
                    Turn::Cancelled => master.cancelled(&heard, self.bounds.bug),
                };
                if !changed {
                    return Ok(None);
                }
                to.master = self.masters.of(master);
            }
            Move::Forget(group) => {
                let group = usize::from(group);
                let node = &self.nodes[state.at[group] as usize];
                let refused = |command| matches!(self.command(command), Command::Refuse { .. });
                match node.before {
                    Some((before, command)) if refused(command) => to.at[group] = before,
                    Some(_) | None => return Ok(None),
                }
            }
        }
        if to == *state {
            return Ok(None);
        }
        self.listen(&mut to);
        Ok(Some(to))
    }

    fn heard(&self, news: Set) -> Vec<(GroupId, &HandoffState)> {
        let news = self.sets.all[news as usize].iter();
        let of = |number: &u32| {
            let group = self.news.all[*number as usize].0;
            (group_id(group), &self.states_of_news[*number as usize])
        };
        news.map(of).collect()
    }

    /// The groups may be asked, and whoever drives may say something by all that was ever heard.
    fn listen(&mut self, state: &mut State) {
        let groups = self.bounds.groups;
        let heard: Vec<u32> = state.at[..groups]
            .iter()
            .flat_map(|at| self.nodes[*at as usize].news.clone())
            .collect();
        state.news = self.union(state.news, heard);
        for group in 0..groups {
            let said = self.said_by_source(state.at[group], state.news);
            let garbage = self.nodes[state.at[group] as usize].garbage;
            let said: Vec<u32> =
                self.sets.all[said as usize].iter().copied().chain(garbage).collect();
            state.letters = self.union(state.letters, said);
        }
        let said = self.said_by_master(state.master, state.news);
        let said = self.sets.all[said as usize].clone();
        state.letters = self.union(state.letters, said);
        // A destination refuses what the routes list no more.
        let over = self.masters.all[state.master as usize].over();
        for group in 0..groups {
            let at = state.at[group];
            let is_left = |news: &u32| {
                let known = &self.states_of_news[*news as usize];
                known.phase == HandoffPhase::In && over.contains(&known.mig)
            };
            let left: Vec<u32> =
                self.nodes[at as usize].news.iter().copied().filter(is_left).collect();
            for news in left {
                let mig = self.states_of_news[news as usize].mig;
                let refuse = self.create(at).server.refuse_incoming(mig);
                let refuse = self.commands.of(refuse.unwrap().encode());
                let letter = self.letters.of((group, refuse));
                state.letters = self.union(state.letters, vec![letter]);
            }
        }
    }

    fn said_by_source(&mut self, at: At, news: Set) -> Set {
        if let Some(said) = self.from_source.get(&(at, news)) {
            return *said;
        }
        let node = &self.nodes[at as usize];
        let mut said = Vec::new();
        if !node.outgoing.is_empty() {
            let here = group_id(node.group);
            let mut replica = self.create(at);
            for (mig, dst) in node.outgoing.clone() {
                let heard = self.heard(news);
                let heard = heard.iter().filter(|(group, there)| *group == dst && there.mig == mig);
                for (_, there) in heard {
                    let bug = self.bounds.bug;
                    said.extend(drivers::by_source(
                        &mut replica,
                        (mig, here, dst),
                        there,
                        self.bounds.part_bytes,
                        bug,
                    ));
                }
            }
        }
        let said = self.write(said);
        self.from_source.insert((at, news), said);
        said
    }

    fn said_by_master(&mut self, master: u32, news: Set) -> Set {
        if let Some(said) = self.from_master.get(&(master, news)) {
            return *said;
        }
        let said = self.masters.all[master as usize].says(&self.heard(news), &self.bounds);
        let said = self.write(said);
        self.from_master.insert((master, news), said);
        said
    }

    fn write(&mut self, said: Vec<(GroupId, Command)>) -> Set {
        let letters = said.into_iter().map(|(group, command)| {
            let command = self.commands.of(command.encode());
            self.letters.of((group.0 as usize - 1, command))
        });
        let mut letters: Vec<u32> = letters.collect();
        letters.sort_unstable();
        letters.dedup();
        self.sets.of(letters)
    }

    fn union(&mut self, set: Set, more: Vec<u32>) -> Set {
        let known = &self.sets.all[set as usize];
        let mut all: Vec<u32> =
            more.into_iter().filter(|one| known.binary_search(one).is_err()).collect();
        if all.is_empty() {
            return set;
        }
        all.extend(known);
        all.sort_unstable();
        all.dedup();
        self.sets.of(all)
    }

    // ------------------------------------------------------------ judgement

    /// Of each shard at most one owner, who has what a group would have that never gave it away.
    fn judge(&self, state: &State) -> Result<(), String> {
        let nodes = || state.at[..self.bounds.groups].iter().map(|at| &self.nodes[*at as usize]);
        let reference = &self.nodes[state.reference as usize];
        for (index, shard) in self.bounds.shards().enumerate() {
            let owners: Vec<&Node> = nodes().filter(|node| node.served[index].is_some()).collect();
            if owners.len() > 1 {
                let owners: Vec<GroupId> = owners.iter().map(|node| group_id(node.group)).collect();
                return Err(format!("{shard} is served by {owners:?}"));
            }
            let Some(owner) = owners.first() else { continue };
            for (number, (of, key)) in self.bounds.keys().iter().enumerate() {
                let (is, must) = (&owner.values[number], &reference.values[number]);
                if *of == shard && is != must {
                    let key = String::from_utf8_lossy(key);
                    return Err(format!("{key} is {is:?}, and must be {must:?}"));
                }
            }
        }
        match nodes().find(|node| node.unequal) {
            Some(node) => Err(format!("a copy at {} is not what it must be", group_id(node.group))),
            None => Ok(()),
        }
    }

    /// Where nothing can happen any more all is where the shard master thinks, every request is
    /// executed, and nothing is left to delete. Whether a shard has moved.
    fn judge_end(&self, state: &State) -> Result<bool, String> {
        let master = &self.masters.all[state.master as usize];
        if !master.is_idle() {
            return Err("nothing can happen, and a hand-off is under way".to_owned());
        }
        for group in 0..self.bounds.groups {
            let node = &self.nodes[state.at[group] as usize];
            let must = (master.owner == group_id(group)).then_some(master.epoch);
            if let Some(is) = node.served.iter().find(|epoch| **epoch != must) {
                return Err(format!(
                    "nothing can happen, and {} serves under {is:?} what it should serve under \
                     {must:?}",
                    group_id(group)
                ));
            }
            if node.garbage.is_some() {
                return Err(format!("{} has garbage at the end", group_id(group)));
            }
        }
        Ok(master.owner != group_id(0))
    }
}

impl Replica {
    /// Two states with the same fingerprint do the same for ever.
    fn fingerprint(&mut self) -> u128 {
        let digest = self.server.digest().unwrap();
        let told = self.told();
        digest ^ xxhash_rust::xxh3::xxh3_128(format!("{told:?}").as_bytes())
    }
}

fn group_id(group: usize) -> GroupId {
    GroupId(group as u64 + 1)
}

const TIME: u64 = 1_000;
