//! A request to the API server, taken apart, and the selectors in it.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::Value;

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) method: String,
    /// `endpointslices`, `pods`, `services`.
    pub(super) kind: String,
    pub(super) namespace: String,
    /// Empty: the collection.
    pub(super) name: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) accept: String,
    pub(super) token: String,
}

impl Asked {
    pub(super) fn parse(line: &str, accept: String, token: String) -> Self {
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut parts = path.split('/').skip_while(|part| *part != "namespaces").skip(1).map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        Self {
            at: Instant::now(),
            method: method.into(),
            namespace: part(),
            kind: part(),
            name: part(),
            query: query.split('&').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.into(), decode(v))).collect(),
            accept,
            token,
        }
    }

    pub(super) fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|w| w == "true")
    }

    /// A read of perch's, not a write of the test's.
    pub(super) fn is_list(&self) -> bool {
        self.method == "GET" && self.name.is_empty() && !self.is_watch()
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex: String = rest.by_ref().take(2).map(char::from).collect();
            bytes.push(u8::from_str_radix(&hex, 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// What a list or watch is narrowed to.
#[derive(Clone, Debug)]
pub(super) enum Selector {
    All,
    HasLabel(String),
    /// `key in (a,b)`.
    LabelIn(String, Vec<String>),
    Name(String),
}

impl Selector {
    pub(super) fn of(asked: &Asked) -> Self {
        if let Some(field) = asked.query.get("fieldSelector") {
            return Self::Name(field.strip_prefix("metadata.name=").unwrap().into());
        }
        match asked.query.get("labelSelector") {
            None => Self::All,
            Some(label) => match label.split_once(" in (") {
                None => Self::HasLabel(label.clone()),
                Some((key, values)) => {
                    let values = values.strip_suffix(')').unwrap().split(',').map(str::to_owned);
                    Self::LabelIn(key.into(), values.collect())
                }
            },
        }
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        match self {
            Self::All => true,
            Self::HasLabel(key) => metadata["labels"].get(key).is_some(),
            Self::LabelIn(key, values) => {
                metadata["labels"].get(key).and_then(Value::as_str).is_some_and(|v| values.iter().any(|x| x == v))
            }
            Self::Name(name) => metadata["name"] == **name,
        }
    }
}
