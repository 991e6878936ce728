//! What a process that remembers nobody says to clients of drains that began before it: the same as one that remembers
//! all of them. And what becomes of who took shelter while its draining version was empty.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::clock::Moment;
use super::decision::{Client, decide};
use super::fixtures::{config, service};
use super::model::{Change, Model, Names};
use super::pins::Pins;
use super::snapshot::Service;
use crate::config::{Affinity, Service as ServiceConfig};
use crate::decide::reweigh::Amount;
use crate::decide::rollout::verb::Verb;
use crate::decide::rollout::{OnDecrease, Rollouts};
use crate::decide::{KeyPrefix, Why};

const MINUTE: u64 = 60_000;
const HOUR: Duration = Duration::from_secs(3600);

/// A process with its clients.
struct World {
    model: Model,
    pins: Pins,
}

impl World {
    /// Its own clock begins anew, wall time goes on.
    fn start(config: ServiceConfig, rollouts: Rollouts, wall: u64) -> Self {
        let model = Model::with_rollouts(self::config(vec![config]), Names::new(), rollouts, at(wall, wall)).unwrap();
        Self { model, pins: Pins::new(10_000) }
    }

    fn rollouts(&self) -> Rollouts {
        Rollouts::clone(&self.model.snapshot().rollouts)
    }

    fn service(&self) -> Arc<Service> {
        self.model.snapshot().services[0].clone()
    }

    fn set(&mut self, version: &str, percent: f64, rule: OnDecrease, now: Moment) {
        let amounts = vec![(version.to_owned(), Amount::percent(percent).unwrap())];
        let verb = Verb::SetWeights { amounts, closed: false, on_decrease: Some(rule) };
        // A lone version can't have another share.
        drop(self.model.change(&Change::new("hello", verb, "test"), now));
    }

    fn ask(&self, n: u32, now: u64) -> (String, Why) {
        let service = self.service();
        let answer = decide(&service, &self.pins, Client { address: address(n), roll: 0, forced: None }, now).unwrap();
        (service.versions[answer.version].name.to_string(), answer.why)
    }
}

fn at(wall: u64, started: u64) -> Moment {
    Moment { clock: 1_000 + wall - started, wall }
}

fn address(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + n * 0x0001_0001).into()
}

fn hello(weights: &[f64]) -> ServiceConfig {
    let endpoints: &[&[&str]] = &[&["10.0.0.1:80"], &["10.0.0.2:80"], &["10.0.0.3:80"]];
    let versions: Vec<_> = std::iter::zip(["stable", "canary", "beta"], weights)
        .zip(endpoints)
        .map(|((name, weight), endpoints)| (name, *weight, *endpoints))
        .collect();
    let affinity = Affinity::ClientIp { prefix: KeyPrefix::default(), timeout: HOUR };
    ServiceConfig { affinity, ..service("hello", &versions) }
}

fn drain(minutes: u64) -> OnDecrease {
    OnDecrease::Drain { deadline: Duration::from_millis(minutes * MINUTE) }
}

/// The canary had a half, and drains from minute 1 on, for 30 minutes; killed and started in minute 2.
fn drained_and_restarted() -> (World, World) {
    let mut before = World::start(hello(&[50.0, 50.0]), Rollouts::default(), 0);
    (0..100).for_each(|n| drop(before.ask(n, 1_000)));
    before.set("canary", 0.0, drain(30), at(MINUTE, 0));
    let after = World::start(hello(&[50.0, 50.0]), before.rollouts(), 2 * MINUTE);
    (before, after)
}

#[test]
fn a_restarted_process_holds_who_was_on_the_draining_version_until_the_deadline() {
    let (before, mut after) = drained_and_restarted();
    let clock = |minute: u64| at(minute * MINUTE, 2 * MINUTE).clock;

    for n in 0..100 {
        let (version, why) = before.ask(n, MINUTE + 1_000);
        assert_eq!(after.ask(n, clock(3)), (version, why), "client {n}");
    }
    after.model.rebuild(at(31 * MINUTE, 2 * MINUTE)).unwrap();

    assert!((0..100).all(|n| after.ask(n, clock(31)) == ("stable".to_owned(), Why::Cohort)));
}

#[test]
fn the_process_that_began_the_drain_takes_unknown_clients_for_new() {
    let (before, _) = drained_and_restarted();

    assert!((100..200).all(|n| before.ask(n, 2 * MINUTE) == ("stable".to_owned(), Why::Cohort)));
}

#[test]
fn after_one_idle_timeout_a_restarted_process_knows_who_was_active() {
    let mut before = World::start(hello(&[50.0, 50.0]), Rollouts::default(), 0);
    before.set("canary", 0.0, OnDecrease::Freeze, at(MINUTE, 0));
    let after = World::start(hello(&[50.0, 50.0]), before.rollouts(), 2 * MINUTE);
    let count = |clients: std::ops::Range<u32>, now| clients.filter(|n| after.ask(*n, now).0 == "canary").count();
    let hour = 1_000 + 60 * MINUTE;

    assert!(count(0..100, hour - 1) > 30, "held by the split before");
    assert_eq!(count(100..200, hour), 0, "new");
    assert!(count(0..100, hour) > 30, "remembered by now");
}

#[test]
fn a_document_that_comes_late_tells_by_the_clock_which_drains_began_before() {
    let (before, _) = drained_and_restarted();
    // The API server did not answer when it started: once before the drain, once after.
    for (started, is_held) in [(MINUTE / 2, false), (2 * MINUTE, true)] {
        let mut late = World::start(hello(&[50.0, 50.0]), Rollouts::default(), started);
        late.model.adopt(before.rollouts(), at(3 * MINUTE, started)).unwrap();
        let now = at(3 * MINUTE, started).clock;
        assert_eq!((0..100).any(|n| late.ask(n, now).0 == "canary"), is_held, "started at {started}");
    }
}

#[test]
fn a_clock_that_was_set_back_does_not_make_a_restarted_process_forget() {
    let (before, _) = drained_and_restarted();
    // Half a minute before the drain began, by that clock.
    let after = World::start(hello(&[50.0, 50.0]), before.rollouts(), MINUTE / 2);

    assert!((0..100).all(|n| after.ask(n, 2_000).0 == before.ask(n, 2 * MINUTE).0));
}

#[test]
fn weights_that_changed_while_perch_was_down_drain_as_if_it_had_been_there() {
    let config = |weights: &[f64]| ServiceConfig { on_decrease: drain(30), ..hello(weights) };
    let before = World::start(config(&[40.0, 40.0, 20.0]), Rollouts::default(), 0);
    let on: Vec<_> = (0..100).map(|n| before.ask(n, 1_000).0).collect();

    // The beta is gone, and the canary has less.
    let after = World::start(config(&[40.0, 10.0]), before.rollouts(), 2 * MINUTE);

    let mut held = 0;
    for (n, on) in (0..).zip(on) {
        let (version, why) = after.ask(n, 2_000);
        assert!(version == on || on == "beta", "client {n}: {on}, {version}");
        held += usize::from(why == Why::DrainPin && version == "canary");
    }
    assert!(held > 20);
}

#[test]
fn who_took_shelter_returns_to_its_draining_version() {
    let (world, _) = drained_and_restarted();
    let service = world.service();
    let health = |is_up| service.versions[1].endpoints.iter().for_each(|e| e.health.set_healthy(is_up, 0));
    let clients: Vec<u32> = (0..100).filter(|n| world.ask(*n, 2 * MINUTE).0 == "canary").collect();
    assert!(clients.len() > 30);

    health(false);
    for _ in 0..2 {
        assert!(clients.iter().all(|n| world.ask(*n, 3 * MINUTE) == ("stable".to_owned(), Why::WhenEmpty)));
    }
    health(true);

    assert!(clients.iter().all(|n| world.ask(*n, 4 * MINUTE) == ("canary".to_owned(), Why::DrainPin)));
}

#[test]
fn who_took_shelter_before_the_drain_began_returns_as_well() {
    let mut world = World::start(hello(&[50.0, 50.0]), Rollouts::default(), 0);
    let service = world.service();
    let health = |is_up| service.versions[1].endpoints.iter().for_each(|e| e.health.set_healthy(is_up, 0));
    health(false);
    let clients: Vec<u32> = (0..100).filter(|n| world.ask(*n, 1_000).1 == Why::WhenEmpty).collect();
    assert!(clients.len() > 30);

    world.set("canary", 0.0, drain(30), at(MINUTE, 0));
    health(true);

    assert!(clients.iter().all(|n| world.ask(*n, 2 * MINUTE) == ("canary".to_owned(), Why::DrainPin)));
}

#[test]
fn an_override_for_once_does_not_end_a_drain() {
    let (world, _) = drained_and_restarted();
    let service = world.service();
    let forced = Some(crate::decide::Forced::To(0));

    for n in 0..100 {
        let (version, _) = world.ask(n, 2 * MINUTE);
        decide(&service, &world.pins, Client { address: address(n), roll: 0, forced }, 2 * MINUTE).unwrap();
        assert_eq!(world.ask(n, 2 * MINUTE).0, version);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 512 }))]

    /// Clients that were active all the time, through any changes of weights; then all that was known of them is lost.
    #[test]
    fn a_process_that_remembers_nobody_answers_like_the_one_before(
        weights in prop::collection::vec(1.0f64..100.0, 2..4),
        changes in prop::collection::vec((0usize..3, 0u8..=100, 0u8..8), 1..12),
    ) {
        let mut before = World::start(hello(&weights), Rollouts::default(), 0);
        let mut now = MINUTE;
        (0..60).for_each(|n| drop(before.ask(n, now)));
        for (version, percent, rule) in changes {
            now += MINUTE;
            let rule = match rule { 0 => OnDecrease::Evict, 1 => OnDecrease::Freeze, _ => drain(1_000) };
            before.set(["stable", "canary", "beta"][version], percent.into(), rule, at(now, 0));
            (0..60).for_each(|n| drop(before.ask(n, at(now, 0).clock)));
        }

        let after = World::start(hello(&weights), before.rollouts(), now + 1);

        for n in 0..60 {
            prop_assert_eq!(after.ask(n, 1_001).0, before.ask(n, at(now + 2, 0).clock).0, "client {}", n);
        }
    }
}
