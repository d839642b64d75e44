//! Shards move between groups for as long as it takes, by drivers that forget everything, that act
//! on old news and whose commands come late, twice and in any order; clients go on meanwhile. A
//! group that keeps every shard executes the same operations: nobody may be able to tell them
//! apart.

mod drivers;

use std::collections::{BTreeMap, BTreeSet};

use replica_group::state_machine::ScanLimit;
use router::{HandoffPhase, HandoffState, ShardState};

use super::*;
use crate::keys;

const GROUPS: u64 = 3;
const SHARDS: u16 = 5;

/// A hand-off as the shard master has it.
#[derive(Clone, Debug)]
struct Migration {
    from: GroupId,
    to: GroupId,
    shards: Vec<(ShardId, ShardEpoch)>,
    cancel: bool,
}

/// A request, the same for all of its attempts.
#[derive(Clone, Debug)]
struct Call {
    session: Session,
    shard: ShardId,
    op: KvOp,
}

/// What a run has seen.
#[derive(Debug, Default)]
struct Seen {
    activated: BTreeSet<CopyId>,
    refused: BTreeSet<CopyId>,
    frozen: BTreeSet<CopyId>,
    aborted: BTreeSet<CopyId>,
    unfrozen: BTreeSet<CopyId>,
    crashes: usize,
    repeated: usize,
    turned_away: usize,
}

/// Digest, keys, bytes and count of changes of a shard.
type Sum = ((u64, u64), u64, u64, Version);

struct World {
    random: Random,
    time: u64,
    groups: Vec<Replica>,
    /// How much of each log its store has on disk.
    flushed: Vec<usize>,
    /// It serves every shard, always.
    reference: Replica,
    owners: BTreeMap<ShardId, (GroupId, ShardEpoch)>,
    migrations: BTreeMap<CopyId, Migration>,
    mig_next: u64,
    /// Commands of drivers, some of whom are long gone.
    wire: Vec<(GroupId, Command)>,
    /// What drivers heard of groups, at some time.
    heard: Vec<(GroupId, HandoffState)>,
    /// The open request of each client, and the number of its last.
    clients: Vec<(Option<Call>, u64)>,
    answered: Vec<(Call, Reply)>,
    epochs: BTreeMap<ShardId, (ShardEpoch, GroupId)>,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> World {
        let mut world = World {
            random: Random::new(seed),
            time: 1_000,
            groups: (1..=GROUPS).map(|group| Replica::of(GroupId(group))).collect(),
            flushed: vec![0; GROUPS as usize],
            reference: Replica::of(GroupId(99)),
            owners: BTreeMap::new(),
            migrations: BTreeMap::new(),
            mig_next: 20,
            wire: Vec::new(),
            heard: Vec::new(),
            clients: vec![(None, 0); 3],
            answered: Vec::new(),
            epochs: BTreeMap::new(),
            seen: Seen::default(),
        };
        let first = ShardEpoch(1);
        let all: Vec<_> = (0..SHARDS).map(|shard| (ShardId(shard), first)).collect();
        for (group, shards) in [(1, &all[..3]), (2, &all[3..])] {
            let create = Command::Create { copy: CopyId(group), shards: shards.to_vec() };
            world.apply(GroupId(group), &create);
            world.owners.extend(shards.iter().map(|(id, epoch)| (*id, (GroupId(group), *epoch))));
        }
        world.reference.apply(&Command::Create { copy: CopyId(1), shards: all });
        world
    }

    fn group(&mut self, group: GroupId) -> &mut Replica {
        &mut self.groups[group.0 as usize - 1]
    }

    fn pick(&mut self, length: usize) -> usize {
        self.random.below(length as u64) as usize
    }

    /// The log of a group takes a command.
    fn apply(&mut self, group: GroupId, command: &Command) -> Reply {
        let before = command.handoff().map(|mig| self.group(group).server.handoff(mig));
        let frozen = self.frozen_sums();
        let time = self.time;
        let replica = self.group(group);
        replica.time = time;
        let reply = replica.apply(command);
        let after = command.handoff().map(|mig| self.group(group).server.handoff(mig));
        self.time += 1;
        if let (Some(before), Some(after)) = (before, after) {
            self.check_step(group, &before, &after, &frozen);
        }
        if let Ok(Answer::Handoff(state)) = &reply.body {
            self.check_answer(command, state);
            self.heard.push((group, state.clone()));
        }
        self.check_owners();
        assert_eq!(self.group(group).server.take_alarms(), Vec::<String>::new());
        reply
    }

    /// What every frozen shard has. A shard may be so at two groups, of which one has not heard
    /// yet that the other began to serve.
    fn frozen_sums(&self) -> BTreeMap<(CopyId, ShardId), Sum> {
        let mut frozen = BTreeMap::new();
        for (id, shard) in self.groups.iter().flat_map(|group| &group.server.shards) {
            let meta = shard.meta();
            if let ShardState::Frozen { mig, .. } = meta.state {
                frozen.insert((mig, *id), (meta.digest, meta.keys, meta.bytes, meta.changes));
            }
        }
        frozen
    }

    /// At most one of activation and refusal, at most one of freeze and abort; an activation only
    /// of a copy that equals what is frozen.
    fn check_step(
        &mut self,
        group: GroupId,
        before: &HandoffState,
        after: &HandoffState,
        frozen: &BTreeMap<(CopyId, ShardId), Sum>,
    ) {
        use HandoffPhase::{Active, Frozen, In, Moved, Out, Owned, Refused, Unknown};
        let mig = after.mig;
        match (before.phase, after.phase) {
            (In, Active) => {
                assert!(self.seen.activated.insert(mig) && !self.seen.refused.contains(&mig));
                for shard in &after.shards {
                    let copy = self.group(group).server.shards[&shard.shard].meta().clone();
                    let sum = (copy.digest, copy.keys, copy.bytes, copy.changes);
                    let frozen = frozen.get(&(mig, shard.shard));
                    assert_eq!(frozen, Some(&sum), "{mig} {}", shard.shard);
                }
            }
            (Out, Frozen) => {
                assert!(self.seen.frozen.insert(mig) && !self.seen.aborted.contains(&mig));
            }
            (Out, Owned) => {
                assert!(self.seen.aborted.insert(mig) && !self.seen.frozen.contains(&mig));
            }
            (Frozen, Owned) => {
                assert!(self.seen.unfrozen.insert(mig) && self.seen.refused.contains(&mig));
            }
            (Frozen, Moved) => assert!(self.seen.activated.contains(&mig)),
            (Refused | Active | Moved | Owned, phase) => {
                assert!(phase == before.phase, "{mig}: {:?} to {phase:?}", before.phase);
            }
            (Unknown | In | Out | Frozen, _) => {}
        }
    }

    fn check_answer(&mut self, command: &Command, state: &HandoffState) {
        match (command, state.phase) {
            (_, HandoffPhase::Refused) => {
                self.seen.refused.insert(state.mig);
                assert!(!self.seen.activated.contains(&state.mig), "{}", state.mig);
            }
            (Command::Refuse { .. } | Command::Activate { .. }, HandoffPhase::Active) => {
                assert!(self.seen.activated.contains(&state.mig), "{}", state.mig);
            }
            _ => {}
        }
    }

    /// Of each shard at most one owner, and a new one under a higher epoch.
    fn check_owners(&mut self) {
        for shard in (0..SHARDS).map(ShardId) {
            let owners = self.groups.iter().filter(|group| group.server.owns(shard));
            let owners: Vec<_> =
                owners.map(|g| (g.server.epoch(shard).unwrap(), g.group)).collect();
            assert!(owners.len() <= 1, "{shard}: {owners:?}");
            let Some(owner) = owners.first() else { continue };
            let last = self.epochs.entry(shard).or_insert(*owner);
            assert!(owner.0 > last.0 || owner == last, "{shard}: {last:?} then {owner:?}");
            *last = *owner;
        }
    }

    /// A command that only a serving group takes: the reference does the same at the same time.
    fn apply_served(&mut self, group: GroupId, shard: ShardId, command: &Command) -> Option<Reply> {
        let is_served = self.group(group).server.owns(shard);
        let reply = self.apply(group, command);
        if !is_served {
            let unserved =
                matches!(reply.body, Err(ErrorReply::Moved { .. } | ErrorReply::NotReady(_)));
            assert!(unserved, "{reply:?}");
            self.seen.turned_away += 1;
            return None;
        }
        self.reference.time = self.time - 1;
        let same = self.reference.apply(command);
        assert_eq!(reply.body, same.body, "{command:?}");
        assert_eq!(reply.header.version, same.header.version, "{command:?}");
        assert_eq!(reply.header.stamp, same.header.stamp, "{command:?}");
        Some(reply)
    }

    fn some_group(&mut self, shard: ShardId) -> GroupId {
        let owner = self.groups.iter().find(|group| group.server.owns(shard)).map(|g| g.group);
        match owner {
            Some(owner) if self.random.chance(4, 5) => owner,
            _ => GroupId(self.random.between(1, GROUPS)),
        }
    }

    fn client_step(&mut self) {
        let at = self.pick(self.clients.len());
        if self.clients[at].0.is_none() {
            self.clients[at].1 += 1;
            let number = self.clients[at].1;
            let first = number.saturating_sub(15).max(1);
            let call = Call {
                session: session(at as u128 + 1, number, first, self.time),
                shard: ShardId(self.random.below(u64::from(SHARDS)) as u16),
                op: random_op(&mut self.random),
            };
            self.clients[at].0 = Some(call);
        }
        let call = self.clients[at].0.clone().unwrap();
        let group = self.some_group(call.shard);
        let command = client(call.shard, call.session, call.op.clone());
        if let Some(reply) = self.apply_served(group, call.shard, &command) {
            self.clients[at].0 = None;
            self.answered.push((call, reply));
        }
    }

    /// An answered request comes once more, wherever its shard is now.
    fn repeat_step(&mut self) {
        let newest = self.answered.len().saturating_sub(40);
        if self.answered.is_empty() {
            return;
        }
        let at = newest + self.pick(self.answered.len() - newest);
        let (call, first) = self.answered[at].clone();
        let group = self.some_group(call.shard);
        let command = client(call.shard, call.session, call.op);
        let Some(again) = self.apply_served(group, call.shard, &command) else { return };
        match again.body {
            Err(ErrorReply::Stale | ErrorReply::SessionExpired { .. }) => {}
            body => {
                assert_eq!((body, again.header.version), (first.body, first.header.version));
                self.seen.repeated += 1;
            }
        }
    }

    fn expire_step(&mut self) {
        let shard = ShardId(self.random.below(u64::from(SHARDS)) as u16);
        let before = WallMillis(self.time - self.random.below(200));
        let group = self.some_group(shard);
        self.apply_served(group, shard, &Command::ExpireSessions { shard, before });
    }

    fn crash_step(&mut self) {
        let at = self.pick(self.groups.len());
        let replica = &mut self.groups[at];
        if self.random.chance(1, 2) {
            replica.settle_and_flush();
            self.flushed[at] = replica.log.len();
        }
        if self.random.chance(1, 2) {
            let before = replica.server.digest().unwrap();
            let outgoing = replica.server.outgoing().to_vec();
            replica.restart(self.flushed[at]);
            replica.server.take_alarms();
            assert_eq!(replica.server.digest().unwrap(), before);
            assert_eq!(replica.server.outgoing(), outgoing);
            self.seen.crashes += 1;
        }
        replica.assert_sound();
    }

    fn garbage_step(&mut self) {
        let group = GroupId(self.random.between(1, GROUPS));
        if let Some(command) = self.group(group).server.garbage() {
            self.send(group, command);
        }
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..=7 => self.client_step(),
            8..=9 => self.repeat_step(),
            10..=22 => self.deliver_step(),
            23..=30 => self.source_step(),
            31..=35 => self.master_step(),
            36 => self.plan_step(),
            37 => self.garbage_step(),
            38 if self.random.chance(1, 6) => self.expire_step(),
            39 => self.crash_step(),
            _ => {}
        }
        if self.heard.len() > 200 {
            let forgotten = self.pick(self.heard.len());
            self.heard.swap_remove(forgotten);
        }
    }

    /// Every shard is where the shard master thinks, as the reference has it, and nothing else is
    /// anywhere.
    fn check_end(&mut self) {
        assert!(self.migrations.is_empty(), "{:?}", self.migrations);
        for (shard, (owner, epoch)) in self.owners.clone() {
            assert_eq!(self.group(owner).server.epoch(shard), Some(epoch), "{shard}");
            for key in KEYS {
                let op = KvOp::Get { key: bytes(key) };
                let (server, store) = self.group(owner).parts();
                let read = server.read(&store, shard, &op).unwrap();
                let (server, store) = self.reference.parts();
                let same = server.read(&store, shard, &op).unwrap();
                assert_eq!(read.body, same.body, "{shard} {key}");
                assert_eq!(read.header.version, same.header.version, "{shard} {key}");
            }
            let digest = |replica: &mut Replica| {
                replica.settle_and_flush();
                replica.server.shards[&shard].meta().digest
            };
            assert_eq!(digest(self.group(owner)), digest(&mut self.reference), "{shard}");
        }
        let owners = self.owners.clone();
        for replica in &mut self.groups {
            replica.assert_sound();
            for status in replica.server.shards(true) {
                assert_eq!((status.dead_copies, status.dead_records), (0, 0), "{status:?}");
            }
            let group = replica.group;
            let served = |shard| owners.get(&shard).is_some_and(|(owner, _)| *owner == group);
            let (server, store) = replica.parts();
            let (from, to) = keys::shards_from(0);
            let all = ScanLimit { records: usize::MAX, bytes: usize::MAX };
            for (key, _) in store.scan(&from, &to, all).unwrap() {
                let (shard, copy) = keys::parse(&key).unwrap();
                let is_live = served(shard) && copy == server.shards[&shard].meta().copy;
                let is_own_record = copy == keys::NO_COPY;
                assert!(is_live || is_own_record, "{group} {shard} {copy}: {key:02x?}");
                assert_ne!(key[10], keys::Kind::Tombstone as u8, "{group} {shard} {copy}");
            }
        }
    }
}

const KEYS: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "{a}i"];

fn random_op(random: &mut Random) -> KvOp {
    const VALUES: [&str; 4] = ["", "x", "yy", "a longer value than the others"];
    let key = bytes(KEYS[random.below(KEYS.len() as u64) as usize]);
    let value = bytes(VALUES[random.below(4) as usize]);
    match random.below(8) {
        0..=2 => KvOp::Delete { key },
        3 => KvOp::PutHash { key, value, hash: HashKind::Fnv1a32 },
        4 => KvOp::Append { key, value },
        5 => {
            let expected = Expected::Version(Version(random.below(20)));
            KvOp::CompareAndSwap { key, expected, value }
        }
        _ => KvOp::Put { key, value },
    }
}

#[test]
fn shards_move_under_clients_and_nobody_can_tell() {
    let mut total = Seen::default();
    let mut migrations = 0;
    for seed in 0..SEEDS {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.quiesce();
            world.check_end();
            (world.seen, world.mig_next - 20)
        });
        let (seen, begun) = run.unwrap_or_else(|_| panic!("seed {seed}"));
        migrations += begun;
        total.crashes += seen.crashes;
        total.repeated += seen.repeated;
        total.turned_away += seen.turned_away;
        // The numbers of hand-offs of different runs are made different.
        let of_run = |migs: BTreeSet<CopyId>| {
            migs.into_iter().map(move |mig| CopyId(seed << 32 | mig.0)).collect::<Vec<_>>()
        };
        total.activated.extend(of_run(seen.activated));
        total.refused.extend(of_run(seen.refused));
        total.frozen.extend(of_run(seen.frozen));
        total.aborted.extend(of_run(seen.aborted));
        total.unfrozen.extend(of_run(seen.unfrozen));
    }
    let counts = [&total.activated, &total.refused, &total.frozen, &total.aborted, &total.unfrozen];
    let counts = counts.map(BTreeSet::len);
    println!(
        "{migrations} hand-offs; activated, refused, frozen, aborted, unfrozen: {counts:?}; \
         {} crashes, {} repetitions answered, {} turned away",
        total.crashes, total.repeated, total.turned_away
    );
    assert!(counts.iter().all(|count| *count as u64 >= SEEDS), "{counts:?}");
    assert!(total.crashes as u64 > SEEDS && total.repeated as u64 > SEEDS);
}

const SEEDS: u64 = 150;
const STEPS: usize = 1_500;
