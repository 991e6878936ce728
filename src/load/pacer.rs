//! The schedule of an open loop, fixed before the run: request n is due at start + n / rate, whatever the server does.
//!
//! A thread of its own waits for each due time. A runtime's timers are good to a millisecond, and a busy runtime looks at
//! them late; the kernel wakes a thread within about a tenth of that.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
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

/// What the pacer tells the runtime.
#[derive(Debug)]
pub struct Due {
    pub count: AtomicU64,
    /// No more will come.
    pub over: AtomicBool,
    pub changed: Notify,
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

    fn exists(&self, n: u64) -> bool {
        self.total.is_none_or(|total| n < total) && self.duration.is_none_or(|d| self.at(n) < self.start + d)
    }

    /// Counts requests as they become due, until all are or `stopped`.
    pub fn pace(&self, due: &Due, stopped: impl Fn() -> bool) {
        let mut next = 0;
        while self.exists(next) && !stopped() {
            let wait = self.at(next).saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait.min(LONGEST_SLEEP));
                continue;
            }
            next += 1;
            due.count.store(next, Ordering::Release);
            due.changed.notify_one();
        }
        due.over.store(true, Ordering::Release);
        due.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(total: Option<u64>, duration: Option<Duration>) -> Arrivals {
        Arrivals { start: Instant::now(), rate: 1000.0, first: 1, stride: 2, total, duration }
    }

    fn paced(arrivals: &Arrivals) -> u64 {
        let due = Due { count: AtomicU64::new(0), over: AtomicBool::new(false), changed: Notify::new() };
        arrivals.pace(&due, || false);
        assert!(due.over.load(Ordering::Acquire));
        due.count.load(Ordering::Acquire)
    }

    #[test]
    fn the_threads_share_one_schedule() {
        let arrivals = arrivals(None, None);

        assert_eq!(arrivals.at(0) - arrivals.start, Duration::from_millis(1));
        assert_eq!(arrivals.at(3) - arrivals.start, Duration::from_millis(7));
    }

    #[test]
    fn the_schedule_ends_with_its_count_or_its_time() {
        assert_eq!(paced(&arrivals(Some(5), None)), 5);
        // Due at 1, 3, 5, 7 and 9 ms.
        assert_eq!(paced(&arrivals(None, Some(Duration::from_millis(10)))), 5);
    }
}
