//! The rollout document in a ConfigMap: how it is read, kept beside on disk, and written only over what it is based on.

#![expect(clippy::indexing_slicing, reason = "of JSON: what is not there reads as null")]

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::{error, warn};

use super::super::client::{Connector, Trouble};
use super::session::{Session, is_conflict};
use crate::control::store::{Document, StoreError};
use crate::decide::rollout::{Rollouts, VERSION};

pub(super) const GROUP: &str = "/api/v1";
pub(super) const KIND: &str = "configmaps";

/// The key of the ConfigMap that has the document, and where one that can't be read is kept.
pub(super) const KEY: &str = "rollouts.json";
const ASIDE: &str = "rollouts.json.corrupt";

/// Of a verb that somebody waits for. The writer waits, too.
const PATIENCE: Duration = Duration::from_secs(3);

/// A replica's report may come between reading and writing, but not for ever.
const TRIES: usize = 8;

/// Where the document is, and which one ours is based on.
#[derive(Debug)]
pub struct ConfigMapStore {
    session: Session,
    name: String,
    /// The sequence of what is stored, as far as it is known here; 0 for nothing.
    base: u64,
    cache: Option<PathBuf>,
}

/// A document of a newer perch.
#[derive(Debug, thiserror::Error)]
#[error(
    "kubernetes.state.configMap: {name} was written by a newer perch (document version {version}, this one reads up to {VERSION}); start the newer one, or name another ConfigMap to begin with the configuration's weights"
)]
pub struct OpenError {
    name: String,
    version: u32,
}

impl ConfigMapStore {
    /// The store, and what it has; without an answer of the API server, what it had when perch last ran. The last value
    /// tells whether that is known.
    pub(super) async fn open(
        connector: Connector,
        name: String,
        cache: Option<PathBuf>,
    ) -> Result<(Self, Rollouts, bool), OpenError> {
        let mut store = Self { session: Session::new(connector, PATIENCE), name, base: 0, cache };
        let object = match store.session.get(GROUP, KIND, &store.name).await {
            Ok(object) => object.unwrap_or_default(),
            Err(trouble) => {
                let kept = store.cache.as_ref().and_then(|file| std::fs::read(file).ok());
                let known = match Document::read(kept.as_deref()) {
                    Document::Good(rollouts) => Some(rollouts),
                    Document::Missing | Document::Corrupt(_) | Document::Newer(_) => None,
                };
                let (configmap, is_known) = (&store.name, known.is_some());
                warn!(
                    configmap,
                    error = trouble.message,
                    is_known,
                    "Cannot read the rollouts; they follow when it answers."
                );
                let rollouts = known.unwrap_or_default();
                store.base = rollouts.sequence;
                return Ok((store, rollouts, is_known));
            }
        };
        match Document::read(object["data"][KEY].as_str().map(str::as_bytes)) {
            Document::Good(rollouts) => {
                store.base = rollouts.sequence;
                store.keep(&rollouts);
                Ok((store, rollouts, true))
            }
            Document::Missing => Ok((store, Rollouts::default(), true)),
            Document::Corrupt(problem) => {
                let configmap = &store.name;
                error!(
                    configmap,
                    problem,
                    "The rollouts can't be read; with the next change they are kept as {ASIDE}. Starting with the configuration's weights."
                );
                Ok((store, Rollouts::default(), true))
            }
            Document::Newer(version) => Err(OpenError { name: store.name, version }),
        }
    }

    /// Whether a document that was seen is newer than all before it.
    pub(in crate::control) fn learn(&mut self, rollouts: &Rollouts) -> bool {
        if rollouts.sequence <= self.base {
            return false;
        }
        self.base = rollouts.sequence;
        self.keep(rollouts);
        true
    }

    /// Writes the document if what is stored is what it is based on.
    pub(in crate::control) async fn save(&mut self, rollouts: &Rollouts) -> Result<(), StoreError> {
        let name = self.name.clone();
        let unwritable = |why: String| StoreError::Unwritable(format!("ConfigMap {name}: {why}"));
        let text = serde_json::to_string(rollouts).map_err(|e| unwritable(e.to_string()))?;
        for _ in 0..TRIES {
            let object = self.session.get(GROUP, KIND, &self.name).await.map_err(|t| unwritable(why(&t)))?;
            let mut data = json!({KEY: text});
            let stored = object.as_ref().and_then(|o| o["data"][KEY].as_str());
            match Document::read(stored.map(str::as_bytes)) {
                Document::Good(stored) if stored.sequence > self.base => {
                    return Err(StoreError::Newer(Box::new(stored)));
                }
                Document::Good(_) | Document::Missing => {}
                Document::Corrupt(_) => data[ASIDE] = stored.into(),
                Document::Newer(version) => {
                    return Err(unwritable(format!("a newer perch wrote it (document version {version})")));
                }
            }
            let done = match &object {
                Some(object) => {
                    let version = &object["metadata"]["resourceVersion"];
                    let patch = json!({"metadata": {"resourceVersion": version}, "data": data});
                    self.session.patch(GROUP, KIND, &self.name, &patch).await
                }
                None => self.session.create(GROUP, KIND, &new(&self.name, data)).await,
            };
            match done {
                Ok(_) => {
                    self.base = rollouts.sequence;
                    self.keep(rollouts);
                    return Ok(());
                }
                Err(trouble) if is_conflict(&trouble) => {}
                Err(trouble) => return Err(unwritable(why(&trouble))),
            }
        }
        Err(unwritable("others keep changing it; try again".to_owned()))
    }

    /// On disk, for a start without the API server.
    fn keep(&self, rollouts: &Rollouts) {
        let Some(file) = self.cache.clone() else { return };
        let Ok(text) = serde_json::to_vec(rollouts) else { return };
        tokio::task::spawn_blocking(move || {
            let beside = file.with_extension("new");
            if let Err(error) = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &file)) {
                warn!(file = %file.display(), %error, "Cannot keep the rollouts on disk.");
            }
        });
    }
}

pub(super) fn new(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// With what to do about it, where that is known.
fn why(trouble: &Trouble) -> String {
    if trouble.code == Some(403) {
        return format!("{}; give perch's ServiceAccount get and patch on it", trouble.message);
    }
    trouble.message.clone()
}
