//! Requests of clients and replies of nodes, as protobuf and in our own terms.

use api::v1::{PipelineReply, PipelineRequest, pipeline_reply};
use base::NodeId;
use bytes::Bytes;
use client::convert::{
    AddressBook, Kind, leader_hint, reply_from_proto, reply_to_proto, request_from_proto,
    request_to_proto,
};
use prost::Message;

use super::Target;
use crate::mutate::Layout;

/// What comes in at a door.
pub(super) const REQUEST: Target = Target {
    name: "grpc-request",
    layout: Layout::Raw,
    run: request,
    memory: 64 << 10,
    memory_per_byte: 512,
    rounds: 60_000,
};

/// What a client is answered, by whoever claims to be a node.
pub(super) const REPLY: Target = Target {
    name: "grpc-reply",
    layout: Layout::Raw,
    run: reply,
    memory: 64 << 10,
    memory_per_byte: 512,
    rounds: 60_000,
};

fn request(input: &[u8]) {
    let Ok(found) = PipelineRequest::decode(Bytes::copy_from_slice(input)) else { return };
    let Ok((request, kind)) = request_from_proto(found.request) else { return };
    let sent = request_to_proto(request.clone()).expect("what a client may ask can be asked");
    let bytes = PipelineRequest { number: 1, request: Some(sent) }.encode_to_vec();
    let again = PipelineRequest::decode(&bytes[..]).expect("what was encoded decodes");
    let (same, same_kind) = request_from_proto(again.request).expect("and is understood");
    assert_eq!((same, same_kind), (request, kind), "a request is read as it was written");
}

struct Nobody;

impl AddressBook for Nobody {
    fn grpc(&self, node: NodeId) -> String {
        format!("127.0.0.1:{}", node.0 % 65_536)
    }
}

fn reply(input: &[u8]) {
    let Ok(found) = PipelineReply::decode(Bytes::copy_from_slice(input)) else { return };
    let _ = found.reply.as_ref().and_then(leader_hint);
    let Some(kind) = found.reply.as_ref().map(kind_of) else { return };
    let Ok(reply) = reply_from_proto(found.reply) else { return };
    let sent = reply_to_proto(kind, reply.clone(), &Nobody);
    let bytes = PipelineReply { number: 1, reply: Some(sent) }.encode_to_vec();
    let again = PipelineReply::decode(&bytes[..]).expect("what was encoded decodes");
    let same = reply_from_proto(again.reply).expect("and is understood");
    assert_eq!(same, reply, "a reply is read as it was written");
}

fn kind_of(reply: &pipeline_reply::Reply) -> Kind {
    use pipeline_reply::Reply;
    match reply {
        Reply::Get(_) | Reply::Error(_) => Kind::Get,
        Reply::Put(_) => Kind::Put,
        Reply::PutHash(_) => Kind::PutHash,
        Reply::Delete(_) => Kind::Delete,
        Reply::Append(_) => Kind::Append,
        Reply::CompareAndSwap(_) => Kind::CompareAndSwap,
        Reply::Join(_) => Kind::Join,
        Reply::Leave(_) => Kind::Leave,
        Reply::Move(_) => Kind::Move,
        Reply::ReplaceNode(_) => Kind::ReplaceNode,
        Reply::DrainNode(_) => Kind::DrainNode,
        Reply::Query(_) => Kind::Query,
        Reply::Init(_) => Kind::Init,
        Reply::Status(_) => Kind::Status,
        Reply::Routes(_) => Kind::Routes,
        Reply::Shards(_) => Kind::Shards,
    }
}
