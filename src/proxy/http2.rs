//! HTTP/2 from clients: a codec of our own, since the `h2` crate and its header maps were most of what a request cost; the
//! endpoint's side is the same HTTP/1 codec as for HTTP/1 clients.
//!
//! `driver` moves the bytes; `receive` reads frames (`frame`, `hpack`, `head`) within what a client may do (`budget`);
//! `streams` keeps the windows and what waits for them. Each stream has a task, which drives its endpoint connection too.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::time::Instant;

use super::attempts::Attempts;
use super::awaited::{Broken, Deadlines, HeadWait, Upward};
use super::connection::Connection;
use super::grpc;
use super::http1::body::Framing;
use super::http1::response::{self, ResponseHead};
use super::journal::Entry;
use super::linger::linger;
use super::request::{self, Instead, Line, Plan, Protocol};
use super::respond;
use super::stream::Stream;
use super::upstream::{self, Link};
use super::watchdog::Watchdog;
use super::worker::Worker;
use crate::reason::Reason;

pub(super) mod block;
mod budget;
mod driver;
pub(super) mod frame;
pub(super) mod head;
pub(super) mod hpack;
pub(super) mod order;
mod pace;
pub(super) mod parked;
mod receive;
mod relay;
mod send;
pub(super) mod streams;
mod upload;
mod websocket;

use driver::Driver;
use head::Head;
use hpack::encoder;
use pace::Pace;
use relay::Relay;
use streams::Handle;
use upload::Upload;
use websocket::Tunnel;

/// How long a client that never asked for anything may take to say goodbye.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A client's connection with its streams.
struct Session {
    worker: Rc<Worker>,
    connection: Connection,
    /// Streams under way.
    active: Cell<usize>,
    /// Streams that were begun.
    begun: Cell<u64>,
    pace: Pace,
}

/// Serves a connection to its end.
pub(crate) async fn serve(worker: Rc<Worker>, stream: Stream, connection: Connection) {
    let timeouts = connection.listener.config.timeouts;
    let pace = Pace::default();
    let session = Rc::new(Session { worker, connection, active: Cell::new(0), begun: Cell::new(0), pace });
    let mut http = Driver::new(session.clone(), stream);
    let mut dog = Watchdog::new(Instant::now() + timeouts.first_byte);
    let mut seen = 0;
    let mut is_closing = false;
    let ended = poll_fn(|cx| {
        session.connection.seat.watch(cx);
        if let Poll::Ready(done) = http.poll(cx) {
            return Poll::Ready(done.map_err(|error| tracing::debug!(%error, "HTTP/2 connection ended.")));
        }
        loop {
            let is_idle = session.active.get() == 0;
            let now = Instant::now();
            if session.begun.get() != seen || !is_idle {
                seen = session.begun.get();
                dog.set(now + timeouts.idle);
            }
            let closes_at = session.connection.seat.closes_at().filter(|_| !is_closing);
            if let Some(at) = closes_at {
                dog.set(at);
            }
            // Not by the timer when it is over already: a deadline of "now" would move on with each poll.
            if closes_at.is_none_or(|at| at > now) {
                ready!(dog.poll(cx));
            }
            if is_closing && is_idle {
                // It was told to go and did not.
                return Poll::Ready(Err(()));
            }
            is_closing = true;
            http.close();
            // What is under way may finish; a drain's own deadline ends the rest. A client that never began a stream may
            // not even speak HTTP/2: it is not waited for.
            dog.set(Instant::now() + if session.begun.get() == 0 { LAST_WORDS } else { timeouts.idle });
            if let Poll::Ready(done) = http.poll(cx) {
                return Poll::Ready(done.map_err(|error| tracing::debug!(%error, "HTTP/2 connection ended.")));
            }
        }
    });
    // Either way it is over; what went wrong was said where it was known.
    ended.await.ok();
    let (stream, buffer) = http.end();
    linger(stream, buffer, &mut dog, &session.worker.buffers).await;
}

/// A stream under way.
struct ActiveStream(Rc<Session>);

impl ActiveStream {
    fn new(session: Rc<Session>) -> Self {
        session.active.set(session.active.get() + 1);
        session.begun.set(session.begun.get() + 1);
        Self(session)
    }
}

impl Drop for ActiveStream {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}

/// What is left to do for a request.
enum Answer {
    /// Its answer is on its way, all of it.
    Sent,
    /// The head is on its way, and the body is coming.
    Relay(Box<Relay>),
    Tunnel(Box<Tunnel>),
}

/// A stream's task.
async fn answer(session: Rc<Session>, head: Head, stream: Handle, _active: ActiveStream) {
    let answered = {
        let mut handling = pin!(handle(&session, head, &stream));
        poll_fn(|cx| match handling.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            // The client gave it up: what is under way for it ends.
            Poll::Pending => stream.poll_reset(cx).map(|_| None),
        })
        .await
    };
    let (pace, write) = (&session.pace, session.connection.listener.config.timeouts.write);
    match answered {
        None => {}
        Some(Answer::Sent) => send::rest(&stream, None, pace, write).await,
        Some(Answer::Relay(relay)) => send::rest(&stream, Some(relay), pace, write).await,
        Some(Answer::Tunnel(tunnel)) => tunnel.run(&session, &stream).await,
    }
}

async fn handle(session: &Rc<Session>, head: Head, stream: &Handle) -> Answer {
    let (worker, connection) = (&session.worker, &session.connection);
    let mut open = OpenEntry { session, entry: Some(Entry::new(worker, connection, Protocol::Http2)) };
    let entry = open.entry.as_mut().expect("it was just put there");
    if stream.is_reset() {
        // It came with the request: nothing of it goes anywhere.
        return Answer::Sent;
    }
    let is_websocket = head.is_websocket();
    let is_grpc = grpc::is_call(head.fields());
    let mut out = worker.buffers.scratch();
    // What comes up a tunnel is nobody's body. Asked once: the end may have come since the head, and the head that goes to
    // the endpoint must promise what the upload then sends.
    let has_body = !is_websocket && !stream.has_all();
    let line = Line {
        method: if is_websocket { "GET" } else { head.method() },
        target: head.path(),
        authority: head.authority(),
        protocol: Protocol::Http2,
        has_data: has_body,
        is_websocket,
    };
    let limits = &connection.listener.config.limits;
    let planned = if head.is_too_large() {
        Err(Reason::HeadSize.into())
    } else if head.field_count() > limits.fields {
        Err(Reason::FieldCount.into())
    } else if line.target.len() > limits.target_bytes {
        Err(Reason::TargetLength.into())
    } else {
        request::plan(worker, connection, line, head.fields(), worker.millis(entry.started), &mut out)
    };
    let plan = match planned {
        Ok(plan) => plan,
        Err(instead) => {
            worker.buffers.recycle(out);
            let authority = head.authority().unwrap_or_default();
            entry.words_of(head.method().as_bytes(), head.path().as_bytes(), authority.as_bytes());
            let response = match instead {
                Instead::Refuse(reason) => {
                    entry.status = reason.status();
                    entry.reason = Some(reason);
                    error(reason, is_grpc, None)
                }
                Instead::Redirect { status, location } => {
                    entry.status = status;
                    respond::redirect_h2(status, &location)
                }
            };
            send::own(stream, &response);
            open.finish();
            return Answer::Sent;
        }
    };
    worker.buffers.recycle(head.into_storage());
    entry.planned(&plan);
    entry.head(&out, &plan.spans);
    let upload = Upload::new(out, plan.framing, has_body);
    let mut exchange = Exchange { session, plan: &plan, upload, stream };
    let answered = exchange.run(entry).await;
    let upload = exchange.upload;
    entry.bytes_in = upload.bytes;
    match answered {
        Ok((mut link, head, block)) => {
            entry.status = head.status;
            if is_websocket && head.status == 101 {
                worker.buffers.recycle(upload.into_head());
                let mut entry = open.entry.take().expect("it is taken once");
                if stream.send_head(&block, false).is_err() {
                    entry.reason = Some(Reason::ClientAbort);
                }
                worker.buffers.recycle(block);
                return Answer::Tunnel(Box::new(Tunnel { link, entry }));
            }
            if let Some(length) = whole_body(&link, head).filter(|_| upload.is_complete()) {
                let body = link.buffer.unread().get(..length).unwrap_or_default();
                // An error: the client gave it up.
                send::whole(stream, &block, body).ok();
                worker.buffers.recycle(block);
                link.buffer.consume(length, &worker.buffers);
                entry.bytes_out = length as u64;
                worker.buffers.recycle(upload.into_head());
                match head.keeps_alive {
                    true => worker.pool.checkin(link, worker.millis(entry.started)),
                    false => upstream::discard(link, &worker.buffers),
                }
                open.finish();
                return Answer::Sent;
            }
            let entry = open.entry.take().expect("it is taken once");
            let relay = Relay::new(session.clone(), entry, link, head, upload, Deadlines::of(connection, &plan));
            stream.send_head(&block, relay.is_over()).ok();
            worker.buffers.recycle(block);
            Answer::Relay(Box::new(relay))
        }
        Err(Broken::Client(reason) | Broken::Endpoint(reason)) => {
            entry.status = reason.status();
            entry.reason = Some(reason);
            send::own(stream, &error(reason, is_grpc, entry.request_id()));
            worker.buffers.recycle(upload.into_head());
            open.finish();
            Answer::Sent
        }
    }
}

fn error(reason: Reason, is_grpc: bool, request_id: Option<&str>) -> Response<Bytes> {
    if is_grpc { grpc::error(reason, request_id) } else { respond::error_h2(reason, request_id) }
}

/// A request's entry until its response takes it over: a client may reset its stream at each `await` before that, and
/// the request has to be counted and logged all the same.
struct OpenEntry<'a> {
    session: &'a Session,
    entry: Option<Entry>,
}

impl OpenEntry<'_> {
    fn finish(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.finish(&self.session.worker, &self.session.connection);
        }
    }
}

impl Drop for OpenEntry<'_> {
    fn drop(&mut self) {
        if let Some(entry) = &mut self.entry {
            entry.status = Reason::ClientAbort.status();
            entry.reason = Some(Reason::ClientAbort);
        }
        self.finish();
    }
}

/// Bytes of a body that may wait for the client's window without its endpoint's connection.
const WHOLE: usize = 16 * 1024;

/// The length of the body, if all of it came with the head and nothing comes after it, as with most small answers: such a
/// response needs nothing of its own that lives on.
fn whole_body(link: &Link, head: ResponseHead) -> Option<usize> {
    let here = link.buffer.len();
    let is_whole = match head.framing {
        Framing::Empty => here == 0,
        Framing::Length(n) => n == here as u64,
        Framing::Chunked | Framing::Close => false,
    };
    (is_whole && here <= WHOLE).then_some(here)
}

/// The client's head.
fn client_head(plan: &Plan, of: &response::Response<'_, '_>, out: &mut Vec<u8>) {
    // What HTTP/1 calls switching protocols is an answer to CONNECT here.
    let switches = of.head.status == 101;
    encoder::status(if switches { 200 } else { of.head.status }, out);
    pass_fields(of, switches, out);
    let length = match of.head.framing {
        Framing::Length(n) => Some(n),
        Framing::Empty => of.declared_length(),
        Framing::Chunked | Framing::Close => None,
    };
    if let Some(length) = length {
        encoder::length(length, out);
    }
    if plan.service.config.version_header
        && let Some(version) = plan.service.versions.get(plan.decision.version)
    {
        encoder::field(respond::VERSION.as_str().as_bytes(), version.name.as_bytes(), out);
    }
}

fn pass_fields(of: &response::Response<'_, '_>, switches: bool, out: &mut Vec<u8>) {
    for (name, value) in of.passing() {
        // Of a handshake in HTTP/1 (RFC 8441 section 5); `TE` is for requests.
        let is_dropped =
            name.eq_ignore_ascii_case(b"te") || switches && name.eq_ignore_ascii_case(b"sec-websocket-accept");
        if !is_dropped {
            encoder::field(name, value, out);
        }
    }
}

/// One stream's way to an endpoint, until its answer has begun.
struct Exchange<'a> {
    session: &'a Rc<Session>,
    plan: &'a Plan,
    upload: Upload,
    stream: &'a Handle,
}

impl Exchange<'_> {
    async fn run(&mut self, entry: &mut Entry) -> Result<(Link, ResponseHead, Vec<u8>), Broken> {
        let session = self.session;
        let mut attempts = Attempts::new(&session.worker, self.plan, entry.started);
        loop {
            let mut link = attempts.link().await.map_err(Broken::Endpoint)?;
            entry.attempt(&link, &attempts);
            match self.final_head(&mut link).await {
                Ok((head, block)) => {
                    attempts.succeeded(&link);
                    entry.upstream_began();
                    return Ok((link, head, block));
                }
                Err(Broken::Endpoint(reason)) => {
                    attempts.failed(link, reason, self.upload.kept()).map_err(Broken::Endpoint)?;
                    self.upload.rewind();
                }
                Err(client) => {
                    upstream::discard(link, &session.worker.buffers);
                    return Err(client);
                }
            }
        }
    }

    /// Sends the request and waits for the final head, for the client; interim ones are passed on.
    async fn final_head(&mut self, link: &mut Link) -> Result<(ResponseHead, Vec<u8>), Broken> {
        let deadlines = Deadlines::of(&self.session.connection, self.plan);
        for _ in 0..16 {
            let length = self.await_head(link, deadlines).await?;
            let bytes = link.buffer.unread().get(..length).unwrap_or_default();
            let mut block = self.session.worker.buffers.scratch();
            let parsed = response::parse(bytes, self.plan.is_head, |response| {
                let switches = self.plan.is_upgrade && response.head.is_websocket;
                let is_final = response.head.status >= 200 || switches;
                let is_passed_on = match response.head.status {
                    // For those who asked.
                    100 => self.plan.expects_continue,
                    101 => false,
                    _ => !is_final,
                };
                if is_final {
                    client_head(self.plan, response, &mut block);
                } else if is_passed_on {
                    encoder::status(response.head.status, &mut block);
                    pass_fields(response, false, &mut block);
                    // An error: the client gave it up.
                    self.stream.send_head(&block, false).ok();
                    block.clear();
                }
                (response.head, is_final)
            });
            let (head, is_final) = parsed.map_err(|_| Broken::Endpoint(Reason::BadResponse))?;
            link.buffer.consume(length, &self.session.worker.buffers);
            // A success without switching: to a client that asked for a tunnel it would say that there is one.
            if is_final && !(self.plan.is_upgrade && matches!(head.status, 200..=299)) {
                return Ok((head, block));
            }
            self.session.worker.buffers.recycle(block);
            if is_final {
                return Err(Broken::Endpoint(Reason::BadResponse));
            }
            if head.status == 101 {
                return Err(Broken::Endpoint(Reason::Bad101));
            }
        }
        Err(Broken::Endpoint(Reason::BadResponse))
    }

    async fn await_head(&mut self, link: &mut Link, deadlines: Deadlines) -> Result<usize, Broken> {
        let Worker { buffers, kennel, .. } = &*self.session.worker;
        let mut upload = upload::Sent { upload: &mut self.upload, stream: self.stream };
        // Taken when there is something to wait for.
        let mut dog: Option<Watchdog> = None;
        let mut wait = HeadWait::default();
        let waited = poll_fn(|cx| {
            if let Poll::Ready(head) = wait.poll(cx, &mut upload, link, buffers) {
                return Poll::Ready(head);
            }
            let now = upload.progress();
            if let Some(deadline) = wait.pace.rearm(now, &deadlines) {
                match &mut dog {
                    Some(dog) => dog.set(deadline),
                    none => *none = Some(kennel.take(deadline)),
                }
            }
            let Some(dog) = &mut dog else { return Poll::Pending };
            dog.poll(cx).map(|()| Err(now.late()))
        })
        .await;
        if let Some(dog) = dog {
            kennel.give(dog);
        }
        waited
    }
}

#[cfg(test)]
mod tests;
