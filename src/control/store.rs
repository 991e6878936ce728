//! Where the rollout document is kept. A change is stored before it is in force: what was acknowledged is never lost.
//!
//! A store can also bring a newer document: [`StoreError::Newer`] when it finds one while it writes, or at any time by
//! [`super::Control::adopt`]. It does not know what the document means.

use std::path::Path;
use std::time::Duration;

pub(in crate::control) use self::document::Document;
use self::file::FileStore;
pub use self::file::OpenError;
use super::kubernetes::state::ConfigMapStore;
use crate::decide::rollout::Rollouts;

mod document;
mod file;

/// The place.
#[derive(Debug, Default)]
pub enum Store {
    /// Shared by all replicas in a cluster.
    ConfigMap(Box<ConfigMapStore>),
    /// A file in a folder of its own.
    File(FileStore),
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

/// The store of `stateDir`, or of none, and what it has. What can't be read or written is told in the log: the verbs will
/// be refused, and everything else goes on.
///
/// # Errors
/// When the document is of a newer perch.
pub fn open(folder: Option<&Path>) -> Result<(Store, Rollouts), OpenError> {
    let Some(folder) = folder else { return Ok((Store::Memory, Rollouts::default())) };
    let (store, rollouts) = FileStore::open(folder)?;
    Ok((Store::File(store), rollouts))
}

/// A disk that takes longer is broken; the verb is refused, and may be found done after a restart.
const PATIENCE: Duration = Duration::from_secs(10);

impl Store {
    /// A document that was brought. `Some(true)`: it counts, whatever is in force here; `Some(false)`: it is none that we
    /// have not seen; `None`: the larger sequence decides.
    pub(super) fn learn(&mut self, rollouts: &Rollouts) -> Option<bool> {
        match self {
            Self::ConfigMap(store) => Some(store.learn(rollouts)),
            Self::File(_) | Self::Memory => None,
        }
    }

    /// Nobody else reads it: what is in force without being stored contradicts no other replica.
    pub(super) const fn is_own(&self) -> bool {
        match self {
            Self::ConfigMap(_) => false,
            Self::File(_) | Self::Memory => true,
        }
    }

    /// Lets another perch open it, until the next [`Self::save`].
    pub(super) fn let_go(&self) {
        match self {
            Self::File(file) => file.let_go(),
            Self::ConfigMap(_) | Self::Memory => {}
        }
    }

    /// Returns when the document is safe.
    ///
    /// # Errors
    /// See [`StoreError`]; what was stored before is still there.
    pub async fn save(&mut self, rollouts: &Rollouts) -> Result<(), StoreError> {
        match self {
            Self::ConfigMap(store) => store.save(rollouts).await,
            Self::File(file) => tokio::time::timeout(PATIENCE, file.save(rollouts)).await.unwrap_or_else(|_| {
                Err(StoreError::Unwritable(format!("the disk of stateDir did not answer in {PATIENCE:?}")))
            }),
            Self::Memory => Ok(()),
        }
    }
}
