//! Endpoints that follow a cluster: which lists and watches the configuration needs, what they say, and what of that is
//! news for the writer.
//!
//! Nothing is ever worse than the last good state: what cannot be read stays as it was, and a source that was never read
//! is unknown, not empty. Readiness waits for the first complete picture only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::{error, info, warn};

use self::client::Connector;
use self::handovers::Handovers;
use self::objects::Kind;
use self::picture::{Changed, News, Picture};
use self::streams::{Needs, StreamKey};
use self::watch::{Follower, Heard};
use super::{Control, jittered};
use crate::config::{Config, KubernetesSource};
use crate::decide::slices::Members;
use crate::metrics;
use crate::readiness::Block;
use crate::state::clock::Clock;
use crate::state::model::ClusterNews;

pub mod cache;
mod client;
mod handovers;
pub(crate) mod objects;
mod picture;
pub mod state;
mod streams;
mod watch;

/// How perch follows a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Default: `KUBECONFIG`, the user's own, or the pod's ServiceAccount.
    pub kubeconfig: Option<PathBuf>,
    /// Where the last known picture is kept.
    pub cache: Option<PathBuf>,
    /// How long a watch is asked to last. A server that falls silent is noticed some seconds after that.
    pub watch: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { kubeconfig: None, cache: None, watch: Duration::from_secs(60) }
    }
}

/// Between two looks at what changed, at least. The writer settles and paces on top of it.
const STEP: Duration = Duration::from_millis(1);
const LONGEST_STEP: Duration = Duration::from_millis(40);

/// Looking takes a fifth of a core at most, however many events there are.
const STEP_PER_LOOK: u32 = 4;

/// News under way; more make the watches wait, and the API server buffer.
const NEWS: usize = 1024;

/// Whether a configuration takes anything from a cluster.
#[must_use]
pub fn is_needed(config: &Config) -> bool {
    !Needs::of(config, "").is_empty()
}

/// What of `news` a configuration uses, and whether that is all that it needs.
#[must_use]
pub fn suffices(config: &Config, news: &ClusterNews) -> bool {
    let needs = Needs::of(config, "");
    let has_source = |source: &KubernetesSource| news.endpoints.iter().any(|(s, _)| s == source);
    needs.sources.iter().all(|need| has_source(&need.source))
        && needs.affinities.iter().all(|(service, _)| news.affinities.iter().any(|(s, _)| s == service))
}

/// Asks what the cluster says of a configuration that is about to be taken over. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Question>);

/// A configuration to be, and who wants to know.
#[derive(Debug)]
pub struct Question {
    config: Config,
    answer: oneshot::Sender<ClusterNews>,
}

/// How long a reload waits for what the cluster says; later news comes by itself.
const PREPARE: Duration = Duration::from_secs(2);

/// A handle, and what [`run`] takes.
#[must_use]
pub fn channel() -> (Handle, mpsc::Receiver<Question>) {
    let (sender, questions) = mpsc::channel(1);
    (Handle(sender), questions)
}

impl Handle {
    /// All that `config` needs, so that a version that is new has its endpoints from its first moment on. Nothing when
    /// the cluster does not answer in time.
    pub async fn prepare(&self, config: &Config) -> ClusterNews {
        if !is_needed(config) {
            return ClusterNews::default();
        }
        let asked = async {
            let (answer, answered) = oneshot::channel();
            self.0.send(Question { config: config.clone(), answer }).await.ok()?;
            answered.await.ok()
        };
        timeout(PREPARE, asked).await.ok().flatten().unwrap_or_default()
    }
}

/// Works until the writer is gone. `first` is dropped with the first complete picture.
pub async fn run(
    control: Control,
    options: Options,
    clock: Clock,
    first: Option<Block>,
    mut questions: mpsc::Receiver<Question>,
) {
    let mut generations = control.generations();
    let mut question = None;
    while question.is_none() && !is_needed(&control.snapshot().config) {
        tokio::select! {
            asked = questions.recv() => match asked {
                Some(asked) => question = Some(asked),
                None => return,
            },
            changed = generations.changed() => if changed.is_err() {
                return;
            },
        }
    }
    metrics::kubernetes_start();
    let connector = Connector { kubeconfig: options.kubeconfig.clone() };
    let namespace = own_namespace(&connector).await;
    info!(namespace, "Following the cluster.");
    let (sender, news) = mpsc::channel(NEWS);
    let config = control.snapshot().config.clone();
    let mut controller = Controller {
        needs: Needs::of(&config, &namespace),
        config,
        control,
        options,
        clock,
        connector,
        namespace,
        sender,
        followers: HashMap::new(),
        picture: Picture::default(),
        handovers: Handovers::default(),
        told: ClusterTold::default(),
        first,
        dirty: Dirty::default(),
        uncached: false,
        coming: None,
    };
    controller.follow();
    if let Some(question) = question {
        controller.prepare(question);
    }
    controller.run(news, questions).await;
}

/// Of a kubeconfig's context, or of perch's own pod.
async fn own_namespace(connector: &Connector) -> String {
    let mut is_logged = false;
    loop {
        match connector.connect().await {
            Ok((_, namespace)) => return namespace,
            Err(trouble) => {
                metrics::kubernetes_sync_error(trouble.reason);
                if !is_logged {
                    error!(error = trouble.message, "Cannot follow the cluster.");
                    is_logged = true;
                }
                sleep(jittered(Duration::from_secs(2))).await;
            }
        }
    }
}

struct Controller {
    control: Control,
    options: Options,
    clock: Clock,
    connector: Connector,
    namespace: String,
    config: Arc<Config>,
    needs: Needs,
    sender: mpsc::Sender<(StreamKey, News)>,
    followers: HashMap<StreamKey, Running>,
    picture: Picture,
    handovers: Handovers,
    told: ClusterTold,
    first: Option<Block>,
    dirty: Dirty,
    /// The file is older than what was told.
    uncached: bool,
    /// A configuration to be and what it needs, until it is in force; and who waits to hear of it.
    coming: Option<Coming>,
}

struct Coming {
    needs: Needs,
    config: Config,
    answer: Option<oneshot::Sender<ClusterNews>>,
}

struct Running {
    task: JoinHandle<()>,
    heard: Heard,
}

/// What the writer was told last.
#[derive(Default)]
struct ClusterTold {
    endpoints: BTreeMap<KubernetesSource, Members>,
    affinities: BTreeMap<crate::config::KubernetesService, Option<Duration>>,
}

/// What has to be looked at.
#[derive(Default)]
struct Dirty {
    everything: bool,
    services: BTreeSet<(String, String)>,
    /// Pods of these namespaces, or all slices of them.
    namespaces: BTreeSet<String>,
}

impl Dirty {
    fn is_empty(&self) -> bool {
        !self.everything && self.services.is_empty() && self.namespaces.is_empty()
    }
}

impl Controller {
    async fn run(mut self, mut news: mpsc::Receiver<(StreamKey, News)>, mut questions: mpsc::Receiver<Question>) {
        let mut generations = self.control.generations();
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        let mut looked = Instant::now();
        let mut step = STEP;
        loop {
            let due = (!self.dirty.is_empty()).then(|| looked + step);
            tokio::select! {
                count = news.recv_many(&mut batch, NEWS), if due.is_none_or(|due| due > Instant::now()) => {
                    // The sender is ours: this never ends by itself.
                    debug_assert!(count > 0);
                    for (stream, news) in batch.drain(..) {
                        self.learn(&stream, news);
                    }
                    self.answer();
                }
                question = questions.recv() => match question {
                    Some(question) => self.prepare(question),
                    None => break,
                },
                () = sleep_until(due.unwrap_or(looked)), if due.is_some() => {
                    let began = Instant::now();
                    if !self.look().await {
                        break;
                    }
                    looked = Instant::now();
                    step = (looked.duration_since(began) * STEP_PER_LOOK).clamp(STEP, LONGEST_STEP);
                }
                changed = generations.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.reconfigure();
                }
                _ = second.tick() => self.keep_house(),
            }
        }
        self.followers.values().for_each(|running| running.task.abort());
    }

    fn learn(&mut self, stream: &StreamKey, news: News) {
        // What a stream of an earlier configuration still had under way.
        if !self.followers.contains_key(stream) {
            return;
        }
        match self.picture.learn(stream, news) {
            Changed::Nothing => {}
            Changed::Services(services) => {
                self.dirty.services.extend(services.into_iter().map(|s| (stream.namespace.clone(), s)));
            }
            Changed::Everything => {
                self.dirty.namespaces.insert(stream.namespace.clone());
            }
        }
    }

    /// Tells the writer what changed. False when it is gone.
    async fn look(&mut self) -> bool {
        let dirty = std::mem::take(&mut self.dirty);
        let mut news = ClusterNews::default();
        let (snapshot, now) = (self.control.snapshot(), self.clock.now());
        for need in &self.needs.sources {
            let (namespace, service) = (&need.slices.namespace, &need.source.service.name);
            let is_dirty = dirty.everything
                || dirty.namespaces.contains(namespace)
                || dirty.services.contains(&(namespace.clone(), service.clone()));
            if !is_dirty {
                continue;
            }
            let with = (&*self.config, &*snapshot);
            let Some(found) = self.handovers.endpoints(need, &self.picture, with, now) else { continue };
            if self.told.endpoints.get(&need.source) != Some(&found) {
                self.told.endpoints.insert(need.source.clone(), found.clone());
                news.endpoints.push((need.source.clone(), found));
            }
        }
        for (service, stream) in &self.needs.affinities {
            let Some(affinity) = self.picture.affinity(service, stream) else { continue };
            if self.told.affinities.insert(service.clone(), affinity.0) != Some(affinity.0) {
                news.affinities.push((service.clone(), affinity.0));
            }
        }
        let is_complete = self.first.is_some() && self.needs.streams().iter().all(|s| self.picture.has(s));
        self.uncached |= news != ClusterNews::default();
        if is_complete {
            // Ready only once everybody sees it.
            let done = self.control.discovered_now(news).await;
            self.first = None;
            info!("The picture of the cluster is complete.");
            return done.is_ok();
        }
        news == ClusterNews::default() || self.control.discovered(news).await.is_ok()
    }

    /// Follows what a configuration to be needs, too.
    fn prepare(&mut self, Question { config, answer }: Question) {
        let needs = Needs::of(&config, &self.namespace);
        self.coming = Some(Coming { needs, config, answer: Some(answer) });
        self.follow();
        self.answer();
    }

    /// Tells who asked, once all is known.
    fn answer(&mut self) {
        let Some(Coming { needs, config, answer }) = &mut self.coming else { return };
        if answer.is_none() || !needs.streams().iter().all(|s| self.picture.has(s)) {
            return;
        }
        let (snapshot, now) = (self.control.snapshot(), self.clock.now());
        let endpoints = needs.sources.iter().filter_map(|need| {
            let found = self.handovers.endpoints(need, &self.picture, (config, &snapshot), now)?;
            Some((need.source.clone(), found))
        });
        let affinities = needs
            .affinities
            .iter()
            .filter_map(|(service, stream)| Some((service.clone(), self.picture.affinity(service, stream)?.0)));
        let news = ClusterNews { endpoints: endpoints.collect(), affinities: affinities.collect() };
        if let Some(answer) = answer.take() {
            // Who waited too long has gone on without.
            answer.send(news).ok();
        }
    }

    /// Each snapshot is announced, but only another configuration matters here.
    fn reconfigure(&mut self) {
        let config = self.control.snapshot().config.clone();
        if Arc::ptr_eq(&config, &self.config) {
            return;
        }
        self.needs = Needs::of(&config, &self.namespace);
        self.config = config;
        self.coming = None;
        self.handovers.retain(&self.needs);
        self.follow();
        // The writer may have forgotten what the configuration did without for a while.
        self.told = ClusterTold::default();
        self.dirty.everything = true;
    }

    /// The streams that are needed, and no others.
    fn follow(&mut self) {
        let coming = self.coming.iter().flat_map(|coming| coming.needs.streams());
        let wanted: BTreeSet<StreamKey> = self.needs.streams().into_iter().chain(coming).cloned().collect();
        self.followers.retain(|key, running| {
            let stays = wanted.contains(key);
            if !stays {
                running.task.abort();
            }
            stays
        });
        self.picture.retain(|key| wanted.contains(key));
        for key in wanted {
            if self.followers.contains_key(&key) {
                continue;
            }
            let heard = Heard::now(self.clock);
            let follower = Follower {
                key: key.clone(),
                connector: self.connector.clone(),
                news: self.sender.clone(),
                heard: heard.clone(),
                watch: self.options.watch,
            };
            self.followers.insert(key, Running { task: tokio::spawn(follower.run()), heard });
        }
    }

    /// Once a second.
    fn keep_house(&mut self) {
        self.dirty.everything |= self.handovers.are_overdue(self.clock.now());
        for kind in Kind::ALL {
            let ages = self.followers.iter().filter(|(key, _)| key.kind == kind).map(|(_, r)| r.heard.age());
            if let Some(oldest) = ages.max() {
                metrics::kubernetes_event_age(kind.as_str(), oldest);
            }
        }
        // An incomplete picture must not replace a complete one.
        if !self.uncached || self.first.is_some() || self.needs.streams().iter().any(|s| !self.picture.has(s)) {
            return;
        }
        self.uncached = false;
        let Some(file) = self.options.cache.clone() else { return };
        let news = ClusterNews {
            endpoints: self.told.endpoints.iter().map(|(s, e)| (s.clone(), e.clone())).collect(),
            affinities: self.told.affinities.iter().map(|(s, a)| (s.clone(), *a)).collect(),
        };
        tokio::task::spawn_blocking(move || {
            if let Err(error) = cache::store(&file, news) {
                warn!(file = %file.display(), %error, "Cannot write the snapshot cache.");
            }
        });
    }
}
