//! What a change of weights does to the clients of the versions that lose by it: `evict`, `drain` or `freeze`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Weights;
use crate::decide::split::{Weight, sum};

/// What a decreased weight does to the clients of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum OnDecrease {
    Evict,
    /// They stay while active, at most this long.
    Drain {
        #[serde(rename = "deadlineMillis", with = "millis")]
        deadline: Duration,
    },
    Freeze,
}

/// A version whose clients stay while they are active, although the split would take them away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    pub version: String,
    /// In milliseconds since 1970; `None`: for as long as they like (`freeze`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_millis: Option<u64>,
    /// Whose clients they are, for a perch that never saw them: the splits that gave more to the version. Oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
}

/// Weights that were in force until then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Earlier {
    /// In milliseconds since 1970.
    pub until_millis: u64,
    pub weights: Weights,
}

/// Splits that are kept of a drain. With two versions more than one only where the drain goes on while its version
/// grows beyond what it had, and falls again.
const EARLIER: usize = 16;

/// The drains after a change of weights from `before` to `next`, by version name.
pub(super) fn after(drains: &[Drain], before: &Weights, next: &Weights, rule: OnDecrease, at: u64) -> Vec<Drain> {
    if before == next {
        return drains.to_vec();
    }
    let (old, new) = (sum(before.values()), sum(next.values()));
    let fell = |name: &str, weight: Weight| {
        before.get(name).is_some_and(|earlier| weight.is_smaller_share(new, *earlier, old))
    };
    let drain = |(name, weight): (&String, &Weight)| {
        let kept = drains.iter().find(|d| d.version == *name);
        let fell = fell(name, *weight);
        let until_millis = match (rule, kept) {
            (OnDecrease::Evict, _) => return None,
            (OnDecrease::Freeze, _) if fell => None,
            (OnDecrease::Drain { deadline }, _) => Some(end(kept, fell, at, deadline)?),
            (OnDecrease::Freeze, kept) => kept?.until_millis,
        };
        let earlier = kept.map(|d| d.earlier.clone()).unwrap_or_default();
        let mut drain = Drain { version: name.clone(), until_millis, earlier };
        if fell {
            drain.remember(before, at);
        }
        Some(drain)
    };
    next.iter().filter_map(drain).collect()
}

/// The same when only the rule is another.
pub(super) fn under(drains: &[Drain], rule: OnDecrease, at: u64) -> Vec<Drain> {
    match rule {
        OnDecrease::Evict => Vec::new(),
        OnDecrease::Freeze => drains.to_vec(),
        OnDecrease::Drain { deadline } => drains
            .iter()
            .filter_map(|d| Some(Drain { until_millis: Some(end(Some(d), false, at, deadline)?), ..d.clone() }))
            .collect(),
    }
}

/// When a drain ends; `None` where there is none.
fn end(kept: Option<&Drain>, fell: bool, at: u64, deadline: Duration) -> Option<u64> {
    let until = at.saturating_add(to_millis(deadline));
    match kept.map(|d| d.until_millis) {
        Some(Some(earlier)) if fell => Some(until.max(earlier)),
        Some(Some(earlier)) => Some(earlier),
        // Frozen until now.
        Some(None) => Some(until),
        None => fell.then_some(until),
    }
}

impl Drain {
    /// Whoever these weights gave to the version may be on it, unless an earlier split says so already.
    fn remember(&mut self, weights: &Weights, at: u64) {
        if self.earlier.iter().any(|e| covers(&e.weights, weights, &self.version)) {
            return;
        }
        self.earlier.push(Earlier { until_millis: at, weights: weights.clone() });
        let surplus = self.earlier.len().saturating_sub(EARLIER);
        self.earlier.drain(..surplus);
    }
}

/// Whether `a` gives the version every client that `b` gives it. Exactly: it wins a client from each of the others, and
/// beside each of them its part is no smaller.
fn covers(a: &Weights, b: &Weights, version: &str) -> bool {
    let of = |weights: &Weights, name: &str| weights.get(name).copied().unwrap_or_default();
    let (own_a, own_b) = (of(a, version), of(b, version));
    if own_a.is_zero() || own_b.is_zero() {
        return own_b.is_zero();
    }
    a.keys().chain(b.keys()).filter(|other| **other != version).all(|other| {
        let sum_a = sum([own_a, of(a, other)].iter());
        let sum_b = sum([own_b, of(b, other)].iter());
        !own_a.is_smaller_share(sum_a, own_b, sum_b)
    })
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(super::to_millis(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decide::{ClientKey, Salt, Split};

    fn weights(of: &[u32]) -> Weights {
        let weight = |n: u32| Weight::new(n.into()).unwrap();
        std::iter::zip(["a", "b", "c"], of).map(|(name, n)| (name.to_owned(), weight(*n))).collect()
    }

    /// Numbers of the clients that the weights give to `a`.
    fn clients_of_a(weights: &Weights) -> Vec<u16> {
        let split = Split::new(Salt::new("s", ""), weights.iter().map(|(n, w)| (&**n, *w)));
        let key = |n: u16| ClientKey::from_bytes(u128::from(n).to_be_bytes());
        (0..500).filter(|n| split.version_of(key(*n)) == Some(0)).collect()
    }

    fn drain(earlier: &[&[u32]]) -> Drain {
        let mut drain = Drain { version: "a".into(), until_millis: None, earlier: Vec::new() };
        (0..).zip(earlier).for_each(|(at, of)| drain.remember(&weights(of), at));
        drain
    }

    #[test]
    fn a_split_that_adds_nobody_is_not_kept() {
        let kept = |earlier: &[&[u32]]| drain(earlier).earlier.iter().map(|e| e.until_millis).collect::<Vec<_>>();

        assert_eq!(kept(&[&[50, 50], &[40, 60], &[10, 90]]), [0]);
        assert_eq!(kept(&[&[10, 90], &[9, 91], &[20, 80], &[15, 85]]), [0, 2]);
        assert_eq!(kept(&[&[10, 10, 80], &[20, 20, 160], &[10, 9, 81]]), [0, 2]);
    }

    #[test]
    fn the_splits_of_a_drain_are_bounded() {
        let grows: Vec<[u32; 2]> = (1..100).map(|n| [n, 100]).collect();
        let grows: Vec<&[u32]> = grows.iter().map(|of| &of[..]).collect();

        let earlier = drain(&grows).earlier;

        assert_eq!((earlier.len(), earlier[EARLIER - 1].until_millis), (EARLIER, 98));
    }

    #[test]
    fn a_document_of_before_has_drains_without_splits() {
        let read: Drain = serde_json::from_str(r#"{"version":"a","untilMillis":7}"#).unwrap();

        assert_eq!(read, Drain { version: "a".into(), until_millis: Some(7), earlier: Vec::new() });
    }

    proptest! {
        #[test]
        fn a_split_covers_another_only_if_it_has_all_its_clients(
            a in prop::collection::vec(0u32..20, 1..4), b in prop::collection::vec(0u32..20, 1..4),
        ) {
            let (a, b) = (weights(&a), weights(&b));
            if covers(&a, &b, "a") {
                let of_a = clients_of_a(&a);
                prop_assert!(clients_of_a(&b).iter().all(|n| of_a.contains(n)));
            }
        }

        #[test]
        fn whoever_a_split_gave_is_among_those_of_the_kept_ones(
            splits in prop::collection::vec(prop::collection::vec(0u32..20, 3), 1..EARLIER),
        ) {
            let splits: Vec<&[u32]> = splits.iter().map(|of| &of[..]).collect();
            let kept: Vec<u16> = drain(&splits).earlier.iter().flat_map(|e| clients_of_a(&e.weights)).collect();
            for of in splits {
                prop_assert!(clients_of_a(&weights(of)).iter().all(|n| kept.contains(n)));
            }
        }
    }
}
