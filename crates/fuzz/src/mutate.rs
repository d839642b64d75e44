//! Changes inputs, in a way that follows from a seed. Bytes at random seldom get past the first
//! length that is read; so a story is changed as a story, and what is CBOR as CBOR.

mod cbor;

use base::Random;

use crate::items::{self, Item};

/// How a target's inputs are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Of items.
    Items,
    /// Not at all.
    Raw,
}

/// Something like `input`, perhaps with parts of `other`, of at most so many bytes.
pub fn mutate(
    layout: Layout,
    input: &[u8],
    other: &[u8],
    bytes_max: usize,
    random: &mut Random,
) -> Vec<u8> {
    let mut changed = match layout {
        Layout::Items => {
            let mut items = items::split(input);
            for _ in 0..=random.below(3) {
                change_items(&mut items, other, random);
            }
            items::join(&items)
        }
        Layout::Raw => {
            let mut bytes = input.to_vec();
            for _ in 0..=random.below(3) {
                change_bytes(&mut bytes, other, random);
            }
            bytes
        }
    };
    changed.truncate(bytes_max);
    changed
}

fn change_items(story: &mut Vec<Item>, other: &[u8], random: &mut Random) {
    let place = random.below(story.len().max(1) as u64) as usize;
    match random.below(12) {
        0 if !story.is_empty() => drop(story.remove(place)),
        1 if !story.is_empty() => {
            let again = story[place].clone();
            story.insert(random.below(story.len() as u64 + 1) as usize, again);
        }
        2 if !story.is_empty() => {
            let with = random.below(story.len() as u64) as usize;
            story.swap(place, with);
        }
        3 => {
            let theirs = items::split(other);
            if let Some(item) = random.pick(&theirs) {
                story.insert(place.min(story.len()), item.clone());
            }
        }
        4 => {
            let theirs = items::split(other);
            let from = random.below(theirs.len() as u64 + 1) as usize;
            story.truncate(place);
            story.extend_from_slice(&theirs[from..]);
        }
        5 if !story.is_empty() => story[place].kind = small_or_any(random),
        _ if !story.is_empty() => {
            let theirs = items::split(other);
            let part = random.pick(&theirs).map(|item| item.bytes.clone()).unwrap_or_default();
            change_bytes(&mut story[place].bytes, &part, random);
        }
        _ => story.push(Item { kind: small_or_any(random), bytes: Vec::new() }),
    }
}

fn small_or_any(random: &mut Random) -> u8 {
    if random.chance(3, 4) { random.below(8) as u8 } else { random.next_u64() as u8 }
}

/// Changes bytes: as CBOR where they are such, most of the time.
fn change_bytes(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if random.chance(3, 4)
        && let Some(changed) = cbor::change(bytes, other, random)
    {
        *bytes = changed;
        return;
    }
    let len = bytes.len();
    let at = random.below(len as u64 + 1) as usize;
    let span = 1 + random.below(16) as usize;
    match random.below(8) {
        0 if at < len => bytes[at] ^= 1 << random.below(8),
        1 if at < len => bytes[at] = random.next_u64() as u8,
        2 => {
            let number = interesting(random).to_be_bytes();
            put_number(bytes, at, number, random);
        }
        3 => {
            // The number that stands there, a little more or less.
            let width = 1 << random.below(4);
            let Some(field) = bytes.get_mut(at..at + width) else { return };
            let mut number = [0; 8];
            number[8 - width..].copy_from_slice(field);
            let step = 1 + random.below(4);
            let found = u64::from_be_bytes(number);
            let number = if random.chance(1, 2) {
                found.wrapping_add(step)
            } else {
                found.wrapping_sub(step)
            };
            field.copy_from_slice(&number.to_be_bytes()[8 - width..]);
        }
        4 => drop(bytes.drain(at..(at + span).min(len))),
        5 => {
            let part = bytes[at..(at + span).min(len)].to_vec();
            let to = random.below(len as u64 + 1) as usize;
            bytes.splice(to..to, part);
        }
        6 if !other.is_empty() => {
            let from = random.below(other.len() as u64) as usize;
            let part = other[from..(from + span).min(other.len())].to_vec();
            let end = if random.chance(1, 2) { (at + part.len()).min(len) } else { at };
            bytes.splice(at..end, part);
        }
        _ => bytes.truncate(at),
    }
}

/// Writes a number of some width over what stands at a place.
fn put_number(bytes: &mut [u8], at: usize, number: [u8; 8], random: &mut Random) {
    let width = 1 << random.below(4);
    let Some(field) = bytes.get_mut(at..at + width) else { return };
    field.copy_from_slice(&number[8 - width..]);
    if random.chance(1, 2) {
        field.reverse();
    }
}

/// A number at which things end.
pub(crate) fn interesting(random: &mut Random) -> u64 {
    match random.below(5) {
        0 => random.below(5),
        1 => u64::MAX - random.below(3),
        2 => (1 << random.below(64)) - random.below(2),
        3 => 1 << random.below(64),
        _ => random.next_u64() >> random.below(64),
    }
}
