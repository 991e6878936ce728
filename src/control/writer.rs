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

use super::ramp::Ramps;
use super::replicas::Replicas;
use super::resolve;
use super::store::Store;
use crate::config::{Affinity, Config};
use crate::decide::rollout::Rollouts;
use crate::metrics::TICK;
use crate::state::clock::Clock;
use crate::state::inheritance::Inheritance;
use crate::state::model::{BuildError, Change, ChangeError, ClusterNews, HostPort, Model, Names};
use crate::state::pins::Pins;
use crate::state::publish::{Published, Retired};
use crate::state::snapshot::{Endpoint, EndpointId, Service, ServiceId, Snapshot};

mod changes;
mod control;
mod standstill;

use self::standstill::Standing;
pub use self::standstill::Standstill;

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
    ramps: Ramps,
    replicas: Replicas,
}

/// The task. [`Writer::run`] must be polled for a [`Control`] to do anything.
#[derive(Debug)]
pub struct Writer {
    model: Model,
    store: Store,
    clock: Clock,
    pins: Arc<Pins>,
    published: Published,
    retired: Retired,
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
    /// The file's weights are in force and not stored.
    is_unsaved: bool,
    /// Services that pins were told the timeout of.
    remembered: HashSet<ServiceId>,
    ticks: u32,
    standstill: Standing,
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
    Adopt {
        rollouts: Box<Rollouts>,
    },
    StandStill {
        answer: oneshot::Sender<Standstill>,
    },
    Change {
        change: Box<Change>,
        is_dry: bool,
        answer: oneshot::Sender<Result<Done, ControlError>>,
    },
}

/// A verb that was done, or could be.
#[derive(Clone, Debug)]
pub struct Done {
    /// In force now; of a dry run what is in force still.
    pub snapshot: Arc<Snapshot>,
    /// The service before and after the verb, whether it is in force or not.
    pub before: Arc<Service>,
    pub after: Arc<Service>,
    /// The service's last revision afterwards.
    pub revision: u64,
    /// The verb has something to do.
    pub is_change: bool,
}

/// The change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("this can't be kept, so it was not done: {0}")]
    NotStored(String),
    #[error("perch is stopping")]
    Stopped,
}

impl Writer {
    /// As [`Self::start_with`], of a perch that remembers no rollouts and keeps none.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn start(config: Config, clock: Clock, pins: Arc<Pins>) -> Result<(Self, Control), BuildError> {
        Self::start_with(config, clock, pins, Store::Memory, Rollouts::default(), Inheritance::default()).await
    }

    /// The first snapshot, published. Its names are looked up before, for two seconds at most; those that have no
    /// address by then get it from the resolver. `rollouts` is what the store had; `inherited` is from the perch that this
    /// one takes over from.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn start_with(
        config: Config,
        clock: Clock,
        pins: Arc<Pins>,
        store: Store,
        rollouts: Rollouts,
        inherited: Inheritance,
    ) -> Result<(Self, Control), BuildError> {
        let names = resolve::first(config.host_ports().collect(), RESOLVE_FIRST).await;
        let stored = rollouts.sequence;
        let model = Model::inherit(config, names, rollouts, inherited, clock.moment())?;
        let published = Published::new(model.snapshot().clone());
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (generation, follow) = watch::channel(model.snapshot().generation);
        let control = Control {
            commands: sender,
            published: published.clone(),
            generation: follow,
            ramps: Ramps::default(),
            replicas: Replicas::default(),
        };
        let mut writer = Self {
            model,
            store,
            clock,
            pins,
            published,
            retired: Retired::default(),
            commands,
            generation,
            unpublished: None,
            rebuilt: None,
            draining_due: None,
            is_stuck: false,
            is_unsaved: false,
            remembered: HashSet::new(),
            ticks: 0,
            standstill: Standing::No,
        };
        writer.publish();
        if stored > 0 {
            writer.keep(stored).await;
        }
        Ok((writer, control))
    }

    /// What was known of a cluster when perch last ran, before anybody sees the first snapshot.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn remember(&mut self, news: ClusterNews) -> Result<(), BuildError> {
        if self.model.discover(news) {
            self.model.rebuild(self.clock.moment())?;
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
                    self.rebuild_due().await;
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.rebuild_due().await,
                () = sleep_until(draining.unwrap_or_else(Instant::now)), if draining.is_some() => self.mark_draining(),
                is_over = self.standstill.ended() => self.end_standstill(is_over).await,
                _ = second.tick() => self.keep_house(),
            }
        }
    }

    async fn obey_now(&mut self, command: Command) {
        match command {
            Command::Configure { config, names, news, answer } => {
                // Kept even if the configuration is refused: it is what the cluster says.
                self.model.discover(news);
                let sequence = self.model.snapshot().rollouts.sequence;
                let done = self.model.configure(*config, names, self.clock.moment());
                if done.is_ok() {
                    self.publish();
                    self.keep(sequence).await;
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
            Command::Adopt { rollouts } => {
                self.adopt(*rollouts);
                self.keep_unsaved().await;
            }
            Command::StandStill { answer } => self.stand_still(answer),
            Command::Change { change, is_dry, answer } => {
                let done = if is_dry { self.try_out(&change) } else { self.change(&change).await };
                tell(answer, done);
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
    async fn rebuild_due(&mut self) {
        for _ in 0..COMMANDS {
            let Ok(command) = self.commands.try_recv() else { break };
            self.obey(command).await;
        }
        // Unless one of them was published with all the others.
        if self.due().is_some_and(|due| due <= Instant::now()) {
            self.rebuild();
        }
    }

    /// Of what came by itself.
    fn rebuild(&mut self) {
        self.unpublished = None;
        self.rebuilt = Some(Instant::now());
        match self.model.rebuild(self.clock.moment()) {
            Ok(()) => self.publish(),
            Err(error) => {
                self.is_stuck = true;
                error!(%error, "Could not build a snapshot; the last good one stays.");
            }
        }
    }

    fn publish(&mut self) {
        self.publish_quietly();
        let snapshot = self.model.snapshot();
        let endpoints: usize =
            snapshot.services.iter().flat_map(|s| &s.versions).map(|version| version.endpoints.len()).sum();
        info!(generation = snapshot.generation, services = snapshot.services.len(), endpoints, "Published snapshot.");
    }

    fn publish_quietly(&mut self) {
        let snapshot = self.model.snapshot().clone();
        self.unpublished = None;
        self.is_stuck = false;
        let draining: HashSet<EndpointId> = self.model.draining().iter().map(|e| e.id).collect();
        let all = snapshot.services.iter().flat_map(|s| &s.versions).flat_map(|v| &v.endpoints);
        // Before anybody can see it: the one that comes back may be the only one.
        all.filter(|e| !draining.contains(&e.id)).for_each(|e| e.health.set_draining(false));
        self.retired.put(self.published.store(snapshot.clone()));
        self.retired.sweep();
        // After everybody has: whoever still decides on the picture before may have no other.
        self.draining_due = (!draining.is_empty()).then(|| Instant::now() + GRACE);
        let mut leaving = self.model.take_leaving();
        if !leaving.is_empty() {
            let theirs: HashSet<SocketAddr> = leaving.iter().map(|e| e.address).collect();
            let all = snapshot.services.iter().flat_map(|s| &s.versions).flat_map(|v| &v.endpoints);
            let now: HashSet<_> = all.filter(|e| theirs.contains(&e.address)).map(|e| e.place()).collect();
            let addresses: HashSet<SocketAddr> = now.iter().map(|(address, ..)| *address).collect();
            // The address is another pod's by now, or spoken to in another way: a pinned client must not meet it on a
            // connection to the old one. The same pod in another version is as good as before, for whoever decides on
            // the snapshot before.
            let is_anothers = |e: &mut Arc<Endpoint>| addresses.contains(&e.address) && !now.contains(&e.place());
            for endpoint in leaving.extract_if(.., is_anothers) {
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
        self.generation.send_replace(snapshot.generation);
    }

    fn mark_draining(&mut self) {
        self.draining_due = None;
        self.model.draining().iter().for_each(|endpoint| endpoint.health.set_draining(true));
    }

    /// Once a second.
    fn keep_house(&mut self) {
        self.is_stuck = false;
        self.retired.sweep();
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
