//! The runner of guarded ramps: looks twice a second at what both sides did, and does what `decide::ramp` says, through
//! the writer as everybody else. Only the replica that leads runs any; the others show what it wrote.
//!
//! Each move is one write: the ramp's state with its weights, kept before it is in force. In between the state is noted
//! every few seconds, so that another process goes on where this one was killed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use self::live::{Done, Live, Seen};
use super::writer::Control;
use crate::decide::guard::{Report, Window};
use crate::decide::ramp::RampState;
use crate::decide::rollout::Rollout;
use crate::decide::rollout::verb::Verb;
use crate::metrics;
use crate::state::clock::Clock;
use crate::state::model::Change;
use crate::state::snapshot::{Service, Version};

mod live;
mod webhook;

/// Between looks: a canary that fails everything is aborted within a second.
const LOOK: Duration = Duration::from_millis(500);

/// After a `start` of the configuration was refused.
const START_AGAIN: Duration = Duration::from_secs(10);

/// Who the history and the audit log name.
const WHO: &str = "ramp";

/// The ramps that run here, for whoever shows them. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Ramps(Arc<Mutex<HashMap<Arc<str>, Shown>>>);

/// A ramp with its guard's numbers.
#[derive(Clone, Debug)]
pub struct Shown {
    pub state: RampState,
    pub report: Report,
}

impl Ramps {
    /// A ramp as it is now: live where it runs, as it was last noted elsewhere.
    #[must_use]
    pub fn show(&self, service: &str, noted: &RampState) -> Shown {
        let live = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(service).cloned();
        // What somebody else has ended, or begun anew, is not what the runner last saw.
        let is_it = |live: &Shown| match noted.phase.is_under_way() {
            true => live.state.phase.is_under_way() && live.state.canary == noted.canary,
            false => live.state == *noted,
        };
        live.filter(is_it).unwrap_or_else(|| Shown { state: noted.clone(), report: noted.report(&Window::default()) })
    }

    fn put(&self, service: &Arc<str>, shown: Shown) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(service.clone(), shown);
    }

    fn keep(&self, is_there: impl Fn(&Arc<str>) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| is_there(name));
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Runs until the writer ends. `leads` says whether this replica is the one that runs ramps.
pub async fn run(control: Control, clock: Clock, leads: watch::Receiver<bool>) {
    let mut runner = Runner { control, clock, live: HashMap::new(), refused: HashMap::new(), counted: HashSet::new() };
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if runner.control.is_stopped() {
            return;
        }
        if *leads.borrow() {
            runner.look().await;
        } else {
            runner.rest();
        }
    }
}

struct Runner {
    control: Control,
    clock: Clock,
    live: HashMap<Arc<str>, Live>,
    /// Starts that were refused, and when.
    refused: HashMap<Arc<str>, Instant>,
    /// Services whose counters exist.
    counted: HashSet<Arc<str>>,
}

impl Runner {
    /// Another replica leads.
    fn rest(&mut self) {
        self.live.clear();
        self.control.ramps().clear();
    }

    async fn look(&mut self) {
        let snapshot = self.control.snapshot();
        let is_there = |name: &Arc<str>| snapshot.services.iter().any(|s| s.name == *name);
        self.live.retain(|name, _| is_there(name));
        self.refused.retain(|name, _| is_there(name));
        self.control.ramps().keep(is_there);
        for service in &snapshot.services {
            if !service.config.rollout.steps.is_empty() && self.counted.insert(service.name.clone()) {
                metrics::rollout_start(&service.name);
            }
            let Some(rollout) = snapshot.rollouts.services.get(&*service.name) else { continue };
            self.start(service, rollout).await;
            let Some(state) = rollout.ramp.as_ref().filter(|ramp| ramp.phase.is_under_way()) else {
                // Its last numbers stay to be read.
                self.live.remove(&service.name);
                continue;
            };
            let live = self.live.entry(service.name.clone()).or_insert_with(|| Live::new(state));
            let done = live.look(&self.control, self.clock, service, rollout, state).await;
            let shown = Shown { state: live.state().clone(), report: live.report() };
            if let Some(done) = done {
                told(service, &shown, &done);
            }
            self.control.ramps().put(&service.name, shown);
        }
    }

    /// Begins what the configuration asks for, once.
    async fn start(&mut self, service: &Arc<Service>, rollout: &Rollout) {
        let config = &service.config.rollout;
        let Some(start) = config.start.as_ref().filter(|_| !config.steps.is_empty()) else { return };
        let id = format!("{}@{}", start.version, start.id);
        let is_known = rollout.ramp.as_ref().and_then(|ramp| ramp.start.as_ref()) == Some(&id);
        let is_free = rollout.paused.is_none() && !rollout.has_ramp() && *rollout.stable != *start.version;
        let is_early = self.refused.get(&service.name).is_some_and(|at| at.elapsed() < START_AGAIN);
        let now = self.clock.now();
        let version = service.versions.iter().find(|v| v.name == start.version);
        let usable = version.map_or(0, |v| v.endpoints.iter().filter(|e| e.health.is_usable(now)).count());
        if is_known || !is_free || is_early || usable < config.min_ready {
            return;
        }
        let verb = Verb::Start { version: start.version.to_string(), id };
        let mut change = Change::new(&*service.name, verb, "configuration");
        change.reason = Some(format!("rollout.start {}", start.id).trim_end().to_owned());
        match self.control.change(change, false).await {
            Ok(done) => {
                info!(service = %service.name, version = %start.version, revision = done.revision, "Began a ramp.");
            }
            Err(error) => {
                warn!(service = %service.name, version = %start.version, %error, "Could not begin a ramp.");
                self.refused.insert(service.name.clone(), Instant::now());
            }
        }
    }
}

/// Everybody who wants to know that a ramp has made a move.
fn told(service: &Service, shown: &Shown, done: &Done) {
    let (name, state) = (&service.name, &shown.state);
    let (step, steps) = (state.step + 1, state.plan.steps.len());
    match done {
        Done::Step(share) => info!(service = %name, canary = state.canary, step, steps, share, "Ramp goes on."),
        Done::Finished { .. } => info!(service = %name, canary = state.canary, steps, "Ramp has ended well."),
        Done::Aborted { test, .. } => {
            metrics::rollout_abort(name, test);
            warn!(
                service = %name, canary = state.canary, step, steps, test, why = state.why,
                "Aborted a ramp; the stable side has everything."
            );
        }
    }
    let event = match done {
        Done::Step(_) => return,
        Done::Finished { generation, revision } => ("done", generation, revision),
        Done::Aborted { generation, revision, .. } => ("aborted", generation, revision),
    };
    if let Some(url) = &service.config.rollout.webhook {
        webhook::tell(url.clone(), name.clone(), webhook::body(name, shown, event));
    } else {
        debug!(service = %name, "No webhook to tell of the end of a ramp.");
    }
}

/// The endpoints of a version, to see that they changed.
fn endpoints(snapshot: &Service, version: &str) -> Vec<Seen> {
    let of = snapshot.versions.iter().filter(|v| *v.name == *version);
    let seen = |v: &Version| {
        let unready = v.unready.iter().copied().map(Seen::Unready);
        v.endpoints.iter().map(|e| Seen::Endpoint(e.id)).chain(unready).collect::<Vec<_>>()
    };
    of.flat_map(seen).collect()
}

#[cfg(test)]
mod tests;
