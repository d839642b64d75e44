//! Configurations and routes.

use std::collections::BTreeMap;

use api::v1;
use base::limits::SHARDS_MAX;
use base::{
    Address, ClusterId, ConfigNumber, CopyId, DiskId, GroupId, NodeId, ReplicaId, ShardEpoch,
    ShardId,
};
use bytes::Bytes;
use router::{Configuration, GroupInfo, Handoff, MemberChange, NodeInfo, Owner, Routes};

use super::{Malformed, id_from, id_required, id_to, shard_from};

pub(super) fn configuration_to_proto(configuration: &Configuration) -> v1::Configuration {
    let groups = configuration.groups.iter().map(|(group, nodes)| v1::ConfigurationGroup {
        group: group.0,
        nodes: nodes.iter().map(|node| node.0).collect(),
    });
    v1::Configuration {
        number: configuration.number.0,
        groups: groups.collect(),
        shards: configuration.shards.iter().map(|group| group.0).collect(),
    }
}

pub(super) fn configuration_from_proto(configuration: v1::Configuration) -> Configuration {
    let groups = configuration.groups.into_iter().map(|group| {
        (GroupId(group.group), group.nodes.into_iter().map(NodeId).collect::<Vec<_>>())
    });
    Configuration {
        number: ConfigNumber(configuration.number),
        groups: groups.collect(),
        shards: configuration.shards.into_iter().map(GroupId).collect(),
    }
}

pub(super) fn routes_to_proto(routes: &Routes) -> v1::Routes {
    let owners = routes.owners.iter().map(|owner| match owner {
        Some(owner) => v1::Owner { group: owner.group.0, epoch: owner.epoch.0, copy: owner.copy.0 },
        None => v1::Owner::default(),
    });
    let groups = routes.groups.iter().map(|(group, info)| {
        let members = info.members.iter().map(member_to_proto);
        v1::GroupInfo { group: group.0, members: members.collect() }
    });
    let nodes = routes.nodes.values().map(|node| v1::NodeInfo {
        node: node.node.0,
        disk: id_to(node.disk.0),
        peer: node.peer.as_str().to_owned(),
        grpc: node.grpc.as_str().to_owned(),
    });
    // A cluster that does not exist yet has no id.
    let cluster =
        if routes.cluster == ClusterId::default() { Bytes::new() } else { id_to(routes.cluster.0) };
    v1::Routes {
        cluster,
        version: routes.version,
        configuration: routes.configuration.0,
        owners: owners.collect(),
        groups: groups.collect(),
        nodes: nodes.collect(),
        handoffs: routes.handoffs.iter().map(handoff_to_proto).collect(),
        handoff_next: routes.handoff_next.0,
        barred: routes
            .barred
            .iter()
            .map(|(shard, mig)| v1::BarredShard { shard: u32::from(shard.0), handoff: mig.0 })
            .collect(),
        changes: routes.changes.iter().map(change_to_proto).collect(),
        drained: routes.drained.iter().map(|node| node.0).collect(),
    }
}

fn member_to_proto((replica, node, disk): &(ReplicaId, NodeId, DiskId)) -> v1::Member {
    v1::Member { replica: replica.0, node: node.0, disk: id_to(disk.0) }
}

fn member_from_proto(member: &v1::Member) -> Result<(ReplicaId, NodeId, DiskId), Malformed> {
    let disk = DiskId(id_required(&member.disk, "the disk of a replica")?);
    Ok((ReplicaId(member.replica), NodeId(member.node), disk))
}

fn change_to_proto((group, change): (&GroupId, &MemberChange)) -> v1::MemberChange {
    v1::MemberChange {
        group: group.0,
        epoch: change.epoch,
        joins: change.joins.iter().map(member_to_proto).collect(),
        leaves: change.leaves.iter().map(|replica| replica.0).collect(),
    }
}

fn change_from_proto(change: v1::MemberChange) -> Result<(GroupId, MemberChange), Malformed> {
    let joins = change.joins.iter().map(member_from_proto).collect::<Result<_, _>>()?;
    let leaves = change.leaves.into_iter().map(ReplicaId).collect();
    Ok((GroupId(change.group), MemberChange { epoch: change.epoch, joins, leaves }))
}

fn handoff_to_proto(handoff: &Handoff) -> v1::Handoff {
    v1::Handoff {
        handoff: handoff.mig.0,
        from: handoff.from.0,
        to: handoff.to.0,
        shards: shards_to_proto(&handoff.shards),
        cancel: handoff.cancel,
    }
}

fn handoff_from_proto(handoff: v1::Handoff) -> Result<Handoff, Malformed> {
    Ok(Handoff {
        mig: CopyId(handoff.handoff),
        from: GroupId(handoff.from),
        to: GroupId(handoff.to),
        shards: shards_from_proto(&handoff.shards)?,
        cancel: handoff.cancel,
    })
}

pub(super) fn shards_to_proto(shards: &[ShardId]) -> Vec<u32> {
    shards.iter().map(|shard| u32::from(shard.0)).collect()
}

pub(super) fn shards_from_proto(shards: &[u32]) -> Result<Vec<ShardId>, Malformed> {
    shards.iter().map(|shard| shard_from(*shard)).collect()
}

pub(super) fn routes_from_proto(routes: v1::Routes) -> Result<Routes, Malformed> {
    if routes.owners.len() > usize::from(SHARDS_MAX) {
        return Err(Malformed(format!("routes of {} shards", routes.owners.len())));
    }
    let owners = routes.owners.iter().map(|owner| {
        (owner.group != 0).then_some(Owner {
            group: GroupId(owner.group),
            epoch: ShardEpoch(owner.epoch),
            copy: CopyId(owner.copy),
        })
    });
    let owners = owners.collect();
    let mut groups = BTreeMap::new();
    for group in routes.groups {
        let members = group.members.iter().map(member_from_proto).collect::<Result<_, _>>()?;
        groups.insert(GroupId(group.group), GroupInfo { members });
    }
    let mut nodes = BTreeMap::new();
    for node in routes.nodes {
        let info = NodeInfo {
            node: NodeId(node.node),
            disk: DiskId(id_required(&node.disk, "the disk of a node")?),
            peer: Address::new(&node.peer),
            grpc: Address::new(&node.grpc),
        };
        nodes.insert(info.node, info);
    }
    Ok(Routes {
        cluster: ClusterId(id_from(&routes.cluster, "the cluster")?.unwrap_or_default()),
        version: routes.version,
        configuration: ConfigNumber(routes.configuration),
        owners,
        groups,
        nodes,
        handoffs: routes.handoffs.into_iter().map(handoff_from_proto).collect::<Result<_, _>>()?,
        handoff_next: CopyId(routes.handoff_next),
        barred: routes
            .barred
            .into_iter()
            .map(|barred| Ok((shard_from(barred.shard)?, CopyId(barred.handoff))))
            .collect::<Result<_, Malformed>>()?,
        changes: routes.changes.into_iter().map(change_from_proto).collect::<Result<_, _>>()?,
        drained: routes.drained.into_iter().map(NodeId).collect(),
        // What only nodes need.
        ..Routes::default()
    })
}
