//! What happens to disks while their nodes are down: copies, losses, rot; and a file system of a
//! node's own, small enough to be filled.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base::Random;
use sim::rot::{LogRecord, records};
use storage::{Disk, MemoryDisk, Superblock, WalOptions};

/// Size of a page.
const PAGE: u64 = 4 << 10;
/// Bytes of a record's row without its identity.
const ROW_BYTES: u64 = 32;
/// Places of a store that are damaged at a time.
const STORE_PLACES: u64 = 20;
/// What fills a disk.
const BALLAST: &str = "ballast";
const BALLAST_PIECE: usize = 1 << 20;

/// Removes everything in a directory, which stays: it may be where a file system is mounted.
pub(crate) fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Copies everything in a directory to another one, which is made if it is missing.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Damages some records of a node's log, of those that others on the disk vouch for: rot of the
/// very end cannot be told from a write that was cut off. Says what was done; none where there is
/// nothing to damage.
pub(crate) fn rot_log(home: &Path, segment_bytes: u64, random: &mut Random) -> Option<String> {
    let mut disk = load(home).expect("the disk of a node that does not run is read");
    let superblock = Superblock::read(&mut disk).ok().flatten()?;
    let mut options = WalOptions::new(superblock.disk_id);
    options.segment_bytes = segment_bytes;
    let records = records(&disk, options);
    let mut done = Vec::new();
    for _ in 0..random.between(1, 4) {
        let record = random.pick(&records)?;
        let page = random.chance(1, 4);
        damage_record(home, record, page, random);
        let what = if page { "a page at" } else { "bits of" };
        done.push(format!("{what} {} of group {}", record.lsn, record.group.0));
    }
    Some(done.join(", "))
}

/// The log and the superblock as the simulator's kind of disk, which can be read without harm.
pub(crate) fn load(home: &Path) -> io::Result<MemoryDisk> {
    let mut disk = MemoryDisk::new();
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "superblock" || name.starts_with("wal-") && !name.contains('.') {
            let bytes = fs::read(entry.path())?;
            disk.create(&name, bytes.len() as u64)?;
            disk.write(&name, 0, &bytes)?;
            disk.sync(&name)?;
        }
    }
    Ok(disk)
}

fn damage_record(home: &Path, record: &LogRecord, page: bool, random: &mut Random) {
    let read = &record.read;
    let file = fs::OpenOptions::new().read(true).write(true).open(home.join(&read.file));
    let file = file.expect("a file of a node that does not run is opened");
    let flip = |at: u64, mask: u8| {
        let mut byte = [0];
        if file.read_at(&mut byte, at).is_ok_and(|read| read == 1) {
            file.write_at(&[byte[0] ^ mask], at).expect("a byte is written");
        }
    };
    if page {
        let begin = read.offset / PAGE * PAGE;
        (begin..begin + PAGE).for_each(|at| flip(at, random.next_u64() as u8 | 1));
        return;
    }
    // What is known to hold it reaches into the next block, which may be the one to be spared.
    let length = ROW_BYTES + record.identity.len() as u64 + record.payload.len() as u64;
    for _ in 0..random.between(1, 3) {
        flip(read.offset + random.below(length), 1 << random.below(8));
    }
}

/// Flips bits in the tables of a node's store: how many.
pub(crate) fn rot_store(home: &Path, random: &mut Random) -> u64 {
    let mut files: Vec<PathBuf> = Vec::new();
    tables(&home.join("engine"), &mut files);
    files.sort();
    let mut flipped = 0;
    for _ in 0..STORE_PLACES {
        let Some(path) = random.pick(&files) else { break };
        let mut bytes = fs::read(path).expect("a table of a node that does not run is read");
        if bytes.is_empty() {
            continue;
        }
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
        fs::write(path, bytes).expect("a table of a node that does not run is written");
        flipped += 1;
    }
    flipped
}

/// The files in all directories named `tables`.
fn tables(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        if entry.file_name() == "tables" {
            let files = fs::read_dir(&path).into_iter().flatten().flatten();
            found.extend(files.map(|file| file.path()));
        } else {
            tables(&path, found);
        }
    }
}

/// A small file system in memory, mounted where a node keeps everything; it goes when this does.
pub(crate) struct SmallDisk {
    home: PathBuf,
}

impl SmallDisk {
    /// Mounts it, which needs the right to; the directory is made.
    pub(crate) fn mount(home: &Path, bytes: u64) -> Result<SmallDisk, String> {
        fs::DirBuilder::new().recursive(true).create(home).map_err(|error| error.to_string())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "decree-torture"]);
        let status = mount.arg(home).stderr(Stdio::null()).status();
        match status {
            Ok(status) if status.success() => Ok(SmallDisk { home: home.to_path_buf() }),
            Ok(status) => Err(format!("mount: {status}")),
            Err(error) => Err(format!("mount: {error}")),
        }
    }

    /// Leaves no byte free.
    pub(crate) fn fill(&self) {
        let path = self.home.join(BALLAST);
        let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let Ok(mut file) = file else { return };
        let zeros = vec![0; BALLAST_PIECE];
        for piece in [BALLAST_PIECE, PAGE as usize, 1] {
            while io::Write::write_all(&mut file, &zeros[..piece]).is_ok() {}
        }
    }

    /// Frees what [`SmallDisk::fill`] took.
    pub(crate) fn free(&self) {
        // It is not there where the disk was emptied meanwhile.
        let _ = fs::remove_file(self.home.join(BALLAST));
    }

    /// Ends it; what it holds is kept beside it if that is wanted.
    pub(crate) fn end(self, keep: bool) {
        let kept = self.home.with_extension("kept");
        if keep && copy(&self.home, &kept).is_err() {
            println!("{} cannot be kept", self.home.display());
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.free();
        // Lazily: a process that is about to end may still have files there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.home).status();
    }
}
