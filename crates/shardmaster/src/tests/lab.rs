//! The classic scenarios of a shard master, under their ids, on three replicas of one log. Those
//! that need servers and a network (M5, M8, M9, C6) are told in the simulator.

use std::collections::BTreeSet;

use base::Random;

use super::*;

/// Three replicas, one of which may be down; what it misses it gets when it is back.
struct Cluster {
    replicas: Vec<Replica>,
    log: Vec<Command>,
    down: Option<usize>,
    client: u128,
}

impl Cluster {
    /// Ten shards and the nodes 1 to 6.
    fn new() -> Cluster {
        let replicas = (0..3).map(|_| Replica::empty()).collect();
        let mut cluster = Cluster { replicas, log: Vec::new(), down: None, client: 100 };
        cluster.chosen(found(CLUSTER, 10)).unwrap();
        for disk in 4..=6 {
            let node = node_info(0, disk, &format!("a:{disk}"));
            cluster.write(MasterOp::Register { node, starts: 0, replaces: None }).unwrap();
        }
        cluster
    }

    /// The next command of the log: every replica gives the same answer and has the same state.
    fn chosen(&mut self, command: Command) -> Result<MasterAnswer, ErrorReply> {
        self.log.push(command.clone());
        let up = self.replicas.iter_mut().enumerate().filter(|(at, _)| Some(*at) != self.down);
        let ends: Vec<_> = up
            .map(|(_, replica)| (replica.apply(&command).body, replica.master.state_bytes()))
            .collect();
        assert!(ends.iter().all(|end| *end == ends[0]), "the replicas differ over {command:?}");
        answer(Reply { header: router::ReplyHeader::default(), body: ends[0].0.clone() })
    }

    /// A client of its own for each operation, as operations of one client come in order.
    fn write(&mut self, op: MasterOp) -> Result<MasterAnswer, ErrorReply> {
        self.client += 1;
        self.chosen(Command::Client { session: session(self.client, 1, 1_000), op })
    }

    fn join(&mut self, groups: &[u64]) {
        let made = self.write(join_on_six(groups));
        assert!(made.is_ok(), "join {groups:?}: {made:?}");
    }

    fn leave(&mut self, groups: &[u64]) {
        let made = self.write(leave(groups));
        assert!(made.is_ok(), "leave {groups:?}: {made:?}");
    }

    fn query(&mut self, number: Option<u64>) -> Configuration {
        let up = (0..3).filter(|at| Some(*at) != self.down);
        let found: Vec<Configuration> = up.map(|at| self.replicas[at].query(number)).collect();
        assert!(found.iter().all(|one| *one == found[0]), "{found:?}");
        found[0].clone()
    }

    fn newest(&mut self) -> Configuration {
        self.query(None)
    }

    /// The newest configuration has exactly these groups, and its division is even.
    fn check(&mut self, groups: &[u64]) {
        let newest = self.newest();
        let expected: BTreeSet<GroupId> = groups.iter().copied().map(GroupId).collect();
        assert_eq!(newest.groups.keys().copied().collect::<BTreeSet<_>>(), expected);
        if groups.is_empty() {
            assert_eq!(newest.shards, shards(&[0; 10]));
            return;
        }
        assert!(newest.shards.iter().all(|group| expected.contains(group)), "{newest:?}");
        let counts = expected.iter().map(|group| newest.shards_of(*group).len());
        let (min, max) = (counts.clone().min().unwrap(), counts.max().unwrap());
        assert!(max - min <= 1, "{newest:?}");
    }

    fn stop(&mut self, replica: usize) {
        assert_eq!(self.down.replace(replica), None);
    }

    /// The stopped replica comes back with what its store has, and learns the rest of the log.
    fn start(&mut self) {
        let down = self.down.take().unwrap();
        let replica = &mut self.replicas[down];
        let applied = replica.log.len();
        replica.settle_and_flush();
        replica.restart(applied);
        for command in &self.log[applied..] {
            replica.apply(command);
        }
        assert_eq!(
            replica.master.state_bytes(),
            self.replicas[(down + 1) % 3].master.state_bytes()
        );
    }
}

/// Groups on three nodes each, in an order of their own.
fn join_on_six(groups: &[u64]) -> MasterOp {
    let nodes = |group: u64| (0..3).map(move |n| NodeId((group + 6 - n) % 6 + 1)).collect();
    let new = |group: &u64| NewGroup { group: GroupId(*group), nodes: nodes(*group) };
    MasterOp::Join { groups: groups.iter().map(new).collect() }
}

/// Threads whose operations come in order, mixed as chance has it. Some requests arrive twice.
fn mixed(cluster: &mut Cluster, threads: Vec<Vec<MasterOp>>, seed: u64) {
    let mut random = Random::new(seed);
    let base = cluster.client;
    cluster.client += threads.len() as u128;
    let mut threads: Vec<(u128, std::vec::IntoIter<MasterOp>)> =
        (base + 1..).zip(threads).map(|(client, ops)| (client, ops.into_iter())).collect();
    let mut number = 0;
    while !threads.is_empty() {
        let at = random.below(threads.len() as u64) as usize;
        let (client, ops) = &mut threads[at];
        let Some(op) = ops.next() else {
            threads.remove(at);
            continue;
        };
        number += 1;
        let command = Command::Client { session: session(*client, number, 1_000), op };
        let first = cluster.chosen(command.clone());
        assert!(first.is_ok(), "seed {seed}: {command:?}: {first:?}");
        if random.chance(1, 3) {
            assert_eq!(cluster.chosen(command), first, "seed {seed}: a repeat is no new request");
        }
    }
}

/// Ten groups, each of whose clients also lets another come and go.
fn ten_groups(groups: impl Iterator<Item = u64>, seed: u64) -> Cluster {
    let mut cluster = Cluster::new();
    let threads = groups.map(|group| {
        vec![join_on_six(&[group + 1_000]), join_on_six(&[group]), leave(&[group + 1_000])]
    });
    mixed(&mut cluster, threads.collect(), seed);
    cluster
}

#[test]
fn m1_basic_leave_and_join() {
    let mut cluster = Cluster::new();
    cluster.check(&[]);
    let nodes = |numbers: [u64; 3]| numbers.map(NodeId).to_vec();
    let join = |group, numbers| MasterOp::Join {
        groups: vec![NewGroup { group: GroupId(group), nodes: nodes(numbers) }],
    };
    cluster.write(join(1, [3, 1, 2])).unwrap();
    cluster.check(&[1]);
    cluster.write(join(2, [6, 4, 5])).unwrap();
    cluster.check(&[1, 2]);
    let two = cluster.newest();
    // What changes nothing says so, and makes no configuration.
    cluster.write(join(2, [6, 4, 5])).unwrap_err();
    assert_eq!(cluster.newest(), two);
    assert_eq!(two.groups[&GroupId(1)], nodes([3, 1, 2]));
    assert_eq!(two.groups[&GroupId(2)], nodes([6, 4, 5]));
    cluster.leave(&[1]);
    cluster.check(&[2]);
    cluster.write(leave(&[1])).unwrap_err();
    cluster.check(&[2]);
    assert_eq!(cluster.newest().groups[&GroupId(2)], nodes([6, 4, 5]));
    assert_eq!(cluster.newest().number, ConfigNumber(3));
}

#[test]
fn m2_historical_queries() {
    let mut cluster = Cluster::new();
    let mut seen = vec![cluster.newest()];
    for change in
        [join_on_six(&[1]), join_on_six(&[2]), leave(&[1]), join_on_six(&[1]), leave(&[2])]
    {
        cluster.write(change).unwrap();
        seen.push(cluster.newest());
    }
    for (number, configuration) in (0..).zip(&seen) {
        assert_eq!(configuration.number, ConfigNumber(number));
        assert_eq!(cluster.query(Some(number)), *configuration);
    }
    assert_eq!(cluster.query(Some(6)), seen[5], "a number beyond the newest");
}

#[test]
fn m3_move() {
    let mut cluster = Cluster::new();
    cluster.join(&[503]);
    cluster.join(&[504]);
    for shard in 0..10 {
        let group = if shard < 5 { 503 } else { 504 };
        let before = cluster.newest();
        let changes = before.shards[usize::from(shard)] != GroupId(group);
        let made = cluster.write(move_to(&[(&[shard], group)]));
        assert_eq!(made.is_ok(), changes);
        let grown = cluster.newest().number.0 - before.number.0;
        assert_eq!(grown, u64::from(changes), "a move that changes the owner is the next number");
    }
    // Cross over, so that each move counts.
    for shard in 0..10 {
        let group = if shard < 5 { 504 } else { 503 };
        let number = cluster.newest().number.0;
        cluster.write(move_to(&[(&[shard], group)])).unwrap();
        assert_eq!(cluster.newest().number.0, number + 1);
    }
    let crossed = shards(&[504, 504, 504, 504, 504, 503, 503, 503, 503, 503]);
    assert_eq!(cluster.newest().shards, crossed);
    cluster.leave(&[503]);
    cluster.leave(&[504]);
    cluster.check(&[]);
}

#[test]
fn m4_concurrent_leave_and_join() {
    for seed in 0..20 {
        let mut cluster = ten_groups(1_024..1_034, seed);
        cluster.write(leave(&[2])).unwrap_err();
        cluster.check(&(1_024..1_034).collect::<Vec<_>>());
    }
}

#[test]
fn m6_minimal_transfers_after_joins() {
    let mut cluster = ten_groups(1..11, 6);
    let before = cluster.newest();
    for group in 11..=15 {
        cluster.join(&[group]);
        let after = cluster.newest();
        for (was, is) in before.shards.iter().zip(&after.shards) {
            assert!(is.0 > 10 || is == was, "a shard moved between old groups: {was} to {is}");
        }
    }
    cluster.check(&(1..=15).collect::<Vec<_>>());
}

#[test]
fn m7_minimal_transfers_after_leaves() {
    let mut cluster = ten_groups(1..11, 7);
    for group in 11..=15 {
        cluster.join(&[group]);
    }
    let before = cluster.newest();
    for group in 11..=15 {
        cluster.leave(&[group]);
    }
    for (was, is) in before.shards.iter().zip(&cluster.newest().shards) {
        assert!(was.0 > 10 || is == was, "a shard of a group that stays moved: {was} to {is}");
    }
    cluster.check(&(1..=10).collect::<Vec<_>>());
}

#[test]
fn c1_basic_and_each_server_down_in_turn() {
    let mut cluster = Cluster::new();
    let mut seen = vec![cluster.newest()];
    let changes = [join_on_six(&[1]), join_on_six(&[2]), leave(&[1]), leave(&[2])];
    for change in changes {
        cluster.write(change).unwrap();
        seen.push(cluster.newest());
    }
    assert_eq!(seen[2].shards_of(GroupId(2)).len(), 5);
    for down in 0..3 {
        cluster.stop(down);
        for configuration in &seen {
            assert_eq!(cluster.query(Some(configuration.number.0)), *configuration);
        }
        // Something happens meanwhile, which it has to learn.
        cluster.join(&[20 + down as u64]);
        seen.push(cluster.newest());
        cluster.start();
        for configuration in &seen {
            assert_eq!(cluster.query(Some(configuration.number.0)), *configuration);
        }
    }
    let moved = cluster.newest().shards[0];
    let other = if moved == GroupId(20) { 21 } else { 20 };
    cluster.write(move_to(&[(&[0], other)])).unwrap();
    assert_eq!(cluster.newest().shards[0], GroupId(other));
}

#[test]
fn c2_concurrent_leave_and_join() {
    let groups = || (0..10).map(|index| 100 + 10 * index);
    for seed in 100..120 {
        ten_groups(groups(), seed).check(&groups().collect::<Vec<_>>());
    }
}

#[test]
fn c3_minimal_transfers() {
    // As M6 and M7, over groups that exist.
    let groups: Vec<u64> = (0..10).map(|index| 100 + 10 * index).collect();
    let mut cluster = ten_groups(groups.iter().copied(), 3);
    let before = cluster.newest();
    for group in 11..=15 {
        cluster.join(&[group]);
    }
    let between = cluster.newest();
    for group in 11..=15 {
        cluster.leave(&[group]);
    }
    let after = cluster.newest();
    let kept = |from: &Configuration, to: &Configuration| {
        let same = from.shards.iter().zip(&to.shards).filter(|(was, is)| was == is);
        same.count()
    };
    // Ten groups with one shard each: an even division of fifteen asks for no move at all.
    assert_eq!(kept(&before, &between), 10);
    assert_eq!(kept(&between, &after), 10);
    cluster.check(&groups);
}

#[test]
fn c4_minimal_movement_again() {
    let mut cluster = Cluster::new();
    cluster.join(&[1, 2]);
    let two = cluster.newest();
    cluster.join(&[3]);
    let three = cluster.newest();
    let moved = |from: &Configuration, to: &Configuration| {
        let pairs = from.shards.iter().zip(&to.shards).filter(|(was, is)| was != is);
        pairs.map(|(was, is)| (*was, *is)).collect::<Vec<_>>()
    };
    let joined = moved(&two, &three);
    assert!(joined.iter().all(|(_, is)| *is == GroupId(3)), "{joined:?}");
    assert!((3..=4).contains(&joined.len()), "{joined:?}");
    cluster.leave(&[1]);
    let left = moved(&three, &cluster.newest());
    assert!(left.iter().all(|(was, _)| *was == GroupId(1)), "{left:?}");
    assert!((3..=4).contains(&left.len()), "{left:?}");
    cluster.check(&[2, 3]);
}

#[test]
fn c5_multi() {
    let mut cluster = Cluster::new();
    cluster.join(&[1, 2]);
    cluster.check(&[1, 2]);
    assert_eq!(cluster.newest().number, ConfigNumber(1), "both in one step");
    cluster.join(&[3]);
    cluster.check(&[1, 2, 3]);
    cluster.leave(&[1, 3]);
    cluster.check(&[2]);
    cluster.leave(&[2]);
    cluster.check(&[]);
    let threads = (1_000..1_010).map(|group| {
        vec![
            join_on_six(&[group, group + 1_000, group + 2_000]),
            leave(&[group + 1_000, group + 2_000]),
        ]
    });
    mixed(&mut cluster, threads.collect(), 5);
    cluster.check(&(1_000..1_010).collect::<Vec<_>>());
    // Several at once move as little as one by one.
    let before = cluster.newest();
    let more: Vec<u64> = (1_010..1_015).collect();
    cluster.join(&more);
    for (was, is) in before.shards.iter().zip(&cluster.newest().shards) {
        assert!(more.contains(&is.0) || is == was, "{was} to {is}");
    }
    let before = cluster.newest();
    let gone: Vec<u64> = (1_000..1_005).collect();
    cluster.leave(&gone);
    for (was, is) in before.shards.iter().zip(&cluster.newest().shards) {
        assert!(gone.contains(&was.0) || is == was, "{was} to {is}");
    }
    cluster.check(&(1_005..1_015).collect::<Vec<_>>());
}
