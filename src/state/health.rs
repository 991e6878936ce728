//! Whether an endpoint may be used: active checks, passive ejection, draining, gone. Lock-free reads.

use crate::config::Ejection;

/// One endpoint's condition.
#[derive(Debug, Default)]
pub struct Health {}

impl Health {
    /// May take a new request at `now` (milliseconds, [`super::Clock`]): not gone, not draining, checks pass, not ejected.
    #[must_use]
    pub fn is_usable(&self, _now: u64) -> bool {
        true
    }

    /// A response came back.
    pub fn succeeded(&self) {}

    /// A connect failed or the answer was broken. Returns true when this made the endpoint ejected. `others_usable`
    /// tells whether the cap allows one more.
    pub fn failed(&self, _now: u64, _rules: &Ejection, _may_eject: impl FnOnce() -> bool) -> bool {
        false
    }
}

/// Bounds retries to a share of the requests of the last ten seconds (GEP-3388).
#[derive(Debug, Default)]
pub struct RetryBudget {}

impl RetryBudget {
    /// Counts a request.
    pub fn request(&self, _now: u64) {}

    /// Takes one retry from the budget, if there is one left.
    #[must_use]
    pub fn take(&self, _now: u64) -> bool {
        true
    }
}
