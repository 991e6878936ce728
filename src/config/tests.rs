//! What loading promises, on small texts. Whole files are in `tests/config`.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SMALL: &str = "
listeners:
- {name: http, address: '127.0.0.1:0'}
routes:
- {service: hello}
services:
- name: hello
  versions:
  - {name: stable, weight: 90, endpoints: ['127.0.0.1:1', 'http://127.0.0.1:2']}
  - {name: canary, weight: 10, endpoints: ['hello-canary.example:80']}
";

fn parsed(text: &str) -> Result<Loaded, Invalid> {
    parse(text, Path::new("/etc/perch"), &|name| match name {
        "PORT" => Some("8081".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    })
}

fn problems(text: &str) -> Vec<String> {
    parsed(text).expect_err("the text is invalid").problems.iter().map(Problem::to_string).collect()
}

/// [`SMALL`] with something else in place of `old`.
fn with(old: &str, new: &str) -> String {
    assert!(SMALL.contains(old), "{old} is in the text");
    SMALL.replacen(old, new, 1)
}

#[test]
fn a_small_file_loads_with_the_defaults() {
    let loaded = parsed(SMALL).unwrap();

    let config = loaded.config;
    assert_eq!(loaded.warnings, []);
    assert_eq!(config.admin, Admin::default());
    assert_eq!(config.listeners[0].timeouts, ListenerTimeouts::default());
    assert_eq!(config.routes[0].matches, [PathMatch::Prefix(String::new())]);
    assert_eq!(config.services[0].affinity, Affinity::default());
    assert_eq!(config.services[0].versions[0].endpoints[1], EndpointAddress::Ip("127.0.0.1:2".parse().unwrap()));
}

#[test]
fn a_dump_loads_again_and_is_the_same() {
    let config = parsed(SMALL).unwrap().config;

    let again = parsed(&dump(&config).to_string()).unwrap().config;

    assert_eq!(again, config);
}

#[test]
fn a_dump_has_no_secrets() {
    let text = with("- name: hello", "- name: hello\n  salt: very-secret") + "admin: {token: very-secret}\n";

    let config = parsed(&text).unwrap().config;

    assert_eq!(config.admin.token, Some(Secret("very-secret".into())));
    assert!(!dump(&config).to_string().contains("very-secret"));
    assert!(!format!("{config:?}").contains("very-secret"));
}

#[test]
fn variables_expand_and_may_become_numbers() {
    let text = with("127.0.0.1:0", "127.0.0.1:${PORT}") + "workers: '${CORES:-2}'\n";

    let config = parsed(&text).unwrap().config;

    assert_eq!(config.listeners[0].address.port(), 8081);
    assert_eq!(config.workers, Some(2));
}

#[test]
fn an_unset_variable_is_a_problem_that_names_the_key() {
    assert_eq!(
        problems(&with("127.0.0.1:0", "127.0.0.1:${NOPE}")),
        ["listeners[0].address: the environment variable NOPE is not set; set it, or write ${NOPE:-default} (line 3)"]
    );
}

#[test]
fn an_empty_variable_takes_the_default() {
    let config = parsed(&with("127.0.0.1:0", "127.0.0.1:${EMPTY:-7}")).unwrap().config;

    assert_eq!(config.listeners[0].address.port(), 7);
}

#[test]
fn a_doubled_dollar_is_a_literal_one() {
    let config = parsed(&with("- name: hello", "- name: hello\n  salt: a$${PORT}$b")).unwrap().config;

    assert_eq!(config.services[0].salt, Some(Secret("a${PORT}$b".into())));
}

#[test]
fn a_name_that_looks_like_a_number_stays_as_written() {
    let config = parsed(&with("name: canary", "name: 1.10")).unwrap().config;

    assert_eq!(&*config.services[0].versions[1].name, "1.10");
}

#[test]
fn durations_read_and_print() {
    for (text, millis) in [("500ms", 500), ("10s", 10_000), ("1h30m", 5_400_000), ("0s", 0), ("1m1ms", 60_001)] {
        assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        assert_eq!(scalar::duration_text(Duration::from_millis(millis)), text);
    }
    for text in ["", "s", "10", "1.5s", "10 s", "1d", "-1s", "30m1h", "1s1s", "9999999999s", "1S"] {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn paths_are_from_the_files_folder() {
    let text = with("'127.0.0.1:0'", "'127.0.0.1:0', tls: {certificates: [{certFile: a.pem, keyFile: /k.pem}]}");

    let config = parsed(&text).unwrap().config;

    let pair = &config.listeners[0].tls.as_ref().unwrap().certificates[0];
    assert_eq!(pair.cert_file, Path::new("/etc/perch/a.pem"));
    assert_eq!(pair.key_file, Path::new("/k.pem"));
}

#[test]
fn a_later_problem_is_placed_by_its_key_path() {
    let loaded = parsed(SMALL).unwrap();

    assert_eq!(loaded.places.problem("listeners[0].tls.certificates[0]", "x").line, Some(3));
    assert_eq!(loaded.places.problem("services[0].versions[1].weight", "x").line, Some(10));
}

#[test]
fn what_is_no_text_is_refused_in_words() {
    let of = |bytes: &[u8]| parse_bytes(bytes, Path::new("."), &|_| None).unwrap_err().to_string();

    assert!(of(b"").starts_with("is empty; "));
    assert!(of(b"# only a comment\n").starts_with("is empty; "));
    assert!(of(b"a: 1\n\xff\n").starts_with("not UTF-8 text; "));
    assert!(of(b"a: 1\nb: \0\n").starts_with("holds a NUL; "));
    assert!(of(b"listeners: []\n---\nlisteners: []\n").starts_with("a second document starts here; "));
    assert!(of(b"listeners:\n\t- name: x\n").contains("indent with spaces, not tabs"));
    assert!(of(&vec![b' '; tree::MAX_BYTES + 1]).starts_with("larger than 10 MiB; "));
    assert!(of("[".repeat(1_000_000).as_bytes()).contains("recursion limit"));
    assert!(of("- ".repeat(1_000).as_bytes()).starts_with("more than 64 levels deep; "));
    assert!(of(b"a: !secret b\n").contains("has no meaning here; remove it"));
    assert!(of(b"[a]: b\n").contains("stands where a key must"));
    assert!(of(b"hello\n").starts_with("\"hello\" stands where keys are expected; "));
}

#[test]
fn an_alias_bomb_is_refused_at_once() {
    let mut text = "a0: &a0 [x]\n".to_owned();
    for i in 1..40 {
        let of = format!("*a{}", i - 1);
        text.push_str(&format!("a{i}: &a{i} [{of}, {of}, {of}, {of}]\n"));
    }

    assert!(problems(&text)[0].starts_with("more than 1000000 values"));
}

#[test]
fn an_alias_may_repeat_a_value() {
    let text = with("endpoints: ['127.0.0.1:1'", "endpoints: &e ['127.0.0.1:1'")
        .replace("['hello-canary.example:80']", "*e")
        .replace("weight: 10", "weight: 0");

    let config = parsed(&text).unwrap().config;

    assert_eq!(config.services[0].versions[0].endpoints, config.services[0].versions[1].endpoints);
}

#[test]
fn problems_beyond_a_thousand_are_counted() {
    let text: String = (0..60_000).map(|i| format!("k{i}: 1\n")).collect();

    let problems = problems(&text);

    assert_eq!(problems.len(), 1_001);
    assert_eq!(problems[1_000], "59001 more problems; mend these first");
}

/// Lines that are nearly a configuration, so that random ones reach the decoders.
fn fragment() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "listeners:",
        "routes:",
        "services:",
        "versions:",
        "- ",
        "  ",
        "    ",
        "name: a",
        "weight: ",
        "-3",
        ".nan",
        "1e400",
        "address: ",
        "'127.0.0.1:0'",
        "\n",
        "\n- ",
        "\n  ",
        "\n  - ",
        "\n    ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        ": ",
        "&a ",
        "*a",
        "${X}",
        "${",
        "!!str ",
        "affinity: ",
        "None",
        "tls: ",
        "certificates: ",
        "hostnames: ",
        "matches: ",
        "path: ",
        "endpoints: ",
        "timeouts: ",
        "connect: ",
        "10s",
        "\"",
        "'",
        "|",
        ">",
        "#",
        "\u{0}",
        "\u{e9}",
        "? ",
        "---",
        "overrides: ",
        "service: a",
        "admin: ",
        "<<: ",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.concat())
}

/// A valid file with some of its bytes changed.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let whole = include_bytes!("../../config/perch.yaml");
    let edits = prop::collection::vec((0..whole.len(), 0_usize..12, prop::collection::vec(any::<u8>(), 0..6)), 1..6);
    edits.prop_map(move |edits| {
        let mut bytes = whole.to_vec();
        for (at, length, new) in edits {
            let start = at.min(bytes.len());
            let end = (start + length).min(bytes.len());
            bytes.splice(start..end, new);
        }
        bytes
    })
}

proptest! {
    #[test]
    fn no_bytes_panic_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse_bytes(&bytes, Path::new("."), &|_| None).is_err());
    }

    #[test]
    fn no_text_panics_the_parser(text in "\\PC{0,80}") {
        prop_assert!(parsed(&text).is_err());
    }

    #[test]
    fn nothing_like_a_configuration_panics_the_parser(text in fragment()) {
        drop(parsed(&text));
    }

    #[test]
    fn a_damaged_file_is_read_or_refused(bytes in damaged()) {
        if let Err(invalid) = parse_bytes(&bytes, Path::new("."), &|_| Some("x".into())) {
            prop_assert!(!invalid.problems.is_empty());
        }
    }

    #[test]
    fn every_duration_reads_as_it_prints(millis in 0_u64..1_000_000_000) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(scalar::duration(&scalar::duration_text(duration)), Ok(duration));
    }
}
