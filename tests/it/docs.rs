//! What the documents say about the tests is true: each test that a table names exists.

use std::collections::BTreeSet;
use std::path::Path;

/// Names of functions in every Rust file below `folder`.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let after_fn = text.split("fn ").skip(1).filter_map(|rest| rest.split_once('('));
            names.extend(after_fn.map(|(name, _)| name.trim().to_owned()));
        }
    }
}

/// The names of all functions, tests among them.
fn known(root: &Path) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    functions(&root.join("src"), &mut known);
    functions(&root.join("tests"), &mut known);
    known
}

#[test]
fn every_promise_about_security_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known = known(root);
    let text = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let (_, promises) = text.split_once("## What perch promises").unwrap();
    let (promises, _) = promises.split_once("\n## ").unwrap();
    let promises: Vec<&str> = promises.split("\n- ").skip(1).collect();

    let mut wrong = Vec::new();
    for promise in &promises {
        let tests = promise.rsplit_once('[').map_or("", |(_, rest)| rest.split(']').next().unwrap());
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        let title = promise.lines().next().unwrap();
        wrong.extend(named.iter().filter(|t| !known.contains(**t)).map(|t| format!("{title}: no test {t}")));
        if named.is_empty() {
            wrong.push(format!("{title}: no test at all"));
        }
    }

    assert!(promises.len() > 15, "{}", promises.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_test_that_the_reliability_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known = known(root);
    let table = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let rows: Vec<&str> = table.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| # ")).collect();

    let mut missing = Vec::new();
    let mut bare = Vec::new();
    for row in &rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [number, .., answer, tests] = cells.as_slice() else { panic!("not a row: {row}") };
        let named: Vec<&str> = tests.split('`').filter(|t| t.contains('_')).collect();
        missing.extend(named.iter().filter(|t| !known.contains(**t)).map(|t| format!("{number}: {t}")));
        if named.is_empty() && !answer.contains("**Open**") {
            bare.push(number.trim());
        }
    }

    assert!(rows.len() > 100, "{}", rows.len());
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
    // Rows whose answer needs no test of its own, by the words in them.
    assert_eq!(bare, ["I7"]);
}
