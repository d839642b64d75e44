//! Decoders by themselves: what comes out of one, written and read again, is the same.

use std::fmt::Debug;

use base::codec;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use paxos::{HeartbeatRow, Message, Record, Standing};

use super::Target;
use crate::identity::{IDENTITY, NodeRecord};
use crate::mutate::Layout;
use crate::{frame, parts};

/// What nodes say to each other.
pub(super) const FRAME: Target = Target {
    name: "frame",
    layout: Layout::Raw,
    run: frames,
    memory: 64 << 10,
    memory_per_byte: 256,
    rounds: 60_000,
};

/// What replicas say to each other.
pub(super) const MESSAGE: Target = Target {
    name: "message",
    layout: Layout::Raw,
    run: messages,
    memory: 64 << 10,
    memory_per_byte: 256,
    rounds: 60_000,
};

/// What is in a log and a store.
pub(super) const RECORD: Target = Target {
    name: "record",
    layout: Layout::Items,
    run: records,
    memory: 64 << 10,
    memory_per_byte: 256,
    rounds: 40_000,
};

fn frames(input: &[u8]) {
    let mut rest = Bytes::copy_from_slice(input);
    let Ok(sender) = frame::open(&mut rest) else { return };
    let mut header = Vec::new();
    sender.encode(&mut header);
    assert_eq!(header, input[..frame::HEADER_BYTES], "a header is written as it was read");
    while let Some(message) = frame::next(&mut rest) {
        let Ok(message) = message else { continue };
        let bytes = codec::encode(&message);
        let again: frame::NodeMessage =
            codec::decode(&bytes).unwrap_or_else(|error| panic!("{error}: {message:?}"));
        assert_eq!(codec::encode(&again), bytes, "{message:?}");
        if let frame::NodeMessage::SnapshotPart { records, .. } = message {
            part(records);
        }
    }
}

fn messages(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    same::<Message>(&bytes);
    same::<HeartbeatRow>(&bytes);
    same::<Standing>(&bytes);
}

fn same<T>(bytes: &Bytes)
where
    T: for<'a, 'b> Decode<'b, codec::Shared<'a>> + Encode<()> + PartialEq + Debug,
{
    if let Ok(value) = codec::decode::<T>(bytes) {
        let again = codec::decode::<T>(&codec::encode(&value));
        assert_eq!(again.as_ref(), Ok(&value), "it is read as it was written");
    }
}

fn records(input: &[u8]) {
    for item in crate::items::split(input) {
        let bytes = Bytes::from(item.bytes);
        match item.kind % 4 {
            0 => paxos_record(&bytes),
            1 => {
                if let Ok(record) = NodeRecord::decode(IDENTITY, &bytes) {
                    let mut out = Vec::new();
                    record.encode(&mut out);
                    assert_eq!(NodeRecord::decode(IDENTITY, &out.into()), Ok(record));
                }
            }
            2 => part(bytes),
            _ => {
                if let Ok(record) = kvserver::record::Record::decode(&bytes) {
                    let again = kvserver::record::Record::decode(&record.encode());
                    assert_eq!(again, Ok(record), "a record is read as it was written");
                }
            }
        }
    }
}

fn part(bytes: Bytes) {
    if let Some(records) = parts::decode(bytes.clone()) {
        assert_eq!(parts::encode(&records), bytes, "records are written as they were read");
    }
}

/// An identity's length, the identity, the payload.
fn paxos_record(bytes: &Bytes) {
    let Some((len, rest)) = bytes.split_first() else { return };
    let len = usize::from(*len).min(rest.len());
    let (identity, payload) = (bytes.slice(1..1 + len), bytes.slice(1 + len..));
    let _ = Record::outline(&identity);
    let Ok(record) = Record::decode(&identity, &payload) else { return };
    let mut written = Vec::new();
    record.encode_payload(&mut written);
    let again = Record::decode(record.identity().as_bytes(), &written.into());
    assert_eq!(again.as_ref(), Ok(&record), "a record is read as it was written");
    if let Record::Entries { values, .. } = &record {
        for (index, value) in (0..).zip(values) {
            assert_eq!(Record::decode_value(&payload, index).as_ref(), Ok(value));
        }
        assert!(Record::decode_value(&payload, values.len() as u32).is_err());
    }
}
