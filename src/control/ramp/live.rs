//! One ramp that runs here: its readings, and what a look makes of them.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::{WHO, endpoints};
use crate::control::writer::{Control, ControlError};
use crate::decide::guard::{Outcomes, Report, Window};
use crate::decide::ramp::{Look, Move, RampState};
use crate::decide::reweigh::Amount;
use crate::decide::rollout::verb::{RampMove, Verb, VerbError};
use crate::decide::rollout::{Rollout, Word};
use crate::state::clock::Clock;
use crate::state::model::{Change, ChangeError};
use crate::state::snapshot::{EndpointId, Service};

/// How far the ramp is, is noted this often: what a kill costs at most of a hold, and of the evidence.
const NOTE: Duration = Duration::from_secs(5);

/// More time than this between two looks does not count as hold: nobody was looking.
const LONGEST: Duration = Duration::from_secs(5);

/// After a move could not be written.
const AGAIN: Duration = Duration::from_secs(1);

/// A move that was made.
#[derive(Debug, PartialEq)]
pub(super) enum Done {
    Step(f64),
    Finished { generation: u64, revision: u64 },
    Aborted { test: &'static str, generation: u64, revision: u64 },
}

#[derive(Debug)]
pub(super) struct Live {
    state: RampState,
    window: Window,
    /// As it is in the document.
    noted: RampState,
    noted_at: Instant,
    /// The last readings of both sides.
    readings: Option<Readings>,
    /// When endpoints were seen to change.
    changed: Option<Instant>,
    not_before: Instant,
}

#[derive(Debug)]
struct Readings {
    at: Instant,
    stable: Outcomes,
    canary: Outcomes,
    endpoints: Vec<Seen>,
}

/// What a version has, to see that it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Endpoint(EndpointId),
    /// A pod that starts, or can't: the Deployment rolls.
    Unready(SocketAddr),
}

/// Whether endpoints came or went, or one that is not ready came. That one of those goes is no news: it served nobody.
fn has_changed(before: &[Seen], after: &[Seen]) -> bool {
    let endpoints = |seen: &[Seen]| seen.iter().filter(|s| matches!(s, Seen::Endpoint(_))).cloned().collect::<Vec<_>>();
    let has_come = |s: &Seen| matches!(s, Seen::Unready(_)) && !before.contains(s);
    endpoints(before) != endpoints(after) || after.iter().any(has_come)
}

impl Live {
    pub(super) fn new(state: &RampState) -> Self {
        let now = Instant::now();
        Self {
            state: state.clone(),
            window: Window::default(),
            noted: state.clone(),
            noted_at: now,
            readings: None,
            changed: None,
            not_before: now,
        }
    }

    pub(super) fn state(&self) -> &RampState {
        &self.state
    }

    pub(super) fn report(&self) -> Report {
        self.state.report(&self.window)
    }

    /// `noted` is the ramp in the document now.
    pub(super) async fn look(
        &mut self,
        control: &Control,
        clock: Clock,
        service: &Service,
        rollout: &Rollout,
        noted: &RampState,
    ) -> Option<Done> {
        self.follow(noted);
        let now = Instant::now();
        if now < self.not_before {
            return None;
        }
        let version = |name: &str| service.versions.iter().find(|v| *v.name == *name);
        let (Some(stable), Some(canary)) = (version(&self.state.stable), version(&self.state.canary)) else {
            let gone = if version(&self.state.canary).is_none() { &self.state.canary } else { &self.state.stable };
            self.state = self.state.ended(&format!("`{gone}` has left the configuration"));
            self.write(control, service, None, Word::Ramp).await;
            return None;
        };
        // Both at the same moment, so that the window is the same.
        let (of_stable, of_canary) = (stable.metrics.outcomes(), canary.metrics.outcomes());
        let ids = [endpoints(service, &self.state.stable), endpoints(service, &self.state.canary)].concat();
        let after = Readings { at: now, stable: of_stable, canary: of_canary, endpoints: ids };
        let before = self.readings.replace(after);
        let (Some(before), Some(after)) = (before, &self.readings) else { return None };
        if has_changed(&before.endpoints, &after.endpoints) {
            self.changed = Some(now);
        }
        let usable = canary.endpoints.iter().filter(|e| e.health.is_usable(clock.now())).count();
        let (kept, kept_window) = (self.state.clone(), self.window.clone());
        let next = self.state.look(
            &mut self.window,
            &Look {
                passed: (after.at - before.at).min(LONGEST),
                stable: &after.stable.since(&before.stable),
                canary: &after.canary.since(&before.canary),
                unchanged: self.changed.map_or(Duration::MAX, |changed| now - changed),
                usable,
                is_paused: rollout.paused.is_some(),
            },
        );
        let all = |share| Some((self.state.canary.clone(), Amount::Share(share)));
        let (amount, word) = match next {
            Move::Stay => {
                if self.state.phase != self.noted.phase || now - self.noted_at >= NOTE {
                    self.write(control, service, None, Word::Ramp).await;
                }
                return None;
            }
            Move::Step(share) => (all(share), Word::Ramp),
            Move::Finish => (all(1.0), Word::Promote),
            Move::Abort => (None, Word::Abort),
        };
        let test = self.state.guard.worst(&self.state.plan.guard).map_or("", |(metric, _)| metric.as_str());
        let Some((generation, revision)) = self.write(control, service, amount, word).await else {
            // As if it had not looked; an abort keeps the evidence, and tries again.
            let guard = self.state.guard.clone();
            self.state = kept;
            if next == Move::Abort {
                self.state.guard = guard;
            } else {
                self.window = kept_window;
            }
            return None;
        };
        Some(match next {
            Move::Step(share) => Done::Step(share),
            Move::Abort => Done::Aborted { test, generation, revision },
            Move::Finish | Move::Stay => Done::Finished { generation, revision },
        })
    }

    /// What somebody else made of the ramp: a person asks to skip, or it is another ramp altogether.
    fn follow(&mut self, noted: &RampState) {
        if *noted == self.noted {
            return;
        }
        if (RampState { skips: self.noted.skips, ..noted.clone() }) == self.noted {
            self.state.skips = noted.skips;
            self.noted = noted.clone();
            return;
        }
        *self = Self { changed: self.changed, readings: self.readings.take(), ..Self::new(noted) };
    }

    /// Generation and revision, when it was written.
    async fn write(
        &mut self,
        control: &Control,
        service: &Service,
        amount: Option<(String, Amount)>,
        word: Word,
    ) -> Option<(u64, u64)> {
        let (step, steps) = (self.state.step + 1, self.state.plan.steps.len());
        let reason = match word {
            Word::Ramp => format!("step {step} of {steps}"),
            _ => self.state.why.clone(),
        };
        let is_note = amount.is_none() && word == Word::Ramp;
        let step = RampMove {
            expected: self.noted.clone(),
            state: self.state.clone(),
            amounts: amount.into_iter().collect(),
            word,
        };
        let mut change = Change::new(&*service.name, Verb::Ramp(Box::new(step)), WHO);
        change.reason = Some(reason);
        self.noted_at = Instant::now();
        match control.change(change, false).await {
            Ok(done) => {
                self.noted = self.state.clone();
                Some((done.snapshot.generation, done.revision))
            }
            // Somebody was faster; the next look follows them.
            Err(ControlError::Change(ChangeError::Verb(VerbError::RampChanged))) => None,
            Err(error) => {
                if !is_note {
                    self.not_before = Instant::now() + AGAIN;
                }
                warn!(service = %service.name, %error, "Could not write a ramp's move; trying again.");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_not_ready_changes_something_when_it_comes_not_when_it_goes() {
        let unready = |port| Seen::Unready(SocketAddr::from(([10, 0, 0, 1], port)));

        assert!(has_changed(&[], &[unready(1)]));
        assert!(has_changed(&[unready(1)], &[unready(2)]));
        assert!(!has_changed(&[unready(1)], &[]));
        assert!(!has_changed(&[unready(1)], &[unready(1)]));
    }
}
