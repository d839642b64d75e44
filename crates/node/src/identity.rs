//! Who a node is: what it was given with its data directory, and what it learned and must not
//! forget. The latter is one record of the node's own in the write-ahead log, written anew as a
//! whole with every change.

use std::collections::{BTreeMap, BTreeSet};

use base::{Address, BootId, ClusterId, DiskId, GroupId, Lsn, NodeId, ReplicaId, codec};
use bytes::Bytes;
use minicbor::{Decode, Encode};
use router::Routes;

/// What a node must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct NodeRecord {
    /// Its number, once it has one.
    #[n(0)]
    pub(crate) node: NodeId,
    /// The cluster it belongs to, for ever.
    #[n(1)]
    pub(crate) cluster: Option<ClusterId>,
    /// On a master: the grant by which it belongs to the cluster.
    #[n(2)]
    pub(crate) grant: Option<Grant>,
    /// The newest routes, so that data is served while no shard master answers.
    #[n(3)]
    pub(crate) routes: Routes,
    /// Records of the log were lost, so that a replica that this node is asked to make may be one
    /// that it had, and forgot.
    #[cbor(n(4), default)]
    pub(crate) forgot: bool,
    /// Records of the log that were found damaged while all that they said was in memory.
    #[cbor(n(5), default)]
    pub(crate) mended: Vec<(Lsn, Lsn)>,
    /// What other nodes' disks have shown: a disk that shows less is an old copy.
    #[cbor(n(6), default)]
    pub(crate) seen: BTreeMap<DiskId, Seen>,
    /// The newest replica of each group that was here and is no more: neither it nor an older one is
    /// ever made again.
    #[cbor(n(7), default)]
    pub(crate) retired: BTreeMap<GroupId, ReplicaId>,
    /// Groups of which the store may hold what replicas left that are no more.
    #[cbor(n(8), default)]
    pub(crate) wiping: BTreeSet<GroupId>,
    /// Where `forgot` is set: the number of the first replica that was not there yet when the shard
    /// master was asked afterwards. It and those after it are certainly none of the forgotten ones.
    /// None while the shard master has not answered.
    #[cbor(n(9), default)]
    pub(crate) fresh_from: Option<ReplicaId>,
    /// How often others have told that the disk is an old copy: what was on it then votes no more.
    #[cbor(n(10), default)]
    pub(crate) copies: u64,
    /// What is added to the count of starts on the disk, which it has from the copy.
    #[cbor(n(11), default)]
    pub(crate) starts_more: u64,
}

/// The most that a disk has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Seen {
    /// The count of starts on it.
    #[n(0)]
    pub(crate) starts: u64,
    /// The present one of these starts.
    #[n(1)]
    pub(crate) boot: BootId,
    /// How far its log was durable.
    #[n(2)]
    pub(crate) synced: Lsn,
    /// How often it was found to be an old copy.
    #[cbor(n(3), default)]
    pub(crate) copies: u64,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { starts: 0, boot: BootId(0), synced: Lsn::ZERO, copies: 0 }
    }
}

/// The identity of the record in the log.
pub(crate) const IDENTITY: &[u8] = &[1];

impl NodeRecord {
    /// Records were lost that may have said which replicas there were.
    pub(crate) fn forget(&mut self) {
        self.forgot = true;
        self.fresh_from = None;
    }

    /// Its bytes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        codec::encode_into(self, out);
    }

    /// The record of these bytes.
    pub(crate) fn decode(identity: &[u8], payload: &Bytes) -> Result<NodeRecord, String> {
        if identity != IDENTITY {
            return Err(format!("a record of the node of an unknown kind: {identity:?}"));
        }
        codec::decode(payload).map_err(|error| format!("the node's own record: {error}"))
    }
}

/// A cluster that is being created: its masters agree to it one by one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Grant {
    /// The hash of the masters' disks and the number of shards.
    #[n(0)]
    pub(crate) cluster: ClusterId,
    /// The number of shards, for ever.
    #[n(1)]
    pub(crate) shards: u16,
    /// The masters, by their disks.
    #[n(2)]
    pub(crate) masters: Vec<Master>,
}

/// One master of a new cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Master {
    #[n(0)]
    pub(crate) node: NodeId,
    #[n(1)]
    pub(crate) replica: ReplicaId,
    #[n(2)]
    pub(crate) disk: DiskId,
    #[n(3)]
    pub(crate) peer: Address,
}

/// The id of the cluster of these masters: equal requests make equal clusters.
pub(crate) fn cluster_id(disks: &[DiskId], shards: u16) -> ClusterId {
    let mut sorted = disks.to_vec();
    sorted.sort();
    let mut bytes = Vec::with_capacity(16 * sorted.len() + 2);
    for disk in sorted {
        bytes.extend_from_slice(&disk.0.to_be_bytes());
    }
    bytes.extend_from_slice(&shards.to_be_bytes());
    ClusterId(xxhash_rust::xxh3::xxh3_128(&bytes))
}

/// The part of a cluster's id that every frame carries; never 0.
pub(crate) fn cluster_prefix(cluster: Option<ClusterId>) -> u64 {
    match cluster {
        Some(cluster) => ((cluster.0 >> 64) as u64).max(1),
        None => 0,
    }
}
