//! The last known picture of the cluster on disk, so that perch can start while the API server is away.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::{KubernetesService, KubernetesSource};
use crate::decide::slices::{Discovered, Members};
use crate::state::model::ClusterNews;

/// What is in the file.
#[derive(Debug, Deserialize, Serialize)]
struct File {
    /// Another number is another shape, and read as no file.
    version: u32,
    endpoints: Vec<(KubernetesSource, Arc<[Discovered]>)>,
    affinities: Vec<(KubernetesService, Option<Duration>)>,
}

const VERSION: u32 = 1;

/// What was last written; nothing when there is no file that can be read.
#[must_use]
pub fn load(file: &Path) -> ClusterNews {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        // The first start.
        Err(error) if error.kind() == ErrorKind::NotFound => return ClusterNews::default(),
        Err(error) => {
            warn!(file = %file.display(), %error, "Cannot read the snapshot cache; starting without it.");
            return ClusterNews::default();
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(File { version: VERSION, endpoints, affinities }) => {
            let members = |usable| Members { usable, ..Members::default() };
            ClusterNews { endpoints: endpoints.into_iter().map(|(s, e)| (s, members(e))).collect(), affinities }
        }
        Ok(File { version, .. }) => {
            warn!(file = %file.display(), version, "The snapshot cache is of another perch; starting without it.");
            ClusterNews::default()
        }
        Err(error) => {
            warn!(file = %file.display(), %error, "The snapshot cache is damaged; starting without it.");
            ClusterNews::default()
        }
    }
}

/// Whole at once: written beside and renamed.
pub(super) fn store(file: &Path, news: ClusterNews) -> std::io::Result<()> {
    let ClusterNews { endpoints, affinities } = news;
    // Those that take nothing are of no use at a start.
    let endpoints = endpoints.into_iter().map(|(source, members)| (source, members.usable)).collect();
    let text = serde_json::to_vec(&File { version: VERSION, endpoints, affinities })?;
    let beside = file.with_extension("tmp");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KubernetesPort;

    fn news() -> ClusterNews {
        let service = KubernetesService { namespace: Some("lab".into()), name: "hello".into() };
        let source = KubernetesSource {
            service: service.clone(),
            port: KubernetesPort::Name("http".into()),
            pod_labels: [("track".to_owned(), "canary".to_owned())].into(),
        };
        let found = Discovered { address: ([10, 0, 0, 1], 80).into(), pod: Some("u".into()), is_draining: true };
        ClusterNews {
            endpoints: vec![(source, Members { usable: [found].into(), ..Members::default() })],
            affinities: vec![(service, Some(Duration::from_secs(60)))],
        }
    }

    #[test]
    fn what_is_stored_is_what_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cache.json");

        store(&file, news()).unwrap();

        assert_eq!(load(&file), news());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cache.json");

        for bad in ["", "{", "{\"version\": 2, \"endpoints\": [], \"affinities\": []}", "[]"] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(load(&file), ClusterNews::default(), "{bad}");
        }
        assert_eq!(load(&dir.path().join("none")), ClusterNews::default());
    }
}
