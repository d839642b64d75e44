//! Reading a command from front to back.

use base::codec::DecodeError;
use base::limits::{COUNT_MAX, SHARDS_MAX};
use base::{ShardEpoch, ShardId};
use bytes::Bytes;

/// Reads a command from front to back.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a Bytes) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let part = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let part = part.ok_or_else(too_short)?;
        self.at += N;
        Ok(*part)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.take()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    /// A number that is counted on from.
    pub(super) fn count(&mut self) -> Result<u64, DecodeError> {
        match self.u64()? {
            count if count <= COUNT_MAX => Ok(count),
            count => Err(DecodeError(format!("nothing is counted to {count}"))),
        }
    }

    /// A shard that a cluster can have. The numbers behind are used for other records of the store.
    pub(super) fn shard(&mut self) -> Result<ShardId, DecodeError> {
        match self.u16()? {
            shard if shard < SHARDS_MAX => Ok(ShardId(shard)),
            shard => Err(DecodeError(format!("there is no shard {shard}"))),
        }
    }

    pub(super) fn u128(&mut self) -> Result<u128, DecodeError> {
        Ok(u128::from_be_bytes(self.take()?))
    }

    pub(super) fn payload(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.u32()? as usize;
        if length > self.bytes.len() - self.at {
            return Err(too_short());
        }
        let payload = self.bytes.slice(self.at..self.at + length);
        self.at += length;
        Ok(payload)
    }

    /// A flag, 0 or 1.
    pub(super) fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            flag => Err(DecodeError(format!("flag {flag}"))),
        }
    }

    pub(super) fn shards(&mut self) -> Result<Vec<(ShardId, ShardEpoch)>, DecodeError> {
        let count = self.u16()?;
        let mut shards = Vec::new();
        for _ in 0..count {
            shards.push((self.shard()?, ShardEpoch(self.count()?)));
        }
        Ok(shards)
    }

    pub(super) fn end(&self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            left => Err(DecodeError(format!("{left} bytes follow the command"))),
        }
    }
}

fn too_short() -> DecodeError {
    DecodeError("the command ends too early".to_string())
}
