//! Pins as they are, for the process that takes over: last uses and counts are kept, identities are the caller's to
//! translate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::packed::Packed;
use super::tally::Tally;
use super::{Known, PinKey, Pins, Stored};
use crate::state::snapshot::{Endpoint, EndpointId, ServiceId, VersionId};

/// What means the same in another process whose clock goes on from this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw {
    pub client: [u8; 16],
    /// In seconds of the clock.
    pub used: u32,
    pub requests: u16,
    pub epoch: u32,
    /// A [`crate::decide::Why`] as the table has it.
    pub why: u8,
}

impl Pins {
    /// Visits every pin, expired ones included. A shard is locked for reading during `visit`, which must not call the
    /// table.
    pub fn for_each_raw(&self, mut visit: impl FnMut(ServiceId, VersionId, Option<VersionId>, EndpointId, Raw)) {
        for pin in &self.map {
            let Known { key, requests, used } = pin.key();
            let (epoch, why) = pin.rest.epoch_and_why();
            let raw =
                Raw { client: key.client, used: used.load(Ordering::Relaxed), requests: requests.bits(), epoch, why };
            visit(key.service, pin.rest.version(), pin.rest.home(), pin.endpoint.id, raw);
        }
    }

    /// Puts one in; `None`: its endpoint is gone. Where there is no room for it, it is as a new client's.
    pub fn restore(
        &self,
        service: ServiceId,
        version: VersionId,
        home: Option<VersionId>,
        endpoint: Option<&Arc<Endpoint>>,
        raw: &Raw,
    ) {
        let endpoint = endpoint.unwrap_or(&self.nowhere).clone();
        let known = Known {
            key: PinKey { client: raw.client, service },
            requests: Tally::from_bits(raw.requests),
            used: AtomicU32::new(raw.used),
        };
        self.insert(known, Stored { endpoint, rest: Packed::again(version, home, raw.epoch, raw.why) }, raw.used);
    }
}
