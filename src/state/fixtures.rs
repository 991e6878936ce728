//! Configurations for unit tests.

use std::time::Duration;

use crate::config::{
    AccessLog, Admin, Affinity, Config, Drain, Ejection, EndpointAddress, LogFormat, MemoryLimit, OnDecrease, Pins,
    Retries, Service as ServiceConfig, ServiceLimits, ServiceTimeouts, Version,
};
use crate::decide::{KeyPrefix, Weight, WhenEmpty};

const SECOND: Duration = Duration::from_secs(1);

fn address(text: &str) -> EndpointAddress {
    match text.parse() {
        Ok(address) => EndpointAddress::Ip(address),
        Err(_) => {
            let (host, port) = text.split_once(':').unwrap();
            EndpointAddress::Name { host: host.to_owned(), port: port.parse().unwrap() }
        }
    }
}

pub(crate) fn service(name: &str, versions: &[(&str, f64, &[&str])]) -> ServiceConfig {
    ServiceConfig {
        name: name.into(),
        cohort: None,
        salt: None,
        affinity: Affinity::ClientIp { prefix: KeyPrefix::default(), timeout: Duration::from_secs(10_800) },
        affinity_from: None,
        when_empty: WhenEmpty::Fallback,
        on_decrease: OnDecrease::Evict,
        overrides: None,
        version_header: false,
        timeouts: ServiceTimeouts { connect: SECOND, response_head: SECOND, body: SECOND, idle: SECOND },
        retries: Retries { budget_percent: 20, min_per_second: 10 },
        limits: ServiceLimits::default(),
        health: None,
        ejection: Ejection { consecutive_failures: 5, duration: SECOND, max_percent: 50 },
        slow_start: Duration::ZERO,
        rollout: crate::config::Rollout::default(),
        versions: versions
            .iter()
            .map(|(name, weight, endpoints)| Version {
                name: (*name).into(),
                weight: Weight::new(*weight).unwrap(),
                endpoints: endpoints.iter().map(|e| address(e)).collect(),
                kubernetes: None,
                transport: std::sync::Arc::default(),
            })
            .collect(),
    }
}

pub(crate) fn config(services: Vec<ServiceConfig>) -> Config {
    Config {
        workers: None,
        admin: Admin { address: ([127, 0, 0, 1], 0).into(), token: None },
        access_log: AccessLog { format: LogFormat::Off, sample: 1.0 },
        drain: Drain { delay: SECOND, spread: SECOND, deadline: SECOND },
        max_connections: 100,
        memory: MemoryLimit::Off,
        pins: Pins { max_entries: 100 },
        state_dir: None,
        shared_state: None,
        listeners: Vec::new(),
        routes: Vec::new(),
        services,
    }
}

pub(crate) fn hello(stable: f64, canary: f64) -> ServiceConfig {
    service("hello", &[("stable", stable, &["10.0.0.1:80", "10.0.0.2:80"]), ("canary", canary, &["10.0.0.9:80"])])
}

pub(crate) fn auth() -> ServiceConfig {
    service("auth", &[("stable", 1.0, &["10.0.1.1:80"])])
}
