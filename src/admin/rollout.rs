//! The verbs over HTTP: from a request to `control`, and from what came of it to an answer.
//!
//! `POST /api/v1/services/{name}/{verb}` does it, with `dryRun` it only tells what would be; `GET .../what-if` asks the
//! same of weights and needs no token. What a verb means is `decide::rollout`'s to say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use serde::Serialize;
use serde_json::json;

pub(super) use self::body::Kind;
pub(super) use self::moves::clients_left;
use self::moves::{Moves, moves};
pub(super) use self::shape::{Shape, history};
use super::api::{Answer, aside, error, json as answer};
use super::{AdminState, query, services};
use crate::control::{ControlError, Done};
use crate::decide::rollout::verb::{Verb, VerbError};
use crate::state::model::{Change, ChangeError};
use crate::state::snapshot::Service;

mod body;
mod moves;
mod shape;

/// The answer to a verb.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    service: String,
    verb: &'static str,
    dry_run: bool,
    changed: bool,
    generation: u64,
    revision: u64,
    before: Vec<Part>,
    after: Vec<Part>,
    moves: Moves,
    /// As in `after`, by name.
    weights: BTreeMap<String, f64>,
    shares: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize)]
struct Part {
    name: String,
    weight: f64,
    share: f64,
}

/// `POST /api/v1/services/{name}/{verb}`, past the guards.
pub(super) async fn act(state: &Arc<AdminState>, peer: SocketAddr, service: &str, kind: Kind, body: &[u8]) -> Answer {
    match body::parse(kind, service, peer, body) {
        Ok(body::Wanted { change, is_dry }) => run(state, change, is_dry).await,
        Err(message) => error(StatusCode::BAD_REQUEST, message),
    }
}

/// `GET /api/v1/services/{name}/what-if?canary=25%25`.
pub(super) async fn what_if(state: &Arc<AdminState>, service: &str, query: &str) -> Answer {
    let amounts = match query::amounts(query) {
        Ok(amounts) => amounts,
        Err(message) => return error(StatusCode::BAD_REQUEST, message),
    };
    let change = Change { what_if: true, ..Change::weights(service, amounts, "what-if") };
    run(state, change, true).await
}

async fn run(state: &Arc<AdminState>, change: Change, is_dry: bool) -> Answer {
    let (service, verb) = (change.service.clone(), change.verb.word().as_str());
    let is_weights = matches!(change.verb, Verb::SetWeights { .. });
    match state.control.change(change, is_dry).await {
        Ok(done) => aside(state, move |state| answer(StatusCode::OK, &outcome(state, verb, is_dry, &done))).await,
        Err(problem) => refused(state, service, &problem, is_weights).await,
    }
}

fn outcome(state: &AdminState, verb: &'static str, dry_run: bool, done: &Done) -> Outcome {
    let after = parts(&done.after);
    Outcome {
        service: done.after.name.to_string(),
        verb,
        dry_run,
        changed: done.is_change,
        generation: done.snapshot.generation,
        revision: done.revision,
        before: parts(&done.before),
        moves: moves(&state.pins, &done.before, &done.after, state.clock.now()),
        weights: after.iter().map(|p| (p.name.clone(), p.weight)).collect(),
        shares: after.iter().map(|p| (p.name.clone(), p.share)).collect(),
        after,
    }
}

fn parts(service: &Service) -> Vec<Part> {
    let split = &service.policy.split;
    let part = |(at, version): (usize, &crate::state::snapshot::Version)| Part {
        name: version.name.to_string(),
        weight: split.weight(at).unwrap_or_default().value(),
        share: split.share(at),
    };
    service.versions.iter().enumerate().map(part).collect()
}

async fn refused(state: &Arc<AdminState>, service: String, problem: &ControlError, is_weights: bool) -> Answer {
    let status = status(problem);
    // As a problem of the configuration is written, with its key.
    let is_value = matches!(problem, ControlError::Change(ChangeError::Verb(VerbError::Reweigh(_))));
    let message = if is_value && is_weights { format!("weights: {problem}") } else { problem.to_string() };
    if status != StatusCode::CONFLICT {
        return error(status, message);
    }
    // What there is now, so that the next try can build on it.
    aside(state, move |state| {
        let generation = state.published.load().generation;
        let current = services::one(state, &service);
        answer(status, &json!({ "error": message, "generation": generation, "current": current }))
    })
    .await
}

const fn status(problem: &ControlError) -> StatusCode {
    match problem {
        ControlError::Change(change) => match change {
            ChangeError::Build(_) => StatusCode::INTERNAL_SERVER_ERROR,
            ChangeError::Conflict { .. } => StatusCode::CONFLICT,
            ChangeError::UnknownService { .. } => StatusCode::NOT_FOUND,
            ChangeError::Verb(verb) => match verb {
                VerbError::Reweigh(_) | VerbError::Which { .. } => StatusCode::BAD_REQUEST,
                VerbError::UnknownRevision { .. } | VerbError::UnknownVersion { .. } => StatusCode::NOT_FOUND,
                VerbError::Empty { .. }
                | VerbError::Gone { .. }
                | VerbError::IsStable { .. }
                | VerbError::NoRamp
                | VerbError::NoSteps
                | VerbError::NothingToUndo
                | VerbError::Paused { .. }
                | VerbError::RampChanged
                | VerbError::RampUnderWay { .. } => StatusCode::CONFLICT,
            },
        },
        ControlError::NotStored(_) | ControlError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        ControlError::Build(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// `GET /api/v1/services/{name}/history`; `None` when there is no such service.
pub(super) fn shown_history(state: &AdminState, service: &str) -> Option<Answer> {
    let snapshot = state.published.load();
    services::find(&snapshot, service)?;
    let rollout = snapshot.rollouts.services.get(service)?;
    Some(answer(StatusCode::OK, &history(&rollout.history)))
}
