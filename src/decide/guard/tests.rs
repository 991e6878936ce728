//! The guard, by hand.

use super::*;

fn outcomes(millis: &[(u64, u64)], failures: u64) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for (millis, count) in millis {
        (0..*count).for_each(|_| outcomes.record(Duration::from_millis(*millis), false));
    }
    outcomes.failures = failures;
    outcomes
}

fn looks(rules: &Rules, times: u32, stable: &Outcomes, canary: &Outcomes) -> Verdict {
    let (mut guard, mut window) = (Guard::default(), Window::default());
    guard.begin_step();
    for _ in 0..times {
        guard.look(rules, &mut window, stable, canary, 0.01, true);
    }
    guard.verdict(rules, true)
}

#[test]
fn no_request_at_all_is_too_few() {
    assert_eq!(looks(&Rules::default(), 1000, &Outcomes::default(), &Outcomes::default()), Verdict::TooFew);
}

#[test]
fn a_side_without_requests_is_too_few_whatever_the_other_does() {
    let good = outcomes(&[(10, 500)], 0);

    assert_eq!(looks(&Rules::default(), 100, &good, &Outcomes::default()), Verdict::TooFew);
    assert_eq!(looks(&Rules::default(), 100, &Outcomes::default(), &good), Verdict::TooFew);
}

#[test]
fn slower_by_less_than_two_milliseconds_is_no_fault() {
    let (stable, canary) = (outcomes(&[(1, 1000)], 0), outcomes(&[(2, 1000)], 0));

    assert_eq!(looks(&Rules::default(), 50, &stable, &canary), Verdict::Clear);
}

#[test]
fn each_quantile_has_its_own_test() {
    let rules = Rules::default();
    let stable = outcomes(&[(20, 500), (40, 400), (80, 85), (160, 15)], 0);
    let slow_half = outcomes(&[(30, 500), (40, 400), (80, 85), (160, 15)], 0);
    let slow_tail = outcomes(&[(20, 500), (40, 400), (80, 85), (320, 15)], 0);
    let often_slow = outcomes(&[(20, 500), (40, 300), (80, 185), (160, 15)], 0);

    assert_eq!(looks(&rules, 30, &stable, &stable), Verdict::Clear);
    assert_eq!(looks(&rules, 30, &stable, &slow_half), Verdict::Worse(Metric::P50));
    assert_eq!(looks(&rules, 30, &stable, &slow_tail), Verdict::Worse(Metric::P99));
    assert_eq!(looks(&rules, 30, &stable, &often_slow), Verdict::Worse(Metric::P90));
}

#[test]
fn a_faster_canary_with_fewer_errors_is_clear() {
    let (stable, canary) = (outcomes(&[(50, 1000)], 50), outcomes(&[(5, 1000)], 1));

    assert_eq!(looks(&Rules::default(), 100, &stable, &canary), Verdict::Clear);
}

#[test]
fn ceilings_hold_even_when_stable_is_as_bad() {
    let bad = outcomes(&[(10, 90), (900, 10)], 20);
    let by_errors = Rules { max_error_ratio: Some(0.1), ..Rules::default() };
    let by_latency = Rules { max_p99: Some(Duration::from_millis(500)), ..Rules::default() };

    assert_eq!(looks(&Rules::default(), 50, &bad, &bad), Verdict::Clear);
    assert_eq!(looks(&by_errors, 50, &bad, &bad), Verdict::Worse(Metric::MaxErrorRatio));
    assert_eq!(looks(&by_latency, 50, &bad, &bad), Verdict::Worse(Metric::MaxP99));
}

#[test]
fn a_ceiling_waits_for_its_own_sample() {
    let rules = Rules { max_error_ratio: Some(0.01), ..Rules::default() };
    let (nothing, failing) = (Outcomes::default(), outcomes(&[(10, 1)], 1));

    let few = u32::try_from(CEILING_REQUESTS).unwrap() - 1;
    assert_eq!(looks(&rules, few, &nothing, &failing), Verdict::TooFew);
    assert_eq!(looks(&rules, few + 1, &nothing, &failing), Verdict::Worse(Metric::MaxErrorRatio));
}

#[test]
fn an_error_tolerance_allows_that_much_more() {
    let (stable, canary) = (outcomes(&[(10, 10_000)], 1000), outcomes(&[(10, 10_000)], 1400));

    assert_eq!(looks(&Rules::default(), 50, &stable, &canary), Verdict::Worse(Metric::Errors));
    let tolerant = Rules { error_tolerance: 0.5, ..Rules::default() };
    assert_eq!(looks(&tolerant, 50, &stable, &canary), Verdict::Clear);
}

#[test]
fn a_test_that_a_kept_state_does_not_know_starts_with_nothing() {
    let mut guard: Guard = serde_json::from_str(r#"{"tests": [], "stable": {"requests": 7, "failures": 1}, "canary": {"requests": 3, "failures": 0}, "capped": {"requests": 3, "failures": 0}}"#).unwrap();
    let rules = Rules::default();

    let one = outcomes(&[(10, 1)], 0);
    guard.look(&rules, &mut Window::default(), &one, &one, 0.5, true);

    assert_eq!(guard.counts().0, Counts { requests: 8, failures: 1 });
    assert!(guard.worst(&rules).is_some());
}

#[test]
fn the_report_has_the_numbers_of_both_sides() {
    let (mut guard, mut window) = (Guard::default(), Window::default());
    let rules = Rules { max_p99: Some(Duration::from_secs(1)), ..Rules::default() };
    guard.begin_step();

    guard.look(&rules, &mut window, &outcomes(&[(10, 99)], 2), &outcomes(&[(20, 1)], 1), 0.5, true);

    let report = serde_json::to_value(guard.report(&rules, &window, true)).unwrap();
    assert_eq!(report["requests"], serde_json::json!({"stable": 99, "canary": 1}));
    assert_eq!(report["errors"], serde_json::json!({"stable": 2, "canary": 1}));
    assert_eq!(report["verdict"], "too-few-requests");
    assert_eq!(report["tests"].as_array().unwrap().len(), 5);
    let p50 = report["p50"]["canary"].as_f64().unwrap();
    assert!((p50 / 0.02 - 1.0).abs() < 0.04, "{p50}");
}
