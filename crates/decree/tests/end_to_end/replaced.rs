//! Nodes lose their disks, and other machines take over, while clients predict every reply.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::support::predicted::Load;
use crate::support::{ByHand, Finished, Node, eventually, run};

const SOON: Duration = Duration::from_secs(60);

struct Cluster {
    layout: ByHand,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    fn start(nodes: u64) -> Cluster {
        let layout = ByHand::new(nodes as usize);
        let nodes = (1..=nodes).map(|node| Some(layout.start(node))).collect();
        let cluster = Cluster { layout, nodes };
        let masters = cluster.layout.masters();
        cluster.done(&["init", "--masters", &masters, "--shards", "16"]);
        let known = cluster.nodes.len();
        eventually("all nodes are known", SOON, || {
            cluster.ask(&["nodes", "--json"]).lines() == known
        });
        cluster.done(&["join", "1", "1", "2", "3"]);
        cluster
    }

    fn endpoints(&self) -> Vec<String> {
        (1..=self.nodes.len() as u64).map(|node| self.layout.endpoint(node)).collect()
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

    /// Waits until other replicas are on the node, and no members change any more.
    fn replaces(&self, node: u64, before: &[u64]) {
        let begun = Instant::now();
        loop {
            let all = self.replicas();
            let now: Vec<u64> = all.iter().filter(|r| r.0 == node).map(|r| r.2).collect();
            let status = self.ask(&["status"]);
            let changing = status.text().contains("its members change");
            if now.len() == 2 && now.iter().all(|r| !before.contains(r)) && !changing {
                return;
            }
            if begun.elapsed() > SOON {
                let said = self.nodes.iter().flatten().map(|node| node.stderr.all().join("\n"));
                let said: Vec<String> = said.collect();
                panic!(
                    "{before:?} of node {node} are not replaced:\n{}\n{}",
                    status.text(),
                    said.join("\n\n")
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The replicas on the nodes that answer: node, group, replica.
    fn replicas(&self) -> Vec<(u64, u64, u64)> {
        let status = self.ask(&["status", "--json"]);
        let lines = if status.code == 0 { status.json() } else { Vec::new() };
        let of_node = |line: &Value| {
            let node = line["node"].as_u64().unwrap_or_default();
            let groups = line["groups"].as_array().cloned().unwrap_or_default();
            let number = |group: &Value, name: &str| group[name].as_u64().unwrap_or_default();
            let groups = groups.into_iter();
            groups.map(|g| (node, number(&g, "group"), number(&g, "replica"))).collect::<Vec<_>>()
        };
        lines.iter().flat_map(of_node).collect()
    }
}

#[test]
fn f14_each_of_three_nodes_loses_its_disk_under_load_and_every_prediction_holds() {
    let mut cluster = Cluster::start(3);
    cluster.done(&["bench", "--warmup", "0s", "--ops", "500", "--keys", "500", "--clients", "4"]);
    let load = Load::start("wiped", cluster.endpoints(), 3);
    let works = || {
        let since = load.calls();
        eventually("clients go on", SOON, || load.calls() > since + 50);
        assert_eq!(load.wrong(), [""; 0]);
    };
    works();
    for node in 1..=3u64 {
        let before: Vec<u64> =
            cluster.replicas().iter().filter(|r| r.0 == node).map(|r| r.2).collect();
        assert_eq!(before.len(), 2, "{:?}", cluster.replicas());
        cluster.nodes[node as usize - 1] = None;
        std::fs::remove_dir_all(cluster.layout.directory.path().join(format!("n{node}"))).unwrap();
        works();
        cluster.nodes[node as usize - 1] = Some(cluster.layout.start(node));
        cluster.replaces(node, &before);
        works();
    }
    let (calls, wrong) = load.stop();
    assert!(calls > 300);
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn another_machine_takes_over_and_a_node_is_drained_under_load() {
    let mut cluster = Cluster::start(4);
    let load = Load::start("replaced", cluster.endpoints(), 3);
    cluster.nodes[2] = None;
    cluster.done(&["node", "replace", "3", "4", "--watch"]);
    let of_group: Vec<u64> = cluster.replicas().iter().filter(|r| r.1 == 1).map(|r| r.0).collect();
    assert_eq!(of_group, [1, 2, 4]);
    // It comes back, and holds nothing.
    cluster.nodes[2] = Some(cluster.layout.start(3));
    eventually("nothing is left on it", SOON, || {
        cluster.replicas().iter().all(|replica| replica.0 != 3)
    });
    for (arguments, why) in [
        (&["node", "replace", "9", "4"][..], "node 9 is not known"),
        (&["node", "replace", "1", "1"], "cannot replace itself"),
        (&["node", "replace", "1", "2"], "holds a replica of group 0 already"),
        (&["node", "drain", "1"], "start another node first"),
    ] {
        let refused = cluster.ask(arguments);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    // What was replaced can take over again.
    cluster.done(&["node", "replace", "1", "3", "--watch"]);
    let since = load.calls();
    eventually("clients go on", SOON, || load.calls() > since + 50);
    let (_, wrong) = load.stop();
    assert_eq!(wrong, [""; 0]);
}
