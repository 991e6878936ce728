//! Every metric of perch, named once. Handles are made when a snapshot is built and never looked up per request.
//!
//! Counters, histograms and in-flight gauges live in one recorder of the process, made on first use: a handle works
//! whenever it was made. What the current snapshot says (weights, endpoints, pins) is not recorded at all but read when
//! somebody asks (`admin::exposition`), so nothing stale is ever shown. No label is a client address or a path.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use self::outcomes::Tally;
use crate::decide::guard::Outcomes;
use crate::reason::Reason;

mod listener;
mod outcomes;

pub use listener::{ListenerMetrics, OpenConnection};

/// A metric's name and meaning.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
}

/// What Prometheus calls the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! metrics {
    ($($ident:ident $kind:ident $name:literal $help:literal,)*) => {
        $(pub const $ident: Metric = Metric { name: $name, help: $help, kind: Kind::$kind };)*
        /// Every metric.
        pub const ALL: &[Metric] = &[$($ident,)*];
    };
}

metrics! {
    REQUESTS Counter "perch_requests_total" "Requests that were given to a version, by method and status code.",
    REQUEST_DURATION Histogram "perch_request_duration_seconds" "From a request's first byte to the end of its response.",
    CONNECT_DURATION Histogram "perch_upstream_connect_duration_seconds" "Time to connect to an endpoint.",
    SPLIT_WEIGHT Gauge "perch_split_weight_ratio" "Share of the clients that the weights give to a version, 0 to 1.",
    SPLIT_OBSERVED Gauge "perch_split_observed_ratio" "Share that a version has: of the remembered clients, and of the last minute's requests.",
    SPLIT_OBSERVED_LOW Gauge "perch_split_observed_low_ratio" "Lower end of the observed share's 95 % interval.",
    SPLIT_OBSERVED_HIGH Gauge "perch_split_observed_high_ratio" "Upper end of the observed share's 95 % interval.",
    SPLIT_CLIENTS_LEFT Gauge "perch_split_clients_left" "Remembered clients that a drain or freeze still holds on this version.",
    SPLIT_CLIENTS Gauge "perch_split_clients" "Remembered clients whose last answer came from this version.",
    FLIPS Counter "perch_version_flips_total" "Clients that were served by another version than last time, by reason; unexplained must stay 0.",
    AFFINITY_ENTRIES Gauge "perch_affinity_entries" "Clients remembered, over all services.",
    AFFINITY_EVICTIONS Counter "perch_affinity_evictions_total" "Clients forgotten early because the table was full.",
    AFFINITY_REFUSALS Counter "perch_affinity_refusals_total" "New clients not remembered because the table was full of others of their network.",
    ENDPOINTS Gauge "perch_endpoints" "Endpoints of a version by condition.",
    PANIC Gauge "perch_version_panic" "1 while too few of a version's endpoints are healthy to believe the checks and all are used.",
    REJECTED Counter "perch_rejected_total" "Requests and connections that perch itself refused or ended, by reason.",
    UPSTREAM_FAILURES Counter "perch_upstream_failures_total" "Failed attempts at an endpoint, by reason.",
    RETRIES Counter "perch_retries_total" "Attempts after the first.",
    ROLLOUT_STEP Gauge "perch_rollout_step" "Step of the guarded ramp under way, from 1; 0 without one.",
    ROLLOUT_EVALUE Gauge "perch_rollout_guard_evalue" "Evidence against the canary of the ramp under way, by test; a ramp is aborted at 1 / falseAborts.",
    ROLLOUT_ABORTS Counter "perch_rollout_aborts_total" "Ramps that the guard aborted, by the test that failed.",
    ROLLOUT_SEQUENCE Gauge "perch_rollout_sequence" "Number of the last decision (verb or step of a ramp) in force; replicas of one installation have the same.",
    GENERATION Gauge "perch_config_generation" "Number of the snapshot in force.",
    RELOAD_OK Gauge "perch_config_last_reload_successful" "1 when the last reload was taken over, 0 when it was refused.",
    RELOAD_TIME Gauge "perch_config_last_reload_success_timestamp_seconds" "When a configuration was last taken over.",
    CERTIFICATE_EXPIRY Gauge "perch_tls_certificate_not_after_seconds" "When a certificate ends, in seconds since 1970.",
    CONNECTIONS Gauge "perch_connections" "Open client connections.",
    CONNECTIONS_TOTAL Counter "perch_connections_total" "Accepted client connections.",
    HANDSHAKES Counter "perch_tls_handshakes_total" "Completed TLS handshakes.",
    ACCEPT_ERRORS Counter "perch_accept_errors_total" "Errors of accept(), such as no free file descriptor.",
    LOG_DROPPED Counter "perch_access_log_dropped_total" "Access log lines dropped because their reader was too slow or gone.",
    KUBERNETES_EVENT_AGE Gauge "perch_kubernetes_last_event_age_seconds" "Since the API server last gave a sign of life on a watch, by resource; the oldest of its watches counts.",
    KUBERNETES_LEADER Gauge "perch_kubernetes_leader" "1 when this replica holds the Lease and runs the ramps.",
    KUBERNETES_SYNC_ERRORS Counter "perch_kubernetes_sync_errors_total" "Failed lists and watches, by reason.",
    WORKERS_BLOCKED Gauge "perch_workers_blocked" "Workers without a sign of life for 3 seconds; after 10 seconds liveness fails.",
    PANICS Counter "perch_panics_total" "Panics: bugs of perch. The connection of each has ended; please report them.",
    MEMORY_USED Gauge "perch_memory_used_bytes" "Memory that counts for the ceiling: resident, and socket buffers of the control group.",
    MEMORY_CEILING Gauge "perch_memory_ceiling_bytes" "limits.memory; missing without one.",
    SHEDDING Gauge "perch_memory_shedding" "What is given up for lack of memory: 0 nothing, 1 keep-alive, 2 also new requests, 3 also new connections.",
    BUILD Gauge "perch_build_info" "Always 1; the version is in the label.",
    CPU Counter "process_cpu_seconds_total" "User and system CPU time.",
    MEMORY Gauge "process_resident_memory_bytes" "Resident memory.",
    OPEN_FDS Gauge "process_open_fds" "Open file descriptors.",
    MAX_FDS Gauge "process_max_fds" "Most file descriptors that may be open.",
    START Gauge "process_start_time_seconds" "When the process began, in seconds since 1970.",
}

/// From half a millisecond (a loopback hop) to a minute (the default response timeout), at about 2.2 per step.
const REQUEST_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// A connect takes one round trip: microseconds on loopback, seconds when SYNs are lost.
const CONNECT_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 3.0, 7.0];

static RECORDER: LazyLock<PrometheusRecorder> = LazyLock::new(|| {
    let recorder = [(REQUEST_DURATION, REQUEST_BUCKETS), (CONNECT_DURATION, CONNECT_BUCKETS)]
        .into_iter()
        .fold(PrometheusBuilder::new(), |builder, (metric, buckets)| {
            builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
                .expect("the bucket lists are not empty")
        })
        .build_recorder();
    for metric in ALL {
        match metric.kind {
            Kind::Counter => recorder.describe_counter(metric.name.into(), None, metric.help.into()),
            Kind::Gauge => recorder.describe_gauge(metric.name.into(), None, metric.help.into()),
            Kind::Histogram => recorder.describe_histogram(metric.name.into(), None, metric.help.into()),
        }
    }
    recorder
});

/// Renders what is recorded. Its `run_upkeep` must run every few seconds: the exporter keeps the raw samples of its
/// histograms until it is asked for them, and memory would grow while nobody scrapes.
#[must_use]
pub fn handle() -> PrometheusHandle {
    RECORDER.handle()
}

const METADATA: Metadata<'static> = Metadata::new("perch", Level::INFO, None);

fn key(metric: Metric, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(metric.name, labels)
}

fn counter(metric: Metric, labels: &[(&'static str, &str)]) -> Counter {
    RECORDER.register_counter(&key(metric, labels), &METADATA)
}

fn gauge(metric: Metric, labels: &[(&'static str, &str)]) -> Gauge {
    RECORDER.register_gauge(&key(metric, labels), &METADATA)
}

fn histogram(metric: Metric, labels: &[(&'static str, &str)]) -> Histogram {
    RECORDER.register_histogram(&key(metric, labels), &METADATA)
}

/// Why a client is served by another version than last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flip {
    /// Weights, versions or salt changed.
    WeightChange,
    /// An abort took everyone back.
    Abort,
    /// A drain or freeze that held the client has ended.
    DrainDeadline,
    /// A header or cookie asked for it, or no longer does.
    Override,
    /// Its version ran out of usable endpoints, or has them back.
    WhenEmpty,
    /// None of these: a broken promise.
    Unexplained,
}

impl Flip {
    pub const ALL: [Self; 6] =
        [Self::WeightChange, Self::Abort, Self::DrainDeadline, Self::Override, Self::WhenEmpty, Self::Unexplained];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WeightChange => "weight-change",
            Self::Abort => "abort",
            Self::DrainDeadline => "drain-deadline",
            Self::Override => "override",
            Self::WhenEmpty => "when-empty",
            Self::Unexplained => "unexplained",
        }
    }
}

/// Of a service.
#[derive(Debug)]
pub struct ServiceMetrics {
    flips: [Counter; Flip::ALL.len()],
    /// The same, to be read.
    counts: [AtomicU64; Flip::ALL.len()],
}

impl ServiceMetrics {
    #[must_use]
    pub fn new(service: &str) -> Self {
        let flips = Flip::ALL.map(|f| counter(FLIPS, &[("service", service), ("reason", f.as_str())]));
        Self { flips, counts: Default::default() }
    }

    /// A client is served by another version than last time.
    #[expect(clippy::indexing_slicing, reason = "one counter per variant")]
    pub fn flip(&self, reason: Flip) {
        self.flips[reason as usize].increment(1);
        self.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Every reason and how often it was one.
    pub fn flips(&self) -> impl Iterator<Item = (Flip, u64)> {
        Flip::ALL.into_iter().zip(&self.counts).map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }
}

/// Methods that have a label of their own (RFC 9110, RFC 5789); clients can invent others at will.
const METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "other"];

/// Statuses of one class, such as 200 to 299.
type Class = Box<[OnceLock<Counter>; 100]>;

/// Of one version of a service.
#[derive(Debug)]
pub struct VersionMetrics {
    service: Box<str>,
    version: Box<str>,
    /// By method, class of the status, and its last two digits; made when first needed, since most never are.
    requests: [[OnceLock<Class>; 9]; METHODS.len()],
    duration: Histogram,
    connect: Histogram,
    failures: Box<[OnceLock<Counter>]>,
    retries: Counter,
    recent: Recent,
    tally: Tally,
}

impl VersionMetrics {
    #[must_use]
    pub fn new(service: &str, version: &str) -> Self {
        let labels = [("service", service), ("version", version)];
        Self {
            service: service.into(),
            version: version.into(),
            requests: Default::default(),
            duration: histogram(REQUEST_DURATION, &labels),
            connect: histogram(CONNECT_DURATION, &labels),
            failures: Reason::ALL.iter().map(|_| OnceLock::new()).collect(),
            retries: counter(RETRIES, &labels),
            recent: Recent::default(),
            tally: Tally::default(),
        }
    }

    /// A finished request; `seconds` from its first byte to the end of its response.
    pub fn request(&self, method: &str, status: u16, seconds: f64) {
        self.request_counter(method, status).increment(1);
        self.duration.record(seconds);
        self.recent.total.fetch_add(1, Ordering::Relaxed);
    }

    /// How a finished request went, for the guard of a ramp. `has_failed`: the version's fault, not the client's or perch's.
    pub fn outcome(&self, took: std::time::Duration, has_failed: bool) {
        self.tally.count(took, has_failed);
    }

    /// How requests went since the process began. Two readings make a window.
    #[must_use]
    pub fn outcomes(&self) -> Outcomes {
        self.tally.read()
    }

    #[expect(clippy::indexing_slicing, reason = "all three positions are bounded in the lines above their use")]
    fn request_counter(&self, method: &str, status: u16) -> &Counter {
        let slot = METHODS.iter().position(|m| *m == method).unwrap_or(METHODS.len() - 1);
        let status = usize::from(status.clamp(100, 999));
        let class = self.requests[slot][status / 100 - 1].get_or_init(|| Box::new([const { OnceLock::new() }; 100]));
        class[status % 100].get_or_init(|| {
            counter(
                REQUESTS,
                &[
                    ("service", &self.service),
                    ("version", &self.version),
                    ("method", METHODS[slot]),
                    ("code", &status.to_string()),
                ],
            )
        })
    }

    /// A new connection to an endpoint took so long.
    pub fn connect(&self, seconds: f64) {
        self.connect.record(seconds);
    }

    /// An attempt at an endpoint failed.
    pub fn upstream_failure(&self, reason: Reason) {
        let Some(slot) = self.failures.get(reason as usize) else { return };
        slot.get_or_init(|| {
            let labels = [("service", &*self.service), ("version", &*self.version), ("reason", reason.as_str())];
            counter(UPSTREAM_FAILURES, &labels)
        })
        .increment(1);
    }

    /// An attempt after the first.
    pub fn retry(&self) {
        self.retries.increment(1);
    }

    /// Requests of the last minute, to within one [`VersionMetrics::tick`].
    #[must_use]
    pub fn recent_requests(&self) -> u64 {
        self.recent.count()
    }

    /// Moves the window of [`VersionMetrics::recent_requests`] on; to be called every [`TICK`] by one thread.
    pub fn tick(&self) {
        self.recent.tick();
    }
}

/// Step of the window that the observed share of requests is computed over.
pub const TICK: std::time::Duration = std::time::Duration::from_secs(5);
/// A minute of ticks.
const TICKS: usize = 12;

/// A counter that also knows what it was a minute ago.
#[derive(Debug, Default)]
struct Recent {
    total: AtomicU64,
    /// Totals at the last ticks, a ring.
    marks: [AtomicU64; TICKS],
    ticks: AtomicU64,
}

impl Recent {
    fn count(&self) -> u64 {
        self.total.load(Ordering::Relaxed).saturating_sub(self.slot().load(Ordering::Relaxed))
    }

    fn tick(&self) {
        self.slot().store(self.total.load(Ordering::Relaxed), Ordering::Relaxed);
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    /// The oldest mark, which the next tick overwrites.
    #[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a remainder below the length")]
    fn slot(&self) -> &AtomicU64 {
        &self.marks[(self.ticks.load(Ordering::Relaxed) % TICKS as u64) as usize]
    }
}

static REJECTED_BY_REASON: LazyLock<Vec<Counter>> =
    LazyLock::new(|| Reason::ALL.iter().map(|r| counter(REJECTED, &[("reason", r.as_str())])).collect());
static PANICKED: LazyLock<Counter> = LazyLock::new(|| counter(PANICS, &[]));
static DROPPED_LINES: LazyLock<Counter> = LazyLock::new(|| counter(LOG_DROPPED, &[]));

/// Makes the counters of the process exist, at 0: a rate over a series that appears with its first event misses it.
pub fn start() {
    LazyLock::force(&REJECTED_BY_REASON);
    LazyLock::force(&DROPPED_LINES);
    LazyLock::force(&PANICKED);
}

/// Counts every panic of the process from now on, beside what the hook in force does (it prints). One in a request ends
/// that connection and nothing else; one that ends a worker or the writer ends the process.
pub fn count_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICKED.increment(1);
        before(panic);
    }));
}

/// A request or connection was refused or ended by perch itself.
pub fn rejected(reason: Reason) {
    if let Some(counter) = REJECTED_BY_REASON.get(reason as usize) {
        counter.increment(1);
    }
}

/// An access log line was dropped.
pub fn access_log_dropped() {
    DROPPED_LINES.increment(1);
}

/// Makes the counters of a service's ramps exist, at 0.
pub fn rollout_start(service: &str) {
    for test in crate::decide::guard::Metric::ALL {
        counter(ROLLOUT_ABORTS, &[("service", service), ("reason", test.as_str())]).increment(0);
    }
}

/// The guard aborted a ramp because of this test.
pub fn rollout_abort(service: &str, test: &str) {
    counter(ROLLOUT_ABORTS, &[("service", service), ("reason", test)]).increment(1);
}

/// Why a list or watch of the cluster failed. Kebab-case, equal in the log and the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncError {
    /// The API server can't be reached, or TLS fails.
    Connect,
    /// A stream broke off.
    Cut,
    /// 403: a Role is missing.
    Forbidden,
    /// Not what the API says.
    Garbage,
    /// 410: the place of a watch is forgotten; the cluster is listed anew.
    Gone,
    /// No kubeconfig, and not in a cluster.
    NoCluster,
    /// Another 4xx.
    Refused,
    /// 5xx.
    ServerError,
    /// Silent for too long.
    Stalled,
    /// 429.
    Throttled,
    /// 401: the token is not accepted.
    Unauthorized,
}

impl SyncError {
    pub const ALL: [Self; 11] = [
        Self::Connect,
        Self::Cut,
        Self::Forbidden,
        Self::Garbage,
        Self::Gone,
        Self::NoCluster,
        Self::Refused,
        Self::ServerError,
        Self::Stalled,
        Self::Throttled,
        Self::Unauthorized,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Cut => "cut",
            Self::Forbidden => "forbidden",
            Self::Garbage => "garbage",
            Self::Gone => "gone",
            Self::NoCluster => "no-cluster",
            Self::Refused => "refused",
            Self::ServerError => "server-error",
            Self::Stalled => "stalled",
            Self::Throttled => "throttled",
            Self::Unauthorized => "unauthorized",
        }
    }
}

static SYNC_ERRORS: LazyLock<[Counter; SyncError::ALL.len()]> =
    LazyLock::new(|| SyncError::ALL.map(|e| counter(KUBERNETES_SYNC_ERRORS, &[("reason", e.as_str())])));

/// Makes the counters of the cluster's watches exist, at 0; without a cluster they are not shown.
pub fn kubernetes_start() {
    LazyLock::force(&SYNC_ERRORS);
}

/// A list or watch failed.
#[expect(clippy::indexing_slicing, reason = "one counter per variant")]
pub fn kubernetes_sync_error(reason: SyncError) {
    SYNC_ERRORS[reason as usize].increment(1);
}

/// Since the oldest watch of a resource gave a sign of life.
pub fn kubernetes_event_age(resource: &str, age: std::time::Duration) {
    gauge(KUBERNETES_EVENT_AGE, &[("resource", resource)]).set(age.as_secs_f64());
}

/// Listener -> certificate name -> its end, in seconds since 1970. Written on reload, read on a scrape; never held
/// across anything.
static CERTIFICATES: Mutex<BTreeMap<String, BTreeMap<String, i64>>> = Mutex::new(BTreeMap::new());

/// Whether this replica leads.
pub fn kubernetes_leader(leads: bool) {
    gauge(KUBERNETES_LEADER, &[]).set(if leads { 1.0 } else { 0.0 });
}

/// The certificates of a listener now in force, replacing those of before: names and ends in seconds since 1970.
pub fn certificates(listener: &str, ends: impl IntoIterator<Item = (String, i64)>) {
    let ends = ends.into_iter().collect();
    CERTIFICATES.lock().unwrap_or_else(PoisonError::into_inner).insert(listener.to_owned(), ends);
}

/// All certificates: listener, name, end.
#[must_use]
pub fn all_certificates() -> Vec<(String, String, i64)> {
    let certificates = CERTIFICATES.lock().unwrap_or_else(PoisonError::into_inner);
    certificates
        .iter()
        .flat_map(|(listener, ends)| ends.iter().map(|(name, end)| (listener.clone(), name.clone(), *end)))
        .collect()
}

#[cfg(test)]
mod tests;
