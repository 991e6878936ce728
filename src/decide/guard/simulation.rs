//! The guard on simulated ramps: how often it aborts a canary that is as good as the stable side, and how soon one that
//! is not. Seeded; a look draws the count of every latency bucket, which is a Poisson stream of requests, exactly (means
//! above 50 by the normal curve, which only the stable side's large buckets meet).

use std::collections::HashMap;

use super::*;

/// splitmix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded, not negative, small")]
    fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 50.0 {
            let normal = (-2.0 * (1.0 - self.next()).ln()).sqrt() * (std::f64::consts::TAU * self.next()).cos();
            return (mean + mean.sqrt() * normal).round().max(0.0) as u64;
        }
        let (mut term, mut roll, mut n) = ((-mean).exp(), self.next(), 0);
        while roll > term && n < 500 {
            roll -= term;
            n += 1;
            term *= mean / n as f64;
        }
        n
    }
}

/// How long requests take: share that takes at least so many milliseconds.
#[derive(Clone, Copy, PartialEq)]
enum Latency {
    /// Median 40 ms; sigma 1: the p99 is ten times the median.
    LogNormal(f64),
    /// At least 10 ms, and a tail without a mean to speak of.
    Pareto(f64),
    /// Nine in ten at the median or so, and a slow tenth whose tail stretches alone.
    SlowTenth,
}

impl Latency {
    fn above(self, millis: f64, stretch: f64) -> f64 {
        let normal = |z: f64| 0.5 * libm::erfc(z / std::f64::consts::SQRT_2);
        match self {
            _ if millis <= 0.0 => 1.0,
            Self::LogNormal(sigma) => normal((millis / stretch / 40.0).ln() / sigma),
            Self::Pareto(power) => (millis / stretch / 10.0).max(1.0).powf(-power),
            Self::SlowTenth => {
                0.9 * normal((millis / 40.0).ln() / 0.2) + 0.1 * normal((millis / stretch / 150.0).ln() / 0.5)
            }
        }
    }
}

/// What both sides share.
#[derive(Clone, Copy)]
struct World {
    errors: f64,
    latency: Latency,
    /// Load, error rate and latency go up and down by a factor of up to 4, bursts included.
    varies: bool,
}

/// What the canary does otherwise.
#[derive(Clone, Copy)]
struct Fault {
    errors: f64,
    stretch: f64,
}

const NONE: Fault = Fault { errors: 1.0, stretch: 1.0 };

/// Requests of both sides in a look, on average.
const LOAD: f64 = 2_000.0;

struct Simulation {
    chance: Chance,
    /// Buckets that are drawn as one, for speed. Fair only while no side is stretched.
    group: usize,
    shares: HashMap<(u64, u64), Vec<(usize, f64)>>,
}

impl Simulation {
    fn look(&mut self, world: World, fault: Fault, requests: f64, swing: f64) -> Outcomes {
        let stretch = fault.stretch * swing;
        let key = (requests.to_bits() ^ stretch.to_bits(), stretch.to_bits());
        let group = self.group;
        let shares = self.shares.entry(key).or_insert_with(|| {
            let above = |b: usize| world.latency.above(floor(b).as_secs_f64() * 1000.0, stretch);
            let drawn = |b: usize| (b, above(b) - above(b + group));
            (0..BUCKETS - group).step_by(group).map(drawn).filter(|(_, share)| *share > 1e-9).collect()
        });
        let mut counts = vec![0; BUCKETS];
        for (bucket, share) in shares.iter() {
            counts[*bucket] = self.chance.poisson(requests * share);
        }
        let size: u64 = counts.iter().sum();
        let failures = self.chance.poisson(size as f64 * (world.errors * fault.errors * swing).min(1.0)).min(size);
        Outcomes::new(failures, counts)
    }

    /// Canary requests and the test at the abort, if there was one.
    fn ramp(&mut self, rules: &Rules, world: World, fault: Fault, steps: &[(f64, u32)]) -> Option<(u64, Metric)> {
        let (mut guard, mut window) = (Guard::default(), Window::default());
        let mut served = 0;
        for (weight, looks) in steps {
            guard.begin_step();
            window.begin_step();
            for at in 0..*looks {
                // Eight levels from a half to two, and a burst now and then.
                let wave = (f64::from(at % 60) / 60.0 * std::f64::consts::TAU).sin();
                let burst = if at % 47 == 13 { 2.0 } else { 1.0 };
                let swing = if world.varies { (wave * 4.0).round().exp2().powf(0.25) * burst } else { 1.0 };
                let load = if world.varies { LOAD / swing } else { LOAD };
                let stable = self.look(world, NONE, load * (1.0 - weight), swing);
                let canary = self.look(world, fault, load * weight, swing);
                served += canary.requests();
                guard.look(rules, &mut window, &stable, &canary, 1.0 / f64::from(*looks), true);
                if let Verdict::Worse(metric) = guard.verdict(rules, true) {
                    return Some((served, metric));
                }
            }
        }
        None
    }
}

/// Aborts of so many ramps: canary requests served, and the test.
fn aborts(ramps: u64, rules: &Rules, world: World, fault: Fault, steps: &[(f64, u32)]) -> Vec<(u64, Metric)> {
    let group = if (fault.stretch - 1.0).abs() < 1e-9 { 4 } else { 1 };
    let one = |first: u64| {
        let mut simulation = Simulation { chance: Chance(first * 7_919), group, shares: HashMap::new() };
        (0..ramps / 2).filter_map(|_| simulation.ramp(rules, world, fault, steps)).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let halves = [scope.spawn(|| one(1)), scope.spawn(|| one(2))];
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    })
}

/// A whole ramp.
const RAMP: [(f64, u32); 4] = [(0.01, 100), (0.05, 50), (0.25, 50), (0.5, 50)];
/// 2,000 requests at 1 %.
const FIRST: [(f64, u32); 1] = [(0.01, 100)];

const LOG_NORMAL: Latency = Latency::LogNormal(1.0);

fn ceilings() -> Rules {
    Rules { max_error_ratio: Some(0.25), max_p99: Some(Duration::from_secs(20)), ..Rules::default() }
}

fn share(of: usize, ramps: u64) -> f64 {
    of as f64 / ramps as f64
}

fn assert_no_false_aborts(world: World, fault: Fault) {
    let ramps = 60;

    let aborted = aborts(ramps, &ceilings(), world, fault, &RAMP);

    // One in 60 is within the bound's noise; thousands are in the table below.
    assert!(aborted.len() <= 1, "{aborted:?}");
}

#[test]
fn a_canary_as_good_as_stable_is_not_aborted() {
    for errors in [0.0, 0.001, 0.01, 0.05] {
        assert_no_false_aborts(World { errors, latency: LOG_NORMAL, varies: false }, NONE);
    }
}

#[test]
fn what_both_sides_suffer_is_not_held_against_the_canary() {
    assert_no_false_aborts(World { errors: 0.02, latency: Latency::Pareto(1.2), varies: true }, NONE);
}

#[test]
fn a_canary_slower_within_the_tolerance_is_not_aborted() {
    let fault = Fault { stretch: 1.1, ..NONE };

    assert_no_false_aborts(World { errors: 0.001, latency: LOG_NORMAL, varies: true }, fault);
}

/// At 1 %, before it has served 2,000 requests.
fn assert_caught(errors: f64, latency: Latency, fault: Fault, at_least: f64) {
    let ramps = 100;

    let caught = aborts(ramps, &Rules::default(), World { errors, latency, varies: false }, fault, &FIRST);

    assert!(share(caught.len(), ramps) >= at_least, "{} of {ramps}", caught.len());
}

#[test]
fn twice_the_errors_are_caught_at_one_percent_within_2000_requests() {
    let fault = Fault { errors: 2.0, ..NONE };

    // What can be had at all: `bounds`.
    assert_caught(0.01, LOG_NORMAL, fault, 0.60);
    assert_caught(0.02, LOG_NORMAL, fault, 0.90);
    assert_caught(0.03, LOG_NORMAL, fault, 0.95);
    assert_caught(0.05, LOG_NORMAL, fault, 0.99);
}

#[test]
fn a_p99_half_as_long_again_is_caught_at_one_percent_within_2000_requests() {
    let fault = Fault { stretch: 1.5, ..NONE };

    assert_caught(0.001, LOG_NORMAL, fault, 0.99);
    assert_caught(0.001, Latency::Pareto(1.5), fault, 0.99);
    assert_caught(0.001, Latency::SlowTenth, fault, 0.9);
}

#[test]
fn a_broken_canary_is_caught_within_a_few_requests() {
    let fault = Fault { errors: 1000.0, ..NONE };

    let caught =
        aborts(100, &Rules::default(), World { errors: 0.001, latency: LOG_NORMAL, varies: false }, fault, &FIRST);

    assert_eq!(caught.len(), 100);
    assert!(caught.iter().all(|(served, _)| *served < 80), "{:?}", caught.iter().map(|c| c.0).max());
}

#[test]
fn a_fault_that_comes_late_is_caught_too() {
    let world = World { errors: 0.01, latency: LOG_NORMAL, varies: false };
    let rules = Rules::default();
    let mut simulation = Simulation { chance: Chance(5), group: 4, shares: HashMap::new() };
    let (mut guard, mut window) = (Guard::default(), Window::default());
    guard.begin_step();
    for at in 0..1_000 {
        // After 900 looks of good conduct in one long step.
        let fault = if at < 900 { NONE } else { Fault { errors: 3.0, ..NONE } };
        let (stable, canary) = (simulation.look(world, NONE, 1_500.0, 1.0), simulation.look(world, fault, 500.0, 1.0));
        guard.look(&rules, &mut window, &stable, &canary, 0.001, true);
        if let Verdict::Worse(metric) = guard.verdict(&rules, true) {
            assert!(at >= 900 && metric == Metric::Errors, "{metric:?} at {at}");
            return;
        }
    }
    panic!("not caught");
}

/// How many ramps a figure is of. Without optimisation only whether they still run is of interest: tests/figures --debug.
const RAMPS: u64 = if cfg!(debug_assertions) { 10 } else { 1_000 };

/// The table of docs/rollouts.md.
#[test]
#[ignore = "the table of docs/rollouts.md; takes minutes without optimisation"]
fn operating_characteristics() {
    let ramps = RAMPS;
    println!("\nhow often a ramp is aborted, {ramps} simulated ramps for each line (docs/rollouts.md):");
    for (rules, name) in [(Rules::default(), "default"), (ceilings(), "ceilings")] {
        for errors in [0.0, 0.001, 0.01, 0.05] {
            for latency in [LOG_NORMAL, Latency::Pareto(1.2), Latency::SlowTenth] {
                for varies in [false, true] {
                    let aborted = aborts(ramps, &rules, World { errors, latency, varies }, NONE, &RAMP);
                    let kind = match latency {
                        Latency::LogNormal(_) => "lognormal",
                        Latency::Pareto(_) => "pareto",
                        Latency::SlowTenth => "slow-tenth",
                    };
                    println!(
                        "no fault, {name} rules, errors {errors}, latency {kind}{}: {:.2}% false aborts",
                        if varies { ", varying" } else { "" },
                        100.0 * share(aborted.len(), ramps)
                    );
                }
            }
        }
    }
    let told = |what: String, mut caught: Vec<(u64, Metric)>| {
        caught.sort_unstable();
        let median = caught
            .get(usize::try_from(ramps / 2).unwrap())
            .map_or(String::new(), |c| format!(", half within {} requests", c.0));
        println!("{what}: {:.1}% caught{median}", 100.0 * share(caught.len(), ramps));
    };
    for errors in [0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.05, 0.1] {
        for factor in [2.0, 3.0, 5.0, 10.0, 20.0] {
            if errors * factor <= 0.5 {
                let world = World { errors, latency: LOG_NORMAL, varies: false };
                let caught = aborts(ramps, &Rules::default(), world, Fault { errors: factor, ..NONE }, &FIRST);
                told(format!("errors {errors} x{factor} in the canary"), caught);
            }
        }
    }
    for (latency, kind) in [
        (LOG_NORMAL, "lognormal 1"),
        (Latency::LogNormal(0.3), "lognormal 0.3"),
        (Latency::Pareto(1.5), "pareto 1.5"),
        (Latency::Pareto(1.2), "pareto 1.2"),
        (Latency::SlowTenth, "slow tenth"),
    ] {
        for stretch in [1.2, 1.3, 1.5, 2.0, 3.0] {
            let world = World { errors: 0.001, latency, varies: false };
            told(
                format!("latency {kind} x{stretch} in the canary"),
                aborts(ramps, &Rules::default(), world, Fault { stretch, ..NONE }, &FIRST),
            );
        }
    }
}

/// The limit that docs/rollouts.md warns of: failures that belong to clients, not to versions. One client in twenty has
/// most of the failures, and a canary of few clients has more or fewer of those by chance.
#[test]
#[ignore = "the second table of docs/rollouts.md; takes minutes without optimisation"]
fn failures_that_belong_to_clients() {
    let (ramps, errors, troubled) = (RAMPS, 0.01, 0.05);
    println!("\nfailures that belong to clients, {ramps} simulated ramps for each line (docs/rollouts.md):");
    for clients in [10, 30, 100, 300, 1_000, 10_000] {
        for tolerance in [0.0, 0.5, 1.0, 2.0] {
            let rules = Rules { error_tolerance: tolerance, ..Rules::default() };
            let mut simulation = Simulation { chance: Chance(clients), group: 4, shares: HashMap::new() };
            let aborted = (0..ramps).filter(|_| {
                let mine = (0..clients).filter(|_| simulation.chance.next() < troubled).count();
                let fault = Fault { errors: mine as f64 / (clients as f64 * troubled), stretch: 1.0 };
                let world = World { errors, latency: LOG_NORMAL, varies: false };
                simulation.ramp(&rules, world, fault, &FIRST).is_some()
            });
            let part = 100.0 * share(aborted.count(), ramps);
            println!("{clients} canary clients, tolerance {:.0}%: {part:.1}% false aborts", 100.0 * tolerance);
        }
    }
}
