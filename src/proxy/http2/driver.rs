//! A client's HTTP/2 connection, driven to its end: its bytes in and out, a task for each request, and its pings. What the
//! tasks put together goes out in one write: the driver is woken behind all tasks that can go on. It knows no deadlines
//! but the ping's.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep, sleep};

use super::frame::{self, setting};
use super::pace::Pace;
use super::receive::Receiver;
use super::streams::{CONNECTION_WINDOW, Handle, STREAM_WINDOW, Streams};
use super::{ActiveStream, Session, answer};
use crate::metrics;
use crate::proxy::buffer::{Buffer, Size};
use crate::proxy::stream::Stream;
use crate::reason;

/// An idle peer is asked whether it is still there (reliability.md D8).
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Waits of that length for a client that answers nothing and takes what it is sent.
const PATIENCE: u32 = 6;

/// What our PINGs say.
const ARE_YOU_THERE: [u8; 8] = *b"perch?  ";
const GOING_AWAY: [u8; 8] = *b"perch...";

/// Nothing more is read while so much waits to be written: what came would have to be answered too.
const STUCK: usize = 128 * 1024;

/// One connection.
pub(super) struct Driver {
    session: Rc<Session>,
    io: Stream,
    buffer: Buffer,
    reads: Size,
    streams: Rc<RefCell<Streams>>,
    /// What of the streams' bytes was written, and whether they have to be flushed.
    sent: usize,
    is_due: bool,
    /// What of bodies had been framed when all had been written.
    framed: u64,
    pings: Pings,
    closing: Closing,
}

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    Open,
    /// The client was told, and was asked for the first time.
    Told,
    /// The client knows. It may have answered ahead of requests that it had begun before: clients put their answers to
    /// PINGs first. So it is asked once more.
    Known,
    /// The client was told which streams are answered.
    Final,
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Client(Reason),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no answer to a PING")]
    Silent,
}

impl Driver {
    pub(super) fn new(session: Rc<Session>, io: Stream) -> Self {
        let limits = session.connection.listener.config.limits;
        let most_streams = usize::try_from(limits.streams).unwrap_or(usize::MAX);
        let mut streams = Streams::new(session.worker.buffers.clone(), Receiver::new(limits.head_bytes, most_streams));
        let size = |n: i64| u32::try_from(n).unwrap_or_default();
        let settings = [
            (setting::MAX_CONCURRENT_STREAMS, limits.streams),
            (setting::INITIAL_WINDOW_SIZE, size(STREAM_WINDOW)),
            (setting::MAX_HEADER_LIST_SIZE, u32::try_from(limits.head_bytes).unwrap_or(u32::MAX)),
            (setting::ENABLE_CONNECT_PROTOCOL, 1),
        ];
        frame::settings(&settings, streams.out());
        frame::window_update(0, size(CONNECTION_WINDOW) - 65_535, streams.out());
        Self {
            session,
            io,
            buffer: Buffer::default(),
            reads: Size::Head,
            streams: Rc::new(RefCell::new(streams)),
            sent: 0,
            is_due: false,
            framed: 0,
            pings: Pings::new(),
            closing: Closing::Open,
        }
    }

    /// Takes no more streams; those under way may end (RFC 9113 section 6.8).
    pub(super) fn close(&mut self) {
        if self.closing == Closing::Open {
            self.closing = Closing::Told;
            let mut streams = self.streams.borrow_mut();
            let out = streams.out();
            frame::goaway(0x7fff_ffff, Reason::NO_ERROR, out);
            frame::ping(0, GOING_AWAY, out);
        }
    }

    /// Ready at the connection's end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.streams.borrow_mut().driver.unpark();
        // First what is there, together: what is read now is answered later anyway.
        let _all_or_not = self.flush(cx)?;
        if self.poll_receive(cx)?.is_ready() {
            return Poll::Ready(Ok(()));
        }
        self.ponged();
        self.pings.poll(cx, &self.session.pace, &self.streams)?;
        if self.flush(cx)?.is_ready() && self.is_over() {
            return Poll::Ready(Ok(()));
        }
        self.streams.borrow_mut().driver.park(cx);
        Poll::Pending
    }

    /// Nothing is under way, and nothing comes.
    fn is_over(&self) -> bool {
        let streams = self.streams.borrow();
        streams.open == 0 && (streams.receiver.is_leaving || streams.receiver.goaway.is_some())
    }

    /// Ready when all has gone out.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Broken> {
        match self.poll_flush(cx) {
            Poll::Ready(done) => Ok(Poll::Ready(done?)),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut streams = self.streams.borrow_mut();
        loop {
            while let Some(rest) = streams.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
                let n = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.sent += n;
                self.is_due = true;
                if streams.framed != self.framed {
                    // There are bodies among it.
                    let answered = &self.session.pace.answered;
                    answered.set(answered.get() + n as u64);
                }
                let written = &self.session.pace.written;
                written.set(written.get() + n as u64);
            }
            // An idle connection keeps nothing.
            let storage = std::mem::take(&mut streams.out);
            streams.recycle(storage);
            self.sent = 0;
            self.framed = streams.framed;
            streams.pump();
            if streams.out.is_empty() {
                break;
            }
        }
        if self.is_due {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.is_due = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes in what the client sends. Ready at its end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Broken> {
        let session = self.session.clone();
        let (pace, buffers) = (&session.pace, &session.worker.buffers);
        loop {
            if self.streams.borrow().out.len() - self.sent >= STUCK && self.flush(cx)?.is_pending() {
                return Ok(Poll::Pending);
            }
            let n = match self.buffer.poll_fill(cx, &mut self.io, self.reads, buffers) {
                Poll::Ready(n) => n?,
                Poll::Pending => return Ok(Poll::Pending),
            };
            if n == 0 {
                return Ok(Poll::Ready(()));
            }
            // Large bodies want large reads.
            self.reads = if n >= 2_048 { Size::Body } else { Size::Head };
            pace.read.set(pace.read.get() + n as u64);
            let mut streams = self.streams.borrow_mut();
            let received = streams.receive(self.buffer.unread(), pace.written.get());
            for (head, at) in std::mem::take(&mut streams.receiver.accepted) {
                let handle = Handle::new(self.streams.clone(), at);
                // Counted from here on, not from the first poll of its task: the connection is not idle.
                let stream = ActiveStream::new(self.session.clone());
                // Boxed: tokio moves a task's future several times before it is first polled.
                tokio::task::spawn_local(Box::pin(answer(self.session.clone(), head, handle, stream)));
            }
            match received {
                Ok(used) => self.buffer.consume(used, buffers),
                Err(code) => {
                    // Not more than it was told before.
                    let last = streams.receiver.goaway.unwrap_or(streams.receiver.last);
                    frame::goaway(last, code, streams.out());
                    drop(streams);
                    // As far as it goes: who does not take it is not waited for.
                    let _all_or_not = self.flush(cx)?;
                    metrics::rejected(match code {
                        Reason::ENHANCE_YOUR_CALM => reason::Reason::H2Flood,
                        _ => reason::Reason::H2Malformed,
                    });
                    return Err(Broken::Client(code));
                }
            }
        }
    }

    /// Answers to PINGs of ours.
    fn ponged(&mut self) {
        let mut streams = self.streams.borrow_mut();
        while let Some(pong) = streams.receiver.pongs.pop_back() {
            match (pong, self.closing) {
                (ARE_YOU_THERE, _) => self.pings.answered(),
                (GOING_AWAY, Closing::Told) => {
                    self.closing = Closing::Known;
                    frame::ping(0, GOING_AWAY, streams.out());
                }
                (GOING_AWAY, Closing::Known) => {
                    self.closing = Closing::Final;
                    let last = streams.receiver.last;
                    streams.receiver.goaway = Some(last);
                    frame::goaway(last, Reason::NO_ERROR, streams.out());
                }
                _ => {}
            }
        }
    }
}

impl Driver {
    /// Ends what is under way; what is left of the connection.
    pub(super) fn end(&mut self) -> (&mut Stream, &mut Buffer) {
        let mut streams = self.streams.borrow_mut();
        streams.end_all();
        let out = std::mem::take(&mut streams.out);
        streams.recycle(out);
        (&mut self.io, &mut self.buffer)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end();
        self.buffer.clear(&self.session.worker.buffers);
    }
}

/// Asks a silent client whether it is still there.
struct Pings {
    timer: Pin<Box<Sleep>>,
    is_asked: bool,
    /// Bytes that had come, and gone, when the timer was last set.
    read: u64,
    written: u64,
    /// How often more may be waited for who only takes.
    patience: u32,
}

impl Pings {
    fn new() -> Self {
        Self { timer: Box::pin(sleep(PING_EVERY)), is_asked: false, read: 0, written: 0, patience: 0 }
    }

    fn answered(&mut self) {
        if std::mem::take(&mut self.is_asked) {
            self.timer.as_mut().reset(Instant::now() + PING_EVERY);
        }
    }

    /// An error when a question was not answered in time.
    fn poll(&mut self, cx: &mut Context<'_>, pace: &Pace, streams: &RefCell<Streams>) -> Result<(), Broken> {
        while self.timer.as_mut().poll(cx).is_ready() {
            // One that said something is there.
            let is_silent = std::mem::replace(&mut self.read, pace.read.get()) == pace.read.get();
            // The question stands behind what a slow client is still taking: more than the question itself.
            let takes = pace.written.get() - std::mem::replace(&mut self.written, pace.written.get()) > 64;
            // But the kernel takes much of what nobody receives.
            self.patience = if takes { self.patience.saturating_sub(1) } else { 0 };
            if self.is_asked && is_silent && self.patience == 0 {
                return Err(Broken::Silent);
            }
            if is_silent && !self.is_asked {
                self.patience = PATIENCE;
                frame::ping(0, ARE_YOU_THERE, streams.borrow_mut().out());
            }
            self.is_asked = is_silent;
            self.timer.as_mut().reset(Instant::now() + if self.is_asked { PING_TIMEOUT } else { PING_EVERY });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::super::frame::{Head, flag, kind};
    use super::*;
    use crate::proxy::buffer::Buffers;

    fn streams() -> RefCell<Streams> {
        RefCell::new(Streams::new(Rc::<Buffers>::default(), Receiver::new(16_384, 10)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_no_ping_is_given_up() {
        let (mut pings, streams, start) = (Pings::new(), streams(), Instant::now());

        let pace = Pace::default();
        let given_up = poll_fn(|cx| match pings.poll(cx, &pace, &streams) {
            Err(broken) => Poll::Ready(broken),
            Ok(()) => Poll::Pending,
        });

        assert!(matches!(given_up.await, Broken::Silent));
        assert_eq!(start.elapsed(), PING_EVERY + PING_TIMEOUT);
        let asked = Head::read(&streams.borrow().out).unwrap();
        assert_eq!((asked.kind, asked.has(flag::ACK)), (kind::PING, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_gone_is_given_up_though_the_kernel_takes_what_it_is_sent() {
        let (mut pings, streams, pace) = (Pings::new(), streams(), Pace::default());
        let mut tick = tokio::time::interval(Duration::from_secs(1));

        let given_up = async {
            for second in 0.. {
                tick.tick().await;
                pace.written.set(100 * second);
                if poll_fn(|cx| Poll::Ready(pings.poll(cx, &pace, &streams))).await.is_err() {
                    return second;
                }
            }
            0
        };

        assert_eq!(given_up.await, 20 + 10 * u64::from(PATIENCE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_or_talks_is_not() {
        let (mut pings, streams, start) = (Pings::new(), streams(), Instant::now());
        let (pace, mut tick) = (Pace::default(), tokio::time::interval(Duration::from_secs(1)));
        for second in 0..300 {
            tick.tick().await;
            // It talks for a while, then takes an answer slowly, then it only answers.
            pace.read.set(second.min(100));
            pace.written.set(100 * second.min(150));
            poll_fn(|cx| Poll::Ready(pings.poll(cx, &pace, &streams))).await.unwrap();
            if pings.is_asked && second > 150 {
                pings.answered();
            }
        }

        assert!(start.elapsed() > Duration::from_secs(290));
        assert!(!streams.borrow().out.is_empty(), "it was asked");
    }
}
