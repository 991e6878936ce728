//! What `GET /api/v1/services` says of perch itself: what an operator must know before looking at any service.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use serde::Serialize;

use super::AdminState;
use crate::metrics;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    version: &'static str,
    ready: bool,
    draining: bool,
    waiting_for: Vec<&'static str>,
    reload: Reload,
    writes: Writes,
    pins: Pins,
    /// The certificate that ends first.
    certificate: Option<Certificate>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reload {
    /// What was wrong with the last configuration, which is not in force; `None` when it is.
    error: Option<String>,
    /// When one was last taken over, in seconds since 1970.
    succeeded_at: Option<u64>,
}

/// Who may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Writes {
    /// Everybody on this machine.
    Open,
    /// Who has the token.
    Token,
    /// Nobody: the listener is not on loopback, and no token is configured.
    Off,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pins {
    entries: usize,
    /// Forgotten or refused for lack of room: so many clients are missing in the counts.
    missed: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    listener: String,
    name: String,
    not_after_seconds: i64,
}

/// Whether the listener is on loopback: learned when it serves.
#[derive(Debug, Default)]
pub(super) struct IsLoopback(AtomicBool);

impl IsLoopback {
    pub(super) fn set(&self, is_loopback: bool) {
        self.0.store(is_loopback, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) fn shape(state: &AdminState) -> Process {
    let readiness = &state.readiness;
    let last = readiness.last_reload();
    let has_token = state.published.load().config.admin.token.is_some();
    Process {
        version: env!("CARGO_PKG_VERSION"),
        ready: readiness.is_ready(),
        draining: readiness.is_draining(),
        waiting_for: readiness.pending(),
        reload: Reload {
            error: last.error,
            succeeded_at: last.succeeded_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|d| d.as_secs()),
        },
        writes: match (has_token, state.live.is_loopback.get()) {
            (true, _) => Writes::Token,
            (false, true) => Writes::Open,
            (false, false) => Writes::Off,
        },
        pins: Pins { entries: state.pins.len(), missed: state.pins.evictions() + state.pins.refusals() },
        certificate: metrics::all_certificates()
            .into_iter()
            .min_by_key(|(.., end)| *end)
            .map(|(listener, name, not_after_seconds)| Certificate { listener, name, not_after_seconds }),
    }
}
