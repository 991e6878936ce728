//! One HTTP/2 stream to an endpoint, as the bytes of an HTTP/1 exchange.
//!
//! Everything above (uploads, relays, deadlines, retries, interim answers) knows one wire format; here a request written
//! in it becomes HEADERS, DATA and trailers, and the answer is read in it. Lossless for what HTTP defines: bodies without
//! a length and trailers travel in chunked coding. Flow control is that of the stream: what its window does not take is
//! not accepted, and the endpoint's window opens as its bytes are read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http1::body::{self, Decoder, Framing, Piece};
use super::http1::head::{MAX_FIELDS, find_end};
use super::http1::response::{length_line, line, passes, push_number};
use super::multiplex::Place;
use crate::decide::fields::{self, Field};

/// Bytes of a request that wait for the stream's window.
const STAGED: usize = 64 * 1024;

/// Why a stream ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    /// The endpoint did nothing with it (REFUSED_STREAM, or GOAWAY with a lower stream): it may be sent again, whatever
    /// it is (RFC 9113 section 8.7).
    #[error("the endpoint refused the stream")]
    Refused,
    #[error("the endpoint reset the stream: {0}")]
    Reset(h2::Reason),
    #[error("the connection of the stream ended")]
    Lost,
    /// This request cannot be said in HTTP/2.
    #[error("the request cannot be sent over HTTP/2")]
    Unsendable,
}

impl StreamError {
    /// What is inside an error that this stream gave.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(_) if error.is_go_away() && error.is_remote() => Self::Refused,
            Some(h2::Reason::REFUSED_STREAM) if error.is_remote() => Self::Refused,
            Some(reason) if error.is_reset() => Self::Reset(reason),
            _ => Self::Lost,
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::other(error)
    }
}

/// One exchange.
#[derive(Debug)]
pub(crate) struct Http2Stream {
    sender: SendRequest<Bytes>,
    is_tls: bool,
    up: Up,
    down: Down,
    /// Written, and not yet looked at.
    staged: BytesMut,
    /// Payload that the stream has no room for yet.
    owed: Bytes,
    /// The answer, not yet read.
    out: BytesMut,
    is_head: bool,
    /// Why there is no stream.
    failed: Option<StreamError>,
    _place: Place,
}

#[derive(Debug)]
enum Up {
    Head,
    Body { stream: SendStream<Bytes>, decoder: Decoder },
    Ended,
}

#[derive(Debug)]
enum Down {
    /// Nothing was asked yet.
    Silent,
    Head(ResponseFuture),
    Body {
        stream: RecvStream,
        framing: Framing,
    },
    Trailers {
        stream: RecvStream,
        framing: Framing,
    },
    Ended,
}

impl Http2Stream {
    pub(super) fn new(sender: SendRequest<Bytes>, place: Place, is_tls: bool) -> Self {
        Self {
            sender,
            is_tls,
            up: Up::Head,
            down: Down::Silent,
            staged: BytesMut::new(),
            owed: Bytes::new(),
            out: BytesMut::new(),
            is_head: false,
            failed: None,
            _place: place,
        }
    }

    /// Sends what is staged as far as the stream takes it. Ready when all of it, or all but an unfinished line, is gone.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if let Up::Head = self.up {
            let Some(end) = find_end(&self.staged, 0) else { return Poll::Ready(Ok(())) };
            let head = self.staged.split_to(end).freeze();
            if let Err(error) = self.send_head(&head) {
                self.failed = Some(error);
                return Poll::Ready(Err(error));
            }
        }
        while let Up::Body { stream, decoder } = &mut self.up {
            if !self.owed.is_empty() {
                stream.reserve_capacity(self.owed.len());
                while stream.capacity() == 0 {
                    ready!(stream.poll_capacity(cx)).ok_or(StreamError::Lost)??;
                }
                let data = self.owed.split_to(stream.capacity().min(self.owed.len()));
                let is_last = self.owed.is_empty() && decoder.is_done();
                stream.send_data(data, is_last)?;
                if is_last {
                    self.up = Up::Ended;
                }
                continue;
            }
            // Framing takes no room in the window: the end of a body must not wait for one that is full.
            match decoder.next(&self.staged).map_err(|_| StreamError::Unsendable)? {
                Piece::Data { skip, len } => {
                    self.staged.advance(skip);
                    self.owed = self.staged.split_to(len).freeze();
                }
                // Nothing, or less than a line of trailers.
                Piece::More(0) => break,
                Piece::More(n) => self.staged.advance(n),
                Piece::End(n) => {
                    self.staged.advance(n);
                    end_with(stream, decoder)?;
                    self.up = Up::Ended;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn send_head(&mut self, head: &Bytes) -> Result<(), StreamError> {
        let (request, framing) = request(head, self.is_tls).ok_or(StreamError::Unsendable)?;
        self.is_head = request.method() == Method::HEAD;
        let decoder = Decoder::new(framing);
        let ends = decoder.is_done();
        // An error here is of the connection: nothing of this stream was sent.
        let (response, stream) = self.sender.send_request(request, ends).map_err(|_| StreamError::Refused)?;
        self.down = Down::Head(response);
        self.up = if ends { Up::Ended } else { Up::Body { stream, decoder } };
        Ok(())
    }

    /// Puts more of the answer into `out`. Ready(Ok(false)) at its end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        match &mut self.down {
            Down::Silent => Poll::Pending,
            Down::Head(response) => {
                if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
                    write_head(&interim?, None, &mut self.out);
                    return Poll::Ready(Ok(true));
                }
                let (parts, stream) = ready!(Pin::new(response).poll(cx))?.into_parts();
                let response = Response::from_parts(parts, ());
                let framing = framing(&response, stream.is_end_stream(), self.is_head);
                write_head(&response, Some(framing), &mut self.out);
                self.down = match framing {
                    Framing::Empty | Framing::Length(0) => Down::Ended,
                    Framing::Length(_) | Framing::Chunked | Framing::Close => Down::Body { stream, framing },
                };
                Poll::Ready(Ok(true))
            }
            Down::Body { stream, framing } => match ready!(stream.poll_data(cx)) {
                Some(data) => {
                    let data = data?;
                    // As it is read here, there is room for as much again.
                    stream.flow_control().release_capacity(data.len())?;
                    encode(*framing, &data, &mut self.out);
                    Poll::Ready(Ok(true))
                }
                None => {
                    let Down::Body { stream, framing } = std::mem::replace(&mut self.down, Down::Ended) else {
                        return Poll::Ready(Ok(false));
                    };
                    self.down = Down::Trailers { stream, framing };
                    Poll::Ready(Ok(true))
                }
            },
            Down::Trailers { stream, framing } => {
                let trailers = ready!(stream.poll_trailers(cx))?;
                let mut lines = Vec::new();
                for (name, value) in trailers.iter().flatten() {
                    line(name.as_str().as_bytes(), value.as_bytes(), &mut lines);
                }
                let mut end = Vec::new();
                body::encode_end(*framing, &lines, &mut end);
                self.out.extend_from_slice(&end);
                self.down = Down::Ended;
                Poll::Ready(Ok(true))
            }
            Down::Ended => Poll::Ready(Ok(false)),
        }
    }
}

fn end_with(stream: &mut SendStream<Bytes>, decoder: &Decoder) -> Result<(), StreamError> {
    let mut trailers = HeaderMap::new();
    for trailer in decoder.trailers().split(|b| *b == b'\n') {
        if let Some(at) = memchr::memchr(b':', trailer)
            && let Some((name, value)) = trailer.split_at_checked(at)
            && let Ok(name) = HeaderName::from_bytes(name)
            && let Ok(value) =
                HeaderValue::from_bytes(fields::trim(value.get(1..).unwrap_or_default().trim_ascii_end()))
        {
            trailers.append(name, value);
        }
    }
    if trailers.is_empty() {
        stream.send_data(Bytes::new(), true)?
    } else {
        stream.send_trailers(trailers)?
    }
    Ok(())
}

/// The request that an endpoint's head in HTTP/1 says; perch wrote it, and writes nothing twice. Values share its bytes.
fn request(head: &Bytes, is_tls: bool) -> Option<(Request<()>, Framing)> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS + 16];
    let mut parsed = httparse::Request::new(&mut slots);
    parsed.parse(head).ok()?;
    let mut framing = Framing::Empty;
    let mut authority = None;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for header in parsed.headers.iter() {
        let (name, value) = (header.name.as_bytes(), fields::trim(header.value));
        match fields::classify(name) {
            Field::Host => authority = Authority::from_maybe_shared(head.slice_ref(value)).ok(),
            Field::TransferEncoding => framing = Framing::Chunked,
            Field::Connection | Field::HopByHop | Field::Upgrade => {}
            kind => {
                if kind == Field::ContentLength {
                    framing = Framing::Length(fields::content_length(value)?);
                }
                let value = HeaderValue::from_maybe_shared(head.slice_ref(value)).ok()?;
                headers.append(HeaderName::from_bytes(name).ok()?, value);
            }
        }
    }
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(authority?);
    uri.path_and_query = Some(PathAndQuery::from_maybe_shared(head.slice_ref(parsed.path?.as_bytes())).ok()?);
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = headers;
    Some((request, framing))
}

fn framing(response: &Response<()>, is_ended: bool, is_head: bool) -> Framing {
    let headers = response.headers();
    let is_empty = is_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = || headers.get(CONTENT_LENGTH).and_then(|v| fields::content_length(v.as_bytes()));
    // gRPC's answer is in the trailers, which a body of known length has no place for.
    let has_trailers = || headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    match (is_empty, is_ended) {
        (true, _) => Framing::Empty,
        (false, true) => Framing::Length(0),
        (false, false) if has_trailers() => Framing::Chunked,
        (false, false) => length().map_or(Framing::Chunked, Framing::Length),
    }
}

/// `framing` is `None` for an interim answer.
fn write_head(response: &Response<()>, framing: Option<Framing>, out: &mut BytesMut) {
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(b"HTTP/1.1 ");
    push_number(u64::from(response.status().as_u16()), &mut head);
    head.push(b' ');
    head.extend_from_slice(response.status().canonical_reason().unwrap_or_default().as_bytes());
    head.extend_from_slice(b"\r\n");
    for (name, value) in response.headers() {
        if passes(name.as_str().as_bytes()) {
            line(name.as_str().as_bytes(), value.as_bytes(), &mut head);
        }
    }
    match framing {
        Some(Framing::Chunked | Framing::Close) => head.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Some(Framing::Length(n)) => length_line(n, &mut head),
        // What HEAD and 304 say about the body that they do not have.
        Some(Framing::Empty) => {
            if let Some(length) = response.headers().get(CONTENT_LENGTH) {
                line(b"content-length", length.as_bytes(), &mut head);
            }
        }
        None => {}
    }
    head.extend_from_slice(b"\r\n");
    out.extend_from_slice(&head);
}

fn encode(framing: Framing, data: &Bytes, out: &mut BytesMut) {
    if framing != Framing::Chunked {
        out.extend_from_slice(data);
    } else if !data.is_empty() {
        use std::fmt::Write;
        // Writing to a buffer does not fail.
        let _written = write!(out, "{:x}\r\n", data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

impl AsyncRead for Http2Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(error) = this.failed {
            return Poll::Ready(Err(error.into()));
        }
        // The last of a request goes out while its answer is waited for. A failure shows in the answer, which may be
        // there in spite of it.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            tracing::trace!(%error, "The rest of a request.");
        }
        while this.out.is_empty() {
            if !ready!(this.poll_more(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
        let take = this.out.len().min(buf.remaining());
        buf.put_slice(&this.out.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.staged.len() >= STAGED || !matches!(self.up, Up::Head) {
            ready!(self.poll_drain(cx))?;
        }
        let take = bytes.len().min(STAGED);
        self.staged.extend_from_slice(bytes.get(..take).unwrap_or_default());
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            return Poll::Ready(Err(error.into()));
        }
        Poll::Ready(Ok(take))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx).map_err(io::Error::from)
    }

    /// A request's end is in its framing.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
