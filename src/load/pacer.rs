//! The schedule of an open loop, fixed before the run: request n is due at start + n / rate, whatever the server does.
//!
//! A timer of the kernel's (timerfd) wakes the thread that sends: a runtime's own timers are good to a millisecond, and a
//! thread that waits for another one costs a switch for each request, on a core that both may have to share.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// The requests of one thread: every `stride`-th of the run's, from the `first`.
#[derive(Clone, Debug)]
pub struct Arrivals {
    pub start: Instant,
    /// Of the whole run, per second.
    pub rate: f64,
    pub first: u64,
    pub stride: u64,
    /// How many; `None` is as many as the duration holds.
    pub total: Option<u64>,
    pub duration: Option<Duration>,
}

/// A stop is noticed at least this often.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

impl Arrivals {
    /// When the n-th one is due.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn at(&self, n: u64) -> Instant {
        self.start + Duration::from_secs_f64((self.first + n * self.stride) as f64 / self.rate)
    }

    /// Whether there is an n-th one.
    #[must_use]
    pub fn exists(&self, n: u64) -> bool {
        self.total.is_none_or(|total| n < total) && self.duration.is_none_or(|d| self.at(n) < self.start + d)
    }
}

/// A timer of the kernel's.
#[derive(Debug)]
pub struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// One for the runtime that this is called in.
    ///
    /// # Errors
    /// No file descriptor is left.
    #[expect(deprecated, reason = "sound for an OwnedFd; what is to replace it is unsafe, which is forbidden here")]
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self(AsyncFd::with_interest(timer, Interest::READABLE)?))
    }

    /// Waits until then, or for 50 ms, so that a stop is noticed. Ends at once, but not before others had their turn, when
    /// it is that late already.
    ///
    /// # Errors
    /// The timer could not be set.
    pub async fn until(&self, then: Instant) -> io::Result<()> {
        let wait = then.saturating_duration_since(Instant::now()).min(LONGEST_SLEEP);
        if wait.is_zero() {
            tokio::task::yield_now().await;
            return Ok(());
        }
        let it_value = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        // What it said before is forgotten with that: nothing has to be read.
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })?;
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(total: Option<u64>, duration: Option<Duration>) -> Arrivals {
        Arrivals { start: Instant::now(), rate: 1000.0, first: 1, stride: 2, total, duration }
    }

    #[test]
    fn the_threads_share_one_schedule() {
        let arrivals = arrivals(None, None);

        assert_eq!(arrivals.at(0) - arrivals.start, Duration::from_millis(1));
        assert_eq!(arrivals.at(3) - arrivals.start, Duration::from_millis(7));
    }

    #[test]
    fn the_schedule_ends_with_its_count_or_its_time() {
        let count = |arrivals: &Arrivals| (0..).take_while(|n| arrivals.exists(*n)).count();

        assert_eq!(count(&arrivals(Some(5), None)), 5);
        // Due at 1, 3, 5, 7 and 9 ms.
        assert_eq!(count(&arrivals(None, Some(Duration::from_millis(10)))), 5);
    }

    #[tokio::test]
    async fn an_alarm_is_not_early_however_often_it_is_set() {
        let alarm = Alarm::new().unwrap();
        let start = Instant::now();

        for n in 1..=20 {
            let then = start + n * Duration::from_micros(300);
            while Instant::now() < then {
                alarm.until(then).await.unwrap();
            }
            alarm.until(start).await.unwrap();
        }

        assert!(start.elapsed() >= Duration::from_millis(6));
    }

    #[tokio::test]
    async fn a_far_alarm_ends_soon_for_who_looks_after_a_stop() {
        let (alarm, start) = (Alarm::new().unwrap(), Instant::now());

        alarm.until(start + Duration::from_secs(3_600)).await.unwrap();

        assert!(start.elapsed() < Duration::from_secs(60));
    }
}
