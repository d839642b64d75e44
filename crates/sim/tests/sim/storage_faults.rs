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
        // A replica that needs a copy of the others' state keeps them from freeing their logs.
        options.world.settings.wal_bytes_max = 64 << 20;
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
    run_rotten(env_seeds(), |_| Rot {
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
#[allow(clippy::disallowed_methods)]
fn env_seeds() -> std::ops::Range<u64> {
    let v = std::env::var("ROT").unwrap_or("1100..1200".into());
    let (a, b) = v.split_once("..").unwrap();
    a.parse().unwrap()..b.parse().unwrap()
}
