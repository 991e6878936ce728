//! What a thread counts while it runs, and how the counts of threads become one.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::fault::{Fault, Kind};
use super::version::VersionId;

/// Three significant digits: an error of at most 0.1 %.
const DIGITS: u8 = 3;
/// One slot of the timeline.
pub const SLOT: Duration = Duration::from_millis(100);
/// Flips that are listed one by one.
pub const LISTED_FLIPS: usize = 10;

/// Durations in microseconds.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new(DIGITS).unwrap_or_else(|_| unreachable!("three digits are allowed")))
    }
}

impl Times {
    /// One more.
    pub fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        // It grows as needed, up to an hour, which is longer than any sensible time limit.
        let recorded = self.0.record(micros.min(3_600_000_000));
        debug_assert!(recorded.is_ok(), "a growing histogram takes every value");
    }

    /// All of another.
    pub fn add(&mut self, other: &Self) {
        self.0 += &other.0;
    }

    /// The histogram in microseconds.
    #[must_use]
    pub const fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

/// Of one version.
#[derive(Clone, Debug, Default)]
pub struct VersionTally {
    pub requests: u64,
    /// Answers of a status of 400 or more, among the requests.
    pub errors: u64,
    pub latency: Times,
}

/// Of one kind of error.
#[derive(Clone, Debug)]
pub struct FaultTally {
    pub count: u64,
    /// The first one's words.
    pub first: String,
}

/// A tenth of a second.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    /// (visits, requests) by version. A visit is one client's, so visits are nearly independent of each other.
    pub versions: Vec<(u32, u32)>,
    pub errors: u32,
}

/// A client that saw another version than before.
#[derive(Clone, Debug)]
pub struct Flip {
    pub client: u32,
    /// Since the run began.
    pub at: Duration,
    pub from: VersionId,
    pub to: VersionId,
}

/// The counts of a step.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests begun and ended, in whatever way.
    pub attempts: u64,
    pub versions: Vec<VersionTally>,
    pub faults: BTreeMap<Kind, FaultTally>,
    pub flips: u64,
    pub first_flips: Vec<Flip>,
    pub connections: u64,
    pub handshakes: u64,
    /// Requests that were sent again because the server had closed a kept-alive connection.
    pub stale: u64,
    pub sent: u64,
    pub received: u64,
    pub connect: Times,
    /// How much later than scheduled a request was begun.
    pub lag: Times,
    pub timeline: BTreeMap<u32, Slot>,
}

impl Tally {
    /// A complete answer from a version; one of the warm-up has no latency.
    pub fn answer(&mut self, version: VersionId, bad: bool, latency: Option<Duration>, at: Duration, new_visit: bool) {
        let index = version.index();
        if self.versions.len() <= index {
            self.versions.resize_with(index + 1, VersionTally::default);
        }
        if let Some(tally) = self.versions.get_mut(index) {
            tally.requests += 1;
            tally.errors += u64::from(bad);
            if let Some(latency) = latency {
                tally.latency.record(latency);
            }
        }
        let slot = self.timeline.entry(slot_of(at)).or_default();
        if slot.versions.len() <= index {
            slot.versions.resize(index + 1, (0, 0));
        }
        if let Some((visits, requests)) = slot.versions.get_mut(index) {
            *visits += u32::from(new_visit);
            *requests += 1;
        }
    }

    /// A failed request.
    pub fn fault(&mut self, fault: Fault, at: Duration) {
        self.timeline.entry(slot_of(at)).or_default().errors += 1;
        self.faults.entry(fault.kind).or_insert_with(|| FaultTally { count: 0, first: fault.detail }).count += 1;
    }

    /// A client that changed sides.
    pub fn flip(&mut self, flip: Flip) {
        self.flips += 1;
        if self.first_flips.len() < LISTED_FLIPS {
            self.first_flips.push(flip);
        }
    }

    /// Failed requests of all kinds.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.faults.values().map(|f| f.count).sum()
    }

    /// Complete answers of all versions.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.versions.iter().map(|v| v.requests).sum()
    }

    /// All of another thread's counts.
    pub fn add(&mut self, other: Self) {
        self.attempts += other.attempts;
        if self.versions.len() < other.versions.len() {
            self.versions.resize_with(other.versions.len(), VersionTally::default);
        }
        for (mine, theirs) in self.versions.iter_mut().zip(other.versions) {
            mine.requests += theirs.requests;
            mine.errors += theirs.errors;
            mine.latency.add(&theirs.latency);
        }
        for (kind, theirs) in other.faults {
            self.faults.entry(kind).and_modify(|f| f.count += theirs.count).or_insert(theirs);
        }
        self.flips += other.flips;
        self.first_flips.extend(other.first_flips);
        self.first_flips.sort_by_key(|f| f.at);
        self.first_flips.truncate(LISTED_FLIPS);
        self.connections += other.connections;
        self.handshakes += other.handshakes;
        self.stale += other.stale;
        self.sent += other.sent;
        self.received += other.received;
        self.connect.add(&other.connect);
        self.lag.add(&other.lag);
        for (at, theirs) in other.timeline {
            self.timeline.entry(at).or_default().add(&theirs);
        }
    }
}

impl Slot {
    /// All of another slot's counts.
    pub fn add(&mut self, other: &Self) {
        self.errors += other.errors;
        if self.versions.len() < other.versions.len() {
            self.versions.resize(other.versions.len(), (0, 0));
        }
        for (mine, theirs) in self.versions.iter_mut().zip(&other.versions) {
            mine.0 += theirs.0;
            mine.1 += theirs.1;
        }
    }
}

fn slot_of(at: Duration) -> u32 {
    u32::try_from(at.as_millis() / SLOT.as_millis()).unwrap_or(u32::MAX)
}

/// What is remembered of a client: eight bytes, so that 100,000 of them are nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Served last in the step before.
    pub before: Option<Seen>,
    /// Served first and last in this step.
    pub first: Option<Seen>,
    pub last: Option<Seen>,
    pub flipped: bool,
}

/// A version in two bytes, `None` included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(std::num::NonZeroU16);

impl Seen {
    fn new(version: VersionId) -> Option<Self> {
        std::num::NonZeroU16::new(version.0 + 1).map(Self)
    }

    /// The version.
    #[must_use]
    pub const fn version(self) -> VersionId {
        VersionId(self.0.get() - 1)
    }
}

impl Client {
    /// Served by `version`; gives the version before when it is another one in the same step.
    pub fn serve(&mut self, version: VersionId) -> Option<VersionId> {
        let seen = Seen::new(version);
        let before = std::mem::replace(&mut self.last, seen);
        if self.first.is_none() {
            self.first = seen;
        }
        let flip = before.filter(|_| before != seen)?;
        self.flipped = true;
        Some(flip.version())
    }

    /// The next step begins.
    pub fn next_step(&mut self) {
        *self = Self { before: self.last.or(self.before), ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_kept_to_a_thousandth() {
        let mut times = Times::default();
        for millis in [1, 50, 10_000] {
            times.record(Duration::from_millis(millis));
        }

        let max = times.histogram().max();

        assert!((9_990_000..=10_010_000).contains(&max), "{max}");
    }

    #[test]
    fn a_client_is_eight_bytes() {
        assert_eq!(size_of::<Client>(), 8);
    }

    #[test]
    fn another_version_in_the_same_step_is_a_flip_and_in_the_next_step_is_none() {
        let mut client = Client::default();

        assert_eq!(client.serve(VersionId(0)), None);
        assert_eq!(client.serve(VersionId(0)), None);
        assert_eq!(client.serve(VersionId(1)), Some(VersionId(0)));
        client.next_step();
        assert_eq!(client.serve(VersionId(0)), None);
        assert_eq!(client.before.map(Seen::version), Some(VersionId(1)));
    }

    #[test]
    fn the_earliest_flips_of_all_threads_are_listed() {
        let flip = |client, at| Flip { client, at: Duration::from_secs(at), from: VersionId(0), to: VersionId(1) };
        let (mut one, mut two) = (Tally::default(), Tally::default());
        for at in 0..20 {
            one.flip(flip(1, 2 * at + 100));
            two.flip(flip(2, 2 * at + 101));
        }

        one.add(two);

        let listed: Vec<u64> = one.first_flips.iter().map(|f| f.at.as_secs()).collect();
        assert_eq!((one.flips, listed), (40, (100..110).collect()));
    }
}
