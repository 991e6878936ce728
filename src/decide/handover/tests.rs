use std::net::SocketAddr;

use proptest::prelude::*;

use super::super::slices::{Chosen, Pod, Port, Slice, SliceEndpoint, SlicePort, read};
use super::*;

/// How an endpoint stands in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Ready,
    Unready,
    Draining,
    Ended,
}

use Is::{Draining, Ended, Ready, Unready};

/// One slice with these endpoints: the host is the pod as well.
fn slice(endpoints: &[(u8, Is)]) -> Slice {
    let endpoint = |(host, is): &(u8, Is)| SliceEndpoint {
        address: [10, 0, 0, *host].into(),
        ready: Some(*is == Ready),
        serving: Some(matches!(is, Ready | Draining)),
        terminating: Some(matches!(is, Draining | Ended)),
        pod: Some(Pod { name: format!("p{host}"), uid: format!("u{host}").into() }),
    };
    let ports = vec![SlicePort { name: "http".into(), number: Some(80) }];
    Slice { ports, endpoints: endpoints.iter().map(endpoint).collect() }
}

fn reading(endpoints: &[(u8, Is)]) -> Reading {
    read([&slice(endpoints)], &Port::Name("http".into()), |_| Chosen::Yes)
}

fn hosts(found: &[Discovered]) -> Vec<u8> {
    let host = |address: &SocketAddr| match address {
        SocketAddr::V4(v4) => v4.ip().octets()[3],
        SocketAddr::V6(_) => panic!("no IPv6 here"),
    };
    found.iter().map(|d| host(&d.address)).collect()
}

/// What is used after each reading, one millisecond apart.
fn used(readings: &[&[(u8, Is)]]) -> Vec<Vec<u8>> {
    let mut handover = Handover::default();
    readings.iter().zip(0..).map(|(endpoints, now)| hosts(&handover.take(reading(endpoints), |_| false, now))).collect()
}

#[test]
fn what_a_selector_no_longer_names_is_used_until_a_new_one_is_ready() {
    let blue = [(1, Ready), (2, Ready)];

    let all = used(&[
        &blue,
        &[(11, Unready), (12, Unready)],
        &[(11, Unready), (12, Unready), (13, Unready)],
        &[(11, Unready), (12, Ready), (13, Unready)],
        &[(11, Ready), (12, Ready), (13, Ready)],
    ]);

    assert_eq!(all, [vec![1, 2], vec![1, 2], vec![1, 2], vec![12], vec![11, 12, 13]]);
}

#[test]
fn a_flip_of_readiness_leaves_at_once() {
    assert_eq!(used(&[&[(1, Ready), (2, Ready)], &[(1, Unready), (2, Unready)]]), [vec![1, 2], vec![]]);
    assert_eq!(used(&[&[(1, Ready)], &[(1, Unready), (2, Unready)]]), [vec![1], vec![]]);
    // Of two, one is gone and one not ready: nobody new is awaited.
    assert_eq!(used(&[&[(1, Ready), (2, Ready)], &[(1, Unready)]]), [vec![1, 2], vec![]]);
}

#[test]
fn scale_to_zero_leaves_at_once() {
    assert_eq!(used(&[&[(1, Ready), (2, Ready)], &[]]), [vec![1, 2], vec![]]);
    // And does not come back with the next pod.
    assert_eq!(used(&[&[(1, Ready)], &[], &[(3, Unready)]]), [vec![1], vec![], vec![]]);
}

#[test]
fn what_was_on_its_way_out_is_not_held() {
    assert_eq!(used(&[&[(1, Ready)], &[(1, Draining)], &[(2, Unready)]]), [vec![1], vec![1], vec![]]);
    assert_eq!(used(&[&[(1, Ready)], &[(1, Ended), (2, Unready)], &[(2, Unready)]]), [vec![1], vec![], vec![]]);
}

#[test]
fn of_those_that_vanished_only_what_is_not_named_otherwise_is_held() {
    let all = used(&[
        &[(1, Ready), (2, Ready), (3, Draining)],
        &[(2, Unready), (9, Unready)],
        &[(9, Unready)],
        &[(1, Unready), (9, Unready)],
    ]);

    assert_eq!(all, [vec![1, 2, 3], vec![1], vec![1], vec![]]);
}

#[test]
fn a_pod_that_is_known_to_be_gone_is_not_held() {
    let mut handover = Handover::default();
    handover.take(reading(&[(1, Ready), (2, Ready)]), |_| false, 0);

    let one = handover.take(reading(&[(9, Unready)]), |pod| pod == "u1", 0);
    let none = handover.take(reading(&[(9, Unready)]), |_| true, 0);

    assert_eq!((hosts(&one), hosts(&none)), (vec![2], vec![]));
    assert_eq!(handover.holds_since(), None);
}

#[test]
fn holding_ends_when_it_takes_too_long() {
    let mut handover = Handover::default();
    handover.take(reading(&[(1, Ready)]), |_| false, 0);
    let mut at = |now| hosts(&handover.take(reading(&[(9, Unready)]), |_| false, now));

    assert_eq!(at(1_000), [1]);
    assert_eq!(at(1_000 + HOLD_AT_MOST - 1), [1]);
    assert_eq!(at(1_000 + HOLD_AT_MOST), [0; 0]);
    assert_eq!(at(1_001 + HOLD_AT_MOST), [0; 0]);
}

#[test]
fn what_a_version_had_from_elsewhere_is_handed_over() {
    let before = Discovered { address: ([10, 0, 0, 7], 80).into(), pod: None, is_draining: false };

    let mut handover = Handover::from([before.clone()]);
    assert_eq!(hosts(&handover.take(reading(&[(9, Unready)]), |_| false, 0)), [7]);
    assert_eq!(hosts(&handover.take(reading(&[(9, Ready)]), |_| false, 0)), [9]);
    assert_eq!(hosts(&Handover::from([before]).take(reading(&[]), |_| false, 0)), [0; 0]);
}

fn any_endpoints() -> impl Strategy<Value = Vec<(u8, Is)>> {
    let is = prop::sample::select(vec![Ready, Ready, Unready, Draining, Ended]);
    prop::collection::btree_map(0u8..6, is, 0..5).prop_map(|all| all.into_iter().collect())
}

proptest! {
    #[test]
    fn whatever_was_before_only_usable_or_vanished_ones_are_used(
        history in prop::collection::vec((any_endpoints(), 0u64..200_000), 1..20),
        gone in prop::collection::btree_set(0u8..6, 0..2),
    ) {
        let mut handover = Handover::default();
        let mut before: Vec<u8> = Vec::new();
        let mut now = 0;
        for (endpoints, passed) in history {
            now += passed;
            let is_gone = |uid: &str| gone.iter().any(|g| uid == format!("u{g}"));
            let usable = reading(&endpoints).usable;

            let found = handover.take(reading(&endpoints), is_gone, now);

            if usable.is_empty() {
                // Nothing comes back, and nothing stays that the cluster has another word for.
                let has_word = |host: &u8| endpoints.iter().any(|(h, _)| h == host);
                prop_assert!(hosts(&found).iter().all(|h| before.contains(h) && !has_word(h) && !gone.contains(h)));
                prop_assert!(found.is_empty() || endpoints.iter().any(|(_, is)| *is == Unready));
                prop_assert!(handover.holds_since().is_none_or(|since| now - since < HOLD_AT_MOST));
            } else {
                // As a fresh list says.
                prop_assert_eq!(&found, &usable);
                prop_assert!(handover.holds_since().is_none());
            }
            before = hosts(&found);
        }
    }
}
