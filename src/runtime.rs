//! Puts the parts together: workers, writer, checks, resolver, admin, reload, drain.
//!
//! Everything but the workers runs on one control thread, so that a scrape or a resync cannot delay a request. A start
//! and a reload take the same steps: parse, certificates, sockets, snapshot; whatever fails, nothing has changed. `serve`
//! and `demo` both start here, from the same loader.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access_log::AccessLog;
use crate::admin::{self, AdminState};
use crate::config::{Invalid, Loaded, Problem};
use crate::control::file::FileWatch;
use crate::control::writer::Writer;
use crate::control::{checks, kubernetes, memory, panic, ramp, resolve, store};
use crate::endpoint_tls::EndpointsTls;
use crate::metrics;
use crate::proxy::worker::Shared;
use crate::proxy::workers::Workers;
use crate::readiness::Readiness;
use crate::state::clock::Clock;
use crate::state::heartbeat::Heartbeats;
use crate::state::inheritance::take_pins;
use crate::state::pins::Pins;
use crate::state::pressure::Pressure;

use self::prepare::{Open, bind_admin, bind_first, read_certificates, read_endpoints_tls, watched};
use self::supervisor::Supervisor;
use self::upgrade::Phase;

mod given;
pub mod notify;
mod prepare;
mod supervisor;
mod upgrade;

pub use self::given::{BadDescriptor, Given};
pub use self::upgrade::{NoPredecessor, Predecessor};

/// How often a process that takes over looks whether it is ready.
const LOOK: Duration = Duration::from_millis(10);

/// For a Lease; without an answer of the API server it expires.
const GIVE_BACK: Duration = Duration::from_secs(1);

/// Why perch does not start, or does not take a configuration over.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Invalid(Invalid),
    /// A port in use, an address that isn't ours: the file may be right, this machine is not ready for it.
    #[error("{0}")]
    Bind(Problem),
    #[error(transparent)]
    Build(#[from] crate::state::model::BuildError),
    #[error(transparent)]
    Control(#[from] crate::control::writer::ControlError),
    #[error(transparent)]
    State(#[from] store::OpenError),
    #[error(transparent)]
    SharedState(#[from] kubernetes::state::OpenError),
    #[error("the system gives perch no thread or event queue: {0}")]
    System(#[from] io::Error),
}

/// A running perch.
#[derive(Debug)]
pub struct Running {
    /// In the config's order, with the ports really bound.
    pub listeners: Vec<(Arc<str>, SocketAddr)>,
    pub admin: SocketAddr,
    /// For those in the same process that watch it (the demo's view).
    pub state: AdminState,
    orders: mpsc::UnboundedSender<Order>,
    thread: JoinHandle<()>,
    phase: watch::Receiver<Phase>,
    /// Until it is told that this process serves, and what to do when it is gone.
    predecessor: Mutex<Option<Predecessor>>,
    before_is_gone: CancellationToken,
}

/// What a process finds when it starts.
#[derive(Debug, Default)]
pub struct Origin {
    /// The cluster to follow where the configuration says so.
    pub cluster: kubernetes::Options,
    /// Sockets that are open already.
    pub given: Given,
    /// The perch to take over from.
    pub predecessor: Option<Predecessor>,
}

enum Order {
    Reload,
    Upgrade,
    Drain { with_delay: bool, done: oneshot::Sender<Drained> },
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that the deadline cut.
    pub cut: usize,
}

/// Starts perch from a configuration. With `file`, changes of that file and of the certificates are taken over live.
///
/// # Errors
/// With every problem found; nothing listens then.
pub fn start(loaded: Loaded, file: Option<PathBuf>) -> Result<Running, StartError> {
    start_with(loaded, file, Origin::default())
}

/// As [`start`], with what the process finds.
///
/// # Errors
/// See [`start`].
pub fn start_with(loaded: Loaded, file: Option<PathBuf>, origin: Origin) -> Result<Running, StartError> {
    let Origin { cluster, mut given, mut predecessor } = origin;
    let Loaded { config, warnings, places } = loaded;
    for warning in warnings {
        warn!("{warning}");
    }
    let tls = read_certificates(&config, &places, &BTreeMap::new())?;
    let endpoints_tls = EndpointsTls::default();
    endpoints_tls.keep(read_endpoints_tls(&endpoints_tls, &config, &places)?);
    let count = config.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let admin_socket = bind_admin(&config, &places, &mut given)?;
    let mut bound = Vec::new();
    for (position, listener) in config.listeners.iter().enumerate() {
        bound.push((listener.name.clone(), bind_first(position, listener, count, &places, &mut given)?));
    }
    given.close_rest();
    let admin_asked = config.admin.address;
    let left = predecessor.as_mut().map(Predecessor::prepared).unwrap_or_default();

    let clock = predecessor.as_ref().map_or_else(Clock::start, |before| before.clock);
    let pins = Arc::new(Pins::new(config.pins.max_entries));
    let control_runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let watch = {
        let _entered = control_runtime.enter();
        FileWatch::new(watched(&config, file.as_ref()))
    };
    let listener_configs = config.listeners.clone();
    let readiness = Readiness::new();
    let known = cluster.cache.as_deref().map(kubernetes::cache::load).unwrap_or_default();
    let first_picture = (kubernetes::is_needed(&config) && !kubernetes::suffices(&config, &known))
        .then(|| readiness.wait_for("kubernetes"));
    let (store, rollouts, shared_state) = match &config.shared_state {
        None => {
            let (store, stored) = store::open(config.state_dir.as_deref())?;
            // What the perch before had in force counts, stored or not.
            let before = &left.inheritance.rollouts;
            (store, if before.sequence > stored.sequence { before.clone() } else { stored }, None)
        }
        Some(state) => {
            let opened = control_runtime.block_on(kubernetes::state::open(&cluster, state))?;
            let (store, rollouts, is_known, mut shared) = opened;
            // The file's weights may not be those that the other replicas have.
            shared.first = (!is_known).then(|| readiness.wait_for("rollouts"));
            (store, rollouts, Some(shared))
        }
    };
    let start = Writer::start_with(config, clock, pins.clone(), store, rollouts, left.inheritance.clone());
    let (mut writer, control) = control_runtime.block_on(start)?;
    writer.remember(known)?;
    metrics::start();
    let access_log = AccessLog::stdout()?;
    let (heartbeats, pressure) = (Heartbeats::default(), Pressure::default());
    let shared = Arc::new(Shared {
        published: control.published().clone(),
        pins: pins.clone(),
        access_log: access_log.clone(),
        clock,
        endpoints_tls: endpoints_tls.clone(),
        connections: AtomicUsize::new(0),
        heartbeats: heartbeats.clone(),
        pressure: pressure.clone(),
    });
    let workers = Workers::start(count, &shared)?;

    readiness.reload_succeeded(SystemTime::now());
    let state = AdminState {
        published: control.published().clone(),
        pins: pins.clone(),
        clock,
        readiness: readiness.clone(),
        control: control.clone(),
        heartbeats,
        pressure: pressure.clone(),
        live: admin::Live::default(),
    };
    let admin = admin_socket.local_addr()?;
    let admin_again = admin_socket.try_clone()?;
    let (orders, receiver) = mpsc::unbounded_channel();
    let (ask, questions) = kubernetes::channel();
    let (begin, begun) = oneshot::channel::<Supervisor>();
    let (for_tasks, stop) = (control.clone(), CancellationToken::new());
    let stopped = stop.clone();
    let admin_state = state.clone();
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        control_runtime.block_on(async move {
            let (control, stop) = (for_tasks, stopped);
            // Alone, this replica leads.
            let (lead, leads) = watch::channel(shared_state.is_none());
            let (followed, is_over) = (control.clone(), stop.clone());
            let sharing = tokio::spawn(async move {
                match shared_state {
                    Some(shared) => kubernetes::state::run(followed, clock, shared, lead, is_over).await,
                    None => is_over.cancelled().await,
                }
            });
            let tasks = [
                tokio::spawn(writer.run()),
                tokio::spawn(checks::run(control.clone(), endpoints_tls, clock)),
                tokio::spawn(panic::run(control.clone(), clock)),
                tokio::spawn(memory::run(control.clone(), pressure)),
                tokio::spawn(resolve::run(control.clone())),
                tokio::spawn(while_it_may(stop.clone(), ramp::run(control.clone(), clock, leads))),
                tokio::spawn(kubernetes::run(control, cluster, clock, first_picture, questions)),
            ];
            if let Ok(supervisor) = begun.await {
                let admin = tokio::spawn(admin::serve(admin_socket, admin_state, stop.clone()));
                supervisor.run(receiver).await;
                stop.cancel();
                admin.await.ok();
            }
            // The Lease is given back, so that another leads at once.
            tokio::time::timeout(GIVE_BACK, sharing).await.ok();
            for task in tasks {
                task.abort();
            }
        });
    })?;

    if let Some(before) = &predecessor {
        // The other one serves meanwhile, and ends this process when it takes too long.
        while !readiness.is_ready() && !thread.is_finished() {
            if before.is_gone() {
                warn!("The old perch has gone before this one was ready; accepting at once.");
                break;
            }
            std::thread::sleep(LOOK);
        }
        take_pins(&pins, &left.pins, &left.inheritance, &control.snapshot());
        state.live.inherit(&left.metrics);
    }
    let mut listeners = BTreeMap::new();
    let mut addresses = Vec::new();
    for ((listener, tls), (name, bound)) in listener_configs.iter().zip(tls).zip(bound) {
        addresses.push((name.clone(), bound.address));
        info!(listener = %name, address = %bound.address, tls = tls.is_some(), "Listening.");
        listeners.insert(name.clone(), Open { asked: listener.address, bound: bound.address, tls: tls.clone() });
        workers.listen(&name, bound, tls.as_ref());
    }
    let (phase, phases) = watch::channel(Phase::Serving);
    let before_is_gone = CancellationToken::new();
    let supervisor = Supervisor {
        file,
        watch,
        control,
        cluster: ask,
        workers,
        listeners,
        readiness,
        shared,
        access_log,
        state: state.clone(),
        admin_socket: Some(admin_again),
        admin_asked,
        stop,
        phase,
        before_is_gone: before_is_gone.clone(),
    };
    supervisor.show_certificates();
    // A control thread that has died already is seen by whoever asks it for something.
    begin.send(supervisor).ok();
    let predecessor = Mutex::new(predecessor);
    Ok(Running { listeners: addresses, admin, state, orders, thread, phase: phases, predecessor, before_is_gone })
}

/// Until another perch does it.
async fn while_it_may(stop: CancellationToken, work: impl Future<Output = ()>) {
    stop.run_until_cancelled(work).await;
}

impl Running {
    /// Reads the configuration again.
    pub fn reload(&self) {
        self.order(Order::Reload);
    }

    /// Another perch is to take over.
    pub fn upgrade(&self) {
        if *self.phase.borrow() != Phase::Serving {
            warn!("Another perch has taken over already; it is the one to upgrade now.");
            return;
        }
        self.order(Order::Upgrade);
    }

    /// This process serves, and can be asked for all that it does: the perch that it takes over from may drain.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn ready(&self) -> io::Result<()> {
        let before = self.predecessor.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (live, is_gone) = (self.state.live.clone(), self.before_is_gone.clone());
        let Some(before) = before else {
            is_gone.cancel();
            return Ok(());
        };
        std::thread::Builder::new().name("predecessor".to_owned()).spawn(move || {
            before.ready(&live);
            is_gone.cancel();
        })?;
        Ok(())
    }

    /// Ready when another perch has taken over.
    pub async fn is_taken_over(&self) {
        if self.phase.clone().wait_for(|phase| *phase != Phase::Serving).await.is_err() {
            std::future::pending().await
        }
    }

    /// How the drain that follows on [`Self::is_taken_over`] ended.
    pub async fn left(&self) -> Drained {
        let mut phase = self.phase.clone();
        match phase.wait_for(|phase| matches!(phase, Phase::Left(_))).await.as_deref() {
            Ok(Phase::Left(drained)) => *drained,
            Ok(Phase::Serving | Phase::TakenOver) | Err(_) => Drained { cut: 0 },
        }
    }

    /// Drains and stops; ready when done. `with_delay` keeps accepting for `drain.delay` first.
    pub async fn drain(&self, with_delay: bool) -> Drained {
        let (done, drained) = oneshot::channel();
        self.order(Order::Drain { with_delay, done });
        drained.await.unwrap_or(Drained { cut: 0 })
    }

    /// Whether the control thread has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// An order to a thread that is gone has nothing left to do.
    fn order(&self, order: Order) {
        self.orders.send(order).ok();
    }
}
