//! HTTP/1 with a client: one request after the other until either side is done.
//!
//! Reads a head, has it planned, tries endpoints, relays the answer. Every error becomes a response in `respond`, and
//! every request ends in one journal entry.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::body::Framing;
use super::exchange::{self, ClientSide, Download, Waited};
use super::head;
use super::response::{self, ResponseHead};
use super::tunnel;
use super::upload::Upload;
use crate::decide::fields::{self, ConnectionTokens, Field};
use crate::proxy::attempts::Attempts;
use crate::proxy::awaited::{Broken, Deadlines};
use crate::proxy::buffer::{Buffer, Size};
use crate::proxy::connection::Connection;
use crate::proxy::journal::Entry;
use crate::proxy::linger::{LINGER, linger};
use crate::proxy::request::{self, Instead, Line, Plan, Protocol};
use crate::proxy::respond;
use crate::proxy::stream::Stream;
use crate::proxy::upstream::{self, Link};
use crate::proxy::watchdog::Watchdog;
use crate::proxy::worker::Worker;
use crate::reason::Reason;

/// Serves a connection to its end. Small while it waits for a request: a block rather than an async function, which would
/// hold its arguments twice, and what a request needs is in a box of its own.
pub(crate) fn serve(
    worker: Rc<Worker>,
    stream: Stream,
    early: Buffer,
    connection: Connection,
) -> Pin<Box<dyn Future<Output = ()>>> {
    let timeouts = connection.listener.config.timeouts;
    let dog = Watchdog::new(Instant::now() + timeouts.first_byte);
    let mut session = Session { client: ClientSide { stream, buffer: early, dog }, worker, connection, served: 0 };
    Box::pin(async move {
        while let After::Next = session.request().await {
            session.served += 1;
        }
    })
}

/// What comes after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Next,
    End,
}

/// The rest of a request, in a box: a connection that waits for its next one is to be small.
type Step<'s> = Pin<Box<dyn Future<Output = After> + 's>>;

struct Session {
    client: ClientSide,
    worker: Rc<Worker>,
    connection: Connection,
    served: u64,
}

/// An endpoint's answer, as far as its head.
struct Answer {
    link: Link,
    head: ClientHead,
}

/// What the client gets of a head.
struct ClientHead {
    of: ResponseHead,
    side: response::ClientSide,
    bytes: Vec<u8>,
}

impl Session {
    async fn request(&mut self) -> After {
        let step = match self.await_head().await {
            Ok(Some(length)) => self.begin(length),
            Ok(None) => Box::pin(self.close()),
            Err(Reason::FirstByteTimeout) if self.client.buffer.is_empty() => Box::pin(self.close()),
            // Reset, or closed without a TLS close_notify, as most clients do: nobody is there to read one of ours.
            Err(Reason::ClientAbort) if self.client.buffer.is_empty() => return self.abort(),
            Err(reason) => {
                let entry = Entry::new(&self.worker, &self.connection, Protocol::Http11);
                self.refuse(entry, reason, true)
            }
        };
        step.await
    }

    /// Decides on a request whose head is here; what is to be done then. Not an async function: what it holds on the way
    /// would be room in every idle connection.
    fn begin(&mut self, length: usize) -> Step<'_> {
        let mut entry = Entry::new(&self.worker, &self.connection, Protocol::Http11);
        let mut out = self.worker.buffers.scratch();
        let limits = self.connection.listener.config.limits;
        let now = self.worker.millis(entry.started);
        let head = self.client.buffer.unread().get(..length).unwrap_or_default();
        let planned = head::parse_request(head, &limits, |line, headers| {
            let fields = headers.iter().map(|h| (h.name.as_bytes(), h.value));
            let protocol = if line.is_http10 { Protocol::Http10 } else { Protocol::Http11 };
            let line = Line {
                method: line.method,
                target: line.target,
                authority: None,
                protocol,
                has_data: false,
                is_websocket: false,
            };
            Ok(request::plan(&self.worker, &self.connection, line, fields, now, &mut out))
        });
        let plan = match planned {
            Ok(Ok(plan)) => plan,
            Ok(Err(instead)) => {
                let bodyless = may_go_on(head, &instead);
                entry.raw_head(head);
                self.client.buffer.consume(length, &self.worker.buffers);
                self.worker.buffers.recycle(out);
                return Box::pin(self.answer_instead(entry, instead, !bodyless));
            }
            Err(reason) => {
                entry.raw_head(head);
                self.worker.buffers.recycle(out);
                return self.refuse(entry, reason, true);
            }
        };
        self.client.buffer.consume(length, &self.worker.buffers);
        entry.planned(&plan);
        Box::pin(self.exchange(entry, plan, out))
    }

    /// Waits for a complete head; its length, or `None` when the connection is to be closed without another word.
    async fn await_head(&mut self) -> Result<Option<usize>, Reason> {
        let timeouts = self.connection.listener.config.timeouts;
        let limits = self.connection.listener.config.limits;
        let (worker, seat, is_first) = (&self.worker, &self.connection.seat, self.served == 0);
        let ClientSide { stream, buffer, dog } = &mut self.client;
        let since = Instant::now();
        if !is_first {
            dog.set(since + timeouts.idle);
        }
        let mut seen = 0;
        // However many reads they come in.
        let mut blanks_left = head::MAX_BLANK;
        let mut is_begun = false;
        let mut closes_at = None;
        poll_fn(|cx| {
            loop {
                let blank = head::leading_blank(buffer.unread()).min(blanks_left);
                blanks_left -= blank;
                buffer.consume(blank, &worker.buffers);
                if !buffer.is_empty() {
                    if let Some(end) = head::find_end(buffer.unread(), seen) {
                        return Poll::Ready(Ok(Some(end)));
                    }
                    head::may_grow(buffer.unread(), &limits)?;
                    seen = buffer.len();
                    if !is_begun {
                        is_begun = true;
                        dog.set(Instant::now() + timeouts.head);
                    }
                }
                seat.watch(cx);
                if buffer.is_empty()
                    && let Some(at) = seat.closes_at()
                {
                    let idle = if is_first { timeouts.first_byte } else { timeouts.idle };
                    let at = at.max(since + GRACE).min(since + idle);
                    // Once: set anew at each look, one that fires late would have its grace again and again.
                    if closes_at.replace(at) != Some(at) {
                        dog.set(at);
                    }
                }
                match buffer.poll_fill(cx, stream, Size::Head, &worker.buffers) {
                    Poll::Ready(Ok(0)) if buffer.is_empty() => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Reason::ClientAbort)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => {
                        return dog.poll(cx).map(|()| match (is_begun, is_first) {
                            (true, _) => Err(Reason::HeadTimeout),
                            (false, true) if seat.closes_at().is_none() => Err(Reason::FirstByteTimeout),
                            (false, _) => Ok(None),
                        });
                    }
                }
            }
        })
        .await
    }

    #[expect(clippy::manual_async_fn, reason = "an async function would hold the plan and the entry twice")]
    fn exchange(&mut self, mut entry: Entry, plan: Plan, head: Vec<u8>) -> impl Future<Output = After> {
        async move {
            let mut upload = Upload::new(head, plan.framing, plan.expects_continue);
            if let Err(reason) = upload.absorb(&mut self.client.buffer, &self.worker.buffers) {
                entry.head(upload.head(), &plan.spans);
                return self.refuse(entry, reason, true).await;
            }
            let answer = self.answer(&mut entry, &plan, &mut upload).await;
            entry.head(upload.head(), &plan.spans);
            entry.bytes_in = upload.bytes;
            match answer {
                Ok(answer) if answer.head.of.status == 101 => Box::pin(self.upgrade(entry, answer, upload)).await,
                Ok(answer) => self.relay(entry, &plan, answer, upload).await,
                Err(Broken::Client(reason) | Broken::Endpoint(reason)) => {
                    let closes = plan.closes || !upload.is_read();
                    self.worker.buffers.recycle(upload.into_head());
                    self.refuse(entry, reason, closes).await
                }
            }
        }
    }

    /// Tries endpoints until one has begun to answer.
    async fn answer(&mut self, entry: &mut Entry, plan: &Plan, upload: &mut Upload) -> Result<Answer, Broken> {
        let worker = self.worker.clone();
        let deadlines = Deadlines::of(&self.connection, plan);
        let mut attempts = Attempts::new(&worker, plan, entry.started);
        loop {
            let mut link = attempts.link().await.map_err(Broken::Endpoint)?;
            entry.attempt(&link, &attempts);
            match self.final_head(&mut link, plan, upload, deadlines).await {
                Ok(head) => {
                    attempts.succeeded(&link);
                    entry.upstream_began();
                    return Ok(Answer { link, head });
                }
                Err(Broken::Endpoint(reason)) => {
                    attempts.failed(link, reason, upload.kept()).map_err(Broken::Endpoint)?;
                    upload.rewind();
                }
                Err(client) => {
                    upstream::discard(link, &worker.buffers);
                    return Err(client);
                }
            }
        }
    }

    /// Waits for the final head, relaying interim ones (RFC 9110 section 15.2).
    async fn final_head(
        &mut self,
        link: &mut Link,
        plan: &Plan,
        upload: &mut Upload,
        deadlines: Deadlines,
    ) -> Result<ClientHead, Broken> {
        // As many as reliability.md B16 allows.
        for _ in 0..16 {
            let waited = exchange::await_head(&mut self.client, link, upload, deadlines, &self.worker.buffers).await?;
            let length = match waited {
                Waited::Head(length) => length,
                Waited::NoContinue => {
                    upload.is_gated = false;
                    exchange::write_all(&mut self.client, CONTINUE, deadlines.write).await?;
                    continue;
                }
            };
            let buffers = &self.worker.buffers;
            let mut out = buffers.scratch();
            let head = link.buffer.unread().get(..length).unwrap_or_default();
            let parsed = response::parse(head, plan.is_head, |response| {
                let side = self.side(plan, upload, response.head);
                let extra = |out: &mut Vec<u8>| {
                    if response.head.status >= 200 {
                        respond::extra(plan, out)
                    }
                };
                response::write(response, side, extra, &mut out);
                (response.head, side)
            });
            let Ok((of, side)) = parsed else {
                buffers.recycle(out);
                return Err(Broken::Endpoint(Reason::BadResponse));
            };
            link.buffer.consume(length, buffers);
            match of.status {
                101 if !plan.is_upgrade || !of.is_websocket => {
                    buffers.recycle(out);
                    return Err(Broken::Endpoint(Reason::Bad101));
                }
                100 | 102..=199 => {
                    // 100 is for those who asked; HTTP/1.0 knows none of them.
                    let sent = match plan.protocol == Protocol::Http11 && (of.status != 100 || upload.is_gated) {
                        true => exchange::write_all(&mut self.client, &out, deadlines.write).await,
                        false => Ok(()),
                    };
                    self.worker.buffers.recycle(out);
                    sent?;
                    if of.status == 100 {
                        upload.is_gated = false;
                    }
                }
                _ => return Ok(ClientHead { of, side, bytes: out }),
            }
        }
        Err(Broken::Endpoint(Reason::BadResponse))
    }

    /// How the client is told where a response ends, and whether its connection does.
    fn side(&self, plan: &Plan, upload: &Upload, head: ResponseHead) -> response::ClientSide {
        if head.status < 200 {
            return response::ClientSide { framing: Framing::Empty, closes: false, is_http10: false };
        }
        let is_http10 = plan.protocol == Protocol::Http10;
        let framing = match head.framing {
            // HTTP/1.0 has no chunks: the end of the connection is the end of the body.
            Framing::Chunked | Framing::Close if is_http10 => Framing::Close,
            Framing::Close => Framing::Chunked,
            framing => framing,
        };
        let ends = upload.is_read() || head.keeps_alive && upload.may_end_late();
        let closes = plan.closes || framing == Framing::Close || !ends || self.connection.seat.must_close();
        response::ClientSide { framing, closes, is_http10 }
    }

    async fn relay(&mut self, mut entry: Entry, plan: &Plan, answer: Answer, mut upload: Upload) -> After {
        let Answer { mut link, head: ClientHead { of: head, side, bytes } } = answer;
        let response::ClientSide { framing, closes, .. } = side;
        let mut download = Download::new(bytes, head.framing, framing, closes);
        let deadlines = Deadlines::of(&self.connection, plan);
        let relayed =
            exchange::relay(&mut self.client, &mut link, &mut upload, &mut download, deadlines, &self.worker.buffers)
                .await;
        let ended = Instant::now();
        entry.ended = relayed.is_ok().then_some(ended);
        let may_end = relayed.is_ok() && (upload.is_done() || !closes);
        let is_sent = may_end && exchange::end(&mut self.client, &mut link, &mut upload, &self.worker.buffers).await;
        entry.status = head.status;
        entry.bytes_in = upload.bytes;
        entry.bytes_out = download.bytes;
        let is_clean = is_sent && head.keeps_alive && link.buffer.is_empty();
        let has_begun = download.has_begun;
        self.worker.buffers.recycle(download.into_scratch());
        let is_read = upload.is_read();
        self.worker.buffers.recycle(upload.into_head());
        match relayed {
            Ok(()) => {
                if is_clean {
                    self.worker.pool.checkin(link, self.worker.millis(ended));
                } else {
                    upstream::discard(link, &self.worker.buffers);
                }
                entry.finish(&self.worker, &self.connection);
                match (closes, is_read) {
                    (false, true) => After::Next,
                    (true, true) => self.close().await,
                    // The client may still be sending: let it see the answer before the connection goes.
                    (_, false) => self.linger().await,
                }
            }
            Err(Broken::Endpoint(reason)) if !has_begun => {
                upstream::discard(link, &self.worker.buffers);
                entry.status = reason.status();
                self.refuse(entry, reason, true).await
            }
            // Too late for another answer: the missing end tells the client (RFC 9112 section 8).
            Err(Broken::Client(reason) | Broken::Endpoint(reason)) => {
                upstream::discard(link, &self.worker.buffers);
                entry.reason = Some(reason);
                entry.finish(&self.worker, &self.connection);
                if framing == Framing::Close {
                    self.client.stream.reset_at_end();
                }
                self.abort()
            }
        }
    }

    async fn upgrade(&mut self, mut entry: Entry, answer: Answer, upload: Upload) -> After {
        let Answer { mut link, head: ClientHead { bytes: out, .. } } = answer;
        entry.status = 101;
        let timeouts = self.connection.listener.config.timeouts;
        let (up, down) = match exchange::write_all(&mut self.client, &out, timeouts.write).await {
            Ok(()) => {
                let ClientSide { stream, buffer, dog } = &mut self.client;
                tunnel::run(stream, buffer, dog, &mut link, timeouts.upgraded_idle, &self.worker.buffers).await
            }
            Err(_) => (0, 0),
        };
        self.worker.buffers.recycle(out);
        self.worker.buffers.recycle(upload.into_head());
        upstream::discard(link, &self.worker.buffers);
        entry.bytes_in = up;
        entry.bytes_out = down;
        entry.finish(&self.worker, &self.connection);
        self.close().await
    }

    async fn answer_instead(&mut self, mut entry: Entry, instead: Instead, closes: bool) -> After {
        match instead {
            Instead::Refuse(reason) => self.refuse(entry, reason, closes || respond::ends_connection(reason)).await,
            Instead::Redirect { status, location } => {
                entry.status = status;
                let response = respond::redirect(status, &location, closes);
                self.send(entry, &response, closes).await
            }
        }
    }

    /// Answers with a reason of perch's own. Boxed, as it is rare.
    fn refuse(&mut self, entry: Entry, reason: Reason, closes: bool) -> Step<'_> {
        Box::pin(self.refuse_now(entry, reason, closes))
    }

    async fn refuse_now(&mut self, mut entry: Entry, reason: Reason, closes: bool) -> After {
        entry.status = reason.status();
        entry.reason = Some(reason);
        if reason == Reason::ClientAbort {
            entry.finish(&self.worker, &self.connection);
            return self.abort();
        }
        let closes = closes || self.connection.seat.must_close();
        let response = respond::error(reason, entry.is_head, closes, entry.request_id());
        self.send(entry, &response, closes).await
    }

    async fn send(&mut self, entry: Entry, response: &[u8], closes: bool) -> After {
        let write = self.connection.listener.config.timeouts.write;
        let sent = exchange::write_all(&mut self.client, response, write).await;
        entry.finish(&self.worker, &self.connection);
        match sent {
            Err(_) => self.abort(),
            Ok(()) if closes => self.linger().await,
            Ok(()) => After::Next,
        }
    }

    /// Ends the connection in order: TLS close_notify, then FIN, which comes with the stream's end.
    async fn close(&mut self) -> After {
        let last = poll_fn(|cx| self.client.stream.poll_last(cx));
        // Whether the other side still listens makes no difference.
        tokio::time::timeout(LINGER, last).await.ok();
        After::End
    }

    /// Ends the connection so that the client sees the answer and not a reset: reads on for a moment (RFC 9112 9.6).
    async fn linger(&mut self) -> After {
        let ClientSide { stream, buffer, dog } = &mut self.client;
        linger(stream, buffer, dog, &self.worker.buffers).await;
        After::End
    }

    /// Ends the connection at once, without a clean end that the client could mistake for one.
    fn abort(&mut self) -> After {
        self.client.buffer.clear(&self.worker.buffers);
        After::End
    }
}

/// Whether the request that was answered in the endpoint's place has no body, so that the next one starts right after.
fn may_go_on(head: &[u8], instead: &Instead) -> bool {
    if let Instead::Refuse(reason) = instead
        && respond::ends_connection(*reason)
    {
        return false;
    }
    let line = head.split(|b| *b == b'\r').next();
    // Rare: a second look at the raw lines is cheaper than carrying the facts of every request.
    !head.split(|b| *b == b'\n').any(names_framing) && !line.is_some_and(|l| l.ends_with(b"HTTP/1.0"))
}

/// Whether a field line says that a body follows, or that the connection ends.
fn names_framing(line: &[u8]) -> bool {
    let Some((name, value)) = memchr::memchr(b':', line).and_then(|at| line.split_at_checked(at)) else { return false };
    match fields::classify(name) {
        Field::ContentLength | Field::TransferEncoding => true,
        Field::Connection => {
            let mut tokens = ConnectionTokens::default();
            tokens.read(value.trim_ascii_end().get(1..).unwrap_or_default());
            tokens.close
        }
        _ => false,
    }
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// While draining, a connection is not closed for being idle before it was idle for so long: a client that is about to
/// send its next request gets its answer, with `Connection: close`.
const GRACE: Duration = Duration::from_secs(1);
