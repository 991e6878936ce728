//! `/api/v1/services`: the services as they are now, weights and health included.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::AdminState;
use super::process::{self, Process};
use super::recent::Figures;
use super::rollout::Shape;
use crate::config::Affinity;
use crate::control::replicas::Replica;
use crate::decide::WhenEmpty;
use crate::decide::stats::{Share, interval, wilson};
use crate::state::health::Condition;
use crate::state::pins::census::Census;
use crate::state::snapshot::{self, Snapshot};

#[derive(Debug, Serialize)]
pub(super) struct Services {
    pub generation: u64,
    process: Process,
    pub services: Vec<Service>,
    /// This one first.
    replicas: Vec<Replica>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Service {
    name: String,
    affinity: AffinityShape,
    when_empty: WhenEmpty,
    /// Remembered now.
    clients: usize,
    /// Clients that were served by another version than last time, by reason, since the process began.
    flips: BTreeMap<&'static str, u64>,
    versions: Vec<Version>,
    rollout: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub(super) enum AffinityShape {
    None,
    #[serde(rename = "ClientIP")]
    ClientIp {
        timeout_seconds: u64,
    },
}

impl From<Affinity> for AffinityShape {
    fn from(affinity: Affinity) -> Self {
        match affinity {
            Affinity::None => Self::None,
            Affinity::ClientIp { timeout, .. } => Self::ClientIp { timeout_seconds: timeout.as_secs() },
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    name: String,
    weight: f64,
    /// Of the clients, by weight.
    share: f64,
    /// Remembered now.
    clients: usize,
    observed: ObservedShares,
    /// The last minute.
    recent: Figures,
    /// Too few are healthy to believe the checks: all are used.
    is_panicking: bool,
    /// That are healthy now.
    endpoints_ready: usize,
    /// And those that the cluster names as not ready.
    endpoints_total: usize,
    endpoints: Vec<Endpoint>,
}

/// Shares with their 95 % intervals; 0, from 0 to 1, while nothing was observed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ObservedShares {
    clients: f64,
    clients_low: f64,
    clients_high: f64,
    requests: f64,
    requests_low: f64,
    requests_high: f64,
}

impl ObservedShares {
    fn new(clients: Option<Share>, requests: Option<Share>) -> Self {
        let (clients, requests) = (clients.unwrap_or_else(|| wilson(0, 0)), requests.unwrap_or_else(|| wilson(0, 0)));
        Self {
            clients: clients.value,
            clients_low: clients.low,
            clients_high: clients.high,
            requests: requests.value,
            requests_low: requests.low,
            requests_high: requests.high,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: String,
    /// As the configuration calls it.
    name: String,
    state: Condition,
    in_flight: u32,
}

/// All services of the current snapshot.
pub(super) fn all(state: &AdminState) -> Services {
    let snapshot = state.published.load();
    let (now, observed) = (state.clock.now(), Observed::of(state, &snapshot.services));
    let services = snapshot.services.iter().map(|s| shape(state, &snapshot, s, &observed, now)).collect();
    let replicas = state.control.replicas().show(snapshot.generation, snapshot.rollouts.sequence);
    Services { generation: snapshot.generation, process: process::shape(state), services, replicas }
}

/// One service of that name.
pub(super) fn one(state: &AdminState, name: &str) -> Option<Service> {
    let snapshot = state.published.load();
    let found = find(&snapshot, name)?;
    Some(shape(state, &snapshot, found, &Observed::of(state, std::slice::from_ref(found)), state.clock.now()))
}

/// The service of that name.
pub(super) fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Arc<snapshot::Service>> {
    snapshot.services.iter().find(|s| &*s.name == name)
}

fn shape(
    state: &AdminState,
    snapshot: &Snapshot,
    service: &snapshot::Service,
    observed: &Observed,
    now: u64,
) -> Service {
    let split = &service.policy.split;
    let versions = service.versions.iter().enumerate().map(|(i, version)| Version {
        name: version.name.to_string(),
        weight: split.weight(i).unwrap_or_default().value(),
        share: split.share(i),
        clients: observed.clients(version),
        observed: ObservedShares::new(observed.client_share(service, i), observed.request_share(service, i)),
        recent: state.live.recent.last_minute(version, now),
        is_panicking: version.is_panicking(),
        endpoints_ready: version.endpoints.iter().filter(|e| e.health.is_usable(now)).count(),
        endpoints_total: version.endpoints.len() + version.unready.len(),
        endpoints: version
            .endpoints
            .iter()
            .map(|endpoint| Endpoint {
                address: endpoint.address.to_string(),
                name: endpoint.name.to_string(),
                state: endpoint.health.condition(now),
                in_flight: endpoint.in_flight.load(Ordering::Relaxed),
            })
            .chain(version.unready.iter().map(|address| Endpoint {
                address: address.to_string(),
                name: address.to_string(),
                state: Condition::NotReady,
                in_flight: 0,
            }))
            .collect(),
    });
    Service {
        name: service.name.to_string(),
        affinity: service.config.affinity.into(),
        when_empty: service.policy.when_empty,
        clients: service.versions.iter().map(|v| observed.clients(v)).sum(),
        flips: service.metrics.flips().map(|(reason, count)| (reason.as_str(), count)).collect(),
        versions: versions.collect(),
        rollout: Shape::new(state, snapshot, service, now),
    }
}

/// What the versions really have.
#[derive(Debug)]
pub(super) struct Observed {
    /// Of services without affinity nobody is remembered.
    census: Census,
}

impl Observed {
    /// Counts the pins of these services: one walk over the whole table.
    pub(super) fn of(state: &AdminState, services: &[Arc<snapshot::Service>]) -> Self {
        let timeouts = services.iter().filter_map(|service| match service.config.affinity {
            Affinity::None => None,
            Affinity::ClientIp { timeout, .. } => Some((service.id, timeout)),
        });
        Self { census: state.pins.census(state.clock.now(), &timeouts.collect()) }
    }

    /// Remembered clients whose last answer was this version's. Exact as long as the table has room for all: who got no
    /// pin (`perch_affinity_refusals_total`), or lost it early (`perch_affinity_evictions_total`), is missing.
    pub(super) fn clients(&self, version: &snapshot::Version) -> usize {
        self.census.clients(version.id)
    }

    /// Of the remembered clients; `None` when there is none.
    pub(super) fn client_share(&self, service: &snapshot::Service, version: usize) -> Option<Share> {
        let (own, all) = sum(service.versions.iter().map(|v| self.clients(v) as u64), version)?;
        (all > 0).then(|| wilson(own, all))
    }

    /// Of the last minute's requests; `None` when there was none. The requests of a client go together, so they tell no
    /// more about the split than as many clients that ask equally often would.
    #[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
    pub(super) fn request_share(&self, service: &snapshot::Service, version: usize) -> Option<Share> {
        let (own, all) = sum(service.versions.iter().map(|v| v.metrics.recent_requests()), version)?;
        let trials = self.census.effective_clients(service.id).map_or(all as f64, |clients| clients.min(all as f64));
        (all > 0).then(|| interval(own as f64 / all as f64, trials))
    }
}

/// The one at this place, and all.
fn sum(counts: impl Iterator<Item = u64> + Clone, at: usize) -> Option<(u64, u64)> {
    Some((counts.clone().nth(at)?, counts.sum()))
}
