//! What nodes say to each other: a frame carries all messages of one turn to one peer.
//!
//! ```text
//! frame   = magic u8, version u8, cluster u64, node u64, starts u64, boot u128, message*
//! message = length u32, CBOR
//! ```
//! Numbers are big-endian. `cluster` is the upper half of the cluster id, 0 while the sender
//! belongs to none. `starts` counts the starts of the sender's process on its disk, so that of two
//! boots the later one is known.

use base::{
    Address, BootId, ClusterId, CopyId, DiskId, GroupId, Lsn, Micros, NodeId, ReplicaId,
    ShardEpoch, ShardId, Slot, WallMillis, codec,
};
use bytes::{Buf, Bytes};
use minicbor::{Decode, Encode};
use paxos::{Ballot, HeartbeatRow, Members, Standing};
use router::{HandoffState, Reply, Request, Routes};

use crate::identity::Grant;
use crate::parts::Total;

/// First byte of every frame.
const MAGIC: u8 = 0xDC;
/// The version of the peers' protocol that this program speaks.
pub(crate) const VERSION: u8 = 1;
/// Bytes before the first message.
pub(crate) const HEADER_BYTES: usize = 2 + 8 + 8 + 8 + 16;

/// Who sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    /// The upper half of the cluster id; 0 for none.
    pub(crate) cluster: u64,
    /// The node; 0 while it has no number.
    pub(crate) node: NodeId,
    /// Counts the starts on the sender's disk.
    pub(crate) starts: u64,
    /// This start.
    pub(crate) boot: BootId,
}

impl Sender {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[MAGIC, VERSION]);
        out.extend_from_slice(&self.cluster.to_be_bytes());
        out.extend_from_slice(&self.node.0.to_be_bytes());
        out.extend_from_slice(&self.starts.to_be_bytes());
        out.extend_from_slice(&self.boot.0.to_be_bytes());
    }
}

/// One message between nodes.
#[derive(Clone, Debug, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub(crate) enum NodeMessage {
    /// Between two replicas of one group.
    #[n(0)]
    Paxos {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        from: ReplicaId,
        #[n(2)]
        to: ReplicaId,
        #[n(3)]
        message: paxos::Message,
    },
    /// Sent to each peer at a fixed interval.
    #[n(1)]
    Heartbeat(#[n(0)] Heartbeat),
    /// The answer to one heartbeat.
    #[n(2)]
    HeartbeatAck(#[n(0)] HeartbeatAck),
    /// A client's request, for a group that the sender does not lead. The answer goes to
    /// `reply_to`.
    #[n(3)]
    Forward {
        #[n(0)]
        id: u64,
        #[n(1)]
        reply_to: Address,
        #[n(2)]
        request: Request,
        /// Counts what this start of the sender has forwarded, so that a copy is known.
        #[n(3)]
        number: u64,
        /// The group that the sender takes for the one to answer it.
        #[n(4)]
        group: GroupId,
    },
    /// The answer to a forwarded request.
    #[n(4)]
    ForwardReply {
        #[n(0)]
        id: u64,
        #[n(1)]
        reply: Reply,
    },
    /// `init` asks a master who it is.
    #[n(5)]
    Identify {
        #[n(0)]
        reply_to: Address,
        /// The address at which it is asked.
        #[n(1)]
        asked: Address,
    },
    /// The answer.
    #[n(6)]
    Identity {
        #[n(0)]
        node: NodeId,
        #[n(1)]
        disk: DiskId,
        /// The address by which the node knows itself.
        #[n(2)]
        peer: Address,
        /// The cluster it already belongs to.
        #[n(3)]
        cluster: Option<ClusterId>,
        /// The address at which it was asked.
        #[n(4)]
        asked: Address,
    },
    /// `init` asks a master to belong to this cluster, and to no other ever.
    #[n(7)]
    Grant {
        #[n(0)]
        reply_to: Address,
        #[n(1)]
        grant: Grant,
    },
    /// The answer, once it is durable: the cluster that the node belongs to, which is another one
    /// where the grant is refused.
    #[n(8)]
    Granted {
        #[n(0)]
        disk: DiskId,
        #[n(1)]
        asked: ClusterId,
        #[n(2)]
        cluster: ClusterId,
    },
    /// The shard master's leader asks for a replica.
    #[n(9)]
    CreateReplica {
        #[n(0)]
        reply_to: Address,
        #[n(1)]
        cluster: ClusterId,
        #[n(2)]
        group: GroupId,
        #[n(3)]
        members: Members,
    },
    /// The replica exists, durably.
    #[n(10)]
    ReplicaCreated {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        replica: ReplicaId,
    },
    /// The shard master's leader asks a group's leader to create shards that nobody owned before.
    #[n(11)]
    CreateShards {
        #[n(0)]
        reply_to: Address,
        #[n(1)]
        group: GroupId,
        #[n(2)]
        copy: CopyId,
        #[n(3)]
        shards: Vec<(ShardId, ShardEpoch)>,
    },
    /// The group's log has created them.
    #[n(12)]
    ShardsCreated {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        copy: CopyId,
    },
    /// Asks for routes newer than these.
    #[n(13)]
    RoutesRequest {
        #[n(0)]
        reply_to: Address,
        #[n(1)]
        version: u64,
    },
    /// Newer routes.
    #[n(14)]
    Routes(#[n(0)] Routes),
    /// The leader of one group, or of the shard master, asks another group's what it has of a
    /// hand-off, or to do something for it first. Only who leads answers.
    #[n(15)]
    Errand {
        #[n(0)]
        reply_to: Address,
        #[n(1)]
        from: GroupId,
        #[n(2)]
        group: GroupId,
        #[n(3)]
        mig: CopyId,
        /// The sender's clock; the answer repeats it.
        #[n(4)]
        sent: Micros,
        /// A command for the group's log.
        #[cbor(n(5), with = "codec::payload_option")]
        command: Option<Bytes>,
    },
    /// The answer.
    #[n(16)]
    ErrandReply {
        #[n(0)]
        from: GroupId,
        #[n(1)]
        group: GroupId,
        #[n(2)]
        mig: CopyId,
        #[n(3)]
        sent: Micros,
        #[n(4)]
        state: HandoffState,
    },
    /// The node of a replica that does not lead asks the leader's how far the group's log was chosen
    /// when this came.
    #[n(21)]
    ReadIndex {
        #[n(0)]
        reply_to: Address,
        #[n(1)]
        group: GroupId,
        /// Repeated in the answer.
        #[n(2)]
        number: u64,
    },
    /// The answer.
    #[n(22)]
    ReadIndexed {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        number: u64,
        /// None: the node that was asked does not lead the group.
        #[n(2)]
        slot: Option<Slot>,
    },
    /// The digest of a replica's state after a slot, for the group's other replicas.
    #[n(20)]
    Digest {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        from: ReplicaId,
        #[n(2)]
        slot: Slot,
        /// The upper and the lower half.
        #[n(3)]
        digest: (u64, u64),
    },
    /// A replica asks for a part of another's state (`docs/paxos.md` 11.11).
    #[n(30)]
    SnapshotRequest {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        from: ReplicaId,
        #[n(2)]
        to: ReplicaId,
        /// Names the copy, of which there is one for each receiver.
        #[n(3)]
        copy: u64,
        /// The lowest slot that is of use.
        #[n(4)]
        least: Slot,
        /// The part behind this key; empty for the first.
        #[cbor(n(5), with = "codec::payload")]
        after: Bytes,
        /// What the receiver has there already.
        #[n(6)]
        have: Option<Have>,
        /// Nothing is to be sent: the copy is only to be kept.
        #[n(7)]
        hold: bool,
        /// Nothing more is wanted of the copy.
        #[n(8)]
        done: bool,
    },
    /// The part.
    #[n(31)]
    SnapshotPart {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        from: ReplicaId,
        #[n(2)]
        to: ReplicaId,
        #[n(3)]
        copy: u64,
        /// The slot that the state stands at.
        #[n(4)]
        slot: Slot,
        /// As asked.
        #[cbor(n(5), with = "codec::payload")]
        after: Bytes,
        /// All records behind `after` and up to this key are in it.
        #[cbor(n(6), with = "codec::payload")]
        upto: Bytes,
        /// They are those that the receiver has.
        #[n(7)]
        same: bool,
        /// See `parts`.
        #[cbor(n(8), with = "codec::payload")]
        records: Bytes,
        /// Of the records.
        #[n(9)]
        total: Total,
        /// There are no more: of all of them.
        #[n(10)]
        end: Option<Total>,
        /// With the end: who the members are after the slot.
        #[cbor(n(11), default)]
        standing: Option<Standing>,
    },
    /// This replica has no such copy, and makes none now.
    #[n(32)]
    SnapshotRefused {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        from: ReplicaId,
        #[n(2)]
        to: ReplicaId,
        #[n(3)]
        copy: u64,
    },
    /// A replica that was asked something is no more: nothing that it said holds.
    #[n(33)]
    ReplicaGone {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        replica: ReplicaId,
    },
}

/// Names records by where they end and what they are.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(context_bound = "codec::Source")]
pub(crate) struct Have {
    /// The last key.
    #[cbor(n(0), with = "codec::payload")]
    pub(crate) upto: Bytes,
    #[n(1)]
    pub(crate) total: Total,
}

/// Says that a node lives, and what its replicas stand at (`docs/paxos.md` 11.4).
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct Heartbeat {
    /// Counts the sender's heartbeats to this peer since its start.
    #[n(0)]
    pub(crate) number: u64,
    /// The sender's clock, read before the frame was built.
    #[n(1)]
    pub(crate) sent: Micros,
    /// The sender's wall time.
    #[n(2)]
    pub(crate) wall: WallMillis,
    /// Who the sender is; left out once the peer has answered this boot of it.
    #[n(3)]
    pub(crate) hello: Option<Hello>,
    /// The state of the rows below; the peer confirms it.
    #[n(4)]
    pub(crate) rows_version: u64,
    /// What changed since the state that the peer has confirmed.
    #[n(5)]
    pub(crate) rows: Vec<Row>,
    /// The version of the sender's routes.
    #[n(6)]
    pub(crate) routes_version: u64,
    /// How far the sender's write-ahead log is durable.
    #[n(7)]
    pub(crate) synced: Lsn,
    /// The peer's grants that the sender knows: the peer's start that made them, and their number.
    #[n(8)]
    pub(crate) grants_known: Option<(BootId, u64)>,
}

/// A replica grants time to the leader of its group (`docs/paxos.md` 11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct GrantRow {
    #[n(0)]
    pub(crate) group: GroupId,
    /// The ballot of the leader, which lives on the receiver.
    #[n(1)]
    pub(crate) ballot: Ballot,
}

/// One replica's part of a heartbeat.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct Row {
    #[n(0)]
    pub(crate) group: GroupId,
    #[n(1)]
    pub(crate) replica: ReplicaId,
    #[n(2)]
    pub(crate) row: HeartbeatRow,
}

/// Introduces a boot of a node.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct Hello {
    /// Lowest version of the peers' protocol that the sender speaks.
    #[n(0)]
    pub(crate) version_min: u8,
    /// Highest one.
    #[n(1)]
    pub(crate) version_max: u8,
    #[n(2)]
    pub(crate) cluster: ClusterId,
    #[n(3)]
    pub(crate) disk: DiskId,
    #[n(4)]
    pub(crate) peer: Address,
    #[n(5)]
    pub(crate) grpc: Address,
    /// How far the sender's write-ahead log was durable when it started.
    #[cbor(n(6), default)]
    pub(crate) opened: Lsn,
    /// How often the sender was told that its disk is an old copy: what was on it votes no more.
    #[cbor(n(7), default)]
    pub(crate) copies: u64,
}

/// Answers a heartbeat.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct HeartbeatAck {
    /// The heartbeat's number.
    #[n(0)]
    pub(crate) number: u64,
    /// The heartbeat's `sent`.
    #[n(1)]
    pub(crate) sent: Micros,
    /// The boot that sent the heartbeat.
    #[n(2)]
    pub(crate) boot: BootId,
    /// The count of starts that it showed. A node that has counted on since has said nothing of it
    /// yet to whoever answers this.
    #[cbor(n(10), default)]
    pub(crate) starts: u64,
    /// The `rows_version` that the answering node now has; 0 where some row came before the
    /// replica that it is for.
    #[n(3)]
    pub(crate) rows_version: u64,
    /// Counts the changes of what the answering node grants to the sender's replicas.
    #[n(4)]
    pub(crate) grants_number: u64,
    /// All that it grants as of that number, for `GRANT_SPAN` from when the heartbeat came; none
    /// where the heartbeat said that it knows them.
    #[n(5)]
    pub(crate) grants: Option<Vec<GrantRow>>,
    /// The disk of the node that sent the heartbeat shows less than it did before.
    #[cbor(n(8), default)]
    pub(crate) stale: bool,
    /// Then, how many starts it has shown, and how often it was found to be an old copy.
    #[cbor(n(9), default)]
    pub(crate) seen: (u64, u64),
}

/// Reads a frame's header, and leaves its messages.
pub(crate) fn open(frame: &mut Bytes) -> Result<Sender, String> {
    if frame.len() < HEADER_BYTES {
        return Err(format!("a frame of {} bytes has no header", frame.len()));
    }
    let magic = frame.get_u8();
    if magic != MAGIC {
        return Err(format!("a frame begins with {magic:#04x}: it is not from a Decree node"));
    }
    let version = frame.get_u8();
    if version != VERSION {
        return Err(format!(
            "a node speaks version {version} of the peers' protocol, this one speaks {VERSION}"
        ));
    }
    Ok(Sender {
        cluster: frame.get_u64(),
        node: NodeId(frame.get_u64()),
        starts: frame.get_u64(),
        boot: BootId(frame.get_u128()),
    })
}

/// Takes the next message of a frame; none at its end.
pub(crate) fn next(frame: &mut Bytes) -> Option<Result<NodeMessage, String>> {
    if frame.is_empty() {
        return None;
    }
    if frame.len() < 4 {
        frame.clear();
        return Some(Err("a frame ends within a message's length".to_owned()));
    }
    let length = frame.get_u32() as usize;
    if length > frame.len() {
        frame.clear();
        return Some(Err("a frame ends within a message".to_owned()));
    }
    let message = frame.split_to(length);
    Some(codec::decode(&message).map_err(|error| format!("a message cannot be read: {error}")))
}
