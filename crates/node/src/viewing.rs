//! What the versions of the store are being read for.

use std::collections::BTreeMap;

use base::{GroupId, ReplicaId};
use bytes::Bytes;
use replica_group::turn::Checked;

use crate::node::Node;

/// Reads of versions of the store that are under way.
#[derive(Debug, Default)]
pub(crate) struct Viewing {
    last: u64,
    purposes: BTreeMap<u64, Purpose>,
}

#[derive(Clone, Copy, Debug)]
enum Purpose {
    /// For another replica.
    Serve(GroupId, ReplicaId, u64),
    /// To see that a copy was written as it came.
    Verify(GroupId, u64),
}

impl Viewing {
    /// A ticket for a part of a copy for another replica.
    pub(crate) fn serve(&mut self, group: GroupId, to: ReplicaId, copy: u64) -> u64 {
        self.ticket(Purpose::Serve(group, to, copy))
    }

    /// A ticket for a part of a copy that was taken.
    pub(crate) fn verify(&mut self, group: GroupId, copy: u64) -> u64 {
        self.ticket(Purpose::Verify(group, copy))
    }

    fn ticket(&mut self, purpose: Purpose) -> u64 {
        self.last += 1;
        self.purposes.insert(self.last, purpose);
        self.last
    }
}

impl Node {
    pub(crate) fn on_viewed(&mut self, ticket: u64, result: Result<Checked, String>) {
        let found: Result<Vec<(Bytes, Bytes)>, String> = match result {
            Ok(Checked::View(found)) => Ok(found),
            Ok(Checked::Log(_) | Checked::Store { .. } | Checked::Renewed(_)) => {
                unreachable!("another check was answered than the one asked for")
            }
            Err(why) => Err(why),
        };
        match self.viewing.purposes.remove(&ticket) {
            Some(Purpose::Serve(group, to, copy)) => self.on_snapshot_read(group, to, copy, found),
            Some(Purpose::Verify(group, copy)) => self.on_install_read(group, copy, found),
            None => {}
        }
    }
}
