//! Golden vectors (clause 1): what every replica, release and machine answers, for ever. A change of this table moves
//! users of every installation. It was checked against a second implementation of the module's formula, in Python.

use super::*;

const ADDRESSES: [&str; 11] = [
    "192.0.2.1",
    "192.0.2.2",
    "::ffff:192.0.2.2",
    "10.0.0.0",
    "255.255.255.255",
    "0.0.0.0",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:0:1::1",
    "fe80::1",
    "::",
];

/// Cohort, secret, versions with their weights, and for each address its version and the join point of the first one.
type Golden =
    (&'static str, &'static str, &'static [(&'static str, f64)], &'static [(&'static str, f64); ADDRESSES.len()]);

const GOLDEN: &[Golden] = &[
    (
        "hello",
        "",
        &[("stable", 90.0), ("canary", 10.0)],
        &[
            ("stable", 0.483511),
            ("stable", 0.352365),
            ("stable", 0.352365),
            ("stable", 0.054525),
            ("stable", 0.478853),
            ("stable", 0.202579),
            ("stable", 0.188443),
            ("stable", 0.188443),
            ("canary", 0.966327),
            ("stable", 0.116769),
            ("stable", 0.766511),
        ],
    ),
    (
        "hello",
        "",
        &[("stable", 50.0), ("canary", 50.0)],
        &[
            ("stable", 0.483511),
            ("stable", 0.352365),
            ("stable", 0.352365),
            ("stable", 0.054525),
            ("stable", 0.478853),
            ("stable", 0.202579),
            ("stable", 0.188443),
            ("stable", 0.188443),
            ("canary", 0.966327),
            ("stable", 0.116769),
            ("canary", 0.766511),
        ],
    ),
    (
        "hello",
        "s3cret",
        &[("stable", 50.0), ("canary", 50.0)],
        &[
            ("stable", 0.292587),
            ("canary", 0.775370),
            ("canary", 0.775370),
            ("stable", 0.401038),
            ("canary", 0.860683),
            ("stable", 0.201061),
            ("canary", 0.603108),
            ("canary", 0.603108),
            ("canary", 0.896684),
            ("stable", 0.189063),
            ("stable", 0.376331),
        ],
    ),
    (
        "auth",
        "",
        &[("stable", 50.0), ("canary", 50.0)],
        &[
            ("stable", 0.183821),
            ("stable", 0.302927),
            ("stable", 0.302927),
            ("canary", 0.989795),
            ("stable", 0.376677),
            ("stable", 0.248968),
            ("canary", 0.554874),
            ("canary", 0.554874),
            ("stable", 0.248169),
            ("stable", 0.020794),
            ("canary", 0.755674),
        ],
    ),
    (
        "hello",
        "",
        &[("blue", 0.5), ("green", 0.25), ("next", 0.25)],
        &[
            ("blue", 0.090838),
            ("blue", 0.492408),
            ("blue", 0.492408),
            ("next", 0.927831),
            ("green", 0.865237),
            ("green", 0.550678),
            ("blue", 0.391437),
            ("blue", 0.391437),
            ("blue", 0.111679),
            ("next", 0.559424),
            ("blue", 0.164917),
        ],
    ),
    (
        "hello",
        "",
        &[("v1", 1.0), ("v2", 1.0), ("v3", 1.0), ("v4", 1.0), ("v5", 0.000_001)],
        &[
            ("v1", 0.048728),
            ("v4", 0.895803),
            ("v4", 0.895803),
            ("v1", 0.139919),
            ("v4", 0.483962),
            ("v3", 0.459430),
            ("v3", 0.927249),
            ("v3", 0.927249),
            ("v3", 0.701587),
            ("v2", 0.336656),
            ("v4", 0.884900),
        ],
    ),
];

#[test]
fn every_release_and_machine_gives_the_same_answers() {
    for (cohort, secret, versions, expected) in GOLDEN {
        let split = Split::new(Salt::new(cohort, secret), versions.iter().map(|(n, w)| (*n, weight(*w))));
        for (address, (version, join_point)) in ADDRESSES.iter().zip(*expected) {
            let key = ClientKey::new(address.parse().unwrap(), KeyPrefix::default());

            let got = split.version_of(key).and_then(|v| split.name(v)).unwrap();
            assert_eq!(&**got, *version, "{cohort} {versions:?} {address}");
            let joins = split.join_point(0, key).unwrap();
            assert!((joins - join_point).abs() < 1e-6, "{cohort} {versions:?} {address}: joins at {joins}");
        }
    }
}

/// Exact, not only near: the join points above would forgive a last bit.
#[test]
fn every_machine_draws_the_same_bits() {
    let hash = VersionHash::new(Salt::new("hello", ""), "stable");

    let sum = (0..10_000).map(|n| hash.draw(v4(n)).0).fold(0u64, u64::wrapping_add);

    assert_eq!(sum, 10_354_446_322_884_838_117);
}
