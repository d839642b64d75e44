//! The classes of faults.

/// What is done to processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OfProcess {
    KillOne,
    KillSome,
    KillAll,
    Restarts,
    Stop,
    Pause,
}

/// What is done to links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OfLink {
    Lossy,
    Partition,
    Isolated,
    OneWay,
    Partial,
    Swizzle,
    Flapping,
    Swallowed,
    Late,
    Narrow,
    Reset,
    Programs,
}

/// What is done to the contents of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OfDisk {
    RotLog,
    RotStore,
    OldCopy,
    Wipe,
}

/// What disks do to running nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OfRoom {
    Full,
    Slow,
    Stalled,
}

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Process(OfProcess),
    Link(OfLink),
    Disk(OfDisk),
    Room(OfRoom),
}

impl Class {
    /// All, each with how often it is drawn in comparison with the others.
    pub(crate) const ALL: [(Class, u64); 25] = [
        (Class::Process(OfProcess::KillOne), 8),
        (Class::Process(OfProcess::KillSome), 4),
        (Class::Process(OfProcess::KillAll), 2),
        (Class::Process(OfProcess::Restarts), 3),
        (Class::Process(OfProcess::Stop), 5),
        (Class::Process(OfProcess::Pause), 8),
        (Class::Link(OfLink::Lossy), 4),
        (Class::Link(OfLink::Partition), 5),
        (Class::Link(OfLink::Isolated), 5),
        (Class::Link(OfLink::OneWay), 6),
        (Class::Link(OfLink::Partial), 4),
        (Class::Link(OfLink::Swizzle), 3),
        (Class::Link(OfLink::Flapping), 4),
        (Class::Link(OfLink::Swallowed), 3),
        (Class::Link(OfLink::Late), 4),
        (Class::Link(OfLink::Narrow), 3),
        (Class::Link(OfLink::Reset), 6),
        (Class::Link(OfLink::Programs), 4),
        (Class::Disk(OfDisk::RotLog), 3),
        (Class::Disk(OfDisk::RotStore), 3),
        (Class::Disk(OfDisk::OldCopy), 6),
        (Class::Disk(OfDisk::Wipe), 5),
        (Class::Room(OfRoom::Full), 3),
        (Class::Room(OfRoom::Slow), 4),
        (Class::Room(OfRoom::Stalled), 4),
    ];

    /// Its name, which begins with the id of its class where there is one.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Process(OfProcess::KillOne) => "F01 one killed",
            Class::Process(OfProcess::KillSome) => "F01 some killed",
            Class::Process(OfProcess::KillAll) => "F02 all killed",
            Class::Process(OfProcess::Restarts) => "F03 killed again and again",
            Class::Process(OfProcess::Stop) => "stopped in good order",
            Class::Process(OfProcess::Pause) => "F09 stopped by SIGSTOP",
            Class::Link(OfLink::Lossy) => "F04 frames lost, doubled, exchanged",
            Class::Link(OfLink::Late) => "F04 frames late",
            Class::Link(OfLink::Partition) => "F05 partition",
            Class::Link(OfLink::Isolated) => "F05 one cut off",
            Class::Link(OfLink::Flapping) => "F05 links come and go",
            Class::Link(OfLink::OneWay) => "F06 cut one way",
            Class::Link(OfLink::Swallowed) => "F06 frames swallowed",
            Class::Link(OfLink::Partial) => "F07 partial connectivity",
            Class::Link(OfLink::Swizzle) => "F08 cut off in turn",
            Class::Link(OfLink::Narrow) => "F16 narrow links",
            Class::Link(OfLink::Reset) => "connections broken within a frame",
            Class::Link(OfLink::Programs) => "links of programs",
            Class::Disk(OfDisk::RotLog) => "F11 log damaged",
            Class::Disk(OfDisk::RotStore) => "F11 store damaged",
            Class::Disk(OfDisk::OldCopy) => "F13 old copy of a disk",
            Class::Disk(OfDisk::Wipe) => "F14 disk lost",
            Class::Room(OfRoom::Full) => "F15 full disk",
            Class::Room(OfRoom::Slow) => "F16 slow disk",
            Class::Room(OfRoom::Stalled) => "F16 stalled disk",
        }
    }
}
