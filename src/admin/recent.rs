//! What each version did lately: requests, failures and latency of the last minute, and a point every [`STEP`] for the
//! charts of the last five minutes.
//!
//! Read from the versions' own counts ([`crate::metrics::VersionMetrics::outcomes`]) by a task of the admin listener, so
//! that a page that is opened has its charts at once. 15 KiB per version; no request knows of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::AdminState;
use crate::decide::guard::Outcomes;
use crate::state::snapshot::{Service, Snapshot, Version, VersionId};

/// Between two points.
pub(super) const STEP: Duration = Duration::from_secs(5);
/// Five minutes of them.
const POINTS: usize = 60;
/// A reading is kept every so many steps, and so many readings: "the last minute" is 45 to 60 s long.
const MARK_STEPS: u64 = 3;
const MARKS: usize = 4;

/// Written once a step, read by those who look; a lock is held for no longer than copying takes.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Courses>);

#[derive(Debug, Default)]
struct Courses {
    /// How many there were.
    step: u64,
    versions: HashMap<VersionId, Course>,
}

/// Of one version.
#[derive(Debug)]
struct Course {
    /// The last reading, and when.
    last: (u64, Outcomes),
    /// Older ones, the oldest first.
    marks: VecDeque<(u64, Outcomes)>,
    points: VecDeque<Figures>,
}

/// What a version did in some time. Ratio and quantiles are `None` without a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Figures {
    requests_per_second: f64,
    /// 5xx, answers that broke off, and failed attempts.
    error_ratio: Option<f64>,
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn new(outcomes: &Outcomes, millis: u64) -> Self {
        let requests = outcomes.requests();
        let quantile = |q| outcomes.quantile(q).map(|d| rounded(d.as_secs_f64()));
        Self {
            requests_per_second: if millis == 0 { 0.0 } else { rounded(requests as f64 * 1000.0 / millis as f64) },
            error_ratio: (requests > 0).then(|| rounded(outcomes.failure_ratio())),
            p50_seconds: quantile(0.5),
            p99_seconds: quantile(0.99),
        }
    }
}

/// To four digits: more is noise, and most of an event's length.
fn rounded(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    let unit = 10f64.powf(value.log10().floor() - 3.0);
    let rounded = (value / unit).round() * unit;
    // Multiplying leaves 0.30000000000000004.
    format!("{rounded:.9}").parse().unwrap_or(rounded)
}

/// The `recent` event and the answer to `GET /api/v1/services/{name}/recent`. The newest value is last; a version that is
/// younger than the others has fewer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shape {
    step_seconds: u64,
    services: BTreeMap<String, BTreeMap<String, Columns>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Columns {
    requests_per_second: Vec<f64>,
    error_ratio: Vec<Option<f64>>,
    p50_seconds: Vec<Option<f64>>,
    p99_seconds: Vec<Option<f64>>,
}

impl Recent {
    /// Takes the next point of every version; to be called every [`STEP`].
    pub(super) fn take(&self, snapshot: &Snapshot, now: u64) {
        let mut courses = self.courses();
        courses.step += 1;
        let is_mark = courses.step.is_multiple_of(MARK_STEPS);
        let mut before = std::mem::take(&mut courses.versions);
        for version in snapshot.services.iter().flat_map(|s| &s.versions) {
            let read = version.metrics.outcomes();
            let course = match before.remove(&version.id) {
                None => Course {
                    marks: VecDeque::from([(now, read.clone())]),
                    last: (now, read),
                    points: VecDeque::with_capacity(POINTS),
                },
                Some(mut course) => {
                    let (then, earlier) = std::mem::replace(&mut course.last, (now, read.clone()));
                    if course.points.len() == POINTS {
                        course.points.pop_front();
                    }
                    course.points.push_back(Figures::new(&read.since(&earlier), now.saturating_sub(then)));
                    if is_mark {
                        if course.marks.len() == MARKS {
                            course.marks.pop_front();
                        }
                        course.marks.push_back((now, read));
                    }
                    course
                }
            };
            courses.versions.insert(version.id, course);
        }
    }

    /// How many steps were taken.
    pub(super) fn step(&self) -> u64 {
        self.courses().step
    }

    /// The last minute, up to now.
    pub(super) fn last_minute(&self, version: &Version, now: u64) -> Figures {
        let mark = self.courses().versions.get(&version.id).and_then(|c| c.marks.front().cloned());
        let (then, earlier) = mark.unwrap_or_default();
        Figures::new(&version.metrics.outcomes().since(&earlier), now.saturating_sub(then))
    }

    /// The courses of all services.
    pub(super) fn shape(&self, state: &AdminState) -> Shape {
        let snapshot = state.published.load();
        self.shape_of(snapshot.services.iter().map(|s| &**s))
    }

    /// The courses of these.
    pub(super) fn shape_of<'a>(&self, services: impl IntoIterator<Item = &'a Service>) -> Shape {
        let courses = self.courses();
        let of = |version: &Version| {
            let points = || courses.versions.get(&version.id).into_iter().flat_map(|c| &c.points);
            Columns {
                requests_per_second: points().map(|p| p.requests_per_second).collect(),
                error_ratio: points().map(|p| p.error_ratio).collect(),
                p50_seconds: points().map(|p| p.p50_seconds).collect(),
                p99_seconds: points().map(|p| p.p99_seconds).collect(),
            }
        };
        let services = services
            .into_iter()
            .map(|s| (s.name.to_string(), s.versions.iter().map(|v| (v.name.to_string(), of(v))).collect()))
            .collect();
        Shape { step_seconds: STEP.as_secs(), services }
    }

    fn courses(&self) -> MutexGuard<'_, Courses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_four_digits() {
        for (exact, shown) in [(0.1 + 0.2, 0.3), (123_456.0, 123_500.0), (0.001_234_56, 0.001_235), (0.0, 0.0)] {
            assert!((rounded(exact) - shown).abs() < 1e-12, "{exact}: {}", rounded(exact));
        }
    }
}
