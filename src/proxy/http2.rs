//! HTTP/2 from clients, by the h2 crate; the endpoint's side is the same HTTP/1 codec as for HTTP/1 clients.
//!
//! Each stream has a task, which drives its endpoint connection too. Writes of a connection are put together: the h2
//! crate flushes after every frame, and one TLS record and one system call per response would be the price.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use tokio::time::Instant;

use super::attempts::Attempts;
use super::awaited::{Broken, Deadlines, HeadWait, Upward};
use super::connection::Connection;
use super::grpc;
use super::http1::body::Framing;
use super::http1::response::{self, ResponseHead};
use super::journal::Entry;
use super::request::{self, Instead, Line, Plan, Protocol};
use super::respond;
use super::stream::Stream;
use super::upstream::{self, Link};
use super::watchdog::Watchdog;
use super::worker::Worker;
use crate::reason::Reason;

mod chatter;
mod coalesce;
mod driver;
mod pace;
mod relay;
mod send;
mod upload;
mod websocket;

use coalesce::Coalesce;
use driver::Driver;
use pace::Pace;
use relay::Relay;
use upload::Upload;
use websocket::Tunnel;

/// Stream and connection windows, as Envoy's advice for the edge has them.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Response bytes that wait for the client's window, per stream.
const SEND_BUFFER: usize = 64 * 1024;
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
    pace: Rc<Pace>,
}

/// Serves a connection to its end.
pub(crate) async fn serve(worker: Rc<Worker>, stream: Stream, connection: Connection) {
    let timeouts = connection.listener.config.timeouts;
    let limits = connection.listener.config.limits;
    let pace = Rc::<Pace>::default();
    let stream = Coalesce::new(stream, worker.clone(), pace.clone());
    let greeting = h2::server::Builder::new()
        .max_concurrent_streams(limits.streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol()
        .handshake(stream);
    let session = Rc::new(Session { worker, connection, active: Cell::new(0), begun: Cell::new(0), pace });
    let mut http = Driver::new(session.clone(), greeting);
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

/// What a request is answered with.
enum Answer {
    /// All of it is here: perch's own, or a small one of an endpoint.
    Whole(Response<Bytes>),
    /// A head, and a body on its way.
    Relay(Response<()>, Box<Relay>),
    Tunnel(Response<()>, Box<Tunnel>),
}

/// Interim heads (RFC 9110 section 15.2) on their way to the client.
type Interim = RefCell<Vec<Response<()>>>;

/// A stream's task.
async fn answer(
    session: Rc<Session>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    _stream: ActiveStream,
) {
    let answered = {
        let interim = Interim::default();
        let mut handling = pin!(handle(&session, request, &interim));
        poll_fn(|cx| {
            let answered = handling.as_mut().poll(cx);
            for head in interim.take() {
                // An error: the client gave it up.
                respond.send_informational(head).ok();
            }
            match answered {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                // The client gave it up: what is under way for it ends.
                Poll::Pending => respond.poll_reset(cx).map(|_| None),
            }
        })
        .await
    };
    let (pace, write) = (&session.pace, session.connection.listener.config.timeouts.write);
    match answered {
        None => {}
        Some(Answer::Whole(response)) => send::whole(&mut respond, response, pace, write).await,
        Some(Answer::Relay(response, relay)) => {
            let is_whole = relay.is_over();
            if let Some(out) = send::head(&mut respond, response, is_whole).filter(|_| !is_whole) {
                send::relayed(out, relay, pace, write).await;
            }
        }
        Some(Answer::Tunnel(response, tunnel)) => tunnel.run(&session, &mut respond, response).await,
    }
}

async fn handle(session: &Rc<Session>, request: Request<RecvStream>, interim: &Interim) -> Answer {
    let (worker, connection) = (&session.worker, &session.connection);
    let mut open = OpenEntry { session, entry: Some(Entry::new(worker, connection, Protocol::Http2)) };
    let entry = open.entry.as_mut().expect("it was just put there");
    let is_websocket = websocket::is_asked(&request);
    let (parts, incoming) = request.into_parts();
    // What comes up a tunnel is nobody's body.
    let (incoming, tunnel) = if is_websocket { (None, Some(incoming)) } else { (Some(incoming), None) };
    let is_grpc = grpc::is_call(&parts.headers);
    let mut out = worker.buffers.scratch();
    let target = parts.uri.path_and_query().map_or("", |t| t.as_str());
    let authority = parts.uri.authority().map(|a| a.as_str());
    let line = Line {
        method: if is_websocket { "GET" } else { parts.method.as_str() },
        target,
        authority,
        protocol: Protocol::Http2,
        has_data: incoming.as_ref().is_some_and(|i| !i.is_end_stream()),
        is_websocket,
    };
    let fields: Vec<(&[u8], &[u8])> =
        parts.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect();
    let now = worker.millis(entry.started);
    let planned = match parts.headers.len() <= connection.listener.config.limits.fields {
        true => request::plan(worker, connection, line, fields.iter().copied(), now, &mut out),
        false => Err(Reason::FieldCount.into()),
    };
    let plan = match planned {
        Ok(plan) => plan,
        Err(instead) => {
            worker.buffers.recycle(out);
            entry.words_of(
                parts.method.as_str().as_bytes(),
                target.as_bytes(),
                authority.unwrap_or_default().as_bytes(),
            );
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
            open.finish();
            return Answer::Whole(response);
        }
    };
    drop(parts);
    entry.planned(&plan);
    entry.head(&out, &plan.spans);
    let mut exchange = Exchange { session, plan: &plan, upload: Upload::new(out, plan.framing, incoming), interim };
    let answered = exchange.run(entry).await;
    let upload = exchange.upload;
    entry.bytes_in = upload.bytes;
    match answered {
        Ok((mut link, head, response)) => {
            entry.status = head.status;
            if let (101, Some(incoming)) = (head.status, tunnel) {
                worker.buffers.recycle(upload.into_head());
                let entry = open.entry.take().expect("it is taken once");
                return Answer::Tunnel(response, Box::new(Tunnel { incoming, link, entry }));
            }
            if let Some(body) = whole_body(&link, head).filter(|_| upload.is_complete()) {
                link.buffer.consume(body.len(), &worker.buffers);
                entry.bytes_out = body.len() as u64;
                worker.buffers.recycle(upload.into_head());
                match head.keeps_alive {
                    true => worker.pool.checkin(link, worker.millis(entry.started)),
                    false => upstream::discard(link, &worker.buffers),
                }
                open.finish();
                return Answer::Whole(response.map(|()| body));
            }
            let entry = open.entry.take().expect("it is taken once");
            let relay = Relay::new(session.clone(), entry, link, head, upload, Deadlines::of(connection, &plan));
            Answer::Relay(response, Box::new(relay))
        }
        Err(Broken::Client(reason) | Broken::Endpoint(reason)) => {
            entry.status = reason.status();
            entry.reason = Some(reason);
            let response = error(reason, is_grpc, entry.request_id());
            worker.buffers.recycle(upload.into_head());
            open.finish();
            Answer::Whole(response)
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

/// The body, if all of it came with the head and nothing comes after it, as with most small answers: such a response needs
/// nothing of its own that lives on.
fn whole_body(link: &Link, head: ResponseHead) -> Option<Bytes> {
    let here = link.buffer.unread();
    if here.len() > WHOLE {
        return None;
    }
    match head.framing {
        Framing::Empty if here.is_empty() => Some(Bytes::new()),
        Framing::Length(n) if n == here.len() as u64 => Some(Bytes::copy_from_slice(here)),
        _ => None,
    }
}

/// The client's head.
fn client_head(plan: &Plan, of: &response::Response<'_, '_>) -> Response<()> {
    let mut client = Response::new(());
    *client.status_mut() = StatusCode::from_u16(of.head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = client.headers_mut();
    headers.reserve(of.field_count() + 2);
    pass_fields(of, headers);
    let length = match of.head.framing {
        Framing::Length(n) => Some(n),
        Framing::Empty => of.declared_length(),
        Framing::Chunked | Framing::Close => None,
    };
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if plan.service.config.version_header
        && let Some(version) = plan.service.versions.get(plan.decision.version)
        && let Ok(value) = HeaderValue::from_str(&version.name)
    {
        headers.insert(respond::VERSION, value);
    }
    client
}

/// An interim head.
fn interim_head(of: &response::Response<'_, '_>) -> Option<Response<()>> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::from_u16(of.head.status).ok()?;
    pass_fields(of, head.headers_mut());
    Some(head)
}

fn pass_fields(of: &response::Response<'_, '_>, headers: &mut HeaderMap) {
    // `TE` is for requests: `h2` would refuse the whole head for it.
    for (name, value) in of.passing().filter(|(name, _)| !name.eq_ignore_ascii_case(b"te")) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
}

/// One stream's way to an endpoint, until its answer has begun.
struct Exchange<'a> {
    session: &'a Rc<Session>,
    plan: &'a Plan,
    upload: Upload,
    interim: &'a Interim,
}

impl Exchange<'_> {
    async fn run(&mut self, entry: &mut Entry) -> Result<(Link, ResponseHead, Response<()>), Broken> {
        let session = self.session;
        let mut attempts = Attempts::new(&session.worker, self.plan, entry.started);
        loop {
            let mut link = attempts.link().await.map_err(Broken::Endpoint)?;
            entry.attempt(&link, &attempts);
            match self.final_head(&mut link).await {
                Ok((head, response)) => {
                    attempts.succeeded(&link);
                    entry.upstream_began();
                    return Ok((link, head, response));
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

    /// Sends the request and waits for the final head, passing interim ones on.
    async fn final_head(&mut self, link: &mut Link) -> Result<(ResponseHead, Response<()>), Broken> {
        let deadlines = Deadlines::of(&self.session.connection, self.plan);
        for _ in 0..16 {
            let length = self.await_head(link, deadlines).await?;
            let bytes = link.buffer.unread().get(..length).unwrap_or_default();
            let parsed = response::parse(bytes, self.plan.is_head, |response| {
                let switches = self.plan.is_upgrade && response.head.is_websocket;
                let is_final = response.head.status >= 200 || switches;
                let is_passed_on = match response.head.status {
                    // For those who asked.
                    100 => self.plan.expects_continue,
                    101 => false,
                    _ => !is_final,
                };
                if is_passed_on {
                    self.interim.borrow_mut().extend(interim_head(response));
                }
                (response.head, is_final.then(|| client_head(self.plan, response)))
            });
            let (head, response) = parsed.map_err(|_| Broken::Endpoint(Reason::BadResponse))?;
            link.buffer.consume(length, &self.session.worker.buffers);
            match response {
                Some(response) => return Ok((head, response)),
                None if head.status == 101 => return Err(Broken::Endpoint(Reason::Bad101)),
                None => {}
            }
        }
        Err(Broken::Endpoint(Reason::BadResponse))
    }

    async fn await_head(&mut self, link: &mut Link, deadlines: Deadlines) -> Result<usize, Broken> {
        let Worker { buffers, kennel, .. } = &*self.session.worker;
        let upload = &mut self.upload;
        // Taken when there is something to wait for.
        let mut dog: Option<Watchdog> = None;
        let mut wait = HeadWait::default();
        let waited = poll_fn(|cx| {
            if let Poll::Ready(head) = wait.poll(cx, upload, link, buffers) {
                return Poll::Ready(head);
            }
            let now = upload.progress();
            if let Some(deadline) = wait.rearm(now, &deadlines) {
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
