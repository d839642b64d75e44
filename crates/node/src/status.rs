//! What a node says of itself, without asking any other.

use replica_group::turn::Token;
use router::{
    Answer, ClusterAnswer, ClusterOp, ErrorReply, GroupStatus, Header, NodeStatus, PeerStatus,
    Reply, ReplyHeader, ShardStatus,
};

use crate::hosted::Hosted;
use crate::node::Node;

impl Node {
    pub(crate) fn on_cluster_op(&mut self, token: Token, header: &Header, op: ClusterOp) {
        if let (Some(asked), Some(own)) = (header.cluster, self.record.cluster)
            && asked != own
        {
            let body = Err(ErrorReply::WrongCluster { cluster: own });
            let header = ReplyHeader { cluster: Some(own), ..ReplyHeader::default() };
            return self.answer(token, Reply { header, body });
        }
        let answer = match op {
            ClusterOp::Init { masters, shards } => {
                return self.begin_init(token, header.timeout, masters, shards);
            }
            ClusterOp::Status => ClusterAnswer::Status(Box::new(self.status())),
            ClusterOp::Routes => ClusterAnswer::Routes(Box::new(self.record.routes.clone())),
            ClusterOp::Shards => ClusterAnswer::Shards(self.shard_statuses()),
        };
        let header = ReplyHeader {
            cluster: self.record.cluster,
            configuration: self.record.routes.configuration,
            ..ReplyHeader::default()
        };
        self.answer(token, Reply { header, body: Ok(Answer::Cluster(answer)) });
    }

    /// The state of this node.
    pub fn status(&self) -> NodeStatus {
        let wal = self.wal.stats();
        NodeStatus {
            node: self.record.node,
            disk: self.options.disk,
            boot: self.options.boot,
            cluster: self.cluster_durable,
            peer: self.options.peer.clone(),
            grpc: self.options.grpc.clone(),
            not_ready: self.not_ready(),
            routes_version: self.record.routes.version,
            configuration: self.record.routes.configuration,
            groups: self.groups.values().map(|hosted| self.group_status(hosted)).collect(),
            peers: self
                .peers
                .iter()
                .map(|(node, peer)| PeerStatus {
                    node: *node,
                    connected: peer.connected,
                    round_trip: peer.round_trip,
                })
                .collect(),
            wal_live_bytes: wal.bytes_live,
            wal_syncs: wal.flights_done,
            wal_full: self.wal.is_full(),
            overlay_bytes: self.overlay.bytes() as u64,
            open_requests: self.requests.len() as u64,
            uptime: self.now.mono.since(self.started),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            scrubbed_bytes: self.damage.scrubbed_bytes,
            damage_found: self.damage.places,
            repaired_slots: self.groups.values().map(|h| h.paxos().repaired_slots()).sum(),
        }
    }

    fn shard_statuses(&self) -> Vec<ShardStatus> {
        let mut all = Vec::new();
        for hosted in self.groups.values() {
            if let Hosted::Data(replica) = hosted {
                all.extend(replica.machine().shards(replica.paxos().is_leading()));
            }
        }
        all
    }
}

impl Node {
    fn group_status(&self, hosted: &Hosted) -> GroupStatus {
        let paxos = hosted.paxos();
        GroupStatus {
            group: paxos.group(),
            replica: paxos.replica(),
            nodes: paxos.members().voters().iter().map(|member| member.node).collect(),
            leader: hosted.leader_node(),
            leading: paxos.is_leading(),
            round: paxos.ballot().round,
            chosen_upto: paxos.chosen_upto(),
            applied: hosted.applied(),
            persisted: hosted.persisted(),
            truncated_upto: paxos.first_slot().prev(),
            trouble: self.trouble(hosted),
        }
    }
}
