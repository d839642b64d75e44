//! The files of a store on disk, as far as they are read here and not by the tree.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_128;

use super::Target;
use crate::mutate::Layout;
use crate::{damage, items};

pub(super) const TARGET: Target = Target {
    name: "engine",
    layout: Layout::Items,
    run,
    memory: 128 << 10,
    memory_per_byte: 16,
    rounds: 3_000,
};

/// The file that names the version.
pub(crate) const CURRENT: u8 = 0;
/// The version: it is named as it is, with the right checksum.
pub(crate) const VERSION: u8 = 1;
/// A table.
pub(crate) const TABLE: u8 = 2;

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

fn run(input: &[u8]) {
    FOLDER.with_borrow_mut(|kept| {
        let folder = kept.get_or_insert_with(|| tempfile::tempdir().expect("a folder"));
        let path = folder.path().join("store");
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("tables")).expect("a folder");
        for (number, item) in items::split(input).into_iter().take(8).enumerate() {
            match item.kind % 3 {
                CURRENT => write(&path.join("current"), &item.bytes),
                VERSION => {
                    write(&path.join("v1"), &item.bytes);
                    let mut current = 1_u64.to_le_bytes().to_vec();
                    current.extend_from_slice(&xxh3_128(&item.bytes).to_le_bytes());
                    current.push(0);
                    write(&path.join("current"), &current);
                }
                _ => write(&path.join("tables").join(number.to_string()), &item.bytes),
            }
        }
        let found = damage::find(&path).expect("files that are there can be read");
        assert_eq!(damage::find(&path).expect("again"), found, "looking changes nothing");
    });
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a file is written");
}
