//! The arrows of ARCHITECTURE.md: which part of perch may know which.

use std::path::{Path, PathBuf};

/// Part -> parts of the crate that its `use` lines may name. What is not listed (cmd, runtime, demo) puts things together
/// and may know all.
const ARROWS: [(&str, &[&str]); 9] = [
    ("decide", &["decide"]),
    ("config", &["config", "decide"]),
    ("state", &["state", "config", "decide", "metrics", "reason"]),
    ("control", &["control", "state", "config", "decide", "endpoint_tls", "metrics", "readiness", "reason"]),
    ("proxy", &["proxy", "state", "config", "decide", "access_log", "endpoint_tls", "metrics", "pem", "reason"]),
    ("admin", &["admin", "control", "state", "config", "decide", "metrics", "readiness", "reason"]),
    ("client", &["client"]),
    ("load", &["load", "client", "decide"]),
    ("backend", &["backend"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The first words after `crate::`, braces opened.
fn named(text: &str) -> Vec<&str> {
    text.match_indices("crate::")
        .flat_map(|(at, word)| {
            let rest = &text[at + word.len()..];
            let group = rest.strip_prefix('{').map_or(rest, |r| r.split('}').next().unwrap_or(r));
            let most = if rest.starts_with('{') { usize::MAX } else { 1 };
            group
                .split(',')
                .take(most)
                .filter_map(|item| item.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next())
        })
        .filter(|word| !word.is_empty())
        .collect()
}

#[test]
fn no_part_knows_what_is_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (part, may) in ARROWS {
        let mut files = Vec::new();
        sources(&root.join(part), &mut files);
        files.extend([root.join(part).with_extension("rs")].into_iter().filter(|f| f.exists()));
        assert!(!files.is_empty(), "no sources of {part}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let uses = named(&text);
            // A part's own tests may borrow the load tester's client, such as its verifier that takes any certificate.
            let is_test = file.ends_with("tests.rs");
            let is_wrong = |u: &&&str| !(may.contains(u) || is_test && **u == "load");
            wrong.extend(uses.iter().filter(is_wrong).map(|u| format!("{}: {u}", file.display())));
        }
    }

    assert_eq!(wrong, [""; 0]);
}
