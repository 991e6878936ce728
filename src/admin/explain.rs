//! Explaining one client's answer on a whole picture: route, service, split, pin, endpoint.
//!
//! The admin API asks it about the live snapshot and its pins, `perch explain` about the snapshot that a file would
//! give. It uses the data path's own tables and functions, so that the answers cannot differ.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::{Affinity, Overrides};
use crate::decide::explain::{
    Candidate, Question, RouteNote, RouteShape, Verdict, VersionNote, explain, explain_routes,
};
use crate::decide::slow_start;
use crate::decide::target::{Authority, normalise, split_query};
use crate::decide::{ClientKey, Forced, Why};
use crate::state::pins::{Pin, Pins};
use crate::state::snapshot::{Endpoint, Service, Snapshot, Version};

/// Whose answer.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub ip: Option<IpAddr>,
    /// As in the Host field; a port does not matter.
    pub host: Option<String>,
    pub path: Option<String>,
    /// Instead of a route by host and path.
    pub service: Option<String>,
    /// By default the first that has a route for the request.
    pub listener: Option<String>,
    /// What an override header or cookie would say.
    pub forced: Option<String>,
}

/// The question makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("ip: missing; write the client's address")]
    NoAddress,
    #[error("host: `{0}` is no host name or address")]
    Host(String),
    #[error("path: `{0}` would be refused; write one that starts with / and has no broken escapes")]
    Path(String),
    #[error("service: there is no `{0}`; the services are {1}")]
    Service(String, String),
    #[error("listener: there is no `{0}`; the listeners are {1}")]
    Listener(String, String),
    #[error("override: `{0}` is neither always, never nor a version's name")]
    Override(String),
    #[error("override: service `{0}` has no overrides")]
    NoOverrides(String),
}

/// The answer with its reasoning; the JSON of the API and of `perch explain -o json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Of the live snapshot; `None` for a file.
    pub generation: Option<u64>,
    pub client: Client,
    pub listener: Option<String>,
    pub host: Option<String>,
    pub path: Option<String>,
    pub route: Option<String>,
    /// Every route and why it was chosen or not; empty when the service was named.
    pub routes: Vec<RouteNote>,
    pub service: Option<String>,
    pub cohort: Option<Cohort>,
    pub affinity: Option<AffinityNote>,
    pub overrides: Option<OverridesNote>,
    pub pin: Option<PinNote>,
    pub versions: Vec<VersionNote>,
    /// What the split alone says.
    pub split: Option<String>,
    pub version: Option<String>,
    pub why: Option<Why>,
    pub endpoint: Option<String>,
    /// Why nobody serves it, as in the `perch-reason` header.
    pub reason: Option<String>,
    pub reasoning: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub address: IpAddr,
    /// The address cut to the prefix: what the split and the pins know the client by.
    pub key: Option<String>,
    pub prefix: Option<u8>,
}

/// What the split's hash is seeded with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cohort {
    pub name: String,
    /// A secret salt is mixed in.
    pub salted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AffinityNote {
    /// `ClientIP` or `None`.
    #[serde(rename = "type")]
    pub kind: String,
    pub timeout_seconds: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverridesNote {
    pub header: Option<String>,
    pub cookie: Option<String>,
    /// The version that `always` and `never` speak of.
    pub version: String,
    /// This client may use them.
    pub is_trusted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinNote {
    pub version: String,
    pub endpoint: String,
    pub why: Why,
}

/// Explains. `pins`: the live table, or none; `now` in milliseconds of the clock that made the snapshot.
///
/// # Errors
/// See [`QueryError`].
pub fn answer(snapshot: &Snapshot, pins: Option<&Pins>, now: u64, query: &Query) -> Result<Answer, QueryError> {
    let address = query.ip.ok_or(QueryError::NoAddress)?.to_canonical();
    let mut answer = Answer {
        generation: pins.map(|_| snapshot.generation),
        client: Client { address, key: None, prefix: None },
        listener: None,
        host: None,
        path: None,
        route: None,
        routes: Vec::new(),
        service: None,
        cohort: None,
        affinity: None,
        overrides: None,
        pin: None,
        versions: Vec::new(),
        split: None,
        version: None,
        why: None,
        endpoint: None,
        reason: None,
        reasoning: Vec::new(),
    };
    let service = match &query.service {
        Some(name) => {
            let known = || names(snapshot.services.iter().map(|s| &*s.name));
            let found = snapshot.services.iter().find(|s| *s.name == **name);
            found.ok_or_else(|| QueryError::Service(name.clone(), known()))?
        }
        None => match route(snapshot, query, &mut answer)? {
            Some(service) => service,
            None => {
                answer.reason = Some("no-route".to_owned());
                answer.reasoning.push("no route matches: the answer is 404".to_owned());
                return Ok(answer);
            }
        },
    };
    decide(service, pins, now, query, &mut answer)?;
    Ok(answer)
}

/// Finds the service by host and path, as the data path does.
fn route<'a>(snapshot: &'a Snapshot, query: &Query, answer: &mut Answer) -> Result<Option<&'a Service>, QueryError> {
    let host = match query.host.as_deref() {
        None | Some("") => String::new(),
        Some(host) => Authority::parse(host).map_err(|_| QueryError::Host(host.to_owned()))?.host.to_ascii_lowercase(),
    };
    let (raw, _) = split_query(query.path.as_deref().unwrap_or("/"));
    let bad = || QueryError::Path(raw.to_owned());
    let path = if raw.starts_with('/') { normalise(raw).map_err(|_| bad())? } else { return Err(bad()) };
    let mut listeners = snapshot.listeners.iter().map(|l| &**l);
    let listener = match &query.listener {
        Some(name) => {
            let known = || names(snapshot.listeners.iter().map(|l| &*l.config.name));
            let found = listeners.find(|l| *l.config.name == **name);
            Some(found.ok_or_else(|| QueryError::Listener(name.clone(), known()))?)
        }
        None => listeners.find(|l| l.config.redirect_to_https.is_none() && l.routes.find(&host, &path).is_some()),
    };
    let found = listener.and_then(|l| l.routes.find(&host, &path));
    let routes = &snapshot.config.routes;
    let shapes: Vec<_> = routes
        .iter()
        .map(|route| RouteShape {
            name: &route.name,
            hostnames: &route.hostnames,
            matches: &route.matches,
            is_on_listener: route.listeners.is_empty()
                || listener.is_none_or(|l| route.listeners.contains(&l.config.name)),
        })
        .collect();
    answer.routes = explain_routes(&shapes, &host, &path, found);
    answer.listener = listener.map(|l| l.config.name.to_string());
    answer.host = Some(host);
    answer.path = Some(path.into_owned());
    let Some(found) = found.and_then(|i| routes.get(i)) else { return Ok(None) };
    answer.route = Some(found.name.to_string());
    if listener.is_some_and(|l| l.config.redirect_to_https.is_some()) {
        answer.reasoning.push("this listener only redirects to https; there the answer is".to_owned());
    }
    Ok(snapshot.services.get(found.service).map(|s| &**s))
}

fn decide(
    service: &Service,
    pins: Option<&Pins>,
    now: u64,
    query: &Query,
    answer: &mut Answer,
) -> Result<(), QueryError> {
    let address = answer.client.address;
    let (key, pin) = match service.config.affinity {
        Affinity::None => (None, None),
        Affinity::ClientIp { prefix, timeout } => {
            let key = ClientKey::new(address, prefix);
            answer.client.key = Some(key.to_string());
            answer.client.prefix = Some(if address.is_ipv4() { prefix.v4() } else { prefix.v6() });
            (Some(key), pins.and_then(|pins| pins.peek(service.id, key, now, timeout)))
        }
    };
    let forced = forced(service, query.forced.as_deref(), address, answer)?;
    let home = pin.as_ref().and_then(|p| p.home).and_then(|home| service.versions.iter().position(|v| v.id == home));
    let pin = pin.and_then(|pin| placed(service, pin));
    let shown_endpoints: Vec<Vec<String>> =
        service.versions.iter().map(|v| v.endpoints.iter().map(|e| shown(e)).collect()).collect();
    let who = key.map_or(0, slow_start::who);
    let candidates: Vec<Vec<Candidate<'_>>> = std::iter::zip(&service.versions, &shown_endpoints)
        .map(|(version, names)| {
            std::iter::zip(&version.endpoints, names).map(|(e, name)| candidate(version, e, name, who, now)).collect()
        })
        .collect();
    let pinned_to = pin.as_ref().map(|(_, pin)| shown(&pin.endpoint));
    let verdict = explain(&Question {
        policy: &service.policy,
        client: key,
        pin: pin.as_ref().zip(pinned_to.as_deref()).map(|((version, _), endpoint)| (*version, endpoint)),
        home,
        forced,
        now,
        endpoints: &candidates,
    });
    answer.pin = pin.zip(pinned_to).map(|((version, pin), endpoint)| PinNote {
        version: service.versions.get(version).map_or_else(String::new, |v| v.name.to_string()),
        endpoint,
        why: pin.why,
    });
    answer.service = Some(service.name.to_string());
    answer.cohort = Some(Cohort {
        name: service.config.cohort.clone().unwrap_or_else(|| service.name.to_string()),
        salted: service.config.salt.is_some(),
    });
    answer.affinity = Some(match service.config.affinity {
        Affinity::None => AffinityNote { kind: "None".to_owned(), timeout_seconds: None },
        Affinity::ClientIp { timeout, .. } => {
            AffinityNote { kind: "ClientIP".to_owned(), timeout_seconds: Some(timeout.as_secs()) }
        }
    });
    let Verdict { versions, split, version, why, endpoint, reason, reasoning } = verdict;
    (answer.versions, answer.split, answer.version, answer.why) = (versions, split, version, why);
    (answer.endpoint, answer.reason) = (endpoint, reason);
    answer.reasoning.extend(reasoning);
    Ok(())
}

fn candidate<'a>(version: &Version, endpoint: &Endpoint, name: &'a str, who: u64, now: u64) -> Candidate<'a> {
    let lets_in = version.warmth().lets_in(version, endpoint, who, now);
    Candidate { name, seed: endpoint.seed, is_usable: version.takes(endpoint, now), lets_in }
}

/// The version that a pin speaks of, if the service still has it.
fn placed(service: &Service, pin: Pin) -> Option<(usize, Pin)> {
    let version = service.versions.iter().position(|v| v.id == pin.version)?;
    Some((version, pin))
}

/// What an override asks for, if this client may use it.
fn forced(
    service: &Service,
    asked: Option<&str>,
    client: IpAddr,
    answer: &mut Answer,
) -> Result<Option<Forced>, QueryError> {
    let Some(overrides) = &service.config.overrides else {
        return asked.map_or(Ok(None), |_| Err(QueryError::NoOverrides(service.name.to_string())));
    };
    let is_trusted = overrides.trusted.iter().any(|net| net.contains(&client));
    answer.overrides = Some(OverridesNote {
        header: overrides.header.as_ref().map(ToString::to_string),
        cookie: overrides.cookie.clone(),
        version: service.versions.get(overrides.version).map_or_else(String::new, |v| v.name.to_string()),
        is_trusted,
    });
    let Some(asked) = asked else { return Ok(None) };
    let forced = parse_forced(service, overrides, asked)?;
    if !is_trusted {
        answer.reasoning.push("the override is ignored: the client is in none of the trusted networks".to_owned());
    }
    Ok(is_trusted.then_some(forced))
}

fn parse_forced(service: &Service, overrides: &Overrides, asked: &str) -> Result<Forced, QueryError> {
    match asked {
        "always" => Ok(Forced::To(overrides.version)),
        "never" => Ok(Forced::Except(overrides.version)),
        name => {
            let version = service.versions.iter().position(|v| *v.name == *name);
            version.map(Forced::To).ok_or_else(|| QueryError::Override(name.to_owned()))
        }
    }
}

/// The address; a name that nobody has resolved as the configuration writes it.
fn shown(endpoint: &Endpoint) -> String {
    if endpoint.address.ip().is_unspecified() { endpoint.name.to_string() } else { endpoint.address.to_string() }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}
