//! The states of nodes and shards.

use api::v1;
use base::{
    Address, BootId, ClusterId, ConfigNumber, CopyId, DiskId, GroupId, Micros, NodeId, ReplicaId,
    ShardEpoch, Slot, Version,
};
use bytes::Bytes;
use router::{GroupStatus, NodeStatus, PeerStatus, ShardState, ShardStatus};

use super::{Malformed, id_from, id_required, id_to, shard_from};

pub(super) fn node_to_proto(status: &NodeStatus) -> v1::NodeStatus {
    v1::NodeStatus {
        node: status.node.0,
        disk: id_to(status.disk.0),
        boot: id_to(status.boot.0),
        cluster: status.cluster.map_or_else(Bytes::new, |cluster| id_to(cluster.0)),
        peer: status.peer.as_str().to_owned(),
        grpc: status.grpc.as_str().to_owned(),
        not_ready: status.not_ready.clone(),
        routes_version: status.routes_version,
        configuration: status.configuration.0,
        groups: status.groups.iter().map(group_to).collect(),
        peers: status.peers.iter().map(peer_to).collect(),
        wal_live_bytes: status.wal_live_bytes,
        wal_syncs: status.wal_syncs,
        wal_full: status.wal_full,
        overlay_bytes: status.overlay_bytes,
        open_requests: status.open_requests,
        uptime_micros: status.uptime.0,
        program: status.program.clone(),
        scrubbed_bytes: status.scrubbed_bytes,
        damage_found: status.damage_found,
        repaired_slots: status.repaired_slots,
    }
}

pub(super) fn node_from_proto(status: v1::NodeStatus) -> Result<NodeStatus, Malformed> {
    Ok(NodeStatus {
        node: NodeId(status.node),
        disk: DiskId(id_required(&status.disk, "the node's disk")?),
        boot: BootId(id_required(&status.boot, "the node's start")?),
        cluster: id_from(&status.cluster, "the node's cluster")?.map(ClusterId),
        peer: Address::new(&status.peer),
        grpc: Address::new(&status.grpc),
        not_ready: status.not_ready,
        routes_version: status.routes_version,
        configuration: ConfigNumber(status.configuration),
        groups: status.groups.into_iter().map(group_from).collect(),
        peers: status.peers.into_iter().map(peer_from).collect(),
        wal_live_bytes: status.wal_live_bytes,
        wal_syncs: status.wal_syncs,
        wal_full: status.wal_full,
        overlay_bytes: status.overlay_bytes,
        open_requests: status.open_requests,
        uptime: Micros(status.uptime_micros),
        program: status.program,
        scrubbed_bytes: status.scrubbed_bytes,
        damage_found: status.damage_found,
        repaired_slots: status.repaired_slots,
    })
}

fn group_to(group: &GroupStatus) -> v1::GroupStatus {
    v1::GroupStatus {
        group: group.group.0,
        replica: group.replica.0,
        nodes: group.nodes.iter().map(|node| node.0).collect(),
        leader: group.leader.map(|leader| leader.0),
        leading: group.leading,
        round: group.round,
        chosen_upto: group.chosen_upto.0,
        applied: group.applied.0,
        persisted: group.persisted.0,
        truncated_upto: group.truncated_upto.0,
        trouble: group.trouble.clone(),
    }
}

fn group_from(group: v1::GroupStatus) -> GroupStatus {
    GroupStatus {
        group: GroupId(group.group),
        replica: ReplicaId(group.replica),
        nodes: group.nodes.into_iter().map(NodeId).collect(),
        leader: group.leader.map(NodeId),
        leading: group.leading,
        round: group.round,
        chosen_upto: Slot(group.chosen_upto),
        applied: Slot(group.applied),
        persisted: Slot(group.persisted),
        truncated_upto: Slot(group.truncated_upto),
        trouble: group.trouble,
    }
}

fn peer_to(peer: &PeerStatus) -> v1::PeerStatus {
    v1::PeerStatus {
        node: peer.node.0,
        connected: peer.connected,
        round_trip_micros: peer.round_trip.0,
    }
}

fn peer_from(peer: v1::PeerStatus) -> PeerStatus {
    PeerStatus {
        node: NodeId(peer.node),
        connected: peer.connected,
        round_trip: Micros(peer.round_trip_micros),
    }
}

pub(super) fn shard_status_to(status: &ShardStatus) -> v1::ShardStatus {
    let (state, handoff, other_group, moved_epoch) = match status.state {
        ShardState::Owned => (v1::ShardState::Owned, 0, 0, 0),
        ShardState::Out { mig, dst } => (v1::ShardState::Out, mig.0, dst.0, 0),
        ShardState::Frozen { mig, dst } => (v1::ShardState::Frozen, mig.0, dst.0, 0),
        ShardState::Moved { epoch, dst } => (v1::ShardState::Moved, 0, dst.0, epoch.0),
        ShardState::In { mig, src } => (v1::ShardState::In, mig.0, src.0, 0),
        ShardState::Refused { mig } => (v1::ShardState::Refused, mig.0, 0, 0),
    };
    v1::ShardStatus {
        shard: u32::from(status.shard.0),
        group: status.group.0,
        leading: status.leading,
        state: state.into(),
        epoch: status.epoch.0,
        keys: status.keys,
        bytes: status.bytes,
        version: status.version.0,
        handoff,
        other_group,
        moved_epoch,
        dead_copies: status.dead_copies,
        dead_records: status.dead_records,
    }
}

pub(super) fn shard_status_from(status: v1::ShardStatus) -> Result<ShardStatus, Malformed> {
    let (mig, other) = (CopyId(status.handoff), GroupId(status.other_group));
    let state = match v1::ShardState::try_from(status.state) {
        Ok(v1::ShardState::Owned) => ShardState::Owned,
        Ok(v1::ShardState::Out) => ShardState::Out { mig, dst: other },
        Ok(v1::ShardState::Frozen) => ShardState::Frozen { mig, dst: other },
        Ok(v1::ShardState::Moved) => {
            ShardState::Moved { epoch: ShardEpoch(status.moved_epoch), dst: other }
        }
        Ok(v1::ShardState::In) => ShardState::In { mig, src: other },
        Ok(v1::ShardState::Refused) => ShardState::Refused { mig },
        Ok(v1::ShardState::Unspecified) | Err(_) => {
            return Err(Malformed(format!("there is no state {} of a shard", status.state)));
        }
    };
    Ok(ShardStatus {
        shard: shard_from(status.shard)?,
        group: GroupId(status.group),
        leading: status.leading,
        state,
        epoch: ShardEpoch(status.epoch),
        keys: status.keys,
        bytes: status.bytes,
        version: Version(status.version),
        dead_copies: status.dead_copies,
        dead_records: status.dead_records,
    })
}
