//! What the project promises about its own shape, checked: the ladder of crates, the purity of the
//! pure ones, and small rules about files that a compiler does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which crates of the project each crate may use (ARCHITECTURE.md, "Code map").
const LADDER: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("paxos", &["base"]),
    ("storage", &["base"]),
    ("router", &["base"]),
    ("replica-group", &["base", "paxos", "storage"]),
    ("shardmaster", &["base", "router", "replica-group"]),
    ("kvserver", &["base", "router", "replica-group"]),
    ("node", &["base", "paxos", "storage", "router", "replica-group", "shardmaster", "kvserver"]),
    (
        "sim",
        &["base", "paxos", "storage", "router", "replica-group", "shardmaster", "kvserver", "node"],
    ),
    ("api", &[]),
    ("client", &["base", "router", "api"]),
    ("runtime", &["base", "storage", "replica-group"]),
    (
        "server",
        &[
            "base",
            "paxos",
            "storage",
            "router",
            "replica-group",
            "shardmaster",
            "kvserver",
            "node",
            "api",
            "client",
            "runtime",
        ],
    ),
    (
        "fuzz",
        &[
            "base",
            "paxos",
            "storage",
            "router",
            "replica-group",
            "shardmaster",
            "kvserver",
            "node",
            "api",
            "client",
        ],
    ),
    (
        "decree",
        &[
            "base",
            "paxos",
            "storage",
            "router",
            "replica-group",
            "shardmaster",
            "kvserver",
            "node",
            "api",
            "client",
            "runtime",
            "server",
        ],
    ),
];

/// Crates without files, sockets, threads, clocks and randomness of their own.
const PURE: &[&str] = &[
    "base",
    "paxos",
    "storage",
    "router",
    "replica-group",
    "shardmaster",
    "kvserver",
    "node",
    "sim",
];

/// What the pure crates may use from outside the project.
const PURE_DEPENDENCIES: &[&str] =
    &["bytes", "crc32fast", "minicbor", "rand_chacha", "sha2", "smallvec", "xxhash-rust"];

/// Longest file of source, in lines. A file that comes near it asks for a reason.
const FILE_LINES_MAX: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// The dependencies of each crate, without those of its tests, as cargo understands the manifests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    for (name, _) in LADDER {
        let package =
            if *name == "decree" { "decree".to_owned() } else { format!("decree-{name}") };
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--locked", "--edges", "normal", "--depth", "1"])
            .args(["--prefix", "none", "--format", "{p}", "--package", &package])
            .current_dir(root())
            .output()
            .expect("cargo runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let names = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        all.insert((*name).to_owned(), names.map(str::to_owned).collect());
    }
    all
}

#[test]
fn the_crates_form_the_ladder() {
    for (name, used) in dependencies() {
        let allowed = LADDER.iter().find(|(n, _)| *n == name).expect("listed").1;
        for dependency in used.iter().filter_map(|d| d.strip_prefix("decree-")) {
            assert!(
                allowed.contains(&dependency),
                "crate {name} uses {dependency}, which the ladder does not allow"
            );
        }
    }
    let folders: BTreeSet<String> = fs::read_dir(root().join("crates"))
        .expect("crates")
        .filter_map(|entry| {
            let entry = entry.expect("an entry");
            entry.path().is_dir().then(|| entry.file_name().to_string_lossy().into_owned())
        })
        .collect();
    let listed: BTreeSet<String> = LADDER.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, listed, "every crate has its place in the ladder");
}

#[test]
fn pure_crates_depend_on_nothing_that_touches_the_world() {
    let all = dependencies();
    for name in PURE {
        for dependency in all[*name].iter().filter(|d| !d.starts_with("decree-")) {
            assert!(
                PURE_DEPENDENCIES.contains(&dependency.as_str()),
                "the pure crate {name} depends on {dependency}"
            );
        }
        let lints = fs::read_to_string(root().join("crates").join(name).join("clippy.toml"))
            .unwrap_or_else(|_| panic!("crate {name} has no clippy.toml that keeps it pure"));
        assert!(lints.contains("disallowed-methods"), "crate {name} is not kept pure by clippy");
        let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml"));
        assert!(
            manifest.expect("a manifest").contains("[lints]\nworkspace = true"),
            "crate {name} does not take the lints of the workspace"
        );
    }
}

/// The switch by which tests take guards away is not in what is released, nor in the sweeps: only the
/// tests and examples of `decree-sim` ask for it.
#[test]
fn only_tests_ask_for_mutants() {
    let features = |package: &str, edges: &str| {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--locked", "--edges", edges, "--prefix", "none"])
            .args(["--format", "{p}|{f}", "--package", package])
            .current_dir(root())
            .output()
            .expect("cargo runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let of_base = text.lines().filter(|line| line.starts_with("decree-base "));
        of_base.filter_map(|line| line.split_once('|')).map(|(_, f)| f.to_owned()).collect()
    };
    for package in ["decree", "decree-sim", "decree-server", "decree-runtime"] {
        let found: Vec<String> = features(package, "normal,build");
        assert!(!found.is_empty(), "{package} uses decree-base");
        assert!(found.iter().all(|list| !list.contains("mutants")), "{package}: {found:?}");
    }
    let found: Vec<String> = features("decree-sim", "normal,build,dev");
    assert!(found.iter().any(|list| list.contains("mutants")), "{found:?}");
}

fn sources(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, ending, found);
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for_and_stays_readable() {
    let mut files = Vec::new();
    sources(&root().join("crates"), ".rs", &mut files);
    assert!(files.len() > 50, "the sources were found");
    let unfinished = ["FIX", "ME"].concat();
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("text");
        let shown = file.strip_prefix(root()).expect("inside").display().to_string();
        if !text.starts_with("//!") {
            wrong.push(format!("{shown} does not begin with what it is for"));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("{shown} has {lines} lines, more than {FILE_LINES_MAX}"));
        }
        for (number, line) in text.lines().enumerate() {
            if line.contains(&unfinished) || line.trim_start().starts_with("#[ignore") {
                wrong.push(format!("{shown}:{} is unfinished", number + 1));
            }
            if line.ends_with(' ') || line.contains('\t') {
                wrong.push(format!("{shown}:{} has stray white space", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut files = Vec::new();
    sources(&root(), ".md", &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("text");
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or("");
            let path = target.split('#').next().unwrap_or("");
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let from = file.parent().expect("a folder");
            if !from.join(path).exists() {
                wrong.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
