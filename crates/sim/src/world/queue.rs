//! What is to happen, ordered by time and then by the order in which it was planned.

use base::Micros;
use bytes::Bytes;
use router::{Reply, Request};

use crate::disk::Work;

pub(super) struct Scheduled {
    pub(super) at: Micros,
    pub(super) number: u64,
    pub(super) event: Event,
}

pub(super) enum Event {
    Frame { to: usize, bytes: Bytes },
    Tick { node: usize, starts: u64 },
    Turn { node: usize, starts: u64 },
    Disk { node: usize, starts: u64, work: Work },
    Door { node: usize, client: usize, number: u64, request: Box<Request> },
    Answer { client: usize, number: u64, reply: Box<Reply> },
    Broken { client: usize, number: u64, sent: bool },
    Client { client: usize },
    Alarm { number: u64 },
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
