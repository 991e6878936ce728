//! What `/api/v1/services` says of a service's rollout, and `/api/v1/services/{name}/history`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::moves::clients_left;
use crate::admin::AdminState;
use crate::config;
use crate::control::ramp::Shown;
use crate::decide::guard::Report;
use crate::decide::ramp::RampState;
use crate::decide::rollout::{OnDecrease, Paused, Revision, Rollout, Weights};
use crate::decide::{self, Hold};
use crate::state::snapshot::{Service, Snapshot};

/// Beside the versions of a service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct Shape {
    /// The number of the last entry in the history.
    revision: u64,
    /// Of the document with all services.
    sequence: u64,
    paused: Option<Paused>,
    /// The version that `abort` returns to.
    stable: String,
    source: Source,
    file_weights: Weights,
    /// The file's weights that come into force with `resume`.
    waiting: Option<Weights>,
    drains: Vec<Drain>,
    /// The guarded ramp, under way or the last one.
    ramp: Option<Ramp>,
}

/// Whose weights are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    File,
    Verbs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Drain {
    version: String,
    /// `None`: no deadline, or it stands still while the service is paused.
    deadline_seconds: Option<u64>,
    clients_left: usize,
}

impl Shape {
    pub(in crate::admin) fn new(state: &AdminState, snapshot: &Snapshot, service: &Service, now: u64) -> Self {
        let file_weights: Weights = service.config.versions.iter().map(|v| (v.name.to_string(), v.weight)).collect();
        let rollout = snapshot.rollouts.services.get(&*service.name);
        let in_force: Weights = std::iter::zip(&service.versions, service.policy.split.weights())
            .map(|(v, weight)| (v.name.to_string(), weight))
            .collect();
        let is_waiting = rollout.is_some_and(|r| r.waiting(&file_weights));
        let holds = &service.policy.holds;
        // It walks the whole pin table, and is of no use while nobody is held.
        let is_held = holds.iter().any(|hold| !matches!(hold, Hold::None));
        let left = if is_held { clients_left(&state.pins, service, now) } else { vec![0; holds.len()] };
        let versions = service.versions.iter().enumerate();
        let drains = versions.zip(holds).zip(&left).filter_map(|(((i, version), hold), clients)| {
            let deadline_seconds = match hold {
                Hold::None => return None,
                // It has everybody again: there is nobody to hold.
                Hold::Until(_) if service.policy.split.share(i) >= 1.0 => return None,
                Hold::Until(deadline) => Some(deadline.saturating_sub(now).div_ceil(1000)),
                Hold::Frozen => None,
            };
            Some(Drain { version: version.name.to_string(), deadline_seconds, clients_left: *clients })
        });
        Self {
            revision: rollout.map_or(0, |r| r.revision()),
            sequence: snapshot.rollouts.sequence,
            paused: rollout.and_then(|r| r.paused.clone()),
            stable: rollout.map(|r| r.stable.clone()).unwrap_or_default(),
            source: if in_force == file_weights { Source::File } else { Source::Verbs },
            waiting: is_waiting.then(|| file_weights.clone()),
            file_weights,
            drains: drains.collect(),
            ramp: rollout.and_then(|r| r.ramp.as_ref().map(|ramp| Ramp::new(state, service, r, ramp))),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ramp {
    state: &'static str,
    canary: String,
    stable: String,
    /// Index into `steps`.
    step: usize,
    steps: Vec<Step>,
    hold_left_seconds: f64,
    /// Why it holds, waits or ended; empty while it runs.
    why: String,
    guard: Report,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    /// As it is written: `5%`.
    weight: String,
    share: f64,
    hold_seconds: f64,
}

impl Ramp {
    fn new(state: &AdminState, service: &Service, rollout: &Rollout, noted: &RampState) -> Self {
        let Shown { state: ramp, report } = state.control.ramps().show(&service.name, noted);
        let is_paused = rollout.paused.is_some() && ramp.phase.is_under_way();
        let step = |s: &decide::ramp::Step| Step {
            weight: config::percent(s.share),
            share: s.share,
            hold_seconds: s.hold.as_secs_f64(),
        };
        Self {
            state: if is_paused { "paused" } else { ramp.phase.as_str() },
            step: ramp.step,
            steps: ramp.plan.steps.iter().map(step).collect(),
            hold_left_seconds: ramp.hold_left().as_secs_f64(),
            why: ramp.why,
            canary: ramp.canary,
            stable: ramp.stable,
            guard: report,
        }
    }
}

/// An entry of the history.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct Entry<'a> {
    revision: u64,
    at: u64,
    who: &'a str,
    verb: &'static str,
    reason: Option<&'a str>,
    weights: BTreeMap<&'a str, f64>,
    stable: &'a str,
    on_decrease: Option<OnDecrease>,
    current: bool,
}

/// Newest first.
pub(in crate::admin) fn history(revisions: &[Revision]) -> Vec<Entry<'_>> {
    revisions.iter().rev().enumerate().map(|(n, revision)| entry(revision, n == 0)).collect()
}

fn entry(r: &Revision, current: bool) -> Entry<'_> {
    Entry {
        revision: r.revision,
        at: r.at,
        who: &r.who,
        verb: r.verb.as_str(),
        reason: r.reason.as_deref(),
        weights: r.weights.iter().map(|(name, w)| (&**name, w.value())).collect(),
        stable: &r.stable,
        on_decrease: r.on_decrease,
        current,
    }
}
