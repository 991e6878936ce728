//! The writer's model: what was configured, set and resolved so far, and the building of the next snapshot out of it.
//!
//! Unchanged parts are kept by identity: a service nobody touched is the same `Arc`, an endpoint that stays keeps its
//! health, counters and pool. A build that fails changes nothing: the last good snapshot stays. It does not know where
//! changes come from, and publishes nothing.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use self::cluster::Cluster;
pub use self::cluster::ClusterNews;
use self::holds::next_holds;
use self::identities::Identities;
use super::health::{Health, RetryBudget};
use super::snapshot::{Endpoint, EndpointId, Listener, Service, ServiceId, Snapshot, Version};
use crate::config::{self, Config, EndpointAddress, OnDecrease};
use crate::decide::choose::endpoint_seed;
use crate::decide::places::Places;
use crate::decide::reweigh::{Amount, ReweighError, Standing, reweigh};
use crate::decide::route::RouteTable;
use crate::decide::{Policy, Salt, Split, Weight};

mod cluster;
mod holds;
mod identities;

/// A name to resolve: host and port.
pub type HostPort = (String, u16);

/// What names stand for; the last good answer of each.
pub type Names = HashMap<HostPort, Vec<SocketAddr>>;

/// Everything that the next snapshot is built from.
#[derive(Debug)]
pub struct Model {
    last: Arc<Snapshot>,
    /// Weights set at run time, in the order of the file's versions. They win until the file's change.
    weights: HashMap<Arc<str>, Vec<Weight>>,
    names: Names,
    cluster: Cluster,
    identities: Identities,
    /// The generation that last moved clients of a service: what compare-and-set compares with.
    moved_at: HashMap<ServiceId, u64>,
    leaving: Vec<Arc<Endpoint>>,
}

/// No snapshot can be made of this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("identities are used up after 4 billion endpoints; restart perch")]
    NoMoreIdentities,
    #[error("route `{route}` names service number {service}, which does not exist; this is a mistake in perch")]
    NoSuchService { route: Arc<str>, service: usize },
    #[error("service `{service}` has {versions} versions; at most 1000 are possible")]
    TooManyVersions { service: Arc<str>, versions: usize },
}

/// Weights to set at run time.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightChange {
    pub service: String,
    /// Version names and what they are to get.
    pub amounts: Vec<(String, Amount)>,
    /// The generation that was looked at; `None`: whatever there is now.
    pub expected: Option<u64>,
    /// Allows all weights to be 0.
    pub closed: bool,
    /// Instead of the service's own, for this change.
    pub on_decrease: Option<OnDecrease>,
}

/// The weights were not set.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightError {
    #[error("there is no service `{name}`; the services are {known}")]
    UnknownService { name: String, known: String },
    #[error(
        "the split of `{service}` changed in generation {changed}, after the one you looked at; the current generation is {current}, look again"
    )]
    Conflict { service: String, changed: u64, current: u64 },
    #[error(transparent)]
    Reweigh(#[from] ReweighError),
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl Model {
    /// The first snapshot, generation 1.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn new(config: Config, names: Names, now: u64) -> Result<Self, BuildError> {
        let nothing = Snapshot {
            generation: 0,
            listeners: Vec::new(),
            services: Vec::new(),
            config: Arc::new(Config {
                listeners: Vec::new(),
                routes: Vec::new(),
                services: Vec::new(),
                ..config.clone()
            }),
        };
        let mut model = Self {
            last: Arc::new(nothing),
            weights: HashMap::new(),
            names,
            cluster: Cluster::default(),
            identities: Identities::default(),
            moved_at: HashMap::new(),
            leaving: Vec::new(),
        };
        model.build(Arc::new(config), HashMap::new(), None, now)?;
        Ok(model)
    }

    /// The last good snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.last
    }

    /// Another configuration, and what its new names resolved to. Weights set at run time stay for the services whose
    /// weights in the file did not change.
    ///
    /// # Errors
    /// See [`BuildError`]; nothing has changed then.
    pub fn configure(&mut self, config: Config, names: Names, now: u64) -> Result<(), BuildError> {
        let mut weights = self.weights.clone();
        weights.retain(|name, _| match (find(&self.last.config, name), find(&config, name)) {
            (Some(before), Some(after)) => has_same_weights(before, after),
            _ => false,
        });
        for (name, addresses) in names.into_iter().filter(|(_, a)| !a.is_empty()) {
            self.names.entry(name).or_insert(sorted(addresses));
        }
        self.build(Arc::new(config), weights, None, now)?;
        let used: HashSet<HostPort> = self.last.config.host_ports().collect();
        self.names.retain(|name, _| used.contains(name));
        self.cluster.forget_unused(&self.last.config);
        Ok(())
    }

    /// Weights set at run time.
    ///
    /// # Errors
    /// See [`WeightError`]; nothing has changed then.
    pub fn set_weights(&mut self, change: &WeightChange, now: u64) -> Result<(), WeightError> {
        let Some(service) = self.last.services.iter().find(|s| *s.name == *change.service) else {
            let known = self.last.services.iter().map(|s| format!("`{}`", s.name)).collect::<Vec<_>>().join(", ");
            return Err(WeightError::UnknownService { name: change.service.clone(), known });
        };
        let changed = self.moved_at.get(&service.id).copied().unwrap_or(0);
        let current = self.last.generation;
        if change.expected.is_some_and(|e| e < changed || e > current) {
            return Err(WeightError::Conflict { service: change.service.clone(), changed, current });
        }
        let weights = service.policy.split.weights();
        let standing: Vec<Standing<'_>> = std::iter::zip(&service.config.versions, &weights)
            .map(|(v, w)| Standing { name: &v.name, weight: *w, configured: v.weight })
            .collect();
        let amounts: Vec<(&str, Amount)> = change.amounts.iter().map(|(n, a)| (n.as_str(), *a)).collect();
        let weights = reweigh(&standing, &amounts, change.closed)?;
        let mut all = self.weights.clone();
        all.insert(service.name.clone(), weights);
        let rule = change.on_decrease.map(|rule| (service.name.clone(), rule));
        self.build(self.last.config.clone(), all, rule, now)?;
        Ok(())
    }

    /// What a name resolved to. True when that changes an endpoint; the next build uses it. An empty answer is none.
    pub fn resolve(&mut self, name: HostPort, addresses: Vec<SocketAddr>) -> bool {
        let addresses = sorted(addresses);
        let is_new = !addresses.is_empty() && self.names.get(&name) != Some(&addresses);
        // An answer may come after its name left the configuration.
        if !is_new || !self.last.config.host_ports().any(|used| used == name) {
            return false;
        }
        self.names.insert(name, addresses);
        true
    }

    /// What a cluster says. True when that is new; the next build uses it.
    pub fn discover(&mut self, news: ClusterNews) -> bool {
        self.cluster.learn(news)
    }

    /// Endpoints of the last snapshot that finish what they have, by the cluster's word.
    #[must_use]
    pub fn draining(&self) -> Vec<Arc<Endpoint>> {
        self.cluster.draining(&self.last)
    }

    /// Endpoints that the last builds left out. To be marked gone, but only some time after the snapshot without them
    /// was published: a request that still decides on the one before must not find all of them gone.
    #[must_use]
    pub fn take_leaving(&mut self) -> Vec<Arc<Endpoint>> {
        std::mem::take(&mut self.leaving)
    }

    /// Whether a name has an answer.
    #[must_use]
    pub fn knows(&self, name: &HostPort) -> bool {
        self.names.contains_key(name)
    }

    /// A new snapshot of what is known now, after [`Self::resolve`] or a hold's deadline.
    ///
    /// # Errors
    /// See [`BuildError`]; the last good snapshot stays.
    pub fn rebuild(&mut self, now: u64) -> Result<(), BuildError> {
        self.build(self.last.config.clone(), self.weights.clone(), None, now)
    }

    /// When the next drain of a version ends and a build is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.last.services.iter().filter_map(|s| holds::next_deadline(&s.policy.holds)).min()
    }

    fn build(
        &mut self,
        config: Arc<Config>,
        weights: HashMap<Arc<str>, Vec<Weight>>,
        rule: Option<(Arc<str>, OnDecrease)>,
        now: u64,
    ) -> Result<(), BuildError> {
        for route in &config.routes {
            if route.service >= config.services.len() {
                return Err(BuildError::NoSuchService { route: route.name.clone(), service: route.service });
            }
        }
        let before: HashMap<&str, &Arc<Service>> = self.last.services.iter().map(|s| (&*s.name, s)).collect();
        let mut services = Vec::with_capacity(config.services.len());
        for service in &config.services {
            let rule = rule.as_ref().filter(|(name, _)| *name == service.name).map(|(_, rule)| *rule);
            let service = self.cluster.with_affinity(service);
            let next = ServiceBuild {
                config: &service,
                weights: weights.get(&service.name),
                rule: rule.unwrap_or(service.on_decrease),
                before: before.get(&*service.name).copied(),
                names: &self.names,
                cluster: &self.cluster,
                now,
            };
            services.push(next.build(&mut self.identities)?);
        }
        let generation = self.last.generation + 1;
        let listeners = self.listeners(&config);
        let next = Arc::new(Snapshot { generation, listeners, services, config });
        // Nothing fails from here on.
        self.leaving.extend(leaving(&self.last, &next));
        for service in &next.services {
            if !self.last.services.iter().any(|s| s.id == service.id && s.epoch == service.epoch) {
                self.moved_at.insert(service.id, generation);
            }
        }
        self.weights = weights;
        self.last = next;
        Ok(())
    }

    fn listeners(&self, config: &Config) -> Vec<Arc<Listener>> {
        let same_routes = self.last.config.routes == config.routes;
        let listener = |wanted: &Arc<config::Listener>| {
            let kept = self.last.listeners.iter().find(|l| same_routes && l.config == *wanted);
            if let Some(kept) = kept {
                return kept.clone();
            }
            let here = config
                .routes
                .iter()
                .enumerate()
                .filter(|(_, r)| r.listeners.is_empty() || r.listeners.contains(&wanted.name));
            let routes = RouteTable::new(here.map(|(at, r)| (&*r.hostnames, &*r.matches, at)));
            Arc::new(Listener { config: wanted.clone(), routes })
        };
        config.listeners.iter().map(listener).collect()
    }
}

impl Config {
    /// All names that endpoints are configured by.
    pub fn host_ports(&self) -> impl Iterator<Item = HostPort> {
        self.services.iter().flat_map(|s| &s.versions).flat_map(|v| &v.endpoints).filter_map(|e| match e {
            EndpointAddress::Ip(_) => None,
            EndpointAddress::Name { host, port } => Some((host.clone(), *port)),
        })
    }
}

fn find<'a>(config: &'a Config, service: &str) -> Option<&'a config::Service> {
    config.services.iter().find(|s| *s.name == *service)
}

fn has_same_weights(before: &config::Service, after: &config::Service) -> bool {
    let weights = |s: &config::Service| s.versions.iter().map(|v| (v.name.clone(), v.weight)).collect::<Vec<_>>();
    weights(before) == weights(after)
}

/// One service on its way into the next snapshot.
struct ServiceBuild<'a> {
    config: &'a config::Service,
    /// Set at run time.
    weights: Option<&'a Vec<Weight>>,
    rule: OnDecrease,
    before: Option<&'a Arc<Service>>,
    names: &'a Names,
    cluster: &'a Cluster,
    now: u64,
}

impl ServiceBuild<'_> {
    fn build(self, identities: &mut Identities) -> Result<Arc<Service>, BuildError> {
        let Self { config, before, .. } = self;
        let versions = config.versions.len();
        // What `Split` promises to sum up without overflow.
        if versions > 1_000 {
            return Err(BuildError::TooManyVersions { service: config.name.clone(), versions });
        }
        let (id, metrics) = identities.service(&config.name)?;
        let salt = Salt::new(config.cohort.as_deref().unwrap_or(&config.name), secret(config));
        let weights: Vec<Weight> = match self.weights {
            Some(weights) => weights.clone(),
            None => config.versions.iter().map(|v| v.weight).collect(),
        };
        let split = Split::new(salt, config.versions.iter().map(|v| &*v.name).zip(weights));
        let holds =
            next_holds(before.map(|b| &b.policy), before.map(|b| b.config.on_decrease), &split, self.rule, self.now);
        let mut versions = Vec::with_capacity(config.versions.len());
        for version in &config.versions {
            let (id, metrics) = identities.version(&config.name, &version.name)?;
            let before = before.and_then(|b| b.versions.iter().find(|v| v.id == id));
            let endpoints = self.endpoints(version, before, identities)?;
            let places = match before.filter(|b| is_same_set(&b.endpoints, &endpoints)) {
                Some(before) => before.places.clone(),
                None => Arc::new(Places::new(endpoints.iter().map(|e| e.seed))),
            };
            versions.push(Version { id, name: version.name.clone(), endpoints, places, metrics });
        }
        let policy = Policy { split, when_empty: config.when_empty, holds };
        let moves = before.is_none_or(|b| moves_clients(b, config, &policy));
        if let Some(before) = before
            && !moves
            && before.config == *config
            && std::iter::zip(&before.versions, &versions).all(|(b, v)| is_same_set(&b.endpoints, &v.endpoints))
        {
            return Ok(before.clone());
        }
        let retry_budget = match before.filter(|b| b.config.retries == config.retries) {
            Some(before) => before.retry_budget.clone(),
            None => Arc::new(RetryBudget::new(&config.retries)),
        };
        Ok(Arc::new(Service {
            id,
            name: config.name.clone(),
            config: config.clone(),
            policy,
            epoch: before.map_or(1, |b| b.epoch.wrapping_add(u32::from(moves))),
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
            return Ok(before.map(|v| v.endpoints.clone()).unwrap_or_default());
        }
        let known: HashMap<(SocketAddr, Option<&str>), &Arc<Endpoint>> =
            before.into_iter().flat_map(|v| &v.endpoints).map(|e| ((e.address, e.pod.as_deref()), e)).collect();
        let mut seen = HashSet::with_capacity(version.endpoints.len());
        let mut endpoints = Vec::with_capacity(version.endpoints.len());
        let mut add = |address: SocketAddr, pod: Option<&Arc<str>>, name: &dyn Fn() -> String| {
            // Two names of one address are one endpoint.
            if !seen.insert(address) {
                return Ok(());
            }
            endpoints.push(match known.get(&(address, pod.map(|p| &**p))) {
                Some(known) => Arc::clone(known),
                None => Arc::new(Endpoint {
                    id: identities.endpoint()?,
                    address,
                    pod: pod.cloned(),
                    name: name().into(),
                    // The address, not the name: two addresses of one name are two endpoints.
                    seed: endpoint_seed(&address.to_string()),
                    in_flight: AtomicU32::new(0),
                    health: Health::default(),
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

/// Whether a client may get another answer from `config` and `policy` than from `before`, its endpoints aside.
fn moves_clients(before: &Service, config: &config::Service, policy: &Policy) -> bool {
    let (b, p) = (&before.policy, policy);
    let names = |split: &Split| (0..split.len()).map(|v| split.name(v).cloned()).collect::<Vec<_>>();
    b.split.weights() != p.split.weights()
        || names(&b.split) != names(&p.split)
        || b.holds != p.holds
        || b.when_empty != p.when_empty
        || before.config.cohort != config.cohort
        || before.config.salt != config.salt
        || before.config.affinity != config.affinity
        || before.config.overrides != config.overrides
}

fn is_same_set(before: &[Arc<Endpoint>], after: &[Arc<Endpoint>]) -> bool {
    before.len() == after.len() && std::iter::zip(before, after).all(|(b, a)| Arc::ptr_eq(b, a))
}

/// Endpoints that are in `before` and not in `after`.
fn leaving(before: &Snapshot, after: &Snapshot) -> Vec<Arc<Endpoint>> {
    let after: HashMap<ServiceId, &Arc<Service>> = after.services.iter().map(|s| (s.id, s)).collect();
    let mut leaving = Vec::new();
    for service in &before.services {
        let next = after.get(&service.id);
        if next.is_some_and(|n| Arc::ptr_eq(n, service)) {
            continue;
        }
        let stay: HashSet<EndpointId> =
            next.iter().flat_map(|s| &s.versions).flat_map(|v| &v.endpoints).map(|e| e.id).collect();
        let all = service.versions.iter().flat_map(|v| &v.endpoints);
        leaving.extend(all.filter(|e| !stay.contains(&e.id)).cloned());
    }
    leaving
}

/// Ordered, so that the order of an answer changes nothing.
fn sorted(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests;
