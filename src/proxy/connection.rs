//! What is known of a client's connection for as long as it lives, and how a drain reaches it.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::tls::Certificate;
use crate::state::snapshot::Listener;

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The listener's settings when it was accepted; routes are taken from the snapshot of each request.
    pub(crate) listener: Arc<Listener>,
    /// The socket's other end.
    pub(crate) peer: SocketAddr,
    /// The peer, or what PROXY protocol said.
    pub(crate) client: IpAddr,
    /// `client` as it goes into `X-Forwarded-For`; made once.
    pub(crate) client_text: Vec<u8>,
    pub(crate) is_tls: bool,
    pub(crate) tls_version: Option<&'static str>,
    /// What the client was shown.
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// What endpoints are told of the certificate that the client showed.
    pub(crate) client_identity: Option<Box<[u8]>>,
    pub(crate) seat: Seat,
}

/// A worker's open connections, so that a drain can wake each of them.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
    taken: Cell<usize>,
    draining: Cell<Option<Draining>>,
    /// Since when memory is short.
    saving: Cell<Option<Instant>>,
    emptied: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Draining {
    since: Instant,
    spread: Duration,
}

/// One connection's place in the registry.
#[derive(Debug)]
pub(crate) struct Seat {
    registry: Rc<Registry>,
    index: usize,
    taken: Instant,
}

/// For all connections to close when memory is short: soon, and not all in one moment.
const SAVING_SPREAD: Duration = Duration::from_secs(2);

/// While memory is short a new connection is for what comes within this time, so that nobody gets a handshake for nothing.
const SAVING_LEAST: Duration = Duration::from_secs(1);

impl Registry {
    pub(crate) fn seat(self: &Rc<Self>) -> Seat {
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut wakers = self.wakers.borrow_mut();
            wakers.push(None);
            wakers.len() - 1
        });
        self.taken.set(self.taken.get() + 1);
        Seat { registry: self.clone(), index, taken: Instant::now() }
    }

    /// Open connections.
    pub(crate) fn len(&self) -> usize {
        self.taken.get()
    }

    /// Ready when the last connection has ended.
    pub(crate) async fn emptied(&self) {
        self.emptied.notified().await;
    }

    /// From now on connections close, each at its own time within `spread`.
    pub(crate) fn drain(&self, spread: Duration) {
        self.draining.set(Some(Draining { since: Instant::now(), spread }));
        self.wake();
    }

    /// Memory is short: from now on connections close when they are idle or their requests end; or it no longer is.
    pub(crate) fn save(&self, on: bool) {
        match (on, self.saving.get()) {
            (true, None) => {
                self.saving.set(Some(Instant::now()));
                self.wake();
            }
            (false, Some(_)) => self.saving.set(None),
            (true, Some(_)) | (false, None) => {}
        }
    }

    fn wake(&self) {
        for waker in self.wakers.borrow().iter().flatten() {
            waker.wake_by_ref();
        }
    }
}

impl Seat {
    /// Has a drain wake this task. To be called whenever a connection may wait for its client's next request.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        if let Some(slot) = self.registry.wakers.borrow_mut().get_mut(self.index)
            && !slot.as_ref().is_some_and(|w| w.will_wake(cx.waker()))
        {
            *slot = Some(cx.waker().clone());
        }
    }

    /// While draining, or short of memory: when this connection is to be closed. Spread, so that not all clients reconnect
    /// at once.
    pub(crate) fn closes_at(&self) -> Option<Instant> {
        let drains = self.registry.draining.get().map(|d| d.since + self.part_of(d.spread));
        drains.or_else(|| {
            let saves = self.registry.saving.get()? + self.part_of(SAVING_SPREAD);
            Some(saves.max(self.taken + SAVING_LEAST))
        })
    }

    fn part_of(&self, spread: Duration) -> Duration {
        // A number between 0 and 65535 that differs between neighbours.
        let part = ((self.index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32;
        spread.mul_f64(f64::from(part) / 65536.0)
    }

    /// This connection's time has come.
    pub(crate) fn must_close(&self) -> bool {
        self.closes_at().is_some_and(|at| at <= Instant::now())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(slot) = self.registry.wakers.borrow_mut().get_mut(self.index) {
            *slot = None;
        }
        self.registry.free.borrow_mut().push(self.index);
        self.registry.taken.set(self.registry.taken.get() - 1);
        if self.registry.taken.get() == 0 {
            self.registry.emptied.notify_one();
        }
    }
}
