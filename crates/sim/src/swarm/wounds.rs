//! Disks that lose something: one node at a time, which is a minority of every group, until all of
//! its replicas are whole again.

use std::collections::BTreeMap;

use base::{GroupId, Micros, Slot};

use super::alarm::Alarm;
use super::{Failed, Guest, Run};
use crate::disk::Crash;
use crate::rot;

/// A node of which a disk lost something.
#[derive(Debug)]
pub(super) struct Patient {
    pub(super) node: usize,
    /// When it was down last.
    since: Micros,
    /// Its log may be damaged where nobody has looked yet: only another disk makes it whole.
    rotten: bool,
    /// What all replicas are to have before another disk may lose something: what was chosen when
    /// everybody was a member again.
    target: Option<BTreeMap<GroupId, Slot>>,
}

/// How long a node must be up to be whole: an old copy of a disk is found out by then.
const UP_MIN: Micros = Micros::from_secs(2);
/// How often a patient is looked at.
const LOOK: Micros = Micros::from_millis(100);
/// When something that could not be done is tried again.
const AGAIN: Micros = Micros::from_millis(500);

impl<G: Guest> Run<G> {
    /// The node that may lose something now: this one or, where it makes no difference, any.
    pub(super) fn admit(&mut self, wanted: Option<usize>) -> Option<usize> {
        let present = self.patient.as_ref().map(|patient| (patient.node, patient.rotten));
        let nodes = self.cluster.world.nodes() as u64;
        let node = match (present, wanted) {
            (Some((present, _)), Some(wanted)) if present != wanted => return None,
            (Some((present, _)), _) => present,
            (None, Some(wanted)) => wanted,
            (None, None) => self.random.below(nodes) as usize,
        };
        if present.is_none() {
            self.alarm(LOOK, Alarm::Tend);
        }
        let rotten = present.is_some_and(|(_, rotten)| rotten);
        let since = self.cluster.world.time();
        self.patient = Some(Patient { node, since, rotten, target: None });
        Some(node)
    }

    /// Looks whether the patient is whole.
    pub(super) fn tend(&mut self) {
        let Some(mut patient) = self.patient.take() else { return };
        if self.is_whole(&mut patient) {
            self.cluster.checker.whole(patient.node);
            self.cluster.world.note(&format!("node {} is whole again", patient.node));
        } else {
            self.patient = Some(patient);
            self.alarm(LOOK, Alarm::Tend);
        }
    }

    fn is_whole(&self, patient: &mut Patient) -> bool {
        let world = &self.cluster.world;
        if !world.is_up(patient.node) {
            patient.since = world.time();
        }
        let unreadable = patient.rotten || world.is_unreadable(patient.node);
        if unreadable || world.time() < patient.since + UP_MIN {
            return false;
        }
        if self.cluster.check_members().is_err() {
            patient.target = None;
            return false;
        }
        let target = patient.target.get_or_insert_with(|| self.cluster.checker.chosen_upto());
        let guests = (0..world.nodes()).filter_map(|node| world.guest(node));
        let mut views = guests.flat_map(|guest| guest.views(false));
        views.all(|view| target.get(&view.group).is_none_or(|slot| view.have_upto >= *slot))
    }

    /// A node finds an empty disk.
    pub(super) fn wipe(&mut self) -> Result<(), Failed> {
        self.next(self.options.faults.wipe, Alarm::Wipe);
        let Some(node) = self.admit(None) else { return Ok(()) };
        self.count("F14 disk lost");
        self.end(node)?;
        self.cluster.world.wipe(node);
        self.cluster.world.set_disk(node, self.options.world.disk.clone());
        self.cluster.exchanged(node);
        self.cluster.checker.hurt.remove(&node);
        if let Some(patient) = &mut self.patient {
            patient.rotten = false;
        }
        let span = self.span(self.options.faults.wipe);
        self.alarm(span, Alarm::Restart(node));
        Ok(())
    }

    /// Some node's disk is copied, to be put back later.
    pub(super) fn take_image(&mut self) {
        let node = self.random.below(self.cluster.world.nodes() as u64) as usize;
        self.image = Some((node, self.cluster.world.image(node)));
        self.next(self.options.faults.old_copy, Alarm::OldCopy);
    }

    /// The copy is put back, if that must be noticed: all others have seen a later start of it.
    pub(super) fn put_image(&mut self) -> Result<(), Failed> {
        let Some((node, image)) = self.image.take() else { return Ok(()) };
        // A disk that was one before counts its starts otherwise.
        let again = self.restored == Some(image.disk_id());
        if again || self.cluster.world.disk_id(node) != image.disk_id() {
            self.next(self.options.faults.old_copy, Alarm::TakeImage);
            return Ok(());
        }
        let starts = self.cluster.world.disk_starts(node);
        if starts == image.starts() {
            self.end_process(node, Crash::Kill)?;
        }
        let is_noticed = starts > image.starts() && self.is_met_by_all(node);
        if !is_noticed || self.admit(Some(node)).is_none() {
            self.image = Some((node, image));
            self.alarm(AGAIN, Alarm::OldCopy);
            return Ok(());
        }
        self.count("F13 old disk");
        self.restored = Some(image.disk_id());
        self.end(node)?;
        self.cluster.world.restore(node, image);
        self.cluster.exchanged(node);
        let span = self.span(self.options.faults.old_copy);
        self.alarm(span, Alarm::Restart(node));
        self.next(self.options.faults.old_copy, Alarm::TakeImage);
        Ok(())
    }

    /// Whether all others have met the present start of a node.
    fn is_met_by_all(&self, node: usize) -> bool {
        let world = &self.cluster.world;
        let Some(starts) = world.guest(node).map(Guest::starts) else { return false };
        let disk = world.disk_id(node);
        let mut others = (0..world.nodes()).filter(|other| *other != node);
        others
            .all(|other| world.guest(other).is_some_and(|guest| guest.starts_seen(disk) >= starts))
    }

    /// The process ends, if it runs.
    fn end(&mut self, node: usize) -> Result<(), Failed> {
        if self.cluster.world.is_up(node) {
            self.cluster.observe(node)?;
            self.count_crash(node);
            self.cluster.world.crash(node, Crash::Kill);
        }
        Ok(())
    }

    /// Stores that were renewed because records of them were damaged.
    pub(super) fn count_renewals(&mut self) {
        let world = &self.cluster.world;
        let renewals: u64 = (0..world.nodes()).map(|node| world.store(node).renewals()).sum();
        if renewals > 0 {
            *self.faults.entry("F11 store renewed").or_default() += renewals;
        }
    }

    pub(super) fn next_rot(&mut self) {
        if let Some(rot) = self.options.faults.rot {
            let after = Micros(self.random.below(rot.every_max.0));
            self.alarm(after, Alarm::Rot);
        }
    }

    /// Bits or pages of a log, or records of a store, are damaged.
    pub(super) fn rot(&mut self) -> Result<(), Failed> {
        let Some(rot) = self.options.faults.rot else { return Ok(()) };
        self.next_rot();
        if self.admit(Some(rot.node)).is_none() {
            return Ok(());
        }
        if let Some(patient) = &mut self.patient {
            patient.rotten = true;
        }
        self.cluster.checker.hurt.insert(rot.node);
        let what = if self.random.chance(rot.store, 100) {
            self.count("F11 store damaged");
            self.cluster.world.damage_store(rot.node)
        } else {
            self.count("F11 log damaged");
            let page = self.random.chance(rot.pages, 100);
            let wal = self.cluster.world.wal_options(rot.node);
            rot::damage_log(self.cluster.world.disk(rot.node), wal, page, &mut self.random)
        };
        self.cluster.world.note(&format!("the disk of node {}: {what}", rot.node));
        if self.random.chance(rot.crash, 100) {
            self.crash_one(rot.node)?;
        }
        Ok(())
    }
}
