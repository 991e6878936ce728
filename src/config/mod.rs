//! The configuration: file shapes and their parsing into valid values.
//!
//! Parse, don't validate: a [`model::Config`] that exists is valid. All problems of a file are found in one run, each
//! with its key path and line. It does not know what is running, and opens no file but the configuration itself and
//! the admin token's.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

mod decode;
mod defaults;
mod dump;
mod file;
mod kubernetes;
mod listeners;
pub mod model;
mod problem;
mod rollout;
mod routes;
mod scalar;
mod services;
mod transport;
mod tree;

pub use dump::{REDACTED, dump};
pub use model::*;
pub use problem::{Invalid, Loaded, Places, Problem};
pub(crate) use rollout::percent;
pub(crate) use scalar::duration;

/// Loads a file. Paths in it are relative to its folder; `${VAR}` comes from the environment.
///
/// # Errors
/// With every problem of the file.
pub fn load(path: &Path) -> Result<Loaded, Invalid> {
    named(&path.to_string_lossy(), File::open(path), path.parent().unwrap_or(path))
}

/// As [`load`], from standard input. Paths are relative to the working folder.
///
/// # Errors
/// With every problem of the text.
pub fn load_stdin() -> Result<Loaded, Invalid> {
    named("stdin", Ok(std::io::stdin()), Path::new(""))
}

fn named(file: &str, source: std::io::Result<impl Read>, base_dir: &Path) -> Result<Loaded, Invalid> {
    let file: Arc<str> = file.into();
    let name = |problems: Vec<Problem>| -> Vec<Problem> {
        problems.into_iter().map(|p| Problem { file: Arc::clone(&file), ..p }).collect()
    };
    let loaded = read(source)
        .map_err(|message| only(Problem::new("", message)))
        .and_then(|bytes| parse_bytes(&bytes, base_dir, &|name| std::env::var(name).ok()));
    match loaded {
        Ok(mut loaded) => {
            loaded.places.file = Some(Arc::clone(&file));
            loaded.warnings = name(loaded.warnings);
            Ok(loaded)
        }
        Err(invalid) => Err(Invalid { problems: name(invalid.problems), warnings: name(invalid.warnings) }),
    }
}

/// As [`load`], from bytes: the problems carry no file.
///
/// # Errors
/// With every problem of the text.
pub fn parse_bytes(bytes: &[u8], base_dir: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Invalid> {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(text, base_dir, env),
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + good.iter().filter(|b| **b == b'\n').count();
            let message = "not UTF-8 text; save the file as UTF-8 (is this a YAML file?)";
            Err(only(Problem { line: Some(line), ..Problem::new("", message) }))
        }
    }
}

/// As [`load`], from text.
///
/// # Errors
/// With every problem of the text.
pub fn parse(text: &str, base_dir: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Invalid> {
    if text.len() > tree::MAX_BYTES {
        return Err(only(Problem::new("", too_large())));
    }
    // What is missing at the end is noticed on the line after it, which nobody finds.
    let last = text.lines().count().max(1);
    let place = |problem: Problem| Problem { line: problem.line.map(|line| line.min(last)), ..problem };
    let place_all = |problems: Vec<Problem>| problems.into_iter().map(place).collect::<Vec<_>>();
    let tree = tree::read(text).map_err(|e| only(place(Problem { line: e.line, ..Problem::new("", e.message) })))?;
    let cx = decode::Context::new(base_dir, env);
    let config = file::decode(&decode::Node::root(&cx, &tree));
    let found = cx.into_found();
    match config {
        Some(config) if found.problems.is_empty() => {
            Ok(Loaded { config, warnings: place_all(found.warnings), places: found.places })
        }
        None if found.problems.is_empty() => {
            // A decoder gave up without a word: a bug of perch, but no reason to fall.
            Err(only(Problem::new("", "can't be read, and perch can't say why; please report it with the file")))
        }
        _ => Err(Invalid { problems: place_all(found.problems), warnings: place_all(found.warnings) }),
    }
}

fn only(problem: Problem) -> Invalid {
    Invalid { problems: vec![problem], warnings: Vec::new() }
}

fn too_large() -> String {
    format!("larger than {} MiB; write a smaller file", tree::MAX_BYTES >> 20)
}

fn read(source: std::io::Result<impl Read>) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let bound = tree::MAX_BYTES as u64 + 1;
    match source.and_then(|source| source.take(bound).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() > tree::MAX_BYTES => Err(too_large()),
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => Err("no such file; check the path".into()),
        Err(error) if error.kind() == ErrorKind::IsADirectory => Err("a folder; write the path of a YAML file".into()),
        Err(error) => Err(format!("can't be read: {error}; check the path and its permissions")),
    }
}

#[cfg(test)]
mod tests;
