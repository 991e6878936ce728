//! The guard of a ramp: whether the canary does worse than the stable side in the same window, from the proxy's own
//! counts, by tests that stay valid however often they look. Method, sources and limits: docs/rollouts.md.
//!
//! Compared are the share of failed requests, and the shares of requests slower than what half, a tenth and a hundredth
//! of the stable side's requests took of late. Each test has its part of the false aborts that a whole ramp may have.
//! Pure: looks are given to it. It does not know what a weight, a step or a clock is.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod evidence;
pub mod outcomes;
mod report;

use evidence::{Evidence, Sample};
use outcomes::{BUCKETS, bucket, floor};

pub use outcomes::Outcomes;
pub use report::{Numbers, Report, Sides};

/// What the guard allows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rules {
    /// Requests that each side needs in a step before the ramp goes on.
    pub min_requests: u64,
    /// The chance of an abort in a whole ramp when the canary is as good as the stable side.
    pub false_aborts: f64,
    /// How much higher the canary's odds of a failure may be: 0.1 is a tenth.
    pub error_tolerance: f64,
    /// How much longer the canary may take: 0.1 is a tenth.
    pub latency_tolerance: f64,
    /// Share of failures that the canary may not exceed, whatever the stable side does.
    pub max_error_ratio: Option<f64>,
    /// What all but a hundredth of the canary's requests must be faster than, whatever the stable side does.
    pub max_p99: Option<Duration>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            min_requests: 500,
            false_aborts: 0.01,
            error_tolerance: 0.0,
            latency_tolerance: 0.1,
            max_error_ratio: None,
            max_p99: None,
        }
    }
}

/// What is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    Errors,
    P50,
    P90,
    P99,
    MaxErrorRatio,
    MaxP99,
}

impl Metric {
    pub const ALL: [Self; 6] = [Self::Errors, Self::P50, Self::P90, Self::P99, Self::MaxErrorRatio, Self::MaxP99];

    /// The word in the API, the log and the metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::MaxErrorRatio => "max-error-ratio",
            Self::MaxP99 => "max-p99",
        }
    }

    /// Its part of the false aborts, before those that are not configured leave theirs to the others. The rarer what a
    /// test looks at, the less it sees per request, and the more it gets.
    const fn part(self) -> f64 {
        match self {
            Self::Errors => 0.54,
            Self::P50 => 0.04,
            Self::P90 => 0.10,
            Self::P99 => 0.20,
            Self::MaxErrorRatio => 0.04,
            Self::MaxP99 => 0.08,
        }
    }

    const fn quantile(self) -> Option<f64> {
        match self {
            Self::P50 => Some(0.5),
            Self::P90 => Some(0.9),
            Self::P99 => Some(0.99),
            Self::Errors | Self::MaxErrorRatio | Self::MaxP99 => None,
        }
    }

    const fn is_ceiling(self) -> bool {
        matches!(self, Self::MaxErrorRatio | Self::MaxP99)
    }
}

impl Rules {
    fn has(&self, metric: Metric) -> bool {
        match metric {
            Metric::Errors | Metric::P50 | Metric::P90 | Metric::P99 => true,
            Metric::MaxErrorRatio => self.max_error_ratio.is_some(),
            Metric::MaxP99 => self.max_p99.is_some(),
        }
    }

    /// The part of the false aborts that is this test's.
    fn part(&self, metric: Metric) -> f64 {
        let all: f64 = Metric::ALL.into_iter().filter(|m| self.has(*m)).map(Metric::part).sum();
        metric.part() / all
    }

    /// The e-value that aborts.
    #[must_use]
    pub fn abort_at(&self) -> f64 {
        1.0 / self.false_aborts
    }

    /// The e-value from which the ramp does not go on by itself: half of the way, as evidence is counted.
    #[must_use]
    pub fn suspect_at(&self) -> f64 {
        self.abort_at().sqrt()
    }
}

/// Requests of the canary in a step before a ceiling may abort.
pub const CEILING_REQUESTS: u64 = 30;

/// What is put in play at the beginning of a ramp, and of what is left at each further step. The first step has the
/// fewest requests, so a look there is dearest; the later ones have ten times as many, and make good for less money.
const FIRST_STAKE: f64 = 0.75;
const STEP_STAKE: f64 = 0.5;

/// Longer by less than this is never held against the canary: a share of 1 % rarely meets a kept connection, and a new
/// one costs a round trip.
pub const LATENCY_FLOOR: Duration = Duration::from_millis(2);

/// What has to outlive a restart: the evidence, and the counts of the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guard {
    tests: Vec<Test>,
    /// Of the step, as far as it was compared.
    stable: Counts,
    canary: Counts,
    /// Of the step, all that the ceilings hold for.
    capped: Counts,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Test {
    metric: Metric,
    evidence: Evidence,
}

/// Requests and failures of a side in the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub requests: u64,
    pub failures: u64,
}

impl Counts {
    fn add(&mut self, outcomes: &Outcomes) {
        self.requests += outcomes.requests();
        self.failures += outcomes.failures;
    }

    /// Share of failures, 0 without a request.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub fn ratio(self) -> f64 {
        self.failures as f64 / (self.requests.max(1) as f64)
    }
}

/// What a restart forgets: how long requests took. Quantiles begin anew then, and so does what is slow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// Of the step.
    stable: Outcomes,
    canary: Outcomes,
    /// Of the stable side of late, in two parts so that the older one can be forgotten.
    recent: Outcomes,
    before: Outcomes,
    looks: u32,
}

/// Requests of the stable side, and looks, after which the older half of what is usual is forgotten.
const RECENT_REQUESTS: u64 = 5_000;
const RECENT_LOOKS: u32 = 30;

impl Window {
    /// Another step begins; what is usual on the stable side stays known.
    pub fn begin_step(&mut self) {
        self.stable = Outcomes::default();
        self.canary = Outcomes::default();
    }

    fn add(&mut self, stable: &Outcomes, canary: &Outcomes) {
        self.stable.add(stable);
        self.canary.add(canary);
        self.recent.add(stable);
        self.looks += 1;
        if self.recent.requests() >= RECENT_REQUESTS && self.looks >= RECENT_LOOKS {
            self.before = std::mem::take(&mut self.recent);
            self.looks = 0;
        }
    }

    /// The bucket from which a request of the stable side is slower than its `q`-quantile of late; `None` while too few
    /// are known.
    fn edge(&self, q: f64) -> Option<usize> {
        let mut usual = self.before.clone();
        usual.add(&self.recent);
        // Three requests beyond the edge at least, and fifty in all.
        let needed = (3.0 / (1.0 - q)).max(50.0);
        #[expect(clippy::cast_precision_loss, reason = "compared with a few hundred")]
        let is_known = usual.requests() as f64 >= needed;
        is_known.then(|| usual.quantile_bucket(q)).flatten().map(|bucket| (bucket + 1).min(BUCKETS - 1))
    }
}

/// The first bucket that is wholly beyond `limit`.
fn edge_beyond(limit: Duration) -> usize {
    let edge = bucket(limit);
    if floor(edge) < limit { (edge + 1).min(BUCKETS - 1) } else { edge }
}

/// What the guard says now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Too few requests to go on.
    TooFew,
    /// Nothing speaks against going on.
    Clear,
    /// Something may be wrong: not enough to abort, too much to go on.
    Suspect(Metric),
    /// Worse than allowed.
    Worse(Metric),
}

impl Verdict {
    /// The word in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooFew => "too-few-requests",
            Self::Clear => "clear",
            Self::Suspect(_) => "suspect",
            Self::Worse(_) => "worse",
        }
    }
}

impl Guard {
    /// Another step begins: its counts start, and a part of what is not yet bet is put in play.
    pub fn begin_step(&mut self) {
        let part = if self.tests.is_empty() { FIRST_STAKE } else { STEP_STAKE };
        self.stable = Counts::default();
        self.canary = Counts::default();
        self.capped = Counts::default();
        self.stake(part);
    }

    /// One look at what both sides did since the last one. `share`: of the step's hold since then; the cash is put in
    /// play with a half-life of a hold, so that what goes wrong late is caught as well. `compares`: false while the
    /// endpoints of a side change: the ceilings hold all the same.
    pub fn look(
        &mut self,
        rules: &Rules,
        window: &mut Window,
        stable: &Outcomes,
        canary: &Outcomes,
        share: f64,
        compares: bool,
    ) {
        self.stake(1.0 - (-share).exp2());
        for metric in Metric::ALL.into_iter().filter(|m| rules.has(*m) && (compares || m.is_ceiling())) {
            let evidence = self.evidence_mut(metric);
            let (of_stable, of_canary) = (stable.requests(), canary.requests());
            match metric {
                Metric::Errors => evidence.compare(
                    Sample::new(canary.failures, of_canary),
                    Sample::new(stable.failures, of_stable),
                    1.0 + rules.error_tolerance,
                ),
                Metric::P50 | Metric::P90 | Metric::P99 => {
                    let Some(edge) = metric.quantile().and_then(|q| window.edge(q)) else { continue };
                    // A canary that is slower by no more than the tolerance exceeds this as often as the stable side
                    // exceeds the edge, or less.
                    let usual = floor(edge);
                    let limit = edge_beyond(usual.mul_f64(1.0 + rules.latency_tolerance).max(usual + LATENCY_FLOOR));
                    evidence.compare(
                        Sample::new(canary.at_or_above(limit), of_canary),
                        Sample::new(stable.at_or_above(edge), of_stable),
                        1.0,
                    );
                }
                Metric::MaxErrorRatio => {
                    let most = rules.max_error_ratio.unwrap_or(1.0);
                    evidence.cap(Sample::new(canary.failures, of_canary), most);
                }
                Metric::MaxP99 => {
                    let edge = edge_beyond(rules.max_p99.unwrap_or(Duration::MAX));
                    evidence.cap(Sample::new(canary.at_or_above(edge), of_canary), 0.01);
                }
            }
        }
        self.capped.add(canary);
        if compares {
            self.stable.add(stable);
            self.canary.add(canary);
            window.add(stable, canary);
        }
    }

    /// `needs_stable`: false when the canary has everything, and only the ceilings are left.
    #[must_use]
    pub fn verdict(&self, rules: &Rules, needs_stable: bool) -> Verdict {
        let worst = self.worst(rules);
        let has_enough =
            self.canary.requests >= rules.min_requests && (!needs_stable || self.stable.requests >= rules.min_requests);
        match worst {
            Some((metric, value)) if value >= rules.abort_at() => Verdict::Worse(metric),
            Some((metric, value)) if value >= rules.suspect_at() && has_enough => Verdict::Suspect(metric),
            _ if has_enough => Verdict::Clear,
            _ => Verdict::TooFew,
        }
    }

    /// The strongest evidence, by its test's part of the false aborts: it aborts at [`Rules::abort_at`].
    #[must_use]
    pub fn worst(&self, rules: &Rules) -> Option<(Metric, f64)> {
        let values = Metric::ALL.into_iter().filter(|m| rules.has(*m)).map(|m| (m, self.value(rules, m)));
        values.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The e-value of a test times its part of the false aborts.
    #[must_use]
    pub fn value(&self, rules: &Rules, metric: Metric) -> f64 {
        let evidence = self.tests.iter().find(|t| t.metric == metric).map_or(1.0, |t| t.evidence.value());
        let waits = metric.is_ceiling() && self.capped.requests < CEILING_REQUESTS;
        if waits { 0.0 } else { evidence * rules.part(metric) }
    }

    /// Requests and failures of the step: stable, canary.
    #[must_use]
    pub fn counts(&self) -> (Counts, Counts) {
        (self.stable, self.canary)
    }

    fn stake(&mut self, share: f64) {
        Metric::ALL.into_iter().for_each(|metric| self.evidence_mut(metric).stake(share));
    }

    fn evidence_mut(&mut self, metric: Metric) -> &mut Evidence {
        // A document of a perch that did not know this test has none of it.
        let at = self.tests.iter().position(|t| t.metric == metric).unwrap_or_else(|| {
            self.tests.push(Test { metric, evidence: Evidence::default() });
            self.tests.len() - 1
        });
        &mut self.tests.get_mut(at).expect("it was found or pushed").evidence
    }
}

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
