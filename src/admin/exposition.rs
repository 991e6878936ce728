//! `/metrics`: what was recorded, and what the current snapshot, the pins and the process say at this moment.
//!
//! The second part is read, not recorded: a version that is gone leaves no stale gauge behind.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::AdminState;
use super::rollout::clients_left;
use super::services::Observed;
use crate::metrics::{self, Kind, Metric};
use crate::state::health::Condition;

/// Prometheus' text format, version 0.0.4.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn render(state: &AdminState) -> String {
    let mut text = Text(metrics::handle().render());
    picture(&mut text, state);
    process(&mut text);
    state.live.inherited.add_to(text.0)
}

fn picture(text: &mut Text, state: &AdminState) {
    let snapshot = state.published.load();
    let now = state.clock.now();
    let observed = Observed::of(state, &snapshot.services);
    let (mut weights, mut clients, mut endpoints) = (Samples::new(), Samples::new(), Samples::new());
    let mut left = Samples::new();
    let (mut shares, mut lows, mut highs) = (Samples::new(), Samples::new(), Samples::new());
    let mut panics = Samples::new();
    let (mut steps, mut evidence) = (Samples::new(), Samples::new());
    for service in &snapshot.services {
        let labels = [("service", &*service.name)];
        let noted = snapshot.rollouts.services.get(&*service.name).and_then(|rollout| rollout.ramp.as_ref());
        let ramp =
            noted.filter(|ramp| ramp.phase.is_under_way()).map(|ramp| state.control.ramps().show(&service.name, ramp));
        if ramp.is_some() || !service.config.rollout.steps.is_empty() {
            steps.push(sample(&labels, float(ramp.as_ref().map_or(0, |ramp| ramp.state.step + 1))));
        }
        for test in ramp.iter().flat_map(|ramp| &ramp.report.tests) {
            evidence.push(sample(&[labels[0], ("test", test.metric)], test.e_value));
        }
        let held = clients_left(&state.pins, service, now);
        for (i, version) in service.versions.iter().enumerate() {
            let labels = [("service", &*service.name), ("version", &*version.name)];
            weights.push(sample(&labels, service.policy.split.share(i)));
            clients.push(sample(&labels, float(observed.clients(version))));
            left.push(sample(&labels, float(held.get(i).copied().unwrap_or_default())));
            let units =
                [("clients", observed.client_share(service, i)), ("requests", observed.request_share(service, i))];
            for (unit, share) in units {
                // Without anybody observed there is no ratio.
                if let Some(share) = share {
                    let labels = [labels[0], labels[1], ("unit", unit)];
                    shares.push(sample(&labels, share.value));
                    lows.push(sample(&labels, share.low));
                    highs.push(sample(&labels, share.high));
                }
            }
            panics.push(sample(&labels, float(u64::from(version.is_panicking()))));
            for condition in Condition::ALL {
                let known = version.endpoints.iter().filter(|e| e.health.condition(now) == condition).count();
                let count = if condition == Condition::NotReady { version.unready.len() } else { known };
                endpoints.push(sample(&[labels[0], labels[1], ("state", condition.as_str())], float(count)));
            }
        }
    }
    text.family(metrics::SPLIT_WEIGHT, &weights);
    text.family(metrics::SPLIT_OBSERVED, &shares);
    text.family(metrics::SPLIT_OBSERVED_LOW, &lows);
    text.family(metrics::SPLIT_OBSERVED_HIGH, &highs);
    text.family(metrics::SPLIT_CLIENTS, &clients);
    text.family(metrics::SPLIT_CLIENTS_LEFT, &left);
    text.family(metrics::ENDPOINTS, &endpoints);
    text.family(metrics::PANIC, &panics);
    text.family(metrics::ROLLOUT_STEP, &steps);
    text.family(metrics::ROLLOUT_EVALUE, &evidence);
    text.value(metrics::AFFINITY_ENTRIES, float(state.pins.len()));
    text.value(metrics::AFFINITY_EVICTIONS, float(state.pins.evictions()));
    text.value(metrics::AFFINITY_REFUSALS, float(state.pins.refusals()));
    text.value(metrics::ROLLOUT_SEQUENCE, float(snapshot.rollouts.sequence));
    text.value(metrics::WORKERS_BLOCKED, float(state.heartbeats.blocked()));
    if let Some((used, ceiling)) = state.pressure.memory() {
        text.value(metrics::MEMORY_USED, float(used));
        text.value(metrics::MEMORY_CEILING, float(ceiling));
    }
    text.value(metrics::SHEDDING, float(state.pressure.shedding() as u8));
    text.value(metrics::GENERATION, float(snapshot.generation));
    let reload = state.readiness.last_reload();
    text.value(metrics::RELOAD_OK, if reload.error.is_none() { 1.0 } else { 0.0 });
    if let Some(at) = reload.succeeded_at {
        text.value(metrics::RELOAD_TIME, unix_seconds(at));
    }
    let certificates: Samples = metrics::all_certificates()
        .into_iter()
        .map(|(listener, name, end)| sample(&[("listener", &listener), ("name", &name)], float(end)))
        .collect();
    text.family(metrics::CERTIFICATE_EXPIRY, &certificates);
    text.family(metrics::BUILD, &[sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0)]);
}

/// What Linux tells in /proc; without it these metrics are missing, and nothing else.
fn process(text: &mut Text) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the command's name, which may hold spaces and brackets; proc(5) counts state as field 3.
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|f| f.parse().unwrap_or(f64::NAN)).collect())
        .unwrap_or_default();
    let field = |number: usize| fields.get(number - 3).copied();
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        text.value(metrics::CPU, (user + system) / USER_HZ);
    }
    if let (Some(start), Some(boot)) = (field(22), number_after("/proc/stat", "btime ")) {
        text.value(metrics::START, boot + start / USER_HZ);
    }
    if let Some(kib) = number_after("/proc/self/status", "VmRSS:") {
        text.value(metrics::MEMORY, kib * 1024.0);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // The directory itself is open while it is read.
        text.value(metrics::OPEN_FDS, float(open.count().saturating_sub(1)));
    }
    if let Some(most) = number_after("/proc/self/limits", "Max open files") {
        text.value(metrics::MAX_FDS, most);
    }
}

/// Clock ticks in /proc, 100 per second in the kernel's interface to programs on every platform that perch runs on.
const USER_HZ: f64 = 100.0;

fn number_after(path: &str, name: &str) -> Option<f64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Exact up to 2^53, as all of Prometheus.
fn float(number: impl TryInto<i64>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
    number.try_into().map_or(f64::NAN, |n: i64| n as f64)
}

/// Labels, written out, and a value.
type Samples = Vec<(String, f64)>;

fn sample(labels: &[(&str, &str)], value: f64) -> (String, f64) {
    let escape = |label: &str| label.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    (labels.join(","), value)
}

struct Text(String);

impl Text {
    fn value(&mut self, metric: Metric, value: f64) {
        self.family(metric, &[(String::new(), value)]);
    }

    fn family(&mut self, Metric { name, help, kind }: Metric, samples: &[(String, f64)]) {
        if samples.is_empty() {
            return;
        }
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let mut lines = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let written = if labels.is_empty() {
                writeln!(lines, "{name} {value}")
            } else {
                writeln!(lines, "{name}{{{labels}}} {value}")
            };
            written.expect("a String takes everything");
        }
        self.0.push_str(&lines);
        self.0.push('\n');
    }
}
