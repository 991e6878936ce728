use super::*;

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

fn head(headers: &HeaderMap) -> Head<'_> {
    Head { headers, authority: None, version: Version::HTTP_11 }
}

fn check(fields: &[(&'static str, &str)], is_loopback: bool) -> u16 {
    let headers = headers(fields);
    head(&headers).check(is_loopback).map_or_else(|r| r.0.as_u16(), |()| 200)
}

fn write(fields: &[(&'static str, &str)], is_loopback: bool, token: Option<&str>) -> u16 {
    let headers = headers(fields);
    head(&headers).check_write(is_loopback, token).map_or_else(|r| r.0.as_u16(), |()| 200)
}

#[test]
fn a_loopback_listener_answers_only_to_local_names() {
    for host in
        ["localhost", "LOCALHOST:9900", "127.0.0.1", "127.8.8.8:9900", "[::1]:9900", "[::1]", "[::ffff:127.0.0.1]"]
    {
        assert_eq!(check(&[("host", host)], true), 200, "{host}");
    }
    for host in
        ["evil.example", "localhost.evil.example:9900", "10.0.0.1", "127.0.0.1.evil.example", "[2001:db8::1]", ""]
    {
        assert_eq!(check(&[("host", host)], true), 421, "{host}");
    }
}

#[test]
fn another_listener_answers_to_any_name() {
    assert_eq!(check(&[("host", "perch.internal:9900")], false), 200);
}

#[test]
fn two_hosts_are_no_host() {
    assert_eq!(check(&[("host", "localhost"), ("host", "localhost")], true), 400);
    assert_eq!(check(&[], true), 400);
}

#[test]
fn only_http_1_0_may_lack_a_host() {
    let none = HeaderMap::new();

    assert!(Head { version: Version::HTTP_10, ..head(&none) }.check(true).is_ok());
}

#[test]
fn the_target_wins_over_the_host_field() {
    let headers = headers(&[("host", "localhost")]);

    assert!(Head { authority: Some("evil.example"), ..head(&headers) }.check(true).is_err());
}

#[test]
fn a_page_of_another_origin_cannot_write() {
    let host = ("host", "localhost:9900");

    assert_eq!(write(&[host, ("origin", "http://localhost:9900")], true, None), 200);
    assert_eq!(write(&[host], true, None), 200);
    for origin in ["null", "http://evil.example", "http://localhost:8080", "http://localhost", ""] {
        assert_eq!(write(&[host, ("origin", origin)], true, None), 403, "{origin}");
    }
}

#[test]
fn a_configured_token_is_needed_everywhere() {
    let host = ("host", "localhost");

    for is_loopback in [true, false] {
        let code = |authorization| write(&[host, ("authorization", authorization)], is_loopback, Some("s3cret"));
        assert_eq!(write(&[host], is_loopback, Some("s3cret")), 401);
        assert_eq!(code("Bearer s3cret"), 200);
        assert_eq!(code("bearer  s3cret"), 200);
        for wrong in ["Bearer s3cre", "Bearer s3cret2", "Bearer ", "Bearer", "Basic s3cret", "s3cret"] {
            assert_eq!(code(wrong), 403, "{wrong}");
        }
    }
}

#[test]
fn without_a_token_only_loopback_may_write() {
    assert_eq!(write(&[("host", "10.0.0.1")], false, None), 403);
    assert_eq!(write(&[("host", "10.0.0.1"), ("authorization", "Bearer ")], false, Some("")), 403);
}

#[test]
fn a_body_of_another_type_is_refused() {
    let code = |media_type| write(&[("host", "localhost"), ("content-type", media_type)], true, None);

    assert_eq!(code("application/json"), 200);
    assert_eq!(code("Application/JSON; charset=utf-8"), 200);
    assert_eq!(code("text/plain"), 415);
    assert_eq!(code("application/x-www-form-urlencoded"), 415);
}
