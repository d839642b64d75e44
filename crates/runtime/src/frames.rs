//! Frames between nodes as bytes on a connection.
//!
//! ```text
//! connection: preamble (8 bytes) frame*          from the dialler to the listener only
//! frame:      length u32 (little endian) body    1 <= length <= FRAME_BYTES_MAX
//! ```

use base::limits::FRAME_BYTES_MAX;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a connection between nodes begins with: magic and format version.
pub const PREAMBLE: [u8; 8] = *b"DECREEP1";

/// Bytes of the length in front of each frame.
pub(crate) const HEADER_BYTES: usize = 4;
/// Room for reading ahead, and what is read at least at a time.
const READ_BYTES: usize = 64 << 10;
/// A shorter frame gets memory of its own: a part of it may be kept for long, and shall not keep
/// all frames that were read together with it.
const SHARED_BYTES_MIN: usize = 4 << 10;
/// A shorter frame is copied behind others, so that one write sends many.
const GATHERED_BYTES_MAX: usize = 16 << 10;

/// The other end does not speak this format; nothing more can be read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {0} bytes, where 1 to {FRAME_BYTES_MAX} are allowed")]
    Length(usize),
}

/// Cuts what was read into frames.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    /// Where the next bytes go. Memory grows with what has arrived, not with what a length
    /// announces.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        let missing = self.missing().clamp(1, self.buffer.len().max(READ_BYTES));
        if self.buffer.capacity() - self.buffer.len() < missing.min(READ_BYTES / 4) {
            self.buffer.reserve(missing.max(READ_BYTES));
        }
        &mut self.buffer
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.length() else { return Ok(None) };
        if length == 0 || length > FRAME_BYTES_MAX {
            return Err(FrameError::Length(length));
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let frame = self.buffer.split_to(length);
        Ok(Some(if length < SHARED_BYTES_MIN {
            Bytes::copy_from_slice(&frame)
        } else {
            frame.freeze()
        }))
    }

    fn length(&self) -> Option<usize> {
        let header: [u8; HEADER_BYTES] = self.buffer.get(..HEADER_BYTES)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(header)).ok()
    }

    /// How much of a begun frame is still to come.
    fn missing(&self) -> usize {
        let whole = self.length().map_or(0, |length| HEADER_BYTES + length.min(FRAME_BYTES_MAX));
        whole.saturating_sub(self.buffer.len())
    }
}

/// Lays frames out for few large writes.
#[derive(Debug, Default)]
pub(crate) struct FrameWriter {
    small: BytesMut,
    chunks: Vec<Bytes>,
}

impl FrameWriter {
    pub(crate) fn push(&mut self, frame: &Bytes) {
        assert!(
            !frame.is_empty() && frame.len() <= FRAME_BYTES_MAX,
            "a frame of {} bytes",
            frame.len()
        );
        self.small.put_u32_le(frame.len() as u32);
        if frame.len() <= GATHERED_BYTES_MAX {
            self.small.put_slice(frame);
        } else {
            self.chunks.push(self.small.split().freeze());
            self.chunks.push(frame.clone());
        }
    }

    /// All that was pushed, in order.
    pub(crate) fn take(&mut self) -> Vec<Bytes> {
        if !self.small.is_empty() {
            self.chunks.push(self.small.split().freeze());
        }
        std::mem::take(&mut self.chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut FrameReader, mut bytes: &[u8], step: usize) -> Vec<Bytes> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(step.min(bytes.len()));
            let room = reader.room();
            assert!(room.capacity() > room.len(), "a read of no bytes would look like the end");
            room.put_slice(part);
            bytes = rest;
            while let Some(frame) = reader.next().unwrap() {
                frames.push(frame);
            }
        }
        frames
    }

    #[test]
    fn frames_of_all_sizes_come_out_as_they_went_in() {
        let sizes = [1, 2, 100, 4_095, 4_096, 16 << 10, (16 << 10) + 1, 70_000, 1 << 20, 3];
        let frames: Vec<Bytes> =
            sizes.iter().map(|size| Bytes::from(vec![*size as u8; *size])).collect();
        let mut writer = FrameWriter::default();
        frames.iter().for_each(|frame| writer.push(frame));
        let bytes = writer.take().concat();
        assert!(writer.take().is_empty());
        for step in [1, 3, 1_000, 65_536, usize::MAX] {
            let mut reader = FrameReader::default();
            assert_eq!(read(&mut reader, &bytes, step), frames, "in steps of {step}");
        }
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_and_costs_no_memory() {
        for length in [0, FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
            let mut reader = FrameReader::default();
            reader.room().put_slice(&length.to_le_bytes());
            assert_eq!(reader.next(), Err(FrameError::Length(length as usize)));
        }
        let mut reader = FrameReader::default();
        reader.room().put_slice(&(FRAME_BYTES_MAX as u32).to_le_bytes());
        assert_eq!(reader.next(), Ok(None));
        assert!(reader.room().capacity() < 1 << 20, "memory follows what arrived");
    }
}
