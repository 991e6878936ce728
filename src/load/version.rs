//! Which version answered: read from the response, never guessed.
//!
//! Version names become small numbers, the same ones in all threads, so that the path of a response compares bytes and
//! allocates nothing.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a response says which version it came from.
#[derive(Clone, Debug)]
pub enum VersionFrom {
    /// A header field, by its lower-case name.
    Header(String),
    /// A JSON pointer into the body.
    Json(String),
    /// The first group of a pattern, or all of its match, in the body.
    Regex(regex::bytes::Regex),
    /// The status code.
    Status,
    /// Not asked for: a plain load test.
    Nothing,
}

/// What perch adds to responses.
pub const DEFAULT_HEADER: &str = "perch-version";

impl FromStr for VersionFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("header", name) => http::HeaderName::from_bytes(name.as_bytes())
                .map(|n| Self::Header(n.as_str().to_owned()))
                .map_err(|_| format!("{name:?} is not a header name; write header:perch-version")),
            ("json", pointer) if pointer.is_empty() || pointer.starts_with('/') => Ok(Self::Json(pointer.to_owned())),
            ("json", pointer) => Err(format!("{pointer:?} does not begin with a slash; write json:/version")),
            ("regex", pattern) => {
                regex::bytes::Regex::new(pattern).map(Self::Regex).map_err(|e| format!("not a pattern: {e}"))
            }
            ("status", "") => Ok(Self::Status),
            ("none", "") => Ok(Self::Nothing),
            _ => Err("write header:NAME, json:/POINTER, regex:PATTERN, status or none".to_owned()),
        }
    }
}

impl std::fmt::Display for VersionFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Json(pointer) => write!(f, "json:{pointer}"),
            Self::Regex(pattern) => write!(f, "regex:{pattern}"),
            Self::Status => f.write_str("status"),
            Self::Nothing => f.write_str("none"),
        }
    }
}

impl VersionFrom {
    /// The body has to be kept until it is complete.
    #[must_use]
    pub const fn needs_body(&self) -> bool {
        matches!(self, Self::Json(_) | Self::Regex(_))
    }

    /// The version in a complete response. `header` looks a field up by its lower-case name.
    #[must_use]
    pub fn read<'a>(
        &self,
        status: u16,
        header: impl FnOnce(&str) -> Option<&'a [u8]>,
        body: &[u8],
        names: &mut Names,
    ) -> Option<VersionId> {
        match self {
            Self::Header(name) => header(name).and_then(|value| names.id(value.trim_ascii())),
            Self::Json(pointer) => {
                let json: serde_json::Value = serde_json::from_slice(body).ok()?;
                match json.pointer(pointer)? {
                    serde_json::Value::String(text) => names.id(text.as_bytes()),
                    serde_json::Value::Null => None,
                    other => names.id(other.to_string().as_bytes()),
                }
            }
            Self::Regex(pattern) => {
                let found = pattern.captures(body)?;
                names.id(found.get(1).or_else(|| found.get(0))?.as_bytes())
            }
            Self::Status => names.id(status.to_string().as_bytes()),
            Self::Nothing => names.id(b"all"),
        }
    }
}

/// A version, as a number that all threads of a run share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionId(pub u16);

impl VersionId {
    /// As an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// More names than this are no versions: the pattern takes something that differs from response to response.
pub const MOST_VERSIONS: usize = 500;

/// All names of a run, in order of appearance.
#[derive(Clone, Debug, Default)]
pub struct AllNames(Arc<Mutex<Vec<Arc<str>>>>);

impl AllNames {
    /// The names so far; an index is a [`VersionId`].
    #[must_use]
    pub fn list(&self) -> Vec<Arc<str>> {
        // Nothing panics while the lock is held, and a list of names is never half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of `name`, a new one if needed; `None` when there are too many.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<VersionId> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match all.iter().position(|n| **n == *name) {
            Some(at) => at,
            None if all.len() < MOST_VERSIONS => {
                all.push(name.into());
                all.len() - 1
            }
            None => return None,
        };
        u16::try_from(at).ok().map(VersionId)
    }
}

/// A thread's view of the names: the lock is taken only for a name it has not met.
#[derive(Debug)]
pub struct Names {
    all: AllNames,
    known: Vec<(Box<[u8]>, VersionId)>,
    too_many: bool,
}

impl Names {
    /// Nothing met yet.
    #[must_use]
    pub const fn new(all: AllNames) -> Self {
        Self { all, known: Vec::new(), too_many: false }
    }

    /// The number of a version; `None` for an empty name and when there are more than [`MOST_VERSIONS`].
    pub fn id(&mut self, name: &[u8]) -> Option<VersionId> {
        if let Some((_, id)) = self.known.iter().find(|(n, _)| **n == *name) {
            return Some(*id);
        }
        if name.is_empty() {
            return None;
        }
        let Some(id) = self.all.id(&String::from_utf8_lossy(name)) else {
            self.too_many = true;
            return None;
        };
        self.known.push((name.into(), id));
        Some(id)
    }

    /// A name was refused because there are too many.
    #[must_use]
    pub const fn too_many(&self) -> bool {
        self.too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(from: &str, status: u16, header: Option<&'static [u8]>, body: &[u8]) -> Option<String> {
        let all = AllNames::default();
        let id = from.parse::<VersionFrom>().unwrap().read(status, |_| header, body, &mut Names::new(all.clone()))?;
        Some(all.list()[id.index()].to_string())
    }

    #[test]
    fn each_source_gives_its_version() {
        assert_eq!(read("header:perch-version", 200, Some(b" canary "), b""), Some("canary".to_owned()));
        assert_eq!(read("json:/a/version", 200, None, br#"{"a":{"version":"2.0.0"}}"#), Some("2.0.0".to_owned()));
        assert_eq!(read("json:/v", 200, None, br#"{"v":2}"#), Some("2".to_owned()));
        assert_eq!(read("regex:v=(\\d+)", 200, None, b"x v=17 y"), Some("17".to_owned()));
        assert_eq!(read("regex:v\\d", 200, None, b"x v2 y"), Some("v2".to_owned()));
        assert_eq!(read("status", 204, None, b""), Some("204".to_owned()));
    }

    #[test]
    fn what_is_not_there_is_no_version() {
        assert_eq!(read("header:perch-version", 200, None, b""), None);
        assert_eq!(read("header:perch-version", 200, Some(b""), b""), None);
        assert_eq!(read("json:/version", 200, None, b"<html>"), None);
        assert_eq!(read("json:/version", 200, None, br#"{"version":null}"#), None);
        assert_eq!(read("regex:v=(\\d+)", 200, None, b"v=x"), None);
    }

    #[test]
    fn the_same_name_has_the_same_number_in_every_thread() {
        let all = AllNames::default();
        let (mut one, mut two) = (Names::new(all.clone()), Names::new(all.clone()));

        let stable = one.id(b"stable");
        two.id(b"canary");

        assert_eq!(two.id(b"stable"), stable);
        assert_eq!(all.list().len(), 2);
    }

    #[test]
    fn a_pattern_that_differs_per_response_is_noticed() {
        let mut names = Names::new(AllNames::default());

        for n in 0..=MOST_VERSIONS {
            names.id(n.to_string().as_bytes());
        }

        assert!(names.too_many());
    }

    #[test]
    fn a_wrong_source_says_what_to_write() {
        assert_eq!(
            "json:version".parse::<VersionFrom>().unwrap_err(),
            "\"version\" does not begin with a slash; write json:/version"
        );
        assert!("cookie:x".parse::<VersionFrom>().unwrap_err().starts_with("write header:NAME"));
    }
}
