//! The immutable snapshot: one picture, one generation. Requests read it without a lock; live parts (endpoint health,
//! counters) are shared between snapshots by identity.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::config;
use crate::decide::Policy;
use crate::decide::places::Places;
use crate::decide::rollout::Rollouts;
use crate::decide::route::RouteTable;
use crate::decide::slow_start;
use crate::metrics::{ServiceMetrics, VersionMetrics};
use crate::state::health::{Health, RetryBudget};

/// Everything a request is decided on.
#[derive(Debug)]
pub struct Snapshot {
    /// Grows by one with each publication; 1 is the first.
    pub generation: u64,
    /// In the config's order.
    pub listeners: Vec<Arc<Listener>>,
    /// In the config's order: [`config::Route::service`] is an index into it.
    pub services: Vec<Arc<Service>>,
    /// What it was built from. Weights set at run time are in the services, not here.
    pub config: Arc<config::Config>,
    /// What was done to the weights, by service; every service of the configuration is in it.
    pub rollouts: Arc<Rollouts>,
}

/// A listener as the data path sees it. Kept by identity when nothing of it changed.
#[derive(Debug)]
pub struct Listener {
    pub config: Arc<config::Listener>,
    /// Finds an index into `config.routes` of the snapshot.
    pub routes: RouteTable,
}

/// A service as the data path sees it. Kept by identity when nothing of it changed.
#[derive(Debug)]
pub struct Service {
    /// Stable for a name as long as the process lives: part of a pin's key.
    pub id: ServiceId,
    pub name: Arc<str>,
    pub config: config::Service,
    /// Split, holds and `whenEmpty` now in force.
    pub policy: Policy,
    /// Grows when anything changes that may move a client (weights, versions, holds, salt): two different answers for
    /// one client in one epoch need another reason, or are an unexplained flip.
    pub epoch: u32,
    /// The last epoch that began with an abort; 0 when none did.
    pub aborted: u32,
    /// The last epoch that began with anything but the end of a drain's time.
    pub turned: u32,
    /// In the split's order.
    pub versions: Vec<Version>,
    pub metrics: Arc<ServiceMetrics>,
    pub retry_budget: Arc<RetryBudget>,
}

/// 16 bits: a pin has room for no more, and 65,536 names in the life of a process are enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceId(pub u16);

/// Stable for a (service, version name) as long as the process lives. At most [`VersionId::LAST`], as a pin has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VersionId(pub u32);

impl VersionId {
    /// A million names in the life of a process.
    pub const LAST: u32 = (1 << 20) - 2;
}

/// Never used twice: an address that comes back after it was gone is another endpoint, and never meets an old pooled
/// connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId(pub u32);

/// A version as the data path sees it.
#[derive(Debug)]
pub struct Version {
    pub id: VersionId,
    pub name: Arc<str>,
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Where the cluster names endpoints that are not to be used, as they are not ready. Nothing is decided on them:
    /// they are here to be shown.
    pub unready: Arc<[SocketAddr]>,
    /// The endpoints again, for the choice of one. Kept by identity while the set stays the same.
    pub places: Arc<Places>,
    pub metrics: Arc<VersionMetrics>,
    /// Shared by all snapshots that have the version; see [`super::panic`].
    pub panic: Arc<AtomicBool>,
    /// In milliseconds; 0: off. See [`slow_start`].
    pub slow_start: u64,
}

impl Version {
    /// Whether a new request may go to this endpoint of its: it is usable, or the version panics.
    #[must_use]
    pub fn takes(&self, endpoint: &Endpoint, now: u64) -> bool {
        endpoint.health.is_usable(now) || (self.is_panicking() && endpoint.health.is_serving())
    }

    /// How warm its endpoints are, for one decision.
    #[must_use]
    pub fn warmth(&self) -> Warmth {
        // In a panic all are needed, and those that fail their checks count for warm.
        let window = if self.is_panicking() { 0 } else { self.slow_start };
        Warmth { window, most: Cell::new(None) }
    }

    /// Checks and ejections are not believed.
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        self.panic.load(Ordering::Relaxed)
    }

    /// Returns true when this changed it.
    pub(super) fn set_panicking(&self, on: bool) -> bool {
        self.panic.swap(on, Ordering::Relaxed) != on
    }
}

/// Who is let in by endpoints that have just come (back), for one decision about a version's endpoints.
#[derive(Debug)]
pub struct Warmth {
    window: u64,
    /// The part of the warmest usable one; looked for once, when it is needed.
    most: Cell<Option<u64>>,
}

impl Warmth {
    /// Whether an endpoint of the version's that [takes](Version::takes) requests is warm enough for this newcomer: a
    /// client ([`slow_start::who`]) or a request's roll. At least one of them is for everyone.
    #[must_use]
    pub fn lets_in(&self, version: &Version, endpoint: &Endpoint, who: u64, now: u64) -> bool {
        let part = |e: &Endpoint| slow_start::part(e.health.age(now), self.window);
        let own = if self.window == 0 { slow_start::FULL } else { part(endpoint) };
        if own == slow_start::FULL {
            return true;
        }
        let most = self.most.get().unwrap_or_else(|| {
            let mut most = 0;
            for other in version.endpoints.iter().filter(|e| e.health.is_usable(now)) {
                most = most.max(part(other));
                if most == slow_start::FULL {
                    break;
                }
            }
            self.most.set(Some(most));
            most
        });
        slow_start::lets_in(who, endpoint.seed, own, most.max(own))
    }
}

/// One address that serves a version, live state included. Kept by identity while it stays in the set.
#[derive(Debug)]
pub struct Endpoint {
    pub id: EndpointId,
    pub address: SocketAddr,
    /// The uid of the pod in Kubernetes that has the address, if one has.
    pub pod: Option<Arc<str>>,
    /// What the config calls it (`10.0.0.7:80`, `hello.example:80`).
    pub name: Arc<str>,
    pub transport: Arc<config::Transport>,
    /// [`crate::decide::choose::endpoint_seed`] of its identity.
    pub seed: u64,
    /// Requests in flight, over all workers.
    pub in_flight: AtomicU32,
    pub health: Health,
}

impl Endpoint {
    /// What makes two endpoints one for whoever has a connection to it: address, pod and transport.
    #[must_use]
    pub fn place(&self) -> (SocketAddr, Option<&str>, &config::Transport) {
        (self.address, self.pod.as_deref(), &self.transport)
    }
}
