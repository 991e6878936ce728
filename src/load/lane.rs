//! A lane plays requests one after the other over one connection, and opens another when it has to.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::connect::{Stream, connect};
use super::engine::{Outcome, Thread, Visit};
use super::fault::Fault;
use super::http1::{self, Reading, Room};
use super::http2::Http2;
use super::identity::Identity;
use super::plan::{Call, Plan, Protocol};
use crate::decide::split::weyl;

/// One request at a time.
#[derive(Debug)]
pub struct Lane {
    connection: Option<Connection>,
    room: Room,
    request: Vec<u8>,
    /// Counts requests, to choose among several URLs.
    turn: u64,
    /// Failures in a row: a server that refuses is not asked a million times a second.
    failures: u32,
    permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Connection {
    wire: Wire,
    used: bool,
}

#[derive(Debug)]
enum Wire {
    Http1(Stream),
    Http2(Http2),
}

/// The longest pause after failures in a row.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

impl Lane {
    /// Without a connection yet.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self {
            connection: None,
            room: Room::new(plan.timeout),
            request: Vec::with_capacity(512),
            turn: 0,
            failures: 0,
            permit: None,
        }
    }

    /// Sends one request of `visit` and notes what came of it. Its latency counts from `intended`, or from when the
    /// connection is there.
    pub async fn request(&mut self, thread: &Rc<Thread>, visit: Visit, first: bool, intended: Option<Instant>) {
        let mut start = Instant::now();
        if let Some(intended) = intended {
            thread.lag(intended, start.saturating_duration_since(intended));
            start = intended;
        }
        let mut result = self.attempt(thread, visit, intended, &mut start).await;
        if matches!(&result, Err(fault) if fault.stale) {
            thread.stale();
            self.connection = None;
            result = self.attempt(thread, visit, intended, &mut start).await;
        }
        let failed = result.is_err();
        if failed || !thread.plan.keepalive {
            self.connection = None;
        }
        thread.outcome(visit, first, start, result);
        if failed && intended.is_none() {
            self.failures += 1;
            tokio::time::sleep(LONGEST_PAUSE.min(Duration::from_millis(1) * self.failures)).await;
        } else {
            self.failures = 0;
        }
    }

    async fn attempt(
        &mut self,
        thread: &Rc<Thread>,
        visit: Visit,
        intended: Option<Instant>,
        start: &mut Instant,
    ) -> Result<Outcome, Fault> {
        let plan = &*thread.plan;
        let call = self.next_call(plan);
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let began = Instant::now();
                let stream = connect(plan, visit.client).await?;
                let wire = match plan.protocol {
                    Protocol::Http1 => Wire::Http1(stream),
                    Protocol::Http2 => Wire::Http2(Http2::new(stream).await?),
                };
                let now = Instant::now();
                thread.connected(now - began);
                if intended.is_none() {
                    *start = now;
                }
                Connection { wire, used: false }
            }
        };
        let reading = Reading { version_from: &plan.version_from, head_only: plan.target.head_only };
        let used = std::mem::replace(&mut connection.used, true);
        let (answer, sent) = match &mut connection.wire {
            Wire::Http1(stream) => {
                self.write_request(plan, call, visit);
                let (request, room) = (&self.request, &mut self.room);
                // The time limit is the request's own, even when it was begun late.
                let now = if intended.is_some() { Instant::now() } else { *start };
                let answer = http1::exchange(stream, used, request, now, reading, room, &thread.names).await?;
                (answer, request.len() as u64)
            }
            Wire::Http2(http2) => {
                let mut request = http::Request::from_parts(call.request.clone(), Full::new(call.body.clone()));
                if let Some(address) = forwarded(plan, visit)
                    && let Ok(value) = http::HeaderValue::from_maybe_shared(bytes::Bytes::from(address))
                {
                    request.headers_mut().insert("x-forwarded-for", value);
                }
                http2.exchange(used, request, plan.timeout, reading, &thread.names).await?
            }
        };
        if answer.reusable {
            self.connection = Some(connection);
        }
        Ok(Outcome {
            status: answer.status,
            version: answer.version,
            sent,
            received: answer.received,
            instead: answer.instead,
        })
    }

    fn next_call<'p>(&mut self, plan: &'p Plan) -> &'p Call {
        let calls = &plan.target.calls;
        let at = if calls.len() > 1 { plan.target.choice.version_at(weyl(self.turn, 0), |_| true) } else { None };
        self.turn += 1;
        calls.get(at.unwrap_or(0)).unwrap_or_else(|| unreachable!("a target has a call for each of its weights"))
    }

    fn write_request(&mut self, plan: &Plan, call: &Call, visit: Visit) {
        self.request.clear();
        self.request.extend_from_slice(&call.head);
        if let Some(address) = forwarded(plan, visit) {
            self.request.extend_from_slice(b"x-forwarded-for: ");
            self.request.extend_from_slice(address.as_bytes());
            self.request.extend_from_slice(b"\r\n");
        }
        self.request.extend_from_slice(b"\r\n");
        self.request.extend_from_slice(&call.body);
    }

    /// The next visit is another client's: a connection of this one's own ends.
    pub fn end_of_visit(&mut self, plan: &Plan) {
        if plan.identity.owns_connections() {
            self.connection = None;
        }
    }
}

fn forwarded(plan: &Plan, visit: Visit) -> Option<String> {
    match (&plan.ranges, plan.identity) {
        (Some(ranges), Identity::Xff) => Some(ranges.address(visit.client).to_string()),
        _ => None,
    }
}

/// The lanes of an open loop: at most so many busy at a time, idle ones by the client whose connection they hold.
///
/// When there are more clients than room for idle lanes, the first ones keep theirs: clients come in turn, so dropping
/// the least recently used one would drop exactly the one that comes next.
#[derive(Debug)]
pub struct Pool {
    idle: RefCell<HashMap<u32, Vec<Lane>>>,
    idle_count: Cell<usize>,
    busy: Arc<Semaphore>,
    most: usize,
    turns: Cell<u64>,
}

impl Pool {
    /// Of at most `most` lanes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            idle: RefCell::default(),
            idle_count: Cell::new(0),
            busy: Arc::new(Semaphore::new(most)),
            most,
            turns: Cell::new(0),
        }
    }

    const fn key(plan: &Plan, client: u32) -> u32 {
        if plan.identity.owns_connections() { client } else { 0 }
    }

    /// A lane for `client`, with its open connection if there is one. Waits while all are busy.
    pub async fn lane(&self, plan: &Plan, client: u32) -> Lane {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.busy).acquire_owned().await.ok();
        let kept = self.idle.borrow_mut().get_mut(&Self::key(plan, client)).and_then(Vec::pop);
        let mut lane = match kept {
            Some(lane) => {
                self.idle_count.set(self.idle_count.get() - 1);
                lane
            }
            None => Lane::new(plan),
        };
        // Each arrival of one client takes its own turn among the URLs.
        lane.turn = self.turns.replace(self.turns.get() + 1);
        lane.permit = permit;
        lane
    }

    /// Keeps a lane whose connection can be used again.
    pub fn give_back(&self, plan: &Plan, client: u32, mut lane: Lane) {
        lane.permit = None;
        if lane.connection.is_some() && self.idle_count.get() < self.most {
            self.idle.borrow_mut().entry(Self::key(plan, client)).or_default().push(lane);
            self.idle_count.set(self.idle_count.get() + 1);
        }
    }
}
