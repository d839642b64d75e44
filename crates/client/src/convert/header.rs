//! Headers of requests and replies.

use api::v1;
use base::{
    ClientId, ClusterId, ConfigNumber, GroupId, Micros, NodeId, RequestNumber, ShardEpoch, Slot,
    TraceId, Version, WallMillis,
};
use bytes::Bytes;
use router::{Consistency, Header, ReplyHeader, Seen, Session};

use super::{AddressBook, Malformed, id_from, id_required, id_to, shard_from};

/// The header of a request as it came; a missing one is empty.
pub fn header_from_proto(header: Option<v1::Header>) -> Result<Header, Malformed> {
    let Some(header) = header else { return Ok(Header::default()) };
    let consistency = match v1::Consistency::try_from(header.consistency) {
        Ok(v1::Consistency::Linearizable) => Consistency::Linearizable,
        Ok(v1::Consistency::Sequential) => Consistency::Sequential(
            header.after.map(|seen| Seen { epoch: ShardEpoch(seen.epoch), slot: Slot(seen.slot) }),
        ),
        Ok(v1::Consistency::Bounded) => Consistency::Bounded(header.bounded_millis),
        Err(_) => {
            return Err(Malformed(format!("there is no consistency {}", header.consistency)));
        }
    };
    let session = match header.session {
        None => None,
        Some(session) => Some(Session {
            client: ClientId(id_required(&session.client, "the client of the session")?),
            number: RequestNumber(session.number),
            first_incomplete: RequestNumber(session.first_incomplete),
            stamp: WallMillis(session.stamp_millis),
        }),
    };
    if let Some(session) = &session
        && (session.number.0 == 0 || session.first_incomplete > session.number)
    {
        return Err(Malformed(
            "the session's number must be above 0 and not below its first incomplete one"
                .to_owned(),
        ));
    }
    Ok(Header {
        cluster: id_from(&header.cluster, "the cluster")?.map(ClusterId),
        session,
        route_epoch: header.route_epoch.map(ShardEpoch),
        timeout: Micros(header.timeout_millis.saturating_mul(1_000)),
        consistency,
        trace: id_from(&header.trace, "the trace")?.map(TraceId),
    })
}

/// The header of a request as it is sent; none where it says nothing.
pub fn header_to_proto(header: &Header) -> Option<v1::Header> {
    if *header == Header::default() {
        return None;
    }
    let (consistency, bounded_millis, after) = match header.consistency {
        Consistency::Linearizable => (v1::Consistency::Linearizable, 0, None),
        Consistency::Sequential(after) => (v1::Consistency::Sequential, 0, after),
        Consistency::Bounded(millis) => (v1::Consistency::Bounded, millis, None),
    };
    Some(v1::Header {
        cluster: header.cluster.map_or_else(Bytes::new, |cluster| id_to(cluster.0)),
        session: header.session.map(|session| v1::Session {
            client: id_to(session.client.0),
            number: session.number.0,
            first_incomplete: session.first_incomplete.0,
            stamp_millis: session.stamp.0,
        }),
        route_epoch: header.route_epoch.map(|epoch| epoch.0),
        timeout_millis: header.timeout.0.div_ceil(1_000),
        consistency: consistency.into(),
        bounded_millis,
        after: after.map(|seen| v1::Seen { epoch: seen.epoch.0, slot: seen.slot.0 }),
        trace: header.trace.map_or_else(Bytes::new, |trace| id_to(trace.0)),
    })
}

/// The header of a reply as it is sent.
pub fn reply_header_to_proto(header: &ReplyHeader, book: &impl AddressBook) -> v1::ReplyHeader {
    v1::ReplyHeader {
        cluster: header.cluster.map_or_else(Bytes::new, |cluster| id_to(cluster.0)),
        group: header.group.map(|group| group.0),
        shard: header.shard.map(|shard| u32::from(shard.0)),
        shard_epoch: header.shard_epoch.map(|epoch| epoch.0),
        version: header.version.0,
        stamp_millis: header.stamp.0,
        leader: header.leader.map(|node| v1::Leader { node: node.0, grpc: book.grpc(node) }),
        configuration: header.configuration.0,
        slot: header.slot.0,
    }
}

/// The header of a reply as it came.
pub(super) fn reply_header_from_proto(
    header: Option<v1::ReplyHeader>,
) -> Result<ReplyHeader, Malformed> {
    let Some(header) = header else { return Ok(ReplyHeader::default()) };
    Ok(ReplyHeader {
        cluster: id_from(&header.cluster, "the cluster")?.map(ClusterId),
        group: header.group.map(GroupId),
        shard: header.shard.map(shard_from).transpose()?,
        shard_epoch: header.shard_epoch.map(ShardEpoch),
        version: Version(header.version),
        stamp: WallMillis(header.stamp_millis),
        leader: header.leader.map(|leader| NodeId(leader.node)),
        configuration: ConfigNumber(header.configuration),
        slot: Slot(header.slot),
    })
}
