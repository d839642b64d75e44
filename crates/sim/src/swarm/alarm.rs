//! The alarms by which a run wakes itself.

/// The alarms of a run.
#[derive(Clone, Copy)]
pub(super) enum Alarm {
    Partition,
    Heal,
    Crash,
    Restart(usize),
    Pause,
    SlowDisk,
    QuickDisk(usize),
    ClockJump,
    ClockBack(usize),
    Work(usize),
    DiskError,
    DiskFull,
    DiskRoom(usize),
    Operate,
    Stop,
    Rot,
    Wipe,
    TakeImage,
    OldCopy,
    Members,
    Clog,
    Clogged(usize),
    Freed(usize),
    Churn,
    Tend,
    Point,
}

impl Alarm {
    pub(super) fn number(self) -> u64 {
        let (kind, index) = match self {
            Alarm::Partition => (0, 0),
            Alarm::Heal => (1, 0),
            Alarm::Crash => (2, 0),
            Alarm::Restart(node) => (3, node),
            Alarm::Pause => (4, 0),
            Alarm::SlowDisk => (5, 0),
            Alarm::QuickDisk(node) => (6, node),
            Alarm::ClockJump => (7, 0),
            Alarm::ClockBack(node) => (8, node),
            Alarm::Work(worker) => (9, worker),
            Alarm::DiskError => (10, 0),
            Alarm::DiskFull => (11, 0),
            Alarm::DiskRoom(node) => (12, node),
            Alarm::Operate => (13, 0),
            Alarm::Stop => (14, 0),
            Alarm::Rot => (15, 0),
            Alarm::Wipe => (16, 0),
            Alarm::TakeImage => (17, 0),
            Alarm::OldCopy => (18, 0),
            Alarm::Members => (19, 0),
            Alarm::Clog => (20, 0),
            Alarm::Clogged(node) => (21, node),
            Alarm::Freed(node) => (22, node),
            Alarm::Churn => (23, 0),
            Alarm::Tend => (24, 0),
            Alarm::Point => (25, 0),
        };
        kind * 1_000 + index as u64
    }

    pub(super) fn of(number: u64) -> Option<Alarm> {
        let index = (number % 1_000) as usize;
        Some(match number / 1_000 {
            0 => Alarm::Partition,
            1 => Alarm::Heal,
            2 => Alarm::Crash,
            3 => Alarm::Restart(index),
            4 => Alarm::Pause,
            5 => Alarm::SlowDisk,
            6 => Alarm::QuickDisk(index),
            7 => Alarm::ClockJump,
            8 => Alarm::ClockBack(index),
            9 => Alarm::Work(index),
            10 => Alarm::DiskError,
            11 => Alarm::DiskFull,
            12 => Alarm::DiskRoom(index),
            13 => Alarm::Operate,
            14 => Alarm::Stop,
            15 => Alarm::Rot,
            16 => Alarm::Wipe,
            17 => Alarm::TakeImage,
            18 => Alarm::OldCopy,
            19 => Alarm::Members,
            20 => Alarm::Clog,
            21 => Alarm::Clogged(index),
            22 => Alarm::Freed(index),
            23 => Alarm::Churn,
            24 => Alarm::Tend,
            25 => Alarm::Point,
            _ => return None,
        })
    }
}
