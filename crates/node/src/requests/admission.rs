//! What is checked of a request before anybody else is asked, and who is to be asked: the owner of
//! its shard, and the node that leads it.

use base::{GroupId, NodeId, ShardEpoch, ShardId, limits};
use router::{Body, Consistency, ErrorReply, Expected, KvOp, MasterOp, Request};

use crate::node::Node;
use crate::requests::Work;

impl Node {
    /// Checks what can be checked before any other node is asked; names the group.
    pub(super) fn admit(&self, request: &Request) -> Result<GroupId, ErrorReply> {
        if let (Some(asked), Some(own)) = (request.header.cluster, self.record.cluster)
            && asked != own
        {
            return Err(ErrorReply::WrongCluster { cluster: own });
        }
        if self.requests.len() >= limits::NODE_REQUESTS_MAX
            || self.requests.bytes >= limits::NODE_REQUEST_BYTES_MAX
        {
            return Err(ErrorReply::ResourceExhausted(format!(
                "node {} has {} requests open: slow down and try again",
                self.record.node.0,
                self.requests.len()
            )));
        }
        let is_get = matches!(&request.body, Body::Kv(op) if !op.is_write());
        if request.header.consistency != Consistency::Linearizable && !is_get {
            return Err(ErrorReply::Invalid(
                "only the read of a key may be other than linearizable: leave the consistency out"
                    .to_owned(),
            ));
        }
        if let Some(why) = self.not_ready() {
            return Err(ErrorReply::NotReady(why));
        }
        let op = match &request.body {
            Body::Kv(op) => op,
            Body::Master(op) => return admit_master(op),
            Body::Cluster(_) => return Ok(GroupId::MASTER),
        };
        router::validate(op)?;
        let shard = router::shard_of(op.key(), self.record.routes.shards());
        match self.owner_of(shard) {
            Some((_, group)) => Ok(group),
            None => Err(ErrorReply::NotReady(format!(
                "shard {} has no owner yet: it gets one a moment after the first `decree join`",
                shard.0
            ))),
        }
    }

    /// The group that owns a shard and with which epoch, by the routes or by what a former owner
    /// said.
    pub(super) fn owner_of(&self, shard: ShardId) -> Option<(ShardEpoch, GroupId)> {
        let owner = self.record.routes.owner(shard)?;
        match self.requests.moved.get(&shard) {
            Some((epoch, group)) if *epoch > owner.epoch => Some((*epoch, *group)),
            Some(_) | None => Some((owner.epoch, owner.group)),
        }
    }

    /// A group gave a shard away. False where that was known.
    pub(crate) fn learn_moved(
        &mut self,
        shard: ShardId,
        epoch: ShardEpoch,
        group: GroupId,
    ) -> bool {
        if self.owner_of(shard).is_some_and(|(known, _)| known >= epoch) {
            return false;
        }
        self.requests.moved.insert(shard, (epoch, group));
        true
    }

    /// Newer routes make most of what groups said needless.
    pub(crate) fn forget_moved(&mut self) {
        let routes = &self.record.routes;
        self.requests.moved.retain(|shard, (epoch, _)| {
            routes.owner(*shard).is_none_or(|owner| owner.epoch < *epoch)
        });
    }

    pub(super) fn shard_of_request(&self, id: u64) -> Option<ShardId> {
        match &self.requests.open.get(&id)?.work {
            Work::Request(_, request) => self.shard_of_body(&request.body),
            Work::Command(..) | Work::Inspect(..) | Work::Index(_) => None,
        }
    }

    pub(super) fn shard_of_body(&self, body: &Body) -> Option<ShardId> {
        match body {
            Body::Kv(op) => Some(router::shard_of(op.key(), self.record.routes.shards())),
            Body::Master(_) | Body::Cluster(_) => None,
        }
    }

    /// The node that leads a group, as far as known.
    pub(crate) fn leader_hint(&self, group: GroupId) -> Option<NodeId> {
        match self.groups.get(&group) {
            Some(hosted) => hosted.leader_node(),
            None => self.requests.leaders.get(&group).copied(),
        }
    }

    /// The nodes of the shard master.
    pub(crate) fn master_nodes(&self) -> Vec<NodeId> {
        if let Some(info) = self.record.routes.groups.get(&GroupId::MASTER) {
            return info.members.iter().map(|(_, node, _)| *node).collect();
        }
        match &self.record.grant {
            Some(grant) => grant.masters.iter().map(|master| master.node).collect(),
            None => Vec::new(),
        }
    }
}

/// A request to the shard master has no limits of its own; one that is far larger than any that
/// makes sense would not fit into a frame between nodes, nor into the log.
pub(super) fn admit_master(op: &MasterOp) -> Result<GroupId, ErrorReply> {
    const BYTES_MAX: usize = 1 << 20;
    let bytes = base::codec::encode_vec(op).len();
    if bytes > BYTES_MAX {
        return Err(ErrorReply::Invalid(format!(
            "a request of {bytes} bytes to the shard master, and the limit is {BYTES_MAX}: divide \
             it into several"
        )));
    }
    Ok(GroupId::MASTER)
}

/// The bytes that a request is counted with.
pub(super) fn request_bytes(body: &Body) -> usize {
    const OVERHEAD: usize = 256;
    match body {
        Body::Kv(op) => {
            let compared = match op {
                KvOp::CompareAndSwap { expected: Expected::Value(value), .. } => value.len(),
                KvOp::CompareAndSwap { .. }
                | KvOp::Get { .. }
                | KvOp::Put { .. }
                | KvOp::PutHash { .. }
                | KvOp::Delete { .. }
                | KvOp::Append { .. } => 0,
            };
            OVERHEAD + op.key().len() + op.value().map_or(0, bytes::Bytes::len) + compared
        }
        Body::Master(_) | Body::Cluster(_) => OVERHEAD,
    }
}
