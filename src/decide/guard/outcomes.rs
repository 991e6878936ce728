//! What a version did so far: requests, failures, and how long they took, as a log-linear histogram.
//!
//! Cumulative counts; a window is the difference of two readings. A bucket is at most 1/16 wide, relative to its lower
//! end, so a quantile told by its bucket's middle is off by at most 3.2 %. Shares above a bucket's edge are exact.

use std::time::Duration;

/// Buckets of an octave: 1, 17/16, 18/16, .. 31/16 of a power of two of microseconds.
const STEPS: usize = 16;
const STEP_BITS: u32 = STEPS.trailing_zeros();

/// From 1 us to 134 s; what took longer is in the last one. The default response timeout is a minute.
pub const BUCKETS: usize = (28 - STEP_BITS as usize) * STEPS;

/// The bucket of a duration.
#[must_use]
pub fn bucket(duration: Duration) -> usize {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let octave = (u64::BITS - micros.leading_zeros()).saturating_sub(STEP_BITS + 1);
    // At most 31: the five highest bits. Below 32 us a bucket is one microsecond.
    let top = usize::try_from(micros >> octave).unwrap_or(usize::MAX);
    (octave as usize * STEPS + top).min(BUCKETS - 1)
}

/// Where a bucket begins.
#[must_use]
pub fn floor(bucket: usize) -> Duration {
    if bucket < 2 * STEPS {
        return Duration::from_micros(bucket as u64);
    }
    let octave = bucket / STEPS - 1;
    Duration::from_micros(((bucket % STEPS + STEPS) as u64) << octave.min(32))
}

/// Cumulative since the process began, or the difference of two such readings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcomes {
    /// Requests that got a 5xx, an answer that broke off, or needed more than one attempt because one failed.
    pub failures: u64,
    latency: Box<[u64; BUCKETS]>,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self { failures: 0, latency: Box::new([0; BUCKETS]) }
    }
}

impl Outcomes {
    #[must_use]
    pub fn new(failures: u64, latency: impl IntoIterator<Item = u64>) -> Self {
        let mut outcomes = Self { failures, ..Self::default() };
        for (slot, count) in outcomes.latency.iter_mut().zip(latency) {
            *slot = count;
        }
        outcomes
    }

    #[must_use]
    pub fn requests(&self) -> u64 {
        self.latency.iter().sum()
    }

    /// What happened after `earlier` was read.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let latency = self.latency.iter().zip(earlier.latency.iter()).map(|(now, then)| now.saturating_sub(*then));
        Self::new(self.failures.saturating_sub(earlier.failures), latency)
    }

    /// Adds what happened in another window.
    pub fn add(&mut self, other: &Self) {
        self.failures += other.failures;
        for (mine, theirs) in self.latency.iter_mut().zip(other.latency.iter()) {
            *mine += theirs;
        }
    }

    /// Counts one request; for tests and simulations.
    pub fn record(&mut self, took: Duration, has_failed: bool) {
        self.failures += u64::from(has_failed);
        if let Some(slot) = self.latency.get_mut(bucket(took)) {
            *slot += 1;
        }
    }

    /// Share of the requests that failed, 0 when there was none.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub fn failure_ratio(&self) -> f64 {
        self.failures as f64 / (self.requests().max(1) as f64)
    }

    /// Requests whose bucket is `edge` or above: they took [`floor`]`(edge)` or longer.
    #[must_use]
    pub fn at_or_above(&self, edge: usize) -> u64 {
        self.latency.iter().skip(edge).sum()
    }

    /// The bucket that has the `q`-quantile, `None` without a request.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank from 1 to the count of requests"
    )]
    pub fn quantile_bucket(&self, q: f64) -> Option<usize> {
        let requests = self.requests();
        let rank = ((requests as f64 * q).ceil() as u64).clamp(1, requests.max(1));
        let mut below = 0;
        self.latency.iter().position(|count| {
            below += count;
            below >= rank
        })
    }

    /// The `q`-quantile, by the middle of its bucket; `None` without a request.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let bucket = self.quantile_bucket(q)?;
        Some((floor(bucket) + floor(bucket + 1)) / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_inside_its_bucket() {
        for micros in (0..100_000).chain((100_000..130_000_000).step_by(9_973)) {
            let took = Duration::from_micros(micros);

            let bucket = bucket(took);

            assert!(floor(bucket) <= took && took < floor(bucket + 1), "{took:?} in {bucket}");
        }
    }

    #[test]
    fn a_bucket_is_a_sixteenth_wide_or_a_microsecond() {
        for bucket in 0..BUCKETS {
            let width = floor(bucket + 1) - floor(bucket);

            assert!(width <= (floor(bucket) / 16).max(Duration::from_micros(1)), "{bucket}");
        }
    }

    #[test]
    fn what_takes_too_long_is_in_the_last_bucket() {
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert!(floor(BUCKETS - 1) > Duration::from_secs(120));
    }

    #[test]
    fn a_quantile_is_off_by_a_thirtieth_at_most() {
        let mut outcomes = Outcomes::default();
        (1..=10_000).for_each(|n| outcomes.record(Duration::from_micros(n * 100), false));

        for q in [0.5, 0.9, 0.99] {
            let told = outcomes.quantile(q).unwrap().as_secs_f64();
            assert!((told / q - 1.0).abs() < 0.032, "{q}: {told}");
        }
        assert_eq!(Outcomes::default().quantile(0.5), None);
    }

    #[test]
    fn a_window_is_the_difference_of_two_readings() {
        let mut now = Outcomes::default();
        now.record(Duration::from_millis(3), true);
        let then = now.clone();

        now.record(Duration::from_millis(5), false);
        now.record(Duration::from_millis(80), true);

        let window = now.since(&then);
        assert_eq!((window.requests(), window.failures), (2, 1));
        assert_eq!(window.at_or_above(bucket(Duration::from_millis(80))), 1);
        let mut sum = then;
        sum.add(&window);
        assert_eq!(sum, now);
    }
}
