use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::{HealthCheck, Service as ServiceConfig};
use crate::decide::Why;
use crate::state::decision::{Client, decide};
use crate::state::fixtures::{config, service};
use crate::state::model::{Model, Names};
use crate::state::pins::Pins;

const FIVE: [&str; 5] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80"];

fn check(panic_percent: u8) -> HealthCheck {
    let second = Duration::from_secs(1);
    HealthCheck { path: "/".to_owned(), port: None, interval: second, timeout: second, rise: 1, fall: 1, panic_percent }
}

fn built(config_of: ServiceConfig) -> Arc<Service> {
    Model::new(config(vec![config_of]), Names::new(), 0).unwrap().snapshot().services[0].clone()
}

/// `stable` with five endpoints and `canary` with one.
fn two_versions(panic_percent: u8, when_empty: WhenEmpty) -> Arc<Service> {
    built(ServiceConfig {
        health: Some(check(panic_percent)),
        when_empty,
        ..service("hello", &[("stable", 1.0, &FIVE), ("canary", 1.0, &["10.0.1.1:80"])])
    })
}

fn fail(service: &Service, version: usize, count: usize) {
    let endpoints = &service.versions[version].endpoints;
    endpoints.iter().enumerate().for_each(|(i, e)| e.health.set_healthy(i >= count, 0));
}

fn panicking(service: &Service) -> Vec<bool> {
    look(service, 0);
    service.versions.iter().map(Version::is_panicking).collect()
}

#[test]
fn a_version_panics_below_its_share_of_healthy_endpoints_and_calms_down_at_it() {
    let service = two_versions(60, WhenEmpty::Fallback);

    fail(&service, 0, 2);
    assert_eq!(panicking(&service), [false, false], "60 % of five are three");
    fail(&service, 0, 3);
    let changes = look(&service, 0);
    assert_eq!(changes, [Change { version: 0, is_panicking: true, healthy: 2, of: 5 }]);
    assert_eq!(look(&service, 0), [], "told once");

    fail(&service, 0, 2);
    assert_eq!(panicking(&service), [false, false]);
}

#[test]
fn of_four_endpoints_one_healthy_one_is_enough_by_default() {
    let service = built(ServiceConfig { health: Some(check(25)), ..service("hello", &[("v", 1.0, &FIVE[..4])]) });

    fail(&service, 0, 3);

    assert_eq!(panicking(&service), [false]);
}

#[test]
fn none_healthy_is_for_when_empty_while_another_version_can_take_them() {
    let service = two_versions(50, WhenEmpty::Fallback);

    fail(&service, 1, 1);
    assert_eq!(panicking(&service), [false, false]);

    fail(&service, 0, 5);
    assert_eq!(panicking(&service), [true, true], "nowhere to go");

    let failing = two_versions(50, WhenEmpty::Fail);
    fail(&failing, 0, 5);
    fail(&failing, 1, 1);
    assert_eq!(panicking(&failing), [false, false], "they asked for 503");
}

#[test]
fn at_0_percent_nothing_panics() {
    let service = two_versions(0, WhenEmpty::Fallback);

    fail(&service, 0, 5);
    fail(&service, 1, 1);

    assert_eq!(panicking(&service), [false, false]);
}

#[test]
fn endpoints_on_their_way_out_neither_count_nor_serve() {
    let service = two_versions(50, WhenEmpty::Fail);
    let endpoints = &service.versions[0].endpoints;
    fail(&service, 0, 2);
    endpoints[3].health.set_draining(true);
    endpoints[4].health.set_gone();

    assert_eq!(panicking(&service), [true, false], "one of three");

    let takes: Vec<bool> = endpoints.iter().map(|e| service.versions[0].takes(e, 0)).collect();
    assert_eq!(takes, [true, true, true, false, false]);
}

#[test]
fn in_a_panic_everyone_stays_on_the_version_and_newcomers_spread_over_all_endpoints() {
    let service = two_versions(50, WhenEmpty::Fallback);
    let pins = Pins::new(10_000);
    let ask = |n: u32| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into();
        decide(&service, &pins, Client { address, roll: 0, forced: None }, 0).unwrap()
    };
    let before: Vec<_> = (0..500).map(ask).collect();

    fail(&service, 0, 4);
    look(&service, 0);

    for (n, before) in before.iter().enumerate() {
        let now = ask(u32::try_from(n).unwrap());
        assert_eq!((now.version, now.why), (before.version, Why::Cohort));
        assert!(Arc::ptr_eq(&now.endpoint, &before.endpoint), "nor does anybody change endpoints");
    }
    let mut newcomers = [0; 5];
    for decision in (500..1_500).map(ask).filter(|d| d.version == 0) {
        let at = service.versions[0].endpoints.iter().position(|e| Arc::ptr_eq(e, &decision.endpoint));
        newcomers[at.unwrap()] += 1;
    }
    // About 100 each.
    assert!(newcomers.iter().all(|count| *count > 50), "{newcomers:?}");
}
