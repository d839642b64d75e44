//! Helpers for the wire: CBOR with explicit field numbers that are never reused, and payloads that
//! share the buffer they arrived in instead of being copied out of it.
//!
//! A type that holds a payload says so with `#[cbor(context_bound = "base::codec::Source")]` and
//! marks the field `#[cbor(with = "base::codec::payload")]`.

use bytes::Bytes;
use minicbor::{Decode, Encode};

/// Why bytes were not a value of the type that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError(pub String);

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DecodeError {}

impl From<minicbor::decode::Error> for DecodeError {
    fn from(error: minicbor::decode::Error) -> DecodeError {
        DecodeError(error.to_string())
    }
}

/// Gives a payload that was found at `part` of the buffer under decoding.
pub trait Source {
    /// The bytes of `part`, sharing the buffer where that is possible.
    fn payload(&self, part: &[u8]) -> Bytes;
}

/// The buffer under decoding.
#[derive(Debug)]
pub struct Shared<'a>(pub &'a Bytes);

impl Source for Shared<'_> {
    fn payload(&self, part: &[u8]) -> Bytes {
        // A small part that kept a large buffer alive would cost more memory than its copy.
        if part.len() * 4 < self.0.len() && part.len() <= 64 {
            Bytes::copy_from_slice(part)
        } else {
            self.0.slice_ref(part)
        }
    }
}

/// Encoding needs no buffer; the derived code asks for the same bound on both sides.
impl Source for () {
    fn payload(&self, part: &[u8]) -> Bytes {
        Bytes::copy_from_slice(part)
    }
}

/// The bytes of a value.
pub fn encode<T: Encode<()>>(value: &T) -> Bytes {
    Bytes::from(encode_vec(value))
}

/// The bytes of a value, as a vector.
pub fn encode_vec<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    encode_into(value, &mut out);
    out
}

/// Appends the bytes of a value.
pub fn encode_into<T: Encode<()>>(value: &T, out: &mut Vec<u8>) {
    if let Err(error) = minicbor::encode(value, out) {
        unreachable!("a vector takes every byte: {error}");
    }
}

/// The value of these bytes, all of them: what follows the value is an error.
pub fn decode<T>(bytes: &Bytes) -> Result<T, DecodeError>
where
    T: for<'a, 'b> Decode<'b, Shared<'a>>,
{
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode_with(&mut Shared(bytes))?;
    if decoder.position() != bytes.len() {
        return Err(DecodeError(format!(
            "{} bytes follow the value",
            bytes.len() - decoder.position()
        )));
    }
    Ok(value)
}

/// For fields of type `Bytes`.
pub mod payload {
    use super::{Bytes, Source};
    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};

    /// Writes the payload.
    pub fn encode<C, W: Write>(
        payload: &Bytes,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(payload)?.ok()
    }

    /// Reads the payload.
    pub fn decode<C: Source>(d: &mut Decoder<'_>, source: &mut C) -> Result<Bytes, decode::Error> {
        Ok(source.payload(d.bytes()?))
    }
}

/// For fields of type `Option<Bytes>`.
pub mod payload_option {
    use super::{Bytes, Source};
    use minicbor::data::Type;
    use minicbor::decode::{self, Decoder};
    use minicbor::encode::{self, Encoder, Write};

    /// Writes the payload, or null.
    pub fn encode<C, W: Write>(
        payload: &Option<Bytes>,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        match payload {
            Some(payload) => e.bytes(payload)?.ok(),
            None => e.null()?.ok(),
        }
    }

    /// Reads the payload, or null.
    pub fn decode<C: Source>(
        d: &mut Decoder<'_>,
        source: &mut C,
    ) -> Result<Option<Bytes>, decode::Error> {
        if d.datatype()? == Type::Null {
            d.null()?;
            return Ok(None);
        }
        Ok(Some(source.payload(d.bytes()?)))
    }

    /// What an absent field stands for.
    pub fn nil() -> Option<Option<Bytes>> {
        Some(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(context_bound = "Source")]
    struct Sample {
        #[n(0)]
        number: u64,
        #[cbor(n(1), with = "payload")]
        body: Bytes,
        #[cbor(n(2), with = "payload_option")]
        more: Option<Bytes>,
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(context_bound = "Source")]
    struct Nested {
        #[n(0)]
        samples: Vec<Sample>,
    }

    #[test]
    fn a_large_payload_shares_its_buffer() {
        let value = Nested {
            samples: vec![
                Sample { number: 1, body: Bytes::from(vec![7; 1000]), more: None },
                Sample { number: 2, body: Bytes::new(), more: Some(Bytes::from_static(b"x")) },
            ],
        };
        let bytes = encode(&value);
        let back: Nested = decode(&bytes).expect("decodes");
        assert_eq!(back, value);
        let inside = bytes.as_ptr_range();
        assert!(inside.contains(&back.samples[0].body.as_ptr()));
    }

    #[test]
    fn trailing_and_missing_bytes_are_errors() {
        let value = Sample { number: 1, body: Bytes::from_static(b"abc"), more: None };
        let bytes = encode_vec(&value);
        for cut in 0..bytes.len() {
            assert!(decode::<Sample>(&Bytes::copy_from_slice(&bytes[..cut])).is_err());
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(decode::<Sample>(&Bytes::from(longer)).is_err());
    }
}
