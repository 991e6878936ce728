//! One decision: the version of a client, in the order of precedence, and the endpoint inside it.
//!
//! override > drain or freeze pin > cohort > `whenEmpty`. Retries and ejection stay inside the version. The answer
//! carries its reason, and `explain` prints just that answer; it also carries the version that the client belongs to,
//! which an override and an empty version don't change.

use serde::{Deserialize, Serialize};

use super::client_key::ClientKey;
use super::split::Split;

/// What happens to the clients of a version without a usable endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenEmpty {
    /// The same function over the versions that have one, until it is back.
    #[default]
    Fallback,
    /// 503 for them; the others don't notice.
    Fail,
}

/// Whether clients pinned to a version stay when the split would take them off it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// They leave at once (`evict`).
    #[default]
    None,
    /// They stay while they are active, until this time (milliseconds of the caller's clock).
    Until(u64),
    /// They stay while they are active (`freeze`).
    Frozen,
}

impl Hold {
    const fn holds(self, now: u64) -> bool {
        match self {
            Self::None => false,
            Self::Until(deadline) => now < deadline,
            Self::Frozen => true,
        }
    }
}

/// What an allowed override header or cookie asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// This version: its name, or `always` for the override's own version.
    To(usize),
    /// Any but this version: `never`.
    Except(usize),
}

/// How a service decides; built once per snapshot.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Versions and weights.
    pub split: Split,
    /// For a version without usable endpoints.
    pub when_empty: WhenEmpty,
    /// One per version, in the split's order.
    pub holds: Vec<Hold>,
    /// For clients that nothing is remembered of; the earliest split first.
    pub recalls: Vec<Recall>,
}

/// A split that was in force before a version began to drain, and before anybody here could see its clients: in a
/// process that started later. Whom it gave to that version is held there like one who is remembered.
#[derive(Clone, Debug)]
pub struct Recall {
    /// The one that is held.
    pub version: usize,
    pub earlier: Split,
    /// The same version as an index into `earlier`, which may have versions that are gone.
    pub there: usize,
    /// From then on (milliseconds of the caller's clock) who is still active is remembered, and all others are new.
    pub until: u64,
}

/// Why a client got its version. Kebab-case, equal in the log, `explain` and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The split gives it to this client.
    Cohort,
    /// A per-request draw (`affinity: None`).
    Draw,
    /// It was there before, and the version is draining.
    DrainPin,
    /// It was there before, and the split is paused.
    FreezePin,
    /// An allowed header or cookie asked for it.
    Override,
    /// Its own version has no usable endpoint.
    WhenEmpty,
}

impl Why {
    /// The label used in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cohort => "cohort",
            Self::Draw => "draw",
            Self::DrainPin => "drain-pin",
            Self::FreezePin => "freeze-pin",
            Self::Override => "override",
            Self::WhenEmpty => "when-empty",
        }
    }
}

/// A decided version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index into the split.
    pub version: usize,
    /// The reason.
    pub why: Why,
    /// The version that the client belongs to: what it gets without an override, once that has endpoints. `None` when
    /// the service is closed, and for who isn't remembered.
    pub home: Option<usize>,
}

/// Nobody can serve this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoVersion {
    /// All weights are 0: the service is closed.
    Closed,
    /// This version, or with `fallback` every version, is without a usable endpoint.
    NoEndpoint(usize),
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    /// A client that is remembered by its key, and the version it belongs to ([`Choice::home`]), if it was seen before.
    Client(ClientKey, Option<usize>),
    /// One request of nobody in particular, with its roll (`affinity: None`).
    Request(u64),
}

impl Policy {
    /// Decides. `usable` tells whether a version has a usable endpoint; `now` is in milliseconds of the same clock as
    /// [`Hold::Until`].
    ///
    /// # Errors
    /// When the service is closed, or no endpoint is left where `when_empty` allows.
    pub fn choose(
        &self,
        asker: Asker,
        forced: Option<Forced>,
        now: u64,
        usable: impl Fn(usize) -> bool,
    ) -> Result<Choice, NoVersion> {
        let allowed = |v: usize| !matches!(forced, Some(Forced::Except(x)) if x == v);
        let among = |may: &dyn Fn(usize) -> bool| match asker {
            Asker::Client(key, _) => self.split.version_among(key, may),
            Asker::Request(roll) => self.split.version_at(roll, may),
        };
        let home = match asker {
            Asker::Client(key, known) => self.home(key, known, now),
            Asker::Request(_) => None,
        };
        let (own, why) = match (forced, asker) {
            (Some(Forced::To(version)), _) => (Some(version), Why::Override),
            (_, Asker::Client(..)) => match home {
                Some((version, why)) if allowed(version) => (Some(version), why),
                // `never` changes only those who would be there.
                Some(_) => (among(&allowed), Why::Override),
                None => (None, Why::Cohort),
            },
            (None, Asker::Request(_)) => (among(&allowed), Why::Draw),
            (Some(Forced::Except(_)), Asker::Request(_)) => {
                let (free, other) = (among(&|_| true), among(&allowed));
                (other, if other == free { Why::Draw } else { Why::Override })
            }
        };
        let home = home.map(|(version, _)| version);
        let Some(version) = own else { return Err(NoVersion::Closed) };
        if usable(version) {
            return Ok(Choice { version, why, home });
        }
        match self.when_empty {
            WhenEmpty::Fail => Err(NoVersion::NoEndpoint(version)),
            WhenEmpty::Fallback => among(&|v| allowed(v) && usable(v))
                .map(|version| Choice { version, why: Why::WhenEmpty, home })
                .ok_or(NoVersion::NoEndpoint(version)),
        }
    }

    /// The version of a client that nothing is remembered of, if a drain holds it: by the split before that began.
    #[must_use]
    pub fn recalled(&self, key: ClientKey, now: u64) -> Option<usize> {
        let holds = |r: &&Recall| now < r.until && self.is_held(r.version, now);
        let gave = |r: &&Recall| r.earlier.version_of(key) == Some(r.there);
        self.recalls.iter().filter(holds).find(gave).map(|r| r.version)
    }

    /// Where a client belongs: to the version that holds it, else to the one that the split gives it.
    fn home(&self, key: ClientKey, known: Option<usize>, now: u64) -> Option<(usize, Why)> {
        let held = known.map_or_else(|| self.recalled(key, now), |known| self.is_held(known, now).then_some(known));
        match held {
            Some(version) => Some((version, self.hold_reason(version))),
            None => self.split.version_of(key).map(|version| (version, Why::Cohort)),
        }
    }

    fn is_held(&self, version: usize, now: u64) -> bool {
        self.holds.get(version).is_some_and(|h| h.holds(now))
    }

    fn hold_reason(&self, version: usize) -> Why {
        match self.holds.get(version) {
            Some(Hold::Frozen) => Why::FreezePin,
            _ => Why::DrainPin,
        }
    }
}

/// The hash of an endpoint's stable identity (its address, or its pod), for [`super::places::Places`].
#[must_use]
pub fn endpoint_seed(identity: &str) -> u64 {
    siphasher::sip::SipHasher24::new().hash(identity.as_bytes())
}

/// Two different positions below `n` for the two random choices of `affinity: None` (Mitzenmacher 2001); the same
/// position twice when `n` is 1. `n` must not be 0.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "below n, which is a usize")]
pub fn two_choices(roll: u64, n: usize) -> (usize, usize) {
    let n = n as u64;
    let first = mix(roll) % n;
    let step = if n > 1 { 1 + mix(roll ^ 0x5851_f42d_4c95_7f2d) % (n - 1) } else { 0 };
    (first as usize, ((first + step) % n) as usize)
}

#[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
pub(super) const fn fold(key: ClientKey) -> u64 {
    let bits = u128::from_be_bytes(key.bytes());
    mix((bits >> 64) as u64) ^ bits as u64
}

/// The finalizer of `splitmix64` (Stafford's mix 13): every input bit flips every output bit with chance 1/2.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
