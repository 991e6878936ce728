use proptest::prelude::*;

use super::*;

#[track_caller]
fn becomes(path: &str, clean: &str) {
    assert_eq!(normalise(path).as_deref(), Ok(clean), "{path}");
}

#[track_caller]
fn refused(path: &str, why: BadPath) {
    assert_eq!(normalise(path), Err(why), "{path}");
}

#[test]
fn dot_segments_are_removed() {
    becomes("/a/../b", "/b");
    becomes("/a/./b", "/a/b");
    becomes("/a/b/..", "/a/");
    becomes("/a/.", "/a/");
    becomes("/.", "/");
    becomes("/a/..", "/");
    becomes("/./a/b/../../c", "/c");
}

#[test]
fn an_escaped_dot_counts_as_a_dot_in_a_dot_segment() {
    becomes("/a/%2e%2E/b", "/b");
    becomes("/a/.%2e/b", "/b");
    becomes("/a/%2e/b", "/a/b");
}

#[test]
fn an_escaped_dot_elsewhere_stays_escaped() {
    becomes("/a%2ehtml", "/a%2ehtml");
    becomes("/%2ewell-known", "/%2ewell-known");
}

#[test]
fn above_the_root_is_refused() {
    refused("/..", BadPath::AboveRoot);
    refused("/a/../../b", BadPath::AboveRoot);
    refused("/%2e%2e/etc/passwd", BadPath::AboveRoot);
    refused("/./../a", BadPath::AboveRoot);
}

#[test]
fn slashes_and_escapes_stay_as_they_came() {
    for path in
        ["/", "//", "/a//b", "/a%2fb", "/a%5cb", "/%c0%af", "/a;b=c", "/.;/a", "/.../a", "/.well-known/x", "/a%41"]
    {
        assert!(matches!(normalise(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
    }
}

#[test]
fn an_empty_element_is_an_element() {
    becomes("/a//../b", "/a/b");
    becomes("//..", "/");
}

#[test]
fn broken_escapes_and_an_escaped_nul_are_refused() {
    for path in ["/%", "/%4", "/%zz", "/%4g", "/a%00b", "/%%41", "/%+1"] {
        refused(path, BadPath::BadEscape);
    }
}

#[test]
fn bytes_that_no_path_has_are_refused() {
    for path in ["/a#b", "/a\\b", "/a b", "/a\tb", "/a\0b", "/a\x7fb", "/é", "/a?b", "", "a", "*"] {
        refused(path, BadPath::BadByte);
    }
}

#[test]
fn the_query_begins_at_the_first_question_mark() {
    assert_eq!(split_query("/a?b?c"), ("/a", Some("b?c")));
    assert_eq!(split_query("/a?"), ("/a", Some("")));
    assert_eq!(split_query("/a"), ("/a", None));
}

#[test]
fn a_query_with_a_fragment_or_a_control_is_refused() {
    assert_eq!(check_query("a=b&c=%zz/../?\\"), Ok(()));
    for query in ["a#b", "a b", "a\rb", "é"] {
        assert_eq!(check_query(query), Err(BadPath::BadByte), "{query}");
    }
}

#[test]
fn an_authority_is_a_host_and_a_port() {
    let parsed = |text| Authority::parse(text).map(|authority| (authority.host, authority.port));

    assert_eq!(parsed("hello.example"), Ok(("hello.example", None)));
    assert_eq!(parsed("Hello.Example.:8443"), Ok(("Hello.Example", Some(8443))));
    assert_eq!(parsed("10.0.0.1:80"), Ok(("10.0.0.1", Some(80))));
    assert_eq!(parsed("[2001:db8::1]"), Ok(("[2001:db8::1]", None)));
    assert_eq!(parsed("[::1]:443"), Ok(("[::1]", Some(443))));
    assert_eq!(parsed("my_host-1:"), Ok(("my_host-1", None)));
}

#[test]
fn a_broken_authority_is_refused() {
    for text in ["", ".", ":80", ".:80"] {
        assert_eq!(Authority::parse(text), Err(BadAuthority::Empty), "{text}");
    }
    for text in ["a:0", "a:65536", "a:+80", "a:80a", "a:123456", "[::1]:x", "a:80:80"] {
        assert_eq!(Authority::parse(text), Err(BadAuthority::BadPort), "{text}");
    }
    let long = "a".repeat(254);
    for text in [
        "user@host",
        "a/b",
        "a b",
        "a..b",
        ".a",
        "a%41",
        "a,b",
        "é",
        "[::1",
        "[::g]",
        "[fe80::1%1]",
        "[::1]x",
        "[1.2.3.4]",
        &long,
    ] {
        assert_eq!(Authority::parse(text), Err(BadAuthority::BadHost), "{text}");
    }
}

fn some_path() -> impl Strategy<Value = String> {
    prop_oneof![
        r"(/(\.|%2e|%2E|a|;|%2f|%5c){0,3}){1,6}",
        "/.*",
        "(?s-u:/[ -~]{0,20})".prop_filter("text", |text: &String| text.is_ascii()),
    ]
}

/// RFC 3986 section 5.2.4 on whole segments, with `%2e` written as a dot first.
fn naive(path: &str) -> Option<String> {
    let segments: Vec<_> = path.strip_prefix('/')?.split('/').collect();
    let mut kept: Vec<&str> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let dotted = segment.replace("%2e", ".").replace("%2E", ".");
        match &*dotted {
            "." => {}
            ".." => {
                kept.pop()?;
            }
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if at + 1 == segments.len() {
            kept.push("");
        }
    }
    Some(format!("/{}", kept.join("/")))
}

#[test]
fn dots_that_only_an_endpoint_would_find_are_refused() {
    for path in [
        "/a/..%2fb",
        "/a%2F../b",
        "/a/%2e%2e%5cb",
        "/a%5C.%2E",
        "/..;/b",
        "/a/..;x=y/b",
        "/a/..%3bx/b",
        "/a%2f..;x/b",
        "/a;x%2f../b",
    ] {
        assert_eq!(normalise(path), Err(BadPath::HiddenDots), "{path}");
    }
    for path in
        ["/a%2fb", "/a..%2fb", "/...%2fb", "/.%2fb", "/a;b=..;/c", "/a;..", "/..a;", "/;..", "/a%2f..b", "/.;/b"]
    {
        assert_eq!(normalise(path), Ok(Cow::Borrowed(path)), "{path}");
    }
    assert_eq!(normalise("/a/../b;c").as_deref(), Ok("/b;c"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn a_clean_path_is_clean_for_good(path in some_path()) {
        if let Ok(clean) = normalise(&path) {
            prop_assert_eq!(normalise(&clean), Ok(Cow::Borrowed(&*clean)));
            prop_assert!(matches!(normalise(&clean), Ok(Cow::Borrowed(_))));
            prop_assert!(clean.starts_with('/'));
            let dotted = format!("{clean}/").replace("%2e", ".").replace("%2E", ".");
            prop_assert!(!dotted.contains("/../") && !dotted.contains("/./"), "{}", clean);
            let decoded = dotted.to_ascii_lowercase().replace("%2f", "/").replace("%5c", "/").replace("%3b", ";");
            prop_assert!(!decoded.contains("/../") && !decoded.contains("/..;"), "{}", clean);
        }
    }

    #[test]
    fn dots_go_as_the_rfc_says(path in r"(/(\.|%2e|%2E|a|-){0,3}){1,6}") {
        prop_assert_eq!(normalise(&path).map(Cow::into_owned).ok(), naive(&path));
    }

    #[test]
    fn an_accepted_authority_has_only_harmless_bytes(text in "[a:@/.\\[\\]0-9 %-]{0,12}|.*") {
        if let Ok(authority) = Authority::parse(&text) {
            prop_assert!(!authority.host.is_empty());
            prop_assert!(!authority.host.contains(['@', '/', ' ', '%', ',']));
        }
    }
}
