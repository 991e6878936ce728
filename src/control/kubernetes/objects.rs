//! The API's objects, as far as perch reads them, and what they mean. Own shapes of the few fields that matter: less
//! memory than the whole objects, and one that can't be read is one object less, not a list less.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::decide::slices::{Pod, Slice, SliceEndpoint, SlicePort};

/// What perch reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    EndpointSlices,
    /// Metadata only.
    Pods,
    Services,
    /// The one with the rollouts.
    ConfigMaps,
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) what: What,
}

/// `metadata.resourceVersion`: a number in all servers; only equality is meant when it isn't.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Version(pub(super) String);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    /// A slice, and its Service's name.
    Slice(String, Slice),
    Pod(PodLabels),
    Service(Affinity),
    /// Its data.
    ConfigMap(BTreeMap<String, String>),
}

/// A pod's labels, and whether it is being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodLabels {
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) is_ending: bool,
}

/// `sessionAffinity`: the timeout of `ClientIP`, or `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Affinity(pub(super) Option<Duration>);

/// The API's own default of `timeoutSeconds`.
const DEFAULT_TIMEOUT: u64 = 10_800;

impl Kind {
    /// Those that endpoints are made of.
    pub(super) const ALL: [Self; 3] = [Self::EndpointSlices, Self::Pods, Self::Services];

    /// As roles name it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::EndpointSlices => "endpointslices",
            Self::Pods => "pods",
            Self::Services => "services",
            Self::ConfigMaps => "configmaps",
        }
    }

    pub(super) fn path(self, namespace: &str) -> String {
        let group = match self {
            Self::EndpointSlices => "/apis/discovery.k8s.io/v1",
            Self::Pods | Self::Services | Self::ConfigMaps => "/api/v1",
        };
        format!("{group}/namespaces/{namespace}/{}", self.as_str())
    }

    /// An object of this kind.
    pub(super) fn read(self, json: &str) -> Result<Object, serde_json::Error> {
        let (metadata, what) = match self {
            Self::EndpointSlices => {
                let slice: RawSlice = serde_json::from_str(json)?;
                let service = slice.metadata.labels.get(SERVICE_NAME).cloned().unwrap_or_default();
                let what = What::Slice(service, slice.meaning());
                (slice.metadata, what)
            }
            Self::Pods => {
                let RawPod { mut metadata } = serde_json::from_str(json)?;
                let labels = std::mem::take(&mut metadata.labels);
                let is_ending = metadata.deletion_timestamp.is_some();
                let what = What::Pod(PodLabels { uid: metadata.uid.clone(), labels, is_ending });
                (metadata, what)
            }
            Self::Services => {
                let service: RawService = serde_json::from_str(json)?;
                (service.metadata, What::Service(service.spec.affinity()))
            }
            Self::ConfigMaps => {
                let RawConfigMap { metadata, data } = serde_json::from_str(json)?;
                (metadata, What::ConfigMap(data))
            }
        };
        Ok(Object { name: metadata.name, version: Version(metadata.resource_version), what })
    }
}

impl Version {
    pub(super) fn number(&self) -> Option<u64> {
        self.0.parse().ok()
    }
}

/// The label that ties a slice to its Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct List<'a> {
    pub(super) metadata: ListMetadata,
    /// `null` in lists of nothing, as Go writes them.
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMetadata {
    pub(super) resource_version: String,
    #[serde(rename = "continue", default)]
    pub(super) more: Option<String>,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'a str,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// Just the metadata: of a bookmark, or of an object that can't be read otherwise.
#[derive(Debug, Deserialize)]
pub(super) struct OnlyMetadata {
    pub(super) metadata: Metadata,
}

/// Why the API says no.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub(super) code: Option<u16>,
    pub(super) message: Option<String>,
    pub(super) details: Option<StatusDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StatusDetails {
    pub(super) retry_after_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSlice {
    metadata: Metadata,
    #[serde(default)]
    address_type: String,
    #[serde(default, deserialize_with = "or_default")]
    endpoints: Vec<RawEndpoint>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<RawPort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    #[serde(default, deserialize_with = "or_default")]
    addresses: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    conditions: RawConditions,
    target_ref: Option<RawTarget>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct RawTarget {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
}

#[derive(Debug, Deserialize)]
struct RawPort {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    port: Option<u16>,
    protocol: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawPod {
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
struct RawConfigMap {
    metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    data: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct RawService {
    metadata: Metadata,
    #[serde(default)]
    spec: RawServiceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawServiceSpec {
    session_affinity: Option<String>,
    session_affinity_config: Option<RawAffinityConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawAffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<RawClientIp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawClientIp {
    timeout_seconds: Option<u64>,
}

/// Go writes what is empty as `null`.
fn or_default<'de, T: Deserialize<'de> + Default, D: serde::Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl RawSlice {
    fn meaning(&self) -> Slice {
        // Names (FQDN) are no addresses, and nobody but a person makes such slices.
        if !matches!(&*self.address_type, "IPv4" | "IPv6") {
            return Slice::default();
        }
        let is_tcp = |p: &&RawPort| p.protocol.as_deref().is_none_or(|p| p == "TCP");
        let port = |p: &RawPort| SlicePort { name: p.name.clone(), number: p.port };
        Slice {
            ports: self.ports.iter().filter(is_tcp).map(port).collect(),
            endpoints: self.endpoints.iter().filter_map(RawEndpoint::meaning).collect(),
        }
    }
}

impl RawEndpoint {
    fn meaning(&self) -> Option<SliceEndpoint> {
        let address: IpAddr = self.addresses.first()?.parse().ok()?;
        let pod = self.target_ref.as_ref().filter(|t| t.kind == "Pod" && !t.uid.is_empty());
        Some(SliceEndpoint {
            address,
            ready: self.conditions.ready,
            serving: self.conditions.serving,
            terminating: self.conditions.terminating,
            pod: pod.map(|t| Pod { name: t.name.clone(), uid: t.uid.as_str().into() }),
        })
    }
}

impl RawServiceSpec {
    fn affinity(&self) -> Affinity {
        if self.session_affinity.as_deref() != Some("ClientIP") {
            return Affinity(None);
        }
        let config = self.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(DEFAULT_TIMEOUT).clamp(1, 86_400);
        Affinity(Some(Duration::from_secs(seconds)))
    }
}

/// For the fuzzers: the slices in the lines of a watch, or in lines that are slices.
#[cfg(any(test, fuzzing))]
pub(crate) fn slices_of_watch(text: &str) -> Vec<Slice> {
    let read = |line: &str| {
        let event: Result<Line<'_>, _> = serde_json::from_str(line);
        let json = event.as_ref().map_or(line, |event| event.object.get());
        for other in [Kind::Pods, Kind::Services, Kind::ConfigMaps] {
            // Only that they are read without a fall.
            drop(other.read(json));
        }
        match Kind::EndpointSlices.read(json).ok()?.what {
            What::Slice(_, slice) => Some(slice),
            What::Pod(_) | What::Service(_) | What::ConfigMap(_) => None,
        }
    };
    text.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_read_with_what_go_leaves_empty() {
        let json = r#"{"metadata": {"name": "hello-x", "resourceVersion": "7", "labels": {"kubernetes.io/service-name": "hello"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false}, "targetRef": {"kind": "Pod", "name": "hello-1", "uid": "u1"}},
                {"addresses": ["10.0.0.2"], "conditions": null},
                {"addresses": null}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}"#;

        let object = Kind::EndpointSlices.read(json).unwrap();

        let What::Slice(service, slice) = object.what else { panic!("not a slice") };
        assert_eq!((&*object.name, object.version.number(), &*service), ("hello-x", Some(7), "hello"));
        assert_eq!(slice.ports, [SlicePort { name: "http".into(), number: Some(80) }]);
        assert_eq!(slice.endpoints.len(), 2);
        assert_eq!(slice.endpoints[0].pod.as_ref().map(|p| &*p.uid), Some("u1"));
        assert_eq!((slice.endpoints[1].ready, &slice.endpoints[1].pod), (None, &None));
    }

    #[test]
    fn a_slice_without_anything_is_one_without_endpoints() {
        let json =
            r#"{"metadata": {"name": "x", "labels": null}, "addressType": "IPv6", "endpoints": null, "ports": null}"#;

        assert_eq!(Kind::EndpointSlices.read(json).unwrap().what, What::Slice(String::new(), Slice::default()));
    }

    #[test]
    fn session_affinity_has_the_default_of_the_api() {
        let cases = [
            (r#"{"sessionAffinity": "None"}"#, None),
            ("{}", None),
            (r#"{"sessionAffinity": "ClientIP"}"#, Some(10_800)),
            (
                r#"{"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}"#,
                Some(60),
            ),
        ];

        for (spec, seconds) in cases {
            let json = format!(r#"{{"metadata": {{"name": "hello"}}, "spec": {spec}}}"#);
            let What::Service(Affinity(timeout)) = Kind::Services.read(&json).unwrap().what else {
                panic!("no service")
            };
            assert_eq!(timeout.map(|t| t.as_secs()), seconds, "{spec}");
        }
    }

    #[test]
    fn a_list_of_nothing_is_an_empty_list() {
        let list: List<'_> = serde_json::from_str(r#"{"metadata": {"resourceVersion": "1"}, "items": null}"#).unwrap();

        assert!(list.items.is_none() && list.metadata.more.is_none());
    }
}
