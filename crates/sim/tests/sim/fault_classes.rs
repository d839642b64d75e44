//! Classes of faults, each for itself: random runs in which nothing else goes wrong, and a story.

use base::Micros;
use node::Node;
use sim::network::NetworkOptions;
use sim::points::{CrashPoint, PointHits};
use sim::scenario::{Scenario, Via};
use sim::swarm::{self, Fault, Faults, Report, SwarmOptions};

/// Runs a seed with no other faults than `change` makes.
fn run(seed: u64, change: impl Fn(&mut SwarmOptions)) -> Report {
    let mut options = SwarmOptions::draw(seed);
    options.faults = Faults::default();
    options.world.network =
        NetworkOptions { lost: 0, doubled: 0, held: 0, ..options.world.network };
    options.world.paused = 0;
    change(&mut options);
    let result = swarm::run_with::<Node>(seed, options);
    result.unwrap_or_else(|run| panic!("seed {seed}: {}\n{}", run.failed, run.log.join("\n")))
}

fn often(every: u64, span: u64) -> Option<Fault> {
    Some(Fault { every_max: Micros::from_millis(every), span_max: Micros::from_millis(span) })
}

#[test]
fn f01_nodes_end_at_every_crash_point_and_nothing_is_lost() {
    let mut hits = PointHits::new();
    for seed in 0..24 {
        let report = run(seed, |options| {
            options.faults.point = often(500, 500);
            options.faults.power = seed % 2 == 0;
            // Small segments and short logs, so that files come and go.
            options.world.settings.wal_bytes_max = 16 * options.world.settings.segment_bytes;
            options.world.settings.log_bytes_max = 1 << 12;
        });
        for (point, count) in report.points {
            *hits.entry(point).or_default() += count;
        }
    }
    // A store is renewed only where it is damaged; the sweeps meet that.
    let renewal = [CrashPoint::BeforeRenew, CrashPoint::AfterRenew];
    for point in CrashPoint::ALL.iter().filter(|point| !renewal.contains(point)) {
        assert!(hits.get(point.name()).is_some_and(|hits| *hits > 0), "{point:?}: {hits:?}");
    }
}

#[test]
fn f04_messages_are_lost_doubled_held_back_and_overtaken() {
    for seed in 0..8 {
        let report = run(seed, |options| {
            let network = &mut options.world.network;
            network.lost = 500 * (seed % 7);
            network.doubled = 5_000;
            network.held = 1_000;
            network.held_max = Micros(10 * network.delay_max.0);
        });
        assert!(report.answered > 20, "seed {seed}: {report:?}");
    }
}

#[test]
fn f08_nodes_are_clogged_one_by_one_and_freed_in_another_order() {
    for seed in 0..8 {
        let report = run(seed, |options| options.faults.clog = often(3_000, 1_500));
        assert!(report.faults["F08 clogs"] > 3, "seed {seed}: {report:?}");
    }
}

#[test]
fn f20_shards_that_do_not_move_are_served_while_all_masters_are_down_for_ten_minutes() {
    let mut s = Scenario::with_groups("no masters", 6, 16, &[vec![3, 4, 5]]);
    let mut longest = 0;
    s.settles(10_000);
    // All know by now which group has the shards.
    s.wait(2_000);
    s.kill_all(&[0, 1, 2]);
    for round in 0..120 {
        s.wait(5_000);
        // One of the others is started again meanwhile, which knows only what is on its disk.
        if round % 40 == 20 {
            s.kill(3 + round / 40);
            s.restart(3 + round / 40);
            s.wait(2_000);
        }
        let begun = s.millis();
        for key in 0..4 {
            let (key, value) = (format!("key {key}"), format!("value {round}"));
            s.put(Via::Any, &key, &value);
            s.reads(Via::Any, &key, &value);
        }
        longest = longest.max(s.millis() - begun);
    }
    assert!(longest < 1_000, "eight calls took {longest} ms");
    s.restart_nodes(&[0, 1, 2]);
    s.wait(2_000);
    s.join(2, &[3, 4, 5]);
    s.settles(10_000);
}

/// All shards go to a group, and are there.
fn all_to(s: &mut Scenario, group: u64) {
    s.move_shards(&[(&(0..16).collect::<Vec<u16>>(), group)]);
    for _ in 0..100 {
        if s.owners().iter().all(|owner| *owner == group) {
            return;
        }
        s.wait(100);
    }
    panic!("group {group} does not get all shards: {:?}", s.owners());
}

#[test]
fn f20_who_was_away_for_ten_configurations_serves_nothing_that_moved() {
    let mut s = Scenario::with_groups("old routes", 6, 16, &[vec![0, 1, 2], vec![3, 4, 5]]);
    s.settles(10_000);
    all_to(&mut s, 2);
    s.put(Via::Any, "key", "old");
    // Its group has all shards when it leaves, and none when it is back.
    s.kill(3);
    for round in 0..11 {
        all_to(&mut s, round % 2 + 1);
        s.put(Via::Any, "key", &format!("round {round}"));
    }
    s.restart(3);
    for _ in 0..20 {
        s.reads(3, "key", "round 10");
        s.wait(20);
    }
    s.converges();
}
