//! Scenarios of another course on the same architecture: how shards divide, majorities, and how
//! long a client waits at most while nodes or shards come and go. Where that is measured, a client
//! that hears nothing asks again after 300 ms.

use std::collections::BTreeMap;

use base::{GroupId, Micros};
use sim::network::NetworkOptions;
use sim::scenario::Scenario;
use sim::workload::WorkloadOptions;

use crate::book::{Book, begin, begin_hasty, begin_wide, mixed, nodes};

#[test]
fn a_hundred_keys_over_three_joins_and_two_leaves() {
    let mut s = begin("dslabs-100-keys", 1);
    let mut book = Book::write_many(&mut s, 100, 10);
    for group in [2, 3] {
        s.join(group, &nodes(group));
        s.settles(5_000);
        book.check_and_append(&mut s);
    }
    for group in [1, 2] {
        s.leave(&[group]);
        s.settles(5_000);
        book.check_and_append(&mut s);
    }
    assert_eq!(s.owned(), BTreeMap::from([(3, 10)]));
}

#[test]
fn a_hundred_shards_are_divided_in_halves() {
    let mut s = begin_wide("dslabs-100-shards", 100, 2, 1);
    let book = Book::write_many(&mut s, 100, 10);
    s.join(2, &nodes(2));
    s.wait(5_000);
    assert_eq!(s.owned(), BTreeMap::from([(1, 50), (2, 50)]));
    s.kill_all(&nodes(1));
    let found = book.found(&mut s, 2_000);
    assert!(found > 33 && found < 66, "{found}");
    assert_eq!(found, book.owned_by(&mut s, &[2]));
}

#[test]
fn ten_shards_that_were_moved_are_served_where_they_went() {
    let mut s = begin_wide("dslabs-move", 100, 2, 1);
    s.join(2, &nodes(2));
    s.settles(5_000);
    let book = Book::write_many(&mut s, 200, 10);
    let owners = s.owners();
    let chosen: Vec<u16> = (0..100).filter(|shard| owners[usize::from(*shard)] == 1).collect();
    s.move_shards(&[(&chosen[..10], 2)]);
    s.settles(5_000);
    assert_eq!(s.owned(), BTreeMap::from([(1, 40), (2, 60)]));
    s.kill_all(&nodes(1));
    let live = book.owned_by(&mut s, &[2]);
    assert!(live > 100, "{live}");
    assert_eq!(book.found(&mut s, 2_000), live);
}

#[test]
fn majorities_make_progress_with_one_server_of_each_group_cut_off() {
    let mut s = begin("dslabs-majority", 1);
    let mut book = Book::write(&mut s);
    for round in 0..3 {
        let lone = [round, nodes(1)[round], nodes(2)[round], nodes(3)[round]];
        s.isolate(&lone);
        s.wait(500);
        s.join(2, &nodes(2));
        s.join(3, &nodes(3));
        s.wait(2_000);
        assert_eq!(s.owned().len(), 3, "round {round}");
        book.check_and_overwrite(&mut s);
        s.leave(&[2, 3]);
        s.wait(2_000);
        assert_eq!(s.owned(), BTreeMap::from([(1, 10)]), "round {round}");
        book.check_and_overwrite(&mut s);
        s.heal();
        s.settles(5_000);
    }
}

#[test]
fn nobody_waits_two_seconds_while_minorities_come_and_go() {
    let mut s = begin_hasty("dslabs-minorities", 3);
    s.employ(WorkloadOptions { keys: 30, ..mixed(5, 60) });
    for _ in 0..12 {
        let which: Vec<usize> = (0..4).map(|_| s.random().below(3) as usize).collect();
        s.isolate(&[which[0], nodes(1)[which[1]], nodes(2)[which[2]], nodes(3)[which[3]]]);
        s.wait(2_000);
        s.heal();
        s.wait(2_000);
    }
    s.dismiss(5_000);
    assert!(s.longest_wait() < 2_000, "{} ms", s.longest_wait());
}

/// For fifty seconds a random shard moves every four seconds. Returns when the first one did, in
/// milliseconds.
fn moves_all_the_time(name: &str, network: NetworkOptions) -> (Scenario, u64) {
    let mut s = begin_hasty(name, 3);
    s.set_network(network);
    s.employ(WorkloadOptions { keys: 30, ..mixed(5, 60) });
    // Who is new here looks for the leaders first.
    s.wait(1_000);
    let begun = s.millis();
    for _ in 0..12 {
        let owners = s.owners();
        let shard = s.random().below(owners.len() as u64) as u16;
        let others: Vec<u64> = (1..=3).filter(|g| *g != owners[usize::from(shard)]).collect();
        let group = others[s.random().below(2) as usize];
        s.move_shards(&[(&[shard], group)]);
        s.wait(4_000);
    }
    s.dismiss(5_000);
    s.settles(5_000);
    (s, begun)
}

#[test]
fn nobody_waits_long_for_a_shard_that_moves() {
    let (s, begun) = moves_all_the_time("dslabs-moves", NetworkOptions::calm());
    assert!(s.answered() > 5_000, "{}", s.answered());
    // A few messages and three syncs, as the destination knows at once that the shard is its own.
    let longest = s.longest_wait_since(begun);
    assert!(longest < 40, "{longest} ms");
}

#[test]
fn nobody_waits_long_for_a_shard_that_moves_while_all_masters_are_down() {
    let mut s = begin_hasty("dslabs-moves-without-masters", 3);
    s.employ(WorkloadOptions { keys: 30, ..mixed(5, 60) });
    s.wait(1_000);
    let begun = s.millis();
    for round in 0..8 {
        let owners = s.owners();
        let shard = s.random().below(owners.len() as u64) as u16;
        let source = owners[usize::from(shard)];
        s.move_shards(&[(&[shard], source % 3 + 1)]);
        // The source has begun. Nobody is told by the shard master what comes of it.
        let leader = s.leader(source);
        let replica = |s: &Scenario| {
            let replica = s.node(leader).data_replica(GroupId(source));
            replica.map_or(0, |replica| replica.machine().outgoing().len())
        };
        while replica(&s) == 0 {
            s.wait_micros(Micros(200));
        }
        s.kill_all(&[0, 1, 2]);
        s.wait(2_000);
        assert_eq!(replica(&s), 0, "round {round}: the groups do the rest by themselves");
        s.restart_all();
        s.settles(5_000);
    }
    s.dismiss(5_000);
    let longest = s.longest_wait_since(begun);
    assert!(longest < 60, "{longest} ms");
}

#[test]
fn nobody_waits_four_seconds_while_shards_move_and_a_fifth_is_lost() {
    let network = NetworkOptions { lost: 2_000, ..NetworkOptions::calm() };
    let (s, _) = moves_all_the_time("dslabs-moves-fifth", network);
    assert!(s.answered() > 100, "{}", s.answered());
    assert!(s.longest_wait() < 4_000, "{} ms", s.longest_wait());
}
