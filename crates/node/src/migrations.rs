//! What the shard master's leader does so that planned migrations happen: it tells the destination
//! to begin, then the source, and takes note when the destination serves. It is driven by the
//! difference between what it last heard and what is planned, over and over; a group that does not
//! answer holds up only its own shards (`docs/sharding.md` 11.14).

use std::collections::BTreeMap;

use base::mutant::{self, Mutant};
use base::{CopyId, GroupId, Micros, ShardId};
use kvserver::Command;
use router::{HandoffPhase, HandoffState};
use shardmaster::Migration;

use crate::hosted::Hosted;
use crate::node::Node;
use crate::requests::{Origin, Work};

/// What the leader of group 0 remembers of the migrations it drives.
#[derive(Debug, Default)]
pub(crate) struct Migrations {
    driven: BTreeMap<CopyId, Driven>,
}

#[derive(Debug)]
struct Driven {
    source: Side,
    destination: Side,
    /// When the outcome was last proposed to group 0's log.
    proposed: Option<Micros>,
    began: Micros,
}

/// One of the two groups.
#[derive(Debug, Default)]
struct Side {
    state: Option<HandoffState>,
    heard: Option<Micros>,
    asked: Option<Micros>,
}

/// Pause between two questions to a group that answers.
const AGAIN: Micros = Micros::from_millis(100);
/// Pause between two questions to one that does not.
const STALLED_AGAIN: Micros = Micros::from_millis(500);
/// A group that has not answered for so long gives up its place.
const STALLED_AFTER: Micros = Micros::from_secs(1);
/// An outcome is proposed again after so long.
const OUTCOME_PATIENCE: Micros = Micros::from_secs(2);

impl Side {
    fn is_stalled(&self, now: Micros, began: Micros) -> bool {
        now.since(self.heard.unwrap_or(began)) >= STALLED_AFTER
    }

    fn unequal(&self) -> Vec<ShardId> {
        self.state.as_ref().map(|state| state.unequal.clone()).unwrap_or_default()
    }

    fn phase(&self) -> Option<HandoffPhase> {
        self.state.as_ref().map(|state| state.phase)
    }
}

/// What to do about a migration.
enum Errand {
    Ask(GroupId, Option<Command>),
    Outcome(shardmaster::Command),
}

impl Node {
    pub(crate) fn drive_migrations(&mut self) {
        let now = self.now.mono;
        let Some(Hosted::Master(master)) = self.groups.get(&GroupId::MASTER) else { return };
        if !master.paxos().is_leading() {
            self.migrations.driven.clear();
            return;
        }
        let planned: Vec<Migration> = master.machine().migrations().values().cloned().collect();
        let at_once = (master.machine().routes().groups.len().saturating_sub(1) / 8).max(1);
        let wanted = |mig: &CopyId| planned.iter().any(|migration| migration.mig == *mig);
        self.migrations.driven.retain(|mig, _| wanted(mig));
        let mut progressing = 0;
        for migration in planned {
            let new = || Driven {
                source: Side::default(),
                destination: Side::default(),
                proposed: None,
                began: now,
            };
            let known = self.migrations.driven.contains_key(&migration.mig);
            if !known && progressing >= at_once {
                continue;
            }
            let driven = self.migrations.driven.entry(migration.mig).or_insert_with(new);
            let began = driven.began;
            let stalled =
                driven.source.is_stalled(now, began) || driven.destination.is_stalled(now, began);
            if !stalled {
                progressing += 1;
            }
            self.drive_migration(&migration, stalled);
        }
    }

    fn drive_migration(&mut self, migration: &Migration, stalled: bool) {
        let now = self.now.mono;
        let Some(driven) = self.migrations.driven.get_mut(&migration.mig) else { return };
        let began = driven.began;
        let mut errands = Vec::new();
        let mut silent = Vec::new();
        for errand in errands_of(migration, driven, now) {
            let side = match &errand {
                Errand::Ask(group, _) if *group == migration.from => &mut driven.source,
                Errand::Ask(..) => &mut driven.destination,
                Errand::Outcome(_) => {
                    if driven.proposed.is_none_or(|at| now.since(at) >= OUTCOME_PATIENCE) {
                        driven.proposed = Some(now);
                        errands.push(errand);
                    }
                    continue;
                }
            };
            let pause = if stalled { STALLED_AGAIN } else { AGAIN };
            if side.asked.is_none_or(|at| now.since(at) >= pause) {
                // Who answers is asked on: only so is it told what to do.
                if side.is_stalled(now, began)
                    && let Errand::Ask(group, _) = &errand
                {
                    silent.push(*group);
                }
                side.asked = Some(now);
                errands.push(errand);
            }
        }
        for errand in errands {
            match errand {
                Errand::Ask(group, command) => {
                    if silent.contains(&group) {
                        self.requests.forget_leader(group);
                    }
                    self.ask_group(GroupId::MASTER, group, migration.mig, now, command.as_ref());
                }
                Errand::Outcome(command) => {
                    let work = Work::Command(GroupId::MASTER, command.encode());
                    self.start(Origin::Own, work, now + OUTCOME_PATIENCE, 0);
                }
            }
        }
    }

    /// A group says what it has of a migration.
    pub(crate) fn on_migration_state(
        &mut self,
        group: GroupId,
        mig: CopyId,
        sent: Micros,
        state: HandoffState,
    ) {
        let now = self.now.mono;
        let Some(Hosted::Master(master)) = self.groups.get(&GroupId::MASTER) else { return };
        let found = master.machine().migrations().get(&mig).cloned();
        let (Some(migration), Some(driven)) = (found, self.migrations.driven.get_mut(&mig)) else {
            return;
        };
        let side =
            if group == migration.from { &mut driven.source } else { &mut driven.destination };
        if side.asked != Some(sent) {
            return;
        }
        let changed = side.phase() != Some(state.phase);
        side.state = Some(state);
        side.heard = Some(now);
        if changed {
            // The next errand follows from what was just heard, without a pause.
            driven.source.asked = None;
            driven.destination.asked = None;
            self.drive_migration(&migration, false);
        }
    }
}

/// What the two groups are to be asked or told, or the outcome, by what they said last.
fn errands_of(migration: &Migration, driven: &Driven, now: Micros) -> Vec<Errand> {
    use HandoffPhase::{Active, Frozen, In, Moved, Out, Owned, Refused, Unknown};
    let mig = migration.mig;
    let ask = |group, command| Errand::Ask(group, command);
    let (from, to) = (migration.from, migration.to);
    let in_begin = || Command::InBegin { mig, src: from, shards: migration.shards.clone() };
    let out_begin = || Command::OutBegin { mig, dst: to, shards: migration.shards.clone() };
    let refuse = || Command::Refuse { mig, src: from, shards: migration.shards.clone() };
    let abort = || Command::OutAbort { mig, shards: migration.shards.clone() };
    let cancelled = || {
        let unequal = driven.destination.unequal();
        vec![Errand::Outcome(shardmaster::Command::MigrationCancelled { mig, unequal })]
    };
    match (driven.source.phase(), driven.destination.phase()) {
        (_, Some(Active)) => vec![Errand::Outcome(shardmaster::Command::MigrationDone { mig })],
        (Some(Frozen), _) if mutant::is(Mutant::DoneUnasked) => {
            vec![Errand::Outcome(shardmaster::Command::MigrationDone { mig })]
        }
        (Some(Owned), Some(Refused)) => cancelled(),
        // The source will never follow this migration again. A destination that does not answer
        // finds out from the routes that what it has of it is of no use.
        (Some(Owned), _) if driven.destination.is_stalled(now, driven.began) => cancelled(),
        // A command to begin may still be on its way to the source: it is told never to, before
        // anything else is planned for the shards.
        (Some(Unknown), Some(Refused)) => vec![ask(from, Some(abort())), ask(to, None)],
        (Some(Unknown | Out), _) if migration.cancel => {
            vec![ask(from, Some(abort())), ask(to, None)]
        }
        (None, _) | (_, None) => vec![ask(from, None), ask(to, None)],
        (Some(Owned), Some(_)) => vec![ask(from, None), ask(to, Some(refuse()))],
        (Some(Unknown), Some(Unknown)) => vec![ask(from, None), ask(to, Some(in_begin()))],
        (Some(Unknown), Some(In)) => vec![ask(from, Some(out_begin())), ask(to, None)],
        // The source's leader does the rest.
        (Some(Out | Frozen | Moved | In | Active | Refused), Some(_))
        | (Some(Unknown), Some(Out | Frozen | Moved | Owned)) => {
            vec![ask(from, None), ask(to, None)]
        }
    }
}
