//! From an admin request to its answer: the table of what is there, method and guard checks, JSON and text.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, VARY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use serde::Serialize;
use serde_json::json;
use tracing::info;

use super::guard::{Head, Refusal};
use super::query::decode;
use super::rollout::{self, Kind};
use super::{AdminState, events, explain, exposition, heavy, page, query, services};
use crate::config;

/// All at once, or a stream of events.
pub(super) type Answer = Response<Either<Full<Bytes>, events::Stream>>;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const EVENTS: &str = "text/event-stream";
/// A body of weights has a hundred bytes; a service can have a thousand versions.
const MAX_BODY: usize = 64 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is there.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Index,
    Live,
    Ready,
    Metrics,
    Version,
    Config,
    Services,
    Service(String),
    HeavyClients(String),
    History(String),
    Recent(String),
    Verb(String, Kind),
    WhatIf(String),
    Events,
    Explain,
    OpenApi,
}

const INDEX: &str = "perch admin; open this address in a browser for the dashboard

GET  /livez                            200 while the process runs and no worker is blocked (also /healthz)
GET  /readyz                           200 when it should get traffic, with what it waits for
GET  /metrics                          Prometheus text
GET  /version                          version of perch
GET  /config                           configuration in force, secrets redacted
GET  /api/v1/services                  services, weights, shares, endpoints
GET  /api/v1/services/{name}           one of them
GET  /api/v1/services/{name}/heavy-clients   the ten clients with the most requests
GET  /api/v1/services/{name}/history   what was done to its weights, newest first
GET  /api/v1/services/{name}/recent    requests, errors and latency of five minutes, every five seconds
GET  /api/v1/services/{name}/what-if?  which clients other weights would move: ?canary=25%25
POST /api/v1/services/{name}/weights   {\"weights\":{\"canary\":\"20%\"},\"generation\":7,\"reason\":\"why\",\"dryRun\":true}
POST /api/v1/services/{name}/pause     nothing changes until resume
POST /api/v1/services/{name}/resume    after pause
POST /api/v1/services/{name}/promote   {\"version\":\"canary\"} takes all, and is the stable side from now on
POST /api/v1/services/{name}/abort     the stable side takes all, at once
POST /api/v1/services/{name}/undo      {\"toRevision\":3}, or the weights before
POST /api/v1/services/{name}/switch    {\"version\":\"green\",\"existing\":\"drain\",\"deadline\":\"10m\"}
POST /api/v1/services/{name}/drain     {\"version\":\"canary\",\"deadline\":\"10m\"}
GET  /api/v1/explain?ip=&host=&path=   which version a client gets, and why (also ?ip=&service=)
GET  /api/v1/events                    all of it live, as server-sent events
GET  /api/v1/openapi.json              this, for machines
";

const OPENAPI: &str = include_str!("openapi.json");

impl Place {
    fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Index,
            "/livez" | "/healthz" => Self::Live,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/version" => Self::Version,
            "/config" => Self::Config,
            "/api/v1/services" => Self::Services,
            "/api/v1/explain" => Self::Explain,
            "/api/v1/events" => Self::Events,
            "/api/v1/openapi.json" => Self::OpenApi,
            other => {
                let mut rest = other.strip_prefix("/api/v1/services/")?.split('/');
                let name = decode(rest.next()?, false).filter(|name| !name.is_empty())?;
                match (rest.next(), rest.next()) {
                    (None, _) => Self::Service(name),
                    (Some("heavy-clients"), None) => Self::HeavyClients(name),
                    (Some("history"), None) => Self::History(name),
                    (Some("recent"), None) => Self::Recent(name),
                    (Some("what-if"), None) => Self::WhatIf(name),
                    (Some(verb), None) => Self::Verb(name, Kind::ALL.into_iter().find(|k| k.as_str() == verb)?),
                    (Some(_), Some(_)) => return None,
                }
            }
        })
    }

    const fn allow(&self) -> &'static str {
        match self {
            Self::Verb(..) => "POST",
            // A stream has no length and no end, so there is nothing that HEAD could tell.
            Self::Events => "GET",
            Self::Index
            | Self::Live
            | Self::Ready
            | Self::Metrics
            | Self::Version
            | Self::Config
            | Self::Services
            | Self::Service(_)
            | Self::HeavyClients(_)
            | Self::History(_)
            | Self::Recent(_)
            | Self::WhatIf(_)
            | Self::Explain
            | Self::OpenApi => "GET, HEAD",
        }
    }

    fn allows(&self, method: &Method) -> bool {
        self.allow().split(", ").any(|m| m == method.as_str())
    }
}

pub(super) async fn answer(
    state: &Arc<AdminState>,
    peer: SocketAddr,
    is_loopback: bool,
    request: Request<Incoming>,
) -> Answer {
    let (head, body) = request.into_parts();
    let authority = head.uri.authority().map(|a| a.as_str());
    let checks = Head { headers: &head.headers, authority, version: head.version };
    if let Err(refusal) = checks.check(is_loopback) {
        return refused(refusal);
    }
    let Some(place) = Place::find(head.uri.path()) else {
        return error(StatusCode::NOT_FOUND, "there is nothing here; GET / lists what there is");
    };
    if !place.allows(&head.method) {
        let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(place.allow()));
        return answer;
    }
    match place {
        Place::Index => index(&head.headers),
        Place::Live if state.heartbeats.is_alive() => text(StatusCode::OK, "alive\n"),
        Place::Live => text(StatusCode::SERVICE_UNAVAILABLE, "a worker has been blocked for 10 seconds\n"),
        Place::Ready => readiness(state),
        Place::Metrics => {
            aside(state, |state| plain(StatusCode::OK, exposition::CONTENT_TYPE, exposition::render(state))).await
        }
        Place::Version => json(StatusCode::OK, &json!({ "name": "perch", "version": env!("CARGO_PKG_VERSION") })),
        Place::Config => json(StatusCode::OK, &config::dump(&state.published.load().config)),
        Place::Services => aside(state, |state| json(StatusCode::OK, &services::all(state))).await,
        Place::Service(name) => aside(state, move |state| found(state, &name, services::one(state, &name))).await,
        Place::History(name) => rollout::shown_history(state, &name).unwrap_or_else(|| no_service(state, &name)),
        Place::WhatIf(name) => rollout::what_if(state, &name, head.uri.query().unwrap_or_default()).await,
        Place::Verb(name, kind) => {
            let token = state.published.load().config.admin.token.clone();
            if let Err(refusal) = checks.check_write(is_loopback, token.as_ref().map(|t| t.0.as_str())) {
                let verb = kind.as_str();
                info!(audit = true, who = %peer, service = name, verb, error = refusal.1, "Refused a change.");
                return refused(refusal);
            }
            match read(body).await {
                Ok(body) => rollout::act(state, peer, &name, kind, &body).await,
                Err(refusal) => refused(refusal),
            }
        }
        Place::Explain => match query::explain(head.uri.query().unwrap_or_default()) {
            Ok(query) => explained(state, &query),
            Err(message) => error(StatusCode::BAD_REQUEST, message),
        },
        Place::HeavyClients(name) => aside(state, move |state| found(state, &name, heavy::of(state, &name))).await,
        Place::Recent(name) => {
            let snapshot = state.published.load();
            let course = services::find(&snapshot, &name).map(|s| state.live.recent.shape_of([&**s]));
            found(state, &name, course)
        }
        Place::Events => stream(state, head.extensions.get()),
        Place::OpenApi => plain(StatusCode::OK, JSON, OPENAPI),
    }
}

/// A browser gets the dashboard, everybody else what there is, as text.
fn index(headers: &HeaderMap) -> Answer {
    let (status, vary) = (StatusCode::OK, HeaderValue::from_static("accept"));
    let mut answer = if page::is_wanted(headers) {
        let (page, policy) = page::answer();
        let mut answer = plain(status, HTML, page);
        answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        answer.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        answer
    } else {
        text(status, INDEX)
    };
    answer.headers_mut().insert(VARY, vary);
    answer
}

fn stream(state: &AdminState, line: Option<&Arc<events::Line>>) -> Answer {
    let Some(stream) = line.and_then(|line| state.live.events.open(line.clone())) else {
        let message = "there are as many event streams as there may be; close one and try again";
        return error(StatusCode::SERVICE_UNAVAILABLE, message);
    };
    let (mut head, _) = plain(StatusCode::OK, EVENTS, Bytes::new()).into_parts();
    head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Response::from_parts(head, Either::Right(stream))
}

fn found(state: &AdminState, name: &str, what: Option<impl Serialize>) -> Answer {
    match what {
        Some(what) => json(StatusCode::OK, &what),
        None => no_service(state, name),
    }
}

/// Runs what walks the pin table (50 ms for a million) beside this thread, which also checks endpoints.
pub(super) async fn aside(
    state: &Arc<AdminState>,
    answer: impl FnOnce(&AdminState) -> Answer + Send + 'static,
) -> Answer {
    let state = state.clone();
    let done = tokio::task::spawn_blocking(move || answer(&state)).await;
    done.unwrap_or_else(|_| error(StatusCode::INTERNAL_SERVER_ERROR, "perch made a mistake; its log has more"))
}

fn readiness(state: &AdminState) -> Answer {
    use std::fmt::Write as _;
    let readiness = &state.readiness;
    let (status, mut body) = match (readiness.is_draining(), readiness.pending()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        (false, pending) if pending.is_empty() => (StatusCode::OK, "ready\n".to_owned()),
        (false, pending) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", pending.join(", "))),
    };
    let reload = match readiness.last_reload().error {
        None => "last reload: taken over".to_owned(),
        Some(error) => format!("last reload: refused, the configuration before stays in force\n{error}"),
    };
    let generation = state.published.load().generation;
    writeln!(body, "generation: {generation}\n{reload}").expect("a String takes everything");
    text(status, body)
}

fn explained(state: &AdminState, query: &explain::Query) -> Answer {
    let snapshot = state.published.load();
    match explain::answer(&snapshot, Some(&state.pins), state.clock.now(), query) {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(problem @ (explain::QueryError::Service(..) | explain::QueryError::Listener(..))) => {
            error(StatusCode::NOT_FOUND, problem.to_string())
        }
        Err(problem) => error(StatusCode::BAD_REQUEST, problem.to_string()),
    }
}

async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    const TOO_LARGE: Refusal = Refusal(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 64 KiB");
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(TOO_LARGE);
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(TOO_LARGE),
        Ok(Err(_)) => Err(Refusal(StatusCode::BAD_REQUEST, "the body could not be read")),
        Err(_) => Err(Refusal(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}

fn no_service(state: &AdminState, name: &str) -> Answer {
    let snapshot = state.published.load();
    let known: Vec<String> = snapshot.services.iter().map(|s| format!("`{}`", s.name)).collect();
    let known = known.join(", ");
    error(StatusCode::NOT_FOUND, format!("there is no service `{name}`; the services are {known}"))
}

fn refused(Refusal(status, message): Refusal) -> Answer {
    let mut answer = error(status, message);
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
        // The rest of the body is not worth reading.
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

pub(super) fn error(status: StatusCode, message: impl Into<String>) -> Answer {
    json(status, &json!({ "error": message.into() }))
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            plain(status, JSON, bytes)
        }
        Err(problem) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{problem}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    plain(status, TEXT, body)
}

fn plain(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_path_is_there_and_allows_its_methods() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();

        for (path, operations) in document["paths"].as_object().unwrap() {
            let place = Place::find(&path.replace("{name}", "hello")).unwrap_or_else(|| panic!("{path}"));
            for method in operations.as_object().unwrap().keys() {
                assert!(place.allows(&method.to_uppercase().parse().unwrap()), "{method} {path}");
            }
        }
    }

    #[test]
    fn every_line_of_the_index_is_documented() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();

        for line in INDEX.lines().filter(|l| l.contains(" /")) {
            let path = line.split_whitespace().nth(1).unwrap().split('?').next().unwrap();
            assert!(document["paths"].get(path).is_some(), "{line}");
        }
    }

    #[test]
    fn names_are_decoded_and_odd_paths_are_nowhere() {
        assert_eq!(Place::find("/api/v1/services/a%2Fb"), Some(Place::Service("a/b".to_owned())));
        for path in
            ["/api/v1/services/", "/api/v1/services/a/", "/api/v1/services/a/weights/", "/api", "//", "/metrics/"]
        {
            assert_eq!(Place::find(path), None, "{path}");
        }
    }
}
