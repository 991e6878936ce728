//! Memory that only a process without neighbours can measure: the one test of its binary, so that no other test runs in the
//! same process at the same time.

#![allow(clippy::unwrap_used, reason = "this is a test: a panic is how it fails")]

use perch::metrics::{VersionMetrics, handle};

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib: f64| kib / 1024.0).unwrap()
}

#[test]
fn metrics_take_no_more_memory_when_nobody_scrapes() {
    let version = VersionMetrics::new("unscraped", "stable");
    let record = |requests: u32| {
        for n in 0..requests {
            version.request("GET", 200, f64::from(n % 100) / 1000.0);
            if n % 100_000 == 0 {
                handle().run_upkeep();
            }
        }
    };
    record(200_000);
    let before = resident_mib();

    record(4_000_000);

    // Raw samples would be 8 bytes each, 32 MB.
    assert!(resident_mib() - before < 4.0, "{before} MiB before, {} MiB after", resident_mib());
}
