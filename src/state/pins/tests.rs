use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use super::*;
use crate::decide::KeyPrefix;
use crate::state::health::Health;

const SERVICE: ServiceId = ServiceId(0);
const HOUR: Duration = Duration::from_secs(3600);

/// Debug builds are some 30 times slower.
const LARGE: bool = !cfg!(debug_assertions);

fn endpoint(id: u32) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        id: EndpointId(id),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 80)),
        pod: None,
        name: "e".into(),
        transport: Arc::default(),
        seed: 0,
        in_flight: AtomicU32::new(0),
        health: Health::default(),
    })
}

fn pin(version: u32, endpoint: &Arc<Endpoint>) -> Pin {
    let version = VersionId(version);
    Pin { version, home: Some(version), endpoint: endpoint.clone(), epoch: 1, why: Why::Cohort }
}

fn v4(n: u32) -> ClientKey {
    ClientKey::new(IpAddr::V4(Ipv4Addr::from_bits(n)), KeyPrefix::default())
}

/// The n-th /64 of a /32.
fn v6(network: u32, n: u32) -> ClientKey {
    let bits = u128::from(network) << 96 | u128::from(n) << 64;
    ClientKey::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), KeyPrefix::default())
}

/// Spread over many /16s, never 0.x.
fn spread(n: u32) -> ClientKey {
    v4((n.wrapping_mul(0x9e37_79b9) >> 1) | 0x8000_0000)
}

#[test]
fn a_kept_client_is_found_again_with_all_that_was_said() {
    let (pins, e) = (Pins::new(10), endpoint(7));

    pins.keep(SERVICE, v4(1), Pin { epoch: 9, why: Why::DrainPin, ..pin(3, &e) }, 5_000);

    let found = pins.touch(SERVICE, v4(1), 6_000, HOUR).unwrap();
    assert_eq!((found.version, found.epoch, found.why), (VersionId(3), 9, Why::DrainPin));
    assert!(Arc::ptr_eq(&found.endpoint, &e));
}

#[test]
fn every_reason_is_remembered() {
    let (pins, e) = (Pins::new(10), endpoint(7));
    for why in [Why::Cohort, Why::Draw, Why::DrainPin, Why::FreezePin, Why::Override, Why::WhenEmpty] {
        pins.keep(SERVICE, v4(1), Pin { why, ..pin(3, &e) }, 0);

        assert_eq!(pins.touch(SERVICE, v4(1), 0, HOUR).unwrap().why, why);
    }
}

#[test]
fn the_version_that_a_client_belongs_to_is_remembered_beside_the_one_that_served_it() {
    let (pins, e) = (Pins::new(10), endpoint(7));
    let epoch = (1 << 21) - 1;
    for (version, home) in [(0, None), (0, Some(VersionId::LAST)), (VersionId::LAST, Some(0)), (VersionId::LAST, None)]
    {
        let kept = Pin { home: home.map(VersionId), epoch, why: Why::WhenEmpty, ..pin(version, &e) };
        pins.keep(SERVICE, v4(1), kept, 0);

        let found = pins.touch(SERVICE, v4(1), 0, HOUR).unwrap();
        assert_eq!((found.version, found.home), (VersionId(version), home.map(VersionId)));
        assert_eq!((found.epoch, found.why), (epoch, Why::WhenEmpty));
    }
}

#[test]
fn a_client_of_one_service_is_unknown_to_another() {
    let pins = Pins::new(10);

    pins.keep(SERVICE, v4(1), pin(3, &endpoint(7)), 0);

    assert!(pins.touch(ServiceId(1), v4(1), 0, HOUR).is_none());
}

#[test]
fn a_pin_lives_as_long_as_it_is_used_within_the_timeout() {
    let pins = Pins::new(10);
    pins.keep(SERVICE, v4(1), pin(3, &endpoint(7)), 0);

    for hour in 1..5 {
        assert!(pins.touch(SERVICE, v4(1), hour * 3_600_000, HOUR).is_some());
    }
    assert!(pins.touch(SERVICE, v4(1), 4 * 3_600_000 + 3_602_000, HOUR).is_none());
}

#[test]
fn keeping_a_known_client_changes_it_in_place() {
    let (pins, e) = (Pins::new(1), endpoint(7));

    pins.keep(SERVICE, v4(1), pin(3, &e), 0);
    pins.keep(SERVICE, v4(1), pin(4, &e), 0);

    assert_eq!(pins.touch(SERVICE, v4(1), 0, HOUR).unwrap().version, VersionId(4));
    assert_eq!((pins.len(), pins.evictions()), (1, 0));
}

#[test]
fn the_table_never_grows_beyond_its_bound() {
    let (pins, e) = (Pins::new(5_000), endpoint(7));

    for n in 0..20_000 {
        pins.keep(SERVICE, spread(n), pin(0, &e), 0);
    }

    assert_eq!(pins.len(), 5_000);
    assert_eq!(pins.map.len(), 5_000);
    assert_eq!(pins.rings.iter().map(|r| lock(r).keys.len()).sum::<usize>(), 5_000);
}

#[test]
fn a_table_of_no_entries_remembers_nobody() {
    let pins = Pins::new(0);

    pins.keep(SERVICE, v4(1), pin(3, &endpoint(7)), 0);

    assert!(pins.is_empty() && pins.touch(SERVICE, v4(1), 0, HOUR).is_none());
}

#[test]
fn expired_pins_make_room_before_any_active_one() {
    let (pins, e) = (Pins::new(1_000), endpoint(7));
    pins.set_timeout(SERVICE, HOUR);
    for n in 0..1_000 {
        let used = if n % 4 == 0 { 0 } else { 3_500_000 };
        pins.keep(SERVICE, spread(n), pin(0, &e), used);
    }

    for n in 1_000..1_100 {
        pins.keep(SERVICE, spread(n), pin(0, &e), 3_602_000);
    }

    assert_eq!(pins.evictions(), 0, "evictions of active clients");
}

#[test]
fn a_full_network_makes_room_for_itself_by_its_longest_idle_clients() {
    let (pins, e) = (Pins::new(1_000), endpoint(7));
    for n in 0..1_000 {
        pins.keep(SERVICE, v4(0x0a00_0000 + n), pin(0, &e), u64::from(n) * 1_000);
    }

    for n in 0..10 {
        pins.keep(SERVICE, v4(0x0a00_8000 + n), pin(0, &e), 1_000_000);
    }

    let gone: Vec<u32> =
        (0..1_000).filter(|n| pins.touch(SERVICE, v4(0x0a00_0000 + n), 1_000_000, HOUR).is_none()).collect();
    // Of those looked at each time, neighbours in the one ring, the longest idle.
    assert_eq!(gone, (0..10).map(|n| n * u32::try_from(SCAN).unwrap()).collect::<Vec<u32>>());
}

#[test]
fn a_newcomer_from_elsewhere_gets_in_while_one_network_floods() {
    let (pins, e) = (Pins::new(1_000), endpoint(7));
    for n in 0..5_000 {
        pins.keep(SERVICE, v6(0x2001_0db8, n), pin(0, &e), 0);
    }

    for n in 0..300 {
        pins.keep(SERVICE, spread(n), pin(0, &e), 0);
    }

    assert!((0..300).all(|n| pins.touch(SERVICE, spread(n), 0, HOUR).is_some()));
}

/// reliability.md F5.
#[test]
fn a_flood_from_one_network_forgets_no_active_client_of_another() {
    let (flood, active, room) = if LARGE { (5_000_000, 10_000, 500_000) } else { (150_000, 2_000, 20_000) };
    let (pins, e) = (Pins::new(room), endpoint(7));
    for n in 0..active {
        pins.keep(SERVICE, spread(n), pin(1, &e), 0);
    }

    for n in 0..flood {
        pins.keep(SERVICE, v6(0x2001_0db8, n), pin(0, &e), 1_000);
    }

    assert!((0..active).all(|n| pins.touch(SERVICE, spread(n), 1_000, HOUR).is_some()));
    assert_eq!(pins.len(), room);
    let counts = pins.counts_by_version(SERVICE, 1_000, HOUR);
    assert_eq!(counts.get(&VersionId(1)), Some(&(active as usize)));
}

#[test]
fn two_networks_that_flood_share_the_room() {
    let (pins, e) = (Pins::new(2_000), endpoint(7));

    for n in 0..20_000 {
        pins.keep(SERVICE, v6(1 << 28, n), pin(0, &e), 0);
    }
    for n in 0..20_000 {
        pins.keep(SERVICE, v6(2 << 28, n), pin(1, &e), 0);
    }

    let counts = pins.counts_by_version(SERVICE, 0, HOUR);
    for version in [VersionId(0), VersionId(1)] {
        assert!((900..=1_100).contains(&counts[&version]), "{counts:?}");
    }
}

#[test]
fn the_sweep_removes_the_expired_and_nobody_else() {
    let (pins, e) = (Pins::new(10_000), endpoint(7));
    pins.set_timeout(SERVICE, HOUR);
    for n in 0..10_000 {
        pins.keep(SERVICE, spread(n), pin(0, &e), if n < 4_000 { 0 } else { 100_000 });
    }

    for _ in 0..2 * SWEEP_PART {
        pins.sweep(3_602_000);
    }

    assert_eq!(pins.len(), 6_000);
    assert!((4_000..10_000).all(|n| pins.touch(SERVICE, spread(n), 3_602_000, HOUR).is_some()));
    assert_eq!(pins.evictions(), 0);
}

#[test]
fn a_forgotten_service_is_swept_whole() {
    let (pins, e) = (Pins::new(100), endpoint(7));
    for n in 0..50 {
        pins.keep(SERVICE, spread(n), pin(0, &e), 0);
        pins.keep(ServiceId(1), spread(n), pin(0, &e), 0);
    }

    pins.forget(SERVICE);
    pins.sweep(0);
    pins.sweep(0);

    assert_eq!(pins.len(), 50);
    assert!(pins.touch(ServiceId(1), spread(1), 0, HOUR).is_some());
}

#[test]
fn the_sweep_lets_go_of_endpoints_that_are_gone_but_keeps_the_version() {
    let (pins, e) = (Pins::new(100), endpoint(7));
    for n in 0..50 {
        pins.keep(SERVICE, spread(n), pin(3, &e), 0);
    }

    e.health.set_gone();
    pins.sweep(0);

    assert_eq!(Arc::strong_count(&e), 1);
    let left = pins.touch(SERVICE, spread(1), 0, HOUR).unwrap();
    assert_eq!(left.version, VersionId(3));
    assert!(!left.endpoint.health.is_usable(0));
}

#[test]
fn the_clients_of_a_service_can_be_visited() {
    let (pins, e) = (Pins::new(100), endpoint(7));
    pins.keep(SERVICE, v4(9), pin(3, &e), 0);
    pins.keep(SERVICE, v6(9, 9), pin(4, &e), 4_000_000);
    pins.keep(ServiceId(1), v4(10), pin(4, &e), 4_000_000);

    let mut seen = Vec::new();
    pins.for_each(SERVICE, 4_000_000, HOUR, |key, version| seen.push((key, version)));

    assert_eq!(seen, [(v6(9, 9), Some(VersionId(4)))]);
}

#[test]
fn threads_that_flood_and_sweep_together_keep_the_books() {
    let (pins, e) = (Pins::new(3_000), endpoint(7));
    pins.set_timeout(SERVICE, Duration::from_secs(2));

    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (pins, e) = (&pins, &e);
            scope.spawn(move || {
                for n in 0..10_000 {
                    let now = u64::from(n);
                    pins.keep(SERVICE, spread(n * 3 + thread % 2), pin(0, e), now);
                    pins.touch(SERVICE, spread(n), now, HOUR);
                    if n % 100 == 0 {
                        pins.sweep(now);
                    }
                }
            });
        }
    });

    let in_rings: usize = pins.rings.iter().map(|r| lock(r).keys.len()).sum();
    assert_eq!((pins.len(), in_rings), (pins.map.len(), pins.map.len()));
    (0..100).for_each(|_| pins.sweep(1_000_000));
    assert!(pins.is_empty());
    assert_eq!(pins.crowds.count(spread(1).neighbourhood()), 0);
}

/// A hash table of a million entries has 2^21 buckets of an entry and a byte each (it doubles at 7/8 full), the rings
/// have at most 2^20 keys' room. `cargo bench --bench choose` measures the resident memory.
#[test]
fn a_million_pins_fit_128_mib() {
    let buckets = (1 << 21) * (size_of::<(Known, Stored)>() + 1);
    let rings = (1 << 20) * size_of::<PinKey>();
    let rest = 2 << 20;

    assert!(buckets + rings + rest <= 128 << 20, "{}", (buckets + rings + rest) >> 20);
}

#[test]
fn a_look_does_not_keep_a_pin_alive() {
    let (pins, ten) = (Pins::new(10), Duration::from_secs(10));
    pins.keep(SERVICE, v4(1), pin(0, &endpoint(7)), 1_000);

    let seen = pins.peek(SERVICE, v4(1), 9_000, ten).is_some();
    let later = pins.peek(SERVICE, v4(1), 15_000, ten).is_some();

    assert_eq!((seen, later), (true, false));
}

#[test]
fn the_heaviest_clients_come_first() {
    let (pins, e) = (Pins::new(100), endpoint(7));
    for n in 0..20 {
        pins.keep(SERVICE, v4(n), pin(n % 2, &e), 0);
        pins.keep(ServiceId(1), v4(n), pin(9, &e), 0);
        (0..n).for_each(|_| drop(pins.touch(SERVICE, v4(n), 2_000, HOUR)));
    }

    let heaviest = pins.heaviest(SERVICE, 5_000, HOUR, 3);

    assert_eq!((heaviest.clients, heaviest.requests), (20, 210));
    let seen: Vec<_> = heaviest.top.iter().map(|h| (h.client, h.requests, h.version.0, h.idle_seconds)).collect();
    assert_eq!(seen, [(v4(19), 20, 1, 3), (v4(18), 19, 0, 3), (v4(17), 18, 1, 3)]);
}

#[test]
fn one_client_with_half_of_the_requests_leaves_little_to_conclude_from() {
    let (pins, e) = (Pins::new(200), endpoint(7));
    let clients = || pins.census(0, &HashMap::from([(SERVICE, HOUR)])).effective_clients(SERVICE);
    assert_eq!(clients(), None);
    (0..100).for_each(|n| pins.keep(SERVICE, v4(n), pin(0, &e), 0));
    assert_eq!(clients(), Some(100.0));

    (0..100).for_each(|_| drop(pins.touch(SERVICE, v4(7), 0, HOUR)));

    let effective = clients().unwrap();
    assert!(effective > 1.0 && effective < 4.0, "{effective}");
}
