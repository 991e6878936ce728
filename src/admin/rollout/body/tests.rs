use super::*;

fn read(kind: Kind, body: &str) -> Result<Wanted, String> {
    parse(kind, "hello", ([127, 0, 0, 1], 4242).into(), body.as_bytes())
}

fn error(kind: Kind, body: &str) -> String {
    read(kind, body).unwrap_err()
}

fn verb(kind: Kind, body: &str) -> Verb {
    read(kind, body).unwrap().change.verb
}

#[test]
fn weights_and_shares_are_read() {
    let body = r#"{"weights":{"a":20,"b":"30","c":"12.5%"},"generation":7,"reason":"why not","who":"ann"}"#;
    let wanted = read(Kind::Weights, body).unwrap();

    let weight = |w| Amount::weight(w).unwrap();
    let expected = [("a", weight(20.0)), ("b", weight(30.0)), ("c", Amount::Share(0.125))];
    let amounts = expected.map(|(n, a)| (n.to_owned(), a)).to_vec();
    assert_eq!(wanted.change.verb, Verb::SetWeights { amounts, closed: false, on_decrease: None });
    assert_eq!((wanted.change.expected, wanted.change.reason.as_deref()), (Some(7), Some("why not")));
    assert_eq!((&*wanted.change.who, wanted.is_dry), ("ann (127.0.0.1:4242)", false));
}

#[test]
fn an_empty_body_is_enough_where_nothing_must_be_named() {
    assert_eq!(verb(Kind::Abort, ""), Verb::Abort);
    assert_eq!(verb(Kind::Pause, "{}"), Verb::Pause);
    assert_eq!(verb(Kind::Undo, ""), Verb::Undo { to_revision: None, on_decrease: None });
    assert!(matches!(verb(Kind::Promote, ""), Verb::Promote { version: None, force: false, guarded: false, .. }));
}

#[test]
fn drains_have_a_deadline_of_an_hour_unless_it_is_said() {
    let drain = |seconds| OnDecrease::Drain { deadline: Duration::from_secs(seconds) };

    let Verb::Drain { deadline, .. } = verb(Kind::Drain, r#"{"version":"canary"}"#) else { panic!() };
    assert_eq!(deadline, DEADLINE);
    for (body, existing) in [
        (r#"{"version":"green"}"#, OnDecrease::Evict),
        (r#"{"version":"green","existing":"drain"}"#, drain(3600)),
        (r#"{"version":"green","existing":"drain","deadline":"10m"}"#, drain(600)),
    ] {
        assert_eq!(
            verb(Kind::Switch, body),
            Verb::Switch { version: "green".into(), force: false, existing },
            "{body}"
        );
    }
}

#[test]
fn bad_bodies_are_refused_with_the_key() {
    for (body, says) in [
        ("", "empty"),
        ("{", "not as expected"),
        ("[]", "not as expected"),
        ("{}", "weights"),
        (r#"{"weights":7}"#, "weights"),
        (r#"{"weights":{"canary":-3}}"#, "weights.canary: -3 is negative"),
        (r#"{"weights":{"canary":"-3%"}}"#, "weights.canary: "),
        (r#"{"weights":{"canary":"140%"}}"#, "weights.canary: "),
        (r#"{"weights":{"canary":"NaN"}}"#, "weights.canary: "),
        (r#"{"weights":{"canary":"inf%"}}"#, "weights.canary: "),
        (r#"{"weights":{"canary":1e300}}"#, "weights.canary: "),
        (r#"{"weights":{"canary":"many"}}"#, "weights.canary: `many`"),
        (r#"{"weights":{"canary":null}}"#, "weights.canary: `null`"),
        (r#"{"weights":{"canary":true}}"#, "weights.canary: `true`"),
        (r#"{"weights":{"canary":1,"canary":2}}"#, "weights.canary is written twice"),
        (r#"{"weights":{"canary":1},"weight":2}"#, "unknown field `weight`"),
        (r#"{"weights":{"canary":1},"generation":-1}"#, "-1"),
        (r#"{"weights":{"canary":1}} x"#, "trailing"),
        (r#"{"weights":{"canary":1},"onDecrease":"drop"}"#, "onDecrease: `drop`"),
        (r#"{"weights":{"canary":1},"deadline":"1h"}"#, "deadline: only for a drain"),
        (r#"{"weights":{"canary":1},"onDecrease":"drain","deadline":"soon"}"#, "deadline: "),
        (r#"{"weights":{"canary":1},"onDecrease":"drain","deadline":"200h"}"#, "deadline: 200h is out of range"),
        (r#"{"weights":{"canary":1},"version":"canary"}"#, "version: no key of weights; its keys are weights, closed"),
    ] {
        assert!(error(Kind::Weights, body).contains(says), "{body}: {}", error(Kind::Weights, body));
    }
    for (kind, body, says) in [
        (Kind::Abort, "[]", "write a JSON object"),
        (Kind::Abort, r#"{"version":"canary"}"#, "version: no key of abort"),
        (Kind::Switch, "{}", "version: missing"),
        (Kind::Switch, r#"{"version":"a","existing":"freeze"}"#, "existing: `freeze`"),
        (Kind::Switch, r#"{"version":"a","deadline":"1m"}"#, "deadline: only for a drain"),
        (Kind::Drain, "", "version: missing"),
        (Kind::Undo, r#"{"toRevision":-1}"#, "-1"),
        (Kind::Resume, r#"{"skip":"yes"}"#, "boolean"),
    ] {
        assert!(error(kind, body).contains(says), "{body}: {}", error(kind, body));
    }
}

#[test]
fn a_reason_is_one_line_of_bounded_length() {
    let long = format!(r#"{{"weights":{{"a":1}},"reason":"{}"}}"#, "x".repeat(LONGEST_REASON + 1));

    assert!(error(Kind::Weights, &long).starts_with("reason: "));
    let wanted = read(Kind::Pause, r#"{"reason":"a\nforged line","who":""}"#).unwrap().change;
    assert_eq!((wanted.reason.as_deref(), &*wanted.who), (Some("a forged line"), "127.0.0.1:4242"));
}
