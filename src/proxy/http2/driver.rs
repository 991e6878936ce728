//! A client's HTTP/2 connection, driven to its end: its greeting, its streams, each in a task of its own, and its pings.
//!
//! `h2` itself and not hyper's server: a stream then costs one task and no adapters, and who sends a body knows when its
//! client takes nothing. It knows no deadlines but the ping's.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, Handshake};
use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use super::coalesce::Coalesce;
use super::{ActiveStream, Session, answer};
use crate::proxy::stream::Stream;

/// An idle peer is asked whether it is still there (reliability.md D8).
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

type Io = Coalesce<Stream>;

/// One connection.
pub(super) struct Driver {
    session: Rc<Session>,
    state: State,
    is_closing: bool,
}

enum State {
    Greeting(Box<Handshake<Io, Bytes>>),
    Open(Box<Connection<Io, Bytes>>, Pings),
}

impl Driver {
    pub(super) fn new(session: Rc<Session>, greeting: Handshake<Io, Bytes>) -> Self {
        Self { session, state: State::Greeting(Box::new(greeting)), is_closing: false }
    }

    /// Takes no more streams; those under way may end.
    pub(super) fn close(&mut self) {
        self.is_closing = true;
        if let State::Open(http, _) = &mut self.state {
            http.graceful_shutdown();
        }
    }

    /// Ready at the connection's end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if let State::Greeting(greeting) = &mut self.state {
            let mut http = Box::new(ready!(Pin::new(greeting).poll(cx))?);
            if self.is_closing {
                http.graceful_shutdown();
            }
            let pings = Pings::new(http.ping_pong());
            self.state = State::Open(http, pings);
        }
        let State::Open(http, pings) = &mut self.state else { return Poll::Pending };
        loop {
            match http.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    // Counted from here on, not from the first poll of its task: the connection is not idle.
                    let stream = ActiveStream::new(self.session.clone());
                    // Boxed: tokio moves a task's future several times before it is first polled.
                    tokio::task::spawn_local(Box::pin(answer(self.session.clone(), request, respond, stream)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        // After the connection was read: an answer may just have come.
        pings.poll(cx, self.session.pace.read.get()).map(|()| Err(Broken::Silent))
    }
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Http(#[from] h2::Error),
    #[error("no answer to a PING")]
    Silent,
}

/// Asks a silent client whether it is still there.
struct Pings {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    is_asked: bool,
    /// Bytes that had come when the timer was last set.
    read: u64,
}

impl Pings {
    fn new(pings: Option<PingPong>) -> Self {
        Self { pings, timer: Box::pin(sleep(PING_EVERY)), is_asked: false, read: 0 }
    }

    /// Ready when a question was not answered in time. `read`: bytes that came so far.
    fn poll(&mut self, cx: &mut Context<'_>, read: u64) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        loop {
            if self.is_asked && pings.poll_pong(cx).is_ready() {
                self.is_asked = false;
                self.timer.as_mut().reset(Instant::now() + PING_EVERY);
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.is_asked {
                return Poll::Ready(());
            }
            // One that said something is there.
            let is_silent = std::mem::replace(&mut self.read, read) == read;
            self.is_asked = is_silent && pings.send_ping(Ping::opaque()).is_ok();
            self.timer.as_mut().reset(Instant::now() + if self.is_asked { PING_TIMEOUT } else { PING_EVERY });
        }
    }
}
