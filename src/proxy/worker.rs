//! A worker: one thread with its own runtime, its own sockets and its own endpoint connections. Nothing on the path of a
//! request is shared with another worker but atomics and the pin table's shards.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::time::Instant;

use super::buffer::Buffers;
use super::connection::Registry;
use super::multiplex::Multiplexed;
use super::upstream::Pool;
use super::watchdog::Kennel;
use crate::access_log::AccessLog;
use crate::config;
use crate::decide::shedding::Shedding;
use crate::decide::split::weyl;
use crate::endpoint_tls::EndpointsTls;
use crate::state::clock::Clock;
use crate::state::heartbeat::{Heart, Heartbeats};
use crate::state::pins::Pins;
use crate::state::pressure::Pressure;
use crate::state::publish::{Published, Reader};
use crate::state::snapshot::Snapshot;

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    pub published: Published,
    pub pins: Arc<Pins>,
    pub access_log: AccessLog,
    pub clock: Clock,
    pub endpoints_tls: EndpointsTls,
    /// Open connections of all listeners and workers.
    pub connections: AtomicUsize,
    pub heartbeats: Heartbeats,
    pub pressure: Pressure,
}

/// One thread's part of the data path.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) buffers: Rc<Buffers>,
    pub(crate) pool: Pool,
    pub(crate) multiplexed: Multiplexed,
    pub(crate) kennel: Kennel,
    pub(crate) registry: Rc<Registry>,
    heart: Arc<Heart>,
    reader: RefCell<Reader>,
    /// The reader's snapshot behind a count of this thread's own: requests of two workers don't fight for one line.
    #[expect(clippy::redundant_allocation, reason = "the second count is the point")]
    current: RefCell<Rc<Arc<Snapshot>>>,
    log_config: Cell<config::AccessLog>,
    rolls: Cell<u64>,
    roll_start: u64,
    log_rolls: Cell<u64>,
    ids: Cell<u64>,
    id_prefix: u64,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let mut reader = shared.published.reader();
        let first = reader.load().clone();
        // The standard library's hasher is seeded by the operating system: no other source of chance is needed.
        let chance = |n: u64| RandomState::new().hash_one(n);
        Self {
            buffers: Rc::default(),
            pool: Pool::default(),
            multiplexed: Multiplexed::default(),
            kennel: Kennel::default(),
            registry: Rc::default(),
            heart: shared.heartbeats.join(),
            reader: RefCell::new(reader),
            log_config: Cell::new(first.config.access_log),
            current: RefCell::new(Rc::new(first)),
            shared,
            rolls: Cell::new(0),
            roll_start: chance(1),
            log_rolls: Cell::new(0),
            ids: Cell::new(0),
            id_prefix: chance(2),
        }
    }

    /// The current picture.
    #[expect(clippy::redundant_allocation, reason = "the second count is the point")]
    pub(crate) fn snapshot(&self) -> Rc<Arc<Snapshot>> {
        let mut reader = self.reader.borrow_mut();
        let newest = reader.load();
        let mut current = self.current.borrow_mut();
        if !Arc::ptr_eq(newest, &current) {
            self.log_config.set(newest.config.access_log);
            *current = Rc::new(newest.clone());
        }
        current.clone()
    }

    pub(crate) fn access_log_config(&self) -> config::AccessLog {
        self.log_config.get()
    }

    /// Milliseconds of the process's clock at `instant`.
    pub(crate) fn millis(&self, instant: Instant) -> u64 {
        self.shared.clock.at(instant.into_std())
    }

    pub(crate) fn now_millis(&self) -> u64 {
        self.shared.clock.now()
    }

    /// The next point of this worker's low-discrepancy sequence.
    pub(crate) fn next_roll(&self) -> u64 {
        let n = self.rolls.get();
        self.rolls.set(n.wrapping_add(1));
        weyl(n, self.roll_start)
    }

    pub(crate) fn next_log_roll(&self) -> u64 {
        let n = self.log_rolls.get();
        self.log_rolls.set(n.wrapping_add(1));
        n
    }

    /// 32 hex digits that no other request has.
    pub(crate) fn next_request_id(&self) -> [u8; 32] {
        let n = self.ids.get();
        self.ids.set(n.wrapping_add(1));
        let mut id = [b'0'; 32];
        let bits = u128::from(self.id_prefix) << 64 | u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for (i, digit) in id.iter_mut().enumerate() {
            let nibble = u8::try_from(bits >> (4 * (31 - i)) & 15).unwrap_or_default();
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        }
        id
    }

    /// Housekeeping of this thread, about once a second.
    pub(crate) fn sweep(&self) {
        self.heart.beat();
        // Lets go of an old snapshot too, when no request has come since.
        drop(self.snapshot());
        let is_short = self.shared.pressure.shedding() >= Shedding::KeepAlive;
        self.registry.save(is_short);
        self.buffers.save(is_short);
        self.pool.sweep(if is_short { u64::MAX } else { self.now_millis() });
        self.multiplexed.sweep(self.now_millis());
    }

    /// How long a request may take from now on once a drain's deadline is known.
    pub(crate) fn start_drain(&self, spread: Duration) {
        self.registry.drain(spread);
    }
}
