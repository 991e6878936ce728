//! The panic threshold: when too few of a version's endpoints are healthy, its checks and ejections are not believed.
//!
//! That most endpoints of a version are bad at once is less likely than that the check or the network is, and the few left
//! would be buried by the load of all. So below `health.panicPercent` the load spreads over every endpoint of the version.
//! None healthy is for `whenEmpty`; where its fallback leads nowhere, trying beats a certain 503.
//! It never moves anybody to another version: it only makes endpoints usable, of the version that a client has.

use crate::decide::WhenEmpty;

use super::snapshot::{Service, Version};

/// A version that began or stopped to panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Index into [`Service::versions`].
    pub version: usize,
    pub is_panicking: bool,
    pub healthy: usize,
    /// Healthy or not, but neither on its way out nor gone.
    pub of: usize,
}

/// Looks at the endpoints and sets which versions panic; tells what changed. To be called by one thread.
pub fn look(service: &Service, now: u64) -> Vec<Change> {
    let counts: Vec<(usize, usize)> = service.versions.iter().map(|v| count(v, now)).collect();
    let percent = service.config.health.as_ref().map_or(0, |check| usize::from(check.panic_percent));
    let has_weight = |v: usize| service.policy.split.weight(v).is_some_and(|w| !w.is_zero());
    let has_fallback = |v: usize| {
        counts.iter().enumerate().any(|(other, (healthy, _))| other != v && *healthy > 0 && has_weight(other))
    };
    let is_for_when_empty = |v: usize| match service.policy.when_empty {
        WhenEmpty::Fallback => has_fallback(v),
        WhenEmpty::Fail => true,
    };
    let versions = service.versions.iter().zip(&counts).enumerate();
    versions
        .filter_map(|(i, (version, &(healthy, of)))| {
            let is_panicking = healthy * 100 < percent * of && (healthy > 0 || !is_for_when_empty(i));
            version.set_panicking(is_panicking).then_some(Change { version: i, is_panicking, healthy, of })
        })
        .collect()
}

/// Healthy ones, and all that serve.
fn count(version: &Version, now: u64) -> (usize, usize) {
    let serving = || version.endpoints.iter().filter(|e| e.health.is_serving());
    (serving().filter(|e| e.health.is_usable(now)).count(), serving().count())
}

#[cfg(test)]
mod tests;
