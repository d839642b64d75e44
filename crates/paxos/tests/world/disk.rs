//! The disk of a replica: what was written, what of it survives a crash, and what it then says.

use std::collections::BTreeMap;

use base::{Lsn, Slot};
use bytes::Bytes;
use paxos::{Ballot, Record, Value};

/// The write-ahead log of one replica: encoded records with their positions.
#[derive(Default)]
pub struct Disk {
    /// What was written: position, identity, payload.
    pub records: Vec<(Lsn, Vec<u8>, Bytes)>,
    /// Records up to here survive a crash.
    pub synced: Lsn,
    /// The last position given out; positions may have gaps, which other groups use.
    pub last: Lsn,
}

impl Disk {
    pub fn decode(&self) -> impl Iterator<Item = (Lsn, Record)> + '_ {
        self.records
            .iter()
            .map(|(lsn, identity, payload)| (*lsn, Record::decode(identity, payload).unwrap()))
    }

    fn synced_records(&self) -> impl Iterator<Item = Record> + '_ {
        self.decode().filter(|(lsn, _)| *lsn <= self.synced).map(|(_, record)| record)
    }

    /// The highest promise that is on the disk.
    pub fn promised(&self) -> Ballot {
        self.synced_records()
            .map(|record| match record {
                Record::Promise { ballot } | Record::Entries { ballot, .. } => ballot,
                Record::GroupState { promised, .. } => promised,
                Record::Epoch { members } => members.first_ballot(),
                Record::GroupCreate { .. }
                | Record::ChosenHint { .. }
                | Record::GroupDestroy
                | Record::Quarantine
                | Record::Mended { .. }
                | Record::Snapshot { .. }
                | Record::StoreLost => Ballot::ZERO,
            })
            .max()
            .unwrap_or_default()
    }

    /// What is accepted on the disk.
    pub fn entries(&self) -> BTreeMap<Slot, (Ballot, Value)> {
        let mut entries = BTreeMap::new();
        for record in self.synced_records() {
            if let Record::Entries { first, ballot, values } = record {
                for (slot, value) in (first.0..).map(Slot).zip(values) {
                    entries.insert(slot, (ballot, value));
                }
            }
        }
        entries
    }

    /// The slots that the disk may have dropped.
    pub fn truncated(&self) -> Slot {
        let truncated = self.synced_records().map(|record| match record {
            Record::GroupState { truncated_upto, .. } => truncated_upto,
            Record::Snapshot { slot } => slot,
            Record::Promise { .. }
            | Record::Entries { .. }
            | Record::GroupCreate { .. }
            | Record::Epoch { .. }
            | Record::GroupDestroy
            | Record::Quarantine
            | Record::Mended { .. }
            | Record::StoreLost
            | Record::ChosenHint { .. } => Slot::ZERO,
        });
        truncated.max().unwrap_or_default()
    }
}
