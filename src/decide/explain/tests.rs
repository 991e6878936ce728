use super::*;
use crate::decide::choose::endpoint_seed;
use crate::decide::{KeyPrefix, Recall, Salt, Split, Weight};

fn policy(weights: &[(&str, f64)]) -> Policy {
    let weights: Vec<_> = weights.iter().map(|(n, w)| (*n, Weight::new(*w).unwrap())).collect();
    Policy {
        split: Split::new(Salt::new("hello", ""), weights.iter().copied()),
        when_empty: WhenEmpty::Fallback,
        holds: vec![Hold::None; weights.len()],
        recalls: Vec::new(),
    }
}

fn client(n: u32) -> ClientKey {
    ClientKey::new(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into(), KeyPrefix::default())
}

fn candidate(name: &str) -> Candidate<'_> {
    Candidate { name, seed: endpoint_seed(name), is_usable: true, lets_in: true }
}

fn question<'a>(policy: &'a Policy, endpoints: &'a [Vec<Candidate<'a>>], n: u32) -> Question<'a> {
    Question { policy, client: Some(client(n)), pin: None, home: None, forced: None, now: 1000, endpoints }
}

#[test]
fn the_answer_is_the_one_of_the_data_path() {
    let policy = policy(&[("stable", 90.0), ("canary", 10.0)]);
    let endpoints = [vec![candidate("a"), candidate("b")], vec![candidate("c")]];

    for n in 0..500 {
        let verdict = explain(&question(&policy, &endpoints, n));

        let choice = policy.choose(Asker::Client(client(n), None), None, 1000, |_| true).unwrap();
        assert_eq!(verdict.version.as_deref(), policy.split.name(choice.version).map(|n| &**n));
        assert_eq!(verdict.why, Some(choice.why));
    }
}

#[test]
fn a_client_joins_exactly_at_its_join_point() {
    let policy = policy(&[("stable", 90.0), ("canary", 10.0)]);
    let endpoints = [vec![candidate("a")], vec![candidate("b")]];

    for n in 0..200 {
        let verdict = explain(&question(&policy, &endpoints, n));

        let is_canary = verdict.version.as_deref() == Some("canary");
        assert_eq!(is_canary, verdict.versions[1].join_point.unwrap() <= 0.1, "{verdict:?}");
    }
}

#[test]
fn an_empty_version_is_told_apart_from_a_closed_service() {
    let endpoints = [vec![], vec![]];
    let open = policy(&[("stable", 1.0), ("canary", 0.0)]);
    let closed = policy(&[("stable", 0.0), ("canary", 0.0)]);

    assert_eq!(explain(&question(&open, &endpoints, 1)).reason.as_deref(), Some("no-ready-endpoint"));
    assert_eq!(explain(&question(&closed, &endpoints, 1)).reason.as_deref(), Some("closed"));
}

#[test]
fn a_fallback_says_so() {
    let policy = policy(&[("stable", 1.0), ("canary", 1.0)]);
    let endpoints = [vec![candidate("a")], vec![]];
    let n = (0..).find(|n| policy.split.version_of(client(*n)) == Some(1)).unwrap();

    let verdict = explain(&question(&policy, &endpoints, n));

    assert_eq!((verdict.version.as_deref(), verdict.why), (Some("stable"), Some(Why::WhenEmpty)));
    assert!(verdict.reasoning.iter().any(|s| s.contains("no usable endpoint")), "{verdict:?}");
}

#[test]
fn a_pinned_client_keeps_its_endpoint_and_its_frozen_version() {
    let mut policy = policy(&[("stable", 0.0), ("canary", 1.0)]);
    policy.holds = vec![Hold::Frozen, Hold::None];
    let endpoints = [vec![candidate("a"), candidate("b")], vec![candidate("c")]];

    for name in ["a", "b"] {
        let verdict = explain(&Question { pin: Some((0, name)), home: Some(0), ..question(&policy, &endpoints, 1) });

        assert_eq!((verdict.version.as_deref(), verdict.why), (Some("stable"), Some(Why::FreezePin)));
        assert_eq!(verdict.endpoint.as_deref(), Some(name));
    }
}

#[test]
fn who_took_shelter_is_told_where_it_belongs() {
    let mut policy = policy(&[("stable", 1.0), ("canary", 0.0)]);
    policy.holds = vec![Hold::None, Hold::Until(2000)];
    let endpoints = [vec![candidate("a")], vec![candidate("b")]];

    let verdict = explain(&Question { pin: Some((0, "a")), home: Some(1), ..question(&policy, &endpoints, 1) });

    assert_eq!((verdict.version.as_deref(), verdict.why), (Some("canary"), Some(Why::DrainPin)));
    let told = "it was last served by stable and belongs to canary: that version is draining, so it stays there";
    assert!(verdict.reasoning.iter().any(|s| s.starts_with(told)), "{verdict:?}");
}

#[test]
fn who_is_held_by_the_split_before_a_drain_is_told_so() {
    let earlier = policy(&[("stable", 0.0), ("canary", 1.0)]).split;
    let mut policy = policy(&[("stable", 1.0), ("canary", 0.0)]);
    policy.recalls = vec![Recall { version: 1, earlier, there: 1, until: 1500 }];
    let endpoints = [vec![candidate("a")], vec![candidate("b")]];

    for (hold, why, word) in
        [(Hold::Until(2000), Why::DrainPin, "the drain began"), (Hold::Frozen, Why::FreezePin, "the weights changed")]
    {
        policy.holds = vec![Hold::None, hold];
        let verdict = explain(&question(&policy, &endpoints, 1));
        assert_eq!((verdict.version.as_deref(), verdict.why), (Some("canary"), Some(why)));
        let told =
            format!("nothing is remembered of it, as this perch started after {word}: before, the split gave it to");
        assert!(verdict.reasoning.iter().any(|s| s.starts_with(&told)), "{verdict:?}");

        let later = explain(&Question { now: 1500, ..question(&policy, &endpoints, 1) });
        assert_eq!((later.version.as_deref(), later.reasoning.len()), (Some("stable"), 2), "{later:?}");
    }
}

#[test]
fn without_affinity_nobody_has_a_version() {
    let policy = policy(&[("stable", 1.0), ("canary", 1.0)]);
    let endpoints = [vec![candidate("a")], vec![candidate("b")]];

    let verdict = explain(&Question { client: None, ..question(&policy, &endpoints, 1) });

    assert_eq!((verdict.version, verdict.reason), (None, None));
}

#[test]
fn shares_are_written_for_people() {
    let shown: Vec<_> =
        [0.0, 0.000_023_4, 0.012_34, 0.1, 0.123_4, 1.0].iter().map(|s| Percent(*s).to_string()).collect();

    assert_eq!(shown, ["0 %", "0.0023 %", "1.23 %", "10 %", "12.3 %", "100 %"]);
}

#[test]
fn each_route_says_why_it_lost() {
    let exact = [Hostname::Exact("hello.example".to_owned())];
    let wild = [Hostname::Wildcard("example".to_owned())];
    let (all, login) = ([PathMatch::Prefix(String::new())], [PathMatch::Exact("/login".to_owned())]);
    let shape = |name, hostnames, matches| RouteShape { name, hostnames, matches, is_on_listener: true };
    let routes = [
        shape("login", &exact, &login),
        shape("hello", &exact, &all),
        shape("wild", &wild, &all),
        shape("other", &[], &login),
        RouteShape { is_on_listener: false, ..shape("plain", &exact, &all) },
    ];

    let notes = explain_routes(&routes, "hello.example", "/version", Some(1));

    let notes: Vec<_> = notes.iter().map(|n| (n.chosen, n.note.as_str())).collect();
    assert_eq!(
        notes,
        [
            (false, "no path matches \"/version\""),
            (true, "matches by host hello.example and path prefix /"),
            (false, "would match by host *.example and path prefix /, but hello is more specific"),
            (false, "no path matches \"/version\""),
            (false, "does not hold on this listener"),
        ]
    );
}
