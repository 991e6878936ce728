//! Slow start in decisions on live state: who is cold and for how long, what a cold endpoint gets, and what it must not
//! touch: versions, and clients that have an endpoint.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::decision::{Client, Decision, another, decide};
use super::fixtures::{config, service};
use super::model::{Model, Names};
use super::pins::Pins;
use super::snapshot::Service;
use crate::config::{Affinity, Ejection, Service as ServiceConfig};

const WINDOW: u64 = 10_000;
const CLIENTS: u32 = 4_000;

/// With this many endpoints in `stable`, and two in `canary`.
fn hello(stable: usize, slow_start: u64) -> ServiceConfig {
    let stable: Vec<String> = (0..stable).map(|n| format!("10.0.0.{n}:80")).collect();
    let stable: Vec<&str> = stable.iter().map(String::as_str).collect();
    ServiceConfig {
        slow_start: Duration::from_millis(slow_start),
        ..service("hello", &[("stable", 70.0, &stable), ("canary", 30.0, &["10.0.1.1:80", "10.0.1.2:80"])])
    }
}

/// The service after an endpoint joined `stable` at `now`, as its last one.
fn joined(before: usize, now: u64, slow_start: u64, affinity: Affinity) -> Arc<Service> {
    let hello = |stable| ServiceConfig { affinity, ..hello(stable, slow_start) };
    let mut model = Model::new(config(vec![hello(before)]), Names::new(), 1_000).unwrap();
    model.configure(config(vec![hello(before + 1)]), Names::new(), now).unwrap();
    model.snapshot().services[0].clone()
}

fn ages(service: &Service, now: u64) -> Vec<u64> {
    service.versions[0].endpoints.iter().map(|e| e.health.age(now)).collect()
}

fn client(n: u32) -> Client {
    Client { address: Ipv4Addr::from_bits(0x0a00_0000 + n).into(), roll: 0, forced: None }
}

/// What newcomers get.
fn decisions(service: &Service, now: u64) -> Vec<Decision> {
    let pins = Pins::new(100_000);
    (0..CLIENTS).map(|n| decide(service, &pins, client(n), now).unwrap()).collect()
}

/// Of these, those at this endpoint of `stable`.
fn at(decisions: &[Decision], service: &Service, endpoint: usize) -> usize {
    decisions.iter().filter(|d| Arc::ptr_eq(&d.endpoint, &service.versions[0].endpoints[endpoint])).count()
}

fn versions(decisions: &[Decision]) -> Vec<usize> {
    decisions.iter().map(|d| d.version).collect()
}

#[test]
fn who_joins_a_set_that_serves_is_cold_and_stays_so_over_snapshots() {
    let mut model = Model::new(config(vec![hello(2, WINDOW)]), Names::new(), 1_000).unwrap();
    assert_eq!(ages(&model.snapshot().services[0], 1_000), [u64::MAX; 2], "not at the start");

    model.configure(config(vec![hello(3, WINDOW)]), Names::new(), 5_000).unwrap();
    model.configure(config(vec![hello(4, WINDOW)]), Names::new(), 6_000).unwrap();
    model.rebuild(6_500).unwrap();

    assert_eq!(ages(&model.snapshot().services[0], 7_000), [u64::MAX, u64::MAX, 2_000, 1_000]);
}

#[test]
fn the_first_endpoints_of_a_version_are_not_cold() {
    let mut model = Model::new(config(vec![hello(0, WINDOW)]), Names::new(), 1_000).unwrap();

    model.configure(config(vec![hello(2, WINDOW)]), Names::new(), 5_000).unwrap();

    assert_eq!(ages(&model.snapshot().services[0], 5_000), [u64::MAX; 2]);
}

#[test]
fn who_passes_its_checks_again_or_was_ejected_is_cold() {
    let model = Model::new(config(vec![hello(3, WINDOW)]), Names::new(), 1_000).unwrap();
    let service = &model.snapshot().services[0];
    let [checked, ejected, fine] = [0, 1, 2].map(|n| &service.versions[0].endpoints[n].health);
    let rules = Ejection { consecutive_failures: 1, duration: Duration::from_secs(1), max_percent: 100 };

    checked.set_healthy(false, 2_000);
    checked.set_healthy(true, 3_000);
    checked.set_healthy(true, 3_500);
    assert!(ejected.failed(2_500, &rules, || true));
    fine.set_healthy(true, 3_000);

    assert_eq!(ages(service, 4_000), [1_000, 500, u64::MAX]);
}

#[test]
fn newcomers_come_slowly_to_a_cold_endpoint_and_no_version_changes() {
    let affinity = hello(1, 0).affinity;
    let (slow, fast) = (joined(3, 5_000, WINDOW, affinity), joined(3, 5_000, 0, affinity));
    let at_once = decisions(&fast, 5_000);
    let mut last = 0;
    for (age, low, high) in [(0, 30, 120), (WINDOW / 2, 300, 470), (WINDOW, 600, 800)] {
        let slowly = decisions(&slow, 5_000 + age);

        assert_eq!(versions(&slowly), versions(&at_once));
        let cold = at(&slowly, &slow, 3);
        assert!((low..high).contains(&cold) && cold > last, "{cold} of 2,800 / 4 after {age} ms");
        let moved = std::iter::zip(&slowly, &at_once).filter(|(s, o)| s.endpoint.address != o.endpoint.address);
        assert!(moved.clone().all(|(_, o)| Arc::ptr_eq(&o.endpoint, &fast.versions[0].endpoints[3])));
        assert_eq!(moved.count(), at(&at_once, &fast, 3) - cold, "only those that are not let in yet");
        last = cold;
    }
}

#[test]
fn a_client_that_has_an_endpoint_keeps_it_however_cold() {
    let service = joined(1, 5_000, WINDOW, hello(1, 0).affinity);
    let pins = Pins::new(100_000);
    let ask =
        |now| -> Vec<Decision> { (0..CLIENTS).map(|n| decide(&service, &pins, client(n), now).unwrap()).collect() };
    let first = ask(5_000 + WINDOW);

    // It is out and back: as cold as can be.
    let health = &service.versions[0].endpoints[1].health;
    health.set_healthy(false, 20_000);
    health.set_healthy(true, 20_000);
    let then = ask(20_000);

    assert!(at(&first, &service, 1) > 1_000);
    assert!(std::iter::zip(&first, &then).all(|(f, t)| Arc::ptr_eq(&f.endpoint, &t.endpoint)));
}

#[test]
fn requests_of_nobody_in_particular_come_slowly_too() {
    let (slow, fast) = (joined(3, 5_000, WINDOW, Affinity::None), joined(3, 5_000, 0, Affinity::None));
    let pins = Pins::new(1);
    let roll = |n: u32| u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let ask = |service: &Service, now| -> Vec<Decision> {
        (0..CLIENTS).map(|n| decide(service, &pins, Client { roll: roll(n), ..client(0) }, now).unwrap()).collect()
    };
    let mut last = 0;
    for (age, low, high) in [(0, 30, 120), (WINDOW / 2, 300, 470), (WINDOW, 600, 800)] {
        let slowly = ask(&slow, 5_000 + age);

        assert_eq!(versions(&slowly), versions(&ask(&fast, 5_000)));
        let cold = at(&slowly, &slow, 3);
        assert!((low..high).contains(&cold) && cold > last, "{cold} of 2,800 / 4 after {age} ms");
        last = cold;
    }
}

#[test]
fn cold_ones_alone_take_all() {
    let service = joined(3, 5_000, WINDOW, hello(1, 0).affinity);
    service.versions[0].endpoints[..3].iter().for_each(|e| e.health.set_healthy(false, 5_000));

    let decisions = decisions(&service, 5_000);

    let stable = decisions.iter().filter(|d| d.version == 0).count();
    assert!(stable > 2_500 && at(&decisions, &service, 3) == stable);
}

#[test]
fn a_second_try_goes_to_a_cold_endpoint_rather_than_nowhere() {
    let service = joined(1, 5_000, WINDOW, Affinity::None);
    let version = &service.versions[0];

    let found = (0..1_000).map(|roll| another(version, |e| e.id != version.endpoints[0].id, roll, 5_000).unwrap());

    assert!(found.into_iter().all(|e| Arc::ptr_eq(&e, &version.endpoints[1])));
}

#[test]
fn a_version_in_panic_needs_all_of_its_endpoints_whole() {
    let service = joined(3, 5_000, WINDOW, hello(1, 0).affinity);
    service.versions[0].set_panicking(true);

    assert!(at(&decisions(&service, 5_000), &service, 3) > 600);
}

#[test]
fn requests_that_cold_endpoints_do_not_take_are_spread_over_the_warm_ones() {
    let hello = |stable| ServiceConfig { affinity: Affinity::None, ..hello(stable, WINDOW) };
    let mut model = Model::new(config(vec![hello(2)]), Names::new(), 1_000).unwrap();
    model.configure(config(vec![hello(10)]), Names::new(), 5_000).unwrap();
    let service = model.snapshot().services[0].clone();
    let pins = Pins::new(10);

    let requests: Vec<Decision> = (0..CLIENTS)
        .map(|n| {
            let roll = super::super::decide::split::weyl(n.into(), 7);
            decide(&service, &pins, Client { roll, ..client(n) }, 5_000).unwrap()
        })
        .collect();

    let (first, second) = (at(&requests, &service, 0), at(&requests, &service, 1));
    assert!(first.abs_diff(second) * 5 < first.max(second), "{first} and {second}");
}
