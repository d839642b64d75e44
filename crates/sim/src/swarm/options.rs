//! What a run is made of, drawn from its seed.

use base::limits::CLOCK_DRIFT_PPM;
use base::{Micros, Random};

use crate::disk::DiskOptions;
use crate::guest::Settings;
use crate::network::NetworkOptions;
use crate::reconfiguration::ReconfigurationOptions;
use crate::workload::WorkloadOptions;
use crate::world::WorldOptions;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct SwarmOptions {
    /// The world while faults happen.
    pub world: WorldOptions,
    /// The clients.
    pub workload: WorkloadOptions,
    /// Shards of the cluster.
    pub shards: u16,
    /// The data groups, by the places of their nodes.
    pub groups: Vec<Vec<usize>>,
    /// What an operator does meanwhile, if there is one.
    pub reconfiguration: Option<ReconfigurationOptions>,
    /// The faults.
    pub faults: Faults,
    /// How long faults happen.
    pub span: Micros,
    /// The clients' deadline.
    pub timeout: Micros,
    /// Whether each client talks to one node only.
    pub pinned: bool,
}

/// How often something goes wrong, and for how long; a kind that is none never does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Partitions, whole, one-way or of single links.
    pub partition: Option<Fault>,
    /// Crashes.
    pub crash: Option<Fault>,
    /// Of a hundred crashes so many take all nodes at once.
    pub crash_all: u64,
    /// Whether crashes lose power; else the processes are killed.
    pub power: bool,
    /// Long pauses of one node.
    pub pause: Option<Fault>,
    /// One node's disk becomes slow.
    pub slow_disk: Option<Fault>,
    /// One node's wall clock jumps by up to an hour.
    pub clock_jump: Option<Fault>,
    /// One node's disk fails a read, a write or a sync; the node is started again on what is left.
    pub disk_error: Option<Fault>,
    /// One node's disk is full for a while.
    pub disk_full: Option<Fault>,
    /// One node is stopped in good order.
    pub stop: Option<Fault>,
    /// Of a hundred steps of copies that replicas take of others' states, so many are the last of
    /// the replica's node, or of another.
    pub copy_crash: u64,
    /// One node's disk, always the same one's, loses bits or pages of its log, or records of its
    /// store.
    pub rot: Option<Rot>,
    /// A node finds an empty disk in place of its own.
    pub wipe: Option<Fault>,
    /// A node is started on an old copy of its disk.
    pub old_copy: Option<Fault>,
    /// Some nodes are cut off one after the other, and come back in another order.
    pub clog: Option<Fault>,
    /// The leader of some group pauses for as long as it takes to elect another.
    pub churn: Option<Fault>,
    /// Of a hundred full disks so many are those of all nodes.
    pub full_all: u64,
    /// Of a hundred slow disks so many hardly move.
    pub stalled: u64,
    /// A node's replicas go elsewhere: the longest time from one to the next.
    pub members: Option<Fault>,
    /// A node is to end when it next comes to some crash point.
    pub point: Option<Fault>,
}

/// How a disk is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rot {
    /// The node.
    pub node: usize,
    /// The longest time from one damage to the next.
    pub every_max: Micros,
    /// Of a hundred so many take a whole page of the log.
    pub pages: u64,
    /// Of a hundred so many take a record of the store.
    pub store: u64,
    /// Of a hundred so many are followed by a crash of the node.
    pub crash: u64,
}

/// How often one kind of fault happens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The longest time from one to the next.
    pub every_max: Micros,
    /// The longest time that it lasts.
    pub span_max: Micros,
}

impl SwarmOptions {
    /// The options of a seed.
    pub fn draw(seed: u64) -> SwarmOptions {
        let mut random = Random::new(seed);
        let r = &mut random;
        let nodes = if r.chance(1, 4) { 5 } else { 3 };
        let count = r.between(1, 3) as usize;
        let groups = (0..count).map(|_| draw_group(r, nodes)).collect();
        let mut options = SwarmOptions {
            world: draw_world(r, nodes),
            workload: WorkloadOptions {
                mixed: r.between(1, 4) as usize,
                appending: r.between(0, 2) as usize,
                chaining: r.between(0, 2) as usize,
                owning: 0,
                keys: r.between(2, 9) as usize,
                think_max: Micros::from_millis(r.between(5, 100)),
                relaxed: if r.chance(2, 3) { r.between(10, 80) } else { 0 },
                value_bytes_max: if r.chance(1, 3) { r.between(1, 20_000) } else { 0 },
            },
            shards: 1 << r.between(2, 6),
            groups,
            reconfiguration: None,
            faults: Faults::draw(r),
            span: Micros::from_secs(r.between(20, 24)),
            timeout: Micros::from_millis(r.between(3_000, 15_000)),
            pinned: r.chance(1, 4),
        };
        if r.chance(2, 3) {
            // Few shards, so that keys move often.
            options.shards = 1 << r.between(2, 5);
            let wal = &mut options.world.settings.wal_bytes_max;
            *wal = (*wal).max(WAL_BYTES_MIN);
            let settings = &mut options.world.settings;
            if r.chance(2, 3) {
                // Copies of several chunks and deltas, however little there is.
                settings.handoff_part_bytes = r.between(1, 2_000) as usize;
                settings.handoff_left_bytes =
                    if r.chance(1, 2) { 0 } else { r.between(1, 1_000) as usize };
            }
            if r.chance(1, 3) {
                // Writes in a hurry, so that there is something to send behind a copy.
                options.workload.think_max = Micros::from_millis(r.between(2, 10));
            }
            options.reconfiguration = Some(ReconfigurationOptions {
                groups: (0..r.between(1, 2)).map(|_| draw_group(r, nodes)).collect(),
                pause_max: Micros::from_millis(r.between(100, 4_000)),
                ambushed: if r.chance(1, 2) { r.between(1, 20) } else { 0 },
            });
        }
        options.draw_rot(seed);
        options.draw_log(seed);
        options.draw_losses(seed);
        options.draw_rest(seed);
        options
    }

    /// Whether some group does not survive the loss of a disk.
    fn has_small_group(&self) -> bool {
        let more = self.reconfiguration.iter().flat_map(|r| &r.groups);
        self.groups.iter().chain(more).any(|group| group.len() < 3)
    }

    /// Takes disks away in some runs, and in some lets replicas go to other nodes.
    fn draw_losses(&mut self, seed: u64) {
        let r = &mut Random::new(seed ^ 0x6c6f_7373);
        let (small, every, span) = (self.has_small_group(), 12_000, 4_000);
        let fault = draw_fault(r, every, span);
        self.faults.wipe = (r.chance(1, 3) && !small).then_some(fault);
        let fault = draw_fault(r, every, span);
        self.faults.old_copy = (r.chance(1, 4) && !small).then_some(fault);
        let fault = draw_fault(r, every, span);
        if r.chance(1, 3) {
            self.faults.members = Some(fault);
            // Somewhere to go to.
            self.world.nodes = self.world.nodes.max(4);
        }
    }

    fn draw_rest(&mut self, seed: u64) {
        let r = &mut Random::new(seed ^ 0x7265_7374);
        let fault = draw_fault(r, 10_000, 3_000);
        self.faults.clog = r.chance(1, 5).then_some(fault);
        let fault = draw_fault(r, 3_000, 800);
        self.faults.churn = r.chance(1, 6).then_some(fault);
        self.faults.full_all = if r.chance(1, 3) { r.between(1, 60) } else { 0 };
        self.faults.stalled = if r.chance(1, 2) { r.between(10, 80) } else { 0 };
        if r.chance(1, 8) {
            self.world.network.lost = r.between(1_000, 3_000);
            self.world.network.doubled = r.between(0, 5_000);
        }
        let fault = draw_fault(r, 3_000, 3_000);
        self.faults.point = r.chance(1, 2).then_some(fault);
    }

    /// Lets logs be short, so that replicas need copies of others' states.
    fn draw_log(&mut self, seed: u64) {
        let r = &mut Random::new(seed ^ 0x6c6f_6700);
        let settings = &mut self.world.settings;
        if r.chance(1, 2) {
            settings.log_bytes_max = 1 << r.between(8, 16);
        }
        if r.chance(1, 2) {
            settings.log_tail_bytes = r.between(0, 20_000) as usize;
            settings.log_tail_age = Micros::from_millis(r.between(0, 3_000));
        }
        settings.snapshot_part_bytes = 1 << r.between(6, 14);
        if r.chance(1, 2) {
            self.faults.copy_crash = r.between(1, 30);
        }
    }

    /// Damages a disk in some runs, where every group has two more replicas that are whole.
    fn draw_rot(&mut self, seed: u64) {
        let r = &mut Random::new(seed ^ 0x726f_7400);
        if !r.chance(1, 4) || self.has_small_group() {
            return;
        }
        self.faults.rot = Some(Rot {
            node: r.below(self.world.nodes as u64) as usize,
            every_max: Micros::from_millis(r.between(200, 8_000)),
            pages: if r.chance(1, 3) { r.between(1, 50) } else { 0 },
            store: if r.chance(1, 3) { r.between(1, 50) } else { 0 },
            crash: r.between(0, 60),
        });
    }
}

fn draw_fault(r: &mut Random, every: u64, span: u64) -> Fault {
    Fault {
        every_max: Micros::from_millis(r.between(every / 4, every)),
        span_max: Micros::from_millis(r.between(span / 20, span)),
    }
}

fn draw_group(random: &mut Random, nodes: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..nodes).collect();
    random.shuffle(&mut places);
    if nodes == 5 && random.chance(1, 2) {
        places.truncate(3);
    }
    if random.chance(1, 20) {
        places.truncate(1);
    }
    places
}

fn draw_world(r: &mut Random, nodes: usize) -> WorldOptions {
    let delay_min = r.between(50, 500);
    let longer = if r.chance(1, 4) { 20_000 } else { 1_000 };
    let delay_max = delay_min + r.between(100, longer);
    let sync_min = r.between(50, 500);
    WorldOptions {
        nodes,
        masters: 3,
        settings: Settings {
            segment_bytes: 64 << 10,
            wal_bytes_max: if r.chance(1, 4) { r.between(8, 24) * (64 << 10) } else { 64 << 20 },
            // With less, one slot of a message is taken each time that it is sent.
            tail_bytes_max: if r.chance(1, 2) {
                r.between(2_000, 50_000) as usize
            } else {
                1 << 24
            },
            overlay_bytes_max: 1 << r.between(12, 20),
            overlay_idle: Micros::from_millis(r.between(100, 1_000)),
            overlay_age_max: Micros::from_millis(r.between(500, 5_000)),
            log_bytes_max: 64 << 20,
            log_tail_bytes: 0,
            log_tail_age: Micros(0),
            snapshot_part_bytes: 16 << 10,
            snapshot_bytes_per_second: 32 << 20,
            handoff_part_bytes: 512 << 10,
            handoff_left_bytes: 256 << 10,
        },
        network: NetworkOptions {
            delay_min: Micros(delay_min),
            delay_max: Micros(delay_max),
            lost: if r.chance(1, 2) { r.between(1, 1_000) } else { 0 },
            doubled: if r.chance(1, 2) { r.between(1, 1_000) } else { 0 },
            held: if r.chance(1, 2) { r.between(1, 300) } else { 0 },
            held_max: Micros::from_millis(r.between(10, 1_000)),
        },
        disk: DiskOptions {
            sync_min: Micros(sync_min),
            sync_max: Micros(sync_min + r.between(100, 5_000)),
            stalled: if r.chance(1, 2) { r.between(1, 200) } else { 0 },
            stall_max: Micros::from_millis(r.between(10, 400)),
            flush_max: Micros::from_millis(r.between(1, 200)),
            tear: r.chance(1, 2),
        },
        tick: Micros::from_millis(r.between(5, 12)),
        drift_max: if r.chance(1, 2) { r.between(1, CLOCK_DRIFT_PPM) } else { 0 },
        wall_offset_max: r.between(0, 5_000),
        paused: if r.chance(1, 2) { r.between(1, 100) } else { 0 },
        pause_max: Micros::from_millis(r.between(1, 300)),
        attempt_timeout: Micros::from_secs(1),
        log_lines: 200,
    }
}

impl Faults {
    pub(super) fn draw(r: &mut Random) -> Faults {
        let mut fault = |chances: u64, every: u64, span: u64| {
            let (every, span) = (r.between(every / 8, every), r.between(span / 20, span));
            let fault = Fault {
                every_max: Micros::from_millis(every),
                span_max: Micros::from_millis(span),
            };
            r.chance(chances, 10).then_some(fault)
        };
        Faults {
            partition: fault(6, 8_000, 4_000),
            crash: fault(6, 8_000, 4_000),
            pause: fault(3, 8_000, 3_000),
            slow_disk: fault(3, 8_000, 4_000),
            clock_jump: fault(2, 8_000, 5_000),
            disk_error: fault(2, 8_000, 2_000),
            disk_full: fault(2, 8_000, 4_000),
            stop: fault(3, 8_000, 2_000),
            rot: None,
            wipe: None,
            old_copy: None,
            clog: None,
            churn: None,
            full_all: 0,
            stalled: 0,
            members: None,
            point: None,
            copy_crash: 0,
            crash_all: if r.chance(1, 2) { 20 } else { 0 },
            power: r.chance(2, 3),
        }
    }
}

/// Where there are many groups, the least bytes at which a log is full: each group keeps something
/// of its own in it.
const WAL_BYTES_MIN: u64 = 8 * (64 << 10);
