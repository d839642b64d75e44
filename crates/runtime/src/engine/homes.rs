//! Where in its directory the store lies.
//!
//! ```text
//! engine/                     the first
//! engine/renewed-2/           one that was renewed twice
//! engine/renewed-2/complete   all is in it: it takes the place of those before
//! ```
//! That the file `complete` is durable is the instant at which one takes the place of another.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

const RENEWED: &str = "renewed-";
const COMPLETE: &str = "complete";
/// The file without which nothing was begun.
const CURRENT: &str = "current";

/// The directory of the store with this number.
pub(super) fn home(path: &Path, number: u64) -> PathBuf {
    if number == 0 { path.to_path_buf() } else { path.join(format!("{RENEWED}{number}")) }
}

/// The number of the store; none where it is lost.
pub(super) fn find(path: &Path) -> io::Result<Option<u64>> {
    let mut renewed = renewed(path)?;
    renewed.sort_unstable();
    for number in renewed.iter().rev() {
        if home(path, *number).join(COMPLETE).try_exists()? {
            return Ok(Some(*number));
        }
    }
    // As long as none is complete, the first is there.
    let lost = !renewed.is_empty() && !path.join(CURRENT).try_exists()?;
    Ok((!lost).then_some(0))
}

/// Makes an empty directory for the store with this number.
pub(super) fn make(path: &Path, number: u64) -> io::Result<()> {
    let home = home(path, number);
    remove(&home)?;
    fs::create_dir(&home)?;
    sync(path)
}

/// All is in the store with this number.
pub(super) fn complete(path: &Path, number: u64) -> io::Result<()> {
    let home = home(path, number);
    File::create(home.join(COMPLETE))?.sync_all()?;
    sync(&home)?;
    sync(path)
}

/// The store with this number is not complete.
pub(super) fn unmark(path: &Path, number: u64) -> io::Result<()> {
    let home = home(path, number);
    fs::remove_file(home.join(COMPLETE)).or_else(unless_missing)?;
    sync(&home)
}

/// Removes what is left of all but this one, as far as that can be done. Returns the highest number
/// that is in use.
pub(super) fn remove_others(path: &Path, number: u64) -> u64 {
    for other in renewed(path).unwrap_or_default() {
        if other != number {
            let _ = remove(&home(path, other));
        }
    }
    if number > 0 {
        let _ = remove(path);
    }
    renewed(path).unwrap_or_default().into_iter().max().unwrap_or(0).max(number)
}

/// Removes the store in this directory, and none that lies in a directory within.
pub(super) fn remove(home: &Path) -> io::Result<()> {
    if home.file_name().and_then(number_in).is_some() {
        return fs::remove_dir_all(home).or_else(unless_missing);
    }
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        if number_in(&entry.file_name()).is_some() {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn unless_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The numbers of those that were renewed, complete or not.
fn renewed(path: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        numbers.extend(number_in(&entry?.file_name()));
    }
    Ok(numbers)
}

fn number_in(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_prefix(RENEWED)?.parse().ok().filter(|number| *number > 0)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
