//! Clients that predict every reply, while groups come and go, nodes die, and masters halt.

use std::time::Duration;

use crate::harness::support::predicted::Load;
use crate::moves::{SHARDS, planned_of, served_of, shards_of};
use crate::support::{ByHand, Finished, Node, eventually, run};

/// Longest wait for something that a healthy cluster does in a moment.
const SOON: Duration = Duration::from_secs(60);
const CLIENTS: u64 = 4;

/// Six nodes, the first three of which are masters.
struct Cluster {
    layout: ByHand,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    fn start() -> Cluster {
        let layout = ByHand::new(6);
        let nodes = (1..=6).map(|node| Some(layout.start(node))).collect();
        let cluster = Cluster { layout, nodes };
        let masters = cluster.layout.masters();
        cluster.done(&["init", "--masters", &masters, "--shards", &SHARDS.to_string()]);
        eventually("all nodes are known", SOON, || cluster.ask(&["nodes", "--json"]).lines() == 6);
        cluster
    }

    fn endpoints(&self) -> Vec<String> {
        (1..=6).map(|node| self.layout.endpoint(node)).collect()
    }

    fn ask(&self, arguments: &[&str]) -> Finished {
        let endpoints = self.endpoints().join(",");
        run(&[&["--endpoints", &endpoints, "--timeout", "60s"], arguments].concat())
    }

    fn done(&self, arguments: &[&str]) -> Finished {
        let finished = self.ask(arguments);
        assert_eq!(finished.code, 0, "{arguments:?}: {finished:?}");
        finished
    }

    fn node(&self, node: usize) -> &Node {
        self.nodes[node - 1].as_ref().unwrap()
    }

    /// Waits until every shard is where the plan wants it and nothing dead is left; who serves
    /// which shard.
    fn settled(&self) -> Vec<u64> {
        let planned = planned_of(&self.done(&["query", "--json"]).json()[0]);
        let mut seen = Err(serde_json::Value::Null);
        eventually("the plan comes true", SOON, || {
            let shards = self.ask(&["shards", "--json"]);
            let lines = if shards.code == 0 { shards.json() } else { Vec::new() };
            seen = served_of(&lines);
            let as_planned = seen.as_ref().is_ok_and(|seen| *seen == planned);
            let open = || self.ask(&["status", "--json"]).text().contains("waits_for");
            as_planned && !open()
        });
        seen.unwrap()
    }
}

#[test]
fn every_prediction_holds_while_groups_come_and_go_and_nodes_die() {
    let mut cluster = Cluster::start();
    cluster.done(&["join", "1", "1", "2", "3", "+", "2", "4", "5", "6"]);
    cluster.settled();
    // Something to carry, so that hand-offs are under way when nodes die.
    let ballast = ["--ops", "300", "--keys", "300", "--value-size", "65536", "--clients", "8"];
    cluster.done(&[&["bench", "--warmup", "0s"], &ballast[..]].concat());
    let load = Load::start("moved", cluster.endpoints(), CLIENTS);
    let works = |since: u64| {
        eventually("clients go on", SOON, || load.calls() > since + 50);
        assert_eq!(load.wrong(), [""; 0]);
    };
    let steps: [(&[&str], Option<u64>); 4] = [
        (&["join", "3", "2", "4", "6"], Some(4)),
        (&["move", "0-3", "2"], Some(1)),
        (&["move", "0", "3", "+", "15", "1"], None),
        (&["leave", "3"], Some(6)),
    ];
    for (change, killed) in steps {
        let calls = load.calls();
        cluster.done(change);
        if let Some(node) = killed {
            cluster.nodes[node as usize - 1] = None;
            works(load.calls());
            cluster.nodes[node as usize - 1] = Some(cluster.layout.start(node));
        }
        let served = cluster.settled();
        match change[0] {
            "join" => assert_eq!([1, 2, 3].map(|group| shards_of(&served, group)), [6, 5, 5]),
            "leave" => assert_eq!([1, 2, 3].map(|group| shards_of(&served, group)), [8, 8, 0]),
            _ => assert_eq!(served.len(), SHARDS as usize),
        }
        works(calls);
    }
    let (calls, wrong) = load.stop();
    assert!(calls > 200);
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn nobody_who_reads_or_writes_needs_the_masters() {
    let cluster = Cluster::start();
    cluster.done(&["join", "1", "4", "5", "6", "+", "2", "4", "5", "6"]);
    cluster.settled();
    let load = Load::start("steady", cluster.endpoints(), CLIENTS);
    eventually("clients work", SOON, || load.calls() > 100);
    (1..=3).for_each(|node| cluster.node(node).signal("STOP"));
    // Longer than anything that is known of the masters counts as new.
    std::thread::sleep(Duration::from_secs(3));
    let calls = load.calls();
    eventually("clients go on", SOON, || load.calls() > calls + 200);
    assert_eq!(load.wrong(), [""; 0], "longest call {:?}", load.take_longest());
    // Who comes now needs no master either.
    let of_data: Vec<String> = cluster.endpoints().split_off(3);
    for (arguments, text) in [(&["put", "new", "here"][..], "OK\n"), (&["get", "new"], "here\n")] {
        let endpoints = ["--endpoints", &of_data.join(","), "--timeout", "60s"];
        let finished = run(&[&endpoints[..], arguments].concat());
        assert_eq!(finished.text(), text, "{finished:?}");
    }
    (1..=3).for_each(|node| cluster.node(node).signal("CONT"));
    cluster.done(&["join", "3", "4", "5", "6"]);
    assert_eq!([1, 2, 3].map(|group| shards_of(&cluster.settled(), group)), [6, 5, 5]);
    let (_, wrong) = load.stop();
    assert_eq!(wrong, [""; 0]);
}
