//! The handovers of all sources: from the endpoints that were to those that will be, see [`crate::decide::handover`].
//! What a version has from elsewhere (another source before a reload, the snapshot cache) is handed over as well.

use std::collections::HashMap;

use tracing::{info, warn};

use super::picture::Picture;
use super::streams::{Need, Needs};
use crate::config::{Config, KubernetesSource};
use crate::decide::handover::{HOLD_AT_MOST, Handover};
use crate::decide::slices::{Discovered, Members};
use crate::state::health::Condition;
use crate::state::snapshot::Snapshot;

/// By source.
#[derive(Debug, Default)]
pub(super) struct Handovers(HashMap<KubernetesSource, Handover>);

impl Handovers {
    /// The endpoints of a source; `None` until each stream that it needs was listed. A source that is new takes over
    /// from what `snapshot` has for the versions that are to have it in `config`.
    pub(super) fn endpoints(
        &mut self,
        need: &Need,
        picture: &Picture,
        (config, snapshot): (&Config, &Snapshot),
        now: u64,
    ) -> Option<Members> {
        let Need { source, slices, pods } = need;
        let mut reading = picture.reading(source, slices, pods.as_ref())?;
        let unready = std::mem::take(&mut reading.unready).into();
        let handover = self.0.entry(source.clone()).or_insert_with(|| before(source, config, snapshot, now));
        let held_before = handover.holds_since().is_some();
        let found = handover.take(reading, |uid| picture.is_gone(source, pods.as_ref(), uid), now);
        let service = &source.service.name;
        match (held_before, handover.holds_since().is_some()) {
            (false, true) => info!(
                service,
                endpoints = found.len(),
                "The cluster names other endpoints and none is ready; using the ones before until one is."
            ),
            (true, false) if found.is_empty() => {
                warn!(service, "No new endpoint became ready, and the ones before are no longer used.");
            }
            (true, false) => info!(service, endpoints = found.len(), "A new endpoint is ready; the ones before leave."),
            (true, true) | (false, false) => {}
        }
        Some(Members { usable: found.into(), unready })
    }

    /// Whether some are held for too long.
    pub(super) fn are_overdue(&self, now: u64) -> bool {
        self.0.values().filter_map(Handover::holds_since).any(|since| now.saturating_sub(since) >= HOLD_AT_MOST)
    }

    /// Forgets the sources that nobody needs any more.
    pub(super) fn retain(&mut self, needs: &Needs) {
        self.0.retain(|source, _| needs.sources.iter().any(|need| need.source == *source));
    }
}

fn before(source: &KubernetesSource, config: &Config, snapshot: &Snapshot, now: u64) -> Handover {
    let versions = config.services.iter().flat_map(|s| s.versions.iter().map(move |v| (s, v)));
    let named = versions.filter(|(_, v)| v.kubernetes.as_ref() == Some(source)).filter_map(|(service, version)| {
        let service = snapshot.services.iter().find(|s| *s.name == *service.name)?;
        service.versions.iter().find(|v| *v.name == *version.name)
    });
    Handover::from(named.flat_map(|version| &version.endpoints).map(|endpoint| Discovered {
        address: endpoint.address,
        pod: endpoint.pod.clone(),
        is_draining: endpoint.health.condition(now) == Condition::Draining,
    }))
}
