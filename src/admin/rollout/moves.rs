//! Who would move: the remembered clients under the split before and after, and the requests that go with them.
//!
//! Exact for the clients that the pin table has; the rate is an estimate, as if the clients of a version all asked
//! equally often. It walks the whole table: not for a thread that others wait for.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::Affinity;
use crate::decide::Hold;
use crate::decide::choose::Asker;
use crate::state::pins::Pins;
use crate::state::snapshot::Service;

/// What a change moves.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct Moves {
    /// Of the recently seen clients.
    clients: usize,
    of_clients: usize,
    requests_per_second: f64,
    between: Vec<Between>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Between {
    from: String,
    to: String,
    clients: usize,
}

/// The window of `recent_requests`.
const WINDOW: f64 = 60.0;

/// Compares the service before and after a change.
#[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
pub(in crate::admin) fn moves(pins: &Pins, before: &Service, after: &Service, now: u64) -> Moves {
    let rate = |version: usize| before.versions.get(version).map_or(0, |v| v.metrics.recent_requests()) as f64 / WINDOW;
    let Affinity::ClientIp { timeout, .. } = before.config.affinity else {
        // Nobody is remembered: what moves is a share of the requests.
        let all: f64 = (0..before.versions.len()).map(rate).sum();
        let shares = |s: &Service, v: usize| s.policy.split.share(v);
        let lost = (0..before.versions.len()).map(|v| (shares(before, v) - shares(after, v)).max(0.0));
        return Moves { requests_per_second: all * lost.fold(0.0, |all, lost| all + lost), ..Moves::default() };
    };
    let usable: Vec<bool> =
        after.versions.iter().map(|v| v.endpoints.iter().any(|e| e.health.is_usable(now))).collect();
    let usable = |v: usize| usable.get(v).copied().unwrap_or_default();
    let mut of_version = vec![0_usize; before.versions.len()];
    let mut pairs: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut of_clients = 0;
    pins.for_each(before.id, now, timeout, |key, home| {
        let pinned = before.versions.iter().position(|v| Some(v.id) == home);
        let choose = |service: &Service| {
            service.policy.choose(Asker::Client(key, pinned), None, now, usable).ok().map(|choice| choice.version)
        };
        of_clients += 1;
        let from = choose(before);
        if let Some(count) = from.and_then(|from| of_version.get_mut(from)) {
            *count += 1;
        }
        if let (Some(from), Some(to)) = (from, choose(after))
            && from != to
        {
            *pairs.entry((from, to)).or_default() += 1;
        }
    });
    let name = |v: usize| before.versions.get(v).map(|v| v.name.to_string()).unwrap_or_default();
    let all_of = |v: usize| of_version.get(v).copied().unwrap_or_default().max(1) as f64;
    Moves {
        clients: pairs.values().sum(),
        of_clients,
        // Not sum(): of nothing that is -0, and people would see the sign.
        requests_per_second: pairs
            .iter()
            .fold(0.0, |all, ((from, _), n)| all + rate(*from) * *n as f64 / all_of(*from)),
        between: pairs
            .iter()
            .map(|((from, to), clients)| Between { from: name(*from), to: name(*to), clients: *clients })
            .collect(),
    }
}

/// Clients that a drain or freeze holds on a version which the split gives them no more, by version.
pub(in crate::admin) fn clients_left(pins: &Pins, service: &Service, now: u64) -> Vec<usize> {
    let mut left = vec![0; service.versions.len()];
    let is_held = |v: usize| service.policy.holds.get(v).is_some_and(|hold| *hold != Hold::None);
    // A walk over the table only where there is a drain.
    if let Affinity::ClientIp { timeout, .. } = service.config.affinity
        && (0..left.len()).any(is_held)
    {
        pins.for_each(service.id, now, timeout, |key, home| {
            let on = service.versions.iter().position(|v| Some(v.id) == home).filter(|on| is_held(*on));
            let stays = on.filter(|on| service.policy.split.version_of(key) != Some(*on));
            if let Some(count) = stays.and_then(|on| left.get_mut(on)) {
                *count += 1;
            }
        });
    }
    left
}
