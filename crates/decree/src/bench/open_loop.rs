//! Operations that start at fixed times, as those of many independent users do. A cluster that
//! halts for a moment delays all that were to start in it, and each of these delays counts: one that
//! started late because of others is measured from when it was to start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base::Random;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;

use super::Plan;

impl Plan<'_> {
    /// Runs so many operations a second; the time from the first measured one to the last answer.
    pub(super) async fn open_loop(&self, rate: u32) -> Duration {
        let mut random = Random::new(self.arguments.seed);
        let schedule = Schedule { first: Instant::now(), rate };
        let mut number = 0_u64;
        let alarm = Alarm::start(schedule);
        let mut open = FuturesUnordered::new();
        let mut done = false;
        loop {
            while !done && schedule.due(number) <= Instant::now() {
                let due = schedule.due(number);
                let measured = due >= self.begin;
                if due >= self.end || (measured && !self.may_start()) {
                    done = true;
                    break;
                }
                number += 1;
                let (key, value) = self.draw(&mut random);
                if open.len() >= self.arguments.outstanding as usize {
                    self.tally.borrow_mut().not_sent += u64::from(measured);
                    continue;
                }
                open.push(async move {
                    // Single calls take the nodes in turn.
                    let outcome = self.door.ask(number as u32, key, value).await;
                    if measured {
                        self.tally.borrow_mut().count(outcome, due.elapsed());
                    }
                });
            }
            if done && open.is_empty() {
                return self.begin.elapsed();
            }
            tokio::select! {
                Some(()) = open.next() => {}
                () = alarm.ticks.notified() => {}
            }
        }
    }
}

/// When each operation is to start. Counted from the first, so that nothing adds up.
#[derive(Clone, Copy)]
struct Schedule {
    first: Instant,
    rate: u32,
}

impl Schedule {
    fn due(self, number: u64) -> Instant {
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(self.rate);
        self.first + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The first operation that is due later than this.
    fn after(self, now: Instant) -> u64 {
        let nanos = now.saturating_duration_since(self.first).as_nanos();
        let number = nanos * u128::from(self.rate) / 1_000_000_000 + 1;
        u64::try_from(number).unwrap_or(u64::MAX)
    }
}

/// Wakes the load in time for its next operations. It is a thread because the timers of the
/// executor are no finer than a millisecond, which is more than many an operation takes.
struct Alarm {
    ticks: Arc<Notify>,
    stop: Arc<AtomicBool>,
}

impl Alarm {
    fn start(schedule: Schedule) -> Alarm {
        let (ticks, stop) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (of_thread, stopped) = (ticks.clone(), stop.clone());
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let now = Instant::now();
                let due = schedule.due(schedule.after(now));
                thread::sleep(due.saturating_duration_since(now).max(PAUSE_MIN));
                of_thread.notify_one();
            }
        });
        Alarm { ticks, stop }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Operations that are due within this time may start together.
const PAUSE_MIN: Duration = Duration::from_micros(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_due_evenly_and_nothing_adds_up() {
        let first = Instant::now();
        let schedule = Schedule { first, rate: 3_000 };
        assert_eq!(schedule.due(0), first);
        assert_eq!(schedule.due(1), first + Duration::from_nanos(333_333));
        assert_eq!(schedule.due(3_000_000), first + Duration::from_secs(1_000));
        assert_eq!(schedule.after(first), 1);
        assert_eq!(schedule.after(first + Duration::from_secs(1)), 3_001);
    }
}
