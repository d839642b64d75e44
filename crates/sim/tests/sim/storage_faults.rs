//! Disks that lie, fail and fill up (docs/paxos.md 11.3).

use base::{GroupId, Micros, Slot};
use node::Node;
use paxos::record::Outline;
use paxos::{Record, SlotStatus};
use sim::rot::LogRecord;
use sim::scenario::{Scenario, Via};
use sim::swarm::{self, Rot, SwarmOptions};

/// Runs seeds in which one node's disk rots like this.
fn run_rotten(seeds: std::ops::Range<u64>, rot: impl Fn(&SwarmOptions) -> Rot) {
    for seed in seeds {
        let mut options = SwarmOptions::draw(seed);
        let more = options.reconfiguration.iter().flat_map(|r| &r.groups);
        if options.groups.iter().chain(more).any(|group| group.len() < 3) {
            continue;
        }
        options.faults.rot = Some(rot(&options));
        if let Err(run) = swarm::run_with::<Node>(seed, options) {
            for line in run.log.iter().chain(&run.replicas) {
                println!("{line}");
            }
            panic!("seed {seed}: {}", run.failed);
        }
    }
}

#[test]
fn f11_bits_of_one_nodes_log_rot_all_the_time() {
    run_rotten(1_000..1_020, |options| Rot {
        node: 1 % options.world.nodes,
        every_max: Micros::from_millis(400),
        pages: 0,
        store: 0,
        crash: 30,
    });
}

#[test]
fn f11_one_node_loses_pages_of_its_log_and_records_of_its_store() {
    run_rotten(1_100..1_120, |_| Rot {
        node: 0,
        every_max: Micros::from_secs(3),
        pages: 50,
        store: 30,
        crash: 30,
    });
}

/// The slots of the group's accepted values in a record.
fn slots(record: &LogRecord) -> Option<(Slot, Slot)> {
    match Record::outline(&record.identity) {
        Ok(Outline::Entries { first, count, .. }) if record.group == GroupId(1) => {
            Some((first, Slot(first.0 + u64::from(count) - 1)))
        }
        _ => None,
    }
}

#[test]
fn f11_a_different_part_of_the_log_rots_on_each_node_and_nothing_is_lost() {
    for round in 0..6 {
        let mut s =
            Scenario::with_options(&format!("helix {round}"), 3, 16, &[vec![0, 1, 2]], |options| {
                // Nothing is flushed: the logs are all there is.
                options.settings.overlay_idle = Micros::from_secs(1_000);
                options.settings.overlay_age_max = Micros::from_secs(1_000);
            });
        for i in 0..60 {
            s.put(Via::Any, &format!("key {i}"), &format!("value {i} of round {round}"));
        }
        s.wait(1_000);
        s.power_off();
        let mut damaged = 0;
        for node in 0..3 {
            damaged += s.rot(node, |record| {
                slots(record).is_some_and(|(first, last)| {
                    let share = |slot: Slot| slot.0 / 5 % 3 == node as u64;
                    share(first) && share(last)
                })
            });
        }
        assert!(damaged > 40, "{damaged} records");
        s.restart_all();
        for i in 0..60 {
            s.reads(Via::Any, &format!("key {i}"), &format!("value {i} of round {round}"));
        }
        s.converges();
        s.wait(3_000);
        for node in 0..3 {
            assert!(s.node(node).status().damage_found > 0, "it is counted");
            let paxos = s.node(node).paxos_of(GroupId(1)).unwrap();
            assert_eq!(paxos.faulty_slots(), 0, "all is mended");
            assert!(paxos.repaired_slots() > 5);
            assert!(!paxos.is_quarantined());
            assert!(matches!(paxos.status(paxos.chosen_upto()), SlotStatus::Chosen(_)));
        }
    }
}

/// What is wrong with the replica of the group on a node, for a person.
fn trouble(s: &Scenario, node: usize) -> Option<String> {
    trouble_of(s, node, GroupId(1))
}

fn trouble_of(s: &Scenario, node: usize, of: GroupId) -> Option<String> {
    let groups = s.node(node).status().groups;
    groups.into_iter().find(|group| group.group == of).and_then(|group| group.trouble)
}

#[test]
fn f13_a_node_on_an_old_copy_of_its_disk_never_votes_and_another_replica_takes_its_place() {
    let mut s = Scenario::new("old copy", 3);
    s.put(Via::Any, "before", "1");
    s.wait(2_000);
    let image = s.image(1);
    for i in 0..20 {
        s.put(Via::Any, &format!("key {i}"), &format!("value {i}"));
    }
    s.wait(2_000);
    let replica = |s: &Scenario| s.node(1).paxos_of(GroupId(1)).map(|paxos| paxos.replica());
    let old = replica(&s);
    // Alone with one other it makes no quorum.
    s.kill_all(&[0, 1]);
    s.restore(1, image);
    s.restart(1);
    let begun = s.begin(Via::Node(2), sim::scenario::put("after", "2"));
    s.does_not_finish(begun, 3_000);
    let found = trouble(&s, 1).unwrap_or_default();
    assert!(found.contains("quarantined"), "{found}");
    s.restart(0);
    s.finishes(begun, 20_000);

    // With the third there are enough to agree on another replica, which votes.
    s.wait(5_000);
    s.converges();
    assert_ne!(replica(&s), old);
    assert!((0..3).all(|node| trouble(&s, node).is_none()));
    s.kill_all(&[0, 1, 2]);
    s.restart_all();
    s.kill(0);
    s.reads(Via::Any, "after", "2");
    for i in 0..20 {
        s.reads(Via::Any, &format!("key {i}"), &format!("value {i}"));
    }
    s.put(Via::Any, "after", "3");
}

#[test]
fn f13_a_copy_that_shows_all_that_was_ever_seen_is_no_old_one() {
    let mut s = Scenario::new("same copy", 3);
    s.put(Via::Any, "before", "1");
    s.wait(2_000);
    s.kill(1);
    let image = s.image(1);
    s.restore(1, image);
    s.restart(1);
    s.wait(1_000);
    assert_eq!(trouble(&s, 1), None);
    s.kill(0);
    s.put(Via::Any, "after", "2");
}

/// Three nodes that give no copies of their states until they are told to.
fn without_copies(name: &str) -> Scenario {
    Scenario::with_options(name, 3, 16, &[vec![0, 1, 2]], |options| {
        options.settings.snapshot_bytes_per_second = 0;
    })
}

#[test]
fn f11_a_replica_without_its_store_votes_on_and_serves_nothing_wrong() {
    let mut s = without_copies("spoiled store");
    for i in 0..20 {
        s.put(Via::Any, &format!("key {i}"), &format!("value {i}"));
    }
    s.wait(3_000);
    s.spoil_store(1);
    s.wait(3_000);
    assert!(trouble(&s, 1).unwrap_or_default().contains("store is lost"), "the scrub found it");
    for i in 0..20 {
        s.reads(Via::Node(1), &format!("key {i}"), &format!("value {i}"));
    }
    // Its votes still count, before and after a restart.
    for round in 0..2 {
        s.kill(0);
        s.put(Via::Node(1), "voted", &format!("{round}"));
        s.reads(Via::Node(2), "voted", &format!("{round}"));
        s.restart(0);
        s.kill(1);
        s.restart(1);
        s.wait(500);
        assert!(trouble(&s, 1).unwrap_or_default().contains("store is lost"));
    }
    // A copy makes it whole, and it may lead.
    s.serve_copies();
    s.wait(3_000);
    assert_eq!(trouble(&s, 1), None);
    s.converges();
    s.kill(0);
    for i in 0..20 {
        s.reads(Via::Node(1), &format!("key {i}"), &format!("value {i}"));
    }
}

#[test]
fn f11_a_store_is_made_whole_of_a_group_that_has_executed_nothing() {
    let groups = [vec![0, 1, 2], vec![0, 1, 2]];
    let mut s = Scenario::with_options("nothing", 3, 1, &groups, |_| {});
    s.put(Via::Any, "key", "value");
    s.wait(3_000);
    let chosen =
        |group: u8| s.node(1).paxos_of(GroupId(group.into())).unwrap().chosen_upto() > Slot::ZERO;
    let idle = [1, 2].into_iter().find(|group| !chosen(*group)).expect("there is one shard");
    // It has a record of its own in a store that was renewed.
    damage_store(&mut s, 1, b"meta");
    s.wait(8_000);
    let own = [&[0, 0, 0, idle][..], &kvserver::keys::group_meta()].concat();
    s.damage_record(1, &own);
    s.kill(1);
    s.restart(1);
    let idle = GroupId(idle.into());
    let found = trouble_of(&s, 1, idle).unwrap_or_default();
    assert!(found.contains("store is lost"), "{found}");
    s.wait(10_000);
    assert_eq!(trouble_of(&s, 1, idle), None);
    s.converges();
    s.kill(0);
    s.reads(Via::Node(1), "key", "value");
}

/// The store of a node loses the record whose key ends like this, and then some flush finds it stuck.
fn damage_store(s: &mut Scenario, node: usize, end: &[u8]) {
    let place = s.store(node).place(end).expect("there is such a record");
    s.store(node).damage(place);
    s.put(Via::Any, "damaged", &format!("{node}"));
}

#[test]
fn f11_a_store_with_a_damaged_block_is_renewed_when_all_that_lives_in_it_can_be_read() {
    let mut s = without_copies("damaged block");
    for i in 0..20 {
        s.put(Via::Any, &format!("key {i}"), &format!("value {i}"));
    }
    s.wait(3_000);
    damage_store(&mut s, 1, b"key 7");
    s.wait(20_000);
    // What is left of a state may be all that there is.
    assert_eq!(s.store(1).renewals(), 0);
    let found = trouble(&s, 1).unwrap_or_default();
    assert!(found.contains("store is lost") && found.contains("waits to be renewed"), "{found}");
    s.serve_copies();
    s.wait(10_000);
    assert_eq!(s.store(1).renewals(), 1);
    assert!((0..3).all(|node| trouble(&s, node).is_none()));
    assert_eq!(s.store(0).renewals() + s.store(2).renewals(), 0);

    // The next start finds all that is needed.
    s.converges();
    s.kill_all(&[0, 1, 2]);
    s.restart_all();
    s.wait(2_000);
    assert_eq!(trouble(&s, 1), None);
    s.kill(0);
    for i in 0..20 {
        s.reads(Via::Node(1), &format!("key {i}"), &format!("value {i}"));
    }
}

#[test]
fn f11_a_store_is_renewed_though_the_nodes_own_records_in_it_are_damaged() {
    let mut s = Scenario::new("own records", 3);
    for i in 0..20 {
        s.put(Via::Any, &format!("key {i}"), &format!("value {i}"));
    }
    s.wait(3_000);
    let one = GroupId(1).0.to_be_bytes();
    let standing = [&b"standing"[..], &one].concat();
    let applied = [&b"applied"[..], &one].concat();
    for (round, end) in [&b"meta"[..], &standing, &applied].into_iter().enumerate() {
        damage_store(&mut s, 1, end);
        s.wait(8_000);
        assert_eq!(s.store(1).renewals(), round as u64 + 1);
        assert_eq!(trouble(&s, 1), None);
        s.kill(1);
        s.restart(1);
        s.wait(2_000);
        assert_eq!(trouble(&s, 1), None, "the records are all there");
    }
    s.converges();
    s.kill(0);
    for i in 0..20 {
        s.reads(Via::Node(1), &format!("key {i}"), &format!("value {i}"));
    }
}

#[test]
fn f11_scrubbing_finds_and_mends_what_nobody_reads() {
    let mut s = Scenario::new("scrub", 3);
    for i in 0..20 {
        s.put(Via::Any, &format!("key {i}"), &format!("value {i}"));
    }
    s.wait(2_000);
    for node in 0..3 {
        let damaged = s
            .rot(node, |record| slots(record).is_some_and(|(first, _)| first.0 % 3 == node as u64));
        s.wait(5_000);
        let status = s.node(node).status();
        assert!(status.scrubbed_bytes > 0);
        assert!(damaged == 0 || status.damage_found > 0, "{damaged} on node {node}");
        assert_eq!(trouble(&s, node), None, "all is mended");
    }
    // A later start meets the same damage, and what mended it.
    s.kill_all(&[0, 1, 2]);
    s.restart_all();
    s.converges();
    for i in 0..20 {
        s.reads(Via::Any, &format!("key {i}"), &format!("value {i}"));
    }
    for node in 0..3 {
        assert!(!trouble(&s, node).unwrap_or_default().contains("quarantined"));
    }
}

#[test]
fn a_replica_whose_state_differs_from_the_others_says_so_and_takes_theirs() {
    let mut s = without_copies("deviant");
    for i in 0..5 {
        s.put(Via::Any, &format!("key {i}"), &format!("value {i}"));
    }
    s.wait(3_000);
    assert!((0..3).all(|node| trouble(&s, node).is_none()), "equal states are no trouble");
    // The hash of a value, as it stands beside the value: the next change takes the wrong one out
    // of the shard's digest.
    let altered = s.store(1).alter(|_, record| {
        let is_value = record.ends_with(b"value 3") && record.len() == 29 + 7;
        is_value.then(|| {
            let mut bytes = record.to_vec();
            bytes[15] ^= 1;
            bytes.into()
        })
    });
    assert_eq!(altered, 1);
    s.put(Via::Any, "key 3", "another value");
    s.wait(4_000);
    let found = trouble(&s, 1).unwrap_or_default();
    assert!(found.contains("a majority of the group had another state"), "{found}");
    assert!(trouble(&s, 0).is_none() && trouble(&s, 2).is_none());
    s.reads(Via::Node(1), "key 3", "another value");
    // It is known after a restart too.
    s.kill(1);
    s.restart(1);
    s.wait(1_000);
    assert!(trouble(&s, 1).unwrap_or_default().contains("store is lost"));
    s.serve_copies();
    s.wait(3_000);
    assert_eq!(trouble(&s, 1), None, "it has the others' state");
    s.wait(3_000);
    assert_eq!(trouble(&s, 1), None, "and does not differ again");
    s.kill(0);
    s.reads(Via::Node(1), "key 3", "another value");
    s.reads(Via::Node(1), "key 2", "value 2");
}

/// Writes keys one after the other until one is refused, and tells why.
fn write_until_refused(s: &mut Scenario) -> String {
    let value = "v".repeat(1_000);
    for i in 0..1_000 {
        if let Err(why) = s.tries(Via::Any, sim::scenario::put(&format!("key {i}"), &value)) {
            return why;
        }
    }
    panic!("nothing is refused");
}

#[test]
fn f15_where_the_disk_of_a_leader_is_full_another_leads_and_writes_go_on() {
    let mut s = Scenario::new("full leader", 3);
    let full = s.leader(1);
    s.fill(full, true);
    let why = write_until_refused(&mut s);
    assert!(why.contains("is full: writes are refused"), "{why}");
    s.wait(3_000);
    assert_ne!(s.leader(1), full);
    for i in 0..300 {
        s.put(Via::Node(full), &format!("key {i}"), &format!("value {i}"));
    }
    assert!(s.node(full).status().wal_full);
    s.reads(Via::Node(full), "key 299", "value 299");
    s.fill(full, false);
    s.wait(3_000);
    assert!(!s.node(full).status().wal_full);
    s.converges();
}

#[test]
fn f15_where_all_disks_are_full_somebody_leads_and_answers_reads() {
    let mut s = Scenario::new("all full", 3);
    (0..3).for_each(|node| s.fill(node, true));
    write_until_refused(&mut s);
    for _ in 0..20 {
        s.wait(500);
        s.reads(Via::Any, "key 0", &"v".repeat(1_000));
    }
    (0..3).for_each(|node| s.fill(node, false));
    s.wait(3_000);
    s.put(Via::Any, "key 0", "1");
    s.converges();
}

#[test]
fn f15_a_group_that_decides_nothing_does_not_fill_the_log_of_its_nodes() {
    let groups = [vec![0, 1, 2, 3, 4], vec![0, 3, 4]];
    let mut s = Scenario::with_options("undecided", 5, 16, &groups, |options| {
        options.settings.wal_bytes_max = 1 << 20;
    });
    let shards = s.plan().shards;
    let key_of = |wanted: GroupId| -> String {
        let planned = |key: &String| {
            let shard = router::shard_of(key.as_bytes(), shards.len() as u16);
            shards[usize::from(shard.0)] == wanted
        };
        (0..).map(|i| format!("key {i}")).find(planned).unwrap()
    };
    let (goes_on, waits) = (key_of(GroupId(1)), key_of(GroupId(2)));
    s.put(Via::Any, &waits, "1");
    let left = s.leader(2);
    for node in [0, 3, 4] {
        if node != left {
            s.kill(node);
        }
    }
    // It is accepted by the leader and by nobody else.
    let undecided = s.begin(Via::Any, sim::scenario::put(&waits, "2"));
    s.wait(1_000);
    let value = "v".repeat(10_000);
    for _ in 0..400 {
        s.put(Via::Any, &goes_on, &value);
        s.wait(30);
    }
    assert!(!s.node(left).status().wal_full);
    // What it accepted survives its process, and the decision.
    s.kill(left);
    s.restart_all();
    s.finishes(undecided, 20_000);
    s.reads(Via::Any, &waits, "2");
    s.converges();
}
