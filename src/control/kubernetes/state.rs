//! One truth for all replicas: the rollout document in a ConfigMap that each of them watches, a Lease that makes one of
//! them the leader, and what each says of itself, in a key of its own of the same ConfigMap.
//!
//! What is stored counts: a document is written only over the one that it is based on, and whoever finds another takes
//! that over first. Without the API server verbs are refused, and traffic goes on as it was.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::document::{ConfigMapStore, OpenError};
use self::document::{GROUP, KEY, KIND};
use self::lease::Elector;
use self::session::Session;
use super::client::{Connector, Trouble};
use super::objects::{Kind, What};
use super::picture::News;
use super::streams::{StreamKey, encode};
use super::watch::{Follower, Heard};
use super::{Options, own_namespace};
use crate::config::SharedState;
use crate::control::Control;
use crate::control::replicas::Report;
use crate::control::store::{Document, Store};
use crate::decide::rollout::Rollouts;
use crate::metrics;
use crate::readiness::Block;
use crate::state::clock::Clock;

mod document;
mod lease;
mod session;

/// Between looks at whether there is something to report.
const LOOK: Duration = Duration::from_millis(500);

/// A sign of life, at least this often.
const BEAT: Duration = Duration::from_secs(5);

/// A replica that said nothing for so long is gone; the leader takes its key away.
const GONE: Duration = Duration::from_secs(600);

/// Of what nobody waits for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Before the name of a replica.
const REPLICA: &str = "replica.";

/// What [`run`] needs beyond the store.
#[derive(Debug)]
pub struct Shared {
    state: SharedState,
    options: Options,
    /// Dropped with the first document that was read.
    pub first: Option<Block>,
}

/// The store that the replicas share, what it has, and whether that is known: when the API server does not answer, it is
/// what was kept on disk, or nothing.
///
/// # Errors
/// When the document is of a newer perch.
pub async fn open(options: &Options, state: &SharedState) -> Result<(Store, Rollouts, bool, Shared), OpenError> {
    let connector = Connector { kubeconfig: options.kubeconfig.clone() };
    let cache = options.cache.as_ref().map(|file| file.with_extension("rollouts.json"));
    let (store, rollouts, is_known) = ConfigMapStore::open(connector, state.config_map.clone(), cache).await?;
    let shared = Shared { state: state.clone(), options: options.clone(), first: None };
    Ok((Store::ConfigMap(Box::new(store)), rollouts, is_known, shared))
}

/// Follows the document, reports, and takes part in the election, until `stop`.
pub async fn run(control: Control, clock: Clock, shared: Shared, leads: watch::Sender<bool>, stop: CancellationToken) {
    let Shared { state, options, first } = shared;
    let name = replica_name();
    control.replicas().call(&name);
    metrics::kubernetes_start();
    let connector = Connector { kubeconfig: options.kubeconfig.clone() };
    let identity = format!("{name}_{:016x}", super::super::random_number());
    let lease = (state.lease.clone(), state.lease_duration);
    let led = leads.subscribe();
    let elector = Elector::new(connector.clone(), lease, identity, leads, control.replicas().clone());
    let elector = tokio::spawn(elector.run(stop.clone()));
    let reporter = Reporter {
        session: Session::new(connector.clone(), PATIENCE),
        config_map: state.config_map.clone(),
        name,
        control: control.clone(),
        leads: led,
        last: None,
        beat: 0,
        is_troubled: false,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(reporter.run());
    tokio::select! {
        () = follow(&control, clock, &state.config_map, &options, &connector, first) => {}
        () = stop.cancelled() => {}
    }
    elector.await.ok();
}

/// Takes over what others write. Ends with the writer only.
async fn follow(
    control: &Control,
    clock: Clock,
    config_map: &str,
    options: &Options,
    connector: &Connector,
    mut first: Option<Block>,
) {
    let namespace = own_namespace(connector).await;
    let selector = format!("fieldSelector={}", encode(&format!("metadata.name={config_map}")));
    let heard = Heard::now(clock);
    let (sender, mut news) = mpsc::channel(16);
    let key = StreamKey { kind: Kind::ConfigMaps, namespace, selector };
    let watch = options.watch;
    let follower = Follower { key, connector: connector.clone(), news: sender, heard: heard.clone(), watch };
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.run());
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let heard_of = tokio::select! {
            news = news.recv() => match news {
                Some((_, News::Listed(objects, _))) => {
                    drop(first.take());
                    objects.into_iter().next()
                }
                Some((_, News::Applied(object))) => Some(object),
                Some((_, News::Deleted { .. })) => {
                    warn!(config_map, "Somebody deleted the ConfigMap with the rollouts; it is made again.");
                    None
                }
                Some((_, News::Bookmark(_))) => None,
                None => return,
            },
            _ = second.tick() => {
                metrics::kubernetes_event_age(Kind::ConfigMaps.as_str(), heard.age());
                None
            }
        };
        let Some(What::ConfigMap(data)) = heard_of.map(|object| object.what) else { continue };
        control.replicas().hear(reports(&data));
        match Document::read(data.get(KEY).map(String::as_bytes)) {
            Document::Good(rollouts) => {
                if control.adopt(rollouts).await.is_err() {
                    return;
                }
            }
            Document::Missing => {}
            Document::Corrupt(problem) => {
                error!(config_map, problem, "The rollouts can't be read; what was in force stays.")
            }
            Document::Newer(version) => {
                error!(
                    config_map,
                    version, "A newer perch wrote the rollouts; what was in force stays, verbs are refused."
                );
            }
        }
    }
}

fn reports(data: &BTreeMap<String, String>) -> BTreeMap<String, Report> {
    let of_replicas = data.iter().filter_map(|(key, text)| Some((key.strip_prefix(REPLICA)?, text)));
    of_replicas.filter_map(|(name, text)| Some((name.to_owned(), serde_json::from_str(text).ok()?))).collect()
}

/// Says what this replica is at.
struct Reporter {
    session: Session,
    config_map: String,
    name: String,
    control: Control,
    leads: watch::Receiver<bool>,
    last: Option<(Report, Instant)>,
    beat: u64,
    is_troubled: bool,
}

impl Reporter {
    async fn run(mut self) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.control.is_stopped() {
            look.tick().await;
            let snapshot = self.control.snapshot();
            let (generation, sequence) = (snapshot.generation, snapshot.rollouts.sequence);
            let is_leader = *self.leads.borrow();
            // Of a restless cluster's generations not each is worth a write.
            let is_due = self.last.is_none_or(|(last, at)| {
                (last.sequence, last.is_leader) != (sequence, is_leader) || at.elapsed() >= BEAT
            });
            if !is_due {
                continue;
            }
            self.beat += 1;
            let report = Report { generation, sequence, is_leader, beat: self.beat };
            match self.report(report).await {
                Ok(()) => self.is_troubled = false,
                Err(trouble) => {
                    metrics::kubernetes_sync_error(trouble.reason);
                    if !self.is_troubled {
                        let (config_map, error) = (&self.config_map, trouble.message);
                        warn!(config_map, error, "Cannot report to the other replicas; this one looks silent to them.");
                        self.is_troubled = true;
                    }
                }
            }
            // Also when it failed: the next try is no sooner.
            self.last = Some((report, Instant::now()));
        }
    }

    async fn report(&mut self, report: Report) -> Result<(), Trouble> {
        let text = serde_json::to_string(&report).unwrap_or_default();
        let mut data = serde_json::Map::from_iter([(format!("{REPLICA}{}", self.name), Value::from(text))]);
        if report.is_leader {
            let gone = self.control.replicas().silent_for(GONE);
            data.extend(gone.into_iter().map(|name| (format!("{REPLICA}{name}"), Value::Null)));
        }
        let done = self.session.patch(GROUP, KIND, &self.config_map, &json!({"data": data})).await;
        let Err(trouble) = done else { return Ok(()) };
        if trouble.code != Some(404) {
            return Err(trouble);
        }
        // The first start, or somebody deleted it. Whoever is first brings the document; all have the same.
        let snapshot = self.control.snapshot();
        if let Ok(text) = serde_json::to_string(&*snapshot.rollouts) {
            data.insert(KEY.to_owned(), text.into());
        }
        match self.session.create(GROUP, KIND, &document::new(&self.config_map, data.into())).await {
            Ok(_) => {
                info!(config_map = self.config_map, "Made the ConfigMap for the rollouts.");
                Ok(())
            }
            Err(trouble) if session::is_conflict(&trouble) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }
}

/// The pod's name; it is in a ConfigMap's key, which takes letters, digits, `-`, `_` and `.`.
fn replica_name() -> String {
    let of_pod =
        ["POD_NAME", "HOSTNAME"].into_iter().find_map(|name| std::env::var(name).ok().filter(|n| !n.is_empty()));
    let name = of_pod.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok()).unwrap_or_default();
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')).take(200).collect();
    if name.is_empty() { "perch".to_owned() } else { name }
}
