//! The split: weighted rendezvous hashing over the versions of a service.
//!
//! Each (salt, version, client) gives a uniform `u` from `SipHash-2-4`; the version with the smallest `-ln(u) / weight`
//! gets the client (highest random weight: Thaler & Ravishankar 1998; the weighted form is the exponential race). From
//! that follows the contract: raising one weight moves clients only to it, and nobody else moves. Comparisons are
//! exact: `-ln(u)` is a 64-bit fixed-point number and a weight an integer of millionths, and two versions compare by
//! cross-multiplying in 128 bits. So equal ratios give equal answers to the last bit, on every machine.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;
use siphasher::sip128::{Hasher128, SipHasher24 as SipHasher24x128};

use super::client_key::ClientKey;

/// A version's part of the traffic, in millionths. The share is weight / sum of the weights (Gateway API's meaning).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u64);

impl Weight {
    /// Nobody.
    pub const ZERO: Self = Self(0);
    /// An even part.
    pub const ONE: Self = Self(1_000_000);
    /// Millionths in 1.
    const UNIT: f64 = 1e6;
    /// The largest weight. 1e9 millionfold is 2^50, which leaves room for sums in 64 bits and products in 128.
    pub const MAX: f64 = 1e9;
    const LARGEST: u64 = 1_000_000_000_000_000;

    /// From a number of 0 to [`Self::MAX`], kept to six decimals. `None` for negative, NaN, infinite or larger ones,
    /// and for a positive number that six decimals would turn into 0.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie in 0..=1e15 before")]
    pub fn new(weight: f64) -> Option<Self> {
        if !(0.0..=Self::MAX).contains(&weight) {
            return None;
        }
        let millionths = (weight * Self::UNIT).round() as u64;
        if millionths == 0 && weight > 0.0 { None } else { Some(Self(millionths)) }
    }

    /// `self * 10^power`, if that is exact and not too large.
    #[must_use]
    pub fn times_ten_to(self, power: i32) -> Option<Self> {
        let factor = 10u64.checked_pow(power.unsigned_abs())?;
        let scaled = match power {
            0.. => self.0.checked_mul(factor)?,
            _ if self.0.is_multiple_of(factor) => self.0 / factor,
            _ => return None,
        };
        (scaled <= Self::LARGEST).then_some(Self(scaled))
    }

    /// Whether `self` of `sum` is a smaller share than `earlier` of `earlier_sum`; exact. Of a sum of 0 all shares are 0.
    #[must_use]
    pub fn is_smaller_share(self, sum: u64, earlier: Self, earlier_sum: u64) -> bool {
        if sum == 0 || earlier_sum == 0 {
            return sum == 0 && earlier_sum > 0 && !earlier.is_zero();
        }
        u128::from(self.0) * u128::from(earlier_sum) < u128::from(earlier.0) * u128::from(sum)
    }

    /// Nobody gets this version.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// As a plain number.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most 1e15, exact in an f64")]
    pub fn value(self) -> f64 {
        self.0 as f64 / Self::UNIT
    }
}

/// As a plain number, a whole one without a point.
impl Serialize for Weight {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number of 0 to 1e9")]
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let value = self.value();
        if value.fract() == 0.0 { to.serialize_u64(value as u64) } else { to.serialize_f64(value) }
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(from)?;
        Self::new(value).ok_or_else(|| serde::de::Error::custom(format!("{value} is no weight")))
    }
}

/// Of several weights, for [`Weight::is_smaller_share`]. At most 1,000 of them.
pub(super) fn sum<'a>(weights: impl Iterator<Item = &'a Weight>) -> u64 {
    weights.map(|w| w.0).sum()
}

/// The seed of a service's cohorts. Two services with one salt have the same canary users.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt([u8; 16]);

impl Salt {
    /// From a cohort name (by default the service's name) and an optional secret. With a secret, nobody outside can
    /// work out which address lands on which side.
    #[must_use]
    pub fn new(cohort: &str, secret: &str) -> Self {
        // Lengths first, so that ("ab", "c") and ("a", "bc") differ.
        let mut hasher = SipHasher24x128::new_with_keys(0x7065_7263_685f_7631, 0x636f_686f_7274_5f31);
        for part in [cohort, secret] {
            std::hash::Hasher::write(&mut hasher, &(part.len() as u64).to_le_bytes());
            std::hash::Hasher::write(&mut hasher, part.as_bytes());
        }
        Self(hasher.finish128().as_bytes())
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt(..)")
    }
}

/// The hash of one version: `SipHash-2-4` keyed by salt and version name, so that names which differ in one character
/// are as independent as any two.
#[derive(Clone, Copy, Debug)]
struct VersionHash(SipHasher24);

impl VersionHash {
    fn new(salt: Salt, version: &str) -> Self {
        let mut hasher = SipHasher24x128::new_with_key(&salt.0);
        std::hash::Hasher::write(&mut hasher, version.as_bytes());
        Self(SipHasher24::new_with_key(&hasher.finish128().as_bytes()))
    }

    fn draw(&self, key: ClientKey) -> Draw {
        Draw::from_hash(self.0.hash(&key.bytes()))
    }
}

/// `-ln(u)` in units of 2^-58: exponentially distributed with mean 2^58. The largest, `ln(2^54)` = 37.4, fits 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Draw(u64);

/// 2^58, the unit of [`Draw`].
const DRAW_UNIT: f64 = 288_230_376_151_711_744.0;

impl Draw {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "53 bits are exact in an f64; -ln(u) * 2^58 lies in 0..2^64"
    )]
    fn from_hash(hash: u64) -> Self {
        // The middle of one of 2^53 equal slices of (0, 1): never 0 or 1.
        let u = ((hash >> 11) as f64 + 0.5) * (1.0 / 9_007_199_254_740_992.0);
        // libm, not the platform's ln: the same bits on every machine.
        Self((-libm::log(u) * DRAW_UNIT) as u64)
    }

    /// Whether `self / weight` is smaller than `other / other_weight`.
    fn beats(self, weight: Weight, other: Self, other_weight: Weight) -> bool {
        u128::from(self.0) * u128::from(other_weight.0) < u128::from(other.0) * u128::from(weight.0)
    }

    #[expect(clippy::cast_precision_loss, reason = "for display: 53 bits are plenty")]
    fn value(self) -> f64 {
        self.0 as f64 / DRAW_UNIT
    }
}

/// The versions of one service with their weights.
#[derive(Clone, Debug)]
pub struct Split {
    sides: Vec<Side>,
    sum: u64,
}

#[derive(Clone, Debug)]
struct Side {
    name: Arc<str>,
    hash: VersionHash,
    weight: Weight,
}

impl Split {
    /// Versions keep their order: an index stands for a version everywhere else. At most 1,000 versions.
    #[must_use]
    pub fn new<'a>(salt: Salt, versions: impl IntoIterator<Item = (&'a str, Weight)>) -> Self {
        let sides: Vec<Side> = versions
            .into_iter()
            .map(|(name, weight)| Side { name: name.into(), hash: VersionHash::new(salt, name), weight })
            .collect();
        let sum = sides.iter().map(|s| s.weight.0).sum();
        Self { sides, sum }
    }

    /// The same versions with other weights, in order.
    #[must_use]
    pub fn with_weights(&self, weights: &[Weight]) -> Self {
        let sides: Vec<Side> = self.sides.iter().zip(weights).map(|(s, w)| Side { weight: *w, ..s.clone() }).collect();
        let sum = sides.iter().map(|s| s.weight.0).sum();
        Self { sides, sum }
    }

    /// The sum of all weights, for [`Weight::is_smaller_share`].
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// How many versions, those of weight 0 included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sides.len()
    }

    /// No version at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sides.is_empty()
    }

    /// The name of a version.
    #[must_use]
    pub fn name(&self, version: usize) -> Option<&Arc<str>> {
        self.sides.get(version).map(|s| &s.name)
    }

    /// The weight of a version.
    #[must_use]
    pub fn weight(&self, version: usize) -> Option<Weight> {
        self.sides.get(version).map(|s| s.weight)
    }

    /// All weights in order.
    #[must_use]
    pub fn weights(&self) -> Vec<Weight> {
        self.sides.iter().map(|s| s.weight).collect()
    }

    /// The share of a version, 0 to 1; 0 when all weights are 0.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for display")]
    pub fn share(&self, version: usize) -> f64 {
        match self.sides.get(version) {
            Some(s) if self.sum > 0 => s.weight.0 as f64 / self.sum as f64,
            _ => 0.0,
        }
    }

    /// The version that the split gives to `key`; `None` when all weights are 0.
    #[must_use]
    pub fn version_of(&self, key: ClientKey) -> Option<usize> {
        self.version_among(key, |_| true)
    }

    /// The same function over the versions that `may` admits: where a client of an empty version goes meanwhile.
    /// Versions of weight 0 are never chosen.
    #[must_use]
    pub fn version_among(&self, key: ClientKey, may: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best: Option<(usize, Draw, Weight)> = None;
        for (version, side) in self.sides.iter().enumerate() {
            if side.weight.is_zero() || !may(version) {
                continue;
            }
            let draw = side.hash.draw(key);
            // Strictly less: of two equal ones (chance 2^-53) the first in the list wins.
            if best.is_none_or(|(_, d, w)| draw.beats(side.weight, d, w)) {
                best = Some((version, draw, side.weight));
            }
        }
        best.map(|(version, ..)| version)
    }

    /// The version for one request when nobody is remembered: `roll` walks the cumulative shares, so a low-discrepancy
    /// sequence of rolls (see [`weyl`]) gives exact shares over short windows. `None` when no admitted version has
    /// weight.
    #[must_use]
    pub fn version_at(&self, roll: u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        let sum: u64 = self.sides.iter().enumerate().filter(|(i, _)| may(*i)).map(|(_, s)| s.weight.0).sum();
        // roll / 2^64 of the sum, rounded down.
        let mut point = u64::try_from((u128::from(roll) * u128::from(sum)) >> 64).ok()?;
        for (version, side) in self.sides.iter().enumerate().filter(|(i, _)| may(*i)) {
            if point < side.weight.0 {
                return Some(version);
            }
            point -= side.weight.0;
        }
        None
    }

    /// The smallest share of `version`, 0 to 1, at which `key` joins it, the other versions keeping their ratios among
    /// themselves. `None` when no other version has weight (everyone is on `version` at any share above 0).
    #[must_use]
    pub fn join_point(&self, version: usize, key: ClientKey) -> Option<f64> {
        let mine = self.sides.get(version)?.hash.draw(key).value();
        let others: f64 =
            self.sides.iter().enumerate().filter(|(i, _)| *i != version).map(|(_, s)| s.weight.value()).sum();
        let best = self
            .sides
            .iter()
            .enumerate()
            .filter(|(i, s)| *i != version && !s.weight.is_zero())
            .map(|(_, s)| s.hash.draw(key).value() / (s.weight.value() / others))
            .fold(f64::INFINITY, f64::min);
        // Joins once mine / share < best / (1 - share).
        best.is_finite().then(|| mine / (mine + best))
    }
}

/// The n-th point of the additive recurrence with the golden ratio, the one-dimensional sequence of lowest discrepancy
/// (Weyl; Knuth, TAOCP 3, 6.4): any window of n points is spread evenly to within O(log n / n).
#[must_use]
pub const fn weyl(n: u64, start: u64) -> u64 {
    start.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests;
