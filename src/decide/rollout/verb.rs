//! The verbs: from a rollout to the next one, or to the reason why not. Pure.
//!
//! A verb that changes nothing gives the same rollout back, without a revision. While a service is paused only `abort`
//! and `resume` do anything: whoever paused it wants to see the picture stand still.

use std::time::Duration;

use super::{Context, OnDecrease, Paused, Rollout, Weights, Word, first_stable};
use crate::decide::ramp::RampState;
use crate::decide::reweigh::{Amount, ReweighError, Standing, reweigh};
use crate::decide::split::Weight;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// The stable version takes all, at once; a ramp ends.
    Abort,
    /// No new clients; those there stay while they are active.
    Drain { version: Option<String>, deadline: Duration },
    /// Nothing changes until `resume`.
    Pause,
    /// The version takes all and is the stable one from now on.
    Promote {
        version: Option<String>,
        /// Without usable endpoints too.
        force: bool,
        /// By the service's ramp, step by step.
        guarded: bool,
        on_decrease: Option<OnDecrease>,
    },
    /// What the runner of a ramp does, in one write.
    Ramp(Box<RampMove>),
    /// After `pause`. File weights that waited come into force.
    Resume {
        /// The ramp goes on with its next step.
        skip: bool,
    },
    /// A ramp that the configuration asks for, each once.
    Start { version: String, id: String },
    SetWeights {
        amounts: Vec<(String, Amount)>,
        /// Allows all weights to be 0.
        closed: bool,
        /// Instead of the service's own, for this change.
        on_decrease: Option<OnDecrease>,
    },
    /// The version takes all; the one that had most becomes the side that `abort` returns to.
    Switch { version: String, force: bool, existing: OnDecrease },
    /// The weights of the revision before, or of this one.
    Undo { to_revision: Option<u64>, on_decrease: Option<OnDecrease> },
}

impl Verb {
    /// Its name in the history and the log.
    #[must_use]
    pub const fn word(&self) -> Word {
        match self {
            Self::Abort => Word::Abort,
            Self::Drain { .. } => Word::Drain,
            Self::Pause => Word::Pause,
            Self::Promote { guarded: false, .. } => Word::Promote,
            Self::Promote { guarded: true, .. } | Self::Start { .. } => Word::Ramp,
            Self::Ramp(ramp) => ramp.word,
            Self::Resume { .. } => Word::Resume,
            Self::SetWeights { .. } => Word::SetWeight,
            Self::Switch { .. } => Word::Switch,
            Self::Undo { .. } => Word::Undo,
        }
    }
}

/// What the runner of a ramp does: its new state, and weights with it, in one write and one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct RampMove {
    /// What it was worked out on: it is refused when somebody else has changed that since.
    pub expected: RampState,
    pub state: RampState,
    /// The weights that come with it; empty: they stay, and the history gets no entry.
    pub amounts: Vec<(String, Amount)>,
    /// [`Word::Ramp`] for a step. With [`Word::Abort`] the stable version takes all, evicting, paused or not, whatever
    /// `amounts` say; with [`Word::Promote`] the version of the first amount becomes the stable one.
    pub word: Word,
}

/// The verb was not done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum VerbError {
    #[error("version `{version}` has {usable} usable endpoints and needs {needed}; wait for them, or use force")]
    Empty { version: String, usable: usize, needed: usize },
    #[error("revision {revision} has weight only on versions that are gone ({gone}); undo to another")]
    Gone { revision: u64, gone: String },
    #[error("`{version}` is the stable side already; name the version that is to take over")]
    IsStable { version: String },
    #[error("there is no ramp under way")]
    NoRamp,
    #[error("no steps of a guarded ramp are configured; write them under rollout.steps of the service")]
    NoSteps,
    #[error("there is nothing to undo: no earlier revision has other weights")]
    NothingToUndo,
    #[error("the rollout is paused by {who}{}; resume it first", because(.reason.as_deref()))]
    Paused { who: String, reason: Option<String> },
    #[error("the ramp was changed meanwhile")]
    RampChanged,
    #[error("a ramp of `{canary}` is under way, at step {step} of {steps}; abort it first, or resume it with skip")]
    RampUnderWay { canary: String, step: usize, steps: usize },
    #[error(transparent)]
    Reweigh(#[from] ReweighError),
    #[error("there is no revision {revision}; the history goes from {first} to {last}")]
    UnknownRevision { revision: u64, first: u64, last: u64 },
    #[error("there is no version `{name}`; the versions are {known}")]
    UnknownVersion { name: String, known: String },
    #[error("which version? name one of {known}")]
    Which { known: String },
}

fn because(reason: Option<&str>) -> String {
    reason.map(|r| format!(" ({r})")).unwrap_or_default()
}

/// The next rollout.
///
/// # Errors
/// See [`VerbError`].
pub fn apply(rollout: &Rollout, verb: &Verb, cx: &Context<'_>) -> Result<Rollout, VerbError> {
    let mut next = rollout.clone();
    match verb {
        Verb::Abort => abort(&mut next, cx)?,
        Verb::Pause if rollout.paused.is_some() => {}
        Verb::Pause => {
            let reason = cx.reason.map(str::to_owned);
            next.paused = Some(Paused { at_millis: cx.at, who: cx.who.to_owned(), reason });
            next.note(cx, Word::Pause, None);
        }
        Verb::Resume { skip } => {
            if *skip {
                let ramp = next.ramp.as_mut().filter(|ramp| ramp.phase.is_under_way()).ok_or(VerbError::NoRamp)?;
                *ramp = ramp.skipping();
            }
            resume(&mut next, cx);
            if next != *rollout && next.revision() == rollout.revision() {
                next.note(cx, Word::Resume, None);
            }
        }
        Verb::Ramp(step) => ramp(&mut next, step, cx)?,
        _ if rollout.paused.is_some() => return Err(paused(rollout)),
        Verb::Drain { version, deadline } => {
            let version = canary(rollout, version.as_deref(), cx)?;
            let weights = set(rollout, &[(version, Amount::Share(0.0))], false, cx)?;
            set_by_hand(&mut next, cx, Word::Drain, weights, OnDecrease::Drain { deadline: *deadline });
        }
        Verb::Promote { version, force, guarded: true, on_decrease } => {
            let version = canary(rollout, version.as_deref(), cx)?;
            begin(&mut next, version, None, *force, on_decrease.unwrap_or(cx.rule), cx)?;
        }
        Verb::Start { version, id } => begin(&mut next, known(version, cx)?, Some(id), false, cx.rule, cx)?,
        Verb::Promote { version, force, guarded: false, on_decrease } => {
            let version = canary(rollout, version.as_deref(), cx)?;
            let weights = everything(rollout, &version, *force, 1, cx)?;
            next.stable = version;
            set_by_hand(&mut next, cx, Word::Promote, weights, on_decrease.unwrap_or(cx.rule));
        }
        Verb::SetWeights { amounts, closed, on_decrease } => {
            let weights = set(rollout, amounts, *closed, cx)?;
            set_by_hand(&mut next, cx, Word::SetWeight, weights, on_decrease.unwrap_or(cx.rule));
        }
        Verb::Switch { version, force, existing } => {
            let version = known(version, cx)?;
            let weights = everything(rollout, &version, *force, cx.min_ready, cx)?;
            if let Some(live) = heaviest(rollout, cx).filter(|live| *live != version) {
                next.stable = live;
            }
            set_by_hand(&mut next, cx, Word::Switch, weights, *existing);
        }
        Verb::Undo { to_revision, on_decrease } => undo(&mut next, *to_revision, on_decrease.unwrap_or(cx.rule), cx)?,
    }
    Ok(next)
}

/// Weights set by a person end a ramp. Without a change there is no revision.
fn set_by_hand(next: &mut Rollout, cx: &Context<'_>, word: Word, weights: Weights, rule: OnDecrease) {
    let last = next.history.last().map_or("", |r| &*r.stable);
    if next.weights == weights && !next.has_ramp() && last == next.stable {
        return;
    }
    next.end_ramp(cx, word);
    next.turn(cx, weights, rule);
    next.note(cx, word, Some(rule));
}

fn abort(next: &mut Rollout, cx: &Context<'_>) -> Result<(), VerbError> {
    let had_ramp = next.has_ramp();
    next.end_ramp(cx, Word::Abort);
    if cx.side(&next.stable).is_none() {
        // It left the configuration.
        next.stable = first_stable(cx.sides, &next.weights);
    }
    let weights = everything(next, &next.stable, true, 0, cx)?;
    if next.weights == weights && next.drains.is_empty() && !had_ramp {
        return Ok(());
    }
    next.turn(cx, weights, OnDecrease::Evict);
    next.drains.clear();
    next.note(cx, Word::Abort, Some(OnDecrease::Evict));
    Ok(())
}

/// Of maps that have one version with weight, or none.
fn shares_equal(before: &Weights, after: &Weights) -> bool {
    let names = |weights: &Weights| -> Vec<String> {
        weights.iter().filter(|(_, w)| !w.is_zero()).map(|(name, _)| name.clone()).collect()
    };
    names(before) == names(after)
}

fn resume(next: &mut Rollout, cx: &Context<'_>) {
    let Some(paused) = next.paused.take() else { return };
    // Nobody moved meanwhile: a drain has the time left that it had.
    let stood = cx.at.saturating_sub(paused.at_millis);
    for drain in &mut next.drains {
        drain.until_millis = drain.until_millis.map(|until| until.saturating_add(stood));
    }
    let file = cx.file();
    if next.configured == file {
        next.note(cx, Word::Resume, None);
        return;
    }
    next.configured.clone_from(&file);
    next.end_ramp(cx, Word::File);
    next.stable = first_stable(cx.sides, &file);
    next.turn(cx, file, cx.rule);
    next.note(cx, Word::Resume, Some(cx.rule));
}

/// The first step of a guarded ramp; the others come from its runner.
fn begin(
    next: &mut Rollout,
    version: String,
    start: Option<&String>,
    force: bool,
    rule: OnDecrease,
    cx: &Context<'_>,
) -> Result<(), VerbError> {
    let plan = cx.plan.ok_or(VerbError::NoSteps)?;
    if let Some(ramp) = next.ramp.as_ref().filter(|ramp| ramp.phase.is_under_way()) {
        let (step, steps) = (ramp.step + 1, ramp.plan.steps.len());
        return Err(VerbError::RampUnderWay { canary: ramp.canary.clone(), step, steps });
    }
    if version == next.stable {
        return Err(VerbError::IsStable { version });
    }
    let (usable, needed) = (cx.side(&version).map_or(0, |s| s.usable), cx.min_ready);
    if usable < needed && !force {
        return Err(VerbError::Empty { version, usable, needed });
    }
    // The last one that the configuration began stays known, so that it does not begin again.
    let start = start.cloned().or_else(|| next.ramp.as_ref().and_then(|ramp| ramp.start.clone()));
    let share = share(next, &version, cx);
    let (state, first) = RampState::begin(plan.clone(), &version, &next.stable, share, start);
    let weights = match first {
        Some(share) => set(next, &[(version, Amount::Share(share))], false, cx)?,
        None => next.weights.clone(),
    };
    next.ramp = Some(state);
    next.turn(cx, weights, rule);
    next.note(cx, Word::Ramp, Some(rule));
    Ok(())
}

/// Of the clients, by weight.
fn share(rollout: &Rollout, version: &str, cx: &Context<'_>) -> f64 {
    let weights = rollout.weights_of(cx.sides.iter().map(|s| (s.name, s.configured)));
    let all: f64 = weights.iter().map(|w| w.value()).sum();
    let own = std::iter::zip(cx.sides, &weights).find(|(s, _)| s.name == version).map_or(0.0, |(_, w)| w.value());
    if all > 0.0 { own / all } else { 0.0 }
}

fn ramp(next: &mut Rollout, step: &RampMove, cx: &Context<'_>) -> Result<(), VerbError> {
    if next.ramp.as_ref() != Some(&step.expected) {
        return Err(VerbError::RampChanged);
    }
    if step.word == Word::Abort {
        abort(next, cx)?;
    } else if !step.amounts.is_empty() {
        if next.paused.is_some() {
            return Err(paused(next));
        }
        let weights = set(next, &step.amounts, false, cx)?;
        if let (Word::Promote, Some((version, _))) = (step.word, step.amounts.first()) {
            next.stable.clone_from(version);
        }
        next.turn(cx, weights, cx.rule);
        next.note(cx, step.word, Some(cx.rule));
    }
    next.ramp = Some(step.state.clone());
    Ok(())
}

fn undo(next: &mut Rollout, to: Option<u64>, rule: OnDecrease, cx: &Context<'_>) -> Result<(), VerbError> {
    let found = match to {
        Some(revision) => next.history.iter().find(|r| r.revision == revision).ok_or_else(|| {
            let (first, last) = (next.history.first().map_or(0, |r| r.revision), next.revision());
            VerbError::UnknownRevision { revision, first, last }
        })?,
        None => next.history.iter().rev().find(|r| r.weights != next.weights).ok_or(VerbError::NothingToUndo)?,
    };
    let found = found.clone();
    let is_there = |name: &&String| cx.side(name).is_some();
    let left: Weights = found.weights.iter().filter(|(n, _)| is_there(n)).map(|(n, w)| (n.clone(), *w)).collect();
    let is_empty = |weights: &Weights| weights.values().all(|w| w.is_zero());
    if is_empty(&left) && !is_empty(&found.weights) {
        let gone: Vec<&str> = found.weights.keys().filter(|n| !is_there(n)).map(|n| &**n).collect();
        return Err(VerbError::Gone { revision: found.revision, gone: gone.join(", ") });
    }
    let weights = cx.sides.iter().map(|s| (s.name.to_owned(), left.get(s.name).copied().unwrap_or_default()));
    if cx.side(&found.stable).is_some() {
        next.stable = found.stable;
    }
    set_by_hand(next, cx, Word::Undo, weights.collect(), rule);
    Ok(())
}

fn paused(rollout: &Rollout) -> VerbError {
    let paused = rollout.paused.as_ref();
    VerbError::Paused {
        who: paused.map(|p| p.who.clone()).unwrap_or_default(),
        reason: paused.and_then(|p| p.reason.clone()),
    }
}

/// The weights of all versions after `amounts`.
fn set(rollout: &Rollout, amounts: &[(String, Amount)], closed: bool, cx: &Context<'_>) -> Result<Weights, VerbError> {
    let now = rollout.weights_of(cx.sides.iter().map(|s| (s.name, s.configured)));
    let standing: Vec<Standing<'_>> = std::iter::zip(cx.sides, &now)
        .map(|(s, weight)| Standing { name: s.name, weight: *weight, configured: s.configured })
        .collect();
    for (name, _) in amounts {
        known(name, cx)?;
    }
    let amounts: Vec<(&str, Amount)> = amounts.iter().map(|(n, a)| (n.as_str(), *a)).collect();
    let weights = reweigh(&standing, &amounts, closed)?;
    Ok(std::iter::zip(cx.sides, weights).map(|(s, w)| (s.name.to_owned(), w)).collect())
}

/// The weights when one version takes all; it must have endpoints, or be forced to.
fn everything(
    rollout: &Rollout,
    version: &str,
    force: bool,
    needed: usize,
    cx: &Context<'_>,
) -> Result<Weights, VerbError> {
    let usable = cx.side(version).map_or(0, |s| s.usable);
    if usable < needed && !force {
        return Err(VerbError::Empty { version: version.to_owned(), usable, needed });
    }
    let weights = set(rollout, &[(version.to_owned(), Amount::Share(1.0))], false, cx)?;
    // It has everything already: the numbers stay.
    Ok(if shares_equal(&rollout.weights, &weights) { rollout.weights.clone() } else { weights })
}

fn known(name: &str, cx: &Context<'_>) -> Result<String, VerbError> {
    match cx.side(name) {
        Some(_) => Ok(name.to_owned()),
        None => Err(VerbError::UnknownVersion { name: name.to_owned(), known: list(cx) }),
    }
}

fn list(cx: &Context<'_>) -> String {
    cx.sides.iter().map(|s| format!("`{}`", s.name)).collect::<Vec<_>>().join(", ")
}

/// The version to promote or drain: the named one, else the only one beside stable, else the one named `canary`.
///
/// # Errors
/// When there is no such version, or it is not clear which.
pub fn canary(rollout: &Rollout, named: Option<&str>, cx: &Context<'_>) -> Result<String, VerbError> {
    if let Some(name) = named {
        return known(name, cx);
    }
    let others: Vec<&str> = cx.sides.iter().map(|s| s.name).filter(|n| *n != rollout.stable).collect();
    match others.as_slice() {
        [only] => Ok((*only).to_owned()),
        many if many.contains(&"canary") => Ok("canary".to_owned()),
        _ => Err(VerbError::Which { known: list(cx) }),
    }
}

/// The version with the largest weight, the first of equals.
fn heaviest(rollout: &Rollout, cx: &Context<'_>) -> Option<String> {
    let weight = |name: &str| rollout.weights.get(name).copied().unwrap_or(Weight::ZERO);
    cx.sides.iter().rev().max_by_key(|s| weight(s.name)).map(|s| s.name.to_owned())
}
