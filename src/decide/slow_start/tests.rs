use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::decide::KeyPrefix;
use crate::decide::choose::endpoint_seed;
use crate::decide::places::{MOST_BY_RENDEZVOUS, Places};

const WINDOW: u64 = 30_000;

fn client(n: u32) -> ClientKey {
    ClientKey::new(IpAddr::V4(Ipv4Addr::from_bits(n)), KeyPrefix::default())
}

fn seeds(count: usize) -> Vec<u64> {
    (0..count).map(|n| endpoint_seed(&format!("10.0.{}.{}:80", n >> 8, n & 255))).collect()
}

/// The endpoint of a client, with endpoints of these ages.
fn choose(places: &Places, seeds: &[u64], ages: &[u64], key: ClientKey) -> Option<usize> {
    let most = ages.iter().map(|age| part(*age, WINDOW)).max().unwrap();
    places.choose(key, |e| lets_in(who(key), seeds[e], part(ages[e], WINDOW), most))
}

proptest! {
    #[test]
    fn a_part_grows_from_a_tenth_to_all(age in 0..2 * WINDOW, later in 0..WINDOW, window in 1..86_400_000_u64) {
        prop_assert!(part(age, window) <= part(age + later, window));
        prop_assert!((LEAST..=FULL).contains(&part(age, window)));
        prop_assert_eq!(part(window, window), FULL);
        prop_assert_eq!(part(0, window), LEAST);
    }

    #[test]
    fn everyone_has_an_endpoint_whatever_is_cold(
        n: u32, ages in prop::collection::vec(0..2 * WINDOW, 1..20), count in prop_oneof![Just(0), Just(MOST_BY_RENDEZVOUS)],
    ) {
        let ages: Vec<u64> = ages.iter().copied().cycle().take(ages.len() + count).collect();
        let seeds = seeds(ages.len());

        prop_assert!(choose(&Places::new(seeds.clone()), &seeds, &ages, client(n)).is_some());
    }

    /// The sum is kept: what the cold one does not get yet, others have; nobody else is moved about.
    #[test]
    fn one_that_warms_up_only_takes_and_only_who_will_be_its_own(
        first: u32, count in prop_oneof![2_usize..20, Just(MOST_BY_RENDEZVOUS + 10)], cold in any::<prop::sample::Index>(),
        age in 0..WINDOW, later in 0..WINDOW,
    ) {
        let (seeds, cold) = (seeds(count), cold.index(count));
        let places = Places::new(seeds.clone());
        let ages = |of_cold: u64| (0..count).map(|e| if e == cold { of_cold } else { WINDOW }).collect::<Vec<u64>>();

        for n in 0..50 {
            let client = client(first.wrapping_add(n));
            let [now, then, warm] = [age, age + later, WINDOW].map(|age| choose(&places, &seeds, &ages(age), client));
            prop_assert!(then == now || then == Some(cold));
            prop_assert!(warm == then || warm == Some(cold));
            prop_assert!(then != Some(cold) || warm == Some(cold));
        }
    }

    #[test]
    fn all_equally_cold_is_as_all_warm(n: u32, count in 1_usize..20, age in 0..WINDOW) {
        let seeds = seeds(count);
        let places = Places::new(seeds.clone());

        let cold = choose(&places, &seeds, &vec![age; count], client(n));

        prop_assert_eq!(cold, places.choose(client(n), |_| true));
    }
}

/// Four sigmas of a binomial count.
fn is_about(count: u32, of: u32, share: f64) -> bool {
    let n = f64::from(of);
    (f64::from(count) - n * share).abs() < 4.0 * (n * share * (1.0 - share)).sqrt()
}

#[test]
fn a_cold_one_of_five_gets_its_part_of_a_fifth_and_the_others_the_rest_alike() {
    let seeds = seeds(5);
    let places = Places::new(seeds.clone());
    for (age, expected) in [(0, 0.1), (WINDOW / 3, 0.4), (WINDOW / 2, 0.55), (WINDOW, 1.0)] {
        let mut counts = [0; 5];

        let clients = 50_000;
        (0..clients).for_each(|n| {
            counts[choose(&places, &seeds, &[99_999, 99_999, age, 99_999, 99_999], client(n)).unwrap()] += 1
        });

        assert!(is_about(counts[2], clients, expected / 5.0), "{age}: {counts:?}");
        let rest = (1.0 - expected / 5.0) / 4.0;
        assert!([0, 1, 3, 4].iter().all(|e| is_about(counts[*e], clients, rest)), "{age}: {counts:?}");
    }
}

#[test]
fn of_two_cold_ones_the_warmer_lets_everyone_in() {
    let seeds = seeds(2);
    let places = Places::new(seeds.clone());

    let colder = (0..20_000).filter(|n| choose(&places, &seeds, &[0, WINDOW * 4 / 9], client(*n)) == Some(0)).count();

    // A tenth against a half of a share.
    assert!(is_about(u32::try_from(colder).unwrap(), 20_000, 0.1), "{colder}");
}
