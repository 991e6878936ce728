//! `/api/v1/services`: the services as they are now, weights and health included.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::AdminState;
use crate::config::Affinity;
use crate::decide::WhenEmpty;
use crate::state::health::Condition;
use crate::state::snapshot::{self, Snapshot};

#[derive(Debug, Serialize)]
pub(super) struct Services {
    pub generation: u64,
    pub services: Vec<Service>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Service {
    name: String,
    affinity: AffinityShape,
    when_empty: WhenEmpty,
    /// Remembered now.
    clients: usize,
    versions: Vec<Version>,
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
struct Version {
    name: String,
    weight: f64,
    /// Of the clients, by weight.
    share: f64,
    observed: ObservedShares,
    endpoints: Vec<Endpoint>,
}

/// 0 while nothing was observed.
#[derive(Debug, Serialize)]
struct ObservedShares {
    clients: f64,
    requests: f64,
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
    let services = snapshot.services.iter().map(|s| service(state, s)).collect();
    Services { generation: snapshot.generation, services }
}

/// The service of that name.
pub(super) fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Arc<snapshot::Service>> {
    snapshot.services.iter().find(|s| &*s.name == name)
}

pub(super) fn service(state: &AdminState, service: &snapshot::Service) -> Service {
    let now = state.clock.now();
    let observed = observed(state, service, now);
    let split = &service.policy.split;
    let versions = service.versions.iter().enumerate().map(|(i, version)| Version {
        name: version.name.to_string(),
        weight: split.weight(i).unwrap_or_default().value(),
        share: split.share(i),
        observed: ObservedShares {
            clients: observed.client_share(i).unwrap_or_default(),
            requests: observed.request_share(i).unwrap_or_default(),
        },
        endpoints: version
            .endpoints
            .iter()
            .map(|endpoint| Endpoint {
                address: endpoint.address.to_string(),
                name: endpoint.name.to_string(),
                state: endpoint.health.condition(now),
                in_flight: endpoint.in_flight.load(Ordering::Relaxed),
            })
            .collect(),
    });
    Service {
        name: service.name.to_string(),
        affinity: service.config.affinity.into(),
        when_empty: service.policy.when_empty,
        clients: observed.clients.iter().sum(),
        versions: versions.collect(),
    }
}

/// What the versions of a service really have, in the split's order.
#[derive(Debug)]
pub(super) struct Observed {
    /// Remembered clients.
    clients: Vec<usize>,
    /// Requests of the last minute.
    requests: Vec<usize>,
}

impl Observed {
    /// `None` when no client is remembered.
    pub(super) fn client_share(&self, version: usize) -> Option<f64> {
        share(&self.clients, version)
    }

    /// `None` when there was no request.
    pub(super) fn request_share(&self, version: usize) -> Option<f64> {
        share(&self.requests, version)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
fn share(counts: &[usize], at: usize) -> Option<f64> {
    let sum: usize = counts.iter().sum();
    let own = counts.get(at)?;
    (sum > 0).then(|| *own as f64 / sum as f64)
}

/// Counts the pins of the service: one walk over the table.
pub(super) fn observed(state: &AdminState, service: &snapshot::Service, now: u64) -> Observed {
    let by_version = match service.config.affinity {
        Affinity::None => HashMap::new(),
        Affinity::ClientIp { timeout, .. } => state.pins.counts_by_version(service.id, now, timeout),
    };
    Observed {
        clients: service.versions.iter().map(|v| by_version.get(&v.id).copied().unwrap_or_default()).collect(),
        requests: service
            .versions
            .iter()
            .map(|v| usize::try_from(v.metrics.recent_requests()).unwrap_or(usize::MAX))
            .collect(),
    }
}
