//! The model of a disk keeps what it promises, and no more.
#![allow(clippy::unwrap_used)]

use base::Random;
use storage::{Disk, DiskFault, MemoryDisk};

fn disk() -> MemoryDisk {
    let mut disk = MemoryDisk::new();
    disk.create("a", 4 * 4096).unwrap();
    disk
}

#[test]
fn f02_a_crash_keeps_what_was_synced_and_each_other_sector_by_chance() {
    let mut random = Random::new(1);
    let (mut old, mut new, mut torn) = (0, 0, 0);
    for _ in 0..100 {
        let mut disk = disk();
        disk.write("a", 0, &[1; 8192]).unwrap();
        disk.sync("a").unwrap();
        disk.write("a", 4096, &[2; 8192]).unwrap();
        assert!(disk.is_dirty());
        assert_eq!(disk.read("a", 4096, 8192).unwrap()[..], [2; 8192], "the cache is what is read");
        disk.crash(&mut random, true);
        assert!(!disk.is_dirty());
        assert_eq!(disk.read("a", 0, 4096).unwrap()[..], [1; 4096]);
        for sector in disk.read("a", 4096, 4096).unwrap().chunks(512) {
            let kept = sector.iter().filter(|byte| **byte == 2).count();
            assert!(
                sector[..kept].iter().all(|b| *b == 2) && sector[kept..].iter().all(|b| *b == 1)
            );
            match kept {
                0 => old += 1,
                512 => new += 1,
                _ => torn += 1,
            }
        }
    }
    assert!(old > 100 && new > 100 && torn > 50, "{old} {new} {torn}");
}

#[test]
fn a_crash_without_tearing_leaves_sectors_whole() {
    let mut random = Random::new(2);
    let mut disk = disk();
    disk.write("a", 100, &[2; 9000]).unwrap();
    disk.crash(&mut random, false);
    for (i, sector) in disk.read("a", 0, 16_384).unwrap().chunks(512).enumerate() {
        let begin = (100usize.saturating_sub(i * 512)).min(512);
        let end = 9100usize.saturating_sub(i * 512).min(512);
        let inside = &sector[begin.min(end)..end];
        assert!(inside.iter().all(|b| *b == 2) || inside.iter().all(|b| *b == 0));
    }
}

#[test]
fn f15_faults_come_after_their_countdown_and_a_full_disk_refuses_growth_only() {
    let mut disk = disk();
    disk.set_fault(Some(DiskFault::Write(2)));
    let results: Vec<bool> = (0..4).map(|_| disk.write("a", 0, &[1]).is_ok()).collect();
    assert_eq!(results, [true, true, false, false]);
    disk.set_fault(Some(DiskFault::Sync(0)));
    assert!(disk.write("a", 0, &[1]).is_ok() && disk.sync("a").is_err());
    disk.set_fault(None);
    disk.set_bytes_max(Some(disk.bytes() + 4096));
    assert_eq!(disk.create("b", 8192).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    assert!(disk.write("a", 8192, &[1; 4096]).is_ok());
    assert!(disk.write("a", 16_384, &[1; 4096]).is_err());
}

#[test]
fn reads_end_where_the_file_ends_and_missing_files_are_errors() {
    let mut disk = disk();
    assert_eq!(disk.read("a", 16_000, 4096).unwrap().len(), 384);
    assert_eq!(disk.read("a", 99_999, 4096).unwrap().len(), 0);
    assert!(disk.read("b", 0, 1).is_err() && disk.sync("b").is_err() && disk.remove("b").is_err());
    assert_eq!(disk.list().unwrap(), ["a"]);
}
