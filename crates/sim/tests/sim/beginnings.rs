//! How a cluster comes to be, in a bad network and by several hands.

use base::{GroupId, Micros};
use node::Node;
use router::{
    Answer, Body, CallError, ClusterAnswer, ClusterOp, ErrorReply, MasterOp, NewGroup, Reply,
};
use sim::cluster::Cluster;
use sim::disk::Crash;
use sim::swarm::SwarmOptions;
use sim::world::WorldOptions;

fn options(seed: u64) -> WorldOptions {
    WorldOptions { nodes: 3, masters: 3, ..SwarmOptions::draw(seed).world }
}

fn init(cluster: &Cluster<Node>, shards: u16) -> Body {
    Body::Cluster(ClusterOp::Init { masters: cluster.world.master_addresses(), shards })
}

fn created(result: Option<Result<Reply, CallError>>) -> base::ClusterId {
    match result {
        Some(Ok(Reply { body: Ok(Answer::Cluster(ClusterAnswer::Created(id))), .. })) => id,
        other => panic!("init is answered {other:?}"),
    }
}

#[test]
fn a_cluster_comes_to_be_in_a_bad_network() {
    for seed in 0..25 {
        let mut cluster: Cluster<Node> = Cluster::new(seed, options(seed));
        let groups = [vec![0, 1, 2], vec![2, 1, 0]];
        cluster.bootstrap(16, &groups).unwrap_or_else(|failed| panic!("seed {seed}: {failed}"));
        cluster.converge(Micros::from_secs(12)).unwrap_or_else(|f| panic!("seed {seed}: {f}"));
    }
}

#[test]
fn two_inits_through_different_nodes_make_one_cluster() {
    for seed in 0..25 {
        let mut cluster: Cluster<Node> = Cluster::new(seed, options(seed));
        (0..3).for_each(|node| cluster.world.start(node));
        let timeout = Micros::from_secs(20);
        let clients = [0, 2].map(|node| cluster.world.add_client(vec![node], true, timeout));
        let calls = clients.map(|client| {
            let body = init(&cluster, 16);
            (client, cluster.world.call(client, body, None))
        });
        let ids = calls.map(|(client, call)| {
            created(cluster.wait(client, call, Micros::from_secs(25)).unwrap())
        });
        assert_eq!(ids[0], ids[1], "seed {seed}");
        // Another number of shards would be another cluster.
        let body = init(&cluster, 32);
        let call = cluster.world.call(clients[0], body, None);
        let result = cluster.wait(clients[0], call, Micros::from_secs(25)).unwrap();
        let refused = matches!(result, Some(Err(CallError::Refused(ErrorReply::Refused(_)))));
        assert!(refused, "seed {seed}: {result:?}");
    }
}

#[test]
fn two_different_inits_at_once_make_at_most_one_cluster_and_say_so() {
    for seed in 0..25 {
        let mut cluster: Cluster<Node> = Cluster::new(seed, options(seed));
        (0..3).for_each(|node| cluster.world.start(node));
        let timeout = Micros::from_secs(5);
        let mut calls = Vec::new();
        for (node, shards) in [(0, 16), (2, 32)] {
            let client = cluster.world.add_client(vec![node], true, timeout);
            let body = init(&cluster, shards);
            calls.push((client, cluster.world.call(client, body, None)));
        }
        let mut made = 0;
        for (client, call) in calls {
            match cluster.wait(client, call, Micros::from_secs(25)).unwrap() {
                Some(Ok(_)) => made += 1,
                Some(Err(_)) => {}
                None => panic!("seed {seed}: an init does not end"),
            }
        }
        assert!(made <= 1, "seed {seed}");
    }
}

#[test]
fn an_init_that_lost_its_power_half_way_is_completed_by_the_next() {
    for seed in 0..40 {
        let mut cluster: Cluster<Node> = Cluster::new(seed, options(seed));
        (0..3).for_each(|node| cluster.world.start(node));
        let client = cluster.world.add_client(vec![0, 1, 2], false, Micros::from_secs(20));
        let body = init(&cluster, 16);
        let first = cluster.world.call(client, body, None);
        cluster.run_for(Micros(seed * 400)).unwrap();
        (0..3).for_each(|node| cluster.world.crash(node, Crash::Power));
        cluster.run_for(Micros::from_millis(50)).unwrap();
        (0..3).for_each(|node| cluster.world.start(node));
        let body = init(&cluster, 16);
        let second = cluster.world.call(client, body, None);
        let ids = [first, second]
            .map(|call| created(cluster.wait(client, call, Micros::from_secs(25)).unwrap()));
        assert_eq!(ids[0], ids[1], "seed {seed}");
    }
}

#[test]
fn joins_that_make_no_sense_are_refused() {
    let mut cluster: Cluster<Node> = Cluster::new(1, options(1));
    let client = cluster.bootstrap(16, &[vec![0, 1, 2]]).unwrap();
    let known: Vec<base::NodeId> = vec![base::NodeId(1)];
    for (group, nodes) in [(2, vec![base::NodeId(77)]), (0, known.clone()), (1, known), (3, vec![])]
    {
        let groups = vec![NewGroup { group: GroupId(group), nodes }];
        let what = format!("{groups:?}");
        let body = Body::Master(MasterOp::Join { groups });
        let call = cluster.world.call(client, body, None);
        let result = cluster.wait(client, call, Micros::from_secs(25)).unwrap();
        assert!(matches!(result, Some(Err(CallError::Refused(_)))), "{what}: {result:?}");
    }
}
