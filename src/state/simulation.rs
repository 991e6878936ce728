//! A simulation of everything between the sources of change and a decision: seeds drive weights, reloads, endpoints,
//! health and time against the model, the pin table and `decide`; after every answer the contract is checked. A failing
//! seed is printed and replays exactly.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::decision::{Client, decide};
use super::fixtures::{config, service};
use super::model::{Change, Model, Names};
use super::panic::look;
use super::pins::Pins;
use super::snapshot::Service;
use crate::config::{Affinity, HealthCheck, OnDecrease, Service as ServiceConfig};
use crate::decide::reweigh::Amount;
use crate::decide::rollout::verb::Verb;
use crate::decide::{ClientKey, Hold, KeyPrefix, NoVersion, WhenEmpty, Why};

const SEEDS: u64 = if cfg!(debug_assertions) { 16 } else { 256 };
const STEPS: usize = 150;
const CLIENTS: u32 = 60;
const TIMEOUT: Duration = Duration::from_secs(300);

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % below
    }

    fn rule(&mut self) -> OnDecrease {
        match self.roll(4) {
            0 => OnDecrease::Freeze,
            1 | 2 => OnDecrease::Drain { deadline: Duration::from_secs(1 + self.roll(120)) },
            _ => OnDecrease::Evict,
        }
    }
}

struct World {
    seed: u64,
    dice: Dice,
    now: u64,
    model: Model,
    pins: Pins,
    /// What some worker still decides on.
    stale: Arc<Service>,
    panics: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let model = Model::new(config(vec![some_service(seed, &mut dice)]), Names::new(), 0).unwrap();
        let stale = model.snapshot().services[0].clone();
        // Small enough to be full now and then.
        Self { seed, dice, now: 1_000, model, pins: Pins::new(50), stale, panics: 0 }
    }

    fn service(&self) -> Arc<Service> {
        self.model.snapshot().services[0].clone()
    }

    fn step(&mut self) {
        if self.dice.roll(4) == 0 {
            self.stale = self.service();
        }
        match self.dice.roll(10) {
            0 => self.set_weight(),
            1 => {
                let next = some_service(self.seed, &mut self.dice);
                self.model.configure(config(vec![next]), Names::new(), self.now).unwrap();
            }
            2 | 3 => {
                let service = self.service();
                for endpoint in service.versions.iter().flat_map(|v| &v.endpoints) {
                    endpoint.health.set_healthy(self.dice.roll(3) > 0, self.now);
                }
            }
            4 => self.now += self.dice.roll(60_000),
            5 => self.now += 100,
            6 => self.pins.sweep(self.now),
            7 => self.panics += look(&self.service(), self.now).iter().filter(|c| c.is_panicking).count(),
            _ => {}
        }
        if self.model.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.model.rebuild(self.now).unwrap();
        }
        self.model.take_leaving().iter().for_each(|e| e.health.set_gone());
        for _ in 0..20 {
            let service = if self.dice.roll(10) == 0 { self.stale.clone() } else { self.service() };
            let client = u32::try_from(self.dice.roll(CLIENTS.into())).unwrap();
            self.ask(&service, client);
        }
    }

    fn set_weight(&mut self) {
        let service = self.service();
        let at = usize::try_from(self.dice.roll(service.versions.len() as u64)).unwrap();
        let percent = u32::try_from(self.dice.roll(101)).unwrap();
        let amounts = vec![(service.versions[at].name.to_string(), Amount::percent(percent.into()).unwrap())];
        let verb = match self.dice.roll(12) {
            0 => Verb::Abort,
            1 => Verb::Pause,
            2 | 3 => Verb::Resume { skip: false },
            4 => Verb::Undo { to_revision: None, on_decrease: None },
            _ => {
                let on_decrease = (self.dice.roll(3) == 0).then(|| self.dice.rule());
                Verb::SetWeights { amounts, closed: false, on_decrease }
            }
        };
        let change = Change::new(&*service.name, verb, "simulation");
        // A lone version can't have a share below 100 %, a paused one no other weights.
        drop(self.model.change(&change, self.now));
    }

    /// One request, and the contract on its answer.
    fn ask(&self, service: &Service, n: u32) {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + n * 0x0001_0001).into();
        let (key, now) = (ClientKey::new(address, KeyPrefix::default()), self.now);
        let split = &service.policy.split;
        let own = split.version_of(key);
        let is_usable = |v: usize| service.versions[v].endpoints.iter().any(|e| service.versions[v].takes(e, now));
        let is_held = |v: usize| match service.policy.holds[v] {
            Hold::None => false,
            Hold::Until(deadline) => now < deadline,
            Hold::Frozen => true,
        };
        let before = self.pins.peek(service.id, key, now, TIMEOUT);
        // Not where it took shelter: whoever was given a version by the split, or held on it, is held there.
        let home = before.as_ref().and_then(|p| service.versions.iter().position(|v| Some(v.id) == p.home));
        let held = home.filter(|v| is_held(*v));
        let due = held.or(own);

        let answer = decide(service, &self.pins, Client { address, roll: 0, forced: None }, now);

        let told = format!("seed {}, now {now}, {before:?} -> {answer:?}, own {own:?}", self.seed);
        match answer {
            Ok(answer) => {
                let expected = match (held, service.policy.holds[answer.version]) {
                    _ if Some(answer.version) != due => Why::WhenEmpty,
                    (Some(_), Hold::Frozen) => Why::FreezePin,
                    (Some(_), Hold::Until(_) | Hold::None) => Why::DrainPin,
                    (None, _) => Why::Cohort,
                };
                assert_eq!((answer.why, answer.home), (expected, due), "{told}");
                assert!(answer.why != Why::WhenEmpty || due.is_some_and(|v| !is_usable(v)), "{told}");
                assert!(service.versions[answer.version].takes(&answer.endpoint, now), "{told}");
                if let Some(before) = before.filter(|b| b.version == service.versions[answer.version].id)
                    && service.versions[answer.version].takes(&before.endpoint, now)
                {
                    assert!(Arc::ptr_eq(&before.endpoint, &answer.endpoint), "kept while usable: {told}");
                }
            }
            Err(NoVersion::Closed) => panic!("{told}"),
            Err(NoVersion::NoEndpoint(version)) => {
                assert_eq!(Some(version), due, "{told}");
                let nowhere = (0..split.len()).all(|v| !is_usable(v) || split.weight(v).unwrap().is_zero());
                assert!(!is_usable(version) && (nowhere || service.policy.when_empty == WhenEmpty::Fail), "{told}");
            }
        }
    }
}

/// Two or three versions, up to four endpoints each out of a few addresses that come and go.
fn some_service(seed: u64, dice: &mut Dice) -> ServiceConfig {
    let count = 2 + usize::from(dice.roll(3) == 0);
    let weights: Vec<f64> = (0..count).map(|_| f64::from(u32::try_from(dice.roll(100)).unwrap() + 1)).collect();
    let endpoints: Vec<Vec<String>> =
        (0..count).map(|v| (0..4).filter(|_| dice.roll(3) > 0).map(|e| format!("10.0.{v}.{e}:80")).collect()).collect();
    let endpoints: Vec<Vec<&str>> = endpoints.iter().map(|e| e.iter().map(String::as_str).collect()).collect();
    let versions: Vec<(&str, f64, &[&str])> = std::iter::zip(["stable", "canary", "beta"], &weights)
        .zip(&endpoints)
        .map(|((name, weight), endpoints)| (name, *weight, endpoints.as_slice()))
        .collect();
    let health = HealthCheck {
        path: "/".to_owned(),
        port: None,
        interval: TIMEOUT,
        timeout: TIMEOUT,
        rise: 1,
        fall: 1,
        panic_percent: u8::try_from(dice.roll(101)).unwrap(),
    };
    ServiceConfig {
        affinity: Affinity::ClientIp { prefix: KeyPrefix::default(), timeout: TIMEOUT },
        health: (dice.roll(2) == 0).then_some(health),
        on_decrease: dice.rule(),
        slow_start: Duration::from_secs(dice.roll(2) * 60),
        when_empty: if dice.roll(4) == 0 { WhenEmpty::Fail } else { WhenEmpty::Fallback },
        ..service(&format!("simulated-{seed}"), &versions)
    }
}

#[test]
fn whatever_happens_every_answer_keeps_the_contract_and_no_flip_is_unexplained() {
    let mut panics = 0;
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        panics += world.panics;
    }
    assert!(panics > 0, "the simulation reaches panics");

    let rendered = crate::metrics::handle().render();
    let flips: HashMap<&str, u64> = rendered
        .lines()
        .filter(|l| l.starts_with("perch_version_flips_total{service=\"simulated-"))
        .filter_map(|l| {
            let (labels, count) = l.rsplit_once(' ')?;
            Some((labels.split("reason=\"").nth(1)?.split('"').next()?, count.parse().ok()?))
        })
        .fold(HashMap::new(), |mut sums, (reason, count): (&str, u64)| {
            *sums.entry(reason).or_default() += count;
            sums
        });
    assert_eq!(flips["unexplained"], 0, "{flips:?}");
    for reason in ["weight-change", "abort", "when-empty", "drain-deadline"] {
        assert!(flips[reason] > 0, "the simulation reaches all it is meant to: {flips:?}");
    }
}
