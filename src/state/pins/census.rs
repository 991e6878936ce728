//! Who is remembered: counts by version, how unevenly the clients ask, and the heaviest of them.
//!
//! Each of these walks the whole table, shard by shard under a read lock: some 50 ms for a million pins. Nothing of it
//! belongs on the path of a request, or on a thread that others wait for.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Known, Pins, is_idle, seconds, seconds_up};
use crate::decide::ClientKey;
use crate::state::snapshot::{ServiceId, VersionId};

/// The remembered clients of some services.
#[derive(Clone, Debug, Default)]
pub struct Census {
    versions: HashMap<VersionId, usize>,
    services: HashMap<ServiceId, Sums>,
}

/// Of the clients' requests, each client's since it is remembered.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    requests: f64,
    squares: f64,
}

/// A client and what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heavy {
    pub client: ClientKey,
    pub version: VersionId,
    /// Since it is remembered; see [`super::tally`] for how exact.
    pub requests: u64,
    pub idle_seconds: u32,
}

/// The heaviest clients of a service.
#[derive(Clone, Debug, Default)]
pub struct Heaviest {
    /// Of all its remembered clients.
    pub clients: usize,
    pub requests: u64,
    /// The most requests first.
    pub top: Vec<Heavy>,
}

impl Census {
    /// How many clients got their last answer from this version.
    #[must_use]
    pub fn clients(&self, version: VersionId) -> usize {
        self.versions.get(&version).copied().unwrap_or_default()
    }

    /// How many clients that all ask equally often would tell as much about a share of requests as these do: Kish's
    /// effective sample size. One client with half of all requests makes it less than 4, however many others there are.
    #[must_use]
    pub fn effective_clients(&self, service: ServiceId) -> Option<f64> {
        let sums = self.services.get(&service)?;
        (sums.squares > 0.0).then(|| sums.requests * sums.requests / sums.squares)
    }
}

impl Pins {
    /// How many clients of a service were active within `timeout`, by the version of their last answer.
    #[must_use]
    pub fn counts_by_version(&self, service: ServiceId, now: u64, timeout: Duration) -> HashMap<VersionId, usize> {
        self.census(now, &HashMap::from([(service, timeout)])).versions
    }

    /// The clients of several services that were active within the service's timeout, in one walk.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a client's requests stay far below 2^53")]
    pub fn census(&self, now: u64, timeouts: &HashMap<ServiceId, Duration>) -> Census {
        let now = seconds(now);
        let mut census = Census::default();
        if timeouts.is_empty() {
            return census;
        }
        for pin in &self.map {
            let Known { key, requests, used } = pin.key();
            let timeout = timeouts.get(&key.service);
            if timeout.is_some_and(|t| !is_idle(used.load(Ordering::Relaxed), now, seconds_up(*t))) {
                *census.versions.entry(pin.rest.version()).or_default() += 1;
                let requests = requests.count() as f64;
                let sums = census.services.entry(key.service).or_default();
                sums.requests += requests;
                sums.squares += requests * requests;
            }
        }
        census
    }

    /// The `most` clients of a service with the most requests, of those active within `timeout`.
    #[must_use]
    pub fn heaviest(&self, service: ServiceId, now: u64, timeout: Duration, most: usize) -> Heaviest {
        let (now, timeout) = (seconds(now), seconds_up(timeout));
        let mut heaviest = Heaviest::default();
        // The lightest of those kept is on top; equal ones are told apart by their key, so that the list does not flicker.
        let mut top = BinaryHeap::with_capacity(most + 1);
        for pin in &self.map {
            let Known { key, requests, used } = pin.key();
            let used = used.load(Ordering::Relaxed);
            if key.service != service || is_idle(used, now, timeout) {
                continue;
            }
            let requests = requests.count();
            heaviest.clients += 1;
            heaviest.requests += requests;
            top.push(Reverse((requests, key.client, pin.rest.version().0, now.saturating_sub(used))));
            if top.len() > most {
                top.pop();
            }
        }
        let top = top.into_sorted_vec().into_iter().map(|Reverse((requests, client, version, idle_seconds))| Heavy {
            client: ClientKey::from_bytes(client),
            version: VersionId(version),
            requests,
            idle_seconds,
        });
        heaviest.top = top.collect();
        heaviest
    }
}
