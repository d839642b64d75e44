//! The superblock, whatever happens while it is written.
#![allow(clippy::unwrap_used)]

use base::{ClusterId, DiskId, NodeId, Random};
use storage::{Disk, DiskFault, MemoryDisk, Superblock, SuperblockError};

const ID: DiskId = DiskId(77);

#[test]
fn it_is_read_back_as_it_was_written() {
    let mut disk = MemoryDisk::new();
    assert_eq!(Superblock::read(&mut disk).unwrap(), None);
    let mut superblock = Superblock::format(&mut disk, ID).unwrap();
    assert_eq!(Superblock::read(&mut disk).unwrap().as_ref(), Some(&superblock));
    superblock.node_id = NodeId(3);
    superblock.cluster_id = ClusterId(5);
    superblock.starts = 8;
    superblock.update(&mut disk).unwrap();
    assert!(!disk.is_dirty());
    assert_eq!(Superblock::read(&mut disk).unwrap(), Some(superblock));
}

#[test]
fn f02_a_crash_at_any_call_leaves_the_old_state_or_the_new_and_never_goes_back() {
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let mut disk = MemoryDisk::new();
        Superblock::format(&mut disk, ID).unwrap();
        let mut seen = 0;
        for starts in 1..30 {
            let mut superblock = Superblock::read(&mut disk).unwrap().unwrap();
            assert!(superblock.starts == starts - 1 || superblock.starts == seen, "seed {seed}");
            assert!(superblock.starts >= seen, "seed {seed} went back to {}", superblock.starts);
            seen = superblock.starts;
            superblock.starts = starts;
            let after = random.below(6);
            let sync = DiskFault::Sync(after);
            disk.set_fault(Some(if random.chance(1, 3) { sync } else { DiskFault::Write(after) }));
            if superblock.update(&mut disk).is_ok() {
                seen = starts;
            }
            disk.set_fault(None);
            disk.crash(&mut random, true);
        }
    }
}

#[test]
fn f02_a_format_that_is_cut_off_leaves_an_unformatted_disk_or_a_formatted_one() {
    let (mut blank, mut done) = (0, 0);
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut disk = MemoryDisk::new();
        disk.set_fault(Some(DiskFault::Write(random.below(4))));
        assert!(Superblock::format(&mut disk, ID).is_err());
        disk.set_fault(None);
        disk.crash(&mut random, true);
        match Superblock::read(&mut disk).unwrap() {
            None => blank += 1,
            Some(superblock) => {
                assert_eq!(superblock.disk_id, ID);
                done += 1;
            }
        }
        Superblock::format(&mut disk, ID).unwrap();
    }
    assert!(blank > 20 && done > 20, "{blank} {done}");
}

#[test]
fn f11_damage_to_three_copies_is_survived_and_to_all_is_named() {
    let mut disk = MemoryDisk::new();
    let superblock = Superblock::format(&mut disk, ID).unwrap();
    for spared in 0..4 {
        let mut disk = disk.clone();
        for copy in (0..4).filter(|copy| *copy != spared) {
            disk.flip("superblock", copy * 4096 + 30, 1);
        }
        assert_eq!(Superblock::read(&mut disk).unwrap().as_ref(), Some(&superblock));
        disk.flip("superblock", spared * 4096 + 1_000, 1);
        assert!(matches!(Superblock::read(&mut disk), Err(SuperblockError::Damaged)));
    }
}

#[test]
fn another_version_is_named() {
    let mut disk = MemoryDisk::new();
    Superblock::format(&mut disk, ID).unwrap();
    let mut bytes = disk.read("superblock", 0, 4096).unwrap().to_vec();
    bytes[12] = 9;
    let crc = crc32fast::hash(&bytes[12..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    disk.write("superblock", 0, &bytes).unwrap();
    let error = Superblock::read(&mut disk).unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
}
