//! Which request numbers are open, for each shard: from this comes `first_incomplete`.

use std::collections::{BTreeMap, VecDeque};

use base::limits::SESSION_OPEN_MAX;
use base::{RequestNumber, ShardId};

/// Where a session table lies that remembers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// On a shard that is not known yet, because the number of shards is not.
    Unplaced,
    /// On this shard.
    Shard(ShardId),
    /// In the shard master's own table.
    Master,
}

/// The request numbers of one client.
///
/// A table keeps answers from `first_incomplete` on, so what is bounded is not the open requests
/// but all numbers given out at one place since its lowest open one.
#[derive(Debug)]
pub(super) struct Numbers {
    next: RequestNumber,
    /// For each place its numbers from the lowest open one on, each with whether it is open.
    places: BTreeMap<Place, VecDeque<(RequestNumber, bool)>>,
}

impl Numbers {
    pub(super) fn new() -> Numbers {
        Numbers { next: RequestNumber(1), places: BTreeMap::new() }
    }

    /// Opens the next number at a place, and tells the lowest one open there; none while the
    /// place's table could not hold one more answer.
    pub(super) fn open(&mut self, place: Place) -> Option<(RequestNumber, RequestNumber)> {
        let numbers = self.places.entry(place).or_default();
        if numbers.len() >= SESSION_OPEN_MAX {
            return None;
        }
        let number = self.next;
        self.next = number.next();
        numbers.push_back((number, true));
        let first = numbers.front().map_or(number, |(first, _)| *first);
        Some((number, first))
    }

    /// The caller will not ask again for the answer to this number.
    pub(super) fn close(&mut self, place: Place, number: RequestNumber) {
        let Some(numbers) = self.places.get_mut(&place) else { return };
        if let Ok(index) = numbers.binary_search_by_key(&number, |(number, _)| *number) {
            numbers[index].1 = false;
        }
        while numbers.front().is_some_and(|(_, open)| !open) {
            numbers.pop_front();
        }
        if numbers.is_empty() {
            self.places.remove(&place);
        }
    }

    /// Moves a number to its shard, once that is known. Called in the order of numbers.
    pub(super) fn place(&mut self, number: RequestNumber, shard: ShardId) {
        self.close(Place::Unplaced, number);
        self.places.entry(Place::Shard(shard)).or_default().push_back((number, true));
    }
}
