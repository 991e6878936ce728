//! One decision: `cargo bench --bench choose`. The goals: 150 ns for a pinned client, 400 ns for an unpinned one of two
//! versions with ten endpoints each; a million pins in 128 MiB.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use perch::decide::route::{Hostname, PathMatch, RouteTable};
use perch::decide::{ClientKey, KeyPrefix, Why};
use perch::state::decision::{Client, decide, look};
use perch::state::model::{Model, Names};
use perch::state::pins::{Pin, Pins};
use perch::state::snapshot::Service;

const TIMEOUT: Duration = Duration::from_secs(10_800);

/// Clients that take turns: more than a core's nearest cache holds of the pin table.
const CLIENTS: u32 = 10_000;

fn service(endpoints: usize) -> Arc<Service> {
    let model = Model::new(common::config(1, endpoints), Names::new(), 0).expect("it builds");
    model.snapshot().services.first().expect("a service").clone()
}

/// Spread over all of IPv4.
fn client(n: u32) -> Client {
    Client { address: Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b9)).into(), roll: 0, forced: None }
}

fn key(n: u32) -> ClientKey {
    ClientKey::new(client(n).address, KeyPrefix::default())
}

/// The n-th /64 of a /32.
fn ipv6(n: u32) -> ClientKey {
    let bits = 0x2001_0db8 << 96 | u128::from(n) << 64;
    ClientKey::new(Ipv6Addr::from_bits(bits).into(), KeyPrefix::default())
}

fn unpinned(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("unpinned, two versions");
    for endpoints in [10, 100, 1_000, 10_000] {
        let service = service(endpoints);
        let mut n = 0;
        group.bench_with_input(BenchmarkId::from_parameter(endpoints), &service, |b, service| {
            b.iter(|| {
                n += 1;
                look(service, None, client(n), 1_000)
            });
        });
    }
}

fn keep(pins: &Pins, service: &Service, key: ClientKey, now: u64) {
    let version = service.versions.first().expect("a version");
    let endpoint = version.endpoints.first().expect("an endpoint").clone();
    let (epoch, home) = (service.epoch, Some(version.id));
    pins.keep(service.id, key, Pin { version: version.id, home, endpoint, epoch, why: Why::Cohort }, now);
}

fn pinned(bench: &mut Criterion) {
    let (service, pins) = (service(10), Pins::new(1_100_000));
    for n in 0..CLIENTS {
        decide(&service, &pins, client(n), 1_000).expect("an endpoint");
    }
    let mut group = bench.benchmark_group("pinned");

    let mut n = 0;
    group.bench_function("touch", |b| {
        b.iter(|| {
            n = (n + 1) % CLIENTS;
            pins.touch(service.id, key(n), 1_000, TIMEOUT)
        });
    });
    group.bench_function("whole decision", |b| {
        b.iter(|| {
            n = (n + 1) % CLIENTS;
            decide(&service, &pins, client(n), 1_000)
        });
    });

    (0..1_000_000).for_each(|n| keep(&pins, &service, key(n), 1_000));
    group.bench_function("whole decision, a million clients in turn", |b| {
        b.iter(|| {
            // A prime's distance: no two in a row are near each other in the table.
            n = (n + 7_919) % 1_000_000;
            decide(&service, &pins, client(n), 1_000)
        });
    });
}

/// A route by its host, and by its path among all of one host's.
fn routes(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("route");
    for routes in [10, 1_000, 10_000] {
        let hosts: Vec<_> = (0..routes).map(|n| [Hostname::Exact(format!("host-{n}.example.com"))]).collect();
        let paths: Vec<_> = (0..routes).map(|n| [PathMatch::Prefix(format!("/api/v1/part-{n}"))]).collect();
        let by_host = RouteTable::new(hosts.iter().enumerate().map(|(n, host)| (&host[..], &[][..], n)));
        let by_path = RouteTable::new(paths.iter().enumerate().map(|(n, path)| (&[][..], &path[..], n)));
        let asked: Vec<_> =
            (0..routes).map(|n| (format!("host-{n}.example.com"), format!("/api/v1/part-{n}/of/it"))).collect();
        let mut n = 0;
        group.bench_function(BenchmarkId::new("host", routes), |b| {
            b.iter(|| {
                n = (n + 7_919) % routes;
                asked.get(n).and_then(|(host, _)| by_host.find(host, "/"))
            });
        });
        group.bench_function(BenchmarkId::new("path", routes), |b| {
            b.iter(|| {
                n = (n + 7_919) % routes;
                asked.get(n).and_then(|(_, path)| by_path.find("example.com", path))
            });
        });
    }
}

fn new_clients(bench: &mut Criterion) {
    let service = service(10);
    let mut group = bench.benchmark_group("a new client's pin");
    for (what, room) in [("with room", 1_000_000), ("when full", 100_000)] {
        let pins = Pins::new(room);
        let mut n = 0u32;
        if what == "when full" {
            (0..200_000).for_each(|n| keep(&pins, &service, key(n), 0));
            n = 200_000;
        }
        group.bench_function(what, |b| {
            b.iter(|| {
                n = n.wrapping_add(1);
                keep(&pins, &service, key(n), 1_000);
            });
        });
    }
}

/// Not a time, but it belongs here: what a million pins weigh.
fn weight(_: &mut Criterion) {
    let Some(before) = resident() else { return };
    let (service, pins) = (service(10), Pins::new(1_000_000));
    (0..1_200_000).for_each(|n| keep(&pins, &service, key(n), 0));
    // The allocator gives back what growing left behind a little later, while it is used.
    for n in 0..2_000usize {
        std::hint::black_box(vec![1u8; 1024 * (1 + n % 64)]);
        std::thread::sleep(Duration::from_micros(100));
    }
    let after = resident().unwrap_or(before);
    println!("{} pins: {:.1} MiB resident", pins.len(), (after - before) / 1024.0);
    (0..5_000_000u32).for_each(|n| keep(&pins, &service, ipv6(n), 1_000));
    let flooded = resident().unwrap_or(after);
    println!(
        "after 5,000,000 clients of one IPv6 /32: {} pins, {:.1} MiB more resident",
        pins.len(),
        (flooded - after) / 1024.0
    );
}

/// In KiB; Linux only.
fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

criterion_group!(benches, weight, pinned, unpinned, routes, new_clients);
criterion_main!(benches);
