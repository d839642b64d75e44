//! What the events of the world bring about: a node's turn, what comes of it, and the work of disks
//! and clients.

use std::cmp::Reverse;

use base::Micros;
use replica_group::turn::{Input, Level, Output, Token};
use router::{Reply, Request};

use super::queue::{Event, Scheduled};
use super::{Happening, World};
use crate::disk::{Done, Work};
use crate::guest::Guest;
use crate::network::Place;
use crate::points::CrashPoint;

impl<G: Guest> World<G> {
    pub(super) fn execute(&mut self, event: Event) -> Option<usize> {
        match event {
            Event::Frame { to, bytes } => {
                self.trace.event(&[3, self.time.0, to as u64]);
                self.trace.bytes(&bytes);
                self.deliver(to, Input::Frame(bytes));
            }
            Event::Tick { node, starts } if self.is_present(node, starts) => {
                self.trace.event(&[4, self.time.0, node as u64]);
                self.schedule(self.options.tick, Event::Tick { node, starts });
                self.nodes[node].write_superblock();
                self.deliver(node, Input::Tick);
                return Some(node);
            }
            Event::Turn { node, starts } if self.is_present(node, starts) => {
                self.nodes[node].turn_due = false;
                self.turn(node);
            }
            Event::Disk { node, starts, work } if self.is_present(node, starts) => {
                self.trace.event(&[5, self.time.0, node as u64, work as u64]);
                self.disk_done(node, work);
            }
            // Of a process that is gone.
            Event::Tick { .. } | Event::Turn { .. } | Event::Disk { .. } => {}
            Event::Door { node, client, number, request } => {
                self.trace.event(&[6, self.time.0, node as u64, client as u64, number]);
                self.on_door(node, client, number, *request);
            }
            Event::Answer { client, number, reply } => {
                self.trace.event(&[7, self.time.0, client as u64, number]);
                let time = self.time;
                self.clients[client].answered(time, number, *reply);
                self.after_client(client);
            }
            Event::Broken { client, number, sent } => {
                let time = self.time;
                self.clients[client].broken(time, number, sent);
                self.after_client(client);
            }
            Event::Client { client } => {
                let time = self.time;
                self.clients[client].wake(time);
                self.after_client(client);
            }
            Event::Alarm { number } => self.happened.push_back(Happening::Alarm(number)),
        }
        None
    }

    fn is_present(&self, node: usize, starts: u64) -> bool {
        self.nodes[node].starts == starts && self.nodes[node].guest.is_some()
    }

    pub(super) fn schedule(&mut self, after: Micros, event: Event) {
        self.scheduled += 1;
        let scheduled = Scheduled { at: self.time + after, number: self.scheduled, event };
        self.queue.push(Reverse(scheduled));
    }

    pub(super) fn deliver(&mut self, node: usize, input: Input<Request>) {
        let sim = &mut self.nodes[node];
        if sim.guest.is_none() {
            return;
        }
        sim.inbox.push_back(input);
        if sim.turn_due {
            return;
        }
        if self.time >= sim.busy_until {
            self.turn(node);
        } else {
            let wait = sim.busy_until - self.time;
            self.turn_later(node, wait);
        }
    }

    fn turn_later(&mut self, node: usize, wait: Micros) {
        self.nodes[node].turn_due = true;
        let starts = self.nodes[node].starts;
        self.schedule(wait, Event::Turn { node, starts });
    }

    /// One turn, or what a pause left of one: hands over everything in the inbox, then takes the
    /// output. A pause may fall between the reading of the clock and the handling of an input, and
    /// between the handling and the output.
    fn turn(&mut self, node: usize) {
        let time = self.time;
        let paused = self.options.paused;
        let sim = &mut self.nodes[node];
        if time < sim.busy_until {
            let wait = sim.busy_until - time;
            return self.turn_later(node, wait);
        }
        let waits = !sim.inbox.is_empty();
        if waits && self.reaches(node, CrashPoint::BeforeInput) {
            return;
        }
        let sim = &mut self.nodes[node];
        let Some(guest) = sim.guest.as_mut() else { return };
        let executed = guest.executed();
        let mut inputs = 0;
        while let Some(input) = sim.inbox.pop_front() {
            let now = match sim.stale.take() {
                Some(now) => now,
                None => {
                    let now = sim.clock.now(time);
                    if paused > 0 && self.random.chance(paused, 100_000) {
                        sim.stale = Some(now);
                        sim.inbox.push_front(input);
                        let span = Micros(self.random.below(self.options.pause_max.0));
                        return self.turn_later(node, span);
                    }
                    now
                }
            };
            guest.handle(now, input);
            sim.output_due = true;
            inputs += 1;
        }
        if paused > 0 && inputs > 0 && self.random.chance(paused, 100_000) {
            let span = Micros(self.random.below(self.options.pause_max.0));
            return self.turn_later(node, span);
        }
        if !sim.output_due {
            return;
        }
        sim.output_due = false;
        sim.busy_until = time + Micros(TURN_COST + INPUT_COST * inputs);
        let output = guest.take_output();
        let executes = guest.executed() > executed;
        if executes && self.reaches(node, CrashPoint::AfterApply) {
            return;
        }
        self.carry_out(node, output);
    }

    fn carry_out(&mut self, node: usize, output: Output<Reply>) {
        for event in &output.events {
            self.say(node, &event.text);
            if event.level == Level::Error && event.text.contains(": hand-off ") {
                self.errors.push(format!("node {node}: {}", event.text));
            }
        }
        if let Some(why) = output.fatal {
            self.happened.push_back(Happening::Fatal(node, why));
            return;
        }
        let mut started: Vec<(Work, Micros)> = Vec::new();
        let mut start = |work, span| started.push((work, span));
        let disk = &mut self.nodes[node].disk;
        disk.submit(output.wal, &mut start);
        for read in output.wal_reads {
            disk.read(read, &mut start);
        }
        for check in output.checks {
            disk.check(check, &mut start);
        }
        if let Some(flush) = output.flush {
            disk.flush(flush, &mut start);
        }
        self.disk_started(node, &started);
        if !output.frames.is_empty() && self.reaches(node, CrashPoint::BeforeSend) {
            return;
        }
        let frames = output.frames.len();
        for (sent, mut frame) in output.frames.into_iter().enumerate() {
            if sent > 0 && self.reaches(node, CrashPoint::BetweenSends) {
                return;
            }
            let now = self.nodes[node].clock.now(self.time).mono;
            let Some(to) = self.peers.get(&frame.to).copied() else { continue };
            frame.expire(now);
            for arrival in self.network.send(Place::Node(node), Place::Node(to)) {
                self.schedule(arrival, Event::Frame { to, bytes: frame.bytes.clone() });
            }
        }
        if frames > 0 && self.reaches(node, CrashPoint::AfterSend)
            || !output.replies.is_empty() && self.reaches(node, CrashPoint::BeforeAnswer)
        {
            return;
        }
        let replies = output.replies.len();
        for reply in output.replies {
            let late = reply
                .not_after
                .is_some_and(|not_after| self.nodes[node].clock.now(self.time).mono > not_after);
            if late {
                self.deliver(node, Input::Late(reply.token));
                continue;
            }
            let Some((client, number)) = self.nodes[node].requests.remove(&reply.token) else {
                panic!("node {node} answers {:?} twice, or was never asked", reply.token);
            };
            // Between clients and doors there are connections, which double nothing.
            let arrivals = self.network.send(Place::Node(node), Place::Client(client));
            if let Some(arrival) = arrivals.first().copied() {
                let reply = Box::new(reply.reply.clone());
                self.schedule(arrival, Event::Answer { client, number, reply });
            }
        }
        if replies > 0 && self.reaches(node, CrashPoint::AfterAnswer) {
            return;
        }
        if output.stopped {
            self.happened.push_back(Happening::Stopped(node));
        }
    }

    fn disk_started(&mut self, node: usize, started: &[(Work, Micros)]) {
        let starts = self.nodes[node].starts;
        for (work, span) in started {
            self.schedule(*span, Event::Disk { node, starts, work: *work });
        }
    }

    fn disk_done(&mut self, node: usize, work: Work) {
        if let Some(point) = self.points.of(node)
            && self.nodes[node].disk.stops_at(work, point)
        {
            self.reaches(node, point);
            return;
        }
        let mut started: Vec<(Work, Micros)> = Vec::new();
        let done = self.nodes[node].disk.done(work, &mut |work, span| started.push((work, span)));
        self.disk_started(node, &started);
        for place in self.nodes[node].disk.take_room() {
            self.deliver(node, Input::NoRoom { place, why: None });
        }
        match done {
            Ok(None) => {}
            Ok(Some(Done::Wal(ticket))) => self.deliver(node, Input::WalDone(ticket)),
            Ok(Some(Done::Prepared(ticket))) => self.deliver(node, Input::WalPrepared(ticket)),
            Ok(Some(Done::NoRoom(place, why))) => {
                self.deliver(node, Input::NoRoom { place, why: Some(why) });
            }
            Ok(Some(Done::NotPrepared(ticket, why))) => {
                self.deliver(node, Input::WalPreparationFailed(ticket, why));
            }
            Ok(Some(Done::Read(read, bytes))) => {
                self.deliver(node, Input::WalRead { read, bytes });
            }
            Ok(Some(Done::Checked(check, result))) => {
                self.deliver(node, Input::Checked { check, result });
            }
            Ok(Some(Done::Flushed(id))) => self.deliver(node, Input::Flushed(id)),
            Ok(Some(Done::FlushedStuck(id, why))) => {
                self.deliver(node, Input::StoreStuck(why));
                self.deliver(node, Input::Flushed(id));
            }
            Err(error) => {
                self.happened.push_back(Happening::Fatal(node, format!("the disk: {error}")));
            }
        }
    }

    fn on_door(&mut self, node: usize, client: usize, number: u64, request: Request) {
        let sim = &mut self.nodes[node];
        if sim.guest.is_none() {
            return self.break_off(client, number, false);
        }
        sim.token_last += 1;
        let token = Token(sim.token_last);
        sim.requests.insert(token, (client, number));
        self.deliver(node, Input::Request { token, request });
    }

    /// Tells a client that a connection broke.
    pub(super) fn break_off(&mut self, client: usize, number: u64, sent: bool) {
        let after = Micros(self.random.between(100, 2_000));
        self.schedule(after, Event::Broken { client, number, sent });
    }

    /// Carries out what a client wants after it was given something.
    pub(super) fn after_client(&mut self, client: usize) {
        let output = self.clients[client].take_output(self.time, &self.doors);
        for answered in output.answered {
            self.happened.push_back(Happening::Answered(client, Box::new(answered)));
        }
        for (node, number, request) in output.sends {
            let Some(node) = node else {
                self.break_off(client, number, false);
                continue;
            };
            let arrivals = self.network.send(Place::Client(client), Place::Node(node));
            if let Some(arrival) = arrivals.first().copied() {
                let request = Box::new(request);
                self.schedule(arrival, Event::Door { node, client, number, request });
            }
        }
        if let Some(at) = output.wake {
            let wait = at - self.time;
            self.schedule(wait, Event::Client { client });
        }
    }
}

/// Microseconds of CPU for a turn.
const TURN_COST: u64 = 5;
/// Microseconds of CPU for an input.
const INPUT_COST: u64 = 3;
