//! What the shard master promises, shown on its state machine and a store in memory.

mod handoffs;
mod lab;
mod plans;
mod replicas;

use std::sync::Arc;

use base::limits::SESSION_IDLE_MILLIS;
use base::{Address, ClientId, ClusterId, ConfigNumber, CopyId, DiskId, GroupId, NodeId};
use base::{ReplicaId, RequestNumber, ShardEpoch, ShardId, Slot, WallMillis};
use bytes::Bytes;
use replica_group::{ApplyError, Entry, GroupStore, StateMachine};
use router::{
    Answer, Configuration, ErrorReply, MasterAnswer, MasterOp, NewGroup, NodeInfo, Owner, Reply,
    Session, ShardMove,
};
use storage::{Engine, MemoryEngine, Overlay};

use crate::{Command, Creation, Master, ShardMaster};

/// Groups of a join, each with its nodes.
type Groups<'a> = &'a [(u64, &'a [u64])];

/// Shards of a move, each time with the group they go to.
type Moves<'a> = &'a [(&'a [u16], u64)];

const CLUSTER: ClusterId = ClusterId(77);

struct Replica {
    engine: Arc<MemoryEngine>,
    overlay: Overlay,
    master: ShardMaster,
    log: Vec<Entry>,
    time: u64,
    number: u64,
}

impl Replica {
    fn empty() -> Replica {
        let engine = Arc::new(MemoryEngine::new());
        let mut overlay = Overlay::new(engine.clone());
        let store = GroupStore::new(&mut overlay, GroupId::MASTER);
        let master = ShardMaster::open(&store).unwrap();
        Replica { engine, overlay, master, log: Vec::new(), time: 1_000, number: 0 }
    }

    /// A founded cluster of 8 shards with the nodes 1 to 3.
    fn new() -> Replica {
        let mut replica = Replica::empty();
        replica.apply(&found(CLUSTER, 8)).body.unwrap();
        replica
    }

    fn apply(&mut self, command: &Command) -> Reply {
        self.time += 1;
        let slot = Slot(self.log.len() as u64 + 1);
        let entry = Entry { slot, time: WallMillis(self.time), payload: command.encode() };
        self.apply_entry(entry)
    }

    fn apply_entry(&mut self, entry: Entry) -> Reply {
        self.log.push(entry.clone());
        let mut store = GroupStore::new(&mut self.overlay, GroupId::MASTER);
        self.master.apply(&mut store, &entry).unwrap()
    }

    fn write(&mut self, op: MasterOp) -> Result<MasterAnswer, ErrorReply> {
        self.number += 1;
        let session = session(1, self.number, self.time);
        answer(self.apply(&Command::Client { session, op }))
    }

    fn join(&mut self, groups: Groups<'_>) -> Result<MasterAnswer, ErrorReply> {
        self.write(join(groups))
    }

    fn leave(&mut self, groups: &[u64]) -> Result<MasterAnswer, ErrorReply> {
        self.write(leave(groups))
    }

    fn move_to(&mut self, shards: &[u16], group: u64) -> Result<MasterAnswer, ErrorReply> {
        self.write(move_to(&[(shards, group)]))
    }

    /// The sentence with which an operation is refused.
    fn refused(&mut self, op: MasterOp) -> String {
        let before = (self.master.routes().clone(), self.master.configuration().clone());
        let text = match self.write(op) {
            Err(error @ (ErrorReply::Refused(_) | ErrorReply::Invalid(_))) => error.to_string(),
            other => panic!("{other:?}"),
        };
        let after = (self.master.routes().clone(), self.master.configuration().clone());
        assert_eq!(before, after, "what is refused changes nothing");
        text
    }

    /// The sentence with which a join is refused.
    fn refusal(&mut self, groups: Groups<'_>) -> String {
        self.refused(join(groups))
    }

    /// The groups make all the shards that they are told to.
    fn create(&mut self) {
        for creation in self.master.pending().to_vec() {
            self.apply(&Command::ShardsCreated { copy: creation.copy });
        }
    }

    /// The groups hand over all that they are told to, until nothing is left to do.
    fn hand_over(&mut self) {
        self.create();
        while let Some(mig) = self.master.migrations().keys().next().copied() {
            self.apply(&Command::MigrationDone { mig });
        }
    }

    /// The group that owns each shard; 0 for none.
    fn owners(&self) -> Vec<GroupId> {
        let owners = self.master.routes().owners.iter();
        owners.map(|owner| owner.map_or(GroupId(0), |owner| owner.group)).collect()
    }

    fn register(&mut self, node: u64, disk: u128, peer: &str) -> Result<MasterAnswer, ErrorReply> {
        self.write(MasterOp::Register {
            node: node_info(node, disk, peer),
            starts: 0,
            replaces: None,
        })
    }

    fn read(&mut self, op: &MasterOp) -> Result<MasterAnswer, ErrorReply> {
        let store = GroupStore::new(&mut self.overlay, GroupId::MASTER);
        answer(self.master.read(&store, op).unwrap())
    }

    fn query(&mut self, number: Option<u64>) -> Configuration {
        match self.read(&MasterOp::Query { number: number.map(ConfigNumber) }) {
            Ok(MasterAnswer::Configuration(configuration)) => configuration,
            other => panic!("{other:?}"),
        }
    }

    fn settle_and_flush(&mut self) {
        let mut store = GroupStore::new(&mut self.overlay, GroupId::MASTER);
        self.master.settle(&mut store).unwrap();
        if let Some(flush) = self.overlay.freeze(Vec::new()) {
            self.engine.write(&flush.batch).unwrap();
            self.overlay.flushed(flush.id);
        }
    }

    fn restart(&mut self, slot: usize) {
        self.overlay = Overlay::new(self.engine.clone());
        let store = GroupStore::new(&mut self.overlay, GroupId::MASTER);
        self.master = ShardMaster::open(&store).unwrap();
        for entry in self.log.split_off(slot) {
            self.apply_entry(entry);
        }
    }
}

fn answer(reply: Reply) -> Result<MasterAnswer, ErrorReply> {
    match reply.body? {
        Answer::Master(answer) => Ok(answer),
        other @ (Answer::Value(_)
        | Answer::Done
        | Answer::Deleted(_)
        | Answer::Appended(_)
        | Answer::Swapped(_)
        | Answer::Cluster(_)
        | Answer::Handoff(_)) => panic!("not of the shard master: {other:?}"),
    }
}

fn found(cluster: ClusterId, shards: u16) -> Command {
    let master = |n: u64| Master {
        node: NodeId(n),
        replica: ReplicaId(n),
        disk: DiskId(u128::from(n)),
        peer: Address::new(&format!("host{n}:1")),
    };
    Command::Found { cluster, shards, masters: (1..=3).map(master).collect() }
}

fn session(client: u128, number: u64, stamp: u64) -> Session {
    let number = RequestNumber(number);
    Session { client: ClientId(client), number, first_incomplete: number, stamp: WallMillis(stamp) }
}

fn node_info(node: u64, disk: u128, peer: &str) -> NodeInfo {
    let (node, disk) = (NodeId(node), DiskId(disk));
    NodeInfo { node, disk, peer: Address::new(peer), grpc: Address::new("grpc:2") }
}

fn join(groups: Groups<'_>) -> MasterOp {
    let groups = groups.iter().map(|(group, nodes)| NewGroup {
        group: GroupId(*group),
        nodes: nodes.iter().copied().map(NodeId).collect(),
    });
    MasterOp::Join { groups: groups.collect() }
}

fn leave(groups: &[u64]) -> MasterOp {
    MasterOp::Leave { groups: groups.iter().copied().map(GroupId).collect() }
}

fn move_to(moves: Moves<'_>) -> MasterOp {
    let moves = moves.iter().map(|(shards, group)| ShardMove {
        shards: shards.iter().copied().map(ShardId).collect(),
        group: GroupId(*group),
    });
    MasterOp::Move { moves: moves.collect() }
}

fn shards(groups: &[u64]) -> Vec<GroupId> {
    groups.iter().copied().map(GroupId).collect()
}

#[test]
fn a_cluster_is_founded_once() {
    let mut replica = Replica::empty();
    assert_eq!(replica.master.cluster(), None);
    assert!(matches!(replica.read(&MasterOp::Routes), Err(ErrorReply::NotReady(_))));
    assert!(matches!(replica.join(&[(1, &[1])]), Err(ErrorReply::NotReady(_))));
    replica.apply(&found(CLUSTER, 8)).body.unwrap();
    let routes = replica.master.routes().clone();
    assert_eq!((replica.master.cluster(), routes.shards()), (Some(CLUSTER), 8));
    assert_eq!(routes.groups[&GroupId::MASTER].members.len(), 3);
    // Told again it changes nothing, and another cluster is refused.
    replica.apply(&found(CLUSTER, 8)).body.unwrap();
    assert!(matches!(replica.apply(&found(ClusterId(5), 8)).body, Err(ErrorReply::Refused(_))));
    assert_eq!(replica.master.routes(), &routes);
}

#[test]
fn a_founding_that_makes_no_sense_is_invalid() {
    for shards in [0, 16_385] {
        let mut replica = Replica::empty();
        let reply = replica.apply(&found(CLUSTER, shards));
        assert!(matches!(reply.body, Err(ErrorReply::Invalid(_))), "{reply:?}");
        assert_eq!(replica.master.cluster(), None);
    }
}

#[test]
fn the_first_join_divides_the_shards_among_all_its_groups() {
    let mut replica = Replica::new();
    let version = replica.master.routes().version;
    let Ok(MasterAnswer::Configuration(made)) = replica.join(&[(1, &[1, 2, 3]), (2, &[3, 2, 1])])
    else {
        panic!()
    };
    assert_eq!(made.number, ConfigNumber(1));
    assert_eq!(made.shards, shards(&[1, 1, 1, 1, 2, 2, 2, 2]));
    assert_eq!(made.groups[&GroupId(2)], [3, 2, 1].map(NodeId));
    assert_eq!(replica.query(None), made);
    let routes = replica.master.routes();
    assert!(routes.version > version);
    assert_eq!(routes.configuration, ConfigNumber(1));
    assert!(routes.owners.iter().all(Option::is_none), "nobody owns what is not made yet");
    // Replicas are numbered on, and bound to their disks.
    let members = &routes.groups[&GroupId(2)].members;
    assert_eq!(members[0], (ReplicaId(7), NodeId(3), DiskId(3)));
    let here = replica.master.replicas_of(NodeId(3));
    let expected = [(0, 3), (1, 6), (2, 7)].map(|(g, r)| (GroupId(g), ReplicaId(r)));
    assert_eq!(here, expected);
}

#[test]
fn owners_change_when_a_group_has_made_its_shards() {
    let mut replica = Replica::new();
    replica.join(&[(1, &[1]), (2, &[2])]).unwrap();
    let pending = replica.master.pending().to_vec();
    let of = |copy: u64, group, from: u16| Creation {
        copy: CopyId(copy),
        group: GroupId(group),
        shards: (from..from + 4).map(ShardId).collect(),
    };
    assert_eq!(pending, [of(1, 1, 0), of(2, 2, 4)]);
    assert_eq!(pending[0].epochs()[3], (ShardId(3), ShardEpoch(1)));

    let before = replica.master.routes().version;
    replica.apply(&Command::ShardsCreated { copy: CopyId(2) });
    let routes = replica.master.routes().clone();
    let owner = Owner { group: GroupId(2), epoch: ShardEpoch(1), copy: CopyId(2) };
    assert_eq!((routes.owner(ShardId(4)), routes.owner(ShardId(3))), (Some(owner), None));
    assert!(routes.version > before);
    assert_eq!(replica.master.pending(), [of(1, 1, 0)]);
    // Told twice, or of a creation that there is not, nothing changes.
    replica.apply(&Command::ShardsCreated { copy: CopyId(2) });
    replica.apply(&Command::ShardsCreated { copy: CopyId(9) });
    assert_eq!(replica.master.routes(), &routes);
    replica.apply(&Command::ShardsCreated { copy: CopyId(1) });
    assert!(replica.master.routes().owners.iter().all(Option::is_some));
    assert_eq!(replica.master.pending(), []);
}

#[test]
fn a_repeated_join_has_its_first_answer_and_a_new_one_is_refused() {
    let mut replica = Replica::new();
    let command = Command::Client { session: session(9, 1, 1_000), op: join(&[(1, &[1, 2])]) };
    let first = replica.apply(&command);
    let state = replica.master.routes().clone();
    let again = replica.apply(&command);
    assert_eq!(first.body, again.body);
    assert!(first.body.is_ok());
    assert_eq!(replica.master.routes(), &state);
    assert!(replica.refusal(&[(1, &[1, 2])]).contains("group 1 is a member already"));
    assert!(replica.join(&[(2, &[1, 2])]).is_ok());
}

#[test]
fn joins_that_make_no_sense_say_why() {
    let mut replica = Replica::new();
    let cases: [(Groups<'_>, &str); 8] = [
        (&[], "at least one group"),
        (&[(0, &[1])], "number groups from 1"),
        (&[(u64::MAX, &[1])], "group numbers end"),
        (&[(1, &[1]), (1, &[2])], "named twice"),
        (&[(1, &[])], "has no nodes"),
        (&[(1, &[1, 1])], "names node 1 twice"),
        (&[(1, &[1, 9])], "node 9 is not known; known are 1, 2, 3"),
        (&[(1, &[1, 2, 3, 4, 5, 6, 7, 8])], "the limit is 7"),
    ];
    for (groups, part) in cases {
        let text = replica.refusal(groups);
        assert!(text.contains(part), "{groups:?}: {text}");
    }
    // None of them stands in the way of one that does.
    assert!(replica.join(&[(1, &[1])]).is_ok());
}

#[test]
fn a_disk_is_one_node_for_ever() {
    let mut replica = Replica::new();
    let number = |number| Ok(MasterAnswer::Registered(NodeId(number)));
    // A master brings its addresses.
    assert_eq!(replica.register(2, 2, "host2:9"), number(2));
    let node = replica.master.routes().nodes[&NodeId(2)].clone();
    assert_eq!((node.peer.as_str(), node.grpc.as_str()), ("host2:9", "grpc:2"));
    // A new disk gets the next number, and the same one when it asks again.
    assert_eq!(replica.register(0, 50, "a:1"), number(4));
    let version = replica.master.routes().version;
    assert_eq!(replica.register(0, 50, "a:1"), number(4));
    assert_eq!(replica.register(4, 50, "a:1"), number(4));
    assert_eq!(replica.master.routes().version, version, "nothing new");
    assert_eq!(replica.register(0, 50, "b:1"), number(4));
    assert!(replica.master.routes().version > version);
    // A number may be chosen, and numbers go on above it.
    assert_eq!(replica.register(9, 51, "c:1"), number(9));
    assert_eq!(replica.register(0, 52, "d:1"), number(10));
}

#[test]
fn a_number_that_belongs_to_another_disk_is_refused() {
    let mut replica = Replica::new();
    let taken = replica.register(2, 50, "a:1").unwrap_err().to_string();
    assert!(taken.contains("number 2 belongs to a node with another data directory"), "{taken}");
    let other = replica.register(3, 2, "a:1").unwrap_err().to_string();
    assert!(other.contains("belongs to node 2, and asks to be node 3"), "{other}");
    let long = "x".repeat(10_000);
    assert!(matches!(replica.register(0, 60, &long), Err(ErrorReply::Invalid(_))));
    assert!(matches!(replica.register(u64::MAX, 60, "a:1"), Err(ErrorReply::Invalid(_))));
}

#[test]
fn the_number_of_nodes_is_bounded() {
    let mut replica = Replica::new();
    for disk in 0..crate::registry::NODES_MAX as u128 - 3 {
        replica.register(0, 100 + disk, &format!("a:{disk}")).unwrap();
    }
    let full = replica.register(0, 99, "c:1");
    assert!(matches!(full, Err(ErrorReply::ResourceExhausted(_))), "{full:?}");
    assert!(replica.register(0, 100, "b:1").is_ok(), "known nodes may still move");
}

#[test]
fn old_configurations_are_kept_and_later_ones_mean_the_newest() {
    let mut replica = Replica::new();
    assert_eq!(replica.query(None).shards, shards(&[0; 8]));
    replica.join(&[(1, &[1])]).unwrap();
    replica.settle_and_flush();
    assert_eq!(replica.query(Some(0)).number, ConfigNumber(0));
    assert_eq!(replica.query(Some(0)).shards, shards(&[0; 8]));
    for number in [None, Some(1), Some(99)] {
        assert_eq!(replica.query(number).number, ConfigNumber(1));
    }
}

#[test]
fn idle_sessions_are_forgotten_by_command() {
    let mut replica = Replica::new();
    let old = session(9, 1, replica.time);
    let register = |disk| MasterOp::Register {
        node: node_info(0, disk, &format!("a:{disk}")),
        starts: 0,
        replaces: None,
    };
    replica.apply(&Command::Client { session: old, op: register(60) });
    assert_eq!(replica.master.expired_sessions(WallMillis(replica.time)), None);
    replica.time += SESSION_IDLE_MILLIS + 10;
    let command = replica.master.expired_sessions(WallMillis(replica.time)).unwrap();
    replica.apply(&command);
    let again = replica.apply(&Command::Client { session: old, op: register(61) });
    assert_eq!(again.body, Err(ErrorReply::SessionExpired { horizon: old.stamp }));
    assert!(!replica.master.routes().nodes.contains_key(&NodeId(5)));
}

#[test]
fn replicas_with_equal_logs_are_equal_over_restarts() {
    // The log: a whole start of a cluster, with repetitions and refusals.
    let register = |disk| MasterOp::Register {
        node: node_info(0, disk, &format!("a:{disk}")),
        starts: 0,
        replaces: None,
    };
    let client = |number, op| Command::Client { session: session(4, number, 1_000), op };
    let log = [
        found(CLUSTER, 8),
        client(1, register(60)),
        client(2, register(61)),
        client(2, register(61)),
        client(3, join(&[(1, &[1, 99])])),
        client(4, join(&[(1, &[1, 4]), (2, &[2, 5, 3])])),
        client(4, join(&[(1, &[1, 4]), (2, &[2, 5, 3])])),
        Command::ShardsCreated { copy: CopyId(2) },
        client(5, register(60)),
        Command::ShardsCreated { copy: CopyId(1) },
        client(6, join(&[(3, &[3])])),
        client(7, move_to(&[(&[3], 1)])),
        Command::MigrationDone { mig: CopyId(4) },
        Command::MigrationCancelled { mig: CopyId(3), unequal: Vec::new() },
        client(8, leave(&[1, 2])),
        Command::MigrationDone { mig: CopyId(5) },
        Command::ExpireSessions { before: WallMillis(1_005) },
    ];
    for flush_at in 0..log.len() {
        for restart_at in flush_at..log.len() {
            let (mut steady, mut restarted) = (Replica::empty(), Replica::empty());
            for (step, command) in log.iter().enumerate() {
                assert_eq!(steady.apply(command), restarted.apply(command));
                if step == flush_at {
                    restarted.settle_and_flush();
                }
                if step == restart_at {
                    restarted.restart(flush_at + 1);
                }
                let (left, right) = (steady.master.state_bytes(), restarted.master.state_bytes());
                assert_eq!(left, right, "flush {flush_at}, restart {restart_at}, step {step}");
            }
        }
    }
}

#[test]
fn unknown_commands_stop_the_replica() {
    let mut replica = Replica::new();
    let entry =
        Entry { slot: Slot(9), time: WallMillis(1), payload: Bytes::from_static(b"garbage") };
    let mut store = GroupStore::new(&mut replica.overlay, GroupId::MASTER);
    let error = replica.master.apply(&mut store, &entry).unwrap_err();
    assert!(matches!(error, ApplyError::Unknown(_)), "{error}");
}

/// A master that was started under such a number would else end every master, at every start again.
#[test]
fn a_cluster_is_not_founded_by_nodes_that_cannot_be_counted_on_from() {
    let changes: [fn(&mut Vec<Master>); 6] = [
        |masters| masters[2].node = NodeId(u64::MAX),
        |masters| masters[2].node = NodeId(0),
        |masters| masters[2].replica = ReplicaId(u64::MAX),
        |masters| masters[2].node = masters[0].node,
        |masters| masters[2].replica = masters[0].replica,
        |masters| masters[2].disk = masters[0].disk,
    ];
    for change in changes {
        let mut replica = Replica::empty();
        let Command::Found { cluster, shards, mut masters } = found(CLUSTER, 8) else { panic!() };
        change(&mut masters);
        let reply = replica.apply(&Command::Found { cluster, shards, masters });
        assert!(matches!(reply.body, Err(ErrorReply::Invalid(_))), "{:?}", reply.body);
        assert_eq!(replica.master.cluster(), None);
        replica.apply(&found(CLUSTER, 8)).body.unwrap();
    }
}
