use std::time::Duration;

use super::*;

const RULES: Ejection = Ejection { consecutive_failures: 3, duration: Duration::from_secs(10), max_percent: 50 };

fn fail(health: &Health, now: u64, times: usize) -> bool {
    (0..times).map(|_| health.failed(now, &RULES, || true)).last().unwrap_or(false)
}

/// Until it is ejected: the ejection lock is shared with tests that run beside this one.
fn eject(health: &Health, now: u64) {
    while !health.failed(now, &RULES, || true) {}
}

#[test]
fn an_endpoint_that_was_never_checked_is_usable() {
    assert!(Health::default().is_usable(0));
    assert_eq!(Health::default().condition(0), Condition::Ready);
}

#[test]
fn fewer_failures_than_the_limit_change_nothing() {
    let health = Health::default();

    assert!(!fail(&health, 0, 2));

    assert!(health.is_usable(0));
}

#[test]
fn failures_in_a_row_eject_for_the_configured_time() {
    let health = Health::default();

    eject(&health, 5);

    assert_eq!(health.condition(10_004), Condition::Ejected);
    assert_eq!(health.condition(10_005), Condition::Ready);
}

#[test]
fn a_success_starts_the_count_anew() {
    let health = Health::default();

    fail(&health, 0, 2);
    health.succeeded();

    assert!(!fail(&health, 0, 2));
    assert!(health.is_usable(0));
}

#[test]
fn ejections_in_a_row_double_up_to_ten_times_and_need_one_failure_each() {
    let health = Health::default();
    let mut now = 0;

    let mut lengths = Vec::new();
    for _ in 0..6 {
        eject(&health, now);
        let back = (now..).step_by(1000).find(|t| health.is_usable(*t)).unwrap();
        lengths.push((back - now) / 10_000);
        now = back;
    }

    assert_eq!(lengths, [1, 2, 4, 8, 10, 10]);
}

#[test]
fn a_success_after_an_ejection_makes_it_as_good_as_new() {
    let health = Health::default();
    eject(&health, 0);

    health.succeeded();

    assert!(!fail(&health, 10_000, 2));
    eject(&health, 10_000);
    assert!(health.is_usable(20_000));
}

#[test]
fn failures_of_an_ejected_endpoint_do_not_prolong_it() {
    let health = Health::default();
    eject(&health, 0);

    fail(&health, 9_000, 5);

    assert!(health.is_usable(10_000));
}

#[test]
fn no_ejection_where_the_cap_forbids_it() {
    let health = Health::default();

    for _ in 0..10 {
        assert!(!health.failed(0, &RULES, || false));
    }

    assert!(health.is_usable(0));
}

#[test]
fn zero_consecutive_failures_never_eject() {
    let health = Health::default();
    let rules = Ejection { consecutive_failures: 0, ..RULES };

    assert!((0..100).all(|_| !health.failed(0, &rules, || true)));
}

#[test]
fn the_cap_keeps_half_and_always_one() {
    let version: Vec<Health> = (0..4).map(|_| Health::default()).collect();
    let allows = |n: usize, percent| cap_allows(version[..n].iter(), 0, percent);

    assert!(allows(4, 50) && allows(3, 1) && allows(2, 100));
    assert!(!allows(1, 100), "the last one stays");
    assert!(!allows(4, 0));

    eject(&version[0], 0);
    assert!(allows(4, 50) && !allows(3, 50) && !allows(2, 100));
    version[1].set_healthy(false, 0);
    version[2].set_draining(true);
    assert!(!allows(4, 100), "the last usable one stays");
}

#[test]
fn the_most_final_condition_is_told() {
    let health = Health::default();

    health.set_healthy(false, 0);
    assert_eq!(health.condition(0), Condition::Unhealthy);
    health.set_draining(true);
    assert_eq!(health.condition(0), Condition::Draining);
    health.set_gone();
    assert_eq!(health.condition(0), Condition::Gone);
    assert!(!health.is_usable(0));
}

#[test]
fn a_passing_check_brings_it_back() {
    let health = Health::default();

    health.set_healthy(false, 0);
    health.set_healthy(true, 0);

    assert!(health.is_usable(0));
}

fn budget(percent: u8, min: u32) -> RetryBudget {
    RetryBudget::new(&Retries { budget_percent: percent, min_per_second: min })
}

fn takes(budget: &RetryBudget, now: u64) -> usize {
    (0..1000).take_while(|_| budget.take(now)).count()
}

#[test]
fn retries_are_a_share_of_the_requests_of_ten_seconds() {
    let budget = budget(20, 0);
    for second in 0..5 {
        (0..20).for_each(|_| budget.request(second * 1000));
    }

    assert_eq!(takes(&budget, 4_500), 20);
    assert_eq!(takes(&budget, 5_500), 0, "those of the last second count");
}

#[test]
fn requests_older_than_ten_seconds_earn_nothing() {
    let budget = budget(20, 0);
    (0..100).for_each(|_| budget.request(1_000));

    assert_eq!(takes(&budget, 11_000), 0);
}

#[test]
fn the_minimum_is_allowed_every_second_without_requests() {
    let budget = budget(20, 3);

    assert_eq!(takes(&budget, 1_000), 3);
    assert_eq!(takes(&budget, 1_999), 0);
    assert_eq!(takes(&budget, 2_000), 3);
}

#[test]
fn threads_together_take_no_more_than_the_budget() {
    let budget = budget(10, 0);
    (0..1000).for_each(|_| budget.request(1_000));

    let taken: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| takes(&budget, 1_500))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });

    assert_eq!(taken, 100);
}
