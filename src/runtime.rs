//! Puts the parts together: workers, writer, checks, resolver, admin, reload, drain.
//!
//! Everything but the workers runs on one control thread, so that a scrape or a resync cannot delay a request. A start
//! and a reload take the same steps: parse, certificates, sockets, snapshot; whatever fails, nothing has changed. `serve`
//! and `demo` both start here, from the same loader.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
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
use crate::control::{checks, kubernetes, panic, ramp, resolve, store};
use crate::endpoint_tls::EndpointsTls;
use crate::metrics;
use crate::proxy::worker::Shared;
use crate::proxy::workers::Workers;
use crate::readiness::Readiness;
use crate::state::clock::Clock;
use crate::state::heartbeat::Heartbeats;
use crate::state::pins::Pins;

use self::prepare::{Open, bind_admin, bind_first, read_certificates, read_endpoints_tls, watched};
use self::supervisor::Supervisor;

mod given;
mod prepare;
mod supervisor;

pub use self::given::{BadDescriptor, Given};

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
}

enum Order {
    Reload,
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
    start_with(loaded, file, kubernetes::Options::default(), Given::default())
}

/// As [`start`], with a cluster to follow where the configuration says so, and sockets that are open already.
///
/// # Errors
/// See [`start`].
pub fn start_with(
    loaded: Loaded,
    file: Option<PathBuf>,
    cluster: kubernetes::Options,
    mut given: Given,
) -> Result<Running, StartError> {
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

    let clock = Clock::start();
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
            let (store, rollouts) = store::open(config.state_dir.as_deref())?;
            (store, rollouts, None)
        }
        Some(state) => {
            let opened = control_runtime.block_on(kubernetes::state::open(&cluster, state))?;
            let (store, rollouts, is_known, mut shared) = opened;
            // The file's weights may not be those that the other replicas have.
            shared.first = (!is_known).then(|| readiness.wait_for("rollouts"));
            (store, rollouts, Some(shared))
        }
    };
    let start = Writer::start_with(config, clock, pins.clone(), store, rollouts);
    let (mut writer, control) = control_runtime.block_on(start)?;
    writer.remember(known)?;
    metrics::start();
    let access_log = AccessLog::stdout()?;
    let heartbeats = Heartbeats::default();
    let shared = Arc::new(Shared {
        published: control.published().clone(),
        pins: pins.clone(),
        access_log: access_log.clone(),
        clock,
        endpoints_tls: endpoints_tls.clone(),
        connections: AtomicUsize::new(0),
        heartbeats: heartbeats.clone(),
    });
    let workers = Workers::start(count, &shared)?;

    let mut listeners = BTreeMap::new();
    let mut addresses = Vec::new();
    for ((listener, tls), (name, bound)) in listener_configs.iter().zip(tls).zip(bound) {
        addresses.push((name.clone(), bound.address));
        info!(listener = %name, address = %bound.address, tls = tls.is_some(), "Listening.");
        listeners.insert(name.clone(), Open { asked: listener.address, bound: bound.address, tls: tls.clone() });
        workers.listen(&name, bound, tls.as_ref());
    }
    readiness.reload_succeeded(SystemTime::now());
    let state = AdminState {
        published: control.published().clone(),
        pins,
        clock,
        readiness: readiness.clone(),
        control: control.clone(),
        heartbeats,
        live: admin::Live::default(),
    };
    let admin = admin_socket.local_addr()?;
    let (orders, receiver) = mpsc::unbounded_channel();
    let (ask, questions) = kubernetes::channel();
    let supervisor = Supervisor {
        file,
        watch,
        control: control.clone(),
        cluster: ask,
        workers,
        listeners,
        readiness,
        shared,
        access_log,
    };
    supervisor.show_certificates();
    let admin_state = state.clone();
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        control_runtime.block_on(async move {
            let stop = CancellationToken::new();
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
                tokio::spawn(checks::run(control.clone(), endpoints_tls)),
                tokio::spawn(panic::run(control.clone(), clock)),
                tokio::spawn(resolve::run(control.clone())),
                tokio::spawn(ramp::run(control.clone(), clock, leads)),
                tokio::spawn(kubernetes::run(control, cluster, clock, first_picture, questions)),
            ];
            let admin = tokio::spawn(admin::serve(admin_socket, admin_state, stop.clone()));
            supervisor.run(receiver).await;
            stop.cancel();
            admin.await.ok();
            // The Lease is given back, so that another leads at once.
            tokio::time::timeout(GIVE_BACK, sharing).await.ok();
            for task in tasks {
                task.abort();
            }
        });
    })?;
    Ok(Running { listeners: addresses, admin, state, orders, thread })
}

impl Running {
    /// Reads the configuration again.
    pub fn reload(&self) {
        self.order(Order::Reload);
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
