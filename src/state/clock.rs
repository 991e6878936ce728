//! Time on the request path: milliseconds since the process started, monotonic. Read once per request; everything in
//! `decide` and `state` takes it as an argument. Wall time never decides a deadline (reliability.md H9).

use std::time::{Duration, Instant};

/// Milliseconds since it was started. Copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at [`Self::LEAD`], so that a time somewhat in the past still is a number.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// What a clock shows when it starts: 0 stays free for "never".
    pub const LEAD: u64 = 1000;

    /// At a given time.
    #[must_use]
    pub fn at(self, instant: Instant) -> u64 {
        Self::LEAD + millis(instant.saturating_duration_since(self.0))
    }

    /// Now.
    #[must_use]
    pub fn now(self) -> u64 {
        Self::LEAD + millis(self.0.elapsed())
    }
}

/// A duration in the unit of [`Clock::now`].
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
