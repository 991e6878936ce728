//! `/api/v1/services`: the services as they are now, weights and health included.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::AdminState;
use crate::config::Affinity;
use crate::decide::WhenEmpty;
use crate::state::health::Condition;
use crate::state::snapshot::{self, Snapshot, VersionId};

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
    let (now, observed) = (state.clock.now(), Observed::of(state, &snapshot.services));
    let services = snapshot.services.iter().map(|s| shape(s, &observed, now)).collect();
    Services { generation: snapshot.generation, services }
}

/// One service of that name.
pub(super) fn one(state: &AdminState, name: &str) -> Option<Service> {
    let snapshot = state.published.load();
    let found = find(&snapshot, name)?;
    Some(shape(found, &Observed::of(state, std::slice::from_ref(found)), state.clock.now()))
}

/// The service of that name.
pub(super) fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Arc<snapshot::Service>> {
    snapshot.services.iter().find(|s| &*s.name == name)
}

fn shape(service: &snapshot::Service, observed: &Observed, now: u64) -> Service {
    let split = &service.policy.split;
    let versions = service.versions.iter().enumerate().map(|(i, version)| Version {
        name: version.name.to_string(),
        weight: split.weight(i).unwrap_or_default().value(),
        share: split.share(i),
        observed: ObservedShares {
            clients: observed.client_share(service, i).unwrap_or_default(),
            requests: Observed::request_share(service, i).unwrap_or_default(),
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
        clients: service.versions.iter().map(|v| observed.clients(v)).sum(),
        versions: versions.collect(),
    }
}

/// What the versions really have.
#[derive(Debug)]
pub(super) struct Observed {
    /// Remembered clients; of services without affinity nobody.
    clients: HashMap<VersionId, usize>,
}

impl Observed {
    /// Counts the pins of these services: one walk over the whole table.
    pub(super) fn of(state: &AdminState, services: &[Arc<snapshot::Service>]) -> Self {
        let timeouts = services.iter().filter_map(|service| match service.config.affinity {
            Affinity::None => None,
            Affinity::ClientIp { timeout, .. } => Some((service.id, timeout)),
        });
        Self { clients: state.pins.counts(state.clock.now(), &timeouts.collect()) }
    }

    fn clients(&self, version: &snapshot::Version) -> usize {
        self.clients.get(&version.id).copied().unwrap_or_default()
    }

    /// Of the remembered clients; `None` when there is none.
    pub(super) fn client_share(&self, service: &snapshot::Service, version: usize) -> Option<f64> {
        share(service.versions.iter().map(|v| self.clients(v) as u64), version)
    }

    /// Of the last minute's requests; `None` when there was none.
    pub(super) fn request_share(service: &snapshot::Service, version: usize) -> Option<f64> {
        share(service.versions.iter().map(|v| v.metrics.recent_requests()), version)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
fn share(counts: impl Iterator<Item = u64> + Clone, at: usize) -> Option<f64> {
    let sum: u64 = counts.clone().sum();
    let own = counts.clone().nth(at)?;
    (sum > 0).then(|| own as f64 / sum as f64)
}
