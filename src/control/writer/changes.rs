//! What the writer does with verbs: store first, then publish, and write who did what into the audit log.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::{ControlError, Done, Writer};
use crate::control::store::StoreError;
use crate::decide::rollout::Rollouts;
use crate::state::model::{Change, Staged};
use crate::state::snapshot::{Service, Snapshot};

/// A verb that meets another perch's is worked out anew on that one's result, this often.
const STORE_TRIES: usize = 5;

impl Writer {
    /// What a verb would do.
    pub(super) fn try_out(&mut self, change: &Change) -> Result<Done, ControlError> {
        let staged = self.model.stage(change, self.clock.moment())?;
        Ok(done(self.model.snapshot(), &staged))
    }

    /// Does a verb: stored first, then in force.
    pub(super) async fn change(&mut self, change: &Change) -> Result<Done, ControlError> {
        let (who, service, reason) = (&change.who, &change.service, change.reason.as_deref().unwrap_or_default());
        let verb = change.verb.word().as_str();
        let refused = |error: ControlError| {
            info!(audit = true, who, service, verb, reason, %error, "Refused a change.");
            error
        };
        // Whoever wrote meanwhile may do so again, but not for ever.
        for _ in 0..STORE_TRIES {
            let staged = self.model.stage(change, self.clock.moment()).map_err(|e| refused(e.into()))?;
            if let Some(rollouts) = staged.rollouts() {
                match self.store.save(rollouts).await {
                    Ok(()) => {}
                    Err(StoreError::Newer(rollouts)) => {
                        self.adopt(*rollouts);
                        continue;
                    }
                    // A broken canary must not wait for a broken disk. After a restart the ramp would go on, and be
                    // aborted again.
                    Err(error @ StoreError::Unwritable(_)) if change.is_guards_abort() && self.store.is_own() => {
                        error!(service, %error, "The guard's abort is in force, but can't be stored.");
                    }
                    Err(error @ StoreError::Unwritable(_)) => {
                        return Err(refused(ControlError::NotStored(error.to_string())));
                    }
                }
                self.model.put(staged.clone());
                // How far a ramp is, every few seconds, is nothing that anybody did.
                if change.is_note() { self.publish_quietly() } else { self.publish() }
            }
            if change.is_note() {
                return Ok(done(self.model.snapshot(), &staged));
            }
            let snapshot = self.model.snapshot();
            let (before, after) = (shown_weights(&staged.before), shown_weights(&staged.after));
            let (generation, revision, changed) = (snapshot.generation, staged.revision, staged.is_change());
            info!(
                audit = true,
                who, service, verb, reason, generation, revision, changed, before, after, "Changed a rollout."
            );
            return Ok(done(snapshot, &staged));
        }
        Err(refused(ControlError::NotStored("others keep changing the rollouts; try again".to_owned())))
    }

    pub(super) fn adopt(&mut self, rollouts: Rollouts) {
        let now = self.clock.moment();
        let done = match self.store.learn(&rollouts) {
            None => self.model.adopt(rollouts, now),
            Some(true) => self.model.take_over(rollouts, now).map(|()| true),
            Some(false) => Ok(false),
        };
        match done {
            Ok(true) => self.publish(),
            Ok(false) => {}
            Err(error) => error!(%error, "Could not build a snapshot of newer rollouts; the last good one stays."),
        }
    }

    /// Stores what a configuration changed in the document, if it did. The file says the same after a restart, so nothing
    /// is lost when it can't be stored.
    pub(super) async fn keep(&mut self, sequence_before: u64) {
        if self.model.snapshot().rollouts.sequence == sequence_before {
            return;
        }
        for _ in 0..STORE_TRIES {
            let rollouts = self.model.snapshot().rollouts.clone();
            match self.store.save(&rollouts).await {
                Ok(()) => self.is_unsaved = false,
                Err(StoreError::Newer(rollouts)) => {
                    self.adopt(*rollouts);
                    // The other one may not have seen this file yet.
                    if self.follow_file() {
                        continue;
                    }
                }
                Err(error) => {
                    self.is_unsaved = true;
                    warn!(%error, "The configuration's weights are in force, but the rollouts can't be stored.");
                }
            }
            return;
        }
    }

    /// A document of another perch while this one's file could not be stored: the file counts all the same.
    pub(super) async fn keep_unsaved(&mut self) {
        if self.is_unsaved {
            let sequence = self.model.snapshot().rollouts.sequence;
            self.is_unsaved = false;
            self.follow_file();
            self.keep(sequence).await;
        }
    }

    fn follow_file(&mut self) -> bool {
        match self.model.follow_file(self.clock.moment()) {
            Ok(changed) => {
                if changed {
                    self.publish();
                }
                changed
            }
            Err(error) => {
                error!(%error, "Could not build a snapshot of the file's weights; the last good one stays.");
                false
            }
        }
    }
}

fn done(snapshot: &Arc<Snapshot>, staged: &Staged) -> Done {
    Done {
        snapshot: snapshot.clone(),
        before: staged.before.clone(),
        after: staged.after.clone(),
        revision: staged.revision,
        is_change: staged.is_change(),
    }
}

fn shown_weights(service: &Service) -> String {
    let split = &service.policy.split;
    let shown = |v: usize| Some(format!("{}={}", split.name(v)?, split.weight(v)?.value()));
    (0..split.len()).filter_map(shown).collect::<Vec<_>>().join(" ")
}
