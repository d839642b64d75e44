//! The vocabulary that clients, doors and nodes share (requests, replies, configurations, routes),
//! the hash slots of keys, and the part of a client that decides: where a request goes, and when
//! and under which identity it is sent again.

pub mod configuration;
pub mod request;

pub use configuration::{Configuration, GroupInfo, NodeInfo, Owner, Routes};
pub use request::{
    Answer, Body, ClusterAnswer, ClusterOp, Consistency, ErrorReply, Expected, GroupStatus,
    HashKind, Header, KvOp, MasterAnswer, MasterOp, NewGroup, NodeStatus, PeerStatus, Reply,
    ReplyHeader, Request, Session, ShardState, ShardStatus,
};
