//! The single writer: the one task that changes the model and publishes snapshots. Not Clone; everybody else has a
//! [`Control`], which is. One snapshot, one swap, one generation.
//!
//! Who waits for an answer (a configuration, a weight) is published at once. What comes by itself (resolved names, news
//! of a cluster) settles for 20 ms, and is published at most ten times a second: whatever else comes, it is in force
//! 100 ms later. A build that fails keeps the last good snapshot. The writer also keeps house: it sweeps pins and ends
//! drains.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{debug, error, info};

use super::resolve;
use crate::config::{Affinity, Config};
use crate::metrics::TICK;
use crate::state::clock::Clock;
use crate::state::model::{BuildError, ClusterNews, HostPort, Model, Names, WeightChange, WeightError};
use crate::state::pins::Pins;
use crate::state::publish::Published;
use crate::state::snapshot::{EndpointId, ServiceId, Snapshot};

/// From the first change to its publication. Not from the last one: under a storm there is no last one.
const SETTLE: Duration = Duration::from_millis(20);

/// Between publications of what comes by itself: a change waits for so long at most.
const PACE: Duration = Duration::from_millis(100);

/// From the publication of a snapshot without an endpoint until that is marked gone. A request that decides on the
/// snapshot before takes microseconds; the rest is for a thread that lost its core.
const GRACE: Duration = Duration::from_millis(50);

/// How long a reload waits for new names; later answers come by the resolver.
const RESOLVE_FIRST: Duration = Duration::from_secs(2);

/// Changes under way; more make their sources wait.
const COMMANDS: usize = 1024;

/// The handle of whoever changes something. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    published: Published,
    generation: watch::Receiver<u64>,
}

/// The task. [`Writer::run`] must be polled for a [`Control`] to do anything.
#[derive(Debug)]
pub struct Writer {
    model: Model,
    clock: Clock,
    pins: Arc<Pins>,
    published: Published,
    commands: mpsc::Receiver<Command>,
    generation: watch::Sender<u64>,
    /// The first change that isn't published yet.
    unpublished: Option<Instant>,
    /// When what came by itself was last published.
    rebuilt: Option<Instant>,
    /// When the endpoints that a cluster calls draining are marked so.
    draining_due: Option<Instant>,
    /// A build failed for a drain's end: retried with the next tick, not at once for ever.
    is_stuck: bool,
    /// Services that pins were told the timeout of.
    remembered: HashSet<ServiceId>,
    ticks: u32,
}

#[derive(Debug)]
enum Command {
    Configure {
        config: Box<Config>,
        names: Names,
        news: ClusterNews,
        answer: oneshot::Sender<Result<Arc<Snapshot>, BuildError>>,
    },
    Resolved {
        name: HostPort,
        addresses: Vec<SocketAddr>,
    },
    Discovered {
        news: ClusterNews,
        answer: Option<oneshot::Sender<()>>,
    },
    SetWeights {
        change: WeightChange,
        who: String,
        answer: oneshot::Sender<Result<Arc<Snapshot>, WeightError>>,
    },
}

/// The change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("perch is stopping")]
    Stopped,
    #[error(transparent)]
    Weights(#[from] WeightError),
}

impl Control {
    /// Takes over a configuration and returns the snapshot with it. Names that are new are looked up before, for two
    /// seconds at most.
    ///
    /// # Errors
    /// When no snapshot can be built of it (the last good one stays), or perch is stopping.
    pub async fn configure(&self, config: Config) -> Result<Arc<Snapshot>, ControlError> {
        self.configure_with(config, ClusterNews::default()).await
    }

    /// As [`Self::configure`], with what a cluster says of it.
    ///
    /// # Errors
    /// See [`Self::configure`].
    pub async fn configure_with(&self, config: Config, news: ClusterNews) -> Result<Arc<Snapshot>, ControlError> {
        let known: HashSet<HostPort> = self.published.load().config.host_ports().collect();
        let new = config.host_ports().filter(|name| !known.contains(name)).collect();
        let names = resolve::first(new, RESOLVE_FIRST).await;
        let (answer, answered) = oneshot::channel();
        self.send(Command::Configure { config: Box::new(config), names, news, answer }).await?;
        Ok(answered.await.map_err(|_| ControlError::Stopped)??)
    }

    /// Sets weights and returns the snapshot with them. `who` is for the audit log: whom the request came from.
    ///
    /// # Errors
    /// When it can't be done ([`WeightError`], a conflict among them), or perch is stopping.
    pub async fn set_weights(&self, change: WeightChange, who: String) -> Result<Arc<Snapshot>, ControlError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::SetWeights { change, who, answer }).await?;
        Ok(answered.await.map_err(|_| ControlError::Stopped)??)
    }

    /// What a name resolved to. An empty answer changes nothing.
    ///
    /// # Errors
    /// When perch is stopping.
    pub async fn resolved(&self, name: HostPort, addresses: Vec<SocketAddr>) -> Result<(), ControlError> {
        self.send(Command::Resolved { name, addresses }).await
    }

    /// What a cluster says now.
    ///
    /// # Errors
    /// When perch is stopping.
    pub async fn discovered(&self, news: ClusterNews) -> Result<(), ControlError> {
        self.send(Command::Discovered { news, answer: None }).await
    }

    /// As [`Self::discovered`], published when it returns.
    ///
    /// # Errors
    /// When perch is stopping.
    pub async fn discovered_now(&self, news: ClusterNews) -> Result<(), ControlError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Discovered { news, answer: Some(answer) }).await?;
        answered.await.map_err(|_| ControlError::Stopped)
    }

    /// The current snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load()
    }

    /// Where readers find it.
    #[must_use]
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// Changes with each publication.
    #[must_use]
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.generation.clone()
    }

    /// The writer has ended, which nobody asked it to while this handle is there: nothing can be changed any more.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.commands.is_closed()
    }

    async fn send(&self, command: Command) -> Result<(), ControlError> {
        self.commands.send(command).await.map_err(|_| ControlError::Stopped)
    }
}

impl Writer {
    /// The first snapshot, published. Its names are looked up before, for two seconds at most; those that have no
    /// address by then get it from the resolver.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn start(config: Config, clock: Clock, pins: Arc<Pins>) -> Result<(Self, Control), BuildError> {
        let names = resolve::first(config.host_ports().collect(), RESOLVE_FIRST).await;
        let model = Model::new(config, names, clock.now())?;
        let published = Published::new(model.snapshot().clone());
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (generation, follow) = watch::channel(model.snapshot().generation);
        let control = Control { commands: sender, published: published.clone(), generation: follow };
        let mut writer = Self {
            model,
            clock,
            pins,
            published,
            commands,
            generation,
            unpublished: None,
            rebuilt: None,
            draining_due: None,
            is_stuck: false,
            remembered: HashSet::new(),
            ticks: 0,
        };
        writer.publish();
        Ok((writer, control))
    }

    /// What was known of a cluster when perch last ran, before anybody sees the first snapshot.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn remember(&mut self, news: ClusterNews) -> Result<(), BuildError> {
        if self.model.discover(news) {
            self.model.rebuild(self.clock.now())?;
            self.publish();
        }
        Ok(())
    }

    /// Works until the last [`Control`] is dropped.
    pub async fn run(mut self) {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.due();
            let draining = self.draining_due;
            tokio::select! {
                // A burst is one snapshot: commands first, unless what came before them has waited long enough.
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some_and(|due| due <= Instant::now()) => {
                    self.rebuild_due();
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.rebuild_due(),
                () = sleep_until(draining.unwrap_or_else(Instant::now)), if draining.is_some() => self.mark_draining(),
                _ = second.tick() => self.keep_house(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Configure { config, names, news, answer } => {
                // Kept even if the configuration is refused: it is what the cluster says.
                self.model.discover(news);
                let done = self.model.configure(*config, names, self.clock.now());
                if done.is_ok() {
                    self.publish();
                }
                tell(answer, done.map(|()| self.model.snapshot().clone()));
            }
            Command::Resolved { name, addresses } => {
                debug!(host = name.0, port = name.1, ?addresses, "Name resolved.");
                if self.model.resolve(name, addresses) {
                    self.settle();
                }
            }
            Command::Discovered { news, answer } => {
                if self.model.discover(news) {
                    self.settle();
                }
                if let Some(answer) = answer {
                    if self.unpublished.is_some() {
                        self.rebuild();
                    }
                    tell(answer, ());
                }
            }
            Command::SetWeights { change, who, answer } => {
                let before = self.shown_weights(&change.service);
                let done = self.model.set_weights(&change, self.clock.now());
                let after = self.shown_weights(&change.service);
                let (service, generation) = (&change.service, self.model.snapshot().generation);
                match &done {
                    Ok(()) => {
                        info!(audit = true, who, service, generation, before, after, "Set weights.");
                        self.publish();
                    }
                    Err(error) => info!(audit = true, who, service, generation, %error, "Refused to set weights."),
                }
                tell(answer, done.map(|()| self.model.snapshot().clone()));
            }
        }
    }

    /// Something came by itself.
    fn settle(&mut self) {
        self.unpublished.get_or_insert_with(Instant::now);
    }

    /// When what came by itself is to be published, or a drain ends.
    fn due(&self) -> Option<Instant> {
        let settled = self.unpublished.map(|first| {
            let settled = first + SETTLE;
            self.rebuilt.map_or(settled, |rebuilt| settled.max(rebuilt + PACE))
        });
        let drained = self
            .model
            .next_deadline()
            .filter(|_| !self.is_stuck)
            .map(|deadline| Instant::now() + Duration::from_millis(deadline.saturating_sub(self.clock.now())));
        [settled, drained].into_iter().flatten().min()
    }

    /// With what has already come, which would otherwise wait for the next publication.
    fn rebuild_due(&mut self) {
        for _ in 0..COMMANDS {
            let Ok(command) = self.commands.try_recv() else { break };
            self.obey(command);
        }
        // Unless one of them was published with all the others.
        if self.due().is_some_and(|due| due <= Instant::now()) {
            self.rebuild();
        }
    }

    fn shown_weights(&self, service: &str) -> String {
        let services = &self.model.snapshot().services;
        let Some(split) = services.iter().find(|s| *s.name == *service).map(|s| &s.policy.split) else {
            return String::new();
        };
        let shown = |v: usize| Some(format!("{}={}", split.name(v)?, split.weight(v)?.value()));
        (0..split.len()).filter_map(shown).collect::<Vec<_>>().join(" ")
    }

    /// Of what came by itself.
    fn rebuild(&mut self) {
        self.unpublished = None;
        self.rebuilt = Some(Instant::now());
        match self.model.rebuild(self.clock.now()) {
            Ok(()) => self.publish(),
            Err(error) => {
                self.is_stuck = true;
                error!(%error, "Could not build a snapshot; the last good one stays.");
            }
        }
    }

    fn publish(&mut self) {
        let snapshot = self.model.snapshot().clone();
        self.unpublished = None;
        self.is_stuck = false;
        let draining: HashSet<EndpointId> = self.model.draining().iter().map(|e| e.id).collect();
        let all = snapshot.services.iter().flat_map(|s| &s.versions).flat_map(|v| &v.endpoints);
        // Before anybody can see it: the one that comes back may be the only one.
        all.filter(|e| !draining.contains(&e.id)).for_each(|e| e.health.set_draining(false));
        self.published.store(snapshot.clone());
        // After everybody has: whoever still decides on the picture before may have no other.
        self.draining_due = (!draining.is_empty()).then(|| Instant::now() + GRACE);
        let mut leaving = self.model.take_leaving();
        if !leaving.is_empty() {
            let all = snapshot.services.iter().flat_map(|s| &s.versions).flat_map(|v| &v.endpoints);
            let addresses: HashSet<SocketAddr> = all.map(|e| e.address).collect();
            // The address is another pod's by now: a pinned client must not meet it on a connection to the old one.
            for endpoint in leaving.extract_if(.., |e| addresses.contains(&e.address)) {
                endpoint.health.set_gone();
            }
        }
        if !leaving.is_empty() {
            tokio::spawn(async move {
                sleep(GRACE).await;
                leaving.iter().for_each(|endpoint| endpoint.health.set_gone());
            });
        }
        let mut left = std::mem::take(&mut self.remembered);
        for service in &snapshot.services {
            match service.config.affinity {
                Affinity::ClientIp { timeout, .. } => self.pins.set_timeout(service.id, timeout),
                Affinity::None => self.pins.forget(service.id),
            }
            left.remove(&service.id);
            self.remembered.insert(service.id);
        }
        left.into_iter().for_each(|service| self.pins.forget(service));
        let endpoints: usize =
            snapshot.services.iter().flat_map(|s| &s.versions).map(|version| version.endpoints.len()).sum();
        info!(generation = snapshot.generation, services = snapshot.services.len(), endpoints, "Published snapshot.");
        self.generation.send_replace(snapshot.generation);
    }

    fn mark_draining(&mut self) {
        self.draining_due = None;
        self.model.draining().iter().for_each(|endpoint| endpoint.health.set_draining(true));
    }

    /// Once a second.
    fn keep_house(&mut self) {
        self.is_stuck = false;
        self.pins.sweep(self.clock.now());
        self.ticks += 1;
        if u64::from(self.ticks) >= TICK.as_secs() {
            self.ticks = 0;
            let services = &self.model.snapshot().services;
            services.iter().flat_map(|s| &s.versions).for_each(|version| version.metrics.tick());
        }
    }
}

/// Whoever asked may have gone away; the change stands.
fn tell<T>(answer: oneshot::Sender<T>, done: T) {
    if answer.send(done).is_err() {
        debug!("Nobody waits for the answer to a change any more.");
    }
}

#[cfg(test)]
mod tests;
