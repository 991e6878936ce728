//! The valid configuration, as the rest of perch sees it. `config/perch.yaml` documents each key for people.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::header::HeaderName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::decide::guard::Rules;
use crate::decide::ramp::{Plan, Step};
pub use crate::decide::rollout::OnDecrease;
pub use crate::decide::route::{Hostname, PathMatch};
pub use crate::decide::slices::Port as KubernetesPort;
use crate::decide::{KeyPrefix, Weight, WhenEmpty};

/// Everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Data-path threads, one core each. `None`: as many as the machine (or its CPU quota) has.
    pub workers: Option<usize>,
    pub admin: Admin,
    pub access_log: AccessLog,
    pub drain: Drain,
    /// Connections of all listeners together.
    pub max_connections: usize,
    pub memory: MemoryLimit,
    pub pins: Pins,
    /// Where what was done to the weights is kept over a restart. `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Where replicas in a cluster share it instead.
    pub shared_state: Option<SharedState>,
    pub listeners: Vec<Arc<Listener>>,
    pub routes: Vec<Route>,
    pub services: Vec<Service>,
}

/// What perch may use before it gives up connections and requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryLimit {
    /// Nine tenths of its control group's limit, if that has one.
    #[default]
    Cgroup,
    Off,
    Bytes(u64),
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub address: SocketAddr,
    /// Bearer token for writes; needed unless `address` is on loopback.
    pub token: Option<Secret>,
}

/// A string that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The access log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccessLog {
    pub format: LogFormat,
    /// Share of requests that get a line, 0 to 1. Refused and failed ones always do.
    pub sample: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Off,
    Json,
    Text,
}

/// The objects by which the replicas of one installation agree, in perch's own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedState {
    /// Has what was done to the weights.
    pub config_map: String,
    /// Makes one replica the leader.
    pub lease: String,
    /// A leader that was silent for so long is replaced.
    pub lease_duration: Duration,
}

/// What happens on SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Not ready, but still accepting: time for load balancers to notice.
    pub delay: Duration,
    /// Over how long idle connections are closed, after `delay`.
    pub spread: Duration,
    /// From the signal to the end, whatever is still running.
    pub deadline: Duration,
}

/// Bounds of the pin table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pins {
    pub max_entries: usize,
}

/// An address perch accepts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub name: Arc<str>,
    pub address: SocketAddr,
    pub tls: Option<Tls>,
    pub redirect_to_https: Option<RedirectToHttps>,
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Networks whose X-Forwarded-* are believed.
    pub trusted_proxies: Vec<IpNet>,
    pub timeouts: ListenerTimeouts,
    pub limits: ListenerLimits,
}

/// TLS on a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The first is the default: for a client without SNI or with an unknown name.
    pub certificates: Vec<CertificateFiles>,
    pub min_version: TlsVersion,
    /// Refuse the handshake (`unrecognized_name`) rather than use the default certificate for an unknown SNI.
    pub strict_sni: bool,
    /// Clients show who they are.
    pub client_certificates: Option<ClientCertificates>,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    pub mode: ClientCertificateMode,
    /// PEM bundles of those who may issue them; at least one.
    pub ca_files: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificateMode {
    /// No handshake without one.
    Required,
    /// One that is shown must hold.
    Optional,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateFiles {
    /// PEM, leaf first.
    pub cert_file: PathBuf,
    /// PEM, PKCS#8, PKCS#1 or SEC1.
    pub key_file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// Answers every request with a redirect instead of serving it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectToHttps {
    /// Left out of the URL when 443.
    pub port: u16,
    /// 301, 302, 307 or 308.
    pub status: u16,
}

/// PROXY protocol (v1 and v2), required on every connection of the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Senders that are believed; others are closed.
    pub trusted: Vec<IpNet>,
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerTimeouts {
    pub tls_handshake: Duration,
    /// From the accepted (or handshaken) connection to its first byte.
    pub first_byte: Duration,
    /// From a request's first byte to the end of its head.
    pub head: Duration,
    /// Without a byte of a request body that is being waited for.
    pub body: Duration,
    /// Without progress while a response is written.
    pub write: Duration,
    /// Between requests.
    pub idle: Duration,
    /// A tunnel (WebSocket) without a byte either way.
    pub upgraded_idle: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Bytes of a request's target.
    pub target_bytes: usize,
    /// Fields of a request's head.
    pub fields: usize,
    pub connections: usize,
    /// Connections of one client address; 0: no limit.
    pub connections_per_client: usize,
    /// HTTP/2 streams open at once on a connection.
    pub streams: u32,
    /// Bytes per second, at least, of a request's body while it is waited for; 0: any.
    pub body_rate: u32,
}

/// Hosts and paths to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub name: Arc<str>,
    /// Empty: any host.
    pub hostnames: Vec<Hostname>,
    pub matches: Vec<PathMatch>,
    /// Index into [`Config::services`].
    pub service: usize,
    /// Names of the listeners it holds on; empty: all.
    pub listeners: Vec<Arc<str>>,
}

/// What users see as one thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub name: Arc<str>,
    /// Services of one cohort name have the same canary users. By default the service's own name.
    pub cohort: Option<String>,
    /// Mixed into the cohort hash.
    pub salt: Option<Secret>,
    pub affinity: Affinity,
    /// A Service in Kubernetes that says what `affinity` is; until it was read, `affinity` holds.
    pub affinity_from: Option<KubernetesService>,
    pub when_empty: WhenEmpty,
    pub on_decrease: OnDecrease,
    pub overrides: Option<Overrides>,
    /// Adds `perch-version` to responses.
    pub version_header: bool,
    pub timeouts: ServiceTimeouts,
    pub retries: Retries,
    pub limits: ServiceLimits,
    pub health: Option<HealthCheck>,
    pub ejection: Ejection,
    /// For how long the share of an endpoint grows that has just come (back); 0: it has all of it at once.
    pub slow_start: Duration,
    pub rollout: Rollout,
    pub versions: Vec<Version>,
}

impl Service {
    /// Nobody is served: all weights are 0.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.versions.iter().all(|v| v.weight.is_zero())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// Every request is decided for itself.
    None,
    ClientIp {
        prefix: KeyPrefix,
        /// A pin's idle timeout: `sessionAffinityConfig.clientIP.timeoutSeconds`, 1 to 86,400 s.
        timeout: Duration,
    },
}

/// Headers and cookies that choose the version: `always`, `never` or a version's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overrides {
    pub header: Option<HeaderName>,
    pub cookie: Option<String>,
    /// Index of the version that `always` and `never` speak of.
    pub version: usize,
    /// Client networks that may use them.
    pub trusted: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceTimeouts {
    pub connect: Duration,
    /// From the request sent to the response's head.
    pub response_head: Duration,
    /// Without a byte of a response's body.
    pub body: Duration,
    /// An unused kept-alive connection to an endpoint.
    pub idle: Duration,
}

/// Bounds of what a service may take of perch and of its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Requests in flight on one endpoint, over all workers; 0: no limit. Workers look before they count, so a few
    /// more are possible for a moment.
    pub requests_per_endpoint: u32,
}

/// Retry budget (GEP-3388's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Of the requests of the last ten seconds, 0 to 100.
    pub budget_percent: u8,
    /// Per second, allowed whatever the percentage says.
    pub min_per_second: u32,
}

/// Active HTTP check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub path: String,
    /// By default the endpoint's own.
    pub port: Option<u16>,
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row until it is back.
    pub rise: u32,
    /// Failures in a row until it is out.
    pub fall: u32,
    /// With fewer of a version's endpoints healthy, all are used; 0: never.
    pub panic_percent: u8,
}

/// Passive ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failed connects or broken responses in a row; 0: never.
    pub consecutive_failures: u32,
    /// Time out of use; doubles with each ejection in a row, up to ten times.
    pub duration: Duration,
    /// Of a version's endpoints, 0 to 100; at least one always stays.
    pub max_percent: u8,
}

/// How a version takes over.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Usable endpoints that a version needs before everyone is sent there.
    pub min_ready: usize,
    /// After endpoints have changed, a ramp waits so long.
    pub settle: Duration,
    /// Ascending, the last one 100%; empty: no guarded ramp.
    pub steps: Vec<Step>,
    pub guard: Rules,
    /// Told of the end of a ramp.
    pub webhook: Option<Uri>,
    /// Begins a ramp when it is new.
    pub start: Option<Start>,
}

impl Rollout {
    /// What a ramp goes by, if there are steps.
    #[must_use]
    pub fn plan(&self) -> Option<Plan> {
        let Self { min_ready, settle, steps, guard, .. } = self;
        let plan = || Plan { steps: steps.clone(), guard: guard.clone(), min_ready: *min_ready, settle: *settle };
        (!steps.is_empty()).then(plan)
    }
}

/// A ramp that the configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub version: Arc<str>,
    /// Each new one begins a ramp, once.
    pub id: String,
}

/// One side of the split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub name: Arc<str>,
    pub weight: Weight,
    /// Empty when `kubernetes` says where they come from.
    pub endpoints: Vec<EndpointAddress>,
    pub kubernetes: Option<KubernetesSource>,
    pub transport: Arc<Transport>,
}

/// How endpoints are spoken to. Endpoints of another transport are other endpoints: no connection outlives its change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transport {
    pub protocol: EndpointProtocol,
    /// There with `H2` and `Auto`, never with `H2c`.
    pub tls: Option<EndpointTls>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EndpointProtocol {
    #[default]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// HTTP/2 over TLS, and nothing else.
    H2,
    /// Over TLS, what the endpoint prefers.
    Auto,
}

/// TLS towards endpoints, in the words of Gateway API's BackendTLSPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointTls {
    /// For SNI, and what the certificate must be for; `None`: the endpoint's own name or address.
    pub hostname: Option<String>,
    /// PEM bundles that are trusted; empty: what the system trusts.
    pub ca_files: Vec<PathBuf>,
    pub client_certificate: Option<CertificateFiles>,
}

/// Endpoints that follow a Service of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KubernetesSource {
    pub service: KubernetesService,
    pub port: KubernetesPort,
    /// Only endpoints whose pod has all of these labels; empty: all of them, and pods are not asked for.
    pub pod_labels: BTreeMap<String, String>,
}

/// A Service of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KubernetesService {
    /// `None`: perch's own.
    pub namespace: Option<String>,
    pub name: String,
}

/// `ip:port` or `name:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    Ip(SocketAddr),
    /// Resolved in the background; the last good addresses are kept.
    Name {
        host: String,
        port: u16,
    },
}

impl std::fmt::Display for EndpointAddress {
    /// As in the file.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl std::fmt::Display for KubernetesService {
    /// `hello`, or `other/hello`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl std::fmt::Display for KubernetesSource {
    /// `Service hello, port http, pods track=canary`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service {}, port {}", self.service, self.port)?;
        for (at, (key, value)) in self.pod_labels.iter().enumerate() {
            write!(f, "{}{key}={value}", if at == 0 { ", pods " } else { "," })?;
        }
        Ok(())
    }
}
