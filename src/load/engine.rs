//! The engine: threads of one current-thread runtime each, which share nothing while they run.
//!
//! Client i belongs to thread i mod T, so who it was last served by needs no lock. Closed loop: lanes that each play
//! one visit after the other. Open loop: a timer of the kernel's wakes the thread when requests are due, and each is begun
//! at once on a connection of its own or a kept one; its latency counts from when it was due.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fault::{Fault, Kind};
use super::lane::Lane;
use super::pacer;
use super::plan::{Pace, Plan};
use super::tally::{Client, Flip, Tally};
use super::version::{AllNames, Names, VersionFrom, VersionId};

/// What all threads of a run see.
#[derive(Debug)]
pub struct Shared {
    pub names: AllNames,
    /// When the run began; all times are since then.
    pub epoch: Instant,
    /// The version that the progress line shows the share of.
    pub watched: Option<VersionId>,
    pub live: Live,
    /// The percentage of a ramp's step, for the progress line.
    step: Mutex<Option<f64>>,
    stop: AtomicBool,
    stopping: watch::Sender<bool>,
    fatal: Mutex<Option<Fault>>,
}

/// Counts for the progress line.
#[derive(Debug, Default)]
pub struct Live {
    pub requests: AtomicU64,
    pub errors: AtomicU64,
    pub flips: AtomicU64,
    /// Visits in all, and those that got the watched version.
    pub visits: AtomicU64,
    pub hits: AtomicU64,
}

impl Shared {
    /// Before a run.
    #[must_use]
    pub fn new(names: AllNames, watched: Option<VersionId>) -> Self {
        Self {
            names,
            epoch: Instant::now(),
            watched,
            live: Live::default(),
            step: Mutex::new(None),
            stop: AtomicBool::new(false),
            stopping: watch::Sender::new(false),
            fatal: Mutex::new(None),
        }
    }

    /// Ends the run; what was measured so far stays.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.stopping.send_replace(true);
    }

    /// A step of a ramp begins: shares are counted anew.
    pub fn begin_step(&self, percent: f64) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = Some(percent);
        self.live.visits.store(0, Ordering::Relaxed);
        self.live.hits.store(0, Ordering::Relaxed);
    }

    /// The step of a ramp that is under way.
    #[must_use]
    pub fn step(&self) -> Option<f64> {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run is over.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The fault that ended the run, if one did.
    #[must_use]
    pub fn fatal(&self) -> Option<Fault> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn abort(&self, fault: &Fault) {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| fault.clone());
        self.stop();
    }
}

/// What a thread owns.
#[derive(Debug)]
pub struct Thread {
    pub plan: Arc<Plan>,
    pub shared: Arc<Shared>,
    pub names: RefCell<Names>,
    state: RefCell<State>,
    index: u32,
    /// The end of the warm-up.
    warm: Instant,
    deadline: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    tally: Tally,
    clients: Vec<Client>,
    cursor: u64,
}

/// One client's turn.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// Of all clients.
    pub client: u32,
    /// Among this thread's.
    pub local: usize,
    pub requests: u32,
}

impl Thread {
    /// The next visit in turn; `None` when the plan is done, the time is up or the run was stopped.
    #[expect(clippy::cast_possible_truncation, reason = "remainders of u32 and usize counts")]
    fn next_visit(&self) -> Option<Visit> {
        if self.shared.stopped() || self.deadline.is_some_and(|d| Instant::now() >= d) {
            return None;
        }
        let mut state = self.state.borrow_mut();
        let count = state.clients.len() as u64;
        let visits = u64::from(self.plan.visits);
        if count == 0 || (!self.plan.repeat && state.cursor >= count * visits) {
            return None;
        }
        let (pass, local) = ((state.cursor / count % visits) as u32, (state.cursor % count) as usize);
        state.cursor += 1;
        // The first visits take what does not divide.
        let requests = self.plan.requests / self.plan.visits + u32::from(pass < self.plan.requests % self.plan.visits);
        Some(Visit { client: self.client(local), local, requests })
    }

    #[expect(clippy::cast_possible_truncation, reason = "a local index times the threads is a client's number")]
    fn client(&self, local: usize) -> u32 {
        self.index + local as u32 * self.plan.threads as u32
    }

    /// The run goes on.
    #[must_use]
    pub fn going(&self, now: Instant) -> bool {
        !self.shared.stopped() && self.deadline.is_none_or(|d| now < d)
    }

    /// Notes a new connection.
    pub fn connected(&self, took: Duration) {
        let tally = &mut self.state.borrow_mut().tally;
        tally.connections += 1;
        tally.handshakes += u64::from(self.plan.target.tls.is_some());
        tally.connect.record(took);
    }

    /// Notes a request that has to be sent again.
    pub fn stale(&self) {
        self.state.borrow_mut().tally.stale += 1;
    }

    /// Notes how late a request was begun that was due then.
    pub fn lag(&self, due: Instant, lag: Duration) {
        if due >= self.warm {
            self.state.borrow_mut().tally.lag.record(lag);
        }
    }

    /// Notes the outcome of a request that counts from `start`.
    pub fn outcome(&self, visit: Visit, first: bool, start: Instant, result: Result<Outcome, Fault>) {
        let now = Instant::now();
        let at = now.saturating_duration_since(self.shared.epoch);
        let live = &self.shared.live;
        live.requests.fetch_add(1, Ordering::Relaxed);
        let state = &mut *self.state.borrow_mut();
        state.tally.attempts += 1;
        let fault = match result {
            Ok(outcome) => {
                state.tally.sent += outcome.sent;
                state.tally.received += outcome.received;
                let bad = outcome.status >= 400 && !matches!(self.plan.version_from, VersionFrom::Status);
                if let Some(version) = outcome.version {
                    let latency = (start >= self.warm).then(|| now.saturating_duration_since(start));
                    state.tally.answer(version, bad, latency, at, first);
                    if first {
                        live.visits.fetch_add(1, Ordering::Relaxed);
                        live.hits.fetch_add(u64::from(self.shared.watched == Some(version)), Ordering::Relaxed);
                    }
                    let before = state.clients.get_mut(visit.local).and_then(|c| c.serve(version));
                    if let Some(from) = before
                        && self.plan.ranges.is_some()
                    {
                        state.tally.flip(Flip { client: visit.client, at, from, to: version });
                        live.flips.fetch_add(1, Ordering::Relaxed);
                    }
                }
                match outcome.version {
                    _ if bad => Some(Fault::new(Kind::Status(outcome.status), outcome.instead.unwrap_or_default())),
                    None => Some(Fault::new(Kind::NoVersion, self.no_version(outcome.instead))),
                    Some(_) => None,
                }
            }
            Err(fault) => Some(fault),
        };
        if let Some(fault) = fault {
            live.errors.fetch_add(1, Ordering::Relaxed);
            if fault.kind.fix().is_some() {
                self.shared.abort(&fault);
            }
            state.tally.fault(fault, at);
        }
    }

    fn no_version(&self, instead: Option<String>) -> String {
        if self.names.borrow().too_many() {
            return format!(
                "more than {} different versions: --version-from {} takes something that differs from response to \
                 response",
                super::version::MOST_VERSIONS,
                self.plan.version_from
            );
        }
        format!("no version by {} in this response:\n{}", self.plan.version_from, instead.unwrap_or_default())
    }
}

/// A complete answer.
#[derive(Debug)]
pub struct Outcome {
    pub status: u16,
    pub version: Option<VersionId>,
    pub sent: u64,
    pub received: u64,
    pub instead: Option<String>,
}

/// After a stop, requests in flight have this long.
const GRACE: Duration = Duration::from_millis(500);

/// Plays the plan once with `clients`, and gives them back with what was counted.
///
/// # Errors
/// When a thread or its runtime cannot be made.
pub fn run(plan: &Arc<Plan>, shared: &Arc<Shared>, clients: Vec<Client>) -> std::io::Result<(Tally, Vec<Client>)> {
    let threads = plan.threads;
    let start = Instant::now();
    let total = clients.len();
    let mut parts: Vec<Vec<Client>> = (0..threads).map(|_| Vec::with_capacity(total / threads + 1)).collect();
    for (index, client) in clients.into_iter().enumerate() {
        if let Some(part) = parts.get_mut(index % threads) {
            part.push(client);
        }
    }
    let handles: Vec<_> = parts
        .into_iter()
        .enumerate()
        .map(|(index, part)| {
            let (plan, shared) = (Arc::clone(plan), Arc::clone(shared));
            std::thread::Builder::new()
                .name(format!("load-{index}"))
                .spawn(move || thread(plan, shared, index, start, part))
        })
        .collect::<std::io::Result<_>>()?;
    let mut tally = Tally::default();
    let mut parts = Vec::with_capacity(threads);
    for handle in handles {
        let (part, clients) = handle.join().map_err(|_| std::io::Error::other("a load thread panicked"))??;
        tally.add(part);
        parts.push(clients.into_iter());
    }
    let clients = (0..total).filter_map(|index| parts.get_mut(index % threads).and_then(Iterator::next)).collect();
    Ok((tally, clients))
}

fn thread(
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    index: usize,
    start: Instant,
    clients: Vec<Client>,
) -> std::io::Result<(Tally, Vec<Client>)> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let thread = Rc::new(Thread {
        names: RefCell::new(Names::new(shared.names.clone())),
        state: RefCell::new(State { clients, ..State::default() }),
        index: u32::try_from(index).unwrap_or(u32::MAX),
        warm: start + plan.warm_up,
        deadline: plan.duration.map(|d| start + d),
        plan,
        shared,
    });
    runtime.block_on(async {
        let mut stopping = thread.shared.stopping.subscribe();
        let stopped = async {
            // The sender lives as long as `thread`.
            stopping.wait_for(|stop| *stop).await.ok();
            tokio::time::sleep(GRACE).await;
        };
        let work = async {
            match thread.plan.pace {
                Pace::Closed => closed(&thread).await,
                Pace::Open { rate } => open(&thread, start, rate).await,
            }
        };
        tokio::select! {
            () = work => {}
            () = stopped => {}
        }
    });
    // Tasks that were still waiting end here.
    drop(runtime);
    let state = thread.state.take();
    Ok((state.tally, state.clients))
}

/// Lanes of this thread: an equal part of the concurrency.
fn lanes(plan: &Plan, index: usize) -> usize {
    plan.concurrency / plan.threads + usize::from(index < plan.concurrency % plan.threads)
}

async fn closed(thread: &Rc<Thread>) {
    let mut all = JoinSet::new();
    for _ in 0..lanes(&thread.plan, thread.index as usize).max(1) {
        let thread = Rc::clone(thread);
        all.spawn_local(async move {
            let mut lane = Lane::new(&thread.plan);
            while let Some(visit) = thread.next_visit() {
                for number in 0..visit.requests {
                    if number > 0 && !thread.going(Instant::now()) {
                        break;
                    }
                    lane.request(&thread, visit, number == 0, None).await;
                }
                lane.end_of_visit(&thread.plan);
            }
        });
    }
    while all.join_next().await.is_some() {}
}

/// Requests of an open loop that are begun in one go.
const BATCH: u64 = 64;

async fn open(thread: &Rc<Thread>, start: Instant, rate: f64) {
    let plan = &thread.plan;
    let count = thread.state.borrow().clients.len() as u64;
    if count == 0 {
        return;
    }
    let arrivals = pacer::Arrivals {
        start,
        rate,
        first: u64::from(thread.index),
        stride: plan.threads as u64,
        total: (!plan.repeat).then(|| count * u64::from(plan.requests)),
        duration: plan.duration,
    };
    let alarm = match pacer::Alarm::new() {
        Ok(alarm) => alarm,
        Err(error) => return thread.shared.abort(&Fault::new(Kind::ConnectFailed, format!("timer: {error}"))),
    };
    let pool = Rc::new(super::lane::Pool::new(lanes(plan, thread.index as usize).max(1)));
    let mut all = JoinSet::new();
    let mut arrival = 0;
    while arrivals.exists(arrival) && !thread.shared.stopped() {
        let intended = arrivals.at(arrival);
        if intended > Instant::now() {
            if let Err(error) = alarm.until(intended).await {
                return thread.shared.abort(&Fault::new(Kind::ConnectFailed, format!("timer: {error}")));
            }
            continue;
        }
        let (thread, pool) = (Rc::clone(thread), Rc::clone(&pool));
        let local = usize::try_from(arrival % count).unwrap_or(0);
        let visit = Visit { client: thread.client(local), local, requests: 1 };
        all.spawn_local(async move {
            let mut lane = pool.lane(&thread.plan, visit.client).await;
            lane.request(&thread, visit, true, Some(intended)).await;
            pool.give_back(&thread.plan, visit.client, lane);
        });
        arrival += 1;
        // Finished ones are taken out as we go, or the set would grow with the run.
        while all.try_join_next().is_some() {}
        if arrival.is_multiple_of(BATCH) {
            // Who has fallen behind still lets those that were begun go on.
            tokio::task::yield_now().await;
        }
    }
    while all.join_next().await.is_some() {}
}

/// Sends one request as client 0 and tells what is wrong with its answer, before thousands meet the same.
///
/// # Errors
/// The fault that every client would have.
pub fn probe(plan: &Arc<Plan>) -> Result<(), Fault> {
    let unusable = |e: &std::io::Error| Fault::new(Kind::ConnectFailed, format!("runtime: {e}"));
    let runtime =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).map_err(|e| unusable(&e))?;
    let shared = Arc::new(Shared::new(AllNames::default(), None));
    let thread = Rc::new(Thread {
        names: RefCell::new(Names::new(shared.names.clone())),
        state: RefCell::new(State { clients: vec![Client::default()], ..State::default() }),
        index: 0,
        warm: shared.epoch,
        deadline: None,
        plan: Arc::clone(plan),
        shared,
    });
    runtime.block_on(async {
        Lane::new(plan).request(&thread, Visit { client: 0, local: 0, requests: 1 }, true, None).await;
    });
    let fault = thread.state.borrow_mut().tally.faults.pop_first();
    match fault {
        // A version that answers with errors is a result, not an obstacle.
        None | Some((Kind::Status(_), _)) => Ok(()),
        Some((kind, tally)) => Err(Fault::new(kind, tally.first)),
    }
}
