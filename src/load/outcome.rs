//! The outcome of a run: what the table, the JSON and the page all show.
//!
//! The JSON form is a promise (docs/load.md): fields are added, never renamed or taken away, while `schema` is 1.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::plan::{Pace, Plan, Protocol};
use super::tally::{Client, SLOT, Tally, Times};
use super::verdict::Finding;
use crate::decide::stats::{Share, wilson};

/// The whole run.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub schema: u32,
    pub verdict: Verdict,
    /// Each thing that does not hold, in words.
    pub violations: Vec<String>,
    /// Stopped by Ctrl-C or by a limit of this machine: all figures are of what was measured until then.
    pub interrupted: bool,
    /// Why, and what to do about it.
    pub interruption: Option<String>,
    pub run: Run,
    pub total: Counts,
    pub findings: Vec<Finding>,
    pub resolution: Vec<Resolution>,
    /// Of a ramp; empty without one.
    pub steps: Vec<Step>,
    pub timeline: Vec<Moment>,
}

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that was asked for holds.
    Holds,
    /// Something does not.
    Violated,
    /// Nothing was expected of the versions, and no request went wrong.
    Measured,
}

/// What was asked for.
#[derive(Debug, Serialize)]
pub struct Run {
    pub urls: Vec<String>,
    pub address: String,
    pub protocol: &'static str,
    pub tls: bool,
    pub identity: &'static str,
    pub ranges: Vec<String>,
    pub clients: u32,
    pub requests_per_client: u32,
    pub visits_per_client: u32,
    pub version_from: String,
    pub concurrency: usize,
    pub threads: usize,
    pub keepalive: bool,
    pub rate: Option<f64>,
    /// At the start, and not in the latencies.
    pub warm_up_seconds: f64,
    pub alpha: f64,
}

/// The counts of a run or a step.
#[derive(Debug, Serialize)]
pub struct Counts {
    pub seconds: f64,
    pub requests: u64,
    pub requests_per_second: f64,
    pub answers: u64,
    pub errors: u64,
    pub clients: Clients,
    pub versions: Vec<Version>,
    pub errors_by_kind: BTreeMap<String, ErrorKind>,
    pub flips: Flips,
    pub connections: Connections,
    pub bytes: Bytes,
    /// How late requests were begun, against the schedule of `--rate`.
    pub schedule_lag_ms: Option<Latency>,
}

/// How many were served.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Clients {
    pub served: u64,
    pub unserved: u64,
    pub flipped: u64,
}

/// One side of the split.
#[derive(Debug, Serialize)]
pub struct Version {
    pub version: Arc<str>,
    /// Clients that it served first.
    pub clients: u64,
    pub clients_share: Share,
    pub requests: u64,
    pub requests_share: Share,
    pub errors: u64,
    /// `None` where nothing was measured: all of it began in the warm-up.
    pub latency_ms: Option<Latency>,
    /// (quantile, milliseconds), closer together towards 1.
    pub latency_curve: Vec<(f64, f64)>,
}

/// Quantiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

/// Errors of one kind.
#[derive(Debug, Serialize)]
pub struct ErrorKind {
    pub count: u64,
    pub first: String,
}

/// Clients that saw two versions while the weights stood still.
#[derive(Debug, Serialize)]
pub struct Flips {
    pub count: u64,
    pub first: Vec<Flip>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub struct Flip {
    pub client: u32,
    pub address: Option<String>,
    pub at_seconds: f64,
    pub from: Arc<str>,
    pub to: Arc<str>,
}

/// Of the client side.
#[derive(Debug, Serialize)]
pub struct Connections {
    pub opened: u64,
    pub tls_handshakes: u64,
    /// Requests sent again because the server had closed a kept-alive connection.
    pub stale_retries: u64,
    /// TCP, PROXY header and TLS together; `None` without a connection.
    pub connect_ms: Option<Latency>,
}

/// HTTP bytes, without TLS's and TCP's own.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bytes {
    pub sent: u64,
    pub received: u64,
}

/// What this many clients can show about a share.
#[derive(Clone, Debug, Serialize)]
pub struct Resolution {
    pub share: f64,
    pub unit: &'static str,
    pub n: u64,
    /// Half of the 95 % interval.
    pub plus_minus: f64,
    /// The counts that the test at `alpha` accepts.
    pub accepts: (u64, u64),
    pub statement: String,
}

/// One weight of a ramp, and what it did.
#[derive(Debug, Serialize)]
pub struct Step {
    pub percent: f64,
    pub generation: u64,
    /// The shares that the admin interface reports.
    pub shares: BTreeMap<String, f64>,
    pub starts_at_seconds: f64,
    pub counts: Counts,
    pub moves: Option<Moves>,
    pub findings: Vec<Finding>,
}

/// Clients that this step gave another version than the one before.
#[derive(Debug, Serialize)]
pub struct Moves {
    /// Served in both steps.
    pub clients: u64,
    pub moved: u64,
    /// In a direction that the change of weights does not explain.
    pub unexplained: u64,
    /// The least that had to move: the change of the share.
    pub fewest: f64,
    pub by_direction: Vec<Direction>,
}

/// From one version to another.
#[derive(Debug, Serialize)]
pub struct Direction {
    pub from: Arc<str>,
    pub to: Arc<str>,
    pub clients: u64,
    pub explained: bool,
}

/// A stretch of time on the plots.
#[derive(Debug, Serialize)]
pub struct Moment {
    pub from_seconds: f64,
    pub to_seconds: f64,
    pub errors: u64,
    pub versions: Vec<MomentVersion>,
}

/// Of one version.
#[derive(Debug, Serialize)]
pub struct MomentVersion {
    pub version: Arc<str>,
    pub visits: u64,
    pub requests: u64,
    /// Of the visits, which are one client's each.
    pub share: Share,
}

impl Run {
    /// Out of a plan.
    #[must_use]
    pub fn new(plan: &Plan, alpha: f64) -> Self {
        Self {
            urls: plan.target.urls.clone(),
            address: plan.target.address.to_string(),
            protocol: match plan.protocol {
                Protocol::Http1 => "http/1.1",
                Protocol::Http2 => "h2",
            },
            tls: plan.target.tls.is_some(),
            identity: plan.identity.label(),
            ranges: plan.ranges.iter().flat_map(|r| r.nets()).map(ToString::to_string).collect(),
            clients: plan.clients,
            requests_per_client: plan.requests,
            visits_per_client: plan.visits,
            version_from: plan.version_from.to_string(),
            concurrency: plan.concurrency,
            threads: plan.threads,
            keepalive: plan.keepalive,
            rate: match plan.pace {
                Pace::Closed => None,
                Pace::Open { rate } => Some(rate),
            },
            warm_up_seconds: plan.warm_up.as_secs_f64(),
            alpha,
        }
    }
}

impl Latency {
    /// Of a histogram in microseconds; `None` of an empty one, whose quantiles would read as 0.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most 3.6e9")]
    pub fn new(times: &Times) -> Option<Self> {
        let histogram = times.histogram();
        let quantile = |q| histogram.value_at_quantile(q) as f64 / 1000.0;
        (!histogram.is_empty()).then(|| Self {
            mean: histogram.mean() / 1000.0,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p99_9: quantile(0.999),
            max: histogram.max() as f64 / 1000.0,
        })
    }

    /// As tables show them: p50, p90, p99, p99.9 and the slowest.
    #[must_use]
    pub fn columns(of: Option<Self>) -> [Option<f64>; 5] {
        of.map_or([None; 5], |of| [of.p50, of.p90, of.p99, of.p99_9, of.max].map(Some))
    }
}

/// Ten points for each nine of the quantile, as far as the count goes.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn curve(times: &Times) -> Vec<(f64, f64)> {
    let histogram = times.histogram();
    let all = histogram.len() as f64;
    (0..=60)
        .map(|tenth| 10_f64.powf(f64::from(tenth) / 10.0))
        .take_while(|nines| *nines <= all)
        .map(|nines| 1.0 - 1.0 / nines)
        .map(|quantile| (quantile, histogram.value_at_quantile(quantile) as f64 / 1000.0))
        .collect()
}

impl Counts {
    /// Out of a tally and the clients it belongs to.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn new(tally: &Tally, clients: &[Client], names: &[Arc<str>], plan: &Plan, took: Duration) -> Self {
        let mut served_by = vec![0_u64; names.len()];
        for client in clients {
            if let Some(count) = client.first.and_then(|s| served_by.get_mut(s.version().index())) {
                *count += 1;
            }
        }
        let served: u64 = served_by.iter().sum();
        let answers = tally.requests();
        let versions = names.iter().zip(&served_by).enumerate().map(|(index, (name, count))| {
            let none = super::tally::VersionTally::default();
            let of = tally.versions.get(index).unwrap_or(&none);
            Version {
                version: Arc::clone(name),
                clients: *count,
                clients_share: wilson(*count, served),
                requests: of.requests,
                requests_share: wilson(of.requests, answers),
                errors: of.errors,
                latency_ms: Latency::new(&of.latency),
                latency_curve: curve(&of.latency),
            }
        });
        let seconds = took.as_secs_f64();
        let name = |id: super::version::VersionId| names.get(id.index()).map_or_else(|| "?".into(), Arc::clone);
        Self {
            seconds,
            requests: tally.attempts,
            requests_per_second: if seconds > 0.0 { tally.attempts as f64 / seconds } else { 0.0 },
            answers,
            errors: tally.errors(),
            clients: Clients {
                served,
                unserved: clients.len() as u64 - served,
                flipped: clients.iter().filter(|c| c.flipped).count() as u64,
            },
            versions: versions.collect(),
            errors_by_kind: tally
                .faults
                .iter()
                .map(|(kind, f)| (kind.label(), ErrorKind { count: f.count, first: f.first.clone() }))
                .collect(),
            flips: Flips {
                count: tally.flips,
                first: tally
                    .first_flips
                    .iter()
                    .map(|f| Flip {
                        client: f.client,
                        address: plan.ranges.as_ref().map(|r| r.address(f.client).to_string()),
                        at_seconds: f.at.as_secs_f64(),
                        from: name(f.from),
                        to: name(f.to),
                    })
                    .collect(),
            },
            connections: Connections {
                opened: tally.connections,
                tls_handshakes: tally.handshakes,
                stale_retries: tally.stale,
                connect_ms: Latency::new(&tally.connect),
            },
            bytes: Bytes { sent: tally.sent, received: tally.received },
            schedule_lag_ms: matches!(plan.pace, Pace::Open { .. }).then(|| Latency::new(&tally.lag)).flatten(),
        }
    }
}

/// Points on a plot; more of them only hide each other.
const MOST_MOMENTS: u32 = 60;

/// The timeline in at most [`MOST_MOMENTS`] stretches of equal length.
#[must_use]
pub fn timeline(tally: &Tally, names: &[Arc<str>]) -> Vec<Moment> {
    let Some((last, _)) = tally.timeline.last_key_value() else { return Vec::new() };
    let stride = (last + 1).div_ceil(MOST_MOMENTS).max(1);
    let mut merged: BTreeMap<u32, super::tally::Slot> = BTreeMap::new();
    for (at, slot) in &tally.timeline {
        merged.entry(at / stride).or_default().add(slot);
    }
    let seconds = |slots: u32| SLOT.as_secs_f64() * f64::from(slots);
    let moment = |(at, slot): (u32, super::tally::Slot)| {
        let all: u64 = slot.versions.iter().map(|v| u64::from(v.0)).sum();
        Moment {
            from_seconds: seconds(at * stride),
            to_seconds: seconds((at + 1) * stride),
            errors: u64::from(slot.errors),
            versions: names
                .iter()
                .enumerate()
                .map(|(index, name)| {
                    let (visits, requests) = slot.versions.get(index).copied().unwrap_or_default();
                    let share = wilson(u64::from(visits), all);
                    MomentVersion {
                        version: Arc::clone(name),
                        visits: u64::from(visits),
                        requests: u64::from(requests),
                        share,
                    }
                })
                .collect(),
        }
    };
    merged.into_iter().map(moment).collect()
}
