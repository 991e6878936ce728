//! Where the rollout document is kept. A change is stored before it is in force: what was acknowledged is never lost.
//!
//! A store can also bring a newer document: [`StoreError::Newer`] when it finds one while it writes, or at any time by
//! [`super::Control::adopt`]. It does not know what the document means.

use crate::decide::rollout::Rollouts;

/// The place.
#[derive(Debug, Default)]
pub enum Store {
    /// Until perch ends.
    #[default]
    Memory,
}

/// The document was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote this one meanwhile.
    #[error("another perch changed the rollouts meanwhile")]
    Newer(Box<Rollouts>),
    #[error("{0}")]
    Unwritable(String),
}

impl Store {
    /// Returns when the document is safe.
    ///
    /// # Errors
    /// See [`StoreError`]; what was stored before is still there.
    #[expect(clippy::unused_async, reason = "every store but the memory waits")]
    pub async fn save(&mut self, rollouts: &Rollouts) -> Result<(), StoreError> {
        match self {
            Self::Memory => {
                let _ = rollouts;
                Ok(())
            }
        }
    }
}
