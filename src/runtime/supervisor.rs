//! The control thread's own task: reloads, the drain, the look after workers and writer.
//!
//! A reload is all or nothing. It knows every listener that is open, and nothing of requests.

use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::prepare::{Open, bind, read_certificates, read_endpoints_tls, watched};
use super::upgrade::Phase;
use super::{Drained, Order, StartError, notify};
use crate::access_log::AccessLog;
use crate::admin::AdminState;
use crate::config::{self, Config, Loaded};
use crate::control::file::FileWatch;
use crate::control::kubernetes;
use crate::control::writer::Control;
use crate::metrics;
use crate::proxy::tls::Tls;
use crate::proxy::worker::Shared;
use crate::proxy::workers::Workers;
use crate::readiness::Readiness;

/// The control thread's own task.
pub(super) struct Supervisor {
    pub(super) file: Option<PathBuf>,
    pub(super) watch: FileWatch,
    pub(super) control: Control,
    pub(super) cluster: kubernetes::Handle,
    pub(super) workers: Workers,
    pub(super) listeners: BTreeMap<Arc<str>, Open>,
    pub(super) readiness: Readiness,
    pub(super) shared: Arc<Shared>,
    pub(super) access_log: AccessLog,
    /// What the admin listener shows.
    pub(super) state: AdminState,
    /// The admin listener's socket once more, for the perch that takes over; and its address as configured.
    pub(super) admin_socket: Option<TcpListener>,
    pub(super) admin_asked: SocketAddr,
    /// Ends the admin listener and what only one perch may do.
    pub(super) stop: CancellationToken,
    pub(super) phase: watch::Sender<Phase>,
    /// Nobody drains any more of whom this perch took over.
    pub(super) before_is_gone: CancellationToken,
}

/// How often the workers are looked after.
const LOOK_AFTER: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut look = tokio::time::interval(LOOK_AFTER);
        // Not in a burst after a stop of the whole process: no worker could have beaten in between.
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut waiting = VecDeque::new();
        loop {
            let next = async {
                match waiting.pop_front() {
                    Some(order) => Some(order),
                    None => orders.recv().await,
                }
            };
            tokio::select! {
                order = next => match order {
                    None => return,
                    Some(Order::Reload) => self.reload().await,
                    Some(Order::Upgrade) => {
                        let (successor, meanwhile) = self.upgrade(&mut orders).await;
                        if let Some(successor) = successor {
                            let phase = self.phase.clone();
                            let drained = self.leave(successor).await;
                            phase.send_replace(Phase::Left(drained));
                            return;
                        }
                        waiting.extend(meanwhile);
                    }
                    Some(Order::Drain { with_delay, done }) => {
                        notify::tell(notify::STOPPING);
                        let rules = self.control.snapshot().config.drain;
                        let (delay, spread) =
                            if with_delay { (rules.delay, rules.spread) } else { (Duration::ZERO, Duration::ZERO) };
                        let drained = self.drain(delay, spread).await;
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
                    self.look_after_workers();
                    if self.workers.is_broken() || self.control.is_stopped() {
                        // A zombie that looks healthy is worse than a restart (reliability.md J9).
                        error!("A worker or the writer has died; stopping. Please report the panic above.");
                        std::process::abort();
                    }
                }
            }
        }
    }

    fn look_after_workers(&self) {
        let (lost, found) = self.shared.heartbeats.look();
        for worker in lost {
            error!(worker, "A worker gives no sign of life; its connections wait.");
        }
        for worker in found {
            warn!(worker, "A worker that gave no sign of life is back.");
        }
    }

    /// All or nothing: the old configuration serves until the new one is complete.
    async fn reload(&mut self) {
        let Some(file) = self.file.clone() else { return };
        notify::tell_reloading();
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
        // Refused or not: the last good one serves.
        notify::tell(notify::READY);
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

    pub(super) fn show_certificates(&self) {
        for (name, open) in &self.listeners {
            let certificates = open.tls.iter().flat_map(Tls::certificates);
            metrics::certificates(name, certificates.map(|c| (c.label.to_string(), c.not_after)));
        }
    }

    /// Not ready first, then no new connections, then none at all, or the deadline.
    pub(super) async fn drain(&self, delay: Duration, spread: Duration) -> Drained {
        let deadline = self.control.snapshot().config.drain.deadline;
        let end = Instant::now() + deadline;
        self.readiness.drain();
        let open = || self.shared.connections.load(std::sync::atomic::Ordering::Relaxed);
        info!(connections = open(), deadline_s = deadline.as_secs_f64(), "Draining.");
        tokio::time::sleep(delay.min(deadline)).await;
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
