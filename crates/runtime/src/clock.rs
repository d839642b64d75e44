//! The clocks of this machine, and its randomness.

use base::{Micros, Now, WallMillis};
use rustix::rand::GetRandomFlags;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Both clocks, read now. The boot clock goes on while the machine is suspended, which leases
/// rest on (docs/paxos.md 11.5).
pub fn now() -> Now {
    let boot = clock_gettime(ClockId::Boottime);
    let wall = clock_gettime(ClockId::Realtime);
    Now { mono: Micros(micros(boot)), wall: WallMillis(micros(wall) / 1_000) }
}

/// A time before the epoch, which only a wall clock set wrong can show, counts as the epoch.
fn micros(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000)
}

/// Random bits from the operating system: for identities that must differ between disks, starts
/// and clients.
pub fn random_u128() -> u128 {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the operating system gives no random numbers: {error}"),
        }
    }
    u128::from_le_bytes(bytes)
}

/// Random bits from the operating system: the seed of a node's own generator.
pub fn random_u64() -> u64 {
    let bits = random_u128();
    bits as u64 ^ (bits >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_forward_and_random_numbers_differ() {
        let first = now();
        let second = now();
        assert!(second.mono >= first.mono);
        assert!(first.wall.0 > 1_600_000_000_000);
        assert_ne!(random_u128(), random_u128());
        assert_ne!(random_u64(), random_u64());
    }
}
