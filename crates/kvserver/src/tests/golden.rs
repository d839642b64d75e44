//! Golden scripts: one situation of a hand-off a file in `golden/`, told step by step with what
//! comes of each step (docs/testing.md).

#[path = "../../../paxos/tests/scripts/mod.rs"]
mod scripts;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::*;

/// Groups, each as its log makes it, and what is on its way to them.
struct Stage {
    groups: BTreeMap<GroupId, Replica>,
    /// What the reader has been told of each shard.
    told: BTreeMap<(GroupId, ShardId), String>,
    /// Commands that may arrive at any time from here on, and as often as the script likes.
    letters: Vec<(GroupId, Command)>,
    /// The newest request of each client.
    newest: BTreeMap<u128, (Session, KvOp)>,
    /// What came of the present step.
    text: String,
}

impl Stage {
    fn new(groups: u64) -> Stage {
        let groups = (1..=groups).map(GroupId).map(|group| (group, Replica::of(group))).collect();
        Stage {
            groups,
            told: BTreeMap::new(),
            letters: Vec::new(),
            newest: BTreeMap::new(),
            text: String::new(),
        }
    }

    fn say(&mut self, what: &str) {
        let _ = writeln!(self.text, "  {what}");
    }

    fn at(&mut self, group: GroupId) -> &mut Replica {
        self.groups.get_mut(&group).unwrap()
    }

    /// The log of a group takes a command.
    fn apply(&mut self, group: GroupId, command: &Command) {
        let replica = self.at(group);
        let reply = replica.apply(command);
        replica.assert_sound();
        self.look(group);
        self.say(&format!("{group} answers: {}", words::reply(&reply)));
        for alarm in self.at(group).server.take_alarms() {
            self.say(&format!("{group} raises an alarm: {alarm}"));
        }
    }

    /// Tells what is new.
    fn look(&mut self, group: GroupId) {
        for (shard, now) in self.at(group).told() {
            if self.told.get(&(group, shard)) != Some(&now) {
                self.say(&format!("{group} {shard}: {now}"));
                self.told.insert((group, shard), now);
            }
        }
    }

    fn send(&mut self, group: GroupId, command: Command) {
        let letter = char::from(b'a' + u8::try_from(self.letters.len()).unwrap());
        self.say(&format!("{letter}, to {group}: {}", words::command(&command)));
        self.letters.push((group, command));
    }

    /// What the leader of the source prepares, by what the destination would answer now.
    fn prepare(&mut self, what: &str, mig: CopyId, from: GroupId, to: GroupId, bytes: usize) {
        let there = self.at(to).server.handoff(mig);
        let (server, store) = self.at(from).parts();
        let mut commands = Vec::new();
        match what {
            "chunks" => {
                for shard in &there.shards {
                    let cursor = shard.cursor.clone().unwrap();
                    let chunk = server.chunk(&store, mig, shard.shard, cursor, bytes).unwrap();
                    commands.extend(chunk);
                }
            }
            "changes" => {
                for shard in &there.shards {
                    let from = shard.delta_upto.unwrap_or_default();
                    commands.extend(server.delta(&store, mig, shard.shard, from, bytes).unwrap());
                }
            }
            "activate" => commands.extend(server.activate(&store, mig, Some(&there)).unwrap()),
            "refuse" => commands.extend(server.refuse(mig)),
            _ => panic!("nothing to prepare: {what}"),
        }
        assert!(!commands.is_empty(), "there is nothing to send");
        for command in commands {
            self.send(to, command);
        }
    }

    /// A group is started again, after a flush of what it has or of nothing.
    fn restart(&mut self, group: GroupId, flush: bool) {
        let replica = self.at(group);
        if flush {
            replica.settle_and_flush();
        }
        let slot = if flush { replica.log.len() } else { 0 };
        let before = replica.server.digest().unwrap();
        replica.restart(slot);
        assert_eq!(replica.server.digest().unwrap(), before);
        self.look(group);
    }

    /// Carries out one step.
    fn step(&mut self, line: &str) {
        let step: Vec<&str> = line.split_whitespace().collect();
        match step.as_slice() {
            [at, "creates", mig, shards @ ..] => {
                let shards = set(shards);
                self.apply(group(at), &Command::Create { copy: number(mig), shards });
            }
            [client, "to", at, what @ ..] => {
                let id: u128 = client.strip_prefix('c').unwrap().parse().unwrap();
                if *what != ["again"] {
                    let newest = self.newest.get(&id);
                    let next = newest.map_or(1, |(session, _)| session.number.0 + 1);
                    self.newest.insert(id, (session(id, next, next, 1_000), op(what)));
                }
                let (session, op) = self.newest[&id].clone();
                let request = super::client(SHARD, session, op);
                self.apply(group(at), &request);
            }
            [at, "reads", key] => {
                let (server, store) = self.groups.get_mut(&group(at)).unwrap().parts();
                let get = KvOp::Get { key: Bytes::from((*key).to_owned()) };
                let read = server.read(&store, SHARD, &get).unwrap();
                self.say(&format!("{at} answers: {}", words::reply(&read)));
            }
            // The shard master asks both groups to begin.
            ["begin", mig, "from", from, "to", to, shards @ ..] => {
                let (mig, shards) = (number(mig), set(shards));
                let (src, dst) = (group(from), group(to));
                self.send(dst, Command::InBegin { mig, src, shards: shards.clone() });
                self.send(src, Command::OutBegin { mig, dst, shards });
            }
            // The shard master gives it up.
            ["give", "up", mig, "from", from, "to", to, shards @ ..] => {
                let (mig, shards) = (number(mig), set(shards));
                let (src, dst) = (group(from), group(to));
                self.send(src, Command::OutAbort { mig, shards: shards.clone() });
                self.send(dst, Command::Refuse { mig, src, shards });
            }
            ["send", what, "of", mig, "from", from, "to", to] => {
                self.prepare(what, number(mig), group(from), group(to), 1 << 20);
            }
            ["send", what, "of", mig, "from", from, "to", to, "piecemeal"] => {
                self.prepare(what, number(mig), group(from), group(to), 1);
            }
            [letter, "arrives"] => {
                let letter = letter.as_bytes()[0] - b'a';
                let (to, command) = self.letters[usize::from(letter)].clone();
                self.apply(to, &command);
            }
            [at, "freezes", mig] => self.apply(group(at), &Command::Freeze { mig: number(mig) }),
            [at, "gives", mig, "away"] => {
                self.apply(group(at), &Command::OutDone { mig: number(mig) });
            }
            [at, "takes", mig, "back"] => {
                self.apply(group(at), &Command::Unfreeze { mig: number(mig) });
            }
            [at, "collects"] => {
                while let Some(garbage) = self.at(group(at)).server.garbage() {
                    self.apply(group(at), &garbage);
                }
            }
            [at, "restarts"] => self.restart(group(at), false),
            [at, "restarts", "after", "a", "flush"] => self.restart(group(at), true),
            _ => panic!("no step: {line}"),
        }
    }
}

fn group(name: &str) -> GroupId {
    GroupId(name.strip_prefix('g').unwrap().parse().unwrap())
}

fn number(name: &str) -> CopyId {
    CopyId(name.strip_prefix('m').unwrap().parse().unwrap())
}

/// `5/1`: shard 5 of epoch 1.
fn set(shards: &[&str]) -> Vec<(ShardId, ShardEpoch)> {
    let of = |shard: &&str| {
        let (shard, epoch) = shard.split_once('/').unwrap();
        (ShardId(shard.parse().unwrap()), ShardEpoch(epoch.parse().unwrap()))
    };
    shards.iter().map(of).collect()
}

fn op(step: &[&str]) -> KvOp {
    let bytes = |text: &str| Bytes::from(text.to_owned());
    match step {
        ["put", key, value] => KvOp::Put { key: bytes(key), value: bytes(value) },
        ["append", key, value] => KvOp::Append { key: bytes(key), value: bytes(value) },
        ["delete", key] => KvOp::Delete { key: bytes(key) },
        _ => panic!("no request: {step:?}"),
    }
}

/// Plays the steps of a script, and writes down what comes of each.
fn play(script: &str) -> String {
    let mut stage: Option<Stage> = None;
    scripts::play(script, |step| {
        match (step.strip_prefix("groups "), &mut stage) {
            (Some(groups), _) => stage = Some(Stage::new(groups.parse().unwrap())),
            (None, Some(stage)) => {
                stage.step(step);
                return std::mem::take(&mut stage.text);
            }
            (None, None) => panic!("a script begins with groups"),
        }
        String::new()
    })
}

#[test]
fn every_script_tells_what_it_told_before() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/golden");
    scripts::check(&folder, 8, play);
}
