use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::decide::{KeyPrefix, Salt, Weight};

const STABLE: usize = 0;
const CANARY: usize = 1;

fn client(n: u32) -> ClientKey {
    ClientKey::new(IpAddr::V4(Ipv4Addr::from_bits(n)), KeyPrefix::default())
}

fn policy(weights: &[f64]) -> Policy {
    let versions = ["stable", "canary", "beta"].into_iter().zip(weights.iter().map(|w| Weight::new(*w).unwrap()));
    Policy {
        split: Split::new(Salt::new("hello", ""), versions),
        when_empty: WhenEmpty::Fallback,
        holds: vec![Hold::None; weights.len()],
        recalls: Vec::new(),
    }
}

fn all(_: usize) -> bool {
    true
}

fn chosen(version: usize, why: Why) -> Result<(usize, Why), NoVersion> {
    Ok((version, why))
}

impl Policy {
    /// The answer without the version that the client belongs to.
    fn said(
        &self,
        asker: Asker,
        forced: Option<Forced>,
        now: u64,
        usable: impl Fn(usize) -> bool,
    ) -> Result<(usize, Why), NoVersion> {
        self.choose(asker, forced, now, usable).map(|c| (c.version, c.why))
    }
}

/// A client of the version by the split.
fn client_of(policy: &Policy, version: usize) -> ClientKey {
    (0..).map(client).find(|key| policy.split.version_of(*key) == Some(version)).unwrap()
}

#[test]
fn without_more_the_split_decides() {
    let policy = policy(&[90.0, 10.0]);

    for version in [STABLE, CANARY] {
        let asker = Asker::Client(client_of(&policy, version), None);
        assert_eq!(policy.said(asker, None, 0, all), chosen(version, Why::Cohort));
    }
}

#[test]
fn a_pin_does_not_hold_a_client_whose_version_is_not_held() {
    let policy = policy(&[90.0, 10.0]);
    let asker = Asker::Client(client_of(&policy, STABLE), Some(CANARY));

    assert_eq!(policy.said(asker, None, 0, all), chosen(STABLE, Why::Cohort));
}

#[test]
fn a_draining_version_keeps_its_pinned_clients_until_the_deadline() {
    let policy = Policy { holds: vec![Hold::None, Hold::Until(100)], ..policy(&[90.0, 10.0]) };
    let asker = Asker::Client(client_of(&policy, STABLE), Some(CANARY));

    assert_eq!(policy.said(asker, None, 99, all), chosen(CANARY, Why::DrainPin));
    assert_eq!(policy.said(asker, None, 100, all), chosen(STABLE, Why::Cohort));
}

#[test]
fn a_frozen_version_keeps_its_pinned_clients() {
    let policy = Policy { holds: vec![Hold::None, Hold::Frozen], ..policy(&[90.0, 10.0]) };
    let asker = Asker::Client(client_of(&policy, STABLE), Some(CANARY));

    assert_eq!(policy.said(asker, None, u64::MAX, all), chosen(CANARY, Why::FreezePin));
}

#[test]
fn a_held_version_gets_no_new_clients() {
    let policy = Policy { holds: vec![Hold::None, Hold::Frozen], ..policy(&[100.0, 0.0]) };

    assert!(
        (0..1_000).all(|n| policy.said(Asker::Client(client(n), None), None, 0, all) == chosen(STABLE, Why::Cohort))
    );
}

#[test]
fn an_override_beats_pin_and_cohort() {
    let policy = Policy { holds: vec![Hold::Frozen; 2], ..policy(&[100.0, 0.0]) };
    let asker = Asker::Client(client(1), Some(STABLE));

    assert_eq!(policy.said(asker, Some(Forced::To(CANARY)), 0, all), chosen(CANARY, Why::Override));
}

#[test]
fn never_moves_only_those_whom_the_split_would_send_there() {
    let policy = policy(&[90.0, 10.0]);
    let never = Some(Forced::Except(CANARY));
    let ask = |version| policy.said(Asker::Client(client_of(&policy, version), None), never, 0, all);

    assert_eq!(ask(CANARY), chosen(STABLE, Why::Override));
    assert_eq!(ask(STABLE), chosen(STABLE, Why::Cohort));
}

#[test]
fn never_beats_a_drain_of_that_version_and_no_other() {
    let policy = Policy { holds: vec![Hold::Frozen; 2], ..policy(&[90.0, 10.0]) };
    let never = Some(Forced::Except(CANARY));
    let ask = |pin| policy.said(Asker::Client(client_of(&policy, CANARY), Some(pin)), never, 0, all);

    assert_eq!(ask(CANARY), chosen(STABLE, Why::Override));
    assert_eq!(ask(STABLE), chosen(STABLE, Why::FreezePin));
}

#[test]
fn clients_of_an_empty_version_fall_back_and_only_they() {
    let policy = policy(&[50.0, 30.0, 20.0]);

    for n in 0..1_000 {
        let own = policy.split.version_of(client(n)).unwrap();
        let answer = policy.said(Asker::Client(client(n), None), None, 0, |v| v != CANARY).unwrap();
        if own == CANARY {
            assert_eq!(answer.1, Why::WhenEmpty);
            assert_eq!(Some(answer.0), policy.split.version_among(client(n), |v| v != CANARY));
        } else {
            assert_eq!(answer, (own, Why::Cohort));
        }
    }
}

#[test]
fn when_empty_fail_fails_only_its_own_clients() {
    let policy = Policy { when_empty: WhenEmpty::Fail, ..policy(&[50.0, 50.0]) };
    let ask = |version| policy.said(Asker::Client(client_of(&policy, version), None), None, 0, |v| v != CANARY);

    assert_eq!(ask(CANARY), Err(NoVersion::NoEndpoint(CANARY)));
    assert_eq!(ask(STABLE), chosen(STABLE, Why::Cohort));
}

#[test]
fn a_forced_or_held_version_without_endpoints_falls_back_too() {
    let policy = Policy { holds: vec![Hold::None, Hold::Frozen], ..policy(&[100.0, 0.0]) };
    let only_stable = |v: usize| v == STABLE;

    let forced = policy.said(Asker::Client(client(1), None), Some(Forced::To(CANARY)), 0, only_stable);
    let held = policy.said(Asker::Client(client(1), Some(CANARY)), None, 0, only_stable);

    assert_eq!((forced, held), (chosen(STABLE, Why::WhenEmpty), chosen(STABLE, Why::WhenEmpty)));
}

#[test]
fn fallback_never_ends_at_a_version_that_was_forbidden() {
    let policy = policy(&[50.0, 50.0]);
    let never = Some(Forced::Except(CANARY));

    let answer = policy.said(Asker::Client(client(1), None), never, 0, |v| v == CANARY);

    assert_eq!(answer, Err(NoVersion::NoEndpoint(STABLE)));
}

#[test]
fn fallback_gives_nothing_to_a_version_of_weight_zero() {
    let answer = policy(&[100.0, 0.0]).said(Asker::Client(client(1), None), None, 0, |v| v == CANARY);

    assert_eq!(answer, Err(NoVersion::NoEndpoint(STABLE)));
}

#[test]
fn a_closed_service_serves_only_whom_a_hold_keeps() {
    let policy = Policy { holds: vec![Hold::None, Hold::Until(10)], ..policy(&[0.0, 0.0]) };

    assert_eq!(policy.said(Asker::Client(client(1), None), None, 0, all), Err(NoVersion::Closed));
    assert_eq!(policy.said(Asker::Client(client(1), Some(CANARY)), None, 0, all), chosen(CANARY, Why::DrainPin));
    assert_eq!(policy.said(Asker::Request(1), None, 0, all), Err(NoVersion::Closed));
}

/// The canary drains until 100, from a half to nothing; this process started later, and remembers everyone from 50 on.
fn drained_before() -> Policy {
    let earlier = policy(&[50.0, 50.0]).split;
    Policy {
        holds: vec![Hold::None, Hold::Until(100)],
        recalls: vec![Recall { version: CANARY, earlier, there: CANARY, until: 50 }],
        ..policy(&[100.0, 0.0])
    }
}

#[test]
fn who_is_unknown_to_a_restarted_process_is_held_by_the_split_before_the_drain() {
    let (before, now) = (policy(&[50.0, 50.0]), drained_before());
    let ask = |version, at| now.said(Asker::Client(client_of(&before, version), None), None, at, all);

    assert_eq!((ask(CANARY, 49), ask(STABLE, 49)), (chosen(CANARY, Why::DrainPin), chosen(STABLE, Why::Cohort)));
    assert_eq!(ask(CANARY, 50), chosen(STABLE, Why::Cohort), "by now it knows who was active");
}

#[test]
fn a_recall_ends_with_its_drain() {
    let mut policy = drained_before();
    policy.recalls[0].until = u64::MAX;
    let key = client_of(&self::policy(&[50.0, 50.0]), CANARY);

    assert_eq!(policy.said(Asker::Client(key, None), None, 99, all), chosen(CANARY, Why::DrainPin));
    assert_eq!(policy.said(Asker::Client(key, None), None, 100, all), chosen(STABLE, Why::Cohort));
}

#[test]
fn who_is_known_is_not_recalled() {
    let key = client_of(&policy(&[50.0, 50.0]), CANARY);

    assert_eq!(drained_before().said(Asker::Client(key, Some(STABLE)), None, 0, all), chosen(STABLE, Why::Cohort));
}

#[test]
fn never_beats_a_recall() {
    let key = client_of(&policy(&[50.0, 50.0]), CANARY);
    let never = Some(Forced::Except(CANARY));

    assert_eq!(drained_before().said(Asker::Client(key, None), never, 0, all), chosen(STABLE, Why::Override));
}

#[test]
fn neither_an_override_nor_an_empty_version_changes_where_a_client_belongs() {
    let held = Policy { holds: vec![Hold::None, Hold::Until(100)], ..policy(&[100.0, 0.0]) };
    let home = |known, forced, now, usable: fn(usize) -> bool| {
        held.choose(Asker::Client(client(1), known), forced, now, usable).unwrap().home
    };
    let without_canary: fn(usize) -> bool = |v| v != CANARY;

    assert_eq!(home(Some(CANARY), None, 0, without_canary), Some(CANARY));
    assert_eq!(home(Some(CANARY), Some(Forced::To(STABLE)), 0, all), Some(CANARY));
    assert_eq!(home(Some(CANARY), Some(Forced::Except(CANARY)), 0, all), Some(CANARY));
    assert_eq!(home(Some(CANARY), None, 100, all), Some(STABLE), "the drain is over");
    assert_eq!(home(None, Some(Forced::To(CANARY)), 0, all), Some(STABLE), "sent there, it belongs to the split's");
}

#[test]
fn requests_of_nobody_are_drawn_by_their_roll() {
    let policy = policy(&[75.0, 25.0]);

    assert_eq!(policy.said(Asker::Request(0), None, 0, all), chosen(STABLE, Why::Draw));
    assert_eq!(policy.said(Asker::Request(u64::MAX), None, 0, all), chosen(CANARY, Why::Draw));
    assert_eq!(policy.said(Asker::Request(0), None, 0, |v| v == CANARY), chosen(CANARY, Why::WhenEmpty));
}

proptest! {
    // Clause 4.
    #[test]
    fn endpoints_never_decide_the_version_of_a_client(
        n: u32, weights in prop::collection::vec(1.0f64..100.0, 3), usable in prop::collection::vec(any::<bool>(), 3),
    ) {
        let policy = policy(&weights);
        let asker = Asker::Client(client(n), None);
        let with_all = policy.said(asker, None, 0, all).unwrap();

        match policy.said(asker, None, 0, |v| usable[v]) {
            Ok((version, Why::Cohort)) => prop_assert_eq!(version, with_all.0),
            Ok((version, Why::WhenEmpty)) => {
                prop_assert!(usable[version] && !usable[with_all.0]);
            }
            Err(error) => {
                prop_assert!(usable.iter().all(|u| !u));
                prop_assert_eq!(error, NoVersion::NoEndpoint(with_all.0));
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn two_choices_are_two_unless_there_is_one(roll: u64, n in 1usize..100) {
        let (one, other) = two_choices(roll, n);

        prop_assert!(one < n && other < n && (n == 1 || one != other));
    }
}
