//! A client and a group with a bad network between them: what the caller is told is what the log
//! did.

use std::collections::BTreeMap;

use base::{Micros, Now};
use router::client::{CallError, CallId, Client, ClientOptions, Failure, Send};
use router::{Body, Request};

use super::*;

/// What is under way between the client and the group.
enum Message {
    Request(Box<Send>),
    Reply(Box<Send>, Box<Reply>),
}

struct World {
    random: Random,
    client: Client,
    replica: Replica,
    now: Now,
    network: Vec<Message>,
    /// The element that each call appends.
    calls: BTreeMap<CallId, String>,
    /// How often each element must be in the value.
    verdicts: BTreeMap<String, std::ops::RangeInclusive<usize>>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let options = ClientOptions {
            timeout: Micros::from_millis(400),
            attempt_timeout: Micros::from_millis(40),
            pause_max: Micros::from_millis(20),
            ..ClientOptions::default()
        };
        let client = Client::new(ClientId(random.next_u128()), random.next_u64(), options);
        World {
            random,
            client,
            replica: Replica::new(),
            now: Now { mono: Micros(1), wall: WallMillis(1_000) },
            network: Vec::new(),
            calls: BTreeMap::new(),
            verdicts: BTreeMap::new(),
        }
    }

    fn begin(&mut self) {
        let element = format!("<{}>", self.calls.len());
        let op = KvOp::Append { key: bytes("log"), value: element.clone().into() };
        let call = self.client.begin(self.now, Body::Kv(op), None).unwrap();
        self.calls.insert(call, element);
    }

    /// The group's side of a request.
    fn serve(&mut self, request: &Request) -> Reply {
        let Body::Kv(op) = &request.body else { panic!() };
        let session = request.header.session.unwrap();
        self.replica.time = self.replica.time.max(self.now.wall.0);
        self.replica.apply(&client(SHARD, session, op.clone()))
    }

    fn refused(error: ErrorReply) -> Reply {
        Reply { header: router::ReplyHeader::default(), body: Err(error) }
    }

    fn deliver(&mut self) {
        let at = self.random.below(self.network.len() as u64) as usize;
        match self.network.swap_remove(at) {
            Message::Request(send) => match self.random.below(12) {
                0 => {}
                1 => self.client.failed(self.now, send.call, send.attempt, Failure::NotSent),
                2 => {
                    self.serve(&send.request);
                    self.client.failed(self.now, send.call, send.attempt, Failure::Lost);
                }
                3 => {
                    let reply = World::refused(ErrorReply::NotReady("no leader".to_string()));
                    self.network.push(Message::Reply(send, Box::new(reply)));
                }
                4 => {
                    self.serve(&send.request);
                    let reply = World::refused(ErrorReply::OutcomeUnknown("lost".to_string()));
                    self.network.push(Message::Reply(send, Box::new(reply)));
                }
                _ => {
                    let reply = self.serve(&send.request);
                    self.network.push(Message::Reply(send, Box::new(reply)));
                }
            },
            Message::Reply(send, reply) => {
                if !self.random.chance(1, 8) {
                    self.client.reply(self.now, send.call, send.attempt, *reply);
                }
            }
        }
    }

    fn take_output(&mut self) {
        let output = self.client.take_output();
        self.network.extend(output.sends.into_iter().map(Box::new).map(Message::Request));
        for (call, result) in output.finished {
            let times = match result {
                Ok(_) => 1..=1,
                Err(CallError::OutcomeUnknown(_)) => 0..=1,
                Err(CallError::Unavailable(_) | CallError::Refused(_)) => 0..=0,
            };
            let again = self.verdicts.insert(self.calls[&call].clone(), times);
            assert_eq!(again, None, "a call ends once");
        }
    }

    fn step(&mut self) {
        let step = self.random.below(20_000);
        self.now.mono = Micros(self.now.mono.0 + step);
        self.now.wall.0 += step / 1_000;
        // A clock that is set back or far ahead, and sessions that are forgotten early.
        match self.random.below(200) {
            0 => self.now.wall.0 /= 2,
            1 => self.now.wall.0 += 700_000,
            2..6 => {
                let before = WallMillis(self.replica.time);
                self.replica.apply(&Command::ExpireSessions { shard: SHARD, before });
            }
            _ => {}
        }
        self.client.tick(self.now);
        self.take_output();
        for _ in 0..self.random.below(4) {
            if !self.network.is_empty() {
                self.deliver();
                self.take_output();
            }
        }
    }
}

#[test]
fn what_the_caller_is_told_is_what_the_log_did() {
    let mut known = 0;
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..600 {
            if world.random.chance(1, 4) {
                world.begin();
            }
            world.step();
        }
        while world.client.open() > 0 || !world.network.is_empty() {
            world.step();
        }
        let value = world.replica.value("log").unwrap_or_default();
        let value = String::from_utf8(value.to_vec()).unwrap();
        assert_eq!(world.verdicts.len(), world.calls.len(), "seed {seed}");
        for (element, times) in &world.verdicts {
            let found = value.matches(element.as_str()).count();
            assert!(times.contains(&found), "seed {seed}: {element} {found} times, {times:?}");
            known += usize::from(*times == (1..=1));
        }
        world.replica.assert_sound();
    }
    assert!(known > 3_000, "most calls end well: {known}");
}
