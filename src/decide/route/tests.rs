use proptest::prelude::*;

use super::*;

fn exact(host: &str) -> Hostname {
    Hostname::Exact(host.to_owned())
}

fn wildcard(suffix: &str) -> Hostname {
    Hostname::Wildcard(suffix.to_owned())
}

fn path(value: &str) -> PathMatch {
    PathMatch::Exact(value.to_owned())
}

fn prefix(value: &str) -> PathMatch {
    PathMatch::Prefix(value.to_owned())
}

type Routes = Vec<(Vec<Hostname>, Vec<PathMatch>)>;

fn table(routes: &Routes) -> RouteTable {
    RouteTable::new(routes.iter().enumerate().map(|(at, (hosts, paths))| (&hosts[..], &paths[..], at)))
}

#[test]
fn an_exact_host_wins_over_wildcards_and_the_longest_wildcard_over_shorter_ones() {
    let table = table(&vec![
        (vec![], vec![]),
        (vec![wildcard("example.com")], vec![]),
        (vec![wildcard("a.example.com")], vec![]),
        (vec![exact("x.a.example.com")], vec![]),
    ]);

    assert_eq!(table.find("x.a.example.com", "/"), Some(3));
    assert_eq!(table.find("y.a.example.com", "/"), Some(2));
    assert_eq!(table.find("p.q.example.com", "/"), Some(1));
    assert_eq!(table.find("other.example", "/"), Some(0));
}

#[test]
fn a_wildcard_needs_a_label_in_front_and_ends_at_a_dot() {
    let table = table(&vec![(vec![wildcard("example.com")], vec![])]);

    assert_eq!(table.find("example.com", "/"), None);
    assert_eq!(table.find("badexample.com", "/"), None);
    assert_eq!(table.find("a.b.example.com", "/"), Some(0));
}

#[test]
fn hosts_match_in_any_case_and_with_a_trailing_dot() {
    let table = table(&vec![(vec![exact("hello.example")], vec![]), (vec![wildcard("wild.example")], vec![])]);

    assert_eq!(table.find("HELLO.Example.", "/"), Some(0));
    assert_eq!(table.find("A.WILD.example", "/"), Some(1));
}

#[test]
fn paths_do_not_match_in_another_case() {
    let table = table(&vec![(vec![], vec![prefix("/a"), path("/b")])]);

    assert_eq!(table.find("h", "/A"), None);
    assert_eq!(table.find("h", "/B"), None);
}

#[test]
fn an_exact_path_wins_over_prefixes_and_the_longest_prefix_over_shorter_ones() {
    let table = table(&vec![
        (vec![], vec![prefix("")]),
        (vec![], vec![prefix("/a")]),
        (vec![], vec![prefix("/a/b")]),
        (vec![], vec![path("/a/b")]),
    ]);

    assert_eq!(table.find("h", "/a/b"), Some(3));
    assert_eq!(table.find("h", "/a/b/"), Some(2));
    assert_eq!(table.find("h", "/a/b/c"), Some(2));
    assert_eq!(table.find("h", "/a/bc"), Some(1));
    assert_eq!(table.find("h", "/ab"), Some(0));
}

#[test]
fn prefixes_match_whole_elements_only() {
    let table = table(&vec![(vec![], vec![prefix("/a")])]);

    assert_eq!(table.find("h", "/a"), Some(0));
    assert_eq!(table.find("h", "/a/"), Some(0));
    assert_eq!(table.find("h", "/ab"), None);
    assert_eq!(table.find("h", "/a-b"), None);
    assert_eq!(table.find("h", "/"), None);
}

#[test]
fn a_host_without_a_matching_path_leaves_the_request_to_less_specific_hosts() {
    let table = table(&vec![
        (vec![exact("a.example.com")], vec![prefix("/x")]),
        (vec![wildcard("example.com")], vec![prefix("/y")]),
        (vec![], vec![prefix("/z")]),
    ]);

    assert_eq!(table.find("a.example.com", "/x"), Some(0));
    assert_eq!(table.find("a.example.com", "/y"), Some(1));
    assert_eq!(table.find("a.example.com", "/z"), Some(2));
    assert_eq!(table.find("a.example.com", "/"), None);
}

#[test]
fn of_equal_rules_the_first_in_the_file_wins() {
    let table =
        table(&vec![(vec![exact("a")], vec![prefix("/x")]), (vec![exact("a")], vec![prefix("/x"), path("/x")])]);

    assert_eq!(table.find("a", "/x/y"), Some(0));
    assert_eq!(table.find("a", "/x"), Some(1));
}

#[test]
fn the_rules_are_listed_in_order_of_precedence() {
    let table = table(&vec![
        (vec![], vec![prefix(""), path("/z")]),
        (vec![wildcard("com"), wildcard("example.com"), exact("b")], vec![prefix("/long")]),
        (vec![exact("b")], vec![prefix("/longer"), path("/a")]),
    ]);

    let listed: Vec<_> = table.rules().iter().map(|rule| (rule.host.clone(), rule.path.clone(), rule.route)).collect();

    assert_eq!(
        listed,
        [
            (Some(exact("b")), path("/a"), 2),
            (Some(exact("b")), prefix("/longer"), 2),
            (Some(exact("b")), prefix("/long"), 1),
            (Some(wildcard("example.com")), prefix("/long"), 1),
            (Some(wildcard("com")), prefix("/long"), 1),
            (None, path("/z"), 0),
            (None, prefix(""), 0),
        ]
    );
}

#[test]
fn asterisk_form_matches_no_prefix() {
    assert_eq!(table(&vec![(vec![], vec![])]).find("h", "*"), None);
}

/// Precedence spelled out: the first of the rules, best first, that matches.
fn naive(routes: &Routes, host: &str, path: &str) -> Option<usize> {
    let host = host.to_ascii_lowercase();
    let host_rank = |name: &Hostname| match name {
        Hostname::Exact(name) => (*name == host).then_some(1000),
        Hostname::Wildcard(suffix) => host.ends_with(&format!(".{suffix}")).then_some(1 + suffix.len()),
    };
    let path_rank = |rule: &PathMatch| match rule {
        PathMatch::Exact(value) => (value == path).then_some(1000),
        PathMatch::Prefix(value) => {
            (value == path || path.starts_with(&format!("{value}/"))).then_some(1 + value.len())
        }
    };
    let mut best: Option<((usize, usize), usize)> = None;
    for (number, (hosts, paths)) in routes.iter().enumerate() {
        let hosts = hosts.iter().map(host_rank).chain(hosts.is_empty().then_some(Some(0)));
        for host in hosts.flatten() {
            for path in paths.iter().filter_map(path_rank) {
                if best.is_none_or(|(rank, _)| (host, path) > rank) {
                    best = Some(((host, path), number));
                }
            }
        }
    }
    best.map(|(_, number)| number)
}

fn some_path() -> impl Strategy<Value = String> {
    "(/[ab!-]{0,2}){0,3}"
}

fn some_host() -> impl Strategy<Value = String> {
    r"[ab-]{1,2}(\.[ab]{1,2}){0,3}"
}

fn some_routes() -> impl Strategy<Value = Routes> {
    let host = prop_oneof![some_host().prop_map(Hostname::Exact), some_host().prop_map(Hostname::Wildcard)];
    let rule = prop_oneof![
        some_path().prop_map(PathMatch::Exact),
        some_path().prop_map(|path| PathMatch::Prefix(path.trim_end_matches('/').to_owned())),
    ];
    prop::collection::vec((prop::collection::vec(host, 0..3), prop::collection::vec(rule, 1..4)), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_table_agrees_with_the_rules_read_one_by_one(
        routes in some_routes(),
        requests in prop::collection::vec((some_host(), some_path()), 1..20),
    ) {
        let table = table(&routes);
        for (host, path) in requests {
            let path = if path.is_empty() { "/".to_owned() } else { path };
            prop_assert_eq!(table.find(&host.to_uppercase(), &path), naive(&routes, &host, &path), "{} {}", host, path);
        }
    }

    #[test]
    fn any_text_is_looked_up_without_a_panic(routes in some_routes(), host in ".*", path in ".*") {
        prop_assert!(table(&routes).find(&host, &path).is_none_or(|route| route < routes.len()));
    }
}
