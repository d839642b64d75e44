//! A node recovered from its disk and its store: what the scan of the log finds, and the replicas
//! that come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{Generation, GroupId, Lsn, Micros, NodeId, Now, Random, Slot};
use kvserver::KvServer;
use paxos::Record;
use replica_group::turn::Output;
use replica_group::{GroupStore, Replica};
use shardmaster::ShardMaster;
use storage::{Disk, Engine, Overlay, Recovered, Wal};

use crate::assignments::Assignments;
use crate::bootstrap::Bootstrap;
use crate::damage::Damage;
use crate::digests::Digests;
use crate::generations::{Generations, Litter};
use crate::handoff::Handoffs;
use crate::hosted::{Hosted, is_master};
use crate::identity::NodeRecord;
use crate::installs::Installs;
use crate::leadership::Leadership;
use crate::migrations::Migrations;
use crate::node::Node;
use crate::options::Options;
use crate::outbox::Outbox;
use crate::peers::{Rows, Shared};
use crate::renewal::Renewing;
use crate::replicas::Replicas;
use crate::requests::Requests;
use crate::snapshots::Snapshots;
use crate::store::StoreFlush;
use crate::viewing::Viewing;

/// Why a node could not be opened. The sentence is for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError(pub String);

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OpenError {}

impl Node {
    /// Recovers a node from its disk and its store.
    pub fn open(
        options: Options,
        disk: &mut dyn Disk,
        engine: Arc<dyn Engine>,
        now: Now,
    ) -> Result<Node, OpenError> {
        let seed = Random::new(options.seed).next_u64();
        let tail_bytes_max = options.tail_bytes_max;
        let mut recovering = Recovering { seed, tail_bytes_max, ..Recovering::default() };
        let wal = Wal::recover(disk, options.wal.clone(), &mut |record| recovering.take(record))
            .map_err(|error| OpenError(error.to_string()))?;
        if let Some(error) = recovering.error {
            return Err(OpenError(error));
        }
        let mut overlay = Overlay::new(engine);
        crate::store::check_meta(&mut overlay, options.disk)?;
        let mut record = recovering.record.unwrap_or_default();
        let lost = recovering.lost;
        let known = |(first, last): &(Lsn, Lsn)| {
            record.mended.iter().any(|(from, to)| from <= first && last <= to)
        };
        let forgot = !lost.iter().all(known);
        if forgot || recovering.forgot {
            record.forget();
            // The damaged record may have been the only one left.
            record.cluster = record.cluster.or(options.cluster);
        }
        // A log that is whole and knows of no cluster has lost the node's promises too. To go on as
        // if it had never made any could undo what was acknowledged.
        if let Some(named) = options.cluster
            && record.cluster != Some(named)
        {
            let found = match record.cluster {
                Some(found) => format!("belongs to cluster {found}"),
                None => "knows of none".to_owned(),
            };
            return Err(OpenError(format!(
                "this data directory belongs to cluster {named}, and its write-ahead log {found}: \
                 the files wal-* in it were removed or replaced, and with them promises that the \
                 cluster rests on; put them back, or give the node an empty data directory and a new \
                 number"
            )));
        }
        if record.node != NodeId(0) && options.node != NodeId(0) && record.node != options.node {
            return Err(OpenError(format!(
                "this data directory belongs to node {}, not to node {}: start it as node {0}, or \
                 give node {1} a data directory of its own",
                record.node.0, options.node.0
            )));
        }
        let mut node = Node {
            random: Random::new(options.seed),
            now,
            started: now.mono,
            cluster_durable: record.cluster,
            record,
            wal,
            overlay,
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            peers: BTreeMap::new(),
            rows: Rows::default(),
            shared: Shared::default(),
            heartbeat_at: now.mono,
            introduce_at: now.mono + HEARD_SOON,
            requests: Requests::default(),
            bootstrap: Bootstrap::default(),
            assignments: Assignments::default(),
            migrations: Migrations::default(),
            handoffs: Handoffs::default(),
            leadership: Leadership::default(),
            replicas: Replicas::default(),
            flush: StoreFlush::new(now.mono),
            generations: BTreeMap::new(),
            litter: Litter::default(),
            snapshots: Snapshots::default(),
            installs: Installs::default(),
            viewing: Viewing::default(),
            renewing: Renewing::default(),
            deferred: Vec::new(),
            loads: BTreeMap::new(),
            outbox: Outbox::default(),
            output: Output::default(),
            stopping: false,
            stopped: false,
            wal_full_said: false,
            damage: Damage::default(),
            digests: Digests::default(),
            prepare_again_at: None,
            wal_busy_at: now.mono,
            created_at: Lsn::ZERO,
            opened: Lsn::ZERO,
            vouched_by: BTreeSet::new(),
            complained: BTreeSet::new(),
            complained_since: now.mono,
            options,
        };
        if node.record.node == NodeId(0) {
            node.record.node = node.options.node;
        }
        node.options.starts = node.options.starts.saturating_add(node.record.starts_more);
        node.opened = node.wal.synced();
        let minted_by = node.random.next_u128();
        node.requests.begin(base::ClientId(minted_by));
        // The node's own record is always restated as a whole: no other of its records is needed.
        node.wal.keep_from(GroupId::NODE, None);
        if node.record.forgot || node.wal.report().doubted.contains(&GroupId::NODE) {
            node.save_record();
        }
        node.say_damage();
        for (group, mut recovery) in recovering.groups {
            let mended = lost.iter().all(|(first, last)| recovery.is_mended(*first, *last));
            if node.wal.report().doubted.contains(&group) && !mended {
                recovery.push_lost();
            }
            node.open_group(group, recovery)?;
        }
        node.learn_peers();
        node.take_master_routes();
        Ok(node)
    }

    fn open_group(
        &mut self,
        group: GroupId,
        mut recovery: paxos::Recovery,
    ) -> Result<(), OpenError> {
        if recovery.is_destroyed() {
            self.wal.forget(group);
            return Ok(());
        }
        if !recovery.is_created() {
            self.forget_group(group);
            return Ok(());
        }
        let mut nowhere = None;
        match Generations::read(&self.overlay, group) {
            Ok(known) => {
                if known.slot > Slot::ZERO {
                    recovery.installed(known.slot, known.lsn);
                }
                self.litter_at_start(group, &known);
                self.generations.insert(group, known);
            }
            Err(error) => {
                let known = Generations::unknown(self.random.next_u64());
                self.generations.insert(group, known);
                nowhere = Some(error.0);
            }
        }
        let (applied, lost) = self.executed(group, &recovery);
        let lost = lost.or(nowhere);
        let standing = self.overlay.get(&crate::store::standing_key(group)).unwrap_or_default();
        if let Ok(Some(standing)) = crate::store::decode_standing(group, standing.as_ref())
            && lost.is_none()
        {
            recovery.stands(applied, standing);
        }
        let paxos = recovery.finish(applied).map_err(|error| {
            OpenError(format!("group {} cannot be recovered from the log: {error}", group.0))
        })?;
        let quarantined = paxos.is_quarantined();
        if paxos.faulty_slots() > 0 {
            self.damage.mending.insert(group, Vec::new());
        }
        let hosted = match lost {
            Some(why) => {
                let generation = self.generation(group);
                self.host_fenced(group, paxos, applied, generation, why)?
            }
            None => self.host(group, paxos, applied)?,
        };
        if quarantined {
            self.say_quarantined(group);
        }
        self.groups.insert(group, hosted);
        self.dirty.insert(group);
        Ok(())
    }

    pub(crate) fn host(
        &mut self,
        group: GroupId,
        paxos: paxos::Paxos,
        applied: Slot,
    ) -> Result<Hosted, OpenError> {
        let generation = self.generation(group);
        let store = GroupStore::of(&mut self.overlay, group, generation);
        if is_master(group) {
            match ShardMaster::open(&store) {
                Ok(machine) => {
                    let replica = Replica::new(group, paxos, machine, applied, generation);
                    Ok(Hosted::Master(Box::new(replica)))
                }
                Err(error) => self.host_fenced(group, paxos, applied, generation, error.0),
            }
        } else {
            match KvServer::open(group, &store) {
                Ok(machine) => {
                    let replica = Replica::new(group, paxos, machine, applied, generation);
                    Ok(Hosted::Data(Box::new(replica)))
                }
                Err(error) => self.host_fenced(group, paxos, applied, generation, error.0),
            }
        }
    }

    /// Which of its states in the store is a group's.
    fn generation(&self, group: GroupId) -> Generation {
        self.generations.get(&group).copied().unwrap_or_default().current
    }
}

/// What a scan of the log has found so far.
#[derive(Default)]
struct Recovering {
    seed: u64,
    record: Option<NodeRecord>,
    groups: BTreeMap<GroupId, paxos::Recovery>,
    tail_bytes_max: usize,
    /// Records of which nothing can be read.
    lost: Vec<(Lsn, Lsn)>,
    /// A record of the node is damaged: it may have said which replicas are never made again.
    forgot: bool,
    error: Option<String>,
}

impl Recovering {
    fn take(&mut self, found: Recovered) {
        if self.error.is_some() {
            return;
        }
        let found = match found {
            Recovered::Record(found) => found,
            // The record before it, or the superblock, says who the node is; all else is asked.
            Recovered::Damaged { group: GroupId::NODE, .. } => return self.forgot = true,
            Recovered::Lost { first, last } => return self.lost.push((first, last)),
            Recovered::Damaged { lsn, group, identity, state: _ } => {
                let pushed = self.recovery(group).push_damaged(lsn, &identity);
                if let Err(error) = pushed {
                    self.error = Some(format!("{lsn} of the write-ahead log: {error}"));
                }
                return;
            }
        };
        let result = if found.group == GroupId::NODE {
            NodeRecord::decode(&found.identity, &found.payload).map(|r| self.record = Some(r))
        } else {
            let recovery = self.recovery(found.group);
            Record::decode(&found.identity, &found.payload)
                .map_err(|error| error.to_string())
                .and_then(|record| {
                    recovery.push(found.lsn, record).map_err(|error| error.to_string())
                })
        };
        if let Err(what) = result {
            self.error = Some(format!(
                "{} of the write-ahead log cannot be understood by this version: {what}",
                found.lsn
            ));
        }
    }

    fn recovery(&mut self, group: GroupId) -> &mut paxos::Recovery {
        let seed = self.seed ^ group.0;
        let tail = self.tail_bytes_max;
        let fresh = || paxos::Recovery::of_group(group, seed).with_tail_bytes_max(tail);
        self.groups.entry(group).or_insert_with(fresh)
    }
}

/// Within this time after a start the peers are heard, where they are where they were.
const HEARD_SOON: Micros = Micros::from_millis(500);
