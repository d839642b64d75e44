//! Every scenario and every class of faults that `docs/testing.md` names by an id is shown by some
//! test whose name begins with that id, or has it behind another one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The ids: a letter, and the numbers from the first to the last. Faults have two digits.
const FAMILIES: &[(char, u32, u32)] = &[
    ('p', 1, 19),
    ('k', 1, 13),
    ('m', 1, 9),
    ('s', 1, 5),
    ('d', 1, 15),
    ('c', 1, 6),
    ('g', 1, 14),
    ('n', 1, 12),
    ('f', 1, 22),
    ('f', 27, 28),
];

/// One that is not a number alone.
const MORE: &[&str] = &["p8b"];

fn wanted() -> Vec<String> {
    let numbered = FAMILIES.iter().flat_map(|(letter, first, last)| {
        (*first..=*last).map(move |number| match letter {
            'f' => format!("f{number:02}"),
            letter => format!("{letter}{number}"),
        })
    });
    numbered.chain(MORE.iter().map(|id| (*id).to_owned())).collect()
}

/// Whether a word of a test's name has the form of an id.
fn is_id(word: &str) -> bool {
    let mut letters = word.chars();
    let family = letters.next().is_some_and(|c| FAMILIES.iter().any(|(f, ..)| *f == c));
    let rest = letters.as_str();
    let digits = rest.trim_end_matches(|c: char| c.is_ascii_lowercase());
    family && !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()) && rest.len() <= 3
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).expect("a directory of the project can be listed");
    for entry in entries {
        let path = entry.expect("an entry of a directory can be read").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The ids in the names of all tests, with how many tests have each.
fn found() -> BTreeMap<String, u32> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    sources(&crates, &mut files);
    let mut ids: BTreeMap<String, u32> = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file is text");
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if is_test && !line.starts_with("#[") && !line.starts_with("//") {
                is_test = false;
                let name = line.trim_start_matches("async ").strip_prefix("fn ");
                let words = name.unwrap_or_default().split(['_', '(']);
                // Ids stand at the beginning; whatever is behind the first other word is prose.
                for word in words.take_while(|word| is_id(word) || is_invariant(word)) {
                    *ids.entry(word.to_owned()).or_default() += 1;
                }
            }
        }
    }
    ids
}

/// Invariants have ids as well, which checkers carry, so that not each needs a test's name.
fn is_invariant(word: &str) -> bool {
    word.strip_prefix('i')
        .is_some_and(|number| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()))
}

#[test]
fn every_id_of_a_scenario_or_fault_is_in_the_name_of_a_test() {
    let found = found();
    let missing: Vec<String> = wanted().into_iter().filter(|id| !found.contains_key(id)).collect();
    assert!(missing.is_empty(), "no test has these ids in its name: {missing:?}");
}

#[test]
fn no_test_has_an_id_that_does_not_exist() {
    let wanted = wanted();
    let found = found();
    let unknown: Vec<&String> =
        found.keys().filter(|id| !is_invariant(id) && !wanted.contains(id)).collect();
    assert!(unknown.is_empty(), "tests are named after ids that nobody knows: {unknown:?}");
}
