//! Replies.

use api::v1::{self, pipeline_reply::Reply as Proto};
use base::{ClusterId, NodeId};
use router::{Answer, ClusterAnswer, ErrorReply, MasterAnswer, Reply, ReplyHeader};

use super::header::reply_header_from_proto;
use super::plan::{
    configuration_from_proto, configuration_to_proto, routes_from_proto, routes_to_proto,
};
use super::status::{node_from_proto, node_to_proto, shard_status_from, shard_status_to};
use super::{
    AddressBook, Kind, Malformed, error_from_proto, error_to_proto, id_required, id_to,
    reply_header_to_proto,
};

/// A reply to a request of the given kind, as it is sent. An answer that does not fit its request
/// (it may come from a node of another version) becomes an error that claims nothing.
pub fn reply_to_proto(kind: Kind, reply: Reply, book: &impl AddressBook) -> Proto {
    let header = Some(reply_header_to_proto(&reply.header, book));
    let answer = match reply.body {
        Ok(answer) => answer,
        Err(error) => return Proto::Error(error_to_proto(&error, header)),
    };
    match answer {
        Answer::Value(value) if kind == Kind::Get => Proto::Get(v1::GetReply { header, value }),
        Answer::Value(previous) if kind == Kind::PutHash => {
            Proto::PutHash(v1::PutHashReply { header, previous })
        }
        Answer::Done if kind == Kind::Put => Proto::Put(v1::PutReply { header }),
        Answer::Deleted(deleted) if kind == Kind::Delete => {
            Proto::Delete(v1::DeleteReply { header, deleted })
        }
        Answer::Appended(length) if kind == Kind::Append => {
            Proto::Append(v1::AppendReply { header, length })
        }
        Answer::Swapped(swapped) if kind == Kind::CompareAndSwap => {
            Proto::CompareAndSwap(v1::CompareAndSwapReply { header, swapped })
        }
        Answer::Master(answer) => master_to_proto(kind, answer, header),
        Answer::Cluster(answer) => cluster_to_proto(kind, answer, header),
        Answer::Value(_)
        | Answer::Done
        | Answer::Deleted(_)
        | Answer::Appended(_)
        | Answer::Swapped(_)
        // Only nodes ask each other for hand-offs.
        | Answer::Handoff(_) => unfit(header),
    }
}

fn master_to_proto(kind: Kind, answer: MasterAnswer, header: Option<v1::ReplyHeader>) -> Proto {
    match answer {
        MasterAnswer::Configuration(configuration) if kind == Kind::Join => {
            let configuration = Some(configuration_to_proto(&configuration));
            Proto::Join(v1::JoinReply { header, configuration })
        }
        MasterAnswer::Configuration(configuration) if kind == Kind::Leave => {
            let configuration = Some(configuration_to_proto(&configuration));
            Proto::Leave(v1::LeaveReply { header, configuration })
        }
        MasterAnswer::Configuration(configuration) if kind == Kind::Move => {
            let configuration = Some(configuration_to_proto(&configuration));
            Proto::Move(v1::MoveReply { header, configuration })
        }
        MasterAnswer::Configuration(configuration) if kind == Kind::ReplaceNode => {
            let configuration = Some(configuration_to_proto(&configuration));
            Proto::ReplaceNode(v1::ReplaceNodeReply { header, configuration })
        }
        MasterAnswer::Configuration(configuration) if kind == Kind::DrainNode => {
            let configuration = Some(configuration_to_proto(&configuration));
            Proto::DrainNode(v1::DrainNodeReply { header, configuration })
        }
        MasterAnswer::Configuration(configuration) if kind == Kind::Query => {
            let configuration = Some(configuration_to_proto(&configuration));
            Proto::Query(v1::QueryReply { header, configuration })
        }
        MasterAnswer::Routes(routes) if kind == Kind::Routes => {
            Proto::Routes(v1::RoutesReply { header, routes: Some(routes_to_proto(&routes)) })
        }
        MasterAnswer::Configuration(_)
        | MasterAnswer::Registered(_)
        | MasterAnswer::Routes(_)
        | MasterAnswer::Replaces { .. } => unfit(header),
    }
}

fn cluster_to_proto(kind: Kind, answer: ClusterAnswer, header: Option<v1::ReplyHeader>) -> Proto {
    match answer {
        ClusterAnswer::Created(cluster) if kind == Kind::Init => {
            Proto::Init(v1::InitReply { header, cluster: id_to(cluster.0) })
        }
        ClusterAnswer::Status(status) if kind == Kind::Status => {
            Proto::Status(v1::StatusReply { header, status: Some(node_to_proto(&status)) })
        }
        ClusterAnswer::Routes(routes) if kind == Kind::Routes => {
            Proto::Routes(v1::RoutesReply { header, routes: Some(routes_to_proto(&routes)) })
        }
        ClusterAnswer::Shards(shards) if kind == Kind::Shards => {
            let shards = shards.iter().map(shard_status_to).collect();
            Proto::Shards(v1::ShardsReply { header, shards })
        }
        ClusterAnswer::Created(_)
        | ClusterAnswer::Status(_)
        | ClusterAnswer::Routes(_)
        | ClusterAnswer::Shards(_) => unfit(header),
    }
}

fn unfit(header: Option<v1::ReplyHeader>) -> Proto {
    let error = ErrorReply::OutcomeUnknown(
        "the answer does not fit the request: do all nodes run the same version?".to_owned(),
    );
    Proto::Error(error_to_proto(&error, header))
}

/// A reply as it came.
pub fn reply_from_proto(reply: Option<Proto>) -> Result<Reply, Malformed> {
    let Some(reply) = reply else {
        return Err(Malformed("the answer is of a kind that this version does not know".into()));
    };
    let (header, answer) = match reply {
        Proto::Get(reply) => (reply.header, Answer::Value(reply.value)),
        Proto::Put(reply) => (reply.header, Answer::Done),
        Proto::PutHash(reply) => (reply.header, Answer::Value(reply.previous)),
        Proto::Delete(reply) => (reply.header, Answer::Deleted(reply.deleted)),
        Proto::Append(reply) => (reply.header, Answer::Appended(reply.length)),
        Proto::CompareAndSwap(reply) => (reply.header, Answer::Swapped(reply.swapped)),
        Proto::Error(mut error) => {
            let header = reply_header_from_proto(error.header.take())?;
            return Ok(Reply { header, body: Err(error_from_proto(error)?) });
        }
        Proto::Join(reply) => (reply.header, configuration(reply.configuration)?),
        Proto::Leave(reply) => (reply.header, configuration(reply.configuration)?),
        Proto::Move(reply) => (reply.header, configuration(reply.configuration)?),
        Proto::ReplaceNode(reply) => (reply.header, configuration(reply.configuration)?),
        Proto::DrainNode(reply) => (reply.header, configuration(reply.configuration)?),
        Proto::Query(reply) => (reply.header, configuration(reply.configuration)?),
        Proto::Init(reply) => {
            let cluster = ClusterId(id_required(&reply.cluster, "the cluster")?);
            (reply.header, Answer::Cluster(ClusterAnswer::Created(cluster)))
        }
        Proto::Status(reply) => {
            let status = reply.status.ok_or_else(|| missing("status"))?;
            let status = Box::new(node_from_proto(status)?);
            (reply.header, Answer::Cluster(ClusterAnswer::Status(status)))
        }
        Proto::Routes(reply) => {
            let routes =
                Box::new(routes_from_proto(reply.routes.ok_or_else(|| missing("routes"))?)?);
            (reply.header, Answer::Cluster(ClusterAnswer::Routes(routes)))
        }
        Proto::Shards(reply) => {
            let shards = reply.shards.into_iter().map(shard_status_from);
            let shards = shards.collect::<Result<_, _>>()?;
            (reply.header, Answer::Cluster(ClusterAnswer::Shards(shards)))
        }
    };
    let header: ReplyHeader = reply_header_from_proto(header)?;
    Ok(Reply { header, body: Ok(answer) })
}

fn configuration(configuration: Option<v1::Configuration>) -> Result<Answer, Malformed> {
    let configuration = configuration.ok_or_else(|| missing("configuration"))?;
    let configuration = configuration_from_proto(configuration);
    Ok(Answer::Master(MasterAnswer::Configuration(configuration)))
}

fn missing(what: &str) -> Malformed {
    Malformed(format!("the answer has no {what}"))
}

/// The leader that a reply names, with its address where that is known.
pub fn leader_hint(reply: &Proto) -> Option<(NodeId, &str)> {
    let header = match reply {
        Proto::Get(reply) => reply.header.as_ref(),
        Proto::Put(reply) => reply.header.as_ref(),
        Proto::PutHash(reply) => reply.header.as_ref(),
        Proto::Delete(reply) => reply.header.as_ref(),
        Proto::Append(reply) => reply.header.as_ref(),
        Proto::CompareAndSwap(reply) => reply.header.as_ref(),
        Proto::Error(reply) => reply.header.as_ref(),
        Proto::Join(reply) => reply.header.as_ref(),
        Proto::Leave(reply) => reply.header.as_ref(),
        Proto::Move(reply) => reply.header.as_ref(),
        Proto::ReplaceNode(reply) => reply.header.as_ref(),
        Proto::DrainNode(reply) => reply.header.as_ref(),
        Proto::Query(reply) => reply.header.as_ref(),
        Proto::Init(reply) => reply.header.as_ref(),
        Proto::Status(reply) => reply.header.as_ref(),
        Proto::Routes(reply) => reply.header.as_ref(),
        Proto::Shards(reply) => reply.header.as_ref(),
    };
    let leader = header?.leader.as_ref()?;
    (!leader.grpc.is_empty()).then_some((NodeId(leader.node), leader.grpc.as_str()))
}
