//! What the writer knows of a cluster: the endpoints behind each source of the configuration, and the affinity that
//! Services ask for. What was never read is unknown, which is not the same as empty.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Affinity, Config, KubernetesService, KubernetesSource};
use crate::decide::slices::{Discovered, Members};
use crate::state::snapshot::{Endpoint, Snapshot};

/// What a cluster says now, of the sources and Services that are named in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterNews {
    pub endpoints: Vec<(KubernetesSource, Members)>,
    /// `sessionAffinity`: the timeout of `ClientIP`, or `None`.
    pub affinities: Vec<(KubernetesService, Option<Duration>)>,
}

/// The last word on each.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    endpoints: HashMap<KubernetesSource, Members>,
    affinities: HashMap<KubernetesService, Option<Duration>>,
}

impl Cluster {
    /// True when something is new.
    pub(super) fn learn(&mut self, news: ClusterNews) -> bool {
        let mut is_new = false;
        for (source, endpoints) in news.endpoints {
            if self.endpoints.get(&source) != Some(&endpoints) {
                self.endpoints.insert(source, endpoints);
                is_new = true;
            }
        }
        for (service, affinity) in news.affinities {
            is_new |= self.affinities.insert(service, affinity) != Some(affinity);
        }
        is_new
    }

    /// `None`: nobody has asked yet.
    pub(super) fn endpoints(&self, source: &KubernetesSource) -> Option<&[Discovered]> {
        self.endpoints.get(source).map(|members| &*members.usable)
    }

    /// Endpoints that take nothing.
    pub(super) fn unready(&self, source: &KubernetesSource) -> Option<Arc<[SocketAddr]>> {
        self.endpoints.get(source).map(|members| members.unready.clone())
    }

    /// A service with the affinity that its Service asks for, if that is known.
    pub(super) fn with_affinity<'a>(&self, service: &'a config::Service) -> Cow<'a, config::Service> {
        let (Some(from), Affinity::ClientIp { prefix, .. }) = (&service.affinity_from, service.affinity) else {
            return Cow::Borrowed(service);
        };
        let affinity = match self.affinities.get(from) {
            None => return Cow::Borrowed(service),
            Some(None) => Affinity::None,
            Some(Some(timeout)) => Affinity::ClientIp { prefix, timeout: *timeout },
        };
        Cow::Owned(config::Service { affinity, ..service.clone() })
    }

    /// Those that the cluster calls draining.
    pub(super) fn draining(&self, snapshot: &Snapshot) -> Vec<Arc<Endpoint>> {
        let mut all = Vec::new();
        let versions = snapshot.services.iter().flat_map(|s| std::iter::zip(&s.config.versions, &s.versions));
        for (config, version) in versions {
            let Some(found) = config.kubernetes.as_ref().and_then(|source| self.endpoints(source)) else { continue };
            let draining: HashSet<(SocketAddr, Option<&str>)> =
                found.iter().filter(|d| d.is_draining).map(|d| (d.address, d.pod.as_deref())).collect();
            if !draining.is_empty() {
                let here = version.endpoints.iter().filter(|e| draining.contains(&(e.address, e.pod.as_deref())));
                all.extend(here.cloned());
            }
        }
        all
    }

    pub(super) fn forget_unused(&mut self, config: &Config) {
        let sources: HashSet<&KubernetesSource> =
            config.services.iter().flat_map(|s| &s.versions).filter_map(|v| v.kubernetes.as_ref()).collect();
        self.endpoints.retain(|source, _| sources.contains(source));
        let services: HashSet<&KubernetesService> =
            config.services.iter().filter_map(|s| s.affinity_from.as_ref()).collect();
        self.affinities.retain(|service, _| services.contains(service));
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{KubernetesPort, Service};
    use crate::state::fixtures::{config, hello};
    use crate::state::model::{Model, Names};

    use super::*;

    fn source(track: &str) -> KubernetesSource {
        KubernetesSource {
            service: KubernetesService { namespace: None, name: "hello".into() },
            port: KubernetesPort::Name("http".into()),
            pod_labels: [("track".to_owned(), track.to_owned())].into(),
        }
    }

    fn from_cluster() -> Service {
        let mut service = hello(90.0, 10.0);
        for version in &mut service.versions {
            version.endpoints.clear();
            version.kubernetes = Some(source(&version.name));
        }
        service.affinity_from = Some(source("stable").service);
        service
    }

    /// `1/a`: 10.0.0.1:80 of pod a; `1/a-` drains.
    fn news(track: &str, endpoints: &[&str]) -> ClusterNews {
        let discovered = |text: &&str| {
            let (host, pod) = text.trim_end_matches('-').split_once('/').unwrap();
            Discovered {
                address: format!("10.0.0.{host}:80").parse().unwrap(),
                pod: Some(pod.into()),
                is_draining: text.ends_with('-'),
            }
        };
        let members = Members { usable: endpoints.iter().map(discovered).collect(), ..Members::default() };
        ClusterNews { endpoints: vec![(source(track), members)], affinities: vec![] }
    }

    fn model() -> Model {
        Model::new(config(vec![from_cluster()]), Names::new(), 0).unwrap()
    }

    fn learn(model: &mut Model, news: ClusterNews) {
        assert!(model.discover(news));
        model.rebuild(0).unwrap();
    }

    fn stable(model: &Model) -> Vec<Arc<Endpoint>> {
        model.snapshot().services[0].versions[0].endpoints.clone()
    }

    #[test]
    fn endpoints_follow_the_cluster_and_stay_the_same_while_they_stay() {
        let mut model = model();
        learn(&mut model, news("stable", &["1/a", "2/b"]));
        let before = stable(&model);

        learn(&mut model, news("stable", &["2/b", "3/c"]));

        let after = stable(&model);
        assert_eq!(after.iter().map(|e| e.address.to_string()).collect::<Vec<_>>(), ["10.0.0.2:80", "10.0.0.3:80"]);
        assert!(Arc::ptr_eq(&before[1], &after[0]));
        assert!(!model.discover(news("stable", &["2/b", "3/c"])));
    }

    #[test]
    fn what_is_not_ready_is_shown_and_is_nothing_to_choose() {
        let mut model = model();
        learn(&mut model, news("stable", &["1/a"]));
        let before = model.snapshot().services[0].clone();

        let mut with = news("stable", &["1/a"]);
        with.endpoints[0].1.unready = ["10.0.0.2:80".parse().unwrap()].into();
        learn(&mut model, with);

        let after = &model.snapshot().services[0];
        assert_eq!(*after.versions[0].unready, ["10.0.0.2:80".parse().unwrap()]);
        assert!(after.versions[1].unready.is_empty());
        assert!(Arc::ptr_eq(&before.versions[0].endpoints[0], &after.versions[0].endpoints[0]));
        assert!(Arc::ptr_eq(&before.versions[0].places, &after.versions[0].places), "the choice is the same");
        assert_eq!(before.epoch, after.epoch);
    }

    #[test]
    fn an_address_of_another_pod_is_another_endpoint() {
        let mut model = model();
        learn(&mut model, news("stable", &["1/a"]));
        let before = stable(&model);

        learn(&mut model, news("stable", &["1/b"]));

        let after = stable(&model);
        assert_ne!(before[0].id, after[0].id);
        assert_eq!(model.take_leaving().iter().map(|e| e.id).collect::<Vec<_>>(), [before[0].id]);
    }

    #[test]
    fn a_draining_endpoint_is_named_and_keeps_its_identity() {
        let mut model = model();
        learn(&mut model, news("stable", &["1/a", "2/b"]));
        let before = stable(&model);

        learn(&mut model, news("stable", &["1/a-", "2/b"]));

        let draining = model.draining();
        assert_eq!(draining.len(), 1);
        assert!(Arc::ptr_eq(&draining[0], &before[0]));
    }

    #[test]
    fn a_source_that_was_never_read_keeps_what_the_version_had() {
        let mut model = Model::new(config(vec![hello(90.0, 10.0)]), Names::new(), 0).unwrap();
        let before = stable(&model);

        model.configure(config(vec![from_cluster()]), Names::new(), 0).unwrap();
        let unread = stable(&model);
        learn(&mut model, news("stable", &[]));

        assert_eq!(before.iter().map(|e| e.id).collect::<Vec<_>>(), unread.iter().map(|e| e.id).collect::<Vec<_>>());
        assert!(stable(&model).is_empty());
    }

    #[test]
    fn affinity_is_what_the_service_says_once_it_was_read() {
        let mut model = model();
        let affinity = |model: &Model| model.snapshot().services[0].config.affinity;
        let before = affinity(&model);
        let say =
            |affinity| ClusterNews { affinities: vec![(source("stable").service, affinity)], ..Default::default() };

        learn(&mut model, say(Some(Duration::from_secs(60))));
        let Affinity::ClientIp { timeout, .. } = affinity(&model) else { panic!("not by client") };
        learn(&mut model, say(None));

        assert!(matches!(before, Affinity::ClientIp { timeout, .. } if timeout.as_secs() == 10_800));
        assert_eq!(timeout.as_secs(), 60);
        assert_eq!(affinity(&model), Affinity::None);
    }
}
