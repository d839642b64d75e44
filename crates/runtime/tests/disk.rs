//! One suite for every disk: the real files and the model that the simulator uses must agree.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;

use base::Random;
use bytes::Bytes;
use runtime::DataDir;
use storage::{Disk, MemoryDisk};

fn each(test: impl Fn(&mut dyn Disk)) {
    test(&mut MemoryDisk::new());
    let dir = tempfile::tempdir().unwrap();
    test(&mut DataDir::open(dir.path()).unwrap().disk().unwrap());
}

#[test]
fn a_new_file_is_zeros_and_keeps_what_is_written() {
    each(|disk| {
        assert_eq!(disk.list().unwrap(), Vec::<String>::new());
        disk.create("b", (1 << 20) + 8_192).unwrap();
        disk.create("a", 4_096).unwrap();
        assert_eq!(disk.list().unwrap(), ["a", "b"]);
        assert_eq!(disk.len("b").unwrap(), (1 << 20) + 8_192);
        assert_eq!(disk.read("b", 1 << 20, 4_096).unwrap(), vec![0; 4_096]);
        disk.write("b", 4_096, &[7; 4_096]).unwrap();
        disk.sync("b").unwrap();
        assert_eq!(disk.read("b", 4_095, 3).unwrap(), vec![0, 7, 7]);
        assert_eq!(disk.read("b", 8_191, 3).unwrap(), vec![7, 0, 0]);
        assert_eq!(disk.len("b").unwrap(), (1 << 20) + 8_192);
    });
}

#[test]
fn a_read_past_the_end_gives_what_is_there() {
    each(|disk| {
        disk.create("f", 4_096).unwrap();
        assert_eq!(disk.read("f", 4_000, 1 << 30).unwrap().len(), 96);
        assert_eq!(disk.read("f", 4_096, 10).unwrap(), Bytes::new());
        assert_eq!(disk.read("f", u64::MAX, 10).unwrap(), Bytes::new());
    });
}

#[test]
fn a_file_that_is_made_again_is_empty_and_one_removed_is_gone() {
    each(|disk| {
        disk.create("f", 8_192).unwrap();
        disk.write("f", 0, &[1; 8_192]).unwrap();
        disk.create("f", 4_096).unwrap();
        assert_eq!(disk.len("f").unwrap(), 4_096);
        assert_eq!(disk.read("f", 0, 4_096).unwrap(), vec![0; 4_096]);
        disk.write("f", 0, &[2; 512]).unwrap();
        disk.sync("f").unwrap();
        assert_eq!(disk.read("f", 0, 1).unwrap(), vec![2]);
        disk.remove("f").unwrap();
        assert_eq!(disk.list().unwrap(), Vec::<String>::new());
        assert_eq!(disk.read("f", 0, 1).unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_file_that_is_not_there_is_an_error_everywhere() {
    each(|disk| {
        assert_eq!(disk.len("f").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(disk.read("f", 0, 1).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(disk.write("f", 0, b"x").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(disk.sync("f").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(disk.remove("f").unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn random_calls_do_the_same_to_both_disks() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut real = DataDir::open(dir.path()).unwrap().disk().unwrap();
        let mut model = MemoryDisk::new();
        for step in 0..200 {
            let file = ["x", "y", "z"][random.below(3) as usize];
            let offset = random.below(16) * 4_096;
            let context = format!("seed {seed}, step {step}, file {file}");
            match random.below(10) {
                0 => {
                    let len = (1 + random.below(16)) * 4_096;
                    real.create(file, len).unwrap();
                    model.create(file, len).unwrap();
                }
                1 => assert_eq!(kind(real.remove(file)), kind(model.remove(file)), "{context}"),
                2..6 => {
                    let len = real.len(file).unwrap_or(0);
                    let bytes = vec![random.next_u64() as u8; 4_096];
                    // The log never writes beyond the end of a file.
                    if offset + 4_096 <= len {
                        real.write(file, offset, &bytes).unwrap();
                        model.write(file, offset, &bytes).unwrap();
                    }
                }
                6 => assert_eq!(kind(real.sync(file)), kind(model.sync(file)), "{context}"),
                _ => {
                    let len = random.below(20_000) as usize;
                    let found = (real.read(file, offset, len), model.read(file, offset, len));
                    assert_eq!(kind(found.0), kind(found.1), "{context}");
                    assert_eq!(kind(real.len(file)), kind(model.len(file)), "{context}");
                }
            }
            assert_eq!(real.list().unwrap(), model.list().unwrap(), "{context}");
        }
    }
}

fn kind<T>(result: std::io::Result<T>) -> Result<T, ErrorKind> {
    result.map_err(|error| error.kind())
}

#[test]
fn real_files_outlive_the_disk_and_half_made_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = DataDir::open(dir.path()).unwrap().disk().unwrap();
    disk.create("f", 4_096).unwrap();
    disk.write("f", 0, b"kept").unwrap();
    disk.sync("f").unwrap();
    assert_eq!(disk.written(), (1, 4));
    drop(disk);
    std::fs::write(dir.path().join("g.unfinished"), b"zeros").unwrap();
    let mut disk = DataDir::open(dir.path()).unwrap().disk().unwrap();
    assert_eq!(disk.list().unwrap(), ["f"]);
    assert_eq!(disk.read("f", 0, 4).unwrap(), &b"kept"[..]);
    assert!(!dir.path().join("g.unfinished").exists());
}

#[test]
fn errors_name_the_file_and_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = DataDir::open(dir.path()).unwrap().disk().unwrap();
    let error = disk.read("wal-000007", 0, 1).unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains("wal-000007"), "{error}");
    std::os::unix::fs::symlink("/dev/full", dir.path().join("full")).unwrap();
    let error = disk.write("full", 0, &[1; 4_096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}
