//! How a node comes to belong to a cluster: `init` makes masters agree to a new one, and every
//! node makes itself known to them.
//!
//! `init` first reads who the masters are. The cluster's id is the hash of their disks and the
//! number of shards, so that equal requests, repeated or at the same time through different nodes,
//! mean the same cluster and complete each other. Then it asks the masters, in the order of their
//! disks and one after the other, to belong to that cluster for ever; the first that belongs to
//! another one ends it. Of two different requests at the same time the one that reaches the first
//! master first wins, and the other has bound nobody.

use std::collections::{BTreeMap, BTreeSet};

use base::{Address, ClusterId, DiskId, GroupId, Micros, NodeId, ReplicaId, limits};
use paxos::{Member, Members, Paxos};
use replica_group::turn::{Lane, Level, Token};
use router::{
    Answer, Body, ClusterAnswer, ErrorReply, MasterAnswer, MasterOp, NodeInfo, Reply, ReplyHeader,
    Request,
};

use crate::frame::NodeMessage;
use crate::hosted::is_master;
use crate::identity::{Grant, Master, cluster_id};
use crate::node::{Node, STOPPING};
use crate::requests::{Origin, Work, own_header, registered, registration};

/// One `init` under way through this node.
#[derive(Debug)]
struct Init {
    token: Token,
    masters: Vec<Address>,
    shards: u16,
    deadline: Micros,
    again: Micros,
    found: BTreeMap<Address, Identity>,
    grant: Option<Grant>,
    /// Masters that have agreed.
    granted: usize,
}

#[derive(Clone, Debug)]
struct Identity {
    node: NodeId,
    disk: DiskId,
    peer: Address,
    cluster: Option<ClusterId>,
}

/// What is under way on this node until it belongs to a cluster that knows it.
#[derive(Debug, Default)]
pub(crate) struct Bootstrap {
    inits: Vec<Init>,
    register_at: Micros,
    /// The disk in whose place this node's comes.
    replaces: Option<DiskId>,
    register_tries: u64,
    complained_at: Micros,
    asked_routes_at: Micros,
}

/// Most `init`s under way through one node.
const INITS_MAX: usize = 16;
/// Pause between two attempts of anything here.
const AGAIN: Micros = Micros::from_millis(200);
/// Pause between two log lines that say the same.
const SAY_AGAIN: Micros = Micros::from_secs(10);

impl Node {
    /// Why the node cannot serve, when it cannot.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.record.cluster.is_none() {
            return Some(
                "this node belongs to no cluster yet: create one with `decree init --masters \
                 ADDR,ADDR,ADDR`, or check this node's --masters"
                    .to_owned(),
            );
        }
        if self.record.node == NodeId(0) || self.record.routes.version == 0 {
            return Some(
                "this node has not heard from the shard master yet: a majority of the masters \
                 must be up"
                    .to_owned(),
            );
        }
        None
    }

    pub(crate) fn begin_init(
        &mut self,
        token: Token,
        timeout: Micros,
        masters: Vec<Address>,
        shards: u16,
    ) {
        let invalid = |text: String| Err(ErrorReply::Invalid(text));
        if masters.is_empty() || masters.len() > limits::GROUP_REPLICAS_MAX {
            let most = limits::GROUP_REPLICAS_MAX;
            let text = format!("a cluster has 1 to {most} masters, {} are named", masters.len());
            return self.answer_init(token, invalid(text));
        }
        if shards == 0 || shards > limits::SHARDS_MAX {
            let text = format!("a cluster has 1 to {} shards, not {shards}", limits::SHARDS_MAX);
            return self.answer_init(token, invalid(text));
        }
        let distinct: BTreeSet<&Address> = masters.iter().collect();
        if distinct.len() < masters.len() {
            let text = "a master is named twice: name each once".to_owned();
            return self.answer_init(token, invalid(text));
        }
        if self.bootstrap.inits.len() >= INITS_MAX {
            let text = format!("{INITS_MAX} requests to create a cluster are under way: wait");
            return self.answer_init(token, Err(ErrorReply::ResourceExhausted(text)));
        }
        let now = self.now.mono;
        let timeout = if timeout == Micros(0) { self.options.request_timeout } else { timeout };
        self.bootstrap.inits.push(Init {
            token,
            masters,
            shards,
            deadline: now + timeout,
            again: now,
            found: BTreeMap::new(),
            grant: None,
            granted: 0,
        });
        self.tick_inits();
    }

    fn answer_init(&mut self, token: Token, body: Result<ClusterId, ErrorReply>) {
        let header = ReplyHeader { cluster: self.record.cluster, ..ReplyHeader::default() };
        let body = body.map(|id| Answer::Cluster(ClusterAnswer::Created(id)));
        self.answer(token, Reply { header, body });
    }

    fn end_init(&mut self, token: Token, body: Result<ClusterId, ErrorReply>) {
        self.bootstrap.inits.retain(|init| init.token != token);
        self.answer_init(token, body);
    }

    /// The node stops: the same `init` through another node completes what was begun.
    pub(crate) fn stop_inits(&mut self) {
        for init in std::mem::take(&mut self.bootstrap.inits) {
            self.answer_init(init.token, Err(ErrorReply::Unavailable(STOPPING.to_owned())));
        }
    }

    fn tick_inits(&mut self) {
        let now = self.now.mono;
        let mut sends: Vec<(Address, NodeMessage)> = Vec::new();
        let mut expired = Vec::new();
        let reply_to = self.options.peer.clone();
        for init in &mut self.bootstrap.inits {
            if now >= init.deadline {
                expired.push((init.token, init.missing()));
                continue;
            }
            if now < init.again {
                continue;
            }
            init.again = now + AGAIN;
            match &init.grant {
                None => {
                    for address in &init.masters {
                        if !init.found.contains_key(address) {
                            let asked = address.clone();
                            let message =
                                NodeMessage::Identify { reply_to: reply_to.clone(), asked };
                            sends.push((address.clone(), message));
                        }
                    }
                }
                Some(grant) => {
                    if let Some(master) = grant.masters.get(init.granted) {
                        let message =
                            NodeMessage::Grant { reply_to: reply_to.clone(), grant: grant.clone() };
                        sends.push((master.peer.clone(), message));
                    }
                }
            }
        }
        for (address, message) in sends {
            self.send_to(&address, Lane::Protocol, &message);
        }
        for (token, missing) in expired {
            let text = format!(
                "not all masters answered ({missing}): start them with `decree serve`, and repeat \
                 the same init; it completes what was begun"
            );
            self.end_init(token, Err(ErrorReply::Unavailable(text)));
        }
    }

    pub(crate) fn on_identify(&mut self, reply_to: &Address, asked: Address) {
        let message = NodeMessage::Identity {
            node: self.record.node,
            disk: self.options.disk,
            peer: self.options.peer.clone(),
            cluster: self.record.cluster,
            asked,
        };
        self.send_to(reply_to, Lane::Protocol, &message);
    }

    pub(crate) fn on_identity(
        &mut self,
        node: NodeId,
        disk: DiskId,
        peer: Address,
        cluster: Option<ClusterId>,
        asked: &Address,
    ) {
        let identity = Identity { node, disk, peer, cluster };
        let mut refused = Vec::new();
        for init in &mut self.bootstrap.inits {
            if init.grant.is_some() || !init.masters.contains(asked) {
                continue;
            }
            init.found.insert(asked.clone(), identity.clone());
            if init.found.len() == init.masters.len() {
                match init.plan() {
                    Ok(grant) => {
                        init.grant = Some(grant);
                        init.again = Micros(0);
                    }
                    Err(error) => refused.push((init.token, error)),
                }
            }
        }
        for (token, error) in refused {
            self.end_init(token, Err(error));
        }
        self.tick_inits();
    }

    /// This node is asked to belong to a cluster.
    pub(crate) fn on_grant(&mut self, reply_to: Address, grant: Grant) {
        let disk = self.options.disk;
        let Some(own) = grant.masters.iter().find(|master| master.disk == disk) else { return };
        let own = own.clone();
        let disks: Vec<DiskId> = grant.masters.iter().map(|master| master.disk).collect();
        if cluster_id(&disks, grant.shards) != grant.cluster
            || grant.masters.len() > limits::GROUP_REPLICAS_MAX
            || !(1..=limits::SHARDS_MAX).contains(&grant.shards)
        {
            return;
        }
        let asked = grant.cluster;
        // A majority of the masters makes a cluster that works. Then a master that was not asked
        // yet may have registered with it, as any node does, and lacks its replica all the same.
        let lacks = self.record.cluster == Some(asked) && !self.hosts(GroupId::MASTER);
        if lacks && self.is_forgotten(GroupId::MASTER, own.replica) {
            return;
        }
        if self.record.cluster.is_none() || lacks {
            if self.record.node != NodeId(0) && self.record.node != own.node {
                return;
            }
            let member = |m: &Master| Member { replica: m.replica, node: m.node, disk: m.disk };
            let Some(members) = Members::new(grant.masters.iter().map(member).collect()) else {
                return;
            };
            self.record.cluster = Some(asked);
            self.record.node = own.node;
            self.record.grant = Some(grant);
            self.save_record();
            self.event(Level::Info, format!("this node is a master of the new cluster {asked}"));
            self.create_replica(GroupId::MASTER, own.replica, members);
        }
        let cluster = self.record.cluster.unwrap_or(asked);
        // What it vouches for includes the replica's own record, appended with this output.
        self.collect_now();
        self.send_when_durable(reply_to, NodeMessage::Granted { disk, asked, cluster });
    }

    pub(crate) fn on_granted(&mut self, disk: DiskId, asked: ClusterId, cluster: ClusterId) {
        let mut ended = Vec::new();
        for init in &mut self.bootstrap.inits {
            let Some(grant) = &init.grant else { continue };
            let next = grant.masters.get(init.granted);
            if grant.cluster != asked || next.is_none_or(|master| master.disk != disk) {
                continue;
            }
            if cluster != asked {
                ended.push((init.token, Err(init.belongs_elsewhere(disk, cluster))));
                continue;
            }
            init.granted += 1;
            init.again = Micros(0);
            if init.granted == grant.masters.len() {
                ended.push((init.token, Ok(asked)));
            }
        }
        for (token, result) in ended {
            self.end_init(token, result);
        }
        self.tick_inits();
    }

    /// Makes a replica of a group on this node.
    pub(crate) fn create_replica(&mut self, group: GroupId, replica: ReplicaId, members: Members) {
        let seed = self.random.next_u64();
        let options = paxos::Options {
            tail_bytes_max: self.options.tail_bytes_max,
            ..paxos::Options::new(group, replica, seed)
        };
        let paxos = Paxos::create(options, members);
        match self.host(group, paxos, base::Slot::ZERO) {
            Ok(hosted) => {
                self.groups.insert(group, hosted);
                self.dirty.insert(group);
                self.learn_peers();
                self.tell_all_connected(group);
                self.tell_all_heard(group);
                let role = if is_master(group) { " (shard master)" } else { "" };
                let text = format!("replica {} of group {}{role} is created", replica.0, group.0);
                self.event(Level::Info, text);
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    /// A new replica learns which of its peers are connected already.
    pub(crate) fn tell_all_connected(&mut self, group: GroupId) {
        let now = self.now;
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        for (node, peer) in &self.peers {
            if let Some(replica) = hosted.replica_on(*node, peer.disk)
                && peer.connected
            {
                hosted.connected(now, replica, true, peer.round_trip);
            }
        }
    }

    /// A new replica learns what an earlier one here had heard.
    fn tell_all_heard(&mut self, group: GroupId) {
        let now = self.now;
        let Some(hosted) = self.groups.get_mut(&group) else { return };
        for (node, peer) in &self.peers {
            if let Some((replica, row)) = peer.rows.get(&group)
                && hosted.node_of(*replica) == Some(*node)
            {
                hosted.heard(now, *replica, *row);
            }
        }
    }

    pub(crate) fn tick_bootstrap(&mut self) {
        self.tick_inits();
        self.tick_registration();
        self.tick_routes();
    }

    fn own_info(&self) -> NodeInfo {
        NodeInfo {
            node: self.record.node,
            disk: self.options.disk,
            peer: self.options.peer.clone(),
            grpc: self.options.grpc.clone(),
        }
    }

    fn tick_registration(&mut self) {
        let now = self.now.mono;
        let own = self.own_info();
        if own.node != NodeId(0) && self.record.routes.nodes.get(&own.node) == Some(&own) {
            return;
        }
        if now < self.bootstrap.register_at {
            return;
        }
        self.bootstrap.register_at = now + AGAIN;
        let starts = self.options.starts;
        let replaces = self.bootstrap.replaces;
        let body = Body::Master(MasterOp::Register { node: own, starts, replaces });
        let request = Request { header: own_header(), body };
        if self.record.cluster.is_some() && !self.master_nodes().is_empty() {
            let origin = Origin::Register { starts };
            if !self.requests.has(&origin) {
                let deadline = now + self.options.request_timeout;
                let work = Work::Request(GroupId::MASTER, Box::new(request));
                self.start(origin, work, deadline, 0);
            }
            return;
        }
        let masters = &self.options.masters;
        if masters.is_empty() {
            return;
        }
        let tries = self.bootstrap.register_tries;
        self.bootstrap.register_tries += 1;
        let to = masters[(tries % masters.len() as u64) as usize].clone();
        if to != self.options.peer {
            let reply_to = self.options.peer.clone();
            let id = registration(self.options.boot, starts);
            let group = GroupId::MASTER;
            let message = NodeMessage::Forward { id, reply_to, request, number: 0, group };
            self.send_to(&to, Lane::Protocol, &message);
        }
        if now.since(self.bootstrap.complained_at) >= SAY_AGAIN {
            self.bootstrap.complained_at = now;
            let named: Vec<&str> = self.options.masters.iter().map(Address::as_str).collect();
            let named = named.join(", ");
            let text = match self.record.cluster {
                None => format!(
                    "no cluster yet: no master at {named} says that it belongs to one; create the \
                     cluster with `decree init`, or check --masters; still trying"
                ),
                Some(cluster) => format!(
                    "this node belongs to cluster {cluster}, and knows none of its nodes yet: it \
                     asks the masters at {named}; check --masters; still trying"
                ),
            };
            self.event(Level::Warn, text);
        }
    }

    /// The shard master answered a registration.
    pub(crate) fn on_registered(&mut self, reply: &Reply) {
        if let Some(node) = registered(reply) {
            let cluster = reply.header.cluster;
            let mut changed = false;
            if self.record.cluster.is_none() && cluster.is_some() {
                self.record.cluster = cluster;
                changed = true;
            }
            if self.record.node == NodeId(0) {
                self.record.node = node;
                changed = true;
            }
            if changed {
                self.save_record();
                self.event(Level::Info, format!("this node is node {} of its cluster", node.0));
            }
            return;
        }
        if let Ok(Answer::Master(MasterAnswer::Replaces { disk, known, starts })) = &reply.body
            && *disk == self.options.disk
            && (known != disk || self.options.starts < *starts)
        {
            self.count_on(*starts);
            self.bootstrap.replaces = Some(*known);
            self.bootstrap.register_at = self.now.mono;
            return;
        }
        if let Err(ErrorReply::Refused(text) | ErrorReply::Invalid(text)) = &reply.body {
            // Each attempt is a command in the shard master's log.
            self.bootstrap.register_at = self.now.mono + SAY_AGAIN;
            let text = format!("the shard master refuses this node: {text}");
            self.complain(Level::Error, text);
        }
    }

    /// Asks for newer routes: at once after a registration, and now and then in any case.
    fn tick_routes(&mut self) {
        let now = self.now.mono;
        // A replica of the shard master tells the routes, unless it is no longer one, or so far behind
        // that it does not know yet whom to follow now.
        let master = self.groups.get(&GroupId::MASTER);
        let led = master.is_some_and(|hosted| hosted.paxos().leader().is_some());
        if self.record.cluster.is_none() {
            return;
        }
        let own = self.own_info();
        let known = self.record.routes.nodes.get(&own.node) == Some(&own);
        let pause = match (led, known) {
            (true, _) => Micros::from_secs(5),
            (false, true) => Micros::from_secs(1),
            (false, false) => AGAIN,
        };
        if now.since(self.bootstrap.asked_routes_at) < pause {
            return;
        }
        self.bootstrap.asked_routes_at = now;
        let nodes = self.master_nodes();
        let given = self.random.pick(&self.options.masters).cloned();
        let address = match self.random.pick(&nodes).copied() {
            // Now and then as the operator says: all masters may have moved meanwhile.
            Some(_) if given.is_some() && self.random.below(4) == 0 => given,
            Some(node) => self.address_of(node),
            None => given,
        };
        if let Some(address) = address {
            self.ask_routes(&address);
        }
    }
}

impl Init {
    /// The cluster that this request means, once all masters have said who they are.
    fn plan(&self) -> Result<Grant, ErrorReply> {
        let mut found: Vec<&Identity> = self.found.values().collect();
        found.sort_by_key(|identity| identity.disk);
        let refuse = |text: String| Err(ErrorReply::Refused(text));
        for pair in found.windows(2) {
            if pair[0].disk == pair[1].disk {
                let (a, b) = (&pair[0].peer, &pair[1].peer);
                return refuse(format!("{a} and {b} are the same node: name each master once"));
            }
        }
        let mut nodes: Vec<NodeId> = found.iter().map(|identity| identity.node).collect();
        nodes.sort();
        if nodes.contains(&NodeId(0)) || nodes.windows(2).any(|pair| pair[0] == pair[1]) {
            let numbers: Vec<String> =
                found.iter().map(|i| format!("{} is node {}", i.peer, i.node.0)).collect();
            return refuse(format!(
                "every master needs a number of its own ({}): start them with `decree serve \
                 --node N`, or with --masters in the same order everywhere",
                numbers.join(", ")
            ));
        }
        if let Some(far) = nodes.iter().find(|node| node.0 > limits::NODE_NUMBER_MAX) {
            let most = limits::NODE_NUMBER_MAX;
            return refuse(format!(
                "a master is node {}, and node numbers end at {most}: start it with an empty data \
                 directory and another --node",
                far.0
            ));
        }
        let disks: Vec<DiskId> = found.iter().map(|identity| identity.disk).collect();
        let cluster = cluster_id(&disks, self.shards);
        let elsewhere = |i: &&&Identity| i.cluster.is_some_and(|present| present != cluster);
        if let Some(other) = found.iter().find(elsewhere) {
            let present = other.cluster.unwrap_or(cluster);
            return Err(self.belongs_elsewhere(other.disk, present));
        }
        let masters = found.iter().map(|identity| Master {
            node: identity.node,
            replica: ReplicaId(identity.node.0),
            disk: identity.disk,
            peer: identity.peer.clone(),
        });
        Ok(Grant { cluster, shards: self.shards, masters: masters.collect() })
    }

    fn belongs_elsewhere(&self, disk: DiskId, cluster: ClusterId) -> ErrorReply {
        let found = self.found.values().find(|identity| identity.disk == disk);
        let who =
            found.map_or("a master".to_owned(), |i| format!("node {} at {}", i.node.0, i.peer));
        ErrorReply::Refused(format!(
            "{who} already belongs to cluster {cluster}: a cluster is created once, with the \
             masters and the number of shards it has; use it, or start with empty data directories"
        ))
    }

    fn missing(&self) -> String {
        match &self.grant {
            None => {
                let missing: Vec<&str> = self
                    .masters
                    .iter()
                    .filter(|address| !self.found.contains_key(*address))
                    .map(Address::as_str)
                    .collect();
                format!("missing: {}", missing.join(", "))
            }
            Some(grant) => match grant.masters.get(self.granted) {
                Some(master) => format!("missing: {}", master.peer),
                None => "missing: none".to_owned(),
            },
        }
    }
}
