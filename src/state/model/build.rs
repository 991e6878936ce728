//! One service on its way into the next snapshot. What nobody touched stays the same by identity.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::cluster::Cluster;
use super::holds::Deadlines;
use super::identities::Identities;
use super::{BuildError, Names};
use crate::config::{self, EndpointAddress};
use crate::decide::choose::endpoint_seed;
use crate::decide::places::Places;
use crate::decide::rollout::Rollout;
use crate::decide::{Hold, Policy, Recall, Salt, Split, Weight};
use crate::state::clock::millis;
use crate::state::health::{Health, RetryBudget};
use crate::state::inheritance::Inherited;
use crate::state::snapshot::{Endpoint, Service, Version};

/// One service on its way into the next snapshot.
pub(super) struct ServiceBuild<'a> {
    pub(super) config: &'a config::Service,
    /// What was done to its weights.
    pub(super) rollout: Option<&'a Rollout>,
    /// The last revision that the snapshot before knew.
    pub(super) revision_before: Option<u64>,
    pub(super) before: Option<&'a Arc<Service>>,
    /// What another process left of it.
    pub(super) inherited: Option<&'a Inherited>,
    pub(super) names: &'a Names,
    pub(super) cluster: &'a Cluster,
    pub(super) deadlines: &'a Deadlines,
    pub(super) now: u64,
}

impl ServiceBuild<'_> {
    pub(super) fn build(self, identities: &mut Identities) -> Result<Arc<Service>, BuildError> {
        let Self { config, before, .. } = self;
        let versions = config.versions.len();
        // What `Split` promises to sum up without overflow.
        if versions > 1_000 {
            return Err(BuildError::TooManyVersions { service: config.name.clone(), versions });
        }
        let (id, metrics) = identities.service(&config.name)?;
        let salt = Salt::new(config.cohort.as_deref().unwrap_or(&config.name), secret(config));
        let file = config.versions.iter().map(|v| (&*v.name, v.weight));
        let weights: Vec<Weight> = match self.rollout {
            Some(rollout) => rollout.weights_of(file),
            None => file.map(|(_, weight)| weight).collect(),
        };
        let split = Split::new(salt, config.versions.iter().map(|v| &*v.name).zip(weights));
        let holds = self.deadlines.holds(&config.name, self.rollout, config.versions.iter().map(|v| &*v.name));
        let mut versions = Vec::with_capacity(config.versions.len());
        for version in &config.versions {
            let (id, metrics) = identities.version(&config.name, &version.name)?;
            let before = before.and_then(|b| b.versions.iter().find(|v| v.id == id));
            let endpoints = self.endpoints(version, before, identities)?;
            let places = match before.filter(|b| is_same_set(&b.endpoints, &endpoints)) {
                Some(before) => before.places.clone(),
                None => Arc::new(Places::new(endpoints.iter().map(|e| e.seed))),
            };
            let panic = before.map_or_else(Arc::default, |b| b.panic.clone());
            let slow_start = millis(config.slow_start);
            let unready = match (version.kubernetes.as_ref().map(|source| self.cluster.unready(source)), before) {
                (Some(Some(unready)), _) => unready,
                // Nobody has asked the cluster yet, as with the endpoints.
                (Some(None), Some(before)) => before.unready.clone(),
                (Some(None), None) | (None, _) => Arc::default(),
            };
            let name = version.name.clone();
            versions.push(Version { id, name, endpoints, unready, places, metrics, panic, slow_start });
        }
        let recalls = self.deadlines.recalls(config, self.rollout, salt, &holds);
        let policy = Policy { split, when_empty: config.when_empty, holds, recalls };
        let moves = before.is_none_or(|b| moves_clients(b, &b.policy.holds, config, &policy));
        let turns = before.is_none_or(|b| moves_clients(b, &left(&b.policy.holds, self.now), config, &policy));
        if let Some(before) = before
            && !moves
            && before.config == *config
            && has_same_recalls(&before.policy, &policy)
            && std::iter::zip(&before.versions, &versions)
                .all(|(b, v)| is_same_set(&b.endpoints, &v.endpoints) && b.unready == v.unready)
        {
            return Ok(before.clone());
        }
        let retry_budget = match before.filter(|b| b.config.retries == config.retries) {
            Some(before) => before.retry_budget.clone(),
            None => Arc::new(RetryBudget::new(&config.retries)),
        };
        let first = self.inherited.map_or(1, |i| i.epoch_of(config, &policy));
        let epoch = before.map_or(first, |b| b.epoch.wrapping_add(u32::from(moves)));
        // Of a service that goes on where another process left it.
        let inherited = self.inherited.filter(|i| before.is_none() && i.epoch == epoch);
        let is_abort = moves && self.rollout.zip(self.revision_before).is_some_and(|(r, b)| r.was_aborted_since(b));
        Ok(Arc::new(Service {
            id,
            name: config.name.clone(),
            config: config.clone(),
            policy,
            epoch,
            aborted: if is_abort { epoch } else { before.map_or(inherited.map_or(0, |i| i.aborted), |b| b.aborted) },
            turned: before.filter(|_| !turns).map(|b| b.turned).or(inherited.map(|i| i.turned)).unwrap_or(epoch),
            versions,
            metrics,
            retry_budget,
        }))
    }

    /// The version's endpoints in the file's order, those of a name in the order of their addresses. One that was there
    /// before is the same one.
    fn endpoints(
        &self,
        version: &config::Version,
        before: Option<&Version>,
        identities: &mut Identities,
    ) -> Result<Vec<Arc<Endpoint>>, BuildError> {
        let found = version.kubernetes.as_ref().map(|source| self.cluster.endpoints(source));
        if let Some(None) = found {
            // Nobody has asked the cluster yet: what was there before is the best guess.
            let before = before.into_iter().flat_map(|v| &v.endpoints);
            return Ok(before.filter(|e| e.transport == version.transport).cloned().collect());
        }
        let known: HashMap<(SocketAddr, Option<&str>), &Arc<Endpoint>> =
            before.into_iter().flat_map(|v| &v.endpoints).map(|e| ((e.address, e.pod.as_deref()), e)).collect();
        // Where nobody serves yet, as at perch's own start, there is no one to spare a newcomer.
        let is_joining = !known.is_empty();
        let mut seen = HashSet::with_capacity(version.endpoints.len());
        let mut endpoints = Vec::with_capacity(version.endpoints.len());
        let mut add = |address: SocketAddr, pod: Option<&Arc<str>>, name: &dyn Fn() -> String| {
            // Two names of one address are one endpoint.
            if !seen.insert(address) {
                return Ok(());
            }
            endpoints.push(match known.get(&(address, pod.map(|p| &**p))) {
                // Another protocol or other certificates: another endpoint, which no old connection belongs to.
                Some(known) if known.transport == version.transport => Arc::clone(known),
                _ => Arc::new(Endpoint {
                    id: identities.endpoint()?,
                    address,
                    pod: pod.cloned(),
                    name: name().into(),
                    transport: version.transport.clone(),
                    // The address, not the name: two addresses of one name are two endpoints.
                    seed: endpoint_seed(&address.to_string()),
                    in_flight: AtomicU32::new(0),
                    health: if is_joining { Health::joining(self.now) } else { Health::default() },
                }),
            });
            Ok(())
        };
        for found in found.flatten().into_iter().flatten() {
            add(found.address, found.pod.as_ref(), &|| found.address.to_string())?;
        }
        for endpoint in &version.endpoints {
            match endpoint {
                EndpointAddress::Ip(address) => add(*address, None, &|| address.to_string())?,
                EndpointAddress::Name { host, port } => {
                    let addresses = self.names.get(&(host.clone(), *port));
                    for address in addresses.into_iter().flatten() {
                        add(*address, None, &|| format!("{host}:{port}"))?;
                    }
                }
            }
        }
        Ok(endpoints)
    }
}

fn secret(config: &config::Service) -> &str {
    config.salt.as_ref().map_or("", |s| s.0.as_str())
}

/// Whether a client that is remembered may get another answer from `config` and `policy` than from `before` with
/// `holds`, its endpoints aside.
fn moves_clients(before: &Service, holds: &[Hold], config: &config::Service, policy: &Policy) -> bool {
    let (b, p) = (&before.policy, policy);
    !is_same_split(&b.split, &p.split)
        || *holds != p.holds
        || b.when_empty != p.when_empty
        || before.config.cohort != config.cohort
        || before.config.salt != config.salt
        || before.config.affinity != config.affinity
        || before.config.overrides != config.overrides
}

fn is_same_split(a: &Split, b: &Split) -> bool {
    a.weights() == b.weights() && (0..a.len()).all(|v| a.name(v) == b.name(v))
}

/// What becomes of the holds when their time comes, and nothing else happens.
fn left(holds: &[Hold], now: u64) -> Vec<Hold> {
    let left = |hold: &Hold| match hold {
        Hold::Until(deadline) if *deadline <= now => Hold::None,
        Hold::None | Hold::Until(_) | Hold::Frozen => *hold,
    };
    holds.iter().map(left).collect()
}

fn has_same_recalls(before: &Policy, after: &Policy) -> bool {
    let is_same = |(b, a): (&Recall, &Recall)| {
        (b.version, b.there, b.until) == (a.version, a.there, a.until) && is_same_split(&b.earlier, &a.earlier)
    };
    before.recalls.len() == after.recalls.len() && std::iter::zip(&before.recalls, &after.recalls).all(is_same)
}

fn is_same_set(before: &[Arc<Endpoint>], after: &[Arc<Endpoint>]) -> bool {
    before.len() == after.len() && std::iter::zip(before, after).all(|(b, a)| Arc::ptr_eq(b, a))
}
