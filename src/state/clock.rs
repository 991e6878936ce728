//! Time on the request path: milliseconds since the process started, monotonic. Read once per request; everything in
//! `decide` and `state` takes it as an argument. Wall time never decides a deadline (reliability.md H9); a deadline that must
//! survive a restart is kept in wall time, and turned into process time once, when it is first seen.

use std::time::{Duration, Instant, SystemTime};

/// Milliseconds since it was started. Copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at [`Self::LEAD`], so that a time somewhat in the past still is a number.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Goes on from what another process's clock shows now.
    #[must_use]
    pub fn going_on(now: u64) -> Self {
        let instant = Instant::now();
        Self(instant.checked_sub(Duration::from_millis(now.saturating_sub(Self::LEAD))).unwrap_or(instant))
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

/// One moment on both clocks, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Moment {
    /// [`Clock::now`].
    pub clock: u64,
    /// Since 1970.
    pub wall: u64,
}

impl Clock {
    /// Now, on both clocks.
    #[must_use]
    pub fn moment(self) -> Moment {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Moment { clock: self.now(), wall: millis(since) }
    }
}

/// Where nothing is kept and both may be the same: tests, benches, `explain` on a file.
impl From<u64> for Moment {
    fn from(both: u64) -> Self {
        Self { clock: both, wall: both }
    }
}

/// A duration in the unit of [`Clock::now`].
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
