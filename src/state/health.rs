//! Whether an endpoint may be used: active checks, passive ejection, draining, gone. And the retry budget.
//!
//! All of it is atomics: requests read and report without a lock, the checks and the writer store from outside. An
//! endpoint is out when any of the four says so. It does not know what a request or a check is.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use serde::Serialize;

use super::clock::millis;
use crate::config::{Ejection, Retries};

/// One endpoint's condition.
#[derive(Debug, Default)]
pub struct Health {
    /// Of `UNHEALTHY`, `DRAINING`, `GONE`.
    out: AtomicU8,
    /// Failures in a row.
    failures: AtomicU32,
    /// Ejections without a success in between.
    ejections: AtomicU32,
    ejected_until: AtomicU64,
    /// When it joined endpoints that served already, or passed its checks again; 0: never.
    came: AtomicU64,
}

const UNHEALTHY: u8 = 1;
const DRAINING: u8 = 2;
const GONE: u8 = 4;

/// The longest ejection, in units of the first.
const MAX_BACKOFF: u64 = 10;

/// An endpoint's condition in one word, equal in the API and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Not in the set any more; requests in flight finish.
    Gone,
    /// On its way out; requests in flight and connections finish.
    Draining,
    /// Named by the cluster as not ready, and so never used: [`super::snapshot::Version::unready`].
    NotReady,
    /// Its active check fails.
    Unhealthy,
    /// Out for a while after failures in a row.
    Ejected,
    /// May be used.
    Ready,
}

impl Condition {
    /// All, in the order of the API and the metrics.
    pub const ALL: [Self; 6] =
        [Self::Ready, Self::Ejected, Self::Unhealthy, Self::NotReady, Self::Draining, Self::Gone];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Draining => "draining",
            Self::NotReady => "not-ready",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Ready => "ready",
        }
    }
}

impl Health {
    /// Of an endpoint that joins others which serve already.
    #[must_use]
    pub fn joining(now: u64) -> Self {
        Self { came: AtomicU64::new(now), ..Self::default() }
    }

    /// For how long it can have been in use since it last came: joined, passed its checks again, or was no longer ejected.
    #[must_use]
    pub fn age(&self, now: u64) -> u64 {
        match self.came.load(Ordering::Relaxed).max(self.ejected_until.load(Ordering::Relaxed)) {
            0 => u64::MAX,
            came => now.saturating_sub(came),
        }
    }

    /// May take a new request at `now` ([`super::clock::Clock`]): not gone, not draining, checks pass (or never ran), not
    /// ejected.
    #[must_use]
    pub fn is_usable(&self, now: u64) -> bool {
        self.out.load(Ordering::Relaxed) == 0 && now >= self.ejected_until.load(Ordering::Relaxed)
    }

    /// Neither draining nor gone, whatever checks and ejections say: what may be used while its version panics
    /// ([`super::panic`]).
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.out.load(Ordering::Relaxed) & (DRAINING | GONE) == 0
    }

    /// Its condition in one word; the most final one when several hold.
    #[must_use]
    pub fn condition(&self, now: u64) -> Condition {
        let out = self.out.load(Ordering::Relaxed);
        if out & GONE != 0 {
            Condition::Gone
        } else if out & DRAINING != 0 {
            Condition::Draining
        } else if out & UNHEALTHY != 0 {
            Condition::Unhealthy
        } else if self.is_ejected(now) {
            Condition::Ejected
        } else {
            Condition::Ready
        }
    }

    /// Out because of failures in a row.
    #[must_use]
    pub fn is_ejected(&self, now: u64) -> bool {
        now < self.ejected_until.load(Ordering::Relaxed)
    }

    /// No longer in the set: never used again (an address that comes back is another endpoint).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.out.load(Ordering::Relaxed) & GONE != 0
    }

    /// A response came back.
    pub fn succeeded(&self) {
        // Loads first: in the usual case nobody writes to a line that every worker reads.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.ejections.load(Ordering::Relaxed) != 0 {
            self.ejections.store(0, Ordering::Relaxed);
        }
    }

    /// A connect failed or the answer was broken. Returns true when this made the endpoint ejected. `may_eject` tells
    /// whether the cap allows one more ([`cap_allows`]).
    ///
    /// Back from an ejection, a first failure ejects it again, for twice as long (up to ten times the configured time):
    /// a dead endpoint costs one failed attempt per probe. A success makes it as good as new.
    pub fn failed(&self, now: u64, rules: &Ejection, may_eject: impl FnOnce() -> bool) -> bool {
        // Requests that were in flight when it was ejected say nothing new.
        if rules.consecutive_failures == 0 || self.is_ejected(now) {
            return false;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let again = self.ejections.load(Ordering::Relaxed) > 0;
        if failures < rules.consecutive_failures && !again {
            return false;
        }
        // Two endpoints ejected at once could pass the cap together. Nobody waits: who finds it taken ejects at the
        // next failure.
        static EJECTING: Mutex<()> = Mutex::new(());
        let Ok(_one_at_a_time) = EJECTING.try_lock() else { return false };
        if self.is_ejected(now) || !may_eject() {
            return false;
        }
        let before = self.ejections.fetch_add(1, Ordering::Relaxed);
        let times = 1u64.checked_shl(before).map_or(MAX_BACKOFF, |t| t.min(MAX_BACKOFF));
        let out_for = millis(rules.duration).saturating_mul(times);
        self.failures.store(0, Ordering::Relaxed);
        self.ejected_until.store(now.saturating_add(out_for), Ordering::Relaxed);
        true
    }

    /// The active check's verdict; `true` also when there is no check any more.
    pub fn set_healthy(&self, healthy: bool, now: u64) {
        // First, as nobody is to find it back and long in use.
        if healthy && self.out.load(Ordering::Relaxed) & UNHEALTHY != 0 {
            self.came.store(now, Ordering::Relaxed);
        }
        self.set(UNHEALTHY, !healthy);
    }

    /// On its way out (Kubernetes: terminating but serving).
    pub fn set_draining(&self, draining: bool) {
        self.set(DRAINING, draining);
    }

    /// Left the set, for good.
    pub fn set_gone(&self) {
        self.set(GONE, true);
    }

    fn set(&self, flag: u8, on: bool) {
        // A load first: in the usual case nobody writes to a line that every worker reads.
        if (self.out.load(Ordering::Relaxed) & flag != 0) == on {
            return;
        }
        if on {
            self.out.fetch_or(flag, Ordering::Relaxed);
        } else {
            self.out.fetch_and(!flag, Ordering::Relaxed);
        }
    }
}

/// Whether one more of a version's endpoints (all of them in `version`, the failing one too) may be ejected: at most
/// `max_percent` of them, but one unless it is 0, and never the last usable one.
pub fn cap_allows<'a>(version: impl Iterator<Item = &'a Health>, now: u64, max_percent: u8) -> bool {
    let (mut all, mut ejected, mut usable) = (0u64, 0u64, 0u64);
    for health in version {
        all += 1;
        ejected += u64::from(health.is_ejected(now));
        usable += u64::from(health.is_usable(now));
    }
    let cap = (all * u64::from(max_percent) / 100).max(u64::from(max_percent > 0));
    ejected < cap && usable > 1
}

/// Bounds retries to a share of the requests of the last ten seconds (GEP-3388), and a number per second that is allowed
/// whatever the share says.
#[derive(Debug)]
pub struct RetryBudget {
    percent: u64,
    min_per_second: u64,
    requests: Window,
    retries: Window,
}

impl RetryBudget {
    /// An unused budget.
    #[must_use]
    pub fn new(rules: &Retries) -> Self {
        Self {
            percent: rules.budget_percent.into(),
            min_per_second: rules.min_per_second.into(),
            requests: Window::default(),
            retries: Window::default(),
        }
    }

    /// Counts a request.
    pub fn request(&self, now: u64) {
        self.requests.add(now);
    }

    /// Takes one retry from the budget, if there is one left.
    #[must_use]
    pub fn take(&self, now: u64) -> bool {
        let allowed = self.requests.sum(now) * self.percent / 100;
        let earlier = self.retries.sum_but_now(now);
        // For the running second: what the share leaves, or the minimum.
        let at_most = allowed.saturating_sub(earlier).max(self.min_per_second);
        self.retries.add_below(now, at_most)
    }
}

impl Default for RetryBudget {
    /// 20 %, and 10 a second.
    fn default() -> Self {
        Self::new(&Retries { budget_percent: 20, min_per_second: 10 })
    }
}

/// A count over the last ten seconds, in buckets of one second.
#[derive(Debug, Default)]
struct Window([AtomicU64; SECONDS]);

const SECONDS: usize = 10;

/// A bucket: which second (low 32 bits of it), and how many in it.
const fn bucket(second: u64, count: u64) -> u64 {
    (second << 32) | (count & 0xffff_ffff)
}

const fn count_in(bucket: u64, second: u64) -> u64 {
    if bucket >> 32 == second & 0xffff_ffff { bucket & 0xffff_ffff } else { 0 }
}

impl Window {
    #[expect(clippy::cast_possible_truncation, clippy::indexing_slicing, reason = "a remainder by the array's length")]
    fn at(&self, second: u64) -> &AtomicU64 {
        &self.0[(second % SECONDS as u64) as usize]
    }

    fn add(&self, now: u64) {
        let second = now / 1000;
        let cell = self.at(second);
        let found = cell.load(Ordering::Relaxed);
        if count_in(found, second) == 0 && cell.compare_exchange(found, bucket(second, 1), ORDER, ORDER).is_ok() {
            return;
        }
        cell.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds one to the running second unless it would be more than `at_most`.
    fn add_below(&self, now: u64, at_most: u64) -> bool {
        let second = now / 1000;
        self.at(second)
            .fetch_update(ORDER, ORDER, |found| {
                let count = count_in(found, second);
                (count < at_most).then(|| bucket(second, count + 1))
            })
            .is_ok()
    }

    fn sum_but_now(&self, now: u64) -> u64 {
        let second = now / 1000;
        (1..SECONDS as u64).filter_map(|ago| second.checked_sub(ago)).map(|s| self.count(s)).sum()
    }

    fn sum(&self, now: u64) -> u64 {
        self.sum_but_now(now) + self.count(now / 1000)
    }

    fn count(&self, second: u64) -> u64 {
        count_in(self.at(second).load(Ordering::Relaxed), second)
    }
}

/// Counts only; nothing else is published through them.
const ORDER: Ordering = Ordering::Relaxed;

#[cfg(test)]
mod tests;
