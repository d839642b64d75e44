//! Identifiers, each a type of its own, so that one cannot stand where another is meant.

use std::fmt;
use std::sync::Arc;

use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder, Write};
use minicbor::{Decode, Encode};

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $display:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $display, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number_id!(
    /// A node: one process, one data directory, one address. Numbered from 1; 0 stands for a node
    /// that has no number yet.
    NodeId(u64), "n{}");
number_id!(
    /// A replica group. Group 0 is the shard master. Internal numbers are never reused.
    GroupId(u64), "g{}");
number_id!(
    /// A replica of a group, allocated once for ever and bound to one disk.
    ReplicaId(u64), "r{}");
number_id!(
    /// A position in a group's log, counted from 1 (the literature also says "instance"). Slot 0
    /// is the position before the first.
    Slot(u64), "s{}");
number_id!(
    /// One of the states of a group in a node's store: a copy of another replica's state is the
    /// next one, beside the present.
    Generation(u32), "gen{}");
number_id!(
    /// A position in a node's write-ahead log: the number of the record, counted from 1. Lsn 0 is
    /// the position before the first record.
    Lsn(u64), "lsn{}");
number_id!(
    /// A shard of the key space: a range of hash slots.
    ShardId(u16), "shard{}");
number_id!(
    /// How often a shard has changed hands. It only grows.
    ShardEpoch(u64), "e{}");
number_id!(
    /// The number of a configuration: 0 is the empty one, each Join, Leave or Move makes the next.
    ConfigNumber(u64), "c{}");
number_id!(
    /// The migration that brought a shard to a group; it names that copy of the shard's records.
    CopyId(u64), "m{}");
number_id!(
    /// The number of a request of one client, counted from 1.
    RequestNumber(u64), "q{}");
number_id!(
    /// A record's version: its shard's count of changes at the record's last change. An absent
    /// record has version 0.
    Version(u64), "v{}");

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), encode::Error<W::Error>> {
                e.bytes(&self.0.to_be_bytes())?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                let bytes = d.bytes()?;
                let bytes = <[u8; 16]>::try_from(bytes)
                    .map_err(|_| decode::Error::message("an identifier is not 16 bytes long"))?;
                Ok($name(u128::from_be_bytes(bytes)))
            }
        }
    };
}

random_id!(
    /// A cluster: the hash of its masters' disk ids and its number of shards.
    ClusterId
);
random_id!(
    /// A data directory, drawn at random when it is formatted.
    DiskId
);
random_id!(
    /// One start of a node's process, drawn at random.
    BootId
);
random_id!(
    /// A client, drawn at random by the client itself and never reused.
    ClientId
);
random_id!(
    /// A request's trace, given by the caller and carried along.
    TraceId
);

/// Where a node is reached, `host:port`. In the simulator it is any name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub Arc<str>);

impl Address {
    /// The address with this text.
    pub fn new(text: &str) -> Address {
        Address(Arc::from(text))
    }

    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<C> Encode<C> for Address {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Address {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Ok(Address::new(d.str()?))
    }
}

impl GroupId {
    /// The shard master's group.
    pub const MASTER: GroupId = GroupId(0);
    /// Under this number the write-ahead log keeps the node's own records, which belong to no
    /// replica group.
    pub const NODE: GroupId = GroupId(u64::MAX);
}

impl Slot {
    /// The slot before the first.
    pub const ZERO: Slot = Slot(0);

    /// The next slot.
    #[must_use]
    pub fn next(self) -> Slot {
        Slot(self.0 + 1)
    }

    /// The slot before this one; the one before slot 0 is slot 0.
    #[must_use]
    pub fn prev(self) -> Slot {
        Slot(self.0.saturating_sub(1))
    }
}

impl Lsn {
    /// The position before the first record.
    pub const ZERO: Lsn = Lsn(0);

    /// The next position.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

impl RequestNumber {
    /// The next request of the same client.
    #[must_use]
    pub fn next(self) -> RequestNumber {
        RequestNumber(self.0 + 1)
    }
}
