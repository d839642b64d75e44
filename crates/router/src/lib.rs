//! The vocabulary that clients, doors and nodes share (requests, replies, configurations, routes),
//! the hash slots of keys, and the part of a client that decides: where a request goes, and when
//! and under which identity it is sent again.

pub mod client;
pub mod configuration;
pub mod handoff;
pub mod operation;
pub mod ranges;
pub mod request;
pub mod slot;
pub mod status;

pub use client::{
    CallError, CallId, Client, ClientOptions, ClientOutput, Failure, Send as ClientSend, Target,
};
pub use configuration::{Configuration, GroupInfo, Handoff, MemberChange, NodeInfo, Owner, Routes};
pub use handoff::{HandoffPhase, HandoffShard, HandoffState};
pub use operation::validate;
pub use ranges::range_line;
pub use request::{
    Answer, Body, ClusterAnswer, ClusterOp, Consistency, ErrorReply, Expected, HashKind, Header,
    KvOp, MasterAnswer, MasterOp, NewGroup, Reply, ReplyHeader, Request, Seen, Session, ShardMove,
};
pub use slot::{hash_slot, shard_of, slots_of};
pub use status::{GroupStatus, NodeStatus, PeerStatus, ShardState, ShardStatus};
