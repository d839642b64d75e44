//! One node of the world.

use std::collections::{BTreeMap, VecDeque};

use base::{Address, ClusterId, DiskId, Micros, Now};
use replica_group::turn::{Input, Token};
use router::Request;

use crate::clock::Clock;
use crate::disk::NodeDisk;
use crate::guest::Guest;

/// One node.
pub(crate) struct SimNode<G> {
    pub(super) peer: Address,
    pub(super) grpc: Address,
    pub(super) disk_id: DiskId,
    pub(crate) disk: NodeDisk,
    pub(crate) clock: Clock,
    pub(super) starts: u64,
    /// How often it was started on the disk that it has, as that says.
    pub(super) disk_starts: u64,
    /// The cluster that its superblock names.
    pub(super) named: Option<ClusterId>,
    /// None while it is down.
    pub(super) guest: Option<G>,
    pub(super) inbox: VecDeque<Input<Request>>,
    /// A turn, or the rest of one, comes later by itself.
    pub(super) turn_due: bool,
    /// The output of the last inputs was not taken yet.
    pub(super) output_due: bool,
    /// A reading of the clocks that the next input gets, however old it is by then.
    pub(super) stale: Option<Now>,
    pub(super) busy_until: Micros,
    pub(super) requests: BTreeMap<Token, (usize, u64)>,
    pub(super) token_last: u64,
}

impl<G: Guest> SimNode<G> {
    /// The superblock names the cluster as soon as the log has it for ever.
    pub(super) fn write_superblock(&mut self) {
        if self.named.is_none() {
            self.named = self.guest.as_ref().and_then(Guest::cluster);
        }
    }

    /// How often it was started.
    pub(crate) fn starts(&self) -> u64 {
        self.starts
    }

    /// Where clients reach it.
    pub(crate) fn door(&self) -> &Address {
        &self.grpc
    }
}
