//! The small layer between a located tree and valid values: each step names its key path, and goes on after a problem.
//!
//! A decoder takes the keys it knows from a [`Map`], then calls [`Map::finish`], which reports the rest. A `None` means
//! that a problem was reported, so the file as a whole is invalid and any stand-in value will do.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::problem::{Places, Problem};
use super::scalar::{self, shown};
use super::tree::{Entry, Located, MAX_BYTES, Value, is_null};

/// Problems that are kept; a file with more is not one that a person reads to the end.
const MAX_PROBLEMS: usize = 1_000;

/// What all decoders of one file share.
pub(super) struct Context<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    base_dir: &'a Path,
    found: RefCell<Found>,
}

/// What decoding found, apart from the values.
#[derive(Default)]
pub(super) struct Found {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    pub(super) places: Places,
    /// Problems beyond [`MAX_PROBLEMS`].
    dropped: usize,
    /// Bytes that variables expanded to.
    expanded: usize,
}

impl<'a> Context<'a> {
    pub(super) fn new(base_dir: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { env, base_dir, found: RefCell::default() }
    }

    pub(super) fn into_found(self) -> Found {
        let mut found = self.found.into_inner();
        // The file's order; a key's problems stay in the order they were found in.
        found.problems.sort_by_key(|p| p.line);
        found.warnings.sort_by_key(|p| p.line);
        if found.dropped > 0 {
            let more = format!("{} more problems; mend these first", found.dropped);
            found.problems.push(Problem::new("", more));
        }
        found
    }

    fn problem(&self, path: String, line: usize, message: String) {
        let mut found = self.found.borrow_mut();
        if found.problems.len() < MAX_PROBLEMS {
            found.problems.push(Problem { line: Some(line), ..Problem::new(path, message) });
        } else {
            found.dropped += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.found.borrow().problems.len() >= MAX_PROBLEMS
    }

    fn expand(&self, text: &str) -> Result<String, String> {
        let text = scalar::expand(text, self.env)?;
        let mut found = self.found.borrow_mut();
        found.expanded = found.expanded.saturating_add(text.len());
        if found.expanded > MAX_BYTES {
            return Err(format!("variables make the file larger than {} MiB; write shorter ones", MAX_BYTES >> 20));
        }
        Ok(text)
    }
}

/// A value with its key path.
#[derive(Clone)]
pub(super) struct Node<'a> {
    cx: &'a Context<'a>,
    path: String,
    line: usize,
    at: &'a Located,
}

/// A scalar's text after `${}` is expanded.
struct Text {
    text: String,
    /// In quotes and without a variable: text, never a number or a bool.
    literal: bool,
}

impl<'a> Node<'a> {
    pub(super) fn root(cx: &'a Context<'a>, at: &'a Located) -> Self {
        Self { cx, path: String::new(), line: at.line, at }
    }

    pub(super) const fn line(&self) -> usize {
        self.line
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn problem(&self, message: impl Into<String>) {
        self.cx.problem(self.path.clone(), self.line, message.into());
    }

    pub(super) fn warn(&self, message: impl Into<String>) {
        let warning = Problem { line: Some(self.line), ..Problem::new(self.path.clone(), message) };
        self.cx.found.borrow_mut().warnings.push(warning);
    }

    fn child(&self, path: String, line: usize, at: &'a Located) -> Self {
        self.cx.found.borrow_mut().places.lines.insert(path.clone(), line);
        Self { cx: self.cx, path, line, at }
    }

    /// Whether it is one scalar (for keys that take a word or a map).
    pub(super) const fn is_scalar(&self) -> bool {
        matches!(self.at.value, Value::Scalar { .. })
    }

    fn scalar(&self, wanted: &str) -> Option<Text> {
        match &self.at.value {
            Value::List(_) => self.problem(format!("is a list; write {wanted}")),
            Value::Map(_) => self.problem(format!("is a map; write {wanted}")),
            Value::Scalar { text, quoted: false } if is_null(text) => {
                self.problem(format!("has no value; write {wanted}, or leave the key out"));
            }
            Value::Scalar { text, quoted } if !text.contains("${") => {
                return Some(Text { text: text.clone(), literal: *quoted });
            }
            Value::Scalar { text, .. } => match self.cx.expand(text) {
                Ok(text) => return Some(Text { text, literal: false }),
                Err(message) => self.problem(message),
            },
        }
        None
    }

    /// A text read by `read`, whose error says what is wrong with it.
    pub(super) fn read<T>(&self, wanted: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.scalar(wanted)?.text;
        if text.is_empty() {
            self.problem(format!("is empty; write {wanted}"));
            return None;
        }
        read(&text).map_err(|what| self.problem(format!("{what}; write {wanted}"))).ok()
    }

    /// A text that must not stand in quotes, such as a number.
    fn read_plain<T>(&self, wanted: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let Text { text, literal } = self.scalar(wanted)?;
        if literal {
            self.problem(format!("{} is text, as it is in quotes; write {wanted}, without quotes", shown(&text)));
            return None;
        }
        read(&text).map_err(|what| self.problem(format!("{what}; write {wanted}"))).ok()
    }

    pub(super) fn text(&self, wanted: &str) -> Option<String> {
        self.read(wanted, |text| Ok(text.to_owned()))
    }

    pub(super) fn name(&self) -> Option<String> {
        self.read("1 to 63 letters, digits, -, _ or ., a letter or digit first", scalar::name)
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        self.read_plain("true or false", |text| match text {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            _ => Err(format!("{} is neither", shown(text))),
        })
    }

    /// A whole number in a range that fits `T`.
    pub(super) fn integer<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        let (low, high) = (range.start(), range.end());
        self.read_plain(&format!("a whole number from {low} to {high}"), |text| {
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(format!("{} is not a whole number", shown(text)));
            }
            match text.parse::<u64>() {
                Ok(number) if range.contains(&number) => {
                    T::try_from(number).map_err(|_| format!("{text} is out of range"))
                }
                _ if text.starts_with('-') => Err(format!("{} is negative", plain(text))),
                Ok(number) if number < *low => Err(format!("{} is too small", plain(text))),
                _ => Err(format!("{} is too large", plain(text))),
            }
        })
    }

    /// A number, `.nan` and `.inf` included, for `check` to judge.
    pub(super) fn number<T>(&self, wanted: &str, check: impl FnOnce(f64, &str) -> Result<T, String>) -> Option<T> {
        self.read_plain(wanted, |text| {
            let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
            let word = text.trim_start_matches(['+', '-']).trim_start_matches('.').to_ascii_lowercase();
            let number = match &*word {
                "nan" => f64::NAN,
                "inf" | "infinity" => sign * f64::INFINITY,
                _ => text.parse().map_err(|_| format!("{} is not a number", shown(text)))?,
            };
            check(number, &plain(text))
        })
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let [low, high] = [range.start(), range.end()].map(|d| scalar::duration_text(*d));
        self.read(&format!("a duration from {low} to {high}, such as 10s, 500ms, 5m or 1h"), |text| {
            let duration = scalar::duration(text)?;
            if duration < *range.start() {
                Err(format!("{text} is too short"))
            } else if duration > *range.end() {
                Err(format!("{text} is too long"))
            } else {
                Ok(duration)
            }
        })
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        self.read(&one_of(&names), |text| {
            words
                .iter()
                .find(|(name, _)| *name == text)
                .map(|(_, value)| *value)
                .ok_or_else(|| format!("{} is unknown", shown(text)))
        })
    }

    /// A path, from the folder of the config file.
    pub(super) fn file(&self) -> Option<PathBuf> {
        self.text("a file's path").map(|text| self.cx.base_dir.join(text))
    }

    /// The items of a list.
    pub(super) fn list(&self, wanted: &str) -> Option<Vec<Self>> {
        let what = match &self.at.value {
            Value::List(items) => {
                return Some(
                    items
                        .iter()
                        .enumerate()
                        .map(|(i, item)| self.child(format!("{}[{i}]", self.path), item.line, item))
                        .collect(),
                );
            }
            Value::Scalar { text, quoted: false } if is_null(text) => "has no value",
            Value::Scalar { .. } => "is one value, not a list",
            Value::Map(_) => "is a map, not a list",
        };
        self.problem(format!("{what}; write a list of {wanted}, each after \"- \""));
        None
    }

    /// The items of a list that must have one.
    pub(super) fn filled_list(&self, wanted: &str) -> Option<Vec<Self>> {
        let items = self.list(wanted)?;
        if items.is_empty() {
            self.problem(format!("is empty; write at least one of {wanted}"));
            return None;
        }
        Some(items)
    }

    pub(super) fn map(&self) -> Option<Map<'a>> {
        let what = match &self.at.value {
            Value::Map(entries) => return Some(Map::new(self.clone(), entries)),
            Value::Scalar { text, quoted: false } if is_null(text) => {
                self.problem("has no value; write keys below it, or leave it out");
                return None;
            }
            Value::Scalar { text, .. } => shown(text),
            Value::List(_) => "a list".into(),
        };
        self.problem(format!("{what} stands where keys are expected; write key: value"));
        None
    }
}

/// A map whose keys are being taken.
pub(super) struct Map<'a> {
    node: Node<'a>,
    entries: HashMap<&'a str, &'a Entry>,
    known: Vec<&'static str>,
}

impl<'a> Map<'a> {
    fn new(node: Node<'a>, entries: &'a [Entry]) -> Self {
        let mut first: HashMap<&str, &Entry> = HashMap::new();
        for entry in entries {
            match first.get(&*entry.key) {
                None => drop(first.insert(&entry.key, entry)),
                Some(one) => node.cx.problem(
                    key_path(&node.path, &entry.key),
                    entry.line,
                    format!("is there twice, first in line {}; keep one", one.line),
                ),
            }
        }
        Self { node, entries: first, known: Vec::new() }
    }

    /// A key that may be left out.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Node<'a>> {
        self.known.push(key);
        let entry = self.entries.remove(key)?;
        Some(self.node.child(key_path(&self.node.path, key), entry.line, &entry.value))
    }

    /// A problem of the map as a whole.
    pub(super) fn problem(&self, message: impl Into<String>) {
        self.node.problem(message);
    }

    /// All keys, whatever they are called: a map of the user's own words.
    pub(super) fn drain(&mut self) -> Vec<(String, Node<'a>)> {
        let mut left: Vec<_> = std::mem::take(&mut self.entries).into_iter().collect();
        left.sort_by_key(|(key, entry)| (entry.line, *key));
        left.into_iter()
            .map(|(key, entry)| {
                (key.to_owned(), self.node.child(key_path(&self.node.path, key), entry.line, &entry.value))
            })
            .collect()
    }

    /// A key that must be there.
    pub(super) fn need(&mut self, key: &'static str, wanted: &str) -> Option<Node<'a>> {
        let node = self.take(key);
        if node.is_none() {
            let message = format!("is missing; write {wanted}");
            self.node.cx.problem(key_path(&self.node.path, key), self.node.line, message);
        }
        node
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.take(key).and_then(|n| n.duration(range)).unwrap_or(default)
    }

    pub(super) fn integer<T: TryFrom<u64>>(&mut self, key: &'static str, default: T, range: RangeInclusive<u64>) -> T {
        self.take(key).and_then(|n| n.integer(range)).unwrap_or(default)
    }

    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        self.take(key).and_then(|n| n.boolean()).unwrap_or(default)
    }

    /// Reports the keys that nobody took.
    pub(super) fn finish(self) {
        let mut left: Vec<&Entry> = self.entries.into_values().collect();
        left.sort_by_key(|e| (e.line, &e.key));
        for entry in left {
            // Distances cost time that a file of a million keys would feel.
            let message = if self.node.cx.is_full() { String::new() } else { unknown_key(&entry.key, &self.known) };
            self.node.cx.problem(key_path(&self.node.path, &entry.key), entry.line, message);
        }
    }
}

/// A number as it stands in the file, cut.
fn plain(text: &str) -> String {
    text.chars().take(40).collect()
}

fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".into(),
        [word] => (*word).to_owned(),
        [words @ .., last] => format!("{} or {last}", words.join(", ")),
    }
}

/// With the known key that it is nearly: the same but for case and `_` or `-`, or a typo or two away.
fn unknown_key(key: &str, known: &[&str]) -> String {
    let folded = |k: &str| k.to_ascii_lowercase().replace(['_', '-'], "");
    let near = known
        .iter()
        // Longer ones are no typos, and distances cost the product of the lengths.
        .filter(|_| key.len() <= 40)
        .map(|k| (strsim::damerau_levenshtein(&folded(key), &folded(k)), k))
        .filter(|(distance, k)| *distance <= 2.min(k.len() / 3))
        .min_by_key(|(distance, _)| *distance);
    match near {
        Some((_, near)) => format!("unknown key; did you mean {near}?"),
        None => format!("unknown key; write {}", one_of(known)),
    }
}

fn key_path(parent: &str, key: &str) -> String {
    let simple =
        !key.is_empty() && key.len() <= 80 && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    match (parent, simple) {
        ("", true) => key.to_owned(),
        (_, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[{}]", shown(key)),
    }
}
