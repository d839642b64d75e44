//! The clocks of one node or client: wrong by an offset, and running too fast or too slowly.

use base::{Micros, Now, Random, WallMillis};

/// Wall time at the start of every run.
const WALL_START_MILLIS: u64 = 1_700_000_000_000;

/// A pair of clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The boot clock at virtual time zero.
    mono_offset: u64,
    /// How much faster than virtual time it runs, in parts per million; less than zero is slower.
    drift: i64,
    /// How far the wall clock is ahead, in milliseconds.
    wall_offset: i64,
}

impl Clock {
    /// Clocks that differ from others by at most so much.
    pub fn new(random: &mut Random, drift_max: u64, wall_offset_max: u64) -> Clock {
        Clock {
            mono_offset: random.below(1_000_000_000),
            drift: random.below(2 * drift_max + 1) as i64 - drift_max as i64,
            wall_offset: random.below(2 * wall_offset_max + 1) as i64 - wall_offset_max as i64,
        }
    }

    /// Moves the wall clock to so many milliseconds ahead of the right time.
    pub fn set_wall_offset(&mut self, millis: i64) {
        self.wall_offset = millis;
    }

    /// What they show at this virtual time.
    pub fn now(&self, time: Micros) -> Now {
        let drift = i128::from(time.0) * i128::from(self.drift) / 1_000_000;
        let mono = (i128::from(time.0) + drift).max(0) as u64 + self.mono_offset;
        let wall = (WALL_START_MILLIS + time.0 / 1_000).saturating_add_signed(self.wall_offset);
        Now { mono: Micros(mono), wall: WallMillis(wall) }
    }

    /// The virtual time at which the boot clock shows `mono`, or a little later.
    pub fn when(&self, mono: Micros) -> Micros {
        let span = i128::from(mono.0.saturating_sub(self.mono_offset));
        Micros((span * 1_000_000 / i128::from(1_000_000 + self.drift)).max(0) as u64 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_goes_back_and_can_be_inverted() {
        for seed in 0..50 {
            let clock = Clock::new(&mut Random::new(seed), 20_000, 5_000);
            let mut last = clock.now(Micros(0)).mono;
            for step in 1..2_000 {
                let time = Micros(step * 777);
                let mono = clock.now(time).mono;
                assert!(mono > last);
                last = mono;
                let when = clock.when(mono);
                assert!(clock.now(when).mono >= mono && when.0 <= time.0 + 3, "{time:?} {when:?}");
            }
        }
    }
}
