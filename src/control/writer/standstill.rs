//! While another perch takes over, nothing is changed that is kept: it would be lost. Verbs and configurations wait; they
//! are done when this perch goes on after all, and refused when it doesn't. The endpoints go on to change.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Command, Control, ControlError, Writer, tell};
use crate::state::inheritance::Inheritance;
use crate::state::snapshot::Snapshot;

/// What the next perch begins with. The verbs stand still until this is dropped, or for ever: [`Standstill::keep`].
#[derive(Debug)]
pub struct Standstill {
    /// Of the snapshot below.
    pub inheritance: Inheritance,
    pub snapshot: Arc<Snapshot>,
    keep: oneshot::Sender<()>,
}

/// As the writer sees it.
#[derive(Debug)]
pub(super) enum Standing {
    No,
    /// `ended` hears a word when another perch has taken over, and nothing when this one goes on.
    Still {
        ended: oneshot::Receiver<()>,
        waiting: Vec<Command>,
    },
    TakenOver,
}

impl Standstill {
    /// Another perch has taken over: whoever waits is told that this one stops.
    pub fn keep(self) {
        // Without a writer nobody waits.
        self.keep.send(()).ok();
    }
}

impl Standing {
    /// Ready when it is over; true when another perch has taken over.
    pub(super) async fn ended(&mut self) -> bool {
        match self {
            Self::Still { ended, .. } => ended.await.is_ok(),
            Self::No | Self::TakenOver => std::future::pending().await,
        }
    }
}

impl Control {
    /// Has the writer change nothing that is kept until the answer is dropped: verbs and configurations wait. The
    /// endpoints go on to change.
    ///
    /// # Errors
    /// When perch is stopping.
    pub async fn stand_still(&self) -> Result<Standstill, ControlError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::StandStill { answer }).await?;
        answered.await.map_err(|_| ControlError::Stopped)
    }
}

impl Writer {
    pub(super) fn stand_still(&mut self, answer: oneshot::Sender<Standstill>) {
        let (keep, ended) = oneshot::channel();
        // The next one opens it; this one takes it again with its next change.
        self.store.let_go();
        let (inheritance, snapshot) = (self.model.inheritance(), self.model.snapshot().clone());
        self.standstill = Standing::Still { ended, waiting: Vec::new() };
        tell(answer, Standstill { inheritance, snapshot, keep });
    }

    pub(super) async fn end_standstill(&mut self, is_taken_over: bool) {
        let next = if is_taken_over { Standing::TakenOver } else { Standing::No };
        if let Standing::Still { waiting, .. } = std::mem::replace(&mut self.standstill, next)
            && !is_taken_over
        {
            for command in waiting {
                self.obey_now(command).await;
            }
        }
    }

    pub(super) async fn obey(&mut self, command: Command) {
        let is_kept = match &command {
            Command::Configure { .. } | Command::Adopt { .. } => true,
            Command::Change { is_dry, .. } => !is_dry,
            Command::Resolved { .. } | Command::Discovered { .. } | Command::StandStill { .. } => false,
        };
        match &mut self.standstill {
            Standing::Still { waiting, .. } if is_kept => waiting.push(command),
            // Dropped with its question, whose asker hears that perch is stopping.
            Standing::TakenOver if is_kept => drop(command),
            Standing::No | Standing::Still { .. } | Standing::TakenOver => self.obey_now(command).await,
        }
    }
}
