//! What is wrong with a configuration: each problem with its key path, its line, and what to write instead.
//!
//! Loading collects all of them; nothing here stops at the first. Other layers that look closer later (certificate
//! files, say) name a key path, and [`Places`] gives it the file and the line.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::model::Config;

/// One thing that is wrong, or (as a warning) looks wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as the user named it; empty when the text came from elsewhere.
    pub file: Arc<str>,
    /// `services[0].versions[1].weight`; empty for the whole file.
    pub path: String,
    pub line: Option<usize>,
    /// What is wrong; and what to do.
    pub message: String,
}

impl Problem {
    /// With neither file nor line; see [`Places::problem`] for one that has both.
    #[must_use]
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { file: "".into(), path: path.into(), line: None, message: message.into() }
    }
}

impl fmt::Display for Problem {
    /// `file.yaml:14: services[0].versions[1].weight: -3 is negative; write a number of 0 or more`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.file, self.line) {
            ("", _) => {}
            (file, Some(line)) => write!(f, "{file}:{line}: ")?,
            (file, None) => write!(f, "{file}: ")?,
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match (&*self.file, self.line) {
            ("", Some(line)) => write!(f, " (line {line})"),
            _ => Ok(()),
        }
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            file: &'a str,
            line: Option<usize>,
            path: &'a str,
            message: &'a str,
        }
        Shape { file: &self.file, line: self.line, path: &self.path, message: &self.message }.serialize(serializer)
    }
}

/// A configuration that holds.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// In the order of the file.
    pub warnings: Vec<Problem>,
    pub places: Places,
}

/// A configuration that doesn't. Displays as one problem per line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.problems))]
pub struct Invalid {
    /// In the order of the file; never empty.
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// Where each key that was read stands in the file.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub(super) file: Option<Arc<str>>,
    pub(super) lines: HashMap<String, usize>,
}

impl Places {
    /// A problem at `path`, with the file, and the line of the key or of the nearest one around it.
    #[must_use]
    pub fn problem(&self, path: impl Into<String>, message: impl Into<String>) -> Problem {
        let path = path.into();
        Problem {
            file: self.file.clone().unwrap_or_else(|| "".into()),
            line: self.line(&path),
            path,
            message: message.into(),
        }
    }

    fn line(&self, path: &str) -> Option<usize> {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = path.get(..path.rfind(['.', '['])?)?;
        }
    }
}
