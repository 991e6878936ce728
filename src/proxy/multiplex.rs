//! HTTP/2 connections to endpoints: one worker's own, each shared by many requests.
//!
//! A connection takes as many streams as the endpoint allows, at most [`STREAMS`]; then another one is opened. Requests
//! that come while one is being opened wait for it instead of opening their own. A connection that was told to go away,
//! or does not answer a PING, gets no new streams; it ends with its last one. `h2` itself and not hyper's client: the
//! codes of resets, informational answers and the window of each stream are what a proxy passes on.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::http1::response::HEAD_BYTES;
use super::stream_to_endpoint::Http2Stream;
use super::wire::{Settings, Wire};
use crate::reason::Reason;
use crate::state::snapshot::{Endpoint, EndpointId};

/// Requests at once on a connection; what most servers allow.
const STREAMS: usize = 100;
/// Bytes of a response that may wait for the client, per stream and per connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of a request that may wait for the endpoint, per stream.
const SEND_BUFFER: usize = 64 * 1024;
/// An endpoint with streams is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A worker's connections.
#[derive(Debug, Default)]
pub(crate) struct Multiplexed {
    open: RefCell<HashMap<EndpointId, Vec<Open>>>,
    opening: RefCell<HashMap<EndpointId, Rc<Opening>>>,
    /// Endpoints that chose HTTP/1 when both were offered: their connections are opened side by side.
    http1: RefCell<HashSet<EndpointId>>,
}

/// One connection that takes streams.
#[derive(Debug)]
struct Open {
    sender: SendRequest<Bytes>,
    state: Rc<State>,
    endpoint: Arc<Endpoint>,
    settings: Option<Settings>,
    /// Milliseconds; 0 while there are streams.
    idle_since: u64,
    idle_timeout: u64,
}

/// What a connection's task and its streams share.
#[derive(Debug, Default)]
pub(super) struct State {
    streams: Cell<usize>,
    /// It has served a stream before: a failure may just mean that the endpoint was about to close it.
    is_used: Cell<bool>,
    has_ended: Cell<bool>,
}

/// One stream under way.
#[derive(Debug)]
pub(super) struct Place(Rc<State>);

impl Place {
    fn take(state: &Rc<State>) -> Self {
        state.streams.set(state.streams.get() + 1);
        Self(state.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

impl Open {
    fn takes_streams(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !self.state.has_ended.get()
            && !self.endpoint.health.is_gone()
            && self.settings.as_ref().is_none_or(Settings::are_current)
            // An error: it was told to go away.
            && !matches!(self.sender.poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    fn has_room(&self) -> bool {
        self.state.streams.get() < self.most_streams()
    }

    fn most_streams(&self) -> usize {
        STREAMS.min(self.sender.current_max_send_streams())
    }
}

/// A connection that is being opened, for those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Opening {
    done: Notify,
    failed: Cell<Option<Reason>>,
}

impl Opening {
    /// Waits for the end of it.
    pub(super) async fn ended(&self) -> Result<(), Reason> {
        self.done.notified().await;
        self.failed.get().map_or(Ok(()), Err)
    }
}

/// Who opens a connection. Dropped: those who wait go on, as when the client went away who wanted it first.
#[derive(Debug)]
pub(super) struct Opener<'a> {
    all: &'a Multiplexed,
    endpoint: EndpointId,
    opening: Rc<Opening>,
}

impl Opener<'_> {
    pub(super) fn failed(self, reason: Reason) {
        self.opening.failed.set(Some(reason));
    }
}

impl Drop for Opener<'_> {
    fn drop(&mut self) {
        self.all.opening.borrow_mut().remove(&self.endpoint);
        self.opening.done.notify_waiters();
    }
}

/// Who opens the next connection of an endpoint.
#[derive(Debug)]
pub(super) enum Turn<'a> {
    Open(Opener<'a>),
    /// Somebody does already.
    Wait(Rc<Opening>),
    /// Nobody waits for anybody.
    Alone,
}

impl Multiplexed {
    /// A stream on an open connection, and whether others were served on it before.
    pub(super) fn stream(&self, endpoint: EndpointId) -> Option<(Http2Stream, bool)> {
        let mut all = self.open.borrow_mut();
        let connections = all.get_mut(&endpoint)?;
        connections.retain_mut(Open::takes_streams);
        let open = connections.iter_mut().find(|c| c.has_room())?;
        open.idle_since = 0;
        let is_used = open.state.is_used.replace(true);
        Some((Http2Stream::new(open.sender.clone(), Place::take(&open.state), open.settings.is_some()), is_used))
    }

    pub(super) fn turn(&self, endpoint: EndpointId) -> Turn<'_> {
        if self.http1.borrow().contains(&endpoint) {
            return Turn::Alone;
        }
        let mut opening = self.opening.borrow_mut();
        if let Some(opening) = opening.get(&endpoint) {
            return Turn::Wait(opening.clone());
        }
        let new = Rc::<Opening>::default();
        opening.insert(endpoint, new.clone());
        Turn::Open(Opener { all: self, endpoint, opening: new })
    }

    pub(super) fn speaks_http1(&self, endpoint: EndpointId) {
        self.http1.borrow_mut().insert(endpoint);
    }

    /// Starts HTTP/2 on a connection that was just opened.
    pub(super) async fn start(&self, wire: Wire, endpoint: &Arc<Endpoint>, idle: Duration) -> Result<(), Reason> {
        let settings = wire.settings();
        // Until its own SETTINGS come: those who waited for this connection would all be put on it, and one that takes few
        // streams at a time keeps the rest until the first are done.
        let known = self.open.borrow().get(&endpoint.id).and_then(|open| open.last().map(Open::most_streams));
        let started = Builder::new()
            .initial_max_send_streams(known.unwrap_or(STREAMS))
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
            .handshake(wire)
            .await;
        let (sender, mut connection) = started.map_err(|error| {
            tracing::debug!(endpoint = %endpoint.name, %error, "No HTTP/2 with an endpoint.");
            Reason::ConnectFailed
        })?;
        let state = Rc::<State>::default();
        let pings = connection.ping_pong();
        tokio::task::spawn_local(drive(connection, pings, state.clone(), endpoint.name.clone()));
        let idle_timeout = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        let open = Open { sender, state, endpoint: endpoint.clone(), settings, idle_since: 0, idle_timeout };
        self.open.borrow_mut().entry(endpoint.id).or_default().push(open);
        Ok(())
    }

    /// Closes what was unused for too long, or takes no more streams. `h2` ends a connection in order (GOAWAY) when its
    /// last handle and its last stream are gone.
    pub(super) fn sweep(&self, now: u64) {
        self.open.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|open| {
                if open.state.streams.get() > 0 {
                    open.idle_since = 0;
                } else if open.idle_since == 0 {
                    open.idle_since = now;
                } else if now.saturating_sub(open.idle_since) >= open.idle_timeout {
                    return false;
                }
                open.takes_streams()
            });
            !connections.is_empty()
        });
        let mut http1 = self.http1.borrow_mut();
        // Endpoints come and go; to learn it again costs little.
        if http1.len() > 1024 {
            http1.clear();
        }
    }
}

/// Runs a connection to its end.
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(
    connection: Connection<T, Bytes>,
    pings: Option<PingPong>,
    state: Rc<State>,
    endpoint: Arc<str>,
) {
    let (mut connection, mut pings) = (pin!(connection), pings);
    let mut timer = pin!(sleep(PING_EVERY));
    let mut is_asked = false;
    let ended = poll_fn(|cx| {
        loop {
            if let Poll::Ready(done) = connection.as_mut().poll(cx) {
                return Poll::Ready(done.map_err(|error| error.to_string()));
            }
            let Some(pings) = &mut pings else { return Poll::Pending };
            if is_asked && pings.poll_pong(cx).is_ready() {
                is_asked = false;
                timer.as_mut().reset(Instant::now() + PING_EVERY);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if is_asked {
                return Poll::Ready(Err("no answer to a PING".to_owned()));
            }
            is_asked = state.streams.get() > 0 && pings.send_ping(Ping::opaque()).is_ok();
            timer.as_mut().reset(Instant::now() + if is_asked { PING_TIMEOUT } else { PING_EVERY });
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%endpoint, %error, "HTTP/2 connection to an endpoint ended.");
    }
    state.has_ended.set(true);
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A connection to an endpoint that said its settings and nothing after.
    async fn silent() -> (Connection<tokio::io::DuplexStream, Bytes>, SendRequest<Bytes>, tokio::io::DuplexStream) {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let (sender, connection) = Builder::new().handshake(ours).await.unwrap();
        (connection, sender, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_does_not_answer_a_ping_is_left() {
        let (mut connection, _sender, _theirs) = silent().await;
        let state = Rc::<State>::default();
        let _stream = Place::take(&state);
        let start = Instant::now();

        let pings = connection.ping_pong();
        drive(connection, pings, state.clone(), "e".into()).await;

        assert!(state.has_ended.get());
        assert_eq!(start.elapsed(), PING_EVERY + PING_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_connection_is_not_asked() {
        let (mut connection, _sender, _theirs) = silent().await;
        let state = Rc::<State>::default();

        let pings = connection.ping_pong();
        let ended = tokio::time::timeout(PING_EVERY * 10, drive(connection, pings, state, "e".into())).await;

        assert!(ended.is_err());
    }
}
