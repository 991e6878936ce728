//! What the sample services answer. It knows nothing of sockets. Answers that are always the same are made
//! once, since benchmarks ask for them a lot.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::token::Tokens;
use super::{Kind, Options};

type Answer = Response<Full<Bytes>>;

/// The service port of one instance.
#[derive(Debug)]
pub(super) struct Service {
    kind: Kind,
    options: Options,
    tokens: Tokens,
    version: Bytes,
    requests: AtomicU64,
    dice: RandomState,
}

impl Service {
    pub(super) fn new(kind: Kind, options: Options) -> Self {
        Self {
            kind,
            tokens: Tokens::new(&options.secret),
            version: serde_json::json!({ "version": options.version }).to_string().into(),
            options,
            requests: AtomicU64::new(0),
            dice: RandomState::new(),
        }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        if !self.options.delay.is_zero() {
            tokio::time::sleep(self.options.delay).await;
        }
        if self.options.fail_rate > 0.0 && self.roll() < self.options.fail_rate {
            return Ok(problem(StatusCode::INTERNAL_SERVER_ERROR, "failed on purpose (--fail-rate)"));
        }
        Ok(self.route(&request))
    }

    fn route(&self, request: &Request<Incoming>) -> Answer {
        let route: fn(&Self, &Request<Incoming>) -> Answer = match (self.kind, request.uri().path()) {
            (Kind::Hello, "/") => |_, _| json(StatusCode::OK, HELLO),
            (Kind::Hello, "/secure") => Self::secure,
            (Kind::Auth, "/login") => Self::login,
            (_, "/version") => |service, _| json(StatusCode::OK, service.version.clone()),
            _ => return problem(StatusCode::NOT_FOUND, "not found"),
        };
        if let Some(refusal) = refuse_writes(request) {
            return refusal;
        }
        route(self, request)
    }

    fn secure(&self, request: &Request<Incoming>) -> Answer {
        match credentials(request, "Bearer") {
            Some(token) if self.tokens.accept(token) => json(StatusCode::OK, HELLO),
            Some(_) => unauthorized("Bearer error=\"invalid_token\"", "the token is not valid"),
            None => unauthorized("Bearer", "authorization failed"),
        }
    }

    fn login(&self, request: &Request<Incoming>) -> Answer {
        if credentials(request, "Basic") != Some(USER_PASSWORD) {
            return unauthorized("Basic realm=\"auth\"", "authorization failed");
        }
        match self.tokens.issue() {
            Ok(token) => json(StatusCode::OK, serde_json::json!({ "token": token }).to_string()),
            Err(error) => {
                tracing::error!(%error, "Cannot sign a token.");
                problem(StatusCode::INTERNAL_SERVER_ERROR, "cannot sign a token")
            }
        }
    }

    /// Uniform in 0..1. A keyed hash of a counter: good enough to fail by, and no generator to keep.
    fn roll(&self) -> f64 {
        let hash = self.dice.hash_one(self.requests.fetch_add(1, Ordering::Relaxed));
        // 53 bits: what a f64 holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let roll = (hash >> 11) as f64 / (1_u64 << 53) as f64;
        roll
    }
}

/// The health port of one instance.
#[derive(Debug, Default)]
pub(super) struct Health {
    is_unhealthy: AtomicBool,
    is_unready: AtomicBool,
    is_stopping: AtomicBool,
}

impl Health {
    /// Not ready any more, whatever the switch says.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    pub(super) fn answer(&self, request: &Request<Incoming>) -> Result<Answer, Infallible> {
        let is_stopping = self.is_stopping.load(Ordering::Relaxed);
        let answer = match request.uri().path() {
            "/healthz" => refuse_writes(request).unwrap_or_else(|| condition(!is_on(&self.is_unhealthy))),
            "/readiness" => {
                refuse_writes(request).unwrap_or_else(|| condition(!is_stopping && !is_on(&self.is_unready)))
            }
            "/healthz/status" => switch(request, &self.is_unhealthy),
            "/readiness/status" => switch(request, &self.is_unready),
            _ => problem(StatusCode::NOT_FOUND, "not found"),
        };
        Ok(answer)
    }
}

const HELLO: &str = r#"{"message":"Hello"}"#;

/// `user:password` in base64.
const USER_PASSWORD: &str = "dXNlcjpwYXNzd29yZA==";

fn is_on(switch: &AtomicBool) -> bool {
    switch.load(Ordering::Relaxed)
}

fn condition(is_good: bool) -> Answer {
    if is_good {
        json(StatusCode::OK, r#"{"ok":true}"#)
    } else {
        json(StatusCode::SERVICE_UNAVAILABLE, r#"{"ok":false}"#)
    }
}

/// The lab switches with a plain `curl`, so GET switches too; HEAD, which nobody means, does not.
fn switch(request: &Request<Incoming>, is_off: &AtomicBool) -> Answer {
    if request.method() != Method::GET && request.method() != Method::POST {
        return not_allowed("GET, POST");
    }
    let was_off = is_off.fetch_not(Ordering::Relaxed);
    json(StatusCode::OK, if was_off { r#"{"ok":true}"# } else { r#"{"ok":false}"# })
}

fn credentials<'a>(request: &'a Request<Incoming>, scheme: &str) -> Option<&'a str> {
    let (found, credentials) = request.headers().get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
}

fn refuse_writes(request: &Request<Incoming>) -> Option<Answer> {
    (request.method() != Method::GET && request.method() != Method::HEAD).then(|| not_allowed("GET, HEAD"))
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn problem(status: StatusCode, message: &str) -> Answer {
    json(status, serde_json::json!({ "error": message }).to_string())
}

fn unauthorized(challenge: &'static str, message: &str) -> Answer {
    let mut answer = problem(StatusCode::UNAUTHORIZED, message);
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    answer
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}
