//! A configuration of any size, for the benches.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use perch::config::{
    AccessLog, Admin, Affinity, Config, Drain, Ejection, EndpointAddress, LogFormat, MemoryLimit, OnDecrease, Pins,
    Retries, Service, ServiceLimits, ServiceTimeouts, Version,
};
use perch::decide::{KeyPrefix, Weight, WhenEmpty};

/// `services` services of two versions, 90:10, with `endpoints` endpoints in each version.
pub(crate) fn config(services: usize, endpoints: usize) -> Config {
    let second = Duration::from_secs(1);
    let version = |service: usize, name: &str, weight: f64, part: u8| Version {
        name: name.into(),
        weight: Weight::new(weight).expect("a weight"),
        endpoints: (0..endpoints).map(|n| EndpointAddress::Ip(address(service, part, n))).collect(),
        kubernetes: None,
        transport: std::sync::Arc::default(),
    };
    let service = |n: usize| Service {
        name: format!("service-{n}").into(),
        cohort: None,
        salt: None,
        affinity: Affinity::ClientIp { prefix: KeyPrefix::default(), timeout: Duration::from_secs(10_800) },
        affinity_from: None,
        when_empty: WhenEmpty::Fallback,
        on_decrease: OnDecrease::Evict,
        overrides: None,
        version_header: false,
        timeouts: ServiceTimeouts { connect: second, response_head: second, body: second, idle: second },
        retries: Retries { budget_percent: 20, min_per_second: 10 },
        limits: ServiceLimits::default(),
        health: None,
        ejection: Ejection { consecutive_failures: 5, duration: second, max_percent: 50 },
        slow_start: Duration::ZERO,
        rollout: perch::config::Rollout::default(),
        versions: vec![version(n, "stable", 90.0, 0), version(n, "canary", 10.0, 1)],
    };
    Config {
        workers: None,
        admin: Admin { address: ([127, 0, 0, 1], 0).into(), token: None },
        access_log: AccessLog { format: LogFormat::Off, sample: 1.0 },
        drain: Drain { delay: second, spread: second, deadline: second },
        max_connections: 100,
        memory: MemoryLimit::Off,
        pins: Pins { max_entries: 1_000_000 },
        state_dir: None,
        shared_state: None,
        listeners: Vec::new(),
        routes: Vec::new(),
        services: (0..services).map(service).collect(),
    }
}

fn address(service: usize, part: u8, n: usize) -> SocketAddr {
    let n = u32::try_from(service << 15 | n).expect("a small number");
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | u32::from(part) << 23 | n)), 80)
}
