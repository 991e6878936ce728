use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::decide::choose::endpoint_seed;
use crate::decide::{KeyPrefix, Salt, Split, Weight};

fn client(n: u32) -> ClientKey {
    ClientKey::new(IpAddr::V4(Ipv4Addr::from_bits(n)), KeyPrefix::default())
}

fn seed(n: usize) -> u64 {
    endpoint_seed(&format!("10.{}.{}.{}:80", n >> 16, n >> 8 & 255, n & 255))
}

fn places(count: usize) -> Places {
    Places::new((0..count).map(seed))
}

fn all(_: usize) -> bool {
    true
}

/// On both sides of the bound.
fn counts() -> impl Strategy<Value = usize> {
    prop_oneof![2usize..20, MOST_BY_RENDEZVOUS - 1..MOST_BY_RENDEZVOUS + 3, 500usize..2_000]
}

/// How many of the clients each endpoint gets.
fn loads(places: &Places, endpoints: usize, clients: u32) -> Vec<u32> {
    let mut loads = vec![0; endpoints];
    (0..clients).for_each(|n| loads[places.choose(client(0x0a00_0000 + n), all).unwrap()] += 1);
    loads
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_endpoint_that_goes_takes_only_its_own_clients(first: u32, count in counts(), gone: prop::sample::Index) {
        let (places, gone) = (places(count), gone.index(count));
        let without = Places::new((0..count).filter(|e| *e != gone).map(seed));
        // Too few to be chosen by the same function.
        let is_across = count == MOST_BY_RENDEZVOUS + 1;

        for n in 0..50 {
            let client = client(first.wrapping_add(n));
            let before = places.choose(client, all).unwrap();
            let unusable = places.choose(client, |e| e != gone).unwrap();
            let removed = without.choose(client, all).map(|e| e + usize::from(e >= gone)).unwrap();

            prop_assert!(unusable != gone && (before == gone || unusable == before));
            prop_assert!(is_across || removed == unusable);
        }
    }

    #[test]
    fn of_any_usable_endpoints_one_that_goes_takes_only_its_own_clients(
        first: u32, count in counts(), part in 1u64..1_000, salt: u64,
    ) {
        let places = places(count);
        let is_usable = |e: usize| mix(salt ^ e as u64) % 1_000 < part;

        for n in 0..20 {
            let client = client(first.wrapping_add(n));
            let Some(before) = places.choose(client, is_usable) else {
                prop_assert!((0..count).all(|e| !is_usable(e)));
                break;
            };
            prop_assert!(is_usable(before));
            // Each of the others goes, ten at a time.
            let after = places.choose(client, |e| is_usable(e) && (e == before || !mix(salt ^ !e as u64).is_multiple_of(10)));
            prop_assert_eq!(after, Some(before));
        }
    }

    #[test]
    fn an_endpoint_that_comes_takes_clients_only_for_itself(n: u32, count in counts()) {
        prop_assume!(count != MOST_BY_RENDEZVOUS);

        let before = places(count).choose(client(n), all).unwrap();
        let after = places(count + 1).choose(client(n), all).unwrap();

        prop_assert!(after == before || after == count);
    }

    #[test]
    fn the_order_of_endpoints_changes_nothing(n: u32, count in counts()) {
        let backwards = Places::new((0..count).rev().map(seed));

        let found = backwards.choose(client(n), all).map(|e| count - 1 - e);

        prop_assert_eq!(found, places(count).choose(client(n), all));
    }
}

#[test]
fn no_usable_endpoint_is_none() {
    assert_eq!(places(3).choose(client(1), |_| false), None);
    assert_eq!(places(0).choose(client(1), all), None);
    assert_eq!(places(1_000).choose(client(1), |_| false), None);
}

#[test]
fn the_last_usable_one_of_thousands_is_found() {
    let places = places(5_000);

    for last in [0, 77, 4_999] {
        assert_eq!(places.choose(client(1), |e| e == last), Some(last));
    }
}

/// Chi-square of 9 degrees of freedom; the limit is the quantile of 1 in 100,000.
#[test]
fn endpoints_get_equal_parts_of_sequential_clients() {
    let loads = loads(&places(10), 10, 20_000);

    let chi: f64 = loads.iter().map(|c| (f64::from(*c) - 2_000.0).powi(2) / 2_000.0).sum();
    assert!(chi < 39.3, "{loads:?}: {chi}");
}

/// 200 clients each on average: chance alone makes the extremes of 1,000 endpoints 0.78 and 1.23 of that. No endpoint is
/// overloaded; a few get about half of their share.
#[test]
fn a_thousand_endpoints_get_nearly_equal_parts() {
    let loads = loads(&places(1_000), 1_000, 200_000);

    let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
    assert!(*least > 80 && *most < 270, "between {least} and {most}");
}

/// Which endpoint a client gets must not depend on its version's share: the canary's clients use all its endpoints.
#[test]
fn the_endpoints_of_a_small_version_get_equal_parts_of_its_clients() {
    let weights = [("stable", 90.0), ("canary", 10.0)].map(|(name, weight)| (name, Weight::new(weight).unwrap()));
    let split = Split::new(Salt::new("hello", ""), weights);
    let places = places(4);
    let mut counts = [0u32; 4];

    let canaries = (0..80_000).map(client).filter(|key| split.version_of(*key) == Some(1));
    canaries.for_each(|key| counts[places.choose(key, all).unwrap()] += 1);

    let n = f64::from(counts.iter().sum::<u32>()) / 4.0;
    let chi: f64 = counts.iter().map(|c| (f64::from(*c) - n).powi(2) / n).sum();
    assert!(chi < 25.9, "{counts:?}: {chi}");
}

/// Golden: replicas of two releases agree during an update.
#[test]
fn every_release_gives_a_client_the_same_endpoint() {
    let found = |endpoints: usize| -> Vec<usize> {
        let places = Places::new((0..endpoints).map(|n| endpoint_seed(&format!("10.0.{}.{}:80", n / 256, n % 256))));
        (0..16).map(|n| places.choose(client(0xc000_0200 + n), all).unwrap()).collect()
    };

    assert_eq!(found(10), [0, 3, 2, 6, 9, 8, 2, 2, 9, 2, 2, 0, 8, 9, 6, 4]);
    assert_eq!(found(1_000), [121, 845, 799, 206, 206, 55, 767, 533, 313, 177, 952, 781, 597, 515, 847, 75]);
}

/// What a choice costs, counted: points passed by all probes. It does not grow with the number of endpoints.
#[test]
fn a_choice_among_a_hundred_thousand_endpoints_takes_no_more_steps_than_among_a_thousand() {
    for endpoints in [1_000, 10_000, 100_000] {
        let places = places(endpoints);
        let circle = places.circle.as_ref().unwrap();

        let steps: Vec<usize> = (0..10_000).map(|n| circle.walk(mix(n)).1).collect();

        let mean = steps.iter().sum::<usize>() as f64 / steps.len() as f64;
        assert!(mean < 1.0 && *steps.iter().max().unwrap() < 16, "{endpoints} endpoints: {mean} on average");
    }
}
