//! `POST /api/v1/services/{name}/weights`: the body's shape. What the weights mean is `decide::reweigh`'s to say.

use std::fmt;

use serde::Deserialize;
use serde::de::{Error, MapAccess, Visitor};
use serde_json::Value;

use crate::decide::reweigh::Amount;

/// `{"weights": {"canary": "20%"}, "generation": 7, "reason": "..."}`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    weights: Amounts,
    generation: Option<u64>,
    reason: Option<String>,
    /// All weights may be 0.
    #[serde(default)]
    closed: bool,
}

/// What was asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Wanted {
    pub amounts: Vec<(String, Amount)>,
    pub generation: Option<u64>,
    pub reason: Option<String>,
    pub closed: bool,
}

/// Longer ones don't belong into an audit log.
const LONGEST_REASON: usize = 1000;

/// Reads a body; the error names the key.
pub(super) fn parse(body: &[u8]) -> Result<Wanted, String> {
    let Body { weights, generation, reason, closed } = serde_json::from_slice(body).map_err(|error| match body {
        [] => "the body is empty; send JSON such as {\"weights\":{\"canary\":\"20%\"}}".to_owned(),
        _ => format!("the body is not as expected: {error}"),
    })?;
    if reason.as_ref().is_some_and(|r| r.len() > LONGEST_REASON) {
        return Err(format!("reason: longer than {LONGEST_REASON} bytes; shorten it"));
    }
    let mut amounts = Vec::with_capacity(weights.0.len());
    for (name, value) in weights.0 {
        let amount = match &value {
            Value::String(text) => text.parse::<Amount>().map_err(|error| error.to_string()),
            // Infinite is what serde_json makes of nothing: 1e999 is an error of its own.
            Value::Number(number) => Amount::weight(number.as_f64().unwrap_or(f64::NAN)).map_err(|e| e.to_string()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                Err(format!("`{value}` is no amount; write a weight such as 20 or a share such as \"20%\""))
            }
        };
        let amount = amount.map_err(|error| format!("weights.{name}: {error}"))?;
        amounts.push((name, amount));
    }
    Ok(Wanted { amounts, generation, reason, closed })
}

/// An object's entries as they stand, so that a key written twice is seen twice.
#[derive(Debug)]
struct Amounts(Vec<(String, Value)>);

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
mod tests {
    use super::*;

    fn error(body: &str) -> String {
        parse(body.as_bytes()).unwrap_err()
    }

    #[test]
    fn weights_and_shares_are_read() {
        let wanted = parse(br#"{"weights":{"a":20,"b":"30","c":"12.5%"},"generation":7,"reason":"why not"}"#).unwrap();

        let weight = |w| Amount::weight(w).unwrap();
        let expected = [("a", weight(20.0)), ("b", weight(30.0)), ("c", Amount::Share(0.125))];
        assert_eq!(wanted.amounts, expected.map(|(n, a)| (n.to_owned(), a)));
        assert_eq!((wanted.generation, wanted.reason.as_deref()), (Some(7), Some("why not")));
    }

    #[test]
    fn bad_bodies_are_refused_with_the_key() {
        for (body, says) in [
            ("", "empty"),
            ("{", "not as expected"),
            ("[]", "not as expected"),
            ("{}", "weights"),
            (r#"{"weights":7}"#, "weights"),
            (r#"{"weights":{"canary":-3}}"#, "weights.canary: -3 is negative"),
            (r#"{"weights":{"canary":"-3%"}}"#, "weights.canary: "),
            (r#"{"weights":{"canary":"140%"}}"#, "weights.canary: "),
            (r#"{"weights":{"canary":"NaN"}}"#, "weights.canary: "),
            (r#"{"weights":{"canary":"inf%"}}"#, "weights.canary: "),
            (r#"{"weights":{"canary":1e300}}"#, "weights.canary: "),
            (r#"{"weights":{"canary":"many"}}"#, "weights.canary: `many`"),
            (r#"{"weights":{"canary":null}}"#, "weights.canary: `null`"),
            (r#"{"weights":{"canary":true}}"#, "weights.canary: `true`"),
            (r#"{"weights":{"canary":1,"canary":2}}"#, "weights.canary is written twice"),
            (r#"{"weights":{"canary":1},"weight":2}"#, "unknown field `weight`"),
            (r#"{"weights":{"canary":1},"generation":-1}"#, "-1"),
            (r#"{"weights":{"canary":1}} x"#, "trailing"),
        ] {
            assert!(error(body).contains(says), "{body}: {}", error(body));
        }
    }

    #[test]
    fn a_reason_has_a_bound() {
        let body = format!(r#"{{"weights":{{"a":1}},"reason":"{}"}}"#, "x".repeat(LONGEST_REASON + 1));

        assert!(error(&body).starts_with("reason: "));
    }
}
