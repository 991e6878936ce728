//! The guard's numbers for people: the API, the page, the log, and the reason of an abort.

use std::time::Duration;

use serde::Serialize;

use super::{Counts, Guard, Metric, Rules, Verdict, Window};

/// A number of each side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sides<T> {
    pub stable: T,
    pub canary: T,
}

/// One test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Numbers {
    pub metric: &'static str,
    /// Aborts at [`Report::abort_at`].
    pub e_value: f64,
}

/// What the guard sees in the step, and says to it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub requests: Sides<u64>,
    /// Failed requests.
    pub errors: Sides<u64>,
    pub error_ratio: Sides<f64>,
    /// In seconds, of the step or, if that is later, since the start of perch; `None` without a request.
    pub p50: Sides<Option<f64>>,
    pub p90: Sides<Option<f64>>,
    pub p99: Sides<Option<f64>>,
    pub min_requests: u64,
    /// The largest of the tests.
    pub e_value: f64,
    pub suspect_at: f64,
    pub abort_at: f64,
    pub tests: Vec<Numbers>,
    pub verdict: &'static str,
    pub why: String,
}

impl Guard {
    /// The numbers now. `needs_stable` as in [`Guard::verdict`].
    #[must_use]
    pub fn report(&self, rules: &Rules, window: &Window, needs_stable: bool) -> Report {
        let verdict = self.verdict(rules, needs_stable);
        let (stable, canary) = self.counts();
        let quantile = |q| Sides {
            stable: window.stable.quantile(q).map(|d| d.as_secs_f64()),
            canary: window.canary.quantile(q).map(|d| d.as_secs_f64()),
        };
        let tests: Vec<Numbers> = Metric::ALL
            .into_iter()
            .filter(|metric| rules.has(*metric))
            .map(|metric| Numbers { metric: metric.as_str(), e_value: self.value(rules, metric) })
            .collect();
        Report {
            requests: Sides { stable: stable.requests, canary: canary.requests },
            errors: Sides { stable: stable.failures, canary: canary.failures },
            error_ratio: Sides { stable: stable.ratio(), canary: canary.ratio() },
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            min_requests: rules.min_requests,
            e_value: self.worst(rules).map_or(0.0, |(_, value)| value),
            suspect_at: rules.suspect_at(),
            abort_at: rules.abort_at(),
            tests,
            verdict: verdict.as_str(),
            why: self.why(rules, window, verdict),
        }
    }

    /// The verdict in words, with the numbers it comes from.
    #[must_use]
    pub fn why(&self, rules: &Rules, window: &Window, verdict: Verdict) -> String {
        let (stable, canary) = self.counts();
        match verdict {
            Verdict::TooFew => {
                format!(
                    "too few requests: canary {}, stable {} of {}",
                    canary.requests, stable.requests, rules.min_requests
                )
            }
            Verdict::Clear => "nothing speaks against the canary".to_owned(),
            Verdict::Suspect(metric) => format!(
                "inconclusive: {}; evidence {} of {}",
                self.compared(rules, window, metric),
                round(self.value(rules, metric)),
                round(rules.abort_at())
            ),
            Verdict::Worse(metric) => format!(
                "{}; evidence {}, {} is enough",
                self.compared(rules, window, metric),
                round(self.value(rules, metric)),
                round(rules.abort_at())
            ),
        }
    }

    fn compared(&self, rules: &Rules, window: &Window, metric: Metric) -> String {
        let (stable, canary) = self.counts();
        let errors = |counts: Counts| {
            format!("canary failed {} of {} requests ({})", counts.failures, counts.requests, percent(counts.ratio()))
        };
        let took = |q: f64| {
            let of = |window: &super::Outcomes| window.quantile(q).map_or_else(|| "unknown".to_owned(), seconds);
            (of(&window.canary), of(&window.stable))
        };
        match metric {
            Metric::Errors => format!(
                "{}, stable {} of {} ({}) in the same time",
                errors(canary),
                stable.failures,
                stable.requests,
                percent(stable.ratio())
            ),
            Metric::P50 | Metric::P90 | Metric::P99 => {
                let (slow, usual) = took(metric.quantile().unwrap_or(0.5));
                format!(
                    "canary is slower: its {} is {slow} over {} requests, stable's {usual} over {} in the same time",
                    metric.as_str(),
                    canary.requests,
                    stable.requests
                )
            }
            Metric::MaxErrorRatio => {
                let most = percent(rules.max_error_ratio.unwrap_or_default());
                format!("{}, more than maxErrorRatio {most}", errors(self.capped))
            }
            Metric::MaxP99 => format!(
                "canary's p99 is {} over {} requests, more than maxP99 {}",
                took(0.99).0,
                self.capped.requests,
                seconds(rules.max_p99.unwrap_or_default())
            ),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

fn seconds(duration: Duration) -> String {
    match duration.as_secs_f64() {
        s if s < 1.0 => format!("{:.1} ms", s * 1000.0),
        s => format!("{s:.2} s"),
    }
}

/// Two digits for what is small, none for what is large, no zeros without end for what is larger still.
fn round(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 1e6 => format!("{v:.0}"),
        _ => "over a million".to_owned(),
    }
}
