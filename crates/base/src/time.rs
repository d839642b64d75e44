//! Time as the pure crates see it: a value given with every input.

use std::fmt;
use std::ops::{Add, Sub};

use minicbor::{Decode, Encode};

/// Microseconds: a reading of the boot clock (which counts suspended time and never goes back), or
/// a span between two readings on one node.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Micros(#[n(0)] pub u64);

/// Milliseconds of wall time since the Unix epoch. It may jump; no decision of consensus rests on
/// it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct WallMillis(#[n(0)] pub u64);

/// Both clocks, read once, after an input was taken from its socket or queue and before it is
/// handled (`docs/paxos.md`, amendments): an earlier reading would lengthen nothing, a later one
/// could lengthen a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The boot clock.
    pub mono: Micros,
    /// The wall clock.
    pub wall: WallMillis,
}

impl Micros {
    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Micros {
        Micros(millis * 1_000)
    }

    /// So many seconds.
    pub const fn from_secs(secs: u64) -> Micros {
        Micros(secs * 1_000_000)
    }

    /// The span since `earlier`; zero if that lies ahead.
    #[must_use]
    pub fn since(self, earlier: Micros) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Micros {
    type Output = Micros;
    fn add(self, other: Micros) -> Micros {
        Micros(self.0.saturating_add(other.0))
    }
}

impl Sub for Micros {
    type Output = Micros;
    fn sub(self, other: Micros) -> Micros {
        self.since(other)
    }
}

impl fmt::Debug for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0)
    }
}

impl fmt::Debug for WallMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}
