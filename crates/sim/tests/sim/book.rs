//! What stories of several groups have in common: where the groups live, and keys with the values
//! that they must have.

use std::collections::BTreeMap;

use base::Micros;
use router::Answer;
use sim::scenario::{Scenario, Via, get};
use sim::workload::WorkloadOptions;

/// Shards of most stories.
pub(crate) const SHARDS: u16 = 10;

/// The nodes of a group: each has three of its own, behind those of the masters, 0 to 2.
pub(crate) fn nodes(group: u64) -> [usize; 3] {
    let first = 3 * group as usize;
    [first, first + 1, first + 2]
}

fn places(groups: u64) -> Vec<Vec<usize>> {
    (1..=groups).map(|group| nodes(group).to_vec()).collect()
}

/// A story's name, which decides what chance decides; the environment may make it another.
#[allow(clippy::disallowed_methods)]
fn named(name: &str) -> String {
    let take = std::env::var("DECREE_TAKE").map(|take| format!("{name}, take {take}"));
    take.unwrap_or_else(|_| name.to_owned())
}

/// Masters and nodes for three groups, of which the first so many have joined.
pub(crate) fn begin(name: &str, groups: u64) -> Scenario {
    Scenario::with_groups(&named(name), 12, SHARDS, &places(groups))
}

/// The same with another number of shards, and nodes for so many groups.
pub(crate) fn begin_wide(name: &str, shards: u16, room: u64, groups: u64) -> Scenario {
    Scenario::with_groups(&named(name), 3 + 3 * room as usize, shards, &places(groups))
}

/// As [`begin`], with what was written flushed to the store soon, and few values kept in memory.
pub(crate) fn begin_flushing(name: &str, groups: u64) -> Scenario {
    Scenario::with_options(&named(name), 12, SHARDS, &places(groups), |options| {
        options.settings.overlay_bytes_max = 1;
        options.settings.tail_bytes_max = 1 << 10;
    })
}

/// As [`begin`], with clients that ask again soon where they hear nothing.
pub(crate) fn begin_hasty(name: &str, groups: u64) -> Scenario {
    Scenario::with_options(&named(name), 12, SHARDS, &places(groups), |options| {
        options.attempt_timeout = Micros::from_millis(300);
    })
}

/// Clients without work.
pub(crate) fn nobody() -> WorkloadOptions {
    WorkloadOptions {
        mixed: 0,
        appending: 0,
        chaining: 0,
        owning: 0,
        keys: 10,
        think_max: Micros(0),
        relaxed: 0,
        value_bytes_max: 0,
    }
}

/// So many clients, each of which appends to a key of its own, with pauses up to this long.
pub(crate) fn appenders(owning: usize, millis: u64) -> WorkloadOptions {
    WorkloadOptions { owning, think_max: Micros::from_millis(millis), ..nobody() }
}

/// So many clients that do anything on keys that they share, with pauses up to this long.
pub(crate) fn mixed(mixed: usize, millis: u64) -> WorkloadOptions {
    WorkloadOptions { mixed, think_max: Micros::from_millis(millis), ..nobody() }
}

/// A key of each shard.
pub(crate) fn keys() -> Vec<String> {
    let mut keys = BTreeMap::new();
    for index in 0.. {
        let key = format!("key{index}");
        let shard = router::shard_of(key.as_bytes(), SHARDS);
        keys.entry(shard).or_insert(key);
        if keys.len() == usize::from(SHARDS) {
            break;
        }
    }
    keys.into_values().collect()
}

/// Keys with the values that they must have.
pub(crate) struct Book(pub(crate) Vec<(String, String)>);

impl Book {
    /// A key of each shard.
    pub(crate) fn write(s: &mut Scenario) -> Book {
        let mut book = Book(keys().into_iter().map(|key| (key, String::new())).collect());
        book.overwrite(s);
        book
    }

    /// So many keys, with values of about so many bytes.
    pub(crate) fn write_many(s: &mut Scenario, keys: usize, bytes: usize) -> Book {
        let mut book = Book((0..keys).map(|key| (format!("k{key}"), String::new())).collect());
        for (key, value) in &mut book.0 {
            *value = format!("{key}{:.<1$}", "", bytes);
            s.put(Via::Any, key, value);
        }
        book
    }

    pub(crate) fn overwrite(&mut self, s: &mut Scenario) {
        for (key, value) in &mut self.0 {
            *value = format!("v{}", s.random().next_u64());
            s.put(Via::Any, key, value);
        }
    }

    pub(crate) fn append(&mut self, s: &mut Scenario) {
        for (key, value) in &mut self.0 {
            s.append(Via::Any, key, "+");
            value.push('+');
        }
    }

    pub(crate) fn check(&self, s: &mut Scenario) {
        for (key, value) in &self.0 {
            s.reads(Via::Any, key, value);
        }
    }

    pub(crate) fn check_and_overwrite(&mut self, s: &mut Scenario) {
        self.check(s);
        self.overwrite(s);
    }

    pub(crate) fn check_and_append(&mut self, s: &mut Scenario) {
        self.check(s);
        self.append(s);
    }

    /// How many of the keys can be read within this time, each by a client of its own that begins
    /// with the masters. Every answer is right.
    pub(crate) fn found(&self, s: &mut Scenario, millis: u64) -> usize {
        let mut begun = Vec::new();
        for (key, value) in &self.0 {
            let client = s.client(vec![0, 1, 2]);
            begun.push((s.begin_as(client, get(key)), value.clone()));
        }
        s.wait(millis);
        let mut found = 0;
        for (call, value) in begun {
            if let Some(answer) = s.ended(call) {
                assert_eq!(answer, Answer::Value(Some(value.into())));
                found += 1;
            }
        }
        found
    }

    /// The keys of the shards that these groups own.
    pub(crate) fn owned_by(&self, s: &mut Scenario, groups: &[u64]) -> usize {
        let owners = s.owners();
        let is_owned = |key: &str| {
            let shard = router::shard_of(key.as_bytes(), owners.len() as u16);
            groups.contains(&owners[usize::from(shard.0)])
        };
        self.0.iter().filter(|(key, _)| is_owned(key)).count()
    }
}
