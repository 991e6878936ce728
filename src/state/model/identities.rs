//! Identities of services, versions and endpoints: given once, by name, and never to another.

use std::collections::HashMap;
use std::sync::Arc;

use super::BuildError;
use crate::metrics::{ServiceMetrics, VersionMetrics};
use crate::state::snapshot::{EndpointId, ServiceId, VersionId};

/// Identities once given, by name, for the life of the process.
#[derive(Debug, Default)]
pub(super) struct Identities {
    services: HashMap<Arc<str>, Identity>,
    versions: u32,
    endpoints: u32,
}

#[derive(Debug)]
struct Identity {
    id: ServiceId,
    metrics: Arc<ServiceMetrics>,
    versions: HashMap<Arc<str>, (VersionId, Arc<VersionMetrics>)>,
}

impl Identities {
    pub(super) fn service(&mut self, name: &Arc<str>) -> Result<(ServiceId, Arc<ServiceMetrics>), BuildError> {
        let next = u16::try_from(self.services.len()).map_err(|_| BuildError::NoMoreIdentities)?;
        let known = self.services.entry(name.clone()).or_insert_with(|| Identity {
            id: ServiceId(next),
            metrics: Arc::new(ServiceMetrics::new(name)),
            versions: HashMap::new(),
        });
        Ok((known.id, known.metrics.clone()))
    }

    pub(super) fn version(
        &mut self,
        service: &Arc<str>,
        name: &Arc<str>,
    ) -> Result<(VersionId, Arc<VersionMetrics>), BuildError> {
        self.service(service)?;
        let known = self.services.get_mut(service).map(|s| &mut s.versions).ok_or(BuildError::NoMoreIdentities)?;
        if let Some((id, metrics)) = known.get(name) {
            return Ok((*id, metrics.clone()));
        }
        if self.versions > VersionId::LAST {
            return Err(BuildError::NoMoreIdentities);
        }
        let id = VersionId(self.versions);
        self.versions += 1;
        let metrics = Arc::new(VersionMetrics::new(service, name));
        known.insert(name.clone(), (id, metrics.clone()));
        Ok((id, metrics))
    }

    pub(super) fn endpoint(&mut self) -> Result<EndpointId, BuildError> {
        let id = EndpointId(self.endpoints);
        // u32::MAX itself stays free: the pin table's endpoint that is nowhere has it.
        self.endpoints = self.endpoints.checked_add(1).ok_or(BuildError::NoMoreIdentities)?;
        Ok(id)
    }
}
