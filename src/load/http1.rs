//! HTTP/1.1 as a load generator needs it: one request, one response, no allocation on the way.
//!
//! hyper is built for servers and proxies: it owns its buffers, hands headers out as a map and bodies as a stream, and
//! pays for that on each response. Here a lane's buffer is parsed in place by httparse and dropped.

use std::pin::Pin;
use std::time::Duration;

use httparse::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, Sleep};

use super::connect::Stream;
use super::fault::{Fault, Kind};
use super::version::{Names, VersionFrom, VersionId};

/// What a response told.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub version: Option<VersionId>,
    /// The connection can carry another request.
    pub reusable: bool,
    pub received: u64,
    /// Where no version was found: what came instead.
    pub instead: Option<String>,
}

/// How to read a response.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    pub version_from: &'a VersionFrom,
    /// A response to HEAD has no body.
    pub head_only: bool,
}

/// The buffer of a lane, kept from connection to connection.
#[derive(Debug)]
pub struct Room {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    body: Vec<u8>,
    watchdog: Watchdog,
}

/// One read fills this: a head and a small body with room to spare.
const ROOM: usize = 16 * 1024;
/// Fields in a head; more are a protocol error here as in most servers.
const MOST_FIELDS: usize = 100;
/// What `--version-from json:` or `regex:` looks through.
const MOST_BODY: usize = 8 * 1024 * 1024;
/// Of a body, in a message.
const SHOWN_BODY: usize = 300;

impl Room {
    /// With a time limit for each request.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { bytes: vec![0; ROOM], start: 0, end: 0, body: Vec::new(), watchdog: Watchdog::new(timeout) }
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads more; `Ok(0)` is the end of the connection.
    async fn fill(&mut self, stream: &mut Stream) -> std::io::Result<usize> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let free = self.bytes.get_mut(self.end..).unwrap_or_default();
        if free.is_empty() {
            return Err(std::io::Error::other("a response head or chunk line of more than 16 KiB"));
        }
        let read = self.watchdog.guard(stream.read(free)).await?;
        self.end += read;
        Ok(read)
    }
}

/// A time limit without a timer per request: one timer per lane, which is moved on only when it goes off.
#[derive(Debug)]
struct Watchdog {
    timer: Pin<Box<Sleep>>,
    limit: Duration,
    deadline: Instant,
}

impl Watchdog {
    fn new(limit: Duration) -> Self {
        let deadline = Instant::now() + limit;
        Self { timer: Box::pin(tokio::time::sleep_until(deadline)), limit, deadline }
    }

    async fn guard<T>(&mut self, work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            let done = work.as_mut().poll(cx);
            while done.is_pending() && self.timer.as_mut().poll(cx).is_ready() {
                if Instant::now() >= self.deadline {
                    return std::task::Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
                }
                self.timer.as_mut().reset(self.deadline);
            }
            done
        })
        .await
    }
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

#[derive(Debug)]
struct Head {
    status: u16,
    length: usize,
    framing: Framing,
    reusable: bool,
    version: Option<VersionId>,
}

/// Sends `request` at `now` and reads the answer. `used` is whether the connection has carried a request before.
///
/// # Errors
/// When no complete answer came; the connection is of no use then.
pub async fn exchange(
    stream: &mut Stream,
    used: bool,
    request: &[u8],
    now: Instant,
    reading: Reading<'_>,
    room: &mut Room,
    names: &std::cell::RefCell<Names>,
) -> Result<Answer, Fault> {
    room.start = 0;
    room.end = 0;
    room.watchdog.deadline = now + room.watchdog.limit;
    if let Err(error) = room.watchdog.guard(write(stream, request)).await {
        return Err(Fault { stale: used, ..Fault::talking(&error) });
    }
    let mut received = 0_u64;
    let head = loop {
        let parsed = read_head(room.filled(), reading, &mut names.borrow_mut())?;
        match parsed {
            Some(head) => break head,
            None => {
                let first = received == 0;
                let read = room.fill(stream).await.map_err(|e| Fault { stale: used && first, ..Fault::talking(&e) });
                match read.map_err(|f| if f.kind == Kind::Timeout { Fault { stale: false, ..f } } else { f })? {
                    0 => {
                        let text =
                            if first { "closed before an answer" } else { "closed inside the head of an answer" };
                        return Err(Fault { stale: used && first, ..Fault::new(Kind::Closed, text) });
                    }
                    read => received += read as u64,
                }
            }
        }
        // An interim response (1xx) is done with: what follows is the next head.
    };
    let shown = head.version.is_none() && !reading.version_from.needs_body();
    let mut instead = shown.then(|| show(room.filled(), None));
    let head_text = reading.version_from.needs_body().then(|| room.filled().get(..head.length).map(<[u8]>::to_vec));
    room.start += head.length;
    room.body.clear();
    let mut keep = reading.version_from.needs_body();
    if keep && matches!(head.framing, Framing::Length(length) if length > MOST_BODY as u64) {
        keep = false;
    }
    received += body(stream, room, head.framing, keep).await?;
    if room.start != room.end {
        return Err(Fault::new(Kind::Protocol, "bytes after the end of the answer"));
    }
    let mut version = head.version;
    if let Some(head_text) = head_text {
        version = reading.version_from.read(head.status, |_| None, &room.body, &mut names.borrow_mut());
        if version.is_none() {
            instead = Some(show(&head_text.unwrap_or_default(), Some(&room.body)));
        }
    }
    let reusable = head.reusable && head.framing != Framing::UntilClose;
    Ok(Answer { status: head.status, version, reusable, received, instead })
}

async fn write(stream: &mut Stream, request: &[u8]) -> std::io::Result<()> {
    stream.write_all(request).await?;
    stream.flush().await
}

/// Parses a complete final head; `None` when more bytes are needed. Interim heads are skipped by their caller's loop
/// reading on, so they are counted into `length`.
fn read_head(bytes: &[u8], reading: Reading<'_>, names: &mut Names) -> Result<Option<Head>, Fault> {
    let mut skipped = 0;
    loop {
        let bytes = bytes.get(skipped..).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut fields = [std::mem::MaybeUninit::uninit(); MOST_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parsed =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut fields);
        let length = match parsed {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(error) => {
                return Err(Fault::new(Kind::Protocol, format!("{error}; got: {}", show(bytes, None))));
            }
        };
        let status = response.code.unwrap_or_default();
        match status {
            101 => return Err(Fault::new(Kind::Protocol, "101 Switching Protocols, which was not asked for")),
            100..200 => skipped += length,
            _ => {
                let mut head = final_head(status, &response, reading, names)?;
                head.length = skipped + length;
                return Ok(Some(head));
            }
        }
    }
}

fn final_head(
    status: u16,
    response: &httparse::Response<'_, '_>,
    reading: Reading<'_>,
    names: &mut Names,
) -> Result<Head, Fault> {
    let mut framing = Framing::UntilClose;
    let mut reusable = response.version == Some(1);
    for field in response.headers.iter() {
        // Lengths first: a comparison of names is then rarely needed.
        match field.name.len() {
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                let text = std::str::from_utf8(field.value).unwrap_or_default().trim();
                let length =
                    text.parse().map_err(|_| Fault::new(Kind::Protocol, format!("content-length: {text:?}")))?;
                if framing == Framing::UntilClose {
                    framing = Framing::Length(length);
                }
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => framing = Framing::Chunked,
            10 if field.name.eq_ignore_ascii_case("connection") => {
                if field.value.eq_ignore_ascii_case(b"close") {
                    reusable = false;
                } else if field.value.eq_ignore_ascii_case(b"keep-alive") {
                    reusable = true;
                }
            }
            _ => {}
        }
    }
    if reading.head_only || status == 204 || status == 304 {
        framing = Framing::Length(0);
    }
    let version = if reading.version_from.needs_body() {
        None
    } else {
        let header = |name: &str| {
            let field = response.headers.iter().find(|f| f.name.eq_ignore_ascii_case(name))?;
            Some(field.value)
        };
        reading.version_from.read(status, header, &[], names)
    };
    Ok(Head { status, length: 0, framing, reusable, version })
}

/// Reads a body to its end and gives the bytes that came from the wire.
async fn body(stream: &mut Stream, room: &mut Room, framing: Framing, keep: bool) -> Result<u64, Fault> {
    match framing {
        Framing::Length(length) => pass(stream, room, length, keep).await,
        Framing::UntilClose => {
            let mut received = 0;
            loop {
                take(room, usize::MAX, keep);
                match room.fill(stream).await {
                    Ok(0) => return Ok(received),
                    Ok(read) => received += read as u64,
                    // Many servers end TLS without a close_notify; a body without a length ends all the same.
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(received),
                    Err(e) => return Err(Fault::talking(&e)),
                }
            }
        }
        Framing::Chunked => chunks(stream, room, keep).await,
    }
}

async fn chunks(stream: &mut Stream, room: &mut Room, keep: bool) -> Result<u64, Fault> {
    let mut received = 0;
    loop {
        match httparse::parse_chunk_size(room.filled()) {
            Ok(Status::Complete((line, 0))) => {
                room.start += line;
                return Ok(received + trailers(stream, room).await?);
            }
            Ok(Status::Complete((line, size))) => {
                room.start += line;
                received += pass(stream, room, size, keep).await?;
                // The line end after the data.
                received += pass(stream, room, 2, false).await?;
            }
            Ok(Status::Partial) => received += more(stream, room).await?,
            Err(_) => return Err(Fault::new(Kind::Protocol, "a broken chunk size")),
        }
    }
}

async fn trailers(stream: &mut Stream, room: &mut Room) -> Result<u64, Fault> {
    let mut received = 0;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        match httparse::parse_headers(room.filled(), &mut fields) {
            Ok(Status::Complete((length, _))) => {
                room.start += length;
                return Ok(received);
            }
            Ok(Status::Partial) => received += more(stream, room).await?,
            Err(error) => return Err(Fault::new(Kind::Protocol, format!("trailers: {error}"))),
        }
    }
}

/// Goes past `length` bytes of body.
async fn pass(stream: &mut Stream, room: &mut Room, length: u64, keep: bool) -> Result<u64, Fault> {
    let mut left = length;
    let mut received = 0;
    loop {
        left -= take(room, usize::try_from(left).unwrap_or(usize::MAX), keep) as u64;
        if left == 0 {
            return Ok(received);
        }
        received += more(stream, room).await?;
    }
}

/// Takes at most `most` of what is in the room and says how much it was.
fn take(room: &mut Room, most: usize, keep: bool) -> usize {
    let taken = (room.end - room.start).min(most);
    if keep && room.body.len() < MOST_BODY {
        let bytes = room.bytes.get(room.start..room.start + taken).unwrap_or_default();
        room.body.extend_from_slice(bytes);
    }
    room.start += taken;
    taken
}

async fn more(stream: &mut Stream, room: &mut Room) -> Result<u64, Fault> {
    match room.fill(stream).await {
        Ok(0) => Err(Fault::new(Kind::Closed, "closed inside the body of an answer")),
        Ok(read) => Ok(read as u64),
        Err(error) => Err(Fault::talking(&error)),
    }
}

/// A response for a person: its head, and the beginning of its body.
fn show(head: &[u8], body: Option<&[u8]>) -> String {
    let end = head.len().min(2048);
    let mut text = String::from_utf8_lossy(head.get(..end).unwrap_or_default()).trim_end().to_owned();
    if let Some(body) = body {
        text.push_str("\r\n\r\n");
        text.push_str(&String::from_utf8_lossy(body.get(..body.len().min(SHOWN_BODY)).unwrap_or_default()));
    }
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
#[path = "http1/tests.rs"]
mod tests;
