//! The checker of shards that move, tried on states that are made up: on right ones it says
//! nothing, and on each kind of wrong one it says what.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{
    ConfigNumber, CopyId, GroupId, NodeId, Now, ShardEpoch, ShardId, Slot, Version, WallMillis,
};
use replica_group::turn::{Input, Machine, Output};
use router::{
    Answer, Configuration, HandoffPhase, HandoffState, Owner, Reply, ReplyHeader, Request,
    ShardState, ShardStatus,
};
use shardmaster::Migration;
use sim::guest::{Guest, PlanView, ShardsView, Start, View};
use sim::ownership::Ownership;
use storage::{Disk, Engine};

/// A guest that shows what it is told to show.
#[derive(Clone, Default)]
struct Puppet {
    shards: Vec<ShardsView>,
    handoffs: BTreeMap<(GroupId, CopyId), HandoffPhase>,
    plan: Option<PlanView>,
}

impl Machine<Request, Reply> for Puppet {
    fn handle(&mut self, _now: Now, _input: Input<Request>) {}

    fn take_output(&mut self) -> Output<Reply> {
        Output::default()
    }
}

impl Guest for Puppet {
    fn open(
        _start: &Start,
        _disk: &mut dyn Disk,
        _engine: Arc<dyn Engine>,
        _now: Now,
    ) -> Result<Puppet, String> {
        Ok(Puppet::default())
    }

    fn views(&self, _digests: bool) -> Vec<View> {
        Vec::new()
    }

    fn chosen(&self, _group: GroupId, _slot: Slot) -> Option<u128> {
        None
    }

    fn shards(&self) -> Vec<ShardsView> {
        self.shards.clone()
    }

    fn handoff(&self, group: GroupId, mig: CopyId) -> Option<HandoffState> {
        let phase = *self.handoffs.get(&(group, mig))?;
        Some(HandoffState { mig, phase, shards: Vec::new(), unequal: Vec::new() })
    }

    fn plan(&self) -> Option<PlanView> {
        self.plan.clone()
    }
}

const MIG: CopyId = CopyId(7);
const FROM: GroupId = GroupId(1);
const TO: GroupId = GroupId(2);
const SHARD: ShardId = ShardId(0);

fn status(group: GroupId, state: ShardState, epoch: u64, version: u64) -> ShardStatus {
    ShardStatus {
        shard: SHARD,
        group,
        leading: true,
        state,
        epoch: ShardEpoch(epoch),
        keys: 1,
        bytes: 1,
        version: Version(version),
        dead_copies: 0,
        dead_records: 0,
    }
}

/// A hand-off of the only shard, from group 1 to group 2, as the world shows it to the checker.
struct Story {
    checker: Ownership,
    puppet: Puppet,
    applied: u64,
}

impl Story {
    /// Group 1 owns the shard in epoch 1, with ten changes, and the hand-off is planned.
    fn new() -> Story {
        let mut story =
            Story { checker: Ownership::default(), puppet: Puppet::default(), applied: 1 };
        story.puppet.plan = Some(PlanView {
            applied: Slot(1),
            plan: Configuration {
                number: ConfigNumber(1),
                groups: BTreeMap::from([(FROM, vec![NodeId(1)]), (TO, vec![NodeId(2)])]),
                shards: vec![TO],
            },
            owners: vec![Some(Owner { group: FROM, epoch: ShardEpoch(1), copy: CopyId(1) })],
            members: Vec::new(),
            changes: Vec::new(),
            migrations: vec![Migration {
                mig: MIG,
                from: FROM,
                to: TO,
                shards: vec![(SHARD, ShardEpoch(1))],
                cancel: false,
            }],
        });
        story.shows(FROM, ShardState::Owned, 1, 10, None).unwrap();
        story
    }

    /// A group shows a state of the shard, and how far the hand-off is with it.
    fn shows(
        &mut self,
        group: GroupId,
        state: ShardState,
        epoch: u64,
        version: u64,
        phase: Option<HandoffPhase>,
    ) -> Result<(), String> {
        self.applied += 1;
        let shards = vec![status(group, state, epoch, version)];
        let view =
            ShardsView { group, replica: base::ReplicaId(1), applied: Slot(self.applied), shards };
        self.puppet.shards.retain(|known| known.group != group);
        self.puppet.shards.push(view);
        if let Some(phase) = phase {
            self.puppet.handoffs.insert((group, MIG), phase);
        }
        self.checker.observe(0, 1, &self.puppet)?;
        self.checker.check_single()
    }

    fn begins(&mut self) {
        let (mig, src, dst) = (MIG, FROM, TO);
        self.shows(TO, ShardState::In { mig, src }, 1, 0, Some(HandoffPhase::In)).unwrap();
        self.shows(FROM, ShardState::Out { mig, dst }, 1, 11, Some(HandoffPhase::Out)).unwrap();
    }

    fn freezes(&mut self) {
        let (mig, dst) = (MIG, TO);
        let frozen = ShardState::Frozen { mig, dst };
        self.shows(FROM, frozen, 1, 12, Some(HandoffPhase::Frozen)).unwrap();
    }

    fn activates(&mut self) -> Result<(), String> {
        self.shows(TO, ShardState::Owned, 2, 12, Some(HandoffPhase::Active))
    }

    fn gives_away(&mut self) -> Result<(), String> {
        let moved = ShardState::Moved { epoch: ShardEpoch(2), dst: TO };
        self.shows(FROM, moved, 2, 12, Some(HandoffPhase::Moved))
    }

    fn takes_back(&mut self) -> Result<(), String> {
        self.shows(FROM, ShardState::Owned, 1, 12, Some(HandoffPhase::Owned))
    }

    fn refuses(&mut self) -> Result<(), String> {
        self.shows(TO, ShardState::Refused { mig: MIG }, 1, 0, Some(HandoffPhase::Refused))
    }

    /// The shard master's state, with these owners and hand-offs.
    fn masters_show(&mut self, owner: Owner, is_open: bool) -> Result<(), String> {
        self.applied += 1;
        let plan = self.puppet.plan.as_mut().unwrap();
        plan.applied = Slot(self.applied);
        plan.owners = vec![Some(owner)];
        if !is_open {
            plan.migrations.clear();
        }
        self.checker.observe(0, 1, &self.puppet)?;
        Ok(())
    }

    /// A client is answered.
    fn answers(&mut self, group: GroupId, epoch: u64, version: u64) -> Result<(), String> {
        let header = ReplyHeader {
            group: Some(group),
            shard: Some(SHARD),
            shard_epoch: Some(ShardEpoch(epoch)),
            version: Version(version),
            stamp: WallMillis(1),
            ..ReplyHeader::default()
        };
        self.checker.check_reply(&Reply { header, body: Ok(Answer::Done) })
    }

    fn settled(&self) -> Result<(), String> {
        self.checker.check_settled([Some(&self.puppet)].into_iter())
    }
}

fn complains(result: Result<(), String>, words: &str) {
    let complaint = result.unwrap_err();
    assert!(complaint.contains(words), "{complaint}");
}

const NEW_OWNER: Owner = Owner { group: TO, epoch: ShardEpoch(2), copy: MIG };

#[test]
fn a_hand_off_that_goes_as_it_must_passes() {
    let mut story = Story::new();
    story.answers(FROM, 1, 10).unwrap();
    story.begins();
    story.answers(FROM, 1, 11).unwrap();
    story.freezes();
    complains(story.settled(), "still under way");
    story.activates().unwrap();
    story.answers(TO, 2, 13).unwrap();
    story.gives_away().unwrap();
    complains(story.settled(), "still under way");
    story.masters_show(NEW_OWNER, false).unwrap();
    story.settled().unwrap();
    let counts = story.checker.counts();
    assert_eq!((counts.planned, counts.done, counts.refused), (1, 1, 0));
}

#[test]
fn a_hand_off_that_is_refused_as_it_must_be_passes() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    story.refuses().unwrap();
    story.takes_back().unwrap();
    story.answers(FROM, 1, 13).unwrap();
    let counts = story.checker.counts();
    assert_eq!((counts.done, counts.unfrozen, counts.refused), (0, 1, 1));
    complains(story.settled(), "still under way");
}

#[test]
fn planted_unfreeze_before_the_refusal_is_found() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    complains(story.takes_back(), "took its frozen shards back");
}

#[test]
fn planted_gift_before_the_destination_serves_is_found() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    complains(story.gives_away(), "gave its shards away");
}

#[test]
fn planted_refusal_of_what_is_served_is_found() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    story.activates().unwrap();
    let refused = ShardState::Refused { mig: MIG };
    complains(story.shows(TO, refused, 2, 12, Some(HandoffPhase::Refused)), "I20");
}

#[test]
fn planted_unfreeze_of_what_is_served_is_found() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    story.activates().unwrap();
    complains(story.takes_back(), "I20");
}

#[test]
fn planted_second_owner_is_found() {
    let mut story = Story::new();
    story.begins();
    // It was never frozen.
    complains(story.activates(), "I19");
}

#[test]
fn planted_second_owner_in_one_epoch_is_found() {
    let mut story = Story::new();
    complains(story.shows(TO, ShardState::Owned, 1, 10, None), "I19");
}

#[test]
fn planted_fall_of_an_epoch_is_found() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    story.activates().unwrap();
    complains(story.shows(TO, ShardState::Owned, 1, 12, None), "I19");
}

#[test]
fn planted_loss_of_changes_is_found() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    // One change less than the source had shown while it served.
    complains(story.shows(TO, ShardState::Owned, 2, 10, Some(HandoffPhase::Active)), "I22");
}

#[test]
fn planted_answer_after_the_next_owner_began_is_found() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    story.activates().unwrap();
    complains(story.answers(FROM, 1, 13), "I22");
}

#[test]
fn planted_answer_of_a_stranger_is_found() {
    let mut story = Story::new();
    complains(story.answers(TO, 1, 10), "I19");
}

#[test]
fn planted_return_of_an_older_owner_is_found() {
    let mut story = Story::new();
    let old = Owner { group: FROM, epoch: ShardEpoch(1), copy: CopyId(1) };
    story.masters_show(NEW_OWNER, false).unwrap();
    complains(story.masters_show(old, false), "I23");
}

#[test]
fn planted_shard_without_a_server_is_found() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    story.masters_show(NEW_OWNER, false).unwrap();
    let moved = ShardState::Moved { epoch: ShardEpoch(2), dst: TO };
    story.puppet.shards.retain(|view| view.group == FROM);
    story.puppet.shards[0].shards[0].state = moved;
    complains(story.settled(), "I24");
}

#[test]
fn planted_rest_of_a_copy_is_found() {
    let mut story = Story::new();
    story.begins();
    story.freezes();
    story.activates().unwrap();
    story.gives_away().unwrap();
    story.masters_show(NEW_OWNER, false).unwrap();
    story.settled().unwrap();
    let gave = story.puppet.shards.iter_mut().find(|view| view.group == FROM).unwrap();
    gave.shards[0].dead_records = 3;
    complains(story.settled(), "node 0 has");
}
