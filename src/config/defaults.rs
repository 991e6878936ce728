//! The defaults of the configuration, each with where it comes from. `config/perch.yaml` tells people the same.
//!
//! Envoy's recommendations for an edge proxy are the floor: nothing is unlimited unless someone writes so.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::model::{
    AccessLog, Admin, Affinity, Drain, Ejection, ListenerLimits, ListenerTimeouts, LogFormat, Pins, Retries, Rollout,
    ServiceLimits, ServiceTimeouts,
};
use crate::decide::KeyPrefix;
use crate::decide::guard::Rules;

/// As Kubernetes' own controllers hold theirs.
pub(super) const LEASE: Duration = Duration::from_secs(15);

/// Envoy's edge advice for all downstream connections.
pub(super) const MAX_CONNECTIONS: usize = 50_000;
/// HAProxy's usual wait for the PROXY line; the sender is a load balancer next door.
pub(super) const PROXY_PROTOCOL_TIMEOUT: Duration = Duration::from_secs(5);
/// The answer keeps the method (RFC 9110 section 15.4.9), so that a POST is not turned into a GET.
pub(super) const REDIRECT_STATUS: u16 = 308;
/// Kubernetes' `sessionAffinityConfig.clientIP.timeoutSeconds`.
pub(super) const AFFINITY_SECONDS: u64 = 10_800;
/// A working session; whoever is still there then moves.
pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(3_600);
/// A failed endpoint is out two seconds later.
pub(super) const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
pub(super) const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
pub(super) const HEALTH_RISE: u32 = 2;
pub(super) const HEALTH_FALL: u32 = 2;
/// Half of Envoy's: of up to four endpoints one healthy one is enough, since a version with few endpoints is normal here,
/// and to lose most of three while they restart is no reason to send two thirds of the users to dead ones.
pub(super) const HEALTH_PANIC_PERCENT: u8 = 25;

impl Default for Admin {
    /// Loopback: nobody outside reads or writes before someone says so.
    fn default() -> Self {
        Self { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9900), token: None }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { format: LogFormat::Text, sample: 1.0 }
    }
}

impl Default for Drain {
    /// Within the 30 s that Kubernetes gives a pod (`terminationGracePeriodSeconds`).
    fn default() -> Self {
        Self { delay: Duration::from_secs(2), spread: Duration::from_secs(5), deadline: Duration::from_secs(30) }
    }
}

impl Default for Pins {
    /// A million pins are at most 128 MiB.
    fn default() -> Self {
        Self { max_entries: 1_000_000 }
    }
}

impl Default for ListenerTimeouts {
    fn default() -> Self {
        Self {
            tls_handshake: Duration::from_secs(10),
            first_byte: Duration::from_secs(10),
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            write: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            upgraded_idle: Duration::from_secs(3_600),
        }
    }
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            head_bytes: 32 << 10,
            target_bytes: 8 << 10,
            fields: 100,
            connections: 10_000,
            connections_per_client: 0,
            streams: 100,
            body_rate: 240,
        }
    }
}

impl Default for Affinity {
    fn default() -> Self {
        Self::ClientIp { prefix: KeyPrefix::default(), timeout: Duration::from_secs(AFFINITY_SECONDS) }
    }
}

impl Default for ServiceTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            response_head: Duration::from_secs(60),
            body: Duration::from_secs(60),
            // Below the 5 s after which Node.js closes its side, so that perch closes first.
            idle: Duration::from_secs(4),
        }
    }
}

impl Default for Retries {
    /// GEP-3388's defaults.
    fn default() -> Self {
        Self { budget_percent: 20, min_per_second: 10 }
    }
}

impl Default for ServiceLimits {
    /// Envoy's `max_requests` has the same.
    fn default() -> Self {
        Self { requests_per_endpoint: 1_024 }
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self { consecutive_failures: 5, duration: Duration::from_secs(10), max_percent: 50 }
    }
}

impl Default for Rollout {
    /// A pod that has just come is slow for a while, and the one it replaces takes some time to go.
    fn default() -> Self {
        Self {
            min_ready: 1,
            settle: Duration::from_secs(10),
            steps: Vec::new(),
            guard: Rules::default(),
            webhook: None,
            start: None,
        }
    }
}
