//! Files that tell of situations step by step, with what comes of each step: golden scripts.
//!
//! A line that begins with `>` is a step, one with `#` a remark; what is indented below a step came
//! of it. `DECREE_RECORD=1` writes the files anew; only differences that can be explained are to be
//! committed.
#![allow(unreachable_pub)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Carries out the steps of a script, and writes it again with what `step` says of each.
pub fn play(script: &str, mut step: impl FnMut(&str) -> String) -> String {
    let mut out = String::new();
    for line in script.lines().filter(|line| !line.starts_with("  ")) {
        let _ = writeln!(out, "{line}");
        if let Some(words) = line.strip_prefix("> ") {
            out.push_str(&step(words));
        }
    }
    out
}

/// Plays every script of a folder: each must tell what it told when it was recorded.
// The scripts are files of the crate that tests.
#[allow(clippy::disallowed_methods)]
pub fn check(folder: &Path, at_least: usize, play: impl Fn(&str) -> String) {
    let record = std::env::vars().any(|(name, value)| name == "DECREE_RECORD" && value == "1");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|ending| ending == "txt")).collect();
    scripts.sort();
    assert!(scripts.len() >= at_least, "the scripts were found");
    let mut differences = String::new();
    for path in scripts {
        let expected = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(expected.starts_with("# "), "{name} does not begin with what it shows");
        let found = play(&expected);
        if found != expected && record {
            std::fs::write(&path, found).unwrap();
        } else if found != expected {
            let _ = writeln!(differences, "{name}:\n{}", difference(&expected, &found));
        }
    }
    assert!(differences.is_empty(), "{differences}DECREE_RECORD=1 writes them anew");
}

/// The lines of both texts in one list: with `-` what was expected, with `+` what came instead.
pub fn difference(expected: &str, found: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    // How many lines the ends of both have in common, at best.
    let mut common = vec![vec![0_u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = match old[i] == new[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut out = String::new();
    while i < old.len() || j < new.len() {
        let (sign, line) = if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
            (' ', old[i - 1])
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            ('-', old[i - 1])
        } else {
            j += 1;
            ('+', new[j - 1])
        };
        let _ = writeln!(out, "{sign} {line}");
    }
    out
}
