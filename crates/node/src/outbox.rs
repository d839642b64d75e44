//! What leaves with a turn: messages gathered into frames, one per address and lane, and answers to
//! reads in frames of their own.

use std::collections::BTreeMap;

use base::limits::FRAME_BYTES_MAX;
use base::{Address, Micros, codec};
use bytes::Bytes;
use replica_group::turn::{Frame, Lane, Leased};

use crate::frame::{NodeMessage, Sender};

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
    /// When it may no longer leave, and what leaves then.
    leased: Option<(Micros, Vec<u8>)>,
}

impl Building {
    fn take(&mut self, to: Address, lane: Lane) -> Frame {
        let leased = self.leased.take();
        let leased =
            leased.map(|(not_after, instead)| Leased { not_after, instead: Bytes::from(instead) });
        Frame { to, lane, bytes: Bytes::from(std::mem::take(&mut self.bytes)), leased }
    }
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
        self.add(sender, (to.clone(), lane, false), message, None, out);
    }

    /// Adds an answer to a read, which may not leave after this time; and what leaves then.
    pub(crate) fn push_read(
        &mut self,
        sender: &Sender,
        to: &Address,
        message: &NodeMessage,
        (not_after, instead): (Micros, &NodeMessage),
        out: &mut Vec<Frame>,
    ) {
        let key = (to.clone(), Lane::Protocol, true);
        self.add(sender, key, message, Some((not_after, instead)), out);
    }

    fn add(
        &mut self,
        sender: &Sender,
        key: Key,
        message: &NodeMessage,
        leased: Option<(Micros, &NodeMessage)>,
        out: &mut Vec<Frame>,
    ) {
        let (to, lane) = (key.0.clone(), key.1);
        let building = self.frames.entry(key).or_default();
        let before = building.bytes.len();
        append(sender, &mut building.bytes, message);
        if building.bytes.len() > FRAME_BYTES_MAX && before > 0 {
            // Alone it fits, as every message does.
            building.bytes.truncate(before);
            out.push(building.take(to.clone(), lane));
            append(sender, &mut building.bytes, message);
        }
        if let Some((not_after, message)) = leased {
            let (limit, instead) = building.leased.get_or_insert_with(|| (not_after, Vec::new()));
            *limit = not_after.min(*limit);
            append(sender, instead, message);
        }
        if building.bytes.len() >= FRAME_BYTES_SEAL {
            out.push(building.take(to, lane));
        }
    }

    /// Takes all frames.
    pub(crate) fn take(&mut self, out: &mut Vec<Frame>) {
        for ((to, lane, _), mut building) in std::mem::take(&mut self.frames) {
            if !building.bytes.is_empty() {
                out.push(building.take(to, lane));
            }
        }
    }
}

/// Adds a message to a frame, behind the header of the frame where it is the first.
fn append(sender: &Sender, frame: &mut Vec<u8>, message: &NodeMessage) {
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
}

/// A frame that holds so much is closed, and the next message begins another.
const FRAME_BYTES_SEAL: usize = 1 << 20;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use base::{BootId, NodeId};
    use router::{Answer, ErrorReply, Reply, ReplyHeader};

    use super::*;
    use crate::frame;

    const SENDER: Sender = Sender { cluster: 7, node: NodeId(1), starts: 1, boot: BootId(3) };

    fn answer(id: u64, bytes: usize) -> NodeMessage {
        let body = Ok(Answer::Value(Some(Bytes::from(vec![b'v'; bytes]))));
        NodeMessage::ForwardReply { id, reply: Reply { header: ReplyHeader::default(), body } }
    }

    fn late(id: u64) -> NodeMessage {
        let body = Err(ErrorReply::NotReady("too late".to_owned()));
        NodeMessage::ForwardReply { id, reply: Reply { header: ReplyHeader::default(), body } }
    }

    /// Until when the frame may leave, and the numbers of the answers in it.
    fn content(frame: &Frame) -> (Option<Micros>, Vec<u64>) {
        let ids = replies(&frame.bytes, true);
        if let Some(leased) = &frame.leased {
            assert_eq!(replies(&leased.instead, false), ids, "who is not answered is told");
        }
        (frame.leased.as_ref().map(|leased| leased.not_after), ids)
    }

    /// The requests that a frame's replies are to.
    fn replies(bytes: &Bytes, answered: bool) -> Vec<u64> {
        let mut bytes = bytes.clone();
        frame::open(&mut bytes).unwrap();
        let mut ids = Vec::new();
        while let Some(message) = frame::next(&mut bytes) {
            if let NodeMessage::ForwardReply { id, reply } = message.unwrap() {
                assert_eq!(reply.body.is_ok(), answered);
                ids.push(id);
            }
        }
        ids
    }

    #[test]
    fn nothing_but_reads_is_lost_with_a_read_that_is_too_late() {
        let to = Address::new("node2");
        let (mut outbox, mut out) = (Outbox::default(), Vec::new());
        outbox.push(&SENDER, &to, Lane::Protocol, &answer(1, 10), &mut out);
        outbox.push_read(&SENDER, &to, &answer(2, 10), (Micros(50), &late(2)), &mut out);
        outbox.push(&SENDER, &to, Lane::Protocol, &answer(3, 10), &mut out);
        outbox.push_read(&SENDER, &to, &answer(4, 10), (Micros(40), &late(4)), &mut out);
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
            outbox.push_read(&SENDER, &to, &message, (limit, &late(id)), &mut out);
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
