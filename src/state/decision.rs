//! One decision on live state: policy, pin and endpoint together, and what it means for the pin table.
//!
//! The data path calls [`decide`]; `explain` calls [`look`], which is the same but leaves no trace.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::pins::{Pin, Pins};
use super::snapshot::{Endpoint, Service, Version};
use crate::config::Affinity;
use crate::decide::choose::{Asker, mix, two_choices};
use crate::decide::slow_start;
use crate::decide::{ClientKey, Forced, Hold, NoVersion, Why};
use crate::metrics::Flip;

/// Who gets what, and why.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Index into [`Service::versions`].
    pub version: usize,
    pub endpoint: Arc<Endpoint>,
    pub why: Why,
    /// Index of the version that the client belongs to, see [`crate::decide::Choice::home`].
    pub home: Option<usize>,
}

/// The client of a request, as far as affinity needs it.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub address: std::net::IpAddr,
    /// For `affinity: None`: the next point of the worker's sequence.
    pub roll: u64,
    /// What an allowed override asks for.
    pub forced: Option<Forced>,
}

/// Decides, counts a flip, and remembers. `now` is in milliseconds of the process's clock.
///
/// # Errors
/// When the service is closed or has no usable endpoint where `whenEmpty` allows.
#[expect(clippy::indexing_slicing, reason = "the policy's versions are the service's")]
pub fn decide(service: &Service, pins: &Pins, client: Client, now: u64) -> Result<Decision, NoVersion> {
    let Affinity::ClientIp { prefix, timeout } = service.config.affinity else {
        return spread(service, client, now);
    };
    let key = ClientKey::new(client.address, prefix);
    let pin = match pins.touch(service.id, key, now, timeout) {
        Some(pin) if client.forced.is_none() => match again(service, pin, now) {
            Ok(decision) => return Ok(decision),
            Err(pin) => Some(pin),
        },
        pin => pin,
    };
    let decision = place(service, pin.as_ref(), key, client, now)?;
    let version = &service.versions[decision.version].id;
    let home = decision.home.map(|home| service.versions[home].id);
    let known = pin.as_ref().is_some_and(|p| {
        (p.version, p.home) == (*version, home)
            && Arc::ptr_eq(&p.endpoint, &decision.endpoint)
            && p.epoch == service.epoch
            && p.why == decision.why
    });
    if !known {
        if let Some(pin) = pin.filter(|p| p.version != *version) {
            service.metrics.flip(flip_reason(&pin, &decision, service));
        }
        let endpoint = decision.endpoint.clone();
        let pin = Pin { version: *version, home, endpoint, epoch: service.epoch, why: decision.why };
        pins.keep(service.id, key, pin, now);
    }
    Ok(decision)
}

/// The short way of nearly all requests: within an epoch the split gives a client the same version, so nothing is
/// hashed, compared or remembered anew. Gives the pin back when the answer might be another.
fn again(service: &Service, pin: Pin, now: u64) -> Result<Decision, Pin> {
    let is_same = pin.why == Why::Cohort && pin.epoch == service.epoch;
    let version = service.versions.iter().position(|v| v.id == pin.version && v.takes(&pin.endpoint, now));
    // Held, it has another reason.
    let is_free = |v: &usize| service.policy.holds.get(*v) == Some(&Hold::None);
    match version.filter(|v| is_same && is_free(v)) {
        Some(version) => Ok(Decision { version, endpoint: pin.endpoint, why: Why::Cohort, home: Some(version) }),
        None => Err(pin),
    }
}

/// The same answer without leaving a trace. `pin` is the client's, if any.
///
/// # Errors
/// As [`decide`].
pub fn look(service: &Service, pin: Option<&Pin>, client: Client, now: u64) -> Result<Decision, NoVersion> {
    match service.config.affinity {
        Affinity::None => spread(service, client, now),
        Affinity::ClientIp { prefix, .. } => place(service, pin, ClientKey::new(client.address, prefix), client, now),
    }
}

#[expect(clippy::indexing_slicing, reason = "the policy's versions are the service's")]
fn place(
    service: &Service,
    pin: Option<&Pin>,
    key: ClientKey,
    client: Client,
    now: u64,
) -> Result<Decision, NoVersion> {
    // Who took shelter in a version, or was sent there by a header, is no client of it: a drain holds them where they
    // belong, which is where they return.
    let known = pin.and_then(|p| p.home).and_then(|home| service.versions.iter().position(|v| v.id == home));
    let choice =
        service.policy.choose(Asker::Client(key, known), client.forced, now, |v| is_usable(service, v, now))?;
    let version = &service.versions[choice.version];
    let endpoint = pin
        .filter(|p| p.version == version.id && version.takes(&p.endpoint, now))
        .map(|p| p.endpoint.clone())
        .or_else(|| first_choice(version, key, now))
        .ok_or(NoVersion::NoEndpoint(choice.version))?;
    Ok(Decision { version: choice.version, endpoint, why: choice.why, home: choice.home })
}

#[expect(clippy::indexing_slicing, reason = "the policy's versions are the service's")]
fn spread(service: &Service, client: Client, now: u64) -> Result<Decision, NoVersion> {
    let choice =
        service.policy.choose(Asker::Request(client.roll), client.forced, now, |v| is_usable(service, v, now))?;
    let endpoint =
        least_busy(&service.versions[choice.version], client.roll, now).ok_or(NoVersion::NoEndpoint(choice.version))?;
    Ok(Decision { version: choice.version, endpoint, why: choice.why, home: choice.home })
}

fn is_usable(service: &Service, version: usize, now: u64) -> bool {
    service.versions.get(version).is_some_and(|v| v.endpoints.iter().any(|e| v.takes(e, now)))
}

/// Where a client goes that is not pinned to a usable endpoint.
fn first_choice(version: &Version, key: ClientKey, now: u64) -> Option<Arc<Endpoint>> {
    let takes = |i: usize| version.endpoints.get(i).is_some_and(|e| version.takes(e, now));
    let (who, warmth) = (slow_start::who(key), version.warmth());
    let is_warm = |i: usize| version.endpoints.get(i).is_some_and(|e| warmth.lets_in(version, e, who, now));
    // The one that was warm enough for all may have gone while the others were asked.
    let found = version.places.choose(key, |i| takes(i) && is_warm(i)).or_else(|| version.places.choose(key, takes));
    found.and_then(|i| version.endpoints.get(i)).cloned()
}

/// Endpoints that are drawn before all are looked at.
const DRAWS: u64 = 16;

/// Two random choices on requests in flight; when neither is usable any that is.
fn least_busy(version: &Version, roll: u64, now: u64) -> Option<Arc<Endpoint>> {
    let n = version.endpoints.len();
    if n == 0 {
        return None;
    }
    let (a, b) = two_choices(roll, n);
    let takes = |i: usize| version.endpoints.get(i).filter(|e| version.takes(e, now));
    let warmth = version.warmth();
    let lets_in = |i: usize| takes(i).filter(|e| warmth.lets_in(version, e, roll, now));
    let busy = |i: usize| lets_in(i).map_or(u32::MAX, |e| e.in_flight.load(Ordering::Relaxed));
    let best = if busy(b) < busy(a) { b } else { a };
    // Some more draws before all are asked: of many endpoints that is dear.
    let draw = |k: u64| usize::try_from((u128::from(mix(roll ^ k)) * n as u128) >> 64).unwrap_or_default();
    lets_in(best)
        .or_else(|| (1..=DRAWS).find_map(|k| lets_in(draw(k))))
        .or_else(|| any((0..n).filter_map(lets_in), roll))
        .or_else(|| any((0..n).filter_map(takes), roll))
        .cloned()
}

/// One of these for this roll, each of them as often: not the next in the list, which would have all that its neighbours
/// cannot take.
fn any<'e>(endpoints: impl Iterator<Item = &'e Arc<Endpoint>>, roll: u64) -> Option<&'e Arc<Endpoint>> {
    endpoints.max_by_key(|e| mix(roll ^ e.seed))
}

/// Another usable endpoint of the same version that `may` be asked; never one of another version.
#[must_use]
pub fn another(version: &Version, may: impl Fn(&Arc<Endpoint>) -> bool, roll: u64, now: u64) -> Option<Arc<Endpoint>> {
    let warmth = version.warmth();
    let others = || version.endpoints.iter().filter(|e| version.takes(e, now) && may(e));
    // What others cannot take is better off at a cold one than nowhere.
    any(others().filter(|e| warmth.lets_in(version, e, roll, now)), roll).or_else(|| any(others(), roll)).cloned()
}

fn flip_reason(last: &Pin, next: &Decision, service: &Service) -> Flip {
    match (last.why, next.why) {
        (Why::Override, _) | (_, Why::Override) => Flip::Override,
        (Why::WhenEmpty, _) | (_, Why::WhenEmpty) => Flip::WhenEmpty,
        _ if last.epoch < service.aborted => Flip::Abort,
        // Held until now, and nothing but the time has changed.
        (Why::DrainPin | Why::FreezePin, _) if last.epoch >= service.turned => Flip::DrainDeadline,
        _ if last.epoch != service.epoch => Flip::WeightChange,
        _ => Flip::Unexplained,
    }
}
