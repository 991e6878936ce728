//! The access log: one JSON or text line per request, written off the request path.
//!
//! A line is formatted by the worker and put into a bounded channel; one thread drains it in batches. When the reader
//! is slow, gone or out of space, lines are dropped and counted: no request ever waits for its log line, and the end of
//! the pipe is not the end of the process. Bytes of clients are escaped, so that a line is always one line of text.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::{self, LogFormat};
use crate::decide::Why;
use crate::metrics;
use crate::reason::Reason;

/// What is known of a request when it is over.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// When its first byte came.
    pub time: SystemTime,
    pub listener: &'a str,
    pub peer: SocketAddr,
    /// The client's address after PROXY protocol and X-Forwarded-For.
    pub client: IpAddr,
    pub method: &'a str,
    pub host: &'a str,
    /// Without the query, which may hold secrets.
    pub path: &'a str,
    pub status: u16,
    pub reason: Option<Reason>,
    pub service: Option<&'a str>,
    pub version: Option<&'a str>,
    pub why: Option<Why>,
    pub endpoint: Option<&'a str>,
    /// Endpoints tried; 0 when none was.
    pub attempts: u32,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration: Duration,
    /// From the request sent to the response's head.
    pub upstream: Option<Duration>,
    pub request_id: Option<&'a str>,
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'a str,
    /// `TLSv1.2`, `TLSv1.3`.
    pub tls: Option<&'a str>,
}

/// Lines that wait: 10 ms (see [`PAUSE`]) of 400,000 requests per second, about 2 MB.
const CAPACITY: usize = 4096;
/// The drain thread rests this long between batches, so that a busy worker wakes it at most 100 times a second instead
/// of once per line.
const PAUSE: Duration = Duration::from_millis(10);

enum Message {
    Line(Vec<u8>),
    /// Answered once everything before it is written.
    Flush(SyncSender<()>),
}

/// Where workers put their lines. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog(SyncSender<Message>);

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

impl AccessLog {
    /// To standard output, past its line buffer.
    ///
    /// # Errors
    /// When standard output is closed or no thread can be started.
    pub fn stdout() -> io::Result<Self> {
        use std::os::fd::AsFd;
        Self::new(std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// To any writer, from a thread of its own.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(to: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(CAPACITY);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || drain(&receiver, Sink::new(to)))?;
        Ok(Self(sender))
    }

    /// Writes the line of a request, unless it is sampled out: `roll` is any number that differs between requests.
    /// Refused and failed requests always get their line.
    pub fn log(&self, config: &config::AccessLog, roll: u64, line: &Line<'_>) {
        let is_failed = line.status >= 400 || line.reason.is_some();
        if config.format == LogFormat::Off || !(is_failed || is_sampled(config.sample, roll)) {
            return;
        }
        let mut text = String::with_capacity(512);
        let written = match config.format {
            LogFormat::Json => json(&mut text, line),
            LogFormat::Text | LogFormat::Off => plain(&mut text, line),
        };
        if written.is_err() {
            return;
        }
        text.push('\n');
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.0.try_send(Message::Line(text.into_bytes()))
        {
            metrics::access_log_dropped();
        }
    }

    /// Waits until all lines so far are written, at most `within`. For the end of the process.
    pub fn flush(&self, within: Duration) {
        let end = Instant::now() + within;
        let (done, wait) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(back)) = self.0.try_send(message) {
            if Instant::now() >= end {
                return;
            }
            message = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        // Nothing can be done about a reader that does not read.
        wait.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
    }
}

/// Whether a roll falls into the share.
#[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
fn is_sampled(share: f64, roll: u64) -> bool {
    // The rolls of a worker may be consecutive numbers: spread them first.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    share >= 1.0 || (roll.wrapping_mul(SPREAD) as f64) < share * (u64::MAX as f64)
}

fn drain(messages: &Receiver<Message>, mut sink: Sink<impl Write>) {
    // Ends when the last sender is gone.
    while let Ok(first) = messages.recv() {
        let mut flushed = Vec::new();
        for message in std::iter::once(first).chain(messages.try_iter().take(CAPACITY)) {
            match message {
                Message::Line(line) => sink.push(&line),
                Message::Flush(done) => flushed.push(done),
            }
        }
        sink.write();
        for done in &flushed {
            // The one who asked may have given up.
            done.try_send(()).ok();
        }
        if flushed.is_empty() {
            std::thread::sleep(PAUSE);
        }
    }
}

/// A writer that may fail at any byte.
struct Sink<W> {
    to: W,
    batch: Vec<u8>,
    /// The last write ended inside a line.
    is_cut: bool,
}

impl<W: Write> Sink<W> {
    const fn new(to: W) -> Self {
        Self { to, batch: Vec::new(), is_cut: false }
    }

    fn push(&mut self, line: &[u8]) {
        self.batch.extend_from_slice(line);
    }

    /// Writes the batch; what cannot be written is dropped and counted, and the next batch begins on a new line.
    fn write(&mut self) {
        // Ends the line that was cut; that one is counted already.
        let mends = self.is_cut && !self.batch.is_empty();
        if mends {
            self.batch.insert(0, b'\n');
        }
        let mut rest = self.batch.as_slice();
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(n) if n > 0 => {
                    self.is_cut = rest.get(n - 1) != Some(&b'\n');
                    rest = rest.get(n..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    let counted = usize::from(mends && rest.len() == self.batch.len());
                    let lost = rest.iter().skip(counted).filter(|b| **b == b'\n');
                    lost.for_each(|_| metrics::access_log_dropped());
                    break;
                }
            }
        }
        self.batch.clear();
        // A burst must not keep its memory forever.
        self.batch.shrink_to(1 << 16);
    }
}

fn json(to: &mut String, line: &Line<'_>) -> std::fmt::Result {
    to.push_str("{\"time\":\"");
    time(to, line.time)?;
    to.push('"');
    for (name, value) in [
        ("listener", Some(line.listener)),
        ("method", Some(line.method)),
        ("host", Some(line.host)),
        ("path", Some(line.path)),
        ("service", line.service),
        ("version", line.version),
        ("endpoint", line.endpoint),
        ("request_id", line.request_id),
        ("protocol", Some(line.protocol)),
        ("tls", line.tls),
    ] {
        if let Some(value) = value {
            write!(to, ",\"{name}\":\"")?;
            escape(to, value, |to, c| write!(to, "\\u{:04x}", u32::from(c)))?;
            to.push('"');
        }
    }
    write!(to, ",\"peer\":\"{}\",\"client\":\"{}\",\"status\":{}", line.peer, line.client, line.status)?;
    if let Some(reason) = line.reason {
        write!(to, ",\"reason\":\"{reason}\"")?;
    }
    if let Some(why) = line.why {
        write!(to, ",\"why\":\"{}\"", why.as_str())?;
    }
    write!(
        to,
        ",\"attempts\":{},\"bytes_in\":{},\"bytes_out\":{},\"duration_ms\":{}",
        line.attempts,
        line.bytes_in,
        line.bytes_out,
        Millis(line.duration)
    )?;
    if let Some(upstream) = line.upstream {
        write!(to, ",\"upstream_ms\":{}", Millis(upstream))?;
    }
    to.push('}');
    Ok(())
}

/// `time listener client "GET host/path HTTP/1.1" status` and the rest as `name=value`.
fn plain(to: &mut String, line: &Line<'_>) -> std::fmt::Result {
    let hex = |to: &mut String, c| write!(to, "\\u{{{:x}}}", u32::from(c));
    time(to, line.time)?;
    write!(to, " {} {} \"", line.listener, line.client)?;
    for (part, end) in [(line.method, " "), (line.host, ""), (line.path, " "), (line.protocol, "\" ")] {
        escape(to, part, hex)?;
        to.push_str(end);
    }
    write!(to, "{}", line.status)?;
    let names = [
        ("reason", line.reason.map(Reason::as_str)),
        ("service", line.service),
        ("version", line.version),
        ("why", line.why.map(Why::as_str)),
        ("endpoint", line.endpoint),
        ("request_id", line.request_id),
        ("tls", line.tls),
    ];
    for (name, value) in names {
        if let Some(value) = value {
            write!(to, " {name}=")?;
            escape(to, value, hex)?;
        }
    }
    write!(
        to,
        " peer={} attempts={} bytes_in={} bytes_out={} duration_ms={}",
        line.peer,
        line.attempts,
        line.bytes_in,
        line.bytes_out,
        Millis(line.duration)
    )?;
    line.upstream.map_or(Ok(()), |upstream| write!(to, " upstream_ms={}", Millis(upstream)))
}

/// Copies `text`; `"` and `\` get a backslash, and what could break a line or command a terminal (C0, DEL, C1, the
/// Unicode line ends and bidirectional overrides) is written by `encode`.
fn escape(to: &mut String, text: &str, encode: impl Fn(&mut String, char) -> std::fmt::Result) -> std::fmt::Result {
    let is_plain = |b: u8| (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\';
    if text.bytes().all(is_plain) {
        to.push_str(text);
        return Ok(());
    }
    for c in text.chars() {
        match c {
            '"' | '\\' => to.extend(['\\', c]),
            '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => encode(to, c)?,
            c if c.is_control() => encode(to, c)?,
            c => to.push(c),
        }
    }
    Ok(())
}

/// Milliseconds with three decimals.
struct Millis(Duration);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

/// RFC 3339, UTC, milliseconds.
fn time(to: &mut String, time: SystemTime) -> std::fmt::Result {
    thread_local! {
        /// A second and its text: the date is worked out once a second, not once a line.
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    // A clock before 1970 is not worth an error.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            *text = rfc3339(since.as_secs());
        }
        to.push_str(text);
    });
    write!(to, ".{:03}Z", since.subsec_millis())
}

fn rfc3339(second: u64) -> String {
    let at = i64::try_from(second)
        .ok()
        .and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok())
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = at.to_calendar_date();
    format!("{year:04}-{:02}-{day:02}T{:02}:{:02}:{:02}", u8::from(month), at.hour(), at.minute(), at.second())
}

#[cfg(test)]
mod tests;
