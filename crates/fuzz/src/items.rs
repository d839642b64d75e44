//! An input that is a story: items, each of a kind and with bytes of its own.
//!
//! ```text
//! item = kind u8, length u16 (big endian), bytes
//! ```
//! Whatever the bytes are, they are some story: a length beyond the end means what is left.

/// One step of a story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is; the target says what that means.
    pub kind: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Item {
    /// An item; bytes beyond the longest length are left out.
    pub fn new(kind: u8, bytes: &[u8]) -> Item {
        let len = bytes.len().min(usize::from(u16::MAX));
        Item { kind, bytes: bytes[..len].to_vec() }
    }
}

/// The items of an input.
pub fn split(mut input: &[u8]) -> Vec<Item> {
    let mut items = Vec::new();
    while let Some(([kind, high, low], rest)) = input.split_first_chunk::<3>() {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        items.push(Item { kind: *kind, bytes: rest[..len].to_vec() });
        input = &rest[len..];
    }
    items
}

/// The input of items.
pub fn join(items: &[Item]) -> Vec<u8> {
    let mut input = Vec::new();
    for item in items {
        input.push(item.kind);
        input.extend_from_slice(&(item.bytes.len() as u16).to_be_bytes());
        input.extend_from_slice(&item.bytes);
    }
    input
}
