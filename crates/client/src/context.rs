//! What a client takes from the world besides its connections: time, and an identity.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::{ClientId, Micros, Now, WallMillis};
use tokio::time::Instant;

use crate::error::Error;
use crate::options::micros;

/// Time as the routing machine counts it, from the start of the client.
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Both clocks.
    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            mono: micros(self.start.elapsed()),
            wall: WallMillis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// A time of this clock as timers want it.
    pub(crate) fn instant(&self, time: Micros) -> Instant {
        // A time beyond all bounds is never reached in practice, and must not overflow.
        let span = Duration::from_micros(time.0.min(1 << 50));
        self.start + span
    }
}

/// An identity that no other client has or had, and a seed for pauses.
pub(crate) fn draw_identity() -> Result<(ClientId, u64), Error> {
    let mut bytes = [0; 24];
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        let got = rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty());
        filled += got.map_err(|error| {
            Error::Unavailable(format!("the system gives no random numbers ({error})"))
        })?;
    }
    let (id, seed) = bytes.split_at(16);
    let id = id.iter().fold(0, |id, byte| (id << 8) | u128::from(*byte));
    let seed = seed.iter().fold(0, |seed, byte| (seed << 8) | u64::from(*byte));
    Ok((ClientId(id), seed))
}
