//! Frames out of the bytes of a connection between nodes.

use base::limits::FRAME_BYTES_MAX;
use bytes::{BufMut, Bytes};

use super::Target;
use crate::frames::{FrameReader, FrameWriter};
use crate::mutate::Layout;

pub(super) const TARGET: Target = Target {
    name: "transport",
    layout: Layout::Raw,
    run,
    memory: 512 << 10,
    memory_per_byte: 16,
    rounds: 20_000,
};

/// The first byte says in what pieces the others arrive.
fn run(input: &[u8]) {
    let Some((piece, stream)) = input.split_first() else { return };
    let (expected, whole) = cut(stream);
    let mut reader = FrameReader::default();
    let mut found = Vec::new();
    let mut failed = false;
    for part in stream.chunks(usize::from(*piece) * 8 + 1) {
        let room = reader.room();
        assert!(room.capacity() > room.len(), "a read of no bytes would look like the end");
        room.put_slice(part);
        loop {
            match reader.next() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => {
                    failed = true;
                    break;
                }
            }
        }
        if failed {
            break;
        }
    }
    assert_eq!(found, expected, "frames are cut where their lengths say");
    assert_eq!(failed, !whole, "and a length out of bounds ends the connection");
    let mut writer = FrameWriter::default();
    found.iter().for_each(|frame| writer.push(frame));
    let written: usize = found.iter().map(|frame| 4 + frame.len()).sum();
    assert_eq!(writer.take().concat(), stream[..written], "they are written as they came");
}

/// The frames, and whether all lengths were within bounds.
fn cut(mut stream: &[u8]) -> (Vec<Bytes>, bool) {
    let mut frames = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > FRAME_BYTES_MAX {
            return (frames, false);
        }
        let Some((frame, rest)) = rest.split_at_checked(length) else { break };
        frames.push(Bytes::copy_from_slice(frame));
        stream = rest;
    }
    (frames, true)
}
