//! Verbs on the model: staged first, so that they can be looked at (a dry run) and stored before they are in force.

use std::collections::HashMap;
use std::sync::Arc;

use super::{BuildError, Model};
use crate::config::{self, Config};
use crate::decide::reweigh::Amount;
use crate::decide::rollout::verb::{Verb, VerbError, apply};
use crate::decide::rollout::{Context, Rollout, Rollouts, Side, Word};
use crate::state::clock::Moment;
use crate::state::snapshot::{Service, Snapshot};

/// A verb for a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub service: String,
    pub verb: Verb,
    /// The generation that was looked at; `None`: whatever there is now.
    pub expected: Option<u64>,
    /// Who asks, for the history and the audit log.
    pub who: String,
    pub reason: Option<String>,
    /// Only asks what would be, so that a pause does not matter.
    pub what_if: bool,
}

impl Change {
    /// Whatever there is now.
    #[must_use]
    pub fn new(service: impl Into<String>, verb: Verb, who: impl Into<String>) -> Self {
        Self { service: service.into(), verb, expected: None, who: who.into(), reason: None, what_if: false }
    }

    /// Only tells how far a ramp is: no weight, and no revision.
    #[must_use]
    pub fn is_note(&self) -> bool {
        matches!(&self.verb, Verb::Ramp(step) if step.amounts.is_empty() && step.word == Word::Ramp)
    }

    /// The guard of a ramp takes the canary back.
    #[must_use]
    pub fn is_guards_abort(&self) -> bool {
        matches!(&self.verb, Verb::Ramp(step) if step.word == Word::Abort)
    }

    /// Weights, by the service's own rule.
    #[must_use]
    pub fn weights(service: impl Into<String>, amounts: Vec<(String, Amount)>, who: impl Into<String>) -> Self {
        Self::new(service, Verb::SetWeights { amounts, closed: false, on_decrease: None }, who)
    }
}

/// The verb was not done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(
        "`{service}` changed in generation {changed}, after the one you looked at; the current generation is {current}, look again"
    )]
    Conflict { service: String, changed: u64, current: u64 },
    #[error("there is no service `{name}`; the services are {known}")]
    UnknownService { name: String, known: String },
    #[error(transparent)]
    Verb(#[from] VerbError),
}

/// A verb that could be done, with the picture before and after. Nothing has changed yet.
#[derive(Clone, Debug)]
pub struct Staged {
    pub before: Arc<Service>,
    pub after: Arc<Service>,
    /// The service's last revision afterwards.
    pub revision: u64,
    /// `None`: the verb changes nothing.
    pub(super) next: Option<Arc<Snapshot>>,
}

impl Staged {
    /// Whether there is anything to do.
    #[must_use]
    pub const fn is_change(&self) -> bool {
        self.next.is_some()
    }

    /// What is to be stored before it is in force.
    #[must_use]
    pub fn rollouts(&self) -> Option<&Rollouts> {
        self.next.as_ref().map(|next| &*next.rollouts)
    }
}

impl Model {
    /// Works a verb out, and changes nothing.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn stage(&mut self, change: &Change, now: impl Into<Moment>) -> Result<Staged, ChangeError> {
        let now = now.into();
        let Some(service) = self.last.services.iter().find(|s| *s.name == *change.service).cloned() else {
            let known = self.last.services.iter().map(|s| format!("`{}`", s.name)).collect::<Vec<_>>().join(", ");
            return Err(ChangeError::UnknownService { name: change.service.clone(), known });
        };
        let changed = self.moved_at.get(&service.id).copied().unwrap_or(0);
        let current = self.last.generation;
        if change.expected.is_some_and(|e| e < changed || e > current) {
            return Err(ChangeError::Conflict { service: change.service.clone(), changed, current });
        }
        let usable: HashMap<&str, usize> = service
            .versions
            .iter()
            .map(|v| (&*v.name, v.endpoints.iter().filter(|e| e.health.is_usable(now.clock)).count()))
            .collect();
        let sides: Vec<Side<'_>> = sides(&service.config, &usable);
        let plan = service.config.rollout.plan();
        let cx = Context {
            at: now.wall,
            who: &change.who,
            reason: change.reason.as_deref(),
            sides: &sides,
            rule: service.config.on_decrease,
            min_ready: service.config.rollout.min_ready,
            plan: plan.as_ref(),
        };
        let before = self.rollout(&change.service).cloned().unwrap_or_else(|| Arc::new(Rollout::start(&cx)));
        let after = if change.what_if {
            let unpaused = Rollout { paused: None, ..Rollout::clone(&before) };
            apply(&unpaused, &change.verb, &cx)?
        } else {
            apply(&before, &change.verb, &cx)?
        };
        let revision = after.revision();
        if after == *before {
            return Ok(Staged { before: service.clone(), after: service, revision, next: None });
        }
        let rollouts = Arc::new(self.last.rollouts.with(&change.service, after));
        let next = self.prepare(self.last.config.clone(), rollouts, now)?;
        let after = next.services.iter().find(|s| s.id == service.id).unwrap_or(&service).clone();
        Ok(Staged { before: service, after, revision, next: Some(next) })
    }

    /// Puts a staged verb in force. Nothing else may have changed the model since.
    pub fn put(&mut self, staged: Staged) {
        if let Some(next) = staged.next {
            debug_assert_eq!(next.generation, self.last.generation + 1, "staged on the last snapshot");
            self.commit(next);
        }
    }

    /// [`Self::stage`] and [`Self::put`], for where nothing is stored.
    ///
    /// # Errors
    /// See [`ChangeError`]; nothing has changed then.
    pub fn change(&mut self, change: &Change, now: impl Into<Moment>) -> Result<(), ChangeError> {
        let staged = self.stage(change, now)?;
        self.put(staged);
        Ok(())
    }

    /// Takes over a document that another perch wrote, if it is newer. True when it was. Its weights hold as they are:
    /// whoever wrote it has seen this file's weights, or newer ones.
    ///
    /// # Errors
    /// See [`BuildError`]; nothing has changed then.
    pub fn adopt(&mut self, rollouts: Rollouts, now: impl Into<Moment>) -> Result<bool, BuildError> {
        if rollouts.sequence <= self.last.rollouts.sequence {
            return Ok(false);
        }
        self.take_over(rollouts, now)?;
        Ok(true)
    }

    /// As [`Self::adopt`], whatever is in force: what replicas share counts, and what one of them could not store does not.
    ///
    /// # Errors
    /// See [`BuildError`]; nothing has changed then.
    pub fn take_over(&mut self, rollouts: Rollouts, now: impl Into<Moment>) -> Result<(), BuildError> {
        let now = now.into();
        let mut next = rollouts;
        for (name, rollout) in &self.last.rollouts.services {
            next.services.entry(name.clone()).or_insert_with(|| rollout.clone());
        }
        self.build(self.last.config.clone(), Arc::new(next), now)
    }

    /// Once more what the file says, on top of what was taken over. True when that changed something.
    ///
    /// # Errors
    /// See [`BuildError`]; nothing has changed then.
    pub fn follow_file(&mut self, now: impl Into<Moment>) -> Result<bool, BuildError> {
        let now = now.into();
        let config = self.last.config.clone();
        let next = self.follow(&config, now);
        if next.sequence == self.last.rollouts.sequence {
            return Ok(false);
        }
        self.build(config, next, now)?;
        Ok(true)
    }

    fn rollout(&self, service: &str) -> Option<&Arc<Rollout>> {
        self.last.rollouts.services.get(service)
    }

    /// The document for another configuration: new services start, and where the file's weights changed they win.
    pub(super) fn follow(&self, config: &Config, now: Moment) -> Arc<Rollouts> {
        let mut next: Option<Rollouts> = None;
        for service in &config.services {
            let sides = sides(service, &HashMap::new());
            let cx = Context {
                at: now.wall,
                who: "configuration",
                reason: None,
                sides: &sides,
                rule: service.on_decrease,
                min_ready: service.rollout.min_ready,
                plan: None,
            };
            let before = self.last.config.services.iter().find(|s| s.name == service.name);
            let has_new_rule = before.is_some_and(|b| b.on_decrease != service.on_decrease);
            // Another perch may have seen a newer file than this one, and its word holds until ours changes too.
            let has_new_weights = before.is_none_or(|b| !has_same_weights(b, service));
            let followed = match self.rollout(&service.name) {
                None => Rollout::start(&cx),
                Some(_) if !has_new_rule && !has_new_weights => continue,
                Some(known) => {
                    let followed = known.follow(&cx, has_new_rule);
                    if followed == **known {
                        continue;
                    }
                    followed
                }
            };
            next.get_or_insert_with(|| Rollouts::clone(&self.last.rollouts))
                .services
                .insert(service.name.to_string(), Arc::new(followed));
        }
        match next {
            None => self.last.rollouts.clone(),
            Some(next) => Arc::new(Rollouts { sequence: next.sequence + 1, ..next }),
        }
    }
}

fn sides<'a>(service: &'a config::Service, usable: &HashMap<&str, usize>) -> Vec<Side<'a>> {
    let side = |v: &'a config::Version| Side {
        name: &v.name,
        configured: v.weight,
        usable: usable.get(&*v.name).copied().unwrap_or_default(),
    };
    service.versions.iter().map(side).collect()
}

fn has_same_weights(before: &config::Service, after: &config::Service) -> bool {
    let weights =
        |s: &config::Service| s.versions.iter().map(|v| (v.name.clone(), v.weight)).collect::<HashMap<_, _>>();
    weights(before) == weights(after)
}
