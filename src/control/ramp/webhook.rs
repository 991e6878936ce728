//! Tells a webhook of the end of a ramp: a POST of JSON, in a task of its own, with a deadline. The ramp never waits.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::Shown;

/// Of one try, from the connect to the answer's head.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits before the second and third try; after that nobody is told.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// What is sent. `event` with generation and revision.
pub(super) fn body(service: &str, shown: &Shown, (event, generation, revision): (&str, &u64, &u64)) -> Value {
    let state = &shown.state;
    json!({
        "event": event,
        "service": service,
        "canary": state.canary,
        "stable": state.stable,
        "step": state.step,
        "steps": state.plan.steps.len(),
        "share": state.current().map(|step| step.share),
        "why": state.why,
        "guard": shown.report,
        "generation": generation,
        "revision": revision,
    })
}

pub(super) fn tell(url: Uri, service: Arc<str>, body: Value) {
    tokio::spawn(async move {
        let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let body = Bytes::from(body.to_string());
        let mut pauses = PAUSES.into_iter();
        loop {
            match post(&client, &url, &body).await {
                Ok(()) => return info!(%service, %url, "Told the webhook."),
                Err(error) => match pauses.next() {
                    Some(pause) => {
                        warn!(%service, %url, error, "Could not tell the webhook; trying again.");
                        sleep(pause).await;
                    }
                    None => return warn!(%service, %url, error, "Could not tell the webhook."),
                },
            }
        }
    });
}

async fn post(client: &Client<HttpConnector, Full<Bytes>>, url: &Uri, body: &Bytes) -> Result<(), String> {
    let request = Request::post(url.clone())
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::USER_AGENT, concat!("perch/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(body.clone()))
        .map_err(|error| error.to_string())?;
    match timeout(PATIENCE, client.request(request)).await {
        Ok(Ok(response)) if response.status().is_success() => Ok(()),
        Ok(Ok(response)) => Err(format!("status {}", response.status().as_u16())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {PATIENCE:?}")),
    }
}
