//! Records survive the way to the log and back, and nothing else passes for one.

use base::{DiskId, NodeId};

use super::*;
use crate::members::Member;

fn samples() -> Vec<Record> {
    let member = |id| Member { replica: ReplicaId(id), node: NodeId(id), disk: DiskId(7) };
    let members = Members::new(vec![member(1), member(2), member(3)]).unwrap();
    let next = members.next(Slot(8), vec![member(2), member(4)], ReplicaId(4)).unwrap();
    let ballot = Ballot { epoch: 1, round: 4, replica: ReplicaId(2) };
    let command = |trace, payload: &'static [u8]| {
        let payload = Bytes::from_static(payload);
        Value::Command(Command { time: WallMillis(5), trace, payload })
    };
    vec![
        Record::GroupCreate { replica: ReplicaId(1), members: members.clone() },
        Record::Promise { ballot },
        Record::Entries {
            first: Slot(9),
            ballot,
            values: vec![
                command(None, b"one"),
                Value::Noop,
                command(Some(TraceId(8)), b""),
                Value::Done(2),
                Value::Stop(next.clone()),
                command(None, b"the last"),
            ],
        },
        Record::Epoch { members: next.clone() },
        Record::GroupDestroy,
        Record::GroupState {
            replica: ReplicaId(1),
            members,
            promised: ballot,
            chosen_upto: Slot(8),
            truncated_upto: Slot(3),
            done: 2,
            quarantined: true,
            store_lost: true,
            all_upto: Slot(2),
        },
        Record::Quarantine,
        Record::StoreLost,
        Record::Snapshot { slot: Slot(4) },
        Record::Mended { first: Lsn(7), last: Lsn(9) },
        Record::ChosenHint { upto: Slot(8) },
    ]
}

fn payload(record: &Record) -> Bytes {
    let mut out = Vec::new();
    record.encode_payload(&mut out);
    Bytes::from(out)
}

#[test]
fn records_come_back_as_they_were() {
    for record in samples() {
        let back = Record::decode(record.identity().as_bytes(), &payload(&record));
        assert_eq!(back, Ok(record));
    }
}

#[test]
fn one_value_of_a_run_shares_the_payload() {
    for record in samples() {
        let bytes = payload(&record);
        if let Record::Entries { values, .. } = record {
            for (index, value) in values.iter().enumerate() {
                assert_eq!(Record::decode_value(&bytes, index as u32).as_ref(), Ok(value));
            }
            let Ok(Value::Command(last)) = Record::decode_value(&bytes, 5) else {
                panic!("the last value is a command");
            };
            assert!(bytes.as_ptr_range().contains(&last.payload.as_ptr()));
            assert!(Record::decode_value(&bytes, 6).is_err());
        }
    }
}

#[test]
fn cut_longer_and_unknown_records_are_errors() {
    for record in samples() {
        let identity = record.identity();
        let bytes = payload(&record);
        for cut in 0..bytes.len() {
            assert!(Record::decode(identity.as_bytes(), &bytes.slice(..cut)).is_err());
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Record::decode(identity.as_bytes(), &Bytes::from(longer)).is_err());
        assert!(Record::decode(&identity.as_bytes()[1..], &bytes).is_err());
        let mut unknown = identity.as_bytes().to_vec();
        unknown[0] = 77;
        assert!(Record::decode(&unknown, &bytes).is_err());
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let mut random = base::Random::new(11);
    for record in samples() {
        for _ in 0..2_000 {
            let mut identity = record.identity().as_bytes().to_vec();
            let mut bytes = payload(&record).to_vec();
            let at = random.below((identity.len() + bytes.len()) as u64) as usize;
            let value = random.next_u64() as u8;
            match identity.len() {
                length if at < length => identity[at] = value,
                length => bytes[at - length] = value,
            }
            let _ = Record::decode(&identity, &Bytes::from(bytes));
        }
    }
}
