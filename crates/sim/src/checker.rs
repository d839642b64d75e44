//! The invariants of the protocol, checked on what the replicas show while a run goes on
//! (`docs/paxos.md` 12). What clients see is checked afterwards by [`crate::linearizability`].

use std::collections::{BTreeMap, BTreeSet};

use base::{DiskId, GroupId, ReplicaId, Slot};

use crate::guest::{BallotView, Guest, View};
use crate::world::World;

/// What was seen of a run so far, and may not be contradicted.
#[derive(Debug, Default)]
pub struct Checker {
    groups: BTreeMap<GroupId, GroupFacts>,
    replicas: BTreeMap<(usize, GroupId), ReplicaFacts>,
    /// The nodes whose disks were damaged: their records are not what they must be.
    pub hurt: BTreeSet<usize>,
    /// The node whose states were changed behind its back, if there is one.
    pub deviant: Option<usize>,
    /// The nodes with other disks than they had: they may not know yet what they forgot.
    exchanged: BTreeSet<usize>,
}

/// About one group.
#[derive(Debug, Default)]
struct GroupFacts {
    /// By slot - 1: the hash of the command that some replica knew to be chosen.
    chosen: Vec<Option<u128>>,
    /// By applied slot: the digest of some replica's state.
    digests: Vec<Option<u128>>,
    /// The highest slot that any replica knew to be chosen.
    chosen_upto: Slot,
    /// Who led under each ballot: the replica, and which start of its node.
    leaders: BTreeMap<BallotView, (ReplicaId, u64)>,
    /// All replicas that were seen, and where: none is ever seen elsewhere.
    replicas: BTreeMap<ReplicaId, (usize, DiskId)>,
    /// The newest epoch that any replica was in, and who votes in it.
    epoch: u32,
    voters: Vec<ReplicaId>,
}

/// About one replica.
#[derive(Debug)]
struct ReplicaFacts {
    starts: u64,
    last: View,
    /// Slots up to this one were compared.
    compared: Slot,
}

impl Checker {
    /// A checker that has seen nothing.
    pub fn new() -> Checker {
        Checker::default()
    }

    /// A node has other disks than it had before: what it shows need not go on from what it showed.
    pub(crate) fn exchanged(&mut self, node: usize) {
        self.replicas.retain(|(place, _), _| *place != node);
        self.exchanged.insert(node);
    }

    /// All that such a node lost is made good.
    pub(crate) fn whole(&mut self, node: usize) {
        self.exchanged.remove(&node);
    }

    /// How far each group is known to be chosen.
    pub fn chosen_upto(&self) -> BTreeMap<GroupId, Slot> {
        self.groups.iter().map(|(group, facts)| (*group, facts.chosen_upto)).collect()
    }

    /// Looks at a node that is up. `starts` counts the node's starts; `digests` asks for a look at
    /// the states as well.
    pub fn observe<G: Guest>(
        &mut self,
        (node, disk): (usize, DiskId),
        starts: u64,
        guest: &G,
        digests: bool,
    ) -> Result<(), String> {
        for view in guest.views(digests) {
            let group = view.group;
            let facts = self.groups.entry(group).or_default();
            let place = *facts.replicas.entry(view.replica).or_insert((node, disk));
            if place != (node, disk) {
                return Err(format!(
                    "I10: {} of {group} is on node {node}, disk {disk}, and was on {place:?}",
                    view.replica
                ));
            }
            check_view(node, &view)?;
            facts.check_leader(node, starts, &view)?;
            if self.deviant != Some(node) {
                facts.check_digest(node, &view)?;
            }
            let known = self.replicas.get(&(node, group));
            // What a crash kept from the disk has told nobody anything: it may never have been.
            let stays = |known: &&ReplicaFacts| {
                let last = &known.last;
                known.starts == starts
                    || last.promised_durable != BallotView::default()
                    || last.have_upto > Slot::ZERO
            };
            if let Some(known) = known.filter(stays)
                && view.replica < known.last.replica
            {
                return Err(format!("I10: node {node} shows {view:?} after {:?}", known.last));
            }
            // Another replica in its place knows nothing of it.
            let known = known.filter(|known| known.last.replica == view.replica);
            if let Some(known) = known {
                known.check_since(node, starts, &view)?;
            }
            if view.epoch > facts.epoch {
                (facts.epoch, facts.voters) = (view.epoch, view.voters.clone());
            }
            // A process that was just started has recovered slots to be compared anew.
            let from = known.filter(|known| known.starts == starts).map(|known| known.compared);
            facts.check_chosen(node, &view, from.unwrap_or(view.truncated_upto), guest)?;
            let compared = view.chosen_upto;
            self.replicas.insert((node, group), ReplicaFacts { starts, last: view, compared });
        }
        Ok(())
    }

    /// Looks at all nodes together: of the newest ballot under which somebody led, a majority of
    /// the voters has promised it and keeps the promise (I2, I3, I5).
    pub fn check_promises<G: Guest>(&self, world: &World<G>) -> Result<(), String> {
        let mut below: BTreeMap<GroupId, usize> = BTreeMap::new();
        for node in (0..world.nodes()).filter(|node| !self.exchanged.contains(node)) {
            let Some(guest) = world.guest(node) else { continue };
            for view in guest.views(false) {
                let Some(facts) = self.groups.get(&view.group) else { continue };
                let Some(led) = facts.elected() else { continue };
                let votes = facts.voters.contains(&view.replica);
                if votes && !view.hurt && view.promised < led {
                    *below.entry(view.group).or_default() += 1;
                }
            }
        }
        for (group, below) in below {
            let facts = &self.groups[&group];
            let voters = facts.voters.len();
            if below > voters - (voters / 2 + 1) {
                return Err(format!(
                    "I3: {below} of {voters} voters of {group} have promised less than {:?}, under \
                     which a replica led",
                    facts.elected()
                ));
            }
        }
        Ok(())
    }

    /// Whether all replicas of all groups are up and have come to the same state, which has
    /// everything that was ever chosen, and nothing is left of those that were replaced; the
    /// sentence says what is missing.
    pub fn check_converged<G: Guest>(&self, world: &World<G>) -> Result<(), String> {
        let mut first: BTreeMap<GroupId, (usize, View)> = BTreeMap::new();
        let mut shown: BTreeSet<(GroupId, ReplicaId)> = BTreeSet::new();
        for node in 0..world.nodes() {
            let Some(guest) = world.guest(node) else {
                return Err(format!("node {node} is down"));
            };
            for view in guest.views(true) {
                let group = view.group;
                shown.insert((group, view.replica));
                let Some(facts) = self.groups.get(&group) else { continue };
                if view.epoch != facts.epoch || !facts.voters.contains(&view.replica) {
                    return Err(format!(
                        "node {node} shows {view:?}, and the voters of epoch {} are {:?}",
                        facts.epoch, facts.voters
                    ));
                }
                if view.hurt {
                    return Err(format!("node {node} is not mended: {view:?}"));
                }
                if view.applied < facts.chosen_upto {
                    return Err(format!(
                        "node {node} has applied {group} up to {}, and {} was chosen",
                        view.applied, facts.chosen_upto
                    ));
                }
                let (other, theirs) = first.entry(group).or_insert_with(|| (node, view.clone()));
                if (theirs.applied, theirs.digest) != (view.applied, view.digest) {
                    return Err(format!(
                        "node {node} and node {other} differ in {group}: {view:?} and {theirs:?}"
                    ));
                }
            }
        }
        for (group, facts) in &self.groups {
            let missing = facts.voters.iter().find(|voter| !shown.contains(&(*group, **voter)));
            if let Some(missing) = missing {
                return Err(format!("no node shows {missing} of {group}"));
            }
        }
        Ok(())
    }

    /// How many slots were seen chosen, over all groups.
    pub fn chosen(&self) -> u64 {
        self.groups.values().map(|facts| facts.chosen_upto.0).sum()
    }

    /// How many leaders were seen, over all groups.
    pub fn leaders(&self) -> usize {
        self.groups.values().map(|facts| facts.leaders.len()).sum()
    }
}

/// What must hold within one replica.
fn check_view(node: usize, view: &View) -> Result<(), String> {
    let ordered = view.have_upto <= view.chosen_upto.max(view.applied)
        && view.truncated_upto <= view.applied.max(view.have_upto);
    if !ordered {
        return Err(format!("I8: node {node} is not in order: {view:?}"));
    }
    match view.leading {
        Some(leading) if leading.2 != view.replica.0 => {
            Err(format!("I4: node {node} leads under another's ballot: {view:?}"))
        }
        Some(leading) if leading > view.promised => {
            Err(format!("I5: node {node} leads above its own promise: {view:?}"))
        }
        Some(_) | None => Ok(()),
    }
}

impl ReplicaFacts {
    /// What must hold between two looks at one replica.
    fn check_since(&self, node: usize, starts: u64, view: &View) -> Result<(), String> {
        let last = &self.last;
        if view.hurt || last.hurt {
            return Ok(());
        }
        if view.promised < last.promised_durable {
            return Err(format!(
                "I2: node {node} promised {:?} durably before: {view:?}",
                last.promised_durable
            ));
        }
        if view.last.max(view.applied) < last.have_upto {
            return Err(format!(
                "I25: node {node} had {} durably before: {view:?}",
                last.have_upto
            ));
        }
        if starts != self.starts {
            return Ok(());
        }
        if view.promised < last.promised {
            return Err(format!("I2: node {node} promised {:?} before: {view:?}", last.promised));
        }
        let back = view.chosen_upto < last.chosen_upto
            || view.have_upto < last.have_upto
            || view.applied < last.applied
            || view.truncated_upto < last.truncated_upto;
        if back {
            return Err(format!("I8: node {node} goes back from {last:?} to {view:?}"));
        }
        Ok(())
    }
}

impl GroupFacts {
    /// The newest ballot under which somebody was elected; none in an epoch in which its first
    /// leader has led only, for whom nobody needs to vote.
    fn elected(&self) -> Option<BallotView> {
        let (led, _) = self.leaders.last_key_value()?;
        (led.0 == self.epoch && led.1 > 0).then_some(*led)
    }

    fn check_leader(&mut self, node: usize, starts: u64, view: &View) -> Result<(), String> {
        // A group of one leads before its promise is durable. If it crashes before, nobody has
        // heard of that ballot, nor has anything under it survived.
        let leading = view.leading.filter(|ballot| *ballot <= view.promised_durable);
        let Some(ballot) = leading else { return Ok(()) };
        let leader = *self.leaders.entry(ballot).or_insert((view.replica, starts));
        if leader != (view.replica, starts) {
            return Err(format!(
                "I4: node {node} at its start {starts} leads {} under {ballot:?}, as {leader:?} \
                 did before",
                view.group
            ));
        }
        Ok(())
    }

    fn check_digest(&mut self, node: usize, view: &View) -> Result<(), String> {
        let Some(digest) = view.digest else { return Ok(()) };
        let known = *at(&mut self.digests, view.applied).get_or_insert(digest);
        if known != digest {
            return Err(format!(
                "I18: node {node} has digest {digest:x} of {} at {}, another replica had {known:x}",
                view.group, view.applied
            ));
        }
        Ok(())
    }

    fn check_chosen<G: Guest>(
        &mut self,
        node: usize,
        view: &View,
        from: Slot,
        guest: &G,
    ) -> Result<(), String> {
        self.chosen_upto = self.chosen_upto.max(view.chosen_upto);
        for slot in from.0 + 1..=view.chosen_upto.0 {
            let slot = Slot(slot);
            let Some(hash) = guest.chosen(view.group, slot) else { continue };
            let chosen = *at(&mut self.chosen, slot).get_or_insert(hash);
            if chosen != hash {
                return Err(format!(
                    "I1: node {node} has another command chosen at {slot} of {}",
                    view.group
                ));
            }
        }
        Ok(())
    }
}

fn at(list: &mut Vec<Option<u128>>, slot: Slot) -> &mut Option<u128> {
    let index = slot.0 as usize;
    if list.len() <= index {
        list.resize(index + 1, None);
    }
    &mut list[index]
}
