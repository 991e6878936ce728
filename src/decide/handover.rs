//! From the endpoints that a Service had to those that it will have: what is used while the old ones are no longer
//! named and no new one is ready yet, as when a Service's selector goes from blue to green before green is up.
//!
//! Only what *vanished* is held: an endpoint that is named and not ready, or that was on its way out, or whose pod is
//! known to be gone, leaves at once; so does everything when nothing new is awaited. Once anything is usable, that is the
//! answer, whatever was before. It knows no clock: `now` is an argument.

use super::slices::{Discovered, Reading};

/// How long vanished endpoints are used at most. The cluster, too, gives a pod that it no longer hears of so long (the
/// default `tolerationSeconds` of an unreachable node).
pub const HOLD_AT_MOST: u64 = 300_000;

/// What one source's endpoints were when it last had some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handover {
    last: Vec<Last>,
    /// Since when, in milliseconds, those that are held of `last` are all there is.
    since: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Last {
    endpoint: Discovered,
    /// It has not been seen otherwise than usable and staying.
    is_good: bool,
}

impl Handover {
    /// With what a version had from elsewhere: another source, another run of perch.
    #[must_use]
    pub fn from(endpoints: impl IntoIterator<Item = Discovered>) -> Self {
        let last = endpoints.into_iter().map(|endpoint| Last { is_good: !endpoint.is_draining, endpoint });
        Self { last: last.collect(), since: None }
    }

    /// The endpoints to use, after a reading. `is_gone` is asked of the uids of pods.
    pub fn take(&mut self, reading: Reading, is_gone: impl Fn(&str) -> bool, now: u64) -> Vec<Discovered> {
        let Reading { usable, ending, named, awaited, unready: _ } = reading;
        if !usable.is_empty() {
            let last = |e: &Discovered| Last { is_good: !ending.contains(&e.address), endpoint: e.clone() };
            *self = Self { last: usable.iter().map(last).collect(), since: None };
            return usable;
        }
        for last in &mut self.last {
            let pod = last.endpoint.pod.as_deref();
            // Whoever has the address now is asked for its own sake.
            last.is_good &= !named.contains(&last.endpoint.address) && !pod.is_some_and(&is_gone);
        }
        let is_new = |pod: &Option<_>, address| {
            let is_last =
                |l: &Last| if pod.is_some() { l.endpoint.pod == *pod } else { Some(l.endpoint.address) == address };
            !self.last.iter().any(is_last)
        };
        let held: Vec<Discovered> = self
            .last
            .iter()
            .filter(|l| l.is_good)
            .map(|l| Discovered { is_draining: false, ..l.endpoint.clone() })
            .collect();
        let since = *self.since.get_or_insert(now);
        let is_over = now.saturating_sub(since) >= HOLD_AT_MOST;
        if held.is_empty() || is_over || !awaited.iter().any(|(address, pod)| is_new(pod, *address)) {
            *self = Self::default();
            return Vec::new();
        }
        held
    }

    /// Since when only what vanished is used.
    #[must_use]
    pub fn holds_since(&self) -> Option<u64> {
        self.since
    }
}

#[cfg(test)]
mod tests;
