//! What everybody but the writer can do: ask it for changes, and look.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::{Command, Control, ControlError, Done, RESOLVE_FIRST};
use crate::config::Config;
use crate::control::ramp::Ramps;
use crate::control::replicas::Replicas;
use crate::control::resolve;
use crate::decide::rollout::Rollouts;
use crate::state::model::{Change, ClusterNews, HostPort};
use crate::state::publish::Published;
use crate::state::snapshot::Snapshot;

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

    /// Does a verb: stored and in force when this returns. A dry run only tells what it would do.
    ///
    /// # Errors
    /// When it can't be done ([`ChangeError`](crate::state::model::ChangeError), a conflict among them) or not be stored, or perch is stopping.
    pub async fn change(&self, change: Change, is_dry: bool) -> Result<Done, ControlError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Change { change: Box::new(change), is_dry, answer }).await?;
        answered.await.map_err(|_| ControlError::Stopped)?
    }

    /// A document that another perch wrote. An older one than ours changes nothing.
    ///
    /// # Errors
    /// When perch is stopping.
    pub async fn adopt(&self, rollouts: Rollouts) -> Result<(), ControlError> {
        self.send(Command::Adopt { rollouts: Box::new(rollouts) }).await
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

    /// The replicas of this installation.
    #[must_use]
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// The ramps that run here.
    #[must_use]
    pub fn ramps(&self) -> &Ramps {
        &self.ramps
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

    pub(super) async fn send(&self, command: Command) -> Result<(), ControlError> {
        self.commands.send(command).await.map_err(|_| ControlError::Stopped)
    }
}
