//! Pins: remembered (service, client key) -> version, endpoint, last use. Bounded; the only user of dashmap.

use std::sync::Arc;
use std::time::Duration;

use super::snapshot::{Endpoint, ServiceId, VersionId};
use crate::decide::{ClientKey, Why};

/// What is remembered of a client.
#[derive(Clone, Debug)]
pub struct Pin {
    pub version: VersionId,
    pub endpoint: Arc<Endpoint>,
    /// [`super::snapshot::Service::epoch`] of the last answer.
    pub epoch: u32,
    pub why: Why,
}

/// The table.
#[derive(Debug)]
pub struct Pins {}

impl Pins {
    #[must_use]
    pub fn new(_max_entries: usize) -> Self {
        Self {}
    }

    /// The pin of a client, marked as used at `now`; `None` when it was idle for `timeout`.
    pub fn touch(&self, _service: ServiceId, _key: ClientKey, _now: u64, _timeout: Duration) -> Option<Pin> {
        None
    }

    /// Remembers, or changes what is remembered.
    pub fn keep(&self, _service: ServiceId, _key: ClientKey, _pin: Pin, _now: u64) {}
}
