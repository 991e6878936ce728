//! A version's outcomes as atomics: what workers add to on every request and the guard of a ramp reads once a second.
//!
//! One relaxed add per request, to the bucket of its duration (the sum of the buckets is the count of requests), and one
//! more for a failure. Workers meet on a cache line only when their requests took about as long, which makes it less
//! contended than the one counter of the service's requests beside it. 3 KiB per version.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::decide::guard::Outcomes;
use crate::decide::guard::outcomes::{BUCKETS, bucket};

/// Counts since the process began.
#[derive(Debug)]
pub(super) struct Tally {
    failures: AtomicU64,
    latency: Box<[AtomicU64; BUCKETS]>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { failures: AtomicU64::new(0), latency: Box::new([const { AtomicU64::new(0) }; BUCKETS]) }
    }
}

impl Tally {
    pub(super) fn count(&self, took: Duration, has_failed: bool) {
        if let Some(slot) = self.latency.get(bucket(took)) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
        if has_failed {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Not one instant, since requests go on; a request is counted before its failure, so none is missing.
    pub(super) fn read(&self) -> Outcomes {
        let failures = self.failures.load(Ordering::Relaxed);
        Outcomes::new(failures, self.latency.iter().map(|slot| slot.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_many_threads_are_all_there() {
        let tally = Tally::default();

        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let tally = &tally;
                scope.spawn(move || {
                    (0..1000).for_each(|n| tally.count(Duration::from_micros(n * (thread + 1)), n % 10 == 0));
                });
            }
        });

        let outcomes = tally.read();
        assert_eq!((outcomes.requests(), outcomes.failures), (4000, 400));
    }
}
