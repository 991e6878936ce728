//! One list and watch, for ever: list, then events from there, then again from where it broke off.
//!
//! A list is handed over whole, so nothing is ever emptied first. Every wait has an end: a server that falls silent is
//! left once its own time is over. Each stream has a backoff of its own, so one that fails for ever stops no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use super::client::{self, Connector, Trouble, get};
use super::objects::{Kind, Line, List, OnlyMetadata, Status, Version};
use super::picture::News;
use super::streams::{StreamKey, encode};
use crate::control::jittered;
use crate::metrics::{self, SyncError};
use crate::state::clock::Clock;

/// Objects per page of a list: a few MiB of JSON at most.
const PAGE: usize = 500;
const MAX_PAGE: usize = 128 << 20;
/// Of one event. etcd takes objects of 1.5 MiB.
const MAX_LINE: usize = 8 << 20;

/// After the server should have ended a watch by itself, at most; half of the watch if that is shorter.
const MARGIN: Duration = Duration::from_secs(10);

/// Between two reads of what a watch has sent. Each read wakes the thread, which costs more than what it reads, and takes a
/// core that a worker may need; the writer settles for four times as long anyhow.
const READ: Duration = Duration::from_millis(5);

/// A watch that was fine for so long starts anew without a pause.
const GOOD: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Where another try soon is of no use: somebody must change something first.
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// So many failures in a row of a watch that is not refused as too old: it is listed anew all the same, since the
/// version itself may be what the server stumbles over (such as one from before etcd was restored).
const MISTRUST: u32 = 4;

/// What follows one stream.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) key: StreamKey,
    pub(super) connector: Connector,
    pub(super) news: mpsc::Sender<(StreamKey, News)>,
    pub(super) heard: Heard,
    /// How long a watch is asked to last.
    pub(super) watch: Duration,
}

/// When a stream last gave a sign of life.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    at: Arc<AtomicU64>,
    clock: Clock,
}

impl Heard {
    pub(super) fn now(clock: Clock) -> Self {
        Self { at: Arc::new(AtomicU64::new(clock.now())), clock }
    }

    fn mark(&self) {
        self.at.store(self.clock.now(), Ordering::Relaxed);
    }

    pub(super) fn age(&self) -> Duration {
        Duration::from_millis(self.clock.now().saturating_sub(self.at.load(Ordering::Relaxed)))
    }
}

/// How it stands between two attempts.
#[derive(Default)]
struct State {
    client: Option<Client>,
    /// Where to go on; `None`: list first.
    version: Option<Version>,
    failures: u32,
    /// What is known to be wrong; logged once.
    trouble: Option<SyncError>,
}

impl Follower {
    /// Works until whoever takes the news is gone.
    pub(super) async fn run(self) {
        let mut state = State::default();
        while !self.news.is_closed() {
            let began = Instant::now();
            let Err(trouble) = self.attempt(&mut state).await else {
                if began.elapsed() < GOOD.min(self.watch / 2) {
                    sleep(jittered(FIRST_PAUSE)).await;
                }
                continue;
            };
            sleep(self.cope(&mut state, trouble)).await;
        }
    }

    /// Decides what a failure means, and how long to wait.
    fn cope(&self, state: &mut State, trouble: Trouble) -> Duration {
        let Trouble { reason, message, retry_after, .. } = trouble;
        metrics::kubernetes_sync_error(reason);
        state.failures = state.failures.saturating_add(1);
        match reason {
            SyncError::Gone => state.version = None,
            // The token or the CA may have changed.
            SyncError::Unauthorized | SyncError::Connect | SyncError::NoCluster => state.client = None,
            // All connections of a client may have died with the one.
            SyncError::Stalled => state.client = None,
            SyncError::Cut | SyncError::Garbage | SyncError::Refused | SyncError::ServerError => {}
            SyncError::Forbidden | SyncError::Throttled => {}
        }
        let may_be_version = matches!(
            reason,
            SyncError::Cut | SyncError::Garbage | SyncError::Refused | SyncError::ServerError | SyncError::Stalled
        );
        if may_be_version && state.failures.is_multiple_of(MISTRUST) {
            state.version = None;
        }
        let (resource, namespace) = (self.key.kind.as_str(), &self.key.namespace);
        if reason == SyncError::Gone {
            info!(resource, namespace, "The API server no longer knows where this watch was; listing again.");
        } else if state.trouble != Some(reason) {
            // Once, not with each try.
            let reason = reason.as_str();
            if reason == SyncError::Forbidden.as_str() {
                warn!(
                    resource,
                    namespace,
                    reason,
                    error = message,
                    "The API server refuses this; give perch's ServiceAccount a Role with list and watch on the resource. What was known stays."
                );
            } else {
                warn!(resource, namespace, reason, error = message, "Cannot follow the cluster; what was known stays.");
            }
        } else {
            debug!(resource, namespace, error = message, "Still cannot follow the cluster.");
        }
        if reason != SyncError::Gone {
            state.trouble = Some(reason);
        }
        let longest = match reason {
            SyncError::Forbidden | SyncError::Refused | SyncError::NoCluster => LONGEST_REFUSED_PAUSE,
            SyncError::Connect
            | SyncError::Cut
            | SyncError::Garbage
            | SyncError::Gone
            | SyncError::ServerError
            | SyncError::Stalled
            | SyncError::Throttled
            | SyncError::Unauthorized => LONGEST_PAUSE,
        };
        let doubled = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(state.failures.saturating_sub(1).min(10)));
        let own = jittered(doubled.min(longest));
        // Never before the server wants it, and not all at the same moment after.
        retry_after.map_or(own, |after| after + own.min(after))
    }

    /// It works (again).
    fn good(&self, state: &mut State) {
        self.heard.mark();
        state.failures = 0;
        if state.trouble.take().is_some() {
            info!(resource = self.key.kind.as_str(), namespace = self.key.namespace, "Following the cluster again.");
        }
    }

    /// Lists if there is no place to go on from, then watches until the server ends it in good order.
    async fn attempt(&self, state: &mut State) -> Result<(), Trouble> {
        let client = match &state.client {
            Some(client) => client.clone(),
            None => {
                let (client, _) = self.connector.connect().await?;
                state.client.insert(client).clone()
            }
        };
        let version = match &state.version {
            Some(version) => version.clone(),
            None => {
                let version = self.list(&client).await?;
                self.heard.mark();
                state.version.insert(version).clone()
            }
        };
        let asked = jittered(self.watch);
        let target = self.target(&format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            asked.as_secs().max(1),
            encode(&version.0)
        ));
        let response = get(&client, &target, self.accept(false)).await?;
        self.heard.mark();
        let began = Instant::now();
        let deadline = began + asked + MARGIN.min(asked / 2);
        let mut lines = Lines::of(response.into_body());
        loop {
            let line = lines.next(deadline).await;
            // A quiet watch is a good one, too.
            if matches!(line, Ok(Some(_))) || began.elapsed() >= GOOD {
                self.good(state);
            }
            let Some(line) = line? else { return Ok(()) };
            self.event(&line, state).await?;
        }
    }

    /// The whole list, handed over at once; the version to watch from.
    async fn list(&self, client: &Client) -> Result<Version, Trouble> {
        let mut objects = Vec::new();
        let mut more: Option<String> = None;
        loop {
            let page = match &more {
                None => format!("limit={PAGE}"),
                Some(more) => format!("limit={PAGE}&continue={}", encode(more)),
            };
            let response = get(client, &self.target(&page), self.accept(true)).await?;
            let body = client::read(response.into_body(), MAX_PAGE).await?;
            let list: List<'_> = serde_json::from_slice(&body).map_err(|e| garbage(&e))?;
            for item in list.items.into_iter().flatten() {
                match self.key.kind.read(item.get()) {
                    Ok(object) => objects.push(object),
                    Err(error) => self.unreadable(&error),
                }
            }
            more = list.metadata.more.filter(|more| !more.is_empty());
            if more.is_none() {
                let version = Version(list.metadata.resource_version);
                self.tell(News::Listed(objects, version.clone())).await;
                return Ok(version);
            }
        }
    }

    async fn event(&self, line: &[u8], state: &mut State) -> Result<(), Trouble> {
        let line: Line<'_> = serde_json::from_slice(line).map_err(|e| garbage(&e))?;
        let json = line.object.get();
        let (news, version) = match line.kind {
            "ADDED" | "MODIFIED" | "DELETED" => match self.key.kind.read(json) {
                Ok(object) if line.kind == "DELETED" => {
                    let version = object.version;
                    (Some(News::Deleted { name: object.name, version: version.clone() }), version)
                }
                Ok(object) => {
                    let version = object.version.clone();
                    (Some(News::Applied(object)), version)
                }
                // One bad object must not hide those behind it.
                Err(error) => {
                    self.unreadable(&error);
                    (None, only_version(json)?)
                }
            },
            "BOOKMARK" => {
                let version = only_version(json)?;
                (Some(News::Bookmark(version.clone())), version)
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(json).map_err(|e| garbage(&e))?;
                let code = status.code.and_then(|c| StatusCode::from_u16(c).ok());
                return Err(client::refused(code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), status));
            }
            // Of a later API: to be ignored.
            _ => (None, Version::default()),
        };
        if let Some(news) = news {
            self.tell(news).await;
        }
        if !version.0.is_empty() {
            state.version = Some(version);
        }
        Ok(())
    }

    fn unreadable(&self, error: &serde_json::Error) {
        metrics::kubernetes_sync_error(SyncError::Garbage);
        let (resource, namespace) = (self.key.kind.as_str(), &self.key.namespace);
        warn!(resource, namespace, %error, "Left out an object that perch cannot read.");
    }

    /// Nobody listens only when perch is stopping.
    async fn tell(&self, news: News) {
        self.news.send((self.key.clone(), news)).await.ok();
    }

    fn target(&self, query: &str) -> String {
        let StreamKey { kind, namespace, selector } = &self.key;
        let and = if selector.is_empty() { "" } else { "&" };
        format!("{}?{selector}{and}{query}", kind.path(namespace))
    }

    fn accept(&self, is_list: bool) -> &'static str {
        match (self.key.kind, is_list) {
            (Kind::Pods, true) => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            (Kind::Pods, false) => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            (Kind::EndpointSlices | Kind::Services | Kind::ConfigMaps, _) => "application/json",
        }
    }
}

fn only_version(json: &str) -> Result<Version, Trouble> {
    let OnlyMetadata { metadata } = serde_json::from_str(json).map_err(|e| garbage(&e))?;
    Ok(Version(metadata.resource_version))
}

fn garbage(error: &serde_json::Error) -> Trouble {
    Trouble::new(SyncError::Garbage, format!("not what the API says: {error}"))
}

/// A body, line by line.
struct Lines<B> {
    body: B,
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no line's end.
    scanned: usize,
    /// When all that had come was last read.
    read: Option<Instant>,
    /// Something came since then.
    is_more: bool,
}

impl<B: Body<Data = Bytes, Error: std::error::Error> + Unpin> Lines<B> {
    fn of(body: B) -> Self {
        Self { body, buffer: Vec::new(), scanned: 0, read: None, is_more: false }
    }

    /// What comes next. Once all that is there was read, what comes within [`READ`] is left to gather.
    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, B::Error>> {
        let mut next = std::pin::pin!(self.body.frame());
        tokio::select! {
            biased;
            frame = &mut next => {
                self.is_more = true;
                return frame;
            }
            // The connection's own task had its turn, and has nothing.
            () = yield_now() => {}
        }
        if std::mem::take(&mut self.is_more) {
            if let Some(read) = self.read {
                sleep_until(read + READ).await;
            }
            self.read = Some(Instant::now());
        }
        let frame = next.await;
        self.is_more = true;
        frame
    }

    /// `None` at the end in good order.
    async fn next(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, Trouble> {
        loop {
            let fresh = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', fresh) {
                let rest = self.buffer.split_off(self.scanned + at + 1);
                self.scanned = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            self.scanned = self.buffer.len();
            if self.scanned > MAX_LINE {
                return Err(Trouble::new(SyncError::Garbage, format!("an event of more than {MAX_LINE} bytes")));
            }
            match timeout_at(deadline, self.frame()).await {
                Err(_) => return Err(Trouble::new(SyncError::Stalled, "silent for longer than the watch should last")),
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Ok(Some(Err(error))) => return Err(Trouble::new(SyncError::Cut, client::chain(&error))),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Err(Trouble::new(SyncError::Cut, "ended in the middle of an event")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each message is a frame.
    struct Told(mpsc::Receiver<Bytes>);

    impl Body for Told {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.0.poll_recv(cx).map(|told| told.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_read_in_batches_and_a_lone_event_at_once() {
        let (storm, body) = mpsc::channel(1_000);
        let (mut lines, began) = (Lines::of(Told(body)), Instant::now());
        tokio::spawn(async move {
            for event in 0..100u64 {
                sleep_until(began + Duration::from_millis(event)).await;
                storm.send(format!("{event}\n").into()).await.unwrap();
            }
            sleep(Duration::from_secs(1)).await;
            storm.send("lone\n".into()).await.unwrap();
        });

        let (mut moments, mut late) = (std::collections::BTreeSet::new(), Vec::new());
        for event in 0..100u64 {
            let line = lines.next(began + Duration::from_secs(9)).await.unwrap().unwrap();
            assert_eq!(line, format!("{event}\n").as_bytes());
            moments.insert(began.elapsed());
            late.push(began.elapsed() - Duration::from_millis(event));
        }
        lines.next(began + Duration::from_secs(9)).await.unwrap().unwrap();

        assert!(moments.len() <= 42, "{} reads of 100 events", moments.len());
        assert!(late.iter().all(|late| *late <= READ + Duration::from_millis(1)), "{late:?}");
        assert!(began.elapsed() <= Duration::from_millis(1_101), "{:?}", began.elapsed());
        assert!(lines.next(began + Duration::from_secs(9)).await.unwrap().is_none());
    }

    fn follower() -> Follower {
        let (news, _) = mpsc::channel(1);
        let key = StreamKey { kind: Kind::Pods, namespace: "lab".into(), selector: String::new() };
        let (connector, watch) = (Connector::default(), Duration::from_secs(60));
        Follower { key, connector, news, heard: Heard::now(Clock::start()), watch }
    }

    #[test]
    fn an_hour_of_outage_is_a_few_hundred_tries_and_the_end_is_seen_within_seconds() {
        let (follower, mut state) = (follower(), State::default());
        let (mut passed, mut tries, mut longest) = (Duration::ZERO, 0, Duration::ZERO);

        while passed < Duration::from_secs(3600) {
            let pause = follower.cope(&mut state, Trouble::new(SyncError::Connect, "refused"));
            passed += pause;
            tries += 1;
            longest = longest.max(pause);
        }

        assert!((300..500).contains(&tries), "{tries}");
        assert!(longest <= LONGEST_PAUSE.mul_f64(1.2), "{longest:?}");
        assert_eq!(state.trouble, Some(SyncError::Connect), "said once");
    }

    #[test]
    fn a_server_is_never_asked_before_it_wants_and_not_by_all_at_once() {
        let (follower, mut state) = (follower(), State::default());
        let after = Duration::from_secs(7);

        let pauses: Vec<Duration> = (0..50)
            .map(|_| {
                let trouble = Trouble { retry_after: Some(after), ..Trouble::new(SyncError::Throttled, "busy") };
                follower.cope(&mut state, trouble)
            })
            .collect();

        assert!(pauses.iter().all(|p| *p >= after && *p <= after * 2), "{pauses:?}");
        assert!(pauses.windows(2).any(|w| w[0] != w[1]));
    }
}
