//! What a client promises its caller, shown without a network.

mod moved;

mod reads;

use base::limits::SESSION_OPEN_MAX;
use base::{ClusterId, ConfigNumber, CopyId, DiskId, GroupId, NodeId, ReplicaId};
use base::{ShardEpoch, Version};
use bytes::Bytes;

use super::*;
use crate::configuration::{GroupInfo, Owner};
use crate::request::{Answer, ClusterOp, KvOp, MasterAnswer, MasterOp};
use crate::slot::shard_of;

const SHARDS: u16 = 2;

/// A client and a clock that the test moves.
struct World {
    client: Client,
    now: Now,
}

impl World {
    fn new() -> World {
        let now = Now { mono: Micros::from_secs(100), wall: WallMillis(1_000_000) };
        World { client: Client::new(ClientId(7), 1, ClientOptions::default()), now }
    }

    fn routed() -> World {
        let mut world = World::new();
        world.client.routes(world.now, routes(1, &[1, 2]));
        world.client.take_output();
        world
    }

    fn begin(&mut self, body: Body) -> CallId {
        self.client.begin(self.now, body, None).unwrap()
    }

    /// Starts a call, and gives its first attempt.
    fn first(&mut self, body: Body) -> Send {
        self.begin(body);
        self.sent()
    }

    /// The one attempt that is to be sent.
    fn sent(&mut self) -> Send {
        let output = self.client.take_output();
        assert_eq!(output.finished, Vec::new());
        let [send] = output.sends.try_into().unwrap();
        send
    }

    fn silent(&mut self) {
        let output = self.client.take_output();
        assert!(output.sends.is_empty() && output.finished.is_empty(), "{output:?}");
    }

    fn finished(&mut self) -> (CallId, Result<Reply, CallError>) {
        let output = self.client.take_output();
        assert_eq!(output.sends, Vec::new());
        let [finished] = output.finished.try_into().unwrap();
        finished
    }

    fn answer(&mut self, to: &Send, body: Result<Answer, ErrorReply>) {
        self.answer_with(to, ReplyHeader::default(), body);
    }

    fn answer_with(&mut self, to: &Send, header: ReplyHeader, body: Result<Answer, ErrorReply>) {
        self.client.reply(self.now, to.call, to.attempt, Reply { header, body });
    }

    /// Moves time to the next timer, and gives the attempt that follows.
    fn wake(&mut self) -> Send {
        self.now.mono = self.client.next_wake().unwrap();
        self.client.tick(self.now);
        self.sent()
    }

    /// Lets time pass until the call ends.
    fn wait_for_end(&mut self) -> Result<Reply, CallError> {
        loop {
            self.now.mono = self.client.next_wake().unwrap();
            self.client.tick(self.now);
            if let Some((_, result)) = self.client.take_output().finished.pop() {
                assert_eq!(self.client.open(), 0);
                assert_eq!(self.client.next_wake(), None);
                return result;
            }
        }
    }
}

/// A key of this shard, the same for the same number.
fn key(shard: u16, number: u32) -> Bytes {
    let keys = (0..).map(|n| format!("{number}.{n}"));
    let mut keys = keys.filter(|key| shard_of(key.as_bytes(), SHARDS) == ShardId(shard));
    Bytes::from(keys.next().unwrap())
}

fn put(shard: u16) -> Body {
    Body::Kv(KvOp::Put { key: key(shard, 0), value: Bytes::from_static(b"v") })
}

fn get(shard: u16) -> Body {
    Body::Kv(KvOp::Get { key: key(shard, 0) })
}

fn routes(version: u64, owners: &[u64]) -> Routes {
    let owner = |group| Owner { group, epoch: ShardEpoch(version), copy: CopyId(1) };
    let member = |node| (ReplicaId(node), NodeId(node), DiskId(u128::from(node)));
    let group = |nodes: [u64; 3]| GroupInfo { members: nodes.map(member).to_vec() };
    Routes {
        cluster: ClusterId(5),
        version,
        configuration: ConfigNumber(1),
        owners: owners.iter().map(|group| Some(owner(GroupId(*group)))).collect(),
        groups: [(GroupId(1), group([1, 2, 3])), (GroupId(2), group([4, 5, 6]))].into(),
        nodes: BTreeMap::new(),
        handoffs: Vec::new(),
        handoff_next: CopyId(2),
        barred: BTreeMap::new(),
        epochs: BTreeMap::new(),
        changes: BTreeMap::new(),
        replica_next: ReplicaId(7),
        drained: BTreeSet::new(),
    }
}

fn leader(group: u64, node: u64) -> ReplyHeader {
    ReplyHeader {
        group: Some(GroupId(group)),
        leader: Some(NodeId(node)),
        ..ReplyHeader::default()
    }
}

fn session(send: &Send) -> Session {
    send.request.header.session.unwrap()
}

fn number(send: &Send) -> (u64, u64) {
    (session(send).number.0, session(send).first_incomplete.0)
}

fn done() -> Result<Answer, ErrorReply> {
    Ok(Answer::Done)
}

#[test]
fn a_write_goes_to_the_owner_and_ends_with_its_answer() {
    let mut world = World::routed();
    let send = world.first(put(1));
    assert!(matches!(send.to, Target::Node(NodeId(4..=6))), "{send:?}");
    assert_eq!(send.request.header.cluster, Some(ClusterId(5)));
    assert_eq!(send.request.header.route_epoch, Some(ShardEpoch(1)));
    let attempt = ClientOptions::default().attempt_timeout;
    assert_eq!(
        send.request.header.timeout,
        Micros(2 * attempt.0),
        "no longer than it is waited for"
    );
    world.answer_with(&send, ReplyHeader { version: Version(3), ..leader(2, 5) }, done());
    let (call, result) = world.finished();
    assert_eq!((call, result.unwrap().header.version), (send.call, Version(3)));
    // From then on the leader is known.
    assert_eq!(world.first(get(1)).to, Target::Node(NodeId(5)));
}

#[test]
fn without_routes_any_node_is_asked_and_routes_are_wanted() {
    let mut world = World::new();
    world.begin(get(0));
    let output = world.client.take_output();
    assert!(output.wants_routes);
    assert_eq!(output.sends[0].to, Target::Any);
    assert_eq!(output.sends[0].request.header.cluster, None);
    world.begin(get(0));
    assert!(!world.client.take_output().wants_routes, "not asked for again at once");
}

#[test]
fn reads_have_no_session_and_writes_have_one() {
    let mut world = World::routed();
    assert_eq!(world.first(get(0)).request.header.session, None);
    assert_eq!(number(&world.first(put(0))), (1, 1));
    let status = Body::Cluster(ClusterOp::Status);
    assert_eq!(world.first(status).request.header.session, None);
    let init = Body::Cluster(ClusterOp::Init { masters: Vec::new(), shards: 1 });
    assert_eq!(world.first(init).request.header.session, None);
}

#[test]
fn the_lowest_open_number_is_counted_for_each_shard() {
    let mut world = World::routed();
    let first = world.first(put(0));
    let second = world.first(put(1));
    let third = world.first(put(0));
    let join = world.first(Body::Master(MasterOp::Join { groups: Vec::new() }));
    assert_eq!(number(&first), (1, 1));
    assert_eq!(number(&second), (2, 2));
    assert_eq!(number(&third), (3, 1));
    assert_eq!((join.to, number(&join)), (Target::Any, (4, 4)));
    world.answer(&first, done());
    world.finished().1.unwrap();
    assert_eq!(number(&world.first(put(0))), (5, 3));
    world.answer(&third, done());
    world.finished().1.unwrap();
    assert_eq!(number(&world.first(put(1))), (6, 2));
}

#[test]
fn numbers_given_before_the_shards_were_known_stay_open_on_their_shards() {
    let mut world = World::new();
    let first = world.first(put(0));
    let second = world.first(put(1));
    assert_eq!((number(&first), number(&second)), ((1, 1), (2, 1)));
    world.client.routes(world.now, routes(1, &[1, 2]));
    assert_eq!(number(&world.first(put(1))), (3, 2));
    assert_eq!(number(&world.first(put(0))), (4, 1));
    world.answer(&first, done());
    world.finished().1.unwrap();
    assert_eq!(number(&world.first(put(0))), (5, 4));
}

#[test]
fn all_attempts_carry_one_identity() {
    let mut world = World::routed();
    let first = world.first(put(0));
    world.now.wall.0 += 77;
    let second = world.wake();
    assert_eq!((second.attempt, session(&second)), (2, session(&first)));
    world.client.failed(world.now, second.call, second.attempt, Failure::Lost);
    let third = world.wake();
    assert_eq!((third.attempt, session(&third)), (3, session(&first)));
    assert!(third.request.header.timeout <= first.request.header.timeout);
}

#[test]
fn a_late_answer_to_an_older_attempt_counts() {
    let mut world = World::routed();
    let first = world.first(put(0));
    world.wake();
    world.answer(&first, done());
    assert!(world.finished().1.is_ok());
    // What comes after the end is dropped.
    world.answer(&first, Err(ErrorReply::NotLeader));
    world.client.failed(world.now, first.call, 2, Failure::Lost);
    world.silent();
}

#[test]
fn stamps_lie_above_the_clock_and_above_everything_seen() {
    let mut world = World::routed();
    let first = world.first(put(0));
    assert_eq!(session(&first).stamp, WallMillis(1_000_001));
    let header = ReplyHeader { stamp: WallMillis(2_000_000), ..ReplyHeader::default() };
    world.answer_with(&first, header, done());
    world.finished().1.unwrap();
    assert_eq!(session(&world.first(put(0))).stamp, WallMillis(2_000_001));
}

#[test]
fn the_hint_of_a_replica_that_does_not_lead_is_followed_at_once() {
    let mut world = World::routed();
    let first = world.first(put(0));
    let Target::Node(tried) = first.to else { panic!() };
    let hint = if tried == NodeId(1) { 2 } else { 1 };
    world.answer_with(&first, leader(1, hint), Err(ErrorReply::NotLeader));
    assert_eq!(world.sent().to, Target::Node(NodeId(hint)));
}

#[test]
fn without_a_hint_another_member_is_tried_after_a_pause() {
    let mut world = World::routed();
    let first = world.first(put(0));
    // A replica that names itself while it does not lead gives no hint.
    let Target::Node(tried) = first.to else { panic!() };
    world.answer_with(&first, leader(1, tried.0), Err(ErrorReply::NotLeader));
    world.silent();
    let second = world.wake();
    assert_ne!(second.to, first.to);
    assert!(matches!(second.to, Target::Node(NodeId(1..=3))));
}

#[test]
fn replicas_that_point_at_each_other_do_not_make_the_client_spin() {
    let mut world = World::routed();
    let mut send = world.first(put(0));
    let mut at_once = 0;
    loop {
        let Target::Node(tried) = send.to else { panic!() };
        world.answer_with(&send, leader(1, tried.0 % 3 + 1), Err(ErrorReply::NotLeader));
        match world.client.take_output().sends.pop() {
            Some(next) => send = next,
            None => break,
        }
        at_once += 1;
        assert!(at_once <= HOPS_MAX);
    }
    world.wake();
}

#[test]
fn an_answer_that_names_a_newer_owner_beats_the_routes() {
    let mut world = World::routed();
    let send = world.first(put(0));
    let moved = ErrorReply::Moved { epoch: ShardEpoch(2), group: GroupId(2) };
    world.answer(&send, Err(moved.clone()));
    let output = world.client.take_output();
    assert!(output.wants_routes);
    assert!(matches!(output.sends[0].to, Target::Node(NodeId(4..=6))));
    assert_eq!(output.sends[0].request.header.route_epoch, Some(ShardEpoch(2)));
    // The same once more is no news, and waits.
    world.answer(&output.sends[0], Err(moved));
    world.silent();
    // Older routes change nothing, newer ones do.
    world.client.routes(world.now, routes(1, &[1, 1]));
    assert!(matches!(world.first(get(0)).to, Target::Node(NodeId(4..=6))));
    world.client.routes(world.now, routes(3, &[1, 1]));
    assert!(matches!(world.first(get(0)).to, Target::Node(NodeId(1..=3))));
}

#[test]
fn a_write_that_may_have_been_executed_ends_as_unknown() {
    let mut world = World::routed();
    let send = world.first(put(0));
    world.client.failed(world.now, send.call, send.attempt, Failure::Lost);
    // Later attempts that surely were not executed do not change that.
    let second = world.wake();
    world.answer(&second, Err(ErrorReply::ResourceExhausted("queue".to_string())));
    world.silent();
    let third = world.wake();
    world.answer(&third, Err(ErrorReply::NotReady("no leader".to_string())));
    assert!(matches!(world.wait_for_end(), Err(CallError::OutcomeUnknown(_))));
}

#[test]
fn a_write_that_never_left_and_a_read_end_as_unavailable() {
    let mut world = World::routed();
    let mut send = world.first(put(0));
    while send.attempt < 5 {
        world.client.failed(world.now, send.call, send.attempt, Failure::NotSent);
        send = world.wake();
    }
    world.answer(&send, Err(ErrorReply::Unavailable("nobody".to_string())));
    // The pauses grow to their maximum, and each further attempt fails the same way.
    let error = loop {
        world.now.mono = world.client.next_wake().unwrap();
        world.client.tick(world.now);
        let output = world.client.take_output();
        for send in output.sends {
            world.client.failed(world.now, send.call, send.attempt, Failure::NotSent);
        }
        if let Some((_, result)) = output.finished.into_iter().next() {
            break result.unwrap_err();
        }
    };
    assert!(matches!(&error, CallError::Unavailable(_)), "{error}");

    let send = world.first(get(0));
    world.client.failed(world.now, send.call, send.attempt, Failure::Lost);
    assert!(matches!(world.wait_for_end(), Err(CallError::Unavailable(_))));
}

#[test]
fn an_answer_that_knows_no_outcome_leaves_the_attempt_open() {
    let mut world = World::routed();
    let send = world.first(put(0));
    world.answer(&send, Err(ErrorReply::OutcomeUnknown("the leader was lost".to_string())));
    let second = world.wake();
    assert_eq!(session(&second), session(&send));
    world.answer(&second, Err(ErrorReply::NotReady("x".to_string())));
    assert!(matches!(world.wait_for_end(), Err(CallError::OutcomeUnknown(_))));
}

#[test]
fn f22_a_forgotten_session_is_new_only_for_what_was_never_executed() {
    let mut world = World::routed();
    let horizon = WallMillis(9_000_000);
    let expired = || Err(ErrorReply::SessionExpired { horizon });
    let send = world.first(put(0));
    world.answer(&send, expired());
    let again = world.sent();
    assert_eq!(session(&again).number, session(&send).number);
    assert_eq!(session(&again).stamp, WallMillis(9_000_001));
    world.answer(&again, done());
    world.finished().1.unwrap();

    let send = world.first(put(0));
    world.client.failed(world.now, send.call, send.attempt, Failure::Lost);
    let again = world.wake();
    world.answer(&again, expired());
    assert!(matches!(world.finished().1, Err(CallError::OutcomeUnknown(_))));
}

#[test]
fn a_stamp_too_far_ahead_is_mended_under_the_same_number() {
    let mut world = World::routed();
    let send = world.first(put(0));
    let log_time = WallMillis(500);
    world.answer(&send, Err(ErrorReply::StampTooFar { log_time }));
    let again = world.sent();
    let (before, after) = (session(&send), session(&again));
    assert_eq!(after, Session { stamp: WallMillis(501), ..before });
}

/// The session could else be forgotten up to the lower stamp only, and the first attempt be new.
#[test]
fn f22_a_stamp_too_far_ahead_stays_while_an_earlier_attempt_may_be_executed() {
    let mut world = World::routed();
    let ahead = world.first(put(0));
    let header = ReplyHeader { stamp: WallMillis(2_000_000), ..ReplyHeader::default() };
    world.answer_with(&ahead, header, done());
    world.finished().1.unwrap();
    let send = world.first(put(0));
    world.client.failed(world.now, send.call, send.attempt, Failure::Lost);
    let again = world.wake();
    world.answer(&again, Err(ErrorReply::StampTooFar { log_time: WallMillis(500) }));
    let third = world.wake();
    assert_eq!(session(&third), session(&send));
    world.client.abandon(world.now, send.call);
    assert!(
        session(&world.first(put(0))).stamp < session(&send).stamp,
        "later calls are better off"
    );
}

#[test]
fn final_errors_reach_the_caller_as_they_are() {
    let mut world = World::routed();
    for error in [
        ErrorReply::Invalid("x".to_string()),
        ErrorReply::Refused("x".to_string()),
        ErrorReply::Unsupported("x".to_string()),
        ErrorReply::ResourceExhausted("x".to_string()),
        ErrorReply::WrongCluster { cluster: ClusterId(9) },
    ] {
        let send = world.first(put(0));
        world.answer(&send, Err(error.clone()));
        assert_eq!(world.finished().1, Err(CallError::Refused(error)));
    }
    let send = world.first(put(0));
    world.answer(&send, Err(ErrorReply::Stale));
    assert!(matches!(world.finished().1, Err(CallError::OutcomeUnknown(_))));
}

#[test]
fn what_is_over_a_limit_is_refused_before_it_is_sent() {
    let mut world = World::routed();
    let value = Bytes::from(vec![0; base::limits::VALUE_BYTES_MAX + 1]);
    let body = Body::Kv(KvOp::Put { key: key(0, 0), value });
    let refused = world.client.begin(world.now, body, None);
    assert!(matches!(refused, Err(CallError::Refused(ErrorReply::Invalid(_)))));
    world.silent();
}

#[test]
fn one_call_too_many_is_refused() {
    let options = ClientOptions { calls_max: 2, ..ClientOptions::default() };
    let mut client = Client::new(ClientId(1), 1, options);
    let now = Now::default();
    client.begin(now, get(0), None).unwrap();
    client.begin(now, get(0), None).unwrap();
    let refused = client.begin(now, get(0), None);
    assert!(matches!(refused, Err(CallError::Refused(ErrorReply::ResourceExhausted(_)))));
}

#[test]
fn more_writes_than_a_session_table_holds_wait_for_the_oldest() {
    let mut world = World::routed();
    let max = SESSION_OPEN_MAX as u64;
    let sends: Vec<Send> = (0..max).map(|_| world.first(put(0))).collect();
    let waiting = [world.begin(put(0)), world.begin(put(0))];
    world.silent();
    // Another shard is not held up.
    assert_eq!(number(&world.first(put(1))).0, max + 1);
    // Room is made by the oldest alone: the table keeps what comes after it.
    world.answer(&sends[5], done());
    world.finished().1.unwrap();
    world.silent();
    world.answer(&sends[0], done());
    let output = world.client.take_output();
    let [next] = output.sends.try_into().unwrap();
    assert_eq!((next.call, number(&next)), (waiting[0], (max + 2, 2)));
    for send in &sends[1..5] {
        world.answer(send, done());
    }
    let output = world.client.take_output();
    let [next] = output.sends.try_into().unwrap();
    assert_eq!((next.call, number(&next)), (waiting[1], (max + 3, 3)));
}

#[test]
fn a_write_that_waits_until_its_deadline_was_never_sent() {
    let mut world = World::routed();
    for _ in 0..SESSION_OPEN_MAX {
        world.begin(put(0));
    }
    let timeout = Some(Micros::from_millis(10));
    let call = world.client.begin(world.now, put(0), timeout).unwrap();
    world.client.take_output();
    world.now.mono = world.client.next_wake().unwrap();
    world.client.tick(world.now);
    let (ended, result) = world.finished();
    assert_eq!(ended, call);
    assert!(matches!(result, Err(CallError::Unavailable(_))));
}

#[test]
fn a_call_that_is_given_up_leaves_room() {
    let mut world = World::routed();
    for _ in 0..SESSION_OPEN_MAX {
        world.begin(put(0));
    }
    let oldest = world.client.take_output().sends[0].call;
    let waiting = world.begin(put(0));
    world.client.abandon(world.now, oldest);
    assert_eq!(world.sent().call, waiting);
}

#[test]
fn an_answer_of_the_shard_master_ends_its_call() {
    let mut world = World::routed();
    let send = world.first(Body::Master(MasterOp::Query { number: None }));
    assert_eq!((send.to, send.request.header.session), (Target::Any, None));
    let answer = Answer::Master(MasterAnswer::Registered(NodeId(1)));
    world.answer(&send, Ok(answer));
    assert!(world.finished().1.is_ok());
}

#[test]
fn a_newer_configuration_in_an_answer_makes_the_client_want_routes() {
    let mut world = World::routed();
    let send = world.first(get(0));
    let header = ReplyHeader { configuration: ConfigNumber(2), ..ReplyHeader::default() };
    world.answer_with(&send, header, Ok(Answer::Value(None)));
    assert!(world.client.take_output().wants_routes);
}
