//! A look inside for those who check the node from outside: the simulator and tests.

use base::{GroupId, NodeId};
use kvserver::KvServer;
use paxos::Paxos;
use replica_group::{GroupStore, Replica};
use router::Routes;
use shardmaster::ShardMaster;

use crate::hosted::Hosted;
use crate::installs::CopyStats;
use crate::node::Node;

impl Node {
    /// The groups that this node has a replica of.
    pub fn group_ids(&self) -> Vec<GroupId> {
        self.groups.keys().copied().collect()
    }

    /// The slots that the hosted replicas have applied, all together.
    pub fn applied_slots(&self) -> u64 {
        self.groups.values().map(|hosted| hosted.applied().0).sum()
    }

    /// The Paxos core of a hosted replica.
    pub fn paxos_of(&self, group: GroupId) -> Option<&Paxos> {
        self.groups.get(&group).map(Hosted::paxos)
    }

    /// The replica of a data group.
    pub fn data_replica(&self, group: GroupId) -> Option<&Replica<KvServer>> {
        match self.groups.get(&group) {
            Some(Hosted::Data(replica)) => Some(replica),
            Some(Hosted::Master(_)) | None => None,
        }
    }

    /// The replica of the shard master.
    pub fn master_replica(&self) -> Option<&Replica<ShardMaster>> {
        match self.groups.get(&GroupId::MASTER) {
            Some(Hosted::Master(replica)) => Some(replica),
            Some(Hosted::Data(_)) | None => None,
        }
    }

    /// Reads every record of every data group and compares with what the replicas say of them: what
    /// is wrong, if something is.
    pub fn audit(&mut self) -> Result<(), String> {
        for (group, hosted) in &self.groups {
            let Hosted::Data(replica) = hosted else { continue };
            // One that knows its store to be lost says nothing of it.
            if replica.fenced().is_some() {
                continue;
            }
            let store = GroupStore::of(&mut self.overlay, *group, replica.generation());
            let audited = replica.machine().audit(&store).map_err(|error| error.to_string())?;
            audited.map_err(|wrong| format!("group {}: {wrong}", group.0))?;
        }
        Ok(())
    }

    /// What became of the copies of other replicas' states.
    pub fn copy_stats(&self) -> CopyStats {
        self.installs.stats
    }

    /// How far the copy of a group's state is that is taken here, if one is; the record of it comes
    /// last.
    pub fn copy_stage(&self, group: GroupId) -> Option<&'static str> {
        let recording = || self.paxos_of(group).is_some_and(Paxos::is_installing);
        self.installs.stage(group).or_else(|| recording().then_some("recorded"))
    }

    /// The node from which a copy of a group's state is taken here.
    pub fn copy_source(&self, group: GroupId) -> Option<NodeId> {
        self.groups.get(&group)?.node_of(self.installs.source(group)?)
    }

    /// Whether something in the store is of no use and not deleted yet.
    pub fn has_litter(&self) -> bool {
        self.is_littered()
    }

    /// The routes that it goes by.
    pub fn routes(&self) -> &Routes {
        &self.record.routes
    }

    /// Its number; 0 while it has none.
    pub fn id(&self) -> NodeId {
        self.record.node
    }
}
