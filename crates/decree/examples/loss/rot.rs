//! Bits that flip on the disks of nodes that do not run.

use std::path::{Path, PathBuf};

use base::Random;
use clap::ValueEnum;

use crate::contents::MARK;

/// Where bits flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// In log and store of one of three nodes
    One,
    /// In log and store of two of five nodes
    Minority,
    /// In each of three logs, those of values that are sound in the others, and in one store
    Helix,
    /// In each of three logs and stores, those of values that are sound in the others: not mended
    /// in this version, in which stores are not made whole from parts of each other, so that the
    /// group answers nothing; only by name
    HelixStores,
}

impl Kind {
    /// Those that a cluster mends by itself.
    pub(crate) const MENDED: [Kind; 3] = [Kind::One, Kind::Minority, Kind::Helix];

    /// The nodes of the cluster.
    pub(crate) fn nodes(self) -> u16 {
        match self {
            Kind::Minority => 5,
            Kind::One | Kind::Helix | Kind::HelixStores => 3,
        }
    }

    /// Which nodes get it.
    pub(crate) fn victims(self, random: &mut Random) -> Vec<u64> {
        let nodes = u64::from(self.nodes());
        match self {
            Kind::One => vec![random.below(nodes) + 1],
            Kind::Minority => {
                let first = random.below(nodes);
                vec![first + 1, (first + 1 + random.below(nodes - 1)) % nodes + 1]
            }
            Kind::Helix | Kind::HelixStores => (1..=nodes).collect(),
        }
    }
}

/// Random places of each log and store that get a flipped bit.
const LOG_PLACES: u64 = 12;
const STORE_PLACES: u64 = 30;
/// The values in the logs are divided by the order in which they were written, in stretches of so
/// many, of which so many at either end are spared.
const STRETCH: u64 = 150;
const MARGIN: u64 = 40;
/// Of the values of a node's part, one of so many gets a flipped bit.
const ONE_OF: u64 = 20;

/// The newest values are spared, and what lies around them: nothing in a log vouches for its very
/// end, so that damage there looks like a write that was torn when the node was killed.
const SPARED: u64 = 200;
const SPARED_AROUND: usize = 64 << 10;

/// How many bits were flipped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flipped {
    pub(crate) log: u64,
    pub(crate) store: u64,
}

/// Flips bits of a node's files.
pub(crate) fn flip(
    kind: Kind,
    home: &Path,
    (node, keys, newest): (u64, u64, u64),
    random: &mut Random,
) -> Flipped {
    let is_spared = |value: Value| value.number + SPARED > newest;
    let (stretch, part) = (u64::from(kind.nodes()) * STRETCH, node - 1);
    // A record of a log holds what several clients wrote at a time.
    let in_log = |value: Value| {
        let at = value.number % stretch;
        at / STRETCH == part
            && !is_spared(value)
            && (MARGIN..STRETCH - MARGIN).contains(&(at % STRETCH))
    };
    // And a block of a store some keys that follow each other.
    let third = keys / u64::from(kind.nodes());
    let in_store = |value: Value| {
        value.key / third == part && (MARGIN..third - MARGIN).contains(&(value.key % third))
    };
    let (logs, tables) = (files(home, "wal-"), files(&home.join("engine/tables"), ""));
    let mut flipped = Flipped::default();
    match kind {
        Kind::One | Kind::Minority => {
            flipped.log = places(&logs, LOG_PLACES, is_spared, random);
            flipped.store = places(&tables, STORE_PLACES, |_| false, random);
        }
        Kind::Helix => {
            flipped.log = values(&logs, in_log, random);
            if node == 1 {
                flipped.store = places(&tables, STORE_PLACES, |_| false, random);
            }
        }
        Kind::HelixStores => {
            flipped.log = values(&logs, in_log, random);
            flipped.store = values(&tables, in_store, random);
        }
    }
    flipped
}

fn files(directory: &Path, start: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    let mut files: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Flips bits at random places that hold something, away from values that are spared.
fn places(
    files: &[PathBuf],
    count: u64,
    is_spared: impl Fn(Value) -> bool,
    random: &mut Random,
) -> u64 {
    let mut all: Vec<(Vec<u8>, Vec<usize>)> = Vec::new();
    for file in files {
        let contents = read(file);
        let spared = marks(&contents);
        let spared = spared.filter(|at| Value::read(&contents[*at..]).is_some_and(&is_spared));
        let spared = spared.collect();
        all.push((contents, spared));
    }
    let bytes: usize = all.iter().map(|(contents, _)| contents.len()).sum();
    let mut flipped = 0;
    // Most of a log may be zeros that nobody has written yet.
    for _ in 0..count * 1_000 {
        if flipped == count || bytes == 0 {
            break;
        }
        let mut at = random.below(bytes as u64) as usize;
        for (contents, spared) in &mut all {
            if at < contents.len() {
                let near = spared.iter().any(|spared| spared.abs_diff(at) < SPARED_AROUND);
                if contents[at] != 0 && !near {
                    contents[at] ^= 1 << random.below(8);
                    flipped += 1;
                }
                break;
            }
            at -= contents.len();
        }
    }
    files.iter().zip(&all).for_each(|(file, (contents, _))| write(file, contents));
    flipped
}

/// Where values stand: behind their marks.
fn marks(contents: &[u8]) -> impl Iterator<Item = usize> {
    let all = contents.windows(MARK.len()).enumerate();
    all.filter(|(_, window)| *window == MARK).map(|(at, _)| at + MARK.len())
}

/// What a value says of itself.
#[derive(Clone, Copy, Debug)]
struct Value {
    key: u64,
    number: u64,
}

impl Value {
    /// What stands behind the mark, as `contents` writes it.
    fn read(bytes: &[u8]) -> Option<Value> {
        let text = std::str::from_utf8(bytes.get(..8 + 8 + 8)?).ok()?;
        let (key, number) = text.split_once(" number ")?;
        Some(Value { key: key.parse().ok()?, number: number.parse().ok()? })
    }
}

/// Flips a bit in some of the values of a part, wherever they stand.
fn values(files: &[PathBuf], is_part: impl Fn(Value) -> bool, random: &mut Random) -> u64 {
    let mut flipped = 0;
    for file in files {
        let mut contents = read(file);
        let places: Vec<usize> = marks(&contents).collect();
        for at in places {
            let value = Value::read(&contents[at..]);
            if value.is_some_and(&is_part) && random.below(ONE_OF) == 0 {
                contents[at + random.below(24) as usize] ^= 1 << random.below(8);
                flipped += 1;
            }
        }
        write(file, &contents);
    }
    flipped
}

fn read(file: &Path) -> Vec<u8> {
    std::fs::read(file).expect("a file of a node that does not run is read")
}

fn write(file: &Path, contents: &[u8]) {
    std::fs::write(file, contents).expect("a file of a node that does not run is written");
}
