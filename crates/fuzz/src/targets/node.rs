//! A whole node in one of several situations, with frames from its neighbours and requests from
//! doors.

use base::Micros;
use bytes::{BufMut, Bytes};
use client::convert::request_from_proto;
use prost::Message;

use super::Target;
use crate::host::{Given, Host};
use crate::mutate::Layout;
use crate::stage::{self, STEP, Stage};
use crate::{items, items::Item};

pub(super) const TARGET: Target = Target {
    name: "node",
    layout: Layout::Items,
    run,
    memory: 64 << 20,
    memory_per_byte: 1_024,
    rounds: 2_500,
};

/// The first item of a story is of this kind and the number of a stage above it.
pub(crate) const STAGE: u8 = 16;
/// Messages of the neighbours, by their number.
pub(crate) const NEIGHBOURS: u8 = 4;
/// A frame as it is.
pub(crate) const FRAME: u8 = 4;
/// Time passes: as many steps as the first byte says, and one.
pub(crate) const TIME: u8 = 5;
/// A door's request.
pub(crate) const REQUEST: u8 = 6;

const ITEMS_MAX: usize = 200;
const STEPS_MAX: u64 = 400;

fn run(input: &[u8]) {
    let stages = stage::all();
    let story = items::split(input);
    let chosen = story.first().map_or(0, |item| usize::from(item.kind.saturating_sub(STAGE)));
    let stage = &stages[chosen % stages.len()];
    let (host, time) = stage.enter();
    let mut told = Told { host, time, stage, steps: 0, given: Vec::new(), token: 1 << 32 };
    for item in story.into_iter().take(ITEMS_MAX) {
        told.item(item);
        if told.host.fatal.is_some() {
            return;
        }
    }
    told.pass(20);
    // What was told of shards may be wrong; what is done with it is not to end the node.
    let _ = told.host.node.status();
}

struct Told {
    host: Host,
    time: Micros,
    stage: &'static Stage,
    steps: u64,
    given: Vec<Given>,
    token: u64,
}

impl Told {
    fn item(&mut self, item: Item) {
        match item.kind % 8 {
            neighbour @ 0..NEIGHBOURS => {
                let headers = &self.stage.headers;
                let header = &headers[usize::from(neighbour) % headers.len()];
                let mut frame = Vec::with_capacity(header.len() + 4 + item.bytes.len());
                frame.extend_from_slice(header);
                frame.put_u32(item.bytes.len() as u32);
                frame.extend_from_slice(&item.bytes);
                self.given.push(Given::Frame(frame.into()));
            }
            FRAME => self.given.push(Given::Frame(item.bytes.into())),
            TIME => self.pass(1 + u64::from(item.bytes.first().copied().unwrap_or_default())),
            _ => {
                let request = api::v1::PipelineRequest::decode(Bytes::from(item.bytes)).ok();
                let request = request.map(|request| request_from_proto(request.request));
                if let Some(Ok((request, _))) = request {
                    self.token += 1;
                    self.given.push(Given::Request(self.token, Box::new(request)));
                }
            }
        }
    }

    fn pass(&mut self, steps: u64) {
        let steps = steps.min(STEPS_MAX.saturating_sub(self.steps));
        self.steps += steps;
        for _ in 0..steps {
            self.time = self.time + STEP;
            let given = std::mem::take(&mut self.given);
            self.host.step(stage::clock(self.time), &given);
            if self.host.fatal.is_some() {
                return;
            }
        }
    }
}
