//! What a broken database would do, done to a sound one behind the backs of its clients: writes that
//! were acknowledged are taken back, and others are executed once more than they were asked for.
//! Whoever judges must find both.

use std::collections::BTreeMap;

use bytes::Bytes;
use client::Client;
use router::HashKind;

use super::clients::{SHARED_KEYS, shared_key};
use super::notes::Notes;

/// What the shared keys of the round hold.
pub(crate) async fn remember(control: &Client, notes: &Notes) -> BTreeMap<Bytes, Option<Bytes>> {
    let mut values = BTreeMap::new();
    for at in 0..SHARED_KEYS {
        let key = shared_key(notes.round(), at);
        if let Ok(held) = control.get(key.clone()).await {
            values.insert(key, held.value);
        }
    }
    values
}

/// Gives the shared keys what they held then, where clients have written since, and adds to every
/// chain what nobody asked for. Tells how often.
pub(crate) async fn strike(
    control: &Client,
    notes: &Notes,
    remembered: BTreeMap<Bytes, Option<Bytes>>,
) -> String {
    let (mut taken_back, mut doubled) = (0, 0);
    for (key, before) in remembered {
        let Ok(held) = control.get(key.clone()).await else { continue };
        if held.value == before {
            continue;
        }
        let done = match before {
            Some(before) => control.put(key, before).await.is_ok(),
            None => control.delete(key).await.is_ok(),
        };
        taken_back += u64::from(done);
    }
    for key in notes.predicted().into_keys() {
        doubled += u64::from(control.put_hash(key, "once more", HashKind::Fnv1a32).await.is_ok());
    }
    format!("sabotage: {taken_back} keys were taken back, {doubled} chains have a write too much")
}
