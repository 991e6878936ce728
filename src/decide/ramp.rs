//! A guarded ramp: the canary gets more from step to step, as long as the guard lets it. Pure: what happened since the
//! last look is given, what is to be done is returned, and the state in between is what a restart goes on from.
//!
//! A step ends when its hold is over, both sides had enough requests, and nothing speaks against the canary. While
//! endpoints of a side change the ramp waits. What is worse than allowed aborts at once. It does not know clocks, weights
//! of other versions, or where it is kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::guard::{Guard, Outcomes, Report, Rules, Verdict, Window};

/// What is configured, and kept with a ramp from its beginning to its end: another configuration is for the next one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Ascending; the last one is everything.
    pub steps: Vec<Step>,
    pub guard: Rules,
    /// Usable endpoints that the canary needs.
    pub min_ready: usize,
    /// After the last change of a side's endpoints, the ramp waits so long.
    pub settle: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Of all clients, above 0 and at most 1.
    pub share: f64,
    pub hold: Duration,
}

impl Step {
    /// The canary has everything: there is no other side to compare with.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.share >= 1.0
    }
}

/// Where a ramp is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Running,
    /// The hold is over, but it is not known that all is well.
    Holding,
    /// Endpoints of a side change, or the canary has too few.
    Waiting,
    Done,
    Aborted,
}

impl Phase {
    /// The word in the API and the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Holding => "holding",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Aborted => "aborted",
        }
    }

    /// There is more to come.
    #[must_use]
    pub const fn is_under_way(self) -> bool {
        matches!(self, Self::Running | Self::Holding | Self::Waiting)
    }
}

/// What the runner of a ramp needs to go on after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RampState {
    pub canary: String,
    /// What it is compared with.
    pub stable: String,
    pub plan: Plan,
    /// Which of the plan's steps, from 0.
    pub step: usize,
    /// Of the step's hold.
    pub elapsed: Duration,
    pub phase: Phase,
    /// Why it holds, waits or ended.
    pub why: String,
    /// A person wants the next step, whatever the guard says.
    #[serde(default)]
    pub skips: bool,
    /// The `start` of the configuration that began it; `None`: a person did.
    #[serde(default)]
    pub start: Option<String>,
    pub guard: Guard,
}

/// What was seen since the last look.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    pub passed: Duration,
    pub stable: &'a Outcomes,
    pub canary: &'a Outcomes,
    /// Since the endpoints of either side last changed.
    pub unchanged: Duration,
    /// Endpoints of the canary that can serve.
    pub usable: usize,
    /// A person wants the picture to stand still: the guard looks on, but nothing is done.
    pub is_paused: bool,
}

/// What is to be done after a look.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    Stay,
    /// The canary gets this share of the clients.
    Step(f64),
    /// The canary takes all and is the stable side from now on.
    Finish,
    /// The stable side takes all, at once.
    Abort,
}

impl RampState {
    /// Begins a ramp of a canary that has `share` of the clients, and says what it gets first. Nobody is taken away from
    /// it: with more than the first step it begins at the last step that it is not below.
    #[must_use]
    pub fn begin(plan: Plan, canary: &str, stable: &str, share: f64, start: Option<String>) -> (Self, Option<f64>) {
        let has = |step: &Step| step.share <= share * 1.001;
        let step = plan.steps.iter().rposition(has).unwrap_or(0);
        let first = plan.steps.get(step).filter(|step| step.share > share * 1.001).map(|step| step.share);
        let mut guard = Guard::default();
        guard.begin_step();
        let state = Self {
            canary: canary.to_owned(),
            stable: stable.to_owned(),
            plan,
            step,
            elapsed: Duration::ZERO,
            phase: Phase::Running,
            why: String::new(),
            skips: false,
            start,
            guard,
        };
        (state, first)
    }

    /// The step it is at.
    #[must_use]
    pub fn current(&self) -> Option<&Step> {
        self.plan.steps.get(self.step)
    }

    /// A person wants the next step; it comes with the next look.
    #[must_use]
    pub fn skipping(&self) -> Self {
        Self { skips: self.phase.is_under_way(), ..self.clone() }
    }

    /// Somebody or something else ended it. One that had ended stays as it was.
    #[must_use]
    pub fn ended(&self, why: &str) -> Self {
        let mut next = self.clone();
        if self.phase.is_under_way() {
            next.end(Phase::Aborted, why.to_owned());
        }
        next
    }

    /// What has to be done now. `window` belongs to this ramp as long as the process lives.
    pub fn look(&mut self, window: &mut Window, look: &Look<'_>) -> Move {
        let Some(step) = self.current().copied() else { return Move::Stay };
        if !self.phase.is_under_way() {
            return Move::Stay;
        }
        let waits = self.waits(look);
        let goes_on = !look.is_paused && waits.is_none();
        let share = if goes_on { share(look.passed, step.hold) } else { 0.0 };
        let compares = waits.is_none() && !step.is_all();
        self.guard.look(&self.plan.guard, window, look.stable, look.canary, share, compares);
        if look.is_paused {
            return Move::Stay;
        }
        let verdict = self.guard.verdict(&self.plan.guard, !step.is_all());
        if let Verdict::Worse(_) = verdict {
            let why = self.guard.why(&self.plan.guard, window, verdict);
            self.end(Phase::Aborted, why);
            return Move::Abort;
        }
        if std::mem::take(&mut self.skips) {
            return self.advance(window);
        }
        if let Some(why) = waits {
            self.phase = Phase::Waiting;
            self.why = why;
            return Move::Stay;
        }
        self.elapsed += look.passed;
        // With everything on the canary there is nobody to compare with: only what the ceilings say counts.
        let is_clear = verdict == Verdict::Clear || (step.is_all() && verdict == Verdict::TooFew);
        if self.elapsed < step.hold {
            self.phase = Phase::Running;
            self.why.clear();
            return Move::Stay;
        }
        if is_clear {
            return self.advance(window);
        }
        self.phase = Phase::Holding;
        self.why = self.guard.why(&self.plan.guard, window, verdict);
        Move::Stay
    }

    /// Of the step's hold.
    #[must_use]
    pub fn hold_left(&self) -> Duration {
        self.current().map_or(Duration::ZERO, |step| step.hold.saturating_sub(self.elapsed))
    }

    /// The guard's numbers.
    #[must_use]
    pub fn report(&self, window: &Window) -> Report {
        self.guard.report(&self.plan.guard, window, self.current().is_none_or(|step| !step.is_all()))
    }

    fn waits(&self, look: &Look<'_>) -> Option<String> {
        if look.usable < self.plan.min_ready {
            let (usable, needed) = (look.usable, self.plan.min_ready);
            return Some(format!("`{}` has {usable} usable endpoints and needs {needed}", self.canary));
        }
        (look.unchanged < self.plan.settle).then(|| {
            let (since, settle) = (look.unchanged.as_secs_f64(), self.plan.settle.as_secs_f64());
            format!("endpoints changed {since:.0} s ago; waiting until nothing has changed for {settle:.0} s")
        })
    }

    fn advance(&mut self, window: &mut Window) -> Move {
        let Some(next) = self.plan.steps.get(self.step + 1).copied() else { return self.finish() };
        self.step += 1;
        self.elapsed = Duration::ZERO;
        self.phase = Phase::Running;
        self.why.clear();
        self.guard.begin_step();
        window.begin_step();
        if next.is_all() && next.hold.is_zero() { self.finish() } else { Move::Step(next.share) }
    }

    fn finish(&mut self) -> Move {
        self.end(Phase::Done, format!("`{}` has passed every step", self.canary));
        Move::Finish
    }

    fn end(&mut self, phase: Phase, why: String) {
        self.phase = phase;
        self.why = why;
        self.skips = false;
    }
}

/// How much of a hold has passed; all of it when there is none.
fn share(passed: Duration, hold: Duration) -> f64 {
    if hold.is_zero() { 1.0 } else { passed.div_duration_f64(hold) }
}

#[cfg(test)]
mod tests;
