//! Disks that lose something: one node at a time, which is a minority of every group, until all of
//! its replicas are whole again (as in the simulator).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base::{DiskId, GroupId, NodeId, Random, ReplicaId, Slot};
use router::Routes;

use super::classes::OfDisk;
use super::disks;
use super::sampling::Sample;
use super::world::{SEGMENT_BYTES, World};

/// A node whose disk lost something.
#[derive(Debug)]
struct Patient {
    node: u64,
    /// When that was.
    since: Instant,
    /// Its log or store may be damaged where nobody has looked yet: only another disk makes it
    /// whole.
    rotten: bool,
    /// The replicas that it held when it forgot something: none of them may vote again.
    gone: Vec<(GroupId, ReplicaId)>,
    /// What all replicas are to have before another disk may lose something: what was chosen when
    /// everybody was a member again.
    target: Option<BTreeMap<GroupId, Slot>>,
}

/// A copy of a disk, taken while its node was down.
#[derive(Debug)]
struct Copy {
    node: u64,
    disk: DiskId,
    at: PathBuf,
}

/// Which disk may lose something now, and what did.
#[derive(Debug)]
pub(crate) struct Patients {
    random: Random,
    present: Option<Patient>,
    copy: Option<Copy>,
    /// Disks that were old copies once count their starts otherwise, and are not put back again.
    restored: BTreeSet<DiskId>,
    newest: Option<Sample>,
    /// What was done, in a line each.
    pub(crate) done: Vec<String>,
    /// How many became whole again.
    pub(crate) healed: u64,
}

/// How long a node must be up to be whole.
const UP_MIN: Duration = Duration::from_secs(2);
/// How long all others must have known a node's present start before an older copy of its disk is
/// put back: each has that on its own disk by then.
const MET_MIN: Duration = Duration::from_secs(2);

/// How long a disk rots before it is lost.
const ROTTEN_MAX: Duration = Duration::from_secs(8);

impl Patients {
    pub(crate) fn new(random: Random) -> Patients {
        Patients {
            random,
            present: None,
            copy: None,
            restored: BTreeSet::new(),
            newest: None,
            done: Vec::new(),
            healed: 0,
        }
    }

    /// The node whose disk is not whole.
    pub(crate) fn present(&self) -> Option<u64> {
        self.present.as_ref().map(|patient| patient.node)
    }

    /// Takes what was seen of the cluster: whether the patient is whole.
    pub(crate) fn look(&mut self, sample: Sample, world: &World) {
        if let Some(mut patient) = self.present.take() {
            if is_whole(&mut patient, &sample, world) {
                self.healed += 1;
                self.done.push(format!("node {} is whole again", patient.node));
            } else {
                self.present = Some(patient);
            }
        }
        self.newest = Some(sample);
    }

    /// A replica that forgot something and is a member all the same.
    pub(crate) fn lack(&self, sample: &Sample) -> Option<String> {
        let patient = self.present.as_ref()?;
        let members = members_on(sample.routes.as_ref()?, patient.node);
        let (group, replica) = patient.gone.iter().find(|gone| members.contains(gone))?;
        let node = patient.node;
        Some(format!("replica {} of group {} on node {node} forgot", replica.0, group.0))
    }

    /// What is to be done in place of this: once a disk has rotted for a while, it is lost.
    pub(crate) fn due(&self, of: OfDisk) -> OfDisk {
        let is_due = |patient: &Patient| patient.rotten && patient.since.elapsed() > ROTTEN_MAX;
        if self.present.as_ref().is_some_and(is_due) { OfDisk::Wipe } else { of }
    }

    /// Does something to the disk of a node that runs, if that may be now, and kills it first: the
    /// node, which is down then.
    pub(crate) fn hurt(&mut self, of: OfDisk, free: &[u64], world: &mut World) -> Option<u64> {
        match of {
            OfDisk::Wipe => self.wipe(free, world),
            OfDisk::OldCopy if self.copy.is_some() => self.put_back(free, world),
            OfDisk::OldCopy => {
                // The first half: nothing is lost, and any node will do.
                self.take_copy(free, world);
                None
            }
            OfDisk::RotLog | OfDisk::RotStore => self.rot(of, free, world),
        }
    }

    /// The node among these that may lose something now: the patient, or any if there is none.
    fn admit(&self, free: &[u64]) -> Option<u64> {
        match &self.present {
            Some(patient) => free.contains(&patient.node).then_some(patient.node),
            None => free.first().copied(),
        }
    }

    fn members_on(&self, node: u64) -> Vec<(GroupId, ReplicaId)> {
        let routes = self.newest.as_ref().and_then(|sample| sample.routes.as_ref());
        routes.map(|routes| members_on(routes, node)).unwrap_or_default()
    }

    fn become_patient(&mut self, node: u64, rotten: bool, forgot: bool) {
        let mut gone = self.present.take().map(|patient| patient.gone).unwrap_or_default();
        if forgot {
            gone.extend(self.members_on(node));
        }
        let since = Instant::now();
        self.present = Some(Patient { node, since, rotten, gone, target: None });
    }

    fn wipe(&mut self, free: &[u64], world: &mut World) -> Option<u64> {
        let node = self.admit(free)?;
        world.cluster.kill(node);
        disks::empty(&world.cluster.home(node)).expect("a data directory is emptied");
        if self.copy.as_ref().is_some_and(|copy| copy.node == node) {
            self.forget_copy();
        }
        self.become_patient(node, false, true);
        self.done.push(format!("node {node} finds an empty disk"));
        Some(node)
    }

    fn rot(&mut self, of: OfDisk, free: &[u64], world: &mut World) -> Option<u64> {
        let node = self.admit(free)?;
        world.cluster.kill(node);
        let home = world.cluster.home(node);
        let what = match of {
            OfDisk::RotLog => disks::rot_log(&home, SEGMENT_BYTES, &mut self.random),
            OfDisk::RotStore | OfDisk::OldCopy | OfDisk::Wipe => {
                let bits = disks::rot_store(&home, &mut self.random);
                (bits > 0).then(|| format!("{bits} bits of the store"))
            }
        };
        let what = what.unwrap_or_else(|| "nothing to damage".to_owned());
        self.done.push(format!("node {node}: {what}"));
        // A copy of it is a sound disk, and none that it may be put back on.
        if self.copy.as_ref().is_some_and(|copy| copy.node == node) {
            self.forget_copy();
        }
        self.become_patient(node, true, false);
        Some(node)
    }

    fn forget_copy(&mut self) {
        if let Some(copy) = self.copy.take() {
            // Nothing rests on it.
            let _ = std::fs::remove_dir_all(copy.at);
        }
    }

    /// Copies the disk of a node that is sound, which is down for that long.
    fn take_copy(&mut self, free: &[u64], world: &mut World) {
        let Some(disk_of) = self.newest.as_ref().map(|sample| &sample.statuses) else { return };
        let sound = free.iter().find(|node| self.present() != Some(**node));
        let Some((node, status)) = sound.and_then(|node| disk_of.get_key_value(node)) else {
            return;
        };
        if self.restored.contains(&status.disk) || status.node != NodeId(*node) {
            return;
        }
        let copy =
            Copy { node: *node, disk: status.disk, at: world.cluster.directory().join("old-copy") };
        world.cluster.kill(copy.node);
        disks::copy(&world.cluster.home(copy.node), &copy.at).expect("a disk is copied");
        world.start_node(copy.node);
        self.done.push(format!("the disk of node {} is copied", copy.node));
        self.copy = Some(copy);
    }

    /// Puts the copy back, if that must be noticed: all others have met the node on its disk since.
    fn put_back(&mut self, free: &[u64], world: &mut World) -> Option<u64> {
        let copy = self.copy.as_ref()?;
        let sample = self.newest.as_ref()?;
        let present = sample.statuses.get(&copy.node)?;
        if present.disk != copy.disk {
            self.forget_copy();
            return None;
        }
        let node = copy.node;
        let since = world.started(node);
        let met = |other: u64| {
            let connected = sample.statuses.get(&other).is_some_and(|status| {
                status.peers.iter().any(|peer| peer.node == NodeId(node) && peer.connected)
            });
            connected && sample.begun > world.started(other) + MET_MIN
        };
        let others = || world.all().into_iter().filter(|other| *other != node);
        let is_met = sample.begun > since + MET_MIN && others().all(met) && sample.routes.is_some();
        if !is_met || !free.contains(&node) || self.present().is_some_and(|other| other != node) {
            return None;
        }
        world.cluster.kill(node);
        let home = world.cluster.home(node);
        disks::empty(&home).expect("a data directory is emptied");
        disks::copy(&copy.at, &home).expect("a disk is put back");
        self.restored.insert(copy.disk);
        self.forget_copy();
        let rotten = self.present.as_ref().is_some_and(|patient| patient.rotten);
        self.become_patient(node, rotten, true);
        self.done.push(format!("an old copy of its disk is put back to node {node}"));
        Some(node)
    }
}

fn members_on(routes: &Routes, node: u64) -> Vec<(GroupId, ReplicaId)> {
    let groups = routes.groups.iter();
    let members = groups.flat_map(|(group, info)| {
        let on_node = info.members.iter().filter(|(_, on, _)| *on == NodeId(node));
        on_node.map(|(replica, ..)| (*group, *replica))
    });
    members.collect()
}

fn is_whole(patient: &mut Patient, sample: &Sample, world: &World) -> bool {
    let is_late = sample.begun > patient.since.max(world.started(patient.node)) + UP_MIN;
    let (Some(routes), Some(status)) = (&sample.routes, sample.statuses.get(&patient.node)) else {
        return false;
    };
    if patient.rotten || !world.is_up(patient.node) || !is_late {
        return false;
    }
    let registered = routes.nodes.get(&NodeId(patient.node));
    let here = members_on(routes, patient.node);
    let lives = |(group, replica): &(GroupId, ReplicaId)| {
        status.groups.iter().any(|g| g.group == *group && g.replica == *replica)
    };
    let is_member = registered.is_some_and(|info| info.disk == status.disk)
        && routes.changes.is_empty()
        && here.iter().all(lives)
        && patient.gone.iter().all(|gone| !here.contains(gone));
    if !is_member || sample.trouble().is_some() || sample.lost_member().is_some() {
        patient.target = None;
        return false;
    }
    let target = patient.target.get_or_insert_with(|| sample.chosen());
    sample
        .replicas()
        .all(|(_, replica)| target.get(&replica.group).is_none_or(|slot| replica.applied >= *slot))
}
