//! A log on a disk in memory, driven by hand, with what it must hold known beside it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};

use base::{DiskId, GroupId, Lsn, Random};
use storage::{
    MemoryDisk, Recovered, RecoveredRecord, Wal, WalCommand, WalError, WalOptions, execute,
};

/// The disk of all tests.
pub const DISK: DiskId = DiskId(0x0123_4567_89ab_cdef);

/// Tiny segments.
pub fn options(segment_pages: u64) -> WalOptions {
    WalOptions {
        segment_bytes: segment_pages * 4096,
        bytes_max: 64 * segment_pages * 4096,
        ..WalOptions::new(DISK)
    }
}

/// Opens the log of a disk, and gives all its records.
pub fn recover(
    disk: &mut MemoryDisk,
    options: &WalOptions,
) -> Result<(Wal, Vec<RecoveredRecord>), WalError> {
    let mut records = Vec::new();
    let (wal, found) = recover_all(disk, options)?;
    for found in found {
        match found {
            Recovered::Record(record) => records.push(record),
            Recovered::Damaged { .. } | Recovered::Lost { .. } => {}
        }
    }
    Ok((wal, records))
}

/// Opens the log of a disk, and gives all that it finds.
pub fn recover_all(
    disk: &mut MemoryDisk,
    options: &WalOptions,
) -> Result<(Wal, Vec<Recovered>), WalError> {
    let mut found = Vec::new();
    let wal = Wal::recover(disk, options.clone(), &mut |record| found.push(record))?;
    Ok((wal, found))
}

/// Appends a record whose content follows from its number.
pub fn append(wal: &mut Wal, group: u64, len: usize, state: bool) -> Lsn {
    let lsn = wal.next_lsn();
    let identity = identity(lsn);
    let content = content(lsn, len);
    let got = wal.append(GroupId(group), &identity, state, &mut |out| {
        out.extend_from_slice(&content);
    });
    assert_eq!(got, lsn);
    lsn
}

/// The identity of a record of these tests.
pub fn identity(lsn: Lsn) -> Vec<u8> {
    lsn.0.to_be_bytes().iter().cycle().take((lsn.0 % 41) as usize).copied().collect()
}

/// The content of a record of these tests.
pub fn content(lsn: Lsn, len: usize) -> Vec<u8> {
    (0..len).map(|i| (lsn.0 as usize * 31 + i * 7) as u8).collect()
}

/// Carries commands out at once, both orders, and reports them.
pub fn run(wal: &mut Wal, disk: &mut MemoryDisk, commands: Vec<WalCommand>) {
    let (background, foreground): (Vec<_>, Vec<_>) =
        commands.into_iter().partition(WalCommand::is_background);
    if let Some(ticket) = execute(disk, &foreground).unwrap() {
        wal.done(ticket);
    }
    if let Some(ticket) = execute(disk, &background).unwrap() {
        wal.prepared(ticket);
    }
}

/// Seals and carries out until nothing is left to do.
pub fn settle(wal: &mut Wal, disk: &mut MemoryDisk) {
    loop {
        let commands = wal.seal();
        if commands.is_empty() {
            assert!(wal.is_quiet());
            return;
        }
        run(wal, disk, commands);
    }
}

/// Where the last write of these commands went.
pub fn last_write(commands: &[WalCommand]) -> (String, u64, usize) {
    let writes = commands.iter().filter_map(|command| match command {
        WalCommand::Write { file, offset, bytes, .. } => Some((file.clone(), *offset, bytes.len())),
        WalCommand::Create { .. } | WalCommand::Remove { .. } => None,
    });
    writes.last().unwrap()
}

/// A node as the log sees one: it appends, waits, restates, lets go, crashes and starts again; and
/// beside it, what the log must not lose.
pub struct Model {
    pub options: WalOptions,
    pub disk: MemoryDisk,
    pub wal: Wal,
    pub random: Random,
    /// Every record appended and not lost: group, length, whether it is a state.
    records: BTreeMap<Lsn, (GroupId, usize, bool)>,
    synced: Lsn,
    keep: BTreeMap<GroupId, Lsn>,
    /// What was handed out and not yet carried out, in order.
    foreground: VecDeque<WalCommand>,
    background: VecDeque<WalCommand>,
    pub crashes: u64,
    pub let_go: u64,
    pub dropped: u64,
}

impl Model {
    pub fn new(seed: u64, options: WalOptions) -> Model {
        let mut disk = MemoryDisk::new();
        let (wal, records) = recover(&mut disk, &options).unwrap();
        assert!(records.is_empty());
        Model {
            options,
            disk,
            wal,
            random: Random::new(seed),
            records: BTreeMap::new(),
            synced: Lsn::ZERO,
            keep: BTreeMap::new(),
            foreground: VecDeque::new(),
            background: VecDeque::new(),
            crashes: 0,
            let_go: 0,
            dropped: 0,
        }
    }

    /// One random thing happens.
    pub fn step(&mut self) {
        match self.random.below(100) {
            0..40 => self.append(),
            40..60 => {
                let commands = self.wal.seal();
                self.submit(commands);
            }
            60..80 => self.carry_out(),
            80..84 => self.prepare(),
            84..87 => {
                let commands = self.wal.idle();
                self.submit(commands);
            }
            87..95 => self.release(),
            95..98 => self.read(),
            _ => self.restart(),
        }
    }

    fn append(&mut self) {
        let group = GroupId(self.random.below(4));
        let len = match self.random.below(40) {
            0 => self.random.below(90_000),
            1..5 => self.random.below(9_000),
            _ => self.random.below(300),
        };
        // What a node does when the log is full; states are let through.
        if !self.wal.is_full() {
            self.add(group, len as usize, false);
        }
        if self.random.chance(1, 3) {
            for group in self.wal.wants_state() {
                self.add(group, 20, true);
            }
        }
    }

    fn add(&mut self, group: GroupId, len: usize, state: bool) {
        let lsn = append(&mut self.wal, group.0, len, state);
        self.records.insert(lsn, (group, len, state));
    }

    fn submit(&mut self, commands: Vec<WalCommand>) {
        for command in commands {
            match command.is_background() {
                true => self.background.push_back(command),
                false => self.foreground.push_back(command),
            }
        }
    }

    fn carry_out(&mut self) {
        let count = self.random.below(self.foreground.len() as u64 + 1) as usize;
        // A ticket is done only when all its commands are.
        let tickets: Vec<_> = self.foreground.iter().map(WalCommand::ticket).collect();
        let last = count.checked_sub(1).map(|i| tickets[i]);
        let count = tickets.iter().filter(|ticket| Some(**ticket) <= last).count();
        let commands: Vec<_> = self.foreground.drain(..count).collect();
        if let Some(ticket) = execute(&mut self.disk, &commands).unwrap() {
            let synced = self.wal.done(ticket);
            assert!(synced >= self.synced, "durability only grows");
            self.synced = synced;
        }
    }

    fn prepare(&mut self) {
        let commands: Vec<_> = self.background.drain(..).collect();
        if let Some(ticket) = execute(&mut self.disk, &commands).unwrap() {
            self.wal.prepared(ticket);
        }
    }

    fn release(&mut self) {
        let group = GroupId(self.random.below(4));
        let low = self.keep.get(&group).copied().unwrap_or_default();
        let span = self.synced.0.saturating_sub(low.0);
        let keep = Lsn(low.0 + self.random.below(span + 1));
        self.keep.insert(group, keep);
        self.wal.keep_from(group, Some(keep));
    }

    /// Any record that is needed and durable can be read.
    fn read(&mut self) {
        let lsn = Lsn(self.random.between(1, self.wal.next_lsn().0));
        let found = self.wal.read(lsn);
        let kept = self.records.get(&lsn).is_some_and(|(group, _, state)| {
            !state && self.keep.get(group).is_none_or(|keep| lsn >= *keep)
        });
        let Some(read) = found else {
            assert!(!kept || lsn > self.synced, "{lsn} is needed and cannot be read");
            return;
        };
        assert!(lsn <= self.synced);
        let bytes = storage::Disk::read(&mut self.disk, &read.file, read.offset, read.len).unwrap();
        let (group, id, payload) = self.wal.parse(lsn, &bytes).unwrap();
        let (wanted, len, _) = self.records[&lsn];
        assert_eq!(
            (group, &id[..], &payload[..]),
            (wanted, &identity(lsn)[..], &content(lsn, len)[..])
        );
    }

    /// The power fails, or only the process, anywhere within what was under way.
    pub fn restart(&mut self) {
        self.crashes += 1;
        for queue in [&mut self.background, &mut self.foreground] {
            let count = self.random.below(queue.len() as u64 + 1) as usize;
            for command in queue.drain(..).take(count) {
                match command {
                    WalCommand::Write { file, offset, bytes, .. } => {
                        storage::Disk::write(&mut self.disk, &file, offset, &bytes).unwrap();
                    }
                    WalCommand::Create { .. } | WalCommand::Remove { .. } => {
                        execute(&mut self.disk, &[command]).unwrap();
                    }
                }
            }
        }
        if self.random.chance(3, 4) {
            self.disk.crash(&mut self.random, true);
        }
        self.check_start();
    }

    fn check_start(&mut self) {
        let (wal, found) = recover(&mut self.disk, &self.options).unwrap();
        assert!(!self.disk.is_dirty(), "a start leaves nothing that is not durable");
        self.dropped += u64::from(wal.report().dropped.is_some());
        let next = wal.next_lsn();
        assert!(next > self.synced, "durable through {}, next is {next}", self.synced);
        let first = found.first().map_or(next, |record| record.lsn);
        self.let_go = self.let_go.max(first.0 - 1);
        let mut expected = first;
        for record in &found {
            assert_eq!(record.lsn, expected, "numbers follow each other");
            expected = expected.next();
            let (group, len, state) = self.records[&record.lsn];
            assert_eq!((record.group, record.state), (group, state));
            assert_eq!(record.identity[..], identity(record.lsn)[..]);
            assert!(record.payload[..] == content(record.lsn, len)[..]);
        }
        assert_eq!(expected, next);
        self.check_let_go(first);
        self.records.retain(|lsn, _| *lsn < next);
        self.synced = wal.synced();
        assert_eq!(self.synced.next(), next);
        self.wal = wal;
        let keep: Vec<_> = self.keep.iter().map(|(group, lsn)| (*group, *lsn)).collect();
        for (group, lsn) in keep {
            self.wal.keep_from(group, Some(lsn));
        }
    }

    /// Of what is gone from the front, nothing was needed, and each group's state stands.
    fn check_let_go(&self, first: Lsn) {
        let mut gone = BTreeMap::new();
        for (lsn, (group, _, state)) in self.records.range(..first) {
            gone.insert(*group, ());
            let keep = self.keep.get(group).copied().unwrap_or_default();
            assert!(*state || *lsn < keep, "{lsn} of {group} was needed from {keep} on");
        }
        for group in gone.keys() {
            let mut left = self.records.range(first..=self.synced);
            assert!(left.any(|(_, (g, _, state))| g == group && *state), "{group} lost its state");
        }
    }
}
