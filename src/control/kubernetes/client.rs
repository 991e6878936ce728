//! The way to the API server: where it is, how perch says who it is, and what a failure means.
//!
//! `kube` finds the cluster (a kubeconfig, or the pod's ServiceAccount), speaks TLS and reads the token and the CA again
//! as they rotate. Retries are not its business here: the watch knows better when to try again.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::time::timeout;
use tower::{BoxError, ServiceExt};

use super::objects::Status;
use crate::metrics::SyncError;

/// From a request to its response's head, and between two parts of its body.
pub(super) const ANSWER: Duration = Duration::from_secs(30);

/// Of an answer that says no; more would be no explanation.
const MAX_REFUSAL: usize = 64 << 10;

/// No server may keep perch away for longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Finds the cluster, again for each client: what a file says may have changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Connector {
    pub(super) kubeconfig: Option<PathBuf>,
}

/// Something went wrong with the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) reason: SyncError,
    pub(super) message: String,
    /// The status of an answer that says no.
    pub(super) code: Option<u16>,
    /// The server's own word on when to come back.
    pub(super) retry_after: Option<Duration>,
}

impl Trouble {
    pub(super) fn new(reason: SyncError, message: impl ToString) -> Self {
        Self { reason, message: message.to_string(), code: None, retry_after: None }
    }
}

impl Connector {
    /// A client, and the namespace that perch is in. Nothing is sent yet.
    pub(super) async fn connect(&self) -> Result<(Client, String), Trouble> {
        let nowhere = |error: &dyn std::error::Error| {
            Trouble::new(
                SyncError::NoCluster,
                format!("no cluster found ({}); give --kubeconfig, or run perch in a cluster", chain(error)),
            )
        };
        let config = match &self.kubeconfig {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file).map_err(|e| nowhere(&e))?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(|e| nowhere(&e))?
            }
            None => Config::infer().await.map_err(|e| nowhere(&e))?,
        };
        let namespace = config.default_namespace.clone();
        client(&config).map(|client| (client, namespace)).map_err(|e| nowhere(&e))
    }
}

fn client(config: &Config) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_secs(10)));
    // A watch is silent for minutes: only the kernel's probes tell that the other side is gone.
    tcp.set_keepalive(Some(Duration::from_secs(10)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(4));
    tcp.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let service = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(https).map_err(BoxError::from);
    let headers = config.extra_headers_layer()?;
    let auth = config.auth_layer()?;
    let builder = ClientBuilder::new(service, config.default_namespace.clone()).with_layer(&headers);
    Ok(match auth {
        Some(auth) => builder.with_layer(&auth).with_layer(&config.base_uri_layer()).build(),
        None => builder.with_layer(&config.base_uri_layer()).build(),
    })
}

/// A `GET` whose answer is good; `accept` names the form that is wanted.
pub(super) async fn get(client: &Client, target: &str, accept: &str) -> Result<Response<Body>, Trouble> {
    let request = Request::get(target)
        .header(header::ACCEPT, accept)
        .header(header::USER_AGENT, concat!("perch/", env!("CARGO_PKG_VERSION")))
        .body(Body::empty())
        .map_err(|e| Trouble::new(SyncError::Refused, e))?;
    answered(client, request).await
}

/// The good answer to a request.
pub(super) async fn answered(client: &Client, request: Request<Body>) -> Result<Response<Body>, Trouble> {
    let response = match timeout(ANSWER, client.send(request)).await {
        Err(_) => return Err(Trouble::new(SyncError::Stalled, format!("no answer within {} s", ANSWER.as_secs()))),
        Ok(Err(error)) => return Err(Trouble::new(SyncError::Connect, chain(&error))),
        Ok(Ok(response)) => response,
    };
    if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
}

async fn refusal(response: Response<Body>) -> Trouble {
    let (code, retry_after) = (response.status(), retry_after(response.headers()));
    let body = read(response.into_body(), MAX_REFUSAL).await.unwrap_or_default();
    let status: Status = serde_json::from_slice(&body).unwrap_or_default();
    Trouble { retry_after: retry_after.or(status.retry_after()), ..refused(code, status) }
}

/// What the API's own words for a failure mean.
pub(super) fn refused(code: StatusCode, status: Status) -> Trouble {
    let reason = match code.as_u16() {
        401 => SyncError::Unauthorized,
        403 => SyncError::Forbidden,
        410 => SyncError::Gone,
        429 => SyncError::Throttled,
        500.. => SyncError::ServerError,
        _ => SyncError::Refused,
    };
    let retry_after = status.retry_after();
    let message = status.message.unwrap_or_else(|| code.to_string());
    Trouble { reason, message, code: Some(code.as_u16()), retry_after }
}

impl Status {
    fn retry_after(&self) -> Option<Duration> {
        self.details.as_ref()?.retry_after_seconds.map(|s| Duration::from_secs(s).min(MAX_RETRY_AFTER))
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// A whole body.
pub(super) async fn read(mut body: Body, at_most: usize) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    loop {
        let frame = match timeout(ANSWER, body.frame()).await {
            Err(_) => return Err(Trouble::new(SyncError::Stalled, "the answer stopped half-way")),
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(error))) => return Err(Trouble::new(SyncError::Cut, chain(&error))),
            Ok(Some(Ok(frame))) => frame,
        };
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(data);
        }
        if bytes.len() > at_most {
            return Err(Trouble::new(SyncError::Garbage, format!("an answer of more than {at_most} bytes")));
        }
    }
}

/// An error and its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
