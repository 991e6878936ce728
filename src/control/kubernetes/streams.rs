//! Which lists and watches a configuration needs: as few as there can be, each with the narrowest selector, so that the
//! API server sends little and a Role can be small.

use std::collections::{BTreeMap, BTreeSet};

use super::objects::{Kind, SERVICE_NAME};
use crate::config::{Config, KubernetesService, KubernetesSource};

/// One list and watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StreamKey {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    /// A query's part, encoded: `labelSelector=...`, `fieldSelector=...` or nothing.
    pub(super) selector: String,
}

/// All that a configuration needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) sources: Vec<Need>,
    pub(super) affinities: Vec<(KubernetesService, StreamKey)>,
}

/// A source and the streams that it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) source: KubernetesSource,
    pub(super) slices: StreamKey,
    pub(super) pods: Option<StreamKey>,
}

/// Servers take URLs of 8 KiB and more; a selector beyond half of that is replaced by a wider one.
const MAX_SELECTOR: usize = 4_000;

impl Needs {
    pub(super) fn of(config: &Config, own_namespace: &str) -> Self {
        let namespace = |service: &KubernetesService| service.namespace.as_deref().unwrap_or(own_namespace).to_owned();
        let mut sources: Vec<&KubernetesSource> =
            config.services.iter().flat_map(|s| &s.versions).filter_map(|v| v.kubernetes.as_ref()).collect();
        sources.sort_unstable();
        sources.dedup();
        let mut by_namespace: BTreeMap<String, Vec<&KubernetesSource>> = BTreeMap::new();
        for source in &sources {
            by_namespace.entry(namespace(&source.service)).or_default().push(source);
        }
        let mut needs = Self::default();
        for (namespace, sources) in &by_namespace {
            let stream = |kind, selector| StreamKey { kind, namespace: namespace.clone(), selector };
            let slices = stream(Kind::EndpointSlices, slices_selector(sources));
            let pods = stream(Kind::Pods, pods_selector(sources));
            needs.sources.extend(sources.iter().map(|source| Need {
                source: (*source).clone(),
                slices: slices.clone(),
                pods: (!source.pod_labels.is_empty()).then(|| pods.clone()),
            }));
        }
        let services: BTreeSet<&KubernetesService> =
            config.services.iter().filter_map(|s| s.affinity_from.as_ref()).collect();
        needs.affinities = services
            .into_iter()
            .map(|service| {
                let selector = format!("fieldSelector={}", encode(&format!("metadata.name={}", service.name)));
                (service.clone(), StreamKey { kind: Kind::Services, namespace: namespace(service), selector })
            })
            .collect();
        needs
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.affinities.is_empty()
    }

    pub(super) fn streams(&self) -> BTreeSet<&StreamKey> {
        let of_sources = self.sources.iter().flat_map(|n| std::iter::once(&n.slices).chain(&n.pods));
        of_sources.chain(self.affinities.iter().map(|(_, stream)| stream)).collect()
    }
}

fn slices_selector(sources: &[&KubernetesSource]) -> String {
    let services: BTreeSet<&str> = sources.iter().map(|s| &*s.service.name).collect();
    label_selector(&one_of(SERVICE_NAME, &services))
        .unwrap_or_else(|| format!("labelSelector={}", encode(SERVICE_NAME)))
}

/// By a label that all sources ask for, if there is one.
fn pods_selector(sources: &[&KubernetesSource]) -> String {
    let by_labels: Vec<&BTreeMap<String, String>> =
        sources.iter().map(|s| &s.pod_labels).filter(|labels| !labels.is_empty()).collect();
    let Some((first, others)) = by_labels.split_first() else { return String::new() };
    let shared = first.keys().find(|key| others.iter().all(|labels| labels.contains_key(*key)));
    let values = |key: &String| by_labels.iter().filter_map(|l| l.get(key)).map(String::as_str).collect();
    shared.and_then(|key| label_selector(&one_of(key, &values(key)))).unwrap_or_default()
}

fn one_of(key: &str, values: &BTreeSet<&str>) -> String {
    let values: Vec<&str> = values.iter().copied().collect();
    format!("{key} in ({})", values.join(","))
}

fn label_selector(selector: &str) -> Option<String> {
    let encoded = encode(selector);
    (encoded.len() <= MAX_SELECTOR).then(|| format!("labelSelector={encoded}"))
}

/// Percent-encoding of all but RFC 3986's unreserved characters.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KubernetesPort;
    use crate::state::fixtures::{config, service};

    fn source(service: &str, namespace: Option<&str>, labels: &[(&str, &str)]) -> KubernetesSource {
        KubernetesSource {
            service: KubernetesService { namespace: namespace.map(str::to_owned), name: service.into() },
            port: KubernetesPort::Number(80),
            pod_labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn needs(sources: &[KubernetesSource]) -> Needs {
        let names: Vec<String> = (0..sources.len()).map(|i| format!("v{i}")).collect();
        let versions: Vec<(&str, f64, &[&str])> = names.iter().map(|n| (n.as_str(), 1.0, &[] as &[&str])).collect();
        let mut service = service("hello", &versions);
        for (version, source) in service.versions.iter_mut().zip(sources) {
            version.kubernetes = Some(source.clone());
        }
        Needs::of(&config(vec![service]), "own")
    }

    fn shown(needs: &Needs) -> Vec<String> {
        needs.streams().iter().map(|s| format!("{} {} {}", s.kind.as_str(), s.namespace, s.selector)).collect()
    }

    #[test]
    fn services_of_a_namespace_share_one_watch_and_pods_are_not_asked_for() {
        let needs = needs(&[source("b", None, &[]), source("a", None, &[]), source("c", Some("other"), &[])]);

        assert_eq!(
            shown(&needs),
            [
                "endpointslices other labelSelector=kubernetes.io%2Fservice-name%20in%20%28c%29",
                "endpointslices own labelSelector=kubernetes.io%2Fservice-name%20in%20%28a%2Cb%29",
            ]
        );
    }

    #[test]
    fn pods_are_asked_for_by_the_label_that_all_sources_have() {
        let both = needs(&[
            source("hello", None, &[("app", "hello"), ("track", "stable")]),
            source("hello", None, &[("track", "canary")]),
        ]);
        let none = needs(&[source("hello", None, &[("track", "stable")]), source("hello", None, &[("version", "2")])]);

        assert_eq!(shown(&both)[1], "pods own labelSelector=track%20in%20%28canary%2Cstable%29");
        assert_eq!(shown(&none)[1], "pods own ");
    }

    #[test]
    fn too_many_services_for_a_url_are_asked_for_as_all() {
        let sources: Vec<_> = (0..300).map(|i| source(&format!("service-{i}"), None, &[])).collect();

        assert_eq!(shown(&needs(&sources)), ["endpointslices own labelSelector=kubernetes.io%2Fservice-name"]);
    }
}
