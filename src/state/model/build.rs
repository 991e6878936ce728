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

/// An endpoint to be: address, pod, and host and port in the configuration if they aren't the address.
type Wanted<'b> = (SocketAddr, Option<&'b Arc<str>>, Option<(&'b String, u16)>);

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
        let recalls = self.deadlines.recalls(config, self.rollout, salt, &holds);
        let policy = Policy { split, when_empty: config.when_empty, holds, recalls };
        let moves = before.is_none_or(|b| moves_clients(b, &b.policy.holds, config, &policy));
        let unmoved = before.filter(|b| !moves && b.config == *config && has_same_recalls(&b.policy, &policy));
        if let Some(before) = unmoved
            && std::iter::zip(&config.versions, &before.versions).all(|(v, b)| self.has_same_endpoints(v, b))
        {
            return Ok(before.clone());
        }
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
            let unready = self.unready(version, before);
            let name = version.name.clone();
            versions.push(Version { id, name, endpoints, unready, places, metrics, panic, slow_start });
        }
        if let Some(before) = unmoved
            && std::iter::zip(&before.versions, &versions)
                .all(|(b, v)| is_same_set(&b.endpoints, &v.endpoints) && b.unready == v.unready)
        {
            return Ok(before.clone());
        }
        let turns = before.is_none_or(|b| moves_clients(b, &left(&b.policy.holds, self.now), config, &policy));
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

    /// Whether a version of the same configuration would get the endpoints that it has. Compared in place: nearly all of a
    /// large cluster's endpoints are as they were at nearly each publication.
    fn has_same_endpoints(&self, version: &config::Version, before: &Version) -> bool {
        if self.unready(version, Some(before)) != before.unready {
            return false;
        }
        let Some(wanted) = self.wanted(version) else { return true };
        let is_named = is_verified_by_name(version);
        let mut known = before.endpoints.iter();
        // Where an address is named twice this says no, and the slow way finds out.
        let mut wanted = wanted;
        let are_same = wanted.all(|(address, pod, name)| {
            known.next().is_some_and(|e| {
                (e.address, e.pod.as_ref()) == (address, pod) && (!is_named || *e.name == *called(address, name))
            })
        });
        are_same && known.next().is_none()
    }

    /// Address, pod and the name in the configuration of each endpoint that the version is to have, in order; `None`
    /// while nobody has asked the cluster.
    fn wanted<'b>(&'b self, version: &'b config::Version) -> Option<impl Iterator<Item = Wanted<'b>>> {
        let found = match &version.kubernetes {
            Some(source) => self.cluster.endpoints(source)?,
            None => &[],
        };
        let found = found.iter().map(|found| (found.address, found.pod.as_ref(), None));
        let configured = version.endpoints.iter().flat_map(|endpoint| {
            let (ip, named) = match endpoint {
                EndpointAddress::Ip(address) => (Some((*address, None, None)), None),
                EndpointAddress::Name { host, port } => (None, Some((host, *port))),
            };
            let addresses = named.and_then(|(host, port)| self.names.get(&(host.clone(), port)));
            let addresses = addresses.into_iter().flatten();
            ip.into_iter().chain(addresses.map(move |address| (*address, None, named)))
        });
        Some(found.chain(configured))
    }

    fn unready(&self, version: &config::Version, before: Option<&Version>) -> Arc<[SocketAddr]> {
        match version.kubernetes.as_ref().map(|source| self.cluster.unready(source)) {
            Some(Some(unready)) => unready,
            // Nobody has asked the cluster yet, as with the endpoints.
            Some(None) => before.map(|before| before.unready.clone()).unwrap_or_default(),
            None => Arc::default(),
        }
    }

    /// The version's endpoints in the file's order, those of a name in the order of their addresses. One that was there
    /// before is the same one.
    fn endpoints(
        &self,
        version: &config::Version,
        before: Option<&Version>,
        identities: &mut Identities,
    ) -> Result<Vec<Arc<Endpoint>>, BuildError> {
        let Some(wanted) = self.wanted(version) else {
            // Nobody has asked the cluster yet: what was there before is the best guess.
            let before = before.into_iter().flat_map(|v| &v.endpoints);
            return Ok(before.filter(|e| e.transport == version.transport).cloned().collect());
        };
        let known: HashMap<(SocketAddr, Option<&str>), &Arc<Endpoint>> =
            before.into_iter().flat_map(|v| &v.endpoints).map(|e| ((e.address, e.pod.as_deref()), e)).collect();
        // Where nobody serves yet, as at perch's own start, there is no one to spare a newcomer.
        let is_joining = !known.is_empty();
        let mut seen = HashSet::with_capacity(version.endpoints.len());
        let mut endpoints = Vec::with_capacity(version.endpoints.len());
        for (address, pod, name) in wanted {
            // Two names of one address are one endpoint.
            if !seen.insert(address) {
                continue;
            }
            endpoints.push(match known.get(&(address, pod.map(|p| &**p))) {
                // Another protocol or other certificates, or another name in them: another endpoint, which no old connection
                // belongs to.
                Some(known)
                    if known.transport == version.transport
                        && (!is_verified_by_name(version) || *known.name == *called(address, name)) =>
                {
                    Arc::clone(known)
                }
                _ => Arc::new(Endpoint {
                    id: identities.endpoint()?,
                    address,
                    pod: pod.cloned(),
                    name: called(address, name).into(),
                    transport: version.transport.clone(),
                    // The address, not the name: two addresses of one name are two endpoints.
                    seed: endpoint_seed(&address.to_string()),
                    in_flight: AtomicU32::new(0),
                    health: if is_joining { Health::joining(self.now) } else { Health::default() },
                }),
            });
        }
        Ok(endpoints)
    }
}

/// What the configuration calls an endpoint.
fn called(address: SocketAddr, name: Option<(&String, u16)>) -> String {
    name.map_or_else(|| address.to_string(), |(host, port)| format!("{host}:{port}"))
}

/// Whether an endpoint's name is what its certificate has to say.
fn is_verified_by_name(version: &config::Version) -> bool {
    version.transport.tls.as_ref().is_some_and(|tls| tls.hostname.is_none())
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
