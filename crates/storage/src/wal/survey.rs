//! Looking for blocks where reading in order has nothing to go by: behind a place that is damaged
//! or was never written, and in files without a header.

use base::DiskId;
use bytes::Bytes;

use super::block::{self, FOOT_BYTES, Head};
use super::error::WalError;
use super::format::{PAGE, Salt};
use crate::Disk;

/// How much is read at a time.
const WINDOW_BYTES: usize = 1 << 20;

/// Part of a file, read ahead.
#[derive(Debug, Default)]
pub(crate) struct Window {
    start: u64,
    bytes: Bytes,
}

impl Window {
    /// The bytes of a file from `offset`; fewer than `len` where the file ends before.
    pub(crate) fn read(
        &mut self,
        disk: &mut dyn Disk,
        file: &str,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, WalError> {
        if let Some(start) = offset.checked_sub(self.start) {
            let start = start as usize;
            if start.saturating_add(len) <= self.bytes.len() {
                return Ok(self.bytes.slice(start..start + len));
            }
        }
        self.bytes = read(disk, file, offset, len.max(WINDOW_BYTES))?;
        self.start = offset;
        Ok(self.bytes.slice(..len.min(self.bytes.len())))
    }
}

/// Reads a part of a file.
pub(crate) fn read(
    disk: &mut dyn Disk,
    file: &str,
    offset: u64,
    len: usize,
) -> Result<Bytes, WalError> {
    disk.read(file, offset, len).map_err(|source| WalError::Io {
        doing: format!("reading {file} at byte {offset}"),
        source,
    })
}

/// The head of a block that was found in a file, the block itself intact or not.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) file: String,
    /// Where the block begins.
    pub(crate) offset: u64,
    pub(crate) head: Head,
}

/// All blocks of this segment and later ones that have left a head or a foot in a file, from
/// `offset` on. Blocks with both are not looked into, so that a payload that looks like a block is
/// not taken for one.
pub(crate) fn survey(
    disk: &mut dyn Disk,
    disk_id: DiskId,
    file: &str,
    offset: u64,
    segment_min: u64,
) -> Result<Vec<Mark>, WalError> {
    let salt = |segment| Salt::new(disk_id, segment);
    let mut window = Window::default();
    let mut marks: Vec<Mark> = Vec::new();
    let mut at = offset;
    loop {
        let page = window.read(disk, file, at, PAGE)?;
        if page.len() < PAGE {
            return Ok(marks);
        }
        let mut next = at + PAGE as u64;
        if let Some(head) = Head::decode(&page, salt) {
            let end = at.saturating_add(head.len() as u64);
            if end > next && foot(disk, disk_id, file, end)?.as_ref() == Some(&head) {
                next = end;
            }
            marks.push(Mark { file: file.to_owned(), offset: at, head });
        } else if block::copy_before(&page).is_some()
            && let Some(head) = foot(disk, disk_id, file, next)?
        {
            let offset = next.saturating_sub(head.len() as u64);
            marks.push(Mark { file: file.to_owned(), offset, head });
        }
        marks.pop_if(|mark| mark.head.segment < segment_min);
        at = next;
    }
}

/// The head of the block that ends at `end`, by its foot and the copy before that.
fn foot(
    disk: &mut dyn Disk,
    disk_id: DiskId,
    file: &str,
    end: u64,
) -> Result<Option<Head>, WalError> {
    let Some(last) = end.checked_sub(FOOT_BYTES as u64) else { return Ok(None) };
    let bytes = read(disk, file, last, FOOT_BYTES)?;
    let copy_start = block::copy_before(&bytes).and_then(|len| end.checked_sub(len as u64));
    let Some(start) = copy_start else { return Ok(None) };
    let bytes = read(disk, file, start, (end - start) as usize)?;
    Ok(block::head_of_copy(&bytes, |segment| Salt::new(disk_id, segment)))
}
