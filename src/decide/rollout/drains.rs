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
}

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
            (OnDecrease::Drain { deadline }, _) => return under_deadline(name, kept, fell, at, deadline),
            (OnDecrease::Freeze, kept) => kept?.until_millis,
        };
        Some(Drain { version: name.clone(), until_millis })
    };
    next.iter().filter_map(drain).collect()
}

/// The same when only the rule is another.
pub(super) fn under(drains: &[Drain], rule: OnDecrease, at: u64) -> Vec<Drain> {
    match rule {
        OnDecrease::Evict => Vec::new(),
        OnDecrease::Freeze => drains.to_vec(),
        OnDecrease::Drain { deadline } => {
            drains.iter().filter_map(|d| under_deadline(&d.version, Some(d), false, at, deadline)).collect()
        }
    }
}

fn under_deadline(version: &str, kept: Option<&Drain>, fell: bool, at: u64, deadline: Duration) -> Option<Drain> {
    let until = at.saturating_add(to_millis(deadline));
    let until = match kept.map(|d| d.until_millis) {
        Some(Some(earlier)) if fell => until.max(earlier),
        Some(Some(earlier)) => earlier,
        // Frozen until now.
        Some(None) => until,
        None if fell => until,
        None => return None,
    };
    Some(Drain { version: version.to_owned(), until_millis: Some(until) })
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
