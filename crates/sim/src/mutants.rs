//! Planted faults: for each guard that [`base::mutant`] can take away, what makes the simulator
//! likely to notice, and how a run is judged that has it.

use std::panic::AssertUnwindSafe;

use base::Micros;
use base::mutant::{self, Mutant};
use node::Node;

use crate::reconfiguration::ReconfigurationOptions;
use crate::swarm::{self, Fault, Faults, Rot, SwarmOptions};

/// A mutant, and how it is hunted.
#[derive(Clone, Copy, Debug)]
pub struct Hunt {
    /// The guard that is taken away.
    pub mutant: Mutant,
    /// Where the documents speak of it.
    pub section: &'static str,
    /// What its runs have more of.
    pub terrain: Terrain,
    /// A seed that kills it.
    pub seed: u64,
    /// From whatever seed on, so many kill it.
    pub within: u64,
}

/// What the runs of a hunt have more of than those of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Terrain {
    /// Nothing: runs as a sweep draws them.
    Drawn,
    /// Crashes that lose what was not synced, of slow disks, one node after the other.
    Crashes,
    /// Crashes of all nodes at once.
    Blackouts,
    /// Partitions, pauses and leaders that are not heard for a while, and reads all the time.
    Partitions,
    /// Leaders that pause until they are deposed, and do not hear of it.
    Deaf,
    /// Processes that end and are there again at once, while links come and go.
    Restarts,
    /// Disks that take long for each vote, and leaders that are replaced all the time.
    Slow,
    /// Nodes that stop in good order and pass on what they lead.
    Stops,
    /// A log that rots, a bit or a page at a time.
    Rot,
    /// Disks that are lost or exchanged for old copies.
    Disks,
    /// Replicas that go to other nodes.
    Members,
    /// Shards that move all the time, and crashes of those who take part.
    Moves,
    /// Logs so short that states are copied.
    Copies,
    /// Clocks that jump by up to two hours, so that sessions expire.
    Clocks,
    /// Reads that need not see the newest value, from any replica.
    Reads,
    /// Frames that come late and twice.
    Late,
}

impl Terrain {
    /// The options of a seed here.
    pub fn options(self, seed: u64) -> SwarmOptions {
        let mut options = SwarmOptions::draw(seed);
        match self {
            Terrain::Drawn => {}
            Terrain::Crashes | Terrain::Blackouts => {
                focus(&mut options);
                options.world.disk.sync_min = Micros::from_millis(2);
                options.world.disk.sync_max = Micros::from_millis(40);
                options.faults.power = true;
                options.faults.crash = often(700, 60);
                options.faults.crash_all = if self == Terrain::Blackouts { 60 } else { 5 };
            }
            Terrain::Partitions => {
                focus(&mut options);
                options.world.paused = 300;
                options.world.pause_max = Micros::from_millis(600);
                options.faults.partition = often(500, 700);
                options.faults.pause = often(900, 700);
                options.faults.churn = often(700, 500);
            }
            Terrain::Deaf => {
                focus(&mut options);
                options.world.paused = 100;
                options.world.pause_max = Micros::from_millis(600);
                options.faults.deaf = often(900, 400);
            }
            Terrain::Restarts => {
                focus(&mut options);
                options.faults.partition = often(300, 500);
                options.faults.crash = often(250, 40);
                options.faults.crash_all = 0;
            }
            Terrain::Slow => {
                focus(&mut options);
                options.world.disk.sync_min = Micros::from_millis(10);
                options.world.disk.sync_max = Micros::from_millis(120);
                options.faults.partition = often(900, 900);
                options.faults.churn = often(500, 500);
            }
            Terrain::Stops => {
                focus(&mut options);
                options.world.disk.sync_min = Micros::from_millis(5);
                options.world.disk.sync_max = Micros::from_millis(60);
                options.world.network.delay_max = Micros::from_millis(20);
                options.faults.stop = often(400, 100);
                options.faults.partition = often(300, 500);
            }
            Terrain::Rot => {
                focus(&mut options);
                let (node, every_max) = (1, Micros::from_millis(300));
                options.faults.rot = Some(Rot { node, every_max, pages: 30, store: 0, crash: 50 });
                options.faults.partition = often(900, 700);
            }
            Terrain::Disks => {
                focus(&mut options);
                options.faults.wipe = often(5_000, 300);
                options.faults.old_copy = often(1_500, 100);
            }
            Terrain::Members => {
                focus(&mut options);
                options.world.nodes = options.world.nodes.max(4);
                options.faults.members = often(700, 100);
                options.faults.partition = often(2_000, 500);
                options.faults.crash = often(1_500, 300);
            }
            Terrain::Moves => move_shards(&mut options),
            Terrain::Copies => {
                focus(&mut options);
                options.world.settings.log_bytes_max = 1 << 9;
                options.world.settings.log_tail_bytes = 0;
                options.world.settings.log_tail_age = Micros(0);
                options.faults.crash = often(1_000, 700);
                options.faults.copy_crash = 5;
            }
            Terrain::Clocks => {
                focus(&mut options);
                options.faults.clock_jump = often(500, 500);
                options.faults.partition = often(1_500, 1_500);
                options.faults.crash = often(1_000, 300);
            }
            Terrain::Reads => {
                focus(&mut options);
                options.world.network.lost = 800;
                options.world.network.held = 300;
                options.world.network.held_max = Micros::from_millis(700);
                options.faults.partition = often(1_500, 500);
                options.workload.relaxed = 90;
            }
            Terrain::Late => {
                focus(&mut options);
                options.world.network.held = 2_000;
                options.world.network.held_max = Micros::from_secs(1);
                options.world.network.doubled = 5_000;
                options.world.network.lost = 500;
                options.faults.partition = often(1_500, 500);
                options.faults.churn = often(1_000, 500);
            }
        }
        options
    }
}

fn often(every: u64, span: u64) -> Option<Fault> {
    let (every_max, span_max) = (Micros::from_millis(every), Micros::from_millis(span));
    Some(Fault { every_max, span_max })
}

/// One group on all nodes, and more clients in a hurry on fewer keys: more happens between two that
/// may contradict each other. Of the faults only those that the terrain adds, and some crashes.
fn focus(options: &mut SwarmOptions) {
    let everywhere: Vec<usize> = (0..options.world.nodes).collect();
    options.groups = vec![everywhere];
    options.reconfiguration = None;
    options.pinned = false;
    options.workload.mixed = 6;
    options.workload.appending = 1;
    options.workload.keys = 2;
    options.workload.relaxed = 0;
    options.workload.value_bytes_max = 0;
    options.workload.think_max = Micros::from_millis(5);
    let power = options.faults.power;
    let crash = often(4_000, 1_000);
    options.faults = Faults { crash, power, ..Faults::default() };
}

fn move_shards(options: &mut SwarmOptions) {
    let everywhere: Vec<usize> = (0..options.world.nodes).collect();
    options.world.network.lost = 300;
    options.world.network.doubled = 300;
    let settings = &mut options.world.settings;
    settings.wal_bytes_max = 64 << 20;
    settings.handoff_part_bytes = 300;
    settings.handoff_left_bytes = 0;
    options.groups = vec![everywhere.clone(), everywhere.clone()];
    options.shards = 8;
    options.workload.think_max = Micros::from_millis(5);
    options.reconfiguration = Some(ReconfigurationOptions {
        groups: vec![everywhere],
        pause_max: Micros::from_millis(300),
        ambushed: 10,
    });
}

/// Runs a seed with a guard taken away, or with all in place; why it failed, if it did. A panic is
/// a failure like any other.
pub fn run(planted: Option<Mutant>, terrain: Terrain, seed: u64) -> Result<(), String> {
    let _planted = planted.map(mutant::plant);
    let run = || swarm::run_with::<Node>(seed, terrain.options(seed));
    match std::panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(run)) => Err(run.failed.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied());
            Err(format!("assertion: {}", text.unwrap_or("without a word")))
        }
    }
}

/// The check that a failure is of, in a word or two: the number of the invariant if it has one.
pub fn check_of(failure: &str) -> String {
    let text = failure.split_once(" s: ").map_or(failure, |(_, text)| text);
    let (assertion, text) = match text.strip_prefix("assertion: ") {
        Some(text) => ("assertion ", text),
        None => ("", text),
    };
    let number = |word: &str| {
        let digits = word.strip_prefix('I').unwrap_or("").trim_end_matches(':');
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    if let Some(word) = text.split_whitespace().find(|word| number(word)) {
        return format!("{assertion}{}", word.trim_end_matches(':'));
    }
    let word = WORDS.iter().find(|(words, _)| text.contains(words)).map(|(_, check)| *check);
    match (word, assertion) {
        (Some(check), _) => check.to_owned(),
        (None, "") => text.split_whitespace().take(6).collect::<Vec<_>>().join(" "),
        (None, _) => "assertion".to_owned(),
    }
}

/// What failures say that have no number.
const WORDS: [(&str, &str); 13] = [
    ("not linearizable", "linearizability"),
    ("is there twice", "elements"),
    ("was refused and is there", "elements"),
    ("nobody appended", "elements"),
    ("on its chain", "predictions"),
    ("of its own key", "predictions"),
    ("do not converge", "convergence"),
    ("the plan does not become true", "settling"),
    ("gave up", "a node gave up"),
    ("request was refused, and", "operator"),
    (": hand-off ", "copy unequal"),
    ("not answered", "liveness"),
    ("a read fails", "liveness"),
];

/// All mutants, by what they are about.
pub const AREAS: [(&str, &[Hunt]); 4] = [
    ("promises and votes", VOTES),
    ("leases and reads", LEASES),
    ("log and store", DISKS),
    ("sessions and shards", SHARDS),
];

const VOTES: &[Hunt] = &[
    hunt(Mutant::PromiseUnsynced, "paxos 11.2", Terrain::Crashes, 2_000_000, 150),
    hunt(Mutant::VoteUnsynced, "paxos 11.2", Terrain::Crashes, 1_000_000, 25),
    hunt(Mutant::OwnVoteUnsynced, "paxos 11.2", Terrain::Crashes, 2_000_000, 60),
    hunt(Mutant::OldBallotAccepted, "paxos 11.5", Terrain::Partitions, 1_000_002, 25),
    hunt(Mutant::PromiseDenies, "paxos 11.6", Terrain::Partitions, 2_000_000, 25),
    hunt(Mutant::LowestBallotWins, "paxos 11.6", Terrain::Partitions, 3_000_000, 60),
    hunt(Mutant::PromiseMissing, "paxos 11.6", Terrain::Partitions, 2_000_000, 25),
    hunt(Mutant::VoteMissing, "paxos 11.5", Terrain::Crashes, 3_000_000, 25),
    hunt(Mutant::AnnouncementBelieved, "paxos 11.5", Terrain::Partitions, 3_000_001, 60),
    hunt(Mutant::TruncationClaimed, "paxos 11.11", Terrain::Drawn, 1_000_000, 25),
    hunt(Mutant::CatchUpUnchosen, "paxos 11.11", Terrain::Partitions, 3_000_001, 150),
    hunt(Mutant::LearnerVotes, "paxos 11.8", Terrain::Members, 3_000_005, 150),
    hunt(Mutant::StopSignPassed, "paxos 11.8", Terrain::Members, 3_000_000, 25),
];

const LEASES: &[Hunt] = &[
    hunt(Mutant::LeaseBeforeBarrier, "paxos 11.7", Terrain::Slow, 1_000_000, 25),
    hunt(Mutant::LeaseEndless, "paxos 11.7", Terrain::Partitions, 1_000_000, 25),
    hunt(Mutant::GrantBroken, "paxos 11.7", Terrain::Partitions, 3_000_000, 25),
    hunt(Mutant::GrantForgotten, "paxos 11.7", Terrain::Restarts, 1_000_000, 25),
    hunt(Mutant::GrantFromAnswer, "paxos 11.7", Terrain::Partitions, 1_000_000, 60),
    hunt(Mutant::GrantFreedByAnyone, "paxos 11.7", Terrain::Restarts, 2_000_015, 150),
    hunt(Mutant::ReadUnconfirmed, "paxos 11.7", Terrain::Deaf, 2_000_001, 60),
    hunt(Mutant::FollowerReadUnapplied, "paxos 11.7", Terrain::Reads, 2_000_000, 25),
    hunt(Mutant::SequentialReadBehind, "paxos 11.7", Terrain::Reads, 1_000_000, 25),
    hunt(Mutant::BoundIgnored, "paxos 11.7", Terrain::Reads, 1_000_000, 25),
];

const DISKS: &[Hunt] = &[
    hunt(Mutant::QuarantineSkipped, "paxos 11.3", Terrain::Rot, 1_000_000, 25),
    hunt(Mutant::AppliedSlotLeftOut, "paxos 11.11", Terrain::Drawn, 1_000_000, 25),
    hunt(Mutant::LogForgottenEarly, "paxos 11.11", Terrain::Blackouts, 1_000_001, 25),
    hunt(Mutant::CopyWithoutSessions, "paxos 11.11", Terrain::Copies, 2_000_000, 25),
    hunt(Mutant::CopySlotAhead, "paxos 11.11", Terrain::Copies, 2_000_000, 60),
    hunt(Mutant::OldCopyAdmitted, "paxos 11.3", Terrain::Disks, 3_000_000, 25),
    hunt(Mutant::LostReplicaMade, "paxos 11.9", Terrain::Rot, 1_000_000, 25),
    hunt(Mutant::SegmentUnstated, "paxos 11.2", Terrain::Drawn, 1_000_008, 150),
    hunt(Mutant::SegmentReusedEarly, "paxos 11.3", Terrain::Crashes, 2_000_000, 60),
    hunt(Mutant::ChecksumUnchecked, "paxos 11.3", Terrain::Rot, 1_000_000, 25),
    hunt(Mutant::DamageTakenForTail, "paxos 11.3", Terrain::Rot, 2_000_000, 25),
];

const SHARDS: &[Hunt] = &[
    hunt(Mutant::SessionUnchecked, "sharding 11.12", Terrain::Drawn, 1_000_000, 25),
    hunt(Mutant::SessionsUnsettled, "sharding 11.12", Terrain::Drawn, 1_000_000, 25),
    hunt(Mutant::ExpiryByMemory, "sharding 11.12", Terrain::Clocks, 2_000_000, 60),
    hunt(Mutant::HorizonStays, "sharding 11.12", Terrain::Clocks, 2_000_001, 60),
    hunt(Mutant::OwnershipUnjudged, "sharding 11.14", Terrain::Moves, 2_000_000, 25),
    hunt(Mutant::ForeignShardRead, "sharding 11.14", Terrain::Moves, 3_000_000, 25),
    hunt(Mutant::SessionsStay, "sharding 11.14", Terrain::Moves, 1_000_000, 25),
    hunt(Mutant::DeltaLost, "sharding 11.14", Terrain::Moves, 1_000_001, 25),
    hunt(Mutant::FrozenTakenBack, "sharding 11.14", Terrain::Moves, 6_000_000, 25),
    hunt(Mutant::UnfreezeUnasked, "sharding 11.14", Terrain::Moves, 2_000_000, 150),
    hunt(Mutant::GiftUnasked, "sharding 11.14", Terrain::Moves, 1_000_000, 25),
    hunt(Mutant::DoneUnasked, "sharding 11.14", Terrain::Moves, 3_000_002, 25),
    hunt(Mutant::MasterSessionUnchecked, "sharding 11.13", Terrain::Moves, 1_000_000, 25),
    hunt(Mutant::OutcomeDenied, "sharding 11.12", Terrain::Drawn, 1_000_000, 150),
];

const fn hunt(
    mutant: Mutant,
    section: &'static str,
    terrain: Terrain,
    seed: u64,
    within: u64,
) -> Hunt {
    Hunt { mutant, section, terrain, seed, within }
}
