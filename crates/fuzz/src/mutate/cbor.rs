//! Changes what is CBOR, and leaves it CBOR.

use base::Random;

use super::{change_bytes, interesting};

/// A value, as far as it matters here.
#[derive(Clone, Debug)]
enum Value {
    Number {
        negative: bool,
        number: u64,
    },
    Bytes(Vec<u8>),
    Text(Vec<u8>),
    Array(Vec<Value>),
    /// Keys and values in turn.
    Map(Vec<Value>),
    Tag(u64, Box<Value>),
    /// False, true, null and the like.
    Simple(u8),
}

/// Something like the value that these bytes are; none where they are none, or more than one.
pub(super) fn change(bytes: &[u8], other: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let mut rest = bytes;
    let mut value = read(&mut rest, 0)?;
    // A lone number is more likely something else.
    if !rest.is_empty() || matches!(value, Value::Number { .. } | Value::Simple(_)) {
        return None;
    }
    let mut theirs = other;
    let stranger = read(&mut theirs, 0);
    let place = random.below(count(&value));
    let donor = match stranger {
        Some(stranger) if random.chance(1, 2) => stranger,
        Some(_) | None => value.clone(),
    };
    let part = nth(&donor, random.below(count(&donor)));
    change_nth(&mut value, place, &part, random);
    let mut out = Vec::with_capacity(bytes.len() + 16);
    write(&value, &mut out);
    Some(out)
}

const DEPTH_MAX: usize = 24;

fn read(rest: &mut &[u8], depth: usize) -> Option<Value> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    let width = match first & 31 {
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        0..=23 => 0,
        _ => return None,
    };
    let mut number = [0; 8];
    let (field, tail) = rest.split_at_checked(width)?;
    *rest = tail;
    number[8 - width..].copy_from_slice(field);
    let number = if width == 0 { u64::from(first & 31) } else { u64::from_be_bytes(number) };
    if depth > DEPTH_MAX {
        return None;
    }
    let mut take = |len: u64| {
        let (part, tail) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        *rest = tail;
        Some(part.to_vec())
    };
    Some(match first >> 5 {
        0 => Value::Number { negative: false, number },
        1 => Value::Number { negative: true, number },
        2 => Value::Bytes(take(number)?),
        3 => Value::Text(take(number)?),
        4 => Value::Array((0..number).map(|_| read(rest, depth + 1)).collect::<Option<_>>()?),
        5 => {
            let entries = number.checked_mul(2)?;
            Value::Map((0..entries).map(|_| read(rest, depth + 1)).collect::<Option<_>>()?)
        }
        6 => Value::Tag(number, Box::new(read(rest, depth + 1)?)),
        _ if width == 0 => Value::Simple(number as u8),
        _ => return None,
    })
}

fn head(major: u8, number: u64, out: &mut Vec<u8>) {
    let bytes = number.to_be_bytes();
    match number {
        0..=23 => out.push(major << 5 | number as u8),
        24..=0xff => out.extend_from_slice(&[major << 5 | 24, number as u8]),
        0x100..=0xffff => {
            out.push(major << 5 | 25);
            out.extend_from_slice(&bytes[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major << 5 | 26);
            out.extend_from_slice(&bytes[4..]);
        }
        _ => {
            out.push(major << 5 | 27);
            out.extend_from_slice(&bytes);
        }
    }
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Number { negative, number } => head(u8::from(*negative), *number, out),
        Value::Bytes(bytes) => {
            head(2, bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
        Value::Text(bytes) => {
            head(3, bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
        Value::Array(values) => {
            head(4, values.len() as u64, out);
            values.iter().for_each(|value| write(value, out));
        }
        Value::Map(values) => {
            head(5, values.len() as u64 / 2, out);
            values.iter().for_each(|value| write(value, out));
        }
        Value::Tag(number, value) => {
            head(6, *number, out);
            write(value, out);
        }
        Value::Simple(value) => out.push(7 << 5 | value & 31),
    }
}

fn parts(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) | Value::Map(values) => values,
        Value::Tag(_, value) => std::slice::from_ref(value),
        Value::Number { .. } | Value::Bytes(_) | Value::Text(_) | Value::Simple(_) => &[],
    }
}

/// How many values there are in a value, itself included.
fn count(value: &Value) -> u64 {
    1 + parts(value).iter().map(count).sum::<u64>()
}

fn nth(value: &Value, mut place: u64) -> Value {
    if place == 0 {
        return value.clone();
    }
    place -= 1;
    for part in parts(value) {
        let within = count(part);
        if place < within {
            return nth(part, place);
        }
        place -= within;
    }
    Value::Simple(22)
}

fn change_nth(value: &mut Value, mut place: u64, part: &Value, random: &mut Random) {
    if place == 0 {
        return change_one(value, part, random);
    }
    place -= 1;
    let parts = match value {
        Value::Array(values) | Value::Map(values) => values.as_mut_slice(),
        Value::Tag(_, value) => std::slice::from_mut(&mut **value),
        Value::Number { .. } | Value::Bytes(_) | Value::Text(_) | Value::Simple(_) => &mut [],
    };
    for one in parts {
        let within = count(one);
        if place < within {
            return change_nth(one, place, part, random);
        }
        place -= within;
    }
}

fn change_one(value: &mut Value, part: &Value, random: &mut Random) {
    if random.chance(1, 8) {
        *value = part.clone();
        return;
    }
    match value {
        Value::Number { number, .. } => match random.below(4) {
            0 => *number = number.wrapping_add(1 + random.below(3)),
            1 => *number = number.wrapping_sub(1 + random.below(3)),
            _ => *number = interesting(random),
        },
        Value::Bytes(bytes) => change_bytes(bytes, &[], random),
        Value::Text(bytes) => {
            change_bytes(bytes, b"127.0.0.1:7301", random);
            *bytes = String::from_utf8_lossy(bytes).into_owned().into_bytes();
        }
        Value::Array(values) => {
            let at = random.below(values.len() as u64 + 1) as usize;
            match random.below(4) {
                0 if at < values.len() => drop(values.remove(at)),
                1 if at < values.len() => values.insert(at, values[at].clone()),
                2 if at < values.len() => {
                    let with = random.below(values.len() as u64) as usize;
                    values.swap(at, with);
                }
                _ => values.insert(at, part.clone()),
            }
        }
        Value::Map(values) => {
            let at = random.below(values.len() as u64 / 2 + 1) as usize * 2;
            if at < values.len() && random.chance(1, 2) {
                drop(values.drain(at..at + 2));
            } else {
                let key = interesting(random);
                let pair = [Value::Number { negative: false, number: key }, part.clone()];
                values.splice(at..at, pair);
            }
        }
        Value::Tag(number, _) => *number = interesting(random),
        Value::Simple(simple) => *simple = 20 + random.below(4) as u8,
    }
}
