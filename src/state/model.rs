//! The writer's model: what was configured, set and resolved so far, and the building of the next snapshot out of it.
//!
//! Unchanged parts are kept by identity: a service nobody touched is the same `Arc`, an endpoint that stays keeps its
//! health, counters and pool. A build that fails changes nothing: the last good snapshot stays. It does not know where
//! changes come from, and publishes nothing.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use self::build::ServiceBuild;
pub use self::change::{Change, ChangeError, Staged};
use self::cluster::Cluster;
pub use self::cluster::ClusterNews;
use self::holds::Deadlines;
use self::identities::Identities;
use super::clock::Moment;
use super::inheritance::Inheritance;
use super::snapshot::{Endpoint, EndpointId, Listener, Service, ServiceId, Snapshot};
use crate::config::{self, Config, EndpointAddress};
use crate::decide::rollout::Rollouts;
use crate::decide::route::RouteTable;

mod build;
mod change;
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
    deadlines: Deadlines,
    names: Names,
    cluster: Cluster,
    identities: Identities,
    /// The generation that last moved clients of a service: what compare-and-set compares with.
    moved_at: HashMap<ServiceId, u64>,
    leaving: Vec<Arc<Endpoint>>,
    /// For the first snapshot.
    inherited: Inheritance,
}

/// No snapshot can be made of this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("identities are used up (65,536 services, a million versions or 4 billion endpoints); restart perch")]
    NoMoreIdentities,
    #[error("route `{route}` names service number {service}, which does not exist; this is a mistake in perch")]
    NoSuchService { route: Arc<str>, service: usize },
    #[error("service `{service}` has {versions} versions; at most 1000 are possible")]
    TooManyVersions { service: Arc<str>, versions: usize },
}

impl Model {
    /// The first snapshot, generation 1, of a perch that remembers nothing.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn new(config: Config, names: Names, now: impl Into<Moment>) -> Result<Self, BuildError> {
        Self::with_rollouts(config, names, Rollouts::default(), now)
    }

    /// The first snapshot, with what was done to the weights before. Where the file's weights have changed since, they
    /// win.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn with_rollouts(
        config: Config,
        names: Names,
        rollouts: Rollouts,
        now: impl Into<Moment>,
    ) -> Result<Self, BuildError> {
        Self::inherit(config, names, rollouts, Inheritance::default(), now)
    }

    /// The same of a perch that takes over from another one: generations and epochs go on. `rollouts` are the ones that
    /// count, whatever is in the inheritance.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn inherit(
        config: Config,
        names: Names,
        rollouts: Rollouts,
        inherited: Inheritance,
        now: impl Into<Moment>,
    ) -> Result<Self, BuildError> {
        let now = now.into();
        let nothing = Snapshot {
            generation: inherited.generation,
            listeners: Vec::new(),
            services: Vec::new(),
            config: Arc::new(Config {
                listeners: Vec::new(),
                routes: Vec::new(),
                services: Vec::new(),
                ..config.clone()
            }),
            rollouts: Arc::new(rollouts),
        };
        let mut model = Self {
            deadlines: Deadlines::inherit(now, &nothing.rollouts, &inherited.drains),
            last: Arc::new(nothing),
            names,
            cluster: Cluster::default(),
            identities: Identities::default(),
            moved_at: HashMap::new(),
            leaving: Vec::new(),
            inherited,
        };
        let rollouts = model.follow(&config, now);
        model.build(Arc::new(config), rollouts, now)?;
        // A service that leaves and comes back begins anew.
        let inherited = std::mem::take(&mut model.inherited);
        for service in &model.last.services {
            if let Some(before) = inherited.service(&service.name).filter(|b| b.epoch == service.epoch) {
                model.moved_at.insert(service.id, before.moved_at);
            }
        }
        Ok(model)
    }

    /// What the next process needs to go on from here.
    #[must_use]
    pub fn inheritance(&self) -> Inheritance {
        Inheritance::of(&self.last, self.deadlines.leave(), |service| {
            self.moved_at.get(&service).copied().unwrap_or_default()
        })
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
    pub fn configure(&mut self, config: Config, names: Names, now: impl Into<Moment>) -> Result<(), BuildError> {
        let now = now.into();
        for (name, addresses) in names.into_iter().filter(|(_, a)| !a.is_empty()) {
            self.names.entry(name).or_insert(sorted(addresses));
        }
        let rollouts = self.follow(&config, now);
        self.build(Arc::new(config), rollouts, now)?;
        let used: HashSet<HostPort> = self.last.config.host_ports().collect();
        self.names.retain(|name, _| used.contains(name));
        self.cluster.forget_unused(&self.last.config);
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
    pub fn rebuild(&mut self, now: impl Into<Moment>) -> Result<(), BuildError> {
        self.build(self.last.config.clone(), self.last.rollouts.clone(), now.into())
    }

    /// When the next drain of a version ends and a build is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.last.services.iter().filter_map(|s| holds::next_deadline(&s.policy.holds)).min()
    }

    fn build(&mut self, config: Arc<Config>, rollouts: Arc<Rollouts>, now: Moment) -> Result<(), BuildError> {
        let next = self.prepare(config, rollouts, now)?;
        self.commit(next);
        Ok(())
    }

    /// The next snapshot, not in force.
    fn prepare(
        &mut self,
        config: Arc<Config>,
        rollouts: Arc<Rollouts>,
        now: Moment,
    ) -> Result<Arc<Snapshot>, BuildError> {
        for route in &config.routes {
            if route.service >= config.services.len() {
                return Err(BuildError::NoSuchService { route: route.name.clone(), service: route.service });
            }
        }
        let rollouts = self.deadlines.without_expired(rollouts, now);
        let before: HashMap<&str, &Arc<Service>> = self.last.services.iter().map(|s| (&*s.name, s)).collect();
        let mut services = Vec::with_capacity(config.services.len());
        for service in &config.services {
            let service = self.cluster.with_affinity(service);
            let next = ServiceBuild {
                config: &service,
                rollout: rollouts.services.get(&*service.name).map(|r| &**r),
                revision_before: self.last.rollouts.services.get(&*service.name).map(|r| r.revision()),
                before: before.get(&*service.name).copied(),
                inherited: self.inherited.service(&service.name),
                names: &self.names,
                cluster: &self.cluster,
                deadlines: &self.deadlines,
                now: now.clock,
            };
            services.push(next.build(&mut self.identities)?);
        }
        let generation = self.last.generation + 1;
        let listeners = self.listeners(&config);
        Ok(Arc::new(Snapshot { generation, listeners, services, config, rollouts }))
    }

    /// Nothing fails from here on.
    fn commit(&mut self, next: Arc<Snapshot>) {
        self.leaving.extend(leaving(&self.last, &next));
        // Not the whole rollout: a ramp notes how far it is, which is no news to whoever looked before.
        let revision = |of: &Snapshot, name: &str| of.rollouts.services.get(name).map(|rollout| rollout.revision());
        for service in &next.services {
            let is_same = self.last.services.iter().any(|s| s.id == service.id && s.epoch == service.epoch);
            if !is_same || revision(&self.last, &service.name) != revision(&next, &service.name) {
                self.moved_at.insert(service.id, next.generation);
            }
        }
        self.last = next;
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
