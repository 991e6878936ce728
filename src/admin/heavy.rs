//! `GET /api/v1/services/{name}/heavy-clients`: the remembered clients with the most requests. They explain why a share of
//! the requests differs from the share of the clients. Never in metrics: a label must not be a client's address.

use serde::Serialize;

use super::{AdminState, services};
use crate::config::Affinity;

/// Enough to see who makes the difference.
const MOST: usize = 10;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Heavy {
    service: String,
    /// Remembered now, and their requests since each is remembered.
    clients: usize,
    requests: u64,
    /// Without affinity nobody is remembered.
    remembers: bool,
    heaviest: Vec<Client>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Client {
    /// The address cut to the service's prefix, such as `2001:db8::/64`.
    key: String,
    /// `None`: gone meanwhile.
    version: Option<String>,
    requests: u64,
    /// Of the remembered clients' requests.
    share: f64,
    idle_seconds: u32,
}

/// Of one service; `None` when there is none of that name.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
pub(super) fn of(state: &AdminState, name: &str) -> Option<Heavy> {
    let snapshot = state.published.load();
    let service = services::find(&snapshot, name)?;
    let Affinity::ClientIp { prefix, timeout } = service.config.affinity else {
        let (service, heaviest) = (name.to_owned(), Vec::new());
        return Some(Heavy { service, clients: 0, requests: 0, remembers: false, heaviest });
    };
    let found = state.pins.heaviest(service.id, state.clock.now(), timeout, MOST);
    let all = found.requests.max(1) as f64;
    let client = |heavy: crate::state::pins::census::Heavy| Client {
        key: {
            let address = heavy.client.address();
            format!("{address}/{}", if address.is_ipv4() { prefix.v4() } else { prefix.v6() })
        },
        version: service.versions.iter().find(|v| v.id == heavy.version).map(|v| v.name.to_string()),
        requests: heavy.requests,
        share: heavy.requests as f64 / all,
        idle_seconds: heavy.idle_seconds,
    };
    Some(Heavy {
        service: name.to_owned(),
        clients: found.clients,
        requests: found.requests,
        remembers: true,
        heaviest: found.top.into_iter().map(client).collect(),
    })
}
