//! Puts the parts together: workers, writer, checks, resolver, admin, reload, drain.
//!
//! Everything but the workers runs on one control thread, so that a scrape or a resync cannot delay a request. A start
//! and a reload take the same steps: parse, certificates, sockets, snapshot; whatever fails, nothing has changed. `serve`
//! and `demo` both start here, from the same loader.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::access_log::AccessLog;
use crate::admin::{self, AdminState};
use crate::config::{self, Config, Invalid, Loaded, Problem};
use crate::control::file::FileWatch;
use crate::control::writer::{Control, Writer};
use crate::control::{checks, kubernetes, ramp, resolve, store};
use crate::endpoint_tls::{self, EndpointsTls, Prepared};
use crate::metrics;
use crate::proxy::tls::Tls;
use crate::proxy::worker::Shared;
use crate::proxy::workers::{Bound, Workers};
use crate::readiness::Readiness;
use crate::state::clock::Clock;
use crate::state::pins::Pins;

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

/// One open listener.
#[derive(Debug)]
struct Open {
    asked: SocketAddr,
    bound: SocketAddr,
    tls: Option<Tls>,
}

/// Starts perch from a configuration. With `file`, changes of that file and of the certificates are taken over live.
///
/// # Errors
/// With every problem found; nothing listens then.
pub fn start(loaded: Loaded, file: Option<PathBuf>) -> Result<Running, StartError> {
    start_with(loaded, file, kubernetes::Options::default())
}

/// As [`start`], with a cluster to follow where the configuration says so.
///
/// # Errors
/// See [`start`].
pub fn start_with(loaded: Loaded, file: Option<PathBuf>, cluster: kubernetes::Options) -> Result<Running, StartError> {
    let Loaded { config, warnings, places } = loaded;
    for warning in warnings {
        warn!("{warning}");
    }
    let tls = read_certificates(&config, &places, &BTreeMap::new())?;
    let endpoints_tls = EndpointsTls::default();
    endpoints_tls.keep(read_endpoints_tls(&endpoints_tls, &config, &places)?);
    let count = config.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let admin_socket = TcpListener::bind(config.admin.address).map_err(|error| {
        StartError::Bind(places.problem("admin.address", cannot_listen(config.admin.address, &error)))
    })?;
    let mut bound = Vec::new();
    for (position, listener) in config.listeners.iter().enumerate() {
        bound.push((listener.name.clone(), bind(position, listener, count, &places, &BTreeMap::new())?));
    }

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
    let shared = Arc::new(Shared {
        published: control.published().clone(),
        pins: pins.clone(),
        access_log: access_log.clone(),
        clock,
        endpoints_tls: endpoints_tls.clone(),
        connections: AtomicUsize::new(0),
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

fn bind(
    position: usize,
    listener: &config::Listener,
    count: usize,
    places: &config::Places,
    open: &BTreeMap<Arc<str>, Open>,
) -> Result<Bound, StartError> {
    // An address that one listener leaves may be taken by another in the same step: renamed, swapped, widened.
    let is_left = open.values().any(|o| overlaps(o.bound, listener.address));
    let bound = if is_left { Bound::beside(listener.address, count) } else { Bound::bind(listener.address, count) };
    bound.map_err(|error| {
        let path = format!("listeners[{position}].address");
        StartError::Bind(places.problem(path, cannot_listen(listener.address, &error)))
    })
}

/// Whether two listening addresses exclude each other.
fn overlaps(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (one.ip() == other.ip() || is_any)
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    let fix = match error.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there, or write another port",
        io::ErrorKind::PermissionDenied => "write a port of 1024 or more, or give perch CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "write an address of this machine, 0.0.0.0 or [::] for all",
        _ => "see the error",
    };
    format!("can't listen on {address} ({error}); {fix}")
}

/// Reads the certificates of every listener with TLS, in the config's order; all problems at once.
fn read_certificates(
    config: &Config,
    places: &config::Places,
    open: &BTreeMap<Arc<str>, Open>,
) -> Result<Vec<Option<Tls>>, StartError> {
    let mut problems = Vec::new();
    let mut all = Vec::new();
    for (position, listener) in config.listeners.iter().enumerate() {
        let Some(pairs) = &listener.tls else {
            all.push(None);
            continue;
        };
        let previous = open.get(&listener.name).and_then(|o| o.tls.as_ref());
        match Tls::new(&format!("listeners[{position}].tls"), pairs, previous) {
            Ok((tls, warnings)) => {
                for warning in warnings {
                    warn!("{}", places.problem(warning.path, warning.message));
                }
                all.push(Some(tls));
            }
            Err(found) => problems.extend(found.into_iter().map(|p| places.problem(p.path, p.message))),
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(StartError::Invalid(Invalid { problems, warnings: Vec::new() })) }
}

/// Reads what endpoints with TLS are reached with; all problems at once.
fn read_endpoints_tls(
    endpoints_tls: &EndpointsTls,
    config: &Config,
    places: &config::Places,
) -> Result<Prepared, StartError> {
    let place = |p: Problem| places.problem(p.path, p.message);
    match endpoints_tls.prepare(config) {
        Ok((prepared, warnings)) => {
            for warning in warnings {
                warn!("{}; what it was stays in use", place(warning));
            }
            Ok(prepared)
        }
        Err(found) => {
            let problems = found.into_iter().map(place).collect();
            Err(StartError::Invalid(Invalid { problems, warnings: Vec::new() }))
        }
    }
}

/// Files whose change matters: the configuration and what it names.
fn watched(config: &Config, file: Option<&PathBuf>) -> Vec<PathBuf> {
    let pairs = config.listeners.iter().filter_map(|l| l.tls.as_ref()).flat_map(|t| &t.certificates);
    let tls = config.listeners.iter().filter_map(|l| l.tls.as_ref());
    let clients = tls.flat_map(|t| &t.client_certificates).flat_map(|c| c.ca_files.clone());
    pairs
        .flat_map(|p| [p.cert_file.clone(), p.key_file.clone()])
        .chain(clients)
        .chain(endpoint_tls::files(config))
        .chain(file.cloned())
        .collect()
}

/// The control thread's own task.
struct Supervisor {
    file: Option<PathBuf>,
    watch: FileWatch,
    control: Control,
    cluster: kubernetes::Handle,
    workers: Workers,
    listeners: BTreeMap<Arc<str>, Open>,
    readiness: Readiness,
    shared: Arc<Shared>,
    access_log: AccessLog,
}

/// How often the workers are looked after.
const LOOK_AFTER: Duration = Duration::from_secs(1);

impl Supervisor {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut look = tokio::time::interval(LOOK_AFTER);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Reload) => self.reload().await,
                    Some(Order::Drain { with_delay, done }) => {
                        let drained = self.drain(with_delay).await;
                        self.access_log.flush(Duration::from_secs(1));
                        // Nobody may be waiting any more.
                        done.send(drained).ok();
                        return;
                    }
                },
                changed = self.watch.changed() => {
                    // A certificate that was missing may have been all that a refused configuration waited for.
                    let is_refused = self.readiness.last_reload().error.is_some();
                    if is_refused || self.file.as_ref().is_some_and(|f| changed.contains(f)) {
                        self.reload().await;
                    } else {
                        self.reload_certificates();
                    }
                }
                _ = look.tick() => {
                    if self.workers.is_broken() || self.control.is_stopped() {
                        // A zombie that looks healthy is worse than a restart (reliability.md J9).
                        error!("A worker or the writer has died; stopping. Please report the panic above.");
                        std::process::abort();
                    }
                }
            }
        }
    }

    /// All or nothing: the old configuration serves until the new one is complete.
    async fn reload(&mut self) {
        let Some(file) = self.file.clone() else { return };
        match self.take_over(&file).await {
            Ok(generation) => {
                self.readiness.reload_succeeded(SystemTime::now());
                info!(generation, file = %file.display(), "Reloaded the configuration.");
            }
            Err(refused) => {
                for line in refused.to_string().lines() {
                    error!("{line}");
                }
                error!(file = %file.display(), "Refused the new configuration; the last good one stays in force.");
                self.readiness.reload_refused(refused.to_string());
            }
        }
    }

    async fn take_over(&mut self, file: &std::path::Path) -> Result<u64, StartError> {
        let Loaded { config, warnings, places } = config::load(file).map_err(StartError::Invalid)?;
        for warning in warnings {
            warn!("{warning}");
        }
        // Watched before they are read, so that no change falls in between; beside those in use, should this be refused.
        let files = watched(&config, Some(&file.to_owned()));
        self.watch.set_files(watched(&self.control.snapshot().config, None).into_iter().chain(files.clone()));
        let tls = read_certificates(&config, &places, &self.listeners)?;
        let endpoints_tls = read_endpoints_tls(&self.shared.endpoints_tls, &config, &places)?;
        let mut sockets = Vec::new();
        for (position, listener) in config.listeners.iter().enumerate() {
            let stays = self.listeners.get(&listener.name).is_some_and(|o| o.asked == listener.address);
            sockets.push(if stays {
                None
            } else {
                Some(bind(position, listener, self.workers.count(), &places, &self.listeners)?)
            });
        }
        self.warn_of_fixed(&config);
        let listeners = config.listeners.clone();
        self.shared.endpoints_tls.add(&endpoints_tls);
        let news = self.cluster.prepare(&config).await;
        let snapshot = self.control.configure_with(config, news).await?;
        self.shared.endpoints_tls.keep(endpoints_tls);

        let gone: Vec<Arc<str>> =
            self.listeners.keys().filter(|name| !listeners.iter().any(|l| l.name == **name)).cloned().collect();
        for name in gone {
            self.workers.close(&name);
            self.listeners.remove(&name);
            info!(listener = %name, "Closed listener.");
        }
        for ((listener, tls), socket) in listeners.iter().zip(tls).zip(sockets) {
            let name = &listener.name;
            match socket {
                None => {
                    self.workers.set_tls(name, tls.as_ref());
                    if let Some(open) = self.listeners.get_mut(name) {
                        open.tls = tls;
                    }
                }
                Some(bound) => {
                    self.workers.close(name);
                    info!(listener = %name, address = %bound.address, tls = tls.is_some(), "Listening.");
                    let open = Open { asked: listener.address, bound: bound.address, tls: tls.clone() };
                    self.workers.listen(name, bound, tls.as_ref());
                    self.listeners.insert(name.clone(), open);
                }
            }
        }
        self.watch.set_files(files);
        self.show_certificates();
        Ok(snapshot.generation)
    }

    /// What a running process cannot change.
    fn warn_of_fixed(&self, config: &Config) {
        let now = self.control.snapshot();
        let fixed = [
            ("workers", now.config.workers != config.workers),
            ("admin.address", now.config.admin.address != config.admin.address),
            ("affinity.maxPins", now.config.pins != config.pins),
            ("stateDir", now.config.state_dir != config.state_dir),
            ("kubernetes.state", now.config.shared_state != config.shared_state),
        ];
        for (key, _) in fixed.iter().filter(|(_, changed)| *changed) {
            warn!(key, "This key is read at start only; restart perch to change it.");
        }
    }

    fn reload_certificates(&self) {
        for (name, open) in &self.listeners {
            let Some(tls) = &open.tls else { continue };
            let reload = tls.reload();
            for label in reload.replaced {
                info!(listener = %name, certificate = %label, "Reloaded certificate.");
            }
            for problem in reload.kept {
                error!(listener = %name, "{problem}; the old certificate stays in use");
            }
            for problem in reload.warnings {
                warn!(listener = %name, "{problem}");
            }
        }
        let (changed, problems) = self.shared.endpoints_tls.reload();
        if changed > 0 {
            info!(changed, "Reloaded certificates for endpoints.");
        }
        for problem in problems {
            error!("{problem}; what it was stays in use");
        }
        self.show_certificates();
    }

    fn show_certificates(&self) {
        for (name, open) in &self.listeners {
            let certificates = open.tls.iter().flat_map(Tls::certificates);
            metrics::certificates(name, certificates.map(|c| (c.label.to_string(), c.not_after)));
        }
    }

    /// Not ready first, then no new connections, then none at all, or the deadline.
    async fn drain(&self, with_delay: bool) -> Drained {
        let rules = self.control.snapshot().config.drain;
        let end = Instant::now() + rules.deadline;
        self.readiness.drain();
        let open = || self.shared.connections.load(std::sync::atomic::Ordering::Relaxed);
        info!(connections = open(), deadline_s = rules.deadline.as_secs_f64(), "Draining.");
        if with_delay {
            tokio::time::sleep(rules.delay.min(rules.deadline)).await;
        }
        let spread = if with_delay { rules.spread } else { Duration::ZERO };
        let finished = tokio::time::timeout_at(end, self.workers.drain(spread)).await.is_ok();
        let cut = if finished { 0 } else { open() };
        if finished {
            info!("Drained.");
        } else {
            warn!(cut, "Drain deadline passed; cutting what is left.");
        }
        Drained { cut }
    }
}
