//! The trace of a run: a hash over everything that happened, in order. One seed twice makes one
//! trace; a difference means that something outside the seed decided.

/// A running hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    hash: u64,
    events: u64,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace { hash: 0x9e37_79b9_7f4a_7c15, events: 0 }
    }
}

impl Trace {
    /// Something happened, told apart from other things by these numbers.
    pub fn event(&mut self, numbers: &[u64]) {
        self.events += 1;
        for number in numbers {
            self.mix(*number);
        }
    }

    /// Bytes that belong to the newest event.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        for byte in rest {
            self.mix(u64::from(*byte));
        }
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.events
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.hash ^= self.hash >> 29;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_content_make_a_difference() {
        let hash = |events: &[&[u8]]| {
            let mut trace = Trace::default();
            for bytes in events {
                trace.event(&[1]);
                trace.bytes(bytes);
            }
            trace.hash()
        };
        let whole = hash(&[b"abcdefghij", b"xyz"]);
        assert_eq!(whole, hash(&[b"abcdefghij", b"xyz"]));
        assert_ne!(whole, hash(&[b"xyz", b"abcdefghij"]));
        assert_ne!(whole, hash(&[b"abcdefghi", b"jxyz"]));
    }
}
