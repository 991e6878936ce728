//! Active health checks: a GET per endpoint and interval on a connection of its own, over TLS where requests go over it. Healthy is a
//! 2xx within the timeout. The first result counts at once; after that it takes `rise` successes or `fall` failures in a
//! row. Only changes are logged. It knows endpoints, not who uses them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use super::random;
use super::writer::Control;
use crate::config::{EndpointProtocol, HealthCheck};
use crate::endpoint_tls::{Client, EndpointsTls, is_http2};
use crate::state::clock::Clock;
use crate::state::snapshot::{Endpoint, EndpointId, Snapshot};

/// A new endpoint's first check comes within this time (or one interval), spread out.
const FIRST_WITHIN: Duration = Duration::from_secs(2);

/// A status line and fields; more is not read.
const HEAD_BYTES: usize = 8 * 1024;

/// Follows the snapshots: one task per endpoint that has a check. Ends with the writer.
pub async fn run(control: Control, endpoints_tls: EndpointsTls, clock: Clock) {
    let mut generations = control.generations();
    let mut tasks = JoinSet::new();
    let mut running: HashMap<EndpointId, Running> = HashMap::new();
    loop {
        follow(&control.snapshot(), &endpoints_tls, clock, &mut running, &mut tasks);
        // Results of ended tasks would pile up.
        while tasks.try_join_next().is_some() {}
        if generations.changed().await.is_err() {
            return;
        }
    }
}

#[derive(Debug)]
struct Running {
    check: HealthCheck,
    endpoint: Arc<Endpoint>,
    task: AbortHandle,
}

fn follow(
    snapshot: &Snapshot,
    endpoints_tls: &EndpointsTls,
    clock: Clock,
    running: &mut HashMap<EndpointId, Running>,
    tasks: &mut JoinSet<()>,
) {
    let mut before = std::mem::take(running);
    for service in &snapshot.services {
        let Some(check) = &service.config.health else { continue };
        for (version, endpoint) in service.versions.iter().flat_map(|v| v.endpoints.iter().map(move |e| (v, e))) {
            let known = before.remove(&endpoint.id);
            if let Some(known) = known {
                if known.check == *check {
                    running.insert(endpoint.id, known);
                    continue;
                }
                known.task.abort();
            }
            let labels = Labels { service: service.name.clone(), version: version.name.clone() };
            let task = tasks.spawn(watch(labels, endpoints_tls.clone(), endpoint.clone(), check.clone(), clock));
            running.insert(endpoint.id, Running { check: check.clone(), endpoint: endpoint.clone(), task });
        }
    }
    for left in before.values() {
        left.task.abort();
        // Nobody looks any more, so nothing speaks against it.
        left.endpoint.health.set_healthy(true, clock.now());
    }
}

#[derive(Debug)]
struct Labels {
    service: Arc<str>,
    version: Arc<str>,
}

/// Successes or failures in a row, and what they make of the endpoint.
#[derive(Debug, Default)]
struct Streak {
    is_healthy: Option<bool>,
    /// Results in a row that differ from `is_healthy`.
    against: u32,
}

impl Streak {
    /// The new state, if this result changes it.
    fn add(&mut self, passed: bool, check: &HealthCheck) -> Option<bool> {
        if self.is_healthy == Some(passed) {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if passed { check.rise } else { check.fall };
        if self.is_healthy.is_some() && self.against < needed {
            return None;
        }
        self.against = 0;
        self.is_healthy = Some(passed);
        self.is_healthy
    }
}

async fn watch(labels: Labels, endpoints_tls: EndpointsTls, endpoint: Arc<Endpoint>, check: HealthCheck, clock: Clock) {
    let target = SocketAddr::new(endpoint.address.ip(), check.port.unwrap_or(endpoint.address.port()));
    let mut streak = Streak::default();
    sleep(check.interval.min(FIRST_WITHIN).mul_f64(random())).await;
    let mut next = interval(check.interval.max(Duration::from_millis(10)));
    next.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        next.tick().await;
        let tls = endpoints_tls.client(&endpoint.transport);
        // For a moment during a reload.
        if tls.is_none() && endpoint.transport.tls.is_some() {
            continue;
        }
        let is_h2c = endpoint.transport.protocol == EndpointProtocol::H2c;
        let result = match timeout(
            check.timeout,
            ask(target, tls.as_deref().map(|tls| (tls, &*endpoint.name)), is_h2c, &check.path),
        )
        .await
        {
            Ok(result) => result,
            Err(_) => Err(format!("no answer in {:?}", check.timeout)),
        };
        let is_first = streak.is_healthy.is_none();
        let Some(is_healthy) = streak.add(result.is_ok(), &check) else { continue };
        endpoint.health.set_healthy(is_healthy, clock.now());
        let (service, version, endpoint) = (&labels.service, &labels.version, endpoint.address);
        match result {
            Ok(()) if is_first => debug!(%service, %version, %endpoint, "Endpoint passes its check."),
            Ok(()) => info!(%service, %version, %endpoint, "Endpoint passes its check again."),
            Err(error) => warn!(%service, %version, %endpoint, error, "Endpoint fails its check."),
        }
    }
}

/// One check; with TLS, of the endpoint that is called so.
async fn ask(target: SocketAddr, tls: Option<(&Client, &str)>, is_h2c: bool, path: &str) -> Result<(), String> {
    let tcp = TcpStream::connect(target).await.map_err(|e| format!("connect: {e}"))?;
    let Some((client, name)) = tls else {
        return if is_h2c { ask_http2(tcp, "http", target, path).await } else { ask_over(tcp, target, path).await };
    };
    let stream = client.connect(tcp, name).await.map_err(|e| format!("TLS: {e}"))?;
    if is_http2(&stream) {
        return ask_http2(stream, "https", target, path).await;
    }
    ask_over(stream, target, path).await
}

async fn ask_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    scheme: &str,
    target: SocketAddr,
    path: &str,
) -> Result<(), String> {
    let (sender, connection) = h2::client::handshake(stream).await.map_err(|e| format!("HTTP/2: {e}"))?;
    let request = http::Request::get(format!("{scheme}://{target}{path}"))
        .header(http::header::USER_AGENT, AGENT)
        .body(())
        .map_err(|e| format!("request: {e}"))?;
    let exchange = async {
        let mut sender = sender.ready().await?;
        let (response, _) = sender.send_request(request, true)?;
        response.await
    };
    // Either the answer, or the end of the connection without one.
    let response = tokio::select! {
        response = exchange => response.map_err(|e| format!("HTTP/2: {e}"))?,
        ended = connection => return Err(ended.map_or_else(|e| format!("HTTP/2: {e}"), |()| "closed".to_owned())),
    };
    match response.status().as_u16() {
        200..=299 => Ok(()),
        status => Err(format!("status {status}")),
    }
}

const AGENT: &str = concat!("perch-check/", env!("CARGO_PKG_VERSION"));

async fn ask_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    target: SocketAddr,
    path: &str,
) -> Result<(), String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {AGENT}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| format!("send: {e}"))?;
    stream.flush().await.map_err(|e| format!("send: {e}"))?;
    let mut head = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut head).await.map_err(|e| format!("receive: {e}"))? == 0 {
            return Err("closed before the end of the response's head".to_owned());
        }
        // Skips what comes before the answer itself (1xx).
        while let Some((status, length)) = parse(&head)? {
            match status {
                200..=299 => return Ok(()),
                100..=199 if status != 101 => drop(head.drain(..length)),
                _ => return Err(format!("status {status}")),
            }
        }
        if head.len() >= HEAD_BYTES {
            return Err("the response's head is too long".to_owned());
        }
    }
}

/// Status and length of a whole head.
fn parse(bytes: &[u8]) -> Result<Option<(u16, usize)>, String> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => Ok(response.code.map(|code| (code, length))),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(format!("not an HTTP response: {error}")),
    }
}

#[cfg(test)]
mod tests;
