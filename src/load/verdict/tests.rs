use std::sync::Arc;

use super::*;
use crate::decide::stats::wilson;
use crate::load::outcome::{Bytes, Clients, Connections, Flips, Version};

/// Counts of a run in which each client sent one request.
fn counts(clients: &[(&str, u64)]) -> Counts {
    let n = clients.iter().map(|c| c.1).sum();
    let versions = clients.iter().map(|(name, hits)| Version {
        version: Arc::from(*name),
        clients: *hits,
        clients_share: wilson(*hits, n),
        requests: *hits,
        requests_share: wilson(*hits, n),
        errors: 0,
        latency_ms: None,
        latency_curve: Vec::new(),
    });
    Counts {
        seconds: 1.0,
        requests: n,
        requests_per_second: 0.0,
        answers: n,
        errors: 0,
        clients: Clients { served: n, unserved: 0, flipped: 0 },
        versions: versions.collect(),
        errors_by_kind: Default::default(),
        flips: Flips { count: 0, first: Vec::new() },
        connections: Connections { opened: 0, tls_handshakes: 0, stale_retries: 0, connect_ms: None },
        bytes: Bytes { sent: 0, received: 0 },
        schedule_lag_ms: None,
    }
}

fn rules(expect: &[&str]) -> Rules {
    Rules {
        expect: expect.iter().map(|e| e.parse().unwrap()).collect(),
        unit: Unit::Clients,
        alpha: 0.001,
        max_errors: 0.0,
        has_clients: true,
    }
}

fn holds(counts: &Counts, rules: &Rules, check: &str) -> bool {
    let findings = judge(counts, rules);
    let mut of = findings.iter().filter(|f| f.check == check).peekable();
    assert!(of.peek().is_some(), "{check} was not checked");
    of.all(|f| f.holds)
}

#[test]
fn a_share_within_chance_holds_and_a_doubled_one_does_not() {
    assert!(holds(&counts(&[("stable", 9030), ("canary", 970)]), &rules(&["canary=10%"]), "share"));
    assert!(!holds(&counts(&[("stable", 8000), ("canary", 2000)]), &rules(&["canary=10%"]), "share"));
}

#[test]
fn several_shares_are_tested_together() {
    let rules = rules(&["a=50%", "b=30%", "c=20%"]);

    let fits = judge(&counts(&[("a", 5000), ("b", 3010), ("c", 1990)]), &rules);

    assert_eq!(fits[0].test, Some("chi-square"));
    assert!(fits[0].holds);
    assert!(!holds(&counts(&[("a", 5000), ("b", 3300), ("c", 1700)]), &rules, "share"));
}

#[test]
fn a_version_beside_expectations_that_fill_100_percent_is_a_violation() {
    let rules = rules(&["a=50%", "b=50%"]);

    assert!(!holds(&counts(&[("a", 500), ("b", 499), ("c", 1)]), &rules, "share"));
}

#[test]
fn small_counts_are_tested_one_by_one_exactly() {
    let findings = judge(&counts(&[("a", 9), ("b", 1)]), &rules(&["a=90%", "b=10%"]));

    assert_eq!(findings.iter().filter(|f| f.test == Some("exact-binomial")).count(), 2);
}

#[test]
fn one_client_of_a_version_at_0_percent_is_a_violation() {
    assert!(!holds(&counts(&[("stable", 9999), ("canary", 1)]), &rules(&["canary=0%"]), "share"));
    assert!(holds(&counts(&[("stable", 9999)]), &rules(&["canary=0%"]), "share"));
}

#[test]
fn a_flip_is_a_violation_unless_requests_are_what_is_split() {
    let mut seen = counts(&[("stable", 900), ("canary", 100)]);
    seen.clients.flipped = 1;
    seen.flips.count = 2;

    assert!(!holds(&seen, &rules(&[]), "flips"));
    assert!(holds(&seen, &Rules { unit: Unit::Requests, ..rules(&[]) }, "flips"));
}

#[test]
fn errors_above_the_limit_are_a_violation() {
    let mut seen = counts(&[("stable", 1000)]);
    seen.errors = 10;

    assert!(!holds(&seen, &rules(&[]), "errors"));
    assert!(holds(&seen, &Rules { max_errors: 0.01, ..rules(&[]) }, "errors"));
}

#[test]
fn a_run_without_any_answer_is_a_violation() {
    assert!(!holds(&counts(&[]), &rules(&[]), "errors"));
}

#[test]
fn the_resolution_says_what_a_thousand_clients_can_show() {
    let resolution = resolution(&counts(&[("stable", 900), ("canary", 100)]), &rules(&["canary=10%"]));

    assert!(
        resolution[0].statement.starts_with("1,000 clients: a share of 10 % is known to ±1.9 points"),
        "{}",
        resolution[0].statement
    );
}

#[test]
fn an_expectation_that_is_none_says_what_to_write() {
    for text in ["canary", "canary=10", "=10%", "canary=110%", "canary=-1%", "canary=x%"] {
        assert!(text.parse::<Expectation>().unwrap_err().contains("as in canary=10%"), "{text}");
    }
    assert_eq!("a=b=2.5%".parse(), Ok(Expectation { version: "a=b".to_owned(), share: 0.025 }));
}
