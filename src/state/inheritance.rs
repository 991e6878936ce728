//! What one process leaves to the next that takes over from it, so that nobody notices: generation, epochs, verbs, pins.
//!
//! Identities are each process's own: services, versions and endpoints are named in between. An epoch goes on where
//! everything that may move a client is as it was, and is the next one elsewhere: no flip is unexplained, and none hidden.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use super::clock::Moment;
use super::pins::{Pins, Raw};
use super::snapshot::{Endpoint, EndpointId, ServiceId, Snapshot, Version, VersionId};
use crate::config;
use crate::decide::rollout::Rollouts;
use crate::decide::{Hold, Policy};

/// All but the pins.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inheritance {
    pub generation: u64,
    pub rollouts: Rollouts,
    pub services: Vec<Inherited>,
    pub drains: Drains,
}

/// What is known of drains, in time of the clock that goes on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Drains {
    /// When the first process started whose pins these are; `None`: nobody handed over.
    pub started: Option<Moment>,
    /// (service, version, deadline in wall time), and that deadline on the clock.
    pub ends: Vec<((String, String, u64), u64)>,
    /// Ends of earlier splits that the first process found.
    pub found: Vec<(String, String, u64)>,
}

/// A service.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inherited {
    pub name: String,
    /// Of what may move a client.
    pub fingerprint: u64,
    pub epoch: u32,
    pub aborted: u32,
    pub turned: u32,
    /// The generation that last moved clients.
    pub moved_at: u64,
    pub versions: Vec<InheritedVersion>,
}

/// One of its versions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InheritedVersion {
    pub name: String,
    /// Address and pod.
    pub endpoints: Vec<(SocketAddr, Option<Arc<str>>)>,
}

impl Inheritance {
    /// Of a snapshot; `moved_at` tells the generation that last moved clients of a service.
    #[must_use]
    pub fn of(snapshot: &Snapshot, drains: Drains, moved_at: impl Fn(ServiceId) -> u64) -> Self {
        let version = |v: &Version| InheritedVersion {
            name: v.name.to_string(),
            endpoints: v.endpoints.iter().map(|e| (e.address, e.pod.clone())).collect(),
        };
        let services = snapshot.services.iter().map(|s| Inherited {
            name: s.name.to_string(),
            fingerprint: fingerprint(&s.config, &s.policy),
            epoch: s.epoch,
            aborted: s.aborted,
            turned: s.turned,
            moved_at: moved_at(s.id),
            versions: s.versions.iter().map(version).collect(),
        });
        Self {
            generation: snapshot.generation,
            rollouts: Rollouts::clone(&snapshot.rollouts),
            services: services.collect(),
            drains,
        }
    }

    /// What is known of a service.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Inherited> {
        self.services.iter().find(|s| s.name == name)
    }
}

impl Inherited {
    /// The epoch of the same service here.
    #[must_use]
    pub fn epoch_of(&self, config: &config::Service, policy: &Policy) -> u32 {
        self.epoch.wrapping_add(u32::from(self.fingerprint != fingerprint(config, policy)))
    }
}

/// Of everything that may move a client, endpoints aside; as `model::build::moves_clients`, but for the deadlines of
/// drains, which are each process's own. Another perch may write it in another way: then the epoch is another.
fn fingerprint(config: &config::Service, policy: &Policy) -> u64 {
    let names: Vec<_> = (0..policy.split.len()).map(|v| policy.split.name(v)).collect();
    let holds: Vec<_> = policy.holds.iter().map(|hold| matches!(hold, Hold::None)).collect();
    let salt = config.salt.as_ref().map(|s| &s.0);
    let (weights, when_empty) = (policy.split.weights(), policy.when_empty);
    let text =
        format!("{:?}", (names, weights, when_empty, holds, &config.cohort, salt, &config.affinity, &config.overrides));
    SipHasher24::new().hash(text.as_bytes())
}

/// Of one pin, in bytes: service, version, endpoint, and what the table has of it.
const RECORD: usize = 2 + 2 + 2 + 4 + 16 + 4 + 2 + 4 + 1;

/// Records of one part.
const PART: usize = (1 << 20) / RECORD;

/// No version: what has no home.
const NO_HOME: u16 = u16::MAX;

/// An endpoint that is gone.
const NOWHERE: u32 = u32::MAX;

/// All pins, in parts of a MiB. Positions are those of `snapshot`, and so of the [`Inheritance`] of it. A shard of the
/// table at a time is locked for reading.
#[must_use]
pub fn leave_pins(pins: &Pins, snapshot: &Snapshot) -> Vec<Vec<u8>> {
    let position = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let mut services: HashMap<ServiceId, u16> = HashMap::new();
    let mut versions: HashMap<VersionId, u16> = HashMap::new();
    let mut endpoints: HashMap<EndpointId, u32> = HashMap::new();
    for (s, service) in snapshot.services.iter().enumerate() {
        services.insert(service.id, position(s));
        for (v, version) in service.versions.iter().enumerate() {
            versions.insert(version.id, position(v));
            endpoints.extend((0..).zip(&version.endpoints).map(|(e, endpoint)| (endpoint.id, e)));
        }
    }
    let mut parts = Vec::new();
    let mut part = Vec::new();
    pins.for_each_raw(|service, version, home, endpoint, raw| {
        let (Some(service), Some(version)) = (services.get(&service), versions.get(&version)) else { return };
        part.extend(service.to_be_bytes());
        part.extend(version.to_be_bytes());
        part.extend(home.and_then(|home| versions.get(&home)).unwrap_or(&NO_HOME).to_be_bytes());
        part.extend(endpoints.get(&endpoint).unwrap_or(&NOWHERE).to_be_bytes());
        part.extend(raw.client);
        part.extend(raw.used.to_be_bytes());
        part.extend(raw.requests.to_be_bytes());
        part.extend(raw.epoch.to_be_bytes());
        part.push(raw.why);
        if part.len() >= PART * RECORD {
            parts.push(std::mem::take(&mut part));
        }
    });
    parts.extend((!part.is_empty()).then_some(part));
    parts
}

/// Takes over what [`leave_pins`] wrote. Pins of services and versions that are no more are left out.
pub fn take_pins(pins: &Pins, parts: &[Vec<u8>], inheritance: &Inheritance, snapshot: &Snapshot) {
    // Theirs by position -> ours.
    let places: Vec<Option<(ServiceId, Vec<Option<Place<'_>>>)>> = inheritance
        .services
        .iter()
        .map(|left| {
            let ours = snapshot.services.iter().find(|s| *s.name == left.name)?;
            let version = |left: &InheritedVersion| {
                let ours = ours.versions.iter().find(|v| *v.name == left.name)?;
                let by_place: HashMap<_, _> =
                    ours.endpoints.iter().map(|e| ((e.address, e.pod.as_deref()), e)).collect();
                let found = left.endpoints.iter().map(|(a, pod)| by_place.get(&(*a, pod.as_deref())).copied());
                Some(Place { version: ours.id, endpoints: found.collect() })
            };
            Some((ours.id, left.versions.iter().map(version).collect()))
        })
        .collect();
    for record in parts.iter().flat_map(|part| part.as_chunks::<RECORD>().0) {
        let mut rest = record.as_slice();
        let service = usize::from(u16::from_be_bytes(cut(&mut rest)));
        let version = usize::from(u16::from_be_bytes(cut(&mut rest)));
        let home = usize::from(u16::from_be_bytes(cut(&mut rest)));
        let endpoint = u32::from_be_bytes(cut(&mut rest));
        let raw = Raw {
            client: cut(&mut rest),
            used: u32::from_be_bytes(cut(&mut rest)),
            requests: u16::from_be_bytes(cut(&mut rest)),
            epoch: u32::from_be_bytes(cut(&mut rest)),
            why: u8::from_be_bytes(cut(&mut rest)),
        };
        let Some(Some((service, versions))) = places.get(service) else { continue };
        let Some(Some(place)) = versions.get(version) else { continue };
        let endpoint = usize::try_from(endpoint).ok().and_then(|e| place.endpoints.get(e).copied().flatten());
        let home = versions.get(home).and_then(|place| Some(place.as_ref()?.version));
        pins.restore(*service, place.version, home, endpoint, &raw);
    }
}

/// A version here, and its endpoints by their position there.
struct Place<'a> {
    version: VersionId,
    endpoints: Vec<Option<&'a Arc<Endpoint>>>,
}

/// The next bytes of a record.
fn cut<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (bytes, after) = rest.split_first_chunk().expect("a record is as long as what is cut from it");
    *rest = after;
    *bytes
}

#[cfg(test)]
mod tests;
