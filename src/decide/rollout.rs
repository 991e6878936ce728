//! The rollout document: what people (and ramps) did to the weights of each service, and what there was before.
//!
//! It is the one truth beside the configuration file, stored as JSON by `control::store` and changed only by the pure
//! [`verb::apply`] and [`Rollout::follow`]. The file's weights are the start; verbs win until the file's weights of that
//! service change. It does not know where it is kept, what time it is, or who may change it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::drains::{Drain, Earlier, OnDecrease};
use super::ramp::{Plan, RampState};
use super::split::Weight;

mod drains;
pub mod verb;

/// The version of the document that this perch writes. It reads this and older ones.
pub const VERSION: u32 = 1;

/// Revisions that are kept of a service; older ones can't be undone to.
pub const HISTORY: usize = 50;

/// Weights by version name.
pub type Weights = BTreeMap<String, Weight>;

/// All services that perch has seen. One that left the configuration stays: it may come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollouts {
    /// [`VERSION`] when it was written.
    pub version: u32,
    /// Grows with every change; of two documents of one installation the one with the larger is newer.
    pub sequence: u64,
    pub services: BTreeMap<String, Arc<Rollout>>,
}

impl Default for Rollouts {
    fn default() -> Self {
        Self { version: VERSION, sequence: 0, services: BTreeMap::new() }
    }
}

impl Rollouts {
    /// With another state of one service, and so one newer.
    #[must_use]
    pub fn with(&self, service: &str, rollout: Rollout) -> Self {
        let mut next = Self { version: VERSION, sequence: self.sequence + 1, services: self.services.clone() };
        next.services.insert(service.to_owned(), Arc::new(rollout));
        next
    }
}

/// One service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The file's weights that this goes back to: once the file's are others, they win.
    pub configured: Weights,
    /// Now in force.
    pub weights: Weights,
    /// The version that `abort` returns to.
    pub stable: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// Versions whose clients stay although the split would take them away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drains: Vec<Drain>,
    /// Oldest first, at most [`HISTORY`]; the last is now. Never empty in a document that perch wrote.
    pub history: Vec<Revision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp: Option<RampState>,
}

/// Weights stay as they are until `resume`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Paused {
    /// Milliseconds since 1970.
    pub at_millis: u64,
    pub who: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One entry of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// From 1, by service.
    pub revision: u64,
    /// Seconds since 1970.
    pub at: u64,
    pub who: String,
    pub verb: Word,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In force since then.
    pub weights: Weights,
    pub stable: String,
    /// What became of the clients of a version that lost by it; `None` where no weight changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_decrease: Option<OnDecrease>,
}

/// What made a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    Abort,
    Drain,
    /// The configuration file.
    File,
    Pause,
    Promote,
    /// A step of a ramp.
    Ramp,
    Resume,
    SetWeight,
    Switch,
    Undo,
}

impl Word {
    /// As in the document and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Drain => "drain",
            Self::File => "file",
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Ramp => "ramp",
            Self::Resume => "resume",
            Self::SetWeight => "set-weight",
            Self::Switch => "switch",
            Self::Undo => "undo",
        }
    }
}

/// A version as the configuration and the cluster have it.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    pub name: &'a str,
    /// The file's weight.
    pub configured: Weight,
    /// Endpoints that can serve now.
    pub usable: usize,
}

/// What a change happens in.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The time in milliseconds since 1970.
    pub at: u64,
    /// Who asks, for the history.
    pub who: &'a str,
    pub reason: Option<&'a str>,
    /// In the file's order.
    pub sides: &'a [Side<'a>],
    /// The service's own rule.
    pub rule: OnDecrease,
    /// Usable endpoints that a version needs before everyone is sent there.
    pub min_ready: usize,
    /// Of a guarded ramp, where one is configured.
    pub plan: Option<&'a Plan>,
}

impl Context<'_> {
    /// The file's weights.
    #[must_use]
    pub fn file(&self) -> Weights {
        self.sides.iter().map(|s| (s.name.to_owned(), s.configured)).collect()
    }

    fn side(&self, name: &str) -> Option<&Side<'_>> {
        self.sides.iter().find(|s| s.name == name)
    }
}

impl Rollout {
    /// Of a service that no verb has touched.
    #[must_use]
    pub fn start(cx: &Context<'_>) -> Self {
        let weights = cx.file();
        let stable = first_stable(cx.sides, &weights);
        let mut rollout = Self {
            configured: weights.clone(),
            weights,
            stable,
            paused: None,
            drains: Vec::new(),
            history: Vec::new(),
            ramp: None,
        };
        rollout.note(cx, Word::File, None);
        rollout
    }

    /// After another configuration was read: its weights win if they are others than those this is based on, unless it
    /// is paused. `has_new_rule`: the service's `onDecrease` changed, which releases or bounds those who are held.
    #[must_use]
    pub fn follow(&self, cx: &Context<'_>, has_new_rule: bool) -> Self {
        let file = cx.file();
        let mut next = self.clone();
        if self.configured == file || self.paused.is_some() {
            if has_new_rule {
                next.drains = drains::under(&self.drains, cx.rule, cx.at);
            }
            return next;
        }
        next.configured.clone_from(&file);
        // A ramp that was under way had other weights in mind.
        next.end_ramp(cx, Word::File);
        next.stable = first_stable(cx.sides, &file);
        next.turn(cx, file, cx.rule);
        next.note(cx, Word::File, Some(cx.rule));
        next
    }

    /// The weights of these versions now. One that isn't known here (the file has it since, and waits) gets nobody; if
    /// that left no one to serve, the file's weights hold.
    #[must_use]
    pub fn weights_of<'a>(&self, versions: impl Iterator<Item = (&'a str, Weight)> + Clone) -> Vec<Weight> {
        let own: Vec<Weight> =
            versions.clone().map(|(name, _)| self.weights.get(name).copied().unwrap_or_default()).collect();
        let is_closed = self.weights.values().all(|w| w.is_zero());
        if is_closed || own.iter().any(|w| !w.is_zero()) { own } else { versions.map(|(_, file)| file).collect() }
    }

    /// The number of the last revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.history.last().map_or(0, |r| r.revision)
    }

    /// The file's weights that wait for `resume`.
    #[must_use]
    pub fn waiting(&self, file: &Weights) -> bool {
        self.paused.is_some() && self.configured != *file
    }

    /// An `abort` is among the revisions after this one.
    #[must_use]
    pub fn was_aborted_since(&self, revision: u64) -> bool {
        self.history.iter().any(|r| r.revision > revision && r.verb == Word::Abort)
    }

    /// A ramp moves the weights.
    #[must_use]
    pub fn has_ramp(&self) -> bool {
        self.ramp.as_ref().is_some_and(|ramp| ramp.phase.is_under_way())
    }

    /// Something else than the ramp moves the weights now. What it was stays to be read.
    fn end_ramp(&mut self, cx: &Context<'_>, verb: Word) {
        if let Some(ramp) = &mut self.ramp {
            *ramp = ramp.ended(&format!("ended by {} ({})", verb.as_str(), cx.who));
        }
    }

    /// Other weights, and what becomes of those who lose their version.
    fn turn(&mut self, cx: &Context<'_>, weights: Weights, rule: OnDecrease) {
        self.drains = drains::after(&self.drains, &self.weights, &weights, rule, cx.at);
        self.weights = weights;
    }

    fn note(&mut self, cx: &Context<'_>, verb: Word, on_decrease: Option<OnDecrease>) {
        let revision = self.revision() + 1;
        self.history.push(Revision {
            revision,
            at: cx.at / 1000,
            who: cx.who.to_owned(),
            verb,
            reason: cx.reason.map(str::to_owned),
            weights: self.weights.clone(),
            stable: self.stable.clone(),
            on_decrease,
        });
        let surplus = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..surplus);
    }
}

/// The version named `stable`, else the one with the largest weight, the first of equals.
fn first_stable(sides: &[Side<'_>], weights: &Weights) -> String {
    let weight = |s: &Side<'_>| weights.get(s.name).copied().unwrap_or_default();
    let named = sides.iter().find(|s| s.name == "stable");
    let heaviest = || sides.iter().rev().max_by_key(|s| weight(s));
    named.or_else(heaviest).map(|s| s.name.to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
