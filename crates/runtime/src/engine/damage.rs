//! Damage that the tree itself would not notice when it is opened, or not survive.
//!
//! The tree checks each block when it reads it. It trusts its version file, though, although it
//! wrote down that file's checksum; it takes memory for as many entries as a table's directory
//! claims to have; and where it finds no version it begins anew, whatever else lies there.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

/// Names the newest version: its number, the checksum of its file and the kind of that.
const CURRENT: &str = "current";
const CURRENT_BYTES: usize = 8 + 16 + 1;
pub(super) const TABLES: &str = "tables";
/// At the end of a table: magic, two kinds, checksum, position and length of the directory.
const TRAILER_BYTES: usize = 4 + 1 + 1 + 16 + 8 + 8;
const TRAILER_MAGIC: &[u8] = b"SFA!";
const DIRECTORY_MAGIC: &[u8] = b"TOC!";
/// A table has fewer than ten sections.
const SECTIONS_MAX: u32 = 1_000;

/// What is wrong with the store in `path`, in words; nothing if it may be opened or made.
pub(super) fn find(path: &Path) -> io::Result<Option<String>> {
    let tables = tables(path)?;
    let current = match fs::read(path.join(CURRENT)) {
        Ok(current) => current,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let lost = "it has tables and no file that names its version".to_string();
            return Ok((!tables.is_empty()).then_some(lost));
        }
        Err(error) => return Err(error),
    };
    let Some((number, checksum)) = parse_current(&current) else {
        return Ok(Some(format!("its file {CURRENT} has {} bytes", current.len())));
    };
    let version = format!("v{number}");
    match fs::read(path.join(&version)) {
        Ok(content) if xxh3_128(&content) == checksum => {}
        Ok(_) => return Ok(Some(format!("its version file {version} has a wrong checksum"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(format!("its version file {version} is missing")));
        }
        Err(error) => return Err(error),
    }
    for table in tables {
        if claims_too_much(&File::open(path.join(TABLES).join(&table))?)? {
            return Ok(Some(format!("the directory of its table {table} is damaged")));
        }
    }
    Ok(None)
}

fn tables(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path.join(TABLES)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn parse_current(current: &[u8]) -> Option<(u64, u128)> {
    if current.len() != CURRENT_BYTES {
        return None;
    }
    let number = current.get(..8)?.try_into().ok()?;
    let checksum = current.get(8..24)?.try_into().ok()?;
    Some((u64::from_le_bytes(number), u128::from_le_bytes(checksum)))
}

/// A file that is no whole table is left to the tree: after a crash there may be some that no
/// version names, and it removes them.
fn claims_too_much(table: &File) -> io::Result<bool> {
    let len = table.metadata()?.len();
    let Some(start) = len.checked_sub(TRAILER_BYTES as u64) else { return Ok(false) };
    let mut trailer = [0; TRAILER_BYTES];
    table.read_exact_at(&mut trailer, start)?;
    if !trailer.starts_with(TRAILER_MAGIC) {
        return Ok(false);
    }
    let mut position = [0; 8];
    position.copy_from_slice(&trailer[TRAILER_BYTES - 16..TRAILER_BYTES - 8]);
    let position = u64::from_le_bytes(position);
    let mut head = [0; 8];
    if position.checked_add(8).is_none_or(|end| end > len) {
        return Ok(false);
    }
    table.read_exact_at(&mut head, position)?;
    let [.., a, b, c, d] = head;
    let sections = u32::from_le_bytes([a, b, c, d]);
    Ok(head.starts_with(DIRECTORY_MAGIC) && sections > SECTIONS_MAX)
}
