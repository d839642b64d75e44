//! What leaves with a turn: messages gathered into frames, one per address and lane, and answers to
//! reads in frames of their own.

use std::collections::BTreeMap;

use base::limits::FRAME_BYTES_MAX;
use base::{Address, Micros, codec};
use bytes::Bytes;
use replica_group::turn::{Frame, Lane};

use crate::frame::{HEADER_BYTES, NodeMessage, Sender};

/// Frames under construction.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    frames: BTreeMap<Key, Building>,
}

/// To whom, on which lane, and whether with answers to reads, which may have to be dropped: nothing
/// else is to be lost with them.
type Key = (Address, Lane, bool);

#[derive(Debug, Default)]
struct Building {
    bytes: Vec<u8>,
    /// When it may no longer leave.
    not_after: Option<Micros>,
}

impl Outbox {
    /// Adds a message to the frame for this address.
    pub(crate) fn push(
        &mut self,
        sender: &Sender,
        to: &Address,
        lane: Lane,
        message: &NodeMessage,
        out: &mut Vec<Frame>,
    ) {
        self.add(sender, (to.clone(), lane, false), None, message, out);
    }

    /// Adds an answer to a read, which may not leave after this time.
    pub(crate) fn push_read(
        &mut self,
        sender: &Sender,
        to: &Address,
        not_after: Micros,
        message: &NodeMessage,
        out: &mut Vec<Frame>,
    ) {
        self.add(sender, (to.clone(), Lane::Protocol, true), Some(not_after), message, out);
    }

    fn add(
        &mut self,
        sender: &Sender,
        key: Key,
        not_after: Option<Micros>,
        message: &NodeMessage,
        out: &mut Vec<Frame>,
    ) {
        let (to, lane) = (key.0.clone(), key.1);
        let building = self.frames.entry(key).or_default();
        let frame = &mut building.bytes;
        if frame.is_empty() {
            frame.reserve(512);
            sender.encode(frame);
        }
        let at = frame.len();
        frame.extend_from_slice(&[0; 4]);
        codec::encode_into(message, frame);
        let length = frame.len() - at - 4;
        let length = u32::try_from(length).unwrap_or_else(|_| unreachable!("limits bound it"));
        frame[at..at + 4].copy_from_slice(&length.to_be_bytes());
        if frame.len() > FRAME_BYTES_MAX && at > HEADER_BYTES {
            // Alone it fits, as every message does.
            let message = frame.split_off(at);
            let bytes = Bytes::from(std::mem::take(frame));
            out.push(Frame { to: to.clone(), lane, bytes, not_after: building.not_after.take() });
            sender.encode(frame);
            frame.extend_from_slice(&message);
        }
        building.not_after = match (building.not_after, not_after) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        if frame.len() >= FRAME_BYTES_SEAL {
            let bytes = Bytes::from(std::mem::take(frame));
            out.push(Frame { to, lane, bytes, not_after: building.not_after.take() });
        }
    }

    /// Takes all frames.
    pub(crate) fn take(&mut self, out: &mut Vec<Frame>) {
        for ((to, lane, _), building) in std::mem::take(&mut self.frames) {
            let Building { bytes, not_after } = building;
            if !bytes.is_empty() {
                out.push(Frame { to, lane, bytes: Bytes::from(bytes), not_after });
            }
        }
    }
}

/// A frame that holds so much is closed, and the next message begins another.
const FRAME_BYTES_SEAL: usize = 1 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use base::{BootId, NodeId};
    use router::{Answer, Reply, ReplyHeader};

    use super::*;
    use crate::frame;

    const SENDER: Sender = Sender { cluster: 7, node: NodeId(1), starts: 1, boot: BootId(3) };

    fn answer(id: u64, bytes: usize) -> NodeMessage {
        let body = Ok(Answer::Value(Some(Bytes::from(vec![b'v'; bytes]))));
        NodeMessage::ForwardReply { id, reply: Reply { header: ReplyHeader::default(), body } }
    }

    /// Whether the frame may be dropped, and the numbers of the answers in it.
    fn content(frame: &Frame) -> (Option<Micros>, Vec<u64>) {
        let mut bytes = frame.bytes.clone();
        frame::open(&mut bytes).unwrap();
        let mut ids = Vec::new();
        while let Some(message) = frame::next(&mut bytes) {
            if let NodeMessage::ForwardReply { id, .. } = message.unwrap() {
                ids.push(id);
            }
        }
        (frame.not_after, ids)
    }

    #[test]
    fn nothing_but_reads_is_lost_with_a_read_that_is_too_late() {
        let to = Address::new("node2");
        let (mut outbox, mut out) = (Outbox::default(), Vec::new());
        outbox.push(&SENDER, &to, Lane::Protocol, &answer(1, 10), &mut out);
        outbox.push_read(&SENDER, &to, Micros(50), &answer(2, 10), &mut out);
        outbox.push(&SENDER, &to, Lane::Protocol, &answer(3, 10), &mut out);
        outbox.push_read(&SENDER, &to, Micros(40), &answer(4, 10), &mut out);
        outbox.take(&mut out);
        let found: Vec<_> = out.iter().map(content).collect();
        assert_eq!(found, [(None, vec![1, 3]), (Some(Micros(40)), vec![2, 4])]);
    }

    #[test]
    fn every_frame_with_reads_has_their_limit() {
        let to = Address::new("node2");
        let (mut outbox, mut out) = (Outbox::default(), Vec::new());
        for id in 0..4 {
            let (limit, message) = (Micros(100 + id), answer(id, FRAME_BYTES_SEAL - 100));
            outbox.push_read(&SENDER, &to, limit, &message, &mut out);
        }
        outbox.take(&mut out);
        let mut seen = Vec::new();
        for (limit, ids) in out.iter().map(content) {
            let first = ids.iter().min().unwrap();
            assert_eq!(limit, Some(Micros(100 + first)), "the earliest one");
            seen.extend(ids);
        }
        assert_eq!(seen, [0, 1, 2, 3]);
    }
}
