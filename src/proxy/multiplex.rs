//! HTTP/2 connections to endpoints: one worker's own, each shared by many requests.
//!
//! A connection takes as many streams as the endpoint allows, at most [`streams::STREAMS`]; then another one is opened.
//! Requests that come while one is being opened wait for it instead of opening their own. A connection that was told to go
//! away, or does not answer a PING, gets no new streams; it ends with its last one.
//!
//! The codec is perch's own, on the frames and HPACK of `http2`: `driver` moves the bytes; `receive` reads frames; `streams`
//! keeps the windows, and a `slot` what has come for a request (`answer`); `stream` is what the rest of perch sees of one.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::buffer::Buffers;
use super::wire::{Settings, Wire};
use crate::reason::Reason;
use crate::state::snapshot::{Endpoint, EndpointId};

mod answer;
mod driver;
mod receive;
mod request;
mod slot;
mod stream;
mod streams;

use driver::Driver;
pub(super) use stream::{Http2Stream, StreamError};
use streams::Streams;

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
    streams: Rc<RefCell<Streams>>,
    endpoint: Arc<Endpoint>,
    settings: Option<Settings>,
    /// Milliseconds; 0 while there are streams.
    idle_since: u64,
    idle_timeout: u64,
}

impl Open {
    fn takes_streams(&self) -> bool {
        !self.endpoint.health.is_gone()
            && self.settings.as_ref().is_none_or(Settings::are_current)
            && self.streams.borrow().takes_streams()
    }

    fn has_room(&self) -> bool {
        let streams = self.streams.borrow();
        streams.requests() < streams.most_requests()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.borrow_mut().close();
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
        connections.retain(Open::takes_streams);
        let open = connections.iter_mut().find(|c| c.has_room())?;
        open.idle_since = 0;
        let is_used = std::mem::replace(&mut open.streams.borrow_mut().is_used, true);
        Some((Http2Stream::new(open.streams.clone(), open.settings.is_some()), is_used))
    }

    pub(super) fn turn(&self, endpoint: &Endpoint) -> Turn<'_> {
        // A connection to one that has left is for who opens it.
        if self.http1.borrow().contains(&endpoint.id) || endpoint.health.is_gone() {
            return Turn::Alone;
        }
        let endpoint = endpoint.id;
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

    /// Starts HTTP/2 on a connection that was just opened: its first stream, for who opened it. Not by [`Self::stream`], which
    /// never has one for an endpoint that has left meanwhile.
    pub(super) fn start(
        &self,
        wire: Wire,
        endpoint: &Arc<Endpoint>,
        idle: Duration,
        buffers: &Rc<Buffers>,
    ) -> Http2Stream {
        let settings = wire.settings();
        let mut all = self.open.borrow_mut();
        let connections = all.entry(endpoint.id).or_default();
        // Until its own SETTINGS come: those who waited for this connection would all be put on it, and one that takes few
        // streams at a time keeps the rest until the first are done. One at least, or nobody would ever hear them.
        let known = connections.last().map(|open| open.streams.borrow().most_requests().max(1));
        let streams = Streams::new(buffers.clone(), known.unwrap_or(streams::STREAMS));
        let streams = Rc::new(RefCell::new(streams));
        tokio::task::spawn_local(drive(Driver::new(wire, streams.clone()), endpoint.name.clone()));
        let idle_timeout = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        streams.borrow_mut().is_used = true;
        let first = Http2Stream::new(streams.clone(), settings.is_some());
        connections.push(Open { streams, endpoint: endpoint.clone(), settings, idle_since: 0, idle_timeout });
        first
    }

    /// Closes what was unused for too long, or takes no more streams.
    pub(super) fn sweep(&self, now: u64) {
        self.open.borrow_mut().retain(|_, connections| {
            connections.retain_mut(|open| {
                if open.streams.borrow().requests() > 0 {
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
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(mut driver: Driver<T>, endpoint: Arc<str>) {
    if let Err(error) = poll_fn(|cx| driver.poll(cx)).await {
        tracing::debug!(%endpoint, %error, "HTTP/2 connection to an endpoint ended.");
    }
}

#[cfg(test)]
mod tests;
