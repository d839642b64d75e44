//! The node of production as a guest of the simulated world.

use std::sync::Arc;

use base::{ClusterId, CopyId, DiskId, GroupId, Micros, Now, Slot};
use node::{Node, Options};
use paxos::{Ballot, Command, Value};
use router::{HandoffPhase, HandoffState};
use storage::{Disk, Engine, WalOptions};

use crate::guest::{BallotView, Guest, PlanView, ShardsView, Start, View};
use crate::trace::Trace;

impl Guest for Node {
    fn open(
        start: &Start,
        disk: &mut dyn Disk,
        engine: Arc<dyn Engine>,
        now: Now,
    ) -> Result<Node, String> {
        let settings = &start.settings;
        let wal = WalOptions {
            segment_bytes: settings.segment_bytes,
            bytes_max: settings.wal_bytes_max,
            ..WalOptions::new(start.disk)
        };
        let (peer, grpc) = (start.peer.clone(), start.grpc.clone());
        let mut options = Options::new(start.disk, start.boot, start.starts, peer, grpc, wal);
        options.node = start.node;
        options.cluster = start.cluster;
        options.masters = start.masters.clone();
        options.seed = start.seed;
        options.tail_bytes_max = settings.tail_bytes_max;
        options.overlay_bytes_max = settings.overlay_bytes_max;
        options.overlay_idle = settings.overlay_idle;
        options.overlay_age_max = settings.overlay_age_max;
        options.log_bytes_max = settings.log_bytes_max;
        options.log_tail_bytes = settings.log_tail_bytes;
        options.log_tail_age = settings.log_tail_age;
        options.snapshot_part_bytes = settings.snapshot_part_bytes;
        options.snapshot_bytes_per_second = settings.snapshot_bytes_per_second;
        options.handoff_part_bytes = settings.handoff_part_bytes;
        options.handoff_left_bytes = settings.handoff_left_bytes;
        Node::open(options, disk, engine, now).map_err(|error| error.to_string())
    }

    fn views(&self, digests: bool) -> Vec<View> {
        let view = |group| {
            let paxos = self.paxos_of(group)?;
            let fenced = paxos.is_store_lost();
            let digests = digests && !fenced;
            let (applied, digest) = if let Some(replica) = self.data_replica(group) {
                (replica.applied(), if digests { replica.machine().digest().ok() } else { None })
            } else {
                let replica = self.master_replica()?;
                let digest = || hash(&[&replica.machine().state_bytes()]);
                (replica.applied(), digests.then(digest))
            };
            Some(View {
                group,
                replica: paxos.replica(),
                promised: ballot_view(paxos.ballot()),
                promised_durable: ballot_view(paxos.heartbeat_row().ballot),
                leading: paxos.is_leading().then(|| ballot_view(paxos.ballot())),
                chosen_upto: paxos.chosen_upto(),
                have_upto: paxos.have_upto(),
                applied,
                epoch: paxos.members().epoch(),
                voters: paxos.members().voters().iter().map(|member| member.replica).collect(),
                last: paxos.last_slot(),
                truncated_upto: paxos.first_slot().prev(),
                hurt: fenced || paxos.is_quarantined() || paxos.faulty_slots() > 0,
                quarantined: paxos.is_quarantined(),
                digest,
            })
        };
        self.group_ids().into_iter().filter_map(view).collect()
    }

    fn chosen(&self, group: GroupId, slot: Slot) -> Option<u128> {
        Some(match self.paxos_of(group)?.value(slot)? {
            Value::Noop => 1,
            Value::Stop(members) => hash(&[b"stop", &base::codec::encode(members)]),
            Value::Done(epoch) => hash(&[b"done", &epoch.to_be_bytes()]),
            Value::Command(Command { time, payload, .. }) => {
                hash(&[&time.0.to_be_bytes(), payload])
            }
        })
    }

    fn leases(&self) -> Vec<(GroupId, BallotView, Option<Micros>)> {
        let lease = |group| {
            let paxos = self.paxos_of(group).filter(|paxos| paxos.is_leading())?;
            let until = paxos.lease().map(|lease| lease.until);
            Some((group, ballot_view(paxos.ballot()), until))
        };
        self.group_ids().into_iter().filter_map(lease).collect()
    }

    fn shards(&self) -> Vec<ShardsView> {
        let view = |group| {
            let replica = self.data_replica(group)?;
            let leading = replica.paxos().is_leading();
            if replica.fenced().is_some() {
                return None;
            }
            let shards = replica.machine().shards(leading);
            let (number, applied) = (replica.paxos().replica(), replica.applied());
            Some(ShardsView { group, replica: number, applied, shards })
        };
        self.group_ids().into_iter().filter_map(view).collect()
    }

    fn handoff(&self, group: GroupId, mig: CopyId) -> Option<HandoffState> {
        let replica = self.data_replica(group).filter(|replica| replica.fenced().is_none());
        let state = replica?.machine().handoff(mig);
        (state.phase != HandoffPhase::Unknown).then_some(state)
    }

    fn copying(&self) -> Vec<(GroupId, &'static str)> {
        let copying = |group| Some((group, self.copy_stage(group)?));
        self.group_ids().into_iter().filter_map(copying).collect()
    }

    fn cluster(&self) -> Option<ClusterId> {
        self.status().cluster
    }

    fn audit(&mut self) -> Result<(), String> {
        Node::audit(self)
    }

    fn executed(&self) -> u64 {
        Node::applied_slots(self)
    }

    fn starts(&self) -> u64 {
        Node::starts(self)
    }

    fn starts_seen(&self, disk: DiskId) -> u64 {
        Node::starts_seen(self, disk)
    }

    fn plan(&self) -> Option<PlanView> {
        let replica = self.master_replica().filter(|replica| replica.fenced().is_none())?;
        let master = replica.machine();
        let routes = master.routes();
        Some(PlanView {
            applied: replica.applied(),
            plan: master.configuration().clone(),
            owners: routes.owners.clone(),
            members: routes.groups.iter().map(|(g, info)| (*g, info.members.clone())).collect(),
            changes: routes.changes.iter().map(|(g, change)| (*g, change.clone())).collect(),
            migrations: master.migrations().values().cloned().collect(),
        })
    }
}

fn ballot_view(ballot: Ballot) -> BallotView {
    (ballot.epoch, ballot.round, ballot.replica.0)
}

fn hash(parts: &[&[u8]]) -> u128 {
    let mut trace = Trace::default();
    for part in parts {
        trace.bytes(part);
    }
    u128::from(trace.hash())
}
