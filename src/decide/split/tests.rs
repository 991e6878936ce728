use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::decide::KeyPrefix;
use crate::decide::reweigh::{Amount, Standing, reweigh};

mod golden;

const NAMES: [&str; 6] = ["stable", "canary", "beta", "blue", "green", "next"];

fn weight(value: f64) -> Weight {
    Weight::new(value).unwrap()
}

fn split(versions: &[(&str, f64)]) -> Split {
    Split::new(Salt::new("hello", ""), versions.iter().map(|(n, w)| (*n, weight(*w))))
}

fn of_weights(weights: &[Weight]) -> Split {
    Split::new(Salt::new("hello", ""), NAMES.iter().copied().zip(weights.iter().copied()))
}

fn v4(n: u32) -> ClientKey {
    ClientKey::new(IpAddr::V4(Ipv4Addr::from_bits(n)), KeyPrefix::default())
}

/// A /64.
fn v6(network: u64) -> ClientKey {
    ClientKey::new(IpAddr::V6(Ipv6Addr::from_bits(u128::from(network) << 64)), KeyPrefix::default())
}

/// Any numbers, the same each time (splitmix64).
fn random(n: u64) -> u64 {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[expect(clippy::cast_possible_truncation, reason = "the low half")]
fn low(n: u64) -> u32 {
    n as u32
}

fn clients(count: u64) -> impl Iterator<Item = ClientKey> {
    (0..count).map(|n| if n % 2 == 0 { v4(low(random(n))) } else { v6(random(n)) })
}

fn count(split: &Split, clients: impl Iterator<Item = ClientKey>) -> Vec<u64> {
    let mut counts = vec![0; split.len()];
    clients.for_each(|key| counts[split.version_of(key).unwrap()] += 1);
    counts
}

// Clause 1: see `golden`.

#[test]
fn a_weight_keeps_six_decimals_and_refuses_what_is_none() {
    assert_eq!(weight(0.1 + 0.2), weight(0.3));
    for none in [-1.0, f64::NAN, f64::INFINITY, 1e-7, 1e9 + 1.0] {
        assert_eq!(Weight::new(none), None, "{none}");
    }
    assert!(weight(0.0).is_zero() && weight(-0.0).is_zero() && !weight(1e-6).is_zero());
}

#[test]
fn zero_weight_gets_nobody_and_all_zero_is_no_version() {
    assert_eq!(count(&split(&[("stable", 1.0), ("canary", 0.0)]), clients(5_000))[1], 0);
    assert_eq!(split(&[("stable", 0.0), ("canary", 0.0)]).version_of(v4(1)), None);
    assert_eq!(split(&[("stable", 0.0)]).version_at(7, |_| true), None);
}

#[test]
fn the_largest_and_the_smallest_weights_stand_together() {
    let versions: Vec<(String, Weight)> = (0..1_000).map(|n| (format!("v{n}"), weight(1e9))).collect();
    let split = Split::new(Salt::new("", ""), versions.iter().map(|(n, w)| (n.as_str(), *w)));

    assert!((split.share(999) - 0.001).abs() < 1e-12);
    assert!(split.version_of(v4(1)).is_some() && split.version_at(u64::MAX, |_| true) == Some(999));
    let far_apart = of_weights(&[weight(1e9), weight(1e-6)]);
    assert_eq!(count(&far_apart, clients(1_000)), [1_000, 0]);
}

// Clause 2: the least movement.

/// Up to six versions, some of them at 0.
fn some_weights() -> impl Strategy<Value = Vec<Weight>> {
    let one = prop_oneof![1 => Just(0u32), 6 => 1u32..100_000];
    prop::collection::vec(one.prop_map(|n| weight(f64::from(n) / 100.0)), 2..=6)
        .prop_filter("somebody is served", |w| w.iter().any(|w| !w.is_zero()))
}

fn some_client() -> impl Strategy<Value = ClientKey> {
    prop_oneof![any::<u32>().prop_map(v4), any::<u64>().prop_map(v6)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn raising_one_weight_moves_clients_only_to_it_and_lowering_only_away(
        weights in some_weights(), at in 0usize..6, more in 1u32..100_000, key in some_client(),
    ) {
        let at = at % weights.len();
        let mut raised = weights.clone();
        raised[at] = weight(weights[at].value() + f64::from(more) / 100.0);

        let (low, high) = (of_weights(&weights).version_of(key), of_weights(&raised).version_of(key));

        prop_assert!(low == high || high == Some(at), "{low:?} -> {high:?}");
    }

    #[test]
    fn weights_in_equal_ratios_give_equal_answers(weights in some_weights(), factor in 1u32..1_000, key in some_client()) {
        let scaled: Vec<Weight> = weights.iter().map(|w| weight(w.value() * f64::from(factor))).collect();

        prop_assert_eq!(of_weights(&weights).version_of(key), of_weights(&scaled).version_of(key));
    }

    #[test]
    fn setting_a_share_moves_nobody_between_the_others(
        weights in some_weights(), percent in 0u32..=100, key in some_client(),
    ) {
        let standing: Vec<Standing<'_>> =
            NAMES.iter().zip(&weights).map(|(name, w)| Standing { name, weight: *w, configured: *w }).collect();
        // From nothing, the others come back: there is nobody to keep.
        prop_assume!(weights.iter().skip(1).any(|w| !w.is_zero()));
        let after = reweigh(&standing, &[("stable", Amount::Share(f64::from(percent) / 100.0))], false).unwrap();

        let (old, new) = (of_weights(&weights).version_of(key), of_weights(&after).version_of(key));

        prop_assert!(old == new || old == Some(0) || new == Some(0), "{old:?} -> {new:?}");
    }

    #[test]
    fn adding_a_version_moves_clients_only_to_it(weights in some_weights(), key in some_client()) {
        let fewer = &weights[..weights.len() - 1];
        prop_assume!(fewer.iter().any(|w| !w.is_zero()));

        let (old, new) = (of_weights(fewer).version_of(key), of_weights(&weights).version_of(key));

        prop_assert!(old == new || new == Some(weights.len() - 1));
    }

    #[test]
    fn the_order_of_versions_changes_nothing(weights in some_weights(), key in some_client()) {
        let named: Vec<(&str, Weight)> = NAMES.iter().copied().zip(weights).collect();
        let backwards = Split::new(Salt::new("hello", ""), named.iter().rev().copied());
        let forwards = Split::new(Salt::new("hello", ""), named.iter().copied());

        let name = |s: &Split| s.version_of(key).and_then(|v| s.name(v).cloned());
        prop_assert_eq!(name(&forwards), name(&backwards));
    }

    // Clause 4: who is without endpoints, and back.
    #[test]
    fn a_version_without_endpoints_sends_away_only_its_own_clients(
        weights in some_weights(), down in 0usize..6, key in some_client(),
    ) {
        let (split, down) = (of_weights(&weights), down % weights.len());
        let own = split.version_of(key);

        let meanwhile = split.version_among(key, |v| v != down);

        prop_assert!(own == Some(down) || meanwhile == own);
        prop_assert!(meanwhile != Some(down));
    }

    #[test]
    fn with_everything_admitted_the_answer_is_the_splits(weights in some_weights(), key in some_client()) {
        let split = of_weights(&weights);

        prop_assert_eq!(split.version_among(key, |_| true), split.version_of(key));
    }

    // Clause 6: the join point.
    #[test]
    fn a_client_joins_at_its_join_point_and_not_before(
        weights in some_weights(), at in 0usize..6, key in some_client(),
    ) {
        let (split, at) = (of_weights(&weights), at % weights.len());
        let Some(point) = split.join_point(at, key) else {
            prop_assert!(weights.iter().enumerate().all(|(i, w)| i == at || w.is_zero()));
            return Ok(());
        };
        prop_assert!(point > 0.0 && point < 1.0);
        let others: f64 = weights.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, w)| w.value()).sum();
        let at_share = |share: f64| {
            let exact = others * share / (1.0 - share);
            let mut all = weights.clone();
            all[at] = Weight::new(exact)?;
            // What six decimals leave of the share must be finer than the step we take.
            let rounding = (all[at].value() - exact).abs() / exact;
            (rounding < STEP / 10.0).then(|| of_weights(&all).version_of(key))
        };

        if let Some(below) = at_share(point * (1.0 - STEP)) {
            prop_assert_ne!(below, Some(at));
        }
        if let Some(above) = at_share((point * (1.0 + STEP)).min(1.0 - 1e-9)) {
            prop_assert_eq!(above, Some(at));
        }
    }
}

const STEP: f64 = 1e-4;

#[test]
fn the_join_point_of_everyone_is_below_the_share_they_joined_at() {
    let split = split(&[("stable", 80.0), ("canary", 20.0)]);

    let agree = clients(20_000)
        .filter(|key| (split.version_of(*key) == Some(1)) == (split.join_point(1, *key).unwrap() < 0.2))
        .count();

    assert_eq!(agree, 20_000);
}

/// Clause 2, last sentence: several weights at once. The bound is on the expected share; 5 sigma of the sample on top.
#[test]
fn several_changes_at_once_move_no_more_than_the_bound() {
    let changes: [(&[f64], &[f64]); 6] = [
        (&[90.0, 10.0], &[80.0, 20.0]),
        (&[50.0, 30.0, 20.0], &[20.0, 30.0, 50.0]),
        (&[1.0, 1.0, 1.0, 1.0], &[4.0, 3.0, 2.0, 1.0]),
        (&[100.0, 0.0], &[0.0, 100.0]),
        (&[70.0, 20.0, 10.0], &[60.0, 30.0, 10.0]),
        (&[10.0, 20.0, 30.0, 40.0, 50.0, 60.0], &[60.0, 50.0, 40.0, 30.0, 20.0, 10.0]),
    ];
    let n = 20_000;
    for (before, after) in changes {
        let splits = [before, after].map(|w| of_weights(&w.iter().map(|w| weight(*w)).collect::<Vec<_>>()));
        let d: f64 = (0..before.len()).map(|v| (splits[0].share(v) - splits[1].share(v)).abs()).sum::<f64>() / 2.0;
        let bound = 2.0 * d / (1.0 + d);

        let moved = clients(n).filter(|key| splits[0].version_of(*key) != splits[1].version_of(*key)).count();

        let (moved, n) = (f64::from(u32::try_from(moved).unwrap()), 20_000.0);
        let sigma = (bound * (1.0 - bound) / n).sqrt();
        assert!(moved / n <= bound + 5.0 * sigma, "{before:?} -> {after:?}: {} > {bound}", moved / n);
        assert!(moved / n >= d - 5.0 * (d * (1.0 - d) / n).sqrt(), "at least the difference itself");
    }
}

// Clause 3: the shares.

/// Sets of addresses that hashes have stumbled over.
fn populations() -> Vec<(&'static str, Vec<ClientKey>)> {
    let set = |key: &dyn Fn(u64) -> ClientKey| (0..20_000).map(key).collect::<Vec<_>>();
    vec![
        ("random v4", set(&|n| v4(low(random(n))))),
        ("random v6", set(&|n| v6(random(n)))),
        ("sequential v4", set(&|n| v4(0x0a00_0000 + low(n)))),
        ("sequential v4 in the high bits", set(&|n| v4(low(n).reverse_bits()))),
        ("every 256th v4", set(&|n| v4(low(n) << 8 | 1))),
        ("sequential /64 of a /48", set(&|n| v6(0x2001_0db8_0001_0000 + n))),
        ("sequential /48", set(&|n| v6(0x2001_0db8_0000_0000 + (n << 16)))),
        ("/64 that differ in two nibbles", set(&|n| v6(0x2001_0db8_0000_0000 | (n & 0xff) << 4 | (n >> 8) << 20))),
        ("/64 in the high bits", set(&|n| v6(n.reverse_bits()))),
        ("gray code", set(&|n| v6(0x2001_0db8 << 32 | (n ^ (n >> 1))))),
    ]
}

/// Chi-square against the shares. The limits are the quantiles of 1 in 100,000 for 1, 2 and 3 degrees of freedom.
fn assert_shares(split: &Split, who: &str, clients: &[ClientKey]) {
    let n = f64::from(u32::try_from(clients.len()).unwrap());
    let counts = count(split, clients.iter().copied());
    let chi: f64 = counts
        .iter()
        .enumerate()
        .map(|(v, got)| {
            let expected = split.share(v) * n;
            (f64::from(u32::try_from(*got).unwrap()) - expected).powi(2) / expected
        })
        .sum();
    let limit = [19.5, 23.0, 25.9][counts.len() - 2];
    assert!(chi < limit, "{who}: {counts:?} of {:?}, chi-square {chi}", split.weights());
}

#[test]
fn shares_of_clients_are_the_weights_shares_for_every_population() {
    let splits: [&[(&str, f64)]; 8] = [
        &[("stable", 90.0), ("canary", 10.0)],
        // Names that differ in one character.
        &[("v1", 50.0), ("v2", 50.0)],
        &[("v1", 99.0), ("v2", 1.0)],
        &[("hello-canary", 80.0), ("hello-canarx", 20.0)],
        &[("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)],
        &[("1.0.0", 60.0), ("1.0.1", 30.0), ("1.0.2", 10.0)],
        &[("blue", 70.0), ("blues", 30.0)],
        &[("", 20.0), ("\0", 80.0)],
    ];
    for (who, clients) in populations() {
        for versions in splits {
            assert_shares(&split(versions), who, &clients);
        }
    }
}

#[test]
fn salts_that_differ_in_one_character_give_the_shares_too() {
    let clients: Vec<ClientKey> = (0..20_000).map(|n| v4(0x0a00_0000 + n)).collect();
    for cohort in ["hello", "hellp", "hello1", "hello2", ""] {
        for secret in ["", "s", "t"] {
            let versions = [("stable", weight(70.0)), ("canary", weight(30.0))];
            assert_shares(&Split::new(Salt::new(cohort, secret), versions), cohort, &clients);
        }
    }
}

// Clause 5: salts.

fn salted(salt: Salt) -> Split {
    Split::new(salt, [("stable", weight(50.0)), ("canary", weight(50.0))])
}

fn same_side(a: Salt, b: Salt) -> usize {
    let (a, b) = (salted(a), salted(b));
    clients(10_000).filter(|key| a.version_of(*key) == b.version_of(*key)).count()
}

#[test]
fn canary_users_of_one_service_are_not_those_of_another() {
    let same = same_side(Salt::new("hello", ""), Salt::new("auth", ""));

    // Half of them by chance; 5 sigma of 10,000 coins are 250.
    assert!((4_750..=5_250).contains(&same), "{same}");
}

#[test]
fn a_shared_cohort_makes_them_the_same_users() {
    assert_eq!(same_side(Salt::new("team", "s"), Salt::new("team", "s")), 10_000);
}

#[test]
fn a_secret_makes_them_others() {
    for (a, b) in [("", "x"), ("x", "y"), ("hello", "helloo")] {
        let same = same_side(Salt::new("hello", a), Salt::new("hello", b));
        assert!((4_750..=5_250).contains(&same), "{a} {b}: {same}");
    }
}

#[test]
fn cohort_and_secret_cannot_be_shifted_into_each_other() {
    assert!(Salt::new("ab", "c") != Salt::new("a", "bc"));
    assert!(Salt::new("ab", "") != Salt::new("", "ab"));
}

// The draw of `affinity: None`.

proptest! {
    #[test]
    fn short_windows_of_draws_have_the_exact_share(
        weights in some_weights(), start: u64, from in 0u64..1_000_000, length in 1u32..=1_000,
    ) {
        let split = of_weights(&weights);
        let mut counts = vec![0u32; split.len()];
        for n in from..from + u64::from(length) {
            counts[split.version_at(weyl(n, start), |_| true).unwrap()] += 1;
        }

        for (version, got) in counts.iter().enumerate() {
            let off = f64::from(*got) - split.share(version) * f64::from(length);
            // A fair die would be off by 16 in 1,000 draws.
            prop_assert!(off.abs() < 4.0, "{off} of {length}");
        }
    }

    #[test]
    fn draws_among_admitted_versions_share_by_their_weights(weights in some_weights(), down in 0usize..6, start: u64) {
        let (split, down) = (of_weights(&weights), down % weights.len());
        let rest: f64 = (0..split.len()).filter(|v| *v != down).map(|v| split.share(v)).sum();
        let mut counts = vec![0u32; split.len()];
        for n in 0..500 {
            match split.version_at(weyl(n, start), |v| v != down) {
                Some(version) => counts[version] += 1,
                None => prop_assert!(rest == 0.0),
            }
        }

        prop_assert_eq!(counts[down], 0);
        for (version, got) in counts.iter().enumerate().filter(|(v, _)| *v != down && rest > 0.0) {
            prop_assert!((f64::from(*got) - split.share(version) / rest * 500.0).abs() < 4.0);
        }
    }
}
