//! Pins: remembered (service, client key) -> version, endpoint, last use. The only user of dashmap.
//!
//! A request of a remembered client takes one shard's read lock and writes nothing but the count of its requests and,
//! once a second, the time of its last use. Only a new client goes the slow way (a striped mutex around a ring of keys),
//! where room is made when the table is full: expired pins first, then pins of the most crowded neighbourhood. A newcomer
//! out of the most crowded neighbourhood is refused rather than let in for an active client of another one: a flood from
//! one network forgets its own. Losing a pin never changes a client's version unless a drain is under way.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use dashmap::DashMap;

use self::crowds::Crowds;
use self::packed::Packed;
use self::tally::Tally;
use super::snapshot::{Endpoint, EndpointId, ServiceId, VersionId};
use crate::decide::{ClientKey, Why};

pub mod census;
mod crowds;
mod packed;
mod raw;
mod tally;

pub use self::raw::Raw;

/// What is remembered of a client.
#[derive(Clone, Debug)]
pub struct Pin {
    /// Of the last answer.
    pub version: VersionId,
    /// The one that it belongs to, see [`crate::decide::Choice::home`]; another one while that is empty, or an override
    /// asked for another.
    pub home: Option<VersionId>,
    /// Once it is gone, the sweep puts an endpoint in its place that is gone too, and nothing else.
    pub endpoint: Arc<Endpoint>,
    /// [`super::snapshot::Service::epoch`] of the last answer.
    pub epoch: u32,
    pub why: Why,
}

/// The table.
#[derive(Debug)]
pub struct Pins {
    map: DashMap<Known, Stored>,
    /// Of `map`; reserved before a key goes in.
    len: AtomicUsize,
    max_entries: usize,
    /// Each key of the map stands once in the ring that its hash chooses. Keys enter and leave the map only under that
    /// ring's lock. Lock order: ring, then a shard of the map, which is never held while waiting for a ring.
    rings: Box<[Mutex<Ring>]>,
    ring_of: RandomState,
    crowds: Crowds,
    /// In seconds, by service; read on the slow path only. Whoever isn't in it has the longest.
    timeouts: RwLock<Vec<Option<u32>>>,
    evictions: AtomicU64,
    refusals: AtomicU64,
    nowhere: Arc<Endpoint>,
}

/// 18 bytes. A (`ClientKey`, `ServiceId`) would be aligned to 16 and make an entry a third larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PinKey {
    client: [u8; 16],
    service: ServiceId,
}

impl Hash for PinKey {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(&self.client);
        hasher.write_u16(self.service.0);
    }
}

/// A key of the map, and what is no part of its identity but changes under a read lock: together they fill 24 bytes, and
/// [`Stored`] 16 more.
#[derive(Debug)]
struct Known {
    key: PinKey,
    requests: Tally,
    /// In seconds of the caller's clock.
    used: AtomicU32,
}

impl Hash for Known {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.key.hash(hasher);
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Known {}

impl Borrow<PinKey> for Known {
    fn borrow(&self) -> &PinKey {
        &self.key
    }
}

/// 16 bytes.
#[derive(Debug)]
struct Stored {
    endpoint: Arc<Endpoint>,
    rest: Packed,
}

/// Keys in no order, visited in a circle.
#[derive(Debug, Default)]
struct Ring {
    keys: Vec<PinKey>,
    /// Where the next eviction looks.
    hand: usize,
    /// Where the next sweep goes on.
    swept: usize,
}

/// Few enough that the allocator's rounding of a shard's table is small (a million pins in 256 shards were 10 MiB more),
/// so many that growing one of them, under its lock, takes well below a millisecond.
const SHARDS: usize = 64;

/// At most; a small table has one ring.
const RINGS: usize = 64;

/// Pins looked at to make room for one: enough that one of the most crowded neighbourhood is among them, unless that
/// has few of them, and then it isn't worth much.
const SCAN: usize = 8;

/// A sweep visits one in so many: all of them in about a minute when called once a second.
const SWEEP_PART: usize = 64;

/// `sessionAffinityConfig.clientIP.timeoutSeconds` may not be more.
const LONGEST_TIMEOUT: u32 = 86_400;

impl Pins {
    /// An empty table for at most `max_entries`.
    #[must_use]
    pub fn new(max_entries: usize) -> Self {
        let rings = (max_entries / 1024).clamp(1, RINGS).next_power_of_two();
        let nowhere = Endpoint {
            id: EndpointId(u32::MAX),
            address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            pod: None,
            name: "gone".into(),
            transport: Arc::default(),
            seed: 0,
            in_flight: AtomicU32::new(0),
            health: super::health::Health::default(),
        };
        nowhere.health.set_gone();
        Self {
            map: DashMap::with_shard_amount(SHARDS),
            len: AtomicUsize::new(0),
            max_entries,
            rings: (0..rings).map(|_| Mutex::default()).collect(),
            ring_of: RandomState::new(),
            crowds: Crowds::new(),
            timeouts: RwLock::default(),
            evictions: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            nowhere: Arc::new(nowhere),
        }
    }

    /// The pin of a client, marked as used at `now` by one more request; `None` when it was idle for `timeout` (and up to a second more: last
    /// uses are kept in whole seconds).
    pub fn touch(&self, service: ServiceId, key: ClientKey, now: u64, timeout: Duration) -> Option<Pin> {
        let now = seconds(now);
        let pin = self.map.get(&PinKey::new(service, key))?;
        let Known { requests, used: last, .. } = pin.key();
        let used = last.load(Ordering::Relaxed);
        if is_idle(used, now, seconds_up(timeout)) {
            return None;
        }
        requests.add();
        if used < now {
            last.store(now, Ordering::Relaxed);
        }
        Some(pin.to_pin())
    }

    /// The same without marking it as used: for those who only look (`explain`).
    #[must_use]
    pub fn peek(&self, service: ServiceId, key: ClientKey, now: u64, timeout: Duration) -> Option<Pin> {
        let pin = self.map.get(&PinKey::new(service, key))?;
        (!is_idle(pin.key().used.load(Ordering::Relaxed), seconds(now), seconds_up(timeout))).then(|| pin.to_pin())
    }

    /// Remembers, or changes what is remembered. When the table is full, see the module's words.
    pub fn keep(&self, service: ServiceId, key: ClientKey, pin: Pin, now: u64) {
        let key = PinKey::new(service, key);
        let (now, stored) = (seconds(now), Stored::new(pin));
        let Some(mut known) = self.map.get_mut(&key) else {
            let known = Known { key, requests: Tally::first(), used: AtomicU32::new(now) };
            return self.insert(known, stored, now);
        };
        known.key().used.store(now, Ordering::Relaxed);
        *known = stored;
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pins of active clients that had to make room.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// New clients that got no pin because the table is full and their own neighbourhood is the most crowded.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// A service's idle timeout, for evictions and the sweep. [`Self::touch`] has its own.
    pub fn set_timeout(&self, service: ServiceId, timeout: Duration) {
        self.set(service, Some(seconds_up(timeout)));
    }

    /// The service is gone, or remembers nobody any more: its pins count as expired.
    pub fn forget(&self, service: ServiceId) {
        self.set(service, None);
    }

    fn set(&self, service: ServiceId, timeout: Option<u32>) {
        // Readers are evictions and sweeps, for a few microseconds each; the writer task may wait.
        let mut timeouts = self.timeouts.write().unwrap_or_else(PoisonError::into_inner);
        let at = service.0 as usize;
        if timeouts.len() <= at {
            timeouts.resize(at + 1, Some(LONGEST_TIMEOUT));
        }
        if let Some(slot) = timeouts.get_mut(at) {
            *slot = timeout;
        }
    }

    fn is_expired(&self, service: ServiceId, used: u32, now: u32) -> bool {
        let timeouts = self.timeouts.read().unwrap_or_else(PoisonError::into_inner);
        match timeouts.get(service.0 as usize) {
            Some(None) => true,
            Some(Some(timeout)) => is_idle(used, now, *timeout),
            None => is_idle(used, now, LONGEST_TIMEOUT),
        }
    }

    /// Visits every pin of a service that was used within `timeout`, with the version that the client belongs to. A shard
    /// is locked for reading during `visit`, which must not call the table.
    pub fn for_each(
        &self,
        service: ServiceId,
        now: u64,
        timeout: Duration,
        mut visit: impl FnMut(ClientKey, Option<VersionId>),
    ) {
        let (now, timeout) = (seconds(now), seconds_up(timeout));
        for pin in &self.map {
            if pin.key().key.service == service && !is_idle(pin.key().used.load(Ordering::Relaxed), now, timeout) {
                visit(ClientKey::from_bytes(pin.key().key.client), pin.rest.home());
            }
        }
    }

    /// Removes expired pins and lets go of endpoints that are gone, in one part of the table. To be called about once a
    /// second; a ring is locked for some 50 microseconds at a time.
    pub fn sweep(&self, now: u64) {
        let now = seconds(now);
        for ring in &self.rings {
            let mut ring = lock(ring);
            for _ in 0..(ring.keys.len() / SWEEP_PART).max(SWEEP_PART) {
                let at = ring.swept;
                let Some(key) = ring.keys.get(at).copied() else {
                    ring.swept = 0;
                    break;
                };
                let found =
                    self.map.get(&key).map(|p| (p.key().used.load(Ordering::Relaxed), p.endpoint.health.is_gone()));
                match found {
                    Some((used, _)) if self.is_expired(key.service, used, now) => {
                        self.remove(key);
                        self.len.fetch_sub(1, Ordering::Relaxed);
                        ring.keys.swap_remove(at);
                        continue;
                    }
                    Some((_, true)) => {
                        if let Some(mut pin) = self.map.get_mut(&key)
                            && pin.endpoint.health.is_gone()
                        {
                            pin.endpoint = self.nowhere.clone();
                        }
                    }
                    _ => {}
                }
                ring.swept += 1;
            }
        }
    }

    /// A key that wasn't there a moment ago.
    fn insert(&self, new: Known, stored: Stored, now: u32) {
        let key = new.key;
        let mut ring = lock(self.ring(key));
        if let Some(mut known) = self.map.get_mut(&key) {
            known.key().used.store(now, Ordering::Relaxed);
            *known = stored;
            return;
        }
        let room = self
            .len
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |len| (len < self.max_entries).then_some(len + 1));
        if room.is_ok() {
            ring.keys.push(key);
        } else {
            let Some(seat) = self.make_room(&mut ring, key.neighbourhood(), now) else {
                self.refusals.fetch_add(1, Ordering::Relaxed);
                return;
            };
            *seat = key;
        }
        self.crowds.add(key.neighbourhood());
        self.map.insert(new, stored);
    }

    /// Removes one pin of the ring for a newcomer and tells its place in the ring.
    fn make_room<'a>(&self, ring: &'a mut Ring, newcomer: u64, now: u32) -> Option<&'a mut PinKey> {
        // The most crowded neighbourhood, and in it the longest idle pin.
        let mut worst: Option<(usize, (u32, u32))> = None;
        for _ in 0..SCAN.min(ring.keys.len()) {
            let at = ring.hand % ring.keys.len();
            ring.hand = at + 1;
            let key = *ring.keys.get(at)?;
            let Some(used) = self.map.get(&key).map(|p| p.key().used.load(Ordering::Relaxed)) else { continue };
            if self.is_expired(key.service, used, now) {
                self.remove(key);
                return ring.keys.get_mut(at);
            }
            let badness = (self.crowds.count(key.neighbourhood()), u32::MAX - used);
            if worst.is_none_or(|(_, w)| badness > w) {
                worst = Some((at, badness));
            }
        }
        let (at, (crowd, _)) = worst?;
        let seat = ring.keys.get_mut(at)?;
        if crowd <= self.crowds.count(newcomer) && seat.neighbourhood() != newcomer {
            return None;
        }
        self.remove(*seat);
        self.evictions.fetch_add(1, Ordering::Relaxed);
        Some(seat)
    }

    /// Under the lock of the key's ring.
    fn remove(&self, key: PinKey) {
        if self.map.remove(&key).is_some() {
            self.crowds.remove(key.neighbourhood());
        }
    }

    #[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a remainder by the length, not 0")]
    fn ring(&self, key: PinKey) -> &Mutex<Ring> {
        use std::hash::BuildHasher;
        &self.rings[self.ring_of.hash_one(key) as usize % self.rings.len()]
    }
}

impl PinKey {
    fn new(service: ServiceId, key: ClientKey) -> Self {
        Self { client: key.bytes(), service }
    }

    fn neighbourhood(self) -> u64 {
        ClientKey::from_bytes(self.client).neighbourhood()
    }
}

impl Stored {
    fn new(pin: Pin) -> Self {
        Self { rest: Packed::new(&pin), endpoint: pin.endpoint }
    }

    fn to_pin(&self) -> Pin {
        self.rest.to_pin(self.endpoint.clone())
    }
}

/// Nothing in a ring is ever half done when somebody panics, so a poisoned one is as good as any.
fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_idle(used: u32, now: u32, timeout: u32) -> bool {
    now.saturating_sub(used) > timeout
}

/// 136 years of them fit.
fn seconds(now: u64) -> u32 {
    u32::try_from(now / 1000).unwrap_or(u32::MAX)
}

fn seconds_up(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
