//! The bodies of `POST /api/v1/services/{name}/{verb}`. What they mean is `decide::rollout`'s to say.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Error, MapAccess, Visitor};
use serde_json::Value;

use crate::config;
use crate::decide::reweigh::Amount;
use crate::decide::rollout::OnDecrease;
use crate::decide::rollout::verb::Verb;
use crate::state::model::Change;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::admin) enum Kind {
    Abort,
    Drain,
    Pause,
    Promote,
    Resume,
    Switch,
    Undo,
    Weights,
}

impl Kind {
    pub(in crate::admin) const ALL: [Self; 8] =
        [Self::Abort, Self::Drain, Self::Pause, Self::Promote, Self::Resume, Self::Switch, Self::Undo, Self::Weights];

    /// The last part of the path.
    pub(in crate::admin) const fn as_str(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Drain => "drain",
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Resume => "resume",
            Self::Switch => "switch",
            Self::Undo => "undo",
            Self::Weights => "weights",
        }
    }

    /// Keys beside those that every verb has.
    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Abort | Self::Pause => &[],
            Self::Drain => &["version", "deadline"],
            Self::Promote => &["version", "guarded", "force", "onDecrease", "deadline"],
            Self::Resume => &["skip"],
            Self::Switch => &["version", "force", "existing", "deadline"],
            Self::Undo => &["toRevision", "onDecrease", "deadline"],
            Self::Weights => &["weights", "closed", "onDecrease", "deadline"],
        }
    }
}

/// Of all verbs; [`Kind::keys`] says which may be there.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Body {
    generation: Option<u64>,
    reason: Option<String>,
    /// The person, where the client knows.
    who: Option<String>,
    dry_run: bool,
    weights: Option<Amounts>,
    closed: Option<bool>,
    on_decrease: Option<String>,
    existing: Option<String>,
    deadline: Option<String>,
    version: Option<String>,
    guarded: Option<bool>,
    force: Option<bool>,
    skip: Option<bool>,
    to_revision: Option<u64>,
}

/// What was asked for.
#[derive(Debug, PartialEq)]
pub(in crate::admin) struct Wanted {
    pub change: Change,
    pub is_dry: bool,
}

/// Longer ones don't belong into an audit log.
const LONGEST_REASON: usize = 1000;
const LONGEST_NAME: usize = 100;
/// As `onDecrease.deadline` in the configuration.
const DEADLINES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);
const DEADLINE: Duration = Duration::from_secs(3_600);

/// Reads a body; the error names the key.
pub(in crate::admin) fn parse(kind: Kind, service: &str, peer: SocketAddr, body: &[u8]) -> Result<Wanted, String> {
    let body: Body = match (kind, body) {
        (Kind::Weights, []) => {
            return Err("the body is empty; send JSON such as {\"weights\":{\"canary\":\"20%\"}}".to_owned());
        }
        (_, []) => Body::default(),
        // serde would take a list for a struct, in the order of its fields.
        (_, body) if body.trim_ascii_start().first() != Some(&b'{') => {
            return Err("the body is not as expected: write a JSON object".to_owned());
        }
        (_, body) => serde_json::from_slice(body).map_err(|error| format!("the body is not as expected: {error}"))?,
    };
    body.check_keys(kind)?;
    let reason = body.reason.as_deref().map(|r| words("reason", r, LONGEST_REASON)).transpose()?;
    let who = match body.who.as_deref().map(|w| words("who", w, LONGEST_NAME)).transpose()? {
        Some(name) if !name.is_empty() => format!("{name} ({peer})"),
        _ => peer.to_string(),
    };
    let (expected, is_dry) = (body.generation, body.dry_run);
    let verb = body.verb(kind)?;
    let change = Change { service: service.to_owned(), verb, expected, who, reason, what_if: false };
    Ok(Wanted { change, is_dry })
}

/// One line of bounded length.
fn words(key: &str, text: &str, longest: usize) -> Result<String, String> {
    if text.len() > longest {
        return Err(format!("{key}: longer than {longest} bytes; shorten it"));
    }
    Ok(text.replace(|c: char| c.is_control(), " ").trim().to_owned())
}

impl Body {
    fn check_keys(&self, kind: Kind) -> Result<(), String> {
        let there = [
            ("weights", self.weights.is_some()),
            ("closed", self.closed.is_some()),
            ("onDecrease", self.on_decrease.is_some()),
            ("existing", self.existing.is_some()),
            ("deadline", self.deadline.is_some()),
            ("version", self.version.is_some()),
            ("guarded", self.guarded.is_some()),
            ("force", self.force.is_some()),
            ("skip", self.skip.is_some()),
            ("toRevision", self.to_revision.is_some()),
        ];
        match there.iter().find(|(key, there)| *there && !kind.keys().contains(key)) {
            None => Ok(()),
            Some((key, _)) => {
                let known = [kind.keys(), &["generation", "reason", "who", "dryRun"]].concat().join(", ");
                Err(format!("{key}: no key of {}; its keys are {known}", kind.as_str()))
            }
        }
    }

    fn verb(self, kind: Kind) -> Result<Verb, String> {
        Ok(match kind {
            Kind::Abort => Verb::Abort,
            Kind::Drain => Verb::Drain {
                version: Some(self.needed_version("drain")?),
                deadline: self.deadline()?.unwrap_or(DEADLINE),
            },
            Kind::Pause => Verb::Pause,
            Kind::Promote => Verb::Promote {
                on_decrease: self.on_decrease()?,
                version: self.version,
                force: self.force.unwrap_or_default(),
                guarded: self.guarded.unwrap_or_default(),
            },
            Kind::Resume => Verb::Resume { skip: self.skip.unwrap_or_default() },
            Kind::Switch => Verb::Switch {
                version: self.needed_version("switch to")?,
                force: self.force.unwrap_or_default(),
                existing: self.existing()?,
            },
            Kind::Undo => Verb::Undo { to_revision: self.to_revision, on_decrease: self.on_decrease()? },
            Kind::Weights => {
                let on_decrease = self.on_decrease()?;
                let weights = self.weights.ok_or("weights: missing; write such as {\"canary\":\"20%\"}")?;
                Verb::SetWeights { amounts: weights.amounts()?, closed: self.closed.unwrap_or_default(), on_decrease }
            }
        })
    }

    fn needed_version(&self, what: &str) -> Result<String, String> {
        self.version.clone().ok_or_else(|| format!("version: missing; write the version to {what}"))
    }

    fn deadline(&self) -> Result<Option<Duration>, String> {
        let read = |text: &String| match config::duration(text) {
            Ok(deadline) if DEADLINES.contains(&deadline) => Ok(deadline),
            Ok(_) => Err(format!("deadline: {text} is out of range; write 1s to 168h")),
            Err(what) => Err(format!("deadline: {what}; write a duration such as 10m or 1h")),
        };
        self.deadline.as_ref().map(read).transpose()
    }

    /// `None`: as the service has it.
    fn on_decrease(&self) -> Result<Option<OnDecrease>, String> {
        match (self.on_decrease.as_deref(), self.deadline()?) {
            (None, None) => Ok(None),
            (Some("evict"), None) => Ok(Some(OnDecrease::Evict)),
            (Some("freeze"), None) => Ok(Some(OnDecrease::Freeze)),
            (Some("drain"), deadline) => Ok(Some(OnDecrease::Drain { deadline: deadline.unwrap_or(DEADLINE) })),
            (None | Some("evict" | "freeze"), Some(_)) => {
                Err("deadline: only for a drain; write onDecrease: drain beside it".to_owned())
            }
            (Some(other), _) => Err(format!("onDecrease: `{other}` is unknown; write evict, drain or freeze")),
        }
    }

    fn existing(&self) -> Result<OnDecrease, String> {
        match (self.existing.as_deref(), self.deadline()?) {
            (None | Some("evict"), None) => Ok(OnDecrease::Evict),
            (Some("drain"), deadline) => Ok(OnDecrease::Drain { deadline: deadline.unwrap_or(DEADLINE) }),
            (None | Some("evict"), Some(_)) => {
                Err("deadline: only for a drain; write existing: drain beside it".to_owned())
            }
            (Some(other), _) => Err(format!("existing: `{other}` is unknown; write evict or drain")),
        }
    }
}

/// An object's entries as they stand, so that a key written twice is seen twice.
#[derive(Debug)]
struct Amounts(Vec<(String, Value)>);

impl Amounts {
    fn amounts(self) -> Result<Vec<(String, Amount)>, String> {
        let amount = |(name, value): (String, Value)| {
            let amount = match &value {
                Value::String(text) => text.parse::<Amount>().map_err(|error| error.to_string()),
                // Infinite is what serde_json makes of nothing: 1e999 is an error of its own.
                Value::Number(number) => Amount::weight(number.as_f64().unwrap_or(f64::NAN)).map_err(|e| e.to_string()),
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                    Err(format!("`{value}` is no amount; write a weight such as 20 or a share such as \"20%\""))
                }
            };
            amount.map(|a| (name.clone(), a)).map_err(|error| format!("weights.{name}: {error}"))
        };
        self.0.into_iter().map(amount).collect()
    }
}

impl<'de> Deserialize<'de> for Amounts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Amounts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of version names and amounts in `weights`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Amounts, A::Error> {
                let mut entries: Vec<(String, Value)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if entries.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom(format!("weights.{name} is written twice; name it once")));
                    }
                    entries.push((name, value));
                }
                Ok(Amounts(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests;
